//! What guests' devices reach through guests' tables, and what they do not.

use std::cell::RefCell;

use bulkhead_smmuv3::spec::{Recording, SteConfig, regs};
use iommu::{Endpoint, UnitId};
use types::StreamId;
use vsmmuv3::{Delivery, Width};

use crate::board::Model;
use crate::engine::{Access, Engine, Fault};
use crate::nested::{CDS, DATA, DISK, NET, Part, RAM, RAM_BYTES, Stages, TABLES, World, leaf};

/// Where the guests' drivers map a page.
const AT: u64 = 5 << 12;

fn cfgi_ste(stream: u32) -> [u64; 2] {
    [3 | u64::from(stream) << 32, 1]
}

const NH_ALL: [u64; 2] = [0x10, 0];

fn recorded(fault: Result<u64, Fault>) -> (u64, bool, u64) {
    match fault {
        Err(Fault::Recorded { id, stage2, class }) => (id, stage2, class),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guests_tables_are_walked_over_our_stage_2() {
    let world = World::new();
    for vm in 0..2 {
        for stream in [DISK, NET] {
            let expected = world.pa(vm, DATA) + 0x123;
            assert_eq!(world.dma(vm, stream, AT + 0x123), Ok(expected));
        }
    }
    // The two VMs' same tables lead to two places.
    assert_ne!(world.pa(0, DATA), world.pa(1, DATA));
    let endpoint = Endpoint {
        unit: UnitId::new(0),
        source: world.source(0, DISK),
    };
    let ste = world.core.backend().read_entry(endpoint).unwrap();
    assert_eq!(ste.config(), SteConfig::Nested);
    assert_eq!(ste.s1_context(), CDS);
}

#[test]
fn while_a_guests_smmu_is_off_its_devices_go_where_gbpa_says() {
    let mut world = World::cold(Model::default());
    let at = DATA;
    assert_eq!(world.dma(0, DISK, at), Err(Fault::Silent));
    world.write(0, regs::GBPA, Width::Word, 1 << 31);
    assert_eq!(world.dma(0, DISK, at), Ok(world.pa(0, at)));
    assert_eq!(world.dma(1, DISK, at), Err(Fault::Silent), "the other VM's");
    // Bypassed, it still reaches nothing but its RAM.
    for beyond in [0, RAM - 1, RAM + RAM_BYTES, world.pa(1, RAM)] {
        assert!(recorded(world.dma(0, DISK, beyond)).1);
    }
    world.write(0, regs::GBPA, Width::Word, 1 << 31 | 1 << 20);
    assert_eq!(world.dma(0, DISK, at), Err(Fault::Silent));
}

#[test]
fn a_fault_of_the_guests_tables_is_in_the_guests_queue_with_its_own_stream() {
    let mut world = World::new();
    assert_eq!(recorded(world.dma(1, NET, 0x9000)), (0x10, false, 2));
    let seen = world.events();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, Delivery::Delivered);
    let record = world.guest_event(1).unwrap();
    assert_eq!(record[0], 0x10 | u64::from(NET) << 32);
    assert_eq!(record[2], 0x9000);
    assert_eq!(world.guest_event(1), None);
    assert_eq!(world.guest_event(0), None, "the other VM's");
}

#[test]
fn a_leaf_that_leads_out_of_the_guests_memory_reaches_nothing_and_is_ours_to_see() {
    let mut world = World::new();
    let targets = [
        0,
        0x4000_0000,
        RAM + RAM_BYTES,
        world.pa(1, DATA),
        0xffff_ffff_f000,
    ];
    for (page, target) in (16..).zip(targets) {
        world.put(0, TABLES[2] + page * 8, &[leaf(target)]);
        assert!(recorded(world.dma(0, DISK, page << 12)).1, "{target:#x}");
    }
    let seen = world.events();
    assert_eq!(seen.len(), targets.len());
    assert!(
        seen.iter()
            .all(|(_, delivery)| *delivery == Delivery::Filtered)
    );
    assert_eq!(world.guest_event(0), None);
}

#[test]
fn tables_that_lie_elsewhere_are_external_aborts_to_the_guest() {
    let mut world = World::new();
    let elsewhere = world.pa(1, TABLES[1]);
    world.put(0, TABLES[0], &[elsewhere | 3]);
    world.send(0, &[NH_ALL]);
    assert!(recorded(world.dma(0, DISK, AT)).1);
    world.events();
    let record = world.guest_event(0).unwrap();
    assert_eq!(record[0], 0x0b | u64::from(DISK) << 32);
    assert_eq!(record[3], 0, "no address of ours");
}

#[test]
fn context_descriptors_that_lie_elsewhere_are_failed_fetches_to_the_guest() {
    let mut world = World::new();
    let elsewhere = world.pa(1, CDS);
    world.ste(0, DISK, [1 | 5 << 1 | elsewhere, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert!(world.dma(0, DISK, AT).is_err());
    world.events();
    assert_eq!(
        world.guest_event(0).unwrap(),
        [0x09 | u64::from(DISK) << 32, 0, 0, 0]
    );
    // The other VM, whose descriptor that was, is none the worse for it.
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(1, DATA)));
}

#[test]
fn a_changed_page_is_seen_after_its_invalidation_and_not_before() {
    // Every way a guest may say it: by address, in all address spaces, in a range, all.
    let by_address = 0x12 | 1 << 48;
    for command in [
        [by_address, AT | 1],
        [by_address, AT],
        [by_address | 1 << 32 | 0xff << 40, AT | 1],
        [0x13, AT | 1],
        [by_address | 3 << 12, 4 << 12 | 1 << 10 | 1],
        [by_address, AT | 1 << 10 | 3 << 8 | 1],
        [by_address, AT | 1 << 10 | 1],
        [0x13 | 31 << 12 | 31 << 20, 1 << 10],
        [0x11 | 1 << 48, 0],
        NH_ALL,
        [0x30, 0],
    ] {
        for ranges in [true, false] {
            let mut world = World::cold(Model {
                ranges,
                ..Model::default()
            });
            world.bring_up(0);
            assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
            world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x7000)]);
            // The negative control: the hardware has it cached.
            assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
            let range = command[1] >> 10 & 3 != 0;
            if !ranges && range {
                continue;
            }
            world.send(0, &[command]);
            let now = world.dma(0, DISK, AT);
            assert_eq!(now, Ok(world.pa(0, DATA + 0x7000)), "{command:x?}");
        }
    }
}

#[test]
fn an_invalidation_that_means_something_else_leaves_what_is_cached() {
    for command in [
        [0x12 | 2 << 48, AT | 1],
        [0x12 | 1 << 48, (AT + 0x1000) | 1],
        [0x11 | 2 << 48, 0],
    ] {
        let mut world = World::new();
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
        world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x7000)]);
        world.send(0, &[command]);
        assert_eq!(
            world.dma(0, DISK, AT),
            Ok(world.pa(0, DATA)),
            "{command:x?}"
        );
    }
}

#[test]
fn a_global_page_goes_by_its_address_and_not_by_an_address_space() {
    for (command, goes) in [
        ([0x11 | 1 << 48, 0], false),
        ([0x12 | 1 << 48, AT | 1], true),
        ([0x13, AT | 1], true),
        ([0x12 | 1 << 48 | 1 << 12, (AT - 0x1000) | 1 << 10], true),
        (NH_ALL, true),
    ] {
        let mut world = World::new();
        world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA) & !(1 << 11)]);
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
        world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x7000)]);
        world.send(0, &[command]);
        let expected = if goes { DATA + 0x7000 } else { DATA };
        let now = world.dma(0, DISK, AT);
        assert_eq!(now, Ok(world.pa(0, expected)), "{command:x?}");
    }
}

#[test]
fn every_command_that_reaches_the_hardware_has_the_vms_own_number() {
    let mut world = World::new();
    let vmids: Vec<u64> = (0..2)
        .map(|vm| {
            let endpoint = Endpoint {
                unit: UnitId::new(0),
                source: world.source(vm, DISK),
            };
            let ste = world.core.backend().read_entry(endpoint).unwrap();
            u64::from(ste.vmid())
        })
        .collect();
    assert_ne!(vmids[0], vmids[1]);
    world.board.opcodes();
    // The guest names the other's.
    let other = vmids[1] << 32;
    let commands = [
        [0x10 | other, 0],
        [0x11 | other | 1 << 48, 0],
        [0x12 | other | 1 << 48, AT],
        [0x13 | other, AT],
    ];
    for command in commands {
        world.send(0, &[command]);
        let seen = std::mem::take(&mut *world.board.hardware.commands.borrow_mut());
        let named: Vec<u64> = seen
            .iter()
            .filter(|[low, _]| low & 0xff != 0x46)
            .map(|[low, _]| low >> 32 & 0xffff)
            .collect();
        assert_eq!(named, [vmids[0]], "{command:x?}");
    }
}

#[test]
fn streams_in_commands_are_the_guests_own_or_nobodys() {
    let mut world = World::new();
    world.board.opcodes();
    // The numbers that the machine gave the other VM's devices.
    let others = [world.source(1, DISK), world.source(1, NET), 0xffff_ffff];
    for stream in others {
        let stream = u64::from(stream) << 32;
        world.send(0, &[[5 | stream, 0], [6 | stream, 0], [3 | stream, 1]]);
    }
    assert_eq!(world.board.opcodes(), []);
    // Its own is the machine's by then.
    world.send(0, &[[6 | u64::from(DISK) << 32, 0]]);
    let seen = std::mem::take(&mut *world.board.hardware.commands.borrow_mut());
    assert_eq!(seen[0], [6 | u64::from(world.source(0, DISK)) << 32, 0]);
}

#[test]
fn a_stream_that_the_guest_stops_reaches_nothing_and_the_other_goes_on() {
    let mut world = World::new();
    assert!(world.dma(0, DISK, AT).is_ok());
    world.ste(0, DISK, [1, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    assert_eq!(world.dma(0, NET, AT), Ok(world.pa(0, DATA)));
    // Bypass, and stage 1 again: with the same descriptors.
    world.ste(0, DISK, [1 | 4 << 1, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, DATA), Ok(world.pa(0, DATA)));
    world.ste(0, DISK, [1 | 5 << 1 | CDS, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
}

#[test]
fn a_live_stream_goes_from_bypass_to_stage_1_and_back_without_a_lost_access() {
    let mut world = World::new();
    // Without stage 1 the data is at its own address, with it in page 5.
    for _ in 0..3 {
        for (ste, to) in [(1 | 4 << 1, DATA), (1 | 5 << 1 | CDS, AT)] {
            let accesses = [AT, DATA].map(|at| world.access(0, DISK, at));
            let seen: &RefCell<Vec<[Result<u64, Fault>; 2]>> = Box::leak(Box::default());
            *world.board.hardware.watch.borrow_mut() = Some(Box::new(move |hardware| {
                let cached =
                    accesses.map(|access| hardware.look(access, &mut hardware.engine.borrow_mut()));
                let fresh = accesses.map(|access| hardware.look(access, &mut Engine::default()));
                seen.borrow_mut().extend([cached, fresh]);
            }));
            world.ste(0, DISK, [ste, 0]);
            world.send(0, &[cfgi_ste(DISK)]);
            *world.board.hardware.watch.borrow_mut() = None;
            assert!(seen.borrow().len() >= 4);
            // At each moment one of the two addresses leads to the data: the one, or the other.
            let data = Ok(world.pa(0, DATA));
            for outcome in seen.borrow().iter() {
                let one = outcome.iter().filter(|outcome| **outcome == data);
                assert_eq!(one.count(), 1, "{outcome:?}");
            }
            assert_eq!(world.dma(0, DISK, to), data);
        }
    }
}

#[test]
fn a_new_context_descriptor_is_seen_after_its_invalidation() {
    let source = |stream: u32| u64::from(stream) << 32;
    for commands in [
        vec![[5 | source(DISK), 1]],
        vec![[6 | source(DISK), 0]],
        vec![cfgi_ste(DISK)],
        vec![[4, 31]],
    ] {
        let mut world = World::new();
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
        // Another address space, whose page 5 is another.
        let other = RAM + 0x8000;
        world.put(0, other, &[(other + 0x1000) | 3]);
        world.put(0, other + 0x1000, &[(other + 0x2000) | 3]);
        world.put(0, other + 0x2000 + 5 * 8, &[leaf(DATA + 0x3000)]);
        world.cd(0, CDS, 2, other);
        assert_eq!(
            world.dma(0, DISK, AT),
            Ok(world.pa(0, DATA)),
            "it is cached"
        );
        world.send(0, &commands);
        let now = world.dma(0, DISK, AT);
        assert_eq!(now, Ok(world.pa(0, DATA + 0x3000)), "{commands:x?}");
    }
}

#[test]
fn what_goes_behind_a_context_descriptor_goes_behind_it_in_the_hardware() {
    // By the old descriptor there can be new translations between the first command and the second.
    let mut world = World::new();
    world.board.opcodes();
    let cd = [5 | u64::from(DISK) << 32, 1];
    let by_asid = [0x11 | 1 << 48, 0];
    world.send(0, &[NH_ALL, by_asid, cd, by_asid, by_asid, NH_ALL, by_asid]);
    assert_eq!(world.board.opcodes(), [0x10, 5, 0x11, 0x10]);
}

#[test]
fn a_context_descriptor_of_whatever_size_is_the_hardwares_to_judge() {
    // IPS 6 and 7: QEMU 10 aborts on them. We never read a descriptor, and refuse nothing we do not see.
    let mut world = World::new();
    for ips in 0..8_u64 {
        let word0 = 25 | 1 << 30 | 1 << 31 | ips << 32 | 1 << 41 | 1 << 46 | 1 << 48;
        world.put(0, CDS, &[word0, TABLES[0]]);
        world.ste(0, DISK, [1, 0]);
        world.send(0, &[cfgi_ste(DISK)]);
        world.ste(0, DISK, [1 | 5 << 1 | CDS, 0]);
        let before = world.vms[0].smmu.counters().errors;
        world.send(0, &[cfgi_ste(DISK), NH_ALL]);
        assert_eq!(world.vms[0].smmu.counters().errors, before);
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)), "IPS {ips}");
    }
    world.events();
    assert_eq!(world.guest_event(0), None);
}

#[test]
fn memory_taken_away_while_a_guests_stage_1_rests_is_out_of_reach_when_it_is_back() {
    let mut world = World::new();
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Ok(world.pa(0, DATA)));
        world.set_stages(0, stream, Stages::Second);
        assert_eq!(world.dma(0, stream, DATA), Ok(world.pa(0, DATA)));
    }
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    for stream in [DISK, NET] {
        world.set_stages(0, stream, Stages::Both);
        // By the same context descriptor, and so the same address space.
        assert!(recorded(world.dma(0, stream, AT)).1);
    }
}

#[test]
fn memory_taken_from_a_vm_is_out_of_its_devices_reach_at_once() {
    for ranges in [true, false] {
        for part in [Part::Data, Part::Tables] {
            let mut world = World::cold(Model {
                ranges,
                ..Model::default()
            });
            world.bring_up(0);
            assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
            let World { core, vms, .. } = &mut world;
            vms[0].unmap(core, part);
            assert!(recorded(world.dma(0, DISK, AT)).1, "{part:?}");
            let World { core, vms, .. } = &mut world;
            vms[0].map(core, part);
            assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
        }
    }
}

#[test]
fn a_device_taken_from_a_vm_reaches_nothing_at_once_and_the_other_goes_on() {
    let mut world = World::new();
    assert!(world.dma(0, DISK, AT).is_ok() && world.dma(0, NET, AT).is_ok());
    let device = world.device(0, DISK);
    world.core.detach(device).unwrap();
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    assert_eq!(world.fresh(0, DISK, AT), Err(Fault::Silent));
    assert_eq!(world.dma(0, NET, AT), Ok(world.pa(0, DATA)));
}

#[test]
fn a_reset_takes_the_guests_tables_away_before_its_memory_is_written() {
    let mut world = World::new();
    assert!(world.dma(0, DISK, AT).is_ok());
    world.reset(0);
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Err(Fault::Silent));
    }
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(1, DATA)));
    // The next kernel finds an SMMU out of reset, and its old tables changed.
    world.bring_up(0);
    world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x5000)]);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA + 0x5000)));
}

#[test]
fn substreams_have_address_spaces_of_their_own() {
    let mut world = World::cold(Model {
        substreams: 8,
        ..Model::default()
    });
    world.bring_up(0);
    // A two-level table of 2^7 descriptors in leaves of 64; substream 65 is in the second.
    let (level1, second) = (RAM + 0xa000, RAM + 0xb000);
    world.put(0, level1, &[0, second | 1]);
    world.cd(0, second + 64, 7, TABLES[0]);
    world.ste(0, DISK, [1 | 5 << 1 | 1 << 4 | 7 << 59 | level1, 1]);
    world.send(0, &[cfgi_ste(DISK)]);
    let dma = |ssid, at| {
        world.board.hardware.dma(Access {
            sid: world.source(0, DISK),
            ssid,
            at,
            write: false,
        })
    };
    assert_eq!(dma(Some(65), AT), Ok(world.pa(0, DATA)));
    // S1DSS 1: without a substream, no stage 1.
    assert_eq!(dma(None, DATA), Ok(world.pa(0, DATA)));
    assert_eq!(recorded(dma(Some(3), AT)).0, 8, "no leaf table");
    assert_eq!(recorded(dma(Some(1 << 7), AT)).0, 8, "beyond S1CDMax");
}

#[test]
fn a_flood_of_one_guests_faults_loses_no_record_of_the_others_for_good() {
    let mut world = World::new();
    for n in 0..300 {
        let _ = world.dma(0, DISK, (100 + n) << 12);
    }
    while !world.events().is_empty() {}
    let _ = world.dma(1, DISK, 0x9000);
    let seen = world.events();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, Delivery::Delivered);
    assert_eq!(world.guest_event(1).unwrap()[2], 0x9000);
}

#[test]
fn an_access_by_an_entry_that_is_not_legal_is_told_with_the_guests_stream() {
    // Not valid; stage 2 asked for.
    for word in [0, 1 | 7 << 1] {
        let mut world = World::new();
        world.ste(0, DISK, [word, 0]);
        world.send(0, &[cfgi_ste(DISK)]);
        world.events();
        assert_eq!(world.guest_event(0), None, "no device has met it");
        assert_eq!(recorded(world.dma(0, DISK, AT)).0, 4);
        world.events();
        let record = [4 | u64::from(DISK) << 32, 0, 0, 0];
        assert_eq!(world.guest_event(0), Some(record));
        assert_eq!(world.guest_event(1), None, "the other VM's");
        // Its other stream goes on, and so does this one with an entry.
        assert_eq!(world.dma(0, NET, AT), Ok(world.pa(0, DATA)));
        world.ste(0, DISK, [1 | 5 << 1 | CDS, 0]);
        world.send(0, &[cfgi_ste(DISK)]);
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
    }
}

/// Has records of a VM's stream written or not.
fn set_recording(world: &mut World, stream: u32, recording: Recording) {
    let source = StreamId::new(world.source(0, stream)).unwrap();
    let smmu = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    smmu.set_recording(source, recording).unwrap();
}

#[test]
fn a_flood_by_an_entry_that_is_not_valid_is_muted_however_often_it_is_written_anew() {
    let mut world = World::new();
    world.ste(0, DISK, [0, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(recorded(world.dma(0, DISK, AT)).0, 4);
    set_recording(&mut world, DISK, Recording::Off);
    for word in [0, 1, 0, 7 << 1 | 1, 0] {
        world.ste(0, DISK, [word, 0]);
        world.send(0, &[cfgi_ste(DISK)]);
        assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    }
    // The others are heard: its own stream's, and the neighbour's by the same kind of entry.
    assert_eq!(recorded(world.dma(0, NET, 0x9000)).0, 0x10);
    world.ste(1, NET, [0, 0]);
    world.send(1, &[cfgi_ste(NET)]);
    assert_eq!(recorded(world.dma(1, NET, AT)).0, 4);
    // What is legal works while it is muted.
    world.ste(0, DISK, [1 | 5 << 1 | CDS, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
    assert_eq!(recorded(world.dma(0, DISK, 0x9000)).0, 0x10);
    world.ste(0, DISK, [0, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    set_recording(&mut world, DISK, Recording::On);
    assert_eq!(recorded(world.dma(0, DISK, AT)).0, 4);
}

#[test]
fn a_flood_of_stage_1_faults_can_be_silenced_and_the_stream_comes_back_as_the_guest_has_it() {
    let mut world = World::new();
    set_recording(&mut world, DISK, Recording::Silent);
    for at in [AT, 0x9000] {
        assert_eq!(world.dma(0, DISK, at), Err(Fault::Silent));
    }
    assert_eq!(
        world.dma(0, NET, AT),
        Ok(world.pa(0, DATA)),
        "its other stream"
    );
    // Less is not muted before the time is over.
    set_recording(&mut world, DISK, Recording::Off);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    // What the guest writes meanwhile is what holds afterwards, and not before.
    world.ste(0, DISK, [1 | 5 << 1 | (CDS + 0x40), 0]);
    world.cd(0, CDS + 0x40, 2, TABLES[0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    // A stream that bypasses has no stage 1 whose faults there could be.
    world.ste(0, DISK, [1 | 4 << 1, 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    assert_eq!(world.dma(0, DISK, DATA), Ok(world.pa(0, DATA)));
    world.ste(0, DISK, [1 | 5 << 1 | (CDS + 0x40), 0]);
    world.send(0, &[cfgi_ste(DISK)]);
    set_recording(&mut world, DISK, Recording::On);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
    let endpoint = Endpoint {
        unit: UnitId::new(0),
        source: world.source(0, DISK),
    };
    let ste = world.core.backend().read_entry(endpoint).unwrap();
    assert_eq!(ste.s1_context(), CDS + 0x40);
}
