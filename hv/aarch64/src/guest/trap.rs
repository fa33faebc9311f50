//! What a guest's synchronous exits ask for.

use armv8::{Action, Cause, Exception};
use types::Ipa;
use vdev::mmio::{self, Access, Base, Direction, Extension, Register};
use vgic::Kicks;
use vm::{Ending, ExitCause};

use super::context::{read_register, write_register};
use super::devices;
use super::run::Residency;
use super::sysreg::{self, Effect};

/// What follows an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The guest goes on.
    Resume,
    /// The vCPU waits for an interrupt.
    Wait,
    /// The vCPU is off, or its VM is ending.
    Leave,
}

const HVC64: u64 = 0x16;
const SMC64: u64 = 0x17;
const WFX: u64 = 0x01;
const SYSTEM_REGISTER: u64 = 0x18;
const INSTRUCTION_ABORT: u64 = 0x20;
const DATA_ABORT: u64 = 0x24;

/// What SMCCC calls answer when nobody knows them.
const UNKNOWN_CALL: u64 = u64::MAX;

impl Residency<'_> {
    /// Handles a synchronous exit.
    pub(crate) fn synchronous(&mut self) -> Next {
        let esr = read_register!("esr_el2");
        match esr >> 26 & 0x3f {
            HVC64 | SMC64 => self.count(ExitCause::Call),
            SYSTEM_REGISTER => self.count(ExitCause::SystemRegister),
            WFX => self.count(ExitCause::Wait),
            // By what is at the address.
            DATA_ABORT => {}
            _ => self.count(ExitCause::Abort),
        }
        match esr >> 26 & 0x3f {
            HVC64 => self.call(),
            SMC64 => {
                self.advance();
                self.call()
            }
            DATA_ABORT => self.data_abort(esr),
            SYSTEM_REGISTER => self.system_register(esr),
            WFX => {
                self.advance();
                // WFE is a hint; only WFI waits.
                if esr & 3 == 0 {
                    Next::Wait
                } else {
                    Next::Resume
                }
            }
            INSTRUCTION_ABORT => {
                let far = read_register!("far_el2");
                self.inject(Cause::InstructionAbort { far })
            }
            _ => self.inject(Cause::Undefined),
        }
    }

    /// Past the trapped instruction, which ends a step over it.
    fn advance(&mut self) {
        /// `SPSR_EL2.SS`: an instruction may be executed before the step ends. [DDI 0487 D2.11]
        const SOFTWARE_STEP: u64 = 1 << 21;
        let registers = &mut self.vcpu.registers;
        registers.pc = registers.pc.wrapping_add(4);
        registers.pstate &= !SOFTWARE_STEP;
    }

    /// An exception for the guest's EL1.
    pub(crate) fn inject(&mut self, cause: Cause) -> Next {
        let registers = &mut self.vcpu.registers;
        let taken = Exception {
            cause,
            pc: registers.pc,
            spsr: registers.pstate,
            vbar: read_register!("vbar_el1"),
            sctlr: read_register!("sctlr_el1"),
        }
        .take();
        registers.pc = taken.pc;
        registers.pstate = taken.pstate;
        write_register!("elr_el1", taken.elr);
        write_register!("spsr_el1", taken.spsr);
        write_register!("esr_el1", taken.esr);
        if let Some(far) = taken.far {
            write_register!("far_el1", far);
        }
        Next::Resume
    }

    fn call(&mut self) -> Next {
        let x = self.vcpu.registers.x;
        #[expect(clippy::cast_possible_truncation, reason = "the identifier is in w0")]
        let function = x[0] as u32;
        // Calls of PSCI and the calling convention; anything else costs no lock.
        if !matches!(function >> 24 & 0x3f, 0 | 4) || function >> 31 == 0 {
            self.vcpu.registers.x[0] = UNKNOWN_CALL;
            return Next::Resume;
        }
        let vm = self.vm;
        let action = vm
            .psci
            .lock()
            .call(self.index, function, [x[1], x[2], x[3]], |ipa| {
                vm.is_memory(ipa)
            });
        match action {
            None => self.vcpu.registers.x[0] = UNKNOWN_CALL,
            Some(Action::Return(value)) => self.vcpu.registers.x[0] = value,
            Some(Action::Start(start)) => {
                self.vcpu.registers.x[0] = 0;
                self.start_other(start);
            }
            Some(Action::Off) => return Next::Leave,
            Some(Action::Suspend) => {
                self.vcpu.registers.x[0] = 0;
                return Next::Wait;
            }
            Some(Action::SystemOff) => {
                self.end(Ending::PowerOff);
                return Next::Leave;
            }
            Some(Action::SystemReset) => {
                self.end(Ending::Reset);
                return Next::Leave;
            }
        }
        Next::Resume
    }

    fn system_register(&mut self, esr: u64) -> Next {
        #[expect(clippy::cast_possible_truncation, reason = "an ISS has 25 bits")]
        let iss = esr as u32 & 0x1ff_ffff;
        let rt = usize::from(iss.to_le_bytes()[0] >> 5 | iss.to_le_bytes()[1] << 3 & 0x18);
        let value = self.vcpu.registers.x.get(rt).copied().unwrap_or(0);
        match sysreg::judge(iss, self.vm.shown()) {
            Effect::Value(value) => {
                if let Some(register) = self.vcpu.registers.x.get_mut(rt) {
                    *register = value;
                }
            }
            Effect::Ignored => {}
            Effect::SendSgi => {
                let kicks = self.vm.gic.send_sgi(self.index, value);
                self.kick(kicks);
            }
            Effect::Deactivate => {
                self.sync();
                let kicks = self.vm.gic.deactivate(self.index, value);
                self.kick(kicks);
            }
            Effect::Undefined => return self.inject(Cause::Undefined),
        }
        self.advance();
        Next::Resume
    }

    fn data_abort(&mut self, esr: u64) -> Next {
        const S1PTW: u64 = 1 << 7;
        let far = read_register!("far_el2");
        let fault = Cause::DataAbort {
            far,
            iss: esr & 0x1ff_ffff,
        };
        // A table walk of the guest's that leaves its memory; cache maintenance on a device.
        if esr & S1PTW != 0 || esr & 1 << 8 != 0 {
            self.count(ExitCause::Abort);
            return self.inject(fault);
        }
        let ipa = (read_register!("hpfar_el2") & 0xff_ffff_fff0) << 8 | far & 0xfff;
        #[expect(clippy::cast_possible_truncation, reason = "an ISS has 25 bits")]
        let iss = esr as u32 & 0x1ff_ffff;
        let access = match mmio::from_syndrome(iss) {
            Ok(Some(access)) => return self.simple(&access, ipa, fault),
            Ok(None) => {
                let target = self.vm.bus.find(ipa);
                self.count(target.map_or(ExitCause::Abort, devices::Target::cause));
                let decoded = self.fetch().map(mmio::from_instruction);
                let Some(Ok(access)) = decoded else {
                    return self.inject(fault);
                };
                access
            }
            Err(_) => return self.inject(fault),
        };
        match self.carry_out(&access, ipa, far) {
            Some(()) => {
                self.advance();
                Next::Resume
            }
            None => self.inject(fault),
        }
    }

    /// An access of one element to a general register, which is what nearly all are.
    fn simple(&mut self, access: &Access, ipa: u64, fault: Cause) -> Next {
        let Some(target) = self.vm.bus.find(ipa) else {
            self.count(ExitCause::Abort);
            return self.inject(fault);
        };
        self.count(target.cause());
        if target.wants_sync() {
            self.sync();
        }
        let (width, _) = access.size.device_accesses();
        let done = match access.direction {
            Direction::Load => devices::read(self.vm, target, width).map(|(value, kicks)| {
                #[expect(clippy::cast_possible_truncation, reason = "64-bit registers")]
                let value = match access.extension {
                    Extension::Zero => value,
                    _ => access.loaded(value.into()) as u64,
                };
                if let Register::General(n) = access.first
                    && let Some(x) = self.vcpu.registers.x.get_mut(usize::from(n))
                {
                    *x = value;
                }
                kicks
            }),
            Direction::Store => {
                let value = self.general(access.first) & width.mask();
                devices::write(self.vm, target, width, value)
            }
        };
        match done {
            Some(kicks) => {
                self.kick(kicks);
                self.advance();
                Next::Resume
            }
            None => self.inject(fault),
        }
    }

    /// The instruction at the guest's program counter, by its own stage 1.
    fn fetch(&self) -> Option<u32> {
        let pc = self.vcpu.registers.pc;
        let el0 = self.vcpu.registers.pstate & 0xf == 0;
        let saved = read_register!("par_el1");
        if el0 {
            // SAFETY: translates an address in the guest's regime; only PAR_EL1 changes, which is
            // put back. Stage 1 alone: some emulators die on the two-stage form.
            unsafe { core::arch::asm!("at s1e0r, {}", "isb", in(reg) pc, options(nostack)) };
        } else {
            // SAFETY: likewise.
            unsafe { core::arch::asm!("at s1e1r, {}", "isb", in(reg) pc, options(nostack)) };
        }
        let par = read_register!("par_el1");
        write_register!("par_el1", saved);
        if par & 1 != 0 {
            return None;
        }
        self.vm
            .fetch(Ipa::new(par & 0xff_ffff_f000 | pc & 0xfff).ok()?)
    }

    /// Carries an access out; `None` when a part of it is answered by nobody.
    fn carry_out(&mut self, access: &Access, ipa: u64, far: u64) -> Option<()> {
        // A pair may begin below the address that faulted.
        let start = match &access.address {
            Some(address) => {
                let va = address.resolve(|base| self.base(base), |index| self.general(index));
                ipa.wrapping_sub(far.wrapping_sub(va))
            }
            None => ipa,
        };
        if self
            .vm
            .bus
            .find(start)
            .is_some_and(devices::Target::wants_sync)
        {
            self.sync();
        }
        let (width, count) = access.size.device_accesses();
        let mut kicks = Kicks::NONE;
        for (register, offset) in access.elements() {
            let at = start.wrapping_add(offset.into());
            let mut value: u128 = match access.direction {
                Direction::Load => 0,
                Direction::Store => access.stored(self.register(register)),
            };
            for part in 0..count {
                let shift = 64 * u32::from(part);
                let at = at.wrapping_add(8 * u64::from(part));
                match access.direction {
                    Direction::Load => {
                        let (read, more) = devices::read(self.vm, self.vm.bus.find(at)?, width)?;
                        value |= u128::from(read) << shift;
                        kicks = kicks.union(more);
                    }
                    Direction::Store => {
                        #[expect(clippy::cast_possible_truncation, reason = "a part of it")]
                        let part = (value >> shift) as u64;
                        kicks = kicks.union(devices::write(
                            self.vm,
                            self.vm.bus.find(at)?,
                            width,
                            part,
                        )?);
                    }
                }
            }
            if access.direction == Direction::Load {
                self.set_register(register, access.loaded(value));
            }
        }
        if let Some(write_back) = access.write_back {
            let value = self
                .base(write_back.base)
                .wrapping_add_signed(write_back.delta);
            self.set_base(write_back.base, value);
        }
        self.kick(kicks);
        Some(())
    }

    fn general(&self, register: Register) -> u64 {
        match register {
            Register::General(n) => self
                .vcpu
                .registers
                .x
                .get(usize::from(n))
                .copied()
                .unwrap_or(0),
            Register::Zero | Register::Vector(_) => 0,
        }
    }

    fn register(&self, register: Register) -> u128 {
        match register {
            Register::Vector(n) => super::context::read_vector(n),
            other => self.general(other).into(),
        }
    }

    fn set_register(&mut self, register: Register, value: u128) {
        match register {
            Register::General(n) =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "64-bit registers")]
                if let Some(x) = self.vcpu.registers.x.get_mut(usize::from(n)) {
                    *x = value as u64;
                }
            }
            Register::Zero => {}
            Register::Vector(n) => super::context::write_vector(n, value),
        }
    }

    fn base(&self, base: Base) -> u64 {
        match base {
            Base::General(n) => self.general(Register::General(n)),
            Base::StackPointer if self.uses_sp_el1() => read_register!("sp_el1"),
            Base::StackPointer => read_register!("sp_el0"),
        }
    }

    fn set_base(&mut self, base: Base, value: u64) {
        match base {
            Base::General(n) => self.set_register(Register::General(n), value.into()),
            Base::StackPointer if self.uses_sp_el1() => write_register!("sp_el1", value),
            Base::StackPointer => write_register!("sp_el0", value),
        }
    }

    fn uses_sp_el1(&self) -> bool {
        self.vcpu.registers.pstate & 0x1f == 0b0_0101
    }
}
