//! Any bytes as what a guest does to its SMMU and its memory: against the model, or, where memory
//! changes as it is read and work is cut short, against what holds for every guest.

use bulkhead_vsmmuv3::{Delivery, Health, Width};

use crate::model::{MUTE, Model, REFUSED};
use crate::rig::{Rig, Wrong, does, settle};
use crate::tables::{self, DOORBELL, Does, Promise, RAM, Says};

/// Bytes of a step.
const STEP: usize = 8;
/// The most steps of an execution.
const MOST: usize = 512;

/// Where things are in the guest's RAM, unless the guest moves them.
const CMDQ: u64 = RAM;
const EVTQ: u64 = RAM + 0x1000;
const L1: u64 = RAM + 0x2000;
const L2: [u64; 2] = [RAM + 0x4000, RAM + 0x8000];
/// Streams of the guest; more come and go.
const STREAMS: [u32; 4] = [0, 8, MUTE, 0x104];

/// Every register there is, and some that are not.
const REGISTERS: [u64; 34] = [
    0x00, 0x04, 0x0c, 0x14, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x44, 0x50, 0x54, 0x60, 0x64, 0x80, 0x84,
    0x88, 0x90, 0x94, 0x98, 0x9c, 0xa0, 0xa4, 0x1_00a8, 0x1_00ac, 0xa8, 0x68, 0x6c, 0x70, 0x74,
    0xb0, 0xb4, 0xb8, 0xbc,
];

/// Takes the first byte as the kind of run and machine, and every eight after it as a step; returns the
/// number of steps.
pub(crate) fn exercise(bytes: &[u8]) -> usize {
    match bytes.split_first() {
        Some((kind, steps)) if kind & 1 == 0 => against_the_model(*kind, steps),
        Some((kind, steps)) => wild(*kind, steps),
        None => 0,
    }
}

/// The crate's SMMU and the model's, side by side.
struct Pair {
    rig: Rig,
    model: Model,
    /// Where the guest's driver writes its next command.
    slot: u64,
}

impl Pair {
    fn write(&mut self, at: u64, width: Width, value: u64) {
        self.rig.write(at, width, value);
        self.rig.finish();
        match width {
            Width::Word => self.model.write(at, 4, value),
            Width::Double => self.model.write(at, 8, value),
            Width::Byte | Width::Half => {}
        }
    }

    fn put(&mut self, at: u64, words: &[u64]) {
        self.rig.ram.memory.borrow_mut().put(at, words);
        self.model.memory.put(at, words);
    }

    /// Puts a command where the driver believes its queue to be.
    fn command(&mut self, command: [u64; 2]) {
        let entries = 1 << (self.model.read(0x90) & 0x1f).min(8);
        let base = self.rig.smmu.read(0x90, Width::Double) & 0x000f_ffff_ffff_ffe0;
        self.put(base + (self.slot & (entries - 1)) * 16, &command);
        self.slot = (self.slot + 1) & (2 * entries - 1);
    }

    /// Fills the queue, as a driver in a hurry does, and rings: twice, and a wait, or once.
    fn fill(&mut self, seed: &[u8; 7]) {
        let rounds = if seed[0] & 3 == 3 { 2 } else { 1 };
        for round in 0..rounds {
            let (consumer, entries) = (self.rig.read(0x9c) & 0xf_ffff, 64);
            for (at, words) in commands(seed, entries).into_iter().enumerate() {
                let at = consumer.wrapping_add(at as u64 + round) & (entries - 1);
                self.put(CMDQ + at * 16, &words);
            }
            if rounds == 2 {
                self.write(0x98, Width::Word, consumer ^ entries);
            }
        }
        if rounds == 2 {
            self.slot = self.rig.read(0x9c) & 0xf_ffff;
            self.command([0x46, 0]);
            self.ring();
        }
    }

    fn ring(&mut self) {
        self.write(0x98, Width::Word, self.slot);
    }

    /// Both say the same.
    fn compare(&mut self) {
        for at in REGISTERS {
            assert_eq!(self.rig.read(at), self.model.read(at), "register {at:#x}");
        }
        self.compare_the_rest();
    }

    fn compare_the_rest(&mut self) {
        let told = &self.rig.hardware.told;
        let streams = self.rig.smmu.streams();
        assert_eq!(streams.len(), self.model.streams.len());
        for (stream, (id, expected)) in streams.iter().zip(&self.model.streams) {
            assert_eq!(stream.id().bits(), *id);
            assert_eq!(does(&stream.live()), expected.does, "stream {id:#x}");
            assert_eq!(told[id], stream.live(), "stream {id:#x}");
        }
        let records = std::mem::take(&mut *self.rig.ram.records.borrow_mut());
        assert_eq!(records, std::mem::take(&mut self.model.records));
        let messages = std::mem::take(&mut *self.rig.ram.messages.borrow_mut());
        assert_eq!(messages, std::mem::take(&mut self.model.messages));
        let pulses = std::mem::take(&mut self.rig.pulses);
        assert_eq!(pulses, std::mem::take(&mut self.model.pulses));
        settle(
            &mut self.model.needs,
            std::mem::take(&mut self.rig.hardware.batches),
        );
    }
}

/// A guest whose driver has done its work: queues, tables, streams, everything on.
fn bring_up(mut write: impl FnMut(u64, Width, u64)) {
    for (at, width, value) in [
        (0x80, Width::Double, 1 << 62 | L1),
        (0x88, Width::Word, 1 << 16 | 8 << 6 | 16),
        (0x90, Width::Double, 1 << 62 | CMDQ | 6),
        (0xa0, Width::Double, 1 << 62 | EVTQ | 5),
        (0x50, Width::Word, 5),
        (0x2c, Width::Word, 6),
        (0x20, Width::Word, 0xd),
    ] {
        write(at, width, value);
    }
}

/// Where a message may go: the doorbell, memory, next to both, anywhere.
fn message(a: u8, b: u8) -> u64 {
    match a & 7 {
        0 | 1 => DOORBELL,
        2 => DOORBELL + u64::from(b & 0xc),
        3 => RAM + u64::from(b) * 4,
        4 => RAM + u64::from(b) * 0x100 + u64::from(a >> 3),
        // An entry of the command queue: the wait's own, as Linux has it, or another.
        5 => CMDQ + u64::from(b & 0x3f) * 16,
        6 => u64::from(b) << 8 << (a >> 3 & 0x1f),
        _ => RAM - 4 + u64::from(b & 1) * (tables::RAM_BYTES + 4),
    }
}

fn word(bytes: [u8; 4]) -> u64 {
    u32::from_le_bytes(bytes).into()
}

/// A stream that a guest may name.
fn stream(a: u8, b: u8) -> u32 {
    match a & 7 {
        at @ 0..=3 => STREAMS[usize::from(at)],
        4 => u32::from(b),
        5 => 0x100 | u32::from(b),
        6 => u32::from(b) << 4,
        _ => u32::from(b) << 24,
    }
}

/// An entry: mostly one that means something, with bits that need not.
fn entry(how: u8, [a, b, c, d]: [u8; 4]) -> [u64; 8] {
    let config = [5, 5, 5, 5, 4, 0, 7, 6][usize::from(how & 7)];
    let context = (word([0, a, b & 0x3f, 0]) << 4 | RAM) & !0x3f;
    let mut ste = [1 | config << 1 | context, 0, 0, 0, 0, 0, 0, 0];
    match how >> 3 & 7 {
        0 => ste[0] |= u64::from(c & 3) << 4 | u64::from(d & 0x1f) << 59,
        1 => {
            ste[0] |= u64::from(d % 12) << 59;
            ste[1] |= u64::from(c & 3);
        }
        2 => ste[1] |= 1 << 28 | u64::from(c & 1) << 29 & u64::from(d & 1) << 29,
        3 => ste[1] |= 1 << (d & 63),
        4 => ste[0] ^= 1 << (d & 63),
        5 => ste[0] |= REFUSED,
        6 => ste[2] = u64::MAX,
        _ => {}
    }
    ste
}

/// A command: mostly one that a driver sends.
fn command(how: u8, [a, b, c, d, e]: [u8; 5]) -> [u64; 2] {
    let sid = u64::from(stream(a, b)) << 32;
    let asid = u64::from(c) << 48 | u64::from(d & 3) << 56;
    let coarse = if c & 1 == 0 { !0xf_ffff } else { !0xfff };
    let address = word([0, b, c, d & 0x1f]) << 4 & coarse;
    let granule = u64::from(e & 3) << 10 | u64::from(e >> 2 & 3) << 8;
    let range = match d >> 5 {
        0 => 0,
        _ => u64::from(d & 0x1f) << 12 | u64::from(e >> 4) << 20,
    };
    let leaf = u64::from(a >> 7);
    match how & 0x1f {
        0..=2 => [3 | sid, leaf],
        3 => [4, 31],
        4 => [4 | sid, u64::from(e & 0x1f)],
        5 => [5 | sid | u64::from(e) << 12, leaf],
        6 => [6 | sid, 0],
        7 => [0x10, 0],
        8 => [0x30, 0],
        9 => [0x11 | asid, 0],
        10..=12 => [0x12 | asid | range, address | granule | leaf],
        13 => [0x13 | asid | range, address | granule | leaf],
        14 => [0x13 | range, u64::MAX << (d & 63) | granule],
        15 | 16 => [
            0x40 | sid | u64::from(e & 1) << 11 | u64::from(e) << 12,
            address | u64::from(d & 0x3f),
        ],
        17 => [1 | sid, 0],
        18 => [u64::from(b) | sid, u64::from(c)],
        19 => [u64::from(e) << 8 | 0x46, u64::MAX],
        20 => [3 | sid | 1 << 10, 0],
        21..=25 => [
            0x46 | 1 << 12 | word([c, d, e, a]) << 32,
            message(a, b) | u64::from(e >> 5 & 3),
        ],
        _ => [0x46 | u64::from(a & 3) << 12, 0],
    }
}

/// Commands of all kinds, or invalidations by address only; none of them a wait.
fn commands(seed: &[u8; 7], count: u64) -> Vec<[u64; 2]> {
    let mut chosen = *seed;
    (0..count)
        .map(|at| {
            let [how, rest @ ..] = &mut chosen;
            *how = how.wrapping_mul(5).wrapping_add(at as u8 | 1);
            rest[(at % 5) as usize] ^= how.wrapping_add(at as u8);
            let &mut [a, b, c, d, e, _] = rest;
            let kind = match seed[6] & 3 {
                0 => 9 + *how % 5,
                1 => *how % 5,
                _ => *how % 17,
            };
            command(kind, [a, b, c, d, e])
        })
        .collect()
}

/// A value for a register: one that makes sense there, or not.
fn value(at: u64, how: u8, [a, b, c, d]: [u8; 4]) -> u64 {
    let any = word([a, b, c, d]);
    if how & 0x80 != 0 {
        return any | any << (how & 0x3f);
    }
    let page = RAM + u64::from(a) * 0x400;
    match at {
        0x20 => u64::from(a & 0x1f),
        0x44 => 1 << 31 | u64::from(a & 1) << 20,
        0x68 | 0xb0 => message(a, b),
        0x80 => page,
        0x88 => u64::from(a & 1) << 16 | u64::from(b & 0x1f) << 6 | u64::from(c & 0x1f),
        0x90 | 0xa0 => page | u64::from(b & 0x1f),
        0x98 | 0x9c | 0x1_00a8 | 0x1_00ac => word([a, b, 0, 0]) | u64::from(d & 0x80) << 24,
        _ => any,
    }
}

/// A record as hardware writes it.
fn event(how: u8, [a, b, c, d]: [u8; 4]) -> [u64; 4] {
    let kind = [
        2, 3, 4, 6, 8, 9, 10, 11, 0x10, 0x11, 0x12, 0x13, 0x10, 0x13, 1, 0x20,
    ];
    let class = u64::from(b & 3) << 40 | u64::from(b >> 2 & 1) << 39;
    let stall = u64::from(b == 0xff) << 31;
    let access = u64::from(c & 7) << 33;
    [
        kind[usize::from(how & 15)] | word([0, c, d, a]),
        class | stall | access | u64::from(d),
        word([a, b, c, d]) << 12,
        u64::MAX,
    ]
}

fn against_the_model(kind: u8, steps: &[u8]) -> usize {
    let (rig, promise) = Rig::new(kind);
    let mut pair = Pair {
        rig,
        model: Model::new(promise),
        slot: 0,
    };
    for id in STREAMS {
        pair.rig.add(id);
        pair.model.add(id);
    }
    pair.put(L1, &[L2[0] | 9, L2[1] | 9]);
    if kind & 0x40 == 0 {
        bring_up(|at, width, value| pair.write(at, width, value));
    }
    pair.compare();
    let mut count = 0;
    for step in steps.chunks_exact(STEP).take(MOST) {
        let &[what, how, a, b, c, d, e, f] = step else {
            continue;
        };
        count += 1;
        match what & 15 {
            0..=3 => {
                pair.command(command(how, [a, b, c, d, e]));
                if what & 0x10 == 0 {
                    pair.ring();
                }
            }
            4 if what & 0x10 == 0 => {
                pair.command([0x46, 0]);
                pair.ring();
            }
            4 => {
                // As Linux waits: the word that the command itself begins with becomes 0.
                let entries = 1 << (pair.model.read(0x90) & 0x1f).min(8);
                let base = pair.rig.smmu.read(0x90, Width::Double) & 0x000f_ffff_ffff_ffe0;
                let own = base + (pair.slot & (entries - 1)) * 16;
                pair.command([0x46 | 1 << 12 | u64::from(a) << 32, own]);
                pair.ring();
            }
            5 | 6 => {
                let id = stream(a, b);
                let at = L2[(id >> 8 & 1) as usize] + u64::from(id & 0xff) * 64;
                pair.put(at, &entry(how, [c, d, e, f]));
                if what & 0x10 == 0 {
                    pair.command([3 | u64::from(id) << 32, 0]);
                    pair.ring();
                }
            }
            7 => {
                let place = RAM + word([c, d, 0, 0]) / 4 * 64;
                let l1 = place & !0x1f | u64::from(how & 0x1f);
                pair.put(L1 + u64::from(a & 0xf) * 8, &[l1]);
            }
            8 => {
                let at = REGISTERS[usize::from(a) % REGISTERS.len()];
                let width = if what & 0x10 == 0 {
                    Width::Word
                } else {
                    Width::Double
                };
                pair.write(at, width, value(at, how, [b, c, d, e]));
            }
            9 => {
                let at = word([a, b, how & 1, 0]);
                let width = [Width::Byte, Width::Half, Width::Word, Width::Double];
                let width = width[usize::from(c & 3)];
                pair.write(at, width, word([d, e, f, c]) << (c & 0x1f));
                if at & 7 == 0 && width == Width::Double {
                    let whole = pair.rig.smmu.read(at, width);
                    let halves = pair.model.read(at) | pair.model.read(at + 4) << 32;
                    let wide = matches!(at, 0x68 | 0x80 | 0x90 | 0xa0 | 0xb0);
                    assert_eq!(whole, if wide { halves } else { 0 });
                }
                assert!(width >= Width::Word || pair.rig.smmu.read(at, width) == 0);
            }
            10 => {
                let at = (RAM + word([a, b, 0, 0])) & !7;
                pair.put(at, &[word([c, d, e, f]) << (how & 0x3f)]);
            }
            11 => {
                let id = stream(a, b);
                let record = event(how, [c, d, e, f]);
                let delivery = pair.rig.report(id, record);
                let shown = pair.model.report(id, record);
                assert_eq!(delivery == Delivery::Delivered, shown, "{record:x?}");
            }
            12 => {
                if a & 1 == 0 {
                    pair.write(0x64, Width::Word, pair.rig.read(0x60));
                }
                if a & 2 == 0 {
                    pair.write(0x1_00ac, Width::Word, pair.rig.read(0x1_00a8));
                }
            }
            13 if what & 0x10 == 0 => pair.write(0x20, Width::Word, u64::from(a & 0x1f)),
            13 => {
                // The driver sets its messages up.
                pair.write(0x50, Width::Word, 0);
                pair.write(0x68, Width::Double, message(a, b));
                pair.write(0x70, Width::Word, u64::from(e));
                pair.write(0xb0, Width::Double, message(c, d));
                pair.write(0xb8, Width::Word, u64::from(f));
                pair.write(0x50, Width::Word, u64::from(how & 7));
            }
            14 => match how & 7 {
                0 => {
                    let id = stream(a, b) & 0x1ff;
                    if !pair.model.streams.contains_key(&id) {
                        pair.rig.add(id);
                        pair.model.add(id);
                    }
                }
                1 => {
                    let id = stream(a, b);
                    // Whether the hardware was told already, the model cannot know.
                    if !pair.model.mute {
                        pair.rig.remove(id);
                        pair.model.remove(id);
                    }
                }
                2 => {
                    pair.rig.reset();
                    pair.rig.finish();
                    pair.model.reset();
                }
                3 => {
                    bring_up(|at, width, value| pair.write(at, width, value));
                    pair.slot = pair.rig.read(0x98);
                }
                4 | 5 => {
                    // The driver moves the table: off, base, shape, on.
                    pair.write(0x20, Width::Word, 0xc);
                    for at in [0x80, 0x88] {
                        pair.write(at, Width::Word, value(at, 0, [a, b, c, d]));
                    }
                    pair.write(0x20, Width::Word, 0xd);
                }
                _ => pair.slot = pair.rig.read(0x9c) & 0xf_ffff,
            },
            _ => {
                if how & 3 != 0 {
                    pair.fill(&[how, a, b, c, d, e, f]);
                }
                pair.write(0x98, Width::Word, word([a, b, c & 0xf, 0]));
            }
        }
        if pair.model.wrote_commands() {
            // Commands may have been fetched before the record fell on them, or after.
            return count;
        }
        pair.compare();
    }
    assert_eq!(*pair.rig.ram.memory.borrow(), pair.model.memory);
    for at in (0..0x100).chain(0x1_0000..0x1_0100).step_by(4) {
        assert_eq!(pair.rig.read(at), pair.model.read(at), "register {at:#x}");
    }
    count
}

/// What no call may exceed, whatever the guest does: reads of memory, records, switches, batches.
fn check_the_cost(rig: &mut Rig) {
    let budget = bulkhead_vsmmuv3::BUDGET as usize;
    let reads = rig.ram.reads.take();
    assert!(reads <= budget + 2, "{reads} reads");
    let streams = budget.div_ceil(8) + 1;
    assert!(std::mem::take(&mut rig.hardware.switches) <= 2 * streams);
    assert!(std::mem::take(&mut rig.hardware.batches).len() <= streams + 1);
    let base = rig.smmu.read(0xa0, Width::Double);
    let log2 = (base & 0x1f).min(7) + 5;
    let base = (base & 0x000f_ffff_ffff_ffe0) >> log2 << log2;
    let records = std::mem::take(&mut *rig.ram.records.borrow_mut());
    assert!(records.len() <= streams);
    // Of waits, and of a record and an error.
    let messages = rig.ram.messages.take();
    assert!(messages.len() <= budget / 3 + 3, "{}", messages.len());
    for (at, _) in records {
        // Inside the queue, and nowhere else.
        assert!(at >= base && at < base + (1 << log2) && at & 31 == 0);
    }
}

fn wild(kind: u8, steps: &[u8]) -> usize {
    let (mut rig, promise) = Rig::new(kind);
    for id in STREAMS {
        rig.add(id);
    }
    rig.ram.memory.borrow_mut().put(L1, &[L2[0] | 9, L2[1] | 9]);
    if kind & 0x40 == 0 {
        rig.write(0x90, Width::Double, CMDQ | 8);
        rig.write(0x20, Width::Word, 8);
        bring_up(|at, width, value| rig.write(at, width, value));
    }
    rig.ram.reads.take();
    rig.hardware.switches = 0;
    let mut count = 0;
    let mut broken = None;
    for step in steps.chunks_exact(STEP).take(MOST) {
        let &[what, how, a, b, c, d, e, f] = step else {
            continue;
        };
        count += 1;
        let before = rig.smmu.counters().commands;
        let is_off = rig.read(0x24) & 8 == 0;
        match what & 15 {
            0 | 1 => {
                let at = REGISTERS[usize::from(a) % REGISTERS.len()];
                let width = if how & 0x40 == 0 {
                    Width::Word
                } else {
                    Width::Double
                };
                rig.write(at, width, value(at, how, [b, c, d, e]));
            }
            2 => rig.write(word([a, b, how & 1, 0]), Width::Word, word([c, d, e, f])),
            3 | 4 => {
                let at = CMDQ + u64::from(f & 0x3f) * 16;
                let words = command(how, [a, b, c, d, e]);
                rig.ram.memory.borrow_mut().put(at, &words);
            }
            5 => {
                let id = stream(a, b);
                let at = L2[(id >> 8 & 1) as usize] + u64::from(id & 0xff) * 64;
                let words = entry(how, [c, d, e, f]);
                rig.ram.memory.borrow_mut().put(at, &words);
            }
            6 => {
                let at = RAM + word([a, b, 0, 0]);
                let words = [word([c, d, e, f]) << (how & 0x3f)];
                rig.ram.memory.borrow_mut().put(at, &words);
            }
            7 | 8 => {
                if how & 3 == 0 {
                    let words = commands(&[how, a, b, c, d, e, f], 256);
                    let mut memory = rig.ram.memory.borrow_mut();
                    memory.put(CMDQ, words.as_flattened());
                }
                rig.write(0x98, Width::Word, word([a, b, c & 0xf, 0]));
            }
            9 => rig.run(),
            10 => {
                let _ = rig.report(stream(a, b), event(how, [c, d, e, f]));
            }
            11 => rig
                .ram
                .restless
                .set(word([a, b, c, d]) << 8 | u64::from(how & 1)),
            12 => match how & 15 {
                0 => rig.hardware.wrong = Wrong::Switch,
                1 => rig.hardware.wrong = Wrong::Batch,
                2 => rig.reset(),
                3 => {
                    if !rig.hardware.streams.contains(&(stream(a, b) & 0x1ff)) {
                        rig.add(stream(a, b) & 0x1ff);
                    }
                }
                4 => rig.remove(stream(a, b)),
                _ => rig.write(0x64, Width::Word, rig.read(0x60)),
            },
            13 => rig.write(0x20, Width::Word, u64::from(a & 0x1f)),
            14 => rig.write(0x44, Width::Word, 1 << 31 | u64::from(a & 1) << 20),
            _ => rig.write(0x1_00ac, Width::Word, rig.read(0x1_00a8)),
        }
        check_the_cost(&mut rig);
        let commands = rig.smmu.counters().commands;
        assert!(
            !is_off || rig.read(0x24) & 8 != 0 || commands == before,
            "it was off"
        );
        if rig.smmu.health() == Health::Broken {
            // Nothing is consumed any more.
            assert_eq!(*broken.get_or_insert(commands), commands);
        }
    }
    come_to_rest(rig, promise);
    count
}

/// When the guest has done with its mischief, everything is as its registers and tables say.
fn come_to_rest(mut rig: Rig, promise: Promise) {
    rig.ram.restless.set(0);
    rig.hardware.wrong = Wrong::Nothing;
    for (cr0, abort) in [(0, false), (1, false), (0, true)] {
        rig.finish();
        rig.write(0x64, Width::Word, rig.read(0x60));
        rig.finish();
        rig.write(0x20, Width::Word, cr0);
        rig.finish();
        rig.write(0x44, Width::Word, 1 << 31 | u64::from(abort) << 20);
        rig.finish();
        let broken = rig.smmu.health() == Health::Broken;
        assert!(broken || (rig.read(0x24), rig.read(0x44) >> 31) == (cr0, 0));
        if broken {
            // Nothing that is asked for now is acknowledged, and nobody knows what is live.
            return;
        }
        let table = (rig.smmu.read(0x80, Width::Double), rig.read(0x88));
        let memory = rig.ram.memory.borrow();
        for stream in rig.smmu.streams() {
            let id = stream.id().bits();
            let wanted = match (cr0, abort) {
                (0, false) => Does::Bypass,
                (0, true) => Does::Abort,
                _ => tables::entry(&memory, &promise, table, id)
                    .and_then(|ste| tables::judge(&ste, &promise))
                    .unwrap_or_else(|says| match says {
                        Says::NoEntry if rig.read(0x2c) & 2 == 0 => Does::Abort,
                        _ => Does::Invalid,
                    }),
            };
            let refused = matches!(wanted, Does::Translate { base, .. } if base & REFUSED != 0);
            let wanted = if refused { Does::Invalid } else { wanted };
            assert_eq!(does(&stream.live()), wanted, "stream {id:#x}");
            assert_eq!(rig.hardware.told[&id], stream.live(), "stream {id:#x}");
        }
    }
}
