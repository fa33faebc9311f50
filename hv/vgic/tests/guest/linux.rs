//! The registers as Linux's driver uses them from probe to the first interrupts.

use bulkhead_vgic::{Level, Width};

use crate::machine::{Machine, SGI_FRAME, SPURIOUS, TIMER};

const SPIS: u64 = 256;
const ALL: u64 = 0xffff_ffff;

/// The distributor's part, on the boot CPU.
fn probe_and_set_up_the_distributor(m: &mut Machine) {
    assert_eq!(m.read(0, 0xffe8) & 0xf0, 0x30, "GICv3");
    let typer = m.read(0, 4);
    assert_eq!(((typer & 0x1f) + 1) * 32, 32 + SPIS, "INTIDs");
    assert_eq!(typer >> 17 & 1, 0, "LPIs");
    m.write(0, 0, 0);
    for intid in (32..32 + SPIS).step_by(32) {
        m.write(0, 0x80 + intid / 8, ALL);
    }
    for intid in (32..32 + SPIS).step_by(16) {
        m.write(0, 0xc00 + intid / 4, 0);
    }
    for intid in (32..32 + SPIS).step_by(4) {
        m.write(0, 0x400 + intid, 0xa0a0_a0a0);
    }
    for intid in (32..32 + SPIS).step_by(32) {
        m.write(0, 0x380 + intid / 8, ALL);
        m.write(0, 0x180 + intid / 8, ALL);
    }
    m.write(0, 0, 0b1_0011);
    assert_eq!(m.read(0, 0) >> 31, 0, "RWP");
    for intid in 32..32 + SPIS {
        m.write_at(0, 0x6000 + 8 * intid, Width::Double, 0);
    }
}

/// The redistributor's part, on each CPU; finds it by its affinity first.
fn set_up_a_cpu(m: &mut Machine, cpu: usize) {
    let mut found = None;
    for frame in 0.. {
        assert_eq!(m.read_private(cpu, frame, 0xffe8) & 0xf0, 0x30, "GICv3");
        let typer = m.vgic.read_redistributor(frame, 8, Width::Double);
        if typer >> 32 == cpu as u64 {
            found = Some(frame);
        }
        if typer >> 4 & 1 == 1 {
            break;
        }
    }
    let this = found.unwrap();
    let waker = m.read_private(cpu, this, 0x14);
    m.write_private(cpu, this, 0x14, waker & !2);
    assert_eq!(m.read_private(cpu, this, 0x14) & 4, 0, "ChildrenAsleep");
    m.write_private(cpu, this, SGI_FRAME + 0x80, ALL);
    m.write_private(cpu, this, SGI_FRAME + 0x380, ALL);
    m.write_private(cpu, this, SGI_FRAME + 0x180, ALL);
    for intid in (0..32).step_by(4) {
        m.write_private(cpu, this, SGI_FRAME + 0x400 + intid, 0xa0a0_a0a0);
    }
    assert_eq!(m.read_private(cpu, this, 0) >> 3 & 1, 0, "RWP");
    for sgi in 0..7 {
        m.write_private(cpu, this, SGI_FRAME + 0x100, 1 << sgi);
    }
    m.write_private(cpu, this, SGI_FRAME + 0x100, 1 << TIMER);
}

fn up(cpus: usize) -> Machine {
    let mut m = Machine::new(cpus as u8, SPIS as usize, 4);
    probe_and_set_up_the_distributor(&mut m);
    for cpu in 0..cpus {
        m.cores[cpu].pmr = 0xf0;
        set_up_a_cpu(&mut m, cpu);
    }
    m
}

#[test]
fn the_driver_leaves_the_state_it_means_to() {
    let m = up(4);
    let distributor = |offset| m.vgic.read_distributor(offset, Width::Word);
    assert_eq!(distributor(0), 0x52, "CTLR: DS, ARE, EnableGrp1");
    for word in 0..32 {
        let exists = (1..=8).contains(&word);
        let expected = if exists { ALL } else { 0 };
        assert_eq!(distributor(0x80 + 4 * word), expected, "IGROUPR{word}");
        for register in [0x100, 0x180, 0x200, 0x280, 0x300, 0x380] {
            assert_eq!(
                distributor(register + 4 * word),
                0,
                "{register:#x} word {word}"
            );
        }
    }
    for word in 0..256_u64 {
        let expected = if (8..72).contains(&word) {
            0xa0a0_a0a0
        } else {
            0
        };
        assert_eq!(distributor(0x400 + 4 * word), expected, "IPRIORITYR{word}");
    }
    for cpu in 0..4 {
        let frame = |offset| m.vgic.read_redistributor(cpu, offset, Width::Word);
        assert_eq!(frame(0x14), 0, "WAKER");
        assert_eq!(frame(SGI_FRAME + 0x80), ALL, "IGROUPR0");
        assert_eq!(frame(SGI_FRAME + 0x100), 0x0800_007f, "ISENABLER0");
        assert_eq!(frame(SGI_FRAME + 0xc00), 0xaaaa_aaaa, "ICFGR0");
        assert_eq!(frame(SGI_FRAME + 0xc04), 0, "ICFGR1");
        assert_eq!(frame(SGI_FRAME + 0x41c), 0xa0a0_a0a0, "IPRIORITYR7");
    }
}

#[test]
fn the_driver_gets_its_first_interrupts() {
    let mut m = up(2);
    m.timer(1);
    assert_eq!(m.acknowledge(1), TIMER);
    m.end(1, TIMER);
    // A call-function IPI: the driver ends an IPI before it handles it.
    let _ = m.sgi(0, 1 << 24 | 0b10);
    assert_eq!(m.acknowledge(1), 1);
    m.end(1, 1);
    // The UART, affine to CPU 1, level, then masked in its handler as a threaded one is.
    m.write_at(0, 0x6000 + 8 * 33, Width::Double, 1);
    m.write(0, 0x104, 1 << 1);
    m.line(33, Level::High);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), 33);
    m.write(1, 0x184, 1 << 1);
    m.end(1, 33);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    m.line(33, Level::Low);
    m.write(1, 0x104, 1 << 1);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    // CPU 1 goes idle by way of its power management and comes back.
    m.write_private(1, 1, 0x14, 2);
    assert_eq!(m.read_private(1, 1, 0x14), 6);
    m.write_private(1, 1, 0x14, 0);
    assert_eq!(m.read_private(1, 1, 0x14), 0);
}
