//! Builds the hypervisors.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::board::{Arch, Board};
use crate::cli::BuildOptions;
use crate::provide::disk::{self, Work};
use crate::provide::toolchain::{self, Toolchain};
use crate::{child, image, say, show, timings, workspace};

/// How the compiler is asked to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// With the checks of a debug build, and made anew within seconds: crate by crate, from what the last build left.
    Checked,
    /// Optimised for size, as one.
    Release,
}

impl Profile {
    /// What `--debug` asks for.
    pub(crate) fn of_option(debug: bool) -> Self {
        match debug {
            true => Self::Checked,
            false => Self::Release,
        }
    }

    /// What cargo calls it, and the folder of what is built.
    fn name(self) -> &'static str {
        match self {
            Self::Checked => "checked",
            Self::Release => "release",
        }
    }

    /// Flags of the compiler that only this profile needs.
    fn flags(self, arch: Arch) -> &'static [&'static str] {
        match (self, arch) {
            // It is larger than what the model of the optimised image reaches.
            (Self::Checked, Arch::Aarch64) => &["-Ccode-model=small"],
            (Self::Checked, Arch::Ppc64) | (Self::Release, _) => &[],
        }
    }
}

/// What the hypervisor is to be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// All of it.
    Whole,
    /// Taking the machine, reporting it and turning it off.
    BringUp,
}

impl Contents {
    /// What `--bring-up` asks for.
    pub(crate) fn of_option(bring_up: bool) -> Self {
        match bring_up {
            true => Self::BringUp,
            false => Self::Whole,
        }
    }

    /// Cargo's arguments for it.
    pub(crate) fn features(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &[],
            Self::BringUp => &["--no-default-features"],
        }
    }
}

/// A built hypervisor.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// The ELF with its symbols.
    pub(crate) elf: PathBuf,
    /// What QEMU or a boot loader loads.
    pub(crate) load: PathBuf,
    /// Bytes that are loaded.
    pub(crate) size: u64,
}

impl Arch {
    /// The hypervisor's package.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Aarch64 => "bulkhead-aarch64",
            Self::Ppc64 => "bulkhead-ppc64",
        }
    }

    /// The argument of cargo's `--target`.
    pub(crate) fn target(self) -> String {
        match self {
            Self::Aarch64 => toolchain::ARM_TARGET.to_owned(),
            Self::Ppc64 => workspace::root()
                .join("linker/ppc64le-bulkhead.json")
                .to_string_lossy()
                .into_owned(),
        }
    }
}

/// `cargo xtask build`.
///
/// # Errors
/// An unknown board, a missing tool, a failed build.
pub(crate) fn command(options: &BuildOptions) -> Result<u8> {
    let arches = match &options.board {
        Some(name) => vec![Board::load(&workspace::root().join("boards"), name)?.arch],
        None => Arch::ALL.to_vec(),
    };
    disk::ensure_room(Work::Build, options.profile())?;
    let toolchain = toolchain::provide()?;
    let start = Instant::now();
    let one = |arch| {
        let built = build_with(&toolchain, arch, options.profile(), options.contents());
        (built, start.elapsed())
    };
    // Both at once: an image is made from all crates in the end, and only one processor can do that.
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = arches
            .iter()
            .map(|&arch| scope.spawn(move || one(arch)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join())
            .collect::<Vec<_>>()
    });
    for (arch, ended) in arches.iter().zip(ended) {
        let (built, took) = ended.map_err(|_| anyhow!("building for {arch} panicked"))?;
        let built = built?;
        show!(
            "{arch}: {} ({} KiB loaded, {:.1} s)",
            built.load.display(),
            built.size.div_ceil(1024),
            took.as_secs_f64()
        );
    }
    Ok(0)
}

/// Builds one hypervisor, all of it.
///
/// # Errors
/// Those of [`build_with`].
pub(crate) fn build(toolchain: &Toolchain, arch: Arch, profile: Profile) -> Result<Built> {
    build_with(toolchain, arch, profile, Contents::Whole)
}

/// Builds one hypervisor.
///
/// # Errors
/// The compiler's (which it has shown already), or a linked file that cannot be loaded.
pub(crate) fn build_with(
    toolchain: &Toolchain,
    arch: Arch,
    profile: Profile,
    contents: Contents,
) -> Result<Built> {
    let mut command = cargo_with(toolchain, arch, "build", profile.flags(arch));
    command
        .arg("--message-format=json-render-diagnostics")
        .args(["--profile", profile.name()])
        .args(["-p", arch.package()])
        .args(contents.features());
    let whole = match contents {
        Contents::Whole => None,
        Contents::BringUp => std::fs::read(program(arch, profile)).ok(),
    };
    let (status, messages, spent) = child::output(&mut command)
        .with_context(|| format!("cannot start {}", toolchain.cargo.display()))?;
    timings::add(&format!("build: {}", arch.package()), spent);
    if !status.success() {
        bail!("the hypervisor for {arch} does not build; the compiler's messages are above");
    }
    let elf = executable(&messages)
        .with_context(|| format!("package {} made no program", arch.package()))?;
    match contents {
        Contents::Whole => load_file(arch, elf),
        Contents::BringUp => load_file(arch, apart(&elf, whole.as_deref())?),
    }
}

/// Gives the bring-up image a name of its own, and the whole one, which cargo calls the same, its name back.
fn apart(elf: &Path, whole: Option<&[u8]>) -> Result<PathBuf> {
    let mut own = elf.as_os_str().to_owned();
    own.push("-bring-up");
    let own = PathBuf::from(own);
    workspace::write_whole(&own, &read(elf)?)?;
    if let Some(whole) = whole {
        workspace::write_whole(elf, whole)?;
    }
    Ok(own)
}

/// Where cargo builds for an architecture. Two builds in one folder wait for each other.
pub(crate) fn folder(arch: Arch) -> PathBuf {
    match arch {
        Arch::Aarch64 => workspace::target_dir(),
        Arch::Ppc64 => workspace::target_dir().join("power"),
    }
}

/// Where cargo puts what it makes for an architecture.
pub(crate) fn result_folder(arch: Arch, profile: Profile) -> PathBuf {
    let target = arch.target();
    let target = Path::new(&target).file_stem().unwrap_or_default();
    folder(arch).join(target).join(profile.name())
}

/// Where cargo puts the hypervisor.
fn program(arch: Arch, profile: Profile) -> PathBuf {
    result_folder(arch, profile).join(arch.package())
}

/// A cargo command with what the architecture needs to be compiled.
pub(crate) fn cargo(toolchain: &Toolchain, arch: Arch, verb: &str) -> Command {
    cargo_with(toolchain, arch, verb, &[])
}

/// The same, with further flags of the compiler: the last of contradicting ones counts.
fn cargo_with(toolchain: &Toolchain, arch: Arch, verb: &str, flags: &[&str]) -> Command {
    let mut command = toolchain.command();
    command
        .current_dir(workspace::root())
        .arg(verb)
        .arg("--locked");
    command.args(["--target", &arch.target()]);
    command.arg("--target-dir").arg(folder(arch));
    if arch == Arch::Ppc64 {
        command.arg("-Zjson-target-spec");
    }
    if arch == Arch::Ppc64 || toolchain.builds_std_for_arm() {
        command.args([
            "-Zbuild-std=core,alloc,compiler_builtins",
            "-Zbuild-std-features=compiler-builtins-mem,optimize_for_size",
        ]);
    }
    // An image says the same of itself wherever it was built, and says it shorter.
    let target = arch.target();
    let triple = Path::new(&target).file_stem().unwrap_or_default();
    let mut all = without_prefixes(&toolchain.foreign_sources());
    all.extend(flags.iter().map(|&flag| flag.to_owned()));
    command.arg("--config").arg(format!(
        "target.{}.rustflags={all:?}",
        triple.to_string_lossy(),
    ));
    // `core` from source and `#[optimize]` need it.
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Flags of the compiler that take prefixes off the names of sources.
fn without_prefixes(folders: &[PathBuf]) -> Vec<String> {
    folders
        .iter()
        .map(|folder| format!("--remap-path-prefix={}=", folder.display()))
        .collect()
}

/// Whether what is loaded of an image says where it was built.
///
/// # Errors
/// It does; or it cannot be read.
pub(crate) fn says_nothing_of_us(toolchain: &Toolchain, built: &Built) -> Result<()> {
    let loaded = image::flatten(&read(&built.elf)?)?;
    let mut folders = toolchain.foreign_sources();
    folders.push(workspace::root());
    match named(&loaded, &folders) {
        None => Ok(()),
        Some(folder) => bail!("it has a path below {}", folder.display()),
    }
}

/// The first folder whose path is in the bytes.
fn named<'a>(bytes: &[u8], folders: &'a [PathBuf]) -> Option<&'a Path> {
    let text = String::from_utf8_lossy(bytes);
    let mut folders = folders.iter().map(PathBuf::as_path);
    folders.find(|folder| text.contains(&*folder.to_string_lossy()))
}

fn load_file(arch: Arch, elf: PathBuf) -> Result<Built> {
    let file = read(&elf)?;
    let faulty = || format!("{} cannot be loaded", elf.display());
    match arch {
        Arch::Aarch64 => {
            let image = image::arm64_image(&file).with_context(faulty)?;
            let load = elf.with_extension("img");
            workspace::write_whole(&load, &image)?;
            let size = image.len() as u64;
            Ok(Built { elf, load, size })
        }
        Arch::Ppc64 => {
            let size = image::loaded_size(&file).with_context(faulty)?;
            Ok(Built {
                load: elf.clone(),
                elf,
                size,
            })
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!file.is_empty(), "{} is empty", path.display());
    Ok(file)
}

/// The program that cargo's messages name last.
pub(crate) fn executable(messages: &[u8]) -> Option<PathBuf> {
    Some(executables(messages).pop()?.program)
}

/// A program that cargo made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The name of the target.
    pub(crate) name: String,
    /// The manifest of its package.
    pub(crate) manifest: PathBuf,
    /// Whether it is made of tests.
    pub(crate) tests: bool,
    /// The file.
    pub(crate) program: PathBuf,
}

/// The programs that cargo's messages name.
pub(crate) fn executables(messages: &[u8]) -> Vec<Executable> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        manifest_path: PathBuf,
        target: Target,
        profile: Made,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Made {
        test: bool,
    }
    String::from_utf8_lossy(messages)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| {
            Some(Executable {
                name: message.target.name,
                manifest: message.manifest_path,
                tests: message.profile.test,
                program: message.executable?,
            })
        })
        .collect()
}

/// Says what a build came to.
pub(crate) fn report(arch: Arch, built: &Built) {
    say!(
        "{arch} hypervisor: {} KiB, {}",
        built.size.div_ceil(1024),
        built.load.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_build_waits_for_that_of_another_architecture() {
        let toolchain = toolchain::provide().unwrap();
        let folders = Arch::ALL.map(|arch| {
            let command = cargo(&toolchain, arch, "build");
            let mut args = command.get_args().map(std::ffi::OsStr::to_owned);
            args.find(|arg| arg == "--target-dir").unwrap();
            let given = PathBuf::from(args.next().unwrap());
            assert!(program(arch, Profile::Release).starts_with(&given));
            given
        });
        let [arm, power] = folders;
        assert_ne!(arm, power);
        assert_eq!(power.parent(), Some(&*workspace::target_dir()));
    }

    #[test]
    fn the_path_of_a_folder_is_noticed() {
        let folders = [PathBuf::from("/home/a/.cargo"), PathBuf::from("/src")];
        let noticed = |text: &[u8]| named(text, &folders);
        assert_eq!(noticed(b"\0/home/b/.cargo/x.rs\0hv/y.rs\0"), None);
        assert_eq!(noticed(b"\0/src/hv/y.rs"), Some(Path::new("/src")));
        assert_eq!(without_prefixes(&folders)[1], "--remap-path-prefix=/src=");
    }

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let of = |name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/s/Cargo.toml","target":{{"name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let messages = [
            of("lib", false, "null"),
            "not json".to_owned(),
            of("tests", true, r#""/t/tests""#),
            of("hv", false, r#""/t/bulkhead""#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let messages = messages.as_bytes();
        assert_eq!(executable(messages), Some(PathBuf::from("/t/bulkhead")));
        let all = executables(messages);
        assert_eq!(all.len(), 2);
        assert!(all[0].tests && !all[1].tests);
        assert_eq!((&*all[0].name, &*all[1].name), ("tests", "hv"));
        assert_eq!(executable(b""), None);
    }
}
