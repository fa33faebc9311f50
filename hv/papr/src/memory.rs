//! Calls that read and write the guest's memory for it.

use crate::{Environment, Status};

const PAGE: usize = 4096;

/// `H_PAGE_INIT`: clears a page, or copies one. [LoPAPR §14.5.4.2.4]
pub(crate) fn page_init([flags, to, from, _]: [u64; 4], env: &dyn Environment) -> Status {
    /// Flags are bits of a doubleword whose first is the most significant.
    const ZERO: u64 = 1 << (63 - 48);
    const COPY: u64 = 1 << (63 - 49);
    const INVALIDATE: u64 = 1 << (63 - 50);
    const SYNCHRONIZE: u64 = 1 << (63 - 51);
    let good = |at: u64| at.is_multiple_of(PAGE as u64) && env.is_memory(at, PAGE as u64);
    if flags & !(ZERO | COPY | INVALIDATE | SYNCHRONIZE) != 0 || !good(to) {
        return Status::PARAMETER;
    }
    let mut page = [0; PAGE];
    if flags & COPY != 0 {
        if !good(from) || env.read(from, &mut page).is_err() {
            return Status::PARAMETER;
        }
    } else if flags & ZERO == 0 {
        env.code_changed(to, PAGE as u64);
        return Status::SUCCESS;
    }
    if env.write(to, &page).is_err() {
        return Status::PARAMETER;
    }
    if flags & (INVALIDATE | SYNCHRONIZE) != 0 {
        env.code_changed(to, PAGE as u64);
    }
    Status::SUCCESS
}

/// The bytes of an access, when it is one of 1, 2, 4 or 8 that is aligned.
fn access(size: u64, at: u64) -> Option<usize> {
    match size {
        1 | 2 | 4 | 8 if at.is_multiple_of(size) => usize::try_from(size).ok(),
        _ => None,
    }
}

/// `H_LOGICAL_CI_LOAD`: big-endian, from memory: there are no device registers.
pub(crate) fn load([size, at, ..]: [u64; 4], env: &dyn Environment) -> Result<u64, Status> {
    let bytes = access(size, at).ok_or(Status::PARAMETER)?;
    let mut value = [0; 8];
    let (_, part) = value
        .split_at_checked(value.len().saturating_sub(bytes))
        .ok_or(Status::PARAMETER)?;
    let mut copy = [0; 8];
    let buffer = copy.get_mut(..part.len()).ok_or(Status::PARAMETER)?;
    env.read(at, buffer).map_err(|_| Status::PARAMETER)?;
    for (to, from) in value.iter_mut().rev().zip(buffer.iter().rev()) {
        *to = *from;
    }
    Ok(u64::from_be_bytes(value))
}

/// `H_LOGICAL_CI_STORE`.
pub(crate) fn store([size, at, value, _]: [u64; 4], env: &dyn Environment) -> Status {
    let Some(bytes) = access(size, at) else {
        return Status::PARAMETER;
    };
    let value = value.to_be_bytes();
    let low = value.get(value.len().saturating_sub(bytes)..);
    match low.map(|bytes| env.write(at, bytes)) {
        Some(Ok(())) => Status::SUCCESS,
        _ => Status::PARAMETER,
    }
}
