//! A guest's run-time services: a few instructions in its memory that make a hypercall, and what is
//! done then.

use hal::{FrameAllocator, PhysMemory};

use super::memory::{GuestMemory, Outside};
use crate::rtas::Rtas;

/// Where the instructions are, below 4 GiB.
pub(crate) const BASE: u32 = 0x0f00_0000;
/// What is set apart for them.
pub(crate) const BYTES: u32 = 0x1_0000;

/// Big-endian: the block's address moves from r3 to r4, the call's number into r3, `sc 1`, back.
pub(crate) const CODE: [u32; 5] = [
    0x7c64_1b78, // mr   r4,r3
    0x3c60_0000, // lis  r3,0
    0x6063_f000, // ori  r3,r3,0xf000
    0x4400_0022, // sc   1
    0x4e80_0020, // blr
];

const TIME_OF_DAY: u32 = 0x2001;
const POWER_OFF: u32 = 0x2003;
const REBOOT: u32 = 0x2004;

/// The service that needs a clock of the platform's.
pub(crate) const CLOCK_TOKEN: (&str, u32) = ("get-time-of-day", TIME_OF_DAY);
/// Services and their tokens, for the device tree.
pub(crate) const TOKENS: &[(&str, u32)] = &[("power-off", POWER_OFF), ("system-reboot", REBOOT)];

/// The status of a call that is not there. [LoPAPR §7.2.8]
const NOT_SUPPORTED: i32 = -3;
/// The status of a call that the platform refused.
const HARDWARE: i32 = -1;

/// The most arguments and results that a call may name.
const MOST: u32 = 16;

/// What a call asks of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing beyond its answer.
    Done,
    /// To be turned off.
    PowerOff,
    /// To be started anew.
    Reboot,
}

/// Serves the call whose block is at `block`.
///
/// # Errors
/// [`Outside`] when the block is not in the guest's memory; what it holds is unchanged, or its
/// results are written in part.
pub(crate) fn call<M, F>(
    memory: &GuestMemory<'_, M, F>,
    block: u64,
    services: Option<&Rtas>,
) -> Result<Effect, Outside>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    let token = memory.read_cell(block)?;
    let arguments = memory.read_cell(block.wrapping_add(4))?;
    let results = memory.read_cell(block.wrapping_add(8))?;
    match token {
        POWER_OFF => return Ok(Effect::PowerOff),
        REBOOT => return Ok(Effect::Reboot),
        _ => {}
    }
    if arguments > MOST || !(1..=MOST).contains(&results) {
        return Ok(Effect::Done);
    }
    let mut answer = [0; 8];
    let mut status = NOT_SUPPORTED;
    let mut given = 0;
    if let (TIME_OF_DAY, 0, 8, Some(services)) = (token, arguments, results, services) {
        match services.time_of_day() {
            Ok(time) => {
                answer[..time.len()].copy_from_slice(&time);
                given = time.len();
                status = 0;
            }
            Err(_) => status = HARDWARE,
        }
    }
    let at = block.wrapping_add(12 + 4 * u64::from(arguments));
    memory.write_cell(at, status.cast_unsigned())?;
    for (at, value) in (at.wrapping_add(4)..).step_by(4).zip(&answer[..given]) {
        memory.write_cell(at, *value)?;
    }
    Ok(Effect::Done)
}
