//! Somebody says that they look at an alert.

use super::task::{Change, Halt};
use crate::domain::books::Posting;
use crate::domain::ids::AlertId;
use crate::domain::notice::Alert;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::notice;

/// Acknowledges one alert. To acknowledge it again changes nothing: who was first counts.
#[derive(Debug)]
pub struct Acknowledge {
    pub alert: AlertId,
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
    type Done = Alert;
    type Refused = NotAcknowledged;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Alert, Halt<NotAcknowledged>> {
        if let Some(alert) = posting.acknowledge_alert(self.alert, request) {
            return Ok(alert);
        }
        let known = notice::alert(database, self.alert).await?;
        Err(Halt::Refused(match known {
            Some(alert) => NotAcknowledged::Over { at: alert.resolved_at.unwrap_or(posting.now()) },
            None => NotAcknowledged::Unknown,
        }))
    }
}
