//! One target, named by `FUZZ_TARGET`, under libFuzzer.

#![no_main]

#[path = "../json.rs"]
mod json;
#[path = "../targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    targets::ALL.iter().find(|target| target.name == name).expect("a target of this name").check
});

fuzz_target!(|input: &[u8]| CHECK(input));
