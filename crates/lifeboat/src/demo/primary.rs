//! The primary host of the demo: two disks served over NBD with change tracking, and
//! the way of a delta from a frozen view to the replica.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_capture::{CapturePlan, Captured, DEFAULT_DEADLINE, DEFAULT_DEPTH, Source, capture};
use lifeboat_model::{Consistency, DiskId, LineageId, RelationshipId, Sequence};
use lifeboat_nbd::{
    Client, ClientOptions, ExportSet, ListenAddress, NbdUri, Server, ServerOptions,
};
use lifeboat_store::{Received, Store};
use lifeboat_stream::{Base, Header, Kind, Options};
use lifeboat_sys::clock;
use lifeboat_sys::disk::{DiskPort as _, RealDisk};
use lifeboat_volume::{
    BITMAP, Changes, FrozenView, Outcome, Volume, VolumeDisk, VolumePlan, create_disk,
};

use super::error::DemoError;
use super::guest::DISKS;

/// What connections are given to end when an export is withdrawn.
pub const GRACE: Duration = Duration::from_secs(5);

/// Old blocks that one frozen view may keep; more than the guest can write meanwhile.
const SCRATCH_LIMIT: u64 = 256 << 20;

/// The host that the VM runs on.
#[derive(Debug)]
pub struct Primary {
    volume: Volume,
    server: Server,
    socket: PathBuf,
    folder: PathBuf,
    relationship: RelationshipId,
    lineage: LineageId,
}

impl Primary {
    /// Makes the VM's disks in the new folder `folder` and serves them.
    ///
    /// # Errors
    /// When files or the socket cannot be made.
    pub fn start(
        folder: PathBuf,
        relationship: RelationshipId,
        lineage: LineageId,
    ) -> Result<Self, DemoError> {
        let scratch_folder = folder.join("scratch");
        make_folder(&folder)?;
        make_folder(&scratch_folder)?;
        let failed = |source| DemoError::Volume { source };
        let mut disks = Vec::new();
        for plan in &DISKS {
            let path = folder.join(format!("{}.raw", plan.name));
            create_disk(&RealDisk, &path, plan.disk_size()).map_err(failed)?;
            disks.push(VolumeDisk {
                id: plan.id(),
                path,
            });
        }
        let plan = VolumePlan {
            disks,
            scratch_folder,
            scratch_limit: SCRATCH_LIMIT,
        };
        let exports = ExportSet::new();
        let volume = Volume::open(Arc::new(RealDisk), &plan, exports.clone()).map_err(failed)?;
        let socket = folder.join("nbd.sock");
        Ok(Self {
            volume,
            server: serve(&socket, exports)?,
            socket,
            folder,
            relationship,
            lineage,
        })
    }

    /// Opens a disk as the guest does.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn connect(&self, disk: &DiskId) -> Result<Client, DemoError> {
        connect(&self.socket, disk.as_str(), disk)
    }

    /// Freezes all disks at one instant.
    ///
    /// # Errors
    /// When the view cannot be made.
    pub fn freeze(&self, sequence: Sequence) -> Result<FrozenView, DemoError> {
        let view = self.volume.freeze();
        view.map_err(|source| DemoError::Freeze { sequence, source })
    }

    /// What the guest wrote since the last frozen moment, in bytes of whole blocks.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.volume.dirty_bytes()
    }

    /// Writes what changed between `base` and the view to a file, durably.
    ///
    /// # Errors
    /// When the view cannot be read or the file not be written.
    pub fn capture(
        &self,
        view: &FrozenView,
        sequence: Sequence,
        base: Option<Base>,
    ) -> Result<(Captured, PathBuf), DemoError> {
        let bitmap = match view.changes() {
            Changes::Unknown => None,
            Changes::Tracked => Some(BITMAP.to_owned()),
        };
        let source = |disk: DiskId| {
            Ok(Source {
                uri: uri(&self.socket, &FrozenView::export_name(&disk))?,
                disk,
                bitmap: bitmap.clone(),
            })
        };
        let sources: Result<Vec<Source>, DemoError> =
            DISKS.iter().map(|plan| source(plan.id())).collect();
        let plan = CapturePlan {
            header: Header {
                relationship: self.relationship,
                lineage: self.lineage,
                base,
                sequence,
                kind: match base {
                    None => Kind::Initial,
                    Some(_) => Kind::Delta,
                },
            },
            captured_at: clock::wall(),
            consistency: Consistency::Crash,
            sources: sources?,
            options: Options::default(),
            tls: None,
            deadline: DEFAULT_DEADLINE,
            depth: DEFAULT_DEPTH,
        };
        let path = self.folder.join(format!("{sequence}.delta"));
        let at = |what| {
            let path = path.clone();
            move |source| DemoError::File { what, path, source }
        };
        let mut file = File::create_new(&path).map_err(at("create"))?;
        let captured = capture(&plan, &mut file, &mut |_| {})
            .map_err(|source| DemoError::Capture { sequence, source })?;
        file.sync_all().map_err(at("sync"))?;
        Ok((captured, path))
    }

    /// Lets the primary forget what `view` told, because the replica has it.
    ///
    /// # Errors
    /// When a reader of the view does not end.
    pub fn release(&self, view: FrozenView, sequence: Sequence) -> Result<(), DemoError> {
        let released = view.release(Outcome::Received, GRACE);
        released.map_err(|source| DemoError::Release { sequence, source })
    }

    /// The host is gone: nothing is sent or served any more.
    ///
    /// # Errors
    /// When the disks cannot be let go.
    pub fn lose(self) -> Result<(), DemoError> {
        self.server.shutdown(GRACE);
        let closed = self.volume.close(GRACE);
        closed.map_err(|source| DemoError::Volume { source })
    }
}

/// Sends a delta to the replica over a socket, and waits for the receipt.
///
/// # Errors
/// When the replica refuses it, or the socket fails.
pub fn send(delta: &Path, sequence: Sequence, store: &mut Store) -> Result<Received, DemoError> {
    let failed = |source| DemoError::Send { sequence, source };
    let mut file = File::open(delta).map_err(failed)?;
    let (mut near, far) = UnixStream::pair().map_err(failed)?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> io::Result<()> {
            io::copy(&mut file, &mut near)?;
            near.shutdown(Shutdown::Write)
        });
        // Its end of the socket is closed when this returns, so the sender ends as well.
        let received = store.receive(far);
        let sent = sending
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let received = received?;
        sent.map_err(failed)?;
        Ok(received)
    })
}

/// Serves exports on a unix socket.
///
/// # Errors
/// When the socket cannot be had.
pub fn serve(socket: &Path, exports: ExportSet) -> Result<Server, DemoError> {
    // The server would fail as well, but not say what helps.
    uri(socket, "")?;
    let address = ListenAddress::Unix(socket.to_owned());
    Server::bind(&address, exports, ServerOptions::default())
        .map_err(|source| DemoError::Bind { source })
}

/// Opens an export that stands for `disk`.
///
/// # Errors
/// When the server does not answer, or has no such export.
pub fn connect(socket: &Path, export: &str, disk: &DiskId) -> Result<Client, DemoError> {
    let client = Client::connect(&uri(socket, export)?, &ClientOptions::default());
    client.map_err(|source| DemoError::Connect {
        disk: disk.clone(),
        source,
    })
}

fn uri(socket: &Path, export: &str) -> Result<NbdUri, DemoError> {
    NbdUri::unix(socket, export).map_err(|source| DemoError::Socket {
        folder: socket.parent().unwrap_or(socket).to_owned(),
        source,
    })
}

/// Makes a folder for this user alone.
///
/// # Errors
/// What the operating system says.
pub fn make_folder(path: &Path) -> Result<(), DemoError> {
    RealDisk.create_dir(path).map_err(|source| DemoError::File {
        what: "create the folder",
        path: path.to_owned(),
        source,
    })
}
