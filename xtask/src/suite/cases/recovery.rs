//! Tests of errors of devices on POWER: a guest's own EEH recovers them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::vms::MONITOR;
use super::{Bundle, Case, Check};
use crate::qemu::Threads;

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    vec![recovered(), by_6_1(), injected()]
}

/// Linux with its disk, and a neighbour whose device and memory stay as they are.
const MANIFEST: &str = concat!(
    "[[vm]]\nname = \"linux\"\nmemory = \"256M\"\ncpus = 1\npin = [0]\nkernel = \"debian:6.12\"\n",
    "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet\"\n",
    "devices = [ { host = \"phb:800000020000000\" } ]\n",
    "[[vm]]\nname = \"watch\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
    "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"watch beats=150 phb=1\"\n",
    "devices = [ { host = \"phb:800000020000001\" } ]\n",
);

/// Sets up what is done with each error: Linux says what it does, and is told to look, instead of waiting for a request to
/// time out.
const SET_UP: &str = "dmesg -n 8; dmesg | grep 'EEH: Capable'; mount -t debugfs d /sys/kernel/debug; D=0000:00:00.0; E=/sys/kernel/debug/powerpc; echo 2 > $E/eeh_max_freezes; ls $E/eeh_*\r";
/// What the tree says of the services, and of the disk's reset.
const TREE: &str = "cd /proc/device-tree; for p in rtas/ibm,reset-capabilities rtas/ibm,read-slot-reset-state-functions; do od -An -tx1 $p; done; ls rtas/ibm,change-msix-capable pci*/*/ibm,pe-reset-is-flr; cd /\r";
/// Writes the disk.
const WRITE: &str = "devtool use\r";
const WRITTEN: &str = "action use: ok: 1 disks";
/// Compares.
const READ: &str = "devtool use verify\r";
const SAME: &str = "data is as it was before";
/// A register that does not answer, by Linux's own test hook: it has the BAR not decoded, and reads it.
const BREAK: &str = "echo $D > $E/eeh_dev_break\r";
const LOOK: &str = "echo $D > $E/eeh_dev_check\r";
/// How often Linux recovers a device in an hour; what [`SET_UP`] says, in place of 5.
const RECOVERIES: usize = 2;

/// What is seen of a recovery.
const RECOVERS: [&str; 5] = [
    r"EEH: Recovering PHB#\d+-PE#1",
    "nvme .*frozen state error detected",
    r"vm 0: ibm,set-slot-reset \[1, 8000000, 20000000, 1\]",
    r"vm 0: ibm,set-slot-reset \[1, 8000000, 20000000, 0\]",
    "EEH: Recovery successful",
];

/// Linux with its disk, written to, and a device for a neighbour.
fn machine(name: &str, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name)
        .bundle(bundle)
        .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
        .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=p1.0"])
        .expect(&["/ # "])
        .types(SET_UP)
        .expect(&[
            "EEH: Capable adapter found: recovery enabled",
            "eeh_dev_break",
            "/ # ",
        ])
        .types(TREE)
        .expect(&[
            r" 00 00 00 01\r?$",
            r" 00 00 00 03\r?$",
            r"pci@\w+/[\w@,-]+/ibm,pe-reset-is-flr\r?$",
            r"rtas/ibm,change-msix-capable\r?$",
        ])
        .types(WRITE)
        .expect(&[WRITTEN]);
    case.vary.threads = Threads::One;
    // Linux says that it is frozen, and shows where it noticed.
    case.forbids = vec![
        r"\] (ERROR|WARN)  ".to_owned(),
        "PANIC|EXCEPTION|FAILED".to_owned(),
        "[1-9][0-9]* wrong".to_owned(),
    ];
    case
}

fn recovered() -> Case {
    let name = "Linux recovers its disk from errors until there are too many, and a neighbour does not notice";
    let mut case = machine(name, Bundle::Manifest(MANIFEST));
    for recovery in 0..RECOVERIES {
        case = if recovery == 0 {
            case.types(BREAK)
                .expect(&[r"vm 0: phb:800000020000000: Registers .*: stopped"])
        } else {
            case.types(MONITOR)
                .asks(
                    "freeze linux",
                    &["Injected: stopped", "1 host bridges stopped"],
                )
                .asks("devices linux", &["PE 00000001: Stopped, ", " 0 wrong"])
                .asks("focus linux", &["has the keyboard"])
        };
        case = case.types(LOOK).expect(&RECOVERS);
        case = case.types(READ).expect(&[SAME]);
    }
    // Once too often: Linux gives the disk up.
    case = case
        .types(BREAK)
        .expect(&["Registers .*: stopped"])
        .types(LOOK)
        .expect(&["EEH: .*failed 3 times in the last hour"])
        .expect(&["EEH: Unable to recover from failure|permanently disabled"])
        .types("while [ -e /dev/nvme0n1 ]; do usleep 100000; done; echo gone-$((6*7))\r")
        .expect(&["gone-42"])
        // It said so to the platform, too. A VM that starts again has its disk again.
        .types(MONITOR)
        .asks("devices linux", &["PE 00000001: Gone, 3 errors"])
        .asks("restart linux", &["linux: running"])
        .asks("focus linux", &["has the keyboard"])
        .expect(&["guest: Linux .* is up", "/ # "])
        .types(READ)
        .expect(&[SAME])
        .types(MONITOR)
        .asks(
            "devices linux",
            &["PE 00000001: Normal, 3 errors", " 0 wrong"],
        )
        .asks("focus linux", &["has the keyboard"])
        .types("poweroff -f\r")
        .expect(&["vm linux: powered off", "verdict 0"]);
    case.check = Check::Judged(judge);
    case.timeout = Duration::from_secs(240);
    case
}

/// The older kernel: twice, and the neighbour is the same.
fn by_6_1() -> Case {
    let mut case = machine(
        "Linux 6.1 recovers its disk from errors, too",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"linux\"\nmemory = \"256M\"\ncpus = 1\npin = [0]\nkernel = \"debian:6.1\"\n",
            "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet\"\n",
            "devices = [ { host = \"phb:800000020000000\" } ]\n",
        )),
    );
    for _ in 0..2 {
        case = case
            .types(BREAK)
            .expect(&[r"vm 0: phb:800000020000000: Registers .*: stopped"])
            .types(LOOK)
            .expect(&RECOVERS)
            .types(READ)
            .expect(&[SAME]);
    }
    case = case
        .types("poweroff -f\r")
        .expect(&["vm linux: powered off", "verdict 0"]);
    case.timeout = Duration::from_secs(120);
    case
}

/// A guest that injects errors into its own PE, beside a neighbour, into whose it must not.
fn injected() -> Case {
    let mut case = Case::new(
        BOARD,
        "errors that a guest injects stop its own devices, and let nothing through until it is told so",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"error\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"error phb=1\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
        "[[vm]]\nname = \"watch\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
        "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"watch beats=80 phb=2\"\n",
        "devices = [ { host = \"phb:800000020000002\" } ]\n",
    )))
    .expect(&[
        "dma verdict: error ok: errors=5",
        "dma verdict: watch ok: beats=80 .* forged=0",
        "verdict 0: all VMs are off",
    ])
    .edus_on_bridges(2);
    case.forbids = vec![r"\] (ERROR|WARN)  |PANIC|EXCEPTION|FAILED".to_owned()];
    case.timeout = Duration::from_secs(120);
    case
}

fn judge(console: &str) -> Result<()> {
    ensure!(
        console.contains("dma verdict: watch ok: beats=150 ") && console.contains(" forged=0"),
        "the neighbour did not end well"
    );
    Ok(())
}
