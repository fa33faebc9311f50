//! A device behind a bridge to conventional PCI: its accesses carry the bridge's ID.

use bulkhead_smmuv3::spec::regs;
use vsmmuv3::Width;

use crate::engine::{Access, Fault};
use crate::nested::{BRIDGE, CDS, DATA, DISK, Part, TABLES, World, leaf};

/// Where the guests' drivers map a page.
const AT: u64 = 5 << 12;

/// A write of the disk's, as the bridge sends it.
fn dma(world: &World) -> Result<u64, Fault> {
    world.board.hardware.dma(Access {
        sid: BRIDGE,
        ..world.access(0, DISK, AT)
    })
}

#[test]
fn a_new_context_descriptor_is_seen_behind_a_bridge_after_its_invalidation() {
    let sid = u64::from(DISK) << 32;
    // CFGI_CD, CFGI_CD_ALL, CFGI_STE of an entry that did not change.
    for command in [[5 | sid, 1], [6 | sid, 0], [3 | sid, 1]] {
        let mut world = World::bridged();
        assert_eq!(dma(&world), Ok(world.pa(0, DATA)));
        // Other tables, and another address space.
        let root = TABLES[0] + 0x3000;
        let tables = [TABLES[1] + 0x3000, TABLES[2] + 0x3000];
        world.put(0, root, &[tables[0] | 3]);
        world.put(0, tables[0], &[tables[1] | 3]);
        world.put(0, tables[1] + 5 * 8, &[leaf(DATA + 0x7000)]);
        world.cd(0, CDS, 2, root);
        // The negative control: the hardware has the old one.
        assert_eq!(dma(&world), Ok(world.pa(0, DATA)));
        world.send(0, &[command]);
        let now = dma(&world);
        assert_eq!(now, Ok(world.pa(0, DATA + 0x7000)), "{command:x?}");
        assert_eq!(world.dma(0, DISK, AT), now, "by its own ID");
    }
}

#[test]
fn what_is_turned_off_or_taken_away_is_out_of_reach_behind_a_bridge() {
    let mut world = World::bridged();
    assert!(dma(&world).is_ok());
    let World { core, vms, .. } = &mut world;
    vms[0].unmap(core, Part::Data);
    assert!(matches!(
        dma(&world),
        Err(Fault::Recorded { stage2: true, .. })
    ));
    world.write(0, regs::CR0, Width::Word, 0xc);
    assert_eq!(dma(&world), Err(Fault::Silent));
}
