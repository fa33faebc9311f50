//! The console: a PL011 found by the device tree's `stdout-path`.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use boot::Guard;
use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use hal::{Clock, Console};
use spin::mutex::TicketMutex;
use types::Pa;
use vm::{Line, Reply, Terminal, Typed};

/// The counter-timer, which counts from power-on at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemCounter;

impl Clock for SystemCounter {
    fn ticks(&self) -> u64 {
        use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
        CNTPCT_EL0.get()
    }

    fn frequency(&self) -> u64 {
        use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
        CNTFRQ_EL0.get()
    }
}

/// The UART and who has it.
struct Shared {
    uart: Option<Uart<'static>>,
    /// What all that goes to the UART passes, but the last words.
    guard: Guard,
    terminal: Terminal,
}

/// A fair lock: a guest that prints without end must not keep the others from it.
static SHARED: TicketMutex<Shared> = TicketMutex::new(Shared {
    uart: None,
    guard: Guard::new(),
    terminal: Terminal::new(),
});

/// Where the UART is, for the panic path, which may not wait for the lock.
static BASE: spin::Once<Pa> = spin::Once::new();

/// The machine's console. Silent until [`start`] has named a UART.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pl011;

impl Console for Pl011 {
    fn write(&self, bytes: &[u8]) {
        with(|terminal, mut out| terminal.log(bytes, &mut out));
    }

    fn read(&self) -> Option<u8> {
        SHARED.lock().uart.as_mut()?.read_word().ok().flatten()
    }
}

/// Does something with the terminal.
fn with<R>(what: impl FnOnce(&mut Terminal, &mut dyn FnMut(&[u8])) -> R) -> R {
    let shared = &mut *SHARED.lock();
    let Shared {
        uart,
        guard,
        terminal,
    } = shared;
    what(terminal, &mut |bytes| {
        if let Some(uart) = uart {
            bytes
                .iter()
                .for_each(|byte| write_byte(uart, guard.pass(*byte)));
        }
    })
}

/// Adds a VM to the terminal. They are numbered in this order.
pub(crate) fn add_vm(name: &str, line: Line) {
    SHARED.lock().terminal.add(name, line);
}

/// A byte that a VM prints.
pub(crate) fn guest(vm: usize, byte: u8) {
    let now = SystemCounter.ticks() / (SystemCounter.frequency() / 1_000_000).max(1);
    with(|terminal, mut out| terminal.guest(vm, byte, now, &mut out));
}

/// A VM has ended.
pub(crate) fn vm_ended(vm: usize) {
    with(|terminal, mut out| terminal.ended(vm, &mut out));
}

/// The next byte that somebody typed, and what it means.
pub(crate) fn typed() -> Option<Typed> {
    let byte = Pl011.read()?;
    Some(with(|terminal, mut out| terminal.typed(byte, &mut out)))
}

/// The monitor's answer.
pub(crate) fn reply(reply: &Reply) {
    with(|terminal, mut out| terminal.reply(reply, &mut out));
}

/// Gives the keyboard to the monitor.
pub(crate) fn open_monitor() {
    with(|terminal, mut out| terminal.open_monitor(&mut out));
}

/// Whether the keyboard is the monitor's.
pub(crate) fn in_monitor() -> bool {
    SHARED.lock().terminal.in_monitor()
}

/// Takes the console from everybody for good, for the last words: nothing is printed between them, and
/// nothing after them. They begin a line.
///
/// Its holder may be who failed, so it is not waited for without end.
pub(crate) fn close() {
    /// More than the longest line takes at 115,200 baud.
    const LOOKS: u32 = 10_000_000;
    static CLOSED: AtomicBool = AtomicBool::new(false);
    if CLOSED.load(Ordering::Relaxed) {
        return;
    }
    for _ in 0..LOOKS {
        let Some(mut shared) = SHARED.try_lock() else {
            core::hint::spin_loop();
            continue;
        };
        CLOSED.store(true, Ordering::Relaxed);
        if !shared.guard.is_at_start()
            && let Some(uart) = &mut shared.uart
        {
            write(uart, b"\n");
        }
        core::mem::forget(shared);
        return;
    }
    let _ = core::fmt::Write::write_str(&mut LastWords::new(), "\n");
}

/// Lets typed bytes interrupt.
pub(crate) fn enable_input() {
    if let Some(uart) = SHARED.lock().uart.as_mut() {
        uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
    }
}

fn write(uart: &mut Uart<'_>, bytes: &[u8]) {
    for &byte in bytes {
        if byte == b'\n' {
            write_byte(uart, b'\r');
        }
        write_byte(uart, byte);
    }
}

/// Sends a byte.
pub(crate) fn write_byte(uart: &mut Uart<'_>, byte: u8) {
    /// A byte takes 87 us at 115,200 baud; a FIFO that is still full after a million looks has
    /// nobody draining it, and losing the byte beats hanging the machine.
    const LOOKS: u32 = 1_000_000;
    for _ in 0..LOOKS {
        if !uart.is_tx_fifo_full() {
            return uart.write_word(byte);
        }
    }
}

/// Makes the UART at `base` the console.
///
/// # Safety
/// `base` must be a PL011, reachable at its physical address (mapped as device memory, or MMU off),
/// and nobody else may drive it.
pub(crate) unsafe fn start(base: Pa) {
    // SAFETY: the caller promises a PL011 of ours there.
    let uart = unsafe { open(base) };
    SHARED.lock().uart = uart;
    BASE.call_once(|| base);
}

/// Makes a PL011 ours.
///
/// # Safety
/// As [`start`].
pub(crate) unsafe fn open(base: Pa) -> Option<Uart<'static>> {
    let registers = core::ptr::with_exposed_provenance_mut::<PL011Registers>(address(base));
    let registers = NonNull::new(registers)?;
    // SAFETY: the caller promises that the registers are there and ours.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    Some(Uart::new(registers))
}

#[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
fn address(pa: Pa) -> usize {
    pa.bits() as usize
}

/// A console for the last words: ignores the lock, because its holder will not run again.
pub(crate) struct LastWords(Option<Uart<'static>>);

impl LastWords {
    /// Takes the console away from whoever has it.
    pub(crate) fn new() -> Self {
        // SAFETY: `start` was promised this UART; the other users never run again after a panic,
        // and at worst their byte is lost.
        Self(BASE.get().and_then(|base| unsafe { open(*base) }))
    }

    /// Speaks through the UART at `base` before there is a map.
    ///
    /// # Safety
    /// As [`start`], with the MMU off.
    pub(crate) unsafe fn at(base: Pa) -> Self {
        // SAFETY: passed on to the caller.
        Self(unsafe { open(base) })
    }
}

impl core::fmt::Write for LastWords {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        if let Some(uart) = &mut self.0 {
            write(uart, text.as_bytes());
        }
        Ok(())
    }
}

/// The PL011 that `/chosen/stdout-path` names, found without a heap.
pub(crate) fn find(fdt: Fdt<'_>) -> Option<Pa> {
    let chosen = fdt.chosen()?;
    let path = chosen.stdout_path().ok()??;
    let path = path.split(':').next()?;
    let alias = fdt.find_node("/aliases");
    let path = match &alias {
        Some(aliases) if !path.starts_with('/') => {
            use dtoolkit::{Node, Property};
            aliases.property(path)?.value_as::<&str>().ok()?
        }
        _ => path,
    };
    let node = fdt.find_node(path)?;
    if !node.is_compatible("arm,pl011") {
        return None;
    }
    let reg = node.reg().ok()??.next()?;
    Pa::new(reg.address().ok()?).ok()
}
