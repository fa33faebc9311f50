//! Short texts, as the kernel's files have them.

use core::fmt;

/// A text of at most `N` bytes.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            used: 0,
        }
    }
}

impl<const N: usize> Text<N> {
    /// This text; nothing if it is too long.
    pub fn of(text: &str) -> Option<Self> {
        let mut copy = Self::default();
        fmt::Write::write_str(&mut copy, text).ok()?;
        Some(copy)
    }

    /// It.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.used).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        let place = self.bytes.get_mut(self.used..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The sum of numbers with commas between them.
pub fn sum(text: &str) -> Option<u64> {
    let mut numbers = text.split(',').map(|number| number.parse::<u64>().ok());
    numbers.try_fold(0, |sum, number| number.map(|number| sum + number))
}

/// The name of a disk. Of an NVMe disk with several paths, `name` is that of a path.
pub fn disk(name: &str) -> Option<Text<32>> {
    use fmt::Write as _;
    let mut disk = Text::default();
    let path = name.strip_prefix("nvme").and_then(|rest| {
        let (controller, rest) = rest.split_once('c')?;
        Some((controller, rest.split_once('n')?.1))
    });
    match path {
        Some((controller, namespace)) => write!(disk, "nvme{controller}n{namespace}"),
        None => disk.write_str(name),
    }
    .ok()?;
    Some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_whole_or_not_there() {
        assert_eq!(Text::<4>::of("abcd").unwrap().as_str(), "abcd");
        assert!(Text::<4>::of("abcde").is_none());
    }

    #[test]
    fn interrupts_of_all_cpus_are_added() {
        assert_eq!(sum("3"), Some(3));
        assert_eq!(sum("3,0,4"), Some(7));
        assert_eq!(sum(""), None);
        assert_eq!(sum("3,x"), None);
    }

    #[test]
    fn a_path_names_its_disk() {
        for (name, wanted) in [
            ("vda", "vda"),
            ("nvme0n1", "nvme0n1"),
            ("nvme1c0n2", "nvme1n2"),
        ] {
            assert_eq!(disk(name).unwrap().as_str(), wanted);
        }
    }
}
