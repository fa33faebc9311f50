//! The ITS as Linux's driver probes and uses it, with virtual CPU interfaces at the other end.

use std::sync::Arc;

use bulkhead_vgic::its::Outcome;
use bulkhead_vgic::{Affinity, Config, LpiSource, Vgic, Width};

use crate::machine::{Machine, SPURIOUS};
use crate::rig::{
    BASER0, BASER1, CBASER, CONFIGURATION, CREADR, CTLR, CWRITER, DISK, NET, QUEUE, RAM, Rig,
    VALID, inv, invall, mapc, mapd, mapti, movi, sync, unmapd,
};

const PENDING: u64 = RAM + 0x4_0000;
const INNER_SHAREABLE: u64 = 1 << 10;
const SHAREABILITY: u64 = 3 << 10;
const TYPER: u64 = 8;

/// A guest with both.
struct Guest {
    machine: Machine,
    rig: Rig,
    tail: u64,
}

impl Guest {
    fn new(vcpus: u8, list_registers: usize) -> Self {
        let rig = Rig::new(vcpus.into());
        let mut machine = Machine::enabled(vcpus, 32, list_registers);
        let affinities: Vec<_> = (0..vcpus).map(Affinity::of_vcpu).collect();
        let config = Config {
            affinities: &affinities,
            spis: 32,
            list_registers,
            hardware_ppis: 0,
            a3v: true,
        };
        let source: Arc<dyn LpiSource> = rig.vits.clone();
        machine.vgic = Vgic::new(&config).unwrap().with_lpis(source);
        machine.write(0, 0, 2);
        Self {
            machine,
            rig,
            tail: 0,
        }
    }

    /// What the arch crate does after a trap.
    fn after(&mut self, mut outcome: Outcome) {
        loop {
            let _ = self.machine.vgic.post_lpis_to(outcome.post());
            if !self.rig.vits.has_work() {
                break;
            }
            outcome = self.rig.vits.run(&self.rig.ram);
        }
        self.machine.settle();
    }

    fn write(&mut self, offset: u64, value: u64) {
        let outcome = self.rig.write(offset, value);
        self.after(outcome);
    }

    fn write_redistributor(&mut self, cpu: usize, offset: u64, width: Width, value: u64) {
        let vgic = &self.machine.vgic;
        let _ = vgic.write_redistributor(cpu, offset, width, value);
        let outcome = self.rig.vits.run(&self.rig.ram);
        self.after(outcome);
    }

    fn redistributor(&self, cpu: usize, offset: u64, width: Width) -> u64 {
        self.machine.vgic.read_redistributor(cpu, offset, width)
    }

    fn send(&mut self, commands: &[[u64; 4]]) {
        self.tail = self.rig.queue(commands);
        self.write(CWRITER, self.tail);
        assert_eq!(self.rig.read(CREADR), self.tail);
        assert_eq!(self.rig.vits.faults(), (0, None));
    }

    /// A device writes the doorbell.
    fn message(&mut self, device: u32, event: u32) {
        let vcpus = self.rig.signal(device, event);
        let _ = self.machine.vgic.post_lpis_to(vcpus);
        self.machine.settle();
    }

    fn acknowledge_and_end(&mut self, cpu: usize) -> u32 {
        let intid = self.machine.acknowledge(cpu);
        if intid != SPURIOUS {
            self.machine.end(cpu, intid);
        }
        intid
    }

    /// Sets a table register up as Linux does: page size and shareability are what stuck.
    fn set_up_table(&mut self, offset: u64, extra: u64) {
        let kind = self.rig.read(offset) & (7 << 56 | 0x1f << 48);
        for page_size in [2, 1, 0] {
            self.write(offset, page_size << 8);
            assert_eq!(self.rig.read(offset) >> 8 & 3, page_size);
        }
        let value = VALID | extra | 7 << 59 | RAM | INNER_SHAREABLE | 2 << 8 | kind;
        self.write(offset, value);
        assert_eq!(self.rig.read(offset), value);
    }

    fn probe(&mut self) {
        let vgic = &self.machine.vgic;
        let typer = vgic.read_distributor(4, Width::Word);
        assert_eq!(typer >> 17 & 1, 1, "LPIS");
        assert_eq!((typer >> 19 & 0x1f) + 1, 14, "IDbits");
        assert_eq!(typer >> 11 & 0x1f, 0, "num_LPIs: as many as IDbits allow");
        let arch = self.rig.vits.read(0xffe8, Width::Word) & 0xf0;
        assert!(arch == 0x30 || arch == 0x40);
        // Disabled, and quiescent before anything else is touched.
        let control = self.rig.vits.read(CTLR, Width::Word);
        assert_eq!((control & 1, control >> 31), (0, 1));
        let typer = self.rig.read(TYPER);
        assert_eq!(typer & 1, 1, "PLPIS");
        assert_eq!(typer & 0b10, 0, "VLPIS");
        assert_eq!(typer >> 19 & 1, 0, "PTA");
        let tables: Vec<_> = (0..8)
            .map(|n| self.rig.read(BASER0 + 8 * n) >> 56 & 7)
            .collect();
        assert_eq!(tables, [1, 4, 0, 0, 0, 0, 0, 0]);
        // Two-level if the bit sticks.
        self.write(BASER0, 1 << 62 | VALID);
        assert_eq!(self.rig.read(BASER0) >> 62 & 1, 1);
        self.set_up_table(BASER0, 1 << 62);
        self.set_up_table(BASER1, 0);
        let queue = VALID | 7 << 59 | QUEUE | INNER_SHAREABLE | 15;
        self.write(CBASER, queue);
        assert_eq!((self.rig.read(CBASER) ^ queue) & SHAREABILITY, 0);
        self.write(CWRITER, 0);
        let outcome = self.rig.write_word(CTLR, 1);
        self.after(outcome);
    }

    fn set_up_a_cpu(&mut self, cpu: usize) {
        assert_eq!(self.redistributor(cpu, 8, Width::Double) & 1, 1, "PLPIS");
        assert_eq!(self.redistributor(cpu, 0, Width::Word) & 1, 0);
        let properties = CONFIGURATION | INNER_SHAREABLE | 7 << 7 | 13;
        self.write_redistributor(cpu, 0x70, Width::Double, properties);
        assert_eq!(self.redistributor(cpu, 0x70, Width::Double), properties);
        let pending = PENDING | INNER_SHAREABLE | 7 << 7;
        self.write_redistributor(cpu, 0x78, Width::Double, pending | 1 << 62);
        assert_eq!(self.redistributor(cpu, 0x78, Width::Double), pending);
        self.write_redistributor(cpu, 0, Width::Word, 1);
        let control = self.redistributor(cpu, 0, Width::Word);
        assert_eq!(control & 1, 1);
        assert_eq!(control >> 3 & 1, 0, "RWP");
        let processor = self.redistributor(cpu, 8, Width::Double) >> 8 & 0xffff;
        self.send(&[
            mapc(cpu as u64, processor),
            sync(processor),
            invall(cpu as u64),
            sync(processor),
        ]);
    }

    /// Maps `vectors` of a device to LPIs from `first`, at CPU 0, and unmasks them.
    fn set_up_a_device(&mut self, device: u32, bits: u64, vectors: u32, first: u32) {
        self.send(&[mapd(device, bits), sync(0)]);
        for vector in 0..vectors {
            self.send(&[mapti(device, vector, first + vector, 0), sync(0)]);
        }
        for vector in 0..vectors {
            self.rig.configure(first + vector, 0xa3);
            self.send(&[inv(device, vector), sync(0)]);
        }
    }
}

fn booted(list_registers: usize) -> Guest {
    let mut guest = Guest::new(2, list_registers);
    guest.probe();
    guest.set_up_a_cpu(0);
    guest.set_up_a_cpu(1);
    guest.set_up_a_device(DISK, 5, 32, 8192);
    guest
}

#[test]
fn messages_reach_the_handler_of_the_cpu_they_are_for() {
    let mut guest = booted(4);
    guest.message(DISK, 7);
    assert_eq!(guest.acknowledge_and_end(0), 8199);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    assert_eq!(guest.acknowledge_and_end(1), SPURIOUS);
    // Control: a vector that is not mapped, and a device that is not.
    guest.message(NET, 0);
    guest.message(DISK, 32);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
}

#[test]
fn more_messages_than_list_registers_all_arrive() {
    for list_registers in [1, 2, 4, 16] {
        let mut guest = booted(list_registers);
        for vector in 0..32 {
            guest.message(DISK, vector);
        }
        let mut taken: Vec<u32> = Vec::new();
        for _ in 0..32 {
            taken.push(guest.acknowledge_and_end(0));
            guest.machine.settle();
        }
        taken.sort_unstable();
        assert_eq!(taken, (8192..8224).collect::<Vec<_>>(), "{list_registers}");
        assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    }
}

#[test]
fn a_masked_vector_is_delivered_when_it_is_unmasked() {
    let mut guest = booted(4);
    guest.rig.configure(8195, 0xa2);
    guest.send(&[inv(DISK, 3), sync(0)]);
    guest.message(DISK, 3);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    guest.rig.configure(8195, 0xa3);
    guest.send(&[inv(DISK, 3), sync(0)]);
    assert_eq!(guest.acknowledge_and_end(0), 8195);
}

#[test]
fn a_new_affinity_takes_effect_at_once_even_for_what_is_in_a_list_register() {
    let mut guest = booted(4);
    guest.message(DISK, 0);
    // In a list register of CPU 0, which has interrupts masked.
    guest.send(&[movi(DISK, 0, 1), sync(0)]);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    assert_eq!(guest.acknowledge_and_end(1), 8192);
    guest.message(DISK, 0);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    assert_eq!(guest.acknowledge_and_end(1), 8192);
}

#[test]
fn a_device_that_is_unmapped_is_silent_even_in_list_registers() {
    let mut guest = booted(4);
    guest.message(DISK, 0);
    guest.message(DISK, 1);
    guest.send(&[unmapd(DISK), sync(0)]);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
    guest.message(DISK, 0);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
}

#[test]
fn a_vector_that_fires_while_it_is_handled_comes_again() {
    let mut guest = booted(4);
    guest.message(DISK, 0);
    assert_eq!(guest.machine.acknowledge(0), 8192);
    guest.message(DISK, 0);
    assert_eq!(guest.machine.acknowledge(0), SPURIOUS);
    guest.machine.end(0, 8192);
    assert_eq!(guest.acknowledge_and_end(0), 8192);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
}

#[test]
fn a_cpu_that_goes_and_comes_back_gets_its_lpis() {
    let mut guest = booted(4);
    guest.message(DISK, 0);
    guest.write_redistributor(0, 0, Width::Word, 0);
    guest.message(DISK, 1);
    guest.write_redistributor(0, 0, Width::Word, 1);
    guest.message(DISK, 2);
    let mut taken = vec![guest.acknowledge_and_end(0), guest.acknowledge_and_end(0)];
    taken.retain(|intid| *intid != SPURIOUS);
    // What was in a list register may be there still; what came in between is lost.
    assert!(taken == [8194] || taken == [8192, 8194], "{taken:?}");
}

#[test]
fn a_second_kernel_starts_from_nothing() {
    let mut guest = booted(4);
    guest.message(DISK, 0);
    guest.machine.vgic.reset();
    guest.rig.vits.reset();
    guest.machine.cores = Machine::new(2, 32, 4).cores;
    guest.machine.settle();
    guest.rig.restart();
    guest.machine.write(0, 0, 2);
    guest.probe();
    guest.set_up_a_cpu(0);
    guest.set_up_a_device(DISK, 5, 2, 8192);
    guest.message(DISK, 1);
    assert_eq!(guest.acknowledge_and_end(0), 8193);
    assert_eq!(guest.acknowledge_and_end(0), SPURIOUS);
}
