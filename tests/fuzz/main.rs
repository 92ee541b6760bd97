//! Every parser and the canonical encoding, tried with inputs that nobody thought of.
//!
//! Each target replays its corpus and then tries changed inputs for a while; see `README.md`, also for hours of it with
//! libFuzzer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod driver;
mod json;
mod mutate;
mod targets;

/// No file of the corpus is left over from a target that is gone.
#[test]
fn every_folder_of_the_corpus_has_its_target() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(targets::ALL.iter().any(|target| *target.name == *name), "{name:?}");
    }
}
