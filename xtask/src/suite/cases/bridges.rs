//! Tests of real devices in guests on POWER: host bridges that VMs own, windows that guests make.

use std::time::Duration;

use super::vms::MONITOR;
use super::{Bundle, Case, Disks};

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    vec![
        default_guest(),
        two_bridges("6.12", "6.1", &[]),
        Case {
            only_full: true,
            ..two_bridges(
                "6.1",
                "6.12",
                &["-device", "e1000e,netdev=net4,romfile=,bus=pci.0"],
            )
        },
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

/// What `cargo xtask run pseries` shows: the guest makes a window onto all of its memory, and reads its disk. That a VM
/// which was stopped starts again with its disk is for `recovery`.
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
    .asks("quit", &["verdict 0: the monitor was told to quit"]);
    forbidden(&mut case);
    case.timeout = Duration::from_secs(600);
    case.one_thread()
}

/// What Linux says of a device whose mask has 32 bits, when it is asked to say such things (`dyndbg`).
const DEFAULT_OPS: &str = "e1000 .*: iommu: not 64-bit, using default ops";

/// Two VMs with a host bridge each. Behind the first are two disks and a NIC with messages in a window of 64 bits that
/// the kernel makes onto all of its memory, and a NIC that knows neither: it has a pin, and the default window. The
/// other kernel makes no window (`disable_ddw`): its devices have the default one, below 1 GiB, for all that they do.
/// What is on the disks survives a restart; on the NVMe one there is a file system in the end. `more` is a NIC that the
/// first has beside the others, with messages and all of 64 bits.
fn two_bridges(one: &str, two: &str, more: &[&str]) -> Case {
    let manifest = format!(
        "version = 1\n[[vm]]\nname = \"one\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:{one}\"\n\
         initrd = \"initramfs\"\n\
         append = 'console=hvc0 quiet dyndbg=\"file dma-iommu.c +p\" do=use:either:restart,disk:nvme'\n\
         devices = [ {{ host = \"phb:800000020000000\" }} ]\n\
         [[vm]]\nname = \"two\"\nmemory = \"256M\"\ncpus = 1\nkernel = \"debian:{two}\"\n\
         initrd = \"initramfs\"\n\
         append = \"console=hvc0 quiet disable_ddw do=use:restart,off\"\n\
         devices = [ {{ host = \"0001:00:00.0\" }}, {{ host = \"0001:00:01.0\" }}, {{ host = \"0001:00:02.0\" }} ]\n\
         start = \"after:one\"\n"
    );
    let name = format!(
        "two VMs with a host bridge each: disks and NICs of all kinds in both windows of Linux {one}, and in the default one alone of {two}, across a restart"
    );
    let nics = if more.is_empty() { 2 } else { 3 };
    let mut case = Case::new(BOARD, name)
    .bundle(Bundle::Manifest(manifest.leak()))
    .expect(&[
        "vm one: 0000:00:01.0 of phb:800000020000000",
        "vm two: 0001:00:02.0 of phb:800000020000001",
        r"vm 0: ibm,create-pe-dma-window \[\w+, 8000000, 20000000, 18, 1c\]: 0 \[80000001, 8000000, 0\]",
        &format!("action use: 2 disks and {nics} interfaces used, .* resetting"),
        "vm one: reset",
        r"vm 0: ibm,create-pe-dma-window .*: 0 \[80000001, 8000000, 0\]",
        r"action use: .* nvme0n1, nvme, .*: [1-9]\d* interrupts by pSeries-PCI-MSI, data is as it was before",
        r"action use: .* vda, virtio-pci, .*: [1-9]\d* interrupts by pSeries-PCI-MSI, data is as it was before",
        r"action use: .*, e1000, .*: [1-9]\d* interrupts by XICS, every echo came back whole",
        r"action use: .*, virtio-pci, .*: [1-9]\d* interrupts by pSeries-PCI-MSI, every echo came back whole",
        &format!("action use: ok: 2 disks, {nics} interfaces, "),
        "action disk: nvme0n1: ext4 made, 6 files written and read back, e2fsck finds it clean",
        "action disk: ok: 1 disks",
        "/ # ",
    ])
    .types("dmesg | grep 'default ops'; echo said-$((6*7))\r")
    .expect(&[DEFAULT_OPS, "said-42"])
    .types(MONITOR)
    .asks(
        "devices one",
        &[
            "window 0x0-0x3fffffff with pages of 0x1000 bytes",
            "window 0x800000000000000-0x80000000fffffff with pages of 0x1000000 bytes",
            r"audit: [1-9]\d* entries looked at, 0 wrong",
        ],
    )
    .asks("focus one", &["has the keyboard"])
    .types("poweroff -f\r")
    .expect(&[
        "vm one: powered off",
        "action use: 1 disks and 2 interfaces used, .* resetting",
        "vm two: reset",
        r"action use: .* vda, virtio-pci, .*, data is as it was before",
        "action use: .*, virtio-pci, .*, every echo came back whole",
        "action use: .*, e1000e, .*, every echo came back whole",
        "action use: ok: 1 disks, 2 interfaces, ",
        "vm two: powered off",
    ])
    .args(&["-netdev", "user,id=net0", "-netdev", "user,id=net1"])
    .args(&["-netdev", "user,id=net2", "-netdev", "user,id=net3"])
    .args(&["-device", "e1000,netdev=net0,romfile="])
    .args(&["-device", "virtio-blk-pci,iommu_platform=on,disable-legacy=on,drive=spare1"])
    .args(&["-device", "virtio-net-pci,iommu_platform=on,disable-legacy=on,netdev=net1,romfile="])
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "virtio-blk-pci,iommu_platform=on,disable-legacy=on,bus=p1.0,drive=spare2"])
    .args(&["-device", "virtio-net-pci,iommu_platform=on,disable-legacy=on,netdev=net3,romfile=,bus=p1.0"])
    .args(&["-device", "e1000e,netdev=net2,romfile=,bus=p1.0"])
    .args(&["-netdev", "user,id=net4"])
    .args(more);
    case.disks = Disks::AndSpare(2);
    forbidden(&mut case);
    case.forbids
        .push("vm 1: ibm,create-pe-dma-window".to_owned());
    case.forbids.push("e1000e .*using default ops".to_owned());
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
