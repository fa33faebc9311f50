//! A guest's host bridges and their windows.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu::{Backend, DomainId, Error, IoasId, Iommu, MemoryId, PageSizes, SheetId, Window};
use tce::{CHUNK, Entries, LIST, OutOfMemory, Tce};
use types::{Iova, Liobn, PageSize, Span};

use crate::list::Piece;
use crate::slot::{Slot, Slots};
use crate::status::Status;

/// What a guest may have, beyond what the hardware can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The page sizes of windows that it may create.
    pub pages: PageSizes,
    /// Log2 of the most entries of one. A window takes 52 bytes of the hypervisor's memory for every 512.
    pub entries: u8,
    /// The most chunks of 512 entries of which one is live, in all windows of a bridge together: each takes
    /// [`Policy::CHUNK_BYTES`] of the hypervisor's memory. An entry beyond them is refused as for lack of it.
    pub chunks: u64,
}

impl Policy {
    /// What a chunk takes in the three books: the guest's entries, the core's pages, those of the platform.
    pub const CHUNK_BYTES: u64 = 3 * 4096;

    /// All sizes, 2^20 entries: 64 GiB of memory in pages of 64 KiB. Chunks are enough for all of a default
    /// window of 1 GiB, and 16 GiB in pages of 64 KiB.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            pages: PageSizes::new(&[
                PageSize::SIZE_4K,
                PageSize::SIZE_64K,
                PageSize::SIZE_2M,
                PageSize::SIZE_16M,
            ]),
            entries: 20,
            chunks: 1024,
        }
    }
}

/// How a host bridge of a guest is made.
#[derive(Clone, Copy, Debug)]
pub struct BridgeOptions {
    /// Its number among the guest's: LIOBNs follow from it, as QEMU numbers them.
    pub number: u8,
    /// The unique id that the guest knows it by.
    pub buid: u64,
    /// The core's address space of the devices behind it, which nobody else maps anything in.
    pub ioas: IoasId,
    /// The domain that they are attached to.
    pub domain: DomainId,
    /// What the guest may have.
    pub policy: Policy,
}

/// Something that a guest's windows cannot be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another bridge has the number or unique id, or another slot the addresses.
    #[error("it is there already")]
    Taken,
    /// There is no memory for it.
    #[error("no memory")]
    OutOfMemory,
    /// A window of the domain has several page sizes: it is none of a TCE table.
    #[error("the window at {0} is not one of a TCE table")]
    NotTce(Iova),
    /// The core refused.
    #[error("{0}")]
    Core(#[from] Error),
}

impl From<OutOfMemory> for Refusal {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// How far something with a bound of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done.
    Done,
    /// More is to be done: call again.
    More,
}

/// A window that a guest sees.
#[derive(Debug)]
pub struct GuestWindow {
    pub(crate) liobn: Liobn,
    pub(crate) span: Span<Iova>,
    pub(crate) page: PageSize,
    /// The core's pages of it.
    pub(crate) sheet: SheetId,
    /// What the guest wrote, where it is live.
    pub(crate) entries: Entries,
    /// How many of them show BARs.
    pub(crate) bar_pages: u32,
}

impl GuestWindow {
    /// What the guest calls its table.
    #[must_use]
    pub fn liobn(&self) -> Liobn {
        self.liobn
    }

    /// Its bus addresses.
    #[must_use]
    pub fn span(&self) -> Span<Iova> {
        self.span
    }

    /// The size of its pages.
    #[must_use]
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// How many entries are not empty.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.entries.live()
    }

    /// The number of the entry of a bus address, of `count` that exist from there on.
    #[inline]
    pub(crate) fn index(&self, at: u64, count: u64) -> Option<u64> {
        let into = at.checked_sub(self.span.start().bits())?;
        let index = into >> self.page.shift();
        let end = index.checked_add(count)?;
        (into & self.page.mask() == 0 && end <= self.entries.len()).then_some(index)
    }

    /// The same of one entry.
    #[inline(always)]
    pub(crate) fn index_of_one(&self, at: u64) -> Option<u64> {
        let into = at.wrapping_sub(self.span.start().bits());
        let index = into >> self.page.shift();
        // What is before the window is beyond its end.
        (into & self.page.mask() == 0 && index < self.entries.len()).then_some(index)
    }

    /// The bus address of an entry.
    #[inline]
    pub(crate) fn at(&self, index: u64) -> Iova {
        let into = index.checked_shl(self.page.shift().into()).unwrap_or(0);
        Iova::truncated(self.span.start().bits().wrapping_add(into))
    }

    pub(crate) fn bytes(&self, entries: u64) -> u64 {
        entries.checked_shl(self.page.shift().into()).unwrap_or(0)
    }
}

/// A host bridge that a guest sees.
#[derive(Debug)]
pub struct Bridge {
    pub(crate) options: BridgeOptions,
    pub(crate) windows: Vec<GuestWindow>,
}

/// What the device tree of the guest says of a bridge's windows, in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// `ibm,dma-window`: LIOBN, address, size of the default window (the one at the lowest address).
    /// With `ibm,#dma-address-cells` and `ibm,#dma-size-cells` of 2.
    pub dma_window: [u32; 5],
    /// `ibm,ddw-applicable`: the tokens of query, create, remove. `None` where the hardware has no
    /// such windows.
    pub ddw_applicable: Option<[u32; 3]>,
    /// `ibm,ddw-extensions`: two extensions: the token of reset, and that a query has six results.
    pub ddw_extensions: Option<[u32; 3]>,
}

/// The most entries of a window that may show BARs at a time. Pages are counted, not areas: however areas are cut
/// by entries that are emptied in their middle, there are never more of them than pages.
pub(crate) const MOST_BAR_PAGES: u32 = 2048;
/// The most windows of a bridge.
const MOST_WINDOWS: usize = 8;
/// As many areas as their pages may become: no cut is one too many.
const MOST_BAR_AREAS: u32 = 8 * MOST_BAR_PAGES;
const _: () = assert!(MOST_WINDOWS == 8);

fn page_of(window: &Window) -> Option<PageSize> {
    let bits = window.pages.bits();
    PageSize::from_bytes(bits).ok()
}

impl Bridge {
    /// Its windows, by address.
    #[must_use]
    pub fn windows(&self) -> &[GuestWindow] {
        &self.windows
    }

    /// How it was made.
    #[must_use]
    pub fn options(&self) -> &BridgeOptions {
        &self.options
    }

    /// Whether there may be room for `count` entries of a window, which are to be live.
    #[inline]
    pub(crate) fn may_fill(&self, window: usize, first: u64, count: u64) -> Result<(), Status> {
        let windows = self.windows.iter();
        let taken = windows.fold(0_u64, |all, window| {
            all.saturating_add(window.entries.taken())
        });
        let free = self.options.policy.chunks.saturating_sub(taken);
        // The usual case: as many as can be wanted.
        if free > (count / CHUNK).saturating_add(1) {
            return Ok(());
        }
        let window = self.windows.get(window).ok_or(Status::PARAMETER)?;
        let growth = window.entries.growth(first, count);
        // What grows nothing is not refused.
        if growth > free {
            return Err(Status::RESOURCE);
        }
        Ok(())
    }

    /// A LIOBN that none of its windows has.
    pub(crate) fn free_liobn(&self) -> Option<Liobn> {
        let number = u32::from(self.options.number) << 8;
        (0..u32::try_from(MOST_WINDOWS).unwrap_or(0)).find_map(|window| {
            let liobn = Liobn::new(0x8000_0000 | number | window).ok()?;
            let taken = self.windows.iter().any(|other| other.liobn == liobn);
            (!taken).then_some(liobn)
        })
    }

    pub(crate) fn add(&mut self, window: GuestWindow) {
        let at = self
            .windows
            .partition_point(|other| other.span.start() < window.span.start());
        self.windows.insert(at, window);
    }

    pub(crate) fn knows(&self, window: &Window) -> bool {
        self.windows
            .iter()
            .any(|known| known.span == window.span && Some(known.page) == page_of(window))
    }

    /// Makes the guest's windows those of the domain. What is new there is empty.
    ///
    /// # Errors
    /// When there is no memory to describe one; it is then not shown to the guest.
    pub(crate) fn follow<B: Backend>(&mut self, core: &mut Iommu<B>) -> Result<(), Refusal> {
        let mut windows = [None; MOST_WINDOWS];
        let known = core.windows(self.options.domain)?;
        if known.len() > MOST_WINDOWS {
            return Err(Refusal::Taken);
        }
        for (to, window) in windows.iter_mut().zip(known) {
            *to = Some(*window);
        }
        let windows = || windows.iter().flatten();
        self.windows.retain(|known| {
            windows().any(|window| known.span == window.span && Some(known.page) == page_of(window))
        });
        for window in windows() {
            if self.knows(window) {
                continue;
            }
            let page = page_of(window).ok_or(Refusal::NotTce(window.span.start()))?;
            let liobn = self.free_liobn().ok_or(Refusal::Taken)?;
            if self.windows.len() >= MOST_WINDOWS {
                return Err(Refusal::Taken);
            }
            let bytes = window.span.len().ok_or(OutOfMemory)?;
            let entries = Entries::new(bytes >> page.shift())?;
            let sheet = core.open_sheet(self.options.ioas, window.span, page)?;
            self.add(GuestWindow {
                liobn,
                span: window.span,
                page,
                sheet,
                entries,
                bar_pages: 0,
            });
        }
        Ok(())
    }

    /// What the guest's device tree says. `tokens` are those of query, create, remove and reset.
    ///
    /// # Errors
    /// [`Error::NotPaging`] and the like: the domain is gone.
    pub fn properties<B: Backend>(
        &self,
        core: &Iommu<B>,
        tokens: [u32; 4],
    ) -> Result<Option<Properties>, Error> {
        let Some(first) = self.windows.first() else {
            return Ok(None);
        };
        let [query, create, remove, reset] = tokens;
        let dynamic = core.query_window(self.options.domain).is_ok();
        let [base_high, base_low] = halves(first.span.start().bits());
        // Four GiB and more do not fit the cells that Linux reads; a platform has no such default.
        let [size_high, size_low] = halves(first.span.len().unwrap_or(0));
        Ok(Some(Properties {
            dma_window: [first.liobn.bits(), base_high, base_low, size_high, size_low],
            ddw_applicable: dynamic.then_some([query, create, remove]),
            ddw_extensions: dynamic.then_some([2, reset, 1]),
        }))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
pub(crate) fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

/// Room for what one call lists.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The guest's list, as bytes and as entries.
    pub(crate) bytes: Box<[u8]>,
    pub(crate) list: Vec<Tce>,
    /// What was there before.
    pub(crate) old: Vec<Tce>,
    pub(crate) pieces: Vec<Piece>,
}

/// Everything about DMA that one VM sees.
#[derive(Debug)]
pub struct Dma {
    pub(crate) slots: Slots,
    pub(crate) bridges: Vec<Bridge>,
    /// The window that was found last.
    pub(crate) last: (usize, usize),
    /// Bridges on their way out: no call reaches them.
    pub(crate) shut: Vec<Bridge>,
    pub(crate) scratch: Scratch,
}

impl Dma {
    /// No memory and no bridges yet. What a call needs to judge a list is taken now: 24 KiB.
    ///
    /// # Errors
    /// [`Refusal::OutOfMemory`].
    pub fn new() -> Result<Self, Refusal> {
        let room = |_| OutOfMemory;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(LIST << 3).map_err(room)?;
        bytes.resize(LIST << 3, 0);
        let mut scratch = Scratch {
            bytes: bytes.into_boxed_slice(),
            list: Vec::new(),
            old: Vec::new(),
            pieces: Vec::new(),
        };
        scratch.list.try_reserve_exact(LIST).map_err(room)?;
        scratch.old.try_reserve_exact(LIST).map_err(room)?;
        scratch.pieces.try_reserve_exact(LIST).map_err(room)?;
        Ok(Self {
            slots: Slots::default(),
            bridges: Vec::new(),
            last: (0, 0),
            shut: Vec::new(),
            scratch,
        })
    }

    /// Lets devices reach a range of the guest's memory by its entries.
    ///
    /// # Errors
    /// [`Refusal::Taken`], [`Refusal::OutOfMemory`].
    pub fn add_slot(&mut self, slot: Slot) -> Result<(), Refusal> {
        if self.slots.add(slot)? {
            Ok(())
        } else {
            Err(Refusal::Taken)
        }
    }

    /// No new entry leads to this memory from now on. Those that do remain until they are cleared.
    pub fn remove_slots(&mut self, memory: MemoryId) {
        self.slots.remove(memory);
    }

    /// Gives the guest a host bridge, with the windows that its domain has. Nothing is mapped in its
    /// address space.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn add_bridge<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        options: BridgeOptions,
    ) -> Result<(), Refusal> {
        let taken = self.bridges.iter().chain(&self.shut).any(|other| {
            other.options.number == options.number || other.options.buid == options.buid
        });
        if taken || !core.ioas(options.ioas)?.is_empty() {
            return Err(Refusal::Taken);
        }
        let mut bridge = Bridge {
            options,
            windows: Vec::new(),
        };
        let room = |_| OutOfMemory;
        bridge
            .windows
            .try_reserve_exact(MOST_WINDOWS)
            .map_err(room)?;
        core.limit_areas(options.ioas, MOST_BAR_AREAS)?;
        bridge.follow(core)?;
        self.bridges.try_reserve(1).map_err(room)?;
        self.bridges.push(bridge);
        Ok(())
    }

    /// Takes a host bridge away whose windows were emptied ([`Dma::clear`]).
    ///
    /// # Errors
    /// [`Refusal::Taken`] while an entry is live.
    pub fn remove_bridge(&mut self, number: u8) -> Result<(), Refusal> {
        let is = |bridge: &Bridge| bridge.options.number == number;
        let live = self.bridges.iter().filter(|bridge| is(bridge));
        if live
            .flat_map(|bridge| &bridge.windows)
            .any(|window| !window.entries.is_empty())
        {
            return Err(Refusal::Taken);
        }
        self.bridges.retain(|bridge| !is(bridge));
        Ok(())
    }

    /// Lets no call of the guest reach a bridge's windows any more, while its vCPUs run:
    /// [`Dma::clear_shut`] empties them, and takes the bridge away.
    ///
    /// # Errors
    /// [`Refusal::OutOfMemory`]; then it is as it was.
    pub fn shut_bridge(&mut self, number: u8) -> Result<(), Refusal> {
        self.shut.try_reserve(1).map_err(|_| OutOfMemory)?;
        let mut bridges = self.bridges.iter();
        if let Some(at) = bridges.position(|bridge| bridge.options.number == number) {
            self.shut.push(self.bridges.remove(at));
        }
        Ok(())
    }

    /// The guest's bridges.
    #[must_use]
    pub fn bridges(&self) -> &[Bridge] {
        &self.bridges
    }

    /// Where a window is: the bridge's position, and the window's in it.
    #[inline(never)]
    pub(crate) fn find(&self, liobn: u64) -> Option<(usize, usize)> {
        let liobn = u32::try_from(liobn).ok()?;
        self.bridges.iter().enumerate().find_map(|(at, bridge)| {
            let mut windows = bridge.windows.iter();
            Some((at, windows.position(|w| w.liobn.bits() == liobn)?))
        })
    }
}
