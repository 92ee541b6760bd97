//! When a message that could not be delivered is tried again, and when we stop.

use std::time::Duration;

use aws_lc_rs::digest;

use super::parcel::Parcel;
use crate::domain::notice::{AttemptResult, RETRY_DELAY_MICROS_MAX};
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_SECOND, Timestamp};

/// Delay after the first failure; doubles.
const FIRST_DELAY_MICROS: i64 = MICROS_PER_SECOND;
/// A message is given up this long after it became true.
const PATIENCE_MICROS: i64 = 3 * MICROS_PER_DAY;
/// And not before it was tried as often as some hours allow: we may have been away for those days ourselves, or the clock
/// may be wrong.
const ATTEMPTS_MIN: i64 = 20;

/// The verdict on an attempt that failed for now: another try, or the end of our patience. `at_least` is how long the
/// receiver, or the open circuit, asked us to wait.
pub fn after_failure(parcel: &Parcel, now: Timestamp, reason: String, at_least: Duration) -> AttemptResult {
    let delay = delay_micros(&parcel.delivery.id(), parcel.delivery.attempts);
    let asked = i64::try_from(at_least.as_micros()).unwrap_or(i64::MAX).min(RETRY_DELAY_MICROS_MAX);
    let at = now.plus_micros(delay.max(asked));
    let is_late = at > parcel.occurred_at().plus_micros(PATIENCE_MICROS);
    if is_late && parcel.delivery.attempts >= ATTEMPTS_MIN {
        return AttemptResult::GaveUp { reason: format!("not delivered within 3 days; last: {reason}") };
    }
    AttemptResult::Retry { at, reason }
}

/// One second, doubling to a quarter of an hour, less up to a quarter of itself so that messages which failed together
/// do not come back together. A function of the message and the attempt: the same in every run.
fn delay_micros(id: &str, attempts: i64) -> i64 {
    let doublings = u32::try_from(attempts.clamp(0, 30)).unwrap_or(30);
    let full = FIRST_DELAY_MICROS.saturating_mul(1 << doublings).min(RETRY_DELAY_MICROS_MAX);
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(id.as_bytes());
    context.update(&attempts.to_be_bytes());
    let hash = context.finish();
    let share = i64::from(u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]));
    full - full / 4 * share / i64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::notice::Event;
    use crate::domain::quota::Metric;
    use crate::outlet::parcel::samples;

    #[test]
    fn delays_double_with_jitter_up_to_a_quarter_of_an_hour() {
        for attempts in 0..40 {
            let full = (FIRST_DELAY_MICROS << attempts.min(20)).min(RETRY_DELAY_MICROS_MAX);
            let delay = delay_micros("an-id", attempts);
            assert!(delay <= full && delay >= full - full / 4, "{attempts}: {delay}");
            assert_eq!(delay, delay_micros("an-id", attempts));
        }
        assert_ne!(delay_micros("an-id", 3), delay_micros("another", 3));
    }

    #[test]
    fn patience_ends_after_three_days_and_a_receiver_may_ask_for_time() {
        let fired: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let parcel = samples::parcel("c", Event::Fired, Metric::Tokens, fired);
        let asked = after_failure(&parcel, fired, "answered 429".into(), Duration::from_secs(60));
        assert_eq!(
            asked,
            AttemptResult::Retry { at: fired.plus_micros(60 * MICROS_PER_SECOND), reason: "answered 429".into() }
        );
        let endless = after_failure(&parcel, fired, "answered 429".into(), Duration::MAX);
        assert!(matches!(endless, AttemptResult::Retry { at, .. } if at == fired.plus_micros(RETRY_DELAY_MICROS_MAX)));
        let late = fired.plus_micros(3 * MICROS_PER_DAY);
        let first_try = after_failure(&parcel, late, "timed out".into(), Duration::ZERO);
        assert!(matches!(first_try, AttemptResult::Retry { at, .. } if at > late));
        let mut parcel = parcel;
        parcel.delivery.attempts = ATTEMPTS_MIN;
        let over = after_failure(&parcel, late, "timed out".into(), Duration::ZERO);
        assert!(matches!(over, AttemptResult::GaveUp { reason } if reason.ends_with("last: timed out")));
    }
}
