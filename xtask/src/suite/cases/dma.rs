//! Tests of devices that master the bus, with a guest of our own that has QEMU's `edu` do anything.
//!
//! Time is counted in instructions: a DMA of an `edu` takes 100 ms of the machine's time, which is then
//! nothing but a jump of its clock. Under the hypervisor each `edu` is behind a port, with which it is reset.

use std::time::Duration;

use super::{Bundle, Case, Check, End, Ground, Tree};
use crate::board::Smmu;
use crate::qemu::Time;
use crate::suite::{refusals, shares};

const BOARD: &str = "virt";

/// A VM with the guest of this file: its task, its CPUs, the devices (by the number of the port each is behind).
macro_rules! vm {
    ($name:literal, $task:literal, [$($cpu:literal),+], [$($port:literal),+], $more:literal) => {
        concat!(
            "[[vm]]\nname = \"", $name, "\"\nmemory = \"80M\"\ncpus = ", count!($($cpu),+), "\npin = [",
            $($cpu, ", ",)+ "]\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "iommu = \"stage2\"\nmsi = \"vits\"\nappend = \"", $task, "\"\ndevices = [",
            $("{ host = \"0000:0", $port, ":00.0\" }, ",)+ "]\n", $more, "\n"
        )
    };
}
macro_rules! count {
    ($a:literal) => {
        1
    };
    ($a:literal, $b:literal) => {
        2
    };
}

/// Beside every attacker: memory, a device and a clock on another CPU that nothing may touch, and whose refused
/// DMA must be told of.
macro_rules! neighbour {
    ($beats:literal, $period_us:literal) => {
        concat!(
            "[[vm]]\nname = \"neighbour\"\nmemory = \"80M\"\npin = [1]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\nmsi = \"vits\"\n",
            "append = \"watch beats=",
            $beats,
            " period_us=",
            $period_us,
            " refused=50\"\n",
            "devices = [ { host = \"0000:03:00.0\" } ]\n"
        )
    };
}

pub(super) fn cases() -> Vec<Case> {
    [bare(), guarded()].concat()
}

/// The guest as a VM, with devices behind ports of their own.
fn guarded_case(name: &str, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle);
    for port in 1..=3 {
        let slot = port + 1;
        case = case.args(&[
            "-device",
            &format!("pcie-root-port,id=port{port},chassis={port},addr={slot}"),
            "-device",
            &format!("edu,dma_mask=0xffffffffffffffff,bus=port{port}"),
        ]);
    }
    case.vary.time = Time::Instructions;
    case.forbids.push("FAILED".to_owned());
    case.timeout = Duration::from_secs(600);
    case
}

fn guarded() -> Vec<Case> {
    let mut sweep = guarded_case(
        "DMA to every 2 MiB and to registers reaches a VM's own memory only, and each refusal is told",
        Bundle::Manifest(concat!(
            vm!("sweep", "sweep", [0], [1, 2], ""),
            neighbour!(250, 1_000_000)
        )),
    )
    .expect(&[
        r"dma verdict: sweep ok: own=40 read=40 written=40 read_refused=[12]\d{3} ",
        r"dma verdict: watch ok: beats=250 latest_us=\d+ memory_kib=\d+ devices=1",
    ]);
    sweep.check = Check::Judged(refusals::judge_sweep);

    // Each has the devices that the one before it had: given back, reset and taken.
    let attacks = |name: &str, neighbour: &str| {
        let attackers = concat!(
            vm!("probe", "probe intx=36", [0], [1, 2], ""),
            vm!(
                "config",
                "config-fuzz ops=100000 seed=1",
                [0],
                [1, 2],
                "start = \"after:probe\""
            ),
            // With a disk, whose MSI-X table is written all the time.
            "[[vm]]\nname = \"its\"\nmemory = \"80M\"\ncpus = 2\npin = [0, 0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\nmsi = \"vits\"\n",
            "append = \"its-flood ops=5000 seed=1\"\nstart = \"after:config\"\n",
            "devices = [ { host = \"0000:01:00.0\" }, { host = \"0000:02:00.0\" }, ",
            "{ host = \"0000:00:01.0\" } ]\n",
            vm!(
                "forge",
                "forge numbers=16",
                [0],
                [1, 2],
                "start = \"after:its\""
            ),
            vm!(
                "storm",
                "storm rounds=20",
                [0],
                [1, 2],
                "start = \"after:forge\""
            ),
        );
        let bundle = Bundle::Manifest([attackers, neighbour].concat().leak());
        let mut case = guarded_case(name, bundle).expect(&[
            "dma verdict: probe ok: devices=2 bar=1048576 moved=2 ",
            "vm config: starts after probe",
            "dma verdict: config-fuzz ok: seed=1 ",
            r"dma beat 5000: [1-9]\d{3,} writes of an MSI-X table meanwhile",
            "dma verdict: its-flood ok: seed=1 ops=5000 .*strange=0",
            "dma verdict: forge ok: forged=57 written=15",
            "dma verdict: storm ok: devices=2 transfers=40 messages=20000 arrived=[1-9]",
            "dma verdict: watch ok: beats=1000 latest_us=",
        ]);
        case.check = Check::Judged(refusals::judge_neighbour);
        case
    };
    let quick = attacks(
        "configuration space, ITS, messages and events under fire leave a neighbour alone",
        neighbour!(1000, 10_000),
    );
    let checked = Case {
        only_checked: true,
        ..attacks(
            "configuration space, ITS, messages and events under fire, every sum checked",
            neighbour!(1000, 25_000),
        )
    };

    // The neighbour is on the CPU that reads records when nobody floods, the flood's owner on the other: what the records
    // take is missing there, which is the proof that it would be seen here.
    let mut stage1 = guarded_case(
        "a flood of stage-1 faults is paid for by its owner: a neighbour's records and beats are all there",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"storm\"\nmemory = \"80M\"\npin = [1]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"nested\"\nmsi = \"vits\"\n",
            "append = \"storm rounds=60 stage1=1\"\n",
            "devices = [ { host = \"0000:01:00.0\" }, { host = \"0000:02:00.0\" } ]\n",
            "[[vm]]\nname = \"neighbour\"\nmemory = \"80M\"\npin = [0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\nmsi = \"vits\"\n",
            "append = \"watch beats=1000 period_us=10000 limit_us=300 refused=50\"\n",
            "devices = [ { host = \"0000:03:00.0\" } ]\n"
        )),
    )
    .expect(&[
        r"dma verdict: storm ok: devices=2 transfers=120 messages=20000 arrived=[1-9]\d* late_us=[1-9]\d{3} events=[1-9]\d{3,4}$",
        "dma verdict: watch ok: beats=1000 latest_us=",
    ]);
    stage1.check = Check::Judged(refusals::judge_bystander);
    let mut polled = stage1.clone();
    polled.name = "a flood at an SMMU that is polled is paid for by its owner: a neighbour's records and beats are all there"
        .to_owned();
    polled.tree = Tree::Wires(&[]);

    // Both on one CPU, which reads the records. While the flood's owner computes it pays for that; while it sleeps there is
    // nobody who could, and what reading takes is seen in the neighbour's windows.
    let mut paid = guarded_case(
        "a flood's records are read in its owner's time, and a busy neighbour on the same CPU has its half",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"owner\"\nmemory = \"80M\"\npin = [0]\ntime_slice_us = 1000\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"nested\"\nmsi = \"vits\"\n",
            "append = \"share windows=5 flood=3 idle=2 window_ms=500\"\n",
            "devices = [ { host = \"0000:01:00.0\" }, { host = \"0000:02:00.0\" } ]\n",
            "[[vm]]\nname = \"neighbour\"\nmemory = \"80M\"\npin = [0]\ntime_slice_us = 1000\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\nmsi = \"vits\"\n",
            "append = \"share windows=8 refused=1 window_ms=500\"\n",
            "devices = [ { host = \"0000:03:00.0\" } ]\n"
        )),
    )
    .expect(&[
        r"dma verdict: share ok: windows=5 transfers=[1-9]\d+ events=[1-9]\d{3,} messages=0$",
        "dma verdict: share ok: windows=8 transfers=0 events=0 messages=0$",
    ]);
    paid.vary.smp = Some(1);
    paid.check = Check::Judged(shares::judge_flood);

    // The owner's second CPU is alone on its own; the messages go to the one that is shared.
    let mut moderated = guarded_case(
        "a flood of messages leaves a busy neighbour on the same CPU its half",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"owner\"\nmemory = \"80M\"\ncpus = 2\npin = [0, 1]\ntime_slice_us = 4000\n",
            "kernel = \"guest:dma\"\nkernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\n",
            "append = \"share windows=5 messages=5 window_ms=98 turns=1\"\n",
            "devices = [ { host = \"0000:01:00.0\" } ]\n",
            "[[vm]]\nname = \"neighbour\"\nmemory = \"80M\"\npin = [0]\ntime_slice_us = 4000\n",
            "kernel = \"guest:dma\"\nkernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\n",
            "append = \"share windows=8 window_ms=100 turns=1\"\n",
            "devices = [ { host = \"0000:03:00.0\" } ]\n",
            // The device comes from a VM that ended while it was muted.
            vm!("next", "probe", [1], [1], "start = \"after:neighbour\"")
        )),
    )
    .expect(&[
        r"dma verdict: share ok: windows=5 transfers=0 events=0 messages=[1-9]\d{4,}$",
        "dma verdict: share ok: windows=8 transfers=0 events=0 messages=0$",
        "dma verdict: probe ok",
    ]);
    moderated.vary.smp = Some(2);
    moderated.check = Check::Judged(shares::judge_messages);

    // The control: it would notice.
    let noticed = guarded_case(
        "a neighbour notices a message that it did not ask for",
        Bundle::Manifest(vm!("a", "watch beats=10 interrupt=5", [0], [1], "")),
    );
    let mut noticed = noticed.expect(&["dma verdict: watch FAILED: somebody else's message came"]);
    noticed.forbids.retain(|pattern| pattern != "FAILED");

    let mut restart = guarded_case(
        "a VM that resets itself in the middle of DMA meets none of it again",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"a\"\nmemory = \"80M\"\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\n",
            "iommu = \"stage2\"\nmsi = \"vits\"\nappend = \"linger reset=1\"\n",
            "devices = [ { host = \"0000:01:00.0\" }, { host = \"0000:02:00.0\" } ]\n"
        )),
    )
    .expect(&["dma linger: nothing came of before, 2 DMAs under way"; 20])
    .until_expected();
    restart.forbids.push("linger: too late".to_owned());

    // More records at once than one interrupt has looked at.
    let at_once = guarded_case(
        "refusals of three devices at once are all told, although nobody does anything after",
        Bundle::Manifest(vm!("a", "storm rounds=1 messages=1", [0], [1, 2, 3], "")),
    )
    .expect(&[
        r"F_TRANSLATION sid 0x100 read of 0x2000000000, stage 2, 01:00\.0 of VM 1",
        r"F_TRANSLATION sid 0x200 read of 0x2000001000, stage 2, 02:00\.0 of VM 1",
        r"F_TRANSLATION sid 0x300 read of 0x2000002000, stage 2, 03:00\.0 of VM 1",
        "dma verdict: storm ok: devices=3 transfers=3 ",
    ]);

    // Both on one CPU, in turns. The other device of the attacker's has the same line in its guest.
    let level = guarded_case(
        "a pin that is left up for ever costs its own VM's time, not a neighbour's on the same CPU",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"up\"\nmemory = \"80M\"\npin = [0]\ntime_slice_us = 2000\n",
            "kernel = \"guest:dma\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "iommu = \"stage2\"\nappend = \"wire intid=36 hold=300000\"\n",
            "devices = [ { host = \"0000:01:00.0\", guest = \"00:01.0\" }, ",
            "{ host = \"0000:02:00.0\", guest = \"00:05.0\" } ]\n",
            "[[vm]]\nname = \"neighbour\"\nmemory = \"32M\"\npin = [0]\ntime_slice_us = 2000\n",
            "kernel = \"guest:heartbeat\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "append = \"beats=50 period_us=10000 limit_us=5000\"\n"
        )),
    )
    .expect(&[
        r"vm up: 00:01\.0 is 0000:01:00\.0, INTx 36",
        r"vm up: 00:05\.0 is 0000:02:00\.0, INTx 36",
        r"dma verdict: wire ok: devices=2 held=300000 both=2",
        r"heartbeat end: beats=50 .*missed=0",
    ]);

    // Ports 2 and 6 raise the same line.
    let shared = guarded_case(
        "a pin whose line another VM's device has too is not there for either guest",
        Bundle::Manifest(concat!(
            vm!("a", "wire", [0], [1], ""),
            vm!("b", "probe intx=36", [0], [4], "start = \"after:a\"")
        )),
    )
    .args(&["-device", "pcie-root-port,id=port4,chassis=4,addr=6"])
    .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=port4"]);
    let mut shared = shared.expect(&[
        "vm a: 0000:01:00.0 has no interrupt pin there: its line is also one of vm b's",
        "vm b: 0000:04:00.0 has no interrupt pin there: its line is also one of vm a's",
        "dma verdict: wire FAILED: the device has no pin",
        "dma verdict: probe FAILED: an interrupt line is described, and the device has no pin",
    ]);
    shared.forbids.retain(|pattern| pattern != "FAILED");

    // The last address is the machine's of a BAR of the neighbour's, whose mark must stay.
    let peers = |name: &str, bundle, refused: &[&str]| {
        let case = guarded_case(name, bundle).expect(refused);
        let mut case = case.expect(&["dma verdict: watch ok: beats=250 "]);
        case.forbids.push("stays with the devices".to_owned());
        case
    };
    let no_peers = peers(
        "DMA to a BAR of the VM's own aborts, and is told of",
        Bundle::Manifest(concat!(
            vm!("peer", "peer reach=0 elsewhere=0x10200004", [0], [1, 2], ""),
            neighbour!(250, 10_000)
        )),
        &[
            r"F_TRANSLATION sid 0x200 write of 0x11000004, stage 2, 02:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x100 write of 0x11000004, stage 2, 01:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x100 write of 0x11200004, stage 2, 01:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x200 write of 0x10200004, stage 2, 02:00\.0 of VM 1",
            "dma verdict: peer ok: devices=2 reach=0 ",
        ],
    );
    let with_peers = peers(
        "with p2p DMA reaches the BAR of the VM's own device, there alone and as long as it decodes",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"peer\"\nmemory = \"80M\"\npin = [0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\n",
            "append = \"peer reach=1 elsewhere=0x10200004\"\ndevices = [ ",
            "{ host = \"0000:01:00.0\", p2p = true }, { host = \"0000:02:00.0\" } ]\n",
            neighbour!(250, 10_000)
        )),
        &[
            // To the other one, whose registers are not shown.
            r"F_TRANSLATION sid 0x100 write of 0x11200004, stage 2, 01:00\.0 of VM 1",
            // Where it was, and where it does not decode.
            r"F_TRANSLATION sid 0x200 write of 0x11000004, stage 2, 02:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x200 write of 0x12000004, stage 2, 02:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x200 write of 0x10200004, stage 2, 02:00\.0 of VM 1",
            r"F_TRANSLATION sid 0x100 write of 0x10200004, stage 2, 01:00\.0 of VM 1",
            "dma verdict: peer ok: devices=2 reach=1 ",
        ],
    );

    // With its BAR in the devices' view the page of its table is not: the SMMU says so, and the guest's own
    // view of the table stays what it was.
    let own_table = guarded_case(
        "DMA to the MSI-X table of the VM's own device aborts, even where its BAR may be reached",
        Bundle::Manifest(concat!(
            "[[vm]]\nname = \"table\"\nmemory = \"80M\"\npin = [0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\n",
            "append = \"table reach=0\"\ndevices = [ { host = \"0000:01:00.0\" }, ",
            "{ host = \"0000:00:01.0\", p2p = true } ]\n"
        )),
    )
    .expect(&[
        "dma beat: pages with a table and pending bits, read and written at each width",
        r"F_TRANSLATION sid 0x100 write of 0x13002008, stage 2, 01:00\.0 of VM 1",
        "dma verdict: table ok: devices=1 reach=0 vectors=65",
    ]);

    // QEMU's snoops all the same: that it does without is tested on the host (`gic`).
    let snoopless = guarded_case(
        "messages arrive by an ITS that is taken for one that does not snoop",
        Bundle::Manifest(vm!("a", "probe", [0], [1, 2], "")),
    )
    .args(&["-append", "bulkhead.its=noncoherent bulkhead.log=debug"])
    .expect(&[
        r"its 0: \S+, not coherent",
        "vm a: tables are shared in 0x40000000-0x7fffffff$",
        r"dma verdict: probe ok: devices=2 bar=1048576 moved=2 lpis=\d+",
    ]);

    // Its tables are its own then, and not those of the CPUs.
    let apart = guarded_case(
        "DMA works and is refused by an SMMU that is taken for one that does not snoop",
        Bundle::Manifest(concat!(
            vm!("a", "probe", [0], [1], ""),
            vm!("b", "storm rounds=2 messages=100", [1], [2, 3], "")
        )),
    )
    .args(&["-append", "bulkhead.smmu=noncoherent bulkhead.log=debug"])
    .expect(&[
        "smmu 0: .*, table walks not coherent",
        "vm a: tables are not shared",
        r"F_TRANSLATION sid 0x[23]00 read of 0x200000[01]000, stage 2, 0[23]:00\.0 of VM 2",
        r"dma verdict: probe ok: devices=1 bar=1048576 moved=1 lpis=\d+",
        "dma verdict: storm ok: devices=2 transfers=4 ",
    ]);

    // Neither the SMMU nor the ITS can tell what is behind such a bridge apart.
    let name =
        "devices behind a bridge to conventional PCI do DMA and interrupt, by an ID they share";
    let mut alike = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"a\"\nmemory = \"80M\"\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\n",
            "restart = \"never\"\niommu = \"stage2\"\nappend = \"probe\"\n",
            "devices = [ { host = \"0000:02:01.0\" }, { host = \"0000:02:02.0\" } ]\n"
        )))
        .args(&["-device", "pcie-root-port,id=port1,chassis=1,addr=2"])
        .args(&["-device", "pcie-pci-bridge,id=bridge,bus=port1"])
        .expect(&[
            "0000:02:01.0: it cannot be reset: only the VM that gets it first can have it",
            "dma verdict: probe ok: devices=2 bar=1048576 moved=2 lpis=6 ",
        ]);
    for slot in 1..=2 {
        let edu = format!("edu,dma_mask=0xffffffffffffffff,bus=bridge,addr={slot}");
        alike = alike.args(&["-device", &edu]);
    }
    alike.vary.time = Time::Instructions;
    alike.forbids = vec![r"\] ERROR ".to_owned(), "FAILED".to_owned()];

    // It sends with the bridge's ID. What is refused of it is told of it and counted on it, and muted.
    let name = "a flood of a device behind a bridge to conventional PCI is its own, and a neighbour's records are all there";
    let mut below = Case::new(BOARD, name)
        .bundle(Bundle::Manifest(concat!(
            "[[vm]]\nname = \"storm\"\nmemory = \"80M\"\npin = [0]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"flat\"\nrestart = \"never\"\niommu = \"stage2\"\nmsi = \"vits\"\n",
            "append = \"storm rounds=60 messages=1000\"\ndevices = [ { host = \"0000:02:01.0\" } ]\n",
            neighbour!(1000, 10_000)
        )))
        .args(&["-device", "pcie-root-port,id=port1,chassis=1,addr=2"])
        .args(&["-device", "pcie-pci-bridge,id=bridge,bus=port1"])
        .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=bridge,addr=1"])
        .args(&["-device", "pcie-root-port,id=port2,chassis=2,addr=3"])
        .args(&["-device", "edu,dma_mask=0xffffffffffffffff,bus=port2"])
        .expect(&[
            r"F_TRANSLATION sid 0x200 read of 0x2000000000, stage 2, 02:01\.0 of VM 1",
            // In its next second it is heard again.
            r"F_TRANSLATION sid 0x200 (read|write) of 0x20000[a-d]0000, stage 2, 02:01\.0 of VM 1",
            r"dma verdict: storm ok: devices=1 transfers=60 messages=1000 arrived=[1-9]",
            "dma verdict: watch ok: beats=1000 latest_us=",
        ]);
    below.vary.time = Time::Instructions;
    // Two of its ten transfers in a second are its thousand records and what was in the queue by then.
    let muted = "0x20000[3-7]0000".to_owned();
    below.forbids.extend([
        muted,
        "FAILED|of no device|of no VM|events were lost".to_owned(),
    ]);
    below.check = Check::Judged(refusals::judge_bystander);

    vec![
        sweep,
        quick,
        checked,
        stage1,
        polled,
        paid,
        moderated,
        at_once,
        alike,
        below,
        level,
        snoopless,
        apart,
        shared,
        no_peers,
        own_table,
        table_of_another(),
        with_peers,
        noticed,
        restart,
        reassigned(),
    ]
}

/// The machine's address of the MSI-X table of the board's disk, behind the three ports' windows.
const TABLE: &str = "0x10302000";

/// Linux has a disk, and another VM's devices write vectors of their own where its MSI-X table is: each is refused and
/// told of, and the disk interrupts Linux as before.
fn table_of_another() -> Case {
    let manifest = format!(
        "[[vm]]\nname = \"linux\"\nmemory = \"160M\"\npin = [0]\nkernel = \"debian:6.12\"\n\
         initrd = \"initramfs\"\niommu = \"stage2\"\nmsi = \"vits\"\n\
         append = \"console=ttyAMA0 quiet do=use\"\ndevices = [ {{ host = \"0000:00:01.0\" }} ]\n\
         [[vm]]\nname = \"thief\"\nmemory = \"80M\"\npin = [1]\nkernel = \"guest:dma\"\n\
         kernel_format = \"flat\"\nrestart = \"never\"\nstart = \"manual\"\niommu = \"stage2\"\n\
         append = \"table at={TABLE}\"\n\
         devices = [ {{ host = \"0000:01:00.0\" }}, {{ host = \"0000:02:00.0\" }} ]\n"
    );
    let name = "DMA to the MSI-X table of another VM's disk aborts, is told of, and the disk interrupts as before";
    let mut case = guarded_case(name, Bundle::Manifest(manifest.leak()));
    case.vary.time = Time::Wall;
    let refused =
        |sid, bdf| format!(r"F_TRANSLATION sid {sid} write of {TABLE}, stage 2, {bdf}\.0 of VM 2");
    let interrupts = r"action use: ok: 1 disks, 0 interfaces, [1-9]\d* interrupts";
    case.expect(&[
        &format!(
            r"pci 00:01\.0 .* nvme BAR0 mem64 16K @{} msix 65",
            "0x10300000"
        ),
        interrupts,
        "/ # ",
    ])
    .types("\x1dm")
    .asks("start thief", &["thief: running"])
    .expect(&[
        &refused("0x100", "01:00"),
        &refused("0x200", "02:00"),
        "dma verdict: table ok: devices=2 ",
        "vm thief: powered off",
    ])
    .asks("focus linux", &[r"\[linux\] has the keyboard", "/ # "])
    .types("sh /actions/use\r")
    .expect(&[interrupts, "/ # "])
    .types("poweroff -f\r")
    .expect(&["vm linux: powered off"])
}

/// How often the device changes hands.
const TURNS: usize = 100;

/// Stopped in the middle of DMA that is to interrupt, while the other VM gets the device.
fn reassigned() -> Case {
    let name =
        "a device changes hands a hundred times in the middle of DMA, and nothing comes after";
    let mut case = guarded_case(
        name,
        Bundle::Manifest(concat!(
            vm!("a", "linger look_us=20000 after_us=60000000", [1], [1], ""),
            vm!(
                "b",
                "linger look_us=20000 after_us=60000000",
                [1],
                [1],
                "start = \"manual\""
            )
        )),
    );
    case.vary.time = Time::Wall;
    let going = "dma linger: nothing came of before, 1 DMAs under way";
    case = case.expect(&[going]).types("\x1dm").expect(&["monitor> "]);
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        // The prompt comes before what the VM says.
        case = case
            .types(&format!("stop {from}\r"))
            .expect(&[&format!("{from}: stopped"), "monitor> "])
            .types(&format!("start {to}\r"))
            .expect(&[&format!(r"\[{to}\] {going}")]);
    }
    case.types("list\r")
        .expect(&[" a +running .* 51 ", " b +stopped .* 50 "])
        .asks("quit", &["verdict 0"])
}

/// That many `edu`s, from 00:02.0 on, which reach any address.
fn devices(mut case: Case, count: u32) -> Case {
    for slot in 2..2 + count {
        let device = format!("edu,dma_mask=0xffffffffffffffff,addr={slot:02x}.0");
        case = case.args(&["-device", &device]);
    }
    case
}

/// The guest alone, on the machine without a hypervisor: what it takes for granted is so, and what it is
/// to find out where it must not be is found.
fn bare() -> Vec<Case> {
    let alone = |name: &str, append, smmu, verdict| {
        let mut case = devices(Case::new(BOARD, name), 2).expect(&[verdict]);
        case.ground = Ground::Bare {
            guest: "dma",
            append,
            smmu,
        };
        case.end = End::Expected;
        case.vary.time = Time::Instructions;
        // Its device tree is at 128 MiB then.
        case.vary.memory = Some("256M".to_owned());
        case.forbids = vec!["^guest: ".to_owned()];
        case.timeout = Duration::from_secs(300);
        case
    };
    vec![
        alone(
            "without a hypervisor, an edu copies and interrupts by message and wire",
            "probe intx=37",
            Smmu::Gone,
            "dma verdict: probe ok: devices=2 bar=1048576 moved=2 lpis=[0-9]+ intx=2",
        ),
        // The control of every sweep: 64 MiB count as the guest's, the machine has more.
        alone(
            "without a hypervisor, a sweep of DMA reaches what is not the guest's",
            "sweep own=0x4000000 gentle=1",
            Smmu::Gone,
            r"dma verdict: sweep FAILED: a read reached what is not the guest's \(0x441ff000 ",
        ),
        // The control of every neighbour.
        alone(
            "without a hypervisor, DMA to a neighbour's memory is noticed by it",
            "watch beats=10 attack=5",
            Smmu::Gone,
            "dma verdict: watch FAILED: somebody was at the memory",
        ),
        // The control of every DMA to a table: there is one that gets there.
        alone(
            "without a hypervisor, DMA to an MSI-X table changes a vector",
            "table reach=1",
            Smmu::Gone,
            "dma verdict: table ok: devices=2 reach=1 vectors=[1-9]",
        )
        .args(&["-device", "virtio-rng-pci,addr=8"]),
        alone(
            "without a hypervisor, configuration space at random is survived",
            "config-fuzz ops=100000 seed=1",
            Smmu::Gone,
            "dma verdict: config-fuzz ok: seed=1 ",
        ),
        alone(
            "without a hypervisor, an ITS under fire works again",
            "its-flood ops=5000 seed=1",
            Smmu::Gone,
            "dma verdict: its-flood ok: seed=1 ops=5000 ",
        ),
        alone(
            "without a hypervisor, stage 1 of an SMMU decides and tells faults",
            "smmu",
            Smmu::Kept,
            "dma verdict: smmu ok: events=[1-9]",
        ),
        alone(
            "without a hypervisor, an SMMU under fire works again",
            "smmu-hostile ops=5000 seed=1",
            Smmu::Kept,
            "dma verdict: smmu-hostile ok: seed=1 ops=5000 at_once=1048576 ",
        ),
    ]
}
