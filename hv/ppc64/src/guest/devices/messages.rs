//! Messages: which sources a device has.

use papr::Served;
use pci::{ConfigSpace as _, Function, Msi};
use types::Bdf;

use super::{Devices, HARDWARE, Held, PARAMETER, address};
use crate::config::RtasConfig;
use crate::hardware::Bridge;
use crate::rtas::Error;

/// What `ibm,change-msi` is asked for: how many there are; a number of either kind; the number that a device starts
/// with, which is none; a number of MSI, of MSI-X. [LoPAR ibm,change-msi]
const QUERY: u32 = 0;
const CHANGE: u32 = 1;
const DEFAULT: u32 = 2;
const MSI: u32 = 3;
const MSIX: u32 = 4;

/// How many messages a device has, and of which kind, as `ibm,change-msi` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    count: u32,
    kind: u32,
}

/// `kind`: MSI.
const KIND_MSI: u32 = 1;

/// Registers of MSI, as they were before a reset: control, address, data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    control: u16,
    address: [u32; 2],
    data: u16,
}

/// Where the data is, from the beginning of the capability on.
fn data_at(msi: &Msi) -> u16 {
    msi.offset.saturating_add(if msi.wide { 12 } else { 8 })
}

/// A function, as messages are asked for it.
struct Asking<'a> {
    bridge: &'a Bridge,
    bdf: Bdf,
    server: u32,
}

impl Asking<'_> {
    fn name(&self) -> [u64; 2] {
        [self.bridge.buid, address(self.bdf).into()]
    }
}

impl Devices {
    /// The source of a device's message, by its number.
    pub(super) fn source(&self, at: u32, buid: [u32; 2], number: u32) -> Served {
        let mut all = self.held.lock();
        let held = self.bridge(&mut all, buid);
        let Some((bridge, function)) = held.and_then(|held| self.function(held, at)) else {
            return Served::new(PARAMETER, &[]);
        };
        let rtas = self.hardware.rtas;
        match rtas.source_of_msi(bridge.buid, address(function.bdf), number) {
            Ok(source) => Served::new(0, &source),
            Err(_) => Served::new(PARAMETER, &[]),
        }
    }

    /// Changes how many messages a device has. What fails leaves those that it has.
    pub(super) fn change_msi(
        &self,
        server: u32,
        at: u32,
        buid: [u32; 2],
        [what, count, _]: [u32; 3],
    ) -> Served {
        let mut all = self.held.lock();
        let held = self.bridge(&mut all, buid);
        let found = held.and_then(|held| {
            let (bridge, function) = self.function(held, at)?;
            Some((held, bridge, function))
        });
        let Some((held, bridge, function)) = found else {
            return Served::new(PARAMETER, &[]);
        };
        let answers = held.answers();
        let mut functions = held.functions.iter_mut();
        // A bridge has none: nobody's device interrupts by it.
        let Some(state) = functions.find(|state| state.bdf == function.bdf) else {
            return Served::new(PARAMETER, &[0, 0, 0]);
        };
        let Some(wanted) = wanted(function, what, count) else {
            return Served::new(PARAMETER, &[0, 0, 0]);
        };
        if !answers {
            return Served::new(HARDWARE, &[0, 0, 0]);
        }
        if let Some(wanted) = wanted {
            let asking = Asking {
                bridge,
                bdf: function.bdf,
                server,
            };
            match self.assign(&asking, state.messages, wanted) {
                Ok(assigned) => state.messages = assigned,
                Err(status) => return Served::new(status, &[0, 0, 0]),
            }
        }
        let Assigned { count, kind } = state.messages;
        Served::new(0, &[count, 0, kind])
    }

    /// Gives a device as many messages as it asks for and there are sources for, instead of those that it has.
    fn assign(
        &self,
        asking: &Asking<'_>,
        old: Assigned,
        wanted: [u32; 2],
    ) -> Result<Assigned, i32> {
        let messages = &self.hardware.messages;
        // First: what the platform takes back it may give to another VM's device at once.
        messages.forget(asking.name());
        let [count, kind] = match self.change(asking, wanted) {
            Ok(changed) => changed,
            Err(status) => {
                self.direct(asking, old.count);
                return Err(status);
            }
        };
        let directed = self.direct(asking, count);
        if directed == count {
            return Ok(Assigned { count, kind });
        }
        // A message that nobody hears of is worse than none.
        messages.forget(asking.name());
        let [what, _] = wanted;
        let _ = self.change(asking, [what, 0]);
        let fewer = match directed {
            0 => Err(HARDWARE),
            some => self.change(asking, [what, some]),
        };
        match fewer {
            Ok([count, kind]) if self.direct(asking, count) == count => {
                Ok(Assigned { count, kind })
            }
            _ => {
                messages.forget(asking.name());
                let _ = self.change(asking, [what, 0]);
                Err(HARDWARE)
            }
        }
    }

    /// Asks the platform: how many there are then, and of which kind.
    fn change(&self, asking: &Asking<'_>, [what, count]: [u32; 2]) -> Result<[u32; 2], i32> {
        let (rtas, buid) = (self.hardware.rtas, asking.bridge.buid);
        // SAFETY: the device is the VM's.
        match unsafe { rtas.change_msi(buid, address(asking.bdf), [what, count, 1]) } {
            Ok([count, _, kind]) => Ok([count, if count == 0 { 0 } else { kind }]),
            Err(Error::Status { status, .. }) => Err(status),
            Err(_) => Err(HARDWARE),
        }
    }

    /// Lets the sources of a device's first messages interrupt the VM; how many of them do.
    fn direct(&self, asking: &Asking<'_>, count: u32) -> u32 {
        let Asking {
            bridge,
            bdf,
            server,
        } = *asking;
        let hardware = self.hardware;
        let directs = |number: &u32| {
            let source = hardware
                .rtas
                .source_of_msi(bridge.buid, address(bdf), *number);
            let Ok([source, _]) = source else {
                return false;
            };
            hardware
                .messages
                .add(source, self.vm, asking.name(), server)
        };
        let first = (0..count).find(|number| !directs(number));
        first.unwrap_or(count)
    }

    /// Remembers where devices' messages go, before a reset makes them forget it. Tables of MSI-X are the guest's to
    /// write: it reaches them.
    pub(super) fn keep_messages(&self, held: &mut Held) {
        let bridge = &self.hardware.bridges[held.bridge];
        // SAFETY: the devices are the VM's, which reaches them by way of us.
        let space = unsafe { RtasConfig::new(self.hardware.rtas, bridge.buid) };
        for state in &mut held.functions {
            let function = bridge.topology.function(state.bdf);
            let msi = function.and_then(|function| function.capabilities.msi);
            let msi = msi.filter(|_| state.messages.count > 0 && state.messages.kind == KIND_MSI);
            state.kept = msi.map(|msi| Kept {
                control: space.read16(state.bdf, msi.offset.saturating_add(2)),
                address: [4, 8].map(|at| space.read32(state.bdf, msi.offset.saturating_add(at))),
                data: space.read16(state.bdf, data_at(&msi)),
            });
        }
    }

    /// Puts it back, after. [LoPAR ibm,change-msi, R1-13]
    pub(super) fn restore_messages(&self, held: &mut Held) {
        let bridge = &self.hardware.bridges[held.bridge];
        // SAFETY: as above.
        let space = unsafe { RtasConfig::new(self.hardware.rtas, bridge.buid) };
        for state in &mut held.functions {
            let function = bridge.topology.function(state.bdf);
            let msi = function.and_then(|function| function.capabilities.msi);
            let (Some(kept), Some(msi)) = (state.kept.take(), msi) else {
                continue;
            };
            let [low, high] = kept.address;
            space.write32(state.bdf, msi.offset.saturating_add(4), low);
            if msi.wide {
                space.write32(state.bdf, msi.offset.saturating_add(8), high);
            }
            space.write16(state.bdf, data_at(&msi), kept.data);
            space.write16(state.bdf, msi.offset.saturating_add(2), kept.control);
        }
    }

    /// Devices have no messages any more.
    pub(super) fn take_messages(&self, held: &mut Held) {
        let buid = self.hardware.bridges[held.bridge].buid;
        for function in &mut held.functions {
            (function.messages, function.kept) = (Assigned::default(), None);
            let device = address(function.bdf);
            self.hardware.messages.forget([buid, device.into()]);
            // SAFETY: takes interrupts away; one that has none answers with an error.
            let _ = unsafe { self.hardware.rtas.change_msi(buid, device, [MSIX, 0, 0]) };
        }
    }
}

/// What is to be asked of the platform, if anything; `None` for what a device does not have.
fn wanted(function: &Function, what: u32, count: u32) -> Option<Option<[u32; 2]>> {
    let capabilities = &function.capabilities;
    let (msi, msix) = (capabilities.msi.is_some(), capabilities.msix.is_some());
    match what {
        QUERY => Some(None),
        DEFAULT if msi || msix => Some(Some([CHANGE, 0])),
        CHANGE if msi || msix => Some(Some([CHANGE, count])),
        MSI if msi => Some(Some([MSI, count])),
        MSIX if msix => Some(Some([MSIX, count])),
        _ => None,
    }
}
