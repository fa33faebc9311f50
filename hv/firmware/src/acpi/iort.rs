//! The IO remapping table [DEN 0049]: how requester IDs become stream IDs and device IDs, and
//! which ranges devices need mapped one to one.
//!
//! Revision 5 is the first whose reserved memory ranges Linux reads.

use alloc::vec::Vec;

use types::Bdf;

use super::{Bytes, Identity, tables};
use crate::platform::{GuestPlatform, Remapping, Rmr, Smmu};

const REVISION: u8 = 5;

/// Where the first node lies: after header, count, offset and a reserved word.
const FIRST_NODE: u32 = 48;

/// Requester IDs of a segment, as the table counts them: the number of IDs minus one.
const ALL_REQUESTERS: u32 = 0xffff;

/// The node types.
const ITS_GROUP: u8 = 0;
const ROOT_COMPLEX: u8 = 2;
const SMMU_V3: u8 = 4;
const RMR: u8 = 6;

/// The length of what every node begins with.
const NODE_HEADER: u32 = 16;

/// A range of IDs that goes to another node.
struct Mapping {
    input: u32,
    /// The number of IDs minus one.
    more: u32,
    output: u32,
    /// Where the other node lies in the table.
    target: u32,
    flags: u32,
}

impl Mapping {
    const BYTES: u32 = 20;

    fn all_to(target: u32) -> Self {
        Self {
            input: 0,
            more: ALL_REQUESTERS,
            output: 0,
            target,
            flags: 0,
        }
    }

    /// Of the node itself, whatever the input.
    fn own_to(target: u32, output: u16) -> Self {
        const SINGLE: u32 = 1;
        Self {
            input: 0,
            more: 0,
            output: output.into(),
            target,
            flags: SINGLE,
        }
    }
}

/// Nodes written so far.
struct Nodes {
    bytes: Bytes,
    count: u32,
}

impl Nodes {
    fn new() -> Self {
        Self {
            bytes: Bytes::default(),
            count: 0,
        }
    }

    /// Adds a node of `body`, then mappings, then `tail`; returns where it lies in the table.
    fn add(
        &mut self,
        kind: u8,
        revision: u8,
        body: &Bytes,
        mappings: &[Mapping],
        tail: &Bytes,
    ) -> u32 {
        let at = FIRST_NODE.saturating_add(length(&self.bytes));
        let mappings_at = NODE_HEADER.saturating_add(length(body));
        let mapped = mappings.iter().fold(Bytes::default(), |bytes, mapping| {
            bytes
                .u32(mapping.input)
                .u32(mapping.more)
                .u32(mapping.output)
                .u32(mapping.target)
                .u32(mapping.flags)
        });
        let total = mappings_at
            .saturating_add(length(&mapped))
            .saturating_add(length(tail));
        let count = u32::try_from(mappings.len()).unwrap_or(u32::MAX);
        self.bytes = core::mem::take(&mut self.bytes)
            .u8(kind)
            .u16(u16::try_from(total).unwrap_or(u16::MAX))
            .u8(revision)
            .u32(self.count)
            .u32(count)
            .u32(if count == 0 { 0 } else { mappings_at })
            .raw(&body.0)
            .raw(&mapped.0)
            .raw(&tail.0);
        self.count = self.count.saturating_add(1);
        at
    }
}

fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.0.len()).unwrap_or(u32::MAX)
}

/// Writes the table of a guest with a PCI host.
pub(super) fn build(platform: &GuestPlatform, identity: &Identity) -> Vec<u8> {
    let mut nodes = Nodes::new();
    let its = platform.gic.its.map(|_| its_group(&mut nodes));
    let smmus: Vec<u32> = platform
        .smmus
        .iter()
        .map(|smmu| add_smmu(&mut nodes, smmu, its))
        .collect();
    let requesters = platform.requesters();
    let mut mappings: Vec<Mapping> = requesters
        .into_iter()
        .filter_map(|(first, count, place)| {
            Some(Mapping {
                input: first,
                more: count.saturating_sub(1),
                output: first,
                target: *smmus.get(place)?,
                flags: 0,
            })
        })
        .collect();
    if mappings.is_empty() {
        mappings.extend(its.map(Mapping::all_to));
    }
    root_complex(&mut nodes, &mappings);
    if !smmus.is_empty() {
        for rmr in &platform.rmrs {
            add_rmr(&mut nodes, rmr, |function| {
                smmus.get(platform.smmu_of(function)?).copied()
            });
        }
    }
    let body = Bytes::default()
        .u32(nodes.count)
        .u32(FIRST_NODE)
        .u32(0)
        .raw(&nodes.bytes.0);
    tables::table(identity, *b"IORT", REVISION, &body.0)
}

/// A group of one ITS: the one that the MADT gives the identity 0.
fn its_group(nodes: &mut Nodes) -> u32 {
    let body = Bytes::default().u32(1).u32(0);
    nodes.add(ITS_GROUP, 1, &body, &[], &Bytes::default())
}

/// An SMMU. With messages of its own, its node is of revision 5, whose flag says that the index of the mapping for
/// them counts; Linux before 6.2 does not know the flag, and takes the index where not all interrupts are wires: a
/// wait has messages alone, and there is no page request queue.
fn add_smmu(nodes: &mut Nodes, smmu: &Smmu, its: Option<u32>) -> u32 {
    const COHACC_OVERRIDE: u32 = 1;
    const DEVICE_ID_VALID: u32 = 1 << 4;
    const GENERIC: u32 = 0;
    let mut mappings: Vec<Mapping> = its.map(Mapping::all_to).into_iter().collect();
    let own = smmu.messages.zip(its);
    let (revision, flags, (pri, sync), index) = match own {
        Some((device, its)) => {
            let index = u32::try_from(mappings.len()).unwrap_or(u32::MAX);
            mappings.push(Mapping::own_to(its, device));
            (5, COHACC_OVERRIDE | DEVICE_ID_VALID, (0, 0), index)
        }
        None => {
            let wires = (smmu.pri.intid(), smmu.sync.intid());
            (4, COHACC_OVERRIDE, wires, 0)
        }
    };
    let body = Bytes::default()
        .u64(smmu.base.bits())
        .u32(flags)
        .u32(0)
        // No VATOS.
        .u64(0)
        .u32(GENERIC)
        .u32(smmu.event.intid())
        .u32(pri)
        .u32(smmu.gerror.intid())
        .u32(sync)
        // Proximity domain.
        .u32(0)
        .u32(index);
    nodes.add(SMMU_V3, revision, &body, &mappings, &Bytes::default())
}

fn root_complex(nodes: &mut Nodes, mappings: &[Mapping]) {
    const CACHE_COHERENT: u32 = 1;
    // Coherent path to memory, and device accesses are inner-shareable write-back.
    const MEMORY_FLAGS: u8 = 3;
    const ADDRESS_BITS: u8 = 64;
    let body = Bytes::default()
        .u32(CACHE_COHERENT)
        .zeros(3)
        .u8(MEMORY_FLAGS)
        // No ATS, segment 0.
        .u32(0)
        .u32(0)
        .u8(ADDRESS_BITS)
        .zeros(3);
    nodes.add(ROOT_COMPLEX, 3, &body, mappings, &Bytes::default());
}

fn add_rmr(nodes: &mut Nodes, rmr: &Rmr, smmu_of: impl Fn(Bdf) -> Option<u32>) {
    const REMAPPING_PERMITTED: u32 = 1;
    let flags = match rmr.remapping {
        Remapping::Denied => 0,
        Remapping::Permitted => REMAPPING_PERMITTED,
    };
    let mappings: Vec<Mapping> = rmr
        .devices
        .iter()
        .filter_map(|device| {
            let stream = u32::from(device.function().bits());
            Some(Mapping {
                input: stream,
                more: 0,
                output: stream,
                target: smmu_of(device.function())?,
                flags: 0,
            })
        })
        .collect();
    let count = u32::try_from(mappings.len()).unwrap_or(u32::MAX);
    // After the header, three words and the mappings.
    let descriptors_at = count
        .saturating_mul(Mapping::BYTES)
        .saturating_add(NODE_HEADER)
        .saturating_add(12);
    let body = Bytes::default().u32(flags).u32(1).u32(descriptors_at);
    let descriptor = Bytes::default()
        .u64(rmr.window.start().bits())
        .u64(rmr.window.len().unwrap_or(u64::MAX))
        .u32(0);
    nodes.add(RMR, 3, &body, &mappings, &descriptor);
}
