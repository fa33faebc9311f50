//! A vCPU's hardware breakpoints and watchpoints, and the locks over them: its own, switched with it.

use super::context::{read_register, write_register};

macro_rules! points {
    ($($index:literal: $bvr:literal $bcr:literal $wvr:literal $wcr:literal;)*) => {
        impl Debug {
            /// Takes the registers from the core.
            pub(crate) fn save(&mut self) {
                self.os_locked = read_register!("oslsr_el1") >> 1 & 1;
                self.double_locked = read_register!("osdlr_el1");
                $(
                    if $index < self.breakpoints {
                        self.break_values[$index] = read_register!($bvr);
                        self.break_controls[$index] = read_register!($bcr);
                    }
                    if $index < self.watchpoints {
                        self.watch_values[$index] = read_register!($wvr);
                        self.watch_controls[$index] = read_register!($wcr);
                    }
                )*
            }

            /// Puts the registers on the core.
            pub(crate) fn restore(&self) {
                write_register!("oslar_el1", self.os_locked);
                write_register!("osdlr_el1", self.double_locked);
                $(
                    if $index < self.breakpoints {
                        write_register!($bvr, self.break_values[$index]);
                        write_register!($bcr, self.break_controls[$index]);
                    }
                    if $index < self.watchpoints {
                        write_register!($wvr, self.watch_values[$index]);
                        write_register!($wcr, self.watch_controls[$index]);
                    }
                )*
            }
        }
    };
}

/// Breakpoints and watchpoints, and whether debug exceptions are locked out. [DDI 0487 D2.8, D2.10, H5.5, H5.6]
#[derive(Clone, Debug)]
pub(crate) struct Debug {
    breakpoints: usize,
    watchpoints: usize,
    os_locked: u64,
    double_locked: u64,
    break_values: [u64; 16],
    break_controls: [u64; 16],
    watch_values: [u64; 16],
    watch_controls: [u64; 16],
}

impl Debug {
    /// All off, as many as the CPU has, and locked, as a reset leaves them.
    pub(crate) fn new() -> Self {
        let dfr0 = read_register!("id_aa64dfr0_el1").to_le_bytes();
        Self {
            breakpoints: usize::from(dfr0[1] >> 4) + 1,
            watchpoints: usize::from(dfr0[2] >> 4) + 1,
            os_locked: 1,
            double_locked: 0,
            break_values: [0; 16],
            break_controls: [0; 16],
            watch_values: [0; 16],
            watch_controls: [0; 16],
        }
    }
}

points! {
    0: "dbgbvr0_el1" "dbgbcr0_el1" "dbgwvr0_el1" "dbgwcr0_el1";
    1: "dbgbvr1_el1" "dbgbcr1_el1" "dbgwvr1_el1" "dbgwcr1_el1";
    2: "dbgbvr2_el1" "dbgbcr2_el1" "dbgwvr2_el1" "dbgwcr2_el1";
    3: "dbgbvr3_el1" "dbgbcr3_el1" "dbgwvr3_el1" "dbgwcr3_el1";
    4: "dbgbvr4_el1" "dbgbcr4_el1" "dbgwvr4_el1" "dbgwcr4_el1";
    5: "dbgbvr5_el1" "dbgbcr5_el1" "dbgwvr5_el1" "dbgwcr5_el1";
    6: "dbgbvr6_el1" "dbgbcr6_el1" "dbgwvr6_el1" "dbgwcr6_el1";
    7: "dbgbvr7_el1" "dbgbcr7_el1" "dbgwvr7_el1" "dbgwcr7_el1";
    8: "dbgbvr8_el1" "dbgbcr8_el1" "dbgwvr8_el1" "dbgwcr8_el1";
    9: "dbgbvr9_el1" "dbgbcr9_el1" "dbgwvr9_el1" "dbgwcr9_el1";
    10: "dbgbvr10_el1" "dbgbcr10_el1" "dbgwvr10_el1" "dbgwcr10_el1";
    11: "dbgbvr11_el1" "dbgbcr11_el1" "dbgwvr11_el1" "dbgwcr11_el1";
    12: "dbgbvr12_el1" "dbgbcr12_el1" "dbgwvr12_el1" "dbgwcr12_el1";
    13: "dbgbvr13_el1" "dbgbcr13_el1" "dbgwvr13_el1" "dbgwcr13_el1";
    14: "dbgbvr14_el1" "dbgbcr14_el1" "dbgwvr14_el1" "dbgwcr14_el1";
    15: "dbgbvr15_el1" "dbgbcr15_el1" "dbgwvr15_el1" "dbgwcr15_el1";
}
