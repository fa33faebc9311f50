//! The driver of a physical SMMU, by what devices can reach.

use bulkhead_smmuv3::spec::{Command, Depth, EventId, Stage2, Ste, Walks, regs};
use bulkhead_smmuv3::{Drained, Error};
use hal::{FrameAllocator, Mmio};
use types::{Pa, StreamId, Vmid};

use crate::board::{Board, Broken, Driver, Haste, Model, STREAMS};
use crate::engine::{Access, Engine, Fault};

/// A stage 2 of one level-1 table with one block of 1 GiB at 0: where it leads.
fn block(board: &Board, vmid: u16, to: u64) -> Stage2 {
    let root = board.frames.alloc_zeroed(0).unwrap();
    // Valid block, normal memory, read and write, inner shareable, accessed.
    board.put(
        root.bits(),
        &[to | 1 | 0xf << 2 | 3 << 6 | 3 << 8 | 1 << 10],
    );
    Stage2 {
        vmid: Vmid::new(vmid).unwrap(),
        t0sz: 25,
        sl0: 1,
        ps: 4,
        root,
        walks: Walks::Coherent,
    }
}

const FIRST: u64 = 0x8000_0000;
const SECOND: u64 = 0xc000_0000;

fn sid(bits: u32) -> StreamId {
    StreamId::new(bits).unwrap()
}

fn translation(id: u64) -> Result<u64, Fault> {
    Err(Fault::Recorded {
        id,
        stage2: true,
        class: 2,
    })
}

fn drain(driver: &mut Driver, budget: usize) -> (Drained, Vec<(EventId, u32)>) {
    let mut seen = Vec::new();
    let drained = driver.drain(budget, |event| seen.push((event.id(), event.sid())));
    (drained, seen)
}

#[test]
fn an_smmu_out_of_reset_bypasses_and_a_locked_one_aborts() {
    let board = Board::new(Model::default());
    // The negative control: QEMU's model lets everything pass until it is told otherwise.
    assert_eq!(board.dma(8, 0x1000), Ok(0x1000));
    let _locked = board.lock();
    assert_eq!(board.dma(8, 0x1000), Err(Fault::Silent));
}

#[test]
fn at_no_moment_of_being_enabled_does_an_access_pass() {
    let board = Board::new(Model::default());
    let locked = board.lock();
    *board.hardware.watch.borrow_mut() = Some(Box::new(|hardware| {
        for sid in STREAMS {
            let access = Access {
                sid,
                ssid: None,
                at: 0x1000,
                write: true,
            };
            assert!(hardware.look(access, &mut Engine::default()).is_err());
        }
    }));
    let clock = Haste::default();
    let driver = bulkhead_smmuv3::Smmu::enable(locked, board.memory, board.frames, clock).unwrap();
    let state = driver.state();
    assert!(state.cr0.smmuen() && state.cr0.eventqen() && state.cr0.cmdqen());
    assert!(state.gbpa.abort(), "it holds whenever the SMMU is off");
}

#[test]
fn what_was_cached_before_the_driver_came_is_forgotten() {
    let board = Board::new(Model::default());
    let mut engine = board.hardware.engine.borrow_mut();
    // A firmware's table, with a stream that bypasses.
    let table = board.frames.alloc_zeroed(4).unwrap().bits();
    board.put(table + 8 * 64, &[1 | 4 << 1]);
    let access = Access {
        sid: 8,
        ssid: None,
        at: 0x1000,
        write: true,
    };
    let words = |at: u64| {
        let pa = Pa::new(at).ok()?;
        hal::PhysMemory::read_u64(board.memory, pa).ok()
    };
    assert_eq!(engine.translate(&words, (table, 8), access), Ok(0x1000));
    drop(engine);
    let _driver = board.driver();
    assert!(board.dma(8, 0x1000).is_err());
}

#[test]
fn an_installed_stream_reaches_what_its_table_says_and_nothing_else() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    assert_eq!(board.dma(8, 0x1234), Ok(FIRST | 0x1234));
    // Beyond the block, a neighbour in the same level-2 table, one that has none.
    assert_eq!(board.dma(8, 1 << 30), translation(0x10));
    assert_eq!(board.dma(9, 0x1234), Err(Fault::Silent));
    assert!(board.dma(0x108, 0x1234).is_err());
}

#[test]
fn a_stream_follows_each_change_at_once() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let first = Ste::stage2(&block(&board, 1, FIRST));
    let second = Ste::stage2(&block(&board, 2, SECOND));
    for (ste, expected) in [
        (first, Ok(FIRST)),
        (second, Ok(SECOND)),
        (Ste::ABORT, Err(Fault::Silent)),
        (Ste::BYPASS, Ok(0)),
        (first, Ok(FIRST)),
    ] {
        driver.install(sid(8), ste).unwrap();
        assert_eq!(board.dma(8, 0), expected);
        assert_eq!(driver.entry(sid(8)).unwrap(), ste);
    }
}

#[test]
fn an_smmu_that_forgets_nothing_is_noticed() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let first = Ste::stage2(&block(&board, 1, FIRST));
    driver.install(sid(8), first).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    board.hardware.engine.borrow_mut().deaf = true;
    driver.install(sid(8), Ste::ABORT).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST), "the old entry");
}

#[test]
fn a_device_that_never_rests_sees_the_old_entry_or_the_new_one() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let first = Ste::stage2(&block(&board, 1, FIRST));
    let second = Ste::stage2(&block(&board, 2, SECOND));
    driver.install(sid(8), first).unwrap();
    for (from, to, may_abort) in [
        (Ok(FIRST), (Ste::ABORT, Err(Fault::Silent)), false),
        (Err(Fault::Silent), (first, Ok(FIRST)), false),
        // VMID and root are in two words: there is a moment of neither.
        (Ok(FIRST), (second, Ok(SECOND)), true),
    ] {
        let (ste, then) = to;
        let seen: &_ = Box::leak(Box::new(std::cell::RefCell::new(Vec::new())));
        *board.hardware.watch.borrow_mut() = Some(Box::new(move |hardware| {
            let access = Access {
                sid: 8,
                ssid: None,
                at: 0,
                write: true,
            };
            // With what the SMMU has cached, and with what is in memory.
            let cached = hardware.look(access, &mut hardware.engine.borrow_mut());
            let fresh = hardware.look(access, &mut Engine::default());
            seen.borrow_mut().extend([cached, fresh]);
        }));
        driver.install(sid(8), ste).unwrap();
        *board.hardware.watch.borrow_mut() = None;
        for outcome in seen.borrow().iter() {
            let invalid = Err(Fault::Recorded {
                id: 4,
                stage2: false,
                class: 2,
            });
            let known = *outcome == from || *outcome == then;
            assert!(known || may_abort && *outcome == invalid, "{outcome:?}");
        }
        assert!(seen.borrow().len() >= 4);
        assert_eq!(board.dma(8, 0), then);
    }
}

#[test]
fn a_linear_table_serves_few_streams() {
    let board = Board::new(Model {
        sid_bits: 8,
        ..Model::default()
    });
    let mut driver = board.driver();
    assert_eq!(driver.stream_bits(), 8);
    driver
        .install(sid(0xff), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    assert_eq!(board.dma(0xff, 5), Ok(FIRST | 5));
    assert_eq!(board.dma(8, 5), Err(Fault::Silent));
    let beyond = driver.install(sid(0x100), Ste::BYPASS);
    assert_eq!(beyond, Err(Error::NoSuchStream));
}

#[test]
fn a_fault_arrives_with_its_stream_and_its_address() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    let _ = board.dma(8, 0x4000_1234);
    let mut seen = Vec::new();
    let drained = driver.drain(16, |event| seen.push(event));
    assert_eq!(
        (drained.records, drained.lost, drained.more),
        (1, false, false)
    );
    assert_eq!(seen[0].id(), EventId::FTranslation);
    assert_eq!((seen[0].sid(), seen[0].input()), (8, 0x4000_1234));
    assert!(seen[0].is_stage2() && !seen[0].is_read());
    assert_eq!(
        driver
            .drain(16, |_| panic!("nothing is read twice"))
            .records,
        0
    );
}

#[test]
fn records_come_in_order_within_the_budget_round_and_round() {
    let board = Board::new(Model {
        events_log2: 7,
        ..Model::default()
    });
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    for round in 0..40_u64 {
        for n in 0..10 {
            let _ = board.dma(8, 1 << 30 | (round * 10 + n) << 12);
        }
        let mut inputs = Vec::new();
        let first = driver.drain(7, |event| inputs.push(event.input()));
        assert_eq!((first.records, first.more), (7, true));
        let rest = driver.drain(7, |event| inputs.push(event.input()));
        assert_eq!((rest.records, rest.more), (3, false));
        let expected: Vec<u64> = (0..10).map(|n| 1 << 30 | (round * 10 + n) << 12).collect();
        assert_eq!(inputs, expected);
    }
}

#[test]
fn a_flood_is_lost_and_said_once_and_what_comes_after_arrives() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    for n in 0..500 {
        let _ = board.dma(8, 1 << 30 | n << 12);
    }
    let (drained, seen) = drain(&mut driver, 1000);
    assert!(drained.lost);
    assert_eq!(seen.len(), 128);
    let (drained, seen) = drain(&mut driver, 1000);
    assert_eq!((drained.lost, seen.len()), (false, 0));
    let _ = board.dma(8, 1 << 30);
    let (drained, seen) = drain(&mut driver, 1000);
    assert_eq!(
        (drained.lost, seen),
        (false, vec![(EventId::FTranslation, 8)])
    );
}

#[test]
fn a_refused_command_is_told_and_the_others_are_carried_out() {
    for nth in 0..3 {
        let board = Board::new(Model::default());
        let mut driver = board.driver();
        board.opcodes();
        board.hardware.broken.set(Broken::Command { nth, times: 1 });
        let vmid = Vmid::new(7).unwrap();
        let commands = [
            Command::CFGI_ALL,
            Command::TlbiS12Vmall(vmid),
            Command::TlbiNsnhAll,
        ];
        assert_eq!(driver.send(&commands), Err(Error::Refused(1)));
        let mut expected = vec![0x04, 0x28, 0x30];
        expected.remove(nth as usize);
        assert_eq!(board.opcodes(), expected);
        // It goes on as if nothing had been.
        assert_eq!(driver.send(&commands), Ok(()));
        assert_eq!(board.opcodes(), [0x04, 0x28, 0x30]);
        assert_eq!(driver.acknowledge_errors(), 0);
    }
}

#[test]
fn a_refused_invalidation_of_an_entry_is_made_up_for() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let first = Ste::stage2(&block(&board, 1, FIRST));
    driver.install(sid(8), first).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    board
        .hardware
        .broken
        .set(Broken::Command { nth: 0, times: 1 });
    driver.install(sid(8), Ste::ABORT).unwrap();
    assert_eq!(board.dma(8, 0), Err(Fault::Silent));
}

#[test]
fn an_smmu_that_refuses_twice_is_turned_off_and_one_that_refuses_then_too_is_lost() {
    for times in [2, 3] {
        let board = Board::new(Model::default());
        let mut driver = board.driver();
        let first = Ste::stage2(&block(&board, 1, FIRST));
        driver.install(sid(8), first).unwrap();
        let broken = Broken::Command { nth: 0, times };
        board.hardware.broken.set(broken);
        assert!(driver.install(sid(8), Ste::ABORT).is_err());
        assert_eq!((driver.is_off(), driver.is_lost()), (true, times == 3));
        assert_eq!(board.dma(8, 0), Err(Fault::Silent));
    }
}

#[test]
fn what_an_smmu_let_through_is_over_when_it_is_turned_off() {
    // Its last commands are these, when nothing is translated any more.
    let ended = |board: &Board| {
        let cr0 = board.hardware.read32(regs::CR0ACK);
        assert_eq!((board.opcodes(), cr0), (vec![0x04, 0x30], 0));
    };
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    board.opcodes();
    driver.disable();
    assert!(driver.is_off() && !driver.is_lost());
    ended(&board);
    // One whose queue is stuck, and is not when it is started anew.
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    board.opcodes();
    board.hardware.broken.set(Broken::Stuck);
    assert_eq!(driver.send(&[Command::CFGI_ALL]), Err(Error::Timeout));
    assert!(driver.is_off() && !driver.is_lost());
    ended(&board);
}

#[test]
fn an_smmu_whose_command_queue_cannot_be_started_anew_is_lost() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    // It has consumed as much as it would be told last.
    assert_eq!(board.hardware.read32(regs::CMDQ_CONS), 3);
    board.hardware.broken.set(Broken::Frozen);
    driver.disable();
    assert!(driver.is_off() && driver.is_lost());
}

#[test]
fn an_smmu_that_never_translated_gives_its_memory_back_whatever_is_wrong() {
    for broken in [Broken::Queue, Broken::Everything] {
        let board = Board::new(Model::default());
        board.hardware.broken.set(broken);
        assert!(board.try_driver().is_err());
        assert_eq!(board.frames.live_blocks(), 0, "{broken:?}");
    }
}

#[test]
fn an_smmu_that_consumes_nothing_is_turned_off_and_everything_aborts() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let first = Ste::stage2(&block(&board, 1, FIRST));
    driver.install(sid(8), first).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    board.hardware.broken.set(Broken::Queue);
    assert_eq!(driver.send(&[Command::CFGI_ALL]), Err(Error::Timeout));
    assert!(
        driver.is_off() && driver.is_lost(),
        "nothing says that accesses are over"
    );
    assert_eq!(board.dma(8, 0), Err(Fault::Silent));
    // For good: what asks for less succeeds, what asks for more does not.
    board.hardware.broken.set(Broken::No);
    assert_eq!(driver.install(sid(8), Ste::ABORT), Ok(()));
    assert_eq!(driver.install(sid(8), first), Err(Error::Off));
    assert_eq!(driver.send(&[Command::CFGI_ALL]), Err(Error::Off));
    assert_eq!(board.dma(8, 0), Err(Fault::Silent));
}

#[test]
fn an_smmu_that_cannot_even_be_turned_off_is_lost() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    board.hardware.broken.set(Broken::Everything);
    assert_eq!(driver.send(&[Command::CFGI_ALL]), Err(Error::Timeout));
    assert!(driver.is_lost());
}

#[test]
fn a_long_batch_goes_in_pieces_round_and_round() {
    let board = Board::new(Model {
        commands_log2: 7,
        ..Model::default()
    });
    let mut driver = board.driver();
    board.opcodes();
    let vmid = Vmid::new(7).unwrap();
    let many: Vec<Command> = (0..300).map(|_| Command::TlbiS12Vmall(vmid)).collect();
    for _ in 0..5 {
        assert_eq!(driver.send(&many), Ok(()));
        assert_eq!(board.opcodes(), vec![0x28; 300]);
    }
    // No more than 32 between two waits: longer ones hang some products.
    let (sent, syncs) = driver.sent();
    assert!(syncs * 32 >= sent);
}

#[test]
fn whatever_allocation_fails_enabling_leaves_an_smmu_that_aborts_and_no_frame_behind() {
    let mut nth = 0;
    loop {
        let board = Board::new(Model::default());
        board.frames.fail_from(Some(nth));
        match board.try_driver() {
            Ok(_) => break,
            Err(error) => {
                assert_eq!(error, Error::OutOfMemory);
                assert_eq!(board.frames.live_blocks(), 0);
                assert_eq!(board.dma(8, 0), Err(Fault::Silent));
            }
        }
        nth += 1;
    }
    assert_eq!(nth, 3, "table, commands, events");
}

#[test]
fn a_new_stream_without_memory_for_its_table_stays_as_it_was() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let entry = Ste::stage2(&block(&board, 1, FIRST));
    board.frames.fail_from(Some(0));
    assert_eq!(driver.install(sid(8), entry), Err(Error::OutOfMemory));
    // To abort needs no memory, and no table.
    assert_eq!(driver.install(sid(8), Ste::ABORT), Ok(()));
    assert!(board.dma(8, 0).is_err());
    board.frames.fail_from(None);
    driver.install(sid(8), entry).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    // Its neighbours need none any more.
    board.frames.fail_from(Some(0));
    driver.install(sid(9), entry).unwrap();
    assert_eq!(board.dma(9, 0), Ok(FIRST));
}

#[test]
fn a_new_level_2_table_is_complete_before_it_is_reachable() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    // The SMMU has looked for the stream before, and found nothing.
    assert!(board.dma(8, 0).is_err());
    *board.hardware.watch.borrow_mut() = Some(Box::new(|hardware| {
        let access = Access {
            sid: 9,
            ssid: None,
            at: 0,
            write: true,
        };
        assert!(hardware.look(access, &mut Engine::default()).is_err());
    }));
    let entry = Ste::stage2(&block(&board, 1, FIRST));
    driver.install(sid(8), entry).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    assert_eq!(board.dma(9, 0), Err(Fault::Silent));
}

#[test]
fn a_disabled_smmu_aborts_and_has_forgotten() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    let entry = Ste::stage2(&block(&board, 1, FIRST));
    driver.install(sid(8), entry).unwrap();
    assert_eq!(board.dma(8, 0), Ok(FIRST));
    board.opcodes();
    driver.disable();
    assert!(driver.is_off());
    assert_eq!(board.opcodes(), [0x04, 0x30]);
    assert_eq!(board.dma(8, 0), Err(Fault::Silent));
    let state = driver.state();
    assert!(!state.cr0.smmuen() && state.gbpa.abort());
}

#[test]
fn an_event_queue_out_of_reach_is_an_error_that_is_acknowledged_once() {
    let board = Board::new(Model::default());
    let mut driver = board.driver();
    driver
        .install(sid(8), Ste::stage2(&block(&board, 1, FIRST)))
        .unwrap();
    // Somebody moves the queue to where there is no memory.
    let hardware = board.hardware;
    let cr0 = hardware.read32(regs::CR0);
    hardware.write32(regs::CR0, cr0 & !4);
    hardware.write64(regs::EVENTQ_BASE, 0x1_0000_0000 | 7);
    hardware.write32(regs::CR0, cr0);
    let _ = board.dma(8, 1 << 30);
    assert_eq!(driver.acknowledge_errors(), 1 << 2);
    assert_eq!(driver.acknowledge_errors(), 0);
    // Commands go on all the while.
    let depth = Depth::Leaf;
    assert_eq!(
        driver.send(&[Command::CfgiSte { sid: sid(8), depth }]),
        Ok(())
    );
}
