//! Hypercalls: which there are, and what each does. [LoPAPR §14.5]

use core::fmt;
use core::sync::atomic::Ordering;

use crate::area::OFF_THREAD;
use crate::rtas::{self, Outcome};
use crate::{Environment, Platform, Servers, Status, memory, term};

/// The numbers of the calls that are served.
pub(crate) mod number {
    pub(crate) const PUT_TCE: u64 = 0x20;
    pub(crate) const SET_SPRG0: u64 = 0x24;
    pub(crate) const PAGE_INIT: u64 = 0x2c;
    pub(crate) const LOGICAL_CI_LOAD: u64 = 0x3c;
    pub(crate) const LOGICAL_CI_STORE: u64 = 0x40;
    pub(crate) const LOGICAL_ICBI: u64 = 0x48;
    pub(crate) const LOGICAL_DCBF: u64 = 0x4c;
    pub(crate) const GET_TERM_CHAR: u64 = 0x54;
    pub(crate) const PUT_TERM_CHAR: u64 = 0x58;
    pub(crate) const EOI: u64 = 0x64;
    pub(crate) const CPPR: u64 = 0x68;
    pub(crate) const IPI: u64 = 0x6c;
    pub(crate) const IPOLL: u64 = 0x70;
    pub(crate) const XIRR: u64 = 0x74;
    pub(crate) const REGISTER_VPA: u64 = 0xdc;
    pub(crate) const CEDE: u64 = 0xe0;
    pub(crate) const CONFER: u64 = 0xe4;
    pub(crate) const PROD: u64 = 0xe8;
    pub(crate) const VIO_SIGNAL: u64 = 0x104;
    pub(crate) const GET_CPU_CHARACTERISTICS: u64 = 0x1c8;
    pub(crate) const JOIN: u64 = 0x298;
    pub(crate) const HOME_NODE_ASSOCIATIVITY: u64 = 0x2ec;
    pub(crate) const XIRR_X: u64 = 0x2fc;
    pub(crate) const RANDOM: u64 = 0x300;
    pub(crate) const SET_MODE: u64 = 0x31c;
    pub(crate) const REGISTER_PROC_TBL: u64 = 0x37c;
    pub(crate) const SIGNAL_SYS_RESET: u64 = 0x380;
    /// QEMU's own, which stands for the run-time services.
    pub(crate) const RTAS: u64 = 0xf000;
}

/// `MSR[EE]`.
const MSR_EE: u64 = 1 << 15;

/// What the vCPU that has called does next. Its registers are as they shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Resume,
    /// It goes on, with interrupts let through.
    Unmask,
    /// It waits for an interrupt, its decrementer or a prod, with interrupts let through.
    Cede,
    /// It waits for a prod.
    Join,
    /// It gives its thread to others for a moment.
    Yield,
    /// It goes on with this in SPRG0.
    SetSprg0(u64),
    /// It has stopped.
    Off,
    /// Its VM ends.
    End(End),
}

/// What becomes of a vCPU that has called `H_CEDE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceded {
    /// It has left its thread, and waits.
    Waits,
    /// It goes on: an external interrupt is to be given to it.
    Interrupt,
    /// It goes on, for another reason.
    Due,
}

/// How a guest ends its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It turned itself off.
    PowerOff,
    /// It asked to be started anew.
    Reboot,
    /// Its operating system gave up, with these last words.
    Terminated(Text),
}

/// A few printable words of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; Self::MOST],
    length: usize,
}

impl Text {
    const MOST: usize = 80;

    /// The words up to the first zero.
    pub(crate) fn new(words: &[u8]) -> Self {
        let mut bytes = [0; Self::MOST];
        let mut length = 0;
        let words = words.iter().take_while(|byte| **byte != 0);
        for (to, from) in bytes.iter_mut().zip(words) {
            *to = if matches!(from, 0x20..0x7f) {
                *from
            } else {
                b'?'
            };
            length = usize::saturating_add(length, 1);
        }
        Self { bytes, length }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        f.write_str(core::str::from_utf8(bytes).unwrap_or_default())
    }
}

/// The registers r3 to r12 of a call.
type Gpr = [u64; 32];

impl Platform {
    /// Answers a call that was made in problem state.
    pub fn refuse(&self, gpr: &mut [u64; 32]) {
        answer(gpr, Status::PRIVILEGE);
    }

    /// Serves the call that `vcpu` has made: its number is in r3, arguments follow; the status and
    /// what is answered go there, too. `msr` is the vCPU's.
    #[must_use]
    pub fn hypercall(
        &self,
        vcpu: usize,
        gpr: &mut [u64; 32],
        msr: u64,
        env: &dyn Environment,
    ) -> After {
        use number as n;
        let [_, _, _, number, a, b, c, d, ..] = *gpr;
        let arguments = [a, b, c, d];
        let status = match number {
            // Of all calls for devices the one that comes for every page.
            n::PUT_TCE if env.put_tce(arguments) => Status::SUCCESS,
            n::PUT_TERM_CHAR => term::put(self.config().terminal, arguments, env),
            n::GET_TERM_CHAR => values(gpr, term::get(self.config().terminal, a, env)),
            n::VIO_SIGNAL => term::signal(self.config().terminal, a, b),
            n::EOI | n::CPPR | n::IPI | n::IPOLL | n::XIRR | n::XIRR_X => {
                self.presentation(vcpu, gpr, env)
            }
            n::CEDE => return self.cede_elsewhere(vcpu, gpr),
            n::JOIN => return self.join(vcpu, gpr, msr),
            n::PROD => {
                let told = self.cpus.lock().prod(a);
                kick(told, env)
            }
            n::CONFER => return self.confer((vcpu, msr), gpr, [a, b], env),
            n::REGISTER_VPA => self.register_vpa(arguments, env),
            n::SET_SPRG0 => {
                answer(gpr, Status::SUCCESS);
                return After::SetSprg0(a);
            }
            n::SET_MODE => self.set_mode(arguments),
            n::REGISTER_PROC_TBL => self.register_process_table(arguments, env),
            n::PAGE_INIT => memory::page_init(arguments, env),
            n::LOGICAL_CI_LOAD => values(gpr, memory::load(arguments, env).map(|value| [value])),
            n::LOGICAL_CI_STORE => memory::store(arguments, env),
            // Caches are coherent, and code is what is in memory.
            n::LOGICAL_ICBI | n::LOGICAL_DCBF => Status::SUCCESS,
            n::RANDOM => values(gpr, env.random().map(|r| [r]).ok_or(Status::HARDWARE)),
            n::GET_CPU_CHARACTERISTICS => {
                let known = self.config().characteristics;
                let known = known.map(|known| [known.character, known.behaviour]);
                values(gpr, known.ok_or(Status::FUNCTION))
            }
            n::HOME_NODE_ASSOCIATIVITY => values(gpr, self.home_node(a, b)),
            n::SIGNAL_SYS_RESET => self.system_reset(vcpu, a, env),
            n::RTAS => {
                let Outcome { status, after } = rtas::call(self, vcpu, a, env);
                answer(gpr, status);
                return after;
            }
            _ => match env.device_hypercall(number, arguments) {
                Some((status, value)) => {
                    let [_, _, _, r3, r4, ..] = gpr;
                    *r3 = status;
                    if let Some(value) = value {
                        *r4 = value;
                    }
                    return After::Resume;
                }
                None => Status::FUNCTION,
            },
        };
        answer(gpr, status);
        After::Resume
    }

    /// Serves what a handler of interrupts calls each time: `H_XIRR`, `H_CPPR`, and `H_EOI` of an edge or of an
    /// interprocessor interrupt. Whether an external interrupt is to be given to the vCPU after it; `None`, and
    /// nothing has happened, when it is another call, which [`Self::hypercall`] serves.
    #[inline]
    pub fn present(&self, vcpu: usize, gpr: &mut [u64; 32]) -> Option<bool> {
        use number as n;
        let [_, _, _, r3, r4, ..] = gpr;
        let due = match *r3 {
            n::XIRR => {
                *r4 = self.xics.lock().accept(vcpu).into();
                false
            }
            n::EOI => {
                let mut xics = self.xics.lock();
                if !xics.end_edge(vcpu, word(*r4)) {
                    return None;
                }
                xics.is_pending(vcpu)
            }
            n::CPPR => {
                let mut xics = self.xics.lock();
                xics.set_priority(vcpu, low(*r4));
                xics.is_pending(vcpu)
            }
            _ => return None,
        };
        *r3 = Status::SUCCESS.bits();
        Some(due)
    }

    fn presentation(&self, vcpu: usize, gpr: &mut Gpr, env: &dyn Environment) -> Status {
        use number as n;
        let [_, _, _, number, first, second, ..] = *gpr;
        let server = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let mut xics = self.xics.lock();
        match number {
            n::CPPR => {
                xics.set_priority(vcpu, low(first));
                Status::SUCCESS
            }
            n::EOI => {
                let ended = xics.end(vcpu, word(first)).ok();
                drop(xics);
                if let Some(source) = ended.and_then(|ended| ended.sampled) {
                    env.ended(source);
                }
                kick(ended.map(|ended| ended.told), env)
            }
            n::XIRR | n::XIRR_X => {
                let accepted = xics.accept(vcpu);
                drop(xics);
                if number == n::XIRR_X {
                    values(gpr, Ok([accepted.into(), env.timebase()]))
                } else {
                    values(gpr, Ok([accepted.into()]))
                }
            }
            n::IPI => {
                let told = xics.set_request(server(first), low(second));
                drop(xics);
                kick(told, env)
            }
            _ => {
                let polled = xics.poll(server(first));
                drop(xics);
                let found = polled.map(|(accepted, request)| [accepted.into(), request.into()]);
                values(gpr, found.ok_or(Status::PARAMETER))
            }
        }
    }

    /// Answers `H_CEDE` of a vCPU that waits on its thread: false, and nothing has happened, when it is another call.
    /// Interrupts are let through after it, as after [`After::Cede`], and [`Self::cede`] says whether it waits.
    #[inline]
    #[must_use]
    pub fn take_cede(gpr: &mut [u64; 32]) -> bool {
        let [_, _, _, r3, ..] = gpr;
        let cedes = *r3 == number::CEDE;
        if cedes {
            *r3 = Status::SUCCESS.bits();
        }
        cedes
    }

    /// What becomes of a vCPU that has called `H_CEDE`. A prod that came before is what it waits for.
    #[inline]
    #[must_use]
    pub fn cede(&self, vcpu: usize, env: &impl Environment) -> Ceded {
        let (prodded, areas) = {
            let mut cpus = self.cpus.lock();
            let cpu = cpus.get_mut(vcpu);
            cpu.map(|cpu| (core::mem::take(&mut cpu.prodded), cpu.areas))
        }
        .unwrap_or_default();
        if prodded || self.has_system_reset(vcpu) {
            return Ceded::Due;
        }
        if self.has_interrupt(vcpu) {
            return Ceded::Interrupt;
        }
        areas.dispatch(OFF_THREAD, env);
        Ceded::Waits
    }

    /// `H_CEDE`. A prod that came before is what it waits for. Interrupts are let through either way: Linux counts
    /// on it, and would go on without any.
    fn cede_elsewhere(&self, vcpu: usize, gpr: &mut Gpr) -> After {
        answer(gpr, Status::SUCCESS);
        if self.cpus.lock().take_prod(vcpu) {
            After::Unmask
        } else {
            After::Cede
        }
    }

    /// `H_JOIN`. [LoPAPR §14.11.5]
    fn join(&self, vcpu: usize, gpr: &mut Gpr, msr: u64) -> After {
        let mut cpus = self.cpus.lock();
        let status = if msr & MSR_EE != 0 {
            Status::BAD_MODE
        } else if cpus.others_joined(vcpu) {
            Status::CONTINUE
        } else {
            Status::SUCCESS
        };
        answer(gpr, status);
        if status == Status::SUCCESS {
            cpus.join(vcpu)
        } else {
            After::Resume
        }
    }

    /// `H_CONFER`: to one vCPU, unless it has been dispatched since the caller looked, or to all. Who confers to
    /// itself waits for a prod, or for an interrupt that it lets through.
    fn confer(
        &self,
        (vcpu, msr): (usize, u64),
        gpr: &mut Gpr,
        [server, count]: [u64; 2],
        env: &dyn Environment,
    ) -> After {
        let areas = {
            let mut cpus = self.cpus.lock();
            match cpus.server(server) {
                Some((target, _)) if target == vcpu => {
                    answer(gpr, Status::SUCCESS);
                    return if msr & MSR_EE == 0 {
                        cpus.join(vcpu)
                    } else if cpus.take_prod(vcpu) {
                        After::Resume
                    } else {
                        After::Cede
                    };
                }
                Some((_, cpu)) => cpu.areas,
                None if server == u64::MAX || server == u64::from(u32::MAX) => {
                    answer(gpr, Status::SUCCESS);
                    return After::Yield;
                }
                None => {
                    answer(gpr, Status::PARAMETER);
                    return After::Resume;
                }
            }
        };
        answer(gpr, Status::SUCCESS);
        match areas.count(env) {
            Some(now) if now & 1 == 0 || u64::from(now) != count & 0xffff_ffff => After::Resume,
            _ => After::Yield,
        }
    }

    fn register_vpa(&self, [flags, server, at, _]: [u64; 4], env: &dyn Environment) -> Status {
        /// The function is three bits of the flags; the others are reserved.
        const SHIFT: u32 = 63 - 18;
        let function = flags >> SHIFT & 7;
        if function << SHIFT != flags {
            return Status::PARAMETER;
        }
        // A copy, because judging an area reads memory, which the lock need not wait for.
        let found = self
            .cpus
            .lock()
            .server(server)
            .map(|(vcpu, cpu)| (vcpu, cpu.areas));
        let Some((vcpu, mut areas)) = found else {
            return Status::PARAMETER;
        };
        let status = areas.register(function, at, env);
        if let Some(cpu) = self.cpus.lock().get_mut(vcpu) {
            cpu.areas = areas;
        }
        status
    }

    /// `H_SET_MODE`: the byte order of interrupts, and where they arrive, for all vCPUs.
    /// [LoPAPR §14.5.4.3.8]
    fn set_mode(&self, [flags, resource, first, second]: [u64; 4]) -> Status {
        const TRANSLATION: u64 = 3;
        const ENDIAN: u64 = 4;
        if resource != ENDIAN && resource != TRANSLATION {
            return Status::P2;
        }
        if first != 0 {
            return Status::P3;
        }
        if second != 0 {
            return Status::P4;
        }
        match (resource, flags) {
            (ENDIAN, 0 | 1) => self.little_endian.store(flags == 1, Ordering::Release),
            (TRANSLATION, 0 | 3) => self.alternate.store(flags == 3, Ordering::Release),
            _ => return Status::UNSUPPORTED_FLAG,
        }
        Status::SUCCESS
    }

    /// `H_REGISTER_PROC_TBL`: radix only.
    fn register_process_table(
        &self,
        [flags, base, page_size, size]: [u64; 4],
        env: &dyn Environment,
    ) -> Status {
        const GTSE: u64 = 0x01;
        const RADIX: u64 = 0x04;
        const REGISTER: u64 = 0x08;
        const MODIFY: u64 = 0x10;
        const LARGEST: u64 = 24;
        /// Guest radix: the partition translates by radix trees of its own.
        const GUEST_RADIX: u64 = 1 << 63;
        if flags & !(RADIX | REGISTER | MODIFY | GTSE) != 0 {
            return Status::PARAMETER;
        }
        if flags & MODIFY == 0 {
            // It asks whether what it believes is so.
            let registered = self.has_process_table.load(Ordering::Acquire);
            return if registered && flags & RADIX != 0 {
                Status::SUCCESS
            } else {
                Status::PARAMETER
            };
        }
        let entry = if flags & REGISTER == 0 {
            0
        } else if flags & RADIX == 0 {
            return Status::PARAMETER;
        } else if base & 0xfff != 0 {
            return Status::P2;
        } else if page_size != 0 {
            return Status::P3;
        } else if size > LARGEST {
            return Status::P4;
        } else if !env.is_memory(base, 4096_u64 << size) {
            return Status::P2;
        } else {
            GUEST_RADIX | base | size
        };
        if !env.set_process_table(entry) {
            return Status::HARDWARE;
        }
        self.has_process_table.store(entry != 0, Ordering::Release);
        Status::SUCCESS
    }

    /// `H_HOME_NODE_ASSOCIATIVITY`: one node; its path is that of `ibm,associativity`.
    fn home_node(&self, flags: u64, server: u64) -> Result<[u64; 6], Status> {
        const OF_A_PROCESSOR: u64 = 1;
        if flags != OF_A_PROCESSOR {
            return Err(Status::FUNCTION);
        }
        if self.cpus.lock().server(server).is_none() {
            return Err(Status::P2);
        }
        // Four domains, each number 0, and the processor; two to a register, then all ones.
        Ok([
            0,
            0,
            server << 32 | u64::from(u32::MAX),
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ])
    }

    /// `H_SIGNAL_SYS_RESET`. [LoPAPR §14.5.4.3.11]
    fn system_reset(&self, vcpu: usize, target: u64, env: &dyn Environment) -> Status {
        const ALL: i64 = -1;
        const ALL_BUT_SELF: i64 = -2;
        let mut cpus = self.cpus.lock();
        let told = match target.cast_signed() {
            ALL => cpus.running(|_| true),
            ALL_BUT_SELF => cpus.running(|other| other != vcpu),
            _ => match cpus.server(target) {
                Some((target, _)) => cpus.running(|other| other == target),
                None => return Status::PARAMETER,
            },
        };
        drop(cpus);
        self.resets.fetch_or(told.bits(), Ordering::AcqRel);
        kick(Some(told), env)
    }
}

fn low(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

fn word(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn answer(gpr: &mut Gpr, status: Status) {
    let [_, _, _, r3, ..] = gpr;
    *r3 = status.bits();
}

/// Values from r4 on, when there are some.
fn values<const N: usize>(gpr: &mut Gpr, found: Result<[u64; N], Status>) -> Status {
    match found {
        Ok(found) => {
            for (to, value) in gpr.iter_mut().skip(4).zip(found) {
                *to = value;
            }
            Status::SUCCESS
        }
        Err(status) => status,
    }
}

/// Tells whom it concerns; without anybody that can be told the call was about no vCPU or source.
fn kick(told: Option<Servers>, env: &dyn Environment) -> Status {
    match told {
        Some(told) => {
            if !told.is_empty() {
                env.kick(told);
            }
            Status::SUCCESS
        }
        None => Status::PARAMETER,
    }
}
