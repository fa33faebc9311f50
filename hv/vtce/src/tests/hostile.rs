//! What a guest may try.

use core::cell::Cell;

use iommu::Error;

use super::*;
use crate::Progress;

/// Memory that changes under the reader: every read gives something else.
struct Changing {
    reads: Cell<u64>,
}

impl GuestMemory for Changing {
    fn read(&self, _: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let read = self.reads.get();
        self.reads.set(read + 1);
        // First a good list, from then on one that leads to somebody else.
        let good = read == 0;
        for (n, slot) in (0..).zip(buffer.chunks_mut(8)) {
            let tce: u64 = if good { n << 12 | 3 } else { OTHER_RAM | 3 };
            slot.copy_from_slice(&tce.to_be_bytes());
        }
        Ok(())
    }
}

#[test]
fn a_list_that_changes_is_judged_as_it_was_copied() {
    let mut rig = Rig::new();
    let memory = Changing {
        reads: Cell::new(0),
    };
    let answer = rig
        .dma
        .hypercall(&mut rig.core, &memory, INDIRECT, [LIOBN, 0, LIST, 512])
        .unwrap();
    assert_eq!(answer.status, Status::SUCCESS);
    assert_eq!(memory.reads.get(), 1);
    assert!(rig.real(0).values().all(|tce| tce >> 36 == 1), "own memory");
    // The control: what came afterwards would have been refused.
    let answer = rig
        .dma
        .hypercall(&mut rig.core, &memory, INDIRECT, [LIOBN, 0, LIST, 512])
        .unwrap();
    assert_eq!(answer.status, Status::PARAMETER);
}

#[test]
fn no_entry_leads_anywhere_but_to_the_guests_own_memory() {
    let mut rig = Rig::new();
    // Every power of two, every page around it, every right, every way of asking.
    let mut accepted = 0;
    for bit in 12..64 {
        for near in [0, 0x1000, 0x800, 1 << 11] {
            for base in [1_u64 << bit, (1 << bit) - 0x1000] {
                let address = base.wrapping_add(near) & !3;
                for rights in 1..4 {
                    let tce = address | rights;
                    let expected = physical(tce, 4096);
                    let status = if bit % 2 == 0 {
                        rig.put(0, tce)
                    } else {
                        rig.indirect(LIOBN, 0, &[tce])
                    };
                    assert_eq!(status == Status::SUCCESS, expected.is_some(), "{tce:#x}");
                    if let Some(expected) = expected {
                        accepted += 1;
                        assert_eq!(rig.real(0)[&0], expected);
                    }
                }
            }
        }
    }
    assert!(accepted > 20, "the control: memory of its own");
    rig.audit();
}

#[test]
fn device_registers_are_for_nobody_unless_granted() {
    let mut rig = Rig::new();
    let bar = Pa::new(0x2000_8000_0000).unwrap();
    let memory = rig.core.add_bar(rig.device, bar, 0x1_0000, &[]).unwrap();
    let at = 0x2000_0000_0000;
    assert_eq!(rig.put(0, at | 3), Status::PARAMETER, "no slot");
    let page = PageSize::SIZE_4K;
    let offered = |rig: &mut Rig| rig.service(Service::Query, &[0, BUID_HIGH, BUID_LOW], 6);
    let before = offered(&mut rig);
    let slot = Slot {
        page: None,
        ..slot(memory, at, 0x1_0000, Permissions::ReadWrite, page)
    };
    rig.dma.add_slot(slot).unwrap();
    assert_eq!(offered(&mut rig), before, "windows are as they were");
    let answer = rig
        .other
        .hypercall(&mut rig.core, &rig.ram, PUT, [OTHER_LIOBN, 0, at | 3, 0]);
    assert_eq!(answer.unwrap().status, Status::PARAMETER, "another VM's");
    assert_eq!(rig.put(0, at | 3), Status::PARAMETER, "not granted");
    let allow = iommu::PeerToPeer::Enabled;
    rig.core.set_peer_to_peer(rig.ioas, allow).unwrap();
    assert_eq!(rig.put(0, at | 0x1003), Status::SUCCESS);
    assert_eq!(rig.real(0)[&0], bar.bits() | 0x1003);
    // While the device is reset nothing leads there, and it is again afterwards.
    rig.core.begin_reset(rig.device).unwrap();
    assert!(rig.real(0).is_empty());
    rig.dma.audit(&rig.core, &mut |wrong| panic!("{wrong:?}"));
    assert_eq!(rig.put(0x9000, at | 0x1003), Status::PARAMETER);
    rig.core.end_reset(rig.device).unwrap();
    assert_eq!(rig.real(0)[&0], bar.bits() | 0x1003);
    // In a list with memory, in part of it, and cut.
    let list = [0x5003, at | 3, at | 0x1003, at | 0x2003, 0x6003];
    assert_eq!(rig.indirect(LIOBN, 0x10_0000, &list), Status::SUCCESS);
    assert_eq!(rig.stuff(0x10_2000, 0, 1), Status::SUCCESS);
    assert_eq!(rig.real(0).len(), 5);
    rig.audit();
    // Taken away for good, whatever leads there; memory beside it stays.
    rig.dma.withdraw(&mut rig.core, memory).unwrap();
    rig.audit();
    assert_eq!(rig.real(0).len(), 2);
    assert_eq!((rig.get(0), rig.get(0x10_1000)), (Some(0), Some(0)));
    assert_eq!(rig.put(0, at | 3), Status::PARAMETER);
    rig.dma.withdraw(&mut rig.core, memory).unwrap();
    rig.dma.add_slot(slot).unwrap();
    assert_eq!(rig.put(0, at | 0x1003), Status::SUCCESS);
    assert_eq!(rig.stuff(0x10_0000, 0, 8), Status::SUCCESS);
    assert_eq!(rig.real(0).len(), 1);
    // Over a live entry, and back to memory: by way of nothing, as no table has a step for it.
    assert_eq!(rig.put(0, at | 0x2003), Status::SUCCESS);
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    assert_eq!(rig.real(0)[&0], 0x10_0000_5003);
    rig.audit();
    assert!(matches!(
        rig.core.destroy_memory(rig.memories[0]),
        Err(Error::Busy { .. })
    ));
    rig.core.destroy_memory(memory).unwrap();
}

#[test]
fn a_storm_of_windows_ends_where_it_began() {
    let mut rig = Rig::new();
    for round in 0..200_u32 {
        let made = rig.create(16, 20 + round % 16);
        assert_eq!(made.status, 0);
        let liobn = made.values()[0];
        let [_, high, low] = made.values() else {
            panic!("three results")
        };
        let base = u64::from(*high) << 32 | u64::from(*low);
        assert_eq!(
            rig.call(PUT, [liobn.into(), base, 0x1_0003, 0]).status,
            Status::SUCCESS
        );
        assert_eq!(rig.service(Service::Remove, &[liobn], 1).status, 0);
    }
    assert_eq!(rig.core.census().pages, 0);
    assert!(rig.real(0).is_empty());
}

#[test]
fn what_the_platform_refuses_is_not_there() {
    // Every call of the platform fails in turn, and when it is tried again.
    for failing in 0..64 {
        let mut rig = Rig::new();
        let list: Vec<u64> = (0..64).map(|n| ((n * 5 % 64) << 12) | 3).collect();
        assert_eq!(rig.indirect(LIOBN, 0x2_0000, &list), Status::SUCCESS);
        let before = rig.real(0);
        rig.platform().fail_writes_after(Some(failing), Some(2));
        let list: Vec<u64> = (0..64).map(|n| ((n * 3 % 64) << 12) | 1).collect();
        let status = rig.indirect(LIOBN, 0, &list);
        rig.platform().fail_writes_after(None, None);
        if failing < 32 {
            // A new entry: there is no other way.
            assert_eq!(status, Status::HARDWARE, "call {failing}");
            assert_eq!(rig.real(0), before, "call {failing}");
        } else {
            // A live entry that cannot be exchanged is cleared and written.
            assert_eq!(status, Status::SUCCESS, "call {failing}");
        }
        rig.audit();
        assert_eq!(rig.indirect(LIOBN, 0, &list), Status::SUCCESS);
        rig.audit();
    }
}

#[test]
fn an_entry_that_cannot_be_cleared_is_not_said_to_be() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(0x3000, 0x5003), Status::SUCCESS);
    rig.platform().fail_writes_after(Some(0), None);
    assert_eq!(rig.put(0x3000, 0), Status::HARDWARE);
    assert_eq!(rig.get(0x3000), Some(0x5003));
    let memory = rig.memories[0];
    assert!(rig.core.destroy_memory(memory).is_err(), "still pinned");
    rig.platform().fail_writes_after(None, None);
    assert_eq!(rig.put(0x3000, 0), Status::SUCCESS);
    assert!(rig.real(0).is_empty());
    rig.core.destroy_memory(memory).unwrap();
}

#[test]
fn an_entry_beside_others_that_cannot_be_written_is_not_there() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(0x3000, 0x5003), Status::SUCCESS);
    assert_eq!(rig.put(0x4000, 0x5003), Status::SUCCESS);
    let before = rig.real(0);
    // A call that fails once is made again.
    rig.platform().fail_writes_after(Some(0), Some(1));
    assert_eq!(rig.put(0x5000, 0x6003), Status::SUCCESS);
    assert_eq!(rig.put(0x5000, 0), Status::SUCCESS);
    // It fails again, and so does the one that is to make sure; or that one does not.
    for failures in [3, 2] {
        rig.platform().fail_writes_after(Some(0), Some(failures));
        assert_eq!(rig.put(0x5000, 0x6003), Status::HARDWARE);
        rig.platform().fail_writes_after(None, None);
        assert_eq!(rig.get(0x5000), Some(0));
        assert_eq!(rig.put(0x6000, 0x6003), Status::SUCCESS);
        assert_eq!(rig.put(0x6000, 0), Status::SUCCESS);
        assert_eq!(rig.real(0), before);
        // One that is not known to be empty is written before it is said to be there, or not.
        rig.put(0x5000, 0x7003);
        assert_eq!(rig.put(0x5000, 0), Status::SUCCESS);
        rig.audit();
    }
    for at in [0x3000, 0x4000] {
        assert_eq!(rig.put(at, 0), Status::SUCCESS);
    }
    rig.core.destroy_memory(rig.memories[0]).unwrap();
}

#[test]
fn an_audit_notices_what_it_is_for() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(0x3000, 0x5003), Status::SUCCESS);
    // Behind the guest's back, the core maps something else.
    let at = Span::from_len(types::Iova::truncated(0x3000), 4096).unwrap();
    assert_eq!(rig.core.clear_pages(rig.ioas, at), Ok(1));
    let mut wrong = Vec::new();
    rig.dma.audit(&rig.core, &mut |found| wrong.push(found));
    assert_eq!(wrong.len(), 1);
    assert_eq!(wrong[0].wrote, Tce::from_bits(0x5003));
    assert_eq!(wrong[0].found, None);
}

#[test]
fn entries_take_so_many_chunks_of_a_bridge_and_no_more() {
    let mut rig = Rig::with(Policy {
        chunks: 4,
        ..Policy::usual()
    });
    let made = rig.create(12, 24);
    let [liobn, high, low] = made.values() else {
        panic!("{made:?}");
    };
    let (own, base) = (u64::from(*liobn), u64::from(*high) << 32 | u64::from(*low));
    let chunk = |at: u64| at << 12 << 9;
    // Both windows share them.
    for at in [0, 1] {
        assert_eq!(rig.put(chunk(at), 0x5003), Status::SUCCESS);
        let put = rig.call(PUT, [own, base + chunk(at), 0x5003, 0]);
        assert_eq!(put.status, Status::SUCCESS);
    }
    let before = rig.real(0);
    assert_eq!(rig.put(chunk(2), 0x5003), Status::RESOURCE);
    let put = rig.call(PUT, [own, base + chunk(2), 0x5003, 0]);
    assert_eq!(put.status, Status::RESOURCE);
    // All or nothing: half of this one is where there is room.
    let list = [0x5003; 4];
    let across = chunk(2) - 0x2000;
    assert_eq!(rig.indirect(LIOBN, across, &list), Status::RESOURCE);
    assert_eq!(rig.stuff(chunk(2), 0x5003, 2), Status::RESOURCE);
    assert_eq!(rig.real(0), before);
    // What needs none more is as ever, and so is what empties.
    assert_eq!(rig.put(chunk(1) + 0x1000, 0x5003), Status::SUCCESS);
    assert_eq!(rig.put(0, 0x6003), Status::SUCCESS);
    assert_eq!(rig.indirect(LIOBN, across, &[0; 4]), Status::SUCCESS);
    assert_eq!(rig.stuff(chunk(2), 0, 512), Status::SUCCESS);
    // One that goes makes room for one.
    assert_eq!(rig.put(0, 0), Status::SUCCESS);
    assert_eq!(rig.put(chunk(2), 0x5003), Status::SUCCESS);
    assert_eq!(rig.put(0, 0x5003), Status::RESOURCE);
    let windows = rig.dma.bridges()[0].windows().iter();
    let taken: u64 = windows.map(|window| window.entries.taken()).sum();
    assert_eq!(taken, 4);
    // Another bridge's are not touched by it.
    let answer = rig
        .other
        .hypercall(&mut rig.core, &rig.ram, PUT, [OTHER_LIOBN, 0, 0x5003, 0]);
    assert_eq!(answer.unwrap().status, Status::SUCCESS);
    rig.audit();
    while rig.dma.clear(&mut rig.core).unwrap() == Progress::More {}
    assert!(rig.real(0).is_empty());
    assert_eq!(rig.put(chunk(3), 0x5003), Status::SUCCESS);
}

/// A rig in which entries may show registers: 16 MiB of them from here on.
const REGISTERS: u64 = 0x2000_0000_0000;

fn with_registers() -> Rig {
    let mut rig = Rig::new();
    let bar = Pa::new(0x2000_8000_0000).unwrap();
    let memory = rig.core.add_bar(rig.device, bar, 16 * MEG, &[]).unwrap();
    let page = PageSize::SIZE_4K;
    rig.dma
        .add_slot(Slot {
            page: None,
            ..slot(memory, REGISTERS, 16 * MEG, Permissions::ReadWrite, page)
        })
        .unwrap();
    let allow = iommu::PeerToPeer::Enabled;
    rig.core.set_peer_to_peer(rig.ioas, allow).unwrap();
    rig
}

/// Eight pages of registers around the end of a chunk, and from there on every second page until one is refused.
fn filled_with_registers(rig: &mut Rig) -> u64 {
    let list: Vec<u64> = (0..8).map(|n| (REGISTERS + (n << 12)) | 3).collect();
    assert_eq!(rig.indirect(LIOBN, 508 << 12, &list), Status::SUCCESS);
    for n in 0.. {
        let page = 2 * n % 4096;
        match rig.put((1024 + 2 * n) << 12, (REGISTERS + (page << 12)) | 3) {
            Status::SUCCESS => {}
            status => {
                assert_eq!(status, Status::RESOURCE);
                return n;
            }
        }
    }
    unreachable!();
}

#[test]
fn entries_that_show_registers_are_emptied_however_many_there_are() {
    let mut rig = with_registers();
    let singles = filled_with_registers(&mut rig);
    assert_eq!(singles, 2048 - 8);
    // In the middle of an area, which cuts it, and in the middle of what is left.
    for at in [510, 513, 509] {
        assert_eq!(rig.put(at << 12, 0), Status::SUCCESS);
        assert_eq!(rig.get(at << 12), Some(0));
    }
    rig.audit();
    // So many more, and no more.
    for at in 0..3 {
        assert_eq!(rig.put(at << 12, REGISTERS | 3), Status::SUCCESS);
    }
    assert_eq!(rig.put(3 << 12, REGISTERS | 3), Status::RESOURCE);
    // Memory is as ever, also over registers.
    assert_eq!(rig.put(3 << 12, 0x5003), Status::SUCCESS);
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    assert_eq!(rig.put(4 << 12, REGISTERS | 3), Status::SUCCESS);
    assert_eq!(rig.stuff(1 << 12, 0, 4), Status::SUCCESS);
    for turn in 0..2 {
        while rig.dma.clear(&mut rig.core).unwrap() == Progress::More {}
        assert!(rig.real(0).is_empty(), "{turn}");
        assert!(rig.core.ioas(rig.ioas).unwrap().is_empty());
        assert_eq!(filled_with_registers(&mut rig), singles, "{turn}");
    }
}

#[test]
fn a_window_with_registers_is_emptied_without_memory() {
    let mut rig = with_registers();
    // The area goes on behind the 512 entries that are emptied in one step.
    assert_eq!(rig.put(1 << 12, 0x5003), Status::SUCCESS);
    let list: Vec<u64> = (0..512).map(|n| (REGISTERS + (n << 12)) | 3).collect();
    assert_eq!(rig.indirect(LIOBN, 3 << 12, &list), Status::SUCCESS);
    assert_eq!(rig.put(515 << 12, 0x6003), Status::SUCCESS);
    rig.dma.shut_bridge(0).unwrap();
    rig.core.budget_mut().limit(Some(0));
    // The window itself is made anew, which does take some.
    let short = crate::Refusal::Core(Error::OutOfMemory);
    assert_eq!(rig.dma.clear_shut(&mut rig.core), Err(short));
    assert!(rig.real(0).is_empty());
    rig.core.budget_mut().limit(None);
    assert_eq!(rig.dma.clear_shut(&mut rig.core), Ok(Progress::Done));
    assert!(rig.core.ioas(rig.ioas).unwrap().is_empty());
}
