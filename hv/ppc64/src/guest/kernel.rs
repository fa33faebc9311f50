//! A guest's kernel file, as a pseries firmware loads it.

use alloc::vec::Vec;

use object::LittleEndian;
use object::elf::{EM_PPC64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// Where an image goes; the offset of each part is its physical address, cut to 256 MiB.
pub(crate) const BASE: u64 = 0x40_0000;
const OFFSET: u64 = 0x0fff_ffff;

/// A kernel that cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("it is not a little-endian 64-bit ELF file")]
    NotElf64,
    #[error("it is an ELF file for machine {0}, not 64-bit POWER")]
    Machine(u16),
    #[error("a segment of it lies outside the file")]
    Segment,
}

/// What goes where.
#[derive(Clone, Debug)]
pub(crate) struct Kernel<'a> {
    /// Addresses and bytes; memory is zero elsewhere.
    pub(crate) parts: Vec<(u64, &'a [u8])>,
    /// The first address behind it.
    pub(crate) end: u64,
}

/// A file that is put where an image goes as it is.
pub(crate) fn flat(file: &[u8]) -> Kernel<'_> {
    Kernel {
        parts: Vec::from([(BASE, file)]),
        end: BASE.saturating_add(file.len() as u64),
    }
}

/// Reads an ELF file.
pub(crate) fn parse(file: &[u8]) -> Result<Kernel<'_>, Error> {
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(|_| Error::NotElf64)?;
    let endian = header.endian().map_err(|_| Error::NotElf64)?;
    let machine = header.e_machine(endian);
    if machine != EM_PPC64 {
        return Err(Error::Machine(machine.0));
    }
    let segments = header
        .program_headers(endian, file)
        .map_err(|_| Error::NotElf64)?;
    let mut kernel = Kernel {
        parts: Vec::new(),
        end: BASE,
    };
    for segment in segments {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let bytes = segment.data(endian, file).map_err(|()| Error::Segment)?;
        let at = BASE + (segment.p_paddr(endian) & OFFSET);
        let end = at
            .checked_add(segment.p_memsz(endian))
            .ok_or(Error::Segment)?;
        kernel.end = kernel.end.max(end);
        kernel.parts.push((at, bytes));
    }
    Ok(kernel)
}
