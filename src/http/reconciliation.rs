//! `/v1/reconciliation/{tenantId}`: the ledger against what gateways say, what was found, and what becomes of it.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::settlement::{SettleFinding, TreatFindingBody};
use super::view::{AmountsView, instant, page_limit, parse_instant};
use crate::domain::adjustment::Adjustment;
use crate::domain::ids::FindingId;
use crate::domain::period::Window;
use crate::domain::reconcile::finding::{Cause, Evidence, Finding, Status};
use crate::domain::reconcile::lifecycle;
use crate::domain::reconcile::pass::Treatment;
use crate::domain::reconcile::progress::Progress;
use crate::domain::reconcile::report::{FindingQuery, Overview, WindowQuery};
use crate::domain::reconcile::window::Judged;
use crate::domain::reconcile::{Proof, Verdict};
use crate::domain::time::Timestamp;
use crate::domain::usage::Amounts;

pub(super) struct Reconciliation;

#[OpenApi(tag = "Tag::Reconciliation")]
impl Reconciliation {
    /// Read how the ledger compares with what gateways say
    ///
    /// For each proof its last verdict, how far it has proven anything, and whether its source speaks about this tenant;
    /// and the open findings by cause and age.
    #[oai(path = "/v1/reconciliation/:tenantId", method = "get", operation_id = "getReconciliation")]
    async fn overview(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
    ) -> Result<Reply<ReconciliationView>, Problem> {
        let overview = ask.handle().await?.reconciliation().await??;
        Ok(Reply::new(ReconciliationView::of(&overview)))
    }

    /// Page through the compared windows, newest first
    ///
    /// A window in which nothing happened on either side is not compared.
    #[oai(path = "/v1/reconciliation/:tenantId/windows", method = "get", operation_id = "listComparedWindows")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn windows(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// RFC 3339: only windows that begin from here on.
        from: Query<Option<String>>,
        /// RFC 3339: only windows that begin before.
        to: Query<Option<String>>,
        /// `requests`, `cumulative` or `attempts`.
        proof: Query<Option<String>>,
        /// `matched`, `drift` or `unproven`.
        verdict: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<WindowPageView>, Problem> {
        let proof = word("proof", proof.0.as_deref(), Proof::from_name)?;
        let verdict = word("verdict", verdict.0.as_deref(), Verdict::from_name)?;
        let window = between(from.0.as_deref(), to.0.as_deref())?;
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| position(text, Proof::from_name))?;
        let query = WindowQuery { window, proof, verdict, after, limit };
        let page = ask.handle().await?.compared_windows(query).await??;
        Ok(Reply::new(WindowPageView {
            items: page.items.iter().map(|(judged, at)| WindowView::of(judged, *at)).collect(),
            next_cursor: page.next.map(|(start, proof)| ask.seal(&format!("{}|{}", start.0, proof.name()))),
        }))
    }

    /// Page through the findings, newest window first
    #[oai(path = "/v1/reconciliation/:tenantId/findings", method = "get", operation_id = "listFindings")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn findings(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// `open`, `acknowledged`, `resolved`, `explained` or `settled`.
        status: Query<Option<String>>,
        /// Only this cause, such as `lostInLedger`.
        cause: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<FindingPageView>, Problem> {
        let status = word("status", status.0.as_deref(), Status::from_name)?;
        let cause = word("cause", cause.0.as_deref(), Cause::from_name)?;
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| position(text, Cause::from_name))?;
        let page = ask.handle().await?.findings(FindingQuery { status, cause, after, limit }).await??;
        Ok(Reply::new(FindingPageView {
            items: page.items.iter().map(FindingView::of).collect(),
            next_cursor: page.next.map(|(start, cause)| ask.seal(&format!("{}|{}", start.0, cause.name()))),
        }))
    }

    /// Read one finding
    #[oai(path = "/v1/reconciliation/:tenantId/findings/:findingId", method = "get", operation_id = "getFinding")]
    async fn finding(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// The finding's id.
        #[oai(name = "findingId")]
        id: Path<String>,
    ) -> Result<Reply<FindingView>, Problem> {
        let found = ask.handle().await?.finding(finding_id(&id)?).await??;
        let found = found.ok_or_else(|| Problem::new(Code::FindingNotFound))?;
        Ok(Reply::new(FindingView::of(&found)))
    }

    /// Say that somebody looks at a finding
    ///
    /// It still counts as open.
    #[oai(
        path = "/v1/reconciliation/:tenantId/findings/:findingId/acknowledge",
        method = "post",
        operation_id = "acknowledgeFinding"
    )]
    async fn acknowledge(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// The finding's id.
        #[oai(name = "findingId")]
        id: Path<String>,
        body: Strict<TreatFindingBody>,
    ) -> Result<Reply<FindingView>, Problem> {
        treat(&ask, &id, Treatment::Acknowledge, body.0.checked()?, None).await
    }

    /// Say why a finding is as it should be
    ///
    /// Nothing is booked; the finding is closed, and opened again if more is found in its window.
    #[oai(
        path = "/v1/reconciliation/:tenantId/findings/:findingId/explain",
        method = "post",
        operation_id = "explainFinding"
    )]
    async fn explain(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// The finding's id.
        #[oai(name = "findingId")]
        id: Path<String>,
        body: Strict<TreatFindingBody>,
    ) -> Result<Reply<FindingView>, Problem> {
        treat(&ask, &id, Treatment::Explain, body.0.checked()?, None).await
    }

    /// Settle a finding, with an adjusting entry or without
    ///
    /// An adjusting entry is a row of the ledger with its author, reason and finding. Its amounts may be negative, but no
    /// sum falls below zero by it; rollups, counters and quotas follow in the same transaction. Send an Idempotency-Key.
    #[oai(
        path = "/v1/reconciliation/:tenantId/findings/:findingId/settle",
        method = "post",
        operation_id = "settleFinding"
    )]
    async fn settle(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// The finding's id.
        #[oai(name = "findingId")]
        id: Path<String>,
        body: Strict<SettleFinding>,
    ) -> Result<Reply<FindingView>, Problem> {
        let finding = finding_id(&id)?;
        let handle = ask.handle().await?;
        let known = handle.finding(finding).await??.ok_or_else(|| Problem::new(Code::FindingNotFound))?;
        let (reason, adjustment) = body.0.checked(known.found.window.start)?;
        treat(&ask, &id, Treatment::Settle, reason, adjustment).await
    }
}

async fn treat(
    ask: &Ask,
    id: &str,
    treatment: Treatment,
    reason: String,
    adjustment: Option<Adjustment>,
) -> Result<Reply<FindingView>, Problem> {
    let finding = finding_id(id)?;
    let handle = ask.handle().await?;
    let answer = handle.treat_finding(finding, treatment, reason, adjustment, ask.change(), render).await??;
    Ok(Reply::of(answer, |finding| FindingView::of(&finding)))
}

fn finding_id(text: &str) -> Result<FindingId, Problem> {
    text.parse().map_err(|_| Problem::new(Code::FindingNotFound))
}

fn render(finding: &Finding) -> String {
    serde_json::to_string(&FindingView::of(finding)).unwrap_or_default()
}

/// A word of a closed set in the query.
pub(super) fn word<T>(name: &str, text: Option<&str>, known: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    known(text).map(Some).ok_or_else(|| Problem::parameter(name, "is none of the words known here"))
}

pub(super) fn between(from: Option<&str>, to: Option<&str>) -> Result<Window, Problem> {
    let start = from.map_or(Ok(Timestamp(0)), |text| parse_instant("from", text))?;
    let end = to.map_or(Ok(Timestamp::MAX), |text| parse_instant("to", text))?;
    if start < end { Ok(Window { start, end }) } else { Err(Problem::field("?to", "must be after from")) }
}

fn position<T>(text: &str, known: impl Fn(&str) -> Option<T>) -> Option<(Timestamp, T)> {
    let (start, name) = text.split_once('|')?;
    Some((Timestamp(start.parse().ok()?), known(name)?))
}

/// How the ledger compares with what gateways say.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ReconciliationOverview", rename_all = "camelCase", example)]
pub(super) struct ReconciliationView {
    /// Every window that ends by then has been judged; absent while no gateway has said anything about the tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    settled_until: Option<String>,
    proofs: Vec<ProofView>,
    open_findings: Vec<OpenFindingsView>,
}

/// One proof: what it compares, and what it last came to.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ProofStanding", rename_all = "camelCase")]
pub(super) struct ProofView {
    /// `requests`, `cumulative` or `attempts`.
    proof: String,
    /// What it needs: `accessLog`, `metrics` or `limiter`.
    source: String,
    /// Since when that source speaks about the tenant; absent while it is missing, and then the proof is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    source_since: Option<String>,
    /// Until when it has proven that the books agree or disagree.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    proven_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last: Option<WindowView>,
}

/// Open findings of one cause, by age.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "OpenFindings", rename_all = "camelCase")]
pub(super) struct OpenFindingsView {
    cause: String,
    under_a_day: i64,
    under_a_week: i64,
    under_a_month: i64,
    older: i64,
}

/// The verdict of one proof on one window.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ComparedWindow", rename_all = "camelCase")]
pub(super) struct WindowView {
    window_start: String,
    window_end: String,
    proof: String,
    /// `matched`, `drift` or `unproven`.
    verdict: String,
    /// What the gateway says: requests passed on, or attempts.
    gateway: i64,
    /// What the ledger says: calls.
    ledger: i64,
    /// By how much they may differ.
    tolerance: i64,
    /// Why it is unproven.
    reasons: Vec<String>,
    judged_at: String,
}

/// A page of compared windows.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ComparedWindowPage", rename_all = "camelCase")]
pub(super) struct WindowPageView {
    items: Vec<WindowView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// What a drift consists of: one cause in one window.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Finding", rename_all = "camelCase", example)]
pub(super) struct FindingView {
    id: String,
    /// `lostInLedger`, `bypassedGateway`, `unaccounted`, `tenantMismatch`, `duplicate`, `mispriced`, `failOpen`,
    /// `limiterReset` or `clockSkew`.
    cause: String,
    /// The proof that found it.
    proof: String,
    window_start: String,
    window_end: String,
    gateway: i64,
    ledger: i64,
    /// Requests it is about.
    count: i64,
    /// `open`, `acknowledged`, `resolved`, `explained` or `settled`.
    status: String,
    opened_at: String,
    changed_at: String,
    /// Who changed it last; absent when it was the reconciliation itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    changed_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    reason: Option<String>,
    /// The event id of its last adjusting entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    adjustment_event_id: Option<String>,
    /// What an adjusting entry would have to add, as far as the gateway's books say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    suggested_adjustment: Option<AmountsView>,
    evidence: EvidenceView,
}

/// What a person needs to follow a finding up. At most fifty of each kind of id; the counts are whole.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "FindingEvidence", rename_all = "camelCase")]
pub(super) struct EvidenceView {
    /// The gateway's.
    request_ids: Vec<String>,
    call_ids: Vec<String>,
    ledger_positions: Vec<i64>,
    differences: Vec<DifferenceView>,
    /// So many windows were added up: what each of them hides below its tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    windows: Option<i64>,
    /// How far the gateway's clock is ahead of the ledger's, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    skew_millis: Option<i64>,
}

/// One class of tokens, or the cost in nano-US-dollars, in both books.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "FindingDifference", rename_all = "camelCase")]
pub(super) struct DifferenceView {
    class: String,
    gateway: i64,
    ledger: i64,
}

/// A page of findings.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "FindingPage", rename_all = "camelCase")]
pub(super) struct FindingPageView {
    items: Vec<FindingView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl ReconciliationView {
    fn of(overview: &Overview) -> ReconciliationView {
        let proof = |proof: Proof| {
            let source = proof.source();
            let progress = overview.progress.as_ref();
            let last = overview.last.iter().find(|(judged, _)| judged.proof == proof);
            ProofView {
                proof: proof.name().to_owned(),
                source: source.name().to_owned(),
                source_since: progress.and_then(|progress| progress.since(source)).map(instant),
                proven_until: progress.and_then(|progress: &Progress| progress.proven(proof)).map(instant),
                last: last.map(|(judged, at)| WindowView::of(judged, *at)),
            }
        };
        let open = overview.open.iter().map(|(cause, ages)| {
            let [under_a_day, under_a_week, under_a_month, older] = ages.map(|(_, count)| count);
            OpenFindingsView { cause: cause.name().to_owned(), under_a_day, under_a_week, under_a_month, older }
        });
        ReconciliationView {
            settled_until: overview.progress.map(|progress| instant(progress.settled_until)),
            proofs: Proof::ALL.into_iter().map(proof).collect(),
            open_findings: open.collect(),
        }
    }
}

impl WindowView {
    fn of(judged: &Judged, at: Timestamp) -> WindowView {
        WindowView {
            window_start: instant(judged.window.start),
            window_end: instant(judged.window.end),
            proof: judged.proof.name().to_owned(),
            verdict: judged.verdict.name().to_owned(),
            gateway: judged.gateway,
            ledger: judged.ledger,
            tolerance: judged.tolerance,
            reasons: judged.reasons.iter().map(|reason| reason.name().to_owned()).collect(),
            judged_at: instant(at),
        }
    }
}

impl FindingView {
    fn of(finding: &Finding) -> FindingView {
        let found = &finding.found;
        let said = |text: &str| (!str::is_empty(text)).then(|| text.to_owned());
        let adjusted = (finding.adjustment != 0).then(|| format!("adjustment:{}:{}", finding.id, finding.adjustment));
        FindingView {
            id: finding.id.to_string(),
            cause: found.cause.name().to_owned(),
            proof: found.proof.name().to_owned(),
            window_start: instant(found.window.start),
            window_end: instant(found.window.end),
            gateway: found.gateway,
            ledger: found.ledger,
            count: found.count,
            status: finding.status.name().to_owned(),
            opened_at: instant(finding.opened_at),
            changed_at: instant(finding.changed_at),
            changed_by: said(&finding.changed_by),
            reason: said(&finding.reason),
            adjustment_event_id: adjusted,
            suggested_adjustment: lifecycle::adjustment(found).map(|amounts| AmountsView::of(&amounts)),
            evidence: EvidenceView::of(&found.evidence),
        }
    }
}

impl EvidenceView {
    fn of(evidence: &Evidence) -> EvidenceView {
        let difference = |one: &crate::domain::reconcile::finding::Difference| DifferenceView {
            class: one.class.clone(),
            gateway: one.gateway,
            ledger: one.ledger,
        };
        EvidenceView {
            request_ids: evidence.request_ids.clone(),
            call_ids: evidence.call_ids.clone(),
            ledger_positions: evidence.ledger_positions.clone(),
            differences: evidence.differences.iter().map(difference).collect(),
            windows: evidence.windows,
            skew_millis: evidence.skew_millis,
        }
    }
}

impl Example for FindingView {
    fn example() -> FindingView {
        FindingView {
            id: "0199a8b2-5c00-8abc-8def-0123456789ad".into(),
            cause: "lostInLedger".into(),
            proof: "requests".into(),
            window_start: "2026-11-28T10:05:00.000Z".into(),
            window_end: "2026-11-28T10:10:00.000Z".into(),
            gateway: 118,
            ledger: 115,
            count: 3,
            status: "open".into(),
            opened_at: "2026-11-28T10:13:00.104Z".into(),
            changed_at: "2026-11-28T10:13:00.104Z".into(),
            changed_by: None,
            reason: None,
            adjustment_event_id: None,
            suggested_adjustment: Some(AmountsView::of(&Amounts { requests: 3, ..Amounts::default() })),
            evidence: EvidenceView {
                request_ids: vec!["5ab2e43e1c1b9f5e2a0f4c0e1bd4f70a".into()],
                call_ids: vec!["36d5f5b3-43c2-4b57-86fa-cea3c3a6db3e".into()],
                ledger_positions: Vec::new(),
                differences: Vec::new(),
                windows: None,
                skew_millis: None,
            },
        }
    }
}

impl Example for ReconciliationView {
    fn example() -> ReconciliationView {
        ReconciliationView {
            settled_until: Some("2026-11-28T10:10:00.000Z".into()),
            proofs: vec![ProofView {
                proof: "requests".into(),
                source: "accessLog".into(),
                source_since: Some("2026-11-01T08:00:12.000Z".into()),
                proven_until: Some("2026-11-28T10:10:00.000Z".into()),
                last: Some(WindowView {
                    window_start: "2026-11-28T10:05:00.000Z".into(),
                    window_end: "2026-11-28T10:10:00.000Z".into(),
                    proof: "requests".into(),
                    verdict: "drift".into(),
                    gateway: 118,
                    ledger: 115,
                    tolerance: 0,
                    reasons: Vec::new(),
                    judged_at: "2026-11-28T10:13:00.104Z".into(),
                }),
            }],
            open_findings: vec![OpenFindingsView {
                cause: "lostInLedger".into(),
                under_a_day: 1,
                under_a_week: 0,
                under_a_month: 0,
                older: 0,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_known_words_and_an_order_of_time() {
        assert_eq!(word("proof", Some("requests"), Proof::from_name).unwrap(), Some(Proof::Requests));
        assert_eq!(word("proof", Some("luck"), Proof::from_name).unwrap_err().code, Code::InvalidParameter);
        assert_eq!(between(None, None).unwrap(), Window { start: Timestamp(0), end: Timestamp::MAX });
        let (one, other) = ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z");
        assert!(between(Some(one), Some(other)).is_ok());
        assert_eq!(between(Some(other), Some(one)).unwrap_err().code, Code::ValidationFailed);
        assert_eq!(position("12|failOpen", Cause::from_name), Some((Timestamp(12), Cause::FailOpen)));
        assert_eq!(position("12|luck", Cause::from_name), None);
    }
}
