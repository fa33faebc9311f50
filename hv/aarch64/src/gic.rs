//! The physical GICv3: the distributor, this CPU's redistributor, and the CPU interface at EL2.
//!
//! The hypervisor splits the end of an interrupt (`EOImode` 1): it drops the priority at once, and
//! deactivates either itself or, for an interrupt handed to a guest by a list register, through the
//! guest's own end of interrupt.

use ::gic::{Distributor, Error, Redistributor, Trigger};
use hal::Mmio;
use machine::{GicV3, Interrupt};
use types::{Address, Pa, Span};

use crate::SystemCounter;
use crate::guest::{read_register, write_register};
use crate::memory::Registers;

/// The SGI that makes another CPU leave its guest and look around.
pub(crate) const KICK: u32 = 0;
/// Maintenance interrupt of the virtual CPU interface.
pub(crate) const MAINTENANCE: u32 = 25;
/// The hypervisor's own timer.
pub(crate) const HYP_TIMER: u32 = 26;
/// The guests' timer.
pub(crate) const VIRTUAL_TIMER: u32 = 27;
/// The guests' other timer.
pub(crate) const PHYSICAL_TIMER: u32 = 30;
/// The first INTID of a message.
pub(crate) const FIRST_LPI: u32 = ::gic::FIRST_LPI;
/// What `ICC_IAR1_EL1` says when nothing is pending.
pub(crate) const SPURIOUS: u32 = 1023;

static DISTRIBUTOR: hal::Mutex<Option<Distributor<Registers, SystemCounter>>> =
    hal::Mutex::new(None);

/// Starts the distributor: all SPIs off, group 1, affinity routing.
///
/// # Safety
/// `span` must be the distributor's registers, mapped as device memory, and this must be the only
/// call.
///
/// # Errors
/// [`Error::Register`].
pub(crate) unsafe fn start_distributor(span: Span<Pa>) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let registers = unsafe { Registers::new(span) };
    *DISTRIBUTOR.lock() = Some(Distributor::start(registers, SystemCounter)?);
    Ok(())
}

/// Enables an SPI and routes it to the CPU with this affinity; false, and a line says so, where that cannot be done.
pub(crate) fn enable_spi(interrupt: Interrupt, mpidr: u64) -> bool {
    let trigger = match interrupt.trigger.is_edge() {
        true => Trigger::Edge,
        false => Trigger::Level,
    };
    let enabled = with_distributor(interrupt.number, |gicd, intid| {
        gicd.listen(intid, trigger, mpidr)
    });
    if let Err(error) = &enabled {
        log::warn!(
            "gic: interrupt {} cannot be enabled: {error}",
            interrupt.number
        );
    }
    enabled.is_ok()
}

/// Routes an SPI to the CPU with this affinity.
pub(crate) fn route_spi(intid: u32, mpidr: u64) {
    // One that was not enabled comes to nobody.
    let _ = with_distributor(intid, |gicd, intid| gicd.route(intid, mpidr));
}

/// Turns an SPI off, whose trigger and routing stay.
pub(crate) fn disable_spi(intid: u32) {
    let _ = with_distributor(intid, |gicd, intid| gicd.set_enabled(intid, false));
}

/// Turns it on again.
pub(crate) fn allow_spi(intid: u32) {
    let _ = with_distributor(intid, |gicd, intid| gicd.set_enabled(intid, true));
}

fn with_distributor(
    intid: u32,
    change: impl FnOnce(&Distributor<Registers, SystemCounter>, u32) -> Result<(), Error>,
) -> Result<(), Error> {
    match DISTRIBUTOR.lock().as_ref() {
        Some(gicd) => change(gicd, intid),
        None => Err(Error::Interrupt(intid)),
    }
}

/// A CPU's redistributor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    at: Pa,
    lines: Redistributor<Registers>,
}

impl Frame {
    /// Its first 64 KiB: the registers that are not about private interrupts.
    pub(crate) fn registers(self) -> Registers {
        let span = Span::from_len(self.at, 0x1_0000).expect("a frame does not end below its start");
        // SAFETY: `start_redistributor` found the frame, which is mapped; from then on `lines`
        // uses the second 64 KiB only.
        unsafe { Registers::new(span) }
    }

    /// Where it is.
    pub(crate) fn pa(self) -> Pa {
        self.at
    }

    /// The number by which an ITS may name it: `GICR_TYPER.Processor_Number`.
    pub(crate) fn number(self) -> u16 {
        let [_, low, high, ..] = self.registers().read64(0x8).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Makes private interrupts active, as they were when the vCPU that has them left its core.
    pub(crate) fn set_active(self, intids: u32) {
        self.lines.set_active(intids);
    }
}

/// Starts the redistributor of the CPU with this affinity, which may be asleep. Without one, a line says why.
///
/// # Safety
/// The redistributor regions of `gic` must be mapped as device memory, and this must be the only
/// call for this CPU.
pub(crate) unsafe fn start_redistributor(gic: &GicV3, mpidr: u64) -> Option<Frame> {
    let enabled = [KICK, MAINTENANCE, HYP_TIMER, VIRTUAL_TIMER, PHYSICAL_TIMER];
    let enabled = enabled.iter().fold(0, |all, intid| all | 1 << intid);
    // SAFETY: the caller's promise.
    let Some(at) = (unsafe { find_redistributor(gic, mpidr) }) else {
        log::error!("gic: no redistributor is of the CPU with MPIDR {mpidr:#x}");
        return None;
    };
    let span = Span::from_len(at, 0x2_0000)?;
    // SAFETY: the caller promises that the regions are mapped, and that nobody else starts it.
    let registers = unsafe { Registers::new(span) };
    match Redistributor::start(registers, enabled, &SystemCounter) {
        Ok(lines) => Some(Frame { at, lines }),
        Err(error) => {
            log::error!("gic: the redistributor at {at}: {error}");
            None
        }
    }
}

/// # Safety
/// As [`start_redistributor`].
unsafe fn find_redistributor(gic: &GicV3, mpidr: u64) -> Option<Pa> {
    /// `GICR_TYPER`: affinity in 63:32, `Last` in bit 4, `VLPIS` (two more frames) in bit 1.
    const TYPER: usize = 0x8;
    const LAST: u64 = 1 << 4;
    const VLPIS: u64 = 1 << 1;
    let affinity = mpidr >> 32 << 24 | mpidr & 0xff_ffff;
    for region in &gic.redistributors {
        // SAFETY: the caller's promise; only identification registers are read.
        let registers = unsafe { Registers::new(*region) };
        let bytes = region.len().unwrap_or(0);
        let mut offset = 0;
        while offset + 0x2_0000 <= bytes {
            let at = usize::try_from(offset).ok()?;
            let typer = registers.read64(at + TYPER);
            if typer >> 32 == affinity {
                return region.start().checked_add(offset);
            }
            if typer & LAST != 0 {
                break;
            }
            offset += match gic.redistributor_stride {
                Some(stride) if stride != 0 => stride,
                _ if typer & VLPIS != 0 => 0x4_0000,
                _ => 0x2_0000,
            };
        }
    }
    None
}

/// Whether the CPU interface is system registers.
pub(crate) fn has_registers() -> bool {
    read_register!("id_aa64pfr0_el1") >> 24 & 0xf != 0
}

/// Starts this CPU's interface: from now on an interrupt ends its WFI.
pub(crate) fn start_cpu_interface() {
    // System registers on, bypasses off; whether EL1 has them is not for a guest to change. [IHI 0069 §12.2.28]
    write_register!("icc_sre_el2", 7);
    isb();
    write_register!("icc_sre_el1", 7);
    isb();
    write_register!("icc_pmr_el1", 0xff);
    write_register!("icc_bpr1_el1", 0);
    // EOImode: priority drop and deactivation are separate.
    write_register!("icc_ctlr_el1", read_register!("icc_ctlr_el1") | 1 << 1);
    write_register!("icc_igrpen1_el1", 1);
    isb();
}

fn isb() {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// Takes the pending interrupt of the highest priority, or [`SPURIOUS`].
pub(crate) fn acknowledge() -> u32 {
    let intid = read_register!("icc_iar1_el1") & 0xff_ffff;
    u32::try_from(intid).unwrap_or(SPURIOUS)
}

/// Lets interrupts of the same priority come again. The interrupt stays active.
pub(crate) fn drop_priority(intid: u32) {
    write_register!("icc_eoir1_el1", intid.into());
}

/// Lets the interrupt itself come again.
pub(crate) fn deactivate(intid: u32) {
    write_register!("icc_dir_el1", intid.into());
}

/// Kicks the CPU with this affinity.
pub(crate) fn kick(mpidr: u64) {
    let aff = |n: u64| mpidr >> (8 * n) & 0xff;
    let aff3 = mpidr >> 32 & 0xff;
    // Range selector: targets are in groups of 16 of affinity 0.
    let value = aff3 << 48
        | (aff(0) >> 4) << 44
        | aff(2) << 32
        | u64::from(KICK) << 24
        | aff(1) << 16
        | 1 << (aff(0) & 0xf);
    // What the other CPU is to see must be there before it looks.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    write_register!("icc_sgi1r_el1", value);
    isb();
}
