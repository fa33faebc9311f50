use std::{string::ToString, vec};

use types::{Bdf, Liobn, Pa, Span};

use super::samples::{node, pseries};
use crate::{
    ConfigAccess, Ddw, EnableMethod, InterruptController, Machine, Trigger, UartKind, WindowKind,
    Xive,
};

fn span(start: u64, bytes: u64) -> Span<Pa> {
    Span::from_len(Pa::new(start).unwrap(), bytes).unwrap()
}

#[test]
fn a_pseries_machine_is_described_whole() {
    let machine = Machine::from_fdt(&pseries(2).blob()).unwrap();
    assert_eq!(machine.compatible, ["qemu,pseries"]);
    assert_eq!(machine.memory, [span(0, 0x8000_0000)]);
    assert_eq!(machine.chosen.initrd, Some(span(0x400_0000, 0x10_0000)));
    assert_eq!(machine.chosen.arch_vec5_support.len(), 8);
    assert_eq!(machine.cpus[1].id, 1);
    assert_eq!(machine.cpus[1].enable_method, EnableMethod::Rtas);
    let power = machine.power.as_ref().unwrap();
    assert_eq!(power.timebase_hz, 512_000_000);
    assert_eq!(power.decrementer_bits, Some(56));
    assert_eq!(
        power.radix_ap_encodings,
        [0x0c, 0xa000_0010, 0x2000_0015, 0x4000_001e]
    );
    assert!(power.has_feature(0, 0) && !power.has_feature(0, 4));
    assert!(!power.has_feature(200, 0));
    assert_eq!(
        machine.interrupt_controller,
        Some(InterruptController::Xics)
    );
    let console = machine.stdout().unwrap();
    assert_eq!(console.kind, UartKind::Hvterm { unit: 0x7100_0000 });
    assert_eq!(machine.notes, []);
}

/// As QEMU writes it once XIVE has been agreed on.
#[test]
fn xive_is_described_by_its_pages_its_sources_and_the_priority_that_is_left() {
    let controller = |reserved: &[u32]| {
        let tree = node("")
            .text("compatible", &["qemu,pseries"])
            .cells("#address-cells", &[2])
            .cells("#size-cells", &[2])
            .cells("ibm,plat-res-int-priorities", reserved)
            .child(
                node("memory@0")
                    .text("device_type", &["memory"])
                    .cells("reg", &[0, 0, 0, 0x8000_0000]),
            )
            .child(
                node("interrupt-controller@6030203180000")
                    .text("device_type", &["power-ivpe"])
                    .text("compatible", &["ibm,power-ivpe"])
                    .cells(
                        "reg",
                        &[
                            0x6_0302,
                            0x0318_0000,
                            0,
                            0x1_0000,
                            0x6_0302,
                            0x0319_0000,
                            0,
                            0x1_0000,
                        ],
                    )
                    .cells("ibm,xive-lisn-ranges", &[0, 0x1000]),
            );
        Machine::from_fdt(&tree.blob())
            .unwrap()
            .interrupt_controller
    };
    let xive = |priority| {
        Some(InterruptController::Xive(Xive {
            tima: vec![
                span(0x6_0302_0318_0000, 0x1_0000),
                span(0x6_0302_0319_0000, 0x1_0000),
            ],
            ipis: Some((0, 0x1000)),
            priority,
        }))
    };
    assert_eq!(controller(&[7, 0xf8]), xive(Some(6)));
    assert_eq!(controller(&[]), xive(Some(7)));
    assert_eq!(controller(&[3, 5, 0, 2]), xive(Some(2)));
    assert_eq!(controller(&[0, u32::MAX]), xive(None));
}

#[test]
fn rtas_tokens_are_told_from_other_properties() {
    let machine = Machine::from_fdt(&pseries(1).blob()).unwrap();
    let rtas = machine.rtas.unwrap();
    assert_eq!(rtas.token("power-off"), Some(0x2003));
    assert_eq!(rtas.token("ibm,read-pci-config"), Some(0x2016));
    for not in [
        "rtas-size",
        "rtas-error-log-max",
        "ibm,hypertas-functions",
        "no-such-call",
    ] {
        assert_eq!(rtas.token(not), None, "{not}");
    }
    assert_eq!(rtas.tokens().count(), 6);
    assert!(rtas.has_hypertas("hcall-tce"));
    assert!(!rtas.has_hypertas("hcall"));
    assert_eq!((rtas.bytes, rtas.entry), (Some(20), None));
}

#[test]
fn a_logical_phb_has_its_dma_window_and_ddw_tokens() {
    let machine = Machine::from_fdt(&pseries(1).blob()).unwrap();
    let bridge = &machine.host_bridges[0];
    assert_eq!(
        bridge.config,
        ConfigAccess::Rtas {
            buid: 0x0800_0000_2000_0000
        }
    );
    let window = bridge.dma_window.unwrap();
    assert_eq!(window.liobn, Liobn::new(0x8000_0000).unwrap());
    assert_eq!((window.base, window.bytes), (0, 0x4000_0000));
    assert_eq!(
        bridge.ddw,
        Some(Ddw {
            query: 0x2026,
            create: 0x2027,
            remove: 0x2028,
            reset: Some(0x2029),
            wide_query: Some(1),
        })
    );
    assert_eq!(bridge.windows[1].bus, 0x8000_0000);
    assert_eq!(bridge.windows[1].cpu, span(0x2000_8000_0000, 0x7fff_0000));
    assert_eq!(bridge.windows[1].kind, WindowKind::Memory32);
    let lsi = bridge.intx.lookup(Bdf::new(0, 0, 0).unwrap(), 1).unwrap();
    assert_eq!((lsi.number, lsi.trigger), (0x1200, Trigger::LevelLow));
    assert_eq!(machine.iommu_of(0, Bdf::new(0, 0, 0).unwrap()), None);
}

#[test]
fn bridges_without_a_segment_get_the_free_ones() {
    let phb = |name, domain: Option<u32>| {
        let phb = node(name)
            .text("compatible", &["IBM,Logical_PHB"])
            .cells("#address-cells", &[3])
            .cells("#size-cells", &[2])
            .cells("reg", &[0x0800_0000, 0x2000_0001, 0, 0]);
        match domain {
            Some(domain) => phb.cells("linux,pci-domain", &[domain]),
            None => phb,
        }
    };
    let machine = Machine::from_fdt(
        &pseries(1)
            .child(phb("pci@800000020000001", Some(1)))
            .child(phb("pci@800000020000002", None))
            .blob(),
    )
    .unwrap();
    let segments: vec::Vec<_> = machine.host_bridges.iter().map(|b| b.segment).collect();
    assert_eq!(segments, [0, 1, 2]);
}

#[test]
fn threads_of_a_core_are_cpus_of_their_own() {
    let machine = Machine::from_fdt(
        &pseries(1)
            .edit(&["cpus", "PowerPC,POWER9@0"], |n| {
                n.cells("reg", &[8])
                    .cells("ibm,ppc-interrupt-server#s", &[8, 9, 10, 11])
            })
            .blob(),
    )
    .unwrap();
    let threads: vec::Vec<_> = machine.cpus.iter().map(|cpu| (cpu.core, cpu.id)).collect();
    assert_eq!(threads, [(8, 8), (8, 9), (8, 10), (8, 11)]);
}

#[test]
fn the_report_of_a_pseries_machine() {
    let machine = Machine::from_fdt(&pseries(1).blob()).unwrap();
    let expected = "\
machine: IBM pSeries (emulated by qemu) (qemu,pseries)
memory: 0x0-0x7fffffff, 2 GiB
initrd: 0x4000000-0x40fffff, 1048576 bytes
cpus: 1 -, started by RTAS: 0x0
timebase: 512000000 Hz, decrementer of 56 bits
interrupt controller: XICS
pci 0000: BUID 0x800000020000000, buses 00-ff
pci 0000: I/O 0x200000000000-0x20000000ffff, 64 KiB, on the bus at 0x0
pci 0000: 32-bit memory 0x200080000000-0x2000fffeffff, 2097088 KiB, on the bus at 0x80000000
pci 0000: 64-bit memory 0x210000000000-0x21ffffffffff, 1 TiB
pci 0000: DMA window LIOBN 0x80000000 at 0x0, 1 GiB, more by DDW
uart 0: virtual terminal, unit 0x71000000, interrupt 4352 (edge), console
rtas: 6 calls, 4 groups of hcalls
";
    assert_eq!(machine.to_string(), expected);
}
