//! What gateways say, written and read back.

use std::collections::BTreeSet;

use super::harness::{House, NOW, assert_same, post};
use crate::domain::amount::NanoUsd;
use crate::domain::books::Books;
use crate::domain::period::Window;
use crate::domain::reconcile::meter::window_start;
use crate::domain::reconcile::reading::{
    GatewayCount, GatewayRequest, Interruption, InterruptionReason, MeterReading, Role, ServedBy, Source,
};
use crate::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use crate::store::database::Connection;
use crate::store::{gateway, load};

super::conformance!(
    a_request_is_kept_once,
    meters_add_up_by_window,
    a_request_is_found_in_every_window_in_which_it_was_under_way,
    the_first_statement_begins_the_comparison,
);

fn request(id: &str, at: Timestamp) -> GatewayRequest {
    GatewayRequest {
        request_id: id.into(),
        call_id: format!("call-{id}"),
        started_at: at,
        duration_micros: 1_200_000,
        role: Role::Own,
        route: "chat".into(),
        status: 200,
        served_by: ServedBy::Upstream,
        authenticated: true,
        limited: true,
        claims_other: false,
        counted: Some(GatewayCount { prompt_tokens: Some(0), cost: Some(NanoUsd(7)), ..GatewayCount::default() }),
    }
}

async fn keep(connection: &mut Connection, books: &Books, requests: &[GatewayRequest]) -> (Books, Vec<bool>) {
    connection.begin().await.unwrap();
    let new = gateway::insert_requests(connection, NOW, requests).await.unwrap();
    connection.commit().await.unwrap();
    let kept: Vec<&GatewayRequest> =
        requests.iter().zip(&new).filter(|(_, new)| **new).map(|(request, _)| request).collect();
    let books = post(connection, books, NOW, |posting| posting.gateway_requests(&kept, requests.len(), "request-3"));
    (books.await.unwrap(), new)
}

async fn a_request_is_kept_once(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let many: Vec<GatewayRequest> =
        (0..437).map(|number| request(&number.to_string(), NOW.plus_micros(-number * MICROS_PER_SECOND))).collect();
    let (books, new) = keep(&mut connection, &books, &many).await;
    assert_eq!(new, vec![true; 437]);
    // Again, with one that is new, twice, and one that is another tenant's claim to the same request.
    let fresh = request("fresh", NOW);
    let claimed = GatewayRequest { role: Role::Claimed, ..many[3].clone() };
    let mut again = many[..250].to_vec();
    again.extend([fresh.clone(), claimed, fresh]);
    let (books, new) = keep(&mut connection, &books, &again).await;
    let expected: Vec<bool> = (0..253).map(|at| at == 250 || at == 251).collect();
    assert_eq!(new, expected);
    let rows = connection.fetch("SELECT COUNT(*) FROM gateway_request", &[]).await.unwrap();
    assert_eq!(rows[0].int(0).unwrap(), 439);
    let routes = connection.fetch("SELECT route FROM gateway_route", &[]).await.unwrap();
    assert_eq!(routes.iter().map(|row| row.text(0).unwrap()).collect::<Vec<_>>(), ["chat"]);
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}

async fn meters_add_up_by_window(house: &House) {
    let (_store, mut connection, mut books) = house.owner().await;
    let reading = |series: &str, value: i64, minute: i64| MeterReading {
        source: Source::Metrics,
        series: series.into(),
        epoch: "one".into(),
        value,
        at: NOW.plus_micros(minute * MICROS_PER_MINUTE),
        from_zero: true,
        lower_bound: series == "b",
    };
    let gap = Interruption {
        source: Source::Limiter,
        from: NOW.plus_micros(-MICROS_PER_MINUTE),
        until: NOW,
        reason: InterruptionReason::Gap,
    };
    for given in [
        vec![reading("a", 5, 0), reading("b", 7, 0)],
        vec![reading("a", 9, 1), reading("a", 12, 2), reading("b", 7, 2)],
        // The same again, because nobody heard that it was read.
        vec![reading("a", 12, 2)],
        vec![reading("a", 20, 6)],
    ] {
        let names: BTreeSet<&str> = given.iter().map(|reading| reading.series.as_str()).collect();
        let known = gateway::series(&mut connection, &names).await.unwrap();
        let gaps = std::slice::from_ref(&gap);
        let now = given.iter().map(|reading| reading.at).max().unwrap();
        books =
            post(&mut connection, &books, now, |posting| posting.gateway_readings(&known, &given, gaps)).await.unwrap();
    }
    let terms = books.comparison.terms;
    let sql = "SELECT window_start, source, amount, lower_bound FROM gateway_meter ORDER BY window_start";
    let rows = connection.fetch(sql, &[]).await.unwrap();
    let read: Vec<(i64, String, i64, i64)> = rows
        .iter()
        .map(|row| (row.int(0).unwrap(), row.text(1).unwrap(), row.int(2).unwrap(), row.int(3).unwrap()))
        .collect();
    let start = |minute: i64| window_start(NOW.plus_micros(minute * MICROS_PER_MINUTE), &terms).0;
    assert_eq!(start(0), start(2));
    assert_eq!(read, [(start(0), "metrics".into(), 19, 1), (start(6), "metrics".into(), 8, 0)]);
    // The one that was told, and that nobody had looked shortly before the window ended.
    let gaps = connection.fetch("SELECT source FROM gateway_interruption ORDER BY source", &[]).await.unwrap();
    assert_eq!(gaps.iter().map(|row| row.text(0).unwrap()).collect::<Vec<_>>(), ["limiter", "metrics"]);
    assert_same(&load::read_books(&mut connection, books.tenant).await.unwrap(), &books);
}

/// A stream takes its time: its call is dated by its end, which may be far from its beginning.
async fn a_request_is_found_in_every_window_in_which_it_was_under_way(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    let minutes = |minutes: i64| NOW.plus_micros(minutes * MICROS_PER_MINUTE);
    let long = GatewayRequest { duration_micros: 20 * MICROS_PER_MINUTE, ..request("long", minutes(0)) };
    let longest = GatewayRequest { duration_micros: 50 * MICROS_PER_MINUTE, ..request("longest", minutes(-45)) };
    let (_, new) = keep(&mut connection, &books, &[long, longest, request("short", minutes(0))]).await;
    assert_eq!(new, [true; 3]);
    let mut found = Vec::new();
    for (from, until) in [(-60, -50), (-50, 0), (0, 5), (5, 20), (20, 21), (21, 30)] {
        let window = Window { start: minutes(from), end: minutes(until) };
        let mut ids: Vec<String> = gateway::requests(&mut connection, window, 10)
            .await
            .unwrap()
            .unwrap()
            .into_iter()
            .map(|request| request.request_id)
            .collect();
        ids.sort();
        found.push(ids.join(" "));
    }
    assert_eq!(found, ["", "longest", "long longest short", "long longest", "long", ""]);
    let all = Window { start: minutes(0), end: minutes(5) };
    assert_eq!(gateway::requests(&mut connection, all, 2).await.unwrap(), None, "more than may be");
}

async fn the_first_statement_begins_the_comparison(house: &House) {
    let (_store, mut connection, books) = house.owner().await;
    assert_eq!(gateway::progress(&mut connection).await.unwrap(), None);
    let terms = books.comparison.terms;
    let (books, _) = keep(&mut connection, &books, &[request("a", NOW)]).await;
    let progress = books.comparison.progress.unwrap();
    let next = window_start(NOW, &terms).plus_micros(terms.window_micros);
    assert_eq!((progress.settled_until, progress.heard_until), (next, next));
    assert_eq!(progress.sources_at(next), [Source::AccessLog]);
    assert_eq!(progress.sources_at(NOW.plus_micros(-1)), []);
    assert_eq!(gateway::progress(&mut connection).await.unwrap(), Some(progress));
    // A clock that runs far ahead is not waited for.
    let (books, _) = keep(&mut connection, &books, &[request("b", NOW.plus_micros(1_000 * MICROS_PER_MINUTE))]).await;
    assert_eq!(books.comparison.progress.unwrap().heard_until, next.plus_micros(terms.window_micros));
}
