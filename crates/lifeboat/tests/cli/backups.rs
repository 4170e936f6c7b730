//! A host's backup: whole, refused when it is not, and never over something that exists.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use lifeboat_catalog::{Catalog, OnMissing};
use tempfile::TempDir;

use crate::support::{lifeboat, lifeboat_json, text};

/// A host and where its backup goes.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let root = scene.root();
        let init = ["init", "--name", "alpha.test", "--root", text(&root)];
        lifeboat(&init).done();
        scene
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("host")
    }

    fn config(&self) -> PathBuf {
        self.root().join("lifeboat.toml")
    }

    fn backup(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    fn create(&self) {
        let (config, into) = (self.config(), self.backup());
        lifeboat(&["backup", "create", "--config", text(&config), text(&into)]).done();
    }

    fn restore(&self) -> crate::support::Run {
        let (config, from) = (self.config(), self.backup());
        lifeboat_json(&["backup", "restore", "--config", text(&config), text(&from)])
    }

    fn certificates(&self) -> serde_json::Value {
        let config = self.config();
        lifeboat_json(&["certificate", "show", "--config", text(&config)]).json()
    }
}

#[test]
fn a_host_that_is_lost_is_the_same_host_after_its_restore() {
    let scene = Scene::new();
    let (before, config) = (
        scene.certificates(),
        fs::read_to_string(scene.config()).unwrap(),
    );
    scene.create();
    fs::remove_dir_all(scene.root()).unwrap();
    let restored = scene.restore().json();
    assert_eq!(restored["host"], "alpha.test");
    assert_eq!(restored["config"], text(&scene.config()));
    assert_eq!(scene.certificates(), before);
    assert_eq!(fs::read_to_string(scene.config()).unwrap(), config);
    let catalog = scene.root().join("state/catalog.db");
    Catalog::open(&catalog, OnMissing::Refuse).unwrap();
}

#[test]
fn a_backup_is_made_while_the_daemon_has_the_catalog_and_nobody_else_may_read_it() {
    let scene = Scene::new();
    let catalog = scene.root().join("state/catalog.db");
    let open = Catalog::open(&catalog, OnMissing::Refuse).unwrap();
    scene.create();
    drop(open);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scene.backup()), 0o700);
    for entry in fs::read_dir(scene.backup()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    let backup = scene.backup();
    let checked = lifeboat_json(&["backup", "check", text(&backup)]).json();
    assert_eq!(checked["vms"], 0);
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let scene = Scene::new();
    scene.create();
    // The backup itself.
    let (config, into) = (scene.config(), scene.backup());
    lifeboat_json(&["backup", "create", "--config", text(&config), text(&into)]).error(3);
    // The host, and any part of it.
    for part in ["lifeboat.toml", "state/catalog.db", "state/pki"] {
        let error = scene.restore().error(1);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("there is a host already"), "{message}");
        let path = scene.root().join(part);
        assert!(path.exists(), "{part}");
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    scene.restore().json();
}

#[test]
fn a_backup_that_is_not_as_it_was_written_restores_nothing() {
    let scene = Scene::new();
    scene.create();
    fs::remove_dir_all(scene.root()).unwrap();
    let manifest = fs::read(scene.backup().join("backup.json")).unwrap();
    for name in ["lifeboat.toml", "catalog.db", "certificates.json"] {
        let path = scene.backup().join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        for bad in [bad, good[..middle].to_vec()] {
            fs::write(&path, bad).unwrap();
            scene.restore().error(1);
            assert!(!scene.root().exists(), "{name}");
        }
        fs::remove_file(&path).unwrap();
        scene.restore().error(5);
        fs::write(&path, good).unwrap();
    }
    for bad in [&b"{}"[..], b"", &manifest[..manifest.len() - 2]] {
        fs::write(scene.backup().join("backup.json"), bad).unwrap();
        scene.restore().error(1);
    }
    fs::write(scene.backup().join("backup.json"), manifest).unwrap();
    scene.restore().json();
}

#[test]
fn what_a_crash_left_of_a_backup_is_replaced() {
    let scene = Scene::new();
    let part = scene.folder.path().join("backup.part");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("catalog.db"), "half").unwrap();
    scene.create();
    assert!(!part.exists());
    let backup = scene.backup();
    lifeboat(&["backup", "check", text(&backup)]).done();
}
