//! The machine's host bridges and what is behind them, as the VMs share them out.

use alloc::vec::Vec;
use core::sync::atomic::AtomicUsize;

use boot::Frames;
use hal::TicketMutex;
use hal::{FrameAllocator as _, NotMemory, OutOfFrames, PhysMemory as _};
use iommu::{
    Ats, Coherence, DeviceDescription, DeviceId, Error, Iommu, MsiRoute, Path, Residence, UnitId,
};
use machine::{ConfigAccess, DmaWindow, IntxMap, Trigger, WindowKind};
use pci::Topology;
use tce::{Broken, Ddw, HostBridge, Multi, PaprBackend};
use types::{Address as _, Bdf, Iova, Pa, PageSize};
use vtce::Policy;

use crate::heap;
use crate::memory::Ram;
use crate::messages::Messages;
use crate::presentation::Sources;
use crate::rtas::Rtas;
use crate::tables::Calls;

/// The IOMMU core of this machine.
pub(crate) type Core = Iommu<PaprBackend<Calls>>;

/// A host bridge whose windows are known, before anybody has it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) topology: Topology,
    pub(crate) tables: HostBridge,
    /// The sources of its interrupt pins.
    pub(crate) pins: IntxMap,
    /// Where its I/O space is, and how large.
    pub(crate) io: Option<(Pa, u64)>,
}

/// Where a host bridge's I/O space is, if a device behind it has registers there, and it can be shown: whole pages.
fn io(found: &Found) -> Option<(Pa, u64)> {
    let functions = found.topology.functions().iter();
    let mut bars = functions.flat_map(|function| &function.bars);
    let used = bars.any(|bar| bar.kind.is_io() && bar.place.is_some());
    let whole = |(at, bytes): &(Pa, u64)| *bytes > 0 && (at.bits() | bytes).is_multiple_of(4096);
    found.io.filter(|_| used).filter(whole)
}

/// What the device tree says of a host bridge's I/O space.
fn io_space(bridge: &machine::HostBridge) -> Option<(Pa, u64)> {
    let mut windows = bridge.windows.iter();
    let window = windows.find(|window| window.kind == WindowKind::Io)?;
    Some((window.cpu.start(), window.cpu.len()?))
}

/// The source of each function's interrupt pin, as far as that is a level.
fn pins(found: &Found) -> Vec<(Bdf, u32)> {
    let functions = found.topology.functions().iter();
    let pins = functions.filter_map(|function| {
        let (root, pin) = found.topology.root_pin(function.bdf)?;
        let interrupt = found.pins.lookup(root, pin)?;
        let level = matches!(interrupt.trigger, Trigger::LevelHigh | Trigger::LevelLow);
        level.then_some((function.bdf, interrupt.number))
    });
    pins.collect()
}

/// The bridges whose windows are known: those of which devices can be given to VMs.
pub(crate) fn found(machine: &machine::Machine, devices: Vec<Topology>) -> Vec<Found> {
    let bridges = devices.into_iter().filter_map(|topology| {
        let mut all = machine.host_bridges.iter();
        let bridge = all.find(|bridge| bridge.segment == topology.segment())?;
        let tables = tables(bridge, machine.rtas.as_ref()?)?;
        Some(Found {
            topology,
            tables,
            pins: bridge.intx.clone(),
            io: io_space(bridge),
        })
    });
    bridges.collect()
}

/// What the device tree says of a host bridge's windows.
fn tables(bridge: &machine::HostBridge, rtas: &machine::Rtas) -> Option<HostBridge> {
    let ConfigAccess::Rtas { buid } = bridge.config else {
        return None;
    };
    let DmaWindow { liobn, base, bytes } = *bridge.dma_window.as_ref()?;
    Some(HostBridge {
        buid,
        config_address: 0,
        liobn,
        base: Iova::truncated(base),
        bytes,
        page: PageSize::SIZE_4K,
        ddw: match &bridge.ddw {
            None => Ddw::None,
            Some(ddw) if ddw.reset.is_some() => Ddw::CreateAndReset,
            Some(_) => Ddw::Create,
        },
        multi: if rtas.has_hypertas("hcall-multi-tce") {
            Multi::Yes
        } else {
            Multi::No
        },
        entries: HostBridge::SENSIBLE_ENTRIES,
    })
}

/// A host bridge: one group, which a VM has whole or not at all.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) buid: u64,
    pub(crate) topology: Topology,
    pub(crate) devices: Vec<(Bdf, DeviceId)>,
    /// Functions whose interrupt pin is a source of the machine's, which no other host bridge has.
    pub(crate) pins: Vec<(Bdf, u32)>,
    /// Its I/O space, whole, where devices of it have registers.
    pub(crate) io: Option<(Pa, u64)>,
    /// The VM that had it last, by its number and one more.
    pub(crate) used: AtomicUsize,
}

/// Who may reach what, and what the VMs see of it: a call of a guest's needs both.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Core,
    /// The windows of each VM that has devices.
    pub(crate) dmas: Vec<vtce::Dma>,
}

/// All host bridges, and the core that says who may reach what.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub(crate) shared: TicketMutex<Shared>,
    pub(crate) bridges: Vec<Bridge>,
    pub(crate) rtas: &'static Rtas,
    pub(crate) messages: Messages,
    /// The most chunks of entries that the windows of a bridge may have: [`vtce::Policy::chunks`].
    pub(crate) chunks: u64,
    /// A block of memory that is all ones, for guests to find where a device does not answer.
    pub(crate) ones: (Pa, u64),
}

/// Devices cannot be given to VMs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("{0}")]
    Core(#[from] Error),
    #[error("{0}")]
    Frames(#[from] OutOfFrames),
    #[error("{0}")]
    Memory(#[from] NotMemory),
}

/// Log2 of the frames of all ones, and their bytes: what one leaf maps.
const ONES_ORDER: u8 = 9;
const ONES_BYTES: u64 = 4096 << ONES_ORDER;

/// What of the heap is never for entries of guests: it is for all else, as much as it was before there were any.
const RESERVE: u64 = 8 << 20;
/// What a bridge takes beside chunks: the directories of a default window and of one of 2^20 entries, the chunks
/// that the books keep for their next use, and 2,048 areas of registers in each of two windows.
const BESIDE_CHUNKS: u64 = 768 << 10;

/// Entries of guests may fill this part of the heap. Each bridge has the same share of it, whoever has the bridge
/// and whether somebody does: so no VM can take another's, nor what the hypervisor itself needs.
fn chunks(bridges: usize) -> u64 {
    let (used, free) = heap::usage();
    let all = ((used + free) as u64).saturating_sub(RESERVE);
    let share = all / (bridges as u64).max(1);
    let chunks = share.saturating_sub(BESIDE_CHUNKS) / Policy::CHUNK_BYTES;
    log::info!("pci: {chunks} chunks of 512 entries for each host bridge");
    chunks
}

impl Hardware {
    /// Takes the host bridges into the core. Their windows are empty, and the default ones.
    #[optimize(size)]
    pub(crate) fn new(
        found: Vec<Found>,
        rtas: &'static Rtas,
        ram: Ram,
        frames: &Frames<Ram>,
    ) -> Result<Self, Failure> {
        let ones = frames.alloc_zeroed(ONES_ORDER)?;
        for at in (0..ONES_BYTES).step_by(8) {
            let at = ones.checked_add(at).ok_or(OutOfFrames {
                frames: 1 << ONES_ORDER,
            })?;
            ram.write_u64(at, u64::MAX)?;
        }
        let chunks = chunks(found.len());
        let described: Vec<HostBridge> = found.iter().map(|found| found.tables).collect();
        // SAFETY: entries are written by the core only, for memory of the VM that has the device.
        let calls = unsafe { Calls::new(rtas) };
        let mut core = Iommu::new(PaprBackend::new(calls, &described)?);
        let mut bridges = Vec::new();
        let pins: Vec<Vec<(Bdf, u32)>> = found.iter().map(pins).collect();
        // Each once for each bridge.
        let mut all_pins = Vec::new();
        for of_bridge in &pins {
            let mut sources: Vec<u32> = of_bridge.iter().map(|(_, source)| *source).collect();
            sources.sort_unstable();
            sources.dedup();
            all_pins.extend(sources);
        }
        let messages = Messages::new(Sources::new(rtas), all_pins.len());
        let mut pins = pins.into_iter();
        for (unit, found) in (0..).zip(found) {
            let mut own = pins.next().unwrap_or_default();
            own.retain(|(bdf, source)| {
                let alone = all_pins.iter().filter(|other| *other == source).count() == 1;
                if !alone {
                    log::warn!(
                        "{bdf}: its pin's interrupt {source:#x} is another bridge's, too: not used"
                    );
                }
                alone
            });
            let group = core.add_group(UnitId::new(unit), Residence::Free)?;
            let mut devices = Vec::new();
            for function in found.topology.functions() {
                if function.bridge().is_some() {
                    continue;
                }
                // The host bridge does not tell its devices apart: all of them are its one source.
                let device = core.add_device(&DeviceDescription {
                    group,
                    sources: &[],
                    aliases: &[0],
                    reserved: &[],
                    path: Path::Redirected,
                    msi: MsiRoute::Checked,
                    coherence: Coherence::Coherent,
                    ats: Ats::Off,
                })?;
                devices.push((function.bdf, device));
            }
            bridges.push(Bridge {
                io: io(&found),
                buid: found.tables.buid,
                topology: found.topology,
                devices,
                pins: own,
                used: AtomicUsize::new(0),
            });
        }
        Ok(Self {
            shared: TicketMutex::new(Shared {
                core,
                dmas: Vec::new(),
            }),
            bridges,
            rtas,
            messages,
            chunks,
            ones: (ones, ONES_BYTES),
        })
    }
}
