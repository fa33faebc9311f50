use std::{
    format,
    io::{Read as _, Write as _},
    string::{String, ToString},
    vec,
    vec::Vec,
};

use proptest::prelude::{Just, Strategy, any, prop, proptest};

use super::{everything, files};
use crate::{
    Archive, ArchiveError, ArchiveProblem, BundleBuilder, HeaderField, MAX_ENTRIES, is_file_name,
};

/// An entry by hand: whatever the header claims.
fn entry(name: &str, mode: u32, links: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        1, 0, 0, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0
    )
    .into_bytes();
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(name, 0o100_644, 1, data)
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend(entry("TRAILER!!!", 0, 1, &[]));
    bytes
}

fn names(bytes: &[u8]) -> Result<Vec<String>, ArchiveError> {
    Archive::new(bytes)
        .map(|entry| entry.map(|entry| entry.name.to_string()))
        .collect()
}

fn problem(bytes: &[u8]) -> ArchiveProblem {
    names(bytes).unwrap_err().problem
}

/// Overwrites eight hexadecimal digits of the header at `at`.
fn patched(mut bytes: Vec<u8>, at: usize, field: usize, text: &str) -> Vec<u8> {
    bytes[at + field..at + field + 8].copy_from_slice(text.as_bytes());
    bytes
}

#[test]
fn files_are_read_in_order_and_directories_passed_over() {
    let bytes = archive(&[
        entry(".", 0o040_755, 2, &[]),
        file("a", b"one"),
        entry("d", 0o040_755, 2, &[]),
        file("d/b", b""),
    ]);
    let entries: Vec<_> = Archive::new(&bytes).map(Result::unwrap).collect();
    assert_eq!(entries.len(), 2);
    assert_eq!((entries[0].name, entries[0].data), ("a", &b"one"[..]));
    assert_eq!((entries[1].name, entries[1].data), ("d/b", &b""[..]));
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let bytes = archive(&[file("a", b"one"), file("b", b"two and more")]);
    assert!(names(&bytes).is_ok());
    // The trailer's own padding may be missing.
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 2;
    for cut in 0..last {
        assert!(names(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_missing_trailer_is_told_from_other_ends() {
    let bytes = file("a", b"one");
    let error = names(&bytes).unwrap_err();
    assert_eq!(error.problem, ArchiveProblem::NoTrailer);
    assert_eq!(
        error.to_string(),
        "offset 0x74, after a: the archive ends here, without its trailer"
    );
    assert_eq!(problem(&[]), ArchiveProblem::NoTrailer);
    let mut garbage = bytes.clone();
    garbage.resize(bytes.len() + 200, b'x');
    assert_eq!(problem(&garbage), ArchiveProblem::Magic);
}

#[test]
fn headers_that_lie_are_refused_with_offset_and_name() {
    let good = archive(&[file("first", b"1234"), file("second", b"5678")]);
    let second = 120;
    let error = |field, text| names(&patched(good.clone(), second, field, text)).unwrap_err();
    // File size: past the end, and as large as can be.
    assert_eq!(
        error(54, "00001000").to_string(),
        "offset 0x78, second: 4096 bytes of data, 128 bytes are left"
    );
    assert_eq!(
        error(54, "ffffffff").problem,
        ArchiveProblem::DataTruncated {
            claimed: u32::MAX,
            left: 128
        }
    );
    // Name size.
    assert_eq!(error(94, "00000000").problem, ArchiveProblem::NameLength(0));
    assert_eq!(
        error(94, "ffffffff").problem,
        ArchiveProblem::NameLength(u32::MAX)
    );
    assert_eq!(error(94, "00001fff").problem, ArchiveProblem::NameTruncated);
    assert_eq!(error(94, "00000003").problem, ArchiveProblem::Name);
    // Garbage where digits should be.
    assert_eq!(
        error(54, "0x001000").to_string(),
        "offset 0x78, second: c_filesize is not a hexadecimal number"
    );
    assert_eq!(
        error(94, "-0000001").problem,
        ArchiveProblem::Hex(HeaderField::NameSize)
    );
    assert_eq!(
        error(14, "        ").problem,
        ArchiveProblem::Hex(HeaderField::Mode)
    );
    assert_eq!(
        error(38, "0000000g").problem,
        ArchiveProblem::Hex(HeaderField::Links)
    );
    // Upper case digits are digits.
    assert!(names(&patched(good.clone(), second, 6, "ABCDEF01")).is_ok());
}

#[test]
fn only_files_and_directories_are_allowed() {
    let kind = |mode| problem(&archive(&[entry("x", mode, 1, b"t")]));
    assert_eq!(kind(0o120_777), ArchiveProblem::Kind(0o120_777));
    assert_eq!(kind(0o020_666), ArchiveProblem::Kind(0o020_666));
    assert_eq!(kind(0), ArchiveProblem::Kind(0));
    assert_eq!(
        problem(&archive(&[entry("x", 0o100_644, 2, b"")])),
        ArchiveProblem::HardLink
    );
}

#[test]
fn names_that_are_no_relative_paths_are_refused() {
    for name in [
        "",
        "/etc/passwd",
        "a//b",
        "../x",
        "a/..",
        "./x",
        "sp ace",
        "nul\u{1}",
        "\u{e9}",
    ] {
        assert_eq!(
            problem(&archive(&[file(name, b"")])),
            ArchiveProblem::Name,
            "{name:?}"
        );
        assert!(!is_file_name(name));
    }
    let long = "n".repeat(201);
    assert_eq!(problem(&archive(&[file(&long, b"")])), ArchiveProblem::Name);
    assert!(names(&archive(&[file(&long[..200], b"")])).is_ok());
    // A zero byte inside, with more text behind it.
    assert_eq!(
        problem(&archive(&[file("a\0b", b"")])),
        ArchiveProblem::Name
    );
}

#[test]
fn a_name_twice_is_refused() {
    let error = names(&archive(&[
        file("a", b"1"),
        file("b", b""),
        file("a", b"2"),
    ]))
    .unwrap_err();
    assert_eq!(error.entry.as_deref(), Some("a"));
    assert_eq!(error.problem, ArchiveProblem::Duplicate);
}

#[test]
fn too_many_entries_are_refused() {
    let entries = |count| -> Vec<_> { (0..count).map(|i| file(&format!("f{i}"), b"")).collect() };
    assert!(names(&archive(&entries(MAX_ENTRIES - 1))).is_ok());
    assert_eq!(
        problem(&archive(&entries(MAX_ENTRIES))),
        ArchiveProblem::TooMany
    );
}

#[test]
fn only_a_little_nothing_may_follow_the_trailer() {
    let mut bytes = archive(&[file("a", b"")]);
    let end = bytes.len();
    bytes.resize(end + 512, 0);
    assert!(names(&bytes).is_ok());
    bytes[end + 300] = 1;
    assert_eq!(problem(&bytes), ArchiveProblem::Tail);
    bytes[end + 300] = 0;
    bytes.resize(end + (64 << 10) + 8, 0);
    assert_eq!(problem(&bytes), ArchiveProblem::Tail);
    // A second archive behind the first is not read silently.
    let two = [archive(&[file("a", b"")]), archive(&[file("b", b"")])].concat();
    assert_eq!(problem(&two), ArchiveProblem::Tail);
}

fn through_the_cpio_crate(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = std::io::Cursor::new(bytes.to_vec());
    loop {
        let mut reader = cpio::newc::Reader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return found;
        }
        let name = reader.entry().name().trim_end_matches('\0').to_string();
        let mut data = Vec::new();
        reader.read_to_end(&mut data).unwrap();
        found.push((name, data));
        rest = reader.finish().unwrap();
    }
}

#[test]
fn another_reader_sees_what_the_builder_wrote() {
    let mut builder = BundleBuilder::new(&everything());
    for (name, data) in files() {
        builder.file(name, &data).unwrap();
    }
    let bytes = builder.finish().unwrap();
    let theirs = through_the_cpio_crate(&bytes);
    let ours: Vec<_> = Archive::new(&bytes)
        .map(|entry| {
            entry
                .map(|e| (e.name.to_string(), e.data.to_vec()))
                .unwrap()
        })
        .collect();
    assert_eq!(theirs, ours);
    assert_eq!(theirs.len(), 5);
}

#[test]
fn what_another_writer_wrote_is_read() {
    let mut bytes = Vec::new();
    for (name, data) in files() {
        let mut writer = cpio::newc::Builder::new(name)
            .mode(0o100_600)
            .write(&mut bytes, u32::try_from(data.len()).unwrap());
        writer.write_all(&data).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut bytes).unwrap();
    let ours: Vec<_> = Archive::new(&bytes)
        .map(|entry| entry.map(|e| (e.name, e.data.to_vec())).unwrap())
        .collect();
    assert_eq!(ours, files());
}

fn any_name() -> impl Strategy<Value = String> {
    proptest::prop_oneof![
        "[a-z]{1,8}(/[a-z]{1,4})?",
        Just(String::from("TRAILER!!!")),
        Just(String::from("..")),
    ]
}

proptest! {
    #[test]
    fn whatever_bytes_change_reading_ends_and_stays_inside(
        entries in prop::collection::vec((any_name(), prop::collection::vec(any::<u8>(), 0..40)), 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let entries: Vec<_> = entries.iter().map(|(name, data)| file(name, data)).collect();
        let mut bytes = archive(&entries);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let mut count = 0;
        for entry in Archive::new(&bytes).flatten() {
            count += 1;
            assert_eq!(&bytes[entry.offset..entry.offset + entry.data.len()], entry.data);
            assert!(is_file_name(entry.name));
        }
        assert!(count <= MAX_ENTRIES);
    }

    #[test]
    fn distinct_files_are_read_back(
        files in prop::collection::btree_map(
            "[a-z]{1,8}(/[a-z.]{1,4}x)?", prop::collection::vec(any::<u8>(), 0..5000), 0..5
        ),
    ) {
        let entries: Vec<_> = files.iter().map(|(name, data)| file(name, data)).collect();
        let bytes = archive(&entries);
        let read: std::collections::BTreeMap<_, _> = Archive::new(&bytes)
            .map(|entry| entry.map(|e| (e.name.to_string(), e.data.to_vec())).unwrap())
            .collect();
        assert_eq!(read, files);
    }
}

#[test]
fn the_trailer_alone_is_an_empty_archive() {
    assert_eq!(names(&archive(&[])), Ok(vec![]));
}
