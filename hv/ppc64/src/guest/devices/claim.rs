//! Which host bridges a VM has, and when.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::mem;
use core::sync::atomic::{AtomicBool, Ordering};

use bundle::{HostDevice, PeerToPeer, TcePolicy, VmConfig};
use eeh::{Limits, Pe};
use hal::Mutex;
use iommu::{Extent, OwnerId, PageSizes, Permissions, Target};
use types::{Bdf, Ipa, PageSize, Span};
use vtce::{BridgeOptions, Dma, Policy, Progress, Slot};

use super::peers::withdraw;
use super::ready::Readiness;
use super::recovery::Masters;
use super::registers::{Shown, bars};
use super::{Devices, FunctionState, Held, Memory, View, pins};
use crate::hardware::{Bridge, Hardware, Shared};

/// Devices that a VM cannot have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the machine has no device {0}")]
    NoDevice(String),
    #[error("devices behind a host bridge cannot be kept apart: {0} belong together")]
    Together(String),
    #[error("BAR{bar} of {bdf} has no place of its own")]
    Bar { bdf: Bdf, bar: u8 },
    #[error("the I/O space of phb:{buid:x} has no place of its own")]
    Io { buid: u64 },
    #[error("phb:{buid:x} is in use by another VM")]
    InUse { buid: u64 },
    #[error("there is no memory for entries of windows: the machine has {0} host bridges")]
    Entries(usize),
    #[error("{bdf} cannot be reset, and VM {vm} has used it: it might go on with that VM's work")]
    NoReset { bdf: Bdf, vm: usize },
    #[error("{0}")]
    Core(#[from] iommu::Error),
    #[error("{0}")]
    Windows(#[from] vtce::Refusal),
}

/// Registers that devices may reach, and whose.
type Granted = Vec<(Bdf, iommu::MemoryId)>;
/// A device: its bridge, and the function.
type Place = (usize, Bdf);

/// The bridges that a VM asks for, each with all that is behind it; and the devices whose registers the others
/// may reach.
fn wanted(hardware: &Hardware, config: &VmConfig) -> Result<(Vec<usize>, Vec<Place>), Refusal> {
    let mut peers = Vec::new();
    let mut wanted: Vec<(usize, Vec<Bdf>)> = Vec::new();
    for device in &config.devices {
        let missing = || Refusal::NoDevice(format!("{}", device.host));
        let place = |matches: &dyn Fn(&Bridge) -> bool| {
            let mut bridges = hardware.bridges.iter();
            bridges.position(matches).ok_or_else(missing)
        };
        let (at, functions): (usize, Vec<Bdf>) = match device.host {
            HostDevice::Phb { buid } => {
                let at = place(&|bridge: &Bridge| bridge.buid == buid)?;
                let all = hardware.bridges[at].devices.iter();
                (at, all.map(|(bdf, _)| *bdf).collect())
            }
            HostDevice::Pci { segment, bdf } => {
                let at = place(&|bridge: &Bridge| {
                    bridge.topology.segment() == segment
                        && bridge.devices.iter().any(|(other, _)| *other == bdf)
                })?;
                (at, vec![bdf])
            }
        };
        if device.p2p == PeerToPeer::Allowed {
            peers.extend(functions.iter().map(|bdf| (at, *bdf)));
        }
        match wanted.iter_mut().find(|(bridge, _)| *bridge == at) {
            Some((_, known)) => known.extend(functions),
            None => wanted.push((at, functions)),
        }
    }
    for (at, functions) in &wanted {
        let bridge = &hardware.bridges[*at];
        let segment = bridge.topology.segment();
        if bridge
            .devices
            .iter()
            .any(|(bdf, _)| !functions.contains(bdf))
        {
            let all = bridge.devices.iter();
            let all: Vec<String> = all.map(|(bdf, _)| format!("{segment:04x}:{bdf}")).collect();
            return Err(Refusal::Together(all.join(", ")));
        }
    }
    Ok((wanted.into_iter().map(|(at, _)| at).collect(), peers))
}

/// The fewest chunks of entries that a bridge is of use with: 32 MiB of a default window, or 512 MiB in pages of
/// 64 KiB.
const LEAST_CHUNKS: u64 = 16;

/// What the manifest lets a guest have, with so many chunks of entries for each bridge.
fn policy(tce: &TcePolicy, chunks: u64) -> Policy {
    let usual = Policy {
        chunks,
        ..Policy::usual()
    };
    let pages = match tce {
        TcePolicy::DefaultWindow => PageSizes::NONE,
        TcePolicy::Dynamic { page_shifts } if page_shifts.is_empty() => return usual,
        TcePolicy::Dynamic { page_shifts } => {
            let sizes = page_shifts.iter().filter_map(|shift| {
                let shift = u8::try_from(*shift).ok()?;
                PageSize::from_shift(shift).ok()
            });
            sizes.fold(PageSizes::NONE, |all, size| {
                all.with(PageSizes::new(&[size]))
            })
        }
    };
    Policy { pages, ..usual }
}

impl Devices {
    /// Sees that a VM can have the devices that it asks for; `None` when it asks for none. It has them
    /// from [`Devices::take`] on. `server` is the CPU that their pins interrupt.
    #[optimize(size)]
    pub(crate) fn plan(
        hardware: &'static Hardware,
        (vm, server): (usize, u32),
        config: &VmConfig,
        memory: &Memory,
    ) -> Result<Option<Self>, Refusal> {
        let (bridges, peers) = wanted(hardware, config)?;
        if bridges.is_empty() {
            return Ok(None);
        }
        if hardware.chunks < LEAST_CHUNKS {
            return Err(Refusal::Entries(hardware.bridges.len()));
        }
        for at in &bridges {
            let Bridge { buid, io, .. } = hardware.bridges[*at];
            if io.is_some_and(|(at, _)| at.bits() < memory.bytes()) {
                return Err(Refusal::Io { buid });
            }
            for function in hardware.bridges[*at].topology.functions() {
                for bar in bars(function) {
                    let (bdf, index) = (function.bdf, bar.index);
                    let place = bar.place.filter(|_| bar.size >= 4096);
                    if place.is_none_or(|place| place.cpu.bits() < memory.bytes()) {
                        return Err(Refusal::Bar { bdf, bar: index });
                    }
                }
            }
        }
        let owner = OwnerId::new(u32::try_from(vm + 1).unwrap_or(u32::MAX));
        let mut shared = hardware.shared.lock();
        let Shared { core, dmas } = &mut *shared;
        let mut dma = Dma::new()?;
        let extents: Vec<Extent> = memory
            .pieces()
            .map(|(_, pa, bytes)| Extent { pa, bytes })
            .collect();
        let ram = core.add_ram(owner, &extents)?;
        let whole = Ipa::new(0)
            .ok()
            .and_then(|at| Span::from_len(at, memory.bytes()));
        let added = whole.ok_or(vtce::Refusal::Taken).and_then(|span| {
            dma.add_slot(Slot {
                span,
                memory: ram,
                offset: 0,
                permissions: Permissions::ReadWrite,
                page: Some(contiguous(memory)),
            })
        });
        if let Err(refusal) = added {
            // Nothing shows it, so it goes: its frames are about to be somebody else's.
            core.destroy_memory(ram)?;
            return Err(refusal.into());
        }
        dmas.push(dma);
        Ok(Some(Self {
            hardware,
            vm,
            owner,
            lines: pins::lines(hardware, &bridges),
            server,
            bridges,
            policy: policy(&config.tce, hardware.chunks),
            peers,
            held: Mutex::new(Vec::new()),
            has_bridges: AtomicBool::new(false),
            away: Mutex::new(Vec::new()),
            returning: AtomicBool::new(false),
            told: Mutex::default(),
            released: Mutex::new(Vec::new()),
            trees: Mutex::new(Vec::new()),
            injection: Mutex::new(eeh::Injection::default()),
            past: Mutex::new(Vec::new()),
            dma: dmas.len() - 1,
        }))
    }

    /// The VM starts: it gets its bridges, as far as it does not have them, with their devices reset, no
    /// windows but the default ones, and these empty. No vCPU of it runs. All or nothing.
    pub(crate) fn take(&self, memory: &Memory) -> Result<(), Refusal> {
        let view = View {
            memory,
            leave: &|| {},
        };
        let mut all = self.held.lock();
        let taken = self.bridges.iter().try_for_each(|at| {
            let held = match all.iter().position(|held| held.bridge == *at) {
                Some(known) => all.get_mut(known),
                None => {
                    let held = self.take_one(*at, view)?;
                    all.push(held);
                    all.last_mut()
                }
            };
            let bridge = &self.hardware.bridges[*at];
            let last = bridge.used.swap(self.vm + 1, Ordering::AcqRel);
            if let Some(held) = held
                && mem::take(&mut held.readiness) != Readiness::Fresh
                && last != 0
                && !self.restart(held, view)
            {
                return Err(Refusal::InUse { buid: bridge.buid });
            }
            Ok(())
        });
        if taken.is_ok() {
            all.iter().for_each(|held| self.connect_pins(held));
            self.away.lock().clear();
            self.released.lock().clear();
            *self.injection.lock() = eeh::Injection::default();
        } else {
            self.give_back_all(&mut all, memory);
        }
        self.has_bridges.store(!all.is_empty(), Ordering::Release);
        taken
    }

    #[optimize(size)]
    pub(super) fn take_one(&self, at: usize, view: View<'_>) -> Result<Held, Refusal> {
        let bridge = &self.hardware.bridges[at];
        let buid = bridge.buid;
        let last = bridge.used.load(Ordering::Acquire);
        if let Some(vm) = last.checked_sub(1).filter(|last| *last != self.vm)
            && let Some(bdf) = self.without_reset(at)
        {
            return Err(Refusal::NoReset { bdf, vm });
        }
        let mut shared = self.hardware.shared.lock();
        let Shared { core, dmas } = &mut *shared;
        let mut done = 0;
        let bound = bridge.devices.iter().try_for_each(|(_, device)| {
            core.bind(*device, self.owner)?;
            done += 1;
            Ok(())
        });
        if let Err(error) = bound {
            for (_, device) in bridge.devices.iter().take(done) {
                let _ = core.unbind(*device);
            }
            return Err(match error {
                iommu::Error::GroupHeld { .. } | iommu::Error::AlreadyBound => {
                    Refusal::InUse { buid }
                }
                other => other.into(),
            });
        }
        let attached = self.attach(core, dmas, at);
        let (ioas, domain, granted) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                for (_, device) in &bridge.devices {
                    let _ = core.detach(*device);
                    let _ = core.unbind(*device);
                }
                return Err(error);
            }
        };
        drop(shared);
        let functions = bridge.devices.iter().map(|(bdf, _)| FunctionState {
            bdf: *bdf,
            masters: false,
            decodes: true,
            messages: super::messages::Assigned::default(),
            kept: None,
            shown: Shown::Nothing,
        });
        let mut held = Held {
            bridge: at,
            ioas,
            domain,
            pe: self.errors_of(at, buid),
            granted,
            functions: functions.collect(),
            io: Shown::Nothing,
            isolated: false,
            returns: false,
            resets: Vec::new(),
            readiness: Readiness::Used,
        };
        self.show(&mut held, view);
        Ok(held)
    }

    /// The errors that the VM has had with a bridge.
    fn errors_of(&self, at: usize, buid: u64) -> Pe {
        let mut past = self.past.lock();
        match past.iter().position(|(bridge, _)| *bridge == at) {
            Some(known) => past.swap_remove(known).1,
            None => Pe::new(buid, 0, Limits::USUAL),
        }
    }

    fn attach(
        &self,
        core: &mut crate::hardware::Core,
        dmas: &mut [Dma],
        at: usize,
    ) -> Result<(iommu::IoasId, iommu::DomainId, Granted), Refusal> {
        let bridge = &self.hardware.bridges[at];
        let ioas = core.create_ioas(self.owner)?;
        let attached = self.attach_to(core, dmas, at, ioas);
        if attached.is_err() {
            for (_, device) in &bridge.devices {
                let _ = core.detach(*device);
            }
            let _ = core.destroy_ioas(ioas);
        }
        attached.map(|(domain, granted)| (ioas, domain, granted))
    }

    fn attach_to(
        &self,
        core: &mut crate::hardware::Core,
        dmas: &mut [Dma],
        at: usize,
        ioas: iommu::IoasId,
    ) -> Result<(iommu::DomainId, Granted), Refusal> {
        let bridge = &self.hardware.bridges[at];
        let mut attached = Err(Refusal::InUse { buid: bridge.buid });
        for (_, device) in &bridge.devices {
            attached = Ok(core.attach(*device, Target::Ioas(ioas))?);
        }
        let domain = attached?;
        let dma = dmas.get_mut(self.dma).ok_or(vtce::Refusal::Taken)?;
        let number = u8::try_from(at).unwrap_or(u8::MAX);
        dma.add_bridge(
            core,
            BridgeOptions {
                number,
                buid: bridge.buid,
                ioas,
                domain,
                policy: self.policy,
            },
        )?;
        let granted = self.grant(core, dma, at, ioas);
        if granted.is_err() {
            let _ = dma.remove_bridge(number);
        }
        Ok((domain, granted?))
    }

    /// No device of the VM does anything any more, and nothing of its windows is left: bus mastering
    /// off, then interrupts, then every entry. True when all of that is certain.
    pub(crate) fn quiesce(&self) -> bool {
        let mut all = self.held.lock();
        self.quiesce_all(&mut all)
    }

    fn quiesce_all(&self, all: &mut [Held]) -> bool {
        let mut sure = true;
        for held in all.iter_mut() {
            sure &= self.silence(held);
        }
        loop {
            let mut shared = self.hardware.shared.lock();
            let Shared { core, dmas } = &mut *shared;
            let Some(dma) = dmas.get_mut(self.dma) else {
                return false;
            };
            match dma.clear(core) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return sure && core.backend().is_sure(),
                Err(error) => {
                    log::error!("vm {}: windows cannot be emptied: {error}", self.vm);
                    return false;
                }
            }
        }
    }

    /// No device of a bridge masters the bus or interrupts any more. True when that is certain.
    pub(super) fn silence(&self, held: &mut Held) -> bool {
        let buid = self.hardware.bridges[held.bridge].buid;
        let sure = self.set_masters(held, Masters::None);
        self.hardware.messages.forget_pins(buid);
        for function in &mut held.functions {
            function.masters = false;
        }
        self.take_messages(held);
        sure
    }

    /// The VM is off: its bridges are anybody's, once it is certain that nothing of theirs goes on. True
    /// then; else it keeps them. No vCPU of it runs.
    pub(crate) fn give_back(&self, memory: &Memory) -> bool {
        let mut all = self.held.lock();
        let given = self.give_back_all(&mut all, memory);
        self.has_bridges.store(!all.is_empty(), Ordering::Release);
        given
    }

    fn give_back_all(&self, all: &mut Vec<Held>, memory: &Memory) -> bool {
        if !self.quiesce_all(all) {
            return false;
        }
        let view = View {
            memory,
            leave: &|| {},
        };
        let mut sure = true;
        all.retain(|held| {
            let given = self.give_back_one(held, view);
            if let Err(error) = &given {
                log::error!("vm {}: {error}: it keeps its devices", self.vm);
            }
            sure &= given.is_ok();
            given.is_err()
        });
        sure
    }

    #[optimize(size)]
    fn give_back_one(&self, held: &Held, view: View<'_>) -> Result<(), Refusal> {
        let bridge = &self.hardware.bridges[held.bridge];
        for function in bridge.topology.functions() {
            for bar in bars(function) {
                let _ = self.show_bar(bar, Shown::Nothing, view);
            }
        }
        if let Some(io) = bridge.io {
            let _ = self.show_at(io, Shown::Nothing, view);
        }
        self.release(held)
    }

    /// The core and the VM have a bridge no more, whose windows are empty.
    pub(super) fn release(&self, held: &Held) -> Result<(), Refusal> {
        let bridge = &self.hardware.bridges[held.bridge];
        let mut shared = self.hardware.shared.lock();
        let Shared { core, dmas } = &mut *shared;
        let number = u8::try_from(held.bridge).unwrap_or(u8::MAX);
        if let Some(dma) = dmas.get_mut(self.dma) {
            dma.remove_bridge(number)?;
            withdraw(core, dma, &held.granted);
        }
        for (_, device) in &bridge.devices {
            core.detach(*device)?;
        }
        for (_, device) in &bridge.devices {
            core.unbind(*device)?;
        }
        core.destroy_ioas(held.ioas)?;
        self.past.lock().push((held.bridge, held.pe.clone()));
        Ok(())
    }
}

/// The largest page that is contiguous wherever one can be.
fn contiguous(memory: &Memory) -> PageSize {
    let smallest = memory.pieces().map(|(at, pa, bytes)| {
        let bits = at | pa.bits() | bytes;
        bits & bits.wrapping_neg()
    });
    let smallest = smallest.min().unwrap_or(4096).min(1 << 30);
    PageSize::from_bytes(smallest).unwrap_or(PageSize::SIZE_4K)
}
