//! The loop over VMs on a machine of the test's own, whose cores take their turns one after the other.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Deref;
use core::sync::atomic::Ordering;

use bundle::{Restart, Start, VmConfig};
use types::{Bdf, Iova, Ipa};

use super::{Arch, Arrival, Core, Departure, Guests};
use crate::{
    Activity, Control, Ending, Frames, Iommu, Refusal, Registers, SharedTerminal, Slot, State,
    Tenant, Turns, Walk, Wire,
};

std::thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1) };
    /// Ticks from one look at the clock to the next.
    static STEP: Cell<u64> = const { Cell::new(1) };
    static TERMINAL: &'static SharedTerminal<Paper> =
        std::boxed::Box::leak(std::boxed::Box::new(SharedTerminal::new(Paper::default())));
    static CALLS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// What each turn spends on a VM's account.
    static SPENT: Cell<Option<(usize, u64)>> = const { Cell::new(None) };
    /// What happens on another core while a VM gives its devices back.
    static MEANWHILE: RefCell<Option<std::boxed::Box<dyn Fn()>>> = const { RefCell::new(None) };
}

/// The terminal's wire: what is typed, and what was printed.
#[derive(Default)]
struct Paper {
    typed: VecDeque<u8>,
    printed: String,
}

impl Wire for Paper {
    fn write(&mut self, bytes: &[u8]) {
        self.printed.push_str(&String::from_utf8_lossy(bytes));
    }

    fn read(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }

    fn is_at_start(&self) -> bool {
        self.printed.ends_with('\n')
    }
}

fn log(line: String) {
    LOG.with_borrow_mut(|log| log.push(line));
}

fn taken() -> Vec<String> {
    LOG.take()
}

/// What a vCPU does when it is on its core next.
type Script = VecDeque<Departure>;

struct Vm {
    tenant: Tenant<Script, ()>,
    /// Starts that are refused yet.
    refusals: Cell<usize>,
    /// When its devices are back.
    devices: Cell<Option<u64>>,
    /// Something has come for a vCPU that is about to wait.
    come: Cell<bool>,
}

impl Deref for Vm {
    type Target = Tenant<Script, ()>;

    fn deref(&self) -> &Self::Target {
        &self.tenant
    }
}

struct Place {
    number: usize,
    vcpus: Vec<(usize, usize)>,
}

impl Core for Place {
    fn vcpus(&self) -> &[(usize, usize)] {
        &self.vcpus
    }

    fn call(&self) {
        CALLS.with_borrow_mut(|calls| calls.push(self.number));
    }
}

struct Machine;

impl Arch for Machine {
    type Vcpu = Script;
    type Beside = ();
    type Vm = Vm;
    type Core = Place;
    type Thread = ();
    type Wire = Paper;
    type Error = &'static str;

    fn ticks() -> u64 {
        NOW.with(|now| {
            now.set(now.get() + STEP.get());
            now.get()
        })
    }

    fn frequency() -> u64 {
        1_000_000
    }

    fn this_core(_: &Guests<Self>) -> usize {
        0
    }

    fn terminal() -> &'static SharedTerminal<Paper> {
        TERMINAL.with(|terminal| *terminal)
    }

    fn power_off(reason: &str) -> ! {
        panic!("off: {reason}")
    }

    fn give_up(reason: &str) -> ! {
        panic!("gives up: {reason}")
    }

    fn park() -> ! {
        panic!("parked")
    }

    fn make_ready(vm: &Vm) -> Result<(), &'static str> {
        if vm.refusals.get() > 0 {
            vm.refusals.set(vm.refusals.get() - 1);
            return Err("refused");
        }
        log(alloc::format!(
            "{} made of {} memory",
            vm.name,
            if vm.takes_fresh_memory() {
                "fresh"
            } else {
                "used"
            }
        ));
        Ok(())
    }

    fn waits_for_devices(vm: &Vm) -> Option<u64> {
        vm.devices.get().filter(|back| *back > NOW.get())
    }

    fn give_back_devices(vm: &Vm) {
        log(alloc::format!("devices of {}", vm.name));
        if let Some(meanwhile) = MEANWHILE.take() {
            meanwhile();
        }
    }

    fn receive(guests: &Guests<Self>, vm: &Vm, byte: u8, from: usize) {
        log(alloc::format!("{} gets {byte}", vm.name));
        guests.kick(vm, [0], from);
    }

    fn look_around(guests: &Guests<Self>, core: usize) {
        if core == super::CONSOLE_CORE {
            guests.read_keys(core);
        }
    }

    fn spent(_: &Guests<Self>, _: usize) -> Option<(usize, u64)> {
        SPENT.take()
    }

    fn idle(_: &Guests<Self>, core: usize, (): &mut (), due: Option<u64>) {
        log(match due {
            Some(_) => alloc::format!("core {core} sleeps a while"),
            None => alloc::format!("core {core} sleeps"),
        });
        if let Some(due) = due {
            NOW.set(due.max(NOW.get()));
        }
    }

    fn stay(
        guests: &Guests<Self>,
        (): &mut (),
        arrival: &Arrival<'_, Self>,
        vcpu: &mut Script,
    ) -> Departure {
        arrival.slot.count_exit();
        arrival.slot.show(|| vec![("pc", 1)]);
        NOW.set(NOW.get() + 1000);
        match vcpu.pop_front() {
            None => Departure::Preempted,
            Some(Departure::Off) => {
                guests.end(arrival.vm, Ending::PowerOff, arrival.core);
                Departure::Off
            }
            Some(other) => other,
        }
    }

    fn due(_: &Vm, _: usize, _: &Script) -> u64 {
        NOW.get() + 500
    }

    fn has_come(vm: &Vm, _: usize, _: &Script) -> bool {
        vm.come.replace(false)
    }

    fn starts_again(_: &Vm, _: usize, _: &Slot<Script, ()>) -> bool {
        false
    }

    fn view(_: &Script) -> Registers {
        vec![("pc", 0)]
    }

    fn walk(_: &Vm, _: Ipa) -> Walk {
        Walk::Unmapped { level: 1 }
    }

    fn devices(_: &Vm) -> Vec<String> {
        Vec::new()
    }

    fn stream(_: &Vm, _: Bdf, _: Iova) -> Option<Vec<String>> {
        None
    }

    fn iommus(&self) -> Vec<Iommu> {
        Vec::new()
    }

    fn frames(&self) -> Frames {
        Frames {
            free: 0,
            total: 0,
            heap_used: 0,
            heap_total: 0,
        }
    }
}

/// A VM with a vCPU on each of the `cores`.
fn vm(number: usize, cores: &[usize], change: impl FnOnce(&mut VmConfig)) -> Vm {
    let mut config = VmConfig::new(["a", "b", "c"][number], 1 << 20, "kernel");
    change(&mut config);
    let slots = cores.iter().map(|core| Slot::new(*core, Script::new(), ()));
    Vm {
        tenant: Tenant::new(number, &config, slots),
        refusals: Cell::new(0),
        devices: Cell::new(None),
        come: Cell::new(false),
    }
}

/// These VMs on as many cores as they need.
struct World {
    guests: Guests<Machine>,
    turns: RefCell<Vec<Turns>>,
}

impl World {
    fn new(vms: Vec<Vm>) -> Self {
        let all = vms.iter().enumerate();
        let vcpus: Vec<_> = all
            .flat_map(|(vm, it)| {
                let slots = it.slots.iter().enumerate();
                slots.map(move |(vcpu, slot)| (slot.core, (vm, vcpu)))
            })
            .collect();
        let count = vcpus.iter().map(|(core, _)| core + 1).max().unwrap_or(0);
        let cores: Vec<_> = (0..count)
            .map(|number| Place {
                number,
                vcpus: vcpus
                    .iter()
                    .filter(|(core, _)| *core == number)
                    .map(|(_, vcpu)| *vcpu)
                    .collect(),
            })
            .collect();
        let turns = cores
            .iter()
            .map(|core| Turns::new(&core.vcpus, 1))
            .collect();
        let guests = Guests::new(Machine, vms, cores);
        Self {
            guests,
            turns: RefCell::new(turns),
        }
    }

    /// A turn of a core; what happened.
    fn turn(&self, core: usize) -> Vec<String> {
        let place = &self.guests.cores[core];
        self.guests
            .turn(core, place, &mut self.turns.borrow_mut()[core], &mut ());
        taken()
    }

    fn next(&self, vm: usize, vcpu: usize, departure: Departure) {
        let slot = &self.guests.vms[vm].slots[vcpu];
        slot.vcpu.lock().push_back(departure);
    }

    fn state(&self, vm: usize) -> State {
        self.guests.vms[vm].lifecycle.state()
    }

    fn activity(&self, vm: usize, vcpu: usize) -> Activity {
        self.guests.vms[vm].slots[vcpu].activity()
    }
}

#[test]
fn what_a_core_spends_on_a_vms_account_is_not_its_neighbours_time() {
    // Slices of 10 ms, and a stay takes 1 ms of them: then the rest is taken on the account of the first.
    let world = World::new(vec![vm(0, &[0], |_| {}), vm(1, &[0], |_| {})]);
    let exits = || [0, 1].map(|vm| world.guests.vms[vm].slots[0].exits());
    let before = exits();
    for _ in 0..400 {
        SPENT.set(Some((0, 500)));
        world.turn(0);
    }
    let [first, second] = [0, 1].map(|vm| exits()[vm] - before[vm]);
    // Half of the time of each turn is spent for the first, whose turn it is not: it has the less of them.
    assert!(first * 10 < second * 4, "{first} and {second}");
    SPENT.set(None);
    let before = exits();
    for _ in 0..400 {
        world.turn(0);
    }
    let [first, second] = [0, 1].map(|vm| exits()[vm] - before[vm]);
    assert!(first.abs_diff(second) <= 20, "{first} and {second}");
}

#[test]
fn the_run_does_not_end_while_a_vm_ends_after_which_another_starts() {
    let world: &'static World = std::boxed::Box::leak(std::boxed::Box::new(World::new(vec![
        vm(0, &[0], |_| {}),
        vm(1, &[0], |config| config.start = Start::After("a".into())),
        vm(2, &[1], |_| {}),
    ])));
    world.next(0, 0, Departure::Off);
    // For a moment no VM runs.
    MEANWHILE.set(Some(std::boxed::Box::new(|| {
        let other = &world.guests.vms[2];
        world
            .guests
            .end_from_outside(other, Ending::PowerOff, usize::MAX);
        assert_eq!(world.state(2), State::Stopped);
    })));
    world.turn(0);
    assert_eq!(world.state(1), State::Running);
}

#[test]
fn vms_start_at_boot_or_after_another_and_the_run_ends_with_the_last() {
    let world = World::new(vec![
        vm(0, &[0], |_| {}),
        vm(1, &[1], |config| config.start = Start::After("a".into())),
    ]);
    assert_eq!(taken(), ["a made of fresh memory"]);
    assert_eq!(world.state(1), State::Stopped);
    assert_eq!(world.turn(1), ["core 1 sleeps"]);
    world.next(0, 0, Departure::Off);
    assert_eq!(world.turn(0), ["devices of a", "b made of fresh memory"]);
    assert_eq!(CALLS.take(), [1], "b's core is told");
    assert_eq!(
        (world.state(0), world.state(1)),
        (State::Stopped, State::Running)
    );
    world.next(1, 0, Departure::Off);
    let end = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| world.turn(1)));
    let why = end.unwrap_err();
    assert_eq!(
        why.downcast_ref::<String>().map(String::as_str),
        Some("off: all VMs are off")
    );
}

#[test]
fn a_vm_that_ends_itself_and_starts_again_rests() {
    let world = World::new(vec![
        vm(0, &[0], |config| config.restart = Restart::Always),
        vm(1, &[0], |_| {}),
    ]);
    taken();
    world.next(0, 0, Departure::Off);
    assert_eq!(world.turn(0), ["devices of a", "a made of used memory"]);
    assert_eq!(world.state(0), State::Running);
    let first = &world.guests.vms[0].slots[0];
    assert!(first.deadline.load(Ordering::Relaxed) > 0);
    assert_eq!(world.guests.vms[0].lifecycle.starts(), 2);
}

#[test]
fn one_that_waits_goes_on_when_it_is_due_when_told_and_when_something_came_meanwhile() {
    let world = World::new(vec![vm(0, &[0], |_| {})]);
    taken();
    world.next(0, 0, Departure::Waits);
    world.turn(0);
    assert_eq!(world.activity(0, 0), Activity::Waiting);
    assert_eq!(world.turn(0), ["core 0 sleeps a while"]);
    world.turn(0);
    assert_eq!(world.activity(0, 0), Activity::Ready, "it was due");

    world.next(0, 0, Departure::Waits);
    world.turn(0);
    CALLS.take();
    world.guests.kick(&world.guests.vms[0], [0, 7], 1);
    assert_eq!(world.activity(0, 0), Activity::Ready, "it was told");
    assert_eq!(CALLS.take(), [0]);
    world.guests.kick(&world.guests.vms[0], [0], 0);
    assert!(CALLS.take().is_empty(), "a core does not call itself");

    world.next(0, 0, Departure::Waits);
    world.guests.vms[0].come.set(true);
    world.turn(0);
    assert_eq!(world.activity(0, 0), Activity::Ready, "it had come");
}

#[test]
fn vcpus_on_other_cores_are_called_in_and_the_last_to_leave_concludes() {
    let world = World::new(vec![vm(0, &[0, 1, 2], |_| {}), vm(1, &[0], |_| {})]);
    taken();
    for vcpu in [1, 2] {
        world.guests.turn_on(&world.guests.vms[0].slots[vcpu], 0);
    }
    CALLS.take();
    // Core 1 is about a vCPU of it.
    assert!(world.guests.vms[0].lifecycle.enter());
    world.next(0, 0, Departure::Off);
    assert_eq!(world.turn(0), Vec::<String>::new());
    assert_eq!(CALLS.take(), [1, 2]);
    assert_eq!(world.state(0), State::Ending(Ending::PowerOff));
    world.guests.leave(&world.guests.vms[0]);
    assert_eq!(taken(), ["devices of a"]);
    assert_eq!(world.state(0), State::Stopped);
}

#[test]
fn a_start_waits_for_devices_and_the_core_of_the_first_vcpu_looks() {
    let world = World::new(vec![vm(0, &[0], |_| {}), vm(1, &[1], |_| {})]);
    taken();
    let mut control = &world.guests;
    assert_eq!(control.stop(1), Ok(()));
    let back = NOW.get() + 100_000;
    world.guests.vms[1].devices.set(Some(back));
    assert_eq!(control.start(1), Ok(()));
    assert_eq!(control.start(1), Err(Refusal::Running));
    assert_eq!(world.state(1), State::Starting);
    taken();
    assert_eq!(world.turn(1), ["core 1 sleeps a while"]);
    NOW.set(back);
    world.turn(0);
    assert_eq!(
        world.state(1),
        State::Starting,
        "core 0 has nothing to do with it"
    );
    assert_eq!(world.turn(1), ["b made of used memory"]);
    assert_eq!(world.state(1), State::Running);
}

#[test]
fn one_that_is_about_to_start_is_stopped_as_soon_as_it_runs() {
    let world = World::new(vec![vm(0, &[0], |_| {}), vm(1, &[1], |_| {})]);
    let mut control = &world.guests;
    assert_eq!(control.stop(1), Ok(()));
    world.guests.vms[1].devices.set(Some(NOW.get() + 100_000));
    assert_eq!(control.start(1), Ok(()));
    assert_eq!(world.state(1), State::Starting);
    assert_eq!(control.stop(1), Ok(()));
    assert_eq!(world.state(1), State::Stopped);
    assert_eq!(control.stop(1), Err(Refusal::NotRunning));
    // One whose devices do not come back in time is told from one that does not run.
    world.guests.vms[1].devices.set(Some(u64::MAX));
    assert_eq!(control.start(1), Ok(()));
    STEP.set(1000);
    assert_eq!(control.stop(1), Err(Refusal::Stuck));
}

#[test]
fn what_cannot_start_is_failed_and_can_be_tried_again() {
    let world = World::new(vec![vm(0, &[0], |_| {}), vm(1, &[0], |_| {})]);
    taken();
    let mut control = &world.guests;
    world.guests.vms[1].refusals.set(1);
    assert_eq!(control.restart(1), Err(Refusal::CannotStart));
    assert_eq!(world.state(1), State::Failed);
    assert_eq!(control.stop(1), Err(Refusal::NotRunning));
    assert_eq!(control.start(1), Ok(()));
    assert_eq!(control.start(2), Err(Refusal::NotRunning));
    assert_eq!(world.guests.vms[1].lifecycle.starts(), 2);
}

#[test]
fn keys_go_to_running_vms_and_commands_wait_for_the_console_s_core() {
    let world = World::new(vec![vm(0, &[0, 1], |_| {})]);
    taken();
    let keys = b"\x07\x1dmlog warn\r\x1d1\x09";
    Machine::terminal().with_wire(|wire| wire.typed.extend(keys));
    assert!(world.guests.read_keys(1));
    assert!(world.guests.has_command());
    assert_eq!(taken(), ["a gets 7"], "what follows a command waits for it");
    assert!(world.guests.read_keys(1), "and goes on waiting");
    assert!(taken().is_empty());
    let done = world.turn(0);
    assert_eq!(done, ["a gets 9"]);
    let printed = Machine::terminal().with_wire(|wire| wire.printed.clone());
    assert!(printed.contains("log level: WARN"), "{printed}");
    assert!(!world.guests.has_command());
}

#[test]
fn registers_are_those_of_the_core_or_of_memory_and_a_core_that_is_silent_is_stuck() {
    let world = World::new(vec![vm(0, &[0], |_| {})]);
    taken();
    let control = &world.guests;
    assert_eq!(control.vcpu(0, 0).unwrap().registers, [("pc", 0)]);
    assert_eq!(control.vcpu(0, 1), Err(Refusal::NoVcpu));
    let slot = &world.guests.vms[0].slots[0];
    let held = slot.vcpu.lock();
    CALLS.take();
    assert_eq!(control.vcpu(0, 0), Err(Refusal::Stuck));
    assert_eq!(CALLS.take(), [0], "it was asked once");
    // It answers at last; the next who asks does not get the old answer.
    slot.show(|| vec![("pc", 5)]);
    assert_eq!(control.vcpu(0, 0), Err(Refusal::Stuck));
    drop(held);
}

#[test]
#[should_panic(expected = "gives up: no VM of the bundle can be run")]
fn without_a_vm_that_runs_there_is_no_run() {
    let broken = vm(0, &[0], |_| {});
    broken.refusals.set(1);
    let _ = World::new(vec![broken]);
}

#[test]
#[should_panic(expected = "gives up: no VM of the bundle can be run")]
fn without_any_vm_there_is_no_run() {
    let _ = World::new(Vec::new());
}

#[test]
fn with_none_at_boot_the_monitor_opens() {
    let world = World::new(vec![vm(0, &[0], |config| config.start = Start::Manual)]);
    assert!(Machine::terminal().in_monitor());
    assert_eq!(world.state(0), State::Stopped);
    assert!(world.guests.vms[0].lifecycle.is_off());
}
