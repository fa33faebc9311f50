//! A walker that looks at the tree after every single write, caches all it can, and knows what a
//! cache must never meet: an entry that contradicts one it still holds, a table that was freed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use hal::fake::{FakeFrames, FakeMemory};
use hal::{FrameAllocator, NotMemory, OutOfFrames, PhysMemory};
use pagetable::{Geometry, Invalidate, Scope, Stale};
use types::{Address, Pa};

pub(crate) const TABLES: u64 = 0x8000_0000;

/// The bits of a leaf that must not change while it is valid: output, memory type, shareability.
const FIXED: u64 = 0x0000_ffff_ffff_f000 | 0x33c;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    level: u8,
    fixed: u64,
}

/// Whose tables are walked.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Architecture {
    #[default]
    Arm,
    Power,
}

/// What a walker reads in an entry: a table or a leaf.
enum Seen {
    Nothing,
    Table(u64),
    Leaf(u64),
}

impl Architecture {
    fn read(self, word: u64, level: u8) -> Seen {
        match self {
            Self::Arm => match (u64::from_le(word), level) {
                (d, _) if d & 1 == 0 => Seen::Nothing,
                (d, 0..3) if d & 2 != 0 => Seen::Table(d & 0x0000_ffff_ffff_f000),
                (d, _) => Seen::Leaf(d & FIXED),
            },
            Self::Power => match u64::from_be(word) {
                d if d >> 63 == 0 => Seen::Nothing,
                d if d >> 62 == 2 => Seen::Table(d & 0x0fff_ffff_ffff_ff00),
                // The whole entry: every change goes through an invalid one.
                d => Seen::Leaf(d),
            },
        }
    }
}

/// The walker and its caches.
#[derive(Default)]
pub(crate) struct Walker {
    root: Cell<Option<(Pa, Geometry)>>,
    pub(crate) machine: Cell<Architecture>,
    probes: RefCell<Vec<u64>>,
    leaves: RefCell<BTreeMap<u64, Cached>>,
    /// By level of the entry and the first address it covers: the table it led to.
    links: RefCell<BTreeMap<(u8, u64), u64>>,
    doomed: RefCell<Vec<(u64, u64, Scope)>>,
    pub(crate) violations: RefCell<Vec<String>>,
    pub(crate) reads: Cell<usize>,
    pub(crate) writes: Cell<usize>,
    pub(crate) syncs: Cell<usize>,
}

impl Walker {
    pub(crate) fn start(&self, root: Pa, geometry: Geometry) {
        self.root.set(Some((root, geometry)));
    }

    pub(crate) fn probe(&self, at: u64) {
        let mut probes = self.probes.borrow_mut();
        if !probes.contains(&at) {
            probes.push(at);
        }
    }

    fn observe(&self, memory: &FakeMemory) {
        let Some((root, geometry)) = self.root.get() else {
            return;
        };
        for &at in self.probes.borrow().iter() {
            if at >> geometry.input_bits() != 0 {
                continue;
            }
            let mut table = root.bits();
            let mut level = geometry.root_level();
            loop {
                let shift = 39 - 9 * level;
                let mut index = at >> shift;
                if level != geometry.root_level() {
                    index %= 512;
                }
                let word = memory.read_u64(Pa::truncated(table + index * 8)).unwrap();
                let fixed = match self.machine.get().read(word, level) {
                    Seen::Nothing => break,
                    Seen::Leaf(fixed) => fixed,
                    Seen::Table(next) => {
                        table = next;
                        let region = (level, at >> shift << shift);
                        let was = self.links.borrow_mut().insert(region, table);
                        if was.is_some_and(|was| was != table) {
                            self.violation(format!("{at:#x}: table replaced while cached"));
                        }
                        level += 1;
                        continue;
                    }
                };
                let now = Cached { level, fixed };
                let was = self.leaves.borrow_mut().insert(at, now);
                if was.is_some_and(|was| was != now) {
                    self.violation(format!("{at:#x}: {was:x?} cached, now {now:x?}"));
                }
                break;
            }
        }
    }

    fn violation(&self, text: String) {
        self.violations.borrow_mut().push(text);
    }

    /// What happens to frames: nothing that is cached may be freed.
    fn freed(&self, block: Pa) {
        if self
            .links
            .borrow()
            .values()
            .any(|&table| table == block.bits())
        {
            self.violation(format!("table {block} freed while cached"));
        }
    }
}

impl<A: Address> Invalidate<A> for &Walker {
    fn publish(&mut self) {}

    fn invalidate(&mut self, stale: &Stale<A>) {
        assert!(stale.span.is_aligned(stale.stride), "{stale:?}");
        let span = (stale.span.start().bits(), stale.span.last().bits());
        self.doomed.borrow_mut().push((span.0, span.1, stale.scope));
    }

    fn invalidate_all(&mut self) {
        self.doomed.borrow_mut().push((0, u64::MAX, Scope::Walks));
    }

    fn sync(&mut self) {
        self.syncs.set(self.syncs.get() + 1);
        for (first, last, scope) in self.doomed.borrow_mut().drain(..) {
            self.leaves
                .borrow_mut()
                .retain(|&at, _| at < first || last < at);
            if scope == Scope::Walks {
                self.links.borrow_mut().retain(|&(level, start), _| {
                    let end = start | ((1 << (39 - 9 * level)) - 1);
                    end < first || last < start
                });
            }
        }
    }
}

/// Memory under the walker's eyes.
pub(crate) struct Watched<'a> {
    pub(crate) memory: &'a FakeMemory,
    pub(crate) walkers: [&'a Walker; 2],
}

impl PhysMemory for Watched<'_> {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        self.memory.read(pa, buffer)
    }
    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        self.memory.write(pa, bytes)
    }
    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        let [walker, _] = self.walkers;
        walker.reads.set(walker.reads.get() + 1);
        self.memory.read_u64(pa)
    }
    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        self.memory.write_u64(pa, value)?;
        for walker in self.walkers {
            walker.writes.set(walker.writes.get() + 1);
            walker.observe(self.memory);
        }
        Ok(())
    }
    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        self.memory.zero(pa, bytes)
    }
}

/// Frames under the walker's eyes.
pub(crate) struct WatchedFrames<'a> {
    pub(crate) frames: FakeFrames<'a>,
    pub(crate) walkers: [&'a Walker; 2],
}

impl FrameAllocator for WatchedFrames<'_> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        self.frames.alloc_zeroed(order)
    }
    fn free(&self, block: Pa, order: u8) {
        for walker in self.walkers {
            walker.freed(block);
        }
        self.frames.free(block, order);
    }
}

/// Everything a test needs around one tree.
pub(crate) struct Machine {
    pub(crate) memory: FakeMemory,
    pub(crate) walker: Walker,
    /// A second one, for a device's tree.
    pub(crate) device: Walker,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            memory: FakeMemory::new(Pa::truncated(TABLES), 256 << 12),
            walker: Walker::default(),
            device: Walker::default(),
        }
    }

    pub(crate) fn frames(&self) -> WatchedFrames<'_> {
        WatchedFrames {
            frames: FakeFrames::new(&self.memory),
            walkers: [&self.walker, &self.device],
        }
    }

    pub(crate) fn watched(&self) -> Watched<'_> {
        Watched {
            memory: &self.memory,
            walkers: [&self.walker, &self.device],
        }
    }

    pub(crate) fn word(&self, pa: u64) -> u64 {
        u64::from_le(self.memory.read_u64(Pa::truncated(pa)).unwrap())
    }

    /// Every table word, to prove that nothing changed.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; 256 << 12];
        self.memory.read(self.memory.base(), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn assert_clean(&self) {
        for walker in [&self.walker, &self.device] {
            let violations = walker.violations.borrow();
            assert!(violations.is_empty(), "{violations:#?}");
        }
    }
}
