//! What a descriptor asks, and how an answer is told. Pure.

use crate::config::{EnvoyKeys, OnUnknown};
use crate::domain::ids::TenantId;
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Decision, Metric, Standing, Verdict};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{LABEL_BYTES_MAX, Subject};
use crate::rate_limit::Refusal;

use super::wire::{Code, Descriptor, DescriptorStatus, Duration, HeaderValue, RateLimit, RateLimitResponse, Unit};

/// A header that Envoy adds to what its client gets: the strongest word of all descriptors.
const DECISION_HEADER: &str = "x-platform-api-decision";
/// And why, when no quota is the reason: a code of the decision's reasons.
const REASON_HEADER: &str = "x-platform-api-reason";
const RETRY_AFTER_HEADER: &str = "retry-after";
/// Money is told in US cents: the protocol's numbers have 32 bits.
const NANOS_PER_CENT: i64 = 10_000_000;

/// One descriptor, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) tenant: TenantId,
    pub(super) subject: Subject,
    /// Models that it names beside the subject's: too long for a label, or more than one. No quota is about them, and the
    /// tenant's policy has to have each.
    pub(super) further_models: Vec<String>,
}

/// What is known about one descriptor.
#[derive(Debug)]
pub(super) enum Answer {
    Judged {
        decision: Box<Decision>,
        /// Why it is denied, whatever the quotas say: the tenant, the user, the group or the key is no longer admitted, or
        /// the model not allowed.
        barred: Option<&'static str>,
        /// The limit that the tenant's traffic is over.
        refusal: Option<Box<Refusal>>,
    },
    /// It names no tenant of ours.
    Unknown,
    /// The tenant is starting, frozen or elsewhere.
    Unavailable,
}

impl Answer {
    /// Whether the request may pass as far as this answer knows.
    pub(super) fn passes(&self, on_unknown: OnUnknown) -> bool {
        match self {
            Answer::Judged { decision, barred, refusal } => {
                barred.is_none() && refusal.is_none() && decision.verdict != Verdict::Deny
            }
            Answer::Unknown => on_unknown != OnUnknown::Deny,
            Answer::Unavailable => false,
        }
    }

    /// The tenant's traffic is over its limit.
    pub(super) fn refuse(&mut self, over: Refusal) {
        if let Answer::Judged { refusal, .. } = self {
            *refusal = Some(Box::new(over));
        }
    }
}

/// The question in a descriptor; `None` when it names no tenant, or two.
///
/// A value that no quota can be about is left out, so that it escapes no quota that is about less. A model that is left out
/// is judged by the policy all the same.
pub(super) fn of(descriptor: &Descriptor, keys: &EnvoyKeys) -> Option<Question> {
    let value = |key: &str| -> Result<&str, Contradiction> {
        let mut values = descriptor.entries.iter().filter(|entry| entry.key == key).map(|entry| entry.value.as_str());
        let first = values.next().unwrap_or_default();
        if values.all(|other| other == first) { Ok(first) } else { Err(Contradiction) }
    };
    let label = |key: &str| match value(key) {
        Ok(text) if text.len() <= LABEL_BYTES_MAX => text.to_owned(),
        _ => String::new(),
    };
    let tenant = value(&keys.tenant).ok()?.parse().ok()?;
    let subject = Subject {
        user: label(&keys.user),
        group: label(&keys.group),
        api_key: label(&keys.api_key),
        model: label(&keys.model),
        provider: label(&keys.provider),
    };
    let further_models = match value(&keys.model) {
        Ok(text) if text == subject.model => Vec::new(),
        _ => {
            let models = descriptor.entries.iter().filter(|entry| entry.key == keys.model);
            models.map(|entry| entry.value.clone()).filter(|model| !model.is_empty()).collect()
        }
    };
    Some(Question { tenant, subject, further_models })
}

/// One key with two values.
#[derive(Debug)]
struct Contradiction;

/// The word for a call and what is said about it; `None` when nothing can be: somebody could not be asked, and nobody denies.
pub(super) fn response(
    answers: &[Answer],
    on_unknown: OnUnknown,
    now: Timestamp,
) -> Option<(&'static str, RateLimitResponse)> {
    let statuses: Vec<DescriptorStatus> = answers.iter().map(|answer| status(answer, on_unknown, now)).collect();
    let denied = statuses.iter().any(|status| status.code() == Code::OverLimit);
    if !denied && answers.iter().any(|answer| matches!(answer, Answer::Unavailable)) {
        return None;
    }
    let word = answers.iter().map(word).max().map_or(Word::Unknown, |word| word).name();
    let mut headers = vec![header(DECISION_HEADER, word.to_owned())];
    // The longest wait of those who deny: before it, another one still does.
    let waits = statuses.iter().filter(|status| status.code() == Code::OverLimit);
    if let Some(wait) = waits.filter_map(|status| status.duration_until_reset).map(whole_seconds).max() {
        headers.push(header(RETRY_AFTER_HEADER, wait.to_string()));
    }
    let bar = |answer: &Answer| if let Answer::Judged { barred, .. } = answer { *barred } else { None };
    if let Some(code) = answers.iter().find_map(bar) {
        headers.push(header(REASON_HEADER, code.to_owned()));
    }
    let overall = if denied { Code::OverLimit } else { Code::Ok };
    Some((word, RateLimitResponse { overall_code: overall.into(), statuses, response_headers_to_add: headers }))
}

/// What a call is told as, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Allow,
    Unknown,
    Warn,
    Deny,
}

impl Word {
    fn name(self) -> &'static str {
        match self {
            Word::Allow => Verdict::Allow.name(),
            Word::Unknown => "unknown",
            Word::Warn => Verdict::Warn.name(),
            Word::Deny => Verdict::Deny.name(),
        }
    }
}

fn word(answer: &Answer) -> Word {
    match answer {
        Answer::Judged { barred: Some(_), .. } | Answer::Judged { refusal: Some(_), .. } => Word::Deny,
        Answer::Judged { decision, .. } => match decision.verdict {
            Verdict::Allow => Word::Allow,
            Verdict::Warn => Word::Warn,
            Verdict::Deny => Word::Deny,
        },
        Answer::Unknown | Answer::Unavailable => Word::Unknown,
    }
}

fn status(answer: &Answer, on_unknown: OnUnknown, now: Timestamp) -> DescriptorStatus {
    if let Answer::Judged { refusal: Some(refusal), barred: None, .. } = answer {
        return refused(refusal);
    }
    let (code, tightest) = match answer {
        // It ends when a person ends it: there is no time to tell.
        Answer::Judged { barred: Some(_), .. } => (Code::OverLimit, None),
        Answer::Judged { decision, .. } => {
            let denied = decision.verdict == Verdict::Deny;
            (if denied { Code::OverLimit } else { Code::Ok }, decision.tightest.as_ref())
        }
        Answer::Unknown if on_unknown == OnUnknown::Deny => (Code::OverLimit, None),
        Answer::Unknown => (Code::Ok, None),
        Answer::Unavailable => (Code::Unknown, None),
    };
    DescriptorStatus {
        code: code.into(),
        current_limit: tightest.map(limit),
        limit_remaining: tightest.map_or(0, |standing| small(standing.quota.metric, standing.remaining)),
        duration_until_reset: tightest.and_then(|standing| standing.reset_at).map(|reset| until(reset, now)),
    }
}

/// A request over the limit of the tenant's traffic.
fn refused(refusal: &Refusal) -> DescriptorStatus {
    let policy = refusal.policy;
    let unit = match policy.window_seconds() {
        1 => Unit::Second,
        60 => Unit::Minute,
        3_600 => Unit::Hour,
        86_400 => Unit::Day,
        _ => Unit::Unknown,
    };
    let limit =
        RateLimit { requests_per_unit: policy.quota(), unit: unit.into(), name: refusal.class.name().to_owned() };
    let nanos = i32::try_from(refusal.wait % 1_000_000_000).unwrap_or_default();
    DescriptorStatus {
        code: Code::OverLimit.into(),
        current_limit: Some(limit),
        limit_remaining: 0,
        duration_until_reset: Some(Duration { seconds: refusal.wait / 1_000_000_000, nanos }),
    }
}

/// Protocol and gateway speak of requests; the name says what it is of.
fn limit(standing: &Standing) -> RateLimit {
    let quota = &standing.quota;
    let unit = match quota.period {
        PeriodKind::Minute => Unit::Minute,
        PeriodKind::Hour => Unit::Hour,
        PeriodKind::Day => Unit::Day,
        PeriodKind::Month => Unit::Month,
        PeriodKind::Week | PeriodKind::Total => Unit::Unknown,
    };
    let metric = if quota.metric == Metric::Cost { "costCents" } else { quota.metric.name() };
    RateLimit {
        requests_per_unit: small(quota.metric, quota.limit),
        unit: unit.into(),
        name: format!("{} {metric} {}", quota.scope.kind(), quota.period.name()),
    }
}

/// In the protocol's 32 bits, as near as they come.
fn small(metric: Metric, amount: i64) -> u32 {
    let amount = if metric == Metric::Cost { amount / NANOS_PER_CENT } else { amount };
    u32::try_from(amount.max(0)).unwrap_or(u32::MAX)
}

fn until(reset: Timestamp, now: Timestamp) -> Duration {
    let micros = (reset.0 - now.0).max(0);
    let nanos = i32::try_from(micros % MICROS_PER_SECOND * 1_000).unwrap_or_default();
    Duration { seconds: micros / MICROS_PER_SECOND, nanos }
}

/// Rounded up: who comes back after it finds the new period.
fn whole_seconds(duration: Duration) -> i64 {
    duration.seconds + i64::from(duration.nanos > 0)
}

fn header(key: &str, value: String) -> HeaderValue {
    HeaderValue { key: key.to_owned(), value }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Entry, RateLimitRequest};
    use super::*;
    use crate::domain::ids::QuotaId;
    use crate::domain::quota::{Enforcement, Quota, Scope, judge, level};
    use prost::Message;

    const TENANT: &str = "0199a8b2-5c00-7abc-8def-0123456789ab";

    fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
        let entries = entries.iter().map(|(key, value)| Entry { key: (*key).into(), value: (*value).into() });
        Descriptor { entries: entries.collect() }
    }

    fn judged(used: i64, enforcement: Enforcement) -> Answer {
        let quota = Quota {
            id: QuotaId(uuid::Uuid::from_u128(7)),
            scope: Scope::Tenant,
            metric: Metric::Cost,
            period: PeriodKind::Day,
            limit: 50 * NANOS_PER_CENT,
            thresholds: vec![80],
            enforcement,
        };
        let (level, remaining) = (level(&quota, used), (quota.limit - used).max(0));
        let reset_at = Some(Timestamp(3_000_001));
        let standing =
            Standing { quota, used, remaining, level, period_start: Timestamp(0), reset_at, exhausts_at: None };
        Answer::Judged { decision: Box::new(judge(vec![standing], 1)), barred: None, refusal: None }
    }

    fn told(answers: &[Answer], on_unknown: OnUnknown) -> Option<(&'static str, Code)> {
        response(answers, on_unknown, Timestamp(1_000_000)).map(|(word, response)| {
            assert_eq!(response.statuses.len(), answers.len());
            (word, response.overall_code())
        })
    }

    #[test]
    fn a_descriptor_is_a_question_about_one_tenant() {
        let keys = EnvoyKeys::default();
        let asked = of(
            &descriptor(&[("tenant_id", TENANT), ("model", "gpt-5"), ("api_key_id", "k1"), ("path", "/v1/chat")]),
            &keys,
        )
        .unwrap();
        assert_eq!(asked.tenant.to_string(), TENANT);
        assert_eq!(asked.subject, Subject { model: "gpt-5".into(), api_key: "k1".into(), ..Subject::default() });
        assert!(asked.further_models.is_empty());
        for entries in [
            &[("model", "gpt-5")][..],
            &[("tenant_id", "acme")],
            &[("tenant_id", TENANT), ("tenant_id", "0199a8b2-5c00-7abc-8def-0123456789ac")],
            &[],
        ] {
            assert_eq!(of(&descriptor(entries), &keys), None, "{entries:?}");
        }
        let renamed = EnvoyKeys { tenant: "x-tenant".into(), ..keys };
        assert!(of(&descriptor(&[("x-tenant", TENANT)]), &renamed).is_some());
    }

    #[test]
    fn a_label_that_no_quota_can_be_about_escapes_no_other() {
        let long = "m".repeat(LABEL_BYTES_MAX + 1);
        let keys = EnvoyKeys::default();
        for entries in [[("model", long.as_str()), ("model", &long)], [("model", "a"), ("model", "b")]] {
            let mut entries = entries.to_vec();
            entries.extend([("tenant_id", TENANT), ("user_id", "ada")]);
            let asked = of(&descriptor(&entries), &keys).unwrap();
            assert_eq!(asked.subject, Subject { user: "ada".into(), ..Subject::default() });
            assert_eq!(asked.further_models, [entries[0].1, entries[1].1], "nor the policy");
        }
    }

    #[test]
    fn the_strongest_descriptor_decides() {
        use OnUnknown::{Allow, Deny};
        let free = || judged(0, Enforcement::Block);
        let warned = || judged(45 * NANOS_PER_CENT, Enforcement::Block);
        let denied = || judged(50 * NANOS_PER_CENT, Enforcement::Block);
        let soft = || judged(50 * NANOS_PER_CENT, Enforcement::Alert);
        for (answers, on_unknown, expected) in [
            (vec![free()], Allow, Some(("allow", Code::Ok))),
            (vec![free(), warned()], Allow, Some(("warn", Code::Ok))),
            (vec![soft()], Allow, Some(("warn", Code::Ok))),
            (vec![free(), denied(), warned()], Allow, Some(("deny", Code::OverLimit))),
            (vec![Answer::Unknown], Allow, Some(("unknown", Code::Ok))),
            (vec![Answer::Unknown, free()], Deny, Some(("unknown", Code::OverLimit))),
            (vec![free(), Answer::Unavailable], Allow, None),
            (vec![denied(), Answer::Unavailable], Allow, Some(("deny", Code::OverLimit))),
        ] {
            assert_eq!(told(&answers, on_unknown), expected, "{answers:?} {on_unknown:?}");
        }
    }

    #[test]
    fn a_denial_says_what_of_and_until_when() {
        let answers = [judged(50 * NANOS_PER_CENT, Enforcement::Block), judged(0, Enforcement::Block)];
        let (_, response) = response(&answers, OnUnknown::Allow, Timestamp(1_000_000)).unwrap();
        let [denied, free] = &response.statuses[..] else { panic!("two") };
        assert_eq!((denied.code(), denied.limit_remaining, free.limit_remaining), (Code::OverLimit, 0, 50));
        let limit = denied.current_limit.as_ref().unwrap();
        assert_eq!(
            (limit.requests_per_unit, limit.unit(), limit.name.as_str()),
            (50, Unit::Day, "tenant costCents day")
        );
        assert_eq!(denied.duration_until_reset, Some(Duration { seconds: 2, nanos: 1_000 }));
        let headers: Vec<(&str, &str)> = response
            .response_headers_to_add
            .iter()
            .map(|header| (header.key.as_str(), header.value.as_str()))
            .collect();
        assert_eq!(headers, [("x-platform-api-decision", "deny"), ("retry-after", "3")]);
    }

    #[test]
    fn traffic_over_its_limit_is_denied_until_a_request_passes() {
        use crate::domain::rate_limit::{Class, Policy};
        let policy = Policy::new(30, 60, 5).unwrap();
        let mut answers = [judged(0, Enforcement::Block), Answer::Unknown];
        assert!(answers.iter().all(|answer| answer.passes(OnUnknown::Allow)));
        assert!(!answers[1].passes(OnUnknown::Deny) && !Answer::Unavailable.passes(OnUnknown::Allow));
        answers.iter_mut().for_each(|answer| {
            answer.refuse(Refusal { class: Class::TenantTraffic, policy, wait: 1_500_000_000 });
        });
        assert!(!answers[0].passes(OnUnknown::Allow));
        let (word, response) = response(&answers, OnUnknown::Allow, Timestamp(0)).unwrap();
        assert_eq!((word, response.overall_code()), ("deny", Code::OverLimit));
        let limit = response.statuses[0].current_limit.as_ref().unwrap();
        assert_eq!((limit.requests_per_unit, limit.unit(), limit.name.as_str()), (30, Unit::Minute, "tenantTraffic"));
        let wait = Duration { seconds: 1, nanos: 500_000_000 };
        assert_eq!(response.statuses[0].duration_until_reset, Some(wait));
        assert_eq!(response.response_headers_to_add[1], header("retry-after", "2".into()));
        assert_eq!(response.statuses[1].code(), Code::Ok, "nobody's limit");
    }

    #[test]
    fn who_is_barred_is_denied_whatever_the_quotas_say_and_told_why() {
        for code in ["TENANT_SUSPENDED", "MODEL_NOT_ALLOWED"] {
            let Answer::Judged { decision, .. } = judged(0, Enforcement::Alert) else { panic!("judged") };
            let barred = Answer::Judged { decision, barred: Some(code), refusal: None };
            assert!(!barred.passes(OnUnknown::Allow));
            let answers = [judged(0, Enforcement::Alert), barred];
            let (word, response) = response(&answers, OnUnknown::Allow, Timestamp(0)).unwrap();
            assert_eq!((word, response.overall_code()), ("deny", Code::OverLimit));
            assert_eq!(response.statuses[1].current_limit, None);
            assert_eq!(response.response_headers_to_add[1..], [header("x-platform-api-reason", code.into())]);
        }
    }

    #[test]
    fn what_does_not_fit_is_told_as_near_as_it_comes() {
        assert_eq!(small(Metric::Tokens, i64::MAX), u32::MAX);
        assert_eq!(small(Metric::Requests, -1), 0);
        assert_eq!(small(Metric::Cost, NANOS_PER_CENT - 1), 0);
    }

    /// Bytes made by another implementation from the published definition; see `golden`.
    #[test]
    fn the_messages_are_the_published_ones() {
        let request = RateLimitRequest::decode(&golden::REQUEST[..]).unwrap();
        assert_eq!(request.domain, "llm");
        assert_eq!(request.descriptors, [descriptor(&[("tenant_id", "t1"), ("model", "gpt-5")])]);
        let written = RateLimitResponse {
            overall_code: Code::OverLimit.into(),
            statuses: vec![DescriptorStatus {
                code: Code::OverLimit.into(),
                current_limit: Some(RateLimit { requests_per_unit: 300, unit: Unit::Day.into(), name: "n".into() }),
                limit_remaining: 7,
                duration_until_reset: Some(Duration { seconds: 3, nanos: 4_000 }),
            }],
            response_headers_to_add: vec![header("retry-after", "3".into())],
        };
        assert_eq!(RateLimitResponse::decode(&golden::RESPONSE[..]).unwrap(), written);
        assert_eq!(RateLimitResponse::decode(&written.encode_to_vec()[..]).unwrap(), written);
    }

    mod golden {
        include!("golden_test.rs");
    }
}
