//! Builds the guests of our own, `guest:NAME` in a manifest, and our program for Linux guests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::board::Arch;
use crate::build::{self, Executable};
use crate::provide::toolchain;
use crate::{child, image, timings, workspace};

/// The packages that they are in, for each architecture.
pub(crate) const PACKAGES: [(Arch, &str); 2] = [
    (Arch::Aarch64, "bulkhead-guests"),
    (Arch::Ppc64, "bulkhead-guests-power"),
];

/// The package of the program that a Linux guest's RAM disk has.
pub(crate) const TOOL_PACKAGE: &str = "bulkhead-devtool";

/// The feature with which that package has a program. Without it, its tests run on the host.
pub(crate) const TOOL_FEATURE: &str = "program";

/// The guests there are.
fn names(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::Aarch64 => &[
            "bench",
            "busy",
            "dma",
            "heartbeat",
            "hidden",
            "hostile",
            "mute",
        ],
        Arch::Ppc64 => &[
            "bench",
            "dma",
            "heartbeat",
            "hostile",
            "mute",
            "platform",
            "registers",
        ],
    }
}

/// A guest, built anew once in a run of this tool: a flat binary on Arm, an ELF on POWER.
///
/// # Errors
/// An unknown name, a failed build.
pub(crate) fn file(arch: Arch, name: &str) -> Result<PathBuf> {
    let names = names(arch);
    if !names.contains(&name) {
        bail!(
            "there is no guest `{name}` for {arch}; the guests are: {}",
            names.join(", ")
        );
    }
    let [(_, arm), (_, power)] = PACKAGES;
    let (package, bin) = match arch {
        Arch::Aarch64 => (arm, format!("guest-{name}")),
        Arch::Ppc64 => (power, format!("guest-power-{name}")),
    };
    let elf = built(arch, package)?
        .into_iter()
        .find(|made| made.name == bin)
        .with_context(|| format!("package {package} made no program {bin}"))?
        .program;
    if arch == Arch::Ppc64 {
        return Ok(elf);
    }
    let contents = std::fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let flat =
        image::flatten(&contents).with_context(|| format!("{} cannot be loaded", elf.display()))?;
    let path = workspace::target_dir()
        .join("guests")
        .join(format!("{name}.bin"));
    workspace::write_whole(Path::new(&path), &flat)?;
    Ok(path)
}

/// Our program for a Linux guest's RAM disk; built anew once, as guests are.
///
/// # Errors
/// A failed build.
pub(crate) fn tool(arch: Arch) -> Result<PathBuf> {
    built(arch, TOOL_PACKAGE)?
        .pop()
        .map(|made| made.program)
        .with_context(|| format!("package {TOOL_PACKAGE} made no program"))
}

/// The programs of a package. All are built at once, the first time that one of them is asked for.
fn built(arch: Arch, package: &'static str) -> Result<Vec<Executable>> {
    static BUILT: Mutex<BTreeMap<(Arch, &str), Vec<Executable>>> = Mutex::new(BTreeMap::new());
    let mut known = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(programs) = known.get(&(arch, package)) {
        return Ok(programs.clone());
    }
    let toolchain = toolchain::provide()?;
    let mut command = build::cargo(&toolchain, arch, "build");
    command
        .arg("--message-format=json-render-diagnostics")
        .args(["--release", "--bins", "-p", package]);
    if package == TOOL_PACKAGE {
        command.args(["--features", TOOL_FEATURE]);
    }
    let (status, messages, spent) = child::output(&mut command)
        .with_context(|| format!("cannot start {}", toolchain.cargo.display()))?;
    timings::add(&format!("build: {package}"), spent);
    if !status.success() {
        bail!("{package} does not build; the compiler's messages are above");
    }
    let programs = build::executables(&messages);
    known.insert((arch, package), programs.clone());
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_guest_is_refused_with_the_known_ones() {
        let error = file(Arch::Aarch64, "pest").unwrap_err().to_string();
        assert!(
            error.contains("`pest`") && error.contains("bench"),
            "{error}"
        );
    }

    #[test]
    fn some_guests_are_for_arm() {
        let error = file(Arch::Ppc64, "hidden").unwrap_err().to_string();
        assert!(error.contains("for ppc64"), "{error}");
    }
}
