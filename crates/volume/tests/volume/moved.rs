//! Disks that stand on something else while their guest goes on.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::DiskId;
use lifeboat_sys::disk::{GuestDisk, RealDisk};
use lifeboat_volume::{FreezeError, MoveError, Mover, RawImage, Volume, VolumeDevice, create_disk};

use super::fixture::{Dice, Fixture, PATIENCE, PLENTY, Stop, id, random_change, read_all, size};

const DISKS: [(&str, usize); 2] = [("a", (4 << 20) + 512), ("b", 1 << 20)];

/// At which step a copy goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    First,
    Finish,
    OneDiskMissing,
    OneDiskTooMany,
    Size,
}

/// Copies into new images.
struct Copier<'a> {
    volume: &'a Volume,
    targets: Vec<(DiskId, Arc<dyn GuestDisk>)>,
    wrong: Wrong,
    passes: u32,
    /// Called when everything has been copied, before the copy returns.
    meanwhile: &'a mut dyn FnMut(),
}

impl<'a> Copier<'a> {
    fn new(fixture: &'a Fixture, wrong: Wrong, meanwhile: &'a mut dyn FnMut()) -> Self {
        let target = |(name, bytes): (&str, usize)| {
            let path = target_path(fixture, name);
            let _ = std::fs::remove_file(&path);
            create_disk(&RealDisk, &path, size(bytes)).unwrap();
            let image = RawImage::open(&RealDisk, &path).unwrap();
            (id(name), Arc::new(image) as Arc<dyn GuestDisk>)
        };
        Self {
            volume: &fixture.volume,
            targets: DISKS.map(target).into(),
            wrong,
            passes: 0,
            meanwhile,
        }
    }

    fn copy_range(&self, disk: &DiskId, range: Range<u64>) -> io::Result<()> {
        let source = self.volume.device(disk).unwrap();
        let target = self.targets.iter().find(|(own, _)| own == disk).unwrap();
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(64 << 10);
            let mut bytes = vec![0; length as usize];
            source.read_at(&mut bytes, at)?;
            target.1.write_at(&bytes, at)?;
            at += length;
        }
        Ok(())
    }

    fn fail_if(&self, wrong: Wrong) -> io::Result<()> {
        if self.wrong == wrong {
            return Err(io::Error::other("the copy went wrong"));
        }
        Ok(())
    }
}

fn target_path(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.folder.path().join(format!("{name}.moved"))
}

impl Mover for Copier<'_> {
    fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
        self.passes += 1;
        match changed {
            None => {
                for (name, bytes) in DISKS {
                    self.copy_range(&id(name), 0..bytes as u64)?;
                }
                (self.meanwhile)();
                self.fail_if(Wrong::First)
            }
            Some(changed) => {
                for (disk, range) in changed {
                    self.copy_range(disk, range.clone())?;
                }
                (self.meanwhile)();
                Ok(())
            }
        }
    }

    fn finish(&mut self, changed: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>> {
        self.fail_if(Wrong::Finish)?;
        for (disk, range) in changed {
            self.copy_range(disk, range.clone())?;
        }
        let devices = self.targets.iter().map(|(disk, device)| VolumeDevice {
            id: disk.clone(),
            device: Arc::clone(device),
        });
        let mut devices: Vec<VolumeDevice> = devices.collect();
        // The order is up to the mover.
        devices.reverse();
        match self.wrong {
            Wrong::OneDiskMissing => drop(devices.pop()),
            Wrong::OneDiskTooMany => devices.push(devices[0].clone()),
            Wrong::Size => {
                let device = Arc::clone(&devices[0].device);
                devices[1].device = device;
            }
            Wrong::Nothing | Wrong::First | Wrong::Finish => {}
        }
        Ok(devices)
    }
}

#[test]
fn a_guest_that_never_stops_writing_finds_every_byte_after_the_move() {
    let fixture = Fixture::new(&DISKS, PLENTY);
    let stop = Stop::default();
    let written = AtomicU64::new(0);
    let shadows = std::thread::scope(|scope| {
        let end = stop.at_end();
        let writers = DISKS.map(|(name, bytes)| {
            let (fixture, stop, written) = (&fixture, &stop, &written);
            scope.spawn(move || {
                let client = fixture.client(name);
                let mut dice = Dice::new(bytes as u64);
                let mut shadow = vec![0; bytes];
                let mut read = vec![0; bytes];
                while !stop.has_come() {
                    let (offset, length, _) = random_change(&mut dice, &client, 0..client.size());
                    let range = offset as usize..(offset + length) as usize;
                    // What the guest has just changed, it reads; also right after the move.
                    client.read(offset, &mut read[range.clone()]).unwrap();
                    shadow[range.clone()].copy_from_slice(&read[range]);
                    written.fetch_add(1, Ordering::SeqCst);
                }
                (client, shadow)
            })
        });
        let wait = |more: u64| {
            let until = written.load(Ordering::SeqCst) + more;
            while written.load(Ordering::SeqCst) < until {
                std::thread::yield_now();
            }
        };
        for round in 0..3 {
            let mut meanwhile = || wait(20);
            let mut copier = Copier::new(&fixture, Wrong::Nothing, &mut meanwhile);
            fixture.volume.move_disks(&mut copier).unwrap();
            assert!(
                copier.passes <= 9,
                "round {round}: {} passes",
                copier.passes
            );
        }
        // At once, so that little is written over what the last move may have missed.
        drop(end);
        writers.map(|writer| writer.join().unwrap())
    });
    for ((name, _), (client, shadow)) in DISKS.iter().zip(shadows) {
        // The connection is the one from before the first move.
        assert!(
            read_all(&client).unwrap() == shadow,
            "{name} as the guest sees it"
        );
        client.flush().unwrap();
        let moved = std::fs::read(target_path(&fixture, name)).unwrap();
        assert!(moved == shadow, "{name} in its new file");
    }
}

#[test]
fn a_move_that_fails_at_any_step_leaves_the_disks_where_they_were() {
    let fixture = Fixture::new(&DISKS, PLENTY);
    let client = fixture.client("a");
    for (number, wrong) in (1..).zip([
        Wrong::First,
        Wrong::Finish,
        Wrong::OneDiskMissing,
        Wrong::OneDiskTooMany,
        Wrong::Size,
    ]) {
        let mut meanwhile = || client.write(4096, &[number; 100]).unwrap();
        let mut copier = Copier::new(&fixture, wrong, &mut meanwhile);
        let error = fixture.volume.move_disks(&mut copier).unwrap_err();
        let expected = match wrong {
            Wrong::First => matches!(error, MoveError::Copy { .. }),
            Wrong::Finish => matches!(error, MoveError::Finish { .. }),
            Wrong::OneDiskMissing | Wrong::OneDiskTooMany => matches!(error, MoveError::WrongDisks),
            Wrong::Size => matches!(error, MoveError::Size { .. }),
            Wrong::Nothing => false,
        };
        assert!(expected, "{wrong:?}: {error:?}");
        client.write(0, &[number]).unwrap();
        let old = std::fs::read(fixture.folder.path().join("a.raw")).unwrap();
        assert!(old[0] == number && old[4096] == number, "{wrong:?}");
        // Nothing of the move is left in the way of a freeze.
        drop(fixture.volume.freeze().unwrap());
    }
}

#[test]
fn a_copy_that_fails_when_much_was_written_leaves_the_disks_where_they_were() {
    // More than may be copied while the guest waits.
    const LARGE: usize = 64 << 20;
    let fixture = Fixture::new(&[("a", LARGE)], PLENTY);
    struct Fails<'a>(&'a lifeboat_nbd::Client, u32);
    impl Mover for Fails<'_> {
        fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
            self.1 += 1;
            self.0.write_zeroes(0, self.0.size()).unwrap();
            match changed {
                Some([(disk, range)]) if self.1 == 3 => {
                    assert_eq!((disk, range), (&id("a"), &(0..LARGE as u64)));
                    Err(io::Error::other("the copy went wrong"))
                }
                Some(_) | None => Ok(()),
            }
        }
        fn finish(&mut self, _: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>> {
            panic!("there is more left than a guest may wait for")
        }
    }
    let client = fixture.client("a");
    let error = fixture
        .volume
        .move_disks(&mut Fails(&client, 0))
        .unwrap_err();
    assert!(
        matches!(error, MoveError::Copy { pass: 2, .. }),
        "{error:?}"
    );
    drop(fixture.volume.freeze().unwrap());
}

#[test]
fn a_guest_that_outruns_the_copy_waits_after_a_bounded_number_of_passes() {
    const LARGE: usize = 64 << 20;
    let fixture = Fixture::new(&[("a", LARGE)], PLENTY);
    let path = target_path(&fixture, "a");
    create_disk(&RealDisk, &path, size(LARGE)).unwrap();
    struct Outrun<'a>(&'a lifeboat_nbd::Client, PathBuf, u32);
    impl Mover for Outrun<'_> {
        fn copy(&mut self, _: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
            self.2 += 1;
            self.0.write_zeroes(0, self.0.size()).unwrap();
            Ok(())
        }
        fn finish(&mut self, left: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>> {
            assert_eq!(left, [(id("a"), 0..LARGE as u64)]);
            let device = Arc::new(RawImage::open(&RealDisk, &self.1).unwrap());
            Ok(vec![VolumeDevice {
                id: id("a"),
                device,
            }])
        }
    }
    let client = fixture.client("a");
    let mut mover = Outrun(&client, path, 0);
    fixture.volume.move_disks(&mut mover).unwrap();
    assert_eq!(mover.2, 9);
}

#[test]
fn there_is_one_move_at_a_time_and_none_beside_a_view() {
    let fixture = Fixture::new(&DISKS, PLENTY);
    let view = fixture.volume.freeze().unwrap();
    let mut nothing = || {};
    let mut copier = Copier::new(&fixture, Wrong::Nothing, &mut nothing);
    let beside = fixture.volume.move_disks(&mut copier);
    assert!(matches!(beside, Err(MoveError::Frozen)), "{beside:?}");
    view.release(lifeboat_volume::Outcome::Failed, PATIENCE)
        .unwrap();
    drop(copier);
    let mut seen = 0;
    let mut meanwhile = || {
        seen += 1;
        let frozen = fixture.volume.freeze();
        assert!(matches!(frozen, Err(FreezeError::Moving)), "{frozen:?}");
        struct Never;
        impl Mover for Never {
            fn copy(&mut self, _: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
                panic!("two moves at once")
            }
            fn finish(&mut self, _: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>> {
                panic!("two moves at once")
            }
        }
        let second = fixture.volume.move_disks(&mut Never);
        assert!(matches!(second, Err(MoveError::Moving)), "{second:?}");
    };
    let mut copier = Copier::new(&fixture, Wrong::Nothing, &mut meanwhile);
    fixture.volume.move_disks(&mut copier).unwrap();
    assert!(seen > 0);
}
