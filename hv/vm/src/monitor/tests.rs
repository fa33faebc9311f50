//! The monitor over a made-up machine.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use log::LevelFilter;
use proptest::prelude::{any, proptest};
use types::Bdf;

use super::{
    Activity, Control, Frames, Iommu, Monitor, Plug, Refusal, Reply, Then, VcpuState, VmStatus,
    Walk,
};
use crate::{ExitCause, State};

struct Machine {
    now: u64,
    vms: Vec<VmStatus>,
    level: LevelFilter,
}

impl Machine {
    fn new() -> Self {
        let vm = |name: &str, ran_us| VmStatus {
            name: name.into(),
            state: State::Running,
            vcpus: 2,
            memory: 256 << 20,
            starts: 1,
            exits: 77,
            ran_us,
        };
        Self {
            now: 1_000_000,
            vms: vec![vm("one", 500_000), vm("two", 250_000)],
            level: LevelFilter::Info,
        }
    }

    fn ask(&mut self, monitor: &mut Monitor, line: &str) -> String {
        let Reply { text, then } = monitor.execute(line, self);
        assert_eq!(then, Then::Stay, "{line}");
        text
    }
}

impl Control for Machine {
    fn vms(&self) -> Vec<VmStatus> {
        self.vms.clone()
    }

    fn now_us(&self) -> u64 {
        self.now
    }

    fn start(&mut self, vm: usize) -> Result<(), Refusal> {
        let vm = &mut self.vms[vm];
        if vm.state == State::Running {
            return Err(Refusal::Running);
        }
        vm.state = State::Running;
        vm.starts += 1;
        Ok(())
    }

    fn stop(&mut self, vm: usize) -> Result<(), Refusal> {
        let vm = &mut self.vms[vm];
        if vm.state != State::Running {
            return Err(Refusal::NotRunning);
        }
        vm.state = State::Stopped;
        Ok(())
    }

    fn restart(&mut self, vm: usize) -> Result<(), Refusal> {
        self.stop(vm)?;
        self.start(vm)
    }

    fn vcpu(&self, _vm: usize, vcpu: usize) -> Result<VcpuState, Refusal> {
        if vcpu > 1 {
            return Err(Refusal::NoVcpu);
        }
        Ok(VcpuState {
            core: 1,
            activity: Activity::Waiting,
            exits: 9,
            ran_us: 1_234_567,
            registers: vec![
                ("pc", 0x4008_0000),
                ("x0", 1),
                ("x1", 2),
                ("x2", 3),
                ("x3", 4),
            ],
        })
    }

    fn exits(&self, vm: usize) -> Result<Vec<(ExitCause, u64)>, Refusal> {
        Ok(match vm {
            0 => vec![(ExitCause::Message, 12), (ExitCause::Its, 3)],
            _ => Vec::new(),
        })
    }

    fn walk(&self, _vm: usize, address: u64) -> Result<Walk, Refusal> {
        if address >> 40 != 0 {
            return Err(Refusal::TooWide);
        }
        if address < 0x4000_0000 {
            return Ok(Walk::Unmapped { level: 1 });
        }
        Ok(Walk::Mapped {
            pa: address + 0x1000_0000,
            bytes: 0x20_0000,
            level: 2,
            descriptor: 0x5000_07fd,
        })
    }

    fn devices(&self, vm: usize) -> Result<Vec<String>, Refusal> {
        Ok(match vm {
            0 => vec!["00:01.0 is 0000:00:02.0".into()],
            _ => Vec::new(),
        })
    }

    fn plug(&self, vm: usize, bridge: u64, plug: Plug) -> Result<(), Refusal> {
        match (vm, bridge, plug) {
            (0, 0x0800_0000_2000_0001, Plug::In) => Err(Refusal::There),
            (0, 0x0800_0000_2000_0001, Plug::Out) => Ok(()),
            _ => Err(Refusal::NoBridge),
        }
    }

    fn stream(&self, _vm: usize, device: Bdf, address: u64) -> Result<Vec<String>, Refusal> {
        if device != Bdf::new(0, 1, 0).unwrap() {
            return Err(Refusal::NoDevice);
        }
        Ok(vec![alloc::format!("stage 2: {address:#x}")])
    }

    fn iommus(&self) -> Vec<Iommu> {
        vec![Iommu {
            name: "smmu0".into(),
            state: "locked".into(),
        }]
    }

    fn frames(&self) -> Frames {
        Frames {
            free: 10,
            total: 20,
            heap_used: 1025,
            heap_total: 4096,
        }
    }

    fn set_log(&mut self, level: LevelFilter) {
        self.level = level;
    }
}

#[test]
fn list_shows_the_share_of_a_core_since_the_last_list() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let first = machine.ask(&mut monitor, "list");
    let lines: Vec<_> = first.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[1].starts_with(" 1 one ") && lines[1].contains(" running "),
        "{first}"
    );
    assert!(
        lines[1].contains(" 256 MiB ") && lines[1].ends_with("50.0%"),
        "{first}"
    );
    assert!(lines[2].ends_with("25.0%"), "{first}");
    machine.now += 2_000_000;
    machine.vms[0].ran_us += 1_000_000;
    machine.vms[1].ran_us += 990_000;
    let second = machine.ask(&mut monitor, "list");
    let lines: Vec<_> = second.lines().collect();
    assert!(
        lines[1].ends_with("50.0%") && lines[2].ends_with("49.5%"),
        "{second}"
    );
}

#[test]
fn states_are_changed_and_told() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let mut ask = |line| machine.ask(&mut monitor, line);
    assert_eq!(ask("stop one"), "one: stopped\n");
    assert_eq!(ask("stop one"), "one: it is not running\n");
    assert_eq!(ask("restart one"), "one: it is not running\n");
    assert_eq!(ask("start one"), "one: running\n");
    assert_eq!(ask("start one"), "one: it is running already\n");
    assert_eq!(ask("restart two"), "two: running\n");
    assert_eq!(
        ask("stop three"),
        "there is no VM three; `list` shows them\n"
    );
}

#[test]
fn a_vcpu_is_shown_with_its_registers() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let text = machine.ask(&mut monitor, "vcpu one 1");
    assert!(
        text.starts_with(
            "vCPU 1: waiting, core 1, 9 exits, ran 1.234 s\n        pc 0000000040080000"
        ),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3);
    assert_eq!(
        machine.ask(&mut monitor, "vcpu one 2"),
        "there is no such vCPU\n"
    );
}

#[test]
fn a_walk_ends_in_memory_or_nowhere() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let mut ask = |line| machine.ask(&mut monitor, line);
    assert!(ask("walk one 0x40000000").starts_with("0x40000000 -> 0x50000000, level 2"));
    assert_eq!(
        ask("walk one 9000000"),
        "0x9000000 is not mapped: the walk ends at level 1\n"
    );
    assert_eq!(ask("walk one ffffffffffff"), "the address is too wide\n");
}

#[test]
fn the_rest_is_asked_and_told() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    assert_eq!(machine.ask(&mut monitor, "smmu"), "smmu0: locked\n");
    assert_eq!(
        machine.ask(&mut monitor, "frames"),
        "10 of 20 frames of 4 KiB free, heap: 2 of 4 KiB used\n"
    );
    machine.ask(&mut monitor, "log debug");
    assert_eq!(machine.level, LevelFilter::Debug);
    assert!(
        machine
            .ask(&mut monitor, "help")
            .contains("walk NAME ADDRESS")
    );
    let mut then = |line: &str| monitor.execute(line, &mut machine).then;
    assert_eq!(then("focus two"), Then::Focus(1));
    assert_eq!(then("focus"), Then::Leave);
    assert_eq!(then("focus three"), Then::Stay);
    assert_eq!(then("quit"), Then::Quit);
}

proptest! {
    #[test]
    fn any_line_gets_an_answer(line in any::<String>()) {
        let reply = Monitor::new().execute(&line, &mut Machine::new());
        assert!(reply.then != Then::Stay || !reply.text.to_string().is_empty());
    }
}

#[test]
fn host_bridges_come_and_go_by_their_ids() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let mut ask = |line| machine.ask(&mut monitor, line);
    for line in [
        "unplug one 800000020000001",
        "unplug one 0x800000020000001",
        "unplug one phb:800000020000001",
    ] {
        assert_eq!(ask(line), "phb:800000020000001 taken away\n");
    }
    assert_eq!(ask("plug one 800000020000001"), "it is there already\n");
    assert!(ask("unplug two 800000020000001").contains("no such host bridge"));
    assert!(ask("unplug one").contains("BUID of a host bridge, hexadecimal is missing"));
    assert!(ask("plug one 00:01.0").contains("that is no BUID"));
}

#[test]
fn devices_are_listed_and_their_streams_walked() {
    let (mut machine, mut monitor) = (Machine::new(), Monitor::new());
    let mut ask = |line| machine.ask(&mut monitor, line);
    assert_eq!(ask("devices one"), "00:01.0 is 0000:00:02.0\n");
    assert_eq!(ask("devices two"), "none\n");
    assert_eq!(
        ask("stream one 00:01.0 0x40000000"),
        "stage 2: 0x40000000\n"
    );
    assert!(ask("stream one 00:02.0 0").contains("no such device"));
    assert!(ask("stream one phb:0 0").contains("no device of the guest"));
    assert!(ask("stream one 00:01.0").contains("ADDRESS"));
}

#[test]
fn exits_are_told_by_cause() {
    let (mut monitor, mut machine) = (Monitor::new(), Machine::new());
    let told = machine.ask(&mut monitor, "exits one");
    assert_eq!(told, "message          12\nits              3\n");
    assert_eq!(machine.ask(&mut monitor, "exits two"), "none\n");
    assert!(machine.ask(&mut monitor, "exits").contains("NAME"));
}
