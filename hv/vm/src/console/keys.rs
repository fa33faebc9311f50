//! The escape key.

/// Ctrl-], which makes the next key ours.
pub const ESCAPE: u8 = 0x1d;

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Nothing yet.
    Pending,
    /// A byte for whoever has the terminal.
    Byte(u8),
    /// The VM of this number (from 0) is to have the terminal.
    Focus(usize),
    /// To the monitor's prompt, or back.
    Monitor,
    /// Help, or a key that means nothing.
    Help,
}

/// Finds the escapes in what is typed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Keys {
    escaped: bool,
}

impl Keys {
    pub(super) const fn new() -> Self {
        Self { escaped: false }
    }

    pub(super) fn feed(&mut self, byte: u8) -> Key {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return if self.escaped {
                Key::Pending
            } else {
                Key::Byte(byte)
            };
        }
        self.escaped = false;
        match byte {
            ESCAPE => Key::Byte(ESCAPE),
            b'1'..=b'9' => Key::Focus(usize::from(byte.wrapping_sub(b'1'))),
            b'm' | b'M' => Key::Monitor,
            _ => Key::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{ESCAPE, Key, Keys};

    #[test]
    fn the_escape_makes_the_next_key_ours_and_twice_goes_through() {
        let mut keys = Keys::new();
        let typed = [
            b'a', ESCAPE, b'2', ESCAPE, b'm', ESCAPE, ESCAPE, ESCAPE, b'?', b'2',
        ];
        let meant: Vec<_> = typed
            .map(|byte| keys.feed(byte))
            .into_iter()
            .filter(|key| *key != Key::Pending)
            .collect();
        let expected = [
            Key::Byte(b'a'),
            Key::Focus(1),
            Key::Monitor,
            Key::Byte(ESCAPE),
            Key::Help,
            Key::Byte(b'2'),
        ];
        assert_eq!(meant, expected);
    }
}
