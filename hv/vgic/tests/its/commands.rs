//! What each command does, and what it does when it is wrong.

use bulkhead_vgic::its::CommandFault;
use bulkhead_vgic::{Kicks, LpiSource};

use crate::rig::{
    CONFIGURATION, DISK, EDU, NET, Rig, clear, discard, int, inv, invall, mapc, mapd, mapi, mapti,
    movall, movi, sync, unmapc, unmapd,
};

/// Two vCPUs; event 0 of the disk is LPI 8192 at vCPU 0, event 1 is LPI 8193 at vCPU 1.
fn disk() -> Rig {
    let mut rig = Rig::mapped(2);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0), mapti(DISK, 1, 8193, 1), sync(0)]);
    assert_eq!(rig.vits.faults(), (0, None));
    rig
}

/// The command is skipped for `fault`, and nobody is told of anything.
fn refused(rig: &mut Rig, command: [u64; 4], fault: CommandFault) {
    let (before, _) = rig.vits.faults();
    assert!(rig.send(&[command]).is_empty());
    assert_eq!(rig.vits.faults(), (before + 1, Some(fault)));
}

#[test]
fn a_mapped_event_becomes_an_lpi_of_its_vcpu() {
    let rig = disk();
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
    assert_eq!(rig.signal(DISK, 1), Kicks::of(1));
    assert_eq!(rig.drain(0), [8192]);
    assert_eq!(rig.drain(1), [8193]);
    assert_eq!(rig.drain(0), []);
}

#[test]
fn an_event_that_is_not_mapped_never_fires() {
    let rig = disk();
    for (device, event) in [(DISK, 2), (DISK, 32), (DISK, u32::MAX), (NET, 0), (0x55, 0)] {
        assert!(rig.signal(device, event).is_empty());
    }
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
}

#[test]
fn a_second_message_before_the_first_is_taken_is_merged_with_it() {
    let rig = disk();
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
    assert_eq!(rig.signal(DISK, 0), Kicks::NONE);
    assert_eq!(rig.drain(0), [8192]);
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
}

#[test]
fn a_disabled_lpi_waits_until_it_is_enabled_and_invalidated() {
    let mut rig = disk();
    rig.configure(8192, 0xa0);
    assert!(rig.send(&[inv(DISK, 0)]).is_empty());
    assert!(rig.signal(DISK, 0).is_empty());
    assert_eq!(rig.first(0), None);
    rig.configure(8192, 0xa1);
    assert_eq!(rig.first(0), None);
    assert_eq!(rig.send(&[inv(DISK, 0)]), Kicks::of(0));
    assert_eq!(rig.drain(0), [8192]);
}

#[test]
fn invall_reads_the_configuration_of_all() {
    let mut rig = disk();
    let _ = rig.send(&[mapti(DISK, 2, 9000, 0)]);
    for intid in [8192, 9000] {
        rig.configure(intid, 0xa0);
    }
    let _ = rig.send(&[invall(0)]);
    let _ = (rig.signal(DISK, 0), rig.signal(DISK, 2));
    assert_eq!(rig.drain(0), []);
    rig.configure(9000, 0x21);
    assert_eq!(rig.send(&[invall(0)]), Kicks::of(0));
    assert_eq!(rig.drain(0), [9000]);
}

#[test]
fn a_new_priority_reorders_what_waits() {
    let mut rig = Rig::mapped(1);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 0), mapti(DISK, 1, 8193, 0)]);
    let _ = (rig.signal(DISK, 0), rig.signal(DISK, 1));
    assert_eq!(rig.first(0), Some(8192));
    rig.configure(8193, 0x41);
    assert_eq!(rig.send(&[inv(DISK, 1)]), Kicks::of(0));
    assert_eq!(rig.vits.first(0).map(|lpi| lpi.priority), Some(0x40));
    assert_eq!(rig.drain(0), [8193, 8192]);
}

#[test]
fn int_is_a_message_and_clear_takes_it_back() {
    let mut rig = disk();
    assert_eq!(rig.send(&[int(DISK, 0)]), Kicks::of(0));
    assert_eq!(rig.first(0), Some(8192));
    let _ = rig.send(&[clear(DISK, 0)]);
    assert_eq!(rig.first(0), None);
}

#[test]
fn discard_takes_the_pending_state_along() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    let _ = rig.send(&[discard(DISK, 0)]);
    assert_eq!(rig.first(0), None);
    assert!(rig.signal(DISK, 0).is_empty());
    // The LPI can be another event's now, and has nothing pending.
    let _ = rig.send(&[mapti(DISK, 5, 8192, 0)]);
    assert_eq!(rig.first(0), None);
    assert_eq!(rig.signal(DISK, 5), Kicks::of(0));
}

#[test]
fn movi_moves_what_is_pending_and_what_will_be() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    assert_eq!(rig.send(&[movi(DISK, 0, 1)]), Kicks::of(1));
    assert_eq!((rig.first(0), rig.first(1)), (None, Some(8192)));
    assert_eq!(rig.drain(1), [8192]);
    assert_eq!(rig.signal(DISK, 0), Kicks::of(1));
}

#[test]
fn movi_of_what_is_in_a_list_register_gives_it_to_the_other_vcpu() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    rig.vits.take(0, 8192);
    // vCPU 0 has to empty its list registers, which hands the LPI on.
    assert_eq!(rig.send(&[movi(DISK, 0, 1)]), Kicks::of(0));
    assert_eq!(rig.first(1), None);
    assert_eq!(rig.vits.give_back(0, 8192), Kicks::of(1));
    assert_eq!((rig.first(0), rig.first(1)), (None, Some(8192)));
}

#[test]
fn movall_moves_everything_that_is_pending() {
    let mut rig = disk();
    let _ = rig.send(&[mapti(DISK, 2, 8194, 0)]);
    rig.configure(8194, 0xa0);
    let _ = rig.send(&[inv(DISK, 2)]);
    let _ = (rig.signal(DISK, 0), rig.signal(DISK, 2));
    assert_eq!(rig.send(&[movall(0, 1)]), Kicks::of(1));
    assert_eq!(rig.drain(0), []);
    assert_eq!(rig.drain(1), [8192]);
    // The disabled one went along.
    rig.configure(8194, 0xa1);
    assert_eq!(rig.send(&[inv(DISK, 2)]), Kicks::of(1));
    assert_eq!(rig.drain(1), [8194]);
    // Only pending state moves: the events still go where they went.
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
}

#[test]
fn what_was_discarded_in_a_list_register_does_not_come_back() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    rig.vits.take(0, 8192);
    assert_eq!(rig.send(&[discard(DISK, 0)]), Kicks::of(0));
    assert!(rig.vits.give_back(0, 8192).is_empty());
    assert_eq!(rig.first(0), None);
    let _ = rig.send(&[mapti(DISK, 3, 8192, 0)]);
    assert_eq!(rig.first(0), None);
}

#[test]
fn what_was_cleared_in_a_list_register_does_not_come_back() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    rig.vits.take(0, 8192);
    assert_eq!(rig.send(&[clear(DISK, 0)]), Kicks::of(0));
    assert!(rig.vits.give_back(0, 8192).is_empty());
    assert_eq!(rig.first(0), None);
    // Control: without the command it does.
    let _ = rig.signal(DISK, 0);
    rig.vits.take(0, 8192);
    let _ = rig.vits.give_back(0, 8192);
    assert_eq!(rig.first(0), Some(8192));
}

#[test]
fn unmapping_a_device_takes_all_its_events_and_no_others() {
    let mut rig = disk();
    let _ = rig.send(&[mapti(NET, 64, 8300, 0)]);
    let _ = (rig.signal(DISK, 0), rig.signal(NET, 64));
    let _ = rig.send(&[unmapd(DISK)]);
    assert_eq!(rig.drain(0), [8300]);
    assert!(rig.signal(DISK, 0).is_empty());
    assert_eq!(rig.signal(NET, 64), Kicks::of(0));
    refused(
        &mut rig,
        mapti(DISK, 0, 8192, 0),
        CommandFault::Device { device: DISK },
    );
}

#[test]
fn mapping_a_device_again_begins_with_no_events() {
    let mut rig = disk();
    let _ = rig.send(&[mapd(DISK, 5)]);
    assert!(rig.signal(DISK, 0).is_empty());
    let _ = rig.send(&[mapti(DISK, 9, 8192, 0)]);
    assert_eq!(rig.signal(DISK, 9), Kicks::of(0));
}

#[test]
fn a_device_has_no_more_events_than_it_was_created_with_or_mapped_for() {
    let mut rig = Rig::mapped(1);
    let fault = |event| CommandFault::Event { device: NET, event };
    // 128 are mapped, 65 exist.
    let _ = rig.send(&[mapti(NET, 64, 8192, 0)]);
    refused(&mut rig, mapti(NET, 65, 8193, 0), fault(65));
    let _ = rig.send(&[mapd(NET, 2), mapti(NET, 3, 8192, 0)]);
    assert_eq!(rig.vits.faults().0, 1);
    refused(&mut rig, mapti(NET, 4, 8193, 0), fault(4));
}

#[test]
fn only_the_vms_devices_exist() {
    let mut rig = Rig::mapped(1);
    for device in [0, 1, 0x19, 0xffff, 0x1_0008, u32::MAX] {
        refused(&mut rig, mapd(device, 1), CommandFault::Device { device });
        refused(&mut rig, unmapd(device), CommandFault::Device { device });
        let fault = CommandFault::Device { device };
        refused(&mut rig, mapti(device, 0, 8192, 0), fault);
    }
}

#[test]
fn intids_that_are_not_lpis_are_refused() {
    let mut rig = Rig::mapped(1);
    for intid in [0, 32, 1023, 8191, 16384, 0x1_2000, u32::MAX] {
        let fault = CommandFault::Intid { intid };
        refused(&mut rig, mapti(DISK, 0, intid, 0), fault);
    }
    let _ = rig.send(&[mapti(DISK, 0, 16383, 0), mapti(DISK, 1, 8192, 0)]);
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
    // MAPI's INTID is its EventID, and no device here has so many.
    refused(&mut rig, mapi(DISK, 3, 0), CommandFault::Intid { intid: 3 });
}

#[test]
fn two_events_do_not_share_an_lpi() {
    let mut rig = disk();
    let fault = CommandFault::Taken { intid: 8192 };
    refused(&mut rig, mapti(NET, 0, 8192, 0), fault);
    assert!(rig.signal(NET, 0).is_empty());
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
}

#[test]
fn an_event_can_be_mapped_anew() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    let _ = rig.send(&[mapti(DISK, 0, 8200, 1)]);
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
    assert_eq!(rig.signal(DISK, 0), Kicks::of(1));
    assert_eq!(rig.drain(1), [8200]);
    // And its old LPI is free.
    let _ = rig.send(&[mapti(DISK, 7, 8192, 0)]);
    assert_eq!(rig.vits.faults(), (0, None));
}

#[test]
fn an_event_mapped_again_to_its_lpi_moves_with_what_is_pending() {
    let mut rig = disk();
    let _ = rig.signal(DISK, 0);
    assert_eq!(rig.send(&[mapti(DISK, 0, 8192, 1)]), Kicks::of(1));
    assert_eq!((rig.first(0), rig.first(1)), (None, Some(8192)));
    // Where vCPU 1 has it in a list register, that has to be emptied first.
    rig.vits.take(1, 8192);
    assert_eq!(rig.send(&[mapti(DISK, 0, 8192, 0)]), Kicks::of(1));
    assert_eq!(rig.vits.give_back(1, 8192), Kicks::of(0));
    assert_eq!((rig.first(0), rig.first(1)), (Some(8192), None));
    // The same again is nothing, and to a collection that is nowhere nothing stays pending.
    assert_eq!(rig.send(&[mapti(DISK, 0, 8192, 0)]), Kicks::NONE);
    assert_eq!(rig.first(0), Some(8192));
    let _ = rig.send(&[mapti(DISK, 0, 8192, 9)]);
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
    assert_eq!(rig.vits.faults(), (0, None));
}

#[test]
fn an_event_of_a_collection_that_is_nowhere_goes_nowhere() {
    let mut rig = disk();
    let _ = rig.send(&[unmapc(0)]);
    assert!(rig.signal(DISK, 0).is_empty());
    let fault = CommandFault::Collection { collection: 0 };
    refused(&mut rig, int(DISK, 0), fault);
    refused(&mut rig, invall(0), fault);
    refused(&mut rig, movi(DISK, 1, 0), fault);
    let _ = rig.send(&[mapc(0, 1)]);
    assert_eq!(rig.signal(DISK, 0), Kicks::of(1));
}

#[test]
fn an_event_mapped_before_its_collection_is_configured_when_that_is_mapped() {
    let mut rig = Rig::enabled(1);
    rig.configure(8192, 0xa1);
    let _ = rig.send(&[mapd(EDU, 1), mapti(EDU, 0, 8192, 9), mapc(9, 0)]);
    assert_eq!(rig.vits.faults(), (0, None));
    assert_eq!(rig.signal(EDU, 0), Kicks::of(0));
}

#[test]
fn collections_and_targets_out_of_range_are_refused() {
    let mut rig = disk();
    for collection in [64, 0xffff] {
        let fault = CommandFault::Collection { collection };
        refused(&mut rig, mapc(collection.into(), 0), fault);
        refused(&mut rig, unmapc(collection.into()), fault);
        refused(&mut rig, mapti(DISK, 4, 8400, collection.into()), fault);
        refused(&mut rig, movi(DISK, 0, collection.into()), fault);
        refused(&mut rig, invall(collection.into()), fault);
    }
    for vcpu in [2, 0xff, 0x1_0000, 0xf_ffff_ffff] {
        let fault = CommandFault::Vcpu { vcpu };
        refused(
            &mut rig,
            [9, 0, 1 << 63 | (vcpu << 16 & 0xf_ffff_ffff_0000), 0],
            fault,
        );
        refused(&mut rig, movall(0, vcpu), fault);
        refused(&mut rig, movall(vcpu, 0), fault);
    }
    // Nothing of that changed anything.
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
    assert_eq!(rig.signal(DISK, 1), Kicks::of(1));
}

#[test]
fn commands_on_events_that_are_not_mapped_are_refused() {
    let mut rig = disk();
    let fault = CommandFault::Event {
        device: DISK,
        event: 30,
    };
    for command in [int, clear, inv, discard] {
        refused(&mut rig, command(DISK, 30), fault);
    }
    refused(&mut rig, movi(DISK, 30, 0), fault);
}

#[test]
fn an_interrupt_translation_table_for_too_many_events_is_refused() {
    let mut rig = Rig::enabled(1);
    refused(
        &mut rig,
        mapd(DISK, 17),
        CommandFault::EventBits { bits: 17 },
    );
    let _ = rig.send(&[mapd(DISK, 16), mapc(0, 0), mapti(DISK, 31, 8192, 0)]);
    assert_eq!(rig.vits.faults().0, 1);
}

#[test]
fn unknown_commands_are_skipped() {
    let mut rig = disk();
    for opcode in (0..=0xff).filter(|op| !matches!(op, 1 | 3..=5 | 8..=15)) {
        let fault = CommandFault::Unknown {
            opcode: u32::try_from(opcode).unwrap(),
        };
        refused(&mut rig, [opcode, !0, !0, !0], fault);
    }
    assert_eq!(rig.signal(DISK, 0), Kicks::of(0));
}

#[test]
fn configuration_that_is_not_ram_is_disabled() {
    let mut rig = disk();
    rig.vits.set_tables(
        0,
        Some(bulkhead_vgic::LpiTables {
            propbaser: 0x1000 | 13,
            pendbaser: 0,
        }),
    );
    let _ = rig.vits.run(&rig.ram);
    assert!(rig.signal(DISK, 0).is_empty());
    assert_eq!(rig.first(0), None);
    // Back in RAM, it is as it was.
    rig.enable_lpis(0);
    assert!(rig.vits.has_work());
    assert_eq!(rig.vits.run(&rig.ram).post(), Kicks::of(0));
    assert_eq!(rig.drain(0), [8192]);
    let _ = rig.send(&[sync(0)]);
}

#[test]
fn configuration_beyond_idbits_is_disabled() {
    let mut rig = disk();
    rig.ram.take_reads();
    rig.vits.set_tables(
        0,
        Some(bulkhead_vgic::LpiTables {
            propbaser: CONFIGURATION | 12,
            pendbaser: 0,
        }),
    );
    let _ = rig.vits.run(&rig.ram);
    let _ = rig.send(&[inv(DISK, 0)]);
    assert!(rig.signal(DISK, 0).is_empty());
    assert!(
        rig.ram
            .take_reads()
            .iter()
            .all(|(at, _)| *at < CONFIGURATION)
    );
}
