//! Tests of QEMU's POWER machine.

use std::time::Duration;

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

/// The report is true for every CPU model, CPU count and firmware.
fn reports() -> Vec<Case> {
    const CPUS: [(&str, &str); 2] = [("power9", "PVR 0x004e"), ("power10", "PVR 0x0080")];
    const SMP: [u32; 3] = [1, 2, 4];
    const FIRMWARE: [(&str, &str); 2] = [
        ("vof", "by firmware in the platform"),
        ("slof", "by firmware at 0x"),
    ];
    const MEMORY: [(&str, &str); 2] = [("2G", "2 GiB"), ("8G", "8 GiB")];
    sampled(&[CPUS.len(), SMP.len(), FIRMWARE.len(), MEMORY.len()])
        .into_iter()
        .map(|(row, only_full)| {
            let (cpu, pvr) = CPUS[row[0]];
            let smp = SMP[row[1]];
            let (firmware, entered) = FIRMWARE[row[2]];
            let (memory, size) = MEMORY[row[3]];
            let name = format!("report on {cpu}, smp {smp}, {firmware}, {memory}");
            let mut case = Case::new(BOARD, name);
            case.expects = vec![
                format!("Bulkhead .* on POWER, .*{pvr}"),
                entered.to_owned(),
                "LIOBN 0x80000000: .* cleared: no device reaches memory".to_owned(),
                format!("memory: 0x0-0x[0-9a-f]+, {size}"),
                "nested: guests run by H_ENTER_NESTED".to_owned(),
                format!("cpus: {smp} online of {smp}"),
                "nvme BAR0 ".to_owned(),
                "report: complete".to_owned(),
            ];
            case.vary.cpu = Some(cpu.to_owned());
            case.vary.smp = Some(smp);
            case.vary.firmware = Some(firmware.to_owned());
            case.vary.memory = Some(memory.to_owned());
            case.only_full = only_full;
            case
        })
        .collect()
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
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"512M\"\ncpus = 4\nkernel = \"debian:",
            $kernel,
            "\"\ninitrd = \"initramfs\"\nappend = \"console=hvc0 quiet\"\n"
        )
    };
}
/// Two Linux VMs with two vCPUs each.
const TWO: &str = include_str!("../../../../qemu/guests/two-vms-pseries.toml");
/// Four processes that start many others at the same time, which every vCPU takes part in.
const STORM: &str = "for j in 1 2 3 4; do (k=0; while [ $k -lt 60 ]; do k=$((k+1)); /bin/true; done; \
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
    vec![
        one,
        smp("6.12", smp!("6.12"), 2, None),
        smp("6.1", smp!("6.1"), 4, Some("power10")).one_thread(),
        two(),
        Case {
            only_full: true,
            ..smp("6.12", smp!("6.12"), 1, Some("power10"))
        },
        Case {
            only_full: true,
            ..smp("6.12", smp!("6.12"), 4, None)
        },
        panic(),
    ]
}

/// The run ends well: the hypervisor is not at fault. Debian's 6.12 names no last words (address 0).
fn panic() -> Case {
    let mut case = Case::new(
        BOARD,
        "a Linux that panics fails its VM, and the log says so",
    )
    .bundle(Bundle::OfBoard)
    // Its other CPU is told by a system reset, or it would wait for that one for hours.
    .one_thread()
    .expect(&["/ # "])
    .types("echo c > /proc/sysrq-trigger\r")
    .expect(&[
        "sysrq triggered crash",
        "ERROR .*vm linux: .*its operating system gave up: .*: the VM is stopped",
        "vm linux: failed",
        "verdict 0: all VMs are off",
    ]);
    case.forbids.clear();
    case
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

/// 1, 2 and 4 vCPUs over 1, 2 and 4 threads; CPU models, firmwares, kernels: every two of these meet, with the
/// other tests here. A machine runs three VMs at a time.
fn matrix() -> Vec<Case> {
    type Judge = fn(&str) -> anyhow::Result<()>;
    const OLD_NEW_OLD: (&str, Judge) = (three!("6.1", "6.12", "6.1"), |console| {
        three_up(console, ["1", "12", "1"])
    });
    const NEW_OLD_NEW: (&str, Judge) = (three!("6.12", "6.1", "6.12"), |console| {
        three_up(console, ["12", "1", "12"])
    });
    let machines = [
        (1, "power10", "vof", OLD_NEW_OLD),
        (2, "power10", "slof", NEW_OLD_NEW),
        (4, "power9", "slof", OLD_NEW_OLD),
    ];
    let cases = machines
        .into_iter()
        .map(|(threads, cpu, firmware, (manifest, judge))| {
            let mut case = Case::new(
                BOARD,
                format!(
                    "Linux with 1, 2 and 4 vCPUs on {threads} threads of {cpu} under {firmware}"
                ),
            )
            .bundle(Bundle::Manifest(manifest))
            // What sees to it that slices end was tried first.
            .expect(&[match threads {
                1 => "nested: a slice that was over before it began ended at once",
                _ => "nested: a guest whose slice was lost was made to leave",
            }])
            .expect(&["verdict 0: all VMs are off"]);
            case.check = Check::Judged(judge);
            case.vary.smp = Some(threads);
            // With two threads they really run at once.
            if threads == 4 {
                case.vary.threads = Threads::One;
            }
            case.vary.cpu = Some(cpu.to_owned());
            case.vary.firmware = Some(firmware.to_owned());
            case.timeout = Duration::from_secs(600);
            // Linux says errors and warnings too.
            case.forbids = ["Oops", "rcu: INFO", "LOCKUP", "BUG:"]
                .map(str::to_owned)
                .into();
            case
        });
    cases.collect()
}

/// All three have come up with their vCPUs and kernels, and have run their command.
fn three_up(console: &str, series: [&str; 3]) -> anyhow::Result<()> {
    for ((vm, cpus), series) in [("one", 1), ("two", 2), ("four", 4)].iter().zip(series) {
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

/// More vCPUs than threads, or as many: they come up, work at the same time, and come up again.
fn smp(series: &str, manifest: &'static str, threads: u32, cpu: Option<&str>) -> Case {
    let up = format!(
        r"guest: Linux {}\..* on ppc64le is up, 4 CPUs",
        regex::escape(series)
    );
    let mut case = Case::new(
        BOARD,
        format!(
            "Linux {series} with 4 vCPUs on {threads} threads works on all of them, and reboots"
        ),
    )
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
    .types("reboot -f\r")
    .expect(&["vm linux: reset", &up, "/ # "])
    .types("poweroff -f\r")
    .expect(&["vm linux: powered off", "verdict 0: all VMs are off"]);
    case.vary.smp = Some(threads);
    case.vary.cpu = cpu.map(str::to_owned);
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
    .types("poweroff -f\r")
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
