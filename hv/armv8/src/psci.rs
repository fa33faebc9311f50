//! PSCI as a VM's firmware interface. [DEN 0022 §5; DEN 0028 for the SMCCC calls]

use alloc::vec::Vec;

/// What is to happen after a call. `x0` values are already in the shape the caller's register
/// takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call is answered with this value in x0.
    Return(u64),
    /// Another vCPU starts, and the caller gets 0.
    Start(Start),
    /// The caller's vCPU is off. It does not return.
    Off,
    /// The caller waits for an interrupt, and then gets 0.
    Suspend,
    /// The VM is to be turned off.
    SystemOff,
    /// The VM is to be restarted.
    SystemReset,
}

/// A vCPU that was off and is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which vCPU.
    pub vcpu: usize,
    /// Where: a guest physical address.
    pub entry: u64,
    /// Its x0.
    pub context: u64,
}

/// Whether a vCPU is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Running, or waiting for an interrupt.
    On,
    /// Off, and can be started.
    Off,
}

/// The power state of a VM's vCPUs.
#[derive(Clone, Debug)]
pub struct Psci {
    cpus: Vec<(u64, Power)>,
}

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const INVALID_ADDRESS: i64 = -9;

/// Version 1.1: major in 31:16, minor in 15:0.
const PSCI_1_1: u64 = 0x1_0001;
/// Version 1.1 of the calling convention.
const SMCCC_1_1: u64 = 0x1_0001;
/// The migration type "not needed": the VM has no trusted OS.
const NO_TRUSTED_OS: u64 = 2;

const fn error(code: i64) -> Action {
    Action::Return(code.cast_unsigned())
}

impl Psci {
    /// vCPUs with these affinities (the `Aff` fields of `MPIDR_EL1`), of which the first is on.
    #[must_use]
    pub fn new(affinities: &[u64]) -> Self {
        let power = |index| if index == 0 { Power::On } else { Power::Off };
        let cpus = affinities
            .iter()
            .enumerate()
            .map(|(i, mpidr)| (*mpidr, power(i)))
            .collect();
        Self { cpus }
    }

    /// The state of a vCPU; `Off` for one that does not exist.
    #[must_use]
    pub fn power(&self, vcpu: usize) -> Power {
        self.cpus.get(vcpu).map_or(Power::Off, |(_, power)| *power)
    }

    /// Answers a call of `vcpu` with function identifier `function` (w0) and x1 to x3.
    /// `is_memory` tells whether a guest physical address is memory that can be entered.
    ///
    /// `None`: the identifier is not of PSCI nor of the calling convention; the caller answers
    /// "unknown function" (-1) or asks somebody else.
    pub fn call(
        &mut self,
        vcpu: usize,
        function: u32,
        [x1, x2, x3]: [u64; 3],
        is_memory: impl Fn(u64) -> bool,
    ) -> Option<Action> {
        // 32-bit calls pass 32-bit arguments. [DEN 0028 §3.1]
        let arg = |x: u64| {
            if function >> 30 & 1 == 1 {
                x
            } else {
                x & 0xffff_ffff
            }
        };
        let action = match function {
            0x8400_0000 => Action::Return(PSCI_1_1),
            0x8400_0001 | 0xc400_0001 => Action::Suspend,
            0x8400_0002 => self.off(vcpu),
            0x8400_0003 | 0xc400_0003 => self.on(arg(x1), arg(x2), arg(x3), is_memory),
            0x8400_0004 | 0xc400_0004 => self.affinity_info(arg(x1), arg(x2)),
            0x8400_0006 => Action::Return(NO_TRUSTED_OS),
            0x8400_0008 => Action::SystemOff,
            0x8400_0009 => Action::SystemReset,
            0x8400_000a => features(arg(x1)),
            // SYSTEM_RESET2: type 0 is a warm reset; vendor types (bit 31) are not known.
            0x8400_0012 | 0xc400_0012 => match arg(x1) & 0xffff_ffff {
                0 => Action::SystemReset,
                _ => error(INVALID_PARAMETERS),
            },
            0x8000_0000 => Action::Return(SMCCC_1_1),
            // SMCCC_ARCH_FEATURES: none beyond the mandatory two.
            0x8000_0001 => match arg(x1) & 0xffff_ffff {
                0x8000_0000 | 0x8000_0001 => Action::Return(0),
                _ => error(NOT_SUPPORTED),
            },
            0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => error(NOT_SUPPORTED),
            _ => return None,
        };
        Some(action)
    }

    fn off(&mut self, vcpu: usize) -> Action {
        if let Some((_, power)) = self.cpus.get_mut(vcpu) {
            *power = Power::Off;
        }
        Action::Off
    }

    fn on(
        &mut self,
        mpidr: u64,
        entry: u64,
        context: u64,
        is_memory: impl Fn(u64) -> bool,
    ) -> Action {
        let target = self
            .cpus
            .iter_mut()
            .enumerate()
            .find(|(_, (id, _))| *id == mpidr);
        let Some((vcpu, (_, power))) = target else {
            return error(INVALID_PARAMETERS);
        };
        if *power == Power::On {
            return error(ALREADY_ON);
        }
        if entry & 3 != 0 || !is_memory(entry) {
            return error(INVALID_ADDRESS);
        }
        *power = Power::On;
        Action::Start(Start {
            vcpu,
            entry,
            context,
        })
    }

    /// 0: a vCPU below the affinity level is on; 1: all are off.
    fn affinity_info(&self, mpidr: u64, level: u64) -> Action {
        let mask: u64 = match level {
            0 => 0xff_00ff_ffff,
            1 => 0xff_00ff_ff00,
            2 => 0xff_00ff_0000,
            3 => 0xff_0000_0000,
            _ => return error(INVALID_PARAMETERS),
        };
        let mut there = self
            .cpus
            .iter()
            .filter(|(id, _)| id & mask == mpidr & mask)
            .peekable();
        if there.peek().is_none() {
            return error(INVALID_PARAMETERS);
        }
        Action::Return(u64::from(there.all(|(_, power)| *power == Power::Off)))
    }
}

/// Which calls exist: 0, or -1.
fn features(function: u64) -> Action {
    match function & 0xffff_ffff {
        0x8400_0000..=0x8400_0004
        | 0x8400_0006
        | 0x8400_0008..=0x8400_000a
        | 0x8400_0012
        | 0x8000_0000
        | 0xc400_0001
        | 0xc400_0003
        | 0xc400_0004
        | 0xc400_0012 => Action::Return(0),
        _ => error(NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{Action, Power, Psci, Start};

    const RAM: u64 = 0x4000_0000;

    fn vm() -> Psci {
        Psci::new(&[0, 1, 0x100])
    }

    fn call(psci: &mut Psci, vcpu: usize, function: u32, args: [u64; 3]) -> Option<Action> {
        psci.call(vcpu, function, args, |ipa| {
            (RAM..RAM + 0x1000).contains(&ipa)
        })
    }

    fn err(code: i64) -> Option<Action> {
        Some(Action::Return(code as u64))
    }

    #[test]
    fn cpu_on_starts_a_cpu_once() {
        let mut psci = vm();
        let start = Start {
            vcpu: 2,
            entry: RAM,
            context: 7,
        };
        assert_eq!(
            call(&mut psci, 0, 0xc400_0003, [0x100, RAM, 7]),
            Some(Action::Start(start))
        );
        assert_eq!(psci.power(2), Power::On);
        assert_eq!(call(&mut psci, 0, 0xc400_0003, [0x100, RAM, 7]), err(-4));
        assert_eq!(call(&mut psci, 2, 0x8400_0002, [0; 3]), Some(Action::Off));
        assert_eq!(
            call(&mut psci, 0, 0xc400_0003, [0x100, RAM, 7]),
            Some(Action::Start(start))
        );
    }

    #[test]
    fn cpu_on_refuses_unknown_cpus_and_addresses_that_are_not_memory() {
        let mut psci = vm();
        assert_eq!(call(&mut psci, 0, 0xc400_0003, [2, RAM, 0]), err(-2));
        assert_eq!(
            call(&mut psci, 0, 0xc400_0003, [1, 0x0800_0000, 0]),
            err(-9)
        );
        assert_eq!(call(&mut psci, 0, 0xc400_0003, [1, RAM + 2, 0]), err(-9));
        assert_eq!(psci.power(1), Power::Off, "a refused call changes nothing");
    }

    #[test]
    fn a_32_bit_call_uses_the_low_halves() {
        let high = 0xdead_0000_0000_0000;
        let action = call(&mut vm(), 0, 0x8400_0003, [high | 1, high | RAM, high | 9]);
        assert_eq!(
            action,
            Some(Action::Start(Start {
                vcpu: 1,
                entry: RAM,
                context: 9
            }))
        );
    }

    #[test]
    fn affinity_info_sees_groups_of_cpus() {
        let mut psci = vm();
        assert_eq!(
            call(&mut psci, 0, 0xc400_0004, [0, 0, 0]),
            Some(Action::Return(0))
        );
        assert_eq!(
            call(&mut psci, 0, 0xc400_0004, [1, 0, 0]),
            Some(Action::Return(1))
        );
        assert_eq!(
            call(&mut psci, 0, 0xc400_0004, [0, 1, 0]),
            Some(Action::Return(0))
        );
        assert_eq!(
            call(&mut psci, 0, 0xc400_0004, [0x100, 1, 0]),
            Some(Action::Return(1))
        );
        assert_eq!(call(&mut psci, 0, 0xc400_0004, [0x55, 0, 0]), err(-2));
        assert_eq!(call(&mut psci, 0, 0xc400_0004, [0, 4, 0]), err(-2));
    }

    #[test]
    fn features_names_exactly_what_is_answered() {
        for function in (0x8400_0000..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
            let listed = call(&mut vm(), 0, 0x8400_000a, [function.into(), 0, 0]);
            let args = [0x8400_0000, 0, 0];
            let answered = call(&mut vm(), 0, function, args) != err(-1);
            assert_eq!(listed == Some(Action::Return(0)), answered, "{function:#x}");
        }
    }

    #[test]
    fn reset2_knows_only_the_architectural_type() {
        assert_eq!(
            call(&mut vm(), 0, 0xc400_0012, [0; 3]),
            Some(Action::SystemReset)
        );
        assert_eq!(
            call(&mut vm(), 0, 0xc400_0012, [0x8000_0000, 0, 0]),
            err(-2)
        );
    }

    #[test]
    fn somebody_elses_calls_are_not_answered() {
        for function in [0, 0x8600_0000, 0xc600_0000, 0x8400_0020, 0xffff_ffff] {
            assert_eq!(call(&mut vm(), 0, function, [0; 3]), None);
        }
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_on_and_off_in_step_with_the_actions(
            calls in prop::collection::vec((0_usize..4, any::<u32>(), any::<[u64; 3]>(), any::<bool>()), 0..50)
        ) {
            let mut psci = vm();
            let mut on = [true, false, false];
            for (vcpu, function, mut args, likely) in calls {
                let function = if likely { 0x8400_0000 | function & 0x4000_001f } else { function };
                if likely {
                    args = [args[0] & 0x101, RAM | args[1] & 0xffc, args[2]];
                }
                match call(&mut psci, vcpu, function, args) {
                    Some(Action::Start(start)) => {
                        assert!(!on[start.vcpu]);
                        on[start.vcpu] = true;
                    }
                    Some(Action::Off) if vcpu < 3 => on[vcpu] = false,
                    _ => {}
                }
                for (i, on) in on.iter().enumerate() {
                    assert_eq!(psci.power(i) == Power::On, *on);
                }
            }
        }
    }
}
