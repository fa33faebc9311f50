//! apt with lists, cache and sources of our own: the machine's configuration is read, never changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::Signal;

use super::{Version, output_of, sources};
use crate::{child, say, shell, workspace};

/// Which packages an [`Apt`] is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Packages for this machine, installed on it.
    Machine,
    /// Packages of another architecture, downloaded and unpacked, never installed.
    Foreign(String),
}

/// A private view of the machine's package archive.
#[derive(Debug)]
pub(crate) struct Apt {
    scope: Scope,
    dir: PathBuf,
    codename: String,
    sources: Vec<sources::Source>,
    /// Where apt's programs are; by `PATH` when empty.
    programs: PathBuf,
}

impl Apt {
    /// Derives the view from the machine's own sources.
    ///
    /// # Errors
    /// No apt, no codename, or no source for it, each with what to do instead.
    pub(crate) fn new(scope: Scope) -> Result<Self> {
        Self::derived(scope, None)
    }

    /// The same for another release, from the mirror that the machine's own comes from. Nothing of it is to be
    /// installed: it is for packages that are unpacked beside the machine's.
    ///
    /// # Errors
    /// As of [`new`](Self::new). Whether the mirror has the release shows when a package is looked for.
    pub(crate) fn of_release(architecture: String, release: &str) -> Result<Self> {
        Self::derived(Scope::Foreign(architecture), Some(release))
    }

    fn derived(scope: Scope, other: Option<&str>) -> Result<Self> {
        if workspace::find_program("apt-get").is_none() {
            bail!("this machine has no apt");
        }
        let release = std::fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
        let codename =
            codename(&release).ok_or_else(|| anyhow!("/etc/os-release has no VERSION_CODENAME"))?;
        let all = sources::read(Path::new("/etc/apt"))?;
        let mut sources = sources::of_codename(&all, &codename);
        let backports = sources::backports(&sources, &codename).ok_or_else(|| {
            anyhow!("the apt sources of this machine have no suite `{codename}` with `main`")
        })?;
        let suite = &backports.suites[0];
        if !sources.iter().any(|source| source.suites.contains(suite)) {
            sources.push(backports.clone());
        }
        let codename = match other {
            Some(other) if other != codename => {
                sources = vec![sources::of_other_release(backports, other)];
                other.to_owned()
            }
            _ => codename,
        };
        let name = match &scope {
            Scope::Machine => "machine",
            Scope::Foreign(architecture) => architecture,
        };
        let dir = workspace::cache_dir()
            .join("apt")
            .join(format!("{codename}-{name}"));
        Ok(Self {
            scope,
            dir,
            codename,
            sources,
            programs: PathBuf::new(),
        })
    }

    /// The release's backports suite.
    pub(crate) fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }

    /// A folder for packages until all of them are there, beside the one that is then to be made of it. What a
    /// download that was cut off has left in it stays. Each release has its own: their packages do not go together.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn partial_folder(&self, into: &Path) -> Result<PathBuf> {
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let folder = into.with_file_name(format!("{name}.{}.part", self.codename));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Fetches the package lists.
    ///
    /// # Errors
    /// apt's, which it has shown.
    pub(crate) fn update(&self) -> Result<()> {
        for folder in ["lists/partial", "cache/archives/partial", "state"] {
            let folder = self.dir.join(folder);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let architecture = match &self.scope {
            Scope::Machine => own_architecture()?,
            Scope::Foreign(architecture) => architecture.clone(),
        };
        let text = sources::deb822(&self.sources, &architecture);
        workspace::write_whole(&self.sources_file(), text.as_bytes())?;
        if let Scope::Foreign(_) = self.scope {
            workspace::write_whole(&self.dir.join("state/status"), b"")?;
        }
        let failed = "cannot fetch the package lists";
        let mut update = self.command("apt-get");
        update.arg("update");
        if run(child::tied(&mut update, Signal::TERM), failed).is_err() {
            // A mirror may be out of step with one suite for a while. Whether the rest is enough
            // shows when a package is looked for.
            say!(
                "some package lists could not be fetched (apt's reason is above); trying the rest"
            );
        }
        Ok(())
    }

    /// The packages that a package depends on directly.
    pub(crate) fn dependencies(&self, package: &str, suite: Option<&str>) -> Vec<String> {
        let mut command = self.command("apt-cache");
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        output_of(command.args(["depends", package]))
            .map(|text| dependencies(&text))
            .unwrap_or_default()
    }

    /// Downloads a package into a folder. One that is there already is not fetched again. A mirror may list a
    /// version that it does not have: then the other ones that it lists are tried, newest first.
    ///
    /// # Errors
    /// apt's, which it has shown.
    pub(crate) fn download(&self, package: &str, suite: Option<&str>, into: &Path) -> Result<()> {
        let chosen = self.candidate(package, suite);
        let Err(first) = self.download_one(package, suite, into) else {
            return Ok(());
        };
        for version in self.versions(package) {
            if Some(&version) == chosen.as_ref() {
                continue;
            }
            say!(
                "version {} of {package} cannot be had; trying {version}",
                chosen.as_deref().unwrap_or("?")
            );
            if self
                .download_one(&format!("{package}={version}"), None, into)
                .is_ok()
            {
                return Ok(());
            }
        }
        Err(first)
    }

    fn download_one(&self, package: &str, suite: Option<&str>, into: &Path) -> Result<()> {
        self.download_together(&[package], suite, into)
    }

    /// Downloads packages into a folder, all at once.
    ///
    /// # Errors
    /// apt's, which it has shown: one of them cannot be had.
    pub(crate) fn download_together(
        &self,
        packages: &[&str],
        suite: Option<&str>,
        into: &Path,
    ) -> Result<()> {
        let mut command = self.command("apt-get");
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        command.arg("download").args(packages).current_dir(into);
        run(
            child::tied(&mut command, Signal::TERM),
            "cannot fetch a package",
        )
    }

    /// All versions of a package that the lists have, newest first.
    pub(crate) fn versions(&self, package: &str) -> Vec<String> {
        output_of(self.command("apt-cache").args(["madison", package]))
            .map(|text| versions(&text))
            .unwrap_or_default()
    }

    /// What one version of a package depends on directly.
    pub(crate) fn dependencies_of(&self, package: &str, version: &str) -> Vec<String> {
        let which = format!("{package}={version}");
        output_of(self.command("apt-cache").args(["show", &which]))
            .map(|text| listed_dependencies(&text))
            .unwrap_or_default()
    }

    /// The version that `suite` (or, without one, the preferences) would install.
    pub(crate) fn candidate(&self, package: &str, suite: Option<&str>) -> Option<String> {
        let mut command = self.command("apt-cache");
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        let policy = output_of(command.args(["policy", package]))?;
        candidate(&policy).map(str::to_owned)
    }

    /// Installs packages on the machine.
    ///
    /// # Errors
    /// apt's, which it has shown.
    pub(crate) fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let mut args = vec!["install", "--yes", "--no-install-recommends"];
        args.extend(suite.into_iter().flat_map(|suite| ["-t", suite]));
        args.extend(packages);
        let failed = "cannot install the packages";
        if self.run(&args, failed).is_err() {
            // An earlier installation may have been cut off half-way.
            let mut configure = Command::new("dpkg");
            run(configure.args(["--configure", "-a"]), failed)?;
            self.run(&args, failed)?;
        }
        // What is installed need not be kept as a package too.
        self.run(&["clean"], "cannot empty the package cache")
    }

    fn run(&self, args: &[&str], failed: &'static str) -> Result<()> {
        run(self.command("apt-get").args(args), failed)
    }

    fn sources_file(&self) -> PathBuf {
        self.dir.join("bulkhead.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        option(
            "Dir::Etc::SourceList",
            &self.sources_file().to_string_lossy(),
        );
        option("Dir::Etc::SourceParts", "/dev/null");
        option("Dir::State::Lists", &path("lists"));
        option("Dir::Cache", &path("cache"));
        option("Acquire::Languages", "none");
        option("Acquire::Retries", "3");
        option(
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false",
        );
        option("APT::Sandbox::User", "root");
        option("DPkg::Lock::Timeout", "600");
        option("Dpkg::Use-Pty", "0");
        if let Scope::Foreign(architecture) = &self.scope {
            option("Dir::State", &path("state"));
            option("Dir::State::status", &path("state/status"));
            option("APT::Architecture", architecture);
            option("APT::Architectures", architecture);
        }
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }
}

/// The releases of Debian that have what guests are made of, the newest first.
const RELEASES: [&str; 2] = ["trixie", "bookworm"];

/// Fetches packages of another architecture from the machine's own release, and from other ones only if it has not what
/// is wanted, or lists what its mirror does not have.
///
/// # Errors
/// Those of the machine's own release: no other one has what is wanted, either.
pub(crate) fn from_any_release(
    architecture: &str,
    fetch: impl Fn(&Apt) -> Result<()>,
) -> Result<()> {
    let own = Apt::new(Scope::Foreign(architecture.to_owned()))?;
    own.update()?;
    let others = RELEASES
        .into_iter()
        .filter(|release| *release != own.codename)
        .map(|release| {
            say!("asking Debian's {release}");
            let apt = Apt::of_release(architecture.to_owned(), release)?;
            apt.update()?;
            Ok(apt)
        });
    first_that_gives(&own, others, fetch)
}

fn first_that_gives(
    own: &Apt,
    others: impl Iterator<Item = Result<Apt>>,
    fetch: impl Fn(&Apt) -> Result<()>,
) -> Result<()> {
    let Err(first) = fetch(own) else {
        return Ok(());
    };
    say!("{first:#}");
    for other in others {
        match other.and_then(|apt| fetch(&apt)) {
            Ok(()) => return Ok(()),
            Err(error) => say!("{error:#}"),
        }
    }
    Err(first)
}

/// Runs apt or dpkg with their own progress on standard error. What changes the machine is let finish if we end.
fn run(command: &mut Command, failed: &'static str) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .context(failed)?;
    if !status.success() {
        bail!("{failed}: apt's reason is above; once it is removed, the same command goes on");
    }
    Ok(())
}

/// Packages from one suite, for the line that a user without the right to install them is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The packages.
    pub(crate) packages: &'static [&'static str],
    /// Whether they come from backports.
    pub(crate) from: Suite,
}

/// Where packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// The machine's own suites.
    Default,
    /// The release's backports.
    Backports,
}

impl Apt {
    /// The one command that makes an administrator's apt install the packages.
    pub(crate) fn command_for_root(&self, wanted: &[Wanted]) -> String {
        let suite = self.backports();
        let mut steps = Vec::new();
        if wanted.iter().any(|wanted| wanted.from == Suite::Backports) {
            let source = sources::backports(&self.sources, &self.codename).unwrap_or_default();
            let uri = source.uris.first().map_or("", String::as_str);
            // A key written into the sources themselves has no place in one line.
            let key = source
                .signed_by
                .filter(|key| key.starts_with('/'))
                .map(|key| format!("[signed-by={key}] "))
                .unwrap_or_default();
            steps.push(format!(
                "echo deb {key}{uri} {suite} main >/etc/apt/sources.list.d/{suite}.list"
            ));
        }
        steps.push("apt-get update".to_owned());
        for Wanted { packages, from } in wanted {
            let target = match from {
                Suite::Default => String::new(),
                Suite::Backports => format!("-t {suite} "),
            };
            let packages = shell::line(packages.iter().copied());
            steps.push(format!(
                "apt-get install -y --no-install-recommends {target}{packages}"
            ));
        }
        let root = if workspace::find_program("sudo").is_some() {
            "sudo sh -c"
        } else {
            "su -c"
        };
        format!("{root} {}", shell::quote(&steps.join(" && ")))
    }

    /// The suite to take a package from: the release's own if what it offers is new enough, by the lists that the
    /// machine has. Where it has none yet, the release tells: Debian 12 is the one whose QEMU is too old.
    pub(super) fn suite_of(&self, package: &str, least: Version) -> Suite {
        suite_of(
            &self.codename,
            candidate_of_machine(package).as_deref(),
            least,
        )
    }
}

fn suite_of(codename: &str, offered: Option<&str>, least: Version) -> Suite {
    let own = match offered {
        Some(_) => new_enough(offered, least),
        None => codename != "bookworm",
    };
    match own {
        true => Suite::Default,
        false => Suite::Backports,
    }
}

/// The version that the machine's own apt would install, by the lists that it has.
pub(crate) fn candidate_of_machine(package: &str) -> Option<String> {
    let policy = output_of(Command::new("apt-cache").args(["policy", package]))?;
    candidate(&policy).map(str::to_owned)
}

/// Whether we may install packages.
pub(crate) fn may_install() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says what is installed and why.
pub(crate) fn announce(packages: &[&str], from: &str, why: &str) {
    say!("{why}: installing {} from {from}", packages.join(", "));
}

pub(super) fn own_architecture() -> Result<String> {
    output_of(Command::new("dpkg").arg("--print-architecture"))
        .context("dpkg does not tell this machine's architecture")
}

fn codename(release: &str) -> Option<String> {
    let value = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

fn candidate(policy: &str) -> Option<&str> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then_some(version)
}

fn dependencies(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter_map(|line| {
            line.strip_prefix("Depends: ")
                .or_else(|| line.strip_prefix("PreDepends: "))
        })
        .map(|name| name.trim_matches(['<', '>']).to_owned())
        .collect()
}

/// The versions in `apt-cache madison`'s table, in its order: the newest first, each once.
fn versions(table: &str) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    for line in table.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(_), Some(version), Some(source)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let known = versions.iter().any(|known| known == version);
        if !known && !version.is_empty() && !source.ends_with("Sources") {
            versions.push(version.to_owned());
        }
    }
    versions
}

/// The names in the `Depends` of a package's record, without versions and alternatives.
fn listed_dependencies(record: &str) -> Vec<String> {
    record
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Depends: ")
                .or_else(|| line.strip_prefix("Pre-Depends: "))
        })
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// An apt whose programs are these shell scripts.
#[cfg(test)]
pub(super) fn scripted(dir: &Path, apt_get: &str, apt_cache: &str) -> Apt {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, script) in [("apt-get", apt_get), ("apt-cache", apt_cache)] {
        let path = dir.join(name);
        workspace::write_whole(&path, format!("#!/bin/sh\n{script}").as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Apt {
        scope: Scope::Foreign("arm64".to_owned()),
        dir: dir.join("state"),
        codename: "bookworm".to_owned(),
        sources: Vec::new(),
        programs: dir.to_owned(),
    }
}

/// Whether a candidate is of a series such as `6.12`.
pub(crate) fn is_of_series(candidate: Option<&str>, series: &str) -> bool {
    candidate
        .and_then(Version::of_debian)
        .is_some_and(|version| {
            Some(version)
                .zip(Version::find(series))
                .is_some_and(|(version, series)| {
                    (version.major, version.minor) == (series.major, series.minor)
                })
        })
}

/// Whether a candidate is at least `least`.
pub(crate) fn new_enough(candidate: Option<&str>, least: Version) -> bool {
    candidate
        .and_then(Version::of_debian)
        .is_some_and(|version| version >= least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn the_codename_is_read_with_or_without_quotes() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=trixie\n").as_deref(),
            Some("trixie")
        );
        assert_eq!(
            codename("VERSION_CODENAME=\"noble\"").as_deref(),
            Some("noble")
        );
        assert_eq!(codename("VERSION_CODENAME=\n"), None);
        assert_eq!(codename("ID=arch"), None);
    }

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "x:\n  Installed: (none)\n  Candidate: 1:10.0.2+ds\n  Version table:\n";
        assert_eq!(candidate(policy), Some("1:10.0.2+ds"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn versions_are_read_from_the_table_each_once() {
        let table = " x | 6.12.95-1 | http://m/debian-security trixie-security/main arm64 Packages\n \
                     x | 6.12.95-1 | http://m/debian trixie-updates/main arm64 Packages\n \
                     x | 6.12.57-1 | http://m/debian trixie/main arm64 Packages\n \
                     x | 6.12.57-1 | http://m/debian trixie/main Sources\n";
        assert_eq!(versions(table), ["6.12.95-1", "6.12.57-1"]);
        assert!(versions("").is_empty());
    }

    #[test]
    fn dependencies_are_read_from_a_record() {
        let record =
            "Package: x\nDepends: linux-image-6.12.57+deb13-arm64 (= 6.12.57-1), y | z\nSize: 3\n";
        assert_eq!(
            listed_dependencies(record),
            ["linux-image-6.12.57+deb13-arm64", "y"]
        );
    }

    /// `apt-cache` with two versions of everything.
    const LISTS: &str = r#"for last; do :; done
case "$*" in
*madison*) echo "$last | 2.0-1 | http://m s Packages"; echo "$last | 1.0-1 | http://m t Packages" ;;
*policy*) echo "  Candidate: 2.0-1" ;;
esac
"#;

    /// `apt-get` that has everything, and one that has nothing.
    const GIVES: &str = "for last; do :; done\n: >${last}_1_arm64.deb\n";
    const LACKS: &str = "exit 100\n";

    #[test]
    fn another_release_is_asked_when_the_machines_own_has_nothing_to_give() {
        let dir = Scratch::new("releases");
        let of = |name: &str, get: &str| Apt {
            codename: name.to_owned(),
            ..scripted(&dir.join(name), get, "exit 0\n")
        };
        let into = dir.join("debs-6.12-arm64");
        let fetch = |apt: &Apt| {
            let folder = apt.partial_folder(&into)?;
            apt.download_together(&["first"], None, &folder)?;
            apt.download_together(&["x"], None, &folder)
        };
        let unreachable = Err(anyhow!("there is no such release"));
        let half = of("half", &format!("case $* in *x) exit 100 ;; esac\n{GIVES}"));
        let others = [unreachable, Ok(half), Ok(of("other", GIVES))];
        first_that_gives(&of("own", LACKS), others.into_iter(), fetch).unwrap();
        // Packages of two releases, or of two architectures, are never mixed.
        let folder = |release: &str| of(release, LACKS).partial_folder(&into).unwrap();
        let there = |release: &str, name: &str| folder(release).join(name).is_file();
        assert!(there("other", "first_1_arm64.deb") && there("other", "x_1_arm64.deb"));
        assert!(there("half", "first_1_arm64.deb") && !there("half", "x_1_arm64.deb"));
        let arm = of("own", LACKS).partial_folder(&dir.join("debian-6.12-arm64"));
        let power = of("own", LACKS).partial_folder(&dir.join("debian-6.12-ppc64el"));
        assert_ne!(arm.unwrap(), power.unwrap());
        // The controls: nobody has it, and nobody else is asked when the machine's own release has it.
        assert!(first_that_gives(&of("own", LACKS), std::iter::empty(), fetch).is_err());
        let others = std::iter::from_fn(|| -> Option<Result<Apt>> { panic!("asked") });
        first_that_gives(&of("own", GIVES), others, fetch).unwrap();
    }

    #[test]
    fn another_version_is_tried_when_the_mirror_lacks_one() {
        let dir = Scratch::new("apt");
        // 404 for all but the old one.
        let get =
            "for last; do :; done\ncase $last in *=1.0-1) : >fetched.deb ;; *) exit 100 ;; esac\n";
        let apt = scripted(&dir, get, LISTS);
        apt.download("x", None, &dir).unwrap();
        assert!(dir.join("fetched.deb").is_file());
        // The control: nothing can be had.
        let apt = scripted(&dir, "exit 100\n", LISTS);
        let error = apt.download("x", None, &dir).unwrap_err().to_string();
        assert!(error.contains("cannot fetch a package"), "{error}");
    }

    #[test]
    fn candidates_are_judged_by_their_upstream_version() {
        let least = Version::new(9, 2);
        assert!(new_enough(Some("1:10.0.2+ds-2"), least));
        assert!(!new_enough(Some("1:7.2+dfsg-7"), least));
        assert!(!new_enough(None, least));
    }

    #[test]
    fn a_series_is_two_numbers() {
        assert!(is_of_series(Some("6.12.95-1~bpo12+1"), "6.12"));
        assert!(!is_of_series(Some("6.1.176-1"), "6.12"));
        assert!(!is_of_series(Some("6.12.95-1"), "6.1"));
        assert!(!is_of_series(None, "6.1"));
    }

    #[test]
    fn dependencies_are_read_from_apts_list() {
        let text = "linux-image-arm64\n  Depends: linux-image-6.1.0-56-arm64\n  Depends: <x>\n  \
                    PreDepends: libc6\n  Suggests: y\n";
        assert_eq!(
            dependencies(text),
            ["linux-image-6.1.0-56-arm64", "x", "libc6"]
        );
    }

    #[test]
    fn the_line_for_an_administrator_is_one_shell_command() {
        let source = sources::Source {
            uris: vec!["http://deb.example.org/debian".into()],
            suites: vec!["bookworm".into()],
            components: vec!["main".into()],
            signed_by: Some("/k.gpg".into()),
        };
        let apt = Apt {
            scope: Scope::Machine,
            dir: "/nowhere".into(),
            codename: "bookworm".into(),
            sources: vec![source],
            programs: PathBuf::new(),
        };
        let wanted = |packages, from| Wanted { packages, from };
        let line = apt.command_for_root(&[wanted(&["qemu-system-arm"], Suite::Backports)]);
        assert!(
            line.contains("-t bookworm-backports qemu-system-arm"),
            "{line}"
        );
        assert!(
            line.contains(
                "deb [signed-by=/k.gpg] http://deb.example.org/debian bookworm-backports main"
            ),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);

        let line = apt.command_for_root(&[
            wanted(&["rustc-web", "lld"], Suite::Default),
            wanted(&["qemu-system-arm"], Suite::Default),
        ]);
        assert!(
            line.ends_with(
                "-c 'apt-get update && apt-get install -y --no-install-recommends rustc-web lld && \
                 apt-get install -y --no-install-recommends qemu-system-arm'"
            ),
            "{line}"
        );
    }

    #[test]
    fn the_suite_is_known_without_lists_too() {
        let least = Version::new(9, 2);
        assert_eq!(suite_of("trixie", None, least), Suite::Default);
        assert_eq!(suite_of("bookworm", None, least), Suite::Backports);
        assert_eq!(suite_of("trixie", Some("1:7.2"), least), Suite::Backports);
        assert_eq!(suite_of("bookworm", Some("1:10.0"), least), Suite::Default);
    }
}
