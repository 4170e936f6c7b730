//! Measures sequential reads: `nbd-throughput URI [depth [request KiB]]` reads an
//! export through the client; `nbd-throughput serve SOCKET MiB` offers memory, filled
//! with a pattern, until it is killed; `nbd-throughput tls MiB` reads from a server of
//! its own over TLS.

use std::io;
use std::sync::Arc;

use lifeboat_nbd::{
    Access, Client, ClientOptions, ContextName, Export, ExportSet, Extent, Granularity, Holes,
    ListenAddress, NbdUri, Piece, RequestError, Server, ServerOptions, TlsClient,
};

struct Memory(Vec<u8>);

impl Export for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        Vec::new()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        into.copy_from_slice(&self.0[start..start + into.len()]);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _holes: Holes) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        _context: &ContextName,
        offset: u64,
        length: u64,
        _limit: usize,
    ) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent {
            offset,
            length,
            flags: 0,
        }])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, otherwise: usize| {
        arguments
            .get(index)
            .map_or(Ok(otherwise), |text| text.parse::<usize>())
    };
    match arguments.first().map(String::as_str) {
        None => Err("usage: nbd-throughput URI [depth [KiB]] | serve SOCKET MiB".into()),
        Some("serve") => {
            let socket = arguments.get(1).ok_or("the socket is missing")?;
            let address = ListenAddress::Unix(socket.into());
            let exports = memory(number(2, 1024)?)?;
            let _server = Server::bind(&address, exports, ServerOptions::default())?;
            loop {
                std::thread::park();
            }
        }
        Some("tls") => over_tls(number(1, 1024)?),
        Some(uri) => {
            let uri: NbdUri = uri.parse()?;
            let options = ClientOptions {
                request_size: u32::try_from(number(2, 512)? << 10)?,
                ..ClientOptions::default()
            };
            measure(&uri, number(1, 16)?, &options)
        }
    }
}

fn memory(mebibytes: usize) -> Result<ExportSet, lifeboat_nbd::ExportSetError> {
    let bytes: Vec<u8> = (0..mebibytes << 20)
        .map(|i| (i / 512 % 251) as u8)
        .collect();
    let exports = ExportSet::new();
    exports.add("", Arc::new(Memory(bytes)))?;
    Ok(exports)
}

fn over_tls(mebibytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = made.signing_key.serialize_der();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.try_into()?)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("s");
    let options = ServerOptions {
        tls: Some(Arc::new(server)),
        ..ServerOptions::default()
    };
    let address = ListenAddress::Unix(socket.clone());
    let _server = Server::bind(&address, memory(mebibytes)?, options)?;
    let options = ClientOptions {
        tls: Some(TlsClient {
            config: Arc::new(client),
            server_name: None,
        }),
        ..ClientOptions::default()
    };
    measure(&NbdUri::unix(socket, "")?, 16, &options)
}

#[expect(
    clippy::disallowed_methods,
    reason = "measuring time is what this is for"
)]
fn measure(
    uri: &NbdUri,
    depth: usize,
    options: &ClientOptions,
) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(uri, options)?;
    let start = std::time::Instant::now();
    let (mut data, mut holes) = (0u64, 0u64);
    client.read_ranges([(0, client.size())], depth, |_, piece| {
        match piece {
            Piece::Data(bytes) => data += bytes.len() as u64,
            Piece::Hole { length } => holes += length,
        }
        Ok::<(), RequestError>(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = (data + holes) as f64 / seconds / 1e9;
    println!("{data} bytes of data, {holes} of holes, {seconds:.2} s, {rate:.2} GB/s");
    Ok(())
}
