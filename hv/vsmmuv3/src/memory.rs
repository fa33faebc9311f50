//! The guest's memory, by the addresses the guest uses.

use types::{Address, Ipa};

/// An access that does not lie wholly in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {ipa} are not memory of the guest")]
pub struct NotGuestMemory {
    /// Where the access started.
    pub ipa: Ipa,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The guest's RAM: what a queue or a table of the guest may lie in.
///
/// Device registers, the MSI window, memory of the hypervisor or of another VM and addresses beyond
/// the guest's address space are none of it. No reference is ever handed out: other vCPUs and the
/// guest's devices may change any byte at any moment, so that what is judged must be a copy. An
/// implementation copies aligned 64-bit words in one access each, as an SMMU does.
pub trait GuestMemory {
    /// Copies `buffer.len()` bytes from `ipa`.
    ///
    /// # Errors
    /// [`NotGuestMemory`] when any byte is not the guest's RAM.
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory>;

    /// Copies little-endian words from `ipa`, which is a multiple of 8.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        let mut at = ipa;
        for word in words {
            let mut bytes = [0; 8];
            self.read(at, &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
            at = at
                .checked_add(8)
                .ok_or(NotGuestMemory { ipa: at, bytes: 8 })?;
        }
        Ok(())
    }

    /// Copies `bytes` to `ipa`.
    ///
    /// # Errors
    /// [`NotGuestMemory`], with memory unchanged, when any byte is not RAM the guest may write.
    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory>;

    /// Carries out a message of the SMMU's own: a write of 32 bits to `ipa`, a multiple of 4, in one
    /// access. RAM takes it; so does whatever register of the guest's takes messages of the SMMU
    /// (`GITS_TRANSLATER` of its ITS, from the SMMU's own DeviceID), and nothing else. What was written to memory
    /// before is seen before it.
    ///
    /// # Errors
    /// [`NotGuestMemory`], and nothing has changed, when nothing takes it.
    fn send(&self, ipa: Ipa, data: u32) -> Result<(), NotGuestMemory> {
        self.write(ipa, &data.to_le_bytes())
    }
}

impl<T: GuestMemory + ?Sized> GuestMemory for &T {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        (**self).read(ipa, buffer)
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        (**self).read_words(ipa, words)
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        (**self).write(ipa, bytes)
    }

    fn send(&self, ipa: Ipa, data: u32) -> Result<(), NotGuestMemory> {
        (**self).send(ipa, data)
    }
}

/// Copies `N` little-endian words, once.
pub(crate) fn words<const N: usize>(
    memory: &impl GuestMemory,
    at: u64,
) -> Result<[u64; N], NotGuestMemory> {
    let mut words = [0; N];
    words_into(memory, at, &mut words)?;
    Ok(words)
}

/// Copies as many little-endian words as there are places, once.
pub(crate) fn words_into(
    memory: &impl GuestMemory,
    at: u64,
    into: &mut [u64],
) -> Result<(), NotGuestMemory> {
    let fail = |ipa| NotGuestMemory {
        ipa,
        bytes: into.len().saturating_mul(8),
    };
    let ipa = Ipa::new(at).map_err(|_| fail(Ipa::truncated(at)))?;
    memory.read_words(ipa, into)
}
