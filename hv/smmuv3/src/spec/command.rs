//! Commands. [IHI 0070 §4]

use types::{Asid, StreamId, Vmid};

/// A command as two little-endian words.
pub type Raw = [u64; 2];

/// Bytes of a command.
pub const BYTES: usize = 16;

/// The addresses an invalidation by address covers: `(num + 1) << scale` granules where range
/// invalidation exists, one leaf otherwise. [IHI 0070 §4.4.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// `NUM`: 0 to 31.
    pub num: u8,
    /// `SCALE`: 0 to 31.
    pub scale: u8,
    /// `TG`: 0 no range; 1, 2, 3: granules of 4, 16, 64 KiB.
    pub granule: u8,
    /// `TTL`: the level of the leaves, 0 for any.
    pub level: u8,
}

impl Range {
    /// No range: the leaf at the address, whatever its size.
    pub const LEAF: Self = Self {
        num: 0,
        scale: 0,
        granule: 0,
        level: 0,
    };
}

/// What is cached of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Leaves and the tables that lead to them.
    All,
    /// Leaves only.
    Leaf,
}

/// How the end of a `CMD_SYNC` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// By `CMDQ_CONS` alone.
    None,
    /// By an interrupt, or a write of `data` to `address` when that is not zero.
    Interrupt {
        /// The address.
        address: u64,
        /// The word.
        data: u32,
    },
    /// By an event to CPUs that wait for one.
    Event,
}

/// A command, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A hint: the configuration of a stream will be needed.
    PrefetchConfig(u32),
    /// A hint: a translation will be needed.
    PrefetchAddress(u32),
    /// One stream table entry is not what it was.
    CfgiSte {
        /// The stream.
        sid: StreamId,
        /// What else is.
        depth: Depth,
    },
    /// `1 << (range + 1)` entries around one are not; 31 stands for all.
    CfgiSteRange {
        /// One of the streams.
        sid: u32,
        /// Log2 of the number, less one.
        range: u8,
    },
    /// One context descriptor is not.
    CfgiCd {
        /// The stream.
        sid: StreamId,
        /// The substream.
        ssid: u32,
        /// What else is.
        depth: Depth,
    },
    /// No context descriptor of a stream is.
    CfgiCdAll(StreamId),
    /// Stage-1 translations of a VMID.
    TlbiNhAll(Vmid),
    /// Those of an address space.
    TlbiNhAsid(Vmid, Asid),
    /// Those of an address in an address space, and global ones.
    TlbiNhVa {
        /// The VM.
        vmid: Vmid,
        /// The address space.
        asid: Asid,
        /// The address; bits 11:0 are ignored.
        va: u64,
        /// How far.
        range: Range,
        /// What of it.
        depth: Depth,
    },
    /// Those of an address in every address space.
    TlbiNhVaa {
        /// The VM.
        vmid: Vmid,
        /// The address; bits 11:0 are ignored.
        va: u64,
        /// How far.
        range: Range,
        /// What of it.
        depth: Depth,
    },
    /// Everything of a VMID, of both stages.
    TlbiS12Vmall(Vmid),
    /// Stage-2 translations of an address.
    TlbiS2Ipa {
        /// The VM.
        vmid: Vmid,
        /// The address; bits 11:0 are ignored.
        ipa: u64,
        /// How far.
        range: Range,
        /// What of it.
        depth: Depth,
    },
    /// Everything that is neither EL2's nor Secure.
    TlbiNsnhAll,
    /// A device's own cache of translations.
    AtcInv {
        /// The stream.
        sid: StreamId,
        /// The substream.
        ssid: Option<u32>,
        /// The address; bits 11:0 are ignored.
        address: u64,
        /// Log2 of the number of 4 KiB pages; 52 stands for all.
        size: u8,
    },
    /// All commands before it are complete when it is.
    Sync(Completion),
}

/// Opcodes. [IHI 0070 §4.1]
pub mod opcode {
    /// `CMD_PREFETCH_CONFIG`.
    pub const PREFETCH_CONFIG: u8 = 0x01;
    /// `CMD_PREFETCH_ADDR`.
    pub const PREFETCH_ADDR: u8 = 0x02;
    /// `CMD_CFGI_STE`.
    pub const CFGI_STE: u8 = 0x03;
    /// `CMD_CFGI_STE_RANGE`, `CMD_CFGI_ALL`.
    pub const CFGI_STE_RANGE: u8 = 0x04;
    /// `CMD_CFGI_CD`.
    pub const CFGI_CD: u8 = 0x05;
    /// `CMD_CFGI_CD_ALL`.
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// `CMD_TLBI_NH_ALL`.
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// `CMD_TLBI_NH_ASID`.
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// `CMD_TLBI_NH_VA`.
    pub const TLBI_NH_VA: u8 = 0x12;
    /// `CMD_TLBI_NH_VAA`.
    pub const TLBI_NH_VAA: u8 = 0x13;
    /// `CMD_TLBI_S12_VMALL`.
    pub const TLBI_S12_VMALL: u8 = 0x28;
    /// `CMD_TLBI_S2_IPA`.
    pub const TLBI_S2_IPA: u8 = 0x2a;
    /// `CMD_TLBI_NSNH_ALL`.
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// `CMD_ATC_INV`.
    pub const ATC_INV: u8 = 0x40;
    /// `CMD_SYNC`.
    pub const SYNC: u8 = 0x46;
}

/// A command that cannot be decoded: unknown, Secure, or with a reserved encoding in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no command of ours: {0:#x?}")]
pub struct Illegal(pub Raw);

const PAGE: u64 = 0xfff;

fn sid_word(sid: u32) -> u64 {
    u64::from(sid) << 32
}

fn vmid_word(vmid: Vmid) -> u64 {
    u64::from(vmid.bits()) << 32
}

fn by_address(opcode: u8, head: u64, address: u64, mask: u64, range: Range, depth: Depth) -> Raw {
    let leaf = u64::from(depth == Depth::Leaf);
    let (num, scale) = (u64::from(range.num & 31), u64::from(range.scale & 31));
    let (level, granule) = (u64::from(range.level & 3), u64::from(range.granule & 3));
    [
        u64::from(opcode) | num << 12 | scale << 20 | head,
        leaf | level << 8 | granule << 10 | address & mask & !PAGE,
    ]
}

impl Command {
    /// All configuration.
    pub const CFGI_ALL: Self = Self::CfgiSteRange { sid: 0, range: 31 };

    /// The command as it is put into a queue.
    #[must_use]
    pub fn encode(&self) -> Raw {
        let leaf = |depth: Depth| u64::from(depth == Depth::Leaf);
        let op = |opcode: u8| u64::from(opcode);
        match *self {
            Self::PrefetchConfig(sid) => [op(opcode::PREFETCH_CONFIG) | sid_word(sid), 0],
            Self::PrefetchAddress(sid) => [op(opcode::PREFETCH_ADDR) | sid_word(sid), 0],
            Self::CfgiSte { sid, depth } => {
                [op(opcode::CFGI_STE) | sid_word(sid.bits()), leaf(depth)]
            }
            Self::CfgiSteRange { sid, range } => [
                op(opcode::CFGI_STE_RANGE) | sid_word(sid),
                u64::from(range & 31),
            ],
            Self::CfgiCd { sid, ssid, depth } => [
                op(opcode::CFGI_CD) | u64::from(ssid & 0xf_ffff) << 12 | sid_word(sid.bits()),
                leaf(depth),
            ],
            Self::CfgiCdAll(sid) => [op(opcode::CFGI_CD_ALL) | sid_word(sid.bits()), 0],
            Self::TlbiNhAll(vmid) => [op(opcode::TLBI_NH_ALL) | vmid_word(vmid), 0],
            Self::TlbiNhAsid(vmid, asid) => [
                op(opcode::TLBI_NH_ASID) | vmid_word(vmid) | u64::from(asid.bits()) << 48,
                0,
            ],
            Self::TlbiNhVa {
                vmid,
                asid,
                va,
                range,
                depth,
            } => {
                let head = vmid_word(vmid) | u64::from(asid.bits()) << 48;
                by_address(opcode::TLBI_NH_VA, head, va, u64::MAX, range, depth)
            }
            Self::TlbiNhVaa {
                vmid,
                va,
                range,
                depth,
            } => {
                let head = vmid_word(vmid);
                by_address(opcode::TLBI_NH_VAA, head, va, u64::MAX, range, depth)
            }
            Self::TlbiS12Vmall(vmid) => [op(opcode::TLBI_S12_VMALL) | vmid_word(vmid), 0],
            Self::TlbiS2Ipa {
                vmid,
                ipa,
                range,
                depth,
            } => {
                const IPA: u64 = (1 << 52) - 1;
                by_address(opcode::TLBI_S2_IPA, vmid_word(vmid), ipa, IPA, range, depth)
            }
            Self::TlbiNsnhAll => [op(opcode::TLBI_NSNH_ALL), 0],
            Self::AtcInv {
                sid,
                ssid,
                address,
                size,
            } => {
                const SSV: u64 = 1 << 11;
                let substream = ssid.map_or(0, |ssid| SSV | u64::from(ssid & 0xf_ffff) << 12);
                [
                    op(opcode::ATC_INV) | substream | sid_word(sid.bits()),
                    u64::from(size & 0x3f) | address & !PAGE,
                ]
            }
            Self::Sync(Completion::None) => [op(opcode::SYNC), 0],
            Self::Sync(Completion::Interrupt { address, data }) => [
                op(opcode::SYNC) | 1 << 12 | 3 << 22 | 0xf << 24 | u64::from(data) << 32,
                address & 0x000f_ffff_ffff_fffc,
            ],
            Self::Sync(Completion::Event) => [op(opcode::SYNC) | 2 << 12, 0],
        }
    }

    /// What two words ask for. Reserved bits are ignored, as an SMMU does; what names Secure state,
    /// EL2 or EL3, or is unknown, is illegal.
    ///
    /// # Errors
    /// [`Illegal`].
    pub fn decode(raw: Raw) -> Result<Self, Illegal> {
        const SSEC: u64 = 1 << 10;
        let illegal = Err(Illegal(raw));
        let [low, high] = raw;
        let bytes = low.to_le_bytes();
        let sid_bits = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let sid = StreamId::new(sid_bits);
        let vmid = Vmid::new(u16::from_le_bytes([bytes[4], bytes[5]]));
        let asid = Asid::new(u16::from_le_bytes([bytes[6], bytes[7]]));
        let field = |shift: u32, mask: u64| (low >> shift & mask).to_le_bytes();
        let depth = if high & 1 == 1 {
            Depth::Leaf
        } else {
            Depth::All
        };
        let range = Range {
            num: field(12, 31)[0],
            scale: field(20, 31)[0],
            granule: (high >> 10 & 3).to_le_bytes()[0],
            level: (high >> 8 & 3).to_le_bytes()[0],
        };
        let ssid = u32::from_le_bytes([
            field(12, 0xf_ffff)[0],
            field(12, 0xf_ffff)[1],
            field(12, 0xf_ffff)[2],
            0,
        ]);
        let (Ok(sid), Ok(vmid), Ok(asid)) = (sid, vmid, asid) else {
            return illegal;
        };
        let configuration = matches!(
            bytes[0],
            opcode::PREFETCH_CONFIG..=opcode::CFGI_CD_ALL | opcode::ATC_INV
        );
        if configuration && low & SSEC != 0 {
            return illegal;
        }
        Ok(match bytes[0] {
            opcode::PREFETCH_CONFIG => Self::PrefetchConfig(sid_bits),
            opcode::PREFETCH_ADDR => Self::PrefetchAddress(sid_bits),
            opcode::CFGI_STE => Self::CfgiSte { sid, depth },
            opcode::CFGI_STE_RANGE => Self::CfgiSteRange {
                sid: sid_bits,
                range: (high & 31).to_le_bytes()[0],
            },
            opcode::CFGI_CD => Self::CfgiCd { sid, ssid, depth },
            opcode::CFGI_CD_ALL => Self::CfgiCdAll(sid),
            opcode::TLBI_NH_ALL => Self::TlbiNhAll(vmid),
            opcode::TLBI_NH_ASID => Self::TlbiNhAsid(vmid, asid),
            opcode::TLBI_NH_VA => Self::TlbiNhVa {
                vmid,
                asid,
                va: high & !PAGE,
                range,
                depth,
            },
            opcode::TLBI_NH_VAA => Self::TlbiNhVaa {
                vmid,
                va: high & !PAGE,
                range,
                depth,
            },
            opcode::TLBI_S12_VMALL => Self::TlbiS12Vmall(vmid),
            opcode::TLBI_S2_IPA => Self::TlbiS2Ipa {
                vmid,
                ipa: high & 0x000f_ffff_ffff_f000,
                range,
                depth,
            },
            opcode::TLBI_NSNH_ALL => Self::TlbiNsnhAll,
            opcode::ATC_INV => Self::AtcInv {
                sid,
                ssid: (low & 1 << 11 != 0).then_some(ssid),
                address: high & !PAGE,
                size: (high & 0x3f).to_le_bytes()[0],
            },
            opcode::SYNC => Self::Sync(match low >> 12 & 3 {
                0 => Completion::None,
                1 => Completion::Interrupt {
                    address: high & 0x000f_ffff_ffff_fffc,
                    data: sid_bits,
                },
                2 => Completion::Event,
                _ => return illegal,
            }),
            _ => return illegal,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use types::{Asid, StreamId, Vmid};

    use super::{Command, Completion, Depth, Illegal, Range};

    const VMID: Vmid = match Vmid::new(0x1234) {
        Ok(vmid) => vmid,
        Err(_) => panic!(),
    };

    fn all() -> Vec<(Command, [u64; 2])> {
        let sid = StreamId::new(0x4100).unwrap();
        let asid = Asid::new(0xabcd).unwrap();
        let range = Range {
            num: 31,
            scale: 13,
            granule: 1,
            level: 3,
        };
        vec![
            (Command::PrefetchConfig(8), [8 << 32 | 0x01, 0]),
            (Command::PrefetchAddress(8), [8 << 32 | 0x02, 0]),
            (
                Command::CfgiSte {
                    sid,
                    depth: Depth::Leaf,
                },
                [0x4100_0000_0003, 1],
            ),
            (Command::CFGI_ALL, [0x04, 31]),
            (
                Command::CfgiCd {
                    sid,
                    ssid: 0x1_2345,
                    depth: Depth::All,
                },
                [0x4100_1234_5005, 0],
            ),
            (Command::CfgiCdAll(sid), [0x4100_0000_0006, 0]),
            (Command::TlbiNhAll(VMID), [0x1234_0000_0010, 0]),
            (Command::TlbiNhAsid(VMID, asid), [0xabcd_1234_0000_0011, 0]),
            (
                Command::TlbiNhVa {
                    vmid: VMID,
                    asid,
                    va: 0xffff_0000_1234_5000,
                    range,
                    depth: Depth::Leaf,
                },
                [0xabcd_1234_00d1_f012, 0xffff_0000_1234_5701],
            ),
            (
                Command::TlbiNhVaa {
                    vmid: VMID,
                    va: 0x1000,
                    range: Range::LEAF,
                    depth: Depth::All,
                },
                [0x1234_0000_0013, 0x1000],
            ),
            (Command::TlbiS12Vmall(VMID), [0x1234_0000_0028, 0]),
            (
                Command::TlbiS2Ipa {
                    vmid: VMID,
                    ipa: 0x40_0000_0000,
                    range,
                    depth: Depth::All,
                },
                [0x1234_00d1_f02a, 0x40_0000_0700],
            ),
            (Command::TlbiNsnhAll, [0x30, 0]),
            (
                Command::AtcInv {
                    sid,
                    ssid: Some(3),
                    address: 0x7000,
                    size: 52,
                },
                [0x4100_0000_3840, 0x7034],
            ),
            (Command::Sync(Completion::None), [0x46, 0]),
            (Command::Sync(Completion::Event), [0x2046, 0]),
            (
                Command::Sync(Completion::Interrupt {
                    address: 0x8000,
                    data: 5,
                }),
                [0x5_0fc0_1046, 0x8000],
            ),
        ]
    }

    #[test]
    fn commands_have_the_bits_of_the_manual_and_survive_decoding() {
        for (command, raw) in all() {
            assert_eq!(command.encode(), raw, "{command:?}");
            assert_eq!(Command::decode(raw), Ok(command));
        }
    }

    #[test]
    fn unknown_secure_and_reserved_commands_are_illegal() {
        for raw in [
            [0, 0],
            [0x07, 0],
            [0x18, 0],
            [0x20, 0],
            [0x41, 0],
            [0x44, 0],
            [0x50, 0],
            [0xff, 0],
            [0x403, 0],
            [0x404, 0],
            [0x440, 0],
            [0x3046, 0],
        ] {
            assert_eq!(Command::decode(raw), Err(Illegal(raw)), "{raw:x?}");
        }
    }
}
