//! Lets ACPI's own compiler judge the tables that guests get.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::host;
use crate::provide::{self, programs};
use crate::workspace;

/// What `iasl` says when a table is not as it should be.
const BAD: [&str; 6] = [
    "error",
    "warning",
    "invalid",
    "unknown",
    "checksum",
    "could not",
];
/// What versions before 2021 say of reserved memory ranges, which they do not know.
const TOO_OLD: &str = "Unknown IORT node type 0x6";

/// Whether each table of the typical guests is taken apart without a complaint, and the one with AML put
/// together again from that; and whether a spoilt one is noticed.
///
/// # Errors
/// A complaint, or something missing.
pub(super) fn disassembled() -> Result<()> {
    let iasl = programs::iasl()?;
    let dir = workspace::target_dir().join("test/tables");
    let dump = host::example("dump")?;
    let files = provide::output_of(Command::new(dump).arg(&dir));
    let files = files.context("the tables cannot be written")?;
    let tables: Vec<PathBuf> = files
        .lines()
        .map(PathBuf::from)
        .filter(|file| file.extension().is_some_and(|extension| extension == "aml"))
        .collect();
    ensure!(
        tables.len() >= 4 * 6,
        "there are only {} tables",
        tables.len()
    );
    for table in &tables {
        disassemble(&iasl, table)?;
        if table.file_stem().is_some_and(|name| name == "dsdt") {
            let source = table.with_extension("dsl");
            let said = run(&iasl, &[&source])?;
            ensure!(
                said.contains("0 Errors, 0 Warnings"),
                "{} does not compile again:\n{said}",
                source.display()
            );
        }
    }
    let mut spoilt = fs::read(&tables[0]).context("a table")?;
    *spoilt.last_mut().context("an empty table")? ^= 1;
    let file = dir.join("spoilt.aml");
    workspace::write_whole(&file, &spoilt)?;
    if disassemble(&iasl, &file).is_ok() {
        bail!("a table with a wrong checksum is not noticed");
    }
    Ok(())
}

fn disassemble(iasl: &Path, table: &Path) -> Result<()> {
    let said = run(iasl, &[Path::new("-d"), table])?;
    let bad = said.lines().find(|line| {
        let lower = line.to_lowercase();
        BAD.iter().any(|word| lower.contains(word)) && !line.contains(TOO_OLD)
    });
    match bad {
        Some(line) => bail!("{}: {}", table.display(), line.trim()),
        None => Ok(()),
    }
}

fn run(iasl: &Path, arguments: &[&Path]) -> Result<String> {
    let output = Command::new(iasl)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", iasl.display()))?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(said.concat())
}
