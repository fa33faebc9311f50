//! QEMU as a child that never outlives us.
#![expect(
    unsafe_code,
    reason = "the tie to the parent is made between fork and exec"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::qemu::Line;

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
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
        command
            .args(&line.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: a Ctrl-C on the terminal is ours to act on.
            .process_group(0);
        let parent = rustix::process::getpid();
        let tie = move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // We may have gone between the fork and the line above.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::other("the parent is gone"))
            }
        };
        // SAFETY: the closure only makes two system calls: it allocates nothing and takes no lock.
        unsafe { command.pre_exec(tie) };
        command.spawn().map(|child| Self { child })
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
        self.child.try_wait()
    }

    /// Ends it and waits until it has.
    pub(crate) fn end(&mut self) {
        // Either may fail only because it is gone already.
        let _ = self.child.kill();
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
    use std::io::Read as _;

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
