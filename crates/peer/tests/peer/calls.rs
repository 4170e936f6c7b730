//! Every call arrives as it was made, and its answer as it was given.

use std::sync::Arc;

use lifeboat_model::{DiskSize, Sequence};
use lifeboat_peer::{
    Adoption, BeginCopy, Cancel, ChangeSettings, ChunkPlace, CopyKind, DigestQuery, Limits, Link,
    LinkError, Links, NewReplica, Patience, PeerDisk, PlannedFailover, PlannedPhase, RefusalCode,
    Removal, ServerEvent, SessionRequest, TakeOver, TakeOverState, Verified,
};

use crate::support::{
    Caller, PATIENCE, Party, Scripted, Served, caller, caller_with, delta_place, disk,
    introduction, lineage, now, receipt, relationship, report, serve, serve_with, vm,
};

pub const REPLICA: &str = "replica-1.example";
pub const PRIMARY: &str = "primary-1.example";

pub struct Pair {
    pub served: Served,
    pub caller: Caller,
    pub link: Arc<dyn Link>,
}

pub fn pair(host: Arc<Scripted>) -> Pair {
    pair_with(host, Limits::default(), Patience::default())
}

pub fn pair_with(host: Arc<Scripted>, limits: Limits, patience: Patience) -> Pair {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let served = serve_with(&replica, host, limits);
    let caller = caller_with(&primary, patience);
    let link = caller.link(&served, REPLICA);
    Pair {
        served,
        caller,
        link,
    }
}

pub fn new_replica() -> NewReplica {
    NewReplica {
        vm: vm(),
        vm_name: "web \u{1F6DF}".to_owned(),
        relationship: relationship(),
        lineage: lineage(),
        disks: vec![PeerDisk {
            id: disk(),
            size: DiskSize::try_from(1 << 30).unwrap(),
        }],
        definition: serde_json::json!({"cpus": 2}),
        settings: serde_json::json!({"interval": 300}),
        caller_address: "primary-1.example:8473".to_owned(),
        extended: false,
    }
}

pub fn digest_query() -> DigestQuery {
    DigestQuery {
        relationship: relationship(),
        lineage: lineage().id,
        disk: disk(),
        ranges: vec![0..4096, 8192..12288],
        unit: 4096,
        key: "ab".repeat(32),
        at: None,
    }
}

pub fn session() -> SessionRequest {
    SessionRequest {
        relationship: relationship(),
        lineage: lineage(),
        ancestors: Vec::new(),
        last_receipt: None,
        wall_clock: now(),
    }
}

pub fn chunk_place() -> ChunkPlace {
    ChunkPlace {
        relationship: relationship(),
        lineage: lineage().id,
        copy: Sequence::new(1),
        disk: disk(),
        range: 65536..131_072,
    }
}

#[test]
fn every_call_is_heard_and_answered() {
    let host = Scripted::new();
    let pair = pair(host.clone());
    let link = &pair.link;
    assert_eq!(link.introduce().unwrap(), introduction());
    link.make_replica(new_replica()).unwrap();
    assert_eq!(link.begin_session(session()).unwrap(), report());
    let copy = BeginCopy {
        relationship: relationship(),
        lineage: lineage().id,
        copy: Sequence::new(5),
        kind: CopyKind::Resync,
        disks: Vec::new(),
    };
    assert_eq!(link.begin_copy(copy).unwrap().copy, Sequence::new(5));
    assert_eq!(link.digests(digest_query()).unwrap().len(), 32);
    link.verified(Verified {
        relationship: relationship(),
        lineage: lineage().id,
        at: Sequence::new(6),
    })
    .unwrap();
    link.put_chunk(chunk_place(), &mut [7_u8; 3000].as_slice())
        .unwrap();
    let got = link.put_delta(delta_place(), &mut [].as_slice()).unwrap();
    assert_eq!(got, receipt(&delta_place()));
    let planned = |phase| PlannedFailover {
        relationship: relationship(),
        lineage: lineage().id,
        sequence: Sequence::new(42),
        phase,
    };
    link.planned_failover(planned(PlannedPhase::Prepared))
        .unwrap();
    assert_eq!(link.guest_status(relationship()).unwrap().unsent_bytes, 7);
    link.take_over(TakeOver {
        relationship: relationship(),
        lineage: lineage(),
        ancestors: vec![lineage()],
        state: TakeOverState::Committed,
    })
    .unwrap();
    let adopted = link
        .adopt(Adoption {
            old_relationship: relationship(),
            replica: new_replica(),
            ancestors: Vec::new(),
        })
        .unwrap();
    assert_eq!(adopted.drawn, Sequence::new(9));
    link.change_settings(ChangeSettings {
        relationship: relationship(),
        settings: serde_json::json!({}),
        definition: serde_json::json!(null),
    })
    .unwrap();
    let heard = host.heard.lock().unwrap().join("\n");
    for what in [
        "introduce",
        "make replica of web \u{1F6DF}",
        "begin session",
        "begin copy",
        "digests",
        "verified at 6",
        "chunk of 3000 bytes at 65536",
        "delta 42",
        "planned failover Prepared",
        "guest status",
        "take over Committed",
        "adopt",
        "change settings",
    ] {
        assert!(
            heard.contains(&format!("{PRIMARY}: {what}")),
            "{what} in\n{heard}"
        );
    }
}

#[test]
fn a_refusal_arrives_with_its_code_and_in_words_fit_for_a_terminal() {
    let pair = pair(Scripted::new());
    let planned = PlannedFailover {
        relationship: relationship(),
        lineage: lineage().id,
        sequence: Sequence::new(42),
        phase: PlannedPhase::Cancelled,
    };
    let Err(LinkError::Refused(refusal)) = pair.link.planned_failover(planned) else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, RefusalCode::InvalidState);
    assert_eq!(refusal.message, "the replica [2J has failed over ");
    // The connection is good yet.
    pair.link.introduce().unwrap();
}

#[test]
fn a_panic_of_the_host_ends_that_request_only() {
    let pair = pair(Scripted::new());
    let removal = Removal {
        relationship: relationship(),
    };
    let Err(LinkError::Refused(refusal)) = pair.link.remove(removal) else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, RefusalCode::Failed);
    assert!(matches!(
        pair.served.event(),
        ServerEvent::Panicked {
            call: "/peer/v1/remove",
            ..
        }
    ));
    pair.link.introduce().unwrap();
}

#[test]
fn a_host_that_miscounts_digests_is_not_passed_on() {
    let pair = pair(Scripted::new());
    let mut query = digest_query();
    query.key = "0".repeat(64);
    let Err(LinkError::Refused(refusal)) = pair.link.digests(query) else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, RefusalCode::Failed);
}

#[test]
fn a_message_beyond_the_bounds_is_not_sent() {
    let host = Scripted::new();
    let pair = pair(host.clone());
    let mut message = new_replica();
    message.vm_name = "x".repeat(lifeboat_peer::MAX_MESSAGE);
    assert!(matches!(
        pair.link.make_replica(message),
        Err(LinkError::Unsendable { .. })
    ));
    let mut query = digest_query();
    query.unit = 1;
    assert!(matches!(
        pair.link.digests(query),
        Err(LinkError::Unsendable { .. })
    ));
    assert!(host.heard.lock().unwrap().is_empty());
}

#[test]
fn nobody_at_the_address_is_unreachable() {
    let pair = pair(Scripted::new());
    let address = pair.served.address();
    pair.served.server.stop(PATIENCE);
    let link = pair.caller.links.to(&address, Some(REPLICA)).unwrap();
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Unreachable { .. })
    ));
}

#[test]
fn names_that_no_certificate_proves_are_refused_at_once() {
    let pair = pair(Scripted::new());
    let address = pair.served.address();
    for name in ["", "*", "a b", "10.0.0.1", "*.example"] {
        let link = pair.caller.links.to(&address, Some(name));
        assert!(matches!(link, Err(LinkError::HostName { .. })), "{name}");
    }
}

#[test]
fn a_call_on_a_link_that_is_cancelled_does_not_begin() {
    let host = Scripted::new();
    let pair = pair(host.clone());
    let cancel = Cancel::new();
    let link = pair.link.cancelled_by(cancel.clone());
    link.introduce().unwrap();
    cancel.raise();
    assert!(matches!(link.introduce(), Err(LinkError::Cancelled)));
    pair.link.introduce().unwrap();
    assert_eq!(host.heard.lock().unwrap().len(), 2);
}

#[test]
fn one_connection_carries_one_call_after_another() {
    let limits = Limits {
        connections_per_peer: 1,
        ..Limits::default()
    };
    let pair = pair_with(Scripted::new(), limits, Patience::default());
    for _ in 0..20 {
        pair.link.introduce().unwrap();
        pair.link
            .put_chunk(chunk_place(), &mut [1; 100].as_slice())
            .unwrap();
    }
}

#[test]
fn a_connection_that_the_server_has_closed_meanwhile_is_replaced_unnoticed() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let served = serve(&replica, Scripted::new());
    let caller = caller(&primary);
    let link = caller.link(&served, REPLICA);
    link.introduce().unwrap();
    let address = served.server.address();
    let Served {
        server,
        tls,
        runtime,
        ..
    } = served;
    server.stop(PATIENCE);
    let again = lifeboat_peer::PeerServer::start(
        runtime.handle(),
        address,
        Scripted::new(),
        tls,
        Limits::default(),
        Arc::new(|_| {}),
    )
    .unwrap();
    link.introduce().unwrap();
    link.put_delta(delta_place(), &mut [1; 100].as_slice())
        .unwrap();
    drop(again);
}

#[test]
fn requests_beyond_the_limit_are_told_to_come_again() {
    let (began, begun) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let (began, gate) = (std::sync::Mutex::new(began), std::sync::Mutex::new(gate));
    let host = Scripted::on_delta(move |_, place, _| {
        began.lock().unwrap().send(()).unwrap();
        gate.lock().unwrap().recv().unwrap();
        Ok(receipt(place))
    });
    let limits = Limits {
        requests_per_peer: 1,
        ..Limits::default()
    };
    let pair = pair_with(host, limits, Patience::default());
    let link = Arc::clone(&pair.link);
    let first = std::thread::spawn(move || link.put_delta(delta_place(), &mut [].as_slice()));
    begun.recv().unwrap();
    let Err(LinkError::Refused(refusal)) = pair.link.introduce() else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, RefusalCode::Busy);
    go.send(()).unwrap();
    first.join().unwrap().unwrap();
    pair.link.introduce().unwrap();
}

#[test]
fn stopping_lets_a_request_that_runs_end() {
    let (began, begun) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let (began, gate) = (std::sync::Mutex::new(began), std::sync::Mutex::new(gate));
    let host = Scripted::on_delta(move |_, place, body| {
        body.read_exact(&mut [0; 1]).unwrap();
        began.lock().unwrap().send(()).unwrap();
        gate.lock().unwrap().recv().unwrap();
        std::io::copy(body, &mut std::io::sink()).unwrap();
        Ok(receipt(place))
    });
    let pair = pair(host);
    let link = Arc::clone(&pair.link);
    let sending =
        std::thread::spawn(move || link.put_delta(delta_place(), &mut vec![1; 4 << 20].as_slice()));
    begun.recv().unwrap();
    let server = pair.served.server;
    let stopping = std::thread::spawn(move || server.stop(PATIENCE));
    go.send(()).unwrap();
    sending.join().unwrap().unwrap();
    stopping.join().unwrap();
    assert!(matches!(
        pair.link.introduce(),
        Err(LinkError::Unreachable { .. } | LinkError::Interrupted { .. })
    ));
}
