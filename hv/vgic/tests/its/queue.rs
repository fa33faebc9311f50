//! The command queue: hostile bases, wrap, floods, memory that changes.

use bulkhead_vgic::Width;
use bulkhead_vgic::its::CommandFault;

use crate::rig::{
    CBASER, CONFIGURATION, CREADR, CTLR, CWRITER, DISK, EDU, NET, QUEUE, QUEUE_BYTES, RAM,
    RAM_BYTES, Rig, VALID, int, inv, invall, mapc, mapd, mapti, movall, sync, unmapd,
};

const STALLED: u64 = 1;
const RETRY: u64 = 1;

/// A rig whose queue is at `base`, with `pages` of 4 KiB.
fn queue_at(base: u64, pages: u64) -> Rig {
    let rig = Rig::mapped(1);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, VALID | base | (pages - 1));
    let _ = rig.write_word(CTLR, 1);
    rig
}

#[test]
fn a_queue_outside_ram_stalls_and_does_nothing() {
    for base in [
        0,
        0x1000,
        RAM - 0x1000,
        RAM + RAM_BYTES as u64,
        0xf_ffff_ffff_f000,
    ] {
        let rig = queue_at(base, 1);
        let outcome = rig.write(CWRITER, 64);
        assert!(outcome.is_done() && outcome.post().is_empty());
        assert_eq!(rig.read(CREADR), STALLED);
        let fault = CommandFault::NotRam { at: base };
        assert_eq!(rig.vits.faults(), (1, Some(fault)));
        // More of it changes nothing until the guest says to try again.
        assert!(rig.write(CWRITER, 96).is_done());
        assert!(!rig.vits.has_work());
        assert_eq!(rig.vits.faults().0, 1);
        let _ = rig.write(CWRITER, 96 | RETRY);
        assert_eq!((rig.read(CREADR), rig.vits.faults().0), (STALLED, 2));
    }
}

#[test]
fn a_queue_that_runs_out_of_ram_stalls_where_it_does() {
    let last_page = RAM + RAM_BYTES as u64 - 0x1000;
    let rig = queue_at(last_page, 2);
    let all = core::iter::repeat_n(sync(0), 128).flatten();
    for (at, word) in (last_page..).step_by(8).zip(all) {
        rig.ram.put(at, &word.to_le_bytes());
    }
    let mut outcome = rig.write(CWRITER, 0x1040);
    while !outcome.is_done() {
        outcome = rig.vits.run(&rig.ram);
    }
    assert_eq!(rig.read(CREADR), 0x1000 | STALLED);
    let at = RAM + RAM_BYTES as u64;
    assert_eq!(rig.vits.faults(), (1, Some(CommandFault::NotRam { at })));
}

#[test]
fn a_stall_ends_with_a_retry_once_the_memory_is_there() {
    let rig = queue_at(0, 1);
    let _ = rig.write(CWRITER, 32);
    assert_eq!(rig.read(CREADR), STALLED);
    // A guest that moves its queue.
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, VALID | QUEUE | 15);
    assert_eq!(rig.read(CREADR), 0);
    let _ = rig.write_word(CTLR, 1);
    rig.ram.put(QUEUE, &5_u64.to_le_bytes());
    let _ = rig.write(CWRITER, 32);
    assert_eq!(rig.read(CREADR), 32);
}

#[test]
fn a_write_pointer_beyond_the_queue_is_ignored() {
    let rig = queue_at(QUEUE, 1);
    for offset in [0x1000, 0x1020, 0xf_ffe0] {
        assert!(rig.write(CWRITER, offset).is_done());
        assert_eq!((rig.read(CWRITER), rig.read(CREADR)), (0, 0));
    }
    assert_eq!(rig.vits.faults(), (0, None));
}

#[test]
fn a_write_pointer_is_a_multiple_of_a_command() {
    let rig = queue_at(QUEUE, 1);
    rig.ram.put(QUEUE, &5_u64.to_le_bytes());
    let _ = rig.write(CWRITER, 0x3e);
    assert_eq!((rig.read(CWRITER), rig.read(CREADR)), (0x20, 0x20));
}

#[test]
fn the_upper_half_of_the_write_pointer_starts_nothing() {
    let mut rig = Rig::mapped(1);
    let tail = rig.queue(&[sync(0)]);
    let before = rig.read(CREADR);
    let _ = rig.write_word(CWRITER + 4, u64::MAX);
    assert_eq!(rig.read(CREADR), before);
    let _ = rig.write_word(CWRITER, tail);
    assert_eq!(rig.read(CREADR), tail);
}

#[test]
fn the_queue_wraps() {
    let mut rig = Rig::mapped(1);
    let commands = vec![sync(0); 1000];
    for _ in 0..5 {
        let _ = rig.send(&commands);
    }
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    assert!(rig.signal(DISK, 0).contains(0));
    assert_eq!(rig.vits.faults(), (0, None));
    assert_eq!(rig.read(CREADR), (5000 + 5) * 32 % QUEUE_BYTES);
}

#[test]
fn a_disabled_its_does_no_commands_and_then_does_them() {
    let mut rig = Rig::mapped(1);
    let _ = rig.write_word(CTLR, 0);
    let tail = rig.queue(&[mapti(DISK, 0, 8192, 0)]);
    let _ = rig.write(CWRITER, tail);
    assert_ne!(rig.read(CREADR), tail);
    assert!(!rig.vits.has_work());
    assert!(rig.signal(DISK, 0).is_empty());
    let _ = rig.write_word(CTLR, 1);
    assert_eq!(rig.read(CREADR), tail);
    assert!(rig.signal(DISK, 0).contains(0));
}

#[test]
fn a_disabled_its_translates_nothing() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0)]);
    let _ = rig.write_word(CTLR, 0);
    assert!(rig.signal(DISK, 0).is_empty());
    assert_eq!(rig.first(0), None);
    let _ = rig.write_word(CTLR, 1);
    assert!(rig.signal(DISK, 0).contains(0));
}

#[test]
fn a_queue_that_is_not_valid_is_not_read() {
    let rig = Rig::mapped(1);
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, QUEUE | 15);
    let _ = rig.write_word(CTLR, 1);
    rig.ram.take_reads();
    let _ = rig.write(CWRITER, 0x100);
    assert_eq!(rig.ram.take_reads(), []);
    assert!(!rig.vits.has_work());
}

#[test]
fn one_call_does_a_bounded_number_of_commands() {
    let mut rig = Rig::mapped(1);
    let start = rig.read(CREADR);
    let tail = rig.queue(&vec![sync(0); 2000]);
    rig.ram.take_reads();
    let mut outcome = rig.write(CWRITER, tail);
    let mut calls = 1;
    assert_eq!((rig.read(CREADR) - start) / 32, 64);
    loop {
        assert!(rig.ram.take_reads().len() <= 64);
        assert_eq!(rig.vits.has_work(), !outcome.is_done());
        if outcome.is_done() {
            break;
        }
        outcome = rig.vits.run(&rig.ram);
        calls += 1;
    }
    assert_eq!(calls, 2000_usize.div_ceil(64));
    assert_eq!(rig.read(CREADR), tail);
}

#[test]
fn commands_that_take_long_count_for_many() {
    let every: [[u64; 4]; 5] = [
        invall(0),
        movall(0, 0),
        mapd(NET, 7),
        unmapd(EDU),
        mapc(0, 0),
    ];
    for command in every {
        let mut rig = Rig::mapped(1);
        let start = rig.read(CREADR);
        let tail = rig.queue(&[command; 10]);
        let outcome = rig.write(CWRITER, tail);
        assert!(!outcome.is_done());
        assert_eq!((rig.read(CREADR) - start) / 32, 2, "{command:x?}");
    }
}

#[test]
fn invall_reads_no_more_than_what_is_mapped_needs() {
    let mut rig = Rig::mapped(1);
    for event in 0..65 {
        let _ = rig.send(&[mapti(NET, event, 8192 + 100 * event, 0)]);
    }
    rig.ram.take_reads();
    let _ = rig.send(&[invall(0)]);
    let reads = rig.ram.take_reads();
    let configuration: Vec<_> = reads
        .iter()
        .filter(|(at, _)| *at >= CONFIGURATION)
        .collect();
    assert_eq!(configuration.len(), 65);
    assert!(configuration.iter().all(|(_, bytes)| *bytes == 64));
}

#[test]
fn a_stream_of_bad_commands_is_counted_and_passes() {
    let mut rig = Rig::mapped(1);
    let mut seed = 1_u64;
    for _ in 0..50 {
        let commands: Vec<[u64; 4]> = (0..64)
            .map(|_| {
                core::array::from_fn(|_| {
                    seed = seed
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(99);
                    seed ^ (seed >> 31)
                })
            })
            .collect();
        let _ = rig.send(&commands);
    }
    assert!(rig.vits.faults().0 > 3000);
    let _ = rig.send(&[mapc(0, 0), mapd(DISK, 5), mapti(DISK, 0, 8192, 0)]);
    assert!(rig.signal(DISK, 0).contains(0));
}

#[test]
fn each_command_is_read_once_and_what_changes_later_has_no_effect() {
    let mut rig = Rig::mapped(1);
    // Every command turns into another in the moment it has been read.
    rig.ram.flips_below = QUEUE + QUEUE_BYTES;
    let start = rig.read(CREADR);
    rig.ram.take_reads();
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0), inv(DISK, 0), int(DISK, 0)]);
    assert_eq!(rig.vits.faults(), (0, None));
    assert_eq!(rig.drain(0), [8192]);
    let commands: Vec<_> = rig
        .ram
        .take_reads()
        .into_iter()
        .filter(|(at, _)| *at < QUEUE + QUEUE_BYTES)
        .collect();
    let expected: Vec<_> = (0..3).map(|n| (QUEUE + start + 32 * n, 32)).collect();
    assert_eq!(commands, expected);
}

#[test]
fn the_negative_control_of_reading_once_notices_a_second_reading() {
    let mut rig = Rig::mapped(1);
    rig.ram.flips_below = QUEUE + QUEUE_BYTES;
    let start = rig.read(CREADR);
    let tail = rig.queue(&[int(DISK, 0)]);
    let _ = rig.write(CWRITER, tail);
    let faults = rig.vits.faults().0;
    // The same place again: what is there now is no command.
    let _ = rig.write_word(CTLR, 0);
    let _ = rig.write(CBASER, VALID | (QUEUE + (start & !0xfff)));
    let _ = rig.write_word(CTLR, 1);
    let _ = rig.write(CWRITER, (start & 0xfff) + 32);
    while rig.vits.has_work() {
        let _ = rig.vits.run(&rig.ram);
    }
    assert!(matches!(
        rig.vits.faults(),
        (more, Some(CommandFault::Unknown { .. })) if more > faults
    ));
}

#[test]
fn configuration_is_read_once_a_command() {
    let mut rig = Rig::mapped(1);
    rig.ram.take_reads();
    let _ = rig.send(&[mapti(DISK, 0, 8200, 0)]);
    let reads = rig.ram.take_reads();
    let configuration: Vec<_> = reads
        .iter()
        .filter(|(at, _)| *at >= CONFIGURATION)
        .collect();
    assert_eq!(configuration, [&(CONFIGURATION + 8, 1)]);
    for _ in 0..10 {
        let _ = rig.signal(DISK, 0);
        assert_eq!(rig.drain(0), [8200]);
    }
    assert_eq!(rig.ram.take_reads(), [], "signals read no guest memory");
}

#[test]
fn tables_the_guest_provides_are_neither_read_nor_written() {
    let mut rig = Rig::mapped(1);
    rig.ram.take_reads();
    let _ = rig.send(&[
        mapd(DISK, 5),
        mapc(0, 0),
        mapti(DISK, 0, 8192, 0),
        unmapd(DISK),
    ]);
    for (at, bytes) in rig.ram.take_reads() {
        let queue = at < QUEUE + QUEUE_BYTES;
        let configuration = (CONFIGURATION..CONFIGURATION + 8192).contains(&at);
        assert!(queue && bytes == 32 || configuration, "{at:#x}");
    }
}

#[test]
fn bytes_do_not_start_commands() {
    let mut rig = Rig::mapped(1);
    let tail = rig.queue(&[sync(0)]);
    let before = rig.read(CREADR);
    for width in [Width::Byte, Width::Half] {
        let _ = rig.vits.write(&rig.ram, CWRITER, width, tail);
    }
    assert_eq!(rig.read(CREADR), before);
}
