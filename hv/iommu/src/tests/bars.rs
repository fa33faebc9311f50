//! Device memory and peer-to-peer.

use super::*;
use crate::mock::{HUGE_PAGE, Leaves};
use crate::{BackendError, HugePages, MemoryType, PeerToPeer};

const BAR: u64 = 0x10_0000_0000;
const BAR_BYTES: u64 = 2 << 20;

struct Peers {
    f: Fixture,
    exporter: DeviceId,
    importer: DeviceId,
    bar: MemoryId,
}

fn peers_with(leaves: Leaves) -> Peers {
    let mut f = Fixture::with_leaves(leaves);
    let exporter = f.device(SMMU);
    let importer = f.attached(SMMU);
    let bar = f.core.add_bar(exporter, pa(BAR), BAR_BYTES, &[]).unwrap();
    Peers {
        f,
        exporter,
        importer,
        bar,
    }
}

fn peers() -> Peers {
    let mut p = peers_with(Leaves::Small);
    p.f.core
        .set_peer_to_peer(p.f.ioas, PeerToPeer::Enabled)
        .unwrap();
    p
}

impl Peers {
    fn request(&self) -> Map {
        Map {
            memory: self.bar,
            ..self.f.request(Placement::Fixed(iova(AT)), 0, BAR_BYTES)
        }
    }

    fn map(&mut self) -> Result<Span<Iova>, Error> {
        let request = self.request();
        self.f.core.map(self.f.ioas, &request)
    }

    fn all_device_memory(&self, device: DeviceId) -> bool {
        let leaves = self.f.walk(device);
        !leaves.is_empty()
            && leaves
                .iter()
                .all(|(_, leaf)| leaf.memory == MemoryType::Device)
    }
}

#[test]
fn a_bar_is_not_mapped_unless_peer_to_peer_is_asked_for() {
    let mut p = peers_with(Leaves::Small);
    assert_eq!(refused(p.map()), Error::PeerToPeerDisabled);
    p.f.core
        .set_peer_to_peer(p.f.ioas, PeerToPeer::Enabled)
        .unwrap();
    p.map().unwrap();
    assert_eq!(p.f.reads(p.importer, AT), Some(BAR));
}

#[test]
fn a_mapped_bar_is_device_memory() {
    let mut p = peers();
    p.map().unwrap();
    assert!(p.all_device_memory(p.importer));
    let found = p.f.core.translate(p.f.ioas, iova(AT)).unwrap();
    assert_eq!(found.memory, MemoryType::Device);
}

#[test]
fn a_copied_bar_is_device_memory() {
    let mut p = peers();
    p.map().unwrap();
    let to = p.f.core.create_ioas(VM).unwrap();
    assert_eq!(
        refused(p.f.copy_to(to, of(AT, PAGE), AT)),
        Error::PeerToPeerDisabled
    );
    p.f.core.set_peer_to_peer(to, PeerToPeer::Enabled).unwrap();
    p.f.copy_to(to, of(AT, PAGE), AT).unwrap();
    let device = p.f.device(SMMU);
    p.f.core.attach(device, Target::Ioas(to)).unwrap();
    assert!(p.all_device_memory(device));
}

#[test]
fn a_bar_shown_to_a_later_domain_is_device_memory() {
    let mut p = peers();
    p.map().unwrap();
    let late = p.f.attached(OTHER_SMMU);
    assert!(p.all_device_memory(late));
}

#[test]
fn a_bar_after_a_replacement_is_device_memory() {
    let mut p = peers();
    p.map().unwrap();
    let empty = p.f.core.create_ioas(VM).unwrap();
    p.f.core.replace(p.importer, Target::Ioas(empty)).unwrap();
    assert_eq!(p.f.reads(p.importer, AT), None);
    let ioas = p.f.ioas;
    p.f.core.replace(p.importer, Target::Ioas(ioas)).unwrap();
    assert!(p.all_device_memory(p.importer));
}

#[test]
fn a_bar_in_huge_pages_is_device_memory() {
    let mut p = peers_with(Leaves::SmallAndHuge);
    p.f.core
        .set_peer_to_peer(p.f.ioas, PeerToPeer::Enabled)
        .unwrap();
    p.map().unwrap();
    assert_eq!(p.f.walk(p.importer).len() as u64, BAR_BYTES / HUGE_PAGE);
    assert!(p.all_device_memory(p.importer));
}

#[test]
fn a_bar_in_small_pages_is_device_memory() {
    let mut p = peers_with(Leaves::SmallAndHuge);
    p.f.core.set_huge_pages(p.f.ioas, HugePages::Off).unwrap();
    p.f.core
        .set_peer_to_peer(p.f.ioas, PeerToPeer::Enabled)
        .unwrap();
    p.map().unwrap();
    assert!(p.all_device_memory(p.importer));
}

#[test]
fn the_hypervisor_does_not_copy_device_memory() {
    let mut p = peers();
    p.map().unwrap();
    let access = p.f.access();
    let memory = hal::fake::FakeMemory::new(pa(BAR), 4096);
    let refusal = Error::DeviceMemory {
        area: of(AT, BAR_BYTES),
    };
    assert_eq!(
        refused(p.f.core.read(access, iova(AT), &mut [0], &memory)),
        refusal
    );
    assert_eq!(refused(p.f.pin(access, AT, 8)), refusal);
}

// Refusals.

#[test]
fn a_bar_of_another_owner_is_refused_and_cannot_be_granted() {
    let mut p = peers();
    let theirs = p.f.core.create_ioas(OTHER_VM).unwrap();
    p.f.core
        .set_peer_to_peer(theirs, PeerToPeer::Enabled)
        .unwrap();
    let request = p.request();
    assert_eq!(
        refused(p.f.core.map(theirs, &request)),
        Error::OtherOwner {
            object: p.bar.any(),
            owner: VM
        }
    );
    assert_eq!(
        refused(p.f.core.grant(p.bar, OTHER_VM, Permissions::Read)),
        Error::PermissionDenied
    );
}

fn open_device(f: &mut Fixture) -> DeviceId {
    let group = f.group(SMMU);
    let source = f.source();
    let device = f
        .core
        .add_device(&DeviceDescription {
            path: Path::Open(1),
            ..Fixture::describe(group, &[source])
        })
        .unwrap();
    f.core.bind(device, VM).unwrap();
    device
}

#[test]
fn a_bar_of_a_device_on_an_open_path_is_refused() {
    let mut p = peers();
    let open = open_device(&mut p.f);
    let bar = p.f.core.add_bar(open, pa(BAR << 1), PAGE, &[]).unwrap();
    let request = Map {
        memory: bar,
        ..p.f.request(Placement::Fixed(iova(AT)), 0, PAGE)
    };
    assert_eq!(
        refused(p.f.core.map(p.f.ioas, &request)),
        Error::PathNotTranslated { device: open.any() }
    );
}

#[test]
fn a_bar_is_not_shown_to_a_device_on_an_open_path() {
    let mut p = peers();
    let open = open_device(&mut p.f);
    p.f.core.attach(open, Target::Ioas(p.f.ioas)).unwrap();
    let refusal = Error::PathNotTranslated { device: open.any() };
    assert_eq!(refused(p.map()), refusal);
    p.f.core.detach(open).unwrap();
    p.map().unwrap();
    assert_eq!(
        refused(p.f.core.attach(open, Target::Ioas(p.f.ioas))),
        refusal
    );
}

#[test]
fn a_bar_needs_a_bound_device() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    f.core.unbind(device).unwrap();
    assert_eq!(
        refused(f.core.add_bar(device, pa(BAR), PAGE, &[])),
        Error::NotBound
    );
}

#[test]
fn a_bar_that_is_not_whole_pages_is_refused() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    for (at, bytes) in [(BAR + 256, PAGE), (BAR, 256), (BAR, PAGE + 16)] {
        assert_eq!(
            refused(f.core.add_bar(device, pa(at), bytes, &[])),
            Error::BarNotPageGranular { pa: pa(at) }
        );
    }
    assert_eq!(
        refused(f.core.add_bar(device, pa(BAR), 0, &[])),
        Error::Overflow
    );
}

#[test]
fn a_bar_that_shares_a_page_with_an_msix_table_is_refused() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let table = Span::from_len(pa(BAR + PAGE + 0x800), 0x40).unwrap();
    assert_eq!(
        refused(f.core.add_bar(device, pa(BAR), 2 * PAGE, &[table])),
        Error::BarSharesPage { with: table }
    );
    assert!(f.core.add_bar(device, pa(BAR), PAGE, &[table]).is_ok());
}

#[test]
fn a_bar_that_overlaps_anothers_is_refused() {
    let mut p = peers();
    let other = p.f.device(SMMU);
    let inside = pa(BAR + BAR_BYTES - PAGE);
    assert!(matches!(
        p.f.core.add_bar(other, inside, 2 * PAGE, &[]),
        Err(Error::BarSharesPage { .. })
    ));
}

#[test]
fn a_device_stays_bound_while_its_bar_is_an_object() {
    let mut p = peers();
    assert!(matches!(
        p.f.core.unbind(p.exporter),
        Err(Error::Busy { users: 1, .. })
    ));
    p.map().unwrap();
    assert!(matches!(
        p.f.core.destroy_memory(p.bar),
        Err(Error::Busy { users: 1, .. })
    ));
    p.f.unmap(AT, BAR_BYTES).unwrap();
    p.f.core.destroy_memory(p.bar).unwrap();
    assert!(p.f.core.unbind(p.exporter).is_ok());
}

#[test]
fn peer_to_peer_is_not_switched_off_under_a_mapping() {
    let mut p = peers();
    p.map().unwrap();
    let off = p.f.core.set_peer_to_peer(p.f.ioas, PeerToPeer::Disabled);
    assert!(matches!(off, Err(Error::Busy { users: 1, .. })));
    p.f.unmap(AT, BAR_BYTES).unwrap();
    let off = p.f.core.set_peer_to_peer(p.f.ioas, PeerToPeer::Disabled);
    assert_eq!(off, Ok(()));
}

// Revocation.

#[test]
fn a_reset_takes_the_bar_from_every_device() {
    let mut p = peers();
    let second = p.f.attached(OTHER_SMMU);
    p.map().unwrap();
    assert!(p.f.reads(p.importer, AT).is_some());
    p.f.core.begin_reset(p.exporter).unwrap();
    assert_eq!(p.f.reads(p.importer, AT), None);
    assert_eq!(p.f.reads(second, AT), None);
    assert_eq!(
        refused(p.f.core.translate(p.f.ioas, iova(AT))),
        Error::Revoked
    );
    p.f.core.end_reset(p.exporter).unwrap();
    assert_eq!(p.f.reads(p.importer, AT), Some(BAR));
    assert!(p.all_device_memory(second));
}

#[test]
fn a_revoked_bar_is_neither_mapped_nor_shown() {
    let mut p = peers();
    p.map().unwrap();
    p.f.core.revoke(p.bar).unwrap();
    let again = Map {
        placement: Placement::Auto,
        ..p.request()
    };
    assert_eq!(refused(p.f.core.map(p.f.ioas, &again)), Error::Revoked);
    let late = p.f.attached(OTHER_SMMU);
    assert_eq!(p.f.walk(late), []);
    p.f.core.restore(p.bar).unwrap();
    assert!(p.all_device_memory(late));
}

#[test]
fn a_revoked_area_can_be_unmapped() {
    let mut p = peers();
    p.map().unwrap();
    p.f.core.revoke(p.bar).unwrap();
    assert_eq!(p.f.unmap(AT, BAR_BYTES), Ok(BAR_BYTES));
    p.f.core.restore(p.bar).unwrap();
    assert_eq!(p.f.walk(p.importer), []);
}

#[test]
fn revoking_and_restoring_twice_is_no_change() {
    let mut p = peers();
    p.map().unwrap();
    p.f.core.restore(p.bar).unwrap();
    p.f.core.revoke(p.bar).unwrap();
    p.f.core.revoke(p.bar).unwrap();
    p.f.core.restore(p.bar).unwrap();
    assert_eq!(p.f.reads(p.importer, AT), Some(BAR));
}

#[test]
fn ram_is_not_revoked_this_way() {
    let mut f = Fixture::new();
    assert_eq!(refused(f.core.revoke(f.ram)), Error::PermissionDenied);
    assert_eq!(refused(f.core.restore(f.ram)), Error::PermissionDenied);
}

#[test]
fn a_revocation_without_confirmation_is_tried_again() {
    let mut p = peers();
    p.map().unwrap();
    p.f.reads(p.importer, AT).unwrap();
    p.f.core.backend_mut().fail_invalidations_after(Some(0));
    assert_eq!(
        refused(p.f.core.begin_reset(p.exporter)),
        Error::Backend(BackendError::Timeout)
    );
    // The negative control: the device still has it cached.
    assert!(p.f.reads(p.importer, AT).is_some());
    p.f.core.backend_mut().fail_invalidations_after(None);
    p.f.core.begin_reset(p.exporter).unwrap();
    assert_eq!(p.f.reads(p.importer, AT), None);
}

#[test]
fn a_failed_restoration_leaves_the_bar_revoked_everywhere() {
    let mut p = peers();
    let second = p.f.attached(OTHER_SMMU);
    p.map().unwrap();
    p.f.core.revoke(p.bar).unwrap();
    let leaves = BAR_BYTES / crate::mock::SMALL_PAGE;
    p.f.core
        .backend_mut()
        .fail_allocations_after(Some(leaves + 5));
    assert!(refused(p.f.core.restore(p.bar)).is_out_of_memory());
    p.f.core.backend_mut().fail_allocations_after(None);
    assert_eq!(p.f.walk(p.importer), []);
    assert_eq!(p.f.walk(second), []);
    assert!(p.f.core.memory(p.bar).unwrap().is_revoked());
    p.f.core.restore(p.bar).unwrap();
    assert!(p.f.reads(second, AT).is_some());
}
