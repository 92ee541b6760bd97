//! Relations that somebody else keeps: OpenFGA, asked over its HTTP API.
//!
//! Off without an address. What it says no to, does not say in time, or says in a way that is not understood is no
//! permission: a relation that could not be asked for allows nothing, and a policy that denies by one denies. All tenants
//! share one store of relations, so every id goes there behind its tenant's: no tenant can name another one's.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::clock::Clock;
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::policy::question::Tuple;
use crate::domain::time::Timestamp;

/// Bytes of a subject, and of an object, as OpenFGA takes them.
const SUBJECT_BYTES_MAX: usize = 512;
const OBJECT_BYTES_MAX: usize = 256;
/// Answers that are kept at once; when there are more, all are forgotten.
const KEPT_MAX: usize = 10_000;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Asks one store of one OpenFGA.
pub struct OpenFga {
    client: reqwest::Client,
    check: reqwest::Url,
    model: Option<String>,
    token: Option<SecretString>,
    patience: Duration,
    /// How long an answer is kept; 0 for not at all.
    keep_micros: i64,
    kept: Mutex<HashMap<(TenantId, Tuple), (bool, Timestamp)>>,
    clock: Clock,
}

/// How an asking ended, for the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Allowed,
    Denied,
    TimedOut,
    Failed,
    /// Not asked: a name that means something else there.
    Unaskable,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::TimedOut => "timed_out",
            Outcome::Failed => "failed",
            Outcome::Unaskable => "unaskable",
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    allowed: bool,
}

impl OpenFga {
    /// `None` when it is off.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn new(settings: &config::OpenFga, clock: Clock) -> Result<Option<OpenFga>, reqwest::Error> {
        let Some(check) = settings.check_url() else { return Ok(None) };
        // The daemon has installed it already; installing it twice is refused and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let patience = config::millis(settings.timeout_ms);
        let client = reqwest::Client::builder()
            .timeout(patience)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Some(OpenFga {
            client,
            check,
            model: settings.authorization_model_id.clone(),
            token: settings.token.clone(),
            patience,
            keep_micros: i64::try_from(settings.keep_ms).unwrap_or(i64::MAX).saturating_mul(1_000),
            kept: Mutex::default(),
            clock,
        }))
    }

    /// Does the relation hold? `None` when that could not be found out.
    pub async fn holds(&self, tenant: TenantId, tuple: &Tuple) -> Option<bool> {
        if let Some(kept) = self.kept(tenant, tuple) {
            return Some(kept);
        }
        let outcome = match Names::of(tenant, tuple) {
            // The client's own time-out does not count the time it takes to read an answer that trickles.
            Some(names) => tokio::time::timeout(self.patience, self.ask(&names)).await.unwrap_or(Outcome::TimedOut),
            None => Outcome::Unaskable,
        };
        metrics::counter!("platform_api_openfga_checks_total", "outcome" => outcome.name()).increment(1);
        let holds = match outcome {
            Outcome::Allowed => Some(true),
            Outcome::Denied => Some(false),
            Outcome::TimedOut | Outcome::Failed | Outcome::Unaskable => None,
        };
        if let Some(holds) = holds {
            self.keep(tenant, tuple, holds);
        }
        holds
    }

    async fn ask(&self, names: &Names) -> Outcome {
        let Names { subject, relation, object } = names;
        let mut body = json!({ "tuple_key": { "user": subject, "relation": relation, "object": object } });
        if let Some(model) = &self.model {
            body["authorization_model_id"] = json!(model);
        }
        let mut request = self.client.post(self.check.clone()).json(&body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        let answer = match request.send().await.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => return Outcome::TimedOut,
            Err(error) => return failed(&error),
        };
        match read(answer).await {
            Ok(Some(Answer { allowed: true })) => Outcome::Allowed,
            Ok(Some(Answer { allowed: false })) => Outcome::Denied,
            Ok(None) => Outcome::Failed,
            Err(error) if error.is_timeout() => Outcome::TimedOut,
            Err(error) => failed(&error),
        }
    }

    fn kept(&self, tenant: TenantId, tuple: &Tuple) -> Option<bool> {
        if self.keep_micros == 0 {
            return None;
        }
        let now = self.clock.now();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (holds, at) = kept.get(&(tenant, tuple.clone()))?;
        // A clock that was set back makes an answer old, not young.
        let age = now.0.saturating_sub(at.0);
        (0..self.keep_micros).contains(&age).then_some(*holds)
    }

    fn keep(&self, tenant: TenantId, tuple: &Tuple, holds: bool) {
        if self.keep_micros == 0 {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert((tenant, tuple.clone()), (holds, self.clock.now()));
    }
}

/// The answer, if it is one.
async fn read(mut answer: reqwest::Response) -> Result<Option<Answer>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&bytes).ok())
}

fn failed(error: &reqwest::Error) -> Outcome {
    let status = error.status().map(|status| status.as_u16());
    tracing::warn!(status, connect = error.is_connect(), "OpenFGA could not be asked, which is a denial");
    Outcome::Failed
}

/// A tuple as OpenFGA knows it.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    subject: String,
    relation: String,
    object: String,
}

impl Names {
    /// `None` when a name has letters that mean something there: a userset, every user, another type.
    fn of(tenant: TenantId, tuple: &Tuple) -> Option<Names> {
        let within = |name: &str, most: usize| {
            let (kind, id) = name.split_once(':')?;
            let plain = |text: &str| {
                let means = |letter: char| ":#@*".contains(letter) || letter.is_whitespace() || letter.is_control();
                !text.is_empty() && !text.chars().any(means)
            };
            let whole = format!("{kind}:{tenant}/{id}");
            (plain(kind) && plain(id) && whole.len() <= most).then_some(whole)
        };
        Some(Names {
            subject: within(&tuple.subject, SUBJECT_BYTES_MAX)?,
            relation: tuple.relation.clone(),
            object: within(&tuple.object, OBJECT_BYTES_MAX)?,
        })
    }
}
