//! The header of an arm64 kernel image. [Linux, Documentation/arch/arm64/booting.rst]

/// Where an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// From a boundary of 2 MiB, in bytes.
    pub text_offset: u64,
    /// Bytes that it uses from there on; those of the file are fewer.
    pub bytes: u64,
}

/// Bytes of the header.
pub const HEADER: usize = 64;

impl Image {
    /// Reads the header at the start of a file.
    pub fn of(file: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?))
        };
        let image = Self {
            text_offset: word(8)?,
            bytes: word(16)?,
        };
        let good = file.get(56..60)? == b"ARM\x64"
            && image.text_offset < 2 << 20
            && (1..1 << 30).contains(&image.bytes);
        good.then_some(image)
    }
}

/// The code that enters a kernel as its boot protocol asks: x0 is its device tree, x1 to x3 are 0. It runs
/// wherever it is put.
pub fn entry(kernel: u64, tree: u64) -> [u8; 40] {
    const CODE: [u32; 6] = [
        0x5800_00c4, // ldr x4, .+24
        0x5800_00e0, // ldr x0, .+28
        0xaa1f_03e1, // mov x1, xzr
        0xaa1f_03e2, // mov x2, xzr
        0xaa1f_03e3, // mov x3, xzr
        0xd61f_0080, // br x4
    ];
    let code = CODE.iter().flat_map(|word| word.to_le_bytes());
    let data = [kernel, tree].into_iter().flat_map(u64::to_le_bytes);
    let mut bytes = [0; 40];
    for (place, byte) in bytes.iter_mut().zip(code.chain(data)) {
        *place = byte;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_has_its_two_addresses_where_its_code_looks() {
        let bytes = entry(0x1122_3344, 0x5566_7788);
        // The distance of a literal, in words, from the instruction that loads it.
        let literal = |at: usize| {
            let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let place = at + usize::try_from(word >> 5 & 0x7_ffff).unwrap() * 4;
            u64::from_le_bytes(bytes[place..place + 8].try_into().unwrap())
        };
        assert_eq!(literal(0), 0x1122_3344);
        assert_eq!(literal(4), 0x5566_7788);
    }

    #[test]
    fn a_header_says_where_to_and_how_much() {
        let mut file = [0; HEADER];
        file[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
        file[16..24].copy_from_slice(&0x200_0000_u64.to_le_bytes());
        assert_eq!(Image::of(&file), None);
        file[56..60].copy_from_slice(b"ARM\x64");
        let image = Image {
            text_offset: 0x8_0000,
            bytes: 0x200_0000,
        };
        assert_eq!(Image::of(&file), Some(image));
        assert_eq!(Image::of(&file[..60]), Some(image));
        assert_eq!(Image::of(&file[..59]), None);
        file[16..24].fill(0xff);
        assert_eq!(Image::of(&file), None, "a size beyond reason");
    }
}
