//! Clients and servers that send what no honest one would, with good certificates.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use crate::support::{PATIENCE, Party, Served};

/// Whether the client proves who it is.
#[derive(Clone, Copy)]
pub enum Proof {
    Host,
    None,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn identity(party: &Party) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let path = party.pki.folder().join("host.pem");
    let chain = CertificateDer::pem_file_iter(&path)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    (chain, PrivateKeyDer::from_pem_file(&path).unwrap())
}

fn roots(party: &Party) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for entry in std::fs::read_dir(party.pki.folder().join("trust/hosts")).unwrap() {
        let der = CertificateDer::from_pem_file(entry.unwrap().path()).unwrap();
        roots.add(der).unwrap();
    }
    Arc::new(roots)
}

pub fn client_config(
    party: &Party,
    proof: Proof,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(party));
    match proof {
        Proof::None => builder.with_no_client_auth(),
        Proof::Host => {
            let (chain, key) = identity(party);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

pub struct RawClient(pub StreamOwned<ClientConnection, TcpStream>);

/// A raw client that proves to be `party`; whom it talks to it takes from the trust of the
/// same party.
pub fn client(served: &Served, party: &Party) -> RawClient {
    connect(
        served,
        client_config(party, Proof::Host, &rustls::version::TLS13),
    )
}

pub fn connect(served: &Served, config: ClientConfig) -> RawClient {
    let name = ServerName::try_from(served.tls.host().names[0].clone()).unwrap();
    let stream = TcpStream::connect(served.server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    RawClient(StreamOwned::new(session, stream))
}

impl RawClient {
    /// Sends, and reads until the server closes.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<String> {
        self.0.write_all(request)?;
        self.0.flush()?;
        self.read_to_close()
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    pub fn read_to_close(&mut self) -> io::Result<String> {
        let mut answer = Vec::new();
        match self.0.read_to_end(&mut answer) {
            Ok(_) => {}
            // A connection that is cut has said what it said.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Reads one answer with a length, and leaves the connection open.
    pub fn answer(&mut self) -> io::Result<String> {
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&answer).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.trim().parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        answer.extend_from_slice(&body);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// A server with a good certificate that runs `script` on its first connections, one after
/// another.
pub fn server(
    party: &Party,
    script: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) + Send + 'static,
) -> std::net::SocketAddr {
    let (chain, key) = identity(party);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(party), provider())
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            script(&mut StreamOwned::new(session, stream));
        }
    });
    address
}

/// Reads the head of a request.
pub fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A deadline that passes soon, for tests of what happens then.
pub const SOON: Duration = Duration::from_millis(300);

/// Passes bytes on between callers and a server, counts them, and can cut every connection.
pub struct Relay {
    pub address: std::net::SocketAddr,
    streams: Arc<std::sync::Mutex<Vec<TcpStream>>>,
    passed: Arc<std::sync::atomic::AtomicU64>,
}

pub fn relay(target: std::net::SocketAddr) -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = Relay {
        address: listener.local_addr().unwrap(),
        streams: Arc::default(),
        passed: Arc::default(),
    };
    let (streams, passed) = (Arc::clone(&relay.streams), Arc::clone(&relay.passed));
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = TcpStream::connect(target).unwrap();
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let passed = Arc::clone(&passed);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        passed.fetch_add(read as u64, std::sync::atomic::Ordering::SeqCst);
                        if to.write_all(&buffer[..read]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
            streams.lock().unwrap().extend([near, far]);
        }
    });
    relay
}

impl Relay {
    pub fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// How many bytes have passed, both ways together.
    pub fn passed(&self) -> u64 {
        self.passed.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Shakes hands with a server of this configuration, as somebody with this certificate and
/// key (PEM), and says whether the server let them in.
pub fn is_let_in(config: ServerConfig, trust: &Party, name: &str, proof: Option<&str>) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(trust));
    let client = match proof {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
                .map(Result::unwrap)
                .collect();
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let session = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(session, stream);
        stream.read_exact(&mut [0; 5]).is_ok()
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut stream = StreamOwned::new(session, TcpStream::connect(address).unwrap());
    let _ = stream.write_all(b"hello");
    let _ = stream.flush();
    serving.join().unwrap()
}
