//! Any bytes as what a guest and its devices do: against the model, or against nothing but the
//! promises that hold for every guest.

use bulkhead_vgic::{Kicks, LpiSource, LpiTables, Width};

use crate::model::Model;
use crate::rig::{
    BASER0, CONFIGURATION, CTLR, CWRITER, DISK, EDU, NET, QUEUE, QUEUE_BYTES, RAM, RAM_BYTES, Rig,
    VALID, clear, discard, int, inv, invall, mapc, mapd, mapi, mapti, movall, movi, sync, unmapc,
    unmapd,
};

const VCPUS: usize = 3;
/// Bytes of a step.
const STEP: usize = 8;

/// Takes the first byte as the kind of run, and every eight after it as a step.
pub(crate) fn exercise(bytes: &[u8]) {
    match bytes.split_first() {
        Some((kind, steps)) if kind & 1 == 0 => against_the_model(steps),
        Some((_, steps)) => wild(steps),
        None => {}
    }
}

/// The commands of a guest that mostly means well.
fn command(what: u8, [a, b, c, d]: [u8; 4]) -> [u64; 4] {
    let device = [DISK, NET, EDU, 0][usize::from(a & 3)];
    let event = u32::from(b) % 70;
    let collection = u64::from(c) % 5;
    let intid = 8190 + u32::from(d);
    let (from, to) = (u64::from(c & 3), u64::from(d & 3));
    match what % 20 {
        0 => mapd(device, u64::from(d % 18) + 1),
        1 => unmapd(device),
        2 | 3 => mapc(collection, to),
        4 => unmapc(collection),
        5 => mapi(device, event, collection),
        6 | 7 => movi(device, event, collection),
        8 => movall(from, to),
        9 => int(device, event),
        10 => clear(device, event),
        11 => discard(device, event),
        12 | 13 => inv(device, event),
        14 => invall(collection),
        15 => sync(from),
        _ => mapti(device, event, intid, collection),
    }
}

/// Every step does the same to the ITS and to the model, and both say the same afterwards.
fn against_the_model(steps: &[u8]) {
    let mut rig = Rig::enabled(VCPUS);
    let mut model = Model::new(VCPUS);
    for start in [
        mapd(DISK, 5),
        mapd(NET, 7),
        mapc(0, 0),
        mapc(1, 1),
        mapc(2, 2),
    ] {
        let _ = rig.send(&[start]);
        model.command(start);
    }
    let mut chunks = steps.chunks_exact(STEP);
    while let Some(&[what, how, a, b, c, d, e, f]) = chunks.next() {
        let vcpu = usize::from(a) % VCPUS;
        let before = model.waiting.clone();
        let mut own = None;
        let post = match what % 16 {
            0..=5 => {
                let words = command(how, [a, b, c, d]);
                if model.enabled {
                    model.command(words);
                    rig.send(&[words])
                } else {
                    Kicks::NONE
                }
            }
            6 => {
                let mut bytes = [0; 32];
                for (to, from) in bytes.chunks_exact_mut(STEP).zip(&mut chunks) {
                    to.copy_from_slice(from);
                }
                let words = core::array::from_fn(|word| {
                    u64::from_le_bytes(bytes[8 * word..8 * word + 8].try_into().unwrap())
                });
                if model.enabled {
                    model.command(words);
                    rig.send(&[words])
                } else {
                    Kicks::NONE
                }
            }
            7..=9 => {
                let device = [DISK, NET, EDU, 0][usize::from(a & 3)];
                let event = u32::from(b) % 70;
                model.signal(device, event);
                rig.signal(device, event)
            }
            10 | 11 => {
                if let Some(intid) = rig.first(vcpu) {
                    rig.vits.take(vcpu, intid);
                    model.take(vcpu, intid);
                }
                Kicks::NONE
            }
            12 => {
                let intid = 8190 + u32::from(b);
                own = Some(vcpu);
                model.give_back(vcpu, intid);
                rig.vits.give_back(vcpu, intid)
            }
            13 => {
                let intid = 8192 + u32::from(b);
                rig.configure(intid, c);
                model.memory[usize::from(b)] = c;
                Kicks::NONE
            }
            14 => {
                let table = match b % 4 {
                    0 => None,
                    1 => Some(0x1000),
                    _ => Some(CONFIGURATION),
                };
                let tables = table.map(|base| LpiTables {
                    propbaser: base | 13,
                    pendbaser: 0,
                });
                rig.vits.set_tables(vcpu, tables);
                let outcome = rig.vits.run(&rig.ram);
                assert!(outcome.is_done());
                model.set_table(vcpu, table);
                outcome.post()
            }
            _ => match e % 4 {
                0 => {
                    model.enabled = f & 1 != 0;
                    rig.write_word(CTLR, u64::from(f)).post()
                }
                1 if !model.enabled => {
                    model.no_devices();
                    rig.write(BASER0, VALID | RAM | 2 << 8).post()
                }
                _ => Kicks::NONE,
            },
        };
        compare(&rig, &model);
        // Whoever has something new is told, or is the vCPU that asked.
        for (vcpu, (now, then)) in model.waiting.iter().zip(&before).enumerate() {
            let is_new = now.iter().any(|intid| !then.contains(intid));
            let told = post.contains(u32::try_from(vcpu).unwrap()) || own == Some(vcpu);
            assert!(!is_new || told, "vCPU {vcpu} is not told");
        }
    }
    for vcpu in 0..VCPUS {
        while let Some(intid) = model.first(vcpu) {
            assert_eq!(rig.first(vcpu), Some(intid));
            model.take(vcpu, intid);
            rig.vits.take(vcpu, intid);
        }
        assert_eq!(rig.first(vcpu), None);
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

fn compare(rig: &Rig, model: &Model) {
    for vcpu in 0..VCPUS {
        assert_eq!(rig.first(vcpu), model.first(vcpu), "vCPU {vcpu}");
    }
    assert_eq!(rig.vits.faults().0, model.faults);
}

/// Any access to any register, any bytes as commands, memory that changes as it is read: work stays
/// bounded, and an LPI waits in one place at a time.
fn wild(steps: &[u8]) {
    let mut rig = Rig::mapped(VCPUS);
    let mut chunks = steps.chunks_exact(STEP);
    while let Some(&[what, how, a, b, c, d, e, f]) = chunks.next() {
        let word = u64::from(u32::from_le_bytes([c, d, e, f]));
        let vcpu = usize::from(a) % (VCPUS + 1);
        rig.ram.take_reads();
        match what % 8 {
            0 => {
                let offset = u64::from(u16::from_le_bytes([a, b]));
                let value = word | word << 32;
                let width = Width::from_sas(how);
                let _ = rig.vits.write(&rig.ram, offset, width, value);
                let _ = rig.vits.read(offset, width);
            }
            1 => {
                let at = u64::from(how) % 0x28 * 8;
                let value = word << (a % 33) | u64::from(b) << 56;
                let _ = rig.write(at, value);
            }
            2 => {
                let bytes = [a, b, c, d, e, f];
                let room = QUEUE_BYTES - bytes.len() as u64;
                rig.ram.put(
                    QUEUE + u64::from(how) * 32 % room + u64::from(a & 0x1f),
                    &bytes,
                );
            }
            3 => {
                let _ = rig.write(CWRITER, word & 0xf_ffff);
            }
            4 => {
                let tables = LpiTables {
                    propbaser: word << (b % 25) | u64::from(b),
                    pendbaser: word,
                };
                rig.vits.set_tables(vcpu, (how & 3 != 0).then_some(tables));
            }
            5 => {
                let _ = rig.signal([DISK, NET, EDU, low(word)][usize::from(a & 3)], b.into());
            }
            6 => {
                let intid = rig.first(vcpu).unwrap_or(8192 + u32::from(b));
                rig.vits.take(vcpu, intid);
                if how & 1 != 0 {
                    let _ = rig.vits.give_back(usize::from(c) % (VCPUS + 1), intid);
                }
            }
            _ => {
                rig.ram.flips_below = RAM + u64::from(how) * (RAM_BYTES as u64 / 0x100);
                let _ = rig.vits.run(&rig.ram);
            }
        }
        // 64 commands of one read, and at most two of 128 reads of configuration beside.
        assert!(rig.ram.take_reads().len() <= 64 + 2 * 128);
    }
    let mut seen = Vec::new();
    for vcpu in 0..VCPUS {
        seen.extend(rig.drain(vcpu));
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count, "an LPI waits in one place");
}
