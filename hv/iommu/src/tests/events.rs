//! Event queues.

use super::nested::{Guest, guest};
use super::*;
use crate::{Event, EventData, EventKind, EventQueueId, Listener, MAX_DEPTH, PageRequest, Record};

fn smmu_event(source: u64) -> EventData {
    EventData::Smmu([0x10 | source << 32, 1, 2, 3])
}

struct Listening {
    g: Guest,
    queue: EventQueueId,
}

fn listening(depth: u32) -> Listening {
    let mut g = guest();
    g.f.core.create_vdevice(g.viommu, g.device, 0x77).unwrap();
    let listener = Listener::Viommu(g.viommu);
    let queue =
        g.f.core
            .create_event_queue(listener, EventKind::Fault, depth)
            .unwrap();
    Listening { g, queue }
}

impl Listening {
    fn report(&mut self) {
        let endpoint = self.g.f.endpoint(self.g.device);
        let event = smmu_event(endpoint.source.into());
        self.g.f.core.report(endpoint, event).unwrap();
    }

    fn next(&mut self) -> Option<Record> {
        self.g.f.core.next_event(self.queue).unwrap()
    }

    fn sequence(&mut self) -> u32 {
        match self.next() {
            Some(Record::Event { sequence, .. }) => sequence,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_guest_sees_its_own_number_and_never_the_physical_one() {
    let mut l = listening(4);
    l.report();
    assert_eq!(
        l.next(),
        Some(Record::Event {
            sequence: 0,
            event: Event {
                device: 0x77,
                data: EventData::Smmu([0x77_0000_0010, 1, 2, 3])
            }
        })
    );
    assert_eq!(l.next(), None);
}

#[test]
fn events_come_in_order_with_successive_numbers() {
    let mut l = listening(8);
    for _ in 0..5 {
        l.report();
    }
    for expected in 0..5 {
        assert_eq!(l.sequence(), expected);
    }
    assert!(l.g.f.core.event_queue(l.queue).unwrap().is_empty());
}

#[test]
fn a_full_queue_says_that_events_were_lost() {
    let mut l = listening(2);
    for _ in 0..5 {
        l.report();
    }
    assert_eq!(l.g.f.core.event_queue(l.queue).unwrap().len(), 2);
    assert_eq!((l.sequence(), l.sequence()), (0, 1));
    assert_eq!(l.next(), Some(Record::Lost { sequence: 4 }));
    assert_eq!(l.next(), None);
    l.report();
    assert_eq!(l.sequence(), 5);
}

#[test]
fn a_loss_with_events_after_it_shows_as_a_gap() {
    let mut l = listening(2);
    for _ in 0..4 {
        l.report();
    }
    assert_eq!(l.sequence(), 0);
    l.report();
    assert_eq!((l.sequence(), l.sequence()), (1, 4));
    assert_eq!(l.next(), None);
}

#[test]
fn the_depth_of_a_queue_is_bounded() {
    let mut g = guest();
    for depth in [0, MAX_DEPTH + 1, u32::MAX] {
        let listener = Listener::Viommu(g.viommu);
        assert_eq!(
            refused(
                g.f.core
                    .create_event_queue(listener, EventKind::Fault, depth)
            ),
            Error::BadDepth {
                depth,
                limit: MAX_DEPTH
            }
        );
    }
}

#[test]
fn there_is_one_queue_of_a_kind_for_a_listener() {
    let mut l = listening(2);
    let listener = Listener::Viommu(l.g.viommu);
    let core = &mut l.g.f.core;
    assert_eq!(
        refused(core.create_event_queue(listener, EventKind::Fault, 2)),
        Error::QueueExists(l.queue.any())
    );
    assert!(
        core.create_event_queue(listener, EventKind::PageRequest, 2)
            .is_ok()
    );
    assert!(
        core.create_event_queue(Listener::Owner(VM), EventKind::Fault, 2)
            .is_ok()
    );
}

#[test]
fn a_queue_keeps_its_guest_iommu_alive() {
    let mut l = listening(2);
    let vdevices = l.g.f.core.device(l.g.device).unwrap().vdevice().unwrap();
    l.g.f.core.destroy_vdevice(vdevices).unwrap();
    assert!(matches!(
        l.g.f.core.destroy_viommu(l.g.viommu),
        Err(Error::Busy { users: 1, .. })
    ));
    l.g.f.core.destroy_event_queue(l.queue).unwrap();
    assert!(l.g.f.core.destroy_viommu(l.g.viommu).is_ok());
    assert_eq!(
        refused(l.g.f.core.next_event(l.queue)),
        Error::NoSuchObject(l.queue.any())
    );
}

#[test]
fn events_without_a_guest_listener_go_to_the_owner() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let endpoint = f.endpoint(device);
    let event = smmu_event(endpoint.source.into());
    assert_eq!(refused(f.core.report(endpoint, event)), Error::NoQueue);
    let queue = f
        .core
        .create_event_queue(Listener::Owner(VM), EventKind::Fault, 2)
        .unwrap();
    f.core.report(endpoint, event).unwrap();
    let Ok(Some(Record::Event { event, .. })) = f.core.next_event(queue) else {
        panic!("it was reported");
    };
    assert_eq!(event.device, u64::from(endpoint.source));
}

#[test]
fn nobody_gets_events_of_anothers_device() {
    let mut f = Fixture::new();
    let mine = f.device(SMMU);
    let theirs = f.device(SMMU);
    f.core.unbind(theirs).unwrap();
    f.core.bind(theirs, OTHER_VM).unwrap();
    let queues = [VM, OTHER_VM].map(|owner| {
        f.core
            .create_event_queue(Listener::Owner(owner), EventKind::Fault, 1)
            .unwrap()
    });
    // A flood of theirs loses theirs alone.
    for _ in 0..10 {
        let endpoint = f.endpoint(theirs);
        f.core.report(endpoint, smmu_event(0)).unwrap();
    }
    let endpoint = f.endpoint(mine);
    f.core.report(endpoint, smmu_event(0)).unwrap();
    assert!(matches!(
        f.core.next_event(queues[0]),
        Ok(Some(Record::Event { sequence: 0, .. }))
    ));
    assert_eq!(f.core.next_event(queues[0]), Ok(None));
    assert!(f.core.next_event(queues[1]).unwrap().is_some());
    assert_eq!(
        f.core.next_event(queues[1]),
        Ok(Some(Record::Lost { sequence: 9 }))
    );
}

#[test]
fn an_unknown_or_unbound_endpoint_is_tolerated() {
    let mut f = Fixture::new();
    f.core
        .create_event_queue(Listener::Owner(VM), EventKind::Fault, 2)
        .unwrap();
    let nobody = Endpoint {
        unit: SMMU,
        source: 0xabc,
    };
    assert_eq!(
        refused(f.core.report(nobody, smmu_event(0))),
        Error::NoQueue
    );
    let device = f.device(SMMU);
    f.core.unbind(device).unwrap();
    let endpoint = f.endpoint(device);
    assert_eq!(
        refused(f.core.report(endpoint, smmu_event(0))),
        Error::NoQueue
    );
}

#[test]
fn page_requests_have_a_queue_of_their_own() {
    let mut l = listening(2);
    let listener = Listener::Viommu(l.g.viommu);
    let requests =
        l.g.f
            .core
            .create_event_queue(listener, EventKind::PageRequest, 2)
            .unwrap();
    let data = EventData::PageRequest(PageRequest {
        substream: None,
        group: 3,
        last: true,
        address: 0x1000,
        wants: Permissions::Write,
    });
    let endpoint = l.g.f.endpoint(l.g.device);
    l.g.f.core.report(endpoint, data).unwrap();
    assert_eq!(l.next(), None);
    assert_eq!(
        l.g.f.core.next_event(requests),
        Ok(Some(Record::Event {
            sequence: 0,
            event: Event { device: 0x77, data }
        }))
    );
}

#[test]
fn a_frozen_pe_is_an_event() {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let queue = f
        .core
        .create_event_queue(Listener::Owner(VM), EventKind::Fault, 2)
        .unwrap();
    let data = EventData::Frozen {
        address: Some(0x1000),
    };
    let endpoint = f.endpoint(device);
    f.core.report(endpoint, data).unwrap();
    assert!(matches!(
        f.core.next_event(queue),
        Ok(Some(Record::Event { event, .. })) if event.data == data
    ));
}
