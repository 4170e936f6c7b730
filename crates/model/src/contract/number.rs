//! Enumerations that are numbers on the wire and names in text.

/// A number that a property of the contract cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{number} is no {property}")]
pub struct UnknownNumber {
    pub property: &'static str,
    pub number: u32,
}

/// Defines an enumeration of the contract: its variants with number and text.
macro_rules! numbered {
    (
        $(#[$doc:meta])*
        $name:ident : $property:literal {
            $($(#[$variant_doc:meta])* $variant:ident = $number:literal $text:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The number in the CIM schema.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$variant => $number,)+
                }
            }

            /// The name that people read.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl TryFrom<u32> for $name {
            type Error = $crate::contract::UnknownNumber;

            fn try_from(number: u32) -> Result<Self, $crate::contract::UnknownNumber> {
                match number {
                    $($number => Ok(Self::$variant),)+
                    number => Err($crate::contract::UnknownNumber { property: $property, number }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.label())
            }
        }
    };
}

pub(crate) use numbered;
