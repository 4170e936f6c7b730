//! Reversal after a planned failover: the old primary becomes the replica.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lifeboat_model::contract::ReplicationState;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::ReverseReplication;
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, Setting};
use crate::guest::Guest;
use crate::hosts::{self, Hosts, Line, Plan, Site, on_demand};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place;
use crate::report::RowReport;
use crate::stock::{Certificates, Served};
use crate::view;

const SIZE: u64 = 2 * GIB;
const VM: &str = "web";
/// What the guest changes on the new primary: one hundredth of the disk.
const CHANGED: u64 = 20 * MIB;
const STEP: usize = 4 << 10;

const MAPS_CAUSE: &str = "blocks that the maps name and those beside them are compared before anything is relied on: 16 bytes for each, \
                          and the question for each range.";
const TIME_CAUSE: &str = "both sides read and digest three pieces at once, and what differs is read again in blocks; what both use of \
                          the processors is in the table.";
const DIGESTS_CAUSE: &str = "each 64 KiB in which something differs is asked for again in blocks of 4 KiB, and every piece of 4 KiB \
                             lies in another of them: what the new replica sent is mostly digests of these.";

/// How the two sides find what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Maps,
    /// The old primary has lost its maps.
    Digests,
}

/// What reversals cost, one value per run.
#[derive(Debug, Default)]
struct Costs {
    times: Vec<f64>,
    bytes: Vec<f64>,
    /// What the new replica sent of that.
    back: Vec<f64>,
    /// What the comparison of everything that follows maps adds.
    verified: Vec<f64>,
    /// Processor time of both daemons.
    cpu: Vec<f64>,
}

/// Both hosts, and where the VM runs.
struct Scene<'a> {
    setting: &'a Setting,
    hosts: Hosts,
    primary: Site,
    guest: Guest,
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let mut guest = Guest::new(SIZE)?;
    let (ours, theirs) = view::write_pair(place, SIZE, &mut guest)?;
    let certificates = Certificates::make(&place.join("certificates"))?;
    let whole = Served::tls(&theirs, &certificates)?;
    let mut hosts = Hosts::start(setting, Line::Counted)?;
    hosts.protect(&Plan {
        vm: VM.to_owned(),
        size: SIZE,
        image: Some(ours),
        settings: on_demand(),
    })?;
    let mut scene = Scene {
        setting,
        hosts,
        primary: Site::Alpha,
        guest,
    };
    let (mut maps, mut digests) = (Costs::default(), Costs::default());
    let (mut copies, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        scene.reverse(By::Maps, &mut maps)?;
        place.sync_and_forget()?;
        copies.push(whole.copy_to_file(place, SIZE)?.as_secs_f64());
        scene.reverse(By::Digests, &mut digests)?;
        place.sync_and_forget()?;
        reads.push(scene.read_both()?.as_secs_f64());
    }
    Ok(report(maps, digests, copies, reads))
}

fn report(maps: Costs, digests: Costs, copies: Vec<f64>, reads: Vec<f64>) -> RowReport {
    let (by_maps, by_digests) = ("by the maps of both sides", "by digests of everything");
    let per_changed = |bytes: &f64| bytes / CHANGED as f64;
    let beyond = |bytes: &f64| bytes - CHANGED as f64;
    let verified = Side::new("digests of 64 KiB each", maps.verified);
    let note = format!(
        "Of the bytes on the wire the new replica sent {} by maps and {} by digests: digests of what was asked for, of 16 \
         bytes for each 64 KiB or, where something differs or maps name it, for each 4 KiB.",
        Side::new("", maps.back).show(Unit::Bytes),
        Side::new("", digests.back).show(Unit::Bytes),
    );
    RowReport {
        name: "reversal",
        about: "A VM with a disk of 2 GiB has moved to the other host as planned, and has changed 20 MiB there, at random in pieces \
                of 4 KiB (scaled from 1 GiB of 100 GiB); the failover is committed. From the request to reverse until the old primary is a replica that \
                has all of it; page cache dropped before, mutual TLS, uncompressed. By digests: the old primary's maps were removed \
                before.",
        measurements: vec![
            Measurement::compared(
                "time, against digests",
                Unit::Seconds,
                Side::new(by_maps, maps.times.clone()),
                Side::new(by_digests, digests.times.clone()),
                Bar::Record,
            ),
            Measurement::compared(
                "time, against a whole copy",
                Unit::Seconds,
                Side::new(by_maps, maps.times),
                Side::new("nbdcopy of the whole disk over TLS, with fsync", copies),
                Bar::Record,
            ),
            Measurement::compared(
                "processor time of both daemons",
                Unit::Seconds,
                Side::new(by_maps, maps.cpu),
                Side::new(by_digests, digests.cpu),
                Bar::Record,
            ),
            Measurement::alone(
                "bytes on the wire for each changed byte",
                Unit::PerChangedByte,
                Side::new(by_maps, maps.bytes.iter().map(per_changed).collect()),
                Bar::AtMost(1.05),
            )
            .explained(MAPS_CAUSE),
            Measurement::alone(
                "comparing everything afterwards, in the background: bytes on the wire",
                Unit::Bytes,
                verified,
                Bar::Record,
            ),
            Measurement::compared(
                "time of the digests",
                Unit::Seconds,
                Side::new(by_digests, digests.times),
                Side::new("reading both disks from the device", reads),
                Bar::RatioAtMost(1.2),
            )
            .explained(TIME_CAUSE),
            Measurement::alone(
                "bytes on the wire beyond what changed",
                Unit::Bytes,
                Side::new(by_digests, digests.bytes.iter().map(beyond).collect()),
                Bar::AtMost(SIZE as f64 * 0.0005),
            )
            .explained(DIGESTS_CAUSE),
        ],
        notes: vec![note],
    }
}

impl Scene<'_> {
    /// Moves the VM to the other host, lets it write there, and reverses.
    fn reverse(&mut self, by: By, costs: &mut Costs) -> Result<()> {
        let (old, new) = (self.primary, self.primary.other());
        self.hosts.move_as_planned(old, VM)?;
        self.primary = new;
        let changes = self.guest.scattered(SIZE, CHANGED, STEP);
        let client = self.hosts.host(new).disk(VM)?;
        hosts::write(&client, &mut self.guest, &changes)?;
        self.hosts.host(new).commit(VM)?;
        if by == By::Digests {
            let host = self.hosts.host(old);
            host.kill();
            place::remove_tree(&host.maps())?;
            host.start()?;
        }
        self.setting.place.sync_and_forget()?;
        let since = self.hosts.host(new).newest_event()?;
        let bytes = self.hosts.bytes();
        let back = self.hosts.host(old).bytes_back();
        let cpu = self.hosts.cpu()?;
        let watch = Stopwatch::start();
        let reverse = VmRequest::Reverse(ReverseReplication {
            recovery_connection_point: None,
            settings: on_demand(),
        });
        let host = self.hosts.host(new);
        host.operate(VM, &reverse)?;
        host.wait_for_state(VM, ReplicationState::Replicating)?;
        costs.times.push(watch.elapsed().as_secs_f64());
        costs.cpu.push((self.hosts.cpu()? - cpu).as_secs_f64());
        costs.bytes.push((self.hosts.bytes() - bytes) as f64);
        let back = self.hosts.host(old).bytes_back() - back;
        costs.back.push(back as f64);
        let has_compared = self.hosts.host(new).has_happened("reversal", since)?;
        ensure!(
            has_compared == (by == By::Digests),
            "a reversal by {by:?} was measured, and the host has done the other thing"
        );
        self.hosts.wait_until_applied(old, VM)?;
        if by == By::Maps {
            let before = self.hosts.bytes();
            let host = self.hosts.host(new);
            host.wait("the comparison of everything", |host| {
                Ok(host.has_happened("verified", since)?.then_some(()))
            })?;
            costs.verified.push((self.hosts.bytes() - before) as f64);
        }
        let [alpha, beta] = self.disk_files()?;
        ensure!(
            place::have_same_bytes(&alpha, &beta)?,
            "the two sides differ after a reversal by {by:?}"
        );
        Ok(())
    }

    fn disk_files(&self) -> Result<[PathBuf; 2]> {
        Ok([
            self.hosts.alpha.disk_file(VM)?,
            self.hosts.beta.disk_file(VM)?,
        ])
    }

    /// Reads the disks of both sides, one after the other.
    fn read_both(&self) -> Result<Duration> {
        let paths = self.disk_files()?;
        let watch = Stopwatch::start();
        for path in &paths {
            read_whole(path)?;
        }
        Ok(watch.elapsed())
    }
}

fn read_whole(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let read = std::io::copy(&mut file, &mut std::io::sink());
    let read = read.with_context(|| format!("read {}", path.display()))?;
    ensure!(read == SIZE, "{} holds {read} bytes", path.display());
    Ok(())
}
