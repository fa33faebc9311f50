//! Enumeration: finds every function below a host bridge and numbers the buses.

use alloc::vec;
use alloc::vec::Vec;

use types::Bdf;

use crate::config::ConfigSpace;
use crate::defect::Defect;
use crate::function::{Bridge, BridgeBuses, Function};
use crate::host::{BusRange, HostBridge};
use crate::probe::{self, Presence};
use crate::regs;
use crate::topology::Topology;

/// Bridges nested deeper than this are not followed. Hardware stays below ten; the bound keeps a
/// device that shows the same bridge at every level from using up all bus numbers.
pub const MAX_DEPTH: usize = 32;

/// What to do with bus numbers that firmware wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusNumbers {
    /// Keep them below each root bus where all of them are consistent; number afresh elsewhere.
    Keep,
    /// Number everything afresh.
    Assign,
}

/// Whether to look for root buses that no bridge leads to and no table names, such as those of
/// QEMU's `pxb-pcie`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraRoots {
    /// Only the first bus of the range is a root bus.
    Ignore,
    /// Probe function 0 of each device of each bus that nothing claims: up to 8,160 reads.
    Probe,
}

/// How [`enumerate`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanPolicy {
    /// Bus numbers of firmware.
    pub buses: BusNumbers,
    /// Root buses beside the first.
    pub extra_roots: ExtraRoots,
    /// Functions described at most; the rest are silenced and counted.
    pub max_functions: usize,
}

impl Default for ScanPolicy {
    fn default() -> Self {
        Self {
            buses: BusNumbers::Keep,
            extra_roots: ExtraRoots::Ignore,
            max_functions: 1024,
        }
    }
}

/// Finds every function below the host bridge, depth first.
///
/// Bus numbers are assigned or kept per root bus. Every function, bridges included, has bus
/// mastering off afterwards, as well as MSI, MSI-X, ATS, PRI, PASID and virtual functions, and its
/// expansion ROM switched off; memory and I/O decoding are as they
/// were found, with the same BAR values. The isolation bits of access control services are
/// switched on where they are offered. A device that lies gets a [`Defect`]; work is bounded by
/// 256 buses, [`MAX_DEPTH`] and the policy's function count whatever the devices say.
#[must_use]
pub fn enumerate(space: &dyn ConfigSpace, host: &HostBridge, policy: ScanPolicy) -> Topology {
    let mut scan = Scan {
        space,
        range: host.buses,
        max_functions: policy.max_functions,
        functions: Vec::new(),
        not_ready: Vec::new(),
        ignored: 0,
    };
    let plans = scan.find_roots(policy);
    let roots: Vec<u8> = plans.iter().map(|plan| plan.bus).collect();
    for (index, plan) in plans.iter().enumerate() {
        let next = roots.get(index.saturating_add(1));
        let limit = next.map_or(host.buses.last(), |next| next.wrapping_sub(1));
        scan.walk(plan.bus, limit, plan.numbers);
    }
    Topology::new(
        host.segment,
        host.buses,
        roots,
        scan.functions,
        scan.not_ready,
        scan.ignored,
    )
}

/// A set of bus numbers.
#[derive(Clone, Copy, Debug, Default)]
struct BusSet([u64; 4]);

impl BusSet {
    fn has(&self, bus: u8) -> bool {
        let word = self.0.get(usize::from(bus >> 6)).copied().unwrap_or(0);
        word >> (bus & 63) & 1 != 0
    }

    fn add(&mut self, bus: u8) {
        if let Some(word) = self.0.get_mut(usize::from(bus >> 6)) {
            *word |= 1_u64.wrapping_shl(u32::from(bus & 63));
        }
    }
}

/// What the three bus number registers of a bridge say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    primary: u8,
    secondary: u8,
    subordinate: u8,
}

impl Numbers {
    fn read(space: &dyn ConfigSpace, bdf: Bdf) -> Self {
        let [primary, secondary, subordinate, _] =
            space.read32(bdf, regs::BUS_NUMBERS).to_le_bytes();
        Self {
            primary,
            secondary,
            subordinate,
        }
    }

    fn write(self, space: &dyn ConfigSpace, bdf: Bdf) {
        let [_, _, _, latency] = space.read32(bdf, regs::BUS_NUMBERS).to_le_bytes();
        let bytes = [self.primary, self.secondary, self.subordinate, latency];
        space.write32(bdf, regs::BUS_NUMBERS, u32::from_le_bytes(bytes));
    }

    /// Whether a bridge on `bus` may keep them: below is above, inside `limit`, and nobody's yet.
    fn consistent(self, bus: u8, limit: u8, taken: &BusSet) -> bool {
        self.primary == bus
            && self.secondary > bus
            && self.secondary <= self.subordinate
            && self.subordinate <= limit
            && (self.secondary..=self.subordinate).all(|bus| !taken.has(bus))
    }

    const NONE: Self = Self {
        primary: 0,
        secondary: 0,
        subordinate: 0,
    };
}

struct RootPlan {
    bus: u8,
    numbers: BusNumbers,
}

/// One bus being looked at.
struct Level {
    bus: u8,
    /// The last bus number that may be used below.
    limit: u8,
    /// The bridge above, as an index into the functions.
    bridge: Option<usize>,
    /// The next place to look at: device in bits 7:3, function in 2:0.
    next: u16,
    /// Places on this bus: 8 or 256.
    places: u16,
}

struct Scan<'a> {
    space: &'a dyn ConfigSpace,
    range: BusRange,
    max_functions: usize,
    functions: Vec<Function>,
    not_ready: Vec<Bdf>,
    ignored: usize,
}

/// The functions present on a bus, among its first `places` places, with their header types.
fn present(
    space: &dyn ConfigSpace,
    bus: u8,
    places: u16,
) -> impl Iterator<Item = (Bdf, u8)> + use<'_> {
    let mut next = 0;
    core::iter::from_fn(move || {
        while next < places {
            let (bdf, kind) = step(space, bus, &mut next);
            if let Ok(header) = kind {
                return Some((bdf, header));
            }
        }
        None
    })
}

/// Looks at one place and moves on: to the next function of a multi-function device, or else to
/// the next device.
fn step(space: &dyn ConfigSpace, bus: u8, next: &mut u16) -> (Bdf, Result<u8, Presence>) {
    let bdf = Bdf::from_bits(u16::from(bus) << 8 | *next & 0xff);
    let next_device = (*next | 7).saturating_add(1);
    let presence = probe::presence(space, bdf);
    if presence != Presence::Present {
        *next = match bdf.function() {
            0 => next_device,
            _ => next.saturating_add(1),
        };
        return (bdf, Err(presence));
    }
    let header = space.read8(bdf, regs::HEADER_TYPE);
    *next = match bdf.function() {
        0 if header & regs::HEADER_MULTIFUNCTION == 0 => next_device,
        _ => next.saturating_add(1),
    };
    (bdf, Ok(header))
}

impl Scan<'_> {
    /// Every root bus and what is to happen with the numbers below it, in ascending order.
    fn find_roots(&self, policy: ScanPolicy) -> Vec<RootPlan> {
        let mut taken = BusSet::default();
        let first = self.range.first();
        let mut plans = vec![self.plan(first, policy.buses, &mut taken)];
        if policy.extra_roots == ExtraRoots::Probe {
            for bus in first.saturating_add(1)..=self.range.last() {
                if first != bus && !taken.has(bus) && self.answers(bus) {
                    plans.push(self.plan(bus, policy.buses, &mut taken));
                }
            }
        }
        plans
    }

    /// Whether function 0 of any device is there.
    fn answers(&self, bus: u8) -> bool {
        (0..32_u16).any(|device| {
            let bdf = Bdf::from_bits(u16::from(bus) << 8 | device << 3);
            probe::presence(self.space, bdf) != Presence::Absent
        })
    }

    /// Decides for one root bus. When its numbers are not kept, what is below it is cut off, so
    /// that a bus that still answers is a root bus.
    fn plan(&self, root: u8, wish: BusNumbers, taken: &mut BusSet) -> RootPlan {
        taken.add(root);
        let mut kept = *taken;
        if wish == BusNumbers::Keep && self.survey(root, &mut kept) {
            *taken = kept;
            return RootPlan {
                bus: root,
                numbers: BusNumbers::Keep,
            };
        }
        self.cut_off(root, 256, taken, &[]);
        RootPlan {
            bus: root,
            numbers: BusNumbers::Assign,
        }
    }

    /// Whether all bus numbers below a root bus are consistent; adds them to `taken`.
    fn survey(&self, root: u8, taken: &mut BusSet) -> bool {
        let mut open = vec![(root, self.range.last())];
        let mut reserved = *taken;
        while let Some((bus, limit)) = open.pop() {
            let mut siblings = *taken;
            for (bdf, header) in present(self.space, bus, 256) {
                if !probe::is_bridge(header) {
                    continue;
                }
                let numbers = Numbers::read(self.space, bdf);
                if !numbers.consistent(bus, limit, &siblings) {
                    return false;
                }
                (numbers.secondary..=numbers.subordinate).for_each(|bus| siblings.add(bus));
                open.push((numbers.secondary, numbers.subordinate));
                taken.add(numbers.secondary);
            }
            // A range below a bridge lies inside the bridge's own, so while descending only the
            // buses that were seen count as taken; afterwards the whole ranges do.
            if bus == root {
                reserved = siblings;
            }
        }
        *taken = reserved;
        true
    }

    /// Takes the bus numbers from every bridge on a bus. A bridge that clings to them keeps them
    /// in `taken`. One that is a bridge of `levels` seen again gets its numbers back.
    fn cut_off(&self, bus: u8, places: u16, taken: &mut BusSet, levels: &[Level]) {
        for (bdf, header) in present(self.space, bus, places) {
            if probe::is_bridge(header) {
                Numbers::NONE.write(self.space, bdf);
                if self.changed(levels).is_some() {
                    self.restore(levels);
                    continue;
                }
                let left = Numbers::read(self.space, bdf);
                if left.secondary > bus {
                    (left.secondary..=left.subordinate).for_each(|bus| taken.add(bus));
                }
            }
        }
    }

    fn walk(&mut self, root: u8, limit: u8, numbers: BusNumbers) {
        let mut levels = vec![Level {
            bus: root,
            limit,
            bridge: None,
            next: 0,
            places: 256,
        }];
        let mut scanned = BusSet::default();
        scanned.add(root);
        // The highest bus number in use.
        let mut highest = root;
        while let Some(level) = levels.last_mut() {
            if level.next >= level.places {
                let done = levels.pop();
                if let Some(index) = done.and_then(|level| level.bridge) {
                    self.close(index, highest, numbers);
                }
                continue;
            }
            let (bdf, found) = step(self.space, level.bus, &mut level.next);
            match found {
                Ok(_) => {}
                Err(Presence::NotReady) => {
                    self.not_ready.push(bdf);
                    continue;
                }
                Err(_) => continue,
            }
            if self.functions.len() >= self.max_functions {
                let _ = probe::quiet(self.space, bdf);
                self.ignored = self.ignored.saturating_add(1);
                continue;
            }
            let parent = level.bridge.and_then(|index| self.functions.get(index));
            let function = probe::function(self.space, bdf, parent.map(|f| f.bdf));
            let index = self.functions.len();
            let heads_a_link = function
                .capabilities
                .express
                .is_some_and(|express| express.port.heads_a_link());
            let bridge = function.bridge().is_some();
            self.functions.push(function);
            if !bridge {
                continue;
            }
            match self.open(index, &levels, highest, numbers, &scanned) {
                Ok((buses, limit)) => {
                    let places = if heads_a_link { 8 } else { 256 };
                    if let Some(bridge) = self.bridge_mut(index) {
                        bridge.buses = Some(buses);
                    }
                    scanned.add(buses.secondary);
                    highest = highest.max(buses.secondary);
                    levels.push(Level {
                        bus: buses.secondary,
                        limit,
                        bridge: Some(index),
                        next: 0,
                        places,
                    });
                    if numbers == BusNumbers::Assign {
                        // Numbers left from before would answer for buses assigned from now on.
                        let mut clinging = BusSet::default();
                        self.cut_off(buses.secondary, places, &mut clinging, &levels);
                    }
                }
                Err(defect) => {
                    if let Defect::BridgeLoop { .. } = defect {
                        self.restore(&levels);
                    } else {
                        Numbers::NONE.write(self.space, bdf);
                    }
                    if let Some(function) = self.functions.get_mut(index) {
                        function.defects.push(defect);
                    }
                }
            }
        }
    }

    fn bridge_mut(&mut self, index: usize) -> Option<&mut Bridge> {
        self.functions.get_mut(index)?.bridge_mut()
    }

    /// Makes the bus below a bridge reachable: its numbers, and the last bus number usable below.
    fn open(
        &self,
        index: usize,
        levels: &[Level],
        highest: u8,
        numbers: BusNumbers,
        scanned: &BusSet,
    ) -> Result<(BridgeBuses, u8), Defect> {
        let (Some(bdf), Some(level)) = (self.functions.get(index).map(|f| f.bdf), levels.last())
        else {
            return Err(Defect::NoBusNumber);
        };
        if levels.len() > MAX_DEPTH {
            return Err(Defect::TooDeep);
        }
        if numbers == BusNumbers::Keep {
            let found = Numbers::read(self.space, bdf);
            if !found.consistent(level.bus, level.limit, scanned) {
                return Err(Defect::BusNumbersDoNotHold);
            }
            let buses = BridgeBuses {
                secondary: found.secondary,
                subordinate: found.subordinate,
            };
            return Ok((buses, found.subordinate));
        }
        let secondary = highest
            .checked_add(1)
            .filter(|&bus| bus <= level.limit)
            .ok_or(Defect::NoBusNumber)?;
        // Until it is known how many buses are below, all that are left lead there.
        let wanted = Numbers {
            primary: level.bus,
            secondary,
            subordinate: level.limit,
        };
        wanted.write(self.space, bdf);
        if let Some(with) = self.changed(levels) {
            return Err(Defect::BridgeLoop { with });
        }
        if Numbers::read(self.space, bdf) != wanted {
            return Err(Defect::BusNumbersDoNotHold);
        }
        let buses = BridgeBuses {
            secondary,
            subordinate: level.limit,
        };
        Ok((buses, level.limit))
    }

    /// The bridges that are being followed, outermost first, with the numbers they were given.
    fn ancestors<'s>(&'s self, levels: &'s [Level]) -> impl Iterator<Item = (Bdf, Numbers)> + 's {
        levels.iter().filter_map(|level| {
            let function = self.functions.get(level.bridge?)?;
            let buses = function.bridge()?.buses?;
            let numbers = Numbers {
                primary: function.bdf.bus(),
                secondary: buses.secondary,
                subordinate: buses.subordinate,
            };
            Some((function.bdf, numbers))
        })
    }

    /// The first bridge being followed that no longer has the numbers it was given.
    fn changed(&self, levels: &[Level]) -> Option<Bdf> {
        let mut ancestors = self.ancestors(levels);
        let changed = ancestors.find(|&(bdf, numbers)| Numbers::read(self.space, bdf) != numbers);
        changed.map(|(bdf, _)| bdf)
    }

    /// Writes the numbers of all bridges being followed again.
    fn restore(&self, levels: &[Level]) {
        for (bdf, numbers) in self.ancestors(levels) {
            numbers.write(self.space, bdf);
        }
    }

    /// Gives a bridge that is done its final subordinate number.
    fn close(&mut self, index: usize, highest: u8, numbers: BusNumbers) {
        let space = self.space;
        let Some(function) = self.functions.get_mut(index) else {
            return;
        };
        let bdf = function.bdf;
        let Some(buses) = function.bridge_mut().and_then(|b| b.buses.as_mut()) else {
            return;
        };
        if numbers == BusNumbers::Assign {
            buses.subordinate = highest;
            let done = Numbers {
                primary: bdf.bus(),
                secondary: buses.secondary,
                subordinate: highest,
            };
            done.write(space, bdf);
            if Numbers::read(space, bdf) != done {
                function.defects.push(Defect::BusNumbersDoNotHold);
            }
        }
    }
}
