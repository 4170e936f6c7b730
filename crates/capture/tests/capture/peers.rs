//! Real programs as peers. Servers put themselves in the background once they are
//! ready, so nothing here waits by sleeping.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_nbd::NbdUri;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs a program that must succeed; one that is missing fails the test.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program} ({error}): install qemu-utils"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A server in the background with a folder of its own, killed when dropped. Its socket
/// is `s`, its process id is in `pid`.
pub struct Background {
    pid_file: PathBuf,
    folder: TempDir,
}

impl Background {
    /// Every `{}` in the arguments stands for the folder.
    pub fn start(folder: TempDir, program: &str, arguments: &[&str]) -> Self {
        let path = folder.path().to_str().unwrap();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| argument.replace("{}", path))
            .collect();
        // Its output goes to a file: a pipe would stay open in the background.
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).unwrap();
        let status = Command::new(program)
            .args(&arguments)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .status()
            .unwrap_or_else(|error| {
                panic!("cannot run {program} ({error}): install qemu-utils and nbdkit")
            });
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(status.success(), "{program} {arguments:?}: {said}");
        Self {
            pid_file: folder.path().join("pid"),
            folder,
        }
    }

    pub fn nbdkit(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = ["-P", "{}/pid", "-U", "{}/s"];
        Self::start(folder, "nbdkit", &[&own[..], arguments].concat())
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri::unix(self.path().join("s"), export).unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The QMP side of a QEMU program.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that nobody has waited for yet.
    events: Vec<Value>,
}

impl Qmp {
    pub fn connect(path: &Path) -> Self {
        let mut qmp = Self {
            stream: BufReader::new(UnixStream::connect(path).unwrap()),
            events: Vec::new(),
        };
        assert!(qmp.line().get("QMP").is_some());
        qmp.ask("qmp_capabilities", &json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        self.events.clear();
        let message = json!({"execute": command, "arguments": arguments});
        let stream = self.stream.get_mut();
        stream.write_all(message.to_string().as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
            self.events.push(answer);
        }
    }

    /// Waits for an event, of the last command or a later one, whose data have `value` at
    /// `key`.
    pub fn event(&mut self, name: &str, key: &str, value: &str) {
        let wanted = |event: &Value| event["event"] == name && event["data"][key] == value;
        while !self.events.iter().any(wanted) {
            let event = self.line();
            self.events.push(event);
        }
    }
}
