//! How fast the hot transaction is; prints, asserts nothing: `cargo test --release measure -- --ignored --nocapture`.

use std::time::Instant;

use super::harness::{House, NOW, commit, event, quota_of, set_quotas};
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Metric, Scope};
use crate::domain::usage::UsageEvent;

const ROWS: usize = 1_000;
const COMMITS: usize = 50;

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_sqlite() {
    House::on_sqlite().run(measure).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_postgres() {
    House::on_postgres().run(measure).await;
}

#[allow(clippy::disallowed_methods, reason = "a measurement")]
async fn measure(house: &'static House) {
    let (store, mut connection, books) = house.owner().await;
    let quotas = vec![
        quota_of(Scope::Tenant, Metric::Tokens, PeriodKind::Day, i64::MAX / 2_000),
        quota_of(Scope::User("user-1".into()), Metric::Cost, PeriodKind::Month, i64::MAX / 2_000),
    ];
    let mut books = set_quotas(&mut connection, &books, quotas, NOW).await;
    let batches: Vec<Vec<UsageEvent>> = (0..COMMITS)
        .map(|batch| {
            let one = |number: usize| {
                let id = format!("{}.{:06}|{batch}|{number}|success", 1_795_189_032, batch * ROWS + number);
                event(&id, &format!("user-{}", number % 20), NOW, 100)
            };
            (0..ROWS).map(one).collect()
        })
        .collect();
    let (mut slowest, started) = (0, Instant::now());
    for batch in &batches {
        let begun = Instant::now();
        books = commit(&mut connection, &books, batch, NOW).await.unwrap().0;
        slowest = slowest.max(begun.elapsed().as_millis());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}: {:.0} rows/s in whole transactions of {ROWS} (slowest {slowest} ms)",
        store.backend_name(),
        (ROWS * COMMITS) as f64 / seconds
    );
    let started = Instant::now();
    for batch in &batches {
        commit(&mut connection, &books, batch, NOW).await.map(|(next, _)| books = next).unwrap();
    }
    println!(
        "{}: {:.0} rows/s when all are duplicates",
        store.backend_name(),
        (ROWS * COMMITS) as f64 / started.elapsed().as_secs_f64()
    );
}
