use std::{
    string::{String, ToString},
    vec,
    vec::Vec,
};

use super::{linux, pci};
use crate::{
    ConsoleUart, Device, Field, Firmware, GuestDevice, HostDevice, IommuMode, MAX_VMS, Manifest,
    MsiWindow, Start, TcePolicy, UnsafeDma, VmConfig,
};

fn refusal(change: impl FnOnce(&mut VmConfig)) -> String {
    let mut vm = linux();
    change(&mut vm);
    Manifest::new(vec![vm]).unwrap_err().to_string()
}

fn two(change: impl FnOnce(&mut VmConfig, &mut VmConfig)) -> Result<Manifest, String> {
    let mut vms = [linux(), linux()];
    vms[1].name = "other".into();
    let [first, second] = &mut vms;
    change(first, second);
    Manifest::new(vms.to_vec()).map_err(|error| error.to_string())
}

#[test]
fn the_simplest_vm_is_legal() {
    assert!(Manifest::new(vec![linux()]).is_ok());
}

#[test]
fn there_are_some_vms_but_not_too_many() {
    let many = |count: usize| -> Vec<_> {
        (0..count)
            .map(|index| VmConfig::new(&std::format!("vm{index}"), 2 << 20, "k"))
            .collect()
    };
    assert!(Manifest::new(many(MAX_VMS)).is_ok());
    assert_eq!(
        Manifest::new(many(MAX_VMS + 1)).unwrap_err().to_string(),
        "vm: 65 VMs; 1 to 64 are allowed"
    );
    assert!(Manifest::new(vec![]).is_err());
}

#[test]
fn memory_is_whole_blocks() {
    let memory = |bytes| refusal(|vm| vm.memory = bytes);
    assert_eq!(
        memory(3 << 20),
        "vm[0].memory: 3 MiB is not a multiple of 2 MiB"
    );
    assert_eq!(
        memory(1),
        "vm[0].memory: 1 bytes is not a multiple of 2 MiB"
    );
    assert_eq!(
        memory(0),
        "vm[0].memory: 0 bytes of memory; 2 MiB to 1 TiB are allowed"
    );
    assert_eq!(
        memory(1 << 41),
        "vm[0].memory: 2 TiB of memory; 2 MiB to 1 TiB are allowed"
    );
}

#[test]
fn cpus_and_pins_agree() {
    assert_eq!(
        refusal(|vm| vm.cpus = 0),
        "vm[0].cpus: 0 is outside 1 to 64"
    );
    assert_eq!(
        refusal(|vm| vm.cpus = 65),
        "vm[0].cpus: 65 is outside 1 to 64"
    );
    assert_eq!(
        refusal(|vm| vm.pin = vec![0, 1]),
        "vm[0].pin: 2 physical CPUs for 1 vCPUs; give one for each, or none"
    );
    assert_eq!(
        refusal(|vm| vm.pin = vec![4096]),
        "vm[0].pin: 4096 is outside 0 to 4095"
    );
    assert_eq!(
        refusal(|vm| vm.time_slice_us = Some(1)),
        "vm[0].time_slice_us: 1 is outside 100 to 1000000"
    );
}

#[test]
fn names_are_short_plain_and_distinct() {
    for name in [
        "",
        "Linux",
        "1st",
        "a b",
        "-x",
        &"n".repeat(32),
        "caf\u{e9}",
    ] {
        assert!(
            refusal(|vm| vm.name = name.into()).starts_with("vm[0].name: "),
            "{name}"
        );
    }
    assert_eq!(
        two(|_, second| second.name = "linux".into()).unwrap_err(),
        "vm[1].name: vm[0] has this name already"
    );
}

#[test]
fn a_serial_port_has_one_vm() {
    let ports = |ports: [Option<u32>; 2]| {
        two(|first, second| {
            first.console.serial = ports[0];
            second.console.serial = ports[1];
        })
    };
    assert!(ports([None, None]).is_ok());
    assert!(ports([Some(1), Some(2)]).is_ok());
    assert_eq!(
        ports([Some(1), Some(1)]).unwrap_err(),
        "vm[1].serial: vm[0] has this serial port already"
    );
    assert_eq!(
        ports([Some(16), None]).unwrap_err(),
        "vm[0].serial: 16 is outside 0 to 15"
    );
}

#[test]
fn files_and_command_line_are_plain_text() {
    assert!(refusal(|vm| vm.kernel.file = "/boot/Image".into()).starts_with("vm[0].kernel: "));
    assert!(refusal(|vm| vm.initrd = Some("a b".into())).starts_with("vm[0].initrd: "));
    // A VM does not boot the manifest.
    assert!(refusal(|vm| vm.kernel.file = "manifest.dtb".into()).starts_with("vm[0].kernel: "));
    assert!(refusal(|vm| vm.append = "a\nb".into()).starts_with("vm[0].append: "));
    assert!(refusal(|vm| vm.append = "x".repeat(2048)).starts_with("vm[0].append: "));
    let acpi = refusal(|vm| {
        vm.firmware = Firmware::Acpi;
        vm.dtb = Some("x.dtb".into());
    });
    assert_eq!(
        acpi,
        "vm[0].dtb: a device tree goes with firmware \"dt\" only"
    );
}

#[test]
fn msi_windows_can_be_mapped() {
    for (start, bytes) in [
        (0x1000, 0x1_0000),
        (0, 0),
        (0, 0x8000),
        (1 << 40, 0x1_0000),
        (u64::MAX - 0xffff, 0x1_0000),
    ] {
        let window = MsiWindow { start, bytes };
        assert!(
            refusal(|vm| vm.msi_window = Some(window)).starts_with("vm[0].msi_window: "),
            "{window:?}"
        );
    }
}

#[test]
fn tce_pages_are_page_sizes_in_order() {
    for page_shifts in [vec![13], vec![16, 12], vec![12, 12], vec![30]] {
        let tce = TcePolicy::Dynamic { page_shifts };
        assert!(refusal(|vm| vm.tce = tce).starts_with("vm[0].tce_pages: "));
    }
}

#[test]
fn devices_need_an_iommu_mode() {
    let none = refusal(|vm| {
        vm.iommu = IommuMode::None;
        vm.devices = vec![pci(8)];
    });
    assert_eq!(
        none,
        "vm[0].iommu: devices need an IOMMU mode other than \"none\""
    );
    let nested = refusal(|vm| {
        vm.iommu = IommuMode::Nested;
        vm.unsafe_dma = UnsafeDma::Identity;
    });
    assert!(nested.starts_with("vm[0].unsafe_dma: "));
}

#[test]
fn a_device_has_one_owner_at_a_time() {
    assert_eq!(
        refusal(|vm| vm.devices = vec![pci(8), pci(9), pci(8)]),
        "vm[0].devices[2].host: 0000:00:01.0 is given to vm[0].devices[0] already"
    );
    let share = |start: Start| {
        two(|first, second| {
            first.devices = vec![pci(8)];
            second.devices = vec![pci(0x10), pci(8)];
            second.start = start;
        })
    };
    assert_eq!(
        share(Start::Boot).unwrap_err(),
        "vm[1].devices[1].host: 0000:00:01.0 is given to vm[0].devices[0] already"
    );
    assert!(share(Start::Manual).is_ok());
    assert!(share(Start::After("linux".into())).is_ok());
}

#[test]
fn a_guest_has_at_most_eight_smmus() {
    let behind = |smmu| Device { smmu, ..pci(8) };
    assert_eq!(
        refusal(|vm| vm.devices = vec![behind(8)]),
        "vm[0].devices[0].smmu: 8 is outside 0 to 7"
    );
}

#[test]
fn devices_are_shown_at_distinct_places_of_their_kind() {
    let at = |device: Device, guest: &str| Device {
        guest: Some(guest.parse().unwrap()),
        ..device
    };
    assert_eq!(
        refusal(|vm| vm.devices = vec![at(pci(8), "00:02.0"), at(pci(16), "00:02.0")]),
        "vm[0].devices[1].guest: 00:02.0 is taken by another device of this VM"
    );
    assert_eq!(
        refusal(|vm| vm.devices = vec![at(pci(8), "phb:0")]),
        "vm[0].devices[0].guest: a 0000:00:01.0 cannot be shown as phb:0"
    );
}

#[test]
fn vms_start_after_one_another_but_not_in_circles() {
    let after = |name: &str| Start::After(name.into());
    assert!(two(|_, second| second.start = after("linux")).is_ok());
    assert_eq!(
        two(|_, second| second.start = after("nobody")).unwrap_err(),
        "vm[1].start: there is no other VM \"nobody\" to start after"
    );
    assert!(two(|first, _| first.start = after("linux")).is_err());
    assert_eq!(
        two(|first, second| {
            first.start = after("other");
            second.start = after("linux");
        })
        .unwrap_err(),
        "vm[0].start: it waits for itself by way of \"linux\""
    );
}

#[test]
fn device_addresses_are_read_and_written_alike() {
    for text in ["0000:00:02.0", "00ff:ff:1f.7", "phb:800000020000001"] {
        assert_eq!(text.parse::<HostDevice>().unwrap().to_string(), text);
    }
    for text in ["00:02.0", "phb:3"] {
        assert_eq!(text.parse::<GuestDevice>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "00:02.0",
        "0:0:20.0",
        "0:0:0.8",
        "00000:00:00.0",
        "0:0:+1.0",
        "phb:",
        "phb:x",
        "0:0:0",
    ] {
        assert!(text.parse::<HostDevice>().is_err(), "{text}");
    }
    for text in ["", "0000:00:02.0", "02.0", "phb:65536", "phb:-1"] {
        assert!(text.parse::<GuestDevice>().is_err(), "{text}");
    }
}

#[test]
fn a_vm_without_a_console_has_no_serial_port() {
    let mut vm = linux();
    vm.console.uart = ConsoleUart::None;
    vm.console.serial = None;
    assert!(Manifest::new(vec![vm]).is_ok());
    let both = refusal(|vm| {
        vm.console.uart = ConsoleUart::None;
        vm.console.serial = Some(1);
    });
    assert_eq!(
        both,
        "vm[0].serial: a VM without a console has no use for a serial port"
    );
}

#[test]
fn what_no_hypervisor_does_is_told_by_its_key() {
    let with = |change: fn(&mut VmConfig)| {
        let mut vm = linux();
        change(&mut vm);
        [ConsoleUart::Pl011, ConsoleUart::Hvc].map(|own| vm.not_acted_on(own))
    };
    assert_eq!(with(|_| {}), [None, None]);
    let tree = with(|vm| vm.dtb = Some("tree.dtb".into()));
    assert_eq!(tree, [None, Some(Field::Dtb)]);
    let hvc = with(|vm| vm.console.uart = ConsoleUart::Hvc);
    assert_eq!(hvc, [Some(Field::Console), None]);
    let pl011 = with(|vm| vm.console.uart = ConsoleUart::Pl011);
    assert_eq!(pl011, [None, Some(Field::Console)]);
    let none = with(|vm| vm.console.uart = ConsoleUart::None);
    assert_eq!(none, [None; 2]);
    let serial = with(|vm| vm.console.serial = Some(1));
    assert_eq!(serial, [None, Some(Field::Serial)]);
}
