//! A guest's RAM and its driver of the ITS, as plain as can be.

use std::cell::RefCell;
use std::sync::Arc;

use bulkhead_vgic::its::{DeviceEvents, GuestMemory, ItsConfig, NotRam, Outcome, Vits};
use bulkhead_vgic::{Kicks, LpiSource, LpiTables, Width};
use types::Ipa;

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_BYTES: usize = 0x10_0000;
pub(crate) const QUEUE: u64 = RAM;
pub(crate) const QUEUE_BYTES: u64 = 0x1_0000;
pub(crate) const CONFIGURATION: u64 = RAM + 0x2_0000;

pub(crate) const CTLR: u64 = 0;
pub(crate) const CBASER: u64 = 0x80;
pub(crate) const CWRITER: u64 = 0x88;
pub(crate) const CREADR: u64 = 0x90;
pub(crate) const BASER0: u64 = 0x100;
pub(crate) const BASER1: u64 = 0x108;
pub(crate) const VALID: u64 = 1 << 63;

/// A device with 32 events.
pub(crate) const DISK: u32 = 0x0008;
/// A device with 65 events.
pub(crate) const NET: u32 = 0x0100;
/// A device with one event.
pub(crate) const EDU: u32 = 0x0018;
/// What the VM has.
pub(crate) const DEVICES: [DeviceEvents; 3] = [
    DeviceEvents {
        device: NET,
        events: 65,
    },
    DeviceEvents {
        device: DISK,
        events: 32,
    },
    DeviceEvents {
        device: EDU,
        events: 1,
    },
];

/// Guest RAM that logs reads, and may change under them.
#[derive(Debug)]
pub(crate) struct Ram {
    bytes: RefCell<Vec<u8>>,
    reads: RefCell<Vec<(u64, usize)>>,
    /// Every byte read is inverted afterwards, if it lies below this.
    pub(crate) flips_below: u64,
}

impl Ram {
    pub(crate) fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; RAM_BYTES]),
            reads: RefCell::default(),
            flips_below: 0,
        }
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - RAM).unwrap();
        self.bytes.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn take_reads(&self) -> Vec<(u64, usize)> {
        self.reads.take()
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotRam> {
        self.reads.borrow_mut().push((at.bits(), into.len()));
        let fail = NotRam { at };
        let start = at.bits().checked_sub(RAM).ok_or(fail)?;
        let start = usize::try_from(start).map_err(|_| fail)?;
        let mut bytes = self.bytes.borrow_mut();
        let end = start.checked_add(into.len()).ok_or(fail)?;
        let from = bytes.get_mut(start..end).ok_or(fail)?;
        into.copy_from_slice(from);
        if at.bits() < self.flips_below {
            for byte in from {
                *byte = !*byte;
            }
        }
        Ok(())
    }
}

pub(crate) type Words = [u64; 4];

pub(crate) fn mapd(device: u32, bits: u64) -> Words {
    [8 | u64::from(device) << 32, bits - 1, VALID | RAM, 0]
}
pub(crate) fn unmapd(device: u32) -> Words {
    [8 | u64::from(device) << 32, 0, 0, 0]
}
pub(crate) fn mapc(collection: u64, vcpu: u64) -> Words {
    [9, 0, VALID | vcpu << 16 | collection, 0]
}
pub(crate) fn unmapc(collection: u64) -> Words {
    [9, 0, collection, 0]
}
pub(crate) fn mapti(device: u32, event: u32, intid: u32, collection: u64) -> Words {
    let pair = u64::from(event) | u64::from(intid) << 32;
    [10 | u64::from(device) << 32, pair, collection, 0]
}
pub(crate) fn mapi(device: u32, event: u32, collection: u64) -> Words {
    [11 | u64::from(device) << 32, event.into(), collection, 0]
}
pub(crate) fn movi(device: u32, event: u32, collection: u64) -> Words {
    [1 | u64::from(device) << 32, event.into(), collection, 0]
}
pub(crate) fn movall(from: u64, to: u64) -> Words {
    [14, 0, from << 16, to << 16]
}
fn on_event(opcode: u64, device: u32, event: u32) -> Words {
    [opcode | u64::from(device) << 32, event.into(), 0, 0]
}
pub(crate) fn int(device: u32, event: u32) -> Words {
    on_event(3, device, event)
}
pub(crate) fn clear(device: u32, event: u32) -> Words {
    on_event(4, device, event)
}
pub(crate) fn inv(device: u32, event: u32) -> Words {
    on_event(12, device, event)
}
pub(crate) fn discard(device: u32, event: u32) -> Words {
    on_event(15, device, event)
}
pub(crate) fn invall(collection: u64) -> Words {
    [13, 0, collection, 0]
}
pub(crate) fn sync(vcpu: u64) -> Words {
    [5, 0, vcpu << 16, 0]
}

/// A guest and its ITS.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) vits: Arc<Vits>,
    pub(crate) ram: Ram,
    vcpus: usize,
    tail: u64,
}

impl Rig {
    /// At reset.
    pub(crate) fn new(vcpus: usize) -> Self {
        let config = ItsConfig {
            vcpus,
            devices: &DEVICES,
        };
        Self {
            vits: Arc::new(Vits::new(&config).unwrap()),
            ram: Ram::new(),
            vcpus,
            tail: 0,
        }
    }

    /// Tables and queue in place, enabled, all vCPUs taking LPIs; nothing mapped.
    pub(crate) fn enabled(vcpus: usize) -> Self {
        let mut rig = Self::new(vcpus);
        rig.start();
        rig
    }

    /// What [`Rig::enabled`] does after [`Rig::new`].
    pub(crate) fn start(&mut self) {
        // Two-level, 64 KiB; flat, 4 KiB.
        let _ = self.write(BASER0, VALID | 1 << 62 | RAM | 2 << 8);
        let _ = self.write(BASER1, VALID | RAM);
        let _ = self.write(CBASER, VALID | QUEUE | (QUEUE_BYTES / 0x1000 - 1));
        let _ = self.write_word(CTLR, 1);
        self.tail = 0;
        for vcpu in 0..self.vcpus {
            self.enable_lpis(vcpu);
        }
        let _ = self.vits.run(&self.ram);
    }

    /// [`Rig::enabled`], collection n at vCPU n, devices mapped, every LPI configured as 0xa0.
    pub(crate) fn mapped(vcpus: usize) -> Self {
        let mut rig = Self::enabled(vcpus);
        rig.ram.put(CONFIGURATION, &[0xa1; 8192]);
        for vcpu in 0..vcpus as u64 {
            let _ = rig.send(&[mapc(vcpu, vcpu)]);
        }
        let _ = rig.send(&[mapd(DISK, 5), mapd(NET, 7), mapd(EDU, 1)]);
        assert_eq!(rig.vits.faults(), (0, None));
        rig
    }

    /// RAM and queue as at reset; the ITS stays.
    pub(crate) fn restart(&mut self) {
        self.ram = Ram::new();
        self.tail = 0;
    }

    pub(crate) fn enable_lpis(&self, vcpu: usize) {
        self.vits.set_tables(
            vcpu,
            Some(LpiTables {
                propbaser: CONFIGURATION | 13,
                pendbaser: 0,
            }),
        );
    }

    pub(crate) fn configure(&self, intid: u32, config: u8) {
        self.ram
            .put(CONFIGURATION + u64::from(intid - 8192), &[config]);
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.vits.read(offset, Width::Double)
    }

    pub(crate) fn write(&self, offset: u64, value: u64) -> Outcome {
        self.vits.write(&self.ram, offset, Width::Double, value)
    }

    pub(crate) fn write_word(&self, offset: u64, value: u64) -> Outcome {
        self.vits.write(&self.ram, offset, Width::Word, value)
    }

    /// Puts commands into the queue without telling the ITS; returns the new `CWRITER`.
    pub(crate) fn queue(&mut self, commands: &[Words]) -> u64 {
        for command in commands {
            for (word, at) in command.iter().zip((QUEUE + self.tail..).step_by(8)) {
                self.ram.put(at, &word.to_le_bytes());
            }
            self.tail = (self.tail + 32) % QUEUE_BYTES;
        }
        self.tail
    }

    /// Has commands done, however long that takes. Returns whom to tell.
    pub(crate) fn send(&mut self, commands: &[Words]) -> Kicks {
        let tail = self.queue(commands);
        let mut outcome = self.write(CWRITER, tail);
        let mut post = outcome.post();
        while !outcome.is_done() {
            outcome = self.vits.run(&self.ram);
            post = post.union(outcome.post());
        }
        assert_eq!(self.read(CREADR), tail);
        assert!(!self.vits.has_work());
        post
    }

    pub(crate) fn first(&self, vcpu: usize) -> Option<u32> {
        self.vits.first(vcpu).map(|lpi| lpi.intid)
    }

    /// Takes everything that waits for a vCPU, in order.
    pub(crate) fn drain(&self, vcpu: usize) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some(intid) = self.first(vcpu) {
            self.vits.take(vcpu, intid);
            all.push(intid);
        }
        all
    }

    pub(crate) fn signal(&self, device: u32, event: u32) -> Kicks {
        self.vits.signal(device, event)
    }
}
