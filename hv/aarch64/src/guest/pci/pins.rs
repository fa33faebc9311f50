//! INTx: the interrupt pins of a VM's devices, which its guest sees as level-sensitive SPIs.
//!
//! A level that stays up would come without end, and to whichever VM has the CPU. So when a line of the
//! machine's goes up, the functions are asked which of them it is, and that one's pin is turned off: the
//! guest's line is up instead. Whenever the list registers are filled anew meanwhile, which the end of the
//! interrupt brings about, the function is asked again. While it still has reason, the guest's line stays
//! up, and all that follows happens in the guest's own time. When it has none left, the guest's line goes
//! down and the pin is let out again.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use firmware::PciHost;
use hal::Mutex;
use machine::Interrupt;
use pci::Permission;
use pci::vconfig::{GuestSegment, Pin, VirtualFunction};
use vgic::{Kicks, Level};

use super::{Assigned, GuestPci, Held};
use crate::guest::vm::Vm;
use crate::hardware::Hardware;

/// The pins that the guest sees.
pub(super) struct Pins {
    /// Locked after the segment, never before.
    wires: Mutex<Vec<Wire>>,
    /// How many are up.
    up: AtomicUsize,
}

/// From a device's pin to an interrupt of the guest.
struct Wire {
    function: usize,
    /// The machine's.
    line: Interrupt,
    /// The guest's.
    spi: u32,
    state: WireState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WireState {
    /// The guest does not let the device interrupt.
    Off,
    /// The device may raise its pin.
    Armed,
    /// It has: its pin is off, the guest's line up.
    Up,
}

impl Pins {
    #[optimize(size)]
    pub(super) fn new(
        hardware: &Hardware,
        host: &PciHost,
        segment: &GuestSegment,
        assigned: &[Assigned],
    ) -> Self {
        let wire = |seat: &Assigned| {
            let line = hardware.functions.get(seat.function)?.line?;
            let (at, pin) = segment.root_pin(seat.guest)?;
            Some(Wire {
                function: seat.function,
                line,
                spi: host.pin(at.device(), pin).intid(),
                state: WireState::Off,
            })
        };
        let shown = assigned.iter().filter(|seat| seat.pin == Pin::Shown);
        Self {
            wires: Mutex::new(shown.filter_map(wire).collect()),
            up: AtomicUsize::new(0),
        }
    }

    /// Drives the guest's line: up as long as one of the wires to it is.
    fn drive(&self, vm: &Vm, wires: &[Wire], spi: u32) -> Kicks {
        let up = |wire: &&Wire| wire.state == WireState::Up;
        self.up
            .store(wires.iter().filter(up).count(), Ordering::Release);
        let level = match wires.iter().filter(up).any(|wire| wire.spi == spi) {
            true => Level::High,
            false => Level::Low,
        };
        vm.gic.set_spi_line(spi, level)
    }
}

impl GuestPci {
    /// The lines of the machine's that this VM's devices raise.
    pub(crate) fn machine_lines(&self) -> Vec<Interrupt> {
        self.pins.wires.lock().iter().map(|w| w.line).collect()
    }

    /// The interrupt by which the guest hears of a function's pin.
    pub(super) fn interrupt_of(&self, function: usize) -> Option<u32> {
        let wires = self.pins.wires.lock();
        let wire = wires.iter().find(|wire| wire.function == function);
        wire.map(|wire| wire.spi)
    }

    /// Lets a device raise its pin, if its guest lets it.
    pub(super) fn arm_pin(&self, segment: &GuestSegment, held: &Held) {
        let wanted = segment
            .function(held.guest)
            .is_some_and(VirtualFunction::intx);
        let mut wires = self.pins.wires.lock();
        let wire = wires.iter_mut().find(|w| w.function == held.function);
        if let Some(wire) = wire.filter(|wire| wanted && wire.state == WireState::Off)
            && let Some(function) = self.hardware.functions.get(held.function)
        {
            wire.state = WireState::Armed;
            self.hardware.set_pin(function, Permission::Granted);
        }
    }

    /// Turns a device's pin off, and takes back what the guest may have of it.
    pub(super) fn disarm_pin(&self, vm: &Vm, held: &Held) {
        let mut wires = self.pins.wires.lock();
        let wire = wires.iter_mut().find(|w| w.function == held.function);
        if let Some(wire) = wire.filter(|wire| wire.state != WireState::Off)
            && let Some(function) = self.hardware.functions.get(held.function)
        {
            self.hardware.set_pin(function, Permission::Denied);
            wire.state = WireState::Off;
            let spi = wire.spi;
            // Where the guest has it already, it comes for nothing.
            let _ = self.pins.drive(vm, &wires, spi);
        }
    }

    /// What the guest's registers say of a device's pin has changed.
    pub(super) fn update_pin(&self, vm: &Vm, segment: &GuestSegment, held: &Held) {
        match segment
            .function(held.guest)
            .is_some_and(VirtualFunction::intx)
        {
            true => self.arm_pin(segment, held),
            false => self.disarm_pin(vm, held),
        }
    }

    /// A line of the machine's is up. `None` when it is not for one of these devices' sake.
    pub(crate) fn line_is_up(&self, vm: &Vm, line: u32) -> Option<Kicks> {
        let mut wires = self.pins.wires.lock();
        let mut kicks = None;
        for at in 0..wires.len() {
            let Some(wire) = wires.get_mut(at) else {
                continue;
            };
            let Some(function) = self.hardware.functions.get(wire.function) else {
                continue;
            };
            if wire.line.number != line
                || wire.state != WireState::Armed
                || !self.hardware.wants_pin(function)
            {
                continue;
            }
            self.hardware.set_pin(function, Permission::Denied);
            wire.state = WireState::Up;
            let spi = wire.spi;
            let told = self.pins.drive(vm, &wires, spi);
            kicks = Some(told.union(kicks.unwrap_or(Kicks::NONE)));
        }
        kicks
    }

    /// Whether a line of the guest's is up.
    pub(crate) fn has_line_up(&self) -> bool {
        self.pins.up.load(Ordering::Acquire) != 0
    }

    /// Asks the devices whose lines are up whether they still have reason. The machine's line follows the
    /// vCPU that hears of it, to the core with this affinity.
    pub(crate) fn look_at_lines(&self, vm: &Vm, mpidr: u64) -> Kicks {
        let mut wires = self.pins.wires.lock();
        let mut kicks = Kicks::NONE;
        for at in 0..wires.len() {
            let Some(wire) = wires.get_mut(at) else {
                continue;
            };
            let Some(function) = self.hardware.functions.get(wire.function) else {
                continue;
            };
            if wire.state != WireState::Up || self.hardware.wants_pin(function) {
                continue;
            }
            wire.state = WireState::Armed;
            let (spi, line) = (wire.spi, wire.line.number);
            kicks = kicks.union(self.pins.drive(vm, &wires, spi));
            crate::gic::route_spi(line, mpidr);
            self.hardware.set_pin(function, Permission::Granted);
        }
        kicks
    }
}
