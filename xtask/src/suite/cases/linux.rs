//! Debian's kernels as guests: both series, both kinds of firmware, 1, 2 and 4 vCPUs, on three CPU models.
//!
//! The guest prints its whole log and its interrupts once it is up, so that what is judged is not torn
//! by what the kernel says at the same time; its warnings and errors come at once.

use std::time::Duration;

use super::{Bundle, Case, Check, sampled};
use crate::qemu::Threads;
use crate::suite::kernel_log;

const BOARD: &str = "virt";

/// A kernel series, and a name for it in an expression.
const KERNELS: [(&str, &str); 2] = [("6.1", r"6\.1\."), ("6.12", r"6\.12\.")];
/// A firmware, and who judges the log of a kernel that was started with it.
const FIRMWARE: [(&str, Judge); 2] = [
    ("dt", kernel_log::judge_device_tree),
    ("acpi", kernel_log::judge_acpi),
];
const VCPUS: [u32; 3] = [1, 2, 4];
const CPUS: [&str; 3] = ["max", "neoverse-n1", "cortex-a57"];

type Judge = fn(&str) -> anyhow::Result<()>;

macro_rules! manifest {
    ($kernel:literal, $firmware:literal, $vcpus:literal) => {
        Bundle::Manifest(concat!(
            "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"160M\"\ncpus = ",
            $vcpus,
            "\nkernel = \"debian:",
            $kernel,
            "\"\ninitrd = \"initramfs\"\nfirmware = \"",
            $firmware,
            "\"\nrestart = \"never\"\n",
            "append = \"loglevel=5 bulkhead.run=dmesg;cat+/proc/interrupts\"\n"
        ))
    };
}

/// By kernel, firmware and vCPUs, as in the tables above.
const MANIFESTS: [[[Bundle; 3]; 2]; 2] = [
    [
        [
            manifest!("6.1", "dt", 1),
            manifest!("6.1", "dt", 2),
            manifest!("6.1", "dt", 4),
        ],
        [
            manifest!("6.1", "acpi", 1),
            manifest!("6.1", "acpi", 2),
            manifest!("6.1", "acpi", 4),
        ],
    ],
    [
        [
            manifest!("6.12", "dt", 1),
            manifest!("6.12", "dt", 2),
            manifest!("6.12", "dt", 4),
        ],
        [
            manifest!("6.12", "acpi", 1),
            manifest!("6.12", "acpi", 2),
            manifest!("6.12", "acpi", 4),
        ],
    ],
];

pub(super) fn cases() -> Vec<Case> {
    sampled(&[KERNELS.len(), FIRMWARE.len(), VCPUS.len(), CPUS.len()])
        .into_iter()
        .map(|(row, only_full)| {
            let (kernel, version) = KERNELS[row[0]];
            let (firmware, judge) = FIRMWARE[row[1]];
            let vcpus = VCPUS[row[2]];
            let cpu = CPUS[row[3]];
            let name = format!("Linux {kernel} by {firmware} with {vcpus} vCPUs on {cpu}");
            let mut case = Case::new(BOARD, name).bundle(MANIFESTS[row[0]][row[1]][row[2]]);
            case.expects = vec![
                format!("guest: Linux {version}.* on aarch64 is up, {vcpus} CPUs"),
                format!("Brought up 1 node, {vcpus} CPU"),
                "guest: command ended with 0".to_owned(),
            ];
            // Linux says such things too; the judge knows which of them are bad.
            case.forbids = vec![
                r"^\[ *\d+\.\d{6}\] ERROR ".to_owned(),
                "Kernel panic".to_owned(),
            ];
            case.vary.cpu = Some(cpu.to_owned());
            case.vary.smp = Some(vcpus);
            // Those of the other series have a thread for each CPU.
            if kernel == "6.1" {
                case.vary.threads = Threads::One;
            }
            case.check = Check::Judged(judge);
            case.timeout = Duration::from_secs(600);
            case.only_full = only_full;
            case
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_has_its_manifest() {
        for (kernels, (kernel, _)) in MANIFESTS.iter().zip(KERNELS) {
            for (firmwares, (firmware, _)) in kernels.iter().zip(FIRMWARE) {
                for (bundle, vcpus) in firmwares.iter().zip(VCPUS) {
                    let Bundle::Manifest(text) = bundle else {
                        panic!("{bundle:?}");
                    };
                    assert!(text.contains(&format!("kernel = \"debian:{kernel}\"")));
                    assert!(text.contains(&format!("firmware = \"{firmware}\"")));
                    assert!(text.contains(&format!("cpus = {vcpus}\n")));
                }
            }
        }
    }

    #[test]
    fn the_sample_is_small_and_the_product_whole() {
        let cases = cases();
        assert_eq!(cases.len(), 36);
        let sample = cases.iter().filter(|case| !case.only_full).count();
        assert!((9..=12).contains(&sample), "{sample} boots");
    }
}
