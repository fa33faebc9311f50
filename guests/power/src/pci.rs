//! A device behind a host bridge of the guest's, by the services for configuration space.

use crate::rtas;

const READ: u32 = 0x2016;
const WRITE: u32 = 0x2017;
const SOURCE: u32 = 0x2018;
const CHANGE_MSI: u32 = 0x2019;
const SET_XIVE: u32 = 0x200a;

/// The unique id of QEMU's first host bridge; they count up.
const FIRST_BUID: u64 = 0x0800_0000_2000_0000;
/// Where the registers behind host bridge 0 begin, by bus address 0; each further one is that far behind.
const REGISTERS: u64 = 0x2000_0000_0000;
const APART: u64 = 0x8000_0000;

/// `COMMAND`: registers answer, and the device masters the bus.
pub const MEMORY: u32 = 2;
/// See [`MEMORY`].
pub const MASTER: u32 = 4;
/// `COMMAND`: its interrupt pin stays down.
pub const NO_PIN: u32 = 0x400;

/// A function behind one of QEMU's host bridges.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    bridge: u64,
    bus: u32,
    slot: u32,
}

impl Function {
    /// Function 0 of a slot.
    pub const fn new(bridge: u64, bus: u32, slot: u32) -> Self {
        Self { bridge, bus, slot }
    }

    /// Configuration address and unique id, as services want them.
    pub fn name(self) -> [u32; 3] {
        let buid = FIRST_BUID + self.bridge;
        [
            self.bus << 16 | self.slot << 11,
            (buid >> 32) as u32,
            buid as u32,
        ]
    }

    /// Reads `bytes` of its configuration space: status and value.
    pub fn read(self, register: u32, bytes: u32) -> (i32, u32) {
        let [at, high, low] = self.name();
        let [status, value] = rtas::service(0, READ, &[at | register, high, low, bytes]);
        (status, value.cast_unsigned())
    }

    /// Writes `bytes` of it; the status.
    pub fn write(self, register: u32, bytes: u32, value: u32) -> i32 {
        let [at, high, low] = self.name();
        let [status] = rtas::service(0, WRITE, &[at | register, high, low, bytes, value]);
        status
    }

    /// Where the registers behind its 32-bit BAR 0 are.
    pub fn bar(self) -> u64 {
        let (_, bar) = self.read(0x10, 4);
        REGISTERS + self.bridge * APART + u64::from(bar & !0xf)
    }

    /// Gives it one message; its interrupt source, which interrupts CPU 0 from then on.
    pub fn message(self) -> Option<u32> {
        let [at, high, low] = self.name();
        // 1: change, whatever kind it has.
        let changed = rtas::service::<3>(0, CHANGE_MSI, &[at, high, low, 1, 1, 0]);
        let [status, source, _] = rtas::service(0, SOURCE, &[at, high, low, 0]);
        if changed[..2] != [0, 1] || status != 0 {
            return None;
        }
        let source = source.cast_unsigned();
        let [set] = rtas::service(0, SET_XIVE, &[source, 0, 5]);
        let msi = self.capability(5)?;
        let (_, control) = self.read(msi + 2, 2);
        self.write(msi + 2, 2, control | 1);
        (set == 0).then_some(source)
    }

    fn capability(self, id: u32) -> Option<u32> {
        let (_, mut at) = self.read(0x34, 1);
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            if self.read(at, 1).1 == id {
                return Some(at);
            }
            at = self.read(at + 1, 1).1;
        }
        None
    }
}
