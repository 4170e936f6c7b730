//! The contract's transition table, by its numbers, and what it does not say.

mod forward;
mod rules;
mod table;

use crate::contract::{FailoverType, InitialReplicationType};
use crate::relationship::*;
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
        forwards: None,
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
    choose_while(kind, PrimaryGuest::Unknown)
}

fn choose_while(kind: FailoverType, primary: PrimaryGuest) -> Event {
    Event::FailOver(FailoverChoice {
        point: None,
        kind,
        lineage: id(2),
        primary,
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
        hop: Hop::First,
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
