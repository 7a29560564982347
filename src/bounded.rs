//! A map that strangers fill, and that stays bounded: a new entry makes others go, by what they are worth.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Deref;

/// What it costs to forget an entry, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// Nothing: it is over. When the map is full these go first, all of them.
    Nothing,
    /// Little. If too many are left, any half of these go: which ones, nobody who fills the map can tell.
    Little,
    /// More: these go by halves if there are not enough of little worth.
    More,
    /// It is in use, and does not go.
    InUse,
}

/// A map of `MAX` entries at most, unless more are in use.
#[derive(Debug)]
pub struct BoundedMap<K, V, const MAX: usize>(HashMap<K, V>);

impl<K, V, const MAX: usize> Default for BoundedMap<K, V, MAX> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K, V, const MAX: usize> Deref for BoundedMap<K, V, MAX> {
    type Target = HashMap<K, V>;

    fn deref(&self) -> &HashMap<K, V> {
        &self.0
    }
}

impl<K: Eq + Hash, V, const MAX: usize> BoundedMap<K, V, MAX> {
    /// Puts an entry in; if it is a new one for which there is no place, others go by their `worth`.
    pub fn insert(&mut self, key: K, value: V, worth: impl Fn(&V) -> Worth) {
        self.make_place(&key, worth);
        self.0.insert(key, value);
    }

    /// The entry, made if it is not there; if there is no place, others go by their `worth`.
    pub fn get_or_default(&mut self, key: K, worth: impl Fn(&V) -> Worth) -> &mut V
    where
        V: Default,
    {
        self.make_place(&key, worth);
        self.0.entry(key).or_default()
    }

    /// Puts an entry in, unless it is a new one and there is no place. Whether it is in.
    pub fn try_insert(&mut self, key: K, value: V) -> bool {
        let fits = self.0.len() < MAX || self.0.contains_key(&key);
        if fits {
            self.0.insert(key, value);
        }
        fits
    }

    /// The entry, made if it is not there. None if there is no place for a new one.
    pub fn try_get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> Option<&mut V> {
        let fits = self.0.len() < MAX || self.0.contains_key(&key);
        fits.then(|| self.0.entry(key).or_insert_with(new))
    }

    /// The entry, to be changed.
    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    /// Takes the entry out.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    /// Forgets all but these.
    pub fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain(keep);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Goes on until a quarter is free, so that not every new entry has to look at all of them.
    fn make_place(&mut self, key: &K, worth: impl Fn(&V) -> Worth) {
        if self.0.len() < MAX || self.0.contains_key(key) {
            return;
        }
        self.0.retain(|_, value| worth(value) > Worth::Nothing);
        for of in [Worth::Little, Worth::More] {
            while self.0.len() > MAX / 4 * 3 && self.0.values().any(|value| worth(value) == of) {
                let mut keep = true;
                self.0.retain(|_, value| {
                    let may_go = worth(value) == of;
                    keep ^= may_go;
                    keep || !may_go
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_lets_go_of_what_is_worth_least_and_never_of_what_is_in_use() {
        let mut map = BoundedMap::<usize, Worth, 100>::default();
        let put = |map: &mut BoundedMap<usize, Worth, 100>, keys: std::ops::Range<usize>, worth: Worth| {
            keys.for_each(|key| map.insert(key, worth, |worth| *worth));
        };
        let count =
            |map: &BoundedMap<usize, Worth, 100>, of: Worth| map.values().filter(|w| **w == of).count();
        put(&mut map, 0..10, Worth::InUse);
        put(&mut map, 10..20, Worth::More);
        put(&mut map, 20..60, Worth::Little);
        put(&mut map, 60..100, Worth::Nothing);
        put(&mut map, 100..101, Worth::Little);
        let left = [Worth::Nothing, Worth::Little, Worth::More, Worth::InUse].map(|of| count(&map, of));
        assert_eq!(left, [0, 41, 10, 10], "what is over makes place enough");
        put(&mut map, 1000..9000, Worth::Little);
        assert!(map.len() <= 100);
        assert_eq!((count(&map, Worth::More), count(&map, Worth::InUse)), (10, 10));
        put(&mut map, 9000..9500, Worth::More);
        assert!(map.len() <= 100 && count(&map, Worth::InUse) == 10);
        assert!(map.contains_key(&9499), "who is new has a place");
        put(&mut map, 10_000..10_200, Worth::InUse);
        assert_eq!(count(&map, Worth::InUse), 210);
    }

    #[test]
    fn what_is_there_already_makes_nothing_go() {
        let mut map = BoundedMap::<u32, u32, 4>::default();
        (0..4).for_each(|n| map.insert(n, n, |_| Worth::Nothing));
        map.insert(3, 30, |_| Worth::Nothing);
        *map.get_or_default(2, |_| Worth::Nothing) += 1;
        assert_eq!((map.len(), map.get(&3), map.get(&2)), (4, Some(&30), Some(&3)));
    }

    #[test]
    fn a_map_that_refuses_is_full_for_new_entries_only() {
        let mut map = BoundedMap::<u32, u32, 2>::default();
        assert!(map.try_insert(1, 1) && map.try_insert(2, 2) && !map.try_insert(3, 3));
        assert!(map.try_get_or_insert_with(3, || 3).is_none());
        assert_eq!(map.try_get_or_insert_with(2, || 3), Some(&mut 2));
        assert!(map.try_insert(2, 20) && map.remove(&1) == Some(1) && map.try_insert(3, 3));
    }
}
