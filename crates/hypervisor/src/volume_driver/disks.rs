//! What the disks of a VM stand on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use lifeboat_model::{DiskId, DiskSize, VmId};
use lifeboat_sys::disk::{DiskPort, GuestDisk};
use lifeboat_sys::stamp::FileStamp;
use lifeboat_volume::{RawImage, TrackedDisk, VolumeError};

use super::lock;
use super::present::Place;
use crate::definition::VmDefinition;
use crate::error::HypervisorError;
use crate::port::Backing;

/// One disk of a defined VM.
#[derive(Debug)]
pub(crate) struct MachineDisk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    pub(crate) place: Arc<Mutex<Place>>,
}

impl MachineDisk {
    pub(crate) fn new(
        vm: VmId,
        id: &DiskId,
        backing: &Backing,
        device: &dyn GuestDisk,
    ) -> Result<Self, HypervisorError> {
        let size = DiskSize::try_from(device.size()).map_err(|source| HypervisorError::Volume {
            vm,
            source: VolumeError::DeviceSize {
                disk: id.clone(),
                source,
            },
        })?;
        let place = Place {
            stamp: stamp(vm, id, backing)?,
            backing: backing.clone(),
        };
        Ok(Self {
            id: id.clone(),
            size,
            place: Arc::new(Mutex::new(place)),
        })
    }
}

pub(crate) fn check_disks(
    definition: &VmDefinition,
    disks: &[(DiskId, Backing)],
) -> Result<(), HypervisorError> {
    let defined = definition.settings().disks.iter().map(|disk| &disk.id);
    let defined: BTreeSet<&DiskId> = defined.collect();
    let given: BTreeSet<&DiskId> = disks.iter().map(|(id, _)| id).collect();
    if defined == given && given.len() == disks.len() {
        Ok(())
    } else {
        let vm = definition.vm();
        Err(HypervisorError::OtherDisks { vm })
    }
}

pub(crate) fn open_backing(
    port: &dyn DiskPort,
    vm: VmId,
    disk: &DiskId,
    backing: &Backing,
) -> Result<Arc<dyn GuestDisk>, HypervisorError> {
    match backing {
        Backing::Raw { path } => match RawImage::open(port, path) {
            Ok(image) => Ok(Arc::new(image)),
            Err(source) => Err(HypervisorError::Image {
                vm,
                disk: disk.clone(),
                source,
            }),
        },
        Backing::Device { device, image: _ } => Ok(Arc::clone(device)),
    }
}

fn stamp(vm: VmId, disk: &DiskId, backing: &Backing) -> Result<FileStamp, HypervisorError> {
    let path: &Path = match backing {
        Backing::Raw { path } => path,
        Backing::Device { device: _, image } => image,
    };
    FileStamp::of(path).map_err(|source| HypervisorError::Examine {
        vm,
        disk: disk.clone(),
        path: path.to_owned(),
        source,
    })
}

/// The disks with their images as they are now.
pub(crate) fn stamped(
    vm: VmId,
    disks: &[MachineDisk],
) -> Result<Vec<TrackedDisk>, HypervisorError> {
    let tracked = |disk: &MachineDisk| {
        let stamp = stamp(vm, &disk.id, &lock(&disk.place).backing)?;
        Ok(TrackedDisk {
            id: disk.id.clone(),
            size: disk.size,
            stamp,
        })
    };
    disks.iter().map(tracked).collect()
}
