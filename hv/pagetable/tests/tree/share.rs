//! The devices' view of a VM: a root of its own over the CPUs' RAM tables. And what devices wrote.

use crate::walker::{Machine, Walker, Watched, WatchedFrames};
use pagetable::{
    Error, Geometry, Invalidate, NotLive, OutputSize, PageTable, Stage2, Stage2Attributes, Stale,
};
use types::{Address, Iova, Ipa, Pa, PageSize, Span};

type Tree<'a, A> = PageTable<Stage2<A>, Watched<'a>, &'a WatchedFrames<'a>>;

const RAM: Stage2Attributes = Stage2Attributes::RAM;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// The CPUs' TLBs and the SMMU's.
struct Both<'a>(&'a Walker, &'a Walker);

impl<A: Address> Invalidate<A> for Both<'_> {
    fn publish(&mut self) {}
    fn invalidate(&mut self, stale: &Stale<A>) {
        (&mut &*self.0).invalidate(stale);
        (&mut &*self.1).invalidate(stale);
    }
    fn invalidate_all(&mut self) {
        Invalidate::<A>::invalidate_all(&mut &*self.0);
        Invalidate::<A>::invalidate_all(&mut &*self.1);
    }
    fn sync(&mut self) {
        Invalidate::<A>::sync(&mut &*self.0);
        Invalidate::<A>::sync(&mut &*self.1);
    }
}

fn trees<'a>(
    machine: &'a Machine,
    frames: &'a WatchedFrames<'a>,
    bits: u8,
) -> (Tree<'a, Ipa>, Tree<'a, Iova>) {
    let geometry = Geometry::new::<Stage2<Ipa>>(bits, OutputSize::Bits44).unwrap();
    let cpu = PageTable::new(geometry, machine.watched(), frames).unwrap();
    let device = PageTable::new(geometry, machine.watched(), frames).unwrap();
    machine.walker.start(Tree::<Ipa>::root(&cpu), geometry);
    machine.device.start(Tree::<Iova>::root(&device), geometry);
    (cpu, device)
}

fn ipa(start: u64, bytes: u64) -> Span<Ipa> {
    Span::from_len(Ipa::new(start).unwrap(), bytes).unwrap()
}

fn iova(start: u64, bytes: u64) -> Span<Iova> {
    Span::from_len(Iova::new(start).unwrap(), bytes).unwrap()
}

fn to(tree: &Tree<'_, Iova>, at: u64) -> Option<u64> {
    let leaf = tree.walk(Iova::truncated(at)).ok()?;
    Some(leaf.pa.bits())
}

#[test]
fn the_device_sees_ram_as_the_cpu_does_and_the_doorbell_alone() {
    for bits in [40, 44] {
        let machine = Machine::new();
        let frames = machine.frames();
        let (mut cpu, mut device) = trees(&machine, &frames, bits);
        let mut both = Both(&machine.walker, &machine.device);
        let pa = Pa::truncated(8 * GIB);
        for at in [GIB, GIB + 4 * MIB, 2 * GIB, 3 * GIB, 0x808_0000] {
            machine.walker.probe(at);
            machine.device.probe(at);
        }
        // One block, one run of small ones, and a unit with nothing in it yet.
        cpu.map(ipa(GIB, GIB + 4 * MIB), pa, RAM, &mut both)
            .unwrap();
        device
            .map(
                iova(0x808_0000, 4096),
                Pa::truncated(0x808_0000),
                RAM,
                &mut both,
            )
            .unwrap();
        device
            .share_subtree(&mut cpu, iova(GIB, 3 * GIB), &mut NotLive, &mut both)
            .unwrap();
        machine.assert_clean();

        assert_eq!(to(&device, GIB + 5), Some(8 * GIB + 5));
        assert_eq!(
            to(&device, 2 * GIB + 4 * MIB - 1),
            Some(9 * GIB + 4 * MIB - 1)
        );
        assert_eq!(to(&device, 2 * GIB + 4 * MIB), None);
        assert_eq!(to(&device, 0x808_0000), Some(0x808_0000));
        assert!(cpu.walk(Ipa::truncated(0x808_0000)).is_err());
        assert_eq!(
            cpu.walk(Ipa::truncated(GIB)).unwrap().size,
            PageSize::SIZE_2M
        );

        // What the CPU side changes, the device sees: map, split, unmap to the last page.
        let more = Pa::truncated(16 * GIB);
        cpu.map(ipa(3 * GIB, GIB), more, RAM, &mut both).unwrap();
        assert_eq!(to(&device, 4 * GIB - 1), Some(17 * GIB - 1));
        cpu.unmap(ipa(GIB + 4 * MIB, 4096), &mut both).unwrap();
        assert_eq!(to(&device, GIB + 4 * MIB), None);
        cpu.unmap(ipa(0, 1 << bits), &mut both).unwrap();
        assert_eq!(to(&device, GIB), None);
        cpu.map(ipa(GIB, GIB), more, RAM, &mut both).unwrap();
        assert_eq!(to(&device, GIB), Some(16 * GIB));
        machine.assert_clean();

        // Neither may go first.
        let (cpu, error) = cpu.destroy(&mut both).unwrap_err();
        assert_eq!(
            error,
            Error::Shared {
                at: Ipa::truncated(GIB)
            }
        );
        let (mut device, error) = device.destroy(&mut both).unwrap_err();
        assert_eq!(
            error,
            Error::Borrowed {
                at: Iova::truncated(GIB)
            }
        );
        let mut cpu = cpu;
        device
            .unshare_subtree(&mut cpu, iova(GIB, 3 * GIB), &mut both)
            .unwrap();
        assert_eq!(to(&device, GIB), None);
        device.destroy(&mut both).unwrap();
        cpu.destroy(&mut both).unwrap();
        assert_eq!(frames.frames.live_blocks(), 0);
        machine.assert_clean();
    }
}

#[test]
fn a_borrowed_table_is_changed_by_its_owner_only() {
    let machine = Machine::new();
    let frames = machine.frames();
    let (mut cpu, mut device) = trees(&machine, &frames, 40);
    cpu.map(ipa(GIB, GIB), Pa::ZERO, RAM, &mut NotLive).unwrap();
    device
        .share_subtree(&mut cpu, iova(GIB, GIB), &mut NotLive, &mut NotLive)
        .unwrap();
    let before = machine.image();
    let refused = Err(Error::Borrowed {
        at: Iova::truncated(GIB),
    });
    let all = iova(0, 4 * GIB);
    assert_eq!(device.unmap(all, &mut NotLive).map(|_| ()), refused);
    assert_eq!(device.protect(iova(GIB, 4096), RAM, &mut NotLive), refused);
    assert_eq!(device.track_dirty(all, &mut NotLive), refused);
    assert_eq!(
        device.map(iova(GIB, 4096), Pa::ZERO, RAM, &mut NotLive),
        refused
    );
    let again = device.share_subtree(&mut cpu, iova(0, 2 * GIB), &mut NotLive, &mut NotLive);
    assert_eq!(
        again,
        Err(Error::AlreadyMapped {
            at: Iova::truncated(GIB)
        })
    );
    let part = device.share_subtree(&mut cpu, iova(0, 4096), &mut NotLive, &mut NotLive);
    assert_eq!(part, Err(Error::Misaligned { value: 4096 }));
    let not = device.unshare_subtree(&mut cpu, iova(0, 2 * GIB), &mut NotLive);
    assert_eq!(
        not,
        Err(Error::NotMapped {
            at: Iova::truncated(0)
        })
    );
    assert_eq!(machine.image(), before);

    // A chain of borrowing is refused, and so is the eighth borrower.
    let mut others = Vec::new();
    for n in 1..8 {
        let geometry = device.geometry();
        let mut other: Tree<'_, Iova> =
            PageTable::new(geometry, machine.watched(), &frames).unwrap();
        let from_device =
            other.share_subtree(&mut device, iova(GIB, GIB), &mut NotLive, &mut NotLive);
        assert_eq!(from_device, refused);
        let from_cpu = other.share_subtree(&mut cpu, iova(GIB, GIB), &mut NotLive, &mut NotLive);
        let shared = Err(Error::Shared {
            at: Iova::truncated(GIB),
        });
        assert_eq!(from_cpu, if n < 7 { Ok(()) } else { shared });
        others.push(other);
    }
}

#[test]
fn sharing_without_frames_changes_no_translation_and_leaks_nothing() {
    let machine = Machine::new();
    let frames = machine.frames();
    let (mut cpu, mut device) = trees(&machine, &frames, 44);
    let span = iova(511 * GIB, 3 * GIB);
    cpu.map(ipa(512 * GIB, GIB), Pa::ZERO, RAM, &mut NotLive)
        .unwrap();
    // The owner needs a level-1 table, two empty ones and a split; the borrower two of level 1.
    let mut failures = 0;
    for nth in 0..16 {
        let live = frames.frames.live_blocks();
        frames.frames.fail_from(Some(nth));
        let result = device.share_subtree(&mut cpu, span, &mut NotLive, &mut NotLive);
        frames.frames.fail_from(None);
        match result {
            Err(Error::OutOfFrames(_)) => failures += 1,
            other => {
                other.unwrap();
                break;
            }
        }
        assert_eq!(frames.frames.live_blocks(), live);
        assert_eq!(to(&device, 512 * GIB), None);
        assert!(cpu.walk(Ipa::truncated(512 * GIB + 5)).is_ok());
    }
    assert_eq!(failures, 6);
    assert_eq!(to(&device, 512 * GIB + 5), Some(5));
    device
        .unshare_subtree(&mut cpu, span, &mut NotLive)
        .unwrap();
    device.destroy(&mut NotLive).unwrap();
    cpu.destroy(&mut NotLive).unwrap();
    assert_eq!(frames.frames.live_blocks(), 0);
}

#[test]
fn dirty_marks_are_taken_once_and_a_clean_page_is_still_writable() {
    let machine = Machine::new();
    let frames = machine.frames();
    let (mut cpu, _device) = trees(&machine, &frames, 40);
    let mut caches = &machine.walker;
    let all = ipa(0, GIB);
    for at in [0x1000, 0x3000, 2 * MIB] {
        machine.walker.probe(at);
    }
    cpu.map(ipa(0, 4 * MIB), Pa::ZERO, RAM, &mut caches)
        .unwrap();
    cpu.unmap(ipa(0x1000, 4096), &mut caches).unwrap();
    cpu.map(
        ipa(0x1000, 4096),
        Pa::ZERO,
        Stage2Attributes::ROM,
        &mut caches,
    )
    .unwrap();
    cpu.track_dirty(all, &mut caches).unwrap();
    let taken = |cpu: &mut Tree<'_, Ipa>| {
        let mut found = Vec::new();
        let mut caches = &machine.walker;
        cpu.take_dirty(all, &mut caches, |at, size| found.push((at.bits(), size)))
            .unwrap();
        found
    };
    assert_eq!(taken(&mut cpu), []);
    assert_eq!(cpu.walk(Ipa::truncated(0x3000)).unwrap().attributes, RAM);

    // Hardware writes to a page and to a block: it sets S2AP[1].
    let l2 = machine.word(cpu.root().bits()) & 0xffff_f000;
    let l3 = machine.word(l2) & 0xffff_f000;
    for slot in [l3 + 3 * 8, l2 + 8] {
        let word = machine.word(slot);
        assert_eq!(word & (1 << 51 | 1 << 7), 1 << 51);
        let dirty = (word | 1 << 7).to_le();
        hal::PhysMemory::write_u64(&machine.memory, Pa::truncated(slot), dirty).unwrap();
    }
    let dirty = [(0x3000, PageSize::SIZE_4K), (2 * MIB, PageSize::SIZE_2M)];
    assert_eq!(taken(&mut cpu), dirty);
    assert_eq!(taken(&mut cpu), []);
    cpu.untrack_dirty(all, &mut caches).unwrap();
    assert_eq!(machine.word(l3 + 3 * 8) & (1 << 51 | 1 << 7), 1 << 7);
    let rom = cpu.walk(Ipa::truncated(0x1000)).unwrap();
    assert_eq!(rom.attributes, Stage2Attributes::ROM);
    machine.assert_clean();
}
