//! Judges the log of a Linux guest on Arm, and its table of interrupts.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

/// What a kernel says only when something is wrong with its firmware or with itself.
const BAD: &str =
    r"(?i)firmware bug|\bchecksum\b|\bAML\b|ACPI Error|WARNING:|Call trace|\bBUG:|\bOops\b";
/// What it says when all is well, although a word of that is in it.
const GOOD: [&str; 2] = [
    "ACPI: Early table checksum verification disabled",
    "ACPI AML tables successfully acquired and loaded",
];
/// Said by every kernel.
const ALWAYS: [&str; 3] = [
    r"(?m)GICv3: \d+ SPIs implemented",
    r"(?m)GICv3: CPU0: found redistributor",
    r"(?m)arch_timer: cp15 timer\(s\) running at",
];
/// Said by one that uses ACPI: every table is found, the interpreter runs, interrupts go by the MADT.
const ACPI: [&str; 11] = [
    r"(?m)ACPI: RSDP 0x",
    r"(?m)ACPI: XSDT 0x",
    r"(?m)ACPI: FACP 0x",
    r"(?m)ACPI: DSDT 0x",
    r"(?m)ACPI: APIC 0x",
    r"(?m)ACPI: GTDT 0x",
    r"(?m)ACPI: SPCR 0x",
    r"(?m)ACPI: SPCR: console: pl011,",
    r"(?m)ACPI: Using GIC for interrupt routing",
    r"(?m)ACPI: Interpreter enabled",
    r"(?m)psci: PSCIv1\.\d+ detected in firmware",
];

/// Whether a kernel that was started with a device tree is well.
///
/// # Errors
/// What is wrong.
pub(super) fn judge_device_tree(console: &str) -> Result<()> {
    judge(console)?;
    ensure!(
        !console.contains("ACPI: RSDP"),
        "a kernel with a device tree found ACPI tables"
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    judge_clock(console, now)
}

/// Whether a kernel that was started with ACPI is well, and used it.
///
/// # Errors
/// What is wrong.
pub(super) fn judge_acpi(console: &str) -> Result<()> {
    judge(console)?;
    says(console, &ACPI)
}

/// Whether the kernel found the time in its PL031, which it looks for by device tree only.
fn judge_clock(console: &str, now: u64) -> Result<()> {
    const AN_HOUR: u64 = 3600;
    let set = Regex::new(r"rtc-pl031 .* setting system clock to \S+ UTC \((\d+)\)")?;
    let found = set
        .captures(console)
        .context("the kernel has set no time by its clock")?;
    let seconds: u64 = found[1].parse()?;
    ensure!(
        seconds.abs_diff(now) < AN_HOUR,
        "the guest's clock says {seconds} s, the machine's {now} s"
    );
    Ok(())
}

fn judge(console: &str) -> Result<()> {
    let (_, guest) = console
        .split_once("report: complete")
        .context("the hypervisor's report is not complete")?;
    let bad = Regex::new(BAD)?;
    let is_bad = |line: &str| bad.is_match(line) && !GOOD.iter().any(|good| line.ends_with(good));
    if let Some(line) = guest.lines().map(str::trim).find(|line| is_bad(line)) {
        anyhow::bail!("the kernel complains: {line}");
    }
    says(guest, &ALWAYS)?;
    let timer = interrupts(guest, "arch_timer")?;
    ensure!(
        timer.iter().all(|&count| count > 0),
        "a vCPU had no interrupt of its timer: {timer:?}"
    );
    // Its interrupt is asked for and routed. None need come: the FIFO of our PL011 is never full, and
    // nobody types.
    interrupts(guest, "uart-pl011")?;
    Ok(())
}

fn says(console: &str, patterns: &[&str]) -> Result<()> {
    for pattern in patterns {
        ensure!(
            Regex::new(pattern)?.is_match(console),
            "the kernel does not say `{}`",
            pattern.trim_start_matches("(?m)")
        );
    }
    Ok(())
}

/// The counts of one row of `/proc/interrupts`, one for each vCPU.
fn interrupts(console: &str, name: &str) -> Result<Vec<u64>> {
    let row = Regex::new(&format!(r"(?m)^ *\d+:((?: +\d+)+) +GIC.* {name}\r?$"))?;
    let counts = row
        .captures(console)
        .with_context(|| format!("/proc/interrupts has no {name}"))?;
    counts[1]
        .split_whitespace()
        .map(|count| count.parse().context("a count that is no number"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    0.236651] INFO  aarch64: report: complete 1 ticks\r
guest: Linux 6.12.1-arm64 on aarch64 is up, 2 CPUs, 0 PCI devices\r
[    0.000000] ACPI: RSDP 0x000000005FFF0000 000024 (v02 BLKHD )\r
[    0.000000] ACPI: XSDT 0x000000005FFF0030 000054\r
[    0.000000] ACPI: FACP 0x000000005FFF0100 000114\r
[    0.000000] ACPI: DSDT 0x000000005FFF0300 000354\r
[    0.000000] ACPI: APIC 0x000000005FFF0700 000154\r
[    0.000000] ACPI: GTDT 0x000000005FFF0900 000068\r
[    0.000000] ACPI: SPCR 0x000000005FFF0A00 000050\r
[    0.000000] ACPI: SPCR: console: pl011,mmio32,0x9000000,115200\r
[    0.000000] psci: PSCIv1.1 detected in firmware.\r
[    0.000000] GICv3: 96 SPIs implemented\r
[    0.000000] GICv3: CPU0: found redistributor 0 region 0:0x00000000080a0000\r
[    0.000000] arch_timer: cp15 timer(s) running at 1000.00MHz (virt).\r
[    0.030000] debug: nothing\r
[    0.000000] ACPI: Early table checksum verification disabled\r
[    0.040000] ACPI: 1 ACPI AML tables successfully acquired and loaded\r
[    0.050000] ACPI: Using GIC for interrupt routing.\r
[    0.060000] ACPI: Interpreter enabled\r
           CPU0       CPU1       \r
 11:        371        289     GICv3  27 Level     arch_timer\r
 14:         32          0     GICv3  33 Level     uart-pl011\r
IPI0:       159        230       Rescheduling interrupts\r
guest: command ended with 0\r
";

    fn with_device_tree() -> String {
        LOG.lines()
            .filter(|line| !line.contains("ACPI: "))
            .map(|line| format!("{line}\n"))
            .chain([clock(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .as_secs(),
            )])
            .collect()
    }

    fn clock(seconds: u64) -> String {
        format!(
            "[ 0.1] rtc-pl031 9010000.pl031: setting system clock to 1970-01-01T00:00:03 UTC ({seconds})\r\n"
        )
    }

    #[test]
    fn the_time_must_be_that_of_the_machine() {
        judge_clock(&clock(1_000_000), 1_000_010).unwrap();
        assert!(judge_clock(&clock(3), 1_000_010).is_err());
        assert!(judge_clock("", 3).is_err());
    }

    #[test]
    fn a_good_log_is_well() {
        judge_acpi(LOG).unwrap();
        judge_device_tree(&with_device_tree()).unwrap();
    }

    #[test]
    fn each_complaint_is_heard() {
        for bad in [
            "[    0.1] [Firmware Bug]: CPU3: APIC id mismatch",
            "[    0.1] ACPI BIOS Warning (bug): Incorrect checksum in table [GTDT]",
            "[    0.1] ACPI: Invalid AML opcode",
            "[    0.1] ACPI Error: AE_NOT_FOUND",
            "[    0.1] WARNING: CPU: 0 PID: 1 at kernel/irq/manage.c",
            "[    0.1] Call trace:",
            "[    0.1] BUG: scheduling while atomic",
            "[    0.1] Internal error: Oops: 96000004 [#1] SMP",
        ] {
            let log = LOG.replace("[    0.030000] debug: nothing", bad);
            let error = judge_acpi(&log).unwrap_err().to_string();
            assert!(error.contains("complains"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |from: &str, to: &str| {
            let error = judge_acpi(&LOG.replace(from, to)).unwrap_err();
            format!("{error:#}")
        };
        assert!(refused("GICv3: 96 SPIs", "GICv2m").contains("SPIs"));
        assert!(refused("ACPI: GTDT", "ACPI: GTDX").contains("GTDT"));
        assert!(refused("371        289", "371          0").contains("timer"));
        assert!(refused("uart-pl011", "other").contains("uart-pl011"));
        assert!(refused("report: complete", "").contains("report"));
    }

    #[test]
    fn the_wrong_firmware_is_noticed() {
        assert!(judge_device_tree(LOG).is_err());
        assert!(judge_acpi(&with_device_tree()).is_err());
    }
}
