//! The guests' initial RAM disk: busybox, an init script, kernel modules, programs, actions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};

/// File types of a cpio header. [stat(2)]
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// What goes into an archive besides the folders that every one has.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Plain files by their name in the archive. All are executable: there is only one user.
    files: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, contents: Vec<u8>) -> &mut Self {
        self.files.insert(name.to_owned(), contents);
        self
    }

    /// Adds all that is in a folder, below `prefix`. A link is followed.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn folder(&mut self, prefix: &str, folder: &Path) -> Result<&mut Self> {
        for path in sorted(folder)? {
            let name = match prefix {
                "" => file_name(&path),
                prefix => format!("{prefix}/{}", file_name(&path)),
            };
            if path.is_dir() {
                self.folder(&name, &path)?;
            } else {
                let contents =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.file(&name, contents);
            }
        }
        Ok(self)
    }

    /// The archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut archive = Newc::default();
        let mut folders = BTreeSet::from(["bin", "dev"]);
        for name in self.files.keys() {
            let ends = name.match_indices('/').map(|(end, _)| end);
            folders.extend(ends.filter_map(|end| name.get(..end)));
        }
        // In this order a folder comes before what is in it.
        for folder in folders {
            archive.add(folder, DIRECTORY | 0o755, (0, 0), b"");
        }
        // The kernel opens it for the first program before anything is mounted.
        archive.add("dev/console", CHARACTER | 0o600, (5, 1), b"");
        for (name, contents) in &self.files {
            archive.add(name, REGULAR | 0o755, (0, 0), contents);
        }
        archive.finish()
    }
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The `newc` form of cpio. [Linux, Documentation/driver-api/early-userspace/buffer-format.rst]
#[derive(Default)]
struct Newc {
    bytes: Vec<u8>,
    entries: u32,
}

impl Newc {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // Inode, mode, uid, gid, links, time, size, device of the file, device it is, name, sum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

/// Copies the wanted modules, and all that they depend on, from a tree with one folder for each build
/// of the kernel into one of the same shape, together with the two lists that `modprobe` reads: what
/// each module needs, and which devices and names it serves.
///
/// # Errors
/// A module that cannot be read or is no module.
pub(crate) fn select_modules(tree: &Path, wanted: &[String], into: &Path) -> Result<()> {
    for kernel in sorted(tree)? {
        let mut files = BTreeMap::new();
        collect(&kernel, &mut files)?;
        let into = into.join(file_name(&kernel));
        fs::create_dir_all(&into)?;
        let mut selected = BTreeMap::new();
        for name in wanted {
            select(&plain(name), &files, &into, &mut selected)?;
        }
        fs::write(into.join("modules.dep"), dep_file(&selected))?;
        fs::write(into.join("modules.alias"), alias_file(&selected))?;
    }
    Ok(())
}

/// What each selected module says of itself.
type Selected = BTreeMap<String, ModInfo>;

/// `modules.dep`: each module with all that it needs, what is loaded first standing last.
/// [depmod(8), modules.dep(5)]
fn dep_file(selected: &Selected) -> String {
    let mut text = String::new();
    for name in selected.keys() {
        let mut needs = Vec::new();
        all_needs(name, selected, &mut BTreeSet::new(), &mut needs);
        text.push_str(&format!("{name}.ko:"));
        for need in needs.iter().rev().filter(|need| **need != name) {
            text.push_str(&format!(" {need}.ko"));
        }
        text.push('\n');
    }
    text
}

/// Adds a module behind everything that it needs.
fn all_needs<'a>(
    name: &'a str,
    selected: &'a Selected,
    seen: &mut BTreeSet<&'a str>,
    needs: &mut Vec<&'a str>,
) {
    // One that is not selected is built in.
    let Some(info) = selected.get(name) else {
        return;
    };
    if seen.insert(name) {
        for need in &info.needs {
            all_needs(need, selected, seen, needs);
        }
        needs.push(name);
    }
}

/// `modules.alias`.
fn alias_file(selected: &Selected) -> String {
    let lines = selected.iter().flat_map(|(name, info)| {
        info.aliases
            .iter()
            .map(move |alias| format!("alias {alias} {name}\n"))
    });
    lines.collect()
}

/// A module's name with the one spelling that the kernel uses.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = name
            .strip_suffix(".ko")
            .or_else(|| name.strip_suffix(".ko.xz"))
        {
            files.insert(plain(name), path);
        }
    }
    Ok(())
}

fn select(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    selected: &mut Selected,
) -> Result<()> {
    if selected.contains_key(name) {
        return Ok(());
    }
    // Built into the kernel, or not there at all.
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    let module = read_module(path).with_context(|| format!("cannot read {}", path.display()))?;
    let info = mod_info(&module).with_context(|| format!("{} is no module", path.display()))?;
    fs::write(into.join(format!("{name}.ko")), module)?;
    let needs = info.needs.clone();
    selected.insert(name.to_owned(), info);
    for need in needs {
        select(&need, files, into, selected)?;
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if path.extension().is_some_and(|extension| extension == "xz") {
        let mut module = Vec::new();
        lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut module)?;
        return Ok(module);
    }
    Ok(bytes)
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModInfo {
    /// The modules that must be there before it.
    needs: Vec<String>,
    /// Patterns of the devices and names that it serves.
    aliases: Vec<String>,
}

/// The module's `.modinfo` section: strings `key=value`, each ended by a zero.
fn mod_info(module: &[u8]) -> Result<ModInfo> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(module)?;
    let section = file
        .section_by_name(".modinfo")
        .context("it has no .modinfo section")?;
    Ok(parse_modinfo(section.data()?))
}

fn parse_modinfo(section: &[u8]) -> ModInfo {
    let mut info = ModInfo::default();
    for entry in section.split(|&byte| byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some(alias) = entry.strip_prefix("alias=") {
            info.aliases.push(alias.to_owned());
        }
        let list = entry
            .strip_prefix("depends=")
            .or_else(|| entry.strip_prefix("softdep=pre: "))
            .unwrap_or_default();
        let names = list.split([',', ' ']).filter(|name| !name.is_empty());
        // What follows `post:` is loaded later, by whoever wants it.
        info.needs
            .extend(names.take_while(|name| !name.ends_with(':')).map(plain));
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_linux_reads() {
        let mut archive = Newc::default();
        archive.add("ab", REGULAR | 0o644, (0, 0), b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000003", "size of the name");
        assert_eq!(&bytes[110..116], b"ab\0\0\0\0", "name, padded to 116");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0") && bytes.len() % 4 == 0);
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut contents = Contents::default();
        contents.file("lib/modules/1/a.ko", b"a".to_vec());
        contents.file("init", b"#!".to_vec());
        assert_eq!(
            names(&contents.archive()),
            [
                "bin",
                "dev",
                "lib",
                "lib/modules",
                "lib/modules/1",
                "dev/console",
                "init",
                "lib/modules/1/a.ko",
                "TRAILER!!!"
            ]
        );
    }

    /// The names in an archive, in order.
    fn names(mut archive: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while !archive.is_empty() {
            let field = |at: usize| {
                let digits = std::str::from_utf8(&archive[at..at + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(54), field(94));
            let name = &archive[110..110 + name_size - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            let end = (110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
            archive = &archive[end..];
        }
        names
    }

    #[test]
    fn needs_and_aliases_are_read_from_modinfo() {
        let section = b"license=GPL\0depends=nvme-core,t10_pi\0alias=pci:v*bc01*\0\
            softdep=pre: crc64 post: other\0depends=\0";
        let info = parse_modinfo(section);
        assert_eq!(info.needs, ["nvme_core", "t10_pi", "crc64"]);
        assert_eq!(info.aliases, ["pci:v*bc01*"]);
    }

    #[test]
    fn modprobe_loads_what_a_module_needs_before_it() {
        let module = |needs: &[&str], aliases: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
            ModInfo {
                needs: owned(needs),
                aliases: owned(aliases),
            }
        };
        let mut selected = Selected::new();
        selected.insert("a".into(), module(&["b", "c", "built-in"], &["pci:x"]));
        selected.insert("b".into(), module(&["c"], &[]));
        selected.insert("c".into(), module(&[], &[]));
        // What stands last is loaded first.
        assert_eq!(dep_file(&selected), "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\n");
        assert_eq!(alias_file(&selected), "alias pci:x a\n");
        // Modules that need each other end.
        selected.insert("c".into(), module(&["a"], &[]));
        assert_eq!(dep_file(&selected).lines().count(), 3);
    }
}
