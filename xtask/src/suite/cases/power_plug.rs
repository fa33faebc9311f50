//! Tests of hot plug on POWER: a host bridge leaves a VM that runs, and comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use regex::Regex;

use super::vms::MONITOR;
use super::{Bundle, Case, Check};

const BOARD: &str = "pseries";
/// Writes the disk.
const WRITE: &str = "devtool use\r";
const WRITTEN: &str = "action use: ok: 1 disks";
/// How often a device is taken away while its registers are read.
const LOADS: usize = 8;
/// Compares.
const READ: &str = "devtool use verify\r";
const SAME: &str = "data is as it was before";

pub(super) fn cases() -> Vec<Case> {
    vec![
        // What is left of one turn is found in the next, or by the audit: more of them are for what comes seldom.
        many_times("twenty", 20, 33),
        Case {
            only_full: true,
            ..many_times("a hundred", 100, 150)
        },
        loads(),
        linux(),
        linux_with_its_own_window(),
    ]
}

/// A VM that reads a register without a pause while its host bridge is taken away, and another CPU does that.
fn loads() -> Case {
    let mut case = Case::new(
        BOARD,
        "a load from a device that is being taken away finds it, or all ones",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"loads\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"loads phb=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
    )))
    .edus_on_bridges(1)
    .expect(&["dma loads: the device answers"])
    .types(MONITOR);
    for _ in 0..LOADS {
        case = case
            .asks(
                "unplug loads 800000020000001",
                &["dma loads: nothing answers"],
            )
            .asks(
                "plug loads 800000020000001",
                &["dma loads: the device answers"],
            );
    }
    case = case.asks("quit", &["verdict 0"]);
    case.forbids = vec![r"\] (ERROR|WARN)  |PANIC|EXCEPTION|FAILED".to_owned()];
    case.timeout = Duration::from_secs(60);
    case
}

/// A VM whose host bridge is taken away while it writes entries with a DMA under way, one that has it meanwhile,
/// and a neighbour. After four fifths of the `turns` the neighbour's `beats` are over, and what is free is the same
/// each time.
fn many_times(often: &str, turns: usize, beats: usize) -> Case {
    let back = r"\[a\] dma plug: nothing is left of before, entries are being written";
    let away = r"\[a\] dma plug: the slot is empty after \d+ rounds";
    let mut case = Case::new(
        BOARD,
        format!("a host bridge is taken away and given back {often} times while entries are written, and nothing is left"),
    )
    .bundle(Bundle::Manifest(format!("{}{}{}", concat!(
        "[[vm]]\nname = \"a\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"plug phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
        "[[vm]]\nname = \"b\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"linger phb=1 bus=1 slot=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\nstart = \"manual\"\n",
        "[[vm]]\nname = \"watch\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"watch beats=",
    ), beats, concat!(
        " phb=2\"\n",
        "devices = [ { host = \"phb:800000020000002\" } ]\n",
    )).leak()))
    // Behind a bridge, whose bus is reset: the device has no reset of its own.
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "pci-bridge,id=b1,chassis_nr=1,shpc=off,bus=p1.0"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=b1,addr=1"])
    .args(&["-device", "spapr-pci-host-bridge,index=2,id=p2"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=p2.0"])
    .expect(&[
        r"\[a\] dma plug: connectors do what they should, and nothing else",
        back,
    ])
    .types(MONITOR)
    .asks("log warn", &[])
    // What is not its, and what is there.
    .asks("unplug a 800000020000002", &["it has no such host bridge"])
    .asks("unplug b 800000020000001", &["it is not running"])
    .asks("plug a 800000020000001", &["it is there already"]);
    for turn in 0..turns {
        if turn % 10 == 2 {
            case = case.asks(
                "devices a",
                &[r"audit: [1-9]\d* entries looked at, 0 wrong"],
            );
        }
        case = case
            // The answer and what the guest says come in any order.
            .asks("unplug a phb:800000020000001", &[away])
            .asks(
                "devices a",
                &[
                    "phb:800000020000001 is taken away",
                    "audit: 0 entries looked at, 0 wrong",
                ],
            );
        if turn % 10 == 5 {
            // Another has it meanwhile, and finds nothing either.
            case = case
                .asks("start b", &[r"\[b\] dma linger: nothing is left of before"])
                .asks(
                    "plug a 800000020000001",
                    &[
                        "phb:800000020000001 is in use by another VM",
                        "that cannot be done",
                    ],
                )
                .asks("stop b", &["b: stopped"]);
        }
        if turn >= turns * 4 / 5 {
            case = case.asks("frames", &["frames of 4 KiB free"]);
        }
        case = case.asks("plug a phb:800000020000001", &[back]);
    }
    case = case
        .asks("list", &[" a +running "])
        .asks("quit", &["verdict 0"]);
    case.forbids = vec![
        r"\] WARN  |PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case.check = Check::Judged(same_frames);
    case.timeout = Duration::from_secs(200);
    case
}

/// Whenever the bridge is away the same is free; the neighbour noticed nothing.
fn same_frames(console: &str) -> Result<()> {
    let frames = Regex::new(r"(\d+) of \d+ frames of 4 KiB free, heap: (\d+) of")?;
    let all = frames.captures_iter(console);
    let mut all = all.map(|found| (found[1].to_owned(), found[2].to_owned()));
    let first = all.next();
    let last = all.last();
    ensure!(
        first.is_some() && first == last,
        "free at first {first:?}, at last {last:?}"
    );
    let rounds = Regex::new(r"the slot is empty after [1-9]\d* rounds")?;
    let busy = rounds.find_iter(console).count();
    let turns = console.matches("phb:800000020000001 is taken away").count();
    ensure!(
        busy > 0 && busy >= turns / 2,
        "entries were being written {busy} times of {turns}"
    );
    ensure!(
        console.contains("dma verdict: watch ok: beats=") && console.contains(" forged=0"),
        "the neighbour did not end well"
    );
    Ok(())
}

/// Linux in the default window (of one that it made itself it believes that it stays unless it gives the node up: docs/tce.md) lets go of its disk, hears by an event that it is taken away, and has it again with what was written before.
/// Last it is taken away by surprise: to Linux, an error that nothing recovers.
fn linux() -> Case {
    /// What it heard last: of a slot (3) something was done to the connector (by index, 2).
    const EVENT: &str = "dd if=/proc/powerpc/rtas/error_log bs=4096 count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"' | grep -o '4850[0-9a-f]\\{28\\}'; echo heard-$((6*7))\r";
    const LET_GO: &str = "echo 0 > /sys/bus/pci/slots/PHB0/power; while [ -e /dev/nvme0n1 ]; do usleep 100000; done; echo gone-$((6*7))\r";
    const IS_EMPTY: &str =
        "echo 1 > /sys/bus/pci/slots/PHB0/power; ls /sys/bus/pci/devices; echo empty-$((6*7))\r";
    const TAKE: &str = "echo 1 > /sys/bus/pci/slots/PHB0/power; until [ -e /dev/nvme0n1 ]; do usleep 100000; done; echo back-$((6*7))\r";
    const UNPLUG: &str = "unplug linux 800000020000000";
    let mut case = Case::new(
        BOARD,
        "Linux lets go of a disk that is taken away, and has it again when it is given back",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"linux\"\nmemory = \"256M\"\ncpus = 2\npin = [0, 1]\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet disable_ddw\"\n",
        "devices = [ { host = \"phb:800000020000000\" } ]\n",
    )))
    .expect(&["/ # "])
    .types("modprobe rpaphp; ls /sys/bus/pci/slots\r")
    .expect(&["PHB0\r?$", "/ # "])
    .types(WRITE)
    .expect(&[WRITTEN]);
    for _ in 0..2 {
        case = case
            .types(LET_GO)
            .expect(&["gone-42"])
            .types(MONITOR)
            .asks(UNPLUG, &["taken away"])
            .asks("devices linux", &["is taken away", " 0 wrong"])
            .asks("focus linux", &["has the keyboard"])
            .types(EVENT)
            .expect(&["48500010010000000302020040000000", "heard-42"])
            .types(IS_EMPTY)
            .expect(&["empty-42"])
            .types(MONITOR)
            .asks("plug linux 800000020000000", &["given back"])
            .asks("focus linux", &["has the keyboard"])
            .types(EVENT)
            .expect(&["48500010010000000301020040000000", "heard-42"])
            .types(TAKE)
            .expect(&["back-42"])
            .types(READ)
            .expect(&[SAME]);
    }
    case = case
        .types(MONITOR)
        .asks(UNPLUG, &["taken away"])
        .asks("focus linux", &["has the keyboard"])
        .types("mount -t debugfs d /sys/kernel/debug; echo 0000:00:00.0 > /sys/kernel/debug/powerpc/eeh_dev_check\r")
        .expect(&["EEH: Unable to recover from failure"])
        .types("while [ -e /dev/nvme0n1 ]; do usleep 100000; done; echo lost-$((6*7))\r")
        .expect(&["lost-42"])
        .types("poweroff -f\r")
        .expect(&["vm linux: powered off", "verdict 0"]);
    case.forbids = vec![
        r"\] (ERROR|WARN)  ".to_owned(),
        "PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case.timeout = Duration::from_secs(120);
    case.one_thread()
}

/// Linux with a 64-bit window of its own gives its host bridge up, node and all, by its own means (`/sys/kernel/dlpar`,
/// `rpadlpar_io`), and asks for the node again by `ibm,configure-connector`.
fn linux_with_its_own_window() -> Case {
    const GIVE_UP: &str = "echo 0 > /sys/bus/pci/slots/PHB0/power; echo -n 'PHB 0' > /sys/bus/pci/slots/control/remove_slot; echo 'dt remove index 0x20000000' > /sys/kernel/dlpar; ls /proc/device-tree | grep -c ^pci; echo gone-$((6*7))\r";
    const TAKE: &str = "until echo 'dt add index 0x20000000' > /sys/kernel/dlpar; do usleep 200000; done; echo -n 'PHB 0' > /sys/bus/pci/slots/control/add_slot; until [ -e /dev/nvme0n1 ]; do usleep 100000; done; echo back-$((6*7))\r";
    let mut case = Case::new(
        BOARD,
        "Linux with a 64-bit window gives up a host bridge and its node, and has both again",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"linux\"\nmemory = \"256M\"\ncpus = 2\npin = [0, 1]\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet\"\n",
        "devices = [ { host = \"phb:800000020000000\" } ]\n",
    )))
    .expect(&["/ # "])
    .types("modprobe rpadlpar_io; ls /sys/bus/pci/slots\r")
    .expect(&["PHB0", "/ # "])
    .types(WRITE)
    .expect(&[WRITTEN])
    .types(MONITOR)
    .asks(
        "devices linux",
        &["window 0x800000000000000-", " 0 wrong"],
    )
    .asks("focus linux", &["has the keyboard"]);
    for _ in 0..2 {
        case = case
            .types(GIVE_UP)
            .expect(&["^0\r?$", "gone-42"])
            .types(MONITOR)
            // Its own window went with the node.
            .asks("devices linux", &["audit: 0 entries looked at, 0 wrong"])
            .asks("unplug linux 800000020000000", &["taken away"])
            .asks("plug linux 800000020000000", &["given back"])
            .asks("focus linux", &["has the keyboard"])
            .types(TAKE)
            .expect(&["back-42"])
            .types(READ)
            .expect(&[SAME])
            .types(MONITOR)
            .asks("devices linux", &["window 0x800000000000000-", " 0 wrong"])
            .asks("focus linux", &["has the keyboard"]);
    }
    case = case
        .types("poweroff -f\r")
        .expect(&["vm linux: powered off", "verdict 0"]);
    case.forbids = vec![
        r"\] (ERROR|WARN)  ".to_owned(),
        "PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case.timeout = Duration::from_secs(120);
    case.one_thread()
}
