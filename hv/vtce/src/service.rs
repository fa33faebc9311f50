//! The run-time services for windows: `ibm,…-pe-dma-window`.

use iommu::{Backend, BackendError, Error, Iommu, PageSizes, WindowLimits};
use tce::Entries;
use types::PageSize;

use crate::bridge::{Bridge, Dma, GuestWindow, Progress, Refusal, halves};
use crate::status::Status;

/// The most entries that one call clears, of windows that are not empty when they go.
pub const MOST_CLEARED: u64 = 4096;

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `ibm,query-pe-dma-window`: configuration address, unique id (2 cells) → windows that can be
    /// created, most entries (1 cell, or 2 with six results), page sizes, migration.
    Query,
    /// `ibm,create-pe-dma-window`: configuration address, unique id (2), log2 of page and window →
    /// LIOBN, address (2).
    Create,
    /// `ibm,remove-pe-dma-window`: LIOBN.
    Remove,
    /// `ibm,reset-pe-dma-window`: configuration address, unique id (2).
    Reset,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Query, Self::Create, Self::Remove, Self::Reset];

    /// What the device tree calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "ibm,query-pe-dma-window",
            Self::Create => "ibm,create-pe-dma-window",
            Self::Remove => "ibm,remove-pe-dma-window",
            Self::Reset => "ibm,reset-pe-dma-window",
        }
    }

    /// The token that QEMU gives it.
    #[must_use]
    pub const fn token(self) -> u32 {
        match self {
            Self::Query => 0x2026,
            Self::Create => 0x2027,
            Self::Remove => 0x2028,
            Self::Reset => 0x2029,
        }
    }
}

/// What a service comes to: the status, and results behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status. [LoPAPR §7.2.8]
    pub status: i32,
    values: [u32; 5],
    count: usize,
}

/// The bits of a configuration address that name a device: bus, device, function.
const DEVICE: u32 = 0x00ff_ff00;

/// Statuses. [LoPAPR §7.2.8]
const HARDWARE: i32 = -1;
const BUSY: i32 = -2;
const PARAMETER: i32 = -3;

impl Outcome {
    /// The results behind the status.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        self.values.get(..self.count).unwrap_or_default()
    }

    const fn status(status: i32) -> Self {
        Self {
            status,
            values: [0; 5],
            count: 0,
        }
    }

    fn of<const N: usize>(values: [u32; N]) -> Self {
        let mut outcome = Self {
            count: N,
            ..Self::status(0)
        };
        for (to, value) in outcome.values.iter_mut().zip(values) {
            *to = value;
        }
        outcome
    }
}

impl From<Result<Outcome, i32>> for Outcome {
    fn from(result: Result<Self, i32>) -> Self {
        result.unwrap_or_else(Self::status)
    }
}

fn refused(error: Error) -> i32 {
    match error {
        Error::Backend(BackendError::BadWindow) => PARAMETER,
        _ => HARDWARE,
    }
}

fn hardware(_: Status) -> i32 {
    HARDWARE
}

/// The bits that stand for page sizes in the answer to a query.
const PAGE_BITS: [(u8, u32); 9] = [
    (12, 0x1),
    (16, 0x2),
    (24, 0x4),
    (25, 0x8),
    (26, 0x10),
    (27, 0x20),
    (28, 0x40),
    (34, 0x80),
    (21, 0x100),
];

fn page_bits(pages: PageSizes) -> u32 {
    PAGE_BITS
        .iter()
        .filter(|(shift, _)| PageSize::from_shift(*shift).is_ok_and(|page| pages.contains(page)))
        .fold(0, |bits, (_, bit)| bits | bit)
}

impl Dma {
    /// Serves a service with its argument cells, of which there are as many as the guest said, and as
    /// many results (the status included) as it has room for. A number of either that the service does
    /// not have answers −3.
    pub fn service<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        service: Service,
        arguments: &[u32],
        results: usize,
    ) -> Outcome {
        match (service, arguments, results) {
            (Service::Query, &[config, high, low], 5 | 6) => {
                self.query(core, [config, high, low], results)
            }
            (Service::Create, &[config, high, low, page, window], 4) => {
                self.create(core, [config, high, low], page, window)
            }
            (Service::Remove, &[liobn], 1) => self.remove(core, liobn),
            (Service::Reset, &[config, high, low], 1) => self.reset(core, [config, high, low]),
            _ => Err(PARAMETER),
        }
        .into()
    }

    fn bridge_of(&self, [config, high, low]: [u32; 3]) -> Result<usize, i32> {
        let buid = u64::from(high) << 32 | u64::from(low);
        // Any device's will do: all of them share the windows.
        if config & !DEVICE != 0 {
            return Err(PARAMETER);
        }
        let mut bridges = self.bridges.iter();
        bridges
            .position(|bridge| bridge.options.buid == buid)
            .ok_or(PARAMETER)
    }

    /// The page sizes a bridge's further windows may have, and their most entries.
    fn limits<B: Backend>(
        &self,
        core: &Iommu<B>,
        bridge: &Bridge,
    ) -> Result<(WindowLimits, PageSizes, u64), i32> {
        let limits = core.query_window(bridge.options.domain).map_err(refused)?;
        let policy = bridge.options.policy;
        let pages = limits.pages.common(policy.pages).common(self.slots.pages());
        let most = 1_u64.checked_shl(policy.entries.into()).unwrap_or(0);
        // As many as the largest window has, which is one of the largest pages: tables are bounded by their
        // entries.
        let page = limits.pages.bits().checked_ilog2().unwrap_or(0);
        Ok((limits, pages, most.min(limits.largest >> page)))
    }

    fn query<B: Backend>(
        &self,
        core: &Iommu<B>,
        name: [u32; 3],
        results: usize,
    ) -> Result<Outcome, i32> {
        let bridge = self.bridge_of(name)?;
        let bridge = self.bridges.get(bridge).ok_or(PARAMETER)?;
        let (limits, pages, entries) = self.limits(core, bridge)?;
        let mask = page_bits(pages);
        // A window that no page size is left for cannot be created.
        let available = if mask == 0 { 0 } else { limits.available };
        let [high, low] = halves(entries);
        Ok(if results == 6 {
            Outcome::of([available, high, low, mask, 0])
        } else {
            let entries = if high == 0 { low } else { u32::MAX };
            Outcome::of([available, entries, mask, 0])
        })
    }

    fn create<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        name: [u32; 3],
        page: u32,
        window: u32,
    ) -> Result<Outcome, i32> {
        let at = self.bridge_of(name)?;
        let bridge = self.bridges.get(at).ok_or(PARAMETER)?;
        let (limits, pages, most) = self.limits(core, bridge)?;
        let page = u8::try_from(page)
            .ok()
            .and_then(|shift| PageSize::from_shift(shift).ok())
            .filter(|page| pages.contains(*page))
            .ok_or(PARAMETER)?;
        let bytes = 1_u64.checked_shl(window).ok_or(PARAMETER)?;
        let entries = bytes >> page.shift();
        if entries == 0 || entries > most {
            return Err(PARAMETER);
        }
        if limits.available == 0 {
            return Err(HARDWARE);
        }
        let liobn = bridge.free_liobn().ok_or(HARDWARE)?;
        // Everything that can lack memory comes first; where the window will be is not known yet.
        let room = Entries::new(entries).map_err(|_| HARDWARE)?;
        let made = core
            .create_window(bridge.options.domain, page, bytes)
            .map_err(refused)?;
        let ioas = bridge.options.ioas;
        let Ok(sheet) = core.open_sheet(ioas, made.span, page) else {
            // Where it stays, it is empty, and not shown.
            let _ = core.remove_window(bridge.options.domain, made.span.start());
            return Err(HARDWARE);
        };
        let new = GuestWindow {
            liobn,
            span: made.span,
            page,
            sheet,
            entries: room,
            bar_pages: 0,
        };
        let bridge = self.bridges.get_mut(at).ok_or(PARAMETER)?;
        bridge.add(new);
        let [high, low] = halves(made.span.start().bits());
        Ok(Outcome::of([liobn.bits(), high, low]))
    }

    fn remove<B: Backend>(&mut self, core: &mut Iommu<B>, liobn: u32) -> Result<Outcome, i32> {
        let (at, window) = self.find(liobn.into()).ok_or(PARAMETER)?;
        let bridge = self.bridges.get_mut(at).ok_or(PARAMETER)?;
        let ioas = bridge.options.ioas;
        let window = bridge.windows.get_mut(window).ok_or(PARAMETER)?;
        let base = window.span.start();
        let mut budget = MOST_CLEARED;
        if window.empty(core, ioas, &mut budget).map_err(hardware)? == Progress::More {
            return Err(BUSY);
        }
        core.remove_window(bridge.options.domain, base)
            .map_err(refused)?;
        // A window that came back in its place, and that there is no memory to describe, is not shown.
        let _ = bridge.follow(core);
        Ok(Outcome::status(0))
    }

    fn reset<B: Backend>(&mut self, core: &mut Iommu<B>, name: [u32; 3]) -> Result<Outcome, i32> {
        let at = self.bridge_of(name)?;
        let bridge = self.bridges.get_mut(at).ok_or(PARAMETER)?;
        let mut budget = MOST_CLEARED;
        if bridge.empty(core, &mut budget).map_err(hardware)? == Progress::More {
            return Err(BUSY);
        }
        core.reset_windows(bridge.options.domain).map_err(refused)?;
        bridge.follow(core).map_err(|_| HARDWARE)?;
        Ok(Outcome::status(0))
    }

    /// Empties every window of every bridge and puts the windows back, a bounded part at a time: for a
    /// VM that is reset, or ends. Its devices must not master the bus any more.
    ///
    /// # Errors
    /// [`Refusal::Core`]: the hardware did not confirm.
    pub fn clear<B: Backend>(&mut self, core: &mut Iommu<B>) -> Result<Progress, Refusal> {
        let mut budget = MOST_CLEARED;
        for bridge in &mut self.bridges {
            if bridge.put_back(core, &mut budget)? == Progress::More {
                return Ok(Progress::More);
            }
            bridge.follow(core)?;
        }
        self.clear_shut(core)
    }

    /// The same for those that are shut ([`Dma::shut_bridge`]), whose devices must not master the bus any more,
    /// and takes them away.
    ///
    /// # Errors
    /// [`Refusal::Core`]: the hardware did not confirm.
    pub fn clear_shut<B: Backend>(&mut self, core: &mut Iommu<B>) -> Result<Progress, Refusal> {
        let mut budget = MOST_CLEARED;
        for bridge in &mut self.shut {
            if bridge.put_back(core, &mut budget)? == Progress::More {
                return Ok(Progress::More);
            }
        }
        for bridge in self.shut.drain(..) {
            for window in bridge.windows {
                // One whose window is no more has gone with it.
                let _ = core.close_sheet(bridge.options.ioas, window.sheet);
            }
        }
        Ok(Progress::Done)
    }
}

impl Dma {
    /// Takes registers away from the guest's entries, also from those that are live.
    ///
    /// # Errors
    /// [`Refusal::Core`]: the hardware did not confirm. [`Refusal::Taken`]: they are shown by somebody else.
    pub fn withdraw<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        memory: iommu::MemoryId,
    ) -> Result<(), Refusal> {
        self.slots.remove(memory);
        let mut before = None;
        while let Some(shown) = core.shown_at(memory) {
            let (ioas, span) = shown;
            // Each turn takes an area away.
            if before.replace(shown) == Some(shown) {
                return Err(Refusal::Taken);
            }
            let bridges = self.bridges.iter_mut().chain(&mut self.shut);
            let mut windows = bridges
                .filter(|bridge| bridge.options.ioas == ioas)
                .flat_map(|bridge| &mut bridge.windows);
            let window = windows.find(|window| window.span.contains_span(span));
            let window = window.ok_or(Refusal::Taken)?;
            let count = span.len().unwrap_or(0) >> window.page.shift();
            let index = window.index(span.start().bits(), count);
            let cleared = window.clear(core, ioas, index.ok_or(Refusal::Taken)?, count);
            cleared.map_err(|_| Refusal::Core(Error::Backend(BackendError::Timeout)))?;
        }
        Ok(())
    }
}

impl GuestWindow {
    /// So many entries from one on where no area begins before, and as many more as an area goes on behind them:
    /// emptying these cuts none, which would take memory. An area has at most as many pages as a list.
    fn whole<B: Backend>(
        &self,
        core: &Iommu<B>,
        ioas: iommu::IoasId,
        first: u64,
        count: u64,
    ) -> u64 {
        let end = first.saturating_add(count);
        match core.area_at(ioas, self.at(end)) {
            Ok(area) if end < self.entries.len() && area.start() < self.at(end) => {
                let into = area.last().bits().wrapping_sub(self.at(first).bits());
                (into >> self.page.shift()).saturating_add(1)
            }
            _ => count,
        }
    }

    /// Empties the window, as far as the budget of entries goes.
    fn empty<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: iommu::IoasId,
        budget: &mut u64,
    ) -> Result<Progress, Status> {
        while let Some(first) = self.entries.first_live(0) {
            let left = self.entries.len().saturating_sub(first);
            let count = (*budget).min(tce::CHUNK).min(left);
            if count == 0 {
                return Ok(Progress::More);
            }
            let count = self.whole(core, ioas, first, count);
            self.clear(core, ioas, first, count)?;
            *budget = budget.saturating_sub(count);
        }
        Ok(Progress::Done)
    }
}

impl Bridge {
    /// Empties all windows, and puts the default one back, where there are others.
    fn put_back<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        budget: &mut u64,
    ) -> Result<Progress, Refusal> {
        let unconfirmed = |_| Refusal::Core(Error::Backend(BackendError::Timeout));
        if self.empty(core, budget).map_err(unconfirmed)? == Progress::More {
            return Ok(Progress::More);
        }
        if core.query_window(self.options.domain).is_ok() {
            core.reset_windows(self.options.domain)?;
        }
        Ok(Progress::Done)
    }

    fn empty<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        budget: &mut u64,
    ) -> Result<Progress, Status> {
        let ioas = self.options.ioas;
        for window in &mut self.windows {
            if window.empty(core, ioas, budget)? == Progress::More {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done)
    }
}
