//! One VM of the volume driver.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::{Consistency, DiskId, Sequence, VmId};
use lifeboat_nbd::{ExportSet, ExportSetError, ListenAddress, Server, ServerOptions};
use lifeboat_sys::clock;
use lifeboat_sys::disk::GuestDisk;
use lifeboat_volume::{
    BITMAP, Changes, FreezeError, FrozenView as VolumeView, Tracker, TrackerError, TrackerState,
    ViewPlan, Volume, VolumeDevice,
};

use super::disks::{MachineDisk, check_disks, open_backing, stamped};
use super::present::PresentExport;
use super::quiesce::{Obeyed, Quiet};
use super::view::Frozen;
use super::{Host, lock};
use crate::definition::VmDefinition;
use crate::error::HypervisorError;
use crate::port::{Backing, DiskRanges, DiskSource, PowerState, StopMode, Tracking};

/// How long clients may take to end when a VM is powered off, or an export is withdrawn.
const GRACE: Duration = Duration::from_secs(2);

/// Connections of one guest: several queues for each of its disks.
const MAX_GUEST_CONNECTIONS: usize = 256;

/// A defined VM.
#[derive(Debug)]
pub(crate) struct Machine {
    host: Arc<Host>,
    definition: VmDefinition,
    disks: Vec<MachineDisk>,
    tracker: Tracker,
    /// Present while the VM runs, has a view or is moved: then the images are open.
    volume: Option<Arc<Volume>>,
    /// Present while the VM runs.
    server: Option<Server>,
    activity: Activity,
}

/// What else is done with the disks than being used by the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Nothing,
    View,
    Move,
}

impl Machine {
    /// Opens the disks once, and finds out what is known of their changes. `old` is the same VM
    /// as it was defined before.
    pub(crate) fn define(
        host: &Arc<Host>,
        old: Option<&Self>,
        definition: &VmDefinition,
        disks: &[(DiskId, Backing)],
    ) -> Result<Self, HypervisorError> {
        let vm = definition.vm();
        if let Some(old) = old {
            old.refuse_unless_idle()?;
        }
        check_disks(definition, disks)?;
        // Held until the end, so that nobody writes to the images meanwhile.
        let devices = disks
            .iter()
            .map(|(id, backing)| open_backing(host.port.as_ref(), vm, id, backing))
            .collect::<Result<Vec<_>, _>>()?;
        let machine_disks = disks
            .iter()
            .zip(&devices)
            .map(|((id, backing), device)| MachineDisk::new(vm, id, backing, device.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let tracked = stamped(vm, &machine_disks)?;
        let folder = host.options.state_folder.join(vm.to_string());
        let boot = host.options.boot.clone();
        let tracking = |source| HypervisorError::Tracking { vm, source };
        let tracker =
            Tracker::open(Arc::clone(&host.port), folder, &tracked, boot).map_err(tracking)?;
        let mut machine = Self {
            host: Arc::clone(host),
            definition: definition.clone(),
            disks: machine_disks,
            tracker,
            volume: None,
            server: None,
            activity: Activity::Nothing,
        };
        if machine.tracker.is_writing() {
            machine.close_after_crash(&devices)?;
        }
        drop(devices);
        if let Some(old) = old {
            old.withdraw_present();
        }
        machine.offer_present()?;
        Ok(machine)
    }

    /// The process that served the guest has died: what it left is made durable now.
    fn close_after_crash(&mut self, devices: &[Arc<dyn GuestDisk>]) -> Result<(), HypervisorError> {
        let vm = self.vm();
        let flushed = devices.iter().try_for_each(|device| device.flush());
        let outcome = match flushed {
            Ok(()) => {
                let tracked = stamped(vm, &self.disks)?;
                self.tracker.end_writing(&tracked)
            }
            Err(error) => self.lose(&format!("a disk could not be made durable: {error}")),
        };
        outcome.map_err(|source| HypervisorError::Tracking { vm, source })
    }

    /// Forgets what was tracked, if changes were tracked at all.
    fn lose(&mut self, why: &str) -> Result<(), TrackerError> {
        match self.tracker.state() {
            TrackerState::Off => Ok(()),
            TrackerState::Since(_) | TrackerState::Unknown(_) => self.tracker.lose(why),
        }
    }

    pub(crate) fn undefine(self) -> Result<(), HypervisorError> {
        let vm = self.vm();
        self.withdraw_present();
        let removed = self.tracker.remove();
        removed.map_err(|source| HypervisorError::Tracking { vm, source })
    }

    /// Lets go of the disks; what was tracked stays on disk.
    pub(crate) fn release(self) {
        self.withdraw_present();
    }

    fn vm(&self) -> VmId {
        self.definition.vm()
    }

    pub(crate) fn power_state(&self) -> PowerState {
        match self.server {
            Some(_) => PowerState::Running,
            None => PowerState::Off,
        }
    }

    /// # Errors
    /// When the VM runs or its disks are in use.
    pub(crate) fn refuse_unless_idle(&self) -> Result<(), HypervisorError> {
        match self.power_state() {
            PowerState::Running => Err(HypervisorError::Running { vm: self.vm() }),
            PowerState::Off => self.refuse(&[Activity::View, Activity::Move]),
        }
    }

    fn refuse(&self, activities: &[Activity]) -> Result<(), HypervisorError> {
        if !activities.contains(&self.activity) {
            return Ok(());
        }
        let what = match self.activity {
            Activity::Nothing => "its disks are in use",
            Activity::View => "it has a frozen view",
            Activity::Move => "its disks are being moved",
        };
        Err(HypervisorError::Busy {
            vm: self.vm(),
            what,
        })
    }

    pub(crate) fn start(&mut self) -> Result<(), HypervisorError> {
        if self.server.is_some() {
            return Ok(());
        }
        self.refuse(&[Activity::Move])?;
        match self.serve() {
            Ok(server) => {
                self.server = Some(server);
                Ok(())
            }
            Err(error) => {
                self.close_if_idle();
                Err(error)
            }
        }
    }

    fn serve(&mut self) -> Result<Server, HypervisorError> {
        let vm = self.vm();
        let volume = self.open_volume()?;
        let begun = self.tracker.begin_writing();
        begun.map_err(|source| HypervisorError::Tracking { vm, source })?;
        let exports = ExportSet::new();
        let limits = ServerOptions {
            max_connections: MAX_GUEST_CONNECTIONS,
            ..ServerOptions::default()
        };
        let address = ListenAddress::Unix(self.host.guest_socket(vm));
        let served = volume
            .serve(exports.clone())
            .map_err(|source| HypervisorError::Volume { vm, source })
            .and_then(|()| {
                Server::bind(&address, exports, limits)
                    .map_err(|source| HypervisorError::Serve { vm, source })
            });
        if served.is_err() {
            // The first error says more; what this cannot note, the next open finds out.
            let _ = self.settle(&volume, GRACE);
        }
        served
    }

    pub(crate) fn stop(&mut self, mode: StopMode) -> Result<(), HypervisorError> {
        if self.server.is_none() {
            return Ok(());
        }
        self.refuse(&[Activity::Move])?;
        let grace = match mode {
            StopMode::ShutDown => self.host.options.shutdown_grace.max(GRACE),
            StopMode::PowerOff => GRACE,
        };
        let volume = self.open_volume()?;
        let settled = self.settle(&volume, grace);
        if let Some(server) = self.server.take() {
            server.shutdown(GRACE);
        }
        drop(volume);
        self.close_if_idle();
        settled
    }

    /// Ends the guest's use of its disks, and lets the tracker know how that went.
    fn settle(&mut self, volume: &Volume, grace: Duration) -> Result<(), HypervisorError> {
        let vm = self.vm();
        match volume.withdraw(grace) {
            Ok(()) => self.note_closed(),
            Err(source) => {
                // Told by what is returned; a doubt that cannot be noted holds nevertheless.
                let _ = self.lose(&format!("the disks were not closed in order: {source}"));
                Err(HypervisorError::Volume { vm, source })
            }
        }
    }

    /// Notes the images as they are now, durable and closed.
    fn note_closed(&mut self) -> Result<(), HypervisorError> {
        let vm = self.vm();
        let tracked = stamped(vm, &self.disks)?;
        let noted = self.tracker.end_writing(&tracked);
        noted.map_err(|source| HypervisorError::Tracking { vm, source })
    }

    /// The volume, with its images open and locked, marking where the tracker says.
    fn open_volume(&mut self) -> Result<Arc<Volume>, HypervisorError> {
        if let Some(volume) = &self.volume {
            return Ok(Arc::clone(volume));
        }
        let vm = self.vm();
        let port = &self.host.port;
        let devices = self.disks.iter().map(|disk| {
            let backing = lock(&disk.place).backing.clone();
            let device = open_backing(port.as_ref(), vm, &disk.id, &backing)?;
            if device.size() == disk.size.bytes() {
                let id = disk.id.clone();
                return Ok(VolumeDevice { id, device });
            }
            Err(HypervisorError::Size {
                vm,
                disk: disk.id.clone(),
                expected: disk.size.bytes(),
                found: device.size(),
            })
        });
        let devices = devices.collect::<Result<Vec<_>, HypervisorError>>()?;
        // Now that nobody can write to the images: are they what was noted?
        self.check_images()?;
        let views = ViewPlan {
            scratch_folder: self.host.options.scratch_folder.clone(),
            scratch_limit: self.host.options.scratch_limit,
            exports: self.host.exports.clone(),
            prefix: format!("{vm}/"),
        };
        let volume = Volume::over(
            Arc::clone(&self.host.port),
            devices,
            views,
            self.tracker.marking(),
        );
        let volume = volume.map_err(|source| HypervisorError::Volume { vm, source })?;
        let volume = Arc::new(volume);
        self.volume = Some(Arc::clone(&volume));
        Ok(volume)
    }

    fn check_images(&mut self) -> Result<(), HypervisorError> {
        let vm = self.vm();
        if self.volume.is_some() {
            return Ok(());
        }
        let tracked = stamped(vm, &self.disks)?;
        let checked = self.tracker.check(&tracked);
        checked.map_err(|source| HypervisorError::Tracking { vm, source })
    }

    /// Lets the disks be moved, while the volume that is answered is kept.
    ///
    /// # Errors
    /// When they are in use by a view or another move, or cannot be opened.
    pub(super) fn begin_move(&mut self) -> Result<Arc<Volume>, HypervisorError> {
        self.refuse(&[Activity::View, Activity::Move])?;
        let volume = self.open_volume()?;
        self.activity = Activity::Move;
        Ok(volume)
    }

    /// A view has been dropped, or a move has ended.
    pub(super) fn activity_has_ended(&mut self) {
        self.activity = Activity::Nothing;
        self.close_if_idle();
    }

    fn close_if_idle(&mut self) {
        if self.server.is_none() && self.activity == Activity::Nothing {
            self.volume = None;
        }
    }

    pub(crate) fn guest_disks(&self) -> Result<Vec<DiskSource>, HypervisorError> {
        let source = |disk: &MachineDisk| {
            Ok(DiskSource {
                disk: disk.id.clone(),
                size: disk.size,
                uri: self.host.guest_uri(self.vm(), &disk.id)?,
                bitmap: None,
                local: None,
            })
        };
        self.disks.iter().map(source).collect()
    }

    pub(crate) fn present_disks(&self) -> Result<Vec<DiskSource>, HypervisorError> {
        let source = |disk: &MachineDisk| {
            let name = self.present_name(disk);
            Ok(DiskSource {
                disk: disk.id.clone(),
                size: disk.size,
                uri: self.host.capture_uri(&name)?,
                bitmap: None,
                local: self.host.exports.local(&name),
            })
        };
        self.disks.iter().map(source).collect()
    }

    fn present_name(&self, disk: &MachineDisk) -> String {
        format!("{}/{}", self.vm(), disk.id)
    }

    fn offer_present(&self) -> Result<(), HypervisorError> {
        for disk in &self.disks {
            let export = PresentExport::new(
                Arc::clone(&self.host.port),
                disk.size,
                Arc::clone(&disk.place),
            );
            let name = self.present_name(disk);
            let added = self.host.exports.add(&name, Arc::new(export));
            added.map_err(|source| HypervisorError::Offer {
                vm: self.vm(),
                disk: disk.id.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn withdraw_present(&self) {
        for disk in &self.disks {
            match self.host.exports.remove(&self.present_name(disk), GRACE) {
                // A reader whose call does not return reads what is withdrawn, and is cut.
                Ok(()) | Err(ExportSetError::Busy { .. } | ExportSetError::Unknown { .. }) => {}
                Err(
                    ExportSetError::NameTaken { .. }
                    | ExportSetError::Name
                    | ExportSetError::Size { .. }
                    | ExportSetError::Granularity { .. },
                ) => unreachable!("BUG: removing an export failed as adding one does"),
            }
        }
    }

    pub(crate) fn tracking(&mut self) -> Result<Tracking, HypervisorError> {
        self.check_images()?;
        Ok(match self.tracker.state() {
            TrackerState::Off => Tracking::Off,
            TrackerState::Since(moments) => Tracking::Since { moments },
            TrackerState::Unknown(why) => Tracking::Unknown {
                why: why.to_owned(),
            },
        })
    }

    pub(crate) fn start_tracking(&mut self, moment: Sequence) -> Result<(), HypervisorError> {
        let vm = self.vm();
        self.check_images()?;
        let started = self.tracker.start(moment);
        started.map_err(|source| HypervisorError::Tracking { vm, source })?;
        self.mark_as_tracked();
        Ok(())
    }

    pub(crate) fn stop_tracking(&mut self) -> Result<(), HypervisorError> {
        let vm = self.vm();
        let stopped = self.tracker.stop();
        stopped.map_err(|source| HypervisorError::Tracking { vm, source })?;
        self.mark_as_tracked();
        Ok(())
    }

    fn mark_as_tracked(&self) {
        if let Some(volume) = &self.volume {
            volume.mark_in(self.tracker.marking());
        }
    }

    pub(crate) fn received(&mut self, moment: Sequence) -> Result<(), HypervisorError> {
        let vm = self.vm();
        let received = self.tracker.received(moment);
        received.map_err(|source| HypervisorError::Tracking { vm, source })
    }

    pub(crate) fn dirty_bytes(&mut self) -> Result<u64, HypervisorError> {
        self.check_images()?;
        Ok(self.tracker.changed_bytes())
    }

    pub(crate) fn changed_ranges(&mut self) -> Result<Option<DiskRanges>, HypervisorError> {
        self.check_images()?;
        Ok(self.tracker.changed())
    }

    pub(crate) fn freeze(
        &mut self,
        moment: Sequence,
        consistency: Consistency,
    ) -> Result<Frozen, HypervisorError> {
        self.refuse(&[Activity::Move])?;
        if self.activity == Activity::View {
            // Also while the readers of one that is being dropped are ending.
            return Err(HypervisorError::Freeze {
                vm: self.vm(),
                consistency,
                source: FreezeError::AlreadyFrozen,
            });
        }
        let frozen = self.make_view(moment, consistency);
        match frozen {
            Ok(_) => self.activity = Activity::View,
            Err(_) => self.close_if_idle(),
        }
        frozen
    }

    fn make_view(
        &mut self,
        moment: Sequence,
        asked: Consistency,
    ) -> Result<Frozen, HypervisorError> {
        let vm = self.vm();
        let volume = self.open_volume()?;
        let failed = |source: FreezeError| HypervisorError::Freeze {
            vm,
            consistency: asked,
            source,
        };
        // All that takes time comes before the guest is asked to be quiet.
        let freeze = volume.begin_freeze().map_err(failed)?;
        let since = self.tracker.since().to_vec();
        let begun = self.tracker.begin_moment(moment);
        begun.map_err(|source| HypervisorError::Tracking { vm, source })?;
        let quiet = self.quiet(asked);
        let view = freeze.now(self.tracker.marking(), &since);
        let captured_at = clock::wall();
        let consistency = match quiet.map(Quiet::end) {
            Some(Obeyed::Yes) => Consistency::Application,
            Some(Obeyed::No) | None => Consistency::Crash,
        };
        let view = view.map_err(failed)?;
        let sources = self.frozen_sources(&view)?;
        Ok(Frozen {
            view,
            captured_at,
            consistency,
            sources,
        })
    }

    /// Asks the guest to be quiet, if that is wanted and there are a guest and a way.
    fn quiet(&self, asked: Consistency) -> Option<Quiet<'_>> {
        match (asked, self.power_state()) {
            (Consistency::Application, PowerState::Running) => {
                let hook = self.host.options.quiesce.as_ref()?;
                Some(Quiet::begin(hook, self.vm()))
            }
            (Consistency::Crash, PowerState::Running | PowerState::Off)
            | (Consistency::Application, PowerState::Off) => None,
        }
    }

    fn frozen_sources(&self, view: &VolumeView) -> Result<Vec<DiskSource>, HypervisorError> {
        let vm = self.vm();
        let bitmap = match view.changes() {
            Changes::Tracked => Some(BITMAP.to_owned()),
            Changes::Unknown => None,
        };
        let source = |disk: &MachineDisk| {
            let export = format!("{vm}/{}", VolumeView::export_name(&disk.id));
            Ok(DiskSource {
                disk: disk.id.clone(),
                size: disk.size,
                uri: self.host.capture_uri(&export)?,
                bitmap: bitmap.clone(),
                local: None,
            })
        };
        self.disks.iter().map(source).collect()
    }

    /// Adopts what the disks stand on since a move. If that cannot be noted, tracking says so.
    pub(super) fn moved(&mut self, backings: Vec<(DiskId, Backing)>) {
        for (id, backing) in backings {
            if let Some(disk) = self.disks.iter().find(|disk| disk.id == id) {
                lock(&disk.place).backing = backing;
            }
        }
        if let Err(error) = self.note_moved() {
            // A doubt that cannot be noted holds in this process, and the next one finds other
            // images than those noted.
            let _ = self.lose(&format!("the disks were moved without a note: {error}"));
            self.mark_as_tracked();
        }
    }

    fn note_moved(&mut self) -> Result<(), HypervisorError> {
        let vm = self.vm();
        let tracked = stamped(vm, &self.disks)?;
        for (disk, tracked) in self.disks.iter().zip(&tracked) {
            lock(&disk.place).stamp = tracked.stamp;
        }
        let noted = match self.power_state() {
            PowerState::Running => self.tracker.moved(&tracked),
            PowerState::Off => self.tracker.end_writing(&tracked),
        };
        noted.map_err(|source| HypervisorError::Tracking { vm, source })
    }
}
