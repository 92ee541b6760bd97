//! The nodes of a Kong without a database: each has a copy of its own, and a task of its own that keeps it the newest.
//!
//! A node that hangs or refuses is tried again with a growing pause and holds up none of the others. The document is sent with
//! `check_hash=1`, so a node that has it already does nothing; one that was started again, and went back to its file, is found
//! with the next round. What a node says of its hash afterwards is shown, so that people can compare.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::PAUSE;
use super::admin::{Admin, AdminError};
use crate::domain::sync::NodeStatus;
use crate::domain::time::Timestamp;

/// Reports that may wait; a node's next load waits until its last one was told.
const REPORTS_MAX: usize = 64;

/// What every node should have. Number 0 is nothing.
#[derive(Debug, Clone, Default)]
struct Edition {
    number: u64,
    document: Arc<str>,
}

/// How a load of one node ended.
#[derive(Debug)]
pub(super) struct Report {
    node: usize,
    edition: u64,
    pub(super) took: Duration,
    /// Whether it had to be loaded.
    pub(super) result: Result<bool, AdminError>,
    hash: Option<String>,
}

/// All nodes, and what each of them has.
pub(super) struct Nodes {
    editions: watch::Sender<Edition>,
    reports: mpsc::Sender<Report>,
    loaders: JoinSet<()>,
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    admin: Admin,
    /// The newest edition it has confirmed.
    has: u64,
    status: NodeStatus,
}

impl Nodes {
    /// None of them is asked anything before the first document.
    pub(super) fn new(nodes: Vec<Admin>) -> (Nodes, mpsc::Receiver<Report>) {
        let (reports, heard) = mpsc::channel(REPORTS_MAX);
        let states = nodes.into_iter().map(|admin| {
            let status = NodeStatus { url: admin.base().to_owned(), ..NodeStatus::default() };
            State { admin, has: 0, status }
        });
        let nodes = Nodes {
            editions: watch::channel(Edition::default()).0,
            reports,
            loaders: JoinSet::new(),
            states: states.collect(),
        };
        (nodes, heard)
    }

    /// Gives every node this document, from now on and however long it takes; answers its number.
    pub(super) fn publish(&mut self, document: String, patience: Duration, stopping: &CancellationToken) -> u64 {
        let number = self.newest() + 1;
        self.editions.send_replace(Edition { number, document: document.into() });
        if self.loaders.is_empty() {
            for (node, state) in self.states.iter().enumerate() {
                let (admin, reports) = (state.admin.clone(), self.reports.clone());
                let loader = Loader { node, admin, editions: self.editions.subscribe(), reports, patience };
                let stopping = stopping.clone();
                self.loaders.spawn(async move {
                    stopping.run_until_cancelled(loader.run()).await;
                });
            }
        }
        number
    }

    pub(super) fn heard(&mut self, report: &Report, at: Timestamp) {
        let Some(state) = self.states.get_mut(report.node) else { return };
        state.status.last_run_at = Some(at);
        state.status.error = report.result.as_ref().err().map(ToString::to_string);
        let up = if state.status.error.is_none() { 1.0 } else { 0.0 };
        metrics::gauge!("platform_api_kong_sync_node_up", "node" => state.status.url.clone()).set(up);
        if report.result.is_ok() {
            state.has = report.edition;
            state.status.last_success_at = Some(at);
            state.status.configuration_hash.clone_from(&report.hash);
        }
    }

    /// The edition that was published last.
    pub(super) fn newest(&self) -> u64 {
        self.editions.borrow().number
    }

    /// Every node has at least this edition.
    pub(super) fn everywhere(&self) -> u64 {
        self.states.iter().map(|state| state.has).min().unwrap_or_default()
    }

    pub(super) fn statuses(&self) -> Vec<NodeStatus> {
        self.states.iter().map(|state| state.status.clone()).collect()
    }

    /// Why not all of them are as they should be, as far as they have said so.
    pub(super) fn problem(&self) -> Option<String> {
        let mut failing = self.states.iter().filter_map(|state| Some((state, state.status.error.as_ref()?)));
        let (first, error) = failing.next()?;
        if self.states.len() == 1 {
            return Some(error.clone());
        }
        let (failing, all) = (1 + failing.count(), self.states.len());
        Some(format!("{failing} of {all} nodes, {} first: {error}", first.status.url))
    }
}

/// Keeps one node the newest.
struct Loader {
    node: usize,
    admin: Admin,
    editions: watch::Receiver<Edition>,
    reports: mpsc::Sender<Report>,
    /// The longest pause after a failure.
    patience: Duration,
}

impl Loader {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            let edition = self.editions.borrow_and_update().clone();
            let report = self.load(&edition).await;
            let failed = report.result.is_err();
            if self.reports.send(report).await.is_err() {
                return;
            }
            if failed {
                sleep(pause).await;
                pause = (pause * 2).min(self.patience);
                continue;
            }
            pause = PAUSE;
            if self.editions.changed().await.is_err() {
                return;
            }
        }
    }

    async fn load(&self, edition: &Edition) -> Report {
        let began = Instant::now();
        let result = self.admin.load(&edition.document).await;
        let took = began.elapsed();
        // Only to be shown: what it says of itself changes nothing.
        let hash = if result.is_ok() { self.admin.configuration_hash().await } else { None };
        Report { node: self.node, edition: edition.number, took, result, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_everywhere_is_what_the_last_node_has_and_a_failure_is_named() {
        let admins = ["http://one/", "http://two"].map(|url| Admin::at(url, None).unwrap());
        let (mut nodes, _reports) = Nodes::new(admins.to_vec());
        let report = |node, edition, result: Result<bool, AdminError>| {
            let hash = result.is_ok().then(|| "0f".to_owned());
            Report { node, edition, took: Duration::ZERO, result, hash }
        };
        assert_eq!((nodes.everywhere(), nodes.problem()), (0, None));
        nodes.heard(&report(0, 2, Ok(true)), Timestamp(1));
        assert_eq!(nodes.everywhere(), 0, "the other has said nothing");
        nodes.heard(&report(1, 1, Ok(false)), Timestamp(2));
        assert_eq!(nodes.everywhere(), 1);
        nodes.heard(&report(0, 3, Err(AdminError::Unreadable)), Timestamp(3));
        let problem = nodes.problem().unwrap();
        assert!(problem.starts_with("1 of 2 nodes, http://one first: "), "{problem}");
        let [one, two] = &nodes.statuses()[..] else { panic!("two nodes") };
        assert_eq!((one.last_run_at, one.last_success_at), (Some(Timestamp(3)), Some(Timestamp(1))));
        assert_eq!((two.error.as_ref(), two.configuration_hash.as_deref()), (None, Some("0f")));
        // It has what it had, and a node that nobody knows changes nothing.
        nodes.heard(&report(7, 9, Ok(true)), Timestamp(4));
        assert_eq!(nodes.everywhere(), 1);
        nodes.heard(&report(0, 3, Ok(true)), Timestamp(5));
        nodes.heard(&report(1, 3, Ok(true)), Timestamp(5));
        assert_eq!((nodes.everywhere(), nodes.problem()), (3, None));
    }
}
