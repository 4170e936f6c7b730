//! What each kind of row promises beyond being there again.

#[allow(dead_code, reason = "shared with tests that need other parts")]
mod support;

use std::time::Duration;

use lifeboat_catalog::{
    Activity, AuthorizationEntry, Catalog, CatalogError, CycleEnd, DesiredPower, EventFilter,
    EventId, EventRetention, JobFilter, JobPage, JobRetention, NewAuditRow, Peer, Place,
    RecordVersion, Reference, ReferenceId, Refused, Severity, Side,
};
use serde_json::json;
use support::{document, event, fresh, job, relationship, relationship_id, seconds, vm, vm_id};

fn refused<T: std::fmt::Debug>(result: Result<T, CatalogError>) -> Refused {
    match result.unwrap_err() {
        CatalogError::Refused(refused) => refused,
        error => panic!("{error:?}"),
    }
}

#[test]
fn the_name_of_a_vm_is_unique() {
    let (_directory, catalog) = fresh();
    let taken = Refused::VmNameTaken {
        name: "a".to_owned(),
    };
    catalog
        .change(|change| {
            change.vm_add(&vm(1, "a"))?;
            change.vm_add(&vm(2, "b"))
        })
        .unwrap();
    assert_eq!(
        refused(catalog.change(|change| change.vm_add(&vm(3, "a")))),
        taken
    );
    assert_eq!(
        refused(catalog.change(|change| change.vm_save(&vm(2, "a")))),
        taken
    );
    assert_eq!(
        refused(catalog.change(|change| change.vm_add(&vm(1, "c")))),
        Refused::VmExists { vm: vm_id(1) }
    );
    // A name that is free again can be taken.
    catalog
        .change(|change| {
            change.vm_save(&vm(1, "c"))?;
            change.vm_save(&vm(2, "a"))
        })
        .unwrap();
    assert_eq!(
        catalog.read(|reader| reader.vm_named("a")).unwrap(),
        Some(vm(2, "a"))
    );
}

#[test]
fn saving_a_vm_keeps_when_it_was_created() {
    let (_directory, catalog) = fresh();
    let mut changed = vm(1, "a");
    changed.created_at = seconds(99);
    changed.updated_at = seconds(20);
    changed.definition = document(json!({"memory": 2048}));
    catalog
        .change(|change| {
            change.vm_add(&vm(1, "a"))?;
            change.vm_save(&changed)?;
            change.vm_save_desired_power(vm_id(1), DesiredPower::Running, seconds(30))
        })
        .unwrap();
    let saved = catalog.read(|reader| reader.vm(vm_id(1))).unwrap().unwrap();
    assert_eq!(
        (saved.created_at, saved.updated_at),
        (seconds(10), seconds(30))
    );
    assert_eq!(saved.definition, changed.definition);
    assert_eq!(saved.desired_power, DesiredPower::Running);
}

#[test]
fn a_vm_that_is_not_there_cannot_be_saved_or_removed() {
    let (_directory, catalog) = fresh();
    let none = Refused::NoVm { vm: vm_id(1) };
    assert_eq!(
        refused(catalog.change(|change| change.vm_save(&vm(1, "a")))),
        none
    );
    assert_eq!(
        refused(catalog.change(|change| change.vm_remove(vm_id(1)))),
        none
    );
    let power = DesiredPower::Running;
    assert_eq!(
        refused(catalog.change(|change| change.vm_save_desired_power(vm_id(1), power, seconds(1)))),
        none
    );
}

#[test]
fn a_vm_has_at_most_one_relationship_at_each_place() {
    let (_directory, catalog) = fresh();
    let add = |number, place| {
        catalog.change(|change| change.relationship_add(&relationship(number, place)))
    };
    add(1, Place::First).unwrap();
    add(2, Place::Extended).unwrap();
    let exists = |number| Refused::RelationshipExists {
        relationship: relationship_id(number),
        vm: vm_id(1),
    };
    assert_eq!(refused(add(3, Place::First)), exists(3));
    assert_eq!(refused(add(1, Place::Extended)), exists(1));
    let places: Vec<Place> = catalog
        .read(|reader| reader.relationships_of(vm_id(1)))
        .unwrap()
        .iter()
        .map(|relationship| relationship.row.place)
        .collect();
    assert_eq!(places, [Place::First, Place::Extended]);
}

#[test]
fn saving_a_whole_relationship_counts_as_saving_its_record() {
    let (_directory, catalog) = fresh();
    let mut row = relationship(1, Place::First);
    catalog
        .change(|change| change.relationship_add(&row))
        .unwrap();
    row.side = Side::Replica;
    row.peer_address = "c.example:8443".to_owned();
    let save = |expected| catalog.change(|change| change.relationship_save(&row, expected));
    let second = save(RecordVersion::FIRST).unwrap();
    assert!(matches!(
        refused(save(RecordVersion::FIRST)),
        Refused::RecordChanged { .. }
    ));
    let record = document(json!({"phase": "old"}));
    let stale = catalog
        .change(|change| change.record_save(relationship_id(1), &record, RecordVersion::FIRST));
    assert!(matches!(refused(stale), Refused::RecordChanged { .. }));
    let saved = catalog
        .read(|reader| reader.relationship(relationship_id(1)))
        .unwrap()
        .unwrap();
    assert_eq!((saved.row, saved.record_version), (row, second));
}

#[test]
fn a_relationship_goes_with_its_statistics_and_without_its_events() {
    let (_directory, catalog) = fresh();
    let id = relationship_id(1);
    let mut happened = event("replicated", 1);
    happened.relationship = Some(id);
    catalog
        .change(|change| {
            change.relationship_add(&relationship(1, Place::First))?;
            change.statistics_save(id, &document(json!(1)), seconds(1))?;
            change.event_add(&happened)?;
            change.relationship_remove(id)
        })
        .unwrap();
    catalog
        .read(|reader| {
            assert_eq!(reader.relationship(id)?, None);
            assert_eq!(reader.statistics_running(id)?, None);
            assert_eq!(reader.events_newest(&EventFilter::ALL, 9)?.len(), 1);
            Ok(())
        })
        .unwrap();
    let none = Refused::NoRelationship { relationship: id };
    let removed = catalog.change(|change| change.relationship_remove(id));
    assert_eq!(refused(removed), none);
    let record = document(json!(0));
    let saved = catalog.change(|change| change.record_save(id, &record, RecordVersion::FIRST));
    assert_eq!(refused(saved), none);
    let statistics = catalog.change(|change| change.statistics_save(id, &record, seconds(1)));
    assert_eq!(refused(statistics), none);
}

#[test]
fn an_ended_job_is_not_changed() {
    let (_directory, catalog) = fresh();
    let mut job = job(1, 10);
    catalog.change(|change| change.job_add(&job)).unwrap();
    job.percent_complete = 50;
    job.start_time = Some(seconds(11));
    catalog.change(|change| change.job_save(&job)).unwrap();
    job.job_state = 7;
    job.percent_complete = 100;
    job.elapsed = Duration::from_millis(2500);
    job.result = Some(document(json!({"lost": 0})));
    job.final_at = Some(seconds(14));
    catalog.change(|change| change.job_save(&job)).unwrap();
    let mut later = job.clone();
    later.job_state = 4;
    later.final_at = None;
    let again = catalog.change(|change| change.job_save(&later));
    assert_eq!(refused(again), Refused::JobEnded { job: job.id });
    assert_eq!(
        catalog.read(|reader| reader.job(job.id)).unwrap(),
        Some(job.clone())
    );
    let twice = catalog.change(|change| change.job_add(&job));
    assert_eq!(refused(twice), Refused::JobExists { job: job.id });
    let unknown = support::job(2, 10);
    let saved = catalog.change(|change| change.job_save(&unknown));
    assert_eq!(refused(saved), Refused::NoJob { job: unknown.id });
}

#[test]
fn what_was_asked_of_a_job_is_not_changed_by_saving_it() {
    let (_directory, catalog) = fresh();
    let added = job(1, 10);
    let mut other = job(1, 99);
    other.request = document(json!({"point": "another"}));
    other.owner = "somebody else".to_owned();
    other.job_type = 1;
    catalog
        .change(|change| {
            change.job_add(&added)?;
            change.job_save(&other)
        })
        .unwrap();
    let saved = catalog
        .read(|reader| reader.job(added.id))
        .unwrap()
        .unwrap();
    assert_eq!(saved.request, added.request);
    assert_eq!((saved.owner, saved.job_type), (added.owner, added.job_type));
    assert_eq!(saved.time_submitted, added.time_submitted);
}

/// The numbers of all jobs that match, read in pages of `limit`.
fn listed(catalog: &Catalog, filter: &JobFilter, limit: usize) -> Vec<u8> {
    let mut numbers = Vec::new();
    let mut page = JobPage::newest(limit);
    loop {
        let (jobs, next) = catalog.read(|reader| reader.jobs(filter, page)).unwrap();
        assert!(jobs.len() <= limit.max(1));
        numbers.extend(jobs.iter().map(|job| job.id.as_bytes()[0]));
        match next {
            Some(cursor) => page = JobPage::after(cursor, limit),
            None => return numbers,
        }
    }
}

#[test]
fn pages_of_jobs_make_up_the_whole_list() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| {
            for number in 1..=10 {
                let mut job = job(number, 10);
                job.final_at = (number <= 4).then_some(seconds(20));
                job.job_type = if number == 10 { 99 } else { 97 };
                job.relationship = (number > 8).then_some(relationship_id(5));
                change.job_add(&job)?;
            }
            Ok(())
        })
        .unwrap();
    let filters: [(JobFilter, &[u8]); 6] = [
        (JobFilter::ALL, &[10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (JobFilter::unfinished(), &[10, 9, 8, 7, 6, 5]),
        (
            JobFilter {
                vm: Some(vm_id(0)),
                activity: Activity::Ended,
                ..JobFilter::ALL
            },
            &[4, 2],
        ),
        (
            JobFilter {
                job_type: Some(99),
                ..JobFilter::ALL
            },
            &[10],
        ),
        (
            JobFilter {
                relationship: Some(relationship_id(5)),
                vm: Some(vm_id(1)),
                ..JobFilter::ALL
            },
            &[9],
        ),
        (
            JobFilter {
                vm: Some(vm_id(7)),
                ..JobFilter::ALL
            },
            &[],
        ),
    ];
    for (filter, expected) in filters {
        for limit in [0, 1, 3, 10, 1000] {
            assert_eq!(
                listed(&catalog, &filter, limit),
                expected,
                "{filter:?} by {limit}"
            );
        }
    }
}

#[test]
fn ended_jobs_are_kept_for_five_minutes_whatever_else_is_asked() {
    let minute = Duration::from_secs(60);
    JobRetention::new(4 * minute, 100).unwrap_err();
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| {
            for number in 1..=6 {
                let mut job = job(number, 10);
                job.final_at = Some(seconds(1000 + u64::from(number)));
                change.job_add(&job)?;
            }
            change.job_add(&job(7, 10))
        })
        .unwrap();
    let purge = |age, most, now| {
        let retention = JobRetention::new(age, most).unwrap();
        catalog
            .change(|change| change.job_purge(retention, seconds(now)))
            .unwrap()
    };
    let all = |catalog: &Catalog| listed(catalog, &JobFilter::ALL, 100);
    // A moment before the first one has been there for long enough.
    assert_eq!(purge(5 * minute, 0, 1300), 0);
    // The oldest two may go; the limit would have five go.
    assert_eq!(purge(60 * minute, 1, 1302), 2);
    assert_eq!(all(&catalog), [7, 6, 5, 4, 3]);
    // By number only as many as are too many.
    assert_eq!(purge(60 * minute, 3, 2000), 1);
    assert_eq!(all(&catalog), [7, 6, 5, 4]);
    // By age, and never one that goes on.
    assert_eq!(purge(5 * minute, 100, 1_000_000), 3);
    assert_eq!(all(&catalog), [7]);
}

#[test]
fn a_clock_that_was_put_back_does_not_keep_jobs_for_ever() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| {
            for number in 1..=5 {
                let mut job = job(number, 10);
                job.final_at = Some(seconds(1_000_000));
                change.job_add(&job)?;
            }
            Ok(())
        })
        .unwrap();
    let retention = JobRetention::new(Duration::from_secs(3600), 2).unwrap();
    // A little ahead is the skew of a clock that was just set: nothing goes early.
    let purge = |now| {
        catalog
            .change(|change| change.job_purge(retention, now))
            .unwrap()
    };
    assert_eq!(purge(seconds(1_000_000 - 300)), 0);
    assert_eq!(purge(seconds(1000)), 3);
    assert_eq!(listed(&catalog, &JobFilter::ALL, 100), [5, 4]);
}

#[test]
fn the_number_of_an_event_is_never_given_twice() {
    let (_directory, catalog) = fresh();
    let add = || {
        catalog
            .change(|change| change.event_add(&event("x", 1)))
            .unwrap()
    };
    let last = |catalog: &Catalog| catalog.read(|reader| reader.event_last_id()).unwrap();
    assert_eq!(last(&catalog), EventId::ZERO);
    for expected in 1..=3 {
        assert_eq!(add().number(), expected);
    }
    let nothing = EventRetention {
        age: Duration::ZERO,
        most: 0,
    };
    assert_eq!(
        catalog
            .change(|change| change.event_purge(nothing, seconds(9)))
            .unwrap(),
        3
    );
    assert_eq!(last(&catalog).number(), 3);
    assert_eq!(
        catalog.read(|reader| reader.event_oldest_id()).unwrap(),
        None
    );
    let path = catalog.path().to_owned();
    assert_eq!(add().number(), 4);
    drop(catalog);
    let catalog = Catalog::open(&path, lifeboat_catalog::OnMissing::Refuse).unwrap();
    assert_eq!(last(&catalog).number(), 4);
    let oldest = catalog.read(|reader| reader.event_oldest_id()).unwrap();
    assert_eq!(oldest, Some(EventId::new(4)));
}

#[test]
fn events_go_by_age_and_by_number() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| {
            for at in 1..=10 {
                change.event_add(&event(&at.to_string(), at))?;
            }
            Ok(())
        })
        .unwrap();
    let purge = |age, most| {
        let age = Duration::from_secs(age);
        catalog
            .change(|change| change.event_purge(EventRetention { age, most }, seconds(20)))
            .unwrap()
    };
    assert_eq!(purge(18, 100), 1);
    assert_eq!(purge(100, 9), 0);
    assert_eq!(purge(100, 4), 5);
    let left: Vec<u64> = catalog
        .read(|reader| reader.events_after(EventId::ZERO, &EventFilter::ALL, 100))
        .unwrap()
        .iter()
        .map(|event| event.id.number())
        .collect();
    assert_eq!(left, [7, 8, 9, 10]);
}

#[test]
fn events_are_listed_both_ways_and_by_what_they_concern() {
    let (_directory, catalog) = fresh();
    catalog
        .change(|change| {
            for number in 1..=6_u8 {
                let mut event = event(&number.to_string(), 1);
                event.vm = number.is_multiple_of(2).then(|| vm_id(2));
                event.relationship = (number > 4).then(|| relationship_id(3));
                event.severity = match number {
                    3 | 4 => Severity::Error,
                    5 => Severity::Warning,
                    _ => Severity::Information,
                };
                change.event_add(&event)?;
            }
            Ok(())
        })
        .unwrap();
    let numbers = |events: Vec<lifeboat_catalog::Event>| -> Vec<u64> {
        events.iter().map(|event| event.id.number()).collect()
    };
    let after = |after, filter: &EventFilter, limit| {
        let after = EventId::new(after);
        numbers(
            catalog
                .read(|reader| reader.events_after(after, filter, limit))
                .unwrap(),
        )
    };
    let of_vm = EventFilter {
        vm: Some(vm_id(2)),
        ..EventFilter::ALL
    };
    let serious = EventFilter {
        at_least: Severity::Warning,
        ..EventFilter::ALL
    };
    let of_both = EventFilter {
        relationship: Some(relationship_id(3)),
        ..of_vm
    };
    assert_eq!(after(0, &EventFilter::ALL, 4), [1, 2, 3, 4]);
    assert_eq!(after(4, &EventFilter::ALL, 4), [5, 6]);
    assert_eq!(after(u64::MAX, &EventFilter::ALL, 4), [0_u64; 0]);
    assert_eq!(after(2, &of_vm, 9), [4, 6]);
    assert_eq!(after(0, &serious, 9), [3, 4, 5]);
    assert_eq!(after(0, &of_both, 9), [6]);
    catalog
        .read(|reader| {
            let newest = reader.events_newest(&EventFilter::ALL, 2)?;
            assert_eq!(numbers(newest), [6, 5]);
            let before = reader.events_before(EventId::new(5), &serious, 9)?;
            assert_eq!(numbers(before), [4, 3]);
            Ok(())
        })
        .unwrap();
}

#[test]
fn audit_rows_count_without_a_gap_and_stay() {
    let (_directory, catalog) = fresh();
    let row = NewAuditRow {
        at: seconds(1),
        caller: "uid 0".to_owned(),
        role: "administrator".to_owned(),
        operation: "failover".to_owned(),
        target: "db-1".to_owned(),
        arguments: document(json!({"point": 5})),
        outcome: "job started".to_owned(),
    };
    let add = || catalog.change(|change| change.audit_add(&row));
    assert_eq!(add().unwrap(), 1);
    let undone = catalog.change(|change| {
        change.audit_add(&row)?;
        change.vm_remove(vm_id(1))
    });
    assert_eq!(refused(undone), Refused::NoVm { vm: vm_id(1) });
    assert_eq!(add().unwrap(), 2);
    let listed = catalog
        .read(|reader| reader.audit_before(u64::MAX, 9))
        .unwrap();
    assert_eq!(
        listed.iter().map(|row| row.number).collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(listed[0].row, row);
    let older = catalog.read(|reader| reader.audit_before(2, 9)).unwrap();
    assert_eq!(older.iter().map(|row| row.number).collect::<Vec<_>>(), [1]);
    let path = catalog.path().to_owned();
    drop(catalog);
    // Not even by hand.
    let by_hand = rusqlite::Connection::open(path).unwrap();
    for sql in ["DELETE FROM audit", "UPDATE audit SET outcome = ''"] {
        let error = by_hand.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains("never"), "{error}");
    }
}

#[test]
fn one_monitoring_cycle_runs_and_old_ones_go() {
    let (_directory, catalog) = fresh();
    let id = relationship_id(1);
    let add = |number| change_add(&catalog, number);
    add(1);
    let next = |at, most| {
        let (ended, next) = (document(json!(at)), document(json!(0)));
        let end = CycleEnd {
            at: seconds(at),
            ended: &ended,
            next: &next,
            most,
        };
        catalog.change(|change| change.statistics_next_cycle(id, end))
    };
    assert_eq!(
        refused(next(5, 9)),
        Refused::NoRunningCycle { relationship: id }
    );
    let save = |count: u64, now| {
        catalog
            .change(|change| change.statistics_save(id, &document(json!(count)), seconds(now)))
            .unwrap();
    };
    save(1, 100);
    save(2, 200);
    let running = catalog
        .read(|reader| reader.statistics_running(id))
        .unwrap()
        .unwrap();
    assert_eq!((running.started_at, running.ended_at), (seconds(100), None));
    assert_eq!(running.document, document(json!(2)));
    for at in [300, 400, 500] {
        next(at, 2).unwrap();
    }
    let ended = catalog
        .read(|reader| reader.statistics_ended(id, 9))
        .unwrap();
    let times: Vec<_> = ended
        .iter()
        .map(|cycle| (cycle.started_at, cycle.ended_at))
        .collect();
    assert_eq!(
        times,
        [
            (seconds(400), Some(seconds(500))),
            (seconds(300), Some(seconds(400)))
        ]
    );
    assert_eq!(ended[0].document, document(json!(500)));
    let running = catalog
        .read(|reader| reader.statistics_running(id))
        .unwrap()
        .unwrap();
    assert_eq!(
        (running.started_at, running.document),
        (seconds(500), document(json!(0)))
    );
    catalog
        .change(|change| change.statistics_reset(id))
        .unwrap();
    catalog
        .read(|reader| {
            assert_eq!(reader.statistics_running(id)?, None);
            assert_eq!(reader.statistics_ended(id, 9)?, []);
            Ok(())
        })
        .unwrap();
}

fn change_add(catalog: &Catalog, number: u8) {
    catalog
        .change(|change| change.relationship_add(&relationship(number, Place::First)))
        .unwrap();
}

#[test]
fn settings_peers_and_entries_are_replaced_by_name() {
    let (_directory, catalog) = fresh();
    let entry = |name: &str, group: &str| AuthorizationEntry {
        allowed_primary: name.to_owned(),
        document: document(json!({ "group": group })),
    };
    let peer = |host: &str, last_seen| Peer {
        host: host.to_owned(),
        address: format!("{host}:8443"),
        last_seen,
        document: document(json!({})),
    };
    catalog
        .change(|change| {
            change.setting_save("service", &document(json!(1)))?;
            change.setting_save("service", &document(json!(2)))?;
            change.authorization_entry_save(&entry("*.Example", "one"))?;
            change.authorization_entry_save(&entry("*.example", "two"))?;
            change.peer_save(&peer("b", None))?;
            change.peer_save(&peer("B", Some(seconds(5))))
        })
        .unwrap();
    catalog
        .read(|reader| {
            assert_eq!(reader.setting("service")?, Some(document(json!(2))));
            assert_eq!(reader.setting("Service")?, None);
            let entries = reader.authorization_entries()?;
            assert_eq!(entries, [entry("*.Example", "two")]);
            assert_eq!(reader.peers()?.len(), 1);
            assert_eq!(reader.peer("b")?.unwrap().last_seen, Some(seconds(5)));
            Ok(())
        })
        .unwrap();
    catalog
        .change(|change| {
            change.setting_remove("service")?;
            assert!(change.authorization_entry_remove("*.EXAMPLE")?);
            assert!(!change.authorization_entry_remove("*.example")?);
            assert!(change.peer_remove("b")?);
            assert!(!change.peer_remove("b")?);
            assert_eq!(change.settings()?, []);
            assert_eq!(change.authorization_entries()?, []);
            assert_eq!(change.peers()?, []);
            Ok(())
        })
        .unwrap();
}

#[test]
fn references_are_held_by_boundary_and_released_once() {
    let (_directory, catalog) = fresh();
    let reference = |number: u8, boundary| Reference {
        id: ReferenceId::from_bytes([number; 16]),
        vm: vm_id(1),
        boundary,
        owner: format!("test {number}"),
        document: document(json!({})),
    };
    catalog
        .change(|change| {
            change.reference_add(&reference(1, 9))?;
            change.reference_add(&reference(2, 4))
        })
        .unwrap();
    let twice = catalog.change(|change| change.reference_add(&reference(1, 5)));
    let id = ReferenceId::from_bytes([1; 16]);
    assert_eq!(refused(twice), Refused::ReferenceExists { reference: id });
    let too_large = catalog.change(|change| change.reference_add(&reference(3, u64::MAX)));
    assert!(matches!(refused(too_large), Refused::TooLargeNumber { .. }));
    let held = catalog
        .read(|reader| reader.references_of(vm_id(1)))
        .unwrap();
    assert_eq!(held, [reference(2, 4), reference(1, 9)]);
    assert_eq!(
        catalog
            .read(|reader| reader.references_of(vm_id(2)))
            .unwrap(),
        []
    );
    let remove = || {
        catalog
            .change(|change| change.reference_remove(id))
            .unwrap()
    };
    assert!(remove());
    assert!(!remove());
}
