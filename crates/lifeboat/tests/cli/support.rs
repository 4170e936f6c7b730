//! Running the program, and a store with a VM that the test itself writes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lifeboat_harness::{Activity, ShadowVm};
use lifeboat_model::Sequence;
use serde_json::Value;
use tempfile::TempDir;

/// How one run of the program ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("it prints UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("it prints UTF-8"),
        }
    }

    /// What it printed; it must have succeeded without a word on the error output.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// What it printed as JSON; it must have succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        parse(&self.done())
    }

    /// The error object of a run in JSON mode that must have failed with this code.
    #[track_caller]
    pub fn error(self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        if !self.stdout.is_empty() {
            parse(&self.stdout);
        }
        let error = parse(&self.stderr)["error"].clone();
        assert_eq!(error["exit_code"], code, "{error}");
        assert!(error["message"].is_string(), "{error}");
        error
    }
}

#[track_caller]
pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The program, ready to be given arguments.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.stdin(Stdio::null());
    command
}

/// Runs the program with text output.
pub fn lifeboat(arguments: &[&str]) -> Run {
    Run::of(program().args(arguments).output().unwrap())
}

/// Runs the program with JSON output.
pub fn lifeboat_json(arguments: &[&str]) -> Run {
    let run = program()
        .args(["--output", "json"])
        .args(arguments)
        .output();
    Run::of(run.unwrap())
}

/// Runs the program with JSON output and something on its input.
pub fn lifeboat_fed(arguments: &[&str], input: &[u8]) -> Run {
    let mut child = program()
        .args(["--output", "json"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that refuses its input does not read it to the end.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    Run::of(output)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's path is UTF-8")
}

/// A store made by the program, and the VM whose replica it is.
pub struct Scene {
    pub folder: TempDir,
    pub store: PathBuf,
    pub shadow: ShadowVm,
}

impl Scene {
    /// An empty store for a VM with disks of these sizes.
    pub fn new(seed: u64, sizes: &[u64]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As images and messages name it.
        let store = folder.path().canonicalize().unwrap().join("vm");
        let mut shadow = ShadowVm::new(seed, sizes);
        let state = folder.path().join("state.json");
        let disks: Vec<String> = shadow
            .names()
            .iter()
            .zip(sizes)
            .map(|(name, size)| format!("{name}={size}"))
            .collect();
        let mut arguments = vec!["store", "init", text(&store)];
        for disk in &disks {
            arguments.extend(["--disk", disk]);
        }
        arguments.extend(["--capture-state", text(&state)]);
        let made = lifeboat_json(&arguments).json();
        assert_eq!(made["folder"], text(&store));
        shadow.vm = made["vm"].as_str().unwrap().parse().unwrap();
        shadow.relationship = made["relationship"].as_str().unwrap().parse().unwrap();
        shadow.lineage = made["lineage"].as_str().unwrap().parse().unwrap();
        Self {
            folder,
            store,
            shadow,
        }
    }

    /// A store with this many applied recovery points, 1 and up.
    pub fn with_points(seed: u64, sizes: &[u64], points: u64) -> Self {
        let mut scene = Self::new(seed, sizes);
        for sequence in 1..=points {
            scene.receive();
            let applied = scene.run("store apply", &[]).json();
            assert_eq!(applied["points_made"], serde_json::json!([sequence]));
        }
        scene
    }

    /// Runs a command on the store with JSON output.
    pub fn run(&self, command: &str, more: &[&str]) -> Run {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push(text(&self.store));
        arguments.extend(more);
        lifeboat_json(&arguments)
    }

    /// Lets the guest work, and gives what changed to the store. Answers with the receipt.
    pub fn receive(&mut self) -> Value {
        self.shadow.work(Activity::MIXED);
        let stream = self.shadow.capture();
        lifeboat_fed(&["store", "receive", text(&self.store)], &stream).json()
    }

    /// Where a file of this name would lie beside the store.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Exports every disk of a point and compares it with what the guest wrote.
    pub fn compare_exports(&self, sequence: u64) {
        let out = self.beside("export.raw");
        let number = sequence.to_string();
        let expected = self.shadow.at(Sequence::new(sequence));
        for (disk, expected) in self.shadow.names().iter().zip(expected) {
            let options = [&number, "--disk", disk.as_str(), "--out", text(&out)];
            let exported = self.run("store point export", &options).json();
            assert_eq!(exported["size"], expected.len());
            assert!(
                std::fs::read(&out).unwrap() == *expected,
                "{disk} at point {sequence}"
            );
            std::fs::remove_file(&out).unwrap();
        }
    }
}
