//! Token buckets: how many requests may pass, how many at once, and when the next one may.
//!
//! A bucket holds at most `burst` tokens and gains `quota` tokens in `window` seconds; a request takes one. It is kept as
//! one integer, as the generic cell rate algorithm keeps it: the *arrival*, the instant at which the bucket is full again.
//! The time until then, divided by the [`interval`](Policy::interval) of one token, is what is missing. Instants are
//! nanoseconds of any clock; a bucket that was never used arrives at [`FULL`].
//!
//! What holds, whatever the clock does: within any time no more pass than `burst` and what that time brings; a refusal
//! changes nothing; a request that waits as long as a refusal says passes, if nobody was quicker; a clock that is set
//! back brings no tokens, it only makes waiting longer. The interval is rounded up to a whole nanosecond, so that a
//! policy never lets more through than it says.

/// Nanoseconds: an instant of the caller's clock, or a time.
pub type Nanos = i64;

/// The arrival of a bucket that was never used.
pub const FULL: Nanos = Nanos::MIN;

const NANOS_PER_SECOND: Nanos = 1_000_000_000;
/// Longest window, and longest time an empty bucket may take to fill, in seconds.
pub const WINDOW_SECONDS_MAX: u32 = 86_400;
/// Most requests of a window.
pub const QUOTA_MAX: u32 = 100_000_000;

/// What kind of requests a limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Reading through our own API, by principal.
    Read,
    /// Changing things through it.
    Write,
    /// Tenants and their credentials.
    Admin,
    /// Usage events coming in over HTTP from senders that can come back.
    Ingest,
    /// Questions of gateways.
    Lookup,
    /// A tenant's own traffic through the gateways.
    TenantTraffic,
    /// The part of it that one of the gateway's API keys brings.
    ApiKeyTraffic,
}

impl Class {
    pub const ALL: [Class; 7] = [
        Class::Read,
        Class::Write,
        Class::Admin,
        Class::Ingest,
        Class::Lookup,
        Class::TenantTraffic,
        Class::ApiKeyTraffic,
    ];

    /// What a credential of our own API may do.
    pub const OF_A_PRINCIPAL: [Class; 5] = [Class::Read, Class::Write, Class::Admin, Class::Ingest, Class::Lookup];

    #[must_use]
    pub fn from_name(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name() == name)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Read => "read",
            Class::Write => "write",
            Class::Admin => "admin",
            Class::Ingest => "ingest",
            Class::Lookup => "lookup",
            Class::TenantTraffic => "tenantTraffic",
            Class::ApiKeyTraffic => "apiKeyTraffic",
        }
    }
}

/// So many requests in so long, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    quota: u32,
    window_seconds: u32,
    burst: u32,
    interval: Nanos,
}

/// Why numbers are no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPolicy {
    #[error("quota must be from 1 to {QUOTA_MAX}")]
    Quota,
    #[error("window_seconds must be from 1 to {WINDOW_SECONDS_MAX}")]
    Window,
    /// More at once than in a window would make the window a lie.
    #[error("burst must be from 1 to the quota")]
    Burst,
}

impl Policy {
    /// `quota` requests in `window_seconds`, `burst` of them at once.
    ///
    /// # Errors
    /// [`NoPolicy`], the first that holds.
    pub fn new(quota: u32, window_seconds: u32, burst: u32) -> Result<Policy, NoPolicy> {
        if !(1..=QUOTA_MAX).contains(&quota) {
            return Err(NoPolicy::Quota);
        }
        if !(1..=WINDOW_SECONDS_MAX).contains(&window_seconds) {
            return Err(NoPolicy::Window);
        }
        if !(1..=quota).contains(&burst) {
            return Err(NoPolicy::Burst);
        }
        let window = u64::from(window_seconds) * NANOS_PER_SECOND.unsigned_abs();
        let interval = Nanos::try_from(window.div_ceil(u64::from(quota))).map_err(|_| NoPolicy::Window)?;
        Ok(Policy { quota, window_seconds, burst, interval })
    }

    #[must_use]
    pub fn quota(self) -> u32 {
        self.quota
    }

    #[must_use]
    pub fn window_seconds(self) -> u32 {
        self.window_seconds
    }

    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// The time that brings one token.
    #[must_use]
    pub fn interval(self) -> Nanos {
        self.interval
    }

    /// Does it never let more through than `other`, neither in the long run nor at once?
    #[must_use]
    pub fn is_within(self, other: Policy) -> bool {
        let often = |one: Policy, of: Policy| u64::from(one.quota) * u64::from(of.window_seconds);
        often(self, other) <= often(other, self) && self.burst <= other.burst
    }

    /// The time an empty bucket takes to fill: at most a window, and a nanosecond for each token.
    #[must_use]
    pub fn capacity(self) -> Nanos {
        self.interval * Nanos::from(self.burst)
    }
}

/// How a bucket stands after a request was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub admitted: bool,
    /// Requests that would pass now.
    pub remaining: u32,
    /// After a refusal, how long until a request passes; otherwise until the bucket is full.
    pub wait: Nanos,
}

impl Standing {
    /// The wait in whole seconds, rounded up: who waits that long is admitted.
    #[must_use]
    pub fn wait_seconds(self) -> u64 {
        self.wait.max(0).unsigned_abs().div_ceil(NANOS_PER_SECOND.unsigned_abs())
    }
}

/// Judges one request: the bucket's arrival afterwards, which is unchanged by a refusal, and how it stands.
#[must_use]
pub fn judge(policy: Policy, arrival: Nanos, now: Nanos) -> (Nanos, Standing) {
    let ahead = arrival.max(now).saturating_sub(now);
    let taken = ahead.saturating_add(policy.interval);
    let spare = policy.capacity().saturating_sub(taken);
    if spare < 0 {
        return (arrival, Standing { admitted: false, remaining: 0, wait: spare.saturating_neg() });
    }
    let remaining = u32::try_from(spare / policy.interval).unwrap_or(policy.burst);
    (now.saturating_add(taken), Standing { admitted: true, remaining, wait: taken })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(quota: u32, window_seconds: u32, burst: u32) -> Policy {
        Policy::new(quota, window_seconds, burst).unwrap()
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let policy = policy(60, 60, 3);
        let mut arrival = FULL;
        let mut ask = |now_ms: i64| {
            let (next, standing) = judge(policy, arrival, now_ms * 1_000_000);
            arrival = next;
            (standing.admitted, standing.remaining, standing.wait / 1_000_000)
        };
        assert_eq!(ask(0), (true, 2, 1_000));
        assert_eq!(ask(0), (true, 1, 2_000));
        assert_eq!(ask(0), (true, 0, 3_000));
        assert_eq!(ask(0), (false, 0, 1_000));
        assert_eq!(ask(400), (false, 0, 600));
        assert_eq!(ask(1_000), (true, 0, 3_000));
        assert_eq!(ask(3_500), (true, 1, 1_500));
        assert_eq!(ask(60_000), (true, 2, 1_000), "a bucket holds no more than its burst");
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_rounded_up() {
        for (wait, seconds) in [(0, 0), (1, 1), (NANOS_PER_SECOND, 1), (NANOS_PER_SECOND + 1, 2)] {
            assert_eq!(Standing { admitted: false, remaining: 0, wait }.wait_seconds(), seconds);
        }
    }

    #[test]
    fn numbers_that_are_no_policy_are_refused() {
        for (numbers, refusal) in [
            ((0, 60, 1), NoPolicy::Quota),
            ((QUOTA_MAX + 1, 60, 1), NoPolicy::Quota),
            ((1, 0, 1), NoPolicy::Window),
            ((1, WINDOW_SECONDS_MAX + 1, 1), NoPolicy::Window),
            ((10, 60, 0), NoPolicy::Burst),
            ((10, 60, 11), NoPolicy::Burst),
        ] {
            assert_eq!(Policy::new(numbers.0, numbers.1, numbers.2), Err(refusal), "{numbers:?}");
        }
        let widest = policy(QUOTA_MAX, WINDOW_SECONDS_MAX, QUOTA_MAX);
        assert_eq!(widest.interval(), 864_000);
        assert_eq!(widest.capacity(), 86_400 * NANOS_PER_SECOND);
    }

    #[test]
    fn nothing_overflows_at_the_ends_of_time() {
        let policy = policy(1, WINDOW_SECONDS_MAX, 1);
        for arrival in [Nanos::MIN, 0, Nanos::MAX] {
            for now in [Nanos::MIN, -1, 0, Nanos::MAX] {
                let (next, standing) = judge(policy, arrival, now);
                assert!(standing.wait >= 0 && (standing.admitted || next == arrival), "{arrival} {now}");
            }
        }
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (1_u32..10_000, 1_u32..=3_600).prop_flat_map(|(quota, window)| {
            (1..=quota).prop_map(move |burst| Policy::new(quota, window, burst).unwrap())
        })
    }

    proptest! {
        /// Within any time no more pass than the burst and what the time brings, a clock that jumps about included.
        #[test]
        fn never_more_pass_than_the_burst_and_what_time_brings(
            policy in policies(),
            steps in prop::collection::vec((0_i64..5_000_000_000, any::<bool>(), 1_usize..20), 1..60),
        ) {
            let (mut arrival, mut now) = (FULL, 1_i64 << 40);
            let mut passed: Vec<i64> = Vec::new();
            for (step, back, requests) in steps {
                now += if back { -step / 2 } else { step };
                for _ in 0..requests {
                    let (next, standing) = judge(policy, arrival, now);
                    prop_assert!(next >= arrival);
                    prop_assert!(standing.admitted || next == arrival, "a refusal changed the bucket");
                    arrival = next;
                    if standing.admitted {
                        passed.push(now);
                    }
                }
            }
            // Every stretch of the admissions, in their order.
            for from in 0..passed.len() {
                let (mut least, mut most) = (passed[from], passed[from]);
                for (count, at) in (1_i128..).zip(&passed[from..]) {
                    (least, most) = (least.min(*at), most.max(*at));
                    let window = i128::from(policy.window_seconds()) * 1_000_000_000;
                    let brought = i128::from(most - least) * i128::from(policy.quota()) / window;
                    prop_assert!(count <= i128::from(policy.burst()) + brought, "{count} in {} ns", most - least);
                }
            }
        }

        /// What a refusal says is exact to the nanosecond.
        #[test]
        fn who_waits_as_long_as_told_passes_and_who_waits_less_does_not(
            policy in policies(),
            now in 0_i64..1 << 50,
            ahead in 0_i64..7_200_000_000_000,
        ) {
            let arrival = now + ahead;
            let (_, refused) = judge(policy, arrival, now);
            if !refused.admitted {
                prop_assert!(refused.wait > 0);
                prop_assert!(judge(policy, arrival, now + refused.wait).1.admitted);
                prop_assert!(!judge(policy, arrival, now + refused.wait - 1).1.admitted);
                let seconds = i64::try_from(refused.wait_seconds()).unwrap();
                prop_assert!(judge(policy, arrival, now + seconds * 1_000_000_000).1.admitted);
            }
        }

        /// `remaining` is what would pass at this very moment.
        #[test]
        fn what_remains_passes_and_no_more(policy in policies(), now in 0_i64..1 << 50, used in 0_i64..5_000_000_000) {
            let (mut arrival, standing) = judge(policy, now + used, now);
            let mut passed = 0;
            loop {
                let (next, standing) = judge(policy, arrival, now);
                if !standing.admitted || passed > policy.burst() {
                    break;
                }
                (arrival, passed) = (next, passed + 1);
            }
            prop_assert_eq!(passed, standing.remaining);
        }
    }
}
