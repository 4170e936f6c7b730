//! How a relationship is doing, and why (`ReplicationHealth`).
//!
//! Health is derived, never stored: [`assess`] looks at facts and answers with a value and the
//! reasons for it, the worst first. Every reason says what is the case and what to do.
//!
//! Reasons that come from statistics (missed cycles, slow transfers, nothing sent or received for
//! an hour) are counted from when the statistics were last reset, so a reset clears them until
//! they arise anew. All others stay as long as they are true.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::Timestamp;
use crate::contract::{ReplicationHealth, ReplicationMode, ReplicationState};
use crate::statistics::ReplicationStatistics;

/// More than so many cycles in a hundred may not be missed.
pub const MISSED_PERCENT: u8 = 20;
/// Something is sent, or received, more often than this.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(3600);
/// Transfers take no longer than this on average.
pub const LONGEST_AVERAGE_LATENCY: Duration = Duration::from_secs(300);
/// The clocks of two hosts differ by no more than this. Nothing is decided by them, but people
/// read their labels.
pub const LARGEST_CLOCK_DIFFERENCE: Duration = Duration::from_secs(30);
/// A certificate is renewed earlier than this before it expires.
pub const CERTIFICATE_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Less free space than so many percent is worth a warning.
pub const LOW_SPACE_PERCENT: u8 = 10;
/// With less free space than so many percent, deltas will soon be refused.
pub const CRITICAL_SPACE_PERCENT: u8 = 3;

/// Which way a relationship's changes go on this host. A replica that passes its VM on sends in
/// its extended relationship.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Sends,
    Receives,
}

/// What is known of a relationship on one host.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub now: Timestamp,
    pub mode: ReplicationMode,
    pub state: ReplicationState,
    pub direction: Direction,
    pub statistics: &'a ReplicationStatistics,
    /// When something was last sent, or received; absent before the first time.
    pub last_exchange: Option<Timestamp>,
    /// Why nothing can be sent at present, for people; absent when it can.
    pub cannot_send: Option<String>,
    /// Why a failover, its end or a reversal does not come to its end, for people.
    pub unfinished: Option<String>,
    /// Why the state is critical or a resynchronization is needed, for people.
    pub cause: Option<String>,
    pub catalog: Catalog,
    pub verification: Verification,
    /// Of the file system that holds the disks or the replica; absent when it cannot be told.
    pub space: Option<Space>,
    pub reserve: Reserve,
    /// The peer's clock when it was heard last, and this host's at that moment.
    pub clocks: Option<(Timestamp, Timestamp)>,
    /// When this host's certificate expires; absent when it has none.
    pub certificate_expires: Option<Timestamp>,
    pub backlog: Option<Backlog>,
}

/// Whether the host can remember what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catalog {
    Usable,
    /// A write to its catalog failed, and it takes no more.
    Stopped,
}

/// Whether the copy was proved equal since the roles were last swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    Verified,
    /// The comparison of everything has not ended.
    Unverified,
}

/// The space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    pub total: u64,
}

/// The space that is kept for received deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    Held,
    /// So many bytes of it could not be had.
    Missing {
        bytes: u64,
    },
}

/// What applying the received deltas will take, and what it may take at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub estimate: Duration,
    pub limit: Duration,
}

/// One reason why health is not OK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum HealthReason {
    CyclesMissed { missed: u32, due: u64 },
    NothingSent { seconds: u64 },
    NothingReceived { seconds: u64 },
    TransfersSlow { average_seconds: u64 },
    InitialReplicationIncomplete,
    FailedOverWithoutReverse,
    PausedOnPrimary,
    PausedOnReplica,
    CannotSend { cause: String },
    OperationUnfinished { cause: String },
    ResynchronizationRequired { cause: String },
    ResynchronizationRunning,
    ReplicationError { cause: String },
    StateUnknown,
    CatalogStopped,
    Unverified,
    SpaceLow { free: u64, total: u64 },
    SpaceCritical { free: u64, total: u64 },
    ReserveMissing { bytes: u64 },
    ClocksDiffer { seconds: u64 },
    CertificateExpires { at: Timestamp },
    CertificateExpired { at: Timestamp },
    BacklogTooLong { seconds: u64, limit_seconds: u64 },
}

impl HealthReason {
    /// What health it leads to: [`ReplicationHealth::Warning`] or [`ReplicationHealth::Critical`].
    #[must_use]
    pub const fn health(&self) -> ReplicationHealth {
        match self {
            Self::CyclesMissed { .. }
            | Self::NothingSent { .. }
            | Self::NothingReceived { .. }
            | Self::TransfersSlow { .. }
            | Self::InitialReplicationIncomplete
            | Self::FailedOverWithoutReverse
            | Self::PausedOnPrimary
            | Self::ResynchronizationRunning
            | Self::Unverified
            | Self::SpaceLow { .. }
            | Self::ClocksDiffer { .. }
            | Self::CertificateExpires { .. }
            | Self::BacklogTooLong { .. } => ReplicationHealth::Warning,
            Self::PausedOnReplica
            | Self::CannotSend { .. }
            | Self::OperationUnfinished { .. }
            | Self::ResynchronizationRequired { .. }
            | Self::ReplicationError { .. }
            | Self::StateUnknown
            | Self::CatalogStopped
            | Self::SpaceCritical { .. }
            | Self::ReserveMissing { .. }
            | Self::CertificateExpired { .. } => ReplicationHealth::Critical,
        }
    }

    /// A word for the kind of reason, which programs can rely on.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CyclesMissed { .. } => "cycles_missed",
            Self::NothingSent { .. } => "nothing_sent",
            Self::NothingReceived { .. } => "nothing_received",
            Self::TransfersSlow { .. } => "transfers_slow",
            Self::InitialReplicationIncomplete => "initial_replication_incomplete",
            Self::FailedOverWithoutReverse => "failed_over_without_reverse",
            Self::PausedOnPrimary => "paused_on_primary",
            Self::PausedOnReplica => "paused_on_replica",
            Self::CannotSend { .. } => "cannot_send",
            Self::OperationUnfinished { .. } => "operation_unfinished",
            Self::ResynchronizationRequired { .. } => "resynchronization_required",
            Self::ResynchronizationRunning => "resynchronization_running",
            Self::ReplicationError { .. } => "replication_error",
            Self::StateUnknown => "state_unknown",
            Self::CatalogStopped => "catalog_stopped",
            Self::Unverified => "unverified",
            Self::SpaceLow { .. } => "space_low",
            Self::SpaceCritical { .. } => "space_critical",
            Self::ReserveMissing { .. } => "reserve_missing",
            Self::ClocksDiffer { .. } => "clocks_differ",
            Self::CertificateExpires { .. } => "certificate_expires",
            Self::CertificateExpired { .. } => "certificate_expired",
            Self::BacklogTooLong { .. } => "backlog_too_long",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::CyclesMissed { .. } => {
                "Give replication more bandwidth, choose a longer interval, or find out what writes so much. Resetting the statistics clears this."
            }
            Self::NothingSent { .. } => {
                "Look at the state and the last error of the relationship, and test the connection to the replica's host."
            }
            Self::NothingReceived { .. } => {
                "Look at the relationship on the primary's host. If that host is lost, fail over."
            }
            Self::TransfersSlow { .. } => {
                "Raise the bandwidth limit, test the line to the replica's host, or choose a shorter interval. Resetting the statistics clears this."
            }
            Self::InitialReplicationIncomplete => {
                "Start the initial replication, or wait for its end. Until then there is nothing to fail over to."
            }
            Self::FailedOverWithoutReverse => {
                "Check the VM, then commit or revert the failover. After a commit, reverse the replication so that the VM is protected again."
            }
            Self::PausedOnPrimary => {
                "Resume the replication. Changes are tracked meanwhile and will be sent."
            }
            Self::PausedOnReplica => "Resume the replication on this host. It takes no changes.",
            Self::CannotSend { .. } => {
                "Mend what is named. Sending is tried again by itself; resume the replication to try at once."
            }
            Self::OperationUnfinished { .. } => {
                "Do what is named. It is tried again by itself, and nothing is lost meanwhile."
            }
            Self::ResynchronizationRequired { .. } => {
                "Resynchronize now or at a time of little load, or allow automatic resynchronization in a window."
            }
            Self::ResynchronizationRunning => {
                "Wait for its end. Failing over before uses the state from before it."
            }
            Self::ReplicationError { .. } => "Mend what is named, then resume the replication.",
            Self::StateUnknown => {
                "See whether the service runs and can read the folder of the replica."
            }
            Self::CatalogStopped => {
                "Look at the disk that holds the catalog, and at the log of the service. When the disk can be written again, the service goes on by itself within seconds."
            }
            Self::Unverified => {
                "Wait until both sides are compared. If it does not end, start a resynchronization."
            }
            Self::SpaceLow { .. } => {
                "Free space, enlarge the file system, or keep fewer recovery points."
            }
            Self::SpaceCritical { .. } => {
                "Free space or enlarge the file system now: when it is full, changes are refused. Recovery points are not given up for space."
            }
            Self::ReserveMissing { .. } => {
                "Free as much space as is named, or enlarge the file system: without it no changes are received."
            }
            Self::ClocksDiffer { .. } => {
                "Synchronize the clocks of both hosts. Replication does not depend on them, but the times shown do."
            }
            Self::CertificateExpires { .. } => "Renew this host's certificate before that time.",
            Self::CertificateExpired { .. } => {
                "Renew this host's certificate: peers refuse it now."
            }
            Self::BacklogTooLong { .. } => {
                "See why storage is slow. A failover to the newest state takes as long as applying does; the primary is slowed down meanwhile."
            }
        }
    }
}

impl fmt::Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CyclesMissed { missed, due } => write!(
                f,
                "{missed} of {due} replication cycles were missed, more than {MISSED_PERCENT} %"
            ),
            Self::NothingSent { seconds } => {
                write!(f, "nothing was sent for {} minutes", seconds / 60)
            }
            Self::NothingReceived { seconds } => {
                write!(f, "nothing was received for {} minutes", seconds / 60)
            }
            Self::TransfersSlow { average_seconds } => {
                write!(f, "a transfer takes {average_seconds} seconds on average")
            }
            Self::InitialReplicationIncomplete => {
                f.write_str("the initial replication is not complete")
            }
            Self::FailedOverWithoutReverse => {
                f.write_str("the VM is failed over and not protected: replication is not reversed")
            }
            Self::PausedOnPrimary => f.write_str("replication is paused on the primary"),
            Self::PausedOnReplica => f.write_str("replication is paused on the replica"),
            Self::CannotSend { cause } => write!(f, "changes cannot be sent: {cause}"),
            Self::OperationUnfinished { cause } => {
                write!(f, "what was begun does not come to its end: {cause}")
            }
            Self::ResynchronizationRequired { cause } => {
                write!(f, "a resynchronization is required: {cause}")
            }
            Self::ResynchronizationRunning => f.write_str("a resynchronization is running"),
            Self::ReplicationError { cause } => write!(f, "replication has stopped: {cause}"),
            Self::StateUnknown => f.write_str("the state of the replication cannot be told"),
            Self::CatalogStopped => f.write_str(
                "nothing is sent, received or changed here: a write to this host's catalog failed",
            ),
            Self::Unverified => {
                f.write_str("the roles were swapped and the replica is not verified yet")
            }
            Self::SpaceLow { free, total } => {
                write!(
                    f,
                    "{free} of {total} bytes are free, less than {LOW_SPACE_PERCENT} %"
                )
            }
            Self::SpaceCritical { free, total } => {
                write!(
                    f,
                    "{free} of {total} bytes are free, less than {CRITICAL_SPACE_PERCENT} %"
                )
            }
            Self::ReserveMissing { bytes } => {
                write!(
                    f,
                    "{bytes} bytes of the reserve for received changes are missing"
                )
            }
            Self::ClocksDiffer { seconds } => {
                write!(f, "the clocks of both hosts differ by {seconds} seconds")
            }
            Self::CertificateExpires { at } => {
                write!(f, "this host's certificate expires at {at}")
            }
            Self::CertificateExpired { at } => {
                write!(f, "this host's certificate has expired at {at}")
            }
            Self::BacklogTooLong {
                seconds,
                limit_seconds,
            } => write!(
                f,
                "applying what was received takes {seconds} seconds, more than the limit of {limit_seconds}"
            ),
        }
    }
}

/// Health, with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    pub value: ReplicationHealth,
    /// The worst first; none when the value is OK or not applicable.
    pub reasons: Vec<HealthReason>,
}

/// What the facts amount to.
#[must_use]
pub fn assess(facts: &Facts<'_>) -> Health {
    if !is_replicated(facts) {
        return Health {
            value: ReplicationHealth::NotApplicable,
            reasons: Vec::new(),
        };
    }
    let mut reasons: Vec<HealthReason> = of_state(facts)
        .into_iter()
        .chain(of_statistics(facts))
        .chain(of_host(facts))
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.health()));
    let value = reasons
        .first()
        .map_or(ReplicationHealth::Ok, HealthReason::health);
    Health { value, reasons }
}

fn is_replicated(facts: &Facts<'_>) -> bool {
    let by_mode = match facts.mode {
        ReplicationMode::Primary | ReplicationMode::Replica | ReplicationMode::ExtendedReplica => {
            true
        }
        ReplicationMode::None | ReplicationMode::TestReplica => false,
    };
    by_mode && facts.state != ReplicationState::Disabled
}

fn of_state(facts: &Facts<'_>) -> Option<HealthReason> {
    let cause = || {
        facts
            .cause
            .clone()
            .unwrap_or_else(|| "no cause is known".to_owned())
    };
    match facts.state {
        ReplicationState::Disabled
        | ReplicationState::Replicating
        | ReplicationState::SyncedReplicationComplete
        | ReplicationState::FailbackInProgress
        | ReplicationState::FailbackComplete
        | ReplicationState::DiskUpdateInProgress
        | ReplicationState::RepurposeReplicationInProgress
        | ReplicationState::PreparedForSyncReplication
        | ReplicationState::PreparedForGroupReverseReplication
        | ReplicationState::FiredrillInProgress => None,
        ReplicationState::ReadyForReplication
        | ReplicationState::WaitingToCompleteInitialReplication => {
            Some(HealthReason::InitialReplicationIncomplete)
        }
        ReplicationState::FailoverInProgress
        | ReplicationState::Recovered
        | ReplicationState::Committed => Some(HealthReason::FailedOverWithoutReverse),
        ReplicationState::Suspended => Some(match facts.direction {
            Direction::Sends => HealthReason::PausedOnPrimary,
            Direction::Receives => HealthReason::PausedOnReplica,
        }),
        ReplicationState::WaitingToStartResynchronization
        | ReplicationState::ResynchronizationSuspended => {
            Some(HealthReason::ResynchronizationRequired { cause: cause() })
        }
        ReplicationState::Resynchronizing => Some(HealthReason::ResynchronizationRunning),
        ReplicationState::Critical | ReplicationState::DiskUpdateCritical => {
            Some(HealthReason::ReplicationError { cause: cause() })
        }
        ReplicationState::Unknown => Some(HealthReason::StateUnknown),
    }
}

/// Whether changes are meant to flow: otherwise silence says nothing new.
fn is_flowing(state: ReplicationState) -> bool {
    match state {
        ReplicationState::Replicating
        | ReplicationState::Critical
        | ReplicationState::WaitingToStartResynchronization
        | ReplicationState::ResynchronizationSuspended
        | ReplicationState::Suspended
        | ReplicationState::DiskUpdateInProgress
        | ReplicationState::DiskUpdateCritical
        | ReplicationState::Unknown => true,
        ReplicationState::Disabled
        | ReplicationState::ReadyForReplication
        | ReplicationState::WaitingToCompleteInitialReplication
        | ReplicationState::SyncedReplicationComplete
        | ReplicationState::Recovered
        | ReplicationState::Committed
        | ReplicationState::Resynchronizing
        | ReplicationState::FailoverInProgress
        | ReplicationState::FailbackInProgress
        | ReplicationState::FailbackComplete
        | ReplicationState::RepurposeReplicationInProgress
        | ReplicationState::PreparedForSyncReplication
        | ReplicationState::PreparedForGroupReverseReplication
        | ReplicationState::FiredrillInProgress => false,
    }
}

fn of_statistics(facts: &Facts<'_>) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    let statistics = facts.statistics;
    if statistics.missed_more_than(MISSED_PERCENT) {
        reasons.push(HealthReason::CyclesMissed {
            missed: statistics.miss_count(),
            due: statistics.cycles_due(),
        });
    }
    if let Some(average) = statistics.average_latency()
        && average > LONGEST_AVERAGE_LATENCY
    {
        reasons.push(HealthReason::TransfersSlow {
            average_seconds: average.as_secs(),
        });
    }
    // A reset is where counting begins anew, also for silence.
    let since = facts
        .last_exchange
        .map(|last| last.max(statistics.reset_at().unwrap_or(last)));
    if let Some(since) = since
        && is_flowing(facts.state)
    {
        let silence = facts.now.since(since);
        if silence > LONGEST_SILENCE {
            let seconds = silence.as_secs();
            reasons.push(match facts.direction {
                Direction::Sends => HealthReason::NothingSent { seconds },
                Direction::Receives => HealthReason::NothingReceived { seconds },
            });
        }
    }
    reasons
}

fn of_host(facts: &Facts<'_>) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    if let Some(cause) = &facts.cannot_send {
        reasons.push(HealthReason::CannotSend {
            cause: cause.clone(),
        });
    }
    if let Some(cause) = &facts.unfinished {
        reasons.push(HealthReason::OperationUnfinished {
            cause: cause.clone(),
        });
    }
    match facts.catalog {
        Catalog::Usable => {}
        Catalog::Stopped => reasons.push(HealthReason::CatalogStopped),
    }
    match facts.verification {
        Verification::Verified => {}
        Verification::Unverified => reasons.push(HealthReason::Unverified),
    }
    reasons.extend(facts.space.and_then(of_space));
    match facts.reserve {
        Reserve::Held => {}
        Reserve::Missing { bytes } => reasons.push(HealthReason::ReserveMissing { bytes }),
    }
    if let Some((theirs, ours)) = facts.clocks {
        let difference = theirs.since(ours).max(ours.since(theirs));
        if difference > LARGEST_CLOCK_DIFFERENCE {
            reasons.push(HealthReason::ClocksDiffer {
                seconds: difference.as_secs(),
            });
        }
    }
    if let Some(at) = facts.certificate_expires {
        if at <= facts.now {
            reasons.push(HealthReason::CertificateExpired { at });
        } else if at.since(facts.now) < CERTIFICATE_NOTICE {
            reasons.push(HealthReason::CertificateExpires { at });
        }
    }
    if let Some(backlog) = facts.backlog
        && backlog.estimate > backlog.limit
    {
        reasons.push(HealthReason::BacklogTooLong {
            seconds: backlog.estimate.as_secs(),
            limit_seconds: backlog.limit.as_secs(),
        });
    }
    reasons
}

fn of_space(Space { free, total }: Space) -> Option<HealthReason> {
    let below = |percent: u8| u128::from(free) * 100 < u128::from(total) * u128::from(percent);
    if below(CRITICAL_SPACE_PERCENT) {
        Some(HealthReason::SpaceCritical { free, total })
    } else if below(LOW_SPACE_PERCENT) {
        Some(HealthReason::SpaceLow { free, total })
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
