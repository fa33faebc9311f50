//! The register frames: what they claim, what widths they take, and that nothing a guest does to
//! them hurts.

use bulkhead_vgic::{Affinity, Config, Error, Level, Vgic, Width};
use proptest::prelude::{any, proptest};

use crate::machine::{Machine, SGI_FRAME};

/// Reads the register that the capability table calls so; of redistributors the last one's.
fn read(m: &Machine, register: &str) -> u64 {
    let of = |offset, width| m.vgic.read_redistributor(1, offset, width);
    match register {
        "GICD_CTLR" => m.vgic.read_distributor(0x0, Width::Word),
        "GICD_TYPER" => m.vgic.read_distributor(0x4, Width::Word),
        "GICD_IIDR" => m.vgic.read_distributor(0x8, Width::Word),
        "GICD_TYPER2" => m.vgic.read_distributor(0xc, Width::Word),
        "GICD_PIDR2" => m.vgic.read_distributor(0xffe8, Width::Word),
        "GICR_CTLR" => of(0x0, Width::Word),
        "GICR_IIDR" => of(0x4, Width::Word),
        "GICR_TYPER" => of(0x8, Width::Double),
        "GICR_WAKER" => of(0x14, Width::Word),
        "GICR_PIDR2" => of(0xffe8, Width::Word),
        other => panic!("the table names {other}"),
    }
}

#[test]
fn the_capability_table_is_what_the_registers_say() {
    let source = include_str!("../../src/lib.rs");
    let m = Machine::new(2, 256, 4);
    let mut left = std::collections::BTreeMap::new();
    for line in source.lines().filter(|line| line.starts_with("//! | `GIC")) {
        let cells: Vec<_> = line
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, register, bits, field, value, ..] = cells[..] else {
            panic!("{line}");
        };
        let whole = left.entry(register).or_insert_with(|| read(&m, register));
        if bits == "all" {
            assert_eq!(*whole, 0, "{register}");
            continue;
        }
        let (high, low) = bits.split_once(':').unwrap_or((bits, bits));
        let (high, low): (u32, u32) = (high.parse().unwrap(), low.parse().unwrap());
        let mask = u64::MAX >> (63 - (high - low)) << low;
        let value = value.strip_prefix("0x").map_or_else(
            || value.parse().unwrap(),
            |hex| u64::from_str_radix(hex, 16).unwrap(),
        );
        assert_eq!((*whole & mask) >> low, value, "{register}.{field}");
        *whole &= !mask;
    }
    assert_eq!(left.len(), 10, "registers in the table");
    for (register, rest) in left {
        assert_eq!(rest, 0, "bits of {register} that the table does not name");
    }
}

#[test]
fn registers_answer_at_their_widths_only() {
    let m = Machine::enabled(2, 64, 4);
    let gicd = |offset, width| m.vgic.read_distributor(offset, width);
    assert_eq!(gicd(0x421, Width::Byte), 0x80);
    assert_eq!(gicd(0x420, Width::Half), 0);
    assert_eq!(gicd(0x420, Width::Word), 0x8080_8080);
    assert_eq!(gicd(0x420, Width::Double), 0);
    assert_eq!(gicd(0x104, Width::Byte), 0);
    assert_eq!(gicd(0x106, Width::Word), 0);
    let _ = m
        .vgic
        .write_distributor(0x6100, Width::Double, 0x12_8000_0301);
    assert_eq!(gicd(0x6100, Width::Double), 0x12_8000_0301);
    assert_eq!(gicd(0x6100, Width::Word), 0x8000_0301);
    assert_eq!(gicd(0x6104, Width::Word), 0x12);
    let _ = m.vgic.write_distributor(0x6104, Width::Word, u64::MAX);
    let _ = m.vgic.write_distributor(0x6100, Width::Word, 1);
    assert_eq!(gicd(0x6100, Width::Double), 0xff_0000_0001);
    let gicr = |offset, width| m.vgic.read_redistributor(1, offset, width);
    assert_eq!(gicr(0x8, Width::Double), 1 << 32 | 1 << 8 | 1 << 4);
    assert_eq!(gicr(0xc, Width::Word), 1);
    assert_eq!(gicr(0x8, Width::Half), 0);
    assert_eq!(gicr(SGI_FRAME + 0x41f, Width::Byte), 0x80);
    assert_eq!(gicr(SGI_FRAME + 0x420, Width::Byte), 0);
    assert_eq!(gicr(0x2_0000, Width::Word), 0);
    assert_eq!(m.vgic.read_redistributor(2, 0x8, Width::Double), 0);
}

#[test]
fn priorities_keep_five_bits_and_edges_their_own() {
    let mut m = Machine::new(1, 64, 4);
    m.write(0, 0x420, 0xffff_ffff);
    assert_eq!(m.read(0, 0x420), 0xf8f8_f8f8);
    for offset in [0xc08, 0xc0c, 0xc10, 0xc14] {
        m.write(0, offset, 0x8000_000b);
        assert_eq!(m.read(0, offset), 0x8000_000a);
    }
    // SGIs are edge-triggered, the timer level-sensitive, whatever the guest writes.
    m.write_private(0, 0, SGI_FRAME + 0xc00, 0);
    assert_eq!(m.read_private(0, 0, SGI_FRAME + 0xc00), 0xaaaa_aaaa);
    m.write_private(0, 0, SGI_FRAME + 0xc04, 0xffff_ffff);
    assert_eq!(
        m.read_private(0, 0, SGI_FRAME + 0xc04),
        0xaaaa_aaaa & !(2 << 22)
    );
}

#[test]
fn the_last_spi_is_1019_and_there_is_none_beyond() {
    let mut m = Machine::enabled(1, 988, 4);
    m.line(1019, Level::High);
    m.line(1020, Level::High);
    m.pulse(u32::MAX);
    assert_eq!(m.acknowledge(0), 1019);
    m.write(0, 0x27c, 0xffff_ffff);
    assert_eq!(m.read(0, 0x27c), 0x0fff_ffff);
    assert_eq!(m.read(0, 0xfc), 0x0fff_ffff);
    assert_eq!(m.read(0, 4) & 0x1f, 31);
    m.write_at(0, 0x6000 + 8 * 1020, Width::Double, 1);
    assert_eq!(m.vgic.read_distributor(0x6000 + 8 * 1020, Width::Double), 0);
}

#[test]
fn a_target_list_beyond_16_in_a_cluster_needs_its_range() {
    let affinities = [Affinity::new(0, 0, 0, 0), Affinity::new(3, 2, 1, 0x21)];
    let config = Config {
        affinities: &affinities,
        spis: 0,
        list_registers: 4,
        hardware_ppis: 0,
        a3v: true,
    };
    let vgic = Vgic::new(&config).unwrap();
    assert_eq!(vgic.read_distributor(4, Width::Word) >> 26 & 1, 1, "RSS");
    let value = |range: u64| 3 << 48 | range << 44 | 2 << 32 | 1 << 16 | 0b10;
    assert!(vgic.send_sgi(0, value(2)).contains(1));
    assert!(vgic.send_sgi(0, value(0)).is_empty());
    assert_eq!(
        Affinity::from_mpidr(0x03_8002_0121),
        affinities[1],
        "the bits of MPIDR that are not affinity do not count"
    );
}

#[test]
fn what_no_gic_can_be_is_refused() {
    let two = [Affinity::of_vcpu(1); 2];
    let many: Vec<_> = (0..=64).map(Affinity::of_vcpu).collect();
    let with = |affinities: &[Affinity], spis, list_registers| {
        let hardware_ppis = 0;
        let a3v = false;
        Vgic::new(&Config {
            affinities,
            spis,
            list_registers,
            hardware_ppis,
            a3v,
        })
        .err()
    };
    assert_eq!(with(&many[..64], 988, 16), None);
    assert_eq!(with(&many, 0, 4), Some(Error::VcpuCount { vcpus: 65 }));
    assert_eq!(with(&[], 0, 4), Some(Error::VcpuCount { vcpus: 0 }));
    assert_eq!(
        with(&two, 0, 4),
        Some(Error::SameAffinity {
            first: 0,
            second: 1
        })
    );
    assert_eq!(with(&two[..1], 989, 4), Some(Error::SpiCount { spis: 989 }));
    for list_registers in [0, 17] {
        let refused = Error::ListRegisterCount { list_registers };
        assert_eq!(with(&two[..1], 0, list_registers), Some(refused));
    }
}

/// A value for every offset: all ones, and a mix of bits.
fn values(offset: u64) -> [u64; 2] {
    [u64::MAX, offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)]
}

#[test]
fn every_offset_takes_every_width() {
    let mut m = Machine::enabled(2, 988, 4);
    for width in Width::ALL {
        for offset in 0..0x2_0000_u64 {
            for value in values(offset) {
                let _ = m.vgic.write_redistributor(1, offset, width, value);
                let _ = m.vgic.write_distributor(offset, width, value);
            }
            let _ = m.vgic.read_redistributor(1, offset, width);
            let _ = m.vgic.read_distributor(offset, width);
        }
        m.settle();
    }
    // All there is to be heard is heard, a bounded number of times.
    m.write(0, 0, 2);
    for _ in 0..3 * 1024 {
        for vcpu in 0..2 {
            let intid = m.acknowledge(vcpu);
            assert!(intid < 1020 || intid == 1023);
            if intid < 1020 {
                m.end(vcpu, intid);
            }
        }
    }
}

#[test]
fn reads_change_nothing() {
    let mut m = Machine::enabled(2, 64, 4);
    m.line(33, Level::High);
    m.timer(0);
    let _ = m.sgi(1, 3 << 24 | 0b11);
    let all = |m: &Machine| -> Vec<u64> {
        (0..0x2_0000)
            .step_by(4)
            .flat_map(|offset| {
                [
                    m.vgic.read_distributor(offset, Width::Word),
                    m.vgic.read_redistributor(0, offset, Width::Word),
                ]
            })
            .collect()
    };
    let first = all(&m);
    assert_eq!(first, all(&m));
    assert!(!m.vgic.needs_flush(0) && !m.vgic.needs_flush(1));
}

proptest! {
    #[test]
    fn no_sequence_of_guest_input_hurts(
        steps in proptest::collection::vec((0_u8..10, any::<u16>(), any::<u64>()), 1..200)
    ) {
        let mut m = Machine::new(3, 100, 2);
        let mut active = Vec::new();
        for (what, place, value) in steps {
            let vcpu = usize::from(place) % 3;
            let width = Width::from_sas(value.to_le_bytes()[7]);
            // Aim at registers that exist, most of the time.
            let offset = u64::from(place & 0xffc);
            match what {
                0 | 1 => m.write_at(vcpu, offset, width, value),
                2 => m.write_private(vcpu, value as usize % 4, SGI_FRAME + offset, value),
                3 => {
                    let _ = m.sgi(vcpu, value);
                }
                4 => {
                    m.sync(vcpu);
                    let _ = m.vgic.deactivate(vcpu, value & 0x3ff);
                    m.settle();
                }
                5 => m.line(u32::from(place) & 0xff, if value & 1 == 0 { Level::High } else { Level::Low }),
                6 => m.pulse(u32::from(place)),
                7 => {
                    let intid = m.acknowledge(vcpu);
                    active.push(intid);
                }
                8 => {
                    // A guest may end what it never took.
                    let intid = active.pop().unwrap_or(u32::from(place));
                    m.end(vcpu, intid);
                }
                _ => {
                    let _ = m.vgic.set_ppi_line(vcpu, place.into(), Level::High);
                    m.settle();
                }
            }
        }
    }
}
