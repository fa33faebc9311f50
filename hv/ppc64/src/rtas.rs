//! Run-time abstraction services, called by `H_RTAS`.
//!
//! The platform's own RTAS code would do no more than make that call, so it is never instantiated.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::hcall::{self, Hcall, SUCCESS};

/// The most cells of arguments and results together.
const CELLS: usize = 13;

/// An argument block: token, number of arguments, number of results, then these. All big-endian.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Block([AtomicU32; 3 + CELLS]);

/// The block of `power-off`, kept ready for a moment when nothing else works. The token is QEMU's
/// until the device tree says another; the two arguments say which events may turn the machine on
/// again: none.
pub(crate) static POWER_OFF: Block = Block::new([0x2003, 2, 1]);

/// The block of all other calls. RTAS wants one call at a time [LoPAPR §7.2.1], and the image, which
/// this is part of, lies below 4 GiB, which is as far as RTAS reaches.
static BLOCK: hal::Mutex<Block> = hal::Mutex::new(Block::new([0; 3]));

impl Block {
    const fn new(head: [u32; 3]) -> Self {
        let [token, arguments, results] = head;
        let mut cells = [const { AtomicU32::new(0) }; _];
        cells[0] = AtomicU32::new(token.to_be());
        cells[1] = AtomicU32::new(arguments.to_be());
        cells[2] = AtomicU32::new(results.to_be());
        Self(cells)
    }

    /// # Safety
    /// The service must not write to memory that is in use, nor start or stop anything
    /// unexpectedly.
    unsafe fn call(&self) -> i64 {
        let address = core::ptr::from_ref(self).expose_provenance() as u64;
        // SAFETY: the cells may change behind Rust's back, being atomic; the rest is the caller's
        // promise.
        unsafe { hcall::call(Hcall::Rtas, [address, 0, 0, 0]) }.status
    }
}

/// Turns the machine off.
pub(crate) fn power_off() -> ! {
    // SAFETY: the block has room for the one result, and nothing is expected any more.
    let _ = unsafe { POWER_OFF.call() };
    crate::smp::park()
}

/// Why a call did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the platform has no H_RTAS (answer {0})")]
    NoHcall(i64),
    #[error("the device tree has no {0}")]
    NoToken(&'static str),
    #[error("{call} answers {status}")]
    Status { call: &'static str, status: i32 },
}

/// A service.
#[derive(Clone, Copy, Debug)]
struct Service {
    name: &'static str,
    token: Option<u32>,
}

impl Service {
    /// Calls the service and gives its results behind the status.
    ///
    /// # Safety
    /// As [`Block::call`].
    unsafe fn call<const RESULTS: usize>(self, arguments: &[u32]) -> Result<[u32; RESULTS], Error> {
        let token = self.token.ok_or(Error::NoToken(self.name))?;
        let block = BLOCK.lock();
        let count = |cells| u32::try_from(cells).unwrap_or(u32::MAX);
        let head = [token, count(arguments.len()), count(RESULTS + 1)];
        let (inputs, outputs) = block.0.split_at(3 + arguments.len());
        for (cell, value) in inputs.iter().zip(head.iter().chain(arguments)) {
            cell.store(value.to_be(), Ordering::Relaxed);
        }
        let outputs = &outputs[..=RESULTS];
        // SAFETY: the results fit, by the slice above; the rest is the caller's promise.
        match unsafe { block.call() } {
            SUCCESS => {}
            status => return Err(Error::NoHcall(status)),
        }
        let output = |i: usize| u32::from_be(outputs[i].load(Ordering::Relaxed));
        match output(0).cast_signed() {
            0 => Ok(core::array::from_fn(|i| output(i + 1))),
            status => Err(Error::Status {
                call: self.name,
                status,
            }),
        }
    }
}

/// The services that are used here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtas {
    start_cpu: Service,
    time_of_day: Service,
    read_config: Service,
    write_config: Service,
    query_windows: Service,
    create_window: Service,
    remove_window: Service,
    reset_windows: Service,
    change_msi: Service,
    source_of_msi: Service,
    set_source: Service,
    source_off: Service,
}

impl Rtas {
    /// The services, by what the device tree says of them.
    pub(crate) fn new(tree: &machine::Rtas) -> Self {
        if let Some(token) = tree.token("power-off") {
            POWER_OFF.0[0].store(token.to_be(), Ordering::Relaxed);
        }
        let service = |name| Service {
            name,
            token: tree.token(name),
        };
        Self {
            start_cpu: service("start-cpu"),
            time_of_day: service("get-time-of-day"),
            read_config: service("ibm,read-pci-config"),
            write_config: service("ibm,write-pci-config"),
            query_windows: service("ibm,query-pe-dma-window"),
            create_window: service("ibm,create-pe-dma-window"),
            remove_window: service("ibm,remove-pe-dma-window"),
            reset_windows: service("ibm,reset-pe-dma-window"),
            change_msi: service("ibm,change-msi"),
            source_of_msi: service("ibm,query-interrupt-source-number"),
            set_source: service("ibm,set-xive"),
            source_off: service("ibm,int-off"),
        }
    }

    /// Whether the platform tells the time.
    pub(crate) fn has_clock(&self) -> bool {
        self.time_of_day.token.is_some()
    }

    /// Year, month, day, hour, minute, second, nanosecond. [LoPAPR §7.3.2.1]
    pub(crate) fn time_of_day(&self) -> Result<[u32; 7], Error> {
        // SAFETY: reads a clock.
        unsafe { self.time_of_day.call(&[]) }
    }

    /// Starts the CPU with this server number at `entry` in big-endian mode, with `argument` in r3.
    /// [LoPAPR §7.3.8.2]
    ///
    /// # Safety
    /// The code at `entry` must know what to do.
    pub(crate) unsafe fn start_cpu(
        &self,
        server: u32,
        entry: u64,
        argument: u64,
    ) -> Result<(), Error> {
        let cell = |value| u32::try_from(value).unwrap_or(u32::MAX);
        let arguments = [server, cell(entry), cell(argument)];
        // SAFETY: passed on to the caller.
        let [] = unsafe { self.start_cpu.call(&arguments) }?;
        Ok(())
    }

    /// Reads `bytes` (1, 2 or 4) of the configuration space of the host bridge `buid`.
    /// [LoPAPR §7.3.5.1]
    pub(crate) fn read_config(&self, buid: u64, address: u32, bytes: u32) -> Result<u32, Error> {
        let [high, low] = halves(buid);
        // SAFETY: reads; what a device does on a read of its configuration is not our memory's.
        let [value] = unsafe { self.read_config.call(&[address, high, low, bytes]) }?;
        Ok(value)
    }

    /// Writes `bytes` (1, 2 or 4) of the configuration space of the host bridge `buid`.
    /// [LoPAPR §7.3.5.2]
    ///
    /// # Safety
    /// What the write makes the device do must be the caller's right.
    pub(crate) unsafe fn write_config(
        &self,
        buid: u64,
        address: u32,
        bytes: u32,
        value: u32,
    ) -> Result<(), Error> {
        let [high, low] = halves(buid);
        let arguments = [address, high, low, bytes, value];
        // SAFETY: passed on to the caller.
        let [] = unsafe { self.write_config.call(&arguments) }?;
        Ok(())
    }
}

impl Rtas {
    /// Windows that can be created, the most entries of one (64 bits), page sizes as bits of LoPAPR's
    /// own, of the host bridge `buid`.
    pub(crate) fn query_windows(&self, buid: u64, config: u32) -> Result<[u32; 5], Error> {
        let [high, low] = halves(buid);
        // SAFETY: reads.
        unsafe { self.query_windows.call(&[config, high, low]) }
    }

    /// Makes a window onto memory, with nothing mapped: its table, and its address.
    pub(crate) fn create_window(
        &self,
        buid: u64,
        config: u32,
        page_shift: u32,
        window_shift: u32,
    ) -> Result<[u32; 3], Error> {
        let [high, low] = halves(buid);
        let arguments = [config, high, low, page_shift, window_shift];
        // SAFETY: an empty window lets nothing through.
        unsafe { self.create_window.call(&arguments) }
    }

    /// Removes a window.
    pub(crate) fn remove_window(&self, liobn: u32) -> Result<(), Error> {
        // SAFETY: takes memory away from devices and gives none.
        let [] = unsafe { self.remove_window.call(&[liobn]) }?;
        Ok(())
    }

    /// The default window again, empty, and no other.
    pub(crate) fn reset_windows(&self, buid: u64, config: u32) -> Result<(), Error> {
        let [high, low] = halves(buid);
        // SAFETY: as above.
        let [] = unsafe { self.reset_windows.call(&[config, high, low]) }?;
        Ok(())
    }

    /// Gives a device so many message interrupts, of the kind that `function` says: how many it has
    /// then, and the next sequence number. [LoPAPR §7.3.10.5.1]
    ///
    /// # Safety
    /// The device must be the caller's.
    pub(crate) unsafe fn change_msi(
        &self,
        buid: u64,
        config: u32,
        [function, count, sequence]: [u32; 3],
    ) -> Result<[u32; 3], Error> {
        let [high, low] = halves(buid);
        let arguments = [config, high, low, function, count, sequence];
        // SAFETY: passed on to the caller.
        unsafe { self.change_msi.call(&arguments) }
    }

    /// The interrupt source of a device's message, and whether it is an edge.
    pub(crate) fn source_of_msi(
        &self,
        buid: u64,
        config: u32,
        number: u32,
    ) -> Result<[u32; 2], Error> {
        let [high, low] = halves(buid);
        // SAFETY: reads.
        unsafe { self.source_of_msi.call(&[config, high, low, number]) }
    }

    /// Directs an interrupt source to a CPU, at a priority, and lets it through, with what came while it was
    /// off.
    pub(crate) fn direct_source(
        &self,
        source: u32,
        server: u32,
        priority: u32,
    ) -> Result<(), Error> {
        // SAFETY: interrupts of devices make CPUs leave guests, which is expected.
        let [] = unsafe { self.set_source.call(&[source, server, priority]) }?;
        Ok(())
    }

    /// Lets an interrupt source through no more.
    pub(crate) fn silence_source(&self, source: u32) -> Result<(), Error> {
        // SAFETY: as above.
        let [] = unsafe { self.source_off.call(&[source]) }?;
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}
