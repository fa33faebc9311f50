//! The need for room: what is built, unpacked and written while tests run fits on the disk, or nothing is begun.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::Need;
use crate::board::Arch;
use crate::build::{self, Profile};
use crate::workspace;

/// In its place, so many MiB are asked for.
const VARIABLE: &str = "BULKHEAD_DISK_MIB";
/// The least that must be free, however much is built already: bundles and overlays of machines that run at once,
/// and what a build replaces.
const LEAST_MIB: u64 = 512;
/// What the images to work with take beside that: all crates' code, and the compiler's memory of them.
const CHECKED_MIB: u64 = 1216;
/// What the packages of guests take in the cache, and what is unpacked of them, one being unpacked.
const CACHE_MIB: u64 = 1200;

/// What the room is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// `cargo xtask build`.
    Build,
    /// `cargo xtask run`.
    Run,
    /// `cargo xtask test`.
    Test,
    /// `cargo xtask lint`.
    Lint,
    /// `cargo xtask bench`.
    Bench,
}

impl Work {
    /// What the build directory of a fresh clone grows to, measured and rounded up.
    fn whole_mib(self) -> u64 {
        match self {
            Self::Build => 1024,
            Self::Run => 1280,
            Self::Test | Self::Bench => 3072,
            Self::Lint => 1536,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Build => "cargo xtask build",
            Self::Run => "cargo xtask run",
            Self::Test => "cargo xtask test",
            Self::Lint => "cargo xtask lint",
            Self::Bench => "cargo xtask bench",
        }
    }
}

/// A folder that is going to grow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Growth {
    folder: PathBuf,
    by_mib: u64,
}

/// What a disk has free, and which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    device: u64,
    /// `None` where the file system does not say.
    free_mib: Option<u64>,
}

/// Refuses work that would fill the disk.
///
/// # Errors
/// There is too little room; the message says where, how much is needed, and the cure.
pub(crate) fn ensure_room(work: Work, profile: Profile) -> Result<()> {
    let wanted = wanted(env::var(VARIABLE).ok().as_deref())?;
    match shortage(&growths(work, profile, wanted), disk_of) {
        None => Ok(()),
        Some(short) => bail!("{}; {}", short.text(work), cure()),
    }
}

/// The need, for `doctor`.
pub(crate) fn need() -> Need {
    let wanted = match wanted(env::var(VARIABLE).ok().as_deref()) {
        Ok(wanted) => wanted,
        Err(error) => {
            return Need::unmet("room on disk", format!("{error:#}"), "a number, or none");
        }
    };
    let growths = growths(Work::Test, Profile::Release, wanted);
    let what = format!("room on disk for {}", Work::Test.command());
    if let Some(short) = shortage(&growths, disk_of) {
        return Need::unmet(what, short.text(Work::Test), cure());
    }
    let found = growths.iter().map(|growth| {
        let free = disk_of(&growth.folder).and_then(|disk| disk.free_mib);
        let free = free.map_or("an unknown number of".to_owned(), |mib| mib.to_string());
        let (folder, by) = (growth.folder.display(), growth.by_mib);
        format!("{free} MiB for {folder}, which may grow by {by}")
    });
    Need::met(what, found.collect::<Vec<_>>().join("; "))
}

/// What the user's variable says.
fn wanted(value: Option<&str>) -> Result<Option<u64>> {
    let parse = |text: &str| {
        text.parse::<u64>()
            .with_context(|| format!("{VARIABLE} is `{text}`, which is no number of MiB"))
    };
    value.map(parse).transpose()
}

fn growths(work: Work, profile: Profile, wanted: Option<u64>) -> Vec<Growth> {
    let target = Growth {
        by_mib: wanted.unwrap_or_else(|| {
            let there = mib_in(&workspace::target_dir());
            let whole = work.whole_mib().saturating_sub(there);
            let checked = match profile {
                Profile::Release => 0,
                Profile::Checked => CHECKED_MIB.saturating_sub(checked_mib()),
            };
            (whole + checked).max(LEAST_MIB)
        }),
        folder: workspace::target_dir(),
    };
    let cache = workspace::cache_dir();
    // A cache that has something has most of it.
    let cached = cache.join("payloads").is_dir();
    if matches!(work, Work::Build | Work::Lint) || cached || wanted.is_some() {
        return vec![target];
    }
    let cache = Growth {
        folder: cache,
        by_mib: CACHE_MIB,
    };
    vec![target, cache]
}

/// What the folders of the images to work with have.
fn checked_mib() -> u64 {
    let folders = Arch::ALL.map(|arch| build::result_folder(arch, Profile::Checked));
    folders.iter().map(|folder| mib_in(folder)).sum()
}

/// A disk that is too small for what grows on it.
#[derive(Debug, PartialEq, Eq)]
struct Shortage {
    folder: PathBuf,
    free_mib: u64,
    needed_mib: u64,
}

impl Shortage {
    fn text(&self, work: Work) -> String {
        format!(
            "the disk of {} has {} MiB free, and `{}` needs {} MiB there",
            self.folder.display(),
            self.free_mib,
            work.command(),
            self.needed_mib
        )
    }
}

fn cure() -> String {
    let there = mib_in(&workspace::target_dir());
    format!(
        "make room (`cargo clean` frees {there} MiB), or set CARGO_TARGET_DIR to a folder on another disk, or \
         {VARIABLE} to the number of MiB that you know to be enough"
    )
}

/// The first disk that cannot hold all that grows on it.
fn shortage(growths: &[Growth], disk_of: impl Fn(&Path) -> Option<Disk>) -> Option<Shortage> {
    for growth in growths {
        // A disk that cannot be asked refuses nothing.
        let Some(disk) = disk_of(&growth.folder) else {
            continue;
        };
        let same =
            |other: &&Growth| disk_of(&other.folder).is_some_and(|it| it.device == disk.device);
        let needed_mib = growths.iter().filter(same).map(|other| other.by_mib).sum();
        if let Some(free_mib) = disk.free_mib
            && free_mib < needed_mib
        {
            return Some(Shortage {
                folder: growth.folder.clone(),
                free_mib,
                needed_mib,
            });
        }
    }
    None
}

/// The disk that a folder is on, or will be on once it is made.
fn disk_of(folder: &Path) -> Option<Disk> {
    let there = folder.ancestors().find(|path| path.is_dir())?;
    let device = there.metadata().ok()?.dev();
    let stat = rustix::fs::statvfs(there).ok()?;
    let free_mib = (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize) >> 20);
    Some(Disk { device, free_mib })
}

/// What the files below a folder take. What the compiler keeps for the next build alone does not count.
fn mib_in(folder: &Path) -> u64 {
    fn bytes(folder: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(folder) else {
            return 0;
        };
        let size = |entry: fs::DirEntry| match entry.metadata() {
            Ok(meta) if meta.is_dir() && entry.file_name() == "incremental" => 0,
            Ok(meta) if meta.is_dir() => bytes(&entry.path()),
            Ok(meta) => (meta.blocks() * 512).checked_div(meta.nlink()).unwrap_or(0),
            Err(_) => 0,
        };
        entries.filter_map(Result::ok).map(size).sum()
    }
    bytes(folder) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    fn growth(folder: &str, by_mib: u64) -> Growth {
        Growth {
            folder: folder.into(),
            by_mib,
        }
    }

    /// Folders below `/a` are on a disk with 100 MiB, others on one with 1,000.
    fn two_disks(folder: &Path) -> Option<Disk> {
        let (device, free) = match folder.starts_with("/a") {
            true => (1, 100),
            false => (2, 1000),
        };
        Some(Disk {
            device,
            free_mib: Some(free),
        })
    }

    #[test]
    fn what_grows_on_one_disk_is_added_up() {
        let fits = [growth("/a/target", 60), growth("/b/cache", 60)];
        assert_eq!(shortage(&fits, two_disks), None);
        let together = [growth("/a/target", 60), growth("/a/cache", 60)];
        let short = shortage(&together, two_disks).unwrap();
        assert_eq!((short.free_mib, short.needed_mib), (100, 120));
        assert_eq!(
            short.text(Work::Test),
            "the disk of /a/target has 100 MiB free, and `cargo xtask test` needs 120 MiB there"
        );
        let second = [growth("/b/target", 999), growth("/a/cache", 101)];
        let short = shortage(&second, two_disks).unwrap();
        assert_eq!(short.folder, Path::new("/a/cache"));
    }

    #[test]
    fn a_disk_that_says_nothing_refuses_nothing() {
        let much = [growth("/a", u64::MAX)];
        assert_eq!(shortage(&much, |_| None), None);
        let mute = Disk {
            device: 1,
            free_mib: None,
        };
        assert_eq!(shortage(&much, |_| Some(mute)), None);
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_known() {
        let folder = workspace::target_dir().join("no/such/folder");
        let disk = disk_of(&folder).unwrap();
        assert_eq!(Some(disk), disk_of(&workspace::root()));
        assert!(disk.free_mib.is_some());
    }

    #[test]
    fn the_users_number_counts_and_must_be_one() {
        assert_eq!(wanted(None).unwrap(), None);
        assert_eq!(wanted(Some("7")).unwrap(), Some(7));
        assert!(
            wanted(Some("7G"))
                .unwrap_err()
                .to_string()
                .contains(VARIABLE)
        );
        let by_mib = |wanted| growths(Work::Test, Profile::Release, wanted)[0].by_mib;
        assert_eq!(by_mib(Some(7)), 7);
        assert!(by_mib(None) >= LEAST_MIB);
    }

    #[test]
    fn files_are_counted_and_the_compilers_memory_is_not() {
        let dir = Scratch::new("disk");
        fs::create_dir_all(dir.join("debug/incremental")).unwrap();
        fs::create_dir_all(dir.join("debug/deps")).unwrap();
        fs::write(dir.join("debug/incremental/a"), vec![1; 3 << 20]).unwrap();
        fs::write(dir.join("debug/deps/b"), vec![1; 2 << 20]).unwrap();
        // Cargo gives its results a second name.
        fs::hard_link(dir.join("debug/deps/b"), dir.join("debug/b")).unwrap();
        let mib = mib_in(&dir);
        fs::remove_dir_all(&*dir).unwrap();
        assert!(mib <= 2, "{mib}");
        assert_eq!(mib_in(&dir), 0);
    }
}
