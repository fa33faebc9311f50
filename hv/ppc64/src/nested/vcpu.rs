//! A guest CPU, and how it is run.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::num::NonZeroU16;

use super::state::{HvState, Registers, VERSION};
use super::switch::Unswitched;
use crate::hcall::{self, Hcall};
use crate::{cpu, presentation, spr};

/// The shortest time a guest is given, in ticks. A deadline that has passed when the platform reads
/// it never comes: QEMU arms no timer for it, and the guest would run for ever. So the deadline is
/// computed just before the call, with room for the time that this thread may lose in between.
const SHORTEST_SLICE: u64 = 131_072;

/// Decrementer bits: those of every POWER since POWER9 with the large decrementer.
const DECREMENTER_MAX: u64 = (1 << 55) - 1;

/// Machine check enable, 64-bit mode: always on for a guest when it starts.
pub(crate) const MSR_SF: u64 = 1 << 63;
/// Machine check enable.
pub(crate) const MSR_ME: u64 = 1 << 12;
/// Little-endian mode.
pub(crate) const MSR_LE: u64 = 1 << 0;
/// External interrupts and the decrementer are let through.
pub(crate) const MSR_EE: u64 = 1 << 15;
/// Instructions and data are translated.
const MSR_IR_DR: u64 = 0x30;
/// Problem state.
const MSR_PR: u64 = 1 << 14;
/// Hypervisor state: never a guest's.
const MSR_HV: u64 = 1 << 60;

/// `LPCR[LD]`: the decrementer is large.
const LPCR_LD: u64 = 1 << 17;

/// `LPCR[ILE]`: interrupts arrive in little-endian mode.
const LPCR_ILE: u64 = 1 << 25;
/// `LPCR[AIL]` = 3: interrupts leave translation on and arrive at [`ALTERNATE`].
const LPCR_AIL: u64 = 3 << 23;
const ALTERNATE: u64 = 0xc000_0000_0000_4000;

/// The vectors that always arrive with translation off. [Power ISA 3.1B Book III §7.5]
pub(crate) const SYSTEM_RESET: u64 = 0x100;
/// A machine check.
pub(crate) const MACHINE_CHECK: u64 = 0x200;

/// Facilities of a guest: all that its own FSCR does not refuse.
const HFSCR_ALL: u64 = 0xff;

/// The byte order in which interrupts arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Big,
    Little,
}

/// Where interrupts arrive that come while addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// At their vectors, in real mode.
    Low,
    /// High up, with translation left on.
    Alternate,
}

/// The seam to the platform: how the registers that it switches get into a CPU and out of it. Others than
/// [`V1`] are described in docs/power-boot.md, "The seam to other platforms".
trait Enter {
    /// Runs a guest CPU until it leaves: the vector by which it did. What the platform does not switch is in
    /// the thread, before and after.
    ///
    /// # Safety
    /// The guest must reach memory of its own only, and nobody may depend on what registers hold that are
    /// not in the two structures.
    unsafe fn enter(state: &mut HvState, registers: &mut Registers) -> Result<Vector, Refused>;
}

/// Version 1 of the platform's calls: `H_ENTER_NESTED`.
struct V1;

impl Enter for V1 {
    #[optimize(speed)]
    #[inline]
    unsafe fn enter(state: &mut HvState, registers: &mut Registers) -> Result<Vector, Refused> {
        let state = core::ptr::from_mut(state).expose_provenance() as u64;
        let registers = core::ptr::from_mut(registers).expose_provenance() as u64;
        // SAFETY: the platform reads and writes the two structures, which are exactly as it wants
        // them and which nothing else uses now; the rest is the caller's promise.
        let outcome = unsafe { hcall::call(Hcall::EnterNested, [state, registers, 0, 0]) };
        // Vectors are positive, and so are some refusals; no vector lies below the first.
        match outcome.status {
            status @ ..0x100 => Err(Refused { status }),
            vector => Ok(Vector(vector.cast_unsigned())),
        }
    }
}

/// By what a guest CPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vector(u64);

impl Vector {
    /// A hypercall.
    pub(crate) const HYPERCALL: Self = Self(0xc00);
    /// An external interrupt.
    pub(crate) const EXTERNAL: Self = Self(0x500);
    /// The same, where it is virtualized.
    pub(crate) const VIRTUALIZATION: Self = Self(0xea0);
}

/// Why a guest CPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A hypercall, in r3 and up. SRR0 and SRR1 of the guest are lost, as for every hypercall.
    Hcall,
    /// A hypercall instruction in problem state: the answer is `H_PRIVILEGE`.
    HcallFromUser,
    /// The time slice is over.
    SliceEnd,
    /// A load or store of a guest real address that is not mapped, or not so.
    DataStorage {
        /// The effective address.
        effective: u64,
        /// The guest real address.
        real: u64,
        /// HDSISR.
        status: u64,
    },
    /// An instruction fetch of one.
    InstructionStorage {
        /// The guest real address.
        real: u64,
    },
    /// An instruction that the CPU does not have. It must be read from the guest's memory.
    Emulation,
    /// Something for the hypervisor itself is pending.
    Interrupt,
    /// A facility that HFSCR refuses.
    Facility,
    /// A doorbell.
    Doorbell,
    /// A machine check while the guest ran.
    MachineCheck,
    /// A system reset while the guest ran.
    Reset,
    /// A vector that no platform is known to leave by.
    Unknown {
        /// The vector.
        vector: u64,
    },
}

impl core::fmt::Display for Exit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match *self {
            Self::Hcall => "hypercall",
            Self::HcallFromUser => "hypercall in problem state",
            Self::SliceEnd => "end of the slice",
            Self::DataStorage {
                effective,
                real,
                status,
            } => {
                return write!(
                    f,
                    "data storage {effective:#x} ({real:#x}, status {status:#x})"
                );
            }
            Self::InstructionStorage { real } => {
                return write!(f, "instruction storage {real:#x}");
            }
            Self::Emulation => "emulation",
            Self::Interrupt => "interrupt",
            Self::Facility => "facility",
            Self::Doorbell => "doorbell",
            Self::MachineCheck => "machine check",
            Self::Reset => "reset",
            Self::Unknown { vector } => return write!(f, "vector {vector:#x}"),
        })
    }
}

/// The platform did not run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("H_ENTER_NESTED answers {status}")]
pub(crate) struct Refused {
    pub(crate) status: i64,
}

/// A guest CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    state: Box<HvState>,
    pub(crate) registers: Box<Registers>,
    unswitched: Unswitched,
}

impl Vcpu {
    /// A CPU of the partition `lpid` that starts at `nip` with `msr`.
    pub(crate) fn new(lpid: NonZeroU16, nip: u64, msr: u64) -> Self {
        let state = HvState {
            version: VERSION,
            lpid: lpid.get().into(),
            lpcr: LPCR_LD,
            hfscr: HFSCR_ALL,
            ..HvState::default()
        };
        let registers = Registers {
            nip,
            msr,
            ..Registers::default()
        };
        Self {
            state: Box::new(state),
            registers: Box::new(registers),
            unswitched: Unswitched::default(),
        }
    }

    /// Puts the CPU's registers into this thread, where they stay until the value is dropped.
    pub(crate) fn load<'a>(&'a mut self, thread: &'a mut GuestThread) -> Loaded<'a> {
        self.unswitched.load();
        Loaded { vcpu: self, thread }
    }

    /// Why it stopped, when it did so by `vector`.
    #[optimize(speed)]
    pub(crate) fn exit(&self, Vector(vector): Vector) -> Exit {
        match vector {
            0xc00 if self.registers.msr & MSR_PR != 0 => Exit::HcallFromUser,
            0xc00 => Exit::Hcall,
            0x980 => Exit::SliceEnd,
            0xe00 => Exit::DataStorage {
                effective: self.state.hdar,
                real: self.state.asdr,
                status: self.state.hdsisr,
            },
            0xe20 => Exit::InstructionStorage {
                real: self.state.asdr,
            },
            0xe40 => Exit::Emulation,
            0x500 | 0xea0 => Exit::Interrupt,
            0xe80 => Exit::Doorbell,
            0xf80 => Exit::Facility,
            0x200 => Exit::MachineCheck,
            0x100 => Exit::Reset,
            vector => Exit::Unknown { vector },
        }
    }

    /// Makes the CPU take an interrupt, as its own hardware would have. `reason` goes to SRR1, where
    /// bits 33 to 36 and 42 to 47 say why. [Power ISA 3.1B Book III §7.5]
    #[optimize(speed)]
    pub(crate) fn interrupt(&mut self, vector: u64, reason: u64) {
        const REASONS: u64 = 0x783f_0000;
        let msr = self.registers.msr;
        self.state.srr0 = self.registers.nip;
        self.state.srr1 = msr & !REASONS | reason;
        self.registers.msr = MSR_SF | MSR_ME;
        if self.state.lpcr & LPCR_ILE != 0 {
            self.registers.msr |= MSR_LE;
        }
        self.registers.nip = vector;
        let moves = !matches!(vector, SYSTEM_RESET | MACHINE_CHECK);
        let stays = moves && self.state.lpcr & LPCR_AIL == LPCR_AIL;
        if stays && msr & MSR_IR_DR == MSR_IR_DR {
            self.registers.msr |= MSR_IR_DR;
            self.registers.nip |= ALTERNATE;
        }
    }

    /// As a CPU comes out of reset, at `nip` in 64-bit big-endian real mode.
    pub(crate) fn reset(&mut self, nip: u64) {
        let lpid = self.state.lpid;
        let offset = self.state.tb_offset;
        *self.state = HvState {
            version: VERSION,
            lpid,
            lpcr: LPCR_LD,
            hfscr: HFSCR_ALL,
            tb_offset: offset,
            ..HvState::default()
        };
        *self.registers = Registers {
            nip,
            msr: MSR_SF | MSR_ME,
            ..Registers::default()
        };
        self.unswitched = Unswitched::default();
    }

    /// How interrupts arrive from now on: in which byte order, and where.
    #[optimize(speed)]
    pub(crate) fn set_interrupts(&mut self, order: Order, location: Location) {
        self.state.lpcr = LPCR_LD
            | match order {
                Order::Big => 0,
                Order::Little => LPCR_ILE,
            }
            | match location {
                Location::Low => 0,
                Location::Alternate => LPCR_AIL,
            };
    }

    /// Sets SPRG0.
    pub(crate) fn set_sprg0(&mut self, value: u64) {
        self.state.sprg[0] = value;
    }

    /// Whether it is not in problem state.
    pub(crate) fn is_privileged(&self) -> bool {
        self.registers.msr & MSR_PR == 0
    }

    /// Whether external interrupts are let through.
    pub(crate) fn lets_interrupts_through(&self) -> bool {
        self.registers.msr & MSR_EE != 0
    }

    /// Lets external interrupts through.
    pub(crate) fn let_interrupts_through(&mut self) {
        self.registers.msr |= MSR_EE;
    }

    /// The time base at which its decrementer becomes negative. Right while it is off a thread.
    pub(crate) fn decrementer_expires(&self) -> u64 {
        self.unswitched.decrementer_expires
    }

    /// Its registers by name.
    pub(crate) fn view(&self) -> Vec<(&'static str, u64)> {
        const R: [&str; 32] = [
            "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15", "r16", "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25",
            "r26", "r27", "r28", "r29", "r30", "r31",
        ];
        let registers = &self.registers;
        let mut view: Vec<_> = R.into_iter().zip(registers.gpr).collect();
        view.extend([
            ("nip", registers.nip),
            ("msr", registers.msr),
            ("lr", registers.link),
            ("ctr", registers.ctr),
            ("cr", registers.ccr),
            ("xer", registers.xer),
            ("srr0", self.state.srr0),
            ("srr1", self.state.srr1),
            ("pidr", self.state.pidr),
            ("lpcr", self.state.lpcr),
        ]);
        view
    }

    /// Lets the guest's time base run ahead of ours by this many ticks.
    pub(crate) fn set_timebase_offset(&mut self, ticks: i64) {
        self.state.tb_offset = ticks;
    }
}

/// What makes the end of a slice sure.
///
/// The platform sees the end as the hypervisor's decrementer going from positive to negative. One that is
/// negative when a guest is entered, because this thread lost time after it had read the clock, and was so
/// before, makes no such step in QEMU (hw/ppc/ppc.c), and the guest runs for ever. So the decrementer is
/// made positive first: by entering a partition without memory, which leaves at its first instruction. Where other
/// CPUs watch, this is done only when it is negative for sure, which it is after each slice: two that lost the ends of
/// theirs at the same time would wait for each other.
#[derive(Debug)]
struct Primer {
    state: Box<HvState>,
    registers: Box<Registers>,
}

impl Primer {
    /// Ticks from now to an end that never comes: a year.
    const FAR: u64 = 1 << 54;

    fn new() -> Self {
        let state = HvState {
            version: VERSION,
            lpid: super::NO_PARTITION.into(),
            lpcr: LPCR_LD,
            hfscr: HFSCR_ALL,
            ..HvState::default()
        };
        Self {
            state: Box::new(state),
            registers: Box::new(Registers::default()),
        }
    }

    /// Makes the decrementer positive. Other registers stay as they are: nothing is executed, so those that it
    /// has never change either.
    #[inline]
    fn prime(&mut self) {
        self.registers.msr = MSR_SF | MSR_ME;
        self.registers.nip = 0;
        self.state.hdec_expiry = spr::timebase().wrapping_add(Self::FAR);
        // SAFETY: the partition has no memory. How it is left says nothing.
        let _ = unsafe { V1::enter(&mut self.state, &mut self.registers) };
    }
}

/// Whether other CPUs see to it that guests leave at the ends of their slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// They do.
    ByOthers,
    /// There is no other CPU.
    ByNobody,
}

/// The right to run guests on this thread. While it exists there is no watchpoint below the thread's
/// stack, because it would be the guest's, too; the pattern stays.
#[derive(Debug)]
pub(crate) struct GuestThread {
    watched: bool,
    primer: Primer,
    /// While the time base is below this, the hypervisor's decrementer is positive.
    positive_until: u64,
    /// What of the end of a slice may be believed to be that: all bits, or none where nobody else would end a slice
    /// that got lost all the same.
    believed: u64,
    /// Not to be sent elsewhere.
    _here: PhantomData<*const ()>,
}

impl GuestThread {
    /// The right for the thread that calls.
    ///
    /// # Safety
    /// There must be one a thread at most.
    pub(crate) unsafe fn claim(ends: Watched) -> Self {
        presentation::open();
        Self {
            watched: hcall::watch_nothing().is_ok(),
            primer: Primer::new(),
            positive_until: 0,
            believed: match ends {
                Watched::ByOthers => u64::MAX,
                Watched::ByNobody => 0,
            },
            _here: PhantomData,
        }
    }
}

impl Drop for GuestThread {
    fn drop(&mut self) {
        presentation::close();
        if self.watched {
            // It was on before, so it can be on again.
            let _ = hcall::watch_stores(cpu::this().guard());
        }
    }
}

/// A guest CPU whose registers are in a thread.
#[derive(Debug)]
pub(crate) struct Loaded<'a> {
    pub(crate) vcpu: &'a mut Vcpu,
    thread: &'a mut GuestThread,
}

/// Gives the thread to the platform until an interrupt: another CPU's, or the decrementer's, at
/// `until`. No guest is entered meanwhile.
pub(crate) fn sleep(_: &GuestThread, until: u64) {
    let left = until.saturating_sub(spr::timebase());
    let left = i64::try_from(left).unwrap_or(i64::MAX);
    spr::set_decrementer(left.min(i64::from(i32::MAX)));
    // SAFETY: waits for an interrupt. The call comes back with interrupts on; the vectors of those
    // that are let through turn them off, or return.
    let _ = unsafe { hcall::call(Hcall::Cede, [0; 4]) };
    spr::interrupts_off();
    spr::postpone_decrementer();
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.vcpu.unswitched.save();
        // The platform keeps a doorbell that the guest has rung for its thread, whoever comes next.
        spr::clear_doorbell();
    }
}

impl Loaded<'_> {
    /// Runs the CPU until something happens, and no longer than until `deadline` (or the shortest
    /// slice from now).
    ///
    /// # Errors
    /// [`Refused`], with the CPU unchanged.
    ///
    /// # Safety
    /// The partition's tree must give the guest only memory that is its own.
    #[inline(never)]
    pub(crate) unsafe fn run(&mut self, deadline: u64) -> Result<Exit, Refused> {
        // SAFETY: passed on to the caller.
        let vector = unsafe { self.run_to_vector(deadline) };
        vector.map(|vector| self.vcpu.exit(vector))
    }

    /// The same, by which vector it happens.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    ///
    /// # Safety
    /// As [`Loaded::run`].
    #[optimize(speed)]
    #[inline]
    pub(crate) unsafe fn run_to_vector(&mut self, deadline: u64) -> Result<Vector, Refused> {
        let earliest = spr::timebase() + SHORTEST_SLICE;
        // SAFETY: passed on to the caller.
        unsafe { self.enter_to_vector(deadline.max(earliest)) }
    }

    /// As [`Loaded::run`], with the end of the slice as it is given. One that is past comes at once, as long as the
    /// hypervisor's decrementer was positive ([`Primer`]); else only another CPU ends the slice.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    ///
    /// # Safety
    /// As [`Loaded::run`].
    #[inline(never)]
    pub(super) unsafe fn enter(&mut self, slice_end: u64) -> Result<Exit, Refused> {
        // SAFETY: passed on to the caller.
        let vector = unsafe { self.enter_to_vector(slice_end) };
        vector.map(|vector| self.vcpu.exit(vector))
    }

    /// # Safety
    /// As [`Loaded::run`].
    #[optimize(speed)]
    #[inline]
    unsafe fn enter_to_vector(&mut self, slice_end: u64) -> Result<Vector, Refused> {
        let vcpu = &mut *self.vcpu;
        vcpu.registers.msr = vcpu.registers.msr & !MSR_HV | MSR_ME;
        // What directed doorbells a guest leaves pending makes QEMU stop.
        vcpu.state.dpdes = 0;
        let mut now = spr::timebase();
        if now >= self.thread.positive_until {
            self.thread.primer.prime();
            now = spr::timebase();
        }
        let left = vcpu.unswitched.decrementer_expires.wrapping_sub(now);
        spr::set_decrementer(
            left.cast_signed()
                .clamp(i64::MIN >> 9, DECREMENTER_MAX.cast_signed()),
        );
        vcpu.state.hdec_expiry = slice_end;
        cpu::this().slice_begins(slice_end);
        // SAFETY: the guest touches its own memory only, by the caller's promise, and the registers
        // that it changes beside those that come back are the guest's as long as `self` lives.
        let vector = unsafe { V1::enter(&mut vcpu.state, &mut vcpu.registers) };
        cpu::this().slice_ends();
        self.thread.positive_until = match vector {
            Ok(_) => slice_end & self.thread.believed,
            Err(_) => 0,
        };
        let left = spr::decrementer();
        vcpu.unswitched.decrementer_expires = spr::timebase().wrapping_add_signed(left);
        spr::postpone_decrementer();
        vector
    }

    /// Has the next entry lose the end of its slice, if it is past.
    pub(super) fn lose_next(&mut self) {
        self.thread.positive_until = self.thread.believed;
    }

    /// What the guest shall find in DAR and DSISR.
    pub(crate) fn set_fault(&mut self, address: u64, status: u64) {
        spr::set_dar(address);
        spr::set_dsisr(status);
    }

    /// The time base at which its decrementer becomes negative.
    pub(crate) fn decrementer_expires(&self) -> u64 {
        self.vcpu.unswitched.decrementer_expires
    }

    /// As [`sleep`], with the CPU's registers in the thread.
    pub(crate) fn sleep(&self, until: u64) {
        sleep(self.thread, until);
    }
}
