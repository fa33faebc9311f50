//! Passes the linker script: how the image is laid out belongs to the load form, not to the build
//! command.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../linker/ppc64-pseries.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in [
        &format!("-T{script}"),
        "-zmax-page-size=4096",
        "--gc-sections",
        "--icf=all",
    ] {
        println!("cargo:rustc-link-arg={arg}");
    }
}
