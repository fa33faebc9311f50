//! The line somebody types at the monitor's prompt.

use alloc::string::String;
use alloc::vec::Vec;

/// What stands before the line.
pub(crate) const PROMPT: &[u8] = b"monitor> ";
/// Bytes of a line.
const LONGEST: usize = 127;

/// What a typed byte does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    Nothing,
    /// There is no room for it, or it has no meaning.
    Refused,
    /// It is added to the end.
    Added(u8),
    /// So many are taken from the end.
    Erased(usize),
    /// The line is complete; the next is empty.
    Line(String),
    /// Ctrl-D on an empty line.
    Leave,
}

/// A line being typed.
#[derive(Debug)]
pub(crate) struct Editor {
    line: Vec<u8>,
    /// The last byte was a carriage return, so that a line feed is its other half.
    returned: bool,
}

impl Editor {
    pub(crate) const fn new() -> Self {
        Self {
            line: Vec::new(),
            returned: false,
        }
    }

    pub(crate) fn line(&self) -> &[u8] {
        &self.line
    }

    pub(crate) fn clear(&mut self) {
        self.line.clear();
    }

    pub(crate) fn input(&mut self, byte: u8) -> Input {
        const CTRL_C: u8 = 3;
        const CTRL_D: u8 = 4;
        const CTRL_U: u8 = 0x15;
        let returned = core::mem::replace(&mut self.returned, byte == b'\r');
        match byte {
            b'\n' if returned => Input::Nothing,
            b'\r' | b'\n' => {
                let line = core::mem::take(&mut self.line);
                // Only ASCII gets in.
                Input::Line(String::from_utf8_lossy(&line).into_owned())
            }
            0x08 | 0x7f => Input::Erased(usize::from(self.line.pop().is_some())),
            CTRL_U | CTRL_C => {
                let count = self.line.len();
                self.line.clear();
                Input::Erased(count)
            }
            CTRL_D if self.line.is_empty() => Input::Leave,
            b' '..=b'~' if self.line.len() < LONGEST => {
                self.line.push(byte);
                Input::Added(byte)
            }
            _ => Input::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Editor, Input, LONGEST};

    #[test]
    fn keys_edit_the_line() {
        let mut editor = Editor::new();
        for byte in *b"abX" {
            assert_eq!(editor.input(byte), Input::Added(byte));
        }
        assert_eq!(editor.input(0x7f), Input::Erased(1));
        assert_eq!(editor.input(b'\r'), Input::Line("ab".into()));
        assert_eq!(editor.input(b'\n'), Input::Nothing, "a CR LF is one end");
        assert_eq!(editor.input(b'\n'), Input::Line("".into()));
        assert_eq!(
            editor.input(0x08),
            Input::Erased(0),
            "an empty line stays empty"
        );
        editor.input(b'x');
        assert_eq!(editor.input(4), Input::Refused, "Ctrl-D leaves no line");
        assert_eq!(editor.input(0x15), Input::Erased(1));
        assert_eq!(editor.input(4), Input::Leave);
    }

    #[test]
    fn a_line_is_bounded() {
        let mut editor = Editor::new();
        let added = (0..1000)
            .filter(|_| editor.input(b'x') != Input::Refused)
            .count();
        assert_eq!(added, LONGEST);
    }
}
