//! The virtual CPU interface of this core: list registers and what goes with them.

use vgic::{CpuContext, ListRegister, LrImage};

use super::context::{read_register, write_register};

/// What `ICH_VTR_EL2` says of the virtual CPU interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    /// List registers, 1 to 16.
    pub(crate) list_registers: usize,
    /// SGIs may name a non-zero affinity 3.
    pub(crate) a3v: bool,
}

impl Interface {
    /// That of the CPU that asks.
    pub(crate) fn read() -> Self {
        let vtr = read_register!("ich_vtr_el2").to_le_bytes();
        Self {
            list_registers: usize::from(vtr[0] & 0x1f) + 1,
            a3v: vtr[2] & 1 << 5 != 0,
        }
    }
}

macro_rules! list_registers {
    ($($index:literal $name:literal;)*) => {
        fn read_list_register(index: usize) -> u64 {
            match index {
                $($index => read_register!($name),)*
                _ => 0,
            }
        }

        fn write_list_register(index: usize, value: u64) {
            match index {
                $($index => write_register!($name, value),)*
                _ => {}
            }
        }
    };
}

list_registers! {
    0 "ich_lr0_el2"; 1 "ich_lr1_el2"; 2 "ich_lr2_el2"; 3 "ich_lr3_el2";
    4 "ich_lr4_el2"; 5 "ich_lr5_el2"; 6 "ich_lr6_el2"; 7 "ich_lr7_el2";
    8 "ich_lr8_el2"; 9 "ich_lr9_el2"; 10 "ich_lr10_el2"; 11 "ich_lr11_el2";
    12 "ich_lr12_el2"; 13 "ich_lr13_el2"; 14 "ich_lr14_el2"; 15 "ich_lr15_el2";
}

/// Reads the list registers in use back into the image.
pub(crate) fn read_back(image: &mut LrImage) {
    for (index, register) in image.live_mut().iter_mut().enumerate() {
        *register = ListRegister::from_bits(read_list_register(index));
    }
    if image.counts_eois() {
        image.set_hcr(read_register!("ich_hcr_el2"));
    }
}

/// The list registers whose interrupt the guest has ended, or that were never used: a bit for each.
pub(crate) fn ended() -> u32 {
    low(read_register!("ich_elrsr_el2"))
}

/// Writes one list register: nearly always one of the first two.
#[inline]
pub(crate) fn write_one(index: usize, register: ListRegister) {
    match index {
        0 => write_register!("ich_lr0_el2", register.bits()),
        1 => write_register!("ich_lr1_el2", register.bits()),
        _ => write_list_register(index, register.bits()),
    }
}

/// Writes what a flush changed.
pub(crate) fn write_out(image: &LrImage) {
    for (index, register) in image.to_write().iter().enumerate() {
        write_list_register(index, register.bits());
    }
    write_register!("ich_hcr_el2", image.hcr());
}

/// Takes the rest of the interface from the core and turns it off.
pub(crate) fn save(context: &mut CpuContext) {
    context.vmcr = read_register!("ich_vmcr_el2");
    context.ap0r[0] = low(read_register!("ich_ap0r0_el2"));
    context.ap1r[0] = low(read_register!("ich_ap1r0_el2"));
    write_register!("ich_hcr_el2", 0);
}

/// Puts the rest of the interface on the core.
pub(crate) fn restore(context: &CpuContext) {
    write_register!("ich_vmcr_el2", context.vmcr);
    write_register!("ich_ap0r0_el2", u64::from(context.ap0r[0]));
    write_register!("ich_ap1r0_el2", u64::from(context.ap1r[0]));
}

/// The state of the interface as it is on the core.
pub(crate) fn current() -> CpuContext {
    let mut context = CpuContext {
        vmcr: read_register!("ich_vmcr_el2"),
        ..CpuContext::default()
    };
    context.ap0r[0] = low(read_register!("ich_ap0r0_el2"));
    context.ap1r[0] = low(read_register!("ich_ap1r0_el2"));
    context
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the registers have 32 bits"
)]
const fn low(value: u64) -> u32 {
    value as u32
}

/// Empties all list registers: the next vCPU must not find this one's.
pub(crate) fn clear_all() {
    for index in 0..Interface::read().list_registers {
        write_list_register(index, 0);
    }
}
