//! The machine as its device tree describes it: one typed description for both architectures.
//!
//! Key types: [`Machine`] and what hangs off it, [`Error`], [`Note`]. The `boot` crate calls
//! [`Machine::from_fdt`] once and everything else reads the result; nothing else reads the
//! machine's device tree. It must not touch hardware: what a register says instead is the driver's
//! to find out.
//!
//! The tree comes from firmware, is read as hostile input all the same, and costs time linear in
//! its size. What decides over isolation (memory, reservations, CPUs, interrupt controller, SMMUs,
//! PCI) must be well-formed or the whole tree is refused. What is absent, except memory, is a fact;
//! what is odd is a [`Note`]. Both are in the report.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bus;
mod cpus;
mod error;
mod flat;
mod interrupts;
mod memory;
mod pci;
mod report;
mod rtas;
mod smmu;
mod tree;
mod uart;

#[cfg(test)]
mod tests;

use alloc::{string::String, vec::Vec};

use types::{Bdf, Pa, Span, StreamId};

pub use cpus::{Conduit, Cpu, CpuStatus, EnableMethod, PowerCpus, Psci, PsciVersion};
pub use error::{Block, Error, Malformed, NodePath, Problem};
pub use flat::{Flattener, Part, parts};
pub use interrupts::{Coherency, GicV3, Interrupt, InterruptController, Its, Timer, Trigger, Xive};
pub use memory::{Chosen, Mapping, Reservation, ReservationSource};
pub use pci::{
    ConfigAccess, Ddw, DmaWindow, HostBridge, IdMap, IdRange, IntxMap, Prefetch, Window, WindowKind,
};
pub use rtas::Rtas;
pub use smmu::{Master, RegisterPages, Smmu, SmmuInterrupts};
pub use tree::{Node, Tree, blob_size};
pub use uart::{Uart, UartKind};

/// The largest device tree that is read, in bytes: twice the largest that QEMU makes.
pub const MAX_BYTES: usize = 4 << 20;
/// The most nodes a device tree may have.
pub const MAX_NODES: usize = 16_384;
/// The most entries of any list that is kept: spans of memory, reservations, CPUs, maps, masters.
/// With [`MAX_BYTES`] and [`MAX_NODES`] it bounds what a hostile tree can cost in time and heap.
pub const MAX_ENTRIES: usize = 4096;
/// The most SMMUs, the most ITSs, and the most host bridges.
pub const MAX_UNITS: usize = 128;
/// The most notes that are kept.
pub const MAX_NOTES: usize = 64;
/// How deep nodes may be nested.
pub const MAX_DEPTH: usize = 32;

/// What a device tree says of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// `model`.
    pub model: Option<String>,
    /// `compatible` of the root, the most specific first.
    pub compatible: Vec<String>,
    /// Memory, sorted and joined. Never empty.
    pub memory: Vec<Span<Pa>>,
    /// What of it is taken: the reservation block and `/reserved-memory`. The tree itself and the
    /// initrd are not in it.
    pub reservations: Vec<Reservation>,
    /// What the boot loader chose.
    pub chosen: Chosen,
    /// CPUs, hardware thread by hardware thread, in the order of the tree.
    pub cpus: Vec<Cpu>,
    /// What POWER's CPUs share; `None` on Arm.
    pub power: Option<PowerCpus>,
    /// Arm's power control by firmware.
    pub psci: Option<Psci>,
    /// The interrupt controller.
    pub interrupt_controller: Option<InterruptController>,
    /// Its translation services, in the order of the tree.
    pub itss: Vec<Its>,
    /// The architected timer.
    pub timer: Option<Timer>,
    /// SMMUs, in the order of the tree.
    pub smmus: Vec<Smmu>,
    /// Bus masters outside PCI that sit behind an SMMU.
    pub masters: Vec<Master>,
    /// PCI host bridges, in the order of the tree.
    pub host_bridges: Vec<HostBridge>,
    /// Serial ports, in the order of the tree.
    pub uarts: Vec<Uart>,
    /// The registers of a PL031, the real-time clock.
    pub clock: Option<Span<Pa>>,
    /// PAPR's run-time services.
    pub rtas: Option<Rtas>,
    /// What is odd.
    pub notes: Vec<Note>,
}

/// Something in the tree that is odd and can be lived with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// Two memory nodes describe the same memory.
    #[error("memory {0} is described twice")]
    MemoryTwice(Span<Pa>),
    /// A reservation of nothing, or outside the address space.
    #[error("reservation of {bytes:#x} bytes at {start:#x} is outside the address space; ignored")]
    ReservationOutside {
        /// Its first address.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// A reservation that leaves the place to the operating system.
    #[error("{0}: reservation without an address; ignored")]
    DynamicReservation(NodePath),
    /// A second interrupt controller for the CPUs.
    #[error("{0}: a second interrupt controller; ignored")]
    SecondController(NodePath),
    /// A device that cannot be driven.
    #[error("{path}: {compatible} is not supported")]
    Unsupported {
        /// The node.
        path: NodePath,
        /// Its first `compatible`.
        compatible: String,
    },
    /// Masters that sit behind an IOMMU that is not supported: they cannot be assigned.
    #[error("{0}: behind an IOMMU that is not supported")]
    UnknownIommu(NodePath),
    /// Devices whose MSIs go to a controller that is not supported.
    #[error("{0}: its MSI controller is not supported")]
    UnknownMsiController(NodePath),
    /// An ECAM region that ends before the last bus.
    #[error("{0}: ECAM is too small for its bus range; the last buses are left out")]
    EcamTooSmall(NodePath),
    /// Two host bridges claim one segment.
    #[error("{path}: segment {segment} is taken")]
    SegmentTwice {
        /// The second bridge.
        path: NodePath,
        /// The segment.
        segment: u16,
    },
    /// A serial port or a clock whose description is malformed.
    #[error("{0}; ignored")]
    Ignored(Error),
    /// There was more to note than is kept.
    #[error("and more that is odd")]
    More,
}

/// Adds a note; the last one there is room for says that there are more.
pub(crate) fn note(notes: &mut Vec<Note>, note: impl FnOnce() -> Note) {
    match MAX_NOTES.saturating_sub(notes.len()) {
        0 => {}
        1 => notes.push(Note::More),
        _ => notes.push(note()),
    }
}

impl Machine {
    /// Reads a device tree. `blob` may be longer than the tree.
    ///
    /// # Errors
    /// A malformed blob, a malformed description of something that decides over isolation, or no
    /// memory.
    pub fn from_fdt(blob: &[u8]) -> Result<Self, Error> {
        let tree = Tree::new(blob)?;
        let root = tree.root();
        let mut machine = Self {
            model: root.string("model")?,
            compatible: memory::strings_of(root, "compatible"),
            chosen: memory::chosen(&tree)?,
            ..Self::default()
        };
        machine.reservations = memory::block_reservations(&tree, &mut machine.notes);
        let mut spans = Vec::new();
        let mut bridges = Vec::new();
        for node in tree.nodes() {
            machine.node(node, &mut spans, &mut bridges)?;
        }
        if spans.is_empty() {
            return Err(Error::NoMemory);
        }
        machine.memory = memory::join(spans, &mut machine.notes);
        machine.host_bridges =
            pci::resolve(bridges, &machine.smmus, &machine.itss, &mut machine.notes);
        for node in tree.nodes() {
            if node.is_available() {
                machine.references(node)?;
            }
        }
        Ok(machine)
    }

    /// The console of a tree, by as little reading as possible: what can be had even when
    /// [`Machine::from_fdt`] fails, so that its error can be printed.
    #[must_use]
    pub fn console(blob: &[u8]) -> Option<UartKind> {
        let tree = Tree::new(blob).ok()?;
        uart::kind(memory::stdout(&tree)?).ok()?
    }

    /// The serial port the tree names as console.
    #[must_use]
    pub fn stdout(&self) -> Option<&Uart> {
        let path = self.chosen.stdout.as_ref()?;
        self.uarts.iter().find(|uart| uart.path == *path)
    }

    /// The host bridge of a segment.
    #[must_use]
    pub fn host_bridge(&self, segment: u16) -> Option<&HostBridge> {
        self.host_bridges
            .iter()
            .find(|bridge| bridge.segment == segment)
    }

    /// The SMMU (index into [`Machine::smmus`]) and the stream of a PCI function; `None` when it
    /// is behind no SMMU, or behind an IOMMU that is not supported.
    #[must_use]
    pub fn iommu_of(&self, segment: u16, requester: Bdf) -> Option<(usize, StreamId)> {
        pci::stream(self.host_bridge(segment)?, requester)
    }

    /// The ITS (index into [`Machine::itss`]) and the DeviceID of a PCI function.
    #[must_use]
    pub fn msi_of(&self, segment: u16, requester: Bdf) -> Option<(usize, u32)> {
        self.host_bridge(segment)?.msis.lookup(requester)
    }

    /// What one node adds.
    fn node(
        &mut self,
        node: Node<'_, '_>,
        spans: &mut Vec<Span<Pa>>,
        bridges: &mut Vec<pci::Raw>,
    ) -> Result<(), Error> {
        let parent = node.parent();
        // Only what is directly below /cpus counts; `status` of a CPU is a fact of its own.
        if parent.is_some_and(|parent| {
            parent.is_named("cpus") && parent.parent() == Some(parent.tree().root())
        }) {
            cpus::cpu(node, &mut self.cpus)?;
            if self.power.is_none() {
                self.power = cpus::power(node)?;
            }
        }
        if !node.is_available() {
            return Ok(());
        }
        memory::memory(node, spans)?;
        if parent.is_some_and(|parent| parent.is_named("reserved-memory")) {
            memory::reserved_memory(node, &mut self.reservations, &mut self.notes)?;
        }
        if node.is_named("rtas") && parent == Some(node.tree().root()) {
            self.rtas = Some(rtas::rtas(node)?);
        }
        if let Some(controller) = interrupts::controller(node)? {
            if self.interrupt_controller.is_none() {
                self.interrupt_controller = Some(controller);
            } else {
                note(&mut self.notes, || Note::SecondController(node.path()));
            }
        }
        if !node.has_compatible() {
            return Ok(());
        }
        if self.psci.is_none() {
            self.psci = cpus::psci(node)?;
        }
        if self.timer.is_none() {
            self.timer = interrupts::timer(node)?;
        }
        self.itss.extend(interrupts::its(node)?);
        self.smmus.extend(smmu::smmu(node)?);
        if smmu::is_foreign_iommu(node) {
            note(&mut self.notes, || smmu::unsupported(node));
        }
        if [self.itss.len(), self.smmus.len(), bridges.len()]
            .iter()
            .any(|units| *units > MAX_UNITS)
        {
            return Err(node.error("compatible", Problem::TooMany { max: MAX_UNITS }));
        }
        match pci::host_bridge(node, &mut self.notes)? {
            Some(bridge) => bridges.push(bridge),
            None if node.is_device_type("pci")
                && node.has("bus-range")
                && parent.is_none_or(|parent| !parent.is_device_type("pci")) =>
            {
                note(&mut self.notes, || smmu::unsupported(node));
            }
            None => {}
        }
        match uart::uart(node) {
            Ok(uart) if self.uarts.len() < MAX_UNITS => self.uarts.extend(uart),
            Ok(_) => {}
            Err(error) => note(&mut self.notes, || Note::Ignored(error)),
        }
        match uart::clock(node) {
            Ok(clock) => self.clock = self.clock.or(clock),
            Err(error) => note(&mut self.notes, || Note::Ignored(error)),
        }
        Ok(())
    }

    /// What needs every unit to be known.
    fn references(&mut self, node: Node<'_, '_>) -> Result<(), Error> {
        smmu::masters(node, &self.smmus, &mut self.masters, &mut self.notes)?;
        if node.is_compatible("arm,smmu-v3") {
            let parent = node.cells("msi-parent")?.next();
            let its = parent.and_then(|phandle| {
                self.itss
                    .iter()
                    .position(|its| its.phandle == Some(phandle))
            });
            let path = node.path();
            if let Some(smmu) = self.smmus.iter_mut().find(|smmu| smmu.path == path) {
                smmu.msi_parent = its;
            }
        }
        Ok(())
    }
}
