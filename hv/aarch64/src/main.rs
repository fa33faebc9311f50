//! The Arm binary: entry at EL2, vectors, system registers, and the glue from hardware to the pure
//! crates. One image for every Arm board: what a machine has is read from its device tree.
#![no_std]
#![no_main]
// The binary is built for size; what works once is built for nothing else.
#![feature(optimize_attribute)]
#![expect(unsafe_code, reason = "this crate is where the hardware is touched")]

extern crate alloc;

mod console;
mod cpu;
mod early;
mod entry;
mod exception;
mod features;
mod gic;
mod guest;
mod hardware;
mod image;
mod launch;
mod memory;
mod mmu;
mod panic;
mod self_test;
mod serial;
mod smp;
mod survey;

use boot::{Logger, Options, Snooping, Verdict};
use console::{Pl011, SystemCounter};
use dtoolkit::fdt::Fdt;
use early::Handover;
use hal::Clock;
use machine::{Coherency, Machine};
use types::{PageSize, Span};

/// Whether this image runs VMs. In one that does not, nothing leads to what is only for them, so the
/// linker leaves it out.
const RUNS_VMS: bool = cfg!(feature = "guests");

static LOGGER: spin::Once<Logger<Pl011, SystemCounter>> = spin::Once::new();

/// Everything after the MMU is on.
#[optimize(size)]
fn run(handover: Handover) -> ! {
    let Handover {
        fdt,
        fdt_span,
        mut map,
        entry_ticks,
    } = handover;
    memory::start_heap();
    cpu::adopt(smp::boot_cpu());
    start_console(fdt, &mut map);
    let logger = LOGGER.call_once(|| Logger::new(Pl011, SystemCounter, entry_ticks));
    // Fails only if there is a logger already, and there is none.
    let _ = log::set_logger(logger);
    log::set_max_level(log::LevelFilter::Info);
    log::info!("Bulkhead {} on Arm, EL2", env!("CARGO_PKG_VERSION"));

    let mut machine = match Machine::from_fdt(fdt) {
        Ok(machine) => machine,
        Err(error) => {
            log::error!("device tree: {error}");
            panic::end(Verdict::Fatal("the device tree cannot be used"));
        }
    };
    let bootargs = machine.chosen.bootargs.as_deref().unwrap_or_default();
    let options = Options::parse(bootargs, |word| {
        log::warn!("command line: {} is not an option; ignored", word.0);
    });
    log::set_max_level(options.log);
    if let Some(test) = options.self_test {
        self_test::provoke(test);
    }
    if options.its == Snooping::Never {
        for its in &mut machine.itss {
            its.coherency = Coherency::NonCoherent;
        }
    }
    if options.smmu == Snooping::Never {
        for smmu in &mut machine.smmus {
            smmu.coherency = Coherency::NonCoherent;
        }
    }
    let mut holdings = survey::take(&machine, fdt_span, map);
    let bundle = survey::bundle(&machine, &mut holdings.map);
    log::info!(
        "report: complete {} ticks after entry at {} Hz, {} functions, {} frames free",
        SystemCounter.ticks().wrapping_sub(entry_ticks),
        SystemCounter.frequency(),
        holdings
            .devices
            .iter()
            .map(|devices| devices.topology.functions().len())
            .sum::<usize>(),
        holdings.frames.free_frames()
    );
    if !holdings.all_locked() {
        panic::end(Verdict::Fatal("an SMMU does not abort"));
    }
    match bundle {
        Err(()) => panic::end(Verdict::Fatal("the boot bundle cannot be used")),
        Ok(None) => panic::end(Verdict::Good("report complete, no VM to run")),
        Ok(Some(_)) if !RUNS_VMS => panic::end(Verdict::BRING_UP),
        Ok(Some(bundle)) => launch::vms(&machine, &bundle, holdings),
    }
}

/// Makes the PL011 that the tree names the console. Without one the hypervisor runs silently.
fn start_console(fdt: &[u8], map: &mut mmu::Map) {
    let Some(base) = Fdt::new(fdt).ok().and_then(console::find) else {
        return;
    };
    let registers = Span::from_len(base, PageSize::SIZE_4K.bytes());
    if registers.is_some_and(|registers| map.identity(registers, mmu::Use::Device).is_ok()) {
        // SAFETY: the tree says that a PL011 is there; it is mapped now, and only the console uses
        // it.
        unsafe { console::start(base) };
    }
}
