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

/// What one call used. Every field is zero or more; the token classes are disjoint, except that reasoning is a share
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

/// Sums of events. Adding saturates, and never reaches that point: [`super::books::Books`] refuses an event that
/// would overflow the tenant's lifetime sum, and every other sum is a part of that one.
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

    #[must_use]
    pub fn checked_add(&self, other: &Totals) -> Option<Totals> {
        Some(Totals {
            events: self.events.checked_add(other.events)?,
            failures: self.failures.checked_add(other.failures)?,
            amounts: self.amounts.checked_add(&other.amounts)?,
        })
    }

    pub fn add(&mut self, other: &Totals) {
        match self.checked_add(other) {
            Some(sum) => *self = sum,
            None => debug_assert!(false, "the lifetime guard admits no event that overflows a sum"),
        }
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

    /// A digest of everything but the identity: a re-send has the same one, whatever the order of its JSON keys.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        let mut context = digest::Context::new(&digest::SHA256);
        let text = |context: &mut digest::Context, part: &str| {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        };
        context.update(&self.occurred_at.0.to_be_bytes());
        context.update(&[self.kind as u8, self.status as u8]);
        for part in [
            &self.subject.user,
            &self.subject.group,
            &self.subject.api_key,
            &self.subject.model,
            &self.subject.provider,
            &self.call_type,
            &self.details,
        ] {
            text(&mut context, part);
        }
        for number in self.amounts.to_array() {
            context.update(&number.to_be_bytes());
        }
        context.update(&self.flags.0.to_be_bytes());
        BodyHash(first_bytes(context.finish().as_ref()))
    }
}

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
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(source.len() as u64).to_be_bytes());
        context.update(source.as_bytes());
        context.update(event_id.as_bytes());
        let hash = context.finish();
        let hash: [u8; 14] = first_bytes(hash.as_ref());
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
        let hex = [event_id.get(..8)?, event_id.get(9..13)?].concat();
        return u64::from_str_radix(&hex, 16).ok();
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
        Some(millis << 5 | digit as u64)
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
        ] {
            assert_eq!(millis_in_id(id), Some(millis), "{id}");
        }
        for id in ["", "chatcmpl-1", "0199a8b2-5c00-4abc-8def-0123456789ab", "é".repeat(18).as_str()] {
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
}
