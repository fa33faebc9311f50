//! `devtool vfio`: drives an `edu` through mappings of its own, and shows what happens outside of them.
//!
//! Each step says what it found. Those that must work are the control for those that must not, and the other
//! way round: the log must have an event for each DMA that is refused, and none for one that is not.

use core::time::Duration;

use devtool::edu::{AtTheEnd, DMA_DONE, Direction, Edu};
use devtool::event::{Event, F_PERMISSION, F_TRANSLATION, Reader};

use crate::linux::{Arguments, Errno, File, Memory, Open, barrier, sleep};
use crate::vfio::{Access, Container, Device};
use crate::{Failure, println};

/// Below the window for messages, with nothing behind its end.
const FIRST: u64 = 0x0400_0000;
/// Right behind the window.
const SECOND: u64 = 0x0810_0000;
/// The window: nothing of a program's can be in it. [Linux, drivers/iommu/arm/arm-smmu-v3, MSI_IOVA_BASE]
const WINDOW: u64 = 0x0800_0000;
/// Bytes of each piece of memory: a page, whatever the kernel calls one.
const BYTES: usize = 0x1_0000;
/// Bytes of a DMA that must work, and of one that must not: one access, so one event. The kernel writes no
/// more than ten in five seconds to its log.
const LONG: u64 = 4096;
const SHORT: u64 = 4;
/// Where in a piece of memory a DMA goes.
const AT: usize = 0x3000;

/// How long a DMA takes, and how often a wait looks.
const DMA: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_millis(10);
/// Looks at most: 5 s, fifty times what a DMA takes, because a machine may be busy.
const LOOKS: u32 = 500;
/// How long the log is watched for what must not come.
const QUIET: Duration = Duration::from_millis(300);

/// The kernel's log from now on.
struct Log {
    file: File,
    reader: Reader,
}

impl Log {
    fn open() -> Result<Self, Failure> {
        let failed = |error| Failure::Call("/dev/kmsg", error);
        let file = File::open(&["/dev/kmsg"], Open::Poll).map_err(failed)?;
        file.seek_end().map_err(failed)?;
        Ok(Self {
            file,
            reader: Reader::default(),
        })
    }

    /// The next event that is there already.
    fn next(&mut self) -> Result<Option<Event>, Failure> {
        let mut record = [0; 4096];
        loop {
            let bytes = match self.file.read(&mut record) {
                Ok(bytes) => bytes,
                Err(Errno::AGAIN) => return Ok(None),
                // Some lines were lost, the next is whole.
                Err(Errno::PIPE) => continue,
                Err(error) => return Err(Failure::Call("/dev/kmsg", error)),
            };
            let record = record.get(..bytes).unwrap_or_default();
            let line = core::str::from_utf8(record).unwrap_or_default();
            let line = line.lines().next().unwrap_or_default();
            if let Some(event) = self.reader.line(line) {
                return Ok(Some(event));
            }
        }
    }

    /// Nothing comes.
    fn quiet(&mut self) -> Result<(), Failure> {
        sleep(QUIET);
        match self.next()? {
            None => Ok(()),
            Some(event) => {
                println!("devtool: {event}");
                Err(Failure::Wrong("an event for a DMA that was allowed"))
            }
        }
    }
}

/// The device, its memory and who tells of its faults.
struct Bench {
    edu: Edu<Device>,
    log: Log,
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
    let stream = requester(function).ok_or(Failure::Usage)?;
    let container = Container::open(group)?;
    let no_memory = |error| Failure::Call("memory", error);
    let first = Memory::new(BYTES).map_err(no_memory)?;
    let second = Memory::new(BYTES).map_err(no_memory)?;
    let not_mapped = |error| Failure::Call("memory cannot be mapped", error);
    container
        .map(&first, FIRST, Access::ReadWrite)
        .map_err(not_mapped)?;
    container
        .map(&second, SECOND, Access::ReadWrite)
        .map_err(not_mapped)?;
    match container.map(&first, WINDOW, Access::ReadWrite) {
        Err(Errno::INVALID) => println!("devtool: the window for messages is refused to a program"),
        Err(error) => return Err(not_mapped(error)),
        Ok(()) => {
            return Err(Failure::Wrong(
                "memory was mapped over the window for messages",
            ));
        }
    }
    let mut bench = Bench {
        edu: Edu(container.device(function)?),
        log: Log::open()?,
        stream,
    };
    if !bench.edu.is_there() {
        return Err(Failure::Wrong("the device is no edu"));
    }

    bench.copies(&first, &second, 1)?;
    bench.interrupts(&second)?;
    bench.refused(
        "behind a mapping",
        Direction::Write,
        FIRST + BYTES as u64,
        F_TRANSLATION,
    )?;
    bench.refused(
        "behind a mapping",
        Direction::Read,
        FIRST + BYTES as u64,
        F_TRANSLATION,
    )?;
    bench.refused(
        "before a mapping",
        Direction::Write,
        FIRST - SHORT,
        F_TRANSLATION,
    )?;

    // What a translation was cached for a moment ago.
    container.unmap(&second, SECOND)?;
    unchanged(&second, || {
        bench.refused(
            "where memory was",
            Direction::Write,
            SECOND + AT as u64,
            F_TRANSLATION,
        )
    })?;
    container
        .map(&second, SECOND, Access::Read)
        .map_err(not_mapped)?;
    unchanged(&second, || {
        bench.refused(
            "to memory for reading",
            Direction::Write,
            SECOND + AT as u64,
            F_PERMISSION,
        )
    })?;
    bench.run(Direction::Read, SECOND + AT as u64, LONG)?;
    bench.log.quiet()?;
    println!("devtool: the same memory can be read");
    container.unmap(&second, SECOND)?;
    container
        .map(&second, SECOND, Access::ReadWrite)
        .map_err(not_mapped)?;
    bench.copies(&first, &second, 2)?;
    println!("devtool: ok: DMA reaches what is mapped and nothing else");
    Ok(())
}

impl Bench {
    /// A DMA from start to end.
    fn run(&self, direction: Direction, address: u64, bytes: u64) -> Result<(), Failure> {
        self.run_and(direction, address, bytes, AtTheEnd::Silence)
    }

    fn run_and(
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

    /// The device copies from the one to the other, where its memory is mapped.
    fn copies(&mut self, first: &Memory, second: &Memory, salt: u64) -> Result<(), Failure> {
        for at in (0..BYTES).step_by(8) {
            first.write64(at, pattern(at, salt));
            second.write64(at, pattern(at, salt + 100));
        }
        self.run(Direction::Read, FIRST + AT as u64, LONG)?;
        self.run(Direction::Write, SECOND + AT as u64, LONG)?;
        let copied = AT..AT + 4096;
        for at in (0..BYTES).step_by(8) {
            let salt = if copied.contains(&at) {
                salt
            } else {
                salt + 100
            };
            let (found, wanted) = (second.read64(at), pattern(at, salt));
            if found != wanted {
                println!("devtool: offset {at:#x}");
                return Err(Failure::Differs("memory after a copy", found, wanted));
            }
        }
        self.log.quiet()?;
        println!(
            "devtool: {LONG} bytes copied by DMA, {FIRST:#x} to {SECOND:#x}, nothing beside them changed, no event"
        );
        Ok(())
    }

    /// Its message comes, once for each DMA and once when it is told to raise one, and not by itself.
    fn interrupts(&mut self, second: &Memory) -> Result<(), Failure> {
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
        self.run_and(Direction::Write, SECOND, LONG, AtTheEnd::Interrupt)?;
        expect("interrupts at the end of a DMA", 1, DMA_DONE)?;
        let (found, wanted) = (second.read64(0), pattern(AT, 1));
        if found != wanted {
            return Err(Failure::Differs("memory at the interrupt", found, wanted));
        }
        self.log.quiet()?;
        println!("devtool: 2 interrupts by messages, as many as were asked for");
        Ok(())
    }

    /// A DMA that must not happen, and must be told of.
    fn refused(
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

/// Memory is after it what it was before.
fn unchanged(memory: &Memory, what: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    const SALT: u64 = 77;
    for at in (0..BYTES).step_by(8) {
        memory.write64(at, pattern(at, SALT));
    }
    what()?;
    for at in (0..BYTES).step_by(8) {
        let (found, wanted) = (memory.read64(at), pattern(at, SALT));
        if found != wanted {
            println!("devtool: offset {at:#x}");
            return Err(Failure::Differs(
                "memory after a DMA that was refused",
                found,
                wanted,
            ));
        }
    }
    Ok(())
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
