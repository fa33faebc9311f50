//! A bundle as lines for a person: one line a fact.

use core::fmt;

use crate::{
    Bundle, GuestDevice, MANIFEST_NAME, PeerToPeer, Start, TcePolicy, UnsafeDma, VmConfig,
};

impl Bundle<'_> {
    /// Gives every line of the listing to `line`, without line ends.
    pub fn report(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        line(format_args!(
            "bundle: {} files, {} VMs",
            self.entries().len(),
            self.manifest().vms().len()
        ));
        for entry in self.entries() {
            let named = entry.name == MANIFEST_NAME
                || self.manifest().files().any(|(_, file)| file == entry.name);
            line(format_args!(
                "bundle: {}, {} bytes at {:#x}{}",
                entry.name,
                entry.data.len(),
                entry.offset,
                if named { "" } else { ", not used" }
            ));
        }
        for vm in self.manifest().vms() {
            report_vm(vm, line);
        }
    }
}

/// `{before}{value}` when there is a value.
struct With<T>(&'static str, Option<T>);

impl<T: fmt::Display> fmt::Display for With<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(value) => write!(f, "{}{value}", self.0),
            None => Ok(()),
        }
    }
}

struct List<'a>(&'a [u32]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{number}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot => f.write_str("boot"),
            Self::Manual => f.write_str("manual"),
            Self::After(name) => write!(f, "after:{name}"),
        }
    }
}

fn report_vm(vm: &VmConfig, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let name = &vm.name;
    line(format_args!(
        "vm {name}: {} MiB, {} vCPUs{}{}, start {}, restart {}",
        vm.memory >> 20,
        vm.cpus,
        With(" on CPUs ", (!vm.pin.is_empty()).then_some(List(&vm.pin))),
        With(", time slice in us ", vm.time_slice_us),
        vm.start,
        vm.restart,
    ));
    line(format_args!(
        "vm {name}: kernel {} ({}){}{}",
        vm.kernel.file,
        vm.kernel.format,
        With(", initrd ", vm.initrd.as_ref()),
        With(", device tree ", vm.dtb.as_ref()),
    ));
    if !vm.append.is_empty() {
        line(format_args!("vm {name}: command line: {}", vm.append));
    }
    line(format_args!(
        "vm {name}: firmware {}, console {}{}, iommu {}, msi {}{}",
        vm.firmware,
        vm.console.uart,
        With(" on serial port ", vm.console.serial),
        vm.iommu,
        vm.msi,
        With(
            " at ",
            vm.msi_window
                .map(|window| Window(window.start, window.bytes))
        ),
    ));
    match &vm.tce {
        TcePolicy::DefaultWindow => line(format_args!("vm {name}: default DMA window only")),
        TcePolicy::Dynamic { page_shifts } if !page_shifts.is_empty() => line(format_args!(
            "vm {name}: DMA windows of page shifts {}",
            List(page_shifts)
        )),
        TcePolicy::Dynamic { .. } => {}
    }
    if vm.unsafe_dma == UnsafeDma::Identity {
        line(format_args!(
            "vm {name}: UNSAFE: devices without an IOMMU may be given to it"
        ));
    }
    for device in &vm.devices {
        line(format_args!(
            "vm {name}: device {}{}{}{}",
            device.host,
            With(" as ", device.guest.as_ref().map(Guest)),
            match device.p2p {
                PeerToPeer::Refused => "",
                PeerToPeer::Allowed => ", peer to peer",
            },
            With(
                ", behind its SMMU ",
                Some(device.smmu).filter(|number| *number > 0)
            )
        ));
    }
}

struct Guest<'a>(&'a GuestDevice);

impl fmt::Display for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

struct Window(u64, u64);

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.0, self.1)
    }
}

/// The listing, a line a fact.
impl fmt::Display for Bundle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut result = Ok(());
        self.report(&mut |line| {
            if result.is_ok() {
                result = fmt::Write::write_fmt(f, line).and_then(|()| f.write_str("\n"));
            }
        });
        result
    }
}
