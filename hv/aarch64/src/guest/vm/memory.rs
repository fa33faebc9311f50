//! A VM's memory: taken, shown to its vCPUs by stage 2, read and written for it.

use alloc::vec::Vec;

use boot::{Frames, Taken};
use firmware::GuestPlatform;
use hal::PhysMemory;
use pagetable::{Geometry, Invalidate, NotLive, PageTable, Stage2, Stage2Attributes, Stale};
use types::{Address, Iova, Ipa, Pa, PageSize, Span};

use super::{BuildError, Frame, IPA_BITS, Pieces, Tree, Vm};
use crate::guest::{read_register, write_register};
use crate::hardware::Backend;
use crate::memory::Ram;

/// The largest piece of RAM that is taken at once: 1 GiB.
const LARGEST_ORDER: u8 = 18;
/// The smallest: 2 MiB, so that stage 2 never needs page-sized entries for RAM.
const SMALLEST_ORDER: u8 = 9;

impl Vm {
    /// Copies into guest memory; `None` when some of it is none, and what came before is written.
    pub(crate) fn copy_in(&self, at: Ipa, bytes: &[u8]) -> Option<()> {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (pa, room) = self.translate(at)?;
            let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (head, tail) = rest.split_at(now);
            self.memory.write(pa, head).ok()?;
            rest = tail;
            at = at.checked_add(now as u64)?;
        }
        Some(())
    }

    /// Copies out of guest memory; `None` when some of it is none.
    pub(crate) fn copy_out(&self, at: Ipa, into: &mut [u8]) -> Option<()> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let (pa, room) = self.translate(at)?;
            let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (head, tail) = rest.split_at_mut(now);
            self.memory.read(pa, head).ok()?;
            rest = tail;
            at = at.checked_add(now as u64)?;
        }
        Some(())
    }

    /// Copies words out of guest memory, each in one access; `None` when some of it is none, or `at` is
    /// between words.
    pub(crate) fn copy_words(&self, at: Ipa, words: &mut [u64]) -> Option<()> {
        let (pa, room) = self.translate(at)?;
        if room >= size_of_val(words) as u64 {
            return self.memory.read_words(pa, words).ok();
        }
        let mut at = at;
        for word in words {
            let (pa, _) = self.translate(at)?;
            self.memory
                .read_words(pa, core::slice::from_mut(word))
                .ok()?;
            at = at.checked_add(8)?;
        }
        Some(())
    }

    /// Writes a word of 32 bits in one access, after all that was written before; `None` when it is none of guest
    /// memory, or `at` is between words.
    #[inline]
    pub(crate) fn store_word(&self, at: Ipa, word: u32) -> Option<()> {
        let (pa, room) = self.translate(at)?;
        if room < 4 {
            return None;
        }
        self.memory.write_word(pa, word).ok()
    }

    /// Whether so many bytes from an address on are its memory.
    pub(crate) fn is_memory_span(&self, at: Ipa, bytes: usize) -> bool {
        let mut at = at;
        let mut left = bytes as u64;
        while left > 0 {
            let Some((_, room)) = self.translate(at) else {
                return false;
            };
            left = left.saturating_sub(room);
            match at.checked_add(room) {
                Some(next) => at = next,
                None => return left == 0,
            }
        }
        true
    }

    /// Reads an instruction of the guest.
    pub(crate) fn fetch(&self, at: Ipa) -> Option<u32> {
        let (pa, _) = self.translate(at)?;
        let mut word = [0; 4];
        self.memory.read(pa, &mut word).ok()?;
        Some(u32::from_le_bytes(word))
    }

    /// Where a guest physical address is, and how many bytes from there on are next to it.
    fn translate(&self, at: Ipa) -> Option<(Pa, u64)> {
        self.ram
            .iter()
            .find(|(span, _)| span.contains(at))
            .and_then(|(span, pa)| {
                let offset = at.offset_from(span.start())?;
                Some((pa.checked_add(offset)?, span.len()?.checked_sub(offset)?))
            })
    }

    /// Its memory: where the guest sees it, and where it is.
    pub(crate) fn ram(&self) -> &[(Span<Ipa>, Pa)] {
        &self.ram
    }

    /// Shows a part of a device's BAR; false where something is already.
    pub(crate) fn map_device(&self, span: Span<Ipa>, pa: Pa) -> bool {
        let mut tlb = Tlb::of(self.vttbr);
        let mut tree = self.stage2.lock();
        match tree.map(span, pa, Stage2Attributes::DEVICE, &mut tlb) {
            Ok(()) => true,
            Err(error) => {
                // The guest chooses where, as often as it likes.
                log::debug!("vm {}: a BAR at {span}: {error}", self.name);
                false
            }
        }
    }

    /// Takes it back: no vCPU reaches it when this returns.
    pub(crate) fn unmap_device(&self, span: Span<Ipa>) {
        let mut tlb = Tlb::of(self.vttbr);
        if let Err(error) = self.stage2.lock().unmap(span, &mut tlb) {
            log::error!("vm {}: a BAR at {span}: {error}", self.name);
        }
    }

    /// Lets a table for the VM's devices use the tables of its vCPUs, where it can.
    #[optimize(size)]
    pub(crate) fn lend(&self, backend: &mut Backend, table: iommu::TableId) {
        let mut tree = self.stage2.lock();
        for run in self.platform.memory_units() {
            let [first, last] = [run.start(), run.last()].map(|at| Iova::truncated(at.bits()));
            // Where it is refused, the table gets entries of its own.
            let Some(units) = Span::new(first, last) else {
                continue;
            };
            match backend.lend(table, &mut tree, units, &mut Tlb::of(self.vttbr)) {
                Ok(()) => log::debug!("vm {}: tables are shared in {units}", self.name),
                Err(error) => log::debug!("vm {}: tables are not shared: {error}", self.name),
            }
        }
    }

    /// Whether a guest physical address is its memory.
    pub(crate) fn is_memory(&self, ipa: u64) -> bool {
        Ipa::new(ipa).is_ok_and(|ipa| self.translate(ipa).is_some())
    }

    /// Where stage 2 takes a guest physical address.
    pub(crate) fn walk(&self, at: Ipa) -> vm::Walk {
        match self.stage2.lock().walk(at) {
            Ok(leaf) => vm::Walk::Mapped {
                pa: leaf.pa.bits(),
                bytes: leaf.size.bytes(),
                level: leaf.level,
                descriptor: leaf.descriptor,
            },
            Err(fault) => vm::Walk::Unmapped { level: fault.level },
        }
    }
}

impl vgic::its::GuestMemory for Vm {
    fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), vgic::its::NotRam> {
        self.copy_out(at, into).ok_or(vgic::its::NotRam { at })
    }
}

/// The TLBs of the CPUs, for one VM's translations.
struct Tlb {
    vttbr: u64,
    stale: bool,
}

impl Tlb {
    const fn of(vttbr: u64) -> Self {
        Self {
            vttbr,
            stale: false,
        }
    }
}

impl Invalidate<Ipa> for Tlb {
    fn publish(&mut self) {
        // SAFETY: orders memory accesses.
        unsafe { core::arch::asm!("dsb ishst", "isb", options(nostack)) };
    }

    fn invalidate(&mut self, _: &Stale<Ipa>) {
        self.stale = true;
    }

    fn invalidate_all(&mut self) {
        self.stale = true;
    }

    fn sync(&mut self) {
        if !core::mem::take(&mut self.stale) {
            return;
        }
        let resident = read_register!("vttbr_el2");
        write_register!("vttbr_el2", self.vttbr);
        // SAFETY: drops translations of the VM, which are walked anew. Nothing runs at EL1 meanwhile.
        unsafe {
            core::arch::asm!(
                "isb",
                "dsb ishst",
                "tlbi vmalls12e1is",
                "dsb ish",
                "isb",
                options(nostack)
            );
        };
        write_register!("vttbr_el2", resident);
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    }
}

/// Takes memory for a platform and maps it: what is placed where the guest believes it to be, and taken before, or
/// pieces. On an error all of it is free again.
#[optimize(size)]
pub(super) fn build_memory(
    platform: &GuestPlatform,
    placed: Option<Pa>,
    memory: Ram,
    mut taken: Taken<'static, Frames<Ram>>,
    frames: Frame,
) -> Result<(Tree, Pieces), BuildError> {
    let pa_range = read_register!("id_aa64mmfr0_el1") & 0xf;
    let output = pagetable::OutputSize::from_encoding(pa_range);
    let geometry = Geometry::new::<Stage2<Ipa>>(IPA_BITS.min(output.bits()), output)
        .map_err(|_| BuildError::Geometry)?;
    let mut tree = PageTable::new(geometry, memory, frames).map_err(BuildError::Memory)?;
    match fill(&mut tree, platform, placed, &mut taken) {
        Ok(ram) => {
            taken.keep();
            Ok((tree, ram))
        }
        Err(error) => {
            // It shares no table with another, so it can be destroyed; no CPU has walked it.
            let _ = tree.destroy(&mut NotLive);
            Err(error)
        }
    }
}

#[optimize(size)]
fn fill(
    tree: &mut Tree,
    platform: &GuestPlatform,
    placed: Option<Pa>,
    taken: &mut Taken<'static, Frames<Ram>>,
) -> Result<Pieces, BuildError> {
    let mut map = |span, pa| {
        tree.map(span, pa, Stage2Attributes::RAM, &mut NotLive)
            .map_err(BuildError::Stage2)
    };
    if let (Some(pa), [span]) = (placed, platform.memory.as_slice()) {
        map(*span, pa)?;
        return Ok(Vec::from([(*span, pa)]));
    }
    let mut ram = Vec::new();
    for span in &platform.memory {
        let mut at = span.start();
        let mut order = LARGEST_ORDER;
        while at <= span.last() {
            let left = span.last().bits() - at.bits() + 1;
            let bytes = PageSize::SIZE_4K.bytes() << order;
            if order > SMALLEST_ORDER && (bytes > left || at.bits() & (bytes - 1) != 0) {
                order -= 1;
                continue;
            }
            match taken.alloc_zeroed(order) {
                Ok(pa) => {
                    let piece = Span::from_len(at, bytes.min(left)).ok_or(BuildError::Geometry)?;
                    map(piece, pa)?;
                    ram.push((piece, pa));
                    at = match at.checked_add(bytes) {
                        Some(next) => next,
                        None => break,
                    };
                }
                Err(_) if order > SMALLEST_ORDER => order -= 1,
                Err(error) => return Err(BuildError::Memory(error)),
            }
        }
    }
    Ok(ram)
}
