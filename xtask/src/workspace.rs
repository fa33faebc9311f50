//! Where things are: the repository, the build directory, the cache that survives `cargo clean`.

use std::env;
#[cfg(test)]
use std::ops::Deref;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

/// The repository.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's build directory.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            if dir.is_absolute() {
                dir
            } else {
                root().join(dir)
            }
        }
        None => root().join("target"),
    }
}

/// What was downloaded: `$XDG_CACHE_HOME/bulkhead`, by default `~/.cache/bulkhead`.
pub(crate) fn cache_dir() -> PathBuf {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map_or_else(
            || target_dir().join("cache"),
            |cache| cache.join("bulkhead"),
        )
}

/// What the name of something that is not whole yet ends with.
pub(crate) const PARTIAL: &str = ".part";

/// The name that a folder has until all is in it, which no other process gives one.
pub(crate) fn partial(folder: &Path) -> PathBuf {
    let mut partial = folder.as_os_str().to_owned();
    partial.push(format!(".{}{PARTIAL}", std::process::id()));
    partial.into()
}

/// Writes a file whole or not at all: under another name first, then renamed.
///
/// # Errors
/// Those of the file system, naming the file.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut partial = path.as_os_str().to_owned();
    // Test cases write the same file side by side.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    partial.push(format!(".{}.{write}.part", std::process::id()));
    let written = std::fs::write(&partial, contents).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // It may be what fills the disk. Its own failure would say nothing new.
        let _ = std::fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The path of a program, if `PATH` has it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// A new folder in the place for temporary files, for a test. It goes with this, whether the test passes or not.
#[cfg(test)]
pub(crate) struct Scratch(PathBuf);

#[cfg(test)]
impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("xtask-{name}-{}-{count}", std::process::id());
        let path = env::temp_dir().join(folder);
        // Of an earlier run that was cut off.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

#[cfg(test)]
impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        assert!(root().join("Cargo.toml").is_file());
        assert!(root().join("boards").is_dir());
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let dir = Scratch::new("whole");
        // A folder of that name cannot be replaced by a file.
        std::fs::create_dir_all(dir.join("file/in-the-way")).unwrap();
        let error = write_whole(&dir.join("file"), b"text").unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        let left: Vec<_> = std::fs::read_dir(&*dir).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert!(
            write_whole(&dir.join("other"), b"text").is_ok(),
            "the control"
        );
    }

    #[test]
    fn the_shell_is_found_and_nonsense_is_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}
