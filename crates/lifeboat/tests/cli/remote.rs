//! Commands that ask a host, before a service that the test controls.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use lifeboat_model::contract::{JobState, ReturnCode};
use lifeboat_rest::client::{Client, HostAddress};
use lifeboat_rest::{Limits, Listener, UnixAccess, bind_unix, rest, serve};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::fake::Fake;
use crate::support::{Run, parse, program};

/// A host on a socket, served by a thread until it is dropped.
struct Host {
    fake: Arc<Fake>,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("rest.sock");
        let access = UnixAccess {
            daemon_uid: rustix::process::geteuid().as_raw(),
            operators_gid: None,
        };
        let fake = Arc::new(Fake::new());
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = {
            let (operations, socket) = (Arc::clone(&fake), socket.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let listener = bind_unix(&socket, access).unwrap();
                    tell.send(()).unwrap();
                    let listeners = vec![Listener::Unix { listener, access }];
                    let rest = rest(operations, Limits::default());
                    serve(listeners, rest, async move { drop(stopped.await) }).await;
                });
            })
        };
        told.recv().unwrap();
        Self {
            fake,
            socket,
            stop: Some(stop),
            thread: Some(thread),
            _folder: folder,
        }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(["--host", &self.address()]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(self.command(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Run {
        Run::of(
            self.command(arguments)
                .args(["--output", "json"])
                .output()
                .unwrap(),
        )
    }

    fn client(&self) -> Client {
        Client::new(HostAddress::Unix(self.socket.clone()), None).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

const JOB: &str = "77777777777777777777777777777777";

/// What people see of everything.
const TRANSCRIPT: &[&str] = &[
    "host show",
    "host settings",
    "host settings --recovery-server on",
    "host test-connection replica.example.com:8444",
    "authorization list",
    "authorization add *.example.org --trust-group g --storage /srv/r",
    "authorization modify *.example.org --trust-group g --storage /srv/r --keep-hours 4",
    "authorization remove *",
    "vm list",
    "vm show web1",
    "vm define db --disk vda=20G",
    "vm undefine web1",
    "vm start web1",
    "vm stop web1",
    "replication show web1",
    "replication settings web1",
    "replication settings web1 --interval 30",
    "replication start web1 --at 2026-12-01T22:00:00Z",
    "replication now web1",
    "point list web1",
    "point verify web1",
    "job list",
    "job show 77777777777777777777777777777777",
    "job cancel 77777777777777777777777777777777",
    "stats web1",
    "stats web1 --reset",
    "health web1",
    "check web1",
    "events",
    "audit",
    "vm show web2",
    "failover commit web1",
    "failover start web1 --force",
    "failover revert web1",
    "replication remove web1",
    "point remove web1 12",
];

#[test]
fn what_people_see_word_for_word() {
    let host = Host::new();
    host.fake.happens("state_changed");
    let mut transcript = String::new();
    for command in TRANSCRIPT {
        let arguments: Vec<&str> = command.split(' ').collect();
        let run = host.run(&arguments);
        transcript.push_str(&format!(
            "$ lifeboat {command}\n{}{}",
            run.stdout, run.stderr
        ));
        if run.code != 0 {
            transcript.push_str(&format!("(exit code {})\n", run.code));
        }
        transcript.push('\n');
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden/remote.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &transcript).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (shown, expected) in transcript.split("\n$ ").zip(expected.split("\n$ ")) {
        assert_eq!(shown, expected);
    }
    assert_eq!(
        transcript, expected,
        "run once with UPDATE_GOLDEN=1 if this is right"
    );
}

#[test]
fn json_is_what_the_host_sent() {
    let host = Host::new();
    host.fake.happens("state_changed");
    let client = host.client();
    let cases: Vec<(&[&str], Value)> = vec![
        (&["host", "show"], client.host().unwrap().json),
        (&["host", "settings"], client.host_settings().unwrap().json),
        (&["vm", "list"], client.vms().unwrap().json),
        (&["vm", "show", "web1"], client.vm("web1").unwrap().json),
        (
            &["replication", "show", "web1"],
            client.relationships("web1").unwrap().json,
        ),
        (
            &["replication", "settings", "web1"],
            client.relationships("web1").unwrap().json,
        ),
        (
            &["point", "list", "web1"],
            client.points("web1").unwrap().json,
        ),
        (&["job", "list"], client.jobs().unwrap().json),
        (&["job", "show", JOB], client.job(JOB).unwrap().json),
        (&["stats", "web1"], client.statistics("web1").unwrap().json),
        (&["health", "web1"], client.health("web1").unwrap().json),
        (&["check", "web1"], client.check("web1").unwrap().json),
        (&["events"], client.events(0, 100).unwrap().json),
        (&["audit"], client.audit(100).unwrap().json),
        (
            &["authorization", "list"],
            client.authorization_entries().unwrap().json,
        ),
        (&["vm", "suspend-nothing"], Value::Null),
        (&["replication", "suspend", "web1"], json!({})),
    ];
    for (arguments, expected) in cases {
        if expected.is_null() {
            host.json(arguments).error(2);
        } else {
            assert_eq!(host.json(arguments).json(), expected, "{arguments:?}");
        }
    }
    let error = host.json(&["vm", "show", "web2"]).error(5);
    assert_eq!(error["message"], "there is no such VM");
    assert_eq!(error["hint"], "see `lifeboat vm list`");
    assert_eq!(error["return_code"], 32_779);
}

#[test]
fn commands_ask_for_what_they_say() {
    let host = Host::new();
    for (command, call) in [
        ("vm start web1", "StartVm"),
        ("vm stop web1", "StopVm { how: ShutDown }"),
        ("vm stop web1 --power-off", "StopVm { how: PowerOff }"),
        (
            "vm define db --memory 2G --processors 4 --disk vda=1M --image vdb=/srv/b.raw",
            r#"define_vm NewVm { id: None, name: "db", memory_mib: 2048, processors: 4, disks: [NewVmDisk { id: DiskId(vda), size: Some(DiskSize(1048576)), image: None }, NewVmDisk { id: DiskId(vdb), size: None, image: Some("/srv/b.raw") }] }"#,
        ),
        (
            "vm define db --id 000102030405060708090a0b0c0d0e0f --image vda=/srv/a.raw",
            r#"define_vm NewVm { id: Some(VmId(000102030405060708090a0b0c0d0e0f)), name: "db", memory_mib: 1024, processors: 1, disks: [NewVmDisk { id: DiskId(vda), size: None, image: Some("/srv/a.raw") }] }"#,
        ),
        (
            "replication enable web1 b:8444 --onto-kept-replica 000102030405060708090a0b0c0d0e0f",
            "EnableReplication b:8444 None {} onto 000102030405060708090a0b0c0d0e0f",
        ),
        (
            "replication enable web1 b:8444 --host-name b.example --interval 30 --history 4 --compression off",
            r#"EnableReplication b:8444 Some("b.example") {"replication_interval":30,"recovery_history":4,"compression_enabled":false}"#,
        ),
        (
            "replication settings web1 --all-disks --bandwidth 10M --bandwidth-window 08:00-18:00=none",
            r#"ModifySettings {"included_disks":[],"bandwidth_limit":{"bytes_per_second":10485760,"windows":[{"start":"08:00","end":"18:00"}]}}"#,
        ),
        (
            "replication settings web1 --recovery-server c.example --recovery-port 9000 --disk vda --disk vdb",
            r#"ModifySettings {"recovery_connection_point":"c.example","recovery_server_port_number":9000,"included_disks":["vda","vdb"]}"#,
        ),
        (
            "replication start web1",
            "StartReplication { kind: NetworkTransfer, at: None }",
        ),
        (
            "replication start web1 --by seed --at 1970-01-01T00:00:01Z",
            "StartReplication { kind: SeededNetworkTransfer, at: Some(Timestamp(1000000)) }",
        ),
        (
            "replication start web1 --cancel",
            "CancelInitialReplication",
        ),
        ("replication suspend web1", "Suspend"),
        ("replication resume web1", "Resume"),
        ("replication resync web1", "Resynchronize { at: None }"),
        ("replication resync web1 --cancel", "CancelResynchronize"),
        ("replication reverse web1", "ReverseReplication None {}"),
        (
            "replication reverse web1 --to a:1 --history 0",
            r#"ReverseReplication Some("a:1") {"recovery_history":0}"#,
        ),
        ("replication now web1", "ReplicateNow"),
        ("replication remove web1 --yes", "RemoveReplication"),
        ("failover test web1", "TestFailover { point: None }"),
        (
            "failover test web1 --point 12",
            "TestFailover { point: Some(Sequence(12)) }",
        ),
        ("failover test-end web1", "EndTestFailover"),
        ("failover prepare web1", "PreparePlannedFailover"),
        (
            "failover prepare web1 --cancel",
            "CancelPlannedFailover { how: Checked }",
        ),
        (
            "failover prepare web1 --cancel --force --yes",
            "CancelPlannedFailover { how: Forced }",
        ),
        (
            "failover start web1",
            "InitiateFailover { point: None, how: Checked }",
        ),
        (
            "failover start web1 --point 99 --force --yes",
            "InitiateFailover { point: Some(Sequence(99)), how: Forced }",
        ),
        ("failover revert web1 --yes", "RevertFailover"),
        (
            "failover survivor web1 --this-host --yes",
            "NameSurvivor(ThisHost)",
        ),
        (
            "failover survivor web1 --other-host --yes",
            "NameSurvivor(OtherHost)",
        ),
        ("failover commit web1 --yes", "CommitFailover"),
        ("point make web1", "MakePoint"),
        (
            "point verify web1 12",
            "VerifyPoint { point: Some(Sequence(12)) }",
        ),
        ("point verify web1", "VerifyPoint { point: None }"),
        (
            "point remove web1 12 --yes",
            "RemovePoint { point: Sequence(12) }",
        ),
        ("stats web1 --reset", "ResetStatistics"),
        (
            "job list --running",
            "jobs JobFilter { vm: None, which: Running }",
        ),
        ("events --since 5 --limit 3", "events 5 3"),
        ("audit --limit 9", "audit 9"),
        (
            "host settings --authentication certificate --monitoring-interval 3600",
            r#"modify_service_settings {"allowed_authentication_type":"certificate","monitoring_interval":3600}"#,
        ),
        (
            "authorization remove *.example.com",
            "remove_authorization_entry *.example.com",
        ),
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        host.run(&arguments).done();
        assert_eq!(host.fake.calls(), [call], "{command}");
    }
}

#[test]
fn every_return_code_has_its_exit_code() {
    let host = Host::new();
    for (code, exit) in [
        (ReturnCode::Failed, 1),
        (ReturnCode::AccessDenied, 4),
        (ReturnCode::NotSupported, 3),
        (ReturnCode::UnknownStatus, 1),
        (ReturnCode::Timeout, 6),
        (ReturnCode::InvalidParameter, 2),
        (ReturnCode::InUse, 6),
        (ReturnCode::InvalidState, 3),
        (ReturnCode::IncorrectDataType, 2),
        (ReturnCode::NotAvailable, 6),
        (ReturnCode::OutOfMemory, 1),
        (ReturnCode::FileNotFound, 5),
    ] {
        host.fake.reject(code, "it was not to be", "");
        let error = host.json(&["replication", "suspend", "web1"]).error(exit);
        assert_eq!(error["message"], "it was not to be");
        assert_eq!(error["return_code"], code.number());
        assert!(error.get("hint").is_none(), "{error}");
        assert_eq!(host.run(&["vm", "list"]).code, exit, "{code}");
    }
}

#[test]
fn a_job_is_waited_for_and_its_failure_is_the_commands() {
    let host = Host::new();
    host.fake.start_jobs();
    host.fake
        .end_job(JobState::Completed, ReturnCode::Completed, "");
    let done = host.run(&["failover", "start", "web1"]).done();
    assert_eq!(done, format!("failed over (job {JOB}, 9 s)\n"));
    assert_eq!(host.json(&["job", "wait", JOB]).json()["job_state"], 7);

    host.fake.end_job(
        JobState::Exception,
        ReturnCode::InvalidState,
        "the VM runs\u{1b}[2J",
    );
    let run = host.run(&["failover", "start", "web1"]);
    assert_eq!((run.code, run.stdout.as_str()), (3, ""));
    assert_eq!(
        run.stderr,
        "error: Initiate failover: the VM runs\u{fffd}[2J\n"
    );
    let run = host.json(&["job", "wait", JOB]);
    assert_eq!(parse(&run.stdout)["error_code"], 32_775);
    assert_eq!(run.error(3)["return_code"], 32_775);

    host.fake
        .end_job(JobState::Terminated, ReturnCode::Completed, "");
    let run = host.run(&["job", "wait", JOB]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stderr,
        "error: Initiate failover: the job ended as terminated\n"
    );
}

#[test]
fn a_command_that_is_not_to_wait_shows_the_job() {
    let host = Host::new();
    host.fake.start_jobs();
    let shown = host.run(&["failover", "start", "web1", "--no-wait"]).done();
    assert_eq!(
        shown,
        format!("job    {JOB}\ndoes   Initiate failover\nstate  Running\n")
    );
    let job = host
        .json(&["failover", "start", "web1", "--no-wait"])
        .json();
    assert_eq!(job, host.client().job(JOB).unwrap().json);
}

#[test]
fn a_command_ends_when_its_job_does() {
    let host = Host::new();
    host.fake.start_jobs();
    let mut child = host
        .command(&["failover", "start", "web1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has seen the job run more than once when it ends.
    let mut looks = 0;
    while looks < 3 {
        looks += host
            .fake
            .calls()
            .iter()
            .filter(|call| *call == "job")
            .count();
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    host.fake
        .end_job(JobState::Completed, ReturnCode::Completed, "");
    let run = Run::of(child.wait_with_output().unwrap());
    assert!(run.done().starts_with("failed over"));
}

const IRREVERSIBLE: &[&str] = &[
    "failover commit web1",
    "failover revert web1",
    "failover start web1 --force",
    "failover start web1 --force --point 12",
    "failover prepare web1 --cancel --force",
    "replication remove web1",
    "point remove web1 12",
];

#[test]
fn what_cannot_be_undone_is_not_done_without_a_yes() {
    let host = Host::new();
    for command in IRREVERSIBLE {
        let arguments: Vec<&str> = command.split(' ').collect();
        let error = host.json(&arguments).error(2);
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("--yes") && message.contains("lost"),
            "{message}"
        );
        let asked = host.fake.calls();
        let harmless =
            |call: &String| call.starts_with("vm ") || call == "points" || call == "check";
        assert!(asked.iter().all(harmless), "{command}: {asked:?}");
    }
}

#[test]
fn on_a_terminal_a_typed_yes_does_it() {
    let host = Host::new();
    for command in IRREVERSIBLE {
        for (typed, code) in [("no\n", 3), ("\n", 3), ("yes\n", 0)] {
            let program = env!("CARGO_BIN_EXE_lifeboat");
            let command = format!("'{program}' --host '{}' {command}", host.address());
            let mut child = Command::new("script")
                .args(["-qec", &command, "/dev/null"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("script, of the package bsdutils, is needed");
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(typed.as_bytes()).unwrap();
            assert_eq!(
                child.wait().unwrap().code(),
                Some(code),
                "{command} {typed:?}"
            );
            drop(stdin);
            let done = host
                .fake
                .calls()
                .iter()
                .any(|call| !call.starts_with("vm ") && call != "points" && call != "check");
            assert_eq!(done, code == 0, "{command} {typed:?}");
        }
    }
}

#[test]
fn events_are_followed_as_they_happen() {
    let host = Host::new();
    host.fake.happens("old");
    host.fake.happens("state_changed");
    let mut child = host
        .command(&["events", "--follow", "--since", "1", "--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(parse(&lines.next().unwrap().unwrap())["id"], 2);
    host.fake.happens("job_ended");
    let event = parse(&lines.next().unwrap().unwrap());
    assert_eq!(
        (&event["id"], &event["kind"]),
        (&json!(3), &json!("job_ended"))
    );
    drop(host);
    // The host has ended, which is not what was asked for.
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn a_host_that_is_not_there_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let address = format!("unix:{}", socket.display());
    let ask = |arguments: &[&str]| {
        let mut command = program();
        command
            .args(["--output", "json"])
            .args(arguments)
            .args(["vm", "list"]);
        Run::of(command.output().unwrap())
    };
    let error = ask(&["--host", &address]).error(6);
    assert!(
        error["hint"].as_str().unwrap().contains("lifeboat serve"),
        "{error}"
    );
    ask(&["--host", "https://localhost:1"]).error(2);
    ask(&["--host", "http://localhost"]).error(2);
    let missing = folder.path().join("identity");
    let identity = missing.to_str().unwrap();
    ask(&["--host", "https://localhost:1", "--identity", identity]).error(5);
}

/// Answers one request with these bytes.
fn answer_with(bytes: &'static [u8]) -> (TempDir, String, std::thread::JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("host.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        // Whoever does not like the beginning does not read the end.
        let _ = stream.write_all(bytes);
    });
    (folder, format!("unix:{}", socket.display()), answering)
}

#[test]
fn what_is_no_answer_is_told_and_never_believed() {
    for bytes in [
        &b""[..],
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n\xff\xff\xff\xff\xff",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n[]",
    ] {
        let (_folder, address, answering) = answer_with(bytes);
        let mut command = program();
        command.args(["--output", "json", "--host", &address, "vm", "list"]);
        Run::of(command.output().unwrap()).error(1);
        answering.join().unwrap();
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = program().arg("man").output().unwrap();
    assert!(Run::of(run).done().contains(".TH lifeboat 1"));
    let run = program()
        .args(["man", "--dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    Run::of(run).done();
    for page in [
        "lifeboat.1",
        "lifeboat-failover-commit.1",
        "lifeboat-store-point-list.1",
    ] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
}

#[test]
fn a_support_bundle_has_what_the_host_says_and_names_what_it_could_not_have() {
    let host = Host::new();
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("bundle");
    let into_text = into.to_str().unwrap();
    let arguments = ["support-bundle", "--config", "/nonexistent", into_text];
    let made = host.json(&arguments).json();
    let listed: Vec<&str> = made["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let vm = crate::fake::VM;
    for name in [
        "host.json",
        "vms.json",
        "jobs.json",
        "events.json",
        "space.json",
    ] {
        assert!(listed.contains(&name), "{listed:?}");
    }
    let health = format!("vm-{vm}-health.json");
    assert!(listed.contains(&health.as_str()), "{listed:?}");
    let mut there: Vec<String> = std::fs::read_dir(&into)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let mut listed: Vec<String> = listed.into_iter().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(there, listed);
    assert!(made["missing"]["config.toml"].is_string(), "{made}");
    let text = std::fs::read_to_string(into.join(health)).unwrap();
    assert_eq!(
        parse(&text)["reasons"][0]["what"],
        "more than a fifth of the cycles were missed"
    );
    // A second one does not replace the first.
    host.json(&arguments).error(3);
}

#[test]
fn a_support_bundle_of_a_host_that_refuses_is_made_nevertheless() {
    let host = Host::new();
    host.fake
        .reject(ReturnCode::Failed, "the catalog fails", "");
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("bundle");
    let made = host
        .json(&[
            "support-bundle",
            "--config",
            "/nonexistent",
            into.to_str().unwrap(),
        ])
        .json();
    assert_eq!(made["missing"]["host.json"], "the catalog fails");
    assert!(into.join("machine.json").exists());
}
