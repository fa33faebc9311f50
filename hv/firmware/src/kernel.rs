//! What kind of kernel a guest was given: arm64 `Image`, ELF, or bytes without a header.
//!
//! The file is untrusted: every offset and length in it is checked against the file.

use alloc::vec::Vec;

use object::LittleEndian;
use object::elf::{EM_AARCH64, ET_DYN, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use types::{Address, Ipa, Span};

/// Where a kernel without a header goes, in bytes from the base of RAM.
pub const FLAT_OFFSET: u64 = 0x8_0000;

/// The alignment of the base that `text_offset` counts from, in bytes [Linux,
/// Documentation/arch/arm64/booting.rst].
pub const IMAGE_ALIGNMENT: u64 = 0x20_0000;

/// The most loadable segments an ELF file may have.
pub const MAX_SEGMENTS: usize = 64;

/// How to read a kernel file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelFormat {
    /// By its magic numbers; a file with none of them is [`KernelFormat::Flat`].
    #[default]
    Auto,
    /// An arm64 `Image`.
    Image,
    /// An AArch64 ELF executable.
    Elf,
    /// Bytes to put at [`FLAT_OFFSET`] and to enter at the first one.
    Flat,
}

/// A way of packing a kernel that Bulkhead does not unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A self-extracting EFI application (`vmlinuz.efi`).
    EfiZboot,
    /// gzip.
    Gzip,
    /// LZ4, frame or legacy.
    Lz4,
    /// LZMA, alone or in an xz container.
    Xz,
    /// bzip2.
    Bzip2,
    /// Zstandard.
    Zstd,
}

/// Why a kernel cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The file is empty.
    #[error("the kernel is empty")]
    Empty,
    /// The file is packed; unpack it when the bundle is made.
    #[error("the kernel is packed ({0:?}); give it unpacked")]
    Packed(Packing),
    /// The arm64 magic is not where an `Image` has it.
    #[error("the kernel has no arm64 Image header")]
    NotAnImage,
    /// A big-endian kernel: guests start little-endian.
    #[error("the kernel is big-endian")]
    BigEndian,
    /// `text_offset` is 2 MiB or more, or `image_size` is beyond the IPA space.
    #[error(
        "the kernel's Image header has text_offset {text_offset:#x}, image_size {image_size:#x}"
    )]
    ImageHeader {
        /// Bytes from a 2 MiB boundary to the image.
        text_offset: u64,
        /// Bytes the running image takes.
        image_size: u64,
    },
    /// Not a 64-bit little-endian ELF file.
    #[error("the kernel is not a 64-bit little-endian ELF file")]
    NotElf64,
    /// An ELF file for another machine.
    #[error("the kernel is an ELF file for machine {0}, not AArch64")]
    ElfMachine(u16),
    /// Neither an executable nor a position-independent one.
    #[error("the kernel is an ELF file of type {0}, not an executable")]
    ElfType(u16),
    /// The program headers do not fit the file, or there are too many of them.
    #[error("the kernel's ELF program headers are damaged")]
    ElfHeaders,
    /// A segment whose bytes are not in the file or whose addresses wrap.
    #[error("segment {0} of the kernel's ELF file is damaged")]
    ElfSegment(usize),
    /// No segment is loaded, or the entry lies in none.
    #[error("the kernel's ELF entry {0:#x} is in no segment")]
    ElfEntry(u64),
}

/// A kernel, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel<'a> {
    /// An arm64 `Image`.
    Image(Image<'a>),
    /// An ELF executable whose segments say where they go.
    Elf(Elf<'a>),
    /// Bytes for [`FLAT_OFFSET`].
    Flat(&'a [u8]),
}

impl<'a> Kernel<'a> {
    /// Reads a kernel file.
    ///
    /// # Errors
    /// [`KernelError`]: packed, damaged, or not of the format asked for.
    pub fn parse(file: &'a [u8], format: KernelFormat) -> Result<Self, KernelError> {
        if file.is_empty() {
            return Err(KernelError::Empty);
        }
        match format {
            KernelFormat::Flat => Ok(Self::Flat(file)),
            KernelFormat::Image => {
                refuse_packed(file)?;
                Image::parse(file).map(Self::Image)
            }
            KernelFormat::Elf => {
                refuse_packed(file)?;
                parse_elf(file)
            }
            KernelFormat::Auto => {
                refuse_packed(file)?;
                if file.starts_with(b"\x7fELF") {
                    parse_elf(file)
                } else if Image::has_magic(file) {
                    Image::parse(file).map(Self::Image)
                } else {
                    Ok(Self::Flat(file))
                }
            }
        }
    }
}

fn refuse_packed(file: &[u8]) -> Result<(), KernelError> {
    // "MZ", two bytes of jump, "zimg": Linux, drivers/firmware/efi/libstub/zboot-header.S.
    let zboot = file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg");
    let magics: [(&[u8], Packing); 7] = [
        (b"\x1f\x8b", Packing::Gzip),
        (b"\xfd7zXZ\0", Packing::Xz),
        (b"\x5d\0\0", Packing::Xz),
        (b"BZh", Packing::Bzip2),
        (b"\x28\xb5\x2f\xfd", Packing::Zstd),
        (b"\x04\x22\x4d\x18", Packing::Lz4),
        (b"\x02\x21\x4c\x18", Packing::Lz4),
    ];
    let by_magic = magics
        .into_iter()
        .find(|(magic, _)| file.starts_with(magic))
        .map(|(_, packing)| packing);
    match by_magic.or(zboot.then_some(Packing::EfiZboot)) {
        Some(packing) => Err(KernelError::Packed(packing)),
        None => Ok(()),
    }
}

/// The field of `N` bytes at `offset`.
fn field<const N: usize>(file: &[u8], offset: usize) -> Option<[u8; N]> {
    file.get(offset..)?.first_chunk().copied()
}

/// A run of bytes of an [`Image`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Where it goes, in bytes from the start of the image.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// An arm64 `Image` [Linux, Documentation/arch/arm64/booting.rst], as a file of its own or as the
/// content of a `vmlinux`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Where the image starts, in bytes from a 2 MiB boundary; below 2 MiB.
    pub text_offset: u64,
    /// What the running image takes in bytes, counted from its start and never less than its parts
    /// reach: beyond them is memory the kernel clears.
    pub image_size: u64,
    /// The bytes of the image, inside `image_size`.
    pub parts: Vec<Part<'a>>,
}

impl<'a> Image<'a> {
    const TEXT_OFFSET_AT: usize = 8;
    const IMAGE_SIZE_AT: usize = 16;
    const FLAGS_AT: usize = 24;
    const MAGIC_AT: usize = 56;
    const MAGIC: [u8; 4] = *b"ARM\x64";
    const FLAG_BIG_ENDIAN: u64 = 1;

    fn has_magic(file: &[u8]) -> bool {
        field(file, Self::MAGIC_AT) == Some(Self::MAGIC)
    }

    fn parse(file: &'a [u8]) -> Result<Self, KernelError> {
        let parts = Vec::from([Part {
            offset: 0,
            bytes: file,
        }]);
        Self::of_parts(file, file.len() as u64, parts)
    }

    /// The image that begins with `header` and whose parts reach to `reach` bytes from its start.
    fn of_parts(header: &[u8], reach: u64, parts: Vec<Part<'a>>) -> Result<Self, KernelError> {
        if !Self::has_magic(header) {
            return Err(KernelError::NotAnImage);
        }
        let word = |offset| {
            field(header, offset)
                .map(u64::from_le_bytes)
                .ok_or(KernelError::NotAnImage)
        };
        if word(Self::FLAGS_AT)? & Self::FLAG_BIG_ENDIAN != 0 {
            return Err(KernelError::BigEndian);
        }
        let declared = word(Self::IMAGE_SIZE_AT)?;
        // Before Linux 3.17 the size was absent, and then the offset is not to be trusted either.
        let text_offset = match declared {
            0 => FLAT_OFFSET,
            _ => word(Self::TEXT_OFFSET_AT)?,
        };
        let image_size = declared.max(reach);
        if text_offset >= IMAGE_ALIGNMENT || image_size > Ipa::MAX {
            return Err(KernelError::ImageHeader {
                text_offset,
                image_size,
            });
        }
        Ok(Self {
            text_offset,
            image_size,
            parts,
        })
    }
}

/// A part of an ELF file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it goes.
    pub at: Ipa,
    /// What the file has of it.
    pub bytes: &'a [u8],
    /// What it takes in memory, in bytes: never less than the file has, and at least 1.
    pub memory_size: u64,
}

/// An AArch64 ELF executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf<'a> {
    /// What is loaded, in file order.
    pub segments: Vec<Segment<'a>>,
    /// The physical address of the entry.
    pub entry: Ipa,
}

type Header = FileHeader64<LittleEndian>;

/// A `PT_LOAD` whose file bytes and lengths are sound; its addresses are still anything.
struct Load<'a> {
    index: usize,
    virtual_address: u64,
    physical_address: u64,
    memory_size: u64,
    bytes: &'a [u8],
}

/// Reads an ELF file. An arm64 `vmlinux`, whose physical addresses are virtual ones and mean
/// nothing, comes out as the [`Image`] it holds.
fn parse_elf(file: &[u8]) -> Result<Kernel<'_>, KernelError> {
    let header = Header::parse(file).map_err(|_| KernelError::NotElf64)?;
    let endian = header.endian().map_err(|_| KernelError::NotElf64)?;
    let machine = header.e_machine(endian);
    if machine != EM_AARCH64 {
        return Err(KernelError::ElfMachine(machine.0));
    }
    let kind = header.e_type(endian);
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(KernelError::ElfType(kind.0));
    }
    let headers = header
        .program_headers(endian, file)
        .map_err(|_| KernelError::ElfHeaders)?;
    let mut loads = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let memory_size = header.p_memsz(endian);
        if header.p_type(endian) != PT_LOAD || memory_size == 0 {
            continue;
        }
        if loads.len() >= MAX_SEGMENTS {
            return Err(KernelError::ElfHeaders);
        }
        let bytes = header
            .data(endian, file)
            .map_err(|()| KernelError::ElfSegment(index))?;
        if bytes.len() as u64 > memory_size {
            return Err(KernelError::ElfSegment(index));
        }
        loads.push(Load {
            index,
            virtual_address: header.p_vaddr(endian),
            physical_address: header.p_paddr(endian),
            memory_size,
            bytes,
        });
    }
    let lowest = loads.iter().min_by_key(|load| load.physical_address);
    match lowest {
        Some(lowest) if lowest.physical_address > Ipa::MAX && Image::has_magic(lowest.bytes) => {
            vmlinux(lowest, &loads).map(Kernel::Image)
        }
        _ => executable(header.e_entry(endian), &loads).map(Kernel::Elf),
    }
}

/// The image a `vmlinux` holds: it may run anywhere, so only distances count.
fn vmlinux<'a>(lowest: &Load<'a>, loads: &[Load<'a>]) -> Result<Image<'a>, KernelError> {
    let mut parts = Vec::new();
    let mut reach = 0;
    for load in loads {
        let damaged = KernelError::ElfSegment(load.index);
        let offset = load
            .physical_address
            .checked_sub(lowest.physical_address)
            .ok_or(damaged)?;
        let end = offset.checked_add(load.memory_size).ok_or(damaged)?;
        reach = end.max(reach);
        parts.push(Part {
            offset,
            bytes: load.bytes,
        });
    }
    Image::of_parts(lowest.bytes, reach, parts)
}

fn executable<'a>(entry: u64, loads: &[Load<'a>]) -> Result<Elf<'a>, KernelError> {
    let mut segments = Vec::new();
    let mut start = None;
    for load in loads {
        let damaged = KernelError::ElfSegment(load.index);
        let at = Ipa::new(load.physical_address).map_err(|_| damaged)?;
        if Span::from_len(at, load.memory_size).is_none() {
            return Err(damaged);
        }
        let into = entry.checked_sub(load.virtual_address);
        if let Some(into) = into.filter(|into| *into < load.memory_size) {
            start = at.checked_add(into);
        }
        segments.push(Segment {
            at,
            bytes: load.bytes,
            memory_size: load.memory_size,
        });
    }
    let entry = start.ok_or(KernelError::ElfEntry(entry))?;
    Ok(Elf { segments, entry })
}
