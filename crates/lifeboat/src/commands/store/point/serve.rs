//! `lifeboat store point serve`: the disks of a recovery point over NBD, read-only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use lifeboat_model::{DiskId, Sequence};
use lifeboat_nbd::{ConnectionEnd, ExportSet, ListenAddress, NbdUri, Server, ServerOptions};
use lifeboat_store::Store;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::commands::open_store;
use crate::exit::Failure;
use crate::exports::PointExport;
use crate::output::OutputFormat;
use crate::size::Bytes;
use crate::tls::ServerTls;

/// What clients are given to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The recovery point
    #[arg(value_name = "SEQUENCE")]
    sequence: Sequence,

    /// Serve this disk only; all unless given. Exports have the names of disks
    #[arg(long, value_name = "NAME")]
    disk: Option<DiskId>,

    #[command(flatten)]
    listen: Listen,

    /// Stop when the first client that read a disk has gone
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    tls: ServerTls,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Listen {
    /// Listen on a unix socket that only this user may use
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,

    /// Listen on a TCP address and port, such as 127.0.0.1:10809; others than this host's own
    /// need TLS. Port 0 takes any free port
    #[arg(long, value_name = "ADDR")]
    tcp: Option<SocketAddr>,
}

#[derive(Serialize)]
struct ServeView {
    sequence: Sequence,
    exports: Vec<ExportView>,
}

#[derive(Serialize)]
struct ExportView {
    disk: DiskId,
    size: u64,
    uri: String,
}

/// Why serving ends.
enum Stop {
    Signal,
    ClientGone,
}

/// Serves until told to stop.
///
/// # Errors
/// When the point is not there or the address cannot be had.
pub fn run(args: &ServeArgs, output: OutputFormat) -> Result<(), Failure> {
    let tls = args.tls.load().map_err(|source| Failure::Tls { source })?;
    let address = args.listen.address(tls.is_some())?;
    let store = open_store(&args.folder, "store point serve")?;
    let exports = ExportSet::new();
    let disks = served_disks(&store, args)?;
    let mut sizes = Vec::new();
    for disk in disks {
        let reader = store.reader(args.sequence, &disk)?;
        let size = reader.size();
        let added = exports.add(disk.as_str(), Arc::new(PointExport::new(reader)));
        added.map_err(|source| Failure::Export { source })?;
        sizes.push((disk, size));
    }
    let (stop, stopped) = mpsc::channel();
    stop_at_signals(stop.clone())?;
    let once = args.once;
    let is_encrypted = tls.is_some();
    let options = ServerOptions {
        tls,
        observer: Some(Arc::new(move |end: ConnectionEnd| {
            if once && end.export.is_some() {
                // Nobody listens any more when the server stops already.
                let _ = stop.send(Stop::ClientGone);
            }
        })),
        ..ServerOptions::default()
    };
    let server = Server::bind(&address, exports, options);
    let server = server.map_err(|source| Failure::Bind { source })?;
    let view = ServeView {
        sequence: args.sequence,
        exports: sizes
            .into_iter()
            .map(|(disk, size)| ExportView {
                uri: uri(server.address(), &disk, is_encrypted),
                disk,
                size,
            })
            .collect(),
    };
    output.print(&view, text)?;
    // The server keeps a sender, so this ends only by a stop.
    match stopped.recv() {
        Ok(Stop::Signal | Stop::ClientGone) | Err(mpsc::RecvError) => {}
    }
    server.shutdown(GRACE);
    Ok(())
}

impl Listen {
    /// Where to listen. Disks do not go over a network in plain text.
    fn address(&self, is_encrypted: bool) -> Result<ListenAddress, Failure> {
        match (&self.unix, self.tcp) {
            (Some(path), _) => {
                std::path::absolute(path)
                    .map(ListenAddress::Unix)
                    .map_err(|source| Failure::File {
                        what: "find",
                        path: path.clone(),
                        source,
                    })
            }
            (None, Some(address)) if is_encrypted || address.ip().is_loopback() => {
                Ok(ListenAddress::Tcp(address))
            }
            (None, Some(address)) => Err(Failure::Usage {
                what: format!(
                    "{address} can be reached from other hosts: give --tls-cert and --tls-key, or use 127.0.0.1"
                ),
            }),
            (None, None) => unreachable!("BUG: the parser demands one of the two"),
        }
    }
}

fn served_disks(store: &Store, args: &ServeArgs) -> Result<Vec<DiskId>, Failure> {
    match &args.disk {
        Some(disk) => Ok(vec![disk.clone()]),
        None => Ok(store.disk_ids()),
    }
}

fn text(view: &ServeView) -> String {
    let line = |export: &ExportView| {
        let (disk, size, uri) = (&export.disk, Bytes(export.size), &export.uri);
        format!("serving {disk} ({size}) at {uri}\n")
    };
    view.exports.iter().map(line).collect()
}

/// Sends when the process is asked to end.
fn stop_at_signals(stop: Sender<Stop>) -> Result<(), Failure> {
    let failed = |source| Failure::System {
        what: "signals",
        source,
    };
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let watch = move || {
        if signals.forever().next().is_some() {
            // Nobody listens any more when the server stops already.
            let _ = stop.send(Stop::Signal);
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(watch).map_err(failed)?;
    Ok(())
}

/// How clients name an export.
fn uri(address: &ListenAddress, disk: &DiskId, is_encrypted: bool) -> String {
    let scheme = if is_encrypted { "nbds" } else { "nbd" };
    match address {
        ListenAddress::Tcp(address) => format!("{scheme}://{address}/{disk}"),
        ListenAddress::Unix(path) => match NbdUri::unix(path, disk.as_str()) {
            // It escapes the path.
            Ok(uri) => uri.to_string().replacen("nbd", scheme, 1),
            Err(error) => unreachable!("BUG: a server listens where nobody finds it: {error}"),
        },
    }
}
