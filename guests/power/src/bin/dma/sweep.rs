//! Entries and DMA to everywhere: only the guest's own memory may be reached.
//!
//! The device says nothing about errors, so data tells. What was read from where nothing is mapped is
//! what the buffer held before, or zeroes or ones, which is how a refused read looks; what was written
//! there is nowhere. The neighbour (`watch`) sees what arrives in the memory of others.

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::options::Options;
use power_guests::println;
use power_guests::tce::{self, READ, WRITE};

use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

const RIGHTS: u64 = READ | WRITE;
/// Bus addresses of the two mappings that are always there.
const FROM: u64 = 0x3000;
const TO: u64 = 0x5000;
/// Where entries are tried.
const TRIED: u64 = 0x10_0000;
/// Bytes of one read.
const SLOT: u64 = 64;
const CANARY: u64 = 0x0c0f_fee0_0c0f_fee0;
const MARKER: u64 = u64::from_le_bytes(*b"!DMA!DMA");
/// Nobody's, or registers, or impossible, for a guest with less than 64 MiB.
const CHOSEN: [u64; 14] = [
    0x2000_0000_0000,
    0x2000_8000_0000,
    0x2001_0000_0000,
    0x2001_8000_0000,
    0x2100_0000_0000,
    0x2200_0000_0000,
    1 << 40,
    1 << 46,
    1 << 50,
    1 << 51,
    1 << 52,
    1 << 60,
    1 << 63,
    0xffff_ffff_ffff_f000,
];
/// Bus addresses without an entry.
const NOWHERE: [u64; 13] = [
    0,
    0x4000,
    0x3fff_f000,
    0x4000_0000,
    0x8000_0000,
    0xffff_f000,
    1 << 32,
    0x400_0001_0000,
    0x2000_8000_0000,
    1 << 59,
    (1 << 59) + FROM,
    1 << 60,
    0xffff_ffff_ffff_f000,
];

/// The device, the window it has, and where memory ends.
struct Attack {
    edu: Edu,
    window: u64,
    end: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    entries: u64,
    reads: u64,
    writes: u64,
}

fn put(window: u64, at: u64, tce: u64) -> Result<(), Failure> {
    match tce::put(window, at, tce) {
        0 => Ok(()),
        status => fail("an entry is refused", [tce, status.cast_unsigned()]),
    }
}

pub(crate) fn run(edu: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let end = options.memory();
    let top = options.number("top").unwrap_or(8 << 30);
    let attack = Attack {
        edu,
        window: tce::default_window(bridge),
        end,
    };
    memory::plant(end);
    memory::fill(SOURCE, 0x1_0000, 1);
    put(attack.window, FROM, SOURCE | RIGHTS)?;
    put(attack.window, TO, TARGET | RIGHTS)?;
    attack.control(FROM, TO)?;
    let mut count = Count::default();
    count.entries += attack.entries(top)?;
    count.entries += attack.calls()?;
    attack.control(FROM, TO)?;
    attack.nowhere(&mut count)?;
    attack.rights(&mut count)?;
    attack.windows(&mut count)?;
    attack.control(FROM, TO)?;
    if let Some(at) = memory::trampled(end) {
        return fail("memory has changed that nothing was mapped to", [at, 0]);
    }
    if let Some(at) = memory::changed(SOURCE, 0x1_0000, 1) {
        return fail("the source has changed", [at, 0]);
    }
    println!(
        "dma verdict: sweep ok: control={BUFFER} entries_refused={} reads_refused={} \
         writes_refused={}",
        count.entries, count.reads, count.writes
    );
    Ok(())
}

impl Attack {
    /// What is mapped is reached.
    fn control(&self, from: u64, to: u64) -> Result<(), Failure> {
        memory::zero(TARGET, BUFFER);
        self.edu.dma(Direction::Read, from, 0, BUFFER);
        self.edu.dma(Direction::Write, to, 0, BUFFER);
        match memory::differ(SOURCE, TARGET, BUFFER) {
            None => Ok(()),
            Some(at) => fail("DMA does not bring what is mapped", [at, to]),
        }
    }

    /// No page that is not whole the guest's can be mapped.
    fn entries(&self, top: u64) -> Result<u64, Failure> {
        const STEP: usize = 1 << 18;
        let steps = (self.end..top).step_by(STEP);
        let mut refused = 0;
        for address in steps.chain(CHOSEN) {
            for rights in [READ, RIGHTS] {
                refused += self.refuses(address | rights)?;
            }
        }
        // The last page is the guest's, and half a page is not one.
        put(self.window, TRIED, (self.end - 4096) | RIGHTS)?;
        put(self.window, TRIED, 0)?;
        for low in [4, 8, 0x10, 0x100, 0x800] {
            refused += self.refuses(SOURCE | low | RIGHTS)?;
        }
        Ok(refused)
    }

    fn refuses(&self, tce: u64) -> Result<u64, Failure> {
        if tce::put(self.window, TRIED, tce) == 0 {
            return fail(
                "an entry of a page that is not the guest's is taken",
                [tce, 0],
            );
        }
        match tce::get(self.window, TRIED) {
            Ok(0) => Ok(1),
            found => fail("a refused entry is there", [tce, found.unwrap_or(0)]),
        }
    }

    /// Calls that are wrong in another way.
    fn calls(&self) -> Result<u64, Failure> {
        let good = SOURCE | RIGHTS;
        memory::write(LIST, good.to_be());
        memory::write(LIST + 8, (self.end | RIGHTS).to_be());
        let window = self.window;
        let others = [
            tce::default_window(0),
            tce::default_window(2),
            window + 1,
            0,
            1 << 32 | window,
            u64::MAX,
        ];
        let mut refused = 0;
        for other in others {
            for status in [
                tce::put(other, TRIED, good),
                tce::put(other, TRIED, 0),
                tce::stuff(other, TRIED, 0, 1),
                tce::put_list(other, TRIED, LIST, 1),
                tce::get(other, TRIED).err().unwrap_or(0),
            ] {
                if status == 0 {
                    return fail("another's window is written or read", [other, 0]);
                }
                refused += 1;
            }
        }
        let wrong = [
            // A good entry before a bad one.
            tce::put_list(window, TRIED, LIST, 2),
            tce::put_list(window, TRIED, LIST, 0),
            tce::put_list(window, TRIED, LIST, 513),
            tce::put_list(window, TRIED, LIST + 8, 1),
            tce::put_list(window, TRIED, self.end, 1),
            tce::put_list(window, TRIED, 0x2001_0000_0000, 1),
            tce::put_list(window, 0x3fff_f000, LIST, 2),
            tce::put_list(window, TRIED, !4095, 1),
            tce::put(window, TRIED + 8, good),
            tce::put(window, 0x4000_0000, good),
            tce::put(window, 1 << 59, good),
            tce::stuff(window, TRIED, self.end | RIGHTS, 4),
            tce::stuff(window, TRIED, 0, 0),
            tce::stuff(window, 0x3fff_f000, 0, 2),
            tce::stuff(window, TRIED, 0, u64::MAX),
        ];
        for (at, status) in (0..).zip(wrong) {
            if status == 0 {
                return fail("a wrong call is done", [at, 0]);
            }
            refused += 1;
        }
        for at in 0..4 {
            if tce::get(window, TRIED + (at << 12)) != Ok(0) {
                return fail("a call that was refused has done something", [at, 0]);
            }
        }
        Ok(refused)
    }

    /// Nothing gets through where no entry is: addresses of memory as they are, others.
    fn nowhere(&self, count: &mut Count) -> Result<(), Failure> {
        let memory = (0..32).map(|step| step << 26 | 0x7000);
        let mut places = memory.chain(NOWHERE);
        loop {
            let mut tried = 0;
            self.load(CANARY)?;
            for place in places.by_ref().take((BUFFER / SLOT) as usize - 1) {
                self.edu.dma(Direction::Read, place, tried * SLOT, SLOT);
                tried += 1;
            }
            if tried == 0 {
                break;
            }
            self.look(tried)?;
            count.reads += tried;
        }
        self.load(MARKER)?;
        let memory = (0..32).map(|step| step << 26 | 0x7000);
        for place in memory.chain(NOWHERE) {
            self.edu.dma(Direction::Write, place, 0, SLOT);
            count.writes += 1;
        }
        Ok(())
    }

    /// Fills the buffer with a word.
    fn load(&self, word: u64) -> Result<(), Failure> {
        let page = TARGET + 0x2000;
        (page..page + BUFFER)
            .step_by(8)
            .for_each(|at| memory::write(at, word));
        put(self.window, TRIED, page | READ)?;
        self.edu.dma(Direction::Read, TRIED, 0, BUFFER);
        put(self.window, TRIED, 0)
    }

    /// What refused reads left in the first slots of the buffer, and that the rest is as it was.
    fn look(&self, slots: u64) -> Result<(), Failure> {
        let page = TARGET + 0x3000;
        memory::zero(page, BUFFER);
        put(self.window, TRIED, page | WRITE)?;
        self.edu.dma(Direction::Write, TRIED, 0, BUFFER);
        put(self.window, TRIED, 0)?;
        for at in (0..BUFFER).step_by(8) {
            let word = memory::read(page + at);
            let refused = word == CANARY || at < slots * SLOT && (word == 0 || word == u64::MAX);
            if !refused {
                return fail("a read brings something from nowhere", [at / SLOT, word]);
            }
        }
        Ok(())
    }

    /// An entry allows what it says, and nothing once it is empty; another page in its place at once.
    fn rights(&self, count: &mut Count) -> Result<(), Failure> {
        let page = TARGET + 0x1000;
        self.load(MARKER)?;
        memory::zero(page, BUFFER);
        put(self.window, TRIED, page | READ)?;
        self.edu.dma(Direction::Write, TRIED, 0, SLOT);
        put(self.window, TRIED, 0)?;
        self.edu.dma(Direction::Write, TRIED, 0, SLOT);
        if memory::read(page) != 0 {
            return fail(
                "a page is written that may be read only, or not at all",
                [page, 0],
            );
        }
        put(self.window, TRIED, page | WRITE)?;
        self.edu.dma(Direction::Write, TRIED, 0, SLOT);
        if memory::read(page) != MARKER {
            return fail(
                "a page is not written that may be",
                [page, memory::read(page)],
            );
        }
        let other = page + 0x1000;
        memory::zero(other, BUFFER);
        memory::zero(page, BUFFER);
        put(self.window, TRIED, other | WRITE)?;
        self.edu.dma(Direction::Write, TRIED, 0, SLOT);
        if memory::read(page) != 0 || memory::read(other) != MARKER {
            return fail(
                "an entry that was exchanged leads elsewhere",
                [memory::read(page), 0],
            );
        }
        self.load(CANARY)?;
        put(self.window, TRIED, SOURCE | WRITE)?;
        self.edu.dma(Direction::Read, TRIED, 0, SLOT);
        self.look(1)?;
        count.writes += 2;
        count.reads += 1;
        Ok(())
    }

    /// A window of the guest's own is used, and is nothing once it is removed.
    fn windows(&self, count: &mut Count) -> Result<(), Failure> {
        let function = self.edu.function;
        let (liobn, base) = match tce::create_window(function, 16, 28) {
            Ok(window) => window,
            Err(status) => return fail("no window", [u64::from(status.cast_unsigned()), 0]),
        };
        put(liobn, base, SOURCE | RIGHTS)?;
        put(liobn, base + 0x1_0000, TARGET | RIGHTS)?;
        self.control(base, base + 0x1_0000)?;
        for (at, status) in [
            // Pages of 64 KiB: not half of one, nor one that begins in the middle.
            tce::put(liobn, base, (SOURCE + 0x1000) | RIGHTS),
            tce::put(liobn, base + 0x1000, SOURCE | RIGHTS),
            tce::put(liobn, 0, SOURCE | RIGHTS),
            tce::put(liobn, base + (1 << 28), SOURCE | RIGHTS),
            tce::put(liobn, base, self.end | RIGHTS),
        ]
        .into_iter()
        .enumerate()
        {
            if status == 0 {
                return fail("a wrong entry of the window is taken", [at as u64, 0]);
            }
            count.entries += 1;
        }
        // With a DMA that runs.
        self.edu.start(Direction::Read, base, 0, BUFFER);
        match tce::remove_window(liobn) {
            0 => {}
            status => return fail("a window stays", [u64::from(status.cast_unsigned()), 0]),
        }
        self.edu.wait();
        self.load(CANARY)?;
        self.edu.dma(Direction::Read, base, 0, SLOT);
        self.look(1)?;
        count.reads += 1;
        if tce::put(liobn, base, SOURCE | RIGHTS) == 0 {
            return fail("a window is there that was removed", [liobn, 0]);
        }
        Ok(())
    }
}
