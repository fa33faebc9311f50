//! What one vCPU has: its private interrupts and its list registers.

use crate::{
    Kicks, LrImage, MAX_LIST_REGISTERS,
    bank::{Bank, Readback},
    bits::{Bits, bit},
    distributor::{Distributor, FIRST_SPI},
    lr::{HCR_EN, HCR_LRENPIE, HCR_NPIE, HCR_TDIR, ListRegister},
    priority::level_of,
};

/// SGIs are edge-triggered for good.
const SGIS: u32 = 0xffff;

/// What was put into a list register.
#[derive(Clone, Copy, Debug, Default)]
struct Shadow {
    intid: u32,
    priority: u8,
    from_latch: bool,
    /// The line of a hardware PPI went along: the list register is all there is of it.
    from_line: bool,
    /// The guest's deactivation deactivates the physical interrupt too.
    hardware: bool,
}

/// The private interrupts and list registers of one vCPU.
#[derive(Debug)]
pub(crate) struct VcpuInterface {
    /// SGIs 0 to 15, PPIs 16 to 31.
    pub(crate) bank: Bank,
    pub(crate) priorities: [u8; 32],
    active_priorities: [u8; 32],
    /// PPIs that stand for the physical PPI of the same number.
    hardware: u32,
    /// Those of `hardware` whose physical interrupt is active on behalf of this vCPU.
    physical_active: u32,
    /// Those of `hardware` whose line was in a list register when it was withdrawn.
    withdrawn: u32,
    /// Those of `hardware` whose physical interrupt is to be deactivated by the arch code.
    deactivate: u32,
    shadows: [Shadow; MAX_LIST_REGISTERS],
    live: usize,
    list_registers: usize,
    /// SPIs wait for a free list register.
    spi_backlog: bool,
    pub(crate) asleep: bool,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
}

/// Where the next interrupt for a list register comes from.
#[derive(Clone, Copy)]
enum Choice {
    Private(u32),
    Spi(u32),
}

impl VcpuInterface {
    pub(crate) fn new(list_registers: usize, hardware: u32) -> Self {
        Self {
            bank: Bank::with_edges(SGIS),
            priorities: [0; 32],
            active_priorities: [0; 32],
            hardware: hardware & !SGIS,
            physical_active: 0,
            withdrawn: 0,
            deactivate: 0,
            shadows: [Shadow::default(); MAX_LIST_REGISTERS],
            live: 0,
            list_registers,
            spi_backlog: false,
            asleep: true,
            propbaser: 0,
            pendbaser: 0,
        }
    }

    /// Back to the state at creation, except for input lines that are not hardware's.
    pub(crate) fn reset(&mut self) {
        let line = self.bank.line & !self.hardware;
        let deactivate = self.deactivate | self.physical_active;
        *self = Self::new(self.list_registers, self.hardware);
        self.bank.line = line;
        self.deactivate = deactivate;
    }

    /// Whether the distributor has a part in taking out and filling the list registers.
    pub(crate) fn needs_spis(&self, image: &LrImage) -> bool {
        self.spi_backlog
            || image.eoi_count() != 0
            || self
                .shadows
                .iter()
                .take(self.live)
                .any(|shadow| shadow.intid >= FIRST_SPI)
    }

    /// Whether any list register is in use.
    pub(crate) const fn is_loaded(&self) -> bool {
        self.live != 0
    }

    /// The PPIs whose physical interrupt is active on behalf of this vCPU.
    pub(crate) const fn physical_active(&self) -> u32 {
        self.physical_active
    }

    /// SGIs arrived. Only those that the guest put into group 1 do: that is the group that
    /// `ICC_SGI1R_EL1` generates.
    pub(crate) const fn receive_sgis(&mut self, sgis: u32) {
        self.bank.latch |= sgis & SGIS & self.bank.group1;
    }

    /// An input line of a PPI went up. Says whether that changes anything.
    pub(crate) const fn raise(&mut self, intid: u32) -> bool {
        let mask = bit(intid);
        let was_high = self.bank.line & mask != 0;
        self.physical_active |= mask & self.hardware;
        self.bank.raise(mask);
        !was_high
    }

    /// An input line of a PPI went down. Says whether that changes anything.
    pub(crate) const fn lower(&mut self, intid: u32) -> bool {
        let mask = bit(intid);
        let was_high = self.bank.line & mask != 0;
        self.bank.lower(mask);
        let withdrawn = mask & self.hardware & self.bank.held;
        self.withdrawn |= withdrawn;
        self.settle(mask);
        was_high || withdrawn != 0
    }

    /// Hardware PPIs of `mask` that ended by other means than the guest's deactivation have their
    /// physical interrupt deactivated.
    pub(crate) const fn settle(&mut self, mask: u32) {
        let busy = self.bank.pending() | self.bank.active | self.bank.held;
        let over = self.physical_active & mask & !busy;
        self.physical_active &= !over;
        self.deactivate |= over;
    }

    /// The guest deactivated a private interrupt that is in no list register.
    pub(crate) const fn deactivate(&mut self, intid: u32) {
        let mask = bit(intid);
        self.bank.clear_active(mask);
        self.settle(mask);
    }

    /// Makes private interrupts active; they keep the priority they have now while they are.
    pub(crate) fn set_active(&mut self, mask: u32) {
        for index in Bits(mask & !self.bank.active & !self.bank.held) {
            if let (Some(to), Some(from)) = (
                self.active_priorities.get_mut(index as usize),
                self.priorities.get(index as usize),
            ) {
                *to = *from;
            }
        }
        self.bank.set_active(mask);
    }

    /// Takes everything out of the list registers, which the arch code read back into `image`.
    pub(crate) fn sync(
        &mut self,
        vcpu: usize,
        image: &mut LrImage,
        mut spis: Option<&mut Distributor>,
    ) -> Kicks {
        let mut kicks = Kicks::NONE;
        for _ in 0..image.eoi_count() {
            kicks = kicks.union(self.end_outside(vcpu, spis.as_deref_mut()));
        }
        let live = self.live;
        for index in 0..live {
            let (Some(shadow), Some(lr)) = (
                self.shadows.get(index).copied(),
                image.registers.get_mut(index),
            ) else {
                break;
            };
            let readback = Readback {
                pending: lr.is_pending(),
                active: lr.is_active(),
                from_latch: shadow.from_latch,
            };
            *lr = ListRegister::INVALID;
            if let Some(spi) = shadow.intid.checked_sub(FIRST_SPI) {
                if let Some(spis) = spis.as_deref_mut() {
                    kicks = kicks.union(spis.give_back(spi, readback));
                }
            } else {
                self.fold_private(shadow, readback);
            }
        }
        self.live = 0;
        image.stale = image.stale.max(image.live);
        image.live = 0;
        image.hcr = HCR_EN;
        kicks
    }

    fn fold_private(&mut self, shadow: Shadow, lr: Readback) {
        let mask = bit(shadow.intid);
        self.bank.fold(mask, lr);
        if let Some(priority) = self.active_priorities.get_mut(shadow.intid as usize) {
            *priority = shadow.priority;
        }
        if self.hardware & mask == 0 {
            return;
        }
        if lr.pending && shadow.from_line && self.withdrawn & mask == 0 {
            self.bank.line |= mask;
        }
        self.withdrawn &= !mask;
        // With the line up the physical interrupt has come again since the guest ended this one.
        let ended = !lr.pending && !lr.active && shadow.hardware;
        if ended && self.bank.line & mask == 0 {
            self.physical_active &= !mask;
        }
        self.settle(mask);
    }

    /// The guest ended the most urgent active interrupt that is in no list register.
    fn end_outside(&mut self, vcpu: usize, spis: Option<&mut Distributor>) -> Kicks {
        let spi = spis.as_deref().and_then(|spis| spis.first_active(vcpu));
        let outside = self.bank.active & !self.bank.held;
        match pick(best(outside, &self.active_priorities), spi) {
            Some((Choice::Private(intid), _)) => {
                self.deactivate(intid);
                Kicks::NONE
            }
            Some((Choice::Spi(spi), _)) => spis.map_or(Kicks::NONE, |spis| spis.deactivate(spi)),
            None => Kicks::NONE,
        }
    }

    /// Fills the list registers, which are empty. Active interrupts come first, because the guest
    /// ends them by number; one list register is kept for the most urgent pending one.
    pub(crate) fn fill(
        &mut self,
        vcpu: usize,
        group1: bool,
        mut spis: Option<&mut Distributor>,
        image: &mut LrImage,
    ) {
        let mut hcr = HCR_EN;
        let mut used = 0_usize;
        let mut active = self.bank.active & !self.bank.held;
        let mut pending = if group1 { self.bank.deliverable() } else { 0 };
        let first_spi = spis.as_deref().and_then(|spis| spis.first_pending(vcpu));
        let first_active = spis.as_deref().and_then(|spis| spis.first_active(vcpu));
        if active != 0 || first_active.is_some() {
            let mut room = self.list_registers;
            if pending != 0 || first_spi.is_some() {
                room = room.saturating_sub(1);
            }
            loop {
                let spi = spis.as_deref().and_then(|spis| spis.first_active(vcpu));
                let Some((choice, _)) = pick(best(active, &self.active_priorities), spi) else {
                    break;
                };
                if used == room {
                    hcr |= HCR_LRENPIE | HCR_TDIR;
                    break;
                }
                if let Choice::Private(intid) = choice {
                    active &= !bit(intid);
                }
                self.put(used, vcpu, group1, choice, spis.as_deref_mut(), image);
                used = used.saturating_add(1);
            }
        }
        loop {
            let spi = spis.as_deref().and_then(|spis| spis.first_pending(vcpu));
            let Some((choice, _)) = pick(best(pending, &self.priorities), spi) else {
                break;
            };
            if used == self.list_registers {
                hcr |= HCR_NPIE;
                break;
            }
            if let Choice::Private(intid) = choice {
                pending &= !bit(intid);
            }
            self.put(used, vcpu, group1, choice, spis.as_deref_mut(), image);
            used = used.saturating_add(1);
        }
        if let Some(spis) = spis {
            self.spi_backlog =
                spis.first_pending(vcpu).is_some() || spis.first_active(vcpu).is_some();
        }
        let live = u8::try_from(used).unwrap_or(0);
        self.live = used;
        image.live = live;
        image.write = image.stale.max(live);
        image.stale = 0;
        image.hcr = hcr;
        image.deactivate = core::mem::take(&mut self.deactivate);
    }

    /// Puts one interrupt into list register `index`.
    fn put(
        &mut self,
        index: usize,
        vcpu: usize,
        group1: bool,
        choice: Choice,
        spis: Option<&mut Distributor>,
        image: &mut LrImage,
    ) {
        let (Some(shadow), Some(lr)) =
            (self.shadows.get_mut(index), image.registers.get_mut(index))
        else {
            return;
        };
        match choice {
            Choice::Spi(spi) => {
                let Some(taken) = spis.and_then(|spis| spis.take(spi, vcpu)) else {
                    return;
                };
                *shadow = Shadow {
                    intid: taken.intid,
                    priority: taken.priority,
                    from_latch: taken.load.from_latch,
                    from_line: false,
                    hardware: false,
                };
                *lr = ListRegister::new(taken.intid, taken.priority, taken.load, None);
            }
            Choice::Private(intid) => {
                let mask = bit(intid);
                let was_active = self.bank.active & mask != 0;
                // Pending and active is not allowed with a physical interrupt behind it.
                let signalled = group1
                    && self.bank.enabled & self.bank.group1 & mask != 0
                    && !(was_active && self.hardware & mask != 0);
                let load = self.bank.load(mask, signalled);
                let priorities = if was_active {
                    &self.active_priorities
                } else {
                    &self.priorities
                };
                let priority = priorities.get(intid as usize).copied().unwrap_or(0);
                // With its line as the reason to be pending, a hardware PPI has nothing more to
                // do when it ends; only a pending state set by software asks for more.
                let again = was_active && self.bank.latch & mask != 0;
                let hardware = self.physical_active & mask != 0 && !again;
                let from_line = load.pending && self.bank.line & self.hardware & mask != 0;
                if from_line {
                    self.bank.lower(mask);
                }
                *shadow = Shadow {
                    intid,
                    priority,
                    from_latch: load.from_latch,
                    from_line,
                    hardware,
                };
                *lr = ListRegister::new(intid, priority, load, hardware.then_some(intid));
            }
        }
    }

    /// The most urgent private interrupt that waits to be signalled: its level.
    pub(crate) fn first_pending(&self, group1: bool) -> Option<u32> {
        if !group1 {
            return None;
        }
        best(self.bank.deliverable(), &self.priorities).map(|(level, _)| level)
    }
}

/// The most urgent of a set of private interrupts; the lowest number among equals.
fn best(set: u32, priorities: &[u8; 32]) -> Option<(u32, u32)> {
    let mut best: Option<(u32, u32)> = None;
    for (index, priority) in Bits(set).filter_map(|i| Some((i, priorities.get(i as usize)?))) {
        let level = level_of(*priority);
        if best.is_none_or(|(least, _)| level < least) {
            best = Some((level, index));
        }
    }
    best
}

/// The more urgent of a private interrupt and an SPI; the private one among equals, since its
/// number is lower.
fn pick(private: Option<(u32, u32)>, spi: Option<(u32, u32)>) -> Option<(Choice, u32)> {
    match (private, spi) {
        (Some((level, intid)), Some((other, _))) if level <= other => {
            Some((Choice::Private(intid), level))
        }
        (_, Some((level, spi))) => Some((Choice::Spi(spi), level)),
        (Some((level, intid)), None) => Some((Choice::Private(intid), level)),
        (None, None) => None,
    }
}
