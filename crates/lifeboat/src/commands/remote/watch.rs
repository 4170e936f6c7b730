//! `lifeboat stats`, `health`, `check`, `events` and `audit`: how things are, and what happened.

use std::ops::ControlFlow;

use lifeboat_rest::client::{Followed, VmRequest};
use lifeboat_rest::wire::{AuditRecord, Check, Event, EventGap, Health, Loss, Start, Statistics};
use serde_json::json;

use super::{Remote, VmArgs, WaitArgs, duration, print_line, when, when_if};
use crate::exit::Failure;
use crate::output::{Table, facts, printable, yes_no};
use crate::size::Bytes;

#[derive(Debug, clap::Args)]
pub struct StatsArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Start the statistics anew
    #[arg(long)]
    reset: bool,
}

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Show events after the one with this number; the newest unless given
    #[arg(long, value_name = "ID")]
    since: Option<u64>,

    /// Show so many at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        conflicts_with = "follow"
    )]
    limit: usize,

    /// Show events as they happen, until interrupted; JSON is one line for each
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Show so many at most, of the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Shows the statistics of the running monitoring cycle, or starts them anew.
///
/// # Errors
/// Why it was not done.
pub fn stats(args: &StatsArgs, remote: &Remote) -> Result<(), Failure> {
    if args.reset {
        let wait = WaitArgs { no_wait: false };
        let reset = VmRequest::ResetStatistics;
        return remote.operate(&args.vm, &reset, wait, "statistics started anew");
    }
    remote.show(&remote.client.statistics(&args.vm)?, statistics_text)
}

/// Shows how a VM's replication is doing.
///
/// # Errors
/// Why it was not done.
pub fn health(args: &VmArgs, remote: &Remote) -> Result<(), Failure> {
    remote.show(&remote.client.health(&args.vm)?, health_text)
}

/// Shows whether a failover would work now.
///
/// # Errors
/// Why it was not done; also when a failover would not work.
pub fn check(args: &VmArgs, remote: &Remote) -> Result<(), Failure> {
    let check = remote.client.check(&args.vm)?;
    remote.show(&check, check_text)?;
    if check.value.would_work {
        return Ok(());
    }
    let errors = check
        .value
        .findings
        .iter()
        .filter(|finding| finding.severity == "error");
    let why: Vec<&str> = errors.map(|finding| finding.what.as_str()).collect();
    Err(Failure::NotReady {
        why: why.join("; "),
    })
}

/// Shows what happened, or what happens.
///
/// # Errors
/// Why it was not done; also when the connection ends while events are followed.
pub fn events(args: &EventsArgs, remote: &Remote) -> Result<(), Failure> {
    if args.follow {
        return follow(args.since, remote);
    }
    let events = match args.since {
        Some(since) => remote.client.events(since, args.limit)?,
        None => remote.client.newest_events(args.limit)?,
    };
    remote.show(&events, |events| {
        if events.is_empty() {
            return "nothing happened\n".to_owned();
        }
        let lines: Vec<String> = events
            .iter()
            .map(|event| event_line(event) + "\n")
            .collect();
        lines.concat()
    })
}

fn follow(mut last: Option<u64>, remote: &Remote) -> Result<(), Failure> {
    let mut printed = Ok(());
    remote.client.follow_events(&mut last, |followed| {
        printed = match followed {
            Followed::Event(event) => {
                print_line(remote.output, &event.json, &event_line(&event.value))
            }
            Followed::Gap(EventGap { after, next }) => {
                let json = json!({ "kind": "gap", "after": after, "next": next });
                let text = format!("events between {after} and {next} are no longer kept");
                print_line(remote.output, &json, &text)
            }
        };
        match &printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    printed?;
    Err(Failure::StreamEnded)
}

/// Shows who did what.
///
/// # Errors
/// Why it was not done.
pub fn audit(args: &AuditArgs, remote: &Remote) -> Result<(), Failure> {
    remote.show(&remote.client.audit(args.limit)?, |records| {
        audit_text(records)
    })
}

fn event_line(event: &Event) -> String {
    let vm = event
        .vm
        .as_ref()
        .map_or_else(String::new, |vm| format!(" vm {vm}"));
    printable(&format!(
        "{} {} {} {}{vm}: {}",
        event.id,
        when(event.time),
        event.severity,
        event.kind,
        event.message
    ))
}

fn audit_text(records: &[AuditRecord]) -> String {
    if records.is_empty() {
        return "nobody did anything\n".to_owned();
    }
    let mut table = Table::new(&["TIME", "WHO", "ROLE", "DID", "TO", "OUTCOME"]);
    for record in records {
        table.row([
            when(record.time),
            record.caller.clone(),
            record.role.clone(),
            record.operation.clone(),
            record.target.clone(),
            record.outcome.clone(),
        ]);
    }
    table.render()
}

fn loss_text(loss: &Loss) -> String {
    match (loss.seconds.map(duration), loss.bytes.map(Bytes)) {
        (Some(time), Some(bytes)) => format!("{time} of changes, {bytes}"),
        (Some(time), None) => format!("{time} of changes; how many bytes is not known here"),
        (None, Some(bytes)) => format!("{bytes} of changes; since when is not known here"),
        (None, None) => "not known here".to_owned(),
    }
}

fn bytes_text(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}

fn start_text(start: &Start) -> String {
    let time = start.seconds.map_or_else(|| "unknown".to_owned(), duration);
    format!("{time}, with {} to apply", Bytes(start.backlog_bytes))
}

fn health_text(health: &Health) -> String {
    let mut text = facts(&[
        ("vm", health.vm.clone()),
        ("health", health.replication_health_text.clone()),
        ("a failover would lose", loss_text(&health.loss)),
        ("and start after", start_text(&health.start)),
    ]);
    for reason in &health.reasons {
        text.push_str(&finding(
            &reason.replication_health_text,
            &reason.what,
            &reason.remedy,
        ));
    }
    text
}

fn check_text(check: &Check) -> String {
    let mut text = facts(&[
        ("vm", check.vm.clone()),
        ("a failover would work", yes_no(check.would_work).to_owned()),
        ("and lose", loss_text(&check.loss)),
        ("and start after", start_text(&check.start)),
    ]);
    for one in &check.findings {
        text.push_str(&finding(&one.severity, &one.what, &one.remedy));
    }
    text
}

fn finding(severity: &str, what: &str, remedy: &str) -> String {
    let mut text = format!("\n{}: {}\n", printable(severity), printable(what));
    if !remedy.is_empty() {
        text.push_str(&format!("  hint: {}\n", printable(remedy)));
    }
    text
}

fn statistics_text(statistics: &Statistics) -> String {
    let (average, largest) = (
        Bytes(statistics.replication_size),
        Bytes(statistics.max_replication_size),
    );
    let (latency, slowest) = (
        duration(statistics.replication_latency.into()),
        duration(statistics.max_replication_latency.into()),
    );
    facts(&[
        ("since", when(statistics.start_statistic_time)),
        ("until", when(statistics.end_statistic_time)),
        ("health", statistics.replication_health_text.clone()),
        (
            "cycles that succeeded",
            statistics.replication_success_count.to_string(),
        ),
        (
            "cycles missed",
            statistics.replication_miss_count.to_string(),
        ),
        (
            "cycles that failed",
            statistics.replication_failure_count.to_string(),
        ),
        (
            "network failures",
            statistics.network_failure_count.to_string(),
        ),
        (
            "failed application-consistent points",
            statistics
                .application_consistent_snapshot_failure_count
                .to_string(),
        ),
        (
            "size of a cycle",
            format!("{average} on average, {largest} at most"),
        ),
        (
            "latency of a cycle",
            format!("{latency} on average, {slowest} at most"),
        ),
        (
            "waits to be sent",
            bytes_text(statistics.pending_replication_size),
        ),
        (
            "last test failover",
            when_if(statistics.last_test_failover_time),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_said_as_far_as_it_is_known() {
        let said = |seconds, bytes| loss_text(&Loss { seconds, bytes });
        assert_eq!(said(Some(4), Some(512)), "4 s of changes, 512 B");
        assert_eq!(
            said(Some(90), None),
            "1 min 30 s of changes; how many bytes is not known here"
        );
        assert_eq!(
            said(None, Some(512)),
            "512 B of changes; since when is not known here"
        );
        assert_eq!(said(None, None), "not known here");
    }
}
