//! `/v1/reconciliation/{tenantId}`: the ledger against what gateways say, what was found, and what becomes of it.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Deserializer, Serialize};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::problem::{Code, FieldProblem, Problem};
use super::reply::Reply;
use super::view::{AmountsView, instant, page_limit, parse_instant};
use crate::domain::adjustment::{Adjustment, REASON_BYTES_MAX};
use crate::domain::amount::NanoUsd;
use crate::domain::ids::FindingId;
use crate::domain::period::Window;
use crate::domain::reconcile::finding::{Cause, Evidence, Finding, Status};
use crate::domain::reconcile::lifecycle;
use crate::domain::reconcile::pass::Treatment;
use crate::domain::reconcile::progress::Progress;
use crate::domain::reconcile::reading::Source;
use crate::domain::reconcile::report::{FindingQuery, Overview, WindowQuery};
use crate::domain::reconcile::window::Judged;
use crate::domain::reconcile::{Proof, Verdict};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, LABEL_BYTES_MAX, Subject};
use crate::json::object;

/// The largest amount of one class in an adjusting entry, either way.
const ADJUSTMENT_MAX: i64 = 1_000_000_000_000_000;

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
fn word<T>(name: &str, text: Option<&str>, known: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    known(text).map(Some).ok_or_else(|| Problem::parameter(name, "is none of the words known here"))
}

fn between(from: Option<&str>, to: Option<&str>) -> Result<Window, Problem> {
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
    /// `lostInLedger`, `bypassedGateway`, `tenantMismatch`, `duplicate`, `mispriced`, `failOpen`, `limiterReset` or
    /// `clockSkew`.
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
            let source = match proof {
                Proof::Requests => Source::AccessLog,
                Proof::Cumulative => Source::Metrics,
                Proof::Attempts => Source::Limiter,
            };
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
            skew_millis: evidence.skew_millis,
        }
    }
}

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
    fn checked(self) -> Result<String, Problem> {
        let mut problems = Problems::default();
        problems.reason(&self.reason);
        problems.none().map(|()| self.reason)
    }
}

impl SettleFinding {
    /// `begins` is when the finding's window begins.
    fn checked(self, begins: Timestamp) -> Result<(String, Option<Adjustment>), Problem> {
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
