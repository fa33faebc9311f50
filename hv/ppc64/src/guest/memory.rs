//! A guest's memory: frames, the tree that maps them, and bytes by guest real address.
//!
//! The part for memory is made once, before a vCPU runs, and never changed: no CPU can hold a translation
//! of it that is out of date. Registers of devices come and go.

use alloc::vec::Vec;

use hal::Mutex;
use hal::{FrameAllocator, NotMemory, PhysMemory};
use pagetable::{Invalidate, NotLive, PageTable, Radix, RadixAccess, RadixAttributes, RadixMemory};
use types::{Address, Ipa, Pa, Span};

use crate::memory::Ram;

/// The largest piece that is taken at once: what one leaf maps.
const LARGEST_ORDER: u8 = 18;

/// A piece of memory that is contiguous on both sides.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    frames: Pa,
    order: u8,
}

impl Piece {
    fn bytes(&self) -> u64 {
        4096 << self.order
    }
}

/// Memory from guest real address 0 on.
pub(crate) struct GuestMemory<'f, M, F: FrameAllocator> {
    memory: M,
    tree: Mutex<PageTable<Radix, M, &'f F>>,
    /// What the partition table holds for the tree.
    entry: u64,
    pieces: Vec<Piece>,
    bytes: u64,
}

/// There is not enough memory for a guest, or its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for {bytes:#x} bytes of guest memory")]
pub(crate) struct NoRoom {
    bytes: u64,
}

/// An access that is not wholly in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at guest real address {at:#x} are not its memory")]
pub(crate) struct Outside {
    at: u64,
    bytes: usize,
}

impl<'f, M: PhysMemory + Copy, F: FrameAllocator> GuestMemory<'f, M, F> {
    /// `bytes` bytes of zeroed memory, a multiple of 4 KiB, in the largest pieces there are.
    pub(crate) fn new(memory: M, frames: &'f F, bytes: u64) -> Result<Self, NoRoom> {
        let no_room = NoRoom { bytes };
        let tree = PageTable::new_radix(memory, frames).map_err(|_| no_room)?;
        let mut guest = Self {
            memory,
            entry: tree.partition_entry(),
            tree: Mutex::new(tree),
            pieces: Vec::new(),
            bytes,
        };
        match guest.fill(frames) {
            Ok(()) => Ok(guest),
            Err(none) => {
                guest.give_back(frames);
                Err(none)
            }
        }
    }

    fn fill(&mut self, frames: &F) -> Result<(), NoRoom> {
        let bytes = self.bytes;
        let no_room = NoRoom { bytes };
        let mut at = 0;
        let mut order = LARGEST_ORDER;
        while at < bytes {
            // The largest piece that the rest and the alignment allow and that is free.
            while 4096 << order > bytes - at || at & ((4096 << order) - 1) != 0 {
                order -= 1;
            }
            let found = loop {
                match frames.alloc_zeroed(order) {
                    Ok(found) => break found,
                    Err(_) if order > 0 => order -= 1,
                    Err(_) => return Err(no_room),
                }
            };
            let piece = Piece {
                at,
                frames: found,
                order,
            };
            self.pieces.push(piece);
            let span = Span::from_len(Ipa::truncated(at), piece.bytes()).ok_or(no_room)?;
            self.tree
                .get_mut()
                .map(span, found, RadixAttributes::RAM, &mut NotLive)
                .map_err(|_| no_room)?;
            at += piece.bytes();
        }
        Ok(())
    }

    /// Gives all of it back. Nothing was ever told of it: no partition has the tree, no device the memory.
    pub(crate) fn give_back(self, frames: &F) {
        for piece in &self.pieces {
            frames.free(piece.frames, piece.order);
        }
        // It shares no table with another, so it can be destroyed.
        let _ = self.tree.into_inner().destroy(&mut NotLive);
    }

    /// Shows registers of a device, at the addresses that they have, where nothing is shown.
    pub(crate) fn map_registers(&self, pa: Pa, bytes: u64) -> Result<(), NoRoom> {
        self.map_at(pa, bytes, pa, RadixAttributes::DEVICE)
    }

    /// Shows a block of all ones in the place of registers, again and again, where nothing is shown.
    pub(crate) fn map_ones(&self, at: Pa, bytes: u64, ones: (Pa, u64)) -> Result<(), NoRoom> {
        const ONES: RadixAttributes = RadixAttributes {
            access: RadixAccess::Read,
            memory: RadixMemory::Normal,
        };
        let no_room = NoRoom { bytes };
        let (ones, most) = ones;
        let mut done = 0;
        while done < bytes {
            let here = most.min(bytes - done);
            let at = at.checked_add(done).ok_or(no_room)?;
            self.map_at(at, here, ones, ONES)?;
            done += here;
        }
        Ok(())
    }

    fn map_at(
        &self,
        at: Pa,
        bytes: u64,
        pa: Pa,
        attributes: RadixAttributes,
    ) -> Result<(), NoRoom> {
        let no_room = NoRoom { bytes };
        let at = Ipa::new(at.bits()).map_err(|_| no_room)?;
        let span = Span::from_len(at, bytes).ok_or(no_room)?;
        if at.bits() < self.bytes {
            return Err(no_room);
        }
        // What was not there is not cached.
        let mapped = self.tree.lock().map(span, pa, attributes, &mut NotLive);
        mapped.map_err(|_| no_room)
    }

    /// Shows nothing in the place of registers.
    pub(crate) fn unmap_registers(&self, pa: Pa, bytes: u64, caches: &mut impl Invalidate<Ipa>) {
        let at = Ipa::new(pa.bits()).ok();
        let span = at.and_then(|at| Span::from_len(at, bytes));
        if let Some(span) = span.filter(|span| span.start().bits() >= self.bytes) {
            // Where nothing is shown there is nothing to do.
            let _ = self.tree.lock().unmap(span, caches);
        }
    }

    /// The pieces: where for the guest, where in the machine, how many bytes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, Pa, u64)> {
        let pieces = self.pieces.iter();
        pieces.map(|piece| (piece.at, piece.frames, piece.bytes()))
    }

    /// Zeroes all of it. No vCPU may be running.
    pub(crate) fn clear(&self) -> Result<(), NotMemory> {
        for piece in &self.pieces {
            let bytes = usize::try_from(piece.bytes()).unwrap_or(0);
            self.memory.zero(piece.frames, bytes)?;
        }
        Ok(())
    }

    /// Where a guest real address is.
    pub(crate) fn walk(&self, at: Ipa) -> vm::Walk {
        match self.tree.lock().walk(at) {
            Ok(leaf) => vm::Walk::Mapped {
                pa: leaf.pa.bits(),
                bytes: leaf.size.bytes(),
                level: leaf.level,
                descriptor: leaf.descriptor,
            },
            Err(fault) => vm::Walk::Unmapped { level: fault.level },
        }
    }

    /// What the partition table holds for this guest.
    pub(crate) fn partition_entry(&self) -> u64 {
        self.entry
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands each part of the range to `access`: its place in our memory, and which bytes of the
    /// range it is.
    fn parts(
        &self,
        at: u64,
        bytes: usize,
        mut access: impl FnMut(Pa, usize, usize) -> bool,
    ) -> Result<(), Outside> {
        let outside = Outside { at, bytes };
        let end = at.checked_add(bytes as u64).ok_or(outside)?;
        if end > self.bytes {
            return Err(outside);
        }
        let mut done = 0;
        while done < bytes {
            let here = at + done as u64;
            let next = self.pieces.partition_point(|piece| piece.at <= here);
            let piece = next
                .checked_sub(1)
                .and_then(|i| self.pieces.get(i))
                .ok_or(outside)?;
            let offset = here - piece.at;
            let left = usize::try_from(piece.bytes() - offset).unwrap_or(usize::MAX);
            let run = left.min(bytes - done);
            let pa = piece.frames.checked_add(offset).ok_or(outside)?;
            if !access(pa, done, run) {
                return Err(outside);
            }
            done += run;
        }
        Ok(())
    }

    /// Copies from the guest's memory.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), Outside> {
        self.parts(at, buffer.len(), |pa, from, bytes| {
            self.memory
                .read(pa, &mut buffer[from..from + bytes])
                .is_ok()
        })
    }

    /// Copies to the guest's memory.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Outside> {
        self.parts(at, bytes.len(), |pa, from, run| {
            self.memory.write(pa, &bytes[from..from + run]).is_ok()
        })
    }

    /// Instructions there may have been written: no CPU may run old ones.
    /// [Power ISA 3.1B Book II §1.9]
    pub(crate) fn flush_code(&self, at: u64, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let _ = self.parts(at, bytes, |pa, _, run| {
            crate::memory::flush_code(pa, run);
            true
        });
    }

    /// Writes a big-endian cell.
    pub(crate) fn write_cell(&self, at: u64, value: u32) -> Result<(), Outside> {
        self.write(at, &value.to_be_bytes())
    }
}

impl<F: FrameAllocator> GuestMemory<'_, Ram, F> {
    /// Changes a big-endian cell, at a multiple of 4.
    #[optimize(speed)]
    #[inline]
    pub(crate) fn change_cell(
        &self,
        at: u64,
        change: impl FnOnce(u32) -> u32,
    ) -> Result<(), Outside> {
        let outside = Outside { at, bytes: 4 };
        // Pieces begin and end at multiples of 4 KiB. Most of the memory is in the first ones.
        let mut pieces = self.pieces.iter();
        let here = |piece: &&Piece| at.wrapping_sub(piece.at) < piece.bytes();
        let piece = pieces.find(here).ok_or(outside)?;
        let pa = piece.frames.checked_add(at - piece.at).ok_or(outside)?;
        let change = |cell| u32::to_be(change(u32::from_be(cell)));
        self.memory.change_u32(pa, change).map_err(|_| outside)
    }
}
