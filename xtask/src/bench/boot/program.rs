//! The first program of the Linux whose start is measured: it prints the virtual counter as it is, and the
//! counter's frequency, in hexadecimal digits, and powers off.

use crate::board::Arch;

/// For Linux on Arm.
const ARM: [u32; 35] = [
    0xd53b_e049, // mrs x9, cntvct_el0
    0xd53b_e00a, // mrs x10, cntfrq_el0
    0xd100_c3ff, // sub sp, sp, #48
    0x9100_03e1, // mov x1, sp
    0xd280_004f, // mov x15, #2
    0xd280_078b, // 2: mov x11, #60
    0x9acb_252c, // 1: lsr x12, x9, x11
    0x9240_0d8c, // and x12, x12, #15
    0xf100_299f, // cmp x12, #10
    0x9100_c18d, // add x13, x12, #'0'
    0x9101_5d8e, // add x14, x12, #'a' - 10
    0x9a8e_31ac, // csel x12, x13, x14, lo
    0x3800_142c, // strb w12, [x1], #1
    0xf100_116b, // subs x11, x11, #4
    0x54ff_ff05, // b.pl 1b
    0xaa0a_03e9, // mov x9, x10
    0x5280_014c, // mov w12, #'\n'
    0x3800_142c, // strb w12, [x1], #1
    0xf100_05ef, // subs x15, x15, #1
    0x54ff_fe41, // b.ne 2b
    0xd280_0020, // mov x0, #1
    0x9100_03e1, // mov x1, sp
    0xd280_0442, // mov x2, #34
    0xd280_0808, // mov x8, #64: write
    0xd400_0001, // svc #0
    0xd29b_d5a0, // mov x0, #0xfee1dead
    0xf2bf_dc20, //
    0xd283_2d21, // mov x1, #0x28121969
    0xf2a5_0241, //
    0xd29f_db82, // mov x2, #0x4321fedc: power off
    0xf2a8_6422, //
    0xd280_0003, // mov x3, #0
    0xd280_11c8, // mov x8, #142: reboot
    0xd400_0001, // svc #0
    0x1400_0000, // b .
];
/// Where it is loaded.
const PROGRAM_AT: u64 = 0x40_0000;
/// Bytes of the headers before it.
const HEADERS: u64 = 64 + 56;

/// For Linux on POWER.
const POWER: [u32; 38] = [
    0x7d2c_42a6, // mftb r9
    0x3d40_1e84, // lis r10, 512000000@h
    0x614a_8000, // ori r10, r10, 512000000@l
    0x3821_ffd0, // addi r1, r1, -48
    0x7c24_0b78, // mr r4, r1
    0x39e0_0002, // li r15, 2
    0x3960_003c, // 2: li r11, 60
    0x7d2c_5c36, // 1: srd r12, r9, r11
    0x718c_000f, // andi. r12, r12, 15
    0x280c_000a, // cmplwi r12, 10
    0x39ac_0030, // addi r13, r12, '0'
    0x4180_0008, // blt 3f
    0x39ac_0057, // addi r13, r12, 'a' - 10
    0x99a4_0000, // 3: stb r13, 0(r4)
    0x3884_0001, // addi r4, r4, 1
    0x356b_fffc, // addic. r11, r11, -4
    0x4080_ffdc, // bge 1b
    0x7d49_5378, // mr r9, r10
    0x3980_000a, // li r12, '\n'
    0x9984_0000, // stb r12, 0(r4)
    0x3884_0001, // addi r4, r4, 1
    0x35ef_ffff, // addic. r15, r15, -1
    0x4082_ffc0, // bne 2b
    0x3860_0001, // li r3, 1
    0x7c24_0b78, // mr r4, r1
    0x38a0_0022, // li r5, 34
    0x3800_0004, // li r0, 4: write
    0x4400_0002, // sc
    0x3c60_fee1, // lis r3, 0xfee1dead@h
    0x6063_dead, //
    0x3c80_2812, // lis r4, 0x28121969@h
    0x6084_1969, //
    0x3ca0_4321, // lis r5, 0x4321fedc@h: power off
    0x60a5_fedc, //
    0x38c0_0000, // li r6, 0
    0x3800_0058, // li r0, 88: reboot
    0x4400_0002, // sc
    0x4800_0000, // b .
];

/// An ELF file with the first program.
pub(super) fn file(arch: Arch) -> Vec<u8> {
    let (code, machine, flags): (&[u32], _, _) = match arch {
        Arch::Aarch64 => (&ARM, 183, 0),
        // ELFv2: the entry is code. [ELFv2 ABI §4.1]
        Arch::Ppc64 => (&POWER, 21, 2),
    };
    let code: Vec<u8> = code
        .iter()
        .flat_map(|instruction| instruction.to_le_bytes())
        .collect();
    let bytes = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.resize(16, 0);
    let mut put = |value: u64, width: usize| {
        file.extend_from_slice(value.to_le_bytes().get(..width).unwrap_or_default());
    };
    // An executable, one program header right behind this one, no sections.
    for (value, width) in [
        (2, 2),
        (machine, 2),
        (1, 4),
        (PROGRAM_AT + HEADERS, 8),
        (64, 8),
    ] {
        put(value, width);
    }
    for (value, width) in [
        (0, 8),
        (flags, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (64, 2),
        (0, 2),
        (0, 2),
    ] {
        put(value, width);
    }
    // The whole file, readable and executable.
    for (value, width) in [(1, 4), (5, 4), (0, 8), (PROGRAM_AT, 8), (PROGRAM_AT, 8)] {
        put(value, width);
    }
    for value in [bytes, bytes, 0x1000] {
        put(value, 8);
    }
    file.extend_from_slice(&code);
    file
}

#[cfg(test)]
mod tests {
    use object::read::elf::ElfFile64;
    use object::{Architecture, Endianness, Object as _, ObjectSegment as _};

    use super::*;

    #[test]
    fn the_program_is_an_executable() {
        let arches = [
            (Arch::Aarch64, Architecture::Aarch64),
            (Arch::Ppc64, Architecture::PowerPc64),
        ];
        for (arch, architecture) in arches {
            let bytes = file(arch);
            let file: ElfFile64<'_, Endianness> = ElfFile64::parse(bytes.as_slice()).unwrap();
            assert_eq!(file.architecture(), architecture);
            assert_eq!(file.entry(), PROGRAM_AT + HEADERS);
            let segment = file.segments().next().unwrap();
            assert_eq!(segment.address(), PROGRAM_AT);
            assert_eq!(segment.data().unwrap(), bytes);
        }
    }
}
