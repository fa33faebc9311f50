//! Priorities, and sets ordered by them.

use alloc::{boxed::Box, vec};

use crate::bits::{Bits, bit};

/// The implemented bits of a priority: the upper five, as in every GICv3 with 32 levels.
pub(crate) const PRIORITY_MASK: u8 = 0xf8;

/// The level of a priority, 0 the most urgent of 32.
pub(crate) const fn level_of(priority: u8) -> u32 {
    (priority >> 3) as u32
}

/// SPIs ordered by priority level, then by number. Every operation takes constant time.
#[derive(Clone, Debug)]
pub(crate) struct PrioritySet {
    /// Levels that have members.
    levels: u32,
    /// For each level, the words that have members.
    summaries: [u32; 32],
    /// For each level, `words` words of members.
    members: Box<[u32]>,
    words: usize,
    count: usize,
}

impl PrioritySet {
    /// An empty set for `words * 32` SPIs, at most 31 words.
    pub(crate) fn new(words: usize) -> Self {
        Self {
            levels: 0,
            summaries: [0; 32],
            members: vec![0; words.saturating_mul(32)].into_boxed_slice(),
            words,
            count: 0,
        }
    }

    /// How many members there are.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// Adds an SPI.
    pub(crate) fn insert(&mut self, level: u32, spi: u32) {
        let word = spi >> 5;
        if let Some((summary, members)) = self.parts(level, word)
            && *members & bit(spi) == 0
        {
            *members |= bit(spi);
            *summary |= bit(word);
            self.levels |= bit(level);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Takes an SPI out.
    pub(crate) fn remove(&mut self, level: u32, spi: u32) {
        let word = spi >> 5;
        if let Some((summary, members)) = self.parts(level, word)
            && *members & bit(spi) != 0
        {
            *members &= !bit(spi);
            if *members == 0 {
                *summary &= !bit(word);
                if *summary == 0 {
                    self.levels &= !bit(level);
                }
            }
            self.count = self.count.saturating_sub(1);
        }
    }

    /// The most urgent member with its level; the lowest number among equals.
    pub(crate) fn first(&self) -> Option<(u32, u32)> {
        let level = Bits(self.levels).next()?;
        let word = Bits(*self.summaries.get(level as usize)?).next()?;
        let index = self.index(level, word)?;
        let spi = Bits(*self.members.get(index)?).next()?;
        Some((level, (word << 5) | spi))
    }

    fn index(&self, level: u32, word: u32) -> Option<usize> {
        let word = word as usize;
        (word < self.words).then(|| (level as usize).wrapping_mul(self.words).wrapping_add(word))
    }

    fn parts(&mut self, level: u32, word: u32) -> Option<(&mut u32, &mut u32)> {
        let index = self.index(level, word)?;
        Some((
            self.summaries.get_mut(level as usize)?,
            self.members.get_mut(index)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::{any, proptest};

    use super::PrioritySet;

    proptest! {
        #[test]
        fn a_priority_set_is_a_sorted_set(
            steps in proptest::collection::vec((any::<bool>(), 0_u32..32, 0_u32..992), 0..200)
        ) {
            let (mut set, mut model) = (PrioritySet::new(31), BTreeSet::new());
            for (insert, level, spi) in steps {
                if insert {
                    set.insert(level, spi);
                    model.insert((level, spi));
                } else {
                    set.remove(level, spi);
                    model.remove(&(level, spi));
                }
                assert_eq!(set.first(), model.first().copied());
                assert_eq!(set.len(), model.len());
            }
        }
    }
}
