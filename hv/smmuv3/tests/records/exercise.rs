//! Any bytes as what an SMMU writes into its event queue and says of it: the driver reads what is
//! there, no more and no less, whatever the hardware claims.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bulkhead_smmuv3::spec::command::Raw;
use bulkhead_smmuv3::spec::{Class, Command, Event, regs};
use bulkhead_smmuv3::{Locked, Smmu};
use hal::fake::{FakeClock, FakeFrames, FakeMemory};
use hal::{Mmio, PhysMemory};
use types::Pa;

/// Bytes of a step.
const STEP: usize = 8;
/// The most steps of an execution.
const MOST: usize = 256;
/// Log2 of the entries of the event queue.
const LOG2: u32 = 4;
const ENTRIES: u32 = 1 << LOG2;
const OVERFLOW: u32 = 1 << 31;

/// Registers that follow what is written, and take whatever the hardware makes of them.
#[derive(Debug, Default)]
struct Registers {
    values: RefCell<BTreeMap<usize, u64>>,
    consumer: Cell<Option<u32>>,
}

impl Registers {
    fn get(&self, at: usize) -> u64 {
        self.values.borrow().get(&at).copied().unwrap_or(0)
    }

    fn set(&self, at: usize, value: u64) {
        self.values.borrow_mut().insert(at, value);
    }
}

impl Mmio for Registers {
    fn read8(&self, _: usize) -> u8 {
        unreachable!("no 8-bit registers")
    }
    fn read16(&self, _: usize) -> u16 {
        unreachable!("no 16-bit registers")
    }
    fn read32(&self, at: usize) -> u32 {
        self.get(at) as u32
    }
    fn read64(&self, at: usize) -> u64 {
        self.get(at)
    }
    fn write8(&self, _: usize, _: u8) {
        unreachable!("no 8-bit registers")
    }
    fn write16(&self, _: usize, _: u16) {
        unreachable!("no 16-bit registers")
    }
    fn write32(&self, at: usize, value: u32) {
        let follower = match at {
            regs::CR0 => regs::CR0ACK,
            regs::IRQ_CTRL => regs::IRQ_CTRLACK,
            regs::CMDQ_PROD => regs::CMDQ_CONS,
            _ => at,
        };
        if at == regs::EVENTQ_CONS {
            self.consumer.set(Some(value));
        }
        let kept = match at {
            regs::GBPA => value & !OVERFLOW,
            _ => value,
        };
        self.set(at, kept.into());
        self.set(follower, kept.into());
    }
    fn write64(&self, at: usize, value: u64) {
        self.set(at, value);
    }
}

/// What a record is, by the manual's bit numbers.
fn check_record(event: Event, words: [u64; 4]) {
    assert_eq!(event.0, words);
    let [word0, word1, input, last] = words;
    let kind = word0 & 0xff;
    assert_eq!(u64::from(event.id().bits()), kind);
    assert_eq!(u64::from(event.sid()), word0 >> 32);
    let substream = (word0 >> 11 & 1 == 1).then_some((word0 >> 12 & 0xf_ffff) as u32);
    assert_eq!(event.ssid(), substream);
    assert_eq!(event.is_stall(), word1 >> 31 & 1 == 1);
    assert_eq!(event.is_read(), word1 >> 35 & 1 == 1);
    assert_eq!(event.input(), input);
    assert_eq!(event.ipa(), last << 12 >> 24 << 12);
    let class = [Class::Cd, Class::Tt, Class::Input, Class::Reserved];
    assert_eq!(event.class(), class[(word1 >> 40 & 3) as usize]);
    let translation = matches!(kind, 0x0b | 0x10..=0x13);
    assert_eq!(event.id().is_translation(), translation);
    let stage2 = word1 >> 39 & 1 == 1 || word1 >> 40 & 3 == 1;
    assert_eq!(event.is_stage2(), translation && stage2);
    let other = event.with_sid(0x1234_5678);
    assert_eq!(other.sid(), 0x1234_5678);
    assert_eq!(other.with_sid(event.sid()), event);
    // What is printed names the record, and is of one line.
    let text = event.to_string();
    assert!(text.contains(&format!("sid {:#x}", event.sid())) && !text.contains('\n'));
    assert_eq!(text.contains(", stage "), translation);
}

/// A command that is taken is the same when it is written again.
fn check_command(raw: Raw) {
    if let Ok(command) = Command::decode(raw) {
        let written = command.encode();
        assert_eq!(Command::decode(written), Ok(command));
        assert_eq!(written[0] & 0xff, raw[0] & 0xff);
    }
}

/// A record, mostly of a kind there is.
fn record([a, b, c, d, e, f]: [u8; 6]) -> [u64; 4] {
    let kind = match a & 0x80 {
        0 => u64::from(a & 0x1f),
        _ => u64::from(b),
    };
    let word = u64::from(u32::from_le_bytes([c, d, e, f]));
    [
        kind | word << 11 & 0xffff_f800 | word << 32,
        word << 31 | u64::from(b) << 39,
        word << 12 | word,
        word << (b & 0x1f),
    ]
}

/// Takes every eight bytes as a step; returns how many there were.
pub(crate) fn exercise(bytes: &[u8]) -> usize {
    let memory = FakeMemory::new(Pa::new(0x10_0000).unwrap(), 0x1_0000);
    let registers = Registers::default();
    for (at, value) in [
        (regs::IDR0, 0x0d44_101b),
        (regs::IDR1, 5 << 21 | u64::from(LOG2) << 16 | 4),
        (regs::IDR5, 0x74),
    ] {
        registers.set(at, value);
    }
    let frames = FakeFrames::new(&memory);
    let locked = Locked::take(&registers, &FakeClock::default()).unwrap();
    let mut smmu = Smmu::enable(locked, &memory, &frames, FakeClock::default()).unwrap();
    let base = registers.get(regs::EVENTQ_BASE) & 0x000f_ffff_ffff_ffe0;
    let place = |index: u32| Pa::new(base + u64::from(index & (ENTRIES - 1)) * 32).unwrap();
    let words_at = |index: u32| -> [u64; 4] {
        let mut bytes = [0; 32];
        memory.read(place(index), &mut bytes).unwrap();
        let (words, _) = bytes.as_chunks::<8>();
        std::array::from_fn(|n| u64::from_le_bytes(words[n]))
    };
    let mut index = 0_u32;
    let mut count = 0;
    for step in bytes.chunks_exact(STEP).take(MOST) {
        let &[what, a, b, c, d, e, f, g] = step else {
            continue;
        };
        count += 1;
        let producer = registers.read32(regs::EVENTQ_PROD);
        match what % 8 {
            0..=2 => {
                let words = record([a, b, c, d, e, f]).map(u64::to_le_bytes);
                memory.write(place(producer), words.as_flattened()).unwrap();
                let next = ((producer & 0xf_ffff) + 1) & (2 * ENTRIES - 1);
                let next = next | producer & OVERFLOW;
                registers.set(regs::EVENTQ_PROD, next.into());
            }
            3 => {
                let wild = u32::from_le_bytes([a, b, c, d]);
                registers.set(regs::EVENTQ_PROD, wild.into());
            }
            4 => {
                let at = place(u32::from(a));
                memory.write(at, &[b, c, d, e, f, g]).unwrap();
            }
            5 => registers.set(regs::EVENTQ_PROD, (producer ^ OVERFLOW).into()),
            6 => {
                let errors = u64::from(u32::from_le_bytes([a, b, c, d]));
                registers.set(regs::GERROR, errors);
                let before = registers.get(regs::GERRORN);
                let was_on = !smmu.is_off();
                let active = smmu.acknowledge_errors();
                assert_eq!(u64::from(active), (errors ^ before) & !1);
                // The command queue's is not its to acknowledge, but where it turns the SMMU off, which takes commands.
                let commands = if was_on && smmu.is_off() {
                    errors
                } else {
                    before
                };
                let acknowledged = (errors & !1) | commands & 1;
                assert_eq!(registers.get(regs::GERRORN), acknowledged);
                assert_eq!(smmu.acknowledge_errors(), 0);
                let low = u64::from_le_bytes([a, b, c, d, e, f, g, what]);
                check_command([low, low.rotate_left(u32::from(a))]);
            }
            _ => {
                let budget = usize::from(a % 20);
                let waiting = producer.wrapping_sub(index) & (2 * ENTRIES - 1);
                let waiting = waiting.min(ENTRIES) as usize;
                let acknowledged = registers.read32(regs::EVENTQ_CONS);
                let mut seen = Vec::new();
                let drained = smmu.drain(budget, |event| seen.push(event));
                assert_eq!(drained.records, waiting.min(budget));
                assert_eq!(seen.len(), drained.records);
                assert_eq!(drained.lost, (producer ^ acknowledged) & OVERFLOW != 0);
                for event in seen {
                    check_record(event, words_at(index));
                    index = (index + 1) & (2 * ENTRIES - 1);
                }
                let left = producer.wrapping_sub(index) & (2 * ENTRIES - 1);
                assert_eq!(drained.more, left != 0);
                let written = registers.consumer.take();
                assert_eq!(written, Some(index | producer & OVERFLOW));
            }
        }
    }
    count
}
