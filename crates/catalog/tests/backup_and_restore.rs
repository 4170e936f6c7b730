//! Copies of the catalog: whole or not at all, and put in place without mixing two catalogs.

#[allow(dead_code, reason = "shared with tests that need other parts")]
mod support;

use std::fs;
use std::path::Path;

use lifeboat_catalog::{
    BackupError, Catalog, CheckError, EventFilter, EventId, OnMissing, RestoreError,
};
use support::{event, fresh, vm};

fn add(catalog: &Catalog, message: &str) {
    catalog
        .change(|change| change.event_add(&event(message, 1)))
        .unwrap();
}

fn messages(catalog: &Catalog) -> Vec<String> {
    let events = catalog.read(|reader| reader.events_after(EventId::ZERO, &EventFilter::ALL, 1000));
    let events = events.unwrap();
    events
        .into_iter()
        .map(|event| event.event.message)
        .collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_backup_is_one_file_that_opens_as_the_catalog() {
    let (_directory, catalog) = fresh();
    catalog.change(|change| change.vm_add(&vm(1, "a"))).unwrap();
    add(&catalog, "before");
    let elsewhere = tempfile::TempDir::new().unwrap();
    let path = elsewhere.path().join("backup.db");
    catalog.backup(&path).unwrap();
    add(&catalog, "after");
    assert_eq!(names(elsewhere.path()), ["backup.db"]);
    let checked = Catalog::check(&path).unwrap();
    assert_eq!((checked.vms, checked.relationships), (1, 0));
    assert_eq!(
        names(elsewhere.path()),
        ["backup.db"],
        "a check leaves nothing behind"
    );
    // Again under the same name, over what a crash left.
    fs::write(elsewhere.path().join("backup.db.part"), "half of a backup").unwrap();
    catalog.backup(&path).unwrap();
    assert_eq!(names(elsewhere.path()), ["backup.db"]);
    let copy = Catalog::open(&path, OnMissing::Refuse).unwrap();
    assert_eq!(messages(&copy), ["before", "after"]);
}

#[test]
fn a_backup_never_goes_over_the_catalog_itself() {
    let (directory, catalog) = fresh();
    add(&catalog, "kept");
    let own = catalog.path().to_owned();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let mut log = own.clone().into_os_string();
    log.push("-wal");
    for path in [own.as_path(), &link, Path::new(&log)] {
        let error = catalog.backup(path).unwrap_err();
        assert!(matches!(error, BackupError::OwnFile { .. }), "{error}");
    }
    assert_eq!(messages(&catalog), ["kept"]);
}

#[test]
fn a_backup_that_fails_leaves_the_one_before() {
    let (directory, catalog) = fresh();
    add(&catalog, "first");
    let path = directory.path().join("backup.db");
    catalog.backup(&path).unwrap();
    let before = fs::read(&path).unwrap();
    // A directory where the copy is made first.
    let part = directory.path().join("backup.db.part");
    fs::create_dir(&part).unwrap();
    catalog.backup(&path).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_dir(&part).unwrap();
    catalog.backup(&path).unwrap();
    catalog
        .backup(&directory.path().join("no/such/backup.db"))
        .unwrap_err();
    assert_eq!(messages(&catalog), ["first"]);
}

#[test]
fn restoring_goes_back_and_keeps_what_was_there() {
    let (directory, catalog) = fresh();
    let path = catalog.path().to_owned();
    let backup = directory.path().join("backup.db");
    add(&catalog, "old");
    catalog.backup(&backup).unwrap();
    add(&catalog, "new");
    let error = Catalog::restore(&backup, &path).unwrap_err();
    assert!(matches!(error, RestoreError::Lock { .. }), "{error}");
    // As after a crash: the newest changes are in the log only.
    let log = fs::read(directory.path().join("catalog.db-wal")).unwrap();
    let file = fs::read(&path).unwrap();
    drop(catalog);
    fs::write(&path, file).unwrap();
    fs::write(directory.path().join("catalog.db-wal"), log).unwrap();

    Catalog::restore(&backup, &path).unwrap();
    let restored = Catalog::open(&path, OnMissing::Refuse).unwrap();
    assert_eq!(messages(&restored), ["old"]);
    let kept = Catalog::open(
        &directory.path().join("catalog.db.replaced"),
        OnMissing::Refuse,
    );
    assert_eq!(messages(&kept.unwrap()), ["old", "new"]);
    drop(restored);
    // Once more, and where there is nothing to replace.
    Catalog::restore(&backup, &path).unwrap();
    fs::remove_file(&path).unwrap();
    Catalog::restore(&backup, &path).unwrap();
    assert_eq!(
        messages(&Catalog::open(&path, OnMissing::Refuse).unwrap()),
        ["old"]
    );
}

#[test]
fn a_bad_backup_replaces_nothing() {
    let (directory, catalog) = fresh();
    for number in 0..500 {
        add(&catalog, &format!("event {number}"));
    }
    let path = catalog.path().to_owned();
    let backup = directory.path().join("backup.db");
    catalog.backup(&backup).unwrap();
    drop(catalog);
    let good = fs::read(&backup).unwrap();
    let before = fs::read(&path).unwrap();
    let mut damaged = good.clone();
    let middle = good.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 4096].fill(0xff);
    for bad in [&b""[..], b"text", &good[..middle], &damaged] {
        fs::write(&backup, bad).unwrap();
        let error = Catalog::restore(&backup, &path).unwrap_err();
        assert!(matches!(error, RestoreError::Check { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let missing = Catalog::check(&directory.path().join("nothing"));
    assert!(
        matches!(missing, Err(CheckError::Database { .. })),
        "{missing:?}"
    );
    assert_eq!(
        Catalog::open(&path, OnMissing::Refuse)
            .map(|c| messages(&c).len())
            .unwrap(),
        500
    );
}

#[test]
fn a_catalog_that_is_open_is_copied_from_outside_as_it_is_at_one_instant() {
    let (directory, catalog) = fresh();
    add(&catalog, "before");
    let copy = directory.path().join("copy.db");
    Catalog::copy(catalog.path(), &copy).unwrap();
    add(&catalog, "after");
    assert_eq!(messages(&catalog), ["before", "after"]);
    Catalog::check(&copy).unwrap();
    let copied = Catalog::open(&copy, OnMissing::Refuse).unwrap();
    assert_eq!(messages(&copied), ["before"]);
    // And nothing is made of nothing.
    let missing = directory.path().join("missing.db");
    Catalog::copy(&missing, &directory.path().join("other.db")).unwrap_err();
    assert!(!missing.exists() && !directory.path().join("other.db").exists());
}
