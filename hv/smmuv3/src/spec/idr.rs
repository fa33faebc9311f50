//! The identification registers and the few controls needed to hold an SMMU still.

use bitfield_struct::bitfield;

/// `SMMU_IDR0`. [IHI 0070 §6.3.1]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr0 {
    /// Stage 2 translation.
    pub s2p: bool,
    /// Stage 1 translation.
    pub s1p: bool,
    /// Table formats: bit 0 AArch32, bit 1 AArch64.
    #[bits(2)]
    pub ttf: u8,
    /// Table walks and queue accesses are coherent with the CPUs.
    pub cohacc: bool,
    /// Broadcast TLB maintenance.
    pub btm: bool,
    /// Hardware update of access flag (1) and dirty state (2).
    #[bits(2)]
    pub httu: u8,
    /// Dormant hint.
    pub dormhint: bool,
    /// EL2 stage-1 contexts.
    pub hyp: bool,
    /// PCIe ATS.
    pub ats: bool,
    /// Stage-1 ATS split.
    pub ns1ats: bool,
    /// 16-bit ASIDs.
    pub asid16: bool,
    /// Message-signalled interrupts of the SMMU itself.
    pub msi: bool,
    /// `SEV` on `CMD_SYNC` completion.
    pub sev: bool,
    /// Address translation operations by register.
    pub atos: bool,
    /// PCIe page requests.
    pub pri: bool,
    /// VMID wildcard matching.
    pub vmw: bool,
    /// 16-bit VMIDs.
    pub vmid16: bool,
    /// Two-level context descriptor tables.
    pub cd2l: bool,
    /// Virtual ATOS page.
    pub vatos: bool,
    /// Endianness of tables: 0 mixed, 2 little, 3 big.
    #[bits(2)]
    pub ttendian: u8,
    /// Bad ATS requests are recorded.
    pub atsrecerr: bool,
    /// 0 stall and terminate, 1 terminate only, 2 stall forced.
    #[bits(2)]
    pub stall_model: u8,
    /// Termination always aborts.
    pub term_model: bool,
    /// Stream tables: 0 linear, 1 linear and two-level.
    #[bits(2)]
    pub st_level: u8,
    _reserved: bool,
    /// Realm management extension.
    pub rme: bool,
    _reserved: bool,
}

/// `SMMU_IDR1`. [IHI 0070 §6.3.2]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr1 {
    /// Bits of a stream ID.
    #[bits(6)]
    pub sidsize: u8,
    /// Bits of a substream ID; 0: none.
    #[bits(5)]
    pub ssidsize: u8,
    /// Log2 of the most PRI queue entries.
    #[bits(5)]
    pub priqs: u8,
    /// Log2 of the most event queue entries.
    #[bits(5)]
    pub evtqs: u8,
    /// Log2 of the most command queue entries.
    #[bits(5)]
    pub cmdqs: u8,
    /// Incoming permission attributes can be overridden.
    pub attr_perms_ovr: bool,
    /// Incoming memory types can be overridden.
    pub attr_types_ovr: bool,
    /// Preset addresses are relative to the register base.
    pub rel: bool,
    /// Queue addresses are fixed.
    pub queues_preset: bool,
    /// Table addresses are fixed.
    pub tables_preset: bool,
    /// Enhanced command queues.
    pub ecmdq: bool,
}

/// `SMMU_IDR3`. [IHI 0070 §6.3.4]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr3 {
    #[bits(2)]
    _reserved: u8,
    /// Hierarchical attribute disable.
    pub had: bool,
    /// Page-based hardware attributes.
    pub pbha: bool,
    /// Stage-2 execute-never by exception level.
    pub xnx: bool,
    /// PASID in page responses.
    pub pps: bool,
    _reserved: bool,
    /// Memory partitioning and monitoring.
    pub mpam: bool,
    /// Stage 2 can force Write-Back.
    pub fwb: bool,
    /// Small translation tables.
    pub stt: bool,
    /// Invalidation by range, with level hints.
    pub ril: bool,
    /// Level of break-before-make behaviour.
    #[bits(2)]
    pub bbml: u8,
    /// `E0PD`.
    pub e0pd: bool,
    /// Table walks can be made non-cacheable.
    pub ptwnnc: bool,
    /// Device permission table.
    pub dpt: bool,
    #[bits(16)]
    _reserved: u16,
}

/// `SMMU_IDR5`. [IHI 0070 §6.3.6]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr5 {
    /// Output address size, encoded: see [`Idr5::oas_bits`].
    #[bits(3)]
    pub oas: u8,
    _reserved: bool,
    /// 4 KiB granule.
    pub gran4k: bool,
    /// 16 KiB granule.
    pub gran16k: bool,
    /// 64 KiB granule.
    pub gran64k: bool,
    #[bits(3)]
    _reserved: u8,
    /// Virtual addresses: 0: 48 bits, 1: 52 bits.
    #[bits(2)]
    pub vax: u8,
    #[bits(4)]
    _reserved: u8,
    /// Most transactions that can be stalled.
    pub stall_max: u16,
}

impl Idr5 {
    /// Output address size in bits.
    #[must_use]
    pub const fn oas_bits(self) -> u8 {
        match self.oas() {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            6 => 52,
            _ => 56,
        }
    }
}

/// `SMMU_IIDR`. [IHI 0070 §6.3.7]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Iidr {
    /// JEP106 code of the implementer: continuation in 11:8, identity in 6:0.
    #[bits(12)]
    pub implementer: u16,
    /// Minor revision.
    #[bits(4)]
    pub revision: u8,
    /// Major revision.
    #[bits(4)]
    pub variant: u8,
    /// Product.
    #[bits(12)]
    pub product_id: u16,
}

/// `SMMU_CR0`. [IHI 0070 §6.3.9]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr0 {
    /// Translation is on; when off, [`Gbpa`] decides.
    pub smmuen: bool,
    /// The PRI queue takes requests.
    pub priqen: bool,
    /// The event queue takes records.
    pub eventqen: bool,
    /// Commands are consumed.
    pub cmdqen: bool,
    /// ATS requests are checked.
    pub atschk: bool,
    #[bits(27)]
    _reserved: u32,
}

/// `SMMU_GBPA`. [IHI 0070 §6.3.14]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gbpa {
    /// Memory type and shareability for traffic that bypasses.
    #[bits(20)]
    pub attributes: u32,
    /// Traffic is aborted instead of bypassing.
    pub abort: bool,
    #[bits(10)]
    _reserved: u16,
    /// Written 1 with the other fields; reads 1 until they have taken effect.
    pub update: bool,
}

/// `SMMU_IRQ_CTRL`. [IHI 0070 §6.3.16]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IrqCtrl {
    /// Global errors interrupt.
    pub gerror: bool,
    /// PRI queue interrupts.
    pub priq: bool,
    /// Event queue interrupts.
    pub eventq: bool,
    #[bits(29)]
    _reserved: u32,
}
