//! The need for a compiler that makes both hypervisors.
//!
//! Two sets do: rustup's toolchain with its `rust-src` component (the Arm target comes ready-made),
//! or Debian's `rustc-web` set, which has the same sources and links with Debian's `lld`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::apt::{self, Suite, Wanted};
use super::permission::{self, Cure, Lack};
use super::turn::Turn;
use super::{Need, Version, output_of};
use crate::{say, workspace};

/// The Arm hypervisor's target.
pub(crate) const ARM_TARGET: &str = "aarch64-unknown-none-softfloat";
/// The oldest compiler that takes the code; `rust-version` in the workspace says the same.
const LEAST: Version = Version::new(1, 88);
/// Why it is needed.
const WHY: &str = "the sources of Rust's core library are needed to build for POWER";
/// Debian's set.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];

/// Where the Arm target's standard library comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArmStd {
    /// Installed beside the compiler.
    Installed,
    /// Built from source.
    Built,
}

/// Which linker is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linker {
    /// The compiler's own.
    Own,
    /// `ld.lld` from `PATH`.
    System,
}

/// A compiler with all that the hypervisors need.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// Cargo.
    pub(crate) cargo: PathBuf,
    rustc: Option<PathBuf>,
    sysroot: PathBuf,
    arm_std: ArmStd,
    linker: Linker,
}

impl Toolchain {
    /// Where sources lie that are not the workspace's: the standard library's and each registry's. The compiler writes
    /// their paths into the messages of panics.
    pub(crate) fn foreign_sources(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.sysroot.join("lib/rustlib/src/rust")];
        let registries =
            cargo_home().and_then(|home| std::fs::read_dir(home.join("registry/src")).ok());
        for registry in registries.into_iter().flatten().filter_map(Result::ok) {
            folders.push(registry.path());
        }
        folders.sort();
        folders
    }

    /// Whether the Arm target's `core` and `alloc` are built from source.
    pub(crate) fn builds_std_for_arm(&self) -> bool {
        self.arm_std == ArmStd::Built
    }

    /// Cargo, set up to use this toolchain.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc).env_remove("RUSTUP_TOOLCHAIN");
        }
        if self.linker == Linker::System {
            for target in [ARM_TARGET, "ppc64le-bulkhead"] {
                command
                    .arg("--config")
                    .arg(format!("target.{target}.linker=\"ld.lld\""));
                command.arg("--config").arg(format!(
                    "target.{target}.rustflags=[\"-Clinker-flavor=ld.lld\"]"
                ));
            }
        }
        command
    }
}

/// What a sysroot has.
#[derive(Debug)]
struct Sysroot {
    dir: PathBuf,
    version: Version,
}

impl Sysroot {
    fn of(rustc: &Path) -> Option<Self> {
        let version = Version::find(&output_of(Command::new(rustc).arg("--version"))?)?;
        let dir = output_of(Command::new(rustc).args(["--print", "sysroot"]))?.into();
        Some(Self { dir, version })
    }

    fn has_sources(&self) -> bool {
        self.dir
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    }

    fn has_arm_target(&self) -> bool {
        let lib = self.dir.join("lib/rustlib").join(ARM_TARGET).join("lib");
        std::fs::read_dir(lib).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
    }

    fn has_own_linker(&self) -> bool {
        std::fs::read_dir(self.dir.join("lib/rustlib")).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .any(|entry| entry.path().join("bin/rust-lld").is_file())
        })
    }
}

fn rustc() -> PathBuf {
    env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from)
}

fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Where cargo keeps what it has downloaded.
fn cargo_home() -> Option<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Some(home.into()),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")),
    }
}

/// The toolchain that we were built with, if it has everything.
fn own() -> Option<Toolchain> {
    let sysroot = Sysroot::of(&rustc())?;
    let complete = sysroot.version >= LEAST
        && sysroot.has_sources()
        && sysroot.has_arm_target()
        && sysroot.has_own_linker();
    complete.then(|| Toolchain {
        cargo: cargo(),
        rustc: None,
        sysroot: sysroot.dir,
        arm_std: ArmStd::Installed,
        linker: Linker::Own,
    })
}

/// Debian's set, if it is installed whole.
fn debian() -> Option<Toolchain> {
    let (rustc, cargo) = (
        PathBuf::from("/usr/bin/rustc"),
        PathBuf::from("/usr/bin/cargo"),
    );
    let sysroot = Sysroot::of(&rustc)?;
    let complete = sysroot.version >= LEAST
        && sysroot.has_sources()
        && cargo.is_file()
        && workspace::find_program("ld.lld").is_some();
    complete.then_some(Toolchain {
        cargo,
        rustc: Some(rustc),
        sysroot: sysroot.dir,
        arm_std: ArmStd::Built,
        linker: Linker::System,
    })
}

/// What rustup lacks of what we need, as its arguments.
fn missing_parts(sysroot: &Sysroot) -> Vec<[&'static str; 3]> {
    let mut parts = Vec::new();
    if !sysroot.has_sources() {
        parts.push(["component", "add", "rust-src"]);
    }
    if !sysroot.has_arm_target() {
        parts.push(["target", "add", ARM_TARGET]);
    }
    parts
}

/// The rustup toolchain in use, if it is rustup's.
fn rustup_toolchain() -> Option<String> {
    workspace::find_program("rustup")?;
    if let Ok(name) = env::var("RUSTUP_TOOLCHAIN") {
        return Some(name);
    }
    let active = output_of(Command::new("rustup").args(["show", "active-toolchain"]))?;
    active.split_whitespace().next().map(str::to_owned)
}

/// The need, for `doctor`.
pub(crate) fn need() -> Need {
    let what = "a Rust compiler for both hypervisors".to_owned();
    if let Some(sysroot) = own().and_then(|_| Sysroot::of(&rustc())) {
        let found = format!("{} with rust-src and {ARM_TARGET}", sysroot.version);
        return Need::met(what, found);
    }
    if debian().is_some() {
        return Need::met(what, "Debian's rustc-web, cargo-web, rust-web-src and lld");
    }
    let found = match Sysroot::of(&rustc()) {
        None => "no rustc".to_owned(),
        Some(sysroot) if sysroot.version < LEAST => format!("rustc {}, too old", sysroot.version),
        Some(sysroot) => {
            let lacks: Vec<&str> = missing_parts(&sysroot).iter().map(|part| part[2]).collect();
            format!("rustc {} without {}", sysroot.version, lacks.join(" and "))
        }
    };
    let cure = if rustup_toolchain().is_some() {
        format!("rustup component add rust-src && rustup target add {ARM_TARGET}")
    } else {
        cure()
    };
    Need::unmet(what, found, cure)
}

fn cure() -> String {
    let cure = cure_of();
    match permission::apt() {
        Ok(_) if apt::may_install() && cure.packages.is_some() => {
            "cargo xtask build installs it".to_owned()
        }
        apt => permission::command(&[cure], apt),
    }
}

fn cure_of() -> Cure {
    let offered = apt::candidate_of_machine(PACKAGES[0]);
    let packages = &PACKAGES;
    let from = Suite::Default;
    match apt::new_enough(offered.as_deref(), LEAST) {
        true => Cure {
            packages: Some(Wanted { packages, from }),
            by_hand: "install rustup, then its component rust-src".to_owned(),
        },
        false => Cure {
            packages: None,
            by_hand: too_old(offered.as_deref()),
        },
    }
}

/// What the machine lacks for it, if it does and rustup cannot help.
pub(super) fn lack() -> Option<Lack> {
    let helped = own().is_some() || rustup_toolchain().is_some() || debian().is_some();
    (!helped).then(|| Lack {
        why: format!("{WHY}, and this compiler has none"),
        cure: cure_of(),
    })
}

/// What to do where the archive's compiler does not take the code.
fn too_old(offered: Option<&str>) -> String {
    format!(
        "the archive's {} is {}, {LEAST} is needed: install rustup, then `rustup component add rust-src`",
        PACKAGES[0],
        offered.unwrap_or("not there"),
    )
}

/// A complete toolchain; what is missing of it is fetched first.
///
/// # Errors
/// It cannot be completed; the message holds the cure.
pub(crate) fn provide() -> Result<Toolchain> {
    if let Some(toolchain) = own() {
        return Ok(toolchain);
    }
    let _turn = Turn::wait();
    if let Some(toolchain) = own() {
        return Ok(toolchain);
    }
    if let Some(name) = rustup_toolchain() {
        match complete_rustup(&name) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => say!("{error:#}; turning to Debian's compiler"),
        }
    }
    if let Some(toolchain) = debian() {
        return Ok(toolchain);
    }
    let why = WHY;
    let apt = match permission::apt() {
        Ok(apt) if apt::may_install() => apt,
        _ => bail!("{why}, and this compiler has none; the cure:\n  {}", cure()),
    };
    apt.update()?;
    let offered = apt.candidate(PACKAGES[0], None);
    if !apt::new_enough(offered.as_deref(), LEAST) {
        bail!(
            "{why}, and this compiler has none; {}",
            too_old(offered.as_deref())
        );
    }
    apt::announce(&PACKAGES, "the machine's own suites", why);
    apt.install(&PACKAGES, None)?;
    debian().with_context(|| {
        format!(
            "{} are installed but are no complete compiler",
            PACKAGES.join(", ")
        )
    })
}

/// Adds clippy and rustfmt where rustup has not installed them.
///
/// # Errors
/// They are missing and cannot be fetched.
pub(crate) fn provide_lints() -> Result<()> {
    for (program, component) in [("cargo-clippy", "clippy"), ("cargo-fmt", "rustfmt")] {
        let works = output_of(Command::new(program).arg("--version")).is_some();
        if works {
            continue;
        }
        let Some(name) = rustup_toolchain() else {
            bail!("{component} is missing, and there is no rustup to fetch it");
        };
        add(&["component", "add", component], &name)?;
    }
    Ok(())
}

fn add(part: &[&str; 3], name: &str) -> Result<()> {
    say!(
        "toolchain {name} has no {}: fetching it with rustup",
        part[2]
    );
    let status = Command::new("rustup")
        .args(part)
        .args(["--toolchain", name])
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .context("cannot start rustup")?;
    if !status.success() {
        bail!("rustup could not fetch {}", part[2]);
    }
    Ok(())
}

fn complete_rustup(name: &str) -> Result<Toolchain> {
    let sysroot = Sysroot::of(&rustc()).context("rustc does not run")?;
    if sysroot.version < LEAST {
        bail!(
            "rustc {} is too old, {LEAST} is needed: rustup update",
            sysroot.version
        );
    }
    for part in missing_parts(&sysroot) {
        add(&part, name)?;
    }
    own().context("rustup has fetched everything, but the toolchain is still not complete")
}
