//! A PAPR platform in memory, as QEMU's is: it accepts any entry, brings the default window back when
//! the last created one goes, and cannot stand a window that is too large.
//!
//! It counts calls, fails where a test wants it to (a list half-way), and says what a device could
//! reach.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test double: an overflow or a missing element is a failed test"
)]

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use types::{Iova, Liobn, PageSize};

use crate::platform::{Created, HcallError, LIST, Limits, Platform, RtasError, WindowSpec};
use crate::{Ddw, HostBridge, Multi, Tce};

/// Where windows beyond the one at zero are: 2^59, as on pseries.
pub const DYNAMIC_BASE: u64 = 1 << 59;
/// The size of a default window.
pub const DEFAULT_BYTES: u64 = 1 << 30;
/// The unique id of the first host bridge.
pub const BUID: u64 = 0x0800_0000_2000_0000;

/// The page sizes that QEMU has: 4K, 64K, 2M, 16M.
const PAGES: u64 = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 24;

#[derive(Clone, Debug)]
struct Window {
    base: u64,
    page: PageSize,
    entries: u64,
    table: BTreeMap<u64, Tce>,
}

impl Window {
    fn index(&self, at: Iova) -> Option<u64> {
        let into = at.bits().checked_sub(self.base)?;
        let index = into >> self.page.shift();
        (index < self.entries).then_some(index)
    }

    fn set(&mut self, index: u64, tce: Tce) {
        if tce == Tce::EMPTY {
            self.table.remove(&index);
        } else {
            self.table.insert(index, tce);
        }
    }
}

/// How often each call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// `H_PUT_TCE`.
    pub puts: u64,
    /// `H_PUT_TCE_INDIRECT`.
    pub lists: u64,
    /// Entries in these.
    pub listed: u64,
    /// `H_STUFF_TCE`.
    pub stuffs: u64,
    /// Services for windows.
    pub services: u64,
}

/// The platform. See the module.
#[derive(Debug, Default)]
pub struct FakePlatform {
    windows: RefCell<BTreeMap<Liobn, Window>>,
    bridges: u32,
    calls: Cell<Calls>,
    writes_left: Cell<Option<u64>>,
    failures_left: Cell<Option<u64>>,
    services_left: Cell<Option<u64>>,
}

/// The table of a window of a host bridge.
#[must_use]
pub fn liobn(bridge: u32, window: u32) -> Liobn {
    Liobn::new(0x8000_0000 | bridge << 8 | window).unwrap_or_else(|_| panic!("32 bits"))
}

impl FakePlatform {
    /// Host bridges with their default windows.
    #[must_use]
    pub fn new(bridges: u32) -> Self {
        let fake = Self {
            bridges,
            ..Self::default()
        };
        for bridge in 0..bridges {
            fake.add_default(bridge);
        }
        fake
    }

    /// What the device tree says of a host bridge.
    #[must_use]
    pub fn bridge(number: u32) -> HostBridge {
        HostBridge {
            buid: BUID + u64::from(number),
            config_address: 0,
            liobn: liobn(number, 0),
            base: Iova::ZERO,
            bytes: DEFAULT_BYTES,
            page: PageSize::SIZE_4K,
            ddw: Ddw::CreateAndReset,
            multi: Multi::Yes,
            entries: 20,
        }
    }

    fn add_default(&self, bridge: u32) {
        let window = Window {
            base: 0,
            page: PageSize::SIZE_4K,
            entries: DEFAULT_BYTES >> 12,
            table: BTreeMap::new(),
        };
        self.windows.borrow_mut().insert(liobn(bridge, 0), window);
    }

    /// Lets that many more calls that write entries pass, and fails all after them, as many as
    /// `failures` says (`None`: all); `None` heals.
    pub fn fail_writes_after(&self, writes: Option<u64>, failures: Option<u64>) {
        self.writes_left.set(writes);
        self.failures_left.set(failures);
    }

    /// Lets that many more services pass and fails all after them; `None` heals.
    pub fn fail_services_after(&self, services: Option<u64>) {
        self.services_left.set(services);
    }

    /// How often what was called.
    pub fn calls(&self) -> Calls {
        self.calls.get()
    }

    fn count(&self, f: impl FnOnce(&mut Calls)) {
        let mut calls = self.calls.get();
        f(&mut calls);
        self.calls.set(calls);
    }

    fn writes(&self) -> Result<(), HcallError> {
        match self.writes_left.get() {
            None => return Ok(()),
            Some(0) => {}
            Some(n) => {
                self.writes_left.set(Some(n - 1));
                return Ok(());
            }
        }
        match self.failures_left.get() {
            None => {}
            Some(0) => {
                self.writes_left.set(None);
                return Ok(());
            }
            Some(n) => self.failures_left.set(Some(n - 1)),
        }
        Err(HcallError::Hardware)
    }

    fn service(&self) -> Result<(), RtasError> {
        self.count(|calls| calls.services += 1);
        match self.services_left.get() {
            None => Ok(()),
            Some(0) => Err(RtasError::Status(-1)),
            Some(n) => {
                self.services_left.set(Some(n - 1));
                Ok(())
            }
        }
    }

    fn bridge_of(&self, buid: u64) -> Result<u32, RtasError> {
        let number = buid.checked_sub(BUID).and_then(|n| u32::try_from(n).ok());
        number
            .filter(|n| *n < self.bridges)
            .ok_or(RtasError::Status(-3))
    }

    fn with<T>(
        &self,
        liobn: Liobn,
        at: Iova,
        count: u64,
        f: impl FnOnce(&mut Window, u64) -> T,
    ) -> Result<T, HcallError> {
        let mut windows = self.windows.borrow_mut();
        let window = windows.get_mut(&liobn).ok_or(HcallError::Parameter)?;
        let first = window.index(at).ok_or(HcallError::Parameter)?;
        if count == 0 || count > window.entries - first {
            return Err(HcallError::Parameter);
        }
        Ok(f(window, first))
    }

    /// The windows of a host bridge: table, base, page size, entries.
    #[must_use]
    pub fn windows(&self, bridge: u32) -> Vec<(Liobn, u64, PageSize, u64)> {
        let windows = self.windows.borrow();
        let mine = windows.range(liobn(bridge, 0)..=liobn(bridge, 0xff));
        mine.map(|(liobn, w)| (*liobn, w.base, w.page, w.entries))
            .collect()
    }

    /// All entries of a host bridge that are not empty, by bus address.
    #[must_use]
    pub fn entries(&self, bridge: u32) -> BTreeMap<u64, Tce> {
        let windows = self.windows.borrow();
        let mine = windows.range(liobn(bridge, 0)..=liobn(bridge, 0xff));
        mine.flat_map(|(_, window)| {
            let entries = window.table.iter();
            entries.map(|(index, tce)| (window.base + (index << window.page.shift()), *tce))
        })
        .collect()
    }

    /// Where a device's access would go: the physical address, and the entry's rights.
    #[must_use]
    pub fn dma(&self, bridge: u32, at: Iova) -> Option<(u64, u64)> {
        let windows = self.windows.borrow();
        let mut mine = windows.range(liobn(bridge, 0)..=liobn(bridge, 0xff));
        mine.find_map(|(_, window)| {
            let tce = window.table.get(&window.index(at)?)?;
            if tce.is_empty() {
                return None;
            }
            let pa = tce.address() & !window.page.mask() | at.bits() & window.page.mask();
            Some((pa, tce.bits() & Tce::RIGHTS))
        })
    }

    /// Changes an entry behind everybody's back.
    pub fn corrupt(&self, liobn: Liobn, at: Iova, tce: Tce) {
        self.with(liobn, at, 1, |window, index| window.set(index, tce))
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Platform for FakePlatform {
    fn put(&self, liobn: Liobn, at: Iova, tce: Tce) -> Result<(), HcallError> {
        self.count(|calls| calls.puts += 1);
        self.writes()?;
        self.with(liobn, at, 1, |window, index| window.set(index, tce))
    }

    fn put_list(&self, liobn: Liobn, at: Iova, list: &[Tce]) -> Result<(), HcallError> {
        self.count(|calls| {
            calls.lists += 1;
            calls.listed += list.len() as u64;
        });
        if list.len() > LIST {
            return Err(HcallError::Parameter);
        }
        let refused = self.writes();
        let written = match refused {
            Ok(()) => list.len(),
            Err(_) => list.len() / 2,
        };
        self.with(liobn, at, list.len() as u64, |window, first| {
            for (index, tce) in (first..).zip(&list[..written]) {
                window.set(index, *tce);
            }
        })?;
        refused
    }

    fn stuff(&self, liobn: Liobn, at: Iova, tce: Tce, count: u64) -> Result<(), HcallError> {
        self.count(|calls| calls.stuffs += 1);
        let refused = self.writes();
        let written = match refused {
            Ok(()) => count,
            Err(_) => count / 2,
        };
        self.with(liobn, at, count, |window, first| {
            if tce == Tce::EMPTY {
                window
                    .table
                    .retain(|index, _| !(first..first + written).contains(index));
            } else {
                for index in first..first + written {
                    window.set(index, tce);
                }
            }
        })?;
        refused
    }

    fn get(&self, liobn: Liobn, at: Iova) -> Result<Tce, HcallError> {
        self.with(liobn, at, 1, |window, index| {
            window.table.get(&index).copied().unwrap_or_default()
        })
    }

    fn query_windows(&self, buid: u64, _: u32) -> Result<Limits, RtasError> {
        let bridge = self.bridge_of(buid)?;
        let have = u32::try_from(self.windows(bridge).len()).unwrap_or(u32::MAX);
        Ok(Limits {
            available: 2 - have,
            entries: 0x20_0000_0000,
            pages: PAGES,
        })
    }

    fn create_window(&self, buid: u64, _: u32, spec: WindowSpec) -> Result<Created, RtasError> {
        let bridge = self.bridge_of(buid)?;
        self.service()?;
        if spec.page.bytes() & PAGES == 0 || spec.shift < spec.page.shift() {
            return Err(RtasError::Status(-3));
        }
        assert!(
            spec.shift - spec.page.shift() < 32,
            "QEMU would have ended its life"
        );
        let (number, base) = match self.windows(bridge).as_slice() {
            [] => (0, 0),
            [(first, ..)] if *first == liobn(bridge, 0) => (1, DYNAMIC_BASE),
            [_] => (0, 0),
            _ => return Err(RtasError::Status(-1)),
        };
        let liobn = liobn(bridge, number);
        let window = Window {
            base,
            page: spec.page,
            entries: 1 << (spec.shift - spec.page.shift()),
            table: BTreeMap::new(),
        };
        self.windows.borrow_mut().insert(liobn, window);
        Ok(Created {
            liobn,
            base: Iova::truncated(base),
        })
    }

    fn remove_window(&self, name: Liobn) -> Result<(), RtasError> {
        self.service()?;
        let removed = self.windows.borrow_mut().remove(&name);
        removed.ok_or(RtasError::Status(-3))?;
        let bridge = name.bits() >> 8 & 0xff;
        if self.windows(bridge).is_empty() && name != liobn(bridge, 0) {
            self.add_default(bridge);
        }
        Ok(())
    }

    fn reset_windows(&self, buid: u64, _: u32) -> Result<(), RtasError> {
        let bridge = self.bridge_of(buid)?;
        self.service()?;
        for (liobn, ..) in self.windows(bridge) {
            self.windows.borrow_mut().remove(&liobn);
        }
        self.add_default(bridge);
        Ok(())
    }
}
