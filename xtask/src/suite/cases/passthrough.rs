//! Tests of real devices in guests: Debian's drivers, behind the SMMU's stage 2, with messages by an ITS.
//!
//! Each boot has several devices and several checks, because a boot is what costs time: drivers probe,
//! message interrupts rise, files on an NVMe disk survive a restart of the VM, pings are answered.

use std::time::Duration;

use anyhow::{Result, ensure};
use regex::Regex;

use super::{Bundle, Case, Check, Disks};
use crate::qemu::Threads;

const BOARD: &str = "virt";
/// A DMA that was refused, in the hypervisor's log.
const EVENT: &str = r"smmu\d+: [A-Z]+_[A-Z_]+ sid ";

/// A Linux VM with these devices, which uses them all.
macro_rules! linux {
    ($kernel:literal, $firmware:literal, $vcpus:literal, $devices:expr, $actions:literal) => {
        Bundle::Manifest(concat!(
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"160M\"\ncpus = ",
            $vcpus,
            "\nkernel = \"debian:",
            $kernel,
            "\"\ninitrd = \"initramfs\"\nfirmware = \"",
            $firmware,
            "\"\nmsi = \"vits\"\niommu = \"stage2\"\n",
            "append = \"console=ttyAMA0 quiet do=iommu:none,",
            $actions,
            ",off\"\ndevices = [",
            $devices,
            "]\n"
        ))
    };
}

/// A VM of no more than two instructions, with these devices.
macro_rules! tiny {
    ($name:literal, $devices:expr) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"2M\"\nkernel = \"off.bin\"\nkernel_format = \"flat\"\n",
            "devices = [",
            $devices,
            "]\n"
        )
    };
}

/// The board's disk on the root bus; a virtio NIC, an e1000e and an igb each behind a root port, where all of
/// them can be reset. The guest finds two of the four on its own root bus and two behind ports of its own.
macro_rules! below_ports {
    () => {
        "{ host = \"0000:00:01.0\" }, { host = \"0000:01:00.0\", guest = \"01:00.0\" }, \
         { host = \"0000:02:00.0\" }, { host = \"0000:03:00.0\", guest = \"02:00.0\" }"
    };
}

/// The board's disk, and all that is behind one switch: a second disk, a NIC, a virtio disk.
macro_rules! below_switch {
    () => {
        "{ host = \"0000:00:01.0\" }, { host = \"0000:03:00.0\" }, { host = \"0000:04:00.0\" }, \
         { host = \"0000:05:00.0\" }"
    };
}

pub(super) fn cases() -> Vec<Case> {
    let ports = |firmware: &str, bundle, used: fn(String, Bundle, (u32, u32)) -> Case| {
        let name =
            format!("a disk and three NICs, on the root bus and behind ports, by {firmware}");
        with_ports(used(name, bundle, (3, 1))).one_thread()
    };
    let switch = |nic: &str, kernel: &str, firmware: &str, bundle, only_full| {
        let name =
            format!("three disks and an {nic}, behind a switch, Linux {kernel} by {firmware}");
        let mut case = with_switch(used_twice(name, bundle, (1, 3)), nic);
        case.only_full = only_full;
        case.vary.threads = Threads::One;
        case
    };
    vec![
        two_views(),
        in_use(),
        two_security_states(ports(
            "dt",
            linux!("6.12", "dt", "2", below_ports!(), "use,disk"),
            used,
        )),
        ports(
            "acpi",
            linux!("6.12", "acpi", "2", below_ports!(), "use:restart"),
            used_twice,
        ),
        switch(
            "igb",
            "6.1",
            "dt",
            linux!("6.1", "dt", "1", below_switch!(), "use:restart"),
            false,
        ),
        switch(
            "e1000e",
            "6.1",
            "acpi",
            linux!("6.1", "acpi", "1", below_switch!(), "use:restart"),
            true,
        ),
        two_vms(),
        by_wires(),
        half_a_group(),
        peers_below_a_switch(),
        behind_no_smmu(),
        unconfined(),
    ]
}

/// What a board with firmware at EL3 looks like to us: half of the GIC's registers and bits are not ours.
fn two_security_states(mut case: Case) -> Case {
    case.name += ", on a machine with two security states";
    case.expects
        .insert(0, "gicd: architecture v3, .* 2 security states".to_owned());
    case.args(&["-M", "secure=on"])
}

/// The CPU's view of a VM has no doorbell; the device's has that and the VM's memory, and nothing else.
fn two_views() -> Case {
    Case::new(BOARD, "a device's view has memory and the doorbell, the CPU's has no doorbell")
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"spin\"\nmemory = \"2M\"\nkernel = \"spin.bin\"\nkernel_format = \"flat\"\n",
            "iommu = \"stage2\"\nmsi = \"vits\"\ndevices = [ { host = \"0000:00:01.0\" } ]\n"
        )))
        .expect(&["vm spin: 00:01.0 is 0000:00:01.0"])
        .types("\x1dm")
        .asks("walk spin 40000000", &["0x40000000 -> 0x"])
        .asks(
            "stream spin 00:01.0 40000000",
            &["stream 0x8: Config 6 ", "stage 2: 0x40000000 -> 0x"],
        )
        .asks("walk spin 8090000", &["0x8090000 is not mapped"])
        .asks(
            "stream spin 00:01.0 8090000",
            &["stage 2: 0x8090000 -> 0x8090000, "],
        )
        .asks(
            "stream spin 00:01.0 40200000",
            &["stage 2: 0x40200000 is not mapped"],
        )
        .asks(
            "stream spin 00:01.0 10000000",
            &["stage 2: 0x10000000 is not mapped"],
        )
        // With no VM it reaches nothing.
        .asks("stop spin", &["spin: stopped"])
        .asks("stream spin 00:01.0 40000000", &["stream 0x8: Config 0 "])
        .asks("quit", &["verdict 0: the monitor was told to quit"])
}

/// A VM that tells the time every second, with the board's disk.
macro_rules! spinning {
    ($name:literal, $start:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"32M\"\nkernel = \"guest:heartbeat\"\nappend = \"beats=1000 period_us=1000000\"\nkernel_format = \"flat\"\nstart = \"",
            $start,
            "\"\niommu = \"stage2\"\ndevices = [ { host = \"0000:00:01.0\" } ]\n"
        )
    };
}

/// The other VM goes on, and gives the device up when it is stopped.
fn in_use() -> Case {
    let entry = |vm| format!("stream {vm} 00:01.0 40000000");
    let mut case = Case::new(
        BOARD,
        "a device that another VM has is refused until that VM is stopped",
    )
    .bundle(Bundle::Manifest(concat!(
        spinning!("first", "boot"),
        spinning!("second", "manual")
    )))
    .expect(&["vm second: not started at boot", r"\[first\] beat "])
    .types("\x1dm")
    .asks(
        "start second",
        &[
            r"ERROR \w+: vm second: does not start: device 0000:00:01.0: ",
            "it cannot be started",
        ],
    )
    .asks("list", &[" first +running ", " second +failed "])
    .asks(&entry("first"), &["Config 6 .*S2VMID 1"])
    .asks("stop first", &["first: stopped"])
    .asks(&entry("first"), &["Config 0 "])
    // It is reset first. The prompt comes before what the VM says.
    .asks(
        "start second",
        &["second: (starting|running)", r"\[second\] beat "],
    )
    .types("start first\r")
    .expect(&[r"ERROR \w+: vm first: does not start: device 0000:00:01.0: "])
    .asks(&entry("second"), &["Config 6 .*S2VMID 2"])
    .asks("quit", &["verdict 0"]);
    case.forbids.retain(|pattern| !pattern.contains("ERROR"));
    case
}

/// Linux with so many NICs and disks: each interrupts, data and echoes come back whole, and files of a disk with them.
fn used(name: String, bundle: Bundle, (nics, disks): (u32, u32)) -> Case {
    well(Case::new(BOARD, name).bundle(bundle)).expect(&[
        "smmu0: on: every stream aborts until a VM has it",
        "guest: Linux .* is up, ",
        "action iommu: ok: no SMMU, no group",
        &format!(r"action use: ok: {disks} disks, {nics} interfaces, [1-9]\d* interrupts"),
        &format!("action disk: ok: {disks} disks"),
        "vm linux: powered off",
    ])
}

/// The same across a restart, which data survives; without files.
fn used_twice(name: String, bundle: Bundle, (nics, disks): (u32, u32)) -> Case {
    well(Case::new(BOARD, name).bundle(bundle))
        .expect(&[
            "smmu0: on: every stream aborts until a VM has it",
            "guest: Linux .* is up, ",
            "action iommu: ok: no SMMU, no group",
            &format!(
                r"action use: {disks} disks and {nics} interfaces used, [1-9]\d* interrupts, resetting"
            ),
            "vm linux: reset",
            // Everything again, with devices that were reset in between.
            "guest: Linux .* is up, ",
        ])
        .expect(&vec!["data is as it was before"; disks as usize])
        .expect(&[
            &format!(r"action use: ok: {disks} disks, {nics} interfaces, [1-9]\d* interrupts"),
            "vm linux: powered off",
        ])
}

/// No DMA of theirs is refused, and none of their messages comes by another way.
fn well(mut case: Case) -> Case {
    case.forbids
        .extend([EVENT, "FAILED", "(?i)call trace|timeout, completion polled"].map(str::to_owned));
    case.timeout = Duration::from_secs(600);
    case
}

/// A NIC of this model, on a network of its own.
pub(super) fn nic(case: Case, number: usize, device: &str) -> Case {
    case.args(&[
        "-netdev",
        &format!("user,id=net{number}"),
        "-device",
        &format!("{device},netdev=net{number},romfile="),
    ])
}

fn device(case: Case, device: &str) -> Case {
    case.args(&["-device", device])
}

/// Three root ports with a virtio NIC, an e1000e and an igb.
pub(super) fn with_ports(mut case: Case) -> Case {
    for number in 0..3 {
        let place = format!("chassis={},addr={:x}", number + 1, number + 2);
        case = device(case, &format!("pcie-root-port,id=port{number},{place}"));
    }
    case = nic(case, 0, "virtio-net-pci,iommu_platform=on,bus=port0");
    case = nic(case, 1, "e1000e,bus=port1");
    nic(case, 2, "igb,bus=port2")
}

/// No port of QEMU's switch has access control: all that is below it is one group.
fn with_switch(mut case: Case, model: &str) -> Case {
    case = device(case, "pcie-root-port,id=port0,chassis=1,addr=3");
    case = device(case, "x3130-upstream,id=switch,bus=port0");
    for slot in 0..3 {
        let port =
            format!("xio3130-downstream,id=down{slot},bus=switch,slot={slot},chassis=1{slot}");
        case = device(case, &port);
    }
    case.disks = Disks::AndSpare(2);
    case = device(case, "nvme,serial=spare1,bus=down0,drive=spare1");
    case = device(
        case,
        "virtio-blk-pci,iommu_platform=on,bus=down2,drive=spare2",
    );
    nic(case, 0, &format!("{model},bus=down1"))
}

/// A VM of two, with a disk and a NIC.
macro_rules! one_of_two {
    ($name:literal, $cpu:literal, $more:literal, $devices:literal, $actions:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"160M\"\npin = [",
            $cpu,
            "]\nkernel = \"debian:6.12\"\ninitrd = \"initramfs\"\n",
            $more,
            "append = \"console=ttyAMA0 quiet do=",
            $actions,
            ",off\"\ndevices = [",
            $devices,
            "]\n"
        )
    };
}

/// Two VMs at once, one with a view of stage 2 alone and a device tree, one with an SMMU of its own and ACPI. The first
/// one's devices are reset while the other one's work.
fn two_vms() -> Case {
    let mut case = Case::new(BOARD, "two VMs use a disk and a NIC each at the same time")
        .bundle(Bundle::Manifest(concat!(
            one_of_two!(
                "one",
                "0",
                "iommu = \"stage2\"\nmsi = \"vits\"\n",
                "{ host = \"0000:00:01.0\" }, { host = \"0000:01:00.0\" }",
                "use:restart"
            ),
            one_of_two!(
                "two",
                "1",
                "iommu = \"nested\"\nmsi = \"rmr\"\nfirmware = \"acpi\"\n",
                "{ host = \"0000:02:00.0\" }, { host = \"0000:03:00.0\" }",
                "use,disk,use,use,use"
            )
        )))
        .expect(&["guest: Linux .* is up, "; 3])
        .expect(&["all VMs are off"]);
    case.check = Check::Judged(both_are_well);
    case.disks = Disks::AndSpare(1);
    for number in 0..3 {
        let place = format!("chassis={},addr={:x}", number + 1, number + 2);
        case = device(case, &format!("pcie-root-port,id=port{number},{place}"));
    }
    case = nic(case, 0, "e1000e,bus=port0");
    case = device(case, "nvme,serial=spare1,bus=port1,drive=spare1");
    case = nic(case, 1, "igb,bus=port2");
    case.forbids = vec![
        r"^\[ *\d+\.\d{6}\] (ERROR|WARN) ".to_owned(),
        EVENT.to_owned(),
        "FAILED".to_owned(),
    ];
    case.timeout = Duration::from_secs(600);
    case
}

/// Without messages: the disk's and the NIC's pins, told of by a device tree and by ACPI.
fn by_wires() -> Case {
    let name = "a disk and a NIC interrupt by their pins, by a device tree and by ACPI";
    let mut case = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"one\"\nmemory = \"160M\"\npin = [0]\nkernel = \"debian:6.12\"\n",
            "initrd = \"initramfs\"\niommu = \"stage2\"\nmsi = \"vits\"\nappend = \"console=ttyAMA0 quiet ",
            "pci=nomsi do=use:wires,off\"\ndevices = [ { host = \"0000:02:00.0\" } ]\n",
            "[[vm]]\nname = \"two\"\nmemory = \"160M\"\npin = [1]\nkernel = \"debian:6.12\"\n",
            "initrd = \"initramfs\"\niommu = \"stage2\"\nmsi = \"vits\"\nfirmware = \"acpi\"\n",
            "append = \"console=ttyAMA0 quiet pci=nomsi do=use:wires,off\"\n",
            "devices = [ { host = \"0000:01:00.0\", guest = \"01:00.0\" } ]\n"
        )))
        .expect(&["guest: Linux .* is up, "; 2])
        .expect(&["all VMs are off"]);
    case.check = Check::Judged(both_by_wires);
    case.vary.threads = Threads::One;
    for number in 0..2 {
        let place = format!("chassis={},addr={:x}", number + 1, number + 2);
        case = device(case, &format!("pcie-root-port,id=port{number},{place}"));
    }
    case = nic(case, 0, "e1000e,bus=port0");
    // With shadow doorbells the model may leave its pin up, with us and without (docs/traps.md).
    case.disks = Disks::AndSpare(1);
    case = device(case, "nvme,serial=spare1,dbcs=off,bus=port1,drive=spare1");
    case.forbids.extend(
        [
            EVENT,
            "FAILED",
            "(?i)call trace|nobody cared|completion polled",
        ]
        .map(str::to_owned),
    );
    case.timeout = Duration::from_secs(600);
    case
}

fn both_by_wires(console: &str) -> Result<()> {
    for (vm, done) in [
        ("one", "1 disks, 0 interfaces"),
        ("two", "0 disks, 1 interfaces"),
    ] {
        for wanted in [
            r"action use: .*: [1-9]\d* interrupts by GICv3, ".to_owned(),
            format!(r"action use: ok: {done}, [1-9]\d* interrupts"),
        ] {
            let pattern = Regex::new(&format!(r"(?m)^\[{vm}\] {wanted}"))?;
            ensure!(pattern.is_match(console), "VM {vm} never says `{wanted}`");
        }
    }
    Ok(())
}

/// Each VM has used its own devices: the one found its data again after a reset, the other one had its files, and its
/// devices worked once more after that.
fn both_are_well(console: &str) -> Result<()> {
    let all = r"action use: ok: 1 disks, 1 interfaces, [1-9]\d* interrupts";
    for (vm, count, wanted) in [
        ("one", 1, all),
        (
            "one",
            1,
            r"action use: .*nvme0n1, nvme, bulkhead0: .*, data is as it was before",
        ),
        ("two", 4, all),
        ("two", 1, "action disk: 0000:.* nvme0n1, nvme, .*spare1"),
        ("two", 1, "action disk: ok: 1 disks"),
    ] {
        let pattern = Regex::new(&format!(r"(?m)^\[{vm}\] {wanted}"))?;
        let found = pattern.find_iter(console).count();
        ensure!(
            found == count,
            "VM {vm} says `{wanted}` {found} times, not {count}"
        );
    }
    Ok(())
}

/// One device behind a switch without the others.
fn half_a_group() -> Case {
    let mut case = Case::new(
        BOARD,
        "half of an isolation group is refused with what is in the way",
    )
    .bundle(Bundle::Manifest(concat!(
        tiny!("half", "{ host = \"0000:04:00.0\" }"),
        tiny!("other", "{ host = \"0000:00:01.0\" }")
    )))
    .expect(&[
        "vm half: left out: its devices cannot be given to it:",
        "0000:04:00.0",
        "vm other: 2 MiB",
        "vm other: powered off",
    ]);
    case.forbids.clear();
    with_switch(case, "e1000e")
}

/// Behind one switch, where devices reach each other without the SMMU.
fn peers_below_a_switch() -> Case {
    let name = "p2p is refused where the path between devices is not translated";
    let mut case = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            tiny!(
                "below",
                "{ host = \"0000:03:00.0\" }, { host = \"0000:04:00.0\", p2p = true }, { host = \"0000:05:00.0\" }"
            ),
            tiny!("other", "{ host = \"0000:00:01.0\", p2p = true }")
        )))
        .expect(&[
            "vm below: left out: its devices cannot be given to it:",
            "0000:04:00.0: p2p: the path to it is not translated: it shares its isolation group",
            "vm other: 2 MiB",
            "vm other: powered off",
        ]);
    case.forbids.clear();
    with_switch(case, "e1000e")
}

/// The board without its SMMU.
fn without_smmu(case: Case) -> Case {
    case.args(&["-M", "iommu=none"])
}

fn behind_no_smmu() -> Case {
    let name = "a device behind no SMMU is refused";
    let case = Case::new(BOARD, name).bundle(Bundle::Manifest(tiny!(
        "bold",
        "{ host = \"0000:00:01.0\" }"
    )));
    without_smmu(case)
        .expect(&[
            "vm bold: left out: its devices cannot be given to it:",
            "0000:00:01.0: it is behind no SMMU, and unsafe_dma is not \"identity\"",
            "verdict 1: no VM of the bundle can be run",
        ])
        .fatal()
}

/// The guest's memory is where the machine has it, so that its driver's addresses are the device's.
fn unconfined() -> Case {
    let name =
        "a device behind no SMMU works where the manifest says so, and the log says what that is";
    let mut case = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"linux\"\nmemory = \"160M\"\nkernel = \"debian:6.12\"\ninitrd = \"initramfs\"\n",
            "unsafe_dma = \"identity\"\nappend = \"console=ttyAMA0 quiet do=iommu:none,use:restart,off\"\n",
            "devices = [ { host = \"0000:00:01.0\" } ]\n"
        )))
        .expect(&[
            "vm linux: UNSAFE: devices without an IOMMU may be given to it",
            "WARN .*vm linux: UNSAFE: 0000:00:01.0 is behind no SMMU: it, and so the guest, can read and write ALL memory",
            r"vm linux: its memory is where the machine has it, 0x[4-9a-f][0-9a-f]{7}\b",
            "guest: Linux .* is up, ",
            r"action use: 1 disks and 0 interfaces used, [1-9]\d* interrupts, resetting",
            "vm linux: reset",
            "data is as it was before",
            r"action use: ok: 1 disks, 0 interfaces, [1-9]\d* interrupts",
            "all VMs are off",
        ])
        .one_thread();
    case.forbids = vec![r"\] ERROR ".to_owned(), "FAILED".to_owned()];
    case.timeout = Duration::from_secs(300);
    without_smmu(case)
}
