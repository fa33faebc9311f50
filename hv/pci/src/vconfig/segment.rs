//! The PCI segment of one guest: its functions at the addresses it finds them at.

use alloc::vec::Vec;

use types::Bdf;

use crate::config::ConfigSpace;
use crate::function::BridgeBuses;
use crate::host::BusRange;
use crate::topology::swizzle;

use super::effects::Effects;
use super::function::{Siblings, VirtualFunction, Width, is_access};
use super::synthetic::Synthetic;

/// Why something cannot be put into a guest's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeatError {
    /// Something is there already.
    #[error("{0} is taken")]
    Taken(Bdf),
    /// No bus of that number: it is beyond the segment, or no root port leads to it.
    #[error("{0} is on a bus that nothing leads to")]
    NoBus(Bdf),
    /// Below a port there is one device, number 0.
    #[error("{0} is below a port, where only device 0 exists")]
    NotDeviceZero(Bdf),
    /// A port sits on the root bus.
    #[error("port {0} is not on the root bus")]
    PortOffRoot(Bdf),
    /// Another port has that bus, or it is the root bus.
    #[error("port {port} cannot have bus {bus:02x}")]
    BusTaken {
        /// The port.
        port: Bdf,
        /// The bus below it.
        bus: u8,
    },
}

/// What a guest's write concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// One function it was given.
    Function(Bdf, Effects),
    /// All functions below this port; what became of each is asked of the segment.
    Below(Bdf, Effects),
}

#[derive(Clone, Debug)]
enum Kind {
    HostBridge(Synthetic),
    Port { registers: Synthetic, bus: u8 },
    Function(VirtualFunction),
}

/// A guest's PCI segment: a host bridge, root ports, and the functions the guest was given.
///
/// Bus numbers of ports are fixed: a guest's requester IDs are known before it runs, because its
/// firmware tables name them. Everything that is not there reads as all ones.
#[derive(Clone, Debug)]
pub struct GuestSegment {
    buses: BusRange,
    /// Ascending by address.
    slots: Vec<(Bdf, Kind)>,
}

impl GuestSegment {
    /// A segment with a host bridge at device 0 of its first bus, and nothing else.
    #[must_use]
    pub fn new(buses: BusRange) -> Self {
        let bdf = Bdf::from_bits(u16::from(buses.first()) << 8);
        Self {
            buses,
            slots: Vec::from([(bdf, Kind::HostBridge(Synthetic::host_bridge()))]),
        }
    }

    fn position(&self, bdf: Bdf) -> Result<usize, usize> {
        self.slots.binary_search_by_key(&bdf, |&(at, _)| at)
    }

    fn insert(&mut self, bdf: Bdf, kind: Kind) -> Result<(), SeatError> {
        match self.position(bdf) {
            Ok(_) => Err(SeatError::Taken(bdf)),
            Err(place) => {
                self.slots.insert(place, (bdf, kind));
                Ok(())
            }
        }
    }

    /// The port that leads to a bus.
    fn port(&self, bus: u8) -> Option<(Bdf, &Synthetic)> {
        self.slots.iter().find_map(|(bdf, kind)| match kind {
            Kind::Port { registers, bus: to } if *to == bus => Some((*bdf, registers)),
            _ => None,
        })
    }

    /// Puts a root port on the first bus, with one bus below it.
    ///
    /// # Errors
    /// [`SeatError`], with the segment unchanged.
    pub fn add_port(&mut self, bdf: Bdf, siblings: Siblings, bus: u8) -> Result<(), SeatError> {
        if bdf.bus() != self.buses.first() {
            return Err(SeatError::PortOffRoot(bdf));
        }
        let below = bus > self.buses.first() && self.buses.contains(bus);
        if !below || self.port(bus).is_some() {
            return Err(SeatError::BusTaken { port: bdf, bus });
        }
        let buses = BridgeBuses {
            secondary: bus,
            subordinate: bus,
        };
        let registers = Synthetic::root_port(siblings, bdf.bus(), buses);
        self.insert(bdf, Kind::Port { registers, bus })
    }

    /// Puts a function on the first bus or below a port.
    ///
    /// # Errors
    /// [`SeatError`], with the segment unchanged.
    pub fn add(&mut self, bdf: Bdf, function: VirtualFunction) -> Result<(), SeatError> {
        if bdf.bus() != self.buses.first() {
            if self.port(bdf.bus()).is_none() {
                return Err(SeatError::NoBus(bdf));
            }
            if bdf.device() != 0 {
                return Err(SeatError::NotDeviceZero(bdf));
            }
        }
        self.insert(bdf, Kind::Function(function))
    }

    /// Takes a function away.
    pub fn remove(&mut self, bdf: Bdf) -> Option<VirtualFunction> {
        let place = self.position(bdf).ok()?;
        match self.slots.get(place) {
            Some((_, Kind::Function(_))) => match self.slots.remove(place) {
                (_, Kind::Function(function)) => Some(function),
                _ => None,
            },
            _ => None,
        }
    }

    /// A function the guest was given.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<&VirtualFunction> {
        match self.slots.get(self.position(bdf).ok()?) {
            Some((_, Kind::Function(function))) => Some(function),
            _ => None,
        }
    }

    /// As [`GuestSegment::function`], to reset it.
    pub fn function_mut(&mut self, bdf: Bdf) -> Option<&mut VirtualFunction> {
        let place = self.position(bdf).ok()?;
        match self.slots.get_mut(place) {
            Some((_, Kind::Function(function))) => Some(function),
            _ => None,
        }
    }

    /// The functions the guest was given, ascending by address.
    pub fn functions(&self) -> impl Iterator<Item = (Bdf, &VirtualFunction)> {
        self.slots.iter().filter_map(|(bdf, kind)| match kind {
            Kind::Function(function) => Some((*bdf, function)),
            _ => None,
        })
    }

    /// Which register an offset into the segment's ECAM is; `None` beyond its buses.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<(Bdf, u16)> {
        let [low, high, ..] = offset.to_le_bytes();
        let register = u16::from_le_bytes([low, high & 0xf]);
        let bus = u8::try_from(offset >> 20).ok()?;
        let bus = self.buses.first().checked_add(bus)?;
        let [_, place, devices, ..] = (offset >> 4).to_le_bytes();
        let devfn = u16::from_le_bytes([place, devices]) & 0xff;
        let bdf = Bdf::from_bits(u16::from(bus) << 8 | devfn);
        self.buses.contains(bus).then_some((bdf, register))
    }

    /// What the guest reads.
    #[must_use]
    pub fn read(&self, space: &dyn ConfigSpace, bdf: Bdf, offset: u16, width: Width) -> u32 {
        let ones = match width {
            Width::Byte => 0xff,
            Width::Half => 0xffff,
            Width::Word => u32::MAX,
        };
        if !is_access(offset, width) {
            return ones;
        }
        let slot = self.position(bdf).ok().and_then(|i| self.slots.get(i));
        match slot {
            Some((_, Kind::HostBridge(registers) | Kind::Port { registers, .. })) => {
                registers.read(offset, width)
            }
            Some((_, Kind::Function(function))) => function.read(space, offset, width) & ones,
            None => ones,
        }
    }

    /// Takes a guest's write, and says what it concerns, if anything.
    pub fn write(
        &mut self,
        space: &dyn ConfigSpace,
        bdf: Bdf,
        offset: u16,
        width: Width,
        value: u32,
    ) -> Option<Change> {
        if !is_access(offset, width) {
            return None;
        }
        let place = self.position(bdf).ok()?;
        match self.slots.get_mut(place)? {
            (_, Kind::HostBridge(registers)) => {
                registers.write(offset, width, value);
                None
            }
            (_, Kind::Port { registers, .. }) => {
                let view = |port: &Synthetic| (port.windows(), port.mastering(), port.in_reset());
                let before = view(registers);
                registers.write(offset, width, value);
                let after = view(registers);
                let mut effects = Effects::empty();
                effects.set(Effects::MAPPING, before.0 != after.0);
                effects.set(Effects::MASTERING, before.1 != after.1);
                effects.set(Effects::RESET, !before.2 && after.2);
                (!effects.is_empty()).then_some(Change::Below(bdf, effects))
            }
            (_, Kind::Function(function)) => {
                let effects = function.write(space, offset, width, value);
                (!effects.is_empty()).then_some(Change::Function(bdf, effects))
            }
        }
    }

    /// Where a function's interrupt pin comes out on the first bus: the function there whose pin
    /// it is, and which pin (1 is INTA). `None` when it has no pin.
    #[must_use]
    pub fn root_pin(&self, bdf: Bdf) -> Option<(Bdf, u8)> {
        let pin = self.function(bdf)?.pin()?;
        match self.port(bdf.bus()) {
            Some((port, _)) => Some((port, swizzle(bdf, pin))),
            None => Some((bdf, pin)),
        }
    }

    /// The functions below a port.
    pub fn below(&self, port: Bdf) -> impl Iterator<Item = Bdf> {
        let bus = self.position(port).ok().and_then(|i| self.slots.get(i));
        let bus = bus.and_then(|(_, kind)| match kind {
            Kind::Port { bus, .. } => Some(*bus),
            _ => None,
        });
        let functions = self.functions().map(|(bdf, _)| bdf);
        functions.filter(move |bdf| Some(bdf.bus()) == bus)
    }

    /// Where the guest wants a BAR to appear: its own mapping, if the port above forwards all of
    /// it.
    #[must_use]
    pub fn mapping(&self, bdf: Bdf, index: u8) -> Option<u64> {
        let function = self.function(bdf)?;
        let first = function.mapping(index)?;
        let bar = function.bars().iter().find(|bar| bar.index == index)?;
        let last = first.checked_add(bar.size.checked_sub(1)?)?;
        let forwarded = match self.port(bdf.bus()) {
            None => true,
            Some((_, port)) => {
                let mut windows = port.windows().into_iter().flatten();
                !port.in_reset() && windows.any(|w| w.first <= first && last <= w.last)
            }
        };
        forwarded.then_some(first)
    }

    /// Whether the guest lets a function master the bus, and the port above lets it through.
    #[must_use]
    pub fn mastering(&self, bdf: Bdf) -> bool {
        let above = self.port(bdf.bus());
        let through = above.is_none_or(|(_, port)| port.mastering() && !port.in_reset());
        through && self.function(bdf).is_some_and(VirtualFunction::mastering)
    }
}
