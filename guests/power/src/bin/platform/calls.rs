//! Hypercalls.

use core::arch::asm;

use power_guests::hcall::values;
use power_guests::{cage, cpu};

use crate::{Check, Wrong, holds, is};

const PARAMETER: i64 = -4;
const FUNCTION: i64 = -2;
const TERMINAL: u64 = 0x7100_0000;
/// Memory that nothing depends on.
const PAGE: u64 = 0x100_0000;
const OTHER: u64 = 0x101_0000;
/// No guest of these tests has memory there.
const NOWHERE: u64 = 0x1_0000_0000;

pub(crate) const CHECKS: [Check; 25] = [
    ("H_SET_SPRG0", set_sprg0),
    ("H_PAGE_INIT", page_init),
    ("H_LOGICAL_CI_LOAD", logical_load),
    ("H_LOGICAL_CI_STORE", logical_store),
    ("H_LOGICAL_ICBI", || {
        is("status", 0, status(0x48, [PAGE, 0, 0, 0]))
    }),
    ("H_LOGICAL_DCBF", || {
        is("status", 0, status(0x4c, [PAGE, 0, 0, 0]))
    }),
    ("H_GET_TERM_CHAR", get_term_char),
    ("H_PUT_TERM_CHAR", put_term_char),
    ("H_VIO_SIGNAL", vio_signal),
    ("H_CPPR, H_IPI, H_IPOLL, H_XIRR, H_EOI", interrupts),
    ("priorities", priorities),
    ("an interrupt that waits for MSR[EE]", waits_for_ee),
    ("H_XIRR_X", xirr_x),
    ("H_REGISTER_VPA", register_vpa),
    ("H_CEDE, H_PROD", cede_and_prod),
    ("H_JOIN", join),
    ("H_CONFER", confer),
    ("H_GET_CPU_CHARACTERISTICS", || {
        is("status", 0, status(0x1c8, [0; 4]))
    }),
    ("H_HOME_NODE_ASSOCIATIVITY", home_node),
    ("H_RANDOM", random),
    ("H_SET_MODE", set_mode),
    ("H_REGISTER_PROC_TBL", register_process_table),
    ("H_SIGNAL_SYS_RESET", signal_reset),
    ("H_RTAS", rtas),
    ("unknown calls", unknown),
];

fn status(number: u64, arguments: [u64; 4]) -> i64 {
    values(number, arguments).0
}

fn write(at: u64, value: u64) {
    // SAFETY: memory that nothing depends on.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at as usize).write_volatile(value) };
}

fn read(at: u64) -> u64 {
    // SAFETY: as in `write`.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() }
}

fn set_sprg0() -> Result<(), Wrong> {
    let value: u64;
    is("status", 0, status(0x24, [0x1234_5678_9abc_def0, 0, 0, 0]))?;
    // SAFETY: reads a register that nothing here uses.
    unsafe { asm!("mfsprg {}, 0", out(reg) value) };
    holds("SPRG0 is what was set", value == 0x1234_5678_9abc_def0)
}

fn page_init() -> Result<(), Wrong> {
    const ZERO: u64 = 1 << 15;
    const COPY: u64 = 1 << 14;
    write(PAGE + 4088, 7);
    is("zero", 0, status(0x2c, [ZERO, PAGE, 0, 0]))?;
    holds("the page is zero", read(PAGE + 4088) == 0)?;
    write(OTHER + 8, 9);
    is("copy", 0, status(0x2c, [COPY, PAGE, OTHER, 0]))?;
    holds("the page is the other", read(PAGE + 8) == 9)?;
    is("flags", PARAMETER, status(0x2c, [1, PAGE, 0, 0]))?;
    is("alignment", PARAMETER, status(0x2c, [ZERO, PAGE + 8, 0, 0]))?;
    is("nowhere", PARAMETER, status(0x2c, [ZERO, NOWHERE, 0, 0]))?;
    is(
        "from nowhere",
        PARAMETER,
        status(0x2c, [COPY, PAGE, NOWHERE, 0]),
    )?;
    holds("a refusal changes nothing", read(PAGE + 8) == 9)
}

fn logical_load() -> Result<(), Wrong> {
    write(PAGE, 0x0807_0605_0403_0201);
    for (bytes, expected) in [
        (1, 0x01),
        (2, 0x0102),
        (4, 0x0102_0304),
        (8, 0x0102_0304_0506_0708),
    ] {
        let (status, [value, ..]) = values(0x3c, [bytes, PAGE, 0, 0]);
        is("status", 0, status)?;
        holds("big-endian", value == expected)?;
    }
    is("3 bytes", PARAMETER, status(0x3c, [3, PAGE, 0, 0]))?;
    is("alignment", PARAMETER, status(0x3c, [8, PAGE + 4, 0, 0]))?;
    is("nowhere", PARAMETER, status(0x3c, [8, NOWHERE, 0, 0]))
}

fn logical_store() -> Result<(), Wrong> {
    write(PAGE, 0);
    is("status", 0, status(0x40, [4, PAGE + 4, 0x0102_0304, 0]))?;
    holds("big-endian", read(PAGE) == 0x0403_0201_0000_0000)?;
    is("16 bytes", PARAMETER, status(0x40, [16, PAGE, 0, 0]))?;
    is("alignment", PARAMETER, status(0x40, [2, PAGE + 1, 0, 0]))?;
    is("nowhere", PARAMETER, status(0x40, [1, u64::MAX, 0, 0]))
}

fn get_term_char() -> Result<(), Wrong> {
    is("the terminal", 0, status(0x54, [TERMINAL, 0, 0, 0]))?;
    is("the first one", 0, status(0x54, [0; 4]))?;
    is("another", PARAMETER, status(0x54, [TERMINAL + 1, 0, 0, 0]))
}

fn put_term_char() -> Result<(), Wrong> {
    let text = u64::from_be_bytes(*b"put it:\n");
    is("the terminal", 0, status(0x58, [TERMINAL, 8, text, 0]))?;
    is("nothing", 0, status(0x58, [TERMINAL, 0, text, 0]))?;
    is("17", PARAMETER, status(0x58, [TERMINAL, 17, text, 0]))?;
    is("many", PARAMETER, status(0x58, [0, u64::MAX, text, 0]))?;
    is("another", PARAMETER, status(0x58, [1, 8, text, 0]))
}

fn vio_signal() -> Result<(), Wrong> {
    is("off", 0, status(0x104, [TERMINAL, 0, 0, 0]))?;
    is("on", PARAMETER, status(0x104, [TERMINAL, 1, 0, 0]))?;
    is("another", PARAMETER, status(0x104, [TERMINAL + 1, 0, 0, 0]))
}

fn interrupts() -> Result<(), Wrong> {
    const IPI: u64 = 2;
    is("priority", 0, status(0x68, [0xff, 0, 0, 0]))?;
    let (_, [nothing, ..]) = values(0x74, [0; 4]);
    holds("nothing is pending", nothing & 0xff_ffff == 0)?;
    is("to oneself", 0, status(0x6c, [0, 4, 0, 0]))?;
    is("to nobody", PARAMETER, status(0x6c, [77, 4, 0, 0]))?;
    let (polled, [pending, request, ..]) = values(0x70, [0; 4]);
    is("poll", 0, polled)?;
    holds("polled", pending & 0xff_ffff == IPI && request == 4)?;
    is("poll nobody", PARAMETER, status(0x70, [77, 0, 0, 0]))?;
    let (_, [accepted, ..]) = values(0x74, [0; 4]);
    holds("accepted", accepted == 0xff00_0000 | IPI)?;
    is("nothing sent any more", 0, status(0x6c, [0, 0xff, 0, 0]))?;
    is(
        "a source that is none",
        PARAMETER,
        status(0x64, [0xff00_0000 | 0x4_0000, 0, 0, 0]),
    )?;
    is("ended", 0, status(0x64, [accepted, 0, 0, 0]))?;
    let (_, [nothing, ..]) = values(0x74, [0; 4]);
    holds("it came once", nothing & 0xff_ffff == 0)
}

fn priorities() -> Result<(), Wrong> {
    is("priority 4", 0, status(0x68, [4, 0, 0, 0]))?;
    is("as favoured as that", 0, status(0x6c, [0, 4, 0, 0]))?;
    let (_, [nothing, ..]) = values(0x74, [0; 4]);
    holds(
        "not more favoured is not accepted",
        nothing & 0xff_ffff == 0,
    )?;
    is("priority 5", 0, status(0x68, [5, 0, 0, 0]))?;
    let (_, [accepted, ..]) = values(0x74, [0; 4]);
    holds("more favoured is", accepted == 0x0500_0002)?;
    is("more favoured still", 0, status(0x6c, [0, 3, 0, 0]))?;
    let (_, [nested, ..]) = values(0x74, [0; 4]);
    holds("it interrupts the interrupt", nested == 0x0400_0002)?;
    is("none any more", 0, status(0x6c, [0, 0xff, 0, 0]))?;
    is("ended", 0, status(0x64, [nested, 0, 0, 0]))?;
    is("ended", 0, status(0x64, [accepted, 0, 0, 0]))?;
    is("priority", 0, status(0x68, [0xff, 0, 0, 0]))
}

/// It is pending when interrupts are let through, of which the hypervisor is not told.
fn waits_for_ee() -> Result<(), Wrong> {
    is("to oneself", 0, status(0x6c, [0, 4, 0, 0]))?;
    let left = cage::run(loop_masked_then_unmasked, 0, 0);
    holds("it came", left == cage::Left::Exception(0x500))?;
    holds("it came once interrupts were let through", read(PAGE) == 1)?;
    is("none any more", 0, status(0x6c, [0, 0xff, 0, 0]))?;
    let (_, [nothing, ..]) = values(0x74, [0; 4]);
    holds("it is gone", nothing & 0xff_ffff == 0)
}

extern "C" fn loop_masked_then_unmasked(_: u64, _: u64) {
    write(PAGE, 0);
    let wait = |us| {
        let end = cpu::now() + cpu::ticks(us);
        while cpu::now() < end {}
    };
    wait(2_000);
    write(PAGE, 1);
    cpu::unmask();
    wait(5_000_000);
    cpu::mask();
}

fn xirr_x() -> Result<(), Wrong> {
    let before = cpu::now();
    let (status, [accepted, time, ..]) = values(0x2fc, [0; 4]);
    is("status", 0, status)?;
    holds("nothing is pending", accepted & 0xff_ffff == 0)?;
    holds("the time base", (before..=cpu::now()).contains(&time))
}

fn register_vpa() -> Result<(), Wrong> {
    const VPA: u64 = 1 << 45;
    const TAKE_BACK: u64 = 5 << 45;
    let area = PAGE + 0x2000;
    for at in (area..area + 640).step_by(8) {
        write(at, 0);
    }
    // Its size, big-endian, in bytes 4 and 5.
    write(area, u64::from(640_u16.swap_bytes()) << 32);
    is("address 0", -1, status(0xdc, [VPA, 0, 0, 0]))?;
    is("alignment", PARAMETER, status(0xdc, [VPA, 0, area + 8, 0]))?;
    is("nobody's", PARAMETER, status(0xdc, [VPA, 77, area, 0]))?;
    is("nowhere", PARAMETER, status(0xdc, [VPA, 0, NOWHERE, 0]))?;
    is("register", 0, status(0xdc, [VPA, 0, area, 0]))?;
    let count = || u32::from_be((read(area + 0x100) & 0xffff_ffff) as u32);
    let before = count();
    holds("even while it runs", before.is_multiple_of(2))?;
    cede_for(2000)?;
    let after = count();
    holds(
        "it was dispatched again",
        after > before && after.is_multiple_of(2),
    )?;
    is("taken back", 0, status(0xdc, [TAKE_BACK, 0, 0, 0]))?;
    cede_for(2000)?;
    holds("it is not counted there any more", count() == after)
}

extern "C" fn cede(_: u64, _: u64) {
    status(0xe0, [0; 4]);
}

/// Waits for the decrementer.
fn cede_for(us: u64) -> Result<(), Wrong> {
    let end = cpu::now() + cpu::ticks(us);
    while cpu::now() < end {
        cpu::set_decrementer(end.saturating_sub(cpu::now()).cast_signed());
        match cage::run(cede, 0, 0) {
            cage::Left::Completed | cage::Left::Exception(0x900) => {}
            cage::Left::Exception(vector) => return Err(Wrong("vector", vector.cast_signed())),
        }
    }
    cpu::set_decrementer(i64::from(i32::MAX));
    Ok(())
}

fn cede_and_prod() -> Result<(), Wrong> {
    is("prod nobody", PARAMETER, status(0xe8, [77, 0, 0, 0]))?;
    is("prod oneself", 0, status(0xe8, [0; 4]))?;
    // Or it would wait for ever.
    let left = cage::run(cede, 0, 0);
    holds("it comes back at once", left == cage::Left::Completed)?;
    // With interrupts let through, as after every wait: one that is there comes.
    is("to oneself", 0, status(0x6c, [0, 4, 0, 0]))?;
    is("prod oneself", 0, status(0xe8, [0; 4]))?;
    let left = cage::run(cede, 0, 0);
    holds(
        "a wait that a prod has ended lets interrupts through",
        left == cage::Left::Exception(0x500),
    )?;
    is("none any more", 0, status(0x6c, [0, 0xff, 0, 0]))?;
    let before = cpu::now();
    cede_for(3000)?;
    holds(
        "the decrementer ends a wait",
        cpu::now() - before >= cpu::ticks(3000),
    )
}

fn join() -> Result<(), Wrong> {
    // The last that runs.
    is("alone", 18, status(0x298, [0; 4]))?;
    let left = cage::run(joins_unmasked, 0, 0);
    holds("with interrupts on", left == cage::Left::Completed)?;
    is("with interrupts on", -5, read(PAGE).cast_signed())
}

extern "C" fn joins_unmasked(_: u64, _: u64) {
    cpu::unmask();
    let found = status(0x298, [0; 4]);
    cpu::mask();
    write(PAGE, found.cast_unsigned());
}

fn confer() -> Result<(), Wrong> {
    is("to all", 0, status(0xe4, [u64::MAX, 0, 0, 0]))?;
    is("to nobody", PARAMETER, status(0xe4, [77, 0, 0, 0]))?;
    is("prod oneself", 0, status(0xe8, [0; 4]))?;
    is("to oneself after a prod", 0, status(0xe4, [0; 4]))?;
    // Without one, an interrupt that is let through ends it.
    is("an interrupt", 0, status(0x6c, [0, 4, 0, 0]))?;
    let left = cage::run(confers_to_itself, 0, 0);
    holds("to oneself", left == cage::Left::Exception(0x500))?;
    is("none any more", 0, status(0x6c, [0, 0xff, 0, 0]))
}

extern "C" fn confers_to_itself(_: u64, _: u64) {
    cpu::unmask();
    status(0xe4, [0; 4]);
}

fn home_node() -> Result<(), Wrong> {
    let (found, path) = values(0x2ec, [1, 0, 0, 0]);
    is("status", 0, found)?;
    holds(
        "the path of processor 0",
        path == [0, 0, u32::MAX.into(), u64::MAX, u64::MAX, u64::MAX],
    )?;
    is("of a device", FUNCTION, status(0x2ec, [2, 0, 0, 0]))?;
    is("of nobody", -55, status(0x2ec, [1, 77, 0, 0]))
}

fn random() -> Result<(), Wrong> {
    let (first, [one, ..]) = values(0x300, [0; 4]);
    let (second, [other, ..]) = values(0x300, [0; 4]);
    is("status", 0, first | second)?;
    holds("two numbers differ", one != other)
}

fn set_mode() -> Result<(), Wrong> {
    is("little-endian", 0, status(0x31c, [1, 4, 0, 0]))?;
    is("location 0", 0, status(0x31c, [0, 3, 0, 0]))?;
    is("location 1", -256, status(0x31c, [1, 3, 0, 0]))?;
    is(
        "a byte order that is none",
        -256,
        status(0x31c, [2, 4, 0, 0]),
    )?;
    is("a resource that is none", -55, status(0x31c, [0, 9, 0, 0]))?;
    is("a watchpoint", -55, status(0x31c, [0, 2, PAGE, 0]))?;
    is("a first value", -56, status(0x31c, [1, 4, 1, 0]))?;
    is("a second value", -57, status(0x31c, [1, 4, 0, 1]))
}

fn register_process_table() -> Result<(), Wrong> {
    const REGISTER: u64 = 0x1d;
    const TAKE_BACK: u64 = 0x14;
    is(
        "nothing is registered",
        PARAMETER,
        status(0x37c, [0x04, 0, 0, 0]),
    )?;
    is("flags", PARAMETER, status(0x37c, [0x20, PAGE, 0, 0]))?;
    is("hash", PARAMETER, status(0x37c, [0x18, PAGE, 0, 0]))?;
    is("alignment", -55, status(0x37c, [REGISTER, PAGE + 8, 0, 0]))?;
    is("nowhere", -55, status(0x37c, [REGISTER, NOWHERE, 0, 0]))?;
    is("page size", -56, status(0x37c, [REGISTER, PAGE, 5, 0]))?;
    is("size", -57, status(0x37c, [REGISTER, PAGE, 0, 25]))?;
    is("register", 0, status(0x37c, [REGISTER, PAGE, 0, 0]))?;
    is("it is registered", 0, status(0x37c, [0x04, 0, 0, 0]))?;
    is("taken back", 0, status(0x37c, [TAKE_BACK, 0, 0, 0]))
}

fn signal_reset() -> Result<(), Wrong> {
    is("nobody", PARAMETER, status(0x380, [77, 0, 0, 0]))?;
    is(
        "all others, of which there are none",
        0,
        status(0x380, [u64::MAX - 1, 0, 0, 0]),
    )?;
    let left = cage::run(reset_oneself, 0, 0);
    holds("oneself", left == cage::Left::Exception(0x100))
}

extern "C" fn reset_oneself(_: u64, _: u64) {
    status(0x380, [0; 4]);
    // It comes before the next instruction, or with the next exit.
    status(0x68, [0xff, 0, 0, 0]);
}

fn rtas() -> Result<(), Wrong> {
    let block = |inputs: u32, outputs: u32| {
        write(
            PAGE,
            u64::from(0x2005_u32.swap_bytes()) | u64::from(inputs.swap_bytes()) << 32,
        );
        write(PAGE + 8, u64::from(outputs.swap_bytes()));
    };
    block(1, 2);
    is("a block", 0, status(0xf000, [PAGE, 0, 0, 0]))?;
    block(17, 2);
    is("many arguments", PARAMETER, status(0xf000, [PAGE, 0, 0, 0]))?;
    block(1, u32::MAX);
    is("many results", PARAMETER, status(0xf000, [PAGE, 0, 0, 0]))?;
    is("nowhere", PARAMETER, status(0xf000, [NOWHERE, 0, 0, 0]))?;
    is(
        "at the end",
        PARAMETER,
        status(0xf000, [u64::MAX - 3, 0, 0, 0]),
    )
}

fn unknown() -> Result<(), Wrong> {
    for number in [
        0,
        4,
        0x1c,
        0x20,
        0x138,
        0x244,
        0x3a8,
        0x460,
        0xf001,
        0xf800,
        0xf804,
        u64::MAX,
    ] {
        is("status", FUNCTION, status(number, [0; 4]))?;
    }
    Ok(())
}
