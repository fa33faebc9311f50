//! Tests of QEMU's Arm machine.

use super::{Bundle, Case, Check, Disks, Tree, bundles, provoked, sampled};
use crate::qemu::Time;

const BOARD: &str = "virt";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reports();
    cases.extend(machines());
    cases.extend(bundles(BOARD));
    cases.extend(provoked(
        BOARD,
        &[
            (
                "panic",
                &["PANIC on CPU 0", "backtrace", r"\+0x", "verdict 1: panic"],
            ),
            (
                "exception",
                &[
                    "EXCEPTION on CPU 0: synchronous: data abort",
                    "elr .* esr",
                    "verdict 1",
                ],
            ),
            (
                "stack-overflow",
                &["backtrace", "verdict 1: stack overflow"],
            ),
            (
                "out-of-memory",
                &["memory allocation of .* failed", "verdict 1"],
            ),
            ("panic-in-panic", &["PANIC", "verdict 1: failed again"]),
            (
                "write-text",
                &["data abort, write", "permission fault", "verdict 1"],
            ),
            (
                "execute-data",
                &["instruction abort", "permission fault", "verdict 1"],
            ),
        ],
    ));
    cases
}

/// The report is true for every CPU model, CPU count and memory size.
fn reports() -> Vec<Case> {
    const CPUS: [(&str, &str); 5] = [
        ("max", "QEMU max"),
        ("neoverse-n1", "Neoverse-N1"),
        ("neoverse-v1", "Neoverse-V1"),
        ("cortex-a72", "Cortex-A72"),
        ("cortex-a57", "Cortex-A57"),
    ];
    const SMP: [u32; 3] = [1, 2, 8];
    const MEMORY: [(&str, &str); 3] = [
        ("512M", "0x40000000-0x5fffffff, 512 MiB"),
        ("2G", "0x40000000-0xbfffffff, 2 GiB"),
        ("8G", "0x40000000-0x23fffffff, 8 GiB"),
    ];
    sampled(&[CPUS.len(), SMP.len(), MEMORY.len()])
        .into_iter()
        .map(|(row, only_full)| {
            let (cpu, name) = CPUS[row[0]];
            let smp = SMP[row[1]];
            let (memory, range) = MEMORY[row[2]];
            let mut case = Case::new(BOARD, format!("report on {cpu}, smp {smp}, {memory}"));
            case.expects = vec![
                "Bulkhead .* on Arm, EL2".to_owned(),
                // The first touch of the SMMU closes it.
                r"smmu0: names no product, no erratum known".to_owned(),
                r"smmu0: locked: GBPA.ABORT 1 \(was 0\)".to_owned(),
                format!("memory: {range}"),
                format!("boot cpu: .*{name}"),
                format!("cpus: {smp} online of {smp}"),
                "nvme BAR0 .* sid 0x8".to_owned(),
                "report: complete".to_owned(),
            ];
            case.vary.cpu = Some(cpu.to_owned());
            case.vary.smp = Some(smp);
            case.vary.memory = Some(memory.to_owned());
            case.only_full = only_full;
            case
        })
        .collect()
}

/// Machines out of the ordinary.
fn machines() -> Vec<Case> {
    let mut same = Case::new(BOARD, "the console is the same in two runs under --icount")
        .bundle(Bundle::Small)
        .expect(&["SMMUEN", "report: complete"]);
    same.vary.time = Time::Instructions;
    same.check = Check::SameTwice;

    let mut small = Case::new(BOARD, "256M of memory are enough")
        .expect(&["memory: .*, 256 MiB", "report: complete"]);
    small.vary.memory = Some("256M".to_owned());

    let mut many = Case::new(BOARD, "64 CPUs all come online")
        .expect(&["cpus: 64 online of 64", "report: complete"]);
    many.vary.smp = Some(64);
    // On the wall clock, 64 emulated CPUs on a busy machine arrive later than any bound allows.
    many.vary.time = Time::Instructions;

    let mut bare = Case::new(BOARD, "a machine without a device is reported").expect(&[
        "pci 0000: ECAM",
        "pci segment 0000 .*: 1 functions",
        "report: complete",
    ]);
    bare.disks = Disks::None;

    let mut linux = Case::new(
        BOARD,
        "Linux 6.12 boots as a guest, runs a command and powers off",
    )
    .bundle(Bundle::OneCommand)
    .expect(&[
        r"guest: Linux 6\.12\..* on aarch64 is up",
        r"Linux .* 6\.12\..* aarch64",
        "guest: command ended with 0",
    ]);
    // Linux says such things too.
    linux.forbids.clear();
    // Those of `linux.rs` do so by default, and one of `nested.rs` has the board's own manifest.
    linux.only_full = true;

    let tree = |what: &str, tree: Tree| Case {
        tree,
        ..Case::new(BOARD, format!("a tree {what}"))
    };
    let mut without_cpus = tree("without CPUs is reported", Tree::Without("cpus")).expect(&[
        "cpus: none described",
        "WARN .*boot cpu: mpidr 0x0 is not in the device tree",
        "cpus: 1 online of 0",
        "report: complete",
    ]);
    without_cpus.forbids = vec!["PANIC|EXCEPTION".to_owned()];

    vec![
        tree("without its GIC is refused", Tree::Without("intc@"))
            .expect(&[
                "ERROR .*device tree: /: interrupt-parent: no node has phandle 0x",
                "verdict 1: the device tree cannot be used",
            ])
            .fatal(),
        tree("without its SMMU is reported", Tree::Without("smmuv3@")).expect(&[
            "smmu: none described: no device can be isolated",
            "note: /pcie@.*: behind an IOMMU that is not supported",
            "report: complete",
        ]),
        tree("without PCI is reported", Tree::Without("pcie@")).expect(&[
            "pci: no host bridge described",
            "pci: no host bridge",
            "report: complete .*, 0 functions",
        ]),
        without_cpus,
        tree(
            "that is larger than any may be is refused",
            Tree::Filled(4 << 20),
        )
        .expect(&[
            "ERROR .*device tree: [0-9]+ bytes, more than the 4194304 that are allowed",
            "verdict 1: the device tree cannot be used",
        ])
        .fatal(),
        same,
        linux,
        small,
        many,
        bare,
        Case::new(BOARD, "an ITS and an SMMU may be missing")
            .args(&["-M", "virt,its=off,iommu=none"])
            .expect(&["gic: GICv3", "smmu: none described", "report: complete"]),
        Case::new(
            BOARD,
            "devices behind bridges and switches are placed and grouped",
        )
        .args(&["-device", "pcie-root-port,id=rp1,chassis=1"])
        .args(&["-device", "x3130-upstream,id=up,bus=rp1"])
        .args(&[
            "-device",
            "xio3130-downstream,id=d1,bus=up,chassis=2,slot=1",
        ])
        .args(&[
            "-device",
            "xio3130-downstream,id=d2,bus=up,chassis=3,slot=2",
        ])
        .args(&[
            "-device",
            "edu,bus=d1",
            "-device",
            "edu,bus=d2",
            "-device",
            "edu",
        ])
        .expect(&[
            "9 functions in 5 groups, [0-9]+ BARs placed, 0 kept, 0 not placed",
            "pci 00:02.0 .* root-port bus 01-04 .* acs group 2 sid 0x10",
            "pci 00:03.0 1234:11e8 .* group 3 sid 0x18",
            "pci 03:00.0 1234:11e8 .* group 4 sid 0x300",
            "pci 04:00.0 1234:11e8 .* group 4 sid 0x400",
            "group 4 joins 03:00.0 with 02:00.0: port without ACS",
        ]),
        Case::new(
            BOARD,
            "a BAR larger than every window is reported and left out",
        )
        .args(&["-object", "memory-backend-ram,id=m,size=1T,reserve=off"])
        .args(&["-device", "ivshmem-plain,memdev=m"])
        .expect(&[
            "0 kept, 1 not placed",
            "nvme BAR0 .* @0x",
            r"BAR2 pref64 1T not placed: larger than the largest window \(512G\)",
            "report: complete",
        ]),
    ]
}
