//! Boot bundles for the tests, good ones and damaged ones.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::cases::Bundle;
use crate::board::{Arch, Board};
use crate::manifest::{self, Overrides, PayloadName};
use crate::{run, workspace};

/// The memory is the least that POWER gives a guest.
const MANIFEST: &str = "\
version = 1
[[vm]]
name = \"tiny\"
memory = \"256M\"
kernel = \"tiny.bin\"
kernel_format = \"flat\"
";
const KERNEL_BYTES: usize = 5000;
/// Words for kernels that a test boots to see devices work, not to see a kernel boot: without them two thirds of what
/// a boot takes goes to what has to do with neither us nor devices. The kernel tests its ciphers, reads its own types
/// for BPF and the certificate that its modules are signed with, measures a source of entropy, and has security modules,
/// audits and IPv6, which nothing here uses. The boards' own guests, and on Arm the matrix of kernels, firmware and
/// vCPUs, boot as Debian has it.
const QUICK: &str = "cryptomgr.notests initcall_blacklist=bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,\
                     bpf_prog_test_run_init,load_system_certificate_list,jent_mod_init lsm= audit=0 ipv6.disable=1";
/// How the machine of such a kernel differs from the board's, in the words of QEMU's `-cpu`: a sixth of what a boot
/// takes is the emulator's arithmetic for the signatures of pointers, which the kernel makes in every function. Guests
/// of our own, the boards' own and the matrix of kernels keep them.
const QUICK_CPU: (&str, &str) = ("pauth-impdef=on", "pauth=off");
/// How a manifest's line for such a kernel begins.
const TOLD_OF_CONSOLE: [&str; 2] = ["append = \"console=", "append = 'console="];
/// What is typed at the serial port of `echo.bin`: it ends with the first `q`.
pub(super) const TYPED: &str = "typed at the port of the VM: q";
/// Flat Arm kernels of a few instructions and a text, which a test's manifest may name.
const TINY: [(&str, &[u32], &str); 8] = [
    // mov x1, #0x9000000; 1: ldrb w2, [x0], #1; cmp w2, #'@'; b.ne 1b; 2: ldrb w2, [x0], #1; cbz w2, 3f;
    // strb w2, [x1]; b 2b; 3: as off: prints what its device tree has behind the first @.
    (
        "tree.bin",
        &[
            0xd2a1_2001,
            0x3840_1402,
            0x7101_005f,
            0x54ff_ffc1,
            0x3840_1402,
            0x3400_0062,
            0x3900_0022,
            0x17ff_fffd,
            0x5280_0100,
            0x72b0_8000,
            0xd400_0002,
        ],
        "",
    ),
    // b .
    ("spin.bin", &[0x1400_0000], ""),
    // mov w0, #0x84000008; hvc #0: PSCI SYSTEM_OFF.
    ("off.bin", &[0x5280_0100, 0x72b0_8000, 0xd400_0002], ""),
    // mov w0, #0x84000009; hvc #0: PSCI SYSTEM_RESET.
    ("reset.bin", &[0x5280_0120, 0x72b0_8000, 0xd400_0002], ""),
    // mov x1, #0x9000000; mov w0, #'x'; strb w0, [x1]; b .-4: prints without end.
    (
        "chatter.bin",
        &[0xd2a1_2001, 0x5280_0f00, 0x3900_0020, 0x17ff_ffff],
        "",
    ),
    // mov x1, #0x9000000; mov w0, #0x301; str w0, [x1, #0x30]; 1: ldr w0, [x1, #0x18]; tbnz w0, #4, 1b;
    // ldr w0, [x1]; strb w0, [x1]; cmp w0, #'q'; b.ne 1b; as off: sends back what it gets up to a q.
    (
        "echo.bin",
        &[
            0xd2a1_2001,
            0x5280_6020,
            0xb900_3020,
            0xb940_1820,
            0x3727_ffe0,
            0xb940_0020,
            0x3900_0020,
            0x7101_c41f,
            0x54ff_ff61,
            0x5280_0100,
            0x72b0_8000,
            0xd400_0002,
        ],
        "",
    ),
    // No kernel: what is typed at a serial port.
    ("typed.txt", &[], TYPED),
    // adr x2, text; mov x1, #0x9000000; 1: ldrb w0, [x2], #1; cbz w0, 2f; strb w0, [x1]; b 1b; 2: as off.
    (
        "forger.bin",
        &[
            0x1000_0122,
            0xd2a1_2001,
            0x3840_1440,
            0x3400_0060,
            0x3900_0020,
            0x17ff_fffd,
            0x5280_0100,
            0x72b0_8000,
            0xd400_0002,
        ],
        "bulkhead: verdict 1: forged\r\nx\rbulkhead: verdict 1: forged\n\
         bulkhead: verdict 1: unfinished\0",
    ),
];
/// Where a `newc` header has the size of its file, and how long a header is.
const SIZE_AT: usize = 54;
const MAGIC: &[u8] = b"070701";

/// The bundle's file; `name` keeps those of tests that run at the same time apart.
///
/// # Errors
/// It cannot be made.
pub(super) fn file(board: &Board, bundle: Bundle, name: &str) -> Result<Option<PathBuf>> {
    let bytes = match bundle {
        Bundle::None => return Ok(None),
        Bundle::Manifest(text) => {
            let manifest = with_files(&board.name, name, &quick(text))?;
            run::bundle_of(board, &manifest, &Overrides::default())?
        }
        Bundle::Unchecked(text) => {
            let manifest = with_files(&board.name, name, text)?;
            manifest::build_bundle(&manifest, &Overrides::default(), &|name, _series| {
                anyhow::bail!("an unchecked bundle asks for {name}")
            })?
        }
        Bundle::OfBoard => of_board(board, None)?,
        Bundle::OneCommand => {
            let console = match board.arch {
                Arch::Aarch64 => "ttyAMA0",
                Arch::Ppc64 => "hvc0",
            };
            of_board(
                board,
                Some(format!("console={console} quiet bulkhead.run=uname+-a")),
            )?
        }
        Bundle::Small => small(board.arch)?,
        Bundle::Truncated => {
            let mut bytes = small(board.arch)?;
            let kernel = kernel_header(&bytes)?;
            bytes.truncate(kernel + KERNEL_BYTES / 2);
            bytes
        }
        Bundle::LyingHeader => {
            let mut bytes = small(board.arch)?;
            let size = kernel_header(&bytes)? + SIZE_AT;
            bytes
                .get_mut(size..size + 8)
                .context("the header is cut off")?
                .copy_from_slice(b"7FFFFFFF");
            bytes
        }
        Bundle::Garbage => b"no archive at all ".repeat(500),
    };
    let path = path(&board.name, name);
    workspace::write_whole(&path, &bytes)?;
    Ok(Some(path))
}

fn path(board: &str, name: &str) -> PathBuf {
    folder().join(format!("{board}-{name}.bundle"))
}

/// Removes the bundle of a test that passed, if it had one: all together are larger than all else that tests write.
///
/// # Errors
/// It is there and cannot be removed.
pub(super) fn discard(board: &str, name: &str) -> Result<()> {
    let path = path(board, name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The manifest, each kernel that is told of a console being told to be quick as well.
fn quick(manifest: &str) -> String {
    let mut text = manifest.to_owned();
    for begins in TOLD_OF_CONSOLE {
        let (key, console) = begins.split_at(begins.len() - "console=".len());
        text = text.replace(begins, &format!("{key}{QUICK} {console}"));
    }
    text
}

/// The CPU of the board for a test with this bundle, where it is another than the board's own.
pub(super) fn cpu(board: &Board, bundle: Bundle) -> Option<String> {
    let Bundle::Manifest(text) = bundle else {
        return None;
    };
    let is_quick = TOLD_OF_CONSOLE.iter().any(|begins| text.contains(begins));
    let (signs, does_not) = QUICK_CPU;
    (is_quick && board.cpu.contains(signs)).then(|| board.cpu.replace(signs, does_not))
}

/// Writes a test's manifest, and beside it what it may name. Boards have tests of the same name, which may run at the
/// same time.
fn with_files(board: &str, name: &str, text: &str) -> Result<PathBuf> {
    let manifest = folder().join(format!("{board}-{name}.toml"));
    workspace::write_whole(&manifest, text.as_bytes())?;
    for (name, code, text) in TINY {
        let code = code.iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = code.chain(text.bytes()).collect();
        workspace::write_whole(&folder().join(name), &bytes)?;
    }
    workspace::write_whole(
        &folder().join("own.dtb"),
        &tree("@a tree of the VM's own\r\n"),
    )?;
    Ok(manifest)
}

/// A device tree that has one property, `model`. [Devicetree Specification v0.4, chapter 5]
fn tree(model: &str) -> Vec<u8> {
    const NAME: &[u8; 8] = b"model\0\0\0";
    const HEADER: u32 = 40;
    const RESERVATIONS: u32 = 16;
    let mut value = format!("{model}\0").into_bytes();
    let length = u32::try_from(value.len()).unwrap_or_default();
    value.resize(value.len().next_multiple_of(4), 0);
    // A node without a name, a property with the name at 0, their ends.
    let mut nodes: Vec<u8> = [1, 0, 3, length, 0]
        .iter()
        .flat_map(|word: &u32| word.to_be_bytes())
        .collect();
    nodes.extend(value);
    nodes.extend([2_u32, 9].iter().flat_map(|word| word.to_be_bytes()));
    let nodes_bytes = u32::try_from(nodes.len()).unwrap_or_default();
    let names_at = HEADER + RESERVATIONS + nodes_bytes;
    let names_bytes = 8;
    let header = [
        0xd00d_feed,
        names_at + names_bytes,
        HEADER + RESERVATIONS,
        names_at,
        HEADER,
        17,
        16,
        0,
        names_bytes,
        nodes_bytes,
    ];
    let mut bytes: Vec<u8> = header
        .iter()
        .flat_map(|word: &u32| word.to_be_bytes())
        .collect();
    bytes.extend([0; 16]);
    bytes.extend(nodes);
    bytes.extend(NAME);
    bytes
}

/// The names in a test's manifest for what takes long to make: guests and Debian's kernels.
pub(super) fn payloads(bundle: Bundle) -> impl Iterator<Item = PayloadName> {
    let text = match bundle {
        Bundle::Manifest(text) => text,
        _ => "",
    };
    text.split('"').filter_map(|word| {
        let (kind, name) = word.split_once(':')?;
        match kind {
            "guest" => Some(PayloadName::Guest(name.to_owned())),
            "debian" => Some(PayloadName::DebianKernel(name)),
            _ => None,
        }
    })
}

/// Where the kernels are that a test's manifest may name, beside its manifest.
pub(super) fn folder() -> PathBuf {
    workspace::target_dir().join("test/bundles")
}

fn of_board(board: &Board, append: Option<String>) -> Result<Vec<u8>> {
    let guest = board
        .guest
        .as_ref()
        .context("the board has no guest manifest")?;
    let overrides = Overrides {
        append,
        ..Overrides::default()
    };
    run::bundle_of(board, &workspace::root().join(guest), &overrides)
}

fn small(arch: Arch) -> Result<Vec<u8>> {
    let folder = folder().join(arch.to_string());
    let mut kernel = match arch {
        // mov w0, #0x84000008 (two instructions); hvc #0: PSCI SYSTEM_OFF. [DEN 0022, SYSTEM_OFF]
        Arch::Aarch64 => [0x5280_0100_u32, 0x72b0_8000, 0xd400_0002]
            .iter()
            .flat_map(|instruction| instruction.to_le_bytes())
            .collect(),
        Arch::Ppc64 => Vec::new(),
    };
    kernel.resize(KERNEL_BYTES, 0);
    workspace::write_whole(&folder.join("tiny.bin"), &kernel)?;
    let manifest = folder.join("tiny.toml");
    workspace::write_whole(&manifest, MANIFEST.as_bytes())?;
    manifest::build_bundle(&manifest, &Overrides::default(), &|name, _series| {
        anyhow::bail!("the small bundle asks for {name}")
    })
}

/// Where the header of the second file is: the kernel comes after the manifest.
fn kernel_header(bytes: &[u8]) -> Result<usize> {
    bytes
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .map(|(at, _)| at)
        .nth(1)
        .context("the small bundle has no second file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_with_a_console_are_told_to_be_quick() {
        let text = "append = \"console=hvc0 quiet\"\nappend = 'console=ttyAMA0 a=\"b\"'\nappend = \"beats=3\"\n";
        let told = quick(text);
        assert_eq!(told.matches(QUICK).count(), 2);
        assert_eq!(told.replace(&format!("{QUICK} "), ""), text);
        assert!(!QUICK.contains("  "), "one word each");
    }

    #[test]
    fn the_machine_of_quick_kernels_signs_no_pointers() {
        let folder = workspace::root().join("boards");
        let (virt, pseries) = (
            Board::load(&folder, "virt"),
            Board::load(&folder, "pseries"),
        );
        let (virt, pseries) = (virt.unwrap(), pseries.unwrap());
        let quick = Bundle::Manifest("append = \"console=ttyAMA0 quiet\"\n");
        assert_eq!(cpu(&virt, quick).as_deref(), Some("max,pauth=off"));
        assert_eq!(cpu(&pseries, quick), None);
        for bundle in [
            Bundle::Manifest("append = \"loglevel=5\"\n"),
            Bundle::OfBoard,
            Bundle::None,
        ] {
            assert_eq!(cpu(&virt, bundle), None);
        }
    }

    #[test]
    fn a_bundle_is_there_until_it_is_discarded() {
        let board = Board::load(&workspace::root().join("boards"), "virt").unwrap();
        let name = format!("discarded-{}", std::process::id());
        let path = file(&board, Bundle::Garbage, &name).unwrap().unwrap();
        assert!(path.is_file());
        discard("virt", &name).unwrap();
        assert!(!path.exists());
        assert!(discard("virt", &name).is_ok(), "a test without one");
    }

    #[test]
    fn the_damage_is_done_where_it_is_meant() {
        let good = small(Arch::Aarch64).unwrap();
        assert!(::bundle::Bundle::parse(&good).is_ok());
        let kernel = kernel_header(&good).unwrap();
        let size = &good[kernel + SIZE_AT..kernel + SIZE_AT + 8];
        assert_eq!(size, format!("{KERNEL_BYTES:08X}").as_bytes());
    }
}
