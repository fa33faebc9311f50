//! Which vCPU a core runs, and for how long.

mod answer;
mod quick;
mod wait;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use boot::Frames;
use papr::{After, End, Servers};
use vm::{Arrival, CONSOLE_CORE, Departure, Ending, ExitCause};

use self::answer::answer;
use self::quick::Left;
use self::wait::Waited;
use super::control::Platform;
use super::devices::Access;
use super::environment::Surroundings;
use super::vm::{Slot, Vm};
use crate::cpu::{self, Cpu};
use crate::hardware::Hardware;
use crate::memory::Ram;
use crate::nested::{self, Exit, GuestThread, Loaded, MACHINE_CHECK, Vcpu};
use crate::presentation;
use crate::{console, smp, spr};

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

impl vm::Core for Core {
    fn vcpus(&self) -> &[(usize, usize)] {
        &self.vcpus
    }

    fn call(&self) {
        if !self.called.swap(true, Ordering::SeqCst) {
            presentation::kick(self.cpu);
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
pub(super) type Guests = vm::Guests<Platform>;

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
    let machine = Platform {
        hardware,
        windows,
        frames,
    };
    GUESTS.call_once(|| Guests::new(machine, vms, cores));
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
    if number == CONSOLE_CORE {
        // What was typed before that made an interrupt.
        guests.read_keys(CONSOLE_CORE);
    }
    // SAFETY: this thread runs guests here only, from now on.
    let thread = unsafe { GuestThread::claim(smp::watched()) };
    guests.serve(number, core, thread)
}

/// Between vCPUs.
pub(super) fn look_around(guests: &Guests, core: usize) {
    assert!(cpu::this().guard_is_whole(), "the stack has overflowed");
    if core == CONSOLE_CORE && !console::interrupts() {
        guests.read_keys(CONSOLE_CORE);
    }
}

/// Nothing to run: sleeps until it is called, until a vCPU is due, or until the next look around.
pub(super) fn idle(guests: &Guests, core: &Core, thread: &GuestThread, due: Option<u64>) {
    let look = spr::timebase() + Vm::ticks(LOOK_US);
    // A vCPU may have become ready since it was looked for; then its core has been called, and does
    // not sleep.
    nested::sleep(thread, due.map_or(look, |due| due.min(look)));
    let _ = answer(guests, core, None);
    watch(guests, core);
}

/// Makes cores leave guests that have lost the ends of their slices, and hears devices again that
/// interrupted too often.
fn watch(guests: &Guests, this: &Core) {
    let now = spr::timebase();
    console::look(now);
    if let Some(hardware) = guests.machine.hardware {
        hardware.messages.look(now);
        bring_back(guests, this);
    }
    for core in &guests.cores {
        if !core::ptr::eq(core.cpu, this.cpu) {
            smp::watch(core.cpu);
        }
    }
}

/// Tells guests of host bridges that are back.
fn bring_back(guests: &Guests, this: &Core) {
    for vm in &guests.vms {
        let Some(devices) = vm.devices.as_ref() else {
            continue;
        };
        let mut cores = guests.cores.iter();
        let core = cores.position(|core| core::ptr::eq(core, this));
        let core = core.unwrap_or(usize::MAX);
        let surroundings = Surroundings { guests, vm, core };
        let leave = || surroundings.leave();
        if let Some(connector) = devices.look(surroundings.view(&leave)) {
            let action = papr::Action::Add;
            let event = papr::HotPlug { connector, action };
            kick(guests, vm, vm.platform.announce(event), core);
        }
    }
}

/// As [`watch`], before there are VMs.
pub(crate) fn watch_others() {
    smp::watch(&cpu::BOOT_CPU);
}

/// Makes vCPUs look at what is there for them. `from` is the core that asks.
pub(super) fn kick(guests: &Guests, vm: &Vm, vcpus: Servers, from: usize) {
    fence(Ordering::SeqCst);
    for index in vcpus.iter() {
        if let Some(slot) = vm.slots.get(index)
            && slot.activity() == vm::Activity::Off
            && vm.platform.is_starting(index)
        {
            slot.set_activity(vm::Activity::Ready);
        }
    }
    guests.kick(vm, vcpus.iter(), from);
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

/// Runs a vCPU on this core until it leaves.
#[inline(never)]
#[optimize(speed)]
pub(super) fn stay(
    guests: &Guests,
    thread: &mut GuestThread,
    arrival: &Arrival<'_, Platform>,
    vcpu: &mut Vcpu,
) -> Departure {
    let Arrival {
        core: number,
        vm,
        index,
        slot,
        shared,
        until,
    } = *arrival;
    let Some(core) = guests.cores.get(number) else {
        return Departure::Off;
    };
    vm.reset(index, slot, vcpu);
    let surroundings = Surroundings {
        guests,
        vm,
        core: number,
    };
    // A prod that comes to one that does not wait is for its next wait.
    if slot.beside.waited.swap(false, Ordering::AcqRel) {
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
        shared,
        slice_end: until,
        pending: Vm::ticks(PENDING_US),
    };
    let departure = residency.run();
    drop(residency);
    vm.platform.goes(index, &surroundings);
    departure
}

/// The time base at which a vCPU that waits goes on, whose decrementer is negative from `expires` on.
pub(super) fn due(vm: &Vm, index: usize, expires: u64) -> u64 {
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
    /// Others want the core, too.
    shared: bool,
    /// When the core looks around, and others may have it.
    slice_end: u64,
    /// [`PENDING_US`] in ticks.
    pending: u64,
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

/// What a hypercall is to the monitor, by a quarter of its number. [LoPAPR §14.5]
const CALLS: [ExitCause; 256] = {
    let mut calls = [ExitCause::Call; 256];
    // H_EOI, H_CPPR, H_IPI, H_IPOLL, H_XIRR, H_XIRR_X.
    let mut at = 0x64 >> 2;
    while at <= 0x74 >> 2 {
        calls[at] = ExitCause::Presentation;
        at += 1;
    }
    calls[0x2fc >> 2] = ExitCause::Presentation;
    // H_GET_TCE, H_PUT_TCE, H_STUFF_TCE, H_PUT_TCE_INDIRECT.
    calls[0x1c >> 2] = ExitCause::Translation;
    calls[0x20 >> 2] = ExitCause::Translation;
    calls[0x138 >> 2] = ExitCause::Translation;
    calls[0x13c >> 2] = ExitCause::Translation;
    // H_CEDE.
    calls[0xe0 >> 2] = ExitCause::Wait;
    calls
};

fn cause_of_call(number: u64) -> ExitCause {
    let at = usize::try_from(number >> 2).unwrap_or(usize::MAX);
    CALLS.get(at).copied().unwrap_or(ExitCause::Call)
}

/// What an exit is to the monitor.
fn cause(exit: Exit) -> ExitCause {
    match exit {
        Exit::Hcall | Exit::HcallFromUser => ExitCause::Call,
        Exit::SliceEnd => ExitCause::Turn,
        Exit::Interrupt => ExitCause::Kick,
        Exit::Doorbell => ExitCause::OtherInterrupt,
        Exit::Emulation
        | Exit::Facility
        | Exit::DataStorage { .. }
        | Exit::InstructionStorage { .. }
        | Exit::MachineCheck
        | Exit::Reset
        | Exit::Unknown { .. } => ExitCause::Abort,
    }
}

impl Residency<'_> {
    #[optimize(speed)]
    fn run(&mut self) -> Departure {
        if !self.shared {
            self.slice_end = spr::timebase() + Vm::ticks(LOOK_US);
        }
        loop {
            if !self.vm.lifecycle.is_running() {
                return Departure::Off;
            }
            let now = spr::timebase();
            if now >= self.slice_end {
                self.look();
                if self.shared || self.is_wanted_elsewhere() {
                    return Departure::Preempted;
                }
                self.slice_end = now + Vm::ticks(LOOK_US);
            }
            let then = match self.enter(now) {
                Ok(Left::Call) => self.call(),
                Ok(Left::For(exit)) => self.handle(exit),
                Ok(Left::Done) => Then::Resume,
                Ok(Left::Waiting) => Then::Leave(Departure::Waits),
                Err(refused) => self.fault(format_args!("{refused}")),
            };
            match then {
                Then::Resume => {}
                Then::Leave(departure) => return departure,
                Then::Wait if self.shared => return Departure::Waits,
                Then::Wait => {
                    if self.wait() == Waited::Still {
                        return Departure::Waits;
                    }
                }
            }
        }
    }

    /// Between slices.
    fn look(&self) {
        if self.surroundings.core == CONSOLE_CORE && !console::interrupts() {
            self.guests.read_keys(CONSOLE_CORE);
        }
        watch(self.guests, self.core);
    }

    /// The monitor wants this core.
    fn is_wanted_elsewhere(&self) -> bool {
        self.surroundings.core == CONSOLE_CORE && self.guests.has_command()
    }

    #[optimize(speed)]
    fn call(&mut self) -> Then {
        let [_, _, _, number, ..] = self.loaded.vcpu.registers.gpr;
        self.slot.causes.count(cause_of_call(number));
        self.hypercall()
    }

    #[optimize(speed)]
    fn handle(&mut self, exit: Exit) -> Then {
        if exit == Exit::Hcall {
            return self.call();
        }
        self.slot.causes.count(cause(exit));
        match exit {
            Exit::HcallFromUser => {
                self.vm.platform.refuse(&mut self.loaded.vcpu.registers.gpr);
            }
            // A hypercall has been served, an interrupt answered.
            Exit::Hcall | Exit::SliceEnd | Exit::Doorbell | Exit::Interrupt => {}
            Exit::Emulation | Exit::Facility => self.loaded.vcpu.interrupt(PROGRAM, ILLEGAL),
            // Nothing answers outside the guest's memory. A storage interrupt would not do: by the
            // guest's own tables all is well, and it would try again for ever.
            Exit::DataStorage {
                effective,
                real,
                status,
            } => {
                match self.access(real, status & STORE != 0) {
                    Some(Access::Again) => return Then::Resume,
                    Some(Access::Lost) => {
                        let nip = &mut self.loaded.vcpu.registers.nip;
                        *nip = nip.wrapping_add(INSTRUCTION);
                        return Then::Resume;
                    }
                    None => {}
                }
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

    /// Whether an access that led nowhere was one of a device's registers, and what becomes of it.
    fn access(&self, real: u64, is_store: bool) -> Option<Access> {
        let devices = self.vm.devices.as_ref()?;
        let leave = || self.surroundings.leave();
        devices.access(real, is_store, self.surroundings.view(&leave))
    }

    #[optimize(speed)]
    fn hypercall(&mut self) -> Then {
        let registers = &mut *self.loaded.vcpu.registers;
        let msr = registers.msr;
        let platform = &self.vm.platform;
        match platform.hypercall(self.index, &mut registers.gpr, msr, self.surroundings) {
            After::Resume => Then::Resume,
            After::Unmask => {
                self.loaded.vcpu.let_interrupts_through();
                Then::Resume
            }
            After::Cede => {
                self.loaded.vcpu.let_interrupts_through();
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
        self.guests.end(self.vm, ending, self.surroundings.core);
        Then::Leave(Departure::Off)
    }

    /// Shows the registers to the monitor, if it wants to see them.
    fn show(&self) {
        self.slot.show(|| self.loaded.vcpu.view());
    }
}

/// HDSISR: it was a store.
const STORE: u64 = 1 << 25;
/// Bytes of a store to registers. (One with a prefix has more; Linux has none for registers.)
const INSTRUCTION: u64 = 4;
const PROGRAM: u64 = 0x700;
