//! The terminal, written to.

use core::fmt;

use crate::hcall::{PUT_TERM_CHAR, call};

/// The console. A call takes up to 16 bytes, which go out at once.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(16) {
            let mut block = [0; 16];
            block[..chunk.len()].copy_from_slice(chunk);
            let value = u128::from_be_bytes(block);
            let halves = [(value >> 64) as u64, value as u64];
            call(PUT_TERM_CHAR, [0, chunk.len() as u64, halves[0], halves[1]]);
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
