//! Events that the platform tells by `check-exception`: a connector's devices have come, or have gone.
//!
//! The guest hears of one by an edge of [`HOT_PLUG_SOURCE`], and fetches a log of it. Of each connector the
//! last event counts.

use alloc::vec::Vec;

/// The interrupt source of these events; QEMU's.
pub const HOT_PLUG_SOURCE: u32 = 0x1001;
/// The bit of `check-exception`'s mask that asks for them. [Linux arch/powerpc/include/asm/rtas.h]
pub(crate) const HOT_PLUG_MASK: u32 = 0x1000_0000;

/// What became of the devices at a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They are there.
    Add,
    /// They are gone.
    Remove,
}

/// An event of a connector for PCI slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotPlug {
    /// Its index.
    pub connector: u32,
    /// What happened.
    pub action: Action,
}

/// The most events that wait; of more connectors than these the last is forgotten, and its sensor tells.
const MOST: usize = 64;
/// Bytes of a log.
pub(crate) const LOG: usize = HEAD + EXTENDED;
const HEAD: usize = 8;
const EXTENDED: usize = 16 + 48 + 24 + 16;

/// Events that the guest has not fetched, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Events(Vec<HotPlug>);

impl Events {
    pub(crate) fn push(&mut self, event: HotPlug) {
        self.0.retain(|known| known.connector != event.connector);
        if self.0.len() < MOST {
            self.0.push(event);
        }
    }

    pub(crate) fn first(&self) -> Option<HotPlug> {
        self.0.first().copied()
    }

    /// The event was told; whether there are more.
    pub(crate) fn told(&mut self, event: HotPlug) -> bool {
        self.0.retain(|known| *known != event);
        !self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl HotPlug {
    /// The log of it: version 6, with the sections that QEMU's has. [QEMU hw/ppc/spapr_events.c; Linux
    /// arch/powerpc/include/asm/rtas.h, `rtas_ext_event_log_v6`, `pseries_hp_errorlog`]
    pub(crate) fn log(self) -> [u8; LOG] {
        /// Version 6; an event, not recovered, more follows; by hot plug; of type hot plug.
        const SUMMARY: [u8; 4] = [6, 0x34, 0x60, 0xe5];
        /// Valid, new, big-endian; a platform event in PowerPC format.
        const V6: [u8; 4] = [0x86, 0, 0x8e, 0];
        /// Sections: two letters, length, version.
        const MAIN_A: [u8; 5] = [b'P', b'H', 0, 48, 1];
        const MAIN_B: [u8; 5] = [b'U', b'H', 0, 24, 1];
        const HOT_PLUG: [u8; 5] = [b'H', b'P', 0, 16, 1];
        /// A slot; named by its connector's index.
        const SLOT: u8 = 3;
        const BY_INDEX: u8 = 2;
        let action = match self.action {
            Action::Add => 1,
            Action::Remove => 2,
        };
        let extended = u32::try_from(EXTENDED).unwrap_or(0).to_be_bytes();
        let connector = self.connector.to_be_bytes();
        let parts: [(usize, &[u8]); 12] = [
            (0, &SUMMARY),
            (4, &extended),
            (HEAD, &V6),
            (HEAD + 12, b"IBM\0"),
            (24, &MAIN_A),
            // Made by the hypervisor, of three sections.
            (24 + 24, b"H"),
            (24 + 27, &[3]),
            (72, &MAIN_B),
            // External environment.
            (72 + 8, &[0xa0]),
            (96, &HOT_PLUG),
            (96 + 8, &[SLOT, action, BY_INDEX]),
            (96 + 12, &connector),
        ];
        let mut log = [0; LOG];
        for (at, bytes) in parts {
            for (to, from) in log.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        log
    }
}
