//! Guests' IOMMUs: numbers, nested domains, invalidations, configuration records.

use types::{Asid, SubstreamId};

use super::*;
use crate::{
    BackendError, Binding, CodecError, ContextFormat, DefaultSubstream, DomainId, DomainOptions,
    Feature, GuestInvalidation, InvalidationRefusal, MAX_INVALIDATIONS, NestedConfig, StageOne,
    StageOneInvalidation, Translate, VaRange, VaScope, ViommuId,
};

pub(super) const TRANSLATE: NestedConfig = NestedConfig {
    stage_one: StageOne::Translate(Translate {
        format: ContextFormat::TwoLevel64K,
        default_substream: DefaultSubstream::Substream0,
        substream_bits: 5,
        base: 0x4000_0040,
    }),
    ats: Ats::Off,
};

pub(super) struct Guest {
    pub(super) f: Fixture,
    pub(super) device: DeviceId,
    pub(super) parent: DomainId,
    pub(super) viommu: ViommuId,
}

impl Fixture {
    pub(super) fn nestable(&mut self, unit: UnitId) -> DeviceId {
        let group = self.group(unit);
        let source = self.source();
        let device = self
            .core
            .add_device(&DeviceDescription {
                coherence: Coherence::CoherentAlways,
                ..Self::describe(group, &[source])
            })
            .unwrap();
        self.core.bind(device, VM).unwrap();
        device
    }

    fn parent(&mut self, device: DeviceId) -> DomainId {
        let options = DomainOptions {
            nest_parent: true,
            dirty_tracking: false,
        };
        self.core.create_domain(device, self.ioas, options).unwrap()
    }
}

pub(super) fn guest() -> Guest {
    let mut f = Fixture::new();
    let device = f.nestable(SMMU);
    let parent = f.parent(device);
    f.map(AT, 0, PAGE).unwrap();
    let viommu = f.core.create_viommu(device, parent).unwrap();
    Guest {
        f,
        device,
        parent,
        viommu,
    }
}

impl Guest {
    fn nested(&mut self, config: NestedConfig) -> DomainId {
        self.f.core.create_nested(self.viommu, config).unwrap()
    }

    fn invalidate(&mut self, entries: &[GuestInvalidation]) -> Result<usize, Error> {
        self.f.core.invalidate(self.viommu, entries)
    }

    fn stopped(&mut self, entries: &[GuestInvalidation]) -> (usize, InvalidationRefusal) {
        match self.invalidate(entries) {
            Err(Error::InvalidationStopped { handled, because }) => (handled, because),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_guest_iommu_needs_a_nest_parent() {
    let mut f = Fixture::new();
    let device = f.nestable(SMMU);
    let plain = f
        .core
        .create_domain(device, f.ioas, DomainOptions::default())
        .unwrap();
    assert_eq!(
        refused(f.core.create_viommu(device, plain)),
        Error::NotANestParent(plain.any())
    );
    let blocked = f.core.create_blocked(device).unwrap();
    assert_eq!(
        refused(f.core.create_viommu(device, blocked)),
        Error::NotANestParent(blocked.any())
    );
}

#[test]
fn a_guest_iommu_needs_a_device() {
    let mut g = guest();
    g.f.core.unbind(g.device).unwrap();
    let create = g.f.core.create_viommu(g.device, g.parent);
    assert_eq!(refused(create), Error::NotBound);
    g.f.core.remove_device(g.device).unwrap();
    let create = g.f.core.create_viommu(g.device, g.parent);
    assert_eq!(refused(create), Error::NoSuchObject(g.device.any()));
}

#[test]
fn a_guest_iommu_is_for_one_unit() {
    let mut g = guest();
    let elsewhere = g.f.nestable(OTHER_SMMU);
    assert_eq!(
        refused(g.f.core.create_viommu(elsewhere, g.parent)),
        Error::OtherUnit(SMMU)
    );
    assert_eq!(
        refused(g.f.core.create_vdevice(g.viommu, elsewhere, 1)),
        Error::OtherUnit(SMMU)
    );
}

#[test]
fn a_nest_parent_needs_a_unit_that_nests() {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let options = DomainOptions {
        nest_parent: true,
        dirty_tracking: false,
    };
    assert_eq!(
        refused(f.core.create_domain(device, f.ioas, options)),
        Error::Unsupported(Feature::Nesting)
    );
}

#[test]
fn a_nested_domain_is_no_parent() {
    let mut g = guest();
    let nested = g.nested(NestedConfig::BYPASS);
    assert_eq!(
        refused(g.f.core.create_viommu(g.device, nested)),
        Error::NotANestParent(nested.any())
    );
    let track = crate::DirtyTracking::On;
    assert_eq!(
        refused(g.f.core.set_dirty_tracking(nested, track)),
        Error::NotPaging(nested.any())
    );
}

#[test]
fn parent_guest_iommu_and_nested_domain_keep_each_other_alive() {
    let mut g = guest();
    let nested = g.nested(NestedConfig::BYPASS);
    let busy = |object| Error::Busy { object, users: 1 };
    assert_eq!(
        refused(g.f.core.destroy_domain(g.parent)),
        busy(g.parent.any())
    );
    assert_eq!(
        refused(g.f.core.destroy_viommu(g.viommu)),
        busy(g.viommu.any())
    );
    assert_eq!(
        refused(g.f.core.destroy_ioas(g.f.ioas)),
        busy(g.f.ioas.any())
    );
    g.f.core.destroy_domain(nested).unwrap();
    g.f.core.destroy_viommu(g.viommu).unwrap();
    g.f.core.destroy_domain(g.parent).unwrap();
    g.f.core.destroy_ioas(g.f.ioas).unwrap();
}

#[test]
fn a_guest_iommu_stays_while_it_numbers_devices() {
    let mut g = guest();
    let vdevice = g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    assert!(matches!(
        g.f.core.destroy_viommu(g.viommu),
        Err(Error::Busy { users: 1, .. })
    ));
    g.f.core.destroy_vdevice(vdevice).unwrap();
    assert!(g.f.core.destroy_viommu(g.viommu).is_ok());
}

#[test]
fn numbers_and_devices_are_one_to_one() {
    let mut g = guest();
    let first = g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    let refusal = Error::AlreadyVirtual(first.any());
    assert_eq!(
        refused(g.f.core.create_vdevice(g.viommu, g.device, 8)),
        refusal
    );
    let other = g.f.nestable(SMMU);
    assert_eq!(
        refused(g.f.core.create_vdevice(g.viommu, other, 7)),
        refusal
    );
    let second = g.f.core.create_vdevice(g.viommu, other, 8).unwrap();
    assert_eq!(g.f.core.device_of(g.viommu, 7), Ok(g.device));
    assert_eq!(g.f.core.device_of(g.viommu, 8), Ok(other));
    assert_eq!(
        refused(g.f.core.device_of(g.viommu, 9)),
        Error::NoSuchVirtualId(9)
    );
    g.f.core.destroy_vdevice(first).unwrap();
    assert!(g.f.core.create_vdevice(g.viommu, g.device, 9).is_ok());
    assert_eq!(g.f.core.vdevice(second).unwrap().virtual_id(), 8);
}

#[test]
fn a_number_outlives_its_device_and_reaches_nothing() {
    let mut g = guest();
    let vdevice = g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    g.f.core.unbind(g.device).unwrap();
    assert_eq!(g.f.core.vdevice(vdevice).unwrap().device(), None);
    assert_eq!(
        refused(g.f.core.device_of(g.viommu, 7)),
        Error::NoSuchVirtualId(7)
    );
    // The number stays taken until it is given up; the device is free at once.
    let other = g.f.nestable(SMMU);
    assert!(g.f.core.create_vdevice(g.viommu, other, 7).is_err());
    g.f.core.bind(g.device, VM).unwrap();
    g.f.core.create_vdevice(g.viommu, g.device, 8).unwrap();
    g.f.core.destroy_vdevice(vdevice).unwrap();
    assert!(g.f.core.create_vdevice(g.viommu, other, 7).is_ok());
}

#[test]
fn a_guest_that_bypasses_sees_the_parent() {
    let mut g = guest();
    let nested = g.nested(NestedConfig::BYPASS);
    g.f.core.attach(g.device, Target::Domain(nested)).unwrap();
    assert_eq!(g.f.reads(g.device, AT), Some(RAM));
    g.f.unmap(AT, PAGE).unwrap();
    assert_eq!(g.f.reads(g.device, AT), None);
}

#[test]
fn a_guest_that_aborts_reaches_nothing() {
    let mut g = guest();
    let nested = g.nested(NestedConfig::ABORT);
    g.f.core.attach(g.device, Target::Domain(nested)).unwrap();
    assert_eq!(g.f.dma(g.device, AT, Dma::Read), Err(DmaFault::Aborted));
}

#[test]
fn a_guest_that_translates_needs_a_number_for_the_device() {
    let mut g = guest();
    let nested = g.nested(TRANSLATE);
    let target = Target::Domain(nested);
    assert_eq!(
        refused(g.f.core.attach(g.device, target)),
        Error::NoVirtualDevice
    );
    let vdevice = g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    g.f.core.attach(g.device, target).unwrap();
    let Binding::Nested { config, .. } = g.f.core.backend().binding(g.f.endpoint(g.device)) else {
        panic!("it is nested");
    };
    assert_eq!(config, TRANSLATE);
    assert!(matches!(
        g.f.core.destroy_vdevice(vdevice),
        Err(Error::Busy { users: 1, .. })
    ));
    g.f.core.detach(g.device).unwrap();
    assert!(g.f.core.destroy_vdevice(vdevice).is_ok());
}

#[test]
fn a_guest_stage_1_never_makes_memory_incoherent() {
    let mut g = guest();
    let device = g.f.device(SMMU);
    g.f.core.create_vdevice(g.viommu, device, 7).unwrap();
    let nested = g.nested(TRANSLATE);
    assert_eq!(
        refused(g.f.core.attach(device, Target::Domain(nested))),
        Error::NotCoherent
    );
    let mock = g.f.core.backend_mut();
    mock.change(SMMU, |caps| caps.forces_coherence = true);
    assert!(g.f.core.attach(device, Target::Domain(nested)).is_ok());
}

#[test]
fn a_nested_domain_is_replaced_by_the_next_in_one_step() {
    let mut g = guest();
    g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    let bypass = g.nested(NestedConfig::BYPASS);
    let translate = g.nested(TRANSLATE);
    g.f.core.attach(g.device, Target::Domain(bypass)).unwrap();
    let before = g.f.core.backend().history().len();
    g.f.core
        .replace(g.device, Target::Domain(translate))
        .unwrap();
    assert_eq!(g.f.core.backend().history().len(), before + 1);
    assert!(g.f.core.destroy_domain(bypass).is_ok());
    g.f.core
        .replace(g.device, Target::Domain(g.parent))
        .unwrap();
    assert_eq!(g.f.reads(g.device, AT), Some(RAM));
    assert!(g.f.core.destroy_domain(translate).is_ok());
}

// ATS.

const WITH_ATS: NestedConfig = NestedConfig {
    ats: Ats::On,
    ..TRANSLATE
};

#[test]
fn translation_caches_need_a_unit_that_can_invalidate_them() {
    let mut g = guest();
    let mock = g.f.core.backend_mut();
    mock.change(SMMU, |caps| caps.atc_invalidation = false);
    assert_eq!(
        refused(g.f.core.create_nested(g.viommu, WITH_ATS)),
        Error::Unsupported(Feature::Ats)
    );
}

#[test]
fn translation_caches_need_a_device_that_has_one() {
    let mut g = guest();
    let group = g.f.group(SMMU);
    let without =
        g.f.core
            .add_device(&DeviceDescription {
                ats: Ats::Off,
                coherence: Coherence::CoherentAlways,
                ..Fixture::describe(group, &[300])
            })
            .unwrap();
    g.f.core.bind(without, VM).unwrap();
    g.f.core.create_vdevice(g.viommu, without, 7).unwrap();
    let nested = g.nested(WITH_ATS);
    assert_eq!(
        refused(g.f.core.attach(without, Target::Domain(nested))),
        Error::Unsupported(Feature::Ats)
    );
    let atc = GuestInvalidation::Atc {
        virtual_id: 7,
        start: 0,
        last: 4095,
    };
    assert_eq!(g.stopped(&[atc]), (0, InvalidationRefusal::AtsUnsupported));
}

#[test]
fn a_device_caches_translations_only_with_the_guests_promise() {
    let mut g = guest();
    g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    assert_eq!(refused(g.f.core.check_ats(g.device)), Error::NotAttached);
    let without = g.nested(TRANSLATE);
    let with = g.nested(WITH_ATS);
    g.f.core.attach(g.device, Target::Domain(without)).unwrap();
    assert_eq!(
        refused(g.f.core.check_ats(g.device)),
        Error::Unsupported(Feature::Ats)
    );
    g.f.core.replace(g.device, Target::Domain(with)).unwrap();
    assert_eq!(g.f.core.check_ats(g.device), Ok(()));
    g.f.core
        .replace(g.device, Target::Domain(g.parent))
        .unwrap();
    assert!(g.f.core.check_ats(g.device).is_err());
}

// Invalidations.

#[test]
fn invalidations_carry_physical_identities() {
    let mut g = guest();
    g.f.core.create_vdevice(g.viommu, g.device, 0x77).unwrap();
    let source = g.f.endpoint(g.device).source;
    let asid = Asid::new(3).unwrap();
    let substream = SubstreamId::new(9).ok();
    let entries = [
        GuestInvalidation::All,
        GuestInvalidation::Asid(asid),
        GuestInvalidation::Page {
            asid: Some(asid),
            va: 0x1000,
        },
        GuestInvalidation::Context {
            virtual_id: 0x77,
            substream,
        },
        GuestInvalidation::Atc {
            virtual_id: 0x77,
            start: 0,
            last: 0xfff,
        },
    ];
    assert_eq!(g.invalidate(&entries), Ok(5));
    assert_eq!(
        g.f.core.backend().stage_one_invalidations(),
        [
            StageOneInvalidation::All,
            StageOneInvalidation::Asid(asid),
            StageOneInvalidation::Page {
                asid: Some(asid),
                va: 0x1000
            },
            StageOneInvalidation::Context { source, substream },
            StageOneInvalidation::Atc {
                source,
                span: of(0, PAGE)
            },
        ]
    );
}

impl Guest {
    /// A device of number 7 that sends with IDs of its own and of two bridges.
    fn bridged(&mut self) -> [u32; 4] {
        let group = self.f.group(SMMU);
        let sources = [300, 301, 302, 303];
        let device = self.f.core.add_device(&DeviceDescription {
            aliases: &sources[2..],
            ..Fixture::describe(group, &sources[..2])
        });
        let device = device.unwrap();
        self.f.core.bind(device, VM).unwrap();
        self.f.core.create_vdevice(self.viommu, device, 7).unwrap();
        sources
    }
}

#[test]
fn an_invalidation_of_a_device_goes_to_each_of_its_sources_in_its_place() {
    let mut g = guest();
    let sources = g.bridged();
    let substream = SubstreamId::new(9).ok();
    let entries = [
        GuestInvalidation::All,
        GuestInvalidation::Context {
            virtual_id: 7,
            substream,
        },
        GuestInvalidation::Atc {
            virtual_id: 7,
            start: 0,
            last: 0xfff,
        },
        GuestInvalidation::All,
    ];
    assert_eq!(g.invalidate(&entries), Ok(4));
    let contexts = sources.map(|source| StageOneInvalidation::Context { source, substream });
    let atcs = sources.map(|source| StageOneInvalidation::Atc {
        source,
        span: of(0, PAGE),
    });
    let all = [StageOneInvalidation::All];
    let expected = [&all[..], &contexts, &atcs, &all].concat();
    assert_eq!(g.f.core.backend().stage_one_invalidations(), expected);
}

#[test]
fn an_entry_of_several_sources_is_done_with_the_last_of_them() {
    let context = GuestInvalidation::Context {
        virtual_id: 7,
        substream: None,
    };
    let entries = [
        GuestInvalidation::All,
        context,
        context,
        GuestInvalidation::All,
    ];
    for (carried_out, done) in [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)] {
        let mut g = guest();
        g.bridged();
        g.f.core
            .backend_mut()
            .fail_stage_one_after(Some(carried_out));
        let timeout = InvalidationRefusal::Backend(BackendError::Timeout);
        assert_eq!(g.stopped(&entries), (done, timeout), "{carried_out}");
    }
}

#[test]
fn a_list_goes_to_the_backend_at_once_with_its_ranges() {
    let mut g = guest();
    let range = VaRange {
        first: 0xffff_0000_0000_0000,
        last: 0xffff_0000_0003_ffff,
        granule_shift: 16,
        level: 3,
        scope: VaScope::Leaves,
    };
    let asid = Asid::new(3).ok();
    let entries = [GuestInvalidation::Range { asid, range }; 3];
    assert_eq!(g.invalidate(&entries), Ok(3));
    let expected = [StageOneInvalidation::Range { asid, range }; 3];
    assert_eq!(g.f.core.backend().stage_one_invalidations(), expected);
}

#[test]
fn range_records_name_whole_granules() {
    let decode = |bytes: &[u8]| GuestInvalidation::decode(bytes.len(), bytes);
    let with = |shape: u64, first: u64, last: u64| {
        let mut bytes = record(5, shape);
        bytes[24..32].copy_from_slice(&first.to_le_bytes());
        bytes[32..40].copy_from_slice(&last.to_le_bytes());
        bytes
    };
    let range = VaRange {
        first: 0x4000,
        last: 0xbfff,
        granule_shift: 14,
        level: 2,
        scope: VaScope::Leaves,
    };
    assert_eq!(
        decode(&with(1 << 16 | 2 << 8 | 14, 0x4000, 0xbfff)),
        Ok(GuestInvalidation::Range { asid: None, range })
    );
    let bad = |at, value| Err(CodecError::BadValue { at, value });
    // A granule that is none, a level that is none, bits that mean nothing.
    for shape in [13, 14 | 4 << 8, 14 | 1 << 17] {
        assert_eq!(decode(&with(shape, 0x4000, 0xbfff)), bad(8, shape));
    }
    assert_eq!(decode(&with(14, 0x1000, 0xbfff)), bad(24, 0x1000));
    assert_eq!(decode(&with(14, 0x4000, 0xc000)), bad(32, 0xc000));
    assert_eq!(decode(&with(14, 0x8000, 0x7fff)), bad(32, 0x7fff));
}

#[test]
fn an_unknown_number_stops_the_list_where_it_is() {
    let mut g = guest();
    let unknown = GuestInvalidation::Context {
        virtual_id: 5,
        substream: None,
    };
    let all = GuestInvalidation::All;
    assert_eq!(
        g.stopped(&[all, all, unknown, all]),
        (2, InvalidationRefusal::NoSuchVirtualId(5))
    );
    assert_eq!(g.f.core.backend().counts.stage_one, 2);
}

#[test]
fn a_device_that_is_gone_stops_the_list_too() {
    let mut g = guest();
    g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
    g.f.core.unbind(g.device).unwrap();
    let gone = GuestInvalidation::Atc {
        virtual_id: 7,
        start: 0,
        last: 0,
    };
    assert_eq!(
        g.stopped(&[gone]),
        (0, InvalidationRefusal::NoSuchVirtualId(7))
    );
}

#[test]
fn a_time_out_reports_how_many_were_done() {
    let mut g = guest();
    g.f.core.backend_mut().fail_stage_one_after(Some(3));
    assert_eq!(
        g.stopped(&[GuestInvalidation::All; 8]),
        (3, InvalidationRefusal::Backend(BackendError::Timeout))
    );
}

#[test]
fn one_request_carries_a_bounded_number_of_invalidations() {
    let mut g = guest();
    let many = [GuestInvalidation::All; MAX_INVALIDATIONS + 1];
    let refusal = Error::TooManyEntries {
        limit: MAX_INVALIDATIONS,
    };
    assert_eq!(refused(g.invalidate(&many)), refusal);
    assert_eq!(g.f.core.backend().counts.stage_one, 0);
    assert_eq!(g.invalidate(&many[1..]), Ok(MAX_INVALIDATIONS));
    assert_eq!(g.invalidate(&[]), Ok(0));
    let records =
        g.f.core
            .invalidate_records(g.viommu, (40, MAX_INVALIDATIONS + 1), &[]);
    assert_eq!(refused(records), refusal);
}

fn record(kind: u32, virtual_id: u64) -> Vec<u8> {
    let mut bytes = alloc::vec![0; 40];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&virtual_id.to_le_bytes());
    bytes
}

#[test]
fn records_are_executed_up_to_the_first_bad_one() {
    let mut g = guest();
    let mut bytes = record(0, 0);
    bytes.extend(record(9, 0));
    bytes.extend(record(0, 0));
    assert_eq!(
        refused(g.f.core.invalidate_records(g.viommu, (40, 3), &bytes)),
        Error::InvalidationStopped {
            handled: 1,
            because: InvalidationRefusal::Codec(CodecError::Unsupported { at: 0, value: 9 })
        }
    );
    assert_eq!(
        g.f.core.invalidate_records(g.viommu, (40, 1), &bytes),
        Ok(1)
    );
    assert_eq!(
        refused(g.f.core.invalidate_records(g.viommu, (40, 4), &bytes)),
        Error::Codec(CodecError::Missing {
            declared: 160,
            passed: 120
        })
    );
    assert!(matches!(
        g.f.core.invalidate_records(g.viommu, (39, 1), &bytes),
        Err(Error::InvalidationStopped { handled: 0, .. })
    ));
}

#[test]
fn invalidation_records_are_read_field_by_field() {
    let decode = |bytes: &[u8]| GuestInvalidation::decode(bytes.len(), bytes);
    assert_eq!(decode(&record(0, 0)), Ok(GuestInvalidation::All));
    let mut page = record(2, 0);
    page[4] = 1;
    page[16] = 5;
    page[24] = 0x10;
    assert_eq!(
        decode(&page),
        Ok(GuestInvalidation::Page {
            asid: Asid::new(5).ok(),
            va: 0x10
        })
    );
    page[4] = 0;
    assert_eq!(
        decode(&page),
        Ok(GuestInvalidation::Page {
            asid: None,
            va: 0x10
        })
    );
    page[4] = 2;
    assert_eq!(
        decode(&page),
        Err(CodecError::Unsupported { at: 4, value: 2 })
    );
    let mut asid = record(1, 0);
    asid[18] = 1;
    assert_eq!(
        decode(&asid),
        Err(CodecError::BadValue {
            at: 16,
            value: 0x1_0000
        })
    );
    let mut reserved = record(0, 0);
    reserved[20] = 1;
    assert_eq!(
        decode(&reserved),
        Err(CodecError::Unsupported { at: 20, value: 1 })
    );
    let mut backwards = record(4, 0);
    backwards[24] = 1;
    assert_eq!(
        decode(&backwards),
        Err(CodecError::BadValue { at: 32, value: 0 })
    );
}
