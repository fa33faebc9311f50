//! Boards are data: each folder of `boards/` with a `board.toml` is one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bundle::ConsoleUart;
use serde::Deserialize;

/// An architecture the hypervisor is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arch {
    /// Arm, 64 bit.
    Aarch64,
    /// POWER, 64 bit, little-endian.
    Ppc64,
}

impl Arch {
    /// Every architecture.
    pub(crate) const ALL: [Self; 2] = [Self::Aarch64, Self::Ppc64];

    /// The console device that guests are given on it.
    pub(crate) fn console(self) -> ConsoleUart {
        match self {
            Self::Aarch64 => ConsoleUart::Pl011,
            Self::Ppc64 => ConsoleUart::Hvc,
        }
    }

    /// QEMU's program for it.
    pub(crate) fn qemu(self) -> &'static str {
        match self {
            Self::Aarch64 => "qemu-system-aarch64",
            Self::Ppc64 => "qemu-system-ppc64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aarch64 => "aarch64",
            Self::Ppc64 => "ppc64",
        })
    }
}

/// One board, as its `board.toml` says it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Board {
    /// The folder's name.
    #[serde(skip)]
    pub(crate) name: String,
    /// One line for lists.
    pub(crate) summary: String,
    /// Which of the two hypervisors boots it.
    pub(crate) arch: Arch,
    /// Default CPU model with its options.
    pub(crate) cpu: String,
    /// Default number of CPUs.
    pub(crate) smp: u32,
    /// Rest of QEMU's `-smp` after the number.
    pub(crate) topology: Option<String>,
    /// Default memory, as QEMU writes it.
    pub(crate) memory: String,
    /// The machine.
    pub(crate) machine: Machine,
    /// Firmware variants by name.
    #[serde(default)]
    pub(crate) firmware: BTreeMap<String, Firmware>,
    /// The variant used when none is asked for.
    pub(crate) default_firmware: Option<String>,
    /// Disks with generated contents.
    #[serde(default, rename = "disk")]
    pub(crate) disks: Vec<Disk>,
    /// Further QEMU arguments.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Default guest manifest, from the repository's root.
    pub(crate) guest: Option<String>,
}

/// Whether a machine without a hypervisor has an SMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Smmu {
    /// It has: the guest's own then.
    Kept,
    /// It has not.
    Gone,
}

/// QEMU's `-M`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Machine {
    /// Machine type.
    pub(crate) kind: String,
    /// Its options.
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

/// A firmware variant.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Firmware {
    /// Machine options it adds.
    #[serde(default)]
    pub(crate) machine_options: Vec<String>,
}

/// A disk whose contents are generated; what a run writes to it is dropped at the end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Disk {
    /// Name of the drive, and in every sector.
    pub(crate) name: String,
    /// Size with M or G.
    pub(crate) size: String,
    /// QEMU's `-device` without the drive; nothing when a device of other arguments has it.
    pub(crate) device: String,
}

impl Disk {
    /// A disk that a device of other arguments has: `spare1` and so on.
    pub(crate) fn spare(number: usize) -> Self {
        Self {
            name: format!("spare{number}"),
            size: "16M".to_owned(),
            device: String::new(),
        }
    }
}

impl Board {
    /// The same machine without EL2, for a guest alone: with its SMMU or without, and without disks.
    pub(crate) fn bare(&self, smmu: Smmu) -> Self {
        let mut bare = self.clone();
        bare.machine.options.retain(|option| {
            !(option.starts_with("virtualization=")
                || smmu == Smmu::Gone && option.starts_with("iommu="))
        });
        bare.disks.clear();
        bare
    }

    /// Reads one board.
    ///
    /// # Errors
    /// An unknown name (with the known ones), or a faulty `board.toml` (with line and key).
    pub(crate) fn load(boards: &Path, name: &str) -> Result<Self> {
        let known = names(boards)?;
        if !known.iter().any(|board| board == name) {
            bail!(
                "there is no board `{name}`; the boards are: {}",
                known.join(", ")
            );
        }
        let path = boards.join(name).join("board.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(name, &text).with_context(|| format!("{} is faulty", path.display()))
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut board: Self = toml::from_str(text)?;
        name.clone_into(&mut board.name);
        parse_size(&board.memory).context("key `memory`")?;
        for disk in &board.disks {
            parse_size(&disk.size)
                .with_context(|| format!("key `size` of disk `{}`", disk.name))?;
        }
        board.firmware(None)?;
        Ok(board)
    }

    /// The firmware variant of that name, or the board's default; `None` if it has none at all.
    ///
    /// # Errors
    /// An unknown name, with the known ones.
    pub(crate) fn firmware(&self, name: Option<&str>) -> Result<Option<&Firmware>> {
        let Some(name) = name.or(self.default_firmware.as_deref()) else {
            return Ok(None);
        };
        match self.firmware.get(name) {
            Some(firmware) => Ok(Some(firmware)),
            None if self.firmware.is_empty() => {
                bail!(
                    "board `{}` has no firmware variants, so no `{name}`",
                    self.name
                )
            }
            None => {
                let known: Vec<&str> = self.firmware.keys().map(String::as_str).collect();
                bail!(
                    "board `{}` has no firmware `{name}`; it has: {}",
                    self.name,
                    known.join(", ")
                )
            }
        }
    }
}

/// The names of the boards, sorted.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn names(boards: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(boards)
        .with_context(|| format!("cannot read the boards in {}", boards.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("board.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Bytes of a size written as QEMU takes it: digits and K, M or G.
///
/// # Errors
/// Anything else.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let wrong = || format!("`{text}` is not a size: digits and K, M or G are wanted, as in 512M");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => bail!(wrong()),
    };
    let number: u64 = digits.parse().with_context(wrong)?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => bail!(wrong()),
    }
}

/// [`parse_size`] for the command line: the text itself, once it is known to be a size.
///
/// # Errors
/// The text is not a size.
pub(crate) fn parse_size_argument(text: &str) -> Result<String, String> {
    parse_size(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    fn boards() -> std::path::PathBuf {
        crate::workspace::root().join("boards")
    }

    #[test]
    fn every_board_of_the_repository_loads() {
        for name in names(&boards()).unwrap() {
            Board::load(&boards(), &name).unwrap();
        }
    }

    #[test]
    fn a_folder_is_a_board() {
        let folder = Scratch::new("boards");
        let text = std::fs::read_to_string(boards().join("virt/board.toml")).unwrap();
        let new = folder.join("like-virt");
        std::fs::create_dir_all(&new).unwrap();
        std::fs::create_dir_all(folder.join("no-board")).unwrap();
        assert!(Board::load(&folder, "like-virt").is_err(), "the control");
        std::fs::write(new.join("board.toml"), text).unwrap();
        assert_eq!(names(&folder).unwrap(), ["like-virt"]);
        let board = Board::load(&folder, "like-virt").unwrap();
        assert_eq!(board.name, "like-virt");
        assert_eq!(board.arch, Arch::Aarch64);
    }

    #[test]
    fn an_unknown_board_names_the_known_ones() {
        let error = Board::load(&boards(), "toaster").unwrap_err().to_string();
        assert!(
            error.contains("`toaster`") && error.contains("pseries, virt"),
            "{error}"
        );
        assert!(Board::load(&boards(), "../boards/virt").is_err());
        assert!(Board::load(&boards(), "").is_err());
    }

    #[test]
    fn an_unknown_firmware_names_the_known_ones() {
        let board = Board::load(&boards(), "pseries").unwrap();
        let error = board.firmware(Some("bios")).unwrap_err().to_string();
        assert!(error.contains("slof, vof"), "{error}");
        assert!(board.firmware(Some("slof")).unwrap().is_some());
        let virt = Board::load(&boards(), "virt").unwrap();
        assert!(
            virt.firmware(Some("vof"))
                .unwrap_err()
                .to_string()
                .contains("no firmware")
        );
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line() {
        let text = std::fs::read_to_string(boards().join("virt/board.toml")).unwrap();
        let bad = text.replace("memory =", "memroy =");
        let error = format!("{:#}", Board::parse("virt", &bad).unwrap_err());
        assert!(
            error.contains("memroy") && error.contains("line 6"),
            "{error}"
        );
    }

    #[test]
    fn sizes_are_digits_and_a_unit() {
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("8G").unwrap(), 8 << 30);
        for bad in [
            "",
            "G",
            "8",
            "0G",
            "-1G",
            "8T",
            "1.5G",
            "99999999999G",
            "Gé",
        ] {
            assert!(parse_size(bad).is_err(), "accepted: {bad}");
        }
    }
}
