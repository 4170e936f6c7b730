//! TLS on either side, among ourselves and with real peers.

use std::path::Path;
use std::sync::Arc;

use lifeboat_nbd::{
    Client, ClientOptions, ConnectError, EndReason, Export, ExportSet, ListenAddress, NbdUri,
    Piece, RequestError, Server, ServerOptions, TlsClient, list_exports,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::memory::{Memory, Served, options, pattern, serve, serve_with};
use super::peers::{nbdkit, output, qemu_nbd, run};
use super::script::{Peer, server};

/// A certificate authority with one server and one client.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    server: (CertificateDer<'static>, KeyPair, String),
    client: (CertificateDer<'static>, KeyPair, String),
}

impl Authority {
    fn new() -> Self {
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.distinguished_name
            .push(rcgen::DnType::CommonName, "test root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(root, key).unwrap();
        let sign = |name: &str, purpose| {
            let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).unwrap();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            // QEMU insists on the second one, whatever the key.
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let pem = certificate.pem();
            (certificate.into(), key, pem)
        };
        let server = sign("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let client = sign("client", ExtendedKeyUsagePurpose::ClientAuth);
        Self {
            server,
            client,
            issuer,
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// A server that demands certificates of this authority.
    fn server_config(&self) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()))
            .build()
            .unwrap();
        let (certificate, key, _) = &self.server;
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        Arc::new(config)
    }

    fn client_with_certificate(&self) -> TlsClient {
        let (certificate, key, _) = &self.client;
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(vec![certificate.clone()], key)
            .unwrap();
        TlsClient {
            config: Arc::new(config),
            server_name: None,
        }
    }

    fn client_without_certificate(&self) -> TlsClient {
        let config = ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        TlsClient {
            config: Arc::new(config),
            server_name: None,
        }
    }

    /// The files by the names that QEMU, nbdkit and libnbd look for.
    fn write(&self, folder: &Path) {
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("ca-cert.pem", &self.issuer.pem());
        write("server-cert.pem", &self.server.2);
        write("server-key.pem", &self.server.1.serialize_pem());
        write("client-cert.pem", &self.client.2);
        write("client-key.pem", &self.client.1.serialize_pem());
    }
}

fn over_tls(tls: TlsClient) -> ClientOptions {
    ClientOptions {
        tls: Some(tls),
        ..options()
    }
}

fn tls_server(authority: &Authority, export: Arc<dyn Export>) -> Served {
    serve_with(
        export,
        ServerOptions {
            tls: Some(authority.server_config()),
            ..ServerOptions::default()
        },
    )
}

fn read_all(client: &Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    client
        .read_ranges([(0, client.size())], 16, |_, piece| {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Hole { length } => {
                    bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0);
                }
            }
            Ok::<(), RequestError>(())
        })
        .unwrap();
    bytes
}

#[test]
fn both_sides_prove_themselves_and_both_directions_flow_at_once() {
    let authority = Authority::new();
    let memory = Arc::new(Memory::writable(pattern(16 << 20)));
    let served = tls_server(&authority, Arc::clone(&memory) as Arc<dyn Export>);
    let options = over_tls(authority.client_with_certificate());
    let client = Client::connect(&served.uri, &options).unwrap();
    let (low, high) = (8 << 20, 16 << 20);
    let expected = pattern(high);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut read = vec![0; low];
                client.read(0, &mut read).unwrap();
                assert!(read == expected[..low]);
            });
        }
        scope.spawn(|| {
            for offset in (low..high).step_by(1 << 20) {
                client
                    .write(offset as u64, &vec![offset as u8; 1 << 20])
                    .unwrap();
            }
        });
    });
    client.write(low as u64, &expected[low..]).unwrap();
    assert!(memory.bytes() == expected);
    drop(client);
    assert!(matches!(served.end(1).reason, EndReason::Disconnected));
    assert_eq!(list_exports(&served.uri, &options).unwrap(), ["disk"]);
}

#[test]
fn a_client_without_certificate_or_tls_gets_nothing() {
    let authority = Authority::new();
    let served = tls_server(&authority, Arc::new(Memory::read_only(pattern(4096))));
    let anonymous = over_tls(authority.client_without_certificate());
    assert!(Client::connect(&served.uri, &anonymous).is_err());
    assert!(matches!(served.end(1).reason, EndReason::Tls { .. }));
    let stranger = over_tls(Authority::new().client_with_certificate());
    let error = Client::connect(&served.uri, &stranger).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    let error = Client::connect(&served.uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::TlsRequired { .. }), "{error}");
    let error = list_exports(&served.uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::TlsRequired { .. }), "{error}");
    let mut peer = Peer::connect(&served.folder.path().join("s"));
    peer.take(18);
    peer.send(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    assert!(peer.is_closed());
}

#[test]
fn a_server_with_another_name_is_refused() {
    let authority = Authority::new();
    let served = tls_server(&authority, Arc::new(Memory::read_only(pattern(4096))));
    let tls = TlsClient {
        server_name: Some("elsewhere.example".to_owned()),
        ..authority.client_with_certificate()
    };
    let error = Client::connect(&served.uri, &over_tls(tls)).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    let tls = TlsClient {
        server_name: Some("no name".to_owned()),
        ..authority.client_with_certificate()
    };
    let error = Client::connect(&served.uri, &over_tls(tls)).unwrap_err();
    assert!(matches!(error, ConnectError::TlsName { .. }), "{error}");
}

#[test]
fn a_client_with_tls_never_goes_on_in_plain_text() {
    let authority = Authority::new();
    let plain = serve(Arc::new(Memory::read_only(pattern(4096))));
    let tls = over_tls(authority.client_with_certificate());
    let error = Client::connect(&plain.uri, &tls).unwrap_err();
    assert!(matches!(error, ConnectError::TlsRefused { .. }), "{error}");

    let uri: NbdUri = plain
        .uri
        .to_string()
        .replace("nbd+", "nbds+")
        .parse()
        .unwrap();
    let error = Client::connect(&uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::TlsMissing { .. }), "{error}");

    // Answers smuggled in before the encryption starts.
    let scripted = server(|mut peer| {
        peer.greet();
        assert_eq!(peer.option().0, 5);
        let mut answers = crate::bytes![0x0003_e889_0455_65a9_u64, 5u32, 1u32, 0u32];
        answers.extend(crate::bytes![0x0003_e889_0455_65a9_u64, 11u32, 1u32, 0u32]);
        peer.send(&answers);
        peer.is_closed();
    });
    let error = Client::connect(&scripted.uri, &tls).unwrap_err();
    let ConnectError::Illegal { source } = error else {
        panic!("{error}")
    };
    assert_eq!(source, lifeboat_nbd::ProtocolError::PlaintextAfterStartTls);
    scripted.join();
}

#[test]
fn requests_smuggled_in_before_the_encryption_are_refused() {
    let authority = Authority::new();
    let served = tls_server(&authority, Arc::new(Memory::read_only(pattern(4096))));
    let mut peer = Peer::connect(&served.folder.path().join("s"));
    peer.take(18);
    peer.send(b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0");
    assert!(peer.is_closed());
    assert!(matches!(
        served.end(1).reason,
        EndReason::PlaintextAfterStartTls
    ));
}

#[test]
fn our_client_reads_from_qemu_nbd_over_tls() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    let bytes = pattern(4 << 20);
    std::fs::write(folder.path().join("raw"), &bytes).unwrap();
    let object = "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={}";
    let arguments = [
        "-r",
        "-x",
        "d",
        "-f",
        "raw",
        "--object",
        object,
        "--tls-creds",
        "t",
        "{}/raw",
    ];
    let peer = qemu_nbd(folder, &arguments);
    let uri = peer.uri("d");
    let client = Client::connect(&uri, &over_tls(authority.client_with_certificate())).unwrap();
    assert!(read_all(&client) == bytes);
    let error = Client::connect(&uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::TlsRequired { .. }), "{error}");
    // With TLS 1.3 the refusal may arrive only after the handshake.
    let anonymous = over_tls(authority.client_without_certificate());
    assert!(Client::connect(&uri, &anonymous).is_err());
}

#[test]
fn our_client_writes_to_nbdkit_over_tls() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    let certificates = format!("--tls-certificates={}", folder.path().display());
    let peer = nbdkit(&[
        "--tls=require",
        "--tls-verify-peer",
        &certificates,
        "memory",
        "4M",
    ]);
    let options = over_tls(authority.client_with_certificate());
    let client = Client::connect(&peer.uri(""), &options).unwrap();
    let bytes = pattern(4 << 20);
    client.write(0, &bytes).unwrap();
    client.flush().unwrap();
    assert!(read_all(&client) == bytes);
}

#[test]
fn libnbd_and_qemu_img_read_from_our_server_over_tls() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    let bytes = pattern(4 << 20);
    let exports = ExportSet::new();
    exports
        .add("disk", Arc::new(Memory::read_only(bytes.clone())))
        .unwrap();
    let options = ServerOptions {
        tls: Some(authority.server_config()),
        ..ServerOptions::default()
    };
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Server::bind(&address, exports, options).unwrap();
    let ListenAddress::Tcp(address) = server.address() else {
        panic!("a TCP server has a TCP address")
    };
    let dir = folder.path().display();
    let host = format!("localhost:{}", address.port());
    let uri = format!("nbds://{host}/disk?tls-certificates={dir}");
    let target = folder.path().join("copy");
    output("nbdcopy", &[&uri, target.to_str().unwrap()]);
    assert!(std::fs::read(&target).unwrap() == bytes);
    assert_eq!(output("nbdinfo", &["--size", &uri]).trim(), "4194304");
    assert!(
        !run("nbdinfo", &[&format!("nbd://{host}/disk")])
            .status
            .success()
    );

    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={dir}");
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=disk,tls-creds=t",
        address.port()
    );
    let second = folder.path().join("second");
    let arguments = [
        "convert",
        "--object",
        &object,
        "--image-opts",
        &image,
        "-O",
        "raw",
    ];
    output(
        "qemu-img",
        &[&arguments[..], &[second.to_str().unwrap()]].concat(),
    );
    assert!(std::fs::read(&second).unwrap() == bytes);
}
