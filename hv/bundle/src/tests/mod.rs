//! Archives, manifests, and bundles of both.

mod archives;
mod bindings;
mod bundles;
mod manifests;

use std::{vec, vec::Vec};

use types::Bdf;

use crate::{
    Console, ConsoleUart, Device, Firmware, GuestDevice, HostDevice, IommuMode, KernelFormat,
    Manifest, MsiPolicy, MsiWindow, PeerToPeer, Restart, Start, TcePolicy, UnsafeDma, VmConfig,
};

fn linux() -> VmConfig {
    VmConfig::new("linux", 512 << 20, "linux/kernel")
}

fn pci(bits: u16) -> Device {
    Device {
        host: HostDevice::Pci {
            segment: 0,
            bdf: Bdf::from_bits(bits),
        },
        guest: None,
        p2p: PeerToPeer::Refused,
        smmu: 0,
    }
}

/// A manifest with every value different from its default.
fn everything() -> Manifest {
    let mut first = linux();
    first.cpus = 2;
    first.pin = vec![1, 0];
    first.time_slice_us = Some(5_000);
    first.restart = Restart::Always;
    first.kernel.format = KernelFormat::Image;
    first.initrd = Some("linux/initrd".into());
    first.append = "console=ttyAMA0 quiet".into();
    first.firmware = Firmware::Acpi;
    first.console = Console {
        uart: ConsoleUart::Pl011,
        serial: Some(1),
    };
    first.iommu = IommuMode::Nested;
    first.msi = MsiPolicy::Vits;
    first.msi_window = Some(MsiWindow::DEFAULT);
    first.devices = vec![
        Device {
            guest: Some(GuestDevice::Pci(Bdf::from_bits(0x10))),
            p2p: PeerToPeer::Allowed,
            smmu: 1,
            ..pci(0x0110)
        },
        pci(0x18),
    ];
    let mut second = VmConfig::new("second", 2 << 20, "second/kernel");
    second.start = Start::After("linux".into());
    second.restart = Restart::Never;
    second.kernel.format = KernelFormat::Elf;
    second.dtb = Some("second/board.dtb".into());
    second.console.uart = ConsoleUart::Hvc;
    second.iommu = IommuMode::Tce;
    second.tce = TcePolicy::Dynamic {
        page_shifts: vec![16, 24],
    };
    second.unsafe_dma = UnsafeDma::Identity;
    second.devices = vec![Device {
        host: HostDevice::Phb {
            buid: 0x0800_0000_2000_0001,
        },
        guest: Some(GuestDevice::Phb(0)),
        p2p: PeerToPeer::Refused,
        smmu: 0,
    }];
    let mut third = VmConfig::new("third", 64 << 20, "linux/kernel");
    third.start = Start::Manual;
    third.tce = TcePolicy::DefaultWindow;
    third.devices = vec![pci(0x18)];
    Manifest::new(vec![first, second, third]).unwrap()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("linux/kernel", vec![0x4d; 10_001]),
        ("linux/initrd", vec![0x1f; 4_096]),
        ("second/kernel", vec![0x7f; 3]),
        ("second/board.dtb", vec![]),
    ]
}
