//! Tests of real devices in guests on POWER: host bridges that VMs own, windows that guests make.

use std::time::Duration;

use super::vms::MONITOR;
use super::{Bundle, Case, Disks};

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    vec![
        default_guest(),
        two_bridges(),
        default_window(),
        part_of_a_bridge(),
    ]
}

/// What no guest with devices may show.
fn forbidden(case: &mut Case) {
    case.forbids = [
        r"\] (ERROR|WARN)  ",
        "PANIC|EXCEPTION",
        "FAILED",
        "(?i)call trace|timeout, completion polled",
        "[1-9][0-9]* wrong",
    ]
    .map(str::to_owned)
    .into();
}

/// What `cargo xtask run pseries` shows: the guest makes a window onto all of its memory, and reads its disk.
fn default_guest() -> Case {
    let mut case = Case::new(
        BOARD,
        "the board's own guest reads its NVMe disk through a window of its own",
    )
    .bundle(Bundle::OfBoard)
    .expect(&[
        "vm linux: 0000:00:00.0 of phb:800000020000000",
        r"ibm,create-pe-dma-window \[0, 8000000, 20000000, 18, 1d\]: 0 \[80000001, 8000000, 0\]",
        r"guest: Linux 6\.12\..* is up, ",
        r"action irqs: ok: [1-9]\d* interrupts by 1 devices",
        "guest: all actions are done",
        "/ # ",
    ])
    .types(MONITOR)
    .asks(
        "devices linux",
        &[
            "0000:00:00.0 of phb:800000020000000",
            "window 0x800000000000000-0x80000001fffffff with pages of 0x1000000 bytes",
            r"audit: [1-9]\d* entries looked at, 0 wrong",
        ],
    )
    .asks("stop linux", &["linux: stopped"])
    // It has none any more, nor anything of its windows.
    .asks("devices linux", &["audit: 0 entries looked at, 0 wrong"])
    .asks("start linux", &["guest: Linux .* is up"])
    .expect(&["guest: all actions are done"])
    .asks("quit", &["verdict 0: the monitor was told to quit"]);
    forbidden(&mut case);
    case.timeout = Duration::from_secs(600);
    case.one_thread()
}

/// Two VMs at the same time, each with a host bridge: a disk and a NIC that share their windows, another
/// disk. Files survive a restart.
fn two_bridges() -> Case {
    let mut case = Case::new(
        BOARD,
        "two VMs with a host bridge each: two disks and a NIC, across a restart",
    )
    .bundle(Bundle::Manifest(concat!(
        "version = 1\n[[vm]]\nname = \"one\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet do=irqs,net,disk-restart,off\"\n",
        "devices = [ { host = \"0000:00:00.0\" }, { host = \"0000:00:01.0\" } ]\n",
        "[[vm]]\nname = \"two\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:6.1\"\n",
        "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet do=irqs,disk-restart,off\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\nstart = \"after:one\"\n",
    )))
    .expect(&[
        "vm one: 0000:00:01.0 of phb:800000020000000",
        "vm two: 0001:00:00.0 of phb:800000020000001",
        r"vm 0: ibm,create-pe-dma-window .*: 0 \[80000001, 8000000, 0\]",
        r"action irqs: ok: [1-9]\d* interrupts by 2 devices",
        "action net: ok: 1 interfaces",
        "action disk-restart: 1 disks written, resetting",
        "vm one: reset",
        r"vm 0: ibm,create-pe-dma-window .*: 0 \[80000001, 8000000, 0\]",
        "action net: ok: 1 interfaces",
        "files are as they were written before the reset",
        "action disk-restart: ok: 1 disks",
        "vm one: powered off",
        r"vm 1: ibm,create-pe-dma-window .*: 0 \[80000101, 8000000, 0\]",
        r"action irqs: ok: [1-9]\d* interrupts by 1 devices",
        "action disk-restart: 1 disks written, resetting",
        "vm two: reset",
        "action disk-restart: ok: 1 disks",
        "vm two: powered off",
    ])
    .args(&["-netdev", "user,id=net0"])
    .args(&["-device", "virtio-net-pci,iommu_platform=on,disable-legacy=on,netdev=net0,romfile="])
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "virtio-blk-pci,iommu_platform=on,disable-legacy=on,bus=p1.0,drive=spare1"]);
    case.disks = Disks::AndSpare(1);
    forbidden(&mut case);
    case.timeout = Duration::from_secs(900);
    case.one_thread()
}

/// The kernel that makes no window of its own (`disable_ddw`) has the default one, below 1 GiB, for all that its
/// devices do; the other has an e1000e, whose driver knows no window either way.
fn default_window() -> Case {
    let mut case = Case::new(
        BOARD,
        "an e1000e and a disk, and virtio devices in the default window alone, across a restart",
    )
    .bundle(Bundle::Manifest(concat!(
        "version = 1\n[[vm]]\nname = \"one\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:6.1\"\n",
        "initrd = \"initramfs\"\nappend = \"console=hvc0 quiet do=irqs,net,disk-restart,off\"\n",
        "devices = [ { host = \"phb:800000020000000\" } ]\n",
        "[[vm]]\nname = \"two\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\n",
        "append = \"console=hvc0 quiet disable_ddw do=irqs,net,disk-restart,off\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\nstart = \"after:one\"\n",
    )))
    .expect(&[
        r"vm 0: ibm,create-pe-dma-window .*: 0 \[80000001, 8000000, 0\]",
        r"action irqs: ok: [1-9]\d* interrupts by 2 devices",
        "action net: .*, e1000e, .* 10 of 10 pings answered",
        "action disk-restart: 1 disks written, resetting",
        "vm one: reset",
        "action net: ok: 1 interfaces",
        "files are as they were written before the reset",
        "action disk-restart: ok: 1 disks",
        "vm one: powered off",
        r"action irqs: ok: [1-9]\d* interrupts by 2 devices",
        "action net: .*, virtio.*, .* 10 of 10 pings answered",
        "action disk-restart: 1 disks written, resetting",
        "vm two: reset",
        "files are as they were written before the reset",
        "action disk-restart: ok: 1 disks",
        "vm two: powered off",
    ])
    .args(&["-netdev", "user,id=net0", "-netdev", "user,id=net1"])
    .args(&["-device", "e1000e,netdev=net0,romfile="])
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "virtio-blk-pci,iommu_platform=on,disable-legacy=on,bus=p1.0,drive=spare1"])
    .args(&["-device", "virtio-net-pci,iommu_platform=on,disable-legacy=on,netdev=net1,romfile=,bus=p1.0"]);
    case.disks = Disks::AndSpare(1);
    forbidden(&mut case);
    case.forbids
        .push("vm 1: ibm,create-pe-dma-window".to_owned());
    case.timeout = Duration::from_secs(300);
    case.one_thread()
}

/// One device of a host bridge without the other.
fn part_of_a_bridge() -> Case {
    let mut case = Case::new(
        BOARD,
        "a device without the others behind its host bridge is refused, with the list",
    )
    .bundle(Bundle::Manifest(concat!(
        "version = 1\n[[vm]]\nname = \"half\"\nmemory = \"64M\"\nkernel = \"debian:6.12\"\n",
        "devices = [ { host = \"0000:00:00.0\" } ]\n",
        "[[vm]]\nname = \"none\"\nmemory = \"64M\"\nkernel = \"debian:6.12\"\n",
        "devices = [ { host = \"0000:00:05.0\" } ]\n",
    )))
    .args(&["-device", "edu"])
    .expect(&[
        "ERROR .*vm half: devices behind a host bridge cannot be kept apart: 0000:00:00.0, 0000:00:01.0 belong together",
        "ERROR .*vm none: the machine has no device 0000:00:05.0",
        "verdict 1: no VM of the bundle can be run",
    ])
    .fatal();
    case.timeout = Duration::from_secs(120);
    case
}
