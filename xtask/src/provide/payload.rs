//! The need for something that guests can be made of: Debian's kernels and busybox, taken from their
//! packages without installing anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::Need;
use super::apt::{self, Apt};
use super::programs;
use super::turn::Turn;
use crate::board::Arch;
use crate::manifest::PayloadName;
use crate::{child, guest, initramfs, say, timings, workspace};

/// Debian's package of the static busybox.
const BUSYBOX: &str = "busybox-static";

/// `qemu/payloads/linux.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    modules: Vec<String>,
    init: String,
    actions: String,
    tools: programs::Wanted,
    aarch64: Packages,
    ppc64: Packages,
}

/// What Debian calls things on one architecture.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packages {
    architecture: String,
    kernel: String,
}

impl Recipe {
    fn read() -> Result<Self> {
        let path = folder().join("linux.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is faulty", path.display()))
    }

    fn packages(&self, arch: Arch) -> &Packages {
        match arch {
            Arch::Aarch64 => &self.aarch64,
            Arch::Ppc64 => &self.ppc64,
        }
    }
}

fn folder() -> PathBuf {
    workspace::root().join("qemu/payloads")
}

/// The kernel whose busybox serves when a manifest asks for no kernel of Debian's.
const DEFAULT_SERIES: &str = "6.12";

/// The file that a manifest's name stands for. An initial RAM disk has modules for the kernels of
/// all `series`.
///
/// # Errors
/// It cannot be provided; the message holds the cure.
pub(crate) fn file(arch: Arch, name: &PayloadName, series: &[&str]) -> Result<PathBuf> {
    match name {
        PayloadName::DebianKernel(series) => Ok(unpacked(arch, series)?.join(KERNEL)),
        PayloadName::Initramfs if series.is_empty() => initramfs(arch, &[DEFAULT_SERIES]),
        PayloadName::Initramfs => initramfs(arch, series),
        PayloadName::Guest(name) => guest::file(arch, name),
    }
}

/// Made anew once in a run of this tool: it is quick, and the init script is being worked on.
fn initramfs(arch: Arch, series: &[&str]) -> Result<PathBuf> {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let name = format!("initramfs-{arch}-{}.cpio", series.join("-"));
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = made.get(&name) {
        return Ok(path.clone());
    }
    let path = workspace::target_dir().join("payloads").join(&name);
    workspace::write_whole(&path, &archive(arch, series)?)?;
    made.insert(name, path.clone());
    Ok(path)
}

fn archive(arch: Arch, series: &[&str]) -> Result<Vec<u8>> {
    let recipe = Recipe::read()?;
    let init = folder().join(&recipe.init);
    let init = fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?;
    let mut kernels = Vec::new();
    for series in series {
        kernels.push(unpacked(arch, series)?);
    }
    let first = kernels
        .first()
        .context("an initial RAM disk needs a kernel's packages")?;
    let busybox = fs::read(first.join(BUSYBOX)).context("the unpacked busybox is gone")?;
    let tools = {
        let _turn = Turn::wait();
        programs::unpacked(&recipe.tools, &recipe.packages(arch).architecture)?
    };
    let mut contents = initramfs::Contents::default();
    contents.folder("", &tools)?;
    contents.folder("actions", &folder().join(&recipe.actions))?;
    contents.file("init", init).file("bin/busybox", busybox);
    let tool = guest::tool(arch)?;
    let program = fs::read(&tool).with_context(|| format!("cannot read {}", tool.display()))?;
    contents.file("bin/devtool", program);
    for kernel in &kernels {
        contents.folder("lib/modules", &kernel.join(MODULES))?;
    }
    Ok(contents.archive())
}

/// Parts of an unpacked kernel.
const KERNEL: &str = "kernel";
const MODULES: &str = "modules";

/// The folder with Debian's kernel of a series; fetched and unpacked first if it is not there. Looked for once in a
/// run of this tool.
fn unpacked(arch: Arch, series: &str) -> Result<PathBuf> {
    static FOUND: Mutex<BTreeMap<(Arch, String), PathBuf>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (arch, series.to_owned());
    if let Some(path) = found.get(&key) {
        return Ok(path.clone());
    }
    let path = look_for(arch, series)?;
    found.insert(key, path.clone());
    Ok(path)
}

fn look_for(arch: Arch, series: &str) -> Result<PathBuf> {
    let _turn = Turn::wait();
    let recipe = Recipe::read()?;
    let packages = recipe.packages(arch);
    let dir = debs_dir(packages, series);
    let get = || {
        fetch(packages, series, &dir).with_context(|| {
            format!(
                "cannot fetch Debian's Linux {series} for {arch}; another kernel can be given with \
                 --kernel and --initrd"
            )
        })
    };
    let debs = cached(&dir, get)?;
    let unpacked = unpacked_dir(&recipe, &debs);
    if !unpacked.is_dir() {
        say!("unpacking Linux {series} for {arch}");
        clear_halves(&workspace::cache_dir().join("payloads"));
        programs::unpack_whole(&unpacked, &dir, get, |partial| {
            // They may be others by now.
            let debs = Debs::find(&dir).context("the packages are gone")?;
            unpack_into(&recipe, &debs, arch, partial)
        })?;
    }
    Ok(unpacked)
}

/// The packages in the cache. They are fetched only if they are not there: nothing is asked of a network that may not
/// be there. Whether they are whole shows when they are unpacked.
fn cached(dir: &Path, fetch: impl FnOnce() -> Result<()>) -> Result<Debs> {
    if let Some(debs) = Debs::find(dir) {
        return Ok(debs);
    }
    fetch()?;
    Debs::find(dir).context("the packages were fetched but are not there")
}

/// The need, for `doctor`.
pub(crate) fn need(arch: Arch, series: &str) -> Need {
    let what = format!("Debian's Linux {series} for guests on {arch}");
    let found = Recipe::read().ok().and_then(|recipe| {
        let dir = debs_dir(recipe.packages(arch), series);
        let debs = Debs::find(&dir)?;
        let unpacked = unpacked_dir(&recipe, &debs).is_dir();
        Some((
            debs.kernel,
            (!unpacked).then(|| programs::damaged(&dir)).flatten(),
        ))
    });
    match found {
        Some((kernel, None)) => Need::met(what, kernel.display().to_string()),
        Some((_, Some(damaged))) => Need::unmet(
            what,
            format!("{} is damaged", damaged.display()),
            "cargo xtask run fetches it again (no root needed)",
        ),
        None => {
            let cure = if workspace::find_program("apt-get").is_some() {
                "cargo xtask run fetches it (no root needed)"
            } else {
                "this machine has no apt: give --kernel and --initrd"
            };
            Need::unmet(what, "not in the cache", cure)
        }
    }
}

fn debs_dir(packages: &Packages, series: &str) -> PathBuf {
    workspace::cache_dir().join(format!(
        "payloads/debian-{series}-{}",
        packages.architecture
    ))
}

/// The packages in the cache.
struct Debs {
    kernel: PathBuf,
    busybox: PathBuf,
}

impl Debs {
    fn find(dir: &Path) -> Option<Self> {
        let one = |prefix: &str| {
            fs::read_dir(dir)
                .ok()?
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .find(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.starts_with(prefix) && name.ends_with(".deb")
                })
        };
        Some(Self {
            kernel: one("linux-image-")?,
            busybox: one(BUSYBOX)?,
        })
    }
}

fn fetch(packages: &Packages, series: &str, into: &Path) -> Result<()> {
    say!(
        "guests need Debian's Linux {series} for {}: fetching {} and {BUSYBOX} (nothing is installed)",
        packages.architecture,
        packages.kernel
    );
    apt::from_any_release(&packages.architecture, |apt| {
        fetch_from(apt, packages, series, into)
    })
}

fn fetch_from(apt: &Apt, packages: &Packages, series: &str, into: &Path) -> Result<()> {
    let backports = apt.backports();
    let own = apt.candidate(&packages.kernel, None);
    let newer = apt.candidate(&packages.kernel, Some(&backports));
    let suite = if apt::is_of_series(own.as_deref(), series) {
        None
    } else if apt::is_of_series(newer.as_deref(), series) {
        Some(backports.as_str())
    } else {
        bail!(
            "this release offers Linux {} and, in {backports}, {}, but no {series}",
            own.as_deref().unwrap_or("none"),
            newer.as_deref().unwrap_or("none")
        );
    };
    // The folder takes its final name only when everything is in it.
    let partial = apt.partial_folder(into)?;
    download_kernel(apt, packages, series, suite, &partial)?;
    apt.download(BUSYBOX, None, &partial)?;
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| format!("cannot remove {}", into.display()))?;
    }
    fs::rename(&partial, into).with_context(|| format!("cannot rename {}", partial.display()))
}

/// Downloads the newest build of a series that can be had: of each, and of each of another suite, there is a package
/// of its own, and a mirror may list one that it does not have.
fn download_kernel(
    apt: &Apt,
    packages: &Packages,
    series: &str,
    suite: Option<&str>,
    into: &Path,
) -> Result<()> {
    let kernel = |names: Vec<String>| {
        names
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
    };
    // The package is a pointer to the newest build.
    let newest = kernel(apt.dependencies(&packages.kernel, suite))
        .with_context(|| format!("{} depends on no kernel", packages.kernel))?;
    let Err(first) = apt.download(&newest, suite, into) else {
        return Ok(());
    };
    for version in apt.versions(&packages.kernel) {
        if !apt::is_of_series(Some(&version), series) {
            continue;
        }
        let Some(older) = kernel(apt.dependencies_of(&packages.kernel, &version)) else {
            continue;
        };
        if older == newest {
            continue;
        }
        say!(
            "the mirror lists {newest} but does not have it; trying {older}, of version {version}"
        );
        if apt.download(&older, None, into).is_ok() {
            return Ok(());
        }
    }
    Err(first)
}

/// Where a kernel is unpacked, once for all clones on a machine: a build of it with these modules has a folder of its
/// own, which nobody changes once it is there.
fn unpacked_dir(recipe: &Recipe, debs: &Debs) -> PathBuf {
    let build = debs.kernel.file_stem().unwrap_or_default();
    let name = folder_name(&build.to_string_lossy(), &recipe.modules);
    workspace::cache_dir().join("payloads").join(name)
}

/// Removes what unpackings that were cut off have left. Nobody else is at one: it is our [`Turn`].
fn clear_halves(payloads: &Path) {
    for entry in fs::read_dir(payloads).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNPACKED) && name.ends_with(workspace::PARTIAL) {
            // One that stays takes room, and no more.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What the names of folders with unpacked kernels begin with.
const UNPACKED: &str = "unpacked-";

/// The folder of a build of a kernel with these modules, as this version of the tool unpacks it.
fn folder_name(build: &str, modules: &[String]) -> String {
    /// Is raised when something else is unpacked, or in another way.
    const VERSION: u32 = 1;
    // FNV-1a: the same in every build of the tool.
    let hash = modules
        .iter()
        .flat_map(|module| module.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{UNPACKED}{VERSION}-{build}-{hash:016x}")
}

fn unpack_into(recipe: &Recipe, debs: &Debs, arch: Arch, dir: &Path) -> Result<()> {
    let whole = dir.join("whole");
    for deb in [&debs.kernel, &debs.busybox] {
        fs::create_dir_all(&whole)?;
        let (status, _, spent) =
            child::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&whole))
                .context("cannot start dpkg-deb")?;
        timings::add("unpack: dpkg-deb", spent);
        ensure!(status.success(), "dpkg-deb ended with {status}");
    }
    let kernel = fs::read_dir(whole.join("boot"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("vmlinu")
        })
        .context("the package has no kernel")?;
    check_kernel(&fs::read(&kernel)?, arch)?;
    fs::rename(&kernel, dir.join(KERNEL))?;
    // Newer releases keep both below /usr.
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| whole.join(path));
    let modules = modules
        .iter()
        .find(|path| path.is_dir())
        .context("it has no modules")?;
    initramfs::select_modules(modules, &recipe.modules, &dir.join(MODULES))?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| whole.join(path));
    let busybox = busybox
        .iter()
        .find(|path| path.is_file())
        .context("it has no busybox")?;
    fs::rename(busybox, dir.join(BUSYBOX))?;
    fs::remove_dir_all(&whole)?;
    Ok(())
}

/// Refuses a kernel that our loader would not take, where the reason can still be told.
fn check_kernel(kernel: &[u8], arch: Arch) -> Result<()> {
    match arch {
        Arch::Aarch64 => ensure!(
            kernel.get(56..60) == Some(b"ARM\x64"),
            "the kernel is no plain arm64 Image (a compressed one is not supported)"
        ),
        Arch::Ppc64 => ensure!(kernel.starts_with(b"\x7fELF"), "the kernel is no ELF"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn the_recipe_of_the_repository_is_good() {
        let recipe = Recipe::read().unwrap();
        assert_eq!(recipe.packages(Arch::Aarch64).architecture, "arm64");
        assert!(folder().join(recipe.init).is_file());
        assert!(folder().join(recipe.actions).is_dir());
    }

    #[test]
    fn each_choice_of_modules_has_its_folder() {
        let name = |modules: &[&str]| {
            let modules: Vec<String> = modules.iter().map(|&name| name.to_owned()).collect();
            folder_name("linux-image-6.12", &modules)
        };
        assert_eq!(name(&[]), "unpacked-1-linux-image-6.12-cbf29ce484222325");
        let names = [
            name(&[]),
            name(&["ab"]),
            name(&["a", "b"]),
            name(&["b", "a"]),
        ];
        assert_eq!(std::collections::BTreeSet::from(names).len(), 4);
    }

    #[test]
    fn only_kernels_that_can_be_loaded_pass() {
        let mut image = vec![0; 64];
        assert!(check_kernel(&image, Arch::Aarch64).is_err());
        image[56..60].copy_from_slice(b"ARM\x64");
        assert!(check_kernel(&image, Arch::Aarch64).is_ok());
        assert!(check_kernel(&image, Arch::Ppc64).is_err());
        assert!(check_kernel(b"\x7fELF\x02", Arch::Ppc64).is_ok());
        assert!(check_kernel(b"", Arch::Aarch64).is_err());
    }

    /// `apt-cache` of a mirror with a kernel in two suites.
    const LISTS: &str = r#"case "$*" in
*madison*linux-image-arm64*)
    echo "linux-image-arm64 | 6.12.95-1 | http://m trixie-security/main arm64 Packages"
    echo "linux-image-arm64 | 6.12.57-1 | http://m trixie/main arm64 Packages"
    echo "linux-image-arm64 | 6.1.9-1 | http://m old/main arm64 Packages" ;;
*show*=6.12.95-1*) echo "Depends: linux-image-6.12.95-arm64 (= 6.12.95-1)" ;;
*show*=6.12.57-1*) echo "Depends: linux-image-6.12.57-arm64 (= 6.12.57-1)" ;;
*show*=6.1.9-1*) echo "Depends: linux-image-6.1.9-arm64 (= 6.1.9-1)" ;;
*policy*) echo "  Candidate: 6.12.95-1" ;;
*depends*) echo "  Depends: linux-image-6.12.95-arm64" ;;
esac
"#;

    fn arm64() -> Packages {
        Packages {
            architecture: "arm64".into(),
            kernel: "linux-image-arm64".into(),
        }
    }

    #[test]
    fn a_kernel_of_another_suite_is_taken_when_the_mirror_lacks_the_newest() {
        let dir = Scratch::new("suites");
        let get = "for last; do :; done\ncase $last in *6.12.95*) exit 100 ;; *) : >${last}_1_arm64.deb ;; esac\n";
        let apt = apt::scripted(&dir, get, LISTS);
        let into = dir.join("debs");
        fetch_from(&apt, &arm64(), "6.12", &into).unwrap();
        let debs = Debs::find(&into).unwrap();
        assert!(
            debs.kernel
                .ends_with("linux-image-6.12.57-arm64_1_arm64.deb")
        );
        // The control: no kernel of the series can be had, and one of another series does not do.
        let get = "for last; do :; done\ncase $last in *6.12*) exit 100 ;; *) : >${last}_1_arm64.deb ;; esac\n";
        let apt = apt::scripted(&dir, get, LISTS);
        assert!(fetch_from(&apt, &arm64(), "6.12", &dir.join("none")).is_err());
        assert!(!dir.join("none").exists());
    }

    #[test]
    fn a_download_that_was_cut_off_goes_on_and_is_not_taken_for_whole() {
        let dir = Scratch::new("cut");
        let into = dir.join("debs");
        // The line goes down after the kernel.
        let get = "for last; do :; done\ncase $last in linux*) : >${last}_1_arm64.deb ;; *) exit 100 ;; esac\n";
        let apt = apt::scripted(&dir, get, LISTS);
        assert!(fetch_from(&apt, &arm64(), "6.12", &into).is_err());
        assert!(Debs::find(&into).is_none(), "half of it counts as nothing");
        // What is there is not fetched again: it is in apt's working directory.
        let get = "for last; do :; done\n[ -e ${last}_1_arm64.deb ] && exit 0\n\
                   case $last in busybox*) : >${last}_1_arm64.deb ;; *) exit 100 ;; esac\n";
        let apt = apt::scripted(&dir, get, LISTS);
        fetch_from(&apt, &arm64(), "6.12", &into).unwrap();
        assert!(Debs::find(&into).is_some());
    }

    #[test]
    fn a_warm_cache_needs_no_network() {
        let dir = Scratch::new("warm");
        for name in [
            "linux-image-6.12.95-arm64_1_arm64.deb",
            "busybox-static_1_arm64.deb",
        ] {
            fs::write(dir.join(name), b"package").unwrap();
        }
        let offline = || bail!("there is no network");
        assert!(cached(&dir, offline).is_ok());
        // The control: a cache that is cold.
        assert!(cached(&dir.join("cold"), offline).is_err());
    }

    #[test]
    fn packages_that_are_damaged_are_fetched_once_more_and_nothing_half_is_left() {
        let dir = Scratch::new("damaged");
        let (debs, folder) = (dir.join("debs"), dir.join("folder"));
        let deb = debs.join("linux-image-6.12_1_arm64.deb");
        fs::create_dir_all(&debs).unwrap();
        fs::write(&deb, b"!<arch>\n and then the disk was full").unwrap();
        assert_eq!(programs::damaged(&debs), Some(deb.clone()));
        let unpack = |partial: &Path| {
            fs::create_dir_all(partial)?;
            ensure!(fs::read(&deb)? == b"whole", "dpkg-deb fails");
            Ok(())
        };
        let offline = || bail!("there is no network");
        let error = programs::unpack_whole(&folder, &debs, offline, unpack).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("is damaged") && text.contains("no network"),
            "{text}"
        );
        assert_eq!(
            fs::read_dir(&*dir).unwrap().count(),
            1,
            "the packages alone"
        );
        let online = || Ok(fs::write(&deb, b"whole")?);
        programs::unpack_whole(&folder, &debs, online, unpack).unwrap();
        assert!(folder.is_dir());
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 2);
    }

    #[test]
    fn halves_of_cut_off_unpackings_go_and_downloads_stay() {
        let dir = Scratch::new("halves");
        let names = [
            "unpacked-1-linux-77.part",
            "unpacked-1-linux",
            "debian-6.12-arm64.trixie.part",
        ];
        for name in names {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        clear_halves(&dir);
        let left = names.map(|name| dir.join(name).is_dir());
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn packages_count_only_when_both_are_there() {
        let dir = Scratch::new("debs");
        fs::write(dir.join("linux-image-6.1.0-arm64_1_arm64.deb"), b"").unwrap();
        assert!(Debs::find(&dir).is_none());
        fs::write(dir.join("busybox-static_1_arm64.deb"), b"").unwrap();
        assert!(Debs::find(&dir).is_some());
        assert!(
            programs::damaged(&dir).is_some(),
            "an empty file is no package"
        );
    }
}
