//! What the tool says: results on standard output, which may be a file on a full disk or a pipe that nobody reads
//! any more, and messages on standard error. Neither makes it panic: it would end as if it were faulty itself.

use std::fmt;
use std::io::{self, Write};
use std::process;

/// A line on standard output.
macro_rules! show {
    ($($arg:tt)*) => { $crate::output::line(format_args!($($arg)*)) };
}
pub(crate) use show;

/// Says what the tool does, on standard error: standard output belongs to the guest's console.
macro_rules! say {
    ($($arg:tt)*) => { $crate::output::message(format_args!("xtask: {}", format_args!($($arg)*))) };
}
pub(crate) use say;

/// Writes a line on standard output.
pub(crate) fn line(line: fmt::Arguments<'_>) {
    wanted(writeln!(io::stdout(), "{line}"));
}

/// Writes a text on standard output.
pub(crate) fn text(text: &str) {
    let mut stdout = io::stdout().lock();
    wanted(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// Writes a line on standard error. Where it goes nowhere, nobody is left to be told.
pub(crate) fn message(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Ends the tool with status 1 when what it was asked for cannot be written. What it has started ends with it.
#[expect(
    clippy::exit,
    reason = "any thread may find out, and no other has anything to finish"
)]
fn wanted(result: io::Result<()>) {
    if let Err(error) = result {
        message(format_args!(
            "xtask: error: cannot write the output: {error}"
        ));
        process::exit(1);
    }
}
