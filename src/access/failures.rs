//! How often credentials that do not hold were tried.
//!
//! Counted for one minute by source address and credential together, and by source address alone. Above the limit a
//! failure is told as one too many, so that a program that guesses or that nobody looks after slows down. Credentials
//! that hold are never counted nor held up: many callers share a gateway's address, and a stranger who tries somebody's
//! key id must not lock its owner out. For the same reason a success clears nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;

use super::api_key;
use crate::config;

/// How long failures are remembered; also how long a caller is asked to wait.
pub const FAILURES_WINDOW: Duration = Duration::from_secs(60);
/// Sources, and pairs of source and credential, that are remembered at once; the least used go first.
const REMEMBERED_MAX: u64 = 20_000;

type Counts<K> = moka::sync::Cache<K, Arc<AtomicU32>>;

pub(super) struct Failures {
    by_credential: Counts<(IpAddr, [u8; 16])>,
    by_source: Counts<IpAddr>,
    per_credential_max: u32,
    per_source_max: u32,
}

impl Failures {
    pub(super) fn new(auth: &config::Auth) -> Failures {
        Failures {
            by_credential: counts(),
            by_source: counts(),
            per_credential_max: auth.failures_per_credential_max,
            per_source_max: auth.failures_per_source_max,
        }
    }

    /// Counts one failure; is it one too many?
    pub(super) fn is_one_too_many(&self, source: IpAddr, credential: &str) -> bool {
        let tried = one_more(&self.by_credential, (source, name_of(credential)));
        let from_there = one_more(&self.by_source, source);
        tried > self.per_credential_max || from_there > self.per_source_max
    }
}

fn counts<K: std::hash::Hash + Eq + Send + Sync + 'static>() -> Counts<K> {
    moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(FAILURES_WINDOW).build()
}

fn one_more<K: std::hash::Hash + Eq + Send + Sync + 'static>(counts: &Counts<K>, key: K) -> u32 {
    let count = counts.get_with(key, Arc::default);
    count.fetch_add(1, Ordering::Relaxed).saturating_add(1)
}

/// A key by its public id, so that guesses at its secret count together; anything else by all of it. Digested, because
/// it may be a secret with a typo.
fn name_of(credential: &str) -> [u8; 16] {
    let public = api_key::public_part(credential).unwrap_or(credential);
    let digest = digest::digest(&digest::SHA256, public.as_bytes());
    let mut name = [0; 16];
    name.copy_from_slice(&digest.as_ref()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn failures() -> Failures {
        let limits = config::Auth { failures_per_credential_max: 2, failures_per_source_max: 5, ..Default::default() };
        Failures::new(&limits)
    }

    #[test]
    fn guesses_at_one_key_count_together_and_per_source() {
        let failures = failures();
        let guess = |secret: &str| format!("pak_live_0123456789ab_{secret}");
        assert!(!failures.is_one_too_many(HERE, &guess("a")));
        assert!(!failures.is_one_too_many(HERE, &guess("b")));
        assert!(failures.is_one_too_many(HERE, &guess("c")));
        assert!(!failures.is_one_too_many(THERE, &guess("d")));
        assert!(!failures.is_one_too_many(HERE, "pak_live_zzzzzzzzzzzz_a"));
    }

    #[test]
    fn a_source_that_tries_many_is_slowed_down_too() {
        let failures = failures();
        let tried = (0..6).map(|number| failures.is_one_too_many(HERE, &format!("a.b.{number}")));
        assert_eq!(tried.collect::<Vec<_>>(), [false, false, false, false, false, true]);
        assert!(!failures.is_one_too_many(THERE, "a.b.0"));
    }
}
