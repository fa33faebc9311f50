//! A machine in host memory: an SMMU whose registers and queues are the emulation's, whose walks are
//! the engine's, and whose driver is the driver.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bulkhead_smmuv3::spec::{Event, Idr0, Idr1, Idr3, Idr5, Iidr, regs};
use bulkhead_smmuv3::{Error, Identity, Locked, Smmu};
use hal::fake::{FakeFrames, FakeMemory};
use hal::{Clock, Mmio, PhysMemory};
use iommu::{Ats, NestedConfig};
use types::{Address, Ipa, Pa, StreamId};
use vsmmuv3::{
    AtReset, Failure, Features, GuestMemory, Invalidation, NotGuestMemory, Options, Physical,
    Refusal, SingleAddress, VSmmu, Width, Work,
};

use crate::engine::{Access, Engine, Fault};

/// Where memory begins.
pub(crate) const BASE: u64 = 0x4000_0000;
/// How much there is: tables and queues in the lower half, a VM's RAM in the upper.
pub(crate) const BYTES: u64 = 16 << 20;

/// Memory as the SMMU's front end reads it.
#[derive(Clone, Copy, Debug)]
struct Bus(&'static FakeMemory);

impl GuestMemory for Bus {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let bytes = buffer.len();
        let pa = Pa::truncated(ipa.bits());
        let read = self.0.read(pa, buffer);
        read.map_err(|_| NotGuestMemory { ipa, bytes })
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let pa = Pa::truncated(ipa.bits());
        let fail = NotGuestMemory {
            ipa,
            bytes: bytes.len(),
        };
        self.0.write(pa, bytes).map_err(|_| fail)
    }
}

/// What the emulation would tell hardware: it has none, the engine reads the tables itself.
struct Nobody;

impl Physical for Nobody {
    fn set_stream(&mut self, _: StreamId, _: &NestedConfig) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&mut self, _: &[Invalidation]) -> Result<(), Failure> {
        Ok(())
    }
}

/// What is wrong with an SMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Broken {
    #[default]
    No,
    /// It does not see that there are commands, until its queue is turned off.
    Stuck,
    /// It does not see that there are commands.
    Queue,
    /// The registers of its command queue stay as they are.
    Frozen,
    /// Nor that it is to be turned off.
    Everything,
    /// The n-th command of a batch is garbage when it is read, so many times.
    Command { nth: u32, times: u32 },
}

/// What a device does whenever the SMMU is told something.
type Watch = Box<dyn FnMut(&Hardware)>;

pub(crate) struct Hardware {
    pub(crate) memory: &'static FakeMemory,
    pub(crate) smmu: RefCell<VSmmu>,
    pub(crate) engine: RefCell<Engine>,
    pub(crate) broken: Cell<Broken>,
    pub(crate) watch: RefCell<Option<Watch>>,
    /// Commands consumed since this was looked at.
    pub(crate) commands: RefCell<Vec<[u64; 2]>>,
    /// Pages with accesses that it let through and that may not be over, and whether what they went by was
    /// invalidated since: they are over with the next `CMD_SYNC`.
    pub(crate) under_way: RefCell<BTreeMap<u64, bool>>,
}

impl Hardware {
    fn word(&self, at: u64) -> Option<u64> {
        let pa = Pa::new(at).ok()?;
        Some(u64::from_le(self.memory.read_u64(pa).ok()?))
    }

    fn register(&self, offset: usize) -> u64 {
        self.smmu.borrow().read(offset as u64, Width::Word)
    }

    fn wide(&self, offset: usize) -> u64 {
        self.smmu.borrow().read(offset as u64, Width::Double)
    }

    /// Where an access of a device goes. A fault is recorded, as far as faults are.
    pub(crate) fn dma(&self, access: Access) -> Result<u64, Fault> {
        self.look(access, &mut self.engine.borrow_mut())
            .inspect_err(|fault| self.record(*fault, access))
    }

    /// As [`Hardware::dma`], with an engine of the caller's, and without a record.
    pub(crate) fn look(&self, access: Access, engine: &mut Engine) -> Result<u64, Fault> {
        if self.register(regs::CR0ACK) & 1 == 0 {
            let aborts = self.register(regs::GBPA) >> 20 & 1 == 1;
            return if aborts {
                Err(Fault::Silent)
            } else {
                Ok(access.at)
            };
        }
        let table = (
            self.wide(regs::STRTAB_BASE),
            self.register(regs::STRTAB_BASE_CFG),
        );
        engine.translate(&|at| self.word(at), table, access)
    }

    fn record(&self, fault: Fault, access: Access) {
        let Fault::Recorded { id, stage2, class } = fault else {
            return;
        };
        let event = Event([
            id | u64::from(access.sid) << 32,
            class << 40 | u64::from(stage2) << 39 | u64::from(!access.write) << 35,
            access.at,
            access.at & !0xfff,
        ]);
        let sid = StreamId::new(access.sid).unwrap();
        let mut smmu = self.smmu.borrow_mut();
        let _ = smmu.report(sid, &event, &Bus(self.memory));
    }

    fn watch(&self) {
        let taken = self.watch.borrow_mut().take();
        if let Some(mut watch) = taken {
            watch(self);
            *self.watch.borrow_mut() = Some(watch);
        }
    }

    /// Spoils a command just before it is read.
    fn spoil(&self, producer: u64) {
        let Broken::Command { nth, times } = self.broken.get() else {
            return;
        };
        let base = self.wide(regs::CMDQ_BASE);
        let mask = (1 << (base & 0x1f)) - 1;
        let consumer = self.register(regs::CMDQ_CONS);
        let at = consumer + u64::from(nth);
        if at & mask < producer & mask && times > 0 {
            let place = (base & 0x000f_ffff_ffff_ffe0) + (at & mask) * 16;
            let pa = Pa::new(place).unwrap();
            self.memory.write_u64(pa, 0xff).unwrap();
            let times = times - 1;
            self.broken.set(Broken::Command { nth, times });
        }
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        self.watch();
        match (self.broken.get(), offset) {
            (Broken::Stuck | Broken::Queue | Broken::Everything, regs::CMDQ_PROD) if value != 0 => {
                return;
            }
            (Broken::Frozen, regs::CMDQ_PROD | regs::CMDQ_CONS)
            | (Broken::Everything, regs::CR0) => {
                return;
            }
            (Broken::Stuck, regs::CR0) if value & 1 << 3 == 0 => self.broken.set(Broken::No),
            (_, regs::CMDQ_PROD) => self.spoil(value),
            _ => {}
        }
        let before = self.register(regs::CMDQ_CONS);
        {
            let mut smmu = self.smmu.borrow_mut();
            let bus = Bus(self.memory);
            let mut outcome = smmu.write(offset as u64, width, value, &bus, &mut Nobody);
            while outcome.work == Work::More {
                outcome = smmu.run(&bus, &mut Nobody);
            }
        }
        if offset != regs::CMDQ_CONS {
            self.follow(before);
        }
        self.watch();
    }

    /// Carries out what was consumed.
    fn follow(&self, before: u64) {
        let base = self.wide(regs::CMDQ_BASE);
        let entries = 1 << (base & 0x1f);
        let mask = 2 * entries - 1;
        let after = self.register(regs::CMDQ_CONS) & mask;
        let mut at = before & mask;
        while at != after {
            let place = (base & 0x000f_ffff_ffff_ffe0) + (at & (entries - 1)) * 16;
            let command = [self.word(place).unwrap(), self.word(place + 8).unwrap()];
            self.engine.borrow_mut().forget(command);
            self.commands.borrow_mut().push(command);
            let mut under_way = self.under_way.borrow_mut();
            match command[0] & 0xff {
                0x46 => under_way.retain(|_, invalidated| !*invalidated),
                _ => under_way.values_mut().for_each(|gone| *gone = true),
            }
            at = (at + 1) & mask;
        }
    }
}

impl Mmio for Hardware {
    fn read8(&self, _: usize) -> u8 {
        panic!("no 8-bit registers")
    }
    fn read16(&self, _: usize) -> u16 {
        panic!("no 16-bit registers")
    }
    fn read32(&self, offset: usize) -> u32 {
        self.register(offset) as u32
    }
    fn read64(&self, offset: usize) -> u64 {
        self.wide(offset)
    }
    fn write8(&self, _: usize, _: u8) {
        panic!("no 8-bit registers")
    }
    fn write16(&self, _: usize, _: u16) {
        panic!("no 16-bit registers")
    }
    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, Width::Word, value.into());
    }
    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, Width::Double, value);
    }
}

/// A clock on which a millisecond passes whenever it is read: waits end soon.
#[derive(Debug, Default)]
pub(crate) struct Haste(Cell<u64>);

impl Clock for Haste {
    fn ticks(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    fn frequency(&self) -> u64 {
        1000
    }
}

/// What kind of SMMU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) ranges: bool,
    pub(crate) sid_bits: u8,
    pub(crate) commands_log2: u8,
    pub(crate) events_log2: u8,
    pub(crate) substreams: u8,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            ranges: true,
            sid_bits: 16,
            commands_log2: 8,
            events_log2: 7,
            substreams: 0,
        }
    }
}

pub(crate) type Driver =
    Smmu<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>, Haste>;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Streams that the front end records events of.
pub(crate) const STREAMS: [u32; 6] = [0, 3, 8, 9, 0x108, 0xff];

#[derive(Clone, Copy)]
pub(crate) struct Board {
    pub(crate) memory: &'static FakeMemory,
    pub(crate) frames: &'static FakeFrames<'static>,
    pub(crate) hardware: &'static Hardware,
}

impl Board {
    pub(crate) fn new(model: Model) -> Self {
        let memory: &FakeMemory = leak(FakeMemory::new(Pa::new(BASE).unwrap(), BYTES as usize));
        Self::over(model, memory, leak(FakeFrames::new(memory)))
    }

    /// A further SMMU of the same machine.
    pub(crate) fn beside(&self, model: Model) -> Self {
        Self::over(model, self.memory, self.frames)
    }

    fn over(
        model: Model,
        memory: &'static FakeMemory,
        frames: &'static FakeFrames<'static>,
    ) -> Self {
        let identity = Identity {
            idr0: Idr0::from_bits(0x0d44_101b).with_cd2l(model.substreams > 0),
            idr1: Idr1::from_bits(0x0273_0010).with_ssidsize(model.substreams),
            idr3: Idr3::from_bits(0x1414).with_ril(model.ranges),
            idr5: Idr5::from_bits(0x74),
            iidr: Iidr::from_bits(0),
            minor: 1,
        };
        let options = Options {
            ipa_bits: 44,
            stream_bits: model.sid_bits,
            commands_log2: model.commands_log2,
            events_log2: model.events_log2,
            ats: Ats::Off,
            messages: vsmmuv3::Messages::Off,
            // As QEMU's does: whoever forgets to lock it is seen.
            at_reset: AtReset::Bypass,
            single_address: SingleAddress::WholeLeaf,
        };
        let features = Features::derive(&identity, options).unwrap().double();
        let mut smmu = VSmmu::new(features);
        for sid in STREAMS {
            let sid = StreamId::new(sid).unwrap();
            let _ = smmu.add_stream(sid, &Bus(memory), &mut Nobody);
        }
        let hardware = leak(Hardware {
            memory,
            smmu: RefCell::new(smmu),
            engine: RefCell::default(),
            broken: Cell::default(),
            watch: RefCell::default(),
            commands: RefCell::default(),
            under_way: RefCell::default(),
        });
        Self {
            memory,
            frames,
            hardware,
        }
    }

    pub(crate) fn lock(&self) -> Locked<&'static Hardware> {
        Locked::take(self.hardware, &Haste::default()).unwrap()
    }

    pub(crate) fn try_driver(&self) -> Result<Driver, Error> {
        Smmu::enable(self.lock(), self.memory, self.frames, Haste::default())
    }

    pub(crate) fn driver(&self) -> Driver {
        self.try_driver().unwrap()
    }

    pub(crate) fn dma(&self, sid: u32, at: u64) -> Result<u64, Fault> {
        self.hardware.dma(Access {
            sid,
            ssid: None,
            at,
            write: true,
        })
    }

    pub(crate) fn put(&self, at: u64, words: &[u64]) {
        for (word, n) in words.iter().zip(0..) {
            let pa = Pa::new(at).unwrap().checked_add(n * 8).unwrap();
            self.memory.write_u64(pa, word.to_le()).unwrap();
        }
    }

    /// Commands consumed since this was asked last, waits not counted: their opcodes.
    pub(crate) fn opcodes(&self) -> Vec<u64> {
        let commands = std::mem::take(&mut *self.hardware.commands.borrow_mut());
        let opcodes = commands.iter().map(|[low, _]| low & 0xff);
        opcodes.filter(|opcode| *opcode != 0x46).collect()
    }
}
