//! One usage event, its identity, and sums of events.

use aws_lc_rs::digest;

use super::amount::NanoUsd;
use super::time::Timestamp;

/// Longest source, user, group, key, model, provider or call type, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Longest event id, in bytes. LiteLLM's tuple of four reaches about 800.
pub const EVENT_ID_BYTES_MAX: usize = 1_024;
/// Longest details document of one event, in bytes.
pub const DETAILS_BYTES_MAX: usize = 8_192;
/// The source of what is booked here, and by nobody else.
pub const OWN_SOURCE: &str = "platform-api";
/// How far ahead of our clock an event may claim to have occurred.
pub const FUTURE_TOLERANCE_MICROS: i64 = 5 * super::time::MICROS_PER_MINUTE;

/// Does the event add to the ledger, or state what a gateway's running counter says?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Adds to the ledger.
    Delta,
    /// A statement about a running counter: evidence for reconciliation, never added. Its amounts live in the
    /// details; its row in the ledger carries zeros, so that every sum over the ledger stays a sum of deltas.
    Cumulative,
    /// An adjusting entry that a person made for a finding of the reconciliation. Its amounts may be negative; no sender
    /// can make one.
    Adjustment,
}

/// How the call ended, as the sender says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Success,
    Failure,
}

/// Facts about an event that a report or an auditor wants to filter by; a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub i64);

impl Flags {
    /// A success with tokens, without cost and without a cache hit: the sender had no price.
    pub const UNPRICED: Flags = Flags(1);
    /// Answered from the gateway's response cache.
    pub const CACHE_HIT: Flags = Flags(2);
    /// The sender's total differs from prompt + completion; the sender's is kept in the details.
    pub const TOTAL_DIFFERS: Flags = Flags(4);
    /// The sender gave no time: it occurred when it arrived, which is no part of what the event says.
    pub const UNDATED: Flags = Flags(8);

    #[must_use]
    pub fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    #[must_use]
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Who and what an event is attributed to. The empty string means unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Subject {
    pub user: String,
    pub group: String,
    pub api_key: String,
    pub model: String,
    pub provider: String,
}

/// What one call used. Every field is zero or more (but in an adjusting entry); the token classes are disjoint, except that reasoning is a share
/// of completion, and cache read and cache write are shares of prompt (as LiteLLM and OpenTelemetry GenAI count).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// Calls that consumed something: 1 for a success or anything with tokens or cost, 0 for a failure without.
    pub requests: i64,
    /// Input tokens, cached ones included.
    pub prompt_tokens: i64,
    pub cache_read_tokens: i64,
    pub cache_write_tokens: i64,
    pub completion_tokens: i64,
    pub reasoning_tokens: i64,
    /// Tokens of a sender that states only a total.
    pub unclassified_tokens: i64,
    pub cost: NanoUsd,
}

impl Amounts {
    /// Prompt + completion + unclassified.
    #[must_use]
    pub fn total_tokens(&self) -> i64 {
        self.prompt_tokens.saturating_add(self.completion_tokens).saturating_add(self.unclassified_tokens)
    }

    /// The eight numbers in their column order.
    #[must_use]
    pub fn to_array(&self) -> [i64; 8] {
        [
            self.requests,
            self.prompt_tokens,
            self.cache_read_tokens,
            self.cache_write_tokens,
            self.completion_tokens,
            self.reasoning_tokens,
            self.unclassified_tokens,
            self.cost.0,
        ]
    }

    #[must_use]
    pub fn from_array(numbers: [i64; 8]) -> Amounts {
        let [
            requests,
            prompt_tokens,
            cache_read_tokens,
            cache_write_tokens,
            completion_tokens,
            reasoning_tokens,
            unclassified_tokens,
            cost,
        ] = numbers;
        Amounts {
            requests,
            prompt_tokens,
            cache_read_tokens,
            cache_write_tokens,
            completion_tokens,
            reasoning_tokens,
            unclassified_tokens,
            cost: NanoUsd(cost),
        }
    }

    /// The sum, or `None` when any field or the total of tokens leaves i64.
    #[must_use]
    pub fn checked_add(&self, other: &Amounts) -> Option<Amounts> {
        let (mine, theirs) = (self.to_array(), other.to_array());
        let mut sum = [0_i64; 8];
        for (at, slot) in sum.iter_mut().enumerate() {
            *slot = mine[at].checked_add(theirs[at])?;
        }
        let sum = Amounts::from_array(sum);
        sum.prompt_tokens.checked_add(sum.completion_tokens)?.checked_add(sum.unclassified_tokens)?;
        Some(sum)
    }
}

/// Sums of events. Adding saturates, and never reaches that point: [`super::books::Books`] refuses an event that would
/// overflow the tenant's lifetime sum, of which every other sum is a part, and a [`super::books::Posting`] that would all the
/// same is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub events: i64,
    pub failures: i64,
    pub amounts: Amounts,
}

impl Totals {
    /// What one event adds: a cumulative statement adds itself to the count of events and nothing else.
    #[must_use]
    pub fn of(event: &UsageEvent) -> Totals {
        Totals { events: 1, failures: i64::from(event.status == Status::Failure), amounts: event.amounts }
    }

    /// The ten numbers, in the order of their columns.
    #[must_use]
    pub fn to_array(&self) -> [i64; 10] {
        let [a, b, c, d, e, f, g, h] = self.amounts.to_array();
        [self.events, self.failures, a, b, c, d, e, f, g, h]
    }

    #[must_use]
    pub fn checked_add(&self, other: &Totals) -> Option<Totals> {
        Some(Totals {
            events: self.events.checked_add(other.events)?,
            failures: self.failures.checked_add(other.failures)?,
            amounts: self.amounts.checked_add(&other.amounts)?,
        })
    }

    /// Adds what fits; a number that would leave its range stays at its end.
    pub fn add(&mut self, other: &Totals) {
        let (mut sum, more) = (self.amounts.to_array(), other.amounts.to_array());
        sum.iter_mut().zip(more).for_each(|(number, more)| *number = number.saturating_add(more));
        *self = Totals {
            events: self.events.saturating_add(other.events),
            failures: self.failures.saturating_add(other.failures),
            amounts: Amounts::from_array(sum),
        };
    }
}

/// One usage event, parsed and bounded; its tenant is known from where it is handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEvent {
    /// Who vouches for the id: `litellm`, a CloudEvents source, or the envelope's `payload.source`.
    pub source: String,
    /// Unique within the source. See [`EventKey`] for what it may reveal about time.
    pub event_id: String,
    pub occurred_at: Timestamp,
    pub kind: Kind,
    pub status: Status,
    pub subject: Subject,
    /// LiteLLM `call_type`, an open set.
    pub call_type: String,
    pub amounts: Amounts,
    pub flags: Flags,
    /// What is worth keeping and never summed: a JSON object as text, or empty.
    pub details: String,
}

impl UsageEvent {
    /// Bytes this event keeps in memory while it waits; what the doorbell's byte permits count.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<UsageEvent>()
            + self.source.len()
            + self.event_id.len()
            + self.call_type.len()
            + self.details.len()
            + self.subject.user.len()
            + self.subject.group.len()
            + self.subject.api_key.len()
            + self.subject.model.len()
            + self.subject.provider.len()
    }

    #[must_use]
    pub fn key(&self) -> EventKey {
        EventKey::derive(&self.source, &self.event_id)
    }

    /// Which event it is, and what it says: what the ledger needs to know to count it once.
    #[must_use]
    pub fn identity(&self) -> Identity {
        (self.key(), self.body_hash())
    }

    /// A digest of everything but the identity: a re-send has the same one, whatever the order of its JSON keys.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        let texts = [
            &self.subject.user,
            &self.subject.group,
            &self.subject.api_key,
            &self.subject.model,
            &self.subject.provider,
            &self.call_type,
            &self.details,
        ];
        // One call with all the bytes: a call for each part costs more than the hashing.
        let length = texts.iter().map(|text| size_of::<u64>() + text.len()).sum::<usize>() + BODY_NUMBERS_BYTES;
        let mut bytes = Vec::with_capacity(length);
        let stated = if self.flags.has(Flags::UNDATED) { 0 } else { self.occurred_at.0 };
        bytes.extend_from_slice(&stated.to_be_bytes());
        bytes.extend_from_slice(&[self.kind as u8, self.status as u8]);
        for text in texts {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        for number in self.amounts.to_array() {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.flags.0.to_be_bytes());
        BodyHash(first_bytes(digest::digest(&digest::SHA256, &bytes).as_ref()))
    }
}

/// What of a body's bytes is not text: its time, kind and status, eight amounts, and flags.
const BODY_NUMBERS_BYTES: usize = 8 + 2 + 8 * 8 + 8;

/// The first sixteen bytes of a SHA-256 over an event's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyHash(pub [u8; 16]);

/// What the ledger's unique index holds for (source, event id): six bytes of time, then fourteen of SHA-256.
///
/// A unique index over random keys makes each insert touch a random page (measured 1.5 times the cost on Postgres,
/// 5 times on SQLite). Many ids say when they were made, so the key begins with that: neighbours in time become
/// neighbours in the index. The time is read from the **id**, never from `occurred_at`, so the identity of an event
/// does not depend on what its sender says about time: a re-send with a changed time is found, and is a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventKey(pub [u8; 20]);

impl EventKey {
    #[must_use]
    pub fn derive(source: &str, event_id: &str) -> EventKey {
        let mut bytes = Vec::with_capacity(size_of::<u64>() + source.len() + event_id.len());
        bytes.extend_from_slice(&(source.len() as u64).to_be_bytes());
        bytes.extend_from_slice(source.as_bytes());
        bytes.extend_from_slice(event_id.as_bytes());
        let hash: [u8; 14] = first_bytes(digest::digest(&digest::SHA256, &bytes).as_ref());
        let mut key = [0; 20];
        match millis_in_id(event_id) {
            Some(millis) => key[..6].copy_from_slice(&millis.to_be_bytes()[2..]),
            // Spread ids without a time over the whole index rather than pile them up at zero.
            None => key[..6].copy_from_slice(&hash[..6]),
        }
        key[6..].copy_from_slice(&hash);
        EventKey(key)
    }
}

/// Which event, and what it says. Two SHA-256 make one, so it is made once, in the task that brings the event.
pub type Identity = (EventKey, BodyHash);

/// The first `N` bytes of a digest, which is always longer.
fn first_bytes<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest[..N]);
    bytes
}

/// Epoch milliseconds an id begins with: a UUIDv7, a ULID, or decimal epoch seconds (`1790000000.123456|…`, which is
/// how the LiteLLM reader writes its tuple).
fn millis_in_id(event_id: &str) -> Option<u64> {
    let bytes = event_id.as_bytes();
    if bytes.len() == 36 && bytes[14] == b'7' && bytes[8] == b'-' && bytes[13] == b'-' {
        let half = |digits| u64::from_str_radix(digits, 16).ok();
        // The parser takes a sign, which within a number is none.
        let low = event_id.get(9..13)?;
        return if low.starts_with('+') { None } else { Some(half(event_id.get(..8)?)? << 16 | half(low)?) };
    }
    if bytes.len() == 26 && bytes[0] <= b'7' {
        return ulid_millis(&bytes[..10]);
    }
    if bytes.len() > 10 && bytes[10] == b'.' && bytes[..10].iter().all(u8::is_ascii_digit) {
        let seconds: u64 = event_id.get(..10)?.parse().ok()?;
        let fraction = bytes[11..].iter().take(3).take_while(|byte| byte.is_ascii_digit());
        let (millis, digits) =
            fraction.fold((0, 0), |(sum, count), byte| (sum * 10 + u64::from(byte - b'0'), count + 1));
        return Some(seconds * 1_000 + millis * 10_u64.pow(3 - digits));
    }
    None
}

fn ulid_millis(head: &[u8]) -> Option<u64> {
    const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    head.iter().try_fold(0_u64, |millis, byte| {
        let digit = CROCKFORD.iter().position(|known| *known == byte.to_ascii_uppercase())?;
        Some(millis * 32 + digit as u64)
    })
}

/// Why an event cannot be counted; each goes to quarantine with its code, and can be replayed from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The bytes are no event: bad JSON, a missing or wrong field.
    Malformed,
    /// No tenant could be found for it.
    UnknownTenant,
    /// The subject token, the body or the credential name different tenants.
    TenantMismatch,
    /// It occurred before the retention horizon.
    TooOld,
    /// It claims to occur more than five minutes from now.
    FromTheFuture,
    /// The message or one of its fields is longer than the limit.
    Oversized,
    /// Counting it would overflow the tenant's lifetime sum.
    AmountOverflow,
    /// Its tenant's database needs a person first; it came over a stream, which must not wait for that.
    TenantFrozen,
    /// Its tenant could not take it for too long; it came over a stream, which must not wait for that.
    TenantUnavailable,
}

impl Refusal {
    pub const ALL: [Refusal; 9] = [
        Refusal::Malformed,
        Refusal::UnknownTenant,
        Refusal::TenantMismatch,
        Refusal::TooOld,
        Refusal::FromTheFuture,
        Refusal::Oversized,
        Refusal::AmountOverflow,
        Refusal::TenantFrozen,
        Refusal::TenantUnavailable,
    ];

    /// Refused for now: counted by itself once its tenant is back.
    pub const WAITING: [Refusal; 2] = [Refusal::TenantFrozen, Refusal::TenantUnavailable];

    /// The stable code used in answers, rows and metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Refusal::Malformed => "MALFORMED_EVENT",
            Refusal::UnknownTenant => "UNKNOWN_TENANT",
            Refusal::TenantMismatch => "TENANT_MISMATCH",
            Refusal::TooOld => "EVENT_TOO_OLD",
            Refusal::FromTheFuture => "EVENT_FROM_THE_FUTURE",
            Refusal::Oversized => "EVENT_TOO_LARGE",
            Refusal::AmountOverflow => "AMOUNT_OVERFLOW",
            Refusal::TenantFrozen => "TENANT_FROZEN",
            Refusal::TenantUnavailable => "TENANT_UNAVAILABLE",
        }
    }

    #[must_use]
    pub fn from_code(code: &str) -> Option<Refusal> {
        Refusal::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// What became of one event of a batch, known after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// New, and counted.
    Accepted,
    /// Known with the same body: nothing to do.
    Duplicate,
    /// Known with another body: the first stays, this one is kept as a conflict.
    Conflict,
    /// Not countable; the caller quarantines it.
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::properties_tests::{an_event, some_amounts};
    use proptest::prelude::*;

    fn event() -> UsageEvent {
        UsageEvent {
            source: "litellm".into(),
            event_id: "1790000000.5|call|chatcmpl-1|success".into(),
            occurred_at: Timestamp(1_790_000_000_500_000),
            kind: Kind::Delta,
            status: Status::Success,
            subject: Subject::default(),
            call_type: String::new(),
            amounts: Amounts { prompt_tokens: 3, ..Amounts::default() },
            flags: Flags::default(),
            details: String::new(),
        }
    }

    #[test]
    fn ids_that_tell_time_become_neighbours() {
        for (id, millis) in [
            ("1790000000.123456|a|b|success", 1_790_000_000_123),
            ("1790000000.5|a", 1_790_000_000_500),
            ("0199a8b2-5c00-7abc-8def-0123456789ab", 0x0199_a8b2_5c00),
            ("01ARZ3NDEKTSV4RRFFQ69G5FAV", 1_469_922_850_259),
            ("01arz3ndektsv4rrffq69g5fav", 1_469_922_850_259),
            ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", (1 << 48) - 1),
            ("1790000000.", 1_790_000_000_000),
            ("1790000000.07", 1_790_000_000_070),
            ("1790000000.1x9", 1_790_000_000_100),
            ("0000000000.001", 1),
        ] {
            assert_eq!(millis_in_id(id), Some(millis), "{id}");
        }
        for id in [
            "",
            "chatcmpl-1",
            // A UUID of another version, dashes out of place, and digits that are none.
            "0199a8b2-5c00-4abc-8def-0123456789ab",
            "0199a8b2_5c00-7abc-8def-0123456789ab",
            "0199a8b2-5c00_7abc-8def-0123456789ab",
            "0199a8bx-5c00-7abc-8def-0123456789ab",
            "0199a8b2-+c00-7abc-8def-0123456789ab",
            "0199a8b2-5c00-7abc-8def-0123456789abc",
            // Beyond 48 bits, a letter that Crockford left out, and one character too few.
            "81ARZ3NDEKTSV4RRFFQ69G5FAV",
            "01ARZ3NDEUTSV4RRFFQ69G5FAV",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
            // Seconds of nine digits, without a point, and with a letter.
            "179000000.123456",
            "1790000000",
            "1790000000|a",
            "17900000x0.123",
            "é".repeat(18).as_str(),
        ] {
            assert_eq!(millis_in_id(id), None, "{id}");
        }
    }

    #[test]
    fn identity_is_source_and_id_and_nothing_else() {
        let first = event();
        let mut later = event();
        later.occurred_at = Timestamp(0);
        assert_eq!(first.key(), later.key());
        assert_ne!(first.body_hash(), later.body_hash());
        // Lengths are hashed: moving a character from one field to the other makes another identity.
        assert_ne!(EventKey::derive("ab", "c"), EventKey::derive("a", "bc"));
    }

    #[test]
    fn sums_are_checked() {
        let most = Amounts { prompt_tokens: i64::MAX, ..Amounts::default() };
        assert_eq!(most.checked_add(&Amounts { completion_tokens: 1, ..Amounts::default() }), None);
        assert_eq!(most.checked_add(&Amounts { prompt_tokens: 1, ..Amounts::default() }), None);
        assert_eq!(most.checked_add(&Amounts::default()), Some(most));
    }

    #[test]
    fn flags_are_a_set() {
        let all = [Flags::UNPRICED, Flags::CACHE_HIT, Flags::TOTAL_DIFFERS];
        let both = Flags::UNPRICED.with(Flags::TOTAL_DIFFERS);
        assert_eq!(all.map(|flag| both.has(flag)), [true, false, true]);
        assert_eq!(all.map(|flag| Flags::default().has(flag)), [false; 3]);
        assert_eq!(both.with(Flags::UNPRICED), both);
        assert!(both.has(both) && !Flags::UNPRICED.has(both));
    }

    #[test]
    fn a_refusal_is_known_by_its_code() {
        let codes = [
            "MALFORMED_EVENT",
            "UNKNOWN_TENANT",
            "TENANT_MISMATCH",
            "EVENT_TOO_OLD",
            "EVENT_FROM_THE_FUTURE",
            "EVENT_TOO_LARGE",
            "AMOUNT_OVERFLOW",
            "TENANT_FROZEN",
            "TENANT_UNAVAILABLE",
        ];
        assert_eq!(Refusal::ALL.map(Refusal::code), codes);
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(refusal));
        }
        assert_eq!(Refusal::from_code("OK"), None);
    }

    #[test]
    fn a_failure_is_counted_as_one() {
        let failed = UsageEvent { status: Status::Failure, ..event() };
        assert_eq!(Totals::of(&failed), Totals { events: 1, failures: 1, amounts: event().amounts });
        assert_eq!(Totals::of(&event()), Totals { events: 1, failures: 0, amounts: event().amounts });
    }

    #[test]
    fn an_event_weighs_its_texts_and_itself() {
        let mut heavy = event();
        let empty = UsageEvent { source: String::new(), event_id: String::new(), ..event() };
        assert_eq!(empty.memory_bytes(), size_of::<UsageEvent>());
        let texts = [
            &mut heavy.source,
            &mut heavy.event_id,
            &mut heavy.call_type,
            &mut heavy.details,
            &mut heavy.subject.user,
            &mut heavy.subject.group,
            &mut heavy.subject.api_key,
            &mut heavy.subject.model,
            &mut heavy.subject.provider,
        ];
        // A power of two each, so that a sum tells which ones are in it.
        for (power, text) in texts.into_iter().enumerate() {
            *text = "x".repeat(1 << power);
        }
        assert_eq!(heavy.memory_bytes(), size_of::<UsageEvent>() + (1 << 9) - 1);
    }

    /// Ledgers outlive programs: a key or a body that is derived in another way would count re-sends again.
    #[test]
    fn keys_and_bodies_are_derived_the_same_way_for_ever() {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        assert_eq!(hex(&event().key().0), "01a0c4506df42519b3bf94562c08d8534b0b613d");
        assert_eq!(hex(&EventKey::derive("litellm", "chatcmpl-1").0), "7e5ea70a2b427e5ea70a2b42ca8d456adcf551f4");
        assert_eq!(hex(&event().body_hash().0), "26532b535d9d1cdb334f7515620f7ac2");
    }

    /// The same event with one thing changed, for each thing that makes its body.
    fn neighbours(event: &UsageEvent) -> Vec<UsageEvent> {
        let changes: [fn(&mut UsageEvent); 11] = [
            |event| event.occurred_at.0 += 1,
            |event| event.kind = if event.kind == Kind::Delta { Kind::Cumulative } else { Kind::Delta },
            |event| event.status = if event.status == Status::Success { Status::Failure } else { Status::Success },
            |event| event.subject.user.push('x'),
            |event| event.subject.group.push('x'),
            |event| event.subject.api_key.push('x'),
            |event| event.subject.model.push('x'),
            |event| event.subject.provider.push('x'),
            |event| event.call_type.push('x'),
            |event| event.details.push('x'),
            |event| event.flags = event.flags.with(Flags::CACHE_HIT),
        ];
        let with = |change: &dyn Fn(&mut UsageEvent)| {
            let mut changed = event.clone();
            change(&mut changed);
            changed
        };
        let amounts = (0..8).map(|at| {
            with(&|event| {
                let mut numbers = event.amounts.to_array();
                numbers[at] += 1;
                event.amounts = Amounts::from_array(numbers);
            })
        });
        changes.iter().map(|change| with(change)).chain(amounts).collect()
    }

    proptest! {
        /// A re-send has the same body; one with anything changed has another, and no two changes look alike.
        #[test]
        fn a_body_is_all_that_is_not_identity(event in an_event(Timestamp(1_790_000_000_000_000))) {
            let resent = UsageEvent { source: "other".into(), event_id: "other".into(), ..event.clone() };
            prop_assert_eq!(resent.body_hash(), event.body_hash());
            let neighbours = neighbours(&event);
            let hashes: std::collections::HashSet<BodyHash> =
                neighbours.iter().chain([&event]).map(UsageEvent::body_hash).collect();
            prop_assert_eq!(hashes.len(), neighbours.len() + 1);
            for neighbour in neighbours {
                prop_assert_eq!(neighbour.key(), event.key());
            }
        }

        /// Two events are the same one exactly if source and id are the same; where one ends and the other begins counts.
        #[test]
        fn a_key_is_source_and_id(one in "[ab]{0,3}", two in "[ab]{0,3}", three in "[ab]{0,3}", four in "[ab]{0,3}") {
            let same = (&one, &two) == (&three, &four);
            prop_assert_eq!(EventKey::derive(&one, &two) == EventKey::derive(&three, &four), same);
        }

        /// What makes inserts cheap: keys of ids that tell time sort by that time, whichever of the three forms it has.
        #[test]
        fn keys_sort_by_the_time_in_their_ids(
            one in 0_u64..9_999_999_999_999,
            other in 0_u64..9_999_999_999_999,
            (form, another_form) in (0_usize..3, 0_usize..3),
            noise in any::<u64>(),
        ) {
            let write = |form: usize, millis: u64| match form {
                0 => {
                    let hex = format!("{millis:012x}");
                    format!("{}-{}-7{:03x}-8000-{:012x}", &hex[..8], &hex[8..], noise & 0xfff, noise & 0xffff_ffff_ffff)
                }
                1 => {
                    let digit = |at: u32| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(millis >> (5 * at) & 31) as usize];
                    let head: Vec<u8> = (0..10).rev().map(digit).collect();
                    format!("{}{:016}", String::from_utf8(head).unwrap(), noise % 10_000_000)
                }
                _ => format!("{:010}.{:03}|{noise}", millis / 1_000, millis % 1_000),
            };
            let (first, second) = (write(form, one), write(another_form, other));
            prop_assert_eq!(millis_in_id(&first), Some(one), "{}", first);
            let (first, second) = (EventKey::derive("s", &first), EventKey::derive("s", &second));
            if one != other {
                prop_assert_eq!(first.cmp(&second), one.cmp(&other));
            }
        }

        #[test]
        fn no_id_is_too_strange(id in ".{0,40}", digits in "[0-9.|]{0,30}", base32 in "[0-9A-Za-z]{26}") {
            for id in [id, digits, base32] {
                let _ = EventKey::derive("s", &id);
            }
        }

        /// Adding is what integers do, number by number, or it is refused: then, and only then, a sum leaves i64.
        #[test]
        fn sums_are_exact_or_refused(
            one in prop::array::uniform8(prop_oneof![0_i64..100, i64::MAX - 100..=i64::MAX]),
            other in prop::array::uniform8(prop_oneof![20 => 0_i64..100, 1 => i64::MAX - 100..=i64::MAX]),
        ) {
            let exact: Vec<i128> = one.iter().zip(&other).map(|(one, other)| i128::from(*one) + i128::from(*other)).collect();
            // Prompt, completion and unclassified tokens are the parts of the total.
            let total = exact[1] + exact[4] + exact[6];
            let fits = exact.iter().chain([&total]).all(|sum| *sum <= i128::from(i64::MAX));
            let sum = Amounts::from_array(one).checked_add(&Amounts::from_array(other));
            prop_assert_eq!(sum.is_some(), fits);
            prop_assert_eq!(Amounts::from_array(other).checked_add(&Amounts::from_array(one)), sum);
            if let Some(sum) = sum {
                prop_assert_eq!(sum.to_array().map(i128::from).to_vec(), exact);
                prop_assert_eq!(i128::from(sum.total_tokens()), total);
            }
        }

        /// Sums of events can be taken in any order and in any pieces.
        #[test]
        fn totals_can_be_added_in_any_order(
            (a, b, c) in (some_amounts(), some_amounts(), some_amounts()),
            (events, failures) in (0_i64..1_000, 0_i64..1_000),
        ) {
            let total = |amounts: Amounts| Totals { events, failures, amounts };
            let sum = |parts: [Totals; 3]| {
                let mut sum = Totals::default();
                parts.iter().for_each(|part| sum.add(part));
                sum
            };
            let forwards = sum([total(a), total(b), total(c)]);
            prop_assert_eq!(forwards, sum([total(c), total(a), total(b)]));
            prop_assert_eq!((forwards.events, forwards.failures), (3 * events, 3 * failures));
            prop_assert_eq!(Some(forwards), total(a).checked_add(&total(b)).and_then(|two| two.checked_add(&total(c))));
            let mut most = Totals { events: i64::MAX, ..forwards };
            let more = Totals { events: 1, ..total(a) };
            prop_assert_eq!(most.checked_add(&more), None);
            most.add(&more);
            prop_assert_eq!((most.events, most.failures), (i64::MAX, 4 * failures), "the rest is added all the same");
        }

    }
}
