//! OpenMeter's words for what was used: an event's `data` as its senders write it, flat.
//!
//! OpenMeter has no shape of its own for `data`: its meters are told where to look. These are the names that its examples,
//! its SDKs' users and LiteLLM's `openmeter` callback use: `tokens` (a number or a text) with `type` `input` or `output`, or
//! one number for each class, and `cost`. Whatever else is there is not looked at.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::arrival::Unreadable;
use super::envelope::{Payload, Usage};
use super::text::{self, malformed, number_text, shortened};
use crate::domain::usage::{LABEL_BYTES_MAX, Status};
use crate::json::{LossyText, Text};

/// What is looked at; each name may also be in the other case, and twice in neither.
#[derive(Debug, Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    tokens: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    class: Option<&'a RawValue>,
    #[serde(borrow, alias = "promptTokens", alias = "input_tokens", alias = "inputTokens")]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "completionTokens", alias = "output_tokens", alias = "outputTokens")]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "totalTokens")]
    total_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "cachedTokens")]
    cached_tokens: Option<&'a RawValue>,
    #[serde(borrow, alias = "reasoningTokens")]
    reasoning_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    requests: Option<&'a RawValue>,
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    provider: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    /// `cumulative` is a word of the envelope's: a running counter is never added.
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    /// The envelope's words for amounts: where they are, nothing is read in OpenMeter's.
    usage: Option<IgnoredAny>,
    #[serde(rename = "costUsd", alias = "cost_usd")]
    cost_usd: Option<IgnoredAny>,
}

/// Which of a call's tokens an event counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Input,
    Output,
}

/// The payload that `json` means, or `None` when it states no amount in these words.
///
/// # Errors
/// [`Unreadable`], with the path within `data`.
pub(super) fn payload(json: &str) -> Result<Option<Payload<'_>>, Unreadable> {
    let data: Data<'_> = text::object(json)?;
    if data.is_silent() { Ok(None) } else { data.payload().map(Some) }
}

impl<'a> Data<'a> {
    fn is_silent(&self) -> bool {
        let stated = [
            self.tokens,
            self.prompt_tokens,
            self.completion_tokens,
            self.total_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.requests,
            self.cost,
        ];
        let is_the_envelope_s = self.usage.is_some() || self.cost_usd.is_some() || says(self.kind, "cumulative");
        is_the_envelope_s || stated.iter().all(Option::is_none)
    }

    fn payload(self) -> Result<Payload<'a>, Unreadable> {
        let tokens = whole("tokens", self.tokens)?;
        let mut usage = Usage {
            tokens: None,
            total_tokens: whole("total_tokens", self.total_tokens)?,
            prompt_tokens: whole("prompt_tokens", self.prompt_tokens)?,
            completion_tokens: whole("completion_tokens", self.completion_tokens)?,
            cache_read_tokens: whole("cached_tokens", self.cached_tokens)?,
            cache_write_tokens: None,
            reasoning_tokens: whole("reasoning_tokens", self.reasoning_tokens)?,
            requests: whole("requests", self.requests)?,
        };
        let has_classes = usage.prompt_tokens.is_some() || usage.completion_tokens.is_some();
        match self.class.and_then(Half::of).filter(|_| tokens.is_some() && !has_classes) {
            Some(Half::Input) => {
                usage.prompt_tokens = tokens;
                // One call is told in two events; it is counted with its answer.
                usage.requests = usage.requests.or(Some(0));
            }
            Some(Half::Output) => usage.completion_tokens = tokens,
            None => usage.tokens = tokens,
        }
        let label = |raw: Option<&'a RawValue>| {
            let said = LossyText::of(raw?)?;
            Some(Text(shortened(&said.0, LABEL_BYTES_MAX).into_owned().into()))
        };
        let status = if says(self.status, "failure") { Status::Failure } else { Status::Success };
        Ok(Payload::counted(usage, self.cost, status, label(self.model), label(self.provider)))
    }
}

fn says(raw: Option<&RawValue>, word: &str) -> bool {
    raw.and_then(LossyText::of).is_some_and(|text| &*text == word)
}

impl Half {
    fn of(raw: &RawValue) -> Option<Half> {
        match &*LossyText::of(raw)?.0 {
            "input" | "prompt" | "system" => Some(Half::Input),
            "output" | "completion" => Some(Half::Output),
            _ => None,
        }
    }
}

/// A whole number, or a text of one; `12.0` is one too.
fn whole(name: &str, raw: Option<&RawValue>) -> Result<Option<i64>, Unreadable> {
    let Some(raw) = raw else { return Ok(None) };
    let text = number_text(raw);
    let digits = text.as_deref().map(str::trim).map(|text| match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    });
    let number = digits.and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or_else(|| malformed(format!("{name}: not a whole number")))
}

#[cfg(test)]
mod tests {
    use super::super::arrival::{Format, Parsed, TenantClaim, read_item};
    use crate::domain::amount::NanoUsd;
    use crate::domain::usage::{Amounts, Flags};

    fn read(data: &str) -> Result<Parsed, String> {
        let json = format!(
            r#"{{"specversion":"1.0","type":"prompt","id":"00001","time":"2026-11-20T15:37:12.345Z","source":"chat-app",
                "subject":"customer-1","data":{data}}}"#
        );
        let read = |format| read_item(json.as_bytes(), format, 10_000).map_err(|problem| problem.detail);
        let here = read(Format::OpenMeter);
        // What it says it says at the other door, too.
        let there = read(Format::Events);
        let event = |parsed: &Result<Parsed, String>| parsed.as_ref().map(|parsed| parsed.event.clone()).ok();
        assert_eq!(event(&here), event(&there));
        here
    }

    fn amounts(data: &str) -> Amounts {
        read(data).unwrap_or_else(|detail| panic!("{data}: {detail}")).event.amounts
    }

    #[test]
    fn tokens_are_a_number_or_a_text_and_their_type_is_their_class() {
        let none = Amounts::default();
        for (data, expected) in [
            (r#"{"tokens":"123456"}"#, Amounts { requests: 1, unclassified_tokens: 123_456, ..none }),
            (
                r#"{"tokens":7,"model":"gpt4","provider":"openai"}"#,
                Amounts { requests: 1, unclassified_tokens: 7, ..none },
            ),
            (r#"{"tokens":"7","type":"input"}"#, Amounts { prompt_tokens: 7, ..none }),
            (r#"{"tokens":7,"type":"system"}"#, Amounts { prompt_tokens: 7, ..none }),
            (r#"{"tokens":7.0,"type":"output"}"#, Amounts { requests: 1, completion_tokens: 7, ..none }),
            (r#"{"tokens":7,"type":"image"}"#, Amounts { requests: 1, unclassified_tokens: 7, ..none }),
            (r#"{"tokens":7,"type":["input"]}"#, Amounts { requests: 1, unclassified_tokens: 7, ..none }),
            (r#"{"tokens":0}"#, Amounts { requests: 1, ..none }),
            (r#"{"requests":"3","method":"GET"}"#, Amounts { requests: 3, ..none }),
            (
                r#"{"tokens":10,"type":"input","prompt_tokens":4,"completion_tokens":6}"#,
                Amounts { requests: 1, prompt_tokens: 4, completion_tokens: 6, ..none },
            ),
            (
                r#"{"inputTokens":4,"outputTokens":"6","cachedTokens":1,"reasoningTokens":2,"status":200,"tags":7}"#,
                Amounts {
                    requests: 1,
                    prompt_tokens: 4,
                    completion_tokens: 6,
                    cache_read_tokens: 1,
                    reasoning_tokens: 2,
                    ..none
                },
            ),
        ] {
            assert_eq!(amounts(data), expected, "{data}");
        }
    }

    #[test]
    fn what_litellm_s_callback_sends() {
        let sent = r#"{"model":"gpt-4o","cost":0.00031250000000000006,"prompt_tokens":57,"completion_tokens":17,"total_tokens":74}"#;
        let Parsed { event, claim } = read(sent).unwrap();
        assert_eq!(claim, TenantClaim::Subject("customer-1".into()));
        assert_eq!((event.amounts.prompt_tokens, event.amounts.completion_tokens), (57, 17));
        assert_eq!((event.amounts.cost, event.subject.model.as_str()), (NanoUsd(312_500), "gpt-4o"));
        assert_eq!(event.flags, Flags::default());
        // A model without a price, and a call whose usage it did not know.
        let unpriced = r#"{"model":"m","cost":null,"prompt_tokens":1,"completion_tokens":null,"total_tokens":null}"#;
        assert_eq!(read(unpriced).unwrap().event.flags, Flags::UNPRICED);
        assert!(read(r#"{"model":"m","cost":null}"#).unwrap_err().contains("states no tokens"));
    }

    #[test]
    fn amounts_that_cannot_be_meant_are_refused() {
        for data in [
            r#"{"tokens":-1}"#,
            r#"{"tokens":1.5}"#,
            r#"{"tokens":"many"}"#,
            r#"{"tokens":true}"#,
            r#"{"tokens":99999999999999999999}"#,
            r#"{"tokens":1,"tokens":2}"#,
            r#"{"prompt_tokens":1,"promptTokens":1}"#,
            r#"{"tokens":1,"cost":-1}"#,
            r#"{"tokens":1,"usage":{"tokens":"x"}}"#,
            r#"{"tokens":1,"kind":"cumulative"}"#,
            r#"{"method":"GET","route":"/hello"}"#,
            r#"{}"#,
            r#"[]"#,
            r#"null"#,
        ] {
            assert!(read(data).is_err(), "{data}");
        }
    }

    #[test]
    fn the_envelope_s_words_come_first() {
        let both = r#"{"usage":{"promptTokens":3,"completionTokens":4},"tokens":99,"cost":5}"#;
        assert_eq!(
            amounts(both),
            Amounts { requests: 1, prompt_tokens: 3, completion_tokens: 4, ..Amounts::default() }
        );
        let long = format!(r#"{{"tokens":1,"model":"{}"}}"#, "é".repeat(2_000));
        assert!(read(&long).unwrap().event.subject.model.len() <= 256);
    }

    #[test]
    fn an_event_without_a_time_is_the_same_whenever_it_arrives() {
        let undated = br#"{"specversion":"1.0","type":"p","id":"1","source":"s","subject":"c","data":{"tokens":1}}"#;
        let mut event = read_item(undated, Format::OpenMeter, 10_000).unwrap().event;
        assert!(event.flags.has(Flags::UNDATED));
        let identity = event.identity();
        event.occurred_at = crate::domain::time::Timestamp(1_790_000_000_000_000);
        assert_eq!(event.identity(), identity);
        assert_eq!(read_item(undated, Format::Events, 10_000).unwrap_err().detail, "time: missing");
    }
}
