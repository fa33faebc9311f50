//! The device tree for the next kernel: the running kernel's own, changed in place. A value is replaced by
//! one that is not longer, so nothing moves. [Devicetree Specification §5]

use crate::iomem::Range;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// Replaces what `/chosen` says of the command line and the initial RAM disk.
///
/// # Errors
/// What the tree lacks, or that a value does not fit.
pub fn change(tree: &mut [u8], arguments: &str, initrd: Range) -> Result<(), &'static str> {
    put(tree, "bootargs", Text(arguments))?;
    put(tree, "linux,initrd-start", Number(initrd.start))?;
    put(tree, "linux,initrd-end", Number(initrd.end))
}

/// Where the running kernel found its initial RAM disk.
pub fn initrd(tree: &[u8]) -> Option<Range> {
    let number = |name| {
        let (at, len) = find(tree, name)?;
        let bytes = tree.get(at..at.checked_add(len)?)?;
        match len {
            4 => bytes.try_into().ok().map(u32::from_be_bytes).map(u64::from),
            8 => bytes.try_into().ok().map(u64::from_be_bytes),
            _ => None,
        }
    };
    let range = Range {
        start: number("linux,initrd-start")?,
        end: number("linux,initrd-end")?,
    };
    (range.start < range.end).then_some(range)
}

enum Value<'a> {
    Text(&'a str),
    Number(u64),
}
use Value::{Number, Text};

fn put(tree: &mut [u8], name: &str, value: Value<'_>) -> Result<(), &'static str> {
    let (at, len) = find(tree, name).ok_or("the device tree lacks bootargs or an initrd")?;
    let place = tree
        .get_mut(at..at + len)
        .ok_or("the device tree is cut off")?;
    match value {
        Text(text) => {
            // The zero at the end stays.
            let room = len.saturating_sub(1);
            let place = place.get_mut(..room).unwrap_or_default();
            if text.len() > room {
                return Err("the new command line is longer than the old one");
            }
            place.fill(b' ');
            place[..text.len()].copy_from_slice(text.as_bytes());
        }
        Number(number) => match len {
            8 => place.copy_from_slice(&number.to_be_bytes()),
            4 => {
                let number = u32::try_from(number).map_err(|_| "an address needs 64 bits")?;
                place.copy_from_slice(&number.to_be_bytes());
            }
            _ => return Err("an address of the device tree has neither 32 nor 64 bits"),
        },
    }
    Ok(())
}

/// Where the value of a property of `/chosen` is, and its length.
fn find(tree: &[u8], name: &str) -> Option<(usize, usize)> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(tree.get(at..at + 4)?.try_into().ok()?))
    };
    let offset = |at| usize::try_from(word(at)?).ok();
    let string = |at: usize| tree.get(at..)?.split(|&byte| byte == 0).next();
    if word(0)? != MAGIC {
        return None;
    }
    let strings = offset(12)?;
    let mut at = offset(8)?;
    let mut depth = 0_u32;
    let mut chosen = false;
    loop {
        let token = word(at)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                let node = string(at)?;
                depth += 1;
                if depth == 2 {
                    chosen = node == b"chosen";
                }
                at = (at + node.len() + 1).next_multiple_of(4);
            }
            END_NODE => {
                depth = depth.checked_sub(1)?;
                if depth == 1 {
                    chosen = false;
                }
            }
            PROPERTY => {
                let len = offset(at)?;
                let found = string(strings.checked_add(offset(at + 4)?)?)?;
                at += 8;
                if chosen && depth == 2 && found == name.as_bytes() {
                    tree.get(at..at.checked_add(len)?)?;
                    return Some((at, len));
                }
                at = at.checked_add(len)?.next_multiple_of(4);
            }
            NOP => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Range = Range {
        start: 0x1234,
        end: 0x5678,
    };
    const FAR: Range = Range {
        start: 1 << 32,
        end: 0,
    };
    const NONE: Range = Range { start: 0, end: 0 };

    /// A tree with a node before `/chosen`, one in it and one after, all of which have `bootargs`.
    fn tree(initrd: &[u8]) -> Vec<u8> {
        let names = b"bootargs\0linux,initrd-start\0linux,initrd-end\0";
        let mut body = Vec::new();
        let node = |body: &mut Vec<u8>, name: &str| {
            body.extend(BEGIN_NODE.to_be_bytes());
            body.extend(name.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        };
        let property = |body: &mut Vec<u8>, name: u32, value: &[u8]| {
            body.extend(PROPERTY.to_be_bytes());
            body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(name.to_be_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        };
        node(&mut body, "");
        node(&mut body, "other");
        property(&mut body, 0, b"not this\0");
        body.extend(END_NODE.to_be_bytes());
        body.extend(NOP.to_be_bytes());
        node(&mut body, "chosen");
        node(&mut body, "inner");
        property(&mut body, 0, b"nor this\0");
        body.extend(END_NODE.to_be_bytes());
        property(&mut body, 0, b"a=1 b=2\0");
        property(&mut body, 9, initrd);
        property(&mut body, 28, initrd);
        body.extend(END_NODE.to_be_bytes());
        body.extend(END_NODE.to_be_bytes());
        body.extend(9_u32.to_be_bytes());
        let mut tree = vec![0; 40];
        let strings = 40 + u32::try_from(body.len()).unwrap();
        tree[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        tree[8..12].copy_from_slice(&40_u32.to_be_bytes());
        tree[12..16].copy_from_slice(&strings.to_be_bytes());
        tree.extend(body);
        tree.extend(names);
        tree
    }

    fn text(tree: &[u8], name: &str) -> Vec<u8> {
        let (at, len) = find(tree, name).unwrap();
        tree[at..at + len].to_vec()
    }

    #[test]
    fn only_the_three_values_of_chosen_change() {
        let mut changed = tree(&[0xff; 8]);
        change(&mut changed, "b=2", DISK).unwrap();
        assert_eq!(text(&changed, "bootargs"), b"b=2    \0");
        assert_eq!(
            text(&changed, "linux,initrd-start"),
            0x1234_u64.to_be_bytes()
        );
        assert_eq!(text(&changed, "linux,initrd-end"), 0x5678_u64.to_be_bytes());
        assert_eq!(initrd(&changed), Some(DISK));
        let before = tree(&[0xff; 8]);
        assert_eq!(initrd(&before), None, "nothing lies there");
        let different = before.iter().zip(&changed).filter(|(a, b)| a != b).count();
        assert!(different <= 7 + 16, "{different} bytes");
        assert_eq!(before.len(), changed.len());
        let mut short = tree(&[0; 4]);
        change(&mut short, "", DISK).unwrap();
        assert_eq!(text(&short, "linux,initrd-end"), 0x5678_u32.to_be_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(change(&mut tree(&[0; 8]), "a=1 b=2 c=3", NONE).is_err());
        assert!(change(&mut tree(&[0; 4]), "", FAR).is_err());
        assert!(change(&mut tree(&[0; 3]), "", NONE).is_err());
        assert!(change(&mut [0; 64], "", NONE).is_err());
    }

    #[test]
    fn a_damaged_tree_ends() {
        let good = tree(&[0; 8]);
        for end in 0..good.len() {
            let _ = change(&mut good[..end].to_vec(), "a", NONE);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = !bad[at];
            let _ = change(&mut bad, "a", NONE);
        }
    }
}
