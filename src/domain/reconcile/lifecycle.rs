//! The life of a finding: opened by a comparison, kept while it is found again, resolved when it no longer is, and left
//! alone when a person has dealt with it.

use super::finding::{Cause, Finding, Found, Status};
use super::window::Judged;
use super::{Terms, Verdict};
use crate::domain::amount::NanoUsd;
use crate::domain::ids::TenantId;
use crate::domain::period::Window;
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::domain::usage::Amounts;

/// What a comparison does to a finding. The finding is as it stands afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New, or found again after it had been resolved, or grown after a person had dealt with it.
    Opened(Finding),
    /// Open before and after, with other figures.
    Updated(Finding),
    /// What was missing has come.
    Resolved(Finding),
}

impl Change {
    #[must_use]
    pub fn finding(&self) -> &Finding {
        match self {
            Change::Opened(finding) | Change::Updated(finding) | Change::Resolved(finding) => finding,
        }
    }
}

/// What a comparison of one window changes: `known` are the findings of this window, `judged` and `found` what the
/// comparison came to. In the order of causes; what stays as it is, is left out.
#[must_use]
pub fn changes(tenant: TenantId, known: &[Finding], judged: &[Judged], found: &[Found], now: Timestamp) -> Vec<Change> {
    let of_cause = |cause: Cause| {
        let before = known.iter().find(|finding| finding.found.cause == cause);
        match (before, found.iter().find(|one| one.cause == cause)) {
            (None, Some(found)) => Some(Change::Opened(opened(tenant, found, now))),
            (Some(before), Some(found)) => found_again(before, found, now),
            (Some(before), None) => gone(before, judged, now),
            (None, None) => None,
        }
    };
    Cause::ALL.into_iter().filter_map(of_cause).collect()
}

fn opened(tenant: TenantId, found: &Found, now: Timestamp) -> Finding {
    Finding {
        id: Finding::id_for(tenant, found.cause, found.window),
        found: found.clone(),
        status: Status::Open,
        opened_at: now,
        changed_at: now,
        changed_by: String::new(),
        reason: String::new(),
        adjustment: 0,
    }
}

/// An open finding keeps its status and its age. A resolved one is open again, as old as it was. What a person explained
/// or settled stays so, unless it is about more requests than that person knew of: then it is a new question, of
/// today, that still shows what was said and booked.
fn found_again(before: &Finding, found: &Found, now: Timestamp) -> Option<Change> {
    let after = Finding { found: found.clone(), ..before.clone() };
    let by_us = |after: Finding| Finding { status: Status::Open, changed_at: now, changed_by: String::new(), ..after };
    match before.status {
        Status::Open | Status::Acknowledged if before.found == *found => None,
        Status::Open | Status::Acknowledged => Some(Change::Updated(after)),
        Status::Resolved => Some(Change::Opened(by_us(after))),
        Status::Explained | Status::Settled if found.count > before.found.count => {
            Some(Change::Opened(by_us(Finding { opened_at: now, ..after })))
        }
        Status::Explained | Status::Settled => None,
    }
}

/// Not found is resolved only where the same proof has spoken: a window that cannot be proven now proves nothing.
fn gone(before: &Finding, judged: &[Judged], now: Timestamp) -> Option<Change> {
    let speaks = |one: &Judged| one.proof == before.found.proof && one.verdict != Verdict::Unproven;
    (before.status.is_open() && judged.iter().any(speaks)).then(|| {
        Change::Resolved(Finding {
            status: Status::Resolved,
            changed_at: now,
            changed_by: String::new(),
            ..before.clone()
        })
    })
}

/// Consecutive windows in which one cause is open: what alerts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub cause: Cause,
    pub first: Window,
    pub last: Window,
    pub windows: usize,
    /// Requests that its findings are about, together.
    pub count: i64,
}

impl Run {
    /// Does it last long enough to alert?
    #[must_use]
    pub fn persists(&self, terms: &Terms) -> bool {
        self.cause.is_drift() && self.windows >= terms.persistence.max(1)
    }
}

/// The run of `cause` that ends with `window`; none if it is not open there.
///
/// `judged` are verdicts of this time: idle windows have none and are skipped, so that a tenant with one request an hour
/// is told, too; a window that was judged without this cause ends the run.
#[must_use]
pub fn run(findings: &[Finding], judged: &[Judged], cause: Cause, window: Window) -> Option<Run> {
    let open = |finding: &&Finding| finding.found.cause == cause && finding.status.is_open();
    let mut of_cause: Vec<&Finding> =
        findings.iter().filter(open).filter(|finding| finding.found.window <= window).collect();
    of_cause.sort_by_key(|finding| std::cmp::Reverse(finding.found.window));
    let mut run: Option<Run> = None;
    for finding in of_cause {
        let found = &finding.found;
        let next = match run {
            None if found.window == window => {
                Run { cause, first: window, last: window, windows: 1, count: found.count }
            }
            Some(run) if !is_broken(judged, found.window, run.first) => Run {
                first: found.window,
                windows: run.windows + 1,
                count: run.count.saturating_add(found.count),
                ..run
            },
            _ => break,
        };
        run = Some(next);
    }
    run
}

/// Was any window between the two judged, and not idle?
fn is_broken(judged: &[Judged], before: Window, after: Window) -> bool {
    let between = judged.iter().filter(|one| before.end <= one.window.start && one.window.end <= after.start);
    between.into_iter().any(|one| one.gateway != 0 || one.ledger != 0)
}

/// Does `cause` persist up to and including `window`, so that it alerts?
#[must_use]
pub fn persists(findings: &[Finding], judged: &[Judged], cause: Cause, window: Window, terms: &Terms) -> bool {
    run(findings, judged, cause, window).is_some_and(|run| run.persists(terms))
}

/// Is an alert about `cause` in the windows from `first` to `last` over: is every finding of it resolved, explained or
/// settled?
#[must_use]
pub fn is_over(findings: &[Finding], cause: Cause, first: Window, last: Window) -> bool {
    let in_run = |finding: &&Finding| {
        finding.found.cause == cause
            && first.start <= finding.found.window.start
            && finding.found.window.end <= last.end
    };
    !findings.iter().filter(in_run).any(|finding| finding.status.is_open())
}

/// How old an open finding is, as invoices are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Age {
    UnderADay,
    UnderAWeek,
    UnderAMonth,
    Older,
}

impl Age {
    pub const ALL: [Age; 4] = [Age::UnderADay, Age::UnderAWeek, Age::UnderAMonth, Age::Older];

    /// The bucket of an age in microseconds; a month is thirty days.
    #[must_use]
    pub fn of(age_micros: i64) -> Age {
        match age_micros.div_euclid(MICROS_PER_DAY) {
            ..1 => Age::UnderADay,
            1..7 => Age::UnderAWeek,
            7..30 => Age::UnderAMonth,
            30.. => Age::Older,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Age::UnderADay => "underADay",
            Age::UnderAWeek => "underAWeek",
            Age::UnderAMonth => "underAMonth",
            Age::Older => "older",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Age> {
        Age::ALL.into_iter().find(|age| age.name() == name)
    }
}

/// What an adjusting entry for a finding adds to the ledger, unless a person says otherwise: what the gateway counted
/// and the ledger lacks, less what the ledger has too much. `None` for a cause that no entry can put right.
///
/// Requests that were lost add what the gateway counted of them, which may be nothing but their number.
#[must_use]
pub fn adjustment(found: &Found) -> Option<Amounts> {
    let adjusts =
        matches!(found.cause, Cause::LostInLedger | Cause::Duplicate | Cause::TenantMismatch | Cause::Mispriced);
    if !adjusts {
        return None;
    }
    let mut amounts = Amounts { requests: found.gateway.saturating_sub(found.ledger), ..Amounts::default() };
    for difference in &found.evidence.differences {
        let missing = difference.gateway.saturating_sub(difference.ledger);
        match difference.class.as_str() {
            "promptTokens" => amounts.prompt_tokens = missing,
            "completionTokens" => amounts.completion_tokens = missing,
            "cacheReadTokens" => amounts.cache_read_tokens = missing,
            "cacheWriteTokens" => amounts.cache_write_tokens = missing,
            "reasoningTokens" => amounts.reasoning_tokens = missing,
            "unclassifiedTokens" => amounts.unclassified_tokens = missing,
            "costNanoUsd" => amounts.cost = NanoUsd(missing),
            _ => {}
        }
    }
    Some(amounts)
}
