//! Pending LPIs: which wait for which vCPU, the most urgent first.
//!
//! Every vCPU has a list for each of the 32 priority levels, threaded through one array with a slot
//! for every LPI. An LPI is on one list at most, so all lists share one lock; every operation but
//! those on all LPIs of a vCPU takes constant time, and nothing is allocated.

use alloc::{boxed::Box, vec};
use core::sync::atomic::{AtomicU32, Ordering};

use hal::{Mutex, MutexGuard};

use super::LPIS;
use crate::{FIRST_LPI, Kicks, Lpi, bits::bit, priority::level_of};

/// No LPI: the end of a list.
const NIL: u16 = u16::MAX;
/// No vCPU.
const NOBODY: u8 = u8::MAX;
/// Bit 0 of an LPI's configuration: it is enabled. Bits 7:2 are the priority.
const ENABLED: u8 = 1;

/// What is known of one LPI.
#[derive(Clone, Copy, Debug)]
struct Slot {
    next: u16,
    previous: u16,
    /// The byte of the configuration table as last read.
    config: u8,
    /// Where it is pending, or would be given back to.
    vcpu: u8,
    /// The vCPU that has it in a list register, as far as is known.
    held: u8,
    pending: bool,
    queued: bool,
}

impl Slot {
    const EMPTY: Self = Self {
        next: NIL,
        previous: NIL,
        config: 0,
        vcpu: NOBODY,
        held: NOBODY,
        pending: false,
        queued: false,
    };
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u16,
    tail: u16,
}

#[derive(Clone, Debug)]
struct Queue {
    /// `GICR_CTLR.EnableLPIs`.
    accepts: bool,
    ends: [Ends; 32],
}

impl Queue {
    const EMPTY: Self = Self {
        accepts: false,
        ends: [Ends {
            head: NIL,
            tail: NIL,
        }; 32],
    };
}

/// Which end of a list an LPI joins.
#[derive(Clone, Copy)]
enum Join {
    /// It waited before.
    First,
    /// It is new.
    Last,
}

#[derive(Debug)]
struct Lists {
    slots: Box<[Slot]>,
    queues: Box<[Queue]>,
}

/// The pending LPIs of a VM.
#[derive(Debug)]
pub(super) struct Pending {
    /// For each vCPU the levels that have LPIs. Changed with the lock held, read without it.
    levels: Box<[AtomicU32]>,
    lists: Mutex<Lists>,
}

impl Pending {
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            levels: (0..vcpus).map(|_| AtomicU32::new(0)).collect(),
            lists: Mutex::new(Lists {
                slots: vec![Slot::EMPTY; LPIS].into_boxed_slice(),
                queues: vec![Queue::EMPTY; vcpus].into_boxed_slice(),
            }),
        }
    }

    /// Takes the lock.
    pub(super) fn open(&self) -> Open<'_> {
        Open {
            levels: &self.levels,
            lists: self.lists.lock(),
        }
    }

    /// The most urgent one that waits for the vCPU. Takes the lock only if there is one.
    #[inline]
    pub(super) fn first(&self, vcpu: usize) -> Option<Lpi> {
        if self.levels.get(vcpu)?.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.open().first(vcpu)
    }
}

/// The pending LPIs with their lock held.
#[derive(Debug)]
pub(super) struct Open<'a> {
    levels: &'a [AtomicU32],
    lists: MutexGuard<'a, Lists>,
}

impl Open<'_> {
    fn first(&self, vcpu: usize) -> Option<Lpi> {
        let levels = self.levels.get(vcpu)?.load(Ordering::Relaxed);
        if levels == 0 {
            return None;
        }
        let queue = self.lists.queues.get(vcpu)?;
        let index = queue.ends.get(levels.trailing_zeros() as usize)?.head;
        let slot = self.lists.slots.get(usize::from(index))?;
        Some(Lpi {
            intid: FIRST_LPI.wrapping_add(u32::from(index)),
            priority: slot.config & !ENABLED,
        })
    }

    /// The LPI becomes pending for `vcpu`, wherever it was before.
    #[inline]
    pub(super) fn pend(&mut self, lpi: u16, vcpu: u8) -> Kicks {
        if !self.accepts(vcpu) {
            return Kicks::NONE;
        }
        let Some(slot) = self.lists.slots.get(usize::from(lpi)).copied() else {
            return Kicks::NONE;
        };
        if slot.queued {
            if slot.vcpu == vcpu {
                return Kicks::NONE;
            }
            self.leave(lpi);
        }
        self.join(lpi, vcpu, Join::Last)
    }

    /// The LPI, which waits nowhere, becomes pending for `vcpu`, which takes LPIs, and goes into a list register of it in
    /// one step, if it is enabled and `place` has room. Otherwise nothing changes.
    #[inline]
    pub(super) fn pass(&mut self, lpi: u16, vcpu: u8, place: impl FnOnce(Lpi) -> bool) -> bool {
        let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) else {
            return false;
        };
        if slot.pending || slot.config & ENABLED == 0 {
            return false;
        }
        let passed = place(Lpi {
            intid: FIRST_LPI.wrapping_add(u32::from(lpi)),
            priority: slot.config & !ENABLED,
        });
        if passed {
            slot.vcpu = vcpu;
            slot.held = vcpu;
        }
        passed
    }

    /// The LPI goes into a list register of `vcpu`.
    pub(super) fn take(&mut self, lpi: u16, vcpu: u8) {
        self.leave(lpi);
        if let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) {
            slot.pending = false;
            slot.held = vcpu;
        }
    }

    /// The LPI comes back from a list register of `vcpu`. One that was discarded or cleared
    /// meanwhile is gone; one that was moved goes to the vCPU that has it now.
    pub(super) fn give_back(&mut self, lpi: u16, vcpu: u8) -> Kicks {
        let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) else {
            return Kicks::NONE;
        };
        if slot.held != vcpu {
            return Kicks::NONE;
        }
        slot.held = NOBODY;
        let (now_at, queued) = (slot.vcpu, slot.queued);
        if queued || !self.accepts(now_at) {
            return Kicks::NONE;
        }
        let kicks = self.join(lpi, now_at, Join::First);
        kicks.without(vcpu.into())
    }

    /// The LPI is not pending any more. A vCPU that may have it in a list register has to look.
    pub(super) fn clear(&mut self, lpi: u16) -> Kicks {
        self.leave(lpi);
        let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) else {
            return Kicks::NONE;
        };
        slot.pending = false;
        kick(core::mem::replace(&mut slot.held, NOBODY))
    }

    /// The LPI is forgotten altogether.
    pub(super) fn forget(&mut self, lpi: u16) -> Kicks {
        let kicks = self.clear(lpi);
        if let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) {
            *slot = Slot::EMPTY;
        }
        kicks
    }

    /// The LPI goes to `vcpu` from now on, its pending state included.
    pub(super) fn move_to(&mut self, lpi: u16, vcpu: u8) -> Kicks {
        let Some(slot) = self.lists.slots.get(usize::from(lpi)).copied() else {
            return Kicks::NONE;
        };
        if slot.vcpu == vcpu {
            return Kicks::NONE;
        }
        self.leave(lpi);
        let mut kicks = kick(slot.held);
        if slot.pending && self.accepts(vcpu) {
            kicks = kicks.union(self.join(lpi, vcpu, Join::Last));
        } else if let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) {
            slot.pending = false;
            slot.vcpu = vcpu;
        }
        kicks
    }

    /// The LPI is configured by `config`: priority in bits 7:2, enabled in bit 0.
    pub(super) fn configure(&mut self, lpi: u16, config: u8) -> Kicks {
        let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) else {
            return Kicks::NONE;
        };
        let old = *slot;
        if old.config == config {
            return Kicks::NONE;
        }
        if !old.queued {
            slot.config = config;
        } else {
            // The list it leaves is that of its old priority.
            self.leave(lpi);
            if let Some(slot) = self.lists.slots.get_mut(usize::from(lpi)) {
                slot.config = config;
            }
        }
        let mut kicks = kick(old.held);
        if old.pending && self.accepts(old.vcpu) {
            kicks = kicks.union(self.join(lpi, old.vcpu, Join::Last));
        }
        kicks
    }

    /// Everything pending for `from` goes to `to`. Looks at every LPI.
    pub(super) fn move_all(&mut self, from: u8, to: u8) -> Kicks {
        let mut kicks = Kicks::NONE;
        for lpi in 0..u16::try_from(self.lists.slots.len()).unwrap_or(0) {
            if self
                .lists
                .slots
                .get(usize::from(lpi))
                .is_some_and(|slot| slot.vcpu == from)
            {
                kicks = kicks.union(self.move_to(lpi, to));
            }
        }
        kicks
    }

    /// `GICR_CTLR.EnableLPIs` of the vCPU is set: it takes LPIs.
    pub(super) fn accept(&mut self, vcpu: usize) {
        if let Some(queue) = self.lists.queues.get_mut(vcpu) {
            queue.accepts = true;
        }
    }

    /// `GICR_CTLR.EnableLPIs` of the vCPU is clear: it takes none, and those that were pending are
    /// gone. Looks at every LPI.
    pub(super) fn refuse(&mut self, vcpu: usize) {
        let Some(queue) = self.lists.queues.get_mut(vcpu) else {
            return;
        };
        *queue = Queue::EMPTY;
        if let Some(levels) = self.levels.get(vcpu) {
            levels.store(0, Ordering::Release);
        }
        for slot in &mut self.lists.slots {
            if usize::from(slot.held) == vcpu {
                slot.held = NOBODY;
            }
            if usize::from(slot.vcpu) == vcpu {
                *slot = Slot {
                    config: slot.config,
                    held: slot.held,
                    ..Slot::EMPTY
                };
            }
        }
    }

    /// Everything is as at creation.
    pub(super) fn reset(&mut self) {
        self.lists.slots.fill(Slot::EMPTY);
        for queue in &mut self.lists.queues {
            *queue = Queue::EMPTY;
        }
        for levels in self.levels {
            levels.store(0, Ordering::Release);
        }
    }

    #[inline]
    fn accepts(&self, vcpu: u8) -> bool {
        self.lists
            .queues
            .get(usize::from(vcpu))
            .is_some_and(|queue| queue.accepts)
    }

    /// Makes the LPI, which is on no list, pending for `vcpu`, and puts it on a list if it is
    /// enabled. Returns that vCPU then.
    #[inline]
    fn join(&mut self, lpi: u16, vcpu: u8, join: Join) -> Kicks {
        let Lists { slots, queues } = &mut *self.lists;
        let Some(slot) = slots.get_mut(usize::from(lpi)) else {
            return Kicks::NONE;
        };
        slot.pending = true;
        slot.vcpu = vcpu;
        if slot.config & ENABLED == 0 {
            return Kicks::NONE;
        }
        let level = level_of(slot.config);
        let (Some(ends), Some(levels)) = (
            queues
                .get_mut(usize::from(vcpu))
                .and_then(|queue| queue.ends.get_mut(level as usize)),
            self.levels.get(usize::from(vcpu)),
        ) else {
            return Kicks::NONE;
        };
        slot.queued = true;
        let neighbour = match join {
            Join::First => {
                slot.previous = NIL;
                slot.next = core::mem::replace(&mut ends.head, lpi);
                if slot.next == NIL {
                    ends.tail = lpi;
                }
                slot.next
            }
            Join::Last => {
                slot.next = NIL;
                slot.previous = core::mem::replace(&mut ends.tail, lpi);
                if slot.previous == NIL {
                    ends.head = lpi;
                }
                slot.previous
            }
        };
        if let Some(neighbour) = slots.get_mut(usize::from(neighbour)) {
            match join {
                Join::First => neighbour.previous = lpi,
                Join::Last => neighbour.next = lpi,
            }
        }
        let set = levels.load(Ordering::Relaxed) | bit(level);
        levels.store(set, Ordering::Release);
        Kicks::of(vcpu.into())
    }

    /// Takes the LPI off its list, if it is on one. It stays pending.
    #[inline]
    fn leave(&mut self, lpi: u16) {
        let Lists { slots, queues } = &mut *self.lists;
        let Some(slot) = slots.get_mut(usize::from(lpi)) else {
            return;
        };
        if !slot.queued {
            return;
        }
        slot.queued = false;
        let Slot {
            next,
            previous,
            config,
            vcpu,
            ..
        } = *slot;
        let level = level_of(config);
        let (Some(ends), Some(levels)) = (
            queues
                .get_mut(usize::from(vcpu))
                .and_then(|queue| queue.ends.get_mut(level as usize)),
            self.levels.get(usize::from(vcpu)),
        ) else {
            return;
        };
        match slots.get_mut(usize::from(previous)) {
            Some(slot) => slot.next = next,
            None => ends.head = next,
        }
        match slots.get_mut(usize::from(next)) {
            Some(slot) => slot.previous = previous,
            None => ends.tail = previous,
        }
        if ends.head == NIL {
            let left = levels.load(Ordering::Relaxed) & !bit(level);
            levels.store(left, Ordering::Release);
        }
    }
}

fn kick(vcpu: u8) -> Kicks {
    if vcpu == NOBODY {
        Kicks::NONE
    } else {
        Kicks::of(vcpu.into())
    }
}
