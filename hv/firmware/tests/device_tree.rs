//! The guest device tree, as source text and as Linux would read it.

use bulkhead_firmware::{
    Conduit, DevicePath, GuestPlatform, Mpidr, PciWindow, PlatformError, Remapping, Rmr, Seed, Spi,
    WindowKind, dt, map,
};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::DeviceTree;
use dtoolkit::{Node, Property};
use types::{Bdf, Ipa, Span};

fn span(start: u64, bytes: u64) -> Span<Ipa> {
    Span::from_len(Ipa::truncated(start), bytes).unwrap()
}

fn source(platform: &GuestPlatform, initrd: Option<Span<Ipa>>) -> String {
    let bytes = dt::build(platform, initrd).unwrap();
    Fdt::new(&bytes).unwrap().to_string()
}

fn tree(platform: &GuestPlatform) -> DeviceTree {
    let bytes = dt::build(platform, None).unwrap();
    DeviceTree::from_fdt(&Fdt::new(&bytes).unwrap())
}

fn with_rmr() -> GuestPlatform {
    let nvme = DevicePath::new(vec![], Bdf::new(0, 1, 0).unwrap());
    let nic = DevicePath::new(vec![Bdf::new(0, 3, 0).unwrap()], Bdf::new(1, 0, 0).unwrap());
    let mut platform = GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci();
    platform.rmrs = vec![Rmr {
        window: span(0x0800_0000, 0x10_0000),
        remapping: Remapping::Denied,
        devices: vec![nvme, nic],
    }];
    platform
}

#[test]
fn a_guest_without_a_console_is_told_of_none() {
    let mut platform = GuestPlatform::virt(1 << 30, 1).unwrap();
    let text = |platform: &GuestPlatform| {
        let bytes = dt::build(platform, None).unwrap();
        Fdt::new(&bytes).unwrap().to_string()
    };
    let with = text(&platform);
    assert!(with.contains("pl011@9000000") && with.contains("stdout-path"));
    platform.uart = None;
    let without = text(&platform);
    assert!(!without.contains("pl011@") && !without.contains("stdout-path"));
    assert!(without.contains("pl031@9010000"), "{without}");
}

#[test]
fn a_tree_that_was_given_keeps_all_but_what_the_loader_knows() {
    let mut platform = GuestPlatform::virt(512 << 20, 1).unwrap();
    platform.bootargs = "theirs".into();
    let bytes = dt::build(&platform, Some(span(0x5000_0000, 4096))).unwrap();
    let mut theirs = DeviceTree::from_fdt(&Fdt::new(&bytes).unwrap());
    theirs
        .root
        .property_mut("model")
        .unwrap()
        .set_value("a machine of their own");
    theirs.root.remove_child("psci").unwrap();
    let theirs = theirs.to_dtb();

    platform.bootargs = "ours".into();
    let read = |initrd| {
        let bytes = dt::given(&theirs, &platform, initrd).unwrap();
        Fdt::new(&bytes).unwrap().to_string()
    };
    let text = read(Some(span(0x4800_0000, 8192)));
    assert!(
        text.contains("a machine of their own") && !text.contains("psci {"),
        "{text}"
    );
    assert!(
        text.contains("bootargs = \"ours\"") && !text.contains("theirs\""),
        "{text}"
    );
    assert!(text.contains("initrd-end = <0x00 0x48002000>"), "{text}");
    assert!(
        text.contains("stdout-path"),
        "what else /chosen has stays: {text}"
    );
    assert_eq!(text.matches("chosen {").count(), 1);
    assert!(
        !read(None).contains("initrd"),
        "no initrd of theirs is left"
    );
}

#[test]
fn what_is_no_tree_is_refused() {
    let platform = GuestPlatform::virt(512 << 20, 1).unwrap();
    let good = dt::build(&platform, None).unwrap();
    for bytes in [&[][..], b"no tree", &good[..good.len() / 2], &good[..39]] {
        assert!(dt::given(bytes, &platform, None).is_none());
    }
    // A byte wrong anywhere in it: read or refused, and never more.
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let _ = dt::given(&bad, &platform, None);
    }
}

#[test]
fn a_guest_without_pci() {
    let mut platform = GuestPlatform::virt(512 << 20, 1).unwrap();
    platform.bootargs = "earlycon=pl011,0x09000000 console=ttyAMA0".into();
    platform.seed = Some(Seed {
        kaslr: 0x0123_4567_89ab_cdef,
        rng: core::array::from_fn(|i| u8::try_from(i).unwrap()),
    });
    platform.pmu_ppi = Some(23);
    insta::assert_snapshot!(source(&platform, Some(span(0x5000_0000, 0x12_3456))));
}

#[test]
fn a_guest_with_pci_smmu_and_reserved_mappings() {
    let mut platform = with_rmr();
    platform.conduit = Conduit::Smc;
    insta::assert_snapshot!(source(&platform, None));
}

fn stage_2_only() -> GuestPlatform {
    GuestPlatform::virt(1 << 30, 2)
        .unwrap()
        .with_virt_pci_and_no_smmu(15)
}

#[test]
fn a_guest_with_pci_and_no_smmu() {
    let platform = stage_2_only();
    assert_eq!(platform.check(), Ok(()));
    insta::assert_snapshot!(source(&platform, None));
}

/// Linux takes the ITS of a PCI function from `msi-map` alone, and the ITS from its compatible
/// string and `msi-controller`.
#[test]
fn msis_go_to_the_its_with_and_without_an_smmu() {
    let smmu = GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci();
    for (platform, streams) in [(smmu, true), (stage_2_only(), false)] {
        let tree = tree(&platform);
        let its = tree.find_node("/intc@8000000/its@8080000").unwrap();
        assert!(its.property("msi-controller").is_some());
        let cells = its.property("#msi-cells").unwrap().value_as::<u32>();
        assert_eq!(cells, Ok(1));
        let handle = its.property("phandle").unwrap().value_as::<u32>().unwrap();
        let reg = its.property("reg").unwrap().value_as::<[u32; 4]>();
        assert_eq!(reg, Ok([0, 0x0808_0000, 0, 0x2_0000]));
        let pcie = tree.find_node("/pcie@4010000000").unwrap();
        let map = pcie.property("msi-map").unwrap().value_as::<[u32; 4]>();
        assert_eq!(map, Ok([0, handle, 0, 0x1_0000]));
        assert!(pcie.property("msi-parent").is_none());
        assert_eq!(pcie.property("iommu-map").is_some(), streams);
        assert_eq!(tree.find_node("/smmuv3@9050000").is_some(), streams);
        // Stage 2 is coherent: the guest's driver must not clean caches for its DMA.
        assert!(pcie.property("dma-coherent").is_some());
    }
}

#[test]
fn each_smmu_has_its_own_node_and_every_requester_is_behind_one() {
    let mut platform = stage_2_only();
    let functions = [(0x10, 'b'), (0x100, 'a'), (0x08, 'b')];
    let functions = functions.map(|(bits, unit)| (Bdf::from_bits(bits), unit));
    platform.add_virt_smmus(functions.into_iter()).unwrap();
    let tree = tree(&platform);
    let node = |name| tree.find_node(name).unwrap();
    let cell = |name, property| node(name).property(property).unwrap().value_as::<u32>();
    let first = cell("/smmuv3@9050000", "phandle").unwrap();
    let second = cell("/smmuv3@9070000", "phandle").unwrap();
    assert_ne!(first, second);
    let wires = |name| {
        node(name)
            .property("interrupts")
            .unwrap()
            .value_as::<[u32; 6]>()
    };
    // Events and errors: a wait has messages.
    let edges = |spi: u32| [0, spi, 1, 0, spi + 3, 1];
    assert_eq!(wires("/smmuv3@9050000"), Ok(edges(74)));
    assert_eq!(wires("/smmuv3@9070000"), Ok(edges(78)));
    // Their own messages: to the ITS, under a DeviceID of each.
    let its = cell("/intc@8000000/its@8080000", "phandle").unwrap();
    let parent = |name| {
        let parent = node(name).property("msi-parent").unwrap();
        parent.value_as::<[u32; 2]>()
    };
    assert_eq!(parent("/smmuv3@9050000"), Ok([its, 0xff00]));
    assert_eq!(parent("/smmuv3@9070000"), Ok([its, 0xff01]));
    let pcie = node("/pcie@4010000000");
    let map = pcie.property("iommu-map").unwrap().value_as::<[u32; 12]>();
    let expected = [
        [0, first, 0, 0x100],
        [0x100, second, 0x100, 1],
        [0x101, first, 0x101, 0xfeff],
    ];
    assert_eq!(map, Ok(expected.concat().try_into().unwrap()));
}

#[test]
fn device_ids_of_smmus_are_nobody_elses() {
    let functions = [(0x10, 'a'), (0x100, 'b')].map(|(bits, unit)| (Bdf::from_bits(bits), unit));
    let mut good = stage_2_only();
    good.add_virt_smmus(functions.into_iter()).unwrap();
    assert_eq!(good.check(), Ok(()));
    let refused = |change: &dyn Fn(&mut GuestPlatform)| {
        let mut platform = good.clone();
        change(&mut platform);
        platform.check()
    };
    let error = Err(PlatformError::SmmuMessages);
    assert_eq!(refused(&|p| p.smmus[1].messages = Some(0xff00)), error);
    assert_eq!(refused(&|p| p.smmus[1].messages = Some(0x0f07)), error);
    assert_eq!(refused(&|p| p.gic.its = None), error);
    assert_eq!(refused(&|p| p.smmus[1].messages = None), Ok(()));
    // With 256 buses every number is a requester's: wires alone.
    let platform = GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci();
    assert_eq!(platform.smmus[0].messages, None);
    let tree = tree(&platform);
    let smmu = tree.find_node("/smmuv3@9050000").unwrap();
    assert!(smmu.property("msi-parent").is_none());
}

#[test]
fn a_guest_has_at_most_eight_smmus_and_functions_are_behind_those() {
    let functions = |count: u16| (0..count).map(|n| (Bdf::from_bits(n << 3), n));
    let mut platform = stage_2_only();
    platform.add_virt_smmus(functions(8)).unwrap();
    assert_eq!(platform.check(), Ok(()));
    let places: Vec<_> = functions(8).map(|(f, _)| platform.smmu_of(f)).collect();
    assert_eq!(places, (0..8).map(Some).collect::<Vec<_>>());
    platform.behind.push((Bdf::from_bits(0x100), 8));
    assert_eq!(platform.check(), Err(PlatformError::Smmus));
    platform.behind = vec![(Bdf::from_bits(8), 1); 2];
    assert_eq!(platform.check(), Err(PlatformError::Smmus));
    let mut platform = stage_2_only();
    let many = platform.add_virt_smmus(functions(9));
    assert_eq!(many, Err(PlatformError::Smmus));
    assert_eq!(stage_2_only().smmu_of(Bdf::from_bits(8)), None);
}

#[test]
fn sixteen_buses_take_sixteen_mebibytes() {
    let tree = tree(&stage_2_only());
    let pcie = tree.find_node("/pcie@4010000000").unwrap();
    let reg = pcie.property("reg").unwrap().value_as::<[u32; 4]>();
    assert_eq!(reg, Ok([0x40, 0x1000_0000, 0, 16 << 20]));
    let buses = pcie.property("bus-range").unwrap().value_as::<[u32; 2]>();
    assert_eq!(buses, Ok([0, 15]));
}

#[test]
fn nothing_is_said_of_what_the_guest_lacks() {
    let mut platform = GuestPlatform::virt(64 << 20, 1).unwrap();
    platform.rtc = None;
    let tree = tree(&platform);
    for absent in [
        "/pl031@9010000",
        "/smmuv3@9050000",
        "/reserved-memory",
        "/pmu",
    ] {
        assert!(tree.find_node(absent).is_none(), "{absent}");
    }
    let chosen = tree.find_node("/chosen").unwrap();
    for absent in ["kaslr-seed", "rng-seed", "linux,initrd-start"] {
        assert!(chosen.property(absent).is_none(), "{absent}");
    }
    let gic = tree.find_node("/intc@8000000").unwrap();
    assert_eq!(gic.children().count(), 0);
}

#[test]
fn vcpus_are_numbered_sixteen_to_a_cluster() {
    let tree = tree(&GuestPlatform::virt(1 << 30, 18).unwrap());
    let cpus = tree.find_node("/cpus").unwrap();
    let names: Vec<_> = cpus.children().map(|cpu| cpu.name().to_owned()).collect();
    assert_eq!(names.len(), 18);
    assert_eq!(names[15..], ["cpu@f", "cpu@100", "cpu@101"]);
    let reg = cpus.child("cpu@101").unwrap();
    let reg = reg.property("reg").unwrap().value_as::<[u32; 2]>();
    assert_eq!(reg, Ok([0, 0x101]));
}

/// Linux 6.12 took the mapping only in this form: three cells of PCI address.
#[test]
fn a_reserved_mapping_is_written_in_the_cells_of_the_parent_bus() {
    let tree = tree(&with_rmr());
    let region = tree.find_node("/reserved-memory/msi@8000000").unwrap();
    let reg = region.property("reg").unwrap().value_as::<[u32; 4]>();
    assert_eq!(reg, Ok([0, 0x0800_0000, 0, 0x10_0000]));

    let devices = [
        "/pcie@4010000000/device@1,0",
        "/pcie@4010000000/pcie@3,0/device@0,0",
    ];
    let mut expected = Vec::new();
    for (device, bdf) in devices.into_iter().zip([0x0008, 0x0100]) {
        let node = tree.find_node(device).unwrap();
        let reg = node.property("reg").unwrap().value_as::<[u32; 5]>();
        assert_eq!(reg, Ok([bdf << 8, 0, 0, 0, 0]));
        assert_eq!(
            node.property("memory-region").unwrap().value(),
            region.property("phandle").unwrap().value()
        );
        let handle = node.property("phandle").unwrap().value_as::<u32>().unwrap();
        expected.extend([handle, 0x0200_0000, 0, 0x0800_0000, 0, 0x10_0000]);
    }
    let addresses = region.property("iommu-addresses").unwrap();
    assert_eq!(addresses.value_as::<Vec<u32>>(), Ok(expected));
}

/// A platform that fails one check, and the error it fails with.
type Damage = (fn(&mut GuestPlatform), PlatformError);

#[test]
fn a_description_that_makes_no_sense_is_refused() {
    let damages: [Damage; 15] = [
        (|p| p.memory.clear(), PlatformError::Memory),
        (
            |p| p.memory.push(span(0x4000_0000, 0x1000)),
            PlatformError::Memory,
        ),
        (
            |p| p.memory = vec![span(0x4000_0800, 0x1000)],
            PlatformError::Memory,
        ),
        (|p| p.cpus.clear(), PlatformError::CpuCount(0)),
        (
            |p| p.cpus = vec![Mpidr::new(1).unwrap(); 2],
            PlatformError::DuplicateMpidr(1),
        ),
        (
            |p| p.cpus.push(Mpidr::new(9).unwrap()),
            PlatformError::Redistributors(3),
        ),
        (|p| p.pmu_ppi = Some(32), PlatformError::NotAPpi(32)),
        (
            |p| p.uart.as_mut().unwrap().base = map::RAM,
            PlatformError::Device(map::RAM),
        ),
        (|p| p.rtc = p.uart, PlatformError::Device(map::UART)),
        (
            #[expect(clippy::reversed_empty_ranges, reason = "that is the damage")]
            |p| p.pci.as_mut().unwrap().buses = 1..=0,
            PlatformError::Ecam,
        ),
        (
            |p| p.pci.as_mut().unwrap().windows[0].bytes = 0,
            PlatformError::Window(map::PCI_WINDOW32),
        ),
        (
            |p| {
                p.pci.as_mut().unwrap().windows.push(PciWindow {
                    kind: WindowKind::Io,
                    cpu: Ipa::truncated(0x3eff_0000),
                    bus: 0,
                    bytes: 0x1_0000,
                });
            },
            PlatformError::Window(Ipa::truncated(0x3eff_0000)),
        ),
        (|p| p.smmus.clear(), PlatformError::RmrWithoutSmmu),
        (
            |p| p.rmrs[0].window = span(0x0800_1000, 0x1_0000),
            PlatformError::Rmr(Ipa::truncated(0x0800_1000)),
        ),
        (|p| p.bootargs.push('\0'), PlatformError::Bootargs),
    ];
    assert_eq!(with_rmr().check(), Ok(()));
    for (damage, expected) in damages {
        let mut platform = with_rmr();
        damage(&mut platform);
        assert_eq!(platform.check(), Err(expected));
        assert_eq!(dt::build(&platform, None), Err(expected));
    }
}

#[test]
fn an_spi_ends_where_the_gic_does() {
    assert_eq!(Spi::new(987).unwrap().intid(), 1019);
    assert!(Spi::new(988).is_err());
}
