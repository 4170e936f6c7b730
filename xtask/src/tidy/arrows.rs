//! Which crate may depend on which: an arrow points at what knows less.
//!
//! Dependencies of tests are free, because they are no part of the product,
//! with one exception: nothing may depend on the program or on this one.

use super::Finding;
use crate::workspace::{Crate, DependencyKind};

/// What a crate may depend on directly.
enum Allowed {
    Only(&'static [&'static str]),
    Everything,
}

/// Crates by name, without the prefix that all but the programs bear.
const ARROWS: [(&str, Allowed); 18] = [
    ("model", Allowed::Only(&[])),
    ("sys", Allowed::Only(&["model"])),
    ("nbd", Allowed::Only(&["model", "sys"])),
    ("stream", Allowed::Only(&["model"])),
    ("qcow2", Allowed::Only(&["model", "sys"])),
    ("store", Allowed::Only(&["model", "sys", "stream", "qcow2"])),
    ("capture", Allowed::Only(&["model", "nbd", "stream", "sys"])),
    ("volume", Allowed::Only(&["model", "nbd", "sys"])),
    (
        "hypervisor",
        Allowed::Only(&["model", "nbd", "sys", "volume"]),
    ),
    ("catalog", Allowed::Only(&["model"])),
    ("peer", Allowed::Only(&["model"])),
    (
        "service",
        Allowed::Only(&[
            "model",
            "sys",
            "nbd",
            "stream",
            "store",
            "capture",
            "hypervisor",
            "catalog",
            "peer",
        ]),
    ),
    ("rest", Allowed::Only(&["model", "service"])),
    ("sim", Allowed::Only(&["model"])),
    ("lifeboat", Allowed::Everything),
    ("harness", Allowed::Everything),
    ("bench", Allowed::Everything),
    ("xtask", Allowed::Everything),
];

const PREFIX: &str = "lifeboat-";
/// At the end of every arrow: nothing depends on them.
const PROGRAMS: [&str; 3] = ["lifeboat", "bench", "xtask"];
/// Depended on by tests and by the tooling, never by the product.
const FOR_TESTS: [&str; 2] = ["harness", "sim"];
const TOOLING: [&str; 4] = ["harness", "sim", "bench", "xtask"];

/// Compares the workspace's dependencies with the table.
pub fn check(crates: &[Crate]) -> Vec<Finding> {
    let members: Vec<&str> = crates.iter().map(|one| one.name.as_str()).collect();
    let mut findings = Vec::new();
    for one in crates {
        let from = short(&one.name);
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
            findings.push(finding(
                &one.name,
                "has no row in the table of crate arrows; decide what it may depend on and add it",
            ));
            continue;
        };
        for dependency in &one.dependencies {
            let to = dependency.name.as_str();
            if members.contains(&to)
                && let Some(why) = refusal(from, allowed, short(to), dependency.kind)
            {
                findings.push(finding(
                    &one.name,
                    format!("may not depend on {}: {why}", dependency.name),
                ));
            }
        }
    }
    findings
}

/// Why the arrow is not allowed, or nothing if it is.
fn refusal(from: &str, allowed: &Allowed, to: &str, kind: DependencyKind) -> Option<&'static str> {
    if PROGRAMS.contains(&to) {
        return Some("it is a program, and nothing is built on a program");
    }
    if kind == DependencyKind::Dev {
        return None;
    }
    if FOR_TESTS.contains(&to) && !TOOLING.contains(&from) {
        return Some("it is for tests: make it a dev-dependency");
    }
    match allowed {
        Allowed::Everything => None,
        Allowed::Only(names) if names.contains(&to) => None,
        Allowed::Only(_) => Some("the table of crate arrows does not have this one"),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn finding(name: &str, what: impl Into<String>) -> Finding {
    Finding::of_file(format!("crate {name}"), what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Dependency, Workspace};

    fn depends(from: &str, to: &str, kind: DependencyKind) -> Vec<String> {
        let package = |name: &str, dependencies| Crate {
            name: name.to_owned(),
            dependencies,
            targets: Vec::new(),
        };
        let arrow = Dependency {
            name: to.to_owned(),
            kind,
        };
        check(&[package(from, vec![arrow]), package(to, Vec::new())])
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn an_arrow_of_the_table_is_allowed_and_its_reverse_is_not() {
        let normal = DependencyKind::Normal;
        assert!(depends("lifeboat-store", "lifeboat-qcow2", normal).is_empty());
        assert_eq!(
            depends("lifeboat-qcow2", "lifeboat-store", normal),
            [
                "crate lifeboat-qcow2: may not depend on lifeboat-store: the table of crate arrows does not have this one"
            ]
        );
        assert_eq!(
            depends("lifeboat-qcow2", "lifeboat-store", DependencyKind::Build).len(),
            1
        );
    }

    #[test]
    fn tests_may_use_any_library_but_no_program() {
        let dev = DependencyKind::Dev;
        assert!(depends("lifeboat-qcow2", "lifeboat-store", dev).is_empty());
        assert!(depends("lifeboat-store", "lifeboat-harness", dev).is_empty());
        assert_eq!(depends("lifeboat-store", "lifeboat", dev).len(), 1);
        assert_eq!(depends("lifeboat-store", "xtask", dev).len(), 1);
    }

    #[test]
    fn the_product_never_depends_on_test_tooling() {
        let normal = DependencyKind::Normal;
        assert_eq!(depends("lifeboat", "lifeboat-harness", normal).len(), 1);
        assert_eq!(
            depends("lifeboat-store", "lifeboat-harness", normal).len(),
            1
        );
        assert_eq!(depends("lifeboat", "lifeboat-sim", normal).len(), 1);
        assert!(depends("xtask", "lifeboat-harness", normal).is_empty());
        assert!(depends("lifeboat-harness", "lifeboat-store", normal).is_empty());
    }

    #[test]
    fn a_crate_without_a_row_is_reported() {
        let said = depends("lifeboat-nowhere", "lifeboat-model", DependencyKind::Normal);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("has no row"), "{said:?}");
    }

    #[test]
    fn crates_from_elsewhere_are_no_arrows() {
        let outside = Crate {
            name: "lifeboat-model".to_owned(),
            dependencies: vec![Dependency {
                name: "store".to_owned(),
                kind: DependencyKind::Normal,
            }],
            targets: Vec::new(),
        };
        assert_eq!(check(&[outside]), []);
    }

    #[test]
    fn the_table_points_one_way() {
        for (at, (name, allowed)) in ARROWS.iter().enumerate() {
            let Allowed::Only(below) = allowed else {
                continue;
            };
            for one in *below {
                let place = ARROWS.iter().position(|(other, _)| other == one);
                let in_rows_above = place.is_some_and(|place| place < at);
                assert!(
                    in_rows_above,
                    "{name} -> {one} does not point at a row above it"
                );
            }
        }
    }

    #[test]
    fn the_crates_of_this_tree_keep_to_the_table() {
        let workspace = Workspace::load().unwrap();
        assert!(workspace.crates.len() >= 10, "cargo listed too few crates");
        assert_eq!(check(&workspace.crates), []);
    }
}
