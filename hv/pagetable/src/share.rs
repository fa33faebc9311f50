//! One tree's tables in another: the devices' view of a VM uses the tables that map its RAM for its
//! CPUs, under a root of its own.

use hal::{FrameAllocator, NotMemory, PhysMemory};
use types::{Address, Pa, PageSize, Span};

use crate::format::{self, Entry, Format, Link, MAX_SHARES, Vmsav8};
use crate::table::{Run, input, pieces};
use crate::{Error, Invalidate, PageTable, Stage, Stage2};

/// The level whose entries are shared: 1 GiB each. Every root is at this level or above it.
const LEVEL: u8 = 1;

/// Where the level-1 entry for an address is.
enum Place {
    At(Pa),
    /// The root is at level 0 and has no table there. Where its entry is.
    NoTable(Pa),
}

/// Counts the frames that a walk over ascending addresses needs for level-1 tables.
#[derive(Default)]
struct Regions {
    last: Option<u64>,
}

impl Regions {
    /// 1 for the first address of each region that lacks its table.
    fn table_for(&mut self, at: u64) -> u64 {
        let region = Some(at >> format::shift(0));
        u64::from(core::mem::replace(&mut self.last, region) != region)
    }
}

impl<S: Stage, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    fn place(&self, at: u64) -> Result<Place, NotMemory> {
        let level = self.geometry.root_level();
        let slot = self.slot(self.root_bits(), level, at);
        Ok(if level == LEVEL {
            Place::At(slot)
        } else {
            match self.entry(slot, level)? {
                Entry::Table(link) => Place::At(self.slot(link.table, LEVEL, at)),
                Entry::Invalid | Entry::Leaf(_) => Place::NoTable(slot),
            }
        })
    }

    fn gibibytes(&self, span: Span<S::Input>) -> Result<Run, Error<S::Input>> {
        let run = self.run(span)?;
        let mask = PageSize::SIZE_1G.mask();
        match (run.0 & mask, run.1 & mask == mask) {
            (0, true) => Ok(run),
            (0, false) => Err(Error::Misaligned { value: run.1 + 1 }),
            _ => Err(Error::Misaligned { value: run.0 }),
        }
    }
}

impl<A: Address, M: PhysMemory, F: FrameAllocator> PageTable<Stage2<A>, M, F> {
    /// Lets this tree translate `span` by the tables of `owner`, now and after every change to them.
    /// The span is in units of 1 GiB, in which this tree maps nothing.
    ///
    /// The tables stay the owner's: only it maps, unmaps and protects there, and the caches it is
    /// then given must stand for those of both trees. The owner keeps a table for every unit, mapped
    /// or not, so a unit is no longer one block: blocks of 1 GiB become blocks of 2 MiB here, by
    /// break-before-make. Both trees' memory and permissions are the same in `span`.
    ///
    /// # Errors
    /// Any [`Error`], with both trees translating as before (blocks of the owner may have been split):
    /// [`Error::AlreadyMapped`] when this tree has something there, [`Error::Borrowed`] when the owner
    /// has it from another tree itself, [`Error::Shared`] when it has seven borrowers. Addresses are
    /// those of this tree.
    pub fn share_subtree<B, N, G, I, J>(
        &mut self,
        owner: &mut PageTable<Stage2<B>, N, G>,
        span: Span<A>,
        caches: &mut I,
        owner_caches: &mut J,
    ) -> Result<(), Error<A>>
    where
        B: Address,
        N: PhysMemory,
        G: FrameAllocator,
        I: Invalidate<A>,
        J: Invalidate<B>,
    {
        let run = self.gibibytes(span)?;
        if run.1 >> owner.geometry.input_bits() != 0 {
            return Err(Error::InputRange { last: span.last() });
        }
        let (mine, theirs) = self.check_share(owner, run)?;
        let mut mine = self.reserve(mine)?;
        let mut theirs = match owner.reserve(theirs) {
            Ok(chain) => chain,
            Err(error) => {
                self.free_chain(mine)?;
                return Err(rename(error));
            }
        };
        for (at, _) in pieces(LEVEL, run) {
            let Place::At(slot) = owner.place(at)? else {
                continue;
            };
            if let Entry::Leaf(old) = owner.entry(slot, LEVEL)?
                && let Err(error) = owner.unfold(slot, LEVEL, old, at, owner_caches)
            {
                self.free_chain(mine)?;
                owner.free_chain(theirs)?;
                return Err(rename(error));
            }
        }
        for (at, _) in pieces(LEVEL, run) {
            let slot = match owner.place(at)? {
                Place::At(slot) => slot,
                Place::NoTable(slot) => {
                    let table = owner.take(&mut theirs)?;
                    owner.link(slot, table, owner_caches)?;
                    owner.slot(table, LEVEL, at)
                }
            };
            let link = match owner.entry(slot, LEVEL)? {
                Entry::Table(link) => link,
                Entry::Invalid | Entry::Leaf(_) => Link::to(owner.take(&mut theirs)?),
            };
            owner_caches.publish();
            let shares = link.shares + 1;
            owner.write(slot, Vmsav8::link(Link { shares, ..link }))?;
            let slot = match self.place(at)? {
                Place::At(slot) => slot,
                Place::NoTable(slot) => {
                    let table = self.take(&mut mine)?;
                    self.link(slot, table, caches)?;
                    self.slot(table, LEVEL, at)
                }
            };
            caches.publish();
            let borrowed = Link {
                borrowed: true,
                ..Link::to(link.table)
            };
            self.write(slot, Vmsav8::link(borrowed))?;
        }
        caches.publish();
        owner_caches.publish();
        Ok(())
    }

    /// Frames that sharing `run` needs in this tree and in the owner's.
    fn check_share<B: Address, N: PhysMemory, G: FrameAllocator>(
        &self,
        owner: &PageTable<Stage2<B>, N, G>,
        run: Run,
    ) -> Result<(u64, u64), Error<A>> {
        let (mut mine, mut theirs) = (0, 0);
        let (mut my_regions, mut their_regions) = (Regions::default(), Regions::default());
        for (first, _) in pieces(LEVEL, run) {
            let at = input::<Stage2<A>>(first);
            match self.place(first)? {
                Place::NoTable(_) => mine += my_regions.table_for(first),
                Place::At(slot) => {
                    if self.entry(slot, LEVEL)? != Entry::Invalid {
                        return Err(Error::AlreadyMapped { at });
                    }
                }
            }
            theirs += match owner.place(first)? {
                Place::NoTable(_) => 1 + their_regions.table_for(first),
                Place::At(slot) => match owner.entry(slot, LEVEL)? {
                    Entry::Invalid => 1,
                    // `unfold` allocates its own.
                    Entry::Leaf(_) => 0,
                    Entry::Table(link) if link.borrowed => return Err(Error::Borrowed { at }),
                    Entry::Table(link) if link.shares == MAX_SHARES => {
                        return Err(Error::Shared { at });
                    }
                    Entry::Table(_) => 0,
                },
            };
        }
        Ok((mine, theirs))
    }

    /// Ends what [`PageTable::share_subtree`] began, for the same or a smaller span. When it returns,
    /// no cache of this tree holds a translation of the span, and the owner's tables are its own.
    ///
    /// # Errors
    /// Any [`Error`], with nothing changed: [`Error::NotMapped`] where this tree does not use the
    /// owner's table.
    pub fn unshare_subtree<B, N, G, I>(
        &mut self,
        owner: &mut PageTable<Stage2<B>, N, G>,
        span: Span<A>,
        caches: &mut I,
    ) -> Result<(), Error<A>>
    where
        B: Address,
        N: PhysMemory,
        G: FrameAllocator,
        I: Invalidate<A>,
    {
        let run = self.gibibytes(span)?;
        if run.1 >> owner.geometry.input_bits() != 0 {
            return Err(Error::InputRange { last: span.last() });
        }
        for (at, _) in pieces(LEVEL, run) {
            self.shared_slots(owner, at)?;
        }
        for (at, _) in pieces(LEVEL, run) {
            let (slot, ..) = self.shared_slots(owner, at)?;
            self.write(slot, 0)?;
        }
        caches.publish();
        caches.invalidate_all();
        caches.sync();
        for (at, _) in pieces(LEVEL, run) {
            if let Place::At(slot) = owner.place(at)?
                && let Entry::Table(link) = owner.entry(slot, LEVEL)?
            {
                let shares = link.shares.saturating_sub(1);
                owner.write(slot, Vmsav8::link(Link { shares, ..link }))?;
            }
        }
        Ok(())
    }

    /// The entries of both trees for a unit they share.
    fn shared_slots<B: Address, N: PhysMemory, G: FrameAllocator>(
        &self,
        owner: &PageTable<Stage2<B>, N, G>,
        first: u64,
    ) -> Result<(Pa, Pa), Error<A>> {
        let at = input::<Stage2<A>>(first);
        let not_shared = Error::NotMapped { at };
        let (Place::At(mine), Place::At(theirs)) = (self.place(first)?, owner.place(first)?) else {
            return Err(not_shared);
        };
        match (self.entry(mine, LEVEL)?, owner.entry(theirs, LEVEL)?) {
            (Entry::Table(a), Entry::Table(b)) if a.borrowed && a.table == b.table => {
                Ok((mine, theirs))
            }
            _ => Err(not_shared),
        }
    }
}

/// The owner's refusal, in this tree's addresses, which are the same numbers.
fn rename<A: Address, B: Address>(error: Error<B>) -> Error<A> {
    let same = |at: B| A::truncated(at.bits());
    match error {
        Error::Misaligned { value } => Error::Misaligned { value },
        Error::InputRange { last } => Error::InputRange { last: same(last) },
        Error::OutputRange { pa } => Error::OutputRange { pa },
        Error::AlreadyMapped { at } => Error::AlreadyMapped { at: same(at) },
        Error::NotMapped { at } => Error::NotMapped { at: same(at) },
        Error::Borrowed { at } => Error::Borrowed { at: same(at) },
        Error::Shared { at } => Error::Shared { at: same(at) },
        Error::OutOfFrames(out) => Error::OutOfFrames(out),
        Error::NotMemory(not) => Error::NotMemory(not),
    }
}
