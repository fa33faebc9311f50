//! `devtool kexec`: another kernel in place of this one. The shell's part is what comes before and after.
//!
//! The next kernel goes where this one is, its initial RAM disk where this one's was, with its device tree and
//! the code that enters it. The device tree is this one's with another command line, which must not be longer:
//! all else that firmware said is still so.
//!
//! Those places are not a matter of taste. A redistributor that has its LPIs on keeps writing to its tables.
//! Linux, when it finds that, takes over the table of properties if it lies in memory that is reserved, and
//! clears it: which its own image and RAM disk are. Where these were, no table has ever been.
//! [Linux, drivers/irqchip/irq-gic-v3-its.c]

use devtool::image::{self, HEADER, Image};
use devtool::iomem;
use devtool::iomem::Range;
use devtool::tree;

use crate::linux::{Arguments, File, Memory, Open, Segment, kexec};
use crate::{Failure, println};

const PAGE: u64 = 4096;
/// More than a device tree may be long, and more than `/proc/iomem` is.
const TEXT: usize = (2 << 20) + 1;

/// Starts the kernel.
///
/// # Errors
/// Why it cannot be.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let (Some(kernel), Some(initrd), Some(line)) =
        (arguments.get(2), arguments.get(3), arguments.get(4))
    else {
        return Err(Failure::Usage);
    };
    let kernel = whole(kernel, "the kernel cannot be read")?;
    let head = kernel.get(..HEADER).unwrap_or_default();
    let image = Image::of(head).ok_or(Failure::Wrong("the kernel is no arm64 image"))?;
    // A disk is longer than what is on it.
    let used = usize::try_from(image.bytes).unwrap_or(usize::MAX);
    let kernel = kernel.get(..used).unwrap_or(kernel);
    let initrd = whole(initrd, "the initial RAM disk cannot be read")?;
    let tree = text("/sys/firmware/fdt", "the device tree cannot be read")?;
    let memory = text("/proc/iomem", "/proc/iomem cannot be read")?;
    let memory =
        core::str::from_utf8(memory).map_err(|_| Failure::Wrong("/proc/iomem is no text"))?;

    let old = iomem::kernel(memory).ok_or(Failure::Wrong("/proc/iomem has no kernel"))?;
    let old_initrd = tree::initrd(tree).ok_or(Failure::Wrong("there was no initial RAM disk"))?;
    let kernel_at = old.start + image.text_offset;
    if kernel_at + image.bytes > old.end.next_multiple_of(PAGE) {
        let room = old.end - old.start;
        return Err(Failure::Differs(
            "bytes of a kernel that is larger than this one",
            image.bytes,
            room,
        ));
    }
    let entry_at = old_initrd.start.next_multiple_of(PAGE);
    let tree_at = entry_at + PAGE;
    let initrd_at = (tree_at + tree.len() as u64).next_multiple_of(PAGE);
    let new_initrd = Range {
        start: initrd_at,
        end: initrd_at + initrd.len() as u64,
    };
    if new_initrd.end > old_initrd.end {
        let room = old_initrd.end.saturating_sub(initrd_at);
        return Err(Failure::Differs(
            "bytes of a RAM disk that is larger than this one's",
            initrd.len() as u64,
            room,
        ));
    }
    tree::change(tree, line, new_initrd).map_err(Failure::Wrong)?;
    let entry = Memory::new(4096)
        .map_err(|error| Failure::Call("memory", error))?
        .into_slice();
    for (place, byte) in entry.iter_mut().zip(image::entry(kernel_at, tree_at)) {
        *place = byte;
    }
    println!(
        "devtool: kernel at {kernel_at:#x}, device tree at {tree_at:#x}, initrd at {initrd_at:#x}"
    );
    let segments = [
        Segment::new(kernel, kernel_at, image.bytes),
        Segment::new(tree, tree_at, tree.len() as u64),
        Segment::new(initrd, initrd_at, initrd.len() as u64),
        Segment::new(entry, entry_at, PAGE),
    ];
    kexec(entry_at, &segments)
}

/// All of a file or disk.
fn whole(path: &'static str, what: &'static str) -> Result<&'static [u8], Failure> {
    let failed = |error| Failure::Call(what, error);
    let file = File::open(&[path], Open::Read).map_err(failed)?;
    let bytes = file.seek_end().map_err(failed)?;
    file.seek_start().map_err(failed)?;
    let buffer = Memory::new(bytes.max(1)).map_err(failed)?.into_slice();
    let read = file.read_all(buffer).map_err(failed)?;
    buffer.get(..read).ok_or(Failure::Wrong(what))
}

/// A file that does not know its length.
fn text(path: &'static str, what: &'static str) -> Result<&'static mut [u8], Failure> {
    let failed = |error| Failure::Call(what, error);
    let file = File::open(&[path], Open::Read).map_err(failed)?;
    let buffer = Memory::new(TEXT).map_err(failed)?.into_slice();
    let read = file.read_all(buffer).map_err(failed)?;
    if read == TEXT {
        return Err(Failure::Wrong(what));
    }
    buffer.get_mut(..read).ok_or(Failure::Wrong(what))
}
