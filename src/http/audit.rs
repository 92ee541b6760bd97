//! `/v1/audit`: pages of the chain, and its recomputation.

use poem_openapi::param::Query;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::document::Tag;
use super::problem::Problem;
use super::reply::Reply;
use super::view::{JsonObject, page_limit};
use crate::domain::chain::Hash;
use crate::domain::report::{ChainQuery, ChainReport};
use crate::store::audit::StoredRecord;
use crate::tenant::handle::WORK_TIMEOUT;

pub(super) struct Audit;

#[OpenApi(tag = "Tag::Audit")]
impl Audit {
    /// Page through the audit chain, oldest first
    ///
    /// The chain of the credential's tenant. A platform administrator chooses a tenant with `tenantId` or X-Tenant-Id,
    /// and without one sees the platform's own chain.
    #[oai(path = "/v1/audit", method = "get", operation_id = "listAuditRecords")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose chain.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<AuditPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse::<i64>().ok())?.unwrap_or(0);
        let query = ChainQuery { after, limit };
        let page = match ask.admitted.tenant {
            Some(_) => ask.handle().await?.audit_page(query).await??,
            None => ask.api.directory.platform_audit_page(query).await?,
        };
        Ok(Reply::new(AuditPage {
            items: page.items.iter().map(AuditRecordView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&next.to_string())),
        }))
    }

    /// Recompute the audit chain
    ///
    /// From the first record to the head; names the first link that does not hold, if any. Of a tenant's chain also what it
    /// says was counted: every event in the ledger, the sums, and the rollups that reports are made of. Takes about as long
    /// as reading all of it, up to 25 seconds; beyond that submit a job of the kind `auditVerification`.
    #[oai(path = "/v1/audit/verify", method = "get", operation_id = "verifyAuditChain")]
    async fn verify(
        &self,
        ask: Ask,
        /// Whose chain.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<AuditReport>, Problem> {
        let report = match ask.admitted.tenant {
            Some(_) => ask.handle().await?.audit_verify(WORK_TIMEOUT).await??,
            None => ask.api.directory.platform_audit_verify().await?,
        };
        Ok(Reply::new(AuditReport::of(&report)))
    }
}

/// A page of the chain.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct AuditPage {
    items: Vec<AuditRecordView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// One link.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "AuditRecord", rename_all = "camelCase")]
pub(super) struct AuditRecordView {
    seq: i64,
    /// The record: `v`, `tenant`, `seq`, `at`, `actor`, `action`, `target`, `outcome`, `requestId`, `dataCommit`,
    /// `prev`.
    record: JsonObject,
    /// The bytes that were hashed, as text: the record in RFC 8785 canonical form.
    canonical: String,
    /// SHA-256 of a zero byte and the canonical bytes, in hexadecimal.
    hash: String,
    /// What happened in detail; absent once erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    payload: Option<JsonObject>,
}

impl AuditRecordView {
    fn of(stored: &StoredRecord) -> AuditRecordView {
        let link = &stored.link;
        let canonical = String::from_utf8_lossy(&link.bytes).into_owned();
        AuditRecordView {
            seq: link.seq,
            record: JsonObject::stored(&canonical),
            canonical,
            hash: Hash(link.hash).to_string(),
            payload: link.payload.as_deref().map(JsonObject::stored),
        }
    }
}

/// What recomputing the chain found.
#[derive(Debug, PartialEq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct AuditReport {
    holds: bool,
    /// Records that hold, from the first.
    verified: i64,
    /// Hash of the last record that holds.
    head: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    first_broken: Option<BrokenView>,
}

/// The first link that does not hold.
#[derive(Debug, PartialEq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "BrokenLink", rename_all = "camelCase")]
pub(super) struct BrokenView {
    seq: i64,
    reason: String,
}

impl AuditReport {
    fn of(report: &ChainReport) -> AuditReport {
        let broken = report.broken.as_ref();
        AuditReport {
            holds: broken.is_none(),
            verified: report.head.seq,
            head: report.head.hash.to_string(),
            first_broken: broken.map(|broken| BrokenView { seq: broken.seq, reason: broken.reason.to_owned() }),
        }
    }
}

impl Example for AuditReport {
    fn example() -> AuditReport {
        AuditReport { holds: true, verified: 1_204, head: "9f86d081884c7d65…".into(), first_broken: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chain::{Broken, Entry, EntryOutcome, Head, Stored, link};
    use crate::domain::time::Timestamp;

    #[test]
    fn a_record_is_shown_with_the_very_bytes_that_were_hashed() {
        let entry = Entry {
            actor: "platform".into(),
            action: "tenant.created".into(),
            target: "tenant:t".into(),
            outcome: EntryOutcome::Success,
            request_id: "r".into(),
            payload: r#"{"name":"Acme"}"#.into(),
        };
        let record = link(Head::EMPTY, "t", entry, Timestamp(0), [7; 32]);
        let hash = record.hash;
        let stored = Stored {
            seq: 1,
            bytes: record.bytes,
            hash: hash.0,
            payload: Some(record.payload),
            salt: Some(record.salt.to_vec()),
        };
        let view = AuditRecordView::of(&StoredRecord { at: Timestamp(0), link: stored });
        assert_eq!(Hash::of_record(view.canonical.as_bytes()), hash);
        assert_eq!(view.hash, hash.to_string());
        assert_eq!(view.record.0["action"], "tenant.created");
        assert_eq!(view.payload.unwrap().0["name"], "Acme");
    }

    #[test]
    fn a_broken_chain_names_its_first_broken_link() {
        let report =
            ChainReport { head: Head::EMPTY, broken: Some(Broken { seq: 1, reason: "the record is missing" }) };
        let view = AuditReport::of(&report);
        assert!(!view.holds);
        assert_eq!(view.first_broken.unwrap().seq, 1);
    }
}
