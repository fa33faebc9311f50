//! Tests of several VMs on one terminal: the escape key, the monitor, lifecycle and time sharing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use super::{Bundle, Case, Check};
use crate::qemu::Time;
use crate::suite::bundles;

const BOARD: &str = "virt";
/// Ctrl-] m.
pub(super) const MONITOR: &str = "\x1dm";
const PROMPT: &str = "monitor> ";
/// Restarts after which a lost frame would be noticed.
const RESTARTS: usize = 100;

/// A VM of a manifest whose kernel is one of the tiny ones.
macro_rules! tiny {
    ($name:literal, $kernel:literal, $cpu:literal, $more:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"2M\"\nkernel = \"",
            $kernel,
            ".bin\"\nkernel_format = \"flat\"\npin = [",
            $cpu,
            "]\n",
            $more,
            "\n"
        )
    };
}

/// A guest of our own on the other CPU that tells the time.
macro_rules! clock {
    () => {
        concat!(
            "[[vm]]\nname = \"clock\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:heartbeat\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\nappend = \"beats=70 period_us=10000\"\n"
        )
    };
}
/// Two Linux VMs.
const LINUX: &str = include_str!("../../../../qemu/guests/two-vms.toml");

pub(super) fn cases() -> Vec<Case> {
    vec![
        two_linux(),
        restarts(),
        reset_loop(),
        flood(),
        forger(),
        serial(),
        costs(),
        starts(),
        tree(
            "a VM with a device tree of its own is given that one",
            "dtb = \"own.dtb\"\n",
            "a tree of the VM's own",
        ),
        // The control: the same guest, and the tree that is made for it.
        tree(
            "a VM without a device tree of its own is given one that is made for it",
            "",
            "^9000000",
        ),
        shares(
            "a VM with a slice three times as long has three times the CPU",
            Bundle::Manifest(concat!(
                tiny!("a", "spin", 0, "time_slice_us = 5000"),
                tiny!("b", "spin", 0, "time_slice_us = 15000"),
                clock!()
            )),
            |console| judge_shares(console, [20..=30, 70..=80]),
        ),
    ]
}

fn case(name: &str, bundle: Bundle) -> Case {
    Case::new(BOARD, name).bundle(bundle)
}

impl Case {
    /// Types a command at the monitor's prompt and expects its answer.
    pub(super) fn asks(self, command: &str, answers: &[&str]) -> Self {
        self.expect(&[PROMPT])
            .types(&format!("{command}\r"))
            .expect(answers)
    }
}

/// What is typed reaches the VM with the keyboard and no other; the monitor stops, starts and shows.
fn two_linux() -> Case {
    let prompt = |vm: &str| format!(r"\[{vm}\] / # ");
    let (one, two) = (prompt("one"), prompt("two"));
    let mut case = case(
        "two Linux VMs on one terminal are typed to, stopped and started",
        Bundle::Manifest(LINUX),
    )
    .expect(&[&one])
    .types("echo o-$((6*7))\r")
    .expect(&[r"\[one\] o-42", &one])
    .types("hwclock -u -w; date -u -s 2044-05-06 >/dev/null; hwclock -u -w; hwclock -u -r\r")
    .expect(&[r"\[one\] Fri May  6 00:00:0. 2044", &one])
    .types("\x1d2")
    .expect(&[r"\[two\] has the keyboard", &two])
    .types("echo t-$((6*7)); date +year-%Y; hwclock -u -r\r")
    .expect(&[
        r"\[two\] t-42",
        r"\[two\] year-20[23]",
        r"\[two\] .* 20[23]\d ",
    ])
    .types(MONITOR)
    .asks("list", &[" 1 one +running ", " 2 two +running "])
    .asks("vcpu one 0", &["vCPU 0: .* core 0", " pc [0-9a-f]{16}"])
    .asks("vcpu two 0", &["vCPU 0: .* core 1", " pc [0-9a-f]{16}"])
    .asks("vcpu two 1", &["there is no such vCPU"])
    .asks("walk two 40000000", &["0x40000000 -> 0x.*, level [12]"])
    .asks("walk two 9000000", &["0x9000000 is not mapped"])
    .asks("smmu", &["smmu0: locked"])
    .asks("restart two", &["two: running"])
    .asks("stop two", &["two: stopped"])
    .asks("stop two", &["two: it is not running"])
    .asks("list", &[" 1 one +running ", " 2 two +stopped "])
    .asks("start two", &["two: running"])
    .asks("focus two", &[r"\[two\] has the keyboard", &two])
    .types("poweroff\r")
    .expect(&["vm two: powered off"])
    .types("\x1d1")
    .expect(&[r"\[one\] has the keyboard", &one])
    .types("poweroff -f\r")
    .expect(&["vm one: powered off"]);
    case.timeout = Duration::from_secs(600);
    // What is typed to one appears at no other, and what does not begin with a prefix is ours. A core that does not
    // show a vCPU within 100 ms, as one may on a single thread of a busy host, ends the test at once.
    case.forbids.extend([
        r"\[one\].*t-42".to_owned(),
        r"\[two\].*o-42".to_owned(),
        "did not leave their cores in time".to_owned(),
    ]);
    case
}

/// The VM spins on another core than the monitor's, beside one that spins on the monitor's.
fn restarts() -> Case {
    let mut case = case(
        "a VM restarts a hundred times without losing a frame",
        Bundle::Manifest(concat!(
            tiny!("here", "spin", 0, ""),
            tiny!("there", "spin", 1, "")
        )),
    )
    .expect(&["vm there: 2 MiB"])
    .types(MONITOR)
    .asks("frames", &["frames of 4 KiB free"]);
    for _ in 0..RESTARTS / 2 {
        case = case
            .asks("restart here", &["here: running"])
            .asks("restart there", &["there: running"]);
    }
    let mut case = case
        .asks("frames", &["frames of 4 KiB free"])
        .asks("list", &[" here +running .* 51 ", " there +running .* 51 "])
        .asks("quit", &["verdict 0: the monitor was told to quit"]);
    case.check = Check::Judged(same_frames);
    case
}

/// The first and the last answer to `frames` are the same, and are answers.
pub(super) fn same_frames(console: &str) -> Result<()> {
    let pattern = Regex::new(r"(\d+) of \d+ frames of 4 KiB free, heap: (\d+) of")?;
    let free: Vec<(u64, u64)> = pattern
        .captures_iter(console)
        .map(|found| Ok((found[1].parse()?, found[2].parse()?)))
        .collect::<Result<_>>()?;
    let (first, last) = free
        .first()
        .zip(free.last())
        .context("nobody told of frames")?;
    ensure!(free.len() >= 2, "frames were told of only once");
    ensure!(
        first.0 == last.0,
        "{} frames were free, then {}",
        first.0,
        last.0
    );
    // A KiB more may be what the monitor itself keeps.
    ensure!(
        last.1 <= first.1 + 2,
        "the heap has grown from {} to {} KiB",
        first.1,
        last.1
    );
    Ok(())
}

/// It cannot fill the log, it leaves its neighbour alone, and it can be stopped.
fn reset_loop() -> Case {
    let mut case = case(
        "a VM that resets itself without end is held back and stopped",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"calm\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:heartbeat\"\n",
            "kernel_format = \"flat\"\nappend = \"beats=1000 period_us=1000000\"\n",
            tiny!("loop", "reset", 1, "")
        )),
    )
    .expect(&["vm loop: 2 MiB"])
    .types(MONITOR)
    .asks("frames", &["frames of 4 KiB free"])
    // Its 128th reset is the twelfth that is logged.
    .expect(&["vm loop: reset"; 12])
    .types("stop loop\r")
    .expect(&["loop: stopped"])
    .asks(
        "list",
        &[" calm +running .* 1 ", " loop +stopped .* [1-9][0-9]{2} "],
    )
    .asks("frames", &["frames of 4 KiB free"])
    .asks("quit", &["verdict 0"]);
    case.check = Check::Judged(same_frames);
    case
}

/// It is cut off with a note; the monitor is heard through it.
fn flood() -> Case {
    case(
        "a VM that prints without end is cut off, and the monitor is heard",
        Bundle::Manifest(concat!(
            tiny!("calm", "spin", 0, ""),
            tiny!("chatter", "chatter", 1, "")
        )),
    )
    .expect(&[r"\[chatter\] x{512}$"])
    .types(MONITOR)
    .asks("list", &[" calm +running ", " chatter +running "])
    .expect(&[r"\[chatter\] \(\d+ bytes dropped\)"])
    .types("stop chatter\r")
    .expect(&["chatter: stopped"])
    .asks("list", &[" calm +running ", " chatter +stopped "])
    .asks("quit", &["verdict 0"])
}

/// The VM is alone, so that its bytes go out as they are; its verdict would be a bad one.
fn forger() -> Case {
    let mut case = case(
        "a guest cannot give the verdict",
        Bundle::Manifest(tiny!("forger", "forger", 0, "restart = \"never\"")),
    )
    .expect(&[
        r"^bulkhead: verdic\? 1: forged$",
        r"^xbulkhead: verdict 1: forged$",
        r"^bulkhead: verdic\? 1: unfinished$",
        "vm forger: powered off$",
        "^bulkhead: verdict 0: all VMs are off",
    ]);
    case.forbids.push("^bulkhead: verdict 1".to_owned());
    case
}

/// What a VM says on its own port is not on the terminal, which its neighbour then has for itself; and a
/// port that cannot be had is refused.
fn serial() -> Case {
    let folder = bundles::folder();
    let port = format!(
        "file,id=port,path={},input-path={}",
        port_output().display(),
        folder.join("typed.txt").display()
    );
    let mut case = case(
        "a VM has a serial port of its own",
        Bundle::Manifest(concat!(
            tiny!("there", "echo", 1, "serial = 1\nrestart = \"never\""),
            tiny!("shared", "off", 0, "serial = 0"),
            tiny!("none", "off", 0, "serial = 7"),
            "[[vm]]\nname = \"here\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:heartbeat\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\nappend = \"beats=3 period_us=1000\"\n"
        )),
    )
    .args(&["-chardev", &port, "-serial", "chardev:port"])
    .expect(&[
        r"uart 1: PL011 at 0x9040000-",
        "ERROR .*vm shared: left out: no serial port: it is the console",
        "ERROR .*vm none: left out: no serial port: the machine has 2",
        // Without a name before it.
        "^heartbeat end: ",
        "verdict 0: all VMs are off",
    ]);
    case.forbids = vec!["typed at".to_owned(), "PANIC|EXCEPTION".to_owned()];
    case.check = Check::Judged(|_| {
        let said = std::fs::read_to_string(port_output()).context("the port's output")?;
        ensure!(said == bundles::TYPED, "on the port is `{said}`");
        Ok(())
    });
    case
}

/// A VM takes little beside its own memory: of our heap, and for page tables.
fn costs() -> Case {
    let mut case = case(
        "a VM costs less than a MiB beside its memory",
        Bundle::Manifest(concat!(
            tiny!("small", "off", 0, "restart = \"never\""),
            "[[vm]]\nname = \"large\"\nmemory = \"512M\"\nkernel = \"off.bin\"\n",
            "kernel_format = \"flat\"\ncpus = 64\nrestart = \"never\"\n",
        )),
    )
    .expect(&["vm large: .* of tables", "verdict 0"]);
    case.check = Check::Judged(judge_costs);
    case
}

fn judge_costs(console: &str) -> Result<()> {
    const HEAP_KIB: u64 = 1024;
    // For 512 MiB in whatever pieces: a root and two levels below it.
    const TABLES_KIB: u64 = 64;
    let cost = Regex::new(r"launch: vm (\w+): .* (\d+) KiB of heap and (\d+) KiB of tables")?;
    let mut count = 0;
    for found in cost.captures_iter(console) {
        let (heap, tables): (u64, u64) = (found[2].parse()?, found[3].parse()?);
        ensure!(
            (1..=HEAP_KIB).contains(&heap) && (1..=TABLES_KIB).contains(&tables),
            "VM {}: {heap} KiB of heap, {tables} KiB of tables",
            &found[1]
        );
        count += 1;
    }
    ensure!(count == 2, "{count} VMs tell what they cost");
    Ok(())
}

fn port_output() -> PathBuf {
    bundles::folder().join("port.out")
}

/// A guest that prints what its tree has behind the first `@`.
fn tree(name: &str, key: &str, says: &str) -> Case {
    let manifest = format!(
        "[[vm]]\nname = \"reader\"\nmemory = \"32M\"\nkernel = \"tree.bin\"\nkernel_format = \"flat\"\n\
         restart = \"never\"\n{key}"
    );
    case(name, Bundle::Manifest(manifest.leak())).expect(&[
        "vm reader: 32 MiB, 1 vCPUs",
        says,
        "verdict 0: all VMs are off",
    ])
}

/// A VM starts when it is told to, or when another has stopped.
fn starts() -> Case {
    case(
        "VMs start by hand and after others, and the last to end turns the machine off",
        Bundle::Manifest(concat!(
            tiny!("first", "spin", 0, ""),
            tiny!("then", "off", 1, "start = \"after:first\""),
            tiny!("asked", "off", 1, "start = \"manual\"")
        )),
    )
    .expect(&["vm then: not started at boot"])
    .types(MONITOR)
    .asks(
        "list",
        &[
            " first +running .* 1 ",
            " then +stopped .* 0 ",
            " asked +stopped .* 0 ",
        ],
    )
    .asks(
        "stop first",
        &["vm then: starts after first", "vm then: powered off"],
    )
    // The other CPU says so, and then the prompt is there again.
    .asks("start asked", &["vm asked: powered off"])
    .asks(
        "list",
        &[
            " first +stopped ",
            " then +stopped .* 1 ",
            " asked +stopped .* 1 ",
        ],
    )
    // With nobody at the monitor, nothing is left to run.
    .asks("focus", &["verdict 0: all VMs are off"])
}

/// Half a second by the clock, 25 turns of each, between two lists.
fn shares(name: &str, bundle: Bundle, judge: fn(&str) -> Result<()>) -> Case {
    let mut case = case(name, bundle)
        .expect(&["vm clock: 32 MiB"])
        .types(MONITOR)
        .expect(&[PROMPT, r"\[clock\] beat 10"])
        .types("list\r")
        .expect(&[" b +running ", r"\[clock\] beat 60"])
        .types("list\r")
        .expect(&[" b +running ", "vm clock: powered off"])
        .types("quit\r")
        .expect(&["verdict 0"]);
    case.vary.time = Time::Instructions;
    case.check = Check::Judged(judge);
    case
}

/// The shares that the second list shows of the VMs `a` and `b`, in percent of a CPU.
fn judge_shares(console: &str, wanted: [std::ops::RangeInclusive<u64>; 2]) -> Result<()> {
    for (vm, wanted) in ["a", "b"].into_iter().zip(wanted) {
        let pattern = Regex::new(&format!(r"(?m)^ *\d {vm} +running .* (\d+)\.\d%\r?$"))?;
        let found: Vec<_> = pattern.captures_iter(console).collect();
        ensure!(found.len() == 2, "{} lists show {vm}", found.len());
        let share: u64 = found[1][1].parse()?;
        ensure!(
            wanted.contains(&share),
            "VM {vm} has {share} % of the CPU, not {wanted:?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{judge_costs, judge_shares, same_frames};

    #[test]
    fn frames_must_be_told_twice_and_alike() {
        let told = |free: &[u64]| -> String {
            free.iter()
                .map(|n| format!("{n} of 9 frames of 4 KiB free, heap: 3 of 512 KiB used\n"))
                .collect()
        };
        assert!(same_frames(&told(&[7, 7])).is_ok());
        assert!(same_frames(&told(&[7])).is_err());
        assert!(same_frames(&told(&[7, 6])).is_err());
        assert!(same_frames("").is_err());
    }

    #[test]
    fn what_a_vm_costs_is_held_against_its_limit() {
        let line = |heap, tables| {
            format!(
                "launch: vm x: 2 MiB, 1 vCPUs, beside them {heap} KiB of heap and {tables} KiB of tables, 5\n"
            )
        };
        assert!(judge_costs(&(line(1024, 8) + &line(9, 4))).is_ok());
        assert!(judge_costs(&(line(1025, 8) + &line(9, 4))).is_err());
        assert!(judge_costs(&(line(9, 65) + &line(9, 4))).is_err());
        assert!(judge_costs(&line(9, 4)).is_err());
    }

    #[test]
    fn the_second_list_is_judged() {
        let list = |a: &str, b: &str| {
            format!(" 1 a   running   1  2 MiB  1  5  0.1   {a}%\r\n 2 b   running 1 {b}%\r\n")
        };
        let judge = |console: &str| judge_shares(console, [45..=55, 45..=55]);
        assert!(judge(&(list("0.0", "9.9") + &list("49.1", "50.2"))).is_ok());
        assert!(judge(&(list("50.0", "50.0") + &list("30.1", "69.9"))).is_err());
        assert!(judge(&list("50.0", "50.0")).is_err());
    }
}
