//! Accounts with a password that is kept here: argon2id under the platform's pepper.
//!
//! A hash takes memory and time on purpose, so it is computed away from the threads that answer, and only so many at once. A
//! user that does not exist costs as much as one that does.
//!
//! Whoever fails is slowed down, by address and account together and more with each failure; nobody is ever locked out. A
//! stranger who guesses at an account from elsewhere makes no difference to its owner, and an owner behind the same address
//! waits some seconds at worst.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::clock;
use crate::config;

/// Fewest characters of a password. Nothing is asked of which they are.
pub const PASSWORD_CHARACTERS_MIN: usize = 12;
pub const PASSWORD_BYTES_MAX: usize = 256;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// Hashes that may wait for their turn; more are told to come back.
const WAITING_MAX: usize = 64;
/// Failures of an address with an account that cost nothing yet.
const FREE_FAILURES: u32 = 3;
const DELAY_FIRST: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(8);
/// How long a failure is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(900);
const REMEMBERED_MAX: u64 = 20_000;
/// Attempts of one address under way at once, of those that need not wait any more; and as many of one address with one
/// account, waiting or not.
const AT_ONCE_MAX: usize = 4;
/// How long an attempt waits for one of its address's places.
const PLACE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a password was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

/// Makes and checks hashes.
pub(super) struct Passwords {
    params: Params,
    key: Arc<Zeroizing<[u8; 32]>>,
    turns: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Of nobody's password.
    nobody: String,
}

impl Passwords {
    /// # Errors
    /// When the parameters are none of argon2's.
    pub(super) fn new(local: &config::Local, key: [u8; 32]) -> Result<Passwords, String> {
        let params = Params::new(local.memory_kib, local.passes, 1, Some(HASH_BYTES));
        let params = params.map_err(|error| format!("auth.local: {error}"))?;
        let nobody = written(&params, &clock::random_bytes(), &clock::random_bytes());
        Ok(Passwords {
            params,
            key: Arc::new(Zeroizing::new(key)),
            turns: Arc::new(Semaphore::new(local.hashes_at_once.max(1))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            nobody,
        })
    }

    /// The hash to keep.
    pub(super) async fn hash(&self, password: Zeroizing<String>) -> Result<String, Busy> {
        let (params, key) = (self.params.clone(), self.key.clone());
        let work = move || {
            let salt = clock::random_bytes();
            Some(written(&params, &salt, &compute(&params, &key, &password, &salt)?))
        };
        self.away(work).await?.ok_or(Busy)
    }

    /// Is it the password of this hash? Without a hash it is not, after as much work.
    pub(super) async fn is(&self, password: Zeroizing<String>, hash: Option<&str>) -> Result<bool, Busy> {
        let (known, hash) = (hash.is_some(), hash.unwrap_or(&self.nobody).to_owned());
        let key = self.key.clone();
        let work = move || {
            let Some((params, salt, expected)) = read(&hash) else { return false };
            let computed = compute(&params, &key, &password, &salt);
            computed.is_some_and(|found| constant_time::verify_slices_are_equal(&found, &expected).is_ok())
        };
        Ok(self.away(work).await? && known)
    }

    /// Takes every place of those who may wait for their turn: as long as it is held, nobody's password is looked at.
    #[cfg(test)]
    pub(super) fn crowd_out(&self) -> OwnedSemaphorePermit {
        self.waiting.clone().try_acquire_many_owned(u32::try_from(WAITING_MAX).unwrap()).unwrap()
    }

    /// Was it made with other parameters than are asked for now?
    pub(super) fn is_outdated(&self, hash: &str) -> bool {
        read(hash).is_some_and(|(params, ..)| {
            (params.m_cost(), params.t_cost()) != (self.params.m_cost(), self.params.t_cost())
        })
    }

    async fn away<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let _waiting = self.waiting.clone().try_acquire_owned().map_err(|_| Busy)?;
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| Busy)?;
        let hashing = tokio::task::spawn_blocking(move || {
            // Held until the work is done, even if nobody waits for it any more.
            let _turn = turn;
            work()
        });
        hashing.await.map_err(|_| Busy)
    }
}

fn compute(params: &Params, key: &[u8; 32], password: &str, salt: &[u8; SALT_BYTES]) -> Option<[u8; HASH_BYTES]> {
    let argon2 = Argon2::new_with_secret(key, Algorithm::Argon2id, Version::V0x13, params.clone()).ok()?;
    let mut hash = [0; HASH_BYTES];
    argon2.hash_password_into(password.as_bytes(), salt, &mut hash).ok()?;
    Some(hash)
}

/// The PHC string, which everybody reads.
fn written(params: &Params, salt: &[u8; SALT_BYTES], hash: &[u8; HASH_BYTES]) -> String {
    let (memory, passes) = (params.m_cost(), params.t_cost());
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    format!("$argon2id$v=19$m={memory},t={passes},p=1${salt}${hash}")
}

/// A hash with the parameters it was made with, which need not be those of now.
fn read(text: &str) -> Option<(Params, [u8; SALT_BYTES], [u8; HASH_BYTES])> {
    let rest = text.strip_prefix("$argon2id$v=19$m=")?;
    let (memory, rest) = rest.split_once(",t=")?;
    let (passes, rest) = rest.split_once(",p=1$")?;
    let (salt, hash) = rest.split_once('$')?;
    let params = Params::new(memory.parse().ok()?, passes.parse().ok()?, 1, Some(HASH_BYTES)).ok()?;
    let salt = STANDARD_NO_PAD.decode(salt).ok()?.try_into().ok()?;
    let hash = STANDARD_NO_PAD.decode(hash).ok()?.try_into().ok()?;
    Some((params, salt, hash))
}

/// What is wrong with a password to be.
#[must_use]
pub fn password_flaw(password: &str, user_name: &str) -> Option<&'static str> {
    let folded = password.to_lowercase();
    let name = user_name.to_lowercase();
    if password.chars().count() < PASSWORD_CHARACTERS_MIN || password.len() > PASSWORD_BYTES_MAX {
        Some("must be 12 characters to 256 bytes")
    } else if name.len() >= 3 && folded.contains(&name) {
        Some("must not contain the user name")
    } else {
        None
    }
}

/// An address with an account.
type Name = (IpAddr, [u8; 16]);

/// Slows down who fails.
pub(super) struct Throttle {
    failures: moka::sync::Cache<Name, Arc<AtomicU32>>,
    /// By address and account: these wait out what failures have cost them.
    waiting: moka::sync::Cache<Name, Arc<Semaphore>>,
    /// By address: these have a password looked at.
    under_way: moka::sync::Cache<IpAddr, Arc<Semaphore>>,
}

/// An attempt that may be made.
pub(super) struct Attempt {
    name: Name,
    _places: [OwnedSemaphorePermit; 2],
}

impl Throttle {
    pub(super) fn new() -> Throttle {
        Throttle {
            failures: moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED_FOR).build(),
            waiting: moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(REMEMBERED_FOR).build(),
            under_way: moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(REMEMBERED_FOR).build(),
        }
    }

    /// Waits as long as earlier failures of this address with this account ask for, and only then takes one of the places of
    /// the address: behind it may be everybody of a proxy's, whom a stranger's penalties must not keep out.
    ///
    /// # Errors
    /// [`Busy`]: the address, or it with this account, has as many attempts under way as it may have.
    pub(super) async fn admit(&self, source: IpAddr, account: &str) -> Result<Attempt, Busy> {
        let source = network(source);
        let name = (source, digest_of(account));
        let places = || Arc::new(Semaphore::new(AT_ONCE_MAX));
        let own = self.waiting.get_with(name, places).try_acquire_owned().map_err(|_| Busy)?;
        let failed = self.failures.get(&name).map_or(0, |count| count.load(Ordering::Relaxed));
        tokio::time::sleep(delay(failed)).await;
        let place = self.under_way.get_with(source, places).acquire_owned();
        let place = tokio::time::timeout(PLACE_TIMEOUT, place).await.map_err(|_| Busy)?.map_err(|_| Busy)?;
        Ok(Attempt { name, _places: [own, place] })
    }

    pub(super) fn failed(&self, attempt: &Attempt) {
        self.failures.get_with(attempt.name, Arc::default).fetch_add(1, Ordering::Relaxed);
    }

    /// Only what this address did with this account is forgotten.
    pub(super) fn succeeded(&self, attempt: &Attempt) {
        self.failures.invalidate(&attempt.name);
    }
}

/// How long an attempt waits after so many failures.
fn delay(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES) {
        None => Duration::ZERO,
        Some(more) => DELAY_FIRST.saturating_mul(1 << more.min(10)).min(DELAY_MAX),
    }
}

/// Who has one address of an IPv6 network has all of it.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !(u128::MAX >> 64)).into()),
        source => source,
    }
}

fn digest_of(account: &str) -> [u8; 16] {
    let mut name = [0; 16];
    name.copy_from_slice(&digest::digest(&digest::SHA256, account.as_bytes()).as_ref()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn passwords() -> Passwords {
        let cheap = config::Local { memory_kib: 64, passes: 1, ..config::Local::default() };
        Passwords::new(&cheap, [1; 32]).unwrap()
    }

    fn said(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_under_the_pepper() {
        let passwords = passwords();
        let hash = passwords.hash(said("correct horse battery")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash(said("correct horse battery")).await.unwrap(), "a salt of its own");
        assert_eq!(passwords.is(said("correct horse battery"), Some(&hash)).await, Ok(true));
        assert_eq!(passwords.is(said("correct horse batterx"), Some(&hash)).await, Ok(false));
        assert_eq!(passwords.is(said("correct horse battery"), None).await, Ok(false));
        assert_eq!(passwords.is(said("correct horse battery"), Some("$argon2id$v=19$m=64,t=1")).await, Ok(false));
        let other = Passwords::new(&config::Local::default(), [2; 32]).unwrap();
        assert_eq!(other.is(said("correct horse battery"), Some(&hash)).await, Ok(false), "another pepper");
        // What was hashed with other parameters is still known.
        let dearer = Passwords::new(&config::Local { memory_kib: 128, ..config::Local::default() }, [1; 32]).unwrap();
        assert_eq!(dearer.is(said("correct horse battery"), Some(&hash)).await, Ok(true));
    }

    #[test]
    fn argon2id_is_the_one_of_rfc_9106() {
        // RFC 9106, 5.3.
        let params = argon2::ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .output_len(32)
            .data(argon2::AssociatedData::new(&[4; 12]).unwrap())
            .build()
            .unwrap();
        let secret = [3; 8];
        let argon2 = Argon2::new_with_secret(&secret, Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let mut hash = [0; 32];
        argon2.hash_password_into(&[1; 32], &[2; 16], &mut hash).unwrap();
        assert_eq!(hash[..8], [0x0d, 0x64, 0x0d, 0xf5, 0x8d, 0x78, 0x76, 0x6c]);
    }

    #[tokio::test]
    async fn hashes_that_nobody_has_time_for_are_told_so() {
        let passwords = passwords();
        let _all = passwords.crowd_out();
        assert_eq!(passwords.hash(said("correct horse battery")).await, Err(Busy));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_s_guesses_slow_the_stranger_and_not_the_owner() {
        let throttle = Throttle::new();
        for _ in 0..50 {
            let attempt = throttle.admit(HERE, "acme/jane").await.unwrap();
            throttle.failed(&attempt);
        }
        let took = async |source, account| {
            let began = Instant::now();
            let attempt = throttle.admit(source, account).await.unwrap();
            (began.elapsed(), attempt)
        };
        assert_eq!(took(THERE, "acme/jane").await.0, Duration::ZERO, "the owner, from elsewhere");
        assert_eq!(took(HERE, "acme/john").await.0, Duration::ZERO, "another account");
        // The timer counts whole milliseconds.
        let (waited, attempt) = took(HERE, "acme/jane").await;
        assert!(waited >= DELAY_MAX && waited < DELAY_MAX * 2, "slow, and not shut out: {waited:?}");
        throttle.succeeded(&attempt);
        drop(attempt);
        assert_eq!(took(HERE, "acme/jane").await.0, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_only_so_many_attempts_under_way() {
        let throttle = Throttle::new();
        let mut under_way = Vec::new();
        for number in 0..AT_ONCE_MAX {
            under_way.push(throttle.admit(HERE, &format!("acme/{number}")).await.unwrap());
        }
        assert!(throttle.admit(HERE, "acme/jane").await.is_err());
        assert!(throttle.admit(THERE, "acme/jane").await.is_ok());
        under_way.pop();
        assert!(throttle.admit(HERE, "acme/jane").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_earlier_failures_keeps_nobody_of_the_same_address_out() {
        let throttle = Arc::new(Throttle::new());
        for account in ["acme/jane", "acme/john"] {
            for _ in 0..10 {
                let attempt = throttle.admit(HERE, account).await.unwrap();
                throttle.failed(&attempt);
            }
        }
        let mut waiting = Vec::new();
        for account in ["acme/jane", "acme/john"].repeat(AT_ONCE_MAX) {
            let throttle = throttle.clone();
            waiting.push(tokio::spawn(async move { throttle.admit(HERE, account).await.map(drop) }));
        }
        tokio::task::yield_now().await;
        assert!(throttle.admit(HERE, "acme/jane").await.is_err(), "the account that is guessed at");
        let began = Instant::now();
        assert!(throttle.admit(HERE, "acme/ada").await.is_ok());
        assert_eq!(began.elapsed(), Duration::ZERO, "somebody else behind the same proxy");
        for one in waiting {
            assert_eq!(one.await.unwrap(), Ok(()), "none is shut out");
        }
    }

    #[test]
    fn delays_grow_and_end() {
        let millis = |failures| delay(failures).as_millis();
        assert_eq!([0, 2, 3, 4, 5, 8, 9, u32::MAX].map(millis), [0, 0, 250, 500, 1_000, 8_000, 8_000, 8_000]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let [one, other, elsewhere]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert_eq!(network(one), network(other));
        assert_ne!(network(one), network(elsewhere));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), HERE);
    }

    #[test]
    fn a_password_is_long_and_not_the_name() {
        for (password, fits) in [
            ("correct horse", true),
            ("correct", false),
            ("éééééééééééé", true),
            ("jane-is-my-name", false),
            ("my-NAME-is-JANE", false),
        ] {
            assert_eq!(password_flaw(password, "Jane").is_none(), fits, "{password}");
        }
        assert!(password_flaw(&"x".repeat(257), "jane").is_some());
    }
}
