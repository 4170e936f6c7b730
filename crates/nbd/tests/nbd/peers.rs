//! Real programs as peers. Servers put themselves in the background once they are
//! ready, so nothing here waits by sleeping.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat_nbd::NbdUri;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The Debian package of a program.
fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdkit" => "nbdkit",
        _ => "qemu-utils",
    }
}

/// Runs a program to its end; a program that is missing fails the test.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => panic!(
            "cannot run {program} ({error}): this test needs the package {}",
            package(program)
        ),
    }
}

/// Runs a program that must succeed, and gives what it printed.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn json_output(program: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&output(program, arguments)).unwrap()
}

/// A server in the background, killed when dropped.
pub struct Background {
    pid_file: PathBuf,
    pub folder: TempDir,
}

impl Background {
    /// Starts `program`, whose arguments come from the folder it may use.
    pub fn start(program: &str, arguments: impl Fn(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, program, arguments)
    }

    pub fn start_in(
        folder: TempDir,
        program: &str,
        arguments: impl Fn(&Path) -> Vec<String>,
    ) -> Self {
        let pid_file = folder.path().join("pid");
        let arguments = arguments(folder.path());
        // Its output goes to a file: a pipe would stay open in the background.
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let status = Command::new(program)
            .args(&arguments)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run {program} ({error}): this test needs the package {}",
                    package(program)
                )
            });
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(status.success(), "{program} {arguments:?}: {log}");
        Self { pid_file, folder }
    }

    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri::unix(self.folder.path().join("s"), export).unwrap()
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

/// The path of a file in a folder as an argument.
pub fn at(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

pub fn qemu_nbd(folder: TempDir, arguments: &[&str]) -> Background {
    Background::start_in(folder, "qemu-nbd", |folder| {
        let own = ["--fork", "-t", "-e", "8", "--pid-file"];
        let mut all: Vec<String> = own.iter().map(ToString::to_string).collect();
        all.push(at(folder, "pid"));
        all.extend(["-k".to_owned(), at(folder, "s")]);
        all.extend(
            arguments
                .iter()
                .map(|argument| argument.replace("{}", folder.to_str().unwrap())),
        );
        all
    })
}

pub fn nbdkit(arguments: &[&str]) -> Background {
    Background::start("nbdkit", |folder| {
        let mut all = vec!["-P".to_owned(), at(folder, "pid")];
        all.extend(["-U".to_owned(), at(folder, "s")]);
        all.extend(
            arguments
                .iter()
                .map(|argument| argument.replace("{}", folder.to_str().unwrap())),
        );
        all
    })
}

/// The QMP side of a qemu-storage-daemon.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(path: &Path) -> Self {
        let stream = BufReader::new(UnixStream::connect(path).unwrap());
        let mut qmp = Self { stream };
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
        let message = json!({"execute": command, "arguments": arguments});
        self.stream
            .get_mut()
            .write_all(message.to_string().as_bytes())
            .unwrap();
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
        }
    }
}
