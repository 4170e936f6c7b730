//! The network in memory does what it is told, so that tests that rest on it mean something.

use std::io;
use std::sync::Arc;

use lifeboat_peer::testing::{Fault, Network};
use lifeboat_peer::{Cancel, Link, LinkError, Links, PeerAddress, PeerName};

use crate::calls::{digest_query, session};
use crate::support::{Scripted, delta_place, introduction, receipt};

fn network() -> (Network, PeerAddress, Arc<Scripted>, Arc<dyn Link>) {
    let network = Network::new();
    let address: PeerAddress = "replica-1.example:8473".parse().unwrap();
    let host = Scripted::new();
    let name = PeerName::new("replica-1.example".to_owned());
    network.add(&address, name, host.clone());
    let links = network.links(PeerName::new("primary".to_owned()));
    let link = links.to(&address, Some("replica-1.example")).unwrap();
    (network, address, host, link)
}

fn heard(host: &Scripted) -> usize {
    host.heard.lock().unwrap().len()
}

#[test]
fn calls_pass_when_nothing_is_planned() {
    let (_, _, host, link) = network();
    assert_eq!(link.introduce().unwrap(), introduction());
    link.begin_session(session()).unwrap();
    assert_eq!(link.digests(digest_query()).unwrap().len(), 32);
    let got = link
        .put_delta(delta_place(), &mut [1; 100].as_slice())
        .unwrap();
    assert_eq!(got, receipt(&delta_place()));
    assert_eq!(host.heard.lock().unwrap()[0], "primary: introduce");
}

#[test]
fn faults_happen_in_the_order_in_which_they_were_planned() {
    let (network, address, host, link) = network();
    network.plan(&address, Fault::RefuseConnection);
    network.plan_success(&address);
    network.plan(&address, Fault::LoseRequest);
    network.plan(&address, Fault::LoseAnswer);
    network.plan(&address, Fault::Repeat);
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Unreachable { .. })
    ));
    assert_eq!(heard(&host), 0);
    link.introduce().unwrap();
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Interrupted { .. })
    ));
    assert_eq!(heard(&host), 1);
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Interrupted { .. })
    ));
    assert_eq!(heard(&host), 2);
    assert!(!network.is_exhausted());
    link.introduce().unwrap();
    assert_eq!(heard(&host), 4);
    assert!(network.is_exhausted());
    link.introduce().unwrap();
}

#[test]
fn a_body_is_cut_where_it_was_planned_and_the_host_sees_no_end() {
    let (network, address, _, _) = network();
    let host = Scripted::on_delta(|_, place, body| {
        let mut bytes = Vec::new();
        assert!(body.read_to_end(&mut bytes).is_err());
        assert_eq!(bytes.len(), 60);
        Ok(receipt(place))
    });
    let name = PeerName::new("replica-1.example".to_owned());
    network.add(&address, name, host.clone());
    let link = network
        .links(PeerName::new("primary".to_owned()))
        .to(&address, None)
        .unwrap();
    network.plan(&address, Fault::CutBody { after: 60 });
    let put = link.put_delta(delta_place(), &mut [1; 100].as_slice());
    assert!(matches!(put, Err(LinkError::Interrupted { .. })));
    assert_eq!(heard(&host), 1);
}

#[test]
fn a_repeated_body_is_the_same_body() {
    let (network, address, _, _) = network();
    let host = Scripted::on_delta(|_, place, body| {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [9; 100]);
        Ok(receipt(place))
    });
    let name = PeerName::new("replica-1.example".to_owned());
    network.add(&address, name, host.clone());
    let link = network
        .links(PeerName::new("primary".to_owned()))
        .to(&address, None)
        .unwrap();
    network.plan(&address, Fault::Repeat);
    link.put_delta(delta_place(), &mut [9; 100].as_slice())
        .unwrap();
    assert_eq!(heard(&host), 2);
}

#[test]
fn a_disconnected_host_is_unreachable_until_it_is_connected_again() {
    let (network, address, _, link) = network();
    network.disconnect(&address);
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Unreachable { .. })
    ));
    network.connect(&address);
    link.introduce().unwrap();
    network.remove(&address);
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Unreachable { .. })
    ));
}

#[test]
fn a_cancelled_body_and_a_broken_source_are_told_apart() {
    let (_, _, _, link) = network();
    let cancel = Cancel::new();
    cancel.raise();
    let cancelled = link.cancelled_by(cancel);
    let put = cancelled.put_delta(delta_place(), &mut io::repeat(1));
    assert!(matches!(put, Err(LinkError::Cancelled)));
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
    let put = link.put_delta(delta_place(), &mut Broken);
    assert!(matches!(put, Err(LinkError::Source(_))));
}

#[test]
fn another_name_than_expected_is_not_trusted() {
    let (network, address, host, _) = network();
    let link = network
        .links(PeerName::new("primary".to_owned()))
        .to(&address, Some("replica-2.example"))
        .unwrap();
    assert!(matches!(
        link.introduce(),
        Err(LinkError::NotTrusted { .. })
    ));
    assert_eq!(heard(&host), 0);
}
