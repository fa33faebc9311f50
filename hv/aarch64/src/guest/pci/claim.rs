//! The VM takes its devices, all or none, and gives them back.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bundle::PeerToPeer;
use hal::Clock;
use iommu::{DomainOptions, Extent, Map, Permissions, Placement, Target};
use types::{Iova, PageSize, Span};

use super::{Dma, GuestPci, Held, State};
use crate::console::SystemCounter;
use crate::guest::smmu::GuestSmmu;
use crate::guest::vm::Vm;
use crate::hardware;

impl GuestPci {
    /// Takes the devices for the VM: each in the VM's DMA domain, out of reset, silent. All or none.
    ///
    /// # Errors
    /// What is in the way, for the log.
    #[optimize(size)]
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
            self.smmus.iter().for_each(GuestSmmu::restart);
            for held in &mut state.held {
                outcome = self
                    .attach(vm, &mut dma, held)
                    .map_err(|error| format!("device {}: {error}", self.name(held)));
                if outcome.is_err() {
                    self.hardware.tell_off(&self.hardware.iommu.lock());
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
            self.arm_pin(segment, held);
        }
        if log::log_enabled!(log::Level::Debug) {
            self.time_memory(vm);
        }
        Ok(())
    }

    /// Gives the devices memory of the VM where they have nothing else, takes it back, and says what that
    /// cost: a page beside another, that one with the tables it was the last in, and 1 GiB if the VM has as
    /// much. The devices are still silent.
    #[optimize(size)]
    fn time_memory(&self, vm: &Vm) {
        /// Far above all RAM, below 2^40.
        const FREE: u64 = 1 << 39;
        const PAGE: u64 = 1 << 12;
        const GIBIBYTE: u64 = 1 << 30;
        let dma = self.dma.lock();
        let Some((ioas, memory)) = dma.ioas else {
            return;
        };
        let mut core = self.hardware.iommu.lock();
        let give = |core: &mut hardware::Core, at: u64, bytes: u64| {
            let request = Map {
                placement: Placement::Fixed(Iova::truncated(at)),
                memory,
                offset: 0,
                bytes,
                permissions: Permissions::ReadWrite,
            };
            core.map(ioas, &request).is_ok()
        };
        let take = |core: &mut hardware::Core, what: &str, at: u64, bytes: u64| {
            let Some(span) = Span::from_len(Iova::truncated(at), bytes) else {
                return;
            };
            let before = sent(core);
            let begun = SystemCounter.ticks();
            let taken = core.unmap(ioas, span);
            let ticks = SystemCounter.ticks() - begun;
            log::debug!(
                "vm {}: {what} {} its devices in {ticks} ticks and {} commands",
                vm.name,
                if taken.is_ok() {
                    "taken from"
                } else {
                    "stays with"
                },
                sent(core) - before,
            );
        };
        if give(&mut core, FREE, PAGE) && give(&mut core, FREE + PAGE, PAGE) {
            take(&mut core, "a page", FREE, PAGE);
            take(&mut core, "a last page", FREE + PAGE, PAGE);
        }
        let has = vm.platform().memory.first().and_then(|span| span.len());
        if has >= Some(GIBIBYTE) && give(&mut core, FREE, GIBIBYTE) {
            take(&mut core, "1 GiB", FREE, GIBIBYTE);
        }
    }

    pub(super) fn name(&self, held: &Held) -> String {
        match self.hardware.functions.get(held.function) {
            Some(function) => format!("{:04x}:{}", function.segment, function.bdf),
            None => String::new(),
        }
    }

    /// Gives the devices back: nothing of them reaches the VM's memory or its vCPUs when this returns. No
    /// vCPU of the VM is on a core.
    #[optimize(size)]
    pub(crate) fn release(&self, vm: &Vm) {
        let mut state = self.state.lock();
        for held in &mut state.held {
            self.disarm_pin(vm, held);
            if let Some(function) = self.hardware.functions.get(held.function) {
                self.hardware.quiet(function);
            }
        }
        self.hardware.forget_messages(vm.number);
        for held in &mut state.held {
            for mapped in held.mapped.drain(..) {
                self.unmap(vm, &mapped);
            }
            self.detach(held);
            self.hardware.give_back(held.function);
        }
        self.hardware.relieve(vm.number);
    }

    #[optimize(size)]
    fn attach(&self, vm: &Vm, dma: &mut Dma, held: &mut Held) -> Result<(), String> {
        let hardware = self.hardware;
        let function = hardware
            .functions
            .get(held.function)
            .ok_or("no such function")?;
        let doorbell = hardware.doorbell(function).ok_or("it has no ITS")?;
        let Some(behind) = function.smmu else {
            // Nothing translates what it writes.
            held.direct_doorbell = Some(doorbell.bits());
            return Ok(());
        };
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
                if self
                    .seats
                    .iter()
                    .any(|seat| seat.p2p == PeerToPeer::Allowed)
                {
                    let enabled = iommu::PeerToPeer::Enabled;
                    core.set_peer_to_peer(made.0, enabled).map_err(say)?;
                }
                dma.ioas = Some(made);
                made
            }
        };
        if let Some(window) = self.msi_window {
            core.set_msi_start(behind.device, window.start)
                .map_err(say)?;
            let mebibytes = window.bytes >> 20;
            core.set_msi_size(behind.device, mebibytes).map_err(say)?;
        }
        let place = self.behind.iter().find(|(known, _)| *known == held.guest);
        let key = (behind.unit, place.map_or(0, |(_, place)| *place));
        let known = dma.domains.iter().find(|(known, _)| *known == key);
        let domain = match known {
            Some((_, domain)) => *domain,
            None => {
                let options = DomainOptions {
                    nest_parent: !self.smmus.is_empty(),
                    dirty_tracking: false,
                };
                let domain = core
                    .create_domain(behind.device, ioas, options)
                    .map_err(say)?;
                dma.domains.push((key, domain));
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
        core.attach(behind.device, Target::Domain(domain))
            .map_err(say)?;
        let page = Iova::truncated(self.doorbell & !PageSize::SIZE_4K.mask());
        let shown = core.map_doorbell(behind.device, doorbell);
        let shown = shown.and_then(|window| {
            let has_page = match core.map_doorbell_at(behind.device, page, doorbell) {
                Ok(_) => true,
                // It leads to another ITS already: without an SMMU of the guest's, all devices of one of the
                // machine's have the same tables. They are told the window.
                Err(iommu::Error::WindowFull) if self.addresses_are_ours() => false,
                Err(error) => return Err(error),
            };
            Ok((window, has_page))
        });
        match shown {
            Ok((window, has_page)) => {
                held.window_doorbell = window.bits();
                held.has_its_page = has_page;
            }
            Err(error) => {
                let _ = core.detach(behind.device);
                return Err(match error {
                    iommu::Error::WindowFull => {
                        "the window for messages has no page left for its ITS".into()
                    }
                    error => error.to_string(),
                });
            }
        }
        drop(core);
        if let Some(smmu) = self.smmu_of(held.guest)
            && let Err(error) = smmu.link(vm, held.guest, behind.device, domain)
        {
            self.detach(held);
            return Err(error);
        }
        Ok(())
    }

    #[optimize(size)]
    fn detach(&self, held: &Held) {
        let Some(function) = self.hardware.functions.get(held.function) else {
            return;
        };
        if let Some(smmu) = self.smmu_of(held.guest)
            && smmu.unlink(held.guest)
        {
            return;
        }
        if let Some(behind) = function.smmu {
            let mut core = self.hardware.iommu.lock();
            if let Err(error) = core.detach(behind.device) {
                log::error!("pci {}: {error}", function.bdf);
                self.hardware.tell_off(&core);
            }
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
}

/// Commands that all SMMUs were sent.
fn sent(core: &hardware::Core) -> u64 {
    let units = core.backend().units().iter();
    units.map(|smmu| smmu.sent().0).sum()
}
