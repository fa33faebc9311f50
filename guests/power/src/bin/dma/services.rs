//! Storms of services: windows made and removed, errors handled that nobody had, right calls and wrong ones.

use power_guests::edu::Edu;
use power_guests::options::Options;
use power_guests::random::Random;
use power_guests::{cpu, println, rtas};

use crate::{Failure, fail};

/// Windows: query, create, remove, reset; and errors: option, address, state, reset, configure, detail.
const SERVICES: [(u32, usize); 10] = [
    (0x2026, 3),
    (0x2027, 5),
    (0x2028, 1),
    (0x2029, 3),
    (0x2020, 4),
    (0x2021, 4),
    (0x2022, 3),
    (0x2023, 4),
    (0x2024, 3),
    (0x2025, 8),
];

/// For `us` (1000000); at the end the device is as it was.
pub(crate) fn run(edu: Edu, options: Options) -> Result<(), Failure> {
    let end = cpu::now() + cpu::ticks(options.number("us").unwrap_or(1_000_000));
    let [at, high, low] = edu.function.name();
    let [status, pe]: [i32; 2] = rtas::service(0, 0x2021, &[at, high, low, 0]);
    if status != 0 {
        return fail("there is no PE", [status as u64, 0]);
    }
    let mut random = Random::new(11, 0);
    let mut draw = |below: u64| (random.bits() >> 8) % below;
    let mut counts = [0_u64; 2];
    while cpu::now() < end {
        let (token, count) = SERVICES[draw(10) as usize];
        let mut cells = [pe.cast_unsigned(), high, low, 0, 0, 0, 0, 0];
        match token {
            0x2027 => cells[3..5].copy_from_slice(&[12 + draw(2) as u32 * 4, 16 + draw(14) as u32]),
            0x2028 => cells[0] = 0x8000_0100 | draw(3) as u32,
            _ => cells[3] = draw(4) as u32,
        }
        if matches!(token, 0x2026 | 0x2027 | 0x2029) {
            cells[0] = at;
        }
        // Now and then one that is wrong somewhere.
        if draw(8) == 0 {
            cells[draw(count as u64) as usize] ^= 1 << draw(32);
        }
        let results = match token {
            0x2026 => rtas::service::<6>(0, token, &cells[..count])[0],
            0x2027 | 0x2022 => rtas::service::<4>(0, token, &cells[..count])[0],
            0x2021 => rtas::service::<2>(0, token, &cells[..count])[0],
            _ => rtas::service::<1>(0, token, &cells[..count])[0],
        };
        counts[usize::from(results < 0)] += 1;
    }
    let [done, refused] = counts;
    println!("dma verdict: services ok: done={done} refused={refused}");
    Ok(())
}
