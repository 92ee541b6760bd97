//! Looking again and again, until asked to stop: the one loop of what polls Kong.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// What looks at a part of Kong.
pub(super) trait Looker: Send {
    /// Looks once, and tells the tenants. May be given up anywhere.
    fn look(&mut self) -> impl Future<Output = ()> + Send;

    /// Tells what has been seen and not been told yet, because nobody will look again.
    fn hand_over(&mut self) -> impl Future<Output = ()> + Send;
}

/// A look that takes longer than the time between two of them leaves some out.
pub(super) async fn run(mut looker: impl Looker, every: Duration, stopping: CancellationToken) {
    let mut turns = tokio::time::interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stopping.run_until_cancelled(turns.tick()).await.is_some() {
        if stopping.run_until_cancelled(looker.look()).await.is_none() {
            break;
        }
    }
    looker.hand_over().await;
}
