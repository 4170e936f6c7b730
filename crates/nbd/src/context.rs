//! The name of a metadata context: which map of an export is asked.

use std::fmt;
use std::str::FromStr;

use crate::protocol::MAX_STRING;

/// `namespace:leaf`, at most 4096 bytes, without NUL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextName(String);

/// A text that is no [`ContextName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{start:?} cannot name a metadata context: use namespace:leaf, at most 4096 bytes, no NUL")]
pub struct InvalidContextName {
    start: String,
}

impl ContextName {
    /// `base:allocation`: which parts are allocated, which read as zeroes.
    #[must_use]
    pub fn allocation() -> Self {
        Self("base:allocation".to_owned())
    }

    /// `qemu:dirty-bitmap:NAME`: which parts the bitmap `name` has marked.
    ///
    /// # Errors
    /// When the name is empty, too long or contains NUL.
    pub fn dirty_bitmap(name: &str) -> Result<Self, InvalidContextName> {
        format!("qemu:dirty-bitmap:{name}").parse()
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContextName {
    type Err = InvalidContextName;

    fn from_str(name: &str) -> Result<Self, InvalidContextName> {
        let named = name
            .split_once(':')
            .is_some_and(|(namespace, leaf)| !namespace.is_empty() && !leaf.is_empty());
        let complete = !name.ends_with(':');
        if named && complete && name.len() <= MAX_STRING && !name.contains('\0') {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidContextName {
                start: name.chars().take(80).collect(),
            })
        }
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_has_a_namespace_and_a_leaf() {
        let long = format!("x-a:{}", "b".repeat(5000));
        for name in [
            "",
            ":",
            "base:",
            ":x",
            "base",
            "a:b\0",
            "qemu:dirty-bitmap:",
            &long,
        ] {
            assert!(name.parse::<ContextName>().is_err(), "{name:?}");
        }
        assert!(ContextName::dirty_bitmap("").is_err());
        assert_eq!(
            ContextName::dirty_bitmap("cp 0:ü").unwrap().as_str(),
            "qemu:dirty-bitmap:cp 0:ü"
        );
    }
}
