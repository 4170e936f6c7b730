//! Our client and our server together.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use lifeboat_nbd::{
    Access, BindError, Client, ClientOptions, ConnectError, ContextName, DIRTY, EndReason, Errno,
    Export, ExportSet, ExportSetError, Extent, Granularity, Holes, ListenAddress, NbdUri, Piece,
    RequestError, Server, ServerOptions, ZERO, export_info, list_exports,
};

use super::memory::{
    BLOCK, Call, Memory, PATIENCE, options, pattern, serve, serve_with, sparse, with_contexts,
};

/// Reads a whole export by ranges and checks that nothing is out of order.
fn read_all(client: &Client, depth: usize) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut holes = 0;
    client
        .read_ranges([(0, client.size())], depth, |offset, piece| {
            assert_eq!(offset, bytes.len() as u64, "out of order");
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Hole { length } => {
                    holes += length;
                    bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0);
                }
            }
            Ok::<(), RequestError>(())
        })
        .unwrap();
    (bytes, holes)
}

#[test]
fn what_is_read_is_what_the_export_has() {
    let bytes = sparse(3 * 1024 * 1024 + 513);
    let served = serve(Arc::new(Memory::read_only(bytes.clone())));
    let client = served.client();
    assert_eq!(client.size(), bytes.len() as u64);
    assert!(client.read_only() && client.can_multi_conn() && client.can_flush());
    for depth in [1, 2, 16] {
        let (read, holes) = read_all(&client, depth);
        assert!(read == bytes, "depth {depth}");
        assert!(holes > 0, "the server knows where the zeroes are");
    }
    let mut part = vec![1; 200_000];
    client.read(70_001, &mut part).unwrap();
    assert!(part == bytes[70_001..270_001]);
}

#[test]
fn ranges_are_delivered_in_their_order_and_split() {
    let bytes = pattern(1 << 20);
    let served = serve(Arc::new(Memory::read_only(bytes.clone())));
    let client = Client::connect(
        &served.uri,
        &ClientOptions {
            request_size: 8192,
            ..options()
        },
    )
    .unwrap();
    let ranges = [
        (500_000, 70_000),
        (0, 0),
        (3, 5),
        (3, 5),
        (1 << 20, 0),
        (9, 20_000),
    ];
    let mut delivered = Vec::new();
    client
        .read_ranges(ranges, 5, |offset, piece| {
            let Piece::Data(data) = piece else {
                panic!("nothing here is a hole")
            };
            let start = usize::try_from(offset).unwrap();
            assert!(data == &bytes[start..start + data.len()]);
            assert!(data.len() <= 8192);
            delivered.extend((offset..).take(data.len()));
            Ok::<(), RequestError>(())
        })
        .unwrap();
    let expected: Vec<u64> = ranges.iter().flat_map(|(o, l)| *o..*o + *l).collect();
    assert!(delivered == expected);
}

#[test]
fn the_first_error_of_the_receiver_ends_the_reading_and_not_the_connection() {
    let served = serve(Arc::new(Memory::read_only(pattern(1 << 20))));
    let client = served.client();
    #[derive(Debug)]
    enum Stop {
        Enough,
        Request,
    }
    impl From<RequestError> for Stop {
        fn from(_: RequestError) -> Self {
            Self::Request
        }
    }
    let mut calls = 0;
    let outcome = client.read_ranges((0..1000).map(|i| (i * 1024, 1024)), 16, |_, _| {
        calls += 1;
        Err(Stop::Enough)
    });
    assert!(matches!(outcome, Err(Stop::Enough)));
    assert_eq!(calls, 1);
    client.read(0, &mut [0; 4096]).unwrap();
    let outcome = client.read_ranges([(0, 1 << 21)], 16, |_, _| Ok(()));
    assert!(matches!(outcome, Err(Stop::Request)));
}

#[test]
fn writes_zeroes_and_trims_reach_the_export() {
    let memory = Arc::new(Memory::writable(pattern(1 << 20)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let client = served.client();
    let mut expected = pattern(1 << 20);
    client.write(1000, &[7; 5000]).unwrap();
    expected[1000..6000].fill(7);
    client.write_zeroes(100_000, 3000).unwrap();
    expected[100_000..103_000].fill(0);
    client.write_zeroes_allocated(200_000, 10).unwrap();
    expected[200_000..200_010].fill(0);
    client.trim(300_000, 4096).unwrap();
    expected[300_000..304_096].fill(0);
    client.flush().unwrap();
    assert!(memory.bytes() == expected);
    assert_eq!(
        *memory.calls.lock().unwrap(),
        [
            Call::Write,
            Call::WriteZeroes(Holes::Allowed),
            Call::WriteZeroes(Holes::Forbidden),
            Call::Trim,
            Call::Flush
        ]
    );
}

#[test]
fn a_durable_write_is_flushed_before_its_reply() {
    let memory = Arc::new(Memory::writable(vec![0; 1 << 16]));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let client = served.client();
    assert!(client.can_fua());
    client.write_durably(0, &[1; 512]).unwrap();
    assert_eq!(*memory.calls.lock().unwrap(), [Call::Write, Call::Flush]);
}

#[test]
fn both_maps_are_told_and_bitmaps_of_any_name_are_found() {
    let memory = Arc::new(Memory::writable(sparse(100 * BLOCK + 100)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let names = [
        "base:allocation",
        "qemu:dirty-bitmap:cp0",
        "qemu:dirty-bitmap:none",
    ];
    let client = Client::connect(&served.uri, &with_contexts(&names)).unwrap();
    let granted: Vec<_> = client.contexts().map(ContextName::as_str).collect();
    assert_eq!(granted, names[..2]);
    client.write(10_000, &[1; 100]).unwrap();
    client.write(409_600, &[1; 100]).unwrap();

    let size = client.size();
    let dirty = ContextName::dirty_bitmap("cp0").unwrap();
    let extents = client
        .collect_extents(&dirty, 0, size, 100)
        .unwrap()
        .unwrap();
    let flags: Vec<_> = extents
        .iter()
        .map(|e| (e.offset, e.length, e.flags))
        .collect();
    assert_eq!(
        flags,
        [
            (0, 8192, 0),
            (8192, 4096, DIRTY),
            (12_288, 397_312, 0),
            (409_600, 100, DIRTY)
        ]
    );
    let allocation = ContextName::allocation();
    let mut next = 77;
    for extent in client.extents(&allocation, 77, size - 77).unwrap() {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, next);
        next = extent.end();
        let range = usize::try_from(extent.offset).unwrap()..usize::try_from(next).unwrap();
        let zero = memory.bytes()[range].iter().all(|byte| *byte == 0);
        assert_eq!(zero, extent.flags & ZERO != 0);
    }
    assert_eq!(next, size);
    let absent = ContextName::dirty_bitmap("none").unwrap();
    assert!(matches!(
        client.extents(&absent, 0, 1),
        Err(RequestError::ContextNotGranted { .. })
    ));
    assert_eq!(client.collect_extents(&dirty, 0, size, 3).unwrap(), None);
}

#[test]
fn impossible_requests_are_refused_before_they_are_sent() {
    let memory = Memory::read_only(vec![0; 8192]).with_minimum(512);
    let served = serve(Arc::new(memory));
    let client = served.client();
    assert_eq!(client.block_sizes().minimum, 512);
    let mut buffer = [0; 512];
    for (offset, expected) in [
        (8192, "ends at"),
        (u64::MAX, "ends at"),
        (1, "multiples of 512"),
    ] {
        let error = client.read(offset, &mut buffer).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(matches!(
        client.write(0, &buffer),
        Err(RequestError::ReadOnly { .. })
    ));
    assert!(matches!(
        client.trim(0, 512),
        Err(RequestError::Unsupported { .. })
    ));
    client.flush().unwrap();
}

/// An export whose every call is given to a test.
struct Hooked<F>(F);

impl<F: Fn(u64, &mut [u8]) -> io::Result<()> + Send + Sync> Export for Hooked<F> {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![ContextName::dirty_bitmap("x").unwrap()]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0(offset, into)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(28))
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _holes: Holes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::Error::other("the disk\nis gone"))
    }

    fn extents(
        &self,
        _context: &ContextName,
        offset: u64,
        _length: u64,
        _limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let hole = Extent {
            offset: offset + 1,
            length: 1,
            flags: 0,
        };
        Ok(vec![hole])
    }
}

#[test]
fn errors_of_an_export_keep_their_meaning_and_the_connection() {
    let served = serve(Arc::new(Hooked(|_, _: &mut [u8]| {
        Err(io::Error::other("bad sector"))
    })));
    let options = with_contexts(&["qemu:dirty-bitmap:x"]);
    let client = Client::connect(&served.uri, &options).unwrap();
    let error = client.read(4096, &mut [0; 10]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::Io));
    assert!(error.to_string().contains("bad sector"), "{error}");
    let errno = |outcome: Result<(), RequestError>| outcome.unwrap_err().errno();
    assert_eq!(errno(client.write(0, &[1])), Some(Errno::NoSpace));
    assert_eq!(errno(client.write_zeroes(0, 1)), Some(Errno::NotSupported));
    assert_eq!(errno(client.trim(0, 1)), Some(Errno::Permission));
    let error = client.flush().unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    let context = ContextName::dirty_bitmap("x").unwrap();
    let mut extents = client.extents(&context, 0, 10).unwrap();
    let gap = extents.next().unwrap().unwrap_err();
    assert!(gap.to_string().contains("gaps"), "{gap}");
    assert!(extents.next().is_none());
}

#[test]
fn requests_of_one_connection_are_served_at_once() {
    let together = Arc::new(Barrier::new(4));
    let barrier = Arc::clone(&together);
    // None of the four is answered unless all four are being served.
    let served = serve(Arc::new(Hooked(move |_, into: &mut [u8]| {
        barrier.wait();
        into.fill(1);
        Ok(())
    })));
    let client = served.client();
    let mut count = 0;
    client
        .read_ranges((0..8).map(|i| (i * 512, 512)), 8, |_, _| {
            count += 1;
            Ok::<(), RequestError>(())
        })
        .unwrap();
    assert_eq!(count, 8);
}

#[test]
fn no_more_is_under_way_than_the_server_allows() {
    for (max_in_flight, max_in_flight_bytes) in [(2, 1 << 20), (16, 2 * 4096)] {
        let inside = Arc::new(Mutex::new((0, 0)));
        let pair = Arc::new(Barrier::new(2));
        let (count, barrier) = (Arc::clone(&inside), Arc::clone(&pair));
        let export = Hooked(move |_, into: &mut [u8]| {
            {
                let mut count = count.lock().unwrap();
                count.0 += 1;
                count.1 = count.1.max(count.0);
            }
            // Two at once are served, or nothing goes on.
            barrier.wait();
            into.fill(1);
            count.lock().unwrap().0 -= 1;
            Ok(())
        });
        let served = serve_with(
            Arc::new(export),
            ServerOptions {
                max_in_flight,
                max_in_flight_bytes,
                workers: 8,
                ..ServerOptions::default()
            },
        );
        let client = served.client();
        let mut pieces = 0;
        client
            .read_ranges((0..40).map(|i| (i * 4096, 4096)), 16, |_, _| {
                pieces += 1;
                Ok::<(), RequestError>(())
            })
            .unwrap();
        assert_eq!((pieces, inside.lock().unwrap().1), (40, 2));
    }
}

#[test]
fn many_threads_share_one_connection() {
    let memory = Arc::new(Memory::writable(vec![0; 8 << 20]));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let client = served.client();
    let bytes = pattern(8 << 20);
    std::thread::scope(|scope| {
        for (index, part) in bytes.chunks(1 << 20).enumerate() {
            let client = &client;
            scope.spawn(move || {
                let base = (index << 20) as u64;
                for (offset, piece) in (base..).step_by(65_536).zip(part.chunks(65_536)) {
                    client.write(offset, piece).unwrap();
                    let mut back = vec![0; piece.len()];
                    client.read(offset, &mut back).unwrap();
                    assert!(back == piece);
                }
            });
        }
    });
    assert!(memory.bytes() == bytes);
}

#[test]
fn a_request_may_be_made_while_pieces_are_delivered() {
    let memory = Arc::new(Memory::writable(pattern(4 << 20)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let client = Client::connect(
        &served.uri,
        &ClientOptions {
            max_in_flight: 4,
            request_size: 65_536,
            ..options()
        },
    )
    .unwrap();
    client
        .read_ranges([(0, 4 << 20)], 16, |offset, piece| {
            let Piece::Data(data) = piece else {
                panic!("nothing here is a hole")
            };
            client.write(offset, &vec![data[0]; data.len()])
        })
        .unwrap();
    let expected: Vec<u8> = pattern(4 << 20)
        .chunks(65_536)
        .flat_map(|chunk| vec![chunk[0]; chunk.len()])
        .collect();
    assert!(memory.bytes() == expected);
}

#[test]
fn a_server_that_is_silent_is_given_up_at_the_deadline() {
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let served = serve(Arc::new(Hooked(move |_, _: &mut [u8]| {
        let _ = hold.lock().unwrap().recv();
        Ok(())
    })));
    let client = Client::connect(
        &served.uri,
        &ClientOptions {
            deadline: Duration::from_millis(300),
            ..ClientOptions::default()
        },
    )
    .unwrap();
    let error = client.read(0, &mut [0; 512]).unwrap_err();
    let RequestError::Lost { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        source.to_string().contains("before the deadline"),
        "{source}"
    );
    let again = client.read(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(again, RequestError::Lost { .. }));
    drop(release);
}

#[test]
fn a_good_bye_is_orderly() {
    let served = serve(Arc::new(Memory::read_only(pattern(1 << 16))));
    drop(served.client());
    let end = served.end(1);
    assert!(
        matches!(end.reason, EndReason::Disconnected),
        "{:?}",
        end.reason
    );
    assert_eq!(end.export.as_deref(), Some("disk"));
}

#[test]
fn exports_come_and_go_while_the_server_runs() {
    let served = serve(Arc::new(Memory::read_only(pattern(1 << 16))));
    let exports = served.server.exports();
    let other = Arc::new(Memory::writable(vec![0; 4096]));
    let weak = Arc::downgrade(&other);
    exports
        .add("a/other", Arc::clone(&other) as Arc<dyn Export>)
        .unwrap();
    assert!(matches!(
        exports.add("disk", Arc::clone(&other) as Arc<dyn Export>),
        Err(ExportSetError::NameTaken { .. })
    ));
    assert_eq!(
        list_exports(&served.uri, &options()).unwrap(),
        ["a/other", "disk"]
    );

    let socket = served.folder.path().join("s");
    let uri = NbdUri::unix(socket, "a/other").unwrap();
    let info = export_info(&uri, &options()).unwrap();
    assert_eq!((info.size, info.read_only), (4096, false));
    assert_eq!(info.contexts, ["base:allocation", "qemu:dirty-bitmap:cp0"]);

    let user = Client::connect(&uri, &options()).unwrap();
    let bystander = served.client();
    user.write(0, &[1]).unwrap();
    exports.remove("a/other", PATIENCE).unwrap();
    drop(other);
    assert!(weak.upgrade().is_none(), "nothing uses a removed export");
    assert!(matches!(
        user.write(0, &[2]),
        Err(RequestError::Lost { .. })
    ));
    bystander.read(0, &mut [0; 10]).unwrap();
    let error = Client::connect(&uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::Export { .. }), "{error}");
    assert!(error.to_string().contains("no such export"), "{error}");
    assert!(matches!(
        exports.remove("a/other", PATIENCE),
        Err(ExportSetError::Unknown { .. })
    ));
}

#[test]
fn a_shutdown_answers_what_was_received() {
    let (entered, inside) = mpsc::channel::<()>();
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let served = serve(Arc::new(Hooked(move |_, into: &mut [u8]| {
        entered.send(()).unwrap();
        hold.lock().unwrap().recv().unwrap();
        into.fill(9);
        Ok(())
    })));
    let client = served.client();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut byte = [0];
            client.read(0, &mut byte).map(|()| byte[0])
        });
        inside.recv().unwrap();
        let server = served.server;
        let stop = scope.spawn(move || server.shutdown(PATIENCE));
        release.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 9);
        assert_eq!(stop.join().unwrap(), 0, "connections that did not end");
    });
    assert!(Client::connect(&served.uri, &options()).is_err());
}

#[test]
fn connections_over_the_limit_are_closed() {
    let served = serve_with(
        Arc::new(Memory::read_only(pattern(4096))),
        ServerOptions {
            max_connections: 1,
            ..ServerOptions::default()
        },
    );
    let first = served.client();
    assert!(Client::connect(&served.uri, &options()).is_err());
    assert!(matches!(
        served.end(1).reason,
        EndReason::TooManyConnections
    ));
    first.read(0, &mut [0; 10]).unwrap();
}

#[test]
fn a_panic_in_an_export_ends_its_connection_only() {
    let served = serve(Arc::new(Hooked(|offset, into: &mut [u8]| {
        assert!(offset != 512, "the test wants a panic");
        into.fill(3);
        Ok(())
    })));
    let bystander = served.client();
    let victim = served.client();
    assert!(matches!(
        victim.read(512, &mut [0; 4]),
        Err(RequestError::Lost { .. })
    ));
    assert!(matches!(served.end(1).reason, EndReason::Panicked));
    bystander.read(0, &mut [0; 4]).unwrap();
}

#[test]
fn the_socket_belongs_to_its_owner_and_only_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let address = ListenAddress::Unix(path.clone());
    let bind = || Server::bind(&address, ExportSet::new(), ServerOptions::default());

    let server = bind().unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(bind(), Err(BindError::InUse { .. })));
    server.shutdown(PATIENCE);
    assert!(!path.exists());

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket that nobody listens on");
    bind().unwrap().shutdown(PATIENCE);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn tcp_serves_as_well() {
    let bytes = pattern(3 << 20);
    let exports = ExportSet::new();
    exports
        .add("", Arc::new(Memory::read_only(bytes.clone())))
        .unwrap();
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Server::bind(&address, exports, ServerOptions::default()).unwrap();
    let ListenAddress::Tcp(address) = server.address() else {
        panic!("a TCP server has a TCP address")
    };
    let uri = format!("nbd://{address}").parse().unwrap();
    let client = Client::connect(&uri, &options()).unwrap();
    assert!(read_all(&client, 16).0 == bytes);
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let uri = NbdUri::unix(folder.path().join("none"), "x").unwrap();
    let error = Client::connect(&uri, &options()).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_process_reads_its_own_export_as_clients_do_until_it_is_removed() {
    let content = pattern(1 << 16);
    let served = serve(Arc::new(Memory::read_only(content.clone())));
    let exports = served.server.exports();
    assert!(exports.local("another").is_none());
    let local = exports.local("disk").unwrap();
    assert_eq!(local.size(), 1 << 16);
    let mut bytes = vec![0; 5000];
    local.read(100, &mut bytes).unwrap();
    assert!(bytes == content[100..5100]);

    let contexts: Vec<_> = local.contexts().cloned().collect();
    assert!(!contexts.is_empty());
    let names: Vec<_> = contexts.iter().map(ToString::to_string).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let client = Client::connect(&served.uri, &with_contexts(&names)).unwrap();
    for context in &contexts {
        for (offset, length) in [(0, 1 << 16), (4096, 8192), (65_535, 1)] {
            let here = local.collect_extents(context, offset, length, 1000);
            let there = client.collect_extents(context, offset, length, 1000);
            assert_eq!(here.unwrap(), there.unwrap(), "{context} at {offset}");
        }
        assert_eq!(local.collect_extents(context, 0, 1 << 16, 0).unwrap(), None);
    }

    for (offset, length) in [(1 << 16, 1), (u64::MAX, 1), (65_000, 5000)] {
        let error = local.read(offset, &mut vec![0; length]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
    exports.remove("disk", PATIENCE).unwrap();
    let error = local.read(0, &mut [0; 10]).unwrap_err();
    assert!(error.to_string().contains("has been removed"), "{error}");
}

#[test]
fn removing_an_export_waits_for_calls_of_this_process() {
    let (entered, inside) = mpsc::channel::<()>();
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let hooked = Arc::new(Hooked(move |_, into: &mut [u8]| {
        entered.send(()).unwrap();
        hold.lock().unwrap().recv().unwrap();
        into.fill(9);
        Ok(())
    }));
    let weak = Arc::downgrade(&hooked);
    let served = serve(hooked);
    let exports = served.server.exports();
    let local = exports.local("disk").unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut byte = [0];
            local.read(0, &mut byte).map(|()| byte[0])
        });
        inside.recv().unwrap();
        let busy = exports.remove("disk", Duration::from_millis(20));
        assert!(
            matches!(busy, Err(ExportSetError::Busy { users: 1, .. })),
            "{busy:?}"
        );
        release.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 9);
    });
    assert!(weak.upgrade().is_none(), "nothing uses a removed export");
}
