//! What the platform of a guest reaches for.

use crate::{Date, Servers};

/// An access that does not lie wholly in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at guest real address {at:#x} are not the guest's memory")]
pub struct NotGuestMemory {
    /// Where the access started.
    pub at: u64,
    /// Its length in bytes.
    pub bytes: usize,
}

/// What a service came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The status. [LoPAPR §7.2.8]
    pub status: i32,
    values: [u32; Self::MOST],
    count: usize,
}

impl Served {
    /// The most results beside the status.
    pub const MOST: usize = 7;

    /// A status, and the results behind it; of more than [`Self::MOST`] the first ones.
    #[must_use]
    pub fn new(status: i32, results: &[u32]) -> Self {
        let mut served = Self {
            status,
            ..Self::default()
        };
        for (to, value) in served.values.iter_mut().zip(results) {
            *to = *value;
            served.count = served.count.saturating_add(1);
        }
        served
    }

    /// The results behind the status.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        self.values.get(..self.count).unwrap_or_default()
    }
}

/// The surroundings of one VM.
///
/// Other vCPUs may change any byte of the memory at any moment, so what is judged is a copy, and no
/// reference is handed out.
pub trait Environment {
    /// Bytes of the guest's memory, which starts at guest real address 0.
    fn memory_bytes(&self) -> u64;

    /// Copies from the guest's memory.
    ///
    /// # Errors
    /// [`NotGuestMemory`], when any byte is not.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), NotGuestMemory>;

    /// Copies to the guest's memory.
    ///
    /// # Errors
    /// [`NotGuestMemory`], when any byte is not; then nothing is written.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), NotGuestMemory>;

    /// Changes a big-endian cell of the guest's memory, at a multiple of 4; what is not its memory stays as it is.
    #[inline]
    fn change_cell(&self, at: u64, change: impl FnOnce(u32) -> u32)
    where
        Self: Sized,
    {
        let mut bytes = [0; 4];
        if self.read(at, &mut bytes).is_ok() {
            let changed = change(u32::from_be_bytes(bytes));
            // It was memory just now, and a VM's memory stays.
            let _ = self.write(at, &changed.to_be_bytes());
        }
    }

    /// Code in these bytes of the guest's memory may have changed: no CPU may run the old.
    fn code_changed(&self, at: u64, bytes: u64);

    /// Prints on the guest's terminal.
    fn print(&self, bytes: &[u8]);

    /// Takes what was typed at the guest's terminal, as much as the buffer holds, and says how much.
    fn typed(&self, buffer: &mut [u8]) -> usize;

    /// The time of the real-time clock.
    fn now(&self) -> Option<Date>;

    /// The guest's time base.
    fn timebase(&self) -> u64;

    /// A random number that nobody can foretell.
    fn random(&self) -> Option<u64>;

    /// These vCPUs have something new to look at: an interrupt, a prod, a start. Those that wait are
    /// woken, those that run are made to look.
    fn kick(&self, vcpus: Servers);

    /// Puts the guest's process table into use: the second doubleword of its partition table entry.
    /// [Power ISA 3.1B Book III §6.7.5] No vCPU uses the old one any more when this returns. False
    /// when it cannot be done.
    fn set_process_table(&self, entry: u64) -> bool;

    /// Serves `H_PUT_TCE`, if that is cheap and succeeds; false where [`Environment::device_hypercall`] has to
    /// be asked, and nothing has changed.
    fn put_tce(&self, arguments: [u64; 4]) -> bool {
        let _ = arguments;
        false
    }

    /// Serves a hypercall of the guest's devices: what goes to r3, and to r4 where it has a result.
    /// `None` for a number that nobody serves.
    fn device_hypercall(&self, number: u64, arguments: [u64; 4]) -> Option<(u64, Option<u64>)> {
        let _ = (number, arguments);
        None
    }

    /// Serves a run-time service of the guest's devices, with as many arguments as the guest gave, and
    /// room for as many results as it has, the status included. `None` for a token that nobody serves.
    fn device_service(&self, token: u32, arguments: &[u32], results: usize) -> Option<Served> {
        let _ = (token, arguments, results);
        None
    }

    /// The guest has ended the interrupt of a source that is [sampled](crate::Kind::Sampled), or says so: its line
    /// is low now, and interrupts again when it is [raised](crate::Platform::raise).
    fn ended(&self, source: u32) {
        let _ = source;
    }

    /// Whether all of a range is the guest's memory.
    fn is_memory(&self, at: u64, bytes: u64) -> bool {
        at.checked_add(bytes)
            .is_some_and(|end| end <= self.memory_bytes())
    }
}
