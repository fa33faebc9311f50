//! Tests of a guest's own SMMU: Debian's driver builds stage 1, and the guest itself looks whether it holds.
//!
//! Each boot has a disk, two NICs and an `edu`, and does all that there is to do with them: groups and reserved
//! regions are as firmware says, message interrupts rise, data is right, a program drives a device by VFIO, and
//! what that device does outside of its mappings is in the guest's own log.

use std::time::Duration;

use super::passthrough::{nic, with_ports};
use super::{Around, Bundle, Case, Check, Disks, sampled_beside};
use crate::qemu::Threads;

const BOARD: &str = "virt";
/// A DMA of which the hypervisor's log tells: none is the guest's business here.
const EVENT: &str = r"smmu\d+: [A-Z]+_[A-Z_]+ sid ";

/// All of a disk and two NICs is used.
const USED: &str = r"action use: ok: 1 disks, 2 interfaces, [1-9]\d* interrupts";
/// The SMMU's own interrupts are messages, too: none before a program's device faults, some after it.
const SILENT: &str = "action smmu-irqs: ok: 0 interrupts of event queues by messages";
const RAISED: &str = r"action smmu-irqs: ok: [1-9]\d* interrupts of event queues by messages";

/// An action's verdict. What it shows of others' may have the word too.
const FAILED: &str = "action [a-z-]+: FAILED";

const KERNELS: [&str; 2] = ["6.1", "6.12"];
const FIRMWARE: [&str; 2] = ["dt", "acpi"];
const POLICIES: [&str; 2] = ["rmr", "vits"];
/// How Linux maps for its drivers, and its words for that.
const MODES: [(&str, &str); 3] = [
    ("strict", "iommu.strict=1"),
    ("lazy", "iommu.strict=0"),
    ("passthrough", "iommu.passthrough=1"),
];

/// A Linux with an SMMU of its own.
#[derive(Clone, Copy)]
struct Linux {
    kernel: &'static str,
    firmware: &'static str,
    policy: &'static str,
    /// Words of its command line.
    words: &'static str,
    vcpus: u32,
    /// The devices, as the manifest has them.
    devices: &'static str,
}

impl Linux {
    /// That does these actions.
    fn does(self, actions: &str) -> Bundle {
        let Self {
            kernel,
            firmware,
            policy,
            words,
            vcpus,
            devices,
        } = self;
        // What is not zeroed takes no time; the next kernel takes room beside this one.
        let memory = match actions.contains("kexec") {
            true => "256M",
            false => "160M",
        };
        let manifest = format!(
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"{memory}\"\ncpus = {vcpus}\n\
             kernel = \"debian:{kernel}\"\ninitrd = \"initramfs\"\nfirmware = \"{firmware}\"\n\
             iommu = \"nested\"\nmsi = \"{policy}\"\n\
             append = \"console=ttyAMA0 quiet {words} do={actions}\"\ndevices = [{devices}]\n"
        );
        // Like the manifests that are constants, it stays as long as the tests run.
        Bundle::Manifest(manifest.leak())
    }

    /// By a device tree, firmware can only insist on the window, and then the kernel gives no program a device.
    fn refuses_vfio(self) -> bool {
        self.firmware == "dt" && self.policy == "rmr"
    }
}

/// The board's disk; an `edu`, a virtio NIC and an e1000e.
const DEVICES: &str = r#"{ host = "0000:00:01.0" }, { host = "0000:00:02.0" }, { host = "0000:00:03.0" },
    { host = "0000:00:04.0" }"#;
/// The same, a disk with a kernel, and another `edu`.
const AND_KERNEL: &str = r#"{ host = "0000:00:01.0" }, { host = "0000:00:02.0" }, { host = "0000:00:03.0" },
    { host = "0000:00:04.0" }, { host = "0000:00:05.0" }, { host = "0000:00:06.0" }"#;
/// The board's disk, and a virtio NIC, an e1000e and an igb that can all be reset, two of them behind ports of the
/// guest's own.
const BEHIND_PORTS: &str = r#"{ host = "0000:00:01.0" }, { host = "0000:01:00.0", guest = "01:00.0" },
    { host = "0000:02:00.0" }, { host = "0000:03:00.0", guest = "02:00.0" }"#;

pub(super) fn cases() -> Vec<Case> {
    [
        matrix(),
        vec![reset(), handed_on()],
        lives(),
        two(),
        vec![together(), refused()],
    ]
    .concat()
}

/// A case with the four devices.
fn with_devices(name: String, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name)
        .bundle(bundle)
        .args(&["-device", "edu,addr=2"]);
    case = nic(
        case,
        0,
        "virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=3",
    );
    nested(nic(case, 1, "e1000e,addr=4"))
}

/// What none of the consoles may show. The hypervisor has nothing to say but that some devices cannot be reset.
fn nested(mut case: Case) -> Case {
    case.forbids = [
        r"^\[ *\d+\.\d{6}\] ERROR ",
        r"^\[ *\d+\.\d{6}\] WARN +([^s ]|start: [^p])",
        EVENT,
        "by another chip",
        "(?i)call trace|timeout, completion polled|kernel panic",
    ]
    .map(str::to_owned)
    .to_vec();
    case.timeout = Duration::from_secs(600);
    case
}

/// What a program finds that drives an `edu` whose group is of this type.
fn driven(group: &str) -> [String; 5] {
    let says = |what: &str| format!(r"action vfio: 0000:00:02\.0 \({group}\): {what}");
    [
        says("4096 bytes copied by DMA, .* nothing beside them changed, no event"),
        says("2 interrupts by messages"),
        says(
            "behind a mapping: refused, and the log has F_TRANSLATION sid 0x10, write of 0x4010000",
        ),
        says(
            "where memory was: refused, and the log has F_TRANSLATION sid 0x10, write of 0x8103000",
        ),
        says(
            "to memory for reading: refused, and the log has F_PERMISSION sid 0x10, write of 0x8103000",
        ),
    ]
}

fn matrix() -> Vec<Case> {
    let mut rows = super::pairwise::full(&[2, 2, 2, 3]);
    // `refused` has that one.
    rows.retain(|row| row[..3] != [0, 0, 0]);
    sampled_beside(&BESIDE, rows)
        .into_iter()
        .map(|(row, only_full)| {
            let (mode, words) = MODES[row[3]];
            let linux = Linux {
                kernel: KERNELS[row[0]],
                firmware: FIRMWARE[row[1]],
                policy: POLICIES[row[2]],
                words,
                vcpus: 2,
                devices: DEVICES,
            };
            let Linux {
                kernel,
                firmware,
                policy,
                ..
            } = linux;
            let group = ["DMA", "DMA-FQ", "identity"][row[3]];
            let vfio = if linux.refuses_vfio() {
                "vfio:refused"
            } else {
                "vfio,smmu-irqs:messages:raised"
            };
            let name =
                format!("a guest's own SMMU: Linux {kernel} by {firmware}, {policy}, {mode}");
            let actions = format!("iommu:{policy},smmu-irqs:messages:none,use,{vfio}");
            let mut case = with_devices(name, linux.does(&actions)).expect(&[
                &format!(
                    r"guest: Linux {}\..* is up, 2 CPUs",
                    kernel.replace('.', r"\.")
                ),
                &format!("action iommu: ok: 1 SMMUs, 3 devices, {group}, {policy}"),
                SILENT,
                USED,
            ]);
            if linux.refuses_vfio() {
                case = case.expect(&["action vfio: ok: 1 devices refused: firmware insists"]);
            } else {
                case.expects.extend(driven(group));
                case = case.expect(&["action vfio: ok: 1 devices driven by a program", RAISED]);
            }
            // The waits of its driver are words in memory, by messages too: few where nothing is mapped.
            let mut case = told(
                case,
                &["its guest's SMMU: 4 streams, .*, 0 refused, .*, [1-9][0-9]* messages"],
            );
            case.forbids.push(FAILED.to_owned());
            case.only_full = only_full;
            case.vary.threads = Threads::One;
            case
        })
        .collect()
}

/// The four devices, two of them behind an SMMU of their own.
const BEHIND_TWO: &str = r#"{ host = "0000:00:01.0" }, { host = "0000:00:02.0", smmu = 1 }, { host = "0000:00:03.0" },
    { host = "0000:00:04.0", smmu = 1 }"#;

/// Two functions of one device, which does not isolate them: one group to the guest, and both work. (Of Intel's devices
/// in the root complex Linux knows that they are isolated from each other, and says so on the machine without us, too.)
fn together() -> Case {
    let linux = Linux {
        kernel: "6.12",
        firmware: "acpi",
        policy: "rmr",
        words: "iommu.strict=1",
        vcpus: 2,
        devices: r#"{ host = "0000:00:01.0" }, { host = "0000:00:04.0", guest = "00:04.0" },
            { host = "0000:00:04.1", guest = "00:04.1" }"#,
    };
    let case = Case::new(
        BOARD,
        "a guest's own SMMU, functions of one device are one group: Linux 6.12 by acpi",
    )
    .bundle(linux.does("iommu:rmr,use,off"));
    const NIC: &str = "virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=04";
    let case = nic(case, 0, &format!("{NIC}.0,multifunction=on"));
    nested(nic(case, 1, &format!("{NIC}.1")).one_thread()).expect(&[
        // Drivers are loaded in the order of their names.
        r"0000:00:01\.0, nvme, group 1, DMA",
        r"0000:00:04\.0, virtio-pci, group 0, DMA",
        r"0000:00:04\.1, virtio-pci, group 0, DMA",
        "action iommu: ok: 1 SMMUs, 3 devices, DMA, rmr",
        USED,
        "vm linux: powered off",
    ])
}

/// What the monitor says of a guest's SMMUs when its actions are done.
fn told(case: Case, says: &[&str]) -> Case {
    case.expect(&["/ # "])
        .types("\x1dm")
        .asks("devices linux", says)
        .asks("quit", &["verdict 0: the monitor was told to quit"])
}

/// What else uses all devices by default, as a row of the matrix: both of `two`, and both of `lives`.
const BESIDE: [[usize; 4]; 2] = [[1, 1, 0, 0], [0, 0, 1, 0]];

/// A guest with two SMMUs: Linux drives both, each device behind its own, and the program's faults are in the log of
/// the one that its device is behind.
fn two() -> Vec<Case> {
    BESIDE
        .map(|row| {
            let (kernel, firmware, policy) =
                (KERNELS[row[0]], FIRMWARE[row[1]], POLICIES[row[2]]);
            let linux = Linux {
                kernel,
                firmware,
                policy,
                words: "iommu.strict=1",
                vcpus: 2,
                devices: BEHIND_TWO,
            };
            let name = format!(
                "a guest's two SMMUs, devices behind each: Linux {kernel} by {firmware}, {policy}"
            );
            let actions = format!(
                "iommu:{policy},smmu-irqs:messages:none,smmu-irqs:messages:raised,use,vfio,\
                 smmu-irqs:messages:raised,smmu-irqs:wires:raised"
            );
            let mut case = with_devices(name, linux.does(&actions)).expect(&[
                &format!("vm linux: its guest has 2 SMMUs of its own, messages by {policy}"),
                &format!("action iommu: ok: 2 SMMUs, 3 devices, DMA, {policy}"),
                r"ITS\S* .* arm-smmu-v3-evtq",
                r"ITS\S* .* arm-smmu-v3-gerror",
                SILENT,
                // The controls of what is said of interrupts: none has come yet, and it is no wire.
                "action smmu-irqs: FAILED: no interrupt of an event queue",
                USED,
            ]);
            case.expects.extend(driven("DMA"));
            case = case.expect(&[
                "action vfio: ok: 1 devices driven by a program",
                RAISED,
                "action smmu-irqs: FAILED: arm-smmu-v3-evtq: not all are wires",
            ]);
            const EACH: &str =
                "its guest's SMMU: 2 streams, [1-9][0-9]* commands, 0 refused, .*, [1-9][0-9]+ messages";
            let mut case = told(case, &[EACH; 2]);
            case.forbids
                .push("action (iommu|use|vfio): FAILED".to_owned());
            case.timeout = Duration::from_secs(300);
            // The other one has a thread for each CPU.
            if firmware == "acpi" {
                case.vary.threads = Threads::One;
            }
            case
        })
        .into()
}

/// A reset of the VM, and all of it again with devices that were reset too.
fn reset() -> Case {
    let linux = Linux {
        kernel: "6.12",
        firmware: "acpi",
        policy: "rmr",
        words: "iommu.strict=1",
        vcpus: 2,
        devices: BEHIND_PORTS,
    };
    let bundle = linux.does("iommu:rmr,use:restart,off");
    let name = "a guest's own SMMU across a reset of the VM, with devices behind ports";
    let mut case = nested(with_ports(Case::new(BOARD, name).bundle(bundle)).one_thread());
    case = case.expect(&[
        "action iommu: ok: 1 SMMUs, 4 devices, DMA, rmr",
        r"action use: 1 disks and 3 interfaces used, [1-9]\d* interrupts, resetting",
        "action iommu: ok: 1 SMMUs, 4 devices, DMA, rmr",
        "nvme0n1, nvme, bulkhead0: .*, data is as it was before",
        r"action use: ok: 1 disks, 3 interfaces, [1-9]\d* interrupts",
        "vm linux: powered off",
    ]);
    case.forbids.push(FAILED.to_owned());
    case.vary.threads = Threads::One;
    case
}

/// A disk goes from a Linux that has an SMMU to one that has none, and on to one that has another kind.
fn handed_on() -> Case {
    let manifest = |name: &str, start: &str, firmware: &str, keys: &str, actions: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"160M\"\nkernel = \"debian:6.12\"\n\
             initrd = \"initramfs\"\nfirmware = \"{firmware}\"\nstart = \"{start}\"\n{keys}\n\
             append = \"console=ttyAMA0 quiet do={actions},off\"\n\
             devices = [ {{ host = \"0000:00:01.0\" }} ]\n"
        )
    };
    let by_rmr = "iommu = \"nested\"\nmsi = \"rmr\"";
    let flat = "iommu = \"stage2\"\nmsi = \"vits\"";
    let by_vits = "iommu = \"nested\"\nmsi = \"vits\"";
    let vms = [
        manifest("one", "boot", "acpi", by_rmr, "iommu:rmr,use"),
        manifest("two", "after:one", "dt", flat, "iommu:none,use:verify"),
        manifest("three", "after:two", "dt", by_vits, "iommu:vits,use:verify"),
    ];
    let bundle = Bundle::Manifest(format!("version = 1\n{}", vms.concat()).leak());
    let name =
        "a guest's own SMMU: a disk with data goes to a Linux without one, and on to a third";
    let mut case = nested(Case::new(BOARD, name).bundle(bundle).one_thread()).expect(&[
        r"action iommu: ok: 1 SMMUs, 1 devices, DMA, rmr",
        "data written and read back",
        r"action iommu: ok: no SMMU, no group",
        "data is as it was before",
        r"action iommu: ok: 1 SMMUs, 1 devices, DMA, vits",
        "data is as it was before",
        "action use: ok: 1 disks, 0 interfaces, ",
    ]);
    case.forbids.push(FAILED.to_owned());
    case
}

/// Drivers come and go, streams change between bypass and stage 1, and the next kernel takes over an SMMU that is on.
fn lives() -> Vec<Case> {
    let by = |kernel: &'static str, firmware: &'static str, policy: &'static str| {
        let linux = Linux {
            kernel,
            firmware,
            policy,
            words: "iommu.strict=1",
            vcpus: 2,
            devices: AND_KERNEL,
        };
        // The control for what `iommu` says: the other policy is not there.
        let other = if policy == "rmr" { "vits" } else { "rmr" };
        let bundle = linux.does(&format!(
            "iommu:{other},iommu:{policy},vfio,rebind,type,kexec,iommu:{policy},vfio,use,off"
        ));
        let name = format!(
            "a guest's own SMMU, drivers and kernels come and go: Linux {kernel} by {firmware}, {policy}"
        );
        let mut case = with_devices(name, bundle).expect(&[
            &format!("action iommu: FAILED: for {other} the reserved regions should be"),
            &format!("action iommu: ok: 1 SMMUs, 4 devices, DMA, {policy}"),
        ]);
        case.disks = Disks::AndKernel(kernel);
        // Devices of CPUs that really run at once are those of `two`'s second one.
        case.vary.threads = Threads::One;
        case = case.args(&["-device", "edu,addr=6"]);
        case.expects.extend(driven("DMA"));
        case = case.expect(&[
            r"action vfio: 0000:00:02\.0 and 0000:00:06\.0: both copied 4096 bytes at the same time, .* each its own",
            "what the other one still has: refused, and the log has F_TRANSLATION sid 0x30, write of 0x8103000",
            "action vfio: ok: 2 devices driven by a program",
            "6 files are as they were, round 2",
            "action rebind: ok: 2 rounds",
            "DMA to DMA-FQ while it was read .* times, always the same",
            "DMA-FQ to identity without a driver, 6 files are as they were",
            "identity to DMA without a driver, 6 files are as they were",
            r"eth\d meanwhile: ([1-9]\d*) of [1-9]\d* pings answered",
            "action type: ok: 1 disks",
            r"action kexec: starting the kernel on vda, .* do=iommu:\w+,vfio,use,off",
            "guest: Linux .* is up, 2 CPUs",
            &format!("action iommu: ok: 1 SMMUs, [45] devices, DMA, {policy}"),
        ]);
        case.expects.extend(driven("DMA"));
        case = case.expect(&[
            "action vfio: ok: 2 devices driven by a program",
            USED,
            "vm linux: powered off",
        ]);
        case
    };
    vec![by("6.12", "acpi", "rmr"), by("6.1", "dt", "vits")]
}

/// A kernel that would boot and silently have no messages.
fn refused() -> Case {
    let args = ["run", "--guest", "manifest.toml"];
    let mut case = Case::new(
        BOARD,
        "Linux 6.1 by a device tree with a window for messages is refused with its line",
    );
    case.check = Check::Refused {
        args: args.map(str::to_owned).to_vec(),
        around: Around::Manifest(
            "version = 1\n[[vm]]\nname = \"a\"\nmemory = \"512M\"\nkernel = \"debian:6.1\"\n\
             firmware = \"dt\"\niommu = \"nested\"\nmsi = \"rmr\"\n",
        ),
        message: r#"manifest.toml:8:7: vm\[0\].msi: with firmware "dt" and a nested IOMMU, "rmr" needs a kernel of 6\.3"#,
    };
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_each_pair_is_there_and_each_way_to_tell_of_interrupts() {
        let boots: Vec<String> = [matrix(), two()]
            .concat()
            .into_iter()
            .filter(|case| !case.only_full)
            .map(|case| case.name)
            .collect();
        // By ACPI the two kernels take the mapping for the SMMU's interrupts by different rules.
        for wanted in [
            "Linux 6.12 by acpi",
            "Linux 6.12 by dt, vits",
            "Linux 6.1 by acpi, vits",
        ] {
            assert!(boots.iter().any(|name| name.contains(wanted)), "{wanted}");
        }
        let firmware = ["by dt", "by acpi"];
        for mode in ["lazy", "passthrough"] {
            for other in KERNELS
                .map(|kernel| format!("Linux {kernel} "))
                .iter()
                .map(String::as_str)
                .chain(firmware)
                .chain(POLICIES)
            {
                assert!(
                    boots
                        .iter()
                        .any(|name| name.contains(mode) && name.contains(other)),
                    "{mode} with {other}"
                );
            }
        }
    }

    #[test]
    fn the_matrix_is_whole_but_for_what_is_refused() {
        let cases = matrix();
        // Two kernels, two kinds of firmware, two policies, three modes; without 6.1 by dt with rmr.
        assert_eq!(cases.len(), 2 * 2 * 2 * 3 - 3);
        let sample = cases.iter().filter(|case| !case.only_full).count();
        assert!((4..=5).contains(&sample), "{sample} boots");
        assert!(
            !cases
                .iter()
                .any(|case| case.name.contains("Linux 6.1 by dt, rmr"))
        );
    }
}
