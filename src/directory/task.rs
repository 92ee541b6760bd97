//! A change to the control database that a resource brings whole, as [`crate::tenant::task`] has it for a tenant's.
//!
//! The registrar knows the catalogue by name, because a change there goes on in a tenant's database. What belongs to the
//! platform alone comes as a [`Change`]: the registrar runs it in one transaction with its records in the platform's chain
//! and the answer of its idempotency key.

use std::fmt::Debug;
use std::future::Future;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ractor::RpcReplyPort;

use super::handle::Refused;
use crate::domain::chain::Entry;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, request};
pub use crate::tenant::task::{Halt, untold};

/// One resource's change.
pub trait Change: Debug + Send + Sync + 'static {
    /// What was done, as the caller is told.
    type Done: Debug + Send + Sync + 'static;
    /// Why nothing was.
    type Refused: Debug + Send + Sync + 'static;

    /// Judges the change, writes its rows, and leaves in `entries` what the platform's chain is to say of it. A refusal comes
    /// before the first row is written.
    ///
    /// # Errors
    /// [`Halt`]; after [`Halt::Store`] the transaction is of no use.
    fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Done, Halt<Self::Refused>>> + Send;

    /// Shows what was done to whoever reads it from memory: after the commit, before the caller is told.
    fn publish(&self, _done: &Self::Done) {}
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined<R> {
    #[error("the change is refused")]
    Refused(R),
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The control database could not be reached; whether the change was made is unknown, asking again is safe.
    #[error("the change could not be completed: {0}")]
    Unavailable(String),
}

/// The answer that is kept with an idempotency key; it holds no secret.
pub type Render<C> = fn(&<C as Change>::Done) -> String;

/// What a caller of a change is told.
pub type Told<C> = Result<Answer<<C as Change>::Done>, Declined<<C as Change>::Refused>>;

impl<R> From<Refused> for Declined<R> {
    fn from(refused: Refused) -> Declined<R> {
        Declined::Unavailable(refused.to_string())
    }
}

/// A change on its way to the registrar, with whom to answer.
#[derive(Debug)]
pub(super) struct Task(Box<dyn Run>);

impl Task {
    pub(super) fn new<C: Change>(
        change: C,
        request: Request,
        render: Render<C>,
        reply: RpcReplyPort<Result<Told<C>, Refused>>,
    ) -> Task {
        Task(Box::new(Asked { change, request, render, reply, told: None }))
    }

    /// Runs it within the transaction; answers whether there is anything to commit.
    ///
    /// # Errors
    /// [`StoreError`]; the transaction is then of no use.
    pub(super) async fn run(
        &mut self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.0.run(connection, entries, now).await
    }

    /// Shows what was done, and tells the caller.
    pub(super) fn answer(self) {
        self.0.answer();
    }

    /// Tells the caller that nothing is known of it.
    pub(super) fn fail(self, refused: Refused) {
        self.0.fail(refused);
    }
}

/// A [`Change`] whose types the registrar need not know.
trait Run: Debug + Send {
    fn run<'a>(
        &'a mut self,
        connection: &'a mut Connection,
        entries: &'a mut Vec<Entry>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, refused: Refused);
}

#[derive(Debug)]
struct Asked<C: Change> {
    change: C,
    request: Request,
    render: Render<C>,
    reply: RpcReplyPort<Result<Told<C>, Refused>>,
    told: Option<Told<C>>,
}

impl<C: Change> Asked<C> {
    async fn decide(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        now: Timestamp,
    ) -> Result<Told<C>, StoreError> {
        if let Some(idempotency) = &self.request.idempotency
            && let Some((body_hash, answer)) = request::find(connection, &idempotency.key).await?
        {
            let same = body_hash == idempotency.body_hash;
            return Ok(if same { Ok(Answer::Replayed(answer)) } else { Err(Declined::IdempotencyMismatch) });
        }
        let done = match self.change.apply(connection, entries, &self.request, now).await {
            Ok(done) => done,
            Err(Halt::Refused(refused)) => return Ok(Err(Declined::Refused(refused))),
            Err(Halt::Store(error)) => return Err(error),
        };
        if let Some(idempotency) = &self.request.idempotency {
            let answer = (self.render)(&done);
            request::keep(connection, &idempotency.key, &idempotency.body_hash, &answer, now).await?;
        }
        Ok(Ok(Answer::Fresh(done)))
    }
}

impl<C: Change> Run for Asked<C> {
    fn run<'a>(
        &'a mut self,
        connection: &'a mut Connection,
        entries: &'a mut Vec<Entry>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let told = self.decide(connection, entries, now).await?;
            let done = matches!(told, Ok(Answer::Fresh(_)));
            self.told = Some(told);
            Ok(done)
        }
        .boxed()
    }

    fn answer(self: Box<Self>) {
        if let Some(Ok(Answer::Fresh(done))) = &self.told {
            self.change.publish(done);
        }
        if let Some(told) = self.told {
            let _ = self.reply.send(Ok(told));
        }
    }

    fn fail(self: Box<Self>, refused: Refused) {
        let _ = self.reply.send(Err(refused));
    }
}
