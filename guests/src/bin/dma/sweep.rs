//! DMA to and from everywhere: only the guest's own memory may be reached.
//!
//! A device says nothing about errors, so data tells. Reads: each goes into a slot of the buffer that held
//! a canary; one DMA to memory shows the slots. What was read of the guest's own memory must be its
//! pattern (the positive control); anything else must be the canary, or zeroes or ones, which is how a
//! refused read looks. Writes: a marker; it must be there in the guest's own memory, and nowhere else that
//! the CPU can see. At the end all patterns and registers are compared.
//!
//! What a read of zeroes or a write into memory of others did is seen by others: the neighbour, whose
//! memory has a pattern too (`watch`), and the hypervisor, which reports what it refused.

use guests::edu::{AtTheEnd, BUFFER, DMA_US, Direction, Edu};
use guests::gic::GICD_IPRIORITYR;
use guests::options::Options;
use guests::pci::INTERRUPT_LINE;
use guests::platform::{
    DOORBELL, ECAM, GICD, GICR, ITS, PCI_WINDOW, PCI_WINDOW64, RAM, RTC, SMMU, UART,
};
use guests::{cpu, mmio, println};

use crate::memory::{self, BYSTANDER, SOURCE, TARGET};
use crate::{Devices, Failure, MOST_DEVICES, Summary, Verdict, attempt, bar_address};

/// Bytes of one read, and of one write to what may be memory.
const SLOT: u64 = 64;
const SLOTS: u64 = BUFFER / SLOT;
/// Bytes of a write to what may be a register.
const WORD: u64 = 4;
/// Where in each step is aimed at: the last page of 2 MiB, which this guest keeps free.
const AIM: u64 = 0x1f_f000;
const STEP: u64 = 0x20_0000;
/// What the buffer holds before it is read into; no pattern and no marker begins so.
const CANARY: u64 = 0x0c0f_fee0_0c0f_fee0;
/// What is written: eight letters.
const MARKER: u64 = u64::from_le_bytes(*b"!DMA!DMA");
const SALT: u64 = 77;
/// How many of them stop the machine.
const ROUGH: u64 = 5;
/// Where RAM can be, of others or not.
const LAST_RAM: u64 = 1 << 38;

/// Places apart from the steps: registers, and what is above.
const CHOSEN: [u64; 37] = [
    // What stops the machine if it arrives: left out with `gentle=1`.
    GICD as u64,
    GICR as u64 + 0x1_0180,
    ITS as u64,
    SMMU as u64 + 0x20,
    SMMU as u64 + 0x44,
    // The rest.
    DOORBELL as u64,
    GICD as u64 + GICD_IPRIORITYR as u64 + 0x60,
    GICD as u64 + 0x6100,
    GICR as u64 + 0x1_0400,
    UART as u64,
    RTC as u64,
    SMMU as u64 + 0x80,
    SMMU as u64 + 0x98,
    SMMU as u64 + 0x1_00a8,
    // Where QEMU has its flash, its fw_cfg and its virtio-mmio devices.
    0x40,
    0x0400_0000,
    0x0902_0010,
    0x0a00_0000,
    0x0c00_0000,
    // BARs of the machine: those of others are 1 MiB apart. Identity, scratch, DMA source.
    PCI_WINDOW as u64,
    PCI_WINDOW as u64 + 4,
    PCI_WINDOW as u64 + 0x1000,
    PCI_WINDOW as u64 + 0x10_0004,
    PCI_WINDOW as u64 + 0x20_0004,
    PCI_WINDOW as u64 + 0x30_0004,
    PCI_WINDOW as u64 + 0x40_0004,
    PCI_WINDOW as u64 + 0x50_0080,
    // Configuration space: of the host bridge, of the first devices.
    ECAM as u64,
    ECAM as u64 + 0x8000 + INTERRUPT_LINE as u64,
    ECAM as u64 + 0x1_0000 + INTERRUPT_LINE as u64,
    // Above.
    1 << 32,
    1 << 38,
    PCI_WINDOW64 as u64,
    1 << 40,
    (1 << 44) - SLOT,
    1 << 44,
    (1 << 48) - SLOT,
];

/// What is swept.
#[derive(Clone, Copy)]
struct Plan {
    /// The guest's own memory ends here.
    own_end: u64,
    steps: u64,
    gentle: bool,
}

impl Plan {
    fn count(&self) -> u64 {
        self.steps + CHOSEN.len() as u64 + MOST_DEVICES as u64 - self.left_out()
    }

    fn left_out(&self) -> u64 {
        if self.gentle { ROUGH } else { 0 }
    }

    /// The n-th target.
    fn target(&self, index: u64) -> u64 {
        if index < self.steps {
            return index * STEP + AIM;
        }
        let index = usize::try_from(index - self.steps + self.left_out()).unwrap_or(0);
        match CHOSEN.get(index) {
            Some(&target) => target,
            // The device's own registers, where the guest has put them: the scratch register.
            None => bar_address(index - CHOSEN.len()) as u64 + 4,
        }
    }

    fn is_own(&self, target: u64) -> bool {
        (RAM as u64..self.own_end).contains(&target)
    }

    /// Whether there may be memory: the CPU may look, and plant a pattern.
    fn may_be_ram(target: u64) -> bool {
        (RAM as u64..LAST_RAM).contains(&target)
    }

    fn bytes(target: u64) -> u64 {
        if Self::may_be_ram(target) && target < 1 << 32 {
            SLOT
        } else {
            WORD
        }
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    own: u64,
    foreign: u64,
    refused: u64,
    /// The first foreign place.
    first: Option<u64>,
}

impl Found {
    fn foreign(&mut self, target: u64) {
        self.foreign += 1;
        self.first = self.first.or(Some(target));
    }
}

pub(crate) fn run(options: &Options) -> Verdict {
    let memory = options.number("own").unwrap_or(options.memory());
    let plan = Plan {
        own_end: RAM as u64 + memory,
        steps: options.number("top").unwrap_or(1 << 32) / STEP,
        gentle: options.number("gentle").unwrap_or(0) != 0,
    };
    let devices = Devices::open()?;
    // What is not aimed at: a page that nobody uses, and free memory between the targets.
    memory::fill(BYSTANDER, BUFFER, SALT);
    let free_end = RAM as u64 + memory;
    memory::fill(memory::FREE, free_end.saturating_sub(memory::FREE), SALT);
    let mut planted = 0;
    for index in 0..plan.count() {
        let target = plan.target(index);
        if Plan::may_be_ram(target) && attempt(|| memory::fill(target, SLOT, SALT)).is_some() {
            planted += 1;
        }
    }
    let registers = registers();
    println!(
        "dma beat 0: {} targets, {planted} seen by the CPU",
        plan.count()
    );

    let read = reads(&devices, &plan)?;
    let written = writes(&devices, &plan)?;

    let own = (0..plan.count())
        .filter(|&index| plan.is_own(plan.target(index)))
        .count() as u64;
    for (found, what, lost) in [
        (
            read,
            "a read reached what is not the guest's",
            "a read of own memory failed",
        ),
        (
            written,
            "a write reached what is not the guest's",
            "a write to own memory failed",
        ),
    ] {
        if let Some(first) = found.first {
            return Err(Failure(what, [first, found.foreign, 0]));
        }
        if found.own != own || own == 0 {
            return Err(Failure(lost, [found.own, own, 0]));
        }
    }
    if let Some(at) = memory::spoilt(memory::FREE, free_end.saturating_sub(memory::FREE), SALT) {
        return Err(Failure(
            "memory changed that was not written to",
            [at, memory::read(at), 0],
        ));
    }
    if memory::spoilt(BYSTANDER, BUFFER, SALT).is_some() {
        return Err("a page changed that nobody wrote to".into());
    }
    for (index, (before, after)) in registers.iter().zip(self::registers()).enumerate() {
        if *before != after {
            return Err(Failure(
                "a register changed: index, before, after",
                [index as u64, *before, after],
            ));
        }
    }
    for edu in devices.iter() {
        if !edu.is_there() {
            return Err("a device is no longer there".into());
        }
    }
    crate::probe::round_trip(devices.first(), SALT)?;

    Ok(Summary::new(&[
        ("own", own),
        ("read", read.own),
        ("written", written.own),
        ("read_refused", read.refused),
        ("written_elsewhere", written.refused),
        (
            "cpu_aborts",
            crate::RECEIVED
                .aborts
                .load(core::sync::atomic::Ordering::SeqCst),
        ),
    ]))
}

/// Registers that a stray write would change, as the CPU sees them; what it cannot see reads 0.
fn registers() -> [u64; 6] {
    let word = |at: usize| attempt(|| mmio::read32(at)).map_or(0, u64::from);
    [
        word(GICD),
        word(GICD + GICD_IPRIORITYR + 0x60),
        word(GICR + 0x1_0400),
        word(SMMU + 0x44),
        word(SMMU + 0x80),
        word(ECAM + 0x1_0000 + INTERRUPT_LINE),
    ]
}

/// Runs one DMA on every device that has one, and waits for the last.
fn together(devices: &Devices, mut start: impl FnMut(usize, Edu) -> bool) -> Result<(), Failure> {
    let mut started = false;
    for (index, edu) in devices.iter().enumerate() {
        started |= start(index, edu);
    }
    if started {
        cpu::sleep_us(DMA_US);
        for edu in devices.iter() {
            edu.wait()?;
        }
    }
    Ok(())
}

fn reads(devices: &Devices, plan: &Plan) -> Result<Found, Failure> {
    let mut found = Found::default();
    let devices_count = devices.count();
    let mut ranges = Ranges::new("read");
    memory::fill_with(SOURCE, BUFFER, CANARY);
    let mut first = 0;
    while first < plan.count() {
        let batch = first..(first + SLOTS * devices_count).min(plan.count());
        together(devices, |_, edu| {
            edu.start(Direction::Read, SOURCE, 0, BUFFER, AtTheEnd::Silence);
            true
        })?;
        for slot in 0..SLOTS {
            together(devices, |index, edu| {
                let number = first + slot * devices_count + index as u64;
                let is_one = batch.contains(&number);
                if is_one {
                    let target = plan.target(number);
                    let bytes = Plan::bytes(target);
                    edu.start(
                        Direction::Read,
                        target,
                        slot * SLOT,
                        bytes,
                        AtTheEnd::Silence,
                    );
                }
                is_one
            })?;
        }
        together(devices, |index, edu| {
            edu.start(
                Direction::Write,
                slots(index as u64),
                0,
                BUFFER,
                AtTheEnd::Silence,
            );
            true
        })?;
        for number in batch.clone() {
            let place = number - first;
            let slot = slots(place % devices_count) + place / devices_count * SLOT;
            judge_read(plan, plan.target(number), slot, &mut found, &mut ranges);
        }
        first = batch.end;
        println!("dma beat {first}: read from");
    }
    ranges.finish();
    Ok(found)
}

/// Where a device's buffer is shown.
const fn slots(device: u64) -> u64 {
    TARGET + BUFFER * device
}

fn judge_read(plan: &Plan, target: u64, slot: u64, found: &mut Found, ranges: &mut Ranges) {
    let words = Plan::bytes(target).div_ceil(8);
    let part = if Plan::bytes(target) < 8 {
        0xffff_ffff
    } else {
        u64::MAX
    };
    let is = |wanted: &dyn Fn(u64) -> u64| {
        (0..words)
            .all(|index| (memory::read(slot + 8 * index) ^ wanted(target + 8 * index)) & part == 0)
    };
    let has_pattern = is(&|at| memory::pattern(at, SALT));
    let is_refused = is(&|_| CANARY) || is(&|_| 0) || is(&|_| u64::MAX);
    if plan.is_own(target) {
        if has_pattern {
            found.own += 1;
        }
        ranges.add(
            target,
            if has_pattern {
                "own"
            } else {
                "own, not reached"
            },
        );
    } else if is_refused {
        found.refused += 1;
        ranges.add(target, "refused");
    } else {
        found.foreign(target);
        ranges.add(target, "REACHED");
    }
}

fn writes(devices: &Devices, plan: &Plan) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut ranges = Ranges::new("write");
    let devices_count = devices.count();
    memory::fill_with(SOURCE, BUFFER, MARKER);
    together(devices, |_, edu| {
        edu.start(Direction::Read, SOURCE, 0, BUFFER, AtTheEnd::Silence);
        true
    })?;
    let mut first = 0;
    while first < plan.count() {
        let batch = first..(first + devices_count).min(plan.count());
        together(devices, |index, edu| {
            let number = first + index as u64;
            let is_one = batch.contains(&number);
            if is_one {
                let target = plan.target(number);
                edu.start(
                    Direction::Write,
                    target,
                    0,
                    Plan::bytes(target),
                    AtTheEnd::Silence,
                );
            }
            is_one
        })?;
        for number in batch.clone() {
            let target = plan.target(number);
            let bytes = Plan::bytes(target);
            let visible = Plan::may_be_ram(target);
            let arrived = visible
                && attempt(|| {
                    (0..bytes).step_by(8).all(|at| {
                        let part = if bytes < 8 { 0xffff_ffff } else { u64::MAX };
                        (memory::read(target + at) ^ MARKER) & part == 0
                    })
                }) == Some(true);
            match (plan.is_own(target), arrived) {
                (true, true) => {
                    found.own += 1;
                    memory::fill(target, SLOT, SALT);
                    ranges.add(target, "own");
                }
                (true, false) => ranges.add(target, "own, not reached"),
                (false, true) => {
                    found.foreign(target);
                    ranges.add(target, "REACHED");
                }
                (false, false) => {
                    found.refused += 1;
                    ranges.add(target, "not seen");
                }
            }
        }
        first = batch.end;
        if first / 64 != (first - devices_count.min(first)) / 64 {
            println!("dma beat {first}: written to");
        }
    }
    ranges.finish();
    Ok(found)
}

/// Prints targets that went alike as one line.
struct Ranges {
    what: &'static str,
    now: Option<(u64, u64, u64, &'static str)>,
}

impl Ranges {
    fn new(what: &'static str) -> Self {
        Self { what, now: None }
    }

    fn add(&mut self, target: u64, outcome: &'static str) {
        match &mut self.now {
            Some((_, last, count, same)) if *same == outcome && target > *last => {
                *last = target;
                *count += 1;
            }
            _ => {
                self.finish();
                self.now = Some((target, target, 1, outcome));
            }
        }
    }

    fn finish(&mut self) {
        if let Some((first, last, count, outcome)) = self.now.take() {
            println!(
                "dma {} {first:#x}..={last:#x}: {count} {outcome}",
                self.what
            );
        }
    }
}
