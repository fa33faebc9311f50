//! The monitor: commands for whoever sits at the terminal.

mod command;
mod editor;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use log::LevelFilter;
use types::Bdf;

use crate::{ExitCause, State};
use command::{Command, HELP, parse};

pub use command::{Argument, CommandError, Plug};
pub(crate) use editor::{Editor, Input, PROMPT};

/// What a VM is doing, for `list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// How often it has started.
    pub starts: u32,
    /// Exits of all its vCPUs.
    pub exits: u64,
    /// How long its vCPUs have been on cores, all together, in microseconds.
    pub ran_us: u64,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It is off.
    Off,
    /// It is on its core, or wants to be.
    Ready,
    /// It waits for an interrupt.
    Waiting,
}

/// A vCPU, for `vcpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// The core it runs on.
    pub core: usize,
    /// What it does.
    pub activity: Activity,
    /// Its exits.
    pub exits: u64,
    /// How long it has been on its core, in microseconds.
    pub ran_us: u64,
    /// Its registers by name.
    pub registers: Vec<(&'static str, u64)>,
}

/// Where stage 2 takes an address, for `walk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// To memory.
    Mapped {
        /// The physical address.
        pa: u64,
        /// Bytes of the block or page.
        bytes: u64,
        /// The level of the descriptor.
        level: u8,
        /// The descriptor.
        descriptor: u64,
    },
    /// Nowhere: the guest traps there.
    Unmapped {
        /// The level at which the walk ended.
        level: u8,
    },
}

impl Walk {
    /// The walk of `address` as a line.
    #[must_use]
    pub fn line(&self, address: u64) -> String {
        match self {
            Self::Mapped {
                pa,
                bytes,
                level,
                descriptor,
            } => format!(
                "{address:#x} -> {pa:#x}, level {level}, block of {bytes:#x} bytes, descriptor \
                 {descriptor:#018x}"
            ),
            Self::Unmapped { level } => {
                format!("{address:#x} is not mapped: the walk ends at level {level}")
            }
        }
    }
}

/// An IOMMU, for `smmu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub state: String,
}

/// Memory of the hypervisor's, for `frames`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// 4 KiB frames that have no owner.
    pub free: usize,
    /// 4 KiB frames there are.
    pub total: usize,
    /// Bytes of the heap in use.
    pub heap_used: usize,
    /// Bytes of the heap.
    pub heap_total: usize,
}

/// Why something that was asked for is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The VM is not running.
    #[error("it is not running")]
    NotRunning,
    /// The VM is running, or on its way there.
    #[error("it is running already")]
    Running,
    /// Its vCPUs did not leave their cores in time, or it has been about to start for too long.
    #[error("its vCPUs did not leave their cores in time, or its devices are not back")]
    Stuck,
    /// It could not be started: the log says why.
    #[error("it cannot be started")]
    CannotStart,
    /// There is no such vCPU.
    #[error("there is no such vCPU")]
    NoVcpu,
    /// The VM has no such device.
    #[error("it has no such device; `devices NAME` shows them")]
    NoDevice,
    /// Devices of this machine do not stop by errors.
    #[error("devices of this machine are not stopped by errors")]
    NoErrors,
    /// Host bridges of this machine stay where they are.
    #[error("host bridges of this machine stay where they are")]
    NoPlug,
    /// The VM has no such host bridge.
    #[error("it has no such host bridge; `devices NAME` shows them")]
    NoBridge,
    /// The host bridge is where it is to go.
    #[error("it is there already")]
    There,
    /// It could not be done: the log says why.
    #[error("that cannot be done; the log says why")]
    NotDone,
    /// The address is wider than the VM's.
    #[error("the address is too wide")]
    TooWide,
}

/// What the monitor asks of the binary. VMs go by their place in the manifest.
pub trait Control {
    /// The VMs, in the order of the manifest.
    fn vms(&self) -> Vec<VmStatus>;

    /// The time, in microseconds.
    fn now_us(&self) -> u64;

    /// Starts a stopped or failed VM.
    ///
    /// # Errors
    /// [`Refusal`]: it runs, or cannot be started.
    fn start(&mut self, vm: usize) -> Result<(), Refusal>;

    /// Stops a running VM and waits, for a bounded time, until nothing of it runs.
    ///
    /// # Errors
    /// [`Refusal`]: it does not run, or does not stop.
    fn stop(&mut self, vm: usize) -> Result<(), Refusal>;

    /// Stops a running VM and starts it again.
    ///
    /// # Errors
    /// [`Refusal`]: it does not run, does not stop, or cannot be started.
    fn restart(&mut self, vm: usize) -> Result<(), Refusal>;

    /// A vCPU's state.
    ///
    /// # Errors
    /// [`Refusal`]: there is no such vCPU, or it does not answer.
    fn vcpu(&self, vm: usize, vcpu: usize) -> Result<VcpuState, Refusal>;

    /// Where stage 2 takes a guest physical address.
    ///
    /// # Errors
    /// [`Refusal::TooWide`].
    fn walk(&self, vm: usize, address: u64) -> Result<Walk, Refusal>;

    /// How often a VM left its guest, by cause.
    ///
    /// # Errors
    /// [`Refusal`].
    fn exits(&self, vm: usize) -> Result<Vec<(ExitCause, u64)>, Refusal>;

    /// The devices of a VM, a line each.
    ///
    /// # Errors
    /// [`Refusal`].
    fn devices(&self, vm: usize) -> Result<Vec<String>, Refusal>;

    /// Stops a VM's devices, as an error of theirs would; its guest is to recover them. How many host bridges
    /// that were.
    ///
    /// # Errors
    /// [`Refusal`]: it does not run, or a machine of this kind has no such errors.
    fn freeze(&self, _vm: usize) -> Result<usize, Refusal> {
        Err(Refusal::NoErrors)
    }

    /// Takes a host bridge, by its unique id, away from a running VM, or gives it back.
    ///
    /// # Errors
    /// [`Refusal`].
    fn plug(&self, _vm: usize, _bridge: u64, _plug: Plug) -> Result<(), Refusal> {
        Err(Refusal::NoPlug)
    }

    /// Where DMA of a VM's device, named as its guest does, goes at an address: a line for each step,
    /// from the tables as they stand in memory.
    ///
    /// # Errors
    /// [`Refusal::NoDevice`], [`Refusal::TooWide`].
    fn stream(&self, vm: usize, device: Bdf, address: u64) -> Result<Vec<String>, Refusal>;

    /// The IOMMUs.
    fn iommus(&self) -> Vec<Iommu>;

    /// Memory.
    fn frames(&self) -> Frames;

    /// Sets the level of the log.
    fn set_log(&mut self, level: LevelFilter);
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Lines.
    pub text: String,
    /// What follows.
    pub then: Then,
}

/// What follows a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next command.
    Stay,
    /// The keyboard goes to this VM.
    Focus(usize),
    /// The keyboard goes to the VM that had it.
    Leave,
    /// The machine is turned off, and all is well.
    Quit,
}

/// The monitor. It carries a little from one command to the next: what the last `list` saw.
#[derive(Debug, Default)]
pub struct Monitor {
    /// When the last `list` was, and how long each VM had run.
    last: Option<(u64, Vec<u64>)>,
}

impl Monitor {
    /// A monitor that nobody has asked anything.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// Carries out a line.
    pub fn execute(&mut self, line: &str, control: &mut dyn Control) -> Reply {
        let mut text = String::new();
        let then = match parse(line) {
            Ok(command) => self.carry_out(command, control, &mut text),
            Err(error) => {
                put(&mut text, format_args!("{error}\n"));
                Then::Stay
            }
        };
        Reply { text, then }
    }

    fn carry_out(
        &mut self,
        command: Command<'_>,
        control: &mut dyn Control,
        text: &mut String,
    ) -> Then {
        match command {
            Command::Help => text.push_str(HELP),
            Command::List => self.list(control, text),
            Command::Start(name) => change(control, name, text, |control, vm| control.start(vm)),
            Command::Stop(name) => change(control, name, text, |control, vm| control.stop(vm)),
            Command::Restart(name) => {
                change(control, name, text, |control, vm| control.restart(vm));
            }
            Command::Vcpu(name, number) => {
                if let Some(vm) = find(control, name, text) {
                    vcpu(control, vm, number, text);
                }
            }
            Command::Walk(name, address) => {
                if let Some(vm) = find(control, name, text) {
                    walk(control, vm, address, text);
                }
            }
            Command::Exits(name) => {
                if let Some(vm) = find(control, name, text) {
                    let line =
                        |(cause, count): (ExitCause, u64)| format!("{:16} {count}", cause.name());
                    let counts = control.exits(vm);
                    lines(counts.map(|all| all.into_iter().map(line).collect()), text);
                }
            }
            Command::Devices(name) => {
                if let Some(vm) = find(control, name, text) {
                    lines(control.devices(vm), text);
                }
            }
            Command::Freeze(name) => {
                if let Some(vm) = find(control, name, text) {
                    let line = |bridges| alloc::vec![format!("{bridges} host bridges stopped")];
                    lines(control.freeze(vm).map(line), text);
                }
            }
            Command::Plug(name, bridge, plug) => {
                if let Some(vm) = find(control, name, text) {
                    let done = match plug {
                        Plug::In => "given back",
                        Plug::Out => "taken away",
                    };
                    let line = |()| alloc::vec![format!("phb:{bridge:x} {done}")];
                    lines(control.plug(vm, bridge, plug).map(line), text);
                }
            }
            Command::Stream(name, device, address) => {
                if let Some(vm) = find(control, name, text) {
                    lines(control.stream(vm, device, address), text);
                }
            }
            Command::Smmu => {
                let iommus = control.iommus();
                if iommus.is_empty() {
                    text.push_str("this machine has none\n");
                }
                for iommu in iommus {
                    put(text, format_args!("{}: {}\n", iommu.name, iommu.state));
                }
            }
            Command::Frames => {
                let frames = control.frames();
                put(
                    text,
                    format_args!(
                        "{} of {} frames of 4 KiB free, heap: {} of {} KiB used\n",
                        frames.free,
                        frames.total,
                        frames.heap_used.div_ceil(1024),
                        frames.heap_total >> 10
                    ),
                );
            }
            Command::Log(level) => {
                control.set_log(level);
                put(text, format_args!("log level: {level}\n"));
            }
            Command::Focus(None) => return Then::Leave,
            Command::Focus(Some(name)) => {
                if let Some(vm) = find(control, name, text) {
                    return Then::Focus(vm);
                }
            }
            Command::Quit => return Then::Quit,
        }
        Then::Stay
    }

    fn list(&mut self, control: &dyn Control, text: &mut String) {
        let now = control.now_us();
        let vms = control.vms();
        let (then, before) = self.last.take().unwrap_or_default();
        let passed = now.saturating_sub(then).max(1);
        put(
            text,
            format_args!(
                "{:>2} {:<16} {:<12} {:>5} {:>10} {:>7} {:>10} {:>10} {:>6}\n",
                "#", "name", "state", "vcpus", "memory", "starts", "exits", "ran s", "cpu"
            ),
        );
        for (index, vm) in vms.iter().enumerate() {
            let ran = vm
                .ran_us
                .saturating_sub(before.get(index).copied().unwrap_or(0));
            // Tenths of a percent of one core.
            let share = ran.saturating_mul(1000).checked_div(passed).unwrap_or(0);
            put(
                text,
                format_args!(
                    "{:>2} {:<16} {:<12} {:>5} {:>6} MiB {:>7} {:>10} {:>6}.{:03} {:>3}.{}%\n",
                    index.saturating_add(1),
                    vm.name,
                    vm.state,
                    vm.vcpus,
                    vm.memory >> 20,
                    vm.starts,
                    vm.exits,
                    vm.ran_us.wrapping_div(1_000_000),
                    vm.ran_us.wrapping_div(1000).wrapping_rem(1000),
                    share.wrapping_div(10),
                    share.wrapping_rem(10),
                ),
            );
        }
        self.last = Some((now, vms.iter().map(|vm| vm.ran_us).collect()));
    }
}

/// Writing to a string cannot fail.
fn put(text: &mut String, args: core::fmt::Arguments<'_>) {
    let _ = text.write_fmt(args);
}

/// The VM of this name, or a line that says there is none.
fn find(control: &dyn Control, name: &str, text: &mut String) -> Option<usize> {
    let found = control.vms().iter().position(|vm| vm.name == name);
    if found.is_none() {
        put(
            text,
            format_args!("there is no VM {name}; `list` shows them\n"),
        );
    }
    found
}

/// Changes a VM's state and says how it is then.
fn change(
    control: &mut dyn Control,
    name: &str,
    text: &mut String,
    what: impl FnOnce(&mut dyn Control, usize) -> Result<(), Refusal>,
) {
    let Some(vm) = find(control, name, text) else {
        return;
    };
    match what(control, vm) {
        Ok(()) => {
            if let Some(status) = control.vms().get(vm) {
                put(text, format_args!("{name}: {}\n", status.state));
            }
        }
        Err(refusal) => put(text, format_args!("{name}: {refusal}\n")),
    }
}

fn vcpu(control: &dyn Control, vm: usize, number: usize, text: &mut String) {
    let state = match control.vcpu(vm, number) {
        Ok(state) => state,
        Err(refusal) => return put(text, format_args!("{refusal}\n")),
    };
    let activity = match state.activity {
        Activity::Off => "off",
        Activity::Ready => "ready",
        Activity::Waiting => "waiting",
    };
    put(
        text,
        format_args!(
            "vCPU {number}: {activity}, core {}, {} exits, ran {}.{:03} s\n",
            state.core,
            state.exits,
            state.ran_us.wrapping_div(1_000_000),
            state.ran_us.wrapping_div(1000).wrapping_rem(1000),
        ),
    );
    for row in state.registers.chunks(4) {
        for (name, value) in row {
            put(text, format_args!(" {name:>9} {value:016x}"));
        }
        text.push('\n');
    }
}

/// What was asked for, a line each.
fn lines(answer: Result<Vec<String>, Refusal>, text: &mut String) {
    match answer {
        Ok(lines) if lines.is_empty() => text.push_str("none\n"),
        Ok(lines) => lines
            .iter()
            .for_each(|line| put(text, format_args!("{line}\n"))),
        Err(refusal) => put(text, format_args!("{refusal}\n")),
    }
}

fn walk(control: &dyn Control, vm: usize, address: u64, text: &mut String) {
    match control.walk(vm, address) {
        Ok(walk) => put(text, format_args!("{}\n", walk.line(address))),
        Err(refusal) => put(text, format_args!("{refusal}\n")),
    }
}

#[cfg(test)]
mod tests;
