//! So many at once in all, and so many of each kind.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what is going on, by key. Holds no key that has nothing going on.
#[derive(Debug)]
pub(crate) struct Quota<K: Eq + Hash + Clone> {
    counts: Arc<Mutex<Counts<K>>>,
    in_all: usize,
    each: usize,
}

#[derive(Debug)]
struct Counts<K> {
    in_all: usize,
    each: HashMap<K, usize>,
}

/// One of those that are counted, as long as it is not dropped.
#[derive(Debug)]
pub(crate) struct Ticket<K: Eq + Hash + Clone> {
    counts: Arc<Mutex<Counts<K>>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    pub(crate) fn new(in_all: usize, each: usize) -> Self {
        Self {
            counts: Arc::new(Mutex::new(Counts {
                in_all: 0,
                each: HashMap::new(),
            })),
            in_all,
            each,
        }
    }

    /// Counts one more, if there may be one more.
    pub(crate) fn take(&self, key: &K) -> Option<Ticket<K>> {
        let mut counts = lock(&self.counts);
        let present = counts.each.get(key).copied().unwrap_or(0);
        if counts.in_all >= self.in_all || present >= self.each {
            return None;
        }
        counts.in_all += 1;
        counts.each.insert(key.clone(), present + 1);
        Some(Ticket {
            counts: Arc::clone(&self.counts),
            key: key.clone(),
        })
    }
}

impl<K: Eq + Hash + Clone> Drop for Ticket<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.in_all = counts.in_all.saturating_sub(1);
        match counts.each.get_mut(&self.key) {
            Some(present) if *present > 1 => *present -= 1,
            Some(_) => {
                counts.each.remove(&self.key);
            }
            None => {}
        }
    }
}

fn lock<K>(counts: &Mutex<Counts<K>>) -> MutexGuard<'_, Counts<K>> {
    // Nothing panics while it holds the lock.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_takes_more_than_its_part_and_all_keys_no_more_than_all() {
        let quota = Quota::new(3, 2);
        let first = quota.take(&"a").unwrap();
        let second = quota.take(&"a").unwrap();
        assert!(quota.take(&"a").is_none());
        let third = quota.take(&"b").unwrap();
        assert!(quota.take(&"b").is_none());
        assert!(quota.take(&"c").is_none());
        drop(first);
        let fourth = quota.take(&"c").unwrap();
        assert!(quota.take(&"a").is_none());
        drop((second, third, fourth));
        assert!(lock(&quota.counts).each.is_empty());
        assert_eq!(lock(&quota.counts).in_all, 0);
    }
}
