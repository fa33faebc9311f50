//! Sheets: ranges of an address space in which every page is shown by itself.
//!
//! A guest whose calls know pages, not areas, would make an area of each; a sheet keeps 8 bytes for a page
//! that is shown, and finds it without a search. It holds RAM only. An area may lie in the range of a sheet
//! where none of its pages is shown, so a BAR is an area there, too.
//!
//! A page keeps its memory object alive as an area does. Pages cannot be pinned, copied or split, and
//! accesses of the hypervisor do not go through them.

mod pages;

use alloc::vec::Vec;
use core::iter::Flatten;
use core::ops::ControlFlow;
use core::slice;

use types::{Iova, PageSize, Span};

use crate::area::{Area, Flags, span};
use crate::arena::Arena;
use crate::backend::Window;
use crate::ioas::Ioas;
use crate::memory::Memory;
use crate::sparse::{CHUNK, Entry, Sparse};
use crate::{Budget, OutOfMemory, Permissions};

/// What one page shows: rights in the two low bits, then whether it is stale, which memory object it is of,
/// and which of its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Page(u64);

impl Page {
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    const RIGHTS: u64 = Self::READ | Self::WRITE;
    /// Its entry is cleared, but no invalidation has been confirmed: as for areas.
    const STALE: u64 = 4;
    const MEMORY_SHIFT: u32 = 3;
    const MEMORY_BITS: u32 = 21;
    const NUMBER_SHIFT: u32 = Self::MEMORY_SHIFT + Self::MEMORY_BITS;
    const STEP: u64 = 1 << Self::NUMBER_SHIFT;
    const MOST: u64 = u64::MAX >> Self::NUMBER_SHIFT;

    /// `None` when the numbers are larger than there is room for.
    #[inline]
    fn new(memory: u32, number: u64, permissions: Permissions) -> Option<Self> {
        if memory >> Self::MEMORY_BITS != 0 || number > Self::MOST {
            return None;
        }
        let rights = match permissions {
            Permissions::Read => Self::READ,
            Permissions::Write => Self::WRITE,
            Permissions::ReadWrite => Self::RIGHTS,
        };
        let memory = u64::from(memory) << Self::MEMORY_SHIFT;
        Some(Self(number << Self::NUMBER_SHIFT | memory | rights))
    }

    fn permissions(self) -> Permissions {
        match self.0 & Self::RIGHTS {
            Self::READ => Permissions::Read,
            Self::WRITE => Permissions::Write,
            _ => Permissions::ReadWrite,
        }
    }

    #[inline]
    fn is_stale(self) -> bool {
        self.0 & Self::STALE != 0
    }

    #[inline]
    fn memory(self) -> u32 {
        let mask = (1_u64 << Self::MEMORY_BITS).wrapping_sub(1);
        u32::try_from(self.0 >> Self::MEMORY_SHIFT & mask).unwrap_or(u32::MAX)
    }

    /// Where in the memory object it begins, in bytes.
    fn offset(self, page: PageSize) -> u64 {
        let number = self.0 >> Self::NUMBER_SHIFT;
        number.checked_shl(page.shift().into()).unwrap_or(0)
    }
}

impl Entry for Page {
    #[inline(always)]
    fn is_empty(self) -> bool {
        self.0 & Self::RIGHTS == 0
    }

    #[inline(always)]
    fn next(self, step: u64) -> Self {
        Self(self.0.wrapping_add(step))
    }
}

/// Pages of a chunk are of several memory objects.
const MIXED: u32 = u32::MAX;

/// The name of a sheet of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SheetId {
    index: usize,
    serial: u64,
}

/// A range whose pages are shown one by one.
#[derive(Debug)]
pub(crate) struct Sheet {
    serial: u64,
    span: Span<Iova>,
    page: PageSize,
    /// The number of the window that it is, of the first table that shows it.
    window: usize,
    /// With each chunk that is not empty: the memory object that all of its pages are of, or [`MIXED`].
    pages: Sparse<Page>,
}

/// Pages of a sheet, by number.
#[derive(Clone, Copy)]
struct Pages {
    first: u64,
    count: u64,
}

impl Sheet {
    pub(crate) fn span(&self) -> Span<Iova> {
        self.span
    }

    pub(crate) fn page(&self) -> PageSize {
        self.page
    }

    pub(crate) fn live(&self) -> u64 {
        self.pages.live()
    }

    /// The pages that an aligned range of the sheet is.
    #[inline]
    fn range(&self, span: Span<Iova>) -> Pages {
        let start = self.span.start().bits();
        let shift = self.page.shift();
        let first = span.start().bits().wrapping_sub(start) >> shift;
        let last = span.last().bits().wrapping_sub(start) >> shift;
        Pages {
            first,
            count: last.wrapping_sub(first).wrapping_add(1),
        }
    }

    /// The first page in a range of addresses that is shown.
    pub(crate) fn first_in(&self, range: Span<Iova>) -> Option<Span<Iova>> {
        let both = self.span.intersection(range)?;
        let Pages { first, count } = self.range(both);
        let at = self.pages.live_in(first, count)?;
        let into = at.checked_shl(self.page.shift().into())?;
        let start = self.span.start().bits().wrapping_add(into);
        Some(span(start, start | self.page.mask()))
    }

    /// The page at an address, as the area that it stands for.
    pub(crate) fn find(&self, at: Iova) -> Option<Area> {
        if !self.span.contains(at) {
            return None;
        }
        let into = at.bits().wrapping_sub(self.span.start().bits());
        let page = self.pages.get(into >> self.page.shift());
        (!page.is_empty()).then(|| self.area(at, page))
    }

    fn area(&self, at: Iova, page: Page) -> Area {
        let flags = Flags::new(page.permissions());
        Area {
            start: at.bits() & !self.page.mask(),
            last: at.bits() | self.page.mask(),
            offset: page.offset(self.page),
            memory: page.memory(),
            flags: if page.is_stale() {
                flags.stale()
            } else {
                flags
            },
        }
    }

    /// Visits every page, as the area that it stands for.
    pub(crate) fn visit<R>(&self, mut f: impl FnMut(Area) -> ControlFlow<R>) -> Option<R> {
        let mut from = 0;
        while let Some(at) = self.pages.first_live(from) {
            from = at.saturating_add(1);
            let into = at.checked_shl(self.page.shift().into()).unwrap_or(0);
            let start = self.span.start().bits().wrapping_add(into);
            let area = self.area(Iova::truncated(start), self.pages.get(at));
            if let ControlFlow::Break(found) = f(area) {
                return Some(found);
            }
        }
        None
    }

    /// Writes down that pages show a memory object; there is room.
    #[inline]
    fn record(&mut self, range: Pages, page: Page, memory: &mut Memory) {
        let Pages { first, count } = range;
        let last = first.saturating_add(count.saturating_sub(1));
        for chunk in first / CHUNK..=last / CHUNK {
            let at = chunk.saturating_mul(CHUNK);
            let is_fresh = self.pages.live_in_chunk(at) == 0;
            if let Some(of) = self.pages.tag(at) {
                if is_fresh {
                    *of = page.memory();
                } else if *of != page.memory() {
                    *of = MIXED;
                }
            }
        }
        if count == 1 {
            self.pages.set(first, page);
        } else {
            self.pages.fill_row(first, count, page, Page::STEP);
        }
        memory.areas = memory.areas.saturating_add(low(count));
    }

    /// Writes down that pages show nothing any more; gives how many did.
    #[inline]
    fn forget(&mut self, range: Pages, memories: &mut Arena<Memory>) -> u64 {
        let Pages { first, count } = range;
        if count == 1 {
            let old = self.pages.set(first, Page::default());
            if old.is_empty() {
                return 0;
            }
            release(memories, old.memory(), 1);
            return 1;
        }
        let end = first.saturating_add(count);
        let mut at = first;
        let mut all = 0_u64;
        while at < end {
            let of = self.pages.tag(at).map_or(MIXED, |of| *of);
            let (here, run) = self.pages.run(at, end.saturating_sub(at));
            if of == MIXED {
                for page in run.unwrap_or_default() {
                    if !page.is_empty() {
                        release(memories, page.memory(), 1);
                    }
                }
            }
            let gone = self.pages.clear(at, here);
            if of != MIXED {
                release(memories, of, gone);
            }
            all = all.saturating_add(gone);
            at = at.saturating_add(here.max(1));
        }
        all
    }

    /// A page of the chunk is about to be of another memory object than before.
    fn mix(&mut self, page: u64) {
        if let Some(of) = self.pages.tag(page) {
            *of = MIXED;
        }
    }

    #[inline]
    fn reserve(&mut self, what: Pages, budget: &mut Budget) -> Result<(), OutOfMemory> {
        let Pages { first, count } = what;
        if !self.pages.has_room(first, count) {
            budget.take()?;
            self.pages.reserve(first, count)?;
        }
        Ok(())
    }

    /// Lets go of all memory: no table shows it.
    pub(crate) fn abandon(&mut self, memories: &mut Arena<Memory>) {
        let count = self.pages.len();
        self.forget(Pages { first: 0, count }, memories);
    }
}

#[inline]
fn low(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[inline]
fn release(memories: &mut Arena<Memory>, memory: u32, pages: u64) {
    if let Some(memory) = memories.at_mut(memory) {
        memory.areas = memory.areas.saturating_sub(low(pages));
    }
}

/// The sheets of an address space; a name of one that is gone names nothing.
#[derive(Debug, Default)]
pub(crate) struct Sheets {
    places: Vec<Option<Sheet>>,
}

impl Sheets {
    pub(crate) fn iter(&self) -> Flatten<slice::Iter<'_, Option<Sheet>>> {
        self.places.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> Flatten<slice::IterMut<'_, Option<Sheet>>> {
        self.places.iter_mut().flatten()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    #[inline(always)]
    fn get_mut(&mut self, id: SheetId) -> Option<&mut Sheet> {
        let sheet = self.places.get_mut(id.index)?.as_mut()?;
        (sheet.serial == id.serial).then_some(sheet)
    }

    fn reserve(&mut self, budget: &mut Budget) -> Result<usize, OutOfMemory> {
        match self.places.iter().position(Option::is_none) {
            Some(free) => Ok(free),
            None => {
                budget.push(&mut self.places, None)?;
                Ok(self.places.len().saturating_sub(1))
            }
        }
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Sheet) -> bool) {
        for place in &mut self.places {
            if place.as_ref().is_some_and(|sheet| !keep(sheet)) {
                *place = None;
            }
        }
    }

    /// Looks up which windows of a table the sheets are.
    pub(crate) fn aim(&mut self, windows: &[Window]) {
        for sheet in self.iter_mut() {
            let mut windows = windows.iter();
            let found = windows.position(|window| window.span == sheet.span);
            sheet.window = found.unwrap_or(usize::MAX);
        }
    }
}

impl Ioas {
    /// The first page of a sheet that is shown in a range.
    pub(crate) fn page_in(&self, range: Span<Iova>) -> Option<Span<Iova>> {
        self.sheets.iter().find_map(|sheet| sheet.first_in(range))
    }

    /// The page of a sheet at an address.
    pub(crate) fn page_at(&self, at: Iova) -> Option<Area> {
        self.sheets.iter().find_map(|sheet| sheet.find(at))
    }

    /// How many pages of sheets are shown.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let live = self.sheets.iter().map(Sheet::live);
        live.fold(0, u64::saturating_add)
    }
}
