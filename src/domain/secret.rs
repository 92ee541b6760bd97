//! Secrets at rest: what binds a ciphertext to its row, and what may be shown of what is inside.
//!
//! A secret is encrypted under its tenant's data key, the data key under a key of the platform's (see [`crate::vault`]).
//! Both encryptions authenticate a context beside the bytes: [`Binding`] names tenant, provider, secret, the secret's
//! version and the data key, so a ciphertext that is moved to another row, another tenant or an earlier version cannot be
//! read there. Pure: nothing here encrypts, and no plain text is kept.

use aws_lc_rs::hmac;

use super::aws_credentials::AwsCredentials;
use super::ids::{ProviderId, SecretId, TenantId};
use super::time::Timestamp;

/// Fewest and most bytes of a secret.
pub const SECRET_BYTES_MIN: usize = 16;
pub const SECRET_BYTES_MAX: usize = 4_096;
/// Characters that are shown of a secret's end.
const SHOWN_CHARACTERS: usize = 4;
/// Bytes of a fingerprint.
const FINGERPRINT_BYTES: usize = 8;

/// Where a ciphertext belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    pub tenant: TenantId,
    pub provider: ProviderId,
    pub secret: SecretId,
    /// Of the secret: 1 for the first value, one more for each that replaces it.
    pub version: i64,
}

impl Binding {
    /// The context that is authenticated with the ciphertext, under the data key of this version.
    #[must_use]
    pub fn context(&self, data_key: i64) -> Vec<u8> {
        canonical(
            "platform-api/provider-secret/v1",
            &[
                self.tenant.0.as_bytes(),
                self.provider.0.as_bytes(),
                self.secret.0.as_bytes(),
                &self.version.to_be_bytes(),
                &data_key.to_be_bytes(),
            ],
        )
    }
}

/// The context of a tenant's data key.
#[must_use]
pub fn data_key_context(tenant: TenantId, version: i64) -> Vec<u8> {
    canonical("platform-api/data-key/v1", &[tenant.0.as_bytes(), &version.to_be_bytes()])
}

/// One encoding for one list of fields: each with its length before it, so that none can lend bytes to its neighbour.
#[must_use]
pub fn canonical(purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in std::iter::once(&purpose.as_bytes()).chain(fields) {
        bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

/// A ciphertext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Version of the data key.
    pub data_key: i64,
    pub nonce: [u8; 12],
    /// With its tag.
    pub ciphertext: Vec<u8>,
}

/// A tenant's data key, as it may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    pub version: i64,
    /// The key of the platform's that it is encrypted under.
    pub kek: String,
    pub wrapped: Vec<u8>,
    pub created_at: Timestamp,
}

/// A secret, as it may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSecret {
    pub id: SecretId,
    pub version: i64,
    pub sealed: Sealed,
    pub shown: Shown,
    pub set_at: Timestamp,
}

/// What is shown of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub last_four: String,
    /// The same for the same secret of the same tenant, and telling nothing about it.
    pub fingerprint: String,
}

impl Shown {
    /// Of `secret`, with the platform's key for fingerprints.
    #[must_use]
    pub fn of(secret: &str, key: &[u8; 32], tenant: TenantId) -> Shown {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let fields: [&[u8]; 2] = [tenant.0.as_bytes(), secret.as_bytes()];
        let tag = hmac::sign(&key, &canonical("platform-api/fingerprint/v1", &fields));
        let fingerprint = tag.as_ref().iter().take(FINGERPRINT_BYTES).map(|byte| format!("{byte:02x}")).collect();
        // Of AWS credentials, the part that is no secret.
        let credentials = AwsCredentials::read(secret);
        let end = credentials.as_ref().map_or(secret, |credentials| credentials.access_key_id.as_str());
        let skipped = end.chars().count().saturating_sub(SHOWN_CHARACTERS);
        Shown { last_four: end.chars().skip(skipped).collect(), fingerprint }
    }
}

/// What is wrong with a secret, if anything; never any of it.
#[must_use]
pub fn problem(secret: &str) -> Option<&'static str> {
    let fits = (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len());
    // It goes into a header.
    let plain = secret.bytes().all(|byte| byte.is_ascii_graphic());
    (!fits || !plain).then_some("must be 16 to 4096 visible ASCII characters without spaces")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn binding(number: u128) -> Binding {
        let id = Uuid::from_u128(number);
        Binding { tenant: TenantId(id), provider: ProviderId(id), secret: SecretId(id), version: 1 }
    }

    #[test]
    fn every_part_of_a_binding_makes_another_context() {
        let one = binding(1);
        let other = Uuid::from_u128(2);
        let contexts: BTreeSet<Vec<u8>> = [
            one.context(1),
            one.context(2),
            Binding { tenant: TenantId(other), ..one }.context(1),
            Binding { provider: ProviderId(other), ..one }.context(1),
            Binding { secret: SecretId(other), ..one }.context(1),
            Binding { version: 2, ..one }.context(1),
            data_key_context(one.tenant, 1),
            data_key_context(one.tenant, 2),
            data_key_context(TenantId(other), 1),
        ]
        .into();
        assert_eq!(contexts.len(), 9);
    }

    #[test]
    fn a_secret_shows_its_end_and_a_fingerprint_of_its_tenant() {
        let (one, other) = (binding(1).tenant, binding(2).tenant);
        let shown = Shown::of("sk-0123456789abcdef", &[7; 32], one);
        assert_eq!(shown.last_four, "cdef");
        assert_eq!(shown.fingerprint.len(), 16);
        assert_eq!(shown, Shown::of("sk-0123456789abcdef", &[7; 32], one));
        let pair = r#"{"accessKeyId":"AKIAIOSFODNN7EXAMPLE","secretAccessKey":"wJalrXUtnFEMI/K7MDENG+canary"}"#;
        assert_eq!(Shown::of(pair, &[7; 32], one).last_four, "MPLE");
        for another in [
            Shown::of("sk-0123456789abcdeg", &[7; 32], one),
            Shown::of("sk-0123456789abcdef", &[8; 32], one),
            Shown::of("sk-0123456789abcdef", &[7; 32], other),
        ] {
            assert_ne!(another.fingerprint, shown.fingerprint);
        }
    }

    #[test]
    fn only_what_fits_a_header_is_a_secret() {
        assert_eq!(problem("sk-0123456789abc"), None);
        assert_eq!(problem(&"x".repeat(SECRET_BYTES_MAX)), None);
        let long = "x".repeat(SECRET_BYTES_MAX + 1);
        for text in ["", "short", "sk-0123456789 abcdef", "sk-0123456789\nabcdef", "sk-0123456789äbcdef", &long] {
            assert!(problem(text).is_some(), "{text}");
        }
    }

    proptest! {
        /// No two lists of fields share an encoding.
        #[test]
        fn an_encoding_stands_for_one_list(
            one in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..4),
            other in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..4),
        ) {
            let encode = |list: &[Vec<u8>]| {
                canonical("p", &list.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            prop_assert_eq!(one == other, encode(&one) == encode(&other));
        }
    }
}
