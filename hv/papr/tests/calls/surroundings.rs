//! A guest's surroundings: 64 KiB of memory, and as little as there can be of the rest.

use std::cell::RefCell;

use bulkhead_papr::{
    Config, Date, Environment, Kind, NotGuestMemory, Platform, Servers, Source, TERMINAL,
};

pub(crate) const MEMORY: usize = 0x1_0000;

pub(crate) struct Surroundings(pub(crate) RefCell<Vec<u8>>);

impl Surroundings {
    fn range(&self, at: u64, bytes: usize) -> Result<std::ops::Range<usize>, NotGuestMemory> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let end = start.checked_add(bytes).filter(|end| *end <= MEMORY);
        end.map(|end| start..end)
            .ok_or(NotGuestMemory { at, bytes })
    }
}

impl Environment for Surroundings {
    fn memory_bytes(&self) -> u64 {
        MEMORY as u64
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(at, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(at, bytes.len())?;
        self.0.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }

    fn code_changed(&self, _: u64, _: u64) {}

    fn print(&self, bytes: &[u8]) {
        assert!(bytes.len() <= 16);
    }

    fn typed(&self, _: &mut [u8]) -> usize {
        0
    }

    fn now(&self) -> Option<Date> {
        Date::from_cells([2026, 1, 1, 0, 0, 0, 0])
    }

    fn timebase(&self) -> u64 {
        0
    }

    fn random(&self) -> Option<u64> {
        None
    }

    fn kick(&self, vcpus: Servers) {
        assert!(!vcpus.is_empty() && vcpus.iter().all(|vcpu| vcpu < 3));
    }

    fn set_process_table(&self, _: u64) -> bool {
        true
    }
}

pub(crate) fn platform() -> Platform {
    let source = |number, kind| Source { number, kind };
    Platform::new(Config {
        terminal: Some(TERMINAL),
        cpus: 3,
        sources: [source(0x1100, Kind::Edge), source(0x1200, Kind::Level)].into(),
        characteristics: None,
    })
}
