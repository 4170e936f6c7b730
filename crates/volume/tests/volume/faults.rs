//! Every call to the disk that may fail, fails once.

use std::collections::BTreeSet;
use std::sync::Arc;

use lifeboat_model::BLOCK_SIZE;
use lifeboat_nbd::{ExportSet, ListenAddress, Server, ServerOptions};
use lifeboat_sys::disk::{DiskPort, Fault, FaultDisk, RealDisk};
use lifeboat_volume::{FreezeError, Outcome, Volume};

use super::fixture::{Fixture, PATIENCE, PLENTY, plan};

const SIZE: usize = 1 << 20;

/// Changes, each in blocks of its own.
const WRITTEN: [u64; 3] = [3, 40, 200];
const TRIMMED: u64 = 100;
const ZEROED: u64 = 150;

#[test]
fn a_disk_error_breaks_the_view_or_fails_the_write_and_is_never_silent() {
    let counting = Arc::new(FaultDisk::counting(Arc::new(RealDisk)));
    let clean = run(Arc::clone(&counting) as Arc<dyn DiskPort>);
    assert_eq!(clean, Verdict::default());
    let mut seen = BTreeSet::new();
    for call in 0..counting.calls() {
        for fault in [Fault::InputOutput, Fault::DiskFull] {
            let port = FaultDisk::failing_at(Arc::new(RealDisk), call, fault);
            let verdict = run(Arc::new(port));
            seen.insert((
                verdict.not_frozen,
                verdict.broken,
                !verdict.failed.is_empty(),
            ));
        }
    }
    let any = |what: fn(&(bool, bool, bool)) -> bool| seen.iter().any(what);
    assert!(any(|s| s.0) && any(|s| s.1) && any(|s| s.2), "{seen:?}");
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    not_frozen: bool,
    broken: bool,
    /// Changes of which the guest has heard that they failed.
    failed: Vec<u64>,
}

/// One cycle over a port that may fail; checks what must hold in any case.
fn run(port: Arc<dyn DiskPort>) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&folder, &[("a", SIZE)], PLENTY);
    std::fs::write(&plan.disks[0].path, vec![7; SIZE]).unwrap();
    let exports = ExportSet::new();
    let volume = Volume::open(port, &plan, exports.clone()).unwrap();
    let address = ListenAddress::Unix(folder.path().join("s"));
    let server = Server::bind(&address, exports.clone(), ServerOptions::default()).unwrap();
    let fixture = Fixture {
        volume,
        server,
        exports,
        folder,
    };
    let mut verdict = Verdict::default();
    let mut freeze = || match fixture.volume.freeze() {
        Ok(view) => Some(view),
        Err(FreezeError::Scratch { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    // Tracking begins once a view has been received, however often it takes.
    let Some(view) = freeze().or_else(&mut freeze) else {
        verdict.not_frozen = true;
        return verdict;
    };
    view.release(Outcome::Received, PATIENCE).unwrap();
    let Some(view) = freeze() else {
        verdict.not_frozen = true;
        change_all(&fixture, &mut verdict);
        check_marks(&fixture);
        return verdict;
    };
    change_all(&fixture, &mut verdict);
    let shown = super::fixture::read_all(&fixture.client("a@frozen"));
    verdict.broken = view.broken().is_some();
    match shown {
        Ok(shown) => assert!(shown == vec![7; SIZE], "the view shows something new"),
        Err(error) => assert!(verdict.broken, "{error}"),
    }
    view.release(Outcome::Failed, PATIENCE).unwrap();
    check_marks(&fixture);
    verdict
}

fn change_all(fixture: &Fixture, verdict: &mut Verdict) {
    let client = fixture.client("a");
    for block in WRITTEN {
        if client.write(block * BLOCK_SIZE, &[1; 100]).is_err() {
            verdict.failed.push(block);
        }
    }
    if client.trim(TRIMMED * BLOCK_SIZE, 1).is_err() {
        verdict.failed.push(TRIMMED);
    }
    if client
        .write_zeroes_allocated(ZEROED * BLOCK_SIZE, 1)
        .is_err()
    {
        verdict.failed.push(ZEROED);
    }
}

/// Whatever may have changed is marked, also when the guest was told that it failed.
fn check_marks(fixture: &Fixture) {
    let Ok(_view) = fixture.volume.freeze() else {
        // A full disk stays full; the marks are still there.
        assert_eq!(fixture.volume.dirty_bytes(), 5 * BLOCK_SIZE);
        return;
    };
    let mut expected = BTreeSet::from(WRITTEN);
    expected.extend([TRIMMED, ZEROED]);
    assert_eq!(fixture.marked("a"), expected);
}
