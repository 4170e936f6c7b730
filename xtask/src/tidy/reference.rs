//! References that are generated from the code and kept in the tree, so that
//! a change of them is seen in review.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The command line's reference, and how it is made anew.
const CLI: &str = "docs/cli.md";
const CLI_COMMAND: [&str; 7] = [
    "run",
    "--quiet",
    "--release",
    "--package=lifeboat",
    "--bin=lifeboat",
    "--",
    "reference",
];

/// Compares each generated reference in the tree with what the code generates.
pub fn check_references(workspace: &Workspace) -> Result<()> {
    let file = workspace.root.join(CLI);
    if !file.exists() {
        println!("tidy: there is no {CLI} to compare");
        return Ok(());
    }
    let kept = fs::read_to_string(&file).with_context(|| format!("read {CLI}"))?;
    let generated = generate(&workspace.root)?;
    match first_difference(&kept, &generated) {
        None => Ok(()),
        Some(line) => bail!(
            "{CLI}:{line}: is not what the program generates; run `cargo {} > {CLI}` and review the change",
            CLI_COMMAND.join(" ")
        ),
    }
}

fn generate(root: &Path) -> Result<String> {
    process::output(process::cargo().args(CLI_COMMAND).current_dir(root))
}

/// The number of the first line that differs, counted from 1.
fn first_difference(kept: &str, generated: &str) -> Option<usize> {
    if kept == generated {
        return None;
    }
    let common = kept
        .split_inclusive('\n')
        .zip(generated.split_inclusive('\n'))
        .take_while(|(kept, generated)| kept == generated)
        .count();
    Some(common + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
        assert_eq!(first_difference("a\nb\n", ""), Some(1));
        assert_eq!(first_difference("a", "a\n"), Some(1));
    }
}
