//! The machine's own apt sources, read so that ours can be derived from them.

use std::path::Path;

use anyhow::{Context as _, Result};

/// One source of binary packages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Source {
    /// Mirrors.
    pub(crate) uris: Vec<String>,
    /// Suites.
    pub(crate) suites: Vec<String>,
    /// Components.
    pub(crate) components: Vec<String>,
    /// The keyring that signs it; may be an embedded key of several lines.
    pub(crate) signed_by: Option<String>,
}

/// All enabled sources below `etc` (`/etc/apt`).
///
/// # Errors
/// A folder or file that is there but cannot be read.
pub(crate) fn read(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        let entries = std::fs::read_dir(&parts)
            .with_context(|| format!("cannot read {}", parts.display()))?;
        let mut found: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect();
        found.sort();
        files.extend(found);
    }
    let mut sources = Vec::new();
    for file in files {
        let extension = file.extension().and_then(|extension| extension.to_str());
        let parse = match extension {
            Some("list") => parse_lines,
            Some("sources") => parse_stanzas,
            _ => continue,
        };
        if file.is_file() {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            sources.extend(parse(&text));
        }
    }
    Ok(sources)
}

/// The one-line format: `deb [signed-by=…] URI suite component…`. [sources.list(5)]
fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line
        .split_once('#')
        .map_or(line, |(before, _comment)| before)
        .trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with(char::is_whitespace) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by=").map(str::to_owned));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

/// The deb822 format: stanzas of `Key: value`. [sources.list(5)]
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_key, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        fields
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let words = |name: &str| -> Vec<String> {
        field(name)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let off = ["no", "false", "0", "off", "disable", "without"];
    if field("enabled").is_some_and(|value| off.contains(&value.to_ascii_lowercase().as_str())) {
        return None;
    }
    if !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    let source = Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
    };
    (!source.uris.is_empty() && !source.suites.is_empty()).then_some(source)
}

/// The sources of the distribution itself: those with a suite of that codename.
pub(crate) fn of_codename(sources: &[Source], codename: &str) -> Vec<Source> {
    let derived = format!("{codename}-");
    sources
        .iter()
        .filter_map(|source| {
            let suites: Vec<String> = source
                .suites
                .iter()
                .filter(|suite| *suite == codename || suite.starts_with(&derived))
                .cloned()
                .collect();
            (!suites.is_empty()).then(|| Source {
                suites,
                ..source.clone()
            })
        })
        .collect()
}

/// The backports suite, from the same mirrors as the suite itself.
pub(crate) fn backports(sources: &[Source], codename: &str) -> Option<Source> {
    let main = sources.iter().find(|source| {
        source.suites.iter().any(|suite| suite == codename)
            && source
                .components
                .iter()
                .any(|component| component == "main")
    })?;
    Some(Source {
        suites: vec![format!("{codename}-backports")],
        components: vec!["main".to_owned()],
        ..main.clone()
    })
}

/// Another release and its backports, from the mirrors of this suite and with its key: each archive signs a release
/// with the keys of the one before, too.
pub(crate) fn of_other_release(suite: Source, release: &str) -> Source {
    Source {
        suites: vec![release.to_owned(), format!("{release}-backports")],
        ..suite
    }
}

/// The sources as one deb822 file for packages of one architecture.
pub(crate) fn deb822(sources: &[Source], architecture: &str) -> String {
    let mut text = String::new();
    for source in sources {
        text.push_str("Types: deb\n");
        text.push_str(&format!("URIs: {}\n", source.uris.join(" ")));
        text.push_str(&format!("Suites: {}\n", source.suites.join(" ")));
        if !source.components.is_empty() {
            text.push_str(&format!("Components: {}\n", source.components.join(" ")));
        }
        text.push_str(&format!("Architectures: {architecture}\n"));
        if let Some(signed_by) = &source.signed_by {
            text.push_str(&format!("Signed-By: {signed_by}\n"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    const STANZAS: &str = "\
Types: deb
# a comment
URIs: http://deb.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb-src
URIs: http://deb.example.org/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example.org/debian
Suites: bookworm
Components: main

types: deb deb-src
uris: http://other.example.org
suites: nodistro
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQ
 -----END PGP PUBLIC KEY BLOCK-----
";

    fn source(uri: &str, suites: &[&str], signed_by: Option<&str>) -> Source {
        Source {
            uris: vec![uri.to_owned()],
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
            components: vec!["main".to_owned()],
            signed_by: signed_by.map(str::to_owned),
        }
    }

    #[test]
    fn stanzas_are_read_and_disabled_or_source_ones_are_not() {
        let sources = parse_stanzas(STANZAS);
        assert_eq!(sources.len(), 2);
        let key = Some("/usr/share/keyrings/archive.gpg");
        let suites = ["bookworm", "bookworm-updates"];
        assert_eq!(
            sources[0],
            source("http://deb.example.org/debian", &suites, key)
        );
        assert!(sources[1].signed_by.as_ref().unwrap().contains("\n mQ\n"));
    }

    #[test]
    fn lines_are_read_with_and_without_options() {
        let sources = parse_lines(
            "deb http://a.example.org/debian trixie main # comment\n\
             #deb http://b.example.org/debian trixie main\n\
             deb-src http://c.example.org/debian trixie main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://d.example.org trixie-security main\n\
             deb\n\
             debris x y\n\
             deb [broken http://e.example.org trixie main\n",
        );
        assert_eq!(
            sources,
            [
                source("http://a.example.org/debian", &["trixie"], None),
                source("http://d.example.org", &["trixie-security"], Some("/k.gpg")),
            ]
        );
    }

    #[test]
    fn backports_come_from_the_suites_own_mirror_and_key() {
        let sources = of_codename(&parse_stanzas(STANZAS), "bookworm");
        assert_eq!(sources.len(), 1);
        let backports = backports(&sources, "bookworm").unwrap();
        let key = Some("/usr/share/keyrings/archive.gpg");
        assert_eq!(
            backports,
            source(
                "http://deb.example.org/debian",
                &["bookworm-backports"],
                key
            )
        );
        assert!(super::backports(&sources, "trixie").is_none());
    }

    #[test]
    fn another_release_comes_from_the_same_mirror() {
        let sources = of_codename(&parse_stanzas(STANZAS), "bookworm");
        let own = backports(&sources, "bookworm").unwrap();
        let key = Some("/usr/share/keyrings/archive.gpg");
        assert_eq!(
            of_other_release(own, "trixie"),
            source(
                "http://deb.example.org/debian",
                &["trixie", "trixie-backports"],
                key
            )
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let sources = parse_stanzas(STANZAS);
        assert_eq!(parse_stanzas(&deb822(&sources, "arm64")), sources);
    }

    #[test]
    fn a_folder_is_read_by_file_name_ending() {
        let dir = Scratch::new("sources");
        let parts = dir.join("sources.list.d");
        std::fs::create_dir_all(&parts).unwrap();
        std::fs::write(dir.join("sources.list"), "deb http://a/ x main\n").unwrap();
        std::fs::write(parts.join("b.sources"), STANZAS).unwrap();
        std::fs::write(parts.join("c.list.save"), "deb http://c/ x main\n").unwrap();
        assert_eq!(read(&dir).unwrap().len(), 3);
        std::fs::remove_dir_all(&*dir).unwrap();
        assert!(read(&dir).unwrap().is_empty());
    }
}
