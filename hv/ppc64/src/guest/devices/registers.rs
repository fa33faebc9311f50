//! What a guest finds in the place of a device's registers.

use pagetable::{Invalidate, Stale};
use pci::{Bar, Function};
use types::{Bdf, Ipa, Pa};

use super::{Devices, Held, View};
use crate::hcall::{self, Hcall};

/// What the addresses of a function's registers lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Its registers.
    Registers,
    /// Memory that is all ones and cannot be written: nothing answers.
    Ones,
    /// Nothing: an access is noticed, and is an error of the device's.
    Nothing,
    /// Nothing, and there is no memory to show anything else: the guest has a machine check.
    Broken,
}

/// What becomes of an access that led nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is done again, and finds something.
    Again,
    /// It is lost.
    Lost,
}

/// What is at an address of a bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The I/O space.
    Io,
    /// Registers of this function.
    Bar(Bdf),
}

/// The memory BARs of a function.
pub(super) fn bars(function: &Function) -> impl Iterator<Item = &Bar> {
    function.bars.iter().filter(|bar| !bar.kind.is_io())
}

/// The translations of a guest's CPUs: dropped when they leave their guest.
pub(super) struct Caches<'a> {
    pub(super) view: View<'a>,
    /// The partition.
    pub(super) lpid: u64,
}

impl Invalidate<Ipa> for Caches<'_> {
    fn publish(&mut self) {}

    fn invalidate(&mut self, _: &Stale<Ipa>) {
        self.invalidate_all();
    }

    /// By the platform, which does it for all its CPUs where it has to. [Linux
    /// Documentation/arch/powerpc/kvm-nested.rst]
    fn invalidate_all(&mut self) {
        /// `tlbie` with RIC 2, PRS 0, R 1: everything of a partition.
        const ALL: u64 = 2 << 18 | 1 << 16;
        /// IS 2: by partition.
        const BY_PARTITION: u64 = 0x800;
        let arguments = [ALL, self.lpid, BY_PARTITION, 0];
        // SAFETY: takes cached translations away.
        let _ = unsafe { hcall::call(Hcall::TlbInvalidate, arguments) };
    }

    /// QEMU's CPUs forget when they leave a guest, and only then.
    fn sync(&mut self) {
        (self.view.leave)();
    }
}

impl Devices {
    /// Lets the guest find what it should, by the state of the PE and by what it lets its devices do.
    pub(super) fn show(&self, held: &mut Held, view: View<'_>) {
        let answers = held.answers();
        for function in &mut held.functions {
            let wanted = if !answers {
                Shown::Ones
            } else if function.decodes {
                Shown::Registers
            } else if held.pe.is_enabled() {
                Shown::Nothing
            } else {
                Shown::Ones
            };
            if function.shown == wanted {
                continue;
            }
            let topology = &self.hardware.bridges[held.bridge].topology;
            let Some(described) = topology.function(function.bdf) else {
                continue;
            };
            function.shown = wanted;
            for bar in bars(described) {
                if !self.show_bar(bar, wanted, view) {
                    function.shown = Shown::Broken;
                }
            }
        }
        self.show_to_peers(held);
        // The bridge's I/O space is whole, whichever of its devices answer there.
        let wanted = if answers {
            Shown::Registers
        } else {
            Shown::Ones
        };
        if let Some(io) = self.hardware.bridges[held.bridge].io
            && held.io != wanted
        {
            held.io = if self.show_at(io, wanted, view) {
                wanted
            } else {
                Shown::Broken
            };
        }
    }

    /// Changes what is in the place of a BAR.
    pub(super) fn show_bar(&self, bar: &Bar, wanted: Shown, view: View<'_>) -> bool {
        bar.place
            .is_none_or(|place| self.show_at((place.cpu, bar.size), wanted, view))
    }

    /// Changes what is in the place of registers.
    pub(super) fn show_at(&self, at: (Pa, u64), wanted: Shown, view: View<'_>) -> bool {
        let lpid = u64::try_from(self.vm + 1).unwrap_or(u64::MAX);
        let mut caches = Caches { view, lpid };
        let (place, bytes) = at;
        view.memory.unmap_registers(place, bytes, &mut caches);
        match wanted {
            Shown::Registers => view.memory.map_registers(place, bytes).is_ok(),
            Shown::Ones => {
                let ones = self.hardware.ones;
                view.memory.map_ones(place, bytes, ones).is_ok()
            }
            Shown::Nothing | Shown::Broken => true,
        }
    }

    /// An access to a guest real address led nowhere; `None` when it is no register of a device.
    pub(crate) fn access(&self, at: u64, is_store: bool, view: View<'_>) -> Option<Access> {
        let mut all = self.held.lock();
        for held in all.iter_mut() {
            let shown = match self.find(held.bridge, at) {
                Some(Found::Io) => Some(held.io),
                Some(Found::Bar(bdf)) => {
                    let mut functions = held.functions.iter();
                    let function = functions.find(|function| function.bdf == bdf);
                    function.map(|function| function.shown)
                }
                None => None,
            };
            return match shown {
                None => continue,
                Some(Shown::Broken) => None,
                Some(Shown::Ones) if is_store => Some(Access::Lost),
                Some(Shown::Nothing) => {
                    self.stop(held, eeh::Cause::Registers { at }, view);
                    Some(Access::Again)
                }
                // It was changed meanwhile.
                Some(Shown::Registers | Shown::Ones) => Some(Access::Again),
            };
        }
        // What was taken away is all ones by now: a load that came too early for these finds them.
        let away = self.away.lock();
        let mut found = away
            .iter()
            .filter(|away| self.find(away.bridge, at).is_some());
        match found.next()?.shown {
            Shown::Ones if is_store => Some(Access::Lost),
            Shown::Ones => Some(Access::Again),
            // A load would find nothing, however often it is done.
            _ => None,
        }
    }

    /// What is at an address.
    fn find(&self, bridge: usize, at: u64) -> Option<Found> {
        let bridge = &self.hardware.bridges[bridge];
        let inside = |place: Pa, bytes: u64| {
            let into = at.checked_sub(place.bits());
            into.is_some_and(|into| into < bytes)
        };
        if bridge.io.is_some_and(|(place, bytes)| inside(place, bytes)) {
            return Some(Found::Io);
        }
        let mut functions = bridge.topology.functions().iter();
        let function = functions.find(|function| {
            let here = |bar: &Bar| bar.place.is_some_and(|place| inside(place.cpu, bar.size));
            bars(function).any(here)
        })?;
        Some(Found::Bar(function.bdf))
    }
}
