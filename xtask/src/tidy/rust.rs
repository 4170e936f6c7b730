//! Rust source seen as code alone: comments and the contents of literals
//! become spaces, so that a word in a text is never taken for the code.
//!
//! It knows as much of the language as that needs: comments (nested ones
//! too), plain, byte, C and raw strings, and how a character differs from a
//! lifetime. Lines stay where they are.

/// The source with comments and literals blanked, line by line the same.
pub fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let before = code.chars().next_back();
        match literal_length(rest, before) {
            Some(length) => {
                let (literal, after) = rest.split_at(length);
                code.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = after;
            }
            None => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    code
}

/// The length in bytes of the comment or literal that `rest` starts with.
/// `before` is the character before it, which decides whether a letter here
/// is a literal's prefix or the end of a name.
fn literal_length(rest: &str, before: Option<char>) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_length(rest));
    }
    if rest.starts_with('\'') {
        return character_length(rest);
    }
    let inside_a_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefix = match inside_a_name {
        true => 0,
        false => ["br", "cr", "b", "c", "r"]
            .into_iter()
            .find(|prefix| rest.starts_with(prefix))
            .map_or(0, str::len),
    };
    let raw = rest[..prefix].ends_with('r');
    let hashes = match raw {
        true => rest[prefix..]
            .bytes()
            .take_while(|byte| *byte == b'#')
            .count(),
        false => 0,
    };
    let open = prefix + hashes;
    if !rest[open..].starts_with('"') {
        return None;
    }
    let body = &rest[open + 1..];
    let length = match raw {
        true => raw_body_length(body, hashes),
        false => escaped_body_length(body),
    };
    Some(open + 1 + length)
}

/// Up to and with the quote and hashes that close a raw string.
fn raw_body_length(body: &str, hashes: usize) -> usize {
    let close = format!("\"{}", "#".repeat(hashes));
    body.find(&close).map_or(body.len(), |at| at + close.len())
}

/// Up to and with the quote that closes a plain string.
fn escaped_body_length(body: &str) -> usize {
    let mut bytes = body.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return at + 1,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    body.len()
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    let bytes = rest.as_bytes();
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn character_length(rest: &str) -> Option<usize> {
    let body = &rest[1..];
    if body.starts_with('\\') {
        // The escaped character itself may be the quote.
        let escaped = body.char_indices().nth(2)?.0;
        return body[escaped..].find('\'').map(|at| 1 + escaped + at + 1);
    }
    let first = body.chars().next()?.len_utf8();
    body[first..].starts_with('\'').then_some(1 + first + 1)
}

/// The number of lines before the tests at the end of the file, if it ends in
/// a `#[cfg(test)] mod …`; otherwise the number of all lines.
pub fn lines_without_tests(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    lines
        .windows(2)
        .rposition(|pair| pair[0] == "#[cfg(test)]" && opens_module(pair[1]))
        .filter(|at| is_last_item(&lines[at + 2..]))
        .unwrap_or(lines.len())
}

fn opens_module(line: &str) -> bool {
    line.starts_with("mod ") && line.ends_with('{')
}

/// Whether the module whose body starts here is closed by the file's last line.
fn is_last_item(body: &[&str]) -> bool {
    body.iter().position(|line| *line == "}") == body.len().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        code_only(source)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn comments_are_no_code() {
        assert_eq!(
            words("a // b\nc /* d /* e */ f */ g /// h"),
            ["a", "c", "g"]
        );
        assert_eq!(words("a / b * c"), ["a", "/", "b", "*", "c"]);
        assert_eq!(words("a /* never closed"), ["a"]);
    }

    #[test]
    fn literals_are_no_code() {
        assert_eq!(words(r#"a "b \" c" d"#), ["a", "d"]);
        assert_eq!(
            words("a r#\"b \" c\"# d br\"e\\\" f c\"g\" b\"h\""),
            ["a", "d", "f"]
        );
        assert_eq!(words("a \"// no comment\" b"), ["a", "b"]);
        assert_eq!(words(r#"for"b" r"#), ["for", "r"]);
        assert_eq!(words("a \"never closed"), ["a"]);
    }

    #[test]
    fn a_lifetime_is_code_and_a_character_is_not() {
        assert_eq!(words("&'a str"), ["&'a", "str"]);
        assert_eq!(
            words(r"['\'', '\\', 'x', '\u{41}', '/'] z"),
            ["[", ",", ",", ",", ",", "]", "z"]
        );
        assert_eq!(words("'\"' a '\"'"), ["a"]);
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "a\n/* b\nc */ d\n\"e\nf\" g\n";
        let code = code_only(source);
        assert_eq!(code.lines().count(), source.lines().count());
        assert_eq!(code.lines().nth(2).unwrap().trim(), "d");
        assert_eq!(code.lines().nth(4).unwrap().trim(), "g");
    }

    #[test]
    fn tests_at_the_end_do_not_count() {
        let tests = "#[cfg(test)]\nmod tests {\n    fn a() {\n    }\n}\n";
        assert_eq!(lines_without_tests(&format!("a\nb\n\n{tests}")), 3);
        assert_eq!(lines_without_tests(&format!("a\n{tests}b\n")), 7);
        assert_eq!(lines_without_tests("a\nb\n"), 2);
        assert_eq!(lines_without_tests("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
    }
}
