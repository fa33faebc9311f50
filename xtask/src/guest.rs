//! Builds the guests of our own, `guest:NAME` in a manifest, and our program for Linux guests.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::board::Arch;
use crate::build;
use crate::provide::toolchain;
use crate::{image, workspace};

/// The package that they are in.
pub(crate) const PACKAGE: &str = "bulkhead-guests";

/// The package of the program that a Linux guest's RAM disk has.
pub(crate) const TOOL_PACKAGE: &str = "bulkhead-devtool";

/// The feature with which that package has a program. Without it, its tests run on the host.
pub(crate) const TOOL_FEATURE: &str = "program";

/// The guests there are.
const NAMES: [&str; 5] = ["bench", "busy", "dma", "heartbeat", "hostile"];

/// The flat binary of a guest, built anew.
///
/// # Errors
/// An unknown name, a board that is not Arm, a failed build.
pub(crate) fn file(arch: Arch, name: &str) -> Result<PathBuf> {
    if !NAMES.contains(&name) {
        bail!(
            "there is no guest `{name}`; the guests are: {}",
            NAMES.join(", ")
        );
    }
    if arch != Arch::Aarch64 {
        bail!("the guest `{name}` is for Arm boards");
    }
    let bin = format!("guest-{name}");
    let elf = build(&["-p", PACKAGE, "--bin", &bin])?;
    let contents = std::fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let flat =
        image::flatten(&contents).with_context(|| format!("{} cannot be loaded", elf.display()))?;
    let path = workspace::target_dir()
        .join("guests")
        .join(format!("{name}.bin"));
    workspace::write_whole(Path::new(&path), &flat)?;
    Ok(path)
}

/// Our program for a Linux guest's RAM disk, built anew, if there is one for the architecture.
///
/// # Errors
/// A failed build.
pub(crate) fn tool(arch: Arch) -> Result<Option<PathBuf>> {
    match arch {
        Arch::Aarch64 => build(&["-p", TOOL_PACKAGE, "--features", TOOL_FEATURE]).map(Some),
        Arch::Ppc64 => Ok(None),
    }
}

fn build(what: &[&str]) -> Result<PathBuf> {
    let toolchain = toolchain::provide()?;
    let output = build::cargo(&toolchain, Arch::Aarch64, "build")
        .arg("--message-format=json-render-diagnostics")
        .arg("--release")
        .args(what)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", toolchain.cargo.display()))?;
    let what = what.join(" ");
    if !output.status.success() {
        bail!("`{what}` does not build; the compiler's messages are above");
    }
    build::executable(&output.stdout).with_context(|| format!("`{what}` made no program"))
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
    fn guests_are_for_arm() {
        let error = file(Arch::Ppc64, "bench").unwrap_err().to_string();
        assert!(error.contains("Arm"), "{error}");
    }
}
