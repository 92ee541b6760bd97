//! What can be seen of a writer: what it hands back, when it ends, and what logs, traces and metrics say of it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber, info_span};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::message::{Batch, Message};
use super::work::{Unit, Work, Written};
use super::writer::{Birth, Standstill, Writer};
use super::writer_test::record;
use crate::domain::books::Books;
use crate::domain::ids::TenantId;
use crate::domain::period;
use crate::store::database::Connection;
use crate::store::load;
use crate::store::tests::harness::{House, NOW, event, opening};

crate::store::tests::conformance!(
    a_writer_hands_back_what_it_has_written_and_ends_when_it_is_fenced,
    a_commit_is_a_part_of_its_first_batch_and_follows_the_others,
    a_commit_is_counted_with_its_events_and_records,
);

/// A test that hears nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stands in the keeper's place, and passes on what it hears of its writer.
struct Ear;

#[derive(Debug)]
enum Heard {
    Written(Written),
    Ended(String),
}

impl Actor for Ear {
    type Msg = Message;
    type State = mpsc::UnboundedSender<Heard>;
    type Arguments = mpsc::UnboundedSender<Heard>;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        heard: mpsc::UnboundedSender<Heard>,
    ) -> Result<mpsc::UnboundedSender<Heard>, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        heard: &mut mpsc::UnboundedSender<Heard>,
    ) -> Result<(), ActorProcessingErr> {
        if let Message::Written(written) = message {
            let _ = heard.send(Heard::Written(written));
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Message>,
        event: SupervisionEvent,
        heard: &mut mpsc::UnboundedSender<Heard>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            let _ = heard.send(Heard::Ended(error.to_string()));
        }
        Ok(())
    }
}

/// A writer at work, and what is heard of it.
struct Pair {
    keeper: ActorRef<Message>,
    writer: ActorRef<Unit>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Pair {
    async fn of(connection: Connection) -> Pair {
        let (sender, heard) = mpsc::unbounded_channel();
        let (keeper, _) = Actor::spawn(None, Ear, sender).await.unwrap();
        let birth = Birth { connection, keeper: keeper.clone() };
        let (writer, _) = Actor::spawn_linked(None, Writer, birth, keeper.get_cell()).await.unwrap();
        Pair { keeper, writer, heard }
    }

    async fn write(&mut self, books: &Arc<Books>, work: Vec<Work>) -> Heard {
        self.writer.cast(Unit { books: books.clone(), work }).unwrap();
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap()
    }

    async fn end(self) {
        self.writer.stop_and_wait(None, None).await.unwrap();
        self.keeper.stop_and_wait(None, None).await.unwrap();
    }
}

async fn a_writer_hands_back_what_it_has_written_and_ends_when_it_is_fenced(house: &House) {
    let (store, connection, books) = house.owner().await;
    let (tenant, mut books) = (books.tenant, Arc::new(books));
    let mut pair = Pair::of(connection).await;
    for count in 1..3 {
        let heard = pair.write(&books, vec![record(vec![event(&count.to_string(), "ada", NOW, 10)], "")]).await;
        let Heard::Written(written) = heard else { panic!("{heard:?}") };
        assert_eq!((written.committed, written.answers.len(), written.books.lifetime.events), (true, 1, count));
        books = written.books;
    }
    let mut another = store.open_tenant(tenant).await.unwrap();
    load::take_over(&mut another, opening(tenant, books.head)).await.unwrap();
    let heard = pair.write(&books, vec![record(vec![event("late", "ada", NOW, 10)], "")]).await;
    assert!(matches!(&heard, Heard::Ended(reason) if reason.contains("another owner")), "{heard:?}");
    pair.keeper.stop_and_wait(None, None).await.unwrap();
}

/// Writes down how spans hang together, and what is told to on-call.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Notes {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if let Some(parent) = span.parent() {
            self.note(format!("{} in {}", span.name(), parent.name()));
        }
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).unwrap().name();
        self.note(format!("{} after {}", name(id), name(follows)));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::INFO && event.metadata().target().ends_with("writer") {
            self.note(event.metadata().level().to_string());
        }
    }
}

async fn a_commit_is_a_part_of_its_first_batch_and_follows_the_others(house: &House) {
    let notes = Notes::default();
    let (_, connection, books) = house.owner().await;
    let mut pair = Pair::of(connection).await;
    let _guard = tracing::subscriber::set_default(Registry::default().with(notes.clone()));
    let of = |span: tracing::Span, id: &str| match record(vec![event(id, "ada", NOW, 10)], "") {
        Work::Record { batch, reply } => Work::Record { batch: Batch { span, ..batch }, reply },
        other => other,
    };
    let (first, second, third) = (info_span!("first"), info_span!("second"), info_span!("third"));
    let work = vec![Work::Roll { now: NOW }, of(first, "a"), of(second, "b"), of(third, "c")];
    assert!(matches!(pair.write(&Arc::new(books), work).await, Heard::Written(_)));
    assert_eq!(notes.lines(), ["commit in first", "commit after second", "commit after third"]);
    pair.end().await;
}

async fn a_commit_is_counted_with_its_events_and_records(house: &House) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let (_, connection, books) = house.owner().await;
    let mut pair = Pair::of(connection).await;
    let _guard = metrics::set_default_local_recorder(&recorder);
    let events = ["a", "b", "c"].map(|id| event(id, "ada", NOW, 10)).to_vec();
    let heard = pair.write(&Arc::new(books), vec![record(events.clone(), ""), record(events, "")]).await;
    let Heard::Written(written) = heard else { panic!("{heard:?}") };
    // Nothing is new, and nothing is committed.
    pair.write(&written.books, vec![Work::Roll { now: NOW }]).await;
    let text = recorder.handle().render();
    for line in [
        "platform_api_commits_total{outcome=\"committed\"} 1",
        "platform_api_commit_seconds_count 1",
        "platform_api_commit_events_sum 6",
        "platform_api_audit_records_total 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    pair.end().await;
}

#[test]
fn on_call_hears_once_of_a_standstill_and_once_of_its_end() {
    let notes = Notes::default();
    let books = Arc::new(Books::new(TenantId(uuid::Uuid::nil()), period::time_zone("UTC").unwrap(), i64::MAX));
    let unit = |rolled_back: Option<&str>, committed| Written {
        books: books.clone(),
        answers: Vec::new(),
        owed_more: 0,
        committed,
        settled: false,
        rolled_back: rolled_back.map(str::to_owned),
    };
    tracing::subscriber::with_default(Registry::default().with(notes.clone()), || {
        let mut standstill = Standstill::default();
        let (stuck, idle, committed) = (unit(Some("busy"), false), unit(None, false), unit(None, true));
        for written in [&committed, &stuck, &stuck, &idle, &committed, &committed, &stuck] {
            standstill.tell(written);
        }
    });
    assert_eq!(notes.lines(), ["ERROR", "INFO", "ERROR"]);
}
