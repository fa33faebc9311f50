//! `devtool sums DISK`: reads a disk's first 4 MiB again and again, past the kernel's cache, until there is a file
//! `/tmp/stop`. A line for each time: the sum of what was read.

use core::time::Duration;

use devtool::blocks::{LONGEST, sum};

use crate::linux::{Arguments, File, Memory, Open, sleep};
use crate::sysfs::is_there;
use crate::{Failure, println};

const BYTES: u64 = 4 << 20;
/// Between two times, so that others get their turn.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs the command.
///
/// # Errors
/// The disk cannot be read.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let disk = arguments.get(2).ok_or(Failure::Usage)?;
    let file = File::open(&["/dev/", disk], Open::Direct);
    let file = file.map_err(|error| Failure::Call("open", error))?;
    let memory = Memory::new(LONGEST).map_err(|error| Failure::Call("memory", error))?;
    let piece = memory.into_slice();
    while !is_there(&["/tmp/stop"]) {
        let mut all = 0;
        for at in (0..BYTES).step_by(LONGEST) {
            let bytes = file.read_at(at, piece);
            let bytes = bytes.map_err(|error| Failure::Call("pread", error))?;
            if bytes != LONGEST {
                return Err(Failure::Differs("bytes read", bytes as u64, LONGEST as u64));
            }
            all = sum(piece, all);
        }
        println!("{all:016x}");
        sleep(PAUSE);
    }
    Ok(())
}
