//! A first copy and cycles over a line that is cut in the middle of each.

use std::net::{IpAddr, Ipv4Addr};

use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{SettingsChange, StartReplication};

use crate::host::Host;
use crate::pair::{At, Pair, VM};
use crate::relay::Quality;
use crate::space::spaces;

/// Pieces of a copy, and what is written to each of them.
const PIECES: u64 = 5;
const PIECE: u64 = 64 << 20;
const WRITTEN: u64 = 5 << 20;

/// What the three pieces that are under way hold, and everything that is no data.
const SENT_AGAIN: u64 = 3 * WRITTEN + (3 << 20);

/// What the guest writes before a cycle.
const CHANGED: u64 = 6 << 20;

/// Two hosts with a slow line between them, each in a network of its own where there are any.
fn pair() -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = spaces().map_or((None, None), |[one, other]| (Some(one), Some(other)));
    let near = |space: Option<&crate::space::Space>| {
        IpAddr::V4(space.map_or(Ipv4Addr::LOCALHOST, |space| space.near))
    };
    // Each is found at the end of the other's cable.
    let (to_alpha, to_beta) = (near(other.as_ref()), near(one.as_ref()));
    let host =
        |name, space, reached_at| Host::new(name, folder.path(), space, reached_at, Quality::SLOW);
    let alpha = host("alpha.test", one, to_alpha);
    let beta = host("beta.test", other, to_beta);
    let mut pair = Pair::new(folder, alpha, beta, PIECES * PIECE);
    for piece in 0..PIECES {
        pair.write(At::Alpha, piece * PIECE + (7 << 20), WRITTEN);
    }
    pair.enable(SettingsChange {
        replication_interval: Some(5),
        recovery_history: Some(4),
        ..SettingsChange::default()
    });
    pair
}

/// Cuts the line when so many bytes more have passed, and mends it when the primary has
/// noticed.
fn cut_after(pair: &mut Pair, bytes: u64) {
    let before = pair.beta.relay.bytes();
    pair.beta
        .wait("bytes pass", |host| host.relay.bytes() - before >= bytes);
    pair.beta.relay.cut();
    let address = pair.beta.relay.address.to_string();
    pair.alpha.wait("the cut is noticed", |host| {
        let reasons = host.client.health(VM).unwrap().value.reasons;
        reasons.iter().any(|reason| reason.what.contains(&address))
    });
    pair.beta.relay.mend();
}

/// Nothing gets through, without anybody being told, until nothing is under way any more.
fn unplug_for_a_while(pair: &mut Pair) {
    let Some(space) = &pair.beta.space else {
        println!("no cable can be pulled here: the line is cut instead");
        pair.beta.relay.cut();
        pair.beta.relay.mend();
        return;
    };
    space.unplug();
    let (mut before, mut still) = (0, 0);
    pair.alpha.wait("nothing is under way", |_| {
        let now = pair.beta.relay.bytes();
        still = if now == before { still + 1 } else { 0 };
        before = now;
        still == 50
    });
    space.plug_in();
}

fn begin_copy(pair: &Pair) {
    pair.alpha.request(
        VM,
        &VmRequest::StartReplication(StartReplication::default()),
    );
}

#[test]
fn a_copy_and_cycles_over_a_line_that_is_cut_arrive_whole_and_once() {
    let mut pair = pair();
    let before = pair.beta.relay.bytes();
    begin_copy(&pair);
    // In the middle of a piece.
    cut_after(&mut pair, 2 * WRITTEN + WRITTEN / 2);
    pair.write(At::Alpha, PIECE, 1 << 20);
    pair.copy();
    pair.replicate(At::Alpha);
    let copied = pair.beta.relay.bytes() - before;
    let all = PIECES * WRITTEN + (1 << 20);
    assert!(copied < all + SENT_AGAIN, "{copied} of {all} travelled");
    pair.expect_replica(At::Beta);

    let before = pair.beta.relay.bytes();
    pair.write(At::Alpha, 3 * PIECE, CHANGED);
    pair.alpha.request(VM, &VmRequest::ReplicateNow);
    cut_after(&mut pair, CHANGED / 2);
    pair.replicate(At::Alpha);
    pair.expect_replica(At::Beta);

    pair.write(At::Alpha, 2 * PIECE, CHANGED);
    pair.alpha.request(VM, &VmRequest::ReplicateNow);
    let half = pair.beta.relay.bytes() + CHANGED / 2;
    pair.beta
        .wait("bytes pass", |host| host.relay.bytes() >= half);
    unplug_for_a_while(&mut pair);
    pair.write(At::Alpha, PIECE + (20 << 20), 1 << 20);
    pair.replicate(At::Alpha);
    pair.expect_replica(At::Beta);
    let sent = pair.beta.relay.bytes() - before;
    // Each delta may have to be sent once more.
    assert!(sent < 4 * CHANGED + (4 << 20), "{sent} travelled");
    println!(
        "{copied} bytes for a copy of {all}, {sent} for cycles of {}",
        2 * CHANGED
    );
}

#[test]
fn a_catalog_that_is_lost_and_made_again_costs_what_has_changed_and_no_copy() {
    let mut pair = pair();
    pair.copy();
    pair.replicate(At::Alpha);
    pair.beta.lose_catalog();
    let before = pair.beta.relay.bytes();
    pair.write(At::Alpha, 3 * PIECE, CHANGED);
    pair.beta.start();
    pair.beta.let_in(&pair.alpha);
    pair.replicate(At::Alpha);
    let sent = pair.beta.relay.bytes() - before;
    assert!(sent < CHANGED + (3 << 20), "{sent} of {CHANGED} travelled");
    pair.expect_replica(At::Beta);
}
