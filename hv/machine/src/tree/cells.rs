//! Values of properties: cells and strings.

use super::{be32, text};

pub(super) fn list(mut bytes: &[u8]) -> impl Iterator<Item = &str> {
    core::iter::from_fn(move || {
        let string = text(bytes)?;
        bytes = bytes.get(string.len().saturating_add(1)..)?;
        Some(string)
    })
}

/// Big-endian 32-bit cells, taken from the front.
#[derive(Clone, Copy)]
pub(crate) struct Cells<'a>(pub(super) &'a [u8]);

impl Cells<'_> {
    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(self) -> usize {
        self.0.len()
    }

    pub(crate) fn next(&mut self) -> Option<u32> {
        let cell = be32(self.0, 0)?;
        self.0 = self.0.get(4..)?;
        Some(cell)
    }

    /// A number of `cells` cells; the inner `None` when it needs more than 64 bits.
    pub(crate) fn number(&mut self, cells: u32) -> Option<Option<u64>> {
        let mut number = Some(0u64);
        for _ in 0..cells {
            let cell = self.next()?;
            number = number
                .filter(|high| u32::try_from(*high).is_ok())
                .map(|high| high << 32 | u64::from(cell));
        }
        Some(number)
    }
}
