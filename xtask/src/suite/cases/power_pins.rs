//! Tests of interrupt pins on POWER (LSIs), and of a device that knows neither messages nor 64 bits.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use regex::Regex;

use super::vms::MONITOR;
use super::{Bundle, Case, Check, Disks};

const BOARD: &str = "pseries";

pub(super) fn cases() -> Vec<Case> {
    vec![
        by_pins(),
        both_windows(),
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

/// What Linux says of a device whose mask has 32 bits, when it is asked to say such things (`dyndbg`).
const DEFAULT_OPS: &str = "e1000 .*: iommu: not 64-bit, using default ops";

/// A disk without messages, and a NIC that has none, each on its own host bridge.
fn by_pins() -> Case {
    let mut case = Case::new(
        BOARD,
        "an NVMe disk without messages and an e1000 interrupt by their pins, in the default window, across a restart",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"one\"\nmemory = \"256M\"\ncpus = 1\npin = [0]\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\n",
        "append = \"console=hvc0 quiet pci=nomsi do=irqs:wires,disk-restart,off\"\n",
        "devices = [ { host = \"phb:800000020000001\" } ]\n",
        "[[vm]]\nname = \"two\"\nmemory = \"256M\"\ncpus = 1\npin = [1]\nkernel = \"debian:6.1\"\n",
        "initrd = \"initramfs\"\n",
        "append = 'console=hvc0 loglevel=8 dyndbg=\"file dma-iommu.c +p\" do=irqs:wires,net,off'\n",
        "devices = [ { host = \"phb:800000020000002\" } ]\n",
    )))
    .expect(&["verdict 0: all VMs are off"])
    .args(&["-netdev", "user,id=net0", "-device", "spapr-pci-host-bridge,index=1,id=p1"])
    // With shadow doorbells its pin may stay up (docs/traps.md).
    .args(&["-device", "nvme,serial=spare1,dbcs=off,bus=p1.0,drive=spare1"])
    .args(&["-device", "spapr-pci-host-bridge,index=2,id=p2"])
    .args(&["-device", "e1000,netdev=net0,romfile=,bus=p2.0"]);
    case.disks = Disks::AndSpare(1);
    forbidden(&mut case);
    // The one device does not know 64 bits; its kernel makes no window.
    case.forbids
        .push("vm 1: ibm,create-pe-dma-window|by another chip".to_owned());
    case.check = Check::Judged(both_by_pins);
    case.timeout = Duration::from_secs(120);
    case.one_thread()
}

fn both_by_pins(console: &str) -> Result<()> {
    for wanted in [
        r"\[one\] .*action irqs: .* nvme0n1: [1-9]\d* interrupts by XICS *\d+ Level",
        r"\[two\] .*action irqs: .* eth0: [1-9]\d* interrupts by XICS *\d+ Level",
        r"\[one\] .*files are as they were written before the reset",
        r"\[one\] .*action disk-restart: ok: 1 disks",
        DEFAULT_OPS,
        r"\[two\] .*action net: .* e1000, .* 10 of 10 pings answered",
        r"\[two\] .*action net: ok: 1 interfaces",
    ] {
        ensure!(
            Regex::new(wanted)?.is_match(console),
            "there is no {wanted}"
        );
    }
    Ok(())
}

/// Behind one host bridge, a disk in a window of 64 bits with messages and a NIC in the default one with a pin.
fn both_windows() -> Case {
    let mut case = Case::new(
        BOARD,
        "a disk in a window of 64 bits and an e1000 in the default one behind the same host bridge",
    )
    .bundle(Bundle::Manifest(concat!(
        "[[vm]]\nname = \"one\"\nmemory = \"512M\"\ncpus = 2\npin = [0, 1]\nkernel = \"debian:6.12\"\n",
        "initrd = \"initramfs\"\n",
        "append = 'console=hvc0 loglevel=8 dyndbg=\"file dma-iommu.c +p\" do=net,disk'\n",
        "devices = [ { host = \"phb:800000020000000\" } ]\n",
    )))
    .expect(&[
        r"ibm,create-pe-dma-window \[0, 8000000, 20000000, 18, 1d\]: 0 \[80000001, 8000000, 0\]",
        DEFAULT_OPS,
        "action net: .* e1000, .* 10 of 10 pings answered",
        "action net: ok: 1 interfaces",
        "action disk: ok: 1 disks",
        "/ # ",
    ])
    .types("grep -e nvme -e eth0 /proc/interrupts\r")
    .expect(&[
        r" [1-9]\d* .*XICS +4609 Level +eth0",
        r" [1-9]\d* .*pSeries-PCI-MSI +\d+ Edge +nvme0q",
        "/ # ",
    ])
    .types(MONITOR)
    .asks(
        "devices one",
        &[
            "window 0x0-0x3fffffff with pages of 0x1000 bytes",
            "window 0x800000000000000-0x80000001fffffff with pages of 0x1000000 bytes",
            r"audit: [1-9]\d* entries looked at, 0 wrong",
        ],
    )
    .asks("quit", &["verdict 0"])
    .args(&["-netdev", "user,id=net0", "-device", "e1000,netdev=net0,romfile="]);
    forbidden(&mut case);
    case.timeout = Duration::from_secs(120);
    case.one_thread()
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
    case(
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
    ])
}

/// Both on one CPU, in turns.
fn storm() -> Case {
    case(
        "a pin that is never taken down costs its own VM's time, and no neighbour's on the same CPU",
        Bundle::Manifest(concat!(
            edu!("up", "storm phb=1 us=120000", "0", "1", "time_slice_us = 2000\n"),
            "[[vm]]\nname = \"neighbour\"\nmemory = \"32M\"\npin = [0]\ntime_slice_us = 2000\n",
            "kernel = \"guest:heartbeat\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"beats=8 period_us=10000 limit_us=5000\"\n"
        )),
    )
    .expect(&[
        r"heartbeat end: beats=8 .*missed=0",
        r"dma verdict: storm ok: came=\d{4,} ",
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
