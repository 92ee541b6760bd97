//! How long to wait between tries.

/// A delay that doubles from the first to the longest.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first_micros: i64,
    pub longest_micros: i64,
}

impl Backoff {
    /// After so many tries that failed: doubling, up to the longest, and up to a quarter more by `salt`, so that those who
    /// failed together do not try again together.
    #[must_use]
    pub fn micros(self, tries: i64, salt: u8) -> i64 {
        let doublings = u32::try_from(tries.clamp(1, 32) - 1).unwrap_or(0);
        let delay = self.first_micros.saturating_mul(1 << doublings).min(self.longest_micros);
        delay + delay / 1024 * i64::from(salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_doubles_and_ends_and_differs_by_a_quarter_at_most() {
        let backoff = Backoff { first_micros: 1_024, longest_micros: 5_000 };
        let plain = [0, 1, 2, 3, 4, i64::MAX].map(|tries| backoff.micros(tries, 0));
        assert_eq!(plain, [1_024, 1_024, 2_048, 4_096, 5_000, 5_000]);
        assert_eq!(backoff.micros(1, u8::MAX), 1_024 + 255);
    }

    proptest! {
        #[test]
        fn it_grows_and_is_bounded(tries in 1_i64..1_000, salt in any::<u8>(), first in 1_i64..1 << 40, more in 0_i64..1 << 40) {
            let backoff = Backoff { first_micros: first, longest_micros: first + more };
            let delay = backoff.micros(tries, salt);
            prop_assert!((first..=(first + more) * 5 / 4).contains(&delay));
            prop_assert!(backoff.micros(tries + 1, salt) >= delay);
        }
    }
}
