//! What is in the way of giving functions to VMs.

use alloc::vec::Vec;
use core::fmt;

use types::Bdf;

use crate::defect::Defect;
use crate::function::{Function, Header};
use crate::group::{Group, Reason};
use crate::topology::Topology;

/// A VM is to have a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The function.
    pub function: Bdf,
    /// The VM, by a number of the caller's.
    pub vm: u32,
}

/// Why a wish cannot be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no such function.
    NotFound(Bdf),
    /// It is a bridge, or part of the host bridge.
    NotADevice(Bdf),
    /// Two wishes name it.
    Twice(Bdf),
    /// It does not do what it is told, so it cannot be taken back or kept apart.
    Defective {
        /// The function.
        function: Bdf,
        /// What is wrong with it.
        defect: Defect,
    },
    /// One of its memory BARs has no address.
    NotPlaced {
        /// The function.
        function: Bdf,
        /// The BAR's number.
        bar: u8,
    },
    /// It cannot be kept apart from a function that does not go to the same VM.
    Shared {
        /// The function.
        function: Bdf,
        /// The other one.
        with: Bdf,
        /// The VM that wishes for the other one, if any does.
        owner: Option<u32>,
        /// What joined the other one to the group, where it was not the first.
        why: Option<Reason>,
    },
}

/// Everything that is in the way of granting all wishes; nothing when they can be granted.
///
/// A group goes to one VM as a whole, or stays behind as a whole. Its bridges stay with the
/// hypervisor either way.
#[must_use]
pub fn obstacles(topology: &Topology, groups: &[Group], wishes: &[Wish]) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for (index, wish) in wishes.iter().enumerate() {
        let bdf = wish.function;
        let Some(function) = topology.function(bdf) else {
            found.push(Obstacle::NotFound(bdf));
            continue;
        };
        if !is_device(function) {
            found.push(Obstacle::NotADevice(bdf));
            continue;
        }
        if wishes.iter().take(index).any(|other| other.function == bdf) {
            found.push(Obstacle::Twice(bdf));
            continue;
        }
        let dangerous = function.defects.iter().filter(|d| d.is_dangerous());
        found.extend(dangerous.map(|&defect| Obstacle::Defective {
            function: bdf,
            defect,
        }));
        let memory = function.bars.iter().filter(|bar| !bar.kind.is_io());
        let unplaced = memory.filter(|bar| bar.place.is_none());
        found.extend(unplaced.map(|bar| Obstacle::NotPlaced {
            function: bdf,
            bar: bar.index,
        }));
        let group = groups.iter().find(|group| group.contains(bdf));
        found.extend(group.into_iter().flat_map(|group| {
            let others = group.members.iter().filter(move |&&other| other != bdf);
            others.filter_map(move |&with| {
                topology.function(with).filter(|f| is_device(f))?;
                let owner = wishes.iter().find(|other| other.function == with);
                let owner = owner.map(|other| other.vm);
                let why = group.why.iter().find(|join| join.function == with);
                (owner != Some(wish.vm)).then_some(Obstacle::Shared {
                    function: bdf,
                    with,
                    owner,
                    why: why.map(|join| join.why),
                })
            })
        }));
    }
    found
}

/// Whether a function does DMA of its own that somebody has to own.
fn is_device(function: &Function) -> bool {
    !matches!(function.header, Header::Bridge(_)) && function.class.base != 6
}

impl Defect {
    /// Whether the function does not do what it is told, so that it cannot be given away: it may
    /// reach memory when it must not, or answer at addresses of others.
    #[must_use]
    pub const fn is_dangerous(&self) -> bool {
        matches!(
            self,
            Self::UnknownHeader { .. }
                | Self::BarMask { .. }
                | Self::BarType { .. }
                | Self::BarWithoutUpperHalf { .. }
                | Self::BarDoesNotHold { .. }
                | Self::BusMasterStuck
                | Self::StaysOn(_)
                | Self::DecodeStuck
        )
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotFound(bdf) => write!(f, "{bdf}: there is no such function"),
            Self::NotADevice(bdf) => write!(f, "{bdf}: is a bridge"),
            Self::Twice(bdf) => write!(f, "{bdf}: is wished for twice"),
            Self::Defective { function, defect } => write!(f, "{function}: {defect}"),
            Self::NotPlaced { function, bar } => write!(f, "{function}: BAR{bar} is not placed"),
            Self::Shared {
                function,
                with,
                owner,
                why,
            } => {
                write!(f, "{function}: cannot be kept apart from {with}")?;
                match owner {
                    Some(vm) => write!(f, ", which goes to VM {vm}")?,
                    None => f.write_str(", which goes to no VM")?,
                }
                match why {
                    Some(why) => write!(f, " ({why})"),
                    None => Ok(()),
                }
            }
        }
    }
}
