//! Entry, system calls of Linux, and the memory they give. How a call is made, and the numbers: [`crate::abi`].
#![expect(unsafe_code, reason = "system calls, and memory that a device writes")]

use core::fmt;
use core::time::Duration;

use crate::Failure;
use crate::abi::{Call, KEXEC_ARCH, O_DIRECT, call};

/// The words of the command line.
#[derive(Clone, Copy)]
pub(crate) struct Arguments {
    /// Where the first stack pointer was: their number, and as many addresses.
    pub(crate) stack: *const usize,
}

impl Arguments {
    /// One of them, the program's name being the first; nothing if there are fewer, or it is no UTF-8.
    pub(crate) fn get(self, index: usize) -> Option<&'static str> {
        // SAFETY: the kernel put their number there. [System V ABI]
        let count = unsafe { self.stack.read() };
        if index >= count {
            return None;
        }
        let place = self.stack.wrapping_add(1 + index);
        // SAFETY: after their number come so many addresses.
        let address = unsafe { place.read() };
        let text = core::ptr::with_exposed_provenance(address);
        // SAFETY: each is that of a string that ends with a zero and stays.
        let text = unsafe { core::ffi::CStr::from_ptr(text) };
        text.to_str().ok()
    }
}

/// The kernel's number for why it refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) u16);

impl Errno {
    pub(crate) const PIPE: Self = Self(32);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const INVALID: Self = Self(22);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(1) => f.write_str("not permitted"),
            Self(2) => f.write_str("no such file"),
            Self(16) => f.write_str("busy"),
            Self::INVALID => f.write_str("invalid"),
            Self(number) => write!(f, "error {number}"),
        }
    }
}

/// Ends the program.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: nothing is left to be in use.
        let _ = unsafe {
            call(
                Call::ExitGroup,
                [status.unsigned_abs() as usize, 0, 0, 0, 0, 0],
            )
        };
    }
}

/// Standard output: what is gathered is written at once when there is no room for more, and at the end.
pub(crate) struct Output {
    gathered: [u8; 512],
    used: usize,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            gathered: [0; 512],
            used: 0,
        }
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.gathered.len() {
                self.flush()?;
            }
            if let Some(place) = self.gathered.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

impl Output {
    fn flush(&mut self) -> fmt::Result {
        let used = core::mem::take(&mut self.used);
        let mut bytes = self.gathered.get(..used).unwrap_or_default();
        while !bytes.is_empty() {
            // SAFETY: the kernel reads these bytes.
            let written = unsafe {
                call(
                    Call::Write,
                    [1, bytes.as_ptr().addr(), bytes.len(), 0, 0, 0],
                )
            };
            bytes = bytes
                .get(written.map_err(|_| fmt::Error)?..)
                .ok_or(fmt::Error)?;
        }
        Ok(())
    }
}

/// Waits.
pub(crate) fn sleep(time: Duration) {
    let time: [u64; 2] = [time.as_secs(), time.subsec_nanos().into()];
    // SAFETY: the kernel reads the two numbers.
    let _ = unsafe { call(Call::Nanosleep, [time.as_ptr().addr(), 0, 0, 0, 0, 0]) };
}

/// How a file is opened.
#[derive(Clone, Copy)]
pub(crate) enum Open {
    /// To be read.
    Read,
    /// To be read, without waiting for what is not there.
    Poll,
    /// To be read, past the kernel's cache: whole blocks into memory that begins where a block does.
    Direct,
    /// The same, to be written too; a write is over when it is on the disk.
    DirectWrite,
    /// To be read and written.
    ReadWrite,
}

/// The longest path that is opened, its zero among it.
const PATH: usize = 128;

/// Relative to the working directory.
const AT_FDCWD: usize = -100_isize as usize;

/// A path of these pieces, with its zero.
fn path(pieces: &[&str]) -> [u8; PATH] {
    let mut path = [0; PATH];
    let bytes = pieces.iter().flat_map(|piece| piece.bytes());
    // What does not fit is cut off, and not found.
    for (place, byte) in path.iter_mut().take(PATH - 1).zip(bytes) {
        *place = byte;
    }
    path
}

/// Where a link leads, read into this buffer.
pub(crate) fn link<'a>(pieces: &[&str], into: &'a mut [u8]) -> Result<&'a str, Errno> {
    let path = path(pieces);
    let buffer = [into.as_mut_ptr().addr(), into.len()];
    let arguments = [AT_FDCWD, path.as_ptr().addr(), buffer[0], buffer[1], 0, 0];
    // SAFETY: the path ends with a zero, and the kernel writes to these bytes.
    let bytes = unsafe { call(Call::Readlinkat, arguments) }?;
    let text = into.get(..bytes).unwrap_or_default();
    core::str::from_utf8(text).map_err(|_| Errno::INVALID)
}

/// An open file.
#[derive(Debug)]
pub(crate) struct File {
    number: usize,
}

impl File {
    /// Opens a path of these pieces.
    pub(crate) fn open(pieces: &[&str], how: Open) -> Result<Self, Errno> {
        const O_RDWR: usize = 0o2;
        const O_NONBLOCK: usize = 0o4000;
        const O_DSYNC: usize = 0o1_0000;
        let path = path(pieces);
        let flags = match how {
            Open::Read => 0,
            Open::Poll => O_NONBLOCK,
            Open::Direct => O_DIRECT,
            Open::DirectWrite => O_DIRECT | O_DSYNC | O_RDWR,
            Open::ReadWrite => O_RDWR,
        };
        let arguments = [AT_FDCWD, path.as_ptr().addr(), flags, 0, 0, 0];
        // SAFETY: the path ends with a zero.
        unsafe { call(Call::Openat, arguments) }.map(|number| Self { number })
    }

    /// A counter that others signal; reading it does not wait.
    pub(crate) fn event() -> Result<Self, Errno> {
        const EFD_NONBLOCK: usize = 0o4000;
        // SAFETY: no memory is involved.
        unsafe { call(Call::Eventfd2, [0, EFD_NONBLOCK, 0, 0, 0, 0]) }.map(|number| Self { number })
    }

    /// A socket of IPv4, which does not wait.
    pub(crate) fn socket(kind: usize, protocol: usize) -> Result<Self, Errno> {
        const AF_INET: usize = 2;
        const SOCK_NONBLOCK: usize = 0o4000;
        let arguments = [AF_INET, kind | SOCK_NONBLOCK, protocol, 0, 0, 0];
        // SAFETY: no memory is involved.
        unsafe { call(Call::Socket, arguments) }.map(|number| Self { number })
    }

    /// Binds a socket to a network interface.
    pub(crate) fn bind_to(&self, interface: &str) -> Result<(), Errno> {
        const SOL_SOCKET: usize = 1;
        const SO_BINDTODEVICE: usize = 25;
        let name = [interface.as_ptr().addr(), interface.len()];
        let arguments = [
            self.number,
            SOL_SOCKET,
            SO_BINDTODEVICE,
            name[0],
            name[1],
            0,
        ];
        // SAFETY: the kernel reads these bytes.
        unsafe { call(Call::Setsockopt, arguments) }.map(|_| ())
    }

    /// Gives a socket the address that it is to talk to.
    pub(crate) fn connect(&self, address: [u8; 16]) -> Result<(), Errno> {
        let arguments = [self.number, address.as_ptr().addr(), 16, 0, 0, 0];
        // SAFETY: the kernel reads these bytes.
        unsafe { call(Call::Connect, arguments) }.map(|_| ())
    }

    /// Writes what comes next.
    pub(crate) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        let arguments = [self.number, from.as_ptr().addr(), from.len(), 0, 0, 0];
        // SAFETY: the kernel reads these bytes.
        unsafe { call(Call::Write, arguments) }
    }

    /// Entries of a folder, as many as fit. [Linux, include/linux/dirent.h]
    pub(crate) fn entries(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let arguments = [self.number, into.as_mut_ptr().addr(), into.len(), 0, 0, 0];
        // SAFETY: the kernel writes to these bytes.
        unsafe { call(Call::Getdents64, arguments) }
    }

    /// Writes at an offset.
    pub(crate) fn write_at(&self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let from = [from.as_ptr().addr(), from.len()];
        let arguments = [self.number, from[0], from[1], word(offset), 0, 0];
        // SAFETY: the kernel reads these bytes.
        unsafe { call(Call::Pwrite64, arguments) }
    }

    /// Goes to the start of what is in the kernel's log since it was last cleared.
    pub(crate) fn seek_data(&self) -> Result<(), Errno> {
        self.seek(0, 3).map(|_| ())
    }

    /// The file with this number, which a call gave.
    pub(crate) fn of_number(number: usize) -> Self {
        Self { number }
    }

    /// Its number.
    pub(crate) fn number(&self) -> i32 {
        i32::try_from(self.number).unwrap_or(-1)
    }

    /// Reads what comes next.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let arguments = [self.number, into.as_mut_ptr().addr(), into.len(), 0, 0, 0];
        // SAFETY: the kernel writes to these bytes.
        unsafe { call(Call::Read, arguments) }
    }

    /// Reads until the buffer is full or there is no more.
    pub(crate) fn read_all(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest)? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        Ok(filled)
    }

    /// Reads at an offset.
    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let into = [into.as_mut_ptr().addr(), into.len()];
        let arguments = [self.number, into[0], into[1], word(offset), 0, 0];
        // SAFETY: the kernel writes to these bytes.
        unsafe { call(Call::Pread64, arguments) }
    }

    /// Reads 16 bits at an offset.
    pub(crate) fn read16(&self, offset: u64) -> Result<u16, Errno> {
        let mut value = [0; 2];
        let arguments = [
            self.number,
            value.as_mut_ptr().addr(),
            2,
            word(offset),
            0,
            0,
        ];
        // SAFETY: the kernel writes to these bytes.
        unsafe { call(Call::Pread64, arguments) }?;
        Ok(u16::from_le_bytes(value))
    }

    /// Writes 16 bits at an offset.
    pub(crate) fn write16(&self, offset: u64, value: u16) -> Result<(), Errno> {
        let value = value.to_le_bytes();
        let arguments = [self.number, value.as_ptr().addr(), 2, word(offset), 0, 0];
        // SAFETY: the kernel reads these bytes.
        unsafe { call(Call::Pwrite64, arguments) }.map(|_| ())
    }

    /// Goes to its end, whose offset it returns.
    pub(crate) fn seek_end(&self) -> Result<usize, Errno> {
        self.seek(0, 2)
    }

    /// Goes to its start.
    pub(crate) fn seek_start(&self) -> Result<(), Errno> {
        self.seek(0, 0).map(|_| ())
    }

    fn seek(&self, offset: usize, from: usize) -> Result<usize, Errno> {
        // SAFETY: no memory is involved.
        unsafe { call(Call::Lseek, [self.number, offset, from, 0, 0, 0]) }
    }

    /// An `ioctl` that takes a number.
    pub(crate) fn control(&self, request: usize, value: usize) -> Result<usize, Errno> {
        // SAFETY: the requests used with it take a number and no address.
        unsafe { call(Call::Ioctl, [self.number, request, value, 0, 0, 0]) }
    }

    /// An `ioctl` that takes a structure, and may change it.
    pub(crate) fn exchange<T>(&self, request: usize, with: &mut T) -> Result<usize, Errno> {
        let address = core::ptr::from_mut(with).expose_provenance();
        // SAFETY: the structures of `vfio` say their own size, beyond which the kernel does not go, that of `works` is
        // as long as the kernel's, and all are made of numbers.
        unsafe { call(Call::Ioctl, [self.number, request, address, 0, 0, 0]) }
    }

    /// Maps a piece of it, to be read and written by `Memory`'s volatile accesses.
    pub(crate) fn map(&self, offset: u64, bytes: usize) -> Result<Memory, Errno> {
        const MAP_SHARED: usize = 1;
        map(bytes, MAP_SHARED, self.number, word(offset))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the number is nobody's after this.
        let _ = unsafe { call(Call::Close, [self.number, 0, 0, 0, 0, 0]) };
    }
}

fn word(value: u64) -> usize {
    // The target has 64 bits.
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn map(bytes: usize, flags: usize, file: usize, offset: usize) -> Result<Memory, Errno> {
    const READ_WRITE: usize = 3;
    // SAFETY: the kernel chooses a place that is nobody's.
    let address = unsafe { call(Call::Mmap, [0, bytes, READ_WRITE, flags, file, offset]) }?;
    Ok(Memory { address, bytes })
}

/// Memory that a device may read and write: a device's registers, or pages that it was given. Never unmapped.
#[derive(Debug)]
pub(crate) struct Memory {
    address: usize,
    bytes: usize,
}

impl Memory {
    /// Fresh pages, all zero.
    pub(crate) fn new(bytes: usize) -> Result<Self, Errno> {
        const MAP_PRIVATE: usize = 2;
        const MAP_ANONYMOUS: usize = 0x20;
        const NO_FILE: usize = usize::MAX;
        map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, NO_FILE, 0)
    }

    /// Its address, for the kernel.
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fresh pages that no device is given, as bytes.
    pub(crate) fn into_slice(self) -> &'static mut [u8] {
        let start = core::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the mapping is there until the program ends, and this was its only name.
        unsafe { core::slice::from_raw_parts_mut(start, self.bytes) }
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        let inside = offset.is_multiple_of(size) && offset <= self.bytes.saturating_sub(size);
        assert!(inside, "offset {offset:#x} of {:#x} bytes", self.bytes);
        core::ptr::with_exposed_provenance_mut(self.address + offset)
    }
}

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty, $bits:literal);+ $(;)?) => {impl Memory {$(
        #[doc = concat!("Reads ", $bits, " bits. Panics outside of it.")]
        pub(crate) fn $read(&self, offset: usize) -> $type {
            // SAFETY: inside the mapping and aligned, by `place`. Volatile, as a device may write it.
            unsafe { self.place::<$type>(offset).read_volatile() }
        }

        #[doc = concat!("Writes ", $bits, " bits. Panics outside of it.")]
        pub(crate) fn $write(&self, offset: usize, value: $type) {
            // SAFETY: inside the mapping and aligned, by `place`; no Rust object lives there.
            unsafe { self.place::<$type>(offset).write_volatile(value) };
        }
    )+}};
}

accessors! {
    read32 write32 u32, "32";
    read64 write64 u64, "64";
}

/// A piece of the next kernel's memory. [Linux, include/uapi/linux/kexec.h]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment {
    from: usize,
    from_bytes: usize,
    to: usize,
    to_bytes: usize,
}

impl Segment {
    /// These bytes at a physical address; what follows, up to `to_bytes` rounded up to pages, is zero.
    pub(crate) fn new(bytes: &'static [u8], to: u64, to_bytes: u64) -> Self {
        Self {
            from: bytes.as_ptr().expose_provenance(),
            from_bytes: bytes.len(),
            to: word(to),
            to_bytes: word(to_bytes.next_multiple_of(4096)),
        }
    }
}

/// Of calls that end the kernel.
const MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];

/// Makes the kernel ready to start another one, and starts it. Does not return if all is well.
///
/// # Errors
/// It is refused.
pub(crate) fn kexec(entry: u64, segments: &[Segment]) -> Result<(), Failure> {
    const CMD_KEXEC: usize = 0x4558_4543;
    let arguments = [
        word(entry),
        segments.len(),
        segments.as_ptr().expose_provenance(),
        KEXEC_ARCH,
        0,
        0,
    ];
    // SAFETY: each segment names bytes that stay.
    unsafe { call(Call::KexecLoad, arguments) }
        .map_err(|error| Failure::Call("kexec_load", error))?;
    // SAFETY: no memory is involved.
    let _ = unsafe { call(Call::Sync, [0; 6]) };
    // SAFETY: if it succeeds, nothing of this program is left.
    unsafe { call(Call::Reboot, [MAGIC[0], MAGIC[1], CMD_KEXEC, 0, 0, 0]) }
        .map_err(|error| Failure::Call("the start of the next kernel", error))?;
    Err(Failure::Wrong("the next kernel did not start"))
}

/// Resets the machine. Does not return if all is well.
///
/// # Errors
/// It is refused.
pub(crate) fn restart() -> Result<(), Failure> {
    const CMD_RESTART: usize = 0x0123_4567;
    // SAFETY: no memory is involved.
    let _ = unsafe { call(Call::Sync, [0; 6]) };
    // SAFETY: if it succeeds, nothing of this program is left.
    unsafe { call(Call::Reboot, [MAGIC[0], MAGIC[1], CMD_RESTART, 0, 0, 0]) }
        .map_err(|error| Failure::Call("the reset", error))?;
    Err(Failure::Wrong("the machine was not reset"))
}
