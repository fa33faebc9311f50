//! What a guest sees happen, one behaviour a test.

use bulkhead_vgic::{Level, Width};

use crate::machine::{Machine, SGI_FRAME, SPURIOUS, TIMER};

#[test]
fn a_level_interrupt_comes_again_until_its_line_falls() {
    let mut m = Machine::enabled(1, 32, 4);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    m.line(33, Level::High);
    assert_eq!(m.acknowledge(0), 33);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), 33);
    m.line(33, Level::Low);
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn a_level_that_falls_before_it_is_taken_is_not_seen() {
    let mut m = Machine::enabled(1, 32, 4);
    m.line(33, Level::High);
    m.line(33, Level::Low);
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn an_edge_during_the_handler_is_one_more_interrupt() {
    let mut m = Machine::enabled(1, 32, 4);
    m.write(0, 0xc08, 2 << 2);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), 33);
    m.pulse(33);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), 33);
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn the_timer_ends_its_physical_interrupt_and_may_fire_at_once() {
    let mut m = Machine::enabled(1, 32, 4);
    for _ in 0..3 {
        m.timer(0);
        assert_eq!(m.acknowledge(0), TIMER);
        assert_eq!(m.cores[0].physical, 1 << TIMER);
        // It fires again before anybody looked at the list registers.
        m.cores[0].end(TIMER);
        assert_eq!(m.cores[0].physical, 0);
    }
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn a_withdrawn_timer_interrupt_is_not_seen_and_its_physical_one_ends() {
    let mut m = Machine::enabled(1, 32, 4);
    m.timer(0);
    m.ppi(0, TIMER, Level::Low);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.cores[0].physical, 0);
    m.timer(0);
    assert_eq!(m.acknowledge(0), TIMER);
}

#[test]
fn an_sgi_goes_to_its_targets_only() {
    let mut m = Machine::enabled(3, 32, 4);
    let kicks = m.sgi(0, 5 << 24 | 0b100);
    assert!(kicks.contains(2) && !kicks.contains(0) && !kicks.contains(1));
    assert_eq!(m.acknowledge(2), 5);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    let kicks = m.sgi(1, 1 << 40 | 7 << 24);
    assert_eq!(kicks.bits(), 0b101);
    // Another cluster, another Aff3: nobody.
    assert!(m.sgi(0, 1 << 16 | 0b1).is_empty());
    assert!(m.sgi(0, 1 << 48 | 0b1).is_empty());
}

#[test]
fn a_private_register_of_another_vcpu_is_in_reach() {
    let mut m = Machine::enabled(2, 32, 4);
    m.write_private(0, 1, SGI_FRAME + 0x200, 1 << 3);
    assert_eq!(m.acknowledge(1), 3);
    assert_eq!(m.read_private(1, 1, SGI_FRAME + 0x300), 1 << 3);
}

#[test]
fn more_interrupts_than_list_registers_come_in_order_of_priority() {
    let mut m = Machine::enabled(1, 64, 4);
    for intid in 40..60_u32 {
        m.write_at(
            0,
            0x400 + u64::from(intid),
            Width::Byte,
            u64::from(0xf0 - 8 * (intid - 40)),
        );
    }
    m.write(0, 0x204, 0x0fff_ff00);
    for intid in (40..60).rev() {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn twenty_nested_interrupts_end_in_order_with_four_list_registers() {
    let mut m = Machine::enabled(1, 64, 4);
    for intid in 40..60_u32 {
        m.write_at(
            0,
            0x400 + u64::from(intid),
            Width::Byte,
            u64::from(0xf0 - 8 * (intid - 40)),
        );
    }
    for intid in 40..60_u64 {
        m.write(0, 0x204, 1 << (intid - 32));
        assert_eq!(u64::from(m.acknowledge(0)), intid);
    }
    for intid in (40..60_u32).rev() {
        assert_eq!(m.read(0, 0x304), ((1_u64 << (intid - 39)) - 1) << 8);
        m.end(0, intid);
    }
    assert_eq!(m.read(0, 0x304), 0);
}
