//! Our own keys: `pak_<environment>_<id><…>`, made here and recognised here.
//!
//! `pak_live_` + 12 characters that name the key publicly + `_` + 30 characters of secret (178 bits) + 6 of checksum.
//! The checksum tells a typo from a wrong key without looking anything up; it protects nothing. What is stored is a
//! fast keyed hash: with a secret of this size there is nothing a slow one could add.

use secrecy::SecretString;
use zeroize::Zeroizing;

pub use super::pepper::Pepper;
use crate::clock;

/// What every key begins with; scanners for leaked secrets look for it.
pub const PREFIX: &str = "pak_";
/// The environment of keys that say nothing else.
pub const LIVE: &str = "live";

const ENVIRONMENT_MAX: usize = 8;
const ID_LENGTH: usize = 12;
const SECRET_LENGTH: usize = 30;
const CHECKSUM_LENGTH: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key that was just made: the only moment its secret exists outside its owner's hands.
#[derive(Debug)]
pub struct Minted {
    /// The public part, which names the key in the catalogue, logs and rules.
    pub id: String,
    /// The whole key, to be shown once.
    pub secret: SecretString,
    /// HMAC-SHA-256 of the whole key under the pepper: what is stored.
    pub hash: [u8; 32],
}

/// What a well-formed key says about itself. It proves nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub environment: &'a str,
    pub id: &'a str,
}

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    #[error("not of the form of an API key")]
    Form,
    #[error("the API key's checksum does not match: it was mistyped")]
    Checksum,
}

/// Makes a key. `environment` is its visible label, as `live`: its letters and digits in lower case, 8 at most.
#[must_use]
pub fn mint(pepper: &Pepper, environment: &str) -> Minted {
    mint_again(pepper, environment, &base62_random::<ID_LENGTH>())
}

/// Another secret for the key that `id` names publicly.
#[must_use]
pub fn mint_again(pepper: &Pepper, environment: &str, id: &str) -> Minted {
    let secret = base62_random::<SECRET_LENGTH>();
    let mut key = Zeroizing::new(String::with_capacity(96));
    for part in [PREFIX, &label(environment), "_", id, "_", &secret] {
        key.push_str(part);
    }
    let checksum = checksum(&key);
    key.push_str(&checksum);
    Minted { id: id.to_string(), hash: pepper.hash(&key), secret: SecretString::from(key.as_str()) }
}

/// Reads a key's public part and refuses typos.
///
/// # Errors
/// [`NotAKey`].
pub fn parse(text: &str) -> Result<Parsed<'_>, NotAKey> {
    let rest = text.strip_prefix(PREFIX).ok_or(NotAKey::Form)?;
    let (environment, rest) = rest.split_once('_').ok_or(NotAKey::Form)?;
    let (id, secret) = rest.split_once('_').ok_or(NotAKey::Form)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let well_formed = (1..=ENVIRONMENT_MAX).contains(&environment.len())
        && environment.bytes().all(plain)
        && id.len() == ID_LENGTH
        && secret.len() == SECRET_LENGTH + CHECKSUM_LENGTH
        && id.bytes().chain(secret.bytes()).all(|byte| byte.is_ascii_alphanumeric());
    if !well_formed {
        return Err(NotAKey::Form);
    }
    let (summed, found) = text.split_at(text.len() - CHECKSUM_LENGTH);
    if checksum(summed) != found { Err(NotAKey::Checksum) } else { Ok(Parsed { environment, id }) }
}

/// What a text of a key's beginning says publicly: everything before the secret.
pub(super) fn public_part(text: &str) -> Option<&str> {
    let (_, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let (_, secret) = rest.split_once('_')?;
    text.len().checked_sub(secret.len() + 1).and_then(|end| text.get(..end))
}

fn label(environment: &str) -> String {
    let plain = environment.chars().filter(char::is_ascii_alphanumeric).take(ENVIRONMENT_MAX);
    let label = plain.collect::<String>().to_ascii_lowercase();
    if label.is_empty() { LIVE.into() } else { label }
}

/// CRC-32 in six digits to the base 62, most significant first.
fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// Each character equally likely: bytes that would favour some are drawn again.
fn base62_random<const LENGTH: usize>() -> Zeroizing<String> {
    const FAIR_BELOW: u8 = 62 * 4;
    let mut text = Zeroizing::new(String::with_capacity(LENGTH));
    while text.len() < LENGTH {
        let bytes = Zeroizing::new(clock::random_bytes::<LENGTH>());
        let fair = bytes.iter().filter(|byte| **byte < FAIR_BELOW).take(LENGTH - text.len());
        fair.for_each(|byte| text.push(char::from(BASE62[usize::from(byte % 62)])));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    fn pepper() -> Pepper {
        Pepper::from_bytes(&[9; 32])
    }

    #[test]
    fn a_minted_key_is_recognised_and_hashed_whole() {
        let minted = mint(&pepper(), "live");
        let key = minted.secret.expose_secret();
        assert_eq!(key.len(), "pak_live_".len() + 12 + 1 + 36);
        assert_eq!(parse(key), Ok(Parsed { environment: "live", id: &minted.id }));
        assert_eq!(minted.hash, pepper().hash(key));
        assert_ne!(minted.hash, Pepper::from_bytes(&[8; 32]).hash(key));
        assert!(!format!("{minted:?}").contains(key), "Debug shows no secret");
        let again = mint_again(&pepper(), "live", &minted.id);
        assert_eq!(parse(again.secret.expose_secret()), parse(key));
        assert_ne!(again.hash, minted.hash);
    }

    #[test]
    fn an_environment_is_a_short_plain_label() {
        for (environment, label) in [("live", "live"), ("Test-1", "test1"), ("", "live"), ("_é_", "live")] {
            let minted = mint(&pepper(), environment);
            assert_eq!(parse(minted.secret.expose_secret()).unwrap().environment, label);
        }
        let minted = mint(&pepper(), "production-eu-1");
        assert_eq!(parse(minted.secret.expose_secret()).unwrap().environment, "producti");
    }

    #[test]
    fn keys_do_not_repeat_and_use_every_character() {
        let keys = (0..500).map(|_| mint(&pepper(), LIVE)).collect::<Vec<_>>();
        assert_eq!(keys.iter().map(|key| &key.id).collect::<HashSet<_>>().len(), keys.len());
        let used = keys.iter().flat_map(|key| key.id.bytes()).collect::<HashSet<_>>();
        assert_eq!(used.len(), 62);
    }

    #[test]
    fn the_checksum_is_crc_32_in_base_62() {
        // CRC-32 of "123456789" is 0xCBF43926 = 3421780262 = 3·62^5 + 45·62^4 + 35·62^3 + 27·62^2 + 22·62 + 14.
        assert_eq!(checksum("123456789"), "3jZRME");
    }

    #[test]
    fn what_is_not_a_key_is_refused_by_its_form() {
        let minted = mint(&pepper(), LIVE);
        let key = minted.secret.expose_secret();
        let longer = format!("{key}0");
        let others = ["", "pak_", "pak__", "pak_live_", "sk-1234", &key[1..], &key[..key.len() - 1], &longer];
        for text in others {
            assert_eq!(parse(text), Err(NotAKey::Form), "{text}");
        }
        assert_eq!(parse(&key.replace("_live_", "_LIVE_")), Err(NotAKey::Form));
        assert_eq!(parse(&key.replace("_live_", "_test_")), Err(NotAKey::Checksum));
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_always_noticed(at in 0..58_usize, other in "[0-9A-Za-z]") {
            let minted = mint(&pepper(), LIVE);
            let key = minted.secret.expose_secret();
            let mut typo = key.to_owned();
            typo.replace_range(at..=at, &other);
            prop_assert!(typo == key || parse(&typo).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(pak_)?\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
