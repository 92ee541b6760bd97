//! Keys that this process has itself: the newest wraps, all of them unwrap.
//!
//! Written as base64 of 32 bytes each, between lines or commas, the newest last; a line that begins with `#` is a remark.
//! A key's name is derived from the key, so the same key has the same name wherever it is kept.

use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{DataKey, KEY_BYTES, KekError, Wrapped, open, seal_in_place};
use crate::domain::secret::canonical;

/// The form of what we wrap.
const FORM: u8 = 1;

/// Some keys, at least one.
pub(super) struct Ring {
    keys: Vec<(String, DataKey)>,
}

impl Ring {
    /// # Errors
    /// Which of them is none, by its number; never any of it.
    pub(super) fn read(text: &str) -> Result<Ring, String> {
        let lines = text.split(['\n', ',']).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(lines) {
            let bytes = STANDARD.decode(line).ok().map(Zeroizing::new);
            let key = bytes.and_then(DataKey::of).ok_or_else(|| format!("key {number} is not base64 of 32 bytes"))?;
            keys.push((name(key.bytes()), key));
        }
        if keys.is_empty() { Err("holds no key".into()) } else { Ok(Ring { keys }) }
    }

    /// A new key, as [`read`](Ring::read) reads it.
    pub(super) fn new_key() -> Zeroizing<String> {
        let mut line = Zeroizing::new(String::with_capacity(2 * KEY_BYTES));
        STANDARD.encode_string(DataKey::random().bytes(), &mut line);
        line.push('\n');
        line
    }

    pub(super) fn newest(&self) -> &str {
        self.keys.last().map_or("", |(name, _)| name.as_str())
    }

    pub(super) fn wrap(&self, key: &DataKey, context: &[u8]) -> Result<Wrapped, KekError> {
        let failed = || KekError::Unavailable("the key could not be used".into());
        let (name, kek) = self.keys.last().ok_or_else(failed)?;
        let mut bytes = key.bytes().to_vec();
        let nonce = seal_in_place(kek.bytes(), &bound(name, context), &mut bytes).ok_or_else(failed)?;
        Ok(Wrapped { kek: name.clone(), bytes: [&[FORM], nonce.as_slice(), &bytes].concat() })
    }

    pub(super) fn unwrap(&self, wrapped: &Wrapped, context: &[u8]) -> Result<DataKey, KekError> {
        let known = self.keys.iter().find(|(name, _)| *name == wrapped.kek);
        let (name, kek) = known.ok_or_else(|| KekError::UnknownKey(wrapped.kek.clone()))?;
        let [FORM, rest @ ..] = wrapped.bytes.as_slice() else { return Err(KekError::Refused) };
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or(KekError::Refused)?;
        let plain = open(kek.bytes(), &bound(name, context), *nonce, ciphertext);
        plain.and_then(DataKey::of).ok_or(KekError::Refused)
    }
}

fn bound(name: &str, context: &[u8]) -> Vec<u8> {
    canonical("platform-api/key-encryption/v1", &[name.as_bytes(), context])
}

fn name(key: &[u8; KEY_BYTES]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"platform-api/key-name/v1");
    let hex: String = tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("local:{hex}")
}
