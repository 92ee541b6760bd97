//! Usage events as senders write them.

use platform_api::clock;
use platform_api::domain::time::Timestamp;
use serde_json::{Value, json};

use super::services;

/// A platform envelope that can be changed field by field.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub event_id: String,
    pub occurred_at: Timestamp,
    pub tenant: String,
    pub user: String,
    pub group: String,
    pub model: String,
    pub provider: String,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// Nano-US-dollars.
    pub cost: i64,
}

impl Envelope {
    pub fn new(tenant: &str) -> Envelope {
        Envelope {
            event_id: format!("event-{}", services::unique()),
            occurred_at: now(),
            tenant: tenant.to_owned(),
            user: "ada".into(),
            group: "research".into(),
            model: "gpt-4.1".into(),
            provider: "openai".into(),
            prompt_tokens: 10,
            completion_tokens: 5,
            cost: 1_500_000,
        }
    }

    pub fn tokens(mut self, prompt: i64, completion: i64) -> Envelope {
        (self.prompt_tokens, self.completion_tokens) = (prompt, completion);
        self
    }

    pub fn at(mut self, occurred_at: Timestamp) -> Envelope {
        self.occurred_at = occurred_at;
        self
    }

    pub fn total(&self) -> i64 {
        self.prompt_tokens + self.completion_tokens
    }

    pub fn json(&self) -> Value {
        json!({
            "eventId": self.event_id,
            "occurredAt": self.occurred_at.to_string(),
            "tenantId": self.tenant,
            "actor": {"userId": self.user, "groupId": self.group},
            "payload": {
                "source": "suite",
                "model": self.model,
                "provider": self.provider,
                "usage": {"promptTokens": self.prompt_tokens, "completionTokens": self.completion_tokens},
                "costUsd": money(self.cost),
            },
        })
    }
}

/// The daemon's clock, to the millisecond that is written in JSON.
pub fn now() -> Timestamp {
    Timestamp(clock::Clock::system().now().0 / 1_000 * 1_000)
}

pub fn money(nanos: i64) -> String {
    platform_api::domain::amount::NanoUsd(nanos).to_string()
}

/// A quota over all the tenant's tokens.
pub fn token_quota(limit: i64, period: &str) -> Value {
    json!({"scope": {"type": "tenant"}, "metric": "tokens", "period": period, "limit": limit,
           "thresholds": [50, 80, 100], "enforcement": "block"})
}
