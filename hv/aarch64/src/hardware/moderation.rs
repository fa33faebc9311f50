//! Messages that come for a VM while another has the CPU: no more of them than the other can bear.
//!
//! A message costs whoever is on the CPU an exit. Its own VM pays for itself; of what comes in another's time there is an
//! account for each VM and CPU. When that is full, the VM's LPIs of that CPU are off in the table until the period is
//! over. A redistributor keeps one of each pending meanwhile: nothing is lost but the number of them.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use gic::Delivery;
use hal::{Clock, Mutex};
use vm::{Moderated, Moderation, Rate};

use super::Hardware;
use crate::console::SystemCounter;

/// Messages in a period: 25,600 a second, of all devices of a VM on a CPU. What they cost is some hundredths of the CPU.
const MOST: u32 = 256;
const PERIOD_US: u64 = 10_000;

struct Account {
    vm: usize,
    core: usize,
    moderation: Moderation,
}

/// The accounts of VMs whose messages have come in others' time.
#[derive(Default)]
pub(super) struct Accounts {
    all: Mutex<Vec<Account>>,
    /// How many of them are full.
    muted: AtomicUsize,
}

fn rate() -> Rate {
    Rate {
        most: MOST,
        ticks: SystemCounter.ticks_of_us(PERIOD_US),
    }
}

impl Hardware {
    /// A message of a VM's has come on a CPU while another VM had it. When too many have, no more come: then the time is
    /// returned from which the CPU is to look around.
    #[optimize(size)]
    pub(crate) fn came_for_another(&self, vm: usize, core: usize) -> Option<u64> {
        let mut all = self.accounts.all.lock();
        let known = all.iter().position(|it| (it.vm, it.core) == (vm, core));
        let at = known.unwrap_or_else(|| {
            all.push(Account {
                vm,
                core,
                moderation: Moderation::default(),
            });
            all.len() - 1
        });
        let moderation = &mut all.get_mut(at)?.moderation;
        if moderation.came(SystemCounter.ticks(), rate()) == Moderated::Open {
            return None;
        }
        self.accounts.muted.fetch_add(1, Ordering::Relaxed);
        self.set_messages(vm, core, Delivery::Off);
        moderation.due(rate())
    }

    /// Whether some VM's messages do not come.
    pub(super) fn has_muted(&self) -> bool {
        self.accounts.muted.load(Ordering::Relaxed) != 0
    }

    /// When messages are to be let through again on a CPU, in ticks.
    #[optimize(size)]
    pub(super) fn next_open(&self, core: usize) -> Option<u64> {
        let all = self.accounts.all.lock();
        let on_core = all.iter().filter(|account| account.core == core);
        on_core
            .filter_map(|account| account.moderation.due(rate()))
            .min()
    }

    /// Lets messages through again whose period is over.
    pub(crate) fn let_messages_through(&self, core: usize) {
        if self.has_muted() {
            let now = SystemCounter.ticks();
            self.open(&|it| it.core == core && it.moderation.is_due(now, rate()));
        }
    }

    /// A VM's devices send nothing more: its messages are let through, for whoever has the devices next.
    pub(crate) fn forget_messages(&self, vm: usize) {
        self.open(&|it| it.vm == vm && core::mem::take(&mut it.moderation).is_muted());
    }

    #[inline(never)]
    #[optimize(size)]
    fn open(&self, is_to_open: &dyn Fn(&mut Account) -> bool) {
        for account in self.accounts.all.lock().iter_mut() {
            if is_to_open(account) {
                self.accounts.muted.fetch_sub(1, Ordering::Relaxed);
                self.set_messages(account.vm, account.core, Delivery::On);
            }
        }
    }

    /// Turns a VM's LPIs of a CPU on or off, and has what has read the table read it anew.
    #[optimize(size)]
    fn set_messages(&self, vm: usize, core: usize, delivery: Delivery) {
        let Some(lpis) = &self.lpis else {
            return;
        };
        let functions = self.functions.iter().zip(&self.owners);
        let its_own = functions.filter(|(_, owner)| owner.load(Ordering::Relaxed) == vm + 1);
        let its_own = its_own.map(|(function, _)| function);
        for function in its_own.clone() {
            let places = function.first..function.first + function.events as usize;
            let targets = self.targets.get(places.clone()).unwrap_or_default();
            for (place, target) in places.zip(targets) {
                if usize::from(target.load(Ordering::Relaxed)) == core
                    && let Ok(place) = u32::try_from(place)
                {
                    // It is in the table, which is memory.
                    let _ = lpis.set(place, delivery);
                }
            }
        }
        let collection = u16::try_from(core).unwrap_or(u16::MAX);
        for (number, its) in self.itss.iter().enumerate() {
            if !its_own.clone().any(|function| function.its == number) {
                continue;
            }
            let mut its = its.lock();
            // One that is lost stays so.
            if !its.is_lost()
                && let Err(error) = its.invalidate_all(collection)
            {
                log::error!("its{number}: {error}");
            }
        }
    }
}
