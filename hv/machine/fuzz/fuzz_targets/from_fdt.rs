//! Any bytes: no panic, and what is read can be reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machine::Machine;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(machine) = Machine::from_fdt(bytes) {
        assert!(!machine.memory.is_empty());
        machine.report(&mut |line| {
            let _ = line.to_string();
        });
    }
    let _ = Machine::console(bytes);
});
