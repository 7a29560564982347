//! A map that forgets: what the caches of this folder are made of.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

/// A map of bounded size that lets go of what was not asked for lately: whenever half of the bytes are new, what has
/// not been touched since it was half full before goes.
pub(in crate::store) struct AgingMap<K, V, S = RandomState> {
    young: HashMap<K, (V, usize), S>,
    old: HashMap<K, (V, usize), S>,
    young_bytes: usize,
    most: usize,
}

impl<K: Eq + Hash, V: Clone, S: BuildHasher + Default> AgingMap<K, V, S> {
    /// `most`: bytes, as the callers of [`AgingMap::put`] estimate them.
    pub(in crate::store) fn new(most: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), young_bytes: 0, most }
    }

    pub(in crate::store) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if let Some((value, _)) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, (value, size)) = self.old.remove_entry(key)?;
        self.put(key, value.clone(), size);
        Some(value)
    }

    pub(in crate::store) fn put(&mut self, key: K, value: V, size: usize) {
        if size > self.most / 2 {
            return;
        }
        if self.young_bytes + size > self.most / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += size;
        if let Some((_, before)) = self.young.insert(key, (value, size)) {
            self.young_bytes -= before;
        }
    }

    pub(in crate::store) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.old.remove(key);
        if let Some((_, size)) = self.young.remove(key) {
            self.young_bytes -= size;
        }
    }

    /// A few of the values, for assertions.
    pub(in crate::store) fn some(&self) -> impl Iterator<Item = &V> {
        self.young.values().take(5).map(|(value, _)| value)
    }

    pub(in crate::store) fn clear(&mut self) {
        self.young = HashMap::default();
        self.old = HashMap::default();
        self.young_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_size_stays_bounded() {
        let mut map: AgingMap<u32, u32> = AgingMap::new(1000);
        for n in 0..1000_u32 {
            map.put(n, n, 10);
            assert_eq!(map.get(&0), Some(0), "at {n}");
            assert!(map.young.len() + map.old.len() <= 101);
        }
        assert_eq!(map.get(&1), None);
        assert_eq!(map.get(&999), Some(999));
        map.remove(&999);
        assert_eq!(map.get(&999), None);
        map.put(5000, 1, 500);
        assert_eq!(map.get(&5000), Some(1), "what is so large took as much to find out");
        map.put(5001, 1, 501);
        assert_eq!(map.get(&5001), None, "too large to be remembered");
        assert_eq!(map.get(&5000), Some(1));
        map.clear();
        assert_eq!((map.get(&0), map.young_bytes), (None, 0));
    }
}
