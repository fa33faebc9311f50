//! Which vCPU a core runs, and for how long.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use boot::{Frames, Verdict};
use bundle::Start;
use papr::{After, End, Servers, Wake};
use spin::Mutex;
use vm::{Ended, Ending, Monitor, Next, State, Turns, Typed};

use super::environment::Surroundings;
use super::vm::{Activity, Slot, Vm};
use crate::cpu::{self, Cpu};
use crate::hardware::Hardware;
use crate::memory::Ram;
use crate::nested::{
    self, Exit, GuestThread, Loaded, Location, MACHINE_CHECK, MSR_EE, Order, Vcpu,
};
use crate::{console, panic, presentation, smp, spr};

/// How often a core looks around while it does something else: at the keyboard, at cores that may
/// have lost the end of a slice.
const LOOK_US: u64 = 10_000;
/// How long a vCPU runs with an interrupt due that it does not let through: it may let it through at
/// any time without telling.
const PENDING_US: u64 = 250;

/// A core and the vCPUs that live on it.
pub(crate) struct Core {
    pub(crate) cpu: &'static Cpu,
    /// VM and vCPU numbers.
    pub(crate) vcpus: Vec<(usize, usize)>,
    /// It has been called and has not yet looked.
    called: AtomicBool,
}

impl Core {
    pub(crate) fn new(cpu: &'static Cpu) -> Self {
        Self {
            cpu,
            vcpus: Vec::new(),
            called: AtomicBool::new(false),
        }
    }
}

/// What is handed over to run.
pub(crate) struct Handover {
    pub(crate) vms: Vec<Vm>,
    pub(crate) cores: Vec<Core>,
    /// The machine's host bridges.
    pub(crate) hardware: Option<&'static Hardware>,
    /// What of the machine's windows onto memory there is to tell.
    pub(crate) windows: Vec<vm::Iommu>,
    pub(crate) frames: &'static Frames<Ram>,
}

/// All VMs and cores.
pub(super) struct Guests {
    hardware: Option<&'static Hardware>,
    pub(super) vms: Vec<Vm>,
    pub(super) cores: Vec<Core>,
    pub(super) windows: Vec<vm::Iommu>,
    pub(super) frames: &'static Frames<Ram>,
    monitor: Mutex<Monitor>,
    /// A line for the monitor, which waits until the console's core has no vCPU on it.
    command: Mutex<Option<String>>,
    has_command: AtomicBool,
    /// The end has begun.
    over: AtomicBool,
}

/// A turn's rest shorter than this is not worth an entry into a guest.
const SHORTEST_STAY_US: u64 = 50;

/// The core that has the console.
const CONSOLE_CORE: usize = 0;

static GUESTS: spin::Once<Guests> = spin::Once::new();

/// Starts the VMs that are to start at boot, and hands all to the cores, which come to [`serve`].
pub(crate) fn start(handover: Handover) {
    let Handover {
        hardware,
        vms,
        cores,
        windows,
        frames,
    } = handover;
    for vm in &vms {
        console::add_vm(&vm.name);
        if vm.start == Start::Boot
            && vm.lifecycle.claim()
            && let Err(error) = vm.begin(None)
        {
            log::error!("vm {}: {error}", vm.name);
        }
    }
    if !vms.iter().any(|vm| vm.lifecycle.is_running()) {
        if vms.iter().all(|vm| vm.start != Start::Boot) {
            console::open_monitor();
        } else {
            panic::end(Verdict::Fatal("no VM of the bundle can be run"));
        }
    }
    GUESTS.call_once(|| Guests {
        hardware,
        vms,
        cores,
        windows,
        frames,
        monitor: Mutex::new(Monitor::new()),
        command: Mutex::new(None),
        has_command: AtomicBool::new(false),
        over: AtomicBool::new(false),
    });
}

/// Runs vCPUs on this core for ever, once there are VMs.
pub(crate) fn serve() {
    let Some(guests) = GUESTS.get() else {
        return;
    };
    let this = cpu::this();
    let found = guests.cores.iter().enumerate();
    let mut found = found.filter(|(_, core)| core::ptr::eq(core.cpu, this));
    let Some((number, core)) = found.next() else {
        smp::park();
    };
    // SAFETY: this thread runs guests here only, from now on.
    let mut thread = unsafe { GuestThread::claim() };
    let mut turns = Turns::new(&core.vcpus, Vm::ticks(SHORTEST_STAY_US));
    loop {
        assert!(this.guard_is_whole(), "the stack has overflowed");
        if number == CONSOLE_CORE {
            read_keys(guests);
            monitor(guests);
        }
        wake_due(guests, core);
        let ready = |vm: usize, index: usize| {
            let vm = guests.vms.get(vm)?;
            let ready = vm.slots.get(index)?.activity() == Activity::Ready;
            (ready && vm.lifecycle.is_running()).then_some((vm, index))
        };
        let slice = |vm: usize| Vm::ticks(guests.vms.get(vm).map_or(0, |vm| vm.slice_us));
        match turns.pick(ready, slice) {
            Some((next, ticks)) => {
                let from = spr::timebase();
                reside(guests, &mut thread, (number, core), next, from + ticks);
                turns.used(spr::timebase() - from);
            }
            None => idle(guests, &thread, core),
        }
    }
}

fn slots<'g>(guests: &'g Guests, core: &'g Core) -> impl Iterator<Item = &'g Slot> {
    core.vcpus
        .iter()
        .filter_map(|(vm, vcpu)| guests.vms.get(*vm).and_then(|vm| vm.slots.get(*vcpu)))
}

/// Wakes vCPUs of this core whose decrementers have expired while they were off it.
fn wake_due(guests: &Guests, core: &Core) {
    let now = spr::timebase();
    for slot in slots(guests, core) {
        if slot.activity() == Activity::Waiting && slot.deadline.load(Ordering::Acquire) <= now {
            slot.wake();
        }
    }
}

/// Nothing to run: sleeps until it is called, until a vCPU is due, or until the next look around.
fn idle(guests: &Guests, thread: &GuestThread, core: &Core) {
    let waiting = slots(guests, core).filter(|slot| slot.activity() == Activity::Waiting);
    let due = waiting
        .map(|slot| slot.deadline.load(Ordering::Acquire))
        .min();
    let look = spr::timebase() + Vm::ticks(LOOK_US);
    // A vCPU may have become ready since it was looked for; then its core has been called, and does
    // not sleep.
    nested::sleep(thread, due.map_or(look, |due| due.min(look)));
    answer(guests, core);
    watch(guests, core);
}

/// Takes back what called this core, which looks at everything after this.
fn answer(guests: &Guests, core: &Core) {
    if let Some(source) = presentation::acknowledge(core.cpu.server()) {
        deliver(guests, core, source);
    }
    // Whoever finds this still set has done what this core is to see before.
    core.called.store(false, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// Passes the interrupt of a device on to the VM that owns it.
fn deliver(guests: &Guests, core: &Core, source: u32) {
    let messages = guests.hardware.map(|hardware| &hardware.messages);
    let owner = messages.and_then(|messages| messages.came(source, spr::timebase()));
    let Some(vm) = owner.and_then(|vm| guests.vms.get(vm)) else {
        return;
    };
    if let Ok(told) = vm.platform.signal(source) {
        let mut cores = guests.cores.iter();
        let here = cores.position(|other| core::ptr::eq(other, core));
        kick(guests, vm, told, here.unwrap_or(usize::MAX));
    }
}

/// Makes cores leave guests that have lost the ends of their slices, and hears devices again that
/// interrupted too often.
fn watch(guests: &Guests, this: &Core) {
    if let Some(hardware) = guests.hardware {
        hardware.messages.look(spr::timebase());
    }
    for core in &guests.cores {
        if !core::ptr::eq(core.cpu, this.cpu) {
            smp::watch(core.cpu);
        }
    }
}

/// As [`watch`], before there are VMs.
pub(crate) fn watch_others() {
    smp::watch(&cpu::BOOT_CPU);
}

/// Calls a core: it leaves its guest, or wakes, and looks.
pub(super) fn call(guests: &Guests, core: usize) {
    if let Some(core) = guests.cores.get(core)
        && !core.called.swap(true, Ordering::SeqCst)
    {
        presentation::kick(core.cpu.server());
    }
}

/// Makes vCPUs look at what is there for them. `from` is the core that asks.
pub(super) fn kick(guests: &Guests, vm: &Vm, vcpus: Servers, from: usize) {
    for index in vcpus.iter() {
        let Some(slot) = vm.slots.get(index) else {
            continue;
        };
        fence(Ordering::SeqCst);
        if slot.activity() == Activity::Off && vm.platform.is_starting(index) {
            slot.set_activity(Activity::Ready);
        }
        slot.wake();
        if slot.core != from {
            call(guests, slot.core);
        }
    }
}

/// Gives typed bytes to whom they are for, until the monitor has a command to carry out.
fn read_keys(guests: &Guests) {
    if guests.has_command.load(Ordering::Acquire) {
        return;
    }
    while let Some(typed) = console::typed() {
        match typed {
            Typed::Nothing => {}
            Typed::Guest { vm, byte } => {
                if let Some(vm) = guests.vms.get(vm)
                    && vm.lifecycle.is_running()
                {
                    kick(guests, vm, vm.receive(byte), CONSOLE_CORE);
                }
            }
            Typed::Command(line) => {
                *guests.command.lock() = Some(line);
                guests.has_command.store(true, Ordering::Release);
                return;
            }
            Typed::LeftMonitor => end_if_all_off(guests),
        }
    }
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
        guests.has_command.store(false, Ordering::Release);
        read_keys(guests);
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
        smp::park();
    }
    panic::end(Verdict::Good(reason))
}

/// A core is done with a VM. The last one concludes what has ended.
fn leave(guests: &Guests, vm: &Vm) {
    if let Some(ended) = vm.lifecycle.leave(vm.restart) {
        conclude(guests, vm, ended);
    }
}

/// A VM has ended: no vCPU of it is on a core.
fn conclude(guests: &Guests, vm: &Vm, ended: Ended) {
    console::vm_ended(vm.number);
    if let Some(devices) = &vm.devices
        && !devices.quiesce()
    {
        log::error!("vm {}: a device of its may still be at work", vm.name);
    }
    if vm::is_notable(vm.lifecycle.starts()) {
        log::info!("vm {}: {}", vm.name, ended.ending);
    }
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

/// Starts a VM that is claimed.
pub(super) fn begin(guests: &Guests, vm: &Vm, ended: Option<Ending>) {
    match vm.begin(ended) {
        Ok(()) => {
            if let Some(first) = vm.slots.first() {
                call(guests, first.core);
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
        call(guests, slot.core);
    }
}

/// The core that this thread is.
pub(super) fn this_core(guests: &Guests) -> usize {
    let this = cpu::this();
    let found = guests.cores.iter();
    let mut found = found
        .enumerate()
        .filter(|(_, core)| core::ptr::eq(core.cpu, this));
    found.next().map_or(CONSOLE_CORE, |(number, _)| number)
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
fn reside(
    guests: &Guests,
    thread: &mut GuestThread,
    (number, core): (usize, &Core),
    (vm, index): (&Vm, usize),
    until: u64,
) {
    let Some(slot) = vm.slots.get(index) else {
        return;
    };
    // It may have been turned off since it was picked, by the end of its VM.
    if vm.lifecycle.enter() && slot.activity() == Activity::Ready {
        let mut vcpu = slot.vcpu.lock();
        vm.reset(index, slot, &mut vcpu);
        slot.clock.begin(spr::timebase());
        let surroundings = Surroundings {
            guests,
            vm,
            core: number,
        };
        // A prod that comes to one that does not wait is for its next wait.
        if slot.waited.swap(false, Ordering::AcqRel) {
            vm.platform.woken(index);
        }
        vm.platform.comes(index, &surroundings);
        let mut residency = Residency {
            guests,
            core,
            vm,
            index,
            slot,
            loaded: vcpu.load(thread),
            surroundings: &surroundings,
            slice_end: until,
        };
        let departure = residency.run(core.vcpus.len() > 1);
        drop(residency);
        vm.platform.goes(index, &surroundings);
        slot.clock.end(spr::timebase());
        match departure {
            Departure::Preempted => {}
            Departure::Off => slot.set_activity(Activity::Off),
            Departure::Waits => settle(vm, index, slot, &vcpu),
        }
        drop(vcpu);
        // A vCPU that was started again while it left.
        fence(Ordering::SeqCst);
        if departure == Departure::Off && vm.platform.is_starting(index) {
            slot.set_activity(Activity::Ready);
        }
    }
    leave(guests, vm);
}

/// Lets a vCPU wait, unless something has come for it meanwhile.
fn settle(vm: &Vm, index: usize, slot: &Slot, vcpu: &Vcpu) {
    let deadline = due(vm, index, vcpu.decrementer_expires());
    slot.waited.store(true, Ordering::Release);
    slot.deadline.store(deadline, Ordering::Release);
    slot.set_activity(Activity::Waiting);
    fence(Ordering::SeqCst);
    if vm.platform.wake(index) == Wake::Due || deadline <= spr::timebase() {
        slot.wake();
    }
}

/// The time base at which a vCPU that waits goes on, whose decrementer is negative from `expires` on.
fn due(vm: &Vm, index: usize, expires: u64) -> u64 {
    let now = spr::timebase();
    if vm.platform.has_joined(index) {
        u64::MAX
    } else if expires.wrapping_sub(now).cast_signed() <= 0 {
        // However long ago.
        now
    } else {
        expires
    }
}

/// A vCPU on a core.
struct Residency<'a> {
    guests: &'a Guests,
    core: &'a Core,
    vm: &'a Vm,
    index: usize,
    slot: &'a Slot,
    loaded: Loaded<'a>,
    surroundings: &'a Surroundings<'a>,
    /// When the core looks around, and others may have it.
    slice_end: u64,
}

/// What follows an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Resume,
    Leave(Departure),
    Wait,
}

/// Why a program interrupt came, in SRR1: an instruction that does not exist.
/// [Power ISA 3.1B Book III §7.5.9]
const ILLEGAL: u64 = 1 << 19;
/// SRR1 of a machine check: a load or store, told apart by DSISR.
const BY_ACCESS: u64 = 1 << 21;
/// DSISR of that machine check: what was accessed does not answer.
const UNCORRECTABLE: u64 = 1 << 15;
/// SRR1 of a machine check: what was fetched does not answer.
const BY_FETCH: u64 = 1 << 18;

impl Residency<'_> {
    fn run(&mut self, shared: bool) -> Departure {
        if !shared {
            self.slice_end = spr::timebase() + Vm::ticks(LOOK_US);
        }
        loop {
            if !self.vm.lifecycle.is_running() {
                return Departure::Off;
            }
            let now = spr::timebase();
            if now >= self.slice_end {
                self.look();
                if shared || self.is_wanted_elsewhere() {
                    return Departure::Preempted;
                }
                self.slice_end = now + Vm::ticks(LOOK_US);
            }
            let then = match self.enter(now) {
                Ok(exit) => self.handle(exit),
                Err(refused) => self.fault(format_args!("{refused}")),
            };
            match then {
                Then::Resume => {}
                Then::Leave(departure) => return departure,
                Then::Wait if shared => return Departure::Waits,
                Then::Wait => {
                    if self.wait() {
                        return Departure::Waits;
                    }
                }
            }
        }
    }

    /// Between slices.
    fn look(&self) {
        if self.surroundings.core == CONSOLE_CORE {
            read_keys(self.guests);
        }
        watch(self.guests, self.core);
    }

    /// The monitor wants this core.
    fn is_wanted_elsewhere(&self) -> bool {
        self.surroundings.core == CONSOLE_CORE && self.guests.has_command.load(Ordering::Acquire)
    }

    /// Runs the vCPU until it leaves by itself, by the end of its slice, or because it was called.
    fn enter(&mut self, now: u64) -> Result<Exit, nested::Refused> {
        let platform = &self.vm.platform;
        let vcpu = &mut *self.loaded.vcpu;
        let order = if platform.has_little_endian_interrupts() {
            Order::Little
        } else {
            Order::Big
        };
        let location = if platform.has_alternate_location() {
            Location::Alternate
        } else {
            Location::Low
        };
        vcpu.set_interrupts(order, location);
        if platform.take_system_reset(self.index) {
            vcpu.interrupt(SYSTEM_RESET, 0);
        }
        let mut deadline = self.slice_end;
        if platform.has_interrupt(self.index) {
            if vcpu.lets_interrupts_through() {
                vcpu.interrupt(EXTERNAL, 0);
            }
            deadline = deadline.min(now + Vm::ticks(PENDING_US));
        }
        self.slot.inside.store(true, Ordering::SeqCst);
        // SAFETY: the tree maps frames that were allocated for this guest.
        let exit = unsafe { self.loaded.run(deadline) };
        self.slot.inside.store(false, Ordering::SeqCst);
        // This core alone counts.
        let exits = &self.slot.exits;
        exits.store(exits.load(Ordering::Relaxed) + 1, Ordering::Release);
        exit
    }

    fn handle(&mut self, exit: Exit) -> Then {
        match exit {
            Exit::Hcall => return self.hypercall(),
            Exit::HcallFromUser => {
                self.vm.platform.refuse(&mut self.loaded.vcpu.registers.gpr);
            }
            Exit::SliceEnd | Exit::Doorbell => {}
            Exit::Interrupt => {
                answer(self.guests, self.core);
                self.show();
            }
            Exit::Emulation | Exit::Facility => self.loaded.vcpu.interrupt(PROGRAM, ILLEGAL),
            // Nothing answers outside the guest's memory. A storage interrupt would not do: by the
            // guest's own tables all is well, and it would try again for ever.
            Exit::DataStorage { effective, .. } => {
                self.loaded.set_fault(effective, UNCORRECTABLE);
                self.loaded.vcpu.interrupt(MACHINE_CHECK, BY_ACCESS);
            }
            Exit::InstructionStorage { .. } => {
                self.loaded.vcpu.interrupt(MACHINE_CHECK, BY_FETCH);
            }
            Exit::MachineCheck | Exit::Reset | Exit::Unknown { .. } => {
                return self.fault(format_args!("{exit:x?}"));
            }
        }
        Then::Resume
    }

    fn hypercall(&mut self) -> Then {
        let registers = &mut *self.loaded.vcpu.registers;
        let msr = registers.msr;
        let platform = &self.vm.platform;
        match platform.hypercall(self.index, &mut registers.gpr, msr, self.surroundings) {
            After::Resume => Then::Resume,
            After::Cede => {
                registers.msr |= MSR_EE;
                Then::Wait
            }
            After::Join => Then::Wait,
            After::Yield => Then::Leave(Departure::Preempted),
            After::SetSprg0(value) => {
                self.loaded.vcpu.set_sprg0(value);
                Then::Resume
            }
            After::Off => Then::Leave(Departure::Off),
            After::End(End::PowerOff) => self.end(Ending::PowerOff),
            After::End(End::Reboot) => self.end(Ending::Reset),
            After::End(End::Terminated(words)) => {
                self.fault(format_args!("its operating system gave up: {words}"))
            }
        }
    }

    /// The VM cannot go on.
    fn fault(&self, why: core::fmt::Arguments<'_>) -> Then {
        let registers = &self.loaded.vcpu.registers;
        log::error!(
            "vm {}: vCPU {} at {:#x}, msr {:#x}: {why}: the VM is stopped",
            self.vm.name,
            self.index,
            registers.nip,
            registers.msr
        );
        self.end(Ending::Fault)
    }

    /// Ends the VM.
    fn end(&self, ending: Ending) -> Then {
        if self.vm.lifecycle.end(ending) {
            call_in(self.guests, self.vm, self.surroundings.core);
        }
        Then::Leave(Departure::Off)
    }

    /// Shows the registers to the monitor, if it wants to see them.
    fn show(&self) {
        if self.slot.peek.swap(false, Ordering::AcqRel) {
            *self.slot.view.lock() = Some(self.loaded.vcpu.view());
        }
    }

    /// Sleeps on the core until something is there for the vCPU. No other vCPU wants the core; true
    /// when the monitor does.
    fn wait(&mut self) -> bool {
        let platform = &self.vm.platform;
        platform.goes(self.index, self.surroundings);
        let due = due(self.vm, self.index, self.loaded.decrementer_expires());
        loop {
            if platform.wake(self.index) == Wake::Due
                || due <= spr::timebase()
                || !self.vm.lifecycle.is_running()
            {
                platform.woken(self.index);
                platform.comes(self.index, self.surroundings);
                return false;
            }
            if self.is_wanted_elsewhere() {
                return true;
            }
            let look = spr::timebase() + Vm::ticks(LOOK_US);
            self.loaded.sleep(due.min(look));
            answer(self.guests, self.core);
            self.show();
            self.look();
        }
    }
}

const SYSTEM_RESET: u64 = 0x100;
const EXTERNAL: u64 = 0x500;
const PROGRAM: u64 = 0x700;
