//! The guest's time of day.

/// A moment: UTC, Gregorian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Date {
    /// The year, all digits.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
    /// 0 to 999,999,999.
    pub nanosecond: u32,
}

const DAY: i64 = 86_400;
/// Days of 400 years.
const ERA: i64 = 146_097;
/// Days from the first of March of year 0 to 1970.
const EPOCH: i64 = 719_468;

impl Date {
    /// The moment from cells, in the order of `get-time-of-day`; `None` when it is none. Years are
    /// those with four digits. [LoPAPR §7.3.2]
    #[must_use]
    pub fn from_cells(cells: [u32; 7]) -> Option<Self> {
        let [year, month, day, hour, minute, second, nanosecond] = cells;
        let date = Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
            nanosecond,
        };
        let good = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60
            && nanosecond < 1_000_000_000;
        // A 30th of February is another day.
        (good && Self::from_seconds(date.seconds(), nanosecond) == date).then_some(date)
    }

    /// What a machine's clock says. Its nanoseconds may be none: QEMU gives the low half of a count that is not
    /// of the second (hw/ppc/spapr_rtc.c); then there are none.
    #[must_use]
    pub fn of_machine(cells: [u32; 7]) -> Option<Self> {
        let [year, month, day, hour, minute, second, nanosecond] = cells;
        let nanosecond = match nanosecond {
            0..1_000_000_000 => nanosecond,
            _ => 0,
        };
        Self::from_cells([year, month, day, hour, minute, second, nanosecond])
    }

    /// The cells of `get-time-of-day`.
    #[must_use]
    pub const fn cells(self) -> [u32; 7] {
        [
            self.year,
            self.month,
            self.day,
            self.hour,
            self.minute,
            self.second,
            self.nanosecond,
        ]
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        // Years begin in March, so that a leap day is the last of its year.
        let early = i64::from(self.month <= 2);
        let year = i64::from(self.year).saturating_sub(early);
        let era = year.div_euclid(400);
        let of_era = year.rem_euclid(400);
        let month = i64::from(self.month).saturating_add(9).rem_euclid(12);
        // The 153 days of five months from March on repeat.
        let of_year = month.saturating_mul(153).saturating_add(2).div_euclid(5);
        let of_year = of_year
            .saturating_add(i64::from(self.day))
            .saturating_sub(1);
        let leaps = of_era.div_euclid(4).saturating_sub(of_era.div_euclid(100));
        let days = era
            .saturating_mul(ERA)
            .saturating_add(of_era.saturating_mul(365))
            .saturating_add(leaps)
            .saturating_add(of_year)
            .saturating_sub(EPOCH);
        days.saturating_mul(DAY)
            .saturating_add(i64::from(self.hour).saturating_mul(3600))
            .saturating_add(i64::from(self.minute).saturating_mul(60))
            .saturating_add(i64::from(self.second))
    }

    /// The moment so many seconds after 1970 began; far away from it, the nearest that has a name.
    #[must_use]
    pub fn from_seconds(seconds: i64, nanosecond: u32) -> Self {
        const LAST: i64 = 253_402_300_799;
        let seconds = seconds.clamp(0, LAST);
        let days = seconds.div_euclid(DAY).saturating_add(EPOCH);
        let rest = seconds.rem_euclid(DAY);
        let era = days.div_euclid(ERA);
        let of_era = days.rem_euclid(ERA);
        // A day is lost each 4 years but each 100, and each 400.
        let year = of_era
            .saturating_sub(of_era.div_euclid(1460))
            .saturating_add(of_era.div_euclid(36_524))
            .saturating_sub(of_era.div_euclid(146_096))
            .div_euclid(365);
        let leaps = year.div_euclid(4).saturating_sub(year.div_euclid(100));
        let of_year = of_era
            .saturating_sub(year.saturating_mul(365))
            .saturating_sub(leaps);
        let month = of_year.saturating_mul(5).saturating_add(2).div_euclid(153);
        let before = month.saturating_mul(153).saturating_add(2).div_euclid(5);
        let day = of_year.saturating_sub(before).saturating_add(1);
        let civil = month.saturating_add(2).rem_euclid(12).saturating_add(1);
        let year = era
            .saturating_mul(400)
            .saturating_add(year)
            .saturating_add(i64::from(civil <= 2));
        let cell = |value: i64| u32::try_from(value).unwrap_or(0);
        Self {
            year: cell(year),
            month: cell(civil),
            day: cell(day),
            hour: cell(rest.div_euclid(3600)),
            minute: cell(rest.rem_euclid(3600).div_euclid(60)),
            second: cell(rest.rem_euclid(60)),
            nanosecond,
        }
    }
}
