//! What the tool needs and the machine may lack. Each need knows how to look for itself, and how to
//! get itself; a need that is met costs no network and changes nothing.

pub(crate) mod apt;
pub(crate) mod disk;
pub(crate) mod payload;
pub(crate) mod permission;
pub(crate) mod programs;
pub(crate) mod qemu;
pub(crate) mod qemu_beside;
pub(crate) mod sources;
pub(crate) mod toolchain;
pub(crate) mod turn;

use std::fmt;
use std::process::Command;

/// A need, as `doctor` lists it.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    /// What is needed.
    pub(crate) what: String,
    /// What was found.
    pub(crate) found: String,
    /// How to get it, when what was found does not do.
    pub(crate) cure: Option<String>,
}

impl Need {
    /// A need that is met.
    pub(crate) fn met(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            found: found.into(),
            cure: None,
        }
    }

    /// A need that is not.
    pub(crate) fn unmet(
        what: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            found: found.into(),
            cure: Some(cure.into()),
        }
    }
}

/// A version of two or three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// First number.
    pub(crate) major: u32,
    /// Second number.
    pub(crate) minor: u32,
    /// Third number, 0 if there is none.
    pub(crate) patch: u32,
}

impl Version {
    /// A version without a third number.
    pub(crate) const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }

    /// The first version number in a text: `QEMU emulator version 10.0.2 (Debian …)`.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find_map(Self::parse)
    }

    /// The upstream part of a Debian version: `1:10.0.2+ds-2~bpo12+1`.
    pub(crate) fn of_debian(text: &str) -> Option<Self> {
        let upstream = text.split_once(':').map_or(text, |(_epoch, rest)| rest);
        Self::parse(
            upstream
                .split(|c: char| !c.is_ascii_digit() && c != '.')
                .next()?,
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_end_matches('.').split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().map_or(Some(0), Result::ok)?;
        Some(Self {
            major,
            minor,
            patch,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Standard output of a command that succeeds, without the white space around it.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(std::process::Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let version = |major, minor, patch| {
            Some(Version {
                major,
                minor,
                patch,
            })
        };
        let qemu = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(Version::find(qemu), version(10, 0, 2));
        assert_eq!(
            Version::find("QEMU emulator version 7.2.22"),
            version(7, 2, 22)
        );
        assert_eq!(
            Version::find("rustc 1.95.0-nightly (abc 2026-01-02)"),
            version(1, 95, 0)
        );
        assert_eq!(Version::find("LLD 14.0 (compatible)"), version(14, 0, 0));
        assert_eq!(Version::find("no numbers here."), None);
        assert_eq!(Version::find("99999999999.1"), None);
    }

    #[test]
    fn debian_versions_lose_epoch_and_revision() {
        let version = |major, minor, patch| {
            Some(Version {
                major,
                minor,
                patch,
            })
        };
        assert_eq!(
            Version::of_debian("1:10.0.2+ds-2+deb13u1~bpo12+1"),
            version(10, 0, 2)
        );
        assert_eq!(
            Version::of_debian("1:7.2+dfsg-7+deb12u18+b3"),
            version(7, 2, 0)
        );
        assert_eq!(Version::of_debian("(none)"), None);
    }

    #[test]
    fn versions_compare_by_number_not_by_letter() {
        assert!(Version::find("10.0.2").unwrap() > Version::new(9, 2));
        assert!(Version::find("9.2.0").unwrap() >= Version::new(9, 2));
        assert!(Version::find("9.1.9").unwrap() < Version::new(9, 2));
    }
}
