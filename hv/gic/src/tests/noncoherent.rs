//! An ITS and redistributors that do not snoop the CPUs' caches, as on the RK3588: what the driver writes stays
//! in a cache until it is cleaned to memory, and the rest of memory is not what it should be.

use alloc::vec;

use hal::PhysMemory;
use hal::fake::{FakeCache, FakeMemory, StaleFrames};
use types::Pa;

use super::{FakeClock, Model, Redistributor, memory};
use crate::{Error, FIRST_LPI, Its, LPIS, Lpis, Snoop};

fn is_zero(memory: &FakeMemory, start: u64, bytes: u64) -> bool {
    let words = (start..start + bytes).step_by(8);
    words
        .map(|at| memory.read_u64(Pa::truncated(at)).unwrap())
        .all(|word| word == 0)
}

/// What becomes of a device's event, by a driver that believes this.
fn maps_an_event(model: &Model<'_>, snoop: Snoop) -> Result<(), Error> {
    let cached = FakeCache::new(model.memory);
    let frames = StaleFrames::new(&cached);
    let mut its = Its::enable(model, &cached, &frames, FakeClock::default(), snoop, 0x18)?;
    let target = its.target(0, Pa::truncated(0x80a_0000));
    its.add_collection(target)?;
    its.map_device(0x10, 4)?;
    its.map_events(0x10, &[(2, FIRST_LPI + 1, 0)])
}

#[test]
fn an_its_that_does_not_snoop_reads_every_command_and_clean_tables() {
    let memory = memory();
    let model = Model::new(&memory);
    maps_an_event(&model, Snoop::NonCoherent).unwrap();
    assert_eq!(*model.bad.borrow(), []);
    assert_eq!(model.events.borrow()[&(0x10, 2)], (FIRST_LPI + 1, 0));
    // Said so in every register, and each table is what it is to be in memory.
    for at in [0x80, 0x100, 0x108] {
        let value = model.get(at);
        assert_eq!((value >> 59 & 7, value >> 10 & 3), (1, 0), "{at:#x}");
    }
    for at in [0x100, 0x108] {
        let value = model.get(at);
        let bytes = ((value & 0xff) + 1) << 12;
        assert!(
            is_zero(&memory, value & 0xffff_ffff_f000, bytes),
            "{at:#x}: the table of a register"
        );
    }
    let table = model.devices.borrow()[&0x10];
    assert!(is_zero(&memory, table, 4096), "the table of a device");
}

#[test]
fn an_its_that_does_not_snoop_and_says_that_it_shares_is_the_tree_s_to_tell() {
    // The RK3588's: the registers take what it cannot do. A driver that believes them is not understood.
    let memory = memory();
    let model = Model::new(&memory);
    let _ = maps_an_event(&model, Snoop::Coherent);
    assert!(model.devices.borrow().is_empty() && model.events.borrow().is_empty());
    assert!(
        !model.bad.borrow().is_empty(),
        "it read what was there before"
    );
}

#[test]
fn an_its_whose_registers_say_that_it_does_not_share_is_believed() {
    let memory = memory();
    let mut model = Model::new(&memory);
    model.shares = false;
    maps_an_event(&model, Snoop::Coherent).unwrap();
    assert_eq!(*model.bad.borrow(), []);
    assert_eq!(model.events.borrow()[&(0x10, 2)], (FIRST_LPI + 1, 0));
}

/// The attributes of both tables of a redistributor, and whether they are in memory.
fn tables_of_a_redistributor(snoop: Snoop) -> ([u64; 2], bool) {
    let memory = memory();
    let cached = FakeCache::new(&memory);
    let frames = StaleFrames::new(&cached);
    let lpis = Lpis::new(&cached, &frames, snoop).unwrap();
    let frame = Redistributor::default();
    frame.0.borrow_mut().insert(8, 1);
    lpis.enable(&&frame, &frames, &FakeClock::default())
        .unwrap();
    let registers = frame.0.borrow();
    let mut bytes = vec![0; LPIS as usize];
    let table = Pa::truncated(registers[&0x70] & 0xf_ffff_ffff_f000);
    memory.read(table, &mut bytes).unwrap();
    let pending = registers[&0x78] & 0xf_ffff_ffff_0000;
    let there = bytes.iter().all(|byte| *byte == 0xa1) && is_zero(&memory, pending, 2048);
    let attributes = [0x70, 0x78].map(|at| registers[&at] >> 7 & 0x1f);
    (attributes, there)
}

#[test]
fn redistributors_that_do_not_snoop_find_their_tables_in_memory() {
    let (attributes, there) = tables_of_a_redistributor(Snoop::NonCoherent);
    // Not cacheable, not shareable.
    assert_eq!(attributes, [1, 1]);
    assert!(there);
}

#[test]
fn a_table_that_stays_in_a_cache_is_noticed() {
    let (_, there) = tables_of_a_redistributor(Snoop::Coherent);
    assert!(!there);
}
