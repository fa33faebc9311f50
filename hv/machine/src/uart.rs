//! Consoles, and the clock that knows the time of day.

use core::fmt;

use types::{Pa, Span};

use crate::{
    Error, Interrupt, NodePath, Problem,
    bus::{first_register, reg},
    interrupts::interrupts,
    tree::Node,
};

/// A serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    /// What it is, and where.
    pub kind: UartKind,
    /// Its interrupt.
    pub interrupt: Option<Interrupt>,
    /// Where it is in the tree.
    pub path: NodePath,
}

/// Kinds of serial ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm's PL011 [DDI 0183].
    Pl011(Span<Pa>),
    /// A 16550 or one that is like it.
    Ns16550 {
        /// Its registers.
        registers: Span<Pa>,
        /// Log2 of the distance between registers.
        shift: u32,
        /// Bytes of an access.
        width: u32,
    },
    /// PAPR's virtual terminal, by hcall.
    Hvterm {
        /// The unit address to name it by.
        unit: u64,
    },
}

impl fmt::Display for UartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pl011(registers) => write!(f, "PL011 at {registers}"),
            Self::Ns16550 {
                registers,
                shift,
                width,
            } => write!(
                f,
                "16550 at {registers}, shift {shift}, {width}-byte access"
            ),
            Self::Hvterm { unit } => write!(f, "virtual terminal, unit {unit:#x}"),
        }
    }
}

/// Arm's PL031 real-time clock [DDI 0224].
pub(crate) fn clock(node: Node<'_, '_>) -> Result<Option<Span<Pa>>, Error> {
    node.is_compatible("arm,pl031")
        .then(|| first_register(node))
        .transpose()
}

const NS16550: [&str; 4] = ["ns16550a", "ns16550", "snps,dw-apb-uart", "ns8250"];

pub(crate) fn uart(node: Node<'_, '_>) -> Result<Option<Uart>, Error> {
    let Some(kind) = kind(node)? else {
        return Ok(None);
    };
    Ok(Some(Uart {
        kind,
        interrupt: interrupts(node)?.first().copied().flatten(),
        path: node.path(),
    }))
}

pub(crate) fn kind(node: Node<'_, '_>) -> Result<Option<UartKind>, Error> {
    if node.is_compatible("arm,pl011") || node.is_compatible("arm,sbsa-uart") {
        return Ok(Some(UartKind::Pl011(first_register(node)?)));
    }
    if NS16550.iter().any(|uart| node.is_compatible(uart)) {
        return Ok(Some(UartKind::Ns16550 {
            registers: first_register(node)?,
            shift: node.u32("reg-shift")?.unwrap_or(0),
            width: node.u32("reg-io-width")?.unwrap_or(1),
        }));
    }
    if node.is_compatible("hvterm1") {
        let (unit, _) = reg(node)?
            .first()
            .copied()
            .ok_or_else(|| node.error("reg", Problem::Missing))?;
        return Ok(Some(UartKind::Hvterm { unit }));
    }
    Ok(None)
}
