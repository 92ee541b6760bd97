//! A browser's session: whose it is, until when, and which secret speaks for it.
//!
//! The secret changes with every refresh. The one before is good for a moment longer, because requests overtake each other
//! and answers get lost; whoever comes with an older one has copied it, and the session ends for everybody who has it.

use super::ids::SessionId;
use super::time::Timestamp;

/// Refreshes of one session; it ends with the last one.
pub const ROTATIONS_MAX: i64 = 1_000;

/// SHA-256 of a session's secret: all that is kept of it.
pub type SecretHash = [u8; 32];

/// A session as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    /// `iss` of who has vouched for the person.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// What the issuer calls its own session (`sid`); empty when it did not say.
    pub provider_session: String,
    pub secret: SecretHash,
    /// The secret before; zeros when there was none.
    pub previous: SecretHash,
    pub rotated_at: Timestamp,
    /// How often the secret has changed.
    pub rotations: i64,
    pub created_at: Timestamp,
    /// It ends then unless it is refreshed.
    pub idle_until: Timestamp,
    /// It ends then in any case.
    pub ends_at: Timestamp,
    /// Who the person is, as the one who keeps it writes it; no business of the store's.
    pub document: String,
}

/// What a secret is worth that belongs to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The one of now.
    Current,
    /// The one before, a moment after it was replaced.
    Replaced,
    /// One from longer ago: a copy is going about.
    Reused,
    /// The session is over.
    Over,
}

/// Whose sessions end together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One session.
    One(SessionId),
    /// Everything that an issuer has vouched for of one person.
    Subject { issuer: String, subject: String },
    /// What belongs to one session of the issuer's; of one person only, if the issuer says which.
    Provider { issuer: String, provider_session: String, subject: Option<String> },
}

impl Session {
    /// What `secret`, which is or was this session's, is worth at `now`; a replaced one holds for `grace_micros`.
    #[must_use]
    pub fn standing(&self, secret: &SecretHash, now: Timestamp, grace_micros: i64) -> Standing {
        if now >= self.ends_at || now >= self.idle_until {
            return Standing::Over;
        }
        if *secret == self.secret {
            return Standing::Current;
        }
        let in_grace = now < self.rotated_at.plus_micros(grace_micros);
        if *secret == self.previous && in_grace { Standing::Replaced } else { Standing::Reused }
    }

    /// Is there a secret before this one that still holds at `now`?
    #[must_use]
    pub fn is_just_rotated(&self, now: Timestamp, grace_micros: i64) -> bool {
        self.rotations > 0 && now < self.rotated_at.plus_micros(grace_micros)
    }

    /// The session with its next secret, good for `idle_micros` more; `None` when it has had its last.
    #[must_use]
    pub fn rotated(&self, secret: SecretHash, now: Timestamp, idle_micros: i64) -> Option<Session> {
        (self.rotations < ROTATIONS_MAX).then(|| Session {
            secret,
            previous: self.secret,
            rotated_at: now,
            rotations: self.rotations + 1,
            idle_until: now.plus_micros(idle_micros).min(self.ends_at),
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const OLD: SecretHash = [1; 32];
    const NEW: SecretHash = [2; 32];
    const NEWEST: SecretHash = [3; 32];

    fn session() -> Session {
        Session {
            id: SessionId(Uuid::nil()),
            issuer: "https://id.example.com".into(),
            subject: "jane".into(),
            provider_session: String::new(),
            secret: OLD,
            previous: [0; 32],
            rotated_at: Timestamp(0),
            rotations: 0,
            created_at: Timestamp(0),
            idle_until: Timestamp(100),
            ends_at: Timestamp(1_000),
            document: String::new(),
        }
    }

    #[test]
    fn a_replaced_secret_holds_a_moment_and_then_betrays_its_copy() {
        let first = session();
        assert_eq!(first.standing(&OLD, Timestamp(99), 10), Standing::Current);
        let second = first.rotated(NEW, Timestamp(50), 100).unwrap();
        assert_eq!(second.standing(&NEW, Timestamp(51), 10), Standing::Current);
        assert_eq!(second.standing(&OLD, Timestamp(59), 10), Standing::Replaced);
        assert_eq!(second.standing(&OLD, Timestamp(60), 10), Standing::Reused);
        let third = second.rotated(NEWEST, Timestamp(55), 100).unwrap();
        assert_eq!(third.standing(&NEW, Timestamp(56), 10), Standing::Replaced);
        assert_eq!(third.standing(&OLD, Timestamp(56), 10), Standing::Reused, "two secrets back");
    }

    #[test]
    fn it_ends_when_nobody_refreshes_it_and_in_any_case() {
        let first = session();
        assert_eq!(first.standing(&OLD, Timestamp(100), 10), Standing::Over);
        let last = first.rotated(NEW, Timestamp(990), 100).unwrap();
        assert_eq!(last.idle_until, Timestamp(1_000));
        assert_eq!(last.standing(&NEW, Timestamp(999), 10), Standing::Current);
        assert_eq!(last.standing(&NEW, Timestamp(1_000), 10), Standing::Over);
        assert_eq!(last.standing(&OLD, Timestamp(1_000), 100), Standing::Over);
    }

    #[test]
    fn it_has_a_last_secret() {
        let worn = Session { rotations: ROTATIONS_MAX, ..session() };
        assert_eq!(worn.rotated(NEW, Timestamp(1), 100), None);
    }
}
