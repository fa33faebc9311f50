//! Debian's programs for a guest's RAM disk: a few files out of packages that are never installed,
//! with the libraries that they ask for and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};
use serde::Deserialize;

use super::apt::{self, Apt};
use super::turn::Turn;
use crate::{child, say, workspace};

/// Which programs of which packages. In `qemu/payloads/linux.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// The packages.
    pub(super) packages: Vec<String>,
    /// The programs' file names. Each goes to `bin`.
    pub(super) programs: Vec<String>,
}

/// Entries of `.dynamic`: its end, and a library that is needed. [System V ABI, dynamic section]
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// The folder with the programs and their libraries as they are to lie in the RAM disk; fetched and
/// unpacked first if it is not there. It is the caller's [`Turn`].
///
/// # Errors
/// They cannot be fetched or unpacked.
pub(super) fn unpacked(wanted: &Wanted, architecture: &str) -> Result<PathBuf> {
    let name = format!("programs-{architecture}-{}", wanted.packages.join("-"));
    let debs = workspace::cache_dir().join("payloads").join(&name);
    let get = || {
        fetch(wanted, architecture, &debs).with_context(|| {
            format!(
                "cannot fetch {} of Debian for {architecture}",
                wanted.packages.join(", ")
            )
        })
    };
    if !debs.is_dir() {
        get()?;
    }
    let dir = workspace::target_dir()
        .join("payloads")
        .join(format!("{name}-{}", wanted.programs.join("-")));
    if dir.is_dir() {
        return Ok(dir);
    }
    unpack_whole(&dir, &debs, get, |partial| unpack(wanted, &debs, partial))?;
    Ok(dir)
}

/// Makes a folder of packages, whole or not at all. If it cannot be made and one of the packages is damaged, they are
/// fetched once more.
///
/// # Errors
/// They are damaged and cannot be fetched, or cannot be unpacked although they are whole.
pub(super) fn unpack_whole(
    folder: &Path,
    debs: &Path,
    fetch: impl FnOnce() -> Result<()>,
    unpack: impl Fn(&Path) -> Result<()>,
) -> Result<()> {
    let partial = workspace::partial(folder);
    let once = || {
        let made = unpack(&partial)
            .with_context(|| format!("cannot unpack the packages in {}", debs.display()))
            .and_then(|()| {
                fs::rename(&partial, folder)
                    .with_context(|| format!("cannot rename {}", partial.display()))
            });
        if made.is_err() {
            // It may be what fills the disk. Its own failure would say nothing new.
            let _ = fs::remove_dir_all(&partial);
        }
        made
    };
    let Err(first) = once() else {
        return Ok(());
    };
    let Some(damaged) = damaged(debs) else {
        return Err(first);
    };
    say!(
        "{first:#}: {} is damaged; fetching it again",
        damaged.display()
    );
    fetch().with_context(|| format!("{} is damaged", damaged.display()))?;
    once()
}

/// A package of the folder that cannot be read to its last byte. Takes the time of unpacking them.
pub(super) fn damaged(debs: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(debs).ok()?.filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .find(|deb| {
            let mut read = Command::new("dpkg-deb");
            read.arg("--fsys-tarfile").arg(deb);
            read.stdout(Stdio::null()).stderr(Stdio::null());
            child::status(&mut read).is_ok_and(|status| !status.success())
        })
}

/// Debian's ACPI compiler: the machine's, or out of its package, which is not installed.
///
/// # Errors
/// It cannot be fetched or unpacked.
pub(crate) fn iasl() -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(found) = workspace::find_program("iasl") {
        return Ok(found);
    }
    let wanted = Wanted {
        packages: vec!["acpica-tools".to_owned()],
        programs: vec!["iasl".to_owned()],
    };
    let _turn = Turn::wait();
    let iasl = unpacked(&wanted, &apt::own_architecture()?)?.join("bin/iasl");
    fs::set_permissions(&iasl, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", iasl.display()))?;
    Ok(iasl)
}

fn fetch(wanted: &Wanted, architecture: &str, into: &Path) -> Result<()> {
    say!(
        "fetching {} and its libraries for {architecture} (nothing is installed)",
        wanted.packages.join(", ")
    );
    apt::from_any_release(architecture, |apt| download(apt, None, wanted, into))
}

/// Downloads the packages and the libraries that they depend on. What a download that was cut off has left is not
/// fetched again.
pub(super) fn download(apt: &Apt, suite: Option<&str>, wanted: &Wanted, into: &Path) -> Result<()> {
    let partial = apt.partial_folder(into)?;
    let mut packages: BTreeSet<String> = wanted.packages.iter().cloned().collect();
    let mut open = wanted.packages.clone();
    while let Some(package) = open.pop() {
        for need in apt.dependencies(&package, suite) {
            // Only libraries can be linked against.
            if (need.starts_with("lib") || need.starts_with("zlib"))
                && packages.insert(need.clone())
            {
                open.push(need);
            }
        }
    }
    let all: Vec<&str> = packages.iter().map(String::as_str).collect();
    if apt.download_together(&all, suite, &partial).is_err() {
        // The mirror may lack one of them, in this version.
        for package in &packages {
            apt.download(package, suite, &partial)?;
        }
    }
    // The folder takes its final name only when everything is in it. What has the name is damaged.
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| format!("cannot remove {}", into.display()))?;
    }
    fs::rename(&partial, into).with_context(|| format!("cannot rename {}", partial.display()))
}

/// Unpacks the programs into `bin` and the libraries that they are linked against into `lib`; their loader goes where
/// they name it.
pub(super) fn unpack(wanted: &Wanted, debs: &Path, into: &Path) -> Result<()> {
    let whole = into.join("whole");
    fs::create_dir_all(&whole)?;
    for deb in fs::read_dir(debs)?.filter_map(Result::ok) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").args([deb.path(), whole.clone()]);
        let status = child::status(&mut unpack).context("cannot start dpkg-deb")?;
        ensure!(status.success(), "dpkg-deb ended with {status}");
    }
    let mut files = BTreeMap::new();
    collect(&whole, &mut files)?;
    let find = |name: &str| {
        files
            .get(name)
            .with_context(|| format!("the packages have no {name}"))
    };
    let put = |name: &str, bytes: &[u8]| workspace::write_whole(&into.join(name), bytes);
    let mut open = Vec::new();
    for program in &wanted.programs {
        let bytes = fs::read(find(program)?)?;
        open.extend(libraries(&bytes).with_context(|| format!("{program} is no program"))?);
        put(&format!("bin/{program}"), &bytes)?;
    }
    let mut done = BTreeSet::new();
    while let Some(library) = open.pop() {
        // The loader's name is a path; a library has none, and `lib` is where it is looked for.
        let place = match library.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None => format!("lib/{library}"),
        };
        if done.insert(place.clone()) {
            let name = library.rsplit('/').next().unwrap_or(&library);
            let bytes = fs::read(find(name)?)?;
            open.extend(libraries(&bytes).with_context(|| format!("{name} is no library"))?);
            put(&place, &bytes)?;
        }
    }
    fs::remove_dir_all(&whole)?;
    Ok(())
}

/// Files by their last name. A link counts as the file that it leads to.
fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)?.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), path);
        }
    }
    Ok(())
}

/// The path of the loader that a program names.
///
/// # Errors
/// It is no program.
pub(super) fn loader(program: &[u8]) -> Result<Option<String>> {
    let names = libraries(program)?;
    Ok(names.into_iter().find(|name| name.starts_with('/')))
}

/// What a program or library names: its loader, by path, and the libraries it is linked against.
fn libraries(file: &[u8]) -> Result<Vec<String>> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(file)?;
    let section = |name: &str| match file.section_by_name(name) {
        Some(section) => section.data().map(<[u8]>::to_vec),
        None => Ok(Vec::new()),
    };
    let mut names = Vec::new();
    let loader = section(".interp")?;
    if !loader.is_empty() {
        names.push(string(&loader, 0).context("its loader's name does not end")?);
    }
    let strings = section(".dynstr")?;
    for entry in section(".dynamic")?.chunks_exact(16) {
        let word = |at: usize| {
            let bytes = entry.get(at..at + 8).and_then(|word| word.try_into().ok());
            // Both of our architectures are little-endian here.
            bytes.map_or(DT_NULL, u64::from_le_bytes)
        };
        match word(0) {
            DT_NULL => break,
            DT_NEEDED => names.push(
                usize::try_from(word(8))
                    .ok()
                    .and_then(|at| string(&strings, at))
                    .context("a library's name is outside of its strings")?,
            ),
            _ => {}
        }
    }
    Ok(names)
}

fn string(strings: &[u8], at: usize) -> Option<String> {
    let bytes = strings.get(at..)?.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_at_a_zero_and_stay_inside() {
        assert_eq!(string(b"\0libc.so.6\0x", 1).as_deref(), Some("libc.so.6"));
        assert_eq!(string(b"abc", 4), None);
    }

    #[test]
    fn what_this_very_program_needs_is_found() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let names = libraries(&own).unwrap();
        assert!(
            names.iter().any(|name| name.starts_with('/')),
            "no loader in {names:?}"
        );
        assert!(
            names.iter().any(|name| name.starts_with("libc.")),
            "no C library in {names:?}"
        );
        assert!(libraries(b"#!/bin/sh").is_err());
    }
}
