//! `/v1/quotas/{tenantId}`: who looks at an alert, and what became of each message about one.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::document::Tag;
use super::problem::{Code, Problem};
use super::quotas::AlertView;
use super::reconciliation::{between, word};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::domain::ids::AlertId;
use crate::domain::notice::{Alert, Event, Message, Outcome};
use crate::domain::report::{MessagePosition, MessageQuery};
use crate::domain::time::Timestamp;
use crate::tenant::acknowledge::Acknowledge;

/// The longest name of a channel that is worth looking for.
const CHANNEL_BYTES_MAX: usize = 256;

pub(super) struct Alerts;

#[OpenApi(tag = "Tag::Quotas")]
impl Alerts {
    /// Say that somebody looks at an alert
    ///
    /// It fires on until what it tells is over. The channels that were told of it are told this once, as a PagerDuty
    /// `acknowledge` or in their own form. Who was first counts: to acknowledge it again changes nothing and answers the
    /// alert as it is.
    #[oai(
        path = "/v1/quotas/:tenantId/alerts/:alertId/acknowledge",
        method = "post",
        operation_id = "acknowledgeAlert"
    )]
    async fn acknowledge(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// The alert's id.
        #[oai(name = "alertId")]
        id: Path<String>,
    ) -> Result<Reply<AlertView>, Problem> {
        let alert: AlertId = id.parse().map_err(|_| Problem::new(Code::AlertNotFound))?;
        let change = Acknowledge { alert };
        let answer = ask.handle().await?.change(change, ask.change(), render).await??;
        Ok(Reply::of(answer, |alert| AlertView::of(&alert)))
    }

    /// Page through the messages to the channels, newest first
    ///
    /// Every message that was ever owed about an alert of this tenant, and what has become of it. `id` is the key by which
    /// a receiver drops a repetition: it is the same in every attempt.
    #[oai(path = "/v1/quotas/:tenantId/deliveries", method = "get", operation_id = "listDeliveries")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn deliveries(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// RFC 3339: only messages that became owed from here on.
        from: Query<Option<String>>,
        /// RFC 3339: only messages of before.
        to: Query<Option<String>>,
        /// Only to the channel of this name.
        channel: Query<Option<String>>,
        /// `owed`, `delivered`, `gaveUp` or `withdrawn`.
        outcome: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<DeliveryPageView>, Problem> {
        let window = between(from.0.as_deref(), to.0.as_deref())?;
        let outcome = word("outcome", outcome.0.as_deref(), Outcome::from_name)?;
        if channel.0.as_ref().is_some_and(|name| name.is_empty() || name.len() > CHANNEL_BYTES_MAX) {
            return Err(Problem::parameter("channel", "must be the name of a channel"));
        }
        let limit = page_limit(limit.0.as_deref())?;
        let before = ask.open(cursor.0.as_deref(), position)?;
        let query = MessageQuery { window, channel: channel.0, outcome, before, limit };
        let page = ask.handle().await?.messages(query).await??;
        Ok(Reply::new(DeliveryPageView {
            items: page.items.iter().map(DeliveryView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&position_text(&next))),
        }))
    }
}

fn render(alert: &Alert) -> String {
    serde_json::to_string(&AlertView::of(alert)).unwrap_or_default()
}

fn position_text(position: &MessagePosition) -> String {
    format!("{}|{}|{}|{}", position.at.0, position.alert, position.event.name(), position.channel)
}

/// The channel's name comes last: it may hold anything.
fn position(text: &str) -> Option<MessagePosition> {
    let mut parts = text.splitn(4, '|');
    Some(MessagePosition {
        at: Timestamp(parts.next()?.parse().ok()?),
        alert: parts.next()?.parse().ok()?,
        event: Event::from_name(parts.next()?)?,
        channel: parts.next()?.to_owned(),
    })
}

/// One message to one channel.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Delivery", rename_all = "camelCase", example)]
pub(super) struct DeliveryView {
    /// The same in every attempt, and in `webhook-id`.
    id: String,
    /// What PagerDuty calls the dedup key.
    alert_id: String,
    /// `quotaThreshold`, `budgetBurn` or `reconciliationDrift`.
    kind: String,
    /// `fired`, `acknowledged` or `resolved`.
    event: String,
    channel: String,
    created_at: String,
    /// Attempts that were made.
    attempts: i64,
    /// `owed`, `delivered`, `gaveUp` or `withdrawn`: it was over before the quiet hours were.
    outcome: String,
    /// Absent while it is owed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    settled_at: Option<String>,
    /// Present while it is owed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_attempt_at: Option<String>,
    /// Why the last attempt failed: the status that was answered, or what happened instead of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
}

/// A page of messages.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "DeliveryPage", rename_all = "camelCase")]
pub(super) struct DeliveryPageView {
    items: Vec<DeliveryView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl DeliveryView {
    fn of(message: &Message) -> DeliveryView {
        DeliveryView {
            id: format!("{}-{}", message.alert, message.event.name()),
            alert_id: message.alert.to_string(),
            kind: message.kind.name().to_owned(),
            event: message.event.name().to_owned(),
            channel: message.channel.clone(),
            created_at: instant(message.created_at),
            attempts: message.attempts,
            outcome: message.outcome.name().to_owned(),
            settled_at: message.settled_at.map(instant),
            next_attempt_at: message.next_attempt_at.map(instant),
            error: (!message.reason.is_empty()).then(|| message.reason.clone()),
        }
    }
}

impl Example for DeliveryView {
    fn example() -> DeliveryView {
        DeliveryView {
            id: "772beee1-6b40-8d21-811b-cf9ed0fa695d-fired".into(),
            alert_id: "772beee1-6b40-8d21-811b-cf9ed0fa695d".into(),
            kind: "quotaThreshold".into(),
            event: "fired".into(),
            channel: "pager".into(),
            created_at: "2026-11-28T10:13:00.104Z".into(),
            attempts: 3,
            outcome: "owed".into(),
            settled_at: None,
            next_attempt_at: Some("2026-11-28T10:13:07.911Z".into()),
            error: Some("answered 503".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_s_position_survives_its_cursor_whatever_its_channel_is_called() {
        let position = MessagePosition {
            at: Timestamp(1_790_000_000_123_456),
            alert: "772beee1-6b40-8d21-811b-cf9ed0fa695d".parse().unwrap(),
            event: Event::Acknowledged,
            channel: "a|b".into(),
        };
        assert_eq!(super::position(&position_text(&position)), Some(position));
        for bad in ["", "1", "1|x|fired|a", "1|772beee1-6b40-8d21-811b-cf9ed0fa695d|lost|a"] {
            assert_eq!(super::position(bad), None, "{bad}");
        }
    }
}
