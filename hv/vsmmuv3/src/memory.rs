//! The guest's memory, by the addresses the guest uses.

use types::Ipa;

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

    /// Copies `bytes` to `ipa`.
    ///
    /// # Errors
    /// [`NotGuestMemory`], with memory unchanged, when any byte is not RAM the guest may write.
    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory>;
}

impl<T: GuestMemory + ?Sized> GuestMemory for &T {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        (**self).read(ipa, buffer)
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        (**self).write(ipa, bytes)
    }
}

/// Copies `N` little-endian words, once.
pub(crate) fn words<const N: usize>(
    memory: &impl GuestMemory,
    at: u64,
) -> Result<[u64; N], NotGuestMemory> {
    let mut words = [[0_u8; 8]; N];
    let bytes = words.as_flattened_mut();
    let len = bytes.len();
    let fail = |ipa| NotGuestMemory { ipa, bytes: len };
    let ipa = Ipa::new(at).map_err(|_| fail(Ipa::truncated(at)))?;
    memory.read(ipa, bytes)?;
    Ok(words.map(u64::from_le_bytes))
}
