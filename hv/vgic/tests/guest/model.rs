//! The list-register implementation against a plain model of the architecture: interrupts are
//! inactive, pending, active or both, and nobody has list registers. Both must hand the guest the
//! same interrupts in the same order.

use bulkhead_vgic::{Level, Width};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use crate::machine::{EoiMode, Machine, SGI_FRAME, SPURIOUS, TIMER};

const SPIS: u32 = 64;
/// Used for nothing but `ISACTIVER` and `ICACTIVER` where list registers are few.
const SOFTWARE_ACTIVE: u32 = 32 + SPIS - 1;

#[derive(Clone, Debug, Default)]
struct Interrupt {
    group1: bool,
    enabled: bool,
    edge: bool,
    line: bool,
    latch: bool,
    active: Option<usize>,
    priority: u8,
    /// Where an SPI goes.
    target: Option<usize>,
    /// The physical interrupt behind a hardware PPI is active.
    physical: bool,
    hardware: bool,
}

impl Interrupt {
    fn is_pending(&self) -> bool {
        self.latch || (self.line && !self.edge) || (self.line && self.hardware)
    }

    /// A physical interrupt with no virtual one left is deactivated.
    fn settle(&mut self) {
        self.physical &= self.is_pending() || self.active.is_some();
    }
}

struct Model {
    enabled: bool,
    private: Vec<Vec<Interrupt>>,
    spis: Vec<Interrupt>,
    pmr: Vec<u8>,
    /// Active priority levels, a bit each.
    running: Vec<u32>,
}

impl Model {
    fn new(vcpus: usize) -> Self {
        let default = Interrupt {
            group1: true,
            enabled: true,
            priority: 0x80,
            ..Interrupt::default()
        };
        let private = (0..32)
            .map(|intid| Interrupt {
                edge: intid < 16,
                hardware: intid == TIMER,
                ..default.clone()
            })
            .collect();
        let spi = Interrupt {
            target: Some(0),
            ..default
        };
        Self {
            enabled: true,
            private: vec![private; vcpus],
            spis: vec![spi; SPIS as usize],
            pmr: vec![0xff; vcpus],
            running: vec![0; vcpus],
        }
    }

    fn get(&mut self, vcpu: usize, intid: u32) -> &mut Interrupt {
        match intid {
            0..32 => &mut self.private[vcpu][intid as usize],
            _ => &mut self.spis[intid as usize - 32],
        }
    }

    fn acknowledge(&mut self, vcpu: usize) -> u32 {
        let limit = match self.running[vcpu] {
            0 => u32::from(self.pmr[vcpu]),
            bits => u32::from(self.pmr[vcpu]).min(bits.trailing_zeros() << 3),
        };
        let mut best = None;
        for intid in 0..32 + SPIS {
            let interrupt = self.get(vcpu, intid);
            let waits = interrupt.is_pending()
                && interrupt.enabled
                && interrupt.group1
                && interrupt.active.is_none()
                && (intid < 32 || interrupt.target == Some(vcpu));
            let priority = interrupt.priority;
            if self.enabled && waits && best.is_none_or(|(least, _)| priority < least) {
                best = Some((priority, intid));
            }
        }
        let Some((_, intid)) = best else {
            return SPURIOUS;
        };
        let interrupt = self.get(vcpu, intid);
        let priority = interrupt.priority;
        if u32::from(priority) >= limit {
            return SPURIOUS;
        }
        interrupt.latch = false;
        interrupt.active = Some(vcpu);
        if interrupt.hardware {
            interrupt.line = false;
        }
        self.running[vcpu] |= 1 << (priority >> 3);
        intid
    }

    fn drop_priority(&mut self, vcpu: usize) {
        self.running[vcpu] &= self.running[vcpu] - 1;
    }

    fn deactivate(&mut self, vcpu: usize, intid: u32) {
        let interrupt = self.get(vcpu, intid);
        if interrupt.active == Some(vcpu) {
            interrupt.active = None;
        }
        interrupt.settle();
    }

    fn set_line(interrupt: &mut Interrupt, level: Level) {
        match level {
            Level::High => {
                interrupt.latch |= interrupt.edge && !interrupt.line;
                interrupt.line = true;
            }
            Level::Low => interrupt.line = false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Line(u32, Level),
    Pulse(u32),
    PpiLine(usize, Level),
    Timer(usize),
    TimerWithdrawn(usize),
    Sgi {
        from: usize,
        list: u8,
        intid: u32,
    },
    SgiToOthers {
        from: usize,
        intid: u32,
    },
    Acknowledge(usize),
    End(usize),
    /// With the number of one that was ended and is still active, modulo how many there are.
    Deactivate(usize, usize),
    Enable {
        by: usize,
        intid: u32,
    },
    Disable {
        by: usize,
        intid: u32,
    },
    Group {
        by: usize,
        intid: u32,
        group1: bool,
    },
    SetPending {
        by: usize,
        intid: u32,
    },
    ClearPending {
        by: usize,
        intid: u32,
    },
    SetActive {
        by: usize,
        intid: u32,
    },
    ClearActive {
        by: usize,
        intid: u32,
    },
    Priority {
        by: usize,
        intid: u32,
        level: u8,
    },
    Edge {
        by: usize,
        intid: u32,
        edge: bool,
    },
    Route {
        by: usize,
        intid: u32,
        to: u8,
    },
    RouteToAny {
        by: usize,
        intid: u32,
    },
    Switch {
        by: usize,
        on: bool,
    },
    Mask {
        vcpu: usize,
        pmr: u8,
    },
    Refill(usize),
    Compare,
}

fn level() -> impl Strategy<Value = Level> {
    any::<bool>().prop_map(|up| if up { Level::High } else { Level::Low })
}

/// Operations on `vcpus` vCPUs and the interrupts `intids`, of which those to make active by a
/// write are `activated`.
fn op(vcpus: usize, intids: Vec<u32>, activated: Vec<u32>) -> impl Strategy<Value = Op> {
    let by = 0..vcpus;
    let pick = move |from: &[u32]| {
        let from = from.to_vec();
        (0..from.len()).prop_map(move |index| from[index])
    };
    let spis: Vec<u32> = intids.iter().copied().filter(|&i| i >= 32).collect();
    let sgis: Vec<u32> = intids.iter().copied().filter(|&i| i < 16).collect();
    // The kind of a hardware PPI is the machine's, a guest that changes it confuses itself alone.
    let kinds: Vec<u32> = intids
        .iter()
        .copied()
        .filter(|&i| i >= 16 && i != TIMER)
        .collect();
    let any_of = pick(&intids);
    let spi = pick(&spis);
    let sgi = pick(&sgis);
    let activated = pick(&activated);
    let changes = prop_oneof![
        (by.clone(), any_of.clone()).prop_map(|(by, intid)| Op::Enable { by, intid }),
        (by.clone(), any_of.clone()).prop_map(|(by, intid)| Op::Disable { by, intid }),
        (by.clone(), any_of.clone(), any::<bool>()).prop_map(|(by, intid, group1)| Op::Group {
            by,
            intid,
            group1
        }),
        (by.clone(), any_of.clone()).prop_map(|(by, intid)| Op::SetPending { by, intid }),
        (by.clone(), any_of.clone()).prop_map(|(by, intid)| Op::ClearPending { by, intid }),
        (by.clone(), activated.clone()).prop_map(|(by, intid)| Op::SetActive { by, intid }),
        (by.clone(), activated).prop_map(|(by, intid)| Op::ClearActive { by, intid }),
        (by.clone(), any_of, 0_u8..4).prop_map(|(by, intid, level)| Op::Priority {
            by,
            intid,
            level
        }),
        (by.clone(), pick(&kinds), any::<bool>()).prop_map(|(by, intid, edge)| Op::Edge {
            by,
            intid,
            edge
        }),
        (by.clone(), spi.clone(), 0_u8..4).prop_map(|(by, intid, to)| Op::Route { by, intid, to }),
        (by.clone(), spi.clone()).prop_map(|(by, intid)| Op::RouteToAny { by, intid }),
        (by.clone(), any::<bool>()).prop_map(|(by, on)| Op::Switch { by, on }),
        (by.clone(), prop_oneof![Just(0xff), Just(0xff), any::<u8>()])
            .prop_map(|(vcpu, pmr)| Op::Mask { vcpu, pmr }),
    ];
    let arrivals = prop_oneof![
        (spi.clone(), level()).prop_map(|(intid, level)| Op::Line(intid, level)),
        spi.prop_map(Op::Pulse),
        (by.clone(), level()).prop_map(|(vcpu, level)| Op::PpiLine(vcpu, level)),
        by.clone().prop_map(Op::Timer),
        by.clone().prop_map(Op::TimerWithdrawn),
        (by.clone(), any::<u8>(), sgi.clone()).prop_map(|(from, list, intid)| Op::Sgi {
            from,
            list,
            intid
        }),
        (by.clone(), sgi).prop_map(|(from, intid)| Op::SgiToOthers { from, intid }),
    ];
    prop_oneof![
        4 => by.clone().prop_map(Op::Acknowledge),
        3 => by.clone().prop_map(Op::End),
        2 => (by.clone(), 0_usize..8).prop_map(|(vcpu, which)| Op::Deactivate(vcpu, which)),
        6 => arrivals,
        4 => changes,
        1 => by.prop_map(Op::Refill),
        1 => Just(Op::Compare),
    ]
}

struct Pair {
    machine: Machine,
    model: Model,
    /// What each vCPU's handlers are in the middle of.
    handlers: Vec<Vec<u32>>,
    /// What each vCPU has ended and not deactivated.
    dropped: Vec<Vec<u32>>,
    eoi_mode: EoiMode,
}

impl Pair {
    fn new(vcpus: usize, list_registers: usize, eoi_mode: EoiMode) -> Self {
        let mut machine = Machine::enabled(vcpus as u8, SPIS as usize, list_registers);
        for core in &mut machine.cores {
            core.eoi_mode = eoi_mode;
        }
        Self {
            machine,
            model: Model::new(vcpus),
            handlers: vec![Vec::new(); vcpus],
            dropped: vec![Vec::new(); vcpus],
            eoi_mode,
        }
    }

    /// Writes bit `intid` of one of the registers with a bit for each interrupt.
    fn write_bit(&mut self, by: usize, register: u64, intid: u32) {
        let (word, bit) = (u64::from(intid / 32), 1 << (intid % 32));
        if intid < 32 {
            let offset = SGI_FRAME + register;
            self.machine.write_private(by, by, offset, bit);
        } else {
            self.machine.write(by, register + 4 * word, bit);
        }
    }

    /// Reads the register, sets or clears the bits of `mask`, and writes it.
    fn modify(&mut self, by: usize, private: bool, offset: u64, mask: u64, set: bool) {
        let old = if private {
            self.machine.read_private(by, by, offset)
        } else {
            self.machine.read(by, offset)
        };
        let new = if set { old | mask } else { old & !mask };
        if private {
            self.machine.write_private(by, by, offset, new);
        } else {
            self.machine.write(by, offset, new);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Line(intid, level) => {
                self.machine.line(intid, level);
                Model::set_line(self.model.get(0, intid), level);
            }
            Op::Pulse(intid) => {
                self.machine.pulse(intid);
                let interrupt = self.model.get(0, intid);
                interrupt.latch |= interrupt.edge;
            }
            Op::PpiLine(vcpu, level) => {
                self.machine.ppi(vcpu, 20, level);
                Model::set_line(self.model.get(vcpu, 20), level);
            }
            Op::Timer(vcpu) => {
                if self.machine.cores[vcpu].physical == 0 {
                    self.machine.timer(vcpu);
                    let interrupt = self.model.get(vcpu, TIMER);
                    interrupt.line = true;
                    interrupt.physical = true;
                }
            }
            Op::TimerWithdrawn(vcpu) => {
                self.machine.ppi(vcpu, TIMER, Level::Low);
                let interrupt = self.model.get(vcpu, TIMER);
                interrupt.line = false;
                interrupt.settle();
            }
            Op::Sgi { from, list, intid } => {
                let value = u64::from(list) | u64::from(intid) << 24;
                let _ = self.machine.sgi(from, value);
                for vcpu in 0..self.handlers.len() {
                    let interrupt = self.model.get(vcpu, intid);
                    interrupt.latch |= list >> vcpu & 1 == 1 && interrupt.group1;
                }
            }
            Op::SgiToOthers { from, intid } => {
                let _ = self.machine.sgi(from, 1 << 40 | u64::from(intid) << 24);
                for vcpu in 0..self.handlers.len() {
                    let interrupt = self.model.get(vcpu, intid);
                    interrupt.latch |= vcpu != from && interrupt.group1;
                }
            }
            Op::Acknowledge(vcpu) => {
                let intid = self.machine.acknowledge(vcpu);
                assert_eq!(intid, self.model.acknowledge(vcpu), "acknowledged");
                if intid != SPURIOUS {
                    self.handlers[vcpu].push(intid);
                }
            }
            Op::End(vcpu) => {
                if let Some(intid) = self.handlers[vcpu].pop() {
                    self.machine.end(vcpu, intid);
                    self.model.drop_priority(vcpu);
                    match self.eoi_mode {
                        EoiMode::DropAndDeactivate => self.model.deactivate(vcpu, intid),
                        EoiMode::Drop => self.dropped[vcpu].push(intid),
                    }
                }
            }
            Op::Deactivate(vcpu, which) => {
                let count = self.dropped[vcpu].len();
                if count != 0 {
                    let intid = self.dropped[vcpu].remove(which % count);
                    self.machine.deactivate(vcpu, intid);
                    self.model.deactivate(vcpu, intid);
                }
            }
            Op::Mask { vcpu, pmr } => {
                self.machine.cores[vcpu].pmr = pmr;
                self.model.pmr[vcpu] = pmr;
            }
            Op::Refill(vcpu) => self.machine.refill(vcpu),
            Op::Compare => self.compare(),
            change => self.change(change),
        }
        for (vcpu, core) in self.machine.cores.iter().enumerate() {
            let physical = self.model.private[vcpu][TIMER as usize].physical;
            assert_eq!(core.physical != 0, physical, "physical interrupt active");
        }
    }

    fn change(&mut self, op: Op) {
        match op {
            Op::Enable { by, intid } => {
                self.write_bit(by, 0x100, intid);
                self.model.get(by, intid).enabled = true;
            }
            Op::Disable { by, intid } => {
                self.write_bit(by, 0x180, intid);
                self.model.get(by, intid).enabled = false;
            }
            Op::Group { by, intid, group1 } => {
                let (private, base) = (intid < 32, if intid < 32 { SGI_FRAME } else { 0 });
                let offset = base + 0x80 + 4 * u64::from(intid / 32);
                self.modify(by, private, offset, 1 << (intid % 32), group1);
                self.model.get(by, intid).group1 = group1;
            }
            Op::SetPending { by, intid } => {
                self.write_bit(by, 0x200, intid);
                self.model.get(by, intid).latch = true;
            }
            Op::ClearPending { by, intid } => {
                self.write_bit(by, 0x280, intid);
                let interrupt = self.model.get(by, intid);
                interrupt.latch = false;
                interrupt.settle();
            }
            Op::SetActive { by, intid } => {
                self.write_bit(by, 0x300, intid);
                let interrupt = self.model.get(by, intid);
                let place = if intid < 32 {
                    Some(by)
                } else {
                    interrupt.target
                };
                interrupt.active = interrupt.active.or(place).or(Some(usize::MAX));
            }
            Op::ClearActive { by, intid } => {
                self.write_bit(by, 0x380, intid);
                let interrupt = self.model.get(by, intid);
                interrupt.active = None;
                interrupt.settle();
            }
            Op::Priority { by, intid, level } => {
                let priority = 0x60 + 8 * level;
                if intid < 32 {
                    self.machine.sync(by);
                    let offset = SGI_FRAME + 0x400 + u64::from(intid);
                    let _ = self.machine.vgic.write_redistributor(
                        by,
                        offset,
                        Width::Byte,
                        priority.into(),
                    );
                    self.machine.settle();
                } else {
                    let offset = 0x400 + u64::from(intid);
                    self.machine
                        .write_at(by, offset, Width::Byte, priority.into());
                }
                self.model.get(by, intid).priority = priority;
            }
            Op::Edge { by, intid, edge } => {
                let (private, base) = (intid < 32, if intid < 32 { SGI_FRAME } else { 0 });
                let offset = base + 0xc00 + 4 * u64::from(intid / 16);
                self.modify(by, private, offset, 2 << (2 * (intid % 16)), edge);
                self.model.get(by, intid).edge = edge;
            }
            Op::Route { by, intid, to } => {
                let offset = 0x6000 + 8 * u64::from(intid);
                self.machine.write_at(by, offset, Width::Double, to.into());
                let to = usize::from(to);
                self.model.get(by, intid).target = (to < self.handlers.len()).then_some(to);
            }
            Op::RouteToAny { by, intid } => {
                let offset = 0x6000 + 8 * u64::from(intid);
                self.machine.write_at(by, offset, Width::Double, 1 << 31);
                self.model.get(by, intid).target = Some(0);
            }
            Op::Switch { by, on } => {
                self.machine.write(by, 0, if on { 2 } else { 0 });
                self.model.enabled = on;
            }
            other => panic!("{other:?} is no change"),
        }
    }

    /// Pending and active state as registers show it, with every vCPU stopped for it.
    fn compare(&mut self) {
        let vcpus = self.handlers.len();
        for vcpu in 0..vcpus {
            self.machine.sync(vcpu);
        }
        for intid in 0..32 + SPIS {
            for vcpu in 0..vcpus {
                let read = |register| {
                    let offset = register + 4 * u64::from(intid / 32);
                    let word = if intid < 32 {
                        let offset = SGI_FRAME + offset;
                        self.machine
                            .vgic
                            .read_redistributor(vcpu, offset, Width::Word)
                    } else {
                        self.machine.vgic.read_distributor(offset, Width::Word)
                    };
                    word >> (intid % 32) & 1 == 1
                };
                let shown = (read(0x200), read(0x300));
                let interrupt = self.model.get(vcpu, intid);
                let expected = (interrupt.is_pending(), interrupt.active.is_some());
                assert_eq!(
                    shown, expected,
                    "(pending, active) of INTID {intid} on {vcpu}"
                );
            }
        }
        self.machine.settle();
    }
}

fn run(vcpus: usize, list_registers: usize, eoi_mode: EoiMode, ops: &[Op]) {
    let mut pair = Pair::new(vcpus, list_registers, eoi_mode);
    for &op in ops {
        pair.apply(op);
    }
    pair.compare();
    // Whatever is left is served to the end.
    for vcpu in 0..vcpus {
        pair.apply(Op::Mask { vcpu, pmr: 0xff });
        for spi in 32..32 + SPIS {
            pair.apply(Op::Line(spi, Level::Low));
        }
        pair.apply(Op::PpiLine(vcpu, Level::Low));
        while !pair.handlers[vcpu].is_empty() {
            pair.apply(Op::End(vcpu));
        }
        for _ in 0..200 {
            pair.apply(Op::Acknowledge(vcpu));
            pair.apply(Op::End(vcpu));
            pair.apply(Op::Deactivate(vcpu, 0));
        }
    }
    pair.compare();
}

proptest! {
    /// Many interrupts, few list registers: most of the time something waits outside. Interrupts
    /// made active by a write stay apart from those that are taken, because the architecture tells
    /// a hypervisor only how many ends it missed, not of which interrupts.
    #[test]
    fn guests_see_what_the_architecture_says_with_few_list_registers(
        list_registers in 1_usize..=4,
        vcpus in 1_usize..=3,
        ops in proptest::collection::vec(
            op(3, vec![0, 1, 2, 7, 15, 20, TIMER, 32, 33, 34, 40, 63, 64, 70], vec![SOFTWARE_ACTIVE]),
            1..120,
        ),
    ) {
        let ops: Vec<_> = ops.into_iter().filter(|op| fits(op, vcpus)).collect();
        run(vcpus, list_registers, EoiMode::DropAndDeactivate, &ops);
    }

    /// The same for guests that deactivate apart, in any order.
    #[test]
    fn guests_see_what_the_architecture_says_with_deactivation_apart(
        list_registers in 1_usize..=4,
        vcpus in 1_usize..=3,
        ops in proptest::collection::vec(
            op(3, vec![0, 1, 2, 7, 15, 20, TIMER, 32, 33, 34, 40, 63, 64, 70], vec![SOFTWARE_ACTIVE]),
            1..120,
        ),
    ) {
        let ops: Vec<_> = ops.into_iter().filter(|op| fits(op, vcpus)).collect();
        run(vcpus, list_registers, EoiMode::Drop, &ops);
    }

    /// Few interrupts, list registers for all: every register write may hit every interrupt.
    #[test]
    fn guests_see_what_the_architecture_says_with_state_written_at_will(
        vcpus in 1_usize..=2,
        ops in proptest::collection::vec(
            op(2, vec![0, 1, 20, TIMER, 32, 33, 64, 65], vec![0, 1, 20, TIMER, 32, 33, 64, 65]),
            1..120,
        ),
    ) {
        let ops: Vec<_> = ops.into_iter().filter(|op| fits(op, vcpus)).collect();
        run(vcpus, 16, EoiMode::DropAndDeactivate, &ops);
    }
}

/// Whether the operation is by a vCPU that exists.
fn fits(op: &Op, vcpus: usize) -> bool {
    let by = match *op {
        Op::PpiLine(vcpu, _)
        | Op::Timer(vcpu)
        | Op::TimerWithdrawn(vcpu)
        | Op::Acknowledge(vcpu)
        | Op::End(vcpu)
        | Op::Deactivate(vcpu, _)
        | Op::Refill(vcpu)
        | Op::Mask { vcpu, .. } => vcpu,
        Op::Sgi { from, .. } | Op::SgiToOthers { from, .. } => from,
        Op::Enable { by, .. }
        | Op::Disable { by, .. }
        | Op::Group { by, .. }
        | Op::SetPending { by, .. }
        | Op::ClearPending { by, .. }
        | Op::SetActive { by, .. }
        | Op::ClearActive { by, .. }
        | Op::Priority { by, .. }
        | Op::Edge { by, .. }
        | Op::Route { by, .. }
        | Op::RouteToAny { by, .. }
        | Op::Switch { by, .. } => by,
        Op::Line(..) | Op::Pulse(_) | Op::Compare => 0,
    };
    by < vcpus
}
