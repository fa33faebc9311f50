//! Figures of the IOMMU core: mapping against bare page tables, lookup in small and large address
//! spaces, memory per area. `cargo bench -p bulkhead-iommu`.
//!
//! Everything compared is timed turn by turn in one run, and a ratio is that of the fastest rounds:
//! what else the machine does only ever adds time. Mapping compares, with one call for each area and for the same leaves: the core
//! (every rule, its areas, and the project's stage-2 tables), those tables alone, and
//! `aarch64-paging`'s bare stage-2 tables. All are reached through plain memory, by index.

mod stage2;

use core::hint::black_box;
use std::time::Instant;

use aarch64_paging::descriptor::Stage2Attributes as Bare;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2 as BareStage2};
use bulkhead_iommu::{
    Ats, Coherence, DeviceDescription, Extent, IoasId, Iommu, Map, MemoryId, MsiRoute, OwnerId,
    Path, Permissions, Placement, Residence, Target, UnitId,
};
use pagetable::{NotLive, Stage2Attributes};
use types::{Iova, Pa, Span};

use stage2::{OneTable, Ram};

const VM: OwnerId = OwnerId::new(1);
const GIB: u64 = 1 << 30;
/// Where the areas are, and (for the identity map of the bare tables) the memory too.
const AT: u64 = 4 * GIB;

/// How much is done.
#[derive(Clone, Copy)]
struct Scale {
    /// What is mapped and unmapped in a round.
    bytes: u64,
    /// Areas of a small and of a large address space.
    areas: [u64; 2],
    /// See [`ROUNDS`].
    rounds: usize,
}

/// For figures.
const WHOLE: Scale = Scale {
    bytes: GIB,
    areas: [1_000, 1_000_000],
    rounds: ROUNDS,
};

/// For `cargo test`: everything is done once or twice, and the figures that are no times must hold.
const BRIEF: Scale = Scale {
    bytes: 4 << 20,
    areas: [1_000, 10_000],
    rounds: 1,
};

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
        self.map_at(at, at, bytes);
    }

    fn map_at(&mut self, at: u64, offset: u64, bytes: u64) {
        let request = Map {
            placement: Placement::Fixed(Iova::truncated(AT + at)),
            memory: self.ram,
            offset,
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

/// Maps and unmaps so many bytes once in pieces of `area` bytes.
fn core_round(s: &mut Setup, bytes: u64, area: u64) {
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        s.map(at, area);
    }
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        s.unmap(at, area);
    }
}

fn tables_round(tree: &mut stage2::Tree, bytes: u64, area: u64) {
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        let span = Span::from_len(Iova::truncated(AT + at), area).unwrap();
        let pa = Pa::truncated(AT + at);
        tree.map(span, pa, Stage2Attributes::RAM, &mut NotLive)
            .unwrap();
    }
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        let span = Span::from_len(Iova::truncated(AT + at), area).unwrap();
        tree.unmap(span, &mut NotLive).unwrap();
    }
}

fn bare_round(bare: &mut IdMap<BareStage2>, bytes: u64, area: u64) {
    let constraints = Constraints::NO_CONTIGUOUS_HINT;
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        bare.map_range_with_constraints(&region(at, area), bare_flags(), constraints)
            .unwrap();
    }
    for at in (0..bytes).step_by(usize::try_from(area).unwrap()) {
        bare.map_range_with_constraints(&region(at, area), Bare::empty(), constraints)
            .unwrap();
    }
}

/// The rates of mapping and unmapping: of the core, of its tables alone, and of `aarch64-paging`'s
/// tables in use (as the core's are: with its checks of break-before-make and an invalidation for
/// each change, which on a host does nothing) and not in use (without both).
fn mapping(out: &mut Report, scale: Scale) {
    let bytes = scale.bytes;
    for (name, area) in [("4K", 4096), ("64K", 65536), ("2M", 2 << 20)] {
        // Short rounds are soon over, and many.
        let rounds = scale.rounds * if area == 4096 { 1 } else { 20 };
        let ram = Ram::new(4096);
        let mut s = setup(ram, bytes);
        let mut tree = stage2::tree(ram);
        let mut live_map = IdMap::new(1, BareStage2);
        live_map.mark_active();
        let mut idle = IdMap::new(1, BareStage2);
        let [core, tables, live, idle] = interleaved(
            rounds,
            [
                &mut || core_round(&mut s, bytes, area),
                &mut || tables_round(&mut tree, bytes, area),
                &mut || bare_round(&mut live_map, bytes, area),
                &mut || bare_round(&mut idle, bytes, area),
            ],
        );
        live_map.mark_inactive();
        let ns = |t: &Times| t.least() * 1e9 / (bytes / area) as f64;
        println!(
            "{name} areas, map and unmap, ns an area: core {:.1}, tables {:.1}, \
             aarch64-paging in use {:.1}, not in use {:.1}",
            ns(&core),
            ns(&tables),
            ns(&live),
            ns(&idle)
        );
        out.at_least(
            &format!("rate of {name} areas, core / aarch64-paging in use"),
            live.over(&core),
            1.0,
        );
        out.plain(
            &format!("rate of {name} areas, core / aarch64-paging not in use"),
            idle.over(&core),
        );
        out.plain(
            &format!("rate of {name} areas, tables alone / aarch64-paging in use"),
            live.over(&tables),
        );
    }
}

/// Times of one thing, in seconds, by round.
struct Times(Vec<f64>);

impl Times {
    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// How many times as long this takes as `other`.
    fn over(&self, other: &Self) -> f64 {
        self.least() / other.least()
    }
}

/// Rounds in which each thing is timed once, after one that is not. Enough that each meets a moment
/// in which the machine does nothing else.
const ROUNDS: usize = 25;

/// Times things turn by turn, so that what else the machine does meets all alike.
fn interleaved<const N: usize>(rounds: usize, mut things: [&mut dyn FnMut(); N]) -> [Times; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (thing, times) in things.iter_mut().zip(&mut times) {
            let start = Instant::now();
            thing();
            let took = start.elapsed().as_secs_f64();
            if round > 0 {
                times.push(took);
            }
        }
    }
    times.map(Times)
}

/// Addresses to look up, and how many are in a round: few, so that a round fits into a slice of time
/// that a busy machine gives; the next round takes the next ones.
const LOOKUPS: u64 = 1 << 18;
const IN_A_ROUND: usize = 1 << 14;
/// Rounds of lookups for each of [`ROUNDS`]: all addresses, often.
const LOOKUP_ROUNDS: usize = 40;

/// The next addresses, from the beginning again at the end.
fn next<'a>(addresses: &'a [Iova], round: &mut usize) -> &'a [Iova] {
    let chunks = addresses.len() / IN_A_ROUND;
    let from = *round % chunks * IN_A_ROUND;
    *round += 1;
    &addresses[from..from + IN_A_ROUND]
}

/// Addresses to look up, in an order that no cache can guess.
fn scattered(areas: u64, stride: u64) -> Vec<Iova> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    (0..LOOKUPS)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            Iova::truncated(AT + (x % areas) * stride + (x >> 52))
        })
        .collect()
}

/// Addresses to look up, page by page as a queue or a scatter list has them.
fn successive(areas: u64, stride: u64) -> Vec<Iova> {
    (0..LOOKUPS)
        .map(|i| Iova::truncated(AT + (i % areas) * stride + 8))
        .collect()
}

fn look_up(s: &Setup, addresses: &[Iova]) {
    for iova in addresses {
        black_box(s.core.translate(s.ioas, *iova).unwrap());
    }
}

/// How the areas of an address space differ.
#[derive(Clone, Copy)]
enum Kind {
    /// Pages that show one piece of memory, in order.
    Linear,
    /// Pages that show pages from anywhere in it.
    Mixed,
    /// Of different sizes.
    Odd,
}

impl Kind {
    /// From one area to the next, in bytes.
    fn stride(self) -> u64 {
        match self {
            Self::Linear | Self::Mixed => 4096,
            Self::Odd => 8192,
        }
    }
}

fn space(areas: u64, kind: Kind) -> Setup {
    let mut s = setup(Ram::new(8192), areas * kind.stride());
    for i in 0..areas {
        let at = i * kind.stride();
        let (offset, bytes) = match kind {
            Kind::Linear => (at, 4096),
            // A permutation: the factor has no divisor in common with powers of ten.
            Kind::Mixed => (i * 7919 % areas * 4096, 4096),
            Kind::Odd => (at, 4096 + i % 2 * 4096),
        };
        s.map_at(at, offset, bytes);
    }
    s
}

fn lookup(out: &mut Report, scale: Scale) {
    let [few, many] = scale.areas.map(|areas| {
        let s = space(areas, Kind::Linear);
        let space = s.core.ioas(s.ioas).unwrap();
        let bytes = space.area_bytes() as f64 / space.len() as f64;
        out.at_most(&format!("bytes an area, {areas} areas"), bytes, 96.0);
        (areas, s)
    });
    type Order = fn(u64, u64) -> Vec<Iova>;
    let orders: [(&str, Order); 2] = [("scattered", scattered), ("successive", successive)];
    for (name, order) in orders {
        let (small, large) = (order(few.0, 4096), order(many.0, 4096));
        let (a, b) = (bare_array(few.0), bare_array(many.0));
        let mut at = [0; 4];
        let [w, x, y, z] = &mut at;
        let [small, large, a, b] = interleaved(
            LOOKUP_ROUNDS * scale.rounds,
            [
                &mut || look_up(&few.1, next(&small, w)),
                &mut || look_up(&many.1, next(&large, x)),
                &mut || read_array(&a, next(&small, y)),
                &mut || read_array(&b, next(&large, z)),
            ],
        );
        let ns = |t: &Times| t.least() * 1e9 / IN_A_ROUND as f64;
        println!(
            "look up, {name}, ns: {:.1} among 1,000, {:.1} among 1,000,000; \
             bare arrays of as many areas: {:.1}, {:.1}",
            ns(&small),
            ns(&large),
            ns(&a),
            ns(&b)
        );
        out.at_most(
            &format!("look up, {name}, 1,000,000 areas / 1,000"),
            large.over(&small),
            2.0,
        );
        out.plain(
            &format!("floor, {name}: a bare array, 1,000,000 entries / 1,000"),
            b.over(&a),
        );
    }
    drop((few, many));
    // Areas that take more memory than those of most address spaces do.
    for (name, kind) in [("mixed pages", Kind::Mixed), ("odd sizes", Kind::Odd)] {
        let [few, many] = scale
            .areas
            .map(|areas| (space(areas, kind), scattered(areas, kind.stride())));
        let space = many.0.core.ioas(many.0.ioas).unwrap();
        let bytes = space.area_bytes() as f64 / space.len() as f64;
        out.at_most(
            &format!("bytes an area, {name}, 1000000 areas"),
            bytes,
            96.0,
        );
        let [small, large] = interleaved(
            2 * scale.rounds,
            [&mut || look_up(&few.0, &few.1), &mut || {
                look_up(&many.0, &many.1)
            }],
        );
        let ns = |t: &Times| t.least() * 1e9 / LOOKUPS as f64;
        println!(
            "look up, scattered, {name}, ns: {:.1} among 1,000, {:.1} among 1,000,000",
            ns(&small),
            ns(&large)
        );
        out.plain(
            &format!("look up, scattered, {name}, 1,000,000 areas / 1,000"),
            large.over(&small),
        );
    }
}

/// What a lookup at least has to read: an area, at a place known without a search.
fn bare_array(areas: u64) -> Vec<[u64; 4]> {
    (0..areas)
        .map(|i| [AT + i * 4096, AT + i * 4096 + 4095, i, i])
        .collect()
}

fn read_array(array: &[[u64; 4]], addresses: &[Iova]) {
    for iova in addresses {
        let at = usize::try_from((iova.bits() - AT) / 4096).unwrap();
        let [first, last, offset, _] = array[at];
        assert!(first <= iova.bits() && iova.bits() <= last);
        black_box(offset);
    }
}

/// The figures, with what they have to be.
#[derive(Default)]
struct Report(Vec<Figure>);

/// Name, value, and what it has to be.
type Figure = (String, f64, Option<(&'static str, f64)>);

impl Report {
    fn at_least(&mut self, name: &str, value: f64, limit: f64) {
        self.0.push((name.to_owned(), value, Some((">=", limit))));
    }

    fn at_most(&mut self, name: &str, value: f64, limit: f64) {
        self.0.push((name.to_owned(), value, Some(("<=", limit))));
    }

    fn plain(&mut self, name: &str, value: f64) {
        self.0.push((name.to_owned(), value, None));
    }

    /// One line a figure, which `cargo xtask bench iommu` reads: name, value, limit or `-`.
    fn print(&self) {
        for (name, value, limit) in &self.0 {
            let limit = limit.map_or("-".to_owned(), |(sign, limit)| format!("{sign} {limit}"));
            println!("figure|{name}|{value:.2}|{limit}");
        }
    }
}

/// In the words of `cargo test`: whether all that is no time is as it has to be, and every figure is a number.
fn smoke() {
    let mut out = Report::default();
    mapping(&mut out, BRIEF);
    lookup(&mut out, BRIEF);
    assert!(out.0.len() >= 15, "only {} figures", out.0.len());
    for (name, value, limit) in &out.0 {
        assert!(value.is_finite() && *value > 0.0, "{name}: {value}");
        if let (true, Some(("<=", limit))) = (name.starts_with("bytes"), limit) {
            assert!(value <= limit, "{name}: {value}, at most {limit}");
        }
    }
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

fn main() {
    // `cargo bench` passes `--bench`. `cargo test` does not; it may pass a filter, which is for other tests.
    if !std::env::args().any(|argument| argument == "--bench") {
        if std::env::args().len() == 1 {
            smoke();
        }
        return;
    }
    // With a word, only what it names: `cargo bench -p bulkhead-iommu -- lookup`.
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wanted = |part: &str| only.as_ref().is_none_or(|word| part.contains(word));
    let mut out = Report::default();
    if wanted("mapping") {
        mapping(&mut out, WHOLE);
    }
    if wanted("lookup") {
        lookup(&mut out, WHOLE);
    }
    out.print();
}
