//! What a function says that cannot be true.

use core::fmt;

use types::Bdf;

use crate::capability::{CapabilityId, InBar};
use crate::function::LeftOn;

/// Something a function's configuration space says that cannot be true, or does not do.
///
/// A defect never stops the scan: the part it concerns is left out, the rest is used. Whoever
/// assigns devices decides whether a function with defects may go to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The header's type (bits 6:0) is none this crate reads; it has no BARs and no capabilities.
    UnknownHeader {
        /// The type.
        kind: u8,
    },
    /// A capability pointer leads to no capability.
    CapabilityPointer {
        /// Where it leads.
        at: u16,
    },
    /// A capability list comes back to where it was.
    CapabilityLoop {
        /// The structure seen twice.
        at: u16,
    },
    /// A structure does not end before the space does; it is ignored.
    CapabilityTruncated {
        /// Which structure.
        id: CapabilityId,
        /// Where it starts.
        at: u16,
    },
    /// A second structure of a kind that exists once; the later one counts.
    CapabilityTwice {
        /// Which structure.
        id: CapabilityId,
        /// Where the second one starts.
        at: u16,
    },
    /// The bits a BAR implements are not the upper ones without a gap: it has no size.
    BarMask {
        /// Which BAR.
        bar: u8,
        /// What was read back after writing ones.
        mask: u64,
    },
    /// A memory BAR of a reserved type.
    BarType {
        /// Which BAR.
        bar: u8,
        /// The low four bits.
        bits: u8,
    },
    /// A 64-bit BAR in the last slot, where it has no upper half.
    BarWithoutUpperHalf {
        /// Which BAR.
        bar: u8,
    },
    /// A BAR does not hold the address written to it.
    BarDoesNotHold {
        /// Which BAR.
        bar: u8,
    },
    /// The MSI-X table or pending bits do not lie in a memory BAR of the function; MSI-X is
    /// ignored.
    MsixOutsideBar {
        /// Where it claims to be.
        place: InBar,
    },
    /// The function goes on mastering the bus when told not to.
    BusMasterStuck,
    /// Something the function was left with goes on when told not to.
    StaysOn(LeftOn),
    /// The function goes on decoding addresses when told not to; its BARs are not sized.
    DecodeStuck,
    /// A bridge does not hold the bus numbers written to it; nothing below it is looked at.
    BusNumbersDoNotHold,
    /// Writing this bridge's bus numbers changed those of a bridge above it: they are one bridge
    /// seen twice, and nothing below is looked at.
    BridgeLoop {
        /// The bridge above.
        with: Bdf,
    },
    /// No bus number is left for a bridge; nothing below it is looked at.
    NoBusNumber,
    /// A bridge lies below too many others; nothing below it is looked at.
    TooDeep,
    /// A bridge does not hold the windows written to it; what lies below is not placed.
    WindowsDoNotHold,
    /// The isolation bits that were switched on did not stay on.
    AcsDoesNotHold {
        /// Those that are off.
        missing: u16,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownHeader { kind } => write!(f, "header type {kind:#x} is unknown"),
            Self::CapabilityPointer { at } => write!(f, "no capability at {at:#x}"),
            Self::CapabilityLoop { at } => write!(f, "capability list loops at {at:#x}"),
            Self::CapabilityTruncated { id, at } => write!(f, "{id} at {at:#x} is cut off"),
            Self::CapabilityTwice { id, at } => write!(f, "a second {id} at {at:#x}"),
            Self::BarMask { bar, mask } => write!(f, "BAR{bar} has no size (mask {mask:#x})"),
            Self::BarType { bar, bits } => write!(f, "BAR{bar} is of reserved type {bits:#x}"),
            Self::BarWithoutUpperHalf { bar } => write!(f, "BAR{bar} has no upper half"),
            Self::BarDoesNotHold { bar } => write!(f, "BAR{bar} does not hold its address"),
            Self::MsixOutsideBar { place } => write!(
                f,
                "MSI-X claims BAR{} offset {:#x}, which is not there",
                place.bar, place.offset
            ),
            Self::BusMasterStuck => f.write_str("bus mastering cannot be switched off"),
            Self::StaysOn(what) => write!(f, "{what} cannot be switched off"),
            Self::DecodeStuck => f.write_str("decoding cannot be switched off"),
            Self::BusNumbersDoNotHold => f.write_str("bridge does not hold its bus numbers"),
            Self::BridgeLoop { with } => write!(f, "is the bridge {with} again"),
            Self::NoBusNumber => f.write_str("no bus number left for this bridge"),
            Self::TooDeep => f.write_str("bridges nested too deep"),
            Self::WindowsDoNotHold => f.write_str("bridge does not hold its windows"),
            Self::AcsDoesNotHold { missing } => write!(f, "ACS bits {missing:#x} do not follow"),
        }
    }
}
