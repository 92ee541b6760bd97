//! A sorted map that is cheap to copy and cheap to change a copy of.
//!
//! Entries stand on leaves of bounded length, and a copy shares them all. A change copies the one leaf that it touches,
//! so a commit that changes one person among a hundred thousand costs some microseconds, and readers keep the books they
//! have. Because it is sorted, a page, a prefix and everything of one owner are ranges.

use std::cmp::Ordering;
use std::sync::Arc;

/// Entries of one leaf; a full one is cut in two.
const LEAF_MAX: usize = 128;

/// Entries sorted by key, shared between copies.
#[derive(Debug, Clone)]
pub struct Shelf<K, V> {
    /// Never an empty one.
    leaves: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Shelf<K, V> {
        Shelf { leaves: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Shelf<K, V> {
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(|known| known.cmp(key))
    }

    /// The value whose key is what is sought; `order` says how a key compares with that, without making a key of it.
    #[must_use]
    pub fn find(&self, order: impl Fn(&K) -> Ordering) -> Option<&V> {
        let (_, value) = self.from(|key| order(key) == Ordering::Less).next().filter(|(key, _)| order(key).is_eq())?;
        Some(value)
    }

    /// Every entry from the first on whose key is not before the start, in order.
    pub fn from(&self, is_before: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &V)> {
        // The last leaf that begins before the start may hold it; every later leaf is behind it.
        let behind = self.leaves.partition_point(|leaf| leaf.first().is_some_and(|(key, _)| is_before(key)));
        let first = behind.saturating_sub(1);
        let skipped = self.leaves.get(first).map_or(0, |leaf| leaf.partition_point(|(key, _)| is_before(key)));
        let rest = self.leaves.get(first..).unwrap_or_default();
        rest.iter().flat_map(|leaf| leaf.iter()).skip(skipped).map(|(key, value)| (key, value))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.from(|_| false)
    }

    /// Puts an entry; answers what stood there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.leaf_of(&key);
        let Some(leaf) = self.leaves.get_mut(at) else {
            self.leaves.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let leaf = Arc::make_mut(leaf);
        match leaf.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(found) => leaf.get_mut(found).map(|(_, old)| std::mem::replace(old, value)),
            Err(place) => {
                self.len += 1;
                if leaf.len() < LEAF_MAX {
                    leaf.insert(place, (key, value));
                    return None;
                }
                // What grows at its end, as ids do, leaves full leaves behind.
                let cut = if place == LEAF_MAX { LEAF_MAX } else { LEAF_MAX / 2 };
                let mut upper = leaf.split_off(cut);
                if place < cut {
                    leaf.insert(place, (key, value));
                } else {
                    upper.insert(place - cut, (key, value));
                }
                self.leaves.insert(at + 1, Arc::new(upper));
                None
            }
        }
    }

    /// Takes an entry away; answers what stood there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.leaf_of(key);
        let leaf = self.leaves.get_mut(at)?;
        let found = leaf.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        let (_, value) = Arc::make_mut(leaf).remove(found);
        self.len -= 1;
        if leaf.is_empty() {
            self.leaves.remove(at);
        }
        Some(value)
    }

    /// The leaf on which the key stands, or would.
    fn leaf_of(&self, key: &K) -> usize {
        let behind = self.leaves.partition_point(|leaf| leaf.first().is_some_and(|(first, _)| first <= key));
        behind.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u16..2_000, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            1 => (0_u16..2_000).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// It is the map of the standard library, and a copy made on the way stays as it was.
        #[test]
        fn a_shelf_is_a_sorted_map(steps in proptest::collection::vec(step(), 0..3_000), start in 0_u16..2_100) {
            let (mut shelf, mut map) = (Shelf::default(), BTreeMap::new());
            let mut kept = None;
            for (at, step) in steps.iter().enumerate() {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(shelf.insert(*key, *value), map.insert(*key, *value)),
                    Step::Remove(key) => prop_assert_eq!(shelf.remove(key), map.remove(key)),
                }
                if at == steps.len() / 2 {
                    kept = Some((shelf.clone(), map.clone()));
                }
            }
            kept.get_or_insert((shelf.clone(), map.clone()));
            for (shelf, map) in [Some((shelf, map)), kept].into_iter().flatten() {
                prop_assert_eq!((shelf.len(), shelf.is_empty()), (map.len(), map.is_empty()));
                prop_assert!(shelf.iter().eq(map.iter()));
                prop_assert!(shelf.from(|key| *key < start).eq(map.range(start..)));
                prop_assert_eq!(shelf.get(&start), map.get(&start));
                prop_assert!(shelf.leaves.iter().all(|leaf| (1..=LEAF_MAX).contains(&leaf.len())));
            }
        }
    }
}
