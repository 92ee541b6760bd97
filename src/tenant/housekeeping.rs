//! What a tenant's database need not keep for ever.

use super::task::{Change, Halt};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::request;

/// Answers forgotten in one transaction, so that usage waits for none of it.
const ANSWERS_A_PIECE: i64 = 1_000;

/// Forgets a piece of the answers that were kept for idempotency keys before an instant.
#[derive(Debug, Clone, Copy)]
pub struct ForgetAnswers {
    pub before: Timestamp,
}

impl Change for ForgetAnswers {
    /// How many.
    type Done = u64;
    type Refused = std::convert::Infallible;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<u64, Halt<Self::Refused>> {
        let forgotten = request::forget(database, self.before, ANSWERS_A_PIECE).await?;
        if forgotten > 0 {
            posting.records_entry(Entry {
                actor: request.actor.clone(),
                action: "answers.forgotten".into(),
                target: format!("tenant:{}", posting.books.tenant),
                outcome: EntryOutcome::Success,
                request_id: request.request_id.clone(),
                payload: serde_json::json!({ "answers": forgotten, "before": self.before.to_string() }).to_string(),
            });
        }
        Ok(forgotten)
    }
}
