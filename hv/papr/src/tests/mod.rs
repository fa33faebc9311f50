//! The platform as a guest sees it.

mod calls;
mod connector;
mod hostile;
mod interrupts;
mod services;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::vec::Vec;

use crate::{
    After, Characteristics, Config, Date, Environment, Kind, NotGuestMemory, Platform, Servers,
    Source, TERMINAL,
};

/// Bytes of the guest's memory.
const MEMORY: usize = 0x1_0000;
/// An edge source and a level source.
const EDGE: u32 = 0x1100;
const LEVEL: u32 = 0x1200;
/// A level that is looked at again when its interrupt ends.
const SAMPLED: u32 = 0x1204;
const NOON: Date = Date {
    year: 2026,
    month: 2,
    day: 28,
    hour: 12,
    minute: 0,
    second: 0,
    nanosecond: 5,
};

/// Surroundings that remember.
struct Fake {
    memory: RefCell<Vec<u8>>,
    printed: RefCell<Vec<u8>>,
    typed: RefCell<VecDeque<u8>>,
    kicked: Cell<Servers>,
    process_table: Cell<u64>,
    code: Cell<u64>,
    ended: RefCell<Vec<u32>>,
    has_clock: bool,
}

impl Fake {
    fn new() -> Self {
        Self {
            memory: RefCell::new(std::vec![0; MEMORY]),
            printed: RefCell::default(),
            typed: RefCell::default(),
            kicked: Cell::default(),
            process_table: Cell::new(u64::MAX),
            code: Cell::new(0),
            ended: RefCell::default(),
            has_clock: true,
        }
    }

    fn take_kicked(&self) -> Vec<usize> {
        self.kicked.take().iter().collect()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.write(at, bytes).unwrap();
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes).unwrap();
        u32::from_be_bytes(bytes)
    }

    fn range(&self, at: u64, bytes: usize) -> Result<std::ops::Range<usize>, NotGuestMemory> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let end = start.checked_add(bytes).filter(|end| *end <= MEMORY);
        end.map(|end| start..end)
            .ok_or(NotGuestMemory { at, bytes })
    }
}

impl Environment for Fake {
    fn memory_bytes(&self) -> u64 {
        MEMORY as u64
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(at, buffer.len())?;
        buffer.copy_from_slice(&self.memory.borrow()[range]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(at, bytes.len())?;
        self.memory.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }

    fn code_changed(&self, at: u64, _: u64) {
        self.code.set(at);
    }

    fn print(&self, bytes: &[u8]) {
        self.printed.borrow_mut().extend_from_slice(bytes);
    }

    fn typed(&self, buffer: &mut [u8]) -> usize {
        let mut typed = self.typed.borrow_mut();
        let count = typed.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(typed.drain(..count)) {
            *to = from;
        }
        count
    }

    fn now(&self) -> Option<Date> {
        self.has_clock.then_some(NOON)
    }

    fn timebase(&self) -> u64 {
        0x1234
    }

    fn random(&self) -> Option<u64> {
        Some(4)
    }

    fn kick(&self, vcpus: Servers) {
        self.kicked.set(self.kicked.get().and(vcpus));
    }

    fn ended(&self, source: u32) {
        self.ended.borrow_mut().push(source);
    }

    fn set_process_table(&self, entry: u64) -> bool {
        self.process_table.set(entry);
        true
    }
}

fn platform(cpus: usize) -> Platform {
    Platform::new(Config {
        terminal: Some(TERMINAL),
        cpus,
        sources: [
            Source {
                number: LEVEL,
                kind: Kind::Level,
            },
            Source {
                number: SAMPLED,
                kind: Kind::Sampled,
            },
            Source {
                number: EDGE,
                kind: Kind::Edge,
            },
        ]
        .into(),
        characteristics: Some(Characteristics {
            character: 1,
            behaviour: 2,
        }),
    })
}

/// The registers behind a call, and what follows it.
fn call(
    platform: &Platform,
    env: &Fake,
    vcpu: usize,
    number: u64,
    arguments: &[u64],
) -> ([u64; 32], After) {
    let mut gpr = [0xdead; 32];
    gpr[3] = number;
    gpr[4..4 + arguments.len()].copy_from_slice(arguments);
    let after = platform.hypercall(vcpu, &mut gpr, 0, env);
    (gpr, after)
}

/// The status of a call after which its vCPU goes on.
fn status(platform: &Platform, env: &Fake, number: u64, arguments: &[u64]) -> i64 {
    let (gpr, after) = call(platform, env, 0, number, arguments);
    assert_eq!(after, After::Resume);
    gpr[3].cast_signed()
}
