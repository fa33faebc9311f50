//! Events toward the guest: what of the hardware's it may see, and its queue.

use smmuv3::spec::queue::{OVERFLOW, Shape};
use smmuv3::spec::{Class, Event, EventId, event};
use types::{Ipa, StreamId};

use crate::entry::aligned;
use crate::memory::GuestMemory;

const SSV_AND_SSID: u64 = 1 << 11 | 0xf_ffff << 12;
/// `PnU`, `InD`, `RnW`: what the access was.
const ACCESS: u64 = 1 << 33 | 1 << 34 | 1 << 35;
const CLASS_SHIFT: u32 = 40;
const CLASS_INPUT: u64 = 2 << CLASS_SHIFT;

/// The record a guest gets for one of the hardware's, of one of its streams; `None` when it gets
/// none.
///
/// A record is built from the fields that a stage-1 fault has, and nothing else is copied: no
/// intermediate address, no fetch address (which may be physical), no stall tag. A stage-2 fault on
/// the way to a context descriptor or a stage-1 table becomes the external abort that an SMMU
/// without a stage 2 would have met there; one of the access itself is not reported, because such
/// an SMMU sees none: the bus aborts.
#[must_use]
pub fn for_guest(hardware: &Event, stream: StreamId, substream_bits: u8) -> Option<Event> {
    if hardware.is_stall() {
        return None;
    }
    let id = match hardware.id() {
        id @ (EventId::CBadSte
        | EventId::FStreamDisabled
        | EventId::CBadSubstreamid
        | EventId::CBadCd
        | EventId::FCdFetch
        | EventId::FWalkEabt) => id,
        id if id.is_translation() => match (hardware.is_stage2(), hardware.class()) {
            (false, Class::Input) => id,
            // No stage-1 fault has this class: the table was not reached through stage 2.
            (_, Class::Tt) => EventId::FWalkEabt,
            (_, Class::Cd) => EventId::FCdFetch,
            (true, Class::Input) | (_, Class::Reserved) => return None,
        },
        _ => return None,
    };
    let [word0, word1, input, _] = hardware.0;
    let substream = if substream_bits > 0 {
        word0 & SSV_AND_SSID
    } else {
        0
    };
    let mut record = [u64::from(id.bits()) | substream, 0, 0, 0];
    if id.is_translation() {
        let class = if id == EventId::FWalkEabt {
            1 << CLASS_SHIFT
        } else {
            CLASS_INPUT
        };
        let [_, to_word1, to_input, _] = &mut record;
        *to_word1 = word1 & ACCESS | class;
        *to_input = input;
    }
    Some(Event(record).with_sid(stream.bits()))
}

/// A record that the emulation makes itself.
pub(crate) fn emulated(id: EventId, stream: StreamId, fetch: u64) -> Event {
    const FETCH: u64 = 0x000f_ffff_ffff_fff8;
    Event([u64::from(id.bits()), 0, 0, fetch & FETCH]).with_sid(stream.bits())
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is in the guest's queue.
    Queued,
    /// The queue is full: it is lost, and the guest sees that something was.
    Overflow,
    /// The queue is not in memory: it is lost.
    NotWritable,
}

/// The guest's event queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// `EVENTQ_BASE`.
    pub(crate) base: u64,
    /// `EVENTQ_PROD`.
    pub(crate) prod: u32,
    /// `EVENTQ_CONS`.
    pub(crate) cons: u32,
}

const BASE: u64 = 0x000f_ffff_ffff_ffe0;

/// The size of a queue: what `*Q_BASE.LOG2SIZE` says, at most what the guest was told.
pub(crate) fn shape(base: u64, most: u8) -> Shape {
    let [low, ..] = base.to_le_bytes();
    Shape::new((low & 0x1f).min(most))
}

/// Where an entry lies. The base is aligned to the queue's size, and to 32 bytes at least.
/// [IHI 0070 §6.3.25]
pub(crate) fn slot(base: u64, shape: Shape, index: u32, entry_log2: u32) -> u64 {
    let log2 = u32::from(shape.log2()).saturating_add(entry_log2).max(5);
    let offset = u64::from(shape.entry(index))
        .checked_shl(entry_log2)
        .unwrap_or(0);
    aligned(base & BASE, log2).saturating_add(offset)
}

impl Events {
    /// Puts a record into the queue. Never waits: a full queue loses the record and says so once,
    /// until the guest has acknowledged it. [IHI 0070 §7.4]
    pub(crate) fn put(&mut self, record: &Event, memory: &impl GuestMemory, most: u8) -> Put {
        let shape = shape(self.base, most);
        if shape.is_full(self.cons, self.prod) {
            if (self.prod ^ self.cons) & OVERFLOW == 0 {
                self.prod ^= OVERFLOW;
            }
            return Put::Overflow;
        }
        let at = slot(self.base, shape, self.prod, 5);
        let mut bytes = [0_u8; event::BYTES];
        let (chunks, _) = bytes.as_chunks_mut::<8>();
        for (to, word) in chunks.iter_mut().zip(record.0) {
            *to = word.to_le_bytes();
        }
        let Ok(ipa) = Ipa::new(at) else {
            return Put::NotWritable;
        };
        if memory.write(ipa, &bytes).is_err() {
            return Put::NotWritable;
        }
        self.prod = self.prod & OVERFLOW | shape.advance(self.prod, 1);
        Put::Queued
    }
}
