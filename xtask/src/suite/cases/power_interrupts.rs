//! Tests of the interrupts that the hypervisor itself takes on POWER: of devices by messages and pins, of the terminal,
//! and of its CPUs among each other; by each of the interrupt controllers, agreed on with the platform or as it is found.

use super::vms::MONITOR;
use super::{Bundle, Case, sampled};

const BOARD: &str = "pseries";

/// A VM whose device sends messages: an `edu` behind host bridge 1.
macro_rules! messages {
    () => {
        concat!(
            "[[vm]]\nname = \"messages\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
            "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"messages phb=1\"\n",
            "devices = [ { host = \"phb:800000020000001\" } ]\n",
        )
    };
}
pub(super) use messages;

/// That one, and one that is there for ever.
const MESSAGES: &str = concat!(
    messages!(),
    "[[vm]]\nname = \"beats\"\nmemory = \"32M\"\npin = [0]\nkernel = \"guest:heartbeat\"\n",
    "kernel_format = \"elf\"\nrestart = \"never\"\n",
    "append = \"beats=1000000 period_us=10000 limit_us=1000000000\"\n",
);

/// What is asked for where nothing is, of a machine that has both.
pub(super) const AGREED: &str = "interrupts: XIVE, agreed on with the platform";
const AS_FOUND: &str = "interrupts: as the platform has them";

/// The device for [`messages`].
pub(super) const EDU: [&str; 4] = [
    "-device",
    "spapr-pci-host-bridge,index=1,id=p1",
    "-device",
    "edu,bus=p1.0",
];

/// What is asked for, what the machine has, and what comes of it.
const WAYS: [(&str, &str, &[&str]); 9] = [
    ("best", "dual", &[AGREED, "interrupt controller: XIVE"]),
    (
        "as-found",
        "dual",
        &[AS_FOUND, "interrupt controller: XICS"],
    ),
    (
        "xics",
        "dual",
        &[
            "interrupts: XICS, agreed on with the platform",
            "interrupt controller: XICS",
        ],
    ),
    ("best", "xics", &[AS_FOUND, "interrupt controller: XICS"]),
    ("xive", "xive", &[AGREED, "interrupt controller: XIVE"]),
    // What is agreed on is one of the above, asked for otherwise.
    ("best", "xive", &[AGREED, "interrupt controller: XIVE"]),
    ("xive", "dual", &[AGREED, "interrupt controller: XIVE"]),
    (
        "xics",
        "xics",
        &[
            "interrupts: XICS, agreed on with the platform",
            "interrupt controller: XICS",
        ],
    ),
    (
        "as-found",
        "xics",
        &[AS_FOUND, "interrupt controller: XICS"],
    ),
];
/// The ways that others are like.
const LATER: usize = 5;

/// A VM whose device interrupts by its pin.
const PIN: &str = concat!(
    "[[vm]]\nname = \"pin\"\nmemory = \"32M\"\npin = [1]\nkernel = \"guest:dma\"\n",
    "kernel_format = \"elf\"\nrestart = \"never\"\nappend = \"pin phb=1\"\n",
    "devices = [ { host = \"phb:800000020000001\" } ]\n",
);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = ways();
    cases.extend(pins());
    cases.extend([
        refused(
            "xive",
            "xics",
            &["ERROR .*interrupts: the platform does not offer Xive"],
            "no agreement with the platform",
        ),
        refused(
            "xics",
            "xive",
            &["ERROR .*interrupts: the platform does not offer Xics"],
            "no agreement with the platform",
        ),
        // The control: without the agreement there is nothing.
        refused(
            "as-found",
            "xive",
            &[AS_FOUND, "ERROR .*interrupts: H_INT_RESET answers -2"],
            "this machine's CPUs get no interrupts",
        ),
    ]);
    cases
}

fn asks(case: Case, wish: &str, machine: &str) -> Case {
    case.args(&["-append", &format!("bulkhead.interrupts={wish}")])
        .args(&["-machine", &format!("ic-mode={machine}")])
}

/// Devices, terminal and CPUs interrupt.
fn ways() -> Vec<Case> {
    const FIRMWARE: [&str; 2] = ["vof", "slof"];
    const CPUS: [&str; 2] = ["power9", "power10"];
    let rows = sampled(&[WAYS.len(), FIRMWARE.len(), CPUS.len()]);
    let cases = rows.into_iter().map(|(row, only_full)| {
        // That firmware takes seconds, and has no part in the later ways that it has not in the first two; of these the
        // first is asked of a machine with Linux (`pseries`).
        let only_full = only_full || row[1] == 1 && row[0] != 1 || row[0] >= LATER;
        let (wish, machine, shows) = WAYS[row[0]];
        let (firmware, cpu) = (FIRMWARE[row[1]], CPUS[row[2]]);
        let name =
            format!("interrupts reach the hypervisor: {wish} of {machine}, {firmware}, {cpu}");
        let mut case = Case::new(BOARD, name)
            .bundle(Bundle::Manifest(MESSAGES))
            .args(&EDU)
            .expect(shows)
            .expect(&[
                // By another CPU's interrupt.
                "nested: a guest whose slice was lost was made to leave",
                // Nobody asks the terminal from now on.
                "console: what is typed is interrupt 0x1100",
                "dma verdict: messages ok: came=100",
                "vm messages: powered off",
            ])
            .types(MONITOR)
            .asks("list", &[" 1 messages +stopped ", " 2 beats +running "])
            .asks("quit", &["verdict 0: the monitor was told to quit"]);
        case = asks(case, wish, machine);
        case.vary.firmware = Some(firmware.to_owned());
        case.vary.cpu = Some(cpu.to_owned());
        case.only_full = only_full;
        case
    });
    cases.collect()
}

/// Levels: up, served, ended while up, masked, taken down, by each controller.
fn pins() -> Vec<Case> {
    const FIRMWARE: [&str; 2] = ["vof", "slof"];
    const CPUS: [&str; 2] = ["power9", "power10"];
    let rows = sampled(&[WAYS.len(), FIRMWARE.len(), CPUS.len()]);
    let cases = rows.into_iter().map(|(row, only_full)| {
        // The other firmware is asked in the other matrix.
        let only_full = only_full || row[1] == 1 || row[0] >= LATER;
        let (wish, machine, shows) = WAYS[row[0]];
        let (firmware, cpu) = (FIRMWARE[row[1]], CPUS[row[2]]);
        let name = format!("a pin interrupts as a level: {wish} of {machine}, {firmware}, {cpu}");
        let mut case = Case::new(BOARD, name)
            .bundle(Bundle::Manifest(PIN))
            .args(&["-device", "spapr-pci-host-bridge,index=1,id=p1"])
            .args(&["-device", "edu,bus=p1.0"])
            .expect(shows)
            .expect(&[
                "dma verdict: pin ok: source=0x1200 came=42",
                "verdict 0: all VMs are off",
            ]);
        case = asks(case, wish, machine);
        case.vary.firmware = Some(firmware.to_owned());
        case.vary.cpu = Some(cpu.to_owned());
        case.only_full = only_full;
        case
    });
    cases.collect()
}

/// What the machine does not have ends the run before anything is asked of it.
fn refused(wish: &str, machine: &str, shows: &[&str], verdict: &str) -> Case {
    let name = format!("interrupts: {wish} of a machine with {machine} alone is refused");
    asks(Case::new(BOARD, name), wish, machine)
        .expect(shows)
        .expect(&[&format!("verdict 1: {verdict}")])
        .fatal()
}
