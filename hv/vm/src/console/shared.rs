//! The terminal behind a lock, with the wire that its bytes go to and come from.

use core::sync::atomic::{AtomicBool, Ordering};

use hal::TicketMutex;

use super::{Line, Terminal, Typed};
use crate::Reply;

/// What carries the terminal's bytes.
pub trait Wire {
    /// Sends bytes, or gathers them until [`Self::flush`].
    fn write(&mut self, bytes: &[u8]);

    /// Nothing more comes for now.
    fn flush(&mut self) {}

    /// A byte that somebody typed.
    fn read(&mut self) -> Option<u8>;

    /// What was sent last ended a line.
    fn is_at_start(&self) -> bool;
}

struct Shared<W> {
    terminal: Terminal,
    wire: W,
}

/// A [`Terminal`] that all CPUs share.
///
/// The lock is fair: a guest that prints without end must not keep the others from it.
pub struct SharedTerminal<W> {
    shared: TicketMutex<Shared<W>>,
    closed: AtomicBool,
}

/// Looks at the lock before who holds it is believed to be who failed: more than printing the longest line
/// takes at 115,200 baud.
const LOOKS: u32 = 10_000_000;

impl<W: Wire> SharedTerminal<W> {
    /// For the log alone.
    pub const fn new(wire: W) -> Self {
        Self {
            shared: TicketMutex::new(Shared {
                terminal: Terminal::new(),
                wire,
            }),
            closed: AtomicBool::new(false),
        }
    }

    /// Does something with the terminal.
    fn with<R>(&self, what: impl FnOnce(&mut Terminal, &mut dyn FnMut(&[u8])) -> R) -> R {
        let Shared { terminal, wire } = &mut *self.shared.lock();
        let result = what(terminal, &mut |bytes| wire.write(bytes));
        wire.flush();
        result
    }

    /// Does something with the wire.
    pub fn with_wire<R>(&self, what: impl FnOnce(&mut W) -> R) -> R {
        what(&mut self.shared.lock().wire)
    }

    /// Adds a VM. They are numbered in this order.
    pub fn add(&self, name: &str, line: Line) {
        self.shared.lock().terminal.add(name, line);
    }

    /// Bytes of the log.
    pub fn log(&self, bytes: &[u8]) {
        self.with(|terminal, mut out| terminal.log(bytes, &mut out));
    }

    /// Bytes that a VM prints at `now_us` microseconds.
    pub fn guest(&self, vm: usize, bytes: &[u8], now_us: u64) {
        self.with(|terminal, mut out| {
            for byte in bytes {
                terminal.guest(vm, *byte, now_us, &mut out);
            }
        });
    }

    /// A VM has ended.
    pub fn ended(&self, vm: usize) {
        self.with(|terminal, mut out| terminal.ended(vm, &mut out));
    }

    /// The next byte that somebody typed, and what it means.
    pub fn typed(&self) -> Option<Typed> {
        let byte = self.with_wire(Wire::read)?;
        Some(self.with(|terminal, mut out| terminal.typed(byte, &mut out)))
    }

    /// The monitor's answer.
    pub fn reply(&self, reply: &Reply) {
        self.with(|terminal, mut out| terminal.reply(reply, &mut out));
    }

    /// Gives the keyboard to the monitor.
    pub fn open_monitor(&self) {
        self.with(|terminal, mut out| terminal.open_monitor(&mut out));
    }

    /// Whether the keyboard is the monitor's.
    pub fn in_monitor(&self) -> bool {
        self.shared.lock().terminal.in_monitor()
    }

    /// Takes the terminal from everybody for good, for the last words: nothing is printed between them, and
    /// nothing after them. True when they have to begin a line; the second call says so no more.
    ///
    /// Its holder may be who failed, so it is not waited for without end; `relax` is called between looks.
    pub fn close(&self, relax: impl Fn()) -> bool {
        if self.closed.load(Ordering::Relaxed) {
            return false;
        }
        for _ in 0..LOOKS {
            let Some(shared) = self.shared.try_lock() else {
                relax();
                continue;
            };
            self.closed.store(true, Ordering::Relaxed);
            let is_at_start = shared.wire.is_at_start();
            core::mem::forget(shared);
            return !is_at_start;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::{SharedTerminal, Wire};
    use crate::{Line, Typed};

    #[derive(Default)]
    struct Paper {
        held: Vec<u8>,
        shown: String,
        typed: VecDeque<u8>,
    }

    impl Wire for Paper {
        fn write(&mut self, bytes: &[u8]) {
            self.held.extend_from_slice(bytes);
        }

        fn flush(&mut self) {
            let held = core::mem::take(&mut self.held);
            self.shown.extend(held.into_iter().map(char::from));
        }

        fn read(&mut self) -> Option<u8> {
            self.typed.pop_front()
        }

        fn is_at_start(&self) -> bool {
            self.shown.ends_with('\n')
        }
    }

    fn shown(terminal: &SharedTerminal<Paper>) -> String {
        terminal.with_wire(|wire| {
            assert!(wire.held.is_empty(), "all was flushed");
            core::mem::take(&mut wire.shown)
        })
    }

    #[test]
    fn bytes_go_to_the_wire_and_come_from_it() {
        let terminal = SharedTerminal::new(Paper::default());
        terminal.add("one", Line::Shared);
        terminal.log(b"a line\n");
        terminal.guest(0, b"guest", 0);
        terminal.ended(0);
        assert_eq!(shown(&terminal), "a line\r\nguest\r\n");
        assert_eq!(terminal.typed(), None);
        terminal.with_wire(|wire| wire.typed.push_back(b'x'));
        assert_eq!(terminal.typed(), Some(Typed::Guest { vm: 0, byte: b'x' }));
        assert!(!terminal.in_monitor());
        terminal.open_monitor();
        assert!(terminal.in_monitor());
    }

    #[test]
    fn after_closing_nobody_gets_it_and_last_words_begin_a_line() {
        let terminal = SharedTerminal::new(Paper::default());
        terminal.log(b"done\n");
        assert!(!terminal.close(|| {}));
        assert!(terminal.shared.try_lock().is_none());

        let terminal = SharedTerminal::new(Paper::default());
        terminal.add("one", Line::Shared);
        terminal.guest(0, b"half a li", 0);
        assert!(terminal.close(|| {}));
        assert!(!terminal.close(|| {}), "once");
    }

    #[test]
    fn a_holder_that_never_returns_is_not_waited_for_without_end() {
        let terminal = SharedTerminal::new(Paper::default());
        let _held = terminal.shared.lock();
        assert!(terminal.close(|| {}));
    }
}
