//! `devtool vfio-pair`: two `edu`s in two IO address spaces with the same addresses. Each reaches its own memory;
//! what is taken from the one stays with the other.

use devtool::edu::{AtTheEnd, Direction};
use devtool::event::F_TRANSLATION;

use crate::check::{AT, Bench, FIRST, LONG, SECOND};
use crate::linux::Arguments;
use crate::log::Log;
use crate::{Failure, println};

/// Does it.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let (Some(function), Some(group), Some(other_function), Some(other_group)) = (
        arguments.get(2),
        arguments.get(3),
        arguments.get(4),
        arguments.get(5),
    ) else {
        return Err(Failure::Usage);
    };
    let mut one = Bench::open(function, group)?;
    let mut other = Bench::open(other_function, other_group)?;
    let benches = [(&one, 1), (&other, 2)];
    for (bench, salt) in benches {
        bench.fill(salt);
    }
    for (direction, place) in [(Direction::Read, FIRST), (Direction::Write, SECOND)] {
        for (bench, _) in benches {
            bench.start(direction, place + AT as u64, LONG, AtTheEnd::Silence)?;
        }
        for (bench, _) in benches {
            bench.wait()?;
        }
    }
    for (bench, salt) in benches {
        bench.judge_copy(salt)?;
    }
    one.log.quiet()?;
    println!(
        "devtool: both copied {LONG} bytes at the same time, {FIRST:#x} to {SECOND:#x}, each its own"
    );

    other.log = Log::open()?;
    other.container.unmap(&other.second, SECOND)?;
    other.refused(
        "what the other one still has",
        Direction::Write,
        SECOND + AT as u64,
        F_TRANSLATION,
    )?;
    one.log = Log::open()?;
    one.copies(3)?;
    println!("devtool: ok: two devices, two address spaces");
    Ok(())
}
