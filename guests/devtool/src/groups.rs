//! `devtool iommu none|vits|rmr`: looks at the driver of the guest's SMMUs, and at each device's isolation group with
//! its type and its reserved regions.
//!
//! With `none` there is no SMMU and no group. With `vits` nothing is reserved but the kernel's own window for messages,
//! with `rmr` firmware says that the window is mapped one to one. Of type `DMA` the groups are unless the kernel's
//! command line says otherwise.

use devtool::text::Text;

use crate::linux::{Arguments, Errno, File, Open};
use crate::sysfs::{self, FUNCTIONS};
use crate::{Failure, println};

const GROUPS: &str = "/sys/kernel/iommu_groups";

/// Runs the command.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let want = arguments.get(2).ok_or(Failure::Usage)?;
    let failed = |what| move |error| Failure::Call(what, error);
    let drivers = "/sys/bus/platform/drivers/arm-smmu-v3";
    let mut smmus = 0;
    sysfs::each(&[drivers], |name| {
        let leads = sysfs::leads_to(&[drivers, "/", name]).unwrap_or_default();
        if leads.as_str().split('/').any(|part| part == "devices") {
            println!("action iommu: SMMU {name}");
            smmus += 1;
        }
    })
    .map_err(failed("the driver's folder"))?;
    if want == "none" {
        let mut groups = 0;
        sysfs::each(&[GROUPS], |_| groups += 1).map_err(failed("the groups"))?;
        if smmus + groups != 0 {
            return Err(Failure::Differs("SMMUs and groups", smmus + groups, 0));
        }
        println!("action iommu: ok: no SMMU, no group");
        return Ok(());
    }
    if smmus == 0 {
        return Err(Failure::Wrong("no SMMU has the driver arm-smmu-v3"));
    }
    // By ACPI the kernel is told that the window may be used for something else, which lets VFIO have the device.
    let direct = match sysfs::is_there(&["/sys/firmware/acpi/tables/IORT"]) {
        true => "0x0000000008000000 0x00000000080fffff direct-relaxable",
        false => "0x0000000008000000 0x00000000080fffff direct",
    };
    let own = "0x0000000008000000 0x00000000080fffff msi";
    let wanted: &[&str] = match want {
        "vits" => &[own],
        "rmr" => &[direct, own],
        _ => return Err(Failure::Usage),
    };
    let mut line = [0; 2048];
    let file = File::open(&["/proc/cmdline"], Open::Read).map_err(failed("the command line"))?;
    let bytes = file
        .read_all(&mut line)
        .map_err(failed("the command line"))?;
    let line = core::str::from_utf8(line.get(..bytes).unwrap_or_default()).unwrap_or_default();
    let has = |word| line.split_whitespace().any(|found| found == word);
    let kind = match (has("iommu.passthrough=1"), has("iommu.strict=0")) {
        (true, _) => "identity",
        (false, true) => "DMA-FQ",
        (false, false) => "DMA",
    };

    let (functions, count) = sysfs::functions("0x").map_err(failed("PCI functions"))?;
    if count == FUNCTIONS {
        return Err(Failure::Wrong(
            "there are more PCI functions than are looked at",
        ));
    }
    let mut devices = 0;
    for function in functions.iter().take(count) {
        let folder = "/sys/bus/pci/devices/";
        let class = sysfs::line(&[folder, function.as_str(), "/class"]).unwrap_or_default();
        if class.as_str().starts_with("0x06") {
            continue;
        }
        let driver = sysfs::driver(function);
        let Some(group) = sysfs::target(&[folder, function.as_str(), "/iommu_group"]) else {
            // The kernel asks firmware for a device's SMMU when a driver wants the device.
            if driver.as_str() == "no driver" {
                continue;
            }
            println!("action iommu: {function}:");
            return Err(Failure::Wrong("it has a driver and is in no group"));
        };
        let of_group = |what| {
            let path = [GROUPS, "/", group.as_str(), what];
            sysfs::line(&path).unwrap_or_default()
        };
        let (found, regions) = (of_group("/type"), of_group("/reserved_regions"));
        let mut shown: Text<256> = Text::default();
        for region in regions.as_str().lines() {
            use core::fmt::Write as _;
            let _ = write!(shown, "{region},");
        }
        println!("action iommu: {function}, {driver}, group {group}, {found}: {shown}");
        if found.as_str() != kind {
            println!("action iommu: {function}: the group's type should be {kind}");
            return Err(Failure::Wrong("a group is of another type"));
        }
        let count = regions.as_str().lines().count();
        if count != wanted.len()
            || !wanted
                .iter()
                .all(|&one| regions.as_str().lines().any(|found| found == one))
        {
            println!("action iommu: {function}: other reserved regions");
            return Err(Failure::Wrong(match want {
                "vits" => "for vits the reserved regions should be the kernel's window alone",
                _ => "for rmr the reserved regions should be firmware's window and the kernel's",
            }));
        }
        devices += 1;
    }
    if devices == 0 {
        return Err(Failure::Wrong("no PCI function but bridges"));
    }
    let events = events().map_err(failed("/dev/kmsg"))?;
    if events != 0 {
        return Err(Failure::Differs("events in the log", events, 0));
    }
    println!("action iommu: ok: {smmus} SMMUs, {devices} devices, {kind}, {want}");
    Ok(())
}

/// Events of an SMMU in the kernel's log, since it was last cleared.
fn events() -> Result<u64, Errno> {
    let log = File::open(&["/dev/kmsg"], Open::Poll)?;
    log.seek_data()?;
    let mut record = [0; 4096];
    let mut events = 0;
    loop {
        match log.read(&mut record) {
            Ok(bytes) => {
                let text = record.get(..bytes).unwrap_or_default();
                let text = core::str::from_utf8(text).unwrap_or_default();
                if text.contains("arm-smmu-v3") && text.contains("event 0x") {
                    println!("action iommu: {}", text.lines().next().unwrap_or_default());
                    events += 1;
                }
            }
            Err(Errno::AGAIN) => return Ok(events),
            // Some lines were lost, the next is whole.
            Err(Errno::PIPE) => {}
            Err(error) => return Err(error),
        }
    }
}
