//! Levelled log lines on a console.

use core::fmt::{self, Write};

use hal::{Clock, Console};
use log::{Log, Metadata, Record};

/// Writes `[seconds.microseconds] LEVEL target: message` lines, each in one piece.
///
/// The level filter is the `log` crate's own (`log::set_max_level`). Lines are assembled in a
/// buffer of 256 bytes a piece and handed to the console under a lock, so that lines of two CPUs
/// do not mix; the panic path writes to the console directly and takes no lock.
#[derive(Debug)]
pub struct Logger<C, K> {
    console: C,
    clock: K,
    start: u64,
    line: hal::Mutex<()>,
}

impl<C: Console, K: Clock> Logger<C, K> {
    /// A logger whose times count from the clock reading `start`.
    pub const fn new(console: C, clock: K, start: u64) -> Self {
        Self {
            console,
            clock,
            start,
            line: hal::Mutex::new(()),
        }
    }

    /// Microseconds since the start.
    pub fn elapsed_us(&self) -> u64 {
        const US: u64 = 1_000_000;
        let ticks = self.clock.ticks().wrapping_sub(self.start);
        // No clock ticks so fast that a second of it, in microseconds, is too long.
        let frequency = self.clock.frequency().clamp(1, u64::MAX / US);
        let rest = ticks % frequency * US / frequency;
        (ticks / frequency).saturating_mul(US).saturating_add(rest)
    }
}

impl<C: Console + Send + Sync, K: Clock + Send + Sync> Log for Logger<C, K> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let us = self.elapsed_us();
        let target = record.target();
        let last = target.bytes().rposition(|byte| byte == b':');
        let target = last.and_then(|last| target.get(last + 1..));
        let target = target.unwrap_or(record.target());
        let target = target.strip_prefix("bulkhead_").unwrap_or(target);
        let _line = self.line.lock();
        let mut out = Buffered {
            console: &self.console,
            buffer: [0; 256],
            used: 0,
        };
        // Writing into the buffer cannot fail.
        let _ = writeln!(
            out,
            "[{:5}.{:06}] {:5} {target}: {}",
            us / 1_000_000,
            us % 1_000_000,
            record.level(),
            record.args()
        );
        out.flush();
    }

    fn flush(&self) {}
}

struct Buffered<'c, C: Console> {
    console: &'c C,
    buffer: [u8; 256],
    used: usize,
}

impl<C: Console> Buffered<'_, C> {
    fn flush(&mut self) {
        self.console.write(&self.buffer[..self.used]);
        self.used = 0;
    }
}

impl<C: Console> Write for Buffered<'_, C> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            if self.used == self.buffer.len() {
                self.flush();
            }
            let n = rest.len().min(self.buffer.len() - self.used);
            self.buffer[self.used..self.used + n].copy_from_slice(&rest[..n]);
            self.used += n;
            rest = &rest[n..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use hal::{Clock, Console};
    use log::{Level, Log, Record};

    use super::Logger;

    #[derive(Default)]
    struct Paper(hal::Mutex<Vec<u8>>);

    impl Console for &Paper {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().extend_from_slice(bytes);
        }
        fn read(&self) -> Option<u8> {
            None
        }
    }

    struct At(u64);

    impl Clock for At {
        fn ticks(&self) -> u64 {
            self.0
        }
        fn frequency(&self) -> u64 {
            1_000_000
        }
    }

    fn line(message: &str, level: Level) -> String {
        let paper = Paper::default();
        log::set_max_level(log::LevelFilter::Info);
        let logger = Logger::new(&paper, At(2_001_234), 1_000_000);
        logger.log(
            &Record::builder()
                .level(level)
                .target("bulkhead_smmuv3::driver")
                .args(format_args!("{message}"))
                .build(),
        );
        String::from_utf8(paper.0.into_inner()).unwrap()
    }

    #[test]
    fn a_line_has_time_level_target_and_message() {
        assert_eq!(
            line("ready", Level::Warn),
            "[    1.001234] WARN  driver: ready\n"
        );
    }

    #[test]
    fn a_level_above_the_filter_prints_nothing() {
        assert_eq!(line("detail", Level::Debug), "");
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_whole() {
        let long = "x".repeat(1000);
        assert!(line(&long, Level::Info).ends_with(&alloc::format!("driver: {long}\n")));
    }
}
