//! Where a VM's devices come from, and the SMMUs that its guest sees for them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bundle::{Firmware, IommuMode, MsiPolicy, VmConfig};
use firmware::{GuestPlatform, Remapping, Rmr};
use iommu::UnitId;
use types::{Ipa, Span};

use super::{BuildError, IPA_BITS};
use crate::guest::pci::{self, Assigned};
use crate::guest::smmu::GuestSmmu;
use crate::hardware::{Function, Hardware};

/// Where a VM's devices come from.
#[derive(Clone, Copy)]
pub(crate) struct Devices<'a> {
    pub(crate) hardware: &'static Hardware,
    pub(crate) assigned: &'a [Assigned],
}

impl Devices<'_> {
    /// Gives the platform the SMMUs that the guest is to see, one for each of the machine's that its devices are
    /// behind, and for each ITS that those write to; none where it is to see none.
    #[optimize(size)]
    pub(super) fn add_smmus(
        &self,
        config: &VmConfig,
        platform: &mut GuestPlatform,
    ) -> Result<Vec<GuestSmmu>, BuildError> {
        let units = match (config.iommu, self.nesting_units()) {
            (IommuMode::Nested, units) => units.map_err(|why| {
                BuildError::Device(format!("iommu = \"nested\" is not to be had: {why}"))
            })?,
            (IommuMode::Auto, Ok(units)) => units,
            (IommuMode::Auto, Err(why)) => {
                log::info!("vm {}: its guest sees no SMMU: {why}", config.name);
                return Ok(Vec::new());
            }
            _ => return Ok(Vec::new()),
        };
        let behind = self.seats().filter_map(|(seat, function)| {
            let behind = function.smmu?;
            Some((seat.guest, seat.seen_behind(function, behind.unit)))
        });
        platform
            .add_virt_smmus(behind)
            .map_err(BuildError::Platform)?;
        if msi_policy(config) == MsiPolicy::Rmr {
            let default = iommu::MsiWindow::DEFAULT.span();
            let start = config
                .msi_window
                .map_or(default.start().bits(), |w| w.start);
            let bytes = config.msi_window.map(|window| window.bytes);
            let bytes = bytes.or(default.len()).unwrap_or(0);
            let window = Ipa::new(start)
                .ok()
                .and_then(|start| Span::from_len(start, bytes))
                .ok_or(BuildError::Geometry)?;
            platform.rmrs.push(Rmr {
                window,
                remapping: Remapping::Permitted,
                devices: pci::paths(self.assigned).map_err(BuildError::Device)?,
            });
        }
        let smmus = units
            .into_iter()
            .enumerate()
            .map(|(place, unit)| GuestSmmu::new(self.hardware, unit, platform, place, IPA_BITS));
        smmus.collect::<Result<_, _>>().map_err(BuildError::Device)
    }

    /// Whether one of them is behind no SMMU.
    pub(super) fn has_unconfined(&self) -> bool {
        let mut functions = self.assigned.iter();
        functions.any(|seat| {
            let function = self.hardware.functions.get(seat.function);
            function.is_some_and(|function| function.smmu.is_none())
        })
    }

    /// The devices, with the machine's functions that they are.
    fn seats(&self) -> impl Iterator<Item = (&Assigned, &'static Function)> {
        let functions = &self.hardware.functions;
        let seats = self.assigned.iter();
        seats.filter_map(|seat| Some((seat, functions.get(seat.function)?)))
    }

    /// Each function of an isolation group has an entry of its own in the guest's stream table, which says nothing of what
    /// they reach of each other past the SMMU. The guest knows of that, and gives all to one of its own users, when it
    /// sees them as functions of one device.
    #[optimize(size)]
    fn check_mates(&self, seat: &Assigned, function: &Function) -> Result<(), String> {
        let named = |function: &Function| format!("{:04x}:{}", function.segment, function.bdf);
        for (place, shares) in self.hardware.mates(function) {
            let other = self.hardware.functions.get(place).map(named);
            let other = other.unwrap_or_default();
            if shares {
                return Err(format!("{} has the stream ID of {other}", named(function)));
            }
            let mut seats = self.assigned.iter();
            let known = seats.find(|known| known.function == place);
            if known.is_none_or(|known| known.guest.bits() >> 3 != seat.guest.bits() >> 3) {
                return Err(format!(
                    "{} shares its isolation group with {other}: the guest has to see functions of one device (guest = …)",
                    named(function)
                ));
            }
        }
        Ok(())
    }

    /// The machine's SMMU below each of the guest's, in the order of the devices, all of which nest; or why there are
    /// none.
    #[optimize(size)]
    fn nesting_units(&self) -> Result<Vec<UnitId>, String> {
        let mut keys = Vec::new();
        for (seat, function) in self.seats() {
            let Some(behind) = function.smmu else {
                return Err("a device of it is behind no SMMU".into());
            };
            let key = seat.seen_behind(function, behind.unit);
            if !keys.contains(&key) {
                keys.push(key);
            }
            self.check_mates(seat, function)?;
        }
        if keys.is_empty() {
            return Err("it has no device".into());
        }
        for (unit, ..) in &keys {
            GuestSmmu::features(self.hardware, *unit, IPA_BITS, vsmmuv3::Messages::Off)?;
        }
        Ok(keys.into_iter().map(|(unit, ..)| unit).collect())
    }
}

/// How a VM's messages are addressed, when its guest has an SMMU.
///
/// With a device tree and `iommu = "auto"` by the guest's own mapping, which every kernel makes: one before
/// Linux 6.3 would take no notice of a reserved window, and silently have no messages.
pub(in crate::guest) fn msi_policy(config: &VmConfig) -> MsiPolicy {
    match (config.iommu, config.firmware) {
        (IommuMode::Auto, Firmware::Dt) => MsiPolicy::Vits,
        _ => config.msi,
    }
}
