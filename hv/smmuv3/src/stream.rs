//! The stream table, and how an entry is changed under the eyes of the SMMU.

use alloc::boxed::Box;
use alloc::vec;

use hal::{FrameAllocator, SharedMemory};
use types::{Address, Pa, StreamId};

use crate::Error;
use crate::shared::Shared;
use crate::spec::{L1Std, Ste};

/// Log2 of the entries of a level-2 table.
const SPLIT: u8 = 8;
/// Log2 of the frames of a level-2 table: 256 entries of 64 bytes.
const LEAF_ORDER: u8 = 2;
/// The most stream ID bits served by a two-level table: a level 1 of 128 KiB.
const MOST_BITS: u8 = 22;
/// The most served by a linear table: 4 MiB.
const MOST_LINEAR_BITS: u8 = 16;

/// Log2 of the frames that hold so many bytes.
fn order_of(bytes: u64) -> u8 {
    let frames = bytes.div_ceil(4096).max(1);
    frames.next_power_of_two().trailing_zeros().to_le_bytes()[0]
}

/// The stream table of one SMMU. Entries that nobody installed abort.
#[derive(Debug)]
pub(crate) struct StreamTable {
    base: Pa,
    /// Bits of a stream ID that the table covers.
    bits: u8,
    /// Level-2 tables, by level-1 index; `None` for a linear table.
    leaves: Option<Box<[Option<Pa>]>>,
}

impl StreamTable {
    /// A table for stream IDs of `sid_bits` bits. With two levels, no stream has an entry at first;
    /// a linear one has an abort entry for each.
    pub(crate) fn new<P: SharedMemory, F: FrameAllocator>(
        memory: &Shared<P>,
        frames: &F,
        sid_bits: u8,
        levels: Levels,
    ) -> Result<Self, Error> {
        match levels {
            Levels::Two => {
                // `Levels::of` has one level for fewer bits.
                let bits = sid_bits.clamp(SPLIT, MOST_BITS);
                let entries = 1_usize << (bits - SPLIT);
                let base = frames.alloc_zeroed(order_of(entries as u64 * 8))?;
                memory.publish(base, entries * 8);
                Ok(Self {
                    base,
                    bits,
                    leaves: Some(vec![None; entries].into()),
                })
            }
            Levels::One => {
                let bits = sid_bits.min(MOST_LINEAR_BITS);
                let entries = 1_u32 << bits;
                let bytes = u64::from(entries) * Ste::BYTES as u64;
                let base = frames.alloc_zeroed(order_of(bytes))?;
                fill(memory, base, entries)?;
                Ok(Self {
                    base,
                    bits,
                    leaves: None,
                })
            }
        }
    }

    /// Gives its memory back.
    pub(crate) fn free<F: FrameAllocator>(&self, frames: &F) {
        let bytes = match &self.leaves {
            None => (Ste::BYTES as u64) << self.bits,
            Some(leaves) => {
                for leaf in leaves.iter().flatten() {
                    frames.free(*leaf, LEAF_ORDER);
                }
                8 << (self.bits - SPLIT)
            }
        };
        frames.free(self.base, order_of(bytes));
    }

    /// Bits of a stream ID that the table covers.
    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// `STRTAB_BASE`, without the allocation hint.
    pub(crate) fn base(&self) -> Pa {
        self.base
    }

    /// `STRTAB_BASE_CFG`. [IHI 0070 §6.3.24]
    pub(crate) fn config(&self) -> u32 {
        let format = match self.leaves {
            Some(_) => 1 << 16 | u32::from(SPLIT) << 6,
            None => 0,
        };
        format | u32::from(self.bits)
    }

    /// Where the entry of a stream is; `None` when its level-2 table does not exist.
    pub(crate) fn find(&self, sid: StreamId) -> Result<Option<Pa>, Error> {
        let sid = u64::from(sid.bits());
        if sid >> self.bits != 0 {
            return Err(Error::NoSuchStream);
        }
        let (base, index) = match &self.leaves {
            None => (Some(self.base), sid),
            Some(leaves) => {
                let leaf = usize::try_from(sid >> SPLIT)
                    .ok()
                    .and_then(|at| leaves.get(at).copied().flatten());
                (leaf, sid & ((1 << SPLIT) - 1))
            }
        };
        Ok(base.and_then(|base| base.checked_add(index * Ste::BYTES as u64)))
    }

    /// As [`StreamTable::find`], after making the level-2 table where it does not exist. `true` when
    /// it was made, so that the SMMU has to be told.
    pub(crate) fn make<P: SharedMemory, F: FrameAllocator>(
        &mut self,
        memory: &Shared<P>,
        frames: &F,
        sid: StreamId,
    ) -> Result<(Pa, bool), Error> {
        if let Some(slot) = self.find(sid)? {
            return Ok((slot, false));
        }
        let at = sid.bits() >> SPLIT;
        let leaf = frames.alloc_zeroed(LEAF_ORDER)?;
        fill(memory, leaf, 1 << SPLIT)?;
        let descriptor = self.base.checked_add(u64::from(at) * 8);
        let known = usize::try_from(at)
            .ok()
            .and_then(|at| self.leaves.as_mut()?.get_mut(at));
        let (Some(descriptor), Some(known)) = (descriptor, known) else {
            frames.free(leaf, LEAF_ORDER);
            return Err(Error::NoSuchStream);
        };
        *known = Some(leaf);
        // The table is complete in memory before the one word that makes it reachable.
        memory.write(descriptor, L1Std::table(leaf, SPLIT).0)?;
        memory.publish(descriptor, 8);
        let slot = self.find(sid)?.ok_or(Error::NoSuchStream)?;
        Ok((slot, true))
    }
}

/// How many levels a stream table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Levels {
    One,
    Two,
}

impl Levels {
    /// The levels for an SMMU whose `IDR0.ST_LEVEL` is `st_level`. Where one level-2 table has room
    /// for all streams, a second level would be of no use.
    pub(crate) fn of(st_level: u8, sid_bits: u8) -> Self {
        if st_level == 0 || sid_bits <= SPLIT {
            Self::One
        } else {
            Self::Two
        }
    }
}

/// Writes abort entries.
fn fill<P: SharedMemory>(memory: &Shared<P>, base: Pa, entries: u32) -> Result<(), Error> {
    for index in 0..entries {
        let at = base
            .checked_add(u64::from(index) * Ste::BYTES as u64)
            .ok_or(Error::NoSuchStream)?;
        memory.write(at, Ste::ABORT.0[0])?;
    }
    memory.publish(base, entries as usize * Ste::BYTES);
    Ok(())
}

/// An entry on its way: what is written before the SMMU is told to look again.
///
/// Within a step the words may become visible in any order. After each step the SMMU forgets the
/// entry it cached, and has answered, before the next step is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    steps: [Ste; 3],
    count: usize,
}

impl Plan {
    /// The way from one entry to another.
    ///
    /// At every moment the stream does what the old entry says or what the new one says, if the two
    /// differ in one 64-bit word of those that both look at; else there is a moment between in which
    /// the entry is invalid and the stream aborts.
    pub(crate) fn new(old: Ste, new: Ste) -> Self {
        let (used_old, used_new) = (old.used(), new.used());
        // Bits that the old entry does not look at can have their new values at once.
        let mut prepared = [0; 8];
        let mut critical = 0;
        for (at, word) in prepared.iter_mut().enumerate() {
            *word = old.0[at] & used_old.0[at] | new.0[at] & used_new.0[at] & !used_old.0[at];
            critical += u32::from((*word ^ new.0[at]) & used_new.0[at] != 0);
        }
        let mut plan = Self {
            steps: [old; 3],
            count: 0,
        };
        if critical <= 1 {
            plan.push(old, Ste(prepared));
            let mut switched = prepared;
            for (at, word) in switched.iter_mut().enumerate() {
                if (*word ^ new.0[at]) & used_new.0[at] != 0 {
                    *word = new.0[at];
                }
            }
            plan.push(Ste(prepared), Ste(switched));
            // Bits that only the old entry looked at.
            plan.push(Ste(switched), new);
        } else {
            let mut broken = old;
            broken.0[0] &= !1;
            plan.push(old, broken);
            let mut rest = new;
            rest.0[0] &= !1;
            plan.push(broken, rest);
            plan.push(rest, new);
        }
        plan
    }

    fn push(&mut self, before: Ste, after: Ste) {
        if before != after
            && let Some(slot) = self.steps.get_mut(self.count)
        {
            *slot = after;
            self.count += 1;
        }
    }

    /// The entry after each step.
    pub(crate) fn steps(&self) -> &[Ste] {
        self.steps.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;
    use types::{Pa, Vmid};

    use super::Plan;
    use crate::spec::{Recording, Stage1, Stage2, Ste, Walks};

    fn stage2(vmid: u16) -> Stage2 {
        Stage2 {
            vmid: Vmid::new(vmid).unwrap(),
            t0sz: 24,
            sl0: 1,
            ps: 4,
            root: Pa::truncated(u64::from(vmid) << 16),
            walks: Walks::Coherent,
        }
    }

    fn nested(vmid: u16, context: u64) -> Ste {
        let stage1 = Stage1 {
            format: 0,
            context,
            cd_max: 0,
            dss: 0,
            eats: 0,
        };
        Ste::nested(&stage1, &stage2(vmid))
    }

    fn all() -> Vec<Ste> {
        vec![
            Ste::INVALID,
            Ste::ABORT,
            Ste::BYPASS,
            Ste::stage2(&stage2(1)),
            Ste::stage2(&stage2(2)),
            nested(1, 0x1000),
            nested(1, 0x2000),
            nested(2, 0x1000),
        ]
    }

    /// What the SMMU would do: the bits it looks at.
    fn meaning(ste: Ste) -> [u64; 8] {
        let used = ste.used();
        core::array::from_fn(|at| ste.0[at] & used.0[at])
    }

    /// Every entry that the SMMU may see while words of a step become visible one by one.
    fn seen(before: Ste, after: Ste) -> Vec<Ste> {
        let changed: Vec<usize> = (0..8).filter(|&at| before.0[at] != after.0[at]).collect();
        (0..1_u32 << changed.len())
            .map(|subset| {
                let mut ste = before;
                for (bit, &at) in changed.iter().enumerate() {
                    if subset >> bit & 1 == 1 {
                        ste.0[at] = after.0[at];
                    }
                }
                ste
            })
            .collect()
    }

    /// Whether a way shows the stream nothing but the old entry, the new one, and, if it may, an
    /// entry that aborts.
    fn is_clean(old: Ste, new: Ste, steps: &[Ste], may_abort: bool) -> bool {
        let mut before = old;
        let mut clean = true;
        for &after in steps {
            for ste in seen(before, after) {
                let meaning_now = meaning(ste);
                let known = meaning_now == meaning(old) || meaning_now == meaning(new);
                clean &= known || may_abort && !ste.is_valid();
            }
            before = after;
        }
        clean && before == new
    }

    #[test]
    fn every_moment_of_every_change_shows_the_old_entry_the_new_one_or_none() {
        for old in all() {
            for new in all() {
                let plan = Plan::new(old, new);
                assert!(is_clean(old, new, plan.steps(), true), "{old:?} -> {new:?}");
            }
        }
    }

    #[test]
    fn changes_that_need_no_break_have_none() {
        let (s2, s1s2) = (Ste::stage2(&stage2(1)), nested(1, 0x1000));
        let hitless = [
            (Ste::ABORT, s2),
            (s2, Ste::ABORT),
            (s2, s1s2),
            (s1s2, s2),
            (s2, s2.with_recording(Recording::Off)),
            (s2.with_recording(Recording::Off), s2),
            (s1s2, s1s2.with_recording(Recording::Off)),
            (s1s2, nested(1, 0x2000)),
            (Ste::ABORT, s1s2),
            (Ste::BYPASS, Ste::ABORT),
            (Ste::INVALID, s2),
        ];
        for (old, new) in hitless {
            let plan = Plan::new(old, new);
            assert!(
                is_clean(old, new, plan.steps(), false),
                "{old:?} -> {new:?}"
            );
        }
    }

    #[test]
    fn a_muted_entry_does_the_same_in_silence_or_aborts() {
        let (off, silent) = (Recording::Off, Recording::Silent);
        for ste in all() {
            assert_eq!(ste.with_recording(Recording::On), ste);
            let muted = ste.with_recording(off);
            let mut same = muted;
            same.0[2] |= ste.0[2] & 1 << 58;
            let aborts = !ste.is_valid();
            assert_eq!(same, if aborts { Ste::ABORT } else { ste });
            let bits = ste.0[2] ^ muted.0[2];
            let stage2 = ste.is_valid() && ste.config().stage2();
            assert_eq!(bits, u64::from(stage2) << 58, "S2R, [IHI 0070 §5.2]");
            let stage1 = ste.is_valid() && ste.config().stage1();
            let expected = if stage1 { Ste::ABORT } else { muted };
            assert_eq!(ste.with_recording(silent), expected);
            // A substream where there is none, and what is called translated, are recorded whatever
            // stage 2 says. [IHI 0070 §7.3.9, §3.9.1.3]
            let expected = if stage1 || stage2 { Ste::ABORT } else { muted };
            assert_eq!(ste.with_recording(Recording::Stopped), expected);
        }
    }

    #[test]
    fn the_check_notices_an_entry_written_at_once() {
        let (old, new) = (Ste::ABORT, Ste::stage2(&stage2(1)));
        assert!(!is_clean(old, new, &[new], true));
    }

    #[test]
    fn nothing_is_written_when_nothing_changes() {
        for ste in all() {
            assert_eq!(Plan::new(ste, ste).steps(), []);
        }
    }

    proptest! {
        #[test]
        fn any_bits_at_all_are_changed_cleanly(old in any::<[u64; 8]>(), new in any::<[u64; 8]>()) {
            let (old, new) = (Ste(old), Ste(new));
            prop_assert!(is_clean(old, new, Plan::new(old, new).steps(), true));
        }
    }
}
