//! `cargo xtask lint`: what is checked of the sources without running them.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::board::Arch;
use crate::build::{Contents, Profile};
use crate::provide::disk::{self, Work};
use crate::provide::toolchain::{self, Toolchain};
use crate::suite::host;
use crate::{build, child, guest, say};

/// Checks format, lints and documentation; any warning is an error.
///
/// # Errors
/// A check that fails; its messages are shown.
pub(crate) fn lint() -> Result<u8> {
    disk::ensure_room(Work::Lint, Profile::Release)?;
    toolchain::provide_lints()?;
    let toolchain = toolchain::provide()?;
    let mut packages = Vec::new();
    for package in host::packages()? {
        packages.extend(["-p".to_owned(), package]);
    }
    check("format", host::cargo().args(["fmt", "--all", "--check"]))?;
    check(
        "clippy, host crates",
        host::cargo()
            .args(["clippy", "--quiet", "--locked", "--all-targets"])
            .args(&packages)
            .args(["--", "-Dwarnings"]),
    )?;
    for arch in Arch::ALL {
        check(
            &format!("clippy, {arch}"),
            clippy(&toolchain, arch, arch.package()).args(["--", "-Dwarnings"]),
        )?;
        check(
            &format!("clippy, {arch} for bring-up"),
            clippy(&toolchain, arch, arch.package())
                .args(Contents::BringUp.features())
                .args(["--", "-Dwarnings"]),
        )?;
    }
    for (arch, package) in guest::PACKAGES {
        check(
            &format!("clippy, guests on {arch}"),
            clippy(&toolchain, arch, package).args(["--", "-Dwarnings"]),
        )?;
    }
    for arch in Arch::ALL {
        check(
            &format!("clippy, the program for Linux guests on {arch}"),
            clippy(&toolchain, arch, guest::TOOL_PACKAGE)
                .args(["--features", guest::TOOL_FEATURE])
                .args(["--", "-Dwarnings"]),
        )?;
    }
    check(
        "documentation, host crates",
        host::cargo()
            .args(["doc", "--quiet", "--locked", "--no-deps"])
            .args(&packages)
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    for (arch, package) in Arch::ALL
        .map(|arch| (arch, arch.package()))
        .into_iter()
        .chain(guest::PACKAGES)
    {
        let mut doc = build::cargo(&toolchain, arch, "doc");
        // What others made of its dependencies was made for clippy already, in this profile.
        doc.args(["--quiet", "--release", "--no-deps", "-p", package]);
        check(
            &format!("documentation, {package}"),
            doc.env("RUSTDOCFLAGS", "-Dwarnings"),
        )?;
    }
    say!("lint: all clean");
    Ok(0)
}

fn clippy(toolchain: &Toolchain, arch: Arch, package: &str) -> Command {
    let mut command = build::cargo(toolchain, arch, "clippy");
    command.args(["--quiet", "--release", "-p", package]);
    command
}

fn check(what: &str, command: &mut Command) -> Result<()> {
    say!("lint: {what}");
    let status = child::status(command).context("cannot start cargo")?;
    if !status.success() {
        bail!("lint: {what}: not clean; the messages are above");
    }
    Ok(())
}
