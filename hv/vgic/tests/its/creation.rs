//! What an ITS can be made for, and what a restart leaves.

use bulkhead_vgic::LpiSource;
use bulkhead_vgic::its::{DeviceEvents, ITS_BYTES, ItsConfig, ItsError, TRANSLATER, Vits};

use crate::rig::{
    BASER0, BASER1, CBASER, CREADR, CTLR, CWRITER, DISK, NET, Rig, VALID, inv, mapc, mapd, mapti,
};

fn made(vcpus: usize, devices: &[(u32, u32)]) -> Result<(), ItsError> {
    let devices: Vec<_> = devices
        .iter()
        .map(|&(device, events)| DeviceEvents { device, events })
        .collect();
    let config = ItsConfig {
        vcpus,
        devices: &devices,
    };
    Vits::new(&config).map(|_| ())
}

#[test]
fn an_its_needs_vcpus_and_has_at_most_64() {
    assert_eq!(made(0, &[]), Err(ItsError::VcpuCount { vcpus: 0 }));
    assert_eq!(made(65, &[]), Err(ItsError::VcpuCount { vcpus: 65 }));
    assert_eq!(made(64, &[]), Ok(()));
}

#[test]
fn device_ids_are_different_and_have_16_bits() {
    let device = 0x1_0000;
    assert_eq!(made(1, &[(device, 1)]), Err(ItsError::DeviceId { device }));
    let twice = [(8, 1), (9, 1), (8, 2)];
    assert_eq!(made(1, &twice), Err(ItsError::SameDevice { device: 8 }));
    assert_eq!(made(1, &[(0, 1), (0xffff, 1)]), Ok(()));
}

#[test]
fn there_are_no_more_events_than_lpis() {
    assert_eq!(made(1, &[(1, 8000), (2, 192)]), Ok(()));
    for devices in [[(1, 8000), (2, 193)], [(1, u32::MAX), (2, u32::MAX)]] {
        assert_eq!(made(1, &devices), Err(ItsError::TooManyEvents));
    }
}

#[test]
fn the_last_vcpu_of_64_takes_lpis() {
    let mut rig = Rig::mapped(64);
    let _ = rig.send(&[mapti(DISK, 0, 8192, 63)]);
    assert!(rig.signal(DISK, 0).contains(63));
    assert_eq!(rig.drain(63), [8192]);
}

#[test]
fn it_can_be_shared_between_cores() {
    fn shared<T: Send + Sync>() {}
    shared::<Vits>();
}

#[test]
fn the_doorbell_is_in_the_second_frame() {
    assert_eq!((ITS_BYTES, TRANSLATER), (0x2_0000, 0x1_0040));
}

#[test]
fn a_reset_is_as_good_as_a_new_one() {
    let mut rig = Rig::mapped(2);
    let _ = rig.send(&[
        mapti(DISK, 0, 8192, 0),
        mapti(NET, 3, 8193, 1),
        inv(DISK, 9),
    ]);
    let _ = (rig.signal(DISK, 0), rig.signal(NET, 3));
    rig.vits.take(1, 8193);
    rig.vits.reset();
    assert!(!rig.vits.has_work());
    assert_eq!(rig.vits.faults(), (0, None));
    let new = Rig::new(2);
    for offset in [CTLR, CBASER, CWRITER, CREADR, BASER0, BASER1] {
        assert_eq!(rig.read(offset), new.read(offset), "{offset:#x}");
    }
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
    // Nothing comes back, and nothing is mapped.
    let _ = rig.vits.give_back(1, 8193);
    assert!(rig.signal(DISK, 0).is_empty());
    rig.start();
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
    assert!(rig.signal(DISK, 0).is_empty());
    // It works as before once it is set up again.
    let _ = rig.send(&[mapc(0, 0), mapd(DISK, 5), mapti(DISK, 0, 8192, 0)]);
    assert!(rig.signal(DISK, 0).contains(0));
}

#[test]
fn registers_keep_what_the_guest_wrote_until_a_reset() {
    let rig = Rig::mapped(1);
    assert_ne!(rig.read(BASER0) & VALID, 0);
    rig.vits.reset();
    assert_eq!(rig.read(BASER0) & VALID, 0);
}
