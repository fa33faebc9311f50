//! A VM's PCI segment: what its guest's accesses mean for the devices it was given.
//!
//! The guest's configuration space is `pci::vconfig`'s; this module carries out what a write there asks
//! for. The device's own configuration space, MSI-X table and doorbell are the hypervisor's: a guest's
//! message is a shadow, told to the guest's ITS when the device's real message has come in.

mod bars;
mod claim;
mod config;
mod messages;
mod pins;
mod ports;
mod registers;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use bundle::PeerToPeer;
use firmware::GuestPlatform;
use hal::Mutex;
use iommu::{DomainId, IoasId, MemoryId, UnitId};
use pci::BusRange;
use pci::vconfig::{GuestSegment, MsixTable, Pin, Seat, Siblings, Upstream, VirtualFunction};
use smmuv3::spec::Event;
use types::{Bdf, Iova, Ipa, Pa, PageSize, Span};
use vgic::Kicks;
use vgic::its::{DeviceEvents, ItsConfig, TRANSLATER, Vits};
use vm::Walk;
use vsmmuv3::Delivery;

use super::smmu::{Broken, GuestSmmu};
use super::vm::Vm;
use crate::hardware::{Function, Hardware};
use pins::Pins;
use ports::add_ports;

pub(super) use ports::paths;

/// A device of a VM: which it is of the hardware's, and where the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) function: usize,
    pub(crate) guest: Bdf,
    /// Whether the guest sees its interrupt pin.
    pub(crate) pin: Pin,
    /// Whether the VM's devices reach its BARs.
    pub(crate) p2p: PeerToPeer,
    /// Tells it from devices behind the same SMMU of the machine's that are to be behind another of the guest's.
    pub(crate) smmu: u8,
}

impl Assigned {
    /// What tells the SMMU of the guest's that it is behind from the others: the machine's, the number in the manifest,
    /// the ITS. The guest has one ITS, whose page leads to one of the machine's behind each of its SMMUs, because each
    /// has tables of its own.
    pub(crate) fn seen_behind(&self, function: &Function, unit: UnitId) -> (UnitId, u8, usize) {
        (unit, self.smmu, function.its())
    }
}

/// A BAR that the guest sees.
struct Mapped {
    bar: u8,
    at: u64,
    bytes: u64,
    pa: Pa,
    /// What of it the guest reaches without a trap.
    pieces: Vec<(Span<Ipa>, Pa)>,
    /// What of it the VM's devices reach, too.
    shown: Vec<(MemoryId, Span<Iova>)>,
}

/// A device while its VM has it.
struct Held {
    function: usize,
    guest: Bdf,
    msix: Option<MsixTable>,
    mapped: Vec<Mapped>,
    p2p: PeerToPeer,
    /// The guest has asked for a reset, which is not over.
    resetting: bool,
    /// Where the core's MSI window shows the doorbell.
    window_doorbell: u64,
    /// The guest's ITS page is the doorbell, too.
    has_its_page: bool,
    /// Where the doorbell is for a device that nothing translates for.
    direct_doorbell: Option<u64>,
}

struct State {
    segment: GuestSegment,
    held: Vec<Held>,
}

/// What the VM has in the IOMMU core.
#[derive(Default)]
struct Dma {
    ioas: Option<(IoasId, MemoryId)>,
    /// By the machine's SMMU and the place of the guest's: the guest's address spaces are told apart by SMMU.
    domains: Vec<((UnitId, usize), DomainId)>,
}

/// A VM's PCI segment.
pub(crate) struct GuestPci {
    hardware: &'static Hardware,
    pub(crate) vits: Arc<Vits>,
    /// Where devices write their messages to, as the guest knows it.
    doorbell: u64,
    windows: Vec<Span<Ipa>>,
    msi_window: Option<bundle::MsiWindow>,
    /// The SMMUs that the guest sees, in the order of the platform: one for each of the machine's that its devices are
    /// behind, or none.
    smmus: Vec<GuestSmmu>,
    /// Which of them each device is behind.
    behind: Vec<(Bdf, usize)>,
    msi: bundle::MsiPolicy,
    /// The devices, as the manifest has them.
    seats: Vec<Assigned>,
    pins: Pins,
    state: Mutex<State>,
    dma: Mutex<Dma>,
}

/// Events that an SMMU of the guest's can have: its records, its errors, its page requests, its waits.
const SMMU_EVENTS: u32 = 4;

impl GuestPci {
    /// The segment of a VM with these devices.
    ///
    /// # Errors
    /// What is in the way, for the log.
    #[optimize(size)]
    pub(crate) fn new(
        hardware: &'static Hardware,
        platform: &GuestPlatform,
        vcpus: usize,
        assigned: &[Assigned],
        config: &bundle::VmConfig,
        smmus: Vec<GuestSmmu>,
    ) -> Result<Self, String> {
        let host = platform.pci.as_ref().ok_or("the platform has no PCI")?;
        let its = platform.gic.its.ok_or("the platform has no ITS")?;
        let buses = BusRange::new(*host.buses.start(), *host.buses.end());
        let buses = buses.map_err(|error| error.to_string())?;
        let mut segment = GuestSegment::new(buses);
        add_ports(&mut segment, assigned)?;
        let mut held = Vec::new();
        let mut events = Vec::new();
        for seat in assigned {
            let function = hardware
                .functions
                .get(seat.function)
                .ok_or("no such function")?;
            let described = hardware.described(function).ok_or("no such function")?;
            let bridge = hardware
                .bridges
                .get(function.bridge)
                .ok_or("no such bridge")?;
            let same_device = |other: &&Assigned| other.guest.bits() >> 3 == seat.guest.bits() >> 3;
            let siblings = match assigned.iter().filter(same_device).count() {
                1 => Siblings::None,
                _ => Siblings::Several,
            };
            let upstream = match seat.guest.bus() == buses.first() {
                true => Upstream::RootBus,
                false => Upstream::Port,
            };
            let page = PageSize::SIZE_4K;
            let seen = Seat {
                siblings,
                upstream,
                page,
                pin: seat.pin,
            };
            let virtual_function = VirtualFunction::new(&bridge.space, described, seen)
                .map_err(|error| format!("{}: {error}", function.bdf))?;
            segment
                .add(seat.guest, virtual_function)
                .map_err(|error| error.to_string())?;
            held.push(Held {
                function: seat.function,
                guest: seat.guest,
                msix: function.msix(hardware).map(|msix| MsixTable::new(&msix)),
                mapped: Vec::new(),
                p2p: seat.p2p,
                resetting: false,
                window_doorbell: 0,
                has_its_page: false,
                direct_doorbell: None,
            });
            events.push(DeviceEvents {
                device: seat.guest.bits().into(),
                events: function.events,
            });
        }
        let own = platform.smmus.iter().filter_map(|smmu| smmu.messages);
        events.extend(own.map(|device| DeviceEvents {
            device: device.into(),
            events: SMMU_EVENTS,
        }));
        let pins = Pins::new(hardware, host, &segment, assigned);
        let vits = Vits::new(&ItsConfig {
            vcpus,
            devices: &events,
        })
        .map_err(|error| error.to_string())?;
        Ok(Self {
            hardware,
            vits: Arc::new(vits),
            doorbell: its.bits().saturating_add(TRANSLATER),
            windows: host
                .windows
                .iter()
                .filter_map(firmware::PciWindow::span)
                .collect(),
            msi_window: config.msi_window,
            behind: assigned
                .iter()
                .filter_map(|seat| Some((seat.guest, platform.smmu_of(seat.guest)?)))
                .collect(),
            smmus,
            msi: super::vm::msi_policy(config),
            seats: assigned.to_vec(),
            pins,
            state: Mutex::new(State { segment, held }),
            dma: Mutex::new(Dma::default()),
        })
    }

    /// The devices, as lines for the monitor: where the guest has each, and which it is.
    #[optimize(size)]
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state.lock();
        let line = |held: &Held| {
            let bars: Vec<String> = held
                .mapped
                .iter()
                .map(|mapped| format!(" BAR{} at {:#x}", mapped.bar, mapped.at))
                .collect();
            let pin = self.interrupt_of(held.function);
            let pin = pin.map_or(String::new(), |intid| format!(", INTx {intid}"));
            format!(
                "{} is {}{pin}{}",
                held.guest,
                self.name(held),
                bars.concat()
            )
        };
        state.held.iter().map(line).collect()
    }

    /// How the guest's devices are translated and signal, as a line.
    pub(crate) fn summary(&self) -> String {
        match self.smmus.len() {
            0 => "its guest sees no SMMU: stage 2 alone translates".to_string(),
            1 => format!("its guest has an SMMU of its own, messages by {}", self.msi),
            n => format!(
                "its guest has {n} SMMUs of its own, messages by {}",
                self.msi
            ),
        }
    }

    /// What each of the guest's SMMUs did, as lines.
    pub(crate) fn smmu_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.smmus.iter().map(GuestSmmu::line)
    }

    /// The SMMU of the guest's that a device is behind.
    fn smmu_of(&self, guest: Bdf) -> Option<&GuestSmmu> {
        let (_, place) = self.behind.iter().find(|(known, _)| *known == guest)?;
        self.smmus.get(*place)
    }

    /// Whether a word written there is a message.
    #[inline]
    pub(crate) fn is_doorbell(&self, ipa: Ipa) -> bool {
        ipa.bits() == self.doorbell
    }

    /// Whether a device's messages go where the hypervisor says, not where the guest's tables lead.
    fn addresses_are_ours(&self) -> bool {
        self.smmus.is_empty() || self.msi == bundle::MsiPolicy::Rmr
    }

    /// The SMMU whose register is so far behind the first register of the first, and how far behind its own first.
    #[inline]
    pub(crate) fn smmu_at(&self, offset: u64) -> Option<(&GuestSmmu, u64)> {
        let place = usize::try_from(offset / firmware::SMMU_BYTES).ok()?;
        Some((self.smmus.get(place)?, offset % firmware::SMMU_BYTES))
    }

    /// Where stage 2 takes an address of a device's.
    fn stage_two(&self, function: &Function, ipa: Ipa) -> Option<Pa> {
        let at = Iova::truncated(ipa.bits());
        match self.hardware.stage_two(function, at)? {
            Walk::Mapped { pa, .. } => Pa::new(pa).ok(),
            Walk::Unmapped { .. } => None,
        }
    }

    /// Where DMA of a device goes at an address, by the tables in memory, a line for each step.
    #[optimize(size)]
    pub(crate) fn walk(&self, vm: &Vm, bdf: Bdf, at: Iova) -> Option<Vec<String>> {
        let seat = self.seats.iter().find(|seat| seat.guest == bdf)?;
        let function = self.hardware.functions.get(seat.function)?;
        let mut lines = Vec::from([self.hardware.entry(function)?]);
        match self.smmu_of(bdf) {
            Some(smmu) => lines.extend(smmu.walk(
                vm,
                bdf,
                at,
                |ipa| self.stage_two(function, ipa),
                |ipa| {
                    let at = Iova::truncated(ipa);
                    Some(stage_two_line(&self.hardware.stage_two(function, at)?, at))
                },
            )),
            None => {
                let stage_two = self.hardware.stage_two(function, at);
                lines.extend(stage_two.map(|walk| stage_two_line(&walk, at)));
            }
        }
        Some(lines)
    }

    /// Tells the guest of a hardware event of one of its devices; `None` when it is not the guest's to see.
    pub(crate) fn report(&self, vm: &Vm, function: usize, event: &Event) -> Option<Kicks> {
        let seat = self.seats.iter().find(|seat| seat.function == function)?;
        let (delivery, kicks) = self.smmu_of(seat.guest)?.report(vm, seat.guest, event);
        (delivery == Delivery::Delivered).then_some(kicks)
    }

    /// Whether something that the guest began is to be gone on with.
    pub(crate) fn has_work(&self) -> bool {
        self.vits.has_work() || self.smmus.iter().any(GuestSmmu::has_work)
    }

    /// Goes on with it, as far as one call may.
    ///
    /// # Errors
    /// [`Broken`]: the VM is to end.
    pub(crate) fn run(&self, vm: &Vm) -> Result<Kicks, Broken> {
        let mut kicks = Kicks::NONE;
        if self.vits.has_work() {
            let told = self.vits.run(vm).post();
            kicks = vm.gic.post_lpis_to(told);
        }
        for smmu in self.smmus.iter().filter(|smmu| smmu.has_work()) {
            kicks = kicks.union(smmu.run(vm)?);
        }
        Ok(kicks)
    }
}

/// The walk of a device's address through stage 2, for the monitor.
fn stage_two_line(walk: &Walk, at: Iova) -> String {
    format!("stage 2: {}", walk.line(at.bits()))
}
