//! Run-time services.

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::proptest;

use super::{EDGE, Fake, MEMORY, NOON, call, platform};
use crate::hcall::number as n;
use crate::{After, Date, End, Platform, TOKENS};

const BLOCK: u64 = 0x400;

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap()
}

/// Status of the hypercall, what follows, and the results, of which there are `outputs`.
fn rtas(
    platform: &Platform,
    env: &Fake,
    token: u32,
    inputs: &[u32],
    outputs: usize,
) -> (i64, After, Vec<i32>) {
    let head = [token, count(inputs.len()), count(outputs)];
    let untouched = [0x5555_5555; 10];
    let cells = head.iter().chain(inputs).chain(&untouched);
    let block: Vec<u8> = cells.flat_map(|cell| cell.to_be_bytes()).collect();
    env.put(BLOCK, &block);
    let (gpr, after) = call(platform, env, 0, n::RTAS, &[BLOCK]);
    let first = BLOCK + 12 + 4 * inputs.len() as u64;
    let results = (0..outputs as u64).map(|i| env.word(first + 4 * i).cast_signed());
    let results = results.collect();
    assert_eq!(env.word(first + 4 * outputs as u64), 0x5555_5555);
    (gpr[3].cast_signed(), after, results)
}

#[test]
fn the_services_that_are_served_are_those_of_the_table() {
    let page = include_str!("../../../../docs/papr.md");
    for (name, token) in TOKENS {
        let row = std::format!("| `{name}` | {token:#x} |");
        assert!(page.contains(&row), "{row}");
    }
    let rows = page.lines().filter(|line| line.contains("| 0x20")).count();
    assert_eq!(rows, TOKENS.len());
}

#[test]
fn events_are_told_once_the_last_of_each_connector() {
    use crate::{Action, HOT_PLUG_SOURCE, HotPlug, Kind, Servers, Source};
    const BUFFER: u32 = 0x800;
    let env = Fake::new();
    let mut config = platform(1).config().clone();
    config.sources.push(Source {
        number: HOT_PLUG_SOURCE,
        kind: Kind::Edge,
    });
    let platform = Platform::new(config);
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    assert_eq!(
        rtas(&platform, &env, 0x200a, &[HOT_PLUG_SOURCE, 0, 5], 1).2,
        [0]
    );
    let check = |mask: u32, buffer: u32, room: u32| {
        let cells = [0x500, HOT_PLUG_SOURCE, mask, 0, buffer, room];
        rtas(&platform, &env, 0x200e, &cells, 1).2[0]
    };
    assert_eq!(check(0x1000_0000, BUFFER, 2048), 1, "nothing has happened");
    let event = |connector, action| HotPlug { connector, action };
    let told = platform.announce(event(0x4000_0000, Action::Add));
    assert_eq!(told, Servers::one(0));
    let _ = platform.announce(event(0x4001_0000, Action::Remove));
    let _ = platform.announce(event(0x4000_0000, Action::Remove));
    assert_eq!(check(0x4000_0000, BUFFER, 2048), 1, "others were asked for");
    let beyond = u32::try_from(MEMORY).unwrap() - 8;
    assert_eq!(check(0x1000_0000, beyond, 2048), -3, "the log has no place");
    let mut told = Vec::new();
    loop {
        let accepted = call(&platform, &env, 0, n::XIRR, &[]).0[4];
        if accepted & 0xff_ffff == 0 {
            break;
        }
        call(&platform, &env, 0, n::EOI, &[accepted]);
        assert_eq!(check(0x1000_0000, BUFFER, 2048), 0);
        assert_eq!(env.word(BUFFER.into()), 0x0634_60e5);
        assert_eq!(env.word(u64::from(BUFFER) + 4), 104);
        assert_eq!(env.word(u64::from(BUFFER) + 20), 0x4942_4d00);
        // Sections follow one another to the end, as Linux walks them.
        let (mut at, mut ids) = (24, Vec::new());
        while at < 112 {
            let head = env.word(u64::from(BUFFER) + at);
            ids.push(head >> 16);
            at += u64::from(head & 0xffff);
        }
        assert_eq!((at, ids), (112, [0x5048, 0x5548, 0x4850].into()));
        let [what, connector] = [104, 108].map(|at| env.word(u64::from(BUFFER) + at));
        told.push((what, connector));
    }
    assert_eq!(
        told,
        [(0x0302_0200, 0x4001_0000), (0x0302_0200, 0x4000_0000)]
    );
    assert_eq!(check(0x1000_0000, BUFFER, 2048), 1);
    let _ = platform.announce(event(1, Action::Add));
    platform.reset();
    assert_eq!(
        check(0x1000_0000, BUFFER, 2048),
        1,
        "a platform at reset has no event"
    );
}

#[test]
fn a_service_that_is_not_there_answers_minus_three() {
    let (platform, env) = (platform(1), Fake::new());
    assert_eq!(
        rtas(&platform, &env, 0x2016, &[], 1),
        (-4, After::Resume, [-3].into())
    );
    assert_eq!(
        rtas(&platform, &env, 0xffff_ffff, &[1], 2).2,
        [-3, 0x5555_5555]
    );
    // With room for no status there is none.
    assert_eq!(rtas(&platform, &env, 0x2016, &[], 0).2, []);
    // Known ones with other numbers of cells.
    assert_eq!(
        rtas(&platform, &env, 0x2003, &[], 1),
        (0, After::Resume, [-3].into())
    );
    assert_eq!(
        rtas(&platform, &env, 0x2001, &[], 2),
        (0, After::Resume, [-3, 0x5555_5555].into())
    );
}

#[test]
fn a_block_that_lies_does_nothing() {
    let (platform, env) = (platform(1), Fake::new());
    let put = |at: u64, cells: &[u32]| {
        let block: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        env.put(at, &block);
    };
    let end = MEMORY as u64;
    let refused = |at: u64| {
        let (gpr, after) = call(&platform, &env, 0, n::RTAS, &[at]);
        assert_eq!(
            (gpr[3].cast_signed(), after),
            (-4, After::Resume),
            "{at:#x}"
        );
    };
    put(BLOCK, &[0x2003, 17, 1]);
    refused(BLOCK);
    put(BLOCK, &[0x2003, 2, 17]);
    refused(BLOCK);
    put(BLOCK, &[0x2003, u32::MAX, u32::MAX]);
    refused(BLOCK);
    // Its result would be behind the end of memory.
    put(end - 20, &[0x2003, 2, 1]);
    refused(end - 20);
    put(end - 24, &[0x2003, 2, 1]);
    let (_, after) = call(&platform, &env, 0, n::RTAS, &[end - 24]);
    assert_eq!(after, After::End(End::PowerOff));
    for at in [end, end - 4, u64::MAX, u64::MAX - 11] {
        refused(at);
    }
}

#[test]
fn a_guest_ends_its_vm() {
    let (platform, env) = (platform(1), Fake::new());
    let end = |token, inputs: &[u32]| rtas(&platform, &env, token, inputs, 1).1;
    assert_eq!(end(0x2003, &[0, 0]), After::End(End::PowerOff));
    assert_eq!(end(0x2004, &[]), After::End(End::Reboot));
    env.put(MEMORY as u64 - 4, b"oops");
    let After::End(End::Terminated(text)) = end(0x201f, &[count(MEMORY) - 4]) else {
        panic!("it goes on");
    };
    assert_eq!(text.to_string(), "oops");
    let After::End(End::Terminated(text)) = end(0x201f, &[u32::MAX]) else {
        panic!("it goes on");
    };
    assert_eq!(text.to_string(), "");
}

#[test]
fn vcpus_start_and_stop() {
    let (platform, env) = (platform(2), Fake::new());
    let state = |cpu| rtas(&platform, &env, 0x2005, &[cpu], 2).2;
    assert_eq!((state(0), state(1)), ([0, 2].into(), [0, 0].into()));
    assert_eq!(state(2)[0], -3);
    let start = |cpu, entry| rtas(&platform, &env, 0x2006, &[cpu, entry, 77], 1).2;
    assert_eq!(start(2, 0), [-3]);
    assert_eq!(start(0, 0), [-1], "it runs");
    assert_eq!(start(1, 0x100), [0]);
    assert_eq!(env.take_kicked(), [1]);
    assert_eq!(start(1, 0x200), [-1]);
    assert_eq!(platform.take_start(1), Some((0x100, 77)));
    assert_eq!(platform.take_start(1), None);
    assert_eq!(state(1), [0, 2]);
    let mut gpr = [0; 32];
    env.put(0x800, &[0, 0, 0x20, 7, 0, 0, 0, 0, 0, 0, 0, 1]);
    (gpr[3], gpr[4]) = (n::RTAS, 0x800);
    assert_eq!(platform.hypercall(1, &mut gpr, 0, &env), After::Off);
    assert!(!platform.runs(1));
    assert_eq!(state(1), [0, 0]);
    assert_eq!(start(1, 0x300), [0]);
    platform.reset();
    assert_eq!(platform.take_start(1), None);
}

#[test]
fn the_time_is_the_platforms_until_it_is_set() {
    let (platform, env) = (platform(1), Fake::new());
    let get = || rtas(&platform, &env, 0x2001, &[], 8).2;
    assert_eq!(get(), [0, 2026, 2, 28, 12, 0, 0, 5]);
    let set = |date: [u32; 7]| rtas(&platform, &env, 0x2002, &date, 1).2[0];
    assert_eq!(set([2024, 2, 29, 23, 59, 59, 0]), 0);
    assert_eq!(get(), [0, 2024, 2, 29, 23, 59, 59, 5]);
    for wrong in [
        [2023, 2, 29, 0, 0, 0, 0],
        [2024, 13, 1, 0, 0, 0, 0],
        [2024, 0, 1, 0, 0, 0, 0],
        [2024, 1, 1, 24, 0, 0, 0],
        [u32::MAX; 7],
        [1969, 12, 31, 0, 0, 0, 0],
    ] {
        assert_eq!(set(wrong), -3, "{wrong:?}");
    }
    platform.reset();
    assert_eq!(get()[1], 2024, "a clock outlives a reboot");
    let clockless = Fake {
        has_clock: false,
        ..Fake::new()
    };
    assert_eq!(rtas(&platform, &clockless, 0x2001, &[], 8).2[0], -1);
}

#[test]
fn parameters_of_the_system_are_cut_to_the_buffer() {
    let (platform, env) = (platform(3), Fake::new());
    let get = |number, at, room| rtas(&platform, &env, 0x2008, &[number, at, room], 1).2[0];
    assert_eq!(get(20, 0x2000, 4000), 0);
    let text = b"MaxEntCap=3,DesMem=0,DesProcs=3,MaxPlatProcs=3\0";
    let memory = env.memory.borrow().clone();
    assert_eq!(memory[0x2001] as usize, text.len());
    assert_eq!(memory[0x2002..0x2002 + text.len()], *text);
    assert_eq!(get(20, 0x3000, 6), 0);
    assert_eq!(env.word(0x3004), u32::from_be_bytes(*b"xE\0\0"));
    assert_eq!(get(42, 0x3000, 3), 0);
    assert_eq!(env.word(0x3000), 0x0001_0061);
    assert_eq!(get(20, 0x3000, 1), -9999);
    assert_eq!(get(20, u32::MAX, 100), -9999);
    assert_eq!(get(20, count(MEMORY) - 4, 100), -9999);
    assert_eq!(get(1, 0x3000, 100), -3);
    let set = |number| rtas(&platform, &env, 0x2009, &[number, 0], 1).2[0];
    assert_eq!((set(20), set(42), set(1)), (-9002, -9002, -3));
}

#[test]
fn sources_are_asked_and_told() {
    let (platform, env) = (platform(2), Fake::new());
    let service = |token, inputs: &[u32], outputs| rtas(&platform, &env, token, inputs, outputs).2;
    assert_eq!(service(0x200a, &[EDGE, 1, 5], 1), [0]);
    assert_eq!(service(0x200b, &[EDGE], 3), [0, 1, 5]);
    assert_eq!(service(0x200c, &[EDGE], 1), [0]);
    assert_eq!(service(0x200b, &[EDGE], 3), [0, 1, 0xff]);
    assert_eq!(service(0x200d, &[EDGE], 1), [0]);
    assert_eq!(service(0x200b, &[EDGE], 3), [0, 1, 5]);
    for token in [0x200c, 0x200d] {
        assert_eq!(service(token, &[1], 1), [-3]);
    }
    assert_eq!(service(0x200b, &[1], 3)[0], -3);
    assert_eq!(service(0x200e, &[0; 6], 1), [1]);
    assert_eq!(service(0x200f, &[0; 4], 1), [1]);
    assert_eq!(service(0x2000, &[0x141], 1), [0]);
    assert_eq!(*env.printed.borrow(), b"A");
}

proptest! {
    #[test]
    fn dates_and_seconds_are_the_same(seconds in 0_i64..253_402_300_800) {
        let date = Date::from_seconds(seconds, 0);
        assert_eq!(date.seconds(), seconds);
        assert_eq!(Date::from_cells(date.cells()), Some(date));
    }

    #[test]
    fn no_cells_panic(cells: [u32; 7]) {
        let _ = Date::from_cells(cells);
    }
}

#[test]
fn known_moments() {
    assert_eq!(Date::from_seconds(0, 0).cells(), [1970, 1, 1, 0, 0, 0, 0]);
    assert_eq!(
        Date::from_seconds(951_782_400, 0).cells(),
        [2000, 2, 29, 0, 0, 0, 0]
    );
    assert_eq!(
        Date::from_seconds(4_107_542_399, 0).cells(),
        [2100, 2, 28, 23, 59, 59, 0]
    );
    assert_eq!(Date::from_seconds(i64::MIN, 0).year, 1970);
    assert_eq!(NOON.seconds(), 1_772_280_000);
}

#[test]
fn a_machine_s_clock_may_give_nanoseconds_that_are_none() {
    use crate::Date;
    let cells = |nanosecond| [2026, 11, 30, 0, 21, 13, nanosecond];
    let whole = Date::from_cells(cells(0));
    assert!(whole.is_some());
    assert_eq!(Date::of_machine(cells(1_733_227_448)), whole);
    assert_eq!(
        Date::of_machine(cells(999_999_999)),
        Date::from_cells(cells(999_999_999))
    );
    assert_eq!(Date::of_machine([2026, 13, 30, 0, 21, 13, 0]), None);
}
