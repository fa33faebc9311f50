//! An SMMU that lets nothing pass.

use hal::{Clock, Mmio};

use crate::identity::Identity;
use crate::spec::{Cr0, Gbpa, regs};

/// An SMMU that did not do as it was told. Nothing may be assumed about the devices behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A register did not reach the awaited value in [`Locked::TIMEOUT_US`].
    #[error("register {register} at offset {offset:#x} stuck at {value:#x}")]
    Timeout {
        /// The register's name.
        register: &'static str,
        /// Its offset.
        offset: usize,
        /// What it still said.
        value: u32,
    },
    /// `GBPA.ABORT` reads 0 after it was written 1.
    #[error("GBPA.ABORT does not stick (GBPA {0:#x}): devices would bypass it")]
    WillNotAbort(u32),
}

/// A physical SMMU with translation off and `GBPA.ABORT` on: every transaction of every device
/// behind it is aborted.
#[derive(Debug)]
pub struct Locked<M> {
    mmio: M,
    identity: Identity,
    found: Found,
    pages: Pages,
}

/// Where the registers of page 1 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// In page 1.
    Two,
    /// In page 0, at the same offsets.
    One,
}

impl Pages {
    /// The offset of a register of page 1.
    pub(crate) const fn at(self, register: usize) -> usize {
        match self {
            Self::Two => register,
            Self::One => register & 0xffff,
        }
    }
}

/// How firmware left an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its enables.
    pub cr0: Cr0,
    /// What it did with traffic while disabled.
    pub gbpa: Gbpa,
}

impl<M: Mmio> Locked<M> {
    /// How long a register update may take: four orders above what hardware needs.
    pub const TIMEOUT_US: u64 = 100_000;

    /// Takes an SMMU over and locks it.
    ///
    /// The first write is `GBPA` with `ABORT`, before anything else is touched: a disabled SMMU out
    /// of reset may bypass. Only then is an SMMU that firmware left enabled turned off, so that no
    /// moment lies between in which traffic passes untranslated. [IHI 0070 §6.3.14]
    ///
    /// # Errors
    /// [`Error`] when a register does not follow.
    pub fn take(mmio: M, clock: &impl Clock) -> Result<Self, Error> {
        let gbpa = wait(&mmio, clock, regs::GBPA, "GBPA", |v| {
            !Gbpa::from_bits(v).update()
        })?;
        let gbpa = Gbpa::from_bits(gbpa);
        let abort = gbpa.with_abort(true).with_update(true);
        mmio.write32(regs::GBPA, abort.into_bits());
        let now = wait(&mmio, clock, regs::GBPA, "GBPA", |v| {
            !Gbpa::from_bits(v).update()
        })?;
        if !Gbpa::from_bits(now).abort() {
            return Err(Error::WillNotAbort(now));
        }
        let cr0 = turn_off(&mmio, clock, (regs::CR0, regs::CR0ACK), "CR0ACK")?;
        turn_off(
            &mmio,
            clock,
            (regs::IRQ_CTRL, regs::IRQ_CTRLACK),
            "IRQ_CTRLACK",
        )?;
        let identity = Identity::read(&mmio);
        Ok(Self {
            mmio,
            identity,
            found: Found {
                cr0: Cr0::from_bits(cr0),
                gbpa,
            },
            pages: Pages::Two,
        })
    }

    /// The same, as one that does not snoop the CPUs' caches, whatever it says (`IDR0.COHACC`): what is behind it on the
    /// way to memory is for the platform to tell.
    #[must_use]
    pub fn without_snooping(mut self) -> Self {
        self.identity.idr0 = self.identity.idr0.with_cohacc(false);
        self
    }

    /// The same, as one whose registers of page 1 are in page 0, for which the platform has to vouch: Cavium's
    /// ThunderX2 [Linux, Documentation/arch/arm64/silicon-errata.rst: 74].
    #[must_use]
    pub fn with_one_page(mut self) -> Self {
        self.pages = Pages::One;
        self
    }

    /// Its registers and identity, for a driver that turns it on.
    pub(crate) fn into_parts(self) -> (M, Identity, Pages) {
        (self.mmio, self.identity, self.pages)
    }

    /// What it says of itself.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it was found.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }

    /// `GBPA` and `CR0` as they read now, for the boot report and for checks.
    pub fn state(&self) -> Found {
        Found {
            cr0: Cr0::from_bits(self.mmio.read32(regs::CR0)),
            gbpa: Gbpa::from_bits(self.mmio.read32(regs::GBPA)),
        }
    }
}

/// Clears a register of enables, and waits until that holds; gives what the register was. Whoever was here before may
/// not have waited: a field is not to be written while it follows an earlier write, and one that reads 0 may not have
/// followed. [IHI 0070 §6.3.9]
fn turn_off(
    mmio: &impl Mmio,
    clock: &impl Clock,
    (control, acknowledge): (usize, usize),
    name: &'static str,
) -> Result<u32, Error> {
    let found = mmio.read32(control);
    if found != 0 {
        // One that will not follow what it was told before may yet follow this.
        let _ = wait(mmio, clock, acknowledge, name, |v| v == found);
        mmio.write32(control, 0);
    }
    wait(mmio, clock, acknowledge, name, |v| v == 0)?;
    Ok(found)
}

/// Reads a register until `done`, at least twice however slow the reads are.
pub(crate) fn wait(
    mmio: &impl Mmio,
    clock: &impl Clock,
    offset: usize,
    register: &'static str,
    done: impl Fn(u32) -> bool,
) -> Result<u32, Error> {
    let limit = clock.ticks_of_us(Locked::<&dyn Mmio>::TIMEOUT_US);
    let start = clock.ticks();
    loop {
        let expired = clock.ticks().wrapping_sub(start) > limit;
        let value = mmio.read32(offset);
        if done(value) {
            return Ok(value);
        }
        if expired {
            return Err(Error::Timeout {
                register,
                offset,
                value,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    use hal::fake::{Access, FakeClock, FakeMmio};
    use hal::{Clock, Mmio};

    use super::{Error, Locked};
    use crate::spec::regs;

    /// Registers that follow their controls, after a number of reads.
    #[derive(Debug)]
    struct Model {
        store: FakeMmio,
        slow: u32,
        pending: Cell<u32>,
        sticky_bypass: bool,
        /// `CR0ACK` when `CR0` was written last.
        acknowledged: Cell<u32>,
        writes: RefCell<Vec<(usize, u64)>>,
    }

    impl Model {
        fn new(cr0: u64, slow: u32) -> Self {
            let store = FakeMmio::new();
            store.preset(regs::GBPA, 4, 0x1000);
            store.preset(regs::CR0, 4, cr0);
            store.preset(regs::CR0ACK, 4, cr0);
            Self {
                store,
                slow,
                pending: Cell::new(0),
                sticky_bypass: false,
                acknowledged: Cell::new(0),
                writes: RefCell::default(),
            }
        }
    }

    impl Mmio for Model {
        fn read8(&self, _: usize) -> u8 {
            panic!("the SMMU has no 8-bit registers")
        }
        fn read16(&self, _: usize) -> u16 {
            panic!("the SMMU has no 16-bit registers")
        }
        fn read32(&self, offset: usize) -> u32 {
            let value = self.store.read32(offset);
            if self.pending.get() > 0 {
                self.pending.set(self.pending.get() - 1);
                return value;
            }
            match offset {
                regs::GBPA if value >> 31 == 1 => {
                    let kept = if self.sticky_bypass {
                        0x1000
                    } else {
                        value & !(1 << 31)
                    };
                    self.store.preset(offset, 4, kept.into());
                }
                regs::CR0ACK => {
                    self.store
                        .preset(offset, 4, self.store.read32(regs::CR0).into());
                }
                _ => {}
            }
            self.store.read32(offset)
        }
        fn read64(&self, _: usize) -> u64 {
            panic!("identification registers are read 32 bits at a time")
        }
        fn write8(&self, _: usize, _: u8) {}
        fn write16(&self, _: usize, _: u16) {}
        fn write32(&self, offset: usize, value: u32) {
            if offset == regs::CR0 {
                self.acknowledged.set(self.store.read32(regs::CR0ACK));
            }
            self.pending.set(self.slow.max(self.pending.get()));
            self.writes.borrow_mut().push((offset, value.into()));
            self.store.write32(offset, value);
        }
        fn write64(&self, _: usize, _: u64) {}
    }

    #[test]
    fn the_first_write_aborts_and_a_disabled_smmu_is_otherwise_left_alone() {
        let model = Model::new(0, 0);
        let locked = Locked::take(&model, &FakeClock::default()).unwrap();
        assert!(locked.state().gbpa.abort());
        assert!(!locked.found().gbpa.abort());
        assert_eq!(*model.writes.borrow(), [(regs::GBPA, 0x8010_1000)]);
    }

    #[test]
    fn an_enabled_smmu_is_disabled_only_after_gbpa_aborts() {
        let model = Model::new(0xd, 5);
        let locked = Locked::take(&model, &FakeClock::default()).unwrap();
        assert_eq!(locked.found().cr0.into_bits(), 0xd);
        assert_eq!(locked.state().cr0.into_bits(), 0);
        assert_eq!(
            *model.writes.borrow(),
            [(regs::GBPA, 0x8010_1000), (regs::CR0, 0)]
        );
    }

    #[test]
    fn an_update_that_whoever_was_here_before_did_not_wait_for_is_waited_for() {
        // Turned off a moment ago: what it translates, it translates still.
        let model = Model::new(0, 0);
        model.store.preset(regs::CR0ACK, 4, 0xd);
        model.pending.set(50);
        let locked = Locked::take(&model, &FakeClock::default()).unwrap();
        assert_eq!(model.store.read32(regs::CR0ACK), 0);
        assert_eq!(locked.state().cr0.into_bits(), 0);
        // Turned on a moment ago: nothing is written while it follows. [IHI 0070 §6.3.9]
        let model = Model::new(0xd, 0);
        model.store.preset(regs::CR0ACK, 4, 0);
        model.pending.set(50);
        Locked::take(&model, &FakeClock::default()).unwrap();
        let written = model.writes.borrow().clone();
        assert_eq!(written, [(regs::GBPA, 0x8010_1000), (regs::CR0, 0)]);
        assert_eq!(model.acknowledged.get(), 0xd, "when CR0 was written");
    }

    #[test]
    fn an_smmu_that_keeps_bypassing_is_an_error() {
        let mut model = Model::new(0, 0);
        model.sticky_bypass = true;
        assert_eq!(
            Locked::take(&model, &FakeClock::default()).unwrap_err(),
            Error::WillNotAbort(0x1000)
        );
    }

    #[test]
    fn a_stuck_register_ends_in_a_timeout_that_names_it() {
        struct Fast(Cell<u64>);
        impl Clock for Fast {
            fn ticks(&self) -> u64 {
                self.0.set(self.0.get() + 1_000);
                self.0.get()
            }
            fn frequency(&self) -> u64 {
                1_000_000
            }
        }
        let mmio = FakeMmio::new();
        mmio.preset(regs::GBPA, 4, 0x8000_0000);
        let error = Locked::take(&mmio, &Fast(Cell::new(0))).unwrap_err();
        assert_eq!(
            error,
            Error::Timeout {
                register: "GBPA",
                offset: regs::GBPA,
                value: 0x8000_0000
            }
        );
        assert!(
            mmio.take_log()
                .iter()
                .all(|access| matches!(access, Access::Read(..)))
        );
    }
}
