//! The transition table, row by row.

use super::*;
use crate::contract::ReplicationState as S;

/// A row of the table: its number, where it begins, what happens, and the states it leads through.
pub(super) type Row = (&'static str, Record, Vec<(Event, S)>);

pub(super) fn primary_rows() -> Vec<Row> {
    use InitialReplicationType as Kind;
    let ready = || primary(Primary::Ready { start: None });
    let sequence = Sequence::new(11);
    let delta = DeltaId::from_bytes([11; 32]);
    let received = Event::Received(receipt(11));
    let to_the_end = || {
        vec![
            (
                Event::ChunksDone {
                    copy: Sequence::new(10),
                },
                None,
            ),
            (
                Event::Captured {
                    sequence,
                    id: delta,
                },
                None,
            ),
            (received.clone(), Some(S::Replicating)),
        ]
    };
    let whole = |first: Event, during: S| {
        let rest = to_the_end();
        let rest = rest
            .into_iter()
            .map(|(event, state)| (event, state.unwrap_or(during)));
        std::iter::once((first, during)).chain(rest).collect()
    };
    let first = S::WaitingToCompleteInitialReplication;
    let resync = || Event::Resynchronize { at: None };
    let needs = || Event::NeedsResync(ResyncCause::TrackingLost);
    let failed = || Event::Failed(CriticalCause::Unreachable);
    vec![
        (
            "T3",
            ready(),
            whole(start(Kind::NetworkTransfer, None), first),
        ),
        (
            "T4",
            ready(),
            vec![(
                start(Kind::NetworkTransfer, Some(LATER)),
                S::ReadyForReplication,
            )],
        ),
        (
            "T7",
            ready(),
            whole(start(Kind::SeededNetworkTransfer, None), first),
        ),
        (
            "T8",
            primary(Primary::Copying(copying())),
            vec![(Event::CancelInitial, S::ReadyForReplication)],
        ),
        ("T10", replicating(), vec![(Event::Suspend, S::Suspended)]),
        (
            "T10",
            critical(CriticalCause::Unreachable),
            vec![(Event::Suspend, S::Suspended)],
        ),
        ("T12", suspended(), vec![(Event::Resume, S::Replicating)]),
        (
            "T12",
            critical(CriticalCause::Unreachable),
            vec![(Event::Resume, S::Replicating)],
        ),
        (
            "T13, T14, T15",
            primary(Primary::Resyncing(copying())),
            vec![
                (Event::Suspend, S::ResynchronizationSuspended),
                (Event::Resume, S::Resynchronizing),
                (
                    Event::CancelResynchronize,
                    S::WaitingToStartResynchronization,
                ),
            ],
        ),
        (
            "T15",
            primary(Primary::ResyncSuspended(copying())),
            vec![(
                Event::CancelResynchronize,
                S::WaitingToStartResynchronization,
            )],
        ),
        (
            "T16",
            replicating(),
            vec![(needs(), S::WaitingToStartResynchronization)],
        ),
        (
            "T16",
            suspended(),
            vec![(needs(), S::WaitingToStartResynchronization)],
        ),
        // The first copy begins anew by itself.
        (
            "T16",
            primary(Primary::Copying(copying())),
            vec![(needs(), first)],
        ),
        ("T17", replicating(), vec![(failed(), S::Critical)]),
        (
            "T18",
            resync_required(),
            whole(resync(), S::Resynchronizing),
        ),
        ("T18", suspended(), whole(resync(), S::Resynchronizing)),
        (
            "T18",
            critical(CriticalCause::Unreachable),
            whole(resync(), S::Resynchronizing),
        ),
        (
            "T19",
            suspended(),
            vec![(
                Event::Resynchronize { at: Some(LATER) },
                S::WaitingToStartResynchronization,
            )],
        ),
        (
            "T20",
            primary(Primary::ResyncRequired {
                cause: ResyncCause::TrackingLost,
                at: Some(NOW),
            }),
            vec![(Event::Due, S::Resynchronizing)],
        ),
        (
            "T21",
            replicating(),
            vec![
                (
                    Event::Prepare { vm: VmPower::Off },
                    S::SyncedReplicationComplete,
                ),
                (
                    Event::Captured {
                        sequence: Sequence::new(10),
                        id: DeltaId::from_bytes([10; 32]),
                    },
                    S::SyncedReplicationComplete,
                ),
                (Event::Received(receipt(10)), S::SyncedReplicationComplete),
            ],
        ),
        (
            "T22",
            prepared(),
            vec![
                (
                    Event::CancelPrepared {
                        how: CancelHow::Asking,
                    },
                    S::SyncedReplicationComplete,
                ),
                (Event::CancelGranted, S::Replicating),
            ],
        ),
        (
            "T24",
            replicating(),
            vec![(taken_over(2, &[1]), S::Critical)],
        ),
        (
            "T34",
            replicating(),
            vec![(Event::Failed(CriticalCause::NotAuthorized), S::Critical)],
        ),
    ]
}

pub(super) fn replica_rows() -> Vec<Row> {
    let done = || Event::FailedOver {
        lineage: lineage(2, Some(1)),
    };
    let revert = || Event::Revert { vm: VmPower::Off };
    let trouble = ApplyTrouble::DiskFull;
    let mut rows = vec![
        (
            "T3",
            replica(ReplicaPhase::WaitingInitial),
            vec![
                (Event::ResyncBegun, S::WaitingToCompleteInitialReplication),
                (Event::InitialComplete, S::Replicating),
            ],
        ),
        (
            "T11, T12",
            replica(ReplicaPhase::Replicating),
            vec![
                (Event::Suspend, S::Suspended),
                (Event::Resume, S::Replicating),
            ],
        ),
        (
            "T17",
            replica(ReplicaPhase::Replicating),
            vec![
                (Event::ApplyFailed(trouble), S::Critical),
                (Event::ApplyMended, S::Replicating),
            ],
        ),
        (
            "T18",
            replica(ReplicaPhase::Replicating),
            vec![
                (Event::ResyncBegun, S::Resynchronizing),
                (Event::ResyncEnded, S::Replicating),
            ],
        ),
        (
            "T21, T23",
            replica(ReplicaPhase::Replicating),
            vec![
                (
                    Event::Prepared {
                        sequence: Sequence::new(9),
                    },
                    S::Replicating,
                ),
                (choose(FailoverType::Planned), S::FailoverInProgress),
                (done(), S::Recovered),
            ],
        ),
        (
            "T26",
            failed_over(Before::Replicating),
            vec![
                (Event::Commit, S::Recovered),
                (Event::Committed, S::Committed),
            ],
        ),
        (
            "T27, T28",
            failed_over(Before::Replicating),
            vec![
                (Event::Reverse, S::Recovered),
                (Event::Committed, S::Committed),
                (Event::Reverse, S::Committed),
                (
                    Event::Adopted {
                        drawn: Sequence::new(20),
                    },
                    S::Resynchronizing,
                ),
            ],
        ),
    ];
    let befores = [
        (ReplicaPhase::Replicating, S::Replicating),
        (ReplicaPhase::Suspended, S::Suspended),
        (ReplicaPhase::Critical(trouble), S::Critical),
        (ReplicaPhase::Resyncing, S::Resynchronizing),
    ];
    for (phase, state) in befores {
        rows.push((
            "T24, T25",
            replica(phase),
            vec![
                (choose(FailoverType::Regular), S::FailoverInProgress),
                (done(), S::Recovered),
                (revert(), S::Recovered),
                (Event::Reverted, state),
            ],
        ));
    }
    rows
}

#[test]
fn every_row_of_the_transition_table_leads_where_the_contract_says() {
    for (number, mut record, steps) in primary_rows().into_iter().chain(replica_rows()) {
        for (event, state) in steps {
            record = after(record, [event.clone()]);
            assert_eq!(record.state(), state, "{number} after {event:?}");
        }
    }
}
