use std::{string::ToString, vec, vec::Vec};

use proptest::prelude::{any, prop, proptest};

use super::{everything, files, linux};
use crate::{
    ArchiveProblem, BuildError, Bundle, BundleBuilder, Error, MANIFEST_NAME, Manifest,
    PAYLOAD_ALIGNMENT, VmConfig,
};

fn whole() -> Vec<u8> {
    let mut builder = BundleBuilder::new(&everything());
    for (name, data) in files() {
        builder.file(name, &data).unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn a_bundle_gives_back_its_manifest_and_files() {
    let bytes = whole();
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.manifest(), &everything());
    for (name, data) in files() {
        assert_eq!(bundle.file(name), Some(&data[..]), "{name}");
    }
    assert_eq!(bundle.file("no/such/file"), None);
    assert_eq!(bundle.entries()[0].name, MANIFEST_NAME);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(whole(), whole());
}

#[test]
fn every_file_starts_on_a_page_of_the_archive() {
    let bytes = whole();
    for entry in Bundle::parse(&bytes).unwrap().entries() {
        assert!(entry.is_page_aligned(), "{entry:?}");
        assert_eq!(entry.offset % PAYLOAD_ALIGNMENT, 0);
    }
}

#[test]
fn a_missing_file_is_named_with_the_value_that_wants_it() {
    let mut builder = BundleBuilder::new(&everything());
    for (name, data) in files().iter().filter(|(name, _)| *name != "linux/initrd") {
        builder.file(name, data).unwrap();
    }
    let Err(BuildError::ReadBack(error)) = builder.finish() else {
        panic!("a file is missing");
    };
    assert!(matches!(error, Error::MissingFile { .. }));
    assert_eq!(
        error.to_string(),
        "manifest.dtb: vm[0].initrd: the bundle has no file linux/initrd"
    );
}

#[test]
fn a_builder_refuses_bad_and_taken_names() {
    let manifest = Manifest::new(vec![linux()]).unwrap();
    let mut builder = BundleBuilder::new(&manifest);
    assert!(matches!(
        builder.file("../x", b""),
        Err(BuildError::Name(_))
    ));
    assert!(matches!(
        builder.file(MANIFEST_NAME, b""),
        Err(BuildError::Duplicate(_))
    ));
    builder.file("linux/kernel", b"k").unwrap();
    assert!(builder.has("linux/kernel"));
    assert!(matches!(
        builder.file("linux/kernel", b""),
        Err(BuildError::Duplicate(_))
    ));
    assert!(builder.finish().is_ok());
}

#[test]
fn the_manifest_comes_first() {
    // The same archive without its first entry.
    let bytes = whole();
    let second = bytes[6..]
        .windows(6)
        .position(|window| window == b"070701")
        .unwrap()
        + 6;
    assert_eq!(
        Bundle::parse(&bytes[second..]).unwrap_err(),
        Error::NoManifest {
            found: "linux/kernel".into()
        }
    );
}

#[test]
fn an_archive_without_a_file_is_no_bundle() {
    let mut trailer = b"070701".to_vec();
    trailer.extend_from_slice("0".repeat(88).as_bytes());
    trailer.extend_from_slice(b"0000000b");
    trailer.extend_from_slice(b"00000000TRAILER!!!\0");
    trailer.resize(trailer.len().next_multiple_of(4), 0);
    assert_eq!(Bundle::parse(&trailer).unwrap_err(), Error::Empty);
}

#[test]
fn messages_show_text_from_outside_escaped() {
    let vm = VmConfig::new("a\x1b[2J\u{e9}\"", 2 << 20, "kernel");
    let said = Manifest::new(vec![vm]).unwrap_err().to_string();
    assert!(
        said.contains(r#""a\u{1b}[2J\u{e9}\u{22}" is not a name"#),
        "{said}"
    );
}

#[test]
fn a_truncated_bundle_says_where_it_ends() {
    let bytes = whole();
    let Err(Error::Archive(error)) = Bundle::parse(&bytes[..bytes.len() / 2]) else {
        panic!("half a bundle is none");
    };
    assert_eq!(error.entry.as_deref(), Some("linux/kernel"));
    assert!(matches!(
        error.problem,
        ArchiveProblem::DataTruncated {
            claimed: 10_001,
            ..
        }
    ));
}

#[test]
fn something_else_than_a_bundle_is_said_to_be_none() {
    assert_eq!(
        Bundle::parse(&[0x1f; 4096]).unwrap_err().to_string(),
        "bundle: offset 0x0: not a cpio header (\"070701\")"
    );
}

#[test]
fn the_listing_of_a_bundle() {
    let mut bytes = BundleBuilder::new(&everything());
    for (name, data) in files() {
        bytes.file(name, &data).unwrap();
    }
    bytes.file("notes.txt", b"extra").unwrap();
    let bytes = bytes.finish().unwrap();
    insta::assert_snapshot!(Bundle::parse(&bytes).unwrap().to_string());
}

proptest! {
    #[test]
    fn a_changed_bundle_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
    ) {
        let mut bytes = whole();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(bundle) = Bundle::parse(&bytes) {
            let _ = bundle.to_string();
        }
    }
}
