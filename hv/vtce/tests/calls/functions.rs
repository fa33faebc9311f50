//! The part about functions: their configuration space and messages, errors that the guest injects, and a host bridge
//! that leaves and comes back.

use bulkhead_vtce::{
    COMMAND_MASTER, Controls, FunctionCall, FunctionRequest, FunctionService, Mastering, Progress,
    Role, Status,
};
use eeh::{Cause, Injection};

use super::{LISTS, World};

/// Where the functions' controls of messages are; the second has none.
const CONTROLS: [Controls; 2] = [
    Controls {
        role: Role::Device,
        msi: Some(0x52),
        msix: Some(0x72),
    },
    Controls {
        role: Role::Device,
        msi: None,
        msix: None,
    },
];
const BUID: [u32; 2] = [0x0800_0000, 0x2000_0000];

/// Two functions' configuration spaces, and who injects errors.
pub(super) struct Functions {
    spaces: [[u8; 4096]; 2],
    /// What the guest lets each do.
    wants: [bool; 2],
    injection: Injection,
    /// The model: the token, while it is open.
    open: Option<u32>,
    tokens: u32,
    /// Changes and errors.
    pub(super) changes: usize,
}

impl Functions {
    pub(super) fn new() -> Self {
        let space = core::array::from_fn(|at| u8::try_from((at * 7) & 0xff).unwrap());
        let mut spaces = [space; 2];
        for space in &mut spaces {
            space[4..6].fill(0);
        }
        Self {
            spaces,
            wants: [false; 2],
            injection: Injection::default(),
            open: None,
            tokens: 0,
            changes: 0,
        }
    }

    fn word(&self, function: usize, at: usize) -> u32 {
        u32::from(u16::from_le_bytes([
            self.spaces[function][at],
            self.spaces[function][at + 1],
        ]))
    }

    /// Devices master the bus as their guest wants, or none does.
    pub(super) fn master(&mut self, mastering: Mastering) {
        for (space, wants) in self.spaces.iter_mut().zip(self.wants) {
            let on = wants && mastering == Mastering::AsWanted;
            space[4] = space[4] & !4 | u8::from(on) << 2;
        }
    }

    /// They are as after power-on.
    pub(super) fn reset(&mut self) {
        self.wants = [false; 2];
        for space in &mut self.spaces {
            space[4..6].fill(0);
        }
    }
}

/// The bits of a byte that a guest may change: the model's own words.
fn allowed(function: usize, at: usize) -> u8 {
    match (function, at) {
        (_, 4) => 0x07,
        (_, 5) => 0x04,
        (0, 0x52) => 0x71,
        (0, 0x73) => 0xc0,
        _ => 0,
    }
}

impl World {
    /// A call about a function.
    pub(super) fn function(&mut self, cells: [u64; 4], extra: u8) {
        let small = |cell: u64| u32::try_from(cell & 0xffff_ffff).unwrap();
        let kind = [1, 1, 1, 0, 1, 2, 3, 1][usize::from(extra) % 8];
        let service = FunctionService::ALL[kind];
        let registers = [4, 4, 6, 0x52, 0x72, 0x50, 4, small(cells[0]) & 0xfff];
        let register = registers[usize::from(extra >> 3) % 8];
        let at = (small(cells[1]) % 3) << 8 | register & 0xff | register >> 8 << 28;
        let width = [2, 2, 4, 1, small(cells[2])]
            [usize::from(extra >> 6) + usize::from(cells[0].is_multiple_of(11))];
        let mut arguments = vec![at, BUID[0], BUID[1], width];
        let more = [0, 1, 0, 2][kind];
        arguments.extend([small(cells[2]), small(cells[3])].iter().take(more));
        let mut results = [2, 1, 3, 4][kind];
        // Now and then too many of something.
        if cells[3].is_multiple_of(31) {
            arguments.push(0);
        }
        if cells[3].is_multiple_of(37) {
            results += 2;
        }
        let before = self.functions.spaces;
        let call = service.call(&arguments, results);
        let is_width = matches!(
            service,
            FunctionService::Source | FunctionService::ChangeMessages
        ) || [1, 2, 4].contains(&width);
        let counts = !cells[3].is_multiple_of(31) && !cells[3].is_multiple_of(37);
        assert_eq!(
            call.is_some(),
            counts && is_width,
            "{arguments:x?} {results}"
        );
        let Some(call) = call else { return };
        assert_eq!((call.at, call.buid, call.register()), (at, BUID, register));
        if let FunctionRequest::Write { bytes, value } = call.what {
            self.write(call, bytes, value);
        }
        for (function, (new, old)) in self.functions.spaces.iter().zip(&before).enumerate() {
            for (at, (new, old)) in new.iter().zip(old).enumerate() {
                let changed = new ^ old;
                assert_eq!(changed & !allowed(function, at), 0, "{function} {at:#x}");
                let inside = at & !1 == usize::try_from(register).unwrap();
                assert!(
                    changed == 0 || inside,
                    "{at:#x} by a write to {register:#x}"
                );
            }
            let masters = new[4] & 4 != 0;
            assert!(
                !masters || self.pe.state().allows_dma(),
                "it masters the bus"
            );
        }
    }

    fn write(&mut self, call: FunctionCall, bytes: u32, value: u32) {
        let function = usize::try_from(call.at >> 8 & 0xff).unwrap();
        let (Some(controls), true) = (CONTROLS.get(function), self.pe.state().allows_registers())
        else {
            return;
        };
        let Some(change) = controls.write(call.register(), bytes, value) else {
            return;
        };
        let mastering = if self.pe.state().allows_dma() {
            Mastering::AsWanted
        } else {
            Mastering::Stopped
        };
        let at = usize::try_from(call.register()).unwrap();
        let new = change.applied(self.functions.word(function, at), mastering);
        let new = u16::try_from(new).expect("sixteen bits").to_le_bytes();
        self.functions.spaces[function][at..at + 2].copy_from_slice(&new);
        self.functions.changes += 1;
        if let Some(command) = change.command {
            self.functions.wants[function] = command & COMMAND_MASTER != 0;
        }
    }

    /// A call by which errors are injected.
    pub(super) fn inject(&mut self, cells: [u64; 4], extra: u8, now: u64) {
        let small = |cell: u64| u32::try_from(cell & 0xff).unwrap();
        let known = self.functions.open.unwrap_or(1);
        let token = if extra & 0x40 == 0 {
            known
        } else {
            small(cells[0])
        };
        let functions = &mut self.functions;
        match extra % 4 {
            0 => {
                let [token, status] = functions.injection.open();
                let wanted = if functions.open.is_some() {
                    [0, -4]
                } else {
                    functions.tokens += 1;
                    functions.open = Some(functions.tokens);
                    [functions.tokens.cast_signed(), 0]
                };
                assert_eq!([token, status], wanted);
            }
            1 => {
                let right = functions.open == Some(token);
                let wanted = if right { 0 } else { -4 };
                assert_eq!(functions.injection.close(token), wanted);
                if right {
                    functions.open = None;
                }
            }
            _ => {
                let kind = [7, 15, small(cells[1])][usize::from(extra >> 2) % 3];
                let length = functions.injection.work_area(kind, token);
                let wanted = match kind {
                    _ if functions.open != Some(token) => Err(-4),
                    7 => Ok(24),
                    15 => Ok(32),
                    _ => Err(-3),
                };
                assert_eq!(length, wanted);
                let Ok(length) = length else { return };
                let config = [1, 0x100, small(cells[2])][usize::from(extra >> 4) % 3];
                let low = BUID[1] + u32::from(extra >> 7);
                let area = [0, 0, 0, 0, config, BUID[0], low, small(cells[3]) % 24];
                let area: Vec<u8> = area.iter().flat_map(|cell| cell.to_be_bytes()).collect();
                let victim = eeh::victim(&area[area.len() - length..]);
                let its = low == BUID[1] && (config & 0xff == 0 || config == 1);
                let meant = victim.is_some_and(|victim| self.pe.is_meant(&victim));
                assert_eq!(meant, its && small(cells[3]) % 24 < 20);
                if meant {
                    self.functions.changes += 1;
                    let (_, effect) = self.pe.freeze(Cause::Injected, now);
                    self.carry_out(effect);
                }
            }
        }
    }

    /// The host bridge leaves while the guest goes on, and comes back.
    pub(super) fn leave(&mut self) {
        let options = *self.dma.bridges()[0].options();
        let windows = self.dma.bridges()[0].windows().iter();
        let liobns: Vec<u64> = windows.map(|w| w.liobn().bits().into()).collect();
        self.dma.shut_bridge(options.number).unwrap();
        loop {
            for liobn in &liobns {
                for number in [0x20, 0x138, 0x13c, 0x1c] {
                    let arguments = [*liobn, 0, if number == 0x13c { LISTS } else { 0x5003 }, 1];
                    let answer = self
                        .dma
                        .hypercall(&mut self.core, &self.lists, number, arguments);
                    assert_eq!(answer.unwrap().status, Status::PARAMETER);
                }
            }
            if self.dma.clear_shut(&mut self.core).unwrap() == Progress::Done {
                break;
            }
        }
        assert!(self.core.backend().platform().entries(0).is_empty());
        self.model.clear();
        self.dma.add_bridge(&mut self.core, options).unwrap();
    }
}
