use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use lifeboat_model::{RelationshipId, Timestamp, VmId};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::rows::{EventFilter, EventId, NewRelationship, Place, RecordVersion, Severity, Side};
use crate::{Document, NewEvent, OnMissing, Refused};

const RELATIONSHIP: RelationshipId = RelationshipId::from_bytes([1; 16]);

fn fresh() -> (TempDir, Catalog) {
    let directory = TempDir::new().unwrap();
    let catalog = Catalog::open(&directory.path().join("catalog.db"), OnMissing::Create).unwrap();
    (directory, catalog)
}

fn document(data: serde_json::Value) -> Document {
    Document { format: 1, data }
}

fn event(message: &str) -> NewEvent {
    NewEvent {
        at: Timestamp::from_micros(1),
        severity: Severity::Information,
        vm: None,
        relationship: None,
        kind: "test".to_owned(),
        message: message.to_owned(),
        document: None,
    }
}

fn add_relationship(catalog: &Catalog) {
    let new = NewRelationship {
        id: RELATIONSHIP,
        vm: VmId::from_bytes([2; 16]),
        place: Place::First,
        side: Side::Primary,
        record: document(json!({"count": 0})),
        settings: document(json!({})),
        peer_host: "b".to_owned(),
        peer_address: "b:1".to_owned(),
        storage_folder: "/s".to_owned(),
        trust_group: String::new(),
    };
    let version = catalog
        .change(|change| change.relationship_add(&new))
        .unwrap();
    assert_eq!(version, RecordVersion::FIRST);
}

fn messages(catalog: &Catalog) -> Vec<String> {
    catalog
        .read(|reader| reader.events_after(EventId::ZERO, &EventFilter::ALL, 1000))
        .unwrap()
        .into_iter()
        .map(|event| event.event.message)
        .collect()
}

#[test]
fn a_change_that_fails_leaves_nothing() {
    let (_directory, catalog) = fresh();
    let error = catalog
        .change(|change| {
            change.event_add(&event("lost"))?;
            change.vm_remove(VmId::from_bytes([9; 16]))
        })
        .unwrap_err();
    assert!(matches!(error, CatalogError::Refused(Refused::NoVm { .. })));
    assert_eq!(messages(&catalog), Vec::<String>::new());
}

#[test]
fn a_change_that_panics_leaves_nothing_and_the_next_one_works() {
    let (_directory, catalog) = fresh();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _: Result<(), CatalogError> = catalog.change(|change| {
            change.event_add(&event("lost"))?;
            panic!("on purpose");
        });
    }));
    assert!(panicked.is_err());
    catalog
        .change(|change| change.event_add(&event("kept")))
        .unwrap();
    assert_eq!(messages(&catalog), ["kept"]);
}

#[test]
fn reads_that_panic_do_not_use_up_the_connections() {
    let (_directory, catalog) = fresh();
    for _ in 0..20 {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _: Result<(), CatalogError> = catalog.read(|_| panic!("on purpose"));
        }));
        assert!(panicked.is_err());
    }
    assert_eq!(messages(&catalog), Vec::<String>::new());
}

#[test]
fn a_change_sees_itself_and_a_read_sees_only_what_is_done() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| change.event_add(&event("first")))
        .unwrap();
    catalog
        .change(|change| {
            change.event_add(&event("second"))?;
            let seen = change.events_after(EventId::ZERO, &EventFilter::ALL, 9)?;
            assert_eq!(seen.len(), 2);
            // Another connection: not held up, and not told yet.
            assert_eq!(messages(&catalog), ["first"]);
            Ok(())
        })
        .unwrap();
    assert_eq!(messages(&catalog), ["first", "second"]);
}

#[test]
fn a_read_is_of_one_instant() {
    let (_directory, catalog) = fresh();
    catalog
        .read(|reader| {
            assert_eq!(reader.event_last_id()?, EventId::ZERO);
            catalog
                .change(|change| change.event_add(&event("meanwhile")))
                .unwrap();
            assert_eq!(reader.event_last_id()?, EventId::ZERO);
            Ok(())
        })
        .unwrap();
    assert_eq!(messages(&catalog), ["meanwhile"]);
}

#[test]
fn a_read_cannot_change_anything() {
    let (_directory, catalog) = fresh();
    let refused = catalog.with_reader("test", |connection| {
        Ok(connection.execute("DELETE FROM event", []).is_err())
    });
    assert!(refused.unwrap());
}

#[test]
fn a_record_that_was_saved_meanwhile_is_not_overwritten() {
    let (_directory, catalog) = fresh();
    add_relationship(&catalog);
    let save = |count: u64, expected| {
        let record = document(json!({ "count": count }));
        catalog.change(|change| change.record_save(RELATIONSHIP, &record, expected))
    };
    let second = save(1, RecordVersion::FIRST).unwrap();
    let error = save(2, RecordVersion::FIRST).unwrap_err();
    let CatalogError::Refused(refused) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        refused,
        Refused::RecordChanged {
            relationship: RELATIONSHIP,
            expected: RecordVersion::FIRST,
            found: second
        }
    );
    let saved = catalog
        .read(|reader| reader.relationship(RELATIONSHIP))
        .unwrap()
        .unwrap();
    assert_eq!(saved.row.record, document(json!({"count": 1})));
    assert_eq!(saved.record_version, second);
}

#[test]
fn of_many_threads_that_save_a_record_none_loses_a_save() {
    const THREADS: u64 = 8;
    const EACH: u64 = 25;
    let (_directory, catalog) = fresh();
    add_relationship(&catalog);
    let add_one = || {
        loop {
            let saved = catalog
                .read(|reader| reader.relationship(RELATIONSHIP))
                .unwrap()
                .unwrap();
            let count = saved.row.record.data["count"].as_u64().unwrap();
            let record = document(json!({"count": count + 1}));
            let result = catalog.change(|change| {
                let version = change.record_save(RELATIONSHIP, &record, saved.record_version)?;
                change.event_add(&event(&version.to_string()))?;
                Ok(())
            });
            match result {
                Ok(()) => return,
                Err(CatalogError::Refused(Refused::RecordChanged { .. })) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..EACH).for_each(|_| add_one()));
        }
    });
    let saved = catalog
        .read(|reader| reader.relationship(RELATIONSHIP))
        .unwrap()
        .unwrap();
    assert_eq!(saved.row.record, document(json!({"count": THREADS * EACH})));
    assert_eq!(saved.record_version.number(), THREADS * EACH + 1);
    let expected: Vec<String> = (2..=THREADS * EACH + 1).map(|n| n.to_string()).collect();
    assert_eq!(messages(&catalog), expected);
}

#[test]
fn more_readers_than_connections_wait_and_are_served() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| change.event_add(&event("one")))
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(messages(&catalog), ["one"]);
                }
            });
        }
    });
}

#[test]
fn a_full_disk_is_named_and_the_catalog_stays_usable() {
    let (_directory, catalog) = fresh();
    let limit = |pages: u32| {
        catalog.with_writer(|writer| {
            writer
                .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
                .unwrap();
        });
    };
    let pages: u32 = catalog.with_writer(|writer| {
        writer
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap()
    });
    let big = "x".repeat(10_000);
    limit(pages + 20);
    let mut added = 0;
    let error = loop {
        let added_now = catalog.change(|change| {
            // Of the change that does not fit nothing is kept, also of its part that did.
            change.event_add(&event("small"))?;
            change.event_add(&event(&big))
        });
        match added_now {
            Ok(_) => added += 1,
            Err(error) => break error,
        }
    };
    assert!(added > 0);
    assert!(matches!(error, CatalogError::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("free space"), "{error}");
    // Again and again, and reads meanwhile.
    for _ in 0..3 {
        let again = catalog.change(|change| change.event_add(&event(&big.repeat(5))));
        assert!(
            matches!(again, Err(CatalogError::DiskFull { .. })),
            "{again:?}"
        );
        assert_eq!(messages(&catalog).len(), 2 * added);
    }
    // What frees space works without any.
    let retention = crate::EventRetention {
        age: std::time::Duration::MAX,
        most: 1,
    };
    let purged = catalog
        .change(|change| change.event_purge(retention, Timestamp::from_micros(2)))
        .unwrap();
    assert_eq!(purged, 2 * added - 1);
    catalog
        .change(|change| change.event_add(&event(&big)))
        .unwrap();
    limit(u32::MAX);
    for _ in 0..20 {
        catalog
            .change(|change| change.event_add(&event(&big)))
            .unwrap();
    }
    assert_eq!(messages(&catalog).len(), 22);
    assert_eq!(catalog.with_writer(crate::schema::damage).unwrap(), None);
}

#[test]
fn a_backup_is_of_one_instant_while_changes_go_on() {
    let (directory, catalog) = fresh();
    add_relationship(&catalog);
    let (stop, stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let catalog = &catalog;
        scope.spawn(move || {
            let mut version = RecordVersion::FIRST;
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let record = document(json!({"count": version.number()}));
                version = catalog
                    .change(|change| {
                        change.event_add(&event("saved"))?;
                        change.record_save(RELATIONSHIP, &record, version)
                    })
                    .unwrap();
            }
        });
        for number in 0..5 {
            let path = directory.path().join(format!("backup-{number}.db"));
            catalog.backup(&path).unwrap();
            let checked = Catalog::check(&path).unwrap();
            assert_eq!(checked.relationships, 1);
            let copy = Catalog::open(&path, OnMissing::Refuse).unwrap();
            copy.read(|reader| {
                // Each change adds an event and saves the record: never one without the other.
                let saved = reader.relationship(RELATIONSHIP)?.unwrap();
                let events = reader.event_last_id()?.number();
                assert_eq!(saved.record_version.number(), events + 1);
                Ok(())
            })
            .unwrap();
        }
        drop(stop);
    });
}
