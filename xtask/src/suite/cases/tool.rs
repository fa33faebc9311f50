//! Tests of this very tool: wrong input, which may not start a machine; its end; its dry run.

use rustix::process::Signal;

use super::{Around, Case, Check};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = refusals();
    for (name, signal) in [
        ("Ctrl-C leaves no QEMU behind", Signal::INT),
        ("no QEMU outlives a killed tool", Signal::KILL),
    ] {
        cases.push(Case {
            check: Check::Ended(signal),
            ..Case::new("virt", name)
        });
    }
    cases.push(Case {
        check: Check::Tables,
        ..Case::new(
            "virt",
            "the ACPI tables of guests disassemble cleanly with iasl",
        )
    });
    for board in ["virt", "pseries"] {
        let guest = match board {
            "virt" => "qemu/guests/bench.toml",
            _ => "qemu/guests/bench-pseries.toml",
        };
        let args = ["run", board, "--dry-run", "--guest", guest]
            .map(str::to_owned)
            .to_vec();
        let name = format!("the dry run's line works when pasted, {board}");
        cases.push(Case {
            check: Check::Pasted { args },
            ..Case::new("virt", name)
        });
    }
    cases
}

fn refusals() -> Vec<Case> {
    vec![
        refused(
            "an unknown board is refused",
            &["run", "toaster"],
            "pseries, virt",
        ),
        refused(
            "an unknown option is refused",
            &["run", "--toast"],
            "--toast",
        ),
        refused(
            "an unknown firmware is refused",
            &["run", "pseries", "--firmware", "bios"],
            "it has: slof, vof",
        ),
        refused(
            "a size without a unit is refused",
            &["run", "--memory", "512"],
            "512M",
        ),
        refused("no CPU at all is refused", &["run", "--smp", "0"], "--smp"),
        refused(
            "a missing kernel is refused by name",
            &["run", "--kernel", "no/such/kernel"],
            "no/such/kernel",
        ),
        refused(
            "a missing initrd is refused by name",
            &["run", "--initrd", "no/such/initrd"],
            "no/such/initrd",
        ),
        refused(
            "a missing manifest is refused by name",
            &["run", "--guest", "no/such/manifest.toml"],
            "no/such/manifest.toml",
        ),
        refused(
            "a faulty expression is refused",
            &["run", "--expect", "("],
            "without closing",
        ),
        refused(
            "an unknown test is refused",
            &["test", "virt", "no such test"],
            "no such",
        ),
        refused(
            "an unknown bench is refused",
            &["bench", "no-such-bench"],
            "boot-report",
        ),
        around(
            "a QEMU that is too old is refused",
            Around::OldQemu("7.2.0"),
            &["run"],
            "9.2 or newer.*7.2.0",
        ),
        around(
            "a build without room on disk is refused",
            Around::DiskOf("1000000000"),
            &["build"],
            "[0-9]+ MiB free, and `cargo xtask build` needs 1000000000 MiB there; .*CARGO_TARGET_DIR",
        ),
        around(
            "a lint without room on disk is refused",
            Around::DiskOf("1000000000"),
            &["lint"],
            "[0-9]+ MiB free, and `cargo xtask lint` needs 1000000000 MiB there; .*CARGO_TARGET_DIR",
        ),
        around(
            "a run without room on disk is refused",
            Around::DiskOf("1000000000"),
            &["run"],
            "[0-9]+ MiB free, and `cargo xtask run` needs 1000000000 MiB there; .*CARGO_TARGET_DIR",
        ),
        around(
            "a test without room on disk is refused",
            Around::DiskOf("1000000000"),
            &["test", "host", "no such test"],
            "[0-9]+ MiB free, and `cargo xtask test` needs 1000000000 MiB there; .*CARGO_TARGET_DIR",
        ),
        around(
            "a size of the disk that is no number is refused",
            Around::DiskOf("much"),
            &["build"],
            "BULKHEAD_DISK_MIB is `much`",
        ),
        around(
            "an output on a full disk ends the tool with an error",
            Around::FullOutput,
            &["doctor"],
            "error: cannot write the output: No space left on device",
        ),
        around(
            "a manifest with an unknown key is refused with its line",
            Around::Manifest(
                "version = 1\n[[vm]]\nname = \"a\"\nmemroy = \"2M\"\nkernel = \"x\"\n",
            ),
            &["run", "--guest", "manifest.toml"],
            r"manifest.toml:4:1.*memroy",
        ),
        around(
            "a manifest that names a missing file is refused with its line",
            Around::Manifest(
                "version = 1\n[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"none/such\"\n",
            ),
            &["run", "--guest", "manifest.toml"],
            r"manifest.toml:5:.*none/such",
        ),
        around(
            "a console device that the board's guests do not get is refused with its line",
            Around::Manifest(
                "version = 1\n[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"x\"\nconsole = \"hvc\"\n",
            ),
            &["run", "--guest", "manifest.toml"],
            r"manifest.toml:6:11: vm\[0\].console: not supported on this board",
        ),
        around(
            "a device tree for a guest on POWER is refused with its line",
            Around::Manifest(
                "version = 1\n[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"x\"\ndtb = \"y\"\n",
            ),
            &["run", "pseries", "--guest", "manifest.toml"],
            r"manifest.toml:6:7: vm\[0\].dtb: not supported on this board",
        ),
        around(
            "a manifest that is no TOML is refused with its line",
            Around::Manifest("version = 1\n[[vm]\n"),
            &["run", "--guest", "manifest.toml"],
            "manifest.toml:2:",
        ),
    ]
}

fn refused(name: &str, args: &[&str], message: &'static str) -> Case {
    around(name, Around::Usual, args, message)
}

fn around(name: &str, around: Around, args: &[&str], message: &'static str) -> Case {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let check = Check::Refused {
        args,
        around,
        message,
    };
    Case {
        check,
        ..Case::new("virt", name)
    }
}
