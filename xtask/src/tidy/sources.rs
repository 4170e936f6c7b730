//! Files of the tree: their sizes and the words that have no place in them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Finding;
use super::rust::{code_only, lines_without_tests};

/// One text file.
#[derive(Debug)]
pub struct SourceFile {
    /// Relative to the root of the tree.
    pub path: PathBuf,
    pub text: String,
}

/// Lines, without tests at the end, at which a file is a question and at
/// which it is refused.
const LONG: usize = 600;
const TOO_LONG: usize = 800;

/// Below this directory, and only there, memory safety is argued by hand.
const UNSAFE_HOME: &str = "crates/sys";

/// Macros that mark unfinished work or a debugging session.
const FORBIDDEN_MACROS: [&str; 3] = ["dbg", "todo", "unimplemented"];

/// The beginnings of paths that exist on one machine only. They are put
/// together here so that this file does not contain them.
const MACHINE_PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/tmp/bash", "_jobs")];

/// Directories of the tree that hold what was built or found, not written.
const NO_SOURCES: [&str; 5] = [
    ".git",
    "target",
    "fuzz/target",
    "fuzz/corpus",
    "fuzz/artifacts",
];

/// Larger files are data.
const LARGEST_TEXT: u64 = 1 << 20;

/// Reads all text files below `root`, in the order of their paths.
pub fn read_tree(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let path = entry.path();
            let below = path.strip_prefix(root).unwrap_or(&path);
            let kind = entry
                .file_type()
                .with_context(|| format!("look at {}", path.display()))?;
            if kind.is_file()
                && let Some(text) = read_text(&path)?
            {
                let path = below.to_owned();
                files.push(SourceFile { path, text });
            } else if kind.is_dir() && !NO_SOURCES.iter().any(|none| below == Path::new(none)) {
                directories.push(path);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The file's text, or nothing if it is data.
fn read_text(path: &Path) -> Result<Option<String>> {
    let size = path
        .metadata()
        .with_context(|| format!("look at {}", path.display()))?
        .len();
    if size > LARGEST_TEXT {
        return Ok(None);
    }
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8(bytes).ok())
}

/// Everything that is wrong with these files.
pub fn check(files: &[SourceFile]) -> Vec<Finding> {
    files.iter().flat_map(check_file).collect()
}

/// Files that are on their way to be too long.
pub fn warnings(files: &[SourceFile]) -> Vec<Finding> {
    let long = |lines: usize| (LONG + 1..=TOO_LONG).contains(&lines);
    rust_files(files)
        .map(|file| (file, lines_without_tests(&file.text)))
        .filter(|(_, lines)| long(*lines))
        .map(|(file, lines)| {
            Finding::of_file(
                &file.path,
                format!("{lines} lines without its tests: is it still one thing?"),
            )
        })
        .collect()
}

fn rust_files(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| is_rust(&file.path))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn check_file(file: &SourceFile) -> Vec<Finding> {
    let mut findings = machine_paths(file);
    if is_rust(&file.path) {
        findings.extend(too_long(file));
        findings.extend(forbidden_code(file));
    }
    findings
}

fn too_long(file: &SourceFile) -> Option<Finding> {
    let lines = lines_without_tests(&file.text);
    (lines > TOO_LONG).then(|| {
        let what = format!("{lines} lines without its tests; {TOO_LONG} is the limit: split it");
        Finding::of_file(&file.path, what)
    })
}

fn machine_paths(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(&file.text) {
        for path in MACHINE_PATHS {
            if starts_a_path(line, path) {
                let what = format!("names {path}, which exists on one machine only");
                findings.push(Finding::at(&file.path, number, what));
            }
        }
    }
    findings
}

/// Whether `path` stands in the line and is not the middle of a longer path.
fn starts_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.}~".contains(c))
    })
}

fn forbidden_code(file: &SourceFile) -> Vec<Finding> {
    let code = code_only(&file.text);
    let may_be_unsafe = file.path.starts_with(UNSAFE_HOME);
    let mut findings = Vec::new();
    for (number, line) in numbered(&code) {
        let mut report = |what: String| findings.push(Finding::at(&file.path, number, what));
        for name in FORBIDDEN_MACROS {
            if word_followed_by(line, name, "!") {
                report(format!(
                    "{name}! is for work in progress: finish it or take it out"
                ));
            }
        }
        if word_followed_by(line, "ignore", "") && line.contains("#[") {
            report("an ignored test proves nothing: make it run or delete it".to_owned());
        }
        if !may_be_unsafe && word_followed_by(line, "unsafe", "") {
            report(format!("unsafe code belongs to {UNSAFE_HOME}"));
        }
    }
    findings
}

/// Whether `word` stands in the line as a whole word with `after` behind it.
fn word_followed_by(line: &str, word: &str, after: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let rest = &line[at + word.len()..];
        !line[..at].ends_with(part_of_name)
            && !rest.starts_with(part_of_name)
            && rest.trim_start().starts_with(after)
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile {
            path: path.into(),
            text: text.to_owned(),
        };
        check(&[file]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unfinished_code_is_found_and_texts_about_it_are_not() {
        for name in FORBIDDEN_MACROS {
            let found = said("a.rs", &format!("fn a() {{\n    {name}!()\n}}\n"));
            assert_eq!(found.len(), 1, "{name}");
            assert!(
                found[0].starts_with(&format!("a.rs:2: {name}! ")),
                "{found:?}"
            );
            assert!(said("a.rs", &format!("// {name}!()\nlet a = \"{name}!()\";")).is_empty());
            assert!(said("a.rs", &format!("my_{name}!(); {name}_list()")).is_empty());
            assert!(said("a.md", &format!("{name}!()")).is_empty());
        }
    }

    #[test]
    fn an_ignored_test_is_found() {
        let attribute = |inner: &str| said("a.rs", &format!("#[{inner}]\nfn a() {{}}\n"));
        assert_eq!(attribute("ignore").len(), 1);
        assert_eq!(attribute("ignore = \"slow\"").len(), 1);
        assert_eq!(attribute("cfg_attr(debug_assertions, ignore)").len(), 1);
        assert!(attribute("test").is_empty());
        assert!(said("a.rs", "let ignore = 1; ignored();").is_empty());
    }

    #[test]
    fn unsafe_code_has_one_home() {
        let block = "fn a() { unsafe { b() } }";
        assert_eq!(said("crates/store/src/a.rs", block).len(), 1);
        assert_eq!(said("crates/system/src/a.rs", block).len(), 1);
        assert!(said("crates/sys/src/a.rs", block).is_empty());
        assert!(said("crates/store/src/a.rs", "#![forbid(unsafe_code)] // unsafe").is_empty());
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_every_kind_of_file() {
        for path in MACHINE_PATHS {
            for name in ["a.rs", "b.md", ".ci/run", "c.toml"] {
                assert_eq!(
                    said(name, &format!("see {path}x")).len(),
                    1,
                    "{path} in {name}"
                );
            }
            assert!(said("a.md", &format!("see target{path}x")).is_empty());
            assert!(said("a.md", &format!("see ${{dir}}{path}x")).is_empty());
        }
    }

    #[test]
    fn a_file_is_refused_above_the_limit_and_warned_about_before() {
        let long = |lines: usize| "x;\n".repeat(lines);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", long(500));
        assert_eq!(said("a.rs", &long(TOO_LONG + 1)).len(), 1);
        assert!(said("a.rs", &long(TOO_LONG)).is_empty());
        assert!(said("a.rs", &(long(TOO_LONG) + &tests)).is_empty());
        assert!(said("a.md", &long(TOO_LONG + 1)).is_empty());
        let warned = |lines: usize| {
            let file = SourceFile {
                path: "a.rs".into(),
                text: long(lines),
            };
            warnings(&[file]).len()
        };
        assert_eq!(
            [
                warned(LONG),
                warned(LONG + 1),
                warned(TOO_LONG),
                warned(TOO_LONG + 1)
            ],
            [0, 1, 1, 0]
        );
    }

    #[test]
    fn the_tree_is_read_without_what_is_built_in_it() {
        let root = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        for (path, bytes) in [
            ("a/b.rs", b"text".as_slice()),
            (".ci/run", b"text"),
            ("a/target/c.rs", b"text"),
            ("target/c.rs", b"built"),
            (".git/d", b"history"),
            ("fuzz/corpus/t/e", b"input"),
            ("data.bin", b"\xff\xfe"),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let found = read_tree(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let paths: Vec<_> = found
            .iter()
            .map(|file| file.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, [".ci/run", "a/b.rs", "a/target/c.rs"]);
    }
}
