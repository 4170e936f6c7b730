//! Opening and closing.

use std::path::Path;
use std::sync::Arc;

use lifeboat_nbd::{ExportSet, ListenAddress, Server, ServerOptions};
use lifeboat_sys::disk::RealDisk;
use lifeboat_volume::{Volume, VolumeError, VolumePlan, create_disk};

use super::fixture::{Fixture, PATIENCE, PLENTY, plan, size};

fn open(plan: &VolumePlan, exports: &ExportSet) -> Result<Volume, VolumeError> {
    Volume::open(Arc::new(RealDisk), plan, exports.clone())
}

#[test]
fn what_was_written_is_in_the_file_when_the_volume_is_closed() {
    let Fixture {
        volume,
        server,
        exports,
        folder,
    } = Fixture::new(&[("a", 1 << 20)], PLENTY);
    let path = folder.path().join("a.raw");
    let uri = lifeboat_nbd::NbdUri::unix(folder.path().join("s"), "a").unwrap();
    let options = lifeboat_nbd::ClientOptions::default();
    let client = lifeboat_nbd::Client::connect(&uri, &options).unwrap();
    client.write(4097, &[5; 10]).unwrap();
    drop(client);
    volume.close(PATIENCE).unwrap();
    assert!(exports.names().is_empty());
    drop(server);
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    assert_eq!(bytes.iter().position(|byte| *byte == 5), Some(4097));
}

#[test]
fn an_image_in_use_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&folder, &[("a", 1 << 20)], PLENTY);
    let first = open(&plan, &ExportSet::new()).unwrap();
    let second = open(&plan, &ExportSet::new());
    assert!(
        matches!(second, Err(VolumeError::InUse { .. })),
        "{second:?}"
    );
    drop(first);
    open(&plan, &ExportSet::new()).unwrap();
}

#[test]
fn impossible_plans_are_refused_and_leave_nothing_among_the_exports() {
    let folder = tempfile::tempdir().unwrap();
    let good = plan(&folder, &[("a", 1 << 20), ("b", 1 << 20)], PLENTY);
    let exports = ExportSet::new();
    let with = |change: fn(&mut VolumePlan)| {
        let mut plan = good.clone();
        change(&mut plan);
        open(&plan, &exports).unwrap_err()
    };
    let none = with(|plan| plan.disks.clear());
    assert!(matches!(none, VolumeError::NoDisks), "{none}");
    let twice = with(|plan| plan.disks[1].id = plan.disks[0].id.clone());
    assert!(
        matches!(twice, VolumeError::DuplicateDisk { .. }),
        "{twice}"
    );
    let absent = with(|plan| plan.disks[1].path.push("absent"));
    assert!(matches!(absent, VolumeError::Open { .. }), "{absent}");

    let odd = folder.path().join("odd");
    std::fs::write(&odd, [1; 1000]).unwrap();
    let mut plan = good.clone();
    plan.disks[1].path = odd;
    let error = open(&plan, &exports).unwrap_err();
    assert!(matches!(error, VolumeError::Size { .. }), "{error}");
    assert!(exports.names().is_empty());

    let taken = open(&good, &exports).unwrap();
    let others = tempfile::tempdir().unwrap();
    let other = super::fixture::plan(&others, &[("c", 512), ("b", 512)], PLENTY);
    let error = open(&other, &exports).unwrap_err();
    assert!(matches!(error, VolumeError::Export { .. }), "{error}");
    assert_eq!(exports.names(), ["a", "b"]);
    drop(taken);
}

#[test]
fn a_new_disk_takes_no_space_and_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    create_disk(&RealDisk, &path, size(1 << 40)).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) < 100);
    let again = create_disk(&RealDisk, &path, size(512));
    assert!(
        matches!(again, Err(VolumeError::Create { .. })),
        "{again:?}"
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 40);
    let nowhere = create_disk(&RealDisk, Path::new("/nonexistent/a"), size(512));
    assert!(nowhere.is_err());
}

#[test]
fn views_leave_no_files_behind() {
    let fixture = Fixture::new(&[("a", 1 << 20)], PLENTY);
    let client = fixture.client("a");
    client.write(0, &[1; 8192]).unwrap();
    let view = fixture.volume.freeze().unwrap();
    client.write(0, &[2; 8192]).unwrap();
    assert_eq!(view.scratch_bytes(), 8192);
    let mut names: Vec<_> = std::fs::read_dir(fixture.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.raw", "s"]);
}

#[test]
fn a_view_outlives_neither_its_names_nor_the_volume_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&folder, &[("a", 1 << 20)], PLENTY);
    let exports = ExportSet::new();
    let volume = open(&plan, &exports).unwrap();
    let address = ListenAddress::Unix(folder.path().join("s"));
    let _server = Server::bind(&address, exports.clone(), ServerOptions::default()).unwrap();
    let view = volume.freeze().unwrap();
    drop(volume);
    assert_eq!(exports.names(), ["a@frozen"]);
    // The image is not given up while a view reads it.
    assert!(matches!(
        open(&plan, &ExportSet::new()),
        Err(VolumeError::InUse { .. })
    ));
    drop(view);
    assert!(exports.names().is_empty());
    open(&plan, &exports).unwrap();
}
