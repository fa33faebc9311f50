//! ITS commands. [§5.3]

use types::Pa;

use crate::its::Target;

/// A command. Four 64-bit words in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `MAPD`: a device has events, `1 << bits` of them, whose table is at `table`.
    MapDevice {
        /// The DeviceID.
        device: u32,
        /// Log2 of the events, from 1.
        bits: u8,
        /// The table, on a 256-byte boundary.
        table: Pa,
    },
    /// `MAPD` without V: the device has none any more.
    UnmapDevice {
        /// The DeviceID.
        device: u32,
    },
    /// `MAPC`: a collection's interrupts go to a redistributor.
    MapCollection {
        /// The collection.
        collection: u16,
        /// The redistributor.
        target: Target,
    },
    /// `MAPTI`: an event is an LPI of a collection.
    MapEvent {
        /// The DeviceID.
        device: u32,
        /// The EventID.
        event: u32,
        /// The INTID.
        lpi: u32,
        /// The collection.
        collection: u16,
    },
    /// `DISCARD`: an event is nothing any more, and not pending.
    Discard {
        /// The DeviceID.
        device: u32,
        /// The EventID.
        event: u32,
    },
    /// `CLEAR`: an event is not pending.
    Clear {
        /// The DeviceID.
        device: u32,
        /// The EventID.
        event: u32,
    },
    /// `INVALL`: the configuration of a collection's LPIs is read again.
    InvalidateAll {
        /// The collection.
        collection: u16,
    },
    /// `SYNC`: everything before it is seen by a redistributor.
    Sync {
        /// The redistributor.
        target: Target,
    },
}

impl Command {
    /// Bytes of a command in the queue.
    pub const BYTES: u64 = 32;
    const VALID: u64 = 1 << 63;

    /// The words of the queue.
    #[must_use]
    pub fn encode(self) -> [u64; 4] {
        let of = |opcode: u64, device: u32| opcode | u64::from(device) << 32;
        match self {
            Self::MapDevice {
                device,
                bits,
                table,
            } => [
                of(0x08, device),
                u64::from(bits.saturating_sub(1) & 0x1f),
                Self::VALID | table.bits(),
                0,
            ],
            Self::UnmapDevice { device } => [of(0x08, device), 0, 0, 0],
            Self::MapCollection { collection, target } => {
                let target = Self::VALID | target.field() | u64::from(collection);
                [0x09, 0, target, 0]
            }
            Self::MapEvent {
                device,
                event,
                lpi,
                collection,
            } => [
                of(0x0a, device),
                u64::from(lpi) << 32 | u64::from(event),
                collection.into(),
                0,
            ],
            Self::Discard { device, event } => [of(0x0f, device), event.into(), 0, 0],
            Self::Clear { device, event } => [of(0x04, device), event.into(), 0, 0],
            Self::InvalidateAll { collection } => [0x0d, 0, collection.into(), 0],
            Self::Sync { target } => [0x05, 0, target.field(), 0],
        }
    }
}
