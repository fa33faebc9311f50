//! Any sequence of calls against a naive model: a map of entries for each window. After every call the
//! platform's tables are the model's translation, the other guest's are untouched, and every book agrees.

use alloc::vec;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::Progress;

/// A window as the guest was told of it.
#[derive(Clone, Debug)]
struct Window {
    liobn: u64,
    base: u64,
    page: u64,
    bytes: u64,
    entries: BTreeMap<u64, u64>,
}

impl Window {
    /// The first entry's number, when `count` entries exist from `at` on.
    fn range(&self, at: u64, count: u64) -> Option<u64> {
        let into = at.checked_sub(self.base)?;
        let end = into.checked_add(count.checked_mul(self.page)?)?;
        (into % self.page == 0 && count >= 1 && end <= self.bytes).then_some(into / self.page)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(usize, u64, Entry),
    List(usize, u64, Vec<Entry>),
    Row(usize, u64, u64, u64),
    Stuff(usize, u64, Entry, u64),
    Get(usize, u64),
    Create(u32, u32),
    Remove(usize),
    /// More than one call of a service clears.
    Fill(usize),
    /// One call of it, whatever it says; the guest goes on with what is left.
    RemoveInPart(usize),
    Reset,
    /// The VM is stopped, and starts again.
    Stop,
    /// The host bridge is taken away, in parts, with calls that come too late, and given back.
    TakeAway(u64),
}

/// What a guest puts into an entry: mostly its own memory.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Own(u64, u64),
    ReadOnly(u64, u64),
    Empty(u64),
    Any(u64),
}

impl Entry {
    fn bits(self, page: u64) -> u64 {
        match self {
            Self::Own(at, rights) => (at * page % (128 * MEG)) | rights,
            Self::ReadOnly(at, rights) => (256 * MEG + at * page % (33 * MEG)) | rights,
            Self::Empty(at) => at << 12,
            Self::Any(bits) => bits,
        }
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        12 => (0..4096_u64, 1..4_u64).prop_map(|(at, rights)| Entry::Own(at, rights)),
        3 => (0..4096_u64, 1..4_u64).prop_map(|(at, rights)| Entry::ReadOnly(at, rights)),
        3 => (0..4096_u64).prop_map(Entry::Empty),
        1 => any::<u64>().prop_map(Entry::Any),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let place = || prop_oneof![20 => 0..600_u64, 1 => any::<u64>()];
    let which = || 0..3_usize;
    prop_oneof![
        5 => (which(), place(), entry()).prop_map(|(w, at, e)| Op::Put(w, at, e)),
        4 => (which(), place(), proptest::collection::vec(entry(), 1..20))
            .prop_map(|(w, at, list)| Op::List(w, at, list)),
        4 => (which(), place(), 0..3000_u64, 1..514_u64)
            .prop_map(|(w, at, from, count)| Op::Row(w, at, from, count)),
        4 => (which(), place(), entry(), 0..520_u64)
            .prop_map(|(w, at, e, count)| Op::Stuff(w, at, if count % 5 == 0 { e } else { Entry::Empty(0) }, count)),
        2 => (which(), place()).prop_map(|(w, at)| Op::Get(w, at)),
        2 => (prop_oneof![Just(12), Just(16), Just(21), any::<u32>()], 15..38_u32)
            .prop_map(|(page, window)| Op::Create(page, window)),
        1 => which().prop_map(Op::Remove),
        2 => which().prop_map(Op::Fill),
        2 => which().prop_map(Op::RemoveInPart),
        1 => Just(Op::Reset),
        1 => Just(Op::Stop),
        1 => place().prop_map(Op::TakeAway),
    ]
}

struct Model {
    windows: Vec<Window>,
}

impl Model {
    fn default_window() -> Window {
        Window {
            liobn: LIOBN,
            base: 0,
            page: 4096,
            bytes: 1 << 30,
            entries: BTreeMap::new(),
        }
    }

    /// The LIOBN of the n-th window, or of one that does not exist; its base and page.
    fn name(&self, which: usize) -> (u64, u64, u64) {
        match self.windows.get(which) {
            Some(window) => (window.liobn, window.base, window.page),
            None => (OTHER_LIOBN, 0, 4096),
        }
    }

    /// What a list does: nothing, unless all of it is right.
    fn list(&mut self, which: usize, at: u64, list: &[u64]) -> Status {
        let count = list.len() as u64;
        let Some(window) = self.windows.get_mut(which) else {
            return Status::PARAMETER;
        };
        let good = |tce: &u64| tce & 3 == 0 || physical(*tce, window.page).is_some();
        match window.range(at, count) {
            Some(first) if count <= 512 && list.iter().all(good) => {
                for (index, tce) in (first..).zip(list) {
                    if tce & 3 == 0 {
                        window.entries.remove(&index);
                    } else {
                        window.entries.insert(index, *tce);
                    }
                }
                Status::SUCCESS
            }
            _ => Status::PARAMETER,
        }
    }

    fn real(&self) -> BTreeMap<u64, u64> {
        let windows = self.windows.iter();
        windows
            .flat_map(|window| {
                let entries = window.entries.iter();
                entries.map(|(index, tce)| {
                    let pa = physical(*tce, window.page).unwrap();
                    (window.base + index * window.page, pa)
                })
            })
            .collect()
    }
}

fn step(rig: &mut Rig, model: &mut Model, op: &Op) {
    match op {
        Op::Put(which, at, entry) => {
            let (liobn, base, page) = model.name(*which);
            let at = base.wrapping_add(at.wrapping_mul(page));
            let tce = entry.bits(page);
            let expected = model.list(*which, at, &[tce]);
            assert_eq!(rig.call(PUT, [liobn, at, tce, 0]).status, expected);
        }
        Op::List(which, at, list) => {
            let (liobn, base, page) = model.name(*which);
            let at = base.wrapping_add(at.wrapping_mul(page));
            let list: Vec<u64> = list.iter().map(|entry| entry.bits(page)).collect();
            let expected = model.list(*which, at, &list);
            assert_eq!(rig.indirect(liobn, at, &list), expected, "{list:x?}");
        }
        Op::Row(which, at, from, count) => {
            let (liobn, base, page) = model.name(*which);
            let at = base.wrapping_add(at.wrapping_mul(page));
            let list: Vec<u64> = (0..*count)
                .map(|n| ((from + n) * page % (128 * MEG)) | 3)
                .collect();
            let expected = model.list(*which, at, &list);
            assert_eq!(rig.indirect(liobn, at, &list), expected);
        }
        Op::Fill(which) => {
            for list in 0..10 {
                step(rig, model, &Op::Row(*which, list * 512, list * 700, 512));
            }
        }
        Op::Stuff(which, at, entry, count) => {
            let (liobn, base, page) = model.name(*which);
            let at = base.wrapping_add(at.wrapping_mul(page));
            let tce = entry.bits(page);
            let list: Vec<u64> = (0..*count).map(|_| tce).collect();
            let expected = model.list(*which, at, &list);
            assert_eq!(rig.call(STUFF, [liobn, at, tce, *count]).status, expected);
        }
        Op::Get(which, at) => {
            let (liobn, base, page) = model.name(*which);
            let at = base.wrapping_add(at.wrapping_mul(page));
            let expected = model.windows.get(*which).and_then(|window| {
                let index = window.range(at, 1)?;
                Some(window.entries.get(&index).copied().unwrap_or(0))
            });
            assert_eq!(rig.call(GET, [liobn, at, 0, 0]).value, expected);
        }
        Op::Create(page, window) => {
            let made = rig.create(*page, *window);
            let entries = window.checked_sub(*page).map(|log2| log2 <= 20);
            let possible = matches!(page, 12 | 16) && entries == Some(true);
            if !possible {
                assert_eq!(made.status, -3);
            } else if model.windows.len() == 2 {
                assert_eq!(made.status, -1);
            } else {
                assert_eq!(made.status, 0);
                let [liobn, high, low] = made.values() else {
                    panic!("three results")
                };
                let base = u64::from(*high) << 32 | u64::from(*low);
                let at_zero = model.windows.iter().any(|window| window.base == 0);
                assert_eq!(base, if at_zero { 1 << 59 } else { 0 });
                model.windows.push(Window {
                    liobn: u64::from(*liobn),
                    base,
                    page: 1 << page,
                    bytes: 1 << window,
                    entries: BTreeMap::new(),
                });
                model.windows.sort_by_key(|window| window.base);
            }
        }
        Op::Remove(which) => {
            let (liobn, base, _) = model.name(*which);
            let liobn = u32::try_from(liobn).unwrap();
            let known = *which < model.windows.len();
            let mut status = rig.service(Service::Remove, &[liobn], 1).status;
            while status == -2 {
                status = rig.service(Service::Remove, &[liobn], 1).status;
            }
            assert_eq!(status, if known { 0 } else { -3 });
            if known {
                model.windows.remove(*which);
                // The platform's rule: its second table was the last one. Its first one, in place of
                // the default, leaves nothing behind.
                if model.windows.is_empty() && base != 0 {
                    model.windows.push(Model::default_window());
                }
            }
        }
        Op::RemoveInPart(which) => {
            let (liobn, base, page) = model.name(*which);
            let argument = u32::try_from(liobn).unwrap();
            match rig.service(Service::Remove, &[argument], 1).status {
                0 => {
                    model.windows.remove(*which);
                    if model.windows.is_empty() && base != 0 {
                        model.windows.push(Model::default_window());
                    }
                }
                // What is left of it is as it was.
                -2 => {
                    let entries = &mut model.windows[*which].entries;
                    let before = entries.len();
                    entries.retain(|index, tce| {
                        let at = base + index * page;
                        let now = rig.call(GET, [liobn, at, 0, 0]).value.unwrap();
                        assert!(now == 0 || now == *tce, "{now:#x}");
                        now != 0
                    });
                    assert!(entries.len() < before, "a call does something");
                }
                status => {
                    assert_eq!(status, -3);
                    assert!(*which >= model.windows.len());
                }
            }
        }
        Op::Stop => {
            while rig.dma.clear(&mut rig.core).unwrap() == Progress::More {}
            model.windows = [Model::default_window()].into();
        }
        Op::TakeAway(at) => {
            let number = rig.dma.bridges()[0].options().number;
            rig.dma.shut_bridge(number).unwrap();
            loop {
                // The guest does not know yet.
                for window in &model.windows {
                    let at = window.base.wrapping_add(at.wrapping_mul(window.page));
                    for call in [PUT, STUFF, GET] {
                        let answer = rig.call(call, [window.liobn, at, 0x5003, 1]);
                        assert_eq!(answer.status, Status::PARAMETER);
                    }
                    let status = rig.indirect(window.liobn, at, &[0x5003]);
                    assert_eq!(status, Status::PARAMETER);
                }
                if rig.dma.clear_shut(&mut rig.core).unwrap() == Progress::Done {
                    break;
                }
            }
            assert!(rig.real(0).is_empty());
            let given = options(number, rig.ioas, rig.domain);
            rig.dma.add_bridge(&mut rig.core, given).unwrap();
            model.windows = [Model::default_window()].into();
        }
        Op::Reset => {
            let name = [0, BUID_HIGH, BUID_LOW];
            let mut status = rig.service(Service::Reset, &name, 1).status;
            while status == -2 {
                status = rig.service(Service::Reset, &name, 1).status;
            }
            assert_eq!(status, 0);
            // The default window is never the same as before: its entries are gone.
            model.windows = [Model::default_window()].into();
        }
    }
}

proptest! {
    #![proptest_config(Config::with_cases(96))]
    #[test]
    fn the_real_tables_are_the_translation_of_what_the_guest_asked_for(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let mut rig = Rig::new();
        let answer = rig
            .other
            .hypercall(&mut rig.core, &rig.ram, PUT, [OTHER_LIOBN, 0x7000, 0x5003, 0]);
        prop_assert_eq!(answer.unwrap().status, Status::SUCCESS);
        let other = rig.real(1);
        let mut model = Model {
            windows: [Model::default_window()].into(),
        };
        for op in &ops {
            step(&mut rig, &mut model, op);
            prop_assert_eq!(rig.real(0), model.real(), "after {:?}", op);
            prop_assert_eq!(rig.real(1), other.clone());
            rig.audit();
        }
    }
}
