//! A message or a timer straight into a list register: when, and that the guest cannot tell it from one that
//! went the long way.

use std::cell::RefCell;
use std::sync::Arc;

use bulkhead_vgic::its::{DeviceEvents, GuestMemory, ItsConfig, Message, NotRam, Outcome, Vits};
use bulkhead_vgic::{Affinity, Config, Kicks, Level, Vgic, Width};
use proptest::prelude::{ProptestConfig, any, proptest};
use types::Ipa;

use crate::machine::{EoiMode, Machine, SGI_FRAME, SPURIOUS, TIMER};

const RAM: u64 = 0x4000_0000;
/// The configuration table, in RAM that begins with a queue of 64 KiB.
const TABLE: u64 = 0x2_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const VALID: u64 = 1 << 63;
const DEVICE: u32 = 8;
const EVENTS: u32 = 10;
const SPIS: usize = 32;

/// RAM of the guest.
#[derive(Debug)]
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.0.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotRam> {
        let start = at.bits().checked_sub(RAM).ok_or(NotRam { at })? as usize;
        let bytes = self.0.borrow();
        let from = bytes.get(start..start + into.len()).ok_or(NotRam { at })?;
        into.copy_from_slice(from);
        Ok(())
    }
}

/// Which way messages and timers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Into a list register where that is all there is to do.
    Short,
    /// As the short one, but the list register of a message is not written: what the comparison is to notice.
    LostMessage,
    /// The same with that of a timer.
    LostTimer,
    /// By a flush, always.
    Long,
}

/// A machine whose guest has an ITS: event n of the device is LPI 8192 + n at vCPU 0, of level n.
struct World {
    machine: Machine,
    vits: Arc<Vits>,
    ram: Ram,
    tail: u64,
    way: Way,
    /// How many messages went the short way.
    short: usize,
    /// How many timers did.
    short_timers: usize,
    /// The hypervisor is told when the timer's line falls.
    falls: bool,
    /// What each vCPU has acknowledged and not ended.
    running: Vec<Vec<u32>>,
}

impl World {
    fn new(vcpus: u8, list_registers: usize, way: Way) -> Self {
        let devices = [DeviceEvents {
            device: DEVICE,
            events: EVENTS,
        }];
        let config = ItsConfig {
            vcpus: vcpus.into(),
            devices: &devices,
        };
        let vits = Arc::new(Vits::new(&config).unwrap());
        let affinities: Vec<_> = (0..vcpus).map(Affinity::of_vcpu).collect();
        let mut machine = Machine::new(vcpus, SPIS, list_registers);
        let config = Config {
            affinities: &affinities,
            spis: SPIS,
            list_registers,
            hardware_ppis: 1 << TIMER,
            a3v: true,
        };
        machine.vgic = Vgic::new(&config).unwrap().with_lpis(vits.clone());
        machine.enable(SPIS);
        let mut world = Self {
            machine,
            vits,
            ram: Ram(RefCell::new(vec![0; 0x3_0000])),
            tail: 0,
            way,
            short: 0,
            short_timers: 0,
            falls: true,
            running: vec![Vec::new(); vcpus.into()],
        };
        for vcpu in 0..usize::from(vcpus) {
            world.lpis(vcpu, 1);
            // No two interrupts are of one level, so that there is one order to take them in.
            world
                .machine
                .write_private(vcpu, vcpu, SGI_FRAME + 0x400, 0x6868_6868);
            let timer = SGI_FRAME + 0x400 + u64::from(TIMER & !3);
            world.machine.write_private(vcpu, vcpu, timer, 0x6060_6060);
        }
        for (spi, priority) in [(32, 0x70), (33, 0xe8)] {
            world
                .machine
                .write_at(0, 0x400 + spi, Width::Byte, priority);
        }
        for (offset, value) in [
            (0x100, VALID | RAM),
            (0x108, VALID | RAM),
            (0x80, VALID | RAM | 15),
        ] {
            world.its(offset, value);
        }
        world.its(0, 1);
        for vcpu in 0..u64::from(vcpus) {
            world.send([9, 0, VALID | vcpu << 16 | vcpu, 0]);
        }
        world.send([8 | u64::from(DEVICE) << 32, 4, VALID | RAM, 0]);
        for event in 0..EVENTS {
            world
                .ram
                .put(TABLE + u64::from(event), &[level(event, 0) | 1]);
            world.map(event, 0);
        }
        assert_eq!(world.vits.faults(), (0, None));
        world
    }

    fn after(&mut self, outcome: Outcome) {
        let _ = self.machine.vgic.post_lpis_to(outcome.post());
        self.machine.settle();
        while self.vits.has_work() {
            let outcome = self.vits.run(&self.ram);
            let _ = self.machine.vgic.post_lpis_to(outcome.post());
            self.machine.settle();
        }
    }

    fn its(&mut self, offset: u64, value: u64) {
        // `GITS_CTLR` is the only one of 32 bits.
        let width = if offset == 0 {
            Width::Word
        } else {
            Width::Double
        };
        let outcome = self.vits.write(&self.ram, offset, width, value);
        self.after(outcome);
    }

    fn send(&mut self, command: [u64; 4]) {
        for (word, at) in command.iter().zip((self.tail..).step_by(8)) {
            self.ram.put(at, &word.to_le_bytes());
        }
        self.tail = (self.tail + 32) % QUEUE_BYTES;
        self.its(0x88, self.tail);
    }

    fn on_event(&mut self, opcode: u64, event: u32) {
        self.send([opcode | u64::from(DEVICE) << 32, event.into(), 0, 0]);
    }

    fn map(&mut self, event: u32, vcpu: u64) {
        let pair = u64::from(event) | u64::from(8192 + event) << 32;
        self.send([10 | u64::from(DEVICE) << 32, pair, vcpu, 0]);
    }

    fn move_to(&mut self, event: u32, vcpu: u64) {
        self.send([1 | u64::from(DEVICE) << 32, event.into(), vcpu, 0]);
    }

    /// The configuration table says so, and the ITS is told.
    fn configure(&mut self, event: u32, config: u8) {
        self.ram.put(TABLE + u64::from(event), &[config]);
        self.on_event(12, event);
    }

    /// `GICR_CTLR.EnableLPIs`.
    fn lpis(&mut self, vcpu: usize, enable: u64) {
        let _ =
            self.machine
                .vgic
                .write_redistributor(vcpu, 0x70, Width::Double, (RAM + TABLE) | 13);
        self.machine.write_private(vcpu, vcpu, 0, enable);
        let outcome = self.vits.run(&self.ram);
        self.after(outcome);
    }

    /// A physical LPI on the core of `vcpu`.
    fn message(&mut self, vcpu: usize, event: u32) {
        let was = self.machine.refills;
        if self.way == Way::Long || !self.deliver(vcpu, event) {
            let told = if event & 1 == 0 {
                self.vits.signal(DEVICE, event)
            } else {
                self.vits.send(self.vits.message(DEVICE, event))
            };
            let _ = self.machine.vgic.post_lpis_to(told);
        } else {
            self.short += 1;
        }
        self.machine.settle();
        assert!(self.way == Way::Long || self.machine.refills >= was);
    }

    /// Whether a message went the short way.
    fn deliver(&mut self, vcpu: usize, event: u32) -> bool {
        let message = self.vits.message(DEVICE, event);
        let core = &mut self.machine.cores[vcpu];
        let empty = core.ended();
        let vgic = &self.machine.vgic;
        let Some(index) = vgic.deliver(&self.vits, message, vcpu, &mut core.image, empty) else {
            return false;
        };
        if self.way != Way::LostMessage {
            core.write_one(index);
        }
        true
    }

    /// The physical timer interrupt fires on the core of a vCPU.
    fn timer(&mut self, vcpu: usize) {
        if self.way == Way::Long || !self.deliver_timer(vcpu) {
            self.machine.timer(vcpu);
        } else {
            self.short_timers += 1;
        }
    }

    /// Whether a timer went the short way.
    fn deliver_timer(&mut self, vcpu: usize) -> bool {
        let core = &mut self.machine.cores[vcpu];
        assert_eq!(core.physical & 1 << TIMER, 0, "it cannot, it is active");
        let empty = core.ended();
        let vgic = &self.machine.vgic;
        let Some(index) = vgic.deliver_ppi(vcpu, TIMER, &mut core.image, empty) else {
            return false;
        };
        core.physical |= 1 << TIMER;
        if self.way != Way::LostTimer {
            core.write_one(index);
        }
        true
    }

    /// The guest enables its timer, disables it, makes it pending, or not pending.
    fn private(&mut self, vcpu: usize, which: u8) {
        const REGISTERS: [u64; 4] = [0x100, 0x180, 0x200, 0x280];
        let offset = REGISTERS[usize::from(which >> 2) % REGISTERS.len()];
        for offset in [offset, 0x100] {
            self.machine
                .write_private(vcpu, vcpu, SGI_FRAME + offset, 1 << TIMER);
            // It stays off now and then, not for long.
            if which & 3 == 0 {
                break;
            }
        }
    }

    fn acknowledge(&mut self, vcpu: usize) -> u32 {
        let intid = self.machine.acknowledge(vcpu);
        if intid != SPURIOUS {
            self.running[vcpu].push(intid);
        }
        intid
    }

    fn end(&mut self, vcpu: usize) {
        if let Some(intid) = self.running[vcpu].pop() {
            self.machine.end(vcpu, intid);
            if self.machine.cores[vcpu].eoi_mode == EoiMode::Drop {
                self.machine.deactivate(vcpu, intid);
            }
            // The line of the timer falls when it is handled.
            if intid == TIMER && self.falls {
                self.machine.ppi(vcpu, TIMER, Level::Low);
            }
        }
    }

    /// Takes and ends everything, in order.
    fn drain(&mut self, vcpu: usize) -> Vec<u32> {
        while !self.running[vcpu].is_empty() {
            self.end(vcpu);
        }
        let mut all = Vec::new();
        loop {
            match self.acknowledge(vcpu) {
                SPURIOUS => return all,
                intid => all.push(intid),
            }
            self.end(vcpu);
        }
    }

    /// Does one step of a sequence; what the guest can see of it.
    fn step(&mut self, [what, a, b, c]: [u8; 4]) -> u32 {
        let vcpus = self.machine.cores.len();
        let vcpu = usize::from(a) % vcpus;
        let event = u32::from(b) % EVENTS;
        let to = u64::from(c / 4) % vcpus as u64;
        match what % 24 {
            0..=3 => self.message(if c < 64 { vcpu } else { 0 }, event),
            4..=6 => return self.acknowledge(vcpu),
            7..=9 => self.end(vcpu),
            10..=14 => {
                let intid = self.acknowledge(vcpu);
                self.end(vcpu);
                return intid;
            }
            15 if self.machine.cores[vcpu].physical & 1 << TIMER == 0 => self.timer(vcpu),
            15 => {}
            16 => {
                let _ = self.machine.sgi(vcpu, 1 << to | u64::from(b & 1) << 24);
            }
            17 => {
                let level = if c & 1 == 0 { Level::High } else { Level::Low };
                self.machine.line(32 + u32::from(b & 1), level);
            }
            18 => self.configure(event, level(event, c & 2) | u8::from(c > 31)),
            19 => self.move_to(event, to),
            20 => match c % 16 {
                0 => self.on_event(3, event),
                1 => self.on_event(4, event),
                2 => self.on_event(15, event),
                // To map what is mapped again is unpredictable, and no guest does it.
                _ => {
                    self.on_event(15, event);
                    self.map(event, to);
                }
            },
            21 => self.machine.cores[vcpu].pmr = if b < 224 { 0xff } else { c },
            22 => match b % 8 {
                0 | 1 => self.machine.write(vcpu, 0, if c % 4 == 0 { 0 } else { 2 }),
                2 | 3 => self.lpis(vcpu, (c % 4 != 0).into()),
                4 => self.falls = c & 1 == 0,
                5 => self.private(vcpu, c),
                _ => self.machine.sync(vcpu),
            },
            _ => {
                let mode = [EoiMode::DropAndDeactivate, EoiMode::Drop][usize::from(c & 1)];
                if self.running[vcpu].is_empty() {
                    self.machine.cores[vcpu].eoi_mode = mode;
                }
            }
        }
        // A sync is followed by a flush before the guest goes on.
        self.machine.settle();
        0
    }
}

/// An event's own levels: one that it has at first, one that it may be given.
fn level(event: u32, second: u8) -> u8 {
    (event as u8 + if second == 0 { 0 } else { 16 }) << 3
}

/// Both ways, step by step, then all that is left. `None` if the guest sees a difference, or how many
/// messages and timers went the short way.
fn compare(
    vcpus: u8,
    list_registers: usize,
    way: Way,
    steps: &[[u8; 4]],
) -> Option<(usize, usize)> {
    let mut one = World::new(vcpus, list_registers, way);
    let mut other = World::new(vcpus, list_registers, Way::Long);
    for step in steps {
        if one.step(*step) != other.step(*step) {
            return None;
        }
    }
    for vcpu in 0..vcpus.into() {
        for world in [&mut one, &mut other] {
            world.machine.cores[vcpu].pmr = 0xff;
            for spi in [32, 33] {
                world.machine.line(spi, Level::Low);
            }
            world.machine.write(vcpu, 0, 2);
        }
        if one.drain(vcpu) != other.drain(vcpu) {
            return None;
        }
        if one.machine.cores[vcpu].physical != other.machine.cores[vcpu].physical {
            return None;
        }
    }
    Some((one.short, one.short_timers))
}

/// The same steps on every machine.
fn drawn(count: usize) -> Vec<[u8; 4]> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [_, _, a, b, c, d, ..] = state.to_le_bytes();
        [a, b, c, d]
    };
    (0..count).map(draw).collect()
}

#[test]
fn a_message_for_the_vcpu_on_the_core_is_one_list_register_and_no_flush() {
    let mut world = World::new(2, 4, Way::Short);
    let before = world.machine.refills;
    for event in [3, 0] {
        assert!(world.deliver(0, event));
    }
    // The more urgent first; each once.
    assert_eq!(world.acknowledge(0), 8192);
    world.end(0);
    assert_eq!(world.acknowledge(0), 8195);
    world.end(0);
    assert_eq!(world.acknowledge(0), SPURIOUS);
    assert_eq!(world.machine.refills, before);
}

#[test]
fn a_list_register_whose_lpi_is_over_is_used_again_for_ever() {
    let mut world = World::new(1, 2, Way::Short);
    let before = world.machine.refills;
    for round in 0..100 {
        assert!(world.deliver(0, round % EVENTS));
        assert_eq!(world.acknowledge(0), 8192 + round % EVENTS);
        world.end(0);
    }
    assert_eq!(world.machine.refills, before);
}

#[test]
fn what_a_timer_left_in_a_list_register_is_taken_out_first() {
    let mut world = World::new(1, 1, Way::Short);
    world.machine.timer(0);
    assert_eq!(world.machine.acknowledge(0), TIMER);
    world.machine.end(0, TIMER);
    assert!(!world.deliver(0, 0), "the end of the timer would be lost");
    world.machine.ppi(0, TIMER, Level::Low);
    world.message(0, 0);
    assert_eq!(world.drain(0), [8192]);
    world.machine.timer(0);
    assert_eq!(world.drain(0), [TIMER]);
}

#[test]
fn the_long_way_is_left_to_what_it_is_for() {
    // For another vCPU; an event that is not mapped; no such device.
    let mut world = World::new(2, 2, Way::Short);
    assert!(!world.deliver(1, 0));
    assert!(!world.deliver(0, EVENTS));
    let message = world.vits.message(DEVICE + 1, 0);
    assert_eq!(message, Message::NONE);
    let image = &mut world.machine.cores[0].image;
    for vcpu in [0, 7, usize::MAX] {
        let at = (world.machine.vgic).deliver(&world.vits, message, vcpu, image, u32::MAX);
        assert_eq!(at, None);
    }
    // Disabled.
    world.configure(0, 0);
    assert!(!world.deliver(0, 0));
    world.configure(0, 1);
    // The ITS is off.
    world.its(0, 0);
    assert!(!world.deliver(0, 0));
    world.its(0, 1);
    // The vCPU takes no LPIs.
    world.lpis(0, 0);
    assert!(!world.deliver(0, 0));
    world.lpis(0, 1);
    // Group 1 is off.
    world.machine.write(0, 0, 0);
    assert!(!world.deliver(0, 0));
    world.machine.write(0, 0, 2);
    // Something waits for a look.
    let _ = world.machine.vgic.request_sync(0);
    assert!(!world.deliver(0, 0));
    world.machine.settle();
    // It is in a list register, pending; then active.
    assert!(world.deliver(0, 0));
    assert!(!world.deliver(0, 0));
    assert_eq!(world.acknowledge(0), 8192);
    assert!(!world.deliver(0, 0));
    // No list register is free, and then something waits.
    assert!(world.deliver(0, 1));
    assert!(!world.deliver(0, 2));
    world.message(0, 2);
    world.end(0);
    assert!(!world.deliver(0, 3));
    assert_eq!(world.drain(0), [8193, 8194]);
    assert!(world.deliver(0, 3));
}

#[test]
fn a_timer_goes_into_the_list_register_that_it_had_and_into_a_free_one() {
    let mut world = World::new(1, 2, Way::Short);
    world.falls = false;
    let before = world.machine.refills;
    for _ in 0..100 {
        assert!(world.deliver_timer(0));
        assert!(world.deliver(0, 0));
        assert_eq!(world.drain(0), [8192, TIMER]);
        assert_eq!(world.machine.cores[0].physical, 0);
    }
    assert_eq!(world.machine.refills, before);
    assert_eq!(world.machine.vgic.physical_active(0), 1 << TIMER);
    world.machine.sync(0);
    assert_eq!(world.machine.vgic.physical_active(0), 0);
}

#[test]
fn a_timer_goes_the_long_way_where_there_is_more_to_do() {
    let mut world = World::new(1, 1, Way::Short);
    let image = &mut world.machine.cores[0].image;
    // No timer; an SGI; no such vCPU.
    for (vcpu, intid) in [(0, 26), (0, 30), (0, 0), (0, 32), (0, 8192), (1, TIMER)] {
        let at = (world.machine.vgic).deliver_ppi(vcpu, intid, image, u32::MAX);
        assert_eq!(at, None);
    }
    let timer = 1 << TIMER;
    let set = |world: &mut World, offset| {
        let frame = SGI_FRAME + offset;
        world.machine.write_private(0, 0, frame, timer);
    };
    // Disabled; of group 0; group 1 is off.
    set(&mut world, 0x180);
    assert!(!world.deliver_timer(0));
    set(&mut world, 0x100);
    world.machine.write_private(0, 0, SGI_FRAME + 0x80, !timer);
    assert!(!world.deliver_timer(0));
    world
        .machine
        .write_private(0, 0, SGI_FRAME + 0x80, u64::MAX >> 32);
    world.machine.write(0, 0, 0);
    assert!(!world.deliver_timer(0));
    world.machine.write(0, 0, 2);
    // Something waits for a look.
    let _ = world.machine.vgic.request_sync(0);
    assert!(!world.deliver_timer(0));
    world.machine.settle();
    // Software made it pending; then it is active.
    set(&mut world, 0x200);
    assert!(!world.deliver_timer(0));
    assert_eq!(world.machine.acknowledge(0), TIMER);
    assert!(!world.deliver_timer(0));
    world.machine.end(0, TIMER);
    // A list register that held it as something else will do.
    assert!(world.deliver_timer(0));
    assert_eq!(world.drain(0), [TIMER]);
    world.machine.sync(0);
    world.machine.settle();
    // No list register is free.
    assert!(world.deliver(0, 0));
    assert!(!world.deliver_timer(0));
    world.timer(0);
    assert_eq!(world.drain(0), [8192, TIMER]);
}

#[test]
fn a_message_that_was_looked_up_goes_nowhere_once_its_event_is_gone() {
    let mut world = World::new(1, 4, Way::Short);
    let message = world.vits.message(DEVICE, 9);
    assert_eq!(Message::from_bits(message.bits()), message);
    assert_eq!(world.vits.send(message), Kicks::of(0));
    world.on_event(4, 9);
    // Two events, of ten: the others' translations are gone. Then all ten again, and the one.
    for (bits, comes) in [(0, false), (4, false), (4, true)] {
        world.send([8 | u64::from(DEVICE) << 32, bits, VALID | RAM, 0]);
        if comes {
            world.map(9, 0);
        }
        assert_eq!(world.vits.message(DEVICE, 9), message);
        assert_eq!(world.deliver(0, 9), comes);
        if comes {
            assert_eq!(world.drain(0), [8192 + 9]);
        }
        assert_eq!(!world.vits.send(message).is_empty(), comes);
    }
    // Of what is not there nothing is looked up.
    assert_eq!(world.vits.message(DEVICE, EVENTS), Message::NONE);
    assert_eq!(world.vits.send(Message::NONE), Kicks::NONE);
}

#[test]
fn what_changes_behind_a_message_in_a_list_register_still_counts() {
    let mut world = World::new(2, 4, Way::Short);
    // Moved.
    assert!(world.deliver(0, 0));
    world.move_to(0, 1);
    assert_eq!(world.drain(0), []);
    assert_eq!(world.drain(1), [8192]);
    // Disabled, and enabled again.
    assert!(world.deliver(0, 1));
    world.configure(1, level(1, 0));
    assert_eq!(world.drain(0), []);
    world.configure(1, level(1, 0) | 1);
    assert_eq!(world.drain(0), [8193]);
    // Made less urgent than another.
    assert!(world.deliver(0, 1) && world.deliver(0, 2));
    world.configure(1, level(1, 2) | 1);
    assert_eq!(world.drain(0), [8194, 8193]);
    // Cleared; discarded.
    assert!(world.deliver(0, 1) && world.deliver(0, 2) && world.deliver(0, 3));
    world.on_event(4, 1);
    world.on_event(15, 2);
    assert_eq!(world.drain(0), [8195]);
    // The vCPU leaves its core, and comes back.
    assert!(world.deliver(0, 3));
    world.machine.sync(0);
    world.machine.settle();
    assert_eq!(world.drain(0), [8195]);
}

#[test]
fn six_thousand_steps_look_the_same_and_a_lost_message_does_not() {
    let steps = drawn(6000);
    for registers in [1, 2, 4, 16] {
        let (short, timers) = compare(2, registers, Way::Short, &steps).expect("the ways differ");
        assert!(
            short > 10 * registers.min(4),
            "{short} messages of the short way"
        );
        assert!(timers > 10, "{timers} timers of the short way");
        for way in [Way::LostMessage, Way::LostTimer] {
            assert_eq!(compare(2, registers, way, &steps), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_guest_cannot_tell_the_ways_apart(
        vcpus in 1_u8..4,
        list_registers in 1_usize..6,
        steps in proptest::collection::vec(any::<[u8; 4]>(), 1..300),
    ) {
        assert!(compare(vcpus, list_registers, Way::Short, &steps).is_some());
    }
}
