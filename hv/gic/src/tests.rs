//! The driver against an ITS that keeps what it is told.

mod lines;
mod noncoherent;

use core::cell::{Cell, RefCell};

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hal::fake::{FakeFrames, FakeMemory};
use hal::{Clock, Mmio, PhysMemory};
use types::Pa;

use crate::{Command, Delivery, Error, FIRST_LPI, Its, LPIS, Lpis, Snoop};

const BASE: u64 = 0x8000_0000;

/// A clock that a time-out does not take long by.
#[derive(Debug, Default)]
struct FakeClock(Cell<u64>);

impl Clock for FakeClock {
    fn ticks(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
    fn frequency(&self) -> u64 {
        1000
    }
}

/// An ITS as the manual describes it, over the same memory.
struct Model<'m> {
    memory: &'m FakeMemory,
    registers: RefCell<BTreeMap<usize, u64>>,
    typer: u64,
    /// What `BASER.Page_Size` and the shareability fields may hold.
    pages: u64,
    shares: bool,
    /// It does not consume commands.
    dead: Cell<bool>,
    devices: RefCell<BTreeMap<u32, u64>>,
    collections: RefCell<BTreeMap<u16, u64>>,
    events: RefCell<BTreeMap<(u32, u32), (u32, u16)>>,
    syncs: Cell<usize>,
    /// `INVALL`s.
    read_again: Cell<usize>,
    bad: RefCell<Vec<u64>>,
}

impl<'m> Model<'m> {
    fn new(memory: &'m FakeMemory) -> Self {
        let mut registers = BTreeMap::new();
        registers.insert(0x100, 1 << 56 | 7 << 48);
        registers.insert(0x108, 4 << 56 | 7 << 48);
        Self {
            memory,
            registers: RefCell::new(registers),
            // 16 bits of DeviceID and EventID, entries of 12 bytes.
            typer: 1 | 11 << 4 | 15 << 8 | 15 << 13,
            pages: 0,
            shares: true,
            dead: Cell::new(false),
            devices: RefCell::default(),
            collections: RefCell::default(),
            events: RefCell::default(),
            syncs: Cell::new(0),
            read_again: Cell::new(0),
            bad: RefCell::default(),
        }
    }

    fn get(&self, at: usize) -> u64 {
        self.registers.borrow().get(&at).copied().unwrap_or(0)
    }

    fn consume(&self) {
        let base = self.get(0x80) & 0xf_ffff_ffff_f000;
        let mut read = self.get(0x90);
        while !self.dead.get() && read != self.get(0x88) {
            let mut words = [0; 4];
            for (at, word) in (0..).step_by(8).zip(&mut words) {
                *word = self
                    .memory
                    .read_u64(Pa::truncated(base + read + at))
                    .unwrap();
            }
            self.execute(words);
            read = (read + 32) % 4096;
            self.registers.borrow_mut().insert(0x90, read);
        }
    }

    fn execute(&self, words: [u64; 4]) {
        let device = u32::try_from(words[0] >> 32).unwrap();
        let event = u32::try_from(words[1] & 0xffff_ffff).unwrap();
        let collection = u16::try_from(words[2] & 0xffff).unwrap();
        let valid = words[2] >> 63 != 0;
        match words[0] & 0xff {
            0x08 if valid => {
                let table = words[2] & 0xf_ffff_ffff_ff00;
                self.devices.borrow_mut().insert(device, table);
            }
            0x08 => {
                self.devices.borrow_mut().remove(&device);
                self.events.borrow_mut().retain(|(d, _), _| *d != device);
            }
            0x09 => {
                let target = words[2] & 0x7_ffff_ffff_0000;
                self.collections.borrow_mut().insert(collection, target);
            }
            0x0a if self.devices.borrow().contains_key(&device)
                && self.collections.borrow().contains_key(&collection) =>
            {
                let lpi = u32::try_from(words[1] >> 32).unwrap();
                self.events
                    .borrow_mut()
                    .insert((device, event), (lpi, collection));
            }
            0x04 if self.events.borrow().contains_key(&(device, event)) => {}
            0x0d => self.read_again.set(self.read_again.get() + 1),
            0x05 => self.syncs.set(self.syncs.get() + 1),
            _ => self.bad.borrow_mut().push(words[0]),
        }
    }
}

impl Mmio for &Model<'_> {
    fn read8(&self, _: usize) -> u8 {
        unreachable!()
    }
    fn read16(&self, _: usize) -> u16 {
        unreachable!()
    }
    fn read32(&self, offset: usize) -> u32 {
        assert_eq!(offset, 0);
        let control = u32::try_from(self.get(0)).unwrap();
        control | u32::from(control & 1 == 0) << 31
    }
    fn read64(&self, offset: usize) -> u64 {
        if offset == 8 {
            self.typer
        } else {
            self.get(offset)
        }
    }
    fn write8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write16(&self, _: usize, _: u16) {
        unreachable!()
    }
    fn write32(&self, offset: usize, value: u32) {
        assert_eq!(offset, 0);
        self.registers.borrow_mut().insert(0, (value & 1).into());
    }
    fn write64(&self, offset: usize, value: u64) {
        let mut value = value;
        if (0x100..0x140).contains(&offset) {
            let fixed = self.get(offset) & (7 << 56 | 0x1f << 48);
            value = value & !(7 << 56 | 0x1f << 48) | fixed;
            if value >> 8 & 3 != self.pages {
                value = value & !(3 << 8) | self.pages << 8;
            }
        }
        if ((0x100..0x140).contains(&offset) || offset == 0x80) && !self.shares {
            value &= !(3 << 10);
        }
        self.registers.borrow_mut().insert(offset, value);
        if offset == 0x80 {
            self.registers.borrow_mut().insert(0x90, 0);
        }
        if offset == 0x88 {
            self.consume();
        }
    }
}

fn memory() -> FakeMemory {
    FakeMemory::new(Pa::truncated(BASE), 4 << 20)
}

type Driver<'a> = Its<&'a Model<'a>, &'a FakeMemory, &'a FakeFrames<'a>, FakeClock>;

fn enable<'a>(
    model: &'a Model<'a>,
    frames: &'a FakeFrames<'a>,
    last: u32,
) -> Result<Driver<'a>, Error> {
    let clock = FakeClock::default();
    Its::enable(model, model.memory, frames, clock, Snoop::Coherent, last)
}

#[test]
fn commands_have_the_words_the_manual_gives_them() {
    let table = Pa::truncated(0x8000_1000);
    let map = Command::MapDevice {
        device: 0x18,
        bits: 5,
        table,
    };
    assert_eq!(map.encode(), [0x18_0000_0008, 4, 1 << 63 | 0x8000_1000, 0]);
    let event = Command::MapEvent {
        device: 0x18,
        event: 3,
        lpi: 8195,
        collection: 1,
    };
    assert_eq!(event.encode(), [0x18_0000_000a, 8195 << 32 | 3, 1, 0]);
    let discard = Command::Discard {
        device: 1,
        event: 2,
    };
    assert_eq!(discard.encode(), [0x1_0000_000f, 2, 0, 0]);
}

#[test]
fn a_device_gets_events_and_loses_them() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    let before = frames.live_blocks();
    for number in 0..2 {
        let target = its.target(number, Pa::truncated(0x80a_0000));
        assert_eq!(its.add_collection(target), Ok(number));
    }
    its.map_device(0x10, 3).unwrap();
    let lpi = FIRST_LPI;
    its.map_events(0x10, &[(0, lpi, 0), (2, lpi + 1, 1)])
        .unwrap();
    assert_eq!(model.events.borrow()[&(0x10, 2)], (lpi + 1, 1));
    assert_eq!(model.collections.borrow()[&1], 1 << 16);
    its.clear(0x10, 1).unwrap();
    its.unmap_device(0x10).unwrap();
    assert!(model.events.borrow().is_empty() && model.devices.borrow().is_empty());
    assert_eq!(frames.live_blocks(), before, "its table came back");
    assert_eq!(its.unmap_device(0x10), Ok(()), "once is enough");
    assert_eq!(*model.bad.borrow(), []);
}

#[test]
fn every_change_is_followed_by_a_sync_to_every_redistributor() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    for number in 0..3 {
        let target = its.target(number, Pa::truncated(0));
        its.add_collection(target).unwrap();
    }
    its.map_device(8, 8).unwrap();
    let before = model.syncs.get();
    its.map_events(8, &[(0, FIRST_LPI, 2)]).unwrap();
    its.unmap_device(8).unwrap();
    assert_eq!(model.syncs.get() - before, 6);
}

#[test]
fn the_table_of_a_collection_is_read_again() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    its.add_collection(its.target(0, Pa::truncated(0))).unwrap();
    let known = (model.syncs.get(), model.read_again.get());
    its.invalidate_all(0).unwrap();
    assert_eq!(
        (model.syncs.get(), model.read_again.get()),
        (known.0 + 1, known.1 + 1)
    );
    assert_eq!(its.invalidate_all(1), Err(Error::NoLpis));
}

#[test]
fn more_events_than_the_queue_has_places_go_in_batches() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    let target = its.target(0, Pa::truncated(0));
    its.add_collection(target).unwrap();
    its.map_device(8, 1000).unwrap();
    let events: Vec<_> = (0..1000)
        .map(|event| (event, FIRST_LPI + event, 0))
        .collect();
    its.map_events(8, &events).unwrap();
    assert_eq!(model.events.borrow().len(), 1000);
    assert_eq!(*model.bad.borrow(), []);
}

#[test]
fn device_ids_beyond_the_table_are_refused() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let refused = enable(&model, &frames, 0x1_0000).err();
    assert_eq!(refused, Some(Error::DeviceId(0x1_0000)));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    // A page of entries of 8 bytes.
    assert_eq!(its.map_device(512, 1), Err(Error::DeviceId(512)));
    its.map_device(511, 1).unwrap();
    assert_eq!(its.map_device(511, 1), Err(Error::DeviceId(511)), "twice");
    assert_eq!(its.map_device(1, 1 << 17), Err(Error::Events(1 << 17)));
}

#[test]
fn an_its_that_has_one_page_size_gets_it() {
    let memory = memory();
    for pages in 0..3 {
        let mut model = Model::new(&memory);
        model.pages = pages;
        let frames = FakeFrames::new(&memory);
        enable(&model, &frames, 0xffff).unwrap();
        let base = model.get(0x100);
        assert_eq!((base >> 63, base >> 8 & 3), (1, pages));
        let bytes = ((base & 0xff) + 1) << (12 + 2 * pages);
        assert!(bytes >= 0x1_0000 * 8, "{bytes:#x}");
    }
}

#[test]
fn an_its_that_does_not_share_is_told_non_cacheable() {
    let memory = memory();
    let mut model = Model::new(&memory);
    model.shares = false;
    let frames = FakeFrames::new(&memory);
    let mut its = enable(&model, &frames, 0x18).unwrap();
    for at in [0x80, 0x100, 0x108] {
        let value = model.get(at);
        assert_eq!((value >> 59 & 7, value >> 10 & 3), (1, 0), "{at:#x}");
    }
    its.map_device(8, 1).unwrap();
    assert_eq!(model.devices.borrow().len(), 1);
}

#[test]
fn an_its_that_is_dead_is_lost_and_its_memory_stays_away() {
    let memory = memory();
    let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
    let mut its = enable(&model, &frames, 0x18).unwrap();
    its.map_device(8, 8).unwrap();
    let before = frames.live_blocks();
    model.dead.set(true);
    assert_eq!(its.unmap_device(8), Err(Error::Timeout));
    assert!(its.is_lost());
    assert_eq!(frames.live_blocks(), before, "the table is still in use");
    model.dead.set(false);
    assert_eq!(its.unmap_device(8), Err(Error::Timeout), "for good");
}

#[test]
fn an_its_that_names_redistributors_by_address_gets_addresses() {
    let memory = memory();
    let mut model = Model::new(&memory);
    model.typer |= 1 << 19;
    let frames = FakeFrames::new(&memory);
    let mut its = enable(&model, &frames, 0x18).unwrap();
    let target = its.target(3, Pa::truncated(0x12_080a_0000));
    its.add_collection(target).unwrap();
    assert_eq!(model.collections.borrow()[&0], 0x12_080a_0000);
}

#[test]
fn every_allocation_may_fail() {
    let memory = memory();
    for nth in 0..4 {
        let (model, frames) = (Model::new(&memory), FakeFrames::new(&memory));
        frames.fail_from(Some(nth));
        let outcome = enable(&model, &frames, 0x18).and_then(|mut its| its.map_device(8, 8));
        assert_eq!(outcome, Err(Error::OutOfMemory), "{nth}");
        assert_eq!(model.devices.borrow().len(), 0);
    }
}

/// A redistributor's registers.
#[derive(Default)]
struct Redistributor(RefCell<BTreeMap<usize, u64>>);

impl Mmio for &Redistributor {
    fn read8(&self, _: usize) -> u8 {
        unreachable!()
    }
    fn read16(&self, _: usize) -> u16 {
        unreachable!()
    }
    fn read32(&self, offset: usize) -> u32 {
        u32::try_from(self.read64(offset)).unwrap()
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0.borrow().get(&offset).copied().unwrap_or(0)
    }
    fn write8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write16(&self, _: usize, _: u16) {
        unreachable!()
    }
    fn write32(&self, offset: usize, value: u32) {
        self.write64(offset, value.into());
    }
    fn write64(&self, offset: usize, value: u64) {
        self.0.borrow_mut().insert(offset, value);
    }
}

#[test]
fn a_redistributor_reads_one_table_of_enabled_lpis() {
    let memory = memory();
    let frames = FakeFrames::new(&memory);
    let lpis = Lpis::new(&memory, &frames, Snoop::Coherent).unwrap();
    let frame = Redistributor::default();
    let clock = FakeClock::default();
    assert_eq!(lpis.enable(&&frame, &frames, &clock), Err(Error::NoLpis));
    frame.0.borrow_mut().insert(8, 1);
    lpis.enable(&&frame, &frames, &clock).unwrap();
    let registers = frame.0.borrow();
    assert_eq!(registers[&0] & 1, 1);
    assert_eq!(registers[&0x70] & 0x1f, 13);
    assert_eq!(registers[&0x78] & 0xffff & !0xfff, 0, "64 KiB boundary");
    let table = registers[&0x70] & 0xf_ffff_ffff_f000;
    let mut bytes = alloc::vec![0; LPIS as usize];
    memory.read(Pa::truncated(table), &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xa1));
    // One is kept out, and comes again.
    lpis.set(7, Delivery::Off).unwrap();
    memory.read(Pa::truncated(table), &mut bytes).unwrap();
    assert_eq!(bytes[6..9], [0xa1, 0xa0, 0xa1]);
    lpis.set(7, Delivery::On).unwrap();
    memory.read(Pa::truncated(table), &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xa1));
    assert_eq!(lpis.set(LPIS, Delivery::Off), Err(Error::NotMemory));
}
