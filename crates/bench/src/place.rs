//! The folder that a row works in, and the file system and device under it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// A folder of the benchmark's own. What a row puts there goes with the row.
#[derive(Debug, Clone)]
pub struct Place {
    folder: PathBuf,
}

/// Sectors that a device has moved since it came up, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceBytes {
    pub read: u64,
    pub written: u64,
}

impl DeviceBytes {
    /// What was moved since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            read: self.read.saturating_sub(earlier.read),
            written: self.written.saturating_sub(earlier.written),
        }
    }
}

impl Place {
    /// Makes an empty folder `name` below `parent`; what an earlier run left there goes.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        let parent = parent
            .canonicalize()
            .with_context(|| format!("find {}", parent.display()))?;
        let place = Self {
            folder: parent.join(name),
        };
        place.clear()?;
        Ok(place)
    }

    /// Empties the folder.
    pub fn clear(&self) -> Result<()> {
        remove_tree(&self.folder)?;
        fs::create_dir(&self.folder).with_context(|| format!("create {}", self.folder.display()))
    }

    /// Removes the folder.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.folder)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes everything out, so that what is measured next pays for nothing but itself.
    pub fn sync(&self) -> Result<()> {
        let folder =
            File::open(&self.folder).with_context(|| format!("open {}", self.folder.display()))?;
        rustix::fs::syncfs(&folder).with_context(|| format!("sync {}", self.folder.display()))
    }

    /// Writes everything out and forgets what was read.
    pub fn sync_and_forget(&self) -> Result<()> {
        self.sync()?;
        fs::write("/proc/sys/vm/drop_caches", "3")
            .context("drop the page cache: start the benchmark as root")
    }

    /// Reads every file, so that what is measured next need not.
    pub fn warm(&self) -> Result<()> {
        for path in files_below(&self.folder)? {
            let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            std::io::copy(&mut file, &mut std::io::sink())
                .with_context(|| format!("read {}", path.display()))?;
        }
        Ok(())
    }

    /// The counters of the device that holds the folder.
    pub fn device_bytes(&self) -> Result<DeviceBytes> {
        let device = fs::metadata(&self.folder)
            .with_context(|| format!("look at {}", self.folder.display()))?
            .dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = format!("/sys/dev/block/{major}:{minor}/stat");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("read {path}: the file system of the benchmark must lie on one block device")
        })?;
        parse_counters(&text).with_context(|| format!("understand {path}"))
    }
}

fn parse_counters(text: &str) -> Result<DeviceBytes> {
    const SECTOR: u64 = 512;
    let fields: Vec<u64> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match fields[..] {
        [_, _, read, _, _, _, written, ..] => Ok(DeviceBytes {
            read: read * SECTOR,
            written: written * SECTOR,
        }),
        _ => bail!("it has {} fields", fields.len()),
    }
}

/// Every regular file below `folder`; symlinks are not followed.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in listing {
            let entry = entry.with_context(|| format!("list {}", folder.display()))?;
            let kind = entry.file_type().context("look at a file")?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// Whether two files hold the same bytes.
pub fn have_same_bytes(one: &Path, other: &Path) -> Result<bool> {
    const STEP: u64 = 1 << 20;
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    loop {
        for (file, bytes) in [(&mut one, &mut ours), (&mut other, &mut theirs)] {
            bytes.clear();
            let read = file.take(STEP).read_to_end(bytes);
            read.context("read files to compare them")?;
        }
        if ours != theirs || ours.is_empty() {
            return Ok(ours == theirs);
        }
    }
}

/// Disk space of all files below `folder`. A file that goes meanwhile does not count.
pub fn occupied(folder: &Path) -> Result<u64> {
    let blocks = files_below(folder)?
        .iter()
        .filter_map(|path| fs::symlink_metadata(path).ok())
        .map(|found| found.blocks() * 512)
        .sum();
    Ok(blocks)
}

/// Removes a folder with all that is in it, or nothing if it is not there.
pub fn remove_tree(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Makes `to` the same tree as `from`. Files for which `is_shared` holds become another name of
/// the same file, the others are copied.
pub fn link_tree(from: &Path, to: &Path, is_shared: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().context("look at a file")?;
        let done = if kind.is_dir() {
            link_tree(&old, &new, is_shared)?;
            Ok(())
        } else if kind.is_symlink() {
            fs::read_link(&old).and_then(|target| std::os::unix::fs::symlink(target, &new))
        } else if is_shared(&old) {
            fs::hard_link(&old, &new)
        } else {
            fs::copy(&old, &new).map(|_| ())
        };
        done.with_context(|| format!("make {}", new.display()))?;
    }
    Ok(())
}

/// Processor time that this process has used, all threads together.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Processor time that another process has used, all living threads together.
pub fn cpu_of(process: u32) -> Result<Duration> {
    let tasks = format!("/proc/{process}/task");
    let mut nanoseconds = 0;
    for entry in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
        let path = entry.context("list threads")?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let first = text.split_whitespace().next();
        nanoseconds += first.and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// The unit in which Linux counts processor time.
const TICK: Duration = Duration::from_millis(10);

/// Processor time that another process has used, with all threads that have ended; in steps of
/// 10 ms.
pub fn whole_cpu_of(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = parse_ticks(&text, OWN).with_context(|| format!("understand {path}"))?;
    Ok(TICK * ticks)
}

/// Processor time of all programs that this process has run to their end; in steps of 10 ms.
pub fn cpu_of_programs() -> Result<Duration> {
    let path = "/proc/self/stat";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let ticks = parse_ticks(&text, CHILDREN).with_context(|| format!("understand {path}"))?;
    Ok(TICK * ticks)
}

/// The fields in which a process's own time begins, and that of its children which have ended,
/// counted after its name.
const OWN: usize = 11;
const CHILDREN: usize = 13;

/// Ticks in user and in kernel mode together: two fields. The name is in parentheses, and
/// anything may be in it.
fn parse_ticks(stat: &str, first: usize) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(first);
    let user: u32 = fields.next()?.parse().ok()?;
    let kernel: u32 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

/// Memory of a process that is resident, in bytes.
pub fn memory_of(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("understand {path}"))?;
    Ok(kib << 10)
}

/// Files and sockets that a process has open.
pub fn open_files_of(process: u32) -> Result<usize> {
    let path = format!("/proc/{process}/fd");
    let entries = fs::read_dir(&path).with_context(|| format!("list {path}"))?;
    Ok(entries.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_bytes_and_a_short_line_is_refused() {
        let counters = parse_counters("1 2 30 4 5 6 70 8 9 10 11").unwrap();
        assert_eq!((counters.read, counters.written), (30 * 512, 70 * 512));
        assert!(parse_counters("1 2 3").is_err());
        assert!(parse_counters("a b c d e f g").is_err());
    }

    #[test]
    fn a_linked_tree_shares_what_it_is_told_to_and_copies_the_rest() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::new(home.path(), "bench").unwrap();
        let from = place.join("from");
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/shared"), "1").unwrap();
        fs::write(from.join("a/own"), "2").unwrap();
        std::os::unix::fs::symlink("a/own", from.join("link")).unwrap();
        let to = place.join("to");
        link_tree(&from, &to, &|path| path.ends_with("shared")).unwrap();
        fs::write(to.join("a/own"), "changed").unwrap();
        fs::write(to.join("a/shared"), "both").unwrap();
        assert_eq!(fs::read_to_string(from.join("a/own")).unwrap(), "2");
        assert_eq!(fs::read_to_string(from.join("a/shared")).unwrap(), "both");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("a/own"));
        assert_eq!(files_below(&to).unwrap().len(), 2);
        place.clear().unwrap();
        assert!(!to.exists());
        place.remove().unwrap();
        place.remove().unwrap();
    }

    #[test]
    fn processor_time_grows_and_is_found_for_any_process() {
        let before = own_cpu();
        let mut sum = 0_u64;
        while own_cpu() <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_of(std::process::id()).unwrap() > Duration::ZERO);
        assert!(cpu_of(u32::MAX).is_err());
        assert!(whole_cpu_of(u32::MAX).is_err());
    }

    #[test]
    fn files_are_the_same_only_to_their_last_byte() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = home.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let long = vec![3; 3 << 20];
        let first = write("first", &long);
        assert!(have_same_bytes(&first, &write("same", &long)).unwrap());
        assert!(!have_same_bytes(&first, &write("short", &long[1..])).unwrap());
        let mut other = long;
        *other.last_mut().unwrap() = 4;
        assert!(!have_same_bytes(&first, &write("other", &other)).unwrap());
    }

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 25 3 4";
        assert_eq!(parse_ticks(stat, OWN), Some(175));
        assert_eq!(parse_ticks(stat, CHILDREN), Some(7));
        assert_eq!(parse_ticks("7 (a) S 1", OWN), None);
    }

    #[test]
    fn this_process_has_memory_and_open_files() {
        let this = std::process::id();
        assert!(memory_of(this).unwrap() > 1 << 20);
        assert!(open_files_of(this).unwrap() > 2);
    }
}
