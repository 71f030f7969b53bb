// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Maps with small integers as keys, looked into at each call.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map from an integer.
pub(crate) type IntMap<K, V> = HashMap<K, V, BuildHasherDefault<IntHasher>>;
/// A set of integers.
pub(crate) type IntSet<K> = HashSet<K, BuildHasherDefault<IntHasher>>;

/// Spreads one integer over 64 bits. The keys (descriptors, thread and file
/// ids) are given out by kernels, not chosen by programs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_i32(&mut self, value: i32) {
        self.write_u64(u64::from(value as u32));
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio; the table takes high and low bits.
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_do_not_meet() {
        let hash = |value: u64| {
            let mut hasher = IntHasher::default();
            hasher.write_u64(value);
            hasher.finish()
        };
        let low: IntSet<u64> = (0..1024).map(|value| hash(value) & 4095).collect();
        assert!(low.len() > 850, "{}", low.len());
        let high: HashSet<u64> = (0..1024).map(|value| hash(value) >> 57).collect();
        assert!(high.len() > 100);
    }
}
