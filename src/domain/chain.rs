//! The audit chain: canonical bytes, link, verify.
//!
//! A record is RFC 8785 canonical JSON without floats; its hash is `SHA-256(0x00 ‖ bytes)`, which is also the leaf hash
//! of an RFC 6962 tree; `prev` is the hash of the record before. The hashed bytes are stored as they were and never
//! re-made for verification. What may be erased (payloads) sits beside the chain: the record holds
//! `SHA-256(salt ‖ payload)`, so erasing payload and salt leaves the chain whole and the payload unguessable.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// `v` of the records this code writes.
pub const VERSION: i64 = 1;

/// SHA-256 of a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// `prev` of the first record.
    pub const NONE: Hash = Hash([0; 32]);

    #[must_use]
    pub fn of_record(bytes: &[u8]) -> Hash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&[0]);
        context.update(bytes);
        Hash::from_digest(&context.finish())
    }

    fn from_digest(digest: &digest::Digest) -> Hash {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Hash(bytes)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// The last record of a chain: how many there are, and the newest one's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Sequence number of the newest record; 0 for an empty chain. The first record has 1.
    pub seq: i64,
    pub hash: Hash,
}

impl Head {
    pub const EMPTY: Head = Head { seq: 0, hash: Hash::NONE };
}

/// What happened, before it is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who: `platform`, `apiKey:<id>`, `user:<subject>`, or `system` for what the daemon does by itself.
    pub actor: String,
    /// What, as `noun.verb`: `quota.replaced`, `usage.committed`, `access.denied`.
    pub action: String,
    /// To what: `tenant:<id>`, `quota:<id>`, …
    pub target: String,
    pub outcome: EntryOutcome,
    /// Empty when no request caused it.
    pub request_id: String,
    /// A JSON object as text, kept beside the chain.
    pub payload: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryOutcome {
    Success,
    Denied,
}

impl EntryOutcome {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EntryOutcome::Success => "success",
            EntryOutcome::Denied => "denied",
        }
    }
}

/// One link, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub seq: i64,
    pub at: Timestamp,
    pub action: String,
    /// The canonical JSON that was hashed.
    pub bytes: Vec<u8>,
    pub hash: Hash,
    /// Beside the chain; erasable together with `salt`.
    pub payload: String,
    pub salt: [u8; 32],
}

/// The record's fields in the order RFC 8785 sorts them, which is the order serde writes them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Canonical<'a> {
    action: std::borrow::Cow<'a, str>,
    actor: std::borrow::Cow<'a, str>,
    at: std::borrow::Cow<'a, str>,
    data_commit: std::borrow::Cow<'a, str>,
    outcome: std::borrow::Cow<'a, str>,
    prev: std::borrow::Cow<'a, str>,
    request_id: std::borrow::Cow<'a, str>,
    seq: i64,
    target: std::borrow::Cow<'a, str>,
    tenant: std::borrow::Cow<'a, str>,
    v: i64,
}

/// Links `entry` behind `head`. `chain` names the log: a tenant's id, or `platform`.
#[must_use]
pub fn link(head: Head, chain: &str, entry: Entry, at: Timestamp, salt: [u8; 32]) -> Record {
    let seq = head.seq + 1;
    let canonical = Canonical {
        action: entry.action.as_str().into(),
        actor: entry.actor.into(),
        at: at.to_string().into(),
        data_commit: commitment(&salt, &entry.payload).to_string().into(),
        outcome: entry.outcome.name().into(),
        prev: head.hash.to_string().into(),
        request_id: entry.request_id.into(),
        seq,
        target: entry.target.into(),
        tenant: chain.into(),
        v: VERSION,
    };
    // A struct of strings and integers always serializes; an empty record could never verify.
    let bytes = serde_json::to_vec(&canonical).unwrap_or_default();
    Record { seq, at, action: entry.action, hash: Hash::of_record(&bytes), bytes, payload: entry.payload, salt }
}

fn commitment(salt: &[u8; 32], payload: &str) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt);
    context.update(payload.as_bytes());
    Hash::from_digest(&context.finish())
}

/// One stored link, as verification reads it. `payload` and `salt` are `None` once erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub seq: i64,
    pub bytes: Vec<u8>,
    pub hash: [u8; 32],
    pub payload: Option<String>,
    pub salt: Option<Vec<u8>>,
}

/// The first place where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub seq: i64,
    pub reason: &'static str,
}

/// Recomputes a chain link by link, from the first record; feed it in order.
#[derive(Debug, Clone)]
pub struct Verifier {
    chain: String,
    head: Head,
}

impl Verifier {
    #[must_use]
    pub fn new(chain: &str) -> Verifier {
        Verifier { chain: chain.to_owned(), head: Head::EMPTY }
    }

    /// The last record that held.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Checks the next link; answers what it records, as `noun.verb`.
    ///
    /// # Errors
    /// [`Broken`], naming the sequence number where the chain stops to hold.
    pub fn check(&mut self, stored: &Stored) -> Result<String, Broken> {
        let seq = self.head.seq + 1;
        let broken = |reason| Err(Broken { seq, reason });
        if stored.seq != seq {
            return broken("the record is missing");
        }
        let hash = Hash::of_record(&stored.bytes);
        if hash.0 != stored.hash {
            return broken("the stored hash is not the hash of the stored bytes");
        }
        let Ok(canonical) = serde_json::from_slice::<Canonical<'_>>(&stored.bytes) else {
            return broken("the bytes are not a record");
        };
        if serde_json::to_vec(&canonical).ok().as_deref() != Some(&stored.bytes) {
            return broken("the bytes are not canonical");
        }
        if canonical.seq != seq {
            return broken("the record carries another sequence number");
        }
        if canonical.tenant != self.chain {
            return broken("the record belongs to another chain");
        }
        if canonical.prev != self.head.hash.to_string() {
            return broken("the record does not follow the one before");
        }
        match (&stored.payload, &stored.salt) {
            (None, None) => {}
            (Some(payload), Some(salt)) => {
                let Ok(salt) = <[u8; 32]>::try_from(salt.as_slice()) else {
                    return broken("the salt has the wrong length");
                };
                if canonical.data_commit != commitment(&salt, payload).to_string() {
                    return broken("the payload is not the one that was committed to");
                }
            }
            // A payload whose salt is gone could say anything; a salt whose payload is gone lets it be guessed.
            _ => return broken("the payload and its salt were not erased together"),
        }
        self.head = Head { seq, hash };
        Ok(canonical.action.into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain_of(count: i64) -> Vec<Stored> {
        let mut head = Head::EMPTY;
        (0..count)
            .map(|number| {
                let entry = Entry {
                    actor: "platform".into(),
                    action: "quota.replaced".into(),
                    target: format!("quota:{number}"),
                    outcome: EntryOutcome::Success,
                    request_id: String::new(),
                    payload: format!("{{\"number\":{number}}}"),
                };
                let record = link(head, "t", entry, Timestamp(number), [7; 32]);
                head = Head { seq: record.seq, hash: record.hash };
                Stored {
                    seq: record.seq,
                    bytes: record.bytes,
                    hash: record.hash.0,
                    payload: Some(record.payload),
                    salt: Some(record.salt.to_vec()),
                }
            })
            .collect()
    }

    fn verify(chain: &[Stored]) -> Result<i64, Broken> {
        let mut verifier = Verifier::new("t");
        chain.iter().try_for_each(|stored| verifier.check(stored).map(drop)).map(|()| verifier.head().seq)
    }

    #[test]
    fn a_whole_chain_verifies_with_and_without_its_payloads() {
        let mut chain = chain_of(5);
        assert_eq!(verify(&chain), Ok(5));
        chain[2].payload = None;
        chain[2].salt = None;
        assert_eq!(verify(&chain), Ok(5));
    }

    #[test]
    fn the_canonical_bytes_are_sorted_and_stable() {
        let first = String::from_utf8(chain_of(1).remove(0).bytes).unwrap();
        let sorted: serde_json::Value = serde_json::from_str(&first).unwrap();
        let keys: std::collections::BTreeSet<_> = sorted.as_object().unwrap().keys().cloned().collect();
        let mut at = 0;
        for key in keys {
            let found = first.find(&format!("\"{key}\":")).unwrap();
            assert!(found >= at, "{key} is out of order");
            at = found;
        }
    }

    #[test]
    fn every_single_bit_is_covered() {
        let chain = chain_of(3);
        for (index, stored) in chain.iter().enumerate() {
            for at in 0..stored.bytes.len() {
                let mut changed = chain.clone();
                changed[index].bytes[at] ^= 1;
                assert_eq!(verify(&changed).unwrap_err().seq, stored.seq);
            }
            for at in 0..stored.payload.as_ref().unwrap().len() {
                let mut changed = chain.clone();
                let mut payload = changed[index].payload.take().unwrap().into_bytes();
                payload[at] ^= 1;
                changed[index].payload = Some(String::from_utf8(payload).unwrap());
                assert_eq!(verify(&changed).unwrap_err().seq, stored.seq);
            }
        }
    }

    #[test]
    fn a_missing_a_swapped_and_a_rehashed_record_are_named() {
        let chain = chain_of(4);
        let mut missing = chain.clone();
        missing.remove(1);
        assert_eq!(verify(&missing).unwrap_err().seq, 2);

        let mut swapped = chain.clone();
        swapped.swap(1, 2);
        assert_eq!(verify(&swapped).unwrap_err().seq, 2);

        let mut rehashed = chain;
        rehashed[1].bytes[12] ^= 1;
        rehashed[1].hash = Hash::of_record(&rehashed[1].bytes).0;
        // The forger fixed its own hash, so the link after it gives it away, unless the bytes no longer parse.
        assert!([2, 3].contains(&verify(&rehashed).unwrap_err().seq));
    }

    #[test]
    fn each_thing_that_breaks_a_chain_is_named() {
        let whole = chain_of(2);
        let reason = |change: &dyn Fn(&mut Stored)| {
            let mut chain = whole.clone();
            change(&mut chain[1]);
            verify(&chain).unwrap_err().reason
        };
        let forged = |from: &'static str, to: &'static str| {
            reason(&move |stored: &mut Stored| {
                let text = String::from_utf8(stored.bytes.clone()).unwrap();
                assert!(text.contains(from), "{text}");
                stored.bytes = text.replace(from, to).into_bytes();
                stored.hash = Hash::of_record(&stored.bytes).0;
            })
        };
        assert_eq!(reason(&|stored| stored.seq = 3), "the record is missing");
        assert_eq!(reason(&|stored| stored.hash[31] ^= 1), "the stored hash is not the hash of the stored bytes");
        assert_eq!(forged("\"v\":1", "\"v\":1,\"w\":1"), "the bytes are not a record");
        assert_eq!(forged("\"seq\":2", "\"seq\":3"), "the record carries another sequence number");
        assert_eq!(forged("\"tenant\":\"t\"", "\"tenant\":\"u\""), "the record belongs to another chain");
        let prev = format!("\"prev\":\"{}\"", Hash(whole[0].hash));
        let none: &str = Box::leak(prev.into_boxed_str());
        assert_eq!(
            forged(none, "\"prev\":\"0000000000000000000000000000000000000000000000000000000000000000\""),
            "the record does not follow the one before"
        );
        assert_eq!(reason(&|stored| stored.salt = Some(vec![7; 31])), "the salt has the wrong length");
        let payload = "the payload is not the one that was committed to";
        assert_eq!(reason(&|stored| stored.payload = Some("{}".into())), payload);
        assert_eq!(reason(&|stored| stored.salt = Some(vec![8; 32])), payload);
        let together = "the payload and its salt were not erased together";
        assert_eq!(reason(&|stored| stored.salt = None), together);
        assert_eq!(reason(&|stored| stored.payload = None), together);
    }

    /// Chains outlive programs: these are the bytes that version 1 hashes, and the hash that RFC 6962 gives a leaf.
    #[test]
    fn the_first_version_s_bytes_never_change() {
        let entry = Entry {
            actor: "apiKey:k1".into(),
            action: "quota.replaced".into(),
            target: "quota:q1".into(),
            outcome: EntryOutcome::Denied,
            request_id: "r-1".into(),
            payload: "{\"a\":1}".into(),
        };
        let head = Head { seq: 6, hash: Hash([0xab; 32]) };
        let record = link(head, "t", entry, Timestamp(1_790_000_000_123_456), [7; 32]);
        let expected = format!(
            "{{\"action\":\"quota.replaced\",\"actor\":\"apiKey:k1\",\"at\":\"2026-09-21T14:13:20.123Z\",\
             \"dataCommit\":\"26cb98d387c15ef022c0fb25ff1daaa23cc0c7c5d5f16768c22d6c42da7ea567\",\
             \"outcome\":\"denied\",\"prev\":\"{}\",\"requestId\":\"r-1\",\"seq\":7,\"target\":\"quota:q1\",\
             \"tenant\":\"t\",\"v\":1}}",
            "ab".repeat(32)
        );
        assert_eq!(String::from_utf8(record.bytes.clone()).unwrap(), expected);
        assert_eq!((record.seq, record.action.as_str(), record.salt), (7, "quota.replaced", [7; 32]));
        assert_eq!(record.hash, Hash::of_record(&record.bytes));
        let empty_leaf = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        assert_eq!(Hash::of_record(b"").to_string(), empty_leaf);
        assert_eq!(format!("{:?}", Hash::of_record(b"")), empty_leaf);
        assert_eq!(EntryOutcome::Success.name(), "success");
    }

    proptest! {
        /// Whatever bit changes in whatever is stored, verification stops at that record.
        #[test]
        fn any_changed_bit_breaks_its_record(
            count in 1_i64..6,
            which in any::<prop::sample::Index>(),
            part in 0_usize..4,
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let mut chain = chain_of(count);
            let index = which.index(chain.len());
            let stored = &mut chain[index];
            let flip = |bytes: &mut [u8]| bytes[at.index(bytes.len())] ^= 1 << bit;
            match part {
                0 => flip(&mut stored.bytes),
                1 => flip(&mut stored.hash),
                2 => flip(stored.salt.as_mut().unwrap()),
                _ => {
                    let mut payload = stored.payload.take().unwrap().into_bytes();
                    flip(&mut payload);
                    // Text columns hold UTF-8; what is none cannot come back from a database.
                    stored.payload = Some(String::from_utf8_lossy(&payload).into_owned());
                }
            }
            prop_assert_eq!(verify(&chain).unwrap_err().seq, index as i64 + 1);
        }

        /// Only a chain's own beginnings verify: no record may be left out, repeated or moved.
        #[test]
        fn only_a_beginning_of_the_chain_verifies(picks in prop::collection::vec(0_usize..4, 0..6)) {
            let whole = chain_of(4);
            let chain: Vec<Stored> = picks.iter().map(|pick| whole[*pick].clone()).collect();
            let held = picks.iter().enumerate().take_while(|(at, pick)| at == *pick).count();
            let expected = if held == picks.len() { Ok(held as i64) } else { Err(held as i64 + 1) };
            prop_assert_eq!(verify(&chain).map_err(|broken| broken.seq), expected);
        }

        /// Erasing payloads, each with its salt, changes neither the verdict nor the head.
        #[test]
        fn erasing_payloads_leaves_the_chain_whole(erased in prop::collection::vec(any::<bool>(), 1..8)) {
            let mut chain = chain_of(erased.len() as i64);
            for (stored, _) in chain.iter_mut().zip(&erased).filter(|(_, erased)| **erased) {
                stored.payload = None;
                stored.salt = None;
            }
            prop_assert_eq!(verify(&chain), Ok(erased.len() as i64));
        }

        /// Who rewrites a record and its hash is given away by the next record, or by the head for the last one.
        #[test]
        fn a_rewritten_record_is_given_away(count in 1_i64..6, which in any::<prop::sample::Index>()) {
            let whole = chain_of(count);
            let index = which.index(whole.len());
            let mut chain = whole.clone();
            let text = String::from_utf8(chain[index].bytes.clone()).unwrap();
            chain[index].bytes = text.replace("quota.replaced", "quota.retained").into_bytes();
            chain[index].hash = Hash::of_record(&chain[index].bytes).0;
            let mut verifier = Verifier::new("t");
            let held = chain.iter().take_while(|stored| verifier.check(stored).is_ok()).count();
            prop_assert_eq!(held, index + 1);
            prop_assert_ne!(verifier.head().hash.0, whole[index].hash);
        }
    }
}
