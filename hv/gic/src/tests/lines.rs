//! The distributor and redistributors against registers that do as the manual says, and stop where it says that anything
//! may happen.

use core::cell::{Cell, RefCell};

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use hal::Mmio;

use super::FakeClock;
use crate::{Distributor, Error, Redistributor, Trigger};

/// The registers of lines, as a distributor has them from 0 and a redistributor from 64 KiB.
#[derive(Debug, Default)]
struct Lines {
    /// Where the registers of lines begin.
    base: usize,
    typer: u32,
    control: Cell<u32>,
    /// Of the control register: the bit that says that a write is on its way, and for how many more reads it does.
    busy: u32,
    busy_for: Cell<u32>,
    /// How long the next writes take.
    slow: Cell<u32>,
    waker: Cell<u32>,
    /// Whether there is a second state that has the waker for itself.
    hides_waker: bool,
    enabled: RefCell<BTreeSet<u32>>,
    active: RefCell<BTreeSet<u32>>,
    edge: RefCell<BTreeSet<u32>>,
    group_1: RefCell<BTreeSet<u32>>,
    priorities: RefCell<BTreeMap<u32, u8>>,
    routes: RefCell<BTreeMap<u32, u64>>,
    writes: Cell<usize>,
}

const GROUPS: u32 = 3;
const ARE: u32 = 1 << 4;

/// The bits that are set.
fn bits(word: usize, value: u32) -> impl Iterator<Item = u32> {
    let first = 32 * u32::try_from(word).unwrap();
    (0..32)
        .filter(move |bit| value >> bit & 1 != 0)
        .map(move |bit| first + bit)
}

impl Lines {
    /// A distributor of so many times 32 interrupts, the way firmware that used it all left it.
    fn distributor(words: u32) -> Self {
        let lines = Self {
            typer: words - 1,
            busy: 1 << 31,
            ..Self::default()
        };
        lines.control.set(ARE | GROUPS);
        lines.leave(32 * words);
        lines
    }

    /// A redistributor.
    fn redistributor(waker: u32) -> Self {
        let lines = Self {
            base: 0x1_0000,
            busy: 1 << 3,
            ..Self::default()
        };
        lines.waker.set(waker);
        lines.leave(32);
        lines
    }

    fn leave(&self, end: u32) {
        for state in [&self.enabled, &self.active, &self.edge] {
            state.borrow_mut().extend(0..end);
        }
    }

    fn set_control(&self, value: u32) {
        let old = self.control.get();
        if (old ^ value) & ARE != 0 {
            let groups = (old | value) & GROUPS;
            assert_eq!(groups, 0, "routing changes while a group is on");
        }
        self.control.set(value & !self.busy);
        self.busy_for.set(self.slow.get());
    }

    fn set_enabled(&self, word: usize, value: u32, on: bool) {
        let mut enabled = self.enabled.borrow_mut();
        for intid in bits(word, value) {
            match on {
                true => enabled.insert(intid),
                false => enabled.remove(&intid),
            };
        }
        if !on {
            self.busy_for.set(self.slow.get());
        }
    }

    /// Two bits each, of which the upper one says that it is an edge.
    fn set_triggers(&self, word: usize, value: u32) {
        assert_eq!(self.busy_for.get(), 0, "a trigger changes too early");
        let first = 16 * u32::try_from(word).unwrap();
        for at in 0..16 {
            let (intid, is_edge) = (first + at, value >> (2 * at + 1) & 1 != 0);
            let mut edge = self.edge.borrow_mut();
            if edge.contains(&intid) != is_edge {
                let on = self.enabled.borrow().contains(&intid);
                assert!(!on, "{intid} changes its trigger while it is on");
            }
            match is_edge {
                true => edge.insert(intid),
                false => edge.remove(&intid),
            };
        }
    }
}

impl Mmio for Lines {
    fn read8(&self, _: usize) -> u8 {
        panic!("no access of a byte is ours")
    }
    fn read16(&self, _: usize) -> u16 {
        panic!("no access of two bytes is ours")
    }
    fn read32(&self, offset: usize) -> u32 {
        if offset == 0x14 && self.base != 0 {
            return if self.hides_waker {
                0
            } else {
                self.waker.get()
            };
        }
        if offset == 0 {
            let left = self.busy_for.get();
            self.busy_for.set(left.saturating_sub(1));
            let busy = if left == 0 { 0 } else { self.busy };
            return self.control.get() | busy;
        }
        let at = offset - self.base;
        match at {
            0x4 => self.typer,
            0xc00..0xd00 => {
                let first = 16 * u32::try_from((at - 0xc00) / 4).unwrap();
                let edge = self.edge.borrow();
                (0..16)
                    .filter(|bit| edge.contains(&(first + bit)))
                    .fold(0, |all, bit| all | 2 << (2 * bit))
            }
            _ => panic!("a read of {offset:#x}"),
        }
    }
    fn read64(&self, offset: usize) -> u64 {
        panic!("a read of 64 bits at {offset:#x}")
    }
    fn write8(&self, _: usize, _: u8) {
        panic!("no access of a byte is ours")
    }
    fn write16(&self, _: usize, _: u16) {
        panic!("no access of two bytes is ours")
    }
    fn write32(&self, offset: usize, value: u32) {
        self.writes.set(self.writes.get() + 1);
        if offset == 0 && self.base == 0 {
            return self.set_control(value);
        }
        if offset == 0x14 && self.base != 0 {
            assert!(!self.hides_waker, "it is not ours");
            // A slow one stays asleep for good.
            let children = if self.slow.get() == 0 { 0 } else { 1 << 2 };
            return self.waker.set(value & !(1 << 2) | children);
        }
        let at = offset - self.base;
        let word = at % 0x80 / 4;
        match at {
            0x80..0x100 => self.group_1.borrow_mut().extend(bits(word, value)),
            0x100..0x180 => self.set_enabled(word, value, true),
            0x180..0x200 => self.set_enabled(word, value, false),
            0x300..0x380 => self.active.borrow_mut().extend(bits(word, value)),
            0x380..0x400 => {
                let mut active = self.active.borrow_mut();
                let cleared: BTreeSet<u32> = bits(word, value).collect();
                active.retain(|intid| !cleared.contains(intid));
            }
            0x400..0x800 => {
                let first = u32::try_from(at - 0x400).unwrap();
                let four = (first..).zip(value.to_le_bytes());
                self.priorities.borrow_mut().extend(four);
            }
            0xc00..0xd00 => self.set_triggers((at - 0xc00) / 4, value),
            _ => panic!("a write of {value:#x} to {offset:#x}"),
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        self.writes.set(self.writes.get() + 1);
        assert_eq!(self.base, 0, "a redistributor has no routes");
        assert!((0x6000..0x8000).contains(&offset), "{offset:#x}");
        let intid = u32::try_from((offset - 0x6000) / 8).unwrap();
        self.routes.borrow_mut().insert(intid, value);
    }
}

fn start(lines: &Lines) -> Distributor<&Lines, FakeClock> {
    Distributor::start(lines, FakeClock::default()).unwrap()
}

fn all(end: u32) -> Vec<u32> {
    (32..end).collect()
}

#[test]
fn a_distributor_is_taken_from_firmware_that_used_all_of_it() {
    for (words, end) in [(2, 64), (9, 288), (32, 1024)] {
        for (slow, control) in [(0, 0), (3, GROUPS), (3, ARE | GROUPS), (0, ARE)] {
            let lines = Lines::distributor(words);
            lines.slow.set(slow);
            lines.control.set(control);
            start(&lines);
            assert_eq!(lines.control.get(), ARE | 2);
            // The first 32 are a redistributor's: here nobody has touched them.
            let private: Vec<u32> = (0..32).collect();
            for state in [&lines.enabled, &lines.active, &lines.edge] {
                assert_eq!(state.borrow().iter().copied().collect::<Vec<_>>(), private);
            }
            assert!(lines.group_1.borrow().iter().copied().eq(all(end)));
            let priorities = lines.priorities.borrow();
            assert!(priorities.keys().copied().eq(all(end)));
            assert!(priorities.values().all(|priority| *priority == 0x80));
        }
    }
}

#[test]
fn a_distributor_that_never_ends_a_write_is_an_error() {
    let lines = Lines::distributor(9);
    lines.slow.set(u32::MAX);
    let error = Distributor::start(&lines, FakeClock::default()).unwrap_err();
    assert_eq!(error, Error::Register("GICD_CTLR.RWP"));
    assert_eq!(lines.control.get() & GROUPS, 0, "nothing comes of it");
}

#[test]
fn an_interrupt_comes_to_one_cpu_by_its_trigger_and_leaves_the_others_alone() {
    /// Bit 31 is one in every `MPIDR_EL1`; in `GICD_IROUTER` it asks for any CPU.
    const MPIDR: u64 = 0x12_8045_0103;
    let lines = Lines::distributor(9);
    let gicd = start(&lines);
    gicd.listen(33, Trigger::Edge, MPIDR).unwrap();
    gicd.listen(287, Trigger::Level, 1).unwrap();
    assert_eq!(lines.routes.borrow()[&33], 0x12_0045_0103);
    assert_eq!(lines.routes.borrow()[&287], 1);
    let shared = |state: &RefCell<BTreeSet<u32>>| -> Vec<u32> {
        state.borrow().range(32..).copied().collect()
    };
    assert_eq!(shared(&lines.enabled), [33, 287]);
    assert_eq!(shared(&lines.edge), [33]);
    gicd.set_enabled(33, false).unwrap();
    assert_eq!(shared(&lines.enabled), [287]);
    gicd.route(33, 2).unwrap();
    gicd.set_enabled(33, true).unwrap();
    assert_eq!(shared(&lines.enabled), [33, 287]);
    assert_eq!(lines.routes.borrow()[&33], 2);
    assert_eq!(shared(&lines.edge), [33], "the trigger stays");
}

#[test]
fn a_trigger_changes_while_the_interrupt_is_off() {
    let lines = Lines::distributor(2);
    let gicd = start(&lines);
    lines.slow.set(3);
    for (trigger, is_edge) in [
        (Trigger::Level, false),
        (Trigger::Edge, true),
        (Trigger::Level, false),
    ] {
        gicd.listen(40, trigger, 0).unwrap();
        assert_eq!(lines.edge.borrow().contains(&40), is_edge);
        assert!(lines.enabled.borrow().contains(&40));
    }
    let writes = lines.writes.get();
    gicd.listen(40, Trigger::Level, 0).unwrap();
    assert_eq!(
        lines.writes.get() - writes,
        2,
        "it is routed, and turned on"
    );
}

#[test]
fn what_a_distributor_does_not_have_is_refused_before_anything_is_written() {
    for (words, end) in [(2, 64), (9, 288), (32, 1020)] {
        let lines = Lines::distributor(words);
        let gicd = start(&lines);
        let writes = lines.writes.get();
        for intid in [0, 31, end, 1020, 1023, 4096, u32::MAX] {
            let refused = Err(Error::Interrupt(intid));
            assert_eq!(gicd.listen(intid, Trigger::Edge, 0), refused);
            assert_eq!(gicd.route(intid, 0), refused);
            assert_eq!(gicd.set_enabled(intid, true), refused);
            assert_eq!(gicd.set_enabled(intid, false), refused);
        }
        assert_eq!(lines.writes.get(), writes);
        for intid in [32, end - 1] {
            assert_eq!(gicd.listen(intid, Trigger::Edge, 0), Ok(()));
        }
    }
}

/// `ProcessorSleep`, `ChildrenAsleep`.
const ASLEEP: u32 = 3 << 1;

#[test]
fn a_redistributor_starts_asleep_or_awake_or_where_its_sleep_is_not_ours() {
    for (waker, hides_waker, after) in [
        (ASLEEP, false, 0),
        (1 << 31 | ASLEEP, false, 1 << 31),
        // Somebody woke it before us.
        (0, false, 0),
        // The secure side has it.
        (ASLEEP, true, ASLEEP),
    ] {
        let lines = Lines {
            hides_waker,
            ..Lines::redistributor(waker)
        };
        let redistributor = Redistributor::start(&lines, 1 | 1 << 27, &FakeClock::default());
        let redistributor = redistributor.unwrap();
        assert_eq!(lines.waker.get(), after);
        assert!(lines.enabled.borrow().iter().eq(&[0, 27]));
        assert!(lines.active.borrow().is_empty());
        assert!(lines.group_1.borrow().iter().copied().eq(0..32));
        assert!(lines.priorities.borrow().keys().copied().eq(0..32));
        // SGIs are edges, for good.
        assert!(lines.edge.borrow().iter().copied().eq(0..16));
        let writes = lines.writes.get();
        redistributor.set_active(0);
        assert_eq!(lines.writes.get(), writes);
        redistributor.set_active(1 << 27);
        assert!(lines.active.borrow().iter().eq(&[27]));
    }
}

#[test]
fn a_redistributor_that_does_not_wake_or_never_ends_a_write_is_an_error() {
    for (waker, register) in [(ASLEEP, "GICR_WAKER.ChildrenAsleep"), (0, "GICR_CTLR.RWP")] {
        let lines = Lines::redistributor(waker);
        lines.slow.set(u32::MAX);
        let error = Redistributor::start(&lines, 1, &FakeClock::default()).unwrap_err();
        assert_eq!(error, Error::Register(register));
    }
}
