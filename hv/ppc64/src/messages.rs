//! Which VM a device's interrupts are for, and how often they may come.
//!
//! A pin is a level: its source is off from when it interrupts until the guest ends that interrupt, so
//! that one which stays up costs nobody anything meanwhile.
//!
//! A message on this platform is a write of a source's number to an address that no table guards: any
//! device that masters the bus can send any number. What it reaches is bounded here: a source that no
//! device of a VM was given is masked at its controller, and one that was interrupts so often and no
//! more. `docs/tce.md` says what remains.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::Mutex;
use vm::{Moderated, Moderation, Rate};

use crate::presentation::{Afterwards, Sources};

/// The first interrupt source that messages get, and how many are taken: what QEMU's platform gives.
pub(crate) const FIRST: u32 = 0x1300;
/// How many sources of messages a guest is shown.
pub(crate) const COUNT: u32 = 128;
/// Ticks of 10 ms, which is how often a core looks around: 512 MHz on every machine since POWER7.
const PERIOD: u64 = 5_120_000;
/// 25,600 a second. A disk here does about 10,000; a neighbour's forged ones cost a CPU less than a
/// tenth of its time.
pub(crate) const RATE: Rate = Rate {
    most: 256,
    ticks: PERIOD,
};
/// Lines about interrupts that nobody was to get.
const LINES: usize = 8;

/// How a source interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each event once.
    Message,
    /// As long as the pin is up, and the guest has ended the last.
    Pin,
}

/// An interrupt that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Came {
    /// The VM that it is for.
    pub(crate) vm: usize,
    /// Its source, as the guest numbers it.
    pub(crate) source: u32,
    /// What it is.
    pub(crate) kind: Kind,
}

/// The devices that share a pin are all of a host bridge's, as far as we care.
const OF_BRIDGE: u32 = u32::MAX;

/// Which VM an interrupt source of a device belongs to.
#[derive(Clone, Copy, Debug)]
struct Route {
    source: u32,
    came: Came,
    buid: u64,
    /// The device, as a configuration address, or all of the bridge's.
    device: u32,
    account: Moderation,
    /// The CPU that is interrupted.
    server: u32,
    /// A pin: the guest has not yet ended its last interrupt.
    waits: bool,
    /// A pin: its host bridge is stopped.
    stopped: bool,
}

impl Route {
    fn is_open(&self) -> bool {
        !self.waits && !self.stopped && !self.account.is_muted()
    }
}

/// All sources that devices of VMs have.
#[derive(Debug)]
pub(crate) struct Messages {
    sources: Sources,
    routes: Mutex<Vec<Route>>,
    muted: AtomicUsize,
    unasked: AtomicUsize,
}

impl Messages {
    /// Room for every source there may be is taken now: guests add routes, and must not find that there is no
    /// memory for one. `pins` is how many sources of pins there are.
    pub(crate) fn new(sources: Sources, pins: usize) -> Self {
        Self {
            sources,
            routes: Mutex::new(Vec::with_capacity(COUNT as usize + pins)),
            muted: AtomicUsize::new(0),
            unasked: AtomicUsize::new(0),
        }
    }

    /// Gives a source, which the platform gave to a device, to a VM: it interrupts the CPU `server`.
    /// False when it cannot.
    pub(crate) fn add(
        &self,
        source: u32,
        vm: usize,
        [buid, device]: [u64; 2],
        server: u32,
    ) -> bool {
        if !(FIRST..FIRST + COUNT).contains(&source) {
            return false;
        }
        // The route comes first: an interrupt that comes at once finds it.
        let device = u32::try_from(device).unwrap_or(u32::MAX);
        let kind = Kind::Message;
        self.direct(Route {
            source,
            came: Came { vm, source, kind },
            buid,
            device,
            account: Moderation::default(),
            server,
            waits: false,
            stopped: false,
        })
    }

    /// Gives the source of a host bridge's pin to a VM, which knows it as `came` says. False when it cannot.
    pub(crate) fn add_pin(&self, source: u32, came: Came, buid: u64, server: u32) -> bool {
        self.direct(Route {
            source,
            came,
            buid,
            device: OF_BRIDGE,
            account: Moderation::default(),
            server,
            waits: false,
            stopped: false,
        })
    }

    fn direct(&self, route: Route) -> bool {
        let Route { source, server, .. } = route;
        let mut routes = self.routes.lock();
        if routes.len() == routes.capacity() {
            return false;
        }
        routes.push(route);
        drop(routes);
        let directed = self.sources.direct(source, server);
        if !directed {
            self.routes.lock().retain(|route| route.source != source);
        }
        directed
    }

    /// Lets a source through.
    fn open(&self, route: &Route) {
        let Route { source, server, .. } = *route;
        if !self.sources.release(source, server) {
            log::warn!("interrupt {source:#x} stays silent");
        }
    }

    /// The guest has ended the interrupt of a pin, or says so: it may interrupt again.
    pub(crate) fn ended(&self, vm: usize, source: u32) {
        let mut routes = self.routes.lock();
        let mut found = routes.iter_mut();
        let its = |came: Came| (came.vm, came.source, came.kind) == (vm, source, Kind::Pin);
        if let Some(route) = found.find(|route| its(route.came))
            && core::mem::take(&mut route.waits)
            && route.is_open()
        {
            self.open(route);
        }
    }

    /// The pins of a host bridge interrupt no more.
    pub(crate) fn stop_pins(&self, buid: u64) {
        self.set_pins(buid, true);
    }

    /// They do again, as far as the guest has ended what came.
    pub(crate) fn allow_pins(&self, buid: u64) {
        self.set_pins(buid, false);
    }

    fn set_pins(&self, buid: u64, stopped: bool) {
        for route in self.routes.lock().iter_mut() {
            if (route.buid, route.device) != (buid, OF_BRIDGE) || route.stopped == stopped {
                continue;
            }
            route.stopped = stopped;
            if route.is_open() {
                self.open(route);
            } else if !self.sources.silence(route.source) {
                log::warn!("interrupt {:#x} cannot be silenced", route.source);
            }
        }
    }

    /// Takes the pins of a host bridge away.
    pub(crate) fn forget_pins(&self, buid: u64) {
        self.forget([buid, OF_BRIDGE.into()]);
    }

    /// Takes the sources of a device away.
    pub(crate) fn forget(&self, [buid, device]: [u64; 2]) {
        let device = u32::try_from(device).unwrap_or(u32::MAX);
        self.routes.lock().retain(|route| {
            let its = (route.buid, route.device) == (buid, device);
            if its && !self.sources.silence(route.source) {
                log::warn!("interrupt {:#x} cannot be silenced", route.source);
            }
            if its && route.account.is_muted() {
                self.muted.fetch_sub(1, Ordering::Relaxed);
            }
            !its
        });
    }

    /// An interrupt came, and is not yet ended at its controller: whose it is, if anybody's, and what is to
    /// become of it.
    #[inline]
    #[optimize(speed)]
    pub(crate) fn came(&self, source: u32, now: u64) -> (Option<Came>, Afterwards) {
        let mut routes = self.routes.lock();
        // Messages, which are most of what comes, were added last.
        let mut found = routes.iter_mut().rev();
        if let Some(route) = found.find(|route| route.source == source) {
            let moderated = route.account.came(now, RATE);
            if moderated == Moderated::Mute {
                self.muted.fetch_add(1, Ordering::Relaxed);
            }
            route.waits = route.came.kind == Kind::Pin;
            let afterwards = if !route.is_open() && self.sources.hold(source) {
                Afterwards::Held
            } else {
                Afterwards::Heard
            };
            return (Some(route.came), afterwards);
        }
        drop(routes);
        // One that was on its way when its device was taken away; or something unknown, which had
        // better stay silent.
        let _ = self.sources.silence(source);
        if self.unasked.fetch_add(1, Ordering::Relaxed) < LINES {
            log::info!("interrupt {source:#x} is nobody's");
        }
        (None, Afterwards::Held)
    }

    /// Lets sources through again whose periods are over.
    pub(crate) fn look(&self, now: u64) {
        if self.muted.load(Ordering::Relaxed) == 0 {
            return;
        }
        for route in self.routes.lock().iter_mut() {
            if route.account.is_due(now, RATE) {
                self.muted.fetch_sub(1, Ordering::Relaxed);
                if route.is_open() {
                    self.open(route);
                }
            }
        }
    }

    /// How many sources of a VM there are, and how many of them are muted now.
    pub(crate) fn of_vm(&self, vm: usize) -> (usize, usize) {
        let routes = self.routes.lock();
        let its = routes.iter().filter(|route| route.came.vm == vm);
        let muted = its.clone().filter(|route| route.account.is_muted());
        (its.clone().count(), muted.count())
    }
}
