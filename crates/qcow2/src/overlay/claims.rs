//! Clusters of the guest's disk whose mapping is being changed.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The clusters that somebody is changing now.
#[derive(Debug, Default)]
pub(super) struct Claims {
    clusters: Mutex<HashSet<u64>>,
    released: Condvar,
}

/// The right to change the mapping of one cluster, until dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    cluster: u64,
}

impl Claims {
    /// Waits until nobody else changes the cluster. One claim at a time per thread.
    pub fn claim(&self, cluster: u64) -> Claim<'_> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clusters = self
            .released
            .wait_while(clusters, |clusters| clusters.contains(&cluster))
            .unwrap_or_else(PoisonError::into_inner);
        clusters.insert(cluster);
        Claim {
            claims: self,
            cluster,
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut clusters = self
            .claims
            .clusters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&self.cluster);
        self.claims.released.notify_all();
    }
}
