//! Requests as records: sizes, ids, senders, options.

use super::*;
use crate::{CodecError, Kind, Operation, RANGES_IN_REPLY, RegionKind, Reply, Request};

/// A record under construction.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
}

fn record() -> Bytes {
    Bytes::default()
}

impl Fixture {
    fn ask_as(&mut self, owner: OwnerId, op: Operation, bytes: &Bytes) -> Result<Reply, Error> {
        let request = Request::decode(op as u32, bytes.0.len(), &bytes.0)?;
        self.core.handle(owner, &request)
    }

    fn ask(&mut self, op: Operation, bytes: &Bytes) -> Result<Reply, Error> {
        self.ask_as(VM, op, bytes)
    }
}

/// A record of every operation that decodes.
fn example(op: Operation) -> Bytes {
    match op {
        Operation::Map | Operation::Copy => {
            record().u32(6).u32(0).u64(1).u64(2).u64(3).u64(4).u64(0)
        }
        Operation::Option => record().u32(1).u32(0).u64(1).u64(1),
        Operation::Default => record().u32(1).u32(0).u64(5),
        Operation::CreateNested => {
            let mut bytes = record().u64(1).u32(32).u32(0);
            bytes.0.extend(crate::NestedConfig::BYPASS.encode());
            bytes
        }
        Operation::Allow => record().u64(1).u32(1).u32(0).u64(0).u64(4095),
        Operation::Invalidate => {
            let mut bytes = record().u64(1).u32(40).u32(1);
            bytes.0.extend([0; 40]);
            bytes
        }
        Operation::CreateWindow => record().u64(1).u32(16).u32(0).u64(1 << 30),
        other => Bytes(alloc::vec![0; other.least()]),
    }
}

#[test]
fn every_record_decodes_at_its_exact_length() {
    for op in Operation::ALL {
        let bytes = example(op).0;
        let decoded = Request::decode(op as u32, bytes.len(), &bytes);
        assert!(decoded.is_ok(), "{op:?}: {decoded:?}");
    }
}

#[test]
fn every_record_a_byte_short_is_refused() {
    for op in Operation::ALL {
        let bytes = example(op).0;
        let decoded = Request::decode(op as u32, bytes.len() - 1, &bytes);
        assert!(
            matches!(decoded, Err(CodecError::TooShort { .. })),
            "{op:?}: {decoded:?}"
        );
    }
}

#[test]
fn every_record_with_a_zero_tail_means_the_same() {
    for op in Operation::ALL {
        let exact = example(op).0;
        let mut longer = exact.clone();
        longer.extend([0; 24]);
        assert_eq!(
            Request::decode(op as u32, longer.len(), &longer),
            Request::decode(op as u32, exact.len(), &exact),
            "{op:?}"
        );
    }
}

#[test]
fn every_record_with_an_unknown_tail_is_refused() {
    for op in Operation::ALL {
        let mut bytes = example(op).0;
        let at = bytes.len();
        bytes.extend([1]);
        assert_eq!(
            Request::decode(op as u32, bytes.len(), &bytes),
            Err(CodecError::UnknownTail { at }),
            "{op:?}"
        );
        // Not declared, not looked at.
        assert!(Request::decode(op as u32, at, &bytes).is_ok());
    }
}

#[test]
fn every_record_that_declares_more_than_it_passes_is_refused() {
    for op in Operation::ALL {
        let bytes = example(op).0;
        let decoded = Request::decode(op as u32, bytes.len() + 1, &bytes);
        assert!(
            matches!(decoded, Err(CodecError::Missing { .. })),
            "{op:?}: {decoded:?}"
        );
    }
}

#[test]
fn an_unknown_operation_is_refused() {
    for op in [0, 0x7f, 0x8e, 0x95, 0x9c, u32::MAX] {
        assert_eq!(
            Request::decode(op, 64, &[0; 64]),
            Err(CodecError::UnknownOperation(op))
        );
    }
}

#[test]
fn a_list_longer_than_the_record_is_refused_whatever_its_count() {
    for count in [2, 1 << 20, u32::MAX] {
        let bytes = record().u64(1).u32(count).u32(0).u64(0).u64(0).0;
        let decoded = Request::decode(Operation::Allow as u32, bytes.len(), &bytes);
        assert!(matches!(decoded, Err(CodecError::TooShort { .. })));
    }
    let bytes = record().u64(1).u32(u32::MAX).u32(u32::MAX).0;
    let decoded = Request::decode(Operation::Invalidate as u32, bytes.len(), &bytes);
    assert!(matches!(decoded, Err(CodecError::TooShort { .. })));
}

#[test]
fn unknown_flags_and_reserved_fields_are_refused() {
    let unsupported = |op: Operation, at: usize| {
        let mut bytes = example(op).0;
        bytes[at] |= 0x80;
        let decoded = Request::decode(op as u32, bytes.len(), &bytes);
        assert!(
            matches!(decoded, Err(CodecError::Unsupported { .. })),
            "{op:?} {at}: {decoded:?}"
        );
    };
    for (op, at) in [
        (Operation::CreateIoas, 0),
        (Operation::CreateIoas, 4),
        (Operation::Map, 0),
        (Operation::Map, 4),
        (Operation::Copy, 3),
        (Operation::Allow, 12),
        (Operation::Ranges, 12),
        (Operation::CreateDomain, 0),
        (Operation::CreateDomain, 4),
        (Operation::SetDirtyTracking, 0),
        (Operation::SetDirtyTracking, 4),
        (Operation::Option, 0),
        (Operation::Option, 4),
        (Operation::Default, 0),
        (Operation::Default, 4),
        (Operation::CreateNested, 12),
        (Operation::CreateEventQueue, 8),
        (Operation::CreateWindow, 12),
    ] {
        unsupported(op, at);
    }
}

#[test]
fn a_mapping_for_nothing_is_refused() {
    let bytes = record().u32(1).u32(0).u64(0).u64(0).u64(0).u64(0).u64(0).0;
    assert_eq!(
        Request::decode(Operation::Map as u32, bytes.len(), &bytes),
        Err(CodecError::BadValue { at: 0, value: 1 })
    );
}

#[test]
fn a_page_shift_out_of_range_is_refused() {
    for shift in [0, 8, 53, 256, u32::MAX] {
        let bytes = record().u64(1).u32(shift).u32(0).u64(1 << 30).0;
        assert_eq!(
            Request::decode(Operation::CreateWindow as u32, bytes.len(), &bytes),
            Err(CodecError::BadValue {
                at: 8,
                value: shift.into()
            })
        );
    }
}

// Ids and senders.

#[test]
fn a_number_that_is_no_id_is_refused() {
    let mut f = Fixture::new();
    for id in [0, 1, u64::MAX, 0xff << 56] {
        assert!(matches!(
            f.ask(Operation::Destroy, &record().u64(id)),
            Err(Error::WrongKind { .. })
        ));
    }
}

#[test]
fn an_id_of_another_kind_is_refused() {
    let mut f = Fixture::new();
    let ram = f.ram.bits();
    assert_eq!(
        refused(f.ask(Operation::Unmap, &record().u64(ram).u64(0).u64(1))),
        Error::WrongKind {
            bits: ram,
            wanted: Kind::Ioas
        }
    );
}

#[test]
fn anothers_objects_do_not_exist() {
    let mut f = Fixture::new();
    let mine = f.ioas;
    let device = f.device(SMMU);
    let ioas = record().u64(mine.bits());
    assert_eq!(
        refused(f.ask_as(OTHER_VM, Operation::Destroy, &ioas)),
        Error::NoSuchObject(mine.any())
    );
    let detach = record().u64(device.bits());
    assert_eq!(
        refused(f.ask_as(OTHER_VM, Operation::Detach, &detach)),
        Error::NoSuchObject(device.any())
    );
    let Ok(Reply::Object(theirs)) = f.ask_as(OTHER_VM, Operation::CreateIoas, &record().u64(0))
    else {
        panic!("it can be made");
    };
    let ram = f.ram;
    let map = record()
        .u32(6)
        .u32(0)
        .u64(theirs.bits())
        .u64(ram.bits())
        .u64(0)
        .u64(PAGE)
        .u64(0);
    assert_eq!(
        refused(f.ask_as(OTHER_VM, Operation::Map, &map)),
        Error::NoSuchObject(ram.any())
    );
    f.core.grant(ram, OTHER_VM, Permissions::ReadWrite).unwrap();
    assert!(f.ask_as(OTHER_VM, Operation::Map, &map).is_ok());
}

#[test]
fn what_the_hypervisor_declared_is_not_destroyed_by_request() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    for id in [f.ram.bits(), device.bits()] {
        assert_eq!(
            refused(f.ask(Operation::Destroy, &record().u64(id))),
            Error::PermissionDenied
        );
    }
}

#[test]
fn a_whole_life_by_requests() {
    let mut f = Fixture::new();
    let device = f.nestable(SMMU);
    let object = |reply| match reply {
        Ok(Reply::Object(id)) => id.bits(),
        other => panic!("{other:?}"),
    };
    let ioas = object(f.ask(Operation::CreateIoas, &record().u64(0)));
    let ram = f.ram.bits();
    let map = record()
        .u32(7)
        .u32(0)
        .u64(ioas)
        .u64(ram)
        .u64(0)
        .u64(PAGE)
        .u64(AT);
    assert_eq!(f.ask(Operation::Map, &map), Ok(Reply::Mapped(of(AT, PAGE))));
    let create = record().u32(1).u32(0).u64(device.bits()).u64(ioas);
    let parent = object(f.ask(Operation::CreateDomain, &create));
    let viommu = object(f.ask(
        Operation::CreateViommu,
        &record().u64(device.bits()).u64(parent),
    ));
    let vdevice = object(f.ask(
        Operation::CreateVdevice,
        &record().u64(viommu).u64(device.bits()).u64(9),
    ));
    let mut nested = record().u64(viommu).u32(32).u32(0);
    nested.0.extend(super::nested::TRANSLATE.encode());
    let nested = object(f.ask(Operation::CreateNested, &nested));
    let attach = record().u64(device.bits()).u64(nested);
    assert_eq!(object(f.ask(Operation::Attach, &attach)), nested);
    assert_eq!(f.reads(device, AT), Some(RAM));
    let queue = object(f.ask(
        Operation::CreateEventQueue,
        &record().u64(viommu).u32(0).u32(4),
    ));
    let mut invalidate = record().u64(viommu).u32(40).u32(1);
    invalidate.0.extend([0; 40]);
    assert_eq!(
        f.ask(Operation::Invalidate, &invalidate),
        Ok(Reply::Value(1))
    );
    let back = record().u64(device.bits()).u64(parent);
    assert_eq!(object(f.ask(Operation::Replace, &back)), parent);
    f.ask(Operation::Detach, &record().u64(device.bits()))
        .unwrap();
    for id in [queue, nested, vdevice, viommu, parent] {
        assert_eq!(
            f.ask(Operation::Destroy, &record().u64(id)),
            Ok(Reply::Done)
        );
    }
    let unmap = record().u64(ioas).u64(0).u64(u64::MAX);
    assert_eq!(f.ask(Operation::Unmap, &unmap), Ok(Reply::Value(PAGE)));
    f.ask(Operation::Destroy, &record().u64(ioas)).unwrap();
    assert_eq!((f.census().domains, f.census().ioas), (0, 1));
}

#[test]
fn the_default_space_by_requests() {
    let mut f = Fixture::new();
    let get = record().u32(0).u32(0).u64(0);
    let clear = record().u32(2).u32(0).u64(0);
    let set = record().u32(1).u32(0).u64(f.ioas.bits());
    assert_eq!(refused(f.ask(Operation::Default, &get)), Error::NoDefault);
    assert_eq!(refused(f.ask(Operation::Default, &clear)), Error::NoDefault);
    f.ask(Operation::Default, &set).unwrap();
    let ioas = f.ioas.any();
    assert_eq!(f.ask(Operation::Default, &get), Ok(Reply::Object(ioas)));
    f.ask(Operation::Default, &clear).unwrap();
    assert_eq!(refused(f.ask(Operation::Default, &get)), Error::NoDefault);
    let device = f.device(SMMU);
    let attach = record().u64(device.bits()).u64(0);
    assert!(f.ask(Operation::Attach, &attach).is_ok());
    assert!(f.ask(Operation::Default, &get).is_ok());
}

#[test]
fn ranges_by_requests_come_in_portions() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    for i in 0..10 {
        let hole = f.device_with_region(of(AT + (2 * i + 1) * PAGE, PAGE), RegionKind::Reserved);
        f.core.attach(hole, Target::Ioas(f.ioas)).unwrap();
    }
    let ioas = f.ioas.bits();
    let mut all = Vec::new();
    for skip in [0, 8, 16] {
        let ask = record().u64(ioas).u32(skip).u32(0);
        let Ok(Reply::Ranges { total, some, .. }) = f.ask(Operation::Ranges, &ask) else {
            panic!("ranges can be asked for");
        };
        assert_eq!(total, 11);
        all.extend(some.into_iter().flatten());
    }
    assert_eq!(all.len(), 11);
    assert_eq!(all[0], of(AT, PAGE));
    assert_eq!(all[RANGES_IN_REPLY], of(AT + 16 * PAGE, PAGE));
}

#[test]
fn options_by_requests() {
    let mut f = Fixture::new();
    let ioas = f.ioas.bits();
    let set = |option, value| record().u32(option).u32(0).u64(ioas).u64(value);
    let get = |option| record().u32(option).u32(1).u64(ioas).u64(0);
    for option in [1, 4] {
        let before = u64::from(option == 1);
        assert_eq!(
            f.ask(Operation::Option, &get(option)),
            Ok(Reply::Value(before))
        );
        f.ask(Operation::Option, &set(option, 1 - before)).unwrap();
        assert_eq!(
            f.ask(Operation::Option, &get(option)),
            Ok(Reply::Value(1 - before))
        );
        assert_eq!(
            refused(f.ask(Operation::Option, &set(option, 2))),
            Error::BadOption(2)
        );
    }
    // The interrupt window is a device's, not a space's.
    assert!(matches!(
        f.ask(Operation::Option, &set(2, 1 << 20)),
        Err(Error::WrongKind {
            wanted: Kind::Device,
            ..
        })
    ));
    let value_in_get = record().u32(1).u32(1).u64(ioas).u64(1);
    assert_eq!(
        refused(f.ask(Operation::Option, &value_in_get)),
        Error::Codec(CodecError::Unsupported { at: 16, value: 1 })
    );
}

#[test]
fn the_interrupt_window_by_requests() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let device = f
        .core
        .add_device(&DeviceDescription {
            msi: MsiRoute::Doorbell,
            ..Fixture::describe(group, &[70])
        })
        .unwrap();
    f.core.bind(device, VM).unwrap();
    let ask = |option, op, value| record().u32(option).u32(op).u64(device.bits()).u64(value);
    assert_eq!(
        f.ask(Operation::Option, &ask(2, 1, 0)),
        Ok(Reply::Value(0x0800_0000))
    );
    assert_eq!(f.ask(Operation::Option, &ask(3, 1, 0)), Ok(Reply::Value(1)));
    f.ask(Operation::Option, &ask(2, 0, 0x4000_0000)).unwrap();
    f.ask(Operation::Option, &ask(3, 0, 2)).unwrap();
    assert_eq!(
        f.ask(Operation::Option, &ask(2, 1, 0)),
        Ok(Reply::Value(0x4000_0000))
    );
    assert_eq!(f.ask(Operation::Option, &ask(3, 1, 0)), Ok(Reply::Value(2)));
}

#[test]
fn malformed_ranges_by_requests() {
    let mut f = Fixture::new();
    let ioas = f.ioas.bits();
    let backwards = record()
        .u64(ioas)
        .u32(2)
        .u32(0)
        .u64(0)
        .u64(9)
        .u64(20)
        .u64(19);
    assert_eq!(
        refused(f.ask(Operation::Allow, &backwards)),
        Error::BadRanges { at: 1 }
    );
    let mut many = record().u64(ioas).u32(65).u32(0);
    for i in 0..65 {
        many = many.u64(i * 16).u64(i * 16);
    }
    assert_eq!(
        refused(f.ask(Operation::Allow, &many)),
        Error::TooManyEntries { limit: 64 }
    );
    let good = record().u64(ioas).u32(1).u32(0).u64(AT).u64(AT + PAGE - 1);
    assert!(f.ask(Operation::Allow, &good).is_ok());
}

#[test]
fn windows_by_requests() {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let domain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap().bits();
    let one = record().u64(domain);
    assert!(matches!(
        f.ask(Operation::QueryWindow, &one),
        Ok(Reply::Limits(limits)) if limits.available == 1
    ));
    let create = record().u64(domain).u32(16).u32(0).u64(1 << 40);
    let Ok(Reply::Window(window)) = f.ask(Operation::CreateWindow, &create) else {
        panic!("there is room for one");
    };
    let remove = record().u64(domain).u64(window.span.start().bits());
    assert_eq!(f.ask(Operation::RemoveWindow, &remove), Ok(Reply::Done));
    assert_eq!(f.ask(Operation::ResetWindows, &one), Ok(Reply::Done));
}
