//! When things happen: cycles, retries, scheduled starts, resynchronizations.
//!
//! Cycles and retries are counted on a monotonic time line, which no change of the wall clock
//! moves: [`Duration`]s since any moment that stays the same while the service runs. What people
//! name by wall time (a start, a window of the day) is a [`Timestamp`]; a clock that jumps makes
//! it come early or late, once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{ReplicationInterval, ReplicationSettings};
use crate::{RelationshipId, Timestamp, UtcOffset};

/// How far ahead replication and resynchronization can be scheduled.
pub const MAX_START_AHEAD: Duration = Duration::from_secs(7 * 24 * 3600);

/// The waits after the first failures in a row, in minutes; later ones are
/// [`LONG_RETRY_MINUTES`].
pub const RETRY_MINUTES: [u64; 5] = [1, 2, 4, 8, 10];

/// After how many failures in a row the waits are long.
pub const SHORT_RETRIES: usize = RETRY_MINUTES.len();

/// The wait after each further failure, in minutes.
pub const LONG_RETRY_MINUTES: u64 = 30;

/// The ticks at which the cycles of one relationship are due: each interval, at a phase of its
/// own, so that many relationships do not begin together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CycleSchedule {
    interval: Duration,
    phase: Duration,
}

/// What follows a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextCycle {
    /// When the next cycle begins.
    pub at: Duration,
    /// How many were due while the last one ran: missed, by the contract's words.
    pub missed: u32,
}

impl CycleSchedule {
    /// The same seed has the same phase, today and after a restart.
    #[must_use]
    pub fn new(interval: ReplicationInterval, seed: u64) -> Self {
        let interval = interval.duration();
        let micros =
            u64::try_from(interval.as_micros()).expect("BUG: the longest interval is an hour");
        Self {
            interval,
            phase: Duration::from_micros(scrambled(seed) % micros),
        }
    }

    /// A seed for a relationship: different for each, and always the same.
    #[must_use]
    pub fn seed(relationship: &RelationshipId) -> u64 {
        relationship
            .as_bytes()
            .chunks_exact(8)
            .map(|half| {
                half.iter()
                    .fold(0, |number, byte| number << 8 | u64::from(*byte))
            })
            .fold(0, |seed, half| scrambled(seed ^ half))
    }

    /// The first tick after `now`.
    #[must_use]
    pub fn next_tick(&self, now: Duration) -> Duration {
        let Some(since_first) = now.checked_sub(self.phase) else {
            return self.phase;
        };
        let past_tick = remainder(since_first, self.interval);
        now.saturating_add(self.interval - past_tick)
    }

    /// When the next cycle begins after one that took from `began` to `ended`. One that was due
    /// meanwhile begins at once; more of them are not made up for.
    #[must_use]
    pub fn after_cycle(&self, began: Duration, ended: Duration) -> NextCycle {
        let missed = self.ticks_to(ended).saturating_sub(self.ticks_to(began));
        let at = if missed == 0 {
            self.next_tick(ended)
        } else {
            ended
        };
        NextCycle {
            at,
            missed: u32::try_from(missed).unwrap_or(u32::MAX),
        }
    }

    /// How many ticks there were up to and with `moment`.
    fn ticks_to(&self, moment: Duration) -> u128 {
        match moment.checked_sub(self.phase) {
            Some(since_first) => since_first.as_nanos() / self.interval.as_nanos() + 1,
            None => 0,
        }
    }
}

fn remainder(span: Duration, of: Duration) -> Duration {
    let nanos = span.as_nanos() % of.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).expect("BUG: the longest interval is an hour"))
}

/// Spreads the bits of a seed, so that seeds close to each other give phases far apart.
fn scrambled(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// How long to wait after failures that time may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Retry {
    /// In a row.
    failures: u32,
}

impl Retry {
    /// Nothing has failed.
    pub const NONE: Self = Self { failures: 0 };

    /// After one more failure.
    #[must_use]
    pub const fn after_failure(self) -> Self {
        Self {
            failures: self.failures.saturating_add(1),
        }
    }

    /// After a success, or when the peer is heard again: what waits may begin at once.
    #[must_use]
    pub const fn after_contact(self) -> Self {
        Self::NONE
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(self) -> u32 {
        self.failures
    }

    /// How long after the last failure to try again; nothing if there was none.
    #[must_use]
    pub fn wait(self) -> Duration {
        let minutes = match usize::try_from(self.failures).unwrap_or(usize::MAX) {
            0 => 0,
            failures => *RETRY_MINUTES
                .get(failures - 1)
                .unwrap_or(&LONG_RETRY_MINUTES),
        };
        Duration::from_secs(minutes * 60)
    }
}

/// When something that an operator asked for begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    Now,
    /// A moment that lies ahead.
    At(Timestamp),
}

/// A start that is too far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a start at {requested} is more than 7 days ahead of {now}: choose an earlier time")]
pub struct StartTooLate {
    pub requested: Timestamp,
    pub now: Timestamp,
}

impl StartAt {
    /// When to begin if `requested`; a time that has passed is now.
    ///
    /// # Errors
    /// It lies more than [`MAX_START_AHEAD`] ahead.
    pub fn requested(requested: Option<Timestamp>, now: Timestamp) -> Result<Self, StartTooLate> {
        match requested {
            None => Ok(Self::Now),
            Some(at) if at <= now => Ok(Self::Now),
            Some(at) if at.since(now) <= MAX_START_AHEAD => Ok(Self::At(at)),
            Some(requested) => Err(StartTooLate { requested, now }),
        }
    }

    /// Whether the time has come.
    #[must_use]
    pub fn is_due(self, now: Timestamp) -> bool {
        match self {
            Self::Now => true,
            Self::At(at) => at <= now,
        }
    }
}

/// When a resynchronization that is needed begins by itself: now, while the window is open, or
/// when it opens next. `None` if an operator has to ask for it. `local` is the offset of now.
#[must_use]
pub fn automatic_resynchronization(
    settings: &ReplicationSettings,
    now: Timestamp,
    local: UtcOffset,
) -> Option<StartAt> {
    if !settings.auto_resynchronize_enabled() {
        return None;
    }
    let opens = settings.auto_resynchronize_window().next_open(now, local);
    Some(if opens == now {
        StartAt::Now
    } else {
        StartAt::At(opens)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::settings::SettingsChange;

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn schedule(interval: u16, seed: u64) -> CycleSchedule {
        CycleSchedule::new(ReplicationInterval::from_seconds(interval).unwrap(), seed)
    }

    #[test]
    fn five_hundred_relationships_are_spread_over_the_interval() {
        let mut per_tenth = [0u32; 10];
        let mut phases = HashSet::new();
        for number in 0..500u128 {
            let id = RelationshipId::from_bytes(number.to_be_bytes());
            let seed = CycleSchedule::seed(&id);
            let phase = schedule(300, seed).phase;
            assert_eq!(phase, schedule(300, CycleSchedule::seed(&id)).phase);
            assert!(phase < Duration::from_secs(300));
            per_tenth[usize::try_from(phase.as_secs() / 30).unwrap()] += 1;
            phases.insert(phase);
        }
        assert!(
            per_tenth.iter().all(|&count| (20..=80).contains(&count)),
            "{per_tenth:?}"
        );
        assert!(phases.len() > 490, "{}", phases.len());
    }

    #[test]
    fn a_cycle_that_ends_in_time_is_followed_at_the_next_tick() {
        let schedule = schedule(30, 1);
        let tick = schedule.next_tick(Duration::from_secs(100));
        let next = schedule.after_cycle(tick, tick + Duration::from_secs(29));
        assert_eq!(
            next,
            NextCycle {
                at: tick + Duration::from_secs(30),
                missed: 0
            }
        );
    }

    #[test]
    fn a_cycle_that_outlasts_its_interval_is_followed_at_once() {
        let schedule = schedule(30, 1);
        let tick = schedule.next_tick(Duration::from_secs(100));
        let ended = tick + Duration::from_secs(95);
        let next = schedule.after_cycle(tick, ended);
        assert_eq!(
            next,
            NextCycle {
                at: ended,
                missed: 3
            }
        );
        // The late one that ends in time gets the schedule back into step.
        let next = schedule.after_cycle(ended, ended + Duration::from_secs(10));
        assert_eq!(
            next,
            NextCycle {
                at: tick + Duration::from_secs(120),
                missed: 0
            }
        );
    }

    #[test]
    fn waits_grow_to_ten_minutes_and_then_are_thirty() {
        let mut retry = Retry::NONE;
        let mut minutes = Vec::new();
        for _ in 0..8 {
            retry = retry.after_failure();
            minutes.push(retry.wait().as_secs() / 60);
        }
        assert_eq!(minutes, [1, 2, 4, 8, 10, 30, 30, 30]);
        assert_eq!(retry.failures(), 8);
    }

    #[test]
    fn a_peer_that_is_back_is_tried_at_once() {
        let retry = Retry::NONE.after_failure().after_failure().after_contact();
        assert_eq!(retry.wait(), Duration::ZERO);
        assert_eq!(retry.after_failure().wait(), Duration::from_secs(60));
    }

    #[test]
    fn failures_in_a_row_survive_a_restart_and_never_overflow() {
        let saved: Retry = serde_json::from_str(&u32::MAX.to_string()).unwrap();
        assert_eq!(saved.after_failure().wait(), Duration::from_secs(30 * 60));
        assert_eq!(
            serde_json::to_string(&Retry::NONE.after_failure()).unwrap(),
            "1"
        );
    }

    #[test]
    fn a_start_lies_at_most_seven_days_ahead() {
        let now = seconds(1_000_000);
        let start = |at: u64| StartAt::requested(Some(seconds(at)), now);
        assert_eq!(StartAt::requested(None, now), Ok(StartAt::Now));
        assert_eq!(start(999_999), Ok(StartAt::Now));
        assert_eq!(start(1_000_001), Ok(StartAt::At(seconds(1_000_001))));
        assert_eq!(start(1_604_800), Ok(StartAt::At(seconds(1_604_800))));
        let error = start(1_604_801).unwrap_err();
        assert!(
            error.to_string().contains("1970-01-19T13:46:41Z"),
            "{error}"
        );
    }

    #[test]
    fn a_scheduled_start_is_due_from_its_moment_on() {
        let start = StartAt::At(seconds(10));
        assert!(
            !start.is_due(seconds(9)) && start.is_due(seconds(10)) && start.is_due(seconds(11))
        );
        assert!(StartAt::Now.is_due(seconds(0)));
    }

    #[test]
    fn a_resynchronization_waits_for_the_window_by_local_time() {
        let settings = |enabled: bool| {
            ReplicationSettings::new(SettingsChange {
                recovery_connection_point: Some("replica".to_owned()),
                recovery_server_port_number: Some(443),
                auto_resynchronize_enabled: Some(enabled),
                ..SettingsChange::default()
            })
            .unwrap()
        };
        let noon = seconds(12 * 3600);
        let begins = |enabled, minutes| {
            let local = UtcOffset::from_minutes(minutes).unwrap();
            automatic_resynchronization(&settings(enabled), noon, local)
        };
        assert_eq!(begins(false, 0), None);
        assert_eq!(
            begins(true, 0),
            Some(StartAt::At(seconds(18 * 3600 + 1800)))
        );
        assert_eq!(begins(true, 420), Some(StartAt::Now), "19:00 there");
        assert_eq!(begins(true, -390), Some(StartAt::Now), "05:30 there");
        assert_eq!(
            begins(true, -300),
            Some(StartAt::At(seconds(23 * 3600 + 1800))),
            "07:00 there"
        );
    }

    proptest! {
        /// The oracle steps from tick to tick.
        #[test]
        fn ticks_come_once_in_each_interval(
            interval in 5..=3600u16,
            seed: u64,
            began in 0..200_000u64,
            took in 0..30_000u64,
        ) {
            let schedule = schedule(interval, seed);
            let (began, ended) = (Duration::from_secs(began), Duration::from_secs(began + took));
            let mut tick = schedule.phase;
            let mut missed = 0;
            while tick <= ended {
                if tick > began {
                    missed += 1;
                }
                tick += schedule.interval;
            }
            prop_assert_eq!(schedule.next_tick(ended), tick);
            let at = if missed == 0 { tick } else { ended };
            prop_assert_eq!(schedule.after_cycle(began, ended), NextCycle { at, missed });
        }

        #[test]
        fn no_time_line_overflows_a_schedule(interval in 5..=3600u16, seed: u64, began: u64, ended: u64) {
            let schedule = schedule(interval, seed);
            let (began, ended) = (Duration::from_secs(began), Duration::from_secs(ended));
            let next = schedule.after_cycle(began, ended);
            prop_assert!(next.at >= ended.min(schedule.next_tick(ended)));
            let _ = schedule.next_tick(Duration::MAX);
        }
    }
}
