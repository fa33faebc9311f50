//! Lays a Linux guest out for a plain QEMU `virt` machine, with no hypervisor below it:
//!
//! ```text
//! cargo run -p bulkhead-firmware --example stage -- KERNEL INITRD dt|acpi CPUS plain|pci DIRECTORY [BOOTARGS]
//! ```
//!
//! Writes the files QEMU loads to DIRECTORY and prints the arguments that load them, one line for
//! `qemu-system-aarch64 -M virt,virtualization=off,gic-version=3 -m 1G -smp CPUS -nic none -nographic`
//! (with `pci`: `-M …,iommu=smmuv3,its=on`, and an NVMe disk at 00:01.0 gets a reserved mapping).
//!
//! What boots here and not under Bulkhead is the hypervisor's fault; what fails here is the
//! firmware's. It is also the machine to compare instruction counts with.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use bulkhead_firmware::{
    DevicePath, Entry, FirmwareKind, GuestPlatform, KernelFormat, Payload, Remapping, Rmr, plan,
};
use types::{Bdf, Ipa, Span};

const RAM_BYTES: u64 = 1 << 30;

/// QEMU puts a device tree of its own at the start of RAM, so the guest's RAM starts above it.
const QEMU_TREE_BYTES: u64 = 2 << 20;

/// Where the code that enters the kernel goes: below everything that is packed at the top of RAM,
/// above any kernel.
const ENTRY_CODE: u64 = 0x6000_0000;

/// Code that enters the kernel as a boot vCPU is: `x0` the device tree, `x1` to `x3` zero.
fn entry_code(entry: Entry) -> Vec<u8> {
    let code: [u32; 6] = [
        0x5800_00c0, // ldr x0, .+24
        0xd280_0001, // mov x1, #0
        0xd280_0002, // mov x2, #0
        0xd280_0003, // mov x3, #0
        0x5800_0084, // ldr x4, .+16
        0xd61f_0080, // br x4
    ];
    let addresses = [entry.x0.bits(), entry.pc.bits()];
    let code = code.iter().flat_map(|word| word.to_le_bytes());
    let addresses = addresses.iter().flat_map(|word| word.to_le_bytes());
    code.chain(addresses).collect()
}

fn platform(cpus: u16, pci: &str) -> Result<GuestPlatform, Box<dyn Error>> {
    let mut platform = GuestPlatform::virt(RAM_BYTES, cpus)?;
    let ram = platform.memory[0];
    let base = Ipa::new(ram.start().bits() + QEMU_TREE_BYTES)?;
    platform.memory = vec![Span::new(base, ram.last()).ok_or("no RAM")?];
    match pci {
        "plain" => {}
        "pci" => {
            platform = platform.with_virt_pci();
            let window = Span::from_len(Ipa::new(0x0800_0000)?, 0x10_0000).ok_or("no window")?;
            platform.rmrs.push(Rmr {
                window,
                remapping: Remapping::Permitted,
                devices: vec![DevicePath::new(vec![], Bdf::new(0, 1, 0)?)],
            });
        }
        other => return Err(format!("{other} is neither plain nor pci").into()),
    }
    Ok(platform)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, initrd, firmware, cpus, pci, directory, rest @ ..] = arguments.as_slice() else {
        return Err(
            "usage: stage KERNEL INITRD dt|acpi CPUS plain|pci DIRECTORY [BOOTARGS]".into(),
        );
    };
    let firmware = match firmware.as_str() {
        "dt" => FirmwareKind::DeviceTree,
        "acpi" => FirmwareKind::Acpi,
        other => return Err(format!("{other} is neither dt nor acpi").into()),
    };
    let mut platform = platform(cpus.parse()?, pci)?;
    platform.bootargs = rest.join(" ");
    let kernel = fs::read(kernel)?;
    let initrd = fs::read(initrd)?;
    let payload = Payload {
        tree: None,
        kernel: &kernel,
        format: KernelFormat::Auto,
        initrd: Some(&initrd),
        firmware,
    };
    let layout = plan(&platform, &payload)?;

    let directory = Path::new(directory);
    fs::create_dir_all(directory)?;
    let mut line = Vec::new();
    let mut load = |name: &str, at: u64, bytes: &[u8]| {
        let file = directory.join(name);
        let shown = file.display().to_string();
        line.push(format!(
            "-device loader,file={shown},addr={at:#x},force-raw=on"
        ));
        fs::write(file, bytes)
    };
    for (index, placement) in layout.placements.iter().enumerate() {
        let name = format!("{index}-{:?}", placement.item).to_lowercase();
        load(&name, placement.at.bits(), &placement.bytes)?;
    }
    load("entry", ENTRY_CODE, &entry_code(layout.entry))?;
    line.push(format!("-device loader,addr={ENTRY_CODE:#x},cpu-num=0"));
    println!("{}", line.join(" "));
    Ok(())
}
