//! The boot bundle: one plain cpio `newc` archive with the manifest and every file it names.
//!
//! Key types: [`Bundle`] (read and checked as a whole), [`Archive`] (the reader under it),
//! [`Manifest`] and [`VmConfig`] (the model), [`BundleBuilder`] (the writer, for the build host).
//! The arch binaries hand the initrd to [`Bundle::parse`]; `vm` reads the [`Manifest`]; xtask builds
//! bundles. The binding is documented in `docs/manifest.md`. Nothing here may know what a kernel
//! file contains, or what the machine has.
//!
//! A bundle is hostile input: it is copied nowhere, every offset is checked, the work is bounded by
//! [`MAX_ENTRIES`] and never by what a header claims, and each error says where it is.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod archive;
mod binding;
mod builder;
mod check;
mod device;
mod manifest;
mod report;

#[cfg(test)]
mod tests;

use alloc::{string::String, vec::Vec};

pub use archive::{
    Archive, ArchiveError, ArchiveProblem, Entry, HeaderField, MAX_ENTRIES, MAX_NAME_BYTES,
    is_file_name,
};
pub use binding::{BindingError, COMPATIBLE, MANIFEST_NAME, VERSION};
pub use builder::{BuildError, BundleBuilder, PAYLOAD_ALIGNMENT};
pub use check::{Invalid, ManifestError};
pub use device::{DeviceAddressError, GuestDevice, HostDevice};
pub use manifest::{
    Console, ConsoleUart, Device, Field, Firmware, IommuMode, Kernel, KernelFormat, MAX_CPUS,
    MAX_DEVICES, MAX_SMMU, MAX_VMS, MEMORY_ALIGNMENT, Manifest, MsiPolicy, MsiWindow, PeerToPeer,
    Place, Restart, Start, TcePolicy, UnsafeDma, VmConfig,
};

/// A bundle that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The archive is malformed.
    #[error("bundle: {0}")]
    Archive(#[from] ArchiveError),
    /// Something else where the manifest must be.
    #[error(
        "bundle: the first entry must be {MANIFEST_NAME}, not {}",
        check::Quoted(found)
    )]
    NoManifest {
        /// The first entry.
        found: String,
    },
    /// Nothing in the archive.
    #[error("bundle: there is nothing in it; the first entry must be {MANIFEST_NAME}")]
    Empty,
    /// The manifest is malformed.
    #[error("{MANIFEST_NAME}: {0}")]
    Binding(#[from] BindingError),
    /// The manifest names a file that is not in the archive.
    #[error("{MANIFEST_NAME}: {place}: the bundle has no file {file}")]
    MissingFile {
        /// What asks for it.
        place: Place,
        /// The name.
        file: String,
    },
}

/// A boot bundle, read and checked: every file that the manifest names is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle<'a> {
    manifest: Manifest,
    entries: Vec<Entry<'a>>,
}

impl<'a> Bundle<'a> {
    /// Reads a bundle. `bytes` is the whole initrd; zero bytes may follow the archive.
    ///
    /// # Errors
    /// [`Error`]: the archive or the manifest is malformed, or a file is missing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for entry in Archive::new(bytes) {
            let entry = entry?;
            if entries.is_empty() && entry.name != MANIFEST_NAME {
                return Err(Error::NoManifest {
                    found: entry.name.into(),
                });
            }
            entries.push(entry);
        }
        let Some(first) = entries.first() else {
            return Err(Error::Empty);
        };
        let manifest = Manifest::from_fdt(first.data)?;
        let bundle = Self { manifest, entries };
        for (place, file) in bundle.manifest.files() {
            if bundle.file(file).is_none() {
                return Err(Error::MissingFile {
                    place,
                    file: file.into(),
                });
            }
        }
        Ok(bundle)
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All entries, the manifest first, in the order of the archive.
    #[must_use]
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// The bytes of a file.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .map(|entry| entry.data)
    }
}
