//! The shared peripheral interrupts: their state, whom they go to, and in what order.

use alloc::{boxed::Box, vec, vec::Vec};

use crate::{
    Kicks,
    affinity::{Affinity, Topology},
    bank::{AtEnd, Bank, Load, Readback},
    bits::{Bits, bit},
    priority::{PRIORITY_MASK, PrioritySet},
};

mod registers;

pub(crate) use registers::{BitRegister, IIDR_VALUE, gather_edges, identification, spread_edges};

/// The first SPI's INTID.
pub(crate) const FIRST_SPI: u32 = 32;
/// Nobody.
const NO_VCPU: u8 = u8::MAX;
/// `GICD_IROUTER<n>`: what is kept of a write.
const ROUTER_MASK: u64 = 0xff_80ff_ffff;
/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`: any vCPU that takes part.
const ROUTER_ANY: u64 = 1 << 31;

/// Where an SPI that is in no list register waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Nowhere,
    Pending { vcpu: u8, level: u8 },
    Active { vcpu: u8, level: u8 },
}

/// One SPI, apart from the bits in its [`Bank`].
#[derive(Clone, Debug)]
struct Spi {
    router: u64,
    priority: u8,
    /// The priority it had when it became active: the guest's running priority knows it by that.
    active_priority: u8,
    /// The vCPU that `router` names now.
    target: u8,
    /// The vCPU in whose list registers it is, or where it is active.
    owner: u8,
    slot: Slot,
}

/// The SPIs that wait for a place in a vCPU's list registers.
#[derive(Clone, Debug)]
struct Queues {
    pending: PrioritySet,
    active: PrioritySet,
}

/// Whether all that wants a list register of a vCPU gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Everything is in a list register.
    Enough,
    /// Something waits outside. An interrupt that is active must not be pending in a list
    /// register as well then: it would become pending there ahead of more urgent ones outside.
    Tight,
}

/// An SPI taken for a list register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) intid: u32,
    pub(crate) priority: u8,
    pub(crate) load: Load,
    pub(crate) at_end: AtEnd,
}

/// All that vCPUs share.
#[derive(Debug)]
pub(crate) struct Distributor {
    banks: Box<[Bank]>,
    spis: Box<[Spi]>,
    queues: Box<[Queues]>,
    topology: Topology,
    /// `GICD_CTLR.EnableGrp1`.
    enabled: bool,
    /// vCPUs whose `GICR_WAKER.ProcessorSleep` is clear: those that 1-of-N SPIs may go to.
    awake: Kicks,
    a3v: bool,
    /// With a source of LPIs, the bits of an INTID.
    lpi_bits: Option<u32>,
}

impl Distributor {
    pub(crate) fn new(topology: Topology, spis: usize, a3v: bool) -> Self {
        let words = spis.div_ceil(32);
        let queues: Vec<_> = (0..topology.vcpus())
            .map(|_| Queues {
                pending: PrioritySet::new(words),
                active: PrioritySet::new(words),
            })
            .collect();
        let spi = Spi {
            router: 0,
            priority: 0,
            active_priority: 0,
            target: topology.find(Affinity::new(0, 0, 0, 0)).unwrap_or(NO_VCPU),
            owner: NO_VCPU,
            slot: Slot::Nowhere,
        };
        Self {
            banks: vec![Bank::default(); words].into_boxed_slice(),
            spis: vec![spi; spis].into_boxed_slice(),
            queues: queues.into_boxed_slice(),
            topology,
            enabled: false,
            awake: Kicks::NONE,
            a3v,
            lpi_bits: None,
        }
    }

    /// Back to the state at creation, except for the input lines.
    pub(crate) fn reset(&mut self) {
        let lines: Vec<u32> = self.banks.iter().map(|bank| bank.line).collect();
        let lpi_bits = self.lpi_bits;
        *self = Self::new(self.topology.clone(), self.spis.len(), self.a3v);
        self.lpi_bits = lpi_bits;
        for (bank, line) in self.banks.iter_mut().zip(lines) {
            bank.line = line;
        }
    }

    /// There is a source of LPIs; INTIDs have `bits` bits.
    pub(crate) const fn have_lpis(&mut self, bits: u32) {
        self.lpi_bits = Some(bits);
    }

    /// `GICD_CTLR.EnableGrp1`.
    pub(crate) const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The SPI's number, if there is such an SPI.
    pub(crate) fn spi_of(&self, intid: u32) -> Option<u32> {
        let spi = intid.checked_sub(FIRST_SPI)?;
        ((spi as usize) < self.spis.len()).then_some(spi)
    }

    /// The bits of a word of SPIs that exist.
    fn existing(&self, word: u32) -> u32 {
        let first = (word as usize).wrapping_mul(32);
        match self.spis.len().saturating_sub(first) {
            0 => 0,
            count @ 1..32 => bit(u32::try_from(count).unwrap_or(0)).wrapping_sub(1),
            _ => u32::MAX,
        }
    }

    /// Changes the bits `mask` of a word of SPIs, then looks at those again.
    fn change(&mut self, word: u32, mask: u32, change: impl FnOnce(&mut Bank, u32)) -> Kicks {
        let mask = mask & self.existing(word);
        let Some(bank) = self.banks.get_mut(word as usize) else {
            return Kicks::NONE;
        };
        change(bank, mask);
        let mut kicks = Kicks::NONE;
        for index in Bits(mask) {
            kicks = kicks.union(self.requeue(word << 5 | index));
        }
        kicks
    }

    /// Moves an input line up. Returns the vCPUs that have to look.
    pub(crate) fn raise(&mut self, spi: u32) -> Kicks {
        if self.line(spi) {
            return Kicks::NONE;
        }
        self.change(spi >> 5, bit(spi), Bank::raise)
    }

    /// Moves an input line down.
    pub(crate) fn lower(&mut self, spi: u32) -> Kicks {
        if !self.line(spi) {
            return Kicks::NONE;
        }
        self.change(spi >> 5, bit(spi), Bank::lower)
    }

    fn line(&self, spi: u32) -> bool {
        self.banks
            .get((spi >> 5) as usize)
            .is_some_and(|bank| bank.line & bit(spi) != 0)
    }

    /// An edge on an input line that stays low.
    pub(crate) fn pulse(&mut self, spi: u32) -> Kicks {
        self.change(spi >> 5, bit(spi), |bank, mask| {
            bank.latch |= mask & bank.edge;
        })
    }

    /// Puts an SPI where it belongs after any change of its state. Returns the vCPU that has to
    /// look at it: the one in whose list registers it is, or for which it waits newly.
    fn requeue(&mut self, spi: u32) -> Kicks {
        let mask = bit(spi);
        let (Some(bank), Some(state)) = (
            self.banks.get((spi >> 5) as usize),
            self.spis.get_mut(spi as usize),
        ) else {
            return Kicks::NONE;
        };
        if bank.held & mask != 0 {
            return Kicks::of(state.owner.into());
        }
        let slot = if bank.active & mask != 0 {
            if state.owner == NO_VCPU {
                // Made active by a write: it is where it would have been taken.
                state.owner = state.target;
                state.active_priority = state.priority;
            }
            Slot::Active {
                vcpu: state.owner,
                level: state.active_priority >> 3,
            }
        } else {
            state.owner = NO_VCPU;
            if bank.deliverable() & mask == 0 {
                Slot::Nowhere
            } else {
                if state.router & ROUTER_ANY != 0 && !matches!(state.slot, Slot::Pending { .. }) {
                    state.target = any_vcpu(self.awake);
                }
                Slot::Pending {
                    vcpu: state.target,
                    level: state.priority >> 3,
                }
            }
        };
        if slot == state.slot {
            return Kicks::NONE;
        }
        let old = core::mem::replace(&mut state.slot, slot);
        self.leave(old, spi);
        match slot {
            Slot::Nowhere => Kicks::NONE,
            Slot::Pending { vcpu, level } => {
                if let Some(queues) = self.queues.get_mut(usize::from(vcpu)) {
                    queues.pending.insert(level.into(), spi);
                }
                Kicks::of(vcpu.into())
            }
            Slot::Active { vcpu, level } => {
                if let Some(queues) = self.queues.get_mut(usize::from(vcpu)) {
                    queues.active.insert(level.into(), spi);
                }
                Kicks::of(vcpu.into())
            }
        }
    }

    fn leave(&mut self, slot: Slot, spi: u32) {
        match slot {
            Slot::Nowhere => {}
            Slot::Pending { vcpu, level } => {
                if let Some(queues) = self.queues.get_mut(usize::from(vcpu)) {
                    queues.pending.remove(level.into(), spi);
                }
            }
            Slot::Active { vcpu, level } => {
                if let Some(queues) = self.queues.get_mut(usize::from(vcpu)) {
                    queues.active.remove(level.into(), spi);
                }
            }
        }
    }

    /// The most urgent SPI that waits to be signalled to the vCPU: level and number.
    pub(crate) fn first_pending(&self, vcpu: usize) -> Option<(u32, u32)> {
        if !self.enabled {
            return None;
        }
        self.queues.get(vcpu)?.pending.first()
    }

    /// The most urgent SPI that is active on the vCPU and in no list register.
    pub(crate) fn first_active(&self, vcpu: usize) -> Option<(u32, u32)> {
        self.queues.get(vcpu)?.active.first()
    }

    /// How many SPIs wait for list registers of the vCPU.
    pub(crate) fn waiting(&self, vcpu: usize) -> usize {
        self.queues.get(vcpu).map_or(0, |queues| {
            queues.pending.len().saturating_add(queues.active.len())
        })
    }

    /// Takes an SPI from its queue into a list register of the vCPU.
    pub(crate) fn take(&mut self, spi: u32, vcpu: usize, room: Room) -> Option<Taken> {
        let mask = bit(spi);
        let bank = self.banks.get_mut((spi >> 5) as usize)?;
        let state = self.spis.get_mut(spi as usize)?;
        let here = u8::try_from(vcpu).unwrap_or(NO_VCPU);
        if bank.active & mask == 0 {
            state.active_priority = state.priority;
        }
        // Pending and active together only if what becomes pending at the end of the active one
        // then competes as it should.
        let both = bank.active & mask == 0
            || (room == Room::Enough && state.priority == state.active_priority);
        let signalled =
            both && self.enabled && bank.enabled & bank.group1 & mask != 0 && state.target == here;
        let load = bank.load(mask, signalled);
        let at_end = bank.at_end(mask);
        state.owner = here;
        let priority = state.active_priority;
        let old = core::mem::replace(&mut state.slot, Slot::Nowhere);
        self.leave(old, spi);
        Some(Taken {
            intid: spi.wrapping_add(FIRST_SPI),
            priority,
            load,
            at_end,
        })
    }

    /// Takes an SPI back out of a list register.
    pub(crate) fn give_back(&mut self, spi: u32, lr: Readback) -> Kicks {
        let Some(bank) = self.banks.get_mut((spi >> 5) as usize) else {
            return Kicks::NONE;
        };
        bank.fold(bit(spi), lr);
        self.requeue(spi)
    }

    /// The guest ended an interrupt that is in no list register.
    pub(crate) fn deactivate(&mut self, spi: u32) -> Kicks {
        self.change(spi >> 5, bit(spi), Bank::clear_active)
    }

    /// A vCPU's `GICR_WAKER.ProcessorSleep` changed.
    pub(crate) fn set_awake(&mut self, vcpu: usize, awake: bool) -> Kicks {
        let this = Kicks::of(u32::try_from(vcpu).unwrap_or(u32::MAX));
        if awake {
            self.awake = self.awake.union(this);
            return Kicks::NONE;
        }
        self.awake = Kicks::from_bits(self.awake.bits() & !this.bits());
        // What waits for it and may go to any vCPU goes to another one.
        let mut kicks = Kicks::NONE;
        let count = u32::try_from(self.spis.len()).unwrap_or(0);
        for spi in 0..count {
            kicks = kicks.union(self.reroute(spi, vcpu));
        }
        kicks
    }

    /// Chooses another vCPU for a 1-of-N SPI that waits for `vcpu`.
    fn reroute(&mut self, spi: u32, vcpu: usize) -> Kicks {
        let Some(state) = self.spis.get_mut(spi as usize) else {
            return Kicks::NONE;
        };
        let waits =
            matches!(state.slot, Slot::Pending { vcpu: there, .. } if usize::from(there) == vcpu);
        if state.router & ROUTER_ANY == 0 || !waits {
            return Kicks::NONE;
        }
        state.target = any_vcpu(self.awake);
        self.requeue(spi)
    }

    fn set_priority(&mut self, spi: u32, priority: u8) -> Kicks {
        let Some(state) = self.spis.get_mut(spi as usize) else {
            return Kicks::NONE;
        };
        let priority = priority & PRIORITY_MASK;
        if state.priority == priority {
            return Kicks::NONE;
        }
        state.priority = priority;
        self.requeue(spi)
    }

    fn set_router(&mut self, spi: u32, router: u64) -> Kicks {
        let Some(state) = self.spis.get_mut(spi as usize) else {
            return Kicks::NONE;
        };
        state.router = router & ROUTER_MASK;
        state.target = if state.router & ROUTER_ANY != 0 {
            any_vcpu(self.awake)
        } else {
            self.topology
                .find(Affinity::from_mpidr(state.router))
                .unwrap_or(NO_VCPU)
        };
        self.requeue(spi)
    }
}

/// The vCPU for a 1-of-N interrupt: the lowest one that is awake, vCPU 0 if none is.
fn any_vcpu(mut awake: Kicks) -> u8 {
    awake
        .next()
        .and_then(|vcpu| u8::try_from(vcpu).ok())
        .unwrap_or(0)
}
