//! Run-time services: an argument block in the guest's memory, and what each service does.
//! [LoPAPR §7]

use core::sync::atomic::Ordering;

use crate::cpus::{NotStarted, Start};
use crate::event::{HOT_PLUG_MASK, HOT_PLUG_SOURCE};
use crate::hcall::{After, End, Text};
use crate::{Date, Environment, Platform, Servers, Status};

/// What a guest calls for a service: with the address of its block in r3, in 32-bit big-endian real
/// mode. It makes the hypercall and returns. To be written big-endian.
pub const ENTRY_CODE: [u32; 5] = [
    0x7c64_1b78, // mr   r4,r3
    0x3c60_0000, // lis  r3,0
    0x6063_f000, // ori  r3,r3,0xf000
    0x4400_0022, // sc   1
    0x4e80_0020, // blr
];

/// The services by name and token, for the device tree. Tokens are QEMU's.
pub const TOKENS: &[(&str, u32)] = &[
    ("display-character", token::DISPLAY_CHARACTER),
    ("get-time-of-day", token::GET_TIME),
    ("set-time-of-day", token::SET_TIME),
    ("power-off", token::POWER_OFF),
    ("system-reboot", token::REBOOT),
    ("query-cpu-stopped-state", token::QUERY_CPU),
    ("start-cpu", token::START_CPU),
    ("stop-self", token::STOP_SELF),
    ("ibm,get-system-parameter", token::GET_PARAMETER),
    ("ibm,set-system-parameter", token::SET_PARAMETER),
    ("ibm,set-xive", token::SET_XIVE),
    ("ibm,get-xive", token::GET_XIVE),
    ("ibm,int-off", token::INT_OFF),
    ("ibm,int-on", token::INT_ON),
    ("check-exception", token::CHECK_EXCEPTION),
    ("event-scan", token::EVENT_SCAN),
    ("ibm,os-term", token::OS_TERM),
];

mod token {
    pub(super) const DISPLAY_CHARACTER: u32 = 0x2000;
    pub(super) const GET_TIME: u32 = 0x2001;
    pub(super) const SET_TIME: u32 = 0x2002;
    pub(super) const POWER_OFF: u32 = 0x2003;
    pub(super) const REBOOT: u32 = 0x2004;
    pub(super) const QUERY_CPU: u32 = 0x2005;
    pub(super) const START_CPU: u32 = 0x2006;
    pub(super) const STOP_SELF: u32 = 0x2007;
    pub(super) const GET_PARAMETER: u32 = 0x2008;
    pub(super) const SET_PARAMETER: u32 = 0x2009;
    pub(super) const SET_XIVE: u32 = 0x200a;
    pub(super) const GET_XIVE: u32 = 0x200b;
    pub(super) const INT_OFF: u32 = 0x200c;
    pub(super) const INT_ON: u32 = 0x200d;
    pub(super) const CHECK_EXCEPTION: u32 = 0x200e;
    pub(super) const EVENT_SCAN: u32 = 0x200f;
    pub(super) const OS_TERM: u32 = 0x201f;
}

// [LoPAPR §7.2.8]
const SUCCESS: i32 = 0;
const HARDWARE: i32 = -1;
/// A wrong argument; also what a service that is not there answers.
const PARAMETER: i32 = -3;
/// `check-exception`, `event-scan`: nothing has happened.
const NOTHING: i32 = 1;
/// System parameters. [LoPAPR §7.3.16]
const NOT_AUTHORIZED: i32 = -9002;
const PARAMETER_ERROR: i32 = -9999;

/// The most arguments, and the most results, that a block may name.
const MOST: u32 = 16;
const CELL: u64 = 4;

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    pub(crate) after: After,
}

impl Outcome {
    const fn refused() -> Self {
        Self {
            status: Status::PARAMETER,
            after: After::Resume,
        }
    }
}

/// A block, copied: what the guest writes there later is not looked at.
#[derive(Clone, Copy, Debug)]
struct Block {
    token: u32,
    arguments: [u32; MOST as usize],
    inputs: u32,
    outputs: u32,
    /// Where the results go.
    results: u64,
}

impl Block {
    fn read(at: u64, env: &dyn Environment) -> Option<Self> {
        let mut head = [[0; 4]; 3];
        env.read(at, head.as_flattened_mut()).ok()?;
        let [token, inputs, outputs] = head.map(u32::from_be_bytes);
        if inputs > MOST || outputs > MOST {
            return None;
        }
        let first = at.checked_add(CELL.saturating_mul(3))?;
        let mut cells = [[0; 4]; MOST as usize];
        let given = cells.get_mut(..usize::try_from(inputs).ok()?)?;
        env.read(first, given.as_flattened_mut()).ok()?;
        let results = first.checked_add(CELL.saturating_mul(inputs.into()))?;
        let room = CELL.saturating_mul(outputs.into());
        env.is_memory(results, room).then_some(Self {
            token,
            arguments: cells.map(u32::from_be_bytes),
            inputs,
            outputs,
            results,
        })
    }

    /// Writes the status, and results behind it, as far as the block has room for them.
    fn answer(&self, status: i32, values: &[u32], env: &dyn Environment) {
        let mut at = self.results;
        let all = core::iter::once(status.cast_unsigned()).chain(values.iter().copied());
        for value in all.take(usize::try_from(self.outputs).unwrap_or(0)) {
            // All of it was found to be memory.
            let _ = env.write(at, &value.to_be_bytes());
            at = at.saturating_add(CELL);
        }
    }
}

/// Results beside the status.
#[derive(Clone, Copy, Debug, Default)]
struct Values {
    cells: [u32; 7],
    count: usize,
}

impl Values {
    fn of<const N: usize>(values: [u32; N]) -> Self {
        let mut all = Self {
            count: N,
            ..Self::default()
        };
        for (to, value) in all.cells.iter_mut().zip(values) {
            *to = value;
        }
        all
    }
}

/// Serves the call whose block is at `at`. A block that is not all in memory, results included, does
/// nothing.
pub(crate) fn call(platform: &Platform, vcpu: usize, at: u64, env: &dyn Environment) -> Outcome {
    let Some(block) = Block::read(at, env) else {
        return Outcome::refused();
    };
    let [a, b, c, ..] = block.arguments;
    let mut after = After::Resume;
    let mut values = Values::default();
    let status = match (block.token, block.inputs, block.outputs) {
        (token::DISPLAY_CHARACTER, 1, 1) => {
            env.print(&a.to_be_bytes()[3..]);
            SUCCESS
        }
        (token::GET_TIME, 0, 8) => match get_time(platform, env) {
            Some(date) => {
                values = Values::of(date.cells());
                SUCCESS
            }
            None => HARDWARE,
        },
        (token::SET_TIME, 7, 1) => set_time(platform, block.arguments, env),
        (token::POWER_OFF, 2, 1) => {
            after = After::End(End::PowerOff);
            SUCCESS
        }
        (token::REBOOT, 0, 1) => {
            after = After::End(End::Reboot);
            SUCCESS
        }
        (token::QUERY_CPU, 1, 2) => match platform.cpus.lock().server(a.into()) {
            Some((_, cpu)) => {
                // 0 is stopped, 2 is not.
                values = Values::of([if cpu.runs { 2 } else { 0 }]);
                SUCCESS
            }
            None => PARAMETER,
        },
        (token::START_CPU, 3, 1) => start_cpu(platform, a, b, c, env),
        (token::STOP_SELF, 0, 1) => {
            if let Some(cpu) = platform.cpus.lock().get_mut(vcpu) {
                cpu.runs = false;
            }
            return Outcome {
                status: Status::SUCCESS,
                after: After::Off,
            };
        }
        (token::GET_PARAMETER, 3, 1) => get_parameter(platform, a, b, c, env),
        (token::SET_PARAMETER, 2, 1) => match a {
            SPLPAR | RUN_MODE => NOT_AUTHORIZED,
            _ => PARAMETER,
        },
        (token::SET_XIVE, 3, 1) => match u8::try_from(c) {
            Ok(priority) => {
                let routed = platform.xics.lock().route(a, b, priority);
                told(routed, env)
            }
            Err(_) => PARAMETER,
        },
        (token::GET_XIVE, 1, 3) => match platform.xics.lock().routed(a) {
            Some((server, priority)) => {
                values = Values::of([u32::try_from(server).unwrap_or(0), priority.into()]);
                SUCCESS
            }
            None => PARAMETER,
        },
        (token::INT_OFF, 1, 1) => match platform.xics.lock().mask(a) {
            Ok(()) => SUCCESS,
            Err(_) => PARAMETER,
        },
        (token::INT_ON, 1, 1) => {
            let told_of = platform.xics.lock().unmask(a);
            told(told_of.ok(), env)
        }
        (token::CHECK_EXCEPTION, 6 | 7, 1) => check_exception(platform, block.arguments, env),
        (token::EVENT_SCAN, 4, 1) => NOTHING,
        (token::OS_TERM, 1, 1) => {
            after = After::End(End::Terminated(last_words(a, env)));
            SUCCESS
        }
        (unknown, ..) => {
            let room = usize::try_from(block.outputs).unwrap_or(0);
            let given = usize::try_from(block.inputs).unwrap_or(0);
            let given = block.arguments.get(..given).unwrap_or_default();
            if let Some(served) = env.device_service(unknown, given, room) {
                block.answer(served.status, served.values(), env);
                return Outcome {
                    status: Status::SUCCESS,
                    after,
                };
            }
            block.answer(PARAMETER, &[], env);
            // As QEMU: only what is known at all has been called.
            let known = TOKENS.iter().any(|(_, token)| *token == unknown);
            return Outcome {
                status: if known {
                    Status::SUCCESS
                } else {
                    Status::PARAMETER
                },
                after,
            };
        }
    };
    let given = values.cells.get(..values.count).unwrap_or_default();
    block.answer(status, given, env);
    Outcome {
        status: Status::SUCCESS,
        after,
    }
}

fn told(told: Option<Servers>, env: &dyn Environment) -> i32 {
    match told {
        Some(told) => {
            if !told.is_empty() {
                env.kick(told);
            }
            SUCCESS
        }
        None => PARAMETER,
    }
}

fn get_time(platform: &Platform, env: &dyn Environment) -> Option<Date> {
    let now = env.now()?;
    let offset = platform.clock_offset.load(Ordering::Relaxed);
    let seconds = now.seconds().saturating_add(offset);
    Some(Date::from_seconds(seconds, now.nanosecond))
}

fn set_time(platform: &Platform, cells: [u32; MOST as usize], env: &dyn Environment) -> i32 {
    let [year, month, day, hour, minute, second, nanosecond, ..] = cells;
    let wanted = Date::from_cells([year, month, day, hour, minute, second, nanosecond]);
    let Some(wanted) = wanted else {
        return PARAMETER;
    };
    let Some(now) = env.now() else {
        return HARDWARE;
    };
    let offset = wanted.seconds().saturating_sub(now.seconds());
    platform.clock_offset.store(offset, Ordering::Relaxed);
    SUCCESS
}

/// The oldest event of a kind that is asked for. One whose log has no place is kept.
fn check_exception(platform: &Platform, cells: [u32; MOST as usize], env: &dyn Environment) -> i32 {
    let [_vector, _what, mask, _critical, buffer, room, ..] = cells;
    if mask & HOT_PLUG_MASK == 0 {
        return NOTHING;
    }
    let Some(event) = platform.events.lock().first() else {
        return NOTHING;
    };
    let log = event.log();
    let bytes = log.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    let log = log.get(..bytes).unwrap_or_default();
    if env.write(buffer.into(), log).is_err() {
        return PARAMETER;
    }
    let more = platform.events.lock().told(event);
    if more && let Ok(told) = platform.signal(HOT_PLUG_SOURCE) {
        env.kick(told);
    }
    SUCCESS
}

/// [LoPAPR §7.3.8.2]
fn start_cpu(
    platform: &Platform,
    server: u32,
    entry: u32,
    argument: u32,
    env: &dyn Environment,
) -> i32 {
    let start = Start {
        entry: entry.into(),
        argument: argument.into(),
    };
    let started = platform.cpus.lock().start(server, start);
    match started {
        Ok(vcpu) => {
            env.kick(Servers::one(vcpu));
            SUCCESS
        }
        Err(NotStarted::Runs) => HARDWARE,
        Err(NotStarted::Unknown) => PARAMETER,
    }
}

/// Characteristics of a partition that shares processors, as text. [LoPAPR §7.3.16.6]
const SPLPAR: u32 = 20;
/// Whether platform diagnostics run. [LoPAPR §7.3.16.9]
const RUN_MODE: u32 = 42;

fn get_parameter(
    platform: &Platform,
    number: u32,
    buffer: u32,
    room: u32,
    env: &dyn Environment,
) -> i32 {
    let mut text = [0; 96];
    let mut writer = Writer {
        buffer: &mut text,
        used: 0,
    };
    match number {
        SPLPAR => {
            use core::fmt::Write;
            let cpus = platform.config().cpus;
            let memory = env.memory_bytes() >> 20;
            // It fits.
            let _ = write!(
                writer,
                "MaxEntCap={cpus},DesMem={memory},DesProcs={cpus},MaxPlatProcs={cpus}\0"
            );
        }
        // Off.
        RUN_MODE => writer.used = 1,
        _ => return PARAMETER,
    }
    let length = writer.used;
    let Some(value) = text.get(..length) else {
        return HARDWARE;
    };
    // Two bytes of length, and then as much as there is room for.
    let Some(room) = room.checked_sub(2) else {
        return PARAMETER_ERROR;
    };
    let value = value
        .get(..length.min(usize::try_from(room).unwrap_or(usize::MAX)))
        .unwrap_or_default();
    let head = u16::try_from(length).unwrap_or(0).to_be_bytes();
    let at = u64::from(buffer);
    let behind = at.saturating_add(2);
    let total = u64::try_from(value.len())
        .unwrap_or(u64::MAX)
        .saturating_add(2);
    if !env.is_memory(at, total)
        || env.write(at, &head).is_err()
        || env.write(behind, value).is_err()
    {
        return PARAMETER_ERROR;
    }
    SUCCESS
}

/// Text into a buffer; what does not fit is left out.
struct Writer<'b> {
    buffer: &'b mut [u8],
    used: usize,
}

impl core::fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            let slot = self.buffer.get_mut(self.used).ok_or(core::fmt::Error)?;
            *slot = byte;
            self.used = self.used.saturating_add(1);
        }
        Ok(())
    }
}

fn last_words(at: u32, env: &dyn Environment) -> Text {
    let mut words = [0; 80];
    // Words at the end of memory are read one by one.
    for (at, byte) in (u64::from(at)..).zip(words.iter_mut()) {
        let mut one = [0];
        if env.read(at, &mut one).is_err() || one == [0] {
            break;
        }
        *byte = one[0];
    }
    Text::new(&words)
}
