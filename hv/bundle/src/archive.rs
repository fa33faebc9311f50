//! cpio `newc`: a 110-byte header of hexadecimal text, the name, the data, each padded to 4 bytes.
//!
//! The crates that read cpio either need `std` or end the iteration silently at the first
//! malformed header; the hypervisor needs neither, so this reader is our own. Tests hold it against
//! the `cpio` crate.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// The most entries an archive may have.
pub const MAX_ENTRIES: usize = 1024;
/// The longest file name, in bytes.
pub const MAX_NAME_BYTES: usize = 200;

pub(crate) const MAGIC: &[u8; 6] = b"070701";
pub(crate) const TRAILER: &str = "TRAILER!!!";
pub(crate) const HEADER_BYTES: usize = 110;
pub(crate) const MODE_FILE: u32 = 0o100_000;
const MODE_KIND: u32 = 0o170_000;
const MODE_DIRECTORY: u32 = 0o040_000;
/// Room for a name and for the zero bytes behind it that put the data on a page boundary.
const MAX_NAME_FIELD: usize = 8192;
/// Zero bytes that may follow the archive: tools pad to a block.
const MAX_TAIL: usize = 64 << 10;

/// A file of an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name: a relative path.
    pub name: &'a str,
    /// Its bytes.
    pub data: &'a [u8],
    /// Where they start in the archive.
    pub offset: usize,
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Entry({}, {} bytes at {:#x})",
            self.name,
            self.data.len(),
            self.offset
        )
    }
}

/// A malformed archive: what is wrong, where, and with which entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveError {
    /// Bytes from the start of the archive to the header of the entry, or to where it should be.
    pub offset: usize,
    /// The name of the entry when it can be read, else of the one before.
    pub entry: Option<String>,
    /// What is wrong.
    pub problem: ArchiveProblem,
}

impl core::error::Error for ArchiveError {}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x}", self.offset)?;
        match (&self.entry, self.problem.is_before_name()) {
            (Some(entry), false) => write!(f, ", {entry}")?,
            (Some(entry), true) => write!(f, ", after {entry}")?,
            (None, _) => {}
        }
        write!(f, ": {}", self.problem)
    }
}

/// What can be wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveProblem {
    /// The archive ends where a header must be.
    #[error("the archive ends here, without its trailer")]
    NoTrailer,
    /// It does not start with `070701`.
    #[error("not a cpio header (\"070701\")")]
    Magic,
    /// A number of the header is not eight hexadecimal digits.
    #[error("{0} is not a hexadecimal number")]
    Hex(HeaderField),
    /// The length of the name is zero or larger than any name with its padding.
    #[error("a name of {0} bytes")]
    NameLength(u32),
    /// The name runs past the end of the archive.
    #[error("the name runs past the end of the archive")]
    NameTruncated,
    /// The name is not a plain relative path, or is not ended by a zero byte.
    #[error("the name is not a relative path of printable characters")]
    Name,
    /// The data runs past the end of the archive.
    #[error("{claimed} bytes of data, {left} bytes are left")]
    DataTruncated {
        /// The length the header gives.
        claimed: u32,
        /// Bytes up to the end of the archive.
        left: usize,
    },
    /// Neither a file nor a directory.
    #[error("mode {0:o} is neither a file nor a directory")]
    Kind(u32),
    /// A hard link: its data is elsewhere.
    #[error("a hard link")]
    HardLink,
    /// A name that is taken.
    #[error("a second entry of this name")]
    Duplicate,
    /// More than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
    /// Something follows the trailer.
    #[error("something follows the trailer")]
    Tail,
}

impl ArchiveProblem {
    fn is_before_name(self) -> bool {
        matches!(
            self,
            Self::NoTrailer
                | Self::Magic
                | Self::Hex(HeaderField::NameSize)
                | Self::NameLength(_)
                | Self::NameTruncated
                | Self::Name
                | Self::TooMany
                | Self::Tail
        )
    }
}

/// The numbers of a header that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderField {
    /// `c_mode`.
    Mode,
    /// `c_nlink`.
    Links,
    /// `c_filesize`.
    FileSize,
    /// `c_namesize`.
    NameSize,
}

impl HeaderField {
    fn offset(self) -> usize {
        match self {
            Self::Mode => 14,
            Self::Links => 38,
            Self::FileSize => 54,
            Self::NameSize => 94,
        }
    }
}

impl fmt::Display for HeaderField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mode => "c_mode",
            Self::Links => "c_nlink",
            Self::FileSize => "c_filesize",
            Self::NameSize => "c_namesize",
        })
    }
}

/// Whether a name may be that of a file in a bundle: a relative path of printable ASCII without
/// spaces, no empty, `.` or `..` component, at most [`MAX_NAME_BYTES`] bytes.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name != TRAILER
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && name
            .split('/')
            .all(|component| !matches!(component, "" | "." | ".."))
}

/// An archive, entry by entry: an iterator that ends behind the trailer or with the first error.
/// Directories are passed over.
#[derive(Clone, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The names so far, at most [`MAX_ENTRIES`].
    seen: Vec<&'a str>,
    last: Option<&'a str>,
    headers: usize,
    done: bool,
}

impl<'a> Archive<'a> {
    /// An archive in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            seen: Vec::new(),
            last: None,
            headers: 0,
            done: false,
        }
    }

    fn number(&self, field: HeaderField) -> Result<u32, ArchiveProblem> {
        let start = self.at.saturating_add(field.offset());
        let digits = self
            .bytes
            .get(start..start.saturating_add(8))
            .unwrap_or_default();
        let mut number = 0u32;
        for digit in digits {
            let digit = char::from(*digit)
                .to_digit(16)
                .ok_or(ArchiveProblem::Hex(field))?;
            number = number << 4 | digit;
        }
        Ok(number)
    }

    /// The next entry; the outer `None` ends the archive, the inner one is a directory.
    fn step(&mut self) -> Result<Option<Option<Entry<'a>>>, ArchiveProblem> {
        let header_end = self.at.saturating_add(HEADER_BYTES);
        let header = self.bytes.get(self.at..header_end);
        let Some(header) = header else {
            return Err(ArchiveProblem::NoTrailer);
        };
        if !header.starts_with(MAGIC) {
            return Err(ArchiveProblem::Magic);
        }
        if self.headers >= MAX_ENTRIES {
            return Err(ArchiveProblem::TooMany);
        }
        self.headers = self.headers.saturating_add(1);
        let name_bytes = self.number(HeaderField::NameSize)?;
        let name_end = usize::try_from(name_bytes)
            .ok()
            .filter(|bytes| (1..=MAX_NAME_FIELD).contains(bytes))
            .map(|bytes| header_end.saturating_add(bytes))
            .ok_or(ArchiveProblem::NameLength(name_bytes))?;
        let field = self
            .bytes
            .get(header_end..name_end)
            .ok_or(ArchiveProblem::NameTruncated)?;
        let name = name_in(field).ok_or(ArchiveProblem::Name)?;
        if name == TRAILER {
            self.at = name_end;
            return self.tail().map(|()| None);
        }
        if !is_file_name(name) && name != "." {
            return Err(ArchiveProblem::Name);
        }
        self.last = Some(name);
        let mode = self.number(HeaderField::Mode)?;
        let links = self.number(HeaderField::Links)?;
        let claimed = self.number(HeaderField::FileSize)?;
        let kind = mode & MODE_KIND;
        if kind != MODE_FILE && kind != MODE_DIRECTORY {
            return Err(ArchiveProblem::Kind(mode));
        }
        if kind == MODE_FILE && links > 1 {
            return Err(ArchiveProblem::HardLink);
        }
        if self.seen.contains(&name) {
            return Err(ArchiveProblem::Duplicate);
        }
        self.seen.push(name);
        let offset = aligned(name_end);
        let end = usize::try_from(claimed)
            .ok()
            .and_then(|bytes| offset.checked_add(bytes));
        let data = end
            .and_then(|end| self.bytes.get(offset..end))
            .ok_or_else(|| ArchiveProblem::DataTruncated {
                claimed,
                left: self.bytes.len().saturating_sub(offset),
            })?;
        self.at = aligned(offset.saturating_add(data.len()));
        if kind == MODE_DIRECTORY {
            return Ok(Some(None));
        }
        Ok(Some(Some(Entry { name, data, offset })))
    }

    fn tail(&self) -> Result<(), ArchiveProblem> {
        let tail = self.bytes.get(self.at..).unwrap_or_default();
        if tail.len() <= MAX_TAIL && tail.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(ArchiveProblem::Tail)
        }
    }
}

impl<'a> Iterator for Archive<'a> {
    type Item = Result<Entry<'a>, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let offset = self.at;
            match self.step() {
                Ok(Some(Some(entry))) => return Some(Ok(entry)),
                Ok(Some(None)) => {}
                Ok(None) => self.done = true,
                Err(problem) => {
                    self.done = true;
                    return Some(Err(ArchiveError {
                        offset,
                        entry: self.last.map(String::from),
                        problem,
                    }));
                }
            }
        }
        None
    }
}

fn aligned(offset: usize) -> usize {
    offset.checked_next_multiple_of(4).unwrap_or(usize::MAX)
}

/// The name in a name field: up to the first zero byte, nothing but zero bytes behind it.
fn name_in(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let (name, padding) = field.split_at_checked(end)?;
    if name.len() > MAX_NAME_BYTES || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    name.iter()
        .all(u8::is_ascii_graphic)
        .then(|| core::str::from_utf8(name).ok())?
}
