//! Affinities, and the vCPUs they name.

use alloc::{boxed::Box, vec::Vec};

use crate::{Error, MAX_VCPUS};

/// The affinity of a vCPU: `Aff3.Aff2.Aff1.Aff0`, a byte each, `Aff3` on top, as `GICR_TYPER`
/// bits 63:32 hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity(u32);

impl Affinity {
    /// The affinity of these four levels.
    #[must_use]
    pub const fn new(aff3: u8, aff2: u8, aff1: u8, aff0: u8) -> Self {
        Self(u32::from_be_bytes([aff3, aff2, aff1, aff0]))
    }

    /// The affinity in an `MPIDR_EL1`: `Aff3` in bits 39:32, the others in bits 23:0. The other
    /// bits do not count.
    #[must_use]
    pub const fn from_mpidr(mpidr: u64) -> Self {
        let [aff0, aff1, aff2, _, aff3, ..] = mpidr.to_le_bytes();
        Self::new(aff3, aff2, aff1, aff0)
    }

    /// The affinity of vCPU `index` in the usual layout: 16 in a cluster, because a target list
    /// has 16 bits.
    #[must_use]
    pub const fn of_vcpu(index: u8) -> Self {
        Self::new(0, 0, index >> 4, index & 0xf)
    }

    /// `Aff3.Aff2.Aff1.Aff0` as a word.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Up to 16 vCPUs that one target list can name.
#[derive(Clone, Debug)]
struct Cluster {
    /// The affinity without the low four bits of `Aff0`.
    key: u32,
    /// The vCPU for each value of the low four bits of `Aff0`.
    members: [Option<u8>; 16],
}

/// Which vCPU has which affinity.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    affinities: Box<[Affinity]>,
    clusters: Box<[Cluster]>,
}

impl Topology {
    pub(crate) fn new(affinities: &[Affinity]) -> Result<Self, Error> {
        if affinities.is_empty() || affinities.len() > MAX_VCPUS {
            return Err(Error::VcpuCount {
                vcpus: affinities.len(),
            });
        }
        let mut clusters: Vec<Cluster> = Vec::new();
        for (vcpu, affinity) in (0_u8..).zip(affinities) {
            let key = affinity.bits() & !0xf;
            let member = Some(vcpu);
            let place = affinity.bits() as usize & 0xf;
            let index = match clusters.iter().position(|cluster| cluster.key == key) {
                Some(index) => index,
                None => {
                    clusters.push(Cluster {
                        key,
                        members: [None; 16],
                    });
                    clusters.len().saturating_sub(1)
                }
            };
            if let Some(slot) = clusters
                .get_mut(index)
                .and_then(|cluster| cluster.members.get_mut(place))
            {
                if let Some(first) = *slot {
                    return Err(Error::SameAffinity {
                        first: first.into(),
                        second: vcpu.into(),
                    });
                }
                *slot = member;
            }
        }
        Ok(Self {
            affinities: affinities.into(),
            clusters: clusters.into_boxed_slice(),
        })
    }

    pub(crate) fn vcpus(&self) -> usize {
        self.affinities.len()
    }

    pub(crate) fn affinity(&self, vcpu: usize) -> Option<Affinity> {
        self.affinities.get(vcpu).copied()
    }

    /// Whether an `Aff0` of 16 or more exists, so that target lists need a range.
    pub(crate) fn needs_ranges(&self) -> bool {
        self.affinities.iter().any(|a| a.bits() & 0xf0 != 0)
    }

    /// The vCPU with this affinity.
    pub(crate) fn find(&self, affinity: Affinity) -> Option<u8> {
        self.members(affinity.bits() & !0xf)
            .and_then(|members| members.get(affinity.bits() as usize & 0xf))
            .copied()
            .flatten()
    }

    /// The vCPUs whose affinities differ from `key` in the low four bits only.
    pub(crate) fn members(&self, key: u32) -> Option<&[Option<u8>; 16]> {
        self.clusters
            .iter()
            .find(|cluster| cluster.key == key)
            .map(|cluster| &cluster.members)
    }
}
