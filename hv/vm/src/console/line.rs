//! The line a VM is printing.

use alloc::vec::Vec;

/// Bytes of a line that are kept. A line that is longer is cut there.
pub const LONGEST_LINE: usize = 512;

/// Where in an escape sequence of the terminal's a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sequence {
    None,
    /// After ESC.
    Escape,
    /// After ESC `[`, until a final byte.
    Control,
}

/// What a VM has printed since its last line end.
#[derive(Debug)]
pub(super) struct Line {
    bytes: Vec<u8>,
    /// The last byte was a carriage return.
    returned: bool,
    sequence: Sequence,
}

/// What a byte does to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on.
    On,
    /// It is complete.
    End,
    /// It begins again from its first column.
    Over,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(LONGEST_LINE),
            returned: false,
            sequence: Sequence::None,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= LONGEST_LINE
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// What the byte does. A carriage return alone says nothing yet: a line feed may follow.
    pub(super) fn step(&mut self, byte: u8) -> Step {
        let returned = core::mem::replace(&mut self.returned, byte == b'\r');
        match byte {
            b'\n' => Step::End,
            b'\r' => Step::On,
            _ if returned => Step::Over,
            _ => Step::On,
        }
    }

    /// Keeps a byte as it is, if there is room.
    pub(super) fn keep(&mut self, byte: u8) {
        if byte != b'\r' && byte != b'\n' && !self.is_full() {
            self.bytes.push(byte);
        }
    }

    /// Keeps a byte if it is text: what would move the cursor or change colours is left out.
    pub(super) fn keep_text(&mut self, byte: u8) {
        match (self.sequence, byte) {
            (_, 0x1b) => self.sequence = Sequence::Escape,
            (Sequence::Escape, b'[') => self.sequence = Sequence::Control,
            (Sequence::Escape, _) | (Sequence::Control, 0x40..=0x7e) => {
                self.sequence = Sequence::None;
            }
            (Sequence::None, b'\t' | 0x20..=0x7e | 0x80..) => self.keep(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_LINE, Line, Step};

    #[test]
    fn text_is_kept_without_what_steers_the_terminal() {
        let mut line = Line::new();
        b"a\x1b[31;1mred\x1b[0m\x07\x1bMb\tc\x00\xc3\xa4"
            .iter()
            .for_each(|byte| line.keep_text(*byte));
        assert_eq!(line.bytes(), b"aredb\tc\xc3\xa4");
    }

    #[test]
    fn a_return_begins_the_line_again_unless_a_line_feed_follows() {
        let mut line = Line::new();
        let steps = b"a\r\nb\rc".map(|byte| line.step(byte));
        use Step::{End, On, Over};
        assert_eq!(steps, [On, On, End, On, On, Over]);
    }

    #[test]
    fn a_line_is_bounded() {
        let mut line = Line::new();
        (0..10_000).for_each(|_| line.keep(b'x'));
        assert_eq!(line.bytes().len(), LONGEST_LINE);
        assert_eq!(line.bytes.capacity(), LONGEST_LINE, "it never grows");
    }
}
