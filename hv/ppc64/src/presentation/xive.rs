//! The interrupt controller that writes events to queues in memory, by its registers and the platform's calls.
//! [Linux arch/powerpc/sysdev/xive/spapr.c and common.c, QEMU hw/intc/spapr_xive.c, as facts]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;

use hal::Mutex;
use hal::{FrameAllocator, OutOfFrames};
use xive::esb::{Access, CLEAR, Kind, LOOK_AGAIN, OFF, Source, TRIGGER};
use xive::{Cursor, ENTRIES, QUEUE_BYTES};

use super::{Afterwards, Heard, Listener};
use crate::hcall::{self, Hcall, SUCCESS};

/// No interrupts can be had by it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the device tree says too little of XIVE")]
    Incomplete,
    #[error("{call} answers {status}")]
    Refused { call: &'static str, status: i64 },
    #[error("no queue: {0}")]
    Frames(#[from] OutOfFrames),
}

/// This thread's registers, in the page for operating systems. The priority that a CPU works at is at its own
/// offset; a load of 16 bits from the other one accepts what is pending, and says whether anything was.
const PRIORITY: usize = 0x11;
const ACCEPT: usize = 0x810;
const WAS_PENDING: u16 = 0x8000;
/// The priority that lets everything through, and the one that lets nothing.
const LEAST: u8 = 0xff;
const MOST: u8 = 0;

/// Events that a CPU looks at before it does something else.
const AT_ONCE: u32 = 64;
const _: () = assert!(AT_ONCE < ENTRIES);

/// What a CPU has of it.
#[derive(Debug)]
struct Seat {
    /// Where the words of its queue are: a frame of ours.
    queue: usize,
    cursor: Mutex<Cursor>,
    /// Its interprocessor interrupt.
    ipi: u32,
    bell: Source,
}

/// The controller.
#[derive(Debug)]
pub(super) struct Xive {
    /// This thread's registers, whichever it is.
    thread: usize,
    priority: u8,
    /// By the CPUs' numbers.
    seats: Box<[Seat]>,
    sources: Mutex<Vec<(u32, Source)>>,
}

impl Xive {
    /// A queue and an interprocessor interrupt for each CPU.
    pub(super) fn new(
        controller: &machine::Xive,
        servers: impl Iterator<Item = u64>,
        frames: &impl FrameAllocator,
    ) -> Result<Self, Failure> {
        let ([_, page], Some((first, count)), Some(priority)) = (
            controller.tima.as_slice(),
            controller.ipis,
            controller.priority,
        ) else {
            return Err(Failure::Incomplete);
        };
        // What whoever was here before us has left.
        call("H_INT_RESET", Hcall::IntReset, [0; 5])?;
        let mut seats = Vec::new();
        for (server, number) in servers.zip(0..count) {
            let queue = frames.alloc_zeroed(0)?;
            const _: () = assert!(QUEUE_BYTES == 4096);
            const EACH_IS_TOLD: u64 = 1;
            let (level, log2) = (priority.into(), QUEUE_BYTES.trailing_zeros().into());
            call(
                "H_INT_SET_QUEUE_CONFIG",
                Hcall::IntSetQueueConfig,
                [EACH_IS_TOLD, server, level, queue.bits(), log2],
            )?;
            let ipi = first.checked_add(number).ok_or(Failure::Incomplete)?;
            let bell = source(ipi)?;
            configure(ipi, server, priority)?;
            begin(ipi, bell);
            seats.push(Seat {
                queue: crate::memory::identity(queue),
                cursor: Mutex::new(Cursor::default()),
                ipi,
                bell,
            });
        }
        Ok(Self {
            thread: crate::memory::identity(page.start()),
            priority,
            seats: seats.into_boxed_slice(),
            sources: Mutex::new(Vec::new()),
        })
    }

    pub(super) fn open(&self) {
        self.set_priority(LEAST);
    }

    pub(super) fn close(&self) {
        self.set_priority(MOST);
    }

    fn set_priority(&self, priority: u8) {
        let register = core::ptr::with_exposed_provenance_mut::<u8>(self.thread + PRIORITY);
        // SAFETY: a register of this thread's, by the device tree; interrupts are off, so nothing arrives.
        unsafe { register.write_volatile(priority) };
        in_order();
    }

    fn seat(&self, number: u64) -> Option<&Seat> {
        self.seats.get(usize::try_from(number).ok()?)
    }

    #[optimize(speed)]
    pub(super) fn kick(&self, number: u64) {
        if let Some(seat) = self.seat(number) {
            trigger(seat.ipi, seat.bell);
        }
    }

    /// Takes what is in the queue of this CPU, `number`.
    #[inline]
    #[optimize(speed)]
    pub(super) fn acknowledge(&self, number: u64, listener: &mut impl Listener) -> Heard {
        let register = core::ptr::with_exposed_provenance::<u16>(self.thread + ACCEPT);
        // SAFETY: a register of this thread's, by the device tree, that is for this.
        let accepted = u16::from_be(unsafe { register.read_volatile() });
        in_order();
        if accepted & WAS_PENDING == 0 {
            return Heard::Other;
        }
        let Some(seat) = self.seat(number) else {
            return Heard::Other;
        };
        // Nothing in the queue is told of again: all of it has to be taken, or asked for once more.
        let mut left = AT_ONCE;
        let mut rang = false;
        let mut cursor = seat.cursor.lock();
        while let Some(source) = Self::take(seat, &mut cursor) {
            if source == seat.ipi {
                rang = true;
                end(seat.ipi, seat.bell);
            } else if listener.came(source) == Afterwards::Heard {
                self.end(source);
            }
            left -= 1;
            if left == 0 {
                trigger(seat.ipi, seat.bell);
                break;
            }
        }
        drop(cursor);
        self.open();
        if rang || left == AT_ONCE {
            Heard::Other
        } else {
            Heard::Devices
        }
    }

    #[inline]
    #[optimize(speed)]
    fn take(seat: &Seat, cursor: &mut Cursor) -> Option<u32> {
        cursor.take(|index| {
            let at = seat.queue + 4 * index as usize;
            let word = core::ptr::with_exposed_provenance::<u32>(at);
            // SAFETY: the frame has as many words, and no reference is to any of them.
            u32::from_be(unsafe { word.read_volatile() })
        })
    }

    pub(super) fn direct(&self, number: u32, server: u32) -> bool {
        let Ok(source) = source(number) else {
            return false;
        };
        if self.source(number).is_none() {
            self.sources.lock().push((number, source));
        }
        let done = configure(number, server.into(), self.priority).is_ok();
        if done {
            begin(number, source);
        }
        done
    }

    /// What is known of a source that was directed to a CPU.
    #[inline]
    #[optimize(speed)]
    fn source(&self, number: u32) -> Option<Source> {
        let all = self.sources.lock();
        // Messages, which are most of what comes, were directed last.
        let found = all.iter().rev().find(|(known, _)| *known == number);
        found.map(|(_, source)| *source)
    }

    /// Lets a source through no more; one that is not known never was.
    pub(super) fn silence(&self, number: u32) -> bool {
        self.source(number)
            .is_none_or(|source| load(number, source, OFF).is_some())
    }

    /// An event is over: the next one is let through.
    #[inline]
    #[optimize(speed)]
    pub(super) fn end(&self, number: u32) -> bool {
        self.source(number)
            .is_some_and(|source| end(number, source))
    }
}

fn call(name: &'static str, number: Hcall, arguments: [u64; 5]) -> Result<(), Failure> {
    // SAFETY: the calls of this file change what interrupts a CPU, and make the platform write to queues that
    // are frames of this file's.
    match unsafe { hcall::call_with_five(number, arguments) } {
        SUCCESS => Ok(()),
        status => Err(Failure::Refused { call: name, status }),
    }
}

/// What the platform says of a source.
fn source(number: u32) -> Result<Source, Failure> {
    // SAFETY: asks.
    let outcome = unsafe { hcall::call(Hcall::IntGetSourceInfo, [0, number.into(), 0, 0]) };
    match outcome.status {
        SUCCESS => Ok(Source::from_platform(outcome.values)),
        status => Err(Failure::Refused {
            call: "H_INT_GET_SOURCE_INFO",
            status,
        }),
    }
}

/// Says where a source's events go: they have its own number.
fn configure(number: u32, server: u64, priority: u8) -> Result<(), Failure> {
    const SET_EVENT: u64 = 1 << 1;
    let (source, priority) = (u64::from(number), priority.into());
    call(
        "H_INT_SET_SOURCE_CONFIG",
        Hcall::IntSetSourceConfig,
        [SET_EVENT, source, server, priority, source],
    )
}

/// Lets a source through whose events go somewhere. What came before is forgotten, a line that is up is not.
fn begin(number: u32, source: Source) {
    load(number, source, CLEAR);
    if source.kind == Kind::Level {
        load(number, source, LOOK_AGAIN);
    }
}

/// An event of a source is over, whether it has been silenced meanwhile or not. False when it cannot be told so.
#[inline]
#[optimize(speed)]
fn end(number: u32, source: Source) -> bool {
    let loaded = load(number, source, CLEAR);
    match source.kind {
        Kind::Edge if loaded.is_some_and(|loaded| source.again(loaded)) => trigger(number, source),
        Kind::Edge => {}
        Kind::Level => {
            load(number, source, LOOK_AGAIN);
        }
    }
    loaded.is_some()
}

/// A load from a source's page.
#[inline]
#[optimize(speed)]
fn load(number: u32, source: Source, offset: u64) -> Option<u64> {
    match source.access {
        Access::Pages { manage, .. } => {
            let register =
                core::ptr::with_exposed_provenance::<u64>(usize::try_from(manage + offset).ok()?);
            // SAFETY: the platform says that it is this source's page; what loads from it do is documented.
            let value = u64::from_be(unsafe { register.read_volatile() });
            in_order();
            Some(value)
        }
        Access::Calls => {
            // SAFETY: the same load, by the platform.
            let outcome = unsafe { hcall::call(Hcall::IntEsb, [0, number.into(), offset, 0]) };
            let [value, ..] = outcome.values;
            (outcome.status == SUCCESS).then_some(value)
        }
    }
}

/// Makes an event of a source.
#[inline]
#[optimize(speed)]
fn trigger(number: u32, source: Source) {
    const STORE: u64 = 1;
    match source.access {
        Access::Pages { trigger, .. } => {
            let Ok(address) = usize::try_from(trigger + TRIGGER) else {
                return;
            };
            in_order();
            let register = core::ptr::with_exposed_provenance_mut::<u64>(address);
            // SAFETY: as in `load`; a store there is an interrupt, which whoever takes them expects.
            unsafe { register.write_volatile(0) };
        }
        Access::Calls => {
            // SAFETY: the same store, by the platform.
            let _ = unsafe { hcall::call(Hcall::IntEsb, [STORE, number.into(), TRIGGER, 0]) };
        }
    }
}

/// What is before it in the program is done before what is behind it. [Power ISA 3.1B Book II §4.6.3]
#[inline]
fn in_order() {
    // SAFETY: a barrier.
    unsafe { asm!("sync", options(nostack)) };
}
