//! The console: a PL011 found by the device tree's `stdout-path`.

use core::ptr::NonNull;

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use boot::Guard;
use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use hal::{Clock, Console};
use types::Pa;
use vm::SharedTerminal;

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

/// The terminal's wire: the UART, once there is one.
pub(crate) struct Port {
    uart: Option<Uart<'static>>,
    /// What all that goes to the UART passes, but the last words.
    guard: Guard,
}

impl vm::Wire for Port {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(uart) = &mut self.uart {
            let bytes = bytes.iter();
            bytes.for_each(|byte| write_byte(uart, self.guard.pass(*byte)));
        }
    }

    fn read(&mut self) -> Option<u8> {
        self.uart.as_mut()?.read_word().ok().flatten()
    }

    fn is_at_start(&self) -> bool {
        self.guard.is_at_start()
    }
}

/// The terminal.
pub(crate) static TERMINAL: SharedTerminal<Port> = SharedTerminal::new(Port {
    uart: None,
    guard: Guard::new(),
});

/// Where the UART is, for the panic path, which may not wait for the lock.
static BASE: spin::Once<Pa> = spin::Once::new();

/// The machine's console. Silent until [`start`] has named a UART.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pl011;

impl Console for Pl011 {
    fn write(&self, bytes: &[u8]) {
        TERMINAL.log(bytes);
    }

    fn read(&self) -> Option<u8> {
        TERMINAL.with_wire(vm::Wire::read)
    }
}

/// A byte that a VM prints.
pub(crate) fn guest(vm: usize, byte: u8) {
    let now = SystemCounter.ticks() / (SystemCounter.frequency() / 1_000_000).max(1);
    TERMINAL.guest(vm, &[byte], now);
}

/// Takes the console from everybody for good: what is printed from now on are last words, which begin a
/// line.
pub(crate) fn close() {
    if TERMINAL.close(hal::relax) {
        let _ = core::fmt::Write::write_str(&mut LastWords::new(), "\n");
    }
}

/// Lets typed bytes interrupt.
pub(crate) fn enable_input() {
    TERMINAL.with_wire(|port| {
        if let Some(uart) = port.uart.as_mut() {
            uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
        }
    });
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
    TERMINAL.with_wire(|port| port.uart = uart);
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
