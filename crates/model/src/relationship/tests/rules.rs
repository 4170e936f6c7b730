//! What the table does not say.

use super::table::{primary_rows, replica_rows};
use super::*;
use crate::contract::ReplicationState as S;

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
        hop: Hop::First,
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
        hop: Hop::First,
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
fn the_newest_lineages_are_remembered_however_many_failovers_there_were() {
    let number = |number: u32| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        LineageId::from_bytes(bytes)
    };
    let mut record = replicating();
    let first = record.lineage.id;
    let most = u32::try_from(MAX_ANCESTORS).unwrap();
    for one in 0..most + 10 {
        record.fork(number(one), Sequence::new(9), &[]);
    }
    assert_eq!(record.ancestors.len(), MAX_ANCESTORS);
    let missed = |older| standing::descends(&record.lineage, &record.ancestors, older);
    assert!(missed(number(most)), "a few failovers were missed");
    assert!(!missed(first), "that is too long ago");
}

#[test]
fn a_failover_is_refused_while_the_primary_runs_or_prepares_unless_it_is_forced() {
    let decide = |guest| {
        let event = choose_while(FailoverType::Regular, guest);
        replica(ReplicaPhase::Replicating).decide(NOW, event)
    };
    assert_eq!(
        decide(PrimaryGuest::Running),
        Err(Refused::PrimaryRunning),
        "what it writes would be lost"
    );
    assert_eq!(
        decide(PrimaryGuest::Preparing),
        Err(Refused::PrimaryPreparing),
        "what is on its way would be lost"
    );
    for guest in [
        PrimaryGuest::Off,
        PrimaryGuest::Unknown,
        PrimaryGuest::Overruled,
    ] {
        let next = decide(guest).unwrap().next;
        assert_eq!(next.state(), S::FailoverInProgress, "{guest:?}");
    }
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

#[test]
fn a_moment_has_come_through_until_its_lineage_was_left() {
    let forked = |number, from, at| Lineage {
        forked_from: Some((id(from), Sequence::new(at))),
        ..lineage(number, None)
    };
    let mut record = replicating();
    record.lineage = forked(3, 2, 30);
    // 9 was given up; nothing of it has come here.
    record.ancestors = vec![lineage(1, None), forked(2, 1, 20), forked(9, 1, 10)];
    let through = |number, moment| record.has_come_through(id(number), Sequence::new(moment));
    assert!(through(3, 99));
    assert!(through(2, 30) && !through(2, 31));
    assert!(through(1, 20) && !through(1, 21));
    assert!(!through(9, 1) && !through(8, 1));
    // A lineage left before its own beginning has brought nothing from there on.
    record.lineage = forked(3, 2, 5);
    let through = |number, moment| record.has_come_through(id(number), Sequence::new(moment));
    assert!(through(1, 5) && !through(1, 6));
}

#[test]
fn a_copy_goes_on_when_the_peer_has_become_the_replica() {
    let copying = |record: &Record| match &record.role {
        Role::Primary(Primary::Resyncing(copying)) => *copying,
        other => panic!("{other:?}"),
    };
    let resyncing = after(resync_required(), [Event::Resynchronize { at: None }]);
    let copy = copying(&resyncing).copy;
    let adopted = |drawn| resyncing.decide(NOW, Event::Adopted { drawn }).unwrap();
    // A smaller number is used up there than the copy has: the same copy goes on.
    let step = adopted(Sequence::new(copy.number() - 1));
    assert_eq!(step.next, resyncing);
    let purpose = CopyPurpose::Compare;
    assert_eq!(step.effects, [Effect::Copy { copy, purpose }]);
    let step = adopted(copy);
    assert!(copying(&step.next).copy > copy);
}

#[test]
fn a_primary_that_takes_up_a_kept_replica_leads_it_only_by_a_comparison() {
    let kept = replica(ReplicaPhase::Replicating);
    let tip = (Sequence::new(9), DeltaId::from_bytes([9; 32]));
    let view = |record: &Record, copy| ReplicaView::of(record, Some(tip), copy);
    let ours = Record::taking_up(
        kept.vm,
        kept.relationship,
        &view(&kept, Some(Sequence::new(12))),
        tip.0,
        id(5),
    );
    assert_eq!(ours.state(), S::WaitingToStartResynchronization);
    assert_eq!(
        ours.drawn,
        Sequence::new(12),
        "numbers are never drawn twice"
    );
    assert_eq!(ours.lineage.forked_from, Some((kept.lineage.id, tip.0)));
    assert!(ours.has_come_through(kept.lineage.id, tip.0));
    let behind = Standing::Behind {
        theirs: kept.lineage,
    };
    assert_eq!(ours.standing(&view(&kept, None)), behind);
    let step = ours.decide(NOW, Event::Session(behind)).unwrap();
    assert_eq!(step.next.state(), S::WaitingToStartResynchronization);
    assert!(step.effects.contains(&Effect::AnnounceTakeOver));
    // The replica follows, and whoever still has the lost catalog is left behind.
    let news = TakeOverNews::TakenOver {
        lineage: ours.lineage,
        ancestors: ours.ancestors.clone(),
        hop: Hop::First,
    };
    let followed = after(kept, [Event::Peer(news)]);
    assert_eq!(followed.lineage, ours.lineage);
    let lost = replicating();
    let standing = lost.standing(&view(&followed, None));
    assert!(
        matches!(standing, Standing::TakenOver { .. }),
        "{standing:?}"
    );
}
