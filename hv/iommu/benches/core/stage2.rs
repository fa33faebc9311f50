//! A backend over the project's stage-2 tables, in ordinary memory.

use core::cell::{Cell, RefCell};

use bulkhead_iommu::{
    Backend, BackendError, Binding, Capabilities, Endpoint, MemoryType, PageSizes, Permissions,
    Run, TableId, TableOptions, UnitId, Window, WindowLimits,
};
use hal::{FrameAllocator, NotMemory, OutOfFrames, PhysMemory};
use pagetable::{
    Execute, Geometry, NotLive, OutputSize, PageTable, Stage2, Stage2Access, Stage2Attributes,
    Stage2Memory,
};
use types::{Address, Iova, Pa, PageSize, Span};

const FRAME: u64 = 4096;
const BASE: u64 = 1 << 39;

/// Frames for tables: words in a vector, and a list of free frames.
pub(crate) struct Ram {
    words: Vec<Cell<u64>>,
    free: RefCell<Vec<Pa>>,
    next: Cell<u64>,
}

impl Ram {
    pub(crate) fn new(frames: usize) -> &'static Self {
        // One a run, for as long as the process lives.
        Box::leak(Box::new(Self {
            words: vec![Cell::new(0); frames * 512],
            free: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    fn word(&self, pa: Pa) -> Option<&Cell<u64>> {
        let offset = pa.bits().wrapping_sub(BASE);
        self.words.get(usize::try_from(offset / 8).ok()?)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Memory(pub(crate) &'static Ram);

impl PhysMemory for Memory {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let bytes = buffer.len();
        let (words, rest) = buffer.as_chunks_mut::<8>();
        if !rest.is_empty() {
            return Err(NotMemory { pa, bytes });
        }
        for (at, word) in (0_u64..).step_by(8).zip(words) {
            let from = pa.checked_add(at).and_then(|pa| self.0.word(pa));
            *word = from.ok_or(NotMemory { pa, bytes })?.get().to_ne_bytes();
        }
        Ok(())
    }

    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        let bytes = bytes.len();
        Err(NotMemory { pa, bytes })
    }

    #[inline]
    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        self.0
            .word(pa)
            .map(Cell::get)
            .ok_or(NotMemory { pa, bytes: 8 })
    }

    #[inline]
    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        let word = self.0.word(pa).ok_or(NotMemory { pa, bytes: 8 })?;
        word.set(value);
        Ok(())
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        let first = usize::try_from(pa.bits().wrapping_sub(BASE) / 8).unwrap_or(usize::MAX);
        let words = first.checked_add(bytes / 8);
        let words = words.and_then(|end| self.0.words.get(first..end));
        for word in words.ok_or(NotMemory { pa, bytes })? {
            word.set(0);
        }
        Ok(())
    }
}

impl FrameAllocator for Memory {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        let frames = 1_usize << order;
        if order == 0
            && let Some(pa) = self.0.free.borrow_mut().pop()
        {
            self.zero(pa, 4096).map_err(|_| OutOfFrames { frames })?;
            return Ok(pa);
        }
        let at = self.0.next.get().next_multiple_of(frames as u64);
        self.0.next.set(at + frames as u64);
        let pa = Pa::truncated(BASE + at * FRAME);
        let last = Pa::truncated(pa.bits() + (frames as u64 * FRAME - 8));
        self.0.word(last).ok_or(OutOfFrames { frames })?;
        Ok(pa)
    }

    fn free(&self, block: Pa, order: u8) {
        if order == 0 {
            self.0.free.borrow_mut().push(block);
        }
    }
}

pub(crate) type Tree = PageTable<Stage2<Iova>, Memory, Memory>;

pub(crate) fn tree(ram: &'static Ram) -> Tree {
    let geometry = Geometry::new::<Stage2<Iova>>(39, OutputSize::Bits40).expect("a valid shape");
    Tree::new(geometry, Memory(ram), Memory(ram)).expect("there are frames")
}

/// One unit, one table.
pub(crate) struct OneTable {
    tree: Tree,
    windows: [Window; 1],
    pub(crate) invalidations: u64,
}

impl OneTable {
    pub(crate) fn new(ram: &'static Ram) -> Self {
        let window = Window {
            span: Span::from_len(Iova::ZERO, 1 << 39).expect("it is not empty"),
            pages: PageSizes::new(&[PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G]),
        };
        Self {
            tree: tree(ram),
            windows: [window],
            invalidations: 0,
        }
    }
}

fn attributes(permissions: Permissions, memory: MemoryType) -> Stage2Attributes {
    Stage2Attributes {
        access: match permissions {
            Permissions::Read => Stage2Access::Read,
            Permissions::Write => Stage2Access::Write,
            Permissions::ReadWrite => Stage2Access::ReadWrite,
        },
        execute: Execute::Never,
        memory: match memory {
            MemoryType::Normal => Stage2Memory::NormalWriteBack,
            MemoryType::Device => Stage2Memory::DeviceNgnre,
        },
    }
}

impl Backend for OneTable {
    fn capabilities(&self, _: UnitId) -> Option<Capabilities> {
        Some(Capabilities {
            source_bits: 16,
            nesting: false,
            dirty: false,
            forces_coherence: true,
            atc_invalidation: true,
            dynamic_windows: false,
        })
    }

    fn create_table(&mut self, _: Endpoint, _: TableOptions) -> Result<TableId, BackendError> {
        Ok(TableId::new(0))
    }

    fn destroy_table(&mut self, _: TableId) {}

    #[inline]
    fn windows(&self, _: TableId) -> &[Window] {
        &self.windows
    }

    fn create_window(&mut self, _: TableId, _: PageSize, _: u64) -> Result<Window, BackendError> {
        Err(BackendError::Unsupported)
    }

    fn remove_window(&mut self, _: TableId, _: Iova) -> Result<(), BackendError> {
        Err(BackendError::Unsupported)
    }

    fn reset_windows(&mut self, _: TableId) -> Result<(), BackendError> {
        Err(BackendError::Unsupported)
    }

    fn window_limits(&self, _: TableId) -> WindowLimits {
        WindowLimits {
            available: 0,
            largest: 0,
            pages: PageSizes::NONE,
        }
    }

    fn map(&mut self, _: TableId, run: &Run) -> Result<(), BackendError> {
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        let attributes = attributes(run.permissions, run.memory);
        self.tree
            .map(span, run.pa, attributes, &mut NotLive)
            .map_err(|_| BackendError::OutOfMemory)
    }

    fn unmap(&mut self, _: TableId, span: Span<Iova>) {
        let gone = self.tree.unmap(span, &mut NotLive);
        assert!(gone.is_ok(), "whole areas never need a table");
    }

    fn invalidate(&mut self, _: TableId, _: Span<Iova>) -> Result<(), BackendError> {
        self.invalidations += 1;
        Ok(())
    }

    fn install(&mut self, _: Endpoint, _: &Binding) -> Result<(), BackendError> {
        Ok(())
    }
}
