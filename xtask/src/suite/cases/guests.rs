//! Tests with the guests of our own: a hostile one, and a neighbour that notices when it is held up.
//!
//! Time is counted in instructions, so that a seed says all: the same run comes again, on any machine.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Bundle, Case, Check};
use crate::qemu::Time;
use crate::suite::neighbours;

const BOARD: &str = "virt";

/// The manifest of a hostile VM and its neighbour: seed and operations of the one, CPU and options of the
/// other.
macro_rules! manifest {
    ($seed:literal, $ops:literal, $cpu:literal, $options:expr) => {
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"hostile\"\nmemory = \"64M\"\ncpus = 4\npin = [0, 0, 0, 0]\n",
            "kernel = \"guest:hostile\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"seed=",
            $seed,
            " ops=",
            $ops,
            "\"\n[[vm]]\nname = \"heartbeat\"\nmemory = \"32M\"\npin = [",
            $cpu,
            "]\nkernel = \"guest:heartbeat\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"",
            $options,
            "\"\n"
        ))
    };
}

/// On a CPU of its own a beat is missed when it comes a period late. A million operations take 2.3 s of
/// the machine's time; the beats are to last longer.
macro_rules! apart {
    ($seed:literal, $ops:literal, $beats:literal) => {
        manifest!(
            $seed,
            $ops,
            "1",
            concat!("beats=", $beats, " period_us=10000")
        )
    };
}

/// A hostile VM that does not end, and a Linux on the same two CPUs that counts so many seconds.
macro_rules! linux {
    ($start:literal, $seconds:literal) => {
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"hostile\"\nmemory = \"64M\"\ncpus = 4\npin = [0, 1, 0, 1]\n",
            "kernel = \"guest:hostile\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"seed=7 ops=1000000000\"\nstart = \"",
            $start,
            "\"\n",
            "[[vm]]\nname = \"linux\"\nmemory = \"160M\"\ncpus = 2\npin = [0, 1]\nkernel = \"debian:6.12\"\n",
            "initrd = \"initramfs\"\nrestart = \"never\"\n",
            "append = \"console=ttyAMA0 loglevel=5 bulkhead.run=seq+",
            $seconds,
            "|while+read+i;do+sleep+1;echo+second+$i;done\"\n"
        ))
    };
}

pub(super) fn cases() -> Vec<Case> {
    let apart = |name: &str, bundle| hostile(name, bundle, neighbours::judge);
    let mut cases = vec![
        // So many that each kind of operation comes in every state the VM can be in; `--full` has many more.
        apart(
            "200000 hostile operations, seed 1, the neighbour on another CPU",
            apart!(1, 200_000, 100),
        ),
        // The four vCPUs of the other VM have a turn of 10 ms together.
        hostile(
            "150000 hostile operations, seed 2, the neighbour on the same CPU",
            manifest!(2, 150_000, "0", "beats=16 period_us=50000 limit_us=15000"),
            neighbours::judge,
        ),
        // The control: the same judge, and a neighbour that oversleeps.
        hostile(
            "a neighbour that misses beats is noticed",
            manifest!(3, 10_000, "1", "beats=20 period_us=10000 stall=10"),
            neighbours::judge_must_refuse,
        ),
    ];
    cases.push(hidden());
    cases.push(locks());
    // The other one is started once Linux is up: to boot beside it takes several times as long, and is in `--full`.
    let case = Case::new(
        BOARD,
        "Linux keeps time beside a hostile guest on its two CPUs",
    )
    .bundle(linux!("manual", "3"))
    .expect(&[UP])
    .types("\x1dm")
    .asks("start hostile", &[r"\[hostile\] hostile start: seed=7"]);
    cases.push(beside_linux(case, 2..=3));
    cases.push(Case {
        only_full: true,
        ..beside_linux(
            Case::new(
                BOARD,
                "Linux boots and keeps time for a minute beside a hostile guest on its two CPUs",
            )
            .bundle(linux!("boot", "60"))
            .expect(&[r"\[hostile\] hostile start: seed=7", UP]),
            1..=60,
        )
    });
    cases.push(Case {
        only_full: true,
        ..apart(
            "1000000 hostile operations, seed 2, the neighbour on the same CPU",
            manifest!(
                2,
                1_000_000,
                "0",
                "beats=100 period_us=50000 limit_us=15000"
            ),
        )
    });
    let full = [
        apart!(11, 1_000_000, 700),
        apart!(12, 1_000_000, 700),
        apart!(13, 1_000_000, 700),
        apart!(14, 1_000_000, 700),
    ];
    cases.extend(full.into_iter().zip(11..).map(|(bundle, seed)| Case {
        only_full: true,
        ..apart(&format!("1000000 hostile operations, seed {seed}"), bundle)
    }));
    cases
}

const UP: &str = r"\[linux\] guest: Linux .* is up, 2 CPUs";

/// On the wall clock: two CPUs run at once.
fn beside_linux(mut case: Case, seconds: RangeInclusive<u32>) -> Case {
    for second in seconds {
        case = case.expect(&[&format!(r"\[linux\] second {second}\b")]);
    }
    let mut case = case
        .expect(&[r"\[linux\] guest: command ended with 0"])
        .until_expected();
    case.forbids = vec![
        r"^\[ *\d+\.\d+\] ERROR ".to_owned(),
        "hostile lost: ".to_owned(),
        r"\[linux\] .*(stall|soft lockup|BUG|Oops|Call trace)".to_owned(),
    ];
    case.timeout = Duration::from_secs(600);
    case
}

/// What the identification registers hide is undefined, and what they show of debugging works, on a CPU that
/// has everything.
fn hidden() -> Case {
    Case::new(BOARD, "features that a guest is not shown are undefined")
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"hidden\"\nmemory = \"32M\"\nkernel = \"guest:hidden\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\n"
        )))
        .args(&["-M", "virt,mte=on"])
        .expect(&[
            // The control: the CPU has what the guest is not to see.
            "boot cpu: .* sve ras pauth gic-sysregs pmu",
            "hidden PMU PMCR_EL0: undefined",
            "hidden SVE PTRUE: undefined",
            "hidden field PMU: 0",
            "shown breakpoint: it stops",
            "shown step: it ends behind a load that traps",
            "^hidden end: 0 wrong",
        ])
}

/// Two VMs that take turns on one CPU; one locks debug exceptions out.
fn locks() -> Case {
    macro_rules! vm {
        ($name:literal, $locked:literal) => {
            concat!(
                "[[vm]]\nname = \"",
                $name,
                "\"\nmemory = \"32M\"\npin = [0]\ntime_slice_us = 1000\nkernel = \"guest:hidden\"\n",
                "kernel_format = \"flat\"\nrestart = \"never\"\nappend = \"locks=20 locked=",
                $locked,
                "\"\n"
            )
        };
    }
    let mut case = Case::new(
        BOARD,
        "locks over debug exceptions are a VM's own on a common CPU",
    )
    .bundle(Bundle::Manifest(concat!(
        vm!("open", "0"),
        vm!("shut", "1")
    )))
    .expect(&["verdict 0: all VMs are off"]);
    case.check = Check::Judged(both_keep_their_locks);
    case
}

/// Either may be the first to end.
fn both_keep_their_locks(console: &str) -> anyhow::Result<()> {
    for told in [
        "[open] hidden locks: 20 rounds with 0, 0 wrong",
        "[shut] hidden locks: 20 rounds with 1, 0 wrong",
    ] {
        anyhow::ensure!(console.contains(told), "`{told}` was not seen");
    }
    Ok(())
}

fn hostile(name: &str, bundle: Bundle, judge: fn(&str) -> anyhow::Result<()>) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle).expect(&[
        "hostile start: seed=",
        "hostile end: seed=",
        "heartbeat end: ",
    ]);
    case.vary.time = Time::Instructions;
    // What the hostile guest writes to its console is anything.
    case.forbids = vec![
        r"^\[ *\d+\.\d+\] ERROR ".to_owned(),
        "hostile lost: ".to_owned(),
    ];
    case.timeout = Duration::from_secs(1200);
    case.check = Check::Judged(judge);
    case
}
