//! Which vCPUs run, and what others have done to them.

use alloc::vec::Vec;

use crate::area::Areas;
use crate::{After, Servers};

/// A vCPU that was stopped and is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) entry: u64,
    pub(crate) argument: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) runs: bool,
    pub(crate) start: Option<Start>,
    /// Another vCPU has called `H_PROD`, and that is still to take effect.
    pub(crate) prodded: bool,
    /// It waits in `H_JOIN`.
    pub(crate) joined: bool,
    pub(crate) areas: Areas,
}

/// The vCPUs of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Cpus(Vec<Cpu>);

/// `start-cpu` cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotStarted {
    /// There is no such vCPU.
    Unknown,
    /// It runs.
    Runs,
}

impl Cpus {
    /// All stopped but the first.
    pub(crate) fn new(cpus: usize) -> Self {
        let mut all = alloc::vec![Cpu::default(); cpus];
        if let Some(first) = all.first_mut() {
            first.runs = true;
        }
        Self(all)
    }

    pub(crate) fn get(&self, vcpu: usize) -> Option<&Cpu> {
        self.0.get(vcpu)
    }

    pub(crate) fn get_mut(&mut self, vcpu: usize) -> Option<&mut Cpu> {
        self.0.get_mut(vcpu)
    }

    /// By the number that a guest gives.
    pub(crate) fn server(&mut self, server: u64) -> Option<(usize, &mut Cpu)> {
        let vcpu = usize::try_from(server).ok()?;
        Some((vcpu, self.0.get_mut(vcpu)?))
    }

    pub(crate) fn start(&mut self, server: u32, start: Start) -> Result<usize, NotStarted> {
        let (vcpu, cpu) = self.server(server.into()).ok_or(NotStarted::Unknown)?;
        if cpu.runs {
            return Err(NotStarted::Runs);
        }
        *cpu = Cpu {
            runs: true,
            start: Some(start),
            ..Cpu::default()
        };
        Ok(vcpu)
    }

    /// `H_PROD`.
    pub(crate) fn prod(&mut self, server: u64) -> Option<Servers> {
        let (vcpu, cpu) = self.server(server)?;
        cpu.prodded = true;
        Some(Servers::one(vcpu))
    }

    /// Whether there was a prod for a vCPU that is about to wait; it is used up.
    pub(crate) fn take_prod(&mut self, vcpu: usize) -> bool {
        self.get_mut(vcpu)
            .is_some_and(|cpu| core::mem::take(&mut cpu.prodded))
    }

    /// A vCPU waits for a prod, unless there was one.
    pub(crate) fn join(&mut self, vcpu: usize) -> After {
        let prodded = self.take_prod(vcpu);
        match self.get_mut(vcpu) {
            Some(cpu) if !prodded => {
                cpu.joined = true;
                After::Join
            }
            _ => After::Resume,
        }
    }

    /// Whether all that run, other than this one, have joined.
    pub(crate) fn others_joined(&self, vcpu: usize) -> bool {
        let others = self
            .0
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != vcpu);
        others.into_iter().all(|(_, cpu)| !cpu.runs || cpu.joined)
    }

    /// Those that run and that `whom` takes in.
    pub(crate) fn running(&self, whom: impl Fn(usize) -> bool) -> Servers {
        let mut told = Servers::NONE;
        for (vcpu, cpu) in self.0.iter().enumerate() {
            if cpu.runs && whom(vcpu) {
                told = told.and(Servers::one(vcpu));
            }
        }
        told
    }
}
