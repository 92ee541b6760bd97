//! Bodies that write: quotas and tenants. What is no JSON is one code, what is wrong another, and nothing else.

use platform_api::domain::ids::QuotaId;
use platform_api::domain::quota::{Metric, Scope};
use platform_api::http::{Code, reading};
use platform_api::tenant::message::QuotaDraft;

use super::Target;
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "quotas",
    check,
    seeds: &[],
    words: &[
        "quotas",
        "id",
        "scope",
        "type",
        "tenant",
        "group",
        "user",
        "apiKey",
        "model",
        "provider",
        "metric",
        "tokens",
        "promptTokens",
        "completionTokens",
        "cost",
        "requests",
        "period",
        "minute",
        "hour",
        "day",
        "week",
        "month",
        "total",
        "limit",
        "thresholds",
        "enforcement",
        "alert",
        "block",
        "250.00",
        "name",
        "slug",
        "tier",
        "timeZone",
        "Europe/Berlin",
        "externalIds",
        "source",
        "litellm",
        "kind",
        "team",
        "settings",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
    ],
};

const DEPTH_MAX: usize = 32;
const NEW: QuotaId = QuotaId(uuid::Uuid::nil());

fn check(input: &[u8]) {
    let doc = json::read(input);
    let quotas = reading::quotas(input, || NEW);
    let tenant = tenant(input);
    is_told(doc.as_ref(), input, quotas.as_ref().err().copied());
    is_told(doc.as_ref(), input, tenant.as_ref().err().copied());
    if let Some(doc) = doc {
        let turned = doc.reversed().write();
        assert_eq!(reading::quotas(turned.as_bytes(), || NEW), quotas, "the order of members matters");
        assert_eq!(self::tenant(turned.as_bytes()), tenant, "the order of members matters");
    }
    quotas.iter().flatten().for_each(is_a_quota);
}

fn tenant(bytes: &[u8]) -> Result<String, Code> {
    reading::tenant(bytes).map(|tenant| format!("{tenant:?}"))
}

/// Malformed or invalid; and the first exactly when the slow reader says so.
fn is_told(doc: Option<&Json>, input: &[u8], refused: Option<Code>) {
    let malformed = doc.is_none_or(|doc| doc.says_something_twice() || !doc.is_unicode() || doc.depth() > DEPTH_MAX);
    match refused {
        None => assert!(!malformed),
        Some(Code::ValidationFailed) => assert!(!malformed, "that is no JSON to us"),
        Some(Code::MalformedJson) => assert!(malformed || has_a_huge_number(input), "that is JSON"),
        Some(other) => panic!("refused with {other:?}"),
    }
}

/// The one thing that is JSON and unreadable: a number beyond all floats.
fn has_a_huge_number(input: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(input).is_err()
}

fn is_a_quota(draft: &QuotaDraft) {
    let quota = &draft.quota;
    assert!(quota.limit >= 1 && quota.limit <= 1_000_000_000_000_000_000);
    assert!(quota.thresholds.len() <= 10 && quota.thresholds.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(quota.thresholds.iter().all(|percent| (1..=1_000).contains(percent)));
    assert!(draft.named || quota.id == NEW);
    let id = match &quota.scope {
        Scope::Tenant => return,
        Scope::Group(id) | Scope::User(id) | Scope::ApiKey(id) | Scope::Model(id) | Scope::Provider(id) => id,
    };
    assert!((1..=256).contains(&id.len()) && !id.contains('\0'), "{id:?}");
    assert!(Metric::from_name(quota.metric.name()) == Some(quota.metric));
}
