//! The board tests: what is started, what the console must and must not show.

use std::time::Duration;

use super::Extent;
use super::pairwise;
use crate::qemu::{Time, Variation};

/// One board test.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// What it proves; the filter looks here.
    pub(super) name: String,
    /// The board.
    pub(super) board: &'static str,
    /// What it changes of the board's defaults.
    pub(super) vary: Variation,
    /// Whether the board's disks are left out.
    pub(super) bare: bool,
    /// What the console must show, in order.
    pub(super) expects: Vec<String>,
    /// What it must not show.
    pub(super) forbids: Vec<String>,
    /// The verdict the machine must power off with.
    pub(super) verdict: u64,
    /// The longest it may take.
    pub(super) timeout: Duration,
    /// Whether other machines may run beside it.
    pub(super) company: Company,
    /// What is done with it.
    pub(super) check: Check,
    /// Whether it is left out of the default sample.
    pub(super) only_full: bool,
}

/// Whether other machines may run beside a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// They may.
    Any,
    /// Its result depends on the time it gets.
    Alone,
}

/// What is done with a test.
#[derive(Debug, Clone)]
pub(super) enum Check {
    /// One run.
    Run,
    /// Two runs whose consoles are equal, byte for byte.
    SameTwice,
    /// This tool is started with something wrong and must refuse it.
    Refused {
        /// Its arguments.
        args: Vec<String>,
        /// The version that the only QEMU in `PATH` tells; the usual `PATH` without one.
        qemu_version: Option<&'static str>,
        /// A regular expression for what it must say.
        message: &'static str,
    },
}

impl Case {
    fn new(board: &'static str, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            board,
            vary: Variation::default(),
            bare: false,
            expects: Vec::new(),
            forbids: vec![r"\] (ERROR|WARN) ".to_owned(), "(?i)panic".to_owned()],
            verdict: 0,
            timeout: Duration::from_secs(120),
            company: Company::Any,
            check: Check::Run,
            only_full: false,
        }
    }

    fn expect(mut self, patterns: &[&str]) -> Self {
        self.expects
            .extend(patterns.iter().map(|&pattern| pattern.to_owned()));
        self
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.vary
            .args
            .extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    fn refused(name: &str, args: &[&str], message: &'static str) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let check = Check::Refused {
            args,
            qemu_version: None,
            message,
        };
        Self {
            check,
            ..Self::new("virt", name)
        }
    }
}

/// The tests of one board.
pub(super) fn of_board(board: &str, extent: Extent) -> Vec<Case> {
    let mut cases = match board {
        "virt" => virt(),
        "pseries" => pseries(),
        _ => Vec::new(),
    };
    cases.retain(|case| extent == Extent::Full || !case.only_full);
    cases
}

/// A row of a matrix is in the default sample if the pairs need it.
fn sampled(sizes: &[usize]) -> Vec<(Vec<usize>, bool)> {
    let sample = pairwise::pairs(sizes);
    pairwise::full(sizes)
        .into_iter()
        .map(|row| {
            let only_full = !sample.contains(&row);
            (row, only_full)
        })
        .collect()
}

fn virt() -> Vec<Case> {
    let mut cases = virt_reports();
    let mut same = Case::new("virt", "the console is the same in two runs under --icount")
        .expect(&["SMMUEN", "report: complete"]);
    same.vary.time = Time::Instructions;
    same.check = Check::SameTwice;
    cases.push(same);

    let mut small = Case::new("virt", "256M of memory are enough")
        .expect(&["memory: .*, 256 MiB", "report: complete"]);
    small.vary.memory = Some("256M".to_owned());
    cases.push(small);

    let mut many = Case::new("virt", "64 CPUs all come online").expect(&["cpus: 64 online of 64"]);
    many.vary.smp = Some(64);
    cases.push(many);

    cases.push(Case {
        bare: true,
        ..Case::new("virt", "a machine without a PCI device is reported")
            .expect(&["pci 0000: ECAM", "report: complete"])
    });
    cases.push(
        Case::new("virt", "an ITS and an SMMU may be missing")
            .args(&["-M", "virt,its=off,iommu=none"])
            .expect(&["gic: GICv3", "smmu: none described", "report: complete"]),
    );
    cases.extend(refusals());
    cases
}

/// The report is true for every CPU model, CPU count and memory size.
fn virt_reports() -> Vec<Case> {
    const CPUS: [(&str, &str); 5] = [
        ("max", "QEMU max"),
        ("neoverse-n1", "Neoverse-N1"),
        ("neoverse-v1", "Neoverse-V1"),
        ("cortex-a72", "Cortex-A72"),
        ("cortex-a57", "Cortex-A57"),
    ];
    const SMP: [u32; 3] = [1, 2, 8];
    const MEMORY: [(&str, &str); 3] = [
        ("512M", "0x40000000-0x5fffffff, 512 MiB"),
        ("2G", "0x40000000-0xbfffffff, 2 GiB"),
        ("8G", "0x40000000-0x23fffffff, 8 GiB"),
    ];
    sampled(&[CPUS.len(), SMP.len(), MEMORY.len()])
        .into_iter()
        .map(|(row, only_full)| {
            let (cpu, name) = CPUS[row[0]];
            let smp = SMP[row[1]];
            let (memory, range) = MEMORY[row[2]];
            let mut case = Case::new("virt", format!("report on {cpu}, smp {smp}, {memory}"));
            case.expects = vec![
                "Bulkhead .* on Arm, EL2".to_owned(),
                "GBPA.ABORT 1".to_owned(),
                format!("memory: {range}"),
                format!("boot cpu: .*{name}"),
                format!("cpus: {smp} online of {smp}"),
                "report: complete".to_owned(),
            ];
            case.vary.cpu = Some(cpu.to_owned());
            case.vary.smp = Some(smp);
            case.vary.memory = Some(memory.to_owned());
            case.only_full = only_full;
            case
        })
        .collect()
}

fn pseries() -> Vec<Case> {
    Vec::new()
}

/// Wrong input to this tool. None of it may start a machine.
fn refusals() -> Vec<Case> {
    let mut cases = vec![
        Case::refused(
            "an unknown board is refused",
            &["run", "toaster"],
            "pseries, virt",
        ),
        Case::refused(
            "an unknown option is refused",
            &["run", "--toast"],
            "--toast",
        ),
        Case::refused(
            "an unknown firmware is refused",
            &["run", "pseries", "--firmware", "bios"],
            "it has: slof, vof",
        ),
        Case::refused(
            "a size without a unit is refused",
            &["run", "--memory", "512"],
            "512M",
        ),
        Case::refused("no CPU at all is refused", &["run", "--smp", "0"], "--smp"),
        Case::refused(
            "a missing kernel is refused by name",
            &["run", "--kernel", "no/such/kernel"],
            "no/such/kernel",
        ),
        Case::refused(
            "a missing initrd is refused by name",
            &["run", "--initrd", "no/such/initrd"],
            "no/such/initrd",
        ),
        Case::refused(
            "a missing manifest is refused by name",
            &["run", "--guest", "no/such/manifest.toml"],
            "no/such/manifest.toml",
        ),
        Case::refused(
            "a faulty expression is refused",
            &["run", "--expect", "("],
            "unclosed",
        ),
        Case::refused(
            "an unknown test is refused",
            &["test", "virt", "no such test"],
            "no such",
        ),
    ];
    let mut old = Case::refused(
        "a QEMU that is too old is refused",
        &["run"],
        "9.2 or newer.*7.2.0",
    );
    if let Check::Refused { qemu_version, .. } = &mut old.check {
        *qemu_version = Some("7.2.0");
    }
    cases.push(old);
    cases
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
}
