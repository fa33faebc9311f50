//! What SMMUs tell of refused DMA: read, told to whom it concerns, and no more of it than anybody can bear.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use hal::Clock;
use iommu::UnitId;
use machine::Interrupt;
use smmuv3::spec::{Event, Recording};
use types::StreamId;
use vm::{Records, RefusedDma, Telling};

use super::{Core, Function, Hardware};
use crate::console::SystemCounter;

/// Records that are read at once.
pub(super) const MOST_RECORDS: usize = 512;

/// Who was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The guest, by its own SMMU.
    Guest,
    /// Nobody yet.
    Nobody,
}

impl Hardware {
    /// Which interrupts it wants, and how they are signalled.
    pub(crate) fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        self.units
            .iter()
            .flat_map(|unit| [unit.event, unit.error].into_iter().flatten())
    }

    /// Whether an interrupt is one of an SMMU's.
    pub(crate) fn is_ours(&self, intid: u32) -> bool {
        self.interrupts().any(|interrupt| interrupt.number == intid)
    }

    /// Whether records wait for [`Hardware::drain`].
    pub(crate) fn has_records(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Reads the event queues and acknowledges global errors. `tell` is told of every record of a device
    /// that a VM has: the VM, the function, the record; what it does not pass on is logged.
    pub(crate) fn drain(&self, mut tell: impl FnMut(usize, usize, &Event) -> Told) {
        self.waiting.store(false, Ordering::Relaxed);
        let mut records = self.records.lock();
        records.clear();
        {
            let mut iommu = self.iommu.lock();
            for (number, unit) in (0..).zip(&self.units) {
                let Some(smmu) = iommu.backend_mut().unit_mut(UnitId::new(number)) else {
                    continue;
                };
                let room = MOST_RECORDS.saturating_sub(records.len());
                let drained = smmu.drain(room, |event| records.push((number, event)));
                if drained.more {
                    self.waiting.store(true, Ordering::Relaxed);
                }
                let errors = smmu.acknowledge_errors();
                if drained.lost || errors != 0 {
                    self.log_errors(&unit.name, drained.lost, errors);
                }
            }
            self.forgive(&mut iommu);
        }
        // The core is not locked here: whoever is told may have to wait for somebody who waits for it.
        for (number, event) in records.iter() {
            self.note(*number, event, &mut tell);
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
        event: &Event,
        tell: &mut impl FnMut(usize, usize, &Event) -> Told,
    ) {
        let mut functions = self.functions.iter().zip(&self.owners).enumerate();
        let known = functions.find(|(_, (function, _))| {
            function.smmu.is_some_and(|behind| {
                behind.unit == UnitId::new(number) && behind.stream == event.sid()
            })
        });
        let index = known.map(|(index, _)| index);
        let known = known.map(|(_, (function, owner))| {
            let vm = owner.load(Ordering::Relaxed).checked_sub(1);
            (function.bdf, vm)
        });
        let now = SystemCounter.ticks();
        let records = self.faults.lock().count(index, now);
        match records {
            Records::Wanted => {}
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
        let unit = usize::try_from(number)
            .ok()
            .and_then(|at| self.units.get(at));
        let unit = unit.map_or("", |unit| &unit.name);
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

    /// Has records written of a function's refused DMA, or none, because it floods.
    fn set_recording(&self, index: Option<usize>, recording: Recording) {
        let mut iommu = self.iommu.lock();
        if let Some(function) = index.and_then(|index| self.functions.get(index)) {
            set_recording(&mut iommu, function, recording);
        }
    }

    /// Lets functions be heard again whose flood is over.
    fn forgive(&self, iommu: &mut Core) {
        let mut faults = self.faults.lock();
        for index in faults.forgiven(SystemCounter.ticks()) {
            if let Some(function) = self.functions.get(index) {
                set_recording(iommu, function, Recording::On);
            }
        }
    }

    /// When [`Hardware::look_around`] has something to do, in ticks.
    pub(crate) fn next_look(&self) -> Option<u64> {
        // Records that were too many: whoever else is on the CPU has half of it meanwhile.
        const REST_US: u64 = 200;
        let now = SystemCounter.ticks();
        let rest = SystemCounter.ticks_of_us(REST_US);
        let more = self.has_records().then(|| now.saturating_add(rest));
        more.into_iter()
            .chain(self.faults.lock().next_forgiven())
            .min()
    }

    /// Lets functions be heard again whose flood is over, where there are any.
    pub(crate) fn look_around(&self) {
        if self.next_look().is_some() {
            self.forgive(&mut self.iommu.lock());
        }
    }
}

fn set_recording(iommu: &mut Core, function: &Function, recording: Recording) {
    let Some(behind) = function.smmu else {
        return;
    };
    let Ok(stream) = StreamId::new(behind.stream) else {
        return;
    };
    if let Some(smmu) = iommu.backend_mut().unit_mut(behind.unit)
        && let Err(error) = smmu.set_recording(stream, recording)
    {
        log::error!("pci {}: {error}", function.bdf);
    }
}
