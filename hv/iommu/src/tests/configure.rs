//! A guest's configuration for one device of a group that several share.

use super::nested::TRANSLATE;
use super::*;
use crate::{Binding, DomainId, DomainOptions, Error, NestedConfig, ViommuId};

/// Two devices of one group, attached to a nest parent, each with the guest's number.
struct Pair {
    f: Fixture,
    devices: [DeviceId; 2],
    parent: DomainId,
    viommu: ViommuId,
}

fn pair_with(aliases: [&[u32]; 2]) -> Pair {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let devices = aliases.map(|aliases| {
        let sources = [f.source()];
        let description = DeviceDescription {
            coherence: Coherence::CoherentAlways,
            aliases,
            ..Fixture::describe(group, &sources)
        };
        f.core.add_device(&description).unwrap()
    });
    for device in devices {
        f.core.bind(device, VM).unwrap();
    }
    let options = DomainOptions {
        nest_parent: true,
        dirty_tracking: false,
    };
    let parent = f.core.create_domain(devices[0], f.ioas, options).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    let viommu = f.core.create_viommu(devices[0], parent).unwrap();
    for (number, device) in (8..).zip(devices) {
        f.core.attach(device, Target::Domain(parent)).unwrap();
        f.core.create_vdevice(viommu, device, number).unwrap();
    }
    Pair {
        f,
        devices,
        parent,
        viommu,
    }
}

fn pair() -> Pair {
    pair_with([&[], &[]])
}

impl Pair {
    fn nested(&mut self, config: NestedConfig) -> DomainId {
        self.f.core.create_nested(self.viommu, config).unwrap()
    }

    /// The configuration that a device goes by; `None` by the group's domain.
    fn config(&self, which: usize) -> Option<NestedConfig> {
        let endpoint = self.f.endpoint(self.devices[which]);
        match self.f.core.backend().binding(endpoint) {
            Binding::Nested { config, .. } => Some(config),
            Binding::Table(_) => None,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_device_of_a_group_goes_by_a_configuration_of_its_own() {
    let mut p = pair();
    let configs = [TRANSLATE, NestedConfig::ABORT];
    let made = configs.map(|config| p.nested(config));
    for (device, own) in p.devices.into_iter().zip(made) {
        p.f.core.configure(device, Some(own)).unwrap();
    }
    assert_eq!([p.config(0), p.config(1)], configs.map(Some));
    // One changes in one step; the other is not touched.
    let bypass = p.nested(NestedConfig::BYPASS);
    let before = p.f.core.backend().history().len();
    p.f.core.configure(p.devices[0], Some(bypass)).unwrap();
    assert_eq!(p.f.core.backend().history().len(), before + 1);
    assert_eq!(p.config(0), Some(NestedConfig::BYPASS));
    assert_eq!(p.config(1), Some(NestedConfig::ABORT));
    assert!(
        p.f.core.destroy_domain(made[0]).is_ok(),
        "nobody goes by it"
    );
    assert!(matches!(
        p.f.core.destroy_domain(made[1]),
        Err(Error::Busy { .. })
    ));
    // The same again is no change.
    p.f.core.configure(p.devices[0], Some(bypass)).unwrap();
    assert_eq!(p.f.core.backend().history().len(), before + 1);
    p.f.core.configure(p.devices[0], None).unwrap();
    assert_eq!(
        (p.config(0), p.config(1)),
        (None, Some(NestedConfig::ABORT))
    );
    assert_eq!(p.f.reads(p.devices[0], AT), Some(RAM));
}

#[test]
fn a_group_does_not_move_while_a_device_goes_by_its_own() {
    let mut p = pair();
    let own = p.nested(TRANSLATE);
    p.f.core.configure(p.devices[1], Some(own)).unwrap();
    let other = p.nested(NestedConfig::BYPASS);
    let moved = p.f.core.replace(p.devices[0], Target::Domain(other));
    assert!(matches!(moved, Err(Error::Busy { .. })));
    assert_eq!((p.config(0), p.config(1)), (None, Some(TRANSLATE)));
    p.f.core.configure(p.devices[1], None).unwrap();
    p.f.core
        .replace(p.devices[0], Target::Domain(other))
        .unwrap();
    assert_eq!([p.config(0), p.config(1)], [Some(NestedConfig::BYPASS); 2]);
    // And nothing is nested over what is nested.
    let refused = p.f.core.configure(p.devices[1], Some(own));
    assert_eq!(refused, Err(Error::OtherParent(own.any())));
}

#[test]
fn only_what_is_nested_over_the_groups_domain_will_do() {
    let mut p = pair();
    let parent = p.parent;
    let paging = p.f.core.configure(p.devices[0], Some(parent));
    assert_eq!(paging, Err(Error::OtherParent(parent.any())));
    let options = DomainOptions {
        nest_parent: true,
        dirty_tracking: false,
    };
    let [device, _] = p.devices;
    let other = p.f.core.create_domain(device, p.f.ioas, options).unwrap();
    let viommu = p.f.core.create_viommu(device, other).unwrap();
    let elsewhere =
        p.f.core
            .create_nested(viommu, NestedConfig::BYPASS)
            .unwrap();
    let refused = p.f.core.configure(device, Some(elsewhere));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(p.config(0), None);
}

#[test]
fn devices_that_send_with_one_number_have_one_configuration() {
    let mut p = pair_with([&[0x700], &[0x700]]);
    let own = p.nested(TRANSLATE);
    let refused = p.f.core.configure(p.devices[0], Some(own));
    assert!(
        matches!(refused, Err(Error::SourceInUse { .. })),
        "{refused:?}"
    );
    assert_eq!((p.config(0), p.config(1)), (None, None));
}

#[test]
fn a_device_with_two_numbers_has_both_switched_or_none() {
    let mut p = pair_with([&[0x700], &[]]);
    let own = p.nested(TRANSLATE);
    p.f.core.backend_mut().fail_install_after(Some(1));
    let failed = p.f.core.configure(p.devices[0], Some(own));
    assert!(matches!(failed, Err(Error::Backend(_))), "{failed:?}");
    p.f.core.backend_mut().fail_install_after(None);
    assert_eq!(p.config(0), None);
    assert!(p.f.core.destroy_domain(own).is_ok(), "it is not in use");
    let own = p.nested(TRANSLATE);
    p.f.core.configure(p.devices[0], Some(own)).unwrap();
    let alias = crate::Endpoint {
        unit: SMMU,
        source: 0x700,
    };
    let binding = p.f.core.backend().binding(alias);
    assert!(matches!(
        binding,
        Binding::Nested {
            config: TRANSLATE,
            ..
        }
    ));
}

#[test]
fn a_device_leaves_its_configuration_when_it_is_detached() {
    let mut p = pair();
    let made = [TRANSLATE, NestedConfig::BYPASS].map(|config| p.nested(config));
    for (device, own) in p.devices.into_iter().zip(made) {
        p.f.core.configure(device, Some(own)).unwrap();
    }
    p.f.core.detach(p.devices[0]).unwrap();
    assert_eq!(p.config(1), Some(NestedConfig::BYPASS));
    assert!(p.f.core.destroy_domain(made[0]).is_ok());
    p.f.core.detach(p.devices[1]).unwrap();
    assert!(p.f.core.destroy_domain(made[1]).is_ok());
    for device in p.devices {
        let endpoint = p.f.endpoint(device);
        assert!(matches!(
            p.f.core.backend().binding(endpoint),
            Binding::Abort
        ));
        assert_eq!(p.f.core.configure(device, None), Err(Error::NotAttached));
        assert!(p.f.core.unbind(device).is_ok());
    }
}

#[test]
fn a_number_stays_while_its_device_goes_by_a_configuration() {
    let mut p = pair();
    let own = p.nested(TRANSLATE);
    p.f.core.configure(p.devices[0], Some(own)).unwrap();
    let number = p.f.core.device(p.devices[0]).unwrap().vdevice.unwrap();
    let destroyed = p.f.core.destroy_vdevice(number);
    assert!(matches!(destroyed, Err(Error::Busy { .. })));
    // The one that goes by the group's has no such hold.
    let other = p.f.core.device(p.devices[1]).unwrap().vdevice.unwrap();
    assert_eq!(p.f.core.destroy_vdevice(other), Ok(()));
    assert!(p.f.core.configure(p.devices[1], Some(own)).is_err());
}
