//! Boot bundles for the tests, good ones and damaged ones.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cases::Bundle;
use crate::board::Board;
use crate::manifest::{self, Overrides};
use crate::{run, workspace};

const MANIFEST: &str = "\
version = 1
[[vm]]
name = \"tiny\"
memory = \"2M\"
kernel = \"tiny.bin\"
kernel_format = \"flat\"
";
const KERNEL_BYTES: usize = 5000;
/// Where a `newc` header has the size of its file, and how long a header is.
const SIZE_AT: usize = 54;
const MAGIC: &[u8] = b"070701";

/// The bundle's file; `name` keeps those of tests that run at the same time apart.
///
/// # Errors
/// It cannot be made.
pub(super) fn file(board: &Board, bundle: Bundle, name: &str) -> Result<Option<PathBuf>> {
    let bytes = match bundle {
        Bundle::None => return Ok(None),
        Bundle::OfBoard => {
            let guest = board
                .guest
                .as_ref()
                .context("the board has no guest manifest")?;
            let manifest = workspace::root().join(guest);
            return run::make_bundle(board, &manifest, &Overrides::default()).map(Some);
        }
        Bundle::Small => small()?,
        Bundle::Truncated => {
            let mut bytes = small()?;
            let kernel = kernel_header(&bytes)?;
            bytes.truncate(kernel + KERNEL_BYTES / 2);
            bytes
        }
        Bundle::LyingHeader => {
            let mut bytes = small()?;
            let size = kernel_header(&bytes)? + SIZE_AT;
            bytes
                .get_mut(size..size + 8)
                .context("the header is cut off")?
                .copy_from_slice(b"7FFFFFFF");
            bytes
        }
        Bundle::Garbage => b"no archive at all ".repeat(500),
    };
    let path = folder().join(format!("{}-{name}.bundle", board.name));
    workspace::write_whole(&path, &bytes)?;
    Ok(Some(path))
}

fn folder() -> PathBuf {
    workspace::target_dir().join("test/bundles")
}

fn small() -> Result<Vec<u8>> {
    let manifest = folder().join("tiny.toml");
    workspace::write_whole(&folder().join("tiny.bin"), &[b'k'; KERNEL_BYTES])?;
    workspace::write_whole(&manifest, MANIFEST.as_bytes())?;
    manifest::build_bundle(
        Path::new(&manifest),
        &Overrides::default(),
        &|name, _series| anyhow::bail!("the small bundle asks for {name}"),
    )
}

/// Where the header of the second file is: the kernel comes after the manifest.
fn kernel_header(bytes: &[u8]) -> Result<usize> {
    bytes
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .map(|(at, _)| at)
        .nth(1)
        .context("the small bundle has no second file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_damage_is_done_where_it_is_meant() {
        let good = small().unwrap();
        assert!(::bundle::Bundle::parse(&good).is_ok());
        let kernel = kernel_header(&good).unwrap();
        let size = &good[kernel + SIZE_AT..kernel + SIZE_AT + 8];
        assert_eq!(size, format!("{KERNEL_BYTES:08X}").as_bytes());
    }
}
