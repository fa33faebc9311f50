//! Devices of one isolation group: each has the entry that the guest gave it.

use bulkhead_smmuv3::spec::{SteConfig, regs};
use iommu::{Endpoint, UnitId};
use vsmmuv3::{Delivery, Width};

use crate::engine::Fault;
use crate::nested::{DATA, DISK, NET, Part, TABLES, World, leaf};

/// Where the guests' drivers map a page.
const AT: u64 = 5 << 12;
const CFGI_STE: u64 = 3;

fn to(stream: u32, opcode: u64) -> [u64; 2] {
    [opcode | u64::from(stream) << 32, 1]
}

fn configs(world: &World, vm: usize) -> [SteConfig; 2] {
    [DISK, NET].map(|stream| {
        let source = world.source(vm, stream);
        let unit = UnitId::new(0);
        let endpoint = Endpoint { unit, source };
        world.core.backend().read_entry(endpoint).unwrap().config()
    })
}

#[test]
fn each_device_of_a_group_has_its_own_entry() {
    let mut world = World::together();
    let data = world.pa(0, DATA);
    assert_eq!(configs(&world, 0), [SteConfig::Nested; 2]);
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Ok(data));
    }
    // One bypasses: the other's addresses are still the guest's driver's.
    world.ste(0, DISK, [1 | 4 << 1, 0]);
    world.send(0, &[to(DISK, CFGI_STE)]);
    assert_eq!(
        configs(&world, 0),
        [SteConfig::S2Translate, SteConfig::Nested]
    );
    assert_eq!(world.dma(0, DISK, DATA), Ok(data));
    assert!(world.dma(0, DISK, AT).is_err());
    assert_eq!(world.dma(0, NET, AT), Ok(data));
    assert!(world.dma(0, NET, DATA).is_err());
    // One aborts in silence, and comes back.
    world.ste(0, NET, [1, 0]);
    world.send(0, &[to(NET, CFGI_STE)]);
    assert_eq!(world.dma(0, NET, AT), Err(Fault::Silent));
    assert_eq!(world.dma(0, DISK, DATA), Ok(data));
    world.bring_up(0);
    world.send(0, &[to(DISK, CFGI_STE), to(NET, CFGI_STE)]);
    assert_eq!(configs(&world, 0), [SteConfig::Nested; 2]);
    assert_eq!(world.dma(0, DISK, AT), Ok(data));
    // The other VM's were not touched.
    assert_eq!(configs(&world, 1), [SteConfig::Nested; 2]);
    assert_eq!(world.dma(1, NET, AT), Ok(world.pa(1, DATA)));
}

#[test]
fn a_bad_entry_is_told_with_its_own_stream_and_hurts_no_mate() {
    let mut world = World::together();
    world.ste(0, DISK, [0, 0]);
    world.send(0, &[to(DISK, CFGI_STE)]);
    assert!(world.dma(0, DISK, AT).is_err());
    let seen = world.events();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, Delivery::Delivered);
    assert_eq!(world.guest_event(0).unwrap()[0], 4 | u64::from(DISK) << 32);
    assert_eq!(world.dma(0, NET, AT), Ok(world.pa(0, DATA)));
    assert!(world.dma(0, NET, 0x9000).is_err());
    world.events();
    assert_eq!(
        world.guest_event(0).unwrap()[0],
        0x10 | u64::from(NET) << 32
    );
    assert_eq!(world.guest_event(1), None);
}

#[test]
fn what_stage_2_loses_and_what_is_turned_off_goes_for_all_of_a_group() {
    let mut world = World::together();
    world.write(0, regs::CR0, Width::Word, 0xc);
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Err(Fault::Silent));
    }
    world.bring_up(0);
    world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA)]);
    world.send(0, &[[0x30, 0]]);
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Ok(world.pa(0, DATA)));
    }
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    for stream in [DISK, NET] {
        let refused = world.dma(0, stream, AT);
        assert!(matches!(refused, Err(Fault::Recorded { stage2: true, .. })));
    }
    world.reset(0);
    for stream in [DISK, NET] {
        assert_eq!(world.dma(0, stream, AT), Err(Fault::Silent));
    }
}
