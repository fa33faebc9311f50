//! Areas that a vCPU shares with the hypervisor: the virtual processor area, its dispatch trace log
//! and its SLB shadow. [LoPAPR §14.11.3.2, H_REGISTER_VPA]

use crate::{Environment, Status};

/// Bytes of a virtual processor area at least. [LoPAPR Table 272]
const VPA_LEAST: u32 = 640;
/// Bytes of a trace log at least: one entry.
const LOG_LEAST: u32 = 48;
/// Bytes of an SLB shadow at least: its head.
const SHADOW_LEAST: u32 = 8;
/// Where an area has its size: two bytes in a VPA, four in the others.
const SIZE_AT: u64 = 4;
/// Where a VPA says that its processor is shared, and how.
const SHARED_AT: u64 = 9;
const SHARED: u8 = 2;
/// Where a VPA counts dispatches: even while its vCPU is on a thread.
const COUNT_AT: u64 = 0x100;
/// What the count is made on a thread, and off it: even or odd.
pub(crate) const ON_THREAD: u32 = 0;
pub(crate) const OFF_THREAD: u32 = 1;
/// A VPA is aligned to this, and lies in one page.
const LINE: u64 = 128;
const PAGE: u64 = 4096;

/// The areas of one vCPU; zero is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Areas {
    vpa: u64,
    log: u64,
    shadow: u64,
}

/// Copies a big-endian word.
fn word(env: &dyn Environment, at: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    env.read(at, &mut bytes).ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Whether the area lies in one page, all of it in memory.
fn in_one_page(env: &dyn Environment, at: u64, bytes: u32) -> bool {
    let offset = at % PAGE;
    offset.saturating_add(bytes.into()) <= PAGE && env.is_memory(at, bytes.into())
}

impl Areas {
    /// `H_REGISTER_VPA`: `function` is what the flags ask for.
    pub(crate) fn register(&mut self, function: u64, at: u64, env: &dyn Environment) -> Status {
        match function {
            1 => self.register_vpa(at, env),
            2 => self.register_log(at, env),
            3 => self.register_shadow(at, env),
            5 if self.log != 0 || self.shadow != 0 => Status::RESOURCE,
            5 => {
                self.vpa = 0;
                Status::SUCCESS
            }
            6 => {
                self.log = 0;
                Status::SUCCESS
            }
            7 => {
                self.shadow = 0;
                Status::SUCCESS
            }
            _ => Status::PARAMETER,
        }
    }

    fn register_vpa(&mut self, at: u64, env: &dyn Environment) -> Status {
        if at == 0 {
            return Status::HARDWARE;
        }
        let Some(size) = size_field(at).and_then(|at| word(env, at)) else {
            return Status::PARAMETER;
        };
        let size = size >> 16;
        if !at.is_multiple_of(LINE) || size < VPA_LEAST || !in_one_page(env, at, size) {
            return Status::PARAMETER;
        }
        let Some(shared) = at.checked_add(SHARED_AT) else {
            return Status::PARAMETER;
        };
        let mut flags = [0];
        if env.read(shared, &mut flags).is_err() || env.write(shared, &[flags[0] | SHARED]).is_err()
        {
            return Status::PARAMETER;
        }
        self.vpa = at;
        Status::SUCCESS
    }

    fn register_log(&mut self, at: u64, env: &dyn Environment) -> Status {
        if at == 0 {
            return Status::HARDWARE;
        }
        let size = size_field(at).and_then(|at| word(env, at));
        match size {
            Some(size) if size >= LOG_LEAST && env.is_memory(at, size.into()) => {}
            _ => return Status::PARAMETER,
        }
        if self.vpa == 0 {
            return Status::RESOURCE;
        }
        self.log = at;
        Status::SUCCESS
    }

    fn register_shadow(&mut self, at: u64, env: &dyn Environment) -> Status {
        if at == 0 {
            return Status::HARDWARE;
        }
        let size = size_field(at).and_then(|at| word(env, at));
        match size {
            Some(size) if size >= SHADOW_LEAST && in_one_page(env, at, size) => {}
            _ => return Status::PARAMETER,
        }
        if self.vpa == 0 {
            return Status::RESOURCE;
        }
        self.shadow = at;
        Status::SUCCESS
    }

    /// How often the vCPU has been dispatched, by its own area.
    pub(crate) fn count(&self, env: &dyn Environment) -> Option<u32> {
        if self.vpa == 0 {
            return None;
        }
        word(env, self.vpa.checked_add(COUNT_AT)?)
    }

    /// The vCPU comes on a thread, or leaves it: the count goes on to the next even number, or the next odd one.
    #[inline]
    pub(crate) fn dispatch(&self, parity: u32, env: &impl Environment) {
        if self.vpa == 0 {
            return;
        }
        if let Some(at) = self.vpa.checked_add(COUNT_AT) {
            env.change_cell(at, |count| {
                let next = count.wrapping_add(1);
                next.wrapping_add(next & 1 ^ parity)
            });
        }
    }
}

fn size_field(at: u64) -> Option<u64> {
    at.checked_add(SIZE_AT)
}
