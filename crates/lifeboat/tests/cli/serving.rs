//! Recovery points over NBD, read by stock clients.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use lifeboat_harness::run_tool;
use lifeboat_model::Sequence;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Run, Scene, parse, program, text};

const SIZES: [u64; 2] = [5 << 20, (1 << 20) + 512];

/// A server under way.
pub struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it printed when it was ready.
    pub exports: Vec<Value>,
}

impl Serving {
    pub fn start(scene: &Scene, options: &[&str]) -> Self {
        let mut child = program()
            .args([
                "--output",
                "json",
                "store",
                "point",
                "serve",
                text(&scene.store),
            ])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.ends_with("\n}\n") {
            let read = stdout.read_line(&mut printed).unwrap();
            assert!(read > 0, "it ended: {:?}", child.wait_with_output());
        }
        let exports = parse(&printed)["exports"].as_array().unwrap().clone();
        Self {
            child,
            stdout,
            exports,
        }
    }

    pub fn stop(self) -> Run {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.end()
    }

    fn end(mut self) -> Run {
        let mut rest = String::new();
        self.stdout.read_line(&mut rest).unwrap();
        assert_eq!(rest, "");
        Run::of(self.child.wait_with_output().unwrap())
    }
}

/// Copies an export with a stock client.
fn copy(uri: &str, folder: &Path) -> Vec<u8> {
    let raw = folder.join("copied.raw");
    let copied = run_tool("nbdcopy", &[uri, text(&raw)]).unwrap();
    let said = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "{uri}: {said}");
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

#[test]
fn stock_clients_read_a_served_point_and_nobody_else_gets_the_store() {
    let scene = Scene::with_points(40, &SIZES, 3);
    let socket = scene.beside("s o?cket");
    let serving = Serving::start(&scene, &["2", "--unix", text(&socket)]);
    assert_eq!(serving.exports.len(), 2);
    let expected = scene.shadow.at(Sequence::new(2));
    for (export, expected) in serving.exports.iter().zip(expected) {
        let uri = export["uri"].as_str().unwrap();
        assert_eq!(export["size"], expected.len());
        assert!(copy(uri, scene.folder.path()) == *expected, "{uri}");

        let map = run_tool("nbdinfo", &["--map", "--json", uri]).unwrap();
        let map = parse(&String::from_utf8(map.stdout).unwrap());
        let mut end = 0;
        for extent in map.as_array().unwrap() {
            let (offset, length) = (&extent["offset"], &extent["length"]);
            assert_eq!(offset.as_u64(), Some(end));
            end += length.as_u64().unwrap();
            if extent["type"] == 3 {
                let range = end - length.as_u64().unwrap()..end;
                let bytes = &expected[range.start as usize..range.end as usize];
                assert!(bytes.iter().all(|&byte| byte == 0));
            }
        }
        assert_eq!(end, expected.len() as u64);

        let raw = scene.beside("expected.raw");
        std::fs::write(&raw, expected).unwrap();
        let compare = ["compare", "-f", "raw", "-F", "raw", uri, text(&raw)];
        let compared = run_tool("qemu-img", &compare).unwrap();
        assert!(compared.status.success(), "{compared:?}");
        let write = ["-f", "raw", "-c", "write 0 4k", uri];
        let written = run_tool("qemu-io", &write).unwrap();
        assert!(!written.status.success(), "{written:?}");
    }
    let error = scene.run("store status", &[]).error(6);
    let message = error["message"].as_str().unwrap();
    let holder = format!("lifeboat store point serve, process {}", serving.child.id());
    assert!(message.contains(&holder), "{message}");
    serving.stop().done();
    assert!(!socket.exists());
    scene.run("store status", &[]).json();
}

#[test]
fn a_server_for_one_client_ends_with_it() {
    let scene = Scene::with_points(41, &SIZES, 1);
    let options = ["1", "--disk", "disk1", "--tcp", "127.0.0.1:0", "--once"];
    let serving = Serving::start(&scene, &options);
    assert_eq!(serving.exports.len(), 1);
    let uri = serving.exports[0]["uri"].as_str().unwrap().to_owned();
    let copied = copy(&uri, scene.folder.path());
    assert!(copied == scene.shadow.at(Sequence::new(1))[1]);
    serving.end().done();
}

#[test]
fn disks_do_not_cross_a_network_in_plain_text() {
    let scene = Scene::with_points(42, &SIZES, 1);
    let error = scene
        .run("store point serve", &["1", "--tcp", "0.0.0.0:0"])
        .error(2);
    assert!(error["message"].as_str().unwrap().contains("--tls-cert"));
}

#[test]
fn what_cannot_be_served_is_refused_before_anybody_connects() {
    let scene = Scene::with_points(43, &SIZES, 1);
    let socket = scene.beside("socket");
    let serve = |options: &[&str]| scene.run("store point serve", options);
    serve(&["9", "--unix", text(&socket)]).error(5);
    serve(&["1", "--disk", "sdx", "--unix", text(&socket)]).error(5);
    std::fs::write(&socket, "no socket").unwrap();
    serve(&["1", "--unix", text(&socket)]).error(3);
    assert_eq!(std::fs::read(&socket).unwrap(), b"no socket");
    let missing = scene.beside("missing.pem");
    let tls = ["--tls-cert", text(&missing), "--tls-key", text(&missing)];
    let mut options = vec!["1", "--tcp", "127.0.0.1:0"];
    options.extend(tls);
    serve(&options).error(5);
    std::fs::write(&missing, "no certificate").unwrap();
    serve(&options).error(1);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    serve(&["1", "--tcp", &address]).error(6);
}

#[test]
fn with_certificates_only_clients_that_show_theirs_are_served() {
    let scene = Scene::with_points(44, &SIZES, 1);
    let pki = scene.beside("pki");
    std::fs::create_dir(&pki).unwrap();
    write_certificates(&pki);
    let file = |name: &str| pki.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (
        file("server-cert.pem"),
        file("server-key.pem"),
        file("ca-cert.pem"),
    );
    let options = [
        "1",
        "--tcp",
        "127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-ca",
        &ca,
    ];
    let serving = Serving::start(&scene, &options);
    let uri = serving.exports[0]["uri"].as_str().unwrap();
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    let uri = uri.replace("127.0.0.1", "localhost");
    let with_pki = format!("{uri}?tls-certificates={}", text(&pki));
    let copied = copy(&with_pki, scene.folder.path());
    assert!(copied == scene.shadow.at(Sequence::new(1))[0]);

    let plain = uri.replace("nbds://", "nbd://");
    assert!(!run_tool("nbdinfo", &[&plain]).unwrap().status.success());
    let without_own = scene.beside("without-own");
    std::fs::create_dir(&without_own).unwrap();
    std::fs::copy(pki.join("ca-cert.pem"), without_own.join("ca-cert.pem")).unwrap();
    let stranger = format!("{uri}?tls-certificates={}", text(&without_own));
    assert!(!run_tool("nbdinfo", &[&stranger]).unwrap().status.success());
    serving.stop().done();
}

/// An authority, a server named localhost and a client, under the names libnbd looks for.
pub fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let named = |name: &str| {
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters
    };
    let mut authority = named("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&authority_key).unwrap();
    let write = |name: &str, pem: String| std::fs::write(folder.join(name), pem).unwrap();
    write("ca-cert.pem", certificate.pem());
    let issuer = Issuer::new(authority, authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let certificate = named(name).signed_by(&key, &issuer).unwrap();
        write(&format!("{name}-cert.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}
