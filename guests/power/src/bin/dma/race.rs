//! A guest whose second CPU writes lists of entries into a window without a pause, while the first removes the
//! window with a DMA to it under way, until the guest is stopped. What was in a window when it went is nowhere after.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::tce;
use power_guests::{cpu, println, rtas};

use crate::linger::{COUNT, RIGHTS};
use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

/// Windows of pages of 4 KiB, with so many entries as log2: more than one call of a service clears.
const ENTRIES: u32 = 13;
/// Lists go to the first entries; the last one is the DMA's.
const LISTS: u64 = 12;
const LAST: u64 = ((1 << ENTRIES) - 1) << 12;
/// Every so many turns the window stays until the DMA has arrived.
const STAYS: u64 = 5;
/// `H_PARAMETER`.
const PARAMETER: i64 = -4;
/// How long lists must have come through, and how long that is waited for, in microseconds.
const LISTS_US: u64 = 1_000_000;

/// The window that the second CPU writes to, and its first bus address; no window is 0.
static WINDOW: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
/// Lists that were written; that came too late, since the window was gone.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static LATE: AtomicU64 = AtomicU64::new(0);
/// Turns of the second CPU, with a list or without a window.
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// A status that no list may have.
static STRANGE: AtomicI64 = AtomicI64::new(0);

pub(crate) fn run(edu: Edu, bridge: u64) -> Result<(), Failure> {
    if edu.is_busy() {
        return fail("the device still does what an earlier life told it", [0, 0]);
    }
    let default = tce::default_window(bridge);
    let entry = tce::get(default, 0);
    if entry != Ok(0) {
        return fail(
            "the default window is not as at first",
            [entry.unwrap_or(u64::MAX), 0],
        );
    }
    for entry in 0..COUNT {
        let tce = (SOURCE + ((entry * 7 % 16) << 12)) | RIGHTS;
        memory::write(LIST + entry * 8, tce.to_be());
    }
    if rtas::start_second(0) != 0 {
        return fail("the second CPU does not start", [0, 0]);
    }
    let mut before = 0_u64;
    for turn in 0_u64.. {
        before += u64::from(one(edu, turn)?);
        if turn % STAYS == STAYS - 1 {
            let [written, late] = [&WRITTEN, &LATE].map(|count| count.load(Ordering::Relaxed));
            println!(
                "dma race: {before} windows went before their DMA, {written} lists in time, {late} too late"
            );
        }
    }
    Ok(())
}

/// Makes a window, has a DMA go there and lists written, and removes it; whether that was before the DMA.
fn one(edu: Edu, turn: u64) -> Result<bool, Failure> {
    let stays = turn.is_multiple_of(STAYS);
    let (liobn, base) = match tce::create_window(edu.function, 12, 12 + ENTRIES) {
        Ok(made) => made,
        Err(status) => return fail("no window", [turn, status as u64]),
    };
    // Nothing of the window before, which had the same place.
    for at in (0..1 << ENTRIES).step_by(61).chain([(1 << ENTRIES) - 1]) {
        match tce::get(liobn, base + (at << 12)) {
            Ok(0) => {}
            found => {
                return fail("a new window is not empty", [at, found.unwrap_or(u64::MAX)]);
            }
        }
    }
    memory::fill(SOURCE, BUFFER, turn);
    memory::zero(TARGET, BUFFER);
    if tce::put(liobn, base + LAST, SOURCE | RIGHTS) != 0 {
        return fail("an entry is refused", [turn, 0]);
    }
    edu.dma(Direction::Read, base + LAST, 0, BUFFER);
    if tce::put(liobn, base + LAST, TARGET | RIGHTS) != 0 {
        return fail("an exchange is refused", [turn, 0]);
    }
    BASE.store(base, Ordering::SeqCst);
    WINDOW.store(liobn, Ordering::SeqCst);
    let before = WRITTEN.load(Ordering::SeqCst);
    let end = cpu::now() + cpu::ticks(LISTS_US);
    while WRITTEN.load(Ordering::SeqCst) < before + LISTS / 2 {
        if cpu::now() > end {
            return fail("no lists are written", [turn, before]);
        }
    }
    edu.start(Direction::Write, base + LAST, 0, BUFFER);
    if stays {
        // The control: such a DMA arrives when it is let be.
        edu.wait();
        if let Some(at) = memory::differ(SOURCE, TARGET, BUFFER) {
            return fail("DMA does not bring what is mapped", [at, turn]);
        }
    }
    let removed = tce::remove_window(liobn);
    if removed != 0 {
        return fail("a window does not go", [turn, removed as u64]);
    }
    if tce::get(liobn, base) != Err(PARAMETER) || tce::put(liobn, base, 0) != PARAMETER {
        return fail("a window that went answers", [turn, liobn]);
    }
    // With the CPUs busy elsewhere the DMA may have been faster: then it has arrived.
    let before = !stays && edu.is_busy();
    if before {
        if turn.is_multiple_of(2) {
            // A window in the same place: the DMA finds it, and no entry.
            let made = tce::create_window(edu.function, 12, 12 + ENTRIES);
            if made != Ok((liobn, base)) {
                return fail("no such window again", [turn, 0]);
            }
        }
        edu.wait();
        let arrived = (0..BUFFER)
            .step_by(8)
            .find(|at| memory::read(TARGET + at) != 0);
        if let Some(at) = arrived {
            return fail("DMA arrives through a window that went", [at, turn]);
        }
        if turn.is_multiple_of(2) && tce::remove_window(liobn) != 0 {
            return fail("the second window does not go", [turn, 0]);
        }
    }
    rest(turn)?;
    match STRANGE.load(Ordering::SeqCst) {
        0 => Ok(before),
        status => fail(
            "a list has a strange status",
            [turn, status.cast_unsigned()],
        ),
    }
}

/// Returns when the second CPU writes no lists any more.
fn rest(turn: u64) -> Result<(), Failure> {
    WINDOW.store(0, Ordering::SeqCst);
    let rounds = ROUNDS.load(Ordering::SeqCst);
    let end = cpu::now() + cpu::ticks(LISTS_US);
    while ROUNDS.load(Ordering::SeqCst) < rounds + 2 {
        if cpu::now() > end {
            return fail("the second CPU does not rest", [turn, rounds]);
        }
    }
    Ok(())
}

/// The second CPU.
pub(crate) fn lists() -> ! {
    loop {
        let round = ROUNDS.fetch_add(1, Ordering::SeqCst);
        let window = WINDOW.load(Ordering::SeqCst);
        if window == 0 {
            continue;
        }
        let at = BASE.load(Ordering::SeqCst) + (((round % LISTS) * COUNT) << 12);
        let counter = match tce::put_list(window, at, LIST, COUNT) {
            0 => &WRITTEN,
            PARAMETER => &LATE,
            status => {
                STRANGE.store(status, Ordering::SeqCst);
                &LATE
            }
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}
