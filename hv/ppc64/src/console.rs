//! The console: the platform's virtual terminal with all that share it, and the clock for its log.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use boot::Guard;
use hal::Mutex;
use hal::{Clock, Console};
use vm::{Moderated, Moderation, SharedTerminal};

use crate::hcall::{self, Hcall, SUCCESS};
use crate::messages::RATE;
use crate::presentation::{Afterwards, Sources};
use crate::{cpu, spr};

/// The terminal's unit address; 0 means the first one.
static UNIT: AtomicU64 = AtomicU64::new(0);

/// The terminal's interrupt, by the device tree, or 0.
static SOURCE: AtomicU32 = AtomicU32::new(0);

/// How what is typed interrupts a CPU.
struct Listening {
    source: u32,
    server: u32,
    sources: Sources,
    /// Devices of VMs can forge it as any other.
    account: Mutex<Moderation>,
}

/// There once it does.
static LISTENING: spin::Once<Listening> = spin::Once::new();

/// What is typed interrupts this CPU from now on, where the terminal has an interrupt.
pub(crate) fn listen(sources: Sources) {
    let source = SOURCE.load(Ordering::Relaxed);
    let server = u32::try_from(cpu::this().server()).unwrap_or(u32::MAX);
    if source == 0 || !sources.direct(source, server) {
        log::info!("console: asked for what is typed every 10 ms");
        return;
    }
    log::info!("console: what is typed is interrupt {source:#x}");
    LISTENING.call_once(|| Listening {
        source,
        server,
        sources,
        account: Mutex::new(Moderation::default()),
    });
}

/// Whether what is typed interrupts a CPU, and the terminal need not be asked.
pub(crate) fn interrupts() -> bool {
    LISTENING.is_completed()
}

/// What becomes of the interrupt of a source, if it is the terminal's.
#[inline]
#[optimize(speed)]
pub(crate) fn came(source: u32, now: u64) -> Option<Afterwards> {
    let listening = LISTENING.get().filter(|it| it.source == source)?;
    let mut account = listening.account.lock();
    let muted = account.came(now, RATE) == Moderated::Mute && listening.sources.hold(source);
    Some(if muted {
        Afterwards::Held
    } else {
        Afterwards::Heard
    })
}

/// Hears the terminal again that interrupted too often.
pub(crate) fn look(now: u64) {
    if let Some(listening) = LISTENING.get()
        && listening.account.lock().is_due(now, RATE)
        && !listening
            .sources
            .release(listening.source, listening.server)
    {
        log::warn!("the terminal stays silent");
    }
}

/// The time base's ticks in a second; what every POWER since POWER6 has, until the device tree
/// says.
static FREQUENCY: AtomicU64 = AtomicU64::new(512_000_000);

/// The time base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeBase;

impl TimeBase {
    /// What the device tree says of the rate.
    pub(crate) fn set_frequency(hz: u64) {
        FREQUENCY.store(hz, Ordering::Relaxed);
    }
}

impl Clock for TimeBase {
    fn ticks(&self) -> u64 {
        spr::timebase()
    }

    fn frequency(&self) -> u64 {
        FREQUENCY.load(Ordering::Relaxed)
    }
}

/// Bytes of one call to the platform.
const BLOCK: usize = 16;

/// Bytes on their way to, or from, the platform.
struct Block {
    bytes: [u8; BLOCK],
    next: usize,
    end: usize,
}

impl Block {
    const fn new() -> Self {
        Self {
            bytes: [0; BLOCK],
            next: 0,
            end: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.bytes[self.end] = *byte;
            self.end += 1;
            if self.end == BLOCK {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.end > 0 {
            put(self.bytes, self.end);
            self.end = 0;
        }
    }
}

/// The terminal's wire: the platform's virtual terminal.
pub(crate) struct Vty {
    /// What all that is printed passes, but the last words.
    guard: Guard,
    output: Block,
    /// What was typed and not yet looked at.
    input: Block,
}

impl vm::Wire for Vty {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.output.push(&[self.guard.pass(*byte)]);
        }
    }

    fn flush(&mut self) {
        self.output.flush();
    }

    fn read(&mut self) -> Option<u8> {
        let input = &mut self.input;
        if input.next == input.end {
            let arguments = [UNIT.load(Ordering::Relaxed), 0, 0, 0];
            // SAFETY: the call changes registers only.
            let outcome = unsafe { hcall::call(Hcall::GetTermChar, arguments) };
            let [count, first, second] = outcome.values;
            if outcome.status != SUCCESS {
                return None;
            }
            let value = u128::from(first) << 64 | u128::from(second);
            *input = Block {
                bytes: value.to_be_bytes(),
                next: 0,
                end: usize::try_from(count).map_or(0, |count| count.min(BLOCK)),
            };
        }
        let byte = *input.bytes[..input.end].get(input.next)?;
        input.next += 1;
        Some(byte)
    }

    fn is_at_start(&self) -> bool {
        self.guard.is_at_start()
    }
}

/// The terminal.
pub(crate) static TERMINAL: SharedTerminal<Vty> = SharedTerminal::new(Vty {
    guard: Guard::new(),
    output: Block::new(),
    input: Block::new(),
});

/// The machine's console.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal;

impl Terminal {
    /// Uses the terminal with this unit address and this interrupt.
    pub(crate) fn select(unit: u64, source: Option<u32>) {
        UNIT.store(unit, Ordering::Relaxed);
        SOURCE.store(source.unwrap_or(0), Ordering::Relaxed);
    }
}

fn put(block: [u8; BLOCK], length: usize) {
    /// A terminal that is still busy after so many tries has nobody reading it; losing the
    /// bytes beats hanging the machine.
    const TRIES: u32 = 1_000_000;
    let [first, second] = halves(block);
    for _ in 0..TRIES {
        let arguments = [UNIT.load(Ordering::Relaxed), length as u64, first, second];
        // SAFETY: the call reads registers only.
        let outcome = unsafe { hcall::call(Hcall::PutTermChar, arguments) };
        // A positive status is one of the ways to say busy.
        if outcome.status <= SUCCESS {
            return;
        }
        hal::relax();
    }
}

/// The first character is the most significant byte of the first register. [LoPAPR §16.3.2]
fn halves(block: [u8; BLOCK]) -> [u64; 2] {
    let value = u128::from_be_bytes(block);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of a 128-bit number"
    )]
    [(value >> 64) as u64, value as u64]
}

impl Console for Terminal {
    fn write(&self, bytes: &[u8]) {
        TERMINAL.log(bytes);
    }

    fn read(&self) -> Option<u8> {
        TERMINAL.with_wire(vm::Wire::read)
    }
}

/// Bytes that a VM prints.
pub(crate) fn guest(vm: usize, bytes: &[u8]) {
    let now = TimeBase.ticks() / (TimeBase.frequency() / 1_000_000).max(1);
    TERMINAL.guest(vm, bytes, now);
}

/// Takes the console from everybody for good: what is printed from now on are last words, which begin a
/// line.
pub(crate) fn close() {
    if TERMINAL.close(hal::relax) {
        let _ = core::fmt::Write::write_str(&mut LastWords, "\n");
    }
}

/// A console for the last words: a call to the platform is complete in itself, so it needs no lock,
/// whose holder may not run again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastWords;

impl core::fmt::Write for LastWords {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let mut block = Block::new();
        for piece in text.split_inclusive('\n') {
            let line = piece.strip_suffix('\n');
            block.push(line.unwrap_or(piece).as_bytes());
            if line.is_some() {
                block.push(b"\r\n");
            }
        }
        block.flush();
        Ok(())
    }
}
