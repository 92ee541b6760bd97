//! Alerts and what is owed to the channels, written and read back.

use std::sync::Arc;

use super::harness::{House, NOW, assert_same, commit, event, opening, post, quota_of, set_quotas};
use crate::domain::books::Posting;
use crate::domain::notice::{
    Alert, Attempt, AttemptResult, BURN_MARK, BudgetBurn, Delivery, Event, Outcome, RETRY_DELAY_MICROS_MAX,
    ReconciliationDrift,
};
use crate::domain::period::{PeriodKind, Window};
use crate::domain::quota::{Metric, Scope};
use crate::domain::report::MessageQuery;
use crate::domain::request::Request;
use crate::domain::routing::{QuietHours, Route, Routing};
use crate::domain::time::{MICROS_PER_HOUR, MICROS_PER_MINUTE, Timestamp};
use crate::store::database::Connection;
use crate::store::posting;
use crate::store::{load, notice};

super::conformance!(
    an_acknowledgement_is_kept_and_told_before_the_end,
    deliveries_are_due_until_they_are_settled,
    alerts_of_every_kind_come_back_as_they_were,
    a_new_owner_knows_how_fast_a_budget_burns,
    what_is_owed_is_known_with_its_next_time,
    what_is_held_or_withdrawn_is_not_due,
);

async fn an_acknowledgement_is_kept_and_told_before_the_end(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let daily = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Day, 100);
    let books = set_quotas(&mut connection, &books, vec![daily], NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 60)], NOW).await.unwrap();
    let id = books.firing[0].id;
    let ada = Request { actor: "user:ada".into(), ..Request::system() };
    let books = post(&mut connection, &books, NOW, |posting| drop(posting.acknowledge_alert(id, &ada))).await.unwrap();
    let attempt =
        |event| Attempt { alert: id, event, channel: "pager".into(), at: NOW, result: AttemptResult::Delivered };
    let events = |due: &[Delivery]| -> Vec<Event> {
        due.iter().filter(|one| one.channel == "pager").map(|one| one.event).collect()
    };
    assert_eq!(events(&notice::due(&mut connection, NOW, 10).await.unwrap()), [Event::Fired]);
    let tomorrow = books.firing[0].period_end().unwrap();
    let books = post(&mut connection, &books, tomorrow, |posting| {
        posting.roll();
        posting.attempt(attempt(Event::Fired));
    })
    .await
    .unwrap();
    assert_eq!(events(&notice::due(&mut connection, tomorrow, 10).await.unwrap()), [Event::Acknowledged]);
    post(&mut connection, &books, tomorrow, |posting| posting.attempt(attempt(Event::Acknowledged))).await.unwrap();
    assert_eq!(events(&notice::due(&mut connection, tomorrow, 10).await.unwrap()), [Event::Resolved]);
    let alert = notice::alert(&mut connection, id).await.unwrap().unwrap();
    assert_eq!(alert.acknowledged.map(|one| (one.by, one.at)), Some(("user:ada".to_owned(), NOW)));
    assert_eq!(alert.resolved_at, Some(tomorrow));

    // The history tells all of it, newest first, page by page.
    let window = Window { start: Timestamp(0), end: Timestamp::MAX };
    let mut query = MessageQuery { window, channel: Some("pager".into()), outcome: None, before: None, limit: 1 };
    let mut told = Vec::new();
    loop {
        let page = notice::messages(&mut connection, &query).await.unwrap();
        told.extend(page.items.into_iter().map(|one| (one.event, one.outcome, one.attempts)));
        query.before = page.next;
        if query.before.is_none() {
            break;
        }
    }
    assert_eq!(
        told,
        [
            (Event::Resolved, Outcome::Owed, 0),
            (Event::Fired, Outcome::Delivered, 1),
            (Event::Acknowledged, Outcome::Delivered, 1),
        ]
    );
    let owed = MessageQuery { outcome: Some(Outcome::Owed), channel: None, limit: 10, ..query };
    let owed = notice::messages(&mut connection, &owed).await.unwrap().items;
    assert_eq!(owed.iter().filter(|one| one.channel == "mail").count(), 3);
}

async fn deliveries_are_due_until_they_are_settled(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let daily = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Day, 100);
    let books = set_quotas(&mut connection, &books, vec![daily.clone()], NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 60)], NOW).await.unwrap();
    let due = notice::due(&mut connection, NOW, 10).await.unwrap();
    assert_eq!(due.iter().map(|one| one.channel.as_str()).collect::<Vec<_>>(), ["mail", "pager"]);
    assert!(due.iter().all(|one| one.event == Event::Fired && one.alert == books.firing[0] && one.attempts == 0));
    assert_eq!(notice::due(&mut connection, NOW.plus_micros(-1), 10).await.unwrap(), []);

    // The day ends: resolved is owed to both, and due to none before it knows that the alert fired.
    let tomorrow = books.firing[0].period_end().unwrap();
    let books = post(&mut connection, &books, tomorrow, |posting| posting.roll()).await.unwrap();
    assert!(books.firing.is_empty());
    assert_eq!(notice::owed(&mut connection).await.unwrap().count, 4);
    let due = notice::due(&mut connection, tomorrow, 10).await.unwrap();
    assert_eq!(due.iter().filter(|one| one.event == Event::Fired).count(), 2);
    assert_eq!(due.len(), 2);

    let attempt = |channel: &str, event, result| Attempt {
        alert: due[0].alert.id,
        event,
        channel: channel.into(),
        at: tomorrow,
        result,
    };
    let later = tomorrow.plus_micros(MICROS_PER_MINUTE);
    let books = post(&mut connection, &books, tomorrow, |posting| {
        posting.attempt(attempt("pager", Event::Fired, AttemptResult::Delivered));
        posting.attempt(attempt("mail", Event::Fired, AttemptResult::Retry { at: later, reason: "503".into() }));
    })
    .await
    .unwrap();
    let due = notice::due(&mut connection, tomorrow, 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].channel.as_str(), due[0].event), ("pager", Event::Resolved));
    assert_eq!(due[0].alert.resolved_at, Some(tomorrow));
    let due_later = notice::due(&mut connection, later, 10).await.unwrap();
    assert_eq!(
        due_later.iter().map(|one| (one.channel.as_str(), one.attempts)).collect::<Vec<_>>(),
        [("pager", 0), ("mail", 1)]
    );
    post(&mut connection, &books, later, |posting| {
        posting.attempt(attempt("mail", Event::Fired, AttemptResult::GaveUp { reason: "410".into() }));
        posting.attempt(attempt("pager", Event::Resolved, AttemptResult::Delivered));
        // Too late: what is settled stays settled.
        posting.attempt(attempt("pager", Event::Fired, AttemptResult::Retry { at: later, reason: "?".into() }));
    })
    .await
    .unwrap();
    assert_eq!(notice::owed(&mut connection).await.unwrap().count, 1);
    // Recorded again, because nobody heard that it was: what was settled before does not count again.
    let mut again = Posting::open(&books, later, [9; 32]);
    again.attempt(attempt("mail", Event::Fired, AttemptResult::GaveUp { reason: "410".into() }));
    again.attempt(attempt("mail", Event::Resolved, AttemptResult::Delivered));
    again.close();
    connection.begin().await.unwrap();
    assert_eq!(posting::write(&mut connection, &books, &again).await.unwrap(), 1);
    connection.rollback().await.unwrap();
    let due = notice::due(&mut connection, later, 10).await.unwrap();
    assert_eq!((due[0].channel.as_str(), due[0].event), ("mail", Event::Resolved));
    let settled = "SELECT channel, event, outcome, reason FROM outbox ORDER BY channel, event";
    let settled: Vec<String> = connection
        .fetch(settled, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (0..4).map(|at| row.text(at).unwrap()).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        settled,
        ["mail fired gaveUp 410", "mail resolved owed ", "pager fired delivered ", "pager resolved delivered "]
    );
}

async fn alerts_of_every_kind_come_back_as_they_were(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let daily = quota_of(Scope::Group("research".into()), Metric::PromptTokens, PeriodKind::Day, 1_000);
    let books = set_quotas(&mut connection, &books, vec![daily.clone()], NOW).await;
    let mut events = [event("a", "ada", NOW, 600)];
    events[0].subject.group = "research".into();
    let (books, _) = commit(&mut connection, &books, &events, NOW).await.unwrap();
    let (key, counter) = books.counters.iter().next().map(|(key, counter)| (*key, counter.clone())).unwrap();
    let burn = BudgetBurn {
        quota: daily,
        period_start: key.period_start,
        period_end: counter.window.reset_at(),
        used: 600,
        exhausted_at: NOW.plus_micros(MICROS_PER_HOUR + 1),
    };
    let drift = ReconciliationDrift {
        cause: "lostInLedger".into(),
        window_start: NOW.plus_micros(-MICROS_PER_HOUR),
        windows: 3,
        difference: -7,
        summary: "7 requests are missing".into(),
    };
    let drift = Alert::drift(books.tenant, drift, NOW);
    let books = post(&mut connection, &books, NOW, |posting| {
        posting.fire_alert(Alert::burn(posting.books.tenant, burn, NOW));
        posting.fire_alert(drift.clone());
    })
    .await
    .unwrap();
    assert_eq!(books.firing.len(), 3, "{:?}", books.firing);
    let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
    assert_eq!(stored.counters[&key].fired, [BURN_MARK, 50], "a counter knows what was told, whatever it was");
    let fires = |books: &crate::domain::books::Books| {
        let mut firing = books.firing.clone();
        firing.sort_by_key(|alert| alert.id);
        firing
    };
    assert_eq!(fires(&stored), fires(&books));

    let books = post(&mut connection, &books, NOW, |posting| posting.resolve_alert(drift.id)).await.unwrap();
    let stored = load::read_books(&mut connection, books.tenant).await.unwrap();
    assert_eq!(fires(&stored), fires(&books));
    assert_eq!(stored.firing.len(), 2);
}

async fn a_new_owner_knows_how_fast_a_budget_burns(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let routing =
        Routing { burn_span_micros: 2 * MICROS_PER_HOUR, ..Routing::all(vec!["pager".into(), "mail".into()]) };
    books.routing = Arc::new(routing);
    let total = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Total, 1_000);
    let own = quota_of(Scope::User("ada".into()), Metric::Requests, PeriodKind::Total, 100);
    let books = set_quotas(&mut connection, &books, vec![total.clone()], NOW).await;
    let before = |micros: i64| NOW.plus_micros(-micros);
    let events = [
        event("a", "ada", NOW, 400),
        event("b", "bob", before(MICROS_PER_HOUR / 2), 200),
        event("c", "ada", before(3 * MICROS_PER_HOUR), 50),
        event("d", "ada", before(9 * MICROS_PER_HOUR), 50),
    ];
    let (books, _) = commit(&mut connection, &books, &events, NOW).await.unwrap();
    assert_eq!(books.firing.len(), 2, "a threshold and a burn: {:?}", books.firing);
    // A quota that is new counts what came before it, and so does its rate.
    let books = set_quotas(&mut connection, &books, vec![total, own], NOW).await;
    assert!(books.standings(NOW).iter().all(|standing| standing.exhausts_at.is_some()), "{:?}", books.standings(NOW));
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
    let taken = load::take_over(&mut connection, opening(books.tenant, books.head)).await.unwrap();
    assert_eq!(taken.standings(NOW), books.standings(NOW));
    let recent = |books: &crate::domain::books::Books| {
        let counters: std::collections::BTreeMap<_, _> = books.counters.iter().collect();
        counters.values().map(|counter| counter.recent.clone()).collect::<Vec<_>>()
    };
    assert_eq!(recent(&taken), recent(&books));
}

/// That it is over waits until it is known that it fired, and is no reason to come back earlier.
async fn what_is_owed_is_known_with_its_next_time(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    assert_eq!(notice::owed(&mut connection).await.unwrap(), notice::Owed { count: 0, due_at: Timestamp(0) });
    let total = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Total, 100);
    let books = set_quotas(&mut connection, &books, vec![total], NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 60)], NOW).await.unwrap();
    let alert = books.firing[0].id;
    let owed = notice::owed(&mut connection).await.unwrap();
    assert_eq!(owed, notice::Owed { count: 2, due_at: NOW });
    let later = NOW.plus_micros(5 * MICROS_PER_MINUTE);
    let attempts = notice::due(&mut connection, NOW, 10).await.unwrap();
    let books = post(&mut connection, &books, NOW, |posting| {
        for one in attempts {
            let result = AttemptResult::Retry { at: later, reason: "answered 500".into() };
            posting.attempt(Attempt { alert, event: one.event, channel: one.channel, at: NOW, result });
        }
    });
    let books = books.await.unwrap();
    post(&mut connection, &books, NOW, |posting| posting.resolve_alert(alert)).await.unwrap();
    assert_eq!(notice::owed(&mut connection).await.unwrap(), notice::Owed { count: 4, due_at: later });
}

async fn what_is_held_or_withdrawn_is_not_due(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let quiet = QuietHours::read("UTC", "00:00", "23:59", &[]).unwrap();
    let route = |channel: &str, quiet_hours| Route { channels: vec![channel.into()], quiet_hours, ..Route::default() };
    let routes = vec![route("mail", Some(quiet)), route("pager", None)];
    books.routing = Arc::new(Routing { routes, ..Routing::all(vec!["pager".into(), "mail".into()]) });
    let total = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Total, 100);
    let books = set_quotas(&mut connection, &books, vec![total], NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 60)], NOW).await.unwrap();
    let (alert, held_until) = (books.firing[0].id, books.told[&books.firing[0].id][0].held_until);
    assert!(held_until > NOW.plus_micros(RETRY_DELAY_MICROS_MAX), "{held_until}");
    let due = async |connection: &mut Connection, now| {
        let due = notice::due(connection, now, 10).await.unwrap();
        due.into_iter().map(|one| one.channel).collect::<Vec<_>>()
    };
    assert_eq!(due(&mut connection, NOW).await, ["pager"]);
    assert_eq!(due(&mut connection, held_until).await, ["pager", "mail"]);
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);

    let books = post(&mut connection, &books, NOW, |posting| posting.resolve_alert(alert)).await.unwrap();
    assert_eq!(due(&mut connection, held_until).await, ["pager"], "mail hears neither");
    assert_eq!(notice::owed(&mut connection).await.unwrap().count, 2);
    let withdrawn = "SELECT attempts, outcome FROM outbox WHERE channel = 'mail'";
    let rows = connection.fetch(withdrawn, &[]).await.unwrap();
    assert_eq!((rows.len(), rows[0].int(0).unwrap(), rows[0].text(1).unwrap()), (1, 0, "withdrawn".into()));
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}
