//! The SMMU a guest sees, over the IOMMU core.
//!
//! What it says and does is `vsmmuv3`'s. This module gives it the guest's memory, the machine's SMMU by
//! way of the core, and the guest's interrupts; the core puts VMIDs and stream IDs in their place.

mod machine;
mod reach;
mod show;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, Ordering};

use firmware::GuestPlatform;
use hal::Mutex;
use iommu::{DeviceId, DomainId, Error, UnitId};
use smmuv3::spec::Event;
use types::{Bdf, StreamId};
use vdev::Width;
use vgic::Kicks;
use vsmmuv3::{
    AtReset, Delivery, Features, Health, Interrupts, Line, Messages, Options, Outcome,
    SingleAddress, VSmmu, Work,
};

use super::vm::Vm;
use crate::hardware::Hardware;
use machine::{Link, Links, Machine};
use reach::Reach;

/// INTIDs of the guest's SMMU.
#[derive(Clone, Copy)]
struct Lines {
    event: u32,
    sync: u32,
    gerror: u32,
    /// The DeviceID of its messages, when it sends any.
    messages: Option<u16>,
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
    #[optimize(size)]
    pub(crate) fn new(
        hardware: &'static Hardware,
        unit: UnitId,
        platform: &GuestPlatform,
        place: usize,
        ipa_bits: u8,
    ) -> Result<Self, String> {
        let smmu = platform.smmus.get(place);
        let smmu = smmu.ok_or("the platform has no SMMU")?;
        let messages = match smmu.messages {
            Some(_) => Messages::Offered,
            None => Messages::Off,
        };
        let features = Self::features(hardware, unit, ipa_bits, messages)?;
        Ok(Self {
            hardware,
            features,
            lines: Lines {
                event: smmu.event.intid(),
                sync: smmu.sync.intid(),
                gerror: smmu.gerror.intid(),
                messages: smmu.messages,
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
    #[optimize(size)]
    pub(crate) fn features(
        hardware: &Hardware,
        unit: UnitId,
        ipa_bits: u8,
        messages: Messages,
    ) -> Result<Features, String> {
        let identity = hardware.identity(unit).ok_or("its SMMU does not nest")?;
        let options = Options {
            ipa_bits,
            messages,
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
    #[optimize(size)]
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
        // What it says at once, it says to a guest that does not run yet.
        let reach = self.reach(vm);
        let outcome = smmu
            .add_stream(stream, &reach, &mut machine)
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
            self.hardware.tell_off(&core);
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

    fn reach<'a>(&self, vm: &'a Vm) -> Reach<'a> {
        Reach::new(vm, self.lines.messages)
    }

    /// Tells the guest by wires and by messages.
    fn raise(&self, vm: &Vm, reach: &Reach<'_>, interrupts: Interrupts) -> Kicks {
        let mut kicks = reach.post();
        if interrupts == Interrupts::NONE {
            return kicks;
        }
        let lines = [
            (Line::Event, self.lines.event),
            (Line::Gerror, self.lines.gerror),
            (Line::Sync, self.lines.sync),
        ];
        for (line, intid) in lines {
            if interrupts.contains(line) {
                kicks = kicks.union(vm.gic.pulse_spi(intid));
            }
        }
        kicks
    }

    /// A guest's read of a register.
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        self.state.lock().smmu.read(offset, width)
    }

    /// A guest's write to a register, with as much of what follows as one call may cost.
    pub(crate) fn write(&self, vm: &Vm, offset: u64, width: Width, value: u64) -> Kicks {
        let mut state = self.state.lock();
        let State { smmu, links } = &mut *state;
        let mut machine = Machine {
            hardware: self.hardware,
            links,
        };
        let reach = self.reach(vm);
        let outcome = smmu.write(offset, width, value, &reach, &mut machine);
        self.note_work(outcome);
        self.raise(vm, &reach, outcome.interrupts)
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
        let reach = self.reach(vm);
        let outcome = smmu.run(&reach, &mut machine);
        self.note_work(outcome);
        match outcome.health {
            Health::Good => Ok(self.raise(vm, &reach, outcome.interrupts)),
            Health::Broken => Err(Broken),
        }
    }

    /// Tells the guest of a hardware event of one of its devices, as far as it may see it. The core is
    /// not locked.
    pub(crate) fn report(&self, vm: &Vm, guest: Bdf, event: &Event) -> (Delivery, Kicks) {
        let Some(stream) = stream_of(guest) else {
            return (Delivery::Filtered, Kicks::NONE);
        };
        let reach = self.reach(vm);
        let (delivery, interrupts) = self.state.lock().smmu.report(stream, event, &reach);
        (delivery, self.raise(vm, &reach, interrupts))
    }
}
