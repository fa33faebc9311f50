//! The machine's side of a guest's SMMU: what it has in the IOMMU core.

use alloc::vec::Vec;

use iommu::{BackendError, DeviceId, DomainId, Error, NestedConfig, VdeviceId, ViommuId};
use types::StreamId;
use vsmmuv3::{Failure, Invalidation, Physical, Refusal};

use crate::hardware::Hardware;

/// A stream of the guest's.
pub(super) struct Link {
    pub(super) stream: StreamId,
    pub(super) device: DeviceId,
    pub(super) vdevice: VdeviceId,
    /// Where it is attached, once it was switched.
    pub(super) domain: Option<DomainId>,
}

/// What the guest's SMMU has in the core.
#[derive(Default)]
pub(super) struct Links {
    /// Made with the first device, and kept for as long as the VM.
    pub(super) viommu: Option<ViommuId>,
    pub(super) streams: Vec<Link>,
}

/// The machine's side, for the time of a call.
pub(super) struct Machine<'a> {
    pub(super) hardware: &'static Hardware,
    pub(super) links: &'a mut Links,
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
        // Of the device alone: others of its isolation group have entries of their own.
        match core.configure(link.device, Some(new)) {
            Ok(()) => {
                if let Some(old) = link.domain.replace(new)
                    && let Err(error) = core.destroy_domain(old)
                {
                    log::error!("stream {stream}: {error}");
                }
                Ok(())
            }
            Err(error) => {
                let _ = core.destroy_domain(new);
                self.hardware.tell_off(&core);
                Err(refusal(error))
            }
        }
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        let viommu = self.links.viommu.ok_or(Failure::Failed)?;
        let entries = batch.iter().map(Invalidation::for_core);
        let mut core = self.hardware.iommu.lock();
        match core.invalidate_each(viommu, entries) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.hardware.tell_off(&core);
                Err(Failure::Failed)
            }
        }
    }
}
