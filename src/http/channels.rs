//! `/v1/notification-channels`: where alerts go to, how that has gone, and a button to try it.

use poem_openapi::param::Path;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::authorize::Ask;
use super::document::Tag;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::instant;
use crate::directory::noted::{NotYet, Noted};
use crate::directory::task::Declined;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::request::{Answer, Request};
use crate::outlet::bench::{Answered, NotTested, Shown};

pub(super) struct Channels;

#[OpenApi(tag = "Tag::Operations")]
impl Channels {
    /// The channels that alerts go to
    ///
    /// Each with its circuit, and what has become of its messages since this node started; the whole history is with each
    /// tenant, as `listDeliveries`. Addresses are shown without what is secret about them.
    #[oai(path = "/v1/notification-channels", method = "get", operation_id = "listNotificationChannels")]
    async fn list(&self, ask: Ask) -> Result<Reply<ChannelList>, Problem> {
        let items = ask.api.channels.channels().iter().map(ChannelView::of).collect();
        Ok(Reply::new(ChannelList { items }))
    }

    /// Try a channel
    ///
    /// Sends a message that is marked as a test, as an alert would be sent, and answers what the receiver said. It counts as
    /// no alert and leaves nothing open: an incident at PagerDuty is resolved at once, what Alertmanager shows ends by
    /// itself within a minute. One channel is tested at most every five seconds. With an `Idempotency-Key` a repeated
    /// request is answered from the first one.
    #[oai(path = "/v1/notification-channels/:channel/test", method = "post", operation_id = "testNotificationChannel")]
    async fn test(
        &self,
        ask: Ask,
        /// The channel's configured name.
        channel: Path<String>,
    ) -> Result<Reply<ChannelTestView>, Problem> {
        let (request, directory) = (ask.change(), &ask.api.directory);
        if request.idempotency.is_some()
            && let Some(Answer::Replayed(json)) =
                settled(directory.change(Noted::sought(), request.clone(), String::clone).await)?
        {
            return Ok(Reply::of(Answer::Replayed(json), |view| view));
        }
        let view = ChannelTestView::of(&channel.0, &ask.api.channels.test(&channel.0).await?);
        let answer = serde_json::to_string(&view).unwrap_or_default();
        let noted = Noted::new(entry(&view, &request), answer);
        match settled(directory.change(noted, request, String::clone).await)? {
            Some(Answer::Replayed(json)) => Ok(Reply::of(Answer::Replayed(json), |view| view)),
            Some(Answer::Fresh(_)) | None => Ok(Reply::new(view)),
        }
    }
}

/// The answer there is, if there is one.
fn settled(told: Result<Answer<String>, Declined<NotYet>>) -> Result<Option<Answer<String>>, Problem> {
    match told {
        Ok(answer) => Ok(Some(answer)),
        Err(Declined::Refused(NotYet)) => Ok(None),
        Err(Declined::IdempotencyMismatch) => Err(Problem::new(Code::IdempotencyKeyReused)),
        Err(Declined::Unavailable(reason)) => {
            tracing::warn!(reason, "the test of a channel could not be recorded");
            Err(Problem::new(Code::StoreUnavailable))
        }
    }
}

fn entry(view: &ChannelTestView, request: &Request) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: "channel.tested".into(),
        target: format!("channel:{}", view.channel),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: json!({ "testId": view.test_id, "outcome": view.outcome, "error": view.error }).to_string(),
    }
}

impl From<NotTested> for Problem {
    fn from(not_tested: NotTested) -> Problem {
        match not_tested {
            NotTested::Unknown => Problem::new(Code::ChannelNotFound),
            NotTested::TooSoon { again_after } => {
                Problem::new(Code::TestedTooOften).after_ms(u64::try_from(again_after.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }
}

/// The channels, in the order of the configuration.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "NotificationChannelList", rename_all = "camelCase")]
pub(super) struct ChannelList {
    items: Vec<ChannelView>,
}

/// One channel. The counts are of this node, since it started.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "NotificationChannel", rename_all = "camelCase", example)]
pub(super) struct ChannelView {
    /// Its configured name, by which it is tested.
    id: String,
    /// `alertmanager`, `webhook`, `nats`, `pagerduty`, `slack` or `email`.
    kind: String,
    /// Where it leads; never more than the host.
    address: String,
    /// `closed`, or `open` while it is left alone because it did not answer.
    circuit: String,
    delivered: u64,
    /// Attempts that failed and are repeated.
    retried: u64,
    /// Messages that it will never take.
    gave_up: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_success_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_failure_at: Option<String>,
    /// Why: the status that was answered, or what happened instead of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_failure: Option<String>,
}

/// What a receiver said to a test.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ChannelTest", rename_all = "camelCase", example)]
pub(super) struct ChannelTestView {
    channel: String,
    /// What the message was marked with.
    test_id: String,
    /// `delivered`, or `failed`.
    outcome: String,
    /// Why it failed: the status that was answered, or what happened instead of an answer, such as `timed out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
    /// Milliseconds that it took.
    took_ms: u64,
}

impl ChannelView {
    fn of(shown: &Shown) -> ChannelView {
        let record = &shown.record;
        ChannelView {
            id: shown.name.clone(),
            kind: shown.kind.to_owned(),
            address: shown.address.clone(),
            circuit: if record.circuit_open { "open" } else { "closed" }.to_owned(),
            delivered: record.delivered,
            retried: record.retried,
            gave_up: record.gave_up,
            last_success_at: record.last_success_at.map(instant),
            last_failure_at: record.last_failure_at.map(instant),
            last_failure: record.last_failure.clone(),
        }
    }
}

impl ChannelTestView {
    fn of(channel: &str, answered: &Answered) -> ChannelTestView {
        ChannelTestView {
            channel: channel.to_owned(),
            test_id: answered.test.to_string(),
            outcome: if answered.refused.is_none() { "delivered" } else { "failed" }.to_owned(),
            error: answered.refused.clone(),
            took_ms: u64::try_from(answered.took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Example for ChannelView {
    fn example() -> ChannelView {
        ChannelView {
            id: "pager".into(),
            kind: "pagerduty".into(),
            address: "https://events.pagerduty.com".into(),
            circuit: "closed".into(),
            delivered: 41,
            retried: 2,
            gave_up: 0,
            last_success_at: Some("2026-11-28T10:13:00.104Z".into()),
            last_failure_at: Some("2026-11-27T23:01:12.870Z".into()),
            last_failure: Some("answered 503".into()),
        }
    }
}

impl Example for ChannelTestView {
    fn example() -> ChannelTestView {
        ChannelTestView {
            channel: "pager".into(),
            test_id: "0199a8b2-5c00-7abc-8def-0123456789ae".into(),
            outcome: "failed".into(),
            error: Some("answered 503".into()),
            took_ms: 184,
        }
    }
}
