//! The second hop: its table, and what it does not forward.

use super::*;
use crate::contract::ReplicationState as S;

const MOMENT: Source = Source::Moment(Sequence::new(12));

fn forwarder(sending: Primary, source: Source) -> Record {
    Record {
        forwards: Some(source),
        ..primary(sending)
    }
}

fn forwarding() -> Record {
    forwarder(replicating_from(9), MOMENT)
}

fn replicating_from(sequence: u64) -> Primary {
    Primary::Replicating {
        last: receipt(sequence),
        cycle: Cycle::Idle,
    }
}

fn sending() -> Record {
    let cycle = Cycle::Sending {
        sequence: Sequence::new(9),
        id: receipt(9).id,
    };
    let last = receipt(8);
    forwarder(Primary::Replicating { last, cycle }, MOMENT)
}

/// A second hop's record in every phase that it can be in.
fn every_phase(source: Source) -> Vec<Record> {
    let from = SuspendedFrom::Replicating { last: receipt(9) };
    let cause = CriticalCause::Unreachable;
    let phases = [
        Primary::Ready { start: None },
        Primary::Copying(copying()),
        replicating_from(9),
        Primary::Suspended { from },
        Primary::Critical { cause, from },
        Primary::ResyncRequired {
            cause: ResyncCause::TrackingLost,
            at: None,
        },
        Primary::Resyncing(copying()),
        Primary::ResyncSuspended(copying()),
        Primary::Fenced {
            by: lineage(3, Some(1)),
            from,
        },
    ];
    let records = phases.into_iter();
    records.map(|phase| forwarder(phase, source)).collect()
}

fn told(source: Source) -> Event {
    Event::Upstream(Upstream {
        lineage: lineage(1, None),
        ancestors: Vec::new(),
        drawn: Sequence::new(12),
        source,
    })
}

/// The first hop's failover to lineage 2 is committed.
fn told_of_commit() -> Event {
    Event::Upstream(Upstream::of(&committed(), None))
}

fn step(record: &Record, event: Event) -> Step {
    let shown = format!("{event:?}");
    record
        .decide(NOW, event)
        .unwrap_or_else(|refused| panic!("{shown} was refused: {refused}"))
}

fn leaves(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Copy { .. } | Effect::Capture { .. } | Effect::Send { .. }
    )
}

#[test]
fn every_row_of_index_1_leads_where_the_contract_says() {
    let captured = |sequence: u64| Event::Captured {
        sequence: Sequence::new(sequence),
        id: receipt(sequence).id,
    };
    let start = || start(InitialReplicationType::NetworkTransfer, None);
    let copied = || Event::ChunksDone {
        copy: Sequence::new(12),
    };
    let newer = || told(Source::Moment(Sequence::new(13)));
    let resync = || Event::Resynchronize { at: None };
    let first = S::WaitingToCompleteInitialReplication;
    let rows = [
        (
            "T2, T3",
            forwarder(Primary::Ready { start: None }, MOMENT),
            vec![
                (start(), first),
                (copied(), first),
                (newer(), first),
                (Event::Due, first),
                (captured(13), first),
                (Event::Received(receipt(13)), S::Replicating),
            ],
        ),
        (
            "T10, T12",
            forwarding(),
            vec![
                (Event::Suspend, S::Suspended),
                (Event::Resume, S::Replicating),
            ],
        ),
        (
            "T16, T18",
            forwarding(),
            vec![
                (
                    Event::NeedsResync(ResyncCause::TrackingLost),
                    S::WaitingToStartResynchronization,
                ),
                (resync(), S::Resynchronizing),
                (copied(), S::Resynchronizing),
                (newer(), S::Resynchronizing),
                (Event::Due, S::Resynchronizing),
                (captured(13), S::Resynchronizing),
                (Event::Received(receipt(13)), S::Replicating),
            ],
        ),
        (
            "T35",
            forwarding(),
            vec![
                (told(Source::Nothing), S::Replicating),
                (told_of_commit(), S::Replicating),
                (Event::BecomePrimary, S::Replicating),
            ],
        ),
    ];
    for (number, mut record, steps) in rows {
        for (event, state) in steps {
            record = after(record, [event.clone()]);
            assert_eq!(record.state(), state, "{number} after {event:?}");
        }
    }
}

#[test]
fn a_moment_is_forwarded_once_and_under_the_primarys_number() {
    let begun = step(&forwarding(), Event::Due);
    let sequence = Sequence::new(12);
    let capture = Effect::Capture {
        sequence,
        base: Some(receipt(9)),
        planned: false,
    };
    assert_eq!(begun.effects, [capture]);
    assert_eq!(begun.next.drawn, sequence);
    let id = receipt(12).id;
    let sent = after(
        begun.next,
        [
            Event::Captured { sequence, id },
            Event::Received(receipt(12)),
        ],
    );
    assert_eq!(step(&sent, Event::Due), sent.unchanged());
    let newer = told(Source::Moment(Sequence::new(13)));
    let newer = step(&after(sent, [newer]), Event::Due).next;
    assert_eq!(newer.drawn, Sequence::new(13));
}

#[test]
fn a_copy_waits_for_a_moment_that_was_not_used_yet() {
    let used = Source::Moment(Sequence::new(9));
    let ready = forwarder(Primary::Ready { start: None }, used);
    let waiting = after(
        ready,
        [start(InitialReplicationType::SeededNetworkTransfer, None)],
    );
    assert_eq!(waiting.state(), S::ReadyForReplication);
    let required = forwarder(
        Primary::ResyncRequired {
            cause: ResyncCause::TrackingLost,
            at: None,
        },
        used,
    );
    let due = after(required, [Event::Resynchronize { at: None }]);
    assert_eq!(due.state(), S::WaitingToStartResynchronization);
    for record in [waiting, due] {
        assert!(step(&record, Event::Due).effects.is_empty());
        let begun = step(&after(record, [told(MOMENT)]), Event::Due);
        assert!(begun.effects.iter().any(leaves), "{begun:?}");
        assert_eq!(begun.next.drawn, Sequence::new(12));
    }
}

#[test]
fn nothing_leaves_while_the_replica_may_revert_or_takes_a_copy_in() {
    let at_work = [sending(), forwarder(Primary::Copying(copying()), MOMENT)];
    for record in every_phase(MOMENT).into_iter().chain(at_work) {
        let held = step(&record, told(Source::Nothing));
        assert!(!held.effects.iter().any(leaves), "{held:?}");
        let events = [
            Event::Due,
            Event::Mended,
            Event::Session(Standing::InStep),
            Event::Adopted {
                drawn: Sequence::new(20),
            },
            Event::NeedsResync(ResyncCause::TrackingLost),
        ];
        for event in events {
            let after = step(&held.next, event);
            assert!(!after.effects.iter().any(leaves), "{after:?}");
        }
        assert!(!held.next.resume().iter().any(leaves));
    }
}

#[test]
fn what_was_held_back_goes_on_from_the_next_moment() {
    let held = step(&sending(), told(Source::Nothing));
    let sequence = Sequence::new(9);
    let effects = [Effect::StopWork, Effect::DropSpool { sequence }];
    assert_eq!(held.effects, effects);
    let on = step(&held.next, told(MOMENT));
    assert_eq!(on.effects, [Effect::OpenSession]);
    let copying = forwarder(Primary::Copying(copying()), Source::Nothing);
    assert!(step(&copying, told(MOMENT)).effects.iter().any(leaves));
}

#[test]
fn after_a_commit_not_even_news_leave_until_it_is_the_primary_relationship() {
    for record in every_phase(Source::Nothing) {
        let waiting = step(&record, told_of_commit());
        assert_eq!(waiting.next.lineage.id, id(2));
        assert!(waiting.next.ancestors.contains(&lineage(1, None)));
        let due = step(&waiting.next, Event::Due);
        for effect in waiting.effects.iter().chain(&due.effects) {
            assert!(!leaves(effect), "{effect:?}");
            assert_ne!(*effect, Effect::AnnounceTakeOver);
        }
        let now = step(&waiting.next, Event::BecomePrimary);
        assert_eq!(now.next.mode(), ReplicationMode::Primary);
        assert_eq!(now.next.forwards, None);
        assert!(now.effects.contains(&Effect::AnnounceTakeOver));
        assert!(now.next.may_start_vm().is_ok());
    }
}

#[test]
fn only_a_committed_failover_makes_it_the_primary_relationship() {
    for source in [Source::Nothing, MOMENT] {
        for record in every_phase(source) {
            let refused = record.decide(NOW, Event::BecomePrimary).unwrap_err();
            assert!(matches!(refused, Refused::State { .. }), "{refused:?}");
        }
    }
    for record in [replicating(), committed()] {
        assert!(record.decide(NOW, Event::BecomePrimary).is_err());
    }
}

#[test]
fn after_a_commit_the_next_moment_has_a_number_above_all_and_is_a_delta() {
    let late = Record {
        drawn: Sequence::new(40),
        ..committed()
    };
    let upstream = Event::Upstream(Upstream::of(&late, None));
    let now = after(forwarding(), [upstream, Event::BecomePrimary]);
    let due = step(&now, Event::Due);
    let capture = Effect::Capture {
        sequence: Sequence::new(41),
        base: Some(receipt(9)),
        planned: false,
    };
    assert_eq!(due.effects, [capture]);
}

#[test]
fn a_third_host_that_has_taken_over_stands_against_the_history_of_a_commit() {
    let fenced = after(forwarding(), [taken_over(3, &[1])]);
    let now = after(fenced, [told_of_commit(), Event::BecomePrimary]);
    let Role::Primary(Primary::Critical { cause, .. }) = &now.role else {
        panic!("{now:?}");
    };
    assert_eq!(*cause, CriticalCause::SplitBrain { theirs: id(3) });
}

#[test]
fn an_operators_pause_outlives_what_the_first_hop_comes_to() {
    let paused = after(forwarding(), [Event::Suspend]);
    let events = [told(Source::Nothing), told(MOMENT), told_of_commit()];
    for event in events {
        assert_eq!(after(paused.clone(), [event]).state(), S::Suspended);
    }
}

#[test]
fn a_primary_that_went_on_alone_takes_the_chain_with_it() {
    let alone = Event::Upstream(Upstream {
        lineage: lineage(4, Some(1)),
        ancestors: vec![lineage(1, None), lineage(3, Some(1))],
        drawn: Sequence::new(12),
        source: Source::Nothing,
    });
    let on = step(&forwarding(), alone.clone());
    assert_eq!(on.next.lineage.id, id(4));
    assert!(on.effects.contains(&Effect::AnnounceTakeOver));
    assert_eq!(on.next.state(), S::Replicating);
    // It gave up the history that had fenced this host.
    let fenced = after(forwarding(), [taken_over(3, &[1])]);
    let on = step(&fenced, alone);
    assert_eq!(on.next.state(), S::Replicating);
    assert!(on.effects.contains(&Effect::AnnounceTakeOver));
    assert!(on.effects.contains(&Effect::PassOnTakeOver));
}

#[test]
fn a_failover_on_the_third_host_is_passed_on_to_the_first_and_so_is_its_end() {
    let replica = replica(ReplicaPhase::Replicating);
    let standing = |extended: &Record, primary: &Record| {
        let view = ReplicaView::of(&replica, Some((Sequence::new(9), receipt(9).id)), None);
        primary.standing(&view.beside(extended))
    };
    assert_eq!(standing(&forwarding(), &replicating()), Standing::InStep);

    let fenced = step(&forwarding(), taken_over(3, &[1]));
    assert!(fenced.effects.contains(&Effect::PassOnTakeOver));
    assert!(fenced.next.resume().contains(&Effect::PassOnTakeOver));
    let news = standing(&fenced.next, &replicating());
    let first = after(replicating(), [Event::Session(news)]);
    assert!(matches!(
        first.may_start_vm(),
        Err(Refused::TakenOver { by }) if by.id == id(3)
    ));

    // The third host's own report lists the failover as given up.
    let freed = step(&fenced.next, Event::Session(Standing::InStep));
    assert!(freed.effects.contains(&Effect::PassOnTakeOver));
    let news = standing(&freed.next, &first);
    let first = after(first, [Event::Session(news)]);
    assert_eq!(first, {
        let mut expected = replicating();
        expected.ancestors = vec![lineage(3, Some(200))];
        expected
    });
}

#[test]
fn a_middle_host_that_has_taken_over_itself_says_so_and_nothing_else() {
    let fenced = after(forwarding(), [taken_over(3, &[1])]);
    let own = ReplicaView::of(&failed_over(Before::Replicating), None, None);
    assert_eq!(own.clone().beside(&fenced).lineage, own.lineage);
}

#[test]
fn the_first_relationship_is_neither_removed_nor_reversed_while_the_second_exists() {
    let refused = |operation, extended: &Record| extended.refuse_beside(operation).is_err();
    for operation in Operation::ALL {
        let is_kept = matches!(
            operation,
            Operation::CreateReplicationRelationship
                | Operation::RemoveReplicationRelationship
                | Operation::ReverseReplicationRelationship
                | Operation::InitiateFailback
        );
        assert_eq!(refused(operation, &forwarding()), is_kept, "{operation:?}");
    }
    let fenced = after(forwarding(), [taken_over(3, &[1])]);
    assert!(refused(Operation::InitiateFailover, &fenced));
}

#[test]
fn a_second_relationship_takes_no_operation_of_the_vm() {
    let vm = VmPower::Off;
    for record in every_phase(MOMENT) {
        assert_eq!(record.mode(), ReplicationMode::Replica);
        assert!(record.may_start_vm().is_err());
        for operation in [
            Operation::InitiateFailover,
            Operation::TestReplicaSystem,
            Operation::CreateReplicationRelationship,
            Operation::SetFailoverNetworkAdapterSettings,
        ] {
            assert!(record.refuse_unless(operation).is_err(), "{operation:?}");
        }
        let wishes = [
            Event::Prepare { vm },
            choose(FailoverType::Regular),
            Event::Revert { vm },
            Event::Commit,
            Event::Reverse,
            Event::Yield {
                to: lineage(3, None),
            },
            Event::Survive {
                over: lineage(3, None),
                ancestors: Vec::new(),
                lineage: id(7),
            },
            Event::Adopt {
                lineage: lineage(3, Some(1)),
                ancestors: vec![lineage(1, None)],
                vm,
                hop: Hop::First,
            },
        ];
        for wish in wishes {
            assert!(record.decide(NOW, wish.clone()).is_err(), "{wish:?}");
        }
    }
}

#[test]
fn a_second_relationship_can_be_removed_at_once_or_after_a_pause() {
    for record in every_phase(MOMENT) {
        let removal = Operation::RemoveReplicationRelationship;
        let record = match record.refuse_unless(removal) {
            Ok(()) => continue,
            Err(_) => after(record, [Event::Suspend]),
        };
        assert_eq!(record.refuse_unless(removal), Ok(()));
    }
}

#[test]
fn a_replica_in_step_that_has_not_heard_of_a_fork_is_told_and_not_compared() {
    let forked = Record {
        lineage: lineage(2, Some(1)),
        ancestors: vec![lineage(1, None)],
        ..replicating()
    };
    let view = |sequence: u64| ReplicaView {
        lineage: lineage(1, None),
        ancestors: Vec::new(),
        has_taken_over: false,
        tip: Some((Sequence::new(sequence), receipt(sequence).id)),
        copy: None,
    };
    let theirs = lineage(1, None);
    let unaware = forked.standing(&view(9));
    assert_eq!(unaware, Standing::Unaware { theirs });
    let told = step(&forked, Event::Session(unaware));
    assert_eq!(told.next, forked);
    assert_eq!(told.effects, [Effect::AnnounceTakeOver]);
    assert_eq!(forked.standing(&view(8)), Standing::Behind { theirs });
}

#[test]
fn the_third_host_is_an_ordinary_replica_once_its_peer_is_the_primary() {
    let third = record(Role::Replica(Replica {
        phase: ReplicaPhase::Replicating,
        ..Replica::waiting(true)
    }));
    let news = |number, hop| {
        Event::Peer(TakeOverNews::TakenOver {
            lineage: lineage(number, Some(1)),
            ancestors: vec![lineage(1, None)],
            hop,
        })
    };
    let still = after(third.clone(), [news(4, Hop::Second)]);
    assert_eq!(still.mode(), ReplicationMode::ExtendedReplica);
    let now = after(third, [news(2, Hop::First)]);
    assert_eq!(now.mode(), ReplicationMode::Replica);
    assert_eq!(now.lineage.id, id(2));
}

#[test]
fn told_twice_the_second_hop_does_nothing_more() {
    let events = [told(Source::Nothing), told(MOMENT), told_of_commit()];
    for record in every_phase(MOMENT) {
        for event in &events {
            let once = after(record.clone(), [event.clone()]);
            let twice = step(&once, event.clone());
            assert_eq!(twice, once.unchanged(), "{event:?}");
        }
    }
}

#[test]
fn records_of_before_are_read_and_others_say_what_they_forward() {
    let plain = serde_json::to_value(replicating()).unwrap();
    assert_eq!(plain.get("forwards"), None);
    assert_eq!(
        serde_json::from_value::<Record>(plain).unwrap(),
        replicating()
    );
    for record in every_phase(MOMENT) {
        let saved = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&saved).unwrap(), record);
    }
}
