//! Runs this very tool as a user would, to test it from outside.

use std::cell::Cell;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use rustix::process::{Pid, Signal};

use super::cases::Around;
use crate::board::Arch;
use crate::{child, workspace};

/// The longest that a machine may take to start or to go.
const PATIENCE: Duration = Duration::from_secs(60);

fn own() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Runs this very tool with something wrong and wants a refusal that says what.
pub(super) fn refused(args: &[String], around: Around, message: &str, dir: &Path) -> Result<()> {
    let mut command = Command::new(own()?);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .current_dir(dir);
    match around {
        Around::Usual => {}
        Around::OldQemu(version) => {
            old_qemus(dir, version)?;
            // Nothing else in PATH, apt least of all: it must not cure what we want to see.
            command.env("PATH", dir);
        }
        Around::DiskOf(mib) => {
            command.env("BULKHEAD_DISK_MIB", mib);
        }
        Around::FullOutput => {
            let full = fs::OpenOptions::new().write(true).open("/dev/full");
            command.stdout(full.context("cannot open /dev/full")?);
        }
        Around::Manifest(text) => {
            workspace::write_whole(&dir.join("manifest.toml"), text.as_bytes())?;
        }
    }
    command.stderr(Stdio::piped());
    let child = command.spawn().context("cannot start this program")?;
    let output = child
        .wait_with_output()
        .context("cannot wait for this program")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    ensure!(
        matches!(code, Some(1 | 2)),
        "the status is {}, not 1 or 2:\n{text}",
        output.status
    );
    ensure!(
        Regex::new(message)?.is_match(&text),
        "`{message}` is not in the message:\n{text}"
    );
    ensure!(!text.contains("panicked"), "it panicked:\n{text}");
    Ok(())
}

/// Puts QEMUs into a folder that only tell a version.
fn old_qemus(dir: &Path, version: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for arch in Arch::ALL {
        let path = dir.join(arch.qemu());
        let script = format!("#!/bin/sh\necho QEMU emulator version {version}\n");
        workspace::write_whole(&path, script.as_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
    }
    Ok(())
}

/// Gives the line of a dry run to a shell, and adds what it took of the processors.
pub(super) fn pasted(args: &[String], processor: &Cell<Duration>) -> Result<()> {
    let dry = Command::new(own()?)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let dry = dry.context("cannot start this program")?;
    let line = String::from_utf8_lossy(&dry.stdout);
    ensure!(
        line.lines().count() == 1,
        "not one line is printed:\n{line}"
    );
    let mut run = Command::new("timeout")
        .args(["600", "sh", "-c", line.trim()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start a shell")?;
    let mut console = Vec::new();
    let mut stdout = run.stdout.take().context("a shell without an output")?;
    stdout
        .read_to_end(&mut console)
        .context("cannot read the console")?;
    if let Some(spent) = child::processor_time(&run) {
        processor.set(processor.get() + spent);
    }
    let status = run.wait().context("cannot wait for the shell")?;
    let console = String::from_utf8_lossy(&console);
    ensure!(status.success(), "{status} from: {line}");
    ensure!(
        console.contains("\nbulkhead: verdict 0: "),
        "no good verdict:\n{console}"
    );
    Ok(())
}

/// Measures, and wants every figure within its limit. Adds what it took of the processors.
pub(super) fn measured(bench: &[&str], processor: &Cell<Duration>) -> Result<()> {
    succeeds(Command::new(own()?).arg("bench").args(bench), processor)
}

fn succeeds(command: &mut Command, processor: &Cell<Duration>) -> Result<()> {
    let (status, output, spent) = child::output(command).context("cannot start this program")?;
    processor.set(processor.get() + spent);
    ensure!(
        status.success(),
        "{status}, after saying:\n{}",
        String::from_utf8_lossy(&output)
    );
    Ok(())
}

/// Ends the tool by a signal while its machine waits, and looks for the machine.
pub(super) fn ended(signal: Signal) -> Result<()> {
    // `-S`: the machine waits for ever.
    let mut tool = Command::new(own()?)
        .args(["run", "virt", "--", "-S"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start this program")?;
    let result = end_with_machine(&mut tool, signal);
    // Nothing of a failed test may stay behind.
    let _ = tool.kill();
    let _ = tool.wait();
    result
}

fn end_with_machine(tool: &mut Child, signal: Signal) -> Result<()> {
    let parent = Pid::from_child(tool);
    let machine = wait_for(|| machine_of(parent)).context("the machine does not start")?;
    rustix::process::kill_process(parent, signal).context("cannot signal the tool")?;
    let mut over = || tool.try_wait().transpose();
    let status = wait_for(&mut over).context("the tool goes on after the signal")??;
    ensure!(
        !status.success(),
        "an interrupted run must not look like a success"
    );
    wait_for(|| (!is_machine(machine)).then_some(())).context("the machine is still there")
}

/// The first answer of a question that is put again and again.
fn wait_for<T>(mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The QEMU among the children of a process.
fn machine_of(parent: Pid) -> Option<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).ok()?;
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .filter_map(Pid::from_raw)
        .find(|child| is_machine(*child))
}

/// Whether it is the machine that waits, not a QEMU that is asked for its version.
fn is_machine(process: Pid) -> bool {
    fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero())).is_ok_and(|line| {
        let mut words = line.split(|&byte| byte == 0);
        let program = words.next().unwrap_or_default();
        program.windows(12).any(|part| part == b"qemu-system-") && words.any(|word| word == b"-S")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_ends_badly_is_a_failure_that_shows_its_figures() {
        let mut bad = Command::new("sh");
        bad.args(["-c", "echo a figure over its limit; exit 1"]);
        let error = succeeds(&mut bad, &Cell::default()).unwrap_err();
        assert!(error.to_string().contains("a figure over its limit"));
        assert!(succeeds(&mut Command::new("true"), &Cell::default()).is_ok());
    }
}
