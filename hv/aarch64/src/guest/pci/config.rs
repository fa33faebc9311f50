//! Accesses of the guest's to configuration space, and what they make of its devices.

use alloc::vec::Vec;

use pci::Permission;
use pci::vconfig::{Change, Effects, Width as ConfigWidth};
use types::Bdf;
use vdev::Width;

use super::{GuestPci, State};
use crate::guest::vm::Vm;

const fn config_width(width: Width) -> Option<ConfigWidth> {
    match width {
        Width::Byte => Some(ConfigWidth::Byte),
        Width::Half => Some(ConfigWidth::Half),
        Width::Word => Some(ConfigWidth::Word),
        // Not a transaction of configuration space.
        Width::Double => None,
    }
}

impl GuestPci {
    /// A guest's read of configuration space.
    #[optimize(size)]
    pub(crate) fn read_config(&self, offset: u64, width: Width) -> u64 {
        let Some(width) = config_width(width) else {
            return u64::MAX;
        };
        let mut state = self.state.lock();
        let Some((bdf, register)) = state.segment.locate(offset) else {
            return u64::MAX;
        };
        let position = state.held.iter().position(|held| held.guest == bdf);
        if position.is_some_and(|position| self.is_resetting(&mut state, position)) {
            return u64::MAX;
        }
        let function = position.and_then(|position| state.held.get(position));
        let function = function.and_then(|held| self.hardware.functions.get(held.function));
        let bridge = function.map_or(0, |function| function.bridge);
        let Some(bridge) = self.hardware.bridges.get(bridge) else {
            return u64::MAX;
        };
        state
            .segment
            .read(&bridge.space, bdf, register, width)
            .into()
    }

    /// Whether a device is still in the reset that the guest asked for.
    fn is_resetting(&self, state: &mut State, position: usize) -> bool {
        let State { segment, held } = state;
        let Some(held) = held.get_mut(position).filter(|held| held.resetting) else {
            return false;
        };
        let function = self.hardware.functions.get(held.function);
        held.resetting =
            function.is_some_and(|function| self.hardware.poll_reset(function).is_some());
        if !held.resetting {
            self.arm_pin(segment, held);
        }
        held.resetting
    }

    /// A guest's write to configuration space.
    #[optimize(size)]
    pub(crate) fn write_config(&self, vm: &Vm, offset: u64, width: Width, value: u64) {
        let Some(width) = config_width(width) else {
            return;
        };
        let mut state = self.state.lock();
        let Some((bdf, register)) = state.segment.locate(offset) else {
            return;
        };
        let position = state.held.iter().position(|held| held.guest == bdf);
        if position.is_some_and(|position| self.is_resetting(&mut state, position)) {
            return;
        }
        let function = position.and_then(|position| state.held.get(position));
        let function = function.and_then(|held| self.hardware.functions.get(held.function));
        let bridge = function.map_or(0, |function| function.bridge);
        let Some(bridge) = self.hardware.bridges.get(bridge) else {
            return;
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most 32 bits of it count"
        )]
        let value = value as u32;
        match state
            .segment
            .write(&bridge.space, bdf, register, width, value)
        {
            None => {}
            Some(Change::Function(_, effects)) => {
                if let Some(position) = position {
                    self.apply(vm, &mut state, position, effects);
                }
            }
            Some(Change::Below(port, effects)) => {
                let below: Vec<Bdf> = state.segment.below(port).collect();
                for bdf in below {
                    let position = state.held.iter().position(|held| held.guest == bdf);
                    // In a reset nothing may be asked of it, and all that the port could change is off.
                    if let Some(position) = position
                        && !self.is_resetting(&mut state, position)
                    {
                        self.apply(
                            vm,
                            &mut state,
                            position,
                            effects | Effects::MSIX | Effects::MSI,
                        );
                    }
                }
            }
        }
    }

    /// Does what a guest's write asks for, what takes something away first.
    #[optimize(size)]
    fn apply(&self, vm: &Vm, state: &mut State, position: usize, effects: Effects) {
        let State { segment, held } = state;
        let Some(held) = held.get_mut(position) else {
            return;
        };
        let Some(function) = self.hardware.functions.get(held.function) else {
            return;
        };
        if effects.contains(Effects::RESET) {
            self.disarm_pin(vm, held);
            self.hardware.quiet(function);
            for mapped in held.mapped.drain(..) {
                self.unmap(vm, &mapped);
            }
            for vector in 0..function.events {
                self.hardware.set_route(function, vector, None);
            }
            if let Some(virtual_function) = segment.function_mut(held.guest) {
                virtual_function.reset();
            }
            if let Some(table) = &mut held.msix {
                table.reset();
            }
            if self.hardware.has_reset(function) {
                self.hardware.begin_reset(function);
                held.resetting = true;
            } else {
                self.arm_pin(segment, held);
            }
            return;
        }
        let mastering = segment.mastering(held.guest);
        if effects.contains(Effects::MASTERING) && !mastering {
            self.hardware.set_mastering(function, Permission::Denied);
        }
        if effects.contains(Effects::MAPPING) {
            self.remap(vm, segment, held);
        }
        if effects.contains(Effects::INTX) {
            self.update_pin(vm, segment, held);
        }
        if effects.intersects(Effects::MSIX | Effects::MASTERING) {
            self.update_msix(vm, segment, held, function);
        }
        if effects.intersects(Effects::MSI | Effects::MASTERING) {
            self.update_msi(vm, segment, held, function);
        }
        if effects.contains(Effects::MASTERING) && mastering {
            self.hardware.set_mastering(function, Permission::Granted);
        }
    }
}
