//! The device's own messages, from what the guest's shadows say.

use pci::vconfig::{GuestSegment, VirtualFunction};
use pci::{Message, MsiX, MsixMode};
use types::{PageSize, Span};

use super::registers::Within;
use super::{GuestPci, Held};
use crate::guest::vm::Vm;
use crate::hardware::{Function, Route};
use crate::memory::Guarded;

impl GuestPci {
    /// The route of a message, and the address that the device is to write it to, if the guest's address
    /// and data mean one.
    ///
    /// Without an SMMU of the guest's, only its doorbell means one. With one, the guest's address is
    /// translated by its stage 1: policy `vits` has the device use it as it is (it leads nowhere that the
    /// device's other accesses do not), policy `rmr` has it use the window, which the guest maps to itself, for an
    /// address that the guest's tables lead to the doorbell now; any other is the device's to use as it is, and what
    /// becomes of that is what becomes of its other accesses: a fault, or a write to the guest's memory.
    fn route(&self, vm: &Vm, held: &Held, address: u64, data: u32) -> Option<(Route, u64)> {
        let event = u16::try_from(data).ok()?;
        let route = self.route_to(vm, held, event);
        let function = self.hardware.functions.get(held.function)?;
        let Some(smmu) = self.smmu_of(held.guest) else {
            // The guest's ITS page may lead to another of the machine's ITSs than the device's own.
            let shown = if held.has_its_page {
                address
            } else {
                held.window_doorbell
            };
            let written = held.direct_doorbell.unwrap_or(shown);
            return (address == self.doorbell).then_some((route, written));
        };
        if self.msi == bundle::MsiPolicy::Rmr {
            let stage_two = |ipa| self.stage_two(function, ipa);
            let end = smmu.end_of(vm, held.guest, address, stage_two);
            if end.is_some_and(|end| end == self.doorbell || end == held.window_doorbell) {
                return Some((route, held.window_doorbell));
            }
        }
        address.is_multiple_of(4).then_some((route, address))
    }

    fn route_to(&self, vm: &Vm, held: &Held, event: u16) -> Route {
        Route {
            vm: vm.number,
            message: (self.vits).message(held.guest.bits().into(), event.into()),
        }
    }

    pub(super) fn update_msix(
        &self,
        vm: &Vm,
        segment: &GuestSegment,
        held: &Held,
        function: &Function,
    ) {
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
    pub(super) fn update_vector(
        &self,
        vm: &Vm,
        held: &Held,
        function: &Function,
        msix: &MsiX,
        vector: u16,
    ) {
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
        let registers = unsafe { Guarded::new(span) };
        let offset = usize::try_from(msix.table.offset).ok()?;
        let inside = u64::from(msix.table.offset) + u64::from(msix.table_bytes()) <= bar.size;
        inside.then_some(Within { registers, offset })
    }

    pub(super) fn update_msi(
        &self,
        vm: &Vm,
        segment: &GuestSegment,
        held: &Held,
        function: &Function,
    ) {
        let state = segment.function(held.guest).and_then(VirtualFunction::msi);
        let (Some(msi), Some(state)) = (function.msi(self.hardware), state) else {
            return;
        };
        let Some(bridge) = self.hardware.bridges.get(function.bridge) else {
            return;
        };
        let data = u32::from(state.data);
        let first = self.route(vm, held, state.address, data);
        let (true, Some((_, address))) = (state.enabled, first) else {
            let _ = msi.disable(&bridge.space, function.bdf);
            return;
        };
        let vectors = state.vectors.max(1);
        for vector in 0..u16::from(vectors) {
            // The device puts the vector's number into the low bits.
            let event = state.data & !(u16::from(vectors) - 1) | vector;
            let route = self.route_to(vm, held, event);
            self.hardware
                .set_route(function, vector.into(), Some(route));
        }
        let message = Message {
            address,
            data: function.first_event,
        };
        let log2 = vectors.trailing_zeros().to_le_bytes()[0];
        if let Err(error) = msi.enable(&bridge.space, function.bdf, message, log2, state.masked) {
            log::error!("pci {}: {error}", function.bdf);
        }
    }
}

/// An offset in the MSI-X table, when an offset in a BAR is in it.
pub(super) fn in_table(msix: &MsiX, bar: u8, offset: u64) -> Option<u32> {
    let within = offset.checked_sub(msix.table.offset.into())?;
    let inside = msix.table.bar == bar && within < u64::from(msix.table_bytes());
    u32::try_from(within).ok().filter(|_| inside)
}
