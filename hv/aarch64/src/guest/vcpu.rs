//! A vCPU's state, on and off a core.

use alloc::vec::Vec;

use aarch64_cpu::asm::barrier;
use vgic::{CpuContext, LrImage};

use super::context::{Keys, SystemContext, VectorContext, read_register, write_register};
use super::debug::Debug;
use super::enter::GuestRegisters;
use super::irq;
use super::vm::Vm;

/// `SCTLR_EL1` at reset: RES1 bits, MMU and caches off, little-endian. [DDI 0487 D19.2.135]
const SCTLR_RESET: u64 = 0x30d0_0800;
/// EL1 on its own stack, everything masked.
const PSTATE_RESET: u64 = 0x3c5;

/// `HCR_EL2` of a guest. [DDI 0487 D19.2.48]
const HCR: u64 = 1 // VM: stage 2
    | 1 << 1 // SWIO: set/way invalidation cleans too
    | 1 << 3 // FMO
    | 1 << 4 // IMO: interrupts are ours, the guest's are virtual
    | 1 << 5 // AMO
    | 1 << 9 // FB: TLB maintenance reaches all CPUs
    | 1 << 10 // BSU: barriers reach inner shareable
    | 1 << 18 // TID3: identification registers trap
    | 1 << 19 // TSC: SMC traps
    | 1 << 20 // TIDCP: implementation-defined registers trap
    | 1 << 21 // TACR
    | 1 << 22 // TSW: set/way maintenance traps
    | 1 << 31 // RW: EL1 is 64-bit
    | 1 << 35 // TLOR
    | 1 << 36 // TERR
    | 1 << 40 // APK: pointer authentication keys do not trap
    | 1 << 41; // API: nor do its instructions

/// `HCR_EL2.TWI`: WFI traps.
pub(crate) const TRAP_WFI: u64 = 1 << 13;

/// `CPTR_EL2`: floating point is the guest's; SVE, SME, trace and activity monitors trap.
/// [DDI 0487 D19.2.32]
const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;

/// `MDCR_EL2`: performance monitors trap; breakpoints are the guest's own. [DDI 0487 D19.3.18]
const MDCR: u64 = 1 << 6 | 1 << 5;

/// `CNTHCTL_EL2`: EL1 may use the physical counter and timer.
const CNTHCTL: u64 = 3;

/// Where a vCPU's system registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// On the core that asks.
    OnThisCore,
    /// In memory.
    OffCore,
}

/// A vCPU.
pub(crate) struct Vcpu {
    pub(crate) registers: GuestRegisters,
    system: SystemContext,
    keys: Keys,
    vectors: VectorContext,
    debug: Debug,
    interface: CpuContext,
    pub(crate) image: LrImage,
    /// `CNTP_CTL_EL0`, `CNTP_CVAL_EL0`.
    physical_timer: (u64, u64),
    /// `MPIDR_EL1` as the guest sees it.
    mpidr: u64,
}

impl Vcpu {
    /// A vCPU that is off.
    pub(crate) fn new(mpidr: u64) -> Self {
        Self {
            registers: GuestRegisters::default(),
            system: SystemContext::default(),
            keys: Keys::default(),
            vectors: VectorContext::default(),
            debug: Debug::new(),
            interface: CpuContext::default(),
            image: LrImage::new(),
            physical_timer: (0, 0),
            mpidr: mpidr | 1 << 31,
        }
    }

    /// As it comes on: at `pc`, with `x0`.
    pub(crate) fn reset(&mut self, pc: u64, x0: u64) {
        self.registers = GuestRegisters {
            pc,
            pstate: PSTATE_RESET,
            ..GuestRegisters::default()
        };
        self.registers.x[0] = x0;
        self.system = SystemContext {
            sctlr: SCTLR_RESET,
            ..SystemContext::default()
        };
        self.keys = Keys::default();
        self.vectors = VectorContext::default();
        self.debug = Debug::new();
        self.interface = CpuContext::default();
        self.image = LrImage::new();
        self.physical_timer = (0, 0);
    }

    /// Puts the vCPU on this core. `more` is added to `HCR_EL2`.
    pub(crate) fn load(&mut self, vm: &Vm, more: u64) {
        write_register!("vttbr_el2", vm.vttbr());
        write_register!("vtcr_el2", vm.vtcr());
        write_register!("cntvoff_el2", vm.counter_offset());
        write_register!("cnthctl_el2", CNTHCTL);
        write_register!("vmpidr_el2", self.mpidr);
        write_register!("vpidr_el2", read_register!("midr_el1"));
        write_register!("cptr_el2", CPTR);
        write_register!("mdcr_el2", MDCR | read_register!("mdcr_el2") & 0x1f);
        write_register!("hstr_el2", 0);
        self.system.restore();
        if has_pointer_authentication() {
            self.keys.restore();
        }
        self.vectors.restore();
        self.debug.restore();
        write_register!("cntp_cval_el0", self.physical_timer.1);
        write_register!("cntp_ctl_el0", self.physical_timer.0);
        irq::restore(&self.interface);
        write_register!("hcr_el2", HCR | more);
        barrier::isb(barrier::SY);
    }

    /// Takes the vCPU off this core; its interrupts are synced already.
    pub(crate) fn put(&mut self) {
        irq::save(&mut self.interface);
        self.system.save();
        self.physical_timer = (
            read_register!("cntp_ctl_el0"),
            read_register!("cntp_cval_el0"),
        );
        // Off the core the guest's timers are watched by the hypervisor.
        write_register!("cntv_ctl_el0", 0);
        write_register!("cntp_ctl_el0", 0);
        if has_pointer_authentication() {
            self.keys.save();
        }
        self.vectors.save();
        self.debug.save();
        write_register!("hcr_el2", 1 << 31);
        barrier::isb(barrier::SY);
    }

    /// Its registers by name. `here`: it is on this core, which has the system registers.
    pub(crate) fn view(&self, here: Whereabouts) -> Vec<(&'static str, u64)> {
        const X: [&str; 31] = [
            "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
            "x14", "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25",
            "x26", "x27", "x28", "x29", "x30",
        ];
        let mut taken = SystemContext::default();
        let system = match here {
            Whereabouts::OnThisCore => {
                taken.save();
                &taken
            }
            Whereabouts::OffCore => &self.system,
        };
        let mut view: Vec<_> = X.into_iter().zip(self.registers.x).collect();
        view.extend([
            ("pc", self.registers.pc),
            ("pstate", self.registers.pstate),
            ("sp_el0", system.sp_el0),
            ("sp_el1", system.sp_el1),
            ("elr_el1", system.elr),
            ("spsr_el1", system.spsr),
            ("esr_el1", system.esr),
            ("far_el1", system.far),
            ("vbar_el1", system.vbar),
            ("sctlr_el1", system.sctlr),
            ("tcr_el1", system.tcr),
            ("ttbr0_el1", system.ttbr0),
            ("ttbr1_el1", system.ttbr1),
        ]);
        view
    }

    /// When, on the physical counter, a timer of the vCPU that is off its core will fire.
    pub(crate) fn deadline(&self, counter_offset: u64) -> Option<u64> {
        // Enabled and not masked.
        let due = |(control, value): (u64, u64)| (control & 3 == 1).then_some(value);
        let virtual_timer = due((self.system.cntv_ctl, self.system.cntv_cval))
            .map(|value| value.saturating_add(counter_offset));
        [virtual_timer, due(self.physical_timer)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether its interface would signal an interrupt, off the core.
    pub(crate) fn interface(&self) -> &CpuContext {
        &self.interface
    }
}

fn has_pointer_authentication() -> bool {
    read_register!("id_aa64isar1_el1") & 0xff00_0ff0 != 0
        || read_register!("s3_0_c0_c6_2") >> 8 & 0xff != 0
}

/// Turns off what a reset leaves unknown and later extensions trap by: fine-grained traps, extended
/// hypervisor configuration. Once on each core.
pub(crate) fn prepare_core() {
    let mmfr0 = read_register!("id_aa64mmfr0_el1");
    let mmfr1 = read_register!("id_aa64mmfr1_el1");
    if mmfr0 >> 56 & 0xf != 0 {
        write_register!("s3_4_c1_c1_4", 0); // HFGRTR_EL2
        write_register!("s3_4_c1_c1_5", 0); // HFGWTR_EL2
        write_register!("s3_4_c1_c1_6", 0); // HFGITR_EL2
        write_register!("s3_4_c3_c1_4", 0); // HDFGRTR_EL2
        write_register!("s3_4_c3_c1_5", 0); // HDFGWTR_EL2
    }
    if mmfr1 >> 40 & 0xf != 0 {
        write_register!("s3_4_c1_c2_2", 0); // HCRX_EL2
    }
    barrier::isb(barrier::SY);
}

/// Drops what this core has cached of the loaded VM's translations and instructions, when another of
/// its vCPUs was on the core before. They share the VMID, but each believes that its ASIDs and local
/// invalidations are its own.
pub(crate) fn forget_translations() {
    // SAFETY: what is dropped is walked and fetched anew.
    unsafe {
        core::arch::asm!(
            "tlbi vmalle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack)
        );
    }
}
