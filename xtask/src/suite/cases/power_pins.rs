//! Tests of interrupt pins on POWER (LSIs), and of a device that knows neither messages nor 64 bits.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use regex::Regex;

use super::vms::MONITOR;
use super::{Bundle, Case, Check, Disks};
use crate::qemu::Time;

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    vec![
        by_pins(),
        Case {
            only_full: true,
            ..two_by_pins()
        },
        levels(),
        storm(),
        no_pin_is_left(),
    ]
}

fn forbidden(case: &mut Case) {
    case.forbids = [
        r"\] (ERROR|WARN)  ",
        "PANIC|EXCEPTION",
        "FAILED",
        "(?i)call trace|nobody cared|completion polled",
        "[1-9][0-9]* wrong",
    ]
    .map(str::to_owned)
    .into();
}

/// A disk without messages. A NIC that has none is in `bridges`, across a restart.
fn by_pins() -> Case {
    let mut case = Case::new(
        BOARD,
        "an NVMe disk without messages interrupts by its pin, in the default window",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"one\"\nmemory = \"256M\"\ncpus = 1\npin = [0]\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\n",
        "append = \"console=hvc0 quiet pci=nomsi disable_ddw do=use:wires,off\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
    )))
    .expect(&[
        r"action use: .* nvme0n1, nvme, .*: [1-9]\d* interrupts by XICS, data written and read back",
        "action use: ok: 1 disks, 0 interfaces, ",
        "verdict 0: all VMs are off",
    ])
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    // With shadow doorbells its pin may stay up (docs/traps.md).
    .args(&["-device", "nvme,serial=spare1,dbcs=off,bus=p1.0,drive=spare1"]);
    case.disks = Disks::AndSpare(1);
    forbidden(&mut case);
    case.forbids.push("ibm,create-pe-dma-window".to_owned());
    case.timeout = Duration::from_secs(120);
    case.one_thread()
}

/// Two such VMs at the same time, each with its own kernel, across a restart.
fn two_by_pins() -> Case {
    let vm = |name: &str, kernel: &str, cpu: u32, bridge: u32| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"256M\"\ncpus = 1\npin = [{cpu}]\nkernel = \"debian:{kernel}\"\n\
             initrd = \"initramfs\"\nappend = \"console=hvc0 quiet pci=nomsi do=use:wires:restart,off\"\n\
             devices = [ {{ host = \"phb:80000002000000{bridge}\" }} ]\n"
        )
    };
    let vms = [vm("one", "6.12", 0, 1), vm("two", "6.1", 1, 2)].concat();
    let mut case = Case::new(
        BOARD,
        "NVMe disks of two VMs interrupt by their pins at the same time, across a restart",
    )
    .bundle(Bundle::Manifest(format!("version = 1\n{vms}").leak()))
    .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
    .args(&["-device", "spapr-pci-host-bridge,index=2,id=p2"])
    .args(&[
        "-device",
        "nvme,serial=spare1,dbcs=off,bus=p1.0,drive=spare1",
    ])
    .args(&[
        "-device",
        "nvme,serial=spare2,dbcs=off,bus=p2.0,drive=spare2",
    ]);
    case.disks = Disks::AndSpare(2);
    forbidden(&mut case);
    case.check = Check::Judged(both_by_pins);
    case.timeout = Duration::from_secs(200);
    case
}

/// Either may be first in all that it does.
fn both_by_pins(console: &str) -> Result<()> {
    for vm in ["one", "two"] {
        let told = |what: &str| {
            let regex = Regex::new(&format!(r"(?m)^\[{vm}\] .*{what}"))?;
            ensure!(regex.is_match(console), "{vm}: `{what}` was not seen");
            Ok(())
        };
        told("action use: 1 disks and 0 interfaces used, .* resetting")?;
        told(r"nvme0n1, nvme, .*: [1-9]\d* interrupts by XICS, data is as it was before")?;
        told("action use: ok: 1 disks, 0 interfaces, ")?;
    }
    Ok(())
}

/// A VM with the guest that has an `edu`: its name, its task, its CPU, its host bridge.
macro_rules! edu {
    ($name:literal, $task:literal, $cpu:literal, $bridge:literal, $more:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"32M\"\npin = [",
            $cpu,
            "]\nkernel = \"guest:dma\"\nkernel_format = \"elf\"\nrestart = \"never\"\nappend = \"",
            $task,
            "\"\ndevices = [ { host = \"phb:80000002000000",
            $bridge,
            "\" } ]\n",
            $more
        )
    };
}

/// The guests of our own, with an `edu` behind each of two host bridges.
fn case(name: &str, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle).edus_on_bridges(2);
    forbidden(&mut case);
    case.timeout = Duration::from_secs(120);
    case
}

/// Each VM knows its pin by the same number, whichever the machine's is.
fn levels() -> Case {
    let mut case = case(
        "a pin interrupts while it is up, and not while it is served, masked, off or down",
        Bundle::Manifest(concat!(
            edu!("a", "pin phb=1", "0", "1", ""),
            edu!("b", "pin phb=2", "1", "2", ""),
        )),
    )
    .expect(&[
        "dma verdict: pin ok: source=0x1200 came=42",
        "dma verdict: pin ok: source=0x1200 came=42",
        "verdict 0: all VMs are off",
    ]);
    // Nothing of it is about how long anything takes.
    case.vary.time = Time::Wall;
    case
}

/// Both on one CPU, in turns.
fn storm() -> Case {
    case(
        "a pin that is never taken down costs its own VM's time, and no neighbour's on the same CPU",
        Bundle::Manifest(concat!(
            edu!("up", "storm phb=1 us=60000", "0", "1", "time_slice_us = 2000\n"),
            "[[vm]]\nname = \"neighbour\"\nmemory = \"32M\"\npin = [0]\ntime_slice_us = 2000\n",
            "kernel = \"guest:heartbeat\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"beats=4 period_us=10000 limit_us=5000\"\n"
        )),
    )
    .expect(&[
        r"heartbeat end: beats=4 .*missed=0",
        r"dma verdict: storm ok: came=\d{3,} ",
        "verdict 0: all VMs are off",
    ])
}

/// A pin that is up when its VM is stopped: the next to have the host bridge hears nothing of it, nor does the same
/// VM when it starts again; and the pin works for them.
fn no_pin_is_left() -> Case {
    let name = "a pin that was left up interrupts nobody after its VM, and works for the next";
    let up = "dma leave: the pin is up, its interrupt not ended";
    let mut case = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            edu!("a", "leave phb=1 bus=1 slot=1", "0", "1", ""),
            edu!(
                "b",
                "leave phb=1 bus=1 slot=1",
                "1",
                "1",
                "start = \"manual\"\n"
            ),
        )))
        // Behind a bridge, whose bus is reset: the device has no reset of its own.
        .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
        .args(&["-device", "pci-bridge,id=b1,chassis_nr=1,shpc=off,bus=p1.0"])
        .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=b1,addr=1"])
        .expect(&[up])
        .types(MONITOR);
    for turn in 0..6 {
        let (from, to) = if turn % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        case = case
            .asks(&format!("stop {from}"), &[&format!("{from}: stopped")])
            .asks(&format!("devices {from}"), &["audit: 0 entries"])
            .asks(&format!("start {to}"), &[&format!(r"\[{to}\] {up}")])
            .asks(&format!("restart {to}"), &[&format!(r"\[{to}\] {up}")]);
    }
    // While it runs it has one.
    case = case
        .asks("devices a", &["1 sources of interrupts"])
        .asks("quit", &["verdict 0"]);
    forbidden(&mut case);
    case.check = Check::Judged(none_without_a_vm);
    case.timeout = Duration::from_secs(120);
    case
}

/// Whoever is stopped has no source of interrupts.
fn none_without_a_vm(console: &str) -> Result<()> {
    let parts: Vec<&str> = console.split("monitor> devices ").skip(1).collect();
    let Some((last, off)) = parts.split_last() else {
        bail!("nobody was asked for devices");
    };
    ensure!(
        last.contains("sources of interrupts"),
        "a VM that runs has none"
    );
    for part in off {
        let (its, _) = part.split_once("audit:").unwrap_or((part, ""));
        ensure!(
            !its.contains("sources of interrupts"),
            "a VM that is off has some"
        );
    }
    Ok(())
}
