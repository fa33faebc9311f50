//! The one place where the core grows its own memory.

use alloc::vec::Vec;

/// The core's memory could not grow. The request that needed it changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Consulted before every growth of the core's own structures.
///
/// It gives tests a way to fail the n-th allocation, and production a way to bound what the core
/// may take: a growth that the budget refuses is [`OutOfMemory`], a value, never an abort.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    granted: u64,
    /// Growths left until the one that fails; `None` never fails.
    left: Option<u64>,
}

impl Budget {
    /// A budget that only real memory limits.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self {
            granted: 0,
            left: None,
        }
    }

    /// Lets `growths` more growths pass and refuses all after them; `None` lifts the limit.
    pub fn limit(&mut self, growths: Option<u64>) {
        self.left = growths;
    }

    /// How many growths were granted so far.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// Asks for one growth.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit is used up.
    pub(crate) fn take(&mut self) -> Result<(), OutOfMemory> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(OutOfMemory)?;
        }
        self.granted = self.granted.saturating_add(1);
        Ok(())
    }

    /// Makes room for `more` elements, so that pushing them cannot fail.
    pub(crate) fn reserve<T>(&mut self, list: &mut Vec<T>, more: usize) -> Result<(), OutOfMemory> {
        self.take()?;
        list.try_reserve(more).map_err(|_| OutOfMemory)
    }

    /// Appends an element, or gives it up.
    pub(crate) fn push<T>(&mut self, list: &mut Vec<T>, element: T) -> Result<(), OutOfMemory> {
        self.reserve(list, 1)?;
        list.push(element);
        Ok(())
    }

    /// A vector with exactly this room.
    pub(crate) fn vec<T>(&mut self, room: usize) -> Result<Vec<T>, OutOfMemory> {
        let mut list = Vec::new();
        self.take()?;
        list.try_reserve_exact(room).map_err(|_| OutOfMemory)?;
        Ok(list)
    }

    /// A copy of a slice.
    pub(crate) fn copy_of<T: Copy>(&mut self, slice: &[T]) -> Result<Vec<T>, OutOfMemory> {
        let mut list = self.vec(slice.len())?;
        list.extend_from_slice(slice);
        Ok(list)
    }
}
