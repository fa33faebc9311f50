//! The decoder of trapped accesses, against LLVM's assembler and against the syndrome.

use bulkhead_vdev::Width;
use bulkhead_vdev::mmio::{
    Access, Address, Base, DecodeError, Direction, Extension, IndexExtend, Offset, Register, Size,
    WriteBack, from_instruction, from_syndrome,
};
use proptest::prelude::{any, proptest};

/// The lines of a table: an encoding and the rest.
fn table(text: &str) -> impl Iterator<Item = (u32, &str)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap();
            (u32::from_str_radix(word, 16).unwrap(), rest)
        })
}

fn register(name: &str) -> Register {
    if name.ends_with("zr") {
        return Register::Zero;
    }
    let number = name[1..].parse().unwrap();
    match &name[..1] {
        "w" | "x" => Register::General(number),
        _ => Register::Vector(number),
    }
}

fn base(name: &str) -> Base {
    match name {
        "sp" => Base::StackPointer,
        name => Base::General(name[1..].parse().unwrap()),
    }
}

fn offset(text: &str) -> Offset {
    if let Some(bytes) = text.strip_prefix('#') {
        return Offset::Bytes(bytes.parse().unwrap());
    }
    let (index, modifier) = text.split_once(", ").unwrap_or((text, "lsl #0"));
    let (extend, shift) = modifier.split_once(" #").unwrap_or((modifier, "0"));
    Offset::Register {
        index: register(index),
        extend: match extend {
            "uxtw" => IndexExtend::Uxtw,
            "sxtw" => IndexExtend::Sxtw,
            "lsl" | "sxtx" => IndexExtend::Full,
            other => panic!("{other}"),
        },
        shift: shift.parse().unwrap(),
    }
}

/// What assembly text means, read from the text alone.
fn meaning(assembly: &str) -> Access {
    const STEMS: [&str; 15] = [
        "ldapur", "ldapr", "ldar", "ldur", "ldtr", "ldnp", "ldp", "ldr", "stlur", "stlr", "stur",
        "sttr", "stnp", "stp", "str",
    ];
    let (mnemonic, operands) = assembly.split_once(' ').unwrap();
    let stem = STEMS
        .iter()
        .find(|stem| mnemonic.starts_with(**stem))
        .unwrap();
    let suffix = &mnemonic[stem.len()..];
    let (data, address) = operands.split_once(", [").unwrap();
    let (first, second) = match data.split_once(", ") {
        Some((first, second)) => (first, Some(second)),
        None => (data, None),
    };
    let (inside, outside) = address.split_once(']').unwrap();
    let (base_name, inside) = inside.split_once(", ").unwrap_or((inside, "#0"));
    let base = base(base_name);
    let offset_inside = offset(inside);
    let delta = match (outside, offset_inside) {
        ("", _) => None,
        ("!", Offset::Bytes(bytes)) => Some(bytes),
        (post, _) => Some(post.strip_prefix(", #").unwrap().parse().unwrap()),
    };
    let wide = first.starts_with('x');
    Access {
        direction: match &mnemonic[..1] {
            "l" => Direction::Load,
            _ => Direction::Store,
        },
        size: match (suffix, &first[..1]) {
            ("b" | "sb", _) | ("", "b") => Size::Byte,
            ("h" | "sh", _) | ("", "h") => Size::Half,
            ("sw", _) | ("", "w" | "s") => Size::Word,
            ("", "x" | "d") => Size::Double,
            ("", "q") => Size::Quad,
            other => panic!("{other:?}"),
        },
        extension: match (suffix.starts_with('s'), wide) {
            (false, _) => Extension::Zero,
            (true, false) => Extension::SignTo32,
            (true, true) => Extension::SignTo64,
        },
        first: register(first),
        second: second.map(register),
        address: Some(Address {
            base,
            offset: offset_inside,
        }),
        write_back: delta.map(|delta| WriteBack { base, delta }),
    }
}

#[test]
fn every_supported_access_means_what_its_assembly_says() {
    let mut count = 0;
    for (word, assembly) in table(include_str!("accesses.txt")) {
        assert_eq!(
            from_instruction(word),
            Ok(meaning(assembly)),
            "{word:08x} {assembly}"
        );
        count += 1;
    }
    assert!(count > 700, "{count}");
}

#[test]
fn every_other_access_is_refused_by_name() {
    for (word, rest) in table(include_str!("refused.txt")) {
        let (name, assembly) = rest.split_once(' ').unwrap();
        let refusal = match from_instruction(word) {
            Err(DecodeError::Unsupported(what)) => format!("{what:?}"),
            Err(DecodeError::NotAnAccess(refused)) if refused == word => "NotAnAccess".into(),
            other => format!("{other:?}"),
        };
        assert_eq!(refusal, name, "{word:08x} {assembly}");
    }
}

#[test]
fn forms_the_architecture_leaves_open_are_refused() {
    let open = [
        (0xf840_8400, "ldr x0, [x0], #8"),
        (0xf800_8c21, "str x1, [x1, #8]!"),
        (0xa8c1_0400, "ldp x0, x1, [x0], #16"),
        (
            0xa981_0801,
            "stp x1, x2, [x0, #16]! is fine, so not this one",
        ),
        (0xa981_0001, "stp x1, x0, [x0, #16]!"),
        (0xa940_0440, "ldp x0, x1, [x2] is fine, so not this one"),
        (0xa940_0040, "ldp x0, x0, [x2]"),
        (0xad40_0040, "ldp q0, q0, [x2]"),
        (0x08de_fc41, "ldarb with a status register"),
    ];
    for (word, what) in open {
        let decoded = from_instruction(word);
        if what.contains("fine") {
            assert!(decoded.is_ok(), "{what}: {decoded:?}");
        } else {
            assert_eq!(decoded, Err(DecodeError::Unpredictable(word)), "{what}");
        }
    }
    // The stack pointer and the zero register share a number, not a register.
    assert!(from_instruction(0xf840_87ff).is_ok(), "ldr xzr, [sp], #8");
    // The number of a SIMD register is no general register's.
    assert!(from_instruction(0xfc40_8400).is_ok(), "ldr d0, [x0], #8");
}

const ISV: u32 = 1 << 24;

#[test]
fn a_syndrome_says_size_sign_register_and_direction() {
    let iss = ISV | 2 << 22 | 1 << 21 | 7 << 16 | 1 << 15 | 0x07;
    let access = from_syndrome(iss).unwrap().unwrap();
    let expected = Access {
        direction: Direction::Load,
        size: Size::Word,
        extension: Extension::SignTo64,
        first: Register::General(7),
        second: None,
        address: None,
        write_back: None,
    };
    assert_eq!(access, expected);
    assert_eq!(access.loaded(0x8000_0000), 0xffff_ffff_8000_0000);

    let store = from_syndrome(ISV | 31 << 16 | 1 << 6).unwrap().unwrap();
    assert_eq!(store.first, Register::Zero);
    assert_eq!(
        (store.direction, store.size),
        (Direction::Store, Size::Byte)
    );
}

#[test]
fn a_syndrome_without_the_access_asks_for_the_instruction() {
    assert_eq!(from_syndrome(0x47), Ok(None));
    assert_eq!(from_syndrome(ISV | 1 << 7), Err(DecodeError::TableWalk));
    assert_eq!(
        from_syndrome(1 << 8 | 1 << 6),
        Err(DecodeError::CacheMaintenance)
    );
    assert_eq!(from_syndrome(ISV | 1 << 9), Err(DecodeError::External));
}

#[test]
fn a_loaded_element_fills_its_register() {
    let access = |word| from_instruction(word).unwrap();
    let ldrsb_w = access(0x39c0_0020);
    assert_eq!(ldrsb_w.loaded(0x1ff), 0xffff_ffff);
    assert_eq!(ldrsb_w.loaded(0x7f), 0x7f);
    let ldr_q = access(0x3dc0_0020);
    assert_eq!(ldr_q.loaded(u128::MAX), u128::MAX);
    assert_eq!(ldr_q.size.device_accesses(), (Width::Double, 2));
    let ldrh = access(0x7940_0020);
    assert_eq!(ldrh.loaded(u128::MAX), 0xffff);
    let strb = access(0x3900_0020);
    assert_eq!(strb.stored(0x1234), 0x34);
}

#[test]
fn addresses_and_elements_come_in_ascending_order() {
    let ldp = from_instruction(0xa97f_0440).unwrap();
    let elements: Vec<_> = ldp.elements().collect();
    assert_eq!(
        elements,
        [(Register::General(0), 0), (Register::General(1), 8)]
    );
    let address = ldp.address.unwrap();
    assert_eq!(address.resolve(|_| 0x1000, |_| 0), 0xff0);

    // ldr x0, [x1, w2, sxtw #3]
    let indexed = from_instruction(0xf862_d820).unwrap().address.unwrap();
    assert_eq!(indexed.resolve(|_| 0x1000, |_| 0xffff_ffff), 0xff8);
    // ldr x0, [x1, w2, uxtw #3]
    let indexed = from_instruction(0xf862_5820).unwrap().address.unwrap();
    assert_eq!(indexed.resolve(|_| 0x1000, |_| 0x1_0000_0001), 0x1008);
}

proptest! {
    #[test]
    fn no_instruction_makes_the_decoder_panic(words in proptest::collection::vec(any::<u32>(), 64)) {
        for word in words {
            // Random words seldom are loads; every second one is made to look like one.
            for word in [word, word & !(1 << 25) | 1 << 27] {
                if let Ok(access) = from_instruction(word) {
                    let _ = access.loaded(u128::MAX);
                    let _ = access.address.unwrap().resolve(|_| u64::MAX, |_| u64::MAX);
                    assert!(access.size != Size::Quad || matches!(access.first, Register::Vector(_)));
                }
            }
        }
    }

    #[test]
    fn no_syndrome_makes_the_decoder_panic(iss in 0_u32..1 << 25) {
        let _ = from_syndrome(iss);
    }
}
