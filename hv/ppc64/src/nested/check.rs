//! A guest of a few instructions, run at every boot: it leaves in each of the ways that guests of a
//! real machine do, and the platform must report each as the code that handles it expects.

use core::arch::global_asm;
use core::num::NonZeroU16;

use hal::{FrameAllocator, OutOfFrames, PhysMemory};
use pagetable::{NotLive, PageTable, Radix, RadixAccess, RadixAttributes, RadixMemory};
use types::{Ipa, Pa, PageSize, Span};

use super::vcpu::{Exit, GuestThread, Loaded, MSR_LE, MSR_ME, MSR_SF, Refused, Vcpu, Watched};
use super::{NoTable, PartitionTable};
use crate::presentation::{self, Afterwards, Listener};
use crate::{smp, spr};

// Entered at guest real address 0 in real mode, with r29 = a page that may not be executed and r30 =
// an address where nothing is. What it leaves in registers is looked at below.
global_asm!(
    r#"
    .section .rodata.check_guest, "a"
    .balign 4
    .global check_guest
check_guest:
    li      3, 0x111
    mftb    4
    .long   0x44000022              // sc 1
    mr      5, 3                    // the answer
    ld      6, 8(30)                // nothing is mapped there
    mtctr   29
    bctrl
    .long   0                       // no instruction
    li      7, 7
    .global check_guest_loop
check_guest_loop:
    lis     11, 0x1000              // longer than any slice, but not for ever
    mtctr   11
1:  bdnz    1b
    .long   0x44000022              // sc 1
    .global check_guest_resume
check_guest_resume:
    mr      8, 31                   // as it was before the exits
    li      11, -1
    mtspr   153, 11                 // FSCR: all facilities
    mfmsr   10
    lis     11, 0x0280              // MSR[VEC], MSR[VSX]
    ori     11, 11, 0x2000          // MSR[FP]
    or      10, 10, 11
    mtmsrd  10
    .long   0x7fff0167              // mtvsrd vs63,r31
    mtspr   815, 31                 // TAR
    .long   0x44000022              // sc 1
    .long   0x7fe90067              // mfvsrd r9,vs63
    mfspr   10, 815
2:  .long   0x44000022              // sc 1
    b       2b
    .global check_guest_end
check_guest_end:
    .text
    "#
);

unsafe extern "C" {
    static check_guest: u8;
    static check_guest_loop: u8;
    static check_guest_resume: u8;
    static check_guest_end: u8;
}

const LPID: NonZeroU16 = NonZeroU16::MIN;
const DATA_PAGE: u64 = 0x1000;
const NOTHING: u64 = 0x1000_0000;
const ANSWER: u64 = 0x2222_3333_4444_5555;
const KEPT: u64 = 0x0123_4567_89ab_cdef;
/// HDSISR: no translation. [Power ISA 3.1B Book III §7.5.16]
const NO_TRANSLATION: u64 = 1 << 30;
/// Ticks that the guest's time base is ahead.
const AHEAD: i64 = 1 << 40;
/// Ticks of a slice.
const SLICE: u64 = 512_000;
/// Slices that a few instructions may take: the machine may be busy elsewhere.
const SLICES: u32 = 1000;
/// Hypercalls over which their cost is averaged.
const TRIPS: u64 = 16;

/// The platform runs guests otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Table(#[from] NoTable),
    #[error("{0}")]
    Frames(#[from] OutOfFrames),
    #[error("its memory cannot be mapped")]
    Map,
    #[error("step {step}: {refused}")]
    Refused { step: u8, refused: Refused },
    #[error("step {step}: unexpected exit ({exit}) at {nip:#x}")]
    Exit { step: u8, exit: Exit, nip: u64 },
    #[error("step {step}: r{register} is {value:#x}")]
    Register {
        step: u8,
        register: usize,
        value: u64,
    },
}

/// Whether the guest's slice is to get lost once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LostSlice {
    /// Its end never comes, and another CPU must make the guest leave: up to 30 ms. Where there is none,
    /// it must come at once.
    Provoke,
    /// All slices end.
    Spare,
}

/// Runs the guest. Gives the ticks from one of its hypercalls to the next.
#[optimize(size)]
pub(crate) fn check<M, F>(memory: M, frames: &F, lost: LostSlice) -> Result<u64, Failure>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    let table = PartitionTable::new(memory, frames)?;
    let result = in_table(memory, frames, &table, lost);
    table.destroy(frames);
    result
}

#[optimize(size)]
fn in_table<M, F>(
    memory: M,
    frames: &F,
    table: &PartitionTable<M>,
    lost: LostSlice,
) -> Result<u64, Failure>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    let code = frames.alloc_zeroed(0)?;
    let data = frames.alloc_zeroed(0)?;
    let mut tree = PageTable::<Radix, _, _>::new_radix(memory, frames)?;
    let data_only = RadixAttributes {
        access: RadixAccess::ReadWrite,
        memory: RadixMemory::Normal,
    };
    let result = map(&mut tree, 0, code, RadixAttributes::RAM)
        .and_then(|()| map(&mut tree, DATA_PAGE, data, data_only))
        .and_then(|()| memory.write(code, program()).map_err(|_| Failure::Map))
        .and_then(|()| {
            table
                .set(LPID, tree.partition_entry(), 0)
                .map_err(|_| Failure::Map)?;
            let result = steps(lost);
            table.set(LPID, 0, 0).map_err(|_| Failure::Map)?;
            result
        });
    tree.destroy(&mut NotLive).map_err(|_| Failure::Map)?;
    frames.free(data, 0);
    frames.free(code, 0);
    result
}

fn map<M, F>(
    tree: &mut PageTable<Radix, M, F>,
    at: u64,
    frame: Pa,
    attributes: RadixAttributes,
) -> Result<(), Failure>
where
    M: PhysMemory,
    F: FrameAllocator,
{
    let span = Span::from_len(Ipa::truncated(at), PageSize::SIZE_4K.bytes()).ok_or(Failure::Map)?;
    tree.map(span, frame, attributes, &mut NotLive)
        .map_err(|_| Failure::Map)
}

fn program() -> &'static [u8] {
    let start = &raw const check_guest;
    let end = &raw const check_guest_end;
    // SAFETY: the assembler put the bytes between the two, and nobody writes to them.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

fn steps(lost: LostSlice) -> Result<u64, Failure> {
    let mut vcpu = Vcpu::new(LPID, 0, MSR_SF | MSR_ME | MSR_LE);
    vcpu.registers.gpr[29] = DATA_PAGE;
    vcpu.registers.gpr[30] = NOTHING;
    vcpu.registers.gpr[31] = KEPT;
    vcpu.set_timebase_offset(AHEAD);
    // SAFETY: this runs before anything else runs guests.
    let mut thread = unsafe { GuestThread::claim(smp::watched()) };
    let mut other = Vcpu::new(LPID, 0, MSR_SF | MSR_ME | MSR_LE);
    let mut loaded = vcpu.load(&mut thread);
    first_steps(&mut loaded, lost)?;
    drop(loaded);
    drop(other.load(&mut thread));
    last_steps(&mut vcpu.load(&mut thread))
}

#[optimize(size)]
fn first_steps(vcpu: &mut Loaded<'_>, lost: LostSlice) -> Result<(), Failure> {
    let before = spr::timebase().wrapping_add_signed(AHEAD);
    expect(vcpu, 1, |exit| exit == Exit::Hcall)?;
    let after = spr::timebase().wrapping_add_signed(AHEAD);
    register(vcpu, 1, 3, |value| value == 0x111)?;
    register(vcpu, 1, 4, |value| (before..=after).contains(&value))?;

    vcpu.vcpu.registers.gpr[3] = ANSWER;
    let load = NOTHING + 8;
    expect(vcpu, 2, |exit| {
        matches!(exit, Exit::DataStorage { effective, real, status }
            if effective == load && real & !0xfff == load & !0xfff && status == NO_TRANSLATION)
    })?;
    register(vcpu, 2, 5, |value| value == ANSWER)?;
    vcpu.vcpu.registers.nip += 4;

    expect(
        vcpu,
        3,
        |exit| matches!(exit, Exit::InstructionStorage { real } if real & !0xfff == DATA_PAGE),
    )?;
    vcpu.vcpu.registers.nip = vcpu.vcpu.registers.link;

    expect(vcpu, 4, |exit| exit == Exit::Emulation)?;
    vcpu.vcpu.registers.nip += 4;

    end_of_slice(vcpu)?;
    register(vcpu, 5, 7, |value| value == 7)?;
    if lost == LostSlice::Provoke {
        vcpu.vcpu.registers.nip = guest_address(&raw const check_guest_loop);
        lose_slice(vcpu)?;
    }
    vcpu.vcpu.registers.nip = guest_address(&raw const check_guest_resume);

    expect(vcpu, 6, |exit| exit == Exit::Hcall)?;
    register(vcpu, 6, 8, |value| value == KEPT)
}

/// Runs the guest until a slice ends in its loop. Where no other CPU watches, the end of a slice may
/// get lost; then the loop is over, and begins anew.
#[optimize(size)]
fn end_of_slice(vcpu: &mut Loaded<'_>) -> Result<(), Failure> {
    for _ in 0..SLICES {
        let mut over = false;
        run_once(vcpu, 5, |exit| {
            over = exit == Exit::SliceEnd;
            over || exit == Exit::Hcall
        })?;
        if !over {
            vcpu.vcpu.registers.nip = guest_address(&raw const check_guest_loop);
        } else if vcpu.vcpu.registers.gpr[7] == 7 {
            return Ok(());
        }
    }
    run_once(vcpu, 5, |exit| exit == Exit::SliceEnd)
}

/// Where the guest finds an instruction of its program.
fn guest_address(label: *const u8) -> u64 {
    (label.addr() - (&raw const check_guest).addr()) as u64
}

/// Enters the guest, which loops, with a slice that ended long ago: another CPU must make it leave, or it
/// must leave at once where there is no other.
fn lose_slice(vcpu: &mut Loaded<'_>) -> Result<(), Failure> {
    vcpu.lose_next();
    match enter_late(vcpu)? {
        Exit::Interrupt if smp::watched() == Watched::ByOthers => {
            take_back();
            end_at_once(vcpu)
        }
        Exit::SliceEnd if smp::watched() == Watched::ByNobody => Ok(()),
        exit => Err(unexpected(vcpu, exit)),
    }
}

/// The same, and nothing is lost: it ends at once, whether others watch or not.
fn end_at_once(vcpu: &mut Loaded<'_>) -> Result<(), Failure> {
    for _ in 0..SLICES {
        match enter_late(vcpu)? {
            // One more that was on its way.
            Exit::Interrupt => take_back(),
            Exit::SliceEnd => return Ok(()),
            exit => return Err(unexpected(vcpu, exit)),
        }
    }
    Err(unexpected(vcpu, Exit::Interrupt))
}

fn enter_late(vcpu: &mut Loaded<'_>) -> Result<Exit, Failure> {
    // SAFETY: as in `run_once`.
    let exit = unsafe { vcpu.enter(1) };
    exit.map_err(|refused| Failure::Refused { step: 5, refused })
}

fn unexpected(vcpu: &Loaded<'_>, exit: Exit) -> Failure {
    let nip = vcpu.vcpu.registers.nip;
    Failure::Exit { step: 5, exit, nip }
}

/// After another CPU's registers were in the thread.
fn last_steps(vcpu: &mut Loaded<'_>) -> Result<u64, Failure> {
    expect(vcpu, 7, |exit| exit == Exit::Hcall)?;
    register(vcpu, 7, 9, |value| value == KEPT)?;
    register(vcpu, 7, 10, |value| value == KEPT)?;

    let before = spr::timebase();
    for _ in 0..TRIPS {
        expect(vcpu, 8, |exit| exit == Exit::Hcall)?;
    }
    Ok(spr::timebase().wrapping_sub(before) / TRIPS)
}

/// Runs the guest until it leaves in another way than by the end of a slice.
fn expect(vcpu: &mut Loaded<'_>, step: u8, wanted: impl Fn(Exit) -> bool) -> Result<(), Failure> {
    for _ in 1..SLICES {
        let mut over = false;
        run_once(vcpu, step, |exit| {
            over = exit == Exit::SliceEnd;
            over || wanted(exit)
        })?;
        if !over {
            return Ok(());
        }
    }
    run_once(vcpu, step, wanted)
}

#[optimize(size)]
fn run_once(
    vcpu: &mut Loaded<'_>,
    step: u8,
    mut wanted: impl FnMut(Exit) -> bool,
) -> Result<(), Failure> {
    let mut kicks = 0;
    loop {
        // SAFETY: the tree of the partition maps two frames that were taken for this.
        let exit = unsafe { vcpu.run(spr::timebase() + SLICE) };
        match exit.map_err(|refused| Failure::Refused { step, refused })? {
            // On a busy machine the end of a slice may come so late that another CPU interferes.
            Exit::Interrupt if kicks < SLICES => {
                take_back();
                kicks += 1;
            }
            exit if wanted(exit) => return Ok(()),
            exit => {
                let nip = vcpu.vcpu.registers.nip;
                return Err(Failure::Exit { step, exit, nip });
            }
        }
    }
}

/// Takes back what interrupted this CPU.
#[inline(never)]
fn take_back() {
    /// No device has an owner yet.
    struct Nobody;

    impl Listener for Nobody {
        fn came(&mut self, _: u32) -> Afterwards {
            Afterwards::Held
        }
    }

    let _ = presentation::acknowledge(&mut Nobody);
}

fn register(
    vcpu: &Loaded<'_>,
    step: u8,
    register: usize,
    wanted: impl Fn(u64) -> bool,
) -> Result<(), Failure> {
    let value = vcpu.vcpu.registers.gpr[register];
    if wanted(value) {
        Ok(())
    } else {
        Err(Failure::Register {
            step,
            register,
            value,
        })
    }
}
