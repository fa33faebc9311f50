//! What products have that an emulator has not.

use hal::fake::{FakeClock, FakeFrames, FakeMemory};
use types::{Pa, StreamId};

use super::hardware::{Hardware, Ranges, Vmids};
use super::leak;
use crate::spec::{Ste, Walks, regs};
use crate::{Error, Locked, Smmu};

type Driver = Smmu<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>, FakeClock>;

/// The driver, on an SMMU that is as `with` makes it.
fn driver(with: impl FnOnce(Hardware) -> Hardware) -> (&'static Hardware, Result<Driver, Error>) {
    let memory = leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 4 << 20));
    let frames = leak(FakeFrames::new(memory));
    let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, Walks::Coherent);
    let hardware = leak(with(hardware));
    let locked = Locked::take(hardware, &FakeClock::default()).unwrap();
    let driver = Smmu::enable(locked, memory, frames, FakeClock::default());
    (hardware, driver)
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
