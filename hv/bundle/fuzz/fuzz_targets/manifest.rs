//! Any bytes as a manifest: no panic, and what decodes encodes to what decodes to it.
#![no_main]

use bundle::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::from_fdt(bytes) {
        assert_eq!(Manifest::from_fdt(&manifest.to_fdt()), Ok(manifest));
    }
});
