//! `devtool reads DISK ORDER COUNT`: reads blocks of 4 KiB, one at a time, for a bench that counts instructions.
//!
//! It says when it begins, after each 256 reads and when it is done; what happens in between is the reads and
//! nothing else. No block is read twice, so that each read goes to the disk if nothing of it is in memory before.

use crate::linux::{Arguments, File, Open};
use crate::{Failure, println};

const BLOCK: usize = 4096;
/// After how many reads there is a sign of life.
const STRETCH: u64 = 256;
/// How far apart two reads at random are, in blocks: prime, so that none comes twice.
const STRIDE: u64 = 1237;

/// A block's bytes.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Runs the command.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let disk = arguments.get(2).ok_or(Failure::Usage)?;
    let order = arguments.get(3).ok_or(Failure::Usage)?;
    let stride = match order {
        "in-order" => 1,
        "at-random" => STRIDE,
        _ => return Err(Failure::Usage),
    };
    let count = arguments.get(4).and_then(|count| count.parse().ok());
    let count: u64 = count.ok_or(Failure::Usage)?;
    let how = match arguments.get(5) {
        None => Open::Read,
        Some("direct") => Open::Direct,
        Some(_) => return Err(Failure::Usage),
    };
    let file = File::open(&["/dev/", disk], how);
    let file = file.map_err(|error| Failure::Call("open", error))?;
    let end = file.seek_end();
    let end = end.map_err(|error| Failure::Call("lseek", error))?;
    let blocks = (end / BLOCK) as u64;
    if blocks < count || blocks.is_multiple_of(STRIDE) {
        return Err(Failure::Differs("blocks of the disk", blocks, count));
    }
    let mut block = Block([0; BLOCK]);
    println!("reads {order}: {count} begin");
    for number in 0..count {
        let at = number * stride % blocks * BLOCK as u64;
        let bytes = file.read_at(at, &mut block.0);
        let bytes = bytes.map_err(|error| Failure::Call("pread", error))?;
        if bytes != BLOCK {
            return Err(Failure::Differs("bytes read", bytes as u64, BLOCK as u64));
        }
        if (number + 1).is_multiple_of(STRETCH) {
            println!(".");
        }
    }
    println!("reads {order}: {count} end");
    Ok(())
}
