//! Is each rollup the sum of the ledger's events that belong to it?
//!
//! There may be tens of millions of rollups, too many to hold beside each other. So either side is folded into one number:
//! every amount times a weight of its rollup and of its place there, which a secret draws anew for each proof. The order
//! does not matter, nor into how many parts a sum is taken; and sums that differ anywhere fold to the same number by luck
//! alone (one in 2^50 at the very most), because who changes them does not know the weights.

use aws_lc_rs::digest;

use super::time::Timestamp;
use super::usage::{Subject, Totals};

/// Events, failures and the eight amounts.
const PLACES: usize = 10;

/// Sums by rollup, folded.
#[derive(Debug, Clone)]
pub struct Fold {
    secret: [u8; 32],
    places: [u128; PLACES],
    sum: u128,
}

impl Fold {
    /// Of nothing. Folds can be compared that have the same secret.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Fold {
        let places = std::array::from_fn(|place| weight(&[&secret, b"place", &[place as u8]]));
        Fold { secret, places, sum: 0 }
    }

    /// Adds to the rollup of `subject` that begins at `start`. Wraps: two's complement takes what is below zero.
    pub fn add(&mut self, start: Timestamp, subject: &Subject, totals: &Totals) {
        let Subject { user, group, api_key, model, provider } = subject;
        let start = start.0.to_be_bytes();
        let mut parts: Vec<&[u8]> = vec![&self.secret, b"rollup", &start];
        let texts = [user, group, api_key, model, provider];
        let lengths = texts.map(|text| (text.len() as u64).to_be_bytes());
        parts.extend(texts.iter().zip(&lengths).flat_map(|(text, length)| [length.as_slice(), text.as_bytes()]));
        let products = self.places.iter().zip(totals.to_array()).map(|(place, number)| {
            // Of 128 bits, so that the sign is kept.
            place.wrapping_mul(i128::from(number).cast_unsigned())
        });
        let row = products.fold(0, u128::wrapping_add);
        self.sum = self.sum.wrapping_add(weight(&parts).wrapping_mul(row));
    }

    /// Are they the same sums, rollup by rollup?
    #[must_use]
    pub fn equals(&self, other: &Fold) -> bool {
        self.secret == other.secret && self.sum == other.sum
    }
}

fn weight(parts: &[&[u8]]) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest::digest(&digest::SHA256, &parts.concat()).as_ref()[..16]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::books::RollupKey;
    use super::super::grouping::group;
    use super::super::properties_tests::an_event;
    use super::super::usage::UsageEvent;
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn fold<'a>(rollups: impl IntoIterator<Item = (&'a RollupKey, &'a Totals)>) -> Fold {
        let mut fold = Fold::new([7; 32]);
        rollups.into_iter().for_each(|(key, totals)| fold.add(key.start, &key.subject, totals));
        fold
    }

    proptest! {
        #[test]
        fn neither_order_nor_parts_matter_and_every_change_does(
            events in prop::collection::vec(an_event(now()), 1..20),
            which in any::<prop::sample::Index>(), how in 0_u8..9, more in 1_i64..1_000_000,
        ) {
            let events: Vec<&UsageEvent> = events.iter().collect();
            let whole = group(&events);
            let expected = fold(&whole);
            let parts: Vec<_> = events.iter().rev().map(|event| group(&[*event])).collect();
            prop_assert!(fold(parts.iter().flatten()).equals(&expected));

            let mut changed: Vec<(RollupKey, Totals)> = whole.into_iter().collect();
            let at = which.index(changed.len());
            let (key, totals) = &mut changed[at];
            match how {
                0 => totals.amounts.prompt_tokens += more,
                1 => totals.amounts.cost.0 -= more,
                2 => totals.failures += more,
                // Sums that stay what they were, elsewhere.
                3 => {
                    totals.amounts.prompt_tokens += more;
                    totals.amounts.completion_tokens -= more;
                }
                4 => key.start = key.start.plus_micros(more),
                5 => key.subject.user.push('x'),
                6 => {
                    let text = format!("{}x", key.subject.group);
                    key.subject.group = text;
                }
                7 => std::mem::swap(&mut key.subject.user, &mut key.subject.provider),
                _ => drop(changed.remove(at)),
            }
            let is_changed = how != 7 || changed[at].0.subject.user != changed[at].0.subject.provider;
            prop_assert_eq!(!fold(changed.iter().map(|(key, totals)| (key, totals))).equals(&expected), is_changed);
        }
    }

    #[test]
    fn folds_of_different_secrets_are_never_the_same() {
        assert!(Fold::new([1; 32]).equals(&Fold::new([1; 32])));
        assert!(!Fold::new([1; 32]).equals(&Fold::new([2; 32])));
    }
}
