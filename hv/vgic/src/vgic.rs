//! A VM's interrupt controller as a whole.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, Ordering};

use hal::Mutex;

use crate::{
    Affinity, CpuContext, Error, Kicks, LrImage, MAX_LIST_REGISTERS, MAX_SPIS, Width,
    affinity::Topology,
    bits::low,
    distributor::{Distributor, FIRST_SPI},
    interface::VcpuInterface,
    its::{Message, Vits},
    lpi::{LpiSource, LpiTables, Sources},
    lr::HCR_EN,
    mailbox::{LPIS, Mailbox, OWED, REFILL, SPIS},
    redistributor::{Effect, Identity},
    sgi::Sgi,
};

/// The first PPI's INTID.
const FIRST_PPI: u32 = 16;

/// What a virtual GIC is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The affinity of each vCPU, as its `MPIDR_EL1` has it: 1 to 64, no two alike.
    pub affinities: &'a [Affinity],
    /// How many SPIs exist: INTIDs 32 to `32 + spis - 1`, at most 988.
    pub spis: usize,
    /// How many list registers the CPUs have: `ICH_VTR_EL2.ListRegs` + 1.
    pub list_registers: usize,
    /// PPIs (bit n is INTID n) that stand for the physical PPI of the same number, whose end by
    /// the guest ends the physical one too: the virtual timer's. SGI bits do not count.
    pub hardware_ppis: u32,
    /// `ICH_VTR_EL2.A3V`: the guest's SGIs may name a non-zero `Aff3`.
    pub a3v: bool,
}

/// The level of an input line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Not asserted.
    Low,
    /// Asserted.
    High,
}

#[derive(Debug)]
struct Vcpu {
    mailbox: Mailbox,
    interface: Mutex<VcpuInterface>,
}

/// A VM's GICv3: distributor, redistributors, and what goes into the list registers.
///
/// All methods take `&self` and may be called from any core; each says which lock it takes. Nothing
/// is allocated after creation. Numbers of vCPUs and INTIDs that do not exist are ignored: they
/// come from guests.
pub struct Vgic {
    topology: Topology,
    vcpus: Box<[Vcpu]>,
    /// Locked after a vCPU's interface, never before.
    distributor: Mutex<Distributor>,
    /// `GICD_CTLR.EnableGrp1`, for those who do not hold the distributor.
    enabled: AtomicBool,
    lpis: Option<Arc<dyn LpiSource>>,
}

impl Vgic {
    /// A GIC at reset.
    ///
    /// # Errors
    /// [`Error`] when the configuration is beyond what a GICv3 can be.
    pub fn new(config: &Config<'_>) -> Result<Self, Error> {
        let topology = Topology::new(config.affinities)?;
        if config.spis > MAX_SPIS {
            return Err(Error::SpiCount { spis: config.spis });
        }
        if config.list_registers == 0 || config.list_registers > MAX_LIST_REGISTERS {
            return Err(Error::ListRegisterCount {
                list_registers: config.list_registers,
            });
        }
        let vcpus = config
            .affinities
            .iter()
            .map(|_| Vcpu {
                mailbox: Mailbox::default(),
                interface: Mutex::new(VcpuInterface::new(
                    config.list_registers,
                    config.hardware_ppis,
                )),
            })
            .collect();
        Ok(Self {
            distributor: Mutex::new(Distributor::new(topology.clone(), config.spis, config.a3v)),
            topology,
            vcpus,
            enabled: AtomicBool::new(false),
            lpis: None,
        })
    }

    /// The GIC with LPIs from `source`, which `GICD_TYPER` and `GICR_TYPER` then speak of.
    #[must_use]
    pub fn with_lpis(mut self, source: Arc<dyn LpiSource>) -> Self {
        self.distributor.get_mut().have_lpis(source.intid_bits());
        self.lpis = Some(source);
        self
    }

    /// Back to the state at creation, for a VM that starts again; input lines stay as they are.
    /// No vCPU of the VM may be in the guest, and every [`LrImage`] has to be made anew.
    pub fn reset(&self) {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let mut interface = vcpu.interface.lock();
            interface.reset();
            if let Some(lpis) = &self.lpis {
                lpis.set_tables(index, None);
            }
            drop(interface);
            vcpu.mailbox.take();
            vcpu.mailbox.post(OWED);
        }
        self.distributor.lock().reset();
        self.enabled.store(false, Ordering::Release);
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Whether the list registers of a vCPU are to be synced and flushed before it enters the
    /// guest. One atomic load, no lock.
    #[must_use]
    pub fn needs_flush(&self, vcpu: usize) -> bool {
        self.vcpus
            .get(vcpu)
            .is_some_and(|vcpu| !vcpu.mailbox.is_empty())
    }

    /// Takes the state of interrupts out of the list registers, which the arch code read back into
    /// `image`: before a vCPU leaves its core, before it waits for an interrupt, and before an
    /// access for which [`Vgic::wants_sync`]. The list registers count as empty then, so a flush
    /// has to follow before the vCPU enters the guest; [`Vgic::needs_flush`] says so.
    ///
    /// Returns other vCPUs that have something to do now: an SPI was moved to them meanwhile.
    /// Takes the vCPU's lock, and the distributor's when an SPI is in a list register.
    pub fn sync(&self, vcpu: usize, image: &mut LrImage) -> Kicks {
        let Some(this) = self.vcpus.get(vcpu) else {
            return Kicks::NONE;
        };
        let mut interface = this.interface.lock();
        if !interface.is_loaded() {
            return Kicks::NONE;
        }
        let lpis = self.lpis.as_deref().filter(|_| interface.needs_lpis());
        let mut distributor = interface.needs_spis(image).then(|| self.distributor.lock());
        let mut sources = Sources {
            vcpu,
            group1: false,
            spis: distributor.as_deref_mut(),
            lpis,
        };
        let kicks = interface.sync(image, &mut sources);
        drop(distributor);
        this.mailbox.post(OWED);
        drop(interface);
        self.post_moved(kicks.without(u32::try_from(vcpu).unwrap_or(u32::MAX)))
    }

    /// Brings the list registers of a vCPU up to date: syncs what the arch code read back into
    /// `image`, fills it anew. What [`LrImage::to_write`] gives is to be written.
    ///
    /// Returns other vCPUs as [`Vgic::sync`] does. Takes the vCPU's lock, and the distributor's
    /// when an SPI is in a list register or waits for the vCPU.
    pub fn flush(&self, vcpu: usize, image: &mut LrImage) -> Kicks {
        let Some(this) = self.vcpus.get(vcpu) else {
            return Kicks::NONE;
        };
        let mut interface = this.interface.lock();
        let mail = this.mailbox.take();
        // What the mail tells of was done before it came.
        let group1 = self.enabled.load(Ordering::Acquire);
        interface.receive_sgis(mail);
        let lpis = self
            .lpis
            .as_deref()
            .filter(|_| mail & (LPIS | OWED) != 0 || interface.needs_lpis());
        let wants_spis = mail & (SPIS | OWED) != 0 || interface.needs_spis(image);
        if lpis.is_none() && !wants_spis {
            interface.refill_private(image, group1);
            return Kicks::NONE;
        }
        let mut distributor = wants_spis.then(|| self.distributor.lock());
        let mut sources = Sources {
            vcpu,
            group1,
            spis: distributor.as_deref_mut(),
            lpis,
        };
        let kicks = interface.sync(image, &mut sources);
        interface.fill(image, &mut sources);
        drop(distributor);
        drop(interface);
        self.post_moved(kicks.without(u32::try_from(vcpu).unwrap_or(u32::MAX)))
    }

    /// Whether a vCPU that has been synced has an interrupt that its CPU interface would signal
    /// now: the end of a WFI. Takes the vCPU's lock, then the distributor's.
    #[must_use]
    pub fn has_interrupt(&self, vcpu: usize, context: &CpuContext) -> bool {
        let Some(this) = self.vcpus.get(vcpu) else {
            return false;
        };
        let mut interface = this.interface.lock();
        interface.receive_sgis(this.mailbox.postpone());
        let group1 = self.enabled.load(Ordering::Acquire);
        let private = interface.first_pending(group1);
        let mut distributor = self.distributor.lock();
        let sources = Sources {
            vcpu,
            group1,
            spis: Some(&mut distributor),
            lpis: self.lpis.as_deref(),
        };
        let shared = sources.first_pending().map(|(level, _)| level);
        let Some(level) = private.into_iter().chain(shared).min() else {
            return false;
        };
        level.wrapping_shl(3) < u32::from(context.threshold())
    }

    /// Reads the distributor at `offset` of its frame. Takes the distributor's lock.
    #[must_use]
    pub fn read_distributor(&self, offset: u64, width: Width) -> u64 {
        match frame_offset(offset, crate::DISTRIBUTOR_BYTES) {
            Some(offset) => self.distributor.lock().read(offset, width),
            None => 0,
        }
    }

    /// Writes the distributor at `offset` of its frame. Takes the distributor's lock.
    pub fn write_distributor(&self, offset: u64, width: Width, value: u64) -> Kicks {
        let Some(offset) = frame_offset(offset, crate::DISTRIBUTOR_BYTES) else {
            return Kicks::NONE;
        };
        let mut distributor = self.distributor.lock();
        let kicks = distributor.write(offset, width, value);
        self.enabled
            .store(distributor.is_enabled(), Ordering::Release);
        drop(distributor);
        self.post(kicks, SPIS | REFILL)
    }

    /// Reads the redistributor of `vcpu` at `offset` of its two frames. Takes that vCPU's lock.
    #[must_use]
    pub fn read_redistributor(&self, vcpu: usize, offset: u64, width: Width) -> u64 {
        let (Some(this), Some(offset), Some(identity)) = (
            self.vcpus.get(vcpu),
            frame_offset(offset, crate::REDISTRIBUTOR_BYTES),
            self.identity(vcpu),
        ) else {
            return 0;
        };
        let mut interface = this.interface.lock();
        interface.receive_sgis(this.mailbox.take_sgis());
        interface.read_register(identity, offset, width)
    }

    /// Writes the redistributor of `vcpu` at `offset` of its two frames. Takes that vCPU's lock,
    /// for `GICR_WAKER` the distributor's too.
    pub fn write_redistributor(&self, vcpu: usize, offset: u64, width: Width, value: u64) -> Kicks {
        let (Some(this), Some(offset), Some(identity)) = (
            self.vcpus.get(vcpu),
            frame_offset(offset, crate::REDISTRIBUTOR_BYTES),
            self.identity(vcpu),
        ) else {
            return Kicks::NONE;
        };
        let mut interface = this.interface.lock();
        interface.receive_sgis(this.mailbox.take_sgis());
        match interface.write_register(identity, offset, width, value) {
            Effect::Nothing => Kicks::NONE,
            Effect::Refill => {
                drop(interface);
                self.post_one(vcpu, REFILL)
            }
            Effect::Waker => {
                let awake = !interface.asleep;
                let kicks = self.distributor.lock().set_awake(vcpu, awake);
                drop(interface);
                self.post_spis(kicks)
            }
            Effect::Lpis => {
                let tables = interface.lpis_enabled.then_some(LpiTables {
                    propbaser: interface.propbaser,
                    pendbaser: interface.pendbaser,
                });
                if let Some(lpis) = &self.lpis {
                    lpis.set_tables(vcpu, tables);
                }
                drop(interface);
                self.post_lpis(vcpu)
            }
        }
    }

    /// The guest wrote `ICC_SGI1R_EL1` on vCPU `from`. Takes no lock. (`ICC_SGI0R_EL1` and
    /// `ICC_ASGI1R_EL1` generate group 0 and other-state interrupts, which this GIC does not
    /// have: the trap ignores them.)
    pub fn send_sgi(&self, from: usize, sgi1r: u64) -> Kicks {
        let sgi = Sgi::decode(sgi1r);
        let bits = crate::bits::bit(sgi.intid);
        self.post(sgi.targets(from, &self.topology), bits)
    }

    /// Moves the input line of an SPI. Takes the distributor's lock.
    pub fn set_spi_line(&self, intid: u32, level: Level) -> Kicks {
        let mut distributor = self.distributor.lock();
        let Some(spi) = distributor.spi_of(intid) else {
            return Kicks::NONE;
        };
        let kicks = match level {
            Level::High => distributor.raise(spi),
            Level::Low => distributor.lower(spi),
        };
        drop(distributor);
        self.post_spis(kicks)
    }

    /// An edge on the input of an SPI; nothing when the guest made it level-sensitive. Takes the
    /// distributor's lock.
    pub fn pulse_spi(&self, intid: u32) -> Kicks {
        let mut distributor = self.distributor.lock();
        let Some(spi) = distributor.spi_of(intid) else {
            return Kicks::NONE;
        };
        let kicks = distributor.pulse(spi);
        drop(distributor);
        self.post_spis(kicks)
    }

    /// Moves the input line of a PPI. Takes the vCPU's lock.
    ///
    /// For one of [`Config::hardware_ppis`], `High` says that the physical interrupt was taken
    /// (acknowledged, priority dropped, not deactivated): it stays active until the guest
    /// deactivates it. `Low` withdraws it; when the guest has not seen it, the physical one is in
    /// [`LrImage::to_deactivate`] after the next flush.
    pub fn set_ppi_line(&self, vcpu: usize, intid: u32, level: Level) -> Kicks {
        let Some(this) = self.vcpus.get(vcpu) else {
            return Kicks::NONE;
        };
        if !(FIRST_PPI..FIRST_SPI).contains(&intid) {
            return Kicks::NONE;
        }
        let mut interface = this.interface.lock();
        let changed = match level {
            Level::High => interface.raise(intid),
            Level::Low => interface.lower(intid),
        };
        drop(interface);
        if changed {
            self.post_one(vcpu, REFILL)
        } else {
            Kicks::NONE
        }
    }

    /// Asks a vCPU for the present state of its interrupts: kicked, it syncs and flushes, after which
    /// [`Vgic::needs_flush`] is false again and registers show what it had. Takes no lock.
    pub fn request_sync(&self, vcpu: usize) -> Kicks {
        self.post_one(vcpu, REFILL)
    }

    /// The LPIs that wait for a vCPU are not what they were: see [`LpiSource`]. Takes no lock.
    pub fn post_lpis(&self, vcpu: usize) -> Kicks {
        self.post_one(vcpu, LPIS)
    }

    /// [`Vgic::post_lpis`] for several vCPUs: those that [`its::Outcome::post`](crate::its::Outcome::post)
    /// and [`its::Vits::send`](crate::its::Vits::send) name. Takes no lock.
    pub fn post_lpis_to(&self, vcpus: Kicks) -> Kicks {
        self.post(vcpus, LPIS)
    }

    /// A device's message came in while `vcpu` is on this core and out of the guest for it. When that is
    /// all there is to do, the LPI goes into a list register, and which one is returned: of the list
    /// registers that one, [`LrImage::register`], is to be written. Otherwise nothing has changed, and
    /// [`Vits::send`] has to be asked.
    ///
    /// It is all when the message is for this vCPU, its LPI is enabled and waits nowhere, nothing else
    /// waits for the vCPU, and a list register is free. `empty` is `ICH_ELRSR_EL2`: a bit for each list
    /// register whose interrupt the guest has ended. The list registers must hold what the last flush
    /// gave, so there is no call between a [`Vgic::sync`] and the next flush. `vits` is the source that the
    /// GIC was made with. Takes the vCPU's lock and those of `vits`.
    #[inline]
    pub fn deliver(
        &self,
        vits: &Vits,
        message: Message,
        vcpu: usize,
        image: &mut LrImage,
        empty: u32,
    ) -> Option<usize> {
        let this = self.quiet(vcpu, image)?;
        let target = u8::try_from(vcpu).ok()?;
        let mut interface = this.interface.lock();
        if !interface.lpis_enabled {
            return None;
        }
        let mut at = None;
        vits.pass(message, target, |lpi| {
            at = interface.add_lpi(lpi, empty, image);
            at.is_some()
        });
        at
    }

    /// The vCPU, if nothing waits for it or is active outside of its list registers, and it is signalled interrupts.
    #[inline]
    fn quiet(&self, vcpu: usize, image: &LrImage) -> Option<&Vcpu> {
        let this = self.vcpus.get(vcpu)?;
        // Maintenance interrupts are asked for while something waits or is active outside.
        let quiet = image.hcr == HCR_EN && this.mailbox.is_empty();
        (quiet && self.enabled.load(Ordering::Acquire)).then_some(this)
    }

    /// The physical interrupt of one of [`Config::hardware_ppis`] was taken while `vcpu` is on this core and out of the
    /// guest for it: acknowledged, not deactivated. When that is all there is to do, the PPI goes into a list register,
    /// and which one is returned, as by [`Vgic::deliver`] and on the same terms. Otherwise nothing has changed, and
    /// [`Vgic::set_ppi_line`] is to say `High`.
    ///
    /// It is all when the PPI is enabled and neither waits nor is active, nothing else waits for the vCPU, and the list
    /// register that held it the last time is over, or one was never used since the last flush. Takes the vCPU's lock.
    #[inline]
    pub fn deliver_ppi(
        &self,
        vcpu: usize,
        intid: u32,
        image: &mut LrImage,
        empty: u32,
    ) -> Option<usize> {
        if !(FIRST_PPI..FIRST_SPI).contains(&intid) {
            return None;
        }
        let this = self.quiet(vcpu, image)?;
        this.interface.lock().add_ppi(intid, empty, image)
    }

    /// The hardware PPIs whose physical interrupt has to be active on the core while this vCPU is
    /// on it: what a switch of vCPUs saves and restores. Takes the vCPU's lock.
    #[must_use]
    pub fn physical_active(&self, vcpu: usize) -> u32 {
        self.vcpus
            .get(vcpu)
            .map_or(0, |vcpu| vcpu.interface.lock().physical_active())
    }

    /// The guest wrote `ICC_DIR_EL1` and that was trapped: [`LrImage::hcr`] asks for it while an
    /// active interrupt is in no list register. The vCPU has to be synced before. Takes the
    /// vCPU's lock or the distributor's.
    pub fn deactivate(&self, vcpu: usize, dir: u64) -> Kicks {
        let intid = low(dir) & 0xff_ffff;
        if intid >= FIRST_SPI {
            let mut distributor = self.distributor.lock();
            let Some(spi) = distributor.spi_of(intid) else {
                return Kicks::NONE;
            };
            let kicks = distributor.deactivate(spi);
            drop(distributor);
            return self.post_spis(kicks);
        }
        let Some(this) = self.vcpus.get(vcpu) else {
            return Kicks::NONE;
        };
        this.interface.lock().deactivate(intid);
        self.post_one(vcpu, REFILL)
    }

    fn identity(&self, vcpu: usize) -> Option<Identity> {
        Some(Identity {
            vcpu: u32::try_from(vcpu).ok()?,
            affinity: self.topology.affinity(vcpu)?,
            is_last: vcpu.checked_add(1)? == self.vcpus.len(),
            has_lpis: self.lpis.is_some(),
        })
    }

    /// SPIs or LPIs that came out of a list register belong to other vCPUs now.
    fn post_moved(&self, to: Kicks) -> Kicks {
        self.post(to, SPIS | LPIS)
    }

    fn post_spis(&self, to: Kicks) -> Kicks {
        self.post(to, SPIS)
    }

    fn post_one(&self, vcpu: usize, bits: u32) -> Kicks {
        self.post(Kicks::of(u32::try_from(vcpu).unwrap_or(u32::MAX)), bits)
    }

    /// Posts `bits` to the vCPUs, and keeps those that did not have mail before.
    fn post(&self, to: Kicks, bits: u32) -> Kicks {
        let mut kicks = Kicks::NONE;
        for vcpu in to {
            if let Some(this) = self.vcpus.get(vcpu as usize)
                && this.mailbox.post(bits)
            {
                kicks = kicks.union(Kicks::of(vcpu));
            }
        }
        kicks
    }

    /// Whether an access at `offset` of the distributor's or the SGI frame is about pending or
    /// active state, which is exact only after a [`Vgic::sync`] of the vCPU that makes it.
    #[must_use]
    pub const fn wants_sync(offset: u64) -> bool {
        matches!(offset & 0xffff, 0x200..=0x3ff)
    }
}

/// The offset, if it is within a frame.
fn frame_offset(offset: u64, bytes: u64) -> Option<u32> {
    (offset < bytes).then(|| low(offset))
}
