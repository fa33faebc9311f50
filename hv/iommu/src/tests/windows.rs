//! Windows that come and go, and the default address space of an owner.

use types::PageSize;

use super::*;
use crate::mock::{DEFAULT_WINDOW_BYTES, DYNAMIC_WINDOW_BASE};
use crate::{BackendError, DomainId, Feature};

struct Pe {
    f: Fixture,
    device: DeviceId,
    domain: DomainId,
}

fn pe() -> Pe {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let domain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    Pe { f, device, domain }
}

impl Pe {
    fn create(&mut self, page: PageSize, bytes: u64) -> Result<crate::Window, Error> {
        self.f.core.create_window(self.domain, page, bytes)
    }

    fn remove(&mut self, base: u64) -> Result<(), Error> {
        self.f.core.remove_window(self.domain, iova(base))
    }

    fn spans(&self) -> Vec<Span<Iova>> {
        let windows = self.f.core.windows(self.domain).unwrap();
        windows.iter().map(|window| window.span).collect()
    }
}

#[test]
fn a_pe_starts_with_its_default_window() {
    let p = pe();
    assert_eq!(p.spans(), [of(0, DEFAULT_WINDOW_BYTES)]);
    let limits = p.f.core.query_window(p.domain).unwrap();
    assert_eq!(limits.available, 1);
    assert!(limits.pages.contains(PageSize::SIZE_2M));
}

#[test]
fn a_created_window_is_where_the_platform_says() {
    let mut p = pe();
    assert!(matches!(
        p.f.map(DYNAMIC_WINDOW_BASE, 0, 64 << 10),
        Err(Error::Reserved { .. })
    ));
    let window = p.create(PageSize::SIZE_64K, 1 << 40).unwrap();
    assert_eq!(window.span, of(DYNAMIC_WINDOW_BASE, 1 << 40));
    p.f.map(DYNAMIC_WINDOW_BASE, 0, 128 << 10).unwrap();
    assert_eq!(p.f.reads(p.device, DYNAMIC_WINDOW_BASE), Some(RAM));
    assert_eq!(p.f.walk(p.device).len(), 2);
    assert_eq!(p.f.core.query_window(p.domain).unwrap().available, 0);
}

#[test]
fn each_window_has_its_own_page_size() {
    let mut p = pe();
    p.create(PageSize::SIZE_2M, 1 << 40).unwrap();
    p.f.map(0, 0, PAGE).unwrap();
    assert_eq!(
        refused(p.f.map(DYNAMIC_WINDOW_BASE, 0, PAGE)),
        Error::Misaligned {
            value: PAGE,
            alignment: 2 << 20
        }
    );
    p.f.map(DYNAMIC_WINDOW_BASE, 2 << 20, 4 << 20).unwrap();
    assert_eq!(p.f.walk(p.device).len(), 3);
}

#[test]
fn there_is_room_for_two_windows() {
    let mut p = pe();
    p.create(PageSize::SIZE_64K, 1 << 32).unwrap();
    assert_eq!(
        refused(p.create(PageSize::SIZE_64K, 1 << 32)),
        Error::Backend(BackendError::NoWindow)
    );
}

#[test]
fn impossible_windows_are_refused() {
    let mut p = pe();
    let bad = Error::Backend(BackendError::BadWindow);
    assert_eq!(refused(p.create(PageSize::SIZE_64K, 3 << 20)), bad);
    assert_eq!(refused(p.create(PageSize::SIZE_64K, 0)), bad);
    assert_eq!(refused(p.create(PageSize::SIZE_64K, 4096)), bad);
    assert_eq!(refused(p.create(PageSize::SIZE_1G, 1 << 40)), bad);
    assert_eq!(refused(p.create(PageSize::SIZE_2M, 1 << 46)), bad);
    assert_eq!(p.spans().len(), 1);
}

#[test]
fn a_window_never_has_more_than_2_to_the_31_entries() {
    let mut p = pe();
    let bad = Error::Backend(BackendError::BadWindow);
    assert_eq!(refused(p.create(PageSize::SIZE_4K, 1 << 44)), bad);
    assert!(p.create(PageSize::SIZE_4K, 1 << 43).is_ok());
}

#[test]
fn a_window_in_use_is_not_removed() {
    let mut p = pe();
    p.create(PageSize::SIZE_64K, 1 << 32).unwrap();
    p.f.map(DYNAMIC_WINDOW_BASE, 0, 64 << 10).unwrap();
    assert!(matches!(
        p.remove(DYNAMIC_WINDOW_BASE),
        Err(Error::ReservedCutsArea { .. })
    ));
    assert_eq!(p.f.reads(p.device, DYNAMIC_WINDOW_BASE), Some(RAM));
    p.f.unmap(DYNAMIC_WINDOW_BASE, 64 << 10).unwrap();
    p.remove(DYNAMIC_WINDOW_BASE).unwrap();
    assert_eq!(p.spans(), [of(0, DEFAULT_WINDOW_BYTES)]);
    assert!(matches!(
        p.f.map(DYNAMIC_WINDOW_BASE, 0, 64 << 10),
        Err(Error::Reserved { .. })
    ));
}

#[test]
fn a_promised_window_is_not_removed() {
    let mut p = pe();
    p.create(PageSize::SIZE_64K, 1 << 32).unwrap();
    p.f.core
        .allow(p.f.ioas, &[of(DYNAMIC_WINDOW_BASE, 1 << 20)])
        .unwrap();
    assert!(matches!(
        p.remove(DYNAMIC_WINDOW_BASE),
        Err(Error::ReservedCutsAllowed { .. })
    ));
}

#[test]
fn the_default_window_can_go_and_be_replaced() {
    let mut p = pe();
    p.remove(0).unwrap();
    assert_eq!(p.spans(), []);
    assert!(matches!(p.f.map(0, 0, PAGE), Err(Error::Reserved { .. })));
    assert_eq!(p.f.core.query_window(p.domain).unwrap().available, 2);
    let first = p.create(PageSize::SIZE_64K, 1 << 31).unwrap();
    let second = p.create(PageSize::SIZE_2M, 1 << 40).unwrap();
    assert_eq!(first.span.start(), iova(0));
    assert_eq!(second.span.start(), iova(DYNAMIC_WINDOW_BASE));
}

#[test]
fn removing_what_is_no_window_is_refused() {
    let mut p = pe();
    assert_eq!(
        refused(p.remove(DYNAMIC_WINDOW_BASE)),
        Error::Backend(BackendError::NoWindow)
    );
    assert_eq!(
        refused(p.remove(PAGE)),
        Error::Backend(BackendError::NoWindow)
    );
}

#[test]
fn a_reset_restores_the_default_window() {
    let mut p = pe();
    p.remove(0).unwrap();
    p.create(PageSize::SIZE_64K, 1 << 31).unwrap();
    p.create(PageSize::SIZE_2M, 1 << 40).unwrap();
    p.f.map(0, 0, 64 << 10).unwrap();
    assert!(matches!(
        p.f.core.reset_windows(p.domain),
        Err(Error::Busy { users: 1, .. })
    ));
    p.f.unmap(0, 64 << 10).unwrap();
    p.f.core.reset_windows(p.domain).unwrap();
    assert_eq!(p.spans(), [of(0, DEFAULT_WINDOW_BYTES)]);
    assert_eq!(p.f.core.query_window(p.domain).unwrap().available, 1);
    p.f.map(0, 0, PAGE).unwrap();
    assert_eq!(p.f.reads(p.device, 0), Some(RAM));
}

#[test]
fn a_unit_with_fixed_windows_refuses_window_operations() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let domain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let refusal = Error::Unsupported(Feature::DynamicWindows);
    assert_eq!(refused(f.core.query_window(domain)), refusal);
    assert_eq!(
        refused(f.core.create_window(domain, PageSize::SIZE_4K, 1 << 30)),
        refusal
    );
    assert_eq!(refused(f.core.remove_window(domain, iova(AT))), refusal);
    assert_eq!(refused(f.core.reset_windows(domain)), refusal);
    assert_eq!(f.core.windows(domain).unwrap().len(), 1);
}

// Default address spaces.

#[test]
fn the_default_space_comes_with_the_first_attachment() {
    let mut f = Fixture::new();
    let (a, b) = (f.device(SMMU), f.device(TCE));
    assert_eq!(refused(f.core.default_ioas(VM)), Error::NoDefault);
    f.core.attach_default(a).unwrap();
    let ioas = f.core.default_ioas(VM).unwrap();
    f.core.attach_default(b).unwrap();
    assert_eq!(f.core.default_ioas(VM), Ok(ioas));
    let request = f.request(Placement::Fixed(iova(AT)), 0, PAGE);
    f.core.map(ioas, &request).unwrap();
    assert_eq!((f.reads(a, AT), f.reads(b, AT)), (Some(RAM), Some(RAM)));
    assert_eq!(refused(f.core.default_ioas(OTHER_VM)), Error::NoDefault);
}

#[test]
fn setting_and_clearing_the_default_destroys_nothing() {
    let mut f = Fixture::new();
    let other = f.core.create_ioas(VM).unwrap();
    assert_eq!(refused(f.core.clear_default_ioas(VM)), Error::NoDefault);
    f.core.set_default_ioas(VM, f.ioas).unwrap();
    f.core.set_default_ioas(VM, other).unwrap();
    assert_eq!(f.core.default_ioas(VM), Ok(other));
    f.core.clear_default_ioas(VM).unwrap();
    assert!(f.core.ioas(other).is_ok());
    assert!(f.core.ioas(f.ioas).is_ok());
    let theirs = f.core.create_ioas(OTHER_VM).unwrap();
    assert!(matches!(
        f.core.set_default_ioas(VM, theirs),
        Err(Error::OtherOwner { .. })
    ));
}

#[test]
fn a_destroyed_default_is_no_default() {
    let mut f = Fixture::new();
    f.core.set_default_ioas(VM, f.ioas).unwrap();
    f.core.destroy_ioas(f.ioas).unwrap();
    assert_eq!(refused(f.core.default_ioas(VM)), Error::NoDefault);
}

#[test]
fn a_failed_first_attachment_leaves_no_default() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let before = f.census();
    f.core.backend_mut().fail_install_after(Some(0));
    assert!(f.core.attach_default(device).is_err());
    assert_eq!(f.census(), before);
    assert_eq!(refused(f.core.default_ioas(VM)), Error::NoDefault);
    assert!(f.core.attach_default(device).is_ok());
}
