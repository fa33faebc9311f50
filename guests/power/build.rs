//! Passes the linker script to the guests.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in [
        &format!("-T{script}"),
        "--no-eh-frame-hdr",
        "-zmax-page-size=4096",
        "--gc-sections",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
