//! What bytes are made of: hypercalls for entries, services for windows, for functions and for errors, errors. A model of what the
//! guest asked for is kept beside it. Nothing panics, the real tables are the model's translation after every
//! step, another VM's are untouched, and devices do what the guest is told of its PE. The fuzz target and the
//! tests share it.

#[path = "functions.rs"]
mod functions;

use std::cell::RefCell;
use std::collections::BTreeMap;

use bulkhead_vtce::{
    BridgeOptions, Dma, GuestMemory, Mastering, NotMemory, Policy, Service, Slot, Status,
};
use eeh::{Cause, Effect, Limits, Pe};
use iommu::{
    Ats, Coherence, DeviceDescription, Extent, Iommu, MsiRoute, OwnerId, Path, Permissions,
    Residence, Target, UnitId,
};
use tce::fake::{BUID, FakePlatform};
use tce::{AuditScope, PaprBackend};
use types::{Ipa, Pa, PageSize, Span};

const MEG: u64 = 1 << 20;
/// The VM's memory: where it sees it, bytes, where it is, what devices may do.
const RAM: [(u64, u64, u64, Permissions); 2] = [
    (0, 16 * MEG, 0x10_0000_0000, Permissions::ReadWrite),
    (32 * MEG, MEG, 0x20_0001_0000, Permissions::Read),
];
const OTHER: u64 = 0x40_0000_0000;
/// Pages of the guest's that lists are read from.
const LISTS: u64 = 0x10_0000;
const LISTS_BYTES: usize = 0x2000;

struct Lists(RefCell<Vec<u8>>);

impl GuestMemory for Lists {
    fn read(&self, at: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let bytes = buffer.len();
        let wrong = NotMemory { at, bytes };
        let from = at.bits().checked_sub(LISTS).ok_or(wrong)?;
        let from = usize::try_from(from).map_err(|_| wrong)?;
        let lists = self.0.borrow();
        buffer.copy_from_slice(lists.get(from..from + bytes).ok_or(wrong)?);
        Ok(())
    }
}

/// Where an entry leads, if it may: the model's own words.
fn translated(tce: u64, page: u64) -> Option<u64> {
    let (address, rights) = (tce & !3, tce & 3);
    RAM.iter().find_map(|&(at, bytes, pa, permissions)| {
        let inside = address.checked_sub(at)?;
        let fits = address.is_multiple_of(page) && inside.saturating_add(page) <= bytes;
        let allowed = rights != 0 && (rights & 2 == 0 || permissions != Permissions::Read);
        (fits && allowed).then(|| (pa + inside) | rights)
    })
}

struct World {
    core: Iommu<PaprBackend<FakePlatform>>,
    dma: Dma,
    lists: Lists,
    pe: Pe,
    /// What the devices do: registers, DMA, reset.
    state: (bool, bool, bool),
    functions: functions::Functions,
    /// What the guest asked for: its entries by bus address.
    model: BTreeMap<u64, u64>,
    /// Calls that changed entries.
    changes: usize,
}

impl World {
    fn new() -> Self {
        let bridges = [FakePlatform::bridge(0), FakePlatform::bridge(1)];
        let backend = PaprBackend::new(FakePlatform::new(2), &bridges).unwrap();
        let mut core = Iommu::new(backend);
        let mut dma = Dma::new().unwrap();
        let mut ends = Vec::new();
        for unit in 0..2 {
            let owner = OwnerId::new(unit + 1);
            let group = core.add_group(UnitId::new(unit), Residence::Free).unwrap();
            let device = core.add_device(&DeviceDescription {
                group,
                sources: &[],
                aliases: &[0],
                reserved: &[],
                path: Path::Redirected,
                msi: MsiRoute::Checked,
                coherence: Coherence::Coherent,
                ats: Ats::Off,
            });
            let ioas = core.create_ioas(owner).unwrap();
            core.bind(device.unwrap(), owner).unwrap();
            ends.push((
                ioas,
                core.attach(device.unwrap(), Target::Ioas(ioas)).unwrap(),
            ));
        }
        for (at, bytes, pa, permissions) in RAM {
            let pa = Pa::new(pa).unwrap();
            let memory = core
                .add_ram(OwnerId::new(1), &[Extent { pa, bytes }])
                .unwrap();
            dma.add_slot(Slot {
                span: Span::from_len(Ipa::new(at).unwrap(), bytes).unwrap(),
                memory,
                offset: 0,
                permissions,
                page: Some(PageSize::SIZE_64K),
            })
            .unwrap();
        }
        let options = |number: u8, (ioas, domain)| BridgeOptions {
            number,
            buid: BUID + u64::from(number),
            ioas,
            domain,
            policy: Policy::usual(),
        };
        dma.add_bridge(&mut core, options(0, ends[0])).unwrap();
        // Another VM, with one entry.
        let pa = Pa::new(OTHER).unwrap();
        let memory = core
            .add_ram(OwnerId::new(2), &[Extent { pa, bytes: MEG }])
            .unwrap();
        let mut other = Dma::new().unwrap();
        other
            .add_slot(Slot {
                span: Span::from_len(Ipa::new(0).unwrap(), MEG).unwrap(),
                memory,
                offset: 0,
                permissions: Permissions::ReadWrite,
                page: Some(PageSize::SIZE_64K),
            })
            .unwrap();
        other.add_bridge(&mut core, options(1, ends[1])).unwrap();
        let lists = Lists(RefCell::new(vec![0; LISTS_BYTES]));
        let put = other.hypercall(&mut core, &lists, 0x20, [0x8000_0100, 0x5000, 0x3003, 0]);
        assert_eq!(put.unwrap().status, Status::SUCCESS);
        Self {
            core,
            dma,
            lists,
            pe: Pe::new(BUID, 0, Limits::USUAL),
            state: (true, true, false),
            functions: functions::Functions::new(),
            model: BTreeMap::new(),
            changes: 0,
        }
    }

    /// The window of a LIOBN: first bus address, page, bytes.
    fn window(&self, liobn: u64) -> Option<(u64, u64, u64)> {
        let windows = self.dma.bridges()[0].windows();
        let window = windows
            .iter()
            .find(|w| u64::from(w.liobn().bits()) == liobn)?;
        let span = window.span();
        Some((span.start().bits(), window.page().bytes(), span.len()?))
    }

    /// What entries from `at` on would become, if all of that may be: the model's judgement.
    fn judge(&self, liobn: u64, at: u64, entries: &[u64]) -> Option<Vec<(u64, u64)>> {
        let (base, page, bytes) = self.window(liobn)?;
        let into = at.checked_sub(base)?;
        let count = entries.len() as u64;
        let fits = into.is_multiple_of(page) && (into / page).saturating_add(count) <= bytes / page;
        let good = entries
            .iter()
            .all(|tce| tce & 3 == 0 || translated(*tce, page).is_some());
        let places = (0..count).map(|n| at.wrapping_add(n * page));
        (fits && good).then(|| places.zip(entries.iter().copied()).collect())
    }

    fn call(&mut self, number: u64, arguments: [u64; 4]) {
        let [liobn, at, third, fourth] = arguments;
        let many = |count: u64| (1..=512).contains(&count);
        let wanted = match number {
            0x20 => self.judge(liobn, at, &[third]),
            0x138 if many(fourth) => {
                let entries = vec![third; usize::try_from(fourth).unwrap()];
                self.judge(liobn, at, &entries)
            }
            0x13c if many(fourth) && third.is_multiple_of(4096) => {
                let mut bytes = vec![0; usize::try_from(fourth).unwrap() * 8];
                let read = Ipa::new(third)
                    .ok()
                    .map(|list| self.lists.read(list, &mut bytes));
                let words = bytes.chunks_exact(8);
                let entries: Vec<u64> = words
                    .map(|word| u64::from_be_bytes(word.try_into().unwrap()))
                    .collect();
                read.filter(Result::is_ok)
                    .and_then(|_| self.judge(liobn, at, &entries))
            }
            _ => None,
        };
        let answer = self
            .dma
            .hypercall(&mut self.core, &self.lists, number, arguments);
        let answer = answer.unwrap();
        if number == 0x1c {
            let known = self.model.get(&at).copied().unwrap_or(0);
            assert!(
                answer.value.is_none_or(|value| value == known),
                "{arguments:x?}"
            );
            return;
        }
        let done = answer.status == Status::SUCCESS;
        assert_eq!(
            done,
            wanted.is_some(),
            "{number:#x} {arguments:x?}: {:?}",
            answer.status
        );
        self.changes += usize::from(done);
        for (at, tce) in wanted.into_iter().flatten() {
            if tce & 3 == 0 {
                self.model.remove(&at);
            } else {
                self.model.insert(at, tce);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let (registers, dma, reset) = &mut self.state;
        match effect {
            Effect::None => {}
            Effect::Stop => {
                (*registers, *dma) = (false, false);
                self.functions.master(Mastering::Stopped);
            }
            Effect::AllowRegisters => *registers = true,
            Effect::AllowDma => {
                *dma = true;
                self.functions.master(Mastering::AsWanted);
            }
            Effect::AssertReset(_) => {
                self.state = (false, false, true);
                self.functions.reset();
            }
            Effect::DeassertReset => {
                assert!(*reset);
                self.state = (true, true, false);
            }
        }
        let state = self.pe.state();
        assert_eq!(state.allows_registers(), self.state.0, "{state:?}");
        assert_eq!(state.allows_dma(), self.state.1, "{state:?}");
    }

    /// The real tables are the model's translation, and another's are as they were.
    fn compare(&mut self) {
        // A window that went took its entries with it; a new one is empty.
        let spans: Vec<_> = self.dma.bridges()[0]
            .windows()
            .iter()
            .map(|window| (window.span(), window.page().bytes()))
            .collect();
        let page_at = |at: u64| {
            let mut spans = spans.iter();
            let found = spans.find(|(span, _)| span.contains(types::Iova::truncated(at)));
            found.map(|(_, page)| *page)
        };
        let platform = self.core.backend().platform();
        let real: BTreeMap<u64, u64> = platform
            .entries(0)
            .into_iter()
            .map(|(at, tce)| (at, tce.bits()))
            .collect();
        let wanted: BTreeMap<u64, u64> = self
            .model
            .iter()
            .map(|(at, tce)| {
                (
                    *at,
                    page_at(*at)
                        .and_then(|page| translated(*tce, page))
                        .unwrap(),
                )
            })
            .collect();
        assert_eq!(real, wanted);
        let other = platform.entries(1);
        assert_eq!(other.len(), 1);
        assert_eq!(other[&0x5000].bits(), (OTHER + 0x3000) | 3);
    }

    fn end(&self) {
        self.dma.audit(&self.core, &mut |wrong| panic!("{wrong:?}"));
        for unit in 0..2 {
            let unit = UnitId::new(unit);
            let backend = self.core.backend();
            backend.audit(unit, AuditScope::Used, &mut |wrong| panic!("{wrong:?}"));
        }
    }
}

/// An argument that means something now and then.
fn argument(kind: u8, value: u64) -> u64 {
    match kind % 8 {
        0 => value,
        1 => value << 12,
        2 => value << 12 | 3,
        3 => value << 16 | u64::from(kind >> 6),
        4 => (1 << 59) + (value << 16),
        5 => 0x8000_0000 | value & 0x301,
        6 => LISTS + (value & 3) * 0x800,
        _ => u64::MAX - value,
    }
}

/// The control: an entry that nobody asked for.
pub(crate) fn corrupted() {
    let mut world = World::new();
    world.call(0x20, [0x8000_0000, 0x1000, 0x3003, 0]);
    world.compare();
    let at = types::Iova::truncated(0x2000);
    let entry = tce::Tce::from_bits(OTHER | 3);
    world
        .core
        .backend()
        .platform()
        .corrupt(tce::fake::liobn(0, 0), at, entry);
    world.compare();
}

/// Carries out what the bytes say; how many calls that were which changed entries, and how many that changed
/// functions or were errors injected.
pub(crate) fn calls(bytes: &[u8]) -> [usize; 2] {
    let mut world = World::new();
    let mut now = 0;
    for chunk in bytes.chunks_exact(14) {
        let (what, rest) = (chunk[0], &chunk[1..]);
        let cells: Vec<u64> = rest
            .chunks_exact(3)
            .map(|cell| argument(cell[0], u64::from(u16::from_be_bytes([cell[1], cell[2]]))))
            .collect();
        let four = [cells[0], cells[1], cells[2], cells[3]];
        let extra = rest[12];
        match what % 20 {
            n @ 0..8 => {
                let number = [0x20, 0x20, 0x138, 0x13c, 0x13c, 0x20, 0x138, 0x1c][usize::from(n)];
                // Mostly a window that there is, and a count that may be.
                let mut four = four;
                let windows = world.dma.bridges()[0].windows();
                if extra & 1 == 0 && !windows.is_empty() {
                    let window = &windows[usize::from(extra >> 1) % windows.len()];
                    four[0] = window.liobn().bits().into();
                    let (start, page) = (window.span().start().bits(), window.page().bytes());
                    four[1] = start + (four[1] >> 3) % 64 * page;
                }
                if extra & 2 == 0 {
                    four[3] %= 514;
                }
                if number == 0x13c && extra & 4 == 0 {
                    four[2] = LISTS + u64::from(extra & 8) * 0x200;
                }
                world.call(number, four);
            }
            8 | 9 => {
                // A list: entries in a row, some of them spoilt.
                let mut lists = world.lists.0.borrow_mut();
                let step = [4096, 0x1_0000, 0][usize::from(extra % 3)];
                for (n, word) in (0..).zip(lists.chunks_exact_mut(8)) {
                    let spoilt = extra & 0x80 != 0 && n % 97 == cells[2] % 97;
                    let tce = if spoilt {
                        cells[3]
                    } else {
                        cells[1].wrapping_add(n * step)
                    };
                    word.copy_from_slice(&tce.to_be_bytes());
                }
            }
            n @ 10..12 => {
                let service = Service::ALL[usize::from(extra) % 4];
                let [high, low] = [0x0800_0000, 0x2000_0000];
                let small = |cell: u64| u32::try_from(cell & 0xff).unwrap_or(0);
                let arguments = match service {
                    Service::Create => {
                        let page = [12, 16, 21, 24, small(cells[0])][usize::from(what >> 4) % 5];
                        vec![0, high, low, page, 12 + small(cells[1]) % 40]
                    }
                    Service::Remove => vec![u32::try_from(cells[0] & 0xffff_ffff).unwrap_or(0)],
                    Service::Query | Service::Reset => vec![0, high, low],
                };
                let results = if n == 10 {
                    match service {
                        Service::Query => 6,
                        Service::Create => 4,
                        Service::Remove | Service::Reset => 1,
                    }
                } else {
                    usize::from(what >> 4)
                };
                let before: Vec<_> = spans(&world);
                let outcome = world
                    .dma
                    .service(&mut world.core, service, &arguments, results);
                if outcome.status == -2 {
                    // Some of it is empty now: which part, is its own.
                    let entries = world.core.backend().platform().entries(0);
                    world.model.retain(|at, _| entries.contains_key(at));
                }
                let after = spans(&world);
                let stays = |at: u64| {
                    let its = |span: &&(u64, u64, u64)| at >= span.1 && at - span.1 < span.2;
                    before.iter().find(its) == after.iter().find(its)
                };
                let emptied = service == Service::Reset && outcome.status == 0;
                world.model.retain(|at, _| stays(*at) && !emptied);
            }
            12..=14 => {
                let service = eeh::Service::ALL[usize::from(extra) % 6];
                let mut arguments = vec![1, 0x0800_0000, 0x2000_0000];
                let more = match service {
                    eeh::Service::ErrorDetail => 5,
                    eeh::Service::ReadState | eeh::Service::Configure => 0,
                    _ => 1,
                };
                arguments.extend((0..more).map(|_| u32::from(what >> 4) % 4));
                let results = [1, 2, 4, 1, 1, 1][usize::from(extra) % 6];
                let outcome = world.pe.service(service, &arguments, results, |_| true);
                world.carry_out(outcome.effect);
            }
            16 | 17 => world.function(four, extra),
            18 => {
                now += cells[0] & 0xfff;
                world.inject(four, extra, now);
            }
            // Seldom: it empties everything.
            19 if extra & 3 == 0 => world.leave(),
            _ => {
                now += cells[0] & 0xfff;
                let (_, effect) = world.pe.freeze(Cause::Injected, now);
                world.carry_out(effect);
            }
        }
        world.compare();
    }
    world.end();
    [world.changes, world.functions.changes]
}

/// The windows there are: table, first address, bytes.
fn spans(world: &World) -> Vec<(u64, u64, u64)> {
    let windows = world.dma.bridges()[0].windows().iter();
    let span = |window: &bulkhead_vtce::GuestWindow| {
        let span = window.span();
        let liobn = u64::from(window.liobn().bits());
        (liobn, span.start().bits(), span.len().unwrap_or(0))
    };
    windows.map(span).collect()
}
