//! The hypercalls of a guest. [LoPAPR §14.5]

use hal::{Console, FrameAllocator, PhysMemory};

use super::rtas::{self, Effect};
use super::tree::TERMINAL;
use super::{End, GuestCpu, LPID};
use crate::console::Terminal;

/// `H_SUCCESS`.
const SUCCESS: i64 = 0;
/// `H_FUNCTION`: no such call.
const FUNCTION: i64 = -2;
/// `H_PRIVILEGE`: not in problem state.
pub(super) const PRIVILEGE: i64 = -3;
/// `H_PARAMETER`.
const PARAMETER: i64 = -4;
/// `H_P2`.
const P2: i64 = -55;
/// `H_UNSUPPORTED_FLAG` for the lowest bit.
const UNSUPPORTED_FLAG: i64 = -256;

const H_EOI: u64 = 0x64;
const H_CPPR: u64 = 0x68;
const H_IPI: u64 = 0x6c;
const H_IPOLL: u64 = 0x70;
const H_XIRR: u64 = 0x74;
const H_GET_TERM_CHAR: u64 = 0x54;
const H_PUT_TERM_CHAR: u64 = 0x58;
const H_CEDE: u64 = 0xe0;
const H_SET_MODE: u64 = 0x31c;
const H_REGISTER_PROC_TBL: u64 = 0x37c;
const H_RTAS: u64 = 0xf000;

/// What follows a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The guest goes on with this status.
    Done(i64),
    /// The guest waits for an interrupt.
    Wait,
    /// The guest ends.
    End(End),
}

/// Serves the call that the CPU has made.
pub(super) fn serve<M, F>(cpu: &mut GuestCpu<'_, M, F>) -> Answer
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    let [number, arguments @ ..] = [3, 4, 5, 6, 7].map(|i| cpu.loaded.vcpu.registers.gpr[i]);
    let status = match number {
        H_PUT_TERM_CHAR => put_term_char(arguments),
        H_GET_TERM_CHAR => return get_term_char(cpu, arguments[0]),
        H_CEDE => return Answer::Wait,
        H_SET_MODE => set_mode(cpu, arguments),
        H_REGISTER_PROC_TBL => register_process_table(cpu, arguments),
        H_EOI | H_CPPR | H_IPI | H_IPOLL | H_XIRR => presentation(cpu, number, arguments),
        H_RTAS => match rtas::call(cpu.memory, arguments[0], cpu.services) {
            Ok(Effect::Done) => SUCCESS,
            Ok(Effect::PowerOff) => return Answer::End(End::PowerOff),
            Ok(Effect::Reboot) => return Answer::End(End::Reboot),
            Err(_) => PARAMETER,
        },
        _ => FUNCTION,
    };
    Answer::Done(status)
}

fn is_terminal(unit: u64) -> bool {
    unit == 0 || unit == u64::from(TERMINAL)
}

fn put_term_char([unit, length, first, second]: [u64; 4]) -> i64 {
    let bytes = (u128::from(first) << 64 | u128::from(second)).to_be_bytes();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match bytes.get(..length) {
        Some(bytes) if is_terminal(unit) => {
            Terminal::write_raw(bytes);
            SUCCESS
        }
        _ => PARAMETER,
    }
}

fn get_term_char<M, F>(cpu: &mut GuestCpu<'_, M, F>, unit: u64) -> Answer
where
    F: FrameAllocator,
{
    if !is_terminal(unit) {
        return Answer::Done(PARAMETER);
    }
    let mut block = [0; 16];
    let mut length = 0;
    while length < block.len() {
        let Some(byte) = Terminal.read() else { break };
        block[length] = byte;
        length += 1;
    }
    let value = u128::from_be_bytes(block);
    let gpr = &mut cpu.loaded.vcpu.registers.gpr;
    gpr[4] = length as u64;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of a 128-bit number"
    )]
    {
        gpr[5] = (value >> 64) as u64;
        gpr[6] = value as u64;
    }
    Answer::Done(SUCCESS)
}

/// `H_SET_MODE`: the byte order of interrupts, and where they arrive. [LoPAPR §14.5.4.3.8]
fn set_mode<M, F>(cpu: &mut GuestCpu<'_, M, F>, [flags, resource, first, second]: [u64; 4]) -> i64
where
    F: FrameAllocator,
{
    const ENDIAN: u64 = 4;
    const TRANSLATION: u64 = 3;
    match (resource, first, second) {
        (ENDIAN | TRANSLATION, 0, 0) => {}
        (ENDIAN | TRANSLATION, ..) => return PARAMETER,
        _ => return P2,
    }
    match (resource, flags) {
        (ENDIAN, 0 | 1) => cpu.loaded.vcpu.set_little_endian_interrupts(flags == 1),
        (TRANSLATION, 0 | 3) => cpu.loaded.vcpu.set_alternate_location(flags == 3),
        _ => return UNSUPPORTED_FLAG,
    }
    SUCCESS
}

/// `H_REGISTER_PROC_TBL`: radix only, because the platform runs nothing else.
fn register_process_table<M, F>(
    cpu: &mut GuestCpu<'_, M, F>,
    [flags, base, page_size, size]: [u64; 4],
) -> i64
where
    M: PhysMemory + Copy,
    F: FrameAllocator,
{
    const RADIX: u64 = 0x04;
    const REGISTER: u64 = 0x08;
    const MODIFY: u64 = 0x10;
    const GTSE: u64 = 0x01;
    const LARGEST: u64 = 24;
    /// Guest radix: the partition translates by radix trees of its own.
    const GUEST_RADIX: u64 = 1 << 63;
    if flags & !(RADIX | REGISTER | MODIFY | GTSE) != 0 || flags & MODIFY == 0 {
        return PARAMETER;
    }
    let entry = if flags & REGISTER == 0 {
        0
    } else if flags & RADIX == 0 || page_size != 0 || size > LARGEST || base & 0xfff != 0 {
        return PARAMETER;
    } else {
        let bytes = 1_u64 << (12 + size);
        if base
            .checked_add(bytes)
            .is_none_or(|end| end > cpu.memory.bytes())
        {
            return PARAMETER;
        }
        GUEST_RADIX | base | size
    };
    match cpu.table.set(LPID, cpu.memory.partition_entry(), entry) {
        Ok(()) => SUCCESS,
        Err(_) => PARAMETER,
    }
}

fn presentation<M, F>(cpu: &mut GuestCpu<'_, M, F>, number: u64, arguments: [u64; 4]) -> i64
where
    F: FrameAllocator,
{
    let [first, second, ..] = arguments;
    let low = |value: u64| value.to_le_bytes()[0];
    let gpr = &mut cpu.loaded.vcpu.registers.gpr;
    match number {
        H_CPPR => cpu.icp.set_priority(low(first)),
        H_EOI => cpu.icp.end(u32::try_from(first & 0xffff_ffff).unwrap_or(0)),
        H_XIRR => gpr[4] = cpu.icp.accept().into(),
        // There is one CPU.
        H_IPI if first != 0 => return PARAMETER,
        H_IPI => cpu.icp.set_request(low(second)),
        _ => [gpr[4], gpr[5]] = cpu.icp.poll(),
    }
    SUCCESS
}
