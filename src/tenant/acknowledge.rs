//! Somebody says that they look at an alert.

use super::task::Change;
use crate::domain::books::Posting;
use crate::domain::ids::AlertId;
use crate::domain::notice::Alert;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, notice};

/// Acknowledges one alert. To acknowledge it again changes nothing: who was first counts.
#[derive(Debug)]
pub struct Acknowledge {
    pub alert: AlertId,
    /// The answer that is kept with an idempotency key.
    pub render: fn(&Alert) -> String,
}

/// What was acknowledged, and how that is kept.
#[derive(Debug)]
pub struct Acknowledged {
    pub alert: Alert,
    render: fn(&Alert) -> String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAcknowledged {
    #[error("there is no such alert")]
    Unknown,
    /// Nobody needs to look at it any more.
    #[error("the alert is over since {at}")]
    Over { at: Timestamp },
}

impl Change for Acknowledge {
    type Done = Acknowledged;
    type Refused = NotAcknowledged;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Acknowledged, NotAcknowledged>, StoreError> {
        if let Some(alert) = posting.acknowledge_alert(self.alert, request) {
            return Ok(Ok(Acknowledged { alert, render: self.render }));
        }
        let known = notice::alert(database, self.alert).await?;
        Ok(Err(match known {
            Some(alert) => NotAcknowledged::Over { at: alert.resolved_at.unwrap_or(posting.now()) },
            None => NotAcknowledged::Unknown,
        }))
    }

    fn render(&self, done: &Acknowledged) -> String {
        (done.render)(&done.alert)
    }
}
