//! A tenant's flags, and how often each of their variants was served.

use std::collections::BTreeMap;

use super::FlagSet;
use crate::domain::time::Timestamp;

/// Pairs of flag and variant that a tenant counts; further ones are not counted.
pub const EXPOSURES_MAX: usize = 10_000;

/// What the books know of flags.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FlagBooks {
    pub flags: FlagSet,
    pub exposures: BTreeMap<Variant, Exposure>,
}

/// One variant of one flag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    pub flag: String,
    pub variant: String,
}

/// How often a variant was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure {
    pub count: i64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

impl FlagBooks {
    /// Adds counts; answers the rows that are other than before. Of a new pair beyond [`EXPOSURES_MAX`] nothing is kept.
    pub fn count(&mut self, counts: &[(Variant, i64)], now: Timestamp) -> Vec<(Variant, Exposure)> {
        let mut changed = Vec::with_capacity(counts.len());
        for (variant, more) in counts {
            if !self.exposures.contains_key(variant) && self.exposures.len() >= EXPOSURES_MAX {
                continue;
            }
            let known = self.exposures.entry(variant.clone());
            let exposure = known.or_insert(Exposure { count: 0, first_at: now, last_at: now });
            exposure.count = exposure.count.saturating_add(*more);
            exposure.last_at = exposure.last_at.max(now);
            changed.push((variant.clone(), *exposure));
        }
        changed
    }

    /// How often each variant of a flag was served, in the order of their names.
    pub fn exposures_of<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = (&'a str, &'a Exposure)> {
        let from = Variant { flag: flag.to_owned(), variant: String::new() };
        let rest = self.exposures.range(from..).take_while(move |(variant, _)| variant.flag == flag);
        rest.map(|(variant, exposure)| (variant.variant.as_str(), exposure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_are_bounded() {
        let variant = |flag: &str, variant: &str| Variant { flag: flag.into(), variant: variant.into() };
        let mut books = FlagBooks::default();
        books.count(&[(variant("a", "on"), 2), (variant("ab", "on"), 7)], Timestamp(5));
        let changed = books.count(&[(variant("a", "on"), 3), (variant("a", "off"), 1)], Timestamp(9));
        let on = Exposure { count: 5, first_at: Timestamp(5), last_at: Timestamp(9) };
        assert_eq!(changed[0], (variant("a", "on"), on));
        let of_a: Vec<(&str, i64)> = books.exposures_of("a").map(|(name, exposure)| (name, exposure.count)).collect();
        assert_eq!(of_a, [("off", 1), ("on", 5)]);
        let many: Vec<(Variant, i64)> = (0..EXPOSURES_MAX).map(|n| (variant("many", &n.to_string()), 1)).collect();
        assert_eq!(books.count(&many, Timestamp(9)).len(), EXPOSURES_MAX - 3);
        assert_eq!(books.count(&[(variant("a", "on"), 1)], Timestamp(9)).len(), 1);
    }
}
