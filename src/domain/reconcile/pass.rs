//! One pass: the windows that were due, compared; and what of it goes into the books.

use super::finding::{Cause, Finding, Status};
use super::lifecycle::{self, Change};
use super::schedule;
use super::window::Judged;
use super::{Proof, Verdict};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::FindingId;
use crate::domain::period::Window;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;

use super::finding::Found;

/// One window, compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    pub window: Window,
    pub judged: Vec<Judged>,
    pub found: Vec<Found>,
    /// How often it has been compared, this time included.
    pub times: u32,
    /// When it was due, if it was compared again.
    pub due: Option<Timestamp>,
}

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// How far the books were settled when it began: it counts only if they still are.
    pub from: Timestamp,
    /// How far they are settled by it.
    pub settled_until: Timestamp,
    /// Oldest first.
    pub compared: Vec<Compared>,
    /// Requests it has read: as many old ones may be forgotten, and more.
    pub requests: usize,
}

/// What a person does with a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Somebody is looking at it.
    Acknowledge,
    /// It is as it should be.
    Explain,
    /// What had to be put right has been.
    Settle,
}

impl Treatment {
    /// Where the finding stands afterwards.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Treatment::Acknowledge => Status::Acknowledged,
            Treatment::Explain => Status::Explained,
            Treatment::Settle => Status::Settled,
        }
    }

    /// May it be done to a finding that stands so?
    #[must_use]
    pub fn applies_to(self, status: Status) -> bool {
        match self {
            Treatment::Acknowledge => status == Status::Open,
            Treatment::Explain => status.is_open(),
            Treatment::Settle => status.is_open() || status == Status::Explained,
        }
    }

    fn action(self) -> &'static str {
        match self {
            Treatment::Acknowledge => "finding.acknowledged",
            Treatment::Explain => "finding.explained",
            Treatment::Settle => "finding.settled",
        }
    }
}

impl Posting {
    /// Settles the windows of a pass: from now on everything before `pass.settled_until` has been judged.
    pub fn settle_windows(&mut self, pass: &Pass) {
        let Some(progress) = &mut self.books.comparison.progress else { return };
        let before = *progress;
        progress.settled_until = progress.settled_until.max(pass.settled_until);
        let fresh = || pass.compared.iter().filter(|one| one.due.is_none());
        // Time in which nothing happened on either side has nothing to prove.
        let idle_until = fresh().map(|one| one.window.start).min().unwrap_or(progress.settled_until);
        for proof in Proof::ALL {
            let proven = &mut progress.proven[proof as usize];
            if *proven == Some(before.settled_until) {
                *proven = Some(idle_until.max(before.settled_until));
            }
            let mut proofs = fresh().flat_map(|one| &one.judged);
            let last = proofs.rfind(|one| one.proof == proof && one.verdict != Verdict::Unproven);
            *proven = (*proven).max(last.map(|one| one.window.end));
        }
        self.gateway.progressed |= *progress != before;
    }

    /// Takes one compared window into the books, given the findings of it that are `known`; answers what has changed, and
    /// when the window is compared again.
    pub fn judge_window(&mut self, compared: &Compared, known: &[Finding]) -> (Vec<Change>, Option<Timestamp>) {
        self.gateway.judged.extend(compared.judged.iter().cloned());
        let in_window = |finding: &Finding| finding.found.window == compared.window;
        let known: Vec<Finding> = self.as_they_stand(known).into_iter().filter(in_window).collect();
        let changes = lifecycle::changes(self.books.tenant, &known, &compared.judged, &compared.found, self.now());
        for change in &changes {
            let action = match change {
                Change::Opened(_) => Some("finding.opened"),
                Change::Resolved(_) => Some("finding.resolved"),
                // Other figures of the same finding are in the finding; they change nothing that anybody was told.
                Change::Updated(_) => None,
            };
            if let Some(action) = action {
                self.record_finding(change.finding(), action, &Request::system());
            }
            self.gateway.findings.insert(change.finding().id, change.finding().clone());
        }
        let open = self.as_they_stand(&known).iter().any(|finding| in_window(finding) && finding.status.is_open());
        let terms = &self.books.comparison.terms;
        let again = open.then(|| schedule::compared_again_at(compared.window, compared.times, terms)).flatten();
        (changes, again)
    }

    /// Notes that a finding of an earlier window is over, because its cause is.
    pub fn resolve_passed(&mut self, finding: &Finding) {
        let known = self.as_they_stand(std::slice::from_ref(finding));
        let Some(open) = known.into_iter().find(|one| one.id == finding.id && one.status.is_open()) else { return };
        let (status, changed_at, changed_by) = (Status::Resolved, self.now(), String::new());
        let resolved = Finding { status, changed_at, changed_by, ..open };
        self.record_finding(&resolved, "finding.resolved", &Request::system());
        self.gateway.findings.insert(resolved.id, resolved);
    }

    /// What a person does with a finding, and why. `adjustment` is the ledger position of an adjusting entry, or 0.
    pub fn treat_finding(
        &mut self,
        finding: &Finding,
        treatment: Treatment,
        reason: &str,
        adjustment: i64,
        request: &Request,
    ) -> Finding {
        let treated = Finding {
            status: treatment.status(),
            changed_at: self.now(),
            changed_by: request.actor.clone(),
            reason: reason.to_owned(),
            adjustment: if adjustment == 0 { finding.adjustment } else { adjustment },
            ..finding.clone()
        };
        self.record_finding(&treated, treatment.action(), request);
        self.gateway.findings.insert(treated.id, treated.clone());
        treated
    }

    /// `findings` as they will be after the commit, with those that this posting has opened.
    #[must_use]
    pub fn as_they_stand(&self, findings: &[Finding]) -> Vec<Finding> {
        let changed = &self.gateway.findings;
        let mut all: Vec<Finding> = findings.iter().filter(|one| !changed.contains_key(&one.id)).cloned().collect();
        all.extend(changed.values().cloned());
        all
    }

    /// Is this finding open, as far as this posting has changed it?
    #[must_use]
    pub fn has_closed(&self, id: FindingId) -> bool {
        self.gateway.findings.get(&id).is_some_and(|finding| !finding.status.is_open())
    }

    /// Has this posting left a finding of `cause` open that begins at `since` or later?
    #[must_use]
    pub fn leaves_open(&self, cause: Cause, since: Timestamp) -> bool {
        let mut findings = self.gateway.findings.values();
        findings.any(|one| one.found.cause == cause && one.found.window.start >= since && one.status.is_open())
    }

    fn record_finding(&mut self, finding: &Finding, action: &str, request: &Request) {
        let found = &finding.found;
        let payload = serde_json::json!({
            "cause": found.cause.name(),
            "proof": found.proof.name(),
            "windowStart": found.window.start,
            "windowEnd": found.window.end,
            "gateway": found.gateway,
            "ledger": found.ledger,
            "count": found.count,
            "reason": finding.reason,
            "adjustment": finding.adjustment,
        });
        self.records_entry(Entry {
            actor: request.actor.clone(),
            action: action.into(),
            target: format!("finding:{}", finding.id),
            outcome: EntryOutcome::Success,
            request_id: request.request_id.clone(),
            payload: payload.to_string(),
        });
    }
}
