//! Event queues: rings of words in memory that the interrupt controller writes and a CPU reads.
//! [Linux Documentation and arch/powerpc/sysdev/xive/common.c, as facts]

/// Bytes of the smallest queue.
pub const QUEUE_BYTES: u64 = 4096;
/// Its events. A source has one in the queue at most, until it is told that this one is over; so there is room
/// for as many sources.
pub const ENTRIES: u32 = 1024;

/// The top bit of an event: it turns over with each round, so that new ones can be told from old ones.
const GENERATION: u32 = 1 << 31;

/// Who reads a queue, whose memory was zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    next: u32,
    /// The generation of events that were read before.
    old: u32,
}

impl Cursor {
    /// Takes the next event, if there is one: the number that its source was given. `read` gives the word at
    /// an index below [`ENTRIES`], in the order of bytes of the CPU.
    #[inline]
    pub fn take(&mut self, read: impl FnOnce(u32) -> u32) -> Option<u32> {
        let event = read(self.next);
        if event & GENERATION == self.old {
            return None;
        }
        self.next = self.next.wrapping_add(1) % ENTRIES;
        if self.next == 0 {
            self.old ^= GENERATION;
        }
        Some(event & !GENERATION)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::{Cursor, ENTRIES, GENERATION};

    /// The controller's side: the first round writes generation 1.
    struct Ring {
        words: Vec<u32>,
        written: u32,
    }

    impl Ring {
        fn new() -> Self {
            let words = vec![0; usize::try_from(ENTRIES).unwrap()];
            Self { words, written: 0 }
        }

        fn write(&mut self, event: u32) {
            let round = self.written / ENTRIES;
            let generation = if round.is_multiple_of(2) {
                GENERATION
            } else {
                0
            };
            self.words[usize::try_from(self.written % ENTRIES).unwrap()] = event | generation;
            self.written += 1;
        }

        fn take(&self, cursor: &mut Cursor) -> Option<u32> {
            cursor.take(|index| self.words[usize::try_from(index).unwrap()])
        }
    }

    proptest! {
        #[test]
        fn events_come_once_each_and_in_order(bursts in prop::collection::vec(0..=ENTRIES, 1..12)) {
            let (mut ring, mut cursor) = (Ring::new(), Cursor::default());
            let mut number = 0;
            for burst in bursts {
                let first = number;
                for _ in 0..burst {
                    ring.write(number);
                    number += 1;
                }
                for expected in first..number {
                    prop_assert_eq!(ring.take(&mut cursor), Some(expected));
                }
                prop_assert_eq!(ring.take(&mut cursor), None);
            }
        }
    }

    /// The check above is able to fail: a ring that is written over loses events.
    #[test]
    fn a_ring_that_overflows_is_noticed() {
        let (mut ring, mut cursor) = (Ring::new(), Cursor::default());
        for number in 0..=ENTRIES {
            ring.write(number);
        }
        // The first word is of the second round already, which looks like nothing new.
        assert_eq!(ring.take(&mut cursor), None);
    }
}
