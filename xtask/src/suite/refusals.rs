//! Judges a console on which devices reached for what is not theirs: every refusal must have been told, with
//! the stream.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use regex::Regex;

/// Bytes from one target of a sweep to the next, and where in each it aims: as in `guests/src/bin/dma/sweep.rs`.
const STEP: u64 = 0x20_0000;
const AIM: u64 = 0x1f_f000;
const TOP: u64 = 1 << 32;
/// The sweeping VM's own memory: 80 MiB.
const OWN: std::ops::Range<u64> = 0x4000_0000..0x4500_0000;
/// Registers that a sweep aims at, of which none may be reached: of the GIC, the ITS, the SMMU, the UART,
/// configuration space, BARs of the neighbour and of the sweeping devices themselves. Not the distributor's
/// first page: there is the window of messages in the devices' view.
const REGISTERS: [u64; 13] = [
    0x0808_0000,
    0x080b_0180,
    0x0900_0000,
    0x0905_0020,
    0x0905_0044,
    0x0906_00a8,
    0x1000_0004,
    0x1010_0004,
    0x1020_0004,
    0x1100_0004,
    0x40_1000_0000,
    0x40_1000_803c,
    0x40_1001_003c,
];
/// The streams of the sweeping devices, and of the neighbour's.
const SWEEPING: [u64; 2] = [0x100, 0x200];
const NEIGHBOUR: u64 = 0x300;

/// A refusal that the log tells of: stream, whether it was a write, page.
type Told = BTreeSet<(u64, bool, u64)>;

fn told(console: &str) -> Result<Told> {
    let line = Regex::new(
        r"smmu\d: F_TRANSLATION sid 0x([0-9a-f]+) (read|write) of 0x([0-9a-f]+), stage 2, \S+ of VM \d",
    )?;
    let number = |text: &str| u64::from_str_radix(text, 16);
    line.captures_iter(console)
        .map(|found| {
            Ok((
                number(&found[1])?,
                &found[2] == "write",
                number(&found[3])? & !0xfff,
            ))
        })
        .collect()
}

/// Whether each access of a sweep that was refused was told of, and none that was not, and the neighbour's too.
///
/// # Errors
/// What is missing.
pub(super) fn judge_sweep(console: &str) -> Result<()> {
    let told = told(console)?;
    let swept = (0..TOP / STEP).map(|step| step * STEP + AIM);
    let refused = swept.clone().filter(|target| !OWN.contains(target));
    for target in refused.chain(REGISTERS) {
        for is_write in [false, true] {
            let has = |stream| told.contains(&(stream, is_write, target & !0xfff));
            ensure!(
                SWEEPING.into_iter().any(has),
                "no record names the {} of {target:#x}",
                if is_write { "write" } else { "read" }
            );
        }
    }
    for target in swept.filter(|target| OWN.contains(target)) {
        let is_told = |&(stream, _, page): &(u64, bool, u64)| {
            SWEEPING.contains(&stream) && page == target & !0xfff
        };
        ensure!(
            !told.iter().any(is_told),
            "an access of own memory at {target:#x} was refused"
        );
    }
    neighbour(&told, 250)
}

/// Whether every refusal of the neighbour was told of, while others flooded.
///
/// # Errors
/// What is missing.
pub(super) fn judge_neighbour(console: &str) -> Result<()> {
    let told = told(console)?;
    for stream in SWEEPING {
        ensure!(
            told.iter().any(|&(of, ..)| of == stream),
            "nothing was told of stream {stream:#x}, which floods"
        );
    }
    neighbour(&told, 1000)
}

/// Whether every refusal of the neighbour was told of, while a guest's own SMMU was flooded.
///
/// # Errors
/// What is missing.
pub(super) fn judge_bystander(console: &str) -> Result<()> {
    neighbour(&told(console)?, 1000)
}

/// Every 50 beats it writes where nothing is.
fn neighbour(told: &Told, beats: u64) -> Result<()> {
    for beat in (50..=beats).step_by(50) {
        let page = 0x30_0000_0000 + beat * 0x1000;
        // What is refused with the last beat may come after the end.
        ensure!(
            beat == beats || told.contains(&(NEIGHBOUR, true, page)),
            "no record names the neighbour's write of {page:#x}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: u64, is_write: bool, address: u64) -> String {
        let way = if is_write { "write" } else { "read" };
        format!(
            "INFO  hardware: smmu0: F_TRANSLATION sid {stream:#x} {way} of {address:#x}, stage 2, 01:00.0 of VM 1\r\n"
        )
    }

    fn good() -> String {
        let swept = (0..TOP / STEP).map(|step| step * STEP + AIM);
        let refused = swept
            .filter(|target| !OWN.contains(target))
            .chain(REGISTERS);
        let own = refused.flat_map(|target| [false, true].map(|way| line(0x200, way, target)));
        let neighbours = (50..250).step_by(50);
        let neighbours = neighbours.map(|beat| line(0x300, true, 0x30_0000_0000 + beat * 0x1000));
        own.chain(neighbours).collect()
    }

    #[test]
    fn each_refusal_must_be_told_with_its_stream() {
        assert!(judge_sweep(&good()).is_ok());
        assert!(judge_sweep("").is_err());
        let missing = line(0x200, true, 0x1010_0004);
        assert!(judge_sweep(&good().replace(&missing, "")).is_err());
        let another = missing.replace("sid 0x200", "sid 0x300");
        assert!(judge_sweep(&good().replace(&missing, &another)).is_err());
        let neighbours = line(0x300, true, 0x30_0003_2000);
        assert!(good().contains(&neighbours));
        assert!(judge_sweep(&good().replace(&neighbours, "")).is_err());
    }

    #[test]
    fn own_memory_must_not_be_refused() {
        let own = line(0x100, false, OWN.start + AIM);
        assert!(judge_sweep(&(good() + &own)).is_err());
    }

    #[test]
    fn a_flood_and_its_neighbour_are_both_told_of() {
        let flood = line(0x100, true, 0) + &line(0x200, true, 0);
        let neighbours: String = (50..1000)
            .step_by(50)
            .map(|beat| line(0x300, true, 0x30_0000_0000 + beat * 0x1000))
            .collect();
        assert!(judge_neighbour(&(flood.clone() + &neighbours)).is_ok());
        assert!(judge_neighbour(&flood).is_err());
        assert!(judge_neighbour(&neighbours).is_err());
    }
}
