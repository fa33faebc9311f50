//! Events of an SMMUv3, as Linux writes them to its log: a line with the number of the event, then the
//! record's four doublewords, a line each. [Linux, drivers/iommu/arm/arm-smmu-v3]

use core::fmt;

/// A translation fault: no mapping. [IHI 0070 §7.3.13]
pub const F_TRANSLATION: u8 = 0x10;
/// A permission fault. [IHI 0070 §7.3.16]
pub const F_PERMISSION: u8 = 0x13;

/// An event record. [IHI 0070 §7.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    words: [u64; 4],
}

impl Event {
    /// Its number.
    pub fn number(self) -> u8 {
        self.words[0].to_le_bytes()[0]
    }

    /// Whose access it was.
    pub fn stream(self) -> u64 {
        self.words[0] >> 32
    }

    /// Whether it was a read.
    pub fn is_read(self) -> bool {
        self.words[1] & 1 << 35 != 0
    }

    /// Whether stage 2 refused it. A guest's own SMMU has none.
    pub fn is_stage_2(self) -> bool {
        self.words[1] & 1 << 39 != 0
    }

    /// Whether the access itself was refused, and not the walk of a table.
    pub fn is_of_the_input(self) -> bool {
        self.words[1] >> 40 & 0b11 == 0b10
    }

    /// The address that the device used.
    pub fn address(self) -> u64 {
        self.words[2]
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            F_TRANSLATION => f.write_str("F_TRANSLATION")?,
            F_PERMISSION => f.write_str("F_PERMISSION")?,
            other => write!(f, "event {other:#x}")?,
        }
        let way = if self.is_read() { "read" } else { "write" };
        write!(
            f,
            " sid {:#x}, {way} of {:#x}",
            self.stream(),
            self.address()
        )
    }
}

/// Puts events together from the lines of a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    number: u64,
    words: [u64; 4],
    /// Words still to come.
    missing: usize,
}

impl Reader {
    /// Takes a line; the event that it completes.
    pub fn line(&mut self, line: &str) -> Option<Event> {
        let (_, message) = line.split_once("arm-smmu-v3 ")?;
        if let Some((_, rest)) = message.split_once(": event ") {
            let (number, _) = rest.split_once(" received:")?;
            self.number = hexadecimal(number)?;
            self.missing = self.words.len();
            return None;
        }
        if self.missing == 0 {
            return None;
        }
        let (_, word) = message.rsplit_once("0x")?;
        let at = self.words.len() - self.missing;
        *self.words.get_mut(at)? = hexadecimal(word)?;
        self.missing -= 1;
        let event = Event { words: self.words };
        (self.missing == 0 && u64::from(event.number()) == self.number).then_some(event)
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    let text = text.trim();
    // The log writes a tab as four characters.
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What /dev/kmsg gives, a record a line.
    const LOG: [&str; 6] = [
        "3,700,1,-;arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:",
        r"3,701,1,-;arm-smmu-v3 arm-smmu-v3.0.auto: \x090x0000001800000010",
        r"3,702,1,-;arm-smmu-v3 arm-smmu-v3.0.auto: \x090x0000020800000000",
        "6,703,1,-;pci 0000:00:01.0: something else",
        r"3,704,1,-;arm-smmu-v3 arm-smmu-v3.0.auto: \x090x0000000004001000",
        r"3,705,1,-;arm-smmu-v3 arm-smmu-v3.0.auto: \x090x0000000000000000",
    ];

    fn events(lines: &[&str]) -> Vec<Event> {
        let mut reader = Reader::default();
        lines.iter().filter_map(|line| reader.line(line)).collect()
    }

    #[test]
    fn an_event_is_put_together() {
        let found = events(&LOG);
        let [event] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(event.number(), F_TRANSLATION);
        assert_eq!(event.stream(), 0x18);
        assert_eq!(event.address(), 0x400_1000);
        assert!(event.is_read() && !event.is_stage_2() && event.is_of_the_input());
        assert_eq!(
            event.to_string(),
            "F_TRANSLATION sid 0x18, read of 0x4001000"
        );
    }

    #[test]
    fn half_an_event_is_none() {
        assert!(events(&LOG[..5]).is_empty());
        assert!(events(&LOG[1..]).is_empty(), "without its first line");
        let other = LOG.map(|line| line.replace("event 0x10", "event 0x13"));
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        assert!(events(&other).is_empty(), "number and record differ");
    }

    #[test]
    fn two_events_are_two() {
        assert_eq!(events(&[LOG, LOG].concat()).len(), 2);
    }
}
