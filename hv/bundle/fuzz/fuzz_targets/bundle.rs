//! Any bytes as a bundle: no panic, and what is read can be listed.
#![no_main]

use bundle::{Archive, Bundle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for entry in Archive::new(bytes).flatten() {
        let end = entry.offset + entry.data.len();
        assert_eq!(&bytes[entry.offset..end], entry.data);
    }
    if let Ok(bundle) = Bundle::parse(bytes) {
        let _ = bundle.to_string();
    }
});
