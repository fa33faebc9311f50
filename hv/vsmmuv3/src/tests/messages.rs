//! Messages of the SMMU's own: where they are configured, when they go out, and what nothing takes.

use smmuv3::spec::command::Raw;
use smmuv3::spec::regs;

use super::{CMDQ, DOORBELL, Guest, L1, NH_ALL, RAM, RAM_BYTES, SYNC, cfgi_ste, qemu, rich};
use crate::{BUDGET, Features, Messages, Options, Width, Work};

/// Where a guest has a word that it polls.
const WORD: u64 = RAM + 0xe000;
/// `GERROR`: the message of a `CMD_SYNC`, of the event queue, of `GERROR` itself aborted.
const SYNC_ABORTED: u32 = 1 << 4;
const EVENT_ABORTED: u32 = 1 << 5;
const GERROR_ABORTED: u32 = 1 << 7;
/// Places that take no message: registers, RAM's neighbours, the doorbell's own neighbours.
const ELSEWHERE: [u64; 9] = [
    4,
    0x0800_0000,
    0x0900_0000,
    0x0905_0098,
    DOORBELL - 4,
    DOORBELL + 4,
    RAM - 4,
    RAM + RAM_BYTES as u64,
    0xff_ffff_fffc,
];

/// `CMD_SYNC` that writes `data` to `address` when it is complete.
fn sync_to(address: u64, data: u32) -> Raw {
    [0x46 | 1 << 12 | u64::from(data) << 32, address]
}

/// Both registers' messages to an address, with the interrupts on, as a driver does it.
fn messages_to(guest: &mut Guest, address: u64) {
    guest.w32(regs::IRQ_CTRL, 0);
    guest.w64(regs::GERROR_IRQ_CFG0, address);
    guest.w32(regs::GERROR_IRQ_CFG1, 1);
    guest.w32(regs::GERROR_IRQ_CFG2, 1);
    guest.w64(regs::EVENTQ_IRQ_CFG0, address);
    guest.w32(regs::EVENTQ_IRQ_CFG1, 0);
    guest.w32(regs::EVENTQ_IRQ_CFG2, 1);
    guest.w32(regs::IRQ_CTRL, 5);
}

/// A guest with everything on, whose stream 0x100 has an entry that is not valid.
fn on() -> Guest {
    let mut guest = Guest::with_messages();
    guest.bring_up();
    guest.ram.put(L1 + 8, &[(super::L2 + 0x4000) | 9]);
    guest.send(&[cfgi_ste(0x100), SYNC]);
    guest.take_pulses();
    guest
}

#[test]
fn messages_are_promised_where_they_are_offered_whatever_the_hardware_has() {
    for identity in [qemu(), rich()] {
        for (messages, offered) in [(Messages::Off, false), (Messages::Offered, true)] {
            let options = Options {
                messages,
                ..Options::default()
            };
            let features = Features::derive(&identity, options).unwrap();
            assert_eq!(features.msi(), offered);
            assert_eq!(features.identification().0.msi(), offered);
        }
    }
}

#[test]
fn messages_are_kept_in_halves_and_without_reserved_bits() {
    let mut guest = Guest::with_messages();
    for (address, data, attributes) in [
        (
            regs::GERROR_IRQ_CFG0,
            regs::GERROR_IRQ_CFG1,
            regs::GERROR_IRQ_CFG2,
        ),
        (
            regs::EVENTQ_IRQ_CFG0,
            regs::EVENTQ_IRQ_CFG1,
            regs::EVENTQ_IRQ_CFG2,
        ),
    ] {
        guest.w64(address, u64::MAX);
        // 40 bits are promised.
        assert_eq!(guest.r64(address), 0xff_ffff_fffc);
        guest.w32(address, 0x0809_0043);
        assert_eq!(guest.r64(address), 0xff_0809_0040);
        guest.w32(address + 4, 0xffff_ff01);
        assert_eq!(guest.r64(address), 0x1_0809_0040);
        assert_eq!(
            (guest.r32(address), guest.r32(address + 4)),
            (0x0809_0040, 1)
        );
        guest.w32(data, 0xdead_beef);
        assert_eq!(guest.r32(data), 0xdead_beef);
        guest.w32(attributes, u32::MAX);
        assert_eq!(guest.r32(attributes), 0x3f);
        // 64-bit accesses of 32-bit registers do nothing.
        guest.w64(data, 0);
        assert_eq!((guest.r32(data), guest.r64(data)), (0xdead_beef, 0));
    }
    // There is no page request queue: neither has it a message.
    for offset in [0xd0, 0xd4, 0xd8, 0xdc] {
        guest.w32(offset, u32::MAX);
        assert_eq!(guest.r32(offset), 0);
    }
}

#[test]
fn a_message_changes_only_while_its_interrupt_is_off() {
    let mut guest = Guest::with_messages();
    let cfg = [
        regs::GERROR_IRQ_CFG0,
        regs::GERROR_IRQ_CFG1,
        regs::GERROR_IRQ_CFG2,
        regs::EVENTQ_IRQ_CFG0,
        regs::EVENTQ_IRQ_CFG1,
        regs::EVENTQ_IRQ_CFG2,
    ];
    for (enable, fixed) in [(1, 0..3), (4, 3..6), (5, 0..6), (0, 0..0)] {
        guest.w32(regs::IRQ_CTRL, 0);
        for at in cfg {
            guest.w32(at, 0);
        }
        guest.w32(regs::IRQ_CTRL, enable);
        for (which, at) in cfg.into_iter().enumerate() {
            guest.w32(at, 0x14);
            let expected = if fixed.contains(&which) { 0 } else { 0x14 };
            assert_eq!(guest.r32(at), expected, "{at:#x} with {enable}");
        }
    }
}

#[test]
fn a_reset_takes_messages_back() {
    let mut guest = on();
    messages_to(&mut guest, DOORBELL);
    let outcome = guest.smmu.reset(&guest.ram, &mut guest.hardware);
    guest.finish(outcome);
    for at in [regs::GERROR_IRQ_CFG0, regs::EVENTQ_IRQ_CFG0] {
        assert_eq!(guest.r64(at), 0);
    }
    guest.bring_up();
    guest.send(&[[0xff, 0]]);
    assert_eq!(guest.take_messages(), []);
}

#[test]
fn a_record_sends_its_message_and_pulses_its_wire() {
    let mut guest = on();
    messages_to(&mut guest, DOORBELL);
    guest.access(0x100).unwrap();
    assert_eq!(guest.take_messages(), [(DOORBELL, 0)]);
    assert_eq!(guest.take_pulses(), [1, 0, 0]);
    assert_eq!(guest.r32(regs::GERROR), 0);
}

#[test]
fn an_error_sends_its_message_and_pulses_its_wire_once() {
    let mut guest = on();
    messages_to(&mut guest, DOORBELL);
    guest.send(&[[0xff, 0]]);
    assert_eq!(guest.take_messages(), [(DOORBELL, 1)]);
    assert_eq!(guest.take_pulses(), [0, 1, 0]);
    // It is active: nothing more is said until it is acknowledged.
    guest.w32(regs::CMDQ_PROD, guest.prod);
    assert_eq!(guest.take_messages(), []);
    guest.w32(regs::GERRORN, 1);
    assert_eq!(guest.take_messages(), [(DOORBELL, 1)], "fetched again");
}

#[test]
fn without_an_address_there_are_the_wires_alone() {
    let mut guest = on();
    messages_to(&mut guest, 0);
    guest.access(0x100).unwrap();
    guest.send(&[sync_to(0, 7), [0xff, 0]]);
    assert_eq!(guest.take_messages(), []);
    // A wait has no wire where it could have a message.
    assert_eq!(guest.take_pulses(), [1, 1, 0]);
    assert_eq!(guest.r32(regs::GERROR), 1);
}

#[test]
fn an_interrupt_that_is_off_sends_no_message() {
    let mut guest = on();
    messages_to(&mut guest, DOORBELL);
    guest.w32(regs::IRQ_CTRL, 0);
    guest.access(0x100).unwrap();
    guest.send(&[[0xff, 0]]);
    assert_eq!(guest.take_messages(), []);
    assert_eq!(guest.take_pulses(), [0; 3]);
}

#[test]
fn a_sync_writes_its_word_after_all_before_it_is_done() {
    let mut guest = on();
    guest.ram.put(WORD, &[u64::MAX]);
    guest.send(&[NH_ALL, sync_to(WORD + 4, 0x1234)]);
    assert_eq!(guest.ram.get(WORD), [0x1234_ffff_ffff], "four bytes");
    assert_eq!(guest.hardware.batches.len(), 1);
    assert_eq!(guest.take_pulses(), [0; 3]);
    // Neither when nothing is to be signalled, nor with an event.
    guest.send(&[[0x46 | 7 << 32, WORD], [0x46 | 2 << 12 | 7 << 32, WORD]]);
    assert_eq!(guest.take_messages(), [(WORD + 4, 0x1234)]);
    assert_eq!(guest.take_pulses(), [0; 3]);
}

/// As Linux waits: the word that the command itself begins with becomes 0.
#[test]
fn a_sync_may_write_over_itself() {
    let mut guest = on();
    for round in 0..200 {
        let at = CMDQ + u64::from(guest.prod & 63) * 16;
        guest.send(&[sync_to(at, 0)]);
        assert_eq!(guest.ram.get(at), [0, at], "round {round}");
        assert_eq!(guest.cons(), guest.prod & 127);
    }
    assert_eq!(guest.r32(regs::GERROR), 0);
}

#[test]
fn a_sync_that_writes_over_later_commands_hurts_only_its_owner() {
    let mut guest = on();
    // One that was copied already is what it was; one that was not is what is in memory.
    let next = CMDQ + u64::from((guest.prod + 1) & 63) * 16;
    let fifth = CMDQ + u64::from((guest.prod + 5) & 63) * 16;
    guest.send(&[
        sync_to(next, 0xff),
        SYNC,
        sync_to(fifth, 0xff),
        SYNC,
        SYNC,
        SYNC,
    ]);
    assert_eq!(guest.cons() >> 24, 1, "CERROR_ILL");
    let wrong = CMDQ + u64::from(guest.cons() & 63) * 16;
    assert_eq!(wrong, fifth);
    assert!(guest.translates(8));
}

#[test]
fn messages_elsewhere_abort_and_nothing_is_written() {
    for at in ELSEWHERE {
        let mut guest = on();
        let before = guest.ram.bytes.borrow().clone();
        guest.send(&[sync_to(at, 7), SYNC]);
        assert_eq!(guest.r32(regs::GERROR), SYNC_ABORTED, "{at:#x}");
        assert_eq!(guest.cons(), guest.prod, "it is complete all the same");
        guest.w32(regs::GERRORN, SYNC_ABORTED);
        guest.take_pulses();
        messages_to(&mut guest, at);
        guest.access(0x100).unwrap();
        // That the record's message aborted is an error, whose message aborts, too: no third one.
        assert_eq!(
            guest.r32(regs::GERROR) ^ SYNC_ABORTED,
            EVENT_ABORTED | GERROR_ABORTED
        );
        assert_eq!(guest.take_pulses(), [1, 1, 0]);
        assert_eq!(guest.take_messages(), []);
        assert_eq!(guest.smmu.counters().messages_aborted, 3);
        let changed = guest
            .ram
            .bytes
            .borrow()
            .iter()
            .zip(before)
            .filter(|(a, b)| *a != b)
            .count();
        // The commands, and the record.
        assert!(changed <= 2 * 16 + 32, "{changed}");
        // The next one is tried again.
        guest.access(0x100).unwrap();
        assert_eq!(guest.smmu.counters().messages_aborted, 4);
    }
}

#[test]
fn an_aborted_message_is_an_error_that_sends_its_own() {
    let mut guest = on();
    messages_to(&mut guest, DOORBELL);
    guest.send(&[sync_to(4, 7)]);
    assert_eq!(guest.r32(regs::GERROR), SYNC_ABORTED);
    assert_eq!(guest.take_messages(), [(DOORBELL, 1)]);
    // Until it is acknowledged, no more is said; commands go on.
    guest.send(&[sync_to(4, 7), sync_to(WORD, 9)]);
    assert_eq!(guest.take_messages(), [(WORD, 9)]);
    assert_eq!(guest.r32(regs::GERROR), SYNC_ABORTED);
    guest.w32(regs::GERRORN, SYNC_ABORTED);
    guest.send(&[sync_to(4, 7)]);
    assert_eq!(guest.r32(regs::GERROR), 0);
    assert_eq!(guest.take_messages(), [(DOORBELL, 1)]);
}

#[test]
fn addresses_lose_their_low_bits_and_those_that_were_not_promised() {
    let mut guest = on();
    // Zero is looked for before: an address of high bits alone is one.
    guest.send(&[
        sync_to(WORD | 3, 1),
        sync_to(WORD | 1 << 40, 2),
        sync_to(1 << 40, 3),
    ]);
    assert_eq!(guest.take_messages(), [(WORD, 1), (WORD, 2)]);
    assert_eq!(
        guest.r32(regs::GERROR),
        SYNC_ABORTED,
        "address 0 is nobody's"
    );
    messages_to(&mut guest, 1 << 40);
    guest.access(0x100).unwrap();
    assert_eq!(guest.take_messages(), [], "a register keeps no such bits");
}

#[test]
fn without_messages_a_sync_writes_nothing() {
    let mut guest = Guest::nested();
    guest.ram.put(WORD, &[u64::MAX]);
    guest.send(&[sync_to(WORD, 0)]);
    guest.send(&[sync_to(4, 0)]);
    assert_eq!(guest.ram.get(WORD), [u64::MAX]);
    assert_eq!(guest.take_pulses()[2], 2);
    assert_eq!(guest.r32(regs::GERROR), 0);
    assert_eq!(guest.smmu.counters().messages_aborted, 0);
}

#[test]
fn a_queue_of_syncs_with_messages_is_consumed_in_bounded_turns() {
    let mut guest = on();
    guest.put(&[sync_to(DOORBELL, 1); 63]);
    let mut outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, guest.prod.into());
    let mut turns = 1;
    let mut all = 0;
    loop {
        let sent = guest.take_messages().len();
        assert!(sent <= BUDGET as usize / 3 + 1, "{sent} in a turn");
        all += sent;
        if outcome.work == Work::Done {
            break;
        }
        turns += 1;
        outcome = guest.go_on();
    }
    assert_eq!((turns, all), (2, 63));
}
