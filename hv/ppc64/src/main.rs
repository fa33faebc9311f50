//! The POWER binary: Bulkhead as a partition of a PAPR platform.
//!
//! Everything runs in real mode, little-endian, with interrupts off: effective addresses are real
//! addresses, so there is no map of our own to protect and no page to leave out. What other
//! architectures do with a guard page is done here with a watchpoint and a pattern below each stack.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The binary is built for size; what runs in every exit of a guest is not.
#![feature(optimize_attribute)]
#![expect(
    unsafe_code,
    reason = "enters from firmware, calls the platform, owns the memory"
)]

extern crate alloc;

mod agreement;
mod assembly;
mod bus;
mod config;
mod console;
mod cpu;
mod entry;
mod flatten;
mod guest;
mod hardware;
mod hcall;
mod heap;
mod launch;
mod memory;
mod messages;
mod nested;
mod of;
mod panic;
mod presentation;
mod rtas;
mod self_test;
mod smp;
mod spr;
mod survey;
mod tables;
mod vectors;
mod windows;

use alloc::vec::Vec;

use boot::{Logger, Options, Verdict};
use console::{Terminal, TimeBase};
use hal::Clock;
use machine::{Machine, UartKind};
use nested::Nested;
use of::Firmware;

/// Whether this image runs VMs. In one that does not, nothing leads to what is only for them, so the
/// linker leaves it out.
const RUNS_VMS: bool = cfg!(feature = "guests");

static LOGGER: spin::Once<Logger<Terminal, TimeBase>> = spin::Once::new();

/// The end of the low memory that the vectors take.
pub(crate) const LOW: u64 = 0x4000;

/// The boot CPU, on its own stack. The first three arguments are those that firmware entered with.
#[optimize(size)]
extern "C" fn main(initrd: u64, initrd_bytes: u64, firmware: u64, entry_ticks: u64) -> ! {
    // SAFETY: the linker script sets this memory apart for it.
    unsafe { cpu::BOOT_CPU.set_stacks(entry::boot_stacks()) };
    // SAFETY: this is the one call.
    unsafe { heap::start() };
    let logger = LOGGER.call_once(|| Logger::new(Terminal, TimeBase, entry_ticks));
    // Fails only if there is a logger already, and there is none.
    let _ = log::set_logger(logger);
    log::set_max_level(log::LevelFilter::Info);
    log::info!(
        "Bulkhead {} on POWER, real mode, PVR {:#010x}",
        env!("CARGO_PKG_VERSION"),
        spr::pvr()
    );
    // SAFETY: firmware's code there is not used any more: what it left for us to call lives
    // elsewhere, or in the platform.
    if let Err(error) = unsafe { vectors::install() } {
        panic!("vectors: {error}");
    }
    if let Err(error) = hcall::watch_stores(cpu::BOOT_CPU.guard()) {
        log::warn!("no watchpoint below the stack: {error}");
    }
    let firmware = Firmware::new(firmware, LOW);
    log::info!("entered at tick {entry_ticks} by {firmware}");
    let initrd = (initrd_bytes != 0).then_some((initrd, initrd_bytes));
    run(&device_tree(firmware, initrd), entry_ticks)
}

/// Takes the device tree, and the machine with it, from the firmware.
#[optimize(size)]
fn device_tree(firmware: Firmware, initrd: Option<(u64, u64)>) -> Vec<u8> {
    match agreement::reach(firmware) {
        Ok(agreement) => log::info!("interrupts: {agreement}"),
        Err(error) => {
            log::error!("interrupts: {error}");
            panic::end(Verdict::Fatal("no agreement with the platform"));
        }
    }
    let tree = match flatten::flatten(firmware, initrd) {
        Ok(tree) => tree,
        Err(error) => {
            log::error!("device tree: {error}");
            panic::end(Verdict::Fatal("the device tree cannot be read"));
        }
    };
    if let Err(error) = firmware.quiesce() {
        log::warn!("quiesce: {error}");
    }
    tree
}

#[optimize(size)]
fn run(tree: &[u8], entry_ticks: u64) -> ! {
    let machine = match Machine::from_fdt(tree) {
        Ok(machine) => machine,
        Err(error) => {
            log::error!("device tree: {error}");
            panic::end(Verdict::Fatal("the device tree cannot be used"));
        }
    };
    if let Some(uart) = machine.stdout()
        && let UartKind::Hvterm { unit } = uart.kind
    {
        Terminal::select(unit, uart.interrupt.map(|interrupt| interrupt.number));
    }
    if let Some(power) = &machine.power {
        TimeBase::set_frequency(power.timebase_hz);
    }
    let bootargs = machine.chosen.bootargs.as_deref().unwrap_or_default();
    let options = Options::parse(bootargs, |word| {
        log::warn!("command line: {} is not an option; ignored", word.0);
    });
    log::set_max_level(options.log);
    log::info!("device tree: {} bytes", tree.len());
    if let Some(test) = options.self_test {
        self_test::provoke(test);
    }
    let holdings = survey::take(&machine);
    let bundle = survey::bundle(&machine);
    let topologies = holdings.devices.iter();
    log::info!(
        "report: complete {} ticks after entry at {} Hz, {} functions, {} frames free",
        TimeBase.ticks().wrapping_sub(entry_ticks),
        TimeBase.frequency(),
        topologies
            .map(|devices| devices.functions().len())
            .sum::<usize>(),
        holdings.frames.free_frames()
    );
    if holdings.open_windows > 0 {
        panic::end(Verdict::Fatal("a DMA window may be open"));
    }
    match bundle {
        Err(()) => panic::end(Verdict::Fatal("the boot bundle cannot be used")),
        Ok(None) => panic::end(Verdict::Good("report complete, no VM to run")),
        Ok(Some(_)) if !RUNS_VMS => panic::end(Verdict::BRING_UP),
        Ok(Some(_)) if holdings.nested != Nested::V1 => {
            panic::end(Verdict::Fatal("the platform cannot run VMs for us"))
        }
        Ok(Some(bundle)) => launch::vms(&machine, tree, bundle, holdings),
    }
}
