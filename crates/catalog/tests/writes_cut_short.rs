//! A process that is killed while it writes, and one whose writes fail.
//!
//! The test's own program is started again with the catalog's path in its environment; the
//! test of that name then is the process that writes. Each change adds an event and saves a
//! record, and is acknowledged on standard output when it has returned.

#[allow(dead_code, reason = "shared with tests that need other parts")]
mod support;

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_catalog::{
    Catalog, CatalogError, EventFilter, EventId, OnMissing, Place, RecordVersion,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use support::{document, event, fresh, relationship, relationship_id};

const CATALOG: &str = "LIFEBOAT_TEST_CATALOG";
/// Set where the process also mends what failed.
const MEND: &str = "LIFEBOAT_TEST_MEND";
const ACKNOWLEDGED: &str = "acknowledged ";

fn change_once(catalog: &Catalog, version: RecordVersion) -> Result<RecordVersion, CatalogError> {
    let record = document(json!({"saved": version.number(), "filler": "x".repeat(2000)}));
    catalog.change(|change| {
        change.event_add(&event(&version.to_string(), 1))?;
        change.record_save(relationship_id(1), &record, version)
    })
}

fn record_version(catalog: &Catalog) -> RecordVersion {
    let saved = catalog.read(|reader| reader.relationship(relationship_id(1)));
    saved.unwrap().unwrap().record_version
}

fn acknowledge(version: RecordVersion) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{ACKNOWLEDGED}{version}").unwrap();
    out.flush().unwrap();
}

/// Every change is there as a whole: as many events as times the record was saved.
fn assert_whole(catalog: &Catalog) {
    catalog
        .read(|reader| {
            let version = reader
                .relationship(relationship_id(1))?
                .unwrap()
                .record_version;
            assert_eq!(reader.event_last_id()?.number() + 1, version.number());
            let mut seen = EventId::ZERO;
            loop {
                let events = reader.events_after(seen, &EventFilter::ALL, 1000)?;
                let Some(last) = events.last() else { break };
                for (number, event) in (seen.number() + 1..).zip(&events) {
                    assert_eq!(event.id.number(), number);
                    assert_eq!(event.event.message, number.to_string());
                }
                seen = last.id;
            }
            assert_eq!(seen.number() + 1, version.number());
            Ok(())
        })
        .unwrap();
}

/// This program again, as the process of the test `name`.
fn again(name: &str) -> Vec<std::ffi::OsString> {
    let program = env::current_exe().unwrap().into_os_string();
    vec![program, name.into(), "--exact".into(), "--nocapture".into()]
}

#[test]
fn a_killed_process_leaves_exactly_what_was_acknowledged() {
    const NAME: &str = "a_killed_process_leaves_exactly_what_was_acknowledged";
    if let Some(path) = env::var_os(CATALOG) {
        let catalog = Catalog::open(Path::new(&path), OnMissing::Refuse).unwrap();
        let mut version = record_version(&catalog);
        loop {
            version = change_once(&catalog, version).unwrap();
            acknowledge(version);
        }
    }
    let (_directory, catalog) = fresh();
    let row = relationship(1, Place::First);
    let first = catalog
        .change(|change| change.relationship_add(&row))
        .unwrap();
    let path = catalog.path().to_owned();
    drop(catalog);
    let mut before = first.number();
    for changes in [1, 2, 40, 700, 3, 150] {
        let words = again(NAME);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env(CATALOG, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .filter_map(|line| {
                let (_, number) = line.split_once(ACKNOWLEDGED)?;
                number.parse::<u64>().ok()
            });
        let last = acknowledged.by_ref().nth(changes - 1).unwrap();
        child.kill().unwrap();
        // What it had said before it died.
        let last = acknowledged.last().unwrap_or(last);
        child.wait().unwrap();
        let catalog = Catalog::open(&path, OnMissing::Refuse).unwrap();
        let found = record_version(&catalog).number();
        // One change may have become durable whose return nobody saw.
        assert!(
            (last..=last + 1).contains(&found),
            "acknowledged {last}, found {found}"
        );
        assert!(last >= before + u64::try_from(changes).unwrap());
        assert_whole(&catalog);
        before = found;
    }
}

#[test]
fn a_write_that_fails_stops_changes_until_it_is_mended_and_loses_nothing() {
    const NAME: &str = "a_write_that_fails_stops_changes_until_it_is_mended_and_loses_nothing";
    if let Some(path) = env::var_os(CATALOG) {
        let catalog = Catalog::open(Path::new(&path), OnMissing::Refuse).unwrap();
        let mut version = record_version(&catalog);
        let error = loop {
            match change_once(&catalog, version) {
                Ok(next) => version = next,
                Err(error) => break error,
            }
            acknowledge(version);
        };
        assert!(matches!(error, CatalogError::Io { .. }), "{error:?}");
        let error = change_once(&catalog, version).unwrap_err();
        assert!(matches!(error, CatalogError::Stopped), "{error:?}");
        assert!(catalog.is_stopped());
        assert_eq!(record_version(&catalog), version, "reads go on");
        if env::var_os(MEND).is_none() {
            return;
        }
        limit_files(Some(4096));
        let error = catalog.mend().unwrap_err();
        assert!(catalog.is_stopped(), "{error}");
        let error = change_once(&catalog, version).unwrap_err();
        assert!(matches!(error, CatalogError::Stopped), "{error:?}");
        limit_files(None);
        assert!(catalog.mend().unwrap());
        assert!(!catalog.mend().unwrap(), "there is nothing to mend");
        assert_eq!(
            record_version(&catalog),
            version,
            "what failed is not there"
        );
        assert_whole(&catalog);
        for _ in 0..100 {
            version = change_once(&catalog, version).unwrap();
            acknowledge(version);
        }
        return;
    }
    let (_directory, catalog) = fresh();
    let row = relationship(1, Place::First);
    catalog
        .change(|change| change.relationship_add(&row))
        .unwrap();
    let path = catalog.path().to_owned();
    drop(catalog);
    let last = run_with_files_limited(NAME, &path, false);
    let catalog = Catalog::open(&path, OnMissing::Refuse).unwrap();
    let found = record_version(&catalog);
    assert!(
        (last..=last + 1).contains(&found.number()),
        "acknowledged {last}, found {found}"
    );
    assert_whole(&catalog);
    change_once(&catalog, found).unwrap();
    drop(catalog);

    let mended = run_with_files_limited(NAME, &path, true);
    assert!(mended > found.number() + 100, "{mended}");
    let catalog = Catalog::open(&path, OnMissing::Refuse).unwrap();
    assert_eq!(record_version(&catalog).number(), mended);
    assert_whole(&catalog);
}

/// Runs this program as the process of the test `name` and answers the last change that it
/// acknowledged. The kernel lets no file grow beyond a limit: the log is the first to reach it.
fn run_with_files_limited(name: &str, path: &Path, mend: bool) -> u64 {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -S -f 4000; exec \"$@\"")
        .arg("sh")
        .args(again(name))
        .env(CATALOG, path);
    if mend {
        command.env(MEND, "yes");
    }
    let child = command.output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}{errors}");
    let last: u64 = said
        .lines()
        .filter_map(|line| line.split_once(ACKNOWLEDGED)?.1.parse().ok())
        .next_back()
        .unwrap();
    assert!(last > 50, "{said}");
    last
}

/// Lets no file grow beyond so many bytes, or any.
fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    let current = bytes.or(maximum);
    setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
}
