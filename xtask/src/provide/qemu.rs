//! The need for QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt::{self, Apt, Scope, Wanted};
use super::permission::{self, Cure, Lack};
use super::turn::Turn;
use super::{Need, Version, output_of};
use crate::board::Arch;
use crate::workspace;

/// The oldest QEMU whose `virt` machine has an SMMU with both stages.
pub(crate) const LEAST: Version = Version::new(9, 2);

/// Debian's packages for both architectures.
const PACKAGES: [&str; 2] = ["qemu-system-arm", "qemu-system-ppc"];

/// A QEMU that was found.
struct Found {
    path: PathBuf,
    version: Option<Version>,
}

/// The version that a QEMU tells of itself.
pub(super) fn told(program: &Path) -> Option<Version> {
    output_of(Command::new(program).arg("--version")).and_then(|text| Version::find(&text))
}

fn find(arch: Arch) -> Option<Found> {
    let path = workspace::find_program(arch.qemu())?;
    let version = told(&path);
    Some(Found { path, version })
}

fn good(arch: Arch) -> Option<PathBuf> {
    good_as(arch, LEAST)
}

/// What `PATH` finds first, if it is no older than this.
pub(super) fn good_as(arch: Arch, least: Version) -> Option<PathBuf> {
    let found = find(arch)?;
    (found.version? >= least).then_some(found.path)
}

fn describe(arch: Arch) -> String {
    match find(arch) {
        None => format!("no {} in PATH", arch.qemu()),
        Some(Found {
            path,
            version: Some(version),
        }) => format!("{version}, {}", path.display()),
        Some(Found {
            path,
            version: None,
        }) => {
            format!("{} that does not tell its version", path.display())
        }
    }
}

/// The need, for `doctor`.
pub(crate) fn need(arch: Arch) -> Need {
    let what = format!("QEMU {}.{} or newer for {arch}", LEAST.major, LEAST.minor);
    if good(arch).is_some() {
        Need::met(what, describe(arch))
    } else {
        Need::unmet(what, describe(arch), cure())
    }
}

fn cure() -> String {
    match permission::apt() {
        Ok(_) if apt::may_install() => "cargo xtask run installs it".to_owned(),
        apt => permission::command(&[cure_of(apt.as_ref().ok())], apt),
    }
}

fn cure_of(apt: Option<&Apt>) -> Cure {
    let from = apt.map_or(apt::Suite::Default, |apt| apt.suite_of(PACKAGES[0], LEAST));
    let packages = &PACKAGES;
    Cure {
        packages: Some(Wanted { packages, from }),
        by_hand: format!(
            "install QEMU {}.{} or newer and put it first in PATH",
            LEAST.major, LEAST.minor
        ),
    }
}

/// What the machine lacks for it, if it does.
pub(super) fn lack(arch: Arch, apt: Option<&Apt>) -> Option<Lack> {
    good(arch).is_none().then(|| Lack {
        why: why(arch),
        cure: cure_of(apt),
    })
}

fn why(arch: Arch) -> String {
    format!(
        "QEMU {}.{} or newer is needed for {arch} and was not found ({})",
        LEAST.major,
        LEAST.minor,
        describe(arch)
    )
}

/// QEMU for the architecture; installed first if it is missing.
///
/// # Errors
/// It is missing and cannot be installed; the message holds the cure.
pub(crate) fn provide(arch: Arch) -> Result<PathBuf> {
    if let Some(path) = good(arch) {
        return Ok(path);
    }
    permission::ensure(&[arch])?;
    let _turn = Turn::wait();
    if let Some(path) = good(arch) {
        return Ok(path);
    }
    let why = why(arch);
    let apt = Apt::new(Scope::Machine)?;
    crate::say!("{why}; asking the package archive");
    apt.update()?;
    let backports = apt.backports();
    let offered = apt.candidate(PACKAGES[0], None);
    if apt::new_enough(offered.as_deref(), LEAST) {
        apt::announce(&PACKAGES, "the machine's own suites", &why);
        apt.install(&PACKAGES, None)?;
    } else {
        let better = apt.candidate(PACKAGES[0], Some(&backports));
        if !apt::new_enough(better.as_deref(), LEAST) {
            bail!(
                "{why}; the archive offers {} and, in {backports}, {}; install a newer QEMU and \
                 put it first in PATH",
                offered.as_deref().unwrap_or("none"),
                better.as_deref().unwrap_or("none")
            );
        }
        apt::announce(
            &PACKAGES,
            &format!("{backports} (the release's own is too old)"),
            &why,
        );
        apt.install(&PACKAGES, Some(&backports))?;
    }
    good(arch).with_context(|| {
        format!(
            "the packages are installed, but what PATH finds first is still {}; remove it or \
             change PATH",
            describe(arch)
        )
    })
}
