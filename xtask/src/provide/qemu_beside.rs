//! A QEMU that is newer than the machine's, for the few tests of what the machine's cannot do: out of Debian's packages,
//! unpacked with its libraries into the cache, beside what is installed and never in its place.
//!
//! It is not what anything else runs on. Whoever cannot have it is told why, and does without those tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::apt::{self, Apt};
use super::programs::{self, Wanted};
use super::turn::Turn;
use super::{Version, qemu};
use crate::board::Arch;
use crate::{say, workspace};

/// The release in whose backports a QEMU is that gives each host bridge an SMMU of its own.
const RELEASE: &str = "trixie";

/// The script that starts the program with its own loader and libraries.
const STARTER: &str = "start";

/// QEMU for the architecture, no older than `least`: what `PATH` finds first, or one beside it. Looked for once in a
/// run of this tool.
///
/// # Errors
/// It is not in the cache and cannot be fetched; the message says why.
pub(crate) fn provide(arch: Arch, least: Version) -> Result<PathBuf> {
    static LOOKED_FOR: Mutex<BTreeMap<Arch, std::result::Result<PathBuf, String>>> =
        Mutex::new(BTreeMap::new());
    if let Some(path) = qemu::good_as(arch, least) {
        return Ok(path);
    }
    let mut looked_for = LOOKED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    let found = looked_for.entry(arch).or_insert_with(|| {
        let _turn = Turn::wait();
        let wanted = Wanted {
            packages: vec![package(arch).to_owned()],
            programs: vec![arch.qemu().to_owned()],
        };
        let architecture = apt::own_architecture();
        let dir = workspace::cache_dir().join("qemu");
        architecture
            .and_then(|architecture| {
                let dir = dir.join(format!("{RELEASE}-{architecture}-{}", arch.qemu()));
                kept(&dir, &wanted, least, || {
                    let apt = Apt::of_release(architecture, RELEASE)?;
                    apt.update()?;
                    Ok(apt)
                })
            })
            .map_err(|error| format!("{error:#}"))
    });
    found.clone().map_err(|error| anyhow!(error))
}

/// Debian's package of it.
const fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "qemu-system-arm",
        Arch::Ppc64 => "qemu-system-ppc",
    }
}

/// The one in the cache. Only if it is not there whole, or is too old, are packages asked for.
fn kept(
    dir: &Path,
    wanted: &Wanted,
    least: Version,
    packages: impl FnOnce() -> Result<Apt>,
) -> Result<PathBuf> {
    let starter = dir.join(STARTER);
    let works = || qemu::told(&starter).is_some_and(|version| version >= least);
    if works() {
        return Ok(starter);
    }
    fetch(dir, wanted, least, &packages()?)?;
    ensure!(
        works(),
        "what was unpacked into {} does not run here",
        dir.display()
    );
    Ok(starter)
}

fn fetch(dir: &Path, wanted: &Wanted, least: Version, apt: &Apt) -> Result<()> {
    let package = &wanted.packages[0];
    let suite = apt.backports();
    let offered = apt.candidate(package, Some(&suite));
    ensure!(
        apt::new_enough(offered.as_deref(), least),
        "{suite} offers {package} {} and no {}.{}",
        offered.as_deref().unwrap_or("none"),
        least.major,
        least.minor
    );
    say!(
        "fetching {package} {} of {suite} and its libraries (about 35 MB, once; nothing is installed)",
        offered.as_deref().unwrap_or_default()
    );
    let debs = dir.with_extension("debs");
    programs::download(apt, Some(&suite), wanted, &debs)?;
    // Two of this tool may be at it: each unpacks by itself, and one of them is kept.
    let partial = dir.with_extension(format!("{}.part", std::process::id()));
    programs::unpack(wanted, &debs, &partial)
        .with_context(|| format!("cannot unpack the packages in {}", debs.display()))?;
    write_starter(&partial, &wanted.programs[0])?;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::rename(&partial, dir).with_context(|| format!("cannot rename {}", partial.display()))?;
    // What is unpacked need not be kept as packages too.
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

/// The program's own C library has its own loader; modules of the machine's QEMU are of another build.
fn write_starter(dir: &Path, program: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("bin").join(program);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let loader = programs::loader(&bytes)?.context("the program has no loader")?;
    let text = format!(
        "#!/bin/sh\nhere=${{0%/*}}\nexport QEMU_MODULE_DIR=\"$here/modules\"\n\
         exec \"$here{loader}\" --library-path \"$here/lib\" \"$here/bin/{program}\" \"$@\"\n"
    );
    let starter = dir.join(STARTER);
    workspace::write_whole(&starter, text.as_bytes())?;
    for file in [starter, path, dir.join(loader.trim_start_matches('/'))] {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;
    use anyhow::bail;

    const LEAST: Version = Version::new(10, 1);

    fn wanted() -> Wanted {
        Wanted {
            packages: vec!["qemu-system-arm".to_owned()],
            programs: vec!["qemu".to_owned()],
        }
    }

    /// A folder with a starter that tells this version.
    fn unpacked(scratch: &Scratch, version: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = scratch.join("unpacked");
        let starter = dir.join(STARTER);
        let text = format!("#!/bin/sh\necho QEMU emulator version {version}\n");
        workspace::write_whole(&starter, text.as_bytes()).unwrap();
        fs::set_permissions(&starter, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn one_in_the_cache_needs_no_network() {
        let scratch = Scratch::new("warm");
        let dir = unpacked(&scratch, "11.1.3");
        let offline = || bail!("there is no network");
        assert_eq!(
            kept(&dir, &wanted(), LEAST, offline).unwrap(),
            dir.join(STARTER)
        );
        // The controls: one that is too old, one that is damaged, and none.
        assert!(kept(&dir, &wanted(), Version::new(12, 0), offline).is_err());
        fs::write(dir.join(STARTER), "#!/bin/sh\nexit 1\n").unwrap();
        assert!(kept(&dir, &wanted(), LEAST, offline).is_err());
        let error = kept(&dir.join("cold"), &wanted(), LEAST, offline).unwrap_err();
        assert!(error.to_string().contains("no network"), "{error}");
    }

    #[test]
    fn an_archive_without_it_is_a_reason_and_nothing_is_left() {
        let scratch = Scratch::new("old");
        let dir = unpacked(&scratch, "9.2.0");
        let offers = |candidate: &str| {
            let lists = format!("echo '  Candidate: {candidate}'\n");
            apt::scripted(&dir.join("apt"), "exit 100\n", &lists)
        };
        for (candidate, says) in [
            (
                "1:10.0.2+ds-2",
                "offers qemu-system-arm 1:10.0.2+ds-2 and no 10.1",
            ),
            ("(none)", "offers qemu-system-arm none and no 10.1"),
            // The archive lists it, and the mirror does not have it.
            ("1:11.1.3+ds-1", "cannot fetch a package"),
        ] {
            let error = kept(&dir, &wanted(), LEAST, || Ok(offers(candidate))).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
            assert!(
                dir.join(STARTER).is_file(),
                "what was there stays until there is a better one"
            );
        }
        // A download goes on from where it was.
        let mut left: Vec<_> = (fs::read_dir(&*scratch).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["unpacked", "unpacked.debs.bookworm.part"]);
    }

    #[test]
    fn the_program_starts_with_its_own_loader_and_libraries() {
        // This very program stands for QEMU, and the machine's loader for the one of the packages.
        let own = std::env::current_exe().unwrap();
        let bytes = fs::read(&own).unwrap();
        let loader = programs::loader(&bytes).unwrap().unwrap();
        let dir = Scratch::new("with a space");
        for (from, to) in [
            (own.as_path(), "bin/qemu"),
            (Path::new(&loader), loader.trim_start_matches('/')),
        ] {
            workspace::write_whole(&dir.join(to), &fs::read(from).unwrap()).unwrap();
        }
        write_starter(&dir, "qemu").unwrap();
        let said =
            super::super::output_of(std::process::Command::new(dir.join(STARTER)).arg("--list"));
        assert!(said.is_some_and(|said| said.contains("its_own_loader")));
        // The control: without its loader it does not start, though the machine has one.
        fs::remove_file(dir.join(loader.trim_start_matches('/'))).unwrap();
        let said =
            super::super::output_of(std::process::Command::new(dir.join(STARTER)).arg("--list"));
        assert!(said.is_none());
    }
}
