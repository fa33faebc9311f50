//! The registers that `H_ENTER_NESTED` leaves as they are: they are the guest's while its CPU runs,
//! so they are put in place before and taken away after.

use core::arch::{asm, global_asm};

// Vector and scalar registers overlap: the 64 VSX registers are all of them. The assembler is told
// not to know these instructions, because no compiled code may use them; so they are words.
global_asm!(
    r#"
    .macro  facilities_on
    mfmsr   5
    lis     6, 0x0280               // MSR[VEC], MSR[VSX]
    ori     6, 6, 0x2000            // MSR[FP]
    or      6, 5, 6
    mtmsrd  6
    isync
    .endm

    // Access to the VSX register `number` at r3 + 16 * number.
    .macro  vsx operation, number
    li      4, 16 * \number
    .long   \operation | ((\number & 31) << 21) | (3 << 16) | (4 << 11) | (\number >> 5)
    .endm

    .text
    // r3 = where 64 registers of 16 bytes, FPSCR and VSCR (16 bytes each) go.
    .global save_vsx
save_vsx:
    facilities_on
    .set    number, 0
    .rept   64
    vsx     0x7c000798, number      // stxvd2x
    .set    number, number + 1
    .endr
    .long   0xfc00048e              // mffs   f0
    li      4, 1024
    .long   0x7c032798              // stxvd2x vs0,r3,r4
    .long   0x10000604              // mfvscr v0
    li      4, 1040
    .long   0x7c032799              // stxvd2x vs32,r3,r4
    mtmsrd  5
    isync
    blr

    .global load_vsx
load_vsx:
    facilities_on
    li      4, 1024
    .long   0x7c032698              // lxvd2x vs0,r3,r4
    .long   0xfffe058e              // mtfsf  255,f0,1,0
    li      4, 1040
    .long   0x7c032699              // lxvd2x vs32,r3,r4
    .long   0x10000644              // mtvscr v0
    .set    number, 0
    .rept   64
    vsx     0x7c000698, number      // lxvd2x
    .set    number, number + 1
    .endr
    mtmsrd  5
    isync
    blr
    .purgem facilities_on
    .purgem vsx
    "#
);

unsafe extern "C" {
    fn save_vsx(to: *mut Vsx);
    fn load_vsx(from: *const Vsx);
}

/// VSX registers, FPSCR and VSCR.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
struct Vsx([u128; 66]);

/// The registers of a guest CPU that are switched here.
#[derive(Clone, Debug)]
pub(crate) struct Unswitched {
    vsx: Vsx,
    sprs: [u64; SPRS],
    control: u64,
    /// The time base at which the decrementer becomes negative.
    pub(super) decrementer_expires: u64,
}

/// Facility status and control: all facilities.
const ALL_FACILITIES: u64 = u64::MAX;

macro_rules! sprs {
    ($count:ident: $($name:ident $number:literal)*) => {
        /// How many.
        const $count: usize = [$($number),*].len();

        /// Where one of them is in the list.
        const fn place(number: u32) -> usize {
            let numbers = [$($number),*];
            let mut at = 0;
            while numbers[at] != number {
                at += 1;
            }
            at
        }

        /// Reads them all.
        fn read() -> [u64; $count] {
            [$({
                let value: u64;
                // SAFETY: reading the register has no side effect.
                unsafe {
                    asm!(
                        concat!("mfspr {}, ", $number, " # ", stringify!($name)),
                        inout(reg) 0_u64 => value,
                        options(nomem, nostack),
                    );
                }
                value
            }),*]
        }

        /// Writes them all.
        fn write(values: &[u64; $count]) {
            let mut values = values.iter().copied();
            $(
                let value = values.next().unwrap_or(0);
                // SAFETY: none of these registers changes what the hypervisor's code does: they
                // are facilities that it does not use.
                unsafe {
                    asm!(
                        concat!("mtspr ", $number, ", {} # ", stringify!($name)),
                        in(reg) value,
                        options(nomem, nostack),
                    );
                }
            )*
        }
    };
}

// FSCR stands last: while the others are read and written, every facility is on. The second line but one
// is of POWER9, the last but one of POWER10: to privileged code the others' do nothing, and read as what
// the target register held, which is zero here.
sprs! { SPRS:
    dscr 17 dsisr 18 dar 19 amr 29 iamr 61 uamor 157 pspb 159 vrsave 256
    mmcr2 785 mmcra 786 pmc1 787 pmc2 788 pmc3 789 pmc4 790 pmc5 791 pmc6 792
    mmcr0 795 siar 796 sdar 797 mmcr1 798
    ebbhr 804 ebbrr 805 bescr 806 tar 815
    tidr 144 sier 784 psscr 823 wort 895
    mmcr3 754 sier2 752 sier3 753 hashkeyr 468
    fscr 153
}

/// The control register: read by one number, written by another. Of its bits only RUN can be written.
fn control() -> u64 {
    let value: u64;
    // SAFETY: reading the register has no side effect.
    unsafe { asm!("mfspr {}, 136", out(reg) value, options(nomem, nostack)) };
    value
}

fn set_control(value: u64) {
    // SAFETY: says whether the thread does something of use; nothing depends on it.
    unsafe { asm!("mtspr 152, {}", in(reg) value, options(nomem, nostack)) };
}

fn set_fscr(value: u64) {
    // SAFETY: decides over facilities that the hypervisor does not use.
    unsafe { asm!("mtspr 153, {}", "isync", in(reg) value, options(nostack)) };
}

fn fscr() -> u64 {
    let value: u64;
    // SAFETY: reading the register has no side effect.
    unsafe { asm!("mfspr {}, 153", out(reg) value, options(nomem, nostack)) };
    value
}

impl Default for Unswitched {
    fn default() -> Self {
        const COUNTERS_FROZEN: u64 = 1 << 31;
        let mut sprs = [0; SPRS];
        // Or counters would count what nobody has asked for.
        sprs[const { place(795) }] = COUNTERS_FROZEN;
        Self {
            vsx: Vsx([0; 66]),
            sprs,
            // RUN.
            control: 1,
            decrementer_expires: u64::MAX >> 9,
        }
    }
}

impl Unswitched {
    /// Puts the guest's values into the CPU.
    pub(super) fn load(&self) {
        // SAFETY: reads as many bytes as the type has; the registers are no compiled code's.
        unsafe { load_vsx(&raw const self.vsx) };
        set_fscr(ALL_FACILITIES);
        write(&self.sprs);
        set_control(self.control);
    }

    /// Takes the guest's values from the CPU.
    pub(super) fn save(&mut self) {
        // SAFETY: writes as many bytes as the type has.
        unsafe { save_vsx(&raw mut self.vsx) };
        let guest_fscr = fscr();
        set_fscr(ALL_FACILITIES);
        self.sprs = read();
        self.control = control();
        if let Some(last) = self.sprs.last_mut() {
            *last = guest_fscr;
        }
    }
}
