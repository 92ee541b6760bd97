//! Questions about the reconciliation, and their answers.

use std::collections::BTreeMap;

use super::finding::{Cause, Finding, Status};
use super::lifecycle::Age;
use super::progress::Progress;
use super::window::Judged;
use super::{Proof, Verdict};
use crate::domain::period::Window;
use crate::domain::report::Page;
use crate::domain::time::Timestamp;

/// Which findings, newest window first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FindingQuery {
    pub status: Option<Status>,
    pub cause: Option<Cause>,
    /// Those after this window and cause.
    pub after: Option<(Timestamp, Cause)>,
    pub limit: usize,
}

pub type FindingPage = Page<Finding, (Timestamp, Cause)>;

/// Which verdicts, newest window first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowQuery {
    /// Windows that begin in here.
    pub window: Window,
    pub proof: Option<Proof>,
    pub verdict: Option<Verdict>,
    /// Those after this window and proof.
    pub after: Option<(Timestamp, Proof)>,
    pub limit: usize,
}

/// Verdicts, each with when it was given.
pub type Verdicts = Vec<(Judged, Timestamp)>;
pub type WindowPage = Page<(Judged, Timestamp), (Timestamp, Proof)>;

/// How the comparison of a tenant's books stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// `None` while no gateway has said anything about the tenant.
    pub progress: Option<Progress>,
    /// The last verdict of each proof.
    pub last: Verdicts,
    pub open: BTreeMap<Cause, [(Age, i64); 4]>,
}
