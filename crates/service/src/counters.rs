//! What is counted of a relationship, for statistics and health.

use std::time::Duration;

use lifeboat_model::statistics::{MonitoringCycle, ReplicationStatistics, Rolled};

use crate::service::{Service, with_causes};
use crate::vm::Vm;

impl Service {
    /// Changes the statistics of the running monitoring cycle, and saves them.
    fn count(&self, vm: &Vm, change: impl FnOnce(&mut ReplicationStatistics)) {
        let now = self.now();
        let cycle = MonitoringCycle::of(&self.service_settings());
        let mut core = vm.core();
        let Some(relation) = core.relation() else {
            return;
        };
        let relationship = relation.record().relationship;
        let known = core.statistics.take();
        let rolled = match known {
            Some(statistics) => statistics.roll(now, &cycle),
            None => Rolled::Same(ReplicationStatistics::begin(now, &cycle)),
        };
        let (mut statistics, finished) = match rolled {
            Rolled::Same(statistics) => (statistics, None),
            Rolled::Next { finished, current } => (current, Some(finished)),
        };
        change(&mut statistics);
        let saved = match &finished {
            Some(finished) => self
                .inner
                .ledger
                .end_cycle(relationship, finished, &statistics, now),
            None => self
                .inner
                .ledger
                .save_statistics(relationship, &statistics, now),
        };
        if let Err(error) = saved {
            tracing::warn!(vm = %vm.id, "save statistics: {}", with_causes(&error));
        }
        core.statistics = Some(statistics);
    }

    pub(crate) fn count_success(&self, vm: &Vm, bytes: u64, took: Duration) {
        let pending = self.inner.hypervisor.dirty_bytes(vm.id).unwrap_or(0);
        self.count(vm, |statistics| {
            statistics.succeeded(bytes, took);
            statistics.pending(pending);
        });
    }

    pub(crate) fn count_received(&self, vm: &Vm, bytes: u64) {
        self.count(vm, |statistics| statistics.succeeded(bytes, Duration::ZERO));
    }

    pub(crate) fn count_copied(&self, vm: &Vm, bytes: u64) {
        tracing::trace!(vm = %vm.id, bytes, "a piece is copied");
    }

    pub(crate) fn count_failure(&self, vm: &Vm) {
        self.count(vm, ReplicationStatistics::replication_failed);
    }

    pub(crate) fn count_network_failure(&self, vm: &Vm) {
        self.count(vm, ReplicationStatistics::network_failed);
    }

    pub(crate) fn count_missed(&self, vm: &Vm, cycles: u32) {
        self.count(vm, |statistics| statistics.missed(cycles));
    }

    pub(crate) fn count_test(&self, vm: &Vm) {
        let now = self.now();
        self.count(vm, |statistics| statistics.tested(now));
    }

    pub(crate) fn reset_counters(&self, vm: &Vm) {
        let now = self.now();
        let cycle = MonitoringCycle::of(&self.service_settings());
        self.count(vm, |statistics| *statistics = statistics.reset(now, &cycle));
    }

    /// The statistics as they are now.
    pub(crate) fn statistics_of(&self, vm: &Vm) -> ReplicationStatistics {
        let cycle = MonitoringCycle::of(&self.service_settings());
        let now = self.now();
        match vm
            .core()
            .statistics
            .clone()
            .map(|known| known.roll(now, &cycle))
        {
            Some(
                Rolled::Same(statistics)
                | Rolled::Next {
                    current: statistics,
                    ..
                },
            ) => statistics,
            None => ReplicationStatistics::begin(now, &cycle),
        }
    }
}
