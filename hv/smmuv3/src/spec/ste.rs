//! Stream table entries and what leads to them. [IHI 0070 §5.1, §5.2]

use core::fmt;

use types::{Pa, Vmid};

/// `STE.Config`: what is done with a stream. [IHI 0070 §5.2]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteConfig {
    /// Every transaction aborts, and no event is recorded.
    Abort,
    /// No stage translates.
    Bypass,
    /// Stage 1 alone.
    S1Translate,
    /// Stage 2 alone.
    S2Translate,
    /// Stage 1, then stage 2.
    Nested,
    /// An encoding that the manual reserves: 1 to 3, which abort.
    Reserved(u8),
}

impl SteConfig {
    /// From the three bits of the field.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            0 => Self::Abort,
            4 => Self::Bypass,
            5 => Self::S1Translate,
            6 => Self::S2Translate,
            7 => Self::Nested,
            1 => Self::Reserved(1),
            2 => Self::Reserved(2),
            _ => Self::Reserved(3),
        }
    }

    /// The field.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::Abort => 0,
            Self::Bypass => 4,
            Self::S1Translate => 5,
            Self::S2Translate => 6,
            Self::Nested => 7,
            Self::Reserved(bits) => bits as u64 & 7,
        }
    }

    /// Whether stage 1 translates.
    #[must_use]
    pub const fn stage1(self) -> bool {
        matches!(self, Self::S1Translate | Self::Nested)
    }

    /// Whether stage 2 translates.
    #[must_use]
    pub const fn stage2(self) -> bool {
        matches!(self, Self::S2Translate | Self::Nested)
    }
}

/// How the SMMU reaches tables in memory: the attributes of its walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walks {
    /// Write-back, inner shareable: it snoops the CPUs' caches.
    Coherent,
    /// Non-cacheable, outer shareable: whoever writes tables cleans them to memory.
    NonCoherent,
}

impl Walks {
    /// Inner and outer cacheability (two bits each) and shareability (two bits).
    pub(crate) const fn attributes(self) -> (u64, u64) {
        match self {
            Self::Coherent => (1, 3),
            Self::NonCoherent => (0, 2),
        }
    }
}

/// The stage 2 of a stream: `STE` words 2 and 3. [IHI 0070 §5.2]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// Tags translations in the TLBs.
    pub vmid: Vmid,
    /// `S2T0SZ`: 64 less the bits of input.
    pub t0sz: u64,
    /// `S2SL0`: the start level, for the 4 KiB granule.
    pub sl0: u64,
    /// `S2PS`: the output size.
    pub ps: u64,
    /// The root table.
    pub root: Pa,
    /// The attributes of walks.
    pub walks: Walks,
}

/// The stage 1 of a nested stream, as its guest configured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1 {
    /// `S1Fmt`: 0 linear, 1 two levels with 4 KiB leaves, 2 with 64 KiB leaves.
    pub format: u64,
    /// `S1ContextPtr`: guest-physical, a multiple of 64.
    pub context: u64,
    /// `S1CDMax`: log2 of the number of substreams.
    pub cd_max: u64,
    /// `S1DSS`: what a transaction without a substream gets.
    pub dss: u64,
    /// `EATS`: 0 or 1.
    pub eats: u64,
}

/// A stream table entry: eight little-endian words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ste(pub [u64; 8]);

const _: () = assert!(size_of::<Ste>() == Ste::BYTES);

const VALID: u64 = 1;
const CONFIG_SHIFT: u32 = 1;
const CONFIG: u64 = 7 << CONFIG_SHIFT;
const S1FMT: u64 = 3 << 4;
const S1_CONTEXT: u64 = Ste::S1_CONTEXT;
const S1CDMAX_SHIFT: u32 = 59;
const S1DSS: u64 = 3;
const S1_CACHEABILITY: u64 = 0x3f << 2;
const MEV: u64 = 1 << 19;
const S2FWB: u64 = 1 << 25;
const S1STALLD: u64 = 1 << 27;
const EATS_SHIFT: u32 = 28;
const STRW: u64 = 3 << 30;
/// `MemAttr`, `MTCFG`, `ALLOCCFG`, `SHCFG`, `NSCFG`, `PRIVCFG`, `INSTCFG`.
const OVERRIDES: u64 = 0xf_ffff << 32;
/// `SHCFG` = 1: the incoming shareability.
const SHCFG_INCOMING: u64 = 1 << 44;
const S2AA64: u64 = 1 << 51;
const S2AFFD: u64 = 1 << 53;
const S2PTW: u64 = 1 << 54;
const S2R: u64 = 1 << 58;
const S2TTB: u64 = 0x000f_ffff_ffff_fff0;

/// Whether faults of a stream are recorded. A later one mutes what an earlier one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recording {
    /// They are.
    On,
    /// Those that are ours to record terminate without: of stage 2, and of an entry that is not valid. Those of
    /// a guest's stage 1 are recorded: its context descriptors say so.
    Off,
    /// None is: every access of a stream with a stage 1 aborts in silence.
    Silent,
    /// Every access of a stream that translates does: for what is recorded whatever its entry says.
    Stopped,
}

impl Ste {
    /// Bytes of an entry.
    pub const BYTES: usize = 64;

    /// The bits of `S1ContextPtr` in word 0, which are those of the address.
    pub const S1_CONTEXT: u64 = 0x000f_ffff_ffff_ffc0;

    /// An entry that is not valid: a transaction aborts with `C_BAD_STE`.
    pub const INVALID: Self = Self([0; 8]);

    /// Every transaction aborts.
    pub const ABORT: Self = Self([VALID, 0, 0, 0, 0, 0, 0, 0]);

    /// Nothing is translated: for a device that the hypervisor keeps.
    pub const BYPASS: Self = Self([
        VALID | SteConfig::Bypass.bits() << CONFIG_SHIFT,
        SHCFG_INCOMING,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);

    /// Stage 2 alone. Faults are recorded and terminate: the stall model is never asked for.
    ///
    /// Table descriptors have their access flags set, so `S2AFFD` changes nothing; it is set so that
    /// a flag that is lost does not become a fault of a VM's device.
    #[must_use]
    pub fn stage2(stage2: &Stage2) -> Self {
        let (cacheability, shareability) = stage2.walks.attributes();
        let word2 = u64::from(stage2.vmid.bits())
            | (stage2.t0sz & 0x3f) << 32
            | (stage2.sl0 & 3) << 38
            | cacheability << 40
            | cacheability << 42
            | shareability << 44
            | (stage2.ps & 7) << 48
            | S2AA64
            | S2AFFD
            | S2PTW
            | S2R;
        Self([
            VALID | SteConfig::S2Translate.bits() << CONFIG_SHIFT,
            SHCFG_INCOMING | MEV,
            word2,
            stage2.root.bits() & S2TTB,
            0,
            0,
            0,
            0,
        ])
    }

    /// A guest's stage 1 over our stage 2.
    ///
    /// `S2PTW` is set: a guest whose stage-1 tables are in device memory faults. Context descriptors
    /// are fetched write-back and inner shareable, as guests' memory is.
    #[must_use]
    pub fn nested(stage1: &Stage1, stage2: &Stage2) -> Self {
        let mut ste = Self::stage2(stage2);
        ste.0[0] = VALID
            | SteConfig::Nested.bits() << CONFIG_SHIFT
            | (stage1.format & 3) << 4
            | stage1.context & S1_CONTEXT
            | (stage1.cd_max & 0x1f) << S1CDMAX_SHIFT;
        // S1CIR and S1COR 1 (write-back, allocating), S1CSH 3 (inner shareable).
        ste.0[1] |= stage1.dss & S1DSS | 1 << 2 | 1 << 4 | 3 << 6 | (stage1.eats & 1) << EATS_SHIFT;
        ste
    }

    /// The same, whose stage 1, if it has one, stalls nothing, whatever its context descriptors say. Only for an SMMU that
    /// can stall and terminate (`IDR0.STALL_MODEL` 0): for others the entry would be illegal. [IHI 0070 §5.2.2]
    #[must_use]
    pub const fn without_stalls(mut self) -> Self {
        if self.config().stage1() {
            self.0[1] |= S1STALLD;
        }
        self
    }

    /// The same, with its faults recorded or not: by `S2R` where there is a stage 2; an entry that is not valid,
    /// and where nothing else helps one that translates, aborts instead.
    #[must_use]
    pub const fn with_recording(mut self, recording: Recording) -> Self {
        match recording {
            Recording::On => {}
            _ if !self.is_valid() => self = Self::ABORT,
            Recording::Silent | Recording::Stopped if self.config().stage1() => self = Self::ABORT,
            Recording::Stopped if self.config().stage2() => self = Self::ABORT,
            _ if self.config().stage2() => self.0[2] &= !S2R,
            _ => {}
        }
        self
    }

    /// Whether the entry is valid.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.0[0] & VALID != 0
    }

    /// What is done with the stream.
    #[must_use]
    pub const fn config(&self) -> SteConfig {
        SteConfig::from_bits(self.0[0] >> CONFIG_SHIFT)
    }

    /// `S2VMID`.
    #[must_use]
    pub fn vmid(&self) -> u16 {
        let [a, b, ..] = self.0[2].to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// `S2TTB`.
    #[must_use]
    pub const fn s2ttb(&self) -> u64 {
        self.0[3] & S2TTB
    }

    /// `S1ContextPtr`.
    #[must_use]
    pub const fn s1_context(&self) -> u64 {
        self.0[0] & S1_CONTEXT
    }

    /// `S1CDMax`.
    #[must_use]
    pub const fn s1_cd_max(&self) -> u64 {
        self.0[0] >> S1CDMAX_SHIFT
    }

    /// `S1Fmt`.
    #[must_use]
    pub const fn s1_format(&self) -> u64 {
        self.0[0] >> 4 & 3
    }

    /// `S1DSS`.
    #[must_use]
    pub const fn s1_dss(&self) -> u64 {
        self.0[1] & S1DSS
    }

    /// `EATS`.
    #[must_use]
    pub const fn eats(&self) -> u64 {
        self.0[1] >> EATS_SHIFT & 3
    }

    /// Bits that the SMMU looks at while the entry stands as it is. Others may change at any time
    /// without changing what the stream does.
    #[must_use]
    pub fn used(&self) -> Self {
        let mut used = [0; 8];
        used[0] = VALID;
        if !self.is_valid() {
            return Self(used);
        }
        used[0] |= CONFIG;
        let config = self.config();
        if matches!(config, SteConfig::Abort | SteConfig::Reserved(_)) {
            return Self(used);
        }
        used[1] |= OVERRIDES;
        if config.stage1() {
            used[0] |= S1FMT | S1_CONTEXT | 0x1f << S1CDMAX_SHIFT;
            used[1] |= S1DSS | S1_CACHEABILITY | S1STALLD | STRW | MEV | 3 << EATS_SHIFT;
            // The VMID tags stage-1 translations, whether stage 2 translates or not.
            used[2] |= 0xffff;
        }
        if config.stage2() {
            used[1] |= S2FWB | MEV | 3 << EATS_SHIFT;
            used[2] = u64::MAX;
            used[3] |= S2TTB;
        }
        Self(used)
    }
}

impl fmt::Display for Ste {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return f.write_str("invalid");
        }
        let config = self.config();
        write!(f, "Config {} ", config.bits())?;
        f.write_str(match config {
            SteConfig::Abort | SteConfig::Reserved(_) => "(abort)",
            SteConfig::Bypass => "(bypass)",
            SteConfig::S1Translate => "(stage 1)",
            SteConfig::S2Translate => "(stage 2)",
            SteConfig::Nested => "(nested)",
        })?;
        if config.stage1() {
            write!(
                f,
                ", S1ContextPtr {:#x}, S1CDMax {}, S1DSS {}",
                self.s1_context(),
                self.s1_cd_max(),
                self.s1_dss()
            )?;
        }
        if config.stage2() {
            write!(f, ", S2TTB {:#x}, S2VMID {}", self.s2ttb(), self.vmid())?;
        }
        Ok(())
    }
}

impl core::fmt::Debug for Ste {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Ste({:?}", self.config())?;
        if !self.is_valid() {
            f.write_str(", invalid")?;
        }
        write!(f, ", {:x?})", &self.0[..4])
    }
}

/// A level-1 stream table descriptor. [IHI 0070 §5.1.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct L1Std(pub u64);

impl L1Std {
    const POINTER: u64 = 0x000f_ffff_ffff_ffc0;

    /// No entries: a transaction aborts with `C_BAD_STREAMID`.
    pub const INVALID: Self = Self(0);

    /// A whole level-2 table of `1 << split` entries at `table`. Some emulators check indices
    /// against a span one too long, so partial tables are never used.
    #[must_use]
    pub const fn table(table: Pa, split: u8) -> Self {
        Self(table.bits() & Self::POINTER | (split as u64 + 1))
    }

    /// `Span`: 0 is invalid, n stands for `1 << (n - 1)` entries.
    #[must_use]
    pub const fn span(self) -> u64 {
        self.0 & 0x1f
    }

    /// `L2Ptr`.
    #[must_use]
    pub const fn pointer(self) -> u64 {
        self.0 & Self::POINTER
    }
}

#[cfg(test)]
mod tests {
    use types::{Pa, Vmid};

    use super::{L1Std, Stage1, Stage2, Ste, SteConfig, Walks};

    fn stage2() -> Stage2 {
        Stage2 {
            vmid: Vmid::new(7).unwrap(),
            t0sz: 24,
            sl0: 1,
            ps: 4,
            root: Pa::truncated(0x4123_4000),
            walks: Walks::Coherent,
        }
    }

    #[test]
    fn a_stage_2_entry_has_the_bits_of_the_manual() {
        let ste = Ste::stage2(&stage2());
        assert_eq!(ste.0[0], 0xd);
        assert_eq!(ste.0[1], 1 << 44 | 1 << 19);
        // S2R, S2PTW, S2AFFD, S2AA64, PS 4, SH0 3, OR0 1, IR0 1, SL0 1, T0SZ 24, VMID 7.
        assert_eq!(ste.0[2], 0x046c_3558_0000_0007);
        assert_eq!(ste.0[3], 0x4123_4000);
        assert_eq!(ste.0[4..], [0; 4]);
        assert_eq!((ste.vmid(), ste.s2ttb()), (7, 0x4123_4000));
    }

    #[test]
    fn walks_of_an_smmu_that_does_not_snoop_are_not_cacheable() {
        let ste = Ste::stage2(&Stage2 {
            walks: Walks::NonCoherent,
            ..stage2()
        });
        assert_eq!(ste.0[2] >> 40 & 0x3f, 0b10_0000);
    }

    #[test]
    fn a_nested_entry_takes_stage_1_from_the_guest_and_stage_2_from_us() {
        let ste = Ste::nested(
            &Stage1 {
                format: 2,
                context: 0x1_2345_6780,
                cd_max: 5,
                dss: 2,
                eats: 0,
            },
            &stage2(),
        );
        assert_eq!(ste.config(), SteConfig::Nested);
        assert_eq!(ste.0[0], 5 << 59 | 0x1_2345_6780 | 2 << 4 | 7 << 1 | 1);
        assert_eq!(ste.0[1], 1 << 44 | 1 << 19 | 0xd4 | 2);
        assert_eq!(ste.0[2..4], Ste::stage2(&stage2()).0[2..4]);
        let read = (
            ste.s1_format(),
            ste.s1_context(),
            ste.s1_cd_max(),
            ste.s1_dss(),
        );
        assert_eq!(read, (2, 0x1_2345_6780, 5, 2));
    }

    #[test]
    fn guests_bits_outside_their_fields_do_not_get_into_an_entry() {
        let wild = Stage1 {
            format: u64::MAX,
            context: u64::MAX,
            cd_max: u64::MAX,
            dss: u64::MAX,
            eats: u64::MAX,
        };
        let ste = Ste::nested(&wild, &stage2());
        assert_eq!(ste.config(), SteConfig::Nested);
        assert_eq!(ste.0[1] & !(3 | 0xfc | 1 << 28), 1 << 44 | 1 << 19);
        assert_eq!(ste.0[2..], Ste::stage2(&stage2()).0[2..]);
    }

    #[test]
    fn every_configuration_survives_decoding() {
        for bits in 0..8 {
            assert_eq!(SteConfig::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn what_an_entry_does_depends_on_its_used_bits_alone() {
        assert_eq!(Ste::INVALID.used().0, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Ste::ABORT.used().0, [0xf, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Ste::BYPASS.used().0[0], 0xf);
        assert_eq!(Ste::BYPASS.used().0[2..], [0; 6]);
        let used = Ste::stage2(&stage2()).used();
        assert_eq!(used.0[0], 0xf);
        assert_eq!(used.0[2], u64::MAX);
    }

    #[test]
    fn level_1_descriptors_name_whole_tables() {
        let std = L1Std::table(Pa::truncated(0x8000_4000), 8);
        assert_eq!((std.span(), std.pointer()), (9, 0x8000_4000));
        assert_eq!(L1Std::INVALID.span(), 0);
    }
}
