//! The guest's SMMU as the monitor shows it, and where DMA goes by the guest's tables.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use iommu::{ContextFormat, NestedConfig, StageOne};
use types::{Bdf, Iova, Ipa, Pa};
use vsmmuv3::{Access, End, Health, Step};

use super::{GuestSmmu, stream_of};
use crate::guest::vm::Vm;

impl GuestSmmu {
    /// Its state, as a line for the monitor.
    #[optimize(size)]
    pub(crate) fn line(&self) -> String {
        let state = self.state.lock();
        let counters = state.smmu.counters();
        format!(
            "its guest's SMMU: {} streams, {} commands, {} refused, {} invalidations in hardware, {} messages{}",
            state.links.streams.len(),
            counters.commands,
            counters.errors,
            counters.invalidations,
            counters.messages,
            match state.smmu.health() {
                Health::Good => "",
                Health::Broken => ", BROKEN",
            }
        )
    }

    /// The guest-physical address that a write of a device's ends at by the guest's tables as they are now, whatever
    /// stage 2 has there; `None` when it does not get so far.
    #[optimize(size)]
    pub(crate) fn end_of(
        &self,
        vm: &Vm,
        guest: Bdf,
        address: u64,
        stage_two: impl FnMut(Ipa) -> Option<Pa>,
    ) -> Option<u64> {
        let stream = (stream_of(guest)?, None);
        let state = self.state.lock();
        let walk = state
            .smmu
            .walk(stream, address, Access::Write, &self.reach(vm), stage_two);
        let output = walk.steps().find_map(|step| match step {
            Step::Output { ipa, .. } => Some(*ipa),
            _ => None,
        });
        match walk.end() {
            End::Reached(_) => output,
            End::StageTwo(ipa) => Some(ipa),
            End::Aborts | End::Fault(_) => None,
        }
    }

    /// Where DMA of a device goes by the guest's tables and stage 2, a line for each step.
    #[optimize(size)]
    pub(crate) fn walk(
        &self,
        vm: &Vm,
        guest: Bdf,
        at: Iova,
        stage_two: impl FnMut(Ipa) -> Option<Pa>,
        leaf_two: impl FnOnce(u64) -> Option<String>,
    ) -> Vec<String> {
        let Some(stream) = stream_of(guest) else {
            return Vec::new();
        };
        let state = self.state.lock();
        let walk = state.smmu.walk(
            (stream, None),
            at.bits(),
            Access::Read,
            &self.reach(vm),
            stage_two,
        );
        let mut lines: Vec<String> = walk.steps().map(line_of).collect();
        // What the leaf says, by the memory attributes of the context descriptor.
        let mut mair = 0;
        let mut leaf = None;
        let mut output = None;
        for step in walk.steps() {
            match step {
                Step::Cd { words, .. } => mair = words[3],
                Step::Table { descriptor, .. } => leaf = Some(*descriptor),
                Step::Output { ipa, .. } => output = Some(*ipa),
                _ => {}
            }
        }
        if let (Some(leaf), Some(ipa)) = (leaf, output) {
            let index = (leaf >> 2 & 7) as u32;
            let [attributes, ..] = (mair >> (8 * index)).to_le_bytes();
            let access = match leaf >> 6 & 3 {
                0 | 1 => "read-write",
                _ => "read-only",
            };
            lines.push(format!(
                "stage 1: {access}, memory attributes {attributes:#04x}"
            ));
            lines.extend(leaf_two(ipa));
        }
        lines.push(match walk.end() {
            End::Reached(pa) => format!("reaches {:#x}", pa.bits()),
            End::Aborts => "aborts".to_string(),
            End::Fault(id) => format!("faults: {id}, told to the guest"),
            End::StageTwo(ipa) => format!("faults: stage 2 has nothing at {ipa:#x}"),
        });
        lines
    }
}

/// What a stream's configuration is, in words.
#[optimize(size)]
fn config_of(config: &NestedConfig) -> String {
    match config.stage_one {
        StageOne::Abort => "aborts".to_string(),
        StageOne::Bypass => "bypasses stage 1".to_string(),
        StageOne::Invalid => "aborts, and says so".to_string(),
        StageOne::Translate(translate) => {
            let table = match translate.format {
                ContextFormat::Linear => "linear",
                ContextFormat::TwoLevel4K => "two levels of 4 KiB",
                ContextFormat::TwoLevel64K => "two levels of 64 KiB",
            };
            format!(
                "stage 1, context descriptors at {:#x}, {table}, 2^{} substreams",
                translate.base, translate.substream_bits
            )
        }
    }
}

#[optimize(size)]
fn line_of(step: &Step) -> String {
    match step {
        Step::Off(config) => format!("guest SMMU off: {}", config_of(config)),
        Step::StreamTable { at, descriptor } => {
            format!("guest stream table, level 1, at {at:#x}: {descriptor:#018x}")
        }
        Step::Ste { at, ste, judged } => {
            let [first, second, ..] = ste.0;
            let judged = match judged {
                Ok(config) => config_of(config),
                Err(bad) => bad.to_string(),
            };
            format!("guest STE at {at:#x}: {first:#018x} {second:#018x}: {judged}")
        }
        Step::ContextTable { at, pa, descriptor } => format!(
            "context table at {at:#x} -> {:#x}: {descriptor:#018x}",
            pa.bits()
        ),
        Step::Cd { at, pa, words } => {
            let [word0, ttb0, ttb1, mair] = words;
            format!(
                "CD at {at:#x} -> {:#x}: {word0:#018x} TTB0 {ttb0:#x} TTB1 {ttb1:#x} MAIR {mair:#x}",
                pa.bits()
            )
        }
        Step::Table {
            level,
            at,
            pa,
            descriptor,
        } => format!(
            "stage 1, level {level}, at {at:#x} -> {:#x}: {descriptor:#018x}",
            pa.bits()
        ),
        Step::Output { ipa, pa } => format!("stage 1 gives {ipa:#x}, stage 2 {:#x}", pa.bits()),
    }
}
