//! A machine in small: virtual CPU interfaces as the architecture has them, and the glue that an
//! arch crate would write between them and the crate under test.

use bulkhead_vgic::{
    Affinity, Config, FIRST_LPI, Kicks, Level, ListRegister, LrImage, Vgic, Width,
};

pub(crate) const SPURIOUS: u32 = 1023;
pub(crate) const SGI_FRAME: u64 = 0x1_0000;
pub(crate) const TIMER: u32 = 27;

/// When the guest deactivates: `ICC_CTLR_EL1.EOImode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EoiMode {
    /// At the end of the interrupt.
    DropAndDeactivate,
    /// By `ICC_DIR_EL1`.
    Drop,
}

/// One core's virtual CPU interface: five preemption bits, group 1.
#[derive(Debug)]
pub(crate) struct CpuInterface {
    lrs: Vec<u64>,
    hcr: u64,
    pub(crate) pmr: u8,
    pub(crate) eoi_mode: EoiMode,
    pub(crate) ap1r: u32,
    pub(crate) image: LrImage,
    /// Physical interrupts that are active.
    pub(crate) physical: u32,
}

impl CpuInterface {
    fn new(list_registers: usize) -> Self {
        Self {
            lrs: vec![0; list_registers],
            hcr: 0,
            pmr: 0xff,
            eoi_mode: EoiMode::DropAndDeactivate,
            ap1r: 0,
            image: LrImage::new(),
            physical: 0,
        }
    }

    fn running(&self) -> u32 {
        match self.ap1r {
            0 => 0xff,
            bits => bits.trailing_zeros() << 3,
        }
    }

    fn priority(lr: u64) -> u32 {
        (lr >> 48) as u32 & 0xff
    }

    fn highest(&self) -> Option<usize> {
        (0..self.lrs.len())
            .filter(|&i| self.lrs[i] >> 62 == 1 && self.lrs[i] >> 60 & 1 == 1)
            .min_by_key(|&i| (Self::priority(self.lrs[i]), self.lrs[i] as u32))
            .filter(|&i| {
                let priority = Self::priority(self.lrs[i]);
                priority < self.pmr.into() && priority < self.running()
            })
    }

    pub(crate) fn acknowledge(&mut self) -> u32 {
        let Some(index) = self.highest() else {
            return SPURIOUS;
        };
        self.lrs[index] ^= 3 << 62;
        self.ap1r |= 1 << (Self::priority(self.lrs[index]) >> 3);
        self.lrs[index] as u32
    }

    pub(crate) fn end(&mut self, intid: u32) {
        if self.ap1r == 0 {
            return;
        }
        self.ap1r &= self.ap1r - 1;
        if self.eoi_mode == EoiMode::DropAndDeactivate {
            self.deactivate(intid);
        }
    }

    /// `ICC_DIR_EL1`, or its part in the end of an interrupt.
    fn deactivate(&mut self, intid: u32) {
        let found =
            (0..self.lrs.len()).find(|&i| self.lrs[i] >> 63 == 1 && self.lrs[i] as u32 == intid);
        match found {
            Some(index) => {
                self.lrs[index] &= !(1 << 63);
                if self.lrs[index] >> 61 & 1 == 1 {
                    self.physical &= !(1 << (self.lrs[index] >> 32 & 0x1fff));
                }
            }
            // LPIs have no active state.
            None if intid >= FIRST_LPI => {}
            None => self.hcr += 1 << 27,
        }
    }

    /// `ICH_MISR_EL2` is not zero.
    fn wants_maintenance(&self) -> bool {
        let ended = self
            .lrs
            .iter()
            .any(|lr| lr >> 62 == 0 && lr >> 61 & 1 == 0 && lr >> 41 & 1 == 1);
        let none_pending = self.hcr & 1 << 3 != 0 && self.lrs.iter().all(|lr| lr >> 62 != 1);
        let not_present = self.hcr & 1 << 2 != 0 && self.hcr >> 27 != 0;
        ended || none_pending || not_present
    }

    /// `ICH_ELRSR_EL2`: list registers without an interrupt, and without the news of an end.
    pub(crate) fn ended(&self) -> u32 {
        let ended = |lr: u64| lr >> 62 == 0 && (lr >> 61 & 1 == 1 || lr >> 41 & 1 == 0);
        let bits = self
            .lrs
            .iter()
            .enumerate()
            .map(|(index, lr)| u32::from(ended(*lr)) << index);
        bits.sum()
    }

    /// Writes one list register, which must be without an interrupt.
    pub(crate) fn write_one(&mut self, index: usize) {
        assert_eq!(self.lrs[index] >> 62, 0, "an interrupt is overwritten");
        let register = self.image.register(index);
        let other = (0..self.lrs.len()).filter(|other| *other != index);
        for other in other {
            let same = self.lrs[other] as u32 == register.intid() && self.lrs[other] >> 62 != 0;
            assert!(!same, "one interrupt in two list registers");
        }
        self.lrs[index] = register.bits();
    }

    fn read_back(&mut self) {
        for (to, from) in self.image.live_mut().iter_mut().zip(&self.lrs) {
            *to = ListRegister::from_bits(*from);
        }
        if self.image.counts_eois() {
            self.image.set_hcr(self.hcr);
        }
    }

    fn write(&mut self) {
        for (to, from) in self.lrs.iter_mut().zip(self.image.to_write()) {
            *to = from.bits();
            let physical = from.physical();
            assert!(
                physical.is_none() || *to >> 62 != 3,
                "HW with pending and active"
            );
        }
        let live = self.image.live_count();
        assert!(
            self.lrs[live..].iter().all(|lr| *lr == 0),
            "a stale list register"
        );
        self.hcr = self.image.hcr();
        self.physical &= !self.image.to_deactivate();
    }
}

pub(crate) struct Machine {
    pub(crate) vgic: Vgic,
    pub(crate) cores: Vec<CpuInterface>,
    /// How often a core stopped for its list registers.
    pub(crate) refills: usize,
}

impl Machine {
    pub(crate) fn new(vcpus: u8, spis: usize, list_registers: usize) -> Self {
        let affinities: Vec<_> = (0..vcpus).map(Affinity::of_vcpu).collect();
        let vgic = Vgic::new(&Config {
            affinities: &affinities,
            spis,
            list_registers,
            hardware_ppis: 1 << TIMER,
            a3v: true,
        })
        .unwrap();
        Self {
            vgic,
            cores: (0..vcpus)
                .map(|_| CpuInterface::new(list_registers))
                .collect(),
            refills: 0,
        }
    }

    /// A machine whose guest enabled group 1 and put every interrupt into it, enabled, with
    /// priority 0x80, SPIs routed to vCPU 0.
    pub(crate) fn enabled(vcpus: u8, spis: usize, list_registers: usize) -> Self {
        let mut machine = Self::new(vcpus, spis, list_registers);
        machine.enable(spis);
        machine
    }

    /// What [`Machine::enabled`] does after [`Machine::new`].
    pub(crate) fn enable(&mut self, spis: usize) {
        self.write(0, 0, 2);
        for word in 1..=(spis.div_ceil(32) as u64) {
            self.write(0, 0x80 + 4 * word, 0xffff_ffff);
            self.write(0, 0x100 + 4 * word, 0xffff_ffff);
        }
        for intid in 32..32 + spis as u64 {
            self.write_at(0, 0x400 + intid, Width::Byte, 0x80);
        }
        for vcpu in 0..self.cores.len() {
            self.write_private(vcpu, vcpu, 0x14, 0);
            self.write_private(vcpu, vcpu, SGI_FRAME + 0x80, 0xffff_ffff);
            self.write_private(vcpu, vcpu, SGI_FRAME + 0x100, 0xffff_ffff);
            for word in 0..8 {
                self.write_private(vcpu, vcpu, SGI_FRAME + 0x400 + 4 * word, 0x8080_8080);
            }
        }
    }

    /// Does what a kick does: everybody who has to looks, until nobody has to.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            let busy = (0..self.cores.len())
                .find(|&vcpu| self.vgic.needs_flush(vcpu) || self.cores[vcpu].wants_maintenance());
            let Some(vcpu) = busy else {
                return;
            };
            self.refill(vcpu);
        }
        panic!("the machine does not come to rest");
    }

    pub(crate) fn refill(&mut self, vcpu: usize) {
        self.refills += 1;
        let core = &mut self.cores[vcpu];
        core.read_back();
        let _ = self.vgic.flush(vcpu, &mut core.image);
        core.write();
    }

    /// Takes a vCPU's interrupts out of its list registers, as before a trapped access.
    pub(crate) fn sync(&mut self, vcpu: usize) {
        let core = &mut self.cores[vcpu];
        core.read_back();
        let _ = self.vgic.sync(vcpu, &mut core.image);
    }

    pub(crate) fn acknowledge(&mut self, vcpu: usize) -> u32 {
        let intid = self.cores[vcpu].acknowledge();
        self.settle();
        intid
    }

    pub(crate) fn end(&mut self, vcpu: usize, intid: u32) {
        self.cores[vcpu].end(intid);
        self.settle();
    }

    /// The guest writes `ICC_DIR_EL1`, which traps when `ICH_HCR_EL2.TDIR` says so.
    pub(crate) fn deactivate(&mut self, vcpu: usize, intid: u32) {
        if self.cores[vcpu].hcr >> 14 & 1 == 1 {
            self.sync(vcpu);
            let _ = self.vgic.deactivate(vcpu, intid.into());
        } else {
            self.cores[vcpu].deactivate(intid);
        }
        self.settle();
    }

    pub(crate) fn read(&mut self, by: usize, offset: u64) -> u64 {
        self.sync(by);
        let value = self.vgic.read_distributor(offset, Width::Word);
        self.settle();
        value
    }

    pub(crate) fn write(&mut self, by: usize, offset: u64, value: u64) {
        self.write_at(by, offset, Width::Word, value);
    }

    pub(crate) fn write_at(&mut self, by: usize, offset: u64, width: Width, value: u64) {
        self.sync(by);
        let _ = self.vgic.write_distributor(offset, width, value);
        self.settle();
    }

    pub(crate) fn read_private(&mut self, by: usize, of: usize, offset: u64) -> u64 {
        self.sync(by);
        let value = self.vgic.read_redistributor(of, offset, Width::Word);
        self.settle();
        value
    }

    pub(crate) fn write_private(&mut self, by: usize, of: usize, offset: u64, value: u64) {
        self.sync(by);
        let _ = self
            .vgic
            .write_redistributor(of, offset, Width::Word, value);
        self.settle();
    }

    pub(crate) fn line(&mut self, intid: u32, level: Level) {
        let _ = self.vgic.set_spi_line(intid, level);
        self.settle();
    }

    pub(crate) fn pulse(&mut self, intid: u32) {
        let _ = self.vgic.pulse_spi(intid);
        self.settle();
    }

    pub(crate) fn ppi(&mut self, vcpu: usize, intid: u32, level: Level) {
        let _ = self.vgic.set_ppi_line(vcpu, intid, level);
        self.settle();
    }

    /// The physical timer interrupt fires on the core of a vCPU.
    pub(crate) fn timer(&mut self, vcpu: usize) {
        assert_eq!(
            self.cores[vcpu].physical & 1 << TIMER,
            0,
            "it cannot, it is active"
        );
        self.cores[vcpu].physical |= 1 << TIMER;
        self.ppi(vcpu, TIMER, Level::High);
    }

    pub(crate) fn sgi(&mut self, from: usize, value: u64) -> Kicks {
        let kicks = self.vgic.send_sgi(from, value);
        self.settle();
        kicks
    }
}
