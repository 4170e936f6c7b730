//! What the catalog costs: `cargo run --release -p lifeboat-catalog --example catalog-cost DIR`.
//!
//! Fills a catalog in DIR, which should be on the disk in question, with 500 VMs and prints
//! medians and 99th percentiles of the calls that a running service makes.

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lifeboat_catalog::{
    Catalog, CatalogError, DesiredPower, Document, EventFilter, EventId, NewEvent, NewRelationship,
    OnMissing, Place, RecordVersion, Severity, Side, Vm,
};
use lifeboat_model::{RelationshipId, Timestamp, VmId};
use lifeboat_sys::clock::Stopwatch;
use serde_json::json;

const VMS: u16 = 500;
const SAVES: usize = 2000;
const READS: usize = 2000;
const NO_PAUSE: Duration = Duration::ZERO;
/// Reads come one by one: in a tight loop they would keep the writer out and wait for nothing.
const BETWEEN_READS: Duration = Duration::from_millis(1);
const EVENTS: u64 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("name a directory")?);
    let path = directory.join("catalog-cost.db");
    let catalog = Catalog::open(&path, OnMissing::Create)?;
    fill(&catalog)?;

    let mut version = RecordVersion::FIRST;
    let id = relationship_id(0);
    let record = record();
    println!("record: {} bytes of JSON", record.data.to_string().len());
    measure("save a record, durable", (SAVES, NO_PAUSE), || {
        catalog
            .change(|change| change.record_save(id, &record, version))
            .map(|saved| version = saved)
    })?;
    measure(
        "save a record and add an event, durable",
        (SAVES, NO_PAUSE),
        || {
            catalog
                .change(|change| {
                    change.event_add(&event())?;
                    change.record_save(id, &record, version)
                })
                .map(|saved| version = saved)
        },
    )?;
    let read = |name| {
        measure(name, (READS, BETWEEN_READS), || {
            catalog.read(|reader| reader.relationship(id)).map(drop)
        })
    };
    read("read a relationship, idle")?;
    measure("read all 500 VMs", (50, NO_PAUSE), || {
        catalog.read(|reader| reader.vms()).map(drop)
    })?;
    measure("list 1000 of 100,000 events", (50, NO_PAUSE), || {
        let filter = EventFilter::ALL;
        catalog
            .read(|reader| reader.events_after(EventId::new(50_000), &filter, 1000))
            .map(drop)
    })?;

    // Readers of their own, or all through the writer's connection?
    let busy = AtomicBool::new(true);
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let writer = scope.spawn(|| -> Result<(), CatalogError> {
            while busy.load(Ordering::Relaxed) {
                catalog.change(|change| change.event_add(&event()))?;
            }
            Ok(())
        });
        let measured = read("read a relationship while changes go on").and_then(|()| {
            measure(
                "the same through the writer's connection",
                (READS, BETWEEN_READS),
                || catalog.change(|change| change.relationship(id)).map(drop),
            )
        });
        busy.store(false, Ordering::Relaxed);
        writer.join().map_err(|_| "the writer panicked")??;
        measured
    })?;

    let backup = directory.join("catalog-cost.backup.db");
    measure("back up, checked and durable", (3, NO_PAUSE), || {
        catalog.backup(&backup)
    })?;
    drop(catalog);
    println!("file: {} KiB", std::fs::metadata(&path)?.len() / 1024);
    let opening = Stopwatch::start();
    drop(Catalog::open(&path, OnMissing::Refuse)?);
    println!("open and close: {:?}", opening.elapsed());
    let checking = Stopwatch::start();
    Catalog::check(&path)?;
    println!(
        "search for damage, as after a crash: {:?}",
        checking.elapsed()
    );
    for file in [&path, &backup] {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

fn fill(catalog: &Catalog) -> Result<(), CatalogError> {
    let filling = Stopwatch::start();
    catalog.change(|change| {
        for number in 0..VMS {
            change.vm_add(&vm(number))?;
            change.relationship_add(&relationship(number))?;
        }
        for _ in 0..EVENTS {
            change.event_add(&event())?;
        }
        Ok(())
    })?;
    println!(
        "fill with {VMS} VMs and {EVENTS} events in one change: {:?}",
        filling.elapsed()
    );
    Ok(())
}

fn measure<E: Into<Box<dyn Error>>>(
    name: &str,
    (times, pause): (usize, Duration),
    mut call: impl FnMut() -> Result<(), E>,
) -> Result<(), Box<dyn Error>> {
    let mut durations = Vec::with_capacity(times);
    for _ in 0..times {
        thread::sleep(pause);
        let watch = Stopwatch::start();
        call().map_err(Into::into)?;
        durations.push(watch.elapsed());
    }
    durations.sort_unstable();
    let at = |hundredth: usize| -> Duration { durations[(times - 1) * hundredth / 100] };
    println!("{name}: median {:?}, p99 {:?}, n {times}", at(50), at(99));
    Ok(())
}

fn document(data: serde_json::Value) -> Document {
    Document { format: 1, data }
}

/// About as large as a record of a relationship with its ancestors and a running cycle.
fn record() -> Document {
    document(json!({
        "phase": "replicating",
        "lineage": {"counter": 3, "id": "0".repeat(32), "ancestors": vec!["0".repeat(32); 8]},
        "receipt": {"sequence": 123_456, "id": "0".repeat(64)},
        "intent": {"sequence": 123_457, "bitmaps": vec!["lifeboat-123456"; 8]},
        "errors": vec!["a sentence that says what went wrong and what to do"; 4],
    }))
}

fn event() -> NewEvent {
    NewEvent {
        at: Timestamp::from_micros(1),
        severity: Severity::Information,
        vm: Some(vm_id(7)),
        relationship: Some(relationship_id(7)),
        kind: "replication.completed".to_owned(),
        message: "A replication cycle of VM db-1 was completed.".to_owned(),
        document: None,
    }
}

fn vm_id(number: u16) -> VmId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    VmId::from_bytes(bytes)
}

fn relationship_id(number: u16) -> RelationshipId {
    RelationshipId::from_bytes(*vm_id(number).as_bytes())
}

fn vm(number: u16) -> Vm {
    Vm {
        id: vm_id(number),
        name: format!("vm-{number}"),
        driver: "volume".to_owned(),
        definition: document(json!({"memory": 4096, "cpus": 4, "nics": ["net0", "net1"]})),
        disks: document(json!([{"disk": "root", "size": 1_099_511_627_776_u64}])),
        desired_power: DesiredPower::Running,
        created_at: Timestamp::from_micros(1),
        updated_at: Timestamp::from_micros(1),
    }
}

fn relationship(number: u16) -> NewRelationship {
    NewRelationship {
        id: relationship_id(number),
        vm: vm_id(number),
        place: Place::First,
        side: Side::Primary,
        record: record(),
        settings: document(json!({"frequency": 300, "history": 24})),
        peer_host: "b.example".to_owned(),
        peer_address: "b.example:8443".to_owned(),
        storage_folder: "/var/lib/lifeboat".to_owned(),
        trust_group: "default".to_owned(),
    }
}
