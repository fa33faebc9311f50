//! A VM whose devices are behind two of the machine's SMMUs, and which sees two.

use bulkhead_smmuv3::Error;
use bulkhead_smmuv3::spec::{Command, SteConfig, regs};
use iommu::{Endpoint, UnitId};
use types::{Iova, Pa};
use vsmmuv3::{Delivery, Width};

use crate::board::Broken;
use crate::engine::Fault;
use crate::nested::{DATA, DISK, NET, Part, SHIFT, TABLES, World, leaf};

/// Where the guest's drivers map a page.
const AT: u64 = 5 << 12;

/// Opcodes that each of the machine's SMMUs has carried out.
fn opcodes(world: &World) -> [Vec<u64>; 2] {
    [0, 1].map(|unit: usize| world.boards[unit].opcodes())
}

#[test]
fn each_smmu_translates_for_its_own_devices_over_one_memory() {
    let world = World::two_units();
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Ok(world.pa(0, DATA)));
        assert_eq!(world.dma(1, stream, AT), Ok(world.pa(0, DATA + SHIFT)));
    }
    // The same stream ID of the machine's, at two SMMUs, is two devices with two stage 1.
    let entries = [0, 1].map(|unit| {
        let source = world.source(unit as usize, DISK);
        let unit = UnitId::new(unit);
        let endpoint = Endpoint { unit, source };
        world.core.backend().read_entry(endpoint).unwrap()
    });
    assert_eq!(world.source(0, DISK), world.source(1, DISK));
    assert!(entries.iter().all(|ste| ste.config() == SteConfig::Nested));
    assert_eq!(entries[1].s1_context() - entries[0].s1_context(), SHIFT);
    assert_ne!(entries[0].s2ttb(), entries[1].s2ttb(), "a stage 2 each");
}

#[test]
fn commands_reach_the_smmu_they_were_given_to_and_no_other() {
    let mut world = World::two_units();
    opcodes(&world);
    let to = |stream: u32, opcode: u64| [opcode | u64::from(stream) << 32, 1];
    for vm in 0..2 {
        assert_eq!(world.dma(vm, DISK, AT + 8), world.dma(vm, NET, AT + 8));
        world.send(vm, &[[0x12 | 1 << 48, AT | 1], to(DISK, 5), [0x10, 0]]);
        let seen = opcodes(&world);
        assert!(
            seen[vm].contains(&0x12) || seen[vm].contains(&0x10),
            "{seen:x?}"
        );
        assert!(seen[vm].contains(&5));
        assert!(seen[1 - vm].is_empty(), "{seen:x?}");
    }
    // A page changed behind the first: it is seen there after its invalidation, the other has its own.
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
    world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x2000)]);
    world.send(1, &[[0x10, 0]]);
    assert_eq!(
        world.dma(0, DISK, AT),
        Ok(world.pa(0, DATA)),
        "still cached"
    );
    world.send(0, &[[0x10, 0]]);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA + 0x2000)));
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA + SHIFT)));
}

#[test]
fn faults_are_told_by_the_smmu_the_device_is_behind() {
    let mut world = World::two_units();
    for vm in 0..2 {
        assert!(world.dma(vm, NET, 0x9000).is_err());
        let seen = world.events();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].1, Delivery::Delivered);
        let record = world.guest_event(vm).unwrap();
        assert_eq!(record[0], 0x10 | u64::from(NET) << 32);
        assert_eq!((world.guest_event(0), world.guest_event(1)), (None, None));
    }
}

#[test]
fn one_smmu_turned_off_leaves_the_other_as_it_is() {
    let mut world = World::two_units();
    opcodes(&world);
    world.write(0, regs::GBPA, Width::Word, 1 << 31 | 1 << 20);
    world.write(0, regs::CR0, Width::Word, 0xc);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA + SHIFT)));
    assert!(opcodes(&world)[1].is_empty());
    world.reset(1);
    world.bring_up(0);
    assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
}

/// The machine's first SMMU breaks while both are in use, and is noticed by a command of the driver's. Devices behind
/// the second go on, its commands and faults with them.
fn the_second_goes_on_when_the_first_is(broken: Broken, error: Error) -> World {
    let mut world = World::two_units();
    world.boards[0].hardware.broken.set(broken);
    let first = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    let commands = [Command::CFGI_ALL, Command::TlbiNsnhAll];
    assert_eq!(first.send(&commands), Err(error));

    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA + SHIFT)));
    world.put(1, TABLES[2] + 5 * 8, &[leaf(DATA)]);
    world.send(1, &[[0x10, 0]]);
    assert_eq!(
        world.dma(1, DISK, AT),
        Ok(world.pa(0, DATA)),
        "it carries commands out"
    );
    assert!(world.dma(1, NET, 0x9000).is_err());
    world.events();
    let record = world.guest_event(1).unwrap();
    assert_eq!(record[0], 0x10 | u64::from(NET) << 32);
    assert_eq!(world.guest_event(0), None);
    world
}

#[test]
fn one_smmu_that_consumes_no_commands_is_off_and_the_other_goes_on() {
    let mut world = the_second_goes_on_when_the_first_is(Broken::Stuck, Error::Timeout);
    let first = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    assert!(first.is_off() && !first.is_lost());
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    // Memory is taken back as ever: nothing gets through the one that is off, and what did is over.
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    assert!(matches!(
        world.dma(1, DISK, AT),
        Err(Fault::Recorded { stage2: true, .. })
    ));
}

#[test]
fn one_smmu_that_refuses_whatever_it_is_told_is_off_and_the_other_goes_on() {
    // Until it is off.
    let broken = Broken::Command { nth: 0, times: 3 };
    let mut world = the_second_goes_on_when_the_first_is(broken, Error::Refused(1));
    // It is told to forget memory that is taken back, and does not.
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    let first = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    assert!(first.is_off() && !first.is_lost());
    let second = world.core.backend_mut().unit_mut(UnitId::new(1)).unwrap();
    assert!(!second.is_off());
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    assert!(matches!(
        world.dma(1, DISK, AT),
        Err(Fault::Recorded { stage2: true, .. })
    ));
}

#[test]
fn one_smmu_of_which_nobody_knows_what_it_still_does_is_lost_and_the_other_goes_on() {
    for broken in [Broken::Queue, Broken::Everything] {
        let mut world = the_second_goes_on_when_the_first_is(broken, Error::Timeout);
        let first = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
        assert!(first.is_lost(), "{broken:?}");
        // What a device may still reach is given to nobody: the core keeps it, and says so.
        let World { core, vms, .. } = &mut world;
        assert!(vms[0].try_unmap(core, Part::Data).is_err(), "{broken:?}");
        // No device behind the other reaches it any more.
        assert!(matches!(
            world.dma(1, DISK, AT),
            Err(Fault::Recorded { stage2: true, .. })
        ));
    }
}

#[test]
fn memory_taken_from_the_vm_is_out_of_reach_behind_both() {
    let mut world = World::two_units();
    for vm in 0..2 {
        assert!(world.dma(vm, DISK, AT).is_ok());
    }
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    for vm in 0..2 {
        assert!(matches!(
            world.dma(vm, DISK, AT),
            Err(Fault::Recorded { stage2: true, .. })
        ));
    }
}

#[test]
fn two_smmus_over_one_have_address_spaces_of_their_own() {
    let mut world = World::two_over_one();
    // Both guests' drivers use ASID 1, and the same address leads to two places.
    for _ in 0..2 {
        assert_eq!(world.dma(0, DISK, AT), Ok(world.pa(0, DATA)));
        assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA + SHIFT)));
    }
    let entries = [0, 1].map(|vm| {
        let unit = UnitId::new(0);
        let source = world.source(vm, DISK);
        let endpoint = Endpoint { unit, source };
        world.core.backend().read_entry(endpoint).unwrap()
    });
    assert_ne!(entries[0].vmid(), entries[1].vmid());
    // Everything that the one's guest invalidates is its own.
    world.put(1, TABLES[2] + 5 * 8, &[leaf(DATA)]);
    world.send(0, &[[0x30, 0]]);
    assert_eq!(
        world.dma(1, DISK, AT),
        Ok(world.pa(0, DATA + SHIFT)),
        "cached"
    );
    world.send(1, &[[0x30, 0]]);
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA)));
    // Faults are told by the one the device is behind.
    assert!(world.dma(1, NET, 0x9000).is_err());
    world.events();
    assert_eq!(world.guest_event(0), None);
    assert_eq!(
        world.guest_event(1).unwrap()[0],
        0x10 | u64::from(NET) << 32
    );
    // Off, the one takes nothing of the other.
    world.write(0, regs::GBPA, Width::Word, 1 << 31 | 1 << 20);
    world.write(0, regs::CR0, Width::Word, 0xc);
    assert_eq!(world.dma(0, DISK, AT), Err(Fault::Silent));
    assert_eq!(world.dma(1, DISK, AT), Ok(world.pa(0, DATA)));
}

/// The guest's one ITS, as a device's stage 2 has it; the doorbells of the machine's two ITSs.
const VITS: u64 = 0x0809_0000;
const DOORBELLS: [u64; 2] = [0x0808_0000 | 0x1_0040, 0x0a08_0000 | 0x1_0040];
/// Where the guest's drivers map the ITS's page, and where messages are written.
const MESSAGES: u64 = 6 << 12 | 0x40;

/// Shows each SMMU's devices the ITS that they write to: at the window, and at the page of the guest's ITS.
fn two_itss(world: &mut World) -> [u64; 2] {
    let windows = [0, 1].map(|vm: usize| {
        let doorbell = Pa::new(DOORBELLS[vm]).unwrap();
        let [first, second] = [DISK, NET].map(|stream| {
            let device = world.device(vm, stream);
            let at = Iova::new(VITS).unwrap();
            let page = world.core.map_doorbell_at(device, at, doorbell).unwrap();
            assert_eq!(page.bits(), VITS + 0x40);
            world.core.map_doorbell(device, doorbell).unwrap().bits()
        });
        assert_eq!(first, second);
        first
    });
    for (vm, window) in windows.into_iter().enumerate() {
        // The guest's driver: the ITS's page by an IOVA, and the window to itself.
        world.put(vm, TABLES[2] + 6 * 8, &[leaf(VITS)]);
        world.put(vm, TABLES[2] + 7 * 8, &[leaf(window & !0xfff)]);
        world.send(vm, &[[0x30, 0]]);
    }
    windows
}

fn messages_reach_the_its_of_their_own(mut world: World) {
    let windows = two_itss(&mut world);
    assert_ne!(windows[0], windows[1], "a page of the window each");
    for (vm, doorbell) in DOORBELLS.into_iter().enumerate() {
        for stream in [DISK, NET] {
            // By the guest's own mapping of its ITS (`vits`), and of the window (`rmr`).
            assert_eq!(world.dma(vm, stream, MESSAGES), Ok(doorbell));
            assert_eq!(world.dma(vm, stream, 7 << 12 | 0x40), Ok(doorbell));
        }
    }
    for (vm, doorbell) in DOORBELLS.into_iter().enumerate() {
        // Past stage 1, by the guest's address of its ITS and by the window's.
        world.ste(vm, DISK, [1 | 4 << 1, 0]);
        world.send(vm, &[[3 | u64::from(DISK) << 32, 1]]);
        assert_eq!(world.dma(vm, DISK, VITS | 0x40), Ok(doorbell));
        assert_eq!(world.dma(vm, DISK, windows[vm]), Ok(doorbell));
        // And while the guest's SMMU is off and lets pass.
        world.write(vm, regs::CR0, Width::Word, 0xc);
        world.write(vm, regs::GBPA, Width::Word, 1 << 31);
        for stream in [DISK, NET] {
            assert_eq!(world.dma(vm, stream, VITS | 0x40), Ok(doorbell));
        }
        // The control: the other one's page of the window is not there, nor the ITS's control frame.
        assert!(world.dma(vm, NET, windows[1 - vm]).is_err());
        assert!(world.dma(vm, NET, VITS - 0x1_0000).is_err());
    }
    for (vm, doorbell) in DOORBELLS.into_iter().enumerate() {
        world.reset(vm);
        world.bring_up(vm);
        assert_eq!(world.dma(vm, DISK, MESSAGES), Ok(doorbell));
    }
}

#[test]
fn behind_two_smmus_of_the_machines_the_guests_its_is_their_own() {
    messages_reach_the_its_of_their_own(World::two_units());
}

#[test]
fn behind_two_of_the_guests_smmus_over_one_the_guests_its_is_their_own() {
    messages_reach_the_its_of_their_own(World::two_over_one());
}

#[test]
fn a_page_of_the_guests_its_is_never_another_its_behind_one_smmu() {
    let mut world = World::two_over_one();
    two_itss(&mut world);
    let device = world.device(0, NET);
    let (at, other) = (Iova::new(VITS).unwrap(), Pa::new(DOORBELLS[1]).unwrap());
    let second = world.core.map_doorbell_at(device, at, other);
    assert_eq!(second, Err(iommu::Error::WindowFull));
    assert_eq!(world.dma(0, NET, MESSAGES), Ok(DOORBELLS[0]));
}
