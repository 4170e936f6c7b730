//! What can be wrong with a file of the store.

/// How a file differs from what the store wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    #[error("the file is missing")]
    Missing,

    #[error(
        "record {number} is unreadable although later ones are intact; restore the store from its peer"
    )]
    JournalRecord { number: u64 },

    #[error("record {number} does not follow from the ones before it ({why})")]
    JournalOrder { number: u64, why: &'static str },

    #[error("the journal holds no complete record")]
    EmptyJournal,

    #[error(
        "it was written by version {version} of the format, this program reads up to {supported}"
    )]
    Version { version: u32, supported: u32 },

    #[error("index record {number} fails its check")]
    IndexRecord { number: u64 },

    #[error("it is {found} bytes long, the journal says {expected}")]
    Length { found: u64, expected: u64 },

    #[error("block {block} fails its digest")]
    Digest { block: u64 },

    #[error("{blocks} blocks from {block} on could not be read when they were saved")]
    Lost { block: u64, blocks: u64 },

    #[error("64 KiB at {offset} fail the digest of the disk")]
    HeadDigest { offset: u64 },

    #[error(
        "the delta in the spool cannot be applied ({why}); have it sent again, or fail over to what is applied or to a point"
    )]
    Spool { why: String },

    #[error("the divergence map cannot be used ({why}); compare the disks")]
    DivergenceMap { why: &'static str },

    #[error("the image is not as we write it ({why})")]
    Image { why: String },

    #[error("the note cannot be used ({why})")]
    Note { why: &'static str },

    #[error("something else lies there: a link, or neither the file nor the folder of a store")]
    Strange,
}
