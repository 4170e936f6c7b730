//! Which moments become recovery points, and which points go.
//!
//! Retention belongs to the replica. What a primary says of time is not looked at: spacing and
//! age are measured between moments of the replica's own clock, and what the primary asks for
//! never takes away a point that was promised:
//!
//! - A point goes only if as many newer ones exist as are to be kept, it is older than as many
//!   hours as it was promised, older than the floor's hours, and nobody uses it.
//! - Where points come too fast, or nothing may go, new ones are not opened; old ones stay.
//! - A smaller history that is asked later counts for the points opened from then on
//!   ([`HistoryPromises`]).
//! - A clock that jumps ahead makes points old, but the newest ones still stay by count. One that
//!   jumps back makes nothing old, and stops points from being opened for two spacings at most.
//!
//! What a point is, and how one goes, is the store's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contract::PointKind;
use crate::invalid::Findings;
use crate::{InvalidFields, Sequence, Timestamp};

/// As many points as any policy keeps at its spacing.
pub const MAX_STANDARD_POINTS: u64 = 24;

/// As many points as a store may have. A chain of 32 segments is as long as QEMU opens well; two
/// are left for a test failover of the newest moment and for a capture for the next hop.
pub const MAX_POINTS: usize = 30;

/// Over how many of the newest points the pace of standard ones is held. With this many, points of
/// both kinds together are at most a sixth more than the standard ones alone.
const PACED_POINTS: u32 = 6;

/// How many points a relationship keeps beside its latest state, and for how many hours none of
/// them goes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
pub struct RecoveryHistory(u8);

/// A number of points that no relationship keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a recovery history of {points} is not possible: use 0 to {}",
    RecoveryHistory::MAX
)]
pub struct InvalidRecoveryHistory {
    points: u8,
}

impl RecoveryHistory {
    /// Only the latest state.
    pub const NONE: Self = Self(0);

    /// The most points, as the contract has it.
    pub const MAX: u8 = 24;

    /// `None` beyond [`MAX`](Self::MAX).
    #[must_use]
    pub const fn new(points: u8) -> Option<Self> {
        if points <= Self::MAX {
            Some(Self(points))
        } else {
            None
        }
    }

    #[must_use]
    pub const fn points(self) -> u8 {
        self.0
    }

    /// As many hours as points.
    #[must_use]
    pub const fn hours(self) -> Duration {
        Duration::from_secs(self.0 as u64 * 3600)
    }
}

impl TryFrom<u8> for RecoveryHistory {
    type Error = InvalidRecoveryHistory;

    fn try_from(points: u8) -> Result<Self, InvalidRecoveryHistory> {
        Self::new(points).ok_or(InvalidRecoveryHistory { points })
    }
}

impl From<RecoveryHistory> for u8 {
    fn from(history: RecoveryHistory) -> u8 {
        history.0
    }
}

/// What the replica's operator keeps, whatever a primary asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRetentionFloor", into = "UncheckedRetentionFloor")]
pub struct RetentionFloor {
    points: u8,
    hours: u16,
}

/// A [`RetentionFloor`] as people and files give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UncheckedRetentionFloor {
    /// As many of the newest points stay.
    pub points: u64,
    /// No point younger than this goes.
    pub hours: u64,
}

impl RetentionFloor {
    /// Nothing beyond what a primary asks for.
    pub const NONE: Self = Self {
        points: 0,
        hours: 0,
    };

    /// 30 days: with 24 points, one in 30 hours.
    pub const MAX_HOURS: u16 = 720;

    #[must_use]
    pub const fn points(self) -> u8 {
        self.points
    }

    #[must_use]
    pub const fn hours(self) -> Duration {
        Duration::from_secs(self.hours as u64 * 3600)
    }
}

impl UncheckedRetentionFloor {
    /// # Errors
    /// Every field that is out of range.
    pub fn validate(self) -> Result<RetentionFloor, InvalidFields> {
        let mut findings = Findings::default();
        let floor = self.check(&mut findings);
        findings.finish(floor)
    }

    pub(crate) fn check(self, findings: &mut Findings) -> Option<RetentionFloor> {
        let points = findings.number(
            "retention_floor.points",
            self.points,
            0..=u64::from(RecoveryHistory::MAX),
            "points",
        );
        let hours = findings.number(
            "retention_floor.hours",
            self.hours,
            0..=u64::from(RetentionFloor::MAX_HOURS),
            "hours",
        );
        Some(RetentionFloor {
            points: points?,
            hours: hours?,
        })
    }
}

impl TryFrom<UncheckedRetentionFloor> for RetentionFloor {
    type Error = InvalidFields;

    fn try_from(unchecked: UncheckedRetentionFloor) -> Result<Self, InvalidFields> {
        unchecked.validate()
    }
}

impl From<RetentionFloor> for UncheckedRetentionFloor {
    fn from(floor: RetentionFloor) -> Self {
        Self {
            points: floor.points.into(),
            hours: floor.hours.into(),
        }
    }
}

/// What was promised to points that are older than the history asked for now.
///
/// Saved by the replica with the settings; bounded, because each earlier promise that still
/// matters is larger than the next.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    try_from = "Vec<(Sequence, RecoveryHistory)>",
    into = "Vec<(Sequence, RecoveryHistory)>"
)]
pub struct HistoryPromises {
    /// Up to and with this moment, points were opened with this history. Moments ascend,
    /// histories descend.
    earlier: Vec<(Sequence, RecoveryHistory)>,
}

/// A list that no sequence of changes leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("promises of recovery history are out of order: moments must ascend and histories descend")]
pub struct InvalidHistoryPromises;

impl HistoryPromises {
    /// What holds after the history was changed from `old` to `new`, when `newest` was the newest
    /// moment received.
    #[must_use]
    pub fn after_change(
        &self,
        newest: Sequence,
        old: RecoveryHistory,
        new: RecoveryHistory,
    ) -> Self {
        let mut earlier = self.earlier.clone();
        // At the same moment twice, the larger promise is the one that points were opened with.
        let promised = match earlier.last() {
            Some(&(moment, history)) if moment >= newest => {
                earlier.pop();
                (moment, history.max(old))
            }
            Some(_) | None => (newest, old),
        };
        while earlier
            .last()
            .is_some_and(|&(_, history)| history <= promised.1)
        {
            earlier.pop();
        }
        earlier.push(promised);
        // A larger history is a promise to older points too.
        while earlier.last().is_some_and(|&(_, history)| history <= new) {
            earlier.pop();
        }
        Self { earlier }
    }

    /// What the point of that moment was promised, where `current` is asked for now.
    #[must_use]
    pub fn to(&self, point: Sequence, current: RecoveryHistory) -> RecoveryHistory {
        self.earlier
            .iter()
            .find(|(until, _)| point <= *until)
            .map_or(current, |&(_, history)| history.max(current))
    }
}

impl TryFrom<Vec<(Sequence, RecoveryHistory)>> for HistoryPromises {
    type Error = InvalidHistoryPromises;

    fn try_from(earlier: Vec<(Sequence, RecoveryHistory)>) -> Result<Self, InvalidHistoryPromises> {
        let in_order = earlier
            .is_sorted_by(|(moment, history), (next, smaller)| moment < next && history > smaller);
        if in_order {
            Ok(Self { earlier })
        } else {
            Err(InvalidHistoryPromises)
        }
    }
}

impl From<HistoryPromises> for Vec<(Sequence, RecoveryHistory)> {
    fn from(promises: HistoryPromises) -> Self {
        promises.earlier
    }
}

/// A recovery point that the store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExistingPoint {
    pub sequence: Sequence,
    pub kind: PointKind,
    /// By the replica's own clock.
    pub opened_at: Timestamp,
    pub usage: PointUsage,
}

/// Whether a test, an export, a failover or a next hop reads the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointUsage {
    Free,
    InUse,
}

/// Whether an applied moment becomes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointDecision {
    Open,
    /// Neither the settings nor the floor ask for points.
    NoneKept,
    /// The last point of its kind is not old enough.
    TooSoon,
    /// The store has as many points as it may, and none of them may go.
    Full,
}

/// What is kept of one relationship.
#[derive(Debug, Clone)]
pub struct RetentionPolicy {
    pub history: RecoveryHistory,
    /// The time between two standard points.
    pub spacing: Duration,
    pub floor: RetentionFloor,
    pub promises: HistoryPromises,
}

impl RetentionPolicy {
    /// Whether the moment that was applied just now becomes a point of this kind.
    #[must_use]
    pub fn decide(
        &self,
        points: &[ExistingPoint],
        kind: PointKind,
        now: Timestamp,
    ) -> PointDecision {
        if self.count() == 0 {
            return PointDecision::NoneKept;
        }
        let stays = points.len() - self.expired(points, now).len();
        if stays >= MAX_POINTS {
            return PointDecision::Full;
        }
        let due = match kind {
            PointKind::Standard => self.is_standard_due(points, now),
            // The primary chose its time. A tenth less than the least spacing lets a cycle come
            // early; a flood still leaves no more points than fit.
            PointKind::ApplicationConsistent => newest_first(points)
                .find(|point| point.kind == PointKind::ApplicationConsistent)
                .is_none_or(|last| distance(last.opened_at, now) >= self.least_spacing() * 9 / 10),
            PointKind::PlannedFailover => true,
        };
        if due {
            PointDecision::Open
        } else {
            PointDecision::TooSoon
        }
    }

    /// Whether the last point of any kind is old enough, and the last few together are not more
    /// than their time allows: points of other kinds that come between would fill the store.
    fn is_standard_due(&self, points: &[ExistingPoint], now: Timestamp) -> bool {
        let least = self.least_spacing();
        let spaced = newest_first(points)
            .next()
            .is_none_or(|last| distance(last.opened_at, now) >= self.spacing.max(least));
        spaced
            && (1..=PACED_POINTS)
                .zip(newest_first(points))
                .all(|(nth, point)| distance(point.opened_at, now) >= least * nth)
    }

    /// The points that go now, oldest first.
    #[must_use]
    pub fn expired(&self, points: &[ExistingPoint], now: Timestamp) -> Vec<Sequence> {
        let mut expired = Vec::new();
        // A point was opened no later than any newer one, whatever the clock said then.
        let mut opened_by = now;
        for (newer, point) in newest_first(points).enumerate() {
            opened_by = opened_by.min(point.opened_at);
            let promised = self.promises.to(point.sequence, self.history).hours();
            let protected = promised.max(self.floor.hours());
            let is_old = now.since(opened_by) >= protected;
            if newer >= self.count() && is_old && point.usage == PointUsage::Free {
                expired.push(point.sequence);
            }
        }
        expired.reverse();
        expired
    }

    /// How many of the newest points stay whatever their age.
    fn count(&self) -> usize {
        let for_hours = u8::from(self.floor.hours > 0);
        usize::from(self.history.0.max(self.floor.points).max(for_hours))
    }

    /// The spacing at which as many points as may be kept last for as long as they must be.
    fn least_spacing(&self) -> Duration {
        let protected = self.history.hours().max(self.floor.hours());
        Duration::from_secs(protected.as_secs().div_ceil(MAX_STANDARD_POINTS))
    }
}

fn newest_first(points: &[ExistingPoint]) -> impl Iterator<Item = &ExistingPoint> {
    let mut points: Vec<&ExistingPoint> = points.iter().collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.sequence));
    points.into_iter()
}

/// The time between two moments, whichever is first: after a clock has jumped back, a point that
/// seems to lie far ahead is as good as one that lies far behind.
fn distance(one: Timestamp, other: Timestamp) -> Duration {
    one.since(other).max(other.since(one))
}

#[cfg(test)]
mod tests;
