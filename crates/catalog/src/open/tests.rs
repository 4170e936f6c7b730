use std::collections::BTreeSet;
use std::time::SystemTime;

use lifeboat_model::{RelationshipId, Timestamp, VmId};
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::rows::{
    Activity, AuthorizationEntry, Cycle, EventFilter, EventId, JobFilter, JobPage, Peer, Place,
    Severity, Side,
};
use crate::{CatalogError, CheckError, DesiredPower, Document, NewEvent, Refused};

const GOLDEN: &[(u32, &str)] = &[(1, include_str!("../../tests/golden/v1.sql"))];

fn document(format: u32, data: serde_json::Value) -> Document {
    Document { format, data }
}

fn catalog_path(directory: &TempDir) -> PathBuf {
    directory.path().join("catalog.db")
}

fn golden(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn schema_of(connection: &Connection) -> BTreeSet<(String, Option<String>)> {
    connection
        .prepare("SELECT name, sql FROM sqlite_schema")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

fn add_event(catalog: &Catalog, message: &str) -> Result<EventId, CatalogError> {
    catalog.change(|change| {
        change.event_add(&NewEvent {
            at: Timestamp::from_micros(1),
            severity: Severity::Warning,
            vm: None,
            relationship: None,
            kind: "test".to_owned(),
            message: message.to_owned(),
            document: None,
        })
    })
}

/// Version 1 with a column more, as a next version could be.
fn with_a_second_version() -> Vec<&'static str> {
    let mut migrations = MIGRATIONS.to_vec();
    migrations.push("ALTER TABLE event ADD COLUMN seen INTEGER; UPDATE event SET seen = 1;");
    migrations
}

#[test]
fn every_schema_has_a_golden_file() {
    let versions: Vec<u32> = GOLDEN.iter().map(|(version, _)| *version).collect();
    let all: Vec<u32> = (1..=schema::newest(MIGRATIONS)).collect();
    assert_eq!(versions, all);
}

#[test]
fn a_released_schema_is_never_changed() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
    let ours = catalog.with_writer(schema_of);
    let golden = Connection::open_in_memory().unwrap();
    golden.execute_batch(GOLDEN.last().unwrap().1).unwrap();
    assert_eq!(ours, schema_of(&golden));
}

#[test]
fn every_released_schema_opens_with_all_its_rows() {
    for (version, sql) in GOLDEN {
        let directory = TempDir::new().unwrap();
        let path = catalog_path(&directory);
        golden(&path, sql);
        Catalog::check(&path).unwrap();
        let catalog = Catalog::open(&path, OnMissing::Refuse)
            .unwrap_or_else(|error| panic!("version {version}: {error}"));
        catalog.read(read_golden_rows).unwrap();
    }
}

fn read_golden_rows(reader: &crate::Reader<'_>) -> Result<(), CatalogError> {
    let bytes = |first: u8| std::array::from_fn(|at| first + u8::try_from(at).unwrap());
    let (vm_id, relationship_id) = (
        VmId::from_bytes(bytes(0)),
        RelationshipId::from_bytes(bytes(0x10)),
    );
    let at = |micros: u64| Timestamp::from_micros(1_700_000_000_000_000 + micros);

    assert_eq!(
        reader.settings()?,
        [("service".to_owned(), document(1, json!({"enabled": true})))]
    );

    let vm = reader.vm(vm_id)?.unwrap();
    assert_eq!((vm.name.as_str(), vm.driver.as_str()), ("db-1", "qemu"));
    assert_eq!(vm.definition, document(1, json!({"memory": 1024})));
    assert_eq!(vm.disks, document(1, json!([{"disk": "root"}])));
    assert_eq!(vm.desired_power, DesiredPower::Running);
    assert_eq!((vm.created_at, vm.updated_at), (at(0), at(1_000_000)));
    assert_eq!(reader.vm_named("db-1")?, Some(vm));

    let first = reader.relationship(relationship_id)?.unwrap();
    assert_eq!(first.record_version.number(), 41);
    assert_eq!(
        first.row.record,
        document(3, json!({"phase": "replicating"}))
    );
    assert_eq!(
        (first.row.place, first.row.side),
        (Place::First, Side::Primary)
    );
    assert_eq!(first.row.settings, document(1, json!({"frequency": 300})));
    assert_eq!(first.row.peer_host, "b.example");
    assert_eq!(first.row.peer_address, "b.example:8443");
    assert_eq!(first.row.storage_folder, "/var/lib/lifeboat");
    assert_eq!(first.row.trust_group, "default");
    let all = reader.relationships()?;
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[1].row.place, all[1].row.side),
        (Place::Extended, Side::Replica)
    );

    let ended = JobFilter {
        activity: Activity::Ended,
        ..JobFilter::ALL
    };
    let (jobs, _) = reader.jobs(&ended, JobPage::newest(9))?;
    let [job] = &jobs[..] else { panic!("{jobs:?}") };
    assert_eq!((job.job_type, job.job_state), (97, 10));
    assert_eq!(
        (job.vm, job.relationship),
        (Some(vm_id), Some(relationship_id))
    );
    assert_eq!((job.percent_complete, job.error_code), (55, 32768));
    assert_eq!(job.error_description, "it failed");
    assert_eq!(job.errors, Some(document(1, json!(["first"]))));
    assert_eq!(
        (job.time_submitted, job.scheduled_start),
        (at(0), Some(at(1)))
    );
    assert_eq!(
        (job.start_time, job.elapsed),
        (Some(at(2)), Duration::from_secs(3))
    );
    assert_eq!(job.time_of_last_state_change, at(3));
    assert_eq!((job.cancellable, job.owner.as_str()), (true, "root"));
    assert_eq!(job.request, document(1, json!({"point": 5})));
    assert_eq!(job.result, Some(document(1, json!({"lost": 0}))));
    assert_eq!(job.final_at, Some(at(3_000_002)));
    let (jobs, _) = reader.jobs(&JobFilter::unfinished(), JobPage::newest(9))?;
    assert_eq!(jobs.len(), 1);
    assert_eq!(
        (jobs[0].vm, jobs[0].start_time, jobs[0].final_at),
        (None, None, None)
    );

    let events = reader.events_after(EventId::ZERO, &EventFilter::ALL, 9)?;
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].id.number(), events[1].id.number()), (12, 13));
    assert_eq!(events[0].event.severity, Severity::Error);
    assert_eq!(events[0].event.message, "Replication failed.");
    assert_eq!(events[0].event.document, Some(document(1, json!({"n": 1}))));
    assert_eq!(reader.event_last_id()?.number(), 13);

    let audit = reader.audit_before(u64::MAX, 9)?;
    assert_eq!(audit.len(), 1);
    assert_eq!(
        (audit[0].number, audit[0].row.outcome.as_str()),
        (3, "job started")
    );
    assert_eq!(audit[0].row.arguments, document(1, json!({"point": 5})));

    let ended = Cycle {
        started_at: at(0),
        ended_at: Some(at(300_000_000)),
        document: document(1, json!({"cycles": 10})),
    };
    assert_eq!(reader.statistics_ended(relationship_id, 9)?, [ended]);
    let running = reader.statistics_running(relationship_id)?.unwrap();
    assert_eq!(
        (running.started_at, running.ended_at),
        (at(300_000_000), None)
    );

    let entry = AuthorizationEntry {
        allowed_primary: "*.example".to_owned(),
        document: document(1, json!({"group": "default"})),
    };
    assert_eq!(reader.authorization_entries()?, [entry]);
    let references = reader.references_of(vm_id)?;
    assert_eq!(references.len(), 1);
    assert_eq!(
        (references[0].boundary, references[0].owner.as_str()),
        (9, "test failover")
    );
    let peer = Peer {
        host: "b.example".to_owned(),
        address: "b.example:8443".to_owned(),
        last_seen: Some(at(0)),
        document: document(1, json!({"version": "0.1"})),
    };
    assert_eq!(reader.peer("B.EXAMPLE")?, Some(peer));
    assert_eq!(reader.peer("d.example")?.unwrap().last_seen, None);
    Ok(())
}

#[test]
fn an_older_schema_is_copied_and_then_migrated() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    golden(&path, GOLDEN[0].1);
    let migrated = open_with(&path, OnMissing::Refuse, &with_a_second_version()).unwrap();
    let seen: i64 = migrated.with_writer(|writer| {
        writer
            .query_row("SELECT sum(seen) FROM event", [], |row| row.get(0))
            .unwrap()
    });
    assert_eq!(seen, 2);
    migrated.read(read_golden_rows).unwrap();
    drop(migrated);
    // The old version still opens the copy, and refuses what was migrated.
    let copy = beside(&path, ".schema-1");
    assert_eq!(Catalog::check(&copy).unwrap().schema, 1);
    let old = Catalog::open(&copy, OnMissing::Refuse).unwrap();
    old.read(read_golden_rows).unwrap();
    let error = Catalog::open(&path, OnMissing::Refuse).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::TooNew {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    // It was refused unchanged: the newer version opens it as before.
    open_with(&path, OnMissing::Refuse, &with_a_second_version()).unwrap();
}

#[test]
fn a_migration_that_fails_leaves_the_old_schema() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    golden(&path, GOLDEN[0].1);
    let mut migrations = MIGRATIONS.to_vec();
    migrations.push("ALTER TABLE event ADD COLUMN seen INTEGER; DROP TABLE vm; SELECT nothing;");
    for _ in 0..2 {
        let error = open_with(&path, OnMissing::Refuse, &migrations).unwrap_err();
        assert!(
            matches!(error, OpenError::Migrate { from: 1, to: 2, .. }),
            "{error}"
        );
    }
    let old = Catalog::open(&path, OnMissing::Refuse).unwrap();
    old.read(read_golden_rows).unwrap();
}

#[test]
fn a_missing_catalog_is_made_only_when_asked_for() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let error = Catalog::open(&path, OnMissing::Refuse).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
    drop(Catalog::open(&path, OnMissing::Create).unwrap());
    Catalog::open(&path, OnMissing::Refuse).unwrap();
}

#[test]
fn a_crash_before_the_first_schema_is_begun_anew() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    // After the file was made, and after it was told to keep a log.
    let crashes: [fn(&Path); 2] = [
        |path| drop(File::create_new(path).unwrap()),
        |path| {
            let connection = Connection::open(path).unwrap();
            connection
                .pragma_update(None, "journal_mode", "WAL")
                .unwrap();
        },
    ];
    for crash in crashes {
        crash(&path);
        assert!(Catalog::open(&path, OnMissing::Refuse).is_err());
        let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
        add_event(&catalog, "it works").unwrap();
        drop(catalog);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_catalog_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
    add_event(&catalog, "so that there is a log").unwrap();
    let backup = directory.path().join("backup.db");
    catalog.backup(&backup).unwrap();
    for file in [path.clone(), beside(&path, "-wal"), backup] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn every_change_is_synced_also_in_a_catalog_from_a_backup() {
    let directory = TempDir::new().unwrap();
    let backup = directory.path().join("backup.db");
    let created = Catalog::open(&catalog_path(&directory), OnMissing::Create).unwrap();
    created.backup(&backup).unwrap();
    let restored = Catalog::open(&backup, OnMissing::Refuse).unwrap();
    for catalog in [created, restored] {
        catalog.with_writer(|writer| {
            let setting = |name| -> String {
                let sql = format!("SELECT CAST(\"{name}\" AS TEXT) FROM pragma_{name}");
                writer.query_row(&sql, [], |row| row.get(0)).unwrap()
            };
            assert_eq!(setting("journal_mode"), "wal");
            // 2 is FULL: the log is synced before a commit returns.
            assert_eq!(setting("synchronous"), "2");
            assert_eq!(setting("foreign_keys"), "1");
        });
    }
}

#[test]
fn a_second_user_is_told_who_has_the_catalog() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let first = Catalog::open(&path, OnMissing::Create).unwrap();
    let error = Catalog::open(&path, OnMissing::Create).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains(&format!("process {}", std::process::id())),
        "{told}"
    );
    drop(first);
    Catalog::open(&path, OnMissing::Refuse).unwrap();
}

#[test]
fn a_file_that_is_no_catalog_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let foreign = || {
        let other = directory.path().join("other.db");
        let connection = Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE other (x)").unwrap();
        drop(connection);
        fs::read(&other).unwrap()
    };
    for contents in [
        b"x".to_vec(),
        b"#!/bin/sh\necho a text file of some length\n".to_vec(),
        vec![0; 8192],
        foreign(),
    ] {
        fs::write(&path, &contents).unwrap();
        let error = Catalog::open(&path, OnMissing::Create).unwrap_err();
        assert!(matches!(error, OpenError::NotACatalog { .. }), "{error}");
        assert!(Catalog::check(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), contents);
    }
}

#[test]
fn a_damaged_catalog_is_refused_with_the_remedy_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
    for number in 0..2000 {
        add_event(&catalog, &format!("event {number}")).unwrap();
    }
    drop(catalog);
    let good = fs::read(&path).unwrap();
    let mut damaged = good.clone();
    // Pages in the middle, where only a full search finds them.
    let middle = good.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 8192].fill(0xa5);
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(
        Catalog::check(&path),
        Err(CheckError::Damaged { .. })
    ));
    // Closed in order, it is not searched; the log says that it was not.
    fs::write(beside(&path, "-wal"), [0; 32]).unwrap();
    let error = Catalog::open(&path, OnMissing::Create).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("restore a backup"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), damaged);
    // Cut short.
    fs::write(&path, &good[..middle]).unwrap();
    assert!(Catalog::open(&path, OnMissing::Create).is_err());
}

#[test]
fn a_log_without_its_catalog_is_not_taken_for_a_new_one() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    fs::write(beside(&path, "-wal"), b"frames").unwrap();
    let error = Catalog::open(&path, OnMissing::Create).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn a_row_that_makes_no_sense_is_damage_and_no_panic() {
    for sql in [
        "UPDATE vm SET definition = 'no document'",
        "UPDATE vm SET definition = '1 ' || replace(hex(zeroblob(1000)), '0', '[')",
        "UPDATE vm SET id = x'00'",
        "UPDATE vm SET desired_power = 'maybe'",
        "UPDATE vm SET created_at = -1",
        "UPDATE vm SET name = CAST(x'ff' AS TEXT)",
        "UPDATE relationship SET place = 2",
        "UPDATE job SET job_type = 70000 WHERE final_at IS NULL",
        "UPDATE job SET percent_complete = -1 WHERE final_at IS NULL",
    ] {
        let directory = TempDir::new().unwrap();
        let path = catalog_path(&directory);
        golden(&path, GOLDEN[0].1);
        golden(&path, sql);
        assert!(
            matches!(Catalog::check(&path), Err(CheckError::Rows { .. })),
            "{sql}"
        );
        let catalog = Catalog::open(&path, OnMissing::Refuse).unwrap();
        let error = catalog
            .read(|reader| reader.every_lasting_row())
            .unwrap_err();
        assert!(
            matches!(error, CatalogError::Damaged { .. }),
            "{sql}: {error:?}"
        );
    }
}

#[test]
fn a_log_that_a_crash_left_is_written_once_more_before_anything_follows_it() {
    let directory = TempDir::new().unwrap();
    let path = catalog_path(&directory);
    let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
    add_event(&catalog, "kept").unwrap();
    // A copy of the files while they are open is what a crash leaves.
    let left = TempDir::new().unwrap();
    let copy = catalog_path(&left);
    let log = beside(&copy, "-wal");
    fs::copy(&path, &copy).unwrap();
    fs::copy(beside(&path, "-wal"), &log).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let file = OpenOptions::new().write(true).open(&log).unwrap();
    file.set_modified(long_ago).unwrap();
    let before = fs::read(&log).unwrap();

    let opened = Catalog::open(&copy, OnMissing::Refuse).unwrap();
    assert_eq!(fs::read(&log).unwrap(), before);
    assert!(file.metadata().unwrap().modified().unwrap() > long_ago);
    let last = opened.read(|reader| reader.event_last_id());
    assert_eq!(last.unwrap().number(), 1);
}

#[test]
fn a_relative_name_that_looks_like_a_url_is_a_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file:catalog.db?mode=memory");
    let catalog = Catalog::open(&path, OnMissing::Create).unwrap();
    add_event(&catalog, "kept").unwrap();
    drop(catalog);
    let catalog = Catalog::open(&path, OnMissing::Refuse).unwrap();
    assert_eq!(
        catalog
            .read(|reader| reader.event_last_id())
            .unwrap()
            .number(),
        1
    );
    assert!(path.is_file());
}

#[test]
fn what_cannot_be_kept_is_refused_before_it_is_written() {
    let directory = TempDir::new().unwrap();
    let catalog = Catalog::open(&catalog_path(&directory), OnMissing::Create).unwrap();
    let longest = "x".repeat(crate::column::MAX_TEXT);
    add_event(&catalog, &longest).unwrap();
    let error = add_event(&catalog, &format!("{longest}x")).unwrap_err();
    assert!(
        matches!(error, CatalogError::Refused(Refused::TooLong { .. })),
        "{error}"
    );
    assert_eq!(
        catalog
            .read(|reader| reader.event_last_id())
            .unwrap()
            .number(),
        1
    );
}
