//! Feature flags as rows, in both kinds of database.

use std::sync::Arc;

use super::harness::{House, NOW};
use crate::domain::flag::draft::boolean;
use crate::domain::flag::ledger::{Exposure, Variant};
use crate::domain::flag::{Flag, FlagSet};
use crate::store::{flag, load};

super::conformance!(flags_come_back_as_they_were_written, what_was_served_comes_back_with_the_books);

async fn flags_come_back_as_they_were_written(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let first = Flag { description: "Grüße".into(), from: Some(NOW), ..boolean("first") };
    let changed = Flag { version: 2, enabled: false, ..boolean("second") };
    for one in [&first, &boolean("second"), &changed, &boolean("third")] {
        flag::put(&mut connection, one).await.unwrap();
    }
    flag::delete(&mut connection, "third").await.unwrap();
    assert_eq!(flag::all(&mut connection).await.unwrap(), FlagSet::of([first, changed]));
    assert_eq!(flag::document(&mut connection, "flagsmith").await.unwrap(), None);
    for (body, at) in [("{}", NOW), ("{\"a\":1}", NOW.plus_micros(1))] {
        flag::put_document(&mut connection, "flagsmith", body, at).await.unwrap();
        assert_eq!(flag::document(&mut connection, "flagsmith").await.unwrap(), Some((body.to_owned(), at)));
    }
}

async fn what_was_served_comes_back_with_the_books(house: &House) {
    let (_, mut connection, books) = house.owner().await;
    assert!(books.flags.flags.is_empty() && books.flags.exposures.is_empty());
    let variant = |flag: &str, variant: &str| Variant { flag: flag.into(), variant: variant.into() };
    let exposure = |count, last_at| Exposure { count, first_at: NOW, last_at };
    let later = NOW.plus_micros(9);
    flag::put(&mut connection, &boolean("a")).await.unwrap();
    let rows = [(variant("a", "on"), exposure(1, NOW)), (variant("b", "on"), exposure(5, NOW))];
    flag::put_exposures(&mut connection, &rows).await.unwrap();
    flag::put_exposures(&mut connection, &[(variant("a", "on"), exposure(3, later))]).await.unwrap();
    flag::delete_exposures(&mut connection, "b").await.unwrap();
    let read = load::read_books(&mut connection, books.tenant).await.unwrap().flags;
    assert_eq!(read.flags.get("a"), Some(&Arc::new(boolean("a"))));
    assert_eq!(read.exposures, [(variant("a", "on"), exposure(3, later))].into());
}
