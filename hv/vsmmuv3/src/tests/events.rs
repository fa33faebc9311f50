//! Events: what a guest sees of the hardware's, and its queue.

use iommu::NestedConfig;
use smmuv3::spec::{Event, EventId, regs};

use super::{CD, EVTQ, Guest, L1, RAM, RAM_BYTES, S1, SYNC, cfgi_ste, qemu, rich, sid};
use crate::{Delivery, Interrupts, Line, Options, for_guest};

const S2: u64 = 1 << 39;
const STALL: u64 = 1 << 31;
const READ: u64 = 1 << 35;
const fn class(bits: u64) -> u64 {
    bits << 40
}

fn record(id: u64, word1: u64) -> Event {
    Event([
        id | 0x4100 << 32,
        word1,
        0xffff_0000_1234_5678,
        0x8_7654_3000,
    ])
}

/// A stage-1 fault of physical stream 0x4100.
fn fault() -> Event {
    record(0x10, class(2) | READ)
}

fn report(guest: &mut Guest, event: &Event) -> Delivery {
    let (delivery, interrupts) = guest.smmu.report(sid(8), event, &guest.ram);
    guest.count(interrupts);
    delivery
}

#[test]
fn a_stage_1_fault_arrives_with_the_guests_stream() {
    let mut guest = Guest::nested();
    assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    assert_eq!(guest.take_pulses(), [1, 0, 0]);
    assert_eq!(
        guest.take_events(),
        [[8 << 32 | 0x10, class(2) | READ, 0xffff_0000_1234_5678, 0]]
    );
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1);
}

#[test]
fn the_stage_1_faults_of_the_list_arrive() {
    for id in [0x10, 0x11, 0x12, 0x13] {
        let seen = for_guest(&record(id, class(2)), sid(8), 0).unwrap();
        assert_eq!(seen.0, [8 << 32 | id, class(2), 0xffff_0000_1234_5678, 0]);
    }
    for id in [0x04, 0x06, 0x08, 0x0a] {
        let seen = for_guest(&record(id, !STALL), sid(8), 0).unwrap();
        assert_eq!(seen.0, [8 << 32 | id, 0, 0, 0], "{id:#x}");
    }
}

#[test]
fn what_is_not_on_the_list_never_arrives() {
    let listed = [0x04, 0x06, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x13];
    for id in 0..=255 {
        let seen = for_guest(&record(id, class(2)), sid(8), 20);
        assert_eq!(seen.is_some(), listed.contains(&id), "{id:#x}");
    }
}

#[test]
fn a_stage_2_fault_of_the_access_is_the_hypervisors() {
    for id in [0x10, 0x11, 0x12, 0x13] {
        assert_eq!(for_guest(&record(id, class(2) | S2), sid(8), 0), None);
    }
}

#[test]
fn a_stage_2_fault_under_a_stage_1_table_is_an_external_abort() {
    for id in [0x10, 0x11, 0x12, 0x13] {
        for s2 in [0, S2] {
            // QEMU leaves S2 clear here.
            let seen = for_guest(&record(id, class(1) | s2 | READ), sid(8), 0).unwrap();
            let input = 0xffff_0000_1234_5678;
            assert_eq!(seen.0, [8 << 32 | 0x0b, class(1) | READ, input, 0]);
        }
    }
}

#[test]
fn a_stage_2_fault_under_a_context_descriptor_is_a_failed_fetch() {
    for id in [0x10, 0x11, 0x12, 0x13] {
        for s2 in [0, S2] {
            let seen = for_guest(&record(id, class(0) | s2), sid(8), 0).unwrap();
            assert_eq!(seen.0, [8 << 32 | 0x09, 0, 0, 0]);
        }
    }
}

#[test]
fn a_reserved_class_is_nothing_to_show() {
    assert_eq!(for_guest(&record(0x10, class(3)), sid(8), 0), None);
    assert_eq!(for_guest(&record(0x10, class(3) | S2), sid(8), 0), None);
}

#[test]
fn a_stalled_transaction_is_never_shown() {
    for id in 0..=255 {
        assert_eq!(for_guest(&record(id, class(2) | STALL), sid(8), 20), None);
    }
}

#[test]
fn fetch_addresses_which_may_be_physical_stay_behind() {
    for id in [0x09, 0x0b] {
        let seen = for_guest(&record(id, !STALL), sid(8), 0).unwrap();
        assert_eq!(seen.0[3], 0, "{id:#x}");
    }
}

#[test]
fn no_record_has_a_bit_of_stage_2_in_it() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut seen = 0;
    for round in 0..200_000_u64 {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let id = [4, 6, 8, 9, 10, 11, 16, 17, 18, 19][(round % 10) as usize];
        let hardware = Event([next() & !0xff | id, next(), next(), next()]);
        let Some(guest) = for_guest(&hardware, sid(8), 0) else {
            continue;
        };
        seen += 1;
        let [word0, word1, _, word3] = guest.0;
        assert_eq!(word0 & !0xff, 8 << 32, "neither SSV nor SSID");
        // PnU, InD, RnW, CLASS.
        assert_eq!(word1 & !(7 << 33 | 3 << 40), 0);
        assert_eq!(word3, 0);
    }
    assert!(seen > 20_000);
}

#[test]
fn substreams_are_shown_where_there_are_any() {
    let event = Event([
        0x10 | 1 << 11 | 0x1_2345 << 12 | 0x4100 << 32,
        class(2),
        0,
        0,
    ]);
    assert_eq!(for_guest(&event, sid(8), 0).unwrap().ssid(), None);
    assert_eq!(
        for_guest(&event, sid(8), 16).unwrap().ssid(),
        Some(0x1_2345)
    );
}

#[test]
fn events_of_unknown_streams_are_dropped() {
    let mut guest = Guest::nested();
    let (delivery, interrupts) = guest.smmu.report(sid(0x77), &fault(), &guest.ram);
    assert_eq!(
        (delivery, interrupts),
        (Delivery::Filtered, Interrupts::NONE)
    );
    assert!(guest.take_events().is_empty());
}

#[test]
fn nothing_arrives_while_the_smmu_is_off() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0xc);
    assert_eq!(report(&mut guest, &fault()), Delivery::Filtered);
}

#[test]
fn nothing_arrives_while_the_queue_is_off() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 9);
    assert_eq!(report(&mut guest, &fault()), Delivery::Off);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
    assert_eq!(guest.take_pulses(), [0, 0, 0]);
    assert_eq!(guest.smmu.counters().events_lost, 1);
}

#[test]
fn without_its_interrupt_a_record_arrives_silently() {
    let mut guest = Guest::nested();
    guest.w32(regs::IRQ_CTRL, 1);
    assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    assert_eq!(guest.take_pulses(), [0, 0, 0]);
    assert_eq!(guest.take_events().len(), 1);
}

#[test]
fn a_full_queue_overflows_once_until_it_is_acknowledged() {
    let mut guest = Guest::nested();
    for _ in 0..32 {
        assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    }
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 32);
    for _ in 0..5 {
        assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
        assert_eq!(guest.r32(regs::EVENTQ_PROD), 1 << 31 | 32);
    }
    assert_eq!(
        guest.r32(regs::GERROR),
        0,
        "a full queue is no global error"
    );
    // Reading without acknowledging: there is room again, the flag stays.
    guest.w32(regs::EVENTQ_CONS, 1);
    assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1 << 31 | 33);
    assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1 << 31 | 33);
    // Acknowledged: the next loss toggles the flag again.
    guest.w32(regs::EVENTQ_CONS, 1 << 31 | 1);
    assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 33);
}

#[test]
fn a_queue_wraps_over_and_over() {
    let mut guest = Guest::nested();
    let mut seen = 0;
    for round in 0..500_u64 {
        let event = Event([0x10, class(2), round, 0]);
        assert_eq!(report(&mut guest, &event), Delivery::Delivered);
        if round % 7 == 0 {
            for record in guest.take_events() {
                assert_eq!(record[2], seen);
                seen += 1;
            }
        }
    }
    assert!(seen > 490);
}

#[test]
fn an_index_that_is_nonsense_means_full() {
    let mut guest = Guest::nested();
    guest.w32(regs::EVENTQ_CONS, 5);
    assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
    assert!(guest.ram.writes.borrow().is_empty());
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1 << 31);
}

#[test]
fn a_queue_outside_memory_is_a_global_error_and_loses_the_record() {
    for base in [
        0,
        0x0900_0000,
        RAM + RAM_BYTES as u64,
        0x000f_ffff_ffff_f000,
    ] {
        let mut guest = Guest::nested();
        guest.w32(regs::CR0, 9);
        guest.w64(regs::EVENTQ_BASE, base | 5);
        guest.w32(regs::CR0, 0xd);
        assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
        assert_eq!(guest.r32(regs::GERROR), 4);
        assert_eq!(guest.take_pulses(), [0, 1, 0]);
        // Only once until it is acknowledged.
        assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
        assert_eq!(guest.r32(regs::GERROR), 4);
        assert_eq!(guest.take_pulses(), [0, 0, 0]);
        guest.w32(regs::GERRORN, 4);
        assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
        assert_eq!(guest.r32(regs::GERROR), 0);
        assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
        // Commands are consumed all the same.
        guest.send(&[SYNC]);
        assert_eq!(guest.cons(), 1);
    }
}

#[test]
fn records_go_into_the_queue_and_nowhere_else() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 9);
    guest.w64(regs::EVENTQ_BASE, EVTQ | 0x3e0 | 5);
    guest.w32(regs::CR0, 0xd);
    for _ in 0..100 {
        let _ = report(&mut guest, &fault());
    }
    for (at, bytes) in guest.ram.writes.borrow().iter() {
        assert_eq!(*bytes, 32);
        assert!((EVTQ..EVTQ + 1024).contains(at), "{at:#x}");
    }
    assert_eq!(guest.ram.writes.borrow().len(), 32);
}

#[test]
fn no_record_is_written_before_an_abort_is_acknowledged() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 9);
    guest.w64(regs::EVENTQ_BASE, 5);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
    assert_eq!(guest.r32(regs::GERROR), 1 << 2);
    // The queue lies in memory now, but the guest has not said that it knows of what was lost.
    guest.w32(regs::CR0, 9);
    guest.w64(regs::EVENTQ_BASE, EVTQ | 5);
    guest.w32(regs::CR0, 0xd);
    for _ in 0..100 {
        assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
    }
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0, "nor an overflow");
    assert_eq!(*guest.ram.writes.borrow(), []);
    guest.w32(regs::GERRORN, 1 << 2);
    assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1);
    assert_eq!(guest.r32(regs::GERROR), 1 << 2, "no news");
}

#[test]
fn a_size_beyond_the_limit_is_cut() {
    let options = Options {
        events_log2: 7,
        ..Options::default()
    };
    let mut guest = Guest::with(&qemu(), options);
    guest.bring_up();
    guest.w32(regs::CR0, 9);
    guest.w64(regs::EVENTQ_BASE, (RAM + 0x2_0000) | 19);
    guest.w32(regs::CR0, 0xd);
    for _ in 0..128 {
        assert_eq!(report(&mut guest, &fault()), Delivery::Delivered);
    }
    assert_eq!(report(&mut guest, &fault()), Delivery::Lost);
}

#[test]
fn one_guests_flood_is_its_own() {
    let mut flooded = Guest::nested();
    let mut other = Guest::nested();
    for _ in 0..10_000 {
        let _ = report(&mut flooded, &fault());
    }
    assert_eq!(flooded.smmu.counters().events, 32);
    assert_eq!(flooded.smmu.counters().events_lost, 9968);
    assert_eq!(report(&mut other, &fault()), Delivery::Delivered);
    assert_eq!(other.r32(regs::EVENTQ_PROD), 1);
    // And it does not stop the flooded one's commands.
    flooded.send(&[SYNC]);
    assert_eq!(flooded.cons(), 1);
}

#[test]
fn an_illegal_entry_is_reported_when_a_device_meets_it() {
    for word in [
        7 << 1 | 1 | CD,
        6 << 1 | 1,
        0,
        // Context descriptors beyond the address space.
        5 << 1 | 1 << 50 | 1,
    ] {
        let mut guest = Guest::nested();
        guest.ste(8, [word, 0, 0, 0]);
        guest.send(&[cfgi_ste(8), SYNC]);
        assert_eq!(guest.hardware.streams, [(sid(8), NestedConfig::INVALID)]);
        assert_eq!(guest.take_events().len(), 0, "nobody has used it");
        for _ in 0..2 {
            assert_eq!(guest.access(8), Some(Delivery::Delivered));
            assert_eq!(guest.take_events(), [[8 << 32 | 0x04, 0, 0, 0]]);
            assert_eq!(guest.take_pulses(), [1, 0, 0]);
        }
    }
}

#[test]
fn an_entry_that_aborts_is_silent() {
    let mut guest = Guest::nested();
    for config in 0..4 {
        guest.ste(8, [config << 1 | 1, 0, 0, 0]);
        guest.send(&[cfgi_ste(8), SYNC]);
        assert_eq!(guest.live(8), NestedConfig::ABORT, "Config {config}");
        assert_eq!(guest.access(8), None);
    }
}

#[test]
fn a_stream_without_an_entry_is_silent_unless_records_of_it_are_wanted() {
    for (cr2, live) in [(2, NestedConfig::INVALID), (0, NestedConfig::ABORT)] {
        let mut guest = Guest::new();
        guest.queues_on();
        guest.w32(regs::CR2, cr2);
        guest.two_level();
        guest.w32(regs::CR0, 0xd);
        assert_eq!(guest.live(0x100), live);
        let delivered = guest.access(0x100).map(|_| guest.take_events());
        let record = std::vec![[0x100 << 32 | 2, 0, 0, 0]];
        assert_eq!(delivered, (cr2 != 0).then_some(record));
    }
}

#[test]
fn states_that_linux_passes_through_are_not_reported_until_a_device_meets_them() {
    let mut guest = Guest::nested();
    // Not valid in the middle of an update; no table yet.
    guest.ste(8, [0, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), cfgi_ste(0x100), SYNC]);
    assert!(guest.take_events().is_empty());
    assert_eq!(guest.access(8), Some(Delivery::Delivered));
    assert_eq!(guest.access(0x100), Some(Delivery::Delivered));
    let records = [[8 << 32 | 4, 0, 0, 0], [0x100 << 32 | 2, 0, 0, 0]];
    assert_eq!(guest.take_events(), records);
    guest.ste(8, [S1 | CD, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert!(guest.translates(8));
    assert!(guest.take_events().is_empty());
}

#[test]
fn an_entry_that_cannot_be_read_is_reported_with_its_address() {
    let mut guest = Guest::nested();
    guest.ram.put(L1, &[0x0900_0000 | 9]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.access(8), Some(Delivery::Delivered));
    assert_eq!(guest.take_events(), [[8 << 32 | 0x03, 0, 0, 0x0900_0200]]);
}

#[test]
fn what_the_hardware_calls_a_bad_entry_is_what_the_guests_tables_are() {
    let bad = record(0x04, 0);
    // 0x100 has no entry, and RECINVSID is set.
    let mut guest = Guest::nested();
    let (delivery, interrupts) = guest.smmu.report(sid(0x100), &bad, &guest.ram);
    assert_eq!(delivery, Delivery::Delivered);
    assert!(interrupts.contains(Line::Event));
    assert_eq!(guest.take_events(), [[0x100 << 32 | 0x02, 0, 0, 0]]);
    // One that is not valid.
    guest.ste(8, [0, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(report(&mut guest, &bad), Delivery::Delivered);
    assert_eq!(guest.take_events(), [[8 << 32 | 0x04, 0, 0, 0]]);
}

#[test]
fn bad_stream_ids_are_recorded_only_on_request() {
    let mut guest = Guest::new();
    guest.queues_on();
    guest.two_level();
    guest.w32(regs::CR0, 0xd);
    let (delivery, _) = guest.smmu.report(sid(0x100), &record(0x04, 0), &guest.ram);
    assert_eq!(delivery, Delivery::Filtered, "RECINVSID is clear");
    assert!(guest.take_events().is_empty());
}

#[test]
fn a_storm_of_bad_entries_makes_no_record_and_its_device_a_queue_full() {
    let mut guest = Guest::nested();
    guest.ste(8, [7 << 1 | 1, 0, 0, 0]);
    for _ in 0..100 {
        guest.send(&[cfgi_ste(8); 32]);
    }
    assert_eq!(guest.hardware.streams.len(), 1, "one switch");
    assert_eq!(guest.ram.writes.borrow().len(), 0);
    for _ in 0..100 {
        assert!(guest.access(8).is_some());
    }
    assert_eq!(guest.ram.writes.borrow().len(), 32);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 1 << 31 | 32);
}

#[test]
fn an_event_queue_over_the_command_queue_hurts_only_its_owner() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 9);
    guest.w64(regs::EVENTQ_BASE, super::CMDQ | 5);
    guest.w32(regs::CR0, 0xd);
    let _ = report(&mut guest, &fault());
    guest.w32(regs::CMDQ_PROD, 1);
    // The record reads as TLBI_NH_ALL: 0x10.
    assert_eq!(guest.cons(), 1);
    guest.put(&[SYNC]);
    guest.w32(regs::CMDQ_PROD, 2);
    assert_eq!(
        guest.hardware.batches.len(),
        0,
        "the second half is opcode 0"
    );
    assert_eq!(guest.cons() >> 24, 1);
}

#[test]
fn the_emulated_records_have_no_other_fields() {
    for (id, fetch) in [
        (EventId::CBadStreamid, 0),
        (EventId::CBadSte, 0),
        (EventId::FSteFetch, 0x4567_8940),
    ] {
        let event = crate::events::emulated(id, sid(8), fetch);
        assert_eq!(event.0, [u64::from(id.bits()) | 8 << 32, 0, 0, fetch]);
    }
}

#[test]
fn a_rich_guest_sees_its_substream() {
    let mut guest = Guest::rich();
    guest.bring_up();
    let event = Event([0x10 | 1 << 11 | 3 << 12 | 0x4100 << 32, class(2), 0x1000, 0]);
    assert_eq!(report(&mut guest, &event), Delivery::Delivered);
    assert_eq!(
        guest.take_events()[0][0],
        0x10 | 1 << 11 | 3 << 12 | 8 << 32
    );
    let _ = rich();
}
