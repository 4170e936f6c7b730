//! `lifeboat support-bundle`: what somebody who helps needs to see, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use lifeboat_rest::client::{Answer, ClientError};
use lifeboat_rest::wire::Vm;
use lifeboat_sys::clock;
use serde::Serialize;
use serde_json::{Value, json};

use super::Remote;
use crate::commands::init::write_secret;
use crate::daemon::{Config, DEFAULT_CONFIG};
use crate::exit::Failure;
use crate::new_file::refuse_existing;
use crate::output::facts;

/// The most files of one store that are listed.
const MAX_FILES: usize = 20_000;

/// How many of the newest events are taken.
const EVENTS: usize = 1000;

#[derive(Debug, Args)]
pub struct SupportArgs {
    /// The host's configuration, when it is on this machine
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,

    /// The folder to make
    #[arg(value_name = "DIR")]
    into: PathBuf,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    folder: PathBuf,
    files: Vec<String>,
    /// What could not be had, and why.
    missing: BTreeMap<String, String>,
}

/// The bundle under way. What cannot be had is noted, and the rest goes on: a bundle is wanted
/// when something does not work.
struct Bundle {
    made: Made,
}

/// Gathers the bundle. It has no keys, no passwords, and nothing of what is on disks.
///
/// # Errors
/// When the folder exists, or a file cannot be written.
pub fn run(args: &SupportArgs, remote: &Remote) -> Result<(), Failure> {
    refuse_existing(&args.into)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&args.into)
        .map_err(|source| Failure::File {
            what: "make the folder",
            path: args.into.clone(),
            source,
        })?;
    let mut bundle = Bundle {
        made: Made {
            folder: args.into.clone(),
            files: Vec::new(),
            missing: BTreeMap::new(),
        },
    };
    bundle.add_machine()?;
    let config = bundle.add_config(&args.config)?;
    let client = &remote.client;
    bundle.add_answer("host.json", client.host())?;
    let vms = client.vms();
    let known = vms
        .as_ref()
        .map_or_else(|_| Vec::new(), |vms| vms.value.clone());
    bundle.add_answer("vms.json", vms)?;
    bundle.add_answer("jobs.json", client.jobs())?;
    bundle.add_answer("events.json", client.newest_events(EVENTS))?;
    for vm in known.iter().filter(|vm| !vm.relationships.is_empty()) {
        let id = &vm.name;
        bundle.add_answer(&format!("vm-{id}-health.json"), client.health(id))?;
        bundle.add_answer(&format!("vm-{id}-check.json"), client.check(id))?;
        bundle.add_answer(&format!("vm-{id}-statistics.json"), client.statistics(id))?;
        if let Some(store) = store_of(vm) {
            bundle.add_answer(&format!("vm-{id}-points.json"), client.points(id))?;
            bundle.add_store(id, &store)?;
        }
    }
    bundle.add_space(config.as_ref(), &known)?;
    remote.output.print(&bundle.made, describe)
}

/// The folder of the VM's store, if this host has one.
fn store_of(vm: &Vm) -> Option<PathBuf> {
    let head = Path::new(&vm.disks.first()?.path);
    // STORE/disks/DISK/head.raw
    let store = head.ancestors().nth(3)?;
    (head.file_name()? == "head.raw").then(|| store.to_owned())
}

impl Bundle {
    fn write(&mut self, name: &str, text: &[u8]) -> Result<(), Failure> {
        write_secret(&self.made.folder.join(name), text)?;
        self.made.files.push(name.to_owned());
        Ok(())
    }

    fn add(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(value);
        self.write(name, &text.expect("BUG: JSON can be written"))
    }

    fn add_answer<T>(
        &mut self,
        name: &str,
        answer: Result<Answer<T>, ClientError>,
    ) -> Result<(), Failure> {
        match answer {
            Ok(answer) => self.add(name, &answer.json),
            Err(error) => {
                let why = error.to_string();
                self.made.missing.insert(name.to_owned(), why);
                Ok(())
            }
        }
    }

    fn add_machine(&mut self) -> Result<(), Failure> {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let machine = json!({
            "gathered_at": clock::wall().to_string(),
            "program": env!("CARGO_PKG_VERSION"),
            "kernel": text(system.release()),
            "machine": text(system.machine()),
        });
        self.add("machine.json", &machine)
    }

    /// The configuration as it is understood, without what may be a secret.
    fn add_config(&mut self, path: &Path) -> Result<Option<Config>, Failure> {
        let name = "config.toml";
        let config = match Config::read(path) {
            Ok(config) => config,
            Err(error) => {
                self.made.missing.insert(name.to_owned(), error.to_string());
                return Ok(None);
            }
        };
        let text = toml::to_string_pretty(&without_secrets(config.clone()));
        let text = text.expect("BUG: a configuration can be written as TOML");
        self.write(name, text.as_bytes())?;
        Ok(Some(config))
    }

    /// Names, lengths and times of a store's files, and the space that they take.
    fn add_store(&mut self, vm: &str, store: &Path) -> Result<(), Failure> {
        let name = format!("vm-{vm}-store.json");
        match files_of(store) {
            Ok(files) => self.add(&name, &json!({ "folder": store, "files": files })),
            Err(error) => {
                let why = format!("list {}: {error}", store.display());
                self.made.missing.insert(name, why);
                Ok(())
            }
        }
    }

    fn add_space(&mut self, config: Option<&Config>, vms: &[Vm]) -> Result<(), Failure> {
        let mut folders: Vec<PathBuf> = vms.iter().filter_map(store_of).collect();
        if let Some(config) = config {
            folders.extend([config.state.clone(), config.run.clone()]);
        }
        folders.sort();
        folders.dedup();
        let mut space = serde_json::Map::new();
        for folder in folders {
            let told = match rustix::fs::statvfs(&folder) {
                Ok(found) => json!({
                    "total_bytes": found.f_blocks.saturating_mul(found.f_frsize),
                    "free_bytes": found.f_bavail.saturating_mul(found.f_frsize),
                    "free_inodes": found.f_favail,
                }),
                Err(error) => json!({ "error": error.to_string() }),
            };
            space.insert(folder.display().to_string(), told);
        }
        self.add("space.json", &Value::Object(space))
    }
}

/// The address of a webhook often has a key in it.
fn without_secrets(mut config: Config) -> Config {
    if let Some(webhook) = &mut config.alerts.webhook {
        let parsed: Option<http::Uri> = webhook.url.parse().ok();
        let shown = parsed.and_then(|url| {
            let host = url.host()?;
            Some(format!("{}://{host}/...", url.scheme_str()?))
        });
        webhook.url = shown.unwrap_or_else(|| "...".to_owned());
    }
    if let Some(mail) = &mut config.alerts.mail {
        mail.user = mail.user.as_ref().map(|_| "...".to_owned());
    }
    config
}

fn files_of(store: &Path) -> std::io::Result<Vec<Value>> {
    let mut files = Vec::new();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let known = entry.metadata()?;
            if known.is_dir() {
                folders.push(entry.path());
                continue;
            }
            if files.len() == MAX_FILES {
                return Ok(files);
            }
            let path = entry.path();
            let name = path.strip_prefix(store).unwrap_or(&path);
            files.push(json!({
                "file": name,
                "bytes": known.len(),
                "allocated_bytes": known.blocks() * 512,
                "changed": known.mtime(),
            }));
        }
    }
    Ok(files)
}

fn describe(made: &Made) -> String {
    let mut text = facts(&[("folder", made.folder.display().to_string())]);
    text.push_str("\nInside, all of it text; look through it before you give it away:\n");
    for file in &made.files {
        text.push_str(&format!("  {file}\n"));
    }
    if !made.missing.is_empty() {
        text.push_str("\nNot to be had:\n");
        let missing: Vec<(&str, String)> = made
            .missing
            .iter()
            .map(|(name, why)| (name.as_str(), why.clone()))
            .collect();
        text.push_str(&facts(&missing));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::{MailConfig, MailTls, WebhookConfig};

    #[test]
    fn a_bundle_has_no_key_of_a_webhook_and_no_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lifeboat.toml");
        let text = "host = \"a\"\nstate = \"/s\"\nrun = \"/r\"\n[peer]\nlisten = \"127.0.0.1:1\"\naddress = \"a:1\"\n";
        std::fs::write(&path, text).unwrap();
        let mut config = Config::read(&path).unwrap();
        config.alerts.webhook = Some(WebhookConfig {
            url: "https://key1@hooks.example.com/services/key2?key=key3".to_owned(),
            ca_file: "/ca".into(),
            token_file: Some("/token".into()),
        });
        config.alerts.mail = Some(MailConfig {
            server: "mail".to_owned(),
            port: 25,
            tls: MailTls::Tls,
            ca_file: "/ca".into(),
            from: "a@b.c".to_owned(),
            to: vec!["a@b.c".to_owned()],
            user: Some("key4".to_owned()),
            password_file: Some("/p".into()),
        });
        let text = toml::to_string_pretty(&without_secrets(config)).unwrap();
        assert!(!text.contains("key"), "{text}");
        assert!(text.contains("https://hooks.example.com/..."), "{text}");
    }
}
