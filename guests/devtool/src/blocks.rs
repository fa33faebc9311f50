//! What a disk is filled with to see whether its data comes back: pieces of several lengths in several places, each
//! word different at each place and with each salt.

/// Bytes of the longest piece, as long as the longest request.
pub const LONGEST: usize = 128 << 10;
/// Bytes of the label, which is written last.
pub const LABEL: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"bulkhead");

/// Where pieces are on a disk of so many bytes, and how long. All are whole sectors, not all whole pages.
pub fn pieces(disk: u64) -> [(u64, usize); 6] {
    [
        (0x1_0000, LONGEST),
        (0x10_0200, 0x1_0e00),
        (0x20_1000, 0x4000),
        (0x21_0600, 0x1000),
        (0x22_0200, 0x200),
        (disk.saturating_sub(LONGEST as u64), LONGEST),
    ]
}

/// The word that belongs to this place of the disk.
fn word(at: u64, salt: u64) -> u64 {
    (at ^ salt)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(17)
}

fn words(at: u64, bytes: usize) -> impl Iterator<Item = u64> {
    (at..).step_by(8).take(bytes / 8)
}

/// Fills a piece that begins at this place.
pub fn fill(piece: &mut [u8], at: u64, salt: u64) {
    let places = words(at, piece.len());
    for (word_of, at) in piece.chunks_exact_mut(8).zip(places) {
        word_of.copy_from_slice(&word(at, salt).to_le_bytes());
    }
}

/// The first place of a piece that does not have what it should.
pub fn differs(piece: &[u8], at: u64, salt: u64) -> Option<u64> {
    let mut places = words(at, piece.len()).zip(piece.chunks_exact(8));
    places
        .find(|(at, found)| *found != word(*at, salt).to_le_bytes())
        .map(|(at, _)| at)
}

/// What is at the start of a disk whose pieces were written with this salt.
pub fn label(salt: u64) -> [u8; LABEL] {
    let mut label = [0; LABEL];
    label[..8].copy_from_slice(&MAGIC.to_le_bytes());
    label[8..16].copy_from_slice(&salt.to_le_bytes());
    label[16..24].copy_from_slice(&word(MAGIC, salt).to_le_bytes());
    label
}

/// The salt that a label has, if it is one.
pub fn salt(found: &[u8]) -> Option<u64> {
    let salt = u64::from_le_bytes(found.get(8..16)?.try_into().ok()?);
    (found == label(salt)).then_some(salt)
}

/// Of all bytes, for a comparison with what was read before.
pub fn sum(bytes: &[u8], before: u64) -> u64 {
    bytes.chunks_exact(8).fold(before, |sum, word| {
        let word: [u8; 8] = word.try_into().unwrap_or_default();
        (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_sectors_of_the_disk_and_apart() {
        let disk = 16 << 20;
        let mut pieces = pieces(disk).to_vec();
        pieces.push((0, LABEL));
        pieces.sort_unstable();
        for pair in pieces.windows(2) {
            assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0);
        }
        for (at, bytes) in pieces {
            assert!(at % 512 == 0 && bytes % 512 == 0 && bytes <= LONGEST);
            assert!(at + bytes as u64 <= disk);
        }
    }

    #[test]
    fn any_change_is_noticed() {
        let mut piece = [0; 4096];
        fill(&mut piece, 0x1000, 7);
        assert_eq!(differs(&piece, 0x1000, 7), None);
        assert_eq!(differs(&piece, 0x1000, 8), Some(0x1000), "another salt");
        assert_eq!(differs(&piece, 0x1200, 7), Some(0x1200), "another place");
        assert_eq!(differs(&[0; 4096], 0, 0), Some(8), "nothing was written");
        let before = sum(&piece, 0);
        for at in 0..piece.len() {
            piece[at] ^= 0x40;
            assert_eq!(differs(&piece, 0x1000, 7), Some(0x1000 + (at as u64 & !7)));
            assert_ne!(sum(&piece, 0), before);
            piece[at] ^= 0x40;
        }
    }

    #[test]
    fn a_label_is_whole() {
        let good = label(0x1234_5678_9abc);
        assert_eq!(salt(&good), Some(0x1234_5678_9abc));
        assert_eq!(salt(&[0; LABEL]), None);
        for at in 0..LABEL {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(salt(&bad), None);
        }
    }
}
