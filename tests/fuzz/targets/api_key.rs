//! API keys as text.

use platform_api::access::Pepper;
use platform_api::access::api_key::{self, Parsed};
use secrecy::ExposeSecret;

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "api_key",
    check,
    seeds: &[],
    words: &["pak_", "live", "_", "pak_live_", "test", "A", "0", "\u{e9}"],
};

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let label: String = text.chars().take(20).collect();
    let minted = api_key::mint(&Pepper::from_bytes(&[9; 32]), &label);
    let key = minted.secret.expose_secret();
    assert_eq!(api_key::parse(key).expect("a key that was just made").id, minted.id);
    is_noticed(key, input);
    let Ok(Parsed { environment, id }) = api_key::parse(text) else { return };
    assert!(text.starts_with(&format!("pak_{environment}_{id}")), "{text}");
    assert_eq!(text.len(), 4 + environment.len() + 1 + 12 + 1 + 36);
    assert!((1..=8).contains(&environment.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    is_noticed(text, input);
}

/// One character of a key, replaced by any other, makes it none.
fn is_noticed(key: &str, input: &[u8]) {
    let at = input.first().map_or(0, |byte| usize::from(*byte) % key.len());
    let other = input.last().map_or(b'x', |byte| byte % 128);
    let mut typo = key.as_bytes().to_vec();
    if typo[at] != other {
        typo[at] = other;
        let typo = String::from_utf8(typo).expect("ASCII");
        assert!(api_key::parse(&typo).is_err(), "{typo} instead of {key}");
    }
}
