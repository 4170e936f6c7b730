//! Decision records are numbered and listed, and links between pages lead
//! somewhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::Finding;
use super::sources::SourceFile;

const RECORDS: &str = "docs/adr";
const INDEX: &str = "docs/adr/README.md";

/// Everything that is wrong with the pages among these files.
pub fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = check_records(files);
    let known = Known::new(files);
    for file in files.iter().filter(|file| is_page(&file.path)) {
        for (line, target) in links(&file.text) {
            if let Some(why) = known.refusal(&file.path, &target) {
                findings.push(Finding::at(
                    &file.path,
                    line,
                    format!("link to {target}: {why}"),
                ));
            }
        }
    }
    findings
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// Every file among the records is `NNNN-title.md`, has a number of its own,
/// begins with that number, and is linked from the index.
fn check_records(files: &[SourceFile]) -> Vec<Finding> {
    let index = files.iter().find(|file| file.path == Path::new(INDEX));
    let listed: BTreeSet<String> = index
        .map(|file| {
            links(&file.text)
                .into_iter()
                .map(|(_, target)| target)
                .collect()
        })
        .unwrap_or_default();
    let mut findings = Vec::new();
    let mut numbers = BTreeSet::new();
    let records = files
        .iter()
        .filter(|file| file.path.starts_with(RECORDS) && file.path != Path::new(INDEX));
    for file in records {
        let mut report = |what: String| findings.push(Finding::of_file(&file.path, what));
        let name = file.path.strip_prefix(RECORDS).unwrap_or(&file.path);
        let name = name.to_string_lossy();
        let Some(number) = record_number(&name) else {
            report("a decision record is named NNNN-short-title.md".to_owned());
            continue;
        };
        if !numbers.insert(number.to_owned()) {
            report(format!("the number {number} is taken by another record"));
        }
        if !file.text.starts_with(&format!("# {number}")) {
            report(format!(
                "does not begin with its number: `# {number}: title`"
            ));
        }
        if !listed.contains(name.as_ref()) {
            report(format!("is not listed in {INDEX}"));
        }
    }
    findings
}

/// The four digits that the name of a record begins with.
fn record_number(name: &str) -> Option<&str> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid = number.len() == 4
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && !title.is_empty()
        && title.chars().all(plain);
    valid.then_some(number)
}

/// What a link can lead to.
struct Known<'a> {
    files: &'a [SourceFile],
    directories: BTreeSet<&'a Path>,
}

impl<'a> Known<'a> {
    fn new(files: &'a [SourceFile]) -> Self {
        let directories = files
            .iter()
            .flat_map(|file| file.path.ancestors().skip(1))
            .collect();
        Self { files, directories }
    }

    /// Why the link leads nowhere, or nothing if it is good or leads outside.
    fn refusal(&self, page: &Path, target: &str) -> Option<String> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        if target.starts_with('/') {
            return Some("it must be relative to this page".to_owned());
        }
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let Some(path) = resolve(page, path) else {
            return Some("it leads out of the tree".to_owned());
        };
        if self.directories.contains(path.as_path()) {
            return None;
        }
        let Some(file) = self.files.iter().find(|file| file.path == path) else {
            return Some(format!("there is no {}", path.display()));
        };
        if anchor.is_empty() || !is_page(&path) || anchors(&file.text).contains(anchor) {
            return None;
        }
        Some(format!("{} has no heading for #{anchor}", path.display()))
    }
}

/// The path that `relative` means on `page`, or nothing if it leaves the tree.
fn resolve(page: &Path, relative: &str) -> Option<PathBuf> {
    if relative.is_empty() {
        return Some(page.to_owned());
    }
    let mut path = page.parent()?.to_owned();
    for component in Path::new(relative).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir if path.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The targets of the links on a page, with their lines: `[text](target)` and
/// `[name]: target`, outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code_spans(line);
        if let Some((name, target)) = line.split_once("]: ")
            && name.starts_with('[')
            && !name.starts_with("[^")
        {
            found.push((number, first_word(target)));
        }
        for (at, opening) in line.match_indices("](") {
            let target = &line[at + opening.len()..];
            found.push((number, first_word(&target[..closing(target)])));
        }
    }
    found
}

/// Where the parenthesis that the link stands in is closed.
fn closing(target: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in target.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return at,
            ')' => depth -= 1,
            _ => {}
        }
    }
    target.len()
}

/// A link's target, without the title that may follow it.
fn first_word(target: &str) -> String {
    let target = target.trim();
    match target
        .strip_prefix('<')
        .and_then(|inner| inner.split_once('>'))
    {
        Some((inner, _)) => inner.to_owned(),
        None => target.split_whitespace().next().unwrap_or("").to_owned(),
    }
}

/// The lines outside of fenced code, with their numbers from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let start = line.trim_start();
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => {
                fence = Some(mark);
                None
            }
            (Some(open), Some(mark)) if open == mark => {
                fence = None;
                None
            }
            (Some(_), _) => None,
            (None, None) => Some((at + 1, line)),
        }
    })
}

/// The line with the contents of `code` taken out. A backquote that nothing
/// closes is text.
fn without_code_spans(line: &str) -> String {
    let mut kept = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('`') {
        kept.push_str(before);
        match after.split_once('`') {
            Some((_, behind)) => rest = behind,
            None => {
                rest = after;
                break;
            }
        }
    }
    kept + rest
}

/// The anchors that a page's headings make: lower case, spaces as hyphens,
/// other punctuation dropped; equal ones are counted.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .flat_map(char::to_lowercase)
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let repeats = (1..).map(|count| format!("{slug}-{count}"));
        let free = std::iter::once(slug.clone())
            .chain(repeats)
            .find(|anchor| !found.contains(anchor));
        found.extend(free);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<SourceFile> = files
            .iter()
            .map(|(path, text)| SourceFile {
                path: path.into(),
                text: (*text).to_owned(),
            })
            .collect();
        check(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_link_to_nothing_is_found_where_it_stands() {
        let found = said(&[("docs/a.md", "x\n\nsee [b](b.md) and [c](../c.md)")]);
        assert_eq!(
            found,
            [
                "docs/a.md:3: link to b.md: there is no docs/b.md",
                "docs/a.md:3: link to ../c.md: there is no c.md"
            ]
        );
    }

    #[test]
    fn a_link_to_a_file_or_directory_of_the_tree_is_good() {
        let page = "[b](../b.md) [dir](../src) [x](./y/z.rs \"title\") [self](#one)\n[r]: ../b.md\n# One\n";
        assert!(
            said(&[
                ("docs/a.md", page),
                ("b.md", ""),
                ("src/c.rs", ""),
                ("docs/y/z.rs", "")
            ])
            .is_empty()
        );
    }

    #[test]
    fn a_reference_definition_is_a_link() {
        assert_eq!(said(&[("a.md", "[r]: gone.md")]).len(), 1);
        assert!(said(&[("a.md", "[^1]: a footnote")]).is_empty());
    }

    #[test]
    fn an_anchor_needs_its_heading() {
        let pages = |anchor: &str| {
            let link = format!("[x](b.md#{anchor})");
            let headings = "# Why, and `how`?\n## Same\n## Same\n```\n# Code\n```\n#no heading\n";
            said(&[("a.md", &link), ("b.md", headings)]).len()
        };
        assert_eq!(
            [pages("why-and-how"), pages("same"), pages("same-1")],
            [0, 0, 0]
        );
        assert_eq!(
            [pages("same-2"), pages("code"), pages("no-heading")],
            [1, 1, 1]
        );
    }

    #[test]
    fn links_in_code_are_no_links() {
        assert!(said(&[("a.md", "`[x](gone.md)`\n```\n[x](gone.md)\n```\n")]).is_empty());
        assert_eq!(said(&[("a.md", "a ` b [x](gone.md)")]).len(), 1);
    }

    #[test]
    fn a_link_stays_in_the_tree() {
        assert!(said(&[("a.md", "[x](../b.md)")])[0].contains("leads out of the tree"));
        assert!(said(&[("a.md", "[x](/b.md)")])[0].contains("must be relative"));
        assert!(said(&[("a.md", "[x](https://example.org/y)")]).is_empty());
    }

    #[test]
    fn parentheses_may_stand_in_a_link() {
        assert!(said(&[("a.md", "([x](b(1).md))"), ("b(1).md", "")]).is_empty());
    }

    #[test]
    fn a_record_is_numbered_once_begins_with_its_number_and_is_listed() {
        let index = (INDEX, "| [0001](0001-heads.md) |");
        let good = ("docs/adr/0001-heads.md", "# 0001: heads\n");
        assert!(said(&[index, good]).is_empty());
        let twin = ("docs/adr/0001-tails.md", "# 0001: tails\n");
        assert_eq!(
            said(&[index, good, twin]),
            [
                "docs/adr/0001-tails.md: the number 0001 is taken by another record",
                "docs/adr/0001-tails.md: is not listed in docs/adr/README.md"
            ]
        );
        let headless = ("docs/adr/0001-heads.md", "# heads\n");
        assert_eq!(said(&[index, headless]).len(), 1);
        for name in [
            "docs/adr/notes.md",
            "docs/adr/1-x.md",
            "docs/adr/0002-X y.md",
        ] {
            let found = said(&[index, good, (name, "")]);
            assert_eq!(found.len(), 1, "{name}");
            assert!(
                found[0].contains("is named NNNN-short-title.md"),
                "{found:?}"
            );
        }
    }
}
