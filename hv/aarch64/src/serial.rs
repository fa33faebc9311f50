//! Serial ports that VMs have for themselves, and the machine's real-time clock.

use arm_pl011_uart::{Interrupts, Uart};
use bundle::VmConfig;
use hal::Mutex;
use hal::{Clock, Mmio};
use machine::{Interrupt, Machine, UartKind};

use crate::console::{self, SystemCounter};
use crate::memory::Registers;
use crate::mmu::{Map, Use};

/// Why a VM cannot have its serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPort {
    /// The machine has only so many.
    TooFew(usize),
    /// The terminal is there.
    Console,
    /// Not one that can be driven.
    Kind,
    /// It cannot be mapped.
    Map,
}

impl core::fmt::Display for NoPort {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooFew(ports) => write!(f, "the machine has {ports} serial ports"),
            Self::Console => f.write_str("it is the console that is shared"),
            Self::Kind => f.write_str("it is not a PL011"),
            Self::Map => f.write_str("its registers cannot be mapped"),
        }
    }
}

/// A PL011 of the machine that is one VM's console.
pub(crate) struct Port {
    uart: Mutex<Uart<'static>>,
    interrupt: Option<Interrupt>,
}

impl Port {
    /// The port that a VM's manifest names; `None` when it shares the terminal.
    #[optimize(size)]
    pub(crate) fn of(
        config: &VmConfig,
        machine: &Machine,
        map: &mut Map,
    ) -> Result<Option<Self>, NoPort> {
        let Some(wanted) = config.console.serial else {
            return Ok(None);
        };
        let uart = usize::try_from(wanted)
            .ok()
            .and_then(|number| machine.uarts.get(number))
            .ok_or(NoPort::TooFew(machine.uarts.len()))?;
        if machine.stdout().is_some_and(|stdout| stdout == uart) {
            return Err(NoPort::Console);
        }
        let UartKind::Pl011(registers) = uart.kind else {
            return Err(NoPort::Kind);
        };
        map.identity(registers, Use::Device)
            .map_err(|_| NoPort::Map)?;
        // SAFETY: the tree says that a PL011 is there, and it is mapped. A port is one VM's, by the
        // rules of the manifest, and not the console.
        let uart = unsafe { console::open(registers.start()) }.ok_or(NoPort::Map)?;
        Ok(Some(Self {
            uart: Mutex::new(uart),
            interrupt: (machine.uarts.get(wanted as usize)).and_then(|uart| uart.interrupt),
        }))
    }

    /// A byte that the VM prints.
    pub(crate) fn write(&self, byte: u8) {
        console::write_byte(&mut self.uart.lock(), byte);
    }

    /// A byte that somebody typed.
    pub(crate) fn read(&self) -> Option<u8> {
        self.uart.lock().read_word().ok().flatten()
    }

    /// Lets typed bytes interrupt; the interrupt, if there is one.
    pub(crate) fn listen(&self) -> Option<Interrupt> {
        let inputs = Interrupts::RXI | Interrupts::RTI;
        self.uart.lock().set_interrupt_masks(inputs);
        self.interrupt
    }

    /// Whether an interrupt is this port's.
    pub(crate) fn is_from(&self, intid: u32) -> bool {
        self.interrupt
            .is_some_and(|interrupt| interrupt.number == intid)
    }
}

/// The seconds since 1970, by custom, at which the counter was 0; modulo 2^32. 0 on a machine without a
/// clock.
#[optimize(size)]
pub(crate) fn time_at_zero(machine: &Machine, map: &mut Map) -> u32 {
    /// `RTCDR`. [DDI 0224 §3.3.1]
    const DATA: usize = 0;
    let Some(span) = machine.clock else {
        return 0;
    };
    if map.identity(span, Use::Device).is_err() {
        return 0;
    }
    // SAFETY: the tree says that a PL031 is there, it is mapped, and nothing is written to it.
    let clock = unsafe { Registers::new(span) };
    let up = SystemCounter.ticks() / SystemCounter.frequency().max(1);
    #[expect(clippy::cast_possible_truncation, reason = "the clock has 32 bits")]
    clock.read32(DATA).wrapping_sub(up as u32)
}
