//! The guest's terminal. [LoPAPR §16.3]

use crate::{Environment, Status};

/// The unit address of a guest's terminal.
pub const TERMINAL: u32 = 0x7100_0000;

/// Whether a call that names `unit` means the terminal: of a guest without one, none does.
fn is(terminal: Option<u32>, unit: u64) -> bool {
    terminal.is_some_and(|terminal| unit == 0 || unit == u64::from(terminal))
}

/// The first character is the most significant byte of the first register.
pub(crate) fn put(
    terminal: Option<u32>,
    [unit, length, first, second]: [u64; 4],
    env: &dyn Environment,
) -> Status {
    let bytes = (u128::from(first) << 64 | u128::from(second)).to_be_bytes();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match bytes.get(..length) {
        Some(bytes) if is(terminal, unit) => {
            env.print(bytes);
            Status::SUCCESS
        }
        _ => Status::PARAMETER,
    }
}

/// How many characters there are, and the characters.
pub(crate) fn get(
    terminal: Option<u32>,
    unit: u64,
    env: &dyn Environment,
) -> Result<[u64; 3], Status> {
    if !is(terminal, unit) {
        return Err(Status::PARAMETER);
    }
    let mut block = [0; 16];
    let length = env.typed(&mut block).min(block.len());
    let value = u128::from_be_bytes(block);
    let half = |value: u128| u64::try_from(value & u128::from(u64::MAX)).unwrap_or(0);
    Ok([length as u64, half(value >> 64), half(value)])
}

/// `H_VIO_SIGNAL`: a terminal's interrupt is always on, and is turned off at its source.
pub(crate) fn signal(terminal: Option<u32>, unit: u64, mode: u64) -> Status {
    if is(terminal, unit) && mode == 0 {
        Status::SUCCESS
    } else {
        Status::PARAMETER
    }
}
