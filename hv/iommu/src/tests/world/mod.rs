//! Random sequences of every kind of operation against a naive model: windows, dirty tracking, guests'
//! domains, doorbells, revocation, unmapping under pins, cutting and exchanging, besides what
//! [`model`](super::model) does with failing allocations.
//!
//! The model knows intervals of addresses, where they lead, and which device looks at which space. It
//! foretells of each operation whether it is refused. After each the tables below every device are
//! walked, and DMA is tried, through whatever is cached.

mod model;
mod steps;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use core::cell::RefCell;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use types::PageSize;

use super::nested::TRANSLATE;
use super::*;
use crate::mock::{
    APERTURE_LAST, DEFAULT_WINDOW_BYTES, DYNAMIC_WINDOW_BASE, MAX_WINDOWS, SMALL_PAGE, check,
};
use crate::{
    AccessId, Binding, DirtyRead, DirtyTracking, DomainId, DomainOptions, Hold, Intent, MemoryType,
    NestedConfig, PeerToPeer, Pin, Revocation, Unmapping,
};

const BAR: u64 = 0x10_0000_0000;
const BAR_PAGES: u64 = 32;
const MIB: u64 = 1 << 20;

/// Behind the SMMU: a device with a BAR, one with a guest's stage 1, one with doorbells; a PE; one
/// behind the other SMMU.
const EXPORTER: usize = 0;
const NESTED: usize = 1;
const RINGING: usize = 2;
const PE: usize = 3;
const ELSEWHERE: usize = 4;

/// The space that the windows of the PE are in.
const TCE_SPACE: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Ram,
    Bar,
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    last: u64,
    what: What,
    offset: u64,
    permissions: Permissions,
}

/// What a device can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Space(usize),
    /// Requested domains: the nest parent, and those of a guest on it; of the PE, the one it has.
    Parent,
    Abort,
    Bypass,
    Translate,
    Blocked,
    Pe,
}

impl To {
    /// The space that is seen through it.
    fn seen(self) -> Option<usize> {
        match self {
            Self::Space(space) => Some(space),
            Self::Parent | Self::Bypass | Self::Translate => Some(0),
            Self::Pe => Some(TCE_SPACE),
            Self::Abort | Self::Blocked => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(usize, u64, What, u64, u64, Permissions),
    Auto(usize, What, u64, u64),
    Unmap(usize, u64, u64),
    Everything(usize),
    Copy(usize, u64, u64, usize, u64),
    Split(usize, u64),
    Exchange(usize, u64, u64, u64, Permissions),
    Allow(usize, bool),
    Attach(usize, To),
    Replace(usize, To),
    Detach(usize),
    Pin(usize, u64, u64, Hold),
    Unpin(usize),
    Begin(usize, u64, u64),
    Poll(usize),
    Abort(usize),
    Reset(bool),
    CreateWindow(PageSize, u32),
    RemoveWindow(bool),
    ResetWindows,
    Doorbell(u64),
    MoveMsi(u64, u64),
    Track(DirtyTracking),
    Write(usize, u64),
    ReadDirty(u64, u64, u64, DirtyRead),
    /// Asks for the end of what is in use.
    Destroy,
}

/// From here on, a place is one of what is mapped: see [`World::range`].
const THERE: u64 = 128;

/// Places are pages in one of a few regions.
fn place(at: u64) -> u64 {
    match at {
        0..48 => AT + at * PAGE,
        48..80 => AT + MIB + (at - 48) * 16 * PAGE,
        _ => DYNAMIC_WINDOW_BASE + (at - 80) * PAGE,
    }
}

fn op() -> impl Strategy<Value = Op> {
    let permissions = || {
        prop_oneof![
            1 => Just(Permissions::Read),
            1 => Just(Permissions::Write),
            3 => Just(Permissions::ReadWrite)
        ]
    };
    let what = || prop_oneof![3 => Just(What::Ram), 1 => Just(What::Bar)];
    let space = || 0..2_usize;
    let at = || prop_oneof![4 => 0..48_u64, 1 => 48..80_u64, 1 => 80..112_u64];
    // Most look at what is mapped, whatever that is by then: see `World::range`.
    let near = || prop_oneof![1 => at(), 3 => THERE..THERE + 96];
    let len = || prop_oneof![3 => Just(1_u64), 6 => 1..8_u64, 2 => Just(16_u64)];
    let offset = || prop_oneof![3 => 0..32_u64, 1 => (0..3_u64).prop_map(|n| n * 16)];
    let to = || {
        prop_oneof![
            4 => (0..2_usize).prop_map(To::Space),
            1 => Just(To::Parent),
            1 => Just(To::Abort),
            1 => Just(To::Bypass),
            1 => Just(To::Translate),
            1 => Just(To::Blocked),
            2 => Just(To::Pe)
        ]
    };
    let hold = || prop_oneof![3 => Just(Hold::Revocable), 1 => Just(Hold::Hardware)];
    let read = || prop_oneof![Just(DirtyRead::Clear), Just(DirtyRead::Keep)];
    let page = || {
        prop_oneof![
            4 => Just(PageSize::SIZE_4K),
            2 => Just(PageSize::SIZE_64K),
            1 => Just(PageSize::SIZE_1G)
        ]
    };
    prop_oneof![
        8 => (space(), at(), what(), offset(), len(), permissions())
            .prop_map(|(a, b, c, d, e, f)| Op::Map(a, b, c, d, e, f)),
        2 => (space(), what(), offset(), len()).prop_map(|(a, b, c, d)| Op::Auto(a, b, c, d)),
        4 => (space(), near(), 1..40_u64).prop_map(|(a, b, c)| Op::Unmap(a, b, c)),
        1 => space().prop_map(Op::Everything),
        3 => (space(), near(), len(), space(), at()).prop_map(|(a, b, c, d, e)| Op::Copy(a, b, c, d, e)),
        3 => (space(), near()).prop_map(|(a, b)| Op::Split(a, b)),
        3 => (space(), near(), len(), offset(), permissions())
            .prop_map(|(a, b, c, d, e)| Op::Exchange(a, b, c, d, e)),
        1 => (space(), any::<bool>()).prop_map(|(a, b)| Op::Allow(a, b)),
        5 => (0..5_usize, to()).prop_map(|(a, b)| Op::Attach(a, b)),
        4 => (0..5_usize, to()).prop_map(|(a, b)| Op::Replace(a, b)),
        2 => (0..5_usize).prop_map(Op::Detach),
        6 => (space(), near(), len(), hold()).prop_map(|(a, b, c, d)| Op::Pin(a, b, c, d)),
        3 => any::<usize>().prop_map(Op::Unpin),
        5 => (space(), near(), 1..40_u64).prop_map(|(a, b, c)| Op::Begin(a, b, c)),
        6 => space().prop_map(Op::Poll),
        1 => space().prop_map(Op::Abort),
        3 => any::<bool>().prop_map(Op::Reset),
        2 => (page(), 16..34_u32).prop_map(|(a, b)| Op::CreateWindow(a, b)),
        2 => any::<bool>().prop_map(Op::RemoveWindow),
        1 => Just(Op::ResetWindows),
        3 => (0..3_u64).prop_map(Op::Doorbell),
        1 => (0..3_u64, 0..3_u64).prop_map(|(a, b)| Op::MoveMsi(a, b)),
        2 => prop_oneof![3 => Just(DirtyTracking::On), 1 => Just(DirtyTracking::Off)]
            .prop_map(Op::Track),
        8 => (prop_oneof![0..5_usize, Just(NESTED)], near()).prop_map(|(a, b)| Op::Write(a, b)),
        3 => (0..40_u64, len(), 0..3_u64, read()).prop_map(|(a, b, c, d)| Op::ReadDirty(a, b, c, d)),
        1 => Just(Op::Destroy),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doorbell {
    window: u64,
    pa: u64,
    iova: u64,
}

#[derive(Debug, Default)]
struct Model {
    spaces: [BTreeMap<u64, Interval>; 2],
    allowed: [bool; 2],
    devices: [Option<To>; 5],
    revoked: bool,
    pins: Vec<(usize, u64, u64, Option<Hold>)>,
    waiting: [Option<(u64, u64)>; 2],
    /// Of the PE: first and last address, page.
    windows: Vec<(u64, u64, u64)>,
    /// Of the device that rings; and those that the table of a space has been given.
    doorbells: Vec<Doorbell>,
    shown: [Vec<Doorbell>; 2],
    msi: u64,
    tracking: bool,
    /// Small pages that the nest parent's devices wrote.
    dirty: BTreeSet<u64>,
}

struct World {
    f: Fixture,
    spaces: [IoasId; 2],
    bar: MemoryId,
    devices: Vec<DeviceId>,
    access: [AccessId; 2],
    parent: DomainId,
    pe: DomainId,
    targets: [DomainId; 4],
    pins: Vec<Pin>,
    waiting: [Option<Revocation>; 2],
    m: Model,
    seen: Seen,
}

/// How often a kind of operation went through, and how often it was refused.
type Seen = BTreeMap<&'static str, [u32; 2]>;

fn world() -> World {
    let mut f = Fixture::new();
    let spaces = [f.ioas, f.core.create_ioas(VM).unwrap()];
    for space in spaces {
        f.core.set_peer_to_peer(space, PeerToPeer::Enabled).unwrap();
    }
    let exporter = f.device(SMMU);
    let bar = f
        .core
        .add_bar(exporter, pa(BAR), BAR_PAGES * PAGE, &[])
        .unwrap();
    let nested = f.nestable(SMMU);
    let group = f.group(SMMU);
    let source = f.source();
    let ringing = f
        .core
        .add_device(&DeviceDescription {
            msi: MsiRoute::Doorbell,
            ..Fixture::describe(group, &[source])
        })
        .unwrap();
    f.core.bind(ringing, VM).unwrap();
    let devices = vec![
        exporter,
        nested,
        ringing,
        f.device(TCE),
        f.device(OTHER_SMMU),
    ];
    let options = DomainOptions {
        nest_parent: true,
        dirty_tracking: true,
    };
    let parent = f.core.create_domain(nested, spaces[0], options).unwrap();
    let viommu = f.core.create_viommu(nested, parent).unwrap();
    f.core.create_vdevice(viommu, nested, 7).unwrap();
    let of = [NestedConfig::ABORT, NestedConfig::BYPASS, TRANSLATE];
    let [abort, bypass, translate] = of.map(|config| f.core.create_nested(viommu, config).unwrap());
    let blocked = f.core.create_blocked(nested).unwrap();
    let pe = DomainOptions::default();
    let pe = f
        .core
        .create_domain(devices[PE], spaces[TCE_SPACE], pe)
        .unwrap();
    let access = spaces.map(|space| {
        let access = f.core.create_access(VM).unwrap();
        f.core.attach_access(access, space).unwrap();
        access
    });
    World {
        f,
        spaces,
        bar,
        devices,
        access,
        parent,
        pe,
        targets: [abort, bypass, translate, blocked],
        pins: Vec::new(),
        waiting: [None, None],
        m: Model {
            windows: vec![(0, DEFAULT_WINDOW_BYTES - 1, PAGE)],
            msi: 0x0800_0000,
            ..Model::default()
        },
        seen: Seen::new(),
    }
}

/// Whether the model says anything about such a device there.
fn fits_kind(device: usize, to: To) -> bool {
    match to {
        To::Space(_) => device != PE,
        To::Pe => device == PE,
        _ => device == NESTED,
    }
}

fn attach_kind(to: To) -> &'static str {
    match to {
        To::Space(_) => "attach to a space",
        To::Parent => "attach to the nest parent",
        To::Abort => "attach in abort",
        To::Bypass => "attach in bypass",
        To::Translate => "attach in translation",
        To::Blocked => "attach to nothing",
        To::Pe => "attach a PE",
    }
}

/// Kinds that can be refused; [`ALWAYS`] ones cannot.
const EITHER: [&str; 25] = [
    "allow",
    "attach a PE",
    "attach in abort",
    "attach in bypass",
    "attach in translation",
    "attach to a space",
    "attach to nothing",
    "attach to the nest parent",
    "begin an unmapping",
    "copy",
    "create a window",
    "detach",
    "exchange",
    "map",
    "map a BAR",
    "map a doorbell",
    "move the interrupt window",
    "pin",
    "place",
    "poll",
    "read dirty pages",
    "remove a window",
    "replace",
    "reset windows",
    "unmap",
];
const ALWAYS: [&str; 5] = [
    "abort an unmapping",
    "find dirty pages",
    "revoke what is mapped",
    "split",
    "write what is tracked",
];

#[test]
fn every_kind_of_operation_does_what_the_model_says() {
    let config = Config {
        cases: 256,
        failure_persistence: None,
        ..Config::default()
    };
    // Always the same sequences, so that what they meet can be counted on.
    let rng = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    let seen = RefCell::new(Seen::new());
    let sequences = (any::<bool>(), proptest::collection::vec(op(), 1..120));
    let outcome = TestRunner::new_with_rng(config, rng).run(&sequences, |(busy, ops)| {
        let mut world = world();
        let begin = [
            Op::Attach(NESTED, To::Bypass),
            Op::Attach(RINGING, To::Space(0)),
            Op::Attach(PE, To::Pe),
            Op::Track(DirtyTracking::On),
        ];
        let begin = begin.into_iter().filter(|_| busy);
        for op in begin.chain(ops) {
            world.step(op);
            world.compare();
        }
        let mut seen = seen.borrow_mut();
        for (kind, [refused, done]) in world.seen {
            let all = seen.entry(kind).or_default();
            *all = [all[0] + refused, all[1] + done];
        }
        Ok(())
    });
    outcome.unwrap();
    // The negative control: each kind was refused, and went through.
    let seen = seen.into_inner();
    for kind in EITHER {
        let [refused, done] = seen[kind];
        assert!(refused > 0 && done > 0, "{kind}: {refused}, {done}");
    }
    for kind in ALWAYS {
        assert!(seen[kind][1] > 0, "{kind}");
    }
}
