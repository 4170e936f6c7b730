//! The contract's transition table, by its numbers, and what it does not say.

use super::*;
use crate::contract::{FailoverType, InitialReplicationType, ReplicationState as S};
use crate::{DeltaId, Receipt};

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
const LATER: Timestamp = Timestamp::from_micros(2_000_000);

fn lineage(number: u8, from: Option<u8>) -> Lineage {
    Lineage {
        counter: u32::from(number),
        id: id(number),
        forked_from: from.map(|from| (id(from), Sequence::new(9))),
    }
}

fn id(number: u8) -> LineageId {
    LineageId::from_bytes([number; 16])
}

fn receipt(sequence: u64) -> Receipt {
    Receipt {
        lineage: id(1),
        sequence: Sequence::new(sequence),
        id: DeltaId::from_bytes([sequence as u8; 32]),
    }
}

fn record(role: Role) -> Record {
    Record {
        vm: VmId::from_bytes([1; 16]),
        relationship: RelationshipId::from_bytes([2; 16]),
        lineage: lineage(1, None),
        ancestors: Vec::new(),
        drawn: Sequence::new(9),
        role,
    }
}

fn primary(primary: Primary) -> Record {
    record(Role::Primary(primary))
}

fn replica(phase: ReplicaPhase) -> Record {
    let waiting = Replica::waiting(false);
    record(Role::Replica(Replica { phase, ..waiting }))
}

fn replicating() -> Record {
    primary(Primary::Replicating {
        last: receipt(9),
        cycle: Cycle::Idle,
    })
}

fn prepared() -> Record {
    primary(Primary::Prepared { last: receipt(9) })
}

fn copying() -> Copying {
    Copying {
        copy: Sequence::new(9),
        purpose: CopyPurpose::Compare,
        cause: Some(ResyncCause::Requested),
        work: Work::Chunks,
    }
}

fn resync_required() -> Record {
    primary(Primary::ResyncRequired {
        cause: ResyncCause::TrackingLost,
        at: None,
    })
}

fn suspended() -> Record {
    let from = SuspendedFrom::Replicating { last: receipt(9) };
    primary(Primary::Suspended { from })
}

fn critical(cause: CriticalCause) -> Record {
    let from = SuspendedFrom::Replicating { last: receipt(9) };
    primary(Primary::Critical { cause, from })
}

fn failover(kind: FailoverType, before: Before) -> Failover {
    Failover {
        point: None,
        kind,
        lineage: id(2),
        before,
    }
}

fn failed_over(before: Before) -> Record {
    replica(ReplicaPhase::FailedOver {
        failover: failover(FailoverType::Regular, before),
        lineage: lineage(2, Some(1)),
    })
}

fn committed() -> Record {
    let kind = FailoverType::Regular;
    Record {
        lineage: lineage(2, Some(1)),
        ancestors: vec![lineage(1, None)],
        ..replica(ReplicaPhase::Committed { kind })
    }
}

fn choose(kind: FailoverType) -> Event {
    Event::FailOver(FailoverChoice {
        point: None,
        kind,
        lineage: id(2),
        primary: PrimaryGuest::Unknown,
    })
}

fn start(kind: InitialReplicationType, at: Option<Timestamp>) -> Event {
    Event::Start { kind, at }
}

fn taken_over(number: u8, ancestors: &[u8]) -> Event {
    let ancestors: Vec<Lineage> = ancestors.iter().map(|one| lineage(*one, None)).collect();
    let from = ancestors.last().map(|_| 200);
    Event::Peer(TakeOverNews::TakenOver {
        lineage: lineage(number, from),
        ancestors,
    })
}

fn after(mut record: Record, events: impl IntoIterator<Item = Event>) -> Record {
    for event in events {
        let shown = format!("{event:?}");
        record = match record.decide(NOW, event) {
            Ok(step) => step.next,
            Err(refused) => panic!("{shown} was refused: {refused}"),
        };
    }
    record
}

/// A row of the table: its number, where it begins, what happens, and the states it leads through.
type Row = (&'static str, Record, Vec<(Event, S)>);

fn primary_rows() -> Vec<Row> {
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

fn replica_rows() -> Vec<Row> {
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

#[test]
fn a_start_that_was_planned_comes_when_it_is_due_and_survives_trouble() {
    let ready = primary(Primary::Ready { start: None });
    let planned = after(
        ready,
        [start(InitialReplicationType::NetworkTransfer, Some(LATER))],
    );
    let troubled = after(planned, [Event::Failed(CriticalCause::Unreachable)]);
    assert_eq!(troubled.decide(NOW, Event::Due).unwrap().next, troubled);
    let begun = troubled.decide(LATER, Event::Due).unwrap().next;
    assert_eq!(begun.state(), S::WaitingToCompleteInitialReplication);
}

#[test]
fn the_former_primary_becomes_a_replica_only_with_its_guest_off() {
    let adopt = |vm| Event::Adopt {
        lineage: lineage(2, Some(1)),
        ancestors: vec![lineage(1, None)],
        vm,
    };
    for old in [prepared(), replicating(), resync_required()] {
        let refused = old.decide(NOW, adopt(VmPower::Running)).unwrap_err();
        assert!(matches!(refused, Refused::VmRunning { .. }), "{refused:?}");
        let adopted = after(old.clone(), [adopt(VmPower::Off)]);
        assert_eq!(adopted.mode(), ReplicationMode::Replica);
        assert_eq!(adopted.state(), S::Resynchronizing);
        assert_eq!(adopted.lineage.id, id(2));
        assert!(adopted.drawn > old.drawn);
        let again = after(adopted.clone(), [adopt(VmPower::Off)]);
        assert_eq!(again, adopted);
    }
}

#[test]
fn a_history_that_is_no_ancestor_is_not_adopted() {
    let adopt = Event::Adopt {
        lineage: lineage(2, Some(7)),
        ancestors: vec![lineage(7, None)],
        vm: VmPower::Off,
    };
    let refused = replicating().decide(NOW, adopt).unwrap_err();
    assert!(matches!(refused, Refused::SplitBrain { .. }), "{refused:?}");
}

#[test]
fn a_receipt_of_another_lineage_number_or_content_is_not_believed() {
    let sending = primary(Primary::Replicating {
        last: receipt(8),
        cycle: Cycle::Sending {
            sequence: Sequence::new(9),
            id: receipt(9).id,
        },
    });
    let wrong = [
        Receipt {
            lineage: id(7),
            ..receipt(9)
        },
        receipt(8),
        Receipt {
            id: DeltaId::from_bytes([77; 32]),
            ..receipt(9)
        },
    ];
    for receipt in wrong {
        assert_eq!(after(sending.clone(), [Event::Received(receipt)]), sending);
    }
    let received = after(sending, [Event::Received(receipt(9))]);
    let Role::Primary(now) = &received.role else {
        panic!("{received:?}");
    };
    assert_eq!(now.last_receipt(), Some(receipt(9)));
}

#[test]
fn a_replica_that_has_begun_to_fail_over_grants_nothing() {
    let cancel = || Event::PreparedCancelled {
        sequence: Sequence::new(9),
    };
    let announce = || Event::Prepared {
        sequence: Sequence::new(9),
    };
    let waiting = after(replica(ReplicaPhase::Replicating), [announce()]);
    let failing = after(waiting, [choose(FailoverType::Planned)]);
    for record in [failing, failed_over(Before::Replicating), committed()] {
        for event in [cancel(), announce()] {
            assert!(record.decide(NOW, event).is_err(), "{record:?}");
        }
    }
}

#[test]
fn an_announcement_from_before_the_primary_went_on_is_out_of_date() {
    let nine = Sequence::new(9);
    let announce = Event::Prepared { sequence: nine };
    let granted = after(
        replica(ReplicaPhase::Replicating),
        [
            announce.clone(),
            Event::PreparedCancelled { sequence: nine },
        ],
    );
    let refused = granted.decide(NOW, announce).unwrap_err();
    assert!(matches!(refused, Refused::OutOfDate { .. }), "{refused:?}");
    // The next one has a number of its own.
    let ten = Sequence::new(10);
    let again = after(granted, [Event::Prepared { sequence: ten }]);
    let late = after(again.clone(), [Event::PreparedCancelled { sequence: nine }]);
    assert_eq!(late, again);
}

#[test]
fn a_failover_is_called_planned_only_from_the_announced_moment() {
    let kind = |record: Record| {
        let failing = after(record, [choose(FailoverType::Planned)]);
        match failing.role {
            Role::Replica(Replica {
                phase: ReplicaPhase::FailingOver(failover),
                ..
            }) => failover.kind,
            Role::Replica(_) | Role::Primary(_) => panic!("not failing over"),
        }
    };
    let announce = Event::Prepared {
        sequence: Sequence::new(9),
    };
    let announced = after(replica(ReplicaPhase::Replicating), [announce]);
    let newer = Record {
        drawn: Sequence::new(10),
        ..announced.clone()
    };
    assert_eq!(kind(announced), FailoverType::Planned);
    assert_eq!(kind(newer), FailoverType::Regular);
    assert_eq!(
        kind(replica(ReplicaPhase::Replicating)),
        FailoverType::Regular
    );
}

#[test]
fn a_prepared_primary_stays_off_whatever_happens_but_a_word_or_force() {
    let asking = primary(Primary::AskingToGoOn { last: receipt(9) });
    for record in [prepared(), asking] {
        for event in [
            Event::Failed(CriticalCause::Unreachable),
            Event::NeedsResync(ResyncCause::TrackingLost),
            Event::Due,
            Event::Mended,
            Event::Session(Standing::InStep),
            taken_over(2, &[1]),
            taken_over(2, &[7]),
        ] {
            let next = after(record.clone(), [event.clone()]);
            assert!(next.may_start_vm().is_err(), "{event:?}: {next:?}");
        }
        let forced = Event::CancelPrepared {
            how: CancelHow::Forced { lineage: id(5) },
        };
        let alone = after(record, [forced]);
        assert!(alone.may_start_vm().is_ok());
        assert_eq!(alone.lineage.id, id(5));
    }
}

#[test]
fn parted_histories_are_at_rest_until_somebody_names_the_survivor() {
    let parted = after(replicating(), [taken_over(2, &[7])]);
    for event in [Event::Resynchronize { at: None }, Event::Suspend] {
        assert!(matches!(
            parted.decide(NOW, event),
            Err(Refused::SplitBrain { .. })
        ));
    }
    // Going on is asking again; lesser troubles do not hide it.
    let asked = parted.decide(NOW, Event::Resume).unwrap();
    assert_eq!(asked.next, parted);
    assert_eq!(asked.effects, [Effect::OpenSession]);
    for event in [
        Event::Failed(CriticalCause::Unreachable),
        Event::Mended,
        Event::NeedsResync(ResyncCause::TrackingLost),
    ] {
        let next = after(parted.clone(), [event]);
        let Role::Primary(Primary::Critical { cause, .. }) = next.role else {
            panic!("{next:?}");
        };
        assert_eq!(cause, CriticalCause::SplitBrain { theirs: id(2) });
    }

    let survive = Event::Survive {
        over: lineage(2, None),
        ancestors: vec![lineage(7, None)],
        lineage: id(5),
    };
    let survivor = after(parted.clone(), [survive]);
    for given_up in [1, 2, 7] {
        assert!(survivor.ancestors.iter().any(|one| one.id == id(given_up)));
    }
    let to = lineage(2, None);
    let fenced = after(parted, [Event::Yield { to }]);
    assert!(matches!(
        fenced.may_start_vm(),
        Err(Refused::TakenOver { by }) if by.id == id(2)
    ));
}

#[test]
fn nobody_is_named_survivor_where_nothing_has_parted() {
    let survive = || Event::Survive {
        over: lineage(2, None),
        ancestors: Vec::new(),
        lineage: id(5),
    };
    let yields = || Event::Yield {
        to: lineage(2, None),
    };
    for record in [
        replicating(),
        prepared(),
        suspended(),
        critical(CriticalCause::Unreachable),
        replica(ReplicaPhase::Replicating),
        failed_over(Before::Replicating),
    ] {
        for event in [survive(), yields()] {
            assert_eq!(
                record.decide(NOW, event),
                Err(Refused::NothingToSettle),
                "{record:?}"
            );
        }
    }
}

#[test]
fn a_failover_that_was_overruled_can_only_be_reverted() {
    let overruled = after(failed_over(Before::Replicating), [taken_over(5, &[1, 2])]);
    assert!(matches!(
        overruled.may_start_vm(),
        Err(Refused::Overruled { .. })
    ));
    for event in [Event::Commit, Event::Reverse] {
        assert!(matches!(
            overruled.decide(NOW, event),
            Err(Refused::Overruled { .. })
        ));
    }
    let reverted = after(
        overruled,
        [Event::Revert { vm: VmPower::Off }, Event::Reverted],
    );
    let followed = after(reverted, [taken_over(5, &[1, 2])]);
    assert_eq!(followed.lineage.id, id(5));
    assert_eq!(followed.state(), S::Replicating);
}

#[test]
fn a_committed_failover_that_was_overruled_is_a_fenced_primary() {
    let overruled = after(committed(), [taken_over(5, &[1, 2])]);
    assert_eq!(overruled.mode(), ReplicationMode::Primary);
    assert_eq!(overruled.lineage.id, id(2));
    assert!(matches!(
        overruled.may_start_vm(),
        Err(Refused::TakenOver { .. })
    ));
    // What is not known to have taken it up is no reason to stand down.
    let other = after(committed(), [taken_over(5, &[1])]);
    assert_eq!(other, committed());
}

#[test]
fn a_fence_falls_only_for_a_report_that_lists_the_failover_as_abandoned() {
    let fenced = after(replicating(), [taken_over(2, &[1])]);
    let view = |ancestors: &[u8]| ReplicaView {
        lineage: lineage(1, None),
        ancestors: ancestors.iter().map(|one| lineage(*one, None)).collect(),
        has_taken_over: false,
        tip: Some((receipt(9).sequence, receipt(9).id)),
        copy: None,
    };
    let old = Event::Session(fenced.standing(&view(&[])));
    assert_eq!(after(fenced.clone(), [old]), fenced);
    let reverted = Event::Session(fenced.standing(&view(&[2])));
    let on = after(fenced.clone(), [reverted]);
    assert_eq!(on.state(), S::Replicating);
    // The old news, once more, is known as old.
    assert_eq!(after(on.clone(), [taken_over(2, &[1])]), on);
    // Its word alone lets it ask, and no more.
    let said = fenced
        .decide(NOW, Event::Peer(TakeOverNews::Reverted))
        .unwrap();
    assert_eq!(said.next, fenced);
    assert_eq!(said.effects, [Effect::OpenSession]);
}

#[test]
fn numbers_that_a_peer_has_seen_are_not_drawn_again() {
    let view = ReplicaView {
        lineage: lineage(1, None),
        ancestors: Vec::new(),
        has_taken_over: false,
        tip: Some((Sequence::new(50), receipt(50).id)),
        copy: None,
    };
    let standing = replicating().standing(&view);
    assert_eq!(
        standing,
        Standing::Ahead {
            tip: Sequence::new(50)
        }
    );
    let next = after(
        replicating(),
        [Event::Session(standing), Event::Resynchronize { at: None }],
    );
    assert!(next.drawn > Sequence::new(50));
    // A peer that has used up all numbers is no reason to fall over.
    let last = Standing::Ahead {
        tip: Sequence::new(u64::MAX),
    };
    let used_up = after(
        replicating(),
        [Event::Session(last), Event::Resynchronize { at: None }],
    );
    assert_eq!(used_up.state(), S::Resynchronizing);
}

#[test]
fn a_first_copy_that_is_started_again_compares() {
    let cancelled = after(primary(Primary::Copying(copying())), [Event::CancelInitial]);
    let kind = InitialReplicationType::NetworkTransfer;
    let again = cancelled.decide(NOW, start(kind, None)).unwrap();
    let compares = again.effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Copy {
                purpose: CopyPurpose::Compare,
                ..
            }
        )
    });
    assert!(compares, "{:?}", again.effects);
}

#[test]
fn the_guest_is_not_started_while_its_failover_is_ended() {
    let off = VmPower::Off;
    for event in [Event::Revert { vm: off }, Event::Commit] {
        let record = failed_over(Before::Replicating);
        assert!(record.may_start_vm().is_ok());
        let ending = after(record, [event]);
        assert!(matches!(ending.may_start_vm(), Err(Refused::Busy { .. })));
    }
}

#[test]
fn facts_that_come_twice_change_nothing_the_second_time() {
    let facts = [
        Event::Failed(CriticalCause::Unreachable),
        Event::Failed(CriticalCause::LocalStorage),
        taken_over(2, &[1]),
        taken_over(2, &[7]),
        Event::ResyncBegun,
        Event::ApplyFailed(ApplyTrouble::Io),
        Event::InitialComplete,
        Event::Reverted,
        Event::Committed,
        Event::CancelGranted,
        Event::Session(Standing::InStep),
    ];
    let rows = primary_rows().into_iter().chain(replica_rows());
    for (_, record, _) in rows {
        for fact in &facts {
            let once = after(record.clone(), [fact.clone()]);
            let twice = after(once.clone(), [fact.clone()]);
            assert_eq!(twice, once, "{fact:?}");
        }
    }
}

#[test]
fn local_trouble_is_not_mended_by_a_peer_that_answers() {
    let record = critical(CriticalCause::LocalStorage);
    let answered = after(record.clone(), [Event::Session(Standing::InStep)]);
    assert_eq!(answered, record);
    let mended = after(record, [Event::Mended]);
    assert_eq!(mended.state(), S::Replicating);
}
