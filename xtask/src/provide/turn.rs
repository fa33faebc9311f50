//! One at a time: of several commands of this tool on a machine, and of its threads, one fetches, unpacks or installs.

use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

use crate::{say, workspace};

/// Whoever has it fetches, unpacks and installs; all others wait. It is not to be asked for by who has it.
#[derive(Debug)]
pub(crate) struct Turn {
    _thread: MutexGuard<'static, ()>,
    _process: Option<File>,
}

impl Turn {
    /// Waits for it, and says so if another command has it. What that one was at may be there then: look again.
    pub(crate) fn wait() -> Self {
        static THREAD: Mutex<()> = Mutex::new(());
        Self {
            _thread: THREAD.lock().unwrap_or_else(PoisonError::into_inner),
            _process: locked(&workspace::cache_dir()),
        }
    }
}

/// The folder's lock; none where nothing can be written, as nothing will be fetched there either. The kernel takes it
/// back from whoever ends.
fn locked(folder: &Path) -> Option<File> {
    fs::create_dir_all(folder).ok()?;
    let file = File::create(folder.join("lock")).ok()?;
    let lock = |how| retry_on_intr(|| flock(&file, how));
    if lock(FlockOperation::NonBlockingLockExclusive).is_err() {
        say!(
            "another `cargo xtask` fetches or unpacks into {}: waiting for it",
            folder.display()
        );
        lock(FlockOperation::LockExclusive).ok()?;
    }
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn a_folder_is_locked_by_one_at_a_time() {
        let dir = Scratch::new("turn");
        let first = locked(&dir).unwrap();
        let try_it = || {
            let file = File::open(dir.join("lock")).unwrap();
            flock(&file, FlockOperation::NonBlockingLockExclusive)
        };
        assert!(try_it().is_err());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| locked(&dir).is_some());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!second.is_finished());
            drop(first);
            assert!(second.join().unwrap());
        });
        assert!(try_it().is_ok(), "whoever goes gives it back");
    }

    #[test]
    fn a_folder_that_cannot_be_has_no_lock() {
        let dir = Scratch::new("no-turn");
        fs::write(dir.join("file"), b"").unwrap();
        assert!(locked(&dir.join("file/below")).is_none());
    }
}
