//! The machine that was measured, described without naming it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::program;

/// What a reader has to know of the machine to judge the numbers.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// The type of the file system that the rows use unless they say otherwise.
    pub file_system: String,
    pub qemu: String,
    pub nbdcopy: String,
}

impl Machine {
    /// Describes this machine and the file system of `folder`.
    pub fn describe(folder: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let cpus = read("/proc/cpuinfo")?;
        let processor = field(&cpus, "model name").unwrap_or("of unknown kind");
        let memory = read("/proc/meminfo")?;
        let memory_kib: u64 = field(&memory, "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease")?;
        let file_system = program::output(
            Command::new("findmnt")
                .args(["-n", "-o", "FSTYPE", "-T"])
                .arg(folder),
        )?;
        let qemu = program::output(Command::new("qemu-img").arg("--version"))?;
        let nbdcopy = program::output(Command::new("nbdcopy").arg("--version"))?;
        Ok(Self {
            processor: processor.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (memory_kib + (1 << 19)) >> 20,
            kernel: version_only(kernel.trim()),
            file_system: file_system.trim().to_owned(),
            qemu: version_only(word_after(&qemu, "version")),
            nbdcopy: version_only(word_after(&nbdcopy, "nbdcopy")),
        })
    }

    /// One sentence for the page.
    pub fn sentence(&self) -> String {
        format!(
            "{} cores ({}), {} GiB of memory, Linux {}, {}; QEMU {}, nbdcopy {}.",
            self.cores,
            self.processor,
            self.memory_gib,
            self.kernel,
            self.file_system,
            self.qemu,
            self.nbdcopy
        )
    }

    #[cfg(test)]
    pub fn example() -> Self {
        Self {
            processor: "P".to_owned(),
            cores: 2,
            memory_gib: 8,
            kernel: "6.1".to_owned(),
            file_system: "ext4".to_owned(),
            qemu: "10.0.2".to_owned(),
            nbdcopy: "1.14.2".to_owned(),
        }
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == name);
    values.next().map(|(_, value)| value.trim())
}

fn word_after<'a>(text: &'a str, word: &str) -> &'a str {
    let mut words = text.split_whitespace();
    words.find(|found| *found == word);
    words.next().unwrap_or("of unknown version")
}

/// The numbers of a version, without what a builder appends.
fn version_only(version: &str) -> String {
    let numbers = version.split(|c: char| !c.is_ascii_digit() && c != '.');
    numbers.into_iter().next().unwrap_or(version).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_versions_are_found_in_what_programs_print() {
        assert_eq!(field("a\nMemTotal:  12 kB\n", "MemTotal"), Some("12 kB"));
        assert_eq!(field("a: b", "c"), None);
        assert_eq!(
            word_after("qemu-img version 10.0.2 (D)", "version"),
            "10.0.2"
        );
        assert_eq!(version_only("6.18.1-builder7"), "6.18.1");
    }
}
