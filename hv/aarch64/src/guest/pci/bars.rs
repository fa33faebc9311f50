//! BARs: shown where the guest wants them, and what of them traps.

use alloc::vec;
use alloc::vec::Vec;

use bundle::PeerToPeer;
use iommu::{Map, Permissions, Placement};
use pci::vconfig::{GuestSegment, VirtualFunction};
use types::{Address, Iova, Ipa, Pa, PageSize, Span};
use vdev::Width;

use super::messages::in_table;
use super::registers::{read_register, write_register};
use super::{GuestPci, Held, Mapped, State};
use crate::guest::vm::Vm;

impl GuestPci {
    /// Shows BARs where the guest wants them, as far as its windows go.
    #[optimize(size)]
    pub(super) fn remap(&self, vm: &Vm, segment: &GuestSegment, held: &mut Held) {
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
                self.unmap(vm, &mapped);
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
                shown: Vec::new(),
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
                if held.p2p == PeerToPeer::Allowed {
                    self.show(held.function, &mut mapped);
                }
                kept.push(mapped);
            }
        }
        held.mapped = kept;
    }

    /// Shows a BAR to the VM's devices, where its CPUs see it. What cannot be shown, they do not reach: the
    /// guest chooses where, as often as it likes.
    #[optimize(size)]
    fn show(&self, function: usize, mapped: &mut Mapped) {
        let Some((ioas, _)) = self.dma.lock().ioas else {
            return;
        };
        let behind = self.hardware.functions.get(function).and_then(|f| f.smmu);
        let Some(behind) = behind else {
            return;
        };
        let mut core = self.hardware.iommu.lock();
        for (span, pa) in &mapped.pieces {
            let Some(bytes) = span.len() else { continue };
            let Ok(memory) = core.add_bar(behind.device, *pa, bytes, &[]) else {
                continue;
            };
            let request = Map {
                placement: Placement::Fixed(Iova::truncated(span.start().bits())),
                memory,
                offset: 0,
                bytes,
                permissions: Permissions::ReadWrite,
            };
            match core.map(ioas, &request) {
                Ok(at) => mapped.shown.push((memory, at)),
                Err(error) => {
                    log::debug!("pci: a BAR at {span} is not shown to devices: {error}");
                    let _ = core.destroy_memory(memory);
                }
            }
        }
    }

    /// Takes a BAR from the VM's CPUs and devices: none of them reaches it when this returns.
    #[optimize(size)]
    pub(super) fn unmap(&self, vm: &Vm, mapped: &Mapped) {
        for (span, _) in &mapped.pieces {
            vm.unmap_device(*span);
        }
        if mapped.shown.is_empty() {
            return;
        }
        let Some((ioas, _)) = self.dma.lock().ioas else {
            return;
        };
        let mut core = self.hardware.iommu.lock();
        for (memory, at) in &mapped.shown {
            let gone = core.unmap(ioas, *at);
            if let Err(error) = gone.and_then(|_| core.destroy_memory(*memory)) {
                log::error!("pci: a BAR at {at} stays with the devices: {error}");
                self.hardware.tell_off(&core);
            }
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
}

/// What of a BAR the guest may reach by itself: (first byte, length).
#[optimize(size)]
fn open_parts(bar: u8, bytes: u64, trapped: &[(u8, u64, u64)]) -> Vec<(u64, u64)> {
    let mut closed: Vec<(u64, u64)> = trapped
        .iter()
        .filter(|(of, _, _)| *of == bar)
        .map(|(_, first, bytes)| (*first, first.saturating_add(*bytes)))
        .collect();
    types::sort(&mut closed);
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
