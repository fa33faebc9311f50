//! Tests of DMA on POWER, with a guest of our own that has QEMU's `edu` do anything.
//!
//! Time is counted in instructions, as on Arm. Each `edu` is behind a host bridge of its own: the board's
//! first one has the disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use regex::Regex;

use super::vms::MONITOR;
use super::{Bundle, Case, Check};

const BOARD: &str = "pseries";

/// A VM with the guest of this file: its name, its task, its CPU, its host bridge.
macro_rules! vm {
    ($name:literal, $task:literal, $cpu:literal, $bridge:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"32M\"\npin = [",
            $cpu,
            "]\n",
            "kernel = \"guest:dma\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"",
            $task,
            " phb=",
            $bridge,
            "\"\n",
            "devices = [ { host = \"phb:80000002000000",
            $bridge,
            "\" } ]\n"
        )
    };
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        sweep(),
        forge(),
        flood(),
        peers(),
        orphaned(),
        in_turn(),
        drained(),
        stormed(),
        raced(),
        reassigned("forty", 40),
        Case {
            only_full: true,
            ..reassigned("a hundred", 100)
        },
        assigned(),
    ]
}

/// The guest as a VM, with devices behind host bridges 1 and 2.
fn case(name: &str, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle).edus_on_bridges(2);
    case.forbids.push("FAILED|unasked".to_owned());
    case.timeout = Duration::from_secs(600);
    case
}

/// With what it may reach as the control, and a neighbour that looks at its own.
fn sweep() -> Case {
    case(
        "entries and DMA to everywhere reach a VM's own memory only",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=180", "1", "2"),
            vm!("sweep", "sweep", "0", "1"),
        )),
    )
    .expect(&[
        r"dma verdict: sweep ok: control=4096 entries_refused=\d{5} reads_refused=4\d writes_refused=4\d",
        r"dma verdict: watch ok: beats=180 latest_us=\d+ memory_kib=32768 forged=0",
        "verdict 0: all VMs are off",
    ])
}

/// What this platform lets a device do to others is an interrupt more, so often and no more.
fn forge() -> Case {
    case(
        "forged messages reach a device's own VM, or are an interrupt more for their owner",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=80", "1", "2"),
            vm!("forge", "forge times=10", "0", "1"),
        )),
    )
    .expect(&[
        "dma verdict: forge ok: own=2 platform=4 terminal=10240 others=10240 strange=0",
        // At least once each time; what comes at once is one.
        r"dma verdict: watch ok: beats=80 latest_us=\d+ memory_kib=32768 forged=[12]\d(\D|$)",
        "verdict 0: all VMs are off",
    ])
}

/// A device that interrupts without end is heard 256 times in 10 ms, and nothing of the last is lost.
fn flood() -> Case {
    case(
        "a device that floods with messages is moderated, and heard again",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=12 period_us=50000", "1", "2"),
            vm!("flood", "flood us=60000 most=1900", "0", "1"),
        )),
    )
    .expect(&[
        r"dma verdict: flood ok: sent=\d{5,} came=1\d{3} late=1",
        "dma verdict: watch ok: .* forged=0",
        "verdict 0: all VMs are off",
    ])
}

/// Registers of devices by DMA of others: two VMs with two devices each, of which one has the grant.
fn peers() -> Case {
    let mut case = Case::new(
        BOARD,
        "with p2p DMA reaches registers of the VM's own devices, without it and of other VMs' none",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"granted\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\n",
        "append = \"peer phb=1 other=2 foreign=4 granted=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" }, { host = \"phb:800000020000002\", p2p = true } ]\n",
        "[[vm]]\nname = \"plain\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\n",
        "append = \"peer phb=3 other=4 foreign=2 granted=0\"\n",
        "devices = [ { host = \"phb:800000020000003\" }, { host = \"phb:800000020000004\" } ]\n",
    )))
    .edus_on_bridges(4);
    case.forbids.push("FAILED|unasked|p2p:".to_owned());
    case.timeout = Duration::from_secs(300);
    case.check = Check::Judged(both_peers);
    case.expect(&["verdict 0: all VMs are off"])
}

/// A device whose registers others of its VM may reach is taken away, and given back.
fn orphaned() -> Case {
    let mut case = case(
        "with p2p nothing leads to registers of a device that is taken away, and what is beside them stays",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"granted\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"orphan phb=1 other=2\"\n",
            "devices = [ { host = \"phb:800000020000001\" }, { host = \"phb:800000020000002\", p2p = true } ]\n",
        )),
    )
    .expect(&["dma orphan: both entries lead to the other device's registers"])
    .types(MONITOR)
    .asks("devices granted", &[r"audit: [1-9]\d* entries looked at, 0 wrong"])
    .asks(
        "unplug granted 800000020000002",
        &["dma orphan: nothing leads to registers that are away"],
    )
    .asks("devices granted", &[r"audit: [1-9]\d* entries looked at, 0 wrong"])
    .asks(
        "plug granted 800000020000002",
        &["dma verdict: orphan ok: reached=2 gone=2 kept=1 again=1"],
    )
    .asks("quit", &["verdict 0"]);
    case.forbids.push("[1-9][0-9]* wrong".to_owned());
    case.timeout = Duration::from_secs(60);
    case
}

/// In whichever order they end.
fn both_peers(console: &str) -> Result<()> {
    for line in [
        "dma verdict: peer ok: refused=1",
        "dma verdict: peer ok: read=2 written=1 silent=1 foreign=3",
    ] {
        ensure!(console.contains(line), "there is no line `{line}`");
    }
    Ok(())
}

/// A VM that writes lists without a pause, and one whose single entries get their turn.
fn in_turn() -> Case {
    let mut case = case(
        "entries of a VM get their turn beside one that writes lists without a pause",
        Bundle::Manifest(concat!(
            vm!("lists", "lists", "0", "1"),
            vm!("puts", "puts us=250000", "1", "2"),
        )),
    )
    .expect(&[r"dma verdict: puts ok: calls=\d{4,} longest_us=\d{1,4} "])
    .types(MONITOR)
    .asks("quit", &["verdict 0"]);
    case.timeout = Duration::from_secs(60);
    case
}

/// A VM with as many chunks of entries as it may have, and then all messages: what others need is there, and
/// all of it afterwards.
fn drained() -> Case {
    let mut case = case(
        "a VM that takes entries until they are refused takes nothing that others need",
        Bundle::Manifest(concat!(
            vm!("drain", "drain", "0", "1"),
            "start = \"manual\"\n",
            "[[vm]]\nname = \"plain\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:heartbeat\"\n",
            "kernel_format = \"elf\"\nrestart = \"never\"\n",
            // Until the end.
            "append = \"beats=1000000 period_us=10000 limit_us=1000000000\"\n",
            vm!("puts", "puts us=400000", "1", "2"),
            "start = \"manual\"\n",
        )),
    )
    .args(&["-device", "nvme,serial=many,msix_qsize=200,bus=p1.0,addr=2"])
    .expect(&[r"\[plain\] "])
    .types(MONITOR)
    .asks("frames", &["frames of 4 KiB free"]);
    for _ in 0..2 {
        case = case
            // Of three host bridges each has a third of 24 MiB.
            .asks(
                "start drain",
                &[r"dma drain: 6\d\d chunks, \d{2,3} messages"],
            )
            .asks("restart plain", &["plain: running"])
            .asks("start puts", &["dma start: puts"])
            // The other's calls have their turn while the monitor looks at all of these: without it one takes 160 ms
            // with checks.
            .asks(
                "devices drain",
                &[
                    r"audit: [1-9]\d{5} entries looked at, 0 wrong",
                    r"dma verdict: puts ok: calls=\d+ longest_us=[1-3]?\d{1,4} ",
                ],
            )
            .asks("stop drain", &["drain: stopped"])
            .asks("frames", &["frames of 4 KiB free"]);
    }
    case = case.asks("quit", &["verdict 0"]);
    case.forbids = vec![r"\] (ERROR|WARN)  |PANIC|EXCEPTION|FAILED".to_owned()];
    case.check = Check::Judged(same_frames);
    case.timeout = Duration::from_secs(60);
    case
}

/// A VM that makes and removes windows and handles errors without a pause, beside one that must notice nothing.
fn stormed() -> Case {
    let mut case = case(
        "storms of services for windows and errors cost a neighbour nothing, and the log little",
        Bundle::Manifest(concat!(
            // Its own DMA would make it late: the tenth beat has one.
            vm!("watch", "watch beats=5 period_us=50000", "1", "2"),
            vm!("storm", "services us=375000", "0", "1"),
        )),
    )
    .expect(&[
        r"dma verdict: watch ok: beats=5 latest_us=\d{1,3} memory_kib=32768 forged=0",
        r"dma verdict: services ok: done=\d{4,} refused=\d{3,}",
        "verdict 0: all VMs are off",
    ]);
    case.check = Check::Judged(few_lines);
    case.timeout = Duration::from_secs(100);
    case
}

/// The storm lasts for less than half a second, and may cause 32 lines a second.
fn few_lines(console: &str) -> Result<()> {
    let told = console.matches("vm 1: ibm,").count();
    ensure!((20..=68).contains(&told), "{told} lines tell of calls");
    Ok(())
}

/// How often the VM of the race is stopped in the middle of its lists.
const STOPS: usize = 3;

/// Windows go while another CPU writes lists to them and a DMA to them is under way; and the VM goes while it does that.
fn raced() -> Case {
    let mut case = Case::new(
        BOARD,
        "windows go, and a VM goes, in the middle of lists of another CPU and with a DMA under way, and nothing is left",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"race\"\nmemory = \"32M\"\ncpus = 2\npin = [0, 1]\n",
        "kernel = \"guest:dma\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
        "append = \"race phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
        "[[vm]]\nname = \"next\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"linger phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\nstart = \"manual\"\n",
    )))
    // Behind a bridge, whose bus is reset: the device has no reset of its own.
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "pci-bridge,id=b1,chassis_nr=1,shpc=off,bus=p1.0"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=b1,addr=1"])
    .expect(&[r"dma race: [1-9]\d* windows went before their DMA, [1-9]\d{2,} lists in time"])
    .types(MONITOR)
    .asks("log warn", &[]);
    for stop in 0..STOPS {
        case = case
            .asks("devices race", &[r"audit: \d+ entries looked at, 0 wrong"])
            .asks("stop race", &["race: stopped"])
            .asks("frames", &["frames of 4 KiB free"])
            .asks("devices race", &["audit: 0 entries looked at, 0 wrong"]);
        if stop == 0 {
            // The next one reads every entry back, and looks whether anything arrives.
            case = case
                .asks(
                    "start next",
                    &["dma linger: nothing is left of before, a DMA is under way"],
                )
                .asks("stop next", &["next: stopped"]);
        }
        case = case.asks(
            "start race",
            &[r"dma race: [1-9]\d* windows went before their DMA, [1-9]\d{2,} lists in time"],
        );
    }
    case = case.asks("quit", &["verdict 0"]);
    case.forbids = vec![
        r"\] WARN  |PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case.check = Check::Judged(same_frames);
    case.timeout = Duration::from_secs(200);
    case
}

/// Calls that change how many messages a device has, and those that do not; and what a guest does to a bridge.
fn assigned() -> Case {
    let mut case = Case::new(
        BOARD,
        "messages are asked for and refused without a loss, as many as there are sources, and a bridge goes on forwarding",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"assign\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"assign phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
    )))
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "pci-bridge,id=b1,chassis_nr=1,shpc=off,bus=p1.0,addr=0"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=b1,addr=1"])
    .args(&["-device", "nvme,serial=many,msix_qsize=200,bus=p1.0,addr=2"])
    .expect(&[
        r"dma verdict: assign ok: messages=1[0-2]\d\r?$",
        "verdict 0: all VMs are off",
    ]);
    case.forbids = vec![r"\] (ERROR|WARN)  |PANIC|EXCEPTION|FAILED".to_owned()];
    case.timeout = Duration::from_secs(60);
    case
}

/// A VM that is stopped in the middle of what it does to its windows, and another that gets them; so many `turns`, an
/// even number.
fn reassigned(often: &str, turns: usize) -> Case {
    let mut case = Case::new(
        BOARD,
        format!("a host bridge changes hands {often} times in the middle of lists and DMA, and nothing is left"),
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"a\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"linger phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
        "[[vm]]\nname = \"b\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"linger phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\nstart = \"manual\"\n",
    )))
    // Behind a bridge, whose bus is reset: the device has no reset of its own.
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "pci-bridge,id=b1,chassis_nr=1,shpc=off,bus=p1.0"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=b1,addr=1"]);
    let going = "dma linger: nothing is left of before, a DMA is under way";
    case = case.expect(&[going]).types(MONITOR).asks("log warn", &[]);
    // While the first has it, the second does not start.
    case = case.asks("start b", &["phb:800000020000001 is in use by another VM"]);
    for turn in 0..turns {
        let (from, to) = if turn % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        if turn % 10 == 2 {
            case = case.asks(
                &format!("devices {from}"),
                &[r"audit: [1-9]\d* entries looked at, 0 wrong"],
            );
        }
        case = case
            .asks(&format!("stop {from}"), &[&format!("{from}: stopped")])
            .asks("frames", &["frames of 4 KiB free"])
            .asks(
                &format!("devices {from}"),
                &["audit: 0 entries looked at, 0 wrong"],
            )
            .asks(&format!("start {to}"), &[&format!(r"\[{to}\] {going}")]);
    }
    case = case
        .asks(
            "list",
            &[
                &format!(" a +running .* {} ", turns / 2 + 1),
                &format!(" b +stopped .* {} ", turns / 2),
            ],
        )
        .asks("quit", &["verdict 0"]);
    case.forbids = vec![
        r"\] WARN  |PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case.check = Check::Judged(same_frames);
    case.timeout = Duration::from_secs(400);
    case
}

/// From when each VM has had the bridge once, which is at the second stop, the same is free whenever nobody has it.
fn same_frames(console: &str) -> Result<()> {
    let frames = Regex::new(r"(\d+) of \d+ frames of 4 KiB free, heap: (\d+) of")?;
    let all = frames.captures_iter(console);
    let mut all = all.map(|found| (found[1].to_owned(), found[2].to_owned()));
    let first = all.nth(1);
    let last = all.last();
    ensure!(
        first.is_some() && first == last,
        "free at first {first:?}, at last {last:?}"
    );
    Ok(())
}
