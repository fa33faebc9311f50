//! What can be asked of the monitor.

use log::LevelFilter;
use types::Bdf;

/// Which way a host bridge goes while its VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// To the VM.
    In,
    /// Away from it.
    Out,
}

/// A command, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Help,
    List,
    Start(&'a str),
    Stop(&'a str),
    Restart(&'a str),
    Vcpu(&'a str, usize),
    Walk(&'a str, u64),
    Exits(&'a str),
    Devices(&'a str),
    Freeze(&'a str),
    Plug(&'a str, u64, Plug),
    Stream(&'a str, Bdf, u64),
    Smmu,
    Frames,
    Log(LevelFilter),
    Focus(Option<&'a str>),
    Quit,
}

pub(super) const HELP: &str = "\
list                 the VMs: state, vCPUs, memory, starts, exits, CPU time since the last list
start NAME           starts a stopped VM from the beginning
stop NAME            stops a VM; its memory stays its own
restart NAME         stops and starts it
vcpu NAME N          registers, state and core of a vCPU
walk NAME ADDRESS    where stage 2 takes a guest physical address
exits NAME           how often a VM left for the hypervisor, by cause
devices NAME         the devices of a VM, and where its guest sees them
freeze NAME          stops the devices of a VM as an error would (POWER: EEH)
unplug NAME BUID     takes a host bridge away from a running VM (POWER)
plug NAME BUID       gives it back
stream NAME BB:DD.F ADDRESS
                     where DMA of the guest's device BB:DD.F goes at an address
smmu                 what each IOMMU lets pass
frames               free memory
log LEVEL            error, warn, info, debug or trace
focus [NAME]         leaves the monitor; the keyboard goes to that VM
quit                 turns everything off
";

/// Why a line is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such command.
    #[error("there is no such command; `help` lists them")]
    Unknown,
    /// A word is missing.
    #[error("{0} is missing")]
    Missing(Argument),
    /// A word means nothing.
    #[error("that is no {0}")]
    Bad(Argument),
    /// There are more words than the command takes.
    #[error("too many words")]
    TooMany,
}

/// A word after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// The name of a VM.
    Name,
    /// The number of a vCPU.
    Number,
    /// A guest physical address.
    Address,
    /// A level of the log.
    Level,
    /// A device of a guest.
    Device,
    /// A host bridge.
    Bridge,
}

impl core::fmt::Display for Argument {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Name => "NAME of a VM",
            Self::Number => "number of a vCPU",
            Self::Address => "ADDRESS, hexadecimal",
            Self::Level => "LEVEL of the log",
            Self::Bridge => "BUID of a host bridge, hexadecimal",
            Self::Device => "device of the guest, BB:DD.F",
        })
    }
}

pub(super) fn parse(line: &str) -> Result<Command<'_>, CommandError> {
    let mut words = line.split_ascii_whitespace();
    let verb = words.next().ok_or(CommandError::Unknown)?;
    let mut word = |argument| words.next().ok_or(CommandError::Missing(argument));
    let command = match verb {
        "help" | "?" => Command::Help,
        "list" => Command::List,
        "start" => Command::Start(word(Argument::Name)?),
        "stop" => Command::Stop(word(Argument::Name)?),
        "restart" => Command::Restart(word(Argument::Name)?),
        "vcpu" => {
            let name = word(Argument::Name)?;
            let number = word(Argument::Number)?;
            let number = number.parse();
            Command::Vcpu(
                name,
                number.map_err(|_| CommandError::Bad(Argument::Number))?,
            )
        }
        "walk" => {
            let name = word(Argument::Name)?;
            Command::Walk(name, address(word(Argument::Address)?)?)
        }
        "exits" => Command::Exits(word(Argument::Name)?),
        "devices" => Command::Devices(word(Argument::Name)?),
        "freeze" => Command::Freeze(word(Argument::Name)?),
        "plug" | "unplug" => {
            let name = word(Argument::Name)?;
            let bridge = word(Argument::Bridge)?;
            let bridge = address(bridge.strip_prefix("phb:").unwrap_or(bridge));
            let bridge = bridge.map_err(|_| CommandError::Bad(Argument::Bridge))?;
            let plug = if verb == "plug" { Plug::In } else { Plug::Out };
            Command::Plug(name, bridge, plug)
        }
        "stream" => {
            let name = word(Argument::Name)?;
            let device = device(word(Argument::Device)?)?;
            Command::Stream(name, device, address(word(Argument::Address)?)?)
        }
        "smmu" | "iommu" => Command::Smmu,
        "frames" => Command::Frames,
        "log" => {
            let level = word(Argument::Level)?.parse();
            Command::Log(level.map_err(|_| CommandError::Bad(Argument::Level))?)
        }
        "focus" => Command::Focus(words.next()),
        "quit" => Command::Quit,
        _ => return Err(CommandError::Unknown),
    };
    match words.next() {
        None => Ok(command),
        Some(_) => Err(CommandError::TooMany),
    }
}

/// A device as its guest names it.
fn device(word: &str) -> Result<Bdf, CommandError> {
    let bad = CommandError::Bad(Argument::Device);
    match word.parse() {
        Ok(bundle::GuestDevice::Pci(bdf)) => Ok(bdf),
        _ => Err(bad),
    }
}

/// A hexadecimal address, with or without `0x`.
fn address(word: &str) -> Result<u64, CommandError> {
    let digits = word
        .strip_prefix("0x")
        .or_else(|| word.strip_prefix("0X"))
        .unwrap_or(word);
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(CommandError::Bad(Argument::Address));
    }
    u64::from_str_radix(digits, 16).map_err(|_| CommandError::Bad(Argument::Address))
}

#[cfg(test)]
mod tests {
    use log::LevelFilter;
    use proptest::prelude::{any, proptest};

    use super::{Argument, Command, CommandError, HELP, parse};

    #[test]
    fn commands_are_words() {
        assert_eq!(parse(" list "), Ok(Command::List));
        assert_eq!(parse("stop a"), Ok(Command::Stop("a")));
        assert_eq!(parse("vcpu a 12"), Ok(Command::Vcpu("a", 12)));
        assert_eq!(
            parse("walk a 0x4000_0000"),
            Err(CommandError::Bad(Argument::Address))
        );
        assert_eq!(
            parse("walk a 0x40000000"),
            Ok(Command::Walk("a", 0x4000_0000))
        );
        assert_eq!(parse("walk a 80000"), Ok(Command::Walk("a", 0x8_0000)));
        assert_eq!(parse("log debug"), Ok(Command::Log(LevelFilter::Debug)));
        assert_eq!(parse("focus"), Ok(Command::Focus(None)));
        assert_eq!(parse("focus b"), Ok(Command::Focus(Some("b"))));
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        use CommandError::{Bad, Missing, TooMany, Unknown};
        assert_eq!(parse(""), Err(Unknown));
        assert_eq!(parse("toast"), Err(Unknown));
        assert_eq!(parse("stop"), Err(Missing(Argument::Name)));
        assert_eq!(parse("vcpu a"), Err(Missing(Argument::Number)));
        assert_eq!(parse("vcpu a -1"), Err(Bad(Argument::Number)));
        assert_eq!(parse("walk a +1"), Err(Bad(Argument::Address)));
        assert_eq!(
            parse("walk a 10000000000000000"),
            Err(Bad(Argument::Address))
        );
        assert_eq!(parse("log loud"), Err(Bad(Argument::Level)));
        assert_eq!(parse("list all"), Err(TooMany));
    }

    #[test]
    fn help_tells_of_every_command_and_of_no_other() {
        let commands = HELP.lines().filter(|line| !line.starts_with(' '));
        for line in commands.clone() {
            let verb = line.split_whitespace().next().unwrap();
            assert_ne!(parse(verb), Err(CommandError::Unknown), "{verb}");
        }
        assert_eq!(commands.count(), 17);
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line in any::<alloc::string::String>()) {
            let _ = parse(&line);
        }
    }
}
