//! `lifeboat store check`: would a failover work now, and what would be lost?

use lifeboat_model::{Sequence, Timestamp};
use lifeboat_store::{Role, Store};
use lifeboat_sys::clock;
use serde::Serialize;

use super::StoreArgs;
use super::status::role;
use crate::commands::{open_store, time};
use crate::exit::Failure;
use crate::output::{OutputFormat, facts, yes_no};
use crate::size::Bytes;

#[derive(Serialize)]
struct CheckView {
    role: &'static str,
    failover_ready: bool,
    /// What stops a failover; absent when nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocker: Option<&'static str>,
    received: Sequence,
    applied: Sequence,
    /// When the newest moment received was captured; absent when it is applied and no point.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_replication_time: Option<String>,
    pending_deltas: usize,
    pending_bytes: u64,
    points: usize,
    unsealed_points: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_point: Option<NewestPoint>,
    available_bytes: u64,
}

#[derive(Serialize)]
struct NewestPoint {
    sequence: Sequence,
    creation_time: String,
    age_seconds: u64,
}

/// Opens the store, which finds what is missing or damaged, and weighs what it holds.
///
/// # Errors
/// [`Failure::NotReady`] when a failover would be refused, after the reason was printed.
pub fn run(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store check")?;
    let view = view(&store, clock::wall())?;
    output.print(&view, text)?;
    match view.blocker {
        None => Ok(()),
        Some(why) => Err(Failure::NotReady {
            why: why.to_owned(),
        }),
    }
}

fn view(store: &Store, now: Timestamp) -> Result<CheckView, Failure> {
    let status = store.status()?;
    let blocker = match status.role {
        Role::Replica if status.tip == Sequence::ZERO => {
            Some("nothing was received yet: capture whole disks and receive them first")
        }
        Role::Replica => None,
        Role::FailedOver => Some("the VM is failed over already: revert or commit that first"),
        Role::Committed => {
            Some("a failover was committed: this folder holds the VM's own disks and is no replica")
        }
    };
    let newest = status.points.last();
    let last_received = status.pending.last().map(|delta| delta.captured_at);
    let last_point = newest.filter(|point| point.sequence == status.tip);
    let last_replication = last_received.or(last_point.map(|point| point.captured_at));
    Ok(CheckView {
        role: role(status.role),
        failover_ready: blocker.is_none(),
        blocker,
        received: status.tip,
        applied: status.applied,
        last_replication_time: last_replication.map(time),
        pending_deltas: status.pending.len(),
        pending_bytes: status.pending.iter().map(|delta| delta.bytes).sum(),
        points: status.points.len(),
        unsealed_points: status.points.iter().filter(|point| !point.sealed).count(),
        newest_point: newest.map(|point| NewestPoint {
            sequence: point.sequence,
            creation_time: time(point.captured_at),
            age_seconds: seconds_between(point.captured_at, now),
        }),
        available_bytes: status.available_bytes,
    })
}

/// Zero when the other host's clock is ahead of ours.
fn seconds_between(then: Timestamp, now: Timestamp) -> u64 {
    now.as_micros().saturating_sub(then.as_micros()) / 1_000_000
}

fn text(view: &CheckView) -> String {
    let readiness = match view.blocker {
        None => "yes".to_owned(),
        Some(why) => format!("no: {why}"),
    };
    let waiting = match view.pending_deltas {
        0 => "none".to_owned(),
        count => format!(
            "{count} ({}), applied first by a failover to the newest moment, left out by --to applied",
            Bytes(view.pending_bytes)
        ),
    };
    let newest = view.newest_point.as_ref().map_or_else(
        || "none".to_owned(),
        |point| {
            let (sequence, taken) = (point.sequence, &point.creation_time);
            format!("{sequence}, taken {taken}, {} ago", age(point.age_seconds))
        },
    );
    let sealed = view.points > 0 && view.unsealed_points == 0;
    let last = view.last_replication_time.clone();
    facts(&[
        ("role", view.role.replace('_', " ")),
        ("failover would work", readiness),
        (
            "newest received",
            match last {
                Some(taken) => format!("{}, taken {taken}", view.received),
                None => view.received.to_string(),
            },
        ),
        ("newest applied", view.applied.to_string()),
        ("deltas waiting", waiting),
        ("newest point", newest),
        ("points", view.points.to_string()),
        (
            "all points sealed",
            yes_no(sealed || view.points == 0).to_owned(),
        ),
        ("available", Bytes(view.available_bytes).to_string()),
    ])
}

/// A time span in the two largest units that it has.
fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        assert_eq!(age(0), "0 s");
        assert_eq!(age(59), "59 s");
        assert_eq!(age(61), "1 min 1 s");
        assert_eq!(age(3600), "1 h 0 min");
        assert_eq!(age(90_000), "1 d 1 h");
    }

    #[test]
    fn a_moment_in_the_future_is_no_age() {
        let (then, now) = (Timestamp::from_micros(5_000_000), Timestamp::from_micros(0));
        assert_eq!(seconds_between(then, now), 0);
        assert_eq!(seconds_between(now, then), 5);
    }
}
