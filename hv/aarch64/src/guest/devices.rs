//! The devices of a VM on its bus.

use core::sync::atomic::Ordering;

use firmware::{GuestPlatform, PciHost};
use types::{Ipa, Span};
use vdev::{Effects, Line, Width};
use vgic::{Kicks, Level, Vgic};
use vm::ExitCause;

use super::vm::Vm;
use crate::console;

/// The seconds of the machine's counter, by which the clocks of VMs run on. The machine's own clock was
/// asked once, at the start.
pub(crate) fn seconds() -> u64 {
    use hal::Clock;
    let counter = console::SystemCounter;
    counter.ticks() / counter.frequency().max(1)
}

/// What is at a guest physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Uart(u64),
    Rtc(u64),
    Distributor(u64),
    Redistributor {
        vcpu: usize,
        offset: u64,
    },
    Its(u64),
    Smmu(u64),
    /// Configuration space.
    Config(u64),
    /// A PCI window, where no BAR is or where it traps.
    Memory(u64),
}

/// Where the devices of a VM are, as plain numbers: every trapped access looks here first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bus {
    uart: u64,
    /// Its interrupt.
    uart_intid: u32,
    rtc: u64,
    distributor: u64,
    redistributors: u64,
    redistributor_bytes: u64,
    its: u64,
    /// The first of the SMMUs, and the bytes of all.
    smmus: (u64, u64),
    config: (u64, u64),
    windows: [(u64, u64); 2],
}

impl Bus {
    /// The bus of a platform.
    pub(crate) fn new(platform: &GuestPlatform) -> Self {
        let redistributors = platform.gic.redistributors;
        const NOTHING: (u64, u64) = (u64::MAX, 0);
        const BEYOND: u64 = u64::MAX - 0xfff;
        let place = |span: Span<Ipa>| (span.start().bits(), span.len().unwrap_or(0));
        let pci = platform.pci.as_ref();
        let config = pci.and_then(PciHost::ecam_span).map_or(NOTHING, place);
        let window = |index: usize| {
            let window = pci.and_then(|pci| pci.windows.get(index)?.span());
            window.map_or(NOTHING, place)
        };
        Self {
            // No page is there that a guest could name.
            uart: platform.uart.map_or(BEYOND, |uart| uart.base.bits()),
            uart_intid: platform.uart.map_or(0, |uart| uart.interrupt.intid()),
            rtc: platform.rtc.as_ref().map_or(BEYOND, |rtc| rtc.base.bits()),
            distributor: platform.gic.distributor.bits(),
            redistributors: redistributors.start().bits(),
            redistributor_bytes: redistributors.len().unwrap_or(0),
            its: platform.gic.its.map_or(u64::MAX, Ipa::bits),
            smmus: platform.smmus.first().map_or(NOTHING, |first| {
                let count = platform.smmus.len() as u64;
                (first.base.bits(), count * firmware::SMMU_BYTES)
            }),
            config,
            windows: [window(0), window(1)],
        }
    }

    /// What answers at an address.
    #[inline]
    pub(crate) fn find(&self, ipa: u64) -> Option<Target> {
        const PAGE: u64 = 0x1000;
        let offset = ipa.wrapping_sub(self.uart);
        if offset < PAGE {
            return Some(Target::Uart(offset));
        }
        let offset = ipa.wrapping_sub(self.distributor);
        if offset < vgic::DISTRIBUTOR_BYTES {
            return Some(Target::Distributor(offset));
        }
        let offset = ipa.wrapping_sub(self.redistributors);
        if offset < self.redistributor_bytes {
            let vcpu = usize::try_from(offset / vgic::REDISTRIBUTOR_BYTES).ok()?;
            let offset = offset % vgic::REDISTRIBUTOR_BYTES;
            return Some(Target::Redistributor { vcpu, offset });
        }
        let offset = ipa.wrapping_sub(self.its);
        if offset < vgic::its::ITS_BYTES {
            return Some(Target::Its(offset));
        }
        let offset = ipa.wrapping_sub(self.smmus.0);
        if offset < self.smmus.1 {
            return Some(Target::Smmu(offset));
        }
        let offset = ipa.wrapping_sub(self.config.0);
        if offset < self.config.1 {
            return Some(Target::Config(offset));
        }
        let inside = |(start, bytes): &(u64, u64)| ipa.wrapping_sub(*start) < *bytes;
        if self.windows.iter().any(inside) {
            return Some(Target::Memory(ipa));
        }
        let offset = ipa.wrapping_sub(self.rtc);
        (offset < PAGE).then_some(Target::Rtc(offset))
    }
}

impl Target {
    /// What an exit for it is counted as.
    pub(crate) fn cause(self) -> ExitCause {
        match self {
            Self::Uart(_) | Self::Rtc(_) => ExitCause::Console,
            Self::Distributor(_) | Self::Redistributor { .. } => ExitCause::InterruptController,
            Self::Its(_) => ExitCause::Its,
            Self::Smmu(_) => ExitCause::Smmu,
            Self::Config(_) => ExitCause::Configuration,
            Self::Memory(_) => ExitCause::Bar,
        }
    }

    /// Whether an access there is about interrupts that may be in list registers.
    pub(crate) fn wants_sync(self) -> bool {
        match self {
            Self::Distributor(offset) => Vgic::wants_sync(offset),
            // Of a redistributor, only the second frame has such registers.
            Self::Redistributor { offset, .. } => offset >= 0x1_0000 && Vgic::wants_sync(offset),
            _ => false,
        }
    }
}

/// A guest's read; `None` when nobody answers there.
pub(crate) fn read(vm: &Vm, target: Target, width: Width) -> Option<(u64, Kicks)> {
    Some(match target {
        Target::Uart(offset) => {
            let mut uart = vm.uart.lock();
            let (value, effects) = uart.read(offset, width);
            // Under the lock, so that two CPUs cannot tell the line's states in the wrong order.
            let kicks = carry_out(vm, vm.bus.uart_intid, effects);
            drop(uart);
            // The guest has made room, if it read a byte.
            (value, kicks.union(feed(vm)))
        }
        Target::Rtc(offset) => {
            let mut rtc = vm.rtc.lock();
            let (value, effects) = rtc.read(offset, width, seconds());
            let intid = vm.platform().rtc.as_ref()?.interrupt.intid();
            (value, carry_out(vm, intid, effects))
        }
        Target::Distributor(offset) => (vm.gic.read_distributor(offset, width), Kicks::NONE),
        Target::Redistributor { vcpu, offset } => {
            (vm.gic.read_redistributor(vcpu, offset, width), Kicks::NONE)
        }
        Target::Its(offset) => {
            let value = vm.pci.as_ref()?.vits.read(offset, width);
            (value, Kicks::NONE)
        }
        Target::Smmu(offset) => {
            let (smmu, offset) = vm.pci.as_ref()?.smmu_at(offset)?;
            (smmu.read(offset, width), Kicks::NONE)
        }
        Target::Config(offset) => (vm.pci.as_ref()?.read_config(offset, width), Kicks::NONE),
        Target::Memory(ipa) => (vm.pci.as_ref()?.read_memory(ipa, width), Kicks::NONE),
    })
}

/// A guest's write; `None` when nobody answers there.
pub(crate) fn write(vm: &Vm, target: Target, width: Width, value: u64) -> Option<Kicks> {
    Some(match target {
        Target::Uart(offset) => {
            let mut uart = vm.uart.lock();
            let effects = uart.write(offset, width, value);
            let kicks = carry_out(vm, vm.bus.uart_intid, effects);
            drop(uart);
            // It may have turned its receiver on.
            kicks.union(feed(vm))
        }
        Target::Rtc(offset) => {
            let mut rtc = vm.rtc.lock();
            let effects = rtc.write(offset, width, value, seconds());
            carry_out(vm, vm.platform().rtc.as_ref()?.interrupt.intid(), effects)
        }
        Target::Distributor(offset) => vm.gic.write_distributor(offset, width, value),
        Target::Redistributor { vcpu, offset } => {
            vm.gic.write_redistributor(vcpu, offset, width, value)
        }
        Target::Its(offset) => {
            let vits = &vm.pci.as_ref()?.vits;
            vm.gic
                .post_lpis_to(vits.write(vm, offset, width, value).post())
        }
        Target::Smmu(offset) => {
            let (smmu, offset) = vm.pci.as_ref()?.smmu_at(offset)?;
            smmu.write(vm, offset, width, value)
        }
        Target::Config(offset) => {
            vm.pci.as_ref()?.write_config(vm, offset, width, value);
            Kicks::NONE
        }
        Target::Memory(ipa) => {
            vm.pci.as_ref()?.write_memory(vm, ipa, width, value);
            Kicks::NONE
        }
    })
}

/// Somebody typed at the VM's console. What it has no room for waits; what does not fit there
/// either is lost, as on a real line.
pub(crate) fn receive(vm: &Vm, bytes: &[u8]) -> Kicks {
    const MOST: usize = 4096;
    {
        let mut input = vm.input.lock();
        let room = MOST.saturating_sub(input.len());
        input.extend(bytes.iter().take(room));
        vm.has_input.store(!input.is_empty(), Ordering::Release);
    }
    feed(vm)
}

/// Gives the UART of the VM what was typed, as far as it has room.
fn feed(vm: &Vm) -> Kicks {
    if !vm.has_input.load(Ordering::Acquire) {
        return Kicks::NONE;
    }
    let mut input = vm.input.lock();
    let mut uart = vm.uart.lock();
    let (taken, effects) = uart.receive(input.make_contiguous());
    let taken = taken.min(input.len());
    input.drain(..taken);
    vm.has_input.store(!input.is_empty(), Ordering::Release);
    carry_out(vm, vm.bus.uart_intid, effects)
}

#[inline]
fn carry_out(vm: &Vm, intid: u32, effects: Effects) -> Kicks {
    if let Some(byte) = effects.transmitted {
        match &vm.port {
            Some(port) => port.write(byte),
            None => console::guest(vm.number, byte),
        }
    }
    match effects.line {
        Some(Line::Asserted) => vm.gic.set_spi_line(intid, Level::High),
        Some(Line::Released) => vm.gic.set_spi_line(intid, Level::Low),
        None => Kicks::NONE,
    }
}
