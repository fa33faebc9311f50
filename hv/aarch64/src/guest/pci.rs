//! A VM's PCI segment: what its guest's accesses mean for the devices it was given.
//!
//! The guest's configuration space is `pci::vconfig`'s; this module carries out what a write there asks
//! for. The device's own configuration space, MSI-X table and doorbell are the hypervisor's: a guest's
//! message is a shadow, told to the guest's ITS when the device's real message has come in.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use alloc::{format, vec};

use firmware::{DevicePath, GuestPlatform};
use iommu::{
    DomainId, DomainOptions, Extent, IoasId, Map, MemoryId, Permissions, Placement, Target, UnitId,
};
use pci::vconfig::{
    Change, Effects, GuestSegment, MsixTable, Pin, Seat, Siblings, Upstream, VirtualFunction,
    Width as ConfigWidth,
};
use pci::{BusRange, Message, MsiX, MsixMode, Permission};
use smmuv3::spec::Event;
use spin::Mutex;
use types::{Address, Bdf, Iova, Ipa, Pa, PageSize, Span};
use vdev::Width;
use vgic::Kicks;
use vgic::its::{DeviceEvents, ItsConfig, TRANSLATER, Vits};
use vm::Walk;
use vsmmuv3::Delivery;

use super::smmu::{Broken, GuestSmmu};
use super::vm::Vm;
use crate::hardware::{self, Function, Hardware, Route, Within};
use crate::memory::Registers;
use hal::Mmio;

/// A device of a VM: which it is of the hardware's, and where the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) function: usize,
    pub(crate) guest: Bdf,
}

/// A BAR that the guest sees.
struct Mapped {
    bar: u8,
    at: u64,
    bytes: u64,
    pa: Pa,
    /// What of it the guest reaches without a trap.
    pieces: Vec<(Span<Ipa>, Pa)>,
}

/// A device while its VM has it.
struct Held {
    function: usize,
    guest: Bdf,
    msix: Option<MsixTable>,
    mapped: Vec<Mapped>,
    /// The guest has asked for a reset, which is not over.
    resetting: bool,
    /// Where the core's MSI window shows the doorbell.
    window_doorbell: u64,
}

struct State {
    segment: GuestSegment,
    held: Vec<Held>,
}

/// What the VM has in the IOMMU core.
#[derive(Default)]
struct Dma {
    ioas: Option<(IoasId, MemoryId)>,
    domains: Vec<(UnitId, DomainId)>,
}

/// A VM's PCI segment.
pub(crate) struct GuestPci {
    hardware: &'static Hardware,
    pub(crate) vits: Arc<Vits>,
    /// Where devices write their messages to, as the guest knows it.
    doorbell: u64,
    windows: Vec<Span<Ipa>>,
    msi_window: Option<bundle::MsiWindow>,
    /// The SMMU that the guest sees, if it sees one.
    pub(crate) smmu: Option<GuestSmmu>,
    msi: bundle::MsiPolicy,
    /// The devices, as the manifest has them.
    seats: Vec<Assigned>,
    state: Mutex<State>,
    dma: Mutex<Dma>,
}

const fn config_width(width: Width) -> Option<ConfigWidth> {
    match width {
        Width::Byte => Some(ConfigWidth::Byte),
        Width::Half => Some(ConfigWidth::Half),
        Width::Word => Some(ConfigWidth::Word),
        // Not a transaction of configuration space.
        Width::Double => None,
    }
}

impl GuestPci {
    /// The segment of a VM with these devices.
    ///
    /// # Errors
    /// What is in the way, for the log.
    pub(crate) fn new(
        hardware: &'static Hardware,
        platform: &GuestPlatform,
        vcpus: usize,
        assigned: &[Assigned],
        config: &bundle::VmConfig,
        smmu: Option<GuestSmmu>,
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
                pin: Pin::Hidden,
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
                resetting: false,
                window_doorbell: 0,
            });
            events.push(DeviceEvents {
                device: seat.guest.bits().into(),
                events: function.events,
            });
        }
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
            smmu,
            msi: super::vm::msi_policy(config),
            seats: assigned.to_vec(),
            state: Mutex::new(State { segment, held }),
            dma: Mutex::new(Dma::default()),
        })
    }

    /// Takes the devices for the VM: each in the VM's DMA domain, out of reset, silent. All or none.
    ///
    /// # Errors
    /// What is in the way, for the log.
    pub(crate) fn claim(&self, vm: &Vm) -> Result<(), String> {
        let mut state = self.state.lock();
        let mut taken = 0;
        let mut outcome = Ok(());
        for held in &state.held {
            let cpu_of = |vector: u32| {
                let slot = vm.slots.get(vector as usize % vm.slots.len().max(1));
                slot.map_or(0, |slot| slot.core)
            };
            outcome = self
                .hardware
                .take(held.function, vm.number, cpu_of)
                .map_err(|error| format!("device {}: {error}", self.name(held)));
            if outcome.is_err() {
                break;
            }
            taken += 1;
        }
        let mut attached = 0;
        if outcome.is_ok() {
            let mut dma = self.dma.lock();
            if let Some(smmu) = &self.smmu {
                smmu.restart();
            }
            for held in &mut state.held {
                outcome = self
                    .attach(vm, &mut dma, held)
                    .map_err(|error| format!("device {}: {error}", self.name(held)));
                if outcome.is_err() {
                    break;
                }
                attached += 1;
            }
        }
        if outcome.is_err() {
            for (position, held) in state.held.iter().enumerate().take(taken) {
                if position < attached {
                    self.detach(held);
                }
                self.hardware.give_back(held.function);
            }
            return outcome;
        }
        let State { segment, held } = &mut *state;
        for held in held {
            if let Some(function) = segment.function_mut(held.guest) {
                function.reset();
            }
            if let Some(table) = &mut held.msix {
                table.reset();
            }
            held.resetting = false;
        }
        Ok(())
    }

    fn name(&self, held: &Held) -> String {
        match self.hardware.functions.get(held.function) {
            Some(function) => format!("{:04x}:{}", function.segment, function.bdf),
            None => String::new(),
        }
    }

    /// Gives the devices back: nothing of them reaches the VM's memory or its vCPUs when this returns. No
    /// vCPU of the VM is on a core.
    pub(crate) fn release(&self, vm: &Vm) {
        let mut state = self.state.lock();
        for held in &mut state.held {
            if let Some(function) = self.hardware.functions.get(held.function) {
                self.hardware.quiet(function);
            }
            for mapped in held.mapped.drain(..) {
                unmap(vm, &mapped);
            }
            self.detach(held);
            self.hardware.give_back(held.function);
        }
    }

    fn attach(&self, vm: &Vm, dma: &mut Dma, held: &mut Held) -> Result<(), String> {
        let hardware = self.hardware;
        let function = hardware
            .functions
            .get(held.function)
            .ok_or("no such function")?;
        let mut core = hardware.iommu.lock();
        let owner = hardware::owner(vm.number);
        let say = |error: iommu::Error| error.to_string();
        let (ioas, memory) = match dma.ioas {
            Some(known) => known,
            None => {
                let extents = vm.ram().iter().map(|(span, pa)| Extent {
                    pa: *pa,
                    bytes: span.len().unwrap_or(0),
                });
                let extents: Vec<Extent> = extents.collect();
                let made = (
                    core.create_ioas(owner).map_err(say)?,
                    core.add_ram(owner, &extents).map_err(say)?,
                );
                dma.ioas = Some(made);
                made
            }
        };
        if let Some(window) = self.msi_window {
            core.set_msi_start(function.device, window.start)
                .map_err(say)?;
            let mebibytes = window.bytes >> 20;
            core.set_msi_size(function.device, mebibytes).map_err(say)?;
        }
        let known = dma.domains.iter().find(|(unit, _)| *unit == function.unit);
        let domain = match known {
            Some((_, domain)) => *domain,
            None => {
                let options = DomainOptions {
                    nest_parent: self.smmu.is_some(),
                    dirty_tracking: false,
                };
                let domain = core
                    .create_domain(function.device, ioas, options)
                    .map_err(say)?;
                dma.domains.push((function.unit, domain));
                let table = core.domain(domain).map_err(say)?.table();
                if let Some(table) = table {
                    vm.lend(core.backend_mut(), table);
                }
                domain
            }
        };
        if core.ioas(ioas).map_err(say)?.is_empty() {
            let mut offset = 0;
            for span in &vm.platform().memory {
                let bytes = span.len().unwrap_or(0);
                let request = Map {
                    placement: Placement::Fixed(Iova::truncated(span.start().bits())),
                    memory,
                    offset,
                    bytes,
                    permissions: Permissions::ReadWrite,
                };
                core.map(ioas, &request).map_err(say)?;
                offset += bytes;
            }
        }
        core.attach(function.device, Target::Domain(domain))
            .map_err(say)?;
        let doorbell = hardware.doorbell(function).ok_or("it has no ITS")?;
        let page = Iova::truncated(self.doorbell & !PageSize::SIZE_4K.mask());
        let shown = core.map_doorbell(function.device, doorbell);
        let shown = shown.and_then(|window| {
            core.map_doorbell_at(function.device, page, doorbell)?;
            Ok(window)
        });
        match shown {
            Ok(window) => held.window_doorbell = window.bits(),
            Err(error) => {
                let _ = core.detach(function.device);
                return Err(error.to_string());
            }
        }
        drop(core);
        if let Some(smmu) = &self.smmu
            && let Err(error) = smmu.link(vm, held.guest, function.device, domain)
        {
            self.detach(held);
            return Err(error);
        }
        Ok(())
    }

    fn detach(&self, held: &Held) {
        if let Some(smmu) = &self.smmu
            && smmu.unlink(held.guest)
        {
            return;
        }
        let Some(function) = self.hardware.functions.get(held.function) else {
            return;
        };
        if let Err(error) = self.hardware.iommu.lock().detach(function.device) {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// When resets that are under way are to be looked at again, in ticks; `None` when none is.
    pub(crate) fn resets(&self) -> Option<u64> {
        let state = self.state.lock();
        let functions = state
            .held
            .iter()
            .filter_map(|held| self.hardware.functions.get(held.function));
        functions
            .filter_map(|function| self.hardware.poll_reset(function))
            .min()
    }

    /// A guest's read of configuration space.
    pub(crate) fn read_config(&self, offset: u64, width: Width) -> u64 {
        let Some(width) = config_width(width) else {
            return u64::MAX;
        };
        let mut state = self.state.lock();
        let Some((bdf, register)) = state.segment.locate(offset) else {
            return u64::MAX;
        };
        let position = state.held.iter().position(|held| held.guest == bdf);
        if position.is_some_and(|position| self.is_resetting(&mut state, position)) {
            return u64::MAX;
        }
        let function = position.and_then(|position| state.held.get(position));
        let function = function.and_then(|held| self.hardware.functions.get(held.function));
        let bridge = function.map_or(0, |function| function.bridge);
        let Some(bridge) = self.hardware.bridges.get(bridge) else {
            return u64::MAX;
        };
        state
            .segment
            .read(&bridge.space, bdf, register, width)
            .into()
    }

    /// Whether a device is still in the reset that the guest asked for.
    fn is_resetting(&self, state: &mut State, position: usize) -> bool {
        let Some(held) = state.held.get_mut(position).filter(|held| held.resetting) else {
            return false;
        };
        let function = self.hardware.functions.get(held.function);
        held.resetting =
            function.is_some_and(|function| self.hardware.poll_reset(function).is_some());
        held.resetting
    }

    /// A guest's write to configuration space.
    pub(crate) fn write_config(&self, vm: &Vm, offset: u64, width: Width, value: u64) {
        let Some(width) = config_width(width) else {
            return;
        };
        let mut state = self.state.lock();
        let Some((bdf, register)) = state.segment.locate(offset) else {
            return;
        };
        let position = state.held.iter().position(|held| held.guest == bdf);
        if position.is_some_and(|position| self.is_resetting(&mut state, position)) {
            return;
        }
        let function = position.and_then(|position| state.held.get(position));
        let function = function.and_then(|held| self.hardware.functions.get(held.function));
        let bridge = function.map_or(0, |function| function.bridge);
        let Some(bridge) = self.hardware.bridges.get(bridge) else {
            return;
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most 32 bits of it count"
        )]
        let value = value as u32;
        match state
            .segment
            .write(&bridge.space, bdf, register, width, value)
        {
            None => {}
            Some(Change::Function(_, effects)) => {
                if let Some(position) = position {
                    self.apply(vm, &mut state, position, effects);
                }
            }
            Some(Change::Below(port, effects)) => {
                let below: Vec<Bdf> = state.segment.below(port).collect();
                for bdf in below {
                    if let Some(position) = state.held.iter().position(|held| held.guest == bdf) {
                        self.apply(
                            vm,
                            &mut state,
                            position,
                            effects | Effects::MSIX | Effects::MSI,
                        );
                    }
                }
            }
        }
    }

    /// Does what a guest's write asks for, what takes something away first.
    fn apply(&self, vm: &Vm, state: &mut State, position: usize, effects: Effects) {
        let State { segment, held } = state;
        let Some(held) = held.get_mut(position) else {
            return;
        };
        let Some(function) = self.hardware.functions.get(held.function) else {
            return;
        };
        if effects.contains(Effects::RESET) {
            self.hardware.quiet(function);
            for mapped in held.mapped.drain(..) {
                unmap(vm, &mapped);
            }
            for vector in 0..function.events {
                self.hardware.set_route(function, vector, None);
            }
            if let Some(virtual_function) = segment.function_mut(held.guest) {
                virtual_function.reset();
            }
            if let Some(table) = &mut held.msix {
                table.reset();
            }
            if self.hardware.has_reset(function) {
                self.hardware.begin_reset(function);
                held.resetting = true;
            }
            return;
        }
        let mastering = segment.mastering(held.guest);
        if effects.contains(Effects::MASTERING) && !mastering {
            self.hardware.set_mastering(function, Permission::Denied);
        }
        if effects.contains(Effects::MAPPING) {
            self.remap(vm, segment, held);
        }
        if effects.intersects(Effects::MSIX | Effects::MASTERING) {
            self.update_msix(vm, segment, held, function);
        }
        if effects.intersects(Effects::MSI | Effects::MASTERING) {
            self.update_msi(vm, segment, held, function);
        }
        if effects.contains(Effects::MASTERING) && mastering {
            self.hardware.set_mastering(function, Permission::Granted);
        }
    }

    /// Shows BARs where the guest wants them, as far as its windows go.
    fn remap(&self, vm: &Vm, segment: &GuestSegment, held: &mut Held) {
        let Some(virtual_function) = segment.function(held.guest) else {
            return;
        };
        let wanted = |bar: u8, bytes: u64| {
            let at = segment.mapping(held.guest, bar)?;
            let span = Span::from_len(Ipa::new(at).ok()?, bytes)?;
            let inside = self.windows.iter().any(|window| window.contains_span(span));
            inside.then_some(at)
        };
        let mut kept = Vec::new();
        for mapped in core::mem::take(&mut held.mapped) {
            if wanted(mapped.bar, mapped.bytes) == Some(mapped.at) {
                kept.push(mapped);
            } else {
                unmap(vm, &mapped);
            }
        }
        let trapped = virtual_function.trapped(PageSize::SIZE_4K);
        for bar in virtual_function.bars() {
            let (Some(at), Some(place)) = (wanted(bar.index, bar.size), bar.place) else {
                continue;
            };
            if kept.iter().any(|mapped| mapped.bar == bar.index) {
                continue;
            }
            let mut mapped = Mapped {
                bar: bar.index,
                at,
                bytes: bar.size,
                pa: place.cpu,
                pieces: Vec::new(),
            };
            for (first, bytes) in open_parts(bar.index, bar.size, &trapped) {
                let span = Ipa::new(at.saturating_add(first))
                    .ok()
                    .and_then(|start| Span::from_len(start, bytes));
                if let (Some(span), Some(pa)) = (span, place.cpu.checked_add(first)) {
                    mapped.pieces.push((span, pa));
                }
            }
            if map(vm, &mapped) {
                kept.push(mapped);
            }
        }
        held.mapped = kept;
    }

    /// The route of a message, and the address that the device is to write it to, if the guest's address
    /// and data mean one.
    ///
    /// Without an SMMU of the guest's, only its doorbell means one. With one, the guest's address is
    /// translated by its stage 1: policy `vits` has the device use it as it is (it leads nowhere that the
    /// device's other accesses do not), policy `rmr` has it use the window, which the guest maps to itself.
    fn route(&self, vm: &Vm, held: &Held, address: u64, data: u32) -> Option<(Route, u64)> {
        let route = Route {
            vm: vm.number,
            device: held.guest.bits(),
            event: u16::try_from(data).ok()?,
        };
        match (&self.smmu, self.msi) {
            (None, _) => (address == self.doorbell).then_some((route, address)),
            (Some(_), bundle::MsiPolicy::Rmr) => Some((route, held.window_doorbell)),
            (Some(_), bundle::MsiPolicy::Vits) => {
                address.is_multiple_of(4).then_some((route, address))
            }
        }
    }

    fn update_msix(&self, vm: &Vm, segment: &GuestSegment, held: &Held, function: &Function) {
        let state = segment.function(held.guest).and_then(VirtualFunction::msix);
        let (Some(msix), Some(state)) = (function.msix(self.hardware), state) else {
            return;
        };
        let Some(bridge) = self.hardware.bridges.get(function.bridge) else {
            return;
        };
        let mode = match (state.enabled, state.masked) {
            (false, _) => MsixMode::Off,
            (true, true) => MsixMode::Masked,
            (true, false) => MsixMode::On,
        };
        if mode != MsixMode::On
            && let Err(error) = msix.set_mode(&bridge.space, function.bdf, mode)
        {
            log::error!("pci {}: {error}", function.bdf);
        }
        if state.enabled {
            for vector in 0..msix.vectors {
                self.update_vector(vm, held, function, &msix, vector);
            }
        }
        if mode == MsixMode::On
            && let Err(error) = msix.set_mode(&bridge.space, function.bdf, mode)
        {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// Writes one vector of the device's own table from what the guest's says.
    fn update_vector(&self, vm: &Vm, held: &Held, function: &Function, msix: &MsiX, vector: u16) {
        let Some(table) = self.table_of(function, msix) else {
            return;
        };
        let wanted = held
            .msix
            .as_ref()
            .and_then(|table| table.vector(vector.into()));
        let route = wanted.and_then(|w| self.route(vm, held, w.address, w.data));
        let masked = wanted.is_none_or(|wanted| wanted.masked);
        let vector_number = u32::from(vector);
        let route = route.filter(|_| !masked && vector_number < function.events);
        let Some((route, address)) = route else {
            msix.write_vector(&table, vector, None);
            return;
        };
        self.hardware
            .set_route(function, vector_number, Some(route));
        let message = Message {
            address,
            data: function.first_event.saturating_add(vector_number),
        };
        msix.write_vector(&table, vector, Some(message));
    }

    /// The device's own MSI-X table.
    fn table_of(&self, function: &Function, msix: &MsiX) -> Option<Within> {
        let described = self.hardware.described(function)?;
        let bar = described.bar(msix.table.bar)?;
        let span = Span::from_len(bar.place?.cpu, bar.size.max(PageSize::SIZE_4K.bytes()))?;
        // SAFETY: the BAR was placed and is mapped; its table is the hypervisor's alone.
        let registers = unsafe { Registers::new(span) };
        let offset = usize::try_from(msix.table.offset).ok()?;
        let inside = u64::from(msix.table.offset) + u64::from(msix.table_bytes()) <= bar.size;
        inside.then_some(Within { registers, offset })
    }

    fn update_msi(&self, vm: &Vm, segment: &GuestSegment, held: &Held, function: &Function) {
        let state = segment.function(held.guest).and_then(VirtualFunction::msi);
        let (Some(msi), Some(state)) = (function.msi(self.hardware), state) else {
            return;
        };
        let Some(bridge) = self.hardware.bridges.get(function.bridge) else {
            return;
        };
        let data = u32::from(state.data);
        let first = self.route(vm, held, state.address, data);
        let (true, Some((first, address))) = (state.enabled, first) else {
            let _ = msi.disable(&bridge.space, function.bdf);
            return;
        };
        msi.mask(&bridge.space, function.bdf, state.masked);
        let vectors = state.vectors.max(1);
        for vector in 0..u16::from(vectors) {
            // The device puts the vector's number into the low bits.
            let event = first.event & !(u16::from(vectors) - 1) | vector;
            let route = Route { event, ..first };
            self.hardware
                .set_route(function, vector.into(), Some(route));
        }
        let message = Message {
            address,
            data: function.first_event,
        };
        let log2 = vectors.trailing_zeros().to_le_bytes()[0];
        if let Err(error) = msi.enable(&bridge.space, function.bdf, message, log2) {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// The BAR that a guest-physical address is in: whose, which, and where in it.
    fn bar_at(state: &State, ipa: u64) -> Option<(usize, u8, Pa, u64)> {
        state.held.iter().enumerate().find_map(|(position, held)| {
            let mapped = held
                .mapped
                .iter()
                .find(|m| ipa.wrapping_sub(m.at) < m.bytes)?;
            Some((position, mapped.bar, mapped.pa, ipa.wrapping_sub(mapped.at)))
        })
    }

    /// A guest's read in a PCI window that traps: in a page with an MSI-X table, or where nothing is.
    pub(crate) fn read_memory(&self, ipa: u64, width: Width) -> u64 {
        let state = self.state.lock();
        let read = || {
            let (position, bar, pa, offset) = Self::bar_at(&state, ipa)?;
            let held = state.held.get(position)?;
            let function = self.hardware.functions.get(held.function)?;
            if let Some(msix) = function.msix(self.hardware)
                && let Some(within) = in_table(&msix, bar, offset)
            {
                let table = held.msix.as_ref()?;
                return Some(match width {
                    Width::Word => table.read(within).into(),
                    Width::Double => {
                        let high = u64::from(table.read(within.checked_add(4)?));
                        high << 32 | u64::from(table.read(within))
                    }
                    _ => 0,
                });
            }
            read_register(pa, offset, width)
        };
        read().unwrap_or(u64::MAX)
    }

    /// A guest's write there.
    pub(crate) fn write_memory(&self, vm: &Vm, ipa: u64, width: Width, value: u64) {
        let mut state = self.state.lock();
        let mut write = || {
            let (position, bar, pa, offset) = Self::bar_at(&state, ipa)?;
            let State { segment, held } = &mut *state;
            let held = held.get_mut(position)?;
            let function = self.hardware.functions.get(held.function)?;
            let Some(msix) = function.msix(self.hardware) else {
                return write_register(pa, offset, width, value);
            };
            let Some(within) = in_table(&msix, bar, offset) else {
                let pending = u64::from(msix.pending.offset);
                let is_pending = msix.pending.bar == bar
                    && offset.wrapping_sub(pending) < u64::from(msix.pending_bytes());
                if !is_pending {
                    write_register(pa, offset, width, value)?;
                }
                return Some(());
            };
            let table = held.msix.as_mut()?;
            #[expect(clippy::cast_possible_truncation, reason = "32 bits at a time")]
            let changed = match width {
                Width::Word => vec![table.write(within, value as u32)],
                Width::Double => {
                    let low = table.write(within, value as u32);
                    vec![
                        low,
                        table.write(within.checked_add(4)?, (value >> 32) as u32),
                    ]
                }
                _ => Vec::new(),
            };
            let enabled = segment
                .function(held.guest)
                .and_then(VirtualFunction::msix)?
                .enabled;
            if enabled && let Some(vector) = changed.into_iter().flatten().next() {
                let vector = u16::try_from(vector).ok()?;
                self.update_vector(vm, held, function, &msix, vector);
            }
            Some(())
        };
        let _ = write();
    }

    /// The devices, as lines for the monitor: where the guest has each, and which it is.
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state.lock();
        let line = |held: &Held| {
            let bars: Vec<String> = held
                .mapped
                .iter()
                .map(|mapped| format!(" BAR{} at {:#x}", mapped.bar, mapped.at))
                .collect();
            format!("{} is {}{}", held.guest, self.name(held), bars.concat())
        };
        state.held.iter().map(line).collect()
    }

    /// How the guest's devices are translated and signal, as a line.
    pub(crate) fn summary(&self) -> String {
        match &self.smmu {
            None => "its guest sees no SMMU: stage 2 alone translates".to_string(),
            Some(_) => format!("its guest has an SMMU of its own, messages by {}", self.msi),
        }
    }

    /// What the guest's SMMU did, as a line, if it has one.
    pub(crate) fn smmu_line(&self) -> Option<String> {
        self.smmu.as_ref().map(GuestSmmu::line)
    }

    /// Where DMA of a device goes at an address, by the tables in memory, a line for each step.
    pub(crate) fn walk(&self, vm: &Vm, bdf: Bdf, at: Iova) -> Option<Vec<String>> {
        let seat = self.seats.iter().find(|seat| seat.guest == bdf)?;
        let function = self.hardware.functions.get(seat.function)?;
        let mut lines = Vec::from([self.hardware.entry(function)?]);
        match &self.smmu {
            Some(smmu) => lines.extend(smmu.walk(
                vm,
                bdf,
                at,
                |ipa| {
                    let at = Iova::truncated(ipa.bits());
                    match self.hardware.stage_two(function, at)? {
                        Walk::Mapped { pa, .. } => Pa::new(pa).ok(),
                        Walk::Unmapped { .. } => None,
                    }
                },
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
        let (delivery, kicks) = self.smmu.as_ref()?.report(vm, seat.guest, event);
        (delivery == Delivery::Delivered).then_some(kicks)
    }

    /// Whether something that the guest began is to be gone on with.
    pub(crate) fn has_work(&self) -> bool {
        self.vits.has_work() || self.smmu.as_ref().is_some_and(GuestSmmu::has_work)
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
        if let Some(smmu) = self.smmu.as_ref().filter(|smmu| smmu.has_work()) {
            kicks = kicks.union(smmu.run(vm)?);
        }
        Ok(kicks)
    }
}

/// The walk of a device's address through stage 2, for the monitor.
fn stage_two_line(walk: &Walk, at: Iova) -> String {
    format!("stage 2: {}", walk.line(at.bits()))
}

/// Ports that lead to the buses the guest's devices are on: where each is, and its bus.
fn ports(assigned: &[Assigned]) -> Result<Vec<(Bdf, u8)>, String> {
    let mut buses: Vec<u8> = assigned.iter().map(|seat| seat.guest.bus()).collect();
    buses.sort_unstable();
    buses.dedup();
    let mut device = 0;
    let mut ports = Vec::new();
    for bus in buses.into_iter().filter(|bus| *bus != 0) {
        let taken = |number: u8| {
            assigned
                .iter()
                .any(|seat| seat.guest.bus() == 0 && seat.guest.device() == number)
        };
        device += 1;
        while taken(device) {
            device += 1;
        }
        let port = Bdf::new(0, device, 0).map_err(|error| error.to_string())?;
        ports.push((port, bus));
    }
    Ok(ports)
}

fn add_ports(segment: &mut GuestSegment, assigned: &[Assigned]) -> Result<(), String> {
    for (port, bus) in ports(assigned)? {
        segment
            .add_port(port, Siblings::None, bus)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The way to each of a VM's devices.
///
/// # Errors
/// There is no place for a port.
pub(super) fn paths(assigned: &[Assigned]) -> Result<Vec<DevicePath>, String> {
    let ports = ports(assigned)?;
    let path = |seat: &Assigned| {
        let bridges = ports.iter().filter(|(_, bus)| *bus == seat.guest.bus());
        DevicePath::new(bridges.map(|(port, _)| *port).collect(), seat.guest)
    };
    Ok(assigned.iter().map(path).collect())
}

/// An offset in the MSI-X table, when an offset in a BAR is in it.
fn in_table(msix: &MsiX, bar: u8, offset: u64) -> Option<u32> {
    let within = offset.checked_sub(msix.table.offset.into())?;
    let inside = msix.table.bar == bar && within < u64::from(msix.table_bytes());
    u32::try_from(within).ok().filter(|_| inside)
}

/// What of a BAR the guest may reach by itself: (first byte, length).
fn open_parts(bar: u8, bytes: u64, trapped: &[(u8, u64, u64)]) -> Vec<(u64, u64)> {
    let mut closed: Vec<(u64, u64)> = trapped
        .iter()
        .filter(|(of, _, _)| *of == bar)
        .map(|(_, first, bytes)| (*first, first.saturating_add(*bytes)))
        .collect();
    closed.sort_unstable();
    let mut parts = Vec::new();
    let mut at = 0;
    for (first, end) in closed {
        if at < first.min(bytes) {
            parts.push((at, first.min(bytes) - at));
        }
        at = at.max(end);
    }
    if at < bytes {
        parts.push((at, bytes - at));
    }
    parts
}

fn map(vm: &Vm, mapped: &Mapped) -> bool {
    let mut done = Vec::new();
    for (span, pa) in &mapped.pieces {
        if !vm.map_device(*span, *pa) {
            for span in done {
                vm.unmap_device(span);
            }
            return false;
        }
        done.push(*span);
    }
    true
}

fn unmap(vm: &Vm, mapped: &Mapped) {
    for (span, _) in &mapped.pieces {
        vm.unmap_device(*span);
    }
}

/// A register beside an MSI-X table: the device's own, at the width the guest has asked for.
fn register(pa: Pa, offset: u64) -> Option<(Registers, usize)> {
    let page = pa.checked_add(offset & !PageSize::SIZE_4K.mask())?;
    let span = Span::from_len(page, PageSize::SIZE_4K.bytes())?;
    // SAFETY: a page of a BAR of a device that this VM has; it is mapped, and not of its MSI-X table
    // where this is used.
    let registers = unsafe { Registers::new(span) };
    Some((
        registers,
        usize::try_from(offset & PageSize::SIZE_4K.mask()).ok()?,
    ))
}

fn read_register(pa: Pa, offset: u64, width: Width) -> Option<u64> {
    let (registers, at) = register(pa, offset)?;
    if !at.is_multiple_of(width.bytes().into()) {
        return None;
    }
    Some(match width {
        Width::Byte => registers.read8(at).into(),
        Width::Half => registers.read16(at).into(),
        Width::Word => registers.read32(at).into(),
        Width::Double => registers.read64(at),
    })
}

fn write_register(pa: Pa, offset: u64, width: Width, value: u64) -> Option<()> {
    let (registers, at) = register(pa, offset)?;
    if !at.is_multiple_of(width.bytes().into()) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the width says what counts"
    )]
    match width {
        Width::Byte => registers.write8(at, value as u8),
        Width::Half => registers.write16(at, value as u16),
        Width::Word => registers.write32(at, value as u32),
        Width::Double => registers.write64(at, value),
    }
    Some(())
}
