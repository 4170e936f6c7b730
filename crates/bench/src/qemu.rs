//! QEMU and its storage daemon, driven over QMP on their standard input and output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use lifeboat_nbd::NbdUri;
use serde_json::{Value, json};

/// The export of a disk that does not change.
pub const VIEW: &str = "view";

/// Where an NBD server answers.
#[derive(Debug, Clone, Copy)]
pub enum Door<'a> {
    Unix(&'a Path),
    /// On loopback.
    Tcp {
        port: u16,
    },
    /// On loopback with mutual TLS, by the certificates of this folder.
    Tls {
        port: u16,
        certificates: &'a Path,
    },
}

/// A process that speaks QMP. Dropping it ends the process.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Qemu {
    /// Starts a machine without devices that opens the image, and returns when it runs.
    pub fn start_machine(image: &Path) -> Result<Self> {
        let mut qemu = Self::start(
            Command::new("qemu-system-x86_64")
                .args(["-machine", "none", "-accel", "tcg", "-nodefaults"])
                .args(["-display", "none", "-qmp", "stdio", "-blockdev"])
                .arg(qcow2_node(image)),
        )?;
        let status = qemu.execute("query-status", &json!({}))?;
        if status["running"] != true {
            bail!("start a machine on {}: QEMU says {status}", image.display());
        }
        Ok(qemu)
    }

    /// Starts the storage daemon with the raw image as node `disk` and an NBD server at `socket`.
    pub fn start_storage(image: &Path, socket: &Path) -> Result<Self> {
        Self::serve_raw(image, Door::Unix(socket))
    }

    /// As [`start_storage`](Self::start_storage); what it prints is thrown away, because each of
    /// its backups warns of the same.
    pub fn start_silent_storage(image: &Path, socket: &Path) -> Result<Self> {
        Self::serve(&raw_node(image), Door::Unix(socket), Stdio::null())
    }

    /// Starts the storage daemon with this node and an NBD server.
    fn serve(node: &str, door: Door<'_>, errors: Stdio) -> Result<Self> {
        let mut command = Command::new("qemu-storage-daemon");
        command
            .args(["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"])
            .args(["--blockdev", node]);
        let tcp = |port| format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
        let server = match door {
            Door::Unix(socket) => format!("addr.type=unix,addr.path={}", option_value(socket)),
            Door::Tcp { port } => tcp(port),
            Door::Tls { port, certificates } => {
                let credentials = format!(
                    "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
                    option_value(certificates)
                );
                command.args(["--object", &credentials]);
                format!("{},tls-creds=tls", tcp(port))
            }
        };
        Self::start_with(command.args(["--nbd-server", &server]), errors)
    }

    /// Starts the storage daemon with the raw image as node `disk`, behind this door.
    pub fn serve_raw(image: &Path, door: Door<'_>) -> Result<Self> {
        Self::serve(&raw_node(image), door, Stdio::inherit())
    }

    /// Starts the storage daemon with the qcow2 image as node `disk`, behind this door.
    pub fn serve_qcow2(image: &Path, door: Door<'_>) -> Result<Self> {
        Self::serve(&qcow2_node(image), door, Stdio::inherit())
    }

    fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command, Stdio::inherit())
    }

    fn start_with(command: &mut Command, errors: Stdio) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name}: is it installed?"))?;
        let input = child.stdin.take().expect("BUG: standard input is a pipe");
        let output = child.stdout.take().expect("BUG: standard output is a pipe");
        let mut qemu = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        qemu.execute("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    /// The process's number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Runs one command and returns its answer; events that come meanwhile are ignored.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        let line = format!("{request}\n");
        self.input
            .write_all(line.as_bytes())
            .with_context(|| format!("ask QEMU to {command}"))?;
        loop {
            let mut line = String::new();
            let len = self
                .output
                .read_line(&mut line)
                .with_context(|| format!("wait for QEMU's answer to {command}"))?;
            if len == 0 {
                bail!("QEMU ended before it answered {command}; what it printed is above");
            }
            let message: Value = serde_json::from_str(&line)
                .with_context(|| format!("understand what QEMU says to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
        }
    }

    /// Begins to mark changes of `disk` in a bitmap of 4 KiB.
    pub fn track(&mut self, bitmap: &str) -> Result<()> {
        let arguments = json!({"node": "disk", "name": bitmap, "granularity": 4096});
        self.execute("block-dirty-bitmap-add", &arguments)?;
        Ok(())
    }

    /// Exports `disk` for reading and writing under this name.
    pub fn export(&mut self, name: &str) -> Result<()> {
        let arguments =
            json!({"type": "nbd", "id": name, "node-name": "disk", "name": name, "writable": true});
        self.execute("block-export-add", &arguments)?;
        Ok(())
    }

    /// Exports `disk` as [`VIEW`] with its bitmap, which marks nothing more from here on.
    pub fn freeze(&mut self, bitmap: &str) -> Result<()> {
        let named = json!({"node": "disk", "name": bitmap});
        self.execute("block-dirty-bitmap-disable", &named)?;
        let arguments = json!({"type": "nbd", "id": VIEW, "node-name": "disk", "name": VIEW, "bitmaps": [named]});
        self.execute("block-export-add", &arguments)?;
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address of an export on a unix socket.
pub fn export_uri(socket: &Path, export: &str) -> Result<NbdUri> {
    NbdUri::unix(socket, export).context("address an export")
}

fn raw_node(image: &Path) -> String {
    format!(
        "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename={}",
        option_value(image)
    )
}

fn qcow2_node(image: &Path) -> String {
    format!(
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={}",
        option_value(image)
    )
}

/// A path in a list of options: a comma in it is doubled.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_end_an_option() {
        let node = qcow2_node(Path::new("/a,b"));
        assert!(node.ends_with("file.filename=/a,,b"), "{node}");
    }

    #[test]
    fn a_storage_daemon_answers_refuses_and_ends() {
        let home = tempfile::tempdir().unwrap();
        let image = home.path().join("disk.raw");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let mut qemu = Qemu::start_storage(&image, &home.path().join("nbd.sock")).unwrap();
        qemu.track("b").unwrap();
        qemu.export("guest").unwrap();
        qemu.freeze("b").unwrap();
        let refused = qemu.execute("no-such-command", &json!({})).unwrap_err();
        assert!(refused.to_string().contains("no-such-command"), "{refused}");
        let answer = qemu.execute("query-block-exports", &json!({})).unwrap();
        assert_eq!(answer.as_array().unwrap().len(), 2);
        drop(qemu);
        assert!(Qemu::start_storage(Path::new("/no/such/image"), Path::new("/no/such")).is_err());
    }
}
