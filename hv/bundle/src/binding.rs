//! The manifest as a flattened device tree: the binding of `docs/manifest.md`.
//!
//! Decoding is strict: every node and property must be known, appear once and hold a legal value.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use dtoolkit::{
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};
use machine::{Node, Tree};
use types::Bdf;

use crate::{
    Console, ConsoleUart, Device, Firmware, GuestDevice, HostDevice, IommuMode, Kernel,
    KernelFormat, MAX_DEVICES, MAX_VMS, Manifest, ManifestError, MsiPolicy, MsiWindow, PeerToPeer,
    Restart, Start, TcePolicy, UnsafeDma, VmConfig,
};

/// The name of the manifest in the archive; it is the first entry.
pub const MANIFEST_NAME: &str = "manifest.dtb";
/// `compatible` of the manifest's root.
pub const COMPATIBLE: &str = "bulkhead,manifest";
/// The version of the binding.
pub const VERSION: u32 = 1;
/// No manifest is larger, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// A blob that is not a manifest. `path` is that of the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// Larger than any manifest.
    #[error("{0} bytes are too many for a manifest")]
    TooLarge(usize),
    /// Not a flattened device tree.
    #[error(transparent)]
    Fdt(#[from] machine::Error),
    /// A device tree of something else.
    #[error("compatible is not \"{COMPATIBLE}\"")]
    Compatible,
    /// A version of the binding that this code does not know.
    #[error("version {0} of the manifest is not known; this is version {VERSION}")]
    Version(u32),
    /// A node the binding does not have.
    #[error("{path}: no such node in the binding")]
    UnknownNode {
        /// The node.
        path: String,
    },
    /// A property the binding does not have.
    #[error("{path}: {property}: no such property in the binding")]
    UnknownProperty {
        /// The node.
        path: String,
        /// The property.
        property: String,
    },
    /// A node or property that is there twice.
    #[error("{path}: {name} is there twice")]
    Twice {
        /// The node that has it.
        path: String,
        /// The name.
        name: String,
    },
    /// A property that must be there.
    #[error("{path}: {property}: missing")]
    Missing {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
    },
    /// A property with a value of the wrong form: length, text, or a word it does not know.
    #[error("{path}: {property}: not a legal value")]
    Value {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
    },
    /// The values do not hold together.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A node being decoded: each property is taken once, what is left over is unknown.
struct Reader<'a> {
    path: String,
    properties: Vec<(String, &'a [u8])>,
}

impl<'a> Reader<'a> {
    fn new(node: Node<'_, 'a>, parent: &str) -> Result<Self, BindingError> {
        let path = match node.name() {
            "" => String::from("/"),
            name => format!("{}/{name}", parent.trim_end_matches('/')),
        };
        let mut properties: Vec<(String, &[u8])> = Vec::new();
        for (name, value) in node.properties() {
            let name = name.to_string();
            // No node of the binding has this many: a hostile one is refused early.
            if properties.len() >= 64 {
                let property = name;
                return Err(BindingError::UnknownProperty { path, property });
            }
            if properties.iter().any(|(taken, _)| *taken == name) {
                return Err(BindingError::Twice { path, name });
            }
            properties.push((name, value));
        }
        Ok(Self { path, properties })
    }

    fn take(&mut self, property: &'static str) -> Option<&'a [u8]> {
        let index = self
            .properties
            .iter()
            .position(|(name, _)| *name == property)?;
        Some(self.properties.swap_remove(index).1)
    }

    fn illegal(&self, property: &'static str) -> BindingError {
        BindingError::Value {
            path: self.path.clone(),
            property,
        }
    }

    fn missing(&self, property: &'static str) -> BindingError {
        BindingError::Missing {
            path: self.path.clone(),
            property,
        }
    }

    /// The cells of a property, or `None` when it is not there.
    fn cells(&mut self, property: &'static str) -> Result<Option<Vec<u32>>, BindingError> {
        let Some(value) = self.take(property) else {
            return Ok(None);
        };
        let (cells, rest) = value.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(self.illegal(property));
        }
        Ok(Some(
            cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect(),
        ))
    }

    fn exactly<const N: usize>(
        &mut self,
        property: &'static str,
    ) -> Result<Option<[u32; N]>, BindingError> {
        self.cells(property)?
            .map(|cells| cells.try_into().map_err(|_| self.illegal(property)))
            .transpose()
    }

    fn u32(&mut self, property: &'static str) -> Result<Option<u32>, BindingError> {
        Ok(self.exactly::<1>(property)?.map(|[number]| number))
    }

    fn u64(&mut self, property: &'static str) -> Result<Option<u64>, BindingError> {
        Ok(self
            .exactly::<2>(property)?
            .map(|[high, low]| wide(high, low)))
    }

    fn text(&mut self, property: &'static str) -> Result<Option<&'a str>, BindingError> {
        let Some(value) = self.take(property) else {
            return Ok(None);
        };
        value
            .split_last()
            .filter(|(end, text)| **end == 0 && !text.contains(&0))
            .and_then(|(_, text)| core::str::from_utf8(text).ok())
            .map(Some)
            .ok_or_else(|| self.illegal(property))
    }

    fn owned(&mut self, property: &'static str) -> Result<Option<String>, BindingError> {
        Ok(self.text(property)?.map(String::from))
    }

    fn word<T>(
        &mut self,
        property: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, BindingError> {
        self.text(property)?
            .map(|word| parse(word).ok_or_else(|| self.illegal(property)))
            .transpose()
    }

    /// A property without a value: whether it is there.
    fn flag(&mut self, property: &'static str) -> Result<Option<()>, BindingError> {
        match self.take(property) {
            None => Ok(None),
            Some([]) => Ok(Some(())),
            Some(_) => Err(self.illegal(property)),
        }
    }

    fn finish(self) -> Result<(), BindingError> {
        match self.properties.into_iter().next() {
            None => Ok(()),
            Some((property, _)) => Err(BindingError::UnknownProperty {
                property,
                path: self.path,
            }),
        }
    }
}

fn wide(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The children of a node by the part of their name before the `@`, each at most `most` times.
fn children<'t, 'a>(
    node: Node<'t, 'a>,
    path: &str,
    known: &[(&str, usize)],
) -> Result<Vec<Node<'t, 'a>>, BindingError> {
    let mut found: Vec<Node<'t, 'a>> = Vec::new();
    for child in node.children() {
        let kind = without_address(child.name());
        let here = || format!("{}/{}", path.trim_end_matches('/'), child.name());
        let Some((_, most)) = known.iter().find(|(name, _)| *name == kind) else {
            return Err(BindingError::UnknownNode { path: here() });
        };
        // Nodes are numbered in order, so that a name that is there twice cannot pass for two.
        let before = found
            .iter()
            .filter(|other| without_address(other.name()) == kind)
            .count();
        let expected = if *most == 1 {
            kind.to_string()
        } else {
            format!("{kind}@{before:x}")
        };
        if before >= *most {
            let (path, name) = (path.to_string(), child.name().to_string());
            return Err(BindingError::Twice { path, name });
        }
        if child.name() != expected {
            return Err(BindingError::UnknownNode { path: here() });
        }
        found.push(child);
    }
    Ok(found)
}

fn without_address(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

impl Manifest {
    /// Decodes a manifest.
    ///
    /// # Errors
    /// [`BindingError`]: not a device tree, not this binding, or values that do not hold.
    pub fn from_fdt(blob: &[u8]) -> Result<Self, BindingError> {
        if blob.len() > MAX_BYTES {
            return Err(BindingError::TooLarge(blob.len()));
        }
        let tree = Tree::new(blob)?;
        if tree.reservations().next().is_some() {
            let path = "/memreserve/".into();
            return Err(BindingError::UnknownNode { path });
        }
        let root = tree.root();
        let mut reader = Reader::new(root, "")?;
        if reader.text("compatible")? != Some(COMPATIBLE) {
            return Err(BindingError::Compatible);
        }
        match reader.u32("version")? {
            Some(VERSION) => {}
            Some(other) => return Err(BindingError::Version(other)),
            None => return Err(reader.missing("version")),
        }
        reader.finish()?;
        // One more than the model allows, so that the model's own error is given.
        let vms = children(root, "/", &[("vm", MAX_VMS.saturating_add(1))])?
            .into_iter()
            .map(vm)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(vms)?)
    }

    /// Encodes the manifest: the same manifest gives the same bytes.
    #[must_use]
    pub fn to_fdt(&self) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let mut root = Writer::new("");
        root.text("compatible", COMPATIBLE);
        root.cells("version", &[VERSION]);
        for (index, vm) in self.vms().iter().enumerate() {
            root.child(write_vm(index, vm));
        }
        tree.root = root.0;
        tree.to_dtb()
    }

    /// The manifest as device tree source, for people.
    #[must_use]
    pub fn to_dts(&self) -> String {
        let blob = self.to_fdt();
        Fdt::new(&blob).map_or_else(|_| String::new(), |fdt| fdt.to_string())
    }
}

fn vm(node: Node<'_, '_>) -> Result<VmConfig, BindingError> {
    let mut at = Reader::new(node, "/")?;
    let path = at.path.clone();
    let name = at.owned("label")?.ok_or_else(|| at.missing("label"))?;
    let memory = at.u64("memory")?.ok_or_else(|| at.missing("memory"))?;
    let start = match (at.text("start")?, at.owned("start-after")?) {
        (None | Some("boot"), None) => Start::Boot,
        (Some("manual"), None) => Start::Manual,
        (None, Some(name)) => Start::After(name),
        _ => return Err(at.illegal("start")),
    };
    let file = at.owned("kernel")?.ok_or_else(|| at.missing("kernel"))?;
    let base = VmConfig::new(&name, memory, &file);
    let msi_window =
        at.exactly::<4>("msi-window")?
            .map(|[start_high, start_low, size_high, size_low]| MsiWindow {
                start: wide(start_high, start_low),
                bytes: wide(size_high, size_low),
            });
    let tce = match (
        at.flag("tce-default-window-only")?,
        at.cells("tce-page-shifts")?,
    ) {
        (Some(()), None) => TcePolicy::DefaultWindow,
        (Some(()), Some(_)) => return Err(at.illegal("tce-page-shifts")),
        (None, shifts) => TcePolicy::Dynamic {
            page_shifts: shifts.unwrap_or_default(),
        },
    };
    let config = VmConfig {
        cpus: at.u32("cpus")?.unwrap_or(base.cpus),
        pin: at.cells("pin")?.unwrap_or_default(),
        time_slice_us: at.u32("time-slice-us")?,
        start,
        restart: at.word("restart", Restart::parse)?.unwrap_or(base.restart),
        kernel: Kernel {
            file,
            format: at
                .word("kernel-format", KernelFormat::parse)?
                .unwrap_or(base.kernel.format),
        },
        initrd: at.owned("initrd")?,
        dtb: at.owned("dtb")?,
        append: at.owned("bootargs")?.unwrap_or_default(),
        firmware: at
            .word("firmware", Firmware::parse)?
            .unwrap_or(base.firmware),
        console: Console {
            uart: at
                .word("console", ConsoleUart::parse)?
                .unwrap_or(base.console.uart),
            serial: at.u32("serial")?,
        },
        iommu: at.word("iommu", IommuMode::parse)?.unwrap_or(base.iommu),
        msi: at.word("msi", MsiPolicy::parse)?.unwrap_or(base.msi),
        msi_window,
        tce,
        unsafe_dma: at
            .word("unsafe-dma", UnsafeDma::parse)?
            .unwrap_or(base.unsafe_dma),
        devices: children(node, &path, &[("device", MAX_DEVICES.saturating_add(1))])?
            .into_iter()
            .map(|child| device(child, &path))
            .collect::<Result<Vec<_>, _>>()?,
        ..base
    };
    at.finish()?;
    Ok(config)
}

fn device(node: Node<'_, '_>, parent: &str) -> Result<Device, BindingError> {
    let mut at = Reader::new(node, parent)?;
    let u16_of =
        |at: &Reader<'_>, property, cell| u16::try_from(cell).map_err(|_| at.illegal(property));
    let host = match (at.exactly::<2>("host-pci")?, at.u64("host-phb")?) {
        (Some([segment, bdf]), None) => HostDevice::Pci {
            segment: u16_of(&at, "host-pci", segment)?,
            bdf: Bdf::from_bits(u16_of(&at, "host-pci", bdf)?),
        },
        (None, Some(buid)) => HostDevice::Phb { buid },
        (None, None) => return Err(at.missing("host-pci")),
        (Some(_), Some(_)) => return Err(at.illegal("host-phb")),
    };
    let guest = match (at.u32("guest-pci")?, at.u32("guest-phb")?) {
        (Some(bdf), None) => Some(GuestDevice::Pci(Bdf::from_bits(u16_of(
            &at,
            "guest-pci",
            bdf,
        )?))),
        (None, Some(number)) => Some(GuestDevice::Phb(u16_of(&at, "guest-phb", number)?)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(at.illegal("guest-phb")),
    };
    let p2p = match at.flag("peer-to-peer")? {
        Some(()) => PeerToPeer::Allowed,
        None => PeerToPeer::Refused,
    };
    let smmu = match at.u32("guest-smmu")? {
        None => 0,
        Some(number) => u8::try_from(number).map_err(|_| at.illegal("guest-smmu"))?,
    };
    if let Some(child) = node.children().next() {
        return Err(BindingError::UnknownNode {
            path: format!("{}/{}", at.path, child.name()),
        });
    }
    at.finish()?;
    Ok(Device {
        host,
        guest,
        p2p,
        smmu,
    })
}

/// A node being written. Names are constants of the binding, so they need no check.
struct Writer(DeviceTreeNode);

impl Writer {
    fn new(name: &str) -> Self {
        Self(DeviceTreeNode::new_unchecked(name))
    }

    fn bytes(&mut self, property: &str, value: Vec<u8>) {
        self.0
            .add_property(DeviceTreeProperty::new_unchecked(property, value));
    }

    fn text(&mut self, property: &str, value: &str) {
        let mut bytes = Vec::from(value);
        bytes.push(0);
        self.bytes(property, bytes);
    }

    fn cells(&mut self, property: &str, cells: &[u32]) {
        let bytes = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(property, bytes);
    }

    fn flag(&mut self, property: &str) {
        self.bytes(property, Vec::new());
    }

    fn u64(&mut self, property: &str, numbers: &[u64]) {
        let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
        self.bytes(property, bytes.collect());
    }

    fn child(&mut self, child: Self) {
        self.0.add_child(child.0);
    }
}

/// Every value is written, defaults too: what a blob means does not change with the defaults.
fn write_vm(index: usize, vm: &VmConfig) -> Writer {
    let mut node = Writer::new(&format!("vm@{index:x}"));
    node.text("label", &vm.name);
    node.u64("memory", &[vm.memory]);
    node.cells("cpus", &[vm.cpus]);
    if !vm.pin.is_empty() {
        node.cells("pin", &vm.pin);
    }
    if let Some(time_slice) = vm.time_slice_us {
        node.cells("time-slice-us", &[time_slice]);
    }
    match &vm.start {
        Start::Boot => node.text("start", "boot"),
        Start::Manual => node.text("start", "manual"),
        Start::After(name) => node.text("start-after", name),
    }
    node.text("restart", vm.restart.word());
    node.text("kernel", &vm.kernel.file);
    node.text("kernel-format", vm.kernel.format.word());
    if let Some(initrd) = &vm.initrd {
        node.text("initrd", initrd);
    }
    if let Some(dtb) = &vm.dtb {
        node.text("dtb", dtb);
    }
    node.text("bootargs", &vm.append);
    node.text("firmware", vm.firmware.word());
    node.text("console", vm.console.uart.word());
    if let Some(serial) = vm.console.serial {
        node.cells("serial", &[serial]);
    }
    node.text("iommu", vm.iommu.word());
    node.text("msi", vm.msi.word());
    if let Some(window) = vm.msi_window {
        node.u64("msi-window", &[window.start, window.bytes]);
    }
    match &vm.tce {
        TcePolicy::DefaultWindow => node.flag("tce-default-window-only"),
        TcePolicy::Dynamic { page_shifts } if page_shifts.is_empty() => {}
        TcePolicy::Dynamic { page_shifts } => node.cells("tce-page-shifts", page_shifts),
    }
    node.text("unsafe-dma", vm.unsafe_dma.word());
    for (index, device) in vm.devices.iter().enumerate() {
        node.child(write_device(index, device));
    }
    node
}

fn write_device(index: usize, device: &Device) -> Writer {
    let mut node = Writer::new(&format!("device@{index:x}"));
    match device.host {
        HostDevice::Pci { segment, bdf } => {
            node.cells("host-pci", &[segment.into(), bdf.bits().into()]);
        }
        HostDevice::Phb { buid } => node.u64("host-phb", &[buid]),
    }
    match device.guest {
        Some(GuestDevice::Pci(bdf)) => node.cells("guest-pci", &[bdf.bits().into()]),
        Some(GuestDevice::Phb(number)) => node.cells("guest-phb", &[number.into()]),
        None => {}
    }
    if device.p2p == PeerToPeer::Allowed {
        node.flag("peer-to-peer");
    }
    if device.smmu > 0 {
        node.cells("guest-smmu", &[device.smmu.into()]);
    }
    node
}
