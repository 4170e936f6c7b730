//! What a relationship did within one monitoring cycle (`Msvm_ReplicationStatistics`).
//!
//! Counters only grow within a cycle and stop at their largest value. They are saved as they are;
//! a restart of the service goes on with what was saved. What has happened since the last save is
//! lost in a crash, never counted twice.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::service_settings::ReplicationServiceSettings;
use crate::{TimeOfDay, Timestamp};

const MICROS_OF_SECOND: u64 = 1_000_000;

/// When monitoring cycles begin and end: at a time of day in UTC, and at every multiple of the
/// interval from there, counted through from the first of these moments after the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonitoringCycle {
    /// The first boundary after the epoch, in microseconds.
    first: u64,
    /// Microseconds; never zero.
    interval: u64,
}

impl MonitoringCycle {
    #[must_use]
    pub fn of(settings: &ReplicationServiceSettings) -> Self {
        Self::new(
            settings.monitoring_start_time(),
            settings.monitoring_interval(),
        )
    }

    fn new(start: TimeOfDay, interval_seconds: u32) -> Self {
        assert!(interval_seconds > 0, "BUG: monitoring cycles of no length");
        let interval = u64::from(interval_seconds) * MICROS_OF_SECOND;
        let first = u64::from(start.seconds()) * MICROS_OF_SECOND % interval;
        Self { first, interval }
    }

    /// The last boundary at or before `now`; the epoch if there is none.
    #[must_use]
    pub fn begin(&self, now: Timestamp) -> Timestamp {
        let Some(since_first) = now.as_micros().checked_sub(self.first) else {
            return Timestamp::from_micros(0);
        };
        Timestamp::from_micros(now.as_micros() - since_first % self.interval)
    }

    /// The first boundary after `now`.
    #[must_use]
    pub fn end(&self, now: Timestamp) -> Timestamp {
        match now.as_micros().checked_sub(self.first) {
            Some(since_first) => now.after(Duration::from_micros(
                self.interval - since_first % self.interval,
            )),
            None => Timestamp::from_micros(self.first),
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_micros(self.interval)
    }
}

/// The counters of one relationship on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationStatistics {
    start: Timestamp,
    end: Timestamp,
    /// When an operator has reset them last, within this cycle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reset_at: Option<Timestamp>,
    success_count: u32,
    miss_count: u32,
    network_failure_count: u32,
    replication_failure_count: u32,
    application_consistent_failure_count: u32,
    /// Bytes.
    size: u64,
    max_size: u64,
    /// Microseconds.
    latency: u64,
    max_latency: u64,
    /// Bytes not yet sent; a level and no counter.
    pending_size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_test_failover: Option<Timestamp>,
}

/// Statistics after a look at the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Rolled {
    /// The cycle goes on.
    Same(ReplicationStatistics),
    /// The cycle has ended: `finished` is to be reported, `current` begins with zeroes.
    Next {
        finished: ReplicationStatistics,
        current: ReplicationStatistics,
    },
}

impl ReplicationStatistics {
    /// Statistics that begin now and end with the monitoring cycle that is under way: the first
    /// cycle of a relationship is a short one.
    #[must_use]
    pub fn begin(now: Timestamp, cycle: &MonitoringCycle) -> Self {
        Self {
            start: now,
            end: cycle.end(now),
            reset_at: None,
            success_count: 0,
            miss_count: 0,
            network_failure_count: 0,
            replication_failure_count: 0,
            application_consistent_failure_count: 0,
            size: 0,
            max_size: 0,
            latency: 0,
            max_latency: 0,
            pending_size: 0,
            last_test_failover: None,
        }
    }

    /// Begins anew if the monitoring cycle has ended, or if the clock stands before its start by
    /// more than a whole cycle: then it was wrong, and would be until it gets there again.
    pub fn roll(self, now: Timestamp, cycle: &MonitoringCycle) -> Rolled {
        let clock_went_back = self.start.since(now) > cycle.interval();
        if now < self.end && !clock_went_back {
            return Rolled::Same(self);
        }
        // Cycles during which the service did not run have no statistics.
        let start = if clock_went_back {
            now
        } else {
            self.end.max(cycle.begin(now))
        };
        let current = self.begin_again(start, cycle);
        Rolled::Next {
            finished: self,
            current,
        }
    }

    /// All counters at zero, as an operator asks for; levels and the last test stay.
    #[must_use]
    pub fn reset(&self, now: Timestamp, cycle: &MonitoringCycle) -> Self {
        Self {
            reset_at: Some(now),
            ..self.begin_again(now, cycle)
        }
    }

    fn begin_again(&self, start: Timestamp, cycle: &MonitoringCycle) -> Self {
        Self {
            pending_size: self.pending_size,
            last_test_failover: self.last_test_failover,
            ..Self::begin(start, cycle)
        }
    }

    /// A replication of so many bytes went through, and its transfer took so long.
    pub fn succeeded(&mut self, bytes: u64, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.success_count = self.success_count.saturating_add(1);
        self.size = self.size.saturating_add(bytes);
        self.max_size = self.max_size.max(bytes);
        self.latency = self.latency.saturating_add(micros);
        self.max_latency = self.max_latency.max(micros);
    }

    /// So many cycles did not begin when they were due.
    pub fn missed(&mut self, cycles: u32) {
        self.miss_count = self.miss_count.saturating_add(cycles);
    }

    /// The peer could not be reached, or was lost in the middle.
    pub fn network_failed(&mut self) {
        self.network_failure_count = self.network_failure_count.saturating_add(1);
    }

    /// A replication failed for another reason than the network.
    pub fn replication_failed(&mut self) {
        self.replication_failure_count = self.replication_failure_count.saturating_add(1);
    }

    /// The guest could not be quiesced; the moment is crash-consistent.
    pub fn application_consistency_failed(&mut self) {
        self.application_consistent_failure_count =
            self.application_consistent_failure_count.saturating_add(1);
    }

    /// So many bytes wait to be sent.
    pub fn pending(&mut self, bytes: u64) {
        self.pending_size = bytes;
    }

    /// A test failover was started.
    pub fn tested(&mut self, now: Timestamp) {
        self.last_test_failover = Some(now);
    }

    #[must_use]
    pub const fn start(&self) -> Timestamp {
        self.start
    }

    /// When the monitoring cycle ends.
    #[must_use]
    pub const fn end(&self) -> Timestamp {
        self.end
    }

    /// When an operator has reset the statistics within this cycle.
    #[must_use]
    pub const fn reset_at(&self) -> Option<Timestamp> {
        self.reset_at
    }

    #[must_use]
    pub const fn success_count(&self) -> u32 {
        self.success_count
    }

    #[must_use]
    pub const fn miss_count(&self) -> u32 {
        self.miss_count
    }

    #[must_use]
    pub const fn network_failure_count(&self) -> u32 {
        self.network_failure_count
    }

    #[must_use]
    pub const fn replication_failure_count(&self) -> u32 {
        self.replication_failure_count
    }

    #[must_use]
    pub const fn application_consistent_failure_count(&self) -> u32 {
        self.application_consistent_failure_count
    }

    /// Bytes sent, in all.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the largest replication.
    #[must_use]
    pub const fn max_size(&self) -> u64 {
        self.max_size
    }

    /// The time that all transfers took.
    #[must_use]
    pub const fn latency(&self) -> Duration {
        Duration::from_micros(self.latency)
    }

    /// The time that the longest transfer took.
    #[must_use]
    pub const fn max_latency(&self) -> Duration {
        Duration::from_micros(self.max_latency)
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub const fn pending_size(&self) -> u64 {
        self.pending_size
    }

    #[must_use]
    pub const fn last_test_failover(&self) -> Option<Timestamp> {
        self.last_test_failover
    }

    /// Bytes per successful replication; `None` before the first.
    #[must_use]
    pub fn average_size(&self) -> Option<u64> {
        self.size.checked_div(u64::from(self.success_count))
    }

    /// Time per successful transfer; `None` before the first.
    #[must_use]
    pub fn average_latency(&self) -> Option<Duration> {
        self.latency
            .checked_div(u64::from(self.success_count))
            .map(Duration::from_micros)
    }

    /// Cycles that were due: those that went through and those that were missed.
    #[must_use]
    pub const fn cycles_due(&self) -> u64 {
        self.success_count as u64 + self.miss_count as u64
    }

    /// Whether more than so many in a hundred of the cycles due were missed.
    #[must_use]
    pub const fn missed_more_than(&self, percent: u8) -> bool {
        self.miss_count as u64 * 100 > self.cycles_due() * percent as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::day::SECONDS_OF_DAY;

    const HOUR: u64 = 3600;
    /// 2026-11-25T00:00:00Z.
    const DAY: u64 = 1_795_564_800;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * MICROS_OF_SECOND)
    }

    fn cycle(start: &str, interval: u64) -> MonitoringCycle {
        MonitoringCycle::new(start.parse().unwrap(), u32::try_from(interval).unwrap())
    }

    fn rolled(
        statistics: ReplicationStatistics,
        now: Timestamp,
        cycle: &MonitoringCycle,
    ) -> (ReplicationStatistics, ReplicationStatistics) {
        match statistics.roll(now, cycle) {
            Rolled::Next { finished, current } => (finished, current),
            Rolled::Same(same) => panic!("the cycle goes on: {same:?}"),
        }
    }

    #[test]
    fn a_vm_enabled_at_14_is_measured_to_18_and_then_to_6() {
        let cycle = cycle("06:00", 12 * HOUR);
        let first = ReplicationStatistics::begin(at(DAY + 14 * HOUR), &cycle);
        assert_eq!(
            (first.start(), first.end()),
            (at(DAY + 14 * HOUR), at(DAY + 18 * HOUR))
        );
        let (finished, second) = rolled(first.clone(), at(DAY + 18 * HOUR), &cycle);
        assert_eq!(finished, first);
        assert_eq!(
            (second.start(), second.end()),
            (at(DAY + 18 * HOUR), at(DAY + 30 * HOUR))
        );
    }

    #[test]
    fn a_cycle_goes_on_until_its_very_end() {
        let cycle = cycle("06:00", 12 * HOUR);
        let mut statistics = ReplicationStatistics::begin(at(DAY + 14 * HOUR), &cycle);
        statistics.succeeded(10, Duration::from_secs(1));
        let before_end = Timestamp::from_micros(at(DAY + 18 * HOUR).as_micros() - 1);
        assert_eq!(
            statistics.clone().roll(before_end, &cycle),
            Rolled::Same(statistics)
        );
    }

    #[test]
    fn cycles_that_passed_while_the_service_was_down_are_skipped() {
        let cycle = cycle("06:00", 12 * HOUR);
        let first = ReplicationStatistics::begin(at(DAY + 14 * HOUR), &cycle);
        let (_, current) = rolled(first, at(DAY + 103 * HOUR), &cycle);
        assert_eq!(
            (current.start(), current.end()),
            (at(DAY + 102 * HOUR), at(DAY + 114 * HOUR))
        );
    }

    #[test]
    fn a_clock_that_was_far_ahead_does_not_stop_statistics() {
        let cycle = cycle("06:00", 12 * HOUR);
        let ahead = ReplicationStatistics::begin(at(DAY + 10_000 * HOUR), &cycle);
        let (_, current) = rolled(ahead, at(DAY + 7 * HOUR), &cycle);
        assert_eq!(
            (current.start(), current.end()),
            (at(DAY + 7 * HOUR), at(DAY + 18 * HOUR))
        );
        let a_little = ReplicationStatistics::begin(at(DAY + 8 * HOUR), &cycle);
        assert!(matches!(
            a_little.roll(at(DAY + 7 * HOUR), &cycle),
            Rolled::Same(_)
        ));
    }

    #[test]
    fn averages_are_totals_by_successes() {
        let cycle = cycle("00:00", 12 * HOUR);
        let mut statistics = ReplicationStatistics::begin(at(DAY), &cycle);
        assert_eq!(
            (statistics.average_size(), statistics.average_latency()),
            (None, None)
        );
        statistics.succeeded(100, Duration::from_millis(1500));
        statistics.succeeded(300, Duration::from_millis(500));
        statistics.network_failed();
        assert_eq!(statistics.average_size(), Some(200));
        assert_eq!(statistics.average_latency(), Some(Duration::from_secs(1)));
        assert_eq!(statistics.max_size(), 300);
        assert_eq!(statistics.max_latency(), Duration::from_millis(1500));
        assert_eq!(statistics.latency(), Duration::from_secs(2));
        assert_eq!((statistics.success_count(), statistics.size()), (2, 400));
    }

    #[test]
    fn one_in_five_missed_is_not_more_than_twenty_percent() {
        let cycle = cycle("00:00", 12 * HOUR);
        let with = |success: u32, missed: u32| {
            let mut statistics = ReplicationStatistics::begin(at(DAY), &cycle);
            for _ in 0..success {
                statistics.succeeded(1, Duration::ZERO);
            }
            statistics.missed(missed);
            statistics.missed_more_than(20)
        };
        assert!(!with(0, 0));
        assert!(!with(4, 1));
        assert!(with(399, 100));
        assert!(!with(400, 100));
        assert!(with(0, 1));
    }

    #[test]
    fn a_reset_clears_counters_and_keeps_what_is_a_level() {
        let cycle = cycle("06:00", 12 * HOUR);
        let mut statistics = ReplicationStatistics::begin(at(DAY + 7 * HOUR), &cycle);
        statistics.succeeded(5, Duration::from_secs(9));
        statistics.missed(3);
        statistics.replication_failed();
        statistics.application_consistency_failed();
        statistics.pending(77);
        statistics.tested(at(DAY));
        let now = at(DAY + 9 * HOUR);
        let reset = statistics.reset(now, &cycle);
        let mut expected = ReplicationStatistics::begin(now, &cycle);
        expected.pending(77);
        expected.tested(at(DAY));
        expected.reset_at = Some(now);
        assert_eq!(reset, expected);
        assert_eq!(reset.end(), statistics.end());
        let (finished, next) = rolled(reset, statistics.end(), &cycle);
        assert_eq!(finished.reset_at(), Some(now));
        assert_eq!((next.reset_at(), next.pending_size()), (None, 77));
        assert_eq!(next.last_test_failover(), Some(at(DAY)));
    }

    #[test]
    fn counters_stop_at_their_largest_value() {
        let mut statistics = ReplicationStatistics::begin(at(DAY), &cycle("00:00", HOUR));
        statistics.missed(u32::MAX);
        statistics.missed(u32::MAX);
        for _ in 0..3 {
            statistics.succeeded(u64::MAX, Duration::MAX);
        }
        assert_eq!(statistics.miss_count(), u32::MAX);
        assert_eq!(statistics.size(), u64::MAX);
        assert!(statistics.missed_more_than(20));
    }

    #[test]
    fn what_is_saved_is_read_back_and_nothing_else_is() {
        let mut statistics = ReplicationStatistics::begin(at(DAY), &cycle("00:00", HOUR));
        statistics.succeeded(5, Duration::from_micros(7));
        statistics.tested(at(DAY));
        let mut saved = serde_json::to_value(&statistics).unwrap();
        assert_eq!(
            serde_json::from_value::<ReplicationStatistics>(saved.clone()).unwrap(),
            statistics
        );
        saved["success_count"] = (-1).into();
        assert!(serde_json::from_value::<ReplicationStatistics>(saved.clone()).is_err());
        saved["success_count"] = 1.into();
        saved["surplus"] = 1.into();
        assert!(serde_json::from_value::<ReplicationStatistics>(saved).is_err());
    }

    proptest! {
        /// The oracle walks from boundary to boundary.
        #[test]
        fn a_moment_lies_in_the_cycle_between_two_boundaries(
            start in 0..SECONDS_OF_DAY,
            interval in 3600..=604_800u64,
            now in 0..20_000_000u64,
        ) {
            let cycle = MonitoringCycle::new(
                TimeOfDay::from_seconds(start).unwrap(),
                u32::try_from(interval).unwrap(),
            );
            let mut boundary = u64::from(start);
            while boundary >= interval {
                boundary -= interval;
            }
            let mut before = 0;
            while boundary <= now {
                before = boundary;
                boundary += interval;
            }
            prop_assert_eq!(cycle.begin(at(now)), at(before));
            prop_assert_eq!(cycle.end(at(now)), at(boundary));
        }

        #[test]
        fn no_clock_overflows_a_cycle(saved: u64, now: u64, start in 0..SECONDS_OF_DAY) {
            let cycle = MonitoringCycle::new(TimeOfDay::from_seconds(start).unwrap(), 604_800);
            let statistics = ReplicationStatistics::begin(Timestamp::from_micros(saved), &cycle);
            let now = Timestamp::from_micros(now);
            match statistics.roll(now, &cycle) {
                Rolled::Same(same) => prop_assert!(now < same.end()),
                Rolled::Next { current, .. } => {
                    prop_assert!(current.start() <= now);
                    prop_assert!(now < current.end() || current.end().as_micros() == u64::MAX);
                }
            }
        }
    }
}
