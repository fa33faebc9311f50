//! What this CPU can do, as far as a hypervisor cares.

use core::fmt;

use aarch64_cpu::registers::{
    CNTFRQ_EL0, ID_AA64DFR0_EL1, ID_AA64ISAR1_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1, ID_AA64PFR0_EL1, MIDR_EL1, Readable,
};

/// The identification registers of one CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    midr: u64,
    pfr0: u64,
    dfr0: u64,
    isar1: u64,
    mmfr0: u64,
    mmfr1: u64,
    mmfr2: u64,
    counter_hz: u64,
}

/// A four-bit field of an identification register.
const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

impl Features {
    /// Those of the CPU that asks.
    pub(crate) fn read() -> Self {
        Self {
            midr: MIDR_EL1.get(),
            pfr0: ID_AA64PFR0_EL1.get(),
            dfr0: ID_AA64DFR0_EL1.get(),
            isar1: ID_AA64ISAR1_EL1.get(),
            mmfr0: ID_AA64MMFR0_EL1.get(),
            mmfr1: ID_AA64MMFR1_EL1.get(),
            mmfr2: ID_AA64MMFR2_EL1.get(),
            counter_hz: CNTFRQ_EL0.get(),
        }
    }

    /// Bits of a physical address.
    pub(crate) fn pa_bits(&self) -> u8 {
        match field(self.mmfr0, 0) {
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

    /// Whether `ICC_*` and `ICH_*` are system registers.
    pub(crate) fn gic_registers(&self) -> bool {
        field(self.pfr0, 24) != 0
    }

    #[optimize(size)]
    fn name(&self) -> &'static str {
        match (self.midr >> 24 & 0xff, self.midr >> 4 & 0xfff) {
            (0x41, 0xd03) => "Cortex-A53",
            (0x41, 0xd04) => "Cortex-A35",
            (0x41, 0xd05) => "Cortex-A55",
            (0x41, 0xd07) => "Cortex-A57",
            (0x41, 0xd08) => "Cortex-A72",
            (0x41, 0xd0b) => "Cortex-A76",
            (0x41, 0xd0c) => "Neoverse-N1",
            (0x41, 0xd40) => "Neoverse-V1",
            (0x41, 0xd47) => "Cortex-A710",
            (0x41, 0xd49) => "Neoverse-N2",
            (0, 0x51) => "QEMU max",
            _ => "unknown part",
        }
    }
}

/// One line.
impl fmt::Display for Features {
    #[optimize(size)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (midr {:#010x}), pa {} bits, vmid {} bits, counter {} Hz;",
            self.name(),
            self.midr,
            self.pa_bits(),
            if field(self.mmfr1, 4) == 2 { 16 } else { 8 },
            self.counter_hz
        )?;
        let pmu = field(self.dfr0, 8);
        let features = [
            (field(self.mmfr1, 8) != 0, " vhe"),
            (field(self.mmfr2, 40) != 0, " s2fwb"),
            (field(self.mmfr2, 24) != 0, " nv"),
            (field(self.mmfr1, 28) != 0, " xnx"),
            (field(self.mmfr1, 0) != 0, " hafdbs"),
            (field(self.mmfr0, 56) != 0, " fgt"),
            (field(self.mmfr0, 60) != 0, " ecv"),
            (field(self.pfr0, 32) != 0, " sve"),
            (field(self.pfr0, 28) != 0, " ras"),
            (self.isar1 & 0xff00_0ff0 != 0, " pauth"),
            (self.gic_registers(), " gic-sysregs"),
            (pmu != 0 && pmu != 0xf, " pmu"),
        ];
        features
            .iter()
            .filter(|(has, _)| *has)
            .try_for_each(|(_, name)| f.write_str(name))
    }
}
