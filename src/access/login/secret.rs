//! What speaks for a session: 256 random bits, then each next one made of the one before with a key that only this daemon has.
//!
//! So a browser whose answer got lost is given the same secret again, and nobody else can know what comes next. A tag tells a
//! secret of ours from anybody's guess without asking whoever keeps the sessions.

use aws_lc_rs::{aead, digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::clock;
use crate::domain::session::SecretHash;

const SECRET_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// A session's secret. Not printable.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<[u8; SECRET_BYTES]>);

impl Secret {
    /// The form in which it is kept.
    pub(super) fn hash(&self) -> SecretHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &*self.0).as_ref());
        hash
    }
}

/// Makes secrets.
pub(super) struct Mint {
    next: hmac::Key,
    tag: hmac::Key,
}

impl Mint {
    pub(super) fn new(next: &[u8; 32], tag: &[u8; 32]) -> Mint {
        let key = |bytes| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        Mint { next: key(next), tag: key(tag) }
    }

    pub(super) fn fresh(&self) -> Secret {
        Secret(Zeroizing::new(clock::random_bytes()))
    }

    /// The one that follows: the same each time.
    pub(super) fn after(&self, secret: &Secret) -> Secret {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        bytes.copy_from_slice(hmac::sign(&self.next, &*secret.0).as_ref());
        Secret(bytes)
    }

    /// As a cookie has it.
    pub(super) fn write(&self, secret: &Secret) -> String {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES + TAG_BYTES]);
        bytes[..SECRET_BYTES].copy_from_slice(&*secret.0);
        bytes[SECRET_BYTES..].copy_from_slice(&hmac::sign(&self.tag, &*secret.0).as_ref()[..TAG_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes.as_slice())
    }

    /// A secret of ours.
    pub(super) fn read(&self, text: &str) -> Option<Secret> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        let (secret, tag) = bytes.split_at_checked(SECRET_BYTES)?;
        let expected = hmac::sign(&self.tag, secret);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..TAG_BYTES], tag).ok()?;
        secret.try_into().ok().map(|secret| Secret(Zeroizing::new(secret)))
    }
}

/// Closes what others keep for us, so that they can neither read nor change it.
pub(super) struct Seal(aead::LessSafeKey);

impl Seal {
    #[allow(clippy::expect_used, reason = "the key has the length that the cipher takes")]
    pub(super) fn new(key: &[u8; 32]) -> Seal {
        Seal(aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, key).expect("32 bytes")))
    }

    /// For `purpose` alone; empty when it cannot be sealed, which nothing opens.
    pub(super) fn close(&self, purpose: &str, plain: &[u8]) -> String {
        let nonce: [u8; aead::NONCE_LEN] = clock::random_bytes();
        let mut bytes = plain.to_vec();
        let aad = aead::Aad::from(purpose.as_bytes());
        let Ok(()) = self.0.seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), aad, &mut bytes) else {
            return String::new();
        };
        URL_SAFE_NO_PAD.encode([nonce.as_slice(), &bytes].concat())
    }

    /// What was closed for `purpose`.
    pub(super) fn open(&self, purpose: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(aead::NONCE_LEN)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.0.open_in_place(nonce, aead::Aad::from(purpose.as_bytes()), &mut sealed).ok()?.len();
        sealed.truncate(plain);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_successor_and_no_forger() {
        let mint = Mint::new(&[1; 32], &[2; 32]);
        let first = mint.fresh();
        let text = mint.write(&first);
        assert_eq!(text.len(), 64);
        assert_eq!(mint.read(&text).unwrap().hash(), first.hash());
        let second = mint.after(&first);
        assert_eq!(second.hash(), mint.after(&first).hash());
        assert_ne!(second.hash(), first.hash());
        assert_ne!(second.hash(), Mint::new(&[3; 32], &[2; 32]).after(&first).hash());
        assert_ne!(first.hash(), mint.fresh().hash());

        let mut forged = text.clone().into_bytes();
        forged[0] = if forged[0] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        for text in [forged.as_str(), "", "AAAA", &text[..60], &format!("{text}AAAA")] {
            assert!(mint.read(text).is_none(), "{text}");
        }
        assert!(Mint::new(&[1; 32], &[3; 32]).read(&text).is_none());
    }

    #[test]
    fn what_is_sealed_opens_for_its_purpose_only() {
        let seal = Seal::new(&[1; 32]);
        let closed = seal.close("login", b"state");
        assert_eq!(seal.open("login", &closed).unwrap().as_slice(), b"state");
        assert_ne!(seal.close("login", b"state"), closed, "a nonce of its own");
        assert!(seal.open("session", &closed).is_none());
        assert!(Seal::new(&[2; 32]).open("login", &closed).is_none());
        for text in ["", "AAAA", &closed[..closed.len() - 2], "é"] {
            assert!(seal.open("login", text).is_none(), "{text}");
        }
    }
}
