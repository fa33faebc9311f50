//! A guest with devices that master the bus: it uses them, and tries to reach with them what is not its.
//!
//! The devices are QEMU's `edu`, any number on bus 0. The first word of the command line says what to
//! do; each ends with one line, `dma verdict: NAME ok: …` or `dma verdict: NAME FAILED: …`, and says
//! `dma beat N` now and then.
//!
//! | word | what |
//! |---|---|
//! | `probe` | BAR sized and moved, DMA both ways with the data compared, MSI by the ITS, INTx (`intx=INTID`) |
//! | `sweep` | DMA to and from every `step` bytes (2 MiB) below `top` (4 GiB) and chosen places; `own=BYTES` of memory count as the guest's own |
//! | `config-fuzz` | `ops` random accesses to configuration space, `seed` |
//! | `its-flood` | `ops` commands and register accesses that an ITS must survive, `seed`; with two CPUs messages race with them, and writes of another function's MSI-X table |
//! | `forge` | messages with numbers and addresses that were not given, plain DMA to the doorbell |
//! | `storm` | `rounds` of refused DMA from all devices without a pause, then messages; `stage1=1` has an SMMU of the guest's own refuse it |
//! | `share` | how far it comes in `windows` of time, while its devices flood (`flood`, `idle`, `messages` of them) or another's do |
//! | `linger` | goes off (`reset=1`: starts anew) `after_us` into a DMA that is to interrupt; the next life must notice neither. Lives are told apart by nothing, the host counts |
//! | `watch` | has memory and a device that others want, for `beats` periods; both must stay as they are |
//! | `wire` | INTx as the interrupt `intid`: turned off, left up for `hold` interrupts, shared by two devices |
//! | `peer` | DMA of a device to registers of another: `reach=1` the first one's may be reached; `elsewhere=ADDRESS` may not |
//! | `table` | DMA to an MSI-X table: `at=ADDRESS` somebody else's; without, of a function of the guest's own, where `reach=1` it arrives |
//! | `latency` | from a device's write of a message to the handler, in ticks |
//! | `smmu` | an SMMU of the guest's own: stage 1, its faults |
//! | `smmu-attacks` | what can be tried against an SMMU, one after the other, each with what must become of it (a hypervisor's) |
//! | `smmu-flood` | refused DMA of all devices for `rounds`, by entries that are not valid or (`stage1=1`) without a mapping; then all works |
//! | `smmu-watch` | a refused DMA for each of `beats` periods, which must be told, and nothing else |
//! | `smmu-leave` | queues longer than a call does of them: their ends are waited for by a word or asleep, with nothing else that would leave the guest; `only` one of the four |
//! | `smmu-hostile` | entries, queues and registers that an SMMU must survive, `ops`, `seed` |
//!
//! It runs on QEMU's `virt` machine without a hypervisor, too. There a sweep finds what it should not,
//! which is its control.
#![no_std]
#![no_main]

mod config;
mod flood;
mod forge;
mod hitless;
mod latency;
mod leave;
mod linger;
mod memory;
mod peer;
mod probe;
mod share;
mod smmu;
mod smmu_attacks;
mod smmu_flood;
mod smmu_hostile;
mod storm;
mod sweep;
mod table;
mod watch;
mod wire;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::edu::{self, Edu};
use guests::exception::{Frame, Kind};
use guests::its::{self, Its, Stuck};
use guests::options::Options;
use guests::pci::Function;
use guests::platform::{self, VIRTUAL_TIMER};
use guests::{cpu, gic, guest, mmio, println, psci};

guest! { main: main, secondary: secondary, exception: exception }

/// Devices that are used.
const MOST_DEVICES: usize = 8;
/// LPIs that are counted: device `n` has the LPI 8192 + `n`.
const LPIS: usize = 32;
/// Shared interrupts that are counted.
const SHARED: usize = 128;
/// Aborts of accesses that nobody tries on purpose.
const MOST_ABORTS: u64 = 1_000_000;

/// What came in.
struct Received {
    lpis: [AtomicU64; LPIS],
    shared: [AtomicU64; SHARED],
    /// LPIs that no device has.
    strange: AtomicU64,
    /// When the last LPI reached its vector.
    entered: AtomicU64,
    aborts: AtomicU64,
}

static RECEIVED: Received = Received {
    lpis: [const { AtomicU64::new(0) }; LPIS],
    shared: [const { AtomicU64::new(0) }; SHARED],
    strange: AtomicU64::new(0),
    entered: AtomicU64::new(0),
    aborts: AtomicU64::new(0),
};

/// Aborts are counted instead of being the end.
static TOLERANT: AtomicBool = AtomicBool::new(false);

/// Shared interrupts are let in again at once until so many have come.
static TAKEN_IN: AtomicU64 = AtomicU64::new(0);

/// What the second CPU does: it sends messages, or rewrites queues.
static ROLE: AtomicU64 = AtomicU64::new(ROLE_MESSAGES);
const ROLE_MESSAGES: u64 = 0;
const ROLE_QUEUES: u64 = 1;
const ROLE_TRAFFIC: u64 = 2;
const ROLE_ATTACKS: u64 = 3;
const ROLE_LEAVES: u64 = 4;
const ROLE_MESSENGER: u64 = 5;

/// Why a guest fails: what, and up to three numbers that show it.
#[derive(Clone, Copy, Debug)]
struct Failure(&'static str, [u64; 3]);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.1;
        write!(f, "{} ({a:#x} {b:#x} {c:#x})", self.0)
    }
}

impl From<&'static str> for Failure {
    fn from(what: &'static str) -> Self {
        Self(what, [0; 3])
    }
}

impl From<edu::Timeout> for Failure {
    fn from(_: edu::Timeout) -> Self {
        "a device does not end what it does".into()
    }
}

impl From<Stuck> for Failure {
    fn from(stuck: Stuck) -> Self {
        Self(
            "the ITS does not consume commands: CREADR, CWRITER",
            [stuck.read, stuck.write, 0],
        )
    }
}

impl From<guests::smmu::Fault> for Failure {
    fn from(fault: guests::smmu::Fault) -> Self {
        use guests::smmu::Fault;
        match fault {
            Fault::Absent => "there is no SMMU with a stage 1".into(),
            Fault::Tables => "no room for tables".into(),
            Fault::Register(at, wanted, found) => {
                let numbers = [at as u64, wanted.into(), found.into()];
                Self(
                    "an SMMU register does not follow: offset, wanted, found",
                    numbers,
                )
            }
            Fault::Commands(produced, consumed, error) => {
                let numbers = [produced.into(), consumed.into(), error.into()];
                Self(
                    "the SMMU does not consume commands: PROD, CONS, GERROR",
                    numbers,
                )
            }
        }
    }
}

/// What a task says at its end.
type Verdict = Result<Summary, Failure>;

/// A good end: up to six numbers with names.
#[derive(Clone, Copy, Debug, Default)]
struct Summary([Option<(&'static str, u64)>; 6]);

impl Summary {
    fn new(numbers: &[(&'static str, u64)]) -> Self {
        let mut all = [None; 6];
        for (place, &number) in all.iter_mut().zip(numbers) {
            *place = Some(number);
        }
        Self(all)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, number)) in self.0.iter().flatten().enumerate() {
            write!(f, "{}{name}={number}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// A thing to do.
type Task = fn(&Options) -> Verdict;

/// What there is to do.
const TASKS: [(&str, Task); 20] = [
    ("probe", probe::run),
    ("sweep", sweep::run),
    ("config-fuzz", config::run),
    ("its-flood", flood::run),
    ("forge", forge::run),
    ("storm", storm::run),
    ("share", share::run),
    ("linger", linger::run),
    ("watch", watch::run),
    ("wire", wire::run),
    ("peer", peer::run),
    ("table", table::run),
    ("latency", latency::run),
    ("smmu", smmu::run),
    ("smmu-hostile", smmu_hostile::run),
    ("smmu-attacks", smmu_attacks::run),
    ("smmu-flood", smmu_flood::run),
    ("smmu-watch", smmu_flood::watch),
    ("hitless", hitless::run),
    ("smmu-leave", leave::run),
];

fn main(options: Options) -> ! {
    gic::start_distributor();
    gic::start_cpu(1 << VIRTUAL_TIMER);
    // The word itself is in memory that a task may fill.
    let wanted = options.command().unwrap_or("probe");
    let Some((name, task)) = TASKS.into_iter().find(|(name, _)| *name == wanted) else {
        panic!("there is nothing called {wanted}");
    };
    println!("dma start: {name}, {} MiB", options.memory() >> 20);
    match task(&options) {
        Ok(summary) => println!("dma verdict: {name} ok: {summary}"),
        Err(failure) => println!("dma verdict: {name} FAILED: {failure}"),
    }
    psci::system_off()
}

fn secondary(_: usize) -> ! {
    gic::start_cpu(1 << VIRTUAL_TIMER);
    match ROLE.load(Ordering::SeqCst) {
        ROLE_MESSAGES => flood::second_cpu(),
        ROLE_TRAFFIC => hitless::second_cpu(),
        ROLE_ATTACKS => smmu_attacks::second_cpu(),
        ROLE_LEAVES => leave::second_cpu(),
        ROLE_MESSENGER => share::second_cpu(),
        _ => smmu_hostile::second_cpu(),
    }
}

fn exception(frame: &mut Frame) {
    match frame.kind() {
        Kind::Irq => interrupt(frame.entered),
        // What was tried may not be there.
        Kind::Synchronous | Kind::SError if TOLERANT.load(Ordering::SeqCst) => {
            let aborts = RECEIVED.aborts.fetch_add(1, Ordering::SeqCst);
            assert!(
                aborts < MOST_ABORTS,
                "aborts without end, at {:#x}",
                frame.pc
            );
            if frame.kind() == Kind::Synchronous {
                frame.skip();
            }
        }
        kind => panic!(
            "{kind:?} at {:#x}, esr {:#x}, far {:#x}",
            frame.pc,
            guests::read_register!("esr_el1"),
            guests::read_register!("far_el1")
        ),
    }
}

fn interrupt(entered: u64) {
    let intid = gic::acknowledge();
    match intid {
        VIRTUAL_TIMER => cpu::stop_timer(),
        // It was withdrawn meanwhile.
        1020..1024 => return,
        _ => {
            if let Some(index) = its::lpi_index(intid) {
                RECEIVED.entered.store(entered, Ordering::SeqCst);
                match RECEIVED.lpis.get(index) {
                    Some(count) => count.fetch_add(1, Ordering::SeqCst),
                    None => RECEIVED.strange.fetch_add(1, Ordering::SeqCst),
                };
            } else if let Some(count) = RECEIVED.shared.get(intid as usize) {
                RECEIVED.entered.store(entered, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                // A wire that stays up would come again at once: whoever waits for it lets it in again.
                if intid >= 32 && shared(intid) >= TAKEN_IN.load(Ordering::SeqCst) {
                    gic::disable_shared(intid);
                }
            }
        }
    }
    gic::end(intid);
}

/// How many LPIs a device has sent.
fn lpis(index: usize) -> u64 {
    RECEIVED
        .lpis
        .get(index)
        .map_or(0, |count| count.load(Ordering::SeqCst))
}

/// How often a shared interrupt came.
fn shared(intid: u32) -> u64 {
    RECEIVED
        .shared
        .get(intid as usize)
        .map_or(0, |count| count.load(Ordering::SeqCst))
}

/// Does something that may abort; `None` if it did.
fn attempt<T>(access: impl FnOnce() -> T) -> Option<T> {
    let before = RECEIVED.aborts.load(Ordering::SeqCst);
    TOLERANT.store(true, Ordering::SeqCst);
    let value = access();
    // An abort of a store may come late.
    mmio::barrier();
    TOLERANT.store(false, Ordering::SeqCst);
    (RECEIVED.aborts.load(Ordering::SeqCst) == before).then_some(value)
}

/// The devices of the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Devices {
    all: [Option<Edu>; MOST_DEVICES],
}

impl Devices {
    /// All `edu`s, with their BARs placed one after the other.
    fn open() -> Result<Self, Failure> {
        let mut devices = Self::default();
        let functions = Function::with_ids(edu::IDS);
        for (index, (place, function)) in devices.all.iter_mut().zip(functions).enumerate() {
            let edu = Edu::open(function, bar_address(index))?;
            if !edu.is_there() {
                return Err(Failure(
                    "a device does not answer as an edu does",
                    [function.0.into(), 0, 0],
                ));
            }
            *place = Some(edu);
        }
        if devices.all[0].is_none() {
            return Err("there is no edu on bus 0".into());
        }
        Ok(devices)
    }

    fn iter(&self) -> impl Iterator<Item = Edu> + use<'_> {
        self.all.iter().flatten().copied()
    }

    fn count(&self) -> u64 {
        self.iter().count() as u64
    }

    fn first(&self) -> Edu {
        // `open` has made sure that there is one.
        self.iter().next().unwrap_or_else(|| panic!("no device"))
    }
}

/// Where the BAR of the n-th device goes: 16 MiB into the window, 2 MiB each.
const fn bar_address(index: usize) -> usize {
    platform::PCI_WINDOW + 0x100_0000 + 0x20_0000 * index
}

/// The ITS with the message of each device routed: device `n` sends event 0, LPI 8192 + `n`.
fn start_messages(devices: &Devices) -> Result<Its, Failure> {
    if !Its::start_lpis(memory::ITS) {
        return Err("LPIs cannot be turned on".into());
    }
    let mut its = Its::start(memory::ITS);
    for (index, edu) in devices.iter().enumerate() {
        let lpi = its::FIRST_LPI + u32::try_from(index).unwrap_or(0);
        its.route(edu.function.0.into(), index as u64, 0, lpi)?;
        let msi = edu.msi().ok_or("edu has no MSI capability")?;
        msi.enable(platform::DOORBELL as u64, 0);
    }
    Ok(its)
}

/// Waits until device `index` has sent `wanted` messages.
fn await_lpis(index: usize, wanted: u64) -> Result<(), Failure> {
    let end = cpu::now().saturating_add(cpu::ticks(2_000_000));
    if cpu::wait_until(end, || lpis(index) >= wanted) {
        Ok(())
    } else {
        Err(Failure(
            "a message does not arrive: device, wanted, came",
            [index as u64, wanted, lpis(index)],
        ))
    }
}
