//! Which vCPU a core runs, and for how long.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use boot::Verdict;
use bundle::Restart;
use hal::Clock;
use vgic::{Kicks, Level};

use super::context::{read_register, write_register};
use super::devices;
use super::enter::{self, Exit};
use super::irq;
use super::trap::Next;
use super::vcpu::{self, TRAP_WFI, Vcpu};
use super::vm::{Activity, Life, Slot, Vm};
use crate::console::{self, SystemCounter};
use crate::{gic, panic};

/// How long a vCPU runs while others wait for its core.
const SLICE_US: u64 = 10_000;

/// A core and the vCPUs that live on it.
pub(crate) struct Core {
    pub(crate) mpidr: u64,
    /// Its redistributor, started.
    pub(crate) redistributor: Option<gic::Frame>,
    /// VM and vCPU numbers.
    pub(crate) vcpus: Vec<(usize, usize)>,
}

/// All VMs and cores.
struct Guests {
    vms: Vec<Vm>,
    cores: Vec<Core>,
    /// VMs that have not stopped.
    running: AtomicUsize,
    /// The interrupt of the console, if it has one.
    console: Option<u32>,
}

static GUESTS: spin::Once<Guests> = spin::Once::new();

/// Whether there is but one VM, which then has the terminal to itself.
pub(crate) fn alone() -> bool {
    GUESTS.get().is_some_and(|guests| guests.vms.len() == 1)
}

/// Hands the VMs to the cores, which wait in [`serve`].
pub(crate) fn start(vms: Vec<Vm>, cores: Vec<Core>, console: Option<u32>) {
    // The VMs' identifiers may be in TLBs from before us.
    // SAFETY: drops translations, which are walked anew.
    unsafe { core::arch::asm!("tlbi alle1is", "dsb ish", "isb", options(nostack)) };
    let running = AtomicUsize::new(vms.len());
    GUESTS.call_once(|| Guests {
        vms,
        cores,
        running,
        console,
    });
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISH);
    // The others sleep in `serve` with their interfaces on.
    if let Some(guests) = GUESTS.get() {
        guests
            .cores
            .iter()
            .skip(1)
            .for_each(|core| gic::kick(core.mpidr));
    }
}

/// Runs vCPUs on this core for ever.
pub(crate) fn serve(core: usize) -> ! {
    if !gic::has_registers() {
        panic::park();
    }
    vcpu::prepare_core();
    gic::start_cpu_interface();
    let guests = loop {
        if let Some(guests) = GUESTS.get() {
            break guests;
        }
        // The kick that follows the VMs stays pending until it is taken, so it cannot be slept
        // through.
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
        aarch64_cpu::asm::wfi();
    };
    let Some(this) = guests.cores.get(core) else {
        panic::park()
    };
    let Some(frame) = this.redistributor else {
        log::error!("cpu{core}: no redistributor; its vCPUs cannot run");
        panic::park();
    };
    if core == 0
        && let Some(intid) = guests.console
    {
        console::enable_input();
        gic::enable_spi(intid, this.mpidr);
    }
    let mut turn = 0;
    loop {
        wake_expired(guests, this);
        match pick(guests, this, &mut turn) {
            Some((vm, index)) => reside(guests, core, frame, vm, index),
            None => idle(guests, this),
        }
    }
}

/// Wakes vCPUs of this core whose timers have fired while they were off it.
fn wake_expired(guests: &Guests, core: &Core) {
    let now = SystemCounter.ticks();
    for slot in slots(guests, core) {
        if slot.activity() == Activity::Waiting && slot.deadline.load(Ordering::Acquire) <= now {
            slot.wake();
        }
    }
}

fn slots<'g>(guests: &'g Guests, core: &'g Core) -> impl Iterator<Item = &'g Slot> {
    core.vcpus
        .iter()
        .filter_map(|(vm, vcpu)| guests.vms.get(*vm).and_then(|vm| vm.slots.get(*vcpu)))
}

/// The next vCPU in turn that can run.
fn pick<'g>(guests: &'g Guests, core: &Core, turn: &mut usize) -> Option<(&'g Vm, usize)> {
    let count = core.vcpus.len();
    for step in 0..count {
        let at = (*turn + step) % count;
        let (vm, index) = *core.vcpus.get(at)?;
        let vm = guests.vms.get(vm)?;
        let ready = vm
            .slots
            .get(index)
            .is_some_and(|slot| slot.activity() == Activity::Ready);
        if ready && vm.life() == Life::Running {
            *turn = at + 1;
            return Some((vm, index));
        }
    }
    None
}

/// Nothing to run: sleeps until an interrupt.
fn idle(guests: &Guests, core: &Core) {
    let waiting = slots(guests, core).filter(|slot| slot.activity() == Activity::Waiting);
    let deadline = waiting
        .map(|slot| slot.deadline.load(Ordering::Acquire))
        .min();
    set_alarm(deadline.filter(|deadline| *deadline != u64::MAX));
    // A vCPU may have become ready since it was looked for; then its kick is pending, and WFI
    // does not sleep.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    aarch64_cpu::asm::wfi();
    loop {
        match gic::acknowledge() {
            1020.. => break,
            gic::HYP_TIMER => {
                set_alarm(None);
                gic::drop_priority(gic::HYP_TIMER);
                gic::deactivate(gic::HYP_TIMER);
            }
            intid => {
                gic::drop_priority(intid);
                if Some(intid) == guests.console {
                    console_input(guests, usize::MAX);
                }
                gic::deactivate(intid);
            }
        }
    }
}

/// The hypervisor's timer fires at this count, or not at all.
fn set_alarm(deadline: Option<u64>) {
    match deadline {
        Some(deadline) => {
            write_register!("cnthp_cval_el2", deadline);
            write_register!("cnthp_ctl_el2", 1);
        }
        None => write_register!("cnthp_ctl_el2", 0),
    }
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// Typed bytes go to the first VM.
fn console_input(guests: &Guests, from: usize) {
    use hal::Console;
    let mut bytes = [0; 32];
    loop {
        let mut count = 0;
        while let Some(place) = bytes.get_mut(count) {
            let Some(byte) = console::Pl011.read() else {
                break;
            };
            *place = byte;
            count += 1;
        }
        if count == 0 {
            return;
        }
        if let (Some(vm), Some(typed)) = (guests.vms.first(), bytes.get(..count)) {
            kick(guests, vm, devices::receive(vm, typed), from);
        }
    }
}

/// Makes vCPUs look at their interrupts. `from` is the core that asks.
fn kick(guests: &Guests, vm: &Vm, kicks: Kicks, from: usize) {
    for vcpu in kicks {
        let Some(slot) = vm.slots.get(vcpu as usize) else {
            continue;
        };
        fence(Ordering::SeqCst);
        slot.wake();
        if slot.core != from
            && let Some(core) = guests.cores.get(slot.core)
        {
            gic::kick(core.mpidr);
        }
    }
}

/// A vCPU on a core.
pub(crate) struct Residency<'a> {
    guests: &'a Guests,
    core: usize,
    pub(crate) vm: &'a Vm,
    pub(crate) index: usize,
    pub(crate) vcpu: &'a mut Vcpu,
    /// The list registers are to be filled anew.
    refill: bool,
}

/// Why a vCPU leaves its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// Its time is over.
    Preempted,
    /// It waits.
    Waits,
    /// It is off, or its VM ends.
    Off,
}

/// Runs a vCPU on this core until it leaves.
fn reside(guests: &Guests, core: usize, frame: gic::Frame, vm: &Vm, index: usize) {
    let Some(slot) = vm.slots.get(index) else {
        return;
    };
    vm.residents.fetch_add(1, Ordering::AcqRel);
    if vm.life() == Life::Running {
        let shared = guests
            .cores
            .get(core)
            .is_some_and(|core| core.vcpus.len() > 1);
        let mut vcpu = slot.vcpu.lock();
        if let Some((pc, x0)) = slot.start.lock().take() {
            vcpu.reset(pc, x0);
        }
        vcpu.load(vm, if shared { TRAP_WFI } else { 0 });
        frame.set_active(vm.gic.physical_active(index));
        set_alarm(shared.then(|| SystemCounter.ticks() + SystemCounter.ticks_of_us(SLICE_US)));
        let mut residency = Residency {
            guests,
            core,
            vm,
            index,
            vcpu: &mut vcpu,
            refill: true,
        };
        let departure = residency.run(shared);
        residency.sync();
        irq::clear_all();
        for intid in bits(vm.gic.physical_active(index)) {
            gic::deactivate(intid);
        }
        vcpu.put();
        match departure {
            Departure::Preempted => {}
            Departure::Off => slot.set_activity(Activity::Off),
            Departure::Waits => settle(vm, index, slot, &vcpu),
        }
        // A vCPU that was turned on again while it left.
        if slot.start.lock().is_some() {
            slot.set_activity(Activity::Ready);
        }
    }
    if vm.residents.fetch_sub(1, Ordering::AcqRel) == 1 {
        conclude(guests, vm);
    }
}

/// Lets a vCPU wait, unless something has come for it meanwhile.
fn settle(vm: &Vm, index: usize, slot: &Slot, vcpu: &Vcpu) {
    let deadline = vcpu.deadline(vm.counter_offset()).unwrap_or(u64::MAX);
    slot.deadline.store(deadline, Ordering::Release);
    slot.set_activity(Activity::Waiting);
    fence(Ordering::SeqCst);
    if vm.gic.has_interrupt(index, vcpu.interface()) || deadline <= SystemCounter.ticks() {
        slot.wake();
    }
}

fn bits(set: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |bit| set >> bit & 1 == 1)
}

/// The last vCPU of a VM that ends has left its core.
fn conclude(guests: &Guests, vm: &Vm) {
    let again = if vm.change(Life::PoweringOff, Life::Stopped) {
        log::info!("vm {}: powered off", vm.name);
        vm.restart == Restart::Always
    } else if vm.change(Life::Resetting, Life::Stopped) {
        log::info!("vm {}: reset", vm.name);
        vm.restart != Restart::Never
    } else {
        return;
    };
    if again {
        match vm.reset() {
            Ok(()) => {
                if let Some(core) = vm
                    .slots
                    .first()
                    .and_then(|slot| guests.cores.get(slot.core))
                {
                    gic::kick(core.mpidr);
                }
                return;
            }
            Err(error) => log::error!("vm {}: does not start again: {error}", vm.name),
        }
    }
    if guests.running.fetch_sub(1, Ordering::AcqRel) == 1 {
        panic::end(Verdict::Good("all VMs are off"));
    }
}

impl Residency<'_> {
    fn run(&mut self, shared: bool) -> Departure {
        loop {
            if self.vm.life() != Life::Running {
                return Departure::Off;
            }
            if self.refill || self.vm.gic.needs_flush(self.index) {
                self.flush();
            }
            // SAFETY: `load` put this vCPU's stage 2 and HCR_EL2 on the core; stage 2 holds the
            // VM's memory only.
            match unsafe { enter::enter(&mut self.vcpu.registers) } {
                Exit::Synchronous => match self.synchronous() {
                    Next::Resume => {}
                    Next::Leave => return Departure::Off,
                    Next::Wait if shared => return Departure::Waits,
                    Next::Wait => self.wait(),
                },
                Exit::Interrupt => {
                    if self.interrupt() == Some(Departure::Preempted) {
                        return Departure::Preempted;
                    }
                }
                Exit::SError => {
                    log::error!(
                        "vm {}: SError on vCPU {}, esr {:#x}: the VM is stopped",
                        self.vm.name,
                        self.index,
                        read_register!("esr_el2")
                    );
                    self.power_off();
                    return Departure::Off;
                }
            }
        }
    }

    /// Takes the state of interrupts out of the list registers.
    pub(crate) fn sync(&mut self) {
        irq::read_back(&mut self.vcpu.image);
        let kicks = self.vm.gic.sync(self.index, &mut self.vcpu.image);
        self.refill = true;
        self.kick(kicks);
    }

    fn flush(&mut self) {
        irq::read_back(&mut self.vcpu.image);
        let kicks = self.vm.gic.flush(self.index, &mut self.vcpu.image);
        irq::write_out(&self.vcpu.image);
        for intid in bits(self.vcpu.image.to_deactivate()) {
            gic::deactivate(intid);
        }
        self.refill = false;
        self.kick(kicks);
    }

    pub(crate) fn kick(&self, kicks: Kicks) {
        if !kicks.is_empty() {
            kick(self.guests, self.vm, kicks, self.core);
        }
    }

    /// Sleeps on the core until the vCPU has an interrupt. Nobody else wants the core.
    fn wait(&mut self) {
        loop {
            self.sync();
            if self.vm.gic.has_interrupt(self.index, &irq::current())
                || self.vm.life() != Life::Running
            {
                return;
            }
            aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
            aarch64_cpu::asm::wfi();
            self.interrupt();
        }
    }

    /// Takes an interrupt of the hypervisor's.
    fn interrupt(&mut self) -> Option<Departure> {
        let intid = gic::acknowledge();
        if intid >= 1020 {
            return None;
        }
        gic::drop_priority(intid);
        match intid {
            // Stays active until the guest ends it.
            27 | 30 => {
                let kicks = self.vm.gic.set_ppi_line(self.index, intid, Level::High);
                self.kick(kicks);
                return None;
            }
            gic::MAINTENANCE => self.refill = true,
            gic::HYP_TIMER => {
                set_alarm(None);
                gic::deactivate(intid);
                return Some(Departure::Preempted);
            }
            _ if Some(intid) == self.guests.console => console_input(self.guests, self.core),
            _ => {}
        }
        gic::deactivate(intid);
        None
    }

    pub(crate) fn start_other(&self, start: armv8::Start) {
        if let Some(slot) = self.vm.slots.get(start.vcpu) {
            *slot.start.lock() = Some((start.entry, start.context));
            slot.set_activity(Activity::Ready);
            if slot.core != self.core
                && let Some(core) = self.guests.cores.get(slot.core)
            {
                gic::kick(core.mpidr);
            }
        }
    }

    pub(crate) fn power_off(&self) {
        if self.vm.change(Life::Running, Life::PoweringOff) {
            self.call_in();
        }
    }

    pub(crate) fn restart(&self) {
        if self.vm.change(Life::Running, Life::Resetting) {
            self.call_in();
        }
    }

    /// Makes all vCPUs of the VM leave their cores.
    fn call_in(&self) {
        for slot in &self.vm.slots {
            if slot.core != self.core
                && let Some(core) = self.guests.cores.get(slot.core)
            {
                gic::kick(core.mpidr);
            }
        }
    }
}
