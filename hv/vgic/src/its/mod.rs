//! The ITS a guest sees: how a device's message becomes an LPI of a vCPU.
//!
//! Key types: [`Vits`] (one a VM), [`DeviceEvents`] (a device the VM has), [`GuestMemory`] (the seam
//! through which commands are read), [`Outcome`]. The guest programs it by commands in its memory;
//! it never reaches a physical ITS. Everything it maps is in structures of ours whose size
//! follows from the VM's devices.
//!
//! # How the arch crate uses it
//!
//! * Once a VM: `let vits = Arc::new(Vits::new(&ItsConfig { vcpus, devices })?)`, then
//!   `Vgic::new(…)?.with_lpis(vits.clone())`. The arch crate keeps the `Arc` and a [`GuestMemory`] over
//!   the VM's RAM.
//! * A trapped access in the [`ITS_BYTES`] of the frame (control frame, then translation frame):
//!   [`Vits::read`], [`Vits::write`].
//! * After [`Vits::write`], [`Vits::run`], [`Vits::send`] and [`Vits::signal`]:
//!   `let kicks = vgic.post_lpis_to(outcome.post())`, then kick as for any other [`Kicks`].
//! * While [`Vits::has_work`]: call [`Vits::run`] again before the guest's next entry, on any vCPU. One
//!   call does a bounded number of commands ([`Outcome::is_done`] says whether any are left); in between
//!   the vCPU can be interrupted. Ask after a write of a redistributor register too:
//!   when a vCPU enables LPIs, their configuration is read by the next `run`.
//! * A guest's MSI data names an event of a device: [`Vits::message`] says which [`Message`] that is, once.
//! * A physical LPI came in that is such a message: `vgic.post_lpis_to(vits.send(message))`. It takes constant
//!   time. ([`Vits::signal`] does both, for messages of nobody's device: an SMMU's own.)
//!   On a core that has a vCPU of the VM, [`Vgic::deliver`](crate::Vgic::deliver) is tried first: where the
//!   message is for that vCPU and a list register is free, that is all there is to do.
//! * VM restart: [`Vits::reset`] beside [`Vgic::reset`](crate::Vgic::reset), in any order.
//!
//! **Locks**: vCPU interface → distributor (both of [`Vgic`](crate::Vgic)) → mapping → pending. `Vits` has
//! the last two, holds the first of them for one command at most, and never calls the `Vgic`. A
//! [`GuestMemory`] is called with the mapping lock held, so it must not call either.
//!
//! # What the guest is told
//!
//! What is not listed reads as zero and ignores writes. 64-bit registers answer at 64 bits and in
//! halves of 32.
//!
//! | register | bits | field | value | meaning |
//! |---|---|---|---|---|
//! | `GITS_CTLR` | 0 | `Enabled` | rw | 0 at reset |
//! | `GITS_CTLR` | 31 | `Quiescent` | 1 | whenever it is disabled |
//! | `GITS_IIDR` | 31:24 | `ProductID` | 0x42 | as `GICD_IIDR` |
//! | `GITS_TYPER` | 0 | `Physical` | 1 | physical LPIs |
//! | `GITS_TYPER` | 1 | `Virtual` | 0 | nothing of GICv4 |
//! | `GITS_TYPER` | 7:4 | `ITT_entry_size` | 7 | eight bytes an event |
//! | `GITS_TYPER` | 12:8 | `ID_bits` | 15 | EventIDs of 16 bits |
//! | `GITS_TYPER` | 17:13 | `Devbits` | 15 | DeviceIDs of 16 bits |
//! | `GITS_TYPER` | 18 | `SEIS` | 0 | no SError for a bad command |
//! | `GITS_TYPER` | 19 | `PTA` | 0 | a target is `GICR_TYPER.Processor_Number` |
//! | `GITS_TYPER` | 31:24 | `HCC` | 0 | collections are in the table |
//! | `GITS_TYPER` | 35:32 | `CIDbits` | 5 | collection IDs of 6 bits |
//! | `GITS_TYPER` | 36 | `CIL` | 1 | `CIDbits` counts |
//! | `GITS_CBASER` | all | | rw | while disabled; `CREADR` and `CWRITER` go to zero |
//! | `GITS_CWRITER` | 19:5 | `Offset` | rw | ignored beyond the queue |
//! | `GITS_CWRITER` | 0 | `Retry` | wo | goes on after a stall |
//! | `GITS_CREADR` | 0 | `Stalled` | ro | a command could not be read |
//! | `GITS_BASER0` | 58:56 | `Type` | 1 | devices; flat or two-level |
//! | `GITS_BASER0` | 52:48 | `Entry_Size` | 7 | eight bytes |
//! | `GITS_BASER1` | 58:56 | `Type` | 4 | collections; flat |
//! | `GITS_BASER1` | 52:48 | `Entry_Size` | 7 | eight bytes |
//! | `GITS_PIDR2` | 7:4 | `ArchRev` | 3 | GICv3 |
//!
//! # What is exact, and what is chosen
//!
//! * Commands: `MAPD MAPC MAPTI MAPI MOVI MOVALL INT CLEAR DISCARD INV INVALL SYNC`. Each is read
//!   once; what the guest writes later has no effect.
//! * A command that is wrong (unknown, an ID out of range or not mapped) is skipped; the architecture
//!   leaves the choice between that and a stall to the ITS. It is counted ([`Vits::faults`]).
//!   A command that cannot be *read* stalls the queue with `GITS_CREADR.Stalled`.
//! * The memory behind `GITS_BASER<n>` and behind `MAPD` is neither read nor written. Its size
//!   bounds DeviceIDs and collection IDs as it does on hardware. A new value of a `BASER` empties the
//!   table; `BASER` and `CBASER` ignore writes while the ITS is enabled.
//! * DeviceIDs exist for the VM's devices alone. A device has at most the events it was created with:
//!   a larger table in `MAPD` is accepted, the events beyond do not exist.
//! * INTIDs have [`INTID_BITS`] bits: LPIs 8192 to 16383. Two events never share an LPI: the second
//!   `MAPTI` is skipped.
//! * `MAPTI` for an event that is mapped, which the architecture leaves open: to another LPI, or to a
//!   collection that is nowhere, it is as after `DISCARD`; to the same LPI it is a `MOVI`, with what is
//!   pending. (KVM's ITS keeps the old mapping, `arch/arm64/kvm/vgic/vgic-its.c`.)
//! * The LPI configuration table is read at `MAPTI`, `INV`, `INVALL`, at `MAPC` and when a vCPU enables
//!   LPIs; in between, changes of it have no effect. What is not RAM, or beyond
//!   `GICR_PROPBASER.IDbits`, counts as disabled.
//! * The pending table is neither read nor written: pending state lives here. It is lost when a vCPU
//!   disables LPIs.
//! * An LPI that a vCPU has in a list register while another vCPU moves, clears or discards it
//!   may reach its handler until the vCPU has been kicked, which [`Outcome::post`] asks for.
//! * `GITS_TRANSLATER` ignores writes of CPUs: messages come from devices, by [`Vits::signal`].

use alloc::{boxed::Box, vec};
use core::sync::atomic::{AtomicBool, Ordering};

use hal::Mutex;
use types::Ipa;

use crate::{FIRST_LPI, Kicks, Lpi, LpiSource, LpiTables, MAX_VCPUS, Width, bits::low};

mod command;
mod execute;
mod pending;
mod registers;
mod tables;

use pending::Pending;
use registers::{Effect, Registers};
use tables::{Route, Tables};

/// Bytes of an ITS: the control frame, then the translation frame.
pub const ITS_BYTES: u64 = 0x2_0000;
/// The doorbell `GITS_TRANSLATER`, in bytes from the start of the control frame.
pub const TRANSLATER: u64 = 0x1_0040;
/// Bits of an INTID: LPIs are 8192 to 16383.
pub const INTID_BITS: u32 = 14;
/// How many LPIs there are.
const LPIS: usize = 8192;
/// How many collections there are.
const COLLECTIONS: usize = 64;
/// What one call of [`Vits::run`] may cost, in commands that take constant time. With 64 of them the
/// guest waits as long as for a few dozen traps, and the hypervisor is not kept from its interrupts.
const BUDGET: u32 = 64;
/// What a command that looks at many LPIs counts for.
const COSTLY: u32 = 32;

/// Guest memory, as an ITS reads it.
pub trait GuestMemory {
    /// Copies `into.len()` bytes from `at`, once.
    ///
    /// # Errors
    /// [`NotRam`] when any byte is not RAM of the guest.
    fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), NotRam>;
}

/// An address that is not RAM of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at} is not RAM of the guest")]
pub struct NotRam {
    /// Where the access started.
    pub at: Ipa,
}

/// A message of a device: which event it is, of all that the VM's devices have. See [`Vits::message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message(u16);

impl Message {
    /// Of no device of the VM's: it goes nowhere.
    pub const NONE: Self = Self(u16::MAX);

    /// It as a number.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// What [`Message::bits`] gave. Any other number is a message that may go nowhere.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

/// A device whose messages a guest may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEvents {
    /// The DeviceID the guest knows it by, 16 bits: its requester ID.
    pub device: u32,
    /// How many events it can have: its MSI or MSI-X vectors. EventIDs are 0 to `events - 1`.
    pub events: u32,
}

/// What a guest's ITS is made for.
#[derive(Clone, Copy, Debug)]
pub struct ItsConfig<'a> {
    /// How many vCPUs the VM has: 1 to [`MAX_VCPUS`].
    pub vcpus: usize,
    /// The devices of the VM.
    pub devices: &'a [DeviceEvents],
}

/// A refusal to build a [`Vits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItsError {
    /// The number of vCPUs is zero or above [`MAX_VCPUS`].
    #[error("{vcpus} vCPUs: 1 to 64 are possible")]
    VcpuCount {
        /// What was asked for.
        vcpus: usize,
    },
    /// A DeviceID has more than 16 bits.
    #[error("DeviceID {device:#x} has more than 16 bits")]
    DeviceId {
        /// The DeviceID.
        device: u32,
    },
    /// Two devices have one DeviceID.
    #[error("two devices have the DeviceID {device:#x}")]
    SameDevice {
        /// The DeviceID.
        device: u32,
    },
    /// The devices have more events than there are LPIs.
    #[error("the devices have more than 8192 events")]
    TooManyEvents,
}

/// What is wrong with a guest's command. It was skipped, or could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandFault {
    /// No such command.
    #[error("unknown command {opcode:#x}")]
    Unknown {
        /// The command's number.
        opcode: u32,
    },
    /// The VM has no such device, the device table no room for it, or it is not mapped.
    #[error("device {device:#x} does not exist or is not mapped")]
    Device {
        /// The DeviceID.
        device: u32,
    },
    /// The device has no such event, or it is not mapped.
    #[error("event {event:#x} of device {device:#x} does not exist or is not mapped")]
    Event {
        /// The DeviceID.
        device: u32,
        /// The EventID.
        event: u32,
    },
    /// `MAPD` with EventIDs of more bits than `GITS_TYPER.ID_bits` says.
    #[error("an interrupt translation table for {bits} bits of EventID")]
    EventBits {
        /// What was asked for.
        bits: u32,
    },
    /// The collection is out of range, beyond its table, or not mapped.
    #[error("collection {collection} does not exist or is not mapped")]
    Collection {
        /// The collection's ID.
        collection: u16,
    },
    /// The INTID is not an LPI.
    #[error("INTID {intid} is not an LPI")]
    Intid {
        /// The INTID.
        intid: u32,
    },
    /// Another event is mapped to the LPI.
    #[error("INTID {intid} belongs to another event")]
    Taken {
        /// The INTID.
        intid: u32,
    },
    /// There is no such vCPU.
    #[error("vCPU {vcpu} does not exist")]
    Vcpu {
        /// The processor number the command names.
        vcpu: u64,
    },
    /// The command is not in RAM: the queue has stalled.
    #[error("a command at {at:#x}, which is not RAM")]
    NotRam {
        /// Where it would be, as an IPA.
        at: u64,
    },
}

/// What a call leaves to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "vCPUs whose LPIs changed have to be told"]
pub struct Outcome {
    post: Kicks,
    done: bool,
}

impl Outcome {
    const NOTHING: Self = Self {
        post: Kicks::NONE,
        done: true,
    };

    /// The vCPUs for [`Vgic::post_lpis_to`](crate::Vgic::post_lpis_to).
    pub const fn post(self) -> Kicks {
        self.post
    }

    /// Whether all commands are done; if not, [`Vits::run`] goes on.
    #[must_use]
    pub const fn is_done(self) -> bool {
        self.done
    }
}

#[derive(Debug)]
struct State {
    registers: Registers,
    tables: Tables,
    /// For each vCPU, where it has its LPI tables; `None` while it has LPIs disabled.
    lpi_tables: Box<[Option<LpiTables>]>,
    /// vCPUs that enabled LPIs, and whose configuration table has yet to be read.
    unread: Kicks,
    faults: u64,
    last_fault: Option<CommandFault>,
}

/// A VM's ITS.
///
/// All methods take `&self` and may be called from any core. Nothing is allocated after creation.
#[derive(Debug)]
pub struct Vits {
    state: Mutex<State>,
    /// Locked after `state`, never before.
    pending: Pending,
    /// [`Vits::run`] has something to do.
    work: AtomicBool,
}

impl Vits {
    /// An ITS at reset.
    ///
    /// # Errors
    /// [`ItsError`] when the configuration is beyond what it can be.
    pub fn new(config: &ItsConfig<'_>) -> Result<Self, ItsError> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(ItsError::VcpuCount {
                vcpus: config.vcpus,
            });
        }
        Ok(Self {
            state: Mutex::new(State {
                registers: Registers::RESET,
                tables: Tables::new(config.devices)?,
                lpi_tables: vec![None; config.vcpus].into_boxed_slice(),
                unread: Kicks::NONE,
                faults: 0,
                last_fault: None,
            }),
            pending: Pending::new(config.vcpus),
            work: AtomicBool::new(false),
        })
    }

    /// Back to the state at creation, for a VM that starts again. No vCPU of the VM may be in the
    /// guest.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.registers = Registers::RESET;
        state.tables.unmap_devices(|_| {});
        state.tables.unmap_collections();
        state.lpi_tables.fill(None);
        state.unread = Kicks::NONE;
        state.faults = 0;
        state.last_fault = None;
        self.pending.open().reset();
        self.work.store(false, Ordering::Release);
    }

    /// Reads at `offset` of the two frames.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        match control_offset(offset) {
            Some(offset) => self.state.lock().registers.read(offset, width),
            None => 0,
        }
    }

    /// Writes at `offset` of the two frames, and does commands as [`Vits::run`] does if that starts
    /// any.
    pub fn write(
        &self,
        memory: &dyn GuestMemory,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Outcome {
        let Some(offset) = control_offset(offset) else {
            return Outcome::NOTHING;
        };
        let mut state = self.state.lock();
        let mut post = Kicks::NONE;
        match state.registers.write(offset, width, value) {
            Effect::Nothing => {}
            Effect::Work => {
                drop(state);
                return self.run(memory);
            }
            Effect::NoDevices => {
                let mut pending = self.pending.open();
                state
                    .tables
                    .unmap_devices(|lpi| post = post.union(pending.forget(lpi)));
            }
            Effect::NoCollections => state.tables.unmap_collections(),
        }
        self.work.store(state.has_work(), Ordering::Release);
        Outcome { post, done: true }
    }

    /// Whether [`Vits::run`] has something to do. One atomic load, no lock.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.work.load(Ordering::Acquire)
    }

    /// Does commands, but no more than 64, or fewer if they take long.
    pub fn run(&self, memory: &dyn GuestMemory) -> Outcome {
        let mut budget = BUDGET;
        let mut post = Kicks::NONE;
        while budget != 0 {
            let mut state = self.state.lock();
            let Some((cost, kicks)) = state.step(memory, &self.pending) else {
                self.work.store(false, Ordering::Release);
                return Outcome { post, done: true };
            };
            post = post.union(kicks);
            budget = budget.saturating_sub(cost);
            let done = !state.has_work();
            self.work.store(!done, Ordering::Release);
            if done {
                return Outcome { post, done };
            }
        }
        Outcome { post, done: false }
    }

    /// A device wrote `event` to the doorbell. Returns whom to tell by
    /// [`Vgic::post_lpis_to`](crate::Vgic::post_lpis_to): nobody when the guest has mapped no such
    /// event, when the LPI waits already, or when it is disabled and only becomes pending.
    #[inline]
    pub fn signal(&self, device: u32, event: u32) -> Kicks {
        let state = self.state.lock();
        if !state.registers.is_enabled() {
            return Kicks::NONE;
        }
        match state.tables.route(device, event) {
            Ok(Route {
                lpi,
                vcpu: Some(vcpu),
                ..
            }) => self.pending.open().pend(lpi, vcpu),
            _ => Kicks::NONE,
        }
    }

    /// The message that is this event of a device, the same for as long as there is this ITS; it costs less to send than
    /// to look up. [`Message::NONE`] when the device is not the VM's or cannot have the event.
    #[must_use]
    pub fn message(&self, device: u32, event: u32) -> Message {
        let place = self.state.lock().tables.place_of(device, event);
        place.map_or(Message::NONE, Message)
    }

    /// [`Vits::signal`] of a message.
    pub fn send(&self, message: Message) -> Kicks {
        let state = self.state.lock();
        if !state.registers.is_enabled() {
            return Kicks::NONE;
        }
        match state.tables.target(message.0) {
            Some((lpi, vcpu)) => self.pending.open().pend(lpi, vcpu),
            None => Kicks::NONE,
        }
    }

    /// [`Vits::send`] and [`LpiSource::take`] in one: the LPI goes straight into a list register of
    /// `vcpu`, which takes LPIs, if it is for that one, enabled, waits nowhere, and `place` has room. Otherwise
    /// nothing changes.
    #[inline]
    pub(crate) fn pass(&self, message: Message, vcpu: u8, place: impl FnOnce(Lpi) -> bool) -> bool {
        let state = self.state.lock();
        if !state.registers.is_enabled() {
            return false;
        }
        match state.tables.target(message.0) {
            Some((lpi, target)) if target == vcpu => self.pending.open().pass(lpi, vcpu, place),
            _ => false,
        }
    }

    /// How many commands were wrong since creation or reset, and what was wrong with the last.
    #[must_use]
    pub fn faults(&self) -> (u64, Option<CommandFault>) {
        let state = self.state.lock();
        (state.faults, state.last_fault)
    }
}

impl LpiSource for Vits {
    fn intid_bits(&self) -> u32 {
        INTID_BITS
    }

    fn set_tables(&self, vcpu: usize, tables: Option<LpiTables>) {
        let mut state = self.state.lock();
        let this = Kicks::of(u32::try_from(vcpu).unwrap_or(u32::MAX));
        if let Some(slot) = state.lpi_tables.get_mut(vcpu) {
            *slot = tables;
        }
        let mut pending = self.pending.open();
        if tables.is_some() {
            state.unread = state.unread.union(this);
            pending.accept(vcpu);
        } else {
            pending.refuse(vcpu);
        }
        drop(pending);
        self.work.store(state.has_work(), Ordering::Release);
    }

    #[inline]
    fn first(&self, vcpu: usize) -> Option<Lpi> {
        self.pending.first(vcpu)
    }

    #[inline]
    fn take(&self, vcpu: usize, intid: u32) {
        if let (Some(lpi), Ok(vcpu)) = (index_of(intid), u8::try_from(vcpu)) {
            self.pending.open().take(lpi, vcpu);
        }
    }

    #[inline]
    fn give_back(&self, vcpu: usize, intid: u32) -> Kicks {
        match (index_of(intid), u8::try_from(vcpu)) {
            (Some(lpi), Ok(vcpu)) => self.pending.open().give_back(lpi, vcpu),
            _ => Kicks::NONE,
        }
    }
}

/// The offset in the control frame; the translation frame has nothing for CPUs.
fn control_offset(offset: u64) -> Option<u32> {
    (offset < ITS_BYTES >> 1).then(|| low(offset))
}

/// An LPI counted from the first.
#[inline]
fn index_of(intid: u32) -> Option<u16> {
    let index = u16::try_from(intid.checked_sub(FIRST_LPI)?).ok()?;
    (usize::from(index) < LPIS).then_some(index)
}
