//! Errors that the guest injects into its own PE: what is stopped, what comes back when, and whose PEs are
//! none of its business.

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::pci::{MASTER, MEMORY};
use power_guests::{cpu, println, rtas, tce, wait};

use crate::linger::{FROM, RIGHTS, TO};
use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

const OPEN: u32 = 0x2040;
const INJECT: u32 = 0x2041;
const CLOSE: u32 = 0x2042;
const BUS: u32 = 7;
const BUS_64: u32 = 15;
const SET_OPTION: u32 = 0x2020;
const READ_STATE: u32 = 0x2022;
const SET_RESET: u32 = 0x2023;
const ERROR_DETAIL: u32 = 0x2025;
/// Where logs go: lists are here, too.
const LOG: u64 = LIST;
/// The head of a log: version 6, an error, by PCI, of the platform; 168 bytes follow.
const HEAD: u64 = 0x0694_20e0_0000_00a8;
/// What its name ends with.
const BLANKS: u64 = u64::from_be_bytes([b' '; 8]);
/// How long a DMA that must not arrive is waited for, in microseconds.
const QUIET_US: u64 = 150_000;

struct Pe {
    edu: Edu,
    token: u32,
}

fn cells(at: u64, cells: &[u32]) {
    for (at, pair) in (at..).step_by(8).zip(cells.chunks(2)) {
        let [high, low] = [pair[0], pair.get(1).copied().unwrap_or(0)];
        memory::write(at, (u64::from(high) << 32 | u64::from(low)).to_be());
    }
}

impl Pe {
    fn service(&self, token: u32, more: &[u32]) -> i32 {
        let [at, high, low] = self.edu.function.name();
        let mut all = [at, high, low, 0, 0, 0, 0, 0];
        all[3..3 + more.len()].copy_from_slice(more);
        let [status] = rtas::service(0, token, &all[..3 + more.len()]);
        status
    }

    fn state(&self) -> i32 {
        let [at, high, low] = self.edu.function.name();
        let [status, state, _, _] = rtas::service(0, READ_STATE, &[at, high, low]);
        if status == 0 { state } else { status }
    }

    fn inject(&self, kind: u32, [at, high, low]: [u32; 3], function: u32) -> i32 {
        match kind {
            BUS_64 => cells(LIST, &[0, 0, 0, 0, at, high, low, function]),
            _ => cells(LIST, &[0, 0, at, high, low, function]),
        }
        let [status] = rtas::service(0, INJECT, &[kind, self.token, LIST as u32]);
        status
    }

    /// Asks for a log of at most `room` bytes: the status, and the log's first two words.
    fn log(&self, room: u32, severity: u32) -> (i32, [u64; 2]) {
        memory::zero(LOG, 0x1000);
        let status = self.service(ERROR_DETAIL, &[0, 0, LOG as u32, room, severity]);
        let words = [LOG, LOG + 168].map(|at| u64::from_be(memory::read(at)));
        (status, words)
    }

    /// Whether what the device writes arrives.
    fn dma_arrives(&self) -> bool {
        memory::zero(TARGET, BUFFER);
        self.edu.start(Direction::Write, TO, 0, BUFFER);
        wait::until(cpu::now() + cpu::ticks(QUIET_US));
        let came = (0..BUFFER)
            .step_by(8)
            .any(|at| memory::read(TARGET + at) != 0);
        came && memory::differ(SOURCE, TARGET, BUFFER).is_none()
    }
}

pub(crate) fn run(edu: Edu, bridge: u64) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    memory::fill(SOURCE, BUFFER, 5);
    for (at, page) in [(FROM, SOURCE), (TO, TARGET)] {
        if tce::put(window, at, page | RIGHTS) != 0 {
            return fail("an entry is refused", [at, 0]);
        }
    }
    edu.dma(Direction::Read, FROM, 0, BUFFER);
    let Some(source) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    let own = edu.function.name();
    let [closed] = rtas::service(0, INJECT, &[BUS, 1, LIST as u32]);
    let [token, open] = rtas::service::<2>(0, OPEN, &[]);
    let [_, again] = rtas::service::<2>(0, OPEN, &[]);
    let pe = Pe {
        edu,
        token: token.cast_unsigned(),
    };
    if closed != -4 || open != 0 || again != -4 || pe.service(SET_OPTION, &[1]) != 0 {
        return fail("errors cannot be injected", [closed as u64, open as u64]);
    }
    // Others' PEs, what is no PE, no function, no kind, no memory, no token.
    let [at, high, low] = own;
    for (what, status) in [
        ("a neighbour's PE", pe.inject(BUS, [at, high, low ^ 3], 0)),
        ("no host bridge", pe.inject(BUS, [at, high, low + 9], 0)),
        ("no device", pe.inject(BUS, [at | 0x7000, high, low], 0)),
        ("no function", pe.inject(BUS, own, 20)),
        ("no kind", pe.inject(6, own, 0)),
        (
            "no memory",
            rtas::service::<1>(0, INJECT, &[BUS, pe.token, u32::MAX - 8])[0],
        ),
    ] {
        if status != -3 {
            return fail(what, [status as u64, 0]);
        }
    }
    let [stale] = rtas::service(0, INJECT, &[BUS, pe.token + 1, LIST as u32]);
    if stale != -4 || pe.state() != 0 || !edu.answers() || !pe.dma_arrives() {
        return fail(
            "something that it may not has stopped it",
            [stale as u64, pe.state() as u64],
        );
    }
    let mut errors = 0;
    for (kind, function) in [(BUS, 0), (BUS_64, 6), (BUS, 19), (BUS_64, 12)] {
        // In the middle of a DMA.
        memory::zero(TARGET, BUFFER);
        edu.start(Direction::Write, TO, 0, BUFFER);
        if pe.inject(kind, own, function) != 0 || pe.state() != 2 {
            return fail("the PE is not stopped", [pe.state() as u64, kind.into()]);
        }
        errors += 1;
        // A log as long as it is stopped, as far as there is room for it in memory.
        let logs = pe.log(2048, 1) == (0, [HEAD, BLANKS])
            && pe.log(8, 1) == (0, [HEAD, 0])
            && pe.log(0, 1) == (0, [0, 0])
            && pe.service(ERROR_DETAIL, &[0, 0, u32::MAX - 8, 2048, 1]) == -3
            && pe.state() == 2;
        if !logs {
            return fail("there is no log of an error", [pe.state() as u64, errors]);
        }
        if pe.inject(kind, own, function) != -1 {
            return fail("a PE that is stopped has another error", [errors, 0]);
        }
        if edu.identity() != u32::MAX || edu.function.read(0, 4) != (0, u32::MAX) {
            return fail("what is stopped answers", [edu.identity().into(), 0]);
        }
        let before = wait::came(source);
        edu.raise();
        wait::until(cpu::now() + cpu::ticks(QUIET_US));
        if (0..BUFFER)
            .step_by(8)
            .any(|at| memory::read(TARGET + at) != 0)
        {
            return fail("a DMA got through to memory", [errors, 0]);
        }
        if wait::came(source) != before {
            return fail("a message got through", [errors, 0]);
        }
        // Registers, then DMA.
        if pe.service(SET_OPTION, &[3]) != -7
            || pe.service(SET_RESET, &[0]) != -7
            || pe.service(SET_OPTION, &[2]) != 0
            || pe.state() != 4
        {
            return fail("registers do not come back", [pe.state() as u64, errors]);
        }
        edu.function.write(4, 2, MEMORY | MASTER);
        if !edu.answers() || pe.dma_arrives() {
            return fail(
                "DMA is not stopped, or registers are",
                [edu.identity().into(), 0],
            );
        }
        if pe.service(SET_OPTION, &[3]) != 0 || pe.state() != 0 || !pe.dma_arrives() {
            return fail("DMA does not come back", [pe.state() as u64, errors]);
        }
    }
    // A reset is the other way.
    let none = pe.log(2048, 1);
    if none != (1, [0, 0]) {
        return fail("there is a log of no error", [none.0 as u64, none.1[0]]);
    }
    let reset = pe.inject(BUS, own, 1) == 0
        && pe.service(SET_RESET, &[1]) == 0
        && pe.state() == 1
        && pe.service(SET_RESET, &[3]) == 0
        && pe.service(SET_OPTION, &[2]) == -7
        && edu.identity() == u32::MAX
        && pe.service(SET_RESET, &[0]) == 0
        && pe.state() == 0;
    edu.function.write(4, 2, MEMORY | MASTER);
    if !reset || !edu.answers() || !pe.dma_arrives() {
        return fail("a reset does not bring it back", [pe.state() as u64, 0]);
    }
    let [wrong] = rtas::service(0, CLOSE, &[pe.token + 1]);
    let [closed] = rtas::service(0, CLOSE, &[pe.token]);
    if wrong != -4 || closed != 0 || pe.inject(BUS, own, 0) != -4 {
        return fail("it does not close", [wrong as u64, closed as u64]);
    }
    // What the guest calls permanent.
    let gone = pe.log(2048, 2).0 == 1
        && pe.state() == 5
        && edu.identity() == u32::MAX
        && pe.service(SET_RESET, &[1]) == -7
        && pe.log(2048, 1) == (0, [HEAD, BLANKS]);
    if !gone {
        return fail("a permanent error is none", [pe.state() as u64, 0]);
    }
    println!("dma verdict: error ok: errors={}", errors + 1);
    Ok(())
}
