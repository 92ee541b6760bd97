//! The house keeps its own rules: who may know whom, what is in the document, what the policy covers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::daemon::{BINARY, project};

/// Which rooms (or parts of rooms) a room may import. Itself and the crates below always.
const ROOMS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("clock", &["domain"]),
    ("config", &["domain"]),
    ("fault", &[]),
    ("json", &[]),
    ("store", &["domain", "config", "clock", "fault"]),
    ("tenant", &["store", "domain", "clock", "fault"]),
    ("directory", &["tenant", "store", "domain", "clock", "config", "fault"]),
    (
        "intake",
        &[
            "directory::handle",
            "tenant::handle",
            "tenant::message",
            "domain",
            "config",
            "clock",
            "json",
            "telemetry",
            "fault",
        ],
    ),
    (
        "outlet",
        &["directory::handle", "tenant::handle", "tenant::message", "domain", "config", "clock", "telemetry", "fault"],
    ),
    (
        "access",
        // People are added to their tenant when they first come.
        &[
            "directory::handle",
            "tenant::handle",
            "tenant::organization",
            "tenant::task",
            "domain",
            "config",
            "clock",
            "telemetry",
        ],
    ),
    (
        "http",
        &[
            "access",
            // How a body is read; the pure half of the intake.
            "intake::arrival",
            "intake::body",
            "intake::cloudevents",
            "intake::kong::log_receiver",
            "intake::record",
            // The channels, to be seen and tried.
            "outlet::bench",
            // Providers, to be tried.
            "outlet::provider_probe",
            "directory::handle",
            "directory::jobs",
            "directory::task",
            "rate_limit",
            "scim",
            "directory::noted",
            "directory::platform_admin",
            "directory::task",
            "tenant::acknowledge",
            "tenant::grant",
            "tenant::handle",
            "tenant::message",
            "tenant::organization",
            "tenant::policy",
            "tenant::provider",
            "tenant::task",
            // The rows of the chain as the tenant's protocol hands them out.
            "store::audit::StoredRecord",
            "domain",
            "config",
            "clock",
            "json",
            "fault",
            "telemetry",
            "threads",
            "vault",
        ],
    ),
    ("scim", &["domain"]),
    (
        "jobs",
        &[
            "directory::errand",
            "directory::handle",
            "directory::jobs",
            "directory::task",
            "directory::workflow",
            "tenant::handle",
            "tenant::housekeeping",
            "tenant::provider",
            "tenant::task",
            "outlet::litellm",
            "outlet::provider_probe",
            "vault",
            "domain",
            "config",
            "clock",
            "fault",
        ],
    ),
    ("envoy", &["directory::handle", "rate_limit", "tenant::handle", "domain", "config", "clock", "telemetry"]),
    ("rate_limit", &["domain", "config", "clock"]),
    ("telemetry", &["config", "domain", "clock"]),
    ("threads", &[]),
    ("vault", &["domain", "config", "clock", "tenant::handle", "tenant::provider", "tenant::task"]),
];

/// Crates that only some rooms may know. The daemon puts everything together and may know all.
const CRATES: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("async_nats", &["intake", "outlet"]),
    ("redis", &["outlet", "intake", "rate_limit", "access"]),
    ("argon2", &["access"]),
    ("poem", &["http"]),
    ("poem_openapi", &["http"]),
    ("tonic", &["envoy"]),
    ("tonic_prost", &["envoy"]),
    ("prost", &["envoy"]),
    ("hyper", &["envoy"]),
    ("hyper_util", &["envoy"]),
    ("ractor", &["tenant", "directory"]),
    ("casbin", &["access"]),
    ("jsonwebtoken", &["access"]),
    ("fail", &["fault"]),
    ("rustix", &["threads"]),
];

/// A source file of the product: its room, and its text without its tests.
struct Source {
    path: PathBuf,
    room: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = project().join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
                let inside = path.strip_prefix(&root).unwrap().with_extension("");
                let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
                let text = std::fs::read_to_string(&path).unwrap();
                // Tests of a file stand at its end.
                let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
                found.push(Source { path, room, text });
            }
        }
    }
    assert!(found.len() > 50, "only {} sources", found.len());
    found
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    // Declared with `#[cfg(test)]` in their `mod.rs`.
    let helpers = ["tests", "receiver", "issuer_peer", "transit_peer", "litellm_peer"];
    name.ends_with("_test") || name.ends_with("_tests") || helpers.contains(&name)
}

/// The paths after `crate::`, also from grouped imports, without comments.
fn crate_paths(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut paths = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == '$') {
            continue;
        }
        expand(&code[at + "crate::".len()..], String::new(), &mut paths);
    }
    paths
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(text: &str, prefix: String, paths: &mut BTreeSet<String>) {
    let mut path = prefix;
    let mut rest = text;
    loop {
        let word: String = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
        rest = &rest[word.len()..];
        path.push_str(&word);
        if let Some(after) = rest.strip_prefix("::{") {
            let mut depth = 0;
            let mut start = 0;
            for (at, letter) in after.char_indices() {
                match letter {
                    '{' => depth += 1,
                    ',' | '}' if depth == 0 => {
                        expand(after[start..at].trim_start(), format!("{path}::"), paths);
                        start = at + 1;
                        if letter == '}' {
                            return;
                        }
                    }
                    '}' => depth -= 1,
                    _ => {}
                }
            }
            return;
        }
        match rest.strip_prefix("::") {
            Some(after) if after.starts_with(|letter: char| letter.is_alphanumeric() || letter == '_') => {
                path.push_str("::");
                rest = after;
            }
            _ => break,
        }
    }
    let path = path.strip_suffix("::self").unwrap_or(&path);
    if !path.is_empty() && !path.ends_with("::") {
        paths.insert(path.to_owned());
    }
}

#[test]
fn imports_are_read_as_the_compiler_reads_them() {
    let paths = crate_paths(
        "use crate::a::{b, c::{d, e::F}};\nuse crate::g;\n// use crate::comment;\nlet x = crate::h::i::<J>();\n\
         pub(crate) fn k() {}\nuse crate::l::{\n    m,\n    n::o,\n};",
    );
    let expected = ["a::b", "a::c::d", "a::c::e::F", "g", "h::i", "l::m", "l::n::o"].map(String::from);
    assert_eq!(paths, expected.into());
}

/// Traffic goes down only: doors, directory, tenant, store, domain.
#[test]
fn no_room_knows_more_rooms_than_it_may() {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut broken = Vec::new();
    for source in sources() {
        let Some(allowed) = rooms.get(source.room.as_str()) else { continue };
        for path in crate_paths(&source.text) {
            let inside = |room: &str| path == room || path.starts_with(&format!("{room}::"));
            // `use crate::store::{audit, …}` names a module whose parts are then used.
            let prefix = |room: &str| room.starts_with(&format!("{path}::"));
            if !inside(&source.room) && !allowed.iter().any(|room| inside(room) || prefix(room)) {
                broken.push(format!("{}: crate::{path}", source.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_room_of_the_house_has_its_rule() {
    let put_together = ["main", "lib", "daemon", "command", "demo"];
    let known: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).chain(put_together).collect();
    let rooms: BTreeSet<String> = sources().into_iter().map(|source| source.room).collect();
    for room in rooms {
        assert!(known.contains(room.as_str()), "{room} has no rule");
    }
}

#[test]
fn a_library_is_known_only_where_it_belongs() {
    let put_together = ["main", "daemon", "command", "demo"];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !put_together.contains(&source.room.as_str())) {
        for (name, rooms) in CRATES {
            let uses = source.text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
                line.match_indices(&format!("{name}::")).any(|(at, _)| {
                    !line[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':')
                })
            });
            if uses && !rooms.contains(&source.room.as_str()) {
                broken.push(format!("{}: {name}", source.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The document that clients are generated from is in the repository, and is what the program says.
#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let output = std::process::Command::new(BINARY).arg("openapi").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let committed = std::fs::read_to_string(project().join("openapi.json")).expect("openapi.json is committed");
    let committed: Value = serde_json::from_str(&committed).unwrap();
    assert!(said == committed, "openapi.json is old: platform-api openapi > openapi.json");
}

/// Whatever can be reached has a rule, and no rule is about something that cannot be reached.
#[test]
fn each_operation_has_a_rule_in_the_policy() {
    let mut operations: BTreeSet<(String, String)> = operations();
    // Looked at by operations that hand something out.
    let (object, action) = platform_api::domain::policy::giver::GRANT;
    operations.insert((object.to_owned(), action.to_owned()));
    let policy = platform_api::access::policy::Policy::built_in().unwrap();
    let rules: BTreeSet<(String, String)> =
        policy.rules().iter().map(|rule| (rule.object.clone(), rule.action.clone())).collect();
    assert_eq!(operations, rules, "operations, and what the policy speaks of");
    for (object, action) in operations {
        let platform = platform_api::domain::tenant::Role::PlatformAdmin;
        assert!(policy.allows(platform, &object, &action), "{object} {action}: not even the platform's administrator");
    }
}

/// (object, action) of every operation that asks for credentials.
fn operations() -> BTreeSet<(String, String)> {
    let rows = platform_api::http::OPERATIONS.iter().filter(|row| !row.object.is_empty());
    rows.map(|row| (row.object.to_owned(), row.action.to_owned())).collect()
}

/// What is written for a reader stays readable.
#[test]
fn no_source_file_is_longer_than_a_reader_s_patience() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= 700, "{} has {lines} lines without its tests", source.path.display());
    }
}

/// Nothing in the product depends on a place outside its repository.
#[test]
fn nothing_points_outside_the_repository() {
    // Where this checkout happens to lie, and whose it is.
    let around = project().parent().map(|parent| parent.display().to_string());
    let places: Vec<String> = around.into_iter().chain(std::env::var("HOME")).filter(|place| place.len() > 1).collect();
    for source in sources() {
        for place in &places {
            assert!(!source.text.contains(&format!("{place}/")), "{}: {place}", source.path.display());
        }
    }
}
