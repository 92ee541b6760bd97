//! How much of the quarantine is whose, so that nobody fills the disk that all share with what cannot be counted.
//!
//! Each tenant has a share, and so has all that is of no tenant. Within it events are kept whole; beyond it they are only
//! counted, in one row for each reason. What waits for its tenant is always kept whole: the intake's parking bounds it.
//!
//! What each has is read from the control database, added to, and read anew now and then: other nodes write too, rows are
//! forgotten, and what comes twice is one row.

use std::borrow::Cow;
use std::collections::HashMap;

use aws_lc_rs::digest;

use crate::clock;
use crate::domain::ids::TenantId;
use crate::domain::report::{Quarantined, Share};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::Refusal;
use crate::store::quarantine::Kept;

/// After this long it is read anew what somebody has; sooner when the share seems to be full.
const KNOWN_MICROS: i64 = 60 * MICROS_PER_SECOND;
const KNOWN_FULL_MICROS: i64 = 5 * MICROS_PER_SECOND;
/// Tells its rows' digests from those of events.
const REMAINDER: &str = "remainder";
const REMAINDER_DETAIL: &str = "the share of the quarantine is full (intake.quarantine_events_max, \
                                intake.quarantine_bytes_max): what came since is counted here, and its bytes were not kept";

/// A tenant, or nobody.
type Owner = Option<TenantId>;

/// What each has in quarantine, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Owner, Known>);

#[derive(Debug, Clone, Copy)]
struct Known {
    kept: Kept,
    read_at: Timestamp,
    /// Somebody was told that it is full.
    is_full: bool,
}

impl Shares {
    /// Whose share has to be read before `rows` can be judged.
    pub(super) fn unknown(&self, rows: &[Quarantined], share: Share, now: Timestamp) -> Vec<Owner> {
        let mut wanted: HashMap<Owner, Kept> = HashMap::new();
        for row in rows.iter().filter(|row| !waits(row)) {
            let wanted = wanted.entry(row.tenant).or_default();
            wanted.events += 1;
            wanted.bytes += row.body.len() as u64;
        }
        let is_unknown = |owner: &Owner, wanted: &Kept| {
            let Some(known) = self.0.get(owner) else { return true };
            let fits = known.kept.events + wanted.events <= share.events_max
                && known.kept.bytes + wanted.bytes <= share.bytes_max;
            let age = now.0.saturating_sub(known.read_at.0).saturating_abs();
            age >= if fits { KNOWN_MICROS } else { KNOWN_FULL_MICROS }
        };
        wanted.into_iter().filter(|(owner, wanted)| is_unknown(owner, wanted)).map(|(owner, _)| owner).collect()
    }

    /// What `owner` was read to have.
    pub(super) fn learn(&mut self, owner: Owner, kept: Kept, share: Share, now: Timestamp) {
        let was_full = self.0.get(&owner).is_some_and(|known| known.is_full);
        let has_room = kept.events <= share.events_max - share.events_max.div_ceil(10)
            && kept.bytes <= share.bytes_max - share.bytes_max.div_ceil(10);
        self.0.insert(owner, Known { kept, read_at: now, is_full: was_full && !has_room });
    }

    /// What `owner` has could not be read. Until that is tried again, all is kept that another share has room for.
    pub(super) fn guess(&mut self, owner: Owner, now: Timestamp) {
        self.0.insert(owner, Known { kept: Kept::default(), read_at: now, is_full: false });
    }

    /// Nothing is known for certain any more.
    pub(super) fn doubt(&mut self) {
        for known in self.0.values_mut() {
            known.read_at = Timestamp(i64::MIN);
        }
    }

    /// What is to be written of `rows`: themselves, or what only counts them.
    pub(super) fn admit<'a>(&mut self, rows: &'a [Quarantined], share: Share) -> Vec<Cow<'a, Quarantined>> {
        rows.iter().map(|row| if waits(row) { Cow::Borrowed(row) } else { self.judged(row, share) }).collect()
    }

    fn judged<'a>(&mut self, row: &'a Quarantined, share: Share) -> Cow<'a, Quarantined> {
        let unread = Known { kept: Kept::default(), read_at: Timestamp(i64::MIN), is_full: false };
        let known = self.0.entry(row.tenant).or_insert(unread);
        let kept = Kept { events: known.kept.events + 1, bytes: known.kept.bytes + row.body.len() as u64 };
        if kept.events <= share.events_max && kept.bytes <= share.bytes_max {
            known.kept = kept;
            return Cow::Borrowed(row);
        }
        if !std::mem::replace(&mut known.is_full, true) {
            let owner = row.tenant.map_or_else(|| "nobody".to_owned(), |tenant| tenant.to_string());
            let Kept { events, bytes } = known.kept;
            tracing::error!(
                tenant = %owner,
                events,
                bytes,
                "a share of the quarantine is full (intake.quarantine_events_max, intake.quarantine_bytes_max); what else \
                 cannot be counted is not kept"
            );
        }
        Cow::Owned(remainder(row))
    }
}

/// Does it wait for nothing but its tenant?
fn waits(row: &Quarantined) -> bool {
    Refusal::WAITING.contains(&row.reason)
}

/// The row that counts what of this owner and for this reason was not kept.
fn remainder(row: &Quarantined) -> Quarantined {
    let owner = row.tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
    let told = format!("{REMAINDER}:{owner}:{}", row.reason.code());
    let mut digest = [0; 32];
    digest.copy_from_slice(digest::digest(&digest::SHA256, told.as_bytes()).as_ref());
    Quarantined {
        id: clock::new_id(),
        tenant: row.tenant,
        reason: row.reason,
        detail: REMAINDER_DETAIL.to_owned(),
        origin: row.origin.clone(),
        format: row.format.clone(),
        digest,
        body: Vec::new(),
        received_at: row.received_at,
        replayed_at: None,
        arrivals: 1,
        // At least one, which tells it from an event.
        left_out_bytes: i64::try_from(row.body.len()).unwrap_or(i64::MAX).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const SHARE: Share = Share { events_max: 3, bytes_max: 100 };
    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn row(owner: Owner, reason: Refusal, bytes: usize) -> Quarantined {
        Quarantined {
            id: clock::new_id(),
            tenant: owner,
            reason,
            detail: String::new(),
            origin: "o".into(),
            format: "events".into(),
            digest: clock::random_bytes(),
            body: vec![1; bytes],
            received_at: NOW,
            replayed_at: None,
            arrivals: 1,
            left_out_bytes: 0,
        }
    }

    fn whole(admitted: &[Cow<'_, Quarantined>]) -> Vec<bool> {
        admitted.iter().map(|row| row.left_out_bytes == 0).collect()
    }

    #[test]
    fn each_has_a_share_in_events_and_bytes_and_what_waits_is_never_cut() {
        let mut shares = Shares::default();
        let (acme, nobody) = (Some(TenantId(Uuid::from_u128(1))), None);
        let rows: Vec<Quarantined> = [
            (acme, Refusal::TooOld, 10),
            (acme, Refusal::TooOld, 95),
            (acme, Refusal::TooOld, 10),
            (acme, Refusal::TenantFrozen, 500),
            (acme, Refusal::TooOld, 10),
            (acme, Refusal::TooOld, 10),
            (acme, Refusal::Malformed, 0),
            (nobody, Refusal::UnknownTenant, 100),
            (nobody, Refusal::UnknownTenant, 1),
        ]
        .map(|(owner, reason, bytes)| row(owner, reason, bytes))
        .into();
        let admitted = shares.admit(&rows, SHARE);
        assert_eq!(whole(&admitted), [true, false, true, true, true, false, false, true, false]);
        // One row for each reason and owner, without the bytes.
        assert_eq!(admitted[1].digest, admitted[5].digest);
        let others = [&admitted[6], &admitted[8], &admitted[0]];
        assert!(others.iter().all(|row| row.digest != admitted[1].digest));
        assert!(admitted[1].body.is_empty() && admitted[1].left_out_bytes == 95 && admitted[6].left_out_bytes == 1);
    }

    #[test]
    fn what_somebody_has_is_read_again_and_sooner_when_it_seems_too_much() {
        let mut shares = Shares::default();
        let owner = Some(TenantId(Uuid::from_u128(1)));
        let rows = [row(owner, Refusal::TooOld, 1), row(None, Refusal::TenantFrozen, 1)];
        assert_eq!(shares.unknown(&rows, SHARE, NOW), [owner]);
        shares.learn(owner, Kept { events: 2, bytes: 2 }, SHARE, NOW);
        let after = |seconds: i64| NOW.plus_micros(seconds * MICROS_PER_SECOND);
        assert!(shares.unknown(&rows, SHARE, after(59)).is_empty());
        assert_eq!(shares.unknown(&rows, SHARE, after(60)), [owner]);
        assert_eq!(whole(&shares.admit(&rows, SHARE)), [true, true]);
        assert!(shares.unknown(&rows, SHARE, after(4)).is_empty());
        assert_eq!(shares.unknown(&rows, SHARE, after(5)), [owner]);
        assert_eq!(whole(&shares.admit(&rows, SHARE)), [false, true]);
        // Something was forgotten, or it was the same event again.
        shares.learn(owner, Kept { events: 1, bytes: 1 }, SHARE, after(5));
        assert_eq!(whole(&shares.admit(&rows, SHARE)), [true, true]);
        shares.doubt();
        assert_eq!(shares.unknown(&rows, SHARE, after(5)), [owner]);
        // What cannot be read is asked for no more often.
        shares.learn(owner, Kept { events: 3, bytes: 3 }, SHARE, after(5));
        shares.guess(owner, after(10));
        assert!(shares.unknown(&rows, SHARE, after(69)).is_empty());
        assert_eq!(shares.unknown(&rows, SHARE, after(70)), [owner]);
        assert_eq!(whole(&shares.admit(&rows, SHARE)), [true, true]);
    }
}
