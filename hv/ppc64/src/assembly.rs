//! Assembler macros. Each block of assembler takes them in and gives them up again, because the order
//! of blocks is the compiler's choice.

/// `address register, symbol`: the address of a symbol below 2 GiB.
///
/// `to_little_endian`: from big-endian mode to 64-bit little-endian mode, which is on from the next
/// instruction on; r3 to r9 are kept. The assembler knows one byte order only, so what runs before the
/// switch is written as words.
macro_rules! macros {
    () => {
        r#"
    .macro  big_endian word
    .long   ((\word & 0xff) << 24) | ((\word & 0xff00) << 8) | ((\word >> 8) & 0xff00) | (\word >> 24)
    .endm

    .macro  to_little_endian
    big_endian 0x429f0005           // bcl    20,31,.+4
    big_endian 0x7d8802a6           // mflr   r12
    big_endian 0x7d6000a6           // mfmsr  r11
    big_endian 0x39400001           // li     r10,1
    big_endian 0x794af806           // sldi   r10,r10,63       MSR[SF]
    big_endian 0x7d6b5378           // or     r11,r11,r10
    big_endian 0x616b0001           // ori    r11,r11,1        MSR[LE]
    big_endian 0x398c0028           // addi   r12,r12,40       the word after these
    big_endian 0x7d9a03a6           // mtsrr0 r12
    big_endian 0x7d7b03a6           // mtsrr1 r11
    big_endian 0x4c000024           // rfid
    .endm

    .macro  address register, symbol
    lis     \register, \symbol@h
    ori     \register, \register, \symbol@l
    .endm
        "#
    };
}

/// What ends a block that began with [`macros`].
macro_rules! end_of_macros {
    () => {
        r#"
    .purgem big_endian
    .purgem to_little_endian
    .purgem address
        "#
    };
}

pub(crate) use {end_of_macros, macros};
