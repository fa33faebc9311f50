//! The part of an SMMU that devices meet: reads entries and descriptors, walks both stages by their
//! formats, and keeps whatever it read until a command takes that away.
//!
//! It knows the formats by the manual's bit numbers and shares no code with the driver.

use std::collections::BTreeMap;

/// What an access runs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It aborts without a record.
    Silent,
    /// The record's number, whether stage 2 is to blame, and its class: 0 CD, 1 TT, 2 IN.
    Recorded { id: u64, stage2: bool, class: u64 },
}

impl Fault {
    const fn of(id: u64) -> Self {
        Self::Recorded {
            id,
            stage2: false,
            class: 2,
        }
    }

    const fn stage2(id: u64, class: u64) -> Self {
        Self::Recorded {
            id,
            stage2: true,
            class,
        }
    }
}

/// A piece of 4 KiB of a leaf.
#[derive(Clone, Copy, Debug)]
struct Piece {
    page: u64,
    /// Bit 0 read, bit 1 write.
    rights: u64,
    /// Log2 of the leaf of the stage that is invalidated by address, and its level.
    leaf: u64,
    level: u64,
}

/// An access of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) sid: u32,
    pub(crate) ssid: Option<u32>,
    pub(crate) at: u64,
    pub(crate) write: bool,
}

/// Memory as the SMMU reads it: 64-bit words, `None` where there is none.
pub(crate) type Words<'a> = &'a dyn Fn(u64) -> Option<u64>;

#[derive(Debug, Default)]
pub(crate) struct Engine {
    level1: BTreeMap<u64, u64>,
    entries: BTreeMap<u32, [u64; 8]>,
    contexts: BTreeMap<(u32, u32), [u64; 4]>,
    /// Stage 2, by VMID and page of the guest-physical address.
    second: BTreeMap<(u64, u64), Piece>,
    /// Both stages, by VMID, ASID (`None`: global) and page of the address.
    both: BTreeMap<(u64, Option<u64>, u64), Piece>,
    /// Invalidations are consumed and not carried out.
    pub(crate) deaf: bool,
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

fn bits(word: u64, low: u32, count: u32) -> u64 {
    word >> low & ((1 << count) - 1)
}

impl Engine {
    /// Carries a command out. An architecture says what must go; nothing else does.
    pub(crate) fn forget(&mut self, [low, high]: [u64; 2]) {
        if self.deaf {
            return;
        }
        let sid = (low >> 32) as u32;
        let vmid = bits(low, 32, 16);
        let asid = bits(low, 48, 16);
        match low & 0xff {
            0x03 => {
                self.entries.remove(&sid);
                self.contexts.retain(|(s, _), _| *s != sid);
                if high & 1 == 0 {
                    self.level1.clear();
                }
            }
            0x04 => {
                let range = bits(high, 0, 5);
                let mask = if range == 31 {
                    u64::from(u32::MAX)
                } else {
                    (2 << range) - 1
                };
                let hit = |s: u32| (u64::from(s) ^ u64::from(sid)) & !mask == 0;
                self.entries.retain(|s, _| !hit(*s));
                self.contexts.retain(|(s, _), _| !hit(*s));
                if range == 31 {
                    self.level1.clear();
                }
            }
            0x05 => {
                self.contexts.remove(&(sid, bits(low, 12, 20) as u32));
            }
            0x06 => self.contexts.retain(|(s, _), _| *s != sid),
            0x10 => self.both.retain(|(v, ..), _| *v != vmid),
            0x11 => self
                .both
                .retain(|(v, a, _), _| *v != vmid || *a != Some(asid)),
            0x12 => self.both.retain(|(v, a, page), piece| {
                let named = *v == vmid && a.is_none_or(|a| a == asid);
                !(named && Self::hit([low, high], *page, piece))
            }),
            0x13 => self
                .both
                .retain(|(v, _, page), piece| *v != vmid || !Self::hit([low, high], *page, piece)),
            0x28 => {
                self.second.retain(|(v, _), _| *v != vmid);
                self.both.retain(|(v, ..), _| *v != vmid);
            }
            0x2a => self
                .second
                .retain(|(v, page), piece| *v != vmid || !Self::hit([low, high], *page, piece)),
            0x30 => {
                self.second.clear();
                self.both.clear();
            }
            0x46 => {}
            other => panic!("command {other:#x} is not for this SMMU"),
        }
    }

    /// Whether an invalidation by address means a piece.
    fn hit([low, high]: [u64; 2], page: u64, piece: &Piece) -> bool {
        let address = high >> 12;
        let granule = bits(high, 10, 2);
        if granule == 0 {
            let shift = piece.leaf - 12;
            return page >> shift == address >> shift;
        }
        let (num, scale) = (bits(low, 12, 5), bits(low, 20, 5));
        let level = bits(high, 8, 2);
        assert!((num, scale, level) != (0, 0, 0), "reserved");
        let pages = (num + 1) << scale << [0, 0, 2, 4][granule as usize];
        let inside = page >= address && page - address < pages;
        inside && (level == 0 || level == piece.level)
    }

    /// Where an access goes.
    pub(crate) fn translate(
        &mut self,
        memory: Words<'_>,
        table: (u64, u64),
        access: Access,
    ) -> Result<u64, Fault> {
        let ste = self.entry(memory, table, access.sid)?;
        if ste[0] & 1 == 0 {
            return Err(Fault::of(4));
        }
        let vmid = bits(ste[2], 0, 16);
        match bits(ste[0], 1, 3) {
            4 => Ok(access.at),
            6 => {
                let piece = self.stage2(memory, &ste, access.at, 2)?;
                Self::allow(&piece, access, true)?;
                Ok(piece.page << 12 | access.at & 0xfff)
            }
            7 => self.nested(memory, &ste, vmid, access),
            0..=3 => Err(Fault::Silent),
            _ => Err(Fault::of(4)),
        }
    }

    fn allow(piece: &Piece, access: Access, stage2: bool) -> Result<(), Fault> {
        let needed = if access.write { 2 } else { 1 };
        if piece.rights & needed != 0 {
            return Ok(());
        }
        Err(Fault::Recorded {
            id: 0x13,
            stage2,
            class: 2,
        })
    }

    fn entry(&mut self, memory: Words<'_>, table: (u64, u64), sid: u32) -> Result<[u64; 8], Fault> {
        if let Some(known) = self.entries.get(&sid) {
            return Ok(*known);
        }
        let (base, config) = (table.0 & 0x000f_ffff_ffff_ffc0, table.1);
        if u64::from(sid) >> bits(config, 0, 6) != 0 {
            return Err(Fault::of(2));
        }
        let at = if bits(config, 16, 2) == 0 {
            base + u64::from(sid) * 64
        } else {
            let split = bits(config, 6, 5);
            let index = u64::from(sid) >> split;
            let descriptor = match self.level1.get(&index) {
                Some(known) => *known,
                None => memory(base + index * 8).ok_or(Fault::of(3))?,
            };
            if descriptor & 0x1f == 0 {
                return Err(Fault::of(2));
            }
            self.level1.insert(index, descriptor);
            assert_eq!(descriptor & 0x1f, split + 1, "whole tables only");
            (descriptor & 0x000f_ffff_ffff_ffc0) + (u64::from(sid) & ((1 << split) - 1)) * 64
        };
        let mut ste = [0; 8];
        for (word, n) in ste.iter_mut().zip(0..) {
            *word = memory(at + n * 8).ok_or(Fault::of(3))?;
        }
        self.entries.insert(sid, ste);
        Ok(ste)
    }

    /// A stage-2 walk, 4 KiB granule.
    fn stage2(
        &mut self,
        memory: Words<'_>,
        ste: &[u64; 8],
        at: u64,
        class: u64,
    ) -> Result<Piece, Fault> {
        let vmid = bits(ste[2], 0, 16);
        if let Some(known) = self.second.get(&(vmid, at >> 12)) {
            return Ok(*known);
        }
        assert_eq!(bits(ste[2], 46, 2), 0, "the granule");
        assert_eq!(bits(ste[2], 51, 1), 1, "AArch64");
        assert_eq!(bits(ste[2], 57, 1), 0, "a stall");
        let input = 64 - bits(ste[2], 32, 6);
        if at >> input != 0 {
            return Err(Fault::stage2(0x10, class));
        }
        let first = 2 - bits(ste[2], 38, 2);
        let mut table = ste[3] & 0x000f_ffff_ffff_fff0;
        for level in first..4 {
            let shift = 12 + 9 * (3 - level);
            let index = at >> shift & if level == first { u64::MAX } else { 0x1ff };
            let descriptor = memory(table + index * 8).ok_or(Fault::stage2(0x0b, 1))?;
            match (descriptor & 3, level) {
                (3, 0..=2) => table = descriptor & ADDRESS,
                (3, 3) | (1, 1 | 2) => {
                    assert_eq!(bits(descriptor, 10, 1), 1, "the access flag is ours to set");
                    let inside = at & ((1 << shift) - 1);
                    let piece = Piece {
                        page: (descriptor & ADDRESS | inside) >> 12,
                        rights: bits(descriptor, 6, 2),
                        leaf: shift,
                        level,
                    };
                    self.second.insert((vmid, at >> 12), piece);
                    return Ok(piece);
                }
                _ => return Err(Fault::stage2(0x10, class)),
            }
        }
        unreachable!("level 3 is a leaf or a fault")
    }

    /// A word of the guest's, through stage 2.
    fn word(
        &mut self,
        memory: Words<'_>,
        ste: &[u64; 8],
        at: u64,
        class: u64,
    ) -> Result<u64, Fault> {
        let piece = self.stage2(memory, ste, at, class)?;
        if piece.rights & 1 == 0 {
            return Err(Fault::stage2(0x13, class));
        }
        let fails = if class == 0 { 0x09 } else { 0x0b };
        memory(piece.page << 12 | at & 0xfff).ok_or(Fault::of(fails))
    }

    fn nested(
        &mut self,
        memory: Words<'_>,
        ste: &[u64; 8],
        vmid: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        let substreams = bits(ste[0], 59, 5);
        let ssid = match (substreams, access.ssid, ste[1] & 3) {
            (0, None, _) | (1.., None, 2) => 0,
            (1.., None, 0) => return Err(Fault::of(6)),
            (1.., None, _) => {
                let piece = self.stage2(memory, ste, access.at, 2)?;
                Self::allow(&piece, access, true)?;
                return Ok(piece.page << 12 | access.at & 0xfff);
            }
            (max, Some(ssid), _) if u64::from(ssid) >> max == 0 && max > 0 => ssid,
            _ => return Err(Fault::of(8)),
        };
        let cd = self.context(memory, ste, access.sid, ssid)?;
        if bits(cd[0], 31, 1) == 0 || bits(cd[0], 41, 1) == 0 {
            return Err(Fault::of(0x0a));
        }
        let asid = bits(cd[0], 48, 16);
        let page = access.at >> 12;
        let known = self
            .both
            .get(&(vmid, Some(asid), page))
            .or_else(|| self.both.get(&(vmid, None, page)))
            .copied();
        let piece = match known {
            Some(piece) => piece,
            None => self.walk(memory, ste, &cd, (vmid, asid), access)?,
        };
        Self::allow(&piece, access, false)?;
        Ok(piece.page << 12 | access.at & 0xfff)
    }

    fn context(
        &mut self,
        memory: Words<'_>,
        ste: &[u64; 8],
        sid: u32,
        ssid: u32,
    ) -> Result<[u64; 4], Fault> {
        if let Some(known) = self.contexts.get(&(sid, ssid)) {
            return Ok(*known);
        }
        let base = ste[0] & 0x000f_ffff_ffff_ffc0;
        let ssid64 = u64::from(ssid);
        let leaf = [0, 6, 10][bits(ste[0], 4, 2) as usize];
        let at = if leaf == 0 {
            base + ssid64 * 64
        } else {
            let descriptor = self.word(memory, ste, base + (ssid64 >> leaf) * 8, 0)?;
            if descriptor & 1 == 0 {
                return Err(Fault::of(8));
            }
            (descriptor & 0x000f_ffff_ffff_f000) + (ssid64 & ((1 << leaf) - 1)) * 64
        };
        let mut cd = [0; 4];
        for (word, n) in cd.iter_mut().zip(0..) {
            *word = self.word(memory, ste, at + n * 8, 0)?;
        }
        self.contexts.insert((sid, ssid), cd);
        Ok(cd)
    }

    /// A stage-1 walk of the lower range, 4 KiB granule.
    fn walk(
        &mut self,
        memory: Words<'_>,
        ste: &[u64; 8],
        cd: &[u64; 4],
        (vmid, asid): (u64, u64),
        access: Access,
    ) -> Result<Piece, Fault> {
        let at = access.at;
        let input = 64 - bits(cd[0], 0, 6);
        if bits(cd[0], 6, 2) != 0 || bits(cd[0], 14, 1) == 1 || at >> input != 0 {
            return Err(Fault::of(0x10));
        }
        let levels = (input - 12).div_ceil(9);
        let mut table = cd[1] & 0x000f_ffff_ffff_fff0;
        for level in 4 - levels..4 {
            let shift = 12 + 9 * (3 - level);
            let index = at >> shift & 0x1ff;
            let descriptor = self.word(memory, ste, table + index * 8, 1)?;
            match (descriptor & 3, level) {
                (3, 0..=2) => table = descriptor & ADDRESS,
                (3, 3) | (1, 1 | 2) => {
                    if bits(descriptor, 10, 1) == 0 {
                        return Err(Fault::of(0x12));
                    }
                    let ipa = descriptor & ADDRESS & !((1 << shift) - 1) | at & ((1 << shift) - 1);
                    let rights = if bits(descriptor, 7, 1) == 1 { 1 } else { 3 };
                    if access.write && rights == 1 {
                        // Before stage 2 is asked.
                        return Err(Fault::of(0x13));
                    }
                    let below = self.stage2(memory, ste, ipa, 2)?;
                    let piece = Piece {
                        page: below.page,
                        rights: rights & below.rights,
                        leaf: shift,
                        level,
                    };
                    let global = bits(descriptor, 11, 1) == 0;
                    let tag = (!global).then_some(asid);
                    self.both.insert((vmid, tag, at >> 12), piece);
                    return Ok(piece);
                }
                _ => return Err(Fault::of(0x10)),
            }
        }
        unreachable!("level 3 is a leaf or a fault")
    }
}
