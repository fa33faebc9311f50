//! Interrupt windows and doorbells.

use super::*;
use crate::{DomainOptions, MemoryType, MsiWindow, Region, RegionKind};

const MIB: u64 = 1 << 20;
const ITS: u64 = 0x1234_5000_0040;

fn doorbell_device(f: &mut Fixture, reserved: &[Region]) -> DeviceId {
    let group = f.group(SMMU);
    let source = f.source();
    let device = f
        .core
        .add_device(&DeviceDescription {
            msi: MsiRoute::Doorbell,
            reserved,
            ..Fixture::describe(group, &[source])
        })
        .unwrap();
    f.core.bind(device, VM).unwrap();
    device
}

fn forbidden() -> Region {
    Region {
        span: upto(0x8000_0000, 0x8fff_ffff),
        kind: RegionKind::Reserved,
    }
}

#[test]
fn the_default_window_is_one_mebibyte_at_0x0800_0000() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    let window = f.core.msi_window(device).unwrap();
    assert_eq!(window, MsiWindow::DEFAULT);
    assert_eq!(window.span(), of(0x0800_0000, MIB));
}

#[test]
fn a_window_moves_when_start_and_size_are_set() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.set_msi_start(device, 0x4000_0000).unwrap();
    assert_eq!(f.core.msi_window(device), Ok(MsiWindow::DEFAULT));
    f.core.set_msi_size(device, 2).unwrap();
    let window = f.core.msi_window(device).unwrap();
    assert_eq!(window.span(), of(0x4000_0000, 2 * MIB));
}

#[test]
fn a_start_that_is_no_multiple_of_a_mebibyte_is_refused() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    for start in [1, PAGE, MIB - 1, MIB + PAGE] {
        assert_eq!(
            refused(f.core.set_msi_start(device, start)),
            Error::Misaligned {
                value: start,
                alignment: MIB
            }
        );
    }
}

#[test]
fn the_start_comes_before_the_size() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    assert_eq!(refused(f.core.set_msi_size(device, 1)), Error::StartFirst);
    f.core.set_msi_start(device, MIB).unwrap();
    assert!(f.core.set_msi_size(device, 1).is_ok());
}

#[test]
fn size_zero_goes_back_to_the_default() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.set_msi_start(device, 0x4000_0000).unwrap();
    f.core.set_msi_size(device, 1).unwrap();
    f.core.set_msi_size(device, 0).unwrap();
    assert_eq!(f.core.msi_window(device), Ok(MsiWindow::DEFAULT));
    assert_eq!(refused(f.core.set_msi_size(device, 1)), Error::StartFirst);
}

#[test]
fn a_window_past_the_physical_addresses_overflows() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    let start = f.core.set_msi_start(device, u64::MAX - MIB + 1);
    assert_eq!(refused(start), Error::Overflow);
    let top = Pa::MAX - MIB + 1;
    f.core.set_msi_start(device, top).unwrap();
    assert_eq!(refused(f.core.set_msi_size(device, 2)), Error::Overflow);
    assert_eq!(
        refused(f.core.set_msi_size(device, u64::MAX)),
        Error::Overflow
    );
    assert!(f.core.set_msi_size(device, 1).is_ok());
}

#[test]
fn a_window_over_a_reserved_region_is_refused() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[forbidden()]);
    let refusal = Error::WindowOverlaps {
        region: forbidden().span,
    };
    for (start, size) in [
        (0x8000_0000, 1),
        (0x8ff0_0000, 1),
        (0x7ff0_0000, 2),
        (0x7000_0000, 4096),
    ] {
        f.core.set_msi_start(device, start).unwrap();
        assert_eq!(refused(f.core.set_msi_size(device, size)), refusal);
    }
    f.core.set_msi_start(device, 0x7ff0_0000).unwrap();
    assert!(f.core.set_msi_size(device, 1).is_ok());
    f.core.set_msi_start(device, 0x9000_0000).unwrap();
    assert!(f.core.set_msi_size(device, 1).is_ok());
}

#[test]
fn a_window_over_a_relaxable_region_is_fine() {
    let mut f = Fixture::new();
    let region = Region {
        kind: RegionKind::DirectRelaxable,
        ..forbidden()
    };
    let device = doorbell_device(&mut f, &[region]);
    f.core.set_msi_start(device, 0x8000_0000).unwrap();
    assert!(f.core.set_msi_size(device, 1).is_ok());
}

#[test]
fn the_window_is_frozen_while_attached() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.set_msi_start(device, 0x4000_0000).unwrap();
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let start = f.core.set_msi_start(device, 0x5000_0000);
    assert_eq!(refused(start), Error::AlreadyAttached);
    assert_eq!(
        refused(f.core.set_msi_size(device, 1)),
        Error::AlreadyAttached
    );
    f.core.detach(device).unwrap();
    assert!(f.core.set_msi_size(device, 1).is_ok());
}

#[test]
fn a_dead_device_has_no_window() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.unbind(device).unwrap();
    f.core.remove_device(device).unwrap();
    assert_eq!(
        refused(f.core.msi_window(device)),
        Error::NoSuchObject(device.any())
    );
    assert!(f.core.set_msi_start(device, MIB).is_err());
}

#[test]
fn a_device_whose_bridge_checks_interrupts_has_no_window() {
    let mut f = Fixture::new();
    let device = f.attached(TCE);
    assert_eq!(refused(f.core.msi_window(device)), Error::NoMsiWindow);
    assert_eq!(
        refused(f.core.map_doorbell(device, pa(ITS))),
        Error::NoMsiWindow
    );
}

#[test]
fn the_window_is_the_owners_choice_and_goes_with_it() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.set_msi_start(device, 0x4000_0000).unwrap();
    f.core.set_msi_size(device, 1).unwrap();
    f.core.unbind(device).unwrap();
    f.core.bind(device, OTHER_VM).unwrap();
    assert_eq!(f.core.msi_window(device), Ok(MsiWindow::DEFAULT));
}

#[test]
fn a_hardware_interrupt_region_contradicts_a_doorbell() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let region = Region {
        span: of(AT, PAGE),
        kind: RegionKind::Msi,
    };
    let description = DeviceDescription {
        msi: MsiRoute::Doorbell,
        reserved: &[region],
        ..Fixture::describe(group, &[3])
    };
    assert_eq!(
        refused(f.core.add_device(&description)),
        Error::BadRegion {
            span: region.span,
            kind: RegionKind::Msi
        }
    );
}

#[test]
fn the_window_is_reserved_while_the_device_is_attached() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let reserved = of(0x0800_0000, MIB);
    assert_eq!(
        refused(f.map(0x0800_0000, 0, PAGE)),
        Error::Reserved { reserved }
    );
    f.core.detach(device).unwrap();
    assert!(f.map(0x0800_0000, 0, PAGE).is_ok());
    assert!(matches!(
        f.core.attach(device, Target::Ioas(f.ioas)),
        Err(Error::ReservedCutsArea { .. })
    ));
}

#[test]
fn a_doorbell_appears_in_the_window_as_device_memory() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let at = f.core.map_doorbell(device, pa(ITS)).unwrap();
    assert_eq!(at, iova(0x0800_0040));
    let endpoint = f.endpoint(device);
    let seen = f.core.backend_mut().dma(endpoint, at, Dma::Write);
    assert_eq!(seen, Ok((pa(ITS), MemoryType::Device)));
}

#[test]
fn doorbells_get_successive_pages_and_keep_them() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    for (n, page) in [(0, ITS), (1, ITS + 0x10_0000), (2, ITS + 0x20_0000)] {
        let at = f.core.map_doorbell(device, pa(page)).unwrap();
        assert_eq!(at, iova(0x0800_0040 + n * PAGE));
    }
    let again = f.core.map_doorbell(device, pa(ITS + 0x10_0000)).unwrap();
    assert_eq!(again, iova(0x0800_1040));
    assert_eq!(f.walk(device).len(), 6);
}

#[test]
fn a_full_window_takes_no_further_doorbell() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    for n in 0..MIB / PAGE {
        f.core.map_doorbell(device, pa(n << 20)).unwrap();
    }
    assert_eq!(
        refused(f.core.map_doorbell(device, pa(1 << 40))),
        Error::WindowFull
    );
    assert!(f.core.map_doorbell(device, pa(5 << 20)).is_ok());
}

#[test]
fn a_new_domain_shows_the_doorbells_before_the_switch() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let at = f.core.map_doorbell(device, pa(ITS)).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    f.core.replace(device, Target::Ioas(other)).unwrap();
    assert_eq!(f.reads(device, at.bits()), Some(ITS));
    // Nothing but the doorbell is there.
    assert_eq!(f.walk(device).len(), 2);
}

#[test]
fn a_domain_that_cannot_show_the_doorbells_is_not_entered() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let at = f.core.map_doorbell(device, pa(ITS)).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    let installs = f.core.backend().counts.installs;
    // One allocation for the table, none for the doorbell.
    f.core.backend_mut().fail_allocations_after(Some(1));
    assert!(refused(f.core.replace(device, Target::Ioas(other))).is_out_of_memory());
    f.core.backend_mut().fail_allocations_after(None);
    assert_eq!(f.core.backend().counts.installs, installs);
    assert_eq!(f.reads(device, at.bits()), Some(ITS));
    assert!(f.core.destroy_ioas(other).is_ok());
}

#[test]
fn a_failed_switch_takes_the_doorbells_back() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    f.core.map_doorbell(device, pa(ITS)).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    let options = crate::DomainOptions::default();
    let domain = f.core.create_domain(device, other, options).unwrap();
    let table = f.core.domain(domain).unwrap().table().unwrap();
    f.core.backend_mut().fail_install_after(Some(0));
    assert!(f.core.replace(device, Target::Domain(domain)).is_err());
    assert_eq!(f.core.backend().walk(table), []);
    f.core.replace(device, Target::Domain(domain)).unwrap();
    assert_eq!(f.core.backend().walk(table).len(), 2);
}

#[test]
fn a_doorbell_needs_an_attached_device_in_a_paging_domain() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    assert_eq!(
        refused(f.core.map_doorbell(device, pa(ITS))),
        Error::NotAttached
    );
    let blocked = f.core.create_blocked(device).unwrap();
    f.core.attach(device, Target::Domain(blocked)).unwrap();
    assert_eq!(
        refused(f.core.map_doorbell(device, pa(ITS))),
        Error::NotPaging(blocked.any())
    );
}

#[test]
fn pages_of_the_window_are_used_again_when_nobody_needs_them() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    for n in 0..600 {
        f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
        let at = f.core.map_doorbell(device, pa(n << 20)).unwrap();
        assert_eq!(at, iova(0x0800_0000));
        f.core.detach(device).unwrap();
        f.core.unbind(device).unwrap();
        f.core.bind(device, VM).unwrap();
    }
}

#[test]
fn owners_have_windows_of_their_own() {
    let mut f = Fixture::new();
    let a = doorbell_device(&mut f, &[]);
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    f.core.map_doorbell(a, pa(1 << 20)).unwrap();
    let b = doorbell_device(&mut f, &[]);
    f.core.unbind(b).unwrap();
    f.core.bind(b, OTHER_VM).unwrap();
    f.core.attach_default(b).unwrap();
    let at = f.core.map_doorbell(b, pa(2 << 20)).unwrap();
    assert_eq!(at, iova(0x0800_0000));
    assert_eq!(f.reads(a, 0x0800_0000), Some(1 << 20));
    assert_eq!(f.reads(b, 0x0800_0000), Some(2 << 20));
}

#[test]
fn a_doorbell_appears_at_a_page_of_the_callers_choosing_beside_the_window() {
    const VITS: u64 = 0x0809_0000;
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    let place = |f: &mut Fixture| f.core.map_doorbell_at(device, iova(VITS), pa(ITS));
    assert_eq!(refused(place(&mut f)), Error::NotAttached);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let window = f.core.map_doorbell(device, pa(ITS)).unwrap();
    assert_eq!(window, iova(0x0800_0040));
    assert_eq!(place(&mut f), Ok(iova(VITS + 0x40)));
    assert_eq!(place(&mut f), Ok(iova(VITS + 0x40)), "once is enough");
    let leaves = f.walk(device);
    for at in [0x0800_0000, VITS] {
        let (_, leaf) = leaves.iter().find(|(start, _)| *start == at).unwrap();
        assert_eq!(leaf.pa, pa(ITS & !0xfff));
        assert_eq!(leaf.memory, MemoryType::Device);
    }
    f.core.detach(device).unwrap();
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.walk(device).len(), leaves.len(), "both come back");
    let over = refused(f.map(VITS, 0, PAGE));
    assert!(matches!(over, Error::Reserved { .. }));
}

#[test]
fn a_doorbell_is_not_put_over_memory_nor_inside_a_page() {
    let mut f = Fixture::new();
    let device = doorbell_device(&mut f, &[]);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    f.map(0x4000_0000, 0, 4 * PAGE).unwrap();
    let before = f.walk(device);
    let at = |f: &mut Fixture, at| refused(f.core.map_doorbell_at(device, iova(at), pa(ITS)));
    let over = at(&mut f, 0x4000_1000);
    assert!(matches!(over, Error::ReservedCutsArea { .. }));
    assert!(matches!(at(&mut f, 0x0809_0040), Error::Misaligned { .. }));
    assert_eq!(f.walk(device), before);
    f.core
        .map_doorbell_at(device, iova(0x0900_0000), pa(ITS))
        .unwrap();
    let over = refused(f.map(0x0900_0000, 0, PAGE));
    assert!(matches!(over, Error::Reserved { .. }), "nor memory over it");
    let shown = f.walk(device);
    assert!(shown.iter().any(|(at, _)| *at == 0x0900_0000));
    assert!(before.iter().all(|leaf| shown.contains(leaf)));
}

#[test]
fn a_page_of_the_callers_choosing_leads_to_one_doorbell() {
    const VITS: u64 = 0x0809_0000;
    let other = ITS + 0x2_0000;
    let mut f = Fixture::new();
    let [a, b] = [0; 2].map(|_| doorbell_device(&mut f, &[]));
    for (device, its) in [(a, ITS), (b, other)] {
        f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
        f.core.map_doorbell(device, pa(its)).unwrap();
    }
    f.core.map_doorbell_at(a, iova(VITS), pa(ITS)).unwrap();
    let before = f.walk(b);
    let second = f.core.map_doorbell_at(b, iova(VITS), pa(other));
    assert_eq!(refused(second), Error::WindowFull);
    assert_eq!(f.walk(b), before, "the window's page of its own stays");
    // The same one as before is.
    f.core.map_doorbell_at(b, iova(VITS), pa(ITS)).unwrap();
}

/// A guest has one interrupt controller, the machine two: behind each of the guest's IOMMUs its page leads to the one
/// that the devices there write to.
#[test]
fn a_page_of_the_callers_choosing_leads_to_a_doorbell_in_each_domain() {
    const VITS: u64 = 0x0809_0000;
    let other = ITS + 0x2_0000;
    let mut f = Fixture::new();
    let [a, b, c] = [0; 3].map(|_| doorbell_device(&mut f, &[]));
    let made = [(a, ITS), (b, other)].map(|(device, its)| {
        let options = DomainOptions::default();
        let domain = f.core.create_domain(device, f.ioas, options).unwrap();
        f.core.attach(device, Target::Domain(domain)).unwrap();
        let shown = f.core.map_doorbell_at(device, iova(VITS), pa(its));
        assert_eq!(shown, Ok(iova(VITS + 0x40)));
        domain
    });
    let leads = |f: &Fixture, device| {
        let leaves = f.walk(device);
        let leaf = leaves.iter().find(|(at, _)| *at == VITS);
        leaf.map(|(_, leaf)| leaf.pa)
    };
    let pages = [ITS, other].map(|its| Some(pa(its & !0xfff)));
    assert_eq!([leads(&f, a), leads(&f, b)], pages);
    // Each again, and a window, which is the same everywhere.
    for (device, its, page) in [(a, ITS, 0), (b, other, 1)] {
        f.core.map_doorbell_at(device, iova(VITS), pa(its)).unwrap();
        let at = f.core.map_doorbell(device, pa(its)).unwrap();
        assert_eq!(at, iova(0x0800_0040 + page * PAGE));
    }
    // Nobody moves to where the page is another's; who needs none goes anywhere.
    let before = f.walk(b);
    let moved = f.core.replace(b, Target::Domain(made[0]));
    assert_eq!(refused(moved), Error::WindowFull);
    assert_eq!((f.walk(b), leads(&f, a)), (before, pages[0]));
    f.core.attach(c, Target::Domain(made[0])).unwrap();
    let second = f.core.map_doorbell_at(c, iova(VITS), pa(other));
    assert_eq!(refused(second), Error::WindowFull);
    f.core.replace(c, Target::Domain(made[1])).unwrap();
    f.core.map_doorbell_at(c, iova(VITS), pa(other)).unwrap();
    // Off and on again, each is where it was.
    for (device, domain) in [(a, made[0]), (b, made[1])] {
        f.core.detach(device).unwrap();
        f.core.attach(device, Target::Domain(domain)).unwrap();
    }
    assert_eq!([leads(&f, a), leads(&f, b)], pages);
}
