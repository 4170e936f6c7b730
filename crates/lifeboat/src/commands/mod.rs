//! The commands, one module each, and what they share.

pub mod backup;
pub mod catalog;
pub mod certificate;
pub mod completions;
pub mod delta;
pub mod init;
pub mod man;
pub mod reference;
pub mod remote;
pub mod serve;
pub mod store;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{Consistency, Timestamp};
use lifeboat_store::Store;
use lifeboat_sys::disk::RealDisk;

use crate::exit::Failure;
use crate::output::printable;

/// Opens a store for a command; `command` is told to others who want it meanwhile.
fn open_store(folder: &Path, command: &'static str) -> Result<Store, Failure> {
    let folder = absolute(folder)?;
    Ok(Store::open(Arc::new(RealDisk), &folder, &holder(command))?)
}

/// Who has the store, for others who are refused.
fn holder(command: &'static str) -> String {
    format!("lifeboat {command}, process {}", std::process::id())
}

/// The folder's own absolute path: images name files below it, and labels may be symlinks.
fn absolute(folder: &Path) -> Result<PathBuf, Failure> {
    let failed = |source| Failure::File {
        what: "find",
        path: folder.to_owned(),
        source,
    };
    match std::fs::canonicalize(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map_err(failed),
    }
    let path = std::path::absolute(folder).map_err(failed)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = std::fs::canonicalize(parent).map_err(|source| Failure::File {
                what: "find",
                path: parent.to_owned(),
                source,
            })?;
            Ok(parent.join(name))
        }
        _ => Ok(path),
    }
}

/// Opens a delta or a receipt; `-` is the standard input.
fn open_input(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path.as_os_str() != "-" {
        let file = File::open(path);
        return Ok(Box::new(file.map_err(|source| Failure::File {
            what: "open",
            path: path.to_owned(),
            source,
        })?));
    }
    if io::stdin().is_terminal() {
        let what = "this is not typed in: name a file, or send one to the standard input";
        return Err(Failure::Usage { what: what.into() });
    }
    Ok(Box::new(io::stdin().lock()))
}

/// Asks on the terminal before something that cannot be undone. Without a terminal the
/// answer must have been given as `--yes`.
fn confirm(question: &str) -> Result<(), Failure> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        let what = format!("{question} Nobody can be asked here: give --yes to do it.");
        return Err(Failure::Usage { what });
    }
    // A question that cannot be printed is not answered with yes either.
    let _ = write!(stderr, "{} Type yes to do it: ", printable(question));
    let _ = stderr.flush();
    let mut answer = String::new();
    let read = stdin.read_line(&mut answer);
    read.map_err(|source| Failure::Read {
        input: "the answer".to_owned(),
        source,
    })?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Failure::NotConfirmed)
    }
}

/// A path as it is printed; JSON can hold only text.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A time as it is printed: RFC 3339, UTC.
fn time(timestamp: Timestamp) -> String {
    timestamp.to_string()
}

/// What a moment promises to the software in the guest, in one word.
fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Crash => "crash",
        Consistency::Application => "application",
    }
}
