//! Errors and recoveries, as Linux goes about them, and any other way.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const BUID: u64 = 0x0800_0000_2000_0001;
const BUS: u8 = 2;
const PE: u32 = 0x2_0001;
const DEVICE: u32 = 0x2_0800;

/// A PE with hardware that does what it is told.
struct Rig {
    pe: Pe,
    registers: bool,
    dma: bool,
    in_reset: bool,
    resets: Vec<Reset>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits::USUAL)
    }

    fn with(limits: Limits) -> Self {
        Self {
            pe: Pe::new(BUID, BUS, limits),
            registers: true,
            dma: true,
            in_reset: false,
            resets: Vec::new(),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Stop => (self.registers, self.dma) = (false, false),
            Effect::AllowRegisters => self.registers = true,
            Effect::AllowDma => self.dma = true,
            Effect::AssertReset(kind) => {
                (self.registers, self.dma, self.in_reset) = (false, false, true);
                self.resets.push(kind);
            }
            Effect::DeassertReset => {
                assert!(self.in_reset);
                (self.registers, self.dma, self.in_reset) = (true, true, false);
            }
        }
        // What the guest is told is what the hardware does.
        let state = self.pe.state();
        assert_eq!(state.allows_registers(), self.registers, "{state:?}");
        assert_eq!(state.allows_dma(), self.dma, "{state:?}");
        if state == State::Reset {
            assert!(self.in_reset);
        }
    }

    fn freeze(&mut self, now: u64) -> Frozen {
        let (frozen, effect) = self.pe.freeze(Cause::Injected, now);
        self.carry_out(effect);
        frozen
    }

    fn call(&mut self, service: Service, rest: &[u32], results: usize) -> (i32, Vec<u32>) {
        self.call_at(PE, service, rest, results)
    }

    fn call_at(
        &mut self,
        address: u32,
        service: Service,
        rest: &[u32],
        results: usize,
    ) -> (i32, Vec<u32>) {
        let [high, low] = [0x0800_0000, 0x2000_0001];
        let mut arguments = Vec::from([address, high, low]);
        arguments.extend(rest);
        let exists = |address| address == DEVICE;
        let outcome = self.pe.service(service, &arguments, results, exists);
        self.carry_out(outcome.effect);
        (outcome.status, outcome.values().to_vec())
    }

    fn state(&mut self) -> u32 {
        let (status, values) = self.call(Service::ReadState, &[], 4);
        assert_eq!((status, values.len()), (0, 3));
        assert_eq!(values[1], 1, "error handling is there");
        values[0]
    }

    fn option(&mut self, option: u32) -> i32 {
        self.call(Service::SetOption, &[option], 1).0
    }

    /// False once all is well.
    fn restart(&mut self) -> bool {
        let effect = self.pe.restart();
        self.carry_out(effect);
        effect != Effect::None
    }

    /// The status; with a log where that is 0, and only there.
    fn detail(&mut self, severity: u32) -> i32 {
        let arguments = [PE, 0x0800_0000, 0x2000_0001, 0, 0, 0x5000, 0x800, severity];
        let outcome = self
            .pe
            .service(Service::ErrorDetail, &arguments, 1, |_| false);
        self.carry_out(outcome.effect);
        assert_eq!(outcome.has_log(), outcome.status == 0);
        assert_eq!(log_buffer(&arguments), Some((0x5000, 0x800)));
        outcome.status
    }

    fn reset(&mut self, kind: u32) -> i32 {
        self.call(Service::SetReset, &[kind], 1).0
    }
}

#[test]
fn linux_finds_its_pe_and_turns_error_handling_on() {
    let mut rig = Rig::new();
    let info = |rig: &mut Rig, address, function| {
        rig.call_at(address, Service::AddressInfo, &[function], 2)
    };
    assert_eq!(info(&mut rig, DEVICE, 1), (0, [2].into()));
    assert_eq!(info(&mut rig, DEVICE, 0), (0, [PE].into()));
    assert_eq!(info(&mut rig, PE, 0), (0, [PE].into()));
    assert_eq!(info(&mut rig, DEVICE, 2).0, -3);
    assert_eq!(info(&mut rig, DEVICE + 0x800, 0).0, -3, "no such device");
    assert_eq!(info(&mut rig, 0x3_0800, 0).0, -3, "another bus");
    assert!(!rig.pe.is_enabled());
    assert_eq!(rig.call_at(DEVICE, Service::SetOption, &[1], 1).0, 0);
    assert!(rig.pe.is_enabled());
    assert_eq!(rig.state(), 0);
}

#[test]
fn a_driver_that_can_recovers_without_a_reset() {
    let mut rig = Rig::new();
    assert_eq!(rig.freeze(1), Frozen::Now);
    assert_eq!(rig.state(), 2);
    assert_eq!(rig.option(3), -7, "registers come first");
    assert_eq!(rig.option(2), 0);
    assert_eq!(rig.state(), 4);
    assert_eq!(rig.detail(1), 0);
    assert_eq!(rig.call(Service::Configure, &[], 1).0, 0);
    assert_eq!(rig.option(3), 0);
    assert_eq!(rig.state(), 0);
    assert!(rig.resets.is_empty());
}

#[test]
fn any_other_recovers_by_a_reset() {
    for (kind, reset) in [(1, Reset::Hot), (3, Reset::Fundamental)] {
        let mut rig = Rig::new();
        assert_eq!(rig.freeze(1), Frozen::Now);
        assert_eq!(rig.reset(kind), 0);
        assert_eq!(rig.state(), 1);
        assert_eq!(rig.option(2), -7);
        assert_eq!(rig.call(Service::Configure, &[], 1).0, 0);
        assert_eq!(rig.reset(0), 0);
        assert_eq!(rig.state(), 0);
        assert_eq!(rig.call(Service::Configure, &[], 1).0, 0);
        assert_eq!(rig.resets, [reset]);
        // Ending a reset that is none changes nothing.
        assert_eq!(rig.reset(0), 0);
        assert_eq!(rig.state(), 0);
    }
}

#[test]
fn what_a_call_comes_to_follows_from_the_state() {
    // [LoPAR ibm,set-slot-reset, PE State Control]: for each state the statuses of registers back, DMA back, the end
    // of a reset, a hot and a fundamental one; and the state that each leads to.
    type Comes = [(i32, u32); 5];
    let states: [(&[u32], Comes); 4] = [
        (&[], [(-3, 0), (-3, 0), (0, 0), (0, 1), (0, 1)]),
        (&[1], [(-7, 1), (-7, 1), (0, 0), (0, 1), (0, 1)]),
        (&[9], [(0, 4), (-7, 2), (-7, 2), (0, 1), (0, 1)]),
        (&[9, 2], [(-3, 4), (0, 0), (-3, 4), (0, 1), (0, 1)]),
    ];
    for (way, outcomes) in states {
        for (what, (status, state)) in outcomes.into_iter().enumerate() {
            let mut rig = Rig::new();
            for step in way {
                match step {
                    9 => assert_eq!(rig.freeze(1), Frozen::Now),
                    2 => assert_eq!(rig.option(2), 0),
                    kind => assert_eq!(rig.reset(*kind), 0),
                }
            }
            let before = rig.resets.len();
            let found = match what {
                0 => rig.option(2),
                1 => rig.option(3),
                2 => rig.reset(0),
                3 => rig.reset(1),
                _ => rig.reset(3),
            };
            assert_eq!((found, rig.state()), (status, state), "{way:?} {what}");
            let begun = usize::from(what > 2 && way != [1]);
            assert_eq!(rig.resets.len(), before + begun, "one reset at a time");
            assert_eq!(rig.call(Service::Configure, &[], 1).0, 0);
            assert_eq!(rig.state(), state);
        }
    }
}

#[test]
fn an_error_while_dma_is_stopped_stops_everything_again() {
    let mut rig = Rig::new();
    rig.freeze(1);
    rig.option(2);
    assert_eq!(rig.freeze(2), Frozen::Now);
    assert_eq!(rig.state(), 2);
    assert_eq!(rig.freeze(3), Frozen::Already);
    rig.reset(1);
    assert_eq!(
        rig.freeze(4),
        Frozen::Already,
        "in reset nothing gets through"
    );
    assert_eq!(rig.pe.freezes(), 2);
}

#[test]
fn too_many_errors_end_it() {
    let mut rig = Rig::new();
    for n in 0..7 {
        assert_eq!(rig.freeze(n * 60), Frozen::Now);
        rig.reset(1);
        rig.reset(0);
    }
    assert_eq!(rig.freeze(7 * 60), Frozen::TooMany);
    // With no time to wait: Linux takes this as the end.
    let (status, values) = rig.call(Service::ReadState, &[], 5);
    assert_eq!((status, values), (0, [5, 1, 0, 0].into()));
    for option in [2, 3] {
        assert_eq!(rig.option(option), -7);
    }
    for kind in [0, 1, 3] {
        assert_eq!(rig.reset(kind), -7);
    }
    assert_eq!(rig.freeze(1 << 40), Frozen::Already);
    // A VM that starts again has it again, and its errors are not forgotten.
    for _ in 0..2 {
        let effect = rig.pe.restart();
        rig.carry_out(effect);
    }
    assert_eq!(rig.state(), 0);
    assert_eq!(rig.freeze(8 * 60), Frozen::TooMany);
}

#[test]
fn errors_far_apart_do_not() {
    let mut rig = Rig::new();
    for n in 0..100 {
        // Seven in each hour.
        assert_eq!(rig.freeze(n * 515), Frozen::Now, "{n}");
        rig.reset(1);
        rig.reset(0);
    }
    let mut rig = Rig::with(Limits {
        freezes: 1,
        seconds: 1,
    });
    assert_eq!(
        rig.freeze(5),
        Frozen::TooMany,
        "a limit of one is the first"
    );
}

#[test]
fn hardware_that_does_not_follow_is_the_end() {
    let mut rig = Rig::new();
    rig.freeze(1);
    let effect = rig.pe.fail();
    rig.carry_out(effect);
    assert_eq!(rig.state(), 5);
    // Whoever starts again: it is the hardware that is gone.
    assert_eq!(rig.pe.restart(), Effect::None);
    assert_eq!(rig.state(), 5);
}

#[test]
fn there_is_a_log_as_long_as_it_is_stopped() {
    let mut rig = Rig::new();
    assert_eq!(rig.detail(1), 1);
    rig.freeze(1);
    for _ in 0..2 {
        assert_eq!((rig.detail(1), rig.state()), (0, 2));
    }
    rig.option(2);
    assert_eq!((rig.detail(1), rig.state()), (0, 4));
    rig.reset(1);
    assert_eq!(rig.detail(1), 1);
    rig.reset(0);
    assert_eq!(rig.detail(1), 1);
    for severity in [0, 3, u32::MAX] {
        rig.freeze(1);
        assert_eq!(rig.detail(severity), -3);
    }
}

#[test]
fn what_the_guest_calls_permanent_is_gone() {
    for way in [&[][..], &[9], &[9, 2], &[1]] {
        let mut rig = Rig::new();
        for step in way {
            match step {
                9 => assert_eq!(rig.freeze(1), Frozen::Now),
                2 => assert_eq!(rig.option(2), 0),
                kind => assert_eq!(rig.reset(*kind), 0),
            }
        }
        let status = i32::from(!way.contains(&9));
        assert_eq!((rig.detail(2), rig.state()), (status, 5), "{way:?}");
        // From then on there is one, however often it is asked for.
        assert_eq!((rig.detail(1), rig.detail(2), rig.state()), (0, 0, 5));
        assert_eq!((rig.reset(1), rig.option(2), rig.state()), (-7, -7, 5));
        while rig.restart() {}
        assert_eq!((rig.detail(1), rig.state()), (1, 0));
    }
}

#[test]
fn a_log_says_what_stopped_it() {
    let mut pe = Pe::new(BUID, BUS, Limits::USUAL);
    let at = 0x2000_8000_1234;
    let _ = pe.freeze(Cause::Registers { at }, 1);
    let log = pe.log();
    // The fixed part: what follows it is as long as it says.
    assert_eq!(log[..8], [6, 0x94, 0x20, 224, 0, 0, 0, 168]);
    assert_eq!(log.len(), 8 + 168);
    // Sections follow one another, and are three.
    let mut place = 24;
    for name in [b"PH", b"UH", b"PS"] {
        assert_eq!(&log[place..place + 2], name);
        place += usize::from(u16::from_be_bytes([log[place + 2], log[place + 3]]));
    }
    assert_eq!(place, log.len());
    assert_eq!(log[24 + 0x1b], 3);
    assert_eq!(log[72 + 8..72 + 11], [0x30, 0, 0x40]);
    let word = |place: usize| u32::from_be_bytes(*log[place..].first_chunk().unwrap());
    assert_eq!(
        [0x10, 0x14, 0x18, 0x1c].map(|n| word(96 + n)),
        [2, 0x2000, 0x8000_1234, PE]
    );
    assert_eq!(&log[96 + 0x30..], b"EEH REGISTERS                   ");
    let _ = pe.fail();
    assert_eq!(pe.log()[72 + 10], 0x48);
}

#[test]
fn a_vm_that_restarts_finds_all_well() {
    for steps in 0..4 {
        let mut rig = Rig::new();
        rig.option(1);
        if steps > 0 {
            rig.freeze(1);
        }
        if steps == 2 {
            rig.option(2);
        }
        if steps == 3 {
            rig.reset(3);
        }
        for _ in 0..2 {
            let effect = rig.pe.restart();
            rig.carry_out(effect);
        }
        assert_eq!(rig.state(), 0);
        assert!(!rig.pe.is_enabled());
    }
}

#[test]
fn another_pe_is_not_meant() {
    let mut rig = Rig::new();
    rig.freeze(1);
    for (address, high, low) in [
        (PE, 0x0800_0000, 0x2000_0002),
        (PE, 0, 0),
        (0x3_0001, 0x0800_0000, 0x2000_0001),
        (DEVICE + 4, 0x0800_0000, 0x2000_0001),
        (u32::MAX, 0x0800_0000, 0x2000_0001),
    ] {
        for service in Service::ALL {
            for rest in [&[][..], &[1], &[0, 0, 0, 0, 1]] {
                let mut arguments = Vec::from([address, high, low]);
                arguments.extend(rest);
                for results in 0..6 {
                    let outcome = rig.pe.service(service, &arguments, results, |_| false);
                    assert_eq!((outcome.status, outcome.effect), (-3, Effect::None));
                }
            }
        }
    }
    assert_eq!(rig.state(), 2);
}

proptest! {
    /// Whatever the guest calls, and whenever errors come: what it is told is what the hardware does
    /// (checked at every step), and nothing brings back what is gone.
    #[test]
    fn no_calls_get_past_an_error(
        steps in proptest::collection::vec(
            (0..8_usize, proptest::collection::vec(0..5_u32, 0..6), 0..7_usize, any::<bool>()),
            0..200,
        ),
    ) {
        let mut rig = Rig::new();
        let mut gone = false;
        for (now, (which, rest, results, exact)) in (0..).zip(steps) {
            match Service::ALL.get(which) {
                Some(service) => {
                    let cells = match service {
                        Service::SetOption | Service::AddressInfo | Service::SetReset => 1,
                        Service::ReadState | Service::Configure => 0,
                        Service::ErrorDetail => 5,
                    };
                    let mut rest = rest;
                    if exact {
                        rest.resize(cells, 1);
                    }
                    let (status, values) = rig.call(*service, &rest, results);
                    prop_assert!(values.is_empty() || values.len() + 1 == results);
                    prop_assert!((-3..=1).contains(&status) || status == -7);
                }
                None => {
                    rig.freeze(now * 100);
                }
            }
            let is_gone = rig.pe.state() == State::Gone;
            prop_assert!(is_gone || !gone);
            gone = is_gone;
        }
    }
}

#[test]
fn the_page_lists_what_is_served() {
    let page = include_str!("../../../docs/tce.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let token = cells.next()?.strip_prefix("0x202")?;
        Some((name, 0x2020 | u32::from_str_radix(token, 16).ok()?))
    });
    let ours: Vec<(&str, u32)> = rows.filter(|(_, token)| *token <= 0x2025).collect();
    let served = Service::ALL.map(|service| (service.name(), service.token()));
    assert_eq!(ours, served);
}
