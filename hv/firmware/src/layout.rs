//! Where everything a guest starts with goes in its memory.
//!
//! The kernel goes to the bottom of RAM (or where its ELF segments say); device tree, ACPI and
//! initrd go to the top of the first GiB of it, so that a kernel of unknown size has all the room
//! there is. Everything is checked against RAM and against everything else.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use types::{Address, Ipa, PageSize, Span};

use crate::kernel::{FLAT_OFFSET, IMAGE_ALIGNMENT, Kernel, KernelError, KernelFormat};
use crate::platform::{GuestPlatform, PlatformError};
use crate::{acpi, dt};

/// How far above the base of RAM the start-up data goes when it fits. Kernels map little more than
/// this before they know their memory.
const NEAR: u64 = 1 << 30;

/// How a guest is told what its machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirmwareKind {
    /// A device tree.
    #[default]
    DeviceTree,
    /// ACPI tables, found by the EFI tables an EFI stub would have left.
    Acpi,
}

/// What a guest starts with.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// How to read it.
    pub format: KernelFormat,
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// A device tree instead of the one that describes the platform; see [`dt::given`].
    pub tree: Option<&'a [u8]>,
    /// How the guest learns of its machine.
    pub firmware: FirmwareKind,
}

/// What a placement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The kernel, or a part of it.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The device tree.
    DeviceTree,
    /// The EFI and ACPI tables.
    Acpi,
}

/// Bytes and where they go. Memory no placement covers is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// What this is.
    pub item: Item,
    /// The first address.
    pub at: Ipa,
    /// The bytes.
    pub bytes: Cow<'a, [u8]>,
}

/// The registers the boot vCPU starts with, at EL1 with MMU and caches off; all others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The program counter.
    pub pc: Ipa,
    /// The address of the device tree.
    pub x0: Ipa,
}

/// A guest ready to be written into its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout<'a> {
    /// What goes where; none overlaps another.
    pub placements: Vec<Placement<'a>>,
    /// Where the boot vCPU starts.
    pub entry: Entry,
}

/// Why a guest cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The machine's description.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Something must be at an address that is not (all) RAM.
    #[error("{item:?} needs {bytes:#x} bytes of RAM at {at}")]
    NotRam {
        /// What it is.
        item: Item,
        /// Where it must be.
        at: Ipa,
        /// How long it is.
        bytes: u64,
    },
    /// Two things must be at one address.
    #[error("{item:?} at {at} lies over something else")]
    Overlap {
        /// What came second.
        item: Item,
        /// Where it must be.
        at: Ipa,
    },
    /// There is no room for something that may be anywhere.
    #[error("no room for {item:?} of {bytes:#x} bytes")]
    NoRoom {
        /// What it is.
        item: Item,
        /// How long it is.
        bytes: u64,
    },
    /// What was given as a device tree is none, or has names that are not allowed.
    #[error("the device tree that was given for it cannot be read")]
    GivenDeviceTree,
    /// The device tree is larger than Linux maps.
    #[error("the device tree has {0} bytes")]
    DeviceTreeTooLarge(usize),
}

/// Lays a guest out.
///
/// # Errors
/// [`FirmwareError`]: a kernel or a description that cannot be used, or too little RAM.
pub fn plan<'a>(
    platform: &GuestPlatform,
    payload: &Payload<'a>,
) -> Result<Layout<'a>, FirmwareError> {
    platform.check()?;
    let kernel = Kernel::parse(payload.kernel, payload.format)?;
    let mut ram = Ram::new(platform)?;
    let mut placements = Vec::new();
    let pc = place_kernel(&mut ram, &mut placements, &kernel)?;

    let mut initrd = None;
    if let Some(bytes) = payload.initrd.filter(|bytes| !bytes.is_empty()) {
        let span = ram.take(Item::Initrd, bytes.len() as u64, PageSize::SIZE_64K)?;
        initrd = Some(span);
        placements.push(Placement {
            item: Item::Initrd,
            at: span.start(),
            bytes: Cow::Borrowed(bytes),
        });
    }
    let tree = match payload.firmware {
        FirmwareKind::DeviceTree => match payload.tree {
            Some(tree) if tree.len() > dt::MAX_BYTES => {
                return Err(FirmwareError::DeviceTreeTooLarge(tree.len()));
            }
            Some(tree) => {
                dt::given(tree, platform, initrd).ok_or(FirmwareError::GivenDeviceTree)?
            }
            None => dt::build(platform, initrd)?,
        },
        FirmwareKind::Acpi => {
            // The length does not depend on the address.
            let item = Item::Acpi;
            let bytes = acpi::Blob::bytes_needed(platform).ok_or(PlatformError::Memory)?;
            let span = ram.take(item, bytes, PageSize::SIZE_64K)?;
            let blob = acpi::Blob::new(platform, span).ok_or(PlatformError::Memory)?;
            let tree = dt::build_for_acpi(platform, initrd, &blob.efi);
            placements.push(Placement {
                item,
                at: span.start(),
                bytes: Cow::Owned(blob.bytes),
            });
            tree
        }
    };
    if tree.len() > dt::MAX_BYTES {
        return Err(FirmwareError::DeviceTreeTooLarge(tree.len()));
    }
    // On its own 2 MiB block, which is what kernels map to read it.
    let span = ram.take(Item::DeviceTree, tree.len() as u64, PageSize::SIZE_2M)?;
    placements.push(Placement {
        item: Item::DeviceTree,
        at: span.start(),
        bytes: Cow::Owned(tree),
    });
    Ok(Layout {
        placements,
        entry: Entry {
            pc,
            x0: span.start(),
        },
    })
}

/// Places the kernel; returns its entry.
fn place_kernel<'a>(
    ram: &mut Ram,
    placements: &mut Vec<Placement<'a>>,
    kernel: &Kernel<'a>,
) -> Result<Ipa, FirmwareError> {
    let item = Item::Kernel;
    let mut place = |at: Ipa, bytes: &'a [u8]| {
        if !bytes.is_empty() {
            let bytes = Cow::Borrowed(bytes);
            placements.push(Placement { item, at, bytes });
        }
    };
    match kernel {
        Kernel::Image(image) => {
            let bytes = image.image_size;
            let no_room = FirmwareError::NoRoom { item, bytes };
            let base = ram.base.bits().checked_next_multiple_of(IMAGE_ALIGNMENT);
            let start = base
                .and_then(|base| base.checked_add(image.text_offset))
                .and_then(|start| Ipa::new(start).ok())
                .ok_or(no_room)?;
            ram.claim(item, start, bytes)?;
            for part in &image.parts {
                place(start.checked_add(part.offset).ok_or(no_room)?, part.bytes);
            }
            Ok(start)
        }
        Kernel::Elf(elf) => {
            for segment in &elf.segments {
                ram.claim(item, segment.at, segment.memory_size)?;
                place(segment.at, segment.bytes);
            }
            Ok(elf.entry)
        }
        Kernel::Flat(file) => {
            let bytes = file.len() as u64;
            let start = ram
                .base
                .checked_add(FLAT_OFFSET)
                .ok_or(FirmwareError::NoRoom { item, bytes })?;
            ram.claim(item, start, bytes)?;
            place(start, file);
            Ok(start)
        }
    }
}

/// Guest RAM and what of it is spoken for.
struct Ram {
    base: Ipa,
    spans: Vec<Span<Ipa>>,
    taken: Vec<Span<Ipa>>,
}

impl Ram {
    fn new(platform: &GuestPlatform) -> Result<Self, PlatformError> {
        let first = platform.memory.first().ok_or(PlatformError::Memory)?;
        Ok(Self {
            base: first.start(),
            spans: platform.memory.clone(),
            taken: Vec::new(),
        })
    }

    /// Claims exactly this range.
    fn claim(&mut self, item: Item, at: Ipa, bytes: u64) -> Result<(), FirmwareError> {
        let span = Span::from_len(at, bytes)
            .filter(|span| self.spans.iter().any(|ram| ram.contains_span(*span)))
            .ok_or(FirmwareError::NotRam { item, at, bytes })?;
        if self.taken.iter().any(|taken| taken.overlaps(span)) {
            return Err(FirmwareError::Overlap { item, at });
        }
        self.taken.push(span);
        Ok(())
    }

    /// Finds and claims room anywhere: at the top of the first [`NEAR`] bytes, else at the top of
    /// any RAM.
    fn take(
        &mut self,
        item: Item,
        bytes: u64,
        align: PageSize,
    ) -> Result<Span<Ipa>, FirmwareError> {
        let no_room = FirmwareError::NoRoom { item, bytes };
        let near = Span::from_len(self.base, NEAR);
        let first = self.spans.first().copied();
        let window = first.and_then(|ram| ram.intersection(near?));
        let span = window
            .iter()
            .chain(&self.spans)
            .find_map(|window| self.highest_free(*window, bytes, align))
            .ok_or(no_room)?;
        self.taken.push(span);
        Ok(span)
    }

    fn highest_free(&self, window: Span<Ipa>, bytes: u64, align: PageSize) -> Option<Span<Ipa>> {
        let below = bytes.checked_sub(1)?;
        let mut last = window.last();
        loop {
            let start = last.checked_sub(below)?.align_down(align);
            let span = Span::from_len(start, bytes)?;
            if !window.contains_span(span) {
                return None;
            }
            // Each turn ends below one more taken span, so the loop ends.
            match self.taken.iter().find(|taken| taken.overlaps(span)) {
                Some(taken) => last = taken.start().checked_sub(1)?,
                None => return Some(span),
            }
        }
    }
}
