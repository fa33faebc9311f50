//! Memory as the SMMU sees it.

use hal::{NotMemory, PhysMemory, SharedMemory};
use types::Pa;

use crate::spec::Walks;

/// Memory whose writes reach an SMMU, whether it snoops the CPUs' caches or not.
///
/// As a [`PhysMemory`] it serves page tables: every word is cleaned as it is written when the SMMU
/// does not snoop.
#[derive(Clone, Copy, Debug)]
pub struct Shared<P> {
    memory: P,
    walks: Walks,
}

impl<P: SharedMemory> Shared<P> {
    /// The memory, for SMMUs that walk as `walks` says.
    pub fn new(memory: P, walks: Walks) -> Self {
        Self { memory, walks }
    }

    /// How the SMMU walks.
    pub fn walks(&self) -> Walks {
        self.walks
    }

    #[inline]
    pub(crate) fn write_pair(&self, pa: Pa, pair: [u64; 2]) -> Result<(), NotMemory> {
        self.memory.write_pair(pa, pair.map(u64::to_le))
    }

    #[inline]
    pub(crate) fn write(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        self.memory.write_u64(pa, value.to_le())
    }

    #[inline]
    pub(crate) fn word(&self, pa: Pa) -> Result<u64, NotMemory> {
        self.memory.read_u64(pa).map(u64::from_le)
    }

    /// Makes written bytes visible to the SMMU.
    pub(crate) fn publish(&self, pa: Pa, bytes: usize) {
        match self.walks {
            Walks::Coherent => self.memory.publish(),
            Walks::NonCoherent => self.memory.clean_to_memory(pa, bytes),
        }
    }

    /// Makes bytes that the SMMU wrote visible to the CPU.
    pub(crate) fn refresh(&self, pa: Pa, bytes: usize) {
        if self.walks == Walks::NonCoherent {
            self.memory.clean_to_memory(pa, bytes);
        }
    }

    /// Cleans where that is needed; the order of writes is for [`Shared::publish`].
    pub(crate) fn cleaned(&self, pa: Pa, bytes: usize) {
        if self.walks == Walks::NonCoherent {
            self.memory.clean_to_memory(pa, bytes);
        }
    }

    pub(crate) fn barrier(&self) {
        self.memory.publish();
    }
}

impl<P: SharedMemory> PhysMemory for Shared<P> {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        self.memory.read(pa, buffer)
    }

    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        self.memory.write(pa, bytes)?;
        self.cleaned(pa, bytes.len());
        Ok(())
    }

    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        self.memory.read_u64(pa)
    }

    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        self.memory.write_u64(pa, value)?;
        self.cleaned(pa, 8);
        Ok(())
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        self.memory.zero(pa, bytes)?;
        self.cleaned(pa, bytes);
        Ok(())
    }
}
