//! Where the running kernel is in memory, from `/proc/iomem`.

/// Bytes from `start`, `end` not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// Boundaries that kernels begin at. [Linux, Documentation/arch/arm64/booting.rst]
const BLOCK: u64 = 2 << 20;

/// From the boundary before the kernel's code to the end of its data. `None` if addresses are hidden, which
/// they are from whoever is not root.
pub fn kernel(iomem: &str) -> Option<Range> {
    let named = |wanted: &str| {
        iomem.lines().find_map(|line| {
            let (range, name) = line.trim().split_once(" : ")?;
            let (start, last) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            (name == wanted).then_some((number(start)?, number(last)?))
        })
    };
    let (code, _) = named("Kernel code")?;
    let (_, last) = named("Kernel data")?;
    let range = Range {
        start: code - code % BLOCK,
        end: last.checked_add(1)?,
    };
    (code < last).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_begins_at_a_boundary_before_its_code() {
        const IOMEM: &str = "\
09000000-09000fff : pl011@9000000
40000000-5fefffff : System RAM
  40210000-423affff : Kernel code
  423b0000-42b3ffff : reserved
  42b40000-42f4ffff : Kernel data
";
        let range = Range {
            start: 0x4020_0000,
            end: 0x42f5_0000,
        };
        assert_eq!(kernel(IOMEM), Some(range));
        assert_eq!(kernel(&IOMEM.replace("code", "text")), None);
    }

    #[test]
    fn addresses_that_are_hidden_are_no_place() {
        let hidden = "00000000-00000000 : Kernel code\n00000000-00000000 : Kernel data\n";
        assert_eq!(kernel(hidden), None);
        assert_eq!(kernel("nonsense\n"), None);
    }
}
