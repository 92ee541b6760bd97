//! The lock file against `deny.toml`: licences, sources, and libraries that must not be there twice, or at all.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;

use crate::harness::daemon::project;

#[derive(Deserialize)]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    deny_multiple_versions: bool,
}

fn deny() -> Deny {
    toml::from_str(&std::fs::read_to_string(project().join("deny.toml")).unwrap()).unwrap()
}

/// Everything that is compiled for the targets we ship, as (name, version) → licence expression.
fn packages() -> BTreeMap<(String, String), String> {
    let mut arguments =
        vec!["tree", "--locked", "--offline", "--edges=normal,build", "--prefix=none", "--format={p}|{l}"];
    // What a target we do not build for needs may not be downloaded here.
    let target = deny().graph.targets.into_iter().find(|target| target.starts_with(std::env::consts::ARCH)).unwrap();
    arguments.extend(["--target", &target]);
    let output = Command::new(env!("CARGO")).current_dir(project()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let (package, license) = line.split_once('|').unwrap();
        let mut words = package.split(' ');
        let name = words.next().unwrap().to_owned();
        ((name, words.next().unwrap().to_owned()), license.trim_end_matches(" (*)").to_owned())
    });
    lines.filter(|((name, _), _)| name != "platform-api").collect()
}

#[test]
fn every_licence_is_one_we_accept() {
    let rules = deny().licenses;
    let packages = packages();
    assert!(packages.len() > 200, "only {} packages", packages.len());
    for ((name, version), license) in packages {
        let mut allowed = rules.allow.clone();
        allowed.extend(rules.exceptions.iter().filter(|one| one.name == name).flat_map(|one| one.allow.clone()));
        assert!(satisfied(&license, &allowed), "{name} {version}: {license:?}");
    }
}

#[test]
fn no_exception_is_left_from_a_crate_that_went() {
    let names: BTreeSet<String> = packages().into_keys().map(|(name, _)| name).collect();
    for exception in deny().licenses.exceptions {
        assert!(names.contains(&exception.name), "{} is not used any more", exception.name);
    }
}

#[test]
fn nothing_that_must_be_there_once_is_there_twice() {
    let packages = packages();
    for ban in deny().bans.deny {
        let versions: Vec<&String> =
            packages.keys().filter(|(name, _)| *name == ban.name).map(|(_, version)| version).collect();
        assert!(versions.len() <= usize::from(ban.deny_multiple_versions), "{}: {versions:?}", ban.name);
    }
}

#[test]
fn everything_comes_from_the_public_registry_with_its_checksum() {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        source: Option<String>,
        checksum: Option<String>,
    }
    let lock: Lock = toml::from_str(&std::fs::read_to_string(project().join("Cargo.lock")).unwrap()).unwrap();
    for package in lock.package.iter().filter(|package| package.name != "platform-api") {
        let source = package.source.as_deref();
        assert_eq!(source, Some("registry+https://github.com/rust-lang/crates.io-index"), "{}", package.name);
        assert!(package.checksum.is_some(), "{}", package.name);
    }
}

/// What the tests may do to the process is not in what is shipped: without its feature, the crate does nothing.
#[test]
fn a_release_has_no_point_at_which_it_can_be_killed() {
    let features = |edges: &str| {
        let arguments = ["tree", "--locked", "--offline", "--prefix=none", "--format={p}|{f}", "--edges", edges];
        let output = Command::new(env!("CARGO")).current_dir(project()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("fail v")).expect("the crate is there").to_owned();
        line.split_once('|').unwrap().1.trim_end_matches(" (*)").to_owned()
    };
    assert_eq!(features("normal,build"), "", "what `cargo build` compiles");
    assert_eq!(features("normal,build,dev"), "failpoints", "what `cargo test` compiles");
}

/// Does an SPDX expression hold when these licences are acceptable? Precedence: parentheses, AND, OR; `/` is an old OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "_WITH_");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let holds = any_of(&words, &mut at, allowed);
    holds && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut holds = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= all_of(words, at, allowed);
    }
    holds
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut holds = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(words, at, allowed);
    }
    holds
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let holds = any_of(words, at, allowed);
        *at += 1;
        return holds;
    }
    let name = word.replace("_WITH_", " WITH ");
    allowed.contains(name.trim_end_matches('+'))
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "ISC"].map(String::from).into();
    for (expression, holds) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("(ISC OR MIT) AND GPL-3.0", false),
        ("MIT AND ISC OR GPL-3.0", true),
        ("MIT WITH LLVM-exception", false),
        ("", false),
    ] {
        assert_eq!(satisfied(expression, &allowed), holds, "{expression}");
    }
}
