//! The QEMU line for a board.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::board::{Board, Disk, parse_size};
use crate::shell;

/// What a run changes of a board's defaults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variation {
    /// Number of CPUs.
    pub(crate) smp: Option<u32>,
    /// Memory, as QEMU writes it.
    pub(crate) memory: Option<String>,
    /// CPU model.
    pub(crate) cpu: Option<String>,
    /// Firmware variant.
    pub(crate) firmware: Option<String>,
    /// How time passes.
    pub(crate) time: Time,
    /// Whether the machine waits for a debugger.
    pub(crate) start: Start,
    /// How many of the host's threads run its CPUs.
    pub(crate) threads: Threads,
    /// Further arguments.
    pub(crate) args: Vec<String>,
}

/// How time passes in the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Time {
    /// As on the wall.
    #[default]
    Wall,
    /// One nanosecond an instruction, so that every run is the same.
    Instructions,
}

/// What runs the machine's CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Threads {
    /// A thread of the host for each: they really run at once.
    #[default]
    Each,
    /// One for all, in turn: the same work for about two thirds of the host's time.
    One,
}

/// When the machine starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// At once.
    #[default]
    AtOnce,
    /// When a debugger on port 1234 says so.
    ByDebugger,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.program.to_string_lossy();
        let words = std::iter::once(&*program).chain(self.args.iter().map(String::as_str));
        f.write_str(&shell::line(words))
    }
}

/// Files the machine is started with.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The hypervisor: an arm64 Image, or an ELF on POWER.
    pub(crate) hypervisor: PathBuf,
    /// The boot bundle.
    pub(crate) bundle: Option<PathBuf>,
    /// Folder of the generated disks.
    pub(crate) disks: PathBuf,
}

/// Composes the line.
///
/// # Errors
/// An unknown firmware variant, or a file name that is not UTF-8.
pub(crate) fn line(program: &Path, board: &Board, vary: &Variation, files: &Files) -> Result<Line> {
    let mut machine = vec![board.machine.kind.clone()];
    machine.extend(board.machine.options.iter().cloned());
    if let Some(firmware) = board.firmware(vary.firmware.as_deref())? {
        machine.extend(firmware.machine_options.iter().cloned());
    }
    let mut smp = vary.smp.unwrap_or(board.smp).to_string();
    if let Some(topology) = &board.topology {
        smp = format!("{smp},{topology}");
    }

    let mut args = Args::default();
    args.flag("-nodefaults")
        .flag("-no-reboot")
        .option("-display", "none");
    let accelerator = match vary.threads {
        Threads::Each => "tcg",
        Threads::One => "tcg,thread=single",
    };
    args.option("-accel", accelerator)
        .option("-M", machine.join(","));
    args.option("-cpu", vary.cpu.as_deref().unwrap_or(&board.cpu));
    args.option("-smp", smp)
        .option("-m", vary.memory.as_deref().unwrap_or(&board.memory));
    args.option("-chardev", "stdio,id=console,mux=off")
        .option("-serial", "chardev:console");
    for disk in &board.disks {
        let file = option_value(text(&files.disks.join(format!("{}.img", disk.name)))?);
        args.option(
            "-drive",
            format!(
                "if=none,id={},format=raw,snapshot=on,file={file}",
                disk.name
            ),
        );
        if !disk.device.is_empty() {
            args.option("-device", format!("{},drive={}", disk.device, disk.name));
        }
    }
    if vary.time == Time::Instructions {
        args.option("-icount", "shift=0,sleep=off")
            .option("-rtc", "base=2026-01-01,clock=vm");
        args.option("-seed", "1");
    }
    if vary.start == Start::ByDebugger {
        args.option("-gdb", "tcp::1234").flag("-S");
    }
    args.option("-kernel", text(&files.hypervisor)?);
    if let Some(bundle) = &files.bundle {
        args.option("-initrd", text(bundle)?);
    }
    args.0.extend(board.args.iter().cloned());
    args.0.extend(vary.args.iter().cloned());
    Ok(Line {
        program: program.to_owned(),
        args: args.0,
    })
}

/// A disk behind virtio that cannot be written, at this place, with a file's contents.
///
/// # Errors
/// A file name that is not UTF-8.
pub(crate) fn read_only_disk(place: &str, name: &str, file: &Path) -> Result<[String; 4]> {
    let file = option_value(text(file)?);
    Ok([
        "-drive".to_owned(),
        format!("if=none,id={name},format=raw,readonly=on,file={file}"),
        "-device".to_owned(),
        format!("virtio-blk-pci,disable-legacy=on,iommu_platform=on,drive={name},{place}"),
    ])
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([name.to_owned(), value.into()]);
        self
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| {
        format!(
            "the path {} is not UTF-8; move the repository to another one",
            path.display()
        )
    })
}

/// A value inside a comma-separated QEMU option: commas are doubled.
fn option_value(value: &str) -> String {
    value.replace(',', ",,")
}

/// Makes the disks of a board that are not there yet. Each 512-byte sector begins with the disk's
/// name and its own number, so that whoever reads it knows what he should have got.
///
/// # Errors
/// Those of the file system.
pub(crate) fn make_disks(board: &Board, dir: &Path) -> Result<()> {
    for disk in &board.disks {
        let path = dir.join(format!("{}.img", disk.name));
        let size = parse_size(&disk.size)?;
        if path.metadata().is_ok_and(|meta| meta.len() == size) {
            continue;
        }
        crate::workspace::write_whole(&path, &disk_contents(disk, size))?;
    }
    Ok(())
}

fn disk_contents(disk: &Disk, size: u64) -> Vec<u8> {
    let mut contents = Vec::new();
    for sector in 0..size / 512 {
        let start = contents.len();
        contents.extend_from_slice(format!("bulkhead {} sector {sector}\n", disk.name).as_bytes());
        contents.resize(start + 512, 0);
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composed(name: &str, vary: &Variation) -> Result<String> {
        let board = Board::load(&crate::workspace::root().join("boards"), name)?;
        let files = Files {
            hypervisor: "target/hv".into(),
            bundle: Some("target/my bundle".into()),
            disks: "target/a,b".into(),
        };
        Ok(line(Path::new(board.arch.qemu()), &board, vary, &files)?.to_string())
    }

    #[test]
    fn the_line_for_virt() {
        insta::assert_snapshot!(composed("virt", &Variation::default()).unwrap());
    }

    #[test]
    fn the_line_for_pseries_with_every_option() {
        let vary = Variation {
            smp: Some(4),
            memory: Some("8G".into()),
            cpu: Some("power10".into()),
            firmware: Some("slof".into()),
            time: Time::Instructions,
            start: Start::ByDebugger,
            threads: Threads::Each,
            args: vec!["-device".into(), "edu".into()],
        };
        insta::assert_snapshot!(composed("pseries", &vary).unwrap());
    }

    #[test]
    fn one_thread_may_run_all_cpus() {
        let vary = Variation {
            threads: Threads::One,
            ..Variation::default()
        };
        let line = composed("virt", &vary).unwrap();
        assert!(line.contains("-accel tcg,thread=single -M"), "{line}");
    }

    #[test]
    fn an_unknown_firmware_is_refused() {
        let vary = Variation {
            firmware: Some("bios".into()),
            ..Variation::default()
        };
        assert!(composed("pseries", &vary).is_err());
    }

    #[test]
    fn every_sector_carries_its_number() {
        let disk = Disk {
            name: "disk7".into(),
            size: "1M".into(),
            device: "nvme".into(),
        };
        let contents = disk_contents(&disk, 1 << 20);
        assert_eq!(contents.len(), 1 << 20);
        assert!(contents[2047 * 512..].starts_with(b"bulkhead disk7 sector 2047\n\0"));
    }
}
