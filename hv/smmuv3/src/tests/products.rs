//! What products have that an emulator has not.

use std::vec;

use hal::fake::{FakeClock, FakeFrames, FakeMemory};
use iommu::{
    Ats, Backend, Binding, ContextFormat, DefaultSubstream, Endpoint, NestedConfig, StageOne,
    TableOptions, Translate, UnitId,
};
use types::{Pa, StreamId};

use super::hardware::{Hardware, Ranges, Vmids};
use super::leak;
use crate::spec::{Command, Event, Iidr, Ste, SteConfig, Walks, regs};
use crate::{Error, Locked, Platform, Smmu, SmmuBackend, Unusable};

type Memory = &'static FakeMemory;
type Frames = &'static FakeFrames<'static>;
type Driver = Smmu<&'static Hardware, Memory, Frames, FakeClock>;

/// The driver, on an SMMU that is as `with` makes it.
fn driver(with: impl FnOnce(Hardware) -> Hardware) -> (&'static Hardware, Result<Driver, Error>) {
    let memory = leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 4 << 20));
    let frames = leak(FakeFrames::new(memory));
    let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, Walks::Coherent);
    let hardware = leak(with(hardware));
    let mut locked = Locked::take(hardware, &FakeClock::default()).unwrap();
    if hardware.one_page.get() {
        locked = locked.with_one_page();
    }
    let driver = Smmu::enable(locked, memory, frames, FakeClock::default());
    (hardware, driver)
}

type Backed = SmmuBackend<&'static Hardware, Memory, Frames, FakeClock>;

fn backend(with: impl FnOnce(Hardware) -> Hardware) -> Backed {
    let memory = leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 4 << 20));
    let frames = leak(FakeFrames::new(memory));
    let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, Walks::Coherent);
    let hardware = leak(with(hardware));
    let locked = Locked::take(hardware, &FakeClock::default()).unwrap();
    let smmu = Smmu::enable(locked, memory, frames, FakeClock::default()).unwrap();
    let platform = Platform {
        input_bits: 40,
        coherent: true,
    };
    SmmuBackend::new(vec![smmu], memory, frames, platform)
}

/// The entry of a stream in which a guest's stage 1 is over our stage 2.
fn nested_entry(with: impl FnOnce(Hardware) -> Hardware) -> Ste {
    let mut backend = backend(with);
    let endpoint = Endpoint {
        unit: UnitId::new(0),
        source: 8,
    };
    let options = TableOptions {
        nest_parent: true,
        dirty: false,
    };
    let parent = backend.create_table(endpoint, options).unwrap();
    let config = NestedConfig {
        stage_one: StageOne::Translate(Translate {
            format: ContextFormat::Linear,
            default_substream: DefaultSubstream::Terminate,
            substream_bits: 0,
            base: 0x1000,
        }),
        ats: Ats::Off,
    };
    backend
        .install(endpoint, &Binding::Nested { parent, config })
        .unwrap();
    backend.read_entry(endpoint).unwrap()
}

/// `STE.S1STALLD`. [IHI 0070 §5.2]
const S1STALLD: u64 = 1 << 27;

#[test]
fn a_guests_context_descriptor_does_not_make_transactions_stall() {
    let [stalls, terminates] = [0, 1].map(|model| nested_entry(|h| h.with_stage_one(model)));
    assert_eq!(stalls.config(), SteConfig::Nested);
    assert_eq!(stalls.0[1] & S1STALLD, S1STALLD);
    // Where nothing stalls, the bit would make the entry illegal. [IHI 0070 §5.2.2]
    assert_eq!(terminates.0[1] & S1STALLD, 0);
    let mut same = stalls;
    same.0[1] &= !S1STALLD;
    assert_eq!(same, terminates);
}

#[test]
fn an_smmu_that_can_only_stall_is_not_used() {
    let (_, driver) = driver(|hardware| hardware.with_stage_one(2));
    let error = driver.map(|_| ()).unwrap_err();
    assert_eq!(error, Error::Unusable(Unusable::StallForced));
}

#[test]
fn a_device_that_calls_its_addresses_translated_does_not_get_past_the_stream_table() {
    let (hardware, driver) = driver(Hardware::with_ats);
    let mut driver = driver.unwrap();
    for ste in [Ste::ABORT, Ste::BYPASS] {
        driver.install(StreamId::new(8).unwrap(), ste).unwrap();
        assert_eq!(hardware.translated_dma(8, 0x4000_0000), None, "{ste:?}");
    }
    assert_eq!(
        hardware.get(regs::CR0),
        0x1d,
        "ATSCHK, CMDQEN, EVENTQEN, SMMUEN"
    );
    driver.disable();
    assert_eq!(hardware.translated_dma(8, 0x4000_0000), None);
}

#[test]
fn an_smmu_without_ats_is_not_asked_to_check_it() {
    let (hardware, driver) = driver(|hardware| hardware);
    assert!(!driver.unwrap().is_off());
    assert_eq!(hardware.get(regs::CR0), 0xd);
}

#[test]
fn a_product_on_which_nesting_does_not_work_gives_no_guest_a_stage_1() {
    let arm = |product, variant, revision| {
        let iidr = Iidr::new()
            .with_implementer(0x43b)
            .with_product_id(product)
            .with_variant(variant)
            .with_revision(revision);
        let backend = backend(|h| h.with_stage_one(1).with_product(iidr));
        backend.capabilities(UnitId::new(0)).unwrap().nesting
    };
    assert!(!arm(0x483, 1, 9) && !arm(0x487, 1, 0));
    assert!(arm(0x483, 2, 0) && arm(0, 0, 0));
}

#[test]
fn a_sync_is_never_behind_more_than_32_commands() {
    let (hardware, driver) = driver(|hardware| hardware);
    let many = [Command::TlbiNsnhAll; 200];
    driver.unwrap().send(&many).unwrap();
    assert_eq!(hardware.unsynced.get(), (0, 32));
}

#[test]
fn broadcast_maintenance_is_ignored_and_streams_out_of_the_table_are_recorded() {
    let (hardware, driver) = driver(|hardware| hardware);
    assert!(!driver.unwrap().is_off());
    assert_eq!(hardware.get(regs::CR2), 1 << 2 | 1 << 1, "PTM, RECINVSID");
}

#[test]
fn records_are_read_where_page_1_is_in_page_0() {
    let (hardware, driver) = driver(|hardware| {
        hardware.one_page.set(true);
        hardware
    });
    let mut driver = driver.unwrap();
    hardware.record(Event([0x10, 0, 0x1000, 0]));
    let mut seen = 0;
    let drained = driver.drain(16, |_| seen += 1);
    assert_eq!((drained.records, seen), (1, 1));
    assert_eq!(driver.drain(16, |_| seen += 1).records, 0);
}

#[test]
fn tables_and_queues_beyond_what_it_can_address_are_not_given_to_it() {
    // It would take the address without its upper bits, and write records there.
    let beyond = |oas| {
        let memory = leak(FakeMemory::new(Pa::new(0x10_0000_0000).unwrap(), 4 << 20));
        let frames = leak(FakeFrames::new(memory));
        let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, Walks::Coherent);
        let hardware = leak(hardware.with_output_size(oas));
        let locked = Locked::take(hardware, &FakeClock::default()).unwrap();
        let driver = Smmu::enable(locked, memory, frames, FakeClock::default());
        (
            driver.map(|_| ()),
            hardware.get(regs::CR0),
            frames.live_blocks(),
        )
    };
    let thirty_six_bits = 1;
    assert_eq!(beyond(thirty_six_bits), (Err(Error::OutOfMemory), 0, 0));
    let forty_bits = 2;
    assert_eq!(beyond(forty_bits).0, Ok(()));
}
