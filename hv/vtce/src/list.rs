//! Several entries in a call: judged whole before anything is done, and taken back whole.

use iommu::{Backend, IoasId, Iommu};
use tce::Tce;

use crate::bridge::{GuestWindow, Scratch};
use crate::slot::{Place, Slots};
use crate::status::Status;

/// Entries of a list that are one thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    count: u64,
    first: Tce,
    /// Where they lead, page after page; `None` empties them.
    place: Option<Place>,
}

/// Judges a list: cuts it into pieces, each of which can be done by one mapping.
pub(crate) fn judge(
    scratch: &mut Scratch,
    window: &GuestWindow,
    slots: &Slots,
) -> Result<(), Status> {
    let page = window.page;
    scratch.pieces.clear();
    let mut slot = None;
    let mut open: Option<Piece> = None;
    // What the next entry must be to go on with the open piece.
    let mut next = Tce::EMPTY;
    // How many pages of its slot are behind it.
    let mut after = 0_u64;
    for tce in &scratch.list {
        if let Some(piece) = &mut open {
            let goes_on = match piece.place {
                // What follows a page of the slot is one too, as long as there are any.
                Some(_) => *tce == next && after > 0,
                None => tce.is_empty(),
            };
            if goes_on {
                piece.count = piece.count.saturating_add(1);
                after = after.saturating_sub(1);
                next = Tce::from_bits(next.bits().wrapping_add(page.bytes()));
                continue;
            }
        }
        let place = if tce.is_empty() {
            None
        } else {
            let known = slot.filter(|slot: &&crate::Slot| slot.place(*tce, page).is_some());
            let found = known.or_else(|| slots.find(*tce, page));
            slot = Some(found.ok_or(Status::PARAMETER)?);
            slot.and_then(|slot| slot.place(*tce, page))
        };
        if let Some(piece) = open.take() {
            push(&mut scratch.pieces, piece)?;
        }
        next = Tce::from_bits(tce.bits().wrapping_add(page.bytes()));
        after = slot.map_or(0, |slot| slot.pages_after(*tce, page));
        open = Some(Piece {
            count: 1,
            first: *tce,
            place,
        });
    }
    if let Some(piece) = open {
        push(&mut scratch.pieces, piece)?;
    }
    Ok(())
}

/// Never grows: a list has as many pieces as entries, for which there is room.
fn push(pieces: &mut alloc::vec::Vec<Piece>, piece: Piece) -> Result<(), Status> {
    if pieces.len() == pieces.capacity() {
        return Err(Status::RESOURCE);
    }
    pieces.push(piece);
    Ok(())
}

/// Does what was judged, from entry `index` on. After a failure every entry is as before; one that
/// cannot be restored is empty.
pub(crate) fn apply<B: Backend>(
    scratch: &mut Scratch,
    window: &mut GuestWindow,
    core: &mut Iommu<B>,
    ioas: IoasId,
    index: u64,
    slots: &Slots,
) -> Result<(), Status> {
    remember(scratch, window, index);
    let mut at = index;
    for piece in &scratch.pieces {
        let done = match piece.place {
            None => window.clear(core, ioas, at, piece.count),
            Some(place) => {
                let range = (at, piece.count);
                window.put(core, ioas, range, piece.first, place, slots)
            }
        };
        at = at.saturating_add(piece.count);
        if let Err(status) = done {
            restore(scratch, window, core, ioas, index, at, slots);
            return Err(status);
        }
    }
    Ok(())
}

fn remember(scratch: &mut Scratch, window: &GuestWindow, index: u64) {
    let count = u64::try_from(scratch.list.len()).unwrap_or(0);
    let end = index.saturating_add(count);
    scratch.old.clear();
    if window.entries.live_in(index, count).is_none() {
        // The usual case: everything was empty.
        return;
    }
    for at in index..end {
        if scratch.old.len() < scratch.old.capacity() {
            scratch.old.push(window.entries.get(at));
        }
    }
}

fn restore<B: Backend>(
    scratch: &Scratch,
    window: &mut GuestWindow,
    core: &mut Iommu<B>,
    ioas: IoasId,
    index: u64,
    end: u64,
    slots: &Slots,
) {
    if scratch.old.is_empty() {
        let _ = window.clear(core, ioas, index, end.saturating_sub(index));
        return;
    }
    for (at, old) in (index..end).zip(&scratch.old) {
        let now = window.entries.get(at);
        if now == *old {
            continue;
        }
        let restored = match slots.place(*old, window.page) {
            Some(place) => window.put(core, ioas, (at, 1), *old, place, slots),
            None => window.clear(core, ioas, at, 1),
        };
        if restored.is_err() {
            // Empty is the state in which nothing gets through.
            let _ = window.clear(core, ioas, at, 1);
        }
    }
}
