//! What one vCPU has: its private interrupts and its list registers.

use crate::{
    Kicks, LrImage, MAX_LIST_REGISTERS,
    bank::{AtEnd, Bank, Load, Readback},
    bits::{Bits, bit},
    distributor::{FIRST_SPI, Room},
    lpi::{Lpi, Shared, Sources},
    lr::{End, HCR_EN, HCR_LRENPIE, HCR_NPIE, HCR_TDIR, ListRegister},
    priority::{PRIORITY_MASK, level_of},
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
    /// An SPI is in a list register.
    holds_spis: bool,
    /// The list registers that an LPI was put into: a bit for each.
    lpis: u32,
    /// SPIs wait for a free list register.
    spi_backlog: bool,
    /// LPIs wait for a free list register.
    lpi_backlog: bool,
    pub(crate) asleep: bool,
    /// `GICR_CTLR.EnableLPIs`.
    pub(crate) lpis_enabled: bool,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
}

/// What a fill goes by.
#[derive(Clone, Copy)]
struct Terms {
    /// Group 1 is enabled in the distributor.
    group1: bool,
    room: Room,
}

/// Where the next interrupt for a list register comes from.
#[derive(Clone, Copy)]
enum Choice {
    Private(u32),
    Shared(Shared),
}

/// An interrupt on its way into a list register.
#[derive(Clone, Copy)]
struct Loaded {
    shadow: Shadow,
    load: Load,
    end: End,
}

impl Loaded {
    fn shared(intid: u32, priority: u8, load: Load, at_end: AtEnd) -> Self {
        Self {
            shadow: Shadow {
                intid,
                priority,
                from_latch: load.from_latch,
                from_line: false,
                hardware: false,
            },
            load,
            end: at_end.into(),
        }
    }

    fn lpi(lpi: Lpi) -> Self {
        let load = Load {
            pending: true,
            active: false,
            from_latch: true,
        };
        let priority = lpi.priority & PRIORITY_MASK;
        Self::shared(lpi.intid, priority, load, AtEnd::Nothing)
    }
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
            holds_spis: false,
            lpis: 0,
            spi_backlog: false,
            lpi_backlog: false,
            lpis_enabled: false,
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

    /// PPIs whose kind the guest may choose. Hardware PPIs are level-sensitive, as their physical
    /// ones; for those the choice is the implementation's [IHI 0069 §12.11].
    pub(crate) const fn configurable(&self) -> u32 {
        !(SGIS | self.hardware)
    }

    /// Whether the distributor has a part in taking out and filling the list registers.
    #[inline]
    pub(crate) fn needs_spis(&self, image: &LrImage) -> bool {
        self.spi_backlog || self.holds_spis || image.eoi_count() != 0
    }

    /// Whether the LPI source has.
    #[inline]
    pub(crate) const fn needs_lpis(&self) -> bool {
        self.lpi_backlog || self.lpis != 0
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
    pub(crate) fn sync(&mut self, image: &mut LrImage, sources: &mut Sources<'_>) -> Kicks {
        let mut kicks = Kicks::NONE;
        for _ in 0..image.eoi_count() {
            kicks = kicks.union(self.end_outside(sources));
        }
        for index in 0..self.live {
            let Some((shadow, lr)) = self.take_out(index, image) else {
                break;
            };
            if shadow.intid < FIRST_SPI {
                self.fold_private(shadow, lr);
            } else {
                kicks = kicks.union(sources.give_back(shadow.intid, lr));
            }
        }
        self.unload(image);
        kicks
    }

    /// [`VcpuInterface::sync`] and [`VcpuInterface::fill`] when no list register holds any but
    /// private interrupts and no others wait: what nearly every flush is.
    pub(crate) fn refill_private(&mut self, image: &mut LrImage, group1: bool) {
        for index in 0..self.live {
            let Some((shadow, lr)) = self.take_out(index, image) else {
                break;
            };
            self.fold_private(shadow, lr);
        }
        self.unload(image);
        if self.bank.active == 0 {
            let pending = if group1 { self.bank.deliverable() } else { 0 };
            self.fill_with_private_pending(pending, image);
        } else {
            self.fill(image, &mut Sources::none(group1));
        }
    }

    /// Empties list register `index`: what was put in, and what has become of it.
    #[inline]
    fn take_out(&self, index: usize, image: &mut LrImage) -> Option<(Shadow, Readback)> {
        let shadow = *self.shadows.get(index)?;
        let lr = core::mem::take(image.registers.get_mut(index)?);
        Some((
            shadow,
            Readback {
                pending: lr.is_pending(),
                active: lr.is_active(),
                from_latch: shadow.from_latch,
            },
        ))
    }

    /// The list registers are empty.
    #[inline]
    fn unload(&mut self, image: &mut LrImage) {
        self.live = 0;
        self.holds_spis = false;
        self.lpis = 0;
        image.stale = image.stale.max(image.live);
        image.live = 0;
        image.hcr = HCR_EN;
    }

    #[inline]
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
    fn end_outside(&mut self, sources: &mut Sources<'_>) -> Kicks {
        let outside = self.bank.active & !self.bank.held;
        match pick(
            best(outside, &self.active_priorities),
            sources.first_active(),
        ) {
            Some(Choice::Private(intid)) => {
                self.deactivate(intid);
                Kicks::NONE
            }
            Some(Choice::Shared(Shared::Spi(spi))) => sources.deactivate(spi),
            Some(Choice::Shared(Shared::Lpi(_))) | None => Kicks::NONE,
        }
    }

    /// Fills the list registers, which are empty. Active interrupts come first, because the guest
    /// ends them by number; one list register is kept for the most urgent pending one.
    pub(crate) fn fill(&mut self, image: &mut LrImage, sources: &mut Sources<'_>) {
        let group1 = sources.group1;
        let mut active = self.bank.active & !self.bank.held;
        let mut pending = if group1 { self.bank.deliverable() } else { 0 };
        let shared_active = sources.first_active();
        let shared_pending = sources.first_pending();
        let wanted = ((active | pending).count_ones() as usize).saturating_add(sources.waiting());
        let terms = Terms {
            group1,
            room: if wanted <= self.list_registers {
                Room::Enough
            } else {
                Room::Tight
            },
        };
        let mut hcr = HCR_EN;
        let mut used = 0_usize;
        if active != 0 || shared_active.is_some() {
            let mut limit = self.list_registers;
            if pending != 0 || shared_pending.is_some() {
                limit = limit.saturating_sub(1);
            }
            loop {
                let private = best(active, &self.active_priorities);
                let Some(choice) = pick(private, sources.first_active()) else {
                    break;
                };
                if used >= limit {
                    hcr |= HCR_LRENPIE | HCR_TDIR;
                    break;
                }
                if let Choice::Private(intid) = choice {
                    active &= !bit(intid);
                }
                self.put(used, terms, choice, sources, image);
                used = used.saturating_add(1);
            }
        }
        loop {
            let private = best(pending, &self.priorities);
            let Some(choice) = pick(private, sources.first_pending()) else {
                break;
            };
            if used >= self.list_registers {
                hcr |= HCR_NPIE;
                break;
            }
            if let Choice::Private(intid) = choice {
                pending &= !bit(intid);
            }
            self.put(used, terms, choice, sources, image);
            used = used.saturating_add(1);
        }
        if sources.spis.is_some() {
            self.spi_backlog = sources.has_spi();
        }
        if sources.lpis.is_some() {
            self.lpi_backlog = sources.has_lpi();
        }
        self.finish(used, hcr, image);
    }

    /// [`VcpuInterface::fill`] when nothing is active and nothing but private interrupts waits.
    #[inline]
    fn fill_with_private_pending(&mut self, pending: u32, image: &mut LrImage) {
        let terms = Terms {
            group1: true,
            room: Room::Enough,
        };
        let mut left = pending;
        let mut used = 0_usize;
        let mut hcr = HCR_EN;
        while left != 0 {
            if used >= self.list_registers {
                hcr |= HCR_NPIE;
                break;
            }
            let intid = if left.is_power_of_two() {
                left.trailing_zeros()
            } else {
                best(left, &self.priorities).map_or(0, |(_, intid)| intid)
            };
            left &= !bit(intid);
            let loaded = self.take_private(intid, terms);
            self.place(used, &loaded, image);
            used = used.saturating_add(1);
        }
        self.finish(used, hcr, image);
    }

    #[inline]
    fn finish(&mut self, used: usize, hcr: u64, image: &mut LrImage) {
        let live = u8::try_from(used).unwrap_or(0);
        self.live = used;
        image.live = live;
        image.write = image.stale.max(live);
        image.stale = 0;
        image.hcr = hcr;
        image.deactivate = core::mem::take(&mut self.deactivate);
    }

    #[inline]
    fn place(&mut self, index: usize, loaded: &Loaded, image: &mut LrImage) {
        let Loaded { shadow, load, end } = *loaded;
        if let (Some(slot), Some(register)) =
            (self.shadows.get_mut(index), image.registers.get_mut(index))
        {
            *slot = shadow;
            *register = ListRegister::new(shadow.intid, shadow.priority, load, end);
        }
    }

    /// Puts one interrupt into list register `index`.
    fn put(
        &mut self,
        index: usize,
        terms: Terms,
        choice: Choice,
        sources: &mut Sources<'_>,
        image: &mut LrImage,
    ) {
        let loaded = match choice {
            Choice::Private(intid) => Some(self.take_private(intid, terms)),
            Choice::Shared(Shared::Spi(spi)) => {
                self.holds_spis = true;
                sources.take_spi(spi, terms.room).map(|taken| {
                    Loaded::shared(taken.intid, taken.priority, taken.load, taken.at_end)
                })
            }
            Choice::Shared(Shared::Lpi(lpi)) => {
                self.lpis |= bit_of(index);
                sources.take_lpi(lpi);
                Some(Loaded::lpi(lpi))
            }
        };
        if let Some(loaded) = loaded {
            self.place(index, &loaded, image);
        }
    }

    /// Puts an LPI into a list register beside what the others hold, if that is all there is to do: see
    /// [`Vgic::deliver`](crate::Vgic::deliver). Which one, or `None`, in which case nothing has changed.
    ///
    /// `empty` has a bit for each list register in use whose interrupt is over. Such a one is used again
    /// if it held an LPI: of that there is nothing left to take out.
    #[inline]
    pub(crate) fn add_lpi(&mut self, lpi: Lpi, empty: u32, image: &mut LrImage) -> Option<usize> {
        let used = bit_of(self.live).wrapping_sub(1);
        // No two list registers may hold the same interrupt [IHI 0069 §12.4].
        for index in Bits(used & !empty) {
            let shadow = self.shadows.get(index as usize)?;
            if shadow.intid == lpi.intid {
                return None;
            }
        }
        let over = self.lpis & used & empty;
        let index = if over != 0 {
            over.trailing_zeros() as usize
        } else if self.live < self.list_registers {
            let index = self.live;
            self.lpis |= bit_of(index);
            self.live = index.saturating_add(1);
            image.live = u8::try_from(self.live).unwrap_or(image.live);
            index
        } else {
            return None;
        };
        self.place(index, &Loaded::lpi(lpi), image);
        Some(index)
    }

    /// Puts a hardware PPI whose physical interrupt has come into a list register beside what the others hold, if that
    /// is all there is to do: see [`Vgic::deliver_ppi`](crate::Vgic::deliver_ppi). Which one, or `None`, in which case
    /// nothing has changed.
    ///
    /// `empty` is as for [`VcpuInterface::add_lpi`]. Mostly it is the list register that held the PPI the last time.
    #[inline]
    pub(crate) fn add_ppi(&mut self, intid: u32, empty: u32, image: &mut LrImage) -> Option<usize> {
        let mask = bit(intid);
        let signalled = self.hardware & self.bank.enabled & self.bank.group1 & mask;
        if signalled == 0 {
            return None;
        }
        // If it waited or were active outside of the list registers, there would be mail or a maintenance interrupt
        // asked for. What another CPU writes this very moment is folded in by the flush that its mail brings.
        let index = if self.bank.held & mask == 0 {
            let index = self.live;
            if index >= self.list_registers {
                return None;
            }
            self.live = index.saturating_add(1);
            image.live = u8::try_from(self.live).unwrap_or(image.live);
            index
        } else {
            let used = bit_of(self.live).wrapping_sub(1);
            let holds = |index: &u32| {
                let shadow = self.shadows.get(*index as usize);
                shadow.is_some_and(|shadow| shadow.intid == intid)
            };
            Bits(used & empty).find(holds)? as usize
        };
        self.bank.load_line(mask);
        self.physical_active |= mask;
        let load = Load {
            pending: true,
            active: false,
            from_latch: false,
        };
        let shadow = Shadow {
            intid,
            priority: self.priorities.get(intid as usize).copied().unwrap_or(0),
            from_latch: false,
            from_line: true,
            hardware: true,
        };
        let end = End::Physical(intid);
        self.place(index, &Loaded { shadow, load, end }, image);
        Some(index)
    }

    #[inline]
    fn take_private(&mut self, intid: u32, terms: Terms) -> Loaded {
        let mask = bit(intid);
        let hardware = self.hardware & mask;
        let priority = self.priorities.get(intid as usize).copied().unwrap_or(0);
        let mut both = true;
        let mut level = priority;
        if self.bank.active & mask != 0 {
            level = self
                .active_priorities
                .get(intid as usize)
                .copied()
                .unwrap_or(0);
            // Pending and active together only if what becomes pending at the end of the active
            // one then competes as it should.
            both = terms.room == Room::Enough && level == priority;
        }
        let enabled = self.bank.enabled & self.bank.group1 & mask != 0;
        let load = self.bank.load(mask, both && terms.group1 && enabled);
        let from_line = load.pending && self.bank.line & hardware != 0;
        if from_line {
            self.bank.lower(mask);
        }
        let end = match self.bank.at_end(mask) {
            AtEnd::Nothing if self.physical_active & mask != 0 => End::Physical(intid),
            at_end => at_end.into(),
        };
        let shadow = Shadow {
            intid,
            priority: level,
            from_latch: load.from_latch,
            from_line,
            hardware: matches!(end, End::Physical(_)),
        };
        Loaded { shadow, load, end }
    }

    /// The most urgent private interrupt that waits to be signalled: its level.
    pub(crate) fn first_pending(&self, group1: bool) -> Option<u32> {
        if !group1 {
            return None;
        }
        best(self.bank.deliverable(), &self.priorities).map(|(level, _)| level)
    }
}

/// The bit of a list register, of which there are at most 16.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the index counts modulo 32"
)]
const fn bit_of(index: usize) -> u32 {
    bit(index as u32)
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

/// The more urgent of a private and a shared interrupt, each with its level; the private one among
/// equals, since its number is lower.
fn pick(private: Option<(u32, u32)>, shared: Option<(u32, Shared)>) -> Option<Choice> {
    match (private, shared) {
        (Some((level, intid)), Some((other, _))) if level <= other => Some(Choice::Private(intid)),
        (_, Some((_, shared))) => Some(Choice::Shared(shared)),
        (Some((_, intid)), None) => Some(Choice::Private(intid)),
        (None, None) => None,
    }
}
