//! Tests of how often cargo compiles the same thing: it does so once for each set of features and each profile.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::board::Arch;
use crate::guest;
use crate::suite::host;

/// What cargo would do.
#[derive(Deserialize)]
struct Graph {
    units: Vec<Unit>,
}

/// A call of the compiler, or of a program for building.
#[derive(Deserialize)]
struct Unit {
    pkg_id: String,
    target: Target,
    mode: String,
    features: Vec<String>,
    profile: Map<String, Value>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Dependency {
    index: usize,
}

impl Graph {
    /// Of a command, which is not carried out.
    fn of(words: &[&str]) -> Self {
        let mut command = host::cargo();
        command
            .args(words)
            .args(["--locked", "--unit-graph", "-Zunstable-options"])
            .env("RUSTC_BOOTSTRAP", "1");
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The libraries and macros, each with how it is compiled.
    fn libraries(&self) -> Vec<(&str, String)> {
        let library = |kind: &str| kind.ends_with("lib") || kind == "proc-macro";
        self.units
            .iter()
            .filter(|unit| unit.mode == "build" && unit.target.kind.iter().any(|it| library(it)))
            .map(|unit| (unit.pkg_id.as_str(), unit.how()))
            .collect()
    }

    /// The same, but macros and what they are made with only.
    fn macros(&self) -> Vec<(&str, String)> {
        let mut open: Vec<usize> = (0..self.units.len())
            .filter(|&index| self.units[index].target.kind == ["proc-macro"])
            .collect();
        let mut reached = BTreeSet::new();
        while let Some(index) = open.pop() {
            if reached.insert(index) {
                open.extend(self.units[index].dependencies.iter().map(|it| it.index));
            }
        }
        let units = reached.into_iter().map(|index| &self.units[index]);
        units
            .filter(|unit| unit.mode == "build")
            .filter(|unit| unit.target.kind != ["custom-build"])
            .map(|unit| (unit.pkg_id.as_str(), unit.how()))
            .collect()
    }
}

impl Unit {
    /// What decides whether another compiled one will do.
    fn how(&self) -> String {
        let mut profile = self.profile.clone();
        // `dev` and `test` are two names of what may be the same.
        profile.remove("name");
        format!("{:?} {}", self.features, Value::Object(profile))
    }
}

/// The packages that are compiled in more than one way.
fn in_many_ways<'a>(all: impl IntoIterator<Item = (&'a str, String)>) -> Vec<&'a str> {
    let mut ways: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (package, how) in all {
        ways.entry(package).or_default().insert(how);
    }
    let many = ways.into_iter().filter(|(_, ways)| ways.len() > 1);
    many.map(|(package, _)| package).collect()
}

#[test]
fn nothing_of_the_tool_is_compiled_again_for_the_tests() {
    let packages = host::packages().unwrap();
    let mut words = vec!["test"];
    words.extend(host::WHOLE);
    for package in &packages {
        words.extend(["-p", package]);
    }
    let tests = Graph::of(&words);
    let again = |words: &[&str]| {
        let tool = Graph::of(words);
        let both = tool.libraries().into_iter().chain(tests.libraries());
        in_many_ways(both).len()
    };
    let build = ["build", "-p", "xtask"];
    assert_eq!(again(&build), 0);
    let other = [&build[..], &["--config", "profile.dev.panic=\"abort\""]].concat();
    assert!(again(&other) > 20, "the control: tests unwind");
}

#[test]
fn macros_are_compiled_once_for_all_images() {
    let arches = Arch::ALL.map(Arch::package);
    let packages = arches
        .into_iter()
        .chain(guest::PACKAGES.map(|(_, package)| package));
    let graphs: Vec<Graph> = packages
        .map(|package| Graph::of(&["build", "--release", "-p", package]))
        .collect();
    let all = graphs.iter().flat_map(Graph::macros);
    assert_eq!(in_many_ways(all), [""; 0]);
    let debug = Graph::of(&["build", "-p", arches[0]]);
    let both = debug.macros().into_iter().chain(graphs[0].macros());
    assert!(!in_many_ways(both).is_empty(), "the control");
}
