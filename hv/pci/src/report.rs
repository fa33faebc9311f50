//! Lines for the boot report: one a fact.

use core::fmt;

use types::{Bdf, StreamId};

use crate::capability::FunctionReset;
use crate::function::{Bar, FoundMastering, Function};
use crate::group::Group;
use crate::place::{Placement, Unplaced};
use crate::topology::Topology;

/// A number of bytes as people say it: `16K`, `1G`; exact, so 1536 is `1536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0.trailing_zeros() {
            _ if self.0 == 0 => (0, ""),
            0..10 => (0, ""),
            10..20 => (10, "K"),
            20..30 => (20, "M"),
            30..40 => (30, "G"),
            _ => (40, "T"),
        };
        write!(f, "{}{unit}", self.0.checked_shr(shift).unwrap_or(0))
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR{} {} {}", self.index, self.kind, Bytes(self.size))?;
        match self.place {
            Some(place) if place.cpu.bits() == place.bus => write!(f, " @{}", place.cpu),
            Some(place) => write!(f, " @{} (bus {:#x})", place.cpu, place.bus),
            None => f.write_str(" not placed"),
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:04x}:{:04x} class {}",
            self.bdf, self.vendor, self.device, self.class
        )?;
        let capabilities = &self.capabilities;
        match (self.class.name(), capabilities.express) {
            (Some("bridge"), Some(express)) => write!(f, " {}", express.port)?,
            (Some(name), _) => write!(f, " {name}")?,
            (None, _) => {}
        }
        if let Some(bridge) = self.bridge() {
            match bridge.buses {
                Some(b) => write!(f, " bus {:02x}-{:02x}", b.secondary, b.subordinate)?,
                None => f.write_str(" bus none")?,
            }
            let windows = [
                ("io", bridge.windows.io),
                ("mem", bridge.windows.memory),
                ("pref", bridge.windows.prefetchable),
            ];
            for (name, window) in windows {
                if let Some(w) = window {
                    write!(f, " {name} {:#x}-{:#x}", w.first, w.last)?;
                }
            }
        }
        for bar in &self.bars {
            write!(f, " {bar}")?;
        }
        if let Some(msix) = capabilities.msix {
            write!(f, " msix {}", msix.vectors)?;
        }
        if let Some(msi) = capabilities.msi {
            write!(f, " msi {}", msi.vectors)?;
        }
        if let (None, None, Some(pin)) = (capabilities.msix, capabilities.msi, self.interrupt_pin) {
            write!(f, " intx {pin}")?;
        }
        if capabilities.function_reset() == FunctionReset::Supported {
            f.write_str(" flr")?;
        }
        let more = [
            ("acs", capabilities.acs.map(|acs| acs.offset)),
            ("ats", capabilities.ats),
            ("pri", capabilities.pri),
            ("pasid", capabilities.pasid),
            ("sriov", capabilities.sriov),
            ("rebar", capabilities.resizable),
        ];
        for (name, there) in more {
            if there.is_some() {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} BAR{} {} {} not placed: {}",
            self.bdf,
            self.bar,
            self.kind,
            Bytes(self.size),
            self.why
        )
    }
}

/// Hands the boot report to `line`, a fact at a time: each function with its group and stream ID,
/// its defects, what was not placed, and why groups are larger than one function.
///
/// `stream` says which stream ID a requester ID has, where there is an IOMMU.
pub fn report(
    topology: &Topology,
    placement: &Placement,
    groups: &[Group],
    stream: &dyn Fn(Bdf) -> Option<StreamId>,
    line: &mut dyn FnMut(fmt::Arguments<'_>),
) {
    let segment = topology.segment();
    let count = topology.functions().len();
    line(format_args!(
        "segment {segment:04x} buses {}: {count} functions in {} groups, {} BARs placed, {} kept, {} not placed",
        topology.buses(),
        groups.len(),
        placement.placed,
        placement.kept,
        placement.unplaced.len(),
    ));
    if count == 0 {
        line(format_args!("segment {segment:04x} has no PCI device"));
    }
    for function in topology.functions() {
        let group = groups.iter().position(|g| g.contains(function.bdf));
        line(format_args!(
            "{function}{}{}",
            After(" group ", group),
            After(" sid ", stream(function.bdf)),
        ));
        if function.found_mastering == FoundMastering::On {
            line(format_args!(
                "{} was mastering the bus: stopped",
                function.bdf
            ));
        }
        for what in &function.left_on {
            line(format_args!(
                "{}: {what} was left on: stopped",
                function.bdf
            ));
        }
        for defect in &function.defects {
            line(format_args!("{} defect: {defect}", function.bdf));
        }
    }
    for unplaced in &placement.unplaced {
        line(format_args!("{unplaced}"));
    }
    for (index, group) in groups.iter().enumerate() {
        for join in &group.why {
            line(format_args!("group {index} joins {join}"));
        }
        for &alias in &group.aliases {
            line(format_args!(
                "group {index} also appears as {alias}{}",
                After(" sid ", stream(alias))
            ));
        }
    }
    for bdf in topology.not_ready() {
        line(format_args!("{bdf} is not ready and was left out"));
    }
    if topology.ignored() != 0 {
        let ignored = topology.ignored();
        line(format_args!(
            "{ignored} more functions were silenced and left out"
        ));
    }
}

/// A value with words before it, or nothing.
struct After<T>(&'static str, Option<T>);

impl<T: fmt::Display> fmt::Display for After<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(value) => write!(f, "{}{value}", self.0),
            None => Ok(()),
        }
    }
}
