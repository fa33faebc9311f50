//! The device tree of a guest, for the `dt` firmware kind.
//!
//! Node and property names are those of the bindings Linux documents; the order of nodes is free.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use dtoolkit::ToPropertyValue;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use types::{Ipa, Span};

use crate::platform::{
    Conduit, DISTRIBUTOR_BYTES, GuestPlatform, ITS_BYTES, PRIMECELL_BYTES, PciHost, Peripheral,
    PlatformError, SMMU_BYTES, Smmu, Spi, WindowKind,
};

mod reserved;

/// The largest device tree Linux maps, in bytes.
pub const MAX_BYTES: usize = 0x20_0000;

/// The handles by which nodes name each other. Devices of reserved mappings count on from
/// [`Handle::FIRST_FREE`].
struct Handle;

impl Handle {
    const GIC: u32 = 1;
    const ITS: u32 = 2;
    const CLOCK: u32 = 3;
    const SMMU: u32 = 4;
    const FIRST_FREE: u32 = 5;
    /// Of further SMMUs: beyond all others.
    const SMMUS: u32 = 0x1_0000;

    fn smmu(place: usize) -> u32 {
        match u32::try_from(place) {
            Ok(0) | Err(_) => Self::SMMU,
            Ok(place) => Self::SMMUS.saturating_add(place),
        }
    }
}

/// Interrupt flags of the GIC binding.
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// A node under construction. Names are ours and valid, so nothing is checked.
struct NodeBuilder(DeviceTreeNode);

impl NodeBuilder {
    fn new(name: impl Into<String>) -> Self {
        Self(DeviceTreeNode::new_unchecked(name))
    }

    fn at(name: &str, base: Ipa) -> Self {
        Self::new(format!("{name}@{base:x}", base = base.bits()))
    }

    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        self.0
            .add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }

    fn flag(self, name: &str) -> Self {
        self.with(name, [0u8; 0])
    }

    /// A list of strings, each with its NUL.
    fn strings(self, name: &str, values: &[&str]) -> Self {
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        self.with(name, bytes)
    }

    /// `reg` with two cells each of address and size.
    fn reg(self, spans: &[(Ipa, u64)]) -> Self {
        let mut value = Vec::new();
        for (base, bytes) in spans {
            value.extend(cells(base.bits()));
            value.extend(cells(*bytes));
        }
        self.with("reg", value)
    }

    fn child(mut self, node: NodeBuilder) -> Self {
        self.0.add_child(node.0);
        self
    }

    fn children(self, nodes: impl IntoIterator<Item = NodeBuilder>) -> Self {
        nodes.into_iter().fold(self, Self::child)
    }
}

/// A 64-bit number as two cells, the high one first.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are split on purpose"
)]
fn cells(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

fn spi(interrupt: Spi, flags: u32) -> [u32; 3] {
    [0, u32::from(interrupt.number()), flags]
}

fn ppi(intid: u8, flags: u32) -> [u32; 3] {
    [1, u32::from(intid.saturating_sub(16)), flags]
}

/// Writes the device tree of a guest whose initrd (if any) is at `initrd`.
///
/// # Errors
/// What [`GuestPlatform::check`] finds.
pub fn build(
    platform: &GuestPlatform,
    initrd: Option<Span<Ipa>>,
) -> Result<Vec<u8>, PlatformError> {
    platform.check()?;
    let mut handles = reserved::Handles::starting_at(Handle::FIRST_FREE);
    let reserved = reserved::Reserved::new(platform, &mut handles);

    let root = NodeBuilder::new("")
        .with("#address-cells", 2u32)
        .with("#size-cells", 2u32)
        .with("compatible", "linux,dummy-virt")
        .with("model", "bulkhead,guest")
        .with("interrupt-parent", Handle::GIC)
        .child(chosen(platform, initrd))
        .children(memory(platform))
        .children(reserved.regions())
        .child(cpus(platform))
        .child(psci(platform))
        .child(timer())
        .children(pmu(platform))
        .child(gic(platform))
        .child(clock())
        .children(platform.uart.map(uart))
        .children(platform.rtc.map(rtc))
        .children(
            platform
                .smmus
                .iter()
                .zip(0..)
                .map(|(of, place)| smmu(of, place)),
        )
        .children(
            platform
                .pci
                .as_ref()
                .map(|host| pci(platform, host).children(reserved.devices())),
        );
    let mut tree = DeviceTree::new();
    tree.root = root.0;
    Ok(tree.to_dtb())
}

/// A device tree that somebody else wrote, with what only the loader knows: in `/chosen` the command line, where the
/// initrd is (or that there is none), and the seeds. The rest is as it was given: what it says of memory and devices is
/// its writer's business, and what it names and the guest does not have aborts. `None`: it cannot be read.
#[must_use]
pub fn given(bytes: &[u8], platform: &GuestPlatform, initrd: Option<Span<Ipa>>) -> Option<Vec<u8>> {
    const OURS: [&str; 5] = [
        "bootargs",
        "linux,initrd-start",
        "linux,initrd-end",
        "kaslr-seed",
        "rng-seed",
    ];
    let mut tree = DeviceTree::from_fdt(&Fdt::new(bytes).ok()?);
    let mut chosen = match tree.root.remove_child("chosen") {
        Some(node) => node,
        None => NodeBuilder::new("chosen").0,
    };
    for name in OURS {
        chosen.remove_property(name);
    }
    for property in chosen_common(platform, initrd).0.properties_mut() {
        chosen.add_property(property.clone());
    }
    tree.root.add_child(chosen);
    Some(tree.to_dtb())
}

/// Writes the device tree of a guest that is told everything by ACPI: `/chosen` alone, because any
/// further node makes Linux ignore ACPI.
pub(crate) fn build_for_acpi(
    platform: &GuestPlatform,
    initrd: Option<Span<Ipa>>,
    efi: &crate::acpi::EfiPointers,
) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let chosen = chosen_common(platform, initrd)
        .with("linux,uefi-system-table", efi.system_table.bits())
        .with("linux,uefi-mmap-start", efi.memory_map.bits())
        .with("linux,uefi-mmap-size", efi.memory_map_bytes)
        .with("linux,uefi-mmap-desc-size", efi.descriptor_bytes)
        .with("linux,uefi-mmap-desc-ver", efi.descriptor_version)
        // 2 is "disabled"; without the property Linux refuses the whole set.
        .with("linux,uefi-secure-boot", 2u32);
    tree.root = NodeBuilder::new("")
        .with("#address-cells", 2u32)
        .with("#size-cells", 2u32)
        .child(chosen)
        .0;
    tree.to_dtb()
}

fn chosen_common(platform: &GuestPlatform, initrd: Option<Span<Ipa>>) -> NodeBuilder {
    let mut node = NodeBuilder::new("chosen").with("bootargs", platform.bootargs.as_str());
    if let Some(initrd) = initrd {
        // Exclusive. An initrd lies in RAM, far below the end of the 64-bit numbers.
        let end = initrd.last().bits().saturating_add(1);
        node = node
            .with("linux,initrd-start", initrd.start().bits())
            .with("linux,initrd-end", end);
    }
    if let Some(seed) = platform.seed {
        node = node
            .with("kaslr-seed", seed.kaslr)
            .with("rng-seed", seed.rng);
    }
    node
}

fn chosen(platform: &GuestPlatform, initrd: Option<Span<Ipa>>) -> NodeBuilder {
    let node = chosen_common(platform, initrd);
    match platform.uart {
        Some(uart) => node.with("stdout-path", format!("/pl011@{:x}", uart.base.bits())),
        None => node,
    }
}

fn memory(platform: &GuestPlatform) -> impl Iterator<Item = NodeBuilder> {
    platform.memory.iter().map(|span| {
        NodeBuilder::at("memory", span.start())
            .with("device_type", "memory")
            .reg(&[(span.start(), span.len().unwrap_or(u64::MAX))])
    })
}

fn cpus(platform: &GuestPlatform) -> NodeBuilder {
    let nodes = platform.cpus.iter().map(|mpidr| {
        NodeBuilder::new(format!("cpu@{:x}", mpidr.bits()))
            .with("device_type", "cpu")
            .with("compatible", "arm,armv8")
            .with("reg", cells(mpidr.bits()))
            .with("enable-method", "psci")
    });
    NodeBuilder::new("cpus")
        .with("#address-cells", 2u32)
        .with("#size-cells", 0u32)
        .children(nodes)
}

fn psci(platform: &GuestPlatform) -> NodeBuilder {
    let method = match platform.conduit {
        Conduit::Hvc => "hvc",
        Conduit::Smc => "smc",
    };
    NodeBuilder::new("psci")
        .strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])
        .with("method", method)
}

/// The generic timer: secure physical, physical, virtual and EL2 physical, in the binding's order.
/// A guest uses the virtual one.
fn timer() -> NodeBuilder {
    let interrupts = [29, 30, 27, 26].map(|intid| ppi(intid, LEVEL_HIGH));
    NodeBuilder::new("timer")
        .with("compatible", "arm,armv8-timer")
        .with("interrupts", interrupts.as_flattened())
        .flag("always-on")
}

fn pmu(platform: &GuestPlatform) -> Option<NodeBuilder> {
    platform.pmu_ppi.map(|intid| {
        NodeBuilder::new("pmu")
            .with("compatible", "arm,armv8-pmuv3")
            .with("interrupts", ppi(intid, LEVEL_HIGH))
    })
}

fn gic(platform: &GuestPlatform) -> NodeBuilder {
    let gic = &platform.gic;
    let redistributors = gic.redistributors;
    let its = gic.its.map(|its| {
        NodeBuilder::at("its", its)
            .with("compatible", "arm,gic-v3-its")
            .flag("msi-controller")
            .with("#msi-cells", 1u32)
            .reg(&[(its, ITS_BYTES)])
            .with("phandle", Handle::ITS)
    });
    NodeBuilder::at("intc", gic.distributor)
        .with("compatible", "arm,gic-v3")
        .with("#interrupt-cells", 3u32)
        .flag("interrupt-controller")
        .with("#address-cells", 2u32)
        .with("#size-cells", 2u32)
        .flag("ranges")
        .with("#redistributor-regions", 1u32)
        .reg(&[
            (gic.distributor, DISTRIBUTOR_BYTES),
            (
                redistributors.start(),
                redistributors.len().unwrap_or(u64::MAX),
            ),
        ])
        .with("phandle", Handle::GIC)
        .children(its)
}

fn clock() -> NodeBuilder {
    NodeBuilder::new("apb-pclk")
        .with("compatible", "fixed-clock")
        .with("#clock-cells", 0u32)
        .with("clock-frequency", 24_000_000u32)
        .with("clock-output-names", "clk24mhz")
        .with("phandle", Handle::CLOCK)
}

fn uart(uart: Peripheral) -> NodeBuilder {
    NodeBuilder::at("pl011", uart.base)
        .strings("compatible", &["arm,pl011", "arm,primecell"])
        .reg(&[(uart.base, PRIMECELL_BYTES)])
        .with("interrupts", spi(uart.interrupt, LEVEL_HIGH))
        .with("clocks", [Handle::CLOCK, Handle::CLOCK])
        .strings("clock-names", &["uartclk", "apb_pclk"])
}

fn rtc(rtc: Peripheral) -> NodeBuilder {
    NodeBuilder::at("pl031", rtc.base)
        .strings("compatible", &["arm,pl031", "arm,primecell"])
        .reg(&[(rtc.base, PRIMECELL_BYTES)])
        .with("interrupts", spi(rtc.interrupt, LEVEL_HIGH))
        .with("clocks", Handle::CLOCK)
        .with("clock-names", "apb_pclk")
}

fn smmu(smmu: &Smmu, place: usize) -> NodeBuilder {
    // With messages a wait has no wire, and there is no page request queue.
    let wires = match smmu.messages {
        Some(_) => vec![("eventq", smmu.event), ("gerror", smmu.gerror)],
        None => vec![
            ("eventq", smmu.event),
            ("priq", smmu.pri),
            ("cmdq-sync", smmu.sync),
            ("gerror", smmu.gerror),
        ],
    };
    let (names, lines): (Vec<&str>, Vec<_>) = wires
        .iter()
        .map(|(name, line)| (*name, spi(*line, EDGE_RISING)))
        .unzip();
    let node = NodeBuilder::at("smmuv3", smmu.base)
        .with("compatible", "arm,smmu-v3")
        .reg(&[(smmu.base, SMMU_BYTES)])
        .with("interrupts", lines.as_flattened())
        .strings("interrupt-names", &names)
        .flag("dma-coherent")
        .with("#iommu-cells", 1u32)
        .with("phandle", Handle::smmu(place));
    match smmu.messages {
        Some(device) => node.with("msi-parent", [Handle::ITS, device.into()]),
        None => node,
    }
}

fn pci(platform: &GuestPlatform, host: &PciHost) -> NodeBuilder {
    // Checked by `GuestPlatform::check`.
    let ecam = host.ecam_span();
    let base = ecam.map_or(host.ecam, Span::start);
    let bytes = ecam.and_then(Span::len).unwrap_or_default();
    let mut ranges = Vec::new();
    for window in &host.windows {
        let space: u32 = match window.kind {
            WindowKind::Io => 0x0100_0000,
            WindowKind::Memory32 => 0x0200_0000,
            WindowKind::Memory64 => 0x0300_0000,
        };
        ranges.push(space);
        ranges.extend(cells(window.bus));
        ranges.extend(cells(window.cpu.bits()));
        ranges.extend(cells(window.bytes));
    }
    let mut node = NodeBuilder::at("pcie", base)
        .with("compatible", "pci-host-ecam-generic")
        .with("device_type", "pci")
        .with("#address-cells", 3u32)
        .with("#size-cells", 2u32)
        .with("linux,pci-domain", 0u32)
        .with(
            "bus-range",
            [u32::from(*host.buses.start()), u32::from(*host.buses.end())],
        )
        .reg(&[(base, bytes)])
        .with("ranges", ranges)
        .with("#interrupt-cells", 1u32)
        // Devices 0 to 3, whatever the function; four further on it is the same again.
        .with("interrupt-map-mask", [0x1800u32, 0, 0, 7])
        .with("interrupt-map", interrupt_map(host))
        .flag("dma-coherent");
    let map: Vec<u32> = platform
        .requesters()
        .into_iter()
        .flat_map(|(first, count, place)| [first, Handle::smmu(place), first, count])
        .collect();
    if !map.is_empty() {
        node = node.with("iommu-map", map);
    }
    if platform.gic.its.is_some() {
        node = node.with("msi-map", [0, Handle::ITS, 0, 0x1_0000]);
    }
    node
}

/// Which interrupt a device's pins raise: for each the device and its pin, the GIC (whose unit addresses
/// have two cells), and the interrupt there.
fn interrupt_map(host: &PciHost) -> Vec<u32> {
    let mut map = Vec::new();
    for device in 0..4_u8 {
        for pin in 1..=4_u8 {
            map.extend([u32::from(device) << 11, 0, 0, pin.into(), Handle::GIC, 0, 0]);
            map.extend(spi(host.pin(device, pin), LEVEL_HIGH));
        }
    }
    map
}

/// One cell list from a number of them.
fn concat(parts: impl IntoIterator<Item = Vec<u32>>) -> Vec<u32> {
    parts.into_iter().fold(vec![], |mut all, part| {
        all.extend(part);
        all
    })
}
