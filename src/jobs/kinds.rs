//! What a kind of work is, and which there are.

use std::sync::Arc;
use std::time::Duration;

use super::audit_sweep::AuditSweep;
use super::audit_verification::AuditVerification;
use super::data_keys::{Rewrapping, Rotation};
use super::housekeeping::Housekeeping;
use super::litellm_sync::LiteLlmSync;
use crate::config;
pub use crate::directory::errand::{Errand, Failure, Work};
use crate::directory::workflow::FinishChange;
use crate::outlet::litellm::LiteLlm;
use crate::vault::Vault;

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
        Arc::new(AuditSweep),
        Arc::new(Housekeeping::new(settings)),
        Arc::new(Rotation(tools.vault.clone())),
        Arc::new(Rewrapping(tools.vault.clone())),
        Arc::new(LiteLlmSync(tools.clone())),
        Arc::new(FinishChange),
    ]
}
