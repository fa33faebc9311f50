use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::{any, prop, proptest};

use super::{ESCAPE, Line, Terminal, Typed};
use crate::monitor::{Reply, Then};

/// A terminal and what was written to it.
struct Screen {
    terminal: Terminal,
    shown: Vec<u8>,
}

impl Screen {
    fn new(names: &[&str]) -> Self {
        let mut terminal = Terminal::new();
        names
            .iter()
            .for_each(|name| terminal.add(name, Line::Shared));
        Self {
            terminal,
            shown: Vec::new(),
        }
    }

    fn guest(&mut self, vm: usize, text: &[u8]) {
        let shown = &mut self.shown;
        for byte in text {
            self.terminal
                .guest(vm, *byte, 0, &mut |bytes| shown.extend_from_slice(bytes));
        }
    }

    fn log(&mut self, text: &str) {
        let shown = &mut self.shown;
        self.terminal
            .log(text.as_bytes(), &mut |bytes| shown.extend_from_slice(bytes));
    }

    fn typed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let shown = &mut self.shown;
        let terminal = &mut self.terminal;
        bytes
            .iter()
            .map(|byte| terminal.typed(*byte, &mut |bytes| shown.extend_from_slice(bytes)))
            .filter(|typed| *typed != Typed::Nothing)
            .collect()
    }

    fn reply(&mut self, text: &str, then: Then) {
        let shown = &mut self.shown;
        let reply = Reply {
            text: text.into(),
            then,
        };
        self.terminal
            .reply(&reply, &mut |bytes| shown.extend_from_slice(bytes));
    }

    fn take(&mut self) -> String {
        String::from_utf8_lossy(&core::mem::take(&mut self.shown)).into_owned()
    }
}

#[test]
fn a_vm_alone_is_shown_byte_for_byte() {
    let mut screen = Screen::new(&["one"]);
    let text = b"a\x1b[1mb\r\n\nlogin: \rl";
    screen.guest(0, text);
    assert_eq!(screen.take().as_bytes(), text);
}

#[test]
fn the_log_never_lands_inside_a_line_of_a_vm() {
    let mut screen = Screen::new(&["one"]);
    screen.guest(0, b"login: ");
    screen.log("[0.1] INFO x: y\n");
    screen.guest(0, b"root\r\n");
    assert_eq!(
        screen.take(),
        "login: \r\n[0.1] INFO x: y\r\nlogin: root\r\n"
    );
}

#[test]
fn several_vms_have_a_prefix_and_only_the_one_with_the_keyboard_is_shown_at_once() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(0, b"a\r\n$ ");
    screen.guest(1, b"b\x1b[2Jc");
    assert_eq!(screen.take(), "[one] a\r\n[one] $ ");
    screen.guest(1, b"\n");
    screen.guest(0, b"x");
    assert_eq!(screen.take(), "\r\n[two] bc\r\n[one] $ x");
}

#[test]
fn a_line_that_begins_again_keeps_its_prefix() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(0, b"50%\r60%\r\n");
    assert_eq!(screen.take(), "[one] 50%\r[one] 60%\r\n");
    screen.guest(1, b"[one] fake\rx\n");
    assert_eq!(screen.take(), "[two] x\r\n");
}

#[test]
fn a_line_without_an_end_is_shown_in_pieces() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(1, &[b'x'; 1100]);
    let shown = screen.take();
    let lines: Vec<_> = shown.lines().map(str::len).collect();
    assert_eq!(lines, [6 + 512, 6 + 512]);
}

#[test]
fn the_keyboard_goes_where_the_escape_key_says() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(1, b"login: ");
    let to = |vm, byte| Typed::Guest { vm, byte };
    assert_eq!(screen.typed(b"a"), [to(0, b'a')]);
    assert_eq!(screen.typed(&[ESCAPE, b'2', b'b']), [to(1, b'b')]);
    assert_eq!(screen.take(), "[two] has the keyboard\r\n[two] login: ");
    assert_eq!(screen.typed(&[ESCAPE, b'9', b'c']), [to(1, b'c')]);
    assert!(screen.take().contains("there is no VM 9"));
    assert_eq!(screen.typed(&[ESCAPE, ESCAPE]), [to(1, ESCAPE)]);
}

#[test]
fn a_vm_with_a_line_of_its_own_is_not_on_the_terminal() {
    let mut screen = Screen::new(&[]);
    screen.terminal.add("away", Line::Own);
    assert_eq!(screen.typed(b"x"), [], "nobody is here to type to");
    screen.terminal.add("here", Line::Shared);
    screen.guest(1, b"$ ");
    assert_eq!(screen.take(), "$ ", "alone on it");
    assert_eq!(screen.typed(b"x"), [Typed::Guest { vm: 1, byte: b'x' }]);
    assert_eq!(screen.typed(&[ESCAPE, b'1']), []);
    let shown = screen.take();
    assert!(
        shown.contains("[away] has a serial line of its own"),
        "{shown}"
    );
    assert_eq!(screen.typed(b"y"), [Typed::Guest { vm: 1, byte: b'y' }]);
    screen.take();
    screen.terminal.add("mute", Line::Absent);
    screen.guest(1, b"x");
    assert_eq!(screen.take(), "x", "still alone on it");
    assert_eq!(screen.typed(&[ESCAPE, b'3']), []);
    let shown = screen.take();
    assert!(shown.contains("[mute] has no console"), "{shown}");
    assert!(shown.contains("[here] has the keyboard"), "{shown}");
    let out = &mut screen.shown;
    screen
        .terminal
        .ended(0, &mut |bytes| out.extend_from_slice(bytes));
    assert_eq!(screen.take(), "");
}

#[test]
fn help_names_the_vms() {
    let mut screen = Screen::new(&["one", "two"]);
    assert_eq!(screen.typed(&[ESCAPE, b'?']), []);
    let shown = screen.take();
    assert!(shown.contains("Ctrl-] m"), "{shown}");
    assert!(shown.contains("1 [one] 2 [two]"), "{shown}");
}

#[test]
fn the_monitor_takes_lines_and_gives_the_keyboard_back() {
    let mut screen = Screen::new(&["one", "two"]);
    assert_eq!(screen.typed(&[ESCAPE, b'm']), []);
    assert_eq!(
        screen.typed(b"lisx\x7ft\r"),
        [Typed::Command("list".into())]
    );
    let shown = screen.take();
    assert!(shown.ends_with("monitor> lisx\x08 \x08t\r\n"), "{shown:?}");
    screen.reply("ok\n", Then::Stay);
    assert_eq!(screen.take(), "ok\r\nmonitor> ");
    // A VM speaks while a command is being typed.
    assert_eq!(screen.typed(b"st"), []);
    screen.guest(0, b"hello\n");
    assert_eq!(screen.take(), "st\r\n[one] hello\r\nmonitor> st");
    screen.log("lo");
    assert_eq!(screen.take(), "\r\nlo", "not in the middle of a line");
    screen.log("g\n");
    assert_eq!(screen.typed(b"op"), []);
    assert_eq!(screen.take(), "g\r\nmonitor> stop");
    let command = Typed::Command("stop".into());
    assert_eq!(screen.typed(b"\r"), [command]);
    screen.take();
    screen.log("while it is carried out\n");
    assert_eq!(screen.take(), "while it is carried out\r\n");
    screen.reply("done\n", Then::Stay);
    assert_eq!(screen.take(), "done\r\nmonitor> ");
    assert_eq!(screen.typed(&[0x15, 0x04]), [Typed::LeftMonitor]);
    assert_eq!(
        screen.typed(b"x"),
        [Typed::Guest { vm: 0, byte: b'x' }],
        "Ctrl-D leaves"
    );
    screen.typed(&[ESCAPE, b'm', b'f', b'\r']);
    screen.reply("", Then::Focus(1));
    assert_eq!(screen.typed(b"x"), [Typed::Guest { vm: 1, byte: b'x' }]);
}

#[test]
fn a_flood_is_cut_and_the_neighbour_and_the_log_are_not() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(1, &[b'x'; 1 << 20]);
    assert!(screen.take().len() < 140 << 10);
    screen.guest(0, b"alive\r\n");
    screen.log("log\n");
    assert_eq!(screen.take(), "[one] alive\r\nlog\r\n");
    let shown = &mut screen.shown;
    screen
        .terminal
        .guest(1, b'\n', 10_000_000, &mut |b| shown.extend_from_slice(b));
    let dropped = (1 << 20) - (128 << 10);
    assert!(
        screen
            .take()
            .starts_with(&alloc::format!("[two] ({dropped} bytes dropped)\r\n"))
    );
}

#[test]
fn a_vm_that_ends_leaves_no_unfinished_line() {
    let mut screen = Screen::new(&["one", "two"]);
    screen.guest(0, b"bye");
    screen.guest(1, b"byebye");
    for vm in [0, 1] {
        let shown = &mut screen.shown;
        screen
            .terminal
            .ended(vm, &mut |bytes| shown.extend_from_slice(bytes));
    }
    assert_eq!(screen.take(), "[one] bye\r\n[two] byebye\r\n");
}

proptest! {
    /// Whatever two VMs print, every line of the terminal begins with a prefix or is the log's,
    /// and no memory is taken beyond a line each.
    #[test]
    fn no_vm_speaks_for_another(
        pieces in prop::collection::vec((0_usize..3, prop::collection::vec(any::<u8>(), 0..40)), 0..40)
    ) {
        let mut screen = Screen::new(&["one", "two"]);
        for (who, piece) in pieces {
            match who {
                2 => screen.log("log\n"),
                // Bare returns and sequences are the right of the one with the keyboard.
                0 => {
                    let plain: Vec<_> = piece.into_iter().filter(|b| *b >= 0x20 || *b == 10).collect();
                    screen.guest(0, &plain);
                }
                _ => screen.guest(1, &piece),
            }
        }
        for line in screen.take().split_terminator("\r\n") {
            assert!(
                line.starts_with("[one] ") || line.starts_with("[two] ") || line == "log",
                "{line:?}"
            );
        }
    }

    /// Typed bytes never panic and come out once.
    #[test]
    fn anything_can_be_typed(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut screen = Screen::new(&["one", "two"]);
        for byte in bytes {
            if let [Typed::Command(line)] = &screen.typed(&[byte])[..] {
                assert!(line.len() <= 127);
                screen.reply("", Then::Stay);
            }
        }
    }
}
