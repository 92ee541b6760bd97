//! Questions about the past.

use tokio_util::sync::CancellationToken;

use super::harness::{House, NOW, commit, entry, event, post, quota_of, set_quotas};
use crate::domain::chain::{Hash, Head};
use crate::domain::period::{self, PeriodKind, Window};
use crate::domain::quota::{Metric, Scope};
use crate::domain::report::{AlertQuery, ChainQuery, Dimension, LedgerQuery, UsageQuery};
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE};
use crate::domain::usage::{Subject, Totals, UsageEvent};
use crate::store::{StoreError, audit, notice, usage};

super::conformance!(
    rollups_add_up_by_the_dimensions_asked_for,
    a_report_holds_the_quarters_that_begin_in_its_window,
    the_ledger_is_searched_by_time,
    ledger_pages_are_complete_and_filtered,
    alert_pages_are_complete,
    verification_finds_a_changed_byte,
    verification_finds_a_cut_chain,
    verification_proves_what_was_counted,
    verification_bears_what_is_committed_meanwhile,
);

async fn rollups_add_up_by_the_dimensions_asked_for(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let events: Vec<UsageEvent> = (0..60_i64)
        .map(|number| {
            let user = ["ada", "bob", "eve"][number as usize % 3];
            event(&format!("{number}"), user, NOW.plus_micros(-number * MICROS_PER_MINUTE), number)
        })
        .collect();
    // In two commits, each with something for nearly every rollup, so that they are added to.
    let (some, others): (Vec<UsageEvent>, Vec<UsageEvent>) =
        events.iter().cloned().partition(|event| event.amounts.prompt_tokens / 6 % 2 == 0);
    let (books, _) = commit(&mut connection, &books, &some, NOW).await.unwrap();
    let (books, _) = commit(&mut connection, &books, &others, NOW).await.unwrap();
    let window = Window { start: NOW.plus_micros(-MICROS_PER_DAY), end: NOW.plus_micros(MICROS_PER_DAY) };
    for group_by in [vec![], vec![Dimension::User], vec![Dimension::Model, Dimension::User], Dimension::ALL.to_vec()] {
        let query = UsageQuery { window, granularity: PeriodKind::Hour, group_by: group_by.clone() };
        let found = usage::rollups(&mut connection, &query).await.unwrap();
        assert!(found.is_sorted_by_key(|(start, _, _)| *start));
        let mut sum = Totals::default();
        found.iter().for_each(|(_, _, totals)| sum.add(totals));
        assert_eq!(sum, books.lifetime, "{group_by:?}");
        for (start, subject, totals) in found {
            let mut expected = Totals::default();
            let matching = events.iter().filter(|event| {
                period::rollup_start(event.occurred_at) == start
                    && group_by.iter().all(|dimension| dimension.of(&subject) == dimension.of(&event.subject))
            });
            matching.for_each(|event| expected.add(&Totals::of(event)));
            assert_eq!(totals, expected);
            let unasked = Dimension::ALL.into_iter().filter(|dimension| !group_by.contains(dimension));
            unasked.for_each(|dimension| assert_eq!(dimension.of(&subject), ""));
        }
    }
    let empty = Window { start: NOW.plus_micros(MICROS_PER_DAY), end: NOW.plus_micros(2 * MICROS_PER_DAY) };
    let query = UsageQuery { window: empty, granularity: PeriodKind::Day, group_by: vec![] };
    assert_eq!(usage::rollups(&mut connection, &query).await.unwrap(), []);
}

async fn a_report_holds_the_quarters_that_begin_in_its_window(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let start = period::rollup_start(NOW);
    let quarter = |number: i64| start.plus_micros(number * period::ROLLUP_MICROS);
    let events = [-1, 0, 1, 2].map(|number| event(&format!("{number}"), "ada", quarter(number), 10));
    let (_, _) = commit(&mut connection, &books, &events, quarter(2)).await.unwrap();
    let window = Window { start: quarter(0), end: quarter(2) };
    let query = UsageQuery { window, granularity: PeriodKind::Hour, group_by: vec![] };
    let found = usage::rollups(&mut connection, &query).await.unwrap();
    assert_eq!(found.iter().map(|(start, _, _)| *start).collect::<Vec<_>>(), [quarter(0), quarter(1)]);
}

async fn the_ledger_is_searched_by_time(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let recorded = |hour: i64| NOW.plus_micros(hour * 2 * MICROS_PER_HOUR);
    for hour in 0..5 {
        let events = [0, 1].map(|number| event(&format!("{hour}-{number}"), "ada", recorded(hour), 10));
        books = commit(&mut connection, &books, &events, recorded(hour)).await.unwrap().0;
    }
    // Positions begin at 1; an hour is left as a margin for a clock that steps back.
    for hour in 1..5 {
        let after_the_hour_before = 2 * hour + 1;
        let margin = recorded(hour).plus_micros(MICROS_PER_HOUR);
        for instant in [recorded(hour), margin] {
            let floor = usage::position_floor(&mut connection, instant).await.unwrap();
            assert_eq!(floor, after_the_hour_before, "hour {hour}");
        }
        let floor = usage::position_floor(&mut connection, margin.plus_micros(1)).await.unwrap();
        assert_eq!(floor, after_the_hour_before + 2, "hour {hour}");
        // The first row at the floor is a part of what is asked for.
        let window = Window { start: recorded(hour), end: recorded(hour).plus_micros(1) };
        let query = LedgerQuery { before: None, limit: 9, window: Some(window), subject: Subject::default() };
        let page = usage::page(&mut connection, &query).await.unwrap();
        let found: Vec<i64> = page.items.iter().map(|row| row.position).collect();
        assert_eq!(found, [after_the_hour_before + 1, after_the_hour_before]);
    }
}

async fn ledger_pages_are_complete_and_filtered(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let mut all: Vec<UsageEvent> = Vec::new();
    for hour in 0..6_i64 {
        let now = NOW.plus_micros(hour * MICROS_PER_HOUR);
        let events: Vec<UsageEvent> = (0..10_i64)
            .map(|number| {
                let user = ["ada", "bob"][number as usize % 2];
                let age = if number == 9 { 3 * MICROS_PER_HOUR } else { number * MICROS_PER_MINUTE };
                let mut event = event(&format!("{hour}-{number}"), user, now.plus_micros(-age), number);
                event.subject.group = format!("group-{}", number % 3);
                event.subject.api_key = format!("key-{}", number % 4);
                event.subject.provider = format!("provider-{}", number % 5);
                event
            })
            .collect();
        books = commit(&mut connection, &books, &events, now).await.unwrap().0;
        all.extend(events);
    }
    all.reverse();
    let hour = Window { start: NOW.plus_micros(2 * MICROS_PER_HOUR), end: NOW.plus_micros(3 * MICROS_PER_HOUR) };
    let everybody = Subject::default();
    let bob = Subject { user: "bob".into(), ..everybody.clone() };
    let questions = [
        (None, everybody.clone()),
        (Some(hour), everybody.clone()),
        (None, bob.clone()),
        (Some(hour), bob.clone()),
        (None, Subject { group: "group-1".into(), ..everybody.clone() }),
        (None, Subject { api_key: "key-1".into(), ..everybody.clone() }),
        (None, Subject { model: "gpt-5".into(), ..everybody.clone() }),
        (None, Subject { provider: "provider-1".into(), ..everybody }),
        (None, Subject { group: "group-1".into(), ..bob }),
    ];
    for (window, subject) in questions {
        let asked = |dimension: &Dimension| !dimension.of(&subject).is_empty();
        let expected: Vec<&UsageEvent> = all
            .iter()
            .filter(|event| window.is_none_or(|window: Window| window.contains(event.occurred_at)))
            .filter(|event| {
                let mut dimensions = Dimension::ALL.into_iter().filter(asked);
                dimensions.all(|dimension| dimension.of(&event.subject) == dimension.of(&subject))
            })
            .collect();
        assert!(expected.len() > 2);
        let mut query = LedgerQuery { before: None, limit: 3, window, subject };
        let mut found = Vec::new();
        loop {
            let page = usage::page(&mut connection, &query).await.unwrap();
            found.extend(page.items);
            match page.next {
                Some(next) => query.before = Some(next),
                None => break,
            }
        }
        assert!(found.is_sorted_by_key(|row| std::cmp::Reverse(row.position)));
        assert_eq!(found.iter().map(|row| &row.event).collect::<Vec<_>>(), expected);
    }
}

async fn alert_pages_are_complete(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let quotas = [PeriodKind::Hour, PeriodKind::Day, PeriodKind::Total]
        .map(|kind| quota_of(Scope::Tenant, Metric::PromptTokens, kind, 10));
    let books = set_quotas(&mut connection, &books, quotas.to_vec(), NOW).await;
    let (books, _) = commit(&mut connection, &books, &[event("a", "ada", NOW, 8)], NOW).await.unwrap();
    let later = NOW.plus_micros(MICROS_PER_MINUTE);
    let (books, _) = commit(&mut connection, &books, &[event("b", "ada", later, 8)], later).await.unwrap();
    assert_eq!(books.firing.len(), 9);
    let mut query = AlertQuery { before: None, limit: 2 };
    let mut found = Vec::new();
    loop {
        let page = notice::alerts(&mut connection, &query).await.unwrap();
        found.extend(page.items);
        match page.next {
            Some(next) => query.before = Some(next),
            None => break,
        }
    }
    let mut expected = books.firing;
    expected.sort_by_key(|alert| std::cmp::Reverse((alert.fired_at, alert.id)));
    assert_eq!(found, expected);
}

async fn verification_finds_a_changed_byte(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    for _ in 0..4 {
        books =
            post(&mut connection, &books, NOW, |posting| posting.records_entry(entry("access.denied"))).await.unwrap();
    }
    let chain = books.tenant.to_string();
    let report = audit::verify(&mut connection, &chain).await.unwrap();
    assert_eq!((report.head, report.broken), (books.head, None));
    let page = audit::page(&mut connection, ChainQuery { after: 1, limit: 2 }).await.unwrap();
    assert_eq!(page.items.iter().map(|record| record.link.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(page.next, Some(3));
    let page = audit::page(&mut connection, ChainQuery { after: 3, limit: 2 }).await.unwrap();
    assert_eq!((page.items.len(), page.next), (2, None));

    house.unlock(books.tenant).await;
    house.tamper(books.tenant, "UPDATE audit_record SET payload = '{\"a\":1}' WHERE seq = 4").await;
    let report = audit::verify(&mut connection, &chain).await.unwrap();
    assert_eq!((report.head.seq, report.broken.map(|broken| broken.seq)), (3, Some(4)));
    house.tamper(books.tenant, "UPDATE audit_record SET bytes = hash WHERE seq = 2").await;
    let report = audit::verify(&mut connection, &chain).await.unwrap();
    assert_eq!((report.head.seq, report.broken.map(|broken| broken.seq)), (1, Some(2)));
}

async fn verification_finds_a_cut_chain(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let books = post(&mut connection, &books, NOW, |posting| posting.records_entry(entry("a.b"))).await.unwrap();
    let chain = books.tenant.to_string();
    house.unlock(books.tenant).await;
    house.tamper(books.tenant, "DELETE FROM audit_record WHERE seq = 2").await;
    let report = audit::verify(&mut connection, &chain).await.unwrap();
    assert_eq!(report.broken.unwrap().reason, "the chain ends before the books' head");
    let back = "UPDATE books SET head_seq = 1, head_hash = (SELECT hash FROM audit_record WHERE seq = 1)";
    house.tamper(books.tenant, back).await;
    assert_eq!(audit::verify(&mut connection, &chain).await.unwrap().broken, None);
    let forged = "INSERT INTO audit_record SELECT 2, at, action, bytes, hash, payload, salt FROM audit_record";
    house.tamper(books.tenant, forged).await;
    let report = audit::verify(&mut connection, &chain).await.unwrap();
    assert_eq!(report.broken.unwrap().reason, "the chain goes on after the books' head");
    assert_eq!(audit::verify(&mut connection, "another").await.unwrap().broken.unwrap().seq, 1);
}

/// Somebody with every right changes what was counted, and nothing of the chain: the verification names the record that
/// counted it, or the sums.
async fn verification_proves_what_was_counted(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let first = [event("a", "ada", NOW, 10), event("b", "bob", NOW, 20)];
    let (books, _) = commit(&mut connection, &books, &first, NOW).await.unwrap();
    let counted = books.head.seq;
    // One that is known leaves a gap between positions.
    let second = [first[1].clone(), event("c", "eve", NOW, 30)];
    let (books, _) = commit(&mut connection, &books, &second, NOW).await.unwrap();
    let stop = CancellationToken::new();
    let of = |witness| audit::Books { tenant: books.tenant, witness, stop: &stop };
    let report = audit::verify_books(&mut connection, of(books.head)).await.unwrap();
    assert_eq!((report.head, report.broken), (books.head, None));

    house.unlock(books.tenant).await;
    let (last, sums) = (books.head.seq, "the books' sums are not those of the ledger");
    let rollups = "the rollups are not the sums of the ledger's events";
    let changed = "an event in the ledger is not what it was when this record counted it";
    for (forgery, remedy, seq, reason) in [
        (
            "UPDATE usage_ledger SET prompt_tokens = 1 WHERE event_id = 'a'",
            "UPDATE usage_ledger SET prompt_tokens = 10 WHERE event_id = 'a'",
            counted,
            changed,
        ),
        (
            "UPDATE usage_ledger SET user_id = 'ada' WHERE event_id = 'c'",
            "UPDATE usage_ledger SET user_id = 'eve' WHERE event_id = 'c'",
            last,
            changed,
        ),
        (
            "UPDATE usage_ledger SET position = position + 100 WHERE event_id = 'a'",
            "UPDATE usage_ledger SET position = position - 100 WHERE event_id = 'a'",
            counted,
            "the ledger lacks events that this record counted",
        ),
        (
            "UPDATE books SET next_position = next_position - 1",
            "UPDATE books SET next_position = next_position + 1",
            last,
            "the ledger holds events that no record counted",
        ),
        (
            "UPDATE books SET next_position = next_position + 1",
            "UPDATE books SET next_position = next_position - 1",
            last,
            "the ledger holds events that no record counted",
        ),
        // Before the first position that there is.
        (
            "INSERT INTO usage_ledger SELECT 0, occurred_at, recorded_at, requests, prompt_tokens, cache_read_tokens,
                cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, flags,
                (SELECT substr(hash, 1, 20) FROM audit_record WHERE seq = 1), body_hash, source, 'z', kind, status,
                user_id, group_id, api_key_id, model, provider, call_type, details
                FROM usage_ledger WHERE event_id = 'a'",
            "DELETE FROM usage_ledger WHERE event_id = 'z'",
            last,
            "the ledger holds events that no record counted",
        ),
        (
            "UPDATE books SET cost_nano_usd = cost_nano_usd + 1",
            "UPDATE books SET cost_nano_usd = cost_nano_usd - 1",
            last,
            sums,
        ),
        (
            "UPDATE usage_rollup SET prompt_tokens = prompt_tokens + 1 WHERE user_id = 'ada'",
            "UPDATE usage_rollup SET prompt_tokens = prompt_tokens - 1 WHERE user_id = 'ada'",
            last,
            rollups,
        ),
        // Sums that stay what they were, of somebody else and of another time.
        (
            "UPDATE usage_rollup SET user_id = 'adam' WHERE user_id = 'ada'",
            "UPDATE usage_rollup SET user_id = 'ada' WHERE user_id = 'adam'",
            last,
            rollups,
        ),
        (
            "UPDATE usage_rollup SET start_at = start_at - 900000000 WHERE user_id = 'bob'",
            "UPDATE usage_rollup SET start_at = start_at + 900000000 WHERE user_id = 'bob'",
            last,
            rollups,
        ),
    ] {
        house.tamper(books.tenant, forgery).await;
        let broken = audit::verify_books(&mut connection, of(books.head)).await.unwrap().broken.expect(forgery);
        assert_eq!((broken.seq, broken.reason), (seq, reason), "{forgery}");
        house.tamper(books.tenant, remedy).await;
        assert_eq!(audit::verify_books(&mut connection, of(books.head)).await.unwrap().broken, None, "{remedy}");
    }

    // Both are cut to what was there before the last commit: only who has seen more can tell.
    let ahead = Head { seq: last + 1, ..books.head };
    let other = Head { hash: Hash([1; 32]), ..books.head };
    for (witness, reason) in
        [(ahead, "the chain ends before a record that was seen"), (other, "the record is not the one that was seen")]
    {
        let broken = audit::verify_books(&mut connection, of(witness)).await.unwrap().broken;
        assert_eq!(broken.map(|broken| (broken.seq, broken.reason)), Some((last, reason)));
    }
    // The table lets payloads be erased. Of a record that counted something that would hide what is done to the sums.
    house
        .tamper(books.tenant, &format!("UPDATE audit_record SET payload = NULL, salt = NULL WHERE seq = {counted}"))
        .await;
    let broken = audit::verify_books(&mut connection, of(books.head)).await.unwrap().broken;
    assert_eq!(broken.map(|broken| (broken.seq, broken.reason)), Some((counted, "what the record counted was erased")));

    stop.cancel();
    let stopped = audit::verify_books(&mut connection, of(books.head)).await;
    assert!(matches!(stopped, Err(StoreError::Retryable(_))), "{stopped:?}");
}

/// Each commit moves the chain, the ledger, the sums and the rollups; whatever a verification reads of it holds together.
async fn verification_bears_what_is_committed_meanwhile(house: &House) {
    let (store, mut connection, mut books) = house.owner().await;
    let tenant = books.tenant;
    let mut reader = store.reader(tenant).await.unwrap();
    let (stop, over) = (CancellationToken::new(), std::cell::Cell::new(false));
    let commits = async {
        for number in 0..60_i64 {
            let now = NOW.plus_micros(number * MICROS_PER_MINUTE);
            let events = ["ada", "bob"].map(|user| event(&format!("{user}-{number}"), user, now, number));
            books = commit(&mut connection, &books, &events, now).await.unwrap().0;
        }
        over.set(true);
    };
    let verify = async {
        let mut heads = std::collections::BTreeSet::new();
        while !over.get() || heads.len() < 2 {
            let asked = audit::Books { tenant, witness: Head::EMPTY, stop: &stop };
            let report = audit::verify_books(&mut reader, asked).await.unwrap();
            assert_eq!(report.broken, None);
            heads.insert(report.head.seq);
        }
        heads
    };
    let ((), heads) = tokio::join!(commits, verify);
    assert!(heads.len() > 2, "verified while nothing was committed: {heads:?}");
}
