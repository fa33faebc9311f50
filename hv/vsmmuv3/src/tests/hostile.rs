//! A guest that means ill: what the lists of `docs/vsmmuv3.md` name and no other test has.

use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use iommu::StageOne;
use smmuv3::spec::regs;
use types::Ipa;

use super::{
    BYPASS, CD, CFGI_ALL, CMDQ, EVTQ, Guest, Hardware, L1, L2, LINEAR, NH_ALL, RAM, RAM_BYTES, S1,
    SYNC, cfgi_ste, qemu, sid,
};
use crate::Delivery;
use crate::{
    BUDGET, Features, GuestMemory, Health, NotGuestMemory, Options, Outcome, VSmmu, Verdict, Width,
    Work,
};

/// Places that are none of a guest's memory, and look as if they were something.
const ELSEWHERE: [u64; 7] = [
    // The vector table of whoever has address 0; a UART; an ITS; RAM's neighbours.
    0,
    0x0900_0000,
    0x0809_0000,
    RAM - 0x1000,
    RAM + RAM_BYTES as u64,
    // Beyond 40 bits of guest-physical address; the end of what a pointer can say.
    1 << 40,
    0x000f_ffff_ffff_f000,
];

#[test]
fn no_command_queue_elsewhere_is_read() {
    for at in ELSEWHERE {
        let mut guest = Guest::new();
        guest.w64(regs::CMDQ_BASE, at | 6);
        guest.w32(regs::CR0, 8);
        guest.w32(regs::CMDQ_PROD, 1);
        assert_eq!(guest.cons(), 2 << 24, "CERROR_ABT at {at:#x}");
        assert_eq!(guest.r32(regs::GERROR), 1);
        assert_eq!(guest.smmu.counters().commands, 0);
    }
}

#[test]
fn no_stream_table_elsewhere_is_believed() {
    for at in ELSEWHERE {
        for two_levels in [0, 1 << 16 | 8 << 6] {
            let mut guest = Guest::new();
            guest.queues_on();
            guest.w64(regs::STRTAB_BASE, at);
            guest.w32(regs::STRTAB_BASE_CFG, two_levels | 10);
            guest.w32(regs::CR0, 0xd);
            for stream in [8, 0x100] {
                let state = *guest.smmu.stream(sid(stream)).unwrap();
                assert_eq!(state.live().stage_one, StageOne::Invalid);
                assert!(matches!(state.verdict(), Verdict::NotFetched { .. }));
            }
        }
    }
}

#[test]
fn no_level_2_table_elsewhere_is_believed() {
    for at in ELSEWHERE {
        let mut guest = Guest::nested();
        assert!(guest.translates(8));
        guest.ram.put(L1, &[at & !0x3fff | 9]);
        guest.send(&[cfgi_ste(8), SYNC]);
        assert!(!guest.translates(8));
        let ste = (at & 0x000f_ffff_ffff_c000) + 8 * 64;
        let verdict = guest.smmu.stream(sid(8)).unwrap().verdict();
        assert_eq!(verdict, Verdict::NotFetched { at: ste });
        assert!(guest.access(8).is_some());
        assert_eq!(guest.take_events(), [[8 << 32 | 3, 0, 0, ste]]);
    }
}

#[test]
fn no_event_queue_elsewhere_is_written() {
    for at in ELSEWHERE {
        let mut guest = Guest::nested();
        guest.w32(regs::CR0, 9);
        guest.w64(regs::EVENTQ_BASE, at | 5);
        guest.w32(regs::CR0, 0xd);
        guest.ste(8, [7 << 1 | 1, 0, 0, 0]);
        guest.send(&[cfgi_ste(8), SYNC]);
        assert_eq!(guest.access(8), Some(Delivery::Lost));
        assert_eq!(guest.r32(regs::GERROR), 1 << 2, "EVENTQ_ABT_ERR");
        assert_eq!(*guest.ram.writes.borrow(), []);
        assert_eq!(guest.r32(regs::EVENTQ_PROD), 0);
    }
}

#[test]
fn a_table_that_ends_with_the_memory_is_read_to_its_end_and_no_further() {
    let mut guest = Guest::new();
    guest.add(0x1ff);
    guest.queues_on();
    // Its last entry is the last of RAM.
    guest.linear();
    guest.ram.put(LINEAR + 0x1ff * 64, &[BYPASS]);
    // The smallest table that a larger `LOG2SIZE` can be believed to be is aligned elsewhere.
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.live(0x1ff).stage_one, StageOne::Bypass);
    guest.w32(regs::CR0, 0xc);
    guest.w64(regs::STRTAB_BASE, RAM + RAM_BYTES as u64 - 64);
    guest.w32(regs::STRTAB_BASE_CFG, 0);
    guest.w32(regs::CR0, 0xd);
    // One entry, of stream 0, which the guest has not got.
    assert_eq!(
        guest.smmu.stream(sid(8)).unwrap().verdict(),
        Verdict::NoEntry
    );
}

#[test]
fn reserved_bits_of_commands_change_nothing() {
    // Opcode, and the bits that the manual gives fields in the two words.
    const SID: u64 = 0xffff_ffff << 32;
    let commands = [
        (0x01, SID, 0),
        (0x03, SID, 1),
        (0x04, SID, 0x1f),
        (0x05, SID | 0xf_ffff << 12, 1),
        (0x06, SID, 0),
        (0x10, 0xffff << 32, 0),
        (0x11, u64::MAX << 32, 0),
        (
            0x12,
            u64::MAX << 32 | 0x1f << 12 | 0x1f << 20,
            !0 << 12 | 0xf01,
        ),
        (
            0x13,
            0xffff << 32 | 0x1f << 12 | 0x1f << 20,
            !0 << 12 | 0xf01,
        ),
        (0x30, 0, 0),
        (0x46, 3 << 12 | 3 << 22 | 0xf << 24 | SID, !0),
    ];
    for (opcode, low, high) in commands {
        let plain = [opcode | 8 << 32 & low, 0x1000 & high];
        // Bit 10 is SSec, which is illegal where there is one.
        let noise = [!low & !0xff & !(1 << 10), !high];
        let run = |command: [u64; 2]| {
            let mut guest = Guest::nested();
            guest.send(&[command, SYNC]);
            (
                guest.cons(),
                guest.r32(regs::GERROR),
                guest.hardware.batches.clone(),
                guest.hardware.streams.clone(),
            )
        };
        let noisy = [plain[0] | noise[0], plain[1] | noise[1]];
        assert_eq!(run(plain), run(noisy), "{opcode:#x}");
        assert_eq!(run(plain).0, 2, "{opcode:#x}: consumed, and the wait");
    }
}

#[test]
fn reserved_words_of_an_entry_change_nothing() {
    let mut guest = Guest::nested();
    let live = guest.live(8);
    guest
        .ram
        .put(L2 + 8 * 64, &[S1 | CD, 0, !0, !0, !0, !0, !0, !0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.live(8), live);
    assert_eq!(guest.hardware.streams, []);
}

#[test]
fn all_ones_in_every_register_leave_nothing_that_cannot_be_undone() {
    let mut guest = Guest::nested();
    for offset in (0..0x100).chain(0x1_0000..0x1_0100).step_by(4) {
        guest.w32(offset, u32::MAX);
    }
    // What is on is on, what waits is nothing, and the tables are elsewhere only once it is off.
    assert_eq!(guest.r32(regs::CR0), 0xd);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
    assert_eq!(guest.smmu.health(), Health::Good);
    guest.w32(regs::GERRORN, guest.r32(regs::GERROR));
    guest.w32(regs::CR0, 0);
    guest.bring_up();
    assert!(guest.translates(8));
}

/// The largest queue there is, every entry the same.
struct Endless {
    command: [u64; 2],
    reads: Cell<usize>,
}

impl GuestMemory for Endless {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.reads.set(self.reads.get() + 1);
        let words = [self.command[0].to_le_bytes(), self.command[1].to_le_bytes()];
        for (byte, at) in buffer.iter_mut().zip(ipa.bits()..) {
            *byte = words.as_flattened()[(at & 15) as usize];
        }
        Ok(())
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        self.reads.set(self.reads.get() + 1);
        for (word, at) in words.iter_mut().zip((ipa.bits() / 8)..) {
            *word = self.command[(at & 1) as usize];
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let bytes = bytes.len();
        Err(NotGuestMemory { ipa, bytes })
    }
}

/// Fills a queue of 2^19 entries at once; returns the turns it took.
fn fill(command: [u64; 2]) -> (u32, Hardware) {
    let options = Options {
        commands_log2: 19,
        ..Options::default()
    };
    let features = Features::derive(&qemu(), options).unwrap();
    let memory = Endless {
        command,
        reads: Cell::new(0),
    };
    let mut hardware = Hardware::default();
    let mut smmu = VSmmu::new(features);
    let _ = smmu.add_stream(sid(8), &memory, &mut hardware).unwrap();
    let write = |smmu: &mut VSmmu, hardware: &mut Hardware, offset: usize, value: u64| -> Outcome {
        let width = if offset == regs::CMDQ_BASE {
            Width::Double
        } else {
            Width::Word
        };
        smmu.write(offset as u64, width, value, &memory, hardware)
    };
    let _ = write(
        &mut smmu,
        &mut hardware,
        regs::CMDQ_BASE,
        0x1_0000_0000 | 19,
    );
    let _ = write(&mut smmu, &mut hardware, regs::CR0, 8);
    let mut outcome = write(&mut smmu, &mut hardware, regs::CMDQ_PROD, 1 << 19);
    let mut turns = 1;
    let mut last = 0;
    while outcome.work == Work::More {
        assert!(memory.reads.take() <= BUDGET as usize + 2);
        // The other vCPUs are not kept from looking, nor from ringing again.
        let consumer = smmu.read(regs::CMDQ_CONS as u64, Width::Word);
        assert!(consumer > last, "it goes on");
        last = consumer;
        outcome = if turns % 2 == 0 {
            write(&mut smmu, &mut hardware, regs::CMDQ_PROD, 1 << 19)
        } else {
            smmu.run(&memory, &mut hardware)
        };
        turns += 1;
    }
    let consumer = smmu.read(regs::CMDQ_CONS as u64, Width::Word);
    assert_eq!(consumer, 1 << 19);
    assert_eq!(smmu.counters().commands, 1 << 19);
    (turns, hardware)
}

#[test]
fn a_queue_of_2_19_commands_filled_at_once_is_consumed_in_bounded_turns() {
    let (turns, hardware) = fill([0x11 | 5 << 48, 0]);
    assert_eq!(turns, (1 << 19) / BUDGET);
    // The same over and over is one invalidation, and no wait asked for it.
    assert_eq!(hardware.batches.len(), 0);
    // Waits with nothing to wait for cost the hardware nothing.
    let (turns, hardware) = fill(SYNC);
    assert_eq!((turns, hardware.batches.len()), ((1 << 19) / BUDGET, 0));
}

#[test]
fn a_queue_of_2_19_sweeps_over_the_streams_is_consumed_in_bounded_turns() {
    // One stream read again costs eight commands, and the sweep's end one.
    let (turns, hardware) = fill(CFGI_ALL);
    assert!(turns <= (1 << 19) * 10 / BUDGET + 1, "{turns}");
    // The SMMU is off: the stream does what it did.
    assert_eq!(hardware.streams, []);
}

/// Memory that says something else each time it is looked at.
struct Liar {
    ram: super::Ram,
    lies: RefCell<Vec<(u64, Vec<[u64; 8]>)>>,
    looks: Cell<usize>,
}

impl GuestMemory for Liar {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.ram.read(ipa, buffer)
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        let lies = self.lies.borrow();
        if let Some((_, lies)) = lies.iter().find(|(at, _)| *at == ipa.bits()) {
            let look = self.looks.get();
            self.looks.set(look + 1);
            words.copy_from_slice(&lies[look % lies.len()][..words.len()]);
            return Ok(());
        }
        drop(lies);
        self.ram.read_words(ipa, words)
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        self.ram.write(ipa, bytes)
    }
}

#[test]
fn an_entry_that_says_something_else_at_each_look_is_what_one_look_saw() {
    let mut guest = Guest::nested();
    // Each is legal; a mixture of the first two would be beyond the address space.
    let lies = vec![
        [BYPASS | 0x000f_0000_0000_0000, 0, 0, 0, 0, 0, 0, 0],
        [S1 | CD, 0, 0, 0, 0, 0, 0, 0],
        [1, 3 << 28 | 1 << 27, 0, 0, 0, 0, 0, 0],
    ];
    let liar = Liar {
        ram: std::mem::replace(&mut guest.ram, super::Ram::new()),
        lies: RefCell::new(vec![(L2 + 8 * 64, lies)]),
        looks: Cell::new(0),
    };
    for turn in 0..12_usize {
        guest.prod = (guest.prod + 1) & 127;
        let slot = CMDQ + u64::from((guest.prod + 63) & 63) * 16;
        liar.ram.put(slot, &cfgi_ste(8));
        let prod = u64::from(guest.prod);
        let outcome = guest.smmu.write(
            regs::CMDQ_PROD as u64,
            Width::Word,
            prod,
            &liar,
            &mut guest.hardware,
        );
        assert_eq!((outcome.work, outcome.health), (Work::Done, Health::Good));
        assert_eq!(liar.looks.get(), turn + 1, "it looks once");
        let live = guest.live(8).stage_one;
        match turn % 3 {
            0 => assert_eq!(live, StageOne::Bypass),
            1 => assert!(matches!(live, StageOne::Translate(_))),
            _ => assert_eq!(live, StageOne::Abort),
        }
    }
}

#[test]
fn a_command_that_says_something_else_at_each_look_is_what_one_look_saw() {
    let mut guest = Guest::nested();
    // Illegal, then a wait: the second look is the one after the acknowledgement.
    let lies = vec![[0xff, 0, 0, 0, 0, 0, 0, 0], [0x46, 0, 0, 0, 0, 0, 0, 0]];
    let liar = Liar {
        ram: std::mem::replace(&mut guest.ram, super::Ram::new()),
        lies: RefCell::new(vec![(CMDQ, lies)]),
        looks: Cell::new(0),
    };
    let mut write = |offset: usize, value: u64| {
        let hardware = &mut guest.hardware;
        let outcome = guest
            .smmu
            .write(offset as u64, Width::Word, value, &liar, hardware);
        assert_eq!(outcome.work, Work::Done);
        guest.smmu.read(regs::CMDQ_CONS as u64, Width::Word)
    };
    assert_eq!(write(regs::CMDQ_PROD, 1), 1 << 24);
    assert_eq!(liar.looks.get(), 1);
    assert_eq!(write(regs::GERRORN, 1), 1);
    assert_eq!(liar.looks.get(), 2);
}

#[test]
fn context_descriptors_are_never_read() {
    // Whatever is in them, `IPS` of 6 and 7 included, on which QEMU's model aborts: they are the
    // hardware's to read and to judge.
    let reads = |cd: u64| {
        let mut guest = Guest::nested();
        guest.ram.put(CD, &[cd, !0, !0, !0]);
        let now = guest.ram.reads.get();
        guest.send(&[cfgi_ste(8), [8 << 32 | 6, 0], SYNC]);
        assert!(guest.translates(8));
        assert_eq!(guest.r32(regs::GERROR), 0);
        assert_eq!(guest.take_events(), [[0; 4]; 0]);
        guest.ram.reads.get() - now
    };
    let plain = reads(0);
    for ips in 0..8 {
        assert_eq!(reads(ips << 32 | 1 << 31), plain, "IPS {ips}");
    }
    assert_eq!(reads(!0), plain);
}

#[test]
fn entries_that_change_in_a_storm_switch_a_bounded_number_of_streams_a_turn() {
    let mut guest = Guest::new();
    for stream in 0x110..0x110 + 200 {
        guest.add(stream);
    }
    guest.queues_on();
    guest.linear();
    guest.w32(regs::CR0, 0xd);
    for round in 0..6 {
        let word = [BYPASS, S1 | CD][round % 2];
        for stream in 0..0x200 {
            guest.ram.put(LINEAR + stream * 64, &[word]);
        }
        guest.put(&[CFGI_ALL]);
        guest.hardware.streams.clear();
        let mut outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, guest.prod.into());
        let mut seen = 0;
        loop {
            let switched = guest.hardware.streams.len() - seen;
            assert!(
                switched <= BUDGET as usize / 8 + 1,
                "{switched} in one turn"
            );
            seen += switched;
            if outcome.work == Work::Done {
                break;
            }
            outcome = guest.go_on();
        }
        assert_eq!(seen, guest.smmu.streams().len(), "each once");
    }
}

#[test]
fn every_vcpu_ringing_every_bell_at_once_ends_as_one_would() {
    let mut guest = Guest::nested();
    let commands: Vec<_> = (0..60)
        .map(|n| if n % 3 == 0 { cfgi_ste(8) } else { NH_ALL })
        .chain([SYNC])
        .collect();
    guest.put(&commands);
    // Eight vCPUs, each with its own idea of what to write; none waits for another.
    for turn in 0..400_u32 {
        let _ = match turn % 8 {
            0 | 1 => guest.write_once(regs::CMDQ_PROD, Width::Word, guest.prod.into()),
            2 => guest.write_once(regs::GERRORN, Width::Word, turn.into()),
            3 => guest.write_once(regs::CMDQ_CONS, Width::Word, 0),
            4 => guest.write_once(regs::STRTAB_BASE, Width::Double, turn.into()),
            5 => guest.write_once(regs::GBPA, Width::Word, 1 << 31),
            6 => guest.write_once(regs::IRQ_CTRL, Width::Word, 5),
            _ => guest.go_on(),
        };
    }
    let outcome = guest.go_on();
    assert_eq!(guest.finish(outcome), Health::Good);
    assert_eq!(guest.cons(), guest.prod);
    assert_eq!(guest.smmu.counters().commands, 61);
    assert!(guest.translates(8));
}

#[test]
fn enables_in_a_storm_with_commands_waiting_end_where_the_last_write_says() {
    let mut guest = Guest::nested();
    guest.put(&[[CFGI_ALL; 20], [NH_ALL; 20]].concat());
    let _ = guest.write_once(regs::CMDQ_PROD, Width::Word, guest.prod.into());
    for turn in 0..200_u32 {
        // No turn is waited for: everything is switched while the last switch is under way.
        let _ = guest.write_once(regs::CR0, Width::Word, ((turn * 5) & 0xd).into());
        let _ = guest.write_once(regs::GBPA, Width::Word, u64::from(turn % 2) << 20 | 1 << 31);
    }
    let outcome = guest.write_once(regs::CR0, Width::Word, 0xd);
    assert_eq!(guest.finish(outcome), Health::Good);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
    assert!(guest.translates(8));
    assert_eq!(guest.cons(), guest.prod);
}

#[test]
fn an_event_queue_over_the_stream_table_hurts_only_its_owner() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 9);
    // Stream 8's entry is the queue's first place; a record with `V` in it follows.
    guest.w64(regs::EVENTQ_BASE, (L2 + 8 * 64) | 1);
    guest.w32(regs::CR0, 0xd);
    guest.ste(8, [7 << 1 | 1, 0, 0, 0]);
    for _ in 0..8 {
        guest.send(&[cfgi_ste(8), SYNC]);
        let _ = guest.access(8);
    }
    // A record of type 4 is an entry that is not valid: the stream aborts.
    assert_eq!(guest.live(8).stage_one, StageOne::Invalid);
    assert_eq!(guest.smmu.health(), Health::Good);
    let mut writes = guest.ram.writes.borrow().clone();
    writes.retain(|(at, _)| !(L2 + 8 * 64..L2 + 9 * 64).contains(at));
    assert_eq!(writes, []);
    assert_ne!(EVTQ, L2);
}

#[test]
fn a_bell_that_is_rung_for_nothing_costs_nothing() {
    let mut guest = Guest::nested();
    guest.send(&[NH_ALL, SYNC]);
    let (reads, batches) = (guest.ram.reads.get(), guest.hardware.batches.len());
    for _ in 0..1000 {
        guest.w32(regs::CMDQ_PROD, guest.prod);
        guest.w32(regs::EVENTQ_CONS, 0);
        guest.w32(regs::GERRORN, u32::MAX);
    }
    assert_eq!(guest.ram.reads.get(), reads);
    assert_eq!(guest.hardware.batches.len(), batches);
    assert_eq!(guest.take_pulses(), [0; 3]);
}

#[test]
fn an_error_acknowledged_over_and_over_costs_one_fetch_each() {
    let mut guest = Guest::nested();
    guest.put(&[[0xff, 0]]);
    guest.w32(regs::CMDQ_PROD, guest.prod);
    let reads = guest.ram.reads.get();
    for n in 1..=100 {
        let gerror = guest.r32(regs::GERROR);
        guest.w32(regs::GERRORN, gerror);
        assert_eq!(guest.ram.reads.get() - reads, n);
        assert_eq!(guest.cons() & 0xf_ffff, 0);
    }
}
