//! Sorts what the drivers report by what a caller can do about it. No text made here has a URL or a password in it.

use metrics::counter;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::sqlite::SqliteError;

use super::StoreError;

/// A statement before the commit failed. What the server reports is rolled back for sure; a lost connection is too, but
/// only a new connection can tell, so it counts as unknown.
pub(super) fn of_statement(error: &sqlx::Error) -> StoreError {
    counted(sorted(error))
}

/// Is nothing that comes over this connection to be believed after the error?
pub(super) fn leaves_doubt(error: &sqlx::Error) -> bool {
    matches!(sorted(error), StoreError::Unknown(_))
}

fn sorted(error: &sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(reported) => of_report(reported.as_ref()),
        lost if is_lost(lost) => StoreError::Unknown(format!("the connection was lost: {lost}")),
        sqlx::Error::Protocol(text) => StoreError::Unknown(format!("the connection broke: {text}")),
        other => StoreError::Wrong(other.to_string()),
    }
}

/// The commit itself failed. Only an error that the server reports and survives says that it rolled back.
pub(super) fn of_commit(error: &sqlx::Error) -> StoreError {
    let rolled_back = match error {
        sqlx::Error::Database(reported) => match reported.try_downcast_ref::<PgDatabaseError>() {
            Some(report) => matches!(report.severity(), PgSeverity::Error),
            // A busy database (5) lets the transaction stand, to be rolled back or tried again; a full one (13) rolls back.
            None => sqlite_code(reported.as_ref()).is_some_and(|code| [5, 13].contains(&(code & 0xff))),
        },
        _ => false,
    };
    if rolled_back {
        return of_statement(error);
    }
    counted(StoreError::Unknown(format!("the commit was not confirmed: {error}")))
}

/// The database could not be reached: nothing was begun.
pub(super) fn of_opening(error: &sqlx::Error) -> StoreError {
    counted(match error {
        sqlx::Error::Database(reported) => match of_report(reported.as_ref()) {
            StoreError::Unknown(text) => StoreError::Retryable(text),
            other => other,
        },
        lost if is_lost(lost) => StoreError::Retryable(format!("cannot connect: {lost}")),
        sqlx::Error::Tls(_) => StoreError::Retryable(format!("cannot connect: {error}")),
        sqlx::Error::Protocol(text) => StoreError::Retryable(format!("cannot connect: {text}")),
        other => StoreError::Wrong(other.to_string()),
    })
}

/// No answer within the deadline.
pub(super) fn of_silence() -> StoreError {
    counted(StoreError::Unknown("the database did not answer in time".into()))
}

/// A COPY was left half-way, and what the server says next may be about that.
pub(super) fn of_broken_copy() -> StoreError {
    counted(StoreError::Unknown("the connection broke: a COPY was left half-way".into()))
}

/// What contradicts itself before the database has seen it.
pub(super) fn unwritable(what: &str) -> StoreError {
    counted(StoreError::Unwritable(what.to_owned()))
}

/// A value that is not what the schema says.
pub(super) fn unreadable(what: &str) -> StoreError {
    counted(StoreError::Untrusted(format!("a stored value cannot be read: {what}")))
}

/// Does a server with this SQLSTATE report that the database exists already?
pub(super) fn is_duplicate_database(error: &sqlx::Error) -> bool {
    // 23505: two daemons create it at the same moment, and the catalogue's own index refuses the second.
    has_code(error, &["42P04", "23505"])
}

/// Does the server report a row whose key is taken?
pub(super) fn is_unique_violation(error: &sqlx::Error) -> bool {
    has_code(error, &["23505"])
}

/// Does the server report that there is no such database?
pub(super) fn is_missing_database(error: &sqlx::Error) -> bool {
    has_code(error, &["3D000"])
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| codes.contains(&code.as_ref()))
}

fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed)
}

fn of_report(reported: &dyn DatabaseError) -> StoreError {
    match sqlite_code(reported) {
        Some(code) => of_sqlite(code, reported.message()),
        None => of_postgres(reported),
    }
}

fn of_postgres(reported: &dyn DatabaseError) -> StoreError {
    let code = reported.code().unwrap_or_default();
    let text = format!("{code} {}", reported.message());
    match code.as_ref() {
        "40001" | "40P01" | "55P03" | "57014" | "55006" => StoreError::Retryable(text),
        "3D000" => StoreError::Missing(text),
        "XX001" | "XX002" | "58030" => StoreError::Untrusted(text),
        // The session ends with these, or cannot write any more: only a new connection helps.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" | "25006" => StoreError::Unknown(text),
        _ if code.starts_with("53") => StoreError::Retryable(text),
        _ if code.starts_with("08") => StoreError::Unknown(text),
        // A value that no column takes, a row that a table refuses, a limit of the server's.
        _ if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => StoreError::Unwritable(text),
        _ => StoreError::Wrong(text),
    }
}

/// By the primary result code, the last eight bits of the extended one.
fn of_sqlite(code: i64, message: &str) -> StoreError {
    let text = format!("sqlite {code}: {message}");
    match code & 0xff {
        // BUSY, LOCKED, NOMEM, INTERRUPT, FULL; CANTOPEN, because that the file exists was checked before.
        5 | 6 | 7 | 9 | 13 | 14 => StoreError::Retryable(text),
        // CORRUPT, NOTADB.
        11 | 26 => StoreError::Untrusted(text),
        // READONLY_DBMOVED: the file was taken away from under the connection.
        8 if code == 1_032 => StoreError::Untrusted(text),
        // IOERR.
        10 => StoreError::Unknown(text),
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => StoreError::Unwritable(text),
        _ => StoreError::Wrong(text),
    }
}

fn sqlite_code(reported: &dyn DatabaseError) -> Option<i64> {
    reported.try_downcast_ref::<SqliteError>()?;
    reported.code()?.parse().ok()
}

fn counted(error: StoreError) -> StoreError {
    let class = match &error {
        StoreError::Retryable(_) => "retryable",
        StoreError::Unknown(_) => "unknown",
        StoreError::Missing(_) => "missing",
        StoreError::Untrusted(_) => "untrusted",
        StoreError::Fenced => "fenced",
        StoreError::Known => "known",
        StoreError::Unwritable(_) => "unwritable",
        StoreError::Wrong(_) => "wrong",
    };
    counter!("platform_api_store_failures_total", "class" => class).increment(1);
    error
}
