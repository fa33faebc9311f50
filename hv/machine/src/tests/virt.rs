use std::{string::ToString, vec, vec::Vec};

use types::{Bdf, Pa, Span, StreamId};

use super::samples::{GIC, N, SMMU, node, virt};
use crate::{
    Coherency, Conduit, ConfigAccess, CpuStatus, EnableMethod, Error, InterruptController, Machine,
    Note, Prefetch, Problem, PsciVersion, RegisterPages, Trigger, UartKind, WindowKind,
};

fn read(tree: N) -> Machine {
    Machine::from_fdt(&tree.blob()).unwrap()
}

fn refuse(tree: N) -> Error {
    Machine::from_fdt(&tree.blob()).unwrap_err()
}

fn span(start: u64, bytes: u64) -> Span<Pa> {
    Span::from_len(Pa::new(start).unwrap(), bytes).unwrap()
}

#[test]
fn a_virt_machine_is_described_whole() {
    let machine = read(virt(2));
    assert_eq!(machine.model.as_deref(), Some("linux,dummy-virt"));
    assert_eq!(machine.memory, [span(0x4000_0000, 0x4000_0000)]);
    assert_eq!(machine.chosen.bootargs.as_deref(), Some("log=info"));
    assert_eq!(machine.chosen.initrd, Some(span(0x4800_0000, 0x12_3456)));
    assert_eq!(machine.cpus.len(), 2);
    assert_eq!(machine.cpus[1].id, 1);
    assert_eq!(machine.cpus[1].enable_method, EnableMethod::Psci);
    let psci = machine.psci.clone().unwrap();
    assert_eq!(
        (psci.method, psci.version),
        (Conduit::Smc, PsciVersion::V1_0)
    );
    let Some(InterruptController::GicV3(gic)) = &machine.interrupt_controller else {
        panic!("{:?}", machine.interrupt_controller);
    };
    assert_eq!(gic.distributor, span(0x0800_0000, 0x1_0000));
    assert_eq!(gic.redistributors, [span(0x080a_0000, 0xf6_0000)]);
    assert_eq!(gic.maintenance.unwrap().number, 25);
    assert_eq!(machine.itss[0].registers, span(0x0808_0000, 0x2_0000));
    let timer = machine.timer.clone().unwrap();
    assert_eq!(timer.virtual_.unwrap().number, 27);
    assert_eq!(timer.hyp_physical.unwrap().number, 26);
    assert_eq!(timer.physical.unwrap().number, 30);
    let smmu = &machine.smmus[0];
    assert_eq!(smmu.registers, span(0x0905_0000, 0x2_0000));
    let event_queue = smmu.interrupts.event_queue.unwrap();
    assert_eq!(event_queue.number, 106);
    assert_eq!(event_queue.trigger, Trigger::EdgeRising);
    assert_eq!(smmu.interrupts.global_error.unwrap().number, 109);
    assert_eq!(smmu.coherency, Coherency::Coherent);
    let uart = machine.stdout().unwrap();
    assert_eq!(uart.kind, UartKind::Pl011(span(0x0900_0000, 0x1000)));
    assert_eq!(uart.interrupt.unwrap().number, 33);
    assert_eq!(machine.notes, []);
}

#[test]
fn a_pci_bridge_has_windows_streams_and_interrupts() {
    let machine = read(virt(1));
    let bridge = machine.host_bridge(0).unwrap();
    assert_eq!(
        bridge.config,
        ConfigAccess::Ecam(span(0x40_1000_0000, 0x1000_0000))
    );
    assert_eq!(bridge.buses, (0, 0xff));
    let kinds: Vec<_> = bridge.windows.iter().map(|w| (w.kind, w.bus)).collect();
    assert_eq!(
        kinds,
        [
            (WindowKind::Io, 0),
            (WindowKind::Memory32, 0x1000_0000),
            (WindowKind::Memory64, 0x80_0000_0000)
        ]
    );
    assert_eq!(bridge.windows[2].cpu, span(0x80_0000_0000, 0x80_0000_0000));
    assert_eq!(bridge.windows[2].prefetch, Prefetch::Forbidden);
    let nvme = Bdf::new(1, 2, 3).unwrap();
    assert_eq!(
        machine.iommu_of(0, nvme),
        Some((0, StreamId::new(0x113).unwrap()))
    );
    assert_eq!(machine.msi_of(0, nvme), Some((0, 0x113)));
    assert_eq!(machine.iommu_of(1, nvme), None);
    // Device 5 takes the line of slot 1; INTB of it is SPI 5.
    let interrupt = bridge.intx.lookup(Bdf::new(0, 5, 0).unwrap(), 2).unwrap();
    assert_eq!(
        (interrupt.number, interrupt.trigger),
        (37, Trigger::LevelHigh)
    );
}

#[test]
fn a_map_without_the_requester_gives_no_stream() {
    let map = |cells: &[u32]| {
        let cells = cells.to_vec();
        read(virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map", &cells)))
    };
    let device = |bits| Bdf::from_bits(bits);
    // Stream IDs offset by 0x10000, and the first function left out.
    let machine = map(&[1, SMMU, 0x1_0001, 0xff]);
    assert_eq!(machine.iommu_of(0, device(0)), None);
    assert_eq!(machine.iommu_of(0, device(1)).unwrap().1.bits(), 0x1_0001);
    assert_eq!(
        machine.iommu_of(0, device(0xff)).unwrap().1.bits(),
        0x1_00ff
    );
    assert_eq!(machine.iommu_of(0, device(0x100)), None);
    // A range that would leave 32 bits.
    let machine = map(&[0, SMMU, u32::MAX, 2]);
    assert_eq!(machine.iommu_of(0, device(0)).unwrap().1.bits(), u32::MAX);
    assert_eq!(machine.iommu_of(0, device(1)), None);
    // A unit that is no SMMU.
    let machine = map(&[0, GIC, 0, 0x1_0000]);
    assert_eq!(machine.iommu_of(0, device(0)), None);
    assert!(matches!(machine.notes[..], [Note::UnknownIommu(_)]));
    // Four cells an entry.
    let broken = virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map", &[0, SMMU, 0]));
    assert_eq!(
        refuse(broken).to_string(),
        "/pcie@10000000: iommu-map: 12 bytes are not a whole number of 16-byte entries"
    );
}

#[test]
fn a_mask_folds_functions_into_one_stream() {
    let machine = read(virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map-mask", &[0xfff8])));
    let stream = |f| machine.iommu_of(0, Bdf::new(0, 1, f).unwrap()).unwrap().1;
    assert_eq!(stream(0), stream(7));
    assert_eq!(stream(7).bits(), 8);
}

#[test]
fn what_is_absent_is_a_fact() {
    let bare = read(
        virt(0)
            .without("smmuv3@9050000")
            .without("pcie@10000000")
            .without("intc@8000000")
            .without("timer")
            .without("pl011@9000000")
            .edit(&["psci"], |n| n)
            .without("chosen"),
    );
    let report = bare.to_string();
    for fact in [
        "cpus: none described",
        "interrupt controller: none described",
        "smmu: none described: no device can be isolated",
        "pci: no host bridge described",
        "initrd: none",
    ] {
        assert!(report.lines().any(|line| line == fact), "{fact}\n{report}");
    }
}

#[test]
fn a_tree_without_pci_is_said_so_and_all_else_is_as_it_was() {
    const LINE: &str = "pci: no host bridge described";
    let machine = read(virt(1).without("pcie@10000000"));
    assert!(machine.to_string().lines().any(|line| line == LINE));
    assert!(machine.iommu_of(0, Bdf::new(0, 1, 0).unwrap()).is_none());
    assert_eq!((machine.cpus.len(), machine.smmus.len()), (1, 1));
    // The control: with it there is no such line.
    assert!(!read(virt(1)).to_string().lines().any(|line| line == LINE));
}

#[test]
fn no_memory_is_an_error() {
    assert_eq!(refuse(virt(1).without("memory@40000000")), Error::NoMemory);
    let empty = virt(1).edit(&["memory@40000000"], |n| n.cells("reg", &[0, 0, 0, 0]));
    assert_eq!(refuse(empty), Error::NoMemory);
    let off = virt(1).edit(&["memory@40000000"], |n| n.text("status", &["disabled"]));
    assert_eq!(refuse(off), Error::NoMemory);
}

#[test]
fn memory_nodes_are_sorted_joined_and_overlaps_noted() {
    let memory = |name, reg: [u32; 4]| {
        node(name)
            .text("device_type", &["memory"])
            .cells("reg", &reg)
    };
    let machine = read(
        virt(1)
            .child(memory("memory@100000000", [1, 0, 1, 0]))
            .child(memory("memory@7ff00000", [0, 0x7ff0_0000, 0, 0x20_0000]))
            .child(memory("memory@0", [0, 0, 0, 0x1000])),
    );
    assert_eq!(
        machine.memory,
        [
            span(0, 0x1000),
            span(0x4000_0000, 0x4010_0000),
            span(1 << 32, 1 << 32)
        ]
    );
    assert_eq!(
        machine.notes,
        [Note::MemoryTwice(span(0x7ff0_0000, 0x10_0000))]
    );
}

#[test]
fn cells_that_cannot_be_addresses_are_refused_with_the_node() {
    let error = |cells| {
        let tree = virt(1).cells("#address-cells", &[cells]);
        refuse(tree).to_string()
    };
    assert!(
        error(64).starts_with("/: #address-cells: 64 cells"),
        "{}",
        error(64)
    );
    assert!(
        error(3).starts_with("/memory@40000000: reg: "),
        "{}",
        error(3)
    );
    // Three cells with the upper one zero are a number all the same.
    let tree = node("")
        .cells("#address-cells", &[3])
        .cells("#size-cells", &[3])
        .child(
            node("memory@0")
                .text("device_type", &["memory"])
                .cells("reg", &[0, 1, 0, 0, 0, 0x1000]),
        );
    assert_eq!(read(tree).memory, [span(1 << 32, 0x1000)]);
    let wide = node("")
        .cells("#address-cells", &[3])
        .cells("#size-cells", &[1])
        .child(
            node("memory@0")
                .text("device_type", &["memory"])
                .cells("reg", &[1, 0, 0, 0x1000]),
        );
    assert_eq!(
        refuse(wide).to_string(),
        "/memory@0: reg: a number is too wide"
    );
}

#[test]
fn sizes_that_run_past_the_end_are_refused() {
    let tree = virt(1).edit(&["memory@40000000"], |n| {
        n.cells("reg", &[0, 0x4000_0000, u32::MAX, u32::MAX])
    });
    assert_eq!(
        refuse(tree).to_string(),
        "/memory@40000000: reg: 0xffffffffffffffff bytes from 0x40000000 run past the end of the \
         address space"
    );
    let tree = virt(1).edit(&["pcie@10000000"], |n| {
        n.cells("ranges", &[0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0])
    });
    assert!(matches!(
        refuse(tree),
        Error::Property {
            property: "ranges",
            problem: Problem::Length {
                bytes: 24,
                unit: 28
            },
            ..
        }
    ));
    let tree = virt(1).edit(&["chosen"], |n| n.cells("linux,initrd-end", &[0]));
    assert!(matches!(
        refuse(tree),
        Error::Property {
            property: "linux,initrd-end",
            ..
        }
    ));
}

#[test]
fn an_ecam_too_small_for_its_buses_loses_the_last_ones() {
    let machine = read(virt(1).edit(&["pcie@10000000"], |n| {
        n.cells("reg", &[0x40, 0x1000_0000, 0, 0x0020_0000])
    }));
    assert_eq!(machine.host_bridges[0].buses, (0, 1));
    assert!(matches!(machine.notes[..], [Note::EcamTooSmall(_)]));
}

#[test]
fn sixty_four_cpus_and_disabled_ones_are_listed() {
    let machine = read(virt(64).edit(&["cpus", "cpu@3f"], |n| n.text("status", &["disabled"])));
    assert_eq!(machine.cpus.len(), 64);
    assert_eq!(machine.cpus[63].status, CpuStatus::Disabled);
    assert_eq!(machine.cpus[63].id, 0x30f);
    let report = machine.to_string();
    assert!(
        report.contains("cpus: 63 arm,cortex-a57, started by PSCI: 0x0 0x1 "),
        "{report}"
    );
    assert!(report.contains("cpus: 1 arm,cortex-a57, started by PSCI, disabled: 0x30f"));
}

#[test]
fn reservations_come_from_the_block_and_from_nodes() {
    let reserved = node("reserved-memory")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .flag("ranges")
        .child(
            node("firmware@42000000")
                .flag("no-map")
                .cells("reg", &[0, 0x4200_0000, 0, 0x10_0000]),
        )
        .child(node("pool").cells("size", &[0, 0x10_0000]));
    let machine = read(virt(1).child(reserved));
    assert_eq!(machine.reservations.len(), 1);
    assert_eq!(machine.reservations[0].span, span(0x4200_0000, 0x10_0000));
    assert!(machine.to_string().contains(
        "reserved: 0x42000000-0x420fffff, 1 MiB, /reserved-memory/firmware@42000000, never mapped"
    ));
    assert!(matches!(machine.notes[..], [Note::DynamicReservation(_)]));
}

#[test]
fn addresses_are_translated_by_every_bus_above() {
    let soc = |ranges: &[u32]| {
        node("soc")
            .cells("#address-cells", &[1])
            .cells("#size-cells", &[1])
            .cells("ranges", ranges)
            .child(
                node("serial@1000")
                    .text("compatible", &["snps,dw-apb-uart"])
                    .cells("reg-shift", &[2])
                    .cells("reg-io-width", &[4])
                    .cells("interrupts", &[0, 5, 4])
                    .cells("reg", &[0x1000, 0x100]),
            )
    };
    let machine = read(virt(1).child(soc(&[0, 0x1, 0, 0x1_0000])));
    assert_eq!(
        machine.uarts[1].kind,
        UartKind::Ns16550 {
            registers: span(0x1_0000_1000, 0x100),
            shift: 2,
            width: 4
        }
    );
    // Not in the range: the port is left out and said so; a port is no reason not to boot.
    let machine = read(virt(1).child(soc(&[0, 0x1, 0, 0x1000])));
    assert_eq!(machine.uarts.len(), 1);
    assert_eq!(
        machine.notes[0].to_string(),
        "/soc/serial@1000: reg: address 0x1000 is not translated by /soc; ignored"
    );
}

#[test]
fn a_second_gic_and_an_old_one_are_said_to_be_what_they_are() {
    let old = virt(1).edit(&["intc@8000000"], |n| {
        n.text("compatible", &["arm,gic-400"])
    });
    let machine = read(old);
    assert!(matches!(
        machine.interrupt_controller,
        Some(InterruptController::GicV2 { .. })
    ));
    assert!(
        machine
            .to_string()
            .contains("GICv2, distributor 0x8000000-0x800ffff: not supported")
    );
    let broken = virt(1).edit(&["intc@8000000"], |n| {
        n.cells("#redistributor-regions", &[9])
    });
    assert_eq!(
        refuse(broken).to_string(),
        "/intc@8000000: #redistributor-regions: 0x9 is not allowed"
    );
}

#[test]
fn interrupt_numbers_outside_their_range_are_refused() {
    let tree = virt(1).edit(&["smmuv3@9050000"], |n| n.cells("interrupts", &[0, 988, 1]));
    assert_eq!(
        refuse(tree).to_string(),
        "/smmuv3@9050000: interrupts: 0x3dc is not allowed"
    );
    let tree = virt(1).edit(&["smmuv3@9050000"], |n| n.cells("interrupts", &[0, 74]));
    assert!(matches!(
        refuse(tree),
        Error::Property {
            property: "interrupts",
            ..
        }
    ));
}

#[test]
fn an_its_snoops_unless_the_tree_or_the_machine_says_otherwise() {
    let its = |tree: N| read(tree).itss[0].coherency;
    assert_eq!(its(virt(1)), Coherency::Coherent);
    for place in [&["intc@8000000", "its@8080000"][..], &["intc@8000000"]] {
        let told = virt(1).edit(place, |node| node.flag("dma-noncoherent"));
        assert_eq!(its(told), Coherency::NonCoherent, "{place:?}");
    }
    let machine = virt(1).text("compatible", &["radxa,rock-5b", "rockchip,rk3588"]);
    assert_eq!(its(machine), Coherency::NonCoherent);
    let other = virt(1).text("compatible", &["rockchip,rk3399"]);
    assert_eq!(its(other), Coherency::Coherent);
}

#[test]
fn an_smmu_whose_registers_do_not_fit_is_refused_and_thunderx2_has_one_page_of_them() {
    let with = |bytes, broken: bool| {
        let tree = virt(1).edit(&["smmuv3@9050000"], |n| {
            let n = n.cells("reg", &[0, 0x0905_0000, 0, bytes]);
            match broken {
                true => n.flag("cavium,cn9900-broken-page1-regspace"),
                false => n,
            }
        });
        let machine = Machine::from_fdt(&tree.blob()).ok()?;
        Some(machine.smmus[0].pages)
    };
    assert_eq!(with(0x2_0000, false), Some(RegisterPages::Two));
    assert_eq!(with(0x1_0000, true), Some(RegisterPages::One));
    assert_eq!(with(0x2_0000, true), Some(RegisterPages::One));
    assert_eq!(with(0x1_0000, false), None);
    assert_eq!(with(0x1000, true), None);
}

#[test]
fn one_line_of_an_smmu_is_for_all_it_tells() {
    let wires = |names: &[&str]| {
        let lines: Vec<u32> = (0..3).flat_map(|n| [0, 90 + n, 1]).collect();
        let smmu = node("smmuv3@a050000")
            .cells("#iommu-cells", &[1])
            .text("interrupt-names", names)
            .cells("interrupts", &lines[..names.len() * 3])
            .cells("reg", &[0, 0x0a05_0000, 0, 0x2_0000])
            .text("compatible", &["arm,smmu-v3"]);
        let wires = read(virt(1).child(smmu)).smmus[1].interrupts;
        [wires.of_events(), wires.of_errors()].map(|wire| wire.map(|wire| wire.number))
    };
    assert_eq!(wires(&["eventq", "gerror"]), [Some(122), Some(123)]);
    assert_eq!(wires(&["gerror"]), [None, Some(122)]);
    assert_eq!(wires(&["priq"]), [None, None]);
    assert_eq!(wires(&["combined"]), [Some(122); 2]);
    // As Linux takes it: nobody wires the others then.
    assert_eq!(wires(&["eventq", "gerror", "combined"]), [Some(124); 2]);
}

#[test]
fn several_smmus_serve_parts_of_one_bridge_and_platform_masters() {
    let second = node("smmuv3@a050000")
        .cells("phandle", &[0x7000])
        .cells("#iommu-cells", &[1])
        .text("interrupt-names", &["combined"])
        .cells("interrupts", &[0, 90, 4])
        .cells("reg", &[0, 0x0a05_0000, 0, 0x2_0000])
        .text("compatible", &["arm,smmu-v3"]);
    let master = node("dma@b000000").cells("iommus", &[0x7000, 0x55, SMMU, 0x56]);
    let machine = read(
        virt(1)
            .child(second)
            .child(master)
            .edit(&["pcie@10000000"], |n| {
                n.cells(
                    "iommu-map",
                    &[0, SMMU, 0, 0x100, 0x100, 0x7000, 0x400, 0x100],
                )
            }),
    );
    assert_eq!(machine.smmus[1].coherency, Coherency::NonCoherent);
    assert_eq!(machine.smmus[1].interrupts.combined.unwrap().number, 122);
    let of = |bits| {
        machine
            .iommu_of(0, Bdf::from_bits(bits))
            .map(|(i, s)| (i, s.bits()))
    };
    assert_eq!(of(0xff), Some((0, 0xff)));
    assert_eq!(of(0x101), Some((1, 0x401)));
    assert_eq!(of(0x200), None);
    let masters: Vec<_> = machine
        .masters
        .iter()
        .map(|m| (m.smmu, m.stream.bits()))
        .collect();
    assert_eq!(masters, vec![(1, 0x55), (0, 0x56)]);
}

#[test]
fn a_master_behind_an_iommu_that_is_not_there_is_noted() {
    let machine = read(virt(1).child(node("dma").cells("iommus", &[0x1234, 0])));
    assert_eq!(machine.masters, []);
    assert_eq!(
        machine.notes[0].to_string(),
        "/dma: behind an IOMMU that is not supported"
    );
}

#[test]
fn the_report_of_a_virt_machine() {
    let machine = read(virt(2));
    let expected = "\
machine: linux,dummy-virt (linux,dummy-virt)
memory: 0x40000000-0x7fffffff, 1 GiB
initrd: 0x48000000-0x48123455, 1193046 bytes
command line: log=info
cpus: 2 arm,cortex-a57, started by PSCI: 0x0 0x1
psci: 1.0 or later by SMC
timer: CNTP 30 (level), CNTV 27 (level), CNTHP 26 (level), CNTHV 28 (level)
gic: GICv3, distributor 0x8000000-0x800ffff, maintenance interrupt 25 (level)
gic: redistributors 0x80a0000-0x8ffffff, stride -
its 0: 0x8080000-0x809ffff, coherent
smmu 0: 0x9050000-0x906ffff, table walks coherent
smmu 0: interrupts eventq 106 (edge), gerror 109 (edge), cmdq-sync 108 (edge), priq 107 (edge)
pci 0000: ECAM 0x4010000000-0x401fffffff, buses 00-ff, coherent
pci 0000: I/O 0x3eff0000-0x3effffff, 64 KiB, on the bus at 0x0
pci 0000: 32-bit memory 0x10000000-0x3efeffff, 769984 KiB
pci 0000: 64-bit memory 0x8000000000-0xffffffffff, 512 GiB
pci 0000: requesters 0x0000+0x10000 are stream 0x0+ of smmu 0
pci 0000: requesters 0x0000+0x10000 are device 0x0+ of its 0
uart 0: PL011 at 0x9000000-0x9000fff, interrupt 33 (level), console
rtc: PL031 at 0x9010000-0x9010fff
";
    assert_eq!(machine.to_string(), expected);
}
