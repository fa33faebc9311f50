//! DMA windows, as the platform keeps them: closed before any device is looked at.

use machine::DmaWindow;

use crate::hcall::{self, Hcall, SUCCESS};

/// The page size of a default window. [LoPAPR §14.5.4.2]
const PAGE_SHIFT: u32 = 12;
/// Entries cleared by one call, so that no call is long.
const RUN: u64 = 1 << 18;

/// Why a window may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("H_STUFF_TCE at {address:#x} answers {status}")]
    Stuff { address: u64, status: i64 },
    #[error("H_GET_TCE at {address:#x} answers {status}")]
    Get { address: u64, status: i64 },
    #[error("the entry of {address:#x} is {entry:#x} after it was cleared")]
    Open { address: u64, entry: u64 },
}

/// Clears every entry of a window, and looks at the first and the last. Gives the number of
/// entries.
pub(crate) fn close(window: &DmaWindow) -> Result<u64, Error> {
    let entries = window.bytes >> PAGE_SHIFT;
    let liobn = u64::from(window.liobn.bits());
    let mut done = 0;
    while done < entries {
        let run = RUN.min(entries - done);
        let address = window.base + (done << PAGE_SHIFT);
        // SAFETY: takes memory away from devices and gives none.
        let outcome = unsafe { hcall::call(Hcall::StuffTce, [liobn, address, 0, run]) };
        if outcome.status != SUCCESS {
            let status = outcome.status;
            return Err(Error::Stuff { address, status });
        }
        done += run;
    }
    let last = entries.checked_sub(1);
    for index in last.into_iter().chain(last.map(|_| 0)) {
        let address = window.base + (index << PAGE_SHIFT);
        // SAFETY: reads.
        let outcome = unsafe { hcall::call(Hcall::GetTce, [liobn, address, 0, 0]) };
        let [entry, ..] = outcome.values;
        if outcome.status != SUCCESS {
            let status = outcome.status;
            return Err(Error::Get { address, status });
        }
        if entry != 0 {
            return Err(Error::Open { address, entry });
        }
    }
    Ok(entries)
}
