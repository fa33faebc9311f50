//! What follows from a write of a register.

use super::{Run, VSmmu};
use crate::memory::GuestMemory;
use crate::physical::Physical;
use crate::registers::{
    CMDQEN, EVENTQEN, INDEX, IRQ_EVENTQ, IRQ_GERROR, Part, Register, Registers, SMMUEN, UPDATE,
    event_index, low, queue_base,
};

impl VSmmu {
    pub(super) fn value(&self, register: Register) -> u64 {
        match register {
            Register::EventqBase => self.events.base,
            Register::EventqProd => self.events.prod.into(),
            Register::EventqCons => self.events.cons.into(),
            other => self.registers.read(other, &self.features),
        }
    }

    pub(super) fn store<M: GuestMemory, P: Physical>(
        &mut self,
        part: Part,
        value: u64,
        run: &mut Run<'_, M, P>,
    ) {
        let registers = &mut self.registers;
        let word = low(value);
        match part.register() {
            Register::Cr0 => self.write_cr0(word, run),
            Register::Cr1 => registers.write_cr1(word),
            Register::Cr2 => registers.write_cr2(word),
            Register::Gbpa => self.write_gbpa(word),
            Register::IrqCtrl => registers.irq_ctrl = word & (IRQ_GERROR | IRQ_EVENTQ),
            Register::Gerrorn => registers.write_gerrorn(word),
            Register::GerrorIrqCfg0
            | Register::GerrorIrqCfg1
            | Register::GerrorIrqCfg2
            | Register::EventqIrqCfg0
            | Register::EventqIrqCfg1
            | Register::EventqIrqCfg2 => registers.write_message(part, value, &self.features),
            Register::StrtabBase => registers.write_strtab_base(part, value),
            Register::StrtabBaseCfg => registers.write_strtab_base_cfg(word),
            Register::CmdqBase => registers.write_cmdq_base(part, value),
            Register::CmdqProd => {
                registers.cmdq_prod = word & INDEX;
                self.measure_lap();
            }
            Register::CmdqCons => {
                if !registers.is_on(CMDQEN) {
                    registers.cmdq_cons = word & INDEX;
                }
            }
            Register::EventqBase => {
                if !registers.is_on(EVENTQEN) {
                    self.events.base = queue_base(part.merge(self.events.base, value));
                }
            }
            Register::EventqProd => {
                if !registers.is_on(EVENTQEN) {
                    self.events.prod = event_index(word);
                }
            }
            Register::EventqCons => self.events.cons = event_index(word),
            Register::Idr0
            | Register::Idr1
            | Register::Idr3
            | Register::Idr5
            | Register::Aidr
            | Register::Cr0Ack
            | Register::IrqCtrlAck
            | Register::Gerror => {}
        }
    }

    fn write_cr0<M: GuestMemory, P: Physical>(&mut self, value: u32, run: &mut Run<'_, M, P>) {
        let old = self.registers.cr0;
        let new = value & Registers::cr0_mask(&self.features);
        self.registers.cr0 = new;
        if old & !new & CMDQEN != 0 {
            // What was consumed is complete before the queue says that it is off.
            self.drop_command_sweep();
            self.flush(run);
        }
        let pending = self.registers.cr0ack & SMMUEN;
        self.registers.cr0ack = new & !SMMUEN | pending;
        if new & !old & CMDQEN != 0 {
            self.measure_lap();
        }
        if (old ^ new) & SMMUEN != 0 {
            self.start_control_sweep();
        }
    }

    fn write_gbpa(&mut self, value: u32) {
        if value & UPDATE == 0 || self.registers.gbpa & UPDATE != 0 {
            return;
        }
        let new = Registers::gbpa_of(value);
        if self.registers.cr0 & SMMUEN != 0 {
            self.registers.gbpa = new;
        } else {
            self.registers.gbpa = new | UPDATE;
            self.start_control_sweep();
        }
    }
}
