//! Registers: widths, halves, what is writable when, handshakes.

use iommu::NestedConfig;
use smmuv3::spec::regs;

use super::{CMDQ, EVTQ, Guest, L1, RAM, cold, qemu};
use crate::{AtReset, Options, Width};

#[test]
fn registers_out_of_reset_are_zero_and_gbpa_aborts() {
    let guest = Guest::with(&qemu(), cold());
    for offset in (regs::CR0..0x200).step_by(4) {
        let expected = if offset == regs::GBPA { 0x10_1000 } else { 0 };
        assert_eq!(guest.r32(offset), expected, "{offset:#x}");
    }
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
    assert_eq!(guest.live(8), NestedConfig::ABORT);
}

#[test]
fn a_guest_may_start_with_bypass() {
    let options = Options {
        at_reset: AtReset::Bypass,
        ..Options::default()
    };
    let guest = Guest::with(&qemu(), options);
    assert_eq!(guest.r32(regs::GBPA), 0x1000);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
    assert_eq!(guest.live(0x100), NestedConfig::BYPASS);
}

#[test]
fn a_64_bit_register_is_two_halves() {
    for offset in [regs::STRTAB_BASE, regs::CMDQ_BASE, regs::EVENTQ_BASE] {
        let mut guest = Guest::new();
        guest.w32(offset, 0x4567_8940);
        assert_eq!(guest.r64(offset), 0x4567_8940);
        guest.w32(offset + 4, 0x4000_0001);
        assert_eq!(guest.r64(offset), 0x4000_0001_4567_8940);
        assert_eq!(guest.r32(offset), 0x4567_8940);
        assert_eq!(guest.r32(offset + 4), 0x4000_0001);
        guest.w64(offset, 0x4000_0007_0000_1000);
        assert_eq!(guest.r32(offset + 4), 0x4000_0007);
        assert_eq!(guest.r32(offset), 0x1000);
    }
}

#[test]
fn reserved_bits_of_bases_read_as_zero() {
    let mut guest = Guest::new();
    guest.w64(regs::STRTAB_BASE, u64::MAX);
    assert_eq!(guest.r64(regs::STRTAB_BASE), 0x400f_ffff_ffff_ffc0);
    guest.w64(regs::CMDQ_BASE, u64::MAX);
    assert_eq!(guest.r64(regs::CMDQ_BASE), 0x400f_ffff_ffff_ffff);
    guest.w64(regs::EVENTQ_BASE, u64::MAX);
    assert_eq!(guest.r64(regs::EVENTQ_BASE), 0x400f_ffff_ffff_ffff);
    guest.w32(regs::STRTAB_BASE_CFG, u32::MAX);
    assert_eq!(guest.r32(regs::STRTAB_BASE_CFG), 0x3_07ff);
    guest.w32(regs::CMDQ_PROD, u32::MAX);
    assert_eq!(guest.r32(regs::CMDQ_PROD), 0xf_ffff);
    guest.w32(regs::CMDQ_CONS, u32::MAX);
    assert_eq!(guest.r32(regs::CMDQ_CONS), 0xf_ffff);
    guest.w32(regs::EVENTQ_CONS, u32::MAX);
    assert_eq!(guest.r32(regs::EVENTQ_CONS), 0x800f_ffff);
    guest.w32(regs::EVENTQ_PROD, u32::MAX);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0x800f_ffff);
}

#[test]
fn narrow_misaligned_and_wide_accesses_of_narrow_registers_do_nothing() {
    let mut guest = Guest::new();
    for (offset, width) in [
        (regs::CR1, Width::Byte),
        (regs::CR1, Width::Half),
        (regs::CR1 + 1, Width::Word),
        (regs::CR1 + 2, Width::Word),
        (regs::CR1, Width::Double),
        (regs::STRTAB_BASE + 4, Width::Double),
        (regs::STRTAB_BASE + 1, Width::Double),
    ] {
        let _ = guest.write_once(offset, width, u64::MAX);
        assert_eq!(guest.smmu.read(offset as u64, width), 0, "{offset:#x}");
    }
    assert_eq!(guest.r32(regs::CR1), 0);
    assert_eq!(guest.r64(regs::STRTAB_BASE), 0);
    // Control: a word write does do something.
    guest.w32(regs::CR1, 0xd75);
    assert_eq!(guest.r32(regs::CR1), 0xd75);
}

#[test]
fn a_wide_read_of_identification_is_zero() {
    assert_eq!(Guest::new().r64(regs::IDR0), 0);
}

#[test]
fn everything_else_of_both_pages_reads_as_zero_and_ignores_writes() {
    let known = [
        0x0, 0x4, 0xc, 0x14, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x44, 0x50, 0x54, 0x60, 0x64, 0x80,
        0x84, 0x88, 0x90, 0x94, 0x98, 0x9c, 0xa0, 0xa4, 0x1_00a8, 0x1_00ac,
    ];
    let mut guest = Guest::new();
    for offset in (0..0x2_0000).step_by(4).filter(|o| !known.contains(o)) {
        guest.w32(offset, u32::MAX);
        assert_eq!(guest.r32(offset), 0, "{offset:#x}");
    }
    // Far outside, too.
    for offset in [0x2_0000, u64::MAX, u64::MAX - 7, 1 << 40] {
        let _ = guest
            .smmu
            .write(offset, Width::Word, 1, &guest.ram, &mut guest.hardware);
        assert_eq!(guest.smmu.read(offset, Width::Word), 0);
        assert_eq!(guest.smmu.read(offset, Width::Double), 0);
    }
    assert_eq!(guest.r32(regs::CR0), 0);
}

#[test]
fn message_registers_are_not_there_without_messages() {
    let mut guest = Guest::new();
    for offset in [regs::GERROR_IRQ_CFG0, regs::EVENTQ_IRQ_CFG0, 0xd0] {
        guest.w64(offset, u64::MAX);
        assert_eq!(guest.r64(offset), 0);
    }
}

#[test]
fn the_page_request_queue_is_not_there() {
    let mut guest = Guest::new();
    guest.w64(0xc0, u64::MAX);
    guest.w32(0x1_00c8, 5);
    guest.w32(0x1_00cc, 5);
    assert_eq!(
        (guest.r64(0xc0), guest.r32(0x1_00c8), guest.r32(0x1_00cc)),
        (0, 0, 0)
    );
    guest.w32(regs::CR0, 2);
    assert_eq!(guest.r32(regs::CR0), 0);
}

#[test]
fn read_only_registers_stay() {
    let mut guest = Guest::new();
    for offset in [
        regs::IDR0,
        regs::IDR1,
        regs::IDR3,
        regs::IDR5,
        regs::AIDR,
        regs::CR0ACK,
        regs::IRQ_CTRLACK,
        regs::GERROR,
    ] {
        let before = guest.r32(offset);
        guest.w32(offset, !before);
        assert_eq!(guest.r32(offset), before, "{offset:#x}");
    }
}

#[test]
fn cr0_takes_the_enables_there_are_and_acknowledges_them() {
    let mut guest = Guest::new();
    guest.w32(regs::CR0, !1);
    assert_eq!(guest.r32(regs::CR0), 0xc);
    assert_eq!(guest.r32(regs::CR0ACK), 0xc);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
    guest.w32(regs::CR0, 0);
    assert_eq!(guest.r32(regs::CR0ACK), 0);
    let mut rich = Guest::rich();
    rich.w32(regs::CR0, !1);
    assert_eq!(rich.r32(regs::CR0ACK), 0x1c, "ATSCHK with ATS");
}

#[test]
fn the_stream_table_cannot_move_while_the_smmu_is_on() {
    let mut guest = Guest::nested();
    let (base, config) = (
        guest.r64(regs::STRTAB_BASE),
        guest.r32(regs::STRTAB_BASE_CFG),
    );
    guest.w64(regs::STRTAB_BASE, 0x1234_0000);
    guest.w32(regs::STRTAB_BASE, 0x1234_0000);
    guest.w32(regs::STRTAB_BASE + 4, 1);
    guest.w32(regs::STRTAB_BASE_CFG, 5);
    assert_eq!(guest.r64(regs::STRTAB_BASE), base);
    assert_eq!(guest.r32(regs::STRTAB_BASE_CFG), config);
    guest.w32(regs::CR0, 0xc);
    guest.w32(regs::STRTAB_BASE_CFG, 5);
    assert_eq!(guest.r32(regs::STRTAB_BASE_CFG), 5);
}

#[test]
fn a_queue_cannot_move_while_it_is_on() {
    let mut guest = Guest::nested();
    guest.send(&[SYNC_NONE]);
    let cons = guest.cons();
    guest.w64(regs::CMDQ_BASE, RAM);
    guest.w32(regs::CMDQ_CONS, 7);
    guest.w64(regs::EVENTQ_BASE, RAM);
    guest.w32(regs::EVENTQ_PROD, 7);
    assert_eq!(guest.r64(regs::CMDQ_BASE), 1 << 62 | CMDQ | 6);
    assert_eq!(guest.cons(), cons);
    assert_eq!(guest.r64(regs::EVENTQ_BASE), 1 << 62 | EVTQ | 5);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, RAM);
    guest.w32(regs::CMDQ_CONS, 7);
    guest.w64(regs::EVENTQ_BASE, RAM);
    guest.w32(regs::EVENTQ_PROD, 7);
    assert_eq!((guest.r64(regs::CMDQ_BASE), guest.cons()), (RAM, 7));
    assert_eq!(
        (guest.r64(regs::EVENTQ_BASE), guest.r32(regs::EVENTQ_PROD)),
        (RAM, 7)
    );
}

const SYNC_NONE: [u64; 2] = [0x46, 0];

#[test]
fn cr1_follows_what_it_describes() {
    let mut guest = Guest::new();
    guest.w32(regs::CR1, u32::MAX);
    assert_eq!(guest.r32(regs::CR1), 0xfff);
    guest.w32(regs::CR0, 8);
    guest.w32(regs::CR1, 0);
    assert_eq!(guest.r32(regs::CR1), 0x3f, "queues are on");
    guest.w32(regs::CR0, 1);
    guest.w32(regs::CR1, 0xfc0);
    assert_eq!(
        guest.r32(regs::CR1),
        0,
        "the SMMU is on, the queues are off"
    );
}

#[test]
fn cr2_is_fixed_while_the_smmu_is_on_and_has_no_e2h() {
    let mut guest = Guest::new();
    guest.w32(regs::CR2, u32::MAX);
    assert_eq!(guest.r32(regs::CR2), 6);
    guest.w32(regs::CR0, 1);
    guest.w32(regs::CR2, 0);
    assert_eq!(guest.r32(regs::CR2), 6);
}

#[test]
fn gbpa_needs_its_update_bit_and_clears_it() {
    let mut guest = Guest::new();
    guest.w32(regs::GBPA, 0);
    assert_eq!(
        guest.r32(regs::GBPA),
        0x10_1000,
        "without UPDATE nothing changes"
    );
    guest.w32(regs::GBPA, 1 << 31);
    assert_eq!(guest.r32(regs::GBPA), 0);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
    guest.w32(regs::GBPA, u32::MAX);
    assert_eq!(guest.r32(regs::GBPA), 0x10_3000);
    assert_eq!(guest.live(8), NestedConfig::ABORT);
    assert_eq!(guest.live(0x100), NestedConfig::ABORT);
}

#[test]
fn gbpa_does_not_touch_streams_while_the_smmu_is_on() {
    let mut guest = Guest::nested();
    guest.w32(regs::GBPA, 1 << 31);
    assert!(guest.hardware.streams.is_empty());
    assert!(guest.translates(8));
    assert_eq!(guest.r32(regs::GBPA), 0);
}

#[test]
fn irq_ctrl_is_acknowledged_and_has_no_page_requests() {
    let mut guest = Guest::new();
    guest.w32(regs::IRQ_CTRL, u32::MAX);
    assert_eq!(guest.r32(regs::IRQ_CTRL), 5);
    assert_eq!(guest.r32(regs::IRQ_CTRLACK), 5);
    guest.w32(regs::IRQ_CTRL, 0);
    assert_eq!(guest.r32(regs::IRQ_CTRLACK), 0);
}

#[test]
fn acknowledging_what_is_not_active_changes_nothing() {
    let mut guest = Guest::new();
    guest.w32(regs::GERRORN, u32::MAX);
    assert_eq!(guest.r32(regs::GERRORN), 0);
    assert_eq!(guest.r32(regs::GERROR), 0);
}

#[test]
fn a_read_has_no_effect() {
    let guest = Guest::nested();
    let before = guest.ram.reads.get();
    for offset in (0..0x200).step_by(4) {
        assert_eq!(guest.r32(offset), guest.r32(offset));
    }
    assert_eq!(guest.ram.reads.get(), before);
}

#[test]
fn event_queue_registers_are_on_page_1_only() {
    let mut guest = Guest::new();
    guest.w32(0xa8, 3);
    guest.w32(0xac, 3);
    assert_eq!((guest.r32(0xa8), guest.r32(0xac)), (0, 0));
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
    guest.w32(regs::EVENTQ_PROD, 3);
    assert_eq!(guest.r32(regs::EVENTQ_PROD), 3);
    assert_eq!(guest.r32(0xa8), 0);
}

#[test]
fn a_reset_is_as_new() {
    let mut guest = Guest::nested();
    guest.send(&[[0xff, 0]]);
    assert_ne!(guest.r32(regs::GERROR), 0);
    let outcome = guest.smmu.reset(&guest.ram, &mut guest.hardware);
    guest.finish(outcome);
    let fresh = Guest::new();
    for offset in (0..0x200)
        .step_by(4)
        .chain([regs::EVENTQ_PROD, regs::EVENTQ_CONS])
    {
        assert_eq!(guest.r32(offset), fresh.r32(offset), "{offset:#x}");
    }
    assert_eq!(guest.live(8), NestedConfig::ABORT);
    assert_eq!(guest.hardware.batches.concat(), [crate::Invalidation::All]);
    let _ = L1;
}
