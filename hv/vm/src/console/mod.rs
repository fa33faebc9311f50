//! One terminal for the hypervisor's log, all VMs and the monitor.

mod keys;
mod limit;
mod line;
mod shared;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::monitor::{Editor, Input, PROMPT, Reply, Then};
use keys::{Key, Keys};
use limit::{Limit, Verdict};
use line::Step;

pub use keys::ESCAPE;
pub use line::LONGEST_LINE;
pub use shared::{SharedTerminal, Wire};

const HELP: &str = "\
Ctrl-] 1 to 9   the keyboard goes to that VM
Ctrl-] m        the monitor, and back
Ctrl-] ?        this
Ctrl-] Ctrl-]   sends Ctrl-]
";

/// What somebody typed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Typed {
    /// Nothing that anybody else is to do.
    Nothing,
    /// A byte for a VM.
    Guest {
        /// Which, in the order they were added.
        vm: usize,
        /// The byte.
        byte: u8,
    },
    /// A line for [`Monitor::execute`](crate::Monitor::execute), whose answer goes to
    /// [`Terminal::reply`]. Until then the terminal is to be given nothing that was typed.
    Command(String),
    /// The monitor was left by a key.
    LeftMonitor,
}

/// Whose unfinished line the cursor is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// It is in the first column.
    Free,
    Log,
    Vm(usize),
    Monitor,
}

/// Where a VM's console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// On the terminal.
    Shared,
    /// On a serial line of the VM's own, which is none of the terminal's business.
    Own,
    /// Nowhere: the VM has no console.
    Absent,
}

#[derive(Debug)]
struct Vm {
    prefix: String,
    at: Line,
    line: line::Line,
    limit: Limit,
}

/// A terminal that the hypervisor's log, the VMs and the monitor share.
///
/// A VM that is alone has it as it would have a serial line: every byte goes out as it comes. With
/// several, each line begins with `[name] `. The VM with the keyboard is shown byte for byte; of the
/// others whole lines appear, without what would steer the terminal, and lines over
/// [`LONGEST_LINE`] in pieces. A VM that floods is cut off with a note of how many bytes were
/// dropped. Whoever speaks while another's line is unfinished begins a new one; the unfinished line
/// is repeated when it goes on. The monitor's prompt, with what was typed behind it, is repeated at once.
///
/// Output goes to a sink. It is called with pieces of at most [`LONGEST_LINE`] bytes and must not
/// call back.
#[derive(Debug)]
pub struct Terminal {
    vms: Vec<Vm>,
    /// How many of them are on the terminal.
    shared: usize,
    focus: usize,
    monitor: bool,
    /// A command is being carried out: the prompt comes with its answer.
    busy: bool,
    cursor: Cursor,
    keys: Keys,
    editor: Editor,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// A terminal for the log alone.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            vms: Vec::new(),
            shared: 0,
            focus: 0,
            monitor: false,
            busy: false,
            cursor: Cursor::Free,
            keys: Keys::new(),
            editor: Editor::new(),
        }
    }

    /// Adds a VM. Its number is how many there were before; the first that is on the terminal has the
    /// keyboard.
    pub fn add(&mut self, name: &str, at: Line) {
        if at == Line::Shared {
            if self.shared == 0 {
                self.focus = self.vms.len();
            }
            self.shared = self.shared.saturating_add(1);
        }
        self.vms.push(Vm {
            prefix: format!("[{name}] "),
            at,
            line: line::Line::new(),
            limit: Limit::new(),
        });
    }

    fn is_here(&self, vm: usize) -> bool {
        self.vms.get(vm).is_some_and(|vm| vm.at == Line::Shared)
    }

    /// Whether the keyboard is the monitor's.
    #[must_use]
    pub fn in_monitor(&self) -> bool {
        self.monitor
    }

    /// The VM that has the keyboard, when the monitor has not.
    #[must_use]
    pub fn focus(&self) -> usize {
        self.focus
    }

    /// A byte that a VM prints at `now_us` microseconds. A VM that was not added prints nothing.
    pub fn guest(&mut self, vm: usize, byte: u8, now_us: u64, out: &mut impl FnMut(&[u8])) {
        let alone = self.alone();
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        // Alone, it takes the terminal from nobody.
        let verdict = if alone {
            Verdict::Show
        } else {
            guest.limit.judge(now_us)
        };
        match verdict {
            Verdict::Drop => return,
            Verdict::Show => {}
            Verdict::ShowAfter(dropped) => {
                guest.line.clear();
                self.note_dropped(vm, dropped, out);
            }
        }
        if vm == self.focus && !self.monitor {
            self.live_byte(vm, byte, out);
        } else {
            self.background_byte(vm, byte, out);
            self.prompt_again(out);
        }
    }

    /// A VM has ended: what it left unfinished is shown.
    pub fn ended(&mut self, vm: usize, out: &mut impl FnMut(&[u8])) {
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        let dropped = guest.limit.take_dropped();
        if self.cursor == Cursor::Vm(vm) {
            self.free_cursor(out);
        } else if !guest.line.is_empty() {
            self.whole_line(vm, out);
        }
        if dropped > 0 {
            self.note_dropped(vm, dropped, out);
        }
        if let Some(guest) = self.vms.get_mut(vm) {
            guest.line = line::Line::new();
        }
        self.prompt_again(out);
    }

    /// Bytes of the hypervisor's log. Lines end with a line feed.
    pub fn log(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) {
        self.print(bytes, out);
        self.prompt_again(out);
    }

    /// Shows the monitor's prompt after what others have said.
    fn prompt_again(&mut self, out: &mut impl FnMut(&[u8])) {
        if self.monitor && !self.busy && self.cursor == Cursor::Free {
            self.prompt(out);
        }
    }

    fn print(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.cursor != Cursor::Log {
                self.free_cursor(out);
            }
            let text = piece.strip_suffix(b"\n");
            out(text.unwrap_or(piece));
            self.cursor = Cursor::Log;
            if text.is_some() {
                self.free_cursor(out);
            }
        }
    }

    /// Ends whatever line the cursor is in.
    fn free_cursor(&mut self, out: &mut impl FnMut(&[u8])) {
        if self.cursor != Cursor::Free {
            out(b"\r\n");
            self.cursor = Cursor::Free;
        }
    }

    /// A byte that somebody typed.
    pub fn typed(&mut self, byte: u8, out: &mut impl FnMut(&[u8])) -> Typed {
        match self.keys.feed(byte) {
            Key::Pending => Typed::Nothing,
            Key::Help => {
                self.print(HELP.as_bytes(), out);
                self.print(b"VMs by number:", out);
                for number in 0..self.vms.len().min(9) {
                    self.print(format!(" {}", number.saturating_add(1)).as_bytes(), out);
                    self.print(b" ", out);
                    let name = self.name(number);
                    self.print(name.as_bytes(), out);
                }
                self.print(b"\n", out);
                self.show(out);
                Typed::Nothing
            }
            Key::Focus(vm) if vm < self.vms.len() => self.give(vm, out),
            Key::Focus(vm) => {
                let text = format!("there is no VM {}\n", vm.saturating_add(1));
                self.print(text.as_bytes(), out);
                self.show(out);
                Typed::Nothing
            }
            Key::Monitor if self.monitor => self.give(self.focus, out),
            Key::Monitor => {
                self.open_monitor(out);
                Typed::Nothing
            }
            Key::Byte(byte) if self.monitor => self.edit(byte, out),
            Key::Byte(_) if !self.is_here(self.focus) => Typed::Nothing,
            Key::Byte(byte) => Typed::Guest {
                vm: self.focus,
                byte,
            },
        }
    }

    /// Gives the keyboard to the monitor.
    pub fn open_monitor(&mut self, out: &mut impl FnMut(&[u8])) {
        self.monitor = true;
        self.print(b"Bulkhead's monitor: `help` lists what it knows\n", out);
        self.show(out);
    }

    /// The answer to a [`Typed::Command`].
    pub fn reply(&mut self, reply: &Reply, out: &mut impl FnMut(&[u8])) {
        self.busy = false;
        self.print(reply.text.as_bytes(), out);
        self.free_cursor(out);
        match reply.then {
            Then::Stay => self.show(out),
            Then::Focus(vm) => {
                let _ = self.give(vm, out);
            }
            Then::Leave => {
                let _ = self.give(self.focus, out);
            }
            Then::Quit => {}
        }
    }

    fn alone(&self) -> bool {
        self.shared == 1
    }

    fn name(&self, vm: usize) -> String {
        let prefix = self.vms.get(vm).map(|vm| vm.prefix.trim());
        prefix.unwrap_or_default().into()
    }

    /// Gives a VM the keyboard.
    fn give(&mut self, vm: usize, out: &mut impl FnMut(&[u8])) -> Typed {
        let left = core::mem::replace(&mut self.monitor, false);
        self.editor.clear();
        if self.is_here(vm) {
            self.focus = vm;
        } else if let Some(other) = self.vms.get(vm) {
            let has = match other.at {
                Line::Absent => "no console",
                Line::Own | Line::Shared => "a serial line of its own",
            };
            let text = format!("{} has {has}\n", self.name(vm));
            self.print(text.as_bytes(), out);
        }
        if self.is_here(self.focus) {
            let text = format!("{} has the keyboard\n", self.name(self.focus));
            self.print(text.as_bytes(), out);
        }
        self.show(out);
        if left {
            Typed::LeftMonitor
        } else {
            Typed::Nothing
        }
    }

    /// Shows the unfinished line of whoever has the keyboard.
    fn show(&mut self, out: &mut impl FnMut(&[u8])) {
        if self.monitor {
            return self.prompt(out);
        }
        let focus = self.focus;
        if self.vms.get(focus).is_some_and(|vm| !vm.line.is_empty()) {
            self.resume(focus, out);
        }
    }

    /// Puts the cursor to the end of the monitor's line.
    fn prompt(&mut self, out: &mut impl FnMut(&[u8])) {
        if self.cursor != Cursor::Monitor {
            self.free_cursor(out);
            out(PROMPT);
            out(self.editor.line());
            self.cursor = Cursor::Monitor;
        }
    }

    fn edit(&mut self, byte: u8, out: &mut impl FnMut(&[u8])) -> Typed {
        self.prompt(out);
        match self.editor.input(byte) {
            Input::Nothing => {}
            Input::Refused => out(b"\x07"),
            Input::Added(byte) => out(&[byte]),
            Input::Erased(count) => (0..count).for_each(|_| out(b"\x08 \x08")),
            Input::Leave => {
                self.free_cursor(out);
                return self.give(self.focus, out);
            }
            Input::Line(line) if line.trim().is_empty() => {
                self.free_cursor(out);
                self.prompt(out);
            }
            Input::Line(line) => {
                self.free_cursor(out);
                self.busy = true;
                return Typed::Command(line);
            }
        }
        Typed::Nothing
    }

    /// Puts the cursor to the end of the VM's unfinished line.
    fn resume(&mut self, vm: usize, out: &mut impl FnMut(&[u8])) {
        if self.cursor == Cursor::Vm(vm) {
            return;
        }
        self.free_cursor(out);
        let alone = self.alone();
        if let Some(guest) = self.vms.get(vm) {
            if !alone {
                out(guest.prefix.as_bytes());
            }
            out(guest.line.bytes());
        }
        self.cursor = Cursor::Vm(vm);
    }

    /// A byte of the VM that has the keyboard.
    fn live_byte(&mut self, vm: usize, byte: u8, out: &mut impl FnMut(&[u8])) {
        let alone = self.alone();
        let cursor = self.cursor;
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        let step = guest.line.step(byte);
        if step == Step::Over {
            guest.line.clear();
            if !alone && cursor == Cursor::Vm(vm) {
                out(b"\r");
                out(guest.prefix.as_bytes());
            }
        }
        self.resume(vm, out);
        match (step, byte) {
            _ if alone => out(&[byte]),
            (Step::End, _) => out(b"\r\n"),
            // Until it is known what the return is for.
            (_, b'\r') => {}
            _ => out(&[byte]),
        }
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        match step {
            Step::End => {
                guest.line.clear();
                self.cursor = Cursor::Free;
            }
            Step::On | Step::Over => guest.line.keep(byte),
        }
    }

    /// A byte of a VM that has not.
    fn background_byte(&mut self, vm: usize, byte: u8, out: &mut impl FnMut(&[u8])) {
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        match guest.line.step(byte) {
            Step::End => return self.whole_line(vm, out),
            Step::Over => guest.line.clear(),
            Step::On => {}
        }
        guest.line.keep_text(byte);
        if guest.line.is_full() {
            self.whole_line(vm, out);
        }
    }

    /// Shows what is kept of a VM's line as a line of its own.
    fn whole_line(&mut self, vm: usize, out: &mut impl FnMut(&[u8])) {
        self.free_cursor(out);
        let Some(guest) = self.vms.get_mut(vm) else {
            return;
        };
        out(guest.prefix.as_bytes());
        out(guest.line.bytes());
        out(b"\r\n");
        guest.line.clear();
    }

    fn note_dropped(&mut self, vm: usize, dropped: u64, out: &mut impl FnMut(&[u8])) {
        let text = format!("{} ({dropped} bytes dropped)\n", self.name(vm));
        self.print(text.as_bytes(), out);
    }
}
