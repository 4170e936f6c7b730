//! Comparing a VM's disks, as a host serves them, with the moment that they claim to be.

use std::io;

use lifeboat_nbd::Client;
use serde::Serialize;

use super::compare::{Difference, compare};
use super::guest::DISKS;
use super::history::{Claim, History, MARKER_BYTES, MARKER_DISK, Request};
use super::shadow::Shadow;

/// All disks of a VM, compared with what the guest wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What was read.
    pub what: String,
    /// How many requests of the guest the disks hold.
    pub requests: usize,
    /// Compared, in bytes.
    pub bytes: u64,
    pub wrong_bytes: u64,
    /// The first difference; absent when everything is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Difference>,
}

impl Comparison {
    /// What was found, in a few words.
    #[must_use]
    pub fn verdict(&self) -> String {
        match &self.first {
            None => "as written, 0 wrong bytes".to_owned(),
            Some(first) => format!("WRONG, {} wrong bytes, first: {first}", self.wrong_bytes),
        }
    }
}

/// The moment that the disks' marker claims.
///
/// # Errors
/// When they claim none, or cannot be read.
pub fn claim(clients: &[Client], history: &History) -> Result<Claim, Difference> {
    let disk = DISKS[MARKER_DISK].id();
    let mut marker = vec![0; MARKER_BYTES];
    let read = clients[MARKER_DISK].read(0, &mut marker);
    read.map_err(|error| Difference::Unreadable {
        disk: disk.clone(),
        offset: 0,
        why: error.to_string(),
    })?;
    history.claim(&marker).ok_or(Difference::NoMoment { disk })
}

/// Compares every byte of every disk with the moment that the disks claim: what the guest had
/// written at one instant between two requests.
#[must_use]
pub fn compare_claim(what: &str, clients: &[Client], claim: Claim) -> Comparison {
    let (count, shadows) = settle(clients, claim);
    compare_all(what, clients, count, &shadows)
}

/// Compares every byte of every disk with the state after so many requests.
#[must_use]
pub fn compare_all(
    what: &str,
    clients: &[Client],
    requests: usize,
    shadows: &[Shadow],
) -> Comparison {
    let mut comparison = Comparison {
        what: what.to_owned(),
        requests,
        bytes: 0,
        wrong_bytes: 0,
        first: None,
    };
    for ((plan, client), shadow) in DISKS.iter().zip(clients).zip(shadows) {
        let mut read =
            |offset, into: &mut [u8]| client.read(offset, into).map_err(io::Error::other);
        let compared = compare(&plan.id(), client.size(), shadow, &mut read);
        comparison.bytes += compared.bytes;
        comparison.wrong_bytes += compared.wrong_bytes;
        comparison.first = comparison.first.or(compared.first);
    }
    comparison
}

/// A comparison of disks that claim no moment: nothing of them is right.
#[must_use]
pub fn nothing_right(what: &str, difference: Difference) -> Comparison {
    Comparison {
        what: what.to_owned(),
        requests: 0,
        bytes: 0,
        wrong_bytes: DISKS.iter().map(|plan| plan.size).sum(),
        first: Some(difference),
    }
}

/// How many of the requests after the marker are there too, and the state with them. They were
/// sent one after the other, so that they are there up to one of them; where that is not so,
/// the state at the marker is what the disks are measured by.
fn settle(clients: &[Client], claim: Claim) -> (usize, Vec<Shadow>) {
    let found: Option<Vec<Vec<u8>>> = claim
        .after
        .iter()
        .map(|request| read_range(clients, request))
        .collect();
    let Some(found) = found else {
        return (claim.count, claim.shadows);
    };
    let mut shadows = claim.shadows.clone();
    for (done, next) in claim.after.iter().map(Some).chain([None]).enumerate() {
        if agree(&shadows, &claim.after, &found) {
            return (claim.count + done, shadows);
        }
        if let Some(request) = next {
            request.apply(&mut shadows);
        }
    }
    (claim.count, claim.shadows)
}

fn read_range(clients: &[Client], request: &Request) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(request.length()).ok()?];
    let read = clients[request.disk].read(request.offset, &mut bytes);
    read.ok().map(|()| bytes)
}

/// Whether the ranges of the requests hold what the shadows say.
fn agree(shadows: &[Shadow], requests: &[Request], found: &[Vec<u8>]) -> bool {
    requests.iter().zip(found).all(|(request, found)| {
        let mut expected = vec![0; found.len()];
        shadows[request.disk].read(request.offset, &mut expected);
        expected == *found
    })
}
