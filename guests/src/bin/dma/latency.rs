//! What a message costs: from the write that makes the device send it to the vector of its handler.
//!
//! Counted with the virtual counter: instructions, on a machine that counts one tick for each.

use core::sync::atomic::Ordering;

use guests::options::Options;
use guests::{cpu, println};

use crate::{Devices, RECEIVED, Summary, Verdict, await_lpis, lpis, start_messages};

const RUNS: usize = 200;
/// The first ones fill the emulator's caches and are left out.
const WARM_UP: usize = 16;

pub(crate) fn run(_: &Options) -> Verdict {
    let devices = Devices::open()?;
    let _its = start_messages(&devices)?;
    let edu = devices.first();
    let mut times = [0; RUNS];
    let mut empty = u64::MAX;
    for _ in 0..WARM_UP {
        let before = cpu::now();
        empty = empty.min(cpu::now() - before);
    }
    for number in 0..WARM_UP + RUNS {
        let wanted = lpis(0) + 1;
        cpu::unmask();
        let before = cpu::now();
        edu.raise(1);
        // The write has reached the device, and the message the CPU, before much else is done.
        for _ in 0..1000 {
            if lpis(0) >= wanted {
                break;
            }
            core::hint::spin_loop();
        }
        cpu::mask();
        await_lpis(0, wanted)?;
        let took = RECEIVED
            .entered
            .load(Ordering::SeqCst)
            .saturating_sub(before);
        edu.acknowledge(1);
        if let Some(place) = number
            .checked_sub(WARM_UP)
            .and_then(|index| times.get_mut(index))
        {
            *place = took.saturating_sub(empty);
        }
    }
    times.sort_unstable();
    println!(
        "bench msi-to-handler {} {} {}",
        times[RUNS / 2],
        times[0],
        times[RUNS - 1]
    );
    Ok(Summary::new(&[
        ("median", times[RUNS / 2]),
        ("least", times[0]),
        ("most", times[RUNS - 1]),
    ]))
}
