//! The board tests: what is started, what the console must and must not show.

mod bridges;
mod dma;
mod guests;
mod linux;
mod linux_smmu;
mod nested;
mod passthrough;
mod power;
mod power_dma;
mod power_interrupts;
mod power_pins;
mod power_plug;
mod pseries;
mod recovery;
mod shares;
mod tool;
mod two_smmus;
mod virt;
mod vms;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use regex::Regex;

use super::Extent;
use super::pairwise;
use super::trees::Tree;
use crate::board::Smmu;
use crate::build::Profile;
use crate::qemu::{Threads, Time, Variation};
use crate::session::Typed;

/// One board test.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// What it proves; the filter looks here.
    pub(super) name: String,
    /// The board.
    pub(super) board: &'static str,
    /// What runs on it.
    pub(super) ground: Ground,
    /// What it changes of the board's defaults.
    pub(super) vary: Variation,
    /// The disks.
    pub(super) disks: Disks,
    /// Its SMMUs.
    pub(super) smmus: Smmus,
    /// Its device tree.
    pub(super) tree: Tree,
    /// The boot bundle.
    pub(super) bundle: Bundle,
    /// What the console must show, in order.
    pub(super) expects: Vec<String>,
    /// What is typed, each once so many of those were seen.
    pub(super) typed: Vec<Typed>,
    /// What it must not show.
    pub(super) forbids: Vec<String>,
    /// How it must end.
    pub(super) end: End,
    /// The longest it may take.
    pub(super) timeout: Duration,
    /// What is done with it.
    pub(super) check: Check,
    /// Whether it is left out of the default sample.
    pub(super) only_full: bool,
    /// Whether only images with the checks of a debug build do what it expects.
    pub(super) only_checked: bool,
}

/// What a test's machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// The hypervisor, with a bundle.
    Hypervisor,
    /// The image for bring-up, with a bundle.
    BringUp,
    /// A guest of our own alone, with this command line, on the machine without EL2.
    Bare {
        /// The guest.
        guest: &'static str,
        /// Its command line.
        append: &'static str,
        /// Whether it has the machine's SMMU.
        smmu: Smmu,
    },
}

/// How a test must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The machine powers off with this verdict.
    PowerOff(u64),
    /// Everything expected was seen; the machine would go on.
    Expected,
    /// QEMU aborts, by a known fault of its own.
    EmulatorAborts,
}

/// The disks of a test's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disks {
    /// Those of the board.
    OfBoard,
    /// And so many more, `spare1` and so on, which the test's own devices are to use.
    AndSpare(usize),
    /// Those of the board, and one that cannot be written: it has Debian's kernel of this series on it, behind
    /// virtio at 00:05.0.
    AndKernel(&'static str),
    /// None.
    None,
}

/// The SMMUs of a test's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Smmus {
    /// What the board has.
    OfBoard,
    /// Two, one for `pcie.0` and one for the host bridge `pxb`. Only where QEMU can: elsewhere there is no such test.
    Two,
}

/// The boot bundle of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bundle {
    /// None.
    None,
    /// One VM with a kernel of a few instructions, which powers off.
    Small,
    /// That, cut off in the middle of its kernel.
    Truncated,
    /// That, its kernel's header claiming 2 GiB.
    LyingHeader,
    /// Bytes that are no archive.
    Garbage,
    /// That of a manifest with these contents.
    Manifest(&'static str),
    /// The same, without a look at what the board does not do: that is for the hypervisor to refuse.
    Unchecked(&'static str),
    /// What the board runs by default: Linux.
    OfBoard,
    /// That, but all it does is to run one command.
    OneCommand,
}

/// What is done with a test.
#[derive(Debug, Clone)]
pub(super) enum Check {
    /// One run.
    Run,
    /// One run, whose console is judged as a whole.
    Judged(fn(&str) -> anyhow::Result<()>),
    /// Two runs whose consoles are equal, byte for byte.
    SameTwice,
    /// The line that `--dry-run` prints is given to a shell, and the machine powers off well.
    Pasted {
        /// Arguments of the dry run.
        args: Vec<String>,
    },
    /// `cargo xtask bench` with these words: every figure is within its limit.
    Bench(&'static [&'static str]),
    /// One run of the whole hypervisor and one of the image for bring-up: their reports say the same.
    SameReport,
    /// The image of the case's ground is no larger than this.
    Image {
        /// In KiB.
        at_most_kib: u64,
    },
    /// ACPI's own compiler reads the tables of guests.
    Tables,
    /// This tool runs a machine that never starts and is ended by a signal: the machine must go too.
    Ended(rustix::process::Signal),
    /// This tool is started with something wrong and must refuse it.
    Refused {
        /// Its arguments.
        args: Vec<String>,
        /// What of the surroundings is wrong.
        around: Around,
        /// A regular expression for what it must say.
        message: &'static str,
    },
}

/// What of a tool's surroundings is wrong in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    /// Nothing.
    Usual,
    /// The only programs in `PATH` are QEMUs of this version.
    OldQemu(&'static str),
    /// So many MiB are to be free on the disk.
    DiskOf(&'static str),
    /// Standard output goes to a full disk.
    FullOutput,
    /// A file `manifest.toml` in the working directory with these contents.
    Manifest(&'static str),
}

/// Parts of names, and about how many seconds such a test takes on an idle machine.
const LONG: [(&str, u32); 16] = [
    ("two VMs with a host bridge each", 20),
    ("across a reset", 18),
    ("vCPUs on ", 16),
    ("works on all of them, and reboots", 13),
    ("use a disk and a NIC each", 12),
    ("two Linux VMs", 12),
    ("a disk and three NICs", 10),
    ("three disks and an ", 10),
    ("records are read in its owner", 10),
    ("in both windows", 10),
    ("a guest's own SMMU: ", 9),
    ("under fire", 8),
    ("two SMMUs of Linux", 8),
    ("disassemble cleanly", 8),
    ("SMMUs, devices behind each", 8),
    ("Linux ", 8),
];
/// Parts of names of tests that hardly use a processor: they wait for resets of devices, links, and DMA that takes its
/// time.
const WAITING: [(&str, u32); 7] = [
    ("drivers and kernels come and go", 45),
    ("a hundred times in the middle of ", 38),
    ("forty times in the middle of ", 16),
    ("until there are too many", 30),
    ("is taken away and given back", 15),
    ("twenty times in the middle of DMA", 11),
    ("is refused until that VM is stopped", 3),
];

/// Parts of names of tests that hold a path to so many instructions, by what a neighbour's clock says. Checks take instructions.
const QUICK: [&str; 4] = [
    "configuration space, ITS, messages and events under fire leave a neighbour alone",
    "a flood of stage-1 faults is paid for by its owner",
    "a pin that is left up for ever costs its own VM's time",
    "a flood's records are read in its owner's time",
];

impl Case {
    /// About how many seconds it takes: the long ones are to be started first.
    pub(super) fn takes_s(&self) -> u32 {
        let mut known = WAITING.iter().chain(&LONG);
        known
            .find(|(part, _)| self.name.contains(part))
            .map_or(1, |(_, seconds)| *seconds)
    }

    /// Whether it says something of images of this profile. What an image is held to is said of the optimised one, and this
    /// tool starts that one.
    pub(super) fn is_of(&self, profile: Profile) -> bool {
        if self.only_checked {
            return profile == Profile::Checked;
        }
        let of_any = match self.check {
            Check::Run | Check::Judged(_) | Check::SameTwice | Check::SameReport => {
                !QUICK.iter().any(|part| self.name.contains(part))
            }
            Check::Pasted { .. }
            | Check::Bench(_)
            | Check::Image { .. }
            | Check::Tables
            | Check::Ended(_)
            | Check::Refused { .. } => false,
        };
        of_any || profile == Profile::Release
    }

    /// Whether most of that is waiting.
    pub(super) fn waits(&self) -> bool {
        WAITING.iter().any(|(part, _)| self.name.contains(part))
    }

    fn new(board: &'static str, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            board,
            ground: Ground::Hypervisor,
            vary: Variation::default(),
            disks: Disks::OfBoard,
            smmus: Smmus::OfBoard,
            tree: Tree::OfMachine,
            bundle: Bundle::None,
            expects: Vec::new(),
            typed: Vec::new(),
            forbids: vec![r"\] (ERROR|WARN) ".to_owned(), "PANIC|EXCEPTION".to_owned()],
            end: End::PowerOff(0),
            timeout: Duration::from_secs(300),
            check: Check::Run,
            only_full: false,
            only_checked: false,
        }
    }

    fn expect(mut self, patterns: &[&str]) -> Self {
        self.expects
            .extend(patterns.iter().map(|&pattern| pattern.to_owned()));
        self
    }

    /// Types this once all that is expected so far was seen.
    fn types(mut self, text: &str) -> Self {
        self.typed.push(Typed {
            after: self.expects.len(),
            text: text.to_owned(),
        });
        self
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.vary
            .args
            .extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    fn bundle(mut self, bundle: Bundle) -> Self {
        self.bundle = bundle;
        self
    }

    /// An `edu` behind each of so many host bridges besides the board's first, on POWER; time is counted in
    /// instructions.
    fn edus_on_bridges(mut self, count: usize) -> Self {
        for bridge in 1..=count {
            self = self.args(&[
                "-device",
                &format!("spapr-pci-host-bridge,index={bridge},id=p{bridge}"),
                "-device",
                &format!("edu,dma_mask=0xffffffffffffffff,bus=p{bridge}.0"),
            ]);
        }
        self.vary.time = Time::Instructions;
        self
    }

    /// One of the host's threads runs all CPUs: for what is not about CPUs that really run at once, which others are.
    fn one_thread(mut self) -> Self {
        self.vary.threads = Threads::One;
        self
    }

    /// The run is over with the last expectation.
    fn until_expected(mut self) -> Self {
        self.end = End::Expected;
        self
    }

    /// The hypervisor must give up with verdict 1.
    fn fatal(mut self) -> Self {
        self.end = End::PowerOff(1);
        self.forbids.clear();
        self
    }
}

/// The tests of one board.
pub(super) fn of_board(board: &str, extent: Extent) -> Vec<Case> {
    let mut cases = match board {
        "virt" => [
            vec![
                image("virt", 660),
                figures("virt", &["boot-report"]),
                figures("virt", &["traps"]),
                figures("virt", &["smmu"]),
            ],
            bring_up("virt", 210),
            virt::cases(),
            linux::cases(),
            guests::cases(),
            dma::cases(),
            passthrough::cases(),
            nested::cases(),
            linux_smmu::cases(),
            two_smmus::cases(),
            vms::cases(),
            shares::cases(),
            tool::cases(),
        ]
        .concat(),
        "pseries" => [
            vec![
                image("pseries", 648),
                figures("pseries", &["boot-report-pseries"]),
                figures("pseries", &["traps", "--board", "pseries"]),
                figures("pseries", &["tce"]),
            ],
            bring_up("pseries", 254),
            pseries::cases(),
            bridges::cases(),
            power::cases(),
            power_dma::cases(),
            power_interrupts::cases(),
            power_pins::cases(),
            power_plug::cases(),
            recovery::cases(),
        ]
        .concat(),
        _ => Vec::new(),
    };
    cases.retain(|case| extent == Extent::Full || !case.only_full);
    cases
}

/// Figures that are the same in every run are held against their limits in every run of the tests.
fn figures(board: &'static str, bench: &'static [&'static str]) -> Case {
    Case {
        check: Check::Bench(bench),
        ..Case::new(
            board,
            format!(
                "the figures of `bench {}` are within their limits",
                bench.join(" ")
            ),
        )
    }
}

/// It may grow with what it does, and whoever makes it grow says so here.
fn image(board: &'static str, at_most_kib: u64) -> Case {
    Case {
        check: Check::Image { at_most_kib },
        ..Case::new(board, format!("the image is at most {at_most_kib} KiB"))
    }
}

/// What is flashed first on a new board: small, and true without a VM.
fn bring_up(board: &'static str, at_most_kib: u64) -> Vec<Case> {
    let on = |name: &str| Case {
        ground: Ground::BringUp,
        ..Case::new(board, format!("bring-up: {name}"))
    };
    let report = "report: complete";
    let mut same = on("the report is that of the whole image, the bundle's list with it")
        .bundle(Bundle::Small)
        .expect(&["bundle: 2 files, 1 VMs", "vm tiny: ", report]);
    same.check = Check::SameReport;
    vec![
        Case {
            check: Check::Image { at_most_kib },
            ..on(&format!("the image is at most {at_most_kib} KiB"))
        },
        same,
        on("without a bundle it ends well").expect(&[
            "bundle: none",
            report,
            "verdict 0: report complete, no VM to run",
        ]),
        on("a bundle that cannot be used ends it with verdict 1")
            .bundle(Bundle::Truncated)
            .expect(&["ERROR .*bundle: ", report])
            .fatal(),
    ]
}

/// All rows of a matrix, each with whether it is needed only for the full product.
fn sampled(sizes: &[usize]) -> Vec<(Vec<usize>, bool)> {
    sampled_beside::<0>(&[], pairwise::full(sizes))
}

/// The same for the rows of a matrix that can be, where other tests are what these rows would be.
fn sampled_beside<const N: usize>(
    others: &[[usize; N]],
    rows: Vec<Vec<usize>>,
) -> Vec<(Vec<usize>, bool)> {
    let sample = pairwise::pairs_beside(others, &rows);
    rows.into_iter()
        .map(|row| {
            let only_full = !sample.contains(&row);
            (row, only_full)
        })
        .collect()
}

/// Each failure that can be provoked ends in its verdict, and says where it was.
fn provoked(board: &'static str, failures: &[(&str, &[&str])]) -> Vec<Case> {
    let provoked = |failure: &str, shows: &[&str]| {
        Case::new(board, format!("a provoked {failure} ends in a verdict"))
            .args(&["-append", &format!("bulkhead.test={failure}")])
            .expect(&["provoking"])
            .expect(shows)
            .fatal()
    };
    let failures = failures.iter();
    let mut cases: Vec<_> = failures
        .map(|(failure, shows)| provoked(failure, shows))
        .collect();
    let noticed: &[&str] = &[
        r"PANIC on CPU 0.* panicked at hv/boot/src/self_test.rs:\d+",
        "attempt to add with overflow",
        "verdict 1: panic",
    ];
    cases.push(Case {
        only_checked: true,
        ..provoked("overflow", noticed)
    });
    cases
}

/// The boot bundle is read back and listed, and refused when it is damaged.
fn bundles(board: &'static str) -> Vec<Case> {
    let refused = |what: &str, bundle, shows: &[&str]| {
        Case::new(board, format!("a bundle {what} is refused"))
            .bundle(bundle)
            .expect(&["ERROR .*bundle: "])
            .expect(shows)
            .expect(&["verdict 1: the boot bundle cannot be used"])
            .fatal()
    };
    vec![
        Case::new(board, "a small bundle is listed")
            .bundle(Bundle::Small)
            .expect(&[
                "bundle: 2 files, 1 VMs",
                "bundle: manifest.dtb, ",
                "bundle: vm0/kernel, 5000 bytes",
                "vm tiny: 256 MiB, 1 vCPUs",
                "report: complete",
            ])
            .until_expected(),
        Case::new(board, "the board's own bundle is listed")
            .bundle(Bundle::OfBoard)
            .expect(&[
                "bundle: 3 files, 1 VMs",
                "bundle: vm0/kernel, [0-9]{8} bytes",
                "bundle: vm0/initrd, [0-9]{7,} bytes",
                "vm linux: 512 MiB",
                "report: complete",
            ])
            .until_expected(),
        refused("that is cut off", Bundle::Truncated, &[]),
        refused(
            "with a lying header",
            Bundle::LyingHeader,
            &["vm0/kernel: 2147483647 bytes"],
        ),
        refused("of garbage", Bundle::Garbage, &[]),
        not_acted_on(board),
        without_console(board),
        not_made(board),
    ]
}

/// A VM is never run in another way than its manifest asks for.
fn not_acted_on(board: &'static str) -> Case {
    macro_rules! manifest {
        ($key:literal, $other:literal) => {
            Bundle::Unchecked(concat!(
                "version = 1\n[[vm]]\nname = \"other\"\nmemory = \"256M\"\nkernel = \"off.bin\"\n",
                "kernel_format = \"flat\"\n",
                $key,
                "\n[[vm]]\nname = \"second\"\nmemory = \"256M\"\nkernel = \"off.bin\"\n",
                "kernel_format = \"flat\"\n",
                $other,
                "\n"
            ))
        };
    }
    let (manifest, keys) = match board {
        "pseries" => (
            manifest!("dtb = \"own.dtb\"", "console = \"pl011\""),
            ["dtb", "console"],
        ),
        _ => (
            manifest!("console = \"hvc\"", "console = \"hvc\"\nserial = 1"),
            ["console", "console"],
        ),
    };
    Case::new(
        board,
        "a VM that asks for what is not there is left out with the key",
    )
    .bundle(manifest)
    .expect(&[
        &format!("ERROR .*vm other: left out: {}: not supported", keys[0]),
        &format!("ERROR .*vm second: left out: {}: not supported", keys[1]),
        "verdict 1: no VM of the bundle can be run",
    ])
    .fatal()
}

/// The guest finds no console, and says so by the way it ends; the same guest finds that of a VM that has one.
fn without_console(board: &'static str) -> Case {
    macro_rules! manifest {
        ($format:literal) => {
            Bundle::Manifest(concat!(
                "[[vm]]\nname = \"mute\"\nmemory = \"32M\"\nkernel = \"guest:mute\"\nkernel_format = \"",
                $format,
                "\"\nrestart = \"never\"\nconsole = \"none\"\n",
                "[[vm]]\nname = \"loud\"\nmemory = \"32M\"\nkernel = \"guest:mute\"\nkernel_format = \"",
                $format,
                "\"\nrestart = \"never\"\nstart = \"after:mute\"\n"
            ))
        };
    }
    let manifest = match board {
        "pseries" => manifest!("elf"),
        _ => manifest!("flat"),
    };
    Case::new(board, "a VM without a console has none to be found")
        .bundle(manifest)
        .expect(&[
            "vm mute: .* console none",
            "vm mute: powered off",
            "vm loud: reset",
            "verdict 0: all VMs are off",
        ])
}

/// A VM that cannot be made leaves no frame taken, whatever of it was there already.
fn not_made(board: &'static str) -> Case {
    macro_rules! vm {
        ($name:literal, $memory:literal, $more:literal) => {
            concat!(
                "[[vm]]\nname = \"",
                $name,
                "\"\nmemory = \"",
                $memory,
                "\"\nkernel = \"off.bin\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
                $more
            )
        };
    }
    macro_rules! manifest {
        ($host:literal) => {
            Bundle::Manifest(concat!(
                vm!("first", "8M", ""),
                vm!("second", "8M", ""),
                vm!("large", "16G", ""),
                vm!("lacking", "64M", $host),
                vm!("third", "8M", "")
            ))
        };
    }
    let manifest = match board {
        "pseries" => manifest!("devices = [ { host = \"phb:800000020000009\" } ]\n"),
        _ => manifest!("devices = [ { host = \"0000:00:1e.0\" } ]\n"),
    };
    let mut case = Case::new(board, "a VM that cannot be made gives its memory back")
        .bundle(manifest)
        .expect(&[
            "ERROR .*vm large: .*(no free block|no room)",
            "ERROR .*vm lacking: ",
            "vm third: 8 MiB, .* frames left",
        ])
        .until_expected();
    case.forbids = vec!["PANIC|EXCEPTION".to_owned()];
    case.check = Check::Judged(judge_frames);
    case
}

/// The third VM, which is made after two that cannot be, took as many frames as the second.
fn judge_frames(console: &str) -> Result<()> {
    let mut left = Vec::new();
    for found in Regex::new(r"launch: vm \w+: .* tables, (\d+) frames left")?.captures_iter(console)
    {
        left.push(found[1].parse::<u64>()?);
    }
    let [first, second, third] = left[..] else {
        bail!("{} VMs tell what they cost", left.len());
    };
    ensure!(
        first > second && first - second == second.saturating_sub(third),
        "frames left after each VM: {left:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_the_sample_is_a_part() {
        for board in ["virt", "pseries"] {
            let full = of_board(board, Extent::Full);
            let names: BTreeSet<&str> = full.iter().map(|case| case.name.as_str()).collect();
            assert_eq!(names.len(), full.len());
            let sample = of_board(board, Extent::Pairs);
            assert!(sample.iter().all(|case| names.contains(case.name.as_str())));
        }
    }

    #[test]
    fn the_long_ones_are_there() {
        let names: Vec<String> = ["virt", "pseries"]
            .iter()
            .flat_map(|board| of_board(board, Extent::Full))
            .map(|case| case.name)
            .collect();
        for part in LONG.iter().map(|(part, _)| part).chain(&QUICK) {
            assert!(names.iter().any(|name| name.contains(part)), "{part}");
        }
    }

    #[test]
    fn what_is_measured_is_the_optimised_image() {
        let checked = |case: &Case| case.is_of(Profile::Checked);
        let all = of_board("virt", Extent::Full);
        let release = |case: &Case| case.is_of(Profile::Release);
        assert!(all.iter().all(|case| case.only_checked != release(case)));
        let left_out = all.iter().filter(|case| !checked(case));
        assert!(
            left_out
                .clone()
                .any(|case| matches!(case.check, Check::Image { .. }))
        );
        assert!(all.iter().any(checked));
        for case in left_out {
            let boots = matches!(case.check, Check::Run);
            assert!(!boots || QUICK.iter().any(|part| case.name.contains(part)));
        }
    }

    #[test]
    fn every_expression_compiles() {
        for case in ["virt", "pseries"]
            .iter()
            .flat_map(|board| of_board(board, Extent::Full))
        {
            for pattern in case.expects.iter().chain(&case.forbids) {
                regex::Regex::new(pattern).unwrap();
            }
        }
    }

    #[test]
    fn what_waits_is_a_test() {
        for (part, _) in WAITING.iter().chain(&LONG) {
            let all = ["virt", "pseries"].map(|board| of_board(board, Extent::Pairs));
            assert!(
                all.iter().flatten().any(|case| case.name.contains(part)),
                "no test has `{part}` in its name"
            );
        }
    }

    #[test]
    fn every_run_expects_something() {
        for case in ["virt", "pseries"]
            .iter()
            .flat_map(|board| of_board(board, Extent::Full))
        {
            assert!(
                !matches!(case.check, Check::Run | Check::SameTwice) || !case.expects.is_empty(),
                "{}",
                case.name
            );
        }
    }

    /// Whether the monitor has the keyboard once all is typed: while it has, the machine stays on, whatever its VMs do.
    fn stays_in_monitor(case: &Case) -> bool {
        const ESCAPE: char = '\x1d';
        let text: String = case.typed.iter().map(|typed| typed.text.as_str()).collect();
        let (mut open, mut line) = (false, String::new());
        let mut keys = text.chars();
        while let Some(key) = keys.next() {
            match key {
                ESCAPE => {
                    open = match keys.next() {
                        Some('m') => !open,
                        Some('1'..='9') => false,
                        _ => open,
                    };
                    line.clear();
                }
                '\r' => {
                    let word = line.split_whitespace().next();
                    open &= !matches!(word, Some("quit" | "focus"));
                    line.clear();
                }
                _ => line.push(key),
            }
        }
        open
    }

    #[test]
    fn no_run_waits_for_a_machine_whose_monitor_is_left_open() {
        for case in ["virt", "pseries"]
            .iter()
            .flat_map(|board| of_board(board, Extent::Full))
        {
            let waits = matches!(case.end, End::PowerOff(_)) && stays_in_monitor(&case);
            assert!(
                !waits,
                "{}: `quit`, `focus` or `until_expected` is needed",
                case.name
            );
        }
    }

    #[test]
    fn a_monitor_that_is_left_open_is_noticed() {
        let case = || Case::new("virt", "x").types(vms::MONITOR);
        assert!(stays_in_monitor(&case()));
        assert!(stays_in_monitor(&case().asks("stop one", &["stopped"])));
        assert!(stays_in_monitor(&case().types("\x1d1").types(vms::MONITOR)));
        assert!(!stays_in_monitor(&case().asks("quit", &["verdict 0"])));
        assert!(!stays_in_monitor(&case().asks("focus one", &[])));
        assert!(!stays_in_monitor(&case().types(vms::MONITOR)));
        assert!(!stays_in_monitor(&case().types("\x1d2").types("echo\r")));
        assert!(!stays_in_monitor(
            &Case::new("virt", "x").types("poweroff -f\r")
        ));
    }
}
