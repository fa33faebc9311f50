use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bundle::{Bundle, Firmware, IommuMode, KernelFormat, Manifest, Start, TcePolicy};

use super::{Overrides, PayloadName, Reader, build_bundle, list_bundle, parse_bytes};
use crate::workspace::Scratch;

/// A folder with files, gone at the end of the test.
struct Folder(Scratch);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Scratch::new("manifest");
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn no_payloads(name: &PayloadName, _series: &[&str]) -> Result<PathBuf> {
    bail!("there is no {name} in this test")
}

fn read(text: &str) -> Result<Manifest> {
    let read = Reader::new(Path::new("m.toml"), text).read(&Overrides::default())?;
    Ok(read.manifest)
}

fn refusal(text: &str) -> String {
    format!("{:#}", read(text).unwrap_err())
}

/// A legal VM whose next line is the sixth of the file.
const VM: &str = "[[vm]]\nname = \"linux\"\nmemory = \"512M\"\nkernel = \"Image\"\n\n";

fn refused_line(line: &str) -> String {
    refusal(&format!("{VM}{line}\n"))
}

#[test]
fn a_short_manifest_has_the_defaults() {
    let manifest = read(VM).unwrap();
    let vm = &manifest.vms()[0];
    assert_eq!(
        (vm.name.as_str(), vm.memory, vm.cpus),
        ("linux", 512 << 20, 1)
    );
    assert_eq!(vm.kernel.file, "vm0/kernel");
    assert_eq!(vm.kernel.format, KernelFormat::Auto);
    assert_eq!(vm.firmware, Firmware::Dt);
    assert_eq!(vm.start, Start::Boot);
}

#[test]
fn every_key_is_understood() {
    let manifest = read(
        r#"
version = 1
[[vm]]
name = "a"
memory = 1073741824
cpus = 2
pin = [0, 1]
time_slice_us = 1000
start = "boot"
restart = "never"
kernel = "debian:6.12"
kernel_format = "image"
initrd = "initramfs"
append = "quiet"
firmware = "acpi"
console = "pl011"
serial = 1
iommu = "nested"
msi = "vits"
msi_window = { start = 0x0900_0000, size = "2M" }
devices = [
  { host = "0000:00:02.0", guest = "00:01.0", p2p = true },
  { host = "0000:00:03.0", smmu = 1 },
]
[[vm]]
name = "b"
memory = "64 MiB"
kernel = "guest:hostile"
dtb = "b.dtb"
start = "after:a"
tce_pages = ["64K", "16M"]
unsafe_dma = "identity"
[[vm.devices]]
host = "phb:800000020000001"
guest = "phb:0"
[[vm]]
name = "c"
memory = "2M"
kernel = "k"
tce_pages = "default-window"
"#,
    )
    .unwrap();
    insta::assert_snapshot!(manifest.to_dts());
    // The blob says the same.
    assert_eq!(Manifest::from_fdt(&manifest.to_fdt()).unwrap(), manifest);
    assert_eq!(manifest.vms()[0].iommu, IommuMode::Nested);
    assert_eq!(manifest.vms()[2].tce, TcePolicy::DefaultWindow);
}

#[test]
fn errors_name_file_line_column_and_key() {
    assert_eq!(
        refusal("[[vm]]\nname = \"linux\"\nmemory = \"3M\"\nkernel = \"k\"\n"),
        "m.toml:3:10: vm[0].memory: 3 MiB is not a multiple of 2 MiB"
    );
    assert_eq!(
        refused_line("cpus = 65"),
        "m.toml:6:8: vm[0].cpus: 65 is outside 1 to 64"
    );
    assert_eq!(
        refused_line("firmware = \"uefi\""),
        "m.toml:6:12: vm[0].firmware: \"uefi\" is none of \"dt\", \"acpi\""
    );
    assert_eq!(
        refused_line("start = \"later\""),
        "m.toml:6:9: vm[0].start: \"later\" is none of \"boot\", \"manual\", \"after:VM\""
    );
    assert_eq!(
        refused_line("devices = [{ host = \"0000:00:02\" }]"),
        "m.toml:6:21: vm[0].devices[0].host: not a device: write SSSS:BB:DD.F (0000:00:02.0) or \
         phb:BUID (phb:800000020000001)"
    );
    assert_eq!(
        refused_line("devices = [{ host = \"0:0:2.0\" }, { host = \"0:0:2.0\" }]"),
        "m.toml:6:43: vm[0].devices[1].host: 0000:00:02.0 is given to vm[0].devices[0] already"
    );
    assert_eq!(
        refused_line("tce_pages = [\"3K\"]"),
        "m.toml:6:13: vm[0].tce_pages: page sizes are 4K, 64K, 2M, 16M, each once, ascending"
    );
    assert_eq!(
        refusal("version = 2\n"),
        "m.toml:1:11: version: 2 is not known; this is version 1"
    );
    assert_eq!(refusal(""), "m.toml:1:1: vm: 0 VMs; 1 to 64 are allowed");
}

#[test]
fn unknown_and_missing_keys_are_named_with_what_is_allowed() {
    let unknown = refused_line("memroy = 1");
    assert!(
        unknown.starts_with("m.toml:6:1: unknown field `memroy`, expected one of `name`, `memory`"),
        "{unknown}"
    );
    let unknown = refused_line("devices = [{ hosts = \"x\" }]");
    assert!(
        unknown.contains("unknown field `hosts`, expected one of `host`, `guest`, `p2p`, `smmu`"),
        "{unknown}"
    );
    let missing = refusal("[[vm]]\nname = \"linux\"\nkernel = \"k\"\n");
    assert_eq!(missing, "m.toml:1:1: missing field `memory`");
    let kind = refused_line("cpus = \"two\"");
    assert_eq!(
        kind,
        "m.toml:6:8: invalid type: string \"two\", expected u32"
    );
    let size = refusal("[[vm]]\nname = \"linux\"\nmemory = \"lots\"\nkernel = \"k\"\n");
    assert_eq!(
        size,
        "m.toml:3:10: invalid value: string \"lots\", expected a size: a number of bytes, or a \
         string as \"512M\""
    );
    assert!(
        refusal("[[vm]\n").starts_with("m.toml:1:6: "),
        "{}",
        refusal("[[vm]\n")
    );
}

#[test]
fn payloads_that_nobody_has_are_refused() {
    assert_eq!(
        refused_line("initrd = \"debian:5.10\""),
        "m.toml:6:10: vm[0].initrd: Debian's kernels are \"debian:6.1\" and \"debian:6.12\""
    );
    assert!(refused_line("initrd = \"\"").starts_with("m.toml:6:10: vm[0].initrd: a file name"));
}

#[test]
fn a_combination_that_a_kernel_would_fail_at_silently_is_refused() {
    let with = |kernel: &str, lines: &str| {
        read(&format!(
            "[[vm]]\nname = \"l\"\nmemory = \"2M\"\nkernel = \"{kernel}\"\niommu = \"nested\"\n{lines}"
        ))
    };
    let error = format!("{:#}", with("debian:6.1", "msi = \"rmr\"\n").unwrap_err());
    assert!(
        error.starts_with("m.toml:6:7: vm[0].msi: with firmware \"dt\""),
        "{error}"
    );
    assert!(with("debian:6.1", "").is_err());
    assert!(with("debian:6.1", "msi = \"vits\"\n").is_ok());
    assert!(with("debian:6.1", "firmware = \"acpi\"\n").is_ok());
    assert!(with("debian:6.12", "").is_ok());
}

#[test]
fn files_are_found_beside_the_manifest_and_stored_once() {
    let two = "[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"Image\"\ninitrd = \"initramfs\"\n\
               [[vm]]\nname = \"b\"\nmemory = \"2M\"\nkernel = \"Image\"\ninitrd = \"other\"\n";
    let folder = Folder::new(&[
        ("m.toml", two),
        ("Image", "kernel"),
        ("other", "disk"),
        ("built", "made for us"),
    ]);
    let built = folder.path("built");
    let bytes = build_bundle(
        &folder.path("m.toml"),
        &Overrides::default(),
        &|name, series| {
            assert_eq!(*name, PayloadName::Initramfs);
            assert!(series.is_empty());
            Ok(built.clone())
        },
    )
    .unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    let files: BTreeMap<_, _> = bundle
        .entries()
        .iter()
        .skip(1)
        .map(|e| (e.name, e.data))
        .collect();
    assert_eq!(
        files,
        BTreeMap::from([
            ("vm0/kernel", &b"kernel"[..]),
            ("vm0/initrd", b"made for us"),
            ("vm1/initrd", b"disk"),
        ])
    );
    assert_eq!(bundle.manifest().vms()[1].kernel.file, "vm0/kernel");
}

#[test]
fn the_command_line_replaces_the_first_vms_values_only() {
    let text = "[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"missing\"\nkernel_format = \"image\"\n\
                append = \"old\"\n\
                [[vm]]\nname = \"b\"\nmemory = \"2M\"\nkernel = \"Image\"\nappend = \"kept\"\n";
    let folder = Folder::new(&[
        ("m.toml", text),
        ("Image", "b's"),
        ("mine", "mine"),
        ("disk", "d"),
    ]);
    let overrides = Overrides {
        kernel: Some(folder.path("mine")),
        initrd: Some(folder.path("disk")),
        append: Some("new".into()),
        console: None,
    };
    let bytes = build_bundle(&folder.path("m.toml"), &overrides, &no_payloads).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    let [first, second] = bundle.manifest().vms() else {
        panic!("two VMs");
    };
    assert_eq!(bundle.file(&first.kernel.file), Some(&b"mine"[..]));
    assert_eq!(first.kernel.format, KernelFormat::Auto);
    assert_eq!(bundle.file(first.initrd.as_ref().unwrap()), Some(&b"d"[..]));
    assert_eq!(
        (first.append.as_str(), second.append.as_str()),
        ("new", "kept")
    );
    assert_eq!(bundle.file(&second.kernel.file), Some(&b"b's"[..]));
    assert_eq!(second.initrd, None);
}

#[test]
fn what_the_boards_hypervisor_does_not_do_is_refused_with_its_line() {
    use bundle::ConsoleUart::{Hvc, Pl011};
    let folder = Folder::new(&[
        (
            "m.toml",
            "[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"k\"\ndtb = \"t\"\n",
        ),
        ("k", "k"),
        ("t", "t"),
    ]);
    let build = |console| {
        let overrides = Overrides {
            console,
            ..Overrides::default()
        };
        build_bundle(&folder.path("m.toml"), &overrides, &no_payloads)
    };
    assert!(build(None).is_ok() && build(Some(Pl011)).is_ok());
    let error = build(Some(Hvc)).unwrap_err().to_string();
    assert!(
        error.ends_with(":5:7: vm[0].dtb: not supported on this board"),
        "{error}"
    );
}

#[test]
fn a_missing_file_says_which_key_asked_for_it() {
    let folder = Folder::new(&[("m.toml", VM)]);
    let path = folder.path("m.toml");
    let error = build_bundle(&path, &Overrides::default(), &no_payloads).unwrap_err();
    let error = format!("{error:#}");
    let expected = format!(
        "{}:4:10: vm[0].kernel: \"Image\": cannot read {}",
        path.display(),
        folder.path("Image").display()
    );
    assert!(error.starts_with(&expected), "{error}");
    // A payload, an override, and the manifest itself.
    std::fs::write(&path, VM.replace("Image", "debian:6.1")).unwrap();
    let error = build_bundle(&path, &Overrides::default(), &no_payloads).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.ends_with(
            ":4:10: vm[0].kernel: \"debian:6.1\": cannot provide debian:6.1: there is no \
             debian:6.1 in this test"
        ),
        "{error}"
    );
    let overrides = Overrides {
        kernel: Some("/no/such/kernel".into()),
        ..Overrides::default()
    };
    let error = build_bundle(&path, &overrides, &no_payloads).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.starts_with("--kernel: cannot read /no/such/kernel"),
        "{error}"
    );
    let error = build_bundle(Path::new("/no/m.toml"), &Overrides::default(), &no_payloads);
    let error = format!("{:#}", error.unwrap_err());
    assert!(
        error.starts_with("cannot read the manifest /no/m.toml"),
        "{error}"
    );
}

#[test]
fn a_bundle_can_be_listed() {
    let folder = Folder::new(&[("m.toml", VM), ("Image", "kernel")]);
    let bytes = build_bundle(&folder.path("m.toml"), &Overrides::default(), &no_payloads).unwrap();
    let path = folder.path("bundle.cpio");
    std::fs::write(&path, &bytes).unwrap();
    let listing = list_bundle(&path).unwrap();
    assert!(
        listing.contains("bundle: vm0/kernel, 6 bytes at 0x2000\n"),
        "{listing}"
    );
    assert!(
        listing.contains("vm linux: 512 MiB, 1 vCPUs, start boot"),
        "{listing}"
    );
    assert!(
        listing.contains("compatible = \"bulkhead,manifest\";"),
        "{listing}"
    );
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = list_bundle(&path).unwrap_err().to_string();
    assert!(error.contains("bundle.cpio: bundle: offset 0x"), "{error}");
}

#[test]
fn sizes_are_read_as_people_write_them() {
    assert_eq!(parse_bytes("512M"), Some(512 << 20));
    assert_eq!(parse_bytes("1 GiB"), Some(1 << 30));
    assert_eq!(parse_bytes("64K"), Some(64 << 10));
    assert_eq!(parse_bytes("4096"), Some(4096));
    for text in [
        "",
        "M",
        "1.5G",
        "-1",
        "1T",
        "99999999999999999999",
        "18446744073709551615K",
    ] {
        assert_eq!(parse_bytes(text), None, "{text}");
    }
}

#[test]
fn the_default_manifests_hold() {
    let guests = crate::workspace::root().join("qemu/guests");
    for name in ["virt.toml", "pseries.toml"] {
        let path = guests.join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let read = Reader::new(&path, &text)
            .read(&Overrides::default())
            .unwrap();
        assert_eq!(read.manifest.vms().len(), 1);
        assert_eq!(read.manifest.vms()[0].name, "linux");
    }
}

fn documentation() -> String {
    std::fs::read_to_string(crate::workspace::root().join("docs/manifest.md")).unwrap()
}

#[test]
fn the_documentation_has_every_key_and_its_example_holds() {
    let text = documentation();
    let example = text.split("```toml\n").nth(1).unwrap();
    assert_eq!(
        read(example.split("```").next().unwrap())
            .unwrap()
            .vms()
            .len(),
        2
    );
    // The keys of a table, in the order of the page; those that are known, from the error.
    let documented = |heading: &str| -> Vec<String> {
        let table = text.split(heading).nth(1).unwrap();
        let mut keys: Vec<_> = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('`').nth(1).unwrap().to_owned())
            .collect();
        keys.sort();
        keys
    };
    let known = |line: &str| -> Vec<String> {
        let error = refused_line(line);
        let list = error.split("expected one of ").nth(1).unwrap();
        let mut keys: Vec<_> = list
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(documented("| key of `[[vm]]` |"), known("nonsense = 1"));
    assert_eq!(
        documented("| key | value | default |"),
        known("devices = [{ nonsense = 1 }]")
    );
}

#[test]
fn an_initial_ram_disk_is_told_which_kernels_there_are() {
    let text = "[[vm]]\nname = \"a\"\nmemory = \"2M\"\nkernel = \"debian:6.12\"\ninitrd = \"initramfs\"\n\
                [[vm]]\nname = \"b\"\nmemory = \"2M\"\nkernel = \"debian:6.1\"\nmsi = \"vits\"\n";
    let folder = Folder::new(&[("m.toml", text), ("built", "made for us")]);
    let built = folder.path("built");
    build_bundle(
        &folder.path("m.toml"),
        &Overrides::default(),
        &|_name, series| {
            assert_eq!(series, ["6.12", "6.1"]);
            Ok(built.clone())
        },
    )
    .unwrap();
}
