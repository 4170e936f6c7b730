//! Sockets, certificates, and the client of the command line.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use lifeboat_model::contract::ReturnCode;
use lifeboat_rest::client::{
    Client, ClientError, Followed, HostAddress, Identity, Outcome, VmRequest,
};
use lifeboat_rest::wire::InitiateFailover;
use lifeboat_rest::{BindUnixError, Limits, Listener, UnixAccess, bind_unix, rest, serve};
use lifeboat_service::api::{AccessRole, Caller};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::fake::Fake;
use crate::support::{Scene, own_access};

#[tokio::test]
async fn who_asks_is_what_the_kernel_says() {
    let scene = Scene::new();
    scene.get("/v1/host").await;
    let callers = scene.fake.callers();
    let own = own_access().daemon_uid;
    assert_eq!(
        callers,
        [Caller {
            name: format!("unix:{own}"),
            role: AccessRole::Administrator,
        }]
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_socket_has_the_rights_it_is_to_have_and_replaces_one_that_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rest.sock");
    let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
    let alone = own_access();
    let first = bind_unix(&path, alone).unwrap();
    assert_eq!(mode(), 0o600);
    assert!(matches!(
        bind_unix(&path, alone),
        Err(BindUnixError::InUse { .. })
    ));
    drop(first);
    let own_group = std::os::unix::fs::MetadataExt::gid(&folder.path().metadata().unwrap());
    let access = UnixAccess {
        operators_gid: Some(own_group),
        ..alone
    };
    let second = bind_unix(&path, access).unwrap();
    assert_eq!(mode(), 0o660);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    drop(second);
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        bind_unix(&file, alone),
        Err(BindUnixError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn an_open_connection_does_not_keep_the_interface_from_ending() {
    let scene = Scene::new();
    let idle = scene.connect().await;
    scene.get("/v1/host").await;
    scene.stop().await;
    drop(idle);
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A folder with an identity that trusts this authority.
    fn identity(&self, folder: &Path, signed_by: &Authority, name: &str) -> Identity {
        let (certificate, key) = signed_by.issue(name);
        std::fs::write(folder.join(Identity::CERTIFICATE), certificate).unwrap();
        std::fs::write(folder.join(Identity::KEY), key).unwrap();
        std::fs::write(folder.join(Identity::TRUST), self.pem()).unwrap();
        Identity::load(folder).unwrap()
    }

    fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue("localhost");
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        Arc::new(config.unwrap())
    }
}

/// The interface over TLS on a thread of its own, so that a client that blocks can use it.
struct TlsScene {
    fake: Arc<Fake>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TlsScene {
    fn new(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let config = authority.server(versions);
        let fake = Arc::new(Fake::new());
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let operations = Arc::clone(&fake);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let listener = Listener::Tls {
                    listener,
                    config: Arc::new(move || Arc::clone(&config)),
                    caller: Arc::new(caller),
                };
                let rest = rest(operations, Limits::default());
                serve(vec![listener], rest, async move { drop(stopped.await) }).await;
            });
        });
        Self {
            fake,
            address: told.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn client(&self, identity: Option<Identity>) -> Client {
        let address: HostAddress = format!("https://localhost:{}", self.address.port())
            .parse()
            .unwrap();
        Client::new(address, identity).unwrap()
    }
}

impl Drop for TlsScene {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Whoever has a certificate for `operator` is one; another name has no role.
fn caller(chain: &[CertificateDer<'_>]) -> Option<Caller> {
    let leaf = chain.first()?;
    let has = |name: &str| {
        leaf.windows(name.len())
            .any(|window| window == name.as_bytes())
    };
    has("operator.example").then(|| Caller {
        name: "operator.example".to_owned(),
        role: AccessRole::Operator,
    })
}

const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[test]
fn a_certificate_says_who_asks_and_what_they_may() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let scene = TlsScene::new(&ours, TLS13);
    let client = scene.client(Some(ours.identity(
        folder.path(),
        &ours,
        "operator.example",
    )));
    assert_eq!(client.host().unwrap().value.host, "alpha.example.com");
    assert_eq!(scene.fake.callers()[0].name, "operator.example");
    let force = VmRequest::InitiateFailover(InitiateFailover {
        point: Some(12),
        force: true,
    });
    assert_eq!(client.request("web1", &force).unwrap(), Outcome::Done);
    let denied = client.undefine_vm("web1").unwrap_err();
    assert_eq!(denied.return_code(), Some(ReturnCode::AccessDenied));
}

#[test]
fn whoever_has_no_role_is_told_so_and_whoever_is_not_trusted_gets_nowhere() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let scene = TlsScene::new(&ours, TLS13);
    let stranger = ours.identity(folder.path(), &ours, "stranger.example");
    let denied = scene.client(Some(stranger)).host().unwrap_err();
    assert_eq!(denied.return_code(), Some(ReturnCode::AccessDenied));
    // Signed by an authority that the host does not trust.
    let forged = ours.identity(folder.path(), &theirs, "operator.example");
    assert!(scene.client(Some(forged)).host().is_err());
    // The client does not trust the host.
    let careful = theirs.identity(folder.path(), &ours, "operator.example");
    let refused = scene.client(Some(careful)).host().unwrap_err();
    assert!(
        matches!(refused, ClientError::Connect { .. }),
        "{refused:?}"
    );
    let without = scene.client(None).host().unwrap_err();
    assert!(
        matches!(without, ClientError::Connect { .. }),
        "{without:?}"
    );
    assert_eq!(scene.fake.calls(), [""; 0]);
}

#[test]
fn an_older_tls_is_refused_even_where_the_configuration_has_it() {
    let ours = Authority::new();
    let scene = TlsScene::new(&ours, &[&rustls::version::TLS12, &rustls::version::TLS13]);
    let (certificate, key) = ours.issue("operator.example");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ours.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = std::net::TcpStream::connect(scene.address).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    use std::io::{Read as _, Write as _};
    let _ = stream.write_all(b"GET /v1/host HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert_eq!(scene.fake.calls(), [""; 0]);
}

#[test]
fn a_client_follows_events_and_goes_on_where_it_was() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let scene = TlsScene::new(&ours, TLS13);
    let client = scene.client(Some(ours.identity(
        folder.path(),
        &ours,
        "operator.example",
    )));
    for _ in 0..5 {
        scene.fake.happens("state_changed");
    }
    let mut last = Some(1);
    let mut seen = Vec::new();
    let mut follow = |last: &mut Option<u64>, until: u64| {
        let followed = client.follow_events(last, |followed| match followed {
            Followed::Event(event) => {
                seen.push(event.value.id);
                if event.value.id == until {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            }
            Followed::Gap(gap) => panic!("{gap:?}"),
        });
        followed.unwrap();
    };
    follow(&mut last, 3);
    assert_eq!(last, Some(3));
    follow(&mut last, 5);
    assert_eq!(seen, [2, 3, 4, 5]);
}

#[test]
fn a_client_is_told_what_is_missing_in_an_identity() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    ours.identity(folder.path(), &ours, "operator.example");
    for (file, contents) in [
        (Identity::KEY, "no key"),
        (Identity::CERTIFICATE, ""),
        (
            Identity::TRUST,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
    ] {
        let path = folder.path().join(file);
        let right = std::fs::read(&path).unwrap();
        std::fs::write(&path, contents).unwrap();
        assert!(Identity::load(folder.path()).is_err(), "{file}");
        std::fs::remove_file(&path).unwrap();
        let error = Identity::load(folder.path()).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        std::fs::write(&path, right).unwrap();
    }
    assert!(Identity::load(folder.path()).is_ok());
}
