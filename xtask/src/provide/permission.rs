//! What only root can add to the machine. It is all looked for before anything is changed, so that a user who may not
//! install packages is given one command for the whole.

use anyhow::{Result, bail};

use super::apt::{self, Apt, Scope, Wanted};
use super::{qemu, toolchain};
use crate::board::Arch;

/// Something that the machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    /// What it is, and what was found.
    pub(super) why: String,
    /// How to get it.
    pub(super) cure: Cure,
}

/// How to get what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cure {
    /// The packages that have it, if there are such.
    pub(super) packages: Option<Wanted>,
    /// What to do without them.
    pub(super) by_hand: String,
}

/// Whether we may install packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Root,
    User,
}

/// The machine's apt.
///
/// # Errors
/// It has none that can be used.
pub(super) fn apt() -> Result<Apt> {
    Apt::new(Scope::Machine)
}

/// Goes on only if nothing is missing that we may not install: QEMU for these architectures, and a compiler. Changes
/// nothing.
///
/// # Errors
/// What is missing, and the one command that root is to run, or what to do on a machine without apt.
pub(crate) fn ensure(arches: &[Arch]) -> Result<()> {
    let apt = apt();
    let qemus = arches
        .iter()
        .filter_map(|arch| qemu::lack(*arch, apt.as_ref().ok()));
    let lacks: Vec<Lack> = qemus.chain(toolchain::lack()).collect();
    let rights = match apt::may_install() {
        true => Rights::Root,
        false => Rights::User,
    };
    judge(&lacks, rights, apt)
}

fn judge(lacks: &[Lack], rights: Rights, apt: Result<Apt>) -> Result<()> {
    if lacks.is_empty() || (rights == Rights::Root && apt.is_ok()) {
        return Ok(());
    }
    let (mut reasons, mut cures): (Vec<&str>, Vec<Cure>) = (Vec::new(), Vec::new());
    for Lack { why, cure } in lacks {
        reasons.push(why);
        // Both architectures' QEMU come together.
        if !cures.contains(cure) {
            cures.push(cure.clone());
        }
    }
    let reasons = reasons.join("; ");
    bail!("{reasons}; the cure:\n  {}", command(&cures, apt))
}

/// What to do: one command for all that packages have, then a line for each thing that none has.
pub(super) fn command(cures: &[Cure], apt: Result<Apt>) -> String {
    let packages: Vec<Wanted> = cures.iter().filter_map(|cure| cure.packages).collect();
    let by_hand = |cure: &&Cure| apt.is_err() || cure.packages.is_none();
    let mut lines: Vec<String> = cures
        .iter()
        .filter(by_hand)
        .map(|cure| cure.by_hand.clone())
        .collect();
    match apt {
        Ok(apt) if !packages.is_empty() => lines.insert(0, apt.command_for_root(&packages)),
        Ok(_) => {}
        Err(error) => {
            if let Some(first) = lines.first_mut() {
                *first = format!("{error}: {first}");
            }
        }
    }
    lines.join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provide::apt::{Suite, scripted};
    use crate::workspace::Scratch;

    /// An apt that must not be run: its programs are gone.
    fn apt() -> Apt {
        scripted(&Scratch::new("permission"), "exit 99", "exit 99")
    }

    fn qemu(arch: &str) -> Lack {
        let packages = &["qemu-system-arm", "qemu-system-ppc"];
        let from = Suite::Default;
        Lack {
            why: format!("QEMU is needed for {arch}"),
            cure: Cure {
                packages: Some(Wanted { packages, from }),
                by_hand: "put QEMU in PATH".to_owned(),
            },
        }
    }

    fn compiler(packages: Option<Wanted>) -> Lack {
        Lack {
            why: "sources are needed".to_owned(),
            cure: Cure {
                packages,
                by_hand: "install rustup".to_owned(),
            },
        }
    }

    fn refusal(lacks: &[Lack], rights: Rights, apt: Result<Apt>) -> String {
        judge(lacks, rights, apt).unwrap_err().to_string()
    }

    #[test]
    fn a_user_who_lacks_everything_is_given_one_command_for_it() {
        let packages = &["rustc-web", "lld"];
        let from = Suite::Default;
        let lacks = [
            qemu("aarch64"),
            qemu("ppc64"),
            compiler(Some(Wanted { packages, from })),
        ];
        let text = refusal(&lacks, Rights::User, Ok(apt()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            lines[0],
            "QEMU is needed for aarch64; QEMU is needed for ppc64; sources are needed; the cure:"
        );
        let install = "apt-get install -y --no-install-recommends";
        let command = format!(
            "-c 'apt-get update && {install} qemu-system-arm qemu-system-ppc && {install} rustc-web lld'"
        );
        assert!(lines[1].ends_with(&command), "{text}");
    }

    #[test]
    fn a_user_who_lacks_nothing_goes_on() {
        assert!(judge(&[], Rights::User, Ok(apt())).is_ok());
        assert!(judge(&[], Rights::User, Err(anyhow::anyhow!("no apt"))).is_ok());
    }

    #[test]
    fn root_goes_on_where_there_is_an_apt() {
        assert!(judge(&[qemu("aarch64")], Rights::Root, Ok(apt())).is_ok());
        let text = refusal(
            &[qemu("aarch64"), compiler(None)],
            Rights::Root,
            Err(anyhow::anyhow!("this machine has no apt")),
        );
        assert!(
            text.ends_with(
                "the cure:\n  this machine has no apt: put QEMU in PATH\n  install rustup"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_no_package_has_is_told_after_the_command() {
        let text = refusal(&[compiler(None), qemu("aarch64")], Rights::User, Ok(apt()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains("qemu-system-arm"), "{text}");
        assert_eq!(lines[2], "  install rustup");
    }
}
