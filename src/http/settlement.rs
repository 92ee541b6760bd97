//! What a person says about a finding of the reconciliation, and the adjusting entry that settles it.

use poem_openapi::Object;
use poem_openapi::types::Example;
use serde::{Deserialize, Deserializer, Serialize};

use super::body::present;
use super::problem::{FieldProblem, Problem};
use super::view::parse_instant;
use crate::domain::adjustment::{Adjustment, REASON_BYTES_MAX};
use crate::domain::amount::NanoUsd;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, LABEL_BYTES_MAX, Subject};
use crate::json::object;

/// The largest amount of one class in an adjusting entry, either way.
const ADJUSTMENT_MAX: i64 = 1_000_000_000_000_000;

/// What is said about a finding.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "TreatFinding", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct TreatFindingBody {
    /// Why; from 1 to 2000 bytes.
    reason: String,
}

/// How a finding is settled.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct SettleFinding {
    /// Why; from 1 to 2000 bytes.
    reason: String,
    /// An adjusting entry.
    #[serde(default, deserialize_with = "present_object", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    adjustment: Option<AdjustmentInput>,
}

/// An adjusting entry. What is absent is zero, or unknown.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[oai(rename = "Adjustment", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AdjustmentInput {
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    requests: Option<i64>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    prompt_tokens: Option<i64>,
    /// A share of the prompt tokens.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    cache_read_tokens: Option<i64>,
    /// A share of the prompt tokens.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    cache_write_tokens: Option<i64>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    completion_tokens: Option<i64>,
    /// A share of the completion tokens.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    reasoning_tokens: Option<i64>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    unclassified_tokens: Option<i64>,
    /// US dollars as a decimal string, with a minus in front where it takes away.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    cost_usd: Option<String>,
    /// In whose period it counts; the beginning of the finding's window when absent.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    occurred_at: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    group_id: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    api_key_id: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    model: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    provider: Option<String>,
}

/// A field that is an object where it is there.
fn present_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// Every problem of a body, by field.
#[derive(Default)]
struct Problems(Vec<FieldProblem>);

impl Problems {
    fn add(&mut self, pointer: &str, message: impl Into<String>) {
        self.0.push(FieldProblem { pointer: pointer.to_owned(), message: message.into() });
    }

    fn reason(&mut self, reason: &str) {
        if str::is_empty(reason.trim()) {
            self.add("/reason", "must not be empty");
        } else if reason.len() > REASON_BYTES_MAX {
            self.add("/reason", format!("must be at most {REASON_BYTES_MAX} bytes"));
        }
    }

    fn none(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::fields(self.0)) }
    }
}

impl TreatFindingBody {
    pub(super) fn checked(self) -> Result<String, Problem> {
        let mut problems = Problems::default();
        problems.reason(&self.reason);
        problems.none().map(|()| self.reason)
    }
}

impl SettleFinding {
    /// `begins` is when the finding's window begins.
    pub(super) fn checked(self, begins: Timestamp) -> Result<(String, Option<Adjustment>), Problem> {
        let mut problems = Problems::default();
        problems.reason(&self.reason);
        let adjustment = self.adjustment.map(|input| input.checked(begins, &mut problems));
        problems.none().map(|()| (self.reason, adjustment))
    }
}

impl AdjustmentInput {
    fn checked(self, begins: Timestamp, problems: &mut Problems) -> Adjustment {
        let mut amount = |name: &str, given: Option<i64>| {
            let amount = given.unwrap_or(0);
            if !(-ADJUSTMENT_MAX..=ADJUSTMENT_MAX).contains(&amount) {
                problems.add(&format!("/adjustment/{name}"), "must be at most 10^15 either way");
            }
            amount
        };
        let mut amounts = Amounts {
            requests: amount("requests", self.requests),
            prompt_tokens: amount("promptTokens", self.prompt_tokens),
            cache_read_tokens: amount("cacheReadTokens", self.cache_read_tokens),
            cache_write_tokens: amount("cacheWriteTokens", self.cache_write_tokens),
            completion_tokens: amount("completionTokens", self.completion_tokens),
            reasoning_tokens: amount("reasoningTokens", self.reasoning_tokens),
            unclassified_tokens: amount("unclassifiedTokens", self.unclassified_tokens),
            cost: NanoUsd(0),
        };
        match self.cost_usd.as_deref().map(NanoUsd::parse_decimal) {
            None => {}
            Some(Ok(cost)) if (-ADJUSTMENT_MAX..=ADJUSTMENT_MAX).contains(&cost.nanos()) => amounts.cost = cost,
            Some(Ok(_)) => problems.add("/adjustment/costUsd", "must be at most a million US dollars either way"),
            Some(Err(error)) => problems.add("/adjustment/costUsd", error.to_string()),
        }
        if problems.0.is_empty() && amounts == Amounts::default() {
            problems.add("/adjustment", "must adjust something");
        }
        let occurred_at = match self.occurred_at.as_deref().map(|text| parse_instant("occurredAt", text)) {
            None => begins,
            Some(Ok(at)) => at,
            Some(Err(_)) => {
                problems.add("/adjustment/occurredAt", "must be an RFC 3339 date-time with a zone");
                begins
            }
        };
        let mut label = |name: &str, given: Option<String>| {
            let label = given.unwrap_or_default();
            if label.len() > LABEL_BYTES_MAX {
                problems.add(&format!("/adjustment/{name}"), format!("must be at most {LABEL_BYTES_MAX} bytes"));
            }
            label
        };
        let subject = Subject {
            user: label("userId", self.user_id),
            group: label("groupId", self.group_id),
            api_key: label("apiKeyId", self.api_key_id),
            model: label("model", self.model),
            provider: label("provider", self.provider),
        };
        Adjustment { amounts, occurred_at, subject }
    }
}

impl Example for TreatFindingBody {
    fn example() -> TreatFindingBody {
        TreatFindingBody { reason: "The batch job calls the proxy directly; its owner knows.".into() }
    }
}

impl Example for SettleFinding {
    fn example() -> SettleFinding {
        let adjustment = AdjustmentInput {
            requests: Some(3),
            prompt_tokens: Some(4_200),
            completion_tokens: Some(910),
            cost_usd: Some("0.0213".into()),
            model: Some("gpt-4.1".into()),
            ..AdjustmentInput::default()
        };
        SettleFinding {
            reason: "Lost while the callback was down, by its own log.".into(),
            adjustment: Some(adjustment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settled(body: serde_json::Value) -> Result<(String, Option<Adjustment>), Vec<String>> {
        let body: SettleFinding = serde_json::from_value(body).unwrap();
        body.checked(Timestamp(7)).map_err(|problem| {
            let fields = problem.details["fields"].as_array().unwrap().clone();
            fields.iter().map(|field| field["pointer"].as_str().unwrap().to_owned()).collect()
        })
    }

    #[test]
    fn an_adjustment_may_take_away_and_must_do_something() {
        let (reason, adjustment) = settled(json!({"reason": "r", "adjustment": {"promptTokens": -5, "costUsd": "-0.5",
            "userId": "ada"}}))
        .unwrap();
        let adjustment = adjustment.unwrap();
        assert_eq!((reason.as_str(), adjustment.amounts.prompt_tokens), ("r", -5));
        assert_eq!((adjustment.amounts.cost, adjustment.occurred_at), (NanoUsd(-500_000_000), Timestamp(7)));
        assert_eq!(adjustment.subject.user, "ada");
        assert_eq!(settled(json!({"reason": "r"})).unwrap().1, None);
        for (body, pointer) in [
            (json!({"reason": " "}), "/reason"),
            (json!({"reason": "x".repeat(2_001)}), "/reason"),
            (json!({"reason": "r", "adjustment": {}}), "/adjustment"),
            (json!({"reason": "r", "adjustment": {"requests": 0}}), "/adjustment"),
            (json!({"reason": "r", "adjustment": {"requests": 1_000_000_000_000_001_i64}}), "/adjustment/requests"),
            (json!({"reason": "r", "adjustment": {"costUsd": "1,5"}}), "/adjustment/costUsd"),
            (json!({"reason": "r", "adjustment": {"costUsd": "99999999"}}), "/adjustment/costUsd"),
            (json!({"reason": "r", "adjustment": {"requests": 1, "occurredAt": "today"}}), "/adjustment/occurredAt"),
            (json!({"reason": "r", "adjustment": {"requests": 1, "model": "m".repeat(257)}}), "/adjustment/model"),
        ] {
            assert_eq!(settled(body.clone()).unwrap_err(), [pointer], "{body}");
        }
        let shapeless = json!({"reason": "r", "adjustment": [1]});
        assert!(serde_json::from_value::<SettleFinding>(shapeless).is_err());
    }
}
