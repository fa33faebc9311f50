//! Hypercalls.

use std::string::ToString;
use std::vec::Vec;

use super::{Fake, MEMORY, call, platform, status};
use crate::hcall::number as n;
use crate::{After, Ceded, Config, Environment, Platform, Text, Wake};

#[test]
fn the_calls_that_are_served_are_those_of_the_table() {
    let page = include_str!("../../../../docs/papr.md");
    let listed: Vec<u64> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `H_")?.split('|').nth(1))
        .map(|number| u64::from_str_radix(number.trim().trim_start_matches("0x"), 16).unwrap())
        .collect();
    assert_eq!(listed.len(), 27, "{listed:x?}");
    let env = Fake::new();
    for number in (0..0x500).step_by(4).chain((0xf000..0xf900).step_by(4)) {
        // Arguments that no call takes for good, so that none ends the VM.
        let (gpr, _) = call(&platform(1), &env, 0, number, &[u64::MAX - 7; 4]);
        let served = gpr[3].cast_signed() != -2;
        assert_eq!(
            served,
            listed.contains(&number) && number != n::HOME_NODE_ASSOCIATIVITY,
            "{number:#x} answers {}",
            gpr[3].cast_signed()
        );
    }
}

#[test]
fn a_call_from_problem_state_is_refused() {
    let mut gpr = [n::CEDE; 32];
    platform(1).refuse(&mut gpr);
    assert_eq!(gpr[3].cast_signed(), -3);
    assert_eq!(gpr[4], n::CEDE);
}

#[test]
fn a_terminal_takes_sixteen_characters_and_gives_as_many() {
    let (platform, env) = (platform(1), Fake::new());
    let put = |unit, length| {
        status(
            &platform,
            &env,
            n::PUT_TERM_CHAR,
            &[unit, length, 0x6162_6364_6566_6768, 0x696a_6b6c_6d6e_6f70],
        )
    };
    assert_eq!(put(0x7100_0000, 16), 0);
    assert_eq!(put(0, 3), 0);
    assert_eq!(put(0, 0), 0);
    assert_eq!(*env.printed.borrow(), b"abcdefghijklmnopabc");
    assert_eq!(put(0, 17), -4);
    assert_eq!(put(0, u64::MAX), -4);
    assert_eq!(put(1, 1), -4);
    assert_eq!(env.printed.borrow().len(), 19);

    env.typed.borrow_mut().extend(b"0123456789abcdefgh");
    let get = || call(&platform, &env, 0, n::GET_TERM_CHAR, &[0]).0;
    assert_eq!(
        get()[3..7],
        [0, 16, 0x3031_3233_3435_3637, 0x3839_6162_6364_6566]
    );
    assert_eq!(get()[3..7], [0, 2, 0x6768_0000_0000_0000, 0]);
    assert_eq!(get()[3..5], [0, 0]);
    assert_eq!(status(&platform, &env, n::GET_TERM_CHAR, &[5]), -4);
    assert_eq!(status(&platform, &env, n::VIO_SIGNAL, &[0, 0]), 0);
    assert_eq!(status(&platform, &env, n::VIO_SIGNAL, &[0, 1]), -4);
}

#[test]
fn a_guest_without_a_terminal_prints_nothing_and_is_typed_nothing() {
    let with_terminal = platform(1);
    let config = Config {
        terminal: None,
        ..with_terminal.config().clone()
    };
    let (platform, env) = (Platform::new(config), Fake::new());
    env.typed.borrow_mut().extend(b"typed");
    for unit in [0, 0x7100_0000] {
        let put = [unit, 1, 0x61 << 56, 0];
        assert_eq!(status(&platform, &env, n::PUT_TERM_CHAR, &put), -4);
        assert_eq!(status(&platform, &env, n::GET_TERM_CHAR, &[unit]), -4);
        assert_eq!(status(&platform, &env, n::VIO_SIGNAL, &[unit, 0]), -4);
        assert_eq!(status(&with_terminal, &env, n::VIO_SIGNAL, &[unit, 0]), 0);
    }
    assert!(env.printed.borrow().is_empty());
    assert_eq!(env.typed.borrow().len(), 5);
}

#[test]
fn modes_are_those_of_all_vcpus_and_wrong_ones_change_nothing() {
    let (platform, env) = (platform(2), Fake::new());
    let set = |arguments: [u64; 4]| status(&platform, &env, n::SET_MODE, &arguments);
    assert_eq!(set([1, 4, 0, 0]), 0);
    assert_eq!(set([3, 3, 0, 0]), 0);
    assert!(platform.has_little_endian_interrupts() && platform.has_alternate_location());
    assert_eq!(set([2, 4, 0, 0]), -256);
    assert_eq!(set([1, 3, 0, 0]), -256);
    assert_eq!(set([0, 4, 1, 0]), -56);
    assert_eq!(set([0, 4, 0, 1]), -57);
    assert_eq!(set([0, 1, 0, 0]), -55);
    assert_eq!(set([0, 2, 0, 0]), -55);
    assert!(platform.has_little_endian_interrupts() && platform.has_alternate_location());
    assert_eq!(set([0, 4, 0, 0]), 0);
    assert!(!platform.has_little_endian_interrupts());
}

#[test]
fn a_process_table_is_registered_replaced_and_taken_back() {
    let (platform, env) = (platform(1), Fake::new());
    let register = |arguments: [u64; 4]| status(&platform, &env, n::REGISTER_PROC_TBL, &arguments);
    assert_eq!(register([0x04, 0, 0, 0]), -4, "nothing is registered");
    assert_eq!(register([0x1d, 0x4000, 0, 2]), 0);
    assert_eq!(env.process_table.get(), 1 << 63 | 0x4000 | 2);
    assert_eq!(register([0x04, 0, 0, 0]), 0, "what is there is confirmed");
    for (arguments, answer) in [
        ([0x1d, 0x4001, 0, 2], -55),
        ([0x1d, 0, 0, 5], -55),
        ([0x1d, !0xfff, 0, 24], -55),
        ([0x1d, 0, 1, 0], -56),
        ([0x1d, 0, 0, 25], -57),
        // The first that is wrong.
        ([0x1d, 1, 1, 25], -55),
        ([0x1d, 0, 1, 25], -56),
        ([0x18, 0, 0, 0], -4),
        ([0x3d, 0, 0, 0], -4),
    ] {
        assert_eq!(register(arguments), answer, "{arguments:x?}");
    }
    assert_eq!(env.process_table.get(), 1 << 63 | 0x4000 | 2);
    assert_eq!(register([0x10, 0, 0, 0]), 0);
    assert_eq!(env.process_table.get(), 0);
}

#[test]
fn pages_are_cleared_and_copied() {
    let (platform, env) = (platform(1), Fake::new());
    let init = |flags, to, from| status(&platform, &env, n::PAGE_INIT, &[flags, to, from]);
    let (zero, copy, icache) = (1 << 15, 1 << 14, 1 << 13);
    env.put(0x1000, &[7; 4096]);
    assert_eq!(init(copy, 0x2000, 0x1000), 0);
    assert_eq!((env.word(0x2ffc), env.word(0x3000)), (0x0707_0707, 0));
    assert_eq!(env.code.get(), 0);
    assert_eq!(init(zero | icache, 0x1000, 0), 0);
    assert_eq!(env.word(0x1000), 0);
    assert_eq!(env.code.get(), 0x1000);
    for (flags, to, from) in [
        (1, 0, 0),
        (zero, 0x1001, 0),
        (zero, MEMORY as u64, 0),
        (zero, !0xfff, 0),
        (copy, 0, 0x10),
        (copy, 0, MEMORY as u64),
    ] {
        assert_eq!(init(flags, to, from), -4, "{flags:#x} {to:#x} {from:#x}");
    }
    assert_eq!(env.word(0x2000), 0x0707_0707);
}

#[test]
fn loads_and_stores_are_big_endian_and_aligned() {
    let (platform, env) = (platform(1), Fake::new());
    env.put(0x100, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let load = |size, at| {
        let (gpr, _) = call(&platform, &env, 0, n::LOGICAL_CI_LOAD, &[size, at]);
        (gpr[3].cast_signed(), gpr[4])
    };
    assert_eq!(load(1, 0x101), (0, 2));
    assert_eq!(load(2, 0x102), (0, 0x304));
    assert_eq!(load(4, 0x104), (0, 0x0506_0708));
    assert_eq!(load(8, 0x100), (0, 0x0102_0304_0506_0708));
    let end = MEMORY as u64;
    for (size, at) in [(2, 0x101), (3, 0), (0, 0), (16, 0), (8, end), (1, u64::MAX)] {
        assert_eq!(load(size, at).0, -4, "{size} {at:#x}");
        assert_eq!(
            status(&platform, &env, n::LOGICAL_CI_STORE, &[size, at, 0]),
            -4
        );
    }
    assert_eq!(
        status(&platform, &env, n::LOGICAL_CI_STORE, &[2, 0x104, 0x1_abcd]),
        0
    );
    assert_eq!(env.word(0x104), 0xabcd_0708);
}

/// A virtual processor area of 640 bytes.
fn area(env: &Fake, at: u64) {
    env.put(at + 4, &[2, 0x80]);
}

#[test]
fn areas_are_judged_and_given_back_in_order() {
    let (platform, env) = (platform(2), Fake::new());
    let register = |function: u64, cpu, at| {
        status(&platform, &env, n::REGISTER_VPA, &[function << 45, cpu, at])
    };
    area(&env, 0x1000);
    assert_eq!(register(2, 0, 0x3000), -4, "a log of no bytes");
    env.put(0x3004, &[0, 0, 0, 48]);
    assert_eq!(register(2, 0, 0x3000), -16, "a log without an area");
    assert_eq!(register(1, 0, 0), -1);
    assert_eq!(register(1, 0, 0x1001), -4, "not aligned");
    assert_eq!(register(1, 2, 0x1000), -4, "no such vCPU");
    area(&env, 0x1f80);
    assert_eq!(register(1, 0, 0x1f80), -4, "over the end of a page");
    assert_eq!(register(1, 0, 0x2000), -4, "too small");
    assert_eq!(register(1, 0, MEMORY as u64 - 2), -4);
    assert_eq!(register(1, 0, u64::MAX - 127), -4);
    assert_eq!(register(1, 0, 0x1000), 0);
    assert_eq!(env.word(0x1008) >> 16 & 0xff, 2, "it is shared");
    assert_eq!(register(2, 0, 0x3000), 0);
    assert_eq!(register(5, 0, 0), -16, "the log is still there");
    assert_eq!(register(6, 0, 0), 0);
    assert_eq!(register(3, 0, 0x3000), 0);
    assert_eq!(register(5, 0, 0), -16, "the shadow is still there");
    assert_eq!(register(7, 0, 0), 0);
    assert_eq!(register(5, 0, 0), 0);
    assert_eq!(register(4, 0, 0), -4);
    assert_eq!(register(0, 0, 0x1000), -4);
    for flag in [1, 1 << 44, 1 << 48, 1 << 63] {
        let flags = 1 << 45 | flag;
        let answer = status(&platform, &env, n::REGISTER_VPA, &[flags, 0, 0x1000]);
        assert_eq!(answer, -4, "{flags:#x}");
    }
}

#[test]
fn dispatches_are_counted_even_on_a_thread_and_odd_off_it() {
    let (platform, env) = (platform(1), Fake::new());
    platform.comes(0, &env);
    area(&env, 0x1000);
    assert_eq!(
        status(&platform, &env, n::REGISTER_VPA, &[1 << 45, 0, 0x1000]),
        0
    );
    let count = || env.word(0x1100);
    platform.goes(0, &env);
    assert_eq!(count(), 1);
    platform.comes(0, &env);
    assert_eq!(count(), 2);
    // A guest may write there what it likes.
    env.put(0x1100, &u32::MAX.to_be_bytes());
    platform.goes(0, &env);
    assert_eq!(count(), 1);
    platform.reset();
    platform.goes(0, &env);
    assert_eq!(count(), 1, "the area is forgotten");
}

#[test]
fn a_vcpu_confers_only_while_the_other_is_off_its_thread() {
    let (platform, env) = (platform(2), Fake::new());
    let confer = |server, count: u32| {
        let (gpr, after) = call(&platform, &env, 0, n::CONFER, &[server, count.into()]);
        (gpr[3].cast_signed(), after)
    };
    assert_eq!(confer(1, 0), (0, After::Yield), "nobody knows");
    assert_eq!(confer(u64::MAX, 0), (0, After::Yield));
    assert_eq!(confer(7, 0), (-4, After::Resume));
    area(&env, 0x1000);
    assert_eq!(
        status(&platform, &env, n::REGISTER_VPA, &[1 << 45, 1, 0x1000]),
        0
    );
    platform.goes(1, &env);
    assert_eq!(confer(1, 1), (0, After::Yield));
    assert_eq!(confer(1, 3), (0, After::Resume), "it has run meanwhile");
    platform.comes(1, &env);
    assert_eq!(confer(1, 2), (0, After::Resume), "it runs");
}

#[test]
fn a_prod_ends_a_wait_that_comes_after_it() {
    let (platform, env) = (platform(2), Fake::new());
    let cede = || call(&platform, &env, 1, n::CEDE, &[]).1;
    assert_eq!(cede(), After::Cede);
    assert_eq!(platform.wake(1), Wake::Stay);
    assert_eq!(status(&platform, &env, n::PROD, &[1]), 0);
    assert_eq!(env.take_kicked(), [1]);
    assert_eq!(platform.wake(1), Wake::Due);
    platform.woken(1);
    assert_eq!(cede(), After::Cede, "a prod is used up");
    assert_eq!(status(&platform, &env, n::PROD, &[1]), 0);
    assert_eq!(
        cede(),
        After::Unmask,
        "interrupts are let through all the same"
    );
    assert_eq!(status(&platform, &env, n::PROD, &[2]), -4);
}

/// `H_CEDE` of a vCPU that waits on its thread, with a count of dispatches at 0x1100.
#[test]
fn who_waits_on_its_thread_leaves_it_only_when_nothing_is_there() {
    let (platform, env) = (platform(2), Fake::new());
    area(&env, 0x1000);
    let vpa = [1 << 45, 0, 0x1000];
    assert_eq!(status(&platform, &env, n::REGISTER_VPA, &vpa), 0);
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    let cede = || {
        let mut gpr = [n::CEDE; 32];
        assert!(Platform::take_cede(&mut gpr));
        assert_eq!((gpr[3], gpr[4]), (0, n::CEDE));
        (platform.cede(0, &env), env.word(0x1100))
    };
    assert_eq!(cede(), (Ceded::Waits, 1));
    platform.resume(0, &env);
    assert_eq!(env.word(0x1100), 2);
    // A prod that came before, an interrupt, a system reset: it stays on its thread.
    assert_eq!(status(&platform, &env, n::PROD, &[0]), 0);
    assert_eq!(cede(), (Ceded::Due, 2));
    call(&platform, &env, 1, n::IPI, &[0, 4]);
    assert_eq!(cede(), (Ceded::Interrupt, 2));
    assert_eq!(cede(), (Ceded::Interrupt, 2), "it is still pending");
    call(&platform, &env, 1, n::IPI, &[0, 0xff]);
    assert_eq!(status(&platform, &env, n::SIGNAL_SYS_RESET, &[0]), 0);
    assert_eq!(cede(), (Ceded::Due, 2));
    assert!(platform.take_system_reset(0));
    // A prod that comes in the wait is used up with it.
    assert_eq!(cede(), (Ceded::Waits, 3));
    assert_eq!(status(&platform, &env, n::PROD, &[0]), 0);
    assert_eq!(platform.wake(0), Wake::Due);
    platform.resume(0, &env);
    assert_eq!(cede(), (Ceded::Waits, 5));
    let mut other = [n::EOI; 32];
    assert!(!Platform::take_cede(&mut other));
    assert_eq!(other, [n::EOI; 32], "nothing has happened");
}

#[test]
fn who_waited_on_its_thread_has_joined_no_more() {
    let (platform, env) = (platform(1), Fake::new());
    let confer = call(&platform, &env, 0, n::CONFER, &[0, 0]);
    assert_eq!(confer.1, After::Join);
    assert!(platform.has_joined(0));
    platform.resume(0, &env);
    assert!(!platform.has_joined(0));
}

#[test]
fn who_confers_to_itself_waits_for_a_prod() {
    let (platform, env) = (platform(2), Fake::new());
    let confer = |msr| {
        let mut gpr = [0; 32];
        gpr[3] = n::CONFER;
        let after = platform.hypercall(0, &mut gpr, msr, &env);
        (gpr[3], after)
    };
    // With interrupts off none of them wakes it, as after `H_JOIN`.
    assert_eq!(confer(0), (0, After::Join));
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    call(&platform, &env, 1, n::IPI, &[0, 4]);
    assert_eq!(platform.wake(0), Wake::Stay);
    assert_eq!(status(&platform, &env, n::PROD, &[0]), 0);
    assert_eq!(platform.wake(0), Wake::Due);
    platform.woken(0);
    // With interrupts on they do.
    assert_eq!(confer(1 << 15), (0, After::Cede));
    assert_eq!(platform.wake(0), Wake::Due);
    for msr in [0, 1 << 15] {
        assert_eq!(status(&platform, &env, n::PROD, &[0]), 0);
        assert_eq!(confer(msr), (0, After::Resume));
    }
    assert!(!platform.has_joined(0));
}

#[test]
fn the_last_to_join_goes_on_and_wakes_the_others() {
    let (platform, env) = (platform(2), Fake::new());
    env.put(0x100, &start_block(1, 0x4000));
    assert_eq!(status(&platform, &env, n::RTAS, &[0x100]), 0);
    assert_eq!(platform.take_start(1), Some((0x4000, 9)));
    let join = |vcpu, msr| {
        let mut gpr = [n::JOIN; 32];
        let after = platform.hypercall(vcpu, &mut gpr, msr, &env);
        (gpr[3].cast_signed(), after)
    };
    assert_eq!(join(0, 1 << 15), (-5, After::Resume), "interrupts are on");
    assert_eq!(join(0, 0), (0, After::Join));
    // Interrupts do not wake it.
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    call(&platform, &env, 1, n::IPI, &[0, 4]);
    assert!(platform.has_joined(0) && platform.has_interrupt(0));
    assert_eq!(platform.wake(0), Wake::Stay);
    assert_eq!(join(1, 0), (18, After::Resume));
    assert_eq!(call(&platform, &env, 1, n::PROD, &[0]).0[3], 0);
    assert_eq!(platform.wake(0), Wake::Due);
    platform.woken(0);
    assert!(!platform.has_joined(0));
}

/// `start-cpu` with r3 = 9.
fn start_block(cpu: u8, entry: u32) -> Vec<u8> {
    let cells = [0x2006, 3, 1, u32::from(cpu), entry, 9];
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

#[test]
fn a_system_reset_reaches_those_that_run() {
    let (platform, env) = (platform(3), Fake::new());
    env.put(0x100, &start_block(2, 0));
    assert_eq!(status(&platform, &env, n::RTAS, &[0x100]), 0);
    env.take_kicked();
    let reset = |target: i64| {
        let answer = status(
            &platform,
            &env,
            n::SIGNAL_SYS_RESET,
            &[target.cast_unsigned()],
        );
        let taken: Vec<_> = (0..3)
            .filter(|cpu| platform.take_system_reset(*cpu))
            .collect();
        assert_eq!(env.take_kicked(), taken);
        (answer, taken)
    };
    assert_eq!(reset(-1), (0, [0, 2].into()));
    assert_eq!(reset(-2), (0, [2].into()));
    assert_eq!(reset(2), (0, [2].into()));
    assert_eq!(reset(1), (0, [].into()), "it does not run");
    assert_eq!(reset(3), (-4, [].into()));
}

#[test]
fn small_questions_are_answered() {
    let (platform, env) = (platform(2), Fake::new());
    let ask = |number, arguments: &[u64]| call(&platform, &env, 0, number, arguments).0;
    assert_eq!(ask(n::RANDOM, &[])[3..5], [0, 4]);
    assert_eq!(ask(n::GET_CPU_CHARACTERISTICS, &[])[3..6], [0, 1, 2]);
    assert_eq!(ask(n::XIRR_X, &[])[3..6], [0, 0, 0x1234]);
    let node = ask(n::HOME_NODE_ASSOCIATIVITY, &[1, 1]);
    assert_eq!(node[3..7], [0, 0, 0, 0x1_ffff_ffff]);
    assert_eq!(node[7..10], [u64::MAX; 3]);
    assert_eq!(
        ask(n::HOME_NODE_ASSOCIATIVITY, &[1, 2])[3].cast_signed(),
        -55
    );
    assert_eq!(
        ask(n::HOME_NODE_ASSOCIATIVITY, &[2, 0])[3].cast_signed(),
        -2
    );
    let (gpr, after) = call(&platform, &env, 0, n::SET_SPRG0, &[77]);
    assert_eq!((gpr[3], after), (0, After::SetSprg0(77)));
    assert!(env.is_memory(0, MEMORY as u64) && !env.is_memory(1, MEMORY as u64));
}

#[test]
fn last_words_are_printable() {
    assert_eq!(Text::new(b"a\x1bb\0c").to_string(), "a?b");
    assert_eq!(Text::new(&[b'x'; 200]).to_string().len(), 80);
    assert_eq!(Text::new(&[0xff]).to_string(), "?");
}
