//! The first part of the drill: the VM is replicated from alpha to beta, cycle by cycle, and a
//! failover is tested meanwhile.

use lifeboat_model::contract::ReplicationState;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{
    DefineVm, DefineVmDisk, EnableReplication, SettingsChange, StartReplication,
};
use lifeboat_sys::clock::Stopwatch;

use super::drill::{Drill, Site, VM, last_moment};
use super::guest::{DISKS, Running};
use super::history::History;
use super::host::Seen;
use super::report::{CYCLE_HEADINGS, Cycle};
use crate::exit::Failure;
use crate::progress::Progress;
use crate::size::Bytes;

/// Seconds between two moments.
const INTERVAL: u64 = 5;

/// Cycles that are watched.
const CYCLES: usize = 4;

/// After this cycle a recovery point is made.
const POINT_AFTER: usize = 2;

/// The VM, protected.
#[derive(Debug)]
pub struct Protected {
    pub guest: Running,
    /// A recovery point of long ago, by the number of its moment.
    pub older: u64,
    /// How many requests the moment holds at the least that the replica has confirmed last.
    pub confirmed: usize,
}

/// What was seen when a moment arrived.
struct Arrival {
    sequence: u64,
    /// What the guest had written while the moment was not there yet: the next one was frozen
    /// after it, and holds all of this.
    safe: usize,
    bytes: u64,
    wire: u64,
    watch: Stopwatch,
}

impl Drill {
    /// Sets both hosts up, and replicates the VM.
    pub(super) fn protect(&mut self) -> Result<Protected, Failure> {
        self.phase("two hosts that trust each other", |drill| {
            drill.exchange_authorities()?;
            for site in [Site::Alpha, Site::Beta] {
                drill.host(site).start()?;
                drill.host(site).receive_from(site.other().name())?;
            }
            Ok(())
        })?;
        let guest = self.phase("a VM is installed", Self::install)?;
        self.phase("initial copy", Self::copy)?;
        let (older, confirmed) =
            self.phase("cycles, and a test failover", |drill| drill.cycles(&guest))?;
        Ok(Protected {
            guest,
            older,
            confirmed,
        })
    }

    fn install(&mut self) -> Result<Running, Failure> {
        let vm = DefineVm {
            name: None,
            element_name: VM.to_owned(),
            memory_mib: 512,
            processors: 1,
            disks: DISKS
                .iter()
                .map(|plan| DefineVmDisk {
                    disk: plan.name.to_owned(),
                    size: Some(plan.size),
                    image: None,
                })
                .collect(),
        };
        let alpha = self.host(Site::Alpha);
        alpha.ask("define the VM", |client| client.define_vm(&vm))?;
        let clients = alpha.start_vm(VM)?;
        let sizes: Vec<u64> = DISKS.iter().map(|plan| plan.size).collect();
        let mut guest = self.guest(clients, History::new(&sizes));
        guest.install()?;
        let disks = DISKS.iter().map(|plan| {
            format!(
                "  {}  {}, {} MiB of it written\n",
                plan.name,
                Bytes(plan.size),
                plan.installed
            )
        });
        self.say(&format!(
            "\nVM {VM} runs at {}; the size of its second disk is not whole blocks.\n{}",
            Site::Alpha.name(),
            disks.collect::<String>()
        ))?;
        Ok(Running::start(guest)?)
    }

    fn copy(&mut self) -> Result<(), Failure> {
        let (watch, before) = (Stopwatch::start(), self.wire_bytes());
        let to = self.host(Site::Beta).wire.address().to_string();
        let enable = VmRequest::EnableReplication(EnableReplication {
            recovery_connection_point: to,
            recovery_host_name: None,
            kept_replica: None,
            settings: SettingsChange {
                replication_interval: Some(INTERVAL),
                recovery_history: Some(4),
                ..SettingsChange::default()
            },
        });
        let progress = self
            .is_for_people()
            .then(|| Progress::bytes_of("initial copy", DISKS.iter().map(|plan| plan.size).sum()));
        let alpha = self.host(Site::Alpha);
        alpha.request(VM, "enable replication", &enable)?;
        let start = VmRequest::StartReplication(StartReplication::default());
        alpha.operate(VM, "make the initial copy", &start, |host, _| {
            let activity = host.relationship(VM).ok().flatten();
            if let (Some(progress), Some(activity)) =
                (&progress, activity.and_then(|one| one.activity))
            {
                progress.set(activity.done_bytes);
            }
        })?;
        drop(progress);
        self.wait_for_state(Site::Alpha, ReplicationState::Replicating)?;
        let travelled = self.wire_bytes() - before;
        self.say(&format!(
            "\nInitial copy to {} in {:.1} s, while the VM writes: {} of {} travelled.\n",
            Site::Beta.name(),
            watch.elapsed().as_secs_f64(),
            Bytes(travelled),
            Bytes(DISKS.iter().map(|plan| plan.size).sum()),
        ))
    }

    /// Watches the cycles. Answers the older recovery point, and how many requests of the guest
    /// the newest moment that was confirmed holds at the least.
    fn cycles(&mut self, guest: &Running) -> Result<(u64, usize), Failure> {
        self.say(&format!("\nA moment every {INTERVAL} s:\n{CYCLE_HEADINGS}"))?;
        let mut older = 0;
        let mut confirmed = 0;
        // What was written during the copy travels with the first moment.
        let copied = last_moment(self.host(Site::Alpha))?;
        let mut before = self.arrival(guest, copied, 0)?;
        for number in 1..=CYCLES {
            let arrival = if number == CYCLES {
                let mut arrived = None;
                let what = "test failover while replication goes on";
                self.test_failover(what, Site::Beta, guest, |drill| {
                    arrived = Some(drill.watch_cycle(guest, &before)?);
                    Ok(())
                })?;
                arrived.expect("BUG: a test failover has a meanwhile")
            } else {
                self.watch_cycle(guest, &before)?
            };
            // This moment was frozen after the one before had arrived.
            confirmed = before.safe;
            before = arrival;
            if number == POINT_AFTER {
                let beta = self.host(Site::Beta);
                beta.request(VM, "make a recovery point", &VmRequest::MakePoint)?;
                let points = beta.ask("list recovery points", |client| client.points(VM))?;
                let points = points.value.iter().map(|point| point.sequence);
                older = points.max().unwrap_or_default();
                self.say(&format!(
                    "         recovery point {older} is made at beta\n"
                ))?;
            }
        }
        Ok((older, confirmed))
    }

    /// Waits for the next moment, and shows it.
    fn watch_cycle(&mut self, guest: &Running, before: &Arrival) -> Result<Arrival, Failure> {
        let arrival = self.arrival(guest, before.sequence, before.safe)?;
        let cycle = Cycle {
            sequence: arrival.sequence,
            written_bytes: arrival.bytes - before.bytes,
            wire_bytes: arrival.wire - before.wire,
            after_seconds: (before.watch.elapsed() - arrival.watch.elapsed()).as_secs_f64(),
        };
        self.say(&cycle.line())?;
        self.report.cycles.push(cycle);
        Ok(arrival)
    }

    /// Waits for a newer moment than `known`. `safe` requests were written before that was there.
    fn arrival(
        &mut self,
        guest: &Running,
        known: u64,
        mut safe: usize,
    ) -> Result<Arrival, Failure> {
        let sequence = self.host(Site::Alpha).wait("the next moment", |host| {
            let written = guest.history().count();
            let last = last_moment(host)?;
            Ok(if last > known {
                Seen::AsWanted(last)
            } else {
                safe = written;
                Seen::NotYet(format!("moment {last}"))
            })
        })?;
        let history = guest.history();
        Ok(Arrival {
            sequence,
            safe,
            bytes: history.bytes(),
            wire: self.wire_bytes(),
            watch: Stopwatch::start(),
        })
    }
}
