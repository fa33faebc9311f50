//! `cargo xtask bench iommu`: the IOMMU core on this machine, as ratios within one run.
//!
//! The bench itself is `hv/iommu/benches/core`; its times are of the host, so only what was timed turn by
//! turn in one run is compared.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::folder;
use crate::suite::host::cargo;
use crate::{child, output, say, show, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "iommu";

/// One row of the table, and of `target/bench/iommu.json`.
#[derive(Debug, Serialize, PartialEq)]
struct Figure {
    name: String,
    /// A ratio, or bytes.
    value: f64,
    /// What it has to be: `>= n`, `<= n`, or nothing.
    limit: Option<String>,
    holds: bool,
}

/// Measures. The status is 1 when a figure is not what it has to be.
///
/// # Errors
/// A bench that does not build or run, or prints no figures.
pub(super) fn run() -> Result<u8> {
    let mut command = cargo();
    command.args([
        "bench",
        "--locked",
        "-p",
        "bulkhead-iommu",
        "--bench",
        "core",
    ]);
    let (status, told, _) = child::output(&mut command).context("cannot start cargo")?;
    ensure!(
        status.success(),
        "the bench of the IOMMU core ended with {status}"
    );
    let text = String::from_utf8_lossy(&told);
    let figures = figures(&text)?;
    for line in text.lines().filter(|line| line.contains(", ns")) {
        show!("{line}");
    }
    output::text(&table(&figures));
    let mut json = serde_json::to_string_pretty(&figures).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("iommu.json");
    workspace::write_whole(&path, json.as_bytes())?;
    say!("the figures are in {} too", path.display());
    Ok(u8::from(figures.iter().any(|figure| !figure.holds)))
}

/// Reads the lines `figure|NAME|VALUE|LIMIT`, where a limit of `-` is none.
fn figures(output: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for line in output.lines() {
        let Some(rest) = line.strip_prefix("figure|") else {
            continue;
        };
        let mut fields = rest.split('|');
        let (Some(name), Some(value), Some(limit), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            bail!("a figure without name, value and limit: {line}");
        };
        let value: f64 = value
            .parse()
            .with_context(|| format!("no number in {line}"))?;
        let holds = match limit.split_once(' ') {
            None => true,
            Some((sign, bound)) => {
                let bound: f64 = bound
                    .parse()
                    .with_context(|| format!("no number in the limit of {line}"))?;
                match sign {
                    ">=" => value >= bound,
                    "<=" => value <= bound,
                    _ => bail!("an unknown limit: {line}"),
                }
            }
        };
        figures.push(Figure {
            name: name.to_owned(),
            value,
            limit: (limit != "-").then(|| limit.to_owned()),
            holds,
        });
    }
    ensure!(!figures.is_empty(), "the bench printed no figures");
    Ok(figures)
}

fn table(figures: &[Figure]) -> String {
    let mut text = format!("{:>8} {:>8}  figure\n", "value", "wanted");
    for figure in figures {
        let limit = figure.limit.as_deref().unwrap_or("-");
        let mark = if figure.holds { "" } else { "  MISSED" };
        text.push_str(&format!(
            "{:>8.2} {limit:>8}  {}{mark}\n",
            figure.value, figure.name
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{figures, table};

    #[test]
    fn figures_are_read_and_held_against_their_limits() {
        let text =
            "noise\nfigure|a rate|0.98|>= 1\nfigure|bytes|34.70|<= 96\nfigure|floor|9.00|-\n";
        let figures = figures(text).unwrap();
        let holds: Vec<bool> = figures.iter().map(|figure| figure.holds).collect();
        assert_eq!(holds, [false, true, true]);
        let table = table(&figures);
        assert_eq!(table.matches("MISSED").count(), 1);
        assert!(table.contains("0.98     >= 1  a rate  MISSED"), "{table}");
    }

    #[test]
    fn output_without_figures_is_an_error() {
        assert!(figures("").is_err());
        assert!(figures("figure|a|b|-").is_err());
        assert!(figures("figure|a|1|== 3").is_err());
        assert!(figures("figure|a|1").is_err());
    }
}
