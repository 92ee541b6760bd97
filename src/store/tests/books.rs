//! The hot transaction, and the books read back.

use std::time::Duration;

use super::harness::{
    House, NOW, assert_same, commit, commit_expecting, entry, event, keys_of, opening, post, quota_of, set_quotas,
};
use crate::domain::books::{BatchCounts, Cursor, Missing, Posting};
use crate::domain::chain::{Hash, Head};
use crate::domain::period::{self, PeriodKind};
use crate::domain::quota::{Metric, Scope};
use crate::domain::sorting::Inserted;
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE};
use crate::domain::usage::{Amounts, UsageEvent};
use crate::store::database::Connection;
use crate::store::posting::{self, Expecting};
use crate::store::{StoreError, load, quota};

super::conformance!(
    an_event_is_counted_once,
    a_conflict_is_kept_whole_and_once,
    what_a_posting_says_is_what_is_stored,
    an_old_owner_is_fenced,
    an_old_owner_who_guesses_is_fenced_too,
    a_new_owner_reads_what_the_old_one_was_committing,
    events_taken_for_new_are_counted_once,
    a_guess_that_is_cut_off_leaves_nothing,
    a_recount_equals_the_ledger,
    a_recount_begins_with_its_period_and_ends_before_the_next,
    a_stored_counter_counts_its_own_period_alone,
    a_half_made_transaction_leaves_nothing,
    a_sum_that_leaves_its_range_is_not_written,
    a_failed_statement_cannot_be_committed,
    the_ledger_and_the_chain_only_grow,
    a_chain_that_is_not_the_witnessed_one_is_refused,
    books_behind_their_ledger_are_refused,
    large_batches_come_back_in_order,
);

async fn an_event_is_counted_once(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let first = [event("a", "ada", NOW, 10), event("b", "ada", NOW, 20)];
    let (books, outcomes) = commit(&mut connection, &books, &first, NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::New, Inserted::New]);

    let again = [event("a", "ada", NOW, 10), event("c", "ada", NOW, 5), event("b", "ada", NOW, 21)];
    let (books, outcomes) = commit(&mut connection, &books, &again, NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::Duplicate, Inserted::New, Inserted::Conflict]);
    assert_eq!(books.lifetime.events, 3);
    assert_eq!(books.lifetime.amounts.prompt_tokens, 35);

    let new_first = [event("d", "ada", NOW, 1), event("a", "ada", NOW, 10)];
    let (books, outcomes) = commit(&mut connection, &books, &new_first, NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::New, Inserted::Duplicate]);
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}

async fn a_conflict_is_kept_whole_and_once(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    let other = [event("a", "eve", NOW, 99)];
    let (books, _) = commit(&mut connection, &books, &other, NOW).await.unwrap();
    let (_, outcomes) = commit(&mut connection, &books, &other, NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::Conflict]);
    let rows = connection.fetch("SELECT source, event_id, body FROM usage_conflict", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].text(0).unwrap().as_str(), rows[0].text(1).unwrap().as_str()), ("litellm", "a"));
    let body: serde_json::Value = serde_json::from_str(&rows[0].text(2).unwrap()).unwrap();
    assert_eq!((body["user"].as_str(), body["promptTokens"].as_i64()), (Some("eve"), Some(99)));
}

async fn what_a_posting_says_is_what_is_stored(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let quotas = vec![
        quota_of(Scope::Tenant, Metric::Tokens, PeriodKind::Day, 100),
        quota_of(Scope::User("ada".into()), Metric::Cost, PeriodKind::Month, 1_000_000),
        quota_of(Scope::Model("gpt-5".into()), Metric::Requests, PeriodKind::Total, 3),
        quota_of(Scope::Group("research".into()), Metric::PromptTokens, PeriodKind::Minute, 15),
        quota_of(Scope::ApiKey("key-1".into()), Metric::CompletionTokens, PeriodKind::Week, 1_000),
    ];
    let books = set_quotas(&mut connection, &books, quotas.clone(), NOW).await;
    let earlier = NOW.plus_micros(-2 * MICROS_PER_DAY);
    let events = [event("a", "ada", NOW, 10), event("b", "bob", NOW, 20), event("c", "ada", earlier, 31)];
    let (books, _) = commit(&mut connection, &books, &events, NOW).await.unwrap();
    assert!(books.firing.len() > 3);
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);

    // Everything else a posting may carry: a cursor, another calendar, fewer quotas, resolved alerts.
    let books = post(&mut connection, &books, NOW, |posting| {
        posting.advance(Cursor { stream: "USAGE".into(), sequence: 7 });
        posting.records_entry(entry("access.denied"));
    })
    .await
    .unwrap();
    let books = post(&mut connection, &books, NOW, |posting| {
        posting.advance(Cursor { stream: "USAGE".into(), sequence: 5 });
    })
    .await
    .unwrap();
    let cursor = connection.fetch("SELECT sequence FROM stream_cursor WHERE stream = 'USAGE'", &[]).await.unwrap();
    assert_eq!(cursor[0].int(0).unwrap(), 7);

    let zone = period::time_zone("Asia/Kathmandu").unwrap();
    let mut recounted = Vec::new();
    for missing in crate::domain::books::Posting::open(&books, NOW, [0; 32]).missing_for_time_zone(&zone) {
        let counter = quota::counter(&mut connection, &books, &missing, books.next_position).await.unwrap();
        recounted.push((missing.key(), counter));
    }
    let books = post(&mut connection, &books, NOW, |posting| {
        posting.change_time_zone("Asia/Kathmandu", zone, recounted, entry("tenant.timeZoneChanged"));
    })
    .await
    .unwrap();
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);

    let books = set_quotas(&mut connection, &books, vec![quotas[2].clone(), quotas[1].clone()], NOW).await;
    let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
    assert_same(&stored, &books);
    assert!(stored.counters.keys().all(|key| key.quota == quotas[1].id || key.quota == quotas[2].id));

    // A new owner finds the same, one epoch later.
    let head = books.head;
    let taken = load::take_over(&mut connection, opening(books.tenant, head)).await.unwrap();
    assert_eq!(taken.epoch, books.epoch + 1);
    assert_eq!(taken.head.seq, head.seq + 1);
    assert_eq!(taken.routing.channels, ["pager", "mail"]);
    assert_eq!(taken.standings(NOW), books.standings(NOW));
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &taken);
}

async fn an_old_owner_is_fenced(house: &House) {
    let (store, mut old, books) = house.owner().await;
    let mut new = store.open_tenant(books.tenant).await.unwrap();
    let taken = load::take_over(&mut new, opening(books.tenant, books.head)).await.unwrap();
    let late = commit(&mut old, &books, &[event("a", "ada", NOW, 10)], NOW).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
    old.rollback().await.unwrap();
    assert!(matches!(posting::check_owner(&mut old, &books).await, Err(StoreError::Fenced)));
    assert!(posting::check_owner(&mut new, &taken).await.is_ok());
    let stored = load::read_books(&mut new, books.tenant).await.unwrap();
    assert_same(&stored, &taken);
    assert_eq!(stored.lifetime.events, 0);
    let (_, outcomes) = commit(&mut new, &taken, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::New]);
}

/// The old owner is in the middle of a commit when the new one comes.
async fn a_new_owner_reads_what_the_old_one_was_committing(house: &House) {
    let (store, mut old, books) = house.owner().await;
    let tenant = books.tenant;
    let events = [event("a", "ada", NOW, 10)];
    let (offered, keys) = (vec![&events[0]], keys_of(&[&events[0]]));
    old.begin().await.unwrap();
    posting::insert_events(&mut old, books.next_position, NOW, &offered, &keys, Expecting::Any).await.unwrap();
    let mut posting = Posting::open(&books, NOW, [3; 32]);
    let counts = BatchCounts { attempted: 1, duplicates: 0, conflicts: 0 };
    posting.usage(&offered, &keys, counts, "request-1");
    posting.close();
    posting::write(&mut old, &books, &posting).await.unwrap();

    let mut new = store.open_tenant(tenant).await.unwrap();
    let taking = tokio::spawn(async move {
        let taken = load::take_over(&mut new, opening(tenant, Head::EMPTY)).await;
        (new, taken)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!taking.is_finished(), "it waits for the row of the books");
    old.commit().await.unwrap();
    let (mut new, taken) = taking.await.unwrap();
    let taken = taken.unwrap();
    assert_eq!((taken.lifetime.events, taken.epoch), (1, books.epoch + 1));
    assert_same(&load::read_books(&mut new, tenant).await.unwrap(), &taken);
    let late = commit(&mut old, &posting.books, &[event("late", "ada", NOW, 10)], NOW).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
    old.rollback().await.unwrap();
    let (_, outcomes) = commit(&mut new, &taken, &[event("b", "ada", NOW, 10)], NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::New]);
}

async fn an_old_owner_who_guesses_is_fenced_too(house: &House) {
    let (store, mut old, books) = house.owner().await;
    let mut new = store.open_tenant(books.tenant).await.unwrap();
    let taken = load::take_over(&mut new, opening(books.tenant, books.head)).await.unwrap();
    let late = commit_expecting(&mut old, &books, &many("late", 300), NOW, Expecting::New).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
    old.rollback().await.unwrap();
    let stored = load::read_books(&mut new, books.tenant).await.unwrap();
    assert_same(&stored, &taken);
    assert_eq!(ledger_rows(&mut new).await, 0);
    let (_, outcomes) = commit_expecting(&mut new, &taken, &many("late", 300), NOW, Expecting::New).await.unwrap();
    assert_eq!(outcomes, vec![Inserted::New; 300]);
}

async fn events_taken_for_new_are_counted_once(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let first = commit_expecting(&mut connection, &books, &many("a", 300), NOW, Expecting::New).await;
    let (books, outcomes) = first.unwrap();
    assert_eq!(outcomes, vec![Inserted::New; 300]);
    let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
    assert_same(&stored, &books);

    let mut again = many("b", 299);
    again.push(event("a-7", "ada", NOW, 10));
    match commit_expecting(&mut connection, &books, &again, NOW, Expecting::New).await {
        // SQLite has not guessed.
        Ok((_, outcomes)) => assert!(house.is_sqlite() && outcomes[299] == Inserted::Duplicate),
        Err(error) => {
            assert!(!house.is_sqlite() && matches!(error, StoreError::Known), "{error:?}");
            assert!(matches!(connection.commit().await, Err(StoreError::Wrong(_))), "of no use any more");
            assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
            let (_, outcomes) = commit(&mut connection, &books, &again, NOW).await.unwrap();
            assert_eq!(outcomes.iter().filter(|outcome| **outcome == Inserted::New).count(), 299);
            assert_eq!(outcomes[299], Inserted::Duplicate);
        }
    }
    assert_eq!(ledger_rows(&mut connection).await, 599);
}

async fn a_guess_that_is_cut_off_leaves_nothing(house: &House) {
    let (store, mut connection, mut books) = house.owner().await;
    let mut refused = 0;
    for round in 0..40_u64 {
        let events = many(&round.to_string(), 2_000);
        let patience = std::time::Duration::from_micros(round * 500);
        let cut = commit_expecting(&mut connection, &books, &events, NOW, Expecting::New);
        let cut = tokio::time::timeout(patience, cut).await;
        if let Err(error) = connection.begin().await {
            // Nobody knows whose answer would come next.
            assert!(matches!(error, StoreError::Unknown(_)), "{error:?}");
            let again = connection.fetch("SELECT 1", &[]).await;
            assert!(matches!(again, Err(StoreError::Unknown(_))));
            refused += 1;
            connection = store.open_tenant(books.tenant).await.unwrap();
        } else {
            connection.rollback().await.unwrap();
        }
        let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
        let added = stored.lifetime.events - books.lifetime.events;
        assert!(added == 0 || added == 2_000, "{added}");
        assert_eq!(ledger_rows(&mut connection).await, stored.lifetime.events);
        if let Ok(committed) = cut {
            assert_same(&stored, &committed.unwrap().0);
        }
        books = stored;
    }
    assert!(house.is_sqlite() || refused > 0, "no COPY was cut off");
}

fn many(word: &str, count: usize) -> Vec<UsageEvent> {
    (0..count).map(|number| event(&format!("{word}-{number}"), "ada", NOW, 10)).collect()
}

async fn ledger_rows(connection: &mut Connection) -> i64 {
    let rows = connection.fetch("SELECT COUNT(*) FROM usage_ledger", &[]).await.unwrap();
    rows[0].int(0).unwrap()
}

async fn a_recount_equals_the_ledger(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let mut all: Vec<UsageEvent> = Vec::new();
    // A fixed mixture of users, models, times and late arrivals, over many commits.
    for batch in 0..12_i64 {
        let now = NOW.plus_micros(batch * 7 * MICROS_PER_MINUTE);
        let events: Vec<UsageEvent> = (0..40_i64)
            .map(|number| {
                let mixed = (batch * 40 + number) * 2_654_435_761 % 1_000_003;
                let age = mixed % 90 * MICROS_PER_MINUTE + mixed % 7 * MICROS_PER_HOUR;
                let user = ["ada", "bob", "eve"][mixed as usize % 3];
                event(&format!("{batch}-{number}"), user, now.plus_micros(-age), mixed % 50)
            })
            .collect();
        books = commit(&mut connection, &books, &events, now).await.unwrap().0;
        all.extend(events);
    }
    let sample = all.iter().find(|event| event.subject.user == "bob" && event.subject.model == "gpt-5").unwrap();
    let instant = sample.occurred_at;
    let scopes = [
        Scope::Tenant,
        Scope::User("bob".into()),
        Scope::Group("research".into()),
        Scope::ApiKey("key-1".into()),
        Scope::Model("gpt-5".into()),
        Scope::Provider("openai".into()),
        Scope::Provider("nobody".into()),
    ];
    let mut above_zero = 0;
    for scope in scopes {
        for kind in PeriodKind::ALL {
            for metric in Metric::ALL {
                let quota = quota_of(scope.clone(), metric, kind, 1_000);
                let window = period::window(kind, instant, &books.time_zone);
                let missing = Missing { quota, window, recount: true };
                let counter = quota::counter(&mut connection, &books, &missing, books.next_position).await.unwrap();
                let expected: i64 = all
                    .iter()
                    .filter(|event| window.contains(event.occurred_at) && scope.covers(&event.subject))
                    .map(|event| metric.of(&event.amounts))
                    .sum();
                assert_eq!(counter.used, expected, "{scope:?} {kind:?} {metric:?}");
                above_zero += usize::from(expected > 0);
            }
        }
    }
    assert!(above_zero > 150, "not even one minute has usage: {above_zero}");

    // A recount of a minute leaves the running batch out.
    let quota = quota_of(Scope::Tenant, Metric::Requests, PeriodKind::Minute, 10);
    let late = [event("late", "ada", NOW, 8)];
    let window = period::window(PeriodKind::Minute, NOW, &books.time_zone);
    let missing = Missing { quota, window, recount: true };
    let before = quota::counter(&mut connection, &books, &missing, books.next_position).await.unwrap();
    connection.begin().await.unwrap();
    let events: Vec<&UsageEvent> = late.iter().collect();
    posting::insert_events(&mut connection, books.next_position, NOW, &events, &keys_of(&events), Expecting::Any)
        .await
        .unwrap();
    let within = quota::counter(&mut connection, &books, &missing, books.next_position).await.unwrap();
    assert_eq!(within, before);
    connection.rollback().await.unwrap();
}

async fn a_recount_begins_with_its_period_and_ends_before_the_next(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    // What was recorded long before ends where the search for the minute begins.
    let long_before = NOW.plus_micros(-MICROS_PER_DAY);
    let (mut books, _) =
        commit(&mut connection, &books, &[event("old", "ada", long_before, 1_000)], long_before).await.unwrap();
    let minute = period::window(PeriodKind::Minute, NOW, &books.time_zone);
    let hour = period::window(PeriodKind::Hour, NOW, &books.time_zone);
    let instants = [
        hour.start.plus_micros(-1),
        hour.start,
        minute.start,
        minute.start.plus_micros(-1),
        minute.end.plus_micros(-1),
        minute.end,
        hour.end.plus_micros(-1),
        hour.end,
    ];
    for first in [2, 0] {
        // In one order the first row behind the old one is the minute's own, in the other it is not.
        let rotated = instants.iter().cycle().skip(first).take(instants.len());
        let events: Vec<UsageEvent> =
            rotated.enumerate().map(|(number, at)| event(&format!("{first}-{number}"), "ada", *at, 10)).collect();
        books = commit(&mut connection, &books, &events, hour.end).await.unwrap().0;
        for (kind, window, expected) in [(PeriodKind::Minute, minute, 2), (PeriodKind::Hour, hour, 6)] {
            let quota = quota_of(Scope::Tenant, Metric::Requests, kind, 10);
            let missing = Missing { quota, window, recount: true };
            let counter = quota::counter(&mut connection, &books, &missing, books.next_position).await.unwrap();
            assert_eq!(counter.used, expected * books.lifetime.events / 8, "{kind:?}");
        }
    }
}

async fn a_stored_counter_counts_its_own_period_alone(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let daily = quota_of(Scope::Tenant, Metric::Requests, PeriodKind::Day, 100);
    let books = set_quotas(&mut connection, &books, vec![daily.clone()], NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    let window = period::window(PeriodKind::Day, NOW, &books.time_zone);
    house.tamper(books.tenant, "UPDATE counter SET used = 77").await;
    let known = Missing { quota: daily, window, recount: false };
    let anew = Missing { recount: true, ..known.clone() };
    for (missing, used) in [(&known, 77), (&anew, 1)] {
        let counter = quota::counter(&mut connection, &books, missing, books.next_position).await.unwrap();
        assert_eq!(counter.used, used);
    }
    // A calendar that has moved the end of the day has made it another day.
    house.tamper(books.tenant, "UPDATE counter SET period_end = period_end + 1").await;
    let counter = quota::counter(&mut connection, &books, &known, books.next_position).await.unwrap();
    assert_eq!(counter.used, 1);
}

async fn a_half_made_transaction_leaves_nothing(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let lost = [event("lost", "ada", NOW, 10)];
    let events: Vec<&UsageEvent> = lost.iter().collect();
    connection.begin().await.unwrap();
    posting::insert_events(&mut connection, books.next_position, NOW, &events, &keys_of(&events), Expecting::Any)
        .await
        .unwrap();
    // The future of this unit of work was dropped here; the next one begins.
    let (books, outcomes) = commit(&mut connection, &books, &lost, NOW).await.unwrap();
    assert_eq!(outcomes, [Inserted::New]);
    assert_eq!(books.lifetime.events, 1);

    // Dropped in the middle of a statement, many times, at whatever point that is.
    let mut books = books;
    for round in 0..20_u64 {
        let many: Vec<UsageEvent> =
            (0..300).map(|number| event(&format!("{round}-{number}"), "ada", NOW, 10)).collect();
        let patience = std::time::Duration::from_micros(round * 700);
        let cut = tokio::time::timeout(patience, commit(&mut connection, &books, &many, NOW)).await;
        // Only what is committed counts: all of the batch, or nothing.
        connection.begin().await.unwrap();
        connection.rollback().await.unwrap();
        let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
        let added = stored.lifetime.events - books.lifetime.events;
        assert!(added == 0 || added == 300, "{added}");
        if let Ok(committed) = cut {
            assert_same(&stored, &committed.unwrap().0);
        }
        let rows = connection.fetch("SELECT COUNT(*) FROM usage_ledger", &[]).await.unwrap();
        assert_eq!(rows[0].int(0).unwrap(), stored.lifetime.events);
        books = stored;
    }
}

async fn a_sum_that_leaves_its_range_is_not_written(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let half = |id: &str| {
        let amounts = Amounts { prompt_tokens: i64::MAX / 2 + 1, ..Amounts::default() };
        UsageEvent { amounts, ..event(id, "ada", NOW, 0) }
    };
    let both = commit(&mut connection, &books, &[half("a"), half("b")], NOW).await;
    assert!(matches!(both, Err(StoreError::Unwritable(_))), "{both:?}");
    connection.rollback().await.unwrap();
    let (books, _) = commit(&mut connection, &books, &[half("a")], NOW).await.unwrap();
    let other = commit(&mut connection, &books, &[half("b")], NOW).await;
    assert!(matches!(other, Err(StoreError::Unwritable(_))), "{other:?}");
    connection.rollback().await.unwrap();
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}

async fn a_failed_statement_cannot_be_committed(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    connection.begin().await.unwrap();
    connection.execute("DELETE FROM role", &[]).await.unwrap();
    let wrong = connection.execute("INSERT INTO role (name) VALUES ('x')", &[]).await;
    assert!(matches!(wrong, Err(StoreError::Unwritable(_))), "{wrong:?}");
    assert!(matches!(connection.commit().await, Err(StoreError::Wrong(_))));
    let roles = connection.fetch("SELECT name FROM role ORDER BY name", &[]).await.unwrap();
    let names: Vec<String> = roles.iter().map(|row| row.text(0).unwrap()).collect();
    assert_eq!(names, ["admin", "analyst", "developer", "reader", "reporter"]);
    assert!(commit(&mut connection, &books, &[event("a", "ada", NOW, 1)], NOW).await.is_ok());
}

async fn the_ledger_and_the_chain_only_grow(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    for sql in [
        "UPDATE usage_ledger SET requests = 2",
        "DELETE FROM usage_ledger",
        "UPDATE audit_record SET bytes = hash",
        "DELETE FROM audit_record",
    ] {
        let refused = connection.execute(sql, &[]).await;
        // SQLite takes its trigger for a constraint.
        let refused = matches!(refused, Err(StoreError::Wrong(_) | StoreError::Unwritable(_)));
        assert!(refused, "{sql} was done");
    }
    // What may be erased may be erased.
    let erased = connection.execute("UPDATE audit_record SET payload = NULL, salt = NULL WHERE seq = 1", &[]).await;
    assert_eq!(erased.unwrap(), 1);
    let report = crate::store::audit::verify(&mut connection, &books.tenant.to_string()).await.unwrap();
    assert_eq!(report.broken, None);
}

async fn a_chain_that_is_not_the_witnessed_one_is_refused(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let ahead = Head { seq: books.head.seq + 1, hash: books.head.hash };
    let behind = load::take_over(&mut connection, opening(books.tenant, ahead)).await;
    assert!(matches!(&behind, Err(StoreError::Untrusted(text)) if text.contains("behind")), "{behind:?}");
    let forged = Head { seq: books.head.seq, hash: Hash([1; 32]) };
    let other = load::take_over(&mut connection, opening(books.tenant, forged)).await;
    assert!(matches!(&other, Err(StoreError::Untrusted(text)) if text.contains("another chain")), "{other:?}");
    // Nothing of the refused take-overs has stayed.
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}

async fn books_behind_their_ledger_are_refused(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let events = [event("a", "ada", NOW, 10), event("b", "ada", NOW, 10)];
    let (books, _) = commit(&mut connection, &books, &events, NOW).await.unwrap();
    house.tamper(books.tenant, "UPDATE books SET next_position = 2").await;
    let refused = load::take_over(&mut connection, opening(books.tenant, Head::EMPTY)).await;
    assert!(matches!(refused, Err(StoreError::Untrusted(_))), "{refused:?}");
    house.tamper(books.tenant, "UPDATE books SET next_position = 3, head_seq = head_seq - 1").await;
    let refused = load::take_over(&mut connection, opening(books.tenant, Head::EMPTY)).await;
    assert!(matches!(refused, Err(StoreError::Untrusted(_))), "{refused:?}");
    let first = "UPDATE books SET head_seq = 2, head_hash = (SELECT hash FROM audit_record WHERE seq = 1)";
    house.tamper(books.tenant, first).await;
    let refused = load::take_over(&mut connection, opening(books.tenant, Head::EMPTY)).await;
    assert!(matches!(&refused, Err(StoreError::Untrusted(text)) if text.contains("last record")), "{refused:?}");
}

async fn large_batches_come_back_in_order(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let first: Vec<UsageEvent> =
        (0..1_237).map(|number| event(&format!("{number}"), &format!("user-{number}"), NOW, number)).collect();
    let (books, outcomes) = commit(&mut connection, &books, &first, NOW).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Inserted::New));
    // Every third known with the same body, every third known with another, every third new.
    let second: Vec<UsageEvent> = (0..1_237)
        .map(|number| match number % 3 {
            0 => event(&format!("{number}"), &format!("user-{number}"), NOW, number),
            1 => event(&format!("{number}"), &format!("user-{number}"), NOW, number + 1),
            _ => event(&format!("new-{number}"), &format!("user-{number}"), NOW, number),
        })
        .collect();
    let (books, outcomes) = commit(&mut connection, &books, &second, NOW).await.unwrap();
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome, [Inserted::Duplicate, Inserted::Conflict, Inserted::New][number % 3], "{number}");
    }
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
    let mut ledger =
        connection.fetch("SELECT position, event_id FROM usage_ledger ORDER BY position", &[]).await.unwrap();
    let last = ledger.pop().unwrap();
    assert_eq!((last.int(0).unwrap(), last.text(1).unwrap()), (1_237 + 1_236, "new-1235".into()));
    assert!(books.next_position > last.int(0).unwrap());
}
