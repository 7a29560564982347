//! How caches find what they keep by the numbers of rows: these are given out here, one after the other, so that nobody can
//! choose them to fall together, and need none of the care that goes into the hash of a name that strangers may choose.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps by room, event, state or tuple number.
pub(in crate::store) type ByRow = BuildHasherDefault<RowHasher>;

/// Hashes one number.
#[derive(Default)]
pub(in crate::store) struct RowHasher(u64);

impl Hasher for RowHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn write_u64(&mut self, number: u64) {
        // Neighbours are to be far apart in the high bits as well as in the low ones: maps look at both.
        let spread = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (spread as u64) ^ ((spread >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_spread_over_a_map() {
        let hash = |number: i64| ByRow::default().hash_one(number);
        for step in [1, 2, 256, 1 << 20, 1 << 38] {
            let hashes: Vec<u64> = (0..4096).map(|n| hash(n * step)).collect();
            let low: HashSet<u64> = hashes.iter().map(|hash| hash % 8192).collect();
            let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert!(low.len() > 2000 && high.len() == 128, "{step}: {} {}", low.len(), high.len());
        }
    }
}
