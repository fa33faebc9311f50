//! The guests' initial RAM disk: busybox, an init script, the modules it loads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};

/// File types of a cpio header. [stat(2)]
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// Builds the archive. Each of `modules` is a folder that [`select_modules`] has filled: one folder
/// in it for each build of the kernel.
///
/// # Errors
/// A module that cannot be read.
pub(crate) fn build(init: &[u8], busybox: &[u8], modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Newc::default();
    for dir in ["bin", "dev", "modules"] {
        archive.add(dir, DIRECTORY | 0o755, (0, 0), b"");
    }
    // The kernel opens it for the first program before anything is mounted.
    archive.add("dev/console", CHARACTER | 0o600, (5, 1), b"");
    archive.add("bin/busybox", REGULAR | 0o755, (0, 0), busybox);
    archive.add("init", REGULAR | 0o755, (0, 0), init);
    for modules in modules {
        for kernel in sorted(modules)? {
            let dir = format!("modules/{}", file_name(&kernel));
            archive.add(&dir, DIRECTORY | 0o755, (0, 0), b"");
            for path in sorted(&kernel)? {
                let contents =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let name = format!("{dir}/{}", file_name(&path));
                archive.add(&name, REGULAR | 0o644, (0, 0), &contents);
            }
        }
    }
    Ok(archive.finish())
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
/// of the kernel into one of the same shape, together with `order`, the list of their names in the
/// order of loading.
///
/// # Errors
/// A module that cannot be read or is no module.
pub(crate) fn select_modules(tree: &Path, wanted: &[String], into: &Path) -> Result<()> {
    for kernel in sorted(tree)? {
        let mut files = BTreeMap::new();
        collect(&kernel, &mut files)?;
        let into = into.join(file_name(&kernel));
        fs::create_dir_all(&into)?;
        let mut order = Vec::new();
        for name in wanted {
            select(&plain(name), &files, &into, &mut order)?;
        }
        let list: String = order.iter().map(|name| format!("{name}.ko\n")).collect();
        fs::write(into.join("order"), list)?;
    }
    Ok(())
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
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|loaded| loaded == name) {
        return Ok(());
    }
    // Built into the kernel, or not there at all.
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    let module = read_module(path).with_context(|| format!("cannot read {}", path.display()))?;
    let needs =
        dependencies(&module).with_context(|| format!("{} is no module", path.display()))?;
    for need in needs {
        select(&plain(&need), files, into, order)?;
    }
    fs::write(into.join(format!("{name}.ko")), module)?;
    order.push(name.to_owned());
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

/// What a module says it needs, in its `.modinfo` section: strings `key=value`, each ended by a zero.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(module)?;
    let section = file
        .section_by_name(".modinfo")
        .context("it has no .modinfo section")?;
    Ok(parse_modinfo(section.data()?))
}

fn parse_modinfo(section: &[u8]) -> Vec<String> {
    let mut needs = Vec::new();
    for entry in section.split(|&byte| byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        let list = entry
            .strip_prefix("depends=")
            .or_else(|| entry.strip_prefix("softdep=pre: "))
            .unwrap_or_default();
        let names = list.split([',', ' ']).filter(|name| !name.is_empty());
        // What follows `post:` is loaded later, by whoever wants it.
        needs.extend(
            names
                .take_while(|name| !name.ends_with(':'))
                .map(str::to_owned),
        );
    }
    needs
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
    fn needs_are_read_from_modinfo() {
        let section =
            b"license=GPL\0depends=nvme-core,t10-pi\0softdep=pre: crc64 post: other\0depends=\0";
        assert_eq!(parse_modinfo(section), ["nvme-core", "t10-pi", "crc64"]);
    }
}
