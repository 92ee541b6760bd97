//! A change that a resource brings whole: what it does within the unit's transaction, and whom it answers.
//!
//! The writer knows usage, quotas and gateways by name, because they share counters and the order of the ledger. What
//! belongs to one resource alone (a person, a flag, a secret) comes as a [`Change`]: the writer runs it between its own
//! work, in the same transaction, and neither the protocol nor the writer grows by an arm for it. Idempotency is the same
//! for all of them, so it is here.

use std::fmt::Debug;
use std::future::Future;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ractor::RpcReplyPort;

use crate::domain::books::Posting;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, request};

/// One resource's change.
pub trait Change: Debug + Send + Sync + 'static {
    /// What was done, as the caller is told.
    type Done: Debug + Send + Sync + 'static;
    /// Why nothing was.
    type Refused: Debug + Send + Sync + 'static;

    /// Judges the change by the posting's books, writes its rows, and leaves in the posting the new memory and the record
    /// of the chain. A refusal comes before the first row is written. Runs anew when the transaction was rolled back.
    ///
    /// # Errors
    /// [`Halt`]; after [`Halt::Store`] the transaction is of no use.
    fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> impl Future<Output = Result<Self::Done, Halt<Self::Refused>>> + Send;
}

/// What ends a change before it is made.
#[derive(Debug, thiserror::Error)]
pub enum Halt<R> {
    #[error("the change is refused")]
    Refused(R),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a change was not made. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Declined<R> {
    #[error("the change is refused")]
    Refused(R),
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The transaction was rolled back, surely; the same request may be tried again.
    #[error("the change was rolled back")]
    RolledBack,
}

/// The answer that is kept with an idempotency key; it holds no secret.
pub type Render<C> = fn(&<C as Change>::Done) -> String;

/// The answer of a change that nobody asks for twice under one key.
#[must_use]
pub fn untold<T>(_: &T) -> String {
    "{}".into()
}

/// What a caller of a change is told.
pub type Told<C> = Result<Answer<<C as Change>::Done>, Declined<<C as Change>::Refused>>;

/// A change on its way, with whom to answer.
#[derive(Debug)]
pub struct Task(Box<dyn Run>);

impl Task {
    pub(crate) fn new<C: Change>(
        change: C,
        request: Request,
        render: Render<C>,
        now: Timestamp,
        reply: RpcReplyPort<Told<C>>,
    ) -> Task {
        Task(Box::new(Asked { change, request, render, now, reply, told: None }))
    }

    /// When it was asked for.
    pub(crate) fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Runs it within the transaction.
    ///
    /// # Errors
    /// [`StoreError`]; the transaction is then of no use.
    pub(crate) async fn run(&mut self, database: &mut Connection, posting: &mut Posting) -> Result<(), StoreError> {
        self.0.run(database, posting).await
    }

    /// Tells the caller what became of it, once the keeper has adopted the books.
    pub(crate) fn answer(self) {
        self.0.answer();
    }

    /// Tells the caller that it was rolled back.
    pub(crate) fn rolled_back(&mut self) {
        self.0.rolled_back();
    }
}

/// A [`Change`] whose types the writer need not know.
trait Run: Debug + Send {
    fn now(&self) -> Timestamp;
    fn run<'a>(
        &'a mut self,
        database: &'a mut Connection,
        posting: &'a mut Posting,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn answer(self: Box<Self>);
    fn rolled_back(&mut self);
}

#[derive(Debug)]
struct Asked<C: Change> {
    change: C,
    request: Request,
    render: Render<C>,
    now: Timestamp,
    reply: RpcReplyPort<Told<C>>,
    /// Of the last time it ran.
    told: Option<Told<C>>,
}

impl<C: Change> Asked<C> {
    async fn decide(&self, database: &mut Connection, posting: &mut Posting) -> Result<Told<C>, StoreError> {
        if let Some(idempotency) = &self.request.idempotency
            && let Some((body_hash, answer)) = request::find(database, &idempotency.key).await?
        {
            let same = body_hash == idempotency.body_hash;
            return Ok(if same { Ok(Answer::Replayed(answer)) } else { Err(Declined::IdempotencyMismatch) });
        }
        let done = match self.change.apply(database, posting, &self.request).await {
            Ok(done) => done,
            Err(Halt::Refused(refused)) => return Ok(Err(Declined::Refused(refused))),
            Err(Halt::Store(error)) => return Err(error),
        };
        if let Some(idempotency) = &self.request.idempotency {
            let answer = (self.render)(&done);
            request::keep(database, &idempotency.key, &idempotency.body_hash, &answer, posting.now()).await?;
        }
        Ok(Ok(Answer::Fresh(done)))
    }
}

impl<C: Change> Run for Asked<C> {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn run<'a>(
        &'a mut self,
        database: &'a mut Connection,
        posting: &'a mut Posting,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            self.told = None;
            self.told = Some(self.decide(database, posting).await?);
            Ok(())
        }
        .boxed()
    }

    /// A caller that is gone has given up, and its change is made all the same. One whose change never ran is told to come
    /// back, by a port that closes.
    fn answer(self: Box<Self>) {
        if let Some(told) = self.told {
            let _ = self.reply.send(told);
        }
    }

    fn rolled_back(&mut self) {
        self.told = Some(Err(Declined::RolledBack));
    }
}
