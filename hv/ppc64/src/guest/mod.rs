//! A Linux guest on a PAPR platform of ours: one CPU, memory, a terminal.

mod hypercalls;
mod icp;
mod kernel;
mod memory;
mod rtas;
mod tree;

use core::num::NonZeroU16;

use bundle::{Bundle, VmConfig};
use dtoolkit::model::DeviceTree;
use hal::{Clock, FrameAllocator, NotMemory, PhysMemory};

use crate::console::TimeBase;
use crate::nested::{
    Exit, GuestThread, Loaded, MACHINE_CHECK, MSR_EE, MSR_ME, MSR_SF, NoTable, PartitionTable,
    Refused, Vcpu,
};
use crate::rtas::Rtas;
use crate::{cpu, presentation, spr};
use hypercalls::Answer;
use icp::Icp;
use memory::{GuestMemory, NoRoom, Outside};
use tree::Facts;

/// Where a guest's initrd goes, and how large it may be: below the run-time services.
const INITRD: u64 = 0x0800_0000;
const INITRD_MOST: u64 = 0x0600_0000;
/// Where a guest's device tree goes.
const TREE: u64 = 0x0e00_0000;
const TREE_MOST: usize = 0x10_0000;
/// What all of these need.
const LEAST_MEMORY: u64 = 0x1000_0000;

const LPID: NonZeroU16 = NonZeroU16::MIN;
/// How long a guest runs before the hypervisor looks, in microseconds.
const SLICE_US: u64 = 10_000;

/// A guest that cannot be started, or goes on no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{bytes:#x} bytes of memory are too few; {LEAST_MEMORY:#x} are the least")]
    FewBytes { bytes: u64 },
    #[error("the bundle has no file {0}")]
    NoFile(alloc::string::String),
    #[error("kernel: {0}")]
    Kernel(#[from] kernel::Error),
    #[error("kernel: it ends at {end:#x}, where the initrd begins")]
    LargeKernel { end: u64 },
    #[error("initrd: {bytes:#x} bytes are too many")]
    LargeInitrd { bytes: u64 },
    #[error("its device tree would have {bytes:#x} bytes; {TREE_MOST:#x} are the most")]
    LargeTree { bytes: usize },
    #[error("{0}")]
    NoRoom(#[from] NoRoom),
    #[error("{0}")]
    Outside(#[from] Outside),
    #[error("{0}")]
    Table(#[from] NoTable),
    #[error("{0}")]
    Memory(#[from] NotMemory),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{exit:x?} at {nip:#x}, msr {msr:#x}")]
    Unhandled { exit: Exit, nip: u64, msr: u64 },
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It turned itself off.
    PowerOff,
    /// It asked to be started anew.
    Reboot,
}

/// Runs the VM until it ends.
pub(crate) fn run<M, F>(
    machine: &DeviceTree,
    bundle: &Bundle<'_>,
    config: &VmConfig,
    memory: M,
    frames: &F,
    services: Option<&Rtas>,
) -> Result<End, Error>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    if config.memory < LEAST_MEMORY {
        let bytes = config.memory;
        return Err(Error::FewBytes { bytes });
    }
    let guest = GuestMemory::new(memory, frames, config.memory)?;
    let result = load(machine, bundle, config, &guest, services).and_then(|()| {
        let table = PartitionTable::new(memory, frames)?;
        let result = run_in(&guest, &table, services);
        table.destroy(frames);
        result
    });
    guest.destroy(frames);
    result
}

fn run_in<M, F>(
    guest: &GuestMemory<'_, M, F>,
    table: &PartitionTable<M>,
    services: Option<&Rtas>,
) -> Result<End, Error>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    table.set(LPID, guest.partition_entry(), 0)?;
    let mut vcpu = Vcpu::new(LPID, kernel::BASE, MSR_SF | MSR_ME);
    vcpu.registers.gpr[3] = TREE;
    vcpu.registers.gpr[4] = kernel::BASE;
    // SAFETY: this thread runs guests here only, and the check is over.
    let mut thread = unsafe { GuestThread::claim() };
    let mut cpu = GuestCpu {
        loaded: vcpu.load(&mut thread),
        icp: Icp::new(),
        memory: guest,
        table,
        services,
    };
    loop {
        if let Some(end) = cpu.step()? {
            return Ok(end);
        }
    }
}

fn load<M, F>(
    machine: &DeviceTree,
    bundle: &Bundle<'_>,
    config: &VmConfig,
    guest: &GuestMemory<'_, M, F>,
    services: Option<&Rtas>,
) -> Result<(), Error>
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    let file = |name: &str| bundle.file(name).ok_or_else(|| Error::NoFile(name.into()));
    let kernel = kernel::parse(file(&config.kernel.file)?)?;
    if kernel.end > INITRD {
        let end = kernel.end;
        return Err(Error::LargeKernel { end });
    }
    for (at, bytes) in &kernel.parts {
        guest.write(*at, bytes)?;
    }
    let mut initrd = None;
    if let Some(name) = &config.initrd {
        let bytes = file(name)?;
        let length = bytes.len() as u64;
        if length > INITRD_MOST {
            return Err(Error::LargeInitrd { bytes: length });
        }
        guest.write(INITRD, bytes)?;
        initrd = Some((INITRD, INITRD + length));
    }
    for (at, word) in (u64::from(rtas::BASE)..).step_by(4).zip(rtas::CODE) {
        guest.write_cell(at, word)?;
    }
    let facts = Facts {
        bytes: guest.bytes(),
        cpus: 1,
        bootargs: &config.append,
        initrd,
        has_clock: services.is_some_and(Rtas::has_clock),
    };
    let tree = tree::build(&machine.root, &facts);
    if tree.len() > TREE_MOST {
        let bytes = tree.len();
        return Err(Error::LargeTree { bytes });
    }
    guest.write(TREE, &tree)?;
    Ok(())
}

/// A guest CPU with what belongs to it.
struct GuestCpu<'a, M, F: FrameAllocator> {
    loaded: Loaded<'a>,
    icp: Icp,
    memory: &'a GuestMemory<'a, M, F>,
    table: &'a PartitionTable<M>,
    /// The platform's own run-time services.
    services: Option<&'a Rtas>,
}

/// Why a program interrupt came, in SRR1: an instruction that does not exist.
/// [Power ISA 3.1B Book III §7.5.9]
const ILLEGAL: u64 = 1 << 19;
/// SRR1 of a machine check: a load or store, told apart by DSISR.
const BY_ACCESS: u64 = 1 << 21;
/// DSISR of that machine check: what was accessed does not answer.
const UNCORRECTABLE: u64 = 1 << 15;
/// SRR1 of a machine check: what was fetched does not answer.
const BY_FETCH: u64 = 1 << 18;

impl<M: PhysMemory + Copy, F: FrameAllocator> GuestCpu<'_, M, F> {
    /// Runs the CPU until it leaves, and does what it left for.
    fn step(&mut self) -> Result<Option<End>, Error> {
        if self.icp.is_pending() && self.loaded.vcpu.registers.msr & MSR_EE != 0 {
            self.loaded.vcpu.interrupt(0x500, 0);
        }
        let slice = if self.icp.is_pending() {
            // The guest may turn interrupts on at any time without telling.
            0
        } else {
            TimeBase.ticks_of_us(SLICE_US)
        };
        // SAFETY: the tree maps frames that were allocated for this guest.
        let exit = unsafe { self.loaded.run(spr::timebase() + slice) }?;
        match exit {
            Exit::SliceEnd | Exit::Doorbell => {}
            Exit::Hcall => return self.hypercall(),
            Exit::HcallFromUser => {
                self.loaded.vcpu.registers.gpr[3] = hypercalls::PRIVILEGE.cast_unsigned();
            }
            Exit::Interrupt => presentation::acknowledge(cpu::this().server()),
            Exit::Emulation | Exit::Facility => self.loaded.vcpu.interrupt(0x700, ILLEGAL),
            // Nothing answers outside the guest's memory. A storage interrupt would not do: by the
            // guest's own tables all is well, and it would try again for ever.
            Exit::DataStorage { effective, .. } => {
                self.loaded.set_fault(effective, UNCORRECTABLE);
                self.loaded.vcpu.interrupt(MACHINE_CHECK, BY_ACCESS);
            }
            Exit::InstructionStorage { .. } => {
                self.loaded.vcpu.interrupt(MACHINE_CHECK, BY_FETCH);
            }
            Exit::MachineCheck | Exit::Reset | Exit::Unknown { .. } => {
                let registers = &self.loaded.vcpu.registers;
                for (i, four) in (0..).step_by(4).zip(registers.gpr.chunks(4)) {
                    log::error!("r{i:<2} {four:016x?}");
                }
                return Err(Error::Unhandled {
                    exit,
                    nip: registers.nip,
                    msr: registers.msr,
                });
            }
        }
        Ok(None)
    }

    fn hypercall(&mut self) -> Result<Option<End>, Error> {
        match hypercalls::serve(self) {
            Answer::Done(status) => {
                self.loaded.vcpu.registers.gpr[3] = status.cast_unsigned();
                Ok(None)
            }
            Answer::Wait => {
                self.loaded.vcpu.registers.gpr[3] = 0;
                self.loaded.vcpu.registers.msr |= MSR_EE;
                if !self.icp.is_pending() {
                    self.loaded.wait();
                }
                Ok(None)
            }
            Answer::End(end) => Ok(Some(end)),
        }
    }
}
