//! Tests on a machine with two SMMUs, a host bridge behind each. They are there where a QEMU that is new enough can be had.

use std::time::Duration;

use super::passthrough::nic;
use super::{Bundle, Case, Disks, Smmus};
use crate::qemu::{Threads, Time};

const BOARD: &str = "virt";

/// A VM with the guest of `dma.rs`: name, task, CPU, devices, further keys.
fn vm(name: &str, task: &str, cpu: u32, devices: &[&str], more: &str) -> String {
    let devices: Vec<String> = devices
        .iter()
        .map(|device| format!("{{ host = \"{device}\" }}"))
        .collect();
    format!(
        "[[vm]]\nname = \"{name}\"\nmemory = \"80M\"\npin = [{cpu}]\nkernel = \"guest:dma\"\n\
         kernel_format = \"flat\"\nrestart = \"never\"\nmsi = \"vits\"\nappend = \"{task}\"\n\
         devices = [ {} ]\n{more}\n",
        devices.join(", ")
    )
}

const STAGE2: &str = "iommu = \"stage2\"";
const NESTED: &str = "iommu = \"nested\"";

/// Two `edu`s behind ports of the first bridge, and two of the second.
const EDUS: [&str; 4] = [
    "0000:01:00.0",
    "0000:02:00.0",
    "0001:21:00.0",
    "0001:22:00.0",
];

fn edus(name: &str, vms: &[String]) -> Case {
    let manifest = format!("version = 1\n{}", vms.concat());
    let mut case = Case::new(BOARD, name).bundle(Bundle::Manifest(manifest.leak()));
    case.smmus = Smmus::Two;
    for port in 0..4 {
        let bus = ["pcie.0", "pxb"][port / 2];
        let place = format!("bus={bus},chassis={},addr={}", port + 1, port % 2 + 2);
        case = case.args(&[
            "-device",
            &format!("pcie-root-port,id=port{port},{place}"),
            "-device",
            &format!("edu,dma_mask=0xffffffffffffffff,bus=port{port}"),
        ]);
    }
    case.vary.time = Time::Instructions;
    case.forbids.push("FAILED".to_owned());
    case
}

pub(super) fn cases() -> Vec<Case> {
    let [a, b, c, d] = EDUS;
    let owned = edus(
        "two SMMUs of the machine's: a VM behind each, then one behind both; what is refused is told by the one it met",
        &[
            vm("first", "probe", 0, &[a], STAGE2),
            vm(
                "second",
                "probe",
                1,
                &[c],
                &format!("{STAGE2}\nstart = \"after:first\""),
            ),
            vm(
                "both",
                "storm rounds=1 messages=1",
                0,
                &[c, a],
                &format!("{STAGE2}\nstart = \"after:second\""),
            ),
        ],
    )
    .expect(&[
        "smmu0: on: every stream aborts until a VM has it",
        "smmu1: on: every stream aborts until a VM has it",
        r"\[first\] dma verdict: probe ok: devices=1 bar=1048576 moved=1 lpis=4 ",
        "vm second: starts after first",
        r"\[second\] dma verdict: probe ok: devices=1 bar=1048576 moved=1 lpis=4 ",
        "vm both: starts after second",
        r"smmu[01]: F_TRANSLATION sid 0x(2100 read of 0x2000000000, stage 2, 21|100 read of 0x2000001000, stage 2, 01):00\.0 of VM 3",
        r"smmu[01]: F_TRANSLATION sid 0x(2100 read of 0x2000000000, stage 2, 21|100 read of 0x2000001000, stage 2, 01):00\.0 of VM 3",
        "dma verdict: storm ok: devices=2 transfers=2 ",
    ]);
    let mut owned = owned;
    owned
        .forbids
        .extend(["smmu0: F_.* sid 0x2", "smmu1: F_.* sid 0x[12]00 "].map(str::to_owned));

    let swept = edus(
        "two SMMUs of the machine's: DMA through either to every 2 MiB reaches the VM's own memory only",
        &[
            vm("sweep", "sweep", 0, &[a, c], STAGE2),
            vm(
                "neighbour",
                "watch beats=250 period_us=1000000 refused=50",
                1,
                &[b, d],
                STAGE2,
            ),
        ],
    )
    .expect(&[
        r"dma verdict: sweep ok: own=40 read=40 written=40 read_refused=[12]\d{3} ",
        r"dma verdict: watch ok: beats=250 latest_us=\d+ memory_kib=\d+ devices=2",
    ]);

    // Each flood is read by its owner, on a core of its own; the neighbour, where records are read when nobody
    // floods, has devices behind both.
    let storm = "storm rounds=40 stage1=1";
    let mut flooded = edus(
        "two SMMUs of the machine's: two VMs that flood one each pay for it, a neighbour behind both does not",
        &[
            vm("left", storm, 1, &[a], NESTED),
            vm("right", storm, 2, &[c], NESTED),
            vm(
                "neighbour",
                "watch beats=700 period_us=10000 limit_us=300 refused=50",
                0,
                &[b, d],
                STAGE2,
            ),
        ],
    )
    .expect(&[
        r"storm ok: devices=1 transfers=40 messages=20000 arrived=[1-9]\d* late_us=[1-9]\d{3,4} events=[1-9]\d{3,4}$",
        r"storm ok: devices=1 transfers=40 messages=20000 arrived=[1-9]\d* late_us=[1-9]\d{3,4} events=[1-9]\d{3,4}$",
        "dma verdict: watch ok: beats=700 latest_us=",
    ]);
    flooded.vary.smp = Some(3);

    let mut handed = edus(
        "two SMMUs of the machine's: devices behind both change hands twenty times in the middle of DMA",
        &["a", "b"].map(|name| {
            let start = match name {
                "a" => STAGE2.to_owned(),
                _ => format!("{STAGE2}\nstart = \"manual\""),
            };
            let task = "linger look_us=20000 after_us=60000000";
            vm(name, task, 1, &[a, c], &start)
        }),
    );
    handed.vary.time = Time::Wall;
    let going = "dma linger: nothing came of before, 2 DMAs under way";
    handed = handed
        .expect(&[going])
        .types("\x1dm")
        .expect(&["monitor> "]);
    for turn in 0..20 {
        let (from, to) = if turn % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        handed = handed
            .types(&format!("stop {from}\r"))
            .expect(&[&format!("{from}: stopped"), "monitor> "])
            .types(&format!("start {to}\r"))
            .expect(&[&format!(r"\[{to}\] {going}")]);
    }
    let handed = handed.asks("quit", &["verdict 0"]);

    let mut all = vec![owned, swept, flooded, handed];
    all.extend([("acpi", "rmr"), ("dt", "vits")].map(|(firmware, policy)| linux(firmware, policy)));
    for case in &mut all {
        case.timeout = Duration::from_secs(600);
    }
    all
}

/// Linux drives both by two of its own: a disk and a NIC behind each.
fn linux(firmware: &str, policy: &str) -> Case {
    let manifest = format!(
        "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"160M\"\ncpus = 2\nkernel = \"debian:6.12\"\n\
         initrd = \"initramfs\"\nfirmware = \"{firmware}\"\niommu = \"nested\"\nmsi = \"{policy}\"\n\
         append = \"console=ttyAMA0 quiet iommu.strict=1 do=iommu:{policy},use,off\"\ndevices = [\n\
         {{ host = \"0000:01:00.0\" }}, {{ host = \"0001:21:00.0\" }}, {{ host = \"0000:02:00.0\" }},\n\
         {{ host = \"0001:22:00.0\" }} ]\n"
    );
    let name = format!(
        "two SMMUs of the machine's: a disk and a NIC behind each, two SMMUs of Linux' own by {firmware}, {policy}"
    );
    let mut case = Case::new(BOARD, name).bundle(Bundle::Manifest(manifest.leak()));
    case.smmus = Smmus::Two;
    case.disks = Disks::AndSpare(2);
    for port in 0..4 {
        let bus = ["pcie.0", "pxb"][port / 2];
        let place = format!("bus={bus},chassis={},addr={}", port + 1, port % 2 + 2);
        case = case.args(&["-device", &format!("pcie-root-port,id=port{port},{place}")]);
    }
    for (port, disk) in [(0, 1), (2, 2)] {
        let disk = format!("nvme,serial=spare{disk},bus=port{port},drive=spare{disk}");
        case = case.args(&["-device", &disk]);
    }
    case = nic(case, 0, "e1000e,bus=port1");
    case = nic(case, 1, "virtio-net-pci,iommu_platform=on,bus=port3");
    case.vary.threads = Threads::One;
    case.forbids = vec![
        r"^\[ *\d+\.\d{6}\] (ERROR|WARN) ".to_owned(),
        r"smmu\d+: [A-Z]+_[A-Z_]+ sid ".to_owned(),
        "action [a-z-]+: FAILED".to_owned(),
    ];
    case.expect(&[
        &format!("vm linux: its guest has 2 SMMUs of its own, messages by {policy}"),
        &format!("action iommu: ok: 2 SMMUs, 4 devices, DMA, {policy}"),
        r"action use: ok: 2 disks, 2 interfaces, [1-9]\d* interrupts",
        "vm linux: powered off",
    ])
}
