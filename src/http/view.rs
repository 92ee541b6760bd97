//! Wire twins of the domain's words: camelCase, money as decimal strings, times in RFC 3339 with milliseconds.

use std::borrow::Cow;

use poem_openapi::Object;
use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::problem::{Code, Problem};
use crate::domain::amount::NanoUsd;
use crate::domain::quota::{Metric, Quota, Scope, Standing};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, Subject};

/// Items of a page when the caller names no number.
pub(super) const PAGE_ITEMS_DEFAULT: usize = 50;
/// Most items of a page.
pub(super) const PAGE_ITEMS_MAX: usize = 500;

/// An instant as text.
pub(super) fn instant(at: Timestamp) -> String {
    at.to_string()
}

/// `limit` of a list.
///
/// # Errors
/// 400 for anything but a whole number from 1 to [`PAGE_ITEMS_MAX`].
pub(super) fn page_limit(text: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = text else { return Ok(PAGE_ITEMS_DEFAULT) };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<usize>()
        .ok()
        .filter(|limit| digits && (1..=PAGE_ITEMS_MAX).contains(limit))
        .ok_or_else(|| Problem::parameter("limit", &format!("must be a whole number from 1 to {PAGE_ITEMS_MAX}")))
}

/// An instant in the query.
///
/// # Errors
/// 400 when it is no RFC 3339 date-time.
pub(super) fn parse_instant(name: &str, text: &str) -> Result<Timestamp, Problem> {
    let at = text.parse::<Timestamp>().map_err(|error| Problem::parameter(name, &error.to_string()))?;
    if at < Timestamp(0) || at > Timestamp::MAX {
        return Err(Problem::new(Code::InvalidParameter).saying(format!("{name}: outside the years 1970 to 9999")));
    }
    Ok(at)
}

/// An amount in a metric's unit: an integer of tokens or requests, or a decimal string of US dollars.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Amount(pub(super) Value);

impl Amount {
    pub(super) fn new(metric: Metric, amount: i64) -> Amount {
        Amount(match metric {
            Metric::Cost => Value::String(NanoUsd(amount).to_string()),
            _ => Value::from(amount),
        })
    }

    /// The amount in the metric's inner unit.
    ///
    /// # Errors
    /// What is wrong, for the caller.
    pub(super) fn read(&self, metric: Metric) -> Result<i64, String> {
        match (metric, &self.0) {
            (Metric::Cost, Value::String(text)) => {
                let exact = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
                let digits = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
                if !exact || digits > 9 {
                    return Err("must be a decimal string with at most nine digits after the point".into());
                }
                NanoUsd::parse_decimal(text).map(NanoUsd::nanos).map_err(|error| error.to_string())
            }
            (Metric::Cost, _) => Err("must be a decimal string of US dollars, such as \"250.00\"".into()),
            (_, Value::Number(number)) => number.as_i64().ok_or_else(|| "must be a whole number".into()),
            _ => Err("must be a whole number".into()),
        }
    }
}

impl Type for Amount {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let integer = MetaSchema::new_with_format("integer", "int64");
        let decimal = MetaSchema { pattern: Some(r"^\d+(\.\d{1,9})?$".into()), ..MetaSchema::new("string") };
        let of = |schema| MetaSchemaRef::Inline(Box::new(schema));
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some(
                "An integer for tokens and requests; for `cost` a decimal string of US dollars with at most nine digits after the point.",
            ),
            one_of: vec![of(integer), of(decimal)],
            ..MetaSchema::ANY
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for Amount {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.clone())
    }
}

impl ParseFromJSON for Amount {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        value.map(Amount).ok_or_else(ParseError::expected_input)
    }
}

/// A JSON object whose fields are the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct JsonObject(pub(super) serde_json::Map<String, Value>);

impl JsonObject {
    /// A stored document; an empty object when it is none.
    pub(super) fn stored(text: &str) -> JsonObject {
        serde_json::from_str(text).unwrap_or_default()
    }
}

impl Type for JsonObject {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "JsonObject".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let anything = MetaSchemaRef::Inline(Box::new(MetaSchema::ANY));
        let schema = MetaSchema { additional_properties: Some(Box::new(anything)), ..MetaSchema::new("object") };
        MetaSchemaRef::Inline(Box::new(schema))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for JsonObject {
    fn to_json(&self) -> Option<Value> {
        Some(Value::Object(self.0.clone()))
    }
}

impl ParseFromJSON for JsonObject {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::Object(map)) => Ok(JsonObject(map)),
            _ => Err(ParseError::expected_input()),
        }
    }
}

/// Whose usage a quota counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "Scope")]
pub(super) struct ScopeView {
    /// `tenant`, `group`, `user`, `apiKey`, `model` or `provider`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub(super) kind: String,
    /// Which one; absent for `tenant`.
    #[serde(default, deserialize_with = "super::body::present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub(super) id: Option<String>,
}

impl ScopeView {
    pub(super) fn of(scope: &Scope) -> ScopeView {
        // Spelled out, because `Type`, imported here, has an `is_empty` of its own for `&str`, which is always false.
        let id = Some(scope.id()).filter(|id| !str::is_empty(id)).map(str::to_owned);
        ScopeView { kind: scope.kind().to_owned(), id }
    }
}

/// A quota in its running period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "QuotaStanding", rename_all = "camelCase")]
pub(super) struct StandingView {
    pub(super) id: String,
    pub(super) scope: ScopeView,
    /// `tokens`, `promptTokens`, `completionTokens`, `cost` or `requests`.
    pub(super) metric: String,
    /// `minute`, `hour`, `day`, `week`, `month` or `total`, in the tenant's time zone.
    pub(super) period: String,
    pub(super) limit: Amount,
    /// Percent of the limit at which an alert fires, ascending.
    pub(super) thresholds: Vec<u16>,
    /// `alert` or `block`.
    pub(super) enforcement: String,
    pub(super) used: Amount,
    /// Never below zero.
    pub(super) remaining: Amount,
    /// `ok`, `warning` or `exceeded`.
    pub(super) standing: String,
    pub(super) period_start: String,
    /// When the period ends; absent for a quota over all time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub(super) reset_at: Option<String>,
    /// When nothing would be left at the rate of the last hour; absent when that would not be within the period, when the
    /// quota is exhausted already, in the first quarter of an hour of a period, and for quotas by the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub(super) exhausts_at: Option<String>,
}

impl StandingView {
    pub(super) fn of(standing: &Standing) -> StandingView {
        let Quota { id, scope, metric, period, limit, thresholds, enforcement } = &standing.quota;
        StandingView {
            id: id.to_string(),
            scope: ScopeView::of(scope),
            metric: metric.name().to_owned(),
            period: period.name().to_owned(),
            limit: Amount::new(*metric, *limit),
            thresholds: thresholds.clone(),
            enforcement: enforcement.name().to_owned(),
            used: Amount::new(*metric, standing.used),
            remaining: Amount::new(*metric, standing.remaining),
            standing: standing.level.name().to_owned(),
            period_start: instant(standing.period_start),
            reset_at: standing.reset_at.map(instant),
            exhausts_at: standing.exhausts_at.map(instant),
        }
    }
}

/// Sums of usage. Prompt tokens include cached ones; total is prompt + completion + unclassified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "UsageAmounts", rename_all = "camelCase")]
pub(super) struct AmountsView {
    pub(super) requests: i64,
    pub(super) prompt_tokens: i64,
    pub(super) cache_read_tokens: i64,
    pub(super) cache_write_tokens: i64,
    pub(super) completion_tokens: i64,
    pub(super) reasoning_tokens: i64,
    /// Tokens of senders that state only a total.
    pub(super) unclassified_tokens: i64,
    pub(super) total_tokens: i64,
    /// US dollars as a decimal string.
    pub(super) cost_usd: String,
}

impl AmountsView {
    pub(super) fn of(amounts: &Amounts) -> AmountsView {
        AmountsView {
            requests: amounts.requests,
            prompt_tokens: amounts.prompt_tokens,
            cache_read_tokens: amounts.cache_read_tokens,
            cache_write_tokens: amounts.cache_write_tokens,
            completion_tokens: amounts.completion_tokens,
            reasoning_tokens: amounts.reasoning_tokens,
            unclassified_tokens: amounts.unclassified_tokens,
            total_tokens: amounts.total_tokens(),
            cost_usd: amounts.cost.to_string(),
        }
    }
}

/// Whom usage is attributed to; a field that is unknown is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Subject", rename_all = "camelCase")]
pub(super) struct SubjectView {
    pub(super) user_id: String,
    pub(super) group_id: String,
    pub(super) api_key_id: String,
    pub(super) model: String,
    pub(super) provider: String,
}

impl SubjectView {
    pub(super) fn of(subject: &Subject) -> SubjectView {
        SubjectView {
            user_id: subject.user.clone(),
            group_id: subject.group.clone(),
            api_key_id: subject.api_key.clone(),
            model: subject.model.clone(),
            provider: subject.provider.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_amount_is_read_by_its_metric() {
        for (metric, value, amount) in [
            (Metric::Tokens, json!(1_000), Some(1_000)),
            (Metric::Tokens, json!(-1), Some(-1)),
            (Metric::Tokens, json!("1000"), None),
            (Metric::Tokens, json!(1.0), None),
            (Metric::Tokens, json!(18_446_744_073_709_551_615_u64), None),
            (Metric::Cost, json!("250.00"), Some(250_000_000_000)),
            (Metric::Cost, json!("0.000000001"), Some(1)),
            (Metric::Cost, json!("0.0000000001"), None),
            (Metric::Cost, json!("1e3"), None),
            (Metric::Cost, json!("-1"), None),
            (Metric::Cost, json!("99999999999"), None),
            (Metric::Cost, json!(250), None),
            (Metric::Cost, json!(250.5), None),
        ] {
            assert_eq!(Amount(value.clone()).read(metric).ok(), amount, "{metric:?} {value}");
        }
        for metric in Metric::ALL {
            assert_eq!(Amount::new(metric, 1_500_000_000).read(metric), Ok(1_500_000_000));
        }
    }

    #[test]
    fn a_page_has_from_one_to_the_most_items() {
        assert_eq!(page_limit(None).unwrap(), PAGE_ITEMS_DEFAULT);
        assert_eq!(page_limit(Some("500")).unwrap(), 500);
        for text in ["0", "501", "1000000000", "-1", "+5", "", "ten", "1.5", "99999999999999999999999"] {
            assert_eq!(page_limit(Some(text)).unwrap_err().code, Code::InvalidParameter, "{text}");
        }
    }

    #[test]
    fn an_instant_has_a_zone_and_a_year_of_ours() {
        assert!(parse_instant("from", "2026-11-01T00:00:00Z").is_ok());
        for text in
            ["2026-11-01", "2026-11-01T00:00:00", "yesterday", "", "1969-12-31T23:59:59Z", "-002026-11-01T00:00:00Z"]
        {
            assert_eq!(parse_instant("from", text).unwrap_err().code, Code::InvalidParameter, "{text}");
        }
    }
}
