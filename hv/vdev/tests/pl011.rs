//! The console, as a driver sees it.

use bulkhead_vdev::{Effects, FIFO_DEPTH, Line, Pl011, Width};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

const DR: u64 = 0x000;
const FR: u64 = 0x018;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const ICR: u64 = 0x044;

const FR_RXFE: u64 = 1 << 4;
const FR_RXFF: u64 = 1 << 6;
const FR_TXFE: u64 = 1 << 7;
const FR_TXFF_BUSY: u64 = 1 << 5 | 1 << 3;
const FEN: u64 = 1 << 4;
const RX: u64 = 1 << 4;
const TX: u64 = 1 << 5;
const RT: u64 = 1 << 6;

fn get(uart: &mut Pl011, offset: u64) -> u64 {
    uart.read(offset, Width::Word).0
}

fn put(uart: &mut Pl011, offset: u64, value: u64) -> Effects {
    uart.write(offset, Width::Word, value)
}

fn line(effects: Effects) -> Option<Line> {
    effects.line
}

#[test]
fn a_driver_finds_an_arm_pl011_with_32_entries() {
    let mut uart = Pl011::new();
    let ids: Vec<_> = (0..8).map(|n| get(&mut uart, 0xfe0 + 4 * n)).collect();
    assert_eq!(ids, [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(get(&mut uart, 0xfdc), 0);
    assert_eq!(get(&mut uart, 0x1000), 0);
}

#[test]
fn a_kernel_may_print_before_it_sets_the_console_up() {
    let mut uart = Pl011::new();
    assert_eq!(get(&mut uart, CR), 0x301);
    let flags = get(&mut uart, FR);
    assert_eq!(flags & FR_TXFF_BUSY, 0);
    assert_eq!(flags & FR_TXFE, FR_TXFE);
    for width in [Width::Byte, Width::Half, Width::Word] {
        let effects = uart.write(DR, width, 0x141);
        assert_eq!((effects.transmitted, effects.line), (Some(0x41), None));
    }
    assert_eq!(uart.line(), Line::Released);
}

#[test]
fn registers_keep_the_bits_they_have() {
    let mut uart = Pl011::new();
    let registers = [
        (0x020, 0xff),
        (0x024, 0xffff),
        (0x028, 0x3f),
        (LCR_H, 0xff),
        (CR, 0xff87),
        (IFLS, 0x3f),
        (IMSC, 0x7ff),
        (0x048, 7),
    ];
    for (offset, mask) in registers {
        let _ = put(&mut uart, offset, 0xffff_ffff);
        assert_eq!(get(&mut uart, offset), mask, "{offset:#x}");
        let _ = put(&mut uart, offset, 0);
        assert_eq!(get(&mut uart, offset), 0, "{offset:#x}");
    }
    // Read-only, write-only and absent registers.
    let before = get(&mut uart, FR);
    for offset in [FR, RIS, MIS, 0x004, 0xfe0, 0x100] {
        let effects = put(&mut uart, offset, 0xffff_ffff);
        assert_eq!(effects, Effects::default());
    }
    assert_eq!((get(&mut uart, FR), get(&mut uart, ICR)), (before, 0));
    assert_eq!(get(&mut uart, 0xfe0), 0x11);
}

#[test]
fn narrow_reads_see_their_bytes() {
    let mut uart = Pl011::new();
    let _ = put(&mut uart, IMSC, 0x7a5);
    assert_eq!(uart.read(IMSC, Width::Byte).0, 0xa5);
    assert_eq!(uart.read(IMSC + 1, Width::Byte).0, 0x07);
    assert_eq!(uart.read(IMSC + 2, Width::Half).0, 0);
    assert_eq!(uart.read(IMSC, Width::Double).0, 0x7a5);
    // A write that starts inside a register does nothing.
    let _ = uart.write(IMSC + 1, Width::Byte, 0);
    assert_eq!(get(&mut uart, IMSC), 0x7a5);
}

#[test]
fn one_typed_byte_interrupts_and_is_read_back() {
    let mut uart = Pl011::new();
    assert_eq!(line(put(&mut uart, IMSC, RX | RT)), None);
    let (count, effects) = uart.receive(b"a");
    assert_eq!((count, line(effects)), (1, Some(Line::Asserted)));
    // Below the watermark it is the time-out that interrupts.
    assert_eq!(get(&mut uart, MIS), RT);
    assert_eq!(get(&mut uart, FR) & (FR_RXFE | FR_RXFF), 0);
    assert_eq!(uart.read(DR, Width::Word).0, u64::from(b'a'));
    assert_eq!(get(&mut uart, FR) & FR_RXFE, FR_RXFE);
    assert_eq!((get(&mut uart, RIS), uart.line()), (0, Line::Released));
}

#[test]
fn reading_the_last_byte_says_that_the_line_fell() {
    let mut uart = Pl011::new();
    let _ = put(&mut uart, IMSC, RT);
    let _ = uart.receive(b"ab");
    assert_eq!(line(uart.read(DR, Width::Word).1), None);
    assert_eq!(line(uart.read(DR, Width::Word).1), Some(Line::Released));
    // An empty FIFO reads zero and stays empty.
    assert_eq!(uart.read(DR, Width::Word), (0, Effects::default()));
}

#[test]
fn watermarks_are_where_ifls_puts_them() {
    for (select, watermark) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
        let mut uart = Pl011::new();
        let _ = put(&mut uart, IFLS, select << 3);
        let (count, _) = uart.receive(&vec![0; watermark - 1]);
        assert_eq!(count, watermark - 1);
        assert_eq!(get(&mut uart, RIS) & RX, 0, "{watermark}");
        let _ = uart.receive(&[0]);
        assert_eq!(get(&mut uart, RIS) & RX, RX, "{watermark}");
        let _ = uart.read(DR, Width::Byte);
        assert_eq!(get(&mut uart, RIS) & RX, 0, "{watermark}");
    }
}

#[test]
fn a_full_fifo_takes_no_more_and_loses_nothing() {
    let mut uart = Pl011::new();
    let input: Vec<u8> = (0..40).collect();
    let (count, _) = uart.receive(&input);
    assert_eq!((count, uart.receive_room()), (FIFO_DEPTH, 0));
    assert_eq!(get(&mut uart, FR) & FR_RXFF, FR_RXFF);
    assert_eq!(uart.receive(&input[count..]).0, 0);
    for expected in &input[..count] {
        assert_eq!(get(&mut uart, DR), u64::from(*expected));
    }
    assert_eq!(uart.receive_room(), FIFO_DEPTH);
}

#[test]
fn without_fifos_there_is_one_entry_and_no_time_out() {
    let mut uart = Pl011::new();
    let _ = uart.receive(b"lost when the FIFO goes");
    let _ = put(&mut uart, LCR_H, 0x60);
    assert_eq!(get(&mut uart, FR) & FR_RXFE, FR_RXFE);
    assert_eq!(get(&mut uart, RIS), 0);
    assert_eq!(uart.receive(b"xy").0, 1);
    assert_eq!(get(&mut uart, RIS), RX);
    assert_eq!(get(&mut uart, FR) & FR_RXFF, FR_RXFF);
    assert_eq!(get(&mut uart, DR), u64::from(b'x'));
    assert_eq!(get(&mut uart, RIS), 0);
}

#[test]
fn a_receiver_that_is_off_takes_nothing() {
    for off in [0x101, 0x300, 0x381] {
        let mut uart = Pl011::new();
        let _ = put(&mut uart, CR, off);
        assert_eq!(uart.receive(b"x").0, 0, "{off:#x}");
        let _ = put(&mut uart, CR, 0x301);
        assert_eq!(uart.receive(b"x").0, 1);
    }
}

#[test]
fn a_cleared_time_out_comes_back_while_data_waits() {
    let mut uart = Pl011::new();
    let _ = put(&mut uart, IMSC, RT);
    let _ = uart.receive(b"abc");
    assert_eq!(line(put(&mut uart, ICR, RT)), Some(Line::Released));
    // Nothing new: no interrupt. The next read leaves data, and that times out again.
    assert_eq!(get(&mut uart, RIS), 0);
    assert_eq!(line(uart.read(DR, Width::Word).1), Some(Line::Asserted));
}

/// Linux enables the interrupt, then sends the first byte itself and waits for the rest.
#[test]
fn the_transmit_interrupt_follows_a_byte_and_not_an_empty_fifo() {
    let mut uart = Pl011::new();
    assert_eq!(line(put(&mut uart, IMSC, TX)), None);
    let effects = put(&mut uart, DR, u64::from(b'a'));
    assert_eq!(effects.transmitted, Some(b'a'));
    assert_eq!(effects.line, Some(Line::Asserted));
    assert_eq!(line(put(&mut uart, ICR, TX)), Some(Line::Released));
    // Another byte, and the line falls by masking alone.
    assert_eq!(line(put(&mut uart, DR, 0)), Some(Line::Asserted));
    assert_eq!(line(put(&mut uart, IMSC, 0)), Some(Line::Released));
    assert_eq!((get(&mut uart, RIS), get(&mut uart, MIS)), (TX, 0));
}

#[test]
fn loopback_returns_what_is_sent() {
    let mut uart = Pl011::new();
    let _ = put(&mut uart, CR, 0x381);
    assert_eq!(put(&mut uart, DR, 0x55).transmitted, None);
    assert_eq!(get(&mut uart, DR), 0x55);
}

fn widths() -> impl Strategy<Value = Width> {
    prop_oneof![
        Just(Width::Byte),
        Just(Width::Half),
        Just(Width::Word),
        Just(Width::Double)
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, Width),
    Write(u64, Width, u64),
    Input(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![0_u64..0x50, any::<u64>()];
    let step = prop_oneof![
        (offset.clone(), widths()).prop_map(|(offset, width)| Step::Read(offset, width)),
        (offset, widths(), any::<u64>()).prop_map(|(o, w, v)| Step::Write(o, w, v)),
        proptest::collection::vec(any::<u8>(), 0..50).prop_map(Step::Input),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Whoever follows the effects knows the line, and the line is what the registers say.
    #[test]
    fn the_effects_tell_every_change_of_the_line(steps in steps()) {
        let mut uart = Pl011::new();
        let mut followed = uart.line();
        for step in steps {
            let effects = match step {
                Step::Read(offset, width) => {
                    let (value, effects) = uart.read(offset, width);
                    assert_eq!(value & !width.mask(), 0);
                    effects
                }
                Step::Write(offset, width, value) => uart.write(offset, width, value),
                Step::Input(bytes) => uart.receive(&bytes).1,
            };
            if let Some(line) = effects.line {
                assert_ne!(line, followed);
                followed = line;
            }
            assert_eq!(followed, uart.line());
            let asserted = get(&mut uart, MIS) != 0;
            assert_eq!(followed == Line::Asserted, asserted);
            let fifos = get(&mut uart, LCR_H) & FEN != 0;
            assert!(uart.receive_room() <= if fifos { FIFO_DEPTH } else { 1 });
        }
    }
}
