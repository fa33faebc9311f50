//! Tests of POWER with the guests of our own: a hostile one, and a neighbour that notices when it is held
//! up. As on Arm, time is counted in instructions, so that a seed says all.

use std::time::Duration;

use super::vms::MONITOR;
use super::{Bundle, Case, Check};
use crate::qemu::Time;
use crate::suite::neighbours;

const BOARD: &str = "pseries";

/// A hostile VM and its neighbour: seed and operations of the one, CPU and options of the other.
macro_rules! manifest {
    ($seed:literal, $ops:literal, $cpu:literal, $options:literal) => {
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"hostile\"\nmemory = \"32M\"\ncpus = 2\npin = [1, 1]\n",
            "kernel = \"guest:hostile\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"seed=",
            $seed,
            " ops=",
            $ops,
            "\"\n[[vm]]\nname = \"heartbeat\"\nmemory = \"32M\"\npin = [",
            $cpu,
            "]\nkernel = \"guest:heartbeat\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"",
            $options,
            "\"\n"
        ))
    };
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        // As on Arm; `--full` has many more.
        hostile(
            "100000 hostile operations, seed 1, the neighbour on another CPU",
            manifest!(1, 100_000, "0", "beats=50 period_us=10000"),
            neighbours::judge,
        ),
        // The vCPUs of the other VM have a turn of 10 ms together.
        hostile(
            "75000 hostile operations, seed 2, the neighbour on the same CPU",
            manifest!(2, 75_000, "1", "beats=12 period_us=50000 limit_us=15000"),
            neighbours::judge,
        ),
        // The control: the same judge, and a neighbour that oversleeps.
        hostile(
            "a neighbour that misses beats is noticed",
            manifest!(3, 2_000, "0", "beats=30 period_us=10000 stall=10"),
            neighbours::judge_must_refuse,
        ),
        doorbells(),
        last_words(),
        clocks(),
        starts_beside_a_neighbour(),
        registers("power9"),
        Case {
            only_full: true,
            ..registers("power10")
        },
    ];
    cases.extend(named());
    cases.push(Case {
        only_full: true,
        ..hostile(
            "1000000 hostile operations, seed 2, the neighbour on the same CPU",
            manifest!(
                2,
                1_000_000,
                "1",
                "beats=150 period_us=50000 limit_us=15000"
            ),
            neighbours::judge,
        )
    });
    cases.extend(wakes());
    let full = [
        manifest!(11, 1_000_000, "0", "beats=500 period_us=10000"),
        manifest!(12, 1_000_000, "0", "beats=500 period_us=10000"),
    ];
    cases.extend(full.into_iter().zip(11..).map(|(bundle, seed)| {
        let name = format!("1000000 hostile operations, seed {seed}");
        Case {
            only_full: true,
            ..hostile(&name, bundle, neighbours::judge)
        }
    }));
    cases
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

/// VMs that take turns on one thread, and plant values in each register that the platform leaves to us: one
/// finds its own and nobody else's, and a VM that starts later on the thread finds none.
fn registers(cpu: &str) -> Case {
    let mut case = Case::new(
        BOARD,
        format!("no register leaks from one VM to another on {cpu}"),
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"one\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:registers\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"seed=1 rounds=20\"\n",
        "[[vm]]\nname = \"two\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:registers\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"seed=2 rounds=60\"\n",
        "[[vm]]\nname = \"three\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:registers\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"seed=3 rounds=20\"\n",
        "start = \"after:one\"\n",
    )))
    .expect(&[
        // Beside its memory a VM takes less than a MiB, and its tables.
        r"vm one: 32 MiB, 1 vCPUs, beside them \d{1,3} KiB of heap and \d\d KiB of tables",
        r"\[one\] registers start: seed=1 stale=0 of 43",
        r"\[two\] registers start: seed=2 stale=0 of 43",
        // The look is able to find something: its own, at the end.
        r"\[one\] registers end: seed=1 taken=[2-4]\d lost=0 control=[2-4]\d",
        r"\[three\] registers start: seed=3 stale=0 of 43",
        r"\[three\] registers end: seed=3 taken=[2-4]\d lost=0 control=[2-4]\d",
        r"\[two\] registers end: seed=2 taken=[2-4]\d lost=0 control=[2-4]\d",
        "verdict 0: all VMs are off",
    ]);
    case.vary.cpu = Some(cpu.to_owned());
    case.vary.time = Time::Instructions;
    case
}

/// QEMU cannot count instructions while a guest rings doorbells, so nobody looks at the clock here; the
/// hypervisor has to stand it.
fn doorbells() -> Case {
    let mut case = Case::new(BOARD, "doorbells that a guest leaves behind reach nobody")
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"hostile\"\nmemory = \"32M\"\ncpus = 2\npin = [1, 1]\n",
            "kernel = \"guest:hostile\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"seed=4 ops=20000 doorbells=1\"\n"
        )))
        .expect(&[
            "hostile end: seed=4 ops=20000 ",
            "verdict 0: all VMs are off",
        ]);
    case.forbids = vec!["EXCEPTION".to_owned(), "PANIC".to_owned()];
    case
}

/// A VM of `guest:platform`.
macro_rules! platform {
    ($name:literal, $task:literal, $more:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"32M\"\nkernel = \"guest:platform\"\nkernel_format = \"elf\"\n",
            "append = \"",
            $task,
            "\"\n",
            $more
        )
    };
}

/// Each hypercall and each run-time service, by name.
fn named() -> Vec<Case> {
    let calls = Case::new(
        BOARD,
        "each hypercall by name does what it is to do, and refuses",
    )
    .bundle(Bundle::Manifest(platform!(
        "calls",
        "calls",
        "restart = \"never\"\n"
    )))
    .expect(&[
        "platform ok: H_SET_SPRG0",
        "platform ok: H_PAGE_INIT",
        "platform ok: H_LOGICAL_CI_LOAD",
        "platform ok: H_LOGICAL_CI_STORE",
        "put it:",
        "platform ok: H_REGISTER_VPA",
        "platform ok: H_GET_CPU_CHARACTERISTICS",
        "platform ok: H_HOME_NODE_ASSOCIATIVITY",
        "platform ok: H_RANDOM",
        "platform verdict: calls ok=25 failed=0",
        "verdict 0: all VMs are off",
    ]);
    let mut services = Case::new(
        BOARD,
        "each run-time service by name does what it is to do, and refuses",
    )
    .bundle(Bundle::Manifest(platform!(
        "services",
        "services",
        "cpus = 2\nrestart = \"never\"\n"
    )))
    .expect(&[
        "shown",
        "platform ok: display-character",
        "platform ok: get-time-of-day",
        "platform ok: set-time-of-day",
        "platform ok: start-cpu, stop-self",
        "platform ok: ibm,get-system-parameter",
        "platform ok: check-exception",
        "platform ok: event-scan",
        "platform verdict: services ok=12 failed=0",
        "verdict 0: all VMs are off",
    ]);
    services.forbids.push("platform FAILED".to_owned());
    let control = Case::new(
        BOARD,
        "an expectation of the platform's that is wrong is noticed",
    )
    .bundle(Bundle::Manifest(platform!(
        "calls",
        "calls wrong=1",
        "restart = \"never\"\n"
    )))
    .expect(&[
        "platform FAILED: the control: an expectation that is wrong: 0",
        "platform verdict: wrong ok=0 failed=1",
    ]);
    vec![calls, services, control]
}

/// Guests that give up: their last words are cut, made printable and one line; a VM that has failed stays so,
/// whatever its policy for resets, and who waits for its end starts.
fn last_words() -> Case {
    let mut case = Case::new(
        BOARD,
        "ibm,os-term: last words reach the log, bounded and printable, and the VM fails",
    )
    .bundle(Bundle::Manifest(concat!(
        platform!("long", "die", "restart = \"always\"\n"),
        platform!("short", "die end=1", "restart = \"always\"\nstart = \"after:long\"\n"),
        platform!("none", "die end=2", "restart = \"always\"\nstart = \"after:short\"\n"),
    )))
    .expect(&[
        r"ERROR .*vm long: vCPU 0 at 0x[0-9a-f]+, msr 0x[0-9a-f]+: its operating system gave up: \?\?bulkhead: verdict 0: all is well\?\?\?\[2Jx{40}: the VM is stopped",
        "vm long: failed",
        r"ERROR .*vm short: .*its operating system gave up: \?\?bulkhead: verd: the VM is stopped",
        "vm short: failed",
        "ERROR .*vm none: .*its operating system gave up: : the VM is stopped",
        "vm none: failed",
        "verdict 0: all VMs are off",
    ]);
    case.forbids = vec![
        "PANIC|EXCEPTION".to_owned(),
        r"^bulkhead: verdict 0: all is well".to_owned(),
    ];
    case
}

/// What VTB, PURR and SPURR tell a guest is what its time base tells it, no more and no less: the platform does
/// not switch them. When it does some day, this test says so.
fn clocks() -> Case {
    let mut case = Case::new(
        BOARD,
        "registers that count time say no more of other VMs than the time base does",
    )
    .bundle(Bundle::Manifest(concat!(
        platform!("one", "clocks ms=100", "pin = [0]\nrestart = \"never\"\n"),
        platform!("two", "clocks ms=200", "pin = [0]\nrestart = \"never\"\n"),
    )))
    .expect(&[
        // The other one had the thread for whole slices; a register that had stood still is told apart.
        r"\[one\] platform verdict: clocks vtb=the-time-base purr=the-time-base spurr=the-time-base ic=0 control=its-own away_us=[1-9]\d{3,}",
        r"\[two\] platform verdict: clocks vtb=the-time-base purr=the-time-base spurr=the-time-base ic=0 control=its-own away_us=[1-9]\d{3,}",
        "verdict 0: all VMs are off",
    ]);
    case.vary.time = Time::Instructions;
    case
}

/// A CPU that waits and has its thread for itself sleeps on it, and one that has not leaves it: either way what ends the
/// wait may come at any moment.
fn wakes() -> [Case; 2] {
    let case = |name, manifest, verdict: &str| {
        Case::new(BOARD, name)
            .bundle(Bundle::Manifest(manifest))
            .expect(&[verdict, "verdict 0: all VMs are off"])
    };
    [
        case(
            "no end of a wait gets lost: a vCPU a CPU",
            platform!(
                "wakes",
                "wakes rounds=10000",
                "cpus = 2\npin = [0, 1]\nrestart = \"never\"\n"
            ),
            r"platform verdict: wakes rounds=10000 waits=\d{5,} lost=0",
        ),
        case(
            "no end of a wait gets lost: two vCPUs on one CPU",
            platform!(
                "wakes",
                "wakes rounds=4000",
                "cpus = 2\npin = [1, 1]\nrestart = \"never\"\n"
            ),
            r"platform verdict: wakes rounds=4000 waits=\d{4,} lost=0",
        ),
    ]
}

/// The disk's reset takes 100 ms, in which the neighbour on the same CPU has its turns.
fn starts_beside_a_neighbour() -> Case {
    let mut case = Case::new(
        BOARD,
        "a VM whose disk is reset when it starts does not hold up its CPU",
    )
    .bundle(Bundle::Manifest(concat!(
        platform!(
            "disk",
            "clocks ms=100000",
            "pin = [1]\nrestart = \"never\"\ndevices = [ { host = \"phb:800000020000000\" } ]\n"
        ),
        "[[vm]]\nname = \"heartbeat\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:heartbeat\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\n",
        "append = \"beats=50 period_us=20000 limit_us=40000\"\n",
    )))
    .expect(&["beat 3"])
    .types(MONITOR)
    .asks("restart disk", &["disk: running"])
    .asks("restart disk", &["disk: running"])
    .expect(&[r"heartbeat end: beats=50 longest_gap_us=\d+ latest_us=\d+ missed=0"])
    .asks("quit", &["verdict 0: the monitor was told to quit"]);
    case.vary.time = Time::Instructions;
    case
}
