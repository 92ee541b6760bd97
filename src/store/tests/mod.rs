//! One suite, run on both engines. `conformance!` turns each story into two tests: SQLite in a temporary directory,
//! Postgres in databases of its own, which are dropped afterwards.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod books;
mod catalogue;
mod databases;
mod flags;
mod gateway;
pub(crate) mod harness;
mod jobs;
mod measure;
mod nodes;
mod notices;
mod reports;
mod sessions;

/// `conformance!(name_of_a_function, …)`: each takes a [`harness::House`].
macro_rules! conformance {
    ($($story:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $story() {
                $crate::store::tests::harness::House::on_sqlite().run(super::$story).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $story() {
                $crate::store::tests::harness::House::on_postgres().run(super::$story).await;
            })+
        }
    };
}
pub(crate) use conformance;
