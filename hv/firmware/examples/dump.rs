//! Writes the tables of typical guests to files, for other tools to judge:
//! `cargo run -p bulkhead-firmware --example dump -- DIRECTORY`.
//!
//! Each `DIRECTORY/GUEST/NAME.aml` is one ACPI table for `iasl -d`; `DIRECTORY/GUEST/guest.dtb` is
//! the device tree of the same machine for `dtc`. The paths are printed, one a line. An `iasl` before
//! 2021 knows no reserved memory ranges: it says "Unknown IORT node type 0x6" of `passthrough`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use bulkhead_firmware::{
    DevicePath, GuestPlatform, PciWindow, Remapping, Rmr, WindowKind, acpi, dt,
};
use types::{Bdf, Ipa, Span};

/// Where the tables pretend to lie.
const BASE: Ipa = Ipa::truncated(0x4a01_0000);

fn guests() -> Result<Vec<(&'static str, GuestPlatform)>, Box<dyn Error>> {
    let plain = GuestPlatform::virt(512 << 20, 1)?;
    let mut many = GuestPlatform::virt(4 << 30, 123)?;
    many.pmu_ppi = Some(23);
    let pci = GuestPlatform::virt(1 << 30, 2)?.with_virt_pci();
    let mut passthrough = pci.clone();
    let window = Span::from_len(Ipa::new(0x0800_0000)?, 0x10_0000).ok_or("an empty window")?;
    let behind = DevicePath::new(vec![Bdf::new(0, 3, 0)?], Bdf::new(1, 0, 0)?);
    passthrough.rmrs.push(Rmr {
        window,
        remapping: Remapping::Permitted,
        devices: vec![DevicePath::new(vec![], Bdf::new(0, 1, 0)?), behind],
    });
    if let Some(host) = &mut passthrough.pci {
        host.windows.push(PciWindow {
            kind: WindowKind::Io,
            cpu: Ipa::new(0x3eff_1000)?,
            bus: 0x1000,
            bytes: 0xf000,
        });
    }
    Ok(vec![
        ("plain", plain),
        ("many-vcpus", many),
        ("pci", pci),
        ("passthrough", passthrough),
    ])
}

fn write(directory: &Path, platform: &GuestPlatform) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let mut files = Vec::new();
    for table in acpi::tables(platform, BASE)? {
        let name = String::from_utf8_lossy(&table.signature).to_lowercase();
        // `iasl` takes no file that is a root pointer.
        let extension = if &table.signature == b"RSDP" {
            "bin"
        } else {
            "aml"
        };
        let file = directory.join(name).with_extension(extension);
        fs::write(&file, &table.bytes)?;
        files.push(file);
    }
    let file = directory.join("guest.dtb");
    fs::write(&file, dt::build(platform, None)?)?;
    files.push(file);
    Ok(files)
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args_os().nth(1).ok_or("usage: dump DIRECTORY")?;
    for (name, platform) in guests()? {
        for file in write(&Path::new(&directory).join(name), &platform)? {
            println!("{}", file.display());
        }
    }
    Ok(())
}
