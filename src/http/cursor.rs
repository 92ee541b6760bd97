//! Where a list goes on: opaque to clients, bound to one list of one tenant, and tamper-evident.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::{Code, Problem};

/// Bytes of the seal.
const TAG_BYTES: usize = 16;
/// Longest cursor that is looked at.
const CURSOR_BYTES_MAX: usize = 256;

/// Seals and opens cursors.
pub struct Sealer {
    key: hmac::Key,
}

impl Sealer {
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Sealer {
        Sealer { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// `list` is the operation's id; `owner` the tenant's id, or `platform`.
    #[must_use]
    pub fn seal(&self, list: &str, owner: &str, position: &str) -> String {
        let tag = hmac::sign(&self.key, &bound(list, owner, position));
        let mut bytes = tag.as_ref()[..TAG_BYTES].to_vec();
        bytes.extend_from_slice(position.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position inside.
    ///
    /// # Errors
    /// [`Code::InvalidCursor`] for anything that [`seal`](Sealer::seal) did not make for this list and owner.
    pub fn open(&self, list: &str, owner: &str, cursor: &str) -> Result<String, Problem> {
        self.opened(list, owner, cursor).ok_or_else(|| Problem::new(Code::InvalidCursor))
    }

    fn opened(&self, list: &str, owner: &str, cursor: &str) -> Option<String> {
        if cursor.len() > CURSOR_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (tag, position) = bytes.split_at_checked(TAG_BYTES)?;
        let position = String::from_utf8(position.to_vec()).ok()?;
        let expected = hmac::sign(&self.key, &bound(list, owner, &position));
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..TAG_BYTES], tag).ok()?;
        Some(position)
    }
}

/// What is sealed: each part with its length, so that no two triples look the same.
fn bound(list: &str, owner: &str, position: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + list.len() + owner.len() + position.len());
    for part in [list, owner, position] {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Sealer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_opens_where_it_was_sealed_and_nowhere_else() {
        let sealer = Sealer::new(&[7; 32]);
        let cursor = sealer.seal("listAlerts", "tenant-a", "42");
        assert_eq!(sealer.open("listAlerts", "tenant-a", &cursor).unwrap(), "42");
        for (list, owner) in [("listAlerts", "tenant-b"), ("listTenants", "tenant-a"), ("listAlertst", "enant-a")] {
            assert_eq!(sealer.open(list, owner, &cursor).unwrap_err().code, Code::InvalidCursor, "{list} {owner}");
        }
        assert!(Sealer::new(&[8; 32]).open("listAlerts", "tenant-a", &cursor).is_err());
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let sealer = Sealer::new(&[7; 32]);
        let cursor = sealer.seal("l", "o", "1790000000|x");
        let bytes = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(sealer.open("l", "o", &URL_SAFE_NO_PAD.encode(changed)).is_err(), "byte {at} bit {bit}");
            }
        }
        for bad in ["", "AAAA", "not base64!", &cursor[1..], &"A".repeat(300)] {
            assert!(sealer.open("l", "o", bad).is_err(), "{bad}");
        }
    }
}
