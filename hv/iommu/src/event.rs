//! Events: what went wrong on the bus, for the owner of the device it happened to.

use alloc::collections::VecDeque;

use types::SubstreamId;

use crate::area::Permissions;
use crate::arena::{Id, Kind, Object};
use crate::backend::{Backend, Endpoint};
use crate::viommu::ViommuId;
use crate::{Error, Iommu, OwnerId};

/// The name of an [`EventQueue`].
pub type EventQueueId = Id<EventQueue>;

/// The largest depth of a queue.
pub const MAX_DEPTH: u32 = 4096;

/// What kind of events a queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Faults of translation.
    Fault,
    /// Requests of devices to make pages present. Nothing produces them yet.
    PageRequest,
}

/// Who reads a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A guest, through its IOMMU: devices carry its own numbers.
    Viommu(ViommuId),
    /// The hypervisor's policy for an owner: devices carry their source IDs.
    Owner(OwnerId),
}

/// A device's request to make a page present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The process address space; `None` for the device's own.
    pub substream: Option<SubstreamId>,
    /// The group index that the answer has to carry.
    pub group: u16,
    /// The last request of its group.
    pub last: bool,
    /// The page.
    pub address: u64,
    /// What the device wants to do there.
    pub wants: Permissions,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventData {
    /// An SMMU event record, four little-endian double words [IHI 0070 §7.3]. The stream ID in
    /// bits 63:32 of the first becomes the listener's number for the device.
    Smmu([u64; 4]),
    /// A PE was frozen by a fault at a bus address.
    Frozen {
        /// The bus address, where the platform tells.
        address: Option<u64>,
    },
    /// A device asks for a page.
    PageRequest(PageRequest),
}

impl EventData {
    /// The kind of queue it goes to.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Smmu(_) | Self::Frozen { .. } => EventKind::Fault,
            Self::PageRequest(_) => EventKind::PageRequest,
        }
    }
}

/// An event as a listener gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The device, by the listener's number.
    pub device: u64,
    /// What happened.
    pub data: EventData,
}

/// An entry of a queue. Sequence numbers are successive from 0 and go back to 0 after `i32::MAX`;
/// a gap means that events were lost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// An event.
    Event {
        /// Its number.
        sequence: u32,
        /// The event.
        event: Event,
    },
    /// Events up to this number were lost, and none came after.
    Lost {
        /// The number of the last one.
        sequence: u32,
    },
}

/// A bounded queue of events of one kind.
#[derive(Debug)]
pub struct EventQueue {
    owner: OwnerId,
    listener: Listener,
    kind: EventKind,
    depth: usize,
    /// Has room for `depth` entries from the start.
    entries: VecDeque<(u32, Event)>,
    next: u32,
    lost: Option<u32>,
}

impl Object for EventQueue {
    const KIND: Kind = Kind::EventQueue;
}

impl EventQueue {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// Who reads it.
    #[must_use]
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// Events waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.lost.is_none()
    }

    fn put(&mut self, event: Event) {
        let sequence = self.next;
        self.next = if sequence >= i32::MAX.unsigned_abs() {
            0
        } else {
            sequence.saturating_add(1)
        };
        if self.entries.len() >= self.depth {
            self.lost = Some(sequence);
        } else {
            // What was lost before shows as a gap from now on.
            self.lost = None;
            self.entries.push_back((sequence, event));
        }
    }

    fn take(&mut self) -> Option<Record> {
        match self.entries.pop_front() {
            Some((sequence, event)) => Some(Record::Event { sequence, event }),
            None => self.lost.take().map(|sequence| Record::Lost { sequence }),
        }
    }
}

impl<B: Backend> Iommu<B> {
    /// Makes a queue of `depth` events for a listener. One for each kind.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::BadDepth`] (0, or above [`MAX_DEPTH`]),
    /// [`Error::QueueExists`], [`Error::OutOfMemory`].
    pub fn create_event_queue(
        &mut self,
        listener: Listener,
        kind: EventKind,
        depth: u32,
    ) -> Result<EventQueueId, Error> {
        let owner = match listener {
            Listener::Viommu(viommu) => self.viommus.need(viommu)?.owner(),
            Listener::Owner(owner) => owner,
        };
        if depth == 0 || depth > MAX_DEPTH {
            return Err(Error::BadDepth {
                depth,
                limit: MAX_DEPTH,
            });
        }
        if let Some((known, _)) = self.queue_of(listener, kind) {
            return Err(Error::QueueExists(known.any()));
        }
        let depth = usize::try_from(depth).map_err(|_| Error::OutOfMemory)?;
        let mut entries = VecDeque::new();
        self.budget.take()?;
        entries
            .try_reserve_exact(depth)
            .map_err(|_| Error::OutOfMemory)?;
        if let Listener::Viommu(viommu) = listener {
            let viommu = self.viommus.need_mut(viommu)?;
            self.budget.reserve(&mut viommu.queues, 1)?;
        }
        let queue = EventQueue {
            owner,
            listener,
            kind,
            depth,
            entries,
            next: 0,
            lost: None,
        };
        let id = self.queues.insert(&mut self.budget, queue)?;
        if let Listener::Viommu(viommu) = listener {
            self.viommus.need_mut(viommu)?.queues.push(id);
        }
        Ok(id)
    }

    fn queue_of(&self, listener: Listener, kind: EventKind) -> Option<(EventQueueId, &EventQueue)> {
        self.queues
            .iter()
            .find(|(_, queue)| queue.listener == listener && queue.kind == kind)
    }

    /// A queue.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn event_queue(&self, queue: EventQueueId) -> Result<&EventQueue, Error> {
        self.queues.need(queue)
    }

    /// Gives up a queue with what is in it.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn destroy_event_queue(&mut self, id: EventQueueId) -> Result<(), Error> {
        let queue = self.queues.need(id)?;
        if let Listener::Viommu(viommu) = queue.listener
            && let Some(viommu) = self.viommus.get_mut(viommu)
        {
            viommu.queues.retain(|known| *known != id);
        }
        self.queues.remove(id);
        Ok(())
    }

    /// Takes the oldest entry of a queue.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn next_event(&mut self, queue: EventQueueId) -> Result<Option<Record>, Error> {
        Ok(self.queues.need_mut(queue)?.take())
    }

    /// Hands an event of an endpoint to whoever listens: the guest's IOMMU that numbers the
    /// device, else the device's owner.
    ///
    /// A full queue counts the event as lost and is no error: one guest's flood is its own.
    ///
    /// # Errors
    /// [`Error::NoQueue`] when nobody listens, or the endpoint is no known and bound device.
    pub fn report(&mut self, endpoint: Endpoint, data: EventData) -> Result<(), Error> {
        let (_, device) = self
            .devices
            .iter()
            .find(|(_, device)| {
                device.unit() == endpoint.unit
                    && device.sources().any(|source| source == endpoint.source)
            })
            .ok_or(Error::NoQueue)?;
        let owner = device.owner().ok_or(Error::NoQueue)?;
        let vdevice = device.vdevice.and_then(|id| self.vdevices.get(id));
        let guest = vdevice.and_then(|vdevice| {
            let listener = Listener::Viommu(vdevice.viommu());
            let (id, _) = self.queue_of(listener, data.kind())?;
            Some((id, vdevice.virtual_id()))
        });
        let (queue, number) = match guest {
            Some(found) => found,
            None => {
                let listener = Listener::Owner(owner);
                let (id, _) = self.queue_of(listener, data.kind()).ok_or(Error::NoQueue)?;
                (id, u64::from(endpoint.source))
            }
        };
        let data = match data {
            EventData::Smmu([first, rest @ ..]) => {
                let [a, b, c] = rest;
                let renumbered = (first & 0xffff_ffff) | number << 32;
                EventData::Smmu([renumbered, a, b, c])
            }
            other => other,
        };
        self.queues.need_mut(queue)?.put(Event {
            device: number,
            data,
        });
        Ok(())
    }
}
