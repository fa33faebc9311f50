//! Children that never outlive us: QEMU, and what builds, fetches and tests for us.
#![expect(
    unsafe_code,
    reason = "the tie to the parent is made between fork and exec"
)]

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::qemu::Line;
use crate::workspace;

/// Processor time of a process that has ended and was not waited for yet, and of its children that it waited
/// for: what it cost, whatever else the host was doing meanwhile. Waits for its end. [proc_pid_stat(5)]
pub(crate) fn processor_time(child: &Child) -> Option<Duration> {
    let pid = Pid::from_child(child);
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), ended).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    times_of(&stat, rustix::param::clock_ticks_per_second())
}

/// Processor time of this process and of all its children that it waited for.
pub(crate) fn own_processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    times_of(&stat, rustix::param::clock_ticks_per_second())
}

/// Has the kernel send the child a signal when the thread that starts it ends, however that comes about.
pub(crate) fn tied(command: &mut Command, signal: Signal) -> &mut Command {
    let parent = rustix::process::getpid();
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // We may have gone between the fork and the line above.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::other("the parent is gone"))
        }
    };
    // SAFETY: the closure only makes two system calls: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(tie) }
}

/// Runs a command to its end, with nothing to read; asks it to end if we do.
///
/// # Errors
/// Those of the system calls.
pub(crate) fn status(command: &mut Command) -> io::Result<ExitStatus> {
    tied(command, Signal::TERM).stdin(Stdio::null()).status()
}

/// Runs a command to its end: how it ended, its standard output, and the processor time it took. Its messages go
/// where ours go; it is asked to end if we do.
///
/// # Errors
/// Those of the system calls.
pub(crate) fn output(command: &mut Command) -> io::Result<(ExitStatus, Vec<u8>, Duration)> {
    let mut child = tied(command, Signal::TERM)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut bytes = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut bytes)?;
    }
    let spent = processor_time(&child).unwrap_or_default();
    Ok((child.wait()?, bytes, spent))
}

/// The times of a line of `/proc/PID/stat`. The program's name, in parentheses, may have anything in it.
fn times_of(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    /// Fields 14 to 17, of which the third is the first behind the name.
    const BEFORE: usize = 11;
    let fields = stat.rsplit_once(") ")?.1.split_whitespace();
    let times: Vec<u64> = fields
        .skip(BEFORE)
        .take(4)
        .map_while(|field| field.parse().ok())
        .collect();
    if times.len() < 4 {
        return None;
    }
    let ms = times.iter().sum::<u64>().checked_mul(1000)?;
    Some(Duration::from_millis(ms.checked_div(ticks_per_second)?))
}

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    spent: Duration,
}

impl Qemu {
    /// Starts it with all three standard streams piped.
    ///
    /// The kernel ends it when the calling thread ends, however that comes about.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(line: &Line) -> io::Result<Self> {
        let mut command = Command::new(&line.program);
        // What is written to its disks is kept while it runs in files without names.
        let overlays = workspace::target_dir().join("overlays");
        fs::create_dir_all(&overlays)?;
        command
            .args(&line.args)
            .env("TMPDIR", overlays)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: a Ctrl-C on the terminal is ours to act on.
            .process_group(0);
        tied(&mut command, Signal::KILL).spawn().map(|child| Self {
            child,
            spent: Duration::ZERO,
        })
    }

    /// Its standard streams: input, output, errors. Each can be taken once.
    pub(crate) fn streams(
        &mut self,
    ) -> Option<(
        std::process::ChildStdin,
        std::process::ChildStdout,
        std::process::ChildStderr,
    )> {
        Some((
            self.child.stdin.take()?,
            self.child.stdout.take()?,
            self.child.stderr.take()?,
        ))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Those of the system call.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let pid = Pid::from_child(&self.child);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        if rustix::process::waitid(WaitId::Pid(pid), ended)?.is_none() {
            return Ok(None);
        }
        self.measure();
        self.child.try_wait()
    }

    /// The processor time that it took, once it has ended.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    fn measure(&mut self) {
        if let Some(spent) = processor_time(&self.child) {
            self.spent = spent;
        }
    }

    /// Ends it and waits until it has.
    pub(crate) fn end(&mut self) {
        // Either may fail only because it is gone already.
        let _ = self.child.kill();
        self.measure();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Line {
        Line {
            program: "sh".into(),
            args: vec!["-c".into(), "echo $$; exec sleep 600".into()],
        }
    }

    fn started() -> (Qemu, rustix::process::Pid) {
        let mut qemu = Qemu::start(&sleeper()).unwrap();
        let (_stdin, mut stdout, _stderr) = qemu.streams().unwrap();
        let mut byte = [0];
        let mut text = String::new();
        while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            text.push(char::from(byte[0]));
        }
        let pid = rustix::process::Pid::from_raw(text.parse().unwrap()).unwrap();
        (qemu, pid)
    }

    #[test]
    fn times_are_those_of_the_process_and_its_children() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 20 10 0 0 150 50 200 100 20 0 1 0 99 1000 1";
        assert_eq!(times_of(stat, 100), Some(Duration::from_secs(5)));
        assert_eq!(times_of("7 (a) S 1 7 7", 100), None);
        assert_eq!(times_of("", 100), None);
        assert_eq!(times_of(stat, 0), None);
    }

    #[test]
    fn what_it_took_is_known_when_it_has_ended() {
        let busy = "i=0; while [ $i -lt 400000 ]; do i=$((i + 1)); done; :";
        let spent = |script: &str| {
            let mut qemu = Qemu::start(&Line {
                program: "sh".into(),
                args: vec!["-c".into(), format!("{script} >/dev/null; echo")],
            })
            .unwrap();
            let (_stdin, mut stdout, _stderr) = qemu.streams().unwrap();
            let _ = stdout.read(&mut [0; 1]);
            qemu.end();
            qemu.spent()
        };
        assert!(spent(busy) > Duration::ZERO);
        assert!(spent("exec true") < Duration::from_secs(1), "the control");
    }

    #[test]
    fn a_command_is_run_to_its_end() {
        let (status, output, spent) =
            super::output(Command::new("sh").args(["-c", "echo out; exit 3"])).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(output, b"out\n");
        assert!(spent < Duration::from_secs(1));
        assert!(own_processor_time().is_some());
    }

    #[test]
    fn what_works_for_us_is_asked_to_end_when_we_do() {
        use std::os::unix::process::ExitStatusExt as _;
        let started = || tied(Command::new("sleep").arg("600"), Signal::TERM).spawn();
        let mut child = std::thread::spawn(started).join().unwrap().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    }

    #[test]
    fn dropping_it_ends_it() {
        let (qemu, pid) = started();
        assert!(
            rustix::process::test_kill_process(pid).is_ok(),
            "negative control: it runs"
        );
        drop(qemu);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn it_ends_with_the_thread_that_started_it() {
        let (mut qemu, pid) = std::thread::spawn(started).join().unwrap();
        // Its end is a fact once the wait returns; a process that sleeps on would hang the test.
        let status = qemu.child.wait().unwrap();
        assert!(!status.success());
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
