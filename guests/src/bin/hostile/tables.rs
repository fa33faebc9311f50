//! Stage-1 translation: the guest's own memory where it is, everything else as it comes.

use guests::{read_register, write_register};

use crate::memory;
use guests::random::Random;

/// Entries of a level-1 table: 1 GiB each.
const ENTRIES: usize = 512;
/// The entry with the guest's memory.
const RAM: usize = 1;
/// A valid block with the access flag.
const BLOCK: u64 = 1 << 10 | 1;
/// Attribute index 1: device memory. Index 0 is normal memory, not cached.
const DEVICE: u64 = 1 << 2;
const SCTLR: u64 = 0x30d0_0800;

/// A CPU's tables.
pub(crate) struct Tables {
    lower: *mut u64,
    upper: *mut u64,
    cpu: usize,
}

impl Tables {
    /// The CPU's tables, not in use.
    pub(crate) fn of(cpu: usize) -> Self {
        let (lower, upper) = memory::tables(cpu);
        let place = |address: u64| core::ptr::with_exposed_provenance_mut::<u64>(address as usize);
        Self {
            lower: place(lower),
            upper: place(upper),
            cpu,
        }
    }

    fn put(table: *mut u64, index: usize, entry: u64) {
        // SAFETY: a table of this CPU, in memory kept for it; the walker may read it at any time.
        unsafe { table.wrapping_add(index % ENTRIES).write_volatile(entry) };
    }

    /// Identity, the lower half as normal memory, so that unaligned accesses reach devices too.
    fn fill(&self) {
        for index in 0..ENTRIES {
            let address = (index as u64) << 30;
            Self::put(self.lower, index, address | BLOCK);
            let upper = if index == RAM {
                0
            } else {
                address | BLOCK | DEVICE
            };
            Self::put(self.upper, index, upper);
        }
    }

    /// Random descriptors in random entries, but for those the guest itself needs.
    fn spoil(&self, random: &mut Random) {
        for _ in 0..16 {
            let address = match random.below(4) {
                0 => memory::scratch(random),
                1 => memory::device(random),
                2 => memory::nowhere(random),
                _ => random.bits(),
            };
            let entry = match random.below(3) {
                0 => address & !0xfff | 3,
                1 => address & !0x3fff_ffff | BLOCK,
                _ => address,
            };
            let index = random.below(ENTRIES as u64) as usize;
            if index > RAM {
                Self::put(self.lower, index, entry);
            }
            if index != RAM {
                Self::put(self.upper, index, entry);
            }
        }
    }

    /// Turns translation off, or on with tables that are good, spoilt, or (above) not there at all.
    pub(crate) fn change(&self, random: &mut Random) {
        write_register!("sctlr_el1", SCTLR);
        if random.one_in(3) {
            return;
        }
        self.fill();
        if !random.one_in(3) {
            self.spoil(random);
        }
        let (lower, mut upper) = memory::tables(self.cpu);
        if random.one_in(4) {
            upper = random.bits();
        }
        let range = (read_register!("id_aa64mmfr0_el1") & 0xf).min(5);
        // 39 bits each, 4 KiB granules.
        write_register!("tcr_el1", 25 | 25 << 16 | 2 << 30 | range << 32);
        write_register!("mair_el1", 0x0444);
        write_register!("ttbr0_el1", lower);
        write_register!("ttbr1_el1", upper);
        drop_translations();
        write_register!("sctlr_el1", SCTLR | 1);
    }
}

fn drop_translations() {
    // SAFETY: translations are walked anew.
    unsafe {
        core::arch::asm!(
            "dsb ish",
            "tlbi vmalle1",
            "dsb ish",
            "isb",
            options(nostack)
        )
    };
}

/// Turns translation on with a table outside of memory. This CPU does nothing useful ever after: each
/// fetch of an instruction is an abort for the hypervisor, which passes it to the guest, whose vector
/// cannot be fetched either.
///
/// The table is where the hypervisor must judge. A table in the guest's own memory without a valid entry
/// would fault without end at EL1 alone, and under `-icount`, where such a loop executes nothing, stop
/// the emulator's time.
pub(crate) fn jump_into_the_void(random: &mut Random) -> ! {
    let nowhere = 1 << 37 | random.bits() & 0xf_ffff_f000;
    write_register!("tcr_el1", 25 | 25 << 16 | 2 << 30 | 2 << 32);
    write_register!("ttbr0_el1", nowhere);
    write_register!("ttbr1_el1", random.bits());
    drop_translations();
    write_register!("sctlr_el1", SCTLR | 1);
    loop {
        core::hint::spin_loop();
    }
}
