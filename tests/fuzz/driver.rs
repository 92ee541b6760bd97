//! Runs one target: every file of its corpus, then changed ones for as long as there is time.
//!
//! Each changed input is a function of one number and of the corpus, so that a failure is told as one command.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::mutate::{Random, mutated};
use crate::targets::Target;

/// How long each target is tried with changed inputs, in seconds.
const SECONDS: &str = "FUZZ_SECONDS";
const SECONDS_DEFAULT: f64 = 15.0;
/// The number to begin with; without it, one from the clock.
const SEED: &str = "FUZZ_SEED";
/// How many inputs; overrides the time.
const RUNS: &str = "FUZZ_RUNS";
/// Longer files are read and not changed: they take long, and what is in them is mostly text.
const CHANGED_BYTES_MAX: usize = 4 * 1024;
/// Inputs are cut to this length.
const INPUT_BYTES_MAX: usize = 8 * 1024;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The target's own corpus, and the folders of fixtures it starts from.
pub(crate) fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let own = format!("tests/fuzz/corpus/{}", target.name);
    let folders = std::iter::once(own.as_str()).chain(target.seeds.iter().copied());
    let mut files: Vec<PathBuf> = folders
        .flat_map(|folder| std::fs::read_dir(project().join(folder)).into_iter().flatten())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort_unstable();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

pub(crate) fn run(target: &Target) {
    let corpus = corpus(target);
    for (path, bytes) in &corpus {
        let told = || format!("the corpus file {}", path.display());
        guarded(target, bytes, told);
    }
    let short = corpus.iter().filter(|(_, bytes)| bytes.len() <= CHANGED_BYTES_MAX);
    let inputs: Vec<&[u8]> = short.map(|(_, bytes)| bytes.as_slice()).collect();
    assert!(!inputs.is_empty(), "{} has no short file in its corpus", target.name);
    let seed = number(SEED).unwrap_or_else(fresh_seed);
    let runs: Option<u64> = number(RUNS);
    let until = Instant::now() + Duration::from_secs_f64(number(SECONDS).unwrap_or(SECONDS_DEFAULT));
    let mut tried = 0_u64;
    while runs.map_or_else(|| Instant::now() < until, |runs| tried < runs) {
        let input_seed = seed.wrapping_add(tried);
        let mut input = mutated(&mut Random::new(input_seed), &inputs, target.words);
        input.truncate(INPUT_BYTES_MAX);
        let command = || format!("{SEED}={input_seed} {RUNS}=1 cargo test --test fuzz {}", target.name);
        guarded(target, &input, command);
        tried += 1;
    }
    println!("{}: {} files and {tried} changed inputs from seed {seed}, nothing found", target.name, corpus.len());
}

fn fresh_seed() -> u64 {
    u64::from_le_bytes(platform_api::clock::random_bytes::<8>()) >> 16
}

/// Tells how to see a failure again, and keeps its input.
fn guarded(target: &Target, input: &[u8], told: impl Fn() -> String) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.check)(input))) else { return };
    let kept = std::env::temp_dir().join(format!("fuzz-{}-{:08x}", target.name, crc32fast::hash(input)));
    let _ = std::fs::write(&kept, input);
    eprintln!("{} fails on {}; again: {}", target.name, kept.display(), told());
    eprintln!("{}", String::from_utf8_lossy(&input[..input.len().min(2_000)]));
    resume_unwind(panic);
}
