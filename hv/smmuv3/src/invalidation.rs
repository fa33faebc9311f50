//! Invalidations as commands: ranges of pages, and what a guest asks for its stage 1.

use iommu::{StageOneInvalidation, VaRange, VaScope};
use types::{Asid, Iova, Span, StreamId, Vmid};

use crate::spec::{Command, Depth, Range};
use crate::{Error, Identity};

/// The most commands for translations of a guest: where more were needed, everything of it goes.
const MOST: u32 = 64;

/// Pages as ranges of `(num + 1) << scale` of them. [IHI 0070 §4.4.1.1]
pub(crate) struct Ranges {
    at: u64,
    pages: u64,
    /// Log2 of a page in bytes.
    shift: u8,
    /// The level of every leaf in it, or 0.
    level: u8,
}

impl Ranges {
    /// A span of 4 KiB pages.
    pub(crate) fn new(span: Span<Iova>, level: u8) -> Self {
        Self::of(span.start().bits(), span.last().bits(), 12, level)
    }

    /// The pages of `1 << shift` bytes that hold the addresses from `first` to `last`.
    fn of(first: u64, last: u64, shift: u8, level: u8) -> Self {
        let first = first >> shift;
        let last = last >> shift;
        Self {
            at: first,
            pages: (last - first).saturating_add(1),
            shift,
            level,
        }
    }
}

impl Iterator for Ranges {
    type Item = (u64, Range);

    fn next(&mut self) -> Option<Self::Item> {
        const MOST_SCALE: u32 = 31;
        if self.pages == 0 {
            return None;
        }
        // Five bits of the count, from its lowest set one on: a span has few of those.
        let scale = self.pages.trailing_zeros().min(MOST_SCALE);
        let num = (self.pages >> scale) & 31;
        let num = if num == 0 { 31 } else { num };
        let address = self.at << self.shift;
        self.at += num << scale;
        self.pages -= num << scale;
        // A range of one page without a level is reserved; two pages are not. [IHI 0070 §4.4.1]
        let num = if num == 1 && scale == 0 && self.level == 0 {
            2
        } else {
            num
        };
        let [low, ..] = num.to_le_bytes();
        let [scale, ..] = scale.to_le_bytes();
        let range = Range {
            num: low - 1,
            scale,
            // TG: 1, 2, 3 for 4, 16, 64 KiB.
            granule: (self.shift - 10) / 2,
            level: self.level,
        };
        Some((address, range))
    }
}

/// A guest's invalidations as commands.
pub(crate) struct StageOneCommands {
    vmid: Vmid,
    /// Range invalidation, and the granules: bit n for `1 << n` bytes.
    ranges: bool,
    granules: u32,
    /// Translations' commands so far.
    count: u32,
    /// All translations go, and no context descriptor since: by the old one of those new ones can be made until then.
    all: bool,
}

impl StageOneCommands {
    /// For the guest with this VMID, behind an SMMU.
    pub(crate) fn new(vmid: Vmid, identity: &Identity) -> Self {
        let bit = |has: bool, shift: u32| u32::from(has) << shift;
        let idr5 = identity.idr5;
        Self {
            vmid,
            ranges: identity.idr3.ril(),
            granules: bit(idr5.gran4k(), 12) | bit(idr5.gran16k(), 14) | bit(idr5.gran64k(), 16),
            count: 0,
            all: false,
        }
    }

    /// A translation's: nothing when all go, and all when there were many.
    fn translation(
        &mut self,
        command: Command,
        put: &mut impl FnMut(Command) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.all {
            return Ok(());
        }
        self.count += 1;
        if self.count > MOST {
            return self.everything(put);
        }
        put(command)
    }

    fn everything(
        &mut self,
        put: &mut impl FnMut(Command) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.all {
            return Ok(());
        }
        self.all = true;
        put(Command::TlbiNhAll(self.vmid))
    }

    /// Hands the commands of an invalidation to `put`; `own` says whether a source is behind the unit
    /// and of the guest.
    ///
    /// # Errors
    /// Those of `put`; [`Error::NoSuchStream`], [`Error::Unusable`] for what is never to be asked for.
    pub(crate) fn encode(
        &mut self,
        what: &StageOneInvalidation,
        own: impl Fn(u32) -> bool,
        put: &mut impl FnMut(Command) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let vmid = self.vmid;
        match *what {
            StageOneInvalidation::All => self.everything(put),
            StageOneInvalidation::Asid(asid) => {
                self.translation(Command::TlbiNhAsid(vmid, asid), put)
            }
            StageOneInvalidation::Page { asid, va } => {
                let command = by_address(vmid, asid, va, Range::LEAF, Depth::All);
                self.translation(command, put)
            }
            StageOneInvalidation::Range { asid, range } => self.range(asid, &range, put),
            StageOneInvalidation::Context { source, .. } if !own(source) => Ok(()),
            StageOneInvalidation::Context { source, substream } => {
                let sid = StreamId::new(source).map_err(|_| Error::NoSuchStream)?;
                self.all = false;
                put(match substream {
                    None => Command::CfgiCdAll(sid),
                    Some(ssid) => Command::CfgiCd {
                        sid,
                        ssid: ssid.bits(),
                        depth: Depth::All,
                    },
                })
            }
            StageOneInvalidation::Atc { .. } => Err(Error::NoSuchStream),
        }
    }

    fn range(
        &mut self,
        asid: Option<Asid>,
        range: &VaRange,
        put: &mut impl FnMut(Command) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let shift = range.granule_shift;
        let usable = self.ranges
            && self.granules >> (shift & 31) & 1 == 1
            && matches!(shift, 12 | 14 | 16)
            && range.first <= range.last;
        if !usable {
            return self.everything(put);
        }
        let depth = match range.scope {
            VaScope::Leaves => Depth::Leaf,
            VaScope::Walks => Depth::All,
        };
        for (va, part) in Ranges::of(range.first, range.last, shift, range.level) {
            self.translation(by_address(self.vmid, asid, va, part, depth), put)?;
        }
        Ok(())
    }
}

fn by_address(vmid: Vmid, asid: Option<Asid>, va: u64, range: Range, depth: Depth) -> Command {
    match asid {
        Some(asid) => Command::TlbiNhVa {
            vmid,
            asid,
            va,
            range,
            depth,
        },
        None => Command::TlbiNhVaa {
            vmid,
            va,
            range,
            depth,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Idr0, Idr1, Idr3, Idr5, Iidr};
    use alloc::vec::Vec;

    const RIL: u32 = 1 << 10;

    fn identity(idr3: u32) -> Identity {
        Identity {
            idr0: Idr0::from_bits(0x0d44_101b),
            idr1: Idr1::from_bits(0x0273_0010),
            idr3: Idr3::from_bits(idr3),
            // 4 KiB and 64 KiB granules.
            idr5: Idr5::from_bits(0x54),
            iidr: Iidr::from_bits(0),
            minor: 1,
        }
    }

    fn vmid() -> Vmid {
        Vmid::new(7).unwrap()
    }

    fn commands(idr3: u32, what: &[StageOneInvalidation]) -> Vec<Command> {
        let mut list = Vec::new();
        let mut commands = StageOneCommands::new(vmid(), &identity(idr3));
        for what in what {
            let mut put = |command| {
                list.push(command);
                Ok(())
            };
            commands
                .encode(what, |source| source == 8, &mut put)
                .unwrap();
        }
        list
    }

    fn range(first: u64, last: u64, granule_shift: u8) -> StageOneInvalidation {
        StageOneInvalidation::Range {
            asid: None,
            range: VaRange {
                first,
                last,
                granule_shift,
                level: 0,
                scope: VaScope::Leaves,
            },
        }
    }

    /// The addresses that a command of an address covers.
    fn covered(command: &Command) -> (u64, u64) {
        let Command::TlbiNhVaa { va, range, .. } = command else {
            panic!("{command:?}")
        };
        let granule = 1_u64 << (10 + 2 * u32::from(range.granule));
        let bytes = ((u64::from(range.num) + 1) << range.scale) * granule;
        (*va, va + (bytes - 1))
    }

    #[test]
    fn a_range_of_a_guest_is_one_command_of_the_same_range() {
        for (num, scale) in [(0_u64, 1), (1, 0), (4, 3), (30, 9), (31, 0), (6, 20)] {
            let bytes = ((num + 1) << scale) << 12;
            let first = 0xffff_0000_0000_0000_u64;
            let list = commands(RIL, &[range(first, first + (bytes - 1), 12)]);
            assert_eq!(list.len(), 1, "{num} {scale}");
            assert_eq!(covered(&list[0]), (first, first + (bytes - 1)));
        }
    }

    #[test]
    fn one_page_without_a_level_is_widened_to_two() {
        let list = commands(RIL, &[range(0x1000, 0x1fff, 12)]);
        assert_eq!(covered(&list[0]), (0x1000, 0x2fff));
    }

    #[test]
    fn ranges_cover_what_was_asked_for_and_at_most_a_page_more() {
        for (shift, pages) in [(12, 33_u64), (12, 0x12345), (16, 65), (16, 3)] {
            let first = 5_u64 << shift;
            let last = first + (pages << shift) - 1;
            let mut next = first;
            for command in commands(RIL, &[range(first, last, shift)]) {
                let (from, to) = covered(&command);
                // A range before it may have been one page that was made two.
                assert!(from == next || from + (1 << shift) == next, "{from:#x}");
                next = to + 1;
            }
            assert!(next > last && next - last <= (1 << shift) + 1);
        }
    }

    #[test]
    fn what_the_hardware_cannot_say_becomes_everything() {
        let all = [Command::TlbiNhAll(vmid())];
        assert_eq!(commands(0, &[range(0x1000, 0x2fff, 12)]), all);
        // No 16 KiB granule.
        assert_eq!(commands(RIL, &[range(0x4000, 0xbfff, 14)]), all);
        assert_eq!(commands(RIL, &[range(0x2000, 0x1fff, 12)]), all);
    }

    #[test]
    fn everything_makes_further_translations_superfluous_up_to_a_context() {
        let asid = Asid::new(5).unwrap();
        let context = StageOneInvalidation::Context {
            source: 8,
            substream: None,
        };
        let list = commands(
            RIL,
            &[
                StageOneInvalidation::All,
                range(0x1000, 0x2fff, 12),
                context,
                StageOneInvalidation::Asid(asid),
                StageOneInvalidation::All,
                range(0x1000, 0x2fff, 12),
                context,
                StageOneInvalidation::All,
            ],
        );
        // What was cached by the old descriptor between the one and the other goes, too.
        let cd = Command::CfgiCdAll(StreamId::new(8).unwrap());
        let all = Command::TlbiNhAll(vmid());
        let by_asid = Command::TlbiNhAsid(vmid(), asid);
        assert_eq!(list, [all, cd, by_asid, all, cd, all]);
    }

    #[test]
    fn contexts_of_streams_behind_other_units_are_left_out() {
        let other = StageOneInvalidation::Context {
            source: 9,
            substream: None,
        };
        assert_eq!(commands(RIL, &[other]), []);
    }

    #[test]
    fn a_full_list_ends_in_everything() {
        // Each takes several commands.
        let wide = range(0, 0x1_2345_6789_afff, 12);
        let list = commands(RIL, &[wide; iommu::MAX_INVALIDATIONS]);
        assert_eq!(list.len(), MOST as usize + 1);
        assert_eq!(list.last(), Some(&Command::TlbiNhAll(vmid())));
        let context = StageOneInvalidation::Context {
            source: 8,
            substream: None,
        };
        // Behind a context that comes after that, everything goes again, and once.
        let list = commands(RIL, &[&[wide; 60][..], &[context, wide, wide]].concat());
        let cd = Command::CfgiCdAll(StreamId::new(8).unwrap());
        let all = Command::TlbiNhAll(vmid());
        assert_eq!(list[MOST as usize..], [all, cd, all]);
        let list = commands(RIL, &[context; iommu::MAX_INVALIDATIONS]);
        assert_eq!(list.len(), iommu::MAX_INVALIDATIONS);
    }
}
