//! The driver `volume`: the contract, and what it promises beyond.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_hypervisor::{
    Backing, Hypervisor, HypervisorError, QuiesceHook, StopMode, Tracking, VolumeDriver,
    VolumeDriverOptions,
};
use lifeboat_model::Consistency;
use lifeboat_sys::disk::RealDisk;
use lifeboat_sys::host::BootId;
use tempfile::TempDir;

use super::rig::{DISKS, Guest, PATIENCE, Rig, connect, definition, disk, moment, new_image, vm};

struct VolumeRig {
    driver: VolumeDriver,
    folder: TempDir,
}

impl Rig for VolumeRig {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.driver
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn options(folder: &Path, boot: &str) -> VolumeDriverOptions {
    VolumeDriverOptions {
        state_folder: folder.join("state"),
        socket_folder: folder.join("s"),
        scratch_folder: folder.join("scratch"),
        scratch_limit: 1 << 30,
        shutdown_grace: PATIENCE,
        quiesce: None,
        boot: BootId::noted(boot),
    }
}

fn driver(folder: &Path, boot: &str) -> VolumeDriver {
    VolumeDriver::new(Arc::new(RealDisk), options(folder, boot)).unwrap()
}

fn rig() -> VolumeRig {
    let folder = tempfile::tempdir().unwrap();
    VolumeRig {
        driver: driver(folder.path(), "boot"),
        folder,
    }
}

crate::whole_contract! { rig() }

#[test]
fn sockets_are_for_their_owner_alone() {
    let rig = rig();
    let _guest = Guest::running(&rig);
    let sockets: Vec<PathBuf> = std::fs::read_dir(rig.folder().join("s"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(sockets.len(), 2);
    for socket in sockets {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
    }
    let second = VolumeDriver::new(Arc::new(RealDisk), options(rig.folder(), "boot"));
    assert!(
        matches!(second, Err(HypervisorError::ServeCaptures { .. })),
        "{second:?}"
    );
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "boot");
    options.socket_folder = folder.path().join("x".repeat(90));
    let refused = VolumeDriver::new(Arc::new(RealDisk), options);
    assert!(
        matches!(refused, Err(HypervisorError::Socket { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_orderly_end_is_believed_in_another_boot_and_a_touched_image_is_not() {
    let mut rig = rig();
    let guest = Guest::running(&rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.write(0, 4, 2);
    let images = guest.images;
    for boot in ["second", "third"] {
        rig.replace(boot);
        let guest = define_again(&rig, &images);
        let tracking = guest.hypervisor.tracking(guest.vm).unwrap();
        assert_eq!(
            tracking,
            Tracking::Since {
                moments: vec![moment(1)]
            },
            "{boot}"
        );
        assert_eq!(guest.changed(), [vec![4], vec![]]);
    }
    let guest = define_again(&rig, &images);
    let modified = || std::fs::metadata(&images[1]).unwrap().modified().unwrap();
    let before = modified();
    while modified() == before {
        let mut image = std::fs::File::options()
            .write(true)
            .open(&images[1])
            .unwrap();
        image.write_all(&[9]).unwrap();
    }
    let tracking = guest.hypervisor.tracking(guest.vm).unwrap();
    let told = matches!(&tracking, Tracking::Unknown { why } if why.contains("sdb"));
    assert!(told, "{tracking:?}");
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(2))
        .unwrap();
    let tracking = guest.hypervisor.tracking(guest.vm).unwrap();
    assert_eq!(
        tracking,
        Tracking::Since {
            moments: vec![moment(2)]
        }
    );
}

impl VolumeRig {
    /// Ends the driver in order, and begins another.
    fn replace(&mut self, boot: &str) {
        let unused = tempfile::tempdir().unwrap();
        let placeholder = driver(unused.path(), "none");
        drop(std::mem::replace(&mut self.driver, placeholder));
        self.driver = driver(self.folder.path(), boot);
    }
}

fn define_again<'a>(rig: &'a VolumeRig, images: &[PathBuf]) -> Guest<'a> {
    let guest = Guest {
        hypervisor: rig.hypervisor(),
        vm: vm(1),
        images: images.to_vec(),
    };
    guest.define();
    guest
}

/// Tells the process that a test starts of itself to run the VM, and where.
const CHILD: &str = "LIFEBOAT_HYPERVISOR_TEST_CHILD";

#[test]
fn tracking_outlives_a_driver_that_is_killed_but_no_other_boot() {
    if let Some(folder) = std::env::var_os(CHILD) {
        run_until_killed(Path::new(&folder));
    }
    for (boot, believed) in [("boot", Believed::Yes), ("another", Believed::No)] {
        let folder = tempfile::tempdir().unwrap();
        let images = DISKS.map(|(name, bytes)| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![1; bytes]).unwrap();
            path
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "volume_driver::tracking_outlives_a_driver_that_is_killed_but_no_other_boot",
                "--nocapture",
            ])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.take_while(|line| !line.as_ref().unwrap().ends_with("written 50"));
        assert!(told.count() > 10);
        child.kill().unwrap();
        child.wait().unwrap();
        let rig = VolumeRig {
            driver: driver(folder.path(), boot),
            folder,
        };
        let guest = define_again(&rig, &images);
        let tracking = guest.hypervisor.tracking(guest.vm).unwrap();
        match believed {
            Believed::No => {
                assert!(matches!(tracking, Tracking::Unknown { .. }), "{tracking:?}");
                assert_eq!(guest.hypervisor.changed_ranges(guest.vm).unwrap(), None);
            }
            Believed::Yes => {
                assert!(matches!(tracking, Tracking::Since { .. }), "{tracking:?}");
                let marked = &guest.changed()[0];
                let bytes = std::fs::read(&images[0]).unwrap();
                let blocks = bytes.chunks(4096).enumerate();
                let changed: Vec<u64> = blocks
                    .filter(|(_, block)| block.iter().any(|byte| *byte != 1))
                    .map(|(index, _)| index as u64)
                    .collect();
                assert!(changed.len() >= 50);
                assert!(changed.iter().all(|block| marked.contains(block)));
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Believed {
    Yes,
    No,
}

fn run_until_killed(folder: &Path) -> ! {
    let driver = driver(folder, "boot");
    let guest = Guest {
        hypervisor: &driver,
        vm: vm(1),
        images: DISKS.map(|(name, _)| folder.join(name)).into(),
    };
    guest.define();
    guest.hypervisor.start(guest.vm).unwrap();
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    for number in 1.. {
        guest.write(0, 3 * number % 500, 2);
        println!("written {number}");
        if number % 7 == 0 {
            drop(guest.freeze(number as u64));
        }
    }
    unreachable!("numbers have come to an end")
}

fn hook(folder: &Path, script: &str) -> QuiesceHook {
    let program = folder.join("hook");
    let log = folder.join("log");
    let text = format!("#!/bin/sh\necho $1 $2 >> {}\n{script}\n", log.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    QuiesceHook {
        program,
        limit: Duration::from_secs(10),
    }
}

#[test]
fn a_quiet_guest_gives_an_application_consistent_view_and_is_always_thawed() {
    let cases = [
        ("exit 0", Consistency::Application),
        ("test $1 = thaw", Consistency::Crash),
        ("test $1 = freeze", Consistency::Crash),
        ("test $1 = thaw || sleep 1000", Consistency::Crash),
    ];
    for (script, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), "boot");
        let mut hook = hook(folder.path(), script);
        if script.contains("sleep") {
            hook.limit = Duration::from_millis(300);
        }
        options.quiesce = Some(hook);
        let rig = VolumeRig {
            driver: VolumeDriver::new(Arc::new(RealDisk), options).unwrap(),
            folder,
        };
        let guest = Guest::running(&rig);
        let freeze = |number, consistency| {
            guest
                .hypervisor
                .freeze(guest.vm, moment(number), consistency)
                .unwrap()
        };
        assert_eq!(
            freeze(1, Consistency::Crash).consistency(),
            Consistency::Crash
        );
        let log = rig.folder().join("log");
        assert!(!log.exists(), "{script}: asked without need");
        let view = freeze(2, Consistency::Application);
        assert_eq!(view.consistency(), expected, "{script}");
        let told = std::fs::read_to_string(&log).unwrap();
        let vm = guest.vm;
        assert_eq!(told, format!("freeze {vm}\nthaw {vm}\n"), "{script}");
        drop(view);
        guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
        assert_eq!(
            freeze(3, Consistency::Application).consistency(),
            Consistency::Crash
        );
    }
}

#[test]
fn vms_that_are_off_take_no_thread_and_no_file() {
    let rig = rig();
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let before = (count("task"), count("fd"));
    for number in 10..60 {
        let disks = DISKS.map(|(name, bytes)| {
            let path = new_image(rig.folder(), bytes);
            (disk(name), Backing::Raw { path })
        });
        rig.driver
            .define(&definition(vm(number), &DISKS), &disks)
            .unwrap();
        rig.driver.start_tracking(vm(number), moment(1)).unwrap();
        drop(
            rig.driver
                .freeze(vm(number), moment(2), Consistency::Crash)
                .unwrap(),
        );
        let present = rig.driver.present_disks(vm(number)).unwrap();
        connect(&present[0]).read(0, &mut [0; 512]).unwrap();
    }
    // The connections of this test end on their own.
    while (count("task"), count("fd")) > before {
        std::thread::yield_now();
    }
    rig.driver.start(vm(10)).unwrap();
    let running = (count("task"), count("fd"));
    assert!(
        running.0 <= before.0 + 1 && running.1 <= before.1 + 6,
        "{before:?} {running:?}"
    );
}

#[test]
fn there_is_no_screen() {
    let rig = rig();
    let guest = Guest::running(&rig);
    let picture = guest.hypervisor.screenshot(guest.vm, 640);
    assert!(
        matches!(picture, Err(HypervisorError::Unsupported { .. })),
        "{picture:?}"
    );
}

#[test]
fn a_vm_whose_disks_are_moved_can_be_asked_but_not_stopped() {
    struct Asks<'a>(&'a Guest<'a>);
    impl lifeboat_hypervisor::DiskMover for Asks<'_> {
        fn copy(
            &mut self,
            _: Option<&[(lifeboat_model::DiskId, std::ops::Range<u64>)]>,
        ) -> std::io::Result<()> {
            let Asks(guest) = self;
            assert_eq!(guest.hypervisor.dirty_bytes(guest.vm).unwrap(), 0);
            guest.hypervisor.tracking(guest.vm).unwrap();
            let refused = [
                guest.hypervisor.stop(guest.vm, StopMode::PowerOff).err(),
                guest
                    .hypervisor
                    .freeze(guest.vm, moment(1), Consistency::Crash)
                    .err(),
                guest
                    .hypervisor
                    .move_disks(guest.vm, &mut Asks(guest))
                    .err(),
            ];
            for error in refused {
                assert!(
                    matches!(error, Some(HypervisorError::Busy { .. })),
                    "{error:?}"
                );
            }
            Err(std::io::Error::other("enough"))
        }
        fn finish(
            &mut self,
            _: &[(lifeboat_model::DiskId, std::ops::Range<u64>)],
        ) -> std::io::Result<Vec<(lifeboat_model::DiskId, Backing)>> {
            panic!("the copy has failed")
        }
    }
    let rig = rig();
    let guest = Guest::running(&rig);
    let mut asks = Asks(&guest);
    assert!(guest.hypervisor.move_disks(guest.vm, &mut asks).is_err());
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
}
