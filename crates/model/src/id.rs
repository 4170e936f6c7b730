//! Identifiers that are random or derived, and the sequence number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hex;

/// Text that is not the identifier it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {digits} hexadecimal digits")]
pub struct InvalidId {
    what: &'static str,
    digits: usize,
    text: String,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The identifier with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes, in the order they are written and hashed.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex::encode(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                hex::decode(text).map(Self).ok_or_else(|| InvalidId {
                    what: $what,
                    digits: 2 * $bytes,
                    text: text.chars().take(80).collect(),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

identifier!(
    /// A virtual machine, for as long as it exists on any host.
    VmId, 16, "VM id"
);
identifier!(
    /// One replication relationship: a VM, where it runs and where its replica is.
    RelationshipId, 16, "relationship id"
);
identifier!(
    /// One unbroken history of a VM. Whoever takes over starts a new one.
    LineageId, 16, "lineage id"
);
identifier!(
    /// The identity of a delta: BLAKE3 of everything it says.
    DeltaId, 32, "delta id"
);

/// The name of one frozen moment of a VM within a relationship.
///
/// Drawn and saved before the VM is frozen, never used twice, never reset.
/// Zero is the moment before the first delta.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    /// Before the first delta: an empty replica.
    pub const ZERO: Self = Self(0);

    /// The moment with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The next moment that may be drawn, or `None` when all are used up.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Sequence {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_back_what_it_wrote() {
        let id = LineageId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<LineageId>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<LineageId>(), Ok(id));
    }

    #[test]
    fn an_identifier_of_the_wrong_length_is_refused() {
        for text in [
            "",
            "00",
            "0g",
            &"0".repeat(31),
            &"0".repeat(33),
            &"é".repeat(16),
        ] {
            assert!(text.parse::<LineageId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_last_sequence_has_no_successor() {
        assert_eq!(Sequence::new(u64::MAX).next(), None);
        assert_eq!(Sequence::ZERO.next(), Some(Sequence::new(1)));
    }
}
