//! The life of a finding: opened by a comparison, kept while it is found again, resolved when it no longer is, and left
//! alone when a person has dealt with it.

use super::evidence::SKEW_PAIRS_MIN;
use super::finding::{Cause, Finding, Found, Status};
use super::window::Judged;
use super::{Proof, Terms, Verdict, class};
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
        // What was unproven then stays so: it is no news that it still is.
        Status::Resolved if !found.cause.is_drift() && found.count <= before.found.count => None,
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

/// Causes that are no drift, and are over as soon as the same proof speaks again: their own windows stay unproven.
pub const PASSING: [Cause; 2] = [Cause::LimiterReset, Cause::ClockSkew];

/// Does a window show that `cause` is over? Something must have been seen in it, and the cause not be found.
#[must_use]
pub fn shows_the_end(cause: Cause, judged: &[Judged], found: &[Found]) -> bool {
    let (proof, least) = match cause {
        Cause::LimiterReset => (Proof::Attempts, 1),
        Cause::ClockSkew => (Proof::Requests, i64::try_from(SKEW_PAIRS_MIN).unwrap_or(i64::MAX)),
        _ => return false,
    };
    let speaks = |one: &Judged| one.proof == proof && one.verdict != Verdict::Unproven && one.gateway >= least;
    judged.iter().any(speaks) && found.iter().all(|one| one.cause != cause)
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
                Run { cause, first: window, last: window, windows: added_up(found), count: found.count }
            }
            Some(run) if !is_broken(judged, found.window, run.first) => Run {
                first: found.window,
                windows: run.windows.saturating_add(added_up(found)),
                count: run.count.saturating_add(found.count),
                ..run
            },
            _ => break,
        };
        run = Some(next);
    }
    run
}

/// The run of `cause` that goes through `window` and persists: it ends there, or with one of the windows behind it in which
/// the cause is open as well.
#[must_use]
pub fn run_through(
    findings: &[Finding],
    judged: &[Judged],
    cause: Cause,
    window: Window,
    terms: &Terms,
) -> Option<Run> {
    let open = findings.iter().filter(|finding| finding.found.cause == cause && finding.status.is_open());
    let mut ends: Vec<Window> = open.map(|finding| finding.found.window).filter(|end| *end >= window).collect();
    ends.sort_unstable();
    ends.into_iter()
        .filter_map(|end| run(findings, judged, cause, end))
        .find(|run| run.first <= window && run.persists(terms))
}

/// A difference that only shows when windows are added up is in all of them.
fn added_up(found: &Found) -> usize {
    found.evidence.windows.and_then(|windows| usize::try_from(windows).ok()).unwrap_or(1).max(1)
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
    let requests = found.gateway.saturating_sub(found.ledger);
    Some(Amounts { requests, ..class::missing(&found.evidence.differences) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::amount::NanoUsd;
    use crate::domain::properties_tests::tenant;
    use crate::domain::reconcile::finding::{Difference, Evidence};

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    /// The window so many windows after noon.
    fn window(number: i64) -> Window {
        let width = Terms::default().window_micros;
        Window { start: noon().plus_micros(number * width), end: noon().plus_micros((number + 1) * width) }
    }

    fn found(cause: Cause, number: i64, count: i64) -> Found {
        Found {
            cause,
            proof: Proof::Requests,
            window: window(number),
            gateway: count,
            ledger: 0,
            count,
            evidence: Evidence::default(),
        }
    }

    fn judged(number: i64, verdict: Verdict) -> Judged {
        Judged {
            proof: Proof::Requests,
            window: window(number),
            verdict,
            gateway: 10,
            ledger: 10,
            tolerance: 0,
            reasons: Vec::new(),
        }
    }

    fn finding(status: Status, number: i64, count: i64) -> Finding {
        Finding {
            status,
            changed_by: "alice".to_owned(),
            reason: "known".to_owned(),
            adjustment: 7,
            ..opened(tenant(), &found(Cause::LostInLedger, number, count), noon())
        }
    }

    fn later() -> Timestamp {
        noon().plus_micros(MICROS_PER_DAY)
    }

    fn compared(known: &[Finding], verdict: Verdict, found: &[Found]) -> Vec<Change> {
        changes(tenant(), known, &[judged(0, verdict)], found, later())
    }

    #[test]
    fn what_is_found_is_opened_once_under_the_same_id() {
        let both = [found(Cause::FailOpen, 0, 2), found(Cause::LostInLedger, 0, 3)];
        let opened = compared(&[], Verdict::Drift, &both);
        // In the order of causes, whatever the order in which they came.
        let [Change::Opened(lost), Change::Opened(fail_open)] = &opened[..] else { panic!("{opened:?}") };
        assert_eq!((lost.found.cause, fail_open.found.cause), (Cause::LostInLedger, Cause::FailOpen));
        assert_eq!((lost.status, lost.opened_at, &*lost.changed_by), (Status::Open, later(), ""));
        assert_ne!(lost.id, fail_open.id);
        // Again: nothing changes.
        let known = [lost.clone(), fail_open.clone()];
        assert_eq!(compared(&known, Verdict::Drift, &both), []);
    }

    #[test]
    fn an_open_finding_keeps_its_status_and_its_age() {
        for status in [Status::Open, Status::Acknowledged] {
            let before = finding(status, 0, 3);
            let [Change::Updated(after)] =
                &compared(std::slice::from_ref(&before), Verdict::Drift, &[found(Cause::LostInLedger, 0, 2)])[..]
            else {
                panic!("not updated")
            };
            assert_eq!(after, &Finding { found: found(Cause::LostInLedger, 0, 2), ..before });
        }
    }

    #[test]
    fn what_has_come_is_resolved_and_what_is_lost_again_is_open_again() {
        for status in [Status::Open, Status::Acknowledged] {
            let [Change::Resolved(after)] = &compared(&[finding(status, 0, 3)], Verdict::Matched, &[])[..] else {
                panic!("not resolved")
            };
            assert_eq!((after.status, after.opened_at, after.changed_at), (Status::Resolved, noon(), later()));
            assert_eq!((&*after.changed_by, &*after.reason), ("", "known"));
        }
        // A window that cannot be proven now proves nothing, and neither does another proof.
        assert_eq!(compared(&[finding(Status::Open, 0, 3)], Verdict::Unproven, &[]), []);
        let by_counts = Judged { proof: Proof::Cumulative, ..judged(0, Verdict::Matched) };
        assert_eq!(changes(tenant(), &[finding(Status::Open, 0, 3)], &[by_counts], &[], later()), []);
        // As old as it was.
        let again = compared(&[finding(Status::Resolved, 0, 3)], Verdict::Drift, &[found(Cause::LostInLedger, 0, 1)]);
        let [Change::Opened(after)] = &again[..] else { panic!("{again:?}") };
        assert_eq!((after.status, after.opened_at, after.found.count), (Status::Open, noon(), 1));
        assert_eq!(again[0].finding(), after);
    }

    #[test]
    fn what_a_person_dealt_with_is_asked_again_only_when_it_grew() {
        for status in [Status::Explained, Status::Settled] {
            let before = finding(status, 0, 3);
            for (count, verdict) in [(3, Verdict::Drift), (2, Verdict::Drift)] {
                assert_eq!(
                    compared(std::slice::from_ref(&before), verdict, &[found(Cause::LostInLedger, 0, count)]),
                    []
                );
            }
            assert_eq!(compared(std::slice::from_ref(&before), Verdict::Matched, &[]), []);
            let grown = compared(&[before], Verdict::Drift, &[found(Cause::LostInLedger, 0, 4)]);
            let [Change::Opened(after)] = &grown[..] else { panic!("{grown:?}") };
            // A new question, of today; what was said and booked is still shown.
            assert_eq!((after.status, after.opened_at, after.found.count), (Status::Open, later(), 4));
            assert_eq!((&*after.reason, after.adjustment), ("known", 7));
        }
    }

    #[test]
    fn a_cause_alerts_when_it_persists_over_consecutive_windows() {
        let terms = Terms::default();
        let open = |numbers: &[i64]| numbers.iter().map(|number| finding(Status::Open, *number, 2)).collect::<Vec<_>>();
        let cause = Cause::LostInLedger;
        let busy: Vec<Judged> = (0..10).map(|number| judged(number, Verdict::Drift)).collect();
        for (numbers, persists_at) in [(&[3][..], None), (&[3, 4], Some(4)), (&[4, 3], Some(4)), (&[1, 3, 5], None)] {
            let at = (0..10).find(|number| persists(&open(numbers), &busy, cause, window(*number), &terms));
            assert_eq!(at, persists_at, "{numbers:?}");
        }
        let three = run(&open(&[2, 3, 4, 7]), &busy, cause, window(4)).unwrap();
        assert_eq!(three, Run { cause, first: window(2), last: window(4), windows: 3, count: 6 });
        assert_eq!(run(&open(&[2]), &busy, cause, window(4)), None);
        // Idle windows are skipped: one has no verdict, another a verdict about nothing.
        let idle = [Judged { gateway: 0, ledger: 0, ..judged(4, Verdict::Matched) }];
        assert!(persists(&open(&[3, 6]), &idle, cause, window(6), &terms));
        // Another cause, one that is dealt with, and one that is no drift do not count.
        assert!(!persists(&open(&[3, 4]), &busy, Cause::Duplicate, window(4), &terms));
        let explained = [finding(Status::Explained, 3, 2), finding(Status::Open, 4, 2)];
        assert!(!persists(&explained, &busy, cause, window(4), &terms));
        let resets: Vec<Finding> =
            (3..6).map(|number| opened(tenant(), &found(Cause::LimiterReset, number, 2), noon())).collect();
        assert!(!persists(&resets, &busy, Cause::LimiterReset, window(5), &terms));
        assert!(persists(&open(&[3]), &busy, cause, window(3), &Terms { persistence: 0, ..terms }));
    }

    #[test]
    fn what_shows_only_when_windows_are_added_up_has_persisted_in_all_of_them() {
        let mut added_up = finding(Status::Open, 6, 4);
        added_up.found.evidence.windows = Some(5);
        let busy: Vec<Judged> = (0..10).map(|number| judged(number, Verdict::Matched)).collect();
        let alone = run(std::slice::from_ref(&added_up), &busy, Cause::LostInLedger, window(6)).unwrap();
        assert_eq!((alone.windows, alone.count, alone.persists(&Terms::default())), (5, 4, true));
        assert!(!persists(&[finding(Status::Open, 6, 4)], &busy, Cause::LostInLedger, window(6), &Terms::default()));
    }

    #[test]
    fn what_was_no_drift_is_over_when_its_proof_speaks_again() {
        let of = |proof, verdict| Judged { proof, ..judged(1, verdict) };
        let attempts = |verdict| [of(Proof::Attempts, verdict)];
        let ends = |judged: &[Judged], found: &[Found]| shows_the_end(Cause::LimiterReset, judged, found);
        assert!(ends(&attempts(Verdict::Matched), &[]) && ends(&attempts(Verdict::Drift), &[]));
        assert!(!ends(&attempts(Verdict::Unproven), &[]));
        assert!(!ends(&attempts(Verdict::Matched), &[found(Cause::LimiterReset, 1, 2)]));
        assert!(!ends(&[of(Proof::Requests, Verdict::Matched)], &[]));
        let clocks = |gateway| [Judged { gateway, ..of(Proof::Requests, Verdict::Matched) }];
        assert!(shows_the_end(Cause::ClockSkew, &clocks(3), &[]));
        assert!(!shows_the_end(Cause::ClockSkew, &clocks(2), &[]), "two pairs say nothing about clocks");
        assert!(!shows_the_end(Cause::LostInLedger, &clocks(3), &[]), "what is missing is missing");
        // It is no news that its own window is still unproven; that more of it is, would be.
        let before = Finding { found: found(Cause::LimiterReset, 0, 3), ..finding(Status::Resolved, 0, 3) };
        let again = |count| {
            let found = found(Cause::LimiterReset, 0, count);
            changes(tenant(), std::slice::from_ref(&before), &[], &[found], later())
        };
        assert_eq!(again(3), []);
        assert!(matches!(again(4)[..], [Change::Opened(_)]));
    }

    #[test]
    fn an_alert_is_over_when_nothing_of_its_run_is_open() {
        let over = |statuses: [Status; 3]| {
            let findings: Vec<Finding> =
                statuses.iter().zip(3..).map(|(status, number)| finding(*status, number, 2)).collect();
            is_over(&findings, Cause::LostInLedger, window(3), window(4))
        };
        assert!(!over([Status::Open, Status::Resolved, Status::Resolved]));
        assert!(!over([Status::Explained, Status::Acknowledged, Status::Resolved]));
        // The third is no part of it.
        assert!(over([Status::Explained, Status::Settled, Status::Open]));
    }

    #[test]
    fn findings_age_like_invoices() {
        for (days, age) in [
            (-1, Age::UnderADay),
            (0, Age::UnderADay),
            (1, Age::UnderAWeek),
            (6, Age::UnderAWeek),
            (7, Age::UnderAMonth),
            (29, Age::UnderAMonth),
            (30, Age::Older),
            (400, Age::Older),
        ] {
            assert_eq!(Age::of(days * MICROS_PER_DAY), age, "{days}");
        }
        assert_eq!(Age::of(MICROS_PER_DAY - 1), Age::UnderADay);
        for age in Age::ALL {
            assert_eq!(Age::from_name(age.name()), Some(age));
        }
        assert_eq!(Age::from_name("old"), None);
    }

    #[test]
    fn an_adjusting_entry_adds_what_is_missing_and_takes_what_is_too_much() {
        let differences = |classes: &[(&str, i64, i64)]| {
            let one = |(class, gateway, ledger): &(&str, i64, i64)| Difference {
                class: (*class).to_owned(),
                gateway: *gateway,
                ledger: *ledger,
            };
            Evidence { differences: classes.iter().map(one).collect(), ..Evidence::default() }
        };
        let duplicate = Found {
            gateway: 0,
            ledger: 2,
            evidence: differences(&[
                ("promptTokens", 0, 10),
                ("completionTokens", 0, 20),
                ("cacheReadTokens", 0, 3),
                ("cacheWriteTokens", 0, 4),
                ("reasoningTokens", 0, 5),
                ("unclassifiedTokens", 0, 6),
                ("costNanoUsd", 0, 700),
            ]),
            ..found(Cause::Duplicate, 0, 2)
        };
        assert_eq!(adjustment(&duplicate), Some(Amounts::from_array([-2, -10, -3, -4, -20, -5, -6, -700])));
        // Nobody knows what a lost request used, unless the gateway counted it.
        let lost = found(Cause::LostInLedger, 0, 3);
        assert_eq!(adjustment(&lost), Some(Amounts { requests: 3, ..Amounts::default() }));
        let counted = Found { evidence: differences(&[("promptTokens", 50, 0)]), ..lost };
        assert_eq!(adjustment(&counted), Some(Amounts { requests: 3, prompt_tokens: 50, ..Amounts::default() }));
        let mispriced = Found {
            gateway: 1,
            ledger: 1,
            evidence: differences(&[("costNanoUsd", 900, 1_000)]),
            ..found(Cause::Mispriced, 0, 1)
        };
        assert_eq!(adjustment(&mispriced), Some(Amounts { cost: NanoUsd(-100), ..Amounts::default() }));
        for cause in [Cause::BypassedGateway, Cause::FailOpen, Cause::LimiterReset, Cause::ClockSkew] {
            assert_eq!(adjustment(&found(cause, 0, 3)), None);
        }
    }
}
