//! Event records. [IHI 0070 §7.3]

use core::fmt;

/// Bytes of a record.
pub const BYTES: usize = 32;

/// What happened. [IHI 0070 §7.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventId {
    /// An upstream transaction that the SMMU does not take.
    FUut,
    /// A stream ID beyond the stream table.
    CBadStreamid,
    /// The stream table entry could not be fetched.
    FSteFetch,
    /// The stream table entry is invalid or not coherent in itself.
    CBadSte,
    /// An ATS request that was refused.
    FBadAtsTreq,
    /// The stream is disabled by its entry.
    FStreamDisabled,
    /// A translated transaction where none is allowed.
    FTranslForbidden,
    /// A substream ID beyond the table of context descriptors.
    CBadSubstreamid,
    /// The context descriptor could not be fetched.
    FCdFetch,
    /// The context descriptor is invalid.
    CBadCd,
    /// A table walk met an external abort.
    FWalkEabt,
    /// No translation.
    FTranslation,
    /// An address beyond what a stage takes.
    FAddrSize,
    /// The access flag is clear.
    FAccess,
    /// The access is not allowed.
    FPermission,
    /// The TLB holds contradicting entries.
    FTlbConflict,
    /// The configuration cache does.
    FCfgConflict,
    /// A speculative page request.
    EPageRequest,
    /// An encoding this crate does not know.
    Unknown(u8),
}

impl EventId {
    /// From the eight bits of the field.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0x01 => Self::FUut,
            0x02 => Self::CBadStreamid,
            0x03 => Self::FSteFetch,
            0x04 => Self::CBadSte,
            0x05 => Self::FBadAtsTreq,
            0x06 => Self::FStreamDisabled,
            0x07 => Self::FTranslForbidden,
            0x08 => Self::CBadSubstreamid,
            0x09 => Self::FCdFetch,
            0x0a => Self::CBadCd,
            0x0b => Self::FWalkEabt,
            0x10 => Self::FTranslation,
            0x11 => Self::FAddrSize,
            0x12 => Self::FAccess,
            0x13 => Self::FPermission,
            0x20 => Self::FTlbConflict,
            0x21 => Self::FCfgConflict,
            0x24 => Self::EPageRequest,
            other => Self::Unknown(other),
        }
    }

    /// The field.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::FUut => 0x01,
            Self::CBadStreamid => 0x02,
            Self::FSteFetch => 0x03,
            Self::CBadSte => 0x04,
            Self::FBadAtsTreq => 0x05,
            Self::FStreamDisabled => 0x06,
            Self::FTranslForbidden => 0x07,
            Self::CBadSubstreamid => 0x08,
            Self::FCdFetch => 0x09,
            Self::CBadCd => 0x0a,
            Self::FWalkEabt => 0x0b,
            Self::FTranslation => 0x10,
            Self::FAddrSize => 0x11,
            Self::FAccess => 0x12,
            Self::FPermission => 0x13,
            Self::FTlbConflict => 0x20,
            Self::FCfgConflict => 0x21,
            Self::EPageRequest => 0x24,
            Self::Unknown(bits) => bits,
        }
    }

    /// Whether a translation failed, so that the record has addresses.
    #[must_use]
    pub const fn is_translation(self) -> bool {
        matches!(
            self,
            Self::FWalkEabt
                | Self::FTranslation
                | Self::FAddrSize
                | Self::FAccess
                | Self::FPermission
        )
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FUut => "F_UUT",
            Self::CBadStreamid => "C_BAD_STREAMID",
            Self::FSteFetch => "F_STE_FETCH",
            Self::CBadSte => "C_BAD_STE",
            Self::FBadAtsTreq => "F_BAD_ATS_TREQ",
            Self::FStreamDisabled => "F_STREAM_DISABLED",
            Self::FTranslForbidden => "F_TRANSL_FORBIDDEN",
            Self::CBadSubstreamid => "C_BAD_SUBSTREAMID",
            Self::FCdFetch => "F_CD_FETCH",
            Self::CBadCd => "C_BAD_CD",
            Self::FWalkEabt => "F_WALK_EABT",
            Self::FTranslation => "F_TRANSLATION",
            Self::FAddrSize => "F_ADDR_SIZE",
            Self::FAccess => "F_ACCESS",
            Self::FPermission => "F_PERMISSION",
            Self::FTlbConflict => "F_TLB_CONFLICT",
            Self::FCfgConflict => "F_CFG_CONFLICT",
            Self::EPageRequest => "E_PAGE_REQUEST",
            Self::Unknown(bits) => return write!(f, "event {bits:#04x}"),
        })
    }
}

/// What was being accessed when a translation failed: `CLASS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A context descriptor.
    Cd,
    /// A translation table.
    Tt,
    /// The input address itself.
    Input,
    /// Reserved.
    Reserved,
}

/// An event record: four little-endian words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Event(pub [u64; 4]);

const _: () = assert!(size_of::<Event>() == BYTES);

impl Event {
    const SSV: u64 = 1 << 11;
    const STALL: u64 = 1 << 31;
    const READ: u64 = 1 << 35;
    const S2: u64 = 1 << 39;

    /// What happened.
    #[must_use]
    pub fn id(&self) -> EventId {
        EventId::from_bits(self.0[0].to_le_bytes()[0])
    }

    /// The stream.
    #[must_use]
    pub fn sid(&self) -> u32 {
        let [_, _, _, _, a, b, c, d] = self.0[0].to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The record with another stream in it.
    #[must_use]
    pub const fn with_sid(mut self, sid: u32) -> Self {
        self.0[0] = self.0[0] & 0xffff_ffff | (sid as u64) << 32;
        self
    }

    /// The substream.
    #[must_use]
    pub fn ssid(&self) -> Option<u32> {
        let [a, b, c, ..] = (self.0[0] >> 12 & 0xf_ffff).to_le_bytes();
        (self.0[0] & Self::SSV != 0).then(|| u32::from_le_bytes([a, b, c, 0]))
    }

    /// Whether the transaction waits for an answer.
    #[must_use]
    pub const fn is_stall(&self) -> bool {
        self.0[1] & Self::STALL != 0
    }

    /// Whether the transaction was a read.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        self.0[1] & Self::READ != 0
    }

    /// Whether the record is of a stage-2 fault. Some emulators leave the bit clear when a stage-1
    /// table could not be fetched through stage 2, so a class of [`Class::Tt`] counts as one, too.
    #[must_use]
    pub fn is_stage2(&self) -> bool {
        self.id().is_translation() && (self.0[1] & Self::S2 != 0 || self.class() == Class::Tt)
    }

    /// Whether stage 1 or a context descriptor is to blame: nothing in the stream's entry mutes these.
    #[must_use]
    pub fn is_stage1(&self) -> bool {
        match self.id() {
            EventId::FStreamDisabled
            | EventId::CBadSubstreamid
            | EventId::CBadCd
            | EventId::FCdFetch
            | EventId::FWalkEabt => true,
            id => id.is_translation() && !self.is_stage2(),
        }
    }

    /// Whether it is recorded whatever a stream's entry says that translates: a substream where there is none, and what a
    /// device with a translation cache would ask or say. [IHI 0070 §7.3.9, §3.9.1]
    #[must_use]
    pub fn only_an_abort_mutes(&self) -> bool {
        matches!(
            self.id(),
            EventId::FBadAtsTreq | EventId::FTranslForbidden | EventId::CBadSubstreamid
        )
    }

    /// `CLASS`.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self.0[1] >> 40 & 3 {
            0 => Class::Cd,
            1 => Class::Tt,
            2 => Class::Input,
            _ => Class::Reserved,
        }
    }

    /// The address the device gave.
    #[must_use]
    pub const fn input(&self) -> u64 {
        self.0[2]
    }

    /// The guest-physical address that stage 2 did not take; bits 11:0 are zero.
    #[must_use]
    pub const fn ipa(&self) -> u64 {
        self.0[3] & 0x000f_ffff_ffff_f000
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({self})")
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sid {:#x}", self.id(), self.sid())?;
        if let Some(ssid) = self.ssid() {
            write!(f, " ssid {ssid:#x}")?;
        }
        if self.id().is_translation() {
            let access = if self.is_read() { "read" } else { "write" };
            let class = match self.class() {
                Class::Cd => ", fetching a context descriptor",
                Class::Tt => ", walking",
                Class::Input | Class::Reserved => "",
            };
            let stage = if self.is_stage2() { 2 } else { 1 };
            write!(f, " {access} of {:#x}, stage {stage}{class}", self.input())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::{Class, Event, EventId};

    #[test]
    fn every_event_id_survives_decoding() {
        for bits in 0..=255 {
            assert_eq!(EventId::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn a_stage_2_fault_is_read_as_the_manual_lays_it_out() {
        // F_TRANSLATION of stream 8: a write of 0x9000_0123, stage 2, class IN.
        let event = Event([8 << 32 | 0x10, 1 << 39 | 2 << 40, 0x9000_0123, 0x9000_0000]);
        assert_eq!(event.id(), EventId::FTranslation);
        assert_eq!((event.sid(), event.ssid()), (8, None));
        assert!(event.is_stage2() && !event.is_read() && !event.is_stall());
        assert_eq!(event.class(), Class::Input);
        assert_eq!((event.input(), event.ipa()), (0x9000_0123, 0x9000_0000));
        assert_eq!(
            event.to_string(),
            "F_TRANSLATION sid 0x8 write of 0x90000123, stage 2"
        );
        assert_eq!(event.with_sid(3).sid(), 3);
    }

    #[test]
    fn a_table_that_stage_2_does_not_map_is_a_stage_2_fault_whatever_the_bit_says() {
        let event = Event([8 << 32 | 0x10, 1 << 40 | 1 << 35, 0x1000, 0]);
        assert!(event.is_stage2() && event.is_read());
    }

    #[test]
    fn stage_1_is_to_blame_for_its_faults_and_those_of_descriptors() {
        for (id, blamed) in [
            (0x02, false),
            (0x03, false),
            (0x04, false),
            (0x06, true),
            (0x08, true),
            (0x09, true),
            (0x0a, true),
            (0x0b, true),
            (0x10, true),
            (0x13, true),
        ] {
            assert_eq!(Event([id, 2 << 40, 0, 0]).is_stage1(), blamed, "{id:#x}");
        }
        assert!(!Event([0x10, 2 << 40 | 1 << 39, 0, 0]).is_stage1());
    }

    #[test]
    fn an_entry_that_translates_mutes_neither_substreams_nor_ats() {
        for id in 0..=255 {
            let muted_by_abort = Event([id, 0, 0, 0]).only_an_abort_mutes();
            assert_eq!(muted_by_abort, matches!(id, 0x05 | 0x07 | 0x08), "{id:#x}");
        }
    }

    #[test]
    fn a_record_without_addresses_prints_none() {
        let event = Event([0x4100_0000_0002 | 5 << 12 | 1 << 11, u64::MAX, u64::MAX, 0]);
        assert_eq!(event.to_string(), "C_BAD_STREAMID sid 0x4100 ssid 0x5");
        assert!(!event.is_stage2());
    }
}
