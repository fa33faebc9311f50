//! One run of QEMU, from its start to a judgement.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::child::Qemu;
use crate::output;
use crate::qemu::Line;
use crate::terminal::{Key, Keys};
use crate::watch::{Seen, Watch};

/// How long the machine may take to power off after its verdict, and QEMU to flush its console.
const GRACE: Duration = Duration::from_secs(5);
/// How much of QEMU's own messages is kept.
const MESSAGES_LIMIT: usize = 64 << 10;

/// Exit status on a time-out.
pub(crate) const TIMED_OUT: u8 = 124;

/// Where the console's input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Our own standard input.
    Standard,
    /// Nowhere.
    Nothing,
    /// A script, in order.
    Script(VecDeque<Typed>),
}

/// What is typed once so many expectations have been met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Typed {
    /// How many.
    pub(crate) after: usize,
    /// What.
    pub(crate) text: String,
}

/// Where the console's output goes, beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Our own standard output; QEMU's messages to standard error.
    Standard,
    /// Nowhere.
    Nothing,
}

/// When a run has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// With the last expectation; without any, with the power-off.
    LastExpectation,
    /// With the power-off, whose verdict has this status.
    Verdict(u64),
    /// QEMU itself aborts: a known fault of its own.
    EmulatorAborts,
}

/// What a run is.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The QEMU line.
    pub(crate) line: &'a Line,
    /// What to watch for.
    pub(crate) watch: Watch,
    /// When it has succeeded.
    pub(crate) until: Until,
    /// The longest it may take.
    pub(crate) timeout: Option<Duration>,
    /// The console's input.
    pub(crate) input: Input,
    /// The console's output.
    pub(crate) output: Output,
    /// The log file.
    pub(crate) log: Option<&'a Path>,
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Our exit status for it.
    pub(crate) status: u8,
    /// Why, in a line.
    pub(crate) reason: String,
    /// What QEMU itself had to say.
    pub(crate) messages: String,
    /// The processor time that QEMU took.
    pub(crate) spent: Duration,
}

/// What ended a run.
#[derive(Debug)]
enum End {
    Exited(ExitStatus),
    TimedOut(Duration),
    Enough,
    Hangs,
    Interrupted(i32),
}

enum Event {
    Console(Vec<u8>),
    ConsoleClosed,
    Signal(i32),
    Quit,
}

/// Runs QEMU and judges the run.
///
/// # Errors
/// QEMU cannot be started, or the log cannot be written.
pub(crate) fn run(mut plan: Plan<'_>) -> Result<Outcome> {
    let mut log = plan.log.map(Log::create).transpose()?;
    let (sender, events) = mpsc::channel();
    // Before there is a machine: who is started with signals ignored would miss one in between.
    let mut signals = Signals::listen(&plan.input, &sender)?;
    let mut qemu = Qemu::start(plan.line)
        .with_context(|| format!("cannot start {}", plan.line.program.display()))?;
    let (stdin, stdout, stderr) = qemu
        .streams()
        .ok_or_else(|| anyhow!("QEMU came without its streams"))?;

    let console = sender.clone();
    thread::spawn(move || pump_console(stdout, &console));
    let echo = plan.output;
    let messages = thread::spawn(move || collect_messages(stderr, echo));
    // Held open to the end when nothing is typed: a closed console is not what boards have.
    let mut typist = match &mut plan.input {
        Input::Standard => {
            thread::spawn(move || pump_input(stdin, &sender));
            None
        }
        Input::Nothing => Some(Typist::new(stdin, VecDeque::new())),
        Input::Script(script) => Some(Typist::new(stdin, std::mem::take(script))),
    };

    let end = watch(&mut plan, &mut qemu, &events, log.as_mut(), typist.as_mut());
    qemu.end();
    signals.close();
    let messages = messages.join().unwrap_or_default();
    if let Some(log) = log {
        log.finish()?;
    }
    let (status, reason) = judge(&plan.watch, plan.until, &end?);
    Ok(Outcome {
        status,
        reason,
        messages,
        spent: qemu.spent(),
    })
}

fn watch(
    plan: &mut Plan<'_>,
    qemu: &mut Qemu,
    events: &Receiver<Event>,
    mut log: Option<&mut Log>,
    mut typist: Option<&mut Typist<impl io::Write>>,
) -> Result<End> {
    let start = Instant::now();
    let time_out = plan.timeout.map(|timeout| start + timeout);
    // A machine that has given its verdict is to be gone soon, unless it goes on.
    let mut verdict_at: Option<Instant> = None;
    loop {
        let grace = verdict_at.map(|at| at + GRACE);
        let deadline = grace.or(time_out);
        let event = match deadline {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match event {
            Ok(Event::Console(bytes)) => {
                if plan.output == Output::Standard {
                    let mut stdout = io::stdout().lock();
                    // A reader that went away does not make the run a failure.
                    let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                }
                if let Some(log) = log.as_deref_mut() {
                    log.write(&bytes)?;
                }
                let seen = plan.watch.feed(&bytes);
                if let Some(typist) = typist.as_deref_mut() {
                    typist.go_on(plan.watch.met());
                }
                match seen {
                    Seen::Forbidden => return Ok(End::Enough),
                    Seen::LastExpectation if plan.until == Until::LastExpectation => {
                        return Ok(End::Enough);
                    }
                    Seen::Verdict => verdict_at = verdict_at.or_else(|| Some(Instant::now())),
                    _ => verdict_at = None,
                }
            }
            Ok(Event::ConsoleClosed) | Err(RecvTimeoutError::Disconnected) => {
                // The console closes a moment before the process is gone.
                let until = Instant::now() + GRACE;
                loop {
                    if let Some(status) = qemu.ended().context("cannot wait for QEMU")? {
                        return Ok(End::Exited(status));
                    }
                    if Instant::now() > until {
                        return Ok(End::Hangs);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Ok(Event::Signal(signal)) => return Ok(End::Interrupted(signal)),
            Ok(Event::Quit) => return Ok(End::Interrupted(signal_hook::consts::SIGINT)),
            Err(RecvTimeoutError::Timeout) => {
                return Ok(match (verdict_at, plan.timeout) {
                    (None, Some(timeout)) => End::TimedOut(timeout),
                    _ => End::Hangs,
                });
            }
        }
    }
}

/// The exit status and the reason for it.
fn judge(watch: &Watch, until: Until, end: &End) -> (u8, String) {
    if let Some(line) = watch.forbidden() {
        return (1, format!("the console shows what it must not: {line}"));
    }
    match end {
        End::Interrupted(signal) => {
            let status = u8::try_from(128 + signal).unwrap_or(1);
            return (status, "interrupted".to_owned());
        }
        End::TimedOut(limit) => {
            let what = match watch.missing() {
                Some(missing) => format!("`{missing}` was not seen"),
                None => "the machine did not power off".to_owned(),
            };
            return (
                TIMED_OUT,
                format!("time-out after {} s: {what}", limit.as_secs_f64()),
            );
        }
        End::Exited(status) if until == Until::EmulatorAborts => {
            use std::os::unix::process::ExitStatusExt;
            const SIGABRT: i32 = 6;
            return match (status.signal(), watch.missing()) {
                (Some(SIGABRT), None) => (0, "QEMU aborted, as expected".to_owned()),
                (Some(SIGABRT), Some(missing)) => {
                    (1, format!("QEMU aborted before `{missing}` was seen"))
                }
                _ => (1, format!("QEMU did not abort: it ended with {status}")),
            };
        }
        End::Exited(status) if !status.success() => {
            return (1, format!("QEMU ended with {status}"));
        }
        End::Enough | End::Hangs | End::Exited(_) => {}
    }
    let wanted = match until {
        Until::Verdict(wanted) => wanted,
        Until::EmulatorAborts => return (1, "QEMU did not abort".to_owned()),
        Until::LastExpectation => {
            if watch.expects_anything() && watch.missing().is_none() {
                return (0, "every expectation was seen".to_owned());
            }
            0
        }
    };
    let Some(verdict) = watch.verdict() else {
        return (
            1,
            "the hypervisor went silent: QEMU ended without a verdict line".to_owned(),
        );
    };
    if verdict.status != wanted {
        return (
            1,
            format!(
                "the hypervisor's verdict is {}: {}",
                verdict.status, verdict.reason
            ),
        );
    }
    if let Some(missing) = watch.missing() {
        return (
            1,
            format!("the machine powered off before `{missing}` was seen"),
        );
    }
    if matches!(end, End::Hangs) {
        return (
            1,
            "the hypervisor gave its verdict but the machine did not power off".to_owned(),
        );
    }
    (
        0,
        format!(
            "the machine powered off with verdict {}: {}",
            verdict.status, verdict.reason
        ),
    )
}

/// Types what a script says.
struct Typist<W> {
    console: W,
    script: VecDeque<Typed>,
}

impl<W: io::Write> Typist<W> {
    fn new(console: W, script: VecDeque<Typed>) -> Self {
        Self { console, script }
    }

    /// Types what is due when `met` expectations have been met.
    fn go_on(&mut self, met: usize) {
        while self.script.front().is_some_and(|typed| typed.after <= met) {
            if let Some(typed) = self.script.pop_front() {
                // A machine that is gone is noticed by its end.
                let _ = self
                    .console
                    .write_all(typed.text.as_bytes())
                    .and_then(|()| self.console.flush());
            }
        }
    }
}

fn pump_console(mut stdout: impl Read, events: &Sender<Event>) {
    let mut buffer = [0; 4096];
    loop {
        match stdout.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if events
                    .send(Event::Console(buffer[..count].to_vec()))
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // Nobody listens any more when the run is over.
    let _ = events.send(Event::ConsoleClosed);
}

fn pump_input(mut guest: impl io::Write, events: &Sender<Event>) {
    use std::io::IsTerminal as _;
    let mut stdin = io::stdin();
    let mut keys = stdin.is_terminal().then(Keys::default);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        let bytes = match &mut keys {
            None => buffer[..count].to_vec(),
            Some(keys) => match keys.feed(&buffer[..count]) {
                Key::Guest(bytes) => bytes,
                Key::Quit => {
                    let _ = events.send(Event::Quit);
                    return;
                }
            },
        };
        if guest
            .write_all(&bytes)
            .and_then(|()| guest.flush())
            .is_err()
        {
            return;
        }
    }
    // End of input is no end of the machine: the pipe stays open until the run is over.
    loop {
        thread::park();
    }
}

fn collect_messages(stderr: impl Read, echo: Output) -> String {
    let mut kept = String::new();
    for line in io::BufRead::lines(io::BufReader::new(stderr)).map_while(Result::ok) {
        if echo == Output::Standard {
            output::message(format_args!("{line}"));
        }
        if kept.len() < MESSAGES_LIMIT {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    kept
}

/// Turns the signals that would end us into events, so that the terminal is restored first.
struct Signals(Option<signal_hook::iterator::Handle>);

impl Signals {
    fn listen(input: &Input, events: &Sender<Event>) -> Result<Self> {
        if *input != Input::Standard {
            return Ok(Self(None));
        }
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])
            .context("cannot listen to signals")?;
        let handle = signals.handle();
        let events = events.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        });
        Ok(Self(Some(handle)))
    }

    fn close(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.close();
        }
    }
}

/// The log file of a console.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn create(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let file = File::create(path)
            .with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| format!("cannot write the log {}", self.path.display()))
    }

    fn finish(mut self) -> Result<()> {
        self.file
            .flush()
            .with_context(|| format!("cannot write the log {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;
    use regex::Regex;

    /// A run of a shell script in QEMU's place.
    fn outcome(script: &str, expects: &[&str], until: Until, timeout_ms: u64) -> Outcome {
        typed(script, expects, &[], until, timeout_ms)
    }

    /// The same, with something typed after so many expectations.
    fn typed(
        script: &str,
        expects: &[&str],
        typed: &[(usize, &str)],
        until: Until,
        timeout_ms: u64,
    ) -> Outcome {
        let line = Line {
            program: "sh".into(),
            args: vec!["-c".into(), script.into()],
        };
        let expects = expects
            .iter()
            .map(|pattern| Regex::new(pattern).unwrap())
            .collect();
        run(Plan {
            line: &line,
            watch: Watch::new(expects, vec![Regex::new("BAD").unwrap()]),
            until,
            timeout: Some(Duration::from_millis(timeout_ms)),
            input: Input::Script(
                typed
                    .iter()
                    .map(|&(after, text)| Typed {
                        after,
                        text: text.to_owned(),
                    })
                    .collect(),
            ),
            output: Output::Nothing,
            log: None,
        })
        .unwrap()
    }

    const LONG: u64 = 60_000;

    fn status(script: &str, expects: &[&str]) -> u8 {
        outcome(script, expects, Until::LastExpectation, LONG).status
    }

    #[test]
    fn a_good_verdict_and_a_power_off_are_success() {
        assert_eq!(status("echo 'bulkhead: verdict 0: done'", &[]), 0);
    }

    #[test]
    fn a_script_types_when_it_has_seen_what_it_waits_for() {
        let machine = "printf 'login: '; read a; echo \"<$a>\"; printf '$ '; read b; \
                       echo; echo \"bulkhead: verdict 0: $b\"";
        let script = [(1, "root\n"), (3, "bye\n")];
        let expects = ["login: $", "<root>", r"\$ $"];
        let end = typed(machine, &expects, &script, Until::Verdict(0), LONG);
        assert_eq!(end.status, 0, "{}", end.reason);
        assert!(end.reason.ends_with(": bye"), "{}", end.reason);
        // The control: nothing is typed, so nothing goes on.
        assert_eq!(
            typed(machine, &expects, &[], Until::Verdict(0), 100).status,
            TIMED_OUT
        );
    }

    #[test]
    fn silence_is_a_failure() {
        let silent = outcome("echo hello", &[], Until::LastExpectation, LONG);
        assert_eq!(silent.status, 1);
        assert!(silent.reason.contains("went silent"), "{}", silent.reason);
    }

    #[test]
    fn a_bad_verdict_is_a_failure_unless_it_is_wanted() {
        let script = "echo 'bulkhead: verdict 1: panic'";
        assert_eq!(status(script, &[]), 1);
        assert_eq!(outcome(script, &[], Until::Verdict(1), LONG).status, 0);
        assert_eq!(outcome(script, &[], Until::Verdict(2), LONG).status, 1);
    }

    #[test]
    fn a_machine_that_goes_on_after_a_verdict_has_given_none() {
        let script = "echo 'bulkhead: verdict 0: forged'; echo and on it goes; exec sleep 600";
        assert_eq!(
            outcome(script, &[], Until::Verdict(0), 200).status,
            TIMED_OUT
        );
        let script = "echo 'bulkhead: verdict 0: forged'; echo 'bulkhead: verdict 1: panic'";
        assert_eq!(outcome(script, &[], Until::Verdict(0), LONG).status, 1);
    }

    #[test]
    fn the_last_expectation_ends_the_run() {
        assert_eq!(
            status("echo one; printf 'two> '; exec sleep 600", &["one", "two>"]),
            0
        );
    }

    #[test]
    fn a_power_off_before_the_last_expectation_is_a_failure() {
        let early = outcome(
            "echo one; echo 'bulkhead: verdict 0: x'",
            &["one", "two"],
            Until::LastExpectation,
            LONG,
        );
        assert_eq!(early.status, 1);
        assert!(early.reason.contains("before `two`"), "{}", early.reason);
    }

    #[test]
    fn expectations_count_before_a_wanted_verdict_too() {
        let script = "echo one; echo 'bulkhead: verdict 0: x'";
        assert_eq!(outcome(script, &["one"], Until::Verdict(0), LONG).status, 0);
        assert_eq!(outcome(script, &["two"], Until::Verdict(0), LONG).status, 1);
    }

    #[test]
    fn a_time_out_is_124_and_names_what_was_missing() {
        let late = outcome("exec sleep 600", &["one"], Until::LastExpectation, 50);
        assert_eq!(late.status, TIMED_OUT);
        assert!(late.reason.contains("`one`"), "{}", late.reason);
    }

    #[test]
    fn a_failing_qemu_is_a_failure_with_its_message() {
        let failed = outcome(
            "echo no such machine >&2; exit 3",
            &[],
            Until::LastExpectation,
            LONG,
        );
        assert_eq!(failed.status, 1);
        assert_eq!(failed.messages, "no such machine\n");
    }

    #[test]
    fn a_forbidden_line_ends_the_run() {
        assert_eq!(status("echo BAD; exec sleep 600", &["never"]), 1);
    }

    #[test]
    fn the_log_has_every_byte() {
        let dir = Scratch::new("log");
        let path = dir.join("console");
        let line = Line {
            program: "sh".into(),
            args: vec!["-c".into(), "printf 'a\\r\\nb\\033[0m'".into()],
        };
        run(Plan {
            line: &line,
            watch: Watch::default(),
            until: Until::LastExpectation,
            timeout: None,
            input: Input::Nothing,
            output: Output::Nothing,
            log: Some(&path),
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\r\nb\x1b[0m");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let line = Line {
            program: "/no/such/qemu".into(),
            args: vec![],
        };
        let plan = Plan {
            line: &line,
            watch: Watch::default(),
            until: Until::LastExpectation,
            timeout: None,
            input: Input::Nothing,
            output: Output::Nothing,
            log: None,
        };
        assert!(run(plan).unwrap_err().to_string().contains("/no/such/qemu"));
    }
}
