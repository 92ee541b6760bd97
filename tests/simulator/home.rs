//! One tenant, open on one node: the real queue, the real writer, real permits, and the books it shows.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use platform_api::domain::books::{Books, Cursor};
use platform_api::domain::time::Timestamp;
use platform_api::domain::usage::{Outcome, UsageEvent};
use platform_api::store::StoreError;
use platform_api::tenant::guess::Guess;
use platform_api::tenant::message::{Batch, Permits};
use platform_api::tenant::queue::Queue;
use platform_api::tenant::work::{Unit, Work, Written};
use platform_api::tenant::writer;
use tokio::sync::{Semaphore, oneshot};

use super::ground::Ground;
use super::session::Session;

type Writing = Pin<Box<dyn Future<Output = (Session, Guess, Result<Written, StoreError>)>>>;

/// The keeper and its writer.
pub struct Home {
    /// Committed, as far as the keeper knows.
    pub books: Arc<Books>,
    pub queue: Queue,
    /// Outbox rows that are not settled, as far as the keeper knows.
    pub owed: i64,
    pub heard_at: Timestamp,
    pub leaving: bool,
    session: Option<Session>,
    guess: Guess,

    writing: Option<Writing>,
    room: Arc<Semaphore>,
    room_events: usize,
}

/// How one more step of the writer ended.
pub enum Step {
    /// It waits for the database, or has nothing to do.
    Waits,
    /// Callers were answered.
    Answered {
        committed: bool,
    },
    Failed(StoreError),
}

impl Home {
    pub fn new(session: Session, books: Books, owed: i64, now: Timestamp, ground: &Ground) -> Home {
        let room_events = ground.plan.permits_events;
        Home {
            books: Arc::new(books),
            queue: Queue::new(ground.plan.unit_events_max),
            owed,
            heard_at: now,
            leaving: false,
            session: Some(session),
            guess: Guess::default(),
            writing: None,
            room: Arc::new(Semaphore::new(room_events)),
            room_events,
        }
    }

    /// Queues events; `None` when there is no room for them. The permits are given back after the commit.
    pub fn record(
        &mut self,
        events: Vec<UsageEvent>,
        cursor: Option<Cursor>,
        request_id: String,
        now: Timestamp,
    ) -> Option<oneshot::Receiver<Vec<Outcome>>> {
        self.heard_at = self.heard_at.max(now);
        let wanted = u32::try_from(events.len().clamp(1, self.room_events)).expect("a small number");
        let events_permit = self.room.clone().try_acquire_many_owned(wanted).ok()?;
        let kibibytes_permit = Arc::new(Semaphore::new(1)).try_acquire_owned().ok()?;
        let permits = Permits { _events: events_permit, _kibibytes: kibibytes_permit };
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::none();
        let identities = events.iter().map(UsageEvent::identity).collect();
        let batch = Batch { events, identities, cursor, request_id, now, permits, span };
        self.queue.push(Work::Record { batch, reply: reply.into() });
        Some(answer)
    }

    /// Lets the writer go on to its next call of the database, and adopts what it brings back.
    pub fn step(&mut self, ground: &super::ground::Shared<Ground>) -> Step {
        if self.writing.is_none() {
            let Some(work) = self.queue.next_unit() else { return Step::Waits };
            let Some(mut session) = self.session.take() else { return Step::Waits };
            let batches = work.iter().filter(|piece| matches!(piece, Work::Record { .. })).count();
            if batches > 1 {
                super::ground::lock(ground).coverage.saw("writer: several batches in one commit");
            }
            let unit = Unit { books: self.books.clone(), work };
            let mut guess = std::mem::take(&mut self.guess);
            self.writing = Some(Box::pin(async move {
                let written = writer::write(&mut session, &mut guess, unit).await;
                (session, guess, written)
            }));
        }
        let Some(writing) = &mut self.writing else { return Step::Waits };
        match writing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Step::Waits,
            Poll::Ready((session, guess, result)) => {
                (self.session, self.guess) = (Some(session), guess);
                self.writing = None;
                match result {
                    Ok(written) => self.adopt(written),
                    Err(error) => Step::Failed(error),
                }
            }
        }
    }

    /// As the keeper does: adopt, then answer.
    fn adopt(&mut self, written: Written) -> Step {
        self.queue.returned();
        self.books = written.books;
        self.owed += written.owed_more;
        for reply in written.answers {
            reply.send();
        }
        Step::Answered { committed: written.committed }
    }
}
