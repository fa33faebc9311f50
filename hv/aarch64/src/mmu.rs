//! The hypervisor's own map: EL2 stage 1, every address mapped to itself, W^X.
//!
//! The tables are those of the `aarch64-paging` crate. What is not mapped here does not exist for
//! the hypervisor: the guard of the boot stack, memory firmware keeps, devices nobody drives.

use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ID_AA64MMFR0_EL1, MAIR_EL2, Readable, SCTLR_EL2, TCR_EL2, TTBR0_EL2, Writeable,
};
use aarch64_paging::descriptor::{El23Attributes as Attributes, PhysicalAddress};
use aarch64_paging::mair::{Mair, MairAttribute, NormalMemory};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use aarch64_paging::{MapError, Mapping};
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use types::{Address, Pa, PageSize, Span, Va};

use crate::cpu::identity;
use crate::entry::SCTLR_EL2_OFF;
use crate::image::{self, Part};

/// Tables that exist before the heap does: enough for the image and the device tree wherever they
/// lie (a root, and three levels for two places that may straddle a boundary each).
const EARLY_TABLES: usize = 20;

static mut POOL: [PageTable<Attributes>; EARLY_TABLES] = [PageTable::EMPTY; EARLY_TABLES];

/// Memory types, as indices into `MAIR_EL2`.
const MAIR: Mair = Mair::EMPTY
    .with_attribute(0, MairAttribute::DEVICE_NGNRE)
    .with_attribute(1, MairAttribute::normal(WRITE_BACK, WRITE_BACK));

const WRITE_BACK: NormalMemory = NormalMemory::WriteBackNonTransientReadWriteAllocate;

const NORMAL: Attributes = Attributes::VALID
    .union(Attributes::ATTRIBUTE_INDEX_1)
    .union(Attributes::INNER_SHAREABLE)
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1);
const CODE: Attributes = NORMAL.union(Attributes::READ_ONLY);
const CONSTANTS: Attributes = CODE.union(Attributes::XN);
const DATA: Attributes = NORMAL.union(Attributes::XN);
const DEVICE: Attributes = Attributes::VALID
    .union(Attributes::ATTRIBUTE_INDEX_0)
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::XN);

/// `SCTLR_EL2`: MMU, caches, stack alignment check, and nothing writable is executable, whatever
/// the tables say. [DDI 0487 D19.2.136]
const SCTLR: u64 = SCTLR_EL2_OFF | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

/// Where tables come from: the pool at first, then the heap.
struct Tables {
    used: usize,
}

impl Translation<Attributes> for Tables {
    #[optimize(size)]
    fn allocate_table(&mut self) -> (NonNull<PageTable<Attributes>>, PhysicalAddress) {
        let table = if self.used < EARLY_TABLES {
            let pool = (&raw mut POOL).cast::<PageTable<Attributes>>();
            // SAFETY: `used` is inside the pool; each entry is handed out once.
            let table = unsafe { pool.add(self.used) };
            self.used += 1;
            table
        } else {
            // SAFETY: a table has a size.
            unsafe { alloc_zeroed(LAYOUT) }.cast()
        };
        let Some(table) = NonNull::new(table) else {
            alloc::alloc::handle_alloc_error(LAYOUT)
        };
        (table, PhysicalAddress(table.as_ptr().expose_provenance()))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<Attributes>>) {
        let pool = (&raw const POOL).addr();
        if !(pool..pool + size_of::<[PageTable<Attributes>; EARLY_TABLES]>())
            .contains(&table.as_ptr().addr())
        {
            // SAFETY: not of the pool, so of the heap, by the caller's promise.
            unsafe { dealloc(table.as_ptr().cast(), LAYOUT) };
        }
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Attributes>> {
        let table = core::ptr::with_exposed_provenance_mut(pa.0);
        // A table at address 0 cannot be: both sources exclude it.
        NonNull::new(table).unwrap_or(NonNull::dangling())
    }
}

const LAYOUT: Layout = Layout::new::<PageTable<Attributes>>();

/// What memory is mapped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Constants: read.
    Constants,
    /// Data: read and write.
    Data,
    /// Device registers: read and write, in order, uncached.
    Device,
}

/// The map under construction or in use.
pub(crate) struct Map {
    /// In use until the machine is off, so never dropped.
    mapping: ManuallyDrop<Mapping<Tables, El2>>,
}

impl Map {
    /// A map of the image alone.
    pub(crate) fn new() -> Result<Self, MapError> {
        let mut map = Self {
            mapping: ManuallyDrop::new(Mapping::new(Tables { used: 0 }, 0, El2)),
        };
        for (span, part) in image::parts() {
            let attributes = match part {
                Part::Text => CODE,
                Part::Constants => CONSTANTS,
                Part::Data => DATA,
            };
            map.map(span.start().bits(), span, attributes)?;
        }
        Ok(map)
    }

    /// Maps the pages that hold `span` to themselves.
    pub(crate) fn identity(&mut self, span: Span<Pa>, purpose: Use) -> Result<(), MapError> {
        let attributes = match purpose {
            Use::Constants => CONSTANTS,
            Use::Data => DATA,
            Use::Device => DEVICE,
        };
        self.map(span.start().bits(), span, attributes)
    }

    /// Maps `span` at `va`, as data.
    pub(crate) fn data_at(&mut self, va: Va, span: Span<Pa>) -> Result<(), MapError> {
        self.map(va.bits(), span, DATA)
    }

    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
    fn map(&mut self, va: u64, span: Span<Pa>, attributes: Attributes) -> Result<(), MapError> {
        let pa = span.start().align_down(PageSize::SIZE_4K);
        let start = va & !PageSize::SIZE_4K.mask();
        let bytes = (span.last().bits() | PageSize::SIZE_4K.mask()) - pa.bits() + 1;
        let range = MemoryRegion::new(start as usize, (start + bytes) as usize);
        self.mapping.map_range(
            &range,
            PhysicalAddress(identity(pa)),
            attributes,
            Constraints::empty(),
        )
    }

    /// Turns the MMU and the caches on.
    ///
    /// # Safety
    /// The map must hold everything that is in use: code, stack, data.
    #[optimize(size)]
    pub(crate) unsafe fn enable(&self) {
        let registers = self.registers();
        MAIR_EL2.set(registers.mair);
        TCR_EL2.set(registers.tcr);
        TTBR0_EL2.set(registers.ttbr);
        // SAFETY: drops stale translations and instructions; the map is the caller's promise.
        unsafe {
            core::arch::asm!(
                "dsb sy",
                "ic iallu",
                "tlbi alle2",
                "dsb nsh",
                options(nostack)
            );
        };
        barrier::isb(barrier::SY);
        SCTLR_EL2.set(registers.sctlr);
        barrier::isb(barrier::SY);
    }

    /// Tells the tables that they are live: from now on changes need invalidation. Not possible
    /// before the MMU is on, because it counts atomically.
    pub(crate) fn mark_live(&self) {
        self.mapping.mark_active();
    }

    /// What a CPU needs to use the map.
    pub(crate) fn registers(&self) -> Registers {
        // 48-bit input; tables walked cacheable and inner shareable; 4 KiB granule; output as wide
        // as the CPU has; bits 31 and 23 are RES1. [DDI 0487 D19.2.145]
        let pa_range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
        let tcr = 1 << 31 | 1 << 23 | pa_range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
        Registers {
            mair: MAIR.0,
            tcr,
            ttbr: self.mapping.root_address().0 as u64,
            sctlr: SCTLR,
        }
    }
}

/// Register values that put a CPU on the map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    pub(crate) mair: u64,
    pub(crate) tcr: u64,
    pub(crate) ttbr: u64,
    pub(crate) sctlr: u64,
}

/// The parts of `memory` that are neither in the image nor in `holes`.
pub(crate) fn without(memory: &[Span<Pa>], holes: &[Span<Pa>]) -> alloc::vec::Vec<Span<Pa>> {
    let mut holes = holes.to_vec();
    holes.push(image::whole());
    boot::usable(memory, &holes)
}
