//! Hundreds of protected VMs that do nothing: what they cost both hosts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lifeboat_model::contract::ReplicationState;
use lifeboat_rest::client::{Client, VmRequest};
use lifeboat_rest::wire::SettingsChange;
use lifeboat_sys::clock::Stopwatch;

use super::{MIB, Setting};
use crate::hosts::{self, Host, Hosts, Line, Plan};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::report::RowReport;

const VMS: usize = 500;
/// Of each VM's disk, which is sparse.
const SIZE: u64 = 64 * MIB;
/// VMs that are protected at once.
const HELPERS: usize = 4;
/// Seconds between two cycles of a VM: what the bar speaks of, and the shortest of the schema.
const INTERVALS: [u64; 2] = [300, 30];
/// How long the hosts are watched for one value.
const WINDOW: Duration = Duration::from_secs(30);
/// The bars, for both daemons together.
const MOST_MEMORY: f64 = 4.0 * (1u64 << 30) as f64;
const MOST_FILES: f64 = 8000.0;

/// What one interval costs, one value per window.
#[derive(Debug, Default)]
struct Costs {
    alpha: Vec<f64>,
    beta: Vec<f64>,
    both: Vec<f64>,
    /// For each cycle.
    bytes: Vec<f64>,
    cycles: Vec<f64>,
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let mut hosts = Hosts::start(setting, Line::Counted)?;
    let watch = Stopwatch::start();
    protect_all(&hosts)?;
    for number in 0..VMS {
        let replicating = ReplicationState::Replicating;
        hosts.alpha.wait_for_state(&name(number), replicating)?;
    }
    let protected = watch.elapsed();
    let mut measurements = Vec::new();
    for interval in INTERVALS {
        set_interval(&hosts.alpha, interval)?;
        // What the change itself costs is over by then.
        std::thread::sleep(WINDOW);
        let mut costs = Costs::default();
        for _ in 0..setting.runs {
            watch_hosts(&hosts, &mut costs)?;
        }
        measurements.extend(of_interval(interval, costs));
    }
    measurements.extend(of_hosts(&hosts)?);
    let watch = Stopwatch::start();
    hosts.beta.kill();
    hosts.beta.start()?;
    let restarted = watch.elapsed();
    Ok(RowReport {
        name: "many-idle",
        about: "500 VMs that run and change nothing, each with a sparse disk of 64 MiB, protected from one daemon to the other over \
                mutual TLS; both on this machine. Values are of windows of 30 s; bars are for both daemons together.",
        measurements,
        notes: vec![format!(
            "Protecting all of them took {:.0} s; the replicas' daemon, killed, answered {:.1} s after it was started again.",
            protected.as_secs_f64(),
            restarted.as_secs_f64()
        )],
    })
}

fn name(number: usize) -> String {
    format!("vm{number}")
}

/// Protects every VM, a few at once.
fn protect_all(hosts: &Hosts) -> Result<()> {
    let next = AtomicUsize::new(0);
    let replica = hosts.beta.address();
    let work = |client: Client| -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= VMS {
                return Ok(());
            }
            let plan = Plan {
                vm: name(number),
                size: SIZE,
                image: None,
                settings: every(INTERVALS[0]),
            };
            let protected = plan.enable(&client, replica);
            protected
                .and_then(|()| hosts::start_replication(&client, &plan.vm))
                .with_context(|| format!("protect VM {number} of {VMS}"))?;
        }
    };
    std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        for _ in 0..HELPERS {
            let client = hosts.alpha.another_client()?;
            helpers.push(scope.spawn(move || work(client)));
        }
        for helper in helpers {
            let done = helper.join();
            done.map_err(|_| anyhow!("BUG: a helper panicked"))??;
        }
        Ok(())
    })
}

fn every(interval: u64) -> SettingsChange {
    SettingsChange {
        replication_interval: Some(interval),
        ..SettingsChange::default()
    }
}

fn set_interval(host: &Host, interval: u64) -> Result<()> {
    for number in 0..VMS {
        let modify = VmRequest::ModifySettings(every(interval));
        host.operate(&name(number), &modify)?;
    }
    Ok(())
}

/// Lets both hosts alone for a while, and sees what they have used.
fn watch_hosts(hosts: &Hosts, costs: &mut Costs) -> Result<()> {
    let moments = all_moments(&hosts.alpha)?;
    let (alpha, beta, bytes) = (hosts.alpha.used()?, hosts.beta.used()?, hosts.bytes());
    let watch = Stopwatch::start();
    std::thread::sleep(WINDOW);
    let seconds = watch.elapsed().as_secs_f64();
    let alpha = (hosts.alpha.used()?.cpu - alpha.cpu).as_secs_f64() / seconds;
    let beta = (hosts.beta.used()?.cpu - beta.cpu).as_secs_f64() / seconds;
    let bytes = (hosts.bytes() - bytes) as f64;
    let cycles = all_moments(&hosts.alpha)? - moments;
    costs.alpha.push(alpha);
    costs.beta.push(beta);
    costs.both.push(alpha + beta);
    costs.bytes.push(bytes / cycles.max(1) as f64);
    costs.cycles.push(cycles as f64);
    Ok(())
}

/// The last moments of all VMs, added up: one more for each cycle.
fn all_moments(host: &Host) -> Result<u64> {
    let vms = host.ask("list the VMs", Client::vms)?;
    let relationships = vms.value.iter().flat_map(|vm| &vm.relationships);
    Ok(relationships.filter_map(|one| one.last_sequence).sum())
}

fn of_interval(interval: u64, costs: Costs) -> Vec<Measurement> {
    let alone = |what: &str, unit, whose: &str, values, bar| {
        let name = format!("every {interval} s: {what}");
        Measurement::alone(name, unit, Side::new(whose, values), bar)
    };
    // The bar is for cycles of five minutes.
    let bar = if interval == INTERVALS[0] {
        Bar::AtMost(1.0)
    } else {
        Bar::Record
    };
    vec![
        alone("processors", Unit::Cores, "both daemons", costs.both, bar),
        Measurement::compared(
            format!("every {interval} s: processors of each"),
            Unit::Cores,
            Side::new("primaries", costs.alpha),
            Side::new("replicas", costs.beta),
            Bar::Record,
        ),
        alone(
            "bytes on the wire for each cycle",
            Unit::Bytes,
            "both ways, with TLS",
            costs.bytes,
            Bar::AtMost(20.0 * 1024.0),
        ),
        alone(
            "cycles in 30 s",
            Unit::Count,
            "made",
            costs.cycles,
            Bar::Record,
        ),
    ]
}

fn of_hosts(hosts: &Hosts) -> Result<Vec<Measurement>> {
    let (alpha, beta) = (hosts.alpha.used()?, hosts.beta.used()?);
    let files = |used: hosts::Used| used.files as f64;
    let memory = |used: hosts::Used| used.memory as f64;
    let mut measurements = Vec::new();
    for (what, unit, of, most) in [
        (
            "memory",
            Unit::Bytes,
            &memory as &dyn Fn(hosts::Used) -> f64,
            MOST_MEMORY,
        ),
        ("open files", Unit::Count, &files, MOST_FILES),
    ] {
        let (alpha, beta) = (of(alpha), of(beta));
        let both = Side::new("both daemons", vec![alpha + beta]);
        measurements.push(Measurement::alone(what, unit, both, Bar::AtMost(most)));
        measurements.push(Measurement::compared(
            format!("{what} of each"),
            unit,
            Side::new("primaries", vec![alpha]),
            Side::new("replicas", vec![beta]),
            Bar::Record,
        ));
    }
    Ok(measurements)
}
