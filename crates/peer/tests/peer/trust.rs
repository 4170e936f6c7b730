//! Each way in which a certificate can be wrong has a name, on both sides.

use std::fs;
use std::sync::Arc;

use lifeboat_peer::pki::{RevocationCause, Role, TrustedFor};
use lifeboat_peer::{
    Distrust, LinkError, Links, PeerDistrust, RefusalCode, ServerEvent, WhyNotTrusted,
};

use crate::raw;
use crate::support::{
    Caller, Party, Scripted, Served, caller, days_ago, delta_place, in_days, names, now, serve,
};

const REPLICA: &str = "replica-1.example";
const PRIMARY: &str = "primary-1.example";

fn why(caller: &Caller, served: &Served) -> WhyNotTrusted {
    match caller.link(served, REPLICA).introduce() {
        Err(LinkError::NotTrusted { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// What both sides say of a caller that the server does not believe.
fn refused_caller(party: &Party, served: &Served) -> (PeerDistrust, Distrust) {
    let caller = caller(party);
    let WhyNotTrusted::ThisHost(ours) = why(&caller, served) else {
        panic!("the caller does not believe the server");
    };
    let ServerEvent::Distrusted { why: theirs, .. } = served.event() else {
        panic!("the server believes the caller");
    };
    (ours, theirs)
}

/// What both sides say of a server that the caller does not believe.
fn refused_server(party: &Party, served: &Served) -> (Distrust, String) {
    let WhyNotTrusted::Peer(theirs) = why(&caller(party), served) else {
        panic!("the caller believes the server");
    };
    let ServerEvent::DistrustsUs { alert, .. } = served.event() else {
        panic!("the server has not heard why");
    };
    (theirs, alert)
}

#[test]
fn two_hosts_of_one_authority_believe_each_other() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let host = Scripted::new();
    let served = serve(&replica, host.clone());
    caller(&primary).link(&served, REPLICA).introduce().unwrap();
    assert_eq!(
        *host.heard.lock().unwrap(),
        [format!("{PRIMARY}: introduce")]
    );
}

#[test]
fn hosts_of_two_authorities_believe_each_other_when_each_trusts_the_other_authority() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::with_authority(PRIMARY);
    let (of_replica, of_primary) = (
        replica.pki.authority_certificate().unwrap(),
        primary.pki.authority_certificate().unwrap(),
    );
    replica.pki.trust(&of_primary, TrustedFor::Hosts).unwrap();
    primary.pki.trust(&of_replica, TrustedFor::Hosts).unwrap();
    let served = serve(&replica, Scripted::new());
    caller(&primary).link(&served, REPLICA).introduce().unwrap();
}

#[test]
fn an_expired_caller_is_refused_by_name_on_both_sides() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, days_ago(1000));
    let served = serve(&replica, Scripted::new());
    let not_after = primary.pki.host_info().unwrap().unwrap().not_after;
    let (ours, theirs) = refused_caller(&primary, &served);
    assert_eq!(ours, PeerDistrust::Expired { not_after });
    assert_eq!(theirs, Distrust::Expired { not_after });
}

#[test]
fn an_expired_server_is_refused_by_name_on_both_sides() {
    let primary = Party::with_authority(PRIMARY);
    let replica = Party::joined(REPLICA, &primary, days_ago(1000));
    let served = serve(&replica, Scripted::new());
    let not_after = replica.pki.host_info().unwrap().unwrap().not_after;
    let (theirs, alert) = refused_server(&primary, &served);
    assert_eq!(theirs, Distrust::Expired { not_after });
    assert_eq!(alert, "CertificateExpired");
}

#[test]
fn a_certificate_of_the_future_is_refused_by_name_on_both_sides() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, in_days(100));
    let served = serve(&replica, Scripted::new());
    let not_before = primary.pki.host_info().unwrap().unwrap().not_before;
    let (ours, theirs) = refused_caller(&primary, &served);
    assert_eq!(ours, PeerDistrust::NotYetValid { not_before });
    assert_eq!(theirs, Distrust::NotYetValid { not_before });

    let served = serve(&primary, Scripted::new());
    let WhyNotTrusted::Peer(theirs) = why_named(&caller(&replica), &served, PRIMARY) else {
        panic!("a server of the future is believed");
    };
    assert_eq!(theirs, Distrust::NotYetValid { not_before });
}

fn why_named(caller: &Caller, served: &Served, name: &str) -> WhyNotTrusted {
    match caller.link(served, name).introduce() {
        Err(LinkError::NotTrusted { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_caller_of_a_strange_authority_is_refused_by_name_on_both_sides() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::with_authority(PRIMARY);
    let of_replica = replica.pki.authority_certificate().unwrap();
    primary.pki.trust(&of_replica, TrustedFor::Hosts).unwrap();
    let served = serve(&replica, Scripted::new());
    let (ours, theirs) = refused_caller(&primary, &served);
    assert_eq!(ours, PeerDistrust::UnknownAuthority);
    assert_eq!(theirs, Distrust::UnknownAuthority);
}

#[test]
fn a_server_of_a_strange_authority_is_refused_by_name_on_both_sides() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::with_authority(PRIMARY);
    let served = serve(&replica, Scripted::new());
    let (theirs, alert) = refused_server(&primary, &served);
    assert_eq!(theirs, Distrust::UnknownAuthority);
    assert_eq!(alert, "UnknownCA");
}

#[test]
fn a_host_of_another_name_is_refused_though_the_address_is_right() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let served = serve(&replica, Scripted::new());
    let expected = "replica-2.example".to_owned();
    let presented = vec![REPLICA.to_owned()];
    let why = why_named(&caller(&primary), &served, &expected);
    let wrong = Distrust::WrongName {
        expected,
        presented,
    };
    assert_eq!(why, WhyNotTrusted::Peer(wrong));
    let ServerEvent::DistrustsUs { .. } = served.event() else {
        panic!("the server has not heard that it was refused");
    };
}

#[test]
fn without_a_name_the_address_must_be_in_the_certificate() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let served = serve(&replica, Scripted::new());
    let link = caller(&primary);
    let plain = link.links.to(&served.address(), None).unwrap();
    assert!(matches!(
        plain.introduce(),
        Err(LinkError::NotTrusted {
            why: WhyNotTrusted::Peer(Distrust::WrongName { .. }),
            ..
        })
    ));
    let with_address = names(REPLICA).with_address("127.0.0.1".parse().unwrap());
    replica.pki.issue_own(&with_address, now()).unwrap();
    served.tls.reload(&replica.pki).unwrap();
    plain.introduce().unwrap();
}

#[test]
fn a_revoked_caller_is_refused_by_name_on_both_sides() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    revoke(&replica, &primary);
    let served = serve(&replica, Scripted::new());
    let (ours, theirs) = refused_caller(&primary, &served);
    assert_eq!(ours, PeerDistrust::Revoked);
    assert_eq!(theirs, Distrust::Revoked);
}

fn revoke(authority: &Party, host: &Party) {
    let serial = host.pki.host_info().unwrap().unwrap().serial;
    authority
        .pki
        .revoke(&serial, RevocationCause::KeyCompromised, now())
        .unwrap();
}

#[test]
fn a_revoked_server_is_refused_by_name_on_both_sides() {
    let primary = Party::with_authority(PRIMARY);
    let replica = Party::joined(REPLICA, &primary, now());
    revoke(&primary, &replica);
    let served = serve(&replica, Scripted::new());
    let (theirs, alert) = refused_server(&primary, &served);
    assert_eq!(theirs, Distrust::Revoked);
    assert_eq!(alert, "CertificateRevoked");
}

#[test]
fn an_operators_certificate_does_not_serve_between_hosts() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let operator = replica
        .pki
        .issue_operator("root", Role::Administrator, now())
        .unwrap();
    let stolen = operator.key + &operator.certificate;
    fs::write(primary.pki.folder().join("host.pem"), stolen).unwrap();
    let served = serve(&replica, Scripted::new());
    let (ours, theirs) = refused_caller(&primary, &served);
    assert_eq!(ours, PeerDistrust::WrongPurpose);
    assert_eq!(theirs, Distrust::WrongPurpose);
}

#[test]
fn a_caller_without_a_certificate_is_refused() {
    let replica = Party::with_authority(REPLICA);
    let served = serve(&replica, Scripted::new());
    let config = raw::client_config(&replica, raw::Proof::None, &rustls::version::TLS13);
    let error = raw::connect(&served, config).exchange(b"GET / HTTP/1.1\r\n\r\n");
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("CertificateRequired")
    );
    assert!(matches!(
        served.event(),
        ServerEvent::Distrusted {
            why: Distrust::NoCertificate,
            ..
        }
    ));
}

#[test]
fn tls_1_2_is_refused_by_name() {
    let replica = Party::with_authority(REPLICA);
    let served = serve(&replica, Scripted::new());
    let config = raw::client_config(&replica, raw::Proof::Host, &rustls::version::TLS12);
    let error = raw::connect(&served, config).exchange(b"GET / HTTP/1.1\r\n\r\n");
    assert!(error.unwrap_err().to_string().contains("ProtocolVersion"));
    assert!(matches!(
        served.event(),
        ServerEvent::Distrusted {
            why: Distrust::OldTls,
            ..
        }
    ));
}

#[test]
fn a_caller_that_is_revoked_while_connected_is_refused_at_its_next_request() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let host = Scripted::new();
    let served = serve(&replica, host.clone());
    let caller = caller(&primary);
    let link = caller.link(&served, REPLICA);
    link.introduce().unwrap();
    revoke(&replica, &primary);
    // Until TLS is loaded again nothing changes.
    link.introduce().unwrap();
    served.tls.reload(&replica.pki).unwrap();
    let event = served.event_that(|event| matches!(event, ServerEvent::CutOff { .. }));
    assert_eq!(
        event,
        ServerEvent::CutOff {
            peer: lifeboat_peer::PeerName::new(PRIMARY.to_owned()),
            why: Distrust::Revoked,
        }
    );
    let refused = match link.introduce() {
        Err(LinkError::NotTrusted {
            why: WhyNotTrusted::ThisHost(why),
            ..
        }) => why == PeerDistrust::Revoked,
        Err(LinkError::Refused(refusal)) => refusal.code == RefusalCode::NotAuthorized,
        other => panic!("{other:?}"),
    };
    assert!(refused);
    assert_eq!(host.heard.lock().unwrap().len(), 2);
}

#[test]
fn a_transfer_of_a_caller_that_is_revoked_meanwhile_is_cut() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let (began, begun) = std::sync::mpsc::channel();
    let (ended, end) = std::sync::mpsc::channel();
    let began = std::sync::Mutex::new(began);
    let ended = std::sync::Mutex::new(ended);
    let host = Scripted::on_delta(move |_, place, body| {
        let mut buffer = [0; 1000];
        body.read_exact(&mut buffer).unwrap();
        began.lock().unwrap().send(()).unwrap();
        let outcome = std::io::copy(body, &mut std::io::sink());
        ended.lock().unwrap().send(outcome.is_err()).unwrap();
        Ok(crate::support::receipt(place))
    });
    let served = serve(&replica, host);
    let caller = caller(&primary);
    let link = caller.link(&served, REPLICA);
    let sending =
        std::thread::spawn(move || link.put_delta(delta_place(), &mut std::io::repeat(1)));
    begun.recv().unwrap();
    revoke(&replica, &primary);
    served.tls.reload(&replica.pki).unwrap();
    assert!(end.recv().unwrap(), "the host saw the body's end");
    assert!(matches!(
        sending.join().unwrap(),
        Err(LinkError::Interrupted { .. } | LinkError::NotTrusted { .. })
    ));
}

#[test]
fn other_callers_go_on_when_tls_is_loaded_again() {
    let replica = Party::with_authority(REPLICA);
    let good = Party::joined(PRIMARY, &replica, now());
    let bad = Party::joined("primary-2.example", &replica, now());
    let (began, begun) = std::sync::mpsc::channel();
    let began = std::sync::Mutex::new(began);
    let gate = Arc::new(std::sync::Barrier::new(2));
    let open = Arc::clone(&gate);
    let host = Scripted::on_delta(move |_, place, body| {
        body.read_exact(&mut [0; 10]).unwrap();
        began.lock().unwrap().send(()).unwrap();
        open.wait();
        std::io::copy(body, &mut std::io::sink())
            .map_err(|error| crate::support::failed(&error))?;
        Ok(crate::support::receipt(place))
    });
    let served = serve(&replica, host);
    let caller = caller(&good);
    let link = caller.link(&served, REPLICA);
    let sending =
        std::thread::spawn(move || link.put_delta(delta_place(), &mut vec![5; 8 << 20].as_slice()));
    begun.recv().unwrap();
    revoke(&replica, &bad);
    served.tls.reload(&replica.pki).unwrap();
    gate.wait();
    sending.join().unwrap().unwrap();
}

#[test]
fn a_renewed_certificate_is_used_after_a_reload_without_a_restart() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, days_ago(1000));
    let served = serve(&replica, Scripted::new());
    let caller = caller(&primary);
    let link = caller.link(&served, REPLICA);
    assert!(matches!(
        link.introduce(),
        Err(LinkError::NotTrusted { .. })
    ));
    primary.join(&replica, now());
    caller.tls.reload(&primary.pki).unwrap();
    link.introduce().unwrap();
}

#[test]
fn every_reason_says_what_to_do() {
    let moment = now();
    let texts = [
        Distrust::Expired { not_after: moment }.to_string(),
        Distrust::NotYetValid { not_before: moment }.to_string(),
        Distrust::UnknownAuthority.to_string(),
        Distrust::WrongName {
            expected: "a".to_owned(),
            presented: vec!["b".to_owned()],
        }
        .to_string(),
        Distrust::Revoked.to_string(),
        PeerDistrust::Expired { not_after: moment }.to_string(),
        PeerDistrust::NotYetValid { not_before: moment }.to_string(),
        PeerDistrust::UnknownAuthority.to_string(),
        PeerDistrust::Revoked.to_string(),
        PeerDistrust::NoCertificate.to_string(),
    ];
    let mut distinct = std::collections::BTreeSet::new();
    for text in texts {
        assert!(text.contains("; "), "{text}");
        assert!(distinct.insert(text));
    }
}
