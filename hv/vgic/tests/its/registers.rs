//! The register frames.

use std::collections::BTreeMap;

use bulkhead_vgic::Width;
use bulkhead_vgic::its::TRANSLATER;

use crate::rig::{
    BASER0, BASER1, CBASER, CREADR, CTLR, CWRITER, DISK, QUEUE, RAM, Rig, VALID, mapc, mapd, mapti,
    sync,
};

const TYPER: u64 = 8;
const DEVICE_TABLE: u64 = 1 << 56 | 7 << 48;
const COLLECTION_TABLE: u64 = 4 << 56 | 7 << 48;

fn read(rig: &Rig, register: &str) -> u64 {
    match register {
        "GITS_CTLR" => rig.vits.read(0, Width::Word),
        "GITS_IIDR" => rig.vits.read(4, Width::Word),
        "GITS_TYPER" => rig.read(TYPER),
        "GITS_CBASER" => rig.read(CBASER),
        "GITS_CWRITER" => rig.read(CWRITER),
        "GITS_CREADR" => rig.read(CREADR),
        "GITS_BASER0" => rig.read(BASER0),
        "GITS_BASER1" => rig.read(BASER1),
        "GITS_PIDR2" => rig.vits.read(0xffe8, Width::Word),
        other => panic!("the table names {other}"),
    }
}

#[test]
fn the_capability_table_is_what_the_registers_say() {
    let source = include_str!("../../src/its/mod.rs");
    let rig = Rig::new(1);
    let mut left = BTreeMap::new();
    let mut rows = 0;
    for line in source
        .lines()
        .filter(|line| line.starts_with("//! | `GITS"))
    {
        let cells: Vec<_> = line
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, register, bits, field, value, ..] = cells[..] else {
            panic!("{line}");
        };
        rows += 1;
        let whole = left.entry(register).or_insert_with(|| read(&rig, register));
        if bits == "all" {
            assert_eq!(*whole, 0, "{register} at reset");
            continue;
        }
        let (high, low) = bits.split_once(':').unwrap_or((bits, bits));
        let (high, low): (u32, u32) = (high.parse().unwrap(), low.parse().unwrap());
        let mask = u64::MAX >> (63 - (high - low)) << low;
        let value = match value {
            "rw" | "ro" | "wo" => 0,
            hex if hex.starts_with("0x") => u64::from_str_radix(&hex[2..], 16).unwrap(),
            decimal => decimal.parse().unwrap(),
        };
        assert_eq!((*whole & mask) >> low, value, "{register}.{field}");
        *whole &= !mask;
    }
    assert_eq!(
        (left.len(), rows),
        (9, 22),
        "registers and rows of the table"
    );
    for (register, rest) in left {
        assert_eq!(rest, 0, "bits of {register} that the table does not name");
    }
}

/// Writes ones, and says which stuck.
fn writable(rig: &Rig, offset: u64) -> u64 {
    let before = rig.read(offset);
    let _ = rig.write(offset, u64::MAX);
    let ones = rig.read(offset);
    let _ = rig.write(offset, 0);
    let zeros = rig.read(offset);
    assert_eq!(zeros, before, "{offset:#x}");
    ones ^ zeros
}

#[test]
fn what_can_be_written_is_what_the_manual_lists() {
    let rig = Rig::new(1);
    assert_eq!(writable(&rig, CBASER), 0xb8ef_ffff_ffff_fcff);
    // Of a page size of 3, which is reserved, 2 is kept.
    assert_eq!(writable(&rig, BASER0), 0xf8e0_ffff_ffff_feff);
    assert_eq!(writable(&rig, BASER1), 0xb8e0_ffff_ffff_feff);
    for offset in [TYPER, CREADR].into_iter().chain((0x110..0x140).step_by(8)) {
        assert_eq!(writable(&rig, offset), 0, "{offset:#x}");
    }
    let _ = rig.write(CBASER, VALID | RAM | 0xff);
    // Bits above 19 do not exist, and the queue is as long as the offset allows.
    let _ = rig.write(CWRITER, 0xffff_ffff_000f_ffe0);
    assert_eq!(rig.read(CWRITER), 0xf_ffe0);
}

#[test]
fn wide_registers_answer_in_halves() {
    let rig = Rig::new(1);
    let word = |offset| rig.vits.read(offset, Width::Word);
    assert_eq!(word(TYPER), rig.read(TYPER) & 0xffff_ffff);
    assert_eq!(word(TYPER + 4), rig.read(TYPER) >> 32);
    for (offset, fixed) in [
        (CBASER, 0),
        (BASER0, DEVICE_TABLE),
        (BASER1, COLLECTION_TABLE),
    ] {
        let _ = rig.write_word(offset + 4, 0x8000_0012);
        let _ = rig.write_word(offset, 0x3456_7001);
        let expected = 0x8000_0012_3456_7001 | fixed;
        assert_eq!(rig.read(offset), expected, "{offset:#x}");
        assert_eq!(word(offset), expected & 0xffff_ffff);
        assert_eq!(word(offset + 4), expected >> 32);
    }
}

#[test]
fn other_widths_and_misaligned_accesses_reach_nothing() {
    let rig = Rig::new(1);
    for width in [Width::Byte, Width::Half] {
        for offset in [CTLR, TYPER, CBASER, BASER0] {
            let _ = rig.vits.write(&rig.ram, offset, width, u64::MAX);
            assert_eq!(rig.vits.read(offset, width), 0);
        }
    }
    for (offset, width) in [
        (CBASER + 4, Width::Double),
        (CBASER + 2, Width::Word),
        (BASER0 + 1, Width::Double),
    ] {
        let _ = rig.vits.write(&rig.ram, offset, width, u64::MAX);
        assert_eq!(rig.vits.read(offset, width), 0);
    }
    assert_eq!((rig.read(CBASER), rig.read(BASER0)), (0, DEVICE_TABLE));
    // GITS_CTLR is a word.
    let _ = rig.write(CTLR, 1);
    assert_eq!(rig.vits.read(CTLR, Width::Word), 1 << 31);
}

#[test]
fn reserved_offsets_read_as_zero_and_ignore_writes() {
    let rig = Rig::mapped(1);
    let known = [CTLR, TYPER, CBASER, CWRITER, CREADR, BASER0, BASER1];
    let before: Vec<_> = known.iter().map(|offset| rig.read(*offset)).collect();
    for offset in (0x10..0x1_0000).step_by(8) {
        if known.contains(&offset) || offset >= 0xffd0 {
            continue;
        }
        let _ = rig.write(offset, u64::MAX);
        assert_eq!(rig.read(offset), 0, "{offset:#x}");
    }
    let after: Vec<_> = known.iter().map(|offset| rig.read(*offset)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_cpu_that_writes_the_doorbell_reaches_nothing() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    for offset in [TRANSLATER, 0x1_0000, 0x1_ffff, 0x2_0000, u64::MAX] {
        for width in Width::ALL {
            let outcome = rig.vits.write(&rig.ram, offset, width, 0);
            assert!(outcome.post().is_empty() && outcome.is_done());
            assert_eq!(rig.vits.read(offset, width), 0);
        }
    }
    assert_eq!(rig.first(0), None);
}

#[test]
fn it_is_quiescent_when_it_is_disabled() {
    let rig = Rig::new(1);
    let control = || rig.vits.read(CTLR, Width::Word);
    assert_eq!(control(), 1 << 31);
    let _ = rig.write_word(CTLR, 1);
    assert_eq!(control(), 1);
    let _ = rig.write_word(CTLR, 0);
    assert_eq!(control(), 1 << 31);
}

#[test]
fn tables_and_queue_do_not_move_while_it_is_enabled() {
    let rig = Rig::mapped(1);
    let registers = [CBASER, BASER0, BASER1];
    let before = registers.map(|offset| rig.read(offset));
    for offset in registers {
        let _ = rig.write(offset, VALID | 0x5555_0000);
    }
    assert_eq!(registers.map(|offset| rig.read(offset)), before);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, VALID | 0x5555_0000);
    assert_eq!(rig.read(CBASER), VALID | 0x5555_0000);
}

#[test]
fn a_new_queue_starts_at_its_beginning() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[sync(0)]);
    assert_ne!(rig.read(CREADR), 0);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, VALID | QUEUE);
    assert_eq!((rig.read(CREADR), rig.read(CWRITER)), (0, 0));
}

#[test]
fn a_new_device_table_is_empty() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    let _ = rig.signal(DISK, 0);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(BASER0, VALID | RAM);
    let _ = rig.write_word(CTLR, 1);
    assert_eq!(rig.first(0), None);
    assert!(rig.signal(DISK, 0).is_empty());
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    assert_eq!(rig.vits.faults().0, 1, "the device has to be mapped again");
    let _ = rig.send(&[mapd(DISK, 5), mapti(DISK, 0, 8192, 0)]);
    assert_eq!(rig.vits.faults().0, 1);
    assert!(rig.signal(DISK, 0).contains(0));
}

#[test]
fn a_new_collection_table_is_empty() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(BASER1, VALID | RAM);
    let _ = rig.write_word(CTLR, 1);
    assert!(rig.signal(DISK, 0).is_empty());
    let _ = rig.send(&[mapc(0, 0)]);
    assert!(rig.signal(DISK, 0).contains(0));
}

/// Sets a device table up; whether a device can be mapped in it.
fn fits(baser: u64, device: [u64; 4]) -> bool {
    let mut rig = Rig::new(1);
    rig.start();
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(BASER0, baser);
    let _ = rig.write_word(CTLR, 1);
    let _ = rig.send(&[device]);
    rig.vits.faults().0 == 0
}

#[test]
fn the_size_of_the_device_table_bounds_device_ids() {
    // Eight bytes an entry: a page of 4 KiB has 512, enough for device 0x100 and less.
    let net = crate::rig::NET;
    assert!(fits(VALID | RAM, mapd(net, 5)));
    assert!(!fits(RAM, mapd(net, 5)), "not valid");
    // Two-level, a page of 4 KiB: 512 times 512.
    assert!(fits(VALID | 1 << 62 | RAM, mapd(net, 5)));
}

#[test]
fn entries_of_a_table_follow_from_pages_and_levels() {
    use bulkhead_vgic::its::{DeviceEvents, ItsConfig, Vits};
    // The last DeviceID a table has room for, and the first it has not.
    for (baser, entries) in [
        (0, 0x200),
        (1, 0x400),
        (1 << 8, 0x800),
        (2 << 8, 0x2000),
        (2 << 8 | 7, 0x1_0000),
        (1 << 62 | 1 << 8, 0x1_0000),
    ] {
        for (device, expected) in [(entries - 1, 0), (entries, 1)] {
            if device > 0xffff {
                continue;
            }
            let devices = [DeviceEvents { device, events: 1 }];
            let mut rig = Rig::new(1);
            rig.vits = Vits::new(&ItsConfig {
                vcpus: 1,
                devices: &devices,
            })
            .unwrap()
            .into();
            let _ = rig.write(BASER0, VALID | RAM | baser);
            let _ = rig.write(CBASER, VALID | QUEUE | 15);
            let _ = rig.write_word(CTLR, 1);
            let _ = rig.send(&[mapd(device, 1)]);
            assert_eq!(rig.vits.faults().0, expected, "{baser:#x} {device:#x}");
        }
    }
}

#[test]
fn collections_need_their_table() {
    let mut rig = Rig::new(1);
    let _ = rig.write(CBASER, VALID | QUEUE | 15);
    let _ = rig.write_word(CTLR, 1);
    let _ = rig.send(&[mapc(0, 0)]);
    assert_eq!(rig.vits.faults().0, 1);
}
