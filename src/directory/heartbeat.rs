//! Which nodes live, and who comes back to what the others owed: alerts to send, escalations, books that time changes.
//!
//! Each node counts up a number of its own in the control database, and looks at those of the others. One whose number stands
//! still look after look is gone, be it killed, frozen or cut off: it is struck off, and its tenants that are awake are taken
//! up by whoever is first to write its name beside them. No clock is compared, and a look that fails counts for nothing. A
//! node that was struck off and lives all the same counts on; what was taken up it has lost by then, as the epoch tells it.
//!
//! Where files have one owner there is nobody to look at.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ractor::{ActorRef, ActorStatus};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::supervisor;
use crate::domain::ids::NodeId;
use crate::store::StoreError;
use crate::store::database::{Connection, Store};
use crate::store::node::{self, Beat, Held};

/// How often a node beats, and looks at the others.
pub const BEAT_EVERY: Duration = Duration::from_secs(3);
/// Looks in a row that find a node's number where it was, until the node is taken to be gone.
const STILL_MAX: u32 = 5;
/// Beats between two looks at all that this node holds, should it have missed something.
pub const BEATS_PER_REVIEW: u32 = 20;
/// How long a beat and a look may take: a connection that is dead without a word must not make the node look so.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a node that ends tries to say so.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Tells who is gone from how often each has beaten.
#[derive(Debug, Default)]
pub struct Detector {
    /// The last number of each node, and how many looks in a row have found it there again.
    seen: BTreeMap<NodeId, (i64, u32)>,
}

impl Detector {
    /// A look has found these; answers which of them are gone. Those are forgotten: one that comes back after it was struck off
    /// counts from one again, and may well be at the number where it was found last.
    pub fn look(&mut self, found: &[Beat]) -> Vec<Beat> {
        let before = std::mem::take(&mut self.seen);
        let count = |beat: &Beat| match before.get(&beat.node) {
            Some((beats, still)) if *beats == beat.beats => (beat.node, (beat.beats, still.saturating_add(1))),
            _ => (beat.node, (beat.beats, 0)),
        };
        self.seen = found.iter().map(count).collect();
        let gone: Vec<Beat> = found.iter().filter(|beat| self.seen[&beat.node].1 >= STILL_MAX).copied().collect();
        self.seen.retain(|node, _| gone.iter().all(|beat| beat.node != *node));
        gone
    }

    /// A look has failed: the others may have been unable to beat as well.
    pub fn forget(&mut self) {
        self.seen.clear();
    }
}

/// The heart of this node.
pub(super) struct Heart {
    node: NodeId,
    store: Store,
    connection: Option<Connection>,
    detector: Detector,
    supervisor: ActorRef<supervisor::Message>,
    /// Beats until all that this node holds is looked at again.
    review_in: u32,
    /// The last look has failed, which was said: perhaps it has taken something up all the same.
    is_troubled: bool,
}

/// Stops the heart: at once when it is dropped, with a farewell when it is asked to [leave](Pacemaker::leave).
pub(super) struct Pacemaker(Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>);

impl Pacemaker {
    /// As if the process were killed.
    #[cfg(test)]
    pub(super) fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Lets the others know that whatever is owed is theirs from now on.
    pub(super) async fn leave(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((farewell, task)) = running else { return };
        let _ = farewell.send(());
        // It ends by itself, and says so if nobody could be told.
        let _ = task.await;
    }
}

impl Heart {
    /// The first beat: from here on this node may hold tenants. No task where there are no other nodes.
    pub(super) async fn start(
        node: NodeId,
        store: Store,
        supervisor: ActorRef<supervisor::Message>,
    ) -> Result<Pacemaker, StoreError> {
        if store.followed_every().is_none() {
            return Ok(Pacemaker(Mutex::new(None)));
        }
        let mut connection = store.control_again().await?;
        node::beat(&mut connection, node).await?;
        // By this the others tell of it.
        tracing::info!(%node, "one of the nodes on these databases");
        let heart = Heart {
            node,
            store,
            connection: Some(connection),
            detector: Detector::default(),
            supervisor,
            review_in: 0,
            is_troubled: false,
        };
        let (sender, farewell) = oneshot::channel();
        Ok(Pacemaker(Mutex::new(Some((sender, tokio::spawn(heart.beat(farewell)))))))
    }

    async fn beat(mut self, mut farewell: oneshot::Receiver<()>) {
        while self.supervisor.get_status() != ActorStatus::Stopped {
            let looked = tokio::select! {
                biased;
                said = &mut farewell => return if said.is_ok() { self.leave().await },
                looked = timeout(LOOK_TIMEOUT, self.look()) => looked,
            };
            match looked {
                Ok(Ok(held)) if held.is_empty() => {}
                Ok(Ok(held)) => {
                    let _ = self.supervisor.cast(supervisor::Message::TakeUp { held });
                }
                Ok(Err(error)) => self.failed(&error.to_string()),
                Err(_) => self.failed("the control database does not answer in time"),
            }
            tokio::select! {
                biased;
                said = &mut farewell => return if said.is_ok() { self.leave().await },
                () = tokio::time::sleep(BEAT_EVERY) => {}
            }
        }
    }

    /// One beat, and a look at the others; answers what this node holds, if there may be something that it does not know.
    async fn look(&mut self) -> Result<Vec<Held>, StoreError> {
        let mut connection = self.take_connection().await?;
        node::beat(&mut connection, self.node).await?;
        let others = node::others(&mut connection, self.node).await?;
        metrics::gauge!("platform_api_nodes").set((others.len() + 1) as f64);
        for last in self.detector.look(&others) {
            if node::strike_off(&mut connection, last).await? {
                tracing::warn!(node = %last.node, "another node is gone: what it owed is taken up");
            }
        }
        let mut held = node::take_up(&mut connection, self.node).await?;
        if !held.is_empty() {
            let taken = u64::try_from(held.len()).unwrap_or(u64::MAX);
            metrics::counter!("platform_api_tenants_taken_up_total").increment(taken);
            tracing::info!(tenants = taken, "taken up from nodes that are gone");
        }
        if self.review_in == 0 || self.is_troubled {
            let known = node::held(&mut connection, self.node).await?;
            // What was taken up by a look that was answered is on its way.
            let lost = self.is_troubled;
            held.extend(known.into_iter().map(|held| Held { is_orphan: held.is_orphan && lost, ..held }));
            self.review_in = BEATS_PER_REVIEW;
        }
        self.review_in -= 1;
        if std::mem::take(&mut self.is_troubled) {
            tracing::info!("this node's beat is heard, and it hears the others again");
        }
        self.connection = Some(connection);
        Ok(held)
    }

    async fn take_connection(&mut self) -> Result<Connection, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.store.control_again().await,
        }
    }

    /// The connection is gone with the look that failed.
    fn failed(&mut self, reason: &str) {
        self.detector.forget();
        if !std::mem::replace(&mut self.is_troubled, true) {
            tracing::warn!(
                reason,
                "this node's beat may not be heard, or it hears no other: who is not heard may lose what it owes to others"
            );
        }
    }

    async fn leave(&mut self) {
        let left = async {
            let mut connection = self.take_connection().await?;
            node::leave(&mut connection, self.node).await
        };
        if !matches!(timeout(LEAVE_TIMEOUT, left).await, Ok(Ok(()))) {
            tracing::warn!("the others were not told that this node ends; they find out");
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn beat(node: u128, beats: i64) -> Beat {
        Beat { node: NodeId(Uuid::from_u128(node)), beats }
    }

    #[test]
    fn who_stands_still_look_after_look_is_gone() {
        let mut detector = Detector::default();
        for look in 0..STILL_MAX {
            assert_eq!(detector.look(&[beat(1, 7), beat(2, look.into())]), [], "look {look}");
        }
        assert_eq!(detector.look(&[beat(1, 7), beat(2, 9)]), [beat(1, 7)]);
        for look in 0..STILL_MAX {
            assert_eq!(detector.look(&[beat(1, 7), beat(2, i64::from(look))]), [], "look {look} after that");
        }
        assert_eq!(detector.look(&[beat(1, 7), beat(2, 9)]), [beat(1, 7)], "nobody has struck it off");
        assert_eq!(detector.look(&[beat(1, 8), beat(2, 10)]), [], "it lives after all");
    }

    #[test]
    fn who_could_not_look_knows_nothing_of_the_others() {
        let mut detector = Detector::default();
        for _ in 0..3 {
            for look in 0..STILL_MAX {
                assert_eq!(detector.look(&[beat(1, 7)]), [], "look {look}");
            }
            detector.forget();
        }
    }

    #[test]
    fn who_was_struck_off_and_comes_back_is_new() {
        let mut detector = Detector::default();
        for look in 0..=STILL_MAX {
            assert_eq!(detector.look(&[beat(1, 1)]).len(), usize::from(look == STILL_MAX));
        }
        for beats in 1..50 {
            assert_eq!(detector.look(&[beat(1, beats)]), [], "it beats again, from one on");
        }
    }
}
