//! Which vCPU a core runs, and for how long.

use alloc::vec::Vec;

use boot::Frames;
use machine::Interrupt;
use smmuv3::Locked;
use vgic::{Kicks, Level};
use vm::{Arch, Arrival, CONSOLE_CORE, Departure, Ending, ExitCause, Lodgers};

use super::context::{read_register, write_register};
use super::control::Machine;
use super::devices;
use super::enter::{self, Exit};
use super::events::{self, next_hearing};
use super::irq;
use super::pci::GuestPci;
use super::smmu::Broken;
use super::trap::Next as After;
use super::vcpu::{self, TRAP_WFI, Vcpu, Whereabouts};
use super::vm::{Slot, Vm};
use crate::console;
use crate::hardware::{Claim, Hardware, Route, Seat};
use crate::memory::{Ram, Registers};
use crate::serial::Port;
use crate::{gic, panic};

/// How long a guest runs between two pieces of work that it began, in microseconds: it goes on, and so does the work.
const WORK_PAUSE_US: u64 = 20;

/// A core and the vCPUs that live on it.
pub(crate) struct Core {
    pub(crate) mpidr: u64,
    /// Its redistributor, started.
    pub(crate) redistributor: Option<gic::Frame>,
    /// VM and vCPU numbers.
    pub(crate) vcpus: Vec<(usize, usize)>,
}

impl vm::Core for Core {
    fn vcpus(&self) -> &[(usize, usize)] {
        &self.vcpus
    }

    fn call(&self) {
        gic::kick(self.mpidr);
    }
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
    pub(super) fn hardware(&self) -> Option<&'static Hardware> {
        match self {
            Self::Locked(_) => None,
            Self::Driven(hardware) => Some(hardware),
        }
    }
}

/// All VMs and cores.
pub(super) type Guests = vm::Guests<Machine>;

/// What a core has that runs vCPUs.
pub(super) struct Thread {
    frame: gic::Frame,
    /// Which vCPU of each VM was on this core last.
    lodgers: Lodgers,
}

impl Machine {
    fn is_console(&self, intid: u32) -> bool {
        self.console.is_some_and(|console| console.number == intid)
    }
}

/// An interrupt of this core's that may be of a VM's own serial port, or an SMMU's; `from` is the core if it has a
/// vCPU on it.
fn other_interrupt(guests: &Guests, intid: u32, core: usize, from: usize) {
    for vm in &guests.vms {
        if let Some(port) = vm.port.as_ref().filter(|port| port.is_from(intid)) {
            while let Some(byte) = port.read() {
                kick(guests, vm, devices::receive(vm, &[byte]), from);
            }
        }
    }
    if let Some(hardware) = guests.machine.iommus.hardware()
        && hardware.is_line(intid)
    {
        line_is_up(guests, hardware, intid, from);
    }
    if let Some(hardware) = guests.machine.iommus.hardware()
        && hardware.is_ours(intid, core)
    {
        events::interrupt(guests, hardware, core, from);
    }
}

/// A line that devices' pins raise is up.
fn line_is_up(guests: &Guests, hardware: &Hardware, intid: u32, from: usize) {
    let mut claim = Claim::Unclaimed;
    for vm in &guests.vms {
        if let Some(pci) = &vm.pci
            && let Some(kicks) = pci.line_is_up(vm, intid)
        {
            claim = Claim::Claimed;
            kick(guests, vm, kicks, from);
        }
    }
    hardware.count_line(intid, claim);
}

/// Where a device's message goes.
fn route(guests: &Guests, intid: u32) -> Option<Route> {
    guests.machine.iommus.hardware()?.route(intid)
}

/// A device's message has come in. An LPI has no active state.
fn message(guests: &Guests, route: Route, from: usize) {
    if let Some(vm) = guests.vms.get(route.vm)
        && let Some(pci) = &vm.pci
    {
        let told = pci.vits.send(route.message);
        kick(guests, vm, vm.gic.post_lpis_to(told), from);
    }
}

static GUESTS: spin::Once<Guests> = spin::Once::new();

/// Starts the VMs that are to start at boot, and hands all to the cores, which wait in [`serve`].
#[optimize(size)]
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
    let machine = Machine {
        console,
        iommus,
        frames,
    };
    GUESTS.call_once(|| Guests::new(machine, vms, cores));
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISH);
    // The others sleep in `serve` with their interfaces on.
    if let Some(guests) = GUESTS.get() {
        guests.cores.iter().skip(1).for_each(vm::Core::call);
    }
}

/// Runs vCPUs on this core for ever.
#[optimize(size)]
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
        && let Some(interrupt) = guests.machine.console
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
        && let Some(hardware) = guests.machine.iommus.hardware()
    {
        hardware.listen(Seat {
            core,
            mpidr: this.mpidr,
        });
        for vm in &guests.vms {
            let first = vm.slots.first();
            let near = first.and_then(|slot| guests.cores.get(slot.core));
            let near = near.map_or(this.mpidr, |core| core.mpidr);
            for interrupt in vm.pci.iter().flat_map(GuestPci::machine_lines) {
                gic::enable_spi(interrupt, near);
            }
        }
        // What came before has left no edge.
        events::drain(guests, hardware, core, usize::MAX);
    }
    let thread = Thread {
        frame,
        lodgers: Lodgers::new(guests.vms.len()),
    };
    guests.serve(core, this, thread)
}

/// Nothing to run: sleeps until an interrupt.
pub(super) fn idle(guests: &Guests, core: usize, due: Option<u64>) {
    set_alarm(due);
    // A vCPU may have become ready since it was looked for; then its kick is pending, and WFI
    // does not sleep.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    aarch64_cpu::asm::wfi();
    loop {
        match gic::acknowledge() {
            1020..gic::FIRST_LPI => break,
            intid @ gic::FIRST_LPI.. => {
                gic::drop_priority(intid);
                if let Some(route) = route(guests, intid) {
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
                let command = guests.machine.is_console(intid) && guests.read_keys(usize::MAX);
                other_interrupt(guests, intid, core, usize::MAX);
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

/// Makes vCPUs look at their interrupts. `from` is the core that asks.
pub(super) fn kick(guests: &Guests, vm: &Vm, kicks: Kicks, from: usize) {
    guests.kick(vm, kicks.into_iter().map(|vcpu| vcpu as usize), from);
}

/// A vCPU on a core.
pub(crate) struct Residency<'a> {
    guests: &'a Guests,
    core: usize,
    pub(crate) vm: &'a Vm,
    pub(crate) index: usize,
    slot: &'a Slot,
    pub(crate) vcpu: &'a mut Vcpu,
    /// When others want the core, or it is to look around.
    until: Option<u64>,
    /// The list registers are to be filled anew.
    refill: bool,
}

/// Runs a vCPU on this core until it leaves.
pub(super) fn stay(
    guests: &Guests,
    thread: &mut Thread,
    arrival: &Arrival<'_, Machine>,
    vcpu: &mut Vcpu,
) -> Departure {
    let Arrival {
        core,
        vm,
        index,
        slot,
        shared,
        until,
    } = *arrival;
    if let Some((pc, x0)) = slot.beside.lock().take() {
        vcpu.reset(pc, x0);
    }
    vcpu.load(vm, if shared { TRAP_WFI } else { 0 });
    if thread.lodgers.comes(vm.number, index) {
        vcpu::forget_translations();
    }
    thread.frame.set_active(vm.gic.physical_active(index));
    let slice = shared.then_some(until);
    let until = slice.into_iter().chain(next_hearing(guests, core)).min();
    set_alarm(until);
    let mut residency = Residency {
        guests,
        core,
        vm,
        index,
        slot,
        vcpu,
        until,
        refill: true,
    };
    let departure = residency.run(shared);
    residency.sync();
    if departure == Departure::Off {
        residency.leave_work();
    }
    irq::clear_all();
    for intid in bits(vm.gic.physical_active(index)) {
        gic::deactivate(intid);
    }
    vcpu.put();
    departure
}

/// The members of a set, lowest first. Nearly always there are none.
fn bits(mut set: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(bit)
    })
}

/// What follows an interrupt of the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is to be seen what there is to do.
    Look,
    /// The core is wanted.
    Preempted,
}

impl Residency<'_> {
    fn run(&mut self, shared: bool) -> Departure {
        loop {
            if !self.vm.lifecycle.is_running() {
                return Departure::Off;
            }
            if let Some(pci) = &self.vm.pci
                && pci.has_work()
                && self.work(pci) == Err(Broken)
            {
                return Departure::Off;
            }
            if self.refill || self.vm.gic.needs_flush(self.index) {
                self.flush();
            }
            match self.enter() {
                Exit::Synchronous => {}
                Exit::Interrupt(intid) => match self.interrupt(intid) {
                    Then::Look => continue,
                    Then::Preempted => return Departure::Preempted,
                },
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
            match self.synchronous() {
                After::Resume => {}
                After::Leave => return Departure::Off,
                // What the guest began goes on while it waits.
                After::Wait if self.has_work() => {}
                After::Wait if shared => return Departure::Waits,
                After::Wait => {
                    if self.wait() {
                        return Departure::Waits;
                    }
                }
            }
        }
    }

    /// Into the guest, and back.
    #[inline(always)]
    fn enter(&mut self) -> Exit {
        let registers: *mut _ = &mut self.vcpu.registers;
        // SAFETY: `load` put this vCPU's stage 2 and HCR_EL2 on the core; stage 2 holds the VM's memory only. `self` and
        // its vCPU are borrowed for the call.
        let exit = unsafe { enter::enter(registers, self) };
        self.slot.count_exit();
        exit
    }

    /// What the guest asked of its ITS or an SMMU of its own is not done yet.
    fn has_work(&self) -> bool {
        self.vm.pci.as_ref().is_some_and(GuestPci::has_work)
    }

    /// Goes on with what the guest began. What is left then has the guest leave again soon, by the hypervisor's timer: it
    /// may wait for just that, and do nothing by which it would leave.
    ///
    /// # Errors
    /// [`Broken`]: the VM ends.
    // As a call it costs each exit some registers more.
    #[inline(always)]
    fn work(&self, pci: &GuestPci) -> Result<(), Broken> {
        let Ok(kicks) = pci.run(self.vm) else {
            log::error!(
                "vm {}: the SMMU did not confirm what its guest asked for: the VM is stopped",
                self.vm.name
            );
            self.end(Ending::Fault);
            return Err(Broken);
        };
        self.kick(kicks);
        let pause = Machine::frequency().saturating_mul(WORK_PAUSE_US) / 1_000_000;
        let soon = pci.has_work();
        let soon = soon.then(|| Machine::ticks().saturating_add(pause));
        set_alarm(self.until.into_iter().chain(soon).min());
        Ok(())
    }

    /// This vCPU goes off: what is left is another's to go on with.
    #[cold]
    fn leave_work(&self) {
        if self.has_work() {
            let all = 0..self.vm.slots.len();
            self.guests.kick(self.vm, all, self.core);
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
                || self.has_work()
            {
                return false;
            }
            aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
            aarch64_cpu::asm::wfi();
            if self.interrupt(gic::acknowledge()) == Then::Preempted {
                return true;
            }
        }
    }

    /// A message or a timer of the guest's has taken it from the core, and is acknowledged. It goes straight into a list
    /// register, if it is for the vCPU that is on this core, nothing else waits for that, and the guest has begun nothing
    /// that is to be gone on with. There is no mail for the vCPU then, and whoever has some from now on, or ends the VM,
    /// kicks this core: the guest can go on.
    ///
    /// Otherwise it returns what [`Residency::interrupt`] is to be told. Of the guest's registers no more is in memory
    /// here than a call may change.
    #[inline]
    pub(crate) fn take(&mut self, intid: u32) -> Option<u32> {
        let (at, cause) = match intid {
            gic::FIRST_LPI.. => (self.deliver_message(intid), ExitCause::Message),
            _ => (self.deliver_timer(intid), ExitCause::Timer),
        };
        let Some(at) = at else {
            return Some(intid);
        };
        irq::write_one(at, self.vcpu.image.register(at));
        gic::drop_priority(intid);
        self.count(cause);
        if self.has_work() {
            return Some(gic::SPURIOUS);
        }
        self.slot.count_exit();
        None
    }

    /// A device's message has come in: into which list register it goes.
    #[inline]
    fn deliver_message(&mut self, intid: u32) -> Option<usize> {
        let route = route(self.guests, intid)?;
        if route.vm != self.vm.number {
            return None;
        }
        let vits = &self.vm.pci.as_ref()?.vits;
        let image = &mut self.vcpu.image;
        (self.vm.gic).deliver(vits, route.message, self.index, image, irq::ended())
    }

    /// A timer of the guest's has fired: into which list register it goes. It stays active until the guest ends it. Where
    /// lines of devices are up, they are looked at with the next flush, which is then.
    #[inline]
    fn deliver_timer(&mut self, intid: u32) -> Option<usize> {
        let pci = self.vm.pci.as_ref();
        if pci.is_some_and(GuestPci::has_line_up) {
            return None;
        }
        let image = &mut self.vcpu.image;
        (self.vm.gic).deliver_ppi(self.index, intid, image, irq::ended())
    }

    /// Does what an interrupt of the hypervisor's asks for, which is acknowledged.
    fn interrupt(&mut self, intid: u32) -> Then {
        if intid >= 1020 {
            if intid >= gic::FIRST_LPI {
                self.message(intid);
            }
            return Then::Look;
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
                return Then::Look;
            }
            gic::MAINTENANCE => self.refill = true,
            gic::HYP_TIMER => {
                // Otherwise it is for the sake of work.
                let is_over = self.until.is_some_and(|until| until <= Machine::ticks());
                set_alarm(self.until.filter(|_| !is_over));
                gic::deactivate(intid);
                return if is_over { Then::Preempted } else { Then::Look };
            }
            gic::KICK => {
                self.slot.show(|| self.vcpu.view(Whereabouts::OnThisCore));
                self.come_to_look();
            }
            _ if self.guests.machine.is_console(intid) => {
                let command = self.guests.read_keys(self.core);
                gic::deactivate(intid);
                return if command { Then::Preempted } else { Then::Look };
            }
            _ => {
                other_interrupt(self.guests, intid, self.core, self.core);
                self.come_to_look();
            }
        }
        gic::deactivate(intid);
        Then::Look
    }

    /// A device's message that could not go straight into a list register.
    #[inline(never)]
    fn message(&mut self, intid: u32) {
        self.count(ExitCause::Message);
        gic::drop_priority(intid);
        if let Some(route) = route(self.guests, intid) {
            message(self.guests, route, self.core);
            if route.vm != self.vm.number {
                self.moderate(route.vm);
            }
        }
    }

    /// A message has come for another VM, in this one's time.
    #[cold]
    #[optimize(size)]
    fn moderate(&mut self, vm: usize) {
        if let Some(hardware) = self.guests.machine.iommus.hardware()
            && let Some(due) = hardware.came_for_another(vm, self.core)
        {
            let is_set = read_register!("cnthp_ctl_el2") & 1 != 0;
            let set = is_set.then(|| read_register!("cnthp_cval_el2"));
            self.until = self.until.into_iter().chain([due]).min();
            set_alarm(set.into_iter().chain([due]).min());
        }
    }

    /// Sets an alarm for the sake of devices that flood. Where one is set already, what follows it looks around, too.
    fn come_to_look(&mut self) {
        if self.until.is_none()
            && let Some(deadline) = next_hearing(self.guests, self.core)
        {
            self.until = Some(deadline);
            // One for the sake of work is sooner, and sets this one.
            if read_register!("cnthp_ctl_el2") & 1 == 0 {
                set_alarm(self.until);
            }
        }
    }

    /// Counts an exit.
    pub(crate) fn count(&self, cause: ExitCause) {
        self.slot.causes.count(cause);
    }

    pub(crate) fn start_other(&self, start: armv8::Start) {
        if let Some(slot) = self.vm.slots.get(start.vcpu) {
            *slot.beside.lock() = Some((start.entry, start.context));
            self.guests.turn_on(slot, self.core);
        }
    }

    /// Ends the VM.
    pub(crate) fn end(&self, ending: Ending) {
        self.guests.end(self.vm, ending, self.core);
    }
}
