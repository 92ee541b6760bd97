//! What a kind of work is, and which there are.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::audit_verification::AuditVerification;
use super::data_keys::{Rewrapping, Rotation};
use super::housekeeping::Housekeeping;
use super::litellm_sync::LiteLlmSync;
use super::runner::Desk;
use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::domain::job::{Job, Kind};
use crate::outlet::litellm::LiteLlm;
use crate::vault::Vault;

/// What does a kind of work.
pub trait Work: Send + Sync {
    fn kind(&self) -> Kind;

    /// Does the job, or goes on from its checkpoint. Looks now and then at [`Errand::stop`], and says how far it is.
    ///
    /// # Errors
    /// [`Failure`]; the words are kept and shown, so they hold no secret.
    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>>;
}

/// Why a try did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Another try may succeed.
    Retryable(String),
    /// No other try would.
    Hopeless(String),
    /// It was asked to stop, and has stopped at its last checkpoint.
    Stopped,
}

/// One try of one job, as its work sees it.
pub struct Errand {
    pub job: Job,
    pub directory: Directory,
    /// The job is to be canceled, or the daemon is leaving.
    pub stop: CancellationToken,
    pub(super) desk: Arc<Desk>,
}

impl Errand {
    /// Where the last try has come to; `None` for the first, or when it cannot be read.
    #[must_use]
    pub fn checkpoint<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(&self.job.checkpoint).ok()
    }

    /// Says how far the work is, and where another try would go on. It is kept with the next sign of life.
    pub fn progress(&self, done: i64, total: Option<i64>, note: &str, checkpoint: Option<&Value>) {
        self.desk.write(done, total, note, checkpoint);
    }
}

/// What some kinds of work need besides the directory.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    /// `None` without a vault.
    pub vault: Option<Vault>,
    /// The LiteLLM that providers are brought to, if there is one, and how often everything is compared.
    pub litellm: Option<(LiteLlm, Duration)>,
}

/// Every kind there is.
#[must_use]
pub fn all(settings: &config::Jobs, tools: &Tools) -> Vec<Arc<dyn Work>> {
    vec![
        Arc::new(AuditVerification),
        Arc::new(Housekeeping::new(settings)),
        Arc::new(Rotation(tools.vault.clone())),
        Arc::new(Rewrapping(tools.vault.clone())),
        Arc::new(LiteLlmSync(tools.clone())),
    ]
}
