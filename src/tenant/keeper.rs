//! The keeper: holds the committed books, answers from memory, gathers work for the writer. It never awaits IO.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::mpsc;

use super::message::{Audit, Description, Gateway, Life, Message, Notice, QuotaMessage, Reconciliation, Usage};
use super::pulse::Pulse;
use super::queue::Queue;
use super::work::{Unit, Work, Written};
use super::writer::{self, Writer};
use super::{read, reconcile};
use crate::domain::books::Books;
use crate::domain::ids::TenantId;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::fault;
use crate::store::database::{Connection, Store};

/// How long after a pass that failed the next one begins.
const COMPARE_AGAIN_MICROS: i64 = 5 * MICROS_PER_SECOND;
/// How long the writer may take to close its connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a keeper left of its own will; the directory tells a rest from a failure by it.
pub(crate) const RESTED: &str = "rested";
pub(crate) const DRAINED: &str = "drained";

/// What a keeper is born with.
pub(crate) struct Birth {
    pub(crate) connection: Connection,
    pub(crate) books: Arc<Books>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) store: Store,
    /// Tells the outlets that something was committed. A hint that may be dropped: the outbox row is the truth.
    pub(crate) hints: mpsc::Sender<TenantId>,
    pub(crate) commit_events_max: usize,
}

pub(crate) struct Keeper;

pub(crate) struct State {
    books: Arc<Books>,
    pulse: Arc<Pulse>,
    store: Store,
    writer: ActorRef<Unit>,
    hints: mpsc::Sender<TenantId>,
    queue: Queue,
    draining: Vec<RpcReplyPort<()>>,
    /// A pass of the reconciliation is under way, or waits to be taken into the books.
    comparing: bool,
    /// After a pass that failed, none begins before.
    compare_after: Timestamp,
}

impl Actor for Keeper {
    type Msg = Message;
    type State = State;
    type Arguments = Birth;

    async fn pre_start(&self, myself: ActorRef<Message>, birth: Birth) -> Result<State, ActorProcessingErr> {
        let arguments = writer::Birth { connection: birth.connection, keeper: myself.clone() };
        let (writer, _) = Actor::spawn_linked(None, Writer, arguments, myself.get_cell()).await?;
        Ok(State {
            books: birth.books,
            pulse: birth.pulse,
            store: birth.store,
            writer,
            hints: birth.hints,
            queue: Queue::new(birth.commit_events_max),
            draining: Vec::new(),
            comparing: false,
            compare_after: Timestamp(0),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Usage(usage) => state.usage(usage),
            Message::Quota(quota) => state.quota(quota),
            Message::Audit(audit) => state.audit(audit),
            Message::Notice(notice) => state.notice(notice),
            Message::Gateway(gateway) => state.gateway(gateway),
            Message::Reconciliation(reconciliation) => state.reconciliation(reconciliation, &myself),
            Message::Life(life) => state.life(life, &myself),
            Message::Change(task) => state.queue.push(Work::Task(task)),
            Message::Written(written) => state.written(written),
        }
        state.hand_over()?;
        state.leave_if_drained(&myself);
        Ok(())
    }

    /// The writer has ended in the middle of work, or cannot be trusted any more: so do we, and are opened anew.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Message>,
        event: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => Err(error),
            SupervisionEvent::ActorTerminated(..) => Err("the writer has left".into()),
            _ => Ok(()),
        }
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        let _ = state.writer.stop_and_wait(None, Some(CLOSE_TIMEOUT)).await;
        state.store.forget(state.books.tenant);
        Ok(())
    }
}

impl State {
    fn usage(&mut self, usage: Usage) {
        match usage {
            Usage::Record { batch, reply } => self.queue.push(Work::Record { batch, reply }),
            Usage::Report { query, reply } => read::report(&self.store, &self.books, query, reply),
            Usage::Page { query, reply } => read::ledger(&self.store, &self.books, query, reply),
        }
    }

    fn quota(&mut self, quota: QuotaMessage) {
        match quota {
            QuotaMessage::Replace { change, reply } => self.queue.push(Work::Replace { change, reply }),
        }
    }

    fn audit(&mut self, audit: Audit) {
        match audit {
            Audit::Append { entry, once, now, reply } => self.queue.push(Work::Append { entry, once, now, reply }),
            Audit::Page { query, reply } => read::chain(&self.store, &self.books, query, reply),
            Audit::Verify { stop, reply } => read::verify(&self.store, &self.books, stop, reply),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Alerts { query, reply } => read::alerts(&self.store, &self.books, query, reply),
            Notice::Messages { query, reply } => read::messages(&self.store, &self.books, query, reply),
            Notice::Due { now, limit, reply } if self.pulse.owed() > 0 => {
                read::due(&self.store, &self.books, now, limit, reply)
            }
            Notice::Due { reply, .. } => answer(reply, Ok(Vec::new())),
            Notice::Firing { reply } => answer(reply, self.books.firing_and_told()),
            Notice::Settle { attempts, now, reply } => self.queue.push(Work::Settle { attempts, now, reply }),
        }
    }

    fn gateway(&mut self, gateway: Gateway) {
        match gateway {
            Gateway::Requests { batch, reply } => self.queue.push(Work::GatewayRequests { batch, reply }),
            Gateway::Readings { readings, reply } => self.queue.push(Work::GatewayReadings { readings, reply }),
        }
    }

    fn reconciliation(&mut self, reconciliation: Reconciliation, myself: &ActorRef<Message>) {
        match reconciliation {
            Reconciliation::Tick { now } => {
                let next = self.books.comparison.next(self.books.latest_event_at);
                // Longer to wait than there ever was: the clock was set back.
                let waits = (1..=COMPARE_AGAIN_MICROS).contains(&(self.compare_after.0 - now.0));
                if !self.comparing && !waits && next.is_some_and(|at| at <= now) {
                    self.comparing = true;
                    reconcile::start(&self.store, &self.books, now, myself.clone());
                }
            }
            Reconciliation::Compared { result: Ok(pass), now } => {
                // A pass that cannot be written is not tried again with every look.
                self.compare_after = now.plus_micros(COMPARE_AGAIN_MICROS);
                self.queue.push(Work::Reconcile { pass, now });
            }
            Reconciliation::Compared { result: Err(error), now } => {
                tracing::warn!(tenant = %self.books.tenant, %error, "the books could not be compared, trying again");
                self.comparing = false;
                self.compare_after = now.plus_micros(COMPARE_AGAIN_MICROS);
            }
            Reconciliation::Overview { now, reply } => read::overview(&self.store, &self.books, now, reply),
            Reconciliation::Findings { query, reply } => read::findings(&self.store, &self.books, query, reply),
            Reconciliation::Finding { id, reply } => read::finding(&self.store, &self.books, id, reply),
            Reconciliation::Windows { query, reply } => read::windows(&self.store, &self.books, query, reply),
            Reconciliation::Treat { change, reply } => self.queue.push(Work::Treat { change, reply }),
        }
    }

    fn life(&mut self, life: Life, myself: &ActorRef<Message>) {
        match life {
            Life::Describe { now, reply } => answer(reply, self.describe(now)),
            Life::ChangeTimeZone { name, entry, once, now, reply } => {
                self.queue.push(Work::ChangeTimeZone { name, entry, once, now, reply });
            }
            Life::Roll { now } => {
                if self.books.needs_roll(now) {
                    self.queue.roll(now);
                }
            }
            Life::Rest { now, idle_micros } => {
                if self.may_rest(now, idle_micros) && self.pulse.owed() <= 0 {
                    myself.stop(Some(RESTED.to_owned()));
                }
            }
            Life::MakeRoom { now, idle_micros } => {
                if self.may_rest(now, idle_micros) {
                    myself.stop(Some(RESTED.to_owned()));
                }
            }
            Life::Drain { reply } => {
                self.queue.leave();
                self.draining.push(reply);
            }
        }
    }

    /// Adopts what the writer committed, then answers.
    fn written(&mut self, written: Written) {
        fault::point("books.before");
        self.queue.returned();
        self.comparing &= self.queue.holds_pass() || !written.settled;
        if written.settled && written.committed {
            self.compare_after = Timestamp(0);
        }
        self.books = written.books.clone();
        self.pulse.adopt(written.books, written.owed_more, written.committed);
        fault::point("books.after");
        for reply in written.answers {
            reply.send();
        }
        if written.committed {
            // A full channel means that the outlets are behind and will look at every open tenant anyway.
            let _ = self.hints.try_send(self.books.tenant);
        }
    }

    /// Hands the next unit to an idle writer.
    fn hand_over(&mut self) -> Result<(), ActorProcessingErr> {
        if let Some(work) = self.queue.next_unit() {
            self.writer.cast(Unit { books: self.books.clone(), work })?;
        }
        self.pulse.waiting(self.queue.events(), self.queue.oldest(), self.queue.in_flight());
        Ok(())
    }

    fn may_rest(&self, now: Timestamp, idle_micros: i64) -> bool {
        self.pulse.is_quiet(now, idle_micros) && !self.comparing && self.queue.is_idle()
    }

    fn leave_if_drained(&mut self, myself: &ActorRef<Message>) {
        if !self.draining.is_empty() && self.queue.is_idle() {
            for reply in self.draining.drain(..) {
                let _ = reply.send(());
            }
            myself.stop(Some(DRAINED.to_owned()));
        }
    }

    fn describe(&self, now: Timestamp) -> Description {
        Description {
            books: self.books.clone(),
            waiting_events: self.queue.events(),
            committing: self.queue.in_flight(),
            oldest_waiting_micros: self.pulse.oldest_waiting_micros(now),
        }
    }
}

/// Answers a caller that may have given up.
fn answer<T>(reply: RpcReplyPort<T>, value: T) {
    if !reply.is_closed() {
        let _ = reply.send(value);
    }
}
