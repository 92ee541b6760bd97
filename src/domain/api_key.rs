//! A tenant's API key as the catalogue has it: what narrows it, how long it holds, and how its secret is exchanged.
//!
//! A key never holds more than its role: [`Terms`] only take away. Its id stays the same when its secret is exchanged, so
//! quotas, roles and rules that name the key go on holding. At most two secrets open a key at once.

use super::ids::TenantId;
use super::organization::Expected;
use super::permission::Pattern;
use super::rate_limit::{Class, Policy};
use super::tenant::Role;
use super::time::{MICROS_PER_DAY, MICROS_PER_HOUR, Timestamp};

/// Scopes of one key.
pub const SCOPES_MAX: usize = 50;
/// Longest name, in characters.
pub const NAME_CHARACTERS_MAX: usize = 100;
/// How long the old secret goes on opening a key when nothing else is said.
pub const OVERLAP_MICROS: i64 = MICROS_PER_DAY;
/// How long it may at most.
pub const OVERLAP_MICROS_MAX: i64 = 7 * MICROS_PER_DAY;

/// What a key takes away from what its role allows. By default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Only what one of these covers; empty: everything.
    pub scopes: Vec<Pattern>,
    /// From this instant on it opens nothing.
    pub expires_at: Option<Timestamp>,
    /// Limits besides those of the tenant's tier: one at most of each class of [`Class::OF_A_PRINCIPAL`].
    pub limits: Vec<(Class, Policy)>,
}

impl Terms {
    /// Do the scopes leave `action` on `object`?
    #[must_use]
    pub fn leave(&self, object: &str, action: &str) -> bool {
        self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.covers(object, action))
    }

    /// Do the scopes leave all that `others` leave?
    #[must_use]
    pub fn leave_all_of(&self, others: &[Pattern]) -> bool {
        let is_left = |other: &Pattern| self.scopes.iter().any(|scope| scope.contains(other));
        self.scopes.is_empty() || (!others.is_empty() && others.iter().all(is_left))
    }

    /// Does a key with these terms end no later than one that expires at `other`?
    #[must_use]
    pub fn end_by(&self, other: Option<Timestamp>) -> bool {
        other.is_none_or(|other| self.expires_at.is_some_and(|at| at <= other))
    }

    /// Is each class that `others` limits limited here as well, and no higher?
    #[must_use]
    pub fn are_limited_as(&self, others: &[(Class, Policy)]) -> bool {
        others.iter().all(|(class, policy)| self.limit(*class).is_some_and(|own| own.is_within(*policy)))
    }

    /// The limit of a class.
    #[must_use]
    pub fn limit(&self, class: Class) -> Option<Policy> {
        self.limits.iter().find(|(of, _)| *of == class).map(|(_, policy)| *policy)
    }
}

/// The secret before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    /// As [`ApiKey::hash`].
    pub hash: [u8; 32],
    /// From this instant on it opens nothing.
    pub until: Timestamp,
}

/// An API key: never the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The public part, which names the key in logs and rules.
    pub id: String,
    pub tenant: TenantId,
    pub name: String,
    pub role: Role,
    /// HMAC-SHA-256 of the whole key under the platform's pepper.
    pub hash: [u8; 32],
    pub terms: Terms,
    pub previous: Option<Previous>,
    /// Counts changes, for `If-Match`.
    pub version: i64,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Why a key opens nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Revoked,
    Expired,
}

/// What to change of a key; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    pub name: Option<String>,
    pub scopes: Option<Vec<Pattern>>,
    /// `Some(None)`: it expires no longer.
    pub expires_at: Option<Option<Timestamp>>,
    pub limits: Option<Vec<(Class, Policy)>>,
}

impl Patch {
    /// What it makes of a key's terms.
    #[must_use]
    pub fn terms_after(&self, terms: &Terms) -> Terms {
        Terms {
            scopes: self.scopes.clone().unwrap_or_else(|| terms.scopes.clone()),
            expires_at: self.expires_at.unwrap_or(terms.expires_at),
            limits: self.limits.clone().unwrap_or_else(|| terms.limits.clone()),
        }
    }
}

/// A change to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Another secret. The old one goes on opening the key for so long, in microseconds.
    Rotate {
        hash: [u8; 32],
        overlap_micros: i64,
    },
    Patch(Patch),
}

/// Why a key is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has changed since the caller saw it.
    Stale,
    /// It is revoked, or it has expired and the change does not give it more time.
    Ended,
    /// Two secrets open it until then; a third one would take one of them away unasked.
    Overlapping { until: Timestamp },
}

impl ApiKey {
    /// Why it opens nothing at `now`, whichever secret comes.
    #[must_use]
    pub fn ended(&self, now: Timestamp) -> Option<Ended> {
        match (self.revoked_at, self.terms.expires_at) {
            (Some(_), _) => Some(Ended::Revoked),
            (None, Some(at)) if at <= now => Some(Ended::Expired),
            _ => None,
        }
    }

    /// The secret before this one, while it opens the key.
    #[must_use]
    pub fn overlap(&self, now: Timestamp) -> Option<Previous> {
        self.previous.filter(|previous| previous.until > now)
    }

    /// The key after a change.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn edited(&self, edit: &Edit, expected: &Expected, now: Timestamp) -> Result<ApiKey, Refusal> {
        if !expected.is(self.version) {
            return Err(Refusal::Stale);
        }
        let mut key = ApiKey { version: self.version.saturating_add(1), ..self.clone() };
        match edit {
            Edit::Patch(patch) => {
                key.name = patch.name.clone().unwrap_or(key.name);
                key.terms = patch.terms_after(&self.terms);
            }
            Edit::Rotate { hash, overlap_micros } => {
                // To end every secret but the new one is always possible: that is what a leak asks for.
                if let Some(previous) = self.overlap(now).filter(|_| *overlap_micros > 0) {
                    return Err(Refusal::Overlapping { until: previous.until });
                }
                let until = now.plus_micros((*overlap_micros).clamp(0, OVERLAP_MICROS_MAX));
                key.previous = Some(Previous { hash: self.hash, until });
                key.hash = *hash;
            }
        }
        if key.ended(now).is_some() { Err(Refusal::Ended) } else { Ok(key) }
    }
}

/// The hour that an instant is in: how exactly it is known when a key was last used.
#[must_use]
pub fn hour_of(at: Timestamp) -> Timestamp {
    Timestamp(at.0 - at.0.rem_euclid(MICROS_PER_HOUR))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000 * MICROS_PER_HOUR);

    fn key() -> ApiKey {
        ApiKey {
            id: "k".into(),
            tenant: TenantId(uuid::Uuid::from_u128(1)),
            name: "kong".into(),
            role: Role::Reporter,
            hash: [1; 32],
            terms: Terms::default(),
            previous: None,
            version: 1,
            created_at: NOW,
            revoked_at: None,
        }
    }

    fn scopes(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rotate(hash: u8, overlap_micros: i64) -> Edit {
        Edit::Rotate { hash: [hash; 32], overlap_micros }
    }

    #[test]
    fn scopes_only_take_away_and_none_take_nothing() {
        let free = Terms::default();
        let narrow = Terms { scopes: scopes(&["usage:*", "quotas:read"]), ..Terms::default() };
        for (object, action, is_left) in
            [("usage", "report", true), ("quotas", "read", true), ("quotas", "replace", false), ("", "", false)]
        {
            assert!(free.leave(object, action));
            assert_eq!(narrow.leave(object, action), is_left, "{object}:{action}");
        }
        for (others, is_left) in
            [(vec!["usage:read"], true), (vec!["usage:*", "quotas:*"], false), (vec!["*:read"], false), (vec![], false)]
        {
            assert_eq!(narrow.leave_all_of(&scopes(&others)), is_left, "{others:?}");
            assert!(free.leave_all_of(&scopes(&others)));
        }
    }

    #[test]
    fn a_key_ends_by_another_one_s_end_or_holds_longer() {
        let ending = |expires_at| Terms { expires_at, ..Terms::default() };
        let later = NOW.plus_micros(1);
        for (own, other, ends) in [
            (None, None, true),
            (Some(NOW), None, true),
            (None, Some(NOW), false),
            (Some(NOW), Some(NOW), true),
            (Some(NOW), Some(later), true),
            (Some(later), Some(NOW), false),
        ] {
            assert_eq!(ending(own).end_by(other), ends, "{own:?} {other:?}");
        }
    }

    #[test]
    fn a_key_is_limited_as_another_one_or_lets_more_through() {
        let limited = |limits: &[(Class, u32, u32, u32)]| {
            let limit = |(class, quota, window, burst)| (class, Policy::new(quota, window, burst).unwrap());
            Terms { limits: limits.iter().copied().map(limit).collect(), ..Terms::default() }
        };
        let other = limited(&[(Class::Read, 60, 60, 10)]);
        for (own, holds) in [
            (limited(&[]), false),
            (limited(&[(Class::Write, 1, 60, 1)]), false),
            (limited(&[(Class::Read, 60, 60, 10)]), true),
            (limited(&[(Class::Read, 1, 1, 1), (Class::Write, 9, 1, 9)]), true),
            (limited(&[(Class::Read, 3_600, 3_600, 10)]), true),
            (limited(&[(Class::Read, 61, 60, 10)]), false),
            (limited(&[(Class::Read, 60, 59, 10)]), false),
            (limited(&[(Class::Read, 60, 60, 11)]), false),
            (limited(&[(Class::Read, 30, 3_600, 11)]), false),
        ] {
            assert_eq!(own.are_limited_as(&other.limits), holds, "{own:?}");
            assert!(own.are_limited_as(&[]));
        }
    }

    #[test]
    fn a_key_ends_at_the_instant_it_says() {
        let expiring = |at| ApiKey { terms: Terms { expires_at: Some(at), ..Terms::default() }, ..key() };
        assert_eq!(expiring(NOW.plus_micros(1)).ended(NOW), None);
        assert_eq!(expiring(NOW).ended(NOW), Some(Ended::Expired));
        let revoked = ApiKey { revoked_at: Some(NOW), ..expiring(NOW) };
        assert_eq!(revoked.ended(NOW), Some(Ended::Revoked));
        assert_eq!(key().ended(Timestamp::MAX), None);
    }

    #[test]
    fn a_secret_is_exchanged_and_the_old_one_ends_by_itself() {
        let rotated = key().edited(&rotate(2, 10), &Expected::OneOf(vec![1]), NOW).unwrap();
        assert_eq!((rotated.hash, rotated.version, rotated.id.as_str()), ([2; 32], 2, "k"));
        let until = NOW.plus_micros(10);
        assert_eq!(rotated.overlap(NOW.plus_micros(9)), Some(Previous { hash: [1; 32], until }));
        assert_eq!(rotated.overlap(until), None);
        // A third one waits, unless it is to be the only one.
        let refused = rotated.edited(&rotate(3, 10), &Expected::Any, NOW);
        assert_eq!(refused, Err(Refusal::Overlapping { until }));
        let alone = rotated.edited(&rotate(3, 0), &Expected::Any, NOW).unwrap();
        assert_eq!((alone.hash, alone.overlap(NOW)), ([3; 32], None));
        assert!(rotated.edited(&rotate(3, 10), &Expected::Any, until).is_ok());
        let longest = key().edited(&rotate(2, i64::MAX), &Expected::Any, NOW).unwrap();
        assert_eq!(longest.previous.unwrap().until, NOW.plus_micros(OVERLAP_MICROS_MAX));
    }

    #[test]
    fn what_is_said_changes_and_the_rest_stays() {
        let patch = Patch { name: Some("envoy".into()), scopes: Some(scopes(&["usage:report"])), ..Patch::default() };
        let changed = key().edited(&Edit::Patch(patch), &Expected::Any, NOW).unwrap();
        let terms = Terms { scopes: scopes(&["usage:report"]), ..Terms::default() };
        assert_eq!(changed, ApiKey { name: "envoy".into(), terms, version: 2, ..key() });
        let stale = key().edited(&rotate(2, 0), &Expected::OneOf(vec![2]), NOW);
        assert_eq!(stale, Err(Refusal::Stale));
    }

    #[test]
    fn a_revoked_key_stays_as_it_is_and_an_expired_one_may_be_given_time() {
        let revoked = ApiKey { revoked_at: Some(NOW), ..key() };
        let expired = ApiKey { terms: Terms { expires_at: Some(NOW), ..Terms::default() }, ..key() };
        let prolong = |at| Edit::Patch(Patch { expires_at: Some(at), ..Patch::default() });
        for (key, edit, expected) in [
            (&revoked, prolong(None), false),
            (&revoked, rotate(2, 0), false),
            (&expired, rotate(2, 0), false),
            (&expired, prolong(Some(NOW)), false),
            (&expired, prolong(Some(NOW.plus_micros(1))), true),
            (&expired, prolong(None), true),
        ] {
            let edited = key.edited(&edit, &Expected::Any, NOW);
            assert_eq!(edited.is_ok(), expected, "{edit:?}: {edited:?}");
        }
    }

    #[test]
    fn use_is_known_by_the_hour() {
        assert_eq!(hour_of(NOW), NOW);
        assert_eq!(hour_of(NOW.plus_micros(MICROS_PER_HOUR - 1)), NOW);
        assert_eq!(hour_of(Timestamp(-1)), Timestamp(-MICROS_PER_HOUR));
    }
}
