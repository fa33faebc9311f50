//! What SMMUs tell of refused DMA: read, told to whom it concerns, and no more of it than anybody can bear.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use hal::Clock;
use iommu::UnitId;
use smmuv3::SERVICE_FAILURE;
use smmuv3::spec::{Event, Recording};
use types::{Bdf, StreamId};
use vm::{Noise, Records, RefusedDma, Telling};

use super::readers::NEVER;
use super::{Core, Function, Hardware, Unit};
use crate::console::SystemCounter;

/// Records that are read at once.
pub(super) const MOST_RECORDS: usize = 128;

/// Who was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The guest, by its own SMMU.
    Guest,
    /// Nobody yet.
    Nobody,
}

impl Hardware {
    /// Reads the event queues that are this core's to read, and acknowledges global errors. `tell` is told
    /// of every record of a device that a VM has: the VM, the function, the record; what it does not pass on
    /// is logged.
    pub(crate) fn drain(&self, core: usize, mut tell: impl FnMut(usize, usize, &Event) -> Told) {
        for (number, unit) in (0..).zip(&self.units) {
            if unit.reading.is_by(core) {
                let from = unit.reading.is_paid().then(|| SystemCounter.ticks());
                self.drain_one(number, unit, &mut tell);
                if let Some(from) = from {
                    unit.reading
                        .took(SystemCounter.ticks().saturating_sub(from));
                }
            }
        }
        if self.next_forgiven(core).is_some() {
            self.forgive(core, &mut self.iommu.lock());
        }
    }

    fn drain_one(
        &self,
        number: u32,
        unit: &Unit,
        tell: &mut impl FnMut(usize, usize, &Event) -> Told,
    ) {
        unit.reading.begins();
        let mut records = unit.reading.records.lock();
        records.clear();
        {
            let mut iommu = self.iommu.lock();
            let Some(smmu) = iommu.backend_mut().unit_mut(UnitId::new(number)) else {
                return;
            };
            let drained = smmu.drain(MOST_RECORDS, |event| records.push(event));
            if drained.more {
                unit.reading.leaves_some();
            }
            let errors = smmu.acknowledge_errors();
            if errors & SERVICE_FAILURE != 0 {
                log::error!("{}: it has failed", unit.name);
                self.tell_off(&iommu);
            }
            if drained.lost || errors != 0 {
                self.log_errors(&unit.name, drained.lost, errors);
            }
        }
        // The core is not locked here: whoever is told may have to wait for somebody who waits for it.
        for event in records.iter() {
            self.note(number, unit, event, tell);
        }
    }

    /// Global errors of an SMMU, a few times a second at most.
    fn log_errors(&self, unit: &str, lost: bool, errors: u32) {
        let error = RefusedDma {
            code: 0,
            is_write: lost,
            address: u64::from(errors) << 12,
        };
        let now = SystemCounter.ticks();
        if let Telling::Told { .. } = self.faults.lock().line(None, error, now) {
            let lost = if lost { "events were lost, " } else { "" };
            log::warn!("{unit}: {lost}global errors {errors:#x}");
        }
    }

    fn note(
        &self,
        number: u32,
        unit: &Unit,
        event: &Event,
        tell: &mut impl FnMut(usize, usize, &Event) -> Told,
    ) {
        let known = self.sender(UnitId::new(number), event.sid());
        let index = known.map(|(index, ..)| index);
        let known = known.map(|(_, bdf, vm)| (bdf, vm));
        let now = SystemCounter.ticks();
        let (records, noise) = {
            let mut faults = self.faults.lock();
            (faults.count(index, now), faults.noise(index))
        };
        if let (Some((_, Some(vm))), Noise::Begins) = (known, noise) {
            unit.reading.is_noise_of(vm);
        }
        match records {
            Records::Wanted => {}
            Records::Unbearable if event.only_an_abort_mutes() => {
                self.set_recording(index, Recording::Stopped);
            }
            // A guest's own context descriptors say that its stage 1's faults are recorded.
            Records::Unbearable if event.is_stage1() => {
                self.set_recording(index, Recording::Silent);
            }
            Records::Unwanted | Records::Unbearable => self.set_recording(index, Recording::Off),
        }
        if let (Some(index), Some((_, Some(vm)))) = (index, known)
            && tell(vm, index, event) == Told::Guest
        {
            return;
        }
        let refused = RefusedDma {
            code: event.id().bits(),
            is_write: !event.is_read(),
            address: event.input(),
        };
        let Telling::Told { unsaid } = self.faults.lock().line(index, refused, now) else {
            return;
        };
        let unit = &unit.name;
        let before = match unsaid {
            0 => String::new(),
            unsaid => format!(" ({unsaid} of it before this had no line)"),
        };
        match known {
            Some((bdf, None)) => log::info!("{unit}: {event}, {bdf} of no VM{before}"),
            Some((bdf, Some(vm))) => log::info!("{unit}: {event}, {bdf} of VM {}{before}", vm + 1),
            None => log::info!("{unit}: {event}, of no device that was given away{before}"),
        }
    }

    /// The function that sends with a stream ID, and the VM that has it. Functions behind a bridge to conventional PCI
    /// share the bridge's: all that have an owner have the same.
    fn sender(&self, unit: UnitId, sid: u32) -> Option<(usize, Bdf, Option<usize>)> {
        let functions = self.functions.iter().zip(&self.owners).enumerate();
        let mut of_no_vm = None;
        for (index, (function, owner)) in functions {
            let behind = function.smmu.filter(|behind| behind.unit == unit);
            if behind.is_some_and(|behind| behind.streams.contains(&sid)) {
                let vm = owner.load(Ordering::Relaxed).checked_sub(1);
                let sender = Some((index, function.bdf, vm));
                if vm.is_some() {
                    return sender;
                }
                of_no_vm = of_no_vm.or(sender);
            }
        }
        of_no_vm
    }

    /// Has records written of a function's refused DMA, or none, because it floods.
    fn set_recording(&self, index: Option<usize>, recording: Recording) {
        let mut iommu = self.iommu.lock();
        if let Some(function) = index.and_then(|index| self.functions.get(index)) {
            self.record(&mut iommu, function, recording);
        }
    }

    /// Lets functions be heard again whose flood is over, behind SMMUs whose records this core reads.
    fn forgive(&self, core: usize, iommu: &mut Core) {
        let mut faults = self.faults.lock();
        for index in faults.forgiven(SystemCounter.ticks(), |index| self.is_heard(index, core)) {
            if let Some(function) = self.functions.get(index) {
                self.record(iommu, function, Recording::On);
            }
        }
    }

    /// Whether this core reads the records of a function.
    fn is_heard(&self, index: usize, core: usize) -> bool {
        let behind = self.functions.get(index).and_then(|function| function.smmu);
        let unit = behind.and_then(|behind| usize::try_from(behind.unit.bits()).ok());
        let unit = unit.and_then(|unit| self.units.get(unit));
        unit.is_some_and(|unit| unit.reading.is_by(core))
    }

    fn next_forgiven(&self, core: usize) -> Option<u64> {
        let faults = self.faults.lock();
        faults.next_forgiven(|index| self.is_heard(index, core))
    }

    /// When [`Hardware::look_around`] has something to do on this core, in ticks.
    pub(crate) fn next_look(&self, core: usize) -> Option<u64> {
        if self.has_muted() {
            return self.next_of_all(core);
        }
        match self.reads(core) {
            true => self.next_reading(core),
            false => None,
        }
    }

    #[cold]
    #[optimize(size)]
    fn next_of_all(&self, core: usize) -> Option<u64> {
        let reading = self.reads(core).then(|| self.next_reading(core));
        let reading = reading.flatten();
        reading.into_iter().chain(self.next_open(core)).min()
    }

    #[inline(never)]
    fn next_reading(&self, core: usize) -> Option<u64> {
        // Records that were too many: whoever else is on the CPU has half of it meanwhile.
        const REST_US: u64 = 200;
        let due = match self.due(core)? {
            0 => Some(SystemCounter.ticks() + SystemCounter.ticks_of_us(REST_US)),
            NEVER => None,
            due => Some(due),
        };
        due.into_iter().chain(self.next_forgiven(core)).min()
    }

    /// Lets functions be heard again whose flood is over, where there are any.
    pub(crate) fn look_around(&self, core: usize) {
        if self.reads(core) && self.next_forgiven(core).is_some() {
            self.forgive(core, &mut self.iommu.lock());
        }
    }

    fn record(&self, iommu: &mut Core, function: &Function, recording: Recording) {
        let Some(behind) = function.smmu else {
            return;
        };
        // It may send with any of them.
        let streams = behind
            .streams
            .iter()
            .filter_map(|id| StreamId::new(*id).ok());
        for stream in streams {
            if let Some(smmu) = iommu.backend_mut().unit_mut(behind.unit)
                && let Err(error) = smmu.set_recording(stream, recording)
            {
                log::error!("pci {}: {error}", function.bdf);
                self.tell_off(iommu);
            }
        }
    }
}
