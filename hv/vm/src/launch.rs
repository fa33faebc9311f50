//! From a manifest to VMs: which there are, which core each vCPU lives on, and what a VM has cost.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bundle::{ConsoleUart, Start, VmConfig};

use crate::Frames;

/// Gives vCPUs their cores: those that are pinned where their manifest says, the others to the next core in
/// turn.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The vCPUs of each core: VM and vCPU numbers.
    cores: Vec<Vec<(usize, usize)>>,
    /// Those that take turns.
    online: Vec<usize>,
    next: usize,
}

impl Placement {
    /// Over so many cores, of which these run.
    #[must_use]
    pub fn new(cores: usize, online: Vec<usize>) -> Self {
        Self {
            cores: (0..cores).map(|_| Vec::new()).collect(),
            online,
            next: 0,
        }
    }

    /// The core of a vCPU, whose VM has these pins: a place for each vCPU, or none. A place that is beyond
    /// the cores there are is counted on from the first.
    pub fn place(&mut self, vm: usize, vcpu: usize, pin: &[u32]) -> usize {
        let core = match pin.get(vcpu) {
            Some(pinned) => usize::try_from(*pinned).unwrap_or(0),
            None => {
                let turn = self.next.checked_rem(self.online.len());
                let online = turn.and_then(|turn| self.online.get(turn));
                online.copied().unwrap_or(0)
            }
        };
        if pin.is_empty() {
            self.next = self.next.wrapping_add(1);
        }
        let core = core.checked_rem(self.cores.len()).unwrap_or(0);
        if let Some(vcpus) = self.cores.get_mut(core) {
            vcpus.push((vm, vcpu));
        }
        core
    }

    /// A VM that could not be made has no vCPUs.
    pub fn forget(&mut self, vm: usize) {
        for vcpus in &mut self.cores {
            vcpus.retain(|(other, _)| *other != vm);
        }
    }

    /// The vCPUs of each core.
    #[must_use]
    pub fn into_cores(self) -> Vec<Vec<(usize, usize)>> {
        self.cores
    }
}

/// A VM that has been made.
#[derive(Debug)]
pub struct Made<V> {
    /// It.
    pub vm: V,
    /// What there is to tell of it.
    pub lines: Vec<String>,
}

/// Why a VM cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The reason.
    pub why: String,
    /// What belongs to it, a line each.
    pub more: Vec<String>,
}

impl LeftOut {
    /// For this reason.
    #[must_use]
    pub fn new(why: String) -> Self {
        Self {
            why,
            more: Vec::new(),
        }
    }
}

/// Makes the VMs of a manifest, stopped, on a machine whose consoles are `own`; gives them with the vCPUs of
/// each core. One that asks for what is not there, or cannot be made, is left out with its reason: the others
/// are numbered as if it were not in the manifest.
///
/// `frames` tells how much of the hypervisor's memory is left. `make` makes one, with its number, and asks for
/// the core of each of its vCPUs.
pub fn make_vms<V>(
    configs: &[VmConfig],
    own: ConsoleUart,
    mut placement: Placement,
    frames: impl Fn() -> Frames,
    mut make: impl FnMut(&VmConfig, usize, &mut dyn FnMut(usize) -> usize) -> Result<Made<V>, LeftOut>,
) -> (Vec<V>, Vec<Vec<(usize, usize)>>) {
    let mut vms = Vec::new();
    for config in configs {
        let name = &config.name;
        if let Some(field) = config.not_acted_on(own) {
            log::error!("vm {name}: left out: {}: not supported", field.key());
            continue;
        }
        let number = vms.len();
        let before = frames();
        let made = make(config, number, &mut |vcpu| {
            placement.place(number, vcpu, &config.pin)
        });
        match made {
            Ok(Made { vm, lines }) => {
                log::info!("vm {name}: {}", cost(config, before, frames()));
                for line in lines {
                    log::info!("vm {name}: {line}");
                }
                if config.start != Start::Boot {
                    log::info!("vm {name}: not started at boot");
                }
                vms.push(vm);
            }
            Err(LeftOut { why, more }) => {
                log::error!("vm {name}: {why}");
                for line in more {
                    log::error!("  {line}");
                }
                placement.forget(number);
            }
        }
    }
    (vms, placement.into_cores())
}

/// What a VM that has been made has cost, as a line: memory of the hypervisor's before and after.
fn cost(config: &VmConfig, before: Frames, after: Frames) -> String {
    let mebibytes = config.memory >> 20;
    let frames = before.free.saturating_sub(after.free);
    let own = usize::try_from(config.memory >> 12).unwrap_or(usize::MAX);
    let heap = after.heap_used.saturating_sub(before.heap_used);
    format!(
        "{mebibytes} MiB, {} vCPUs, beside them {} KiB of heap and {} KiB of tables, {} frames left",
        config.cpus,
        heap.div_ceil(1024),
        frames.saturating_sub(own).saturating_mul(4),
        after.free
    )
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use bundle::{Console, ConsoleUart, VmConfig};

    use super::{LeftOut, Made, Placement, cost, make_vms};
    use crate::Frames;

    #[test]
    fn vcpus_go_round_the_cores_that_run_and_pins_are_obeyed() {
        let mut placement = Placement::new(4, vec![0, 1, 3]);
        let mut place = |vm, vcpu, pin: &[u32]| placement.place(vm, vcpu, pin);
        assert_eq!([place(0, 0, &[]), place(0, 1, &[])], [0, 1]);
        // A VM with pins takes no turn, also for a vCPU that has none.
        assert_eq!([place(1, 0, &[2]), place(1, 1, &[2])], [2, 3]);
        assert_eq!(place(2, 0, &[]), 3);
        assert_eq!(place(3, 0, &[9]), 1);
        placement.forget(1);
        let cores = placement.into_cores();
        assert_eq!(
            cores,
            [vec![(0, 0)], vec![(0, 1), (3, 0)], vec![], vec![(2, 0)]]
        );
    }

    #[test]
    fn a_machine_without_cores_places_nothing() {
        let mut placement = Placement::new(0, vec![]);
        assert_eq!(placement.place(0, 0, &[]), 0);
        assert_eq!(placement.place(0, 0, &[7]), 0);
        assert!(placement.into_cores().is_empty());
    }

    #[test]
    fn who_is_left_out_has_no_number_and_no_core() {
        let mut configs = vec![
            VmConfig::new("first", 2 << 20, "kernel"),
            VmConfig::new("asks", 2 << 20, "kernel"),
            VmConfig::new("fails", 2 << 20, "kernel"),
            VmConfig::new("last", 2 << 20, "kernel"),
        ];
        configs[1].console = Console {
            uart: ConsoleUart::Hvc,
            ..Console::default()
        };
        configs[3].cpus = 2;
        let frames = || Frames {
            free: 1000,
            total: 2000,
            heap_used: 0,
            heap_total: 1 << 20,
        };
        let mut asked = vec![];
        let (vms, cores) = make_vms(
            &configs,
            ConsoleUart::Pl011,
            Placement::new(2, vec![0, 1]),
            frames,
            |config, number, place| {
                let cores: vec::Vec<usize> = (0..config.cpus as usize).map(place).collect();
                asked.push((config.name.clone(), number));
                if config.name == "fails" {
                    return Err(LeftOut::new("it cannot".into()));
                }
                Ok(Made {
                    vm: (number, cores),
                    lines: vec![],
                })
            },
        );
        assert_eq!(
            asked,
            [("first".into(), 0), ("fails".into(), 1), ("last".into(), 1)]
        );
        assert_eq!(vms, [(0, vec![0]), (1, vec![0, 1])]);
        assert_eq!(cores, [vec![(0, 0), (1, 0)], vec![(1, 1)]]);
    }

    #[test]
    fn the_cost_is_what_is_beside_the_memory() {
        let config = VmConfig::new("a", 2 << 20, "kernel");
        let frames = |free, heap_used| Frames {
            free,
            total: 2000,
            heap_used,
            heap_total: 1 << 20,
        };
        let line = cost(&config, frames(1000, 100), frames(485, 1125));
        assert_eq!(
            line,
            "2 MiB, 1 vCPUs, beside them 2 KiB of heap and 12 KiB of tables, 485 frames left"
        );
    }
}
