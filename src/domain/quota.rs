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
    /// When nothing is left at the rate of the last hour, if that is in this period; decisions do not ask.
    pub exhausts_at: Option<Timestamp>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::amount::NanoUsd;
    use crate::domain::properties_tests::{a_quota, a_subject};
    use proptest::prelude::*;

    #[test]
    fn words_of_a_quota_are_those_of_the_documents() {
        let metrics = ["tokens", "promptTokens", "completionTokens", "cost", "requests"];
        assert_eq!(Metric::ALL.map(Metric::name), metrics);
        for metric in Metric::ALL {
            assert_eq!(Metric::from_name(metric.name()), Some(metric));
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
        for (enforcement, name) in [(Enforcement::Alert, "alert"), (Enforcement::Block, "block")] {
            assert_eq!((enforcement.name(), Enforcement::from_name(name)), (name, Some(enforcement)));
            assert_eq!(serde_json::to_value(enforcement).unwrap(), name);
        }
        assert_eq!([Level::Ok, Level::Warning, Level::Exceeded].map(Level::name), ["ok", "warning", "exceeded"]);
        assert_eq!([Verdict::Allow, Verdict::Warn, Verdict::Deny].map(Verdict::name), ["allow", "warn", "deny"]);
        assert_eq!((Metric::from_name("Tokens"), Enforcement::from_name("")), (None, None));
    }

    #[test]
    fn a_metric_counts_its_own_part() {
        let amounts = Amounts {
            requests: 1,
            prompt_tokens: 20,
            cache_read_tokens: 3,
            cache_write_tokens: 4,
            completion_tokens: 500,
            reasoning_tokens: 6,
            unclassified_tokens: 7_000,
            cost: NanoUsd(80_000),
        };
        assert_eq!(Metric::ALL.map(|metric| metric.of(&amounts)), [7_520, 20, 500, 80_000, 1]);
    }

    #[test]
    fn a_scope_is_two_words_that_fit_together() {
        let id = || "x".to_owned();
        let scopes = [
            ("group", Scope::Group(id())),
            ("user", Scope::User(id())),
            ("apiKey", Scope::ApiKey(id())),
            ("model", Scope::Model(id())),
            ("provider", Scope::Provider(id())),
        ];
        for (kind, scope) in scopes {
            assert_eq!((scope.kind(), scope.id()), (kind, "x"));
            assert_eq!(Scope::from_parts(kind, "x"), Some(scope));
            assert_eq!(Scope::from_parts(kind, ""), None, "{kind} of nobody");
        }
        assert_eq!((Scope::Tenant.kind(), Scope::Tenant.id()), ("tenant", ""));
        assert_eq!(Scope::from_parts("tenant", ""), Some(Scope::Tenant));
        assert_eq!((Scope::from_parts("tenant", "x"), Scope::from_parts("team", "x")), (None, None));
    }

    #[test]
    fn a_threshold_beyond_every_number_is_never_reached_early() {
        let quota = Quota { limit: i64::MAX, ..a_plain_quota() };
        assert_eq!(quota.threshold_amount(THRESHOLD_PERCENT_MAX), i64::MAX);
        assert_eq!(quota.threshold_amount(100), i64::MAX);
    }

    fn a_plain_quota() -> Quota {
        Quota {
            id: QuotaId(uuid::Uuid::from_u128(1)),
            scope: Scope::Tenant,
            metric: Metric::Tokens,
            period: PeriodKind::Day,
            limit: 100,
            thresholds: DEFAULT_THRESHOLDS.to_vec(),
            enforcement: Enforcement::Block,
        }
    }

    fn standing(quota: Quota, used: i64) -> Standing {
        let (remaining, level) = ((quota.limit - used).max(0), level(&quota, used));
        Standing { quota, used, remaining, level, period_start: Timestamp(0), reset_at: None, exhausts_at: None }
    }

    /// Standings of quotas with different ids.
    fn standings() -> impl Strategy<Value = Vec<Standing>> {
        prop::collection::vec((a_quota(), 0_i64..1_300), 0..8).prop_map(|picks| {
            let numbered = picks.into_iter().enumerate().map(|(number, (quota, used))| {
                let id = QuotaId(uuid::Uuid::from_u128(number as u128));
                standing(Quota { id, ..quota }, used)
            });
            numbered.collect()
        })
    }

    /// What one standing alone calls for.
    fn verdict_of(standing: &Standing) -> Verdict {
        match (standing.level, standing.quota.enforcement) {
            (Level::Ok, _) => Verdict::Allow,
            (Level::Exceeded, Enforcement::Block) => Verdict::Deny,
            (Level::Warning, _) | (Level::Exceeded, Enforcement::Alert) => Verdict::Warn,
        }
    }

    proptest! {
        /// The amount of a threshold is the least at which so many percent of the limit are used.
        #[test]
        fn a_threshold_is_the_least_amount_that_reaches_it(
            limit in prop_oneof![1_i64..2_000, 1_i64..i64::MAX / 1_000],
            percent in 1_u16..=THRESHOLD_PERCENT_MAX,
        ) {
            let quota = Quota { limit, ..a_plain_quota() };
            let reaches = |used: i64| i128::from(used) * 100 >= i128::from(limit) * i128::from(percent);
            let least = quota.threshold_amount(percent);
            prop_assert!(reaches(least) && !reaches(least - 1), "{}", least);
        }

        /// A level is about the limit and the lowest threshold, and more usage never lowers it.
        #[test]
        fn levels_grow_with_usage(quota in a_quota(), used in 0_i64..2_000, more in 0_i64..2_000) {
            let lowest = quota.thresholds.iter().min().copied();
            let warned = lowest.is_some_and(|percent| used * 100 >= quota.limit * i64::from(percent));
            let expected = if used >= quota.limit { Level::Exceeded } else if warned { Level::Warning } else { Level::Ok };
            prop_assert_eq!(level(&quota, used), expected);
            prop_assert!(level(&quota, used) <= level(&quota, used + more));
        }

        /// The strongest verdict wins; what is not ok is the reason; the order of the question does not matter.
        #[test]
        fn the_strongest_verdict_decides(
            standings in standings().prop_shuffle(),
            version in any::<i64>(),
        ) {
            let decision = judge(standings.clone(), version);
            prop_assert_eq!(decision.verdict, standings.iter().map(verdict_of).max().unwrap_or(Verdict::Allow));
            let mut not_ok: Vec<QuotaId> =
                standings.iter().filter(|one| one.level != Level::Ok).map(|one| one.quota.id).collect();
            let mut reasons: Vec<QuotaId> = decision.reasons.iter().map(|one| one.quota.id).collect();
            not_ok.sort();
            reasons.sort();
            prop_assert_eq!(reasons, not_ok);
            prop_assert_eq!(decision.version, version);
            let mut turned = standings;
            turned.reverse();
            prop_assert_eq!(judge(turned, version), decision);
        }

        /// Tightest first: by verdict, then by the share that is left, in millionths.
        #[test]
        fn the_tightest_comes_first(standings in standings()) {
            let share = |one: &Standing| one.remaining * 1_000_000 / one.quota.limit;
            let decision = judge(standings.clone(), 0);
            let tightest = standings.iter().min_by_key(|one| (std::cmp::Reverse(verdict_of(one)), share(one), one.quota.id));
            prop_assert_eq!(decision.tightest.as_ref(), tightest);
            for pair in decision.reasons.windows(2) {
                let key = |one: &Standing| (std::cmp::Reverse(verdict_of(one)), share(one), one.quota.id);
                prop_assert!(key(&pair[0]) < key(&pair[1]));
            }
        }

        /// One quota more never makes the answer milder.
        #[test]
        fn another_quota_never_weakens_a_verdict(standings in standings(), keep in 0_usize..8) {
            let fewer: Vec<Standing> = standings.iter().take(keep).cloned().collect();
            prop_assert!(judge(fewer, 0).verdict <= judge(standings, 0).verdict);
        }

        /// A scope covers a subject when the subject's word of that kind is its own.
        #[test]
        fn a_scope_covers_its_own_subject_alone(subject in a_subject(), other in a_subject()) {
            let words = [
                ("group", &subject.group, &other.group),
                ("user", &subject.user, &other.user),
                ("apiKey", &subject.api_key, &other.api_key),
                ("model", &subject.model, &other.model),
                ("provider", &subject.provider, &other.provider),
            ];
            prop_assert!(Scope::Tenant.covers(&subject));
            for (kind, mine, theirs) in words {
                if let Some(scope) = Scope::from_parts(kind, mine) {
                    prop_assert!(scope.covers(&subject));
                    prop_assert_eq!(scope.covers(&other), mine == theirs);
                }
            }
        }
    }
}
