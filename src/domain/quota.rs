//! Limits, where a tenant stands against them, and what a gateway should do about it.

use serde::{Deserialize, Serialize};

use super::ids::QuotaId;
use super::period::PeriodKind;
use super::time::Timestamp;
use super::usage::{Amounts, Subject};

/// Most quotas one tenant may have.
pub const QUOTAS_MAX: usize = 500;
/// Most thresholds one quota may have.
pub const THRESHOLDS_MAX: usize = 10;
/// Highest threshold, in percent of the limit.
pub const THRESHOLD_PERCENT_MAX: u16 = 1_000;
/// The thresholds of a quota that names none.
pub const DEFAULT_THRESHOLDS: [u16; 3] = [50, 80, 100];

/// Whose usage a quota counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Tenant,
    Group(String),
    User(String),
    ApiKey(String),
    Model(String),
    Provider(String),
}

impl Scope {
    /// The word used in JSON and SQL.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Scope::Tenant => "tenant",
            Scope::Group(_) => "group",
            Scope::User(_) => "user",
            Scope::ApiKey(_) => "apiKey",
            Scope::Model(_) => "model",
            Scope::Provider(_) => "provider",
        }
    }

    /// The id within the kind; empty for the tenant.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Scope::Tenant => "",
            Scope::Group(id) | Scope::User(id) | Scope::ApiKey(id) | Scope::Model(id) | Scope::Provider(id) => id,
        }
    }

    /// The scope named by its two words, or `None` when they do not fit together.
    #[must_use]
    pub fn from_parts(kind: &str, id: &str) -> Option<Scope> {
        let make = match kind {
            "tenant" if id.is_empty() => return Some(Scope::Tenant),
            "group" => Scope::Group,
            "user" => Scope::User,
            "apiKey" => Scope::ApiKey,
            "model" => Scope::Model,
            "provider" => Scope::Provider,
            _ => return None,
        };
        (!id.is_empty()).then(|| make(id.to_owned()))
    }

    /// Does usage attributed to `subject` count against this scope?
    #[must_use]
    pub fn covers(&self, subject: &Subject) -> bool {
        match self {
            Scope::Tenant => true,
            Scope::Group(id) => *id == subject.group,
            Scope::User(id) => *id == subject.user,
            Scope::ApiKey(id) => *id == subject.api_key,
            Scope::Model(id) => *id == subject.model,
            Scope::Provider(id) => *id == subject.provider,
        }
    }
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// Prompt + completion tokens.
    Tokens,
    PromptTokens,
    CompletionTokens,
    /// Nano-US-dollars inside, a decimal string of dollars in JSON.
    Cost,
    Requests,
}

impl Metric {
    pub const ALL: [Metric; 5] =
        [Metric::Tokens, Metric::PromptTokens, Metric::CompletionTokens, Metric::Cost, Metric::Requests];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::Tokens => "tokens",
            Metric::PromptTokens => "promptTokens",
            Metric::CompletionTokens => "completionTokens",
            Metric::Cost => "cost",
            Metric::Requests => "requests",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Metric> {
        Metric::ALL.into_iter().find(|metric| metric.name() == name)
    }

    /// This metric's part of `amounts`.
    #[must_use]
    pub fn of(self, amounts: &Amounts) -> i64 {
        match self {
            Metric::Tokens => amounts.total_tokens(),
            Metric::PromptTokens => amounts.prompt_tokens,
            Metric::CompletionTokens => amounts.completion_tokens,
            Metric::Cost => amounts.cost.0,
            Metric::Requests => amounts.requests,
        }
    }
}

/// What happens at the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enforcement {
    /// Soft: on-call is told, gateways are warned.
    Alert,
    /// Hard: gateways are told to deny.
    Block,
}

impl Enforcement {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Enforcement::Alert => "alert",
            Enforcement::Block => "block",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Enforcement> {
        [Enforcement::Alert, Enforcement::Block].into_iter().find(|enforcement| enforcement.name() == name)
    }
}

/// One limit. Validated where it enters; see `http/quota`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    pub id: QuotaId,
    pub scope: Scope,
    pub metric: Metric,
    pub period: PeriodKind,
    /// Tokens, requests or nano-US-dollars, by the metric. Above zero.
    pub limit: i64,
    /// Percent of the limit, ascending, without repeats.
    pub thresholds: Vec<u16>,
    pub enforcement: Enforcement,
}

impl Quota {
    /// The usage at which `percent` of the limit is reached, rounded up.
    #[must_use]
    pub fn threshold_amount(&self, percent: u16) -> i64 {
        let exact = i128::from(self.limit) * i128::from(percent);
        i64::try_from((exact + 99) / 100).unwrap_or(i64::MAX)
    }
}

/// How a quota stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Ok,
    /// The lowest threshold is reached.
    Warning,
    /// The limit is reached.
    Exceeded,
}

impl Level {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Exceeded => "exceeded",
        }
    }
}

/// One quota in its running period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub quota: Quota,
    pub used: i64,
    /// Never below zero.
    pub remaining: i64,
    pub level: Level,
    pub period_start: Timestamp,
    /// `None` for a quota over all time.
    pub reset_at: Option<Timestamp>,
}

/// Judges `used` against a quota.
#[must_use]
pub fn level(quota: &Quota, used: i64) -> Level {
    let warned = quota.thresholds.first().is_some_and(|percent| used >= quota.threshold_amount(*percent));
    match (used >= quota.limit, warned) {
        (true, _) => Level::Exceeded,
        (false, true) => Level::Warning,
        (false, false) => Level::Ok,
    }
}

/// What a gateway should do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Allow,
    /// Allow, and tell someone.
    Warn,
    Deny,
}

impl Verdict {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Warn => "warn",
            Verdict::Deny => "deny",
        }
    }
}

/// The answer to a gateway: a function of limits and counters alone (invariant Q1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// The matching quotas that are not ok, tightest first.
    pub reasons: Vec<Standing>,
    /// The tightest matching quota, whatever its level.
    pub tightest: Option<Standing>,
    /// Changes whenever the books that judged change; what the ETag is made of.
    pub version: i64,
}

/// All matching quotas apply at once; the tightest decides. A hard limit that is reached denies; a threshold or a
/// soft limit that is reached warns.
#[must_use]
pub fn judge(matching: Vec<Standing>, version: i64) -> Decision {
    let verdict_of = |standing: &Standing| match (standing.level, standing.quota.enforcement) {
        (Level::Exceeded, Enforcement::Block) => Verdict::Deny,
        (Level::Ok, _) => Verdict::Allow,
        _ => Verdict::Warn,
    };
    // Tightest: the strongest verdict, then the smallest share left.
    let share_left =
        |standing: &Standing| i128::from(standing.remaining) * 1_000_000 / i128::from(standing.quota.limit.max(1));
    let mut ranked = matching;
    ranked.sort_by_key(|standing| (std::cmp::Reverse(verdict_of(standing)), share_left(standing), standing.quota.id));
    Decision {
        verdict: ranked.first().map_or(Verdict::Allow, verdict_of),
        tightest: ranked.first().cloned(),
        reasons: ranked.into_iter().filter(|standing| standing.level != Level::Ok).collect(),
        version,
    }
}
