//! `/v1/quarantine`: what was not counted, why, and another try.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::authorize::Ask;
use super::document::Tag;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::domain::report::Quarantined;
use crate::domain::usage::Refusal;
use crate::intake::record::{ReplayError, ReplayOutcome};

/// Bytes of an event that a list shows.
const BODY_SHOWN_BYTES_MAX: usize = 4_096;

pub(super) struct Quarantine;

#[OpenApi(tag = "Tag::Quarantine")]
impl Quarantine {
    /// Page through the quarantine, newest first
    ///
    /// A tenant sees what was beyond doubt meant for it; a platform administrator sees everything, or one tenant's. A tenant
    /// whose share is full has one more row for each reason, which counts what was not kept (`leftOutBytes`).
    #[oai(path = "/v1/quarantine", method = "get", operation_id = "listQuarantine")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose events.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        /// Only events refused with this code, such as EVENT_TOO_OLD.
        reason: Query<Option<String>>,
    ) -> Result<Reply<QuarantinePage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let reason = match reason.0.as_deref() {
            None => None,
            Some(code) => {
                let known = Refusal::from_code(code);
                Some(known.ok_or_else(|| Problem::parameter("reason", "is no code of a refusal"))?)
            }
        };
        let before = ask.open(cursor.0.as_deref(), |text| text.parse::<Uuid>().ok())?;
        if ask.is_platform() && ask.admitted.tenant.is_some() {
            ask.row()?;
        }
        let page = ask.api.directory.quarantined(ask.admitted.tenant, reason, before, limit).await?;
        Ok(Reply::new(QuarantinePage {
            items: page.items.iter().map(QuarantinedView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&next.to_string())),
        }))
    }

    /// Try a quarantined event again
    ///
    /// Reads the event's own bytes again, with the catalogue and the limits as they are now.
    #[oai(path = "/v1/quarantine/:id/replay", method = "post", operation_id = "replayQuarantined")]
    async fn replay(
        &self,
        ask: Ask,
        /// The event's id in quarantine.
        id: Path<String>,
    ) -> Result<Reply<Replayed>, Problem> {
        let missing = || Problem::new(Code::QuarantinedNotFound);
        let id: Uuid = id.parse().map_err(|_| missing())?;
        let found = ask.api.directory.quarantined_one(id).await?.ok_or_else(missing)?;
        if ask.admitted.tenant.is_some() && found.tenant != ask.admitted.tenant {
            return Err(missing());
        }
        match ask.api.recorder.replay(id, ask.change()).await? {
            ReplayOutcome::Counted => Ok(Reply::new(Replayed { outcome: "counted".into() })),
            ReplayOutcome::AlreadyKnown => Ok(Reply::new(Replayed { outcome: "alreadyKnown".into() })),
            ReplayOutcome::StillRefused { code, message } => {
                Err(Problem::new(Code::StillRefused).with("code", json!(code)).with("reason", json!(message)))
            }
        }
    }
}

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Problem {
        match error {
            ReplayError::Unknown => Problem::new(Code::QuarantinedNotFound),
            ReplayError::AlreadyReplayed => Problem::new(Code::AlreadyReplayed),
            ReplayError::Unavailable { retry_after_ms } => {
                Problem::new(Code::StoreUnavailable).after_ms(retry_after_ms)
            }
        }
    }
}

/// A page of the quarantine.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct QuarantinePage {
    items: Vec<QuarantinedView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// An event, or what was meant to be one, that was not counted.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "QuarantinedEvent", rename_all = "camelCase")]
pub(super) struct QuarantinedView {
    id: String,
    /// Whom it was meant for, when that is beyond doubt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<String>,
    /// The refusal's code.
    reason: String,
    /// What exactly was wrong.
    detail: String,
    /// Where it arrived.
    origin: String,
    /// How its bytes are read.
    format: String,
    received_at: String,
    /// When it was counted on another try. It has given up its bytes then: the ledger has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    replayed_at: Option<String>,
    /// How often it came.
    arrivals: u64,
    /// Above zero in a row that only counts events for which there was no room: the bytes of them. It cannot be replayed.
    left_out_bytes: u64,
    /// 0 once it was counted on another try.
    body_bytes: u64,
    /// Its first 4096 bytes; what is no UTF-8 is replaced. Empty once it was counted on another try.
    body: String,
}

impl QuarantinedView {
    fn of(row: &Quarantined) -> QuarantinedView {
        let shown = &row.body[..row.body.len().min(BODY_SHOWN_BYTES_MAX)];
        QuarantinedView {
            id: row.id.to_string(),
            tenant_id: row.tenant.map(|tenant| tenant.to_string()),
            reason: row.reason.code().to_owned(),
            detail: row.detail.clone(),
            origin: row.origin.clone(),
            format: row.format.clone(),
            received_at: instant(row.received_at),
            replayed_at: row.replayed_at.map(instant),
            arrivals: u64::try_from(row.arrivals).unwrap_or(0),
            left_out_bytes: u64::try_from(row.left_out_bytes).unwrap_or(0),
            body_bytes: row.body.len() as u64,
            body: String::from_utf8_lossy(shown).into_owned(),
        }
    }
}

/// How another try ended.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct Replayed {
    /// `counted`, or `alreadyKnown` when the ledger had it.
    outcome: String,
}

impl Example for Replayed {
    fn example() -> Replayed {
        Replayed { outcome: "counted".into() }
    }
}
