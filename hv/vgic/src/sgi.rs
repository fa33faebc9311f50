//! Whom a write of `ICC_SGI1R_EL1` names.

use crate::{Kicks, affinity::Topology, bits};

/// A decoded `ICC_SGI1R_EL1` [IHI 0069 §12.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sgi {
    /// The SGI, 0 to 15.
    pub(crate) intid: u32,
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    AllButSelf,
    List { key: u32, list: u32 },
}

impl Sgi {
    /// Decodes the register's value.
    pub(crate) const fn decode(value: u64) -> Self {
        let intid = bits::low(value >> 24) & 0xf;
        if value & 1 << 40 != 0 {
            return Self {
                intid,
                target: Target::AllButSelf,
            };
        }
        let [_, _, aff1, _, aff2, range, aff3, _] = value.to_le_bytes();
        let key = u32::from_be_bytes([aff3, aff2, aff1, range & 0xf0]);
        Self {
            intid,
            target: Target::List {
                key,
                list: bits::low(value) & 0xffff,
            },
        }
    }

    /// The vCPUs it goes to. What names nobody is ignored, as the architecture has it.
    pub(crate) fn targets(self, from: usize, topology: &Topology) -> Kicks {
        match self.target {
            Target::AllButSelf => {
                let all = u32::try_from(topology.vcpus()).unwrap_or(0);
                let all = u64::MAX.wrapping_shr(64_u32.wrapping_sub(all));
                Kicks::from_bits(all).without(u32::try_from(from).unwrap_or(u32::MAX))
            }
            Target::List { key, list } => {
                let mut targets = Kicks::NONE;
                if let Some(members) = topology.members(key) {
                    for place in bits::Bits(list) {
                        if let Some(Some(vcpu)) = members.get(place as usize) {
                            targets = targets.union(Kicks::of(u32::from(*vcpu)));
                        }
                    }
                }
                targets
            }
        }
    }
}
