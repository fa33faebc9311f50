//! Tests of QEMU's POWER machine.

use std::time::Duration;

use super::power_interrupts::{self, messages};
use super::vms::MONITOR;
use super::{Bundle, Case, Check, Disks, bundles, provoked, sampled};
use crate::qemu::{Threads, Time};

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reports();
    cases.extend(machines());
    cases.extend(guests());
    cases.extend(matrix());
    cases.extend(bundles(BOARD));
    cases.extend(provoked(
        BOARD,
        &[
            (
                "panic",
                &["PANIC on CPU 0", "backtrace", "verdict 1: panic"],
            ),
            (
                "exception",
                &[
                    "EXCEPTION on CPU 0 .* vector 0x",
                    "srr0",
                    "backtrace",
                    "verdict 1",
                ],
            ),
            (
                "stack-overflow",
                &["backtrace", "verdict 1: stack overflow"],
            ),
            (
                "out-of-memory",
                &["memory allocation of .* failed", "verdict 1"],
            ),
            ("panic-in-panic", &["PANIC", "verdict 1: failed again"]),
        ],
    ));
    cases
}

/// What a report may depend on.
const CPUS: [(&str, &str); 2] = [("power9", "PVR 0x004e"), ("power10", "PVR 0x0080")];
const SMP: [u32; 3] = [1, 2, 4];
const FIRMWARE: [(&str, &str); 2] = [
    ("vof", "by firmware in the platform"),
    ("slof", "by firmware at 0x"),
];
const MEMORY: [(&str, &str); 2] = [("2G", "2 GiB"), ("8G", "8 GiB")];

/// The report is true for every CPU model, CPU count and firmware. Those under SLOF, which takes seconds, with 2 CPUs and
/// with 4 are of machines that go on: [`reboots_and_panics`], [`matrix`].
fn reports() -> Vec<Case> {
    sampled(&[CPUS.len(), SMP.len(), FIRMWARE.len(), MEMORY.len()])
        .into_iter()
        .map(|(row, only_full)| {
            let [cpu, smp, firmware, memory] = row[..] else {
                unreachable!("four factors")
            };
            let name = format!(
                "report on {}, smp {}, {}, {}",
                CPUS[cpu].0, SMP[smp], FIRMWARE[firmware].0, MEMORY[memory].0
            );
            let only_full = only_full || FIRMWARE[firmware].0 == "slof" && SMP[smp] != 1;
            Case {
                only_full,
                ..reported(Case::new(BOARD, name), [cpu, smp, firmware, memory])
            }
        })
        .collect()
}

/// A case without expectations on such a machine, and its report.
fn reported(mut case: Case, [cpu, smp, firmware, memory]: [usize; 4]) -> Case {
    let (cpu, pvr) = CPUS[cpu];
    let smp = SMP[smp];
    let (firmware, entered) = FIRMWARE[firmware];
    let (memory, size) = MEMORY[memory];
    case.vary.cpu = Some(cpu.to_owned());
    case.vary.smp = Some(smp);
    case.vary.firmware = Some(firmware.to_owned());
    case.vary.memory = Some(memory.to_owned());
    case.expect(&[
        &format!("Bulkhead .* on POWER, .*{pvr}"),
        entered,
        "LIOBN 0x80000000: .* cleared: no device reaches memory",
        &format!("memory: 0x0-0x[0-9a-f]+, {size}"),
        "nested: guests run by H_ENTER_NESTED",
        &format!("cpus: {smp} online of {smp}"),
        "nvme BAR0 ",
        "report: complete",
    ])
}

/// Machines out of the ordinary.
fn machines() -> Vec<Case> {
    let mut same = Case::new(BOARD, "the console is the same in two runs under --icount")
        .expect(&["no device reaches memory", "report: complete"]);
    same.vary.time = Time::Instructions;
    same.check = Check::SameTwice;

    let mut small = Case::new(BOARD, "512M of memory are enough")
        .expect(&["memory: .*, 512 MiB", "report: complete"]);
    small.vary.memory = Some("512M".to_owned());

    let mut bare = Case::new(BOARD, "a machine without a device is reported")
        .expect(&["segment 0000 .*: 0 functions", "report: complete"]);
    bare.disks = Disks::None;

    vec![
        same,
        small,
        bare,
        Case::new(BOARD, "two host bridges have a DMA window and a group each")
            .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
            .args(&["-device", "edu,bus=p1.0"])
            .expect(&[
                "pci 0000: LIOBN 0x80000000: .* cleared",
                "pci 0001: LIOBN 0x80000100: .* cleared",
                "segment 0000 .*: 1 functions in 1 groups",
                "segment 0001 .*: 1 functions in 1 groups",
                "1234:11e8 .* BAR0 mem32 1M @0x",
            ]),
        Case::new(BOARD, "devices behind a bridge are placed")
            .args(&["-device", "pci-bridge,id=b1,chassis_nr=1"])
            .args(&["-device", "edu,bus=b1,addr=1"])
            .expect(&[
                "3 functions in 1 groups, [0-9]+ BARs placed, 0 kept, 0 not placed",
                "00:01.0 .* bridge bus 01-01",
                "01:01.0 1234:11e8 .* BAR0 mem32 1M @0x",
            ]),
        Case::new(
            BOARD,
            "a BAR larger than every window is reported and left out",
        )
        .args(&["-object", "memory-backend-ram,id=m,size=2T,reserve=off"])
        .args(&["-device", "ivshmem-plain,memdev=m"])
        .expect(&[
            "0 kept, 1 not placed",
            r"BAR2 pref64 2T not placed: larger than the largest window \(1T\)",
            "report: complete",
        ]),
    ]
}

/// One Linux with four vCPUs.
macro_rules! smp {
    ($kernel:literal) => {
        concat!(
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"256M\"\ncpus = 4\nkernel = \"debian:",
            $kernel,
            "\"\ninitrd = \"initramfs\"\nappend = \"console=hvc0 quiet\"\n"
        )
    };
}
/// Two Linux VMs with two vCPUs each.
const TWO: &str = include_str!("../../../../qemu/guests/two-vms-pseries.toml");
/// Four processes that start many others at the same time, which every vCPU takes part in.
const STORM: &str = "for j in 1 2 3 4; do (k=0; while [ $k -lt 20 ]; do k=$((k+1)); /bin/true; done; \
                     echo storm-$((j*11))) & done; wait; nproc\r";

/// Linux as a guest.
fn guests() -> Vec<Case> {
    let mut one = Case::new(
        BOARD,
        "Linux 6.12 boots as a guest, runs a command and powers off",
    )
    .bundle(Bundle::OneCommand)
    .expect(&[
        r"guest: Linux 6\.12\..* on ppc64le is up",
        r"Linux .* 6\.12\..* ppc64le",
        "guest: command ended with 0",
        "vm linux: powered off",
        "verdict 0: all VMs are off",
    ]);
    // Linux says such things too.
    one.forbids.clear();
    one.vary.cpu = Some("power10".to_owned());
    let one = one.one_thread();
    vec![
        one,
        reboots_and_panics(),
        smp("6.1", smp!("6.1"), [0, 2, 0, 0])
            .one_thread()
            .types("poweroff -f\r")
            .expect(&["vm linux: powered off", "verdict 0: all VMs are off"]),
        two(),
        Case {
            only_full: true,
            ..smp("6.12", smp!("6.12"), [1, 0, 0, 0])
                .types("poweroff -f\r")
                .expect(&["vm linux: powered off", "verdict 0: all VMs are off"])
        },
        Case {
            only_full: true,
            ..smp("6.12", smp!("6.12"), [0, 2, 0, 0])
                .types("poweroff -f\r")
                .expect(&["vm linux: powered off", "verdict 0: all VMs are off"])
        },
    ]
}

/// Instead of being powered off it panics in the end. The run ends well: the hypervisor is not at fault. Debian's 6.12
/// names no last words (address 0). Its other CPUs are told by a system reset, or it would wait for them for hours.
fn reboots_and_panics() -> Case {
    let mut case = smp("6.12", smp!("6.12"), [0, 1, 1, 1])
        .types("echo c > /proc/sysrq-trigger\r")
        .expect(&[
            "sysrq triggered crash",
            "ERROR .*vm linux: .*its operating system gave up: .*: the VM is stopped",
            "vm linux: failed",
            "verdict 0: all VMs are off",
        ]);
    case.name
        .push_str("; one that panics fails its VM, and the log says so");
    // The error is that one.
    case.forbids.retain(|pattern| !pattern.contains("ERROR"));
    case.check = Check::Judged(nothing_before_the_panic);
    case
}

fn nothing_before_the_panic(console: &str) -> anyhow::Result<()> {
    let (before, _) = console
        .split_once("sysrq triggered crash")
        .ok_or_else(|| anyhow::anyhow!("nothing panics"))?;
    let bad = regex::Regex::new(r"\] (ERROR|WARN) ")?;
    anyhow::ensure!(
        !bad.is_match(before),
        "an error or a warning before the panic"
    );
    Ok(())
}

/// A Linux VM that runs one command.
macro_rules! once {
    ($name:literal, $cpus:literal, $series:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"256M\"\ncpus = ",
            $cpus,
            "\nkernel = \"debian:",
            $series,
            "\"\ninitrd = \"initramfs\"\nrestart = \"never\"\n",
            "append = \"console=hvc0 quiet bulkhead.run=date+-u\"\n"
        )
    };
}

/// Three of them, with 1, 2 and 4 vCPUs.
macro_rules! three {
    ($one:literal, $two:literal, $four:literal) => {
        concat!(
            once!("one", "1", $one),
            once!("two", "2", $two),
            once!("four", "4", $four)
        )
    };
}

/// 1, 2 and 4 vCPUs over 1, 2 and 4 threads; CPU models, firmwares, kernels: every two of these meet in these and the
/// other tests with Linux. The latter have 1, 2 and 4 vCPUs on 2 threads of `power9`, by either kernel; 2 on 2 of `power10`;
/// 4 on 4 of `power9`; and 4 on 2 of `power9` under SLOF. A machine runs up to three VMs at a time.
fn matrix() -> Vec<Case> {
    type Judge = fn(&str) -> anyhow::Result<()>;
    // Beside these, what `power_interrupts` asks of a machine under VOF: this firmware takes seconds.
    const OLD_NEW: (&str, &str, Judge) = (
        "1 and 2",
        concat!(
            once!("one", "1", "6.1"),
            once!("two", "2", "6.12"),
            messages!()
        ),
        |console| {
            all_up(console, &[("one", 1, "1"), ("two", 2, "12")])?;
            all_there(
                console,
                &[
                    power_interrupts::AGREED,
                    "interrupt controller: XIVE",
                    "console: what is typed is interrupt 0x1100",
                    "dma verdict: messages ok: came=100",
                ],
            )
        },
    );
    const OLD_NEW_OLD: (&str, &str, Judge) =
        ("1, 2 and 4", three!("6.1", "6.12", "6.1"), |console| {
            all_up(
                console,
                &[("one", 1, "1"), ("two", 2, "12"), ("four", 4, "1")],
            )
        });
    const NEW_OLD_NEW: (&str, &str, Judge) =
        ("1, 2 and 4", three!("6.12", "6.1", "6.12"), |console| {
            all_up(
                console,
                &[("one", 1, "12"), ("two", 2, "1"), ("four", 4, "12")],
            )
        });
    let machines = [
        ([1, 0, 0, 0], OLD_NEW_OLD, false),
        ([1, 2, 1, 0], OLD_NEW, false),
        ([1, 1, 1, 0], NEW_OLD_NEW, true),
        ([0, 2, 1, 0], OLD_NEW_OLD, true),
    ];
    let cases = machines
        .into_iter()
        .map(|(machine, (vcpus, manifest, judge), only_full)| {
            let [cpu, smp, firmware, _] = machine;
            let threads = SMP[smp];
            let (cpu, firmware) = (CPUS[cpu].0, FIRMWARE[firmware].0);
            let name =
                format!("Linux with {vcpus} vCPUs on {threads} threads of {cpu} under {firmware}");
            let mut case = reported(Case::new(BOARD, name), machine)
                .bundle(Bundle::Manifest(manifest))
                // What sees to it that slices end was tried first.
                .expect(&[match threads {
                    1 => "nested: a slice that was over before it began ended at once",
                    _ => "nested: a guest whose slice was lost was made to leave",
                }])
                .expect(&["verdict 0: all VMs are off"]);
            case.check = Check::Judged(judge);
            if manifest.contains("phb:") {
                case = case.args(&power_interrupts::EDU);
            }
            // With two threads they really run at once.
            if threads == 4 {
                case.vary.threads = Threads::One;
            }
            case.timeout = Duration::from_secs(600);
            // Linux says errors and warnings too.
            case.forbids = ["Oops", "rcu: INFO", "LOCKUP", "BUG:"]
                .map(str::to_owned)
                .into();
            case.only_full = only_full;
            case
        });
    cases.collect()
}

/// All have come up with their vCPUs and kernels, and have run their command.
fn all_up(console: &str, vms: &[(&str, u32, &str)]) -> anyhow::Result<()> {
    for (vm, cpus, series) in vms {
        let up = format!(r"\[{vm}\] guest: Linux 6\.{series}\.\S* on ppc64le is up, {cpus} CPUs");
        // It knows the time.
        let date = format!(r"\[{vm}\] .* UTC 20(2[4-9]|[3-9]\d)");
        for line in [up, date, format!(r"\[{vm}\] guest: command ended with 0")] {
            anyhow::ensure!(
                regex::Regex::new(&line)?.is_match(console),
                "there is no line `{line}`"
            );
        }
    }
    Ok(())
}

fn all_there(console: &str, lines: &[&str]) -> anyhow::Result<()> {
    for line in lines {
        anyhow::ensure!(console.contains(line), "there is no line with `{line}`");
    }
    Ok(())
}

/// More vCPUs than threads, or as many: they come up, work at the same time, and come up again. The machine is one of those
/// whose report is told.
fn smp(series: &str, manifest: &'static str, machine: [usize; 4]) -> Case {
    let up = format!(
        r"guest: Linux {}\..* on ppc64le is up, 4 CPUs",
        regex::escape(series)
    );
    let threads = SMP[machine[1]];
    let name = format!(
        "Linux {series} with 4 vCPUs on {threads} threads works on all of them, and reboots"
    );
    let mut case = reported(Case::new(BOARD, name), machine)
        .bundle(Bundle::Manifest(manifest))
        .expect(&[&up, "/ # "])
        .types(STORM)
        .expect(&["storm-(11|22|33|44)"; 4])
        .expect(&["^4\r?$"])
        // What is typed interrupts the guest, which need not ask for it.
        .types("grep hvc /proc/interrupts\r")
        .expect(&[r": +(0 +)*[1-9]\d* .*hvc_console"])
        // System resets reach the others, which show where they are and go on.
        .types("echo l > /proc/sysrq-trigger; echo back-$(dmesg | grep -c 'NMI backtrace for')\r")
        .expect(&["back-4", "/ # "])
        .types("reboot\r")
        .expect(&["vm linux: reset", &up, "/ # "]);
    case.forbids
        .extend(["Oops", "rcu: INFO", "LOCKUP", "BUG:"].map(str::to_owned));
    case
}

/// As on Arm: each has the keyboard in turn, and the monitor stops, starts and shows.
fn two() -> Case {
    let prompt = |vm: &str| format!(r"\[{vm}\] / # ");
    let (one, two) = (prompt("one"), prompt("two"));
    let mut case = Case::new(
        BOARD,
        "two Linux VMs on one terminal are typed to, stopped and started",
    )
    .bundle(Bundle::Manifest(TWO))
    .one_thread()
    .expect(&[&one])
    .types("echo o-$((6*7))\r")
    .expect(&[r"\[one\] o-42"])
    .types("\x1d2")
    .expect(&[r"\[two\] has the keyboard", &two])
    .types("echo t-$((6*7)) $(uname -r)\r")
    .expect(&[r"\[two\] t-42 6\.1\."])
    .types(MONITOR)
    .asks("list", &[" 1 one +running +2 ", " 2 two +running +2 "])
    .asks("vcpu one 0", &["vCPU 0: .* core 0", " nip [0-9a-f]{16}"])
    .asks("vcpu two 1", &["vCPU 1: .* core 1", " nip [0-9a-f]{16}"])
    .asks("vcpu two 2", &["there is no such vCPU"])
    .asks("walk two 400000", &["0x400000 -> 0x.*, level [12]"])
    .asks("walk two 20000000", &["0x20000000 is not mapped"])
    .asks("exits two", &["turn +[1-9]", "call +[1-9]"])
    .asks("smmu", &["LIOBN 0x80000000: locked"])
    .asks("frames", &["frames of 4 KiB free"])
    .asks("restart two", &["two: running"])
    .asks("stop two", &["two: stopped"])
    .asks("stop two", &["two: it is not running"])
    .asks("list", &[" 1 one +running ", " 2 two +stopped "])
    .asks("start two", &["two: running"])
    .asks("frames", &["frames of 4 KiB free"])
    .asks("focus two", &[r"\[two\] has the keyboard", &two])
    .types("poweroff\r")
    .expect(&["vm two: powered off"])
    .types("\x1d1")
    .expect(&[r"\[one\] has the keyboard", &one])
    .types("poweroff -f\r")
    .expect(&["vm one: powered off"]);
    case.timeout = Duration::from_secs(600);
    case.forbids
        .extend([r"\[one\].*t-42".to_owned(), r"\[two\].*o-42".to_owned()]);
    case
}
