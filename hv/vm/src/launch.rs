//! Which core each vCPU lives on, and what a VM has cost.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bundle::VmConfig;

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

/// What a VM that has been made has cost, as a line: memory of the hypervisor's before and after.
#[must_use]
pub fn cost(config: &VmConfig, before: Frames, after: Frames) -> String {
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

    use bundle::VmConfig;

    use super::{Placement, cost};
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
