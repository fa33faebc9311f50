//! `cargo xtask bench boot`: Linux from its first instruction to its first program, in instructions.
//!
//! The same kernel, initial RAM disk, command line and kind of device tree, once as a guest and once at EL1 on
//! the same machine without the hypervisor. The first program is a few instructions long: it prints the
//! virtual counter as it was at its start, and powers off. QEMU counts the instructions that it executes, of
//! whatever exception level, when it records a run, and tells the count over QMP; a CPU that sleeps executes
//! none. It is asked when the machine has powered off. Of the guest's run that is subtracted which came before
//! its first instruction: the hypervisor tells its counter then, which counts instructions because nothing has
//! slept yet. What the power-off takes is in both counts, and the hypervisor's own end is in the guest's.
//! The two trees differ in the start of RAM: plain QEMU keeps the first 2 MiB for a tree of its own.

mod program;

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use rustix::process::Signal;
use serde::Serialize;

use super::folder;
use crate::board::{Arch, Board, Smmu};
use crate::build::{self, Profile};
use crate::initramfs;
use crate::manifest::{Overrides, PayloadName};
use crate::provide::{self, toolchain};
use crate::qemu::{self, Line, Time, Variation};
use crate::suite::host;
use crate::{child, output, run, say, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "boot";
const SERIES: &str = "6.12";
/// What the first program prints: the counter, and its frequency.
const LINES: &str = r"(?m)^([0-9a-f]{16})\r?\n([0-9a-f]{16})\r?$";

/// A board that is measured.
pub(super) struct Measured {
    pub(super) board: &'static str,
    append: &'static str,
    /// What the first program's counter counts in a second.
    hertz: u64,
    /// As much RAM as the machine without the hypervisor leaves to the kernel, and that machine's.
    memory: [&'static str; 2],
    /// The most that the one may take of the other, in a thousand.
    limit_per_mille: u64,
    file: &'static str,
}

/// The boards.
pub(super) const BOARDS: [Measured; 2] = [
    Measured {
        board: "virt",
        append: "console=ttyAMA0 quiet",
        hertz: 1_000_000_000,
        memory: ["1022M", "1G"],
        limit_per_mille: 1050,
        file: "boot.json",
    },
    // What the platform below does for the hypervisor, or for Linux alone, is no instruction.
    Measured {
        board: "pseries",
        append: "console=hvc0 quiet",
        hertz: 512_000_000,
        memory: ["1G", "1G"],
        limit_per_mille: 1500,
        file: "boot-pseries.json",
    },
];

/// What is written to `target/bench/boot.json`.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Figure {
    name: &'static str,
    what: &'static str,
    value: u64,
    /// The same without the hypervisor.
    bare: u64,
    per_mille: u64,
    limit_per_mille: u64,
    command: String,
}

/// Measures. The status is 1 when the figure is over its limit.
///
/// # Errors
/// A failed build or run, or a console without the figure.
pub(super) fn run(name: &str) -> Result<u8> {
    let Some(measured) = BOARDS.iter().find(|measured| measured.board == name) else {
        let known: Vec<&str> = BOARDS.iter().map(|measured| measured.board).collect();
        bail!("the boards that are measured are: {}", known.join(", "));
    };
    let board = Board::load(&workspace::root().join("boards"), measured.board)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let dir = folder().join(format!("{NAME}-{}", measured.board));
    let kernel = provide::payload::file(board.arch, &PayloadName::DebianKernel(SERIES), &[SERIES])?;
    let initrd = dir.join("initrd");
    let mut contents = initramfs::Contents::default();
    contents.file("init", program::file(board.arch));
    workspace::write_whole(&initrd, &contents.archive())?;
    let vary = Variation {
        time: Time::Instructions,
        smp: Some(1),
        ..Variation::default()
    };

    let mut files = run::files(&board, &built)?;
    let manifest = dir.join("boot.toml");
    workspace::write_whole(&manifest, measured.manifest(&initrd).as_bytes())?;
    files.bundle = Some(run::make_bundle(&board, &manifest, &Overrides::default())?);
    let mut ours = vary.clone();
    ours.args = ["-append", "bulkhead.log=debug"].map(str::to_owned).into();
    let line = qemu::line(&qemu, &board, &ours, &files)?;
    let name = format!("{NAME}-{}", measured.board);
    let (count, console) = measured.measure(&line, &name, "bulkhead: verdict 0")?;
    let ours = count
        .checked_sub(measured.before_the_guest(&console)?)
        .context("the guest began after the end")?;

    let bare = board.bare(Smmu::Gone);
    files.bundle = None;
    let mut vary = Variation {
        memory: Some(measured.memory[1].to_owned()),
        ..vary
    };
    let line = match board.arch {
        Arch::Aarch64 => {
            vary.args = stage(&kernel, &initrd, &dir.join("stage"), measured.append)?;
            without_kernel(qemu::line(&qemu, &bare, &vary, &files)?)?
        }
        Arch::Ppc64 => {
            let path = |path: &Path| path.display().to_string();
            let option = |name: &str, value| [name.to_owned(), value];
            let mut args = Vec::from(option("-kernel", path(&kernel)));
            args.extend(option("-initrd", path(&initrd)));
            args.extend(option("-append", measured.append.to_owned()));
            vary.args = args;
            without_kernel(qemu::line(&qemu, &bare, &vary, &files)?)?
        }
    };
    let name = format!("{name}-bare");
    let (bare, _) = measured.measure(&line, &name, "reboot: Power down")?;

    let figure = measured.figure(ours, bare)?;
    let mut json = serde_json::to_string_pretty(&figure).context("cannot write the figure")?;
    json.push('\n');
    let path = folder().join(measured.file);
    workspace::write_whole(&path, json.as_bytes())?;
    output::text(&table(&figure));
    say!("the figures are in {} too", path.display());
    Ok(u8::from(figure.is_over()))
}

/// QEMU's arguments for a kernel laid out as the hypervisor does it.
fn stage(kernel: &Path, initrd: &Path, dir: &Path, append: &str) -> Result<Vec<String>> {
    let mut command = host::cargo();
    command.args(["run", "-q", "--locked", "-p", "bulkhead-firmware"]);
    command.args(["--example", "stage", "--"]);
    command.args([kernel, initrd]).args(["dt", "1", "plain"]);
    command.arg(dir).arg(append);
    let line = provide::output_of(&mut command).context("the guest cannot be laid out")?;
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

/// The line without QEMU's own way of loading a kernel.
fn without_kernel(mut line: Line) -> Result<Line> {
    let at = line
        .args
        .iter()
        .position(|arg| arg == "-kernel")
        .context("QEMU's line has no kernel")?;
    line.args.drain(at..at + 2);
    Ok(line)
}

/// The arguments, with the instructions recorded, and the console in a file.
fn recorded(args: &[String], record: &Path, log: &Path) -> Result<Vec<String>> {
    let mut args = args.to_vec();
    let mut replace = |option: &str, with: &dyn Fn(&str) -> String| -> Result<()> {
        let at = args.iter().position(|arg| arg == option);
        let value = at.and_then(|at| args.get_mut(at + 1));
        let value = value.with_context(|| format!("QEMU's line has no {option}"))?;
        *value = with(value);
        Ok(())
    };
    replace("-icount", &|value| {
        format!("{value},rr=record,rrfile={}", record.display())
    })?;
    replace("-chardev", &|_| {
        format!("file,id=console,path={}", log.display())
    })?;
    Ok(args)
}

/// Waits for the machine to power off, asks how many instructions it has executed, and ends it. It is left
/// alone until then: a recording that is talked to meanwhile may stand still.
fn count_at_power_off(log: &Path, last: &str, socket: &Path, machine: &mut Child) -> Result<u64> {
    const RUN: Duration = Duration::from_secs(300);
    const LOOK: Duration = Duration::from_millis(100);
    let until = Instant::now() + RUN;
    let in_time = || {
        std::thread::sleep(LOOK);
        ensure!(Instant::now() < until, "the machine does not power off");
        Ok(())
    };
    while !String::from_utf8_lossy(&fs::read(log)?).contains(last) {
        in_time()?;
        let ended = machine.try_wait().context("cannot wait for QEMU")?;
        ensure!(ended.is_none(), "QEMU ended");
    }
    let stream = UnixStream::connect(socket).context("no QMP")?;
    stream.set_read_timeout(Some(RUN))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut ask = |command: &str| -> Result<serde_json::Value> {
        writeln!(&stream, "{{\"execute\": \"{command}\"}}")?;
        loop {
            let line = lines.next().context("QMP was closed")??;
            let mut value: serde_json::Value = serde_json::from_str(&line)?;
            // Events and the greeting come in between.
            if let Some(answer) = value.get_mut("return") {
                return Ok(answer.take());
            }
        }
    };
    ask("qmp_capabilities")?;
    while ask("query-status")?["status"] != "shutdown" {
        in_time()?;
    }
    let count = ask("query-replay")?["icount"]
        .as_u64()
        .context("QEMU does not tell its instructions")?;
    ask("quit")?;
    Ok(count)
}

impl Measured {
    fn manifest(&self, initrd: &Path) -> String {
        let [memory, _] = self.memory;
        format!(
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"{memory}\"\nkernel = \"debian:{SERIES}\"\n\
             initrd = \"{}\"\nfirmware = \"dt\"\nrestart = \"never\"\nappend = \"{}\"\n",
            initrd.display(),
            self.append
        )
    }

    /// Runs a machine until its console shows `last` and it has powered off; the instructions it has executed,
    /// and its console.
    fn measure(&self, line: &Line, name: &str, last: &str) -> Result<(u64, String)> {
        let own = std::process::id();
        let socket = folder().join(format!("{name}-{own}.qmp"));
        let record = folder().join(format!("{name}-{own}.rr"));
        let log = folder().join(format!("{name}.log"));
        workspace::write_whole(&log, b"")?;
        let mut command = Command::new(&line.program);
        command.args(recorded(&line.args, &record, &log)?);
        command.arg("-no-shutdown").arg("-qmp");
        command.arg(format!("unix:{},server,nowait", socket.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        let mut machine = child::tied(&mut command, Signal::KILL)
            .spawn()
            .with_context(|| format!("cannot start {}", line.program.display()))?;
        let count = count_at_power_off(&log, last, &socket, &mut machine);
        if count.is_err() {
            let _ = machine.kill();
        }
        machine.wait().context("cannot wait for QEMU")?;
        let _ = fs::remove_file(&record);
        let _ = fs::remove_file(&socket);
        let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let console = String::from_utf8_lossy(&console).into_owned();
        let judged = || {
            let count = count?;
            ensure!(!console.contains("Kernel panic"), "the kernel panicked");
            let at_init = self.instructions(&console)?;
            say!("{name}: {count} instructions in all, the counter of the first program {at_init}");
            Ok(count)
        };
        let count = judged().with_context(|| format!("{name} (console: {})", log.display()))?;
        Ok((count, console))
    }

    /// What had been executed when the guest began.
    fn before_the_guest(&self, console: &str) -> Result<u64> {
        let line = Regex::new(r"vm linux: its counter starts at tick (\d+)")?;
        let found = line.captures(console);
        let found = found.context("the hypervisor does not say when the guest began")?;
        let ticks: u64 = found[1].parse()?;
        let count = ticks.checked_mul(1_000_000_000);
        count
            .map(|count| count / self.hertz)
            .context("a count that cannot be")
    }

    /// The counter of the first program.
    fn instructions(&self, console: &str) -> Result<u64> {
        let found = Regex::new(LINES)?;
        let found = found
            .captures(console)
            .context("the first program has printed no counter")?;
        let [count, hertz] = [1, 2].map(|at| u64::from_str_radix(&found[at], 16));
        let (count, hertz) = (count?, hertz?);
        ensure!(
            hertz == self.hertz,
            "the guest's counter counts {hertz} in a second"
        );
        Ok(count)
    }

    fn figure(&self, value: u64, bare: u64) -> Result<Figure> {
        let per_mille = value
            .checked_mul(1000)
            .and_then(|value| value.checked_add(bare / 2)?.checked_div(bare))
            .context("a count that cannot be")?;
        Ok(Figure {
            name: NAME,
            what: "Linux from its first instruction until its first program has powered off",
            value,
            bare,
            per_mille,
            limit_per_mille: self.limit_per_mille,
            command: format!("cargo xtask bench {NAME} --board {}", self.board),
        })
    }
}

impl Figure {
    fn is_over(&self) -> bool {
        self.per_mille > self.limit_per_mille
    }
}

fn table(figure: &Figure) -> String {
    let ratio = |per_mille: u64| format!("{}.{:03}", per_mille / 1000, per_mille % 1000);
    let mark = if figure.is_over() { "  OVER" } else { "" };
    format!(
        "{:20} {:>14} {:>14} {:>8} {:>8}  what\n{:20} {:>14} {:>14} {:>8} {:>8}  {}{mark}\n",
        "boot, instructions",
        "as a guest",
        "without",
        "ratio",
        "limit",
        figure.name,
        figure.value,
        figure.bare,
        ratio(figure.per_mille),
        ratio(figure.limit_per_mille),
        figure.what
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_read_with_its_frequency() {
        let console = "quiet\r\n000000003b9aca01\r\n000000003b9aca00\r\nreboot: Power down\r\n";
        assert_eq!(BOARDS[0].instructions(console).unwrap(), 1_000_000_001);
        assert!(
            BOARDS[0]
                .instructions(&console.replace("ca00", "ca02"))
                .is_err()
        );
        assert!(BOARDS[0].instructions("000000003b9aca01\r\n").is_err());
    }

    #[test]
    fn the_guests_beginning_is_read() {
        let console = "[ 0.1] DEBUG vm: vm linux: its counter starts at tick 159000123\r\n";
        assert_eq!(BOARDS[0].before_the_guest(console).unwrap(), 159_000_123);
        assert!(BOARDS[0].before_the_guest("").is_err());
        // 512 ticks in 1,000 instructions.
        let console = console.replace("159000123", "5120");
        assert_eq!(BOARDS[1].before_the_guest(&console).unwrap(), 10_000);
    }

    #[test]
    fn the_run_is_recorded_beside_its_counting() {
        let args = ["-icount", "shift=0,sleep=off", "-chardev", "stdio"].map(str::to_owned);
        let made = |args| recorded(args, Path::new("/r"), Path::new("/l"));
        let made = [made(&args).unwrap(), made(&args[..2]).unwrap_or_default()];
        assert_eq!(made[0][1], "shift=0,sleep=off,rr=record,rrfile=/r");
        assert_eq!(made[0][3], "file,id=console,path=/l");
        assert!(made[1].is_empty(), "a line without a console");
    }

    #[test]
    fn the_ratio_is_held_against_its_limit() {
        let figure = |value, bare| BOARDS[0].figure(value, bare);
        let good = figure(1_050, 1_000).unwrap();
        assert!(!good.is_over() && !table(&good).contains("OVER"));
        let over = figure(1_051, 1_000).unwrap();
        assert!(over.is_over() && table(&over).contains("1.051"));
        assert!(table(&over).contains("OVER"));
        assert!(figure(1, 0).is_err());
    }
}
