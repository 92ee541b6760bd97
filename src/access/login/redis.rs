//! Sessions in Redis: for nodes that share them, and gone by themselves when they are over.
//!
//! `<prefix>s:<id>` is a session, `<prefix>k:<hash>` names the session of a secret, `<prefix>p:<digest>` the sessions of a
//! person, `<prefix>i:<digest>` those of an issuer's session, `<prefix>u:<digest>` what was used. Each ends with what it is of.

use std::time::Duration;

use aws_lc_rs::digest;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::keep::Away;
use crate::domain::ids::SessionId;
use crate::domain::session::{SecretHash, Session, Whose};
use crate::domain::time::Timestamp;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes a session over the one that was read, if it is still that one. KEYS: the session, its new secret. ARGV: what was
/// read, what to write, its id, and when it ends in milliseconds.
const REPLACE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[4])
redis.call('SET', KEYS[2], ARGV[3], 'PXAT', ARGV[4])
return 1
";

pub(super) struct Redis {
    connection: ConnectionManager,
    prefix: String,
}

/// A session as Redis has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: SessionId,
    issuer: String,
    subject: String,
    provider_session: String,
    secret: SecretHash,
    previous: SecretHash,
    rotated_at: i64,
    rotations: i64,
    created_at: i64,
    idle_until: i64,
    ends_at: i64,
    document: String,
}

impl Redis {
    /// Connects with the first question.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub(super) fn open_at(url: &SecretString, prefix: &str) -> Result<Redis, String> {
        let unusable = |_| "redis.url: must be a redis:// or rediss:// URL".to_owned();
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let at = url.expose_secret().into_connection_info().map_err(unusable)?;
        let at = at.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(1);
        let manager = redis::Client::open(at).and_then(|client| client.get_connection_manager_lazy(settings));
        Ok(Redis { connection: manager.map_err(unusable)?, prefix: prefix.to_owned() })
    }

    pub(super) async fn open(&self, session: &Session) -> Result<(), Away> {
        let (id, until) = (session.id.to_string(), millis(session.ends_at));
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("SET").arg(self.session(&id)).arg(written(session)).arg("PXAT").arg(until);
        pipe.cmd("SET").arg(self.secret(&session.secret)).arg(&id).arg("PXAT").arg(until);
        let mut sets = vec![self.person(&session.issuer, &session.subject)];
        if !session.provider_session.is_empty() {
            sets.push(self.provider(&session.issuer, &session.provider_session));
        }
        for set in sets {
            pipe.cmd("SADD").arg(&set).arg(&id);
            // Sessions are of one length: the set lives as long as its youngest.
            pipe.cmd("PEXPIREAT").arg(&set).arg(until);
        }
        pipe.query_async::<()>(&mut self.connection.clone()).await.map_err(away)
    }

    pub(super) async fn find(&self, secret: &SecretHash) -> Result<Option<Session>, Away> {
        let mut connection = self.connection.clone();
        let get = |key: String| redis::cmd("GET").arg(key).to_owned();
        let id: Option<String> = get(self.secret(secret)).query_async(&mut connection).await.map_err(away)?;
        let Some(id) = id else { return Ok(None) };
        let text: Option<String> = get(self.session(&id)).query_async(&mut connection).await.map_err(away)?;
        Ok(text.as_deref().and_then(read))
    }

    pub(super) async fn replace(&self, before: &Session, session: &Session) -> Result<bool, Away> {
        let id = session.id.to_string();
        let mut command = redis::cmd("EVAL");
        command.arg(REPLACE).arg(2).arg(self.session(&id)).arg(self.secret(&session.secret));
        command.arg(written(before)).arg(written(session)).arg(&id).arg(millis(session.ends_at));
        let replaced: i64 = command.query_async(&mut self.connection.clone()).await.map_err(away)?;
        Ok(replaced == 1)
    }

    pub(super) async fn end(&self, whose: &Whose) -> Result<u64, Away> {
        let mut connection = self.connection.clone();
        let set = match whose {
            Whose::One(id) => return self.delete(&id.to_string()).await,
            Whose::Subject { issuer, subject } => self.person(issuer, subject),
            Whose::Provider { issuer, provider_session, .. } => self.provider(issuer, provider_session),
        };
        let ids: Vec<String> = redis::cmd("SMEMBERS").arg(&set).query_async(&mut connection).await.map_err(away)?;
        let mut ended = 0;
        for id in ids {
            if let Whose::Provider { subject: Some(subject), .. } = whose {
                let text: Option<String> =
                    redis::cmd("GET").arg(self.session(&id)).query_async(&mut connection).await.map_err(away)?;
                if text.as_deref().and_then(read).is_some_and(|session| session.subject != *subject) {
                    continue;
                }
            }
            ended += self.delete(&id).await?;
        }
        Ok(ended)
    }

    async fn delete(&self, id: &str) -> Result<u64, Away> {
        let mut command = redis::cmd("DEL");
        command.arg(self.session(id));
        command.query_async(&mut self.connection.clone()).await.map_err(away)
    }

    pub(super) async fn use_once(&self, name: &str, until: Timestamp) -> Result<bool, Away> {
        let mut command = redis::cmd("SET");
        command.arg(self.used(name)).arg(1).arg("NX").arg("PXAT").arg(millis(until));
        let set: Option<String> = command.query_async(&mut self.connection.clone()).await.map_err(away)?;
        Ok(set.is_some())
    }

    pub(super) async fn is_used(&self, name: &str) -> Result<bool, Away> {
        let mut command = redis::cmd("EXISTS");
        command.arg(self.used(name));
        let known: i64 = command.query_async(&mut self.connection.clone()).await.map_err(away)?;
        Ok(known == 1)
    }

    fn session(&self, id: &str) -> String {
        format!("{}s:{id}", self.prefix)
    }

    fn secret(&self, hash: &SecretHash) -> String {
        format!("{}k:{}", self.prefix, hex(hash))
    }

    fn person(&self, issuer: &str, subject: &str) -> String {
        format!("{}p:{}", self.prefix, digest_of(&[issuer, subject]))
    }

    fn provider(&self, issuer: &str, session: &str) -> String {
        format!("{}i:{}", self.prefix, digest_of(&[issuer, session]))
    }

    fn used(&self, name: &str) -> String {
        format!("{}u:{}", self.prefix, digest_of(&[name]))
    }
}

fn written(session: &Session) -> String {
    let Session { id, issuer, subject, provider_session, secret, previous, rotations, document, .. } = session.clone();
    let stored = Stored {
        id,
        issuer,
        subject,
        provider_session,
        secret,
        previous,
        rotated_at: session.rotated_at.0,
        rotations,
        created_at: session.created_at.0,
        idle_until: session.idle_until.0,
        ends_at: session.ends_at.0,
        document,
    };
    // Numbers and texts always serialize.
    serde_json::to_string(&stored).unwrap_or_default()
}

/// What cannot be read is no session.
fn read(text: &str) -> Option<Session> {
    let stored: Stored = serde_json::from_str(text).ok()?;
    let Stored { id, issuer, subject, provider_session, secret, previous, rotations, document, .. } = stored;
    Some(Session {
        id,
        issuer,
        subject,
        provider_session,
        secret,
        previous,
        rotated_at: Timestamp(stored.rotated_at),
        rotations,
        created_at: Timestamp(stored.created_at),
        idle_until: Timestamp(stored.idle_until),
        ends_at: Timestamp(stored.ends_at),
        document,
    })
}

fn millis(at: Timestamp) -> i64 {
    at.0.div_euclid(1_000).saturating_add(1)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of the parts, each with its length, so that no two lists look the same.
pub(super) fn digest_of(parts: &[&str]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    hex(context.finish().as_ref())
}

#[allow(clippy::needless_pass_by_value, reason = "as errors are mapped")]
fn away(error: RedisError) -> Away {
    // The error's kind, not its text: the text may quote what was sent.
    let reason = if error.is_timeout() { "timed out".to_owned() } else { error.category().to_string() };
    tracing::warn!(reason, "the sessions are out of reach");
    Away
}
