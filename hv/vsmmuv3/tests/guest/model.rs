//! A guest's SMMU written down plainly, from the manual and the crate's page: what a guest reads,
//! what its event queue holds, what the hardware must have been told.
//!
//! It shares no code with the crate. Where that keeps a budget, this does everything at once.

use std::collections::BTreeMap;

use crate::tables::{DOORBELL, Does, Memory, Promise, Says, aligned, entry, judge};

/// Streams whose context descriptors lie where this bit of the address is set are refused by the
/// hardware, for want of room.
pub(crate) const REFUSED: u64 = 1 << 20;
/// The stream whose device answers no ATC invalidation.
pub(crate) const MUTE: u32 = 9;

/// What the hardware must have forgotten when the guest's `CMD_SYNC` is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    All,
    Asid(u64),
    /// An address without a range: whatever leaf translates it.
    Leaf {
        asid: Option<u64>,
        at: u64,
        tables: bool,
    },
    Span {
        asid: Option<u64>,
        first: u64,
        last: u64,
        level: u64,
        tables: bool,
    },
    Context {
        stream: u32,
        substream: Option<u64>,
    },
    Atc {
        stream: u32,
        substream: Option<u64>,
        first: u64,
        last: u64,
    },
    /// Here all of the above must be done.
    Wait,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) does: Does,
    says: Says,
}

/// The guest's SMMU.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) promise: Promise,
    pub(crate) memory: Memory,
    pub(crate) streams: BTreeMap<u32, Stream>,
    /// What was asked for since this was looked at.
    pub(crate) needs: Vec<Need>,
    /// Records written since this was looked at.
    pub(crate) records: Vec<(u64, [u64; 4])>,
    /// Messages since this was looked at, with whether something took them.
    pub(crate) messages: Vec<(u64, u32, bool)>,
    /// A message fell on commands that may have been fetched before.
    spoilt: bool,
    /// Lines pulsed since this was looked at: event, gerror, sync.
    pub(crate) pulses: [bool; 3],
    cr0: u64,
    cr1: u64,
    cr2: u64,
    gbpa: u64,
    irq_ctrl: u64,
    gerror: u64,
    gerrorn: u64,
    /// Address, data, attributes: of the errors' message, and of the event queue's.
    told_by: [[u64; 3]; 2],
    /// The stream table's, the command queue's, the event queue's.
    bases: [u64; 3],
    table_config: u64,
    commands: [u64; 2],
    events: [u64; 2],
    /// Commands that may be consumed for the last `CMDQ_PROD`.
    left: u64,
    /// A device that does not answer was asked since the last wait.
    pub(crate) mute: bool,
}

impl Model {
    pub(crate) fn new(promise: Promise) -> Self {
        Self {
            promise,
            memory: Memory::new(),
            streams: BTreeMap::new(),
            needs: Vec::new(),
            records: Vec::new(),
            messages: Vec::new(),
            spoilt: false,
            pulses: [false; 3],
            cr0: 0,
            cr1: 0,
            cr2: 0,
            gbpa: 1 << 12 | u64::from(promise.aborts) << 20,
            irq_ctrl: 0,
            gerror: 0,
            gerrorn: 0,
            told_by: [[0; 3]; 2],
            bases: [0; 3],
            table_config: 0,
            commands: [0; 2],
            events: [0; 2],
            left: 0,
            mute: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        let streams = std::mem::take(&mut self.streams);
        let mut new = Self::new(self.promise);
        std::mem::swap(&mut new.memory, &mut self.memory);
        *self = new;
        for (stream, _) in streams {
            self.add(stream);
        }
        self.needs = vec![Need::All, Need::Wait];
    }

    pub(crate) fn add(&mut self, stream: u32) {
        let new = Stream {
            does: Does::Abort,
            says: Says::Off,
        };
        self.streams.insert(stream, new);
        self.read_again(stream);
    }

    /// What a 32-bit read of a known register gives.
    pub(crate) fn read(&self, at: u64) -> u64 {
        let value = match at {
            0x00 => self.promise.idr0,
            0x04 => self.promise.idr1,
            0x0c => self.promise.idr3,
            0x14 => self.promise.idr5,
            0x1c => 1,
            0x20 | 0x24 => self.cr0,
            0x28 => self.cr1,
            0x2c => self.cr2,
            0x44 => self.gbpa,
            0x50 | 0x54 => self.irq_ctrl,
            0x60 => self.gerror,
            0x64 => self.gerrorn,
            0x68 | 0x6c | 0xb0 | 0xb4 => self.told_by[usize::from(at >= 0xb0)][0] >> (8 * (at & 4)),
            0x70 | 0xb8 => self.told_by[usize::from(at >= 0xb0)][1],
            0x74 | 0xbc => self.told_by[usize::from(at >= 0xb0)][2],
            0x80 | 0x90 | 0xa0 => self.bases[(at as usize - 0x80) / 16],
            0x84 | 0x94 | 0xa4 => self.bases[(at as usize - 0x80) / 16] >> 32,
            0x88 => self.table_config,
            0x98 | 0x9c => self.commands[(at as usize - 0x98) / 4],
            0x1_00a8 | 0x1_00ac => self.events[(at as usize - 0x1_00a8) / 4],
            _ => 0,
        };
        value & 0xffff_ffff
    }

    /// A write of 4 or 8 bytes.
    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64) {
        if !at.is_multiple_of(bytes) {
            return;
        }
        let word = value & 0xffff_ffff;
        let off = |bit: u64| self.cr0 & bit == 0;
        match (at & !7, at, bytes) {
            (0x80 | 0x90 | 0xa0, ..) => {
                let which = (at as usize - 0x80) / 16;
                let new = match (bytes, at & 4) {
                    (8, _) => value,
                    (_, 0) => self.bases[which] >> 32 << 32 | word,
                    _ => self.bases[which] & 0xffff_ffff | word << 32,
                };
                let enable = [1, 8, 4][which];
                let low = if which == 0 { 0x3f } else { 0 };
                if off(enable) {
                    self.bases[which] = new & (1 << 62 | 0x000f_ffff_ffff_ffff & !low);
                }
            }
            (0x68 | 0xb0, ..) => {
                let which = usize::from(at >= 0xb0);
                let old = self.told_by[which][0];
                let new = match (bytes, at & 4) {
                    (8, _) => value,
                    (_, 0) => old >> 32 << 32 | word,
                    _ => old & 0xffff_ffff | word << 32,
                };
                if self.may_tell(which) {
                    self.told_by[which][0] = self.promise.cut(new & 0x000f_ffff_ffff_fffc);
                }
            }
            (_, _, 8) => {}
            (_, 0x70 | 0x74 | 0xb8 | 0xbc, _) => {
                let which = usize::from(at >= 0xb0);
                let (field, mask) = if at & 4 == 0 { (1, !0) } else { (2, 0x3f) };
                if self.may_tell(which) {
                    self.told_by[which][field] = word & mask;
                }
            }
            (_, 0x20, _) => self.write_cr0(word),
            (_, 0x28, _) => {
                let mut mask = 0;
                if off(1) {
                    mask |= 0xfc0;
                }
                if off(8) && off(4) {
                    mask |= 0x3f;
                }
                self.cr1 = self.cr1 & !mask | word & mask;
            }
            (_, 0x2c, _) if off(1) => self.cr2 = word & 6,
            (_, 0x44, _) if word >> 31 == 1 => {
                self.gbpa = word & (1 << 20 | 3 << 12);
                if off(1) {
                    self.read_all_again();
                }
            }
            (_, 0x50, _) => self.irq_ctrl = word & 5,
            (_, 0x64, _) => {
                let active = self.gerror ^ self.gerrorn;
                self.gerrorn = self.gerrorn & !active | word & active;
            }
            (_, 0x88, _) if off(1) => self.table_config = word & 0x3_07ff,
            (_, 0x98, _) => {
                self.commands[0] = word & 0xf_ffff;
                self.look();
            }
            (_, 0x9c, _) if off(8) => self.commands[1] = word & 0xf_ffff,
            (_, 0x1_00a8, _) if off(4) => self.events[0] = word & 0x800f_ffff,
            (_, 0x1_00ac, _) => self.events[1] = word & 0x800f_ffff,
            _ => {}
        }
        self.consume();
    }

    /// Whether the message of the errors, or of the event queue, can be written.
    fn may_tell(&self, which: usize) -> bool {
        self.promise.messages() && self.irq_ctrl & [1, 4][which] == 0
    }

    /// Whether something took a message.
    fn tell(&mut self, at: u64, data: u64) -> bool {
        let taken = at == DOORBELL || self.memory.put_word(at, data as u32);
        self.messages.push((at, data as u32, taken));
        let (base, bytes) = self.command_queue();
        let consumed = base + (self.commands[1] & (self.command_entries() - 1)) * 16;
        // What a wait writes over itself is not fetched again.
        self.spoilt |= at >= base && at < base + bytes && at & !0xf != consumed;
        taken
    }

    fn write_cr0(&mut self, word: u64) {
        let mask = 0xd | u64::from(self.promise.ats()) << 4;
        let old = std::mem::replace(&mut self.cr0, word & mask);
        let changed = old ^ self.cr0;
        if changed & old & 8 != 0 {
            self.needs.push(Need::Wait);
        }
        if changed & self.cr0 & 8 != 0 {
            self.look();
        }
        if changed & 1 != 0 {
            self.read_all_again();
        }
    }

    /// Whether a record or a message that was just written lies in the command queue.
    pub(crate) fn wrote_commands(&self) -> bool {
        let (base, bytes) = self.command_queue();
        let mut records = self.records.iter();
        self.spoilt || records.any(|(at, _)| at + 32 > base && *at < base + bytes)
    }

    fn command_queue(&self) -> (u64, u64) {
        let log2 = u64::from(self.command_entries().trailing_zeros()) + 4;
        let base = aligned(self.bases[1] & 0x000f_ffff_ffff_ffe0, log2.max(5));
        (base, 1 << log2.max(5))
    }

    fn command_entries(&self) -> u64 {
        1 << (self.bases[1] & 0x1f).min(self.promise.queues().0)
    }

    /// The producer says how many commands there are; more than the queue holds there cannot be.
    fn look(&mut self) {
        let entries = self.command_entries();
        let waiting = self.commands[0].wrapping_sub(self.commands[1]) & (2 * entries - 1);
        self.left = waiting.min(entries);
    }

    fn consume(&mut self) {
        while self.cr0 & 8 != 0 && (self.gerror ^ self.gerrorn) & 1 == 0 && self.left > 0 {
            let entries = self.command_entries();
            let bytes = u64::from(entries.trailing_zeros()) + 4;
            let base = aligned(self.bases[1] & 0x000f_ffff_ffff_ffe0, bytes.max(5));
            let at = base + (self.commands[1] & (entries - 1)) * 16;
            let outcome = match self.memory.words(at) {
                Some(command) => self.command(command),
                None => Err(2),
            };
            match outcome {
                Ok(()) => {
                    self.commands[1] = ((self.commands[1] & 0xf_ffff) + 1) & (2 * entries - 1);
                    self.left -= 1;
                }
                Err(reason) => {
                    self.commands[1] = self.commands[1] & 0xf_ffff | reason << 24;
                    self.global_error(0);
                }
            }
        }
    }

    fn global_error(&mut self, bit: u32) {
        if (self.gerror ^ self.gerrorn) >> bit & 1 == 0 {
            self.gerror ^= 1 << bit;
            if self.irq_ctrl & 1 == 1 {
                self.pulses[1] = true;
                let [at, data, _] = self.told_by[0];
                // Of its own abort nothing more is said.
                if at != 0 && !self.tell(at, data) && (self.gerror ^ self.gerrorn) >> 7 & 1 == 0 {
                    self.gerror ^= 1 << 7;
                }
            }
        }
    }

    /// Does what a command says, or gives the reason why not.
    fn command(&mut self, [low, high]: [u64; 2]) -> Result<(), u64> {
        let opcode = low & 0xff;
        if matches!(opcode, 1..=6 | 0x40) && low >> 10 & 1 == 1 {
            return Err(1);
        }
        let stream = (low >> 32) as u32;
        let substream = low >> 12 & 0xf_ffff;
        match opcode {
            1 | 2 => {}
            3 => self.read_range_again(stream, stream),
            4 => match high & 0x1f {
                31 => self.read_all_again(),
                range => {
                    let low = ((1_u64 << (range + 1)) - 1) as u32;
                    self.read_range_again(stream & !low, stream | low);
                }
            },
            5 | 6 => {
                if let Some(Does::Translate { bits, .. }) = self.does(stream) {
                    let named = (opcode == 5).then_some(substream);
                    let substream = if bits == 0 { named.map(|_| 0) } else { named };
                    if substream.is_none_or(|substream| substream >> bits == 0) {
                        self.needs.push(Need::Context { stream, substream });
                    }
                }
            }
            0x10 | 0x30 => self.needs.push(Need::All),
            0x11 => self.needs.push(Need::Asid(self.asid(low))),
            0x12 => self.need_addresses(Some(self.asid(low)), low, high),
            0x13 => self.need_addresses(None, low, high),
            0x40 if self.promise.ats() => {
                if let Some(Does::Translate { ats: true, .. }) = self.does(stream) {
                    let pages = high & 0x3f;
                    let address = high & !0xfff;
                    let (first, last) = if pages >= 52 {
                        (0, u64::MAX)
                    } else {
                        let bytes = 1_u64 << (pages + 12).min(63) << u64::from(pages == 52);
                        (address & !(bytes - 1), address | (bytes - 1))
                    };
                    let substream = (low >> 11 & 1 == 1).then_some(substream);
                    self.needs.push(Need::Atc {
                        stream,
                        substream,
                        first,
                        last,
                    });
                    self.mute |= stream == MUTE;
                }
            }
            0x46 => {
                let signal = low >> 12 & 3;
                if signal == 3 {
                    return Err(1);
                }
                self.needs.push(Need::Wait);
                if std::mem::take(&mut self.mute) {
                    return Err(3);
                }
                if signal == 1 {
                    self.pulses[2] |= !self.promise.messages();
                    let at = high & 0x000f_ffff_ffff_fffc;
                    if self.promise.messages()
                        && at != 0
                        && !self.tell(self.promise.cut(at), low >> 32)
                    {
                        self.global_error(4);
                    }
                }
            }
            _ => return Err(1),
        }
        Ok(())
    }

    fn asid(&self, low: u64) -> u64 {
        let wide = self.promise.idr0 >> 12 & 1 == 1;
        low >> 48 & if wide { 0xffff } else { 0xff }
    }

    fn need_addresses(&mut self, asid: Option<u64>, low: u64, high: u64) {
        let tables = high & 1 == 0;
        let address = high & !0xfff;
        let granule = high >> 10 & 3;
        let ranges = self.promise.idr3 >> 10 & 1 == 1;
        let need = if !ranges || granule == 0 {
            if self.promise.widens {
                Need::All
            } else {
                Need::Leaf {
                    asid,
                    at: address,
                    tables,
                }
            }
        } else {
            let shift = [0, 12, 14, 16][granule as usize];
            let granules = u128::from((low >> 12 & 0x1f) + 1) << (low >> 20 & 0x1f);
            let first = aligned(address, shift);
            // Where it was meant to begin: the bits below the granule ought to be zero.
            let last = u128::from(address) + (granules << shift) - 1;
            Need::Span {
                asid,
                first,
                last: u64::try_from(last).unwrap_or(u64::MAX),
                level: high >> 8 & 3,
                tables,
            }
        };
        self.needs.push(need);
    }

    fn does(&self, stream: u32) -> Option<Does> {
        Some(self.streams.get(&stream)?.does)
    }

    fn read_all_again(&mut self) {
        self.read_range_again(0, u32::MAX);
    }

    fn read_range_again(&mut self, first: u32, last: u32) {
        let streams: Vec<u32> = self
            .streams
            .range(first..=last)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.read_again(stream);
        }
    }

    /// What the guest's registers and tables say a stream is to do.
    fn wanted(&self, stream: u32) -> (Does, Says) {
        if self.cr0 & 1 == 0 {
            let does = if self.gbpa >> 20 & 1 == 1 {
                Does::Abort
            } else {
                Does::Bypass
            };
            return (does, Says::Off);
        }
        let table = (self.bases[0], self.table_config);
        let says = match entry(&self.memory, &self.promise, table, stream) {
            Ok(ste) => match judge(&ste, &self.promise) {
                Ok(does) => return (does, Says::Good),
                Err(says) => says,
            },
            Err(says) => says,
        };
        let does = match says {
            Says::NoEntry if self.cr2 & 2 == 0 => Does::Abort,
            _ => Does::Invalid,
        };
        (does, says)
    }

    fn read_again(&mut self, id: u32) {
        let (wanted, says) = self.wanted(id);
        let old = self.streams[&id].does;
        let refused = matches!(wanted, Does::Translate { base, .. } if base & REFUSED != 0);
        let does = if refused { Does::Invalid } else { wanted };
        if does == old && !refused && matches!(does, Does::Translate { .. }) {
            self.needs.push(Need::Context {
                stream: id,
                substream: None,
            });
        }
        self.streams.insert(id, Stream { does, says });
    }

    /// Whether a record is in the guest's queue.
    fn record(&mut self, mut record: [u64; 4], stream: u32) -> bool {
        // Nor while the guest has not acknowledged that one could not be written.
        if self.cr0 & 4 == 0 || (self.gerror ^ self.gerrorn) >> 2 & 1 == 1 {
            return false;
        }
        record[0] |= u64::from(stream) << 32;
        let log2 = (self.bases[2] & 0x1f).min(self.promise.queues().1);
        let mask = (2_u64 << log2) - 1;
        let [producer, consumer] = self.events;
        let waiting = producer.wrapping_sub(consumer) & mask;
        if waiting >= 1 << log2 {
            if (producer ^ consumer) >> 31 & 1 == 0 {
                self.events[0] ^= 1 << 31;
            }
            return false;
        }
        let base = aligned(self.bases[2] & 0x000f_ffff_ffff_ffe0, log2 + 5);
        let at = base + (producer & mask >> 1) * 32;
        if !self.memory.put(at, &record) {
            self.global_error(2);
            return false;
        }
        self.records.push((at, record));
        self.events[0] = producer & 1 << 31 | ((producer & 0xf_ffff) + 1) & mask;
        if self.irq_ctrl & 4 != 0 {
            self.pulses[0] = true;
            let [at, data, _] = self.told_by[1];
            if at != 0 && !self.tell(at, data) {
                self.global_error(5);
            }
        }
        true
    }

    /// Whether the guest sees a hardware event of one of its streams.
    pub(crate) fn report(&mut self, id: u32, words: [u64; 4]) -> bool {
        let Some(stream) = self.streams.get(&id).copied() else {
            return false;
        };
        if self.cr0 & 1 == 0 {
            return false;
        }
        let kind = words[0] & 0xff;
        match (kind, stream.says) {
            (4, Says::NoEntry) => {
                return self.cr2 & 2 != 0 && self.record([2, 0, 0, 0], id);
            }
            (4, Says::NotFetched(at)) => {
                return self.record([3, 0, 0, at & 0x000f_ffff_ffff_fff8], id);
            }
            _ => {}
        }
        match self.shown(words) {
            Some(record) => self.record(record, id),
            None => false,
        }
    }

    /// What of a record a guest may see, its stream excepted.
    fn shown(&self, words: [u64; 4]) -> Option<[u64; 4]> {
        let substream = if self.promise.substream_bits() > 0 {
            words[0] & 0xffff_f800
        } else {
            0
        };
        if words[1] >> 31 & 1 == 1 {
            return None;
        }
        let kind = words[0] & 0xff;
        let stage2 = words[1] >> 39 & 1 == 1;
        let class = words[1] >> 40 & 3;
        // What the access was, and to where.
        let access = words[1] & 7 << 33;
        let abort = |kind| Some([kind | substream, 0, 0, 0]);
        match kind {
            0x04 | 0x06 | 0x08 | 0x09 | 0x0a => abort(kind),
            0x0b => Some([kind | substream, access | 1 << 40, words[2], 0]),
            0x10..=0x13 => match class {
                2 if !stage2 => Some([kind | substream, access | 2 << 40, words[2], 0]),
                1 => Some([0x0b | substream, access | 1 << 40, words[2], 0]),
                0 => abort(0x09),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, stream: u32) {
        self.streams.remove(&stream);
        self.needs.retain(|need| match need {
            Need::Context { stream: of, .. } | Need::Atc { stream: of, .. } => *of != stream,
            _ => true,
        });
    }
}
