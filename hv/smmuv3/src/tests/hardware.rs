//! An SMMU in memory: it consumes its command queue, reads stream table entries and walks stage 2 by
//! their formats, and keeps what it read until a command takes it away.

use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};

use hal::fake::{FakeCache, FakeMemory};
use hal::{Mmio, PhysMemory};
use types::Pa;

use crate::spec::{Command, Event, Idr0, Idr1, Idr3, Idr5, Iidr, Walks, command, event, regs};

/// Whether it has invalidation by range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ranges {
    Yes,
    No,
}

/// How long its VMIDs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vmids {
    /// 8 bits.
    Short,
    /// 16 bits.
    Long,
}

/// A translation as it is kept: the page of 4 KiB, and what is allowed.
#[derive(Clone, Copy, Debug)]
struct Cached {
    page: u64,
    rights: u64,
}

#[derive(Debug)]
pub(super) struct Hardware {
    memory: &'static FakeMemory,
    registers: RefCell<BTreeMap<usize, u64>>,
    entries: RefCell<BTreeMap<u32, [u64; 8]>>,
    /// By VMID and page of the input address.
    translations: RefCell<BTreeMap<(u16, u64), Cached>>,
    /// A record that comes just before the driver says how far it has read.
    pub(super) late: Cell<Option<Event>>,
    /// Interrupts of its event queue: one for each record that finds it empty.
    pub(super) interrupts: Cell<u32>,
    /// Commands are read as the CPU sees them, by its cache.
    pub(super) snoops_commands: Cell<Option<&'static FakeCache<'static>>>,
    /// Commands that invalidate are consumed and not carried out.
    pub(super) deaf: Cell<bool>,
    /// The registers of page 1 are in page 0.
    pub(super) one_page: Cell<bool>,
    /// Commands since the last `CMD_SYNC`, and the most there were.
    pub(super) unsynced: Cell<(u32, u32)>,
}

/// `CR0.CMDQEN`.
const CMDQEN: u64 = 1 << 3;
/// `CR0.ATSCHK`, which only an SMMU with ATS has.
const ATSCHK: u32 = 1 << 4;

/// The read and the write bit of `S2AP`.
pub(super) const READ: u64 = 1;
pub(super) const WRITE: u64 = 2;

impl Hardware {
    pub(super) fn new(
        memory: &'static FakeMemory,
        ranges: Ranges,
        vmids: Vmids,
        walks: Walks,
    ) -> Self {
        let idr0 = Idr0::new()
            .with_vmid16(vmids == Vmids::Long)
            .with_s2p(true)
            .with_ttf(0b10)
            .with_cohacc(walks == Walks::Coherent)
            .with_ttendian(2);
        let idr1 = Idr1::new().with_sidsize(6).with_cmdqs(8).with_evtqs(7);
        let idr3 = Idr3::new().with_ril(ranges == Ranges::Yes);
        let idr5 = Idr5::new().with_oas(5).with_gran4k(true);
        let registers = BTreeMap::from([
            (regs::IDR0, idr0.into_bits().into()),
            (regs::IDR1, idr1.into_bits().into()),
            (regs::IDR3, idr3.into_bits().into()),
            (regs::IDR5, idr5.into_bits().into()),
        ]);
        Self {
            memory,
            registers: RefCell::new(registers),
            entries: RefCell::default(),
            translations: RefCell::default(),
            late: Cell::new(None),
            interrupts: Cell::new(0),
            snoops_commands: Cell::new(None),
            deaf: Cell::new(false),
            one_page: Cell::new(false),
            unsynced: Cell::default(),
        }
    }

    /// With stream IDs of 10 bits, and a stream table of two levels if that is wanted.
    pub(super) fn with_two_levels(self) -> Self {
        let bits = |register| u32::try_from(self.get(register)).unwrap();
        let idr0 = Idr0::from_bits(bits(regs::IDR0)).with_st_level(1);
        let idr1 = Idr1::from_bits(bits(regs::IDR1)).with_sidsize(10);
        self.set(regs::IDR0, idr0.into_bits().into());
        self.set(regs::IDR1, idr1.into_bits().into());
        self
    }

    /// With ATS: devices may say of an address that it is translated.
    pub(super) fn with_ats(self) -> Self {
        let idr0 = Idr0::from_bits(u32::try_from(self.get(regs::IDR0)).unwrap());
        self.set(regs::IDR0, idr0.with_ats(true).into_bits().into());
        self
    }

    /// With a stage 1, and this `IDR0.STALL_MODEL`.
    pub(super) fn with_stage_one(self, stall_model: u8) -> Self {
        let idr0 = Idr0::from_bits(u32::try_from(self.get(regs::IDR0)).unwrap());
        let idr0 = idr0.with_s1p(true).with_stall_model(stall_model);
        self.set(regs::IDR0, idr0.into_bits().into());
        self
    }

    /// As this product.
    pub(super) fn with_product(self, iidr: Iidr) -> Self {
        self.set(regs::IIDR, iidr.into_bits().into());
        self
    }

    fn has_ats(&self) -> bool {
        Idr0::from_bits(u32::try_from(self.get(regs::IDR0)).unwrap()).ats()
    }

    /// With this `IDR5.OAS`.
    pub(super) fn with_output_size(self, oas: u8) -> Self {
        let idr5 = Idr5::from_bits(u32::try_from(self.get(regs::IDR5)).unwrap());
        self.set(regs::IDR5, idr5.with_oas(oas).into_bits().into());
        self
    }

    /// The register at an offset.
    fn at(&self, offset: usize) -> usize {
        if !self.one_page.get() {
            return offset;
        }
        match offset {
            0xa8 | 0xac => offset | 0x1_0000,
            0..0x1_0000 => offset,
            _ => panic!("there is no page 1"),
        }
    }

    fn set(&self, register: usize, value: u64) {
        self.registers.borrow_mut().insert(register, value);
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(Pa::new(at).unwrap(), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Writes a record to its event queue, which must have room.
    pub(super) fn record(&self, event: Event) {
        let base = self.get(regs::EVENTQ_BASE);
        let entries = 1 << (base & 31);
        let producer = self.get(regs::EVENTQ_PROD);
        let consumer = self.get(regs::EVENTQ_CONS);
        assert_ne!(producer, consumer ^ entries, "the queue is full");
        if producer == consumer {
            self.interrupts.set(self.interrupts.get() + 1);
        }
        let at = (base & 0x000f_ffff_ffff_ffe0) + (producer % entries) * event::BYTES as u64;
        for (at, word) in (at..).step_by(8).zip(event.0) {
            let at = Pa::new(at).unwrap();
            self.memory.write(at, &word.to_le_bytes()).unwrap();
        }
        self.set(regs::EVENTQ_PROD, (producer + 1) % (2 * entries));
    }

    /// A global error becomes active, or two of them do.
    pub(super) fn fail(&self, errors: u64) {
        self.set(regs::GERROR, self.get(regs::GERROR) ^ errors);
    }

    pub(super) fn get(&self, register: usize) -> u64 {
        self.registers.borrow().get(&register).copied().unwrap_or(0)
    }

    fn consume(&self) {
        let is_on = self.get(regs::CR0) & CMDQEN != 0;
        if !is_on || (self.get(regs::GERROR) ^ self.get(regs::GERRORN)) & 1 != 0 {
            return;
        }
        let base = self.get(regs::CMDQ_BASE);
        let entries = 1 << (base & 31);
        let producer = self.get(regs::CMDQ_PROD);
        let mut consumer = self.get(regs::CMDQ_CONS);
        while consumer != producer {
            let at = (base & 0x000f_ffff_ffff_ffe0) + (consumer % entries) * command::BYTES as u64;
            let words = [at, at + 8].map(|at| match self.snoops_commands.get() {
                Some(cache) => cache.read_u64(Pa::new(at).unwrap()).unwrap(),
                None => self.word(at),
            });
            let command = Command::decode(words).unwrap();
            let (now, most) = self.unsynced.get();
            let now = match command {
                Command::Sync(_) => 0,
                _ => now + 1,
            };
            self.unsynced.set((now, most.max(now)));
            if !self.deaf.get() {
                self.execute(command);
            }
            consumer = (consumer + 1) % (2 * entries);
        }
        self.set(regs::CMDQ_CONS, consumer);
    }

    fn execute(&self, command: Command) {
        let mut translations = self.translations.borrow_mut();
        match command {
            Command::CfgiSte { sid, .. } => {
                self.entries.borrow_mut().remove(&sid.bits());
            }
            Command::CfgiSteRange { range: 31, .. } => self.entries.borrow_mut().clear(),
            Command::TlbiNsnhAll => translations.clear(),
            Command::TlbiS12Vmall(vmid) => translations.retain(|(v, _), _| *v != vmid.bits()),
            Command::TlbiS2Ipa {
                vmid, ipa, range, ..
            } => {
                // Without a granule: the one leaf at the address. Kept are pieces of it, whose size is
                // no more known; leaves are blocks of 1 GiB at most, so take that much.
                let (first, last) = if range.granule == 0 {
                    let block = ipa >> 30 << 18;
                    (block, block | 0x3_ffff)
                } else {
                    let pages = (u64::from(range.num) + 1) << range.scale;
                    (ipa >> 12, (ipa >> 12) + pages - 1)
                };
                translations
                    .retain(|(v, page), _| *v != vmid.bits() || !(first..=last).contains(page));
            }
            Command::Sync(_) => {}
            other => panic!("not expected: {other:?}"),
        }
    }

    /// Where an access goes whose device says that its address is translated: past everything, unless the
    /// stream's entry is asked first. [IHI 0070 §3.9.1.3]
    pub(super) fn translated_dma(&self, sid: u32, at: u64) -> Option<u64> {
        let cr0 = u32::try_from(self.get(regs::CR0)).unwrap();
        if cr0 & 1 == 0 || !self.has_ats() {
            return None;
        }
        if cr0 & ATSCHK == 0 {
            return Some(at);
        }
        let base = self.get(regs::STRTAB_BASE) & 0x000f_ffff_ffff_ffc0;
        let eats = self.word(base + u64::from(sid) * 64 + 8) >> 28 & 3;
        (eats == 1).then_some(at)
    }

    /// Where a device's access goes, and what is allowed there.
    pub(super) fn dma(&self, sid: u32, at: u64) -> Option<(u64, u64)> {
        if self.get(regs::CR0) & 1 == 0 {
            let aborts = self.get(regs::GBPA) >> 20 & 1 == 1;
            return (!aborts).then_some((at, READ | WRITE));
        }
        let config = self.get(regs::STRTAB_BASE_CFG);
        if u64::from(sid) >> (config & 0x3f) != 0 {
            return None;
        }
        let base = self.get(regs::STRTAB_BASE) & 0x000f_ffff_ffff_ffc0;
        let cached = self.entries.borrow().get(&sid).copied();
        let (array, index) = match config >> 16 & 3 {
            0 => (base, sid.into()),
            _ => {
                let split = config >> 6 & 0x1f;
                let descriptor = self.word(base + (u64::from(sid) >> split) * 8);
                let span = descriptor & 0x1f;
                if span == 0 {
                    return None;
                }
                assert_eq!(span, split + 1, "whole arrays");
                let index = u64::from(sid) & ((1 << split) - 1);
                (descriptor & 0x000f_ffff_ffff_ffc0, index)
            }
        };
        let ste = cached.unwrap_or_else(|| {
            core::array::from_fn(|n| self.word(array + index * 64 + n as u64 * 8))
        });
        self.entries.borrow_mut().insert(sid, ste);
        if ste[0] & 1 == 0 {
            return None;
        }
        match ste[0] >> 1 & 7 {
            0 => None,
            4 => Some((at, READ | WRITE)),
            6 => {
                let vmid = u16::try_from(ste[2] & 0xffff).unwrap();
                let known = self.translations.borrow().get(&(vmid, at >> 12)).copied();
                let found = known.or_else(|| self.walk(&ste, at))?;
                self.translations
                    .borrow_mut()
                    .insert((vmid, at >> 12), found);
                Some((found.page | at & 0xfff, found.rights))
            }
            other => panic!("configuration {other}"),
        }
    }

    /// A stage-2 walk with the 4 KiB granule.
    fn walk(&self, ste: &[u64; 8], at: u64) -> Option<Cached> {
        let bits = 64 - (ste[2] >> 32 & 0x3f);
        assert_eq!(ste[2] >> 46 & 3, 0, "the granule");
        if at >> bits != 0 {
            return None;
        }
        let first = 2 - (ste[2] >> 38 & 3);
        let mut table = ste[3] & 0x000f_ffff_ffff_fff0;
        for level in first..4 {
            let shift = 12 + 9 * (3 - level);
            // The tables of the first level are one after another.
            let index = match level == first {
                true => at >> shift,
                false => at >> shift & 0x1ff,
            };
            let descriptor = self.word(table + index * 8);
            if descriptor & 1 == 0 {
                return None;
            }
            let address = descriptor & 0x0000_ffff_ffff_f000;
            let is_table = descriptor & 2 != 0;
            if is_table && level < 3 {
                table = address;
                continue;
            }
            assert_eq!(is_table, level == 3, "a descriptor that is none");
            let inside = at & ((1 << shift) - 1) & !0xfff;
            return Some(Cached {
                page: address & !((1 << shift) - 1) | inside,
                rights: descriptor >> 6 & 3,
            });
        }
        None
    }
}

impl Mmio for &'static Hardware {
    fn read8(&self, _: usize) -> u8 {
        panic!("no 8-bit registers")
    }
    fn read16(&self, _: usize) -> u16 {
        panic!("no 16-bit registers")
    }
    fn read32(&self, offset: usize) -> u32 {
        u32::try_from(self.get(self.at(offset))).unwrap()
    }
    fn read64(&self, offset: usize) -> u64 {
        self.get(offset)
    }
    fn write8(&self, _: usize, _: u8) {
        panic!("no 8-bit registers")
    }
    fn write16(&self, _: usize, _: u16) {
        panic!("no 16-bit registers")
    }
    fn write32(&self, offset: usize, value: u32) {
        let offset = self.at(offset);
        let value = match offset {
            // The update is done at once.
            regs::GBPA => value & !(1 << 31),
            regs::CR0 if !self.has_ats() => value & !ATSCHK,
            _ => value,
        };
        if offset == regs::EVENTQ_CONS
            && let Some(event) = self.late.take()
        {
            self.record(event);
        }
        self.set(offset, value.into());
        match offset {
            regs::CR0 => self.set(regs::CR0ACK, value.into()),
            regs::IRQ_CTRL => self.set(regs::IRQ_CTRLACK, value.into()),
            regs::CMDQ_PROD => self.consume(),
            _ => {}
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        self.set(offset, value);
    }
}
