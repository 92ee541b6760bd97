//! A resource's change, as its caller and its books see it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use super::guess::Guess;
use super::task::{Change, Declined, Halt, Task, Told, untold};
use super::work::{Unit, Work};
use super::writer;
use crate::domain::books::{Books, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::request::{Answer, Idempotency, Request};
use crate::store::database::Connection;
use crate::store::tests::harness::{House, NOW};

crate::store::tests::conformance!(a_change_is_made_once_per_key, a_refused_change_leaves_nothing);

/// Says a word into the chain.
#[derive(Debug)]
struct Say(&'static str);

impl Change for Say {
    type Done = String;
    type Refused = &'static str;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<String, Halt<&'static str>> {
        database.fetch("SELECT version FROM books", &[]).await?;
        if self.0.is_empty() {
            return Err(Halt::Refused("nothing to say"));
        }
        posting.records_entry(Entry {
            actor: request.actor.clone(),
            action: "word.said".into(),
            target: "word".into(),
            outcome: EntryOutcome::Success,
            request_id: request.request_id.clone(),
            payload: serde_json::json!({ "word": self.0 }).to_string(),
        });
        Ok(self.0.to_owned())
    }
}

async fn say(
    connection: &mut Connection,
    books: &mut Arc<Books>,
    word: &'static str,
    key: Option<(&str, u8)>,
) -> Told<Say> {
    let idempotency = key.map(|(key, body)| Idempotency { key: key.into(), body_hash: [body; 32] });
    let request = Request { actor: "apiKey:k".into(), request_id: "r".into(), idempotency };
    let (reply, told) = ractor::concurrency::oneshot();
    let task = Task::new(Say(word), request, |said| format!("said {said}"), NOW, reply.into());
    let unit = Unit { books: books.clone(), work: vec![Work::Task(task)] };
    let written = writer::write(connection, &mut Guess::default(), unit).await.unwrap();
    *books = written.books;
    written.answers.into_iter().for_each(super::work::Reply::send);
    told.await.unwrap()
}

async fn a_change_is_made_once_per_key(house: &House) {
    let (_, mut connection, books) = house.owner().await;
    let mut books = Arc::new(books);
    let begun = books.head.seq;
    let fresh = || Ok(Answer::Fresh("yes".to_owned()));
    assert_eq!(say(&mut connection, &mut books, "yes", Some(("key", 1))).await, fresh());
    let again = say(&mut connection, &mut books, "yes", Some(("key", 1))).await;
    assert_eq!(again, Ok(Answer::Replayed("said yes".into())));
    let other = say(&mut connection, &mut books, "no", Some(("key", 2))).await;
    assert_eq!(other, Err(Declined::IdempotencyMismatch));
    assert_eq!(books.head.seq, begun + 1);
    for _ in 0..2 {
        assert_eq!(say(&mut connection, &mut books, "yes", None).await, fresh());
    }
    assert_eq!(books.head.seq, begun + 3);
}

async fn a_refused_change_leaves_nothing(house: &House) {
    let (_, mut connection, books) = house.owner().await;
    let mut books = Arc::new(books);
    let (version, head) = (books.version, books.head);
    let refused = say(&mut connection, &mut books, "", Some(("key", 1))).await;
    assert_eq!(refused, Err(Declined::Refused("nothing to say")));
    assert_eq!((books.version, books.head), (version, head));
    // Its key is free: the same request may be right another time.
    let now = say(&mut connection, &mut books, "yes", Some(("key", 1))).await;
    assert_eq!(now, Ok(Answer::Fresh("yes".into())));
}

#[test]
fn who_needs_no_answer_is_replayed_an_empty_document() {
    let kept: serde_json::Value = serde_json::from_str(&untold(&"anything")).unwrap();
    assert_eq!(kept, serde_json::json!({}));
}
