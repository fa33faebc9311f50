//! What the driver of the guest's SMMU tells the kernel's log.

use core::time::Duration;

use devtool::event::{Event, Reader};

use crate::linux::{Errno, File, Open, sleep};
use crate::{Failure, println};

/// How long the log is watched for what must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// The kernel's log from now on.
pub(crate) struct Log {
    file: File,
    reader: Reader,
}

impl Log {
    /// Opens it at its end.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> Result<Self, Failure> {
        let failed = |error| Failure::Call("/dev/kmsg", error);
        let file = File::open(&["/dev/kmsg"], Open::Poll).map_err(failed)?;
        file.seek_end().map_err(failed)?;
        Ok(Self {
            file,
            reader: Reader::default(),
        })
    }

    /// The next event that is there already.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, Failure> {
        let mut record = [0; 4096];
        loop {
            let bytes = match self.file.read(&mut record) {
                Ok(bytes) => bytes,
                Err(Errno::AGAIN) => return Ok(None),
                // Some lines were lost, the next is whole.
                Err(Errno::PIPE) => continue,
                Err(error) => return Err(Failure::Call("/dev/kmsg", error)),
            };
            let record = record.get(..bytes).unwrap_or_default();
            let line = core::str::from_utf8(record).unwrap_or_default();
            let line = line.lines().next().unwrap_or_default();
            if let Some(event) = self.reader.line(line) {
                return Ok(Some(event));
            }
        }
    }

    /// Nothing comes.
    ///
    /// # Errors
    /// Something does.
    pub(crate) fn quiet(&mut self) -> Result<(), Failure> {
        sleep(QUIET);
        match self.next()? {
            None => Ok(()),
            Some(event) => {
                println!("devtool: {event}");
                Err(Failure::Wrong("an event for a DMA that was allowed"))
            }
        }
    }
}
