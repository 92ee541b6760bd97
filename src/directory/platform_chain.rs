//! The platform's own audit chain: the registrar alone appends to it, in the transaction of what the records tell.

use super::handle::Refused;
use super::registrar::State;
use crate::clock;
use crate::domain::chain::{self, Entry, Head};
use crate::domain::report::{Fate, Retried};
use crate::domain::stream::Checkpoint;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, audit, quarantine, stream};

/// What is written in the transaction of records of the platform's chain.
pub(super) enum Beside {
    Nothing,
    Retried(Vec<Retried>),
    Checkpoint(Checkpoint),
}

impl Beside {
    async fn write(&self, connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
        match self {
            Beside::Nothing => Ok(()),
            Beside::Checkpoint(checkpoint) => stream::keep(connection, checkpoint).await,
            Beside::Retried(rows) => {
                for row in rows {
                    match &row.fate {
                        Fate::Counted => quarantine::mark_replayed(connection, row.id, now).await?,
                        Fate::Refused { reason, detail } => {
                            quarantine::refuse_again(connection, row.id, *reason, detail, now).await?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

impl State {
    /// The head of the platform's chain, which nobody may have cut behind our back. That is told once until it is whole.
    pub(super) async fn head_in(&mut self, connection: &mut Connection) -> Result<Head, StoreError> {
        let found = audit::head_after(connection, self.platform_head).await;
        let tampered = matches!(found, Err(StoreError::Untrusted(_)));
        if let Err(StoreError::Untrusted(problem)) = &found
            && !self.told_of_tampering
        {
            tracing::error!(problem, "the platform is not changed any more: its audit chain was tampered with");
        }
        // An error of another kind says nothing about the chain.
        self.told_of_tampering = tampered || (self.told_of_tampering && found.is_err());
        found
    }

    /// Appends to the platform's chain, in one transaction with what stands beside the records.
    pub(super) async fn append(&mut self, entries: Vec<Entry>, beside: Beside) -> Result<(), Refused> {
        self.begin_alone().await?;
        match self.write_records(entries, &beside).await {
            Ok(head) => {
                self.platform_head = head;
                Ok(())
            }
            Err(error) => Err(self.doubt(&error)),
        }
    }

    async fn write_records(&mut self, entries: Vec<Entry>, beside: &Beside) -> Result<Head, StoreError> {
        let now = self.birth.clock.now();
        let head = self.platform_head;
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        let head = link(connection, head, entries, now).await?;
        beside.write(connection, now).await?;
        self.commit().await?;
        Ok(head)
    }
}

/// Appends records to the platform's chain within a transaction; answers its new head.
pub(super) async fn link(
    connection: &mut Connection,
    head: Head,
    entries: Vec<Entry>,
    now: Timestamp,
) -> Result<Head, StoreError> {
    let mut head = head;
    for entry in entries {
        let record = chain::link(head, audit::PLATFORM_CHAIN, entry, now, clock::random_bytes());
        audit::append(connection, head, &record).await?;
        head = Head { seq: record.seq, hash: record.hash };
    }
    Ok(head)
}
