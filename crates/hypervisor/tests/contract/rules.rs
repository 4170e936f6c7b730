//! What holds for every driver.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_hypervisor::{
    Backing, DiskMover, Hypervisor, HypervisorError, PowerState, StopMode, Tracking,
};
use lifeboat_model::{Consistency, DiskId};
use lifeboat_sys::disk::RealDisk;
use lifeboat_volume::RawImage;

use super::rig::{
    BLOCK, DISKS, Guest, Rig, connect, definition, disk, marked, moment, new_image, read_all, vm,
};

pub fn a_vm_that_is_not_defined_is_refused(rig: &dyn Rig) {
    let (hypervisor, vm) = (rig.hypervisor(), vm(9));
    let crash = Consistency::Crash;
    let outcomes = [
        hypervisor.undefine(vm).err(),
        hypervisor.power_state(vm).err(),
        hypervisor.start(vm).err(),
        hypervisor.stop(vm, StopMode::PowerOff).err(),
        hypervisor.guest_disks(vm).err(),
        hypervisor.tracking(vm).err(),
        hypervisor.start_tracking(vm, moment(1)).err(),
        hypervisor.stop_tracking(vm).err(),
        hypervisor.present_disks(vm).err(),
        hypervisor.freeze(vm, moment(1), crash).err(),
        hypervisor.received(vm, moment(1)).err(),
        hypervisor.dirty_bytes(vm).err(),
        hypervisor.changed_ranges(vm).err(),
        hypervisor.screenshot(vm, 100).err(),
        hypervisor.move_disks(vm, &mut NoMove).err(),
    ];
    for (index, error) in outcomes.into_iter().enumerate() {
        let refused = matches!(&error, Some(HypervisorError::Unknown { vm: told }) if *told == vm);
        assert!(refused, "call {index}: {error:?}");
    }
}

struct NoMove;

impl DiskMover for NoMove {
    fn copy(&mut self, _: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
        panic!("nothing may be moved")
    }

    fn finish(&mut self, _: &[(DiskId, Range<u64>)]) -> io::Result<Vec<(DiskId, Backing)>> {
        panic!("nothing may be moved")
    }
}

pub fn starting_and_stopping_twice_is_as_once(rig: &dyn Rig) {
    let guest = Guest::new(rig);
    let state = || guest.hypervisor.power_state(guest.vm).unwrap();
    assert_eq!(state(), PowerState::Off);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    for _ in 0..2 {
        guest.hypervisor.start(guest.vm).unwrap();
        assert_eq!(state(), PowerState::Running);
        guest.hypervisor.start(guest.vm).unwrap();
        let client = guest.client(0);
        client.write(0, &[2]).unwrap();
        for mode in [StopMode::ShutDown, StopMode::PowerOff] {
            guest.hypervisor.stop(guest.vm, mode).unwrap();
            assert_eq!(state(), PowerState::Off);
        }
        assert!(client.write(0, &[3]).is_err(), "the guest writes on");
    }
}

pub fn what_the_guest_wrote_is_in_the_image_after_a_stop(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest.write(0, 3, 7);
    guest.client(1).write_zeroes(0, 512).unwrap();
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    let first = std::fs::read(&guest.images[0]).unwrap();
    let mut expected = vec![1; DISKS[0].1];
    expected[3 * BLOCK..4 * BLOCK].fill(7);
    assert!(first == expected);
    let second = std::fs::read(&guest.images[1]).unwrap();
    assert!(second[..512] == [0; 512] && second[512..].iter().all(|byte| *byte == 1));
}

pub fn a_running_vm_is_neither_defined_again_nor_forgotten(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    let again = guest
        .hypervisor
        .define(&definition(guest.vm, &DISKS), &guest.backings());
    assert!(
        matches!(again, Err(HypervisorError::Running { .. })),
        "{again:?}"
    );
    let forgotten = guest.hypervisor.undefine(guest.vm);
    assert!(
        matches!(forgotten, Err(HypervisorError::Running { .. })),
        "{forgotten:?}"
    );
    guest.write(0, 0, 2);
}

pub fn disks_that_are_not_those_of_the_definition_are_refused(rig: &dyn Rig) {
    let guest = Guest::new(rig);
    let definition = definition(guest.vm, &DISKS);
    let mut fewer = guest.backings();
    fewer.pop();
    let mut twice = guest.backings();
    twice[1] = twice[0].clone();
    let mut other = guest.backings();
    other[1].0 = disk("sdz");
    for disks in [fewer, twice, other] {
        let defined = guest.hypervisor.define(&definition, &disks);
        assert!(
            matches!(defined, Err(HypervisorError::OtherDisks { .. })),
            "{defined:?}"
        );
    }
    // It is what it was.
    guest.hypervisor.start(guest.vm).unwrap();
}

pub fn an_image_that_is_in_use_is_refused(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    let other = vm(2);
    let defined = guest
        .hypervisor
        .define(&definition(other, &DISKS), &guest.backings());
    assert!(defined.is_err());
    let state = guest.hypervisor.power_state(other);
    assert!(
        matches!(state, Err(HypervisorError::Unknown { .. })),
        "{state:?}"
    );
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
    guest
        .hypervisor
        .define(&definition(other, &DISKS), &guest.backings())
        .unwrap();
}

pub fn without_tracking_a_view_has_no_bitmap(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), Tracking::Off);
    guest.write(0, 0, 2);
    let view = guest.freeze(1);
    assert!(view.sources().iter().all(|source| source.bitmap.is_none()));
    assert_eq!(guest.hypervisor.changed_ranges(guest.vm).unwrap(), None);
    assert_eq!(guest.hypervisor.dirty_bytes(guest.vm).unwrap(), 0);
    guest.hypervisor.received(guest.vm, moment(1)).unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), Tracking::Off);
}

fn since(moments: &[u64]) -> Tracking {
    let moments = moments.iter().map(|number| moment(*number));
    Tracking::Since {
        moments: moments.collect(),
    }
}

pub fn a_view_shows_one_instant_and_marks_every_change_before_it(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest.write(0, 0, 2);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(5))
        .unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[5]));
    guest.write(0, 2, 3);
    guest.write(1, 4, 3);
    assert_eq!(
        guest.hypervisor.dirty_bytes(guest.vm).unwrap(),
        2 * BLOCK as u64
    );
    let before: Vec<Vec<u8>> = guest
        .images
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let view = guest.freeze(6);
    assert_eq!(view.consistency(), Consistency::Crash);
    // Nobody has received them yet.
    assert_eq!(
        guest.hypervisor.dirty_bytes(guest.vm).unwrap(),
        2 * BLOCK as u64
    );
    guest.write(0, 2, 4);
    guest.write(0, 9, 4);
    for ((source, before), blocks) in view.sources().iter().zip(&before).zip([vec![2], vec![4]]) {
        assert!(read_all(source) == *before, "{}", source.disk);
        assert_eq!(marked(source), blocks, "{}", source.disk);
    }
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[5, 6]));
    assert_eq!(guest.changed(), [vec![2, 9], vec![4]]);
}

pub fn a_vm_that_is_off_is_frozen_as_a_running_one(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.write(1, 1, 9);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    let view = guest.freeze(2);
    assert_eq!(marked(&view.sources()[1]), [1]);
    assert!(read_all(&view.sources()[1])[BLOCK..2 * BLOCK] == [9; BLOCK]);
    drop(view);
    guest.hypervisor.received(guest.vm, moment(2)).unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[2]));
    assert_eq!(guest.changed(), [Vec::<u64>::new(), Vec::new()]);
}

pub fn there_is_one_view_at_a_time(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    let view = guest.freeze(1);
    let second = guest
        .hypervisor
        .freeze(guest.vm, moment(2), Consistency::Crash);
    assert!(second.is_err());
    drop(view);
    drop(guest.freeze(3));
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
    let view = guest.freeze(4);
    assert!(
        guest.hypervisor.undefine(guest.vm).is_err(),
        "forgotten under a view"
    );
    drop(view);
    guest.hypervisor.undefine(guest.vm).unwrap();
}

pub fn a_view_stays_while_its_vm_stops_and_starts(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    let view = guest.freeze(2);
    guest.write(0, 0, 2);
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
    guest.hypervisor.start(guest.vm).unwrap();
    guest.write(0, 1, 2);
    assert!(read_all(&view.sources()[0]).iter().all(|byte| *byte == 1));
    drop(view);
    guest.write(0, 2, 2);
    assert_eq!(guest.changed(), [vec![0, 1, 2], vec![]]);
}

pub fn receipts_drop_what_came_before(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    for number in 2..5 {
        guest.write(0, number as usize, 2);
        drop(guest.freeze(number));
    }
    guest.write(0, 5, 2);
    assert_eq!(guest.changed(), [vec![2, 3, 4, 5], vec![]]);
    for _ in 0..2 {
        guest.hypervisor.received(guest.vm, moment(3)).unwrap();
        assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[3, 4]));
        assert_eq!(guest.changed(), [vec![4, 5], vec![]]);
    }
    assert!(guest.hypervisor.received(guest.vm, moment(7)).is_err());
    guest.hypervisor.received(guest.vm, moment(2)).unwrap();
    assert_eq!(guest.changed(), [vec![4, 5], vec![]]);
    guest.hypervisor.stop_tracking(guest.vm).unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), Tracking::Off);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(8))
        .unwrap();
    assert_eq!(guest.changed(), [Vec::<u64>::new(), Vec::new()]);
}

pub fn a_moment_names_one_instant(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(3))
        .unwrap();
    guest.write(0, 0, 2);
    for number in [2, 3] {
        let again = guest
            .hypervisor
            .freeze(guest.vm, moment(number), Consistency::Crash);
        assert!(again.is_err(), "moment {number}");
    }
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[3]));
    assert_eq!(guest.changed(), [vec![0], vec![]]);
    // Asked for again, tracking since a moment goes on.
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(3))
        .unwrap();
    assert_eq!(guest.changed(), [vec![0], vec![]]);
    drop(guest.freeze(4));
}

pub fn present_disks_are_read_running_and_off(rig: &dyn Rig) {
    let guest = Guest::new(rig);
    let present = guest.hypervisor.present_disks(guest.vm).unwrap();
    let client = connect(&present[0]);
    let first = || {
        let mut byte = [0];
        client.read(0, &mut byte).unwrap();
        byte[0]
    };
    assert!(client.read_only());
    assert_eq!(first(), 1);
    guest.hypervisor.start(guest.vm).unwrap();
    guest.write(0, 0, 2);
    assert_eq!(first(), 2);
    let view = guest.freeze(1);
    guest.write(0, 0, 3);
    assert_eq!(first(), 3);
    drop(view);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    assert_eq!(first(), 3);
}

pub fn tracking_is_kept_when_a_vm_is_defined_again(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.write(0, 7, 2);
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
    guest.define();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[1]));
    guest.hypervisor.start(guest.vm).unwrap();
    guest.write(0, 8, 2);
    assert_eq!(guest.changed(), [vec![7, 8], vec![]]);
}

pub fn another_image_makes_tracking_unknown(rig: &dyn Rig) {
    let mut guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.hypervisor.stop(guest.vm, StopMode::PowerOff).unwrap();
    guest.images[1] = new_image(rig.folder(), DISKS[1].1);
    guest.define();
    let tracking = guest.hypervisor.tracking(guest.vm).unwrap();
    assert!(
        matches!(&tracking, Tracking::Unknown { why } if why.contains("sdb")),
        "{tracking:?}"
    );
    assert_eq!(guest.hypervisor.changed_ranges(guest.vm).unwrap(), None);
    // Known again from a moment that was frozen since, once it is received.
    let view = guest.freeze(2);
    assert!(view.sources()[0].bitmap.is_none());
    drop(view);
    guest.hypervisor.received(guest.vm, moment(2)).unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[2]));
}

/// Copies images through the present disks.
struct Copier<'a> {
    guest: &'a Guest<'a>,
    targets: Vec<PathBuf>,
    fails: Fails,
    copies: u32,
}

#[derive(PartialEq, Eq)]
enum Fails {
    Never,
    Copying,
    Finishing,
    /// Its targets cannot be opened.
    Afterwards,
}

impl Copier<'_> {
    fn copy_all(&self) {
        let present = self.guest.hypervisor.present_disks(self.guest.vm).unwrap();
        for (source, target) in present.iter().zip(&self.targets) {
            std::fs::write(target, read_all(source)).unwrap();
        }
    }

    fn targets(&self) -> Vec<(DiskId, Backing)> {
        let backing = |((name, _), path): (&(&str, usize), &PathBuf)| {
            (disk(name), Backing::Raw { path: path.clone() })
        };
        DISKS.iter().zip(&self.targets).map(backing).collect()
    }
}

impl DiskMover for Copier<'_> {
    fn copy(&mut self, _changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
        if self.fails == Fails::Copying {
            return Err(io::Error::other("no"));
        }
        self.copy_all();
        self.copies += 1;
        // Changes that only the trail knows of.
        self.guest.write(0, 20, 5);
        self.guest.client(1).trim(0, 4096).unwrap();
        Ok(())
    }

    fn finish(&mut self, changed: &[(DiskId, Range<u64>)]) -> io::Result<Vec<(DiskId, Backing)>> {
        if self.fails == Fails::Finishing {
            return Err(io::Error::other("no"));
        }
        let expected = [(disk("sda"), 20 * 4096..21 * 4096), (disk("sdb"), 0..4096)];
        assert_eq!(changed, expected);
        self.copy_all();
        let mut targets = self.targets();
        if self.fails == Fails::Afterwards {
            targets[1].1 = Backing::Raw {
                path: "/nonexistent/image".into(),
            };
        }
        Ok(targets)
    }
}

fn copier<'a>(rig: &dyn Rig, guest: &'a Guest<'a>, fails: Fails) -> Copier<'a> {
    Copier {
        guest,
        targets: DISKS
            .map(|(_, bytes)| new_image(rig.folder(), bytes))
            .into(),
        fails,
        copies: 0,
    }
}

pub fn moved_disks_keep_their_guest_and_their_tracking(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.write(0, 3, 2);
    let client = guest.client(0);
    let mut mover = copier(rig, &guest, Fails::Never);
    guest.hypervisor.move_disks(guest.vm, &mut mover).unwrap();
    assert!(mover.copies > 0);
    client.write(4096 * 30, &[8]).unwrap();
    let mut byte = [0];
    client.read(4096 * 20, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(guest.changed(), [vec![3, 20, 30], vec![0]]);
    let present = guest.hypervisor.present_disks(guest.vm).unwrap();
    assert_eq!(read_all(&present[0])[4096 * 30], 8);
    drop(client);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    let moved = std::fs::read(&mover.targets[0]).unwrap();
    assert_eq!(
        (moved[4096 * 3], moved[4096 * 20], moved[4096 * 30]),
        (2, 5, 8)
    );
    assert_eq!(std::fs::read(&guest.images[0]).unwrap()[4096 * 30], 1);
    // Defined with what its disks stand on now, it goes on.
    let disks = mover.targets();
    guest
        .hypervisor
        .define(&definition(guest.vm, &DISKS), &disks)
        .unwrap();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[1]));
    assert_eq!(guest.changed(), [vec![3, 20, 30], vec![0]]);
}

pub fn a_move_that_fails_changes_nothing(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    for fails in [Fails::Copying, Fails::Finishing, Fails::Afterwards] {
        let mut mover = copier(rig, &guest, fails);
        assert!(guest.hypervisor.move_disks(guest.vm, &mut mover).is_err());
        guest.write(0, 40, 6);
    }
    let view = guest.freeze(2);
    let beside = guest.hypervisor.move_disks(guest.vm, &mut NoMove);
    assert!(beside.is_err(), "moved beside a view");
    drop(view);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    assert_eq!(std::fs::read(&guest.images[0]).unwrap()[4096 * 40], 6);
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), since(&[1, 2]));
}

pub fn a_device_serves_as_a_disk(rig: &dyn Rig) {
    let (hypervisor, vm) = (rig.hypervisor(), vm(1));
    let disks = [("sda", 1 << 20)];
    let image = new_image(rig.folder(), disks[0].1);
    let device = Arc::new(RawImage::open(&RealDisk, &image).unwrap());
    let backing = Backing::Device {
        device,
        image: image.clone(),
    };
    hypervisor
        .define(&definition(vm, &disks), &[(disk("sda"), backing)])
        .unwrap();
    hypervisor.start(vm).unwrap();
    hypervisor.start_tracking(vm, moment(1)).unwrap();
    let client = connect(&hypervisor.guest_disks(vm).unwrap()[0]);
    client.write(4096, &[4; 512]).unwrap();
    drop(client);
    let view = hypervisor
        .freeze(vm, moment(2), Consistency::Crash)
        .unwrap();
    assert_eq!(marked(&view.sources()[0]), [1]);
    drop(view);
    let present = hypervisor.present_disks(vm).unwrap();
    assert_eq!(read_all(&present[0])[4096], 4);
    hypervisor.stop(vm, StopMode::ShutDown).unwrap();
    assert_eq!(hypervisor.tracking(vm).unwrap(), since(&[1, 2]));
    assert_eq!(std::fs::read(image).unwrap()[4096], 4);
}

pub fn a_forgotten_vm_leaves_its_disks_and_no_tracking(rig: &dyn Rig) {
    let guest = Guest::running(rig);
    guest
        .hypervisor
        .start_tracking(guest.vm, moment(1))
        .unwrap();
    guest.write(0, 0, 2);
    guest.hypervisor.stop(guest.vm, StopMode::ShutDown).unwrap();
    guest.hypervisor.undefine(guest.vm).unwrap();
    assert_eq!(std::fs::read(&guest.images[0]).unwrap()[0], 2);
    guest.define();
    assert_eq!(guest.hypervisor.tracking(guest.vm).unwrap(), Tracking::Off);
}

/// A driver is given to whoever drives it as this.
const _: fn(Box<dyn Hypervisor>) = drop;
