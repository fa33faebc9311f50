//! What the writers of device tree and ACPI rely on.

use alloc::vec::Vec;

use types::{Bdf, PageSize, Span};

use super::{
    DISTRIBUTOR_BYTES, GuestPlatform, ITS_BYTES, MAX_CPUS, MAX_MEMORY_SPANS, MAX_SMMUS,
    PRIMECELL_BYTES, PlatformError, REDISTRIBUTOR_BYTES, SMMU_BYTES, WindowKind,
};

impl GuestPlatform {
    /// Checks everything the writers of device tree and ACPI rely on.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self) -> Result<(), PlatformError> {
        self.check_memory()?;
        self.check_cpus()?;
        self.check_devices()?;
        self.check_pci()?;
        self.check_smmus()?;
        self.check_rmrs()?;
        if self.bootargs.bytes().any(|byte| byte == 0) {
            return Err(PlatformError::Bootargs);
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), PlatformError> {
        let aligned = self
            .memory
            .iter()
            .all(|span| span.is_aligned(PageSize::SIZE_4K));
        let ascending = self
            .memory
            .windows(2)
            .all(|pair| matches!(pair, [low, high] if low.last() < high.start()));
        let count = self.memory.len();
        if count == 0 || count > MAX_MEMORY_SPANS || !aligned || !ascending {
            return Err(PlatformError::Memory);
        }
        Ok(())
    }

    fn check_cpus(&self) -> Result<(), PlatformError> {
        let count = self.cpus.len();
        if count == 0 || count > MAX_CPUS {
            return Err(PlatformError::CpuCount(count));
        }
        let mut sorted = self.cpus.clone();
        types::sort(&mut sorted);
        for pair in sorted.windows(2) {
            if let [a, b] = pair
                && a == b
            {
                return Err(PlatformError::DuplicateMpidr(a.bits()));
            }
        }
        let room = self.gic.redistributors.len().unwrap_or(u64::MAX) / REDISTRIBUTOR_BYTES;
        if room < count as u64 {
            return Err(PlatformError::Redistributors(count));
        }
        match self.pmu_ppi {
            Some(intid) if !(16..32).contains(&intid) => Err(PlatformError::NotAPpi(intid)),
            _ => Ok(()),
        }
    }

    fn check_devices(&self) -> Result<(), PlatformError> {
        let fixed = [
            (Some(self.gic.distributor), DISTRIBUTOR_BYTES),
            (self.gic.its, ITS_BYTES),
            (self.uart.map(|uart| uart.base), PRIMECELL_BYTES),
            (self.rtc.map(|rtc| rtc.base), PRIMECELL_BYTES),
        ];
        let smmus = self.smmus.iter().map(|smmu| (Some(smmu.base), SMMU_BYTES));
        let mut taken = self.memory.clone();
        let mut spans = Vec::from([self.gic.redistributors]);
        for (base, bytes) in fixed.into_iter().chain(smmus) {
            if let Some(base) = base {
                spans.push(Span::from_len(base, bytes).ok_or(PlatformError::Device(base))?);
            }
        }
        if let Some(pci) = &self.pci {
            spans.push(pci.ecam_span().ok_or(PlatformError::Ecam)?);
            for window in &pci.windows {
                spans.push(window.span().ok_or(PlatformError::Window(window.cpu))?);
            }
        }
        for span in spans {
            if taken.iter().any(|other| other.overlaps(span)) {
                return Err(PlatformError::Device(span.start()));
            }
            taken.push(span);
        }
        Ok(())
    }

    fn check_pci(&self) -> Result<(), PlatformError> {
        let Some(pci) = &self.pci else {
            return Ok(());
        };
        if pci.buses.is_empty() {
            return Err(PlatformError::Ecam);
        }
        for window in &pci.windows {
            let last = window
                .bytes
                .checked_sub(1)
                .and_then(|rest| window.bus.checked_add(rest));
            let fits = match window.kind {
                WindowKind::Memory64 => last.is_some(),
                WindowKind::Memory32 => last.is_some_and(|last| last <= u64::from(u32::MAX)),
                WindowKind::Io => window.bus != 0 && last.is_some_and(|last| last <= 0xffff),
            };
            // A length of exactly 4 GiB has no 32-bit form.
            let length = window.kind == WindowKind::Memory64 || u32::try_from(window.bytes).is_ok();
            if !fits || !length {
                return Err(PlatformError::Window(window.cpu));
            }
        }
        Ok(())
    }

    fn check_smmus(&self) -> Result<(), PlatformError> {
        let mut functions: Vec<Bdf> = self.behind.iter().map(|(function, _)| *function).collect();
        types::sort(&mut functions);
        let twice = functions
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a == b));
        let nowhere = self
            .behind
            .iter()
            .any(|(_, place)| *place >= self.smmus.len());
        if self.smmus.len() > MAX_SMMUS || twice || nowhere {
            return Err(PlatformError::Smmus);
        }
        self.check_smmu_messages()
    }

    fn check_smmu_messages(&self) -> Result<(), PlatformError> {
        let mut ids: Vec<u16> = self.smmus.iter().filter_map(|smmu| smmu.messages).collect();
        types::sort(&mut ids);
        let twice = ids.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
        let buses = self.pci.as_ref().map(|pci| &pci.buses);
        let of_a_requester = |id: &u16| {
            let [_, bus] = id.to_le_bytes();
            buses.is_some_and(|buses| buses.contains(&bus))
        };
        let no_its = !ids.is_empty() && self.gic.its.is_none();
        if twice || no_its || ids.iter().any(of_a_requester) {
            return Err(PlatformError::SmmuMessages);
        }
        Ok(())
    }

    fn check_rmrs(&self) -> Result<(), PlatformError> {
        if !self.rmrs.is_empty() && (self.pci.is_none() || self.smmus.is_empty()) {
            return Err(PlatformError::RmrWithoutSmmu);
        }
        for rmr in &self.rmrs {
            if rmr.devices.is_empty() || !rmr.window.is_aligned(PageSize::SIZE_64K) {
                return Err(PlatformError::Rmr(rmr.window.start()));
            }
        }
        Ok(())
    }
}
