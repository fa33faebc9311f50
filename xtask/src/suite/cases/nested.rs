//! Tests of SMMUs of guests' own: stage 1 by the guest over stage 2 by the hypervisor.
//!
//! `guests/src/bin/dma` drives its SMMU and `edu`s by itself, and is as hostile as it is told to be; it passes the
//! same tests on the machine without the hypervisor (`dma.rs`). Linux is in `passthrough.rs` and here.

use std::time::Duration;

use super::{Bundle, Case, Tree};
use crate::qemu::Time;

const BOARD: &str = "virt";
const MONITOR: &str = "\x1dm";
/// A line of the hypervisor's that must not be there. Linux says `ERROR`, too.
const OURS: &str = r"^\[ *\d+\.\d{6}\] ERROR ";

/// A VM of our own DMA guest with two `edu`s and an SMMU of its own.
macro_rules! dma {
    ($name:literal, $cpus:literal, $msi:literal, $devices:expr, $append:literal, $more:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"64M\"\ncpus = ",
            $cpus,
            "\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\nrestart = \"never\"\n",
            "iommu = \"nested\"\nmsi = \"",
            $msi,
            "\"\ndevices = [",
            $devices,
            "]\nappend = \"",
            $append,
            "\"\n",
            $more
        )
    };
}

macro_rules! manifest {
    ($($vm:expr),+ $(,)?) => { Bundle::Manifest(concat!("version = 1\n", $($vm),+)) };
}

/// Both `edu`s.
macro_rules! both {
    () => {
        "{ host = \"0000:00:02.0\" }, { host = \"0000:00:03.0\" }"
    };
}

/// Two functions of one device, as the guest sees them, too.
macro_rules! functions {
    () => {
        "{ host = \"0000:00:02.0\", guest = \"00:02.0\" }, { host = \"0000:00:02.1\", guest = \"00:02.1\" }"
    };
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        translates(
            "vits",
            manifest!(dma!("dma", "1", "vits", both!(), "smmu", "")),
        ),
        translates(
            "rmr",
            manifest!(dma!(
                "dma",
                "1",
                "rmr",
                both!(),
                "smmu messages=0x8000000",
                ""
            )),
        ),
        window_elsewhere(),
        linux_window_elsewhere(),
        attacks(),
        fire(),
        hitless(),
        hitless_control(),
        left_over(),
        wide_descriptor(),
        handed_on(),
        killed(),
        live_walk(),
        functions_of_one("vits"),
        functions_of_one("rmr"),
        functions_apart(),
        flood("by entries that are not valid", "smmu-flood"),
        flood("of its stage 1's faults", "smmu-flood stage1=1"),
        flood_control(),
        bridged(),
        wired(
            "without a wire is polled",
            &[],
            &["smmu0: polled every 10 ms: no wire for its events and errors"],
        ),
        wired(
            "with a wire for its events alone is polled, too",
            &["eventq"],
            &["smmu0: polled every 10 ms: no wire for its errors$"],
        ),
        wired("with one wire for everything is heard", &["combined"], &[]),
    ]
}

/// An SMMU with these wires: what a guest's stage 1 refuses is told to the guest, with nothing else and in time, and what
/// stage 2 refuses is a line; a flood is muted, and ends.
fn wired(what: &str, wires: &'static [&'static str], said: &[&str]) -> Case {
    let mut case = flooded(
        format!("nested: an SMMU {what}: what it refuses is told to guests and in the log"),
        "smmu-flood rounds=40 stage1=1",
        "smmu-watch beats=25",
        Some("storm rounds=1 messages=1"),
    )
    .expect(said)
    .expect(&[
        r"smmu0: F_TRANSLATION sid 0x400 read of 0x2000000000, stage 2, 04:00\.0 of VM 3",
        "dma verdict: smmu-watch ok: beats=25 records=100",
        "dma verdict: smmu-flood ok: rounds=40 told=[1-9][0-9]* silent=[1-9]",
    ]);
    case.tree = Tree::Wires(wires);
    case.forbids.push("events were lost".to_owned());
    if said.is_empty() {
        case.forbids.push("polled".to_owned());
    }
    case
}

/// Two VMs with an SMMU of their own each, behind ports: one floods, the other counts what it is told. Where there is
/// something for a third to do, that has none of its own.
fn flooded(name: String, flood: &str, watch: &str, third: Option<&str>) -> Case {
    let vm = |name: &str, iommu: &str, buses: &str, append: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"64M\"\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\n\
             restart = \"never\"\niommu = \"{iommu}\"\nmsi = \"vits\"\nappend = \"{append}\"\ndevices = [{buses}]\n"
        )
    };
    let both = "{ host = \"0000:01:00.0\" }, { host = \"0000:02:00.0\" }";
    let mut manifest = format!(
        "version = 1\n{}{}",
        vm("loud", "nested", both, flood),
        vm("still", "nested", "{ host = \"0000:03:00.0\" }", watch)
    );
    if let Some(task) = third {
        manifest += &vm("third", "stage2", "{ host = \"0000:04:00.0\" }", task);
    }
    let mut case = Case::new(BOARD, name).bundle(Bundle::Manifest(manifest.leak()));
    for slot in 2..5 + usize::from(third.is_some()) {
        let port = format!("pcie-root-port,id=port{slot},chassis={slot},addr={slot}");
        let edu = format!("edu,dma_mask=0xffffffffffffffff,bus=port{slot}");
        case = case.args(&["-device", &port, "-device", &edu]);
    }
    case.vary.time = Time::Instructions;
    case.timeout = Duration::from_secs(300);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// One guest fills the machine's event queue; the other one's records all arrive, and only they.
fn flood(what: &str, task: &str) -> Case {
    flooded(
        format!(
            "nested: a guest's flood {what} ends, and its neighbour is told of each of its own"
        ),
        &format!("{task} rounds=40"),
        "smmu-watch beats=25",
        None,
    )
    .expect(&[
        "dma verdict: smmu-watch ok: beats=25 records=100",
        // It was muted, and heard again.
        "dma verdict: smmu-flood ok: rounds=40 told=[1-9][0-9]* silent=[1-9]",
    ])
}

/// Records carry the bridge's ID, and the guest's log its device's own.
fn bridged() -> Case {
    let mut case = Case::new(
        BOARD,
        "nested: a guest is told of each fault of its device behind a bridge to conventional PCI",
    )
    .bundle(manifest!(dma!(
        "still",
        "1",
        "vits",
        "{ host = \"0000:02:01.0\" }",
        "smmu-watch beats=25",
        ""
    )))
    .args(&["-device", "pcie-root-port,id=port1,chassis=1,addr=2"])
    .args(&["-device", "pcie-pci-bridge,id=bridge,bus=port1"])
    .args(&[
        "-device",
        "edu,dma_mask=0xffffffffffffffff,bus=bridge,addr=1",
    ])
    .expect(&["dma verdict: smmu-watch ok: beats=25 records=100"]);
    case.vary.time = Time::Instructions;
    case.forbids = vec![OURS.to_owned()];
    case
}

/// The control: a beat without a record is noticed.
fn flood_control() -> Case {
    flooded(
        "nested: a record that does not come is noticed".to_owned(),
        "smmu-flood rounds=4",
        "smmu-watch beats=25 idle=5",
        None,
    )
    .expect(&[r"dma verdict: smmu-watch FAILED: a refused DMA left no event \(0x5 "])
}

fn edus(mut case: Case) -> Case {
    for slot in 2..4 {
        let device = format!("edu,dma_mask=0xffffffffffffffff,addr={slot:02x}.0");
        case = case.args(&["-device", &device]);
    }
    case.vary.time = Time::Instructions;
    case.timeout = Duration::from_secs(300);
    case
}

/// What the guest maps is reached, what it does not is refused and told to it by its own stream ID; every
/// state of a stream, and its SMMU off and on; messages by its stage 1.
fn translates(policy: &str, bundle: Bundle) -> Case {
    // With `rmr` the device was told the window, which is still mapped.
    let stale = u8::from(policy == "rmr");
    let mut case = edus(Case::new(
        BOARD,
        format!("nested: a guest's stage 1 decides, its faults are its own, messages by {policy}"),
    ))
    .bundle(bundle)
    .expect(&[
        &format!("vm dma: its guest has an SMMU of its own, messages by {policy}"),
        "dma beat 1: IDR0 0xd40301a, stream 0x8 attached",
        // Physically it is stream 0x10.
        "dma event: type 0x10 stream 0x8 address 0x2012345000 read false stage 2 false class 2",
        "dma beat 4: a message by stage 1 arrives, without its page 0",
        &format!("dma messages: .* after a mapping is removed {stale}"),
        "dma beat 6: off, on, and what is while it is off",
        "dma verdict: smmu ok: events=[1-9][0-9]* gerrors=0 without_doorbell=0 ",
    ]);
    // The guest's faults are told to the guest alone.
    case.forbids = vec![OURS.to_owned(), "F_TRANSLATION".to_owned()];
    case
}

/// The window for messages is where the manifest says, and of that size.
fn window_elsewhere() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: messages by rmr go through the window that the manifest names",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "1",
        "rmr",
        both!(),
        "smmu messages=0xa000000",
        "msi_window = { start = 0x0a000000, size = \"2M\" }\n"
    )))
    .expect(&[
        // Without the window's page nothing arrives, whatever else leads to the doorbell.
        "dma beat 4: a message by stage 1 arrives, without its page 0",
        "dma verdict: smmu ok: events=[1-9][0-9]* gerrors=0 without_doorbell=0 ",
    ]);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// The same with Linux, whose firmware tells it of the window.
fn linux_window_elsewhere() -> Case {
    let bundle = Bundle::Manifest(
        "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"160M\"\nkernel = \"debian:6.12\"\n\
         initrd = \"initramfs\"\nfirmware = \"acpi\"\niommu = \"nested\"\nmsi = \"rmr\"\n\
         msi_window = { start = 0x0a000000, size = \"2M\" }\n\
         append = \"console=ttyAMA0 quiet do=use\"\ndevices = [ { host = \"0000:00:01.0\" } ]\n",
    );
    let mut case = Case::new(
        BOARD,
        "nested: Linux maps the window that the manifest names, and its disk's messages go through it",
    )
    .bundle(bundle)
    .one_thread()
    .expect(&[
        r"action use: ok: 1 disks, 0 interfaces, [1-9]\d* interrupts",
        "/ # ",
    ])
    .types("cat /sys/kernel/iommu_groups/*/reserved_regions\r")
    .expect(&[
        "0x0000000008000000 0x00000000080fffff msi",
        "0x000000000a000000 0x000000000a1fffff direct-relaxable",
    ])
    .types(MONITOR)
    .asks("stream linux 00:01.0 a000040", &["reaches 0x8090040"])
    // The control: where the window is not, stage 1 has nothing.
    .asks(
        "stream linux 00:01.0 8000040",
        &["faults: F_TRANSLATION, told to the guest"],
    )
    .asks("quit", &["verdict 0: the monitor was told to quit"]);
    case.forbids = vec![OURS.to_owned(), "(?i)firmware bug|call trace".to_owned()];
    case
}

/// Each attack of docs/vsmmuv3.md that a guest can carry out, with what the SMMU must say to it.
fn attacks() -> Case {
    let names = [
        "command queues elsewhere",
        "stream tables elsewhere",
        "level-2 stream tables elsewhere",
        "event queues elsewhere",
        "context descriptors elsewhere",
        "stage-1 tables elsewhere",
        "an event queue over the command queue",
        "every opcode",
        "reserved bits of commands and entries",
        "a producer beyond a lap",
        r"queues of 2\^19 entries filled at once",
        "enables in a storm",
        "entries in a storm",
        "messages elsewhere",
        "queues and tables that change as they are read",
        "every vCPU at every bell",
    ];
    let mut case = edus(Case::new(
        BOARD,
        "nested: every attack on an SMMU by name, each ends as the manual says, and it works again",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "2",
        "vits",
        both!(),
        "smmu-attacks",
        "pin = [0, 1]\n"
    )));
    for (number, name) in (1..).zip(names) {
        let turns = if number < 15 { "" } else { "[1-9]" };
        case = case.expect(&[&format!("dma attack {number}: {name}: held \\({turns}")]);
    }
    let mut case = case.expect(&["dma verdict: smmu-attacks ok: attacks=16 vcpus=2"]);
    case.forbids = vec![OURS.to_owned(), "FAILED".to_owned()];
    case
}

/// Garbage in every structure, from two vCPUs at once, with DMA all the time, beside a VM that must not miss
/// a beat.
fn fire() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: an SMMU under fire from two vCPUs works again, its neighbour misses nothing",
    ))
    .bundle(manifest!(
        "[[vm]]\nname = \"heart\"\nmemory = \"16M\"\npin = [0]\nkernel = \"guest:heartbeat\"\n",
        "kernel_format = \"flat\"\nrestart = \"never\"\n",
        "append = \"beats=2500 period_us=10000\"\n",
        dma!(
            "dma",
            "2",
            "vits",
            both!(),
            "smmu-hostile ops=20000 seed=1 formats=1",
            "pin = [1, 2]\n"
        ),
    ))
    .expect(&[
        "dma beat 0: seed=1 ops=20000, ",
        "heartbeat end: beats=2500 .* missed=0",
        // The second one did its part: on the first one's CPU it would wait as long as there is something to do.
        "dma verdict: smmu-hostile ok: seed=1 ops=20000 .* scribbled=[1-9][0-9]{3}",
    ]);
    case.vary.smp = Some(3);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// A live stream goes between bypass and stage 1 while a second vCPU has the device send messages and move data:
/// every access meets one of the two.
fn hitless() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: a live stream goes between bypass and stage 1, and no access meets anything else",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "2",
        "vits",
        both!(),
        "hitless messages=80",
        "pin = [0, 1]\n"
    )))
    .expect(&["dma verdict: hitless ok: messages=80 trips=2 switches=[1-9][0-9]{3}"]);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// The control: an entry in between that aborts is noticed.
fn hitless_control() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: a live stream that aborts for a moment loses a message, and that is noticed",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "2",
        "vits",
        both!(),
        "hitless messages=1000 spoil=1",
        "pin = [0, 1]\n"
    )))
    .expect(&["dma verdict: hitless FAILED: something was lost"]);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// What a call leaves of a queue is gone on with although its guest does nothing by which it would leave: it looks at a
/// word, or sleeps until a message, with no timer and every interrupt kept out; or the CPU that asked goes off.
fn left_over() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: a long queue ends for a guest that waits by a word or a message, and for nothing else",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "2",
        "vits",
        both!(),
        "smmu-leave",
        "pin = [0, 1]\n"
    )))
    .expect(&[
        "dma beat 1: a word, after",
        "dma beat 2: a word that a CPU asked for which is gone, after",
        "dma beat 3: a message, asleep",
        "dma beat 4: an ITS's message, asleep",
        "dma verdict: smmu-leave ok: commands=1022",
    ]);
    case.timeout = Duration::from_secs(60);
    case.forbids = vec![OURS.to_owned()];
    case
}

/// A context descriptor is the guest's memory, which the hardware reads by itself. QEMU 10 aborts on one with
/// `IPS` above 5 (facts: trap 1); nobody between the guest and it sees the descriptor.
fn wide_descriptor() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: the emulator aborts on a context descriptor with IPS 6, which no hypervisor sees",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "1",
        "vits",
        both!(),
        "smmu ips=1",
        ""
    )))
    .expect(&["dma beat 7: a context descriptor with IPS 6, and a DMA by it"]);
    case.forbids = vec![OURS.to_owned()];
    case.end = super::End::EmulatorAborts;
    case
}

/// A device goes from a VM with an SMMU of its own to one without, and back: neither sees anything of the other.
fn handed_on() -> Case {
    let mut case = Case::new(
        BOARD,
        "nested: a device goes to a VM with stage 2 alone, and comes back, ten times",
    )
    .bundle(manifest!(
        dma!(
            "nest",
            "1",
            "vits",
            "{ host = \"0000:01:00.0\" }",
            "smmu leave=1",
            ""
        ),
        "[[vm]]\nname = \"flat\"\nmemory = \"64M\"\nkernel = \"guest:dma\"\nkernel_format = \"flat\"\n",
        "restart = \"never\"\nstart = \"after:nest\"\niommu = \"stage2\"\n",
        "devices = [ { host = \"0000:01:00.0\" } ]\nappend = \"latency\"\n",
    ));
    case.vary.time = Time::Instructions;
    case.timeout = Duration::from_secs(300);
    case = case
        .args(&[
            "-device",
            "pcie-root-port,id=port0,chassis=1,addr=2",
            "-device",
            "edu,dma_mask=0xffffffffffffffff,bus=port0",
        ])
        .types(MONITOR);
    for round in 0..10 {
        if round > 0 {
            case = case.types("start nest\r");
        }
        case = case.expect(&["dma verdict: smmu ok: ", "dma verdict: latency ok: "]);
    }
    let mut case = case
        .asks("list", &[" nest +stopped .* 10 ", " flat +stopped .* 10 "])
        .asks("quit", &["verdict 0"]);
    case.forbids = vec![OURS.to_owned(), "FAILED".to_owned()];
    case
}

/// The VM is stopped and started in the middle of everything; nothing is lost, and it works after it.
fn killed() -> Case {
    let mut case = edus(Case::new(
        BOARD,
        "nested: a VM is killed at any moment and starts again, without losing a frame",
    ))
    .bundle(manifest!(dma!(
        "dma",
        "2",
        "rmr",
        both!(),
        "smmu-hostile ops=1000000 seed=2 formats=1",
        "pin = [1, 1]\n"
    ),))
    .expect(&["dma beat 0: seed=2 "])
    .types(MONITOR)
    .asks("frames", &["frames of 4 KiB free"]);
    for _ in 0..8 {
        case = case.asks("restart dma", &["dma: running"]);
    }
    let mut case = case
        .expect(&["dma beat 0: seed=2 "])
        .asks("frames", &["frames of 4 KiB free"])
        .asks("devices dma", &["its guest's SMMU: 2 streams, "])
        .asks("stop dma", &["dma: stopped"])
        .asks(
            "stream dma 00:01.0 0",
            &["stream 0x10: Config 0 \\(abort\\)"],
        )
        .asks("quit", &["verdict 0: the monitor was told to quit"]);
    case.forbids = vec![OURS.to_owned()];
    case.check = super::Check::Judged(super::vms::same_frames);
    case
}

/// The board's own guest: Linux's own log, and its tables as they are in memory, down to the ITS.
fn live_walk() -> Case {
    let mut case = Case::new(
        BOARD,
        "nested: the board's own guest has its SMMU, and its tables lead to its disk's doorbell",
    )
    .bundle(Bundle::OfBoard)
    .expect(&[
        "vm linux: 00:01.0 is 0000:00:01.0",
        "vm linux: its guest has an SMMU of its own, messages by rmr",
        "iommu: Default domain type: Translated",
        r"arm-smmu-v3 arm-smmu-v3\.0\.auto: ias 40-bit, oas 40-bit",
        "nvme 0000:00:01.0: Adding to iommu group 0",
        r"guest: Linux 6\.12\..* is up, ",
        r"0x0000000008000000 0x00000000080fffff direct-relaxable,",
        "action iommu: ok: 1 SMMUs, 1 devices, DMA, rmr",
        r"action irqs: ok: [1-9]\d* interrupts by 1 devices",
        "guest: all actions are done",
        "/ # ",
    ])
    .types(MONITOR)
    .asks(
        "devices linux",
        &[
            "00:01.0 is 0000:00:01.0.* BAR0 at 0x",
            "its guest's SMMU: 1 streams, [1-9][0-9]* commands, 0 refused, [1-9]",
        ],
    )
    .asks("smmu", &["smmu0: on, streams of no VM abort; 0 events"])
    // The window that the guest maps to itself, by its own tables.
    .asks(
        "stream linux 00:01.0 8000040",
        &[
            r"stream 0x8: Config 7 \(nested\), S1ContextPtr 0x[1-9a-f][0-9a-f]*, .* S2VMID [1-9]",
            "guest stream table, level 1, at 0x",
            "guest STE at 0x.*: stage 1, context descriptors at 0x.*, linear, ",
            "CD at 0x.* TTB0 0x[1-9a-f]",
            "stage 1, level 0, at 0x",
            "stage 1, level 3, at 0x",
            "stage 1 gives 0x8000040, stage 2 0x8090040",
            "stage 1: read-write, memory attributes 0x",
            "stage 2: 0x8000040 -> 0x8090040, level 3, ",
            "reaches 0x8090040",
        ],
    )
    // The control: RAM that the guest has not mapped for the disk.
    .asks(
        "stream linux 00:01.0 40000000",
        &["faults: F_TRANSLATION, told to the guest"],
    )
    // No vCPU reaches a doorbell.
    .asks("walk linux 8000000", &["0x8000000 is not mapped"])
    .asks("walk linux 8090000", &["0x8090000 is not mapped"])
    .asks("quit", &["verdict 0: the monitor was told to quit"]);
    case.forbids = vec![OURS.to_owned(), "(?i)firmware bug|call trace".to_owned()];
    case
}

/// Two functions of one device without isolation: each its own entry, and one group to the guest.
fn functions_of_one(policy: &str) -> Case {
    let bundle = match policy {
        "vits" => manifest!(dma!("dma", "1", "vits", functions!(), "smmu", "")),
        _ => manifest!(dma!(
            "dma",
            "1",
            "rmr",
            functions!(),
            "smmu messages=0x8000000",
            ""
        )),
    };
    let mut case = Case::new(
        BOARD,
        format!("nested: functions of one device without isolation have an entry each, messages by {policy}"),
    )
    .bundle(bundle)
    .args(&[
        "-device",
        "edu,dma_mask=0xffffffffffffffff,addr=02.0,multifunction=on",
        "-device",
        "edu,dma_mask=0xffffffffffffffff,addr=02.1",
    ])
    .expect(&[
        &format!("vm dma: its guest has an SMMU of its own, messages by {policy}"),
        "dma beat 1: IDR0 0xd40301a, stream 0x10 attached",
        "dma event: type 0x10 stream 0x10 address 0x2012345000 read false stage 2 false class 2",
        "dma beat 5: abort, bypass, invalid and stage 1 follow each other",
        "dma beat 6: off, on, and what is while it is off",
        "dma verdict: smmu ok: events=[1-9][0-9]* gerrors=0 without_doorbell=0 ",
    ]);
    case.vary.time = Time::Instructions;
    case.timeout = Duration::from_secs(300);
    case.forbids = vec![OURS.to_owned(), "F_TRANSLATION".to_owned()];
    case
}

/// The control: where the guest would believe that they are isolated, it gets no SMMU, and a word about it.
fn functions_apart() -> Case {
    let case = Case::new(
        BOARD,
        "nested: functions of one device that the guest sees as two leave it without an SMMU",
    )
    .bundle(Bundle::Manifest(
        "version = 1\n[[vm]]\nname = \"pair\"\nmemory = \"2M\"\nkernel = \"off.bin\"\n\
         kernel_format = \"flat\"\niommu = \"nested\"\n\
         devices = [ { host = \"0000:00:04.0\", guest = \"00:05.0\" },\n\
         { host = \"0000:00:04.1\", guest = \"00:06.0\" } ]\n",
    ))
    .args(&[
        "-device",
        "edu,addr=04.0,multifunction=on",
        "-device",
        "edu,addr=04.1",
    ]);
    case.expect(&[
        "vm pair: iommu = \"nested\" is not to be had: 0000:00:04.0 shares its isolation group with 0000:00:04.1: the guest",
        "verdict 1: no VM of the bundle can be run",
    ])
    .fatal()
}
