//! Objects by generation id.

use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;

use crate::Error;
use crate::budget::{Budget, OutOfMemory};

/// What an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An [`Ioas`](crate::Ioas).
    Ioas = 1,
    /// A [`Memory`](crate::Memory) object.
    Memory = 2,
    /// A [`Domain`](crate::Domain).
    Domain = 3,
    /// A [`Group`](crate::Group).
    Group = 4,
    /// A [`Device`](crate::Device).
    Device = 5,
    /// An [`Access`](crate::Access).
    Access = 6,
    /// A [`Viommu`](crate::Viommu).
    Viommu = 7,
    /// A [`Vdevice`](crate::Vdevice).
    Vdevice = 8,
    /// An [`EventQueue`](crate::EventQueue).
    EventQueue = 9,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Ioas,
        Self::Memory,
        Self::Domain,
        Self::Group,
        Self::Device,
        Self::Access,
        Self::Viommu,
        Self::Vdevice,
        Self::EventQueue,
    ];
}

/// Something that ids name.
pub trait Object {
    /// The kind its ids carry.
    const KIND: Kind;
}

/// The largest generation an id can carry; a slot that reached it is never used again.
const LAST_GENERATION: u32 = 0xff_ffff;

/// The name of an object of any kind, as it crosses the boundary of the core.
///
/// Bits 63:56 hold the kind, 55:32 the generation, 31:0 the slot. Zero names nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    kind: Kind,
    generation: u32,
    index: u32,
}

impl ObjectId {
    /// Decodes an id; `None` when the kind is none we have. A decoded id may still name nothing.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let [index @ .., _, _, _, _] = bits.to_le_bytes();
        let [_, _, _, _, generation @ .., kind] = bits.to_le_bytes();
        let [a, b, c] = generation;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        Some(Self {
            kind,
            generation: u32::from_le_bytes([a, b, c, 0]),
            index: u32::from_le_bytes(index),
        })
    }

    /// The id as a number.
    #[must_use]
    pub fn bits(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What it names.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// The same id as one of a known kind; `None` when it names another kind.
    #[must_use]
    pub fn typed<T: Object>(self) -> Option<Id<T>> {
        (self.kind == T::KIND).then_some(Id {
            index: self.index,
            generation: self.generation,
            of: PhantomData,
        })
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}.{}", self.kind, self.index, self.generation)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The name of a `T`. A name outlives its object safely: it then names nothing.
pub struct Id<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && self.generation == other.generation
    }
}

impl<T> Eq for Id<T> {}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, self.generation).hash(state);
    }
}

impl<T: Object> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.any(), f)
    }
}

impl<T: Object> Id<T> {
    /// The id without its type.
    #[must_use]
    pub fn any(self) -> ObjectId {
        ObjectId {
            kind: T::KIND,
            generation: self.generation,
            index: self.index,
        }
    }

    /// The id as a number; see [`ObjectId`].
    #[must_use]
    pub fn bits(self) -> u64 {
        self.any().bits()
    }
}

impl<T> Id<T> {
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

impl<T: Object> From<Id<T>> for ObjectId {
    fn from(id: Id<T>) -> Self {
        id.any()
    }
}

#[derive(Debug)]
enum Entry<T> {
    Free { next: Option<u32> },
    Full(T),
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Entry<T>,
}

/// Objects of one kind. Inserting can fail; removing cannot.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    len: usize,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: None,
            len: 0,
        }
    }
}

impl<T: Object> Arena<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn slot(&self, id: Id<T>) -> Option<&Slot<T>> {
        self.slots
            .get(usize::try_from(id.index).ok()?)
            .filter(|slot| slot.generation == id.generation)
    }

    pub(crate) fn get(&self, id: Id<T>) -> Option<&T> {
        match &self.slot(id)?.entry {
            Entry::Full(object) => Some(object),
            Entry::Free { .. } => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let slot = self
            .slots
            .get_mut(usize::try_from(id.index).ok()?)
            .filter(|slot| slot.generation == id.generation)?;
        match &mut slot.entry {
            Entry::Full(object) => Some(object),
            Entry::Free { .. } => None,
        }
    }

    /// The object, or the refusal.
    pub(crate) fn need(&self, id: Id<T>) -> Result<&T, Error> {
        self.get(id).ok_or(Error::NoSuchObject(id.any()))
    }

    /// The object, or the refusal.
    pub(crate) fn need_mut(&mut self, id: Id<T>) -> Result<&mut T, Error> {
        self.get_mut(id).ok_or(Error::NoSuchObject(id.any()))
    }

    /// The object in a slot, whatever its generation: for references that keep it alive.
    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        match &self.slots.get(usize::try_from(index).ok()?)?.entry {
            Entry::Full(object) => Some(object),
            Entry::Free { .. } => None,
        }
    }

    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        match &mut self.slots.get_mut(usize::try_from(index).ok()?)?.entry {
            Entry::Full(object) => Some(object),
            Entry::Free { .. } => None,
        }
    }

    pub(crate) fn id_at(&self, index: u32) -> Option<Id<T>> {
        let slot = self.slots.get(usize::try_from(index).ok()?)?;
        matches!(slot.entry, Entry::Full(_)).then_some(Id {
            index,
            generation: slot.generation,
            of: PhantomData,
        })
    }

    pub(crate) fn insert(&mut self, budget: &mut Budget, object: T) -> Result<Id<T>, OutOfMemory> {
        if let Some(index) = self.free {
            let slot = usize::try_from(index)
                .ok()
                .and_then(|i| self.slots.get_mut(i));
            if let Some(slot) = slot
                && let Entry::Free { next } = slot.entry
            {
                // The slot is there already, but the budget counts objects, not slots.
                budget.take()?;
                self.free = next;
                slot.entry = Entry::Full(object);
                self.len = self.len.saturating_add(1);
                return Ok(Id {
                    index,
                    generation: slot.generation,
                    of: PhantomData,
                });
            }
        }
        let index = u32::try_from(self.slots.len()).map_err(|_| OutOfMemory)?;
        budget.push(
            &mut self.slots,
            Slot {
                generation: 1,
                entry: Entry::Full(object),
            },
        )?;
        self.len = self.len.saturating_add(1);
        Ok(Id {
            index,
            generation: 1,
            of: PhantomData,
        })
    }

    pub(crate) fn remove(&mut self, id: Id<T>) -> Option<T> {
        self.get(id)?;
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        let retired = slot.generation >= LAST_GENERATION;
        let next = if retired { None } else { self.free };
        let Entry::Full(object) = core::mem::replace(&mut slot.entry, Entry::Free { next }) else {
            return None;
        };
        // A name must never come to life again, so a slot out of generations stays empty.
        if !retired {
            slot.generation = slot.generation.saturating_add(1);
            self.free = Some(id.index);
        } else {
            slot.generation = u32::MAX;
        }
        self.len = self.len.saturating_sub(1);
        Some(object)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        (0_u32..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| match &slot.entry {
                Entry::Full(object) => Some((
                    Id {
                        index,
                        generation: slot.generation,
                        of: PhantomData,
                    },
                    object,
                )),
                Entry::Free { .. } => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::{Arena, Kind, Object, ObjectId};
    use crate::budget::{Budget, OutOfMemory};

    #[derive(Debug, PartialEq)]
    struct Thing(u32);

    impl Object for Thing {
        const KIND: Kind = Kind::Domain;
    }

    #[test]
    fn a_name_does_not_survive_its_object() {
        let (mut arena, mut budget) = (Arena::default(), Budget::unlimited());
        let old = arena.insert(&mut budget, Thing(1)).unwrap();
        assert_eq!(arena.remove(old), Some(Thing(1)));
        let new = arena.insert(&mut budget, Thing(2)).unwrap();
        assert_eq!(old.index(), new.index());
        assert_eq!(arena.get(old), None);
        assert_eq!(arena.get(new), Some(&Thing(2)));
        assert_eq!(arena.remove(old), None);
        assert_eq!(arena.len(), 1);
    }

    #[test]
    fn a_slot_out_of_generations_is_retired() {
        let (mut arena, mut budget) = (Arena::default(), Budget::unlimited());
        let first = arena.insert(&mut budget, Thing(1)).unwrap();
        arena.slots[0].generation = super::LAST_GENERATION;
        let last = arena.id_at(0).unwrap();
        assert_ne!(first, last);
        arena.remove(last).unwrap();
        let next = arena.insert(&mut budget, Thing(2)).unwrap();
        assert_eq!(next.index(), 1);
        assert_eq!(arena.get(last), None);
    }

    #[test]
    fn ids_cross_the_boundary_as_numbers() {
        let (mut arena, mut budget) = (Arena::default(), Budget::unlimited());
        let id = arena.insert(&mut budget, Thing(1)).unwrap();
        let again = ObjectId::from_bits(id.bits()).unwrap();
        assert_eq!(again, id.any());
        assert_eq!(again.typed::<Thing>(), Some(id));
        assert_eq!(again.typed::<crate::Ioas>(), None);
        assert_eq!(ObjectId::from_bits(0), None);
        assert_eq!(ObjectId::from_bits(u64::MAX), None);
    }

    #[test]
    fn a_refused_insertion_changes_nothing() {
        let (mut arena, mut budget) = (Arena::default(), Budget::unlimited());
        let id = arena.insert(&mut budget, Thing(1)).unwrap();
        arena.remove(id);
        budget.limit(Some(0));
        assert_eq!(arena.insert(&mut budget, Thing(2)), Err(OutOfMemory));
        assert_eq!(arena.len(), 0);
        budget.limit(None);
        assert!(arena.insert(&mut budget, Thing(2)).is_ok());
    }
}
