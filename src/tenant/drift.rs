//! Alerts that the books and a gateway's disagree: one for each cause, while any of what it tells of is open.

use crate::domain::books::Posting;
use crate::domain::ids::AlertId;
use crate::domain::notice::{Alert, AlertSubject, ReconciliationDrift};
use crate::domain::period::Window;
use crate::domain::reconcile::finding::{Cause, Finding};
use crate::domain::reconcile::lifecycle::{self, Change, Run};
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, reconciliation};

/// Compared windows before the one in question that a run of windows may go back.
const RUN_WINDOWS_MAX: usize = 100;
/// Verdicts on one window, at most.
const PROOFS: usize = 3;

/// Fires the alerts that are due for what a window has changed.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn fire(
    database: &mut Connection,
    posting: &mut Posting,
    window: Window,
    changes: &[Change],
) -> Result<(), StoreError> {
    let terms = posting.books.comparison.terms;
    let found = changes.iter().filter(|change| !matches!(change, Change::Resolved(_)));
    let causes = found.map(|change| change.finding().found.cause).filter(|cause| cause.is_drift());
    for cause in causes.collect::<Vec<_>>() {
        // One alert tells of a cause until nothing of it is open.
        if drifts(posting).any(|(firing, ..)| firing == cause) {
            continue;
        }
        // Windows are judged again when something comes late, so those behind this one may be known already, and may be
        // what it lacked to persist. Idle windows have no verdict, and the next one may be a day away.
        let ahead = reconciliation::judged_next(database, window.end, terms.persistence.saturating_mul(PROOFS)).await?;
        let until = ahead.last().map_or(window.end, |last| last.window.end);
        let around = RUN_WINDOWS_MAX.max(terms.persistence).saturating_add(terms.persistence);
        let mut judged = reconciliation::judged(database, until, around.saturating_mul(PROOFS)).await?;
        let since = judged.last().map_or(window.start, |one| one.window.start).min(window.start);
        judged.retain(|one| one.window != window);
        judged.extend(posting.gateway.judged.iter().cloned());
        let findings = reconciliation::findings_in(database, Window { start: since, end: until }).await?;
        let findings = posting.as_they_stand(&findings);
        let Some(run) = lifecycle::run_through(&findings, &judged, cause, window, &terms) else { continue };
        // An alert is told once, ever. If that of this run was, and was over, then this is another one.
        let mut alert = alert(posting, &run, run.first.start);
        if reconciliation::has_fired(database, alert.id).await? {
            alert = self::alert(posting, &run, window.start);
        }
        if !reconciliation::has_fired(database, alert.id).await? {
            posting.fire_alert(alert);
        }
    }
    Ok(())
}

/// Acknowledges the alerts that tell of a finding which somebody looks at.
pub(crate) fn acknowledge(posting: &mut Posting, finding: &Finding, request: &Request) {
    let tells = |(cause, since, _): &(Cause, Timestamp, AlertId)| {
        *cause == finding.found.cause && *since <= finding.found.window.start
    };
    for (_, _, id) in drifts(posting).filter(tells).collect::<Vec<_>>() {
        posting.acknowledge_alert(id, request);
    }
}

/// Resolves the alerts of which nothing is open any more.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn resolve(database: &mut Connection, posting: &mut Posting) -> Result<(), StoreError> {
    for (cause, since, id) in drifts(posting).collect::<Vec<_>>() {
        // As many as this posting may have closed, and one more: that one is open.
        let most = posting.gateway.findings.len() + 1;
        let open = reconciliation::open_findings(database, cause, since, most).await?;
        let stays = open.iter().any(|finding| !posting.has_closed(*finding)) || posting.leaves_open(cause, since);
        if !stays {
            posting.resolve_alert(id);
        }
    }
    Ok(())
}

/// Alerts of this kind that fire: what they are about, since which window.
fn drifts(posting: &Posting) -> impl Iterator<Item = (Cause, Timestamp, AlertId)> + '_ {
    posting.books.firing.iter().filter_map(|alert| match &alert.subject {
        AlertSubject::ReconciliationDrift(drift) => {
            Some((Cause::from_name(&drift.cause)?, drift.window_start, alert.id))
        }
        _ => None,
    })
}

fn alert(posting: &Posting, run: &Run, window_start: Timestamp) -> Alert {
    let drift = ReconciliationDrift {
        cause: run.cause.name().to_owned(),
        window_start,
        windows: i64::try_from(run.windows).unwrap_or(i64::MAX),
        difference: run.count,
        summary: summary(run),
    };
    Alert::drift(posting.books.tenant, drift, posting.now())
}

/// One line for people.
fn summary(run: &Run) -> String {
    let what = match run.cause {
        Cause::LostInLedger => "passed the gateway and are missing in the ledger",
        Cause::BypassedGateway => "are in the ledger and did not come through the gateway",
        Cause::Unaccounted => "are in the ledger and were not counted by the gateway: they came another way, or twice",
        Cause::TenantMismatch => "were made with one tenant's credential in another's name",
        Cause::Duplicate => "are in the ledger more than once",
        Cause::Mispriced => "have other amounts in the ledger than at the gateway, or no price",
        Cause::FailOpen => "went past the limiter because its store was down",
        Cause::LimiterReset => "cannot be proven: the limiter's counters began anew",
        Cause::ClockSkew => "are dated too far apart",
    };
    format!("{} requests in {} windows since {} {what}", run.count, run.windows, run.first.start)
}
