//! LPIs from a source as simple as can be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bulkhead_vgic::{Affinity, Config, Kicks, Lpi, LpiSource, LpiTables, LrImage, Vgic, Width};

use crate::machine::{Machine, SPURIOUS};

#[derive(Debug, Default)]
struct Pending {
    /// `(priority, INTID)` of those that wait.
    waiting: Mutex<Vec<(u8, u32)>>,
    priorities: Mutex<BTreeMap<u32, u8>>,
    tables: Mutex<Option<LpiTables>>,
}

impl Pending {
    fn raise(&self, intid: u32, priority: u8) {
        self.priorities.lock().unwrap().insert(intid, priority);
        self.waiting.lock().unwrap().push((priority, intid));
    }
}

impl LpiSource for Pending {
    fn set_tables(&self, _vcpu: usize, tables: Option<LpiTables>) {
        *self.tables.lock().unwrap() = tables;
    }

    fn first(&self, vcpu: usize) -> Option<Lpi> {
        let waiting = self.waiting.lock().unwrap();
        let first = waiting.iter().min().filter(|_| vcpu == 0);
        first.map(|&(priority, intid)| Lpi { intid, priority })
    }

    fn take(&self, _vcpu: usize, intid: u32) {
        self.waiting.lock().unwrap().retain(|(_, i)| *i != intid);
    }

    fn give_back(&self, _vcpu: usize, intid: u32) -> Kicks {
        let priority = self.priorities.lock().unwrap()[&intid];
        self.raise(intid, priority);
        Kicks::NONE
    }
}

fn machine(list_registers: usize) -> (Machine, Arc<Pending>) {
    let source = Arc::new(Pending::default());
    let mut machine = Machine::enabled(1, 32, list_registers);
    let config = Config {
        affinities: &[Affinity::of_vcpu(0)],
        spis: 32,
        list_registers,
        hardware_ppis: 0,
        a3v: true,
    };
    machine.vgic = Vgic::new(&config).unwrap().with_lpis(source.clone());
    machine.write(0, 0, 2);
    (machine, source)
}

#[test]
fn an_lpi_is_signalled_once_and_has_no_active_state() {
    let (mut m, source) = machine(4);
    source.raise(8200, 0xa0);
    assert!(m.vgic.post_lpis(0).contains(0));
    m.settle();
    assert_eq!(m.acknowledge(0), 8200);
    assert_eq!(m.acknowledge(0), SPURIOUS);
    // It comes again while the guest handles it, and waits for the running priority only.
    source.raise(8200, 0xa0);
    let _ = m.vgic.post_lpis(0);
    m.settle();
    assert_eq!(m.acknowledge(0), SPURIOUS);
    m.end(0, 8200);
    assert_eq!(m.acknowledge(0), 8200);
    m.end(0, 8200);
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn an_lpi_that_was_not_taken_goes_back_to_its_source() {
    let (mut m, source) = machine(1);
    source.raise(8200, 0xa0);
    let _ = m.vgic.post_lpis(0);
    m.settle();
    assert!(source.waiting.lock().unwrap().is_empty());
    m.sync(0);
    assert_eq!(*source.waiting.lock().unwrap(), [(0xa0, 8200)]);
    m.settle();
    assert_eq!(m.acknowledge(0), 8200);
}

#[test]
fn lpis_compete_with_other_interrupts_by_priority() {
    let (mut m, source) = machine(1);
    m.write(0, 0x84, !0 >> 32);
    m.write(0, 0x104, !0 >> 32);
    m.write(0, 0x420, 0x60a0_a8a0);
    for intid in 8192..8195 {
        source.raise(intid, 0xa0);
    }
    source.raise(9000, 0x40);
    m.write(0, 0x204, 0b1111);
    let _ = m.vgic.post_lpis(0);
    m.settle();
    for intid in [9000, 35, 32, 34, 8192, 8193, 8194, 33] {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
    assert_eq!(m.acknowledge(0), SPURIOUS);
}

#[test]
fn what_became_pending_again_in_a_list_register_waits_behind_a_more_urgent_lpi() {
    let (mut m, source) = machine(2);
    m.write(0, 0x84, !0 >> 32);
    m.write(0, 0x104, !0 >> 32);
    m.write(0, 0xc08, !0 >> 32);
    m.write(0, 0x420, 0xa0a0_a0a0);
    m.pulse(33);
    assert_eq!(m.acknowledge(0), 33);
    for intid in [8192, 8193] {
        source.raise(intid, 0x90);
    }
    m.pulse(33);
    let _ = m.vgic.post_lpis(0);
    m.settle();
    m.end(0, 33);
    for intid in [8192, 8193, 33] {
        assert_eq!(m.acknowledge(0), intid);
        m.end(0, intid);
    }
}

#[test]
fn no_lpi_is_signalled_while_the_distributor_is_off() {
    let (mut m, source) = machine(4);
    m.write(0, 0, 0);
    source.raise(8200, 0xa0);
    let _ = m.vgic.post_lpis(0);
    m.settle();
    assert_eq!(m.acknowledge(0), SPURIOUS);
    let open = bulkhead_vgic::CpuContext {
        vmcr: 0xff << 24 | 2,
        ..Default::default()
    };
    assert!(!m.vgic.has_interrupt(0, &open));
    m.write(0, 0, 2);
    m.sync(0);
    assert!(m.vgic.has_interrupt(0, &open));
    m.settle();
    assert_eq!(m.acknowledge(0), 8200);
}

#[test]
fn the_source_learns_of_its_tables_when_the_guest_switches_lpis_on() {
    let (m, source) = machine(4);
    let read = |offset| m.vgic.read_redistributor(0, offset, Width::Double);
    let write = |offset, width, value| {
        let _ = m.vgic.write_redistributor(0, offset, width, value);
    };
    assert_eq!(m.vgic.read_distributor(4, Width::Word) >> 17 & 1, 1, "LPIS");
    assert_eq!(read(8) & 1, 1, "PLPIS");
    write(0x70, Width::Double, 0x4800_078f);
    write(0x78, Width::Double, 1 << 62 | 0x4801_0780);
    assert_eq!((read(0x70), read(0x78)), (0x4800_078f, 0x4801_0780));
    write(0, Width::Word, 1);
    let tables = LpiTables {
        propbaser: 0x4800_078f,
        pendbaser: 0x4801_0780,
    };
    assert_eq!(*source.tables.lock().unwrap(), Some(tables));
    assert_eq!(m.vgic.read_redistributor(0, 0, Width::Word), 0b11);
    write(0, Width::Word, 0);
    assert_eq!(*source.tables.lock().unwrap(), None);
    write(0, Width::Word, 1);
    m.vgic.reset();
    assert_eq!(*source.tables.lock().unwrap(), None);
    let mut image = LrImage::new();
    let _ = m.vgic.flush(0, &mut image);
    assert_eq!(image.live_count(), 0);
}
