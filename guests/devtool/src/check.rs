//! `devtool vfio`: drives an `edu` through mappings of its own, and shows what happens outside of them.
//!
//! Each step says what it found. Those that must work are the control for those that must not, and the other
//! way round: the log must have an event for each DMA that is refused, and none for one that is not.

use core::time::Duration;

use devtool::edu::{AtTheEnd, DMA_DONE, Direction, Edu};
use devtool::event::{Event, F_PERMISSION, F_TRANSLATION};

use crate::abi::barrier;
use crate::linux::{Arguments, Errno, File, Memory, sleep};
use crate::log::{Log, QUIET};
use crate::vfio::{Access, Container, Device};
use crate::{Failure, println};

/// Below the window for messages, with nothing behind its end.
pub(crate) const FIRST: u64 = 0x0400_0000;
/// Right behind the window.
pub(crate) const SECOND: u64 = 0x0810_0000;
/// The window: nothing of a program's can be in it. [Linux, drivers/iommu/arm/arm-smmu-v3, MSI_IOVA_BASE]
const WINDOW: u64 = 0x0800_0000;
/// Bytes of each piece of memory: a page, whatever the kernel calls one.
const BYTES: usize = 0x1_0000;
/// Bytes of a DMA that must work, and of one that must not: one access, so one event. The kernel writes no
/// more than ten in five seconds to its log.
pub(crate) const LONG: u64 = 4096;
const SHORT: u64 = 4;
/// Where in a piece of memory a DMA goes.
pub(crate) const AT: usize = 0x3000;
/// What the second piece's bytes differ by from the first one's.
const OTHER: u64 = 100;

/// How long a DMA takes, and how often a wait looks.
const DMA: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_millis(10);
/// Looks at most: 5 s, fifty times what a DMA takes, because a machine may be busy.
const LOOKS: u32 = 500;
/// A device, its memory, where that is mapped, and who tells of faults.
pub(crate) struct Bench {
    pub(crate) edu: Edu<Device>,
    pub(crate) log: Log,
    pub(crate) container: Container,
    /// At [`FIRST`].
    pub(crate) first: Memory,
    /// At [`SECOND`].
    pub(crate) second: Memory,
    /// The device's stream: its requester ID.
    stream: u64,
}

/// Does all of it.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let (Some(function), Some(group)) = (arguments.get(2), arguments.get(3)) else {
        return Err(Failure::Usage);
    };
    let mut bench = Bench::open(function, group)?;
    match bench.container.map(&bench.first, WINDOW, Access::ReadWrite) {
        Err(Errno::INVALID) => println!("devtool: the window for messages is refused to a program"),
        Err(error) => return Err(not_mapped(error)),
        Ok(()) => {
            return Err(Failure::Wrong(
                "memory was mapped over the window for messages",
            ));
        }
    }

    bench.copies(1)?;
    bench.interrupts()?;
    let end = FIRST + BYTES as u64;
    bench.refused("behind a mapping", Direction::Write, end, F_TRANSLATION)?;
    bench.refused("behind a mapping", Direction::Read, end, F_TRANSLATION)?;
    let before = FIRST - SHORT;
    bench.refused("before a mapping", Direction::Write, before, F_TRANSLATION)?;

    // What a translation was cached for a moment ago.
    let place = SECOND + AT as u64;
    bench.container.unmap(&bench.second, SECOND)?;
    bench.without_a_trace("where memory was", place, F_TRANSLATION)?;
    bench.map_second(Access::Read)?;
    bench.without_a_trace("to memory for reading", place, F_PERMISSION)?;
    bench.run(Direction::Read, place, LONG)?;
    bench.log.quiet()?;
    println!("devtool: the same memory can be read");
    bench.container.unmap(&bench.second, SECOND)?;
    bench.map_second(Access::ReadWrite)?;
    bench.copies(2)?;
    println!("devtool: ok: DMA reaches what is mapped and nothing else");
    Ok(())
}

fn not_mapped(error: Errno) -> Failure {
    Failure::Call("memory cannot be mapped", error)
}

impl Bench {
    /// Takes an `edu` and its group, and maps memory for it in both places.
    ///
    /// # Errors
    /// The kernel's, or it is no `edu`.
    pub(crate) fn open(function: &str, group: &str) -> Result<Self, Failure> {
        let stream = requester(function).ok_or(Failure::Usage)?;
        let container = Container::open(group)?;
        let no_memory = |error| Failure::Call("memory", error);
        let first = Memory::new(BYTES).map_err(no_memory)?;
        let second = Memory::new(BYTES).map_err(no_memory)?;
        container
            .map(&first, FIRST, Access::ReadWrite)
            .map_err(not_mapped)?;
        let bench = Self {
            edu: Edu(container.device(function)?),
            log: Log::open()?,
            container,
            first,
            second,
            stream,
        };
        bench.map_second(Access::ReadWrite)?;
        if !bench.edu.is_there() {
            return Err(Failure::Wrong("the device is no edu"));
        }
        Ok(bench)
    }

    fn map_second(&self, access: Access) -> Result<(), Failure> {
        let mapped = self.container.map(&self.second, SECOND, access);
        mapped.map_err(not_mapped)
    }

    /// A DMA from start to end.
    fn run(&self, direction: Direction, address: u64, bytes: u64) -> Result<(), Failure> {
        self.start(direction, address, bytes, AtTheEnd::Silence)?;
        self.wait()
    }

    /// Starts a DMA.
    ///
    /// # Errors
    /// It is too large.
    pub(crate) fn start(
        &self,
        direction: Direction,
        address: u64,
        bytes: u64,
        end: AtTheEnd,
    ) -> Result<(), Failure> {
        barrier();
        if !self.edu.start(direction, address, bytes, end) {
            return Err(Failure::Wrong("a DMA larger than the device's buffer"));
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        sleep(DMA);
        for _ in 0..LOOKS {
            if !self.edu.is_busy() {
                barrier();
                return Ok(());
            }
            sleep(STEP);
        }
        Err(Failure::Wrong("a DMA does not end"))
    }

    /// Fills the memory, both pieces with different bytes.
    pub(crate) fn fill(&self, salt: u64) {
        for at in (0..BYTES).step_by(8) {
            self.first.write64(at, pattern(at, salt));
            self.second.write64(at, pattern(at, salt + OTHER));
        }
    }

    /// Whether the second piece has the first one's bytes where they were copied to, and its own elsewhere.
    ///
    /// # Errors
    /// What it has, and should have.
    pub(crate) fn judge_copy(&self, salt: u64) -> Result<(), Failure> {
        let copied = AT..AT + 4096;
        for at in (0..BYTES).step_by(8) {
            let salt = if copied.contains(&at) {
                salt
            } else {
                salt + OTHER
            };
            let (found, wanted) = (self.second.read64(at), pattern(at, salt));
            if found != wanted {
                println!("devtool: offset {at:#x}");
                return Err(Failure::Differs("memory after a copy", found, wanted));
            }
        }
        Ok(())
    }

    /// The device copies from the one piece to the other.
    ///
    /// # Errors
    /// What is not as it should be.
    pub(crate) fn copies(&mut self, salt: u64) -> Result<(), Failure> {
        self.fill(salt);
        self.run(Direction::Read, FIRST + AT as u64, LONG)?;
        self.run(Direction::Write, SECOND + AT as u64, LONG)?;
        self.judge_copy(salt)?;
        self.log.quiet()?;
        println!(
            "devtool: {LONG} bytes copied by DMA, {FIRST:#x} to {SECOND:#x}, nothing beside them changed, no event"
        );
        Ok(())
    }

    /// Its message comes, once for each DMA and once when it is told to raise one, and not by itself.
    fn interrupts(&mut self) -> Result<(), Failure> {
        let counter = self.edu.0.interrupts()?;
        let expect = |what: &'static str, wanted: u64, bits: u32| {
            let mut found = 0;
            for _ in 0..LOOKS {
                found += count(&counter)?;
                if found >= wanted {
                    break;
                }
                sleep(STEP);
            }
            sleep(STEP);
            found += count(&counter)?;
            if found != wanted {
                return Err(Failure::Differs(what, found, wanted));
            }
            let status = self.edu.take_status();
            if status != bits {
                return Err(Failure::Differs(
                    "interrupt status",
                    status.into(),
                    bits.into(),
                ));
            }
            Ok(())
        };
        expect("interrupts of a device that did nothing", 0, 0)?;
        self.edu.raise(0x42);
        expect("interrupts that were raised", 1, 0x42)?;
        self.start(Direction::Write, SECOND, LONG, AtTheEnd::Interrupt)?;
        self.wait()?;
        expect("interrupts at the end of a DMA", 1, DMA_DONE)?;
        let (found, wanted) = (self.second.read64(0), pattern(AT, 1));
        if found != wanted {
            return Err(Failure::Differs("memory at the interrupt", found, wanted));
        }
        self.log.quiet()?;
        println!("devtool: 2 interrupts by messages, as many as were asked for");
        Ok(())
    }

    /// A DMA to the second piece that must not happen, after which that is what it was.
    fn without_a_trace(
        &mut self,
        what: &'static str,
        address: u64,
        number: u8,
    ) -> Result<(), Failure> {
        const SALT: u64 = 77;
        let places = || (0..BYTES).step_by(8);
        for at in places() {
            self.second.write64(at, pattern(at, SALT));
        }
        self.refused(what, Direction::Write, address, number)?;
        for at in places() {
            let (found, wanted) = (self.second.read64(at), pattern(at, SALT));
            if found != wanted {
                println!("devtool: offset {at:#x}");
                let what = "memory after a DMA that was refused";
                return Err(Failure::Differs(what, found, wanted));
            }
        }
        Ok(())
    }

    /// A DMA that must not happen, and must be told of.
    ///
    /// # Errors
    /// Of what it was told, or that it was not.
    pub(crate) fn refused(
        &mut self,
        what: &'static str,
        direction: Direction,
        address: u64,
        number: u8,
    ) -> Result<(), Failure> {
        self.run(direction, address, SHORT)?;
        let mut events = 0;
        for _ in 0..LOOKS {
            let before = events;
            while let Some(event) = self.log.next()? {
                if events == 0 {
                    println!("devtool: {what}: refused, and the log has {event}");
                }
                self.judge(event, direction, address, number)?;
                events += 1;
            }
            // The device may try piece by piece: what comes late must not be taken for the next one's.
            if events > 0 && events == before {
                return Ok(());
            }
            sleep(if events > 0 { QUIET } else { STEP });
        }
        println!("devtool: {what}: {direction:?} at {address:#x}, {events} events");
        Err(Failure::Wrong(
            "a DMA outside of all mappings must have an event, and an end of events",
        ))
    }

    fn judge(
        &self,
        event: Event,
        direction: Direction,
        address: u64,
        number: u8,
    ) -> Result<(), Failure> {
        let differs = |what, found, wanted| Err(Failure::Differs(what, found, wanted));
        if event.number() != number {
            return differs("number of an event", event.number().into(), number.into());
        }
        if event.stream() != self.stream {
            return differs("stream of an event", event.stream(), self.stream);
        }
        if !(address..address + SHORT).contains(&event.address()) {
            return differs("address of an event", event.address(), address);
        }
        if event.is_read() != (direction == Direction::Read) {
            return Err(Failure::Wrong("the event is for the other direction"));
        }
        if event.is_stage_2() || !event.is_of_the_input() {
            return Err(Failure::Wrong(
                "the event is not one of stage 1 and its input",
            ));
        }
        Ok(())
    }
}

/// What an event counter has counted since it was last asked.
fn count(counter: &File) -> Result<u64, Failure> {
    let mut value = [0; 8];
    match counter.read(&mut value) {
        Ok(_) => Ok(u64::from_le_bytes(value)),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(Failure::Call("an event counter", error)),
    }
}

/// Different at each place, and with each salt.
fn pattern(at: usize, salt: u64) -> u64 {
    (at as u64 ^ salt << 48 ^ 0x5a5a).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The requester ID of a function written as `0000:01:02.3`.
fn requester(function: &str) -> Option<u64> {
    let (_, function) = function.split_once(':')?;
    let (bus, function) = function.split_once(':')?;
    let (device, function) = function.split_once('.')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(bus)? << 8 | number(device)? << 3 | number(function)?)
}
