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

#[test]
fn what_became_pending_again_in_a_list_register_waits_behind_more_urgent_ones_outside() {
    let mut m = Machine::enabled(1, 32, 2);
    m.write(0, 0xc08, 0xaaaa_aaaa);
    m.write_at(0, 0x400 + 34, Width::Byte, 0x70);
    m.write_at(0, 0x400 + 35, Width::Byte, 0x78);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), 33);
    m.write_at(0, 0x100 + 0x80 + 4, Width::Word, 0b1100);
    for intid in [33, 34, 35] {
        m.pulse(intid);
    }
    m.write(0, 0x104, 0b1100);
    m.end(0, 33);
    for intid in [34, 35, 33] {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn a_new_priority_counts_for_what_is_pending_and_not_for_what_is_active() {
    let mut m = Machine::enabled(1, 32, 4);
    m.write(0, 0xc08, 0xaaaa_aaaa);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), 33);
    m.write_at(0, 0x400 + 33, Width::Byte, 0xc0);
    m.pulse(33);
    m.pulse(34);
    // The list register still knows the active one by the priority it was taken at.
    assert_eq!(m.cores[0].image.live()[0].priority(), 0x80);
    m.end(0, 33);
    for intid in [34, 33] {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
    // The same for a private one.
    let _ = m.sgi(0, 1 << 24 | 1);
    assert_eq!(m.acknowledge(0), 1);
    m.write_private(0, 0, SGI_FRAME + 0x400, 0x8080_c080);
    for sgi in [1, 2] {
        let _ = m.sgi(0, sgi << 24 | 1);
    }
    assert_eq!(m.cores[0].image.live()[0].priority(), 0x80);
    m.end(0, 1);
    for intid in [2, 1] {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
}

#[test]
fn a_new_route_counts_for_what_is_pending_and_not_for_what_is_active() {
    let mut m = Machine::enabled(2, 32, 4);
    m.write(0, 0xc08, 0xaaaa_aaaa);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), 33);
    m.pulse(33);
    m.write_at(0, 0x6000 + 8 * 33, Width::Double, 1);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), 33);
}

#[test]
fn a_pending_interrupt_follows_its_route_out_of_a_list_register() {
    let mut m = Machine::enabled(2, 32, 4);
    m.line(33, Level::High);
    assert_eq!(m.cores[0].image.live_count(), 1);
    m.write_at(1, 0x6000 + 8 * 33, Width::Double, 1);
    assert_eq!(m.cores[0].image.live_count(), 0);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), 33);
    // To nobody, and back.
    m.end(1, 33);
    m.write_at(1, 0x6000 + 8 * 33, Width::Double, 7);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    m.write_at(1, 0x6000 + 8 * 33, Width::Double, 0);
    assert_eq!(m.acknowledge(0), 33);
}

#[test]
fn an_interrupt_for_anybody_goes_to_a_vcpu_that_is_awake() {
    let mut m = Machine::enabled(3, 32, 4);
    m.write_at(0, 0x6000 + 8 * 33, Width::Double, 1 << 31);
    m.write_private(0, 0, 0x14, 2);
    m.line(33, Level::High);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), 33);
    m.end(1, 33);
    // It waits for vCPU 1 again, which goes to sleep.
    m.sync(1);
    m.write_private(1, 1, 0x14, 2);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    assert_eq!(m.acknowledge(2), 33);
}

#[test]
fn an_interrupt_made_active_by_a_write_is_not_signalled() {
    let mut m = Machine::enabled(1, 32, 4);
    m.write(0, 0x304, 2);
    m.line(33, Level::High);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    // It is where the guest would end it.
    assert!(m.cores[0].image.live()[0].is_active());
    m.write(0, 0x384, 2);
    assert_eq!(m.acknowledge(0), 33);
}

#[test]
fn a_disabled_or_group_0_interrupt_stays_pending_and_unseen() {
    for (off, on, value) in [(0x184, 0x104, 2), (0x84, 0x84, 0xffff_ffff)] {
        let mut m = Machine::enabled(1, 32, 4);
        m.line(33, Level::High);
        m.write(0, off, if off == on { !2 & 0xffff_ffff } else { 2 });
        assert_eq!(m.acknowledge(0), SPURIOUS);
        assert_eq!(m.read(0, 0x204), 2);
        m.write(0, on, value);
        assert_eq!(m.acknowledge(0), 33);
    }
}

#[test]
fn nothing_is_signalled_while_the_distributor_is_off() {
    let mut m = Machine::enabled(2, 32, 4);
    m.line(33, Level::High);
    let _ = m.sgi(0, 0b10);
    m.write(0, 0, 0);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    assert_eq!(m.acknowledge(1), SPURIOUS);
    m.write(0, 0, 2);
    assert_eq!(m.acknowledge(0), 33);
    assert_eq!(m.acknowledge(1), 0);
}

#[test]
fn a_timer_made_pending_by_a_write_deactivates_nothing_physical() {
    let mut m = Machine::enabled(1, 32, 4);
    m.write_private(0, 0, SGI_FRAME + 0x200, 1 << TIMER);
    assert_eq!(m.cores[0].image.live()[0].physical(), None);
    assert_eq!(m.acknowledge(0), TIMER);
    m.timer(0);
    m.end(0, TIMER);
    assert_eq!(m.cores[0].image.live()[0].physical(), Some(TIMER));
    assert_eq!(m.acknowledge(0), TIMER);
    m.end(0, TIMER);
    assert_eq!(m.cores[0].physical, 0);
}

#[test]
fn clearing_the_active_timer_deactivates_the_physical_one() {
    let mut m = Machine::enabled(1, 32, 4);
    m.timer(0);
    assert_eq!(m.vgic.physical_active(0), 1 << TIMER);
    assert_eq!(m.acknowledge(0), TIMER);
    m.write_private(0, 0, SGI_FRAME + 0x380, 1 << TIMER);
    assert_eq!(m.cores[0].physical, 0);
    assert_eq!(m.vgic.physical_active(0), 0);
}

#[test]
fn a_trapped_deactivation_ends_what_is_in_no_list_register() {
    let mut m = Machine::enabled(1, 64, 4);
    for intid in 40..46_u32 {
        let priority = 0xf0 - 8 * (intid - 40);
        m.write_at(0, 0x400 + u64::from(intid), Width::Byte, priority.into());
        m.write(0, 0x204, 1 << (intid - 32));
        assert_eq!(m.acknowledge(0), intid);
    }
    let trapped = |m: &Machine| m.cores[0].image.hcr() >> 14 & 1 == 1;
    assert!(trapped(&m));
    for intid in [40, 41] {
        m.sync(0);
        let _ = m.vgic.deactivate(0, intid);
        m.settle();
    }
    assert_eq!(m.read(0, 0x304), 0b1111 << 10);
    assert!(!trapped(&m));
}

#[test]
fn the_end_of_a_wait_needs_an_interrupt_that_the_guest_lets_through() {
    let mut m = Machine::enabled(2, 32, 4);
    let open = bulkhead_vgic::CpuContext {
        vmcr: 0xf0 << 24 | 2,
        ..Default::default()
    };
    let off = bulkhead_vgic::CpuContext {
        vmcr: 0xf0 << 24,
        ..open
    };
    let masked = bulkhead_vgic::CpuContext {
        vmcr: 0x80 << 24 | 2,
        ..open
    };
    let busy = bulkhead_vgic::CpuContext {
        ap1r: [1 << 16, 0, 0, 0],
        ..open
    };
    m.sync(1);
    assert!(!m.vgic.has_interrupt(1, &open));
    // The wait owes a flush, and yet the first SGI asks for a kick.
    assert!(m.vgic.needs_flush(1));
    assert!(m.vgic.send_sgi(0, 0b10).contains(1));
    assert!(m.vgic.has_interrupt(1, &open));
    for context in [off, masked, busy] {
        assert!(!m.vgic.has_interrupt(1, &context));
    }
    m.settle();
    assert_eq!(m.acknowledge(1), 0);
}

#[test]
fn a_second_kick_is_asked_for_only_after_a_flush() {
    let mut m = Machine::enabled(2, 32, 4);
    assert!(m.vgic.send_sgi(0, 0b10).contains(1));
    assert!(m.vgic.send_sgi(0, 1 << 24 | 0b10).is_empty());
    m.settle();
    assert!(m.vgic.send_sgi(0, 2 << 24 | 0b10).contains(1));
    m.settle();
    for sgi in 0..3 {
        assert_eq!(m.acknowledge(1), sgi);
        m.end(1, sgi);
    }
}

#[test]
fn a_quiet_guest_needs_no_flush() {
    let mut m = Machine::enabled(2, 32, 4);
    let refills = m.refills;
    for vcpu in 0..2 {
        assert!(!m.vgic.needs_flush(vcpu));
        assert_eq!(m.read(vcpu, 4), m.read(vcpu, 4));
    }
    m.ppi(0, 20, Level::Low);
    m.line(33, Level::Low);
    assert_eq!(m.refills, refills);
    // An interrupt from its signal to its end costs one, a level that fell meanwhile one more.
    m.timer(0);
    assert_eq!(m.acknowledge(0), TIMER);
    m.end(0, TIMER);
    assert_eq!(m.refills, refills + 1);
    m.line(33, Level::High);
    assert_eq!(m.acknowledge(0), 33);
    m.line(33, Level::Low);
    m.end(0, 33);
    assert_eq!(m.refills, refills + 3);
}

#[test]
fn a_reset_forgets_everything_but_the_lines() {
    let mut m = Machine::enabled(2, 32, 4);
    m.line(33, Level::High);
    m.timer(0);
    m.timer(1);
    let _ = m.sgi(0, 0b10);
    assert_eq!(m.acknowledge(0), TIMER);
    m.vgic.reset();
    let fresh = Machine::new(2, 32, 4);
    for offset in (0..0x1_0000).step_by(4) {
        // The line is still high.
        if !matches!(offset, 0x204 | 0x284) {
            let of = |m: &Machine| m.vgic.read_distributor(offset, Width::Word);
            assert_eq!(of(&m), of(&fresh), "GICD {offset:#x}");
        }
        let of = |m: &Machine| {
            m.vgic
                .read_redistributor(1, SGI_FRAME + offset, Width::Word)
        };
        assert_eq!(of(&m), of(&fresh), "SGI frame {offset:#x}");
    }
    assert_eq!(m.vgic.read_distributor(0x204, Width::Word), 2);
    // The physical timer interrupts that the old guest left are ended.
    for vcpu in 0..2 {
        let mut image = bulkhead_vgic::LrImage::new();
        let _ = m.vgic.flush(vcpu, &mut image);
        assert_eq!(image.to_deactivate(), 1 << TIMER);
        assert_eq!(image.live_count(), 0);
    }
}

#[test]
fn what_another_vcpu_has_taken_shows_after_a_request() {
    let mut m = Machine::enabled(2, 32, 4);
    m.line(33, Level::High);
    // It takes the interrupt while nobody looks.
    assert_eq!(m.cores[0].acknowledge(), 33);
    assert_eq!(m.read(1, 0x304), 0);
    assert!(m.vgic.request_sync(0).contains(0));
    m.settle();
    assert_eq!(m.read(1, 0x304), 2);
}
