//! The terminal of whoever runs us: raw while a guest's console is on it.

use std::io::IsTerminal as _;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal in raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal on standard input into raw mode, if there is one and the console is on a
    /// terminal too.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || !std::io::stdout().is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Ctrl-C stays a signal: it is how a run ends. Output keeps its carriage returns.
        raw.local_modes |= LocalModes::ISIG;
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing to be done about a terminal that went away.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What a key press means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Bytes for the guest.
    Guest(Vec<u8>),
    /// The end of the run.
    Quit,
}

/// Finds the escapes (Ctrl-A and a letter) in what is typed.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes what was typed.
    pub(crate) fn feed(&mut self, typed: &[u8]) -> Key {
        const CTRL_A: u8 = 1;
        const CTRL_C: u8 = 3;
        let mut out = Vec::new();
        for &byte in typed {
            if !self.escaped {
                match byte {
                    CTRL_A => self.escaped = true,
                    byte => out.push(byte),
                }
                continue;
            }
            self.escaped = false;
            match byte {
                b'x' => return Key::Quit,
                b'c' => out.push(CTRL_C),
                b'a' | CTRL_A => out.push(CTRL_A),
                other => out.extend([CTRL_A, other]),
            }
        }
        Key::Guest(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_work_across_reads() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"ls\x01"), Key::Guest(b"ls".to_vec()));
        assert_eq!(
            keys.feed(b"cx\x01a\x01k"),
            Key::Guest(b"\x03x\x01\x01k".to_vec())
        );
        assert_eq!(keys.feed(b"a\x01xb"), Key::Quit);
    }
}
