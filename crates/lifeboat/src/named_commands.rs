//! Every command that a message or a page names can be typed as it stands there.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::cli::Cli;

/// A command and the file that names it.
struct Named {
    words: Vec<String>,
    path: PathBuf,
}

/// What pages write for something that only the reader knows, or leave out.
fn is_placeholder(word: &str) -> bool {
    let bare = word.split('=').next_back().unwrap_or(word);
    let is_capital = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_uppercase());
    is_capital || word.contains('…') || word.contains('{')
}

/// The words of a line as a shell has them, up to what is no longer the command.
fn words_of(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| ['"', '\''].contains(c));
        let (word, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).unwrap_or((&rest[1..], "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        if ["#", "&&", "|", ">", "2>", ";", "\\"].contains(&word) {
            break;
        }
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

fn commands_in(path: &Path) -> Vec<Named> {
    let text = std::fs::read_to_string(path).unwrap();
    let named = |line: &str| Named {
        words: words_of(line),
        path: path.to_owned(),
    };
    let mut commands = Vec::new();
    // In running text and messages: between backquotes.
    for (at, _) in text.match_indices("`lifeboat ") {
        let line = text[at + 1..].split(['`', '\n']).next().unwrap_or_default();
        // Not what a program puts together.
        if !line.contains(['{', '(']) {
            commands.push(named(line));
        }
    }
    // In blocks of a page: a line of its own, perhaps behind a prompt.
    let is_page = path.extension().is_some_and(|extension| extension == "md");
    for line in text
        .lines()
        .filter(|line| is_page && line.starts_with("    "))
    {
        let line = line.trim();
        let line = line.split_once("# ").map_or(line, |(prompt, command)| {
            if prompt.contains(' ') {
                line
            } else {
                command.trim()
            }
        });
        if line.starts_with("lifeboat ") {
            commands.push(named(line));
        }
    }
    commands
}

fn files(folder: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
}

#[test]
fn every_command_that_is_named_can_be_typed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths = vec![root.join("README.md")];
    files(&root.join("docs"), "md", &mut paths);
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        files(&entry.unwrap().path().join("src"), "rs", &mut paths);
    }
    let commands: Vec<Named> = paths.iter().flat_map(|path| commands_in(path)).collect();
    assert!(commands.len() > 200, "only {} were found", commands.len());
    let mut wrong = Vec::new();
    for Named { words, path } in commands {
        let Err(error) = Cli::try_parse_from(&words) else {
            continue;
        };
        let is_right = match error.kind() {
            // What is named need not be complete.
            ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                let is_cut = words.last().is_some_and(|word| word.starts_with("--"));
                is_cut || words.iter().any(|word| is_placeholder(word))
            }
            _ => false,
        };
        if !is_right {
            let (path, error) = (path.display(), error.to_string());
            wrong.push(format!("{path}: {}\n  {error}", words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
