//! Writing bundles, on the build host.

use alloc::{format, string::String, vec::Vec};

use crate::{
    Entry, Error, MANIFEST_NAME, Manifest,
    archive::{HEADER_BYTES, MAGIC, MODE_FILE, TRAILER, is_file_name},
};

/// What the bytes of every file are aligned to in the archive: a page, so that a kernel can be
/// mapped or copied by whole pages when the archive itself is loaded on a page boundary.
///
/// The room is made by zero bytes behind the name, which every reader of cpio takes as part of the
/// name's end.
pub const PAYLOAD_ALIGNMENT: usize = 4096;

/// Why a file was not added to a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not a name as [`is_file_name`] has it.
    #[error("{0:?} cannot be the name of a file in a bundle")]
    Name(String),
    /// A name that is taken.
    #[error("the bundle has a file {0} already")]
    Duplicate(String),
    /// More bytes than the format can express (4 GiB - 1).
    #[error("{name}: {bytes} bytes are more than a cpio archive can hold")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// What was built does not read back: the manifest names a file that was not added.
    #[error(transparent)]
    ReadBack(Error),
}

/// Writes a bundle: the manifest, then files in the order they are added. The same input gives the
/// same bytes: times and owners are zero, inode numbers count from 1.
#[derive(Clone, Debug)]
pub struct BundleBuilder {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl BundleBuilder {
    /// A bundle with this manifest.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        let mut builder = Self {
            bytes: Vec::new(),
            names: Vec::new(),
        };
        builder.append(MANIFEST_NAME, &manifest.to_fdt());
        builder
    }

    /// Whether a file of this name was added.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|taken| taken == name)
    }

    /// Adds a file.
    ///
    /// # Errors
    /// [`BuildError`]; the bundle is unchanged.
    pub fn file(&mut self, name: &str, data: &[u8]) -> Result<(), BuildError> {
        if !is_file_name(name) {
            return Err(BuildError::Name(name.into()));
        }
        if self.has(name) {
            return Err(BuildError::Duplicate(name.into()));
        }
        if u32::try_from(data.len()).is_err() {
            return Err(BuildError::TooLarge {
                name: name.into(),
                bytes: data.len(),
            });
        }
        self.append(name, data);
        Ok(())
    }

    /// The archive, after reading it back.
    ///
    /// # Errors
    /// [`BuildError::ReadBack`] when a file of the manifest is missing.
    pub fn finish(mut self) -> Result<Vec<u8>, BuildError> {
        self.header(TRAILER, TRAILER.len().saturating_add(1), 0, 0);
        self.pad(4);
        crate::Bundle::parse(&self.bytes).map_err(BuildError::ReadBack)?;
        Ok(self.bytes)
    }

    fn append(&mut self, name: &str, data: &[u8]) {
        let start = self.bytes.len().saturating_add(HEADER_BYTES);
        let name_end = start.saturating_add(name.len()).saturating_add(1);
        let name_field = name_end
            .next_multiple_of(PAYLOAD_ALIGNMENT)
            .saturating_sub(start);
        self.header(name, name_field, MODE_FILE | 0o644, data.len());
        self.bytes.extend_from_slice(data);
        self.pad(4);
        self.names.push(name.into());
    }

    fn header(&mut self, name: &str, name_field: usize, mode: u32, file_bytes: usize) {
        let is_trailer = name == TRAILER;
        let inode = if is_trailer {
            0
        } else {
            self.names.len().saturating_add(1)
        };
        self.bytes.extend_from_slice(MAGIC);
        // c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_devmajor, c_devminor,
        // c_rdevmajor, c_rdevminor, c_namesize, c_check.
        let links = 1;
        for number in [
            inode,
            usize::try_from(mode).unwrap_or(0),
            0,
            0,
            links,
            0,
            file_bytes,
        ] {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        for number in [0, 0, 0, 0, name_field, 0] {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        let padding = name_field.saturating_sub(name.len());
        self.bytes
            .resize(self.bytes.len().saturating_add(padding), 0);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

impl Entry<'_> {
    /// Whether the data starts on a page of the archive, as [`BundleBuilder`] puts it.
    #[must_use]
    pub fn is_page_aligned(&self) -> bool {
        self.offset.is_multiple_of(PAYLOAD_ALIGNMENT)
    }
}
