//! The PL011, written to.

use core::fmt;

use crate::{mmio, platform};

/// The console. Bytes go out at once; the UART is used as it is found.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const UARTDR: usize = 0x00;
        for byte in text.bytes() {
            mmio::write8(platform::UART + UARTDR, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the console cannot fail.
        let _ = writeln!($crate::console::Console, $($arg)*);
    }};
}
