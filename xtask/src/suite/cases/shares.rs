//! Two VMs that only compute, on one CPU: each gets its half, whatever its number of vCPUs.
//!
//! The first computes for five windows of time, the second for two: what the first does in its last two,
//! alone, is what the CPU can do.

use std::time::Duration;

use super::{Bundle, Case, Check};
use crate::qemu::Time;
use crate::suite::shares;

const BOARD: &str = "virt";

/// Two VMs; the second one's slice of time, its vCPUs and their pins.
macro_rules! manifest {
    ($slice_us:literal) => {
        manifest!($slice_us, 1, "[0]")
    };
    ($slice_us:literal, $cpus:literal, $pin:literal) => {
        Bundle::Manifest(concat!(
            "version = 1\n",
            "[[vm]]\nname = \"first\"\nmemory = \"32M\"\npin = [0]\ntime_slice_us = 4000\n",
            "kernel = \"guest:busy\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"windows=5 window_ms=100\"\n",
            "[[vm]]\nname = \"second\"\nmemory = \"32M\"\ncpus = ",
            $cpus,
            "\npin = ",
            $pin,
            "\ntime_slice_us = ",
            $slice_us,
            "\nkernel = \"guest:busy\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"windows=2 window_ms=100 cpus=",
            $cpus,
            "\"\n"
        ))
    };
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        two(
            "two busy VMs on one CPU each come half as far as one alone",
            manifest!(4000),
            shares::judge,
        ),
        two(
            "two busy VMs on one CPU share it alike when one has four vCPUs",
            manifest!(4000, 4, "[0, 0, 0, 0]"),
            shares::judge,
        ),
        // The control: the same judge, and a VM whose turns are twice as long.
        two(
            "a busy VM with longer turns is noticed",
            manifest!(8000),
            shares::judge_must_refuse,
        ),
    ]
}

fn two(name: &str, bundle: Bundle, judge: fn(&str) -> anyhow::Result<()>) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle).expect(&[
        r"\[second\] busy end: 2 windows",
        r"\[first\] busy end: 5 windows",
    ]);
    case.vary.time = Time::Instructions;
    case.vary.smp = Some(1);
    case.timeout = Duration::from_secs(600);
    case.check = Check::Judged(judge);
    case
}
