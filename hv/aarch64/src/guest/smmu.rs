//! The SMMU a guest sees, over the IOMMU core.
//!
//! What it says and does is `vsmmuv3`'s. This module gives it the guest's memory, the machine's SMMU by
//! way of the core, and the guest's interrupts; the core puts VMIDs and stream IDs in their place.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use firmware::GuestPlatform;
use iommu::{
    BackendError, ContextFormat, DeviceId, DomainId, Error, NestedConfig, StageOne, Target, UnitId,
    VdeviceId, ViommuId,
};
use smmuv3::spec::Event;
use spin::Mutex;
use types::{Bdf, Iova, Ipa, Pa, StreamId};
use vdev::Width;
use vgic::Kicks;
use vsmmuv3::{
    Access, AtReset, Delivery, End, Failure, Features, GuestMemory, Health, Interrupts,
    Invalidation, Line, NotGuestMemory, Options, Outcome, Physical, Refusal, SingleAddress, Step,
    VSmmu, Work,
};

use super::vm::Vm;
use crate::hardware::Hardware;

/// INTIDs of the guest's SMMU.
#[derive(Clone, Copy)]
struct Lines {
    event: u32,
    sync: u32,
    gerror: u32,
}

/// A stream of the guest's.
struct Link {
    stream: StreamId,
    device: DeviceId,
    vdevice: VdeviceId,
    /// Where it is attached, once it was switched.
    domain: Option<DomainId>,
}

/// What the guest's SMMU has in the core.
#[derive(Default)]
struct Links {
    /// Made with the first device, and kept for as long as the VM.
    viommu: Option<ViommuId>,
    streams: Vec<Link>,
}

struct State {
    /// Not in place: it is large, and a VM is moved on small stacks while it is made.
    smmu: Box<VSmmu>,
    links: Links,
}

/// A guest's SMMU over one of the machine's.
pub(crate) struct GuestSmmu {
    hardware: &'static Hardware,
    features: Features,
    lines: Lines,
    state: Mutex<State>,
    /// A call left something undone.
    has_work: AtomicBool,
}

/// The guest did something that the hardware did not confirm: its VM is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// The stream ID of a guest's function: every output of the guest's firmware maps them one to one.
fn stream_of(guest: Bdf) -> Option<StreamId> {
    StreamId::new(guest.bits().into()).ok()
}

impl GuestSmmu {
    /// The SMMU of a guest over a physical one, the `place`th of the platform.
    ///
    /// # Errors
    /// What is in the way, for the log.
    pub(crate) fn new(
        hardware: &'static Hardware,
        unit: UnitId,
        platform: &GuestPlatform,
        place: usize,
        ipa_bits: u8,
    ) -> Result<Self, String> {
        let features = Self::features(hardware, unit, ipa_bits)?;
        let smmu = platform.smmus.get(place);
        let smmu = smmu.ok_or("the platform has no SMMU")?;
        Ok(Self {
            hardware,
            features,
            lines: Lines {
                event: smmu.event.intid(),
                sync: smmu.sync.intid(),
                gerror: smmu.gerror.intid(),
            },
            state: Mutex::new(State {
                smmu: Box::new(VSmmu::new(features)),
                links: Links::default(),
            }),
            has_work: AtomicBool::new(false),
        })
    }

    /// What a guest could be told of an SMMU over this physical one.
    ///
    /// # Errors
    /// Why no guest can have one, for the log.
    pub(crate) fn features(
        hardware: &Hardware,
        unit: UnitId,
        ipa_bits: u8,
    ) -> Result<Features, String> {
        let identity = hardware.identity(unit).ok_or("its SMMU does not nest")?;
        let options = Options {
            ipa_bits,
            // As on the machine itself: a guest that drives no SMMU has its devices all the same.
            // Stage 2 confines them either way.
            at_reset: AtReset::Bypass,
            single_address: if hardware.forgets_pages_only() {
                SingleAddress::FourKilobytes
            } else {
                SingleAddress::WholeLeaf
            },
            ..Options::default()
        };
        Features::derive(&identity, options).map_err(|unfit| format!("its SMMU: {unfit}"))
    }

    /// Back to reset, without streams. None is linked.
    pub(crate) fn restart(&self) {
        let mut state = self.state.lock();
        *state.smmu = VSmmu::new(self.features);
        self.has_work.store(false, Ordering::Release);
    }

    /// Puts a device of the VM, which is attached to `parent`, behind the guest's SMMU.
    ///
    /// # Errors
    /// What is in the way, for the log. The device is still attached to something.
    pub(crate) fn link(
        &self,
        vm: &Vm,
        guest: Bdf,
        device: DeviceId,
        parent: DomainId,
    ) -> Result<(), String> {
        let say = |error: Error| error.to_string();
        let stream = stream_of(guest).ok_or("no stream ID")?;
        let mut state = self.state.lock();
        let State { smmu, links } = &mut *state;
        {
            let mut core = self.hardware.iommu.lock();
            let viommu = match links.viommu {
                Some(viommu) => viommu,
                None => {
                    let made = core.create_viommu(device, parent).map_err(say)?;
                    links.viommu = Some(made);
                    made
                }
            };
            let vdevice = core
                .create_vdevice(viommu, device, stream.bits().into())
                .map_err(say)?;
            links.streams.push(Link {
                stream,
                device,
                vdevice,
                domain: None,
            });
        }
        let mut machine = Machine {
            hardware: self.hardware,
            links,
        };
        let outcome = smmu
            .add_stream(stream, vm, &mut machine)
            .map_err(|error| error.to_string())?;
        self.note_work(outcome);
        match outcome.health {
            Health::Good => Ok(()),
            Health::Broken => Err("the hardware did not confirm its stream".to_string()),
        }
    }

    /// Takes a device from behind the guest's SMMU. It is detached when this returns; false when it was not
    /// behind it.
    pub(crate) fn unlink(&self, guest: Bdf) -> bool {
        let mut state = self.state.lock();
        let State { smmu, links } = &mut *state;
        let position = links
            .streams
            .iter()
            .position(|link| Some(link.stream) == stream_of(guest));
        let Some(link) = position.map(|at| links.streams.swap_remove(at)) else {
            return false;
        };
        smmu.remove_stream(link.stream);
        let mut core = self.hardware.iommu.lock();
        let detached = core.detach(link.device);
        let ended = detached
            .and_then(|()| match link.domain {
                Some(domain) => core.destroy_domain(domain),
                None => Ok(()),
            })
            .and_then(|()| core.destroy_vdevice(link.vdevice));
        if let Err(error) = ended {
            log::error!("stream {}: {error}", link.stream);
        }
        true
    }

    fn note_work(&self, outcome: Outcome) {
        let more = outcome.work == Work::More || outcome.health == Health::Broken;
        self.has_work.store(more, Ordering::Release);
    }

    /// Whether [`GuestSmmu::run`] has something to do, or to say.
    pub(crate) fn has_work(&self) -> bool {
        self.has_work.load(Ordering::Acquire)
    }

    fn raise(&self, vm: &Vm, interrupts: Interrupts) -> Kicks {
        if interrupts == Interrupts::NONE {
            return Kicks::NONE;
        }
        let lines = [
            (Line::Event, self.lines.event),
            (Line::Gerror, self.lines.gerror),
            (Line::Sync, self.lines.sync),
        ];
        let mut kicks = Kicks::NONE;
        for (line, intid) in lines {
            if interrupts.contains(line) {
                kicks = kicks.union(vm.gic.pulse_spi(intid));
            }
        }
        kicks
    }

    /// A guest's read of a register.
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        self.state.lock().smmu.read(offset, smmu_width(width))
    }

    /// A guest's write to a register, with as much of what follows as one call may cost.
    pub(crate) fn write(&self, vm: &Vm, offset: u64, width: Width, value: u64) -> Kicks {
        let mut state = self.state.lock();
        let State { smmu, links } = &mut *state;
        let mut machine = Machine {
            hardware: self.hardware,
            links,
        };
        let outcome = smmu.write(offset, smmu_width(width), value, vm, &mut machine);
        self.note_work(outcome);
        self.raise(vm, outcome.interrupts)
    }

    /// Goes on with what a call left undone.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn run(&self, vm: &Vm) -> Result<Kicks, Broken> {
        let mut state = self.state.lock();
        let State { smmu, links } = &mut *state;
        let mut machine = Machine {
            hardware: self.hardware,
            links,
        };
        let outcome = smmu.run(vm, &mut machine);
        self.note_work(outcome);
        match outcome.health {
            Health::Good => Ok(self.raise(vm, outcome.interrupts)),
            Health::Broken => Err(Broken),
        }
    }

    /// Tells the guest of a hardware event of one of its devices, as far as it may see it. The core is
    /// not locked.
    pub(crate) fn report(&self, vm: &Vm, guest: Bdf, event: &Event) -> (Delivery, Kicks) {
        let Some(stream) = stream_of(guest) else {
            return (Delivery::Filtered, Kicks::NONE);
        };
        let (delivery, interrupts) = self.state.lock().smmu.report(stream, event, vm);
        (delivery, self.raise(vm, interrupts))
    }

    /// Its state, as a line for the monitor.
    pub(crate) fn line(&self) -> String {
        let state = self.state.lock();
        let counters = state.smmu.counters();
        format!(
            "its guest's SMMU: {} streams, {} commands, {} refused, {} invalidations in hardware{}",
            state.links.streams.len(),
            counters.commands,
            counters.errors,
            counters.invalidations,
            match state.smmu.health() {
                Health::Good => "",
                Health::Broken => ", BROKEN",
            }
        )
    }

    /// The guest-physical address that a write of a device's ends at by the guest's tables as they are now, whatever
    /// stage 2 has there; `None` when it does not get so far.
    pub(crate) fn end_of(
        &self,
        vm: &Vm,
        guest: Bdf,
        address: u64,
        stage_two: impl FnMut(Ipa) -> Option<Pa>,
    ) -> Option<u64> {
        let stream = (stream_of(guest)?, None);
        let state = self.state.lock();
        let walk = state
            .smmu
            .walk(stream, address, Access::Write, vm, stage_two);
        let output = walk.steps().find_map(|step| match step {
            Step::Output { ipa, .. } => Some(*ipa),
            _ => None,
        });
        match walk.end() {
            End::Reached(_) => output,
            End::StageTwo(ipa) => Some(ipa),
            End::Aborts | End::Fault(_) => None,
        }
    }

    /// Where DMA of a device goes by the guest's tables and stage 2, a line for each step.
    pub(crate) fn walk(
        &self,
        vm: &Vm,
        guest: Bdf,
        at: Iova,
        stage_two: impl FnMut(Ipa) -> Option<Pa>,
        leaf_two: impl FnOnce(u64) -> Option<String>,
    ) -> Vec<String> {
        let Some(stream) = stream_of(guest) else {
            return Vec::new();
        };
        let state = self.state.lock();
        let walk = state
            .smmu
            .walk((stream, None), at.bits(), Access::Read, vm, stage_two);
        let mut lines: Vec<String> = walk.steps().map(line_of).collect();
        // What the leaf says, by the memory attributes of the context descriptor.
        let mut mair = 0;
        let mut leaf = None;
        let mut output = None;
        for step in walk.steps() {
            match step {
                Step::Cd { words, .. } => mair = words[3],
                Step::Table { descriptor, .. } => leaf = Some(*descriptor),
                Step::Output { ipa, .. } => output = Some(*ipa),
                _ => {}
            }
        }
        if let (Some(leaf), Some(ipa)) = (leaf, output) {
            let index = (leaf >> 2 & 7) as u32;
            let [attributes, ..] = (mair >> (8 * index)).to_le_bytes();
            let access = match leaf >> 6 & 3 {
                0 | 1 => "read-write",
                _ => "read-only",
            };
            lines.push(format!(
                "stage 1: {access}, memory attributes {attributes:#04x}"
            ));
            lines.extend(leaf_two(ipa));
        }
        lines.push(match walk.end() {
            End::Reached(pa) => format!("reaches {:#x}", pa.bits()),
            End::Aborts => "aborts".to_string(),
            End::Fault(id) => format!("faults: {id}, told to the guest"),
            End::StageTwo(ipa) => format!("faults: stage 2 has nothing at {ipa:#x}"),
        });
        lines
    }
}

/// What a stream's configuration is, in words.
fn config_of(config: &NestedConfig) -> String {
    match config.stage_one {
        StageOne::Abort => "aborts".to_string(),
        StageOne::Bypass => "bypasses stage 1".to_string(),
        StageOne::Invalid => "aborts, and says so".to_string(),
        StageOne::Translate(translate) => {
            let table = match translate.format {
                ContextFormat::Linear => "linear",
                ContextFormat::TwoLevel4K => "two levels of 4 KiB",
                ContextFormat::TwoLevel64K => "two levels of 64 KiB",
            };
            format!(
                "stage 1, context descriptors at {:#x}, {table}, 2^{} substreams",
                translate.base, translate.substream_bits
            )
        }
    }
}

fn line_of(step: &Step) -> String {
    match step {
        Step::Off(config) => format!("guest SMMU off: {}", config_of(config)),
        Step::StreamTable { at, descriptor } => {
            format!("guest stream table, level 1, at {at:#x}: {descriptor:#018x}")
        }
        Step::Ste { at, ste, judged } => {
            let [first, second, ..] = ste.0;
            let judged = match judged {
                Ok(config) => config_of(config),
                Err(bad) => bad.to_string(),
            };
            format!("guest STE at {at:#x}: {first:#018x} {second:#018x}: {judged}")
        }
        Step::ContextTable { at, pa, descriptor } => format!(
            "context table at {at:#x} -> {:#x}: {descriptor:#018x}",
            pa.bits()
        ),
        Step::Cd { at, pa, words } => {
            let [word0, ttb0, ttb1, mair] = words;
            format!(
                "CD at {at:#x} -> {:#x}: {word0:#018x} TTB0 {ttb0:#x} TTB1 {ttb1:#x} MAIR {mair:#x}",
                pa.bits()
            )
        }
        Step::Table {
            level,
            at,
            pa,
            descriptor,
        } => format!(
            "stage 1, level {level}, at {at:#x} -> {:#x}: {descriptor:#018x}",
            pa.bits()
        ),
        Step::Output { ipa, pa } => format!("stage 1 gives {ipa:#x}, stage 2 {:#x}", pa.bits()),
    }
}

const fn smmu_width(width: Width) -> vsmmuv3::Width {
    match width {
        Width::Byte => vsmmuv3::Width::Byte,
        Width::Half => vsmmuv3::Width::Half,
        Width::Word => vsmmuv3::Width::Word,
        Width::Double => vsmmuv3::Width::Double,
    }
}

impl GuestMemory for Vm {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let bytes = buffer.len();
        self.copy_out(ipa, buffer)
            .ok_or(NotGuestMemory { ipa, bytes })
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        let bytes = size_of_val(words);
        self.copy_words(ipa, words)
            .ok_or(NotGuestMemory { ipa, bytes })
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let fail = NotGuestMemory {
            ipa,
            bytes: bytes.len(),
        };
        if !self.is_memory_span(ipa, bytes.len()) {
            return Err(fail);
        }
        self.copy_in(ipa, bytes).ok_or(fail)
    }
}

/// The machine's side, for the time of a call.
struct Machine<'a> {
    hardware: &'static Hardware,
    links: &'a mut Links,
}

impl Physical for Machine<'_> {
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal> {
        let viommu = self.links.viommu.ok_or(Refusal::Failed)?;
        let mut links = self.links.streams.iter_mut();
        let link = links
            .find(|link| link.stream == stream)
            .ok_or(Refusal::Failed)?;
        let refusal = |error: Error| match error {
            Error::Backend(BackendError::Timeout) => Refusal::Failed,
            // To abort is always possible, or all is lost.
            _ if *config == NestedConfig::ABORT => Refusal::Failed,
            _ => Refusal::Refused,
        };
        let mut core = self.hardware.iommu.lock();
        let new = core.create_nested(viommu, *config).map_err(refusal)?;
        match core.replace(link.device, Target::Domain(new)) {
            Ok(_) => {
                if let Some(old) = link.domain.replace(new)
                    && let Err(error) = core.destroy_domain(old)
                {
                    log::error!("stream {stream}: {error}");
                }
                Ok(())
            }
            Err(error) => {
                let _ = core.destroy_domain(new);
                Err(refusal(error))
            }
        }
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        let viommu = self.links.viommu.ok_or(Failure::Failed)?;
        let entries = batch.iter().map(Invalidation::for_core);
        let done = self.hardware.iommu.lock().invalidate_each(viommu, entries);
        done.map(|_| ()).map_err(|_| Failure::Failed)
    }
}
