//! What is told of DMA that an IOMMU refused, so that no flood of it fills the log or takes a CPU.
//!
//! Each device has an account of its own: a device that floods uses up its own lines and its own
//! records, and a neighbour's refusal still has its line. Refusals of one kind in one page are one
//! line a second: a device's one access may be many records.

use alloc::vec;
use alloc::vec::Vec;

/// Lines of a device in a second.
const LINES: usize = 16;
/// Records of a device in a second with which it begins to make noise.
const NOISY: u32 = 64;
/// Records of a device in a second after which no more are wanted of it.
const RECORDS: u32 = 1024;
/// Records of a device in a second that are more than its neighbours can bear: the event queue is everybody's.
const MOST: u32 = 4 * RECORDS;
/// Low bits of an address that make no other kind of refusal.
const PAGE: u64 = 0xfff;

/// What makes refusals alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedDma {
    /// What the IOMMU calls it.
    pub code: u8,
    /// Whether it was a write.
    pub is_write: bool,
    /// The address, as the device gave it.
    pub address: u64,
}

/// Whether a refusal has a line of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// It has; so many of this device had none since the last.
    Told {
        /// How many.
        unsaid: u64,
    },
    /// It has none.
    Unsaid,
}

/// Whether further records of a device are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// They are.
    Wanted,
    /// They are not until the second is over: the device floods.
    Unwanted,
    /// They come all the same, and are so many that whatever makes them has to stop.
    Unbearable,
}

/// Whether a device tells more than its own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// The record that was counted last is the one of the second with which it begins.
    Begins,
    /// Not yet in this second, or already.
    Unchanged,
}

#[derive(Clone, Debug, Default)]
struct Account {
    total: u64,
    /// When its second ends.
    until: u64,
    records: u32,
    unsaid: u64,
    /// Those that had a line in this second.
    told: [Option<RefusedDma>; LINES],
    /// When its records are wanted again.
    muted_until: Option<u64>,
}

/// The accounts of all devices, by their numbers; those of devices that nobody knows share one.
#[derive(Clone, Debug)]
pub struct Faults {
    accounts: Vec<Account>,
    second: u64,
}

impl Faults {
    /// Accounts of so many devices; a second is so many ticks.
    #[must_use]
    pub fn new(devices: usize, ticks_per_second: u64) -> Self {
        Self {
            accounts: vec![Account::default(); devices.saturating_add(1)],
            second: ticks_per_second,
        }
    }

    fn account(&mut self, device: Option<usize>) -> Option<&mut Account> {
        let last = self.accounts.len().saturating_sub(1);
        let at = device.unwrap_or(last).min(last);
        self.accounts.get_mut(at)
    }

    /// A record of a device (`None`: of one that nobody knows) came at this tick.
    pub fn count(&mut self, device: Option<usize>, now: u64) -> Records {
        let second = self.second;
        let Some(account) = self.account(device) else {
            return Records::Unwanted;
        };
        account.turn(now, second);
        account.total = account.total.saturating_add(1);
        account.records = account.records.saturating_add(1);
        if account.records <= RECORDS {
            return Records::Wanted;
        }
        account.muted_until = Some(account.until);
        if account.records <= MOST {
            Records::Unwanted
        } else {
            Records::Unbearable
        }
    }

    /// Whether a device begins to make noise with the record that was counted last: whoever has it should be
    /// the one to read the next.
    #[must_use]
    pub fn noise(&self, device: Option<usize>) -> Noise {
        let account = device.and_then(|device| self.accounts.get(device));
        match account {
            Some(account) if account.records == NOISY => Noise::Begins,
            _ => Noise::Unchanged,
        }
    }

    /// Whether a refusal of a device that was counted just now has a line.
    pub fn line(&mut self, device: Option<usize>, refusal: RefusedDma, now: u64) -> Telling {
        let second = self.second;
        let Some(account) = self.account(device) else {
            return Telling::Unsaid;
        };
        account.turn(now, second);
        let kind = RefusedDma {
            address: refusal.address & !PAGE,
            ..refusal
        };
        let is_new = !account.told.contains(&Some(kind));
        let free = account.told.iter_mut().find(|place| place.is_none());
        let Some(place) = free.filter(|_| is_new) else {
            account.unsaid = account.unsaid.saturating_add(1);
            return Telling::Unsaid;
        };
        *place = Some(kind);
        Telling::Told {
            unsaid: core::mem::take(&mut account.unsaid),
        }
    }

    /// Devices among those asked for whose records are wanted again at this tick; each is named once.
    pub fn forgiven<'a>(
        &'a mut self,
        now: u64,
        is_asked_for: impl Fn(usize) -> bool + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let accounts = self.accounts.iter_mut().enumerate();
        accounts.filter_map(move |(device, account)| {
            account.muted_until.filter(|until| *until <= now)?;
            if !is_asked_for(device) {
                return None;
            }
            account.muted_until = None;
            Some(device)
        })
    }

    /// Whether records of a device are unwanted, and how many there were in all.
    #[must_use]
    pub fn of(&self, device: usize) -> (Records, u64) {
        let account = self.accounts.get(device);
        account.map_or((Records::Wanted, 0), |account| {
            let records = match account.muted_until {
                Some(_) => Records::Unwanted,
                None => Records::Wanted,
            };
            (records, account.total)
        })
    }

    /// When records of a device that floods are wanted again: the first of those asked for, if there are any.
    #[must_use]
    pub fn next_forgiven(&self, is_asked_for: impl Fn(usize) -> bool) -> Option<u64> {
        let accounts = self.accounts.iter().enumerate();
        let muted = accounts.filter_map(|(device, account)| Some((device, account.muted_until?)));
        muted
            .filter(|(device, _)| is_asked_for(*device))
            .map(|(_, until)| until)
            .min()
    }

    /// Records in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let totals = self.accounts.iter().map(|account| account.total);
        totals.fold(0, u64::saturating_add)
    }
}

impl Account {
    fn turn(&mut self, now: u64, second: u64) {
        if now >= self.until {
            self.until = now.saturating_add(second);
            self.records = 0;
            self.told = [None; LINES];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Faults, LINES, MOST, NOISY, Noise, RECORDS, Records, RefusedDma, Telling};

    const SECOND: u64 = 1000;

    fn write(address: u64) -> RefusedDma {
        RefusedDma {
            code: 0x10,
            is_write: true,
            address,
        }
    }

    #[test]
    fn one_page_is_one_line_a_second() {
        let mut faults = Faults::new(1, SECOND);
        let told = Telling::Told { unsaid: 0 };
        assert_eq!(faults.line(Some(0), write(0x1000), 0), told);
        assert_eq!(faults.line(Some(0), write(0x1ffc), 0), Telling::Unsaid);
        assert_eq!(
            faults.line(Some(0), write(0x2000), 0),
            Telling::Told { unsaid: 1 }
        );
        let read = RefusedDma {
            is_write: false,
            ..write(0x1000)
        };
        assert_eq!(faults.line(Some(0), read, 1), told);
        assert_eq!(faults.line(Some(0), write(0x1000), SECOND), told);
    }

    #[test]
    fn a_flood_uses_up_its_own_lines_alone() {
        let mut faults = Faults::new(2, SECOND);
        let mut told = 0;
        for page in 0..1000 {
            told += usize::from(faults.line(Some(0), write(page << 12), 5) != Telling::Unsaid);
        }
        assert_eq!(told, LINES);
        assert_eq!(
            faults.line(Some(1), write(0), 5),
            Telling::Told { unsaid: 0 }
        );
        assert_eq!(faults.line(None, write(0), 5), Telling::Told { unsaid: 0 });
        let after = faults.line(Some(0), write(0), 5 + SECOND);
        assert_eq!(
            after,
            Telling::Told {
                unsaid: 1000 - LINES as u64
            }
        );
    }

    #[test]
    fn records_of_a_flood_are_unwanted_until_its_second_is_over() {
        let mut faults = Faults::new(2, SECOND);
        for _ in 0..RECORDS {
            assert_eq!(faults.count(Some(0), 7), Records::Wanted);
        }
        assert_eq!(faults.next_forgiven(|_| true), None);
        assert_eq!(faults.count(Some(0), 8), Records::Unwanted);
        assert_eq!(faults.count(Some(1), 8), Records::Wanted);
        assert_eq!(faults.next_forgiven(|_| true), Some(7 + SECOND));
        assert_eq!(faults.of(0), (Records::Unwanted, u64::from(RECORDS) + 1));
        assert_eq!(faults.forgiven(7 + SECOND - 1, |_| true).count(), 0);
        assert!(faults.forgiven(7 + SECOND, |_| true).eq([0]));
        assert_eq!(faults.forgiven(7 + SECOND, |_| true).count(), 0);
        assert_eq!(faults.count(Some(0), 7 + SECOND), Records::Wanted);
        assert_eq!(faults.total(), u64::from(RECORDS) + 3);
    }

    #[test]
    fn a_flood_that_does_not_end_is_unbearable_until_its_second_is_over() {
        let mut faults = Faults::new(2, SECOND);
        let last = (0..MOST).map(|_| faults.count(Some(0), 7)).last();
        assert_eq!(last, Some(Records::Unwanted));
        assert_eq!(faults.count(Some(0), 7), Records::Unbearable);
        assert_eq!(faults.count(Some(1), 7), Records::Wanted);
        assert_eq!(faults.of(0).0, Records::Unwanted);
        assert!(faults.forgiven(7 + SECOND, |_| true).eq([0]));
        assert_eq!(faults.count(Some(0), 7 + SECOND), Records::Wanted);
    }

    #[test]
    fn noise_begins_once_a_second() {
        let mut faults = Faults::new(2, SECOND);
        for second in [0, SECOND] {
            let begins = (1..=2 * RECORDS).filter(|_| {
                faults.count(Some(0), second);
                faults.noise(Some(0)) == Noise::Begins
            });
            assert!(begins.eq([NOISY]));
            assert_eq!(faults.noise(Some(1)), Noise::Unchanged);
        }
        // Of a device that nobody knows there is nobody to blame.
        for _ in 0..NOISY {
            faults.count(None, 0);
        }
        assert_eq!(faults.noise(None), Noise::Unchanged);
    }

    #[test]
    fn only_devices_that_are_asked_for_are_forgiven() {
        let mut faults = Faults::new(3, SECOND);
        for device in [0, 2] {
            for _ in 0..=RECORDS {
                faults.count(Some(device), 7);
            }
        }
        assert_eq!(faults.next_forgiven(|device| device == 1), None);
        assert_eq!(faults.next_forgiven(|device| device == 2), Some(7 + SECOND));
        assert!(faults.forgiven(7 + SECOND, |device| device == 2).eq([2]));
        assert_eq!(faults.next_forgiven(|_| true), Some(7 + SECOND));
        assert!(faults.forgiven(7 + SECOND, |_| true).eq([0]));
    }

    #[test]
    fn a_number_that_no_device_has_is_counted_with_the_unknown() {
        let mut faults = Faults::new(1, SECOND);
        assert_eq!(faults.count(Some(99), 0), Records::Wanted);
        assert_eq!(faults.of(0), (Records::Wanted, 0));
        assert_eq!(faults.of(1), (Records::Wanted, 1));
        assert_eq!(faults.of(usize::MAX), (Records::Wanted, 0));
    }
}
