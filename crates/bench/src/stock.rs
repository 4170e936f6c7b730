//! What people have without Lifeboat: nbdcopy, and QEMU's own incremental backup over NBD.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lifeboat_nbd::{Client as NbdClient, ClientOptions};
use lifeboat_sys::clock::Stopwatch;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::hosts::{Relay, free_port};
use crate::place::{self, Place};
use crate::program;
use crate::qemu::{Door, Qemu, export_uri};

/// The export of every disk.
const EXPORT: &str = "disk";

/// The bitmap of the changes that the next backup takes.
const BITMAP: &str = "changes";

/// Certificates of a server and a client on this machine, as QEMU and nbdcopy name the files.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority and what it signs in a new folder.
    pub fn make(folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        let mut params = named("authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().context("make a key")?;
        let authority = params.self_signed(&key).context("make an authority")?;
        write("ca-cert.pem", authority.pem())?;
        let issuer = Issuer::new(params, key);
        for (name, purpose) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let mut params = named("localhost")?;
            // QEMU refuses a certificate without the second, whatever its key.
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().context("make a key")?;
            let signed = params.signed_by(&key, &issuer);
            let certificate = signed.context("sign a certificate")?;
            write(&format!("{name}-cert.pem"), certificate.pem())?;
            write(&format!("{name}-key.pem"), key.serialize_pem())?;
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }
}

/// A certificate's contents for a name of this machine.
fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).context("name a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// A disk served over TCP on loopback by qemu-storage-daemon.
#[derive(Debug)]
pub struct Served {
    qemu: Qemu,
    address: String,
}

impl Served {
    pub fn plain(image: &Path) -> Result<Self> {
        let port = free_port()?;
        Self::at(
            image,
            Door::Tcp { port },
            format!("nbd://localhost:{port}/{EXPORT}"),
        )
    }

    /// With mutual TLS.
    pub fn tls(image: &Path, certificates: &Certificates) -> Result<Self> {
        let port = free_port()?;
        let folder = &certificates.folder;
        let door = Door::Tls {
            port,
            certificates: folder,
        };
        let address = format!(
            "nbds://localhost:{port}/{EXPORT}?tls-certificates={}",
            folder.display()
        );
        Self::at(image, door, address)
    }

    fn at(image: &Path, door: Door<'_>, address: String) -> Result<Self> {
        let mut qemu = Qemu::serve_raw(image, door)?;
        qemu.export(EXPORT)?;
        Ok(Self { qemu, address })
    }

    /// Copies the disk of `size` bytes to a new file with nbdcopy, until it is durable.
    pub fn copy_to_file(&self, place: &Place, size: u64) -> Result<Duration> {
        nbdcopy_to_file(&self.address, place, size)
    }

    /// What the server has used of the processors, and all programs that were run so far.
    pub fn cpu_with_programs(&self) -> Result<Duration> {
        Ok(place::whole_cpu_of(self.qemu.process())? + place::cpu_of_programs()?)
    }
}

/// Runs nbdcopy, and tells how long it took.
pub fn nbdcopy(address: &str, target: &Path) -> Result<Duration> {
    program::timed(Command::new("nbdcopy").arg(address).arg(target))
}

/// Copies an export of `size` bytes to a new file in `place`, until it is durable there.
pub fn nbdcopy_to_file(address: &str, place: &Place, size: u64) -> Result<Duration> {
    let target = place.join("copy.raw");
    let file = File::create(&target).with_context(|| format!("create {}", target.display()))?;
    file.set_len(size).context("size the copy")?;
    place.sync()?;
    let watch = Stopwatch::start();
    nbdcopy(address, &target)?;
    file.sync_all().context("sync the copy")?;
    Ok(watch.elapsed())
}

/// A disk that qemu-storage-daemon serves to a guest, and backs up by its bitmap of 4 KiB to
/// another one over mutual TLS, through a relay that counts.
#[derive(Debug)]
pub struct Backup {
    source: Qemu,
    target: Qemu,
    target_image: PathBuf,
    relay: Relay,
    jobs: usize,
    /// The guest's.
    pub client: NbdClient,
}

impl Backup {
    /// `image` is the guest's disk; its copy becomes the target, so that both begin alike.
    pub fn start(place: &Place, image: &Path, certificates: &Certificates) -> Result<Self> {
        let target_image = place.join("backup.raw");
        std::fs::copy(image, &target_image).context("copy the disk for its backup")?;
        let folder = &certificates.folder;
        let port = free_port()?;
        let door = Door::Tls {
            port,
            certificates: folder,
        };
        let mut target = Qemu::serve_raw(&target_image, door)?;
        target.export(EXPORT)?;
        let relay = Relay::start()?;
        relay.lead_to(([127, 0, 0, 1], port).into());
        let socket = place.join("guest.sock");
        let mut source = Qemu::start_silent_storage(image, &socket)?;
        source.export(EXPORT)?;
        source.track(BITMAP)?;
        let credentials = json!({
            "qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client",
            "verify-peer": true, "dir": folder,
        });
        source.execute("object-add", &credentials)?;
        let node = json!({
            "driver": "nbd", "node-name": "target", "export": EXPORT,
            "server": {"type": "inet", "host": "127.0.0.1", "port": relay.address().port().to_string()},
            "tls-creds": "tls", "tls-hostname": "localhost",
        });
        source.execute("blockdev-add", &node)?;
        let uri = export_uri(&socket, EXPORT)?;
        let client = NbdClient::connect(&uri, &ClientOptions::default());
        Ok(Self {
            source,
            target,
            target_image,
            relay,
            jobs: 0,
            client: client.context("connect to a disk")?,
        })
    }

    /// Backs up what changed since the last time, until it is durable.
    pub fn cycle(&mut self) -> Result<Duration> {
        /// How often the job is looked at.
        const LOOK: Duration = Duration::from_millis(1);
        self.jobs += 1;
        let id = format!("backup{}", self.jobs);
        let file = File::open(&self.target_image).context("open the backup")?;
        let watch = Stopwatch::start();
        let job = json!({
            "job-id": id, "device": "disk", "target": "target", "sync": "incremental",
            "bitmap": BITMAP, "auto-dismiss": false,
        });
        self.source.execute("blockdev-backup", &job)?;
        loop {
            let jobs = self.source.execute("query-jobs", &json!({}))?;
            let jobs = jobs.as_array().map_or(&[][..], Vec::as_slice);
            let job = jobs.iter().find(|job| job["id"] == id.as_str());
            let job = job.context("find the job of a backup")?;
            if job["status"] == "concluded" {
                if let Some(error) = job.get("error") {
                    bail!("back up by the bitmap: QEMU says {error}");
                }
                break;
            }
            std::thread::sleep(LOOK);
        }
        file.sync_all().context("sync the backup")?;
        let time = watch.elapsed();
        self.source.execute("job-dismiss", &json!({"id": id}))?;
        Ok(time)
    }

    /// What both processes have used of the processors.
    pub fn cpu(&self) -> Result<Duration> {
        let of = |qemu: &Qemu| place::whole_cpu_of(qemu.process());
        Ok(of(&self.source)? + of(&self.target)?)
    }

    /// What has passed between both, in both directions.
    pub fn bytes(&self) -> u64 {
        self.relay.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_and_a_backup_over_tls_hold_what_the_guest_wrote() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::new(home.path(), "bench").unwrap();
        let image = place.join("disk.raw");
        let size = 4 << 20;
        std::fs::write(&image, vec![7; size]).unwrap();
        let certificates = Certificates::make(&place.join("certificates")).unwrap();
        let mut backup = Backup::start(&place, &image, &certificates).unwrap();
        backup.client.write(65536, &[9; 8192]).unwrap();
        backup.client.flush().unwrap();
        backup.cycle().unwrap();
        let mut expected = vec![7; size];
        expected[65536..65536 + 8192].fill(9);
        assert!(std::fs::read(place.join("backup.raw")).unwrap() == expected);
        assert!(backup.bytes() > 8192);
        // Nothing changed since.
        let before = backup.bytes();
        backup.cycle().unwrap();
        assert!(backup.bytes() - before < 8192);
        drop(backup);
        let served = Served::tls(&image, &certificates).unwrap();
        served.copy_to_file(&place, size as u64).unwrap();
        assert!(std::fs::read(place.join("copy.raw")).unwrap() == expected);
    }
}
