//! Cores that run at the same time.

use std::sync::{
    atomic::{AtomicU32, Ordering},
    mpsc::{RecvTimeoutError, channel},
};
use std::time::Duration;

use bulkhead_vgic::{Level, ListRegister, LrImage};

use crate::machine::Machine;

/// Senders wait for each of their SGIs to be handled; a lost one, or a lost kick, stops them.
#[test]
fn no_sgi_and_no_kick_is_lost_between_cores() {
    const ROUNDS: u32 = 2000;
    const SENDERS: u32 = 3;
    let machine = Machine::enabled(4, 32, 2);
    let vgic = &machine.vgic;
    let handled: [AtomicU32; SENDERS as usize] = Default::default();
    let (kick, kicks) = channel();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (kick, handled) = (kick.clone(), &handled);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let from = sender as usize + 1;
                    let mut targets = vgic.send_sgi(from, u64::from(sender) << 24 | 0b1);
                    // And something for the other locks to do.
                    for level in [Level::High, Level::Low] {
                        targets = targets.union(vgic.set_spi_line(40 + sender, level));
                    }
                    if targets.contains(0) {
                        kick.send(()).unwrap();
                    }
                    while handled[sender as usize].load(Ordering::Acquire) == round {
                        std::thread::yield_now();
                    }
                }
            });
        }
        drop(kick);
        let mut image = LrImage::new();
        loop {
            match kicks.recv_timeout(Duration::from_secs(60)) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("a kick was lost"),
            }
            loop {
                let _ = vgic.flush(0, &mut image);
                for lr in image.live_mut() {
                    if let Some(count) = handled.get(lr.intid() as usize) {
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                    *lr = ListRegister::INVALID;
                }
                // What hardware would ask for by a maintenance interrupt.
                let more = image.hcr() >> 3 & 1 == 1 || image.live_count() != 0;
                if !more && !vgic.needs_flush(0) {
                    break;
                }
            }
        }
    });
    for count in &handled {
        assert_eq!(count.load(Ordering::Acquire), ROUNDS);
    }
}
