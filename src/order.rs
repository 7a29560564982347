//! Sorting, and collecting what is kept in order, by code that is compiled once. That of the standard library is faster with
//! thousands of items, and is compiled anew for each type and each place that calls it, at some five kilobytes; it is for what is
//! long or asked for often, and this for everything else.

use std::cmp::Ordering;

/// Into a `BTreeMap` or a `BTreeSet`, one after the other: `collect` would sort them first, with a sort of its own for each place.
pub trait Gather: Iterator + Sized {
    /// What is collected; of two with the same key the later.
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut gathered = C::default();
        gathered.extend(self);
        gathered
    }

    /// The same of what may have failed: the first error, or what is collected.
    fn try_gather<T, E, C: Default + Extend<T>>(mut self) -> Result<C, E>
    where
        Self: Iterator<Item = Result<T, E>>,
    {
        let mut gathered = C::default();
        self.try_for_each(|item| {
            gathered.extend(Some(item?));
            Ok(())
        })?;
        Ok(gathered)
    }
}

impl<I: Iterator> Gather for I {}

/// Sorts by the order of the items themselves.
pub fn sort<T: Ord>(items: &mut Vec<T>) {
    sort_by(items, Ord::cmp);
}

/// Sorts by a comparison. What compares equal stays in its order.
pub fn sort_by<T>(items: &mut Vec<T>, mut compare: impl FnMut(&T, &T) -> Ordering) {
    let order = sorted_places(items.len(), &mut |a, b| compare(&items[a], &items[b]));
    arrange(items, order);
}

/// Sorts by a key, which is asked for at each comparison. What has the same key stays in its order.
pub fn sort_by_key<T, K: Ord>(items: &mut Vec<T>, mut key: impl FnMut(&T) -> K) {
    sort_by(items, |a, b| key(a).cmp(&key(b)));
}

/// Sorts by a key that is worth being made once for each item. What has the same key stays in its order.
pub fn sort_by_cached_key<T, K: Ord>(items: &mut Vec<T>, key: impl FnMut(&T) -> K) {
    let keys: Vec<K> = items.iter().map(key).collect();
    arrange(items, sorted_places(keys.len(), &mut |a, b| keys[a].cmp(&keys[b])));
}

/// The places `0..count`, sorted by what is at them.
fn sorted_places(count: usize, compare: &mut dyn FnMut(usize, usize) -> Ordering) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    places.sort_by(|a, b| compare(*a, *b));
    places
}

/// Brings what is at these places into their order; each place is there once.
fn arrange<T>(items: &mut Vec<T>, order: Vec<usize>) {
    let mut places: Vec<Option<T>> = items.drain(..).map(Some).collect();
    items.extend(order.into_iter().filter_map(|place| places[place].take()));
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Pairs of few different numbers, in no order.
    fn pairs(count: u32) -> Vec<(u32, u32)> {
        (0..count).map(|n| (n * 7919 % 13, n)).collect()
    }

    #[test]
    fn what_is_sorted_is_in_the_order_that_the_standard_library_brings_it_into() {
        for count in [0, 1, 2, 21, 1000] {
            let (mut by_key, mut by, mut cached, mut wanted) =
                (pairs(count), pairs(count), pairs(count), pairs(count));
            sort_by_key(&mut by_key, |pair| std::cmp::Reverse(pair.0));
            sort_by(&mut by, |a, b| b.0.cmp(&a.0));
            let mut asked = 0;
            sort_by_cached_key(&mut cached, |pair| {
                asked += 1;
                std::cmp::Reverse(pair.0)
            });
            wanted.sort_by_key(|pair| std::cmp::Reverse(pair.0));
            assert_eq!([&by_key, &by, &cached], [&wanted; 3], "of {count}");
            assert_eq!(asked, count, "a cached key is made once");
        }
    }

    #[test]
    fn what_is_gathered_is_what_would_be_collected() {
        let gathered: BTreeMap<u32, u32> = pairs(100).into_iter().gather();
        assert_eq!(gathered, pairs(100).into_iter().collect(), "the later of two with the same key");
        let gathered: BTreeSet<u32> = pairs(100).into_iter().map(|pair| pair.0).gather();
        assert_eq!(gathered, pairs(100).into_iter().map(|pair| pair.0).collect());
    }

    #[test]
    fn the_first_error_is_what_comes_of_what_failed() {
        let of = |wrong: &[u32]| -> Result<BTreeSet<u32>, u32> {
            (0..9).map(|n| if wrong.contains(&n) { Err(n) } else { Ok(n) }).try_gather()
        };
        assert_eq!(of(&[]), Ok((0..9).collect()));
        assert_eq!(of(&[7, 4]), Err(4));
    }
}
