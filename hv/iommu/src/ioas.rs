//! IO address spaces: what is allowed, reserved and free in them.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use types::{Iova, Span};

use crate::access::PinRecord;
use crate::area::{Area, AreaTree, span};
use crate::arena::{Id, Kind, Object};
use crate::backend::{Backend, PageSizes, TableId, Window};
use crate::domain::DomainId;
use crate::group::DeviceId;
use crate::revoke::Revoking;
use crate::sheet::{Sheet, Sheets};
use crate::{Error, Iommu, OwnerId, PAGE};

/// The name of an [`Ioas`].
pub type IoasId = Id<Ioas>;

/// Whether mappings may use pages larger than the CPU's smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// The largest that fit.
    On,
    /// At most 4 KiB (or the window's only size).
    Off,
}

/// Whether devices may reach each other's registers through an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerToPeer {
    /// BARs can be mapped, where the paths are translated.
    Enabled,
    /// No BAR can be mapped.
    Disabled,
}

/// Why addresses are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReservedBy {
    /// They are outside the windows of a domain.
    Domain(DomainId),
    /// They mean something to a device, or are its interrupt window.
    Device(DeviceId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) span: Span<Iova>,
    pub(crate) by: ReservedBy,
}

/// A paging domain that shows the address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) domain: DomainId,
    pub(crate) table: TableId,
}

/// How many areas an address space may have unless told otherwise.
pub(crate) const DEFAULT_MAX_AREAS: u32 = 1 << 20;

/// An IO address space: areas that show memory objects, for any number of domains.
#[derive(Debug)]
pub struct Ioas {
    pub(crate) owner: OwnerId,
    pub(crate) areas: AreaTree,
    /// Ranges whose pages are shown one by one.
    pub(crate) sheets: Sheets,
    /// Ordered, without overlap; empty means that everything is allowed.
    pub(crate) allowed: Vec<Span<Iova>>,
    /// Ordered by start; may overlap.
    pub(crate) reserved: Vec<Reserved>,
    pub(crate) domains: Vec<Shown>,
    pub(crate) huge_pages: HugePages,
    pub(crate) peer_to_peer: PeerToPeer,
    /// Areas that show a BAR.
    pub(crate) bar_areas: u32,
    pub(crate) max_areas: u32,
    pub(crate) pins: Vec<PinRecord>,
    /// What is being unmapped under pins.
    pub(crate) revoking: Option<Revoking>,
    /// Domains and accesses that depend on it.
    pub(crate) users: u32,
}

impl Object for Ioas {
    const KIND: Kind = Kind::Ioas;
}

impl Ioas {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// How many areas it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether it has areas.
    #[must_use]
    pub fn has_areas(&self) -> bool {
        self.areas.len() > 0
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.areas.len() == 0 && self.pages() == 0
    }

    /// The memory its area structure takes, in bytes.
    #[must_use]
    pub fn area_bytes(&self) -> usize {
        self.areas.bytes()
    }

    /// Whether large pages are used.
    #[must_use]
    pub fn huge_pages(&self) -> HugePages {
        self.huge_pages
    }

    /// What every address and length must be a multiple of where no domain asks for more.
    pub(crate) fn base_alignment(&self) -> u64 {
        match self.huge_pages {
            HugePages::On => 1,
            HugePages::Off => PAGE,
        }
    }

    /// The leaf sizes that may be used in a window.
    pub(crate) fn leaves(&self, window: &Window) -> PageSizes {
        match self.huge_pages {
            HugePages::On => window.pages,
            HugePages::Off => {
                let small = window.pages.up_to(PAGE);
                if small == PageSizes::NONE {
                    window.pages.up_to(window.pages.smallest())
                } else {
                    small
                }
            }
        }
    }

    pub(crate) fn reserved_overlap(&self, span: Span<Iova>) -> Option<Span<Iova>> {
        self.reserved
            .iter()
            .map(|reserved| reserved.span)
            .find(|reserved| reserved.overlaps(span))
    }

    /// Checks that a range could become reserved.
    pub(crate) fn may_reserve(&self, reserved: Span<Iova>) -> Result<(), Error> {
        self.may_lose(reserved)?;
        let mut sheets = self.sheets.iter().map(Sheet::span);
        match sheets.find(|sheet| sheet.overlaps(reserved)) {
            Some(area) => Err(Error::ReservedCutsArea { reserved, area }),
            None => Ok(()),
        }
    }

    /// Checks that a window could go: nothing in it is shown or promised. A sheet without a page goes with
    /// it.
    pub(crate) fn may_lose(&self, window: Span<Iova>) -> Result<(), Error> {
        let mut allowed = self.allowed.iter();
        if let Some(allowed) = allowed.find(|allowed| allowed.overlaps(window)) {
            return Err(Error::ReservedCutsAllowed {
                reserved: window,
                allowed: *allowed,
            });
        }
        let (start, last) = (window.start().bits(), window.last().bits());
        let area = self.areas.overlapping(start, last).map(Area::span);
        match area.or_else(|| self.page_in(window)) {
            Some(area) => Err(Error::ReservedCutsArea {
                reserved: window,
                area,
            }),
            None => Ok(()),
        }
    }

    /// Adds a reserved range; there is room for it.
    pub(crate) fn reserve(&mut self, reserved: Reserved) {
        let at = self
            .reserved
            .partition_point(|other| other.span.start() <= reserved.span.start());
        self.reserved.insert(at, reserved);
    }

    pub(crate) fn unreserve(&mut self, by: ReservedBy) {
        self.reserved.retain(|reserved| reserved.by != by);
    }

    /// Visits the ranges that nobody reserved, in order.
    pub(crate) fn unreserved<R>(&self, mut f: impl FnMut(u64, u64) -> ControlFlow<R>) -> Option<R> {
        let mut from = Some(0);
        for reserved in &self.reserved {
            let Some(start) = from else { break };
            if let Some(last) = reserved.span.start().bits().checked_sub(1)
                && start <= last
                && let ControlFlow::Break(found) = f(start, last)
            {
                return Some(found);
            }
            let after = reserved.span.last().bits().checked_add(1);
            from = after.map(|after| after.max(start));
        }
        match f(from?, u64::MAX) {
            ControlFlow::Break(found) => Some(found),
            ControlFlow::Continue(()) => None,
        }
    }
}

/// The answer to [`Iommu::ranges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// How many ranges there are, and were written.
    pub count: usize,
    /// What addresses and lengths of mappings must be a multiple of, in bytes. Where windows
    /// differ, the largest of theirs.
    pub alignment: u64,
}

impl<B: Backend> Iommu<B> {
    /// Makes an empty address space, in which everything is allowed and large pages are used.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn create_ioas(&mut self, owner: OwnerId) -> Result<IoasId, Error> {
        let ioas = Ioas {
            owner,
            areas: AreaTree::default(),
            sheets: Sheets::default(),
            allowed: Vec::new(),
            reserved: Vec::new(),
            domains: Vec::new(),
            huge_pages: HugePages::On,
            peer_to_peer: PeerToPeer::Disabled,
            bar_areas: 0,
            max_areas: DEFAULT_MAX_AREAS,
            pins: Vec::new(),
            revoking: None,
            users: 0,
        };
        Ok(self.ioas.insert(&mut self.budget, ioas)?)
    }

    /// An address space.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn ioas(&self, ioas: IoasId) -> Result<&Ioas, Error> {
        self.ioas.need(ioas)
    }

    /// Gives up an address space with its areas.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::Busy`] while a domain, an access or an unmapping that was
    /// begun depends on it.
    pub fn destroy_ioas(&mut self, ioas: IoasId) -> Result<(), Error> {
        let object = self.ioas.need(ioas)?;
        // Whoever began an unmapping still has to end it.
        let users = object
            .users
            .saturating_add(u32::from(object.revoking.is_some()));
        if users > 0 {
            return Err(Error::Busy {
                object: ioas.any(),
                users,
            });
        }
        // Without a domain no table shows the areas: they only have to let go of their memory.
        let memory = &mut self.memory;
        if let Some(object) = self.ioas.get_mut(ioas) {
            object
                .sheets
                .iter_mut()
                .for_each(|sheet| sheet.abandon(memory));
        }
        let object = self.ioas.need(ioas)?;
        object.areas.visit(0, u64::MAX, |area| {
            if let Some(memory) = memory.at_mut(area.memory) {
                memory.areas = memory.areas.saturating_sub(1);
                if let Some(shown) = memory.shown_mut() {
                    shown.retain(|(id, _)| *id != ioas);
                }
            }
            ControlFlow::<()>::Continue(())
        });
        self.defaults.retain(|(_, known)| *known != ioas);
        self.ioas.remove(ioas);
        Ok(())
    }

    /// Bounds how many areas the address space may have.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::TooManyAreas`] when it has more already.
    pub fn limit_areas(&mut self, ioas: IoasId, limit: u32) -> Result<(), Error> {
        let ioas = self.ioas.need_mut(ioas)?;
        if u32::try_from(ioas.areas.len()).is_ok_and(|len| len <= limit) {
            ioas.max_areas = limit;
            Ok(())
        } else {
            Err(Error::TooManyAreas { limit })
        }
    }

    /// Replaces the list of allowed ranges: automatic placement keeps to it, and an attachment that
    /// would reserve part of it is refused. An empty list allows everything.
    ///
    /// # Errors
    /// [`Error::BadRanges`] when entries overlap, [`Error::ReservedCutsAllowed`] when one touches
    /// what is reserved now, [`Error::OutOfMemory`].
    pub fn allow(&mut self, ioas: IoasId, ranges: &[Span<Iova>]) -> Result<(), Error> {
        let object = self.ioas.need_mut(ioas)?;
        let mut allowed = self.budget.copy_of(ranges)?;
        types::sort(&mut allowed);
        for (at, pair) in allowed.windows(2).enumerate() {
            if let [a, b] = pair
                && a.overlaps(*b)
            {
                return Err(Error::BadRanges {
                    at: at.saturating_add(1),
                });
            }
        }
        for allowed in &allowed {
            if let Some(reserved) = object.reserved_overlap(*allowed) {
                return Err(Error::ReservedCutsAllowed {
                    reserved,
                    allowed: *allowed,
                });
            }
        }
        object.allowed = allowed;
        Ok(())
    }

    /// Writes the ranges that nobody reserved, in order, to `out`.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`] tells how many entries are needed; as many as fit are written.
    pub fn ranges(&self, ioas: IoasId, out: &mut [Span<Iova>]) -> Result<Ranges, Error> {
        let object = self.ioas.need(ioas)?;
        let mut count = 0_usize;
        object.unreserved(|start, last| {
            if let Some(slot) = out.get_mut(count) {
                *slot = span(start, last);
            }
            count = count.saturating_add(1);
            ControlFlow::<()>::Continue(())
        });
        if count > out.len() {
            return Err(Error::BufferTooSmall { needed: count });
        }
        Ok(Ranges {
            count,
            alignment: self.alignment(ioas)?,
        })
    }

    /// What addresses and lengths of mappings must be a multiple of, in bytes: 1 without domains.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn alignment(&self, ioas: IoasId) -> Result<u64, Error> {
        let object = self.ioas.need(ioas)?;
        let pages = object
            .domains
            .iter()
            .flat_map(|shown| self.backend.windows(shown.table))
            .map(|window| window.pages.smallest());
        Ok(pages.fold(object.base_alignment(), u64::max))
    }

    /// Switches large pages on or off for what is mapped from then on.
    ///
    /// # Errors
    /// [`Error::HugePagesInUse`] when they are switched off while a domain shows mappings;
    /// [`Error::Misaligned`] when mappings exist that 4 KiB pages could not show.
    pub fn set_huge_pages(&mut self, ioas: IoasId, huge_pages: HugePages) -> Result<(), Error> {
        let object = self.ioas.need_mut(ioas)?;
        if huge_pages == HugePages::Off && object.huge_pages == HugePages::On {
            if !object.domains.is_empty() && object.areas.len() > 0 {
                return Err(Error::HugePagesInUse);
            }
            let misaligned = object.areas.visit(0, u64::MAX, |area| {
                let all = area.start | area.bytes() | area.offset;
                if all & (PAGE.saturating_sub(1)) == 0 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(area.start)
                }
            });
            if let Some(value) = misaligned {
                return Err(Error::Misaligned {
                    value,
                    alignment: PAGE,
                });
            }
        }
        object.huge_pages = huge_pages;
        Ok(())
    }

    /// Lets BARs be mapped into the address space, or no longer.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is switched off while BARs are mapped.
    pub fn set_peer_to_peer(&mut self, ioas: IoasId, peer: PeerToPeer) -> Result<(), Error> {
        let object = self.ioas.need_mut(ioas)?;
        if peer == PeerToPeer::Disabled && object.bar_areas > 0 {
            return Err(Error::Busy {
                object: ioas.any(),
                users: object.bar_areas,
            });
        }
        object.peer_to_peer = peer;
        Ok(())
    }
}
