//! Which vCPU a core runs, and for how long.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use boot::{Frames, Verdict};
use bundle::Start;
use hal::Clock;
use machine::Interrupt;
use smmuv3::Locked;
use spin::Mutex;
use vgic::its::Message;
use vgic::{Kicks, Level};
use vm::{Ended, Ending, ExitCause, Lodgers, Monitor, Next, State, Turns, Typed};

use super::context::{read_register, write_register};
use super::devices;
use super::enter::{self, Exit};
use super::irq;
use super::pci::GuestPci;
use super::smmu::Broken;
use super::trap::Next as After;
use super::vcpu::{self, TRAP_WFI, Vcpu, Whereabouts};
use super::vm::{Activity, Slot, Vm};
use crate::console::{self, SystemCounter};
use crate::hardware::{Claim, Hardware, Route, Told};
use crate::memory::{Ram, Registers};
use crate::serial::Port;
use crate::{gic, panic};

/// A core and the vCPUs that live on it.
pub(crate) struct Core {
    pub(crate) mpidr: u64,
    /// Its redistributor, started.
    pub(crate) redistributor: Option<gic::Frame>,
    /// VM and vCPU numbers.
    pub(crate) vcpus: Vec<(usize, usize)>,
}

/// What is handed over to run.
pub(crate) struct Handover {
    pub(crate) vms: Vec<Vm>,
    pub(crate) cores: Vec<Core>,
    /// The interrupt of the console, if it has one.
    pub(crate) console: Option<Interrupt>,
    pub(crate) iommus: Iommus,
    pub(crate) frames: &'static Frames<Ram>,
}

/// What confines devices.
pub(crate) enum Iommus {
    /// No VM has devices: SMMUs as the survey locked them.
    Locked(Vec<Locked<Registers>>),
    /// In use.
    Driven(&'static Hardware),
}

impl Iommus {
    fn hardware(&self) -> Option<&'static Hardware> {
        match self {
            Self::Locked(_) => None,
            Self::Driven(hardware) => Some(hardware),
        }
    }
}

/// All VMs and cores.
pub(super) struct Guests {
    pub(super) vms: Vec<Vm>,
    pub(super) cores: Vec<Core>,
    console: Option<Interrupt>,
    pub(super) iommus: Iommus,
    /// VMs that start as soon as their devices are back from their resets.
    starting: Mutex<Vec<(usize, Option<Ending>)>>,
    /// There are such VMs.
    has_starting: AtomicBool,
    pub(super) frames: &'static Frames<Ram>,
    monitor: Mutex<Monitor>,
    /// A line for the monitor, which waits until the console's core has no vCPU on it.
    command: Mutex<Option<String>>,
    /// The end has begun.
    over: AtomicBool,
}

impl Guests {
    fn is_console(&self, intid: u32) -> bool {
        self.console.is_some_and(|console| console.number == intid)
    }

    /// An interrupt that may be of a VM's own serial port, or an SMMU's; `from` is the core that has a
    /// vCPU on it, if one has.
    fn other_interrupt(&self, intid: u32, from: usize) {
        for vm in &self.vms {
            if let Some(port) = vm.port.as_ref().filter(|port| port.is_from(intid)) {
                while let Some(byte) = port.read() {
                    kick(self, vm, devices::receive(vm, &[byte]), from);
                }
            }
        }
        if let Some(hardware) = self.iommus.hardware()
            && hardware.is_line(intid)
        {
            self.line_is_up(hardware, intid, from);
        }
        if let Some(hardware) = self.iommus.hardware()
            && hardware.is_ours(intid)
        {
            // What is left waits for the next interrupt or the next look around: a flood takes turns.
            for _ in 0..DRAINS_AN_INTERRUPT {
                self.drain(hardware, from);
                if !hardware.has_records() {
                    break;
                }
            }
        }
    }

    /// Where a device's message goes.
    fn route(&self, intid: u32) -> Option<Route> {
        self.iommus.hardware()?.route(intid)
    }

    /// A line that devices' pins raise is up.
    fn line_is_up(&self, hardware: &Hardware, intid: u32, from: usize) {
        let mut claim = Claim::Unclaimed;
        for vm in &self.vms {
            if let Some(pci) = &vm.pci
                && let Some(kicks) = pci.line_is_up(vm, intid)
            {
                claim = Claim::Claimed;
                kick(self, vm, kicks, from);
            }
        }
        hardware.count_line(intid, claim);
    }

    /// Takes the records out of the SMMUs' queues; `from` is the core that has a vCPU on it, if one has.
    fn drain(&self, hardware: &Hardware, from: usize) {
        hardware.drain(|vm, function, event| {
            let told = self.vms.get(vm).and_then(|vm| {
                let kicks = vm.pci.as_ref()?.report(vm, function, event)?;
                Some((vm, kicks))
            });
            let Some((vm, kicks)) = told else {
                return Told::Nobody;
            };
            kick(self, vm, kicks, from);
            Told::Guest
        });
    }
}

/// A device's message has come in. An LPI has no active state.
fn message(guests: &Guests, route: Route, from: usize) {
    if let Some(vm) = guests.vms.get(route.vm)
        && let Some(pci) = &vm.pci
    {
        let told = pci.vits.signal(route.device.into(), route.event.into());
        kick(guests, vm, vm.gic.post_lpis_to(told), from);
    }
}

/// A turn's rest shorter than this is not worth an entry into a guest.
const SHORTEST_STAY_US: u64 = 50;

/// How often an interrupt of an SMMU has its event queue looked at, of which each look is bounded.
const DRAINS_AN_INTERRUPT: usize = 4;

/// The core that has the console.
const CONSOLE_CORE: usize = 0;

static GUESTS: spin::Once<Guests> = spin::Once::new();

/// Starts the VMs that are to start at boot, and hands all to the cores, which wait in [`serve`].
pub(crate) fn start(handover: Handover) {
    let Handover {
        vms,
        cores,
        console,
        iommus,
        frames,
    } = handover;
    // The VMs' identifiers may be in TLBs from before us.
    // SAFETY: drops translations, which are walked anew.
    unsafe { core::arch::asm!("tlbi alle1is", "dsb ish", "isb", options(nostack)) };
    for vm in &vms {
        console::add_vm(&vm.name, vm.line());
        if vm.start == Start::Boot
            && vm.lifecycle.claim()
            && let Err(error) = vm.begin(None)
        {
            log::error!("vm {}: {error}", vm.name);
        }
    }
    if !vms.iter().any(|vm| vm.lifecycle.is_running()) {
        let manual = vms.iter().all(|vm| vm.start != Start::Boot);
        match console {
            Some(_) if manual => console::open_monitor(),
            _ => panic::end(Verdict::Fatal("no VM of the bundle can be run")),
        }
    }
    GUESTS.call_once(|| Guests {
        vms,
        cores,
        console,
        iommus,
        starting: Mutex::new(Vec::new()),
        has_starting: AtomicBool::new(false),
        frames,
        monitor: Mutex::new(Monitor::new()),
        command: Mutex::new(None),
        over: AtomicBool::new(false),
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
    if core == CONSOLE_CORE
        && let Some(interrupt) = guests.console
    {
        console::enable_input();
        gic::enable_spi(interrupt, this.mpidr);
    }
    if core == CONSOLE_CORE {
        let ports = guests.vms.iter().filter_map(|vm| vm.port.as_ref());
        for interrupt in ports.filter_map(Port::listen) {
            gic::enable_spi(interrupt, this.mpidr);
        }
    }
    if core == CONSOLE_CORE
        && let Some(hardware) = guests.iommus.hardware()
    {
        for interrupt in hardware.interrupts() {
            gic::enable_spi(interrupt, this.mpidr);
        }
        for vm in &guests.vms {
            let first = vm.slots.first();
            let near = first.and_then(|slot| guests.cores.get(slot.core));
            let near = near.map_or(this.mpidr, |core| core.mpidr);
            for interrupt in vm.pci.iter().flat_map(GuestPci::machine_lines) {
                gic::enable_spi(interrupt, near);
            }
        }
        // What came before has left no edge.
        guests.drain(hardware, usize::MAX);
    }
    let shortest = SystemCounter.ticks_of_us(SHORTEST_STAY_US);
    let mut turns = Turns::new(&this.vcpus, shortest);
    let mut lodgers = Lodgers::new(guests.vms.len());
    loop {
        if core == CONSOLE_CORE {
            monitor(guests);
        }
        wake_expired(guests, this);
        look_around(guests, core);
        let ready = |vm: usize, index: usize| {
            let vm = guests.vms.get(vm)?;
            let ready = vm.slots.get(index)?.activity() == Activity::Ready;
            (ready && vm.lifecycle.is_running()).then_some((vm, index))
        };
        let slice = |vm: usize| {
            let us = guests.vms.get(vm).map_or(0, |vm| vm.slice_us);
            SystemCounter.ticks_of_us(us)
        };
        match turns.pick(ready, slice) {
            Some((next, ticks)) => {
                let from = SystemCounter.ticks();
                reside(guests, core, frame, &mut lodgers, next, from + ticks);
                turns.used(SystemCounter.ticks() - from);
            }
            None => idle(guests, core, this),
        }
    }
}

/// What is to be done between vCPUs: event records that were too many for one look, and VMs that wait for
/// their devices.
fn look_around(guests: &Guests, core: usize) {
    if let Some(hardware) = guests.iommus.hardware()
        && core == CONSOLE_CORE
    {
        if hardware.has_records() {
            guests.drain(hardware, usize::MAX);
        }
        hardware.look_around();
    }
    if guests.has_starting.load(Ordering::Acquire) {
        poll_starts(guests, Some(core));
    }
}

/// Starts VMs whose devices are back from their resets: those whose first vCPU lives on `core`, or all.
pub(super) fn poll_starts(guests: &Guests, core: Option<usize>) {
    let lives_here = |vm: &Vm| {
        let first = vm.slots.first().map(|slot| slot.core);
        core.is_none() || first == core
    };
    loop {
        let ready = {
            let mut starting = guests.starting.lock();
            let ready = starting.iter().position(|(vm, _)| {
                let vm = guests.vms.get(*vm);
                vm.is_none_or(|vm| lives_here(vm) && vm.waits_for_devices().is_none())
            });
            let ready = ready.map(|at| starting.swap_remove(at));
            guests
                .has_starting
                .store(!starting.is_empty(), Ordering::Release);
            ready
        };
        let Some((vm, ended)) = ready else {
            return;
        };
        if let Some(vm) = guests.vms.get(vm) {
            begin_now(guests, vm, ended);
        }
    }
}

/// When this core is to look around for the sake of devices that flooded.
fn next_hearing(guests: &Guests, core: usize) -> Option<u64> {
    let hardware = guests.iommus.hardware().filter(|_| core == CONSOLE_CORE);
    hardware.and_then(Hardware::next_look)
}

/// When this core is to look at the devices of a VM that waits for them.
fn next_look(guests: &Guests, core: usize) -> Option<u64> {
    if !guests.has_starting.load(Ordering::Acquire) {
        return None;
    }
    let starting = guests.starting.lock();
    let here = starting
        .iter()
        .filter_map(|(vm, _)| guests.vms.get(*vm))
        .filter(|vm| vm.slots.first().is_some_and(|slot| slot.core == core));
    here.map(|vm| vm.waits_for_devices().unwrap_or(0)).min()
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

/// Nothing to run: sleeps until an interrupt.
fn idle(guests: &Guests, number: usize, core: &Core) {
    let waiting = slots(guests, core).filter(|slot| slot.activity() == Activity::Waiting);
    let deadline = waiting
        .map(|slot| slot.deadline.load(Ordering::Acquire))
        .chain(next_look(guests, number))
        .chain(next_hearing(guests, number))
        .min();
    set_alarm(deadline.filter(|deadline| *deadline != u64::MAX));
    // A vCPU may have become ready since it was looked for; then its kick is pending, and WFI
    // does not sleep.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    aarch64_cpu::asm::wfi();
    loop {
        match gic::acknowledge() {
            1020..gic::FIRST_LPI => break,
            intid @ gic::FIRST_LPI.. => {
                gic::drop_priority(intid);
                if let Some(route) = guests.route(intid) {
                    message(guests, route, usize::MAX);
                }
            }
            gic::HYP_TIMER => {
                set_alarm(None);
                gic::drop_priority(gic::HYP_TIMER);
                gic::deactivate(gic::HYP_TIMER);
            }
            intid => {
                gic::drop_priority(intid);
                let command = guests.is_console(intid) && console_input(guests, usize::MAX);
                guests.other_interrupt(intid, usize::MAX);
                gic::deactivate(intid);
                // Typed bytes behind the command keep the interrupt pending.
                if command {
                    break;
                }
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

/// Gives typed bytes to whom they are for; `from` is the core that has a vCPU on it, if one has.
/// True when the monitor has a command to carry out before more is read.
fn console_input(guests: &Guests, from: usize) -> bool {
    if guests.command.lock().is_some() {
        return true;
    }
    while let Some(typed) = console::typed() {
        match typed {
            Typed::Nothing => {}
            Typed::Guest { vm, byte } => {
                if let Some(vm) = guests.vms.get(vm) {
                    kick(guests, vm, devices::receive(vm, &[byte]), from);
                }
            }
            Typed::Command(line) => {
                *guests.command.lock() = Some(line);
                return true;
            }
            Typed::LeftMonitor => end_if_all_off(guests),
        }
    }
    false
}

/// Carries out what was asked of the monitor. No vCPU is on this core.
fn monitor(guests: &Guests) {
    loop {
        let Some(line) = guests.command.lock().take() else {
            return;
        };
        let reply = guests.monitor.lock().execute(&line, &mut &*guests);
        console::reply(&reply);
        match reply.then {
            vm::Then::Quit => end(guests, "the monitor was told to quit"),
            vm::Then::Leave | vm::Then::Focus(_) => end_if_all_off(guests),
            vm::Then::Stay => {}
        }
        console_input(guests, usize::MAX);
    }
}

/// The machine is off when no VM runs and nobody is at the monitor to start one.
fn end_if_all_off(guests: &Guests) {
    let off = |vm: &Vm| matches!(vm.lifecycle.state(), State::Stopped | State::Failed);
    if guests.vms.iter().all(off) && !console::in_monitor() {
        end(guests, "all VMs are off");
    }
}

/// The end of the run, once.
fn end(guests: &Guests, reason: &str) -> ! {
    if guests.over.swap(true, Ordering::AcqRel) {
        panic::park();
    }
    panic::end(Verdict::Good(reason))
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
    slot: &'a Slot,
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

/// Runs a vCPU on this core until it leaves, at `until` if others share the core.
///
/// `lodgers` says which vCPU of each VM was on this core last.
fn reside(
    guests: &Guests,
    core: usize,
    frame: gic::Frame,
    lodgers: &mut Lodgers,
    (vm, index): (&Vm, usize),
    until: u64,
) {
    let Some(slot) = vm.slots.get(index) else {
        return;
    };
    // It may have been turned off since it was picked, by the end of its VM.
    if vm.lifecycle.enter() && slot.activity() == Activity::Ready {
        let shared = guests
            .cores
            .get(core)
            .is_some_and(|core| core.vcpus.len() > 1);
        let mut vcpu = slot.vcpu.lock();
        if let Some((pc, x0)) = slot.start.lock().take() {
            vcpu.reset(pc, x0);
        }
        slot.clock.begin(SystemCounter.ticks());
        vcpu.load(vm, if shared { TRAP_WFI } else { 0 });
        if lodgers.comes(vm.number, index) {
            vcpu::forget_translations();
        }
        frame.set_active(vm.gic.physical_active(index));
        let slice = shared.then_some(until);
        set_alarm(slice.into_iter().chain(next_hearing(guests, core)).min());
        let mut residency = Residency {
            guests,
            core,
            vm,
            index,
            slot,
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
        slot.clock.end(SystemCounter.ticks());
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
    leave(guests, vm);
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

/// The members of a set, lowest first. Nearly always there are none.
fn bits(mut set: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(bit)
    })
}

/// A core is done with a VM for now. The last to leave one that ends concludes it.
fn leave(guests: &Guests, vm: &Vm) {
    if let Some(ended) = vm.lifecycle.leave(vm.restart) {
        conclude(guests, vm, ended);
    }
}

/// A VM has ended: no vCPU of it is on a core.
fn conclude(guests: &Guests, vm: &Vm, ended: Ended) {
    console::vm_ended(vm.number);
    if vm::is_notable(vm.lifecycle.starts()) {
        log::info!("vm {}: {}", vm.name, ended.ending);
    }
    vm.give_back_devices();
    match ended.next {
        Next::Start => begin(guests, vm, Some(ended.ending)),
        Next::Stay => {
            let starts = guests.vms.iter().map(|vm| &vm.start);
            for next in vm::dependents(starts, &vm.name) {
                if let Some(next) = guests.vms.get(next)
                    && next.lifecycle.claim()
                {
                    log::info!("vm {}: starts after {}", next.name, vm.name);
                    begin(guests, next, None);
                }
            }
        }
    }
    end_if_all_off(guests);
}

/// Starts a VM that is claimed, or has it start when its devices are back from their resets.
pub(super) fn begin(guests: &Guests, vm: &Vm, ended: Option<Ending>) {
    if vm.waits_for_devices().is_none() {
        begin_now(guests, vm, ended);
        return;
    }
    guests.starting.lock().push((vm.number, ended));
    guests.has_starting.store(true, Ordering::Release);
    let first = vm.slots.first();
    if let Some(core) = first.and_then(|slot| guests.cores.get(slot.core)) {
        gic::kick(core.mpidr);
    }
}

fn begin_now(guests: &Guests, vm: &Vm, ended: Option<Ending>) {
    match vm.begin(ended) {
        Ok(()) => {
            let first = vm.slots.first();
            if let Some(core) = first.and_then(|slot| guests.cores.get(slot.core)) {
                gic::kick(core.mpidr);
            }
        }
        Err(error) => log::error!("vm {}: does not start: {error}", vm.name),
    }
}

/// Ends a running VM from outside; `from` is the core that asks and has no vCPU on it. False when it
/// is not running.
pub(super) fn stop(guests: &Guests, vm: &Vm, ending: Ending, from: usize) -> bool {
    let _ = vm.lifecycle.enter();
    let ends = vm.lifecycle.end(ending);
    if ends {
        call_in(guests, vm, from);
    }
    leave(guests, vm);
    ends
}

/// Makes all vCPUs of a VM leave their cores, other than the core `from`.
fn call_in(guests: &Guests, vm: &Vm, from: usize) {
    for slot in vm.slots.iter().filter(|slot| slot.core != from) {
        if let Some(core) = guests.cores.get(slot.core) {
            gic::kick(core.mpidr);
        }
    }
}

impl Residency<'_> {
    fn run(&mut self, shared: bool) -> Departure {
        loop {
            if !self.vm.lifecycle.is_running() {
                return Departure::Off;
            }
            if let Some(pci) = &self.vm.pci
                && pci.has_work()
            {
                match pci.run(self.vm) {
                    Ok(kicks) => self.kick(kicks),
                    Err(Broken) => {
                        log::error!(
                            "vm {}: the SMMU did not confirm what its guest asked for: the VM is stopped",
                            self.vm.name
                        );
                        self.end(Ending::Fault);
                        return Departure::Off;
                    }
                }
            }
            if self.refill || self.vm.gic.needs_flush(self.index) {
                self.flush();
            }
            // SAFETY: `load` put this vCPU's stage 2 and HCR_EL2 on the core; stage 2 holds the
            // VM's memory only.
            let exit = unsafe { enter::enter(&mut self.vcpu.registers) };
            // This core alone counts.
            let exits = &self.slot.exits;
            exits.store(exits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            match exit {
                Exit::Synchronous => match self.synchronous() {
                    After::Resume => {}
                    After::Leave => return Departure::Off,
                    // What the guest began goes on while it waits.
                    After::Wait if self.vm.pci.as_ref().is_some_and(GuestPci::has_work) => {}
                    After::Wait if shared => return Departure::Waits,
                    After::Wait => {
                        if self.wait() {
                            return Departure::Waits;
                        }
                    }
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
                    self.end(Ending::Fault);
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
        if let Some(pci) = &self.vm.pci
            && pci.has_line_up()
        {
            self.look_at_lines(pci);
        }
        irq::read_back(&mut self.vcpu.image);
        let kicks = self.vm.gic.flush(self.index, &mut self.vcpu.image);
        irq::write_out(&self.vcpu.image);
        for intid in bits(self.vcpu.image.to_deactivate()) {
            gic::deactivate(intid);
        }
        self.refill = false;
        self.kick(kicks);
    }

    /// Asks devices whose lines are up whether they still have reason. What the guest has ended must be out
    /// of the list registers by then.
    #[cold]
    fn look_at_lines(&mut self, pci: &GuestPci) {
        self.sync();
        let core = self.guests.cores.get(self.core);
        let kicks = pci.look_at_lines(self.vm, core.map_or(0, |core| core.mpidr));
        self.kick(kicks);
    }

    pub(crate) fn kick(&self, kicks: Kicks) {
        if !kicks.is_empty() {
            kick(self.guests, self.vm, kicks, self.core);
        }
    }

    /// Sleeps on the core until the vCPU has an interrupt. No other vCPU wants the core; true when the
    /// monitor does.
    fn wait(&mut self) -> bool {
        loop {
            self.sync();
            if self.vm.gic.has_interrupt(self.index, &irq::current())
                || !self.vm.lifecycle.is_running()
            {
                return false;
            }
            aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
            aarch64_cpu::asm::wfi();
            if self.interrupt().is_some() {
                return true;
            }
        }
    }

    /// A device's message has come in: straight into a list register, if it is for the vCPU that is on
    /// this core and nothing else waits; otherwise as from any core.
    fn message(&mut self, intid: u32) {
        let Some(route) = self.guests.route(intid) else {
            return;
        };
        if route.vm == self.vm.number
            && !self.refill
            && let Some(pci) = &self.vm.pci
        {
            let message = Message {
                device: route.device.into(),
                event: route.event.into(),
            };
            let image = &mut self.vcpu.image;
            let empty = irq::ended();
            let at = (self.vm.gic).deliver(&pci.vits, message, self.index, image, empty);
            if let Some(index) = at {
                irq::write_one(index, image.register(index));
                return;
            }
        }
        message(self.guests, route, self.core);
    }

    /// Takes an interrupt of the hypervisor's.
    fn interrupt(&mut self) -> Option<Departure> {
        let intid = gic::acknowledge();
        if intid >= 1020 {
            if intid >= gic::FIRST_LPI {
                self.count(ExitCause::Message);
                gic::drop_priority(intid);
                self.message(intid);
            }
            return None;
        }
        self.count(match intid {
            27 | 30 => ExitCause::Timer,
            gic::MAINTENANCE => ExitCause::Maintenance,
            gic::HYP_TIMER => ExitCause::Turn,
            gic::KICK => ExitCause::Kick,
            _ => ExitCause::OtherInterrupt,
        });
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
            gic::KICK if self.slot.peek.swap(false, Ordering::AcqRel) => {
                *self.slot.view.lock() = Some(self.vcpu.view(Whereabouts::OnThisCore));
            }
            _ if self.guests.is_console(intid) => {
                let command = console_input(self.guests, self.core);
                gic::deactivate(intid);
                return command.then_some(Departure::Preempted);
            }
            _ => {
                self.guests.other_interrupt(intid, self.core);
                // Where an alarm is set already, what follows it looks around, too.
                if let Some(deadline) = next_hearing(self.guests, self.core)
                    && read_register!("cnthp_ctl_el2") & 1 == 0
                {
                    set_alarm(Some(deadline));
                }
            }
        }
        gic::deactivate(intid);
        None
    }

    /// Counts an exit.
    pub(crate) fn count(&self, cause: ExitCause) {
        self.slot.causes.count(cause);
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

    /// Ends the VM.
    pub(crate) fn end(&self, ending: Ending) {
        if self.vm.lifecycle.end(ending) {
            call_in(self.guests, self.vm, self.core);
        }
    }
}
