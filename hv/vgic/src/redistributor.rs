//! A redistributor's two register frames [IHI 0069 §12.10, §12.11].

use crate::{
    Affinity, Width,
    bits::{double, high, low, replace},
    distributor::{BitRegister, IIDR_VALUE, gather_edges, identification, spread_edges},
    interface::VcpuInterface,
    priority::PRIORITY_MASK,
};

/// The SGI frame follows the RD frame.
const SGI_FRAME: u32 = 0x1_0000;
const SGI_FRAME_LAST: u32 = 0x1_ffff;
const CTLR: u32 = 0x0000;
const IIDR: u32 = 0x0004;
const TYPER: u32 = 0x0008;
const WAKER: u32 = 0x0014;
const PROPBASER: u32 = 0x0070;
const PENDBASER: u32 = 0x0078;
/// `GICR_CTLR.EnableLPIs`.
const CTLR_ENABLE_LPIS: u32 = 1 << 0;
/// `GICR_CTLR.CES`: `EnableLPIs` can be cleared again.
const CTLR_CES: u32 = 1 << 1;
/// `GICR_WAKER.ProcessorSleep`.
const PROCESSOR_SLEEP: u32 = 1 << 1;
/// `GICR_WAKER.ChildrenAsleep`.
const CHILDREN_ASLEEP: u32 = 1 << 2;
/// `GICR_PROPBASER`: `OuterCache`, `Physical_Address`, `Shareability`, `InnerCache`, `IDbits`.
const PROPBASER_MASK: u64 = 0x070f_ffff_ffff_ff9f;
/// `GICR_PENDBASER`: `OuterCache`, `Physical_Address`, `Shareability`, `InnerCache`. `PTZ` reads
/// as zero.
const PENDBASER_MASK: u64 = 0x070f_ffff_ffff_0f80;
const IPRIORITYR: u32 = 0x400;
const IPRIORITYR_LAST: u32 = 0x41f;
const ICFGR0: u32 = 0xc00;
const ICFGR1: u32 = 0xc04;

/// What a redistributor says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) vcpu: u32,
    pub(crate) affinity: Affinity,
    pub(crate) is_last: bool,
    /// There is a source of LPIs.
    pub(crate) has_lpis: bool,
}

impl Identity {
    /// `GICR_TYPER`: affinity, processor number, `Last`, `PLPIS`; 16 PPIs.
    fn typer(self) -> u64 {
        let last = if self.is_last { 1 << 4 } else { 0 };
        let lpis = u32::from(self.has_lpis);
        double(
            self.affinity.bits(),
            (self.vcpu & 0xffff) << 8 | last | lpis,
        )
    }
}

/// What a write asks of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing changed that matters to list registers.
    Nothing,
    /// The vCPU's list registers want another look.
    Refill,
    /// `GICR_WAKER.ProcessorSleep` changed.
    Waker,
    /// `GICR_CTLR.EnableLPIs` changed.
    Lpis,
}

impl VcpuInterface {
    /// Reads the register at `offset` of the two frames.
    pub(crate) fn read_register(&self, identity: Identity, offset: u32, width: Width) -> u64 {
        if !width.is_aligned(offset) {
            return 0;
        }
        if let SGI_FRAME..=SGI_FRAME_LAST = offset {
            return self.read_sgi_frame(offset & 0xffff, width).into();
        }
        let wide = match offset & !7 {
            TYPER => identity.typer(),
            PROPBASER => self.propbaser,
            PENDBASER => self.pendbaser,
            _ => {
                return match (offset, width) {
                    (CTLR, Width::Word) if identity.has_lpis => {
                        u64::from(CTLR_CES | u32::from(self.lpis_enabled))
                    }
                    (IIDR, Width::Word) => IIDR_VALUE.into(),
                    (WAKER, Width::Word) if self.asleep => {
                        u64::from(PROCESSOR_SLEEP | CHILDREN_ASLEEP)
                    }
                    (0xffd0..=0xffff, Width::Word) => identification(offset).into(),
                    _ => 0,
                };
            }
        };
        match width {
            Width::Double => wide,
            Width::Word if offset & 4 == 0 => low(wide).into(),
            Width::Word => high(wide).into(),
            Width::Byte | Width::Half => 0,
        }
    }

    fn read_sgi_frame(&self, offset: u32, width: Width) -> u32 {
        match (offset, width) {
            (IPRIORITYR..=IPRIORITYR_LAST, Width::Byte | Width::Word) => {
                let mut value = [0; 4];
                let first = (offset & 0x1f) as usize;
                for (to, from) in value
                    .iter_mut()
                    .take(width.bytes().into())
                    .zip(self.priorities.iter().skip(first))
                {
                    *to = *from;
                }
                u32::from_le_bytes(value)
            }
            (ICFGR0, Width::Word) => spread_edges(self.bank.edge),
            (ICFGR1, Width::Word) => spread_edges(self.bank.edge >> 16),
            (0xffd0..=0xffff, Width::Word) => identification(offset),
            (_, Width::Word) => match BitRegister::at(offset) {
                Some((register, 0)) => register.read(&self.bank),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the register at `offset` of the two frames.
    pub(crate) fn write_register(
        &mut self,
        identity: Identity,
        offset: u32,
        width: Width,
        value: u64,
    ) -> Effect {
        if !width.is_aligned(offset) {
            return Effect::Nothing;
        }
        if let SGI_FRAME..=SGI_FRAME_LAST = offset {
            return self.write_sgi_frame(offset & 0xffff, width, low(value));
        }
        match (offset, width) {
            (CTLR, Width::Word) if identity.has_lpis => {
                let enabled = low(value) & CTLR_ENABLE_LPIS != 0;
                if enabled == self.lpis_enabled {
                    return Effect::Nothing;
                }
                self.lpis_enabled = enabled;
                return Effect::Lpis;
            }
            (WAKER, Width::Word) => {
                let asleep = low(value) & PROCESSOR_SLEEP != 0;
                if asleep == self.asleep {
                    return Effect::Nothing;
                }
                self.asleep = asleep;
                return Effect::Waker;
            }
            (_, Width::Word | Width::Double) => {
                let (register, mask) = match offset & !7 {
                    PROPBASER => (&mut self.propbaser, PROPBASER_MASK),
                    PENDBASER => (&mut self.pendbaser, PENDBASER_MASK),
                    _ => return Effect::Nothing,
                };
                let value = match width {
                    Width::Double => value,
                    _ if offset & 4 == 0 => double(high(*register), low(value)),
                    _ => double(low(value), low(*register)),
                };
                *register = value & mask;
            }
            _ => {}
        }
        Effect::Nothing
    }

    fn write_sgi_frame(&mut self, offset: u32, width: Width, value: u32) -> Effect {
        match (offset, width) {
            (IPRIORITYR..=IPRIORITYR_LAST, Width::Byte | Width::Word) => {
                let first = (offset & 0x1f) as usize;
                for (to, from) in self
                    .priorities
                    .iter_mut()
                    .skip(first)
                    .zip(value.to_le_bytes())
                    .take(width.bytes().into())
                {
                    *to = from & PRIORITY_MASK;
                }
                Effect::Refill
            }
            (ICFGR1, Width::Word) => {
                let edges = gather_edges(value) << 16;
                self.bank.edge = replace(self.bank.edge, self.configurable(), edges);
                Effect::Refill
            }
            (_, Width::Word) => match BitRegister::at(offset) {
                Some((BitRegister::SetActive, 0)) => {
                    self.set_active(value);
                    Effect::Refill
                }
                Some((register, 0)) => {
                    let touched = register.touched(&self.bank, value);
                    if touched == 0 {
                        return Effect::Nothing;
                    }
                    register.write(&mut self.bank, touched, value);
                    self.settle(touched);
                    Effect::Refill
                }
                _ => Effect::Nothing,
            },
            _ => Effect::Nothing,
        }
    }
}
