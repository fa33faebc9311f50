//! From the ELF that the linker made to what a boot loader loads.

use anyhow::{Context as _, Result, bail, ensure};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

/// More than any hypervisor image: a wrong link would otherwise fill the memory.
const IMAGE_LIMIT: u64 = 64 << 20;
/// Where an arm64 Image has its magic number. [Linux, arch/arm64 booting, "call the kernel image"]
const ARM64_MAGIC_AT: usize = 56;
const ARM64_MAGIC: &[u8] = b"ARM\x64";

/// One loadable run of bytes at its physical address.
struct Segment<'a> {
    address: u64,
    bytes: &'a [u8],
}

fn segments(file: &[u8]) -> Result<Vec<Segment<'_>>> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(file).context("it is no 64-bit ELF")?;
    let endian = file.endian();
    let mut segments = Vec::new();
    for header in file.elf_header().program_headers(endian, file.data())? {
        if header.p_type(endian) != elf::PT_LOAD || header.p_filesz(endian) == 0 {
            continue;
        }
        let bytes = header
            .data(endian, file.data())
            .map_err(|()| anyhow::anyhow!("a segment lies outside of the file"))?;
        segments.push(Segment {
            address: header.p_paddr(endian),
            bytes,
        });
    }
    ensure!(!segments.is_empty(), "it has no loadable segment");
    segments.sort_by_key(|segment| segment.address);
    Ok(segments)
}

/// The bytes of all loadable segments, as they lie in memory.
///
/// # Errors
/// Not an ELF, nothing to load, overlapping or far-apart segments.
pub(crate) fn flatten(file: &[u8]) -> Result<Vec<u8>> {
    let segments = segments(file)?;
    let base = segments[0].address;
    let mut image: Vec<u8> = Vec::new();
    for segment in &segments {
        let at = segment.address - base;
        ensure!(
            at.saturating_add(segment.bytes.len() as u64) <= IMAGE_LIMIT,
            "its segments lie further apart than {IMAGE_LIMIT} bytes"
        );
        let at = usize::try_from(at)?;
        ensure!(
            at >= image.len(),
            "its segments overlap at {:#x}",
            segment.address
        );
        image.resize(at, 0);
        image.extend_from_slice(segment.bytes);
    }
    Ok(image)
}

/// The arm64 Image of an ELF whose first segment begins with the Image header.
///
/// # Errors
/// Those of [`flatten`], and a missing header.
pub(crate) fn arm64_image(file: &[u8]) -> Result<Vec<u8>> {
    let image = flatten(file)?;
    if image.get(ARM64_MAGIC_AT..ARM64_MAGIC_AT + ARM64_MAGIC.len()) != Some(ARM64_MAGIC) {
        bail!("it does not begin with an arm64 Image header: check the linker script");
    }
    Ok(image)
}

/// Bytes that are loaded from an ELF.
///
/// # Errors
/// Those of [`flatten`].
pub(crate) fn loaded_size(file: &[u8]) -> Result<u64> {
    Ok(flatten(file)?.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian ELF64 with loadable segments of (physical address, contents, memory size).
    fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0_u8; 64 + 56 * segments.len()];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        file[16] = 2;
        file[18] = 183;
        file[20] = 1;
        file[32] = 64;
        file[52] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        for (index, (address, bytes, memory)) in segments.iter().enumerate() {
            let at = 64 + 56 * index;
            let offset = file.len() as u64;
            let fields = [
                (8, offset),
                (16, *address),
                (24, *address),
                (32, bytes.len() as u64),
                (40, *memory),
            ];
            file[at] = 1;
            for (field, value) in fields {
                file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn segments_are_laid_out_by_physical_address() {
        let file = elf(&[(0x1010, b"cd", 2), (0x1000, b"ab", 2), (0x1020, b"", 64)]);
        let mut expected = b"ab".to_vec();
        expected.resize(16, 0);
        expected.extend_from_slice(b"cd");
        assert_eq!(flatten(&file).unwrap(), expected);
        assert_eq!(loaded_size(&file).unwrap(), 18);
    }

    #[test]
    fn an_image_needs_its_header() {
        let mut code = vec![0; 128];
        assert!(arm64_image(&elf(&[(0, &code, 128)])).is_err());
        code[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(arm64_image(&elf(&[(0, &code, 128)])).unwrap(), code);
        assert!(arm64_image(&elf(&[(0, &code[..58], 58)])).is_err());
    }

    #[test]
    fn faulty_files_are_errors() {
        assert!(flatten(b"").is_err());
        assert!(flatten(b"#!/bin/sh\n").is_err());
        assert!(flatten(&elf(&[])).is_err());
        assert!(flatten(&elf(&[(0, b"abcd", 4), (2, b"cd", 2)])).is_err());
        assert!(flatten(&elf(&[(0, b"ab", 2), (u64::MAX - 1, b"c", 1)])).is_err());
        let mut cut = elf(&[(0, b"abcd", 4)]);
        cut.truncate(cut.len() - 2);
        assert!(flatten(&cut).is_err());
    }
}
