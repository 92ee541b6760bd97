//! The channels as an operator sees and tries them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::channel::Channel;
use super::egress::Failure;
use super::lane::{Lane, Record};
use crate::clock::{self, Clock};
use crate::domain::ids::AlertId;

/// Between two tests of one channel.
const TEST_PAUSE: Duration = Duration::from_secs(5);

/// Every configured channel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bench {
    channels: Arc<Vec<Tried>>,
    last_tests: Arc<Mutex<HashMap<String, Instant>>>,
    clock: Clock,
}

#[derive(Debug)]
struct Tried {
    kind: &'static str,
    address: String,
    record: watch::Receiver<Record>,
    channel: Arc<Channel>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    pub kind: &'static str,
    /// Where it leads, without what is secret.
    pub address: String,
    pub record: Record,
}

/// What a receiver said to a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub test: AlertId,
    /// Why it did not take it, in our words; `None` when it did.
    pub refused: Option<String>,
    pub took: Duration,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTested {
    Unknown,
    /// It was tested just now.
    TooSoon {
        again_after: Duration,
    },
}

impl Bench {
    pub(super) fn new<'a>(lanes: impl Iterator<Item = (&'a Lane, (&'static str, String))>, clock: Clock) -> Bench {
        let channels = lanes.map(|(lane, (kind, address))| Tried {
            kind,
            address,
            record: lane.record.clone(),
            channel: Arc::clone(&lane.channel),
        });
        Bench { channels: Arc::new(channels.collect()), last_tests: Arc::default(), clock }
    }

    /// In the order of the configuration.
    #[must_use]
    pub fn channels(&self) -> Vec<Shown> {
        let shown = |one: &Tried| Shown {
            name: one.channel.name.clone(),
            kind: one.kind,
            address: one.address.clone(),
            record: one.record.borrow().clone(),
        };
        self.channels.iter().map(shown).collect()
    }

    /// Sends a test as an alert would be sent, past the queue and the circuit: who asks wants the receiver's own word.
    ///
    /// # Errors
    /// [`NotTested`]: nothing was sent.
    pub async fn test(&self, name: &str) -> Result<Answered, NotTested> {
        let tried = self.channels.iter().find(|one| one.channel.name == name).ok_or(NotTested::Unknown)?;
        self.take_turn(name)?;
        let (test, began) = (AlertId(clock::new_id()), Instant::now());
        let refused = match tried.channel.test(test, self.clock.now()).await {
            Ok(()) => None,
            Err(Failure::Passing { reason, .. } | Failure::Final { reason }) => Some(reason),
        };
        Ok(Answered { test, refused, took: began.elapsed() })
    }

    fn take_turn(&self, name: &str) -> Result<(), NotTested> {
        let now = Instant::now();
        let mut last = self.last_tests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again_after) = last.get(name).and_then(|at| TEST_PAUSE.checked_sub(now - *at)) {
            return Err(NotTested::TooSoon { again_after });
        }
        last.insert(name.to_owned(), now);
        Ok(())
    }
}
