//! Sessions of browsers, what may be used once, and passwords, as changes to the control database.
//!
//! A session is its owner's matter and has no record in the platform's chain here: whoever opens and ends one writes that
//! into the chain of the tenant concerned, wherever sessions are kept. A password is set and taken away with a record.

use std::convert::Infallible;

use serde_json::json;

use super::handle::{Handle, Refused, unavailable};
use super::task::{Change, Halt, untold};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::request::{Answer, Request};
use crate::domain::session::{SecretHash, Session, Whose};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::store::database::Connection;
use crate::store::session;

/// Sessions that are over and are forgotten with one that begins; used names with one that is used.
const FORGOTTEN_A_PIECE: i64 = 100;
/// A used name is known this much longer: whoever uses it has looked at another clock, a moment before.
const USED_MARGIN_MICROS: i64 = 60 * MICROS_PER_SECOND;

impl Handle {
    /// Keeps a session that begins, and forgets some that are over.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn open_session(&self, session: Session) -> Result<(), Refused> {
        self.on_sessions(What::Open(session), Request::system()).await.map(drop)
    }

    /// The session that this secret is or was of.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn session(&self, secret: &SecretHash) -> Result<Option<Session>, Refused> {
        let mut reader = self.control_reader().await?;
        session::find(&mut reader, secret).await.map_err(unavailable)
    }

    /// Keeps a session in the place of the one with the secret `before`; false when another was faster.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn replace_session(&self, before: SecretHash, session: Session) -> Result<bool, Refused> {
        Ok(self.on_sessions(What::Replace { before, session }, Request::system()).await? == 1)
    }

    /// Ends sessions; answers how many.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn end_sessions(&self, whose: Whose) -> Result<u64, Refused> {
        self.on_sessions(What::End(whose), Request::system()).await
    }

    /// Was the name used?
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn is_used(&self, name: &str) -> Result<bool, Refused> {
        let mut reader = self.control_reader().await?;
        session::is_used(&mut reader, name).await.map_err(unavailable)
    }

    /// Is this the first use of the name? It is remembered until `until`.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn use_once(&self, name: String, until: Timestamp) -> Result<bool, Refused> {
        Ok(self.on_sessions(What::UseOnce { name, until }, Request::system()).await? == 1)
    }

    /// Gives a person a password, by its hash. What was kept for the idempotency key is no secret: it is empty.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn put_password(
        &self,
        tenant: TenantId,
        user: UserId,
        hash: String,
        request: Request,
    ) -> Result<(), Refused> {
        let request = Request { idempotency: None, ..request };
        self.on_sessions(What::PutPassword { tenant, user, hash }, request).await.map(drop)
    }

    /// Gives a person another password in the place of the one whose hash was `before`; false when it is not that any more:
    /// somebody else has set or removed it meanwhile.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn change_password(
        &self,
        tenant: TenantId,
        user: UserId,
        (before, hash): (String, String),
        request: Request,
    ) -> Result<bool, Refused> {
        let request = Request { idempotency: None, ..request };
        Ok(self.on_sessions(What::ChangePassword { tenant, user, before, hash }, request).await? == 1)
    }

    /// Keeps another hash of the same password; false when it is not `before` any more. Nothing that anybody did, so nothing
    /// for the chain.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn rehash_password(
        &self,
        tenant: TenantId,
        user: UserId,
        before: String,
        hash: String,
    ) -> Result<bool, Refused> {
        let what = What::RehashPassword { tenant, user, before, hash };
        Ok(self.on_sessions(what, Request::system()).await? == 1)
    }

    /// Takes a person's password away; false when there was none.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn drop_password(&self, tenant: TenantId, user: UserId, request: Request) -> Result<bool, Refused> {
        let request = Request { idempotency: None, ..request };
        Ok(self.on_sessions(What::DropPassword { tenant, user }, request).await? == 1)
    }

    /// The hash of a person's password.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn password(&self, tenant: TenantId, user: UserId) -> Result<Option<String>, Refused> {
        let mut reader = self.control_reader().await?;
        session::password(&mut reader, tenant, user).await.map_err(unavailable)
    }

    async fn on_sessions(&self, what: What, request: Request) -> Result<u64, Refused> {
        match self.change(what, request, untold).await {
            Ok(Answer::Fresh(rows)) => Ok(rows),
            // Asked for without an idempotency key.
            Ok(Answer::Replayed(_)) => Err(Refused::IdempotencyMismatch),
            Err(declined) => Err(Refused::Unavailable(declined.to_string())),
        }
    }
}

enum What {
    Open(Session),
    Replace { before: SecretHash, session: Session },
    End(Whose),
    UseOnce { name: String, until: Timestamp },
    PutPassword { tenant: TenantId, user: UserId, hash: String },
    ChangePassword { tenant: TenantId, user: UserId, before: String, hash: String },
    RehashPassword { tenant: TenantId, user: UserId, before: String, hash: String },
    DropPassword { tenant: TenantId, user: UserId },
}

/// Hashes and sealed documents are nobody's to read.
impl std::fmt::Debug for What {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            What::Open(_) => "OpenSession",
            What::Replace { .. } => "ReplaceSession",
            What::End(_) => "EndSessions",
            What::UseOnce { .. } => "UseOnce",
            What::PutPassword { .. } => "PutPassword",
            What::ChangePassword { .. } => "ChangePassword",
            What::RehashPassword { .. } => "RehashPassword",
            What::DropPassword { .. } => "DropPassword",
        })
    }
}

impl Change for What {
    /// How many rows.
    type Done = u64;
    type Refused = Infallible;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<u64, Halt<Infallible>> {
        let rows = match self {
            What::Open(session) => {
                session::forget(connection, now, FORGOTTEN_A_PIECE).await?;
                session::insert(connection, session).await?;
                1
            }
            What::Replace { before, session } => u64::from(session::update(connection, before, session).await?),
            What::End(whose) => session::end(connection, whose).await?,
            What::UseOnce { name, until } => {
                let long_over = now.plus_micros(-USED_MARGIN_MICROS);
                session::forget_used(connection, long_over, FORGOTTEN_A_PIECE).await?;
                u64::from(session::use_once(connection, name, *until).await?)
            }
            What::PutPassword { tenant, user, hash } => {
                session::put_password(connection, *tenant, *user, hash, now).await?;
                entries.push(entry(request, "password.set", *tenant, *user));
                1
            }
            What::ChangePassword { tenant, user, before, hash } => {
                let changed = session::change_password(connection, *tenant, *user, (before, hash), now).await?;
                if changed > 0 {
                    entries.push(entry(request, "password.set", *tenant, *user));
                }
                changed
            }
            What::RehashPassword { tenant, user, before, hash } => {
                session::rehash_password(connection, *tenant, *user, (before, hash)).await?
            }
            What::DropPassword { tenant, user } => {
                let dropped = session::delete_password(connection, *tenant, *user).await?;
                if dropped > 0 {
                    entries.push(entry(request, "password.removed", *tenant, *user));
                }
                dropped
            }
        };
        Ok(rows)
    }
}

fn entry(request: &Request, action: &str, tenant: TenantId, user: UserId) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: action.into(),
        target: format!("user:{user}"),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: json!({ "tenant": tenant.to_string() }).to_string(),
    }
}
