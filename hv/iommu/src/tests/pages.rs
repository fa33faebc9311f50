//! Exact table contents for every alignment; pages of the IOMMU against pages of memory.

use super::*;
use crate::mock::{Leaves, SMALL_PAGE};
use crate::{MemoryType, PageSizes, Window};

/// Every start and every length over eight pages, against the walked table.
fn all_alignments(leaves: Leaves, domains: usize) {
    let mut f = Fixture::with_leaves(leaves);
    let mut devices = alloc::vec![f.attached(SMMU)];
    if domains == 2 {
        devices.push(f.attached(OTHER_SMMU));
    }
    let page = SMALL_PAGE;
    for start in 0..8 {
        for end in start + 1..=8 {
            let (at, bytes) = (AT + start * page, (end - start) * page);
            f.map(at, start * page, bytes).unwrap();
            for device in &devices {
                f.assert_shows(*device, at, start * page, bytes);
                let leaves: u64 = f.walk(*device).iter().map(|(_, leaf)| leaf.bytes).sum();
                assert_eq!(leaves, bytes);
            }
            f.unmap(at, bytes).unwrap();
            for device in &devices {
                assert_eq!(f.walk(*device), []);
            }
        }
    }
}

#[test]
fn one_table_shows_every_alignment_exactly() {
    all_alignments(Leaves::Small, 1);
}

#[test]
fn two_tables_show_every_alignment_exactly() {
    all_alignments(Leaves::Small, 2);
}

#[test]
fn one_table_with_huge_pages_shows_every_alignment_exactly() {
    all_alignments(Leaves::SmallAndHuge, 1);
}

#[test]
fn two_tables_with_huge_pages_show_every_alignment_exactly() {
    all_alignments(Leaves::SmallAndHuge, 2);
}

/// Every misaligned start or length over two pages is refused by a table.
#[test]
fn a_table_refuses_every_alignment_below_its_page() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    for odd in (1..SMALL_PAGE).step_by(511) {
        let refusal = |value| Error::Misaligned {
            value,
            alignment: SMALL_PAGE,
        };
        assert_eq!(refused(f.map(AT + odd, 0, PAGE)), refusal(AT + odd));
        assert_eq!(refused(f.map(AT, 0, odd)), refusal(odd));
        assert_eq!(refused(f.map(AT, odd, PAGE)), refusal(odd));
    }
    assert_eq!(f.census().areas, 0);
}

#[test]
fn alignment_is_a_byte_without_a_domain() {
    let mut f = Fixture::new();
    f.map(AT + 1, 3, 5).unwrap();
    let found = f.core.translate(f.ioas, iova(AT + 5)).unwrap();
    assert_eq!((found.pa.bits(), found.bytes), (RAM + 7, 1));
}

#[test]
fn the_alignment_query_follows_the_domains() {
    let mut f = Fixture::new();
    assert_eq!(f.core.alignment(f.ioas), Ok(1));
    let device = f.attached(SMMU);
    assert_eq!(f.core.alignment(f.ioas), Ok(SMALL_PAGE));
    f.core.detach(device).unwrap();
    assert_eq!(f.core.alignment(f.ioas), Ok(1));
}

#[test]
fn a_domain_whose_pages_are_too_large_for_what_is_mapped_is_refused() {
    let mut f = Fixture::new();
    f.map(AT, 0, SMALL_PAGE / 2).unwrap();
    let device = f.device(SMMU);
    assert_eq!(
        refused(f.core.attach(device, Target::Ioas(f.ioas))),
        Error::Misaligned {
            value: SMALL_PAGE / 2,
            alignment: SMALL_PAGE
        }
    );
    assert_eq!(f.core.backend().tables(), 0);
    f.unmap(AT, SMALL_PAGE / 2).unwrap();
    assert!(f.core.attach(device, Target::Ioas(f.ioas)).is_ok());
}

#[test]
fn a_read_only_mapping_lets_nobody_write() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let mut request = f.request(Placement::Fixed(iova(AT)), 0, PAGE);
    request.permissions = Permissions::Read;
    f.core.map(f.ioas, &request).unwrap();
    assert_eq!(f.dma(device, AT, Dma::Read), Ok(RAM));
    assert_eq!(f.dma(device, AT, Dma::Write), Err(DmaFault::Permission));
}

#[test]
fn a_write_only_mapping_lets_nobody_read() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let mut request = f.request(Placement::Fixed(iova(AT)), 0, PAGE);
    request.permissions = Permissions::Write;
    f.core.map(f.ioas, &request).unwrap();
    assert_eq!(f.dma(device, AT, Dma::Read), Err(DmaFault::Permission));
    assert_eq!(f.dma(device, AT, Dma::Write), Ok(RAM));
}

#[test]
fn ram_is_normal_memory_for_every_device() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    assert!(
        f.walk(device)
            .iter()
            .all(|(_, leaf)| leaf.memory == MemoryType::Normal)
    );
}

#[test]
fn scattered_memory_is_shown_piece_by_piece() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let pieces = [
        extent(0x1000_0000, PAGE),
        extent(0x5000_0000, 2 * PAGE),
        extent(0x3000_0000, PAGE),
    ];
    let scattered = f.core.add_ram(VM, &pieces).unwrap();
    let request = Map {
        memory: scattered,
        ..f.request(Placement::Fixed(iova(AT)), SMALL_PAGE, 3 * PAGE)
    };
    f.core.map(f.ioas, &request).unwrap();
    let shown: Vec<_> = f.walk(device).iter().map(|(_, l)| l.pa.bits()).collect();
    assert_eq!(
        shown,
        [
            0x1000_0800,
            0x5000_0000,
            0x5000_0800,
            0x5000_1000,
            0x5000_1800,
            0x3000_0000
        ]
    );
    let end = f.core.translate(f.ioas, iova(AT + SMALL_PAGE)).unwrap();
    assert_eq!((end.pa.bits(), end.bytes), (0x5000_0000, 2 * PAGE));
}

fn big_page_window(f: &mut Fixture) -> DeviceId {
    let windows = [Window {
        span: of(0, 1 << 30),
        pages: PageSizes::new(&[types::PageSize::SIZE_64K]),
    }];
    f.core.backend_mut().set_windows(TCE, &windows);
    f.attached(TCE)
}

#[test]
fn a_page_of_the_iommu_never_spans_scattered_memory() {
    let mut f = Fixture::new();
    big_page_window(&mut f);
    let pieces = [extent(0x1000_0000, 32 << 10), extent(0x5000_0000, 96 << 10)];
    let scattered = f.core.add_ram(VM, &pieces).unwrap();
    let request = Map {
        memory: scattered,
        ..f.request(Placement::Fixed(iova(0)), 0, 64 << 10)
    };
    assert_eq!(
        refused(f.core.map(f.ioas, &request)),
        Error::NotContiguous {
            pa: pa(0x1000_0000),
            page: 64 << 10
        }
    );
}

#[test]
fn a_page_of_the_iommu_never_shows_memory_that_is_aligned_to_less() {
    let mut f = Fixture::new();
    big_page_window(&mut f);
    let ram = f.core.add_ram(VM, &[extent(0x1000_1000, 1 << 20)]).unwrap();
    let request = Map {
        memory: ram,
        ..f.request(Placement::Fixed(iova(0)), 0, 64 << 10)
    };
    assert_eq!(
        refused(f.core.map(f.ioas, &request)),
        Error::NotContiguous {
            pa: pa(0x1000_1000),
            page: 64 << 10
        }
    );
    // The negative control: the same request on memory that is aligned.
    let device = f.attached(TCE);
    f.map(0, 64 << 10, 64 << 10).unwrap();
    assert_eq!(f.reads(device, 0), Some(RAM + (64 << 10)));
}

#[test]
fn a_mapping_never_crosses_from_one_window_to_the_next() {
    let mut f = Fixture::new();
    let pages = PageSizes::new(&[types::PageSize::SIZE_4K]);
    let windows = [
        Window {
            span: of(0, 16 * PAGE),
            pages,
        },
        Window {
            span: of(16 * PAGE, 16 * PAGE),
            pages,
        },
    ];
    f.core.backend_mut().set_windows(TCE, &windows);
    f.attached(TCE);
    assert_eq!(
        refused(f.map(15 * PAGE, 0, 2 * PAGE)),
        Error::OutsideWindows {
            span: of(15 * PAGE, 2 * PAGE)
        }
    );
    assert!(f.map(14 * PAGE, 0, 2 * PAGE).is_ok());
    assert_eq!(f.map_auto(0, 16 * PAGE), Ok(16 * PAGE));
}
