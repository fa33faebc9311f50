//! Figures of the IOMMU core: mapping against bare page tables, lookup in small and large address
//! spaces, memory per area. `cargo bench -p bulkhead-iommu`.
//!
//! The groups `map and unmap 1 GiB` each compare, in one run: `core` (every rule of the core, its
//! areas, and the project's stage-2 tables), `tables` (those tables alone) and `aarch64-paging`
//! (that crate's bare stage-2 tables), with one call for each area, for the same leaves.

mod stage2;

use core::hint::black_box;
use std::time::{Duration, Instant};

use aarch64_paging::descriptor::Stage2Attributes as Bare;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2 as BareStage2};
use bulkhead_iommu::{
    Ats, Coherence, DeviceDescription, Extent, IoasId, Iommu, Map, MemoryId, MsiRoute, OwnerId,
    Path, Permissions, Placement, Residence, Target, UnitId,
};
use criterion::{BenchmarkId, Criterion, Throughput};
use pagetable::{NotLive, Stage2Attributes};
use types::{Iova, Pa, Span};

use stage2::{OneTable, Ram};

const VM: OwnerId = OwnerId::new(1);
const GIB: u64 = 1 << 30;
/// Where the areas are, and (for the identity map of the bare tables) the memory too.
const AT: u64 = 4 * GIB;

struct Setup {
    core: Iommu<OneTable>,
    ioas: IoasId,
    ram: MemoryId,
}

fn setup(ram: &'static Ram, bytes: u64) -> Setup {
    let mut core = Iommu::new(OneTable::new(ram));
    let ioas = core.create_ioas(VM).unwrap();
    let extent = Extent {
        pa: Pa::truncated(AT),
        bytes,
    };
    let ram = core.add_ram(VM, &[extent]).unwrap();
    let group = core.add_group(UnitId::new(0), Residence::Free).unwrap();
    let device = core
        .add_device(&DeviceDescription {
            group,
            sources: &[8],
            aliases: &[],
            reserved: &[],
            path: Path::Redirected,
            msi: MsiRoute::Doorbell,
            coherence: Coherence::Coherent,
            ats: Ats::Off,
        })
        .unwrap();
    core.bind(device, VM).unwrap();
    core.attach(device, Target::Ioas(ioas)).unwrap();
    Setup { core, ioas, ram }
}

impl Setup {
    fn map(&mut self, at: u64, bytes: u64) {
        let request = Map {
            placement: Placement::Fixed(Iova::truncated(AT + at)),
            memory: self.ram,
            offset: at,
            bytes,
            permissions: Permissions::ReadWrite,
        };
        self.core.map(self.ioas, &request).unwrap();
    }

    fn unmap(&mut self, at: u64, bytes: u64) {
        let span = Span::from_len(Iova::truncated(AT + at), bytes).unwrap();
        self.core.unmap(self.ioas, span).unwrap();
    }
}

fn region(at: u64, bytes: u64) -> MemoryRegion {
    let at = usize::try_from(AT + at).unwrap();
    MemoryRegion::new(at, at + usize::try_from(bytes).unwrap())
}

fn bare_flags() -> Bare {
    Bare::VALID
        | Bare::MEMATTR_NORMAL_INNER_WB
        | Bare::MEMATTR_NORMAL_OUTER_WB
        | Bare::S2AP_ACCESS_RW
        | Bare::SH_INNER
        | Bare::ACCESS_FLAG
}

/// Maps and unmaps 1 GiB once in pieces of `area` bytes.
fn core_round(s: &mut Setup, area: u64) {
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        s.map(at, area);
    }
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        s.unmap(at, area);
    }
}

fn tables_round(tree: &mut stage2::Tree, area: u64) {
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        let span = Span::from_len(Iova::truncated(AT + at), area).unwrap();
        let pa = Pa::truncated(AT + at);
        tree.map(span, pa, Stage2Attributes::RAM, &mut NotLive)
            .unwrap();
    }
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        let span = Span::from_len(Iova::truncated(AT + at), area).unwrap();
        tree.unmap(span, &mut NotLive).unwrap();
    }
}

fn bare_round(bare: &mut IdMap<BareStage2>, area: u64) {
    let constraints = Constraints::NO_CONTIGUOUS_HINT;
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        bare.map_range_with_constraints(&region(at, area), bare_flags(), constraints)
            .unwrap();
    }
    for at in (0..GIB).step_by(usize::try_from(area).unwrap()) {
        bare.map_range_with_constraints(&region(at, area), Bare::empty(), constraints)
            .unwrap();
    }
}

fn mapping(c: &mut Criterion) {
    for (name, area) in [("4K", 4096), ("64K", 65536), ("2M", 2 << 20)] {
        let mut group = c.benchmark_group(format!("map and unmap 1 GiB as {name} areas"));
        group.throughput(Throughput::Elements(GIB / area));
        let ram = Ram::new(4096);
        let mut s = setup(ram, GIB);
        group.bench_function("core", |b| b.iter(|| core_round(&mut s, area)));
        let mut tree = stage2::tree(ram);
        group.bench_function("tables", |b| b.iter(|| tables_round(&mut tree, area)));
        let mut bare = IdMap::new(1, BareStage2);
        group.bench_function("aarch64-paging", |b| {
            b.iter(|| bare_round(&mut bare, area));
        });
        group.finish();
        let ratio = paired(|| bare_round(&mut bare, area), || core_round(&mut s, area));
        println!("core / aarch64-paging, {name} areas: {ratio:.2} x the rate (median of pairs)");
    }
}

/// How many times as long `a` takes as `b`: the median of interleaved pairs.
fn paired(mut a: impl FnMut(), mut b: impl FnMut()) -> f64 {
    let time = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    let mut ratios: Vec<f64> = (0..15)
        .map(|_| {
            let (a, b) = (time(&mut a), time(&mut b));
            a / b
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Addresses to look up, in an order that no cache can guess.
fn scattered(areas: u64) -> Vec<Iova> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    (0..65536)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            Iova::truncated(AT + (x % areas) * 4096 + (x >> 52))
        })
        .collect()
}

/// Addresses to look up, page by page as a queue or a scatter list has them.
fn successive(areas: u64) -> Vec<Iova> {
    (0..65536)
        .map(|i| Iova::truncated(AT + (i % areas) * 4096 + 8))
        .collect()
}

fn look_up(s: &Setup, addresses: &[Iova]) {
    for iova in addresses {
        black_box(s.core.translate(s.ioas, *iova).unwrap());
    }
}

fn lookup(c: &mut Criterion) {
    let spaces: Vec<(u64, Setup)> = [1_000, 1_000_000]
        .into_iter()
        .map(|areas| {
            let mut s = setup(Ram::new(8192), areas * 4096);
            for i in 0..areas {
                s.map(i * 4096, 4096);
            }
            (areas, s)
        })
        .collect();
    for (areas, s) in &spaces {
        let space = s.core.ioas(s.ioas).unwrap();
        let bytes = space.area_bytes() as f64 / space.len() as f64;
        println!("memory per area, {areas} areas: {bytes:.1} bytes");
    }
    type Order = fn(u64) -> Vec<Iova>;
    let orders: [(&str, Order); 2] = [("scattered", scattered), ("successive", successive)];
    for (name, order) in orders {
        let mut group = c.benchmark_group(format!("look up, {name}"));
        group.throughput(Throughput::Elements(65536));
        for (areas, s) in &spaces {
            let addresses = order(*areas);
            group.bench_with_input(BenchmarkId::from_parameter(areas), s, |b, s| {
                b.iter(|| look_up(s, &addresses));
            });
        }
        group.finish();
        let [(few, small), (many, large)] = &spaces[..] else {
            continue;
        };
        let (few, many) = (order(*few), order(*many));
        let ratio = paired(|| look_up(large, &many), || look_up(small, &few));
        println!("look up, {name}, 1,000,000 areas / 1,000: {ratio:.2} x the time");
    }
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    mapping(&mut c);
    lookup(&mut c);
    c.final_summary();
}
