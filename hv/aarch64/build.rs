//! Passes the linker script: how the image is laid out belongs to the load form, not to the build
//! command.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../linker/aarch64-image.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in [
        &format!("-T{script}"),
        "-pie",
        "--no-dynamic-linker",
        // Constants with addresses in them are patched at entry, before anything is write-protected.
        "-znotext",
        // One bit for each of them, in place of 24 bytes.
        "--pack-dyn-relocs=relr",
        // A panic aborts; nothing unwinds.
        "--no-eh-frame-hdr",
        "-zmax-page-size=4096",
        "--icf=all",
    ] {
        println!("cargo:rustc-link-arg={arg}");
    }
}
