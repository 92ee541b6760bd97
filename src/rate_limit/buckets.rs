//! The buckets of this node: found in a sharded map, charged by one atomic operation.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aws_lc_rs::digest;

use crate::domain::ids::TenantId;
use crate::domain::rate_limit::{Class, FULL, Nanos, Policy, Standing, judge};

/// A lock is held for a look-up; so many of them that two threads hardly meet.
const SHARDS: usize = 64;
/// The principal that all are counted as who have no place of their own. No credential is called so.
const WITHOUT_A_PLACE: &str = "\0";

/// Whose bucket. Another policy is another bucket: what was taken under one says nothing in the measure of the other.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Name<'a> {
    pub(super) class: Class,
    pub(super) policy: Policy,
    pub(super) tenant: Option<TenantId>,
    pub(super) principal: &'a str,
}

#[derive(Debug)]
pub(super) struct Bucket {
    policy: Policy,
    arrival: AtomicI64,
    /// Admitted and not told to Redis, in time.
    unsettled: AtomicI64,
    /// Since when something is unsettled.
    since: AtomicI64,
    /// Whether it stands in its shard's list of those that have something to tell.
    listed: AtomicBool,
    /// What Redis calls it; empty where nothing is shared.
    key: Box<str>,
}

/// What a bucket has to tell Redis.
#[derive(Debug)]
pub(super) struct Owing {
    pub(super) bucket: Arc<Bucket>,
    pub(super) micros: i64,
    /// How long ago the first of it was admitted.
    pub(super) age_micros: i64,
    pub(super) capacity_micros: i64,
}

type Map = HashMap<u128, Arc<Bucket>, ahash::RandomState>;

#[derive(Debug, Default)]
struct Shard {
    buckets: RwLock<Map>,
    listed: Mutex<Vec<Arc<Bucket>>>,
}

#[derive(Debug)]
pub(super) struct Buckets {
    shards: Vec<Shard>,
    /// Two halves of a name's fingerprint, under keys that nobody knows.
    hashers: [ahash::RandomState; 2],
    shard_max: usize,
    /// Prefix of the keys in Redis, where it is told.
    shared: Option<String>,
}

impl Buckets {
    pub(super) fn new(buckets_max: usize, shared: Option<&str>) -> Buckets {
        Buckets {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hashers: [ahash::RandomState::new(), ahash::RandomState::new()],
            shard_max: buckets_max.div_ceil(SHARDS),
            shared: shared.map(str::to_owned),
        }
    }

    /// Judges one request and, if it passes, takes its token.
    pub(super) fn take(&self, name: Name<'_>, now: Nanos) -> Standing {
        self.with(name, now, |shard, bucket| self.charge(shard, bucket, now))
    }

    /// Undoes a [`take`](Buckets::take) that passed, as when another bucket has refused the same request.
    pub(super) fn put_back(&self, name: Name<'_>, now: Nanos) {
        self.with(name, now, |_, bucket| {
            bucket.arrival.fetch_sub(name.policy.interval(), Ordering::Relaxed);
            if self.shared.is_some() {
                bucket.unsettled.fetch_sub(name.policy.interval(), Ordering::Relaxed);
            }
        });
    }

    fn charge(&self, shard: &Shard, bucket: &Arc<Bucket>, now: Nanos) -> Standing {
        let mut arrival = bucket.arrival.load(Ordering::Relaxed);
        let standing = loop {
            let (next, standing) = judge(bucket.policy, arrival, now);
            if !standing.admitted {
                return standing;
            }
            match bucket.arrival.compare_exchange_weak(arrival, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break standing,
                Err(changed) => arrival = changed,
            }
        };
        if self.shared.is_some() {
            bucket.unsettled.fetch_add(bucket.policy.interval(), Ordering::Relaxed);
            if !bucket.listed.swap(true, Ordering::AcqRel) {
                bucket.since.store(now, Ordering::Relaxed);
                shard.listed.lock().unwrap_or_else(PoisonError::into_inner).push(bucket.clone());
            }
        }
        standing
    }

    /// Calls `then` with the bucket of this name, under its shard's lock, so that nobody forgets it meanwhile.
    fn with<T>(&self, name: Name<'_>, now: Nanos, then: impl FnOnce(&Shard, &Arc<Bucket>) -> T) -> T {
        let print = self.fingerprint(name);
        let shard = self.shard(print);
        if let Some(bucket) = shard.buckets.read().unwrap_or_else(PoisonError::into_inner).get(&print) {
            return then(shard, bucket);
        }
        let mut buckets = shard.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.shard_max && name.principal != WITHOUT_A_PLACE && !buckets.contains_key(&print) {
            buckets.retain(|_, bucket| !bucket.is_idle(now));
            if buckets.len() >= self.shard_max {
                drop(buckets);
                metrics::counter!("platform_api_rate_limit_overflows_total").increment(1);
                return self.with(Name { principal: WITHOUT_A_PLACE, ..name }, now, then);
            }
        }
        then(shard, buckets.entry(print).or_insert_with(|| Arc::new(self.bucket(name))))
    }

    fn bucket(&self, name: Name<'_>) -> Bucket {
        Bucket {
            policy: name.policy,
            arrival: AtomicI64::new(FULL),
            unsettled: AtomicI64::new(0),
            since: AtomicI64::new(0),
            listed: AtomicBool::new(false),
            key: self.shared.as_ref().map(|prefix| key(prefix, name)).unwrap_or_default().into(),
        }
    }

    fn fingerprint(&self, name: Name<'_>) -> u128 {
        let [low, high] = &self.hashers;
        u128::from(low.hash_one(name)) | u128::from(high.hash_one(name)) << 64
    }

    fn shard(&self, print: u128) -> &Shard {
        &self.shards[print as usize % SHARDS]
    }

    /// What is to be told to Redis; it counts as told.
    pub(super) fn owing(&self, now: Nanos) -> Vec<Owing> {
        let mut owing = Vec::new();
        for shard in &self.shards {
            let listed = std::mem::take(&mut *shard.listed.lock().unwrap_or_else(PoisonError::into_inner));
            owing.extend(listed.into_iter().filter_map(|bucket| bucket.owing(now)));
        }
        owing
    }

    /// Forgets the buckets that are full; how many are left.
    pub(super) fn sweep(&self, now: Nanos) -> usize {
        let mut left = 0;
        for shard in &self.shards {
            let mut buckets = shard.buckets.write().unwrap_or_else(PoisonError::into_inner);
            buckets.retain(|_, bucket| !bucket.is_idle(now));
            left += buckets.len();
        }
        left
    }
}

impl Bucket {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    fn is_idle(&self, now: Nanos) -> bool {
        self.arrival.load(Ordering::Relaxed) <= now && !self.listed.load(Ordering::Acquire)
    }

    fn owing(self: Arc<Bucket>, now: Nanos) -> Option<Owing> {
        let since = self.since.load(Ordering::Relaxed);
        // Before the amount is read: what is admitted from now on lists the bucket again.
        self.listed.store(false, Ordering::Release);
        let nanos = self.unsettled.swap(0, Ordering::Relaxed);
        // Whole microseconds are told, the rest the next time; a token that was put back is less to tell then.
        let micros = (nanos / 1_000).max(0);
        self.unsettled.fetch_add(nanos - micros * 1_000, Ordering::Relaxed);
        let age_micros = now.saturating_sub(since).max(0) / 1_000;
        let capacity_micros = self.policy.capacity() / 1_000;
        (micros > 0).then_some(Owing { bucket: self, micros, age_micros, capacity_micros })
    }

    /// Takes over what all nodes together have admitted: the shared bucket was this far from full at `asked`.
    pub(super) fn adopt(&self, ahead: Nanos, asked: Nanos) {
        let meanwhile = self.unsettled.load(Ordering::Relaxed).max(0);
        let shared = asked.saturating_add(ahead).saturating_add(meanwhile);
        let more = shared.saturating_sub(self.arrival.load(Ordering::Relaxed));
        // Others take whole tokens; less is how the way to Redis varies, and must not make a wait that was told longer.
        if more > self.policy.interval() / 2 {
            self.arrival.fetch_max(shared, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn arrival(&self) -> Nanos {
        self.arrival.load(Ordering::Relaxed)
    }
}

/// A bucket's name in Redis: bounded, and without the principal's own name. Nodes with other limits have other buckets.
fn key(prefix: &str, name: Name<'_>) -> String {
    use std::fmt::Write;
    let tenant = name.tenant.map_or_else(|| "-".to_owned(), |tenant| tenant.to_string());
    let mut key = format!("{prefix}{}:{tenant}:", name.class.name());
    let policy = name.policy;
    let told = format!("{}/{}/{} {}", policy.quota(), policy.window_seconds(), policy.burst(), name.principal);
    for byte in &digest::digest(&digest::SHA256, told.as_bytes()).as_ref()[..16] {
        // Writing to a string does not fail.
        let _ = write!(key, "{byte:02x}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn policy(quota: u32, burst: u32) -> Policy {
        Policy::new(quota, 60, burst).unwrap()
    }

    fn name(principal: &str, policy: Policy) -> Name<'_> {
        Name { class: Class::Read, policy, tenant: Some(TenantId(uuid::Uuid::from_u128(1))), principal }
    }

    #[test]
    fn many_threads_are_given_exactly_the_burst() {
        let (buckets, policy) = (Buckets::new(1_000, Some("p:")), policy(1_000, 1_000));
        let passed: usize = std::thread::scope(|scope| {
            let asking = (0..8)
                .map(|_| scope.spawn(|| (0..500).filter(|_| buckets.take(name("a", policy), SECOND).admitted).count()));
            let asking: Vec<_> = asking.collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1_000);
        let owing = buckets.owing(SECOND);
        assert_eq!(owing.iter().map(|owing| owing.micros).sum::<i64>(), 60_000_000, "what passed is told, once");
        assert!(buckets.owing(SECOND).is_empty());
    }

    #[test]
    fn a_full_bucket_is_forgotten_and_a_used_one_is_not() {
        let (buckets, policy) = (Buckets::new(1_000, None), policy(60, 10));
        assert!(buckets.take(name("a", policy), 0).admitted);
        assert!(buckets.take(name("b", policy), 5 * SECOND).admitted);
        assert_eq!([0, 1, 6].map(|at| buckets.sweep(at * SECOND)), [2, 1, 0]);
    }

    #[test]
    fn principals_without_a_place_are_counted_together_and_take_nobody_s() {
        let (buckets, policy) = (Buckets::new(SHARDS, None), policy(60, 2));
        assert!(buckets.take(name("mine", policy), 0).admitted);
        let passed = (0..10_000).filter(|number| buckets.take(name(&number.to_string(), policy), 0).admitted).count();
        // One for each place that was not taken (the rest's own may take another), and the burst of all the rest.
        assert!((SHARDS..=SHARDS + 1).contains(&passed), "{passed}");
        assert!(buckets.take(name("mine", policy), 0).admitted);
        assert!(!buckets.take(name("mine", policy), 0).admitted, "its bucket was kept");
        let theirs = Name { tenant: Some(TenantId(uuid::Uuid::from_u128(2))), ..name("new", policy) };
        assert!(buckets.take(theirs, 0).admitted, "another tenant's rest is its own");
        assert!(buckets.sweep(3_600 * SECOND) == 0);
        assert!(buckets.take(name("9999", policy), 3_600 * SECOND).admitted, "places are free again");
    }

    #[test]
    fn another_policy_is_another_bucket() {
        let (buckets, tight, wide) = (Buckets::new(1_000, None), policy(60, 1), policy(6_000, 10));
        assert!(buckets.take(name("a", tight), 0).admitted && !buckets.take(name("a", tight), 0).admitted);
        assert_eq!(buckets.take(name("a", wide), 0).remaining, 9);
    }

    #[test]
    fn what_others_have_taken_is_taken_over() {
        let (buckets, policy) = (Buckets::new(1_000, Some("p:")), policy(60, 5));
        let take = |at| buckets.take(name("a", policy), at);
        assert_eq!(take(SECOND).remaining, 4);
        let owing = buckets.owing(SECOND + 500_000);
        let told: Vec<_> = owing.iter().map(|one| (one.micros, one.age_micros, one.capacity_micros)).collect();
        assert_eq!(told, [(1_000_000, 500, 5_000_000)]);
        // Between asking and the answer one more passes, which Redis does not know.
        assert_eq!(take(SECOND).remaining, 3);
        owing[0].bucket.adopt(2 * SECOND, SECOND);
        let after = take(SECOND);
        assert_eq!((after.admitted, after.remaining), (true, 1), "2 in Redis, 1 meanwhile, this one");
        // What Redis says never gives anything back.
        owing[0].bucket.adopt(0, SECOND);
        assert_eq!(take(SECOND).remaining, 0);
        // A debt is waited for.
        owing[0].bucket.adopt(20 * SECOND, SECOND);
        let refused = take(SECOND);
        assert!(!refused.admitted && refused.wait > 15 * SECOND, "{refused:?}");
    }

    #[test]
    fn a_token_that_was_put_back_is_not_told() {
        let (buckets, policy) = (Buckets::new(1_000, Some("p:")), policy(60, 2));
        assert!(buckets.take(name("a", policy), 0).admitted);
        buckets.put_back(name("a", policy), 0);
        assert!(buckets.owing(0).is_empty());
        assert_eq!(buckets.take(name("a", policy), 0).remaining, 1);
        assert_eq!(buckets.owing(0).len(), 1);
        buckets.put_back(name("a", policy), 0);
        assert!(buckets.take(name("a", policy), 0).admitted);
        assert!(buckets.owing(0).is_empty(), "one taken, one put back after it was told");
    }

    #[test]
    fn parts_of_a_microsecond_are_told_later() {
        let (buckets, policy) = (Buckets::new(1_000, Some("p:")), Policy::new(3_000_000, 1, 3_000).unwrap());
        let told = |buckets: &Buckets| buckets.owing(0).iter().map(|owing| owing.micros).sum::<i64>();
        let mut sum = 0;
        for _ in 0..3_000 {
            assert!(buckets.take(name("a", policy), 0).admitted);
            sum += told(&buckets);
        }
        assert_eq!(sum, 1_002, "3000 tokens of 334 ns");
    }

    #[test]
    fn a_key_in_redis_is_bounded_and_names_nobody() {
        let long = "user:ada@example.com".repeat(100);
        let key = key("p:", name(&long, policy(60, 2)));
        assert!(key.starts_with("p:read:00000000-0000-0000-0000-000000000001:"), "{key}");
        assert!(key.len() < 100 && !key.contains("ada"), "{key}");
        assert_ne!(key, self::key("p:", name("user:ada", policy(60, 2))));
        assert_ne!(key, self::key("p:", name(&long, policy(60, 3))));
    }
}
