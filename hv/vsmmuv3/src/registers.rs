//! The register file: which register an access means, and what of a written value counts.

use smmuv3::spec::regs;
use types::Width;

use crate::features::{AIDR, Features};

/// `CR0.SMMUEN`.
pub(crate) const SMMUEN: u32 = 1 << 0;
/// `CR0.EVENTQEN`.
pub(crate) const EVENTQEN: u32 = 1 << 2;
/// `CR0.CMDQEN`.
pub(crate) const CMDQEN: u32 = 1 << 3;
/// `CR0.ATSCHK`.
const ATSCHK: u32 = 1 << 4;

/// `CR2.RECINVSID`.
pub(crate) const RECINVSID: u32 = 1 << 1;
/// `CR2.PTM`.
const PTM: u32 = 1 << 2;

/// `CR1`: attributes of table accesses.
const CR1_TABLES: u32 = 0x3f << 6;
/// `CR1`: attributes of queue accesses.
const CR1_QUEUES: u32 = 0x3f;

/// `GBPA.UPDATE`.
pub(crate) const UPDATE: u32 = 1 << 31;
/// `GBPA.ABORT`.
pub(crate) const ABORT: u32 = 1 << 20;
/// `GBPA.SHCFG`: kept, and without effect.
const SHCFG: u32 = 3 << 12;
/// `GBPA.SHCFG` that takes shareability as it comes in.
const SHCFG_INCOMING: u32 = 1 << 12;

/// `IRQ_CTRL.GERROR_IRQEN`.
pub(crate) const IRQ_GERROR: u32 = 1 << 0;
/// `IRQ_CTRL.EVENTQ_IRQEN`.
pub(crate) const IRQ_EVENTQ: u32 = 1 << 2;

/// `GERROR.CMDQ_ERR`.
pub(crate) const CMDQ_ERR: u32 = 1 << 0;
/// `GERROR.EVENTQ_ABT_ERR`.
pub(crate) const EVENTQ_ABT_ERR: u32 = 1 << 2;
/// `GERROR.MSI_CMDQ_ABT_ERR`.
pub(crate) const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
/// `GERROR.MSI_EVENTQ_ABT_ERR`.
pub(crate) const MSI_EVENTQ_ABT_ERR: u32 = 1 << 5;
/// `GERROR.MSI_GERROR_ABT_ERR`.
pub(crate) const MSI_GERROR_ABT_ERR: u32 = 1 << 7;
/// `GERROR.SFM_ERR`.
pub(crate) const SFM_ERR: u32 = 1 << 8;

/// Bits of `STRTAB_BASE`: `RA` and the address.
const STRTAB_BASE: u64 = 1 << 62 | 0x000f_ffff_ffff_ffc0;
/// Bits of `STRTAB_BASE_CFG`.
const STRTAB_BASE_CFG: u32 = 3 << 16 | 0x7ff;
/// Bits of a queue's base: the allocation hint, the address, `LOG2SIZE`.
const QUEUE_BASE: u64 = 1 << 62 | 0x000f_ffff_ffff_ffff;
/// Bits of an index with its wrap flag.
pub(crate) const INDEX: u32 = 0xf_ffff;
/// `CMDQ_CONS.ERR`.
pub(crate) const CONS_ERR_SHIFT: u32 = 24;
/// Bit 31 of event queue indices.
const OVERFLOW: u32 = 1 << 31;

/// `*_IRQ_CFG0.ADDR`, before it is cut to the address size.
const MESSAGE_ADDRESS: u64 = 0x000f_ffff_ffff_fffc;
/// `*_IRQ_CFG2`: shareability and memory type.
const MESSAGE_ATTRIBUTES: u32 = 0x3f;

/// A message of the SMMU's own: `*_IRQ_CFG0` to `*_IRQ_CFG2`. [IHI 0070 §6.3.21]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Where it is written to; 0: nowhere.
    pub(crate) address: u64,
    pub(crate) data: u32,
    /// Kept, and without effect: the emulation's accesses have the attributes of all its others.
    attributes: u32,
}

/// A register that the guest's SMMU has. All others read as zero and ignore writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    Aidr,
    Cr0,
    Cr0Ack,
    Cr1,
    Cr2,
    Gbpa,
    IrqCtrl,
    IrqCtrlAck,
    Gerror,
    Gerrorn,
    GerrorIrqCfg0,
    GerrorIrqCfg1,
    GerrorIrqCfg2,
    StrtabBase,
    StrtabBaseCfg,
    CmdqBase,
    CmdqProd,
    CmdqCons,
    EventqBase,
    EventqProd,
    EventqCons,
    EventqIrqCfg0,
    EventqIrqCfg1,
    EventqIrqCfg2,
}

impl Register {
    fn at(offset: usize) -> Option<Self> {
        Some(match offset {
            regs::IDR0 => Self::Idr0,
            regs::IDR1 => Self::Idr1,
            regs::IDR3 => Self::Idr3,
            regs::IDR5 => Self::Idr5,
            regs::AIDR => Self::Aidr,
            regs::CR0 => Self::Cr0,
            regs::CR0ACK => Self::Cr0Ack,
            regs::CR1 => Self::Cr1,
            regs::CR2 => Self::Cr2,
            regs::GBPA => Self::Gbpa,
            regs::IRQ_CTRL => Self::IrqCtrl,
            regs::IRQ_CTRLACK => Self::IrqCtrlAck,
            regs::GERROR => Self::Gerror,
            regs::GERRORN => Self::Gerrorn,
            regs::GERROR_IRQ_CFG0 => Self::GerrorIrqCfg0,
            regs::GERROR_IRQ_CFG1 => Self::GerrorIrqCfg1,
            regs::GERROR_IRQ_CFG2 => Self::GerrorIrqCfg2,
            regs::STRTAB_BASE => Self::StrtabBase,
            regs::STRTAB_BASE_CFG => Self::StrtabBaseCfg,
            regs::CMDQ_BASE => Self::CmdqBase,
            regs::CMDQ_PROD => Self::CmdqProd,
            regs::CMDQ_CONS => Self::CmdqCons,
            regs::EVENTQ_BASE => Self::EventqBase,
            regs::EVENTQ_PROD => Self::EventqProd,
            regs::EVENTQ_CONS => Self::EventqCons,
            regs::EVENTQ_IRQ_CFG0 => Self::EventqIrqCfg0,
            regs::EVENTQ_IRQ_CFG1 => Self::EventqIrqCfg1,
            regs::EVENTQ_IRQ_CFG2 => Self::EventqIrqCfg2,
            _ => return None,
        })
    }

    fn is_wide(self) -> bool {
        matches!(
            self,
            Self::StrtabBase
                | Self::CmdqBase
                | Self::EventqBase
                | Self::GerrorIrqCfg0
                | Self::EventqIrqCfg0
        )
    }
}

/// The part of a register that an access reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of a 32-bit register.
    Word(Register),
    /// Bits 31:0 of a 64-bit register.
    Low(Register),
    /// Bits 63:32 of a 64-bit register.
    High(Register),
    /// All of a 64-bit register.
    Whole(Register),
}

impl Part {
    /// What an access at a byte offset reaches; `None` for nothing: narrow, misaligned and unknown
    /// accesses, and 64-bit ones of 32-bit registers.
    pub(crate) fn at(offset: u64, width: Width) -> Option<Self> {
        let offset = usize::try_from(offset).ok()?;
        match width {
            Width::Double if offset & 7 == 0 => Register::at(offset)
                .filter(|register| register.is_wide())
                .map(Self::Whole),
            Width::Word if offset & 3 == 0 => {
                if let Some(register) = Register::at(offset) {
                    return Some(if register.is_wide() {
                        Self::Low(register)
                    } else {
                        Self::Word(register)
                    });
                }
                Register::at(offset & !7)
                    .filter(|register| register.is_wide())
                    .map(Self::High)
            }
            _ => None,
        }
    }

    pub(crate) fn register(self) -> Register {
        match self {
            Self::Word(register)
            | Self::Low(register)
            | Self::High(register)
            | Self::Whole(register) => register,
        }
    }

    /// The register's new value when this part of it is written.
    pub(crate) fn merge(self, old: u64, value: u64) -> u64 {
        const LOW: u64 = 0xffff_ffff;
        match self {
            Self::Word(_) => value & LOW,
            Self::Low(_) => old & !LOW | value & LOW,
            Self::High(_) => old & LOW | value << 32,
            Self::Whole(_) => value,
        }
    }

    /// What a read of this part of a register gives.
    pub(crate) fn extract(self, value: u64) -> u64 {
        match self {
            Self::Word(_) | Self::Low(_) => value & 0xffff_ffff,
            Self::High(_) => value >> 32,
            Self::Whole(_) => value,
        }
    }
}

/// The guest's registers, apart from the event queue's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) cr0: u32,
    pub(crate) cr0ack: u32,
    pub(crate) cr1: u32,
    pub(crate) cr2: u32,
    pub(crate) gbpa: u32,
    pub(crate) irq_ctrl: u32,
    pub(crate) gerror: u32,
    pub(crate) gerrorn: u32,
    pub(crate) gerror_message: Message,
    pub(crate) eventq_message: Message,
    pub(crate) strtab_base: u64,
    pub(crate) strtab_base_cfg: u32,
    pub(crate) cmdq_base: u64,
    pub(crate) cmdq_prod: u32,
    pub(crate) cmdq_cons: u32,
}

impl Registers {
    pub(crate) fn at_reset(abort: u32) -> Self {
        Self {
            cr0: 0,
            cr0ack: 0,
            cr1: 0,
            cr2: 0,
            gbpa: SHCFG_INCOMING | abort,
            irq_ctrl: 0,
            gerror: 0,
            gerrorn: 0,
            gerror_message: Message::default(),
            eventq_message: Message::default(),
            strtab_base: 0,
            strtab_base_cfg: 0,
            cmdq_base: 0,
            cmdq_prod: 0,
            cmdq_cons: 0,
        }
    }

    /// Whether a bit of `CR0` is set, or its clearing is not complete yet.
    pub(crate) fn is_on(&self, bit: u32) -> bool {
        (self.cr0 | self.cr0ack) & bit != 0
    }

    /// Errors that the guest has not acknowledged.
    pub(crate) fn active_errors(&self) -> u32 {
        self.gerror ^ self.gerrorn
    }

    /// The enables a guest can set.
    pub(crate) fn cr0_mask(features: &Features) -> u32 {
        let atschk = if features.ats() { ATSCHK } else { 0 };
        SMMUEN | EVENTQEN | CMDQEN | atschk
    }

    /// `CR1`: table attributes change only while the SMMU is off, queue attributes while the queues
    /// are. [IHI 0070 §6.3.11]
    pub(crate) fn write_cr1(&mut self, value: u32) {
        let mut mask = 0;
        if !self.is_on(SMMUEN) {
            mask |= CR1_TABLES;
        }
        if !self.is_on(CMDQEN | EVENTQEN) {
            mask |= CR1_QUEUES;
        }
        self.cr1 = self.cr1 & !mask | value & mask;
    }

    pub(crate) fn write_cr2(&mut self, value: u32) {
        if !self.is_on(SMMUEN) {
            self.cr2 = value & (PTM | RECINVSID);
        }
    }

    /// What of a written `GBPA` is kept, `UPDATE` apart.
    pub(crate) fn gbpa_of(value: u32) -> u32 {
        value & (ABORT | SHCFG)
    }

    pub(crate) fn write_strtab_base(&mut self, part: Part, value: u64) {
        if !self.is_on(SMMUEN) {
            self.strtab_base = part.merge(self.strtab_base, value) & STRTAB_BASE;
        }
    }

    pub(crate) fn write_strtab_base_cfg(&mut self, value: u32) {
        if !self.is_on(SMMUEN) {
            self.strtab_base_cfg = value & STRTAB_BASE_CFG;
        }
    }

    pub(crate) fn write_cmdq_base(&mut self, part: Part, value: u64) {
        if !self.is_on(CMDQEN) {
            self.cmdq_base = part.merge(self.cmdq_base, value) & QUEUE_BASE;
        }
    }

    /// Messages are there with `IDR0.MSI`, and change only while their interrupt is off.
    /// [IHI 0070 §6.3.21]
    pub(crate) fn write_message(&mut self, part: Part, value: u64, features: &Features) {
        use Register::{
            EventqIrqCfg0, EventqIrqCfg1, EventqIrqCfg2, GerrorIrqCfg0, GerrorIrqCfg1,
            GerrorIrqCfg2,
        };
        let register = part.register();
        let (message, enable) = match register {
            GerrorIrqCfg0 | GerrorIrqCfg1 | GerrorIrqCfg2 => (&mut self.gerror_message, IRQ_GERROR),
            _ => (&mut self.eventq_message, IRQ_EVENTQ),
        };
        if !features.msi() || self.irq_ctrl & enable != 0 {
            return;
        }
        match register {
            GerrorIrqCfg0 | EventqIrqCfg0 => {
                let address = part.merge(message.address, value);
                message.address = features.truncate(address & MESSAGE_ADDRESS);
            }
            GerrorIrqCfg1 | EventqIrqCfg1 => message.data = low(value),
            GerrorIrqCfg2 | EventqIrqCfg2 => message.attributes = low(value) & MESSAGE_ATTRIBUTES,
            _ => {}
        }
    }

    /// Acknowledges errors. Bits of errors that are not active do not change.
    pub(crate) fn write_gerrorn(&mut self, value: u32) {
        let active = self.active_errors();
        self.gerrorn = self.gerrorn & !active | value & active;
    }

    /// Makes an error active; whether it was not before.
    pub(crate) fn raise_error(&mut self, bit: u32) -> bool {
        let news = self.active_errors() & bit == 0;
        if news {
            self.gerror ^= bit;
        }
        news
    }

    pub(crate) fn read(&self, register: Register, features: &Features) -> u64 {
        match register {
            Register::Idr0 => features.idr0.into_bits().into(),
            Register::Idr1 => features.idr1.into_bits().into(),
            Register::Idr3 => features.idr3.into_bits().into(),
            Register::Idr5 => features.idr5.into_bits().into(),
            Register::Aidr => AIDR.into(),
            Register::Cr0 => self.cr0.into(),
            Register::Cr0Ack => self.cr0ack.into(),
            Register::Cr1 => self.cr1.into(),
            Register::Cr2 => self.cr2.into(),
            Register::Gbpa => self.gbpa.into(),
            // The acknowledgement is immediate.
            Register::IrqCtrl | Register::IrqCtrlAck => self.irq_ctrl.into(),
            Register::Gerror => self.gerror.into(),
            Register::Gerrorn => self.gerrorn.into(),
            Register::GerrorIrqCfg0 => self.gerror_message.address,
            Register::GerrorIrqCfg1 => self.gerror_message.data.into(),
            Register::GerrorIrqCfg2 => self.gerror_message.attributes.into(),
            Register::EventqIrqCfg0 => self.eventq_message.address,
            Register::EventqIrqCfg1 => self.eventq_message.data.into(),
            Register::EventqIrqCfg2 => self.eventq_message.attributes.into(),
            Register::StrtabBase => self.strtab_base,
            Register::StrtabBaseCfg => self.strtab_base_cfg.into(),
            Register::CmdqBase => self.cmdq_base,
            Register::CmdqProd => self.cmdq_prod.into(),
            Register::CmdqCons => self.cmdq_cons.into(),
            // The event queue's own.
            Register::EventqBase | Register::EventqProd | Register::EventqCons => 0,
        }
    }
}

/// What of an event queue's index is kept.
pub(crate) fn event_index(value: u32) -> u32 {
    value & (INDEX | OVERFLOW)
}

/// What of an event queue's base is kept.
pub(crate) fn queue_base(value: u64) -> u64 {
    value & QUEUE_BASE
}

/// The lower half.
pub(crate) fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
