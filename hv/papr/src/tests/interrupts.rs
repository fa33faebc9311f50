//! XICS.

use proptest::prelude::{any, prop, proptest};

use super::{EDGE, Fake, LEVEL, SAMPLED, call, platform, status};
use crate::hcall::number as n;
use crate::xics::Xics;
use crate::{Kind, Platform, Servers, Source};

/// Routes a source by its service.
fn route(platform: &Platform, env: &Fake, source: u32, server: u32, priority: u32) -> i32 {
    let cells = [0x200a, 3, 1, source, server, priority];
    let block: std::vec::Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
    env.put(0x200, &block);
    assert_eq!(status(platform, env, n::RTAS, &[0x200]), 0);
    env.word(0x200 + 24).cast_signed()
}

fn accept(platform: &Platform, env: &Fake, vcpu: usize) -> u64 {
    call(platform, env, vcpu, n::XIRR, &[]).0[4]
}

#[test]
fn nothing_comes_through_until_it_is_let() {
    let (platform, env) = (platform(2), Fake::new());
    assert_eq!(status(&platform, &env, n::IPI, &[1, 4]), 0);
    assert!(!platform.has_interrupt(1));
    assert_eq!(env.take_kicked(), []);
    call(&platform, &env, 1, n::CPPR, &[5]);
    assert!(platform.has_interrupt(1), "4 is more favoured than 5");
    call(&platform, &env, 1, n::CPPR, &[4]);
    assert!(!platform.has_interrupt(1));
}

#[test]
fn an_interprocessor_interrupt_lasts_until_its_request_is_taken_back() {
    let (platform, env) = (platform(2), Fake::new());
    call(&platform, &env, 1, n::CPPR, &[0xff]);
    assert_eq!(status(&platform, &env, n::IPI, &[1, 4]), 0);
    assert_eq!(env.take_kicked(), [1]);
    let (gpr, _) = call(&platform, &env, 0, n::IPOLL, &[1]);
    assert_eq!(gpr[3..6], [0, 0xff00_0002, 4]);
    assert_eq!(accept(&platform, &env, 1), 0xff00_0002);
    assert_eq!(accept(&platform, &env, 1), 0x0400_0000, "nothing above 4");
    call(&platform, &env, 1, n::EOI, &[0xff00_0002]);
    assert!(platform.has_interrupt(1), "its request still stands");
    call(&platform, &env, 1, n::IPI, &[1, 0xff]);
    assert!(!platform.has_interrupt(1));
    assert_eq!(status(&platform, &env, n::IPI, &[2, 0]), -4);
    assert_eq!(status(&platform, &env, n::IPOLL, &[2]), -4);
    assert_eq!(status(&platform, &env, n::EOI, &[0xff00_9999]), -4);
}

#[test]
fn an_edge_is_one_interrupt() {
    let (platform, env) = (platform(2), Fake::new());
    call(&platform, &env, 1, n::CPPR, &[0xff]);
    assert!(platform.signal(EDGE).unwrap().is_empty(), "it is masked");
    assert_eq!(route(&platform, &env, EDGE, 1, 5), 0);
    assert_eq!(
        env.take_kicked(),
        [1],
        "an event that came before is not lost"
    );
    assert_eq!(accept(&platform, &env, 1), 0xff00_1100);
    // One that comes while the first is being served.
    assert!(platform.signal(EDGE).unwrap().is_empty());
    call(&platform, &env, 1, n::EOI, &[0xff00_1100]);
    assert_eq!(accept(&platform, &env, 1), 0xff00_1100);
    call(&platform, &env, 1, n::EOI, &[0xff00_1100]);
    assert_eq!(accept(&platform, &env, 1), 0xff00_0000);
}

#[test]
fn a_level_interrupts_until_it_is_low() {
    let (platform, env) = (platform(1), Fake::new());
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    assert_eq!(route(&platform, &env, LEVEL, 0, 5), 0);
    assert_eq!(platform.raise(LEVEL), Ok(Servers::one(0)));
    assert_eq!(accept(&platform, &env, 0), 0xff00_1200);
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    assert!(!platform.has_interrupt(0), "not before it is ended");
    call(&platform, &env, 0, n::EOI, &[0xff00_1200]);
    assert!(platform.has_interrupt(0));
    platform.lower(LEVEL).unwrap();
    assert!(!platform.has_interrupt(0));
}

#[test]
fn a_sampled_line_is_low_at_its_end_and_looked_at_again() {
    let (platform, env) = (platform(1), Fake::new());
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    assert_eq!(route(&platform, &env, SAMPLED, 0, 5), 0);
    assert_eq!(platform.raise(SAMPLED), Ok(Servers::one(0)));
    assert_eq!(accept(&platform, &env, 0), 0xff00_1204);
    // More of the same adds nothing.
    assert_eq!(platform.raise(SAMPLED), Ok(Servers::NONE));
    assert!(env.ended.borrow().is_empty());
    call(&platform, &env, 0, n::EOI, &[0xff00_1204]);
    assert_eq!(env.ended.take(), [SAMPLED]);
    assert!(!platform.has_interrupt(0), "until it is raised again");
    assert_eq!(platform.raise(SAMPLED), Ok(Servers::one(0)));
    // One that is masked while it is served comes when it is let through.
    assert_eq!(accept(&platform, &env, 0), 0xff00_1204);
    platform.xics.lock().mask(SAMPLED).unwrap();
    call(&platform, &env, 0, n::EOI, &[0xff00_1204]);
    assert_eq!(env.ended.take(), [SAMPLED]);
    assert_eq!(platform.raise(SAMPLED), Ok(Servers::NONE));
    assert_eq!(platform.xics.lock().unmask(SAMPLED), Ok(Servers::one(0)));
    // An end that nobody is owed asks for a look, too: the line is no less up for it.
    call(&platform, &env, 0, n::EOI, &[0xff00_1204]);
    assert_eq!(env.ended.take(), [SAMPLED]);
    // Ends of others do not.
    for other in [EDGE, LEVEL, 2, 0] {
        call(
            &platform,
            &env,
            0,
            n::EOI,
            &[0xff00_0000 | u64::from(other)],
        );
    }
    assert_eq!(status(&platform, &env, n::EOI, &[0xff00_9999]), -4);
    assert!(env.ended.borrow().is_empty());
}

#[test]
fn the_most_favoured_comes_first_and_is_not_outranked_by_its_equals() {
    let (platform, env) = (platform(1), Fake::new());
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    route(&platform, &env, EDGE, 0, 5);
    route(&platform, &env, LEVEL, 0, 3);
    let _ = platform.signal(EDGE);
    assert_eq!(accept(&platform, &env, 0), 0xff00_1100);
    let _ = platform.signal(EDGE);
    assert!(!platform.has_interrupt(0));
    let _ = platform.raise(LEVEL);
    assert_eq!(accept(&platform, &env, 0), 0x0500_1200);
}

#[test]
fn masks_keep_the_priority_and_a_moved_interrupt_moves() {
    let (platform, env) = (platform(2), Fake::new());
    call(&platform, &env, 0, n::CPPR, &[0xff]);
    call(&platform, &env, 1, n::CPPR, &[0xff]);
    route(&platform, &env, EDGE, 0, 5);
    let xics = &platform.xics;
    xics.lock().mask(EDGE).unwrap();
    let _ = platform.signal(EDGE);
    assert!(!platform.has_interrupt(0));
    assert_eq!(xics.lock().routed(EDGE), Some((0, 0xff)));
    xics.lock().mask(EDGE).unwrap();
    assert_eq!(xics.lock().unmask(EDGE), Ok(Servers::one(0)));
    assert_eq!(xics.lock().routed(EDGE), Some((0, 5)));
    assert_eq!(route(&platform, &env, EDGE, 1, 5), 0);
    assert!(!platform.has_interrupt(0) && platform.has_interrupt(1));
    assert_eq!(route(&platform, &env, EDGE, 2, 5), -3);
    assert_eq!(route(&platform, &env, EDGE, 0, 0x100), -3);
    assert_eq!(route(&platform, &env, 0x1101, 0, 5), -3);
    assert!(platform.signal(0x1101).is_err() && platform.raise(2).is_err());
}

#[test]
fn sources_are_found_whatever_lies_between_their_numbers() {
    let numbers = [0x30_u32, 5, 0x31, 3, 0x33, 0x32, 0x1000].map(|number| Source {
        number,
        kind: Kind::Edge,
    });
    let mut xics = Xics::new(1, &numbers);
    for number in 0..0x1100 {
        let known = numbers.iter().any(|source| source.number == number);
        assert_eq!(xics.route(number, 0, 5).is_some(), known, "{number:#x}");
        assert_eq!(xics.signal(number).is_ok(), known, "{number:#x}");
        assert_eq!(
            xics.end(0, number).is_ok(),
            known || [0, 2].contains(&number)
        );
    }
    for number in [0x00ff_ffff, 0xffff_ffff] {
        assert!(xics.signal(number).is_err());
    }
    xics.set_priority(0, 0xff);
    let mut accepted = numbers.map(|_| {
        let accepted = xics.accept(0) & 0xff_ffff;
        xics.set_priority(0, 0xff);
        accepted
    });
    assert!(accepted.is_sorted(), "equals come by their numbers");
    accepted.sort_unstable();
    let mut all = numbers.map(|source| source.number);
    all.sort_unstable();
    assert_eq!(accepted, all);
    assert!(!xics.is_pending(0));
}

proptest! {
    /// Of many lines, some behind the first 64, what is shown and accepted is what a look at each of them finds.
    #[test]
    fn what_is_pending_is_what_a_look_at_every_line_finds(
        steps in prop::collection::vec((0_u8..8, 0_u32..70, any::<u8>()), 0..300)
    ) {
        const SERVERS: usize = 2;
        let kinds = [Kind::Edge, Kind::Level, Kind::Sampled];
        let sources: std::vec::Vec<Source> = (0..70_u32)
            .map(|at| Source { number: 0x100 + at + at / 60, kind: kinds[at as usize % 3] })
            .collect();
        let mut xics = Xics::new(SERVERS, &sources);
        for (step, at, value) in steps {
            let number = sources[at as usize].number;
            match step {
                0 | 1 => { let _ = xics.route(number, u32::from(value) % 2, value | 1); }
                2 => { let _ = xics.signal(number); }
                3 => { let _ = xics.set_line(number, value & 1 != 0); }
                4 => { let _ = xics.mask(number); }
                5 => { let _ = xics.unmask(number); }
                6 => { let _ = xics.end(usize::from(value) % SERVERS, 0xff00_0000 | number); }
                _ => {
                    let server = usize::from(value) % SERVERS;
                    let wanted = xics.looked_for(server);
                    assert_eq!(xics.accept(server) & 0xff_ffff, wanted);
                }
            }
            for server in 0..SERVERS {
                assert_eq!(xics.is_pending(server), xics.looked_for(server) != 0);
            }
        }
    }

    /// The calls that are served quickly do what they do when they are not, and say what is due afterwards. What
    /// would have been told to look by them has been told before.
    #[test]
    fn a_quick_call_is_the_call(steps in prop::collection::vec((0_u8..8, 0_usize..2, 0_usize..4, any::<u8>()), 0..200)) {
        let (quick, slow, env) = (platform(2), platform(2), Fake::new());
        let mut looked = [false; 2];
        for (step, vcpu, which, value) in steps {
            let source = [EDGE, LEVEL, SAMPLED, 0x9999][which];
            let told = |platform: &Platform| match step {
                0 => platform.signal(source),
                1 => platform.raise(source),
                2 => Ok(platform.xics.lock().route(source, u32::try_from(vcpu).unwrap(), value).unwrap_or(Servers::NONE)),
                3 => Ok(platform.xics.lock().set_request(vcpu, value).unwrap_or(Servers::NONE)),
                _ => Ok(Servers::NONE),
            };
            if step < 4 {
                let (wanted, told) = (told(&slow), told(&quick));
                assert_eq!(told, wanted);
                for vcpu in told.unwrap_or(Servers::NONE).iter() { looked[vcpu] = true; }
            } else {
                let number = [n::XIRR, n::CPPR, n::EOI, n::IPOLL][usize::from(step) - 4];
                let accepted = u64::from(value) << 24 | u64::from(if value & 1 == 0 { source } else { 2 });
                let mut gpr = [7; 32];
                (gpr[3], gpr[4]) = (number, if number == n::EOI { accepted } else { value.into() });
                let mut other = gpr;
                let before = gpr;
                let _ = slow.hypercall(vcpu, &mut other, 0, &env);
                env.take_kicked();
                match quick.present(vcpu, &mut gpr) {
                    Some(due) => {
                        assert_eq!(due, quick.has_interrupt(vcpu));
                        looked[vcpu] = due;
                    }
                    None => {
                        assert_eq!(gpr, before, "nothing has happened");
                        assert!(number == n::IPOLL || number == n::EOI && value & 1 == 0 && source != EDGE);
                        let _ = quick.hypercall(vcpu, &mut gpr, 0, &env);
                        for vcpu in env.take_kicked() { looked[vcpu] = true; }
                        // Before it is entered.
                        looked[vcpu] |= quick.has_interrupt(vcpu);
                    }
                }
                assert_eq!(gpr, other);
            }
            for (vcpu, looked) in looked.iter().enumerate() {
                assert_eq!(quick.has_interrupt(vcpu), slow.has_interrupt(vcpu));
                assert!(*looked || !quick.has_interrupt(vcpu), "{vcpu} has not been told");
            }
        }
    }

    /// A controller below that keeps a line off from when it is taken until its interrupt ends: the line is
    /// never forgotten while it is up, and never storms.
    #[test]
    fn a_line_that_is_up_is_due_or_on_its_way(steps in prop::collection::vec((0_u8..8, any::<u8>()), 0..200)) {
        let sources = [Source { number: SAMPLED, kind: Kind::Sampled }];
        let mut xics = Xics::new(1, &sources);
        let (mut up, mut off, mut last) = (false, false, 0xff_u32 << 24);
        let _ = xics.route(SAMPLED, 0, 5);
        for (step, value) in steps {
            match step {
                0 => up = value & 1 != 0,
                1 => { let _ = xics.route(SAMPLED, 0, if value & 1 == 0 { 0xff } else { 5 }); }
                2 => xics.set_priority(0, value),
                3 => { let _ = xics.mask(SAMPLED); }
                4 => { let _ = xics.unmask(SAMPLED); }
                5 => { let accepted = xics.accept(0); if accepted & 0xff_ffff != 0 { last = accepted; } }
                _ => if xics.end(0, last).unwrap().sampled.is_some() { off = false; },
            }
            // The machine's controller: one interrupt, and off.
            if up && !off {
                off = true;
                let _ = xics.set_line(SAMPLED, true);
            }
        }
        // Whatever it was in the middle of, it ends it, lets it through, and finds it.
        if xics.end(0, 0xff << 24 | SAMPLED).unwrap().sampled.is_some() { off = false; }
        if up && !off { let _ = xics.set_line(SAMPLED, true); }
        let _ = xics.route(SAMPLED, 0, 5);
        xics.set_priority(0, 0xff);
        assert_eq!(xics.accept(0) & 0xff_ffff, if up { SAMPLED } else { 0 });
    }

    /// Whatever happens to it, an edge is accepted at most as often as it was signalled, and what was
    /// signalled last is not lost.
    #[test]
    fn no_event_is_lost_or_made_up(steps in prop::collection::vec((0_u8..6, 0_usize..3, any::<u8>()), 0..200)) {
        let sources = [Source { number: EDGE, kind: Kind::Edge }];
        let mut xics = Xics::new(3, &sources);
        let (mut due, mut last) = (false, [0xff_u32 << 24; 3]);
        for (step, server, value) in steps {
            match step {
                0 => { let _ = xics.signal(EDGE); due = true; }
                1 => { let _ = xics.route(EDGE, u32::try_from(server).unwrap(), value); }
                2 => xics.set_priority(server, value),
                3 => { let _ = xics.set_request(server, value); }
                4 => {
                    let promised = xics.is_pending(server);
                    let accepted = xics.accept(server);
                    assert_eq!(promised, accepted & 0xff_ffff != 0);
                    if accepted & 0xff_ffff == EDGE {
                        assert!(core::mem::take(&mut due), "nobody has signalled");
                        last[server] = accepted;
                    }
                }
                _ => { let _ = xics.end(server, last[server]); }
            }
        }
        let _ = xics.route(EDGE, 0, 1);
        xics.set_request(0, 0xff).unwrap();
        xics.set_priority(0, 0xff);
        assert_eq!(xics.accept(0) & 0xff_ffff, if due { EDGE } else { 0 });
    }
}
