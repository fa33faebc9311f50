//! EL2 stage 1: the hypervisor's own map.

use crate::walker::{Machine, TABLES};
use pagetable::{El2, El2Access, El2Attributes, Geometry, NotLive, OutputSize, PageTable};
use types::{Pa, Span, Va};

#[test]
fn an_image_is_mapped_to_itself_with_nothing_writable_and_executable() {
    let machine = Machine::new();
    let frames = machine.frames();
    let geometry = Geometry::new::<El2>(48, OutputSize::Bits40).unwrap();
    let mut map: PageTable<El2, _, _> =
        PageTable::new(geometry, machine.watched(), &frames).unwrap();
    machine.walker.start(map.root(), geometry);
    let mut caches = &machine.walker;
    let base = 0x4020_0000;
    machine.walker.probe(base);
    let mut put = |at, bytes, attributes| {
        let span = Span::from_len(Va::truncated(at), bytes).unwrap();
        map.map(span, Pa::truncated(at), attributes, &mut caches)
            .unwrap();
    };
    put(base, 0x20_0000, El2Attributes::CODE);
    put(base + 0x20_0000, 0x3000, El2Attributes::CONSTANTS);
    put(base + 0x20_3000, 0x1f_d000, El2Attributes::DATA);
    put(0x900_0000, 0x1000, El2Attributes::DEVICE);
    put(0x80_0000_0000, 0x4000_0000, El2Attributes::DATA);

    // Levels 0 and 1 hold tables; level 2 the code block, AttrIndx 1, inner shareable, AF, read-only.
    let level_1 = machine.word(TABLES) & 0xffff_ffff_f000;
    let level_2 = machine.word(level_1 + 8) & 0xffff_ffff_f000;
    assert_eq!(machine.word(level_2 + 8), 0x4020_07c5);
    let level_3 = machine.word(level_2 + 16) & 0xffff_ffff_f000;
    assert_eq!(machine.word(level_3), 0x0040_0000_4040_07c7);
    assert_eq!(machine.word(level_3 + 3 * 8), 0x0040_0000_4040_3747);
    let far = machine.word(TABLES + 8) & 0xffff_ffff_f000;
    assert_eq!(machine.word(far), 0x0040_0080_0000_0745);

    // A guard page, then constants once relocation is done.
    let guard = Span::from_len(Va::truncated(base + 0x20_4000), 0x1000).unwrap();
    map.unmap(guard, &mut caches).unwrap();
    assert!(map.walk(guard.start()).is_err());
    let sealed = Span::from_len(Va::truncated(base + 0x20_3000), 0x1000).unwrap();
    map.protect(sealed, El2Attributes::CONSTANTS, &mut caches)
        .unwrap();
    let leaf = map.walk(Va::truncated(base + 0x20_3ff8)).unwrap();
    assert_eq!(leaf.attributes.access, El2Access::Read);
    assert_eq!(leaf.pa, Pa::truncated(base + 0x20_3ff8));
    assert!(map.walk(Va::truncated(u64::MAX)).is_err());
    map.destroy(&mut NotLive).unwrap();
    assert_eq!(frames.frames.live_blocks(), 0);
}
