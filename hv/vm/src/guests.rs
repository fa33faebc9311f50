//! All VMs on all cores: who runs, who is told, what follows.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use bundle::Start;
use hal::Mutex;
use types::{Bdf, Iova, Ipa};

use crate::tenant::{Registers, Slot, Tenant};
use crate::{
    Activity, Ended, Ending, Frames, Iommu, Line, Monitor, Next, Plug, Refusal, SharedTerminal,
    Then, Turns, Typed, Walk, Wire, dependents, is_notable,
};

/// A turn's rest shorter than this is not worth an entry into a guest.
const SHORTEST_STAY_US: u64 = 50;

/// The core that has the console.
pub const CONSOLE_CORE: usize = 0;

/// A core that runs vCPUs.
pub trait Core {
    /// The vCPUs that live on it: VM and vCPU numbers.
    fn vcpus(&self) -> &[(usize, usize)];

    /// Interrupts the core: it leaves its guest, or wakes, and looks.
    fn call(&self);
}

/// Why a vCPU leaves its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Its time is over.
    Preempted,
    /// It waits.
    Waits,
    /// It is off, or its VM ends.
    Off,
}

/// A vCPU on its way to a core.
pub struct Arrival<'a, A: Arch> {
    /// The core's number.
    pub core: usize,
    /// Its VM.
    pub vm: &'a A::Vm,
    /// Its number.
    pub index: usize,
    /// What others know of it.
    pub slot: &'a Slot<A::Vcpu, A::Beside>,
    /// Others live on the core, too.
    pub shared: bool,
    /// When they have it, in ticks.
    pub until: u64,
}

/// What the loop over VMs asks of an architecture: a clock, a terminal, and what is done to a machine. No
/// policy.
pub trait Arch: Sized {
    /// A vCPU.
    type Vcpu;
    /// What is kept beside one.
    type Beside;
    /// A VM, which is more than policy sees.
    type Vm: Deref<Target = Tenant<Self::Vcpu, Self::Beside>>;
    /// A core.
    type Core: Core;
    /// What a core has that runs vCPUs.
    type Thread;
    /// What carries the terminal's bytes.
    type Wire: Wire + 'static;
    /// Why a VM does not start.
    type Error: fmt::Display;

    /// The time.
    fn ticks() -> u64;
    /// Ticks in a second.
    fn frequency() -> u64;
    /// The core that this is.
    fn this_core(guests: &Guests<Self>) -> usize;

    /// The terminal.
    fn terminal() -> &'static SharedTerminal<Self::Wire>;
    /// Where a VM's console is.
    fn line(_vm: &Self::Vm) -> Line {
        Line::Shared
    }

    /// The run is over, and all is well.
    fn power_off(reason: &str) -> !;
    /// The run is over, because nothing can be done.
    fn give_up(reason: &str) -> !;
    /// This core has nothing more to do: the run is over.
    fn park() -> !;

    /// Loads a VM's guest: memory zeroed, platform and devices at reset. Nothing of it runs.
    ///
    /// # Errors
    /// Why not; then the VM has nothing of the machine's.
    fn make_ready(vm: &Self::Vm) -> Result<(), Self::Error>;
    /// When to look again at a VM that waits for its devices before it can be made ready; `None` when it
    /// does not.
    fn waits_for_devices(_vm: &Self::Vm) -> Option<u64> {
        None
    }
    /// A VM has ended: its devices reach nothing of it any more.
    fn give_back_devices(vm: &Self::Vm);
    /// Devices of the machine's are the VM's: from before it is made ready until they are back, which may be after
    /// it has ended.
    fn holds_devices(_vm: &Self::Vm) -> bool {
        false
    }
    /// A byte was typed for a VM; `from` is the core that has a vCPU on it, if one has.
    fn receive(guests: &Guests<Self>, vm: &Self::Vm, byte: u8, from: usize);

    /// Between vCPUs.
    fn look_around(guests: &Guests<Self>, core: usize);
    /// What the core has spent on a VM's account since it was asked last, in ticks: the VM, and how much. Asked until
    /// there is no more.
    fn spent(_guests: &Guests<Self>, _core: usize) -> Option<(usize, u64)> {
        None
    }
    /// When the core is to look around at the latest, for its architecture's reasons.
    fn next_look(_guests: &Guests<Self>, _core: usize) -> Option<u64> {
        None
    }
    /// Sleeps until the core is called, something happens on it, or it is `due` (ticks).
    fn idle(guests: &Guests<Self>, core: usize, thread: &mut Self::Thread, due: Option<u64>);
    /// Runs a vCPU on this core until it leaves.
    fn stay(
        guests: &Guests<Self>,
        thread: &mut Self::Thread,
        arrival: &Arrival<'_, Self>,
        vcpu: &mut Self::Vcpu,
    ) -> Departure;
    /// When a vCPU that waits goes on by itself; `u64::MAX` for never.
    fn due(vm: &Self::Vm, index: usize, vcpu: &Self::Vcpu) -> u64;
    /// The vCPU is about to wait: what has come for it from now on wakes it.
    fn waits(_slot: &Slot<Self::Vcpu, Self::Beside>) {}
    /// Something has come for a vCPU that waits.
    fn has_come(vm: &Self::Vm, index: usize, vcpu: &Self::Vcpu) -> bool;
    /// A vCPU that has been turned on while it left its core.
    fn starts_again(vm: &Self::Vm, index: usize, slot: &Slot<Self::Vcpu, Self::Beside>) -> bool;

    /// The registers of a vCPU that is on no core.
    fn view(vcpu: &Self::Vcpu) -> Registers;
    /// Where stage 2 takes an address.
    fn walk(vm: &Self::Vm, address: Ipa) -> Walk;
    /// The devices of a VM, a line each.
    fn devices(vm: &Self::Vm) -> Vec<String>;
    /// Stops the devices of a VM as an error would: how many host bridges; `None` where there are no such
    /// errors.
    fn freeze(_guests: &Guests<Self>, _vm: &Self::Vm) -> Option<usize> {
        None
    }
    /// Takes a host bridge away from a running VM, or gives it back, and tells its guest; `None` where they stay.
    fn plug(
        _guests: &Guests<Self>,
        _vm: &Self::Vm,
        _bridge: u64,
        _plug: Plug,
    ) -> Option<Result<(), Refusal>> {
        None
    }
    /// Where DMA of a device goes; `None` where streams are not known by device.
    fn stream(_vm: &Self::Vm, _device: Bdf, _address: Iova) -> Option<Vec<String>> {
        None
    }
    /// The IOMMUs.
    fn iommus(&self) -> Vec<Iommu>;
    /// Memory of the hypervisor's.
    fn frames(&self) -> Frames;
}

/// All VMs and cores.
pub struct Guests<A: Arch> {
    /// The machine.
    pub machine: A,
    /// The VMs, in the order of the manifest.
    pub vms: Vec<A::Vm>,
    /// The cores.
    pub cores: Vec<A::Core>,
    /// VMs that start as soon as their devices are back from their resets.
    starting: Mutex<Vec<(usize, Option<Ending>)>>,
    /// There are such VMs.
    has_starting: AtomicBool,
    pub(crate) monitor: Mutex<Monitor>,
    /// A line for the monitor, which waits until the console's core has no vCPU on it.
    command: Mutex<Option<String>>,
    has_command: AtomicBool,
    /// Cores that are just leaving a VM: it may end with that, and others start after it.
    leaving: AtomicUsize,
    /// The end has begun.
    over: AtomicBool,
}

impl<A: Arch> Guests<A> {
    /// The VMs, of which those run that start at boot. Gives up when none can be run; when none is to start at boot, the
    /// monitor has the keyboard.
    pub fn new(machine: A, vms: Vec<A::Vm>, cores: Vec<A::Core>) -> Self {
        for vm in &vms {
            A::terminal().add(&vm.name, A::line(vm));
            if vm.start == Start::Boot
                && vm.lifecycle.claim()
                && let Err(error) = make::<A>(vm, None)
            {
                log::error!("vm {}: {error}", vm.name);
            }
        }
        if !vms.iter().any(|vm| vm.lifecycle.is_running()) {
            let wait = |vm: &A::Vm| vm.start != Start::Boot;
            if vms.is_empty() || !vms.iter().all(wait) {
                A::give_up("no VM of the bundle can be run");
            }
            A::terminal().open_monitor();
        }
        Self {
            machine,
            vms,
            cores,
            starting: Mutex::new(Vec::new()),
            has_starting: AtomicBool::new(false),
            monitor: Mutex::new(Monitor::new()),
            command: Mutex::new(None),
            has_command: AtomicBool::new(false),
            leaving: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Runs vCPUs on this core for ever.
    pub fn serve(&self, number: usize, core: &A::Core, mut thread: A::Thread) -> ! {
        let mut turns = Turns::new(core.vcpus(), ticks_of_us::<A>(SHORTEST_STAY_US));
        loop {
            self.turn(number, core, &mut turns, &mut thread);
        }
    }

    /// One vCPU's stay, or a sleep.
    fn turn(&self, number: usize, core: &A::Core, turns: &mut Turns, thread: &mut A::Thread) {
        A::look_around(self, number);
        self.charge(number, turns);
        if number == CONSOLE_CORE {
            self.carry_out();
        }
        let now = A::ticks();
        for slot in self.slots(core).filter(|slot| slot.is_due(now)) {
            slot.wake();
        }
        if self.has_starting.load(Ordering::Acquire) {
            self.poll_starts(Some(number));
        }
        let ready = |vm: usize, index: usize| {
            let vm = self.vms.get(vm)?;
            vm.is_ready(index).then_some((vm, index))
        };
        let slice = |vm: usize| {
            let us = self.vms.get(vm).map_or(0, |vm| vm.slice_us);
            ticks_of_us::<A>(us)
        };
        match turns.pick(ready, slice) {
            Some(((vm, index), ticks)) => {
                let from = A::ticks();
                if let Some(slot) = vm.slots.get(index) {
                    let arrival = Arrival {
                        core: number,
                        vm,
                        index,
                        slot,
                        shared: core.vcpus().len() > 1,
                        until: from.saturating_add(ticks),
                    };
                    self.reside(&arrival, thread);
                }
                let others = self.charge(number, turns);
                let ran = A::ticks().saturating_sub(from);
                turns.used(ran.saturating_sub(others));
            }
            None => {
                A::idle(self, number, thread, self.next_due(number, core));
                // Nobody wanted the time.
                while A::spent(self, number).is_some() {}
            }
        }
    }

    /// Has VMs owe what this core has spent on their accounts; returns how many ticks.
    fn charge(&self, number: usize, turns: &mut Turns) -> u64 {
        let mut sum: u64 = 0;
        while let Some((vm, ticks)) = A::spent(self, number) {
            turns.owes(vm, ticks);
            sum = sum.saturating_add(ticks);
        }
        sum
    }

    fn slots<'g>(
        &'g self,
        core: &'g A::Core,
    ) -> impl Iterator<Item = &'g Slot<A::Vcpu, A::Beside>> {
        core.vcpus()
            .iter()
            .filter_map(|(vm, vcpu)| self.vms.get(*vm).and_then(|vm| vm.slots.get(*vcpu)))
    }

    /// When something is due on a core that has nothing to run.
    fn next_due(&self, number: usize, core: &A::Core) -> Option<u64> {
        let waiting = self.slots(core);
        let waiting = waiting.filter(|slot| slot.activity() == Activity::Waiting);
        waiting
            .map(|slot| slot.deadline.load(Ordering::Acquire))
            .chain(self.next_start(number))
            .chain(A::next_look(self, number))
            .min()
            .filter(|due| *due != u64::MAX)
    }

    /// Runs a vCPU on this core until it leaves.
    fn reside(&self, arrival: &Arrival<'_, A>, thread: &mut A::Thread) {
        let Arrival {
            vm, index, slot, ..
        } = *arrival;
        // It may have been turned off since it was picked, by the end of its VM.
        if vm.lifecycle.enter() && slot.activity() == Activity::Ready {
            let mut vcpu = slot.vcpu.lock();
            slot.clock.begin(A::ticks());
            let departure = A::stay(self, thread, arrival, &mut vcpu);
            slot.clock.end(A::ticks());
            match departure {
                Departure::Preempted => {}
                Departure::Off => slot.set_activity(Activity::Off),
                Departure::Waits => settle::<A>(vm, index, slot, &vcpu),
            }
            drop(vcpu);
            fence(Ordering::SeqCst);
            if departure == Departure::Off && A::starts_again(vm, index, slot) {
                slot.set_activity(Activity::Ready);
            }
        }
        self.leave(vm);
    }

    /// Makes vCPUs look at what is there for them. `from` is the core that asks.
    pub fn kick(&self, vm: &A::Vm, vcpus: impl IntoIterator<Item = usize>, from: usize) {
        for index in vcpus {
            let Some(slot) = vm.slots.get(index) else {
                continue;
            };
            fence(Ordering::SeqCst);
            slot.wake();
            if slot.core != from {
                self.call(slot.core);
            }
        }
    }

    /// A vCPU has been turned on, and what it starts with is where it finds it. `from` is the core that
    /// asks.
    pub fn turn_on(&self, slot: &Slot<A::Vcpu, A::Beside>, from: usize) {
        slot.set_activity(Activity::Ready);
        if slot.core != from {
            self.call(slot.core);
        }
    }

    /// Interrupts a core.
    pub fn call(&self, core: usize) {
        if let Some(core) = self.cores.get(core) {
            core.call();
        }
    }

    /// Makes all vCPUs of a VM leave their cores, other than the core `from`.
    fn call_in(&self, vm: &A::Vm, from: usize) {
        for slot in vm.slots.iter().filter(|slot| slot.core != from) {
            self.call(slot.core);
        }
    }

    /// Ends a running VM from the core `from`, which has a vCPU of it.
    pub fn end(&self, vm: &A::Vm, ending: Ending, from: usize) {
        if vm.lifecycle.end(ending) {
            self.call_in(vm, from);
        }
    }

    /// Ends a running VM from outside; `from` is the core that asks and has no vCPU on it. False when it
    /// is not running.
    pub(crate) fn end_from_outside(&self, vm: &A::Vm, ending: Ending, from: usize) -> bool {
        let _ = vm.lifecycle.enter();
        let ends = vm.lifecycle.end(ending);
        if ends {
            self.call_in(vm, from);
        }
        self.leave(vm);
        ends
    }

    /// A core is done with a VM for now. The last to leave one that ends concludes it.
    fn leave(&self, vm: &A::Vm) {
        self.leaving.fetch_add(1, Ordering::AcqRel);
        if let Some(ended) = vm.lifecycle.leave(vm.restart) {
            self.conclude(vm, ended);
        }
        // Whoever found a core leaving has left it to that core to see whether all are off.
        if self.leaving.fetch_sub(1, Ordering::AcqRel) == 1 && !vm.lifecycle.is_running() {
            self.end_if_all_off();
        }
    }

    /// A VM has ended: no vCPU of it is on a core.
    fn conclude(&self, vm: &A::Vm, ended: Ended) {
        A::terminal().ended(vm.number);
        if is_notable(vm.lifecycle.starts()) {
            log::info!("vm {}: {}", vm.name, ended.ending);
        }
        A::give_back_devices(vm);
        match ended.next {
            Next::Start => self.begin(vm, Some(ended.ending)),
            Next::Stay => {
                let starts = self.vms.iter().map(|vm| &vm.start);
                for next in dependents(starts, &vm.name) {
                    if let Some(next) = self.vms.get(next)
                        && next.lifecycle.claim()
                    {
                        log::info!("vm {}: starts after {}", next.name, vm.name);
                        self.begin(next, None);
                    }
                }
            }
        }
    }

    /// Starts a VM that is claimed, or has it start when its devices are back from their resets.
    pub(crate) fn begin(&self, vm: &A::Vm, ended: Option<Ending>) {
        if A::waits_for_devices(vm).is_none() {
            self.begin_now(vm, ended);
            return;
        }
        self.starting.lock().push((vm.number, ended));
        self.has_starting.store(true, Ordering::Release);
        if let Some(first) = vm.slots.first() {
            self.call(first.core);
        }
    }

    fn begin_now(&self, vm: &A::Vm, ended: Option<Ending>) {
        match make::<A>(vm, ended) {
            Ok(()) => {
                if let Some(first) = vm.slots.first() {
                    self.call(first.core);
                }
            }
            Err(error) => log::error!("vm {}: does not start: {error}", vm.name),
        }
    }

    /// Starts VMs whose devices are back from their resets: those whose first vCPU lives on `core`, or all.
    pub(crate) fn poll_starts(&self, core: Option<usize>) {
        let lives_here = |vm: &A::Vm| {
            let first = vm.slots.first().map(|slot| slot.core);
            core.is_none() || first == core
        };
        loop {
            let ready = {
                let mut starting = self.starting.lock();
                let ready = starting.iter().position(|(vm, _)| {
                    let vm = self.vms.get(*vm);
                    vm.is_none_or(|vm| lives_here(vm) && A::waits_for_devices(vm).is_none())
                });
                let ready = ready.map(|at| starting.swap_remove(at));
                self.has_starting
                    .store(!starting.is_empty(), Ordering::Release);
                ready
            };
            let Some((vm, ended)) = ready else {
                return;
            };
            if let Some(vm) = self.vms.get(vm) {
                self.begin_now(vm, ended);
            }
        }
    }

    /// When a core is to look at the devices of a VM that waits for them.
    fn next_start(&self, core: usize) -> Option<u64> {
        if !self.has_starting.load(Ordering::Acquire) {
            return None;
        }
        let starting = self.starting.lock();
        let here = starting
            .iter()
            .filter_map(|(vm, _)| self.vms.get(*vm))
            .filter(|vm| vm.slots.first().is_some_and(|slot| slot.core == core));
        here.map(|vm| A::waits_for_devices(vm).unwrap_or(0)).min()
    }

    /// Gives typed bytes to whom they are for; `from` is the core that has a vCPU on it, if one has.
    /// True when the monitor has a command to carry out before more is read.
    pub fn read_keys(&self, from: usize) -> bool {
        if self.has_command() {
            return true;
        }
        while let Some(typed) = A::terminal().typed() {
            match typed {
                Typed::Nothing => {}
                Typed::Guest { vm, byte } => {
                    if let Some(vm) = self.vms.get(vm)
                        && vm.lifecycle.is_running()
                    {
                        A::receive(self, vm, byte, from);
                    }
                }
                Typed::Command(line) => {
                    *self.command.lock() = Some(line);
                    self.has_command.store(true, Ordering::Release);
                    return true;
                }
                Typed::LeftMonitor => self.end_if_all_off(),
            }
        }
        false
    }

    /// The monitor waits for the console's core.
    pub fn has_command(&self) -> bool {
        self.has_command.load(Ordering::Acquire)
    }

    /// Carries out what was asked of the monitor. No vCPU is on this core.
    fn carry_out(&self) {
        loop {
            let Some(line) = self.command.lock().take() else {
                return;
            };
            let reply = self.monitor.lock().execute(&line, &mut &*self);
            A::terminal().reply(&reply);
            match reply.then {
                Then::Quit => self.power_off("the monitor was told to quit"),
                Then::Leave | Then::Focus(_) => self.end_if_all_off(),
                Then::Stay => {}
            }
            self.has_command.store(false, Ordering::Release);
            self.read_keys(usize::MAX);
        }
    }

    /// The machine is off when no VM runs and nobody is at the monitor to start one.
    fn end_if_all_off(&self) {
        let off = |vm: &A::Vm| vm.lifecycle.is_off();
        let nobody_leaves = self.leaving.load(Ordering::Acquire) == 0;
        if nobody_leaves && self.vms.iter().all(off) && !A::terminal().in_monitor() {
            self.power_off("all VMs are off");
        }
    }

    /// The end of the run, once.
    fn power_off(&self, reason: &str) -> ! {
        if self.over.swap(true, Ordering::AcqRel) {
            A::park();
        }
        A::power_off(reason)
    }

    /// A VM by its number.
    pub(crate) fn vm(&self, vm: usize) -> Result<&A::Vm, Refusal> {
        self.vms.get(vm).ok_or(Refusal::NotRunning)
    }
}

/// Makes a VM ready, which is claimed for that.
fn make<A: Arch>(vm: &A::Vm, ended: Option<Ending>) -> Result<(), A::Error> {
    let begun = A::ticks();
    match A::make_ready(vm) {
        Ok(()) => {
            vm.runs(ended, begun, A::ticks());
            Ok(())
        }
        Err(error) => {
            vm.lifecycle.failed();
            Err(error)
        }
    }
}

/// Lets a vCPU wait, unless something has come for it meanwhile.
fn settle<A: Arch>(vm: &A::Vm, index: usize, slot: &Slot<A::Vcpu, A::Beside>, vcpu: &A::Vcpu) {
    let due = A::due(vm, index, vcpu);
    A::waits(slot);
    slot.deadline.store(due, Ordering::Release);
    slot.set_activity(Activity::Waiting);
    fence(Ordering::SeqCst);
    if A::has_come(vm, index, vcpu) || due <= A::ticks() {
        slot.wake();
    }
}

/// Ticks of so many microseconds.
pub(crate) fn ticks_of_us<A: Arch>(us: u64) -> u64 {
    let ticks = u128::from(us).wrapping_mul(u128::from(A::frequency())) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
