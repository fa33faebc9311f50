//! What an SMMU tells beside records, and when it does not.

use hal::fake::{FakeClock, FakeFrames, FakeMemory};
use types::Pa;

use super::hardware::{Hardware, Ranges, Vmids};
use super::leak;
use crate::spec::{Cr0, Event, Gbpa, Walks, regs};
use crate::{Error, Locked, SERVICE_FAILURE, Smmu};

type Driver = Smmu<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>, FakeClock>;

/// An SMMU with these global errors active when it is found.
fn found_with(errors: u64) -> (&'static Hardware, Result<Driver, Error>) {
    let memory = leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 4 << 20));
    let frames = leak(FakeFrames::new(memory));
    let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, Walks::Coherent);
    hardware.fail(errors);
    let hardware = leak(hardware);
    let locked = Locked::take(hardware, &FakeClock::default()).unwrap();
    let driver = Smmu::enable(locked, memory, frames, FakeClock::default());
    (hardware, driver)
}

fn record(number: u64) -> Event {
    Event([0x10, 0, number << 12, 0])
}

#[test]
fn an_error_that_somebody_left_does_not_stop_its_commands() {
    let (_, driver) = found_with(0x1ff);
    let mut driver = driver.unwrap();
    assert!(!driver.is_off());
    assert_eq!(driver.acknowledge_errors(), 0);
}

#[test]
fn a_record_that_comes_while_others_are_read_is_not_forgotten() {
    let (hardware, driver) = found_with(0);
    let mut driver = driver.unwrap();
    hardware.record(record(1));
    hardware.late.set(Some(record(2)));
    let mut seen = 0;
    let drained = driver.drain(16, |_| seen += 1);
    // No interrupt will say so.
    assert_eq!((seen, hardware.interrupts.get()), (1, 1));
    assert!(drained.more);
    let drained = driver.drain(16, |event| assert_eq!(event, record(2)));
    assert_eq!((drained.records, drained.more), (1, false));
    hardware.record(record(3));
    assert_eq!(hardware.interrupts.get(), 2, "it is heard again");
}

#[test]
fn an_smmu_that_fails_is_turned_off_once() {
    let (hardware, driver) = found_with(0);
    let mut driver = driver.unwrap();
    hardware.fail(1 << 2);
    assert_eq!(driver.acknowledge_errors(), 1 << 2);
    assert!(!driver.is_off(), "lost records are no reason");
    hardware.fail(u64::from(SERVICE_FAILURE) | 1 << 2);
    assert_eq!(driver.acknowledge_errors(), SERVICE_FAILURE | 1 << 2);
    assert!(driver.is_off() && !driver.is_lost());
    let state = driver.state();
    assert_eq!((state.cr0, state.gbpa.abort()), (Cr0::new(), true));
    assert_eq!(driver.send(&[]), Err(Error::Off));
    assert_eq!(driver.acknowledge_errors(), 0);
    let gbpa = u32::try_from(hardware.get(regs::GBPA)).unwrap();
    assert!(Gbpa::from_bits(gbpa).abort());
}
