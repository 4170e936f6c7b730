//! What no compiler checks: crate arrows, file sizes, forbidden words,
//! decision records, links, and generated references.
//!
//! Every check looks at the whole tree and reports all that it finds, so one
//! run shows everything there is to mend.

mod arrows;
mod papers;
mod reference;
mod rust;
mod sources;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

pub use reference::check_references;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the root of the tree.
    file: PathBuf,
    /// Counted from 1; 0 when the whole file is meant.
    line: usize,
    what: String,
}

impl Finding {
    fn of_file(file: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::at(file, 0, what)
    }

    fn at(file: impl Into<PathBuf>, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Runs every check.
pub fn run(workspace: &Workspace) -> Result<()> {
    check_tree(workspace)?;
    check_references(workspace)
}

/// The checks that need nothing built.
pub fn check_tree(workspace: &Workspace) -> Result<()> {
    let files = sources::read_tree(&workspace.root)?;
    let mut findings = arrows::check(&workspace.crates);
    findings.extend(sources::check(&files));
    findings.extend(papers::check(&files));
    findings.sort();
    for warning in sources::warnings(&files) {
        eprintln!("warning: {warning}");
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings above", findings.len());
    }
    println!("tidy: {} files are in order", files.len());
    Ok(())
}
