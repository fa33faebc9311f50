//! The MSI-X table a guest sees. The device's own table is the hypervisor's.

use alloc::vec::Vec;

use crate::capability::MsiX;

/// One vector as the guest wrote it. The address is the guest's, to be judged and translated,
/// never to be given to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixVector {
    /// The message address, a multiple of 4.
    pub address: u64,
    /// The message data.
    pub data: u32,
    /// Whether the vector is masked.
    pub masked: bool,
}

/// The guest's copy of an MSI-X table.
#[derive(Clone, Debug)]
pub struct MsixTable {
    /// Four words a vector: address, upper address, data, control.
    words: Vec<[u32; 4]>,
}

/// Bit 0 of the control word; all a guest can write there.
const MASKED: u32 = 1;

/// As hardware comes out of reset: masked, the rest zero.
const FRESH: [u32; 4] = [0, 0, 0, MASKED];

impl MsixTable {
    /// The table of a function, every vector masked.
    #[must_use]
    pub fn new(msix: &MsiX) -> Self {
        let mut words = Vec::new();
        words.resize(usize::from(msix.vectors), FRESH);
        Self { words }
    }

    /// Back to every vector masked.
    pub fn reset(&mut self) {
        self.words.fill(FRESH);
    }

    /// How many vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Never: a function with MSI-X has at least one vector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A vector.
    #[must_use]
    pub fn vector(&self, index: usize) -> Option<MsixVector> {
        let &[low, high, data, control] = self.words.get(index)?;
        Some(MsixVector {
            address: u64::from(high) << 32 | u64::from(low),
            data,
            masked: control & MASKED != 0,
        })
    }

    /// Which word an offset from the table's start is in.
    fn place(offset: u32) -> Option<(usize, usize)> {
        let vector = usize::try_from(offset >> 4).ok()?;
        let word = usize::try_from(offset >> 2 & 3).ok()?;
        (offset & 3 == 0).then_some((vector, word))
    }

    /// What the guest reads: 32 bits at an offset from the table's start. Beyond the table, and
    /// where it is not aligned, zero.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        let word = Self::place(offset).and_then(|(vector, word)| self.words.get(vector)?.get(word));
        word.copied().unwrap_or(0)
    }

    /// Takes 32 bits a guest writes; gives the vector that is different now. A write of 64 bits is
    /// two of these, the lower half first.
    pub fn write(&mut self, offset: u32, value: u32) -> Option<usize> {
        let (vector, index) = Self::place(offset)?;
        let word = self.words.get_mut(vector)?.get_mut(index)?;
        let value = match index {
            0 => value & !3,
            3 => value & MASKED,
            _ => value,
        };
        let changed = *word != value;
        *word = value;
        changed.then_some(vector)
    }
}
