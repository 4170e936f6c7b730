//! Options of the negotiation and the answers to them.

use super::Cursor;
use crate::protocol::{INFO_BLOCK_SIZE, INFO_EXPORT, INFO_NAME, OPTION_MAGIC, OPTION_REPLY_MAGIC};

/// The header of an option, after its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub(crate) option: u32,
    pub(crate) length: u32,
}

/// The header of an answer to an option, after its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionReplyHeader {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) length: u32,
}

/// What `INFO` and `GO` ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    pub(crate) export: String,
    pub(crate) wants: Vec<u16>,
}

/// What `LIST_META_CONTEXT` and `SET_META_CONTEXT` ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaQuery {
    pub(crate) export: String,
    pub(crate) queries: Vec<String>,
}

/// Limits of requests, in bytes, as the server states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockSizeInfo {
    pub(crate) minimum: u32,
    pub(crate) preferred: u32,
    pub(crate) maximum: u32,
}

/// One fact about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Info {
    Export {
        size: u64,
        flags: u16,
    },
    BlockSize(BlockSizeInfo),
    /// Something this side has no use for.
    Other,
}

pub(crate) fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("BUG: an option of 4 GiB");
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

impl OptionHeader {
    /// Nothing when the magic is wrong.
    pub(crate) fn decode(bytes: &[u8; 16]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            option: cursor.u32()?,
            length: cursor.u32()?,
        })
    }
}

pub(crate) fn encode_option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("BUG: an option reply of 4 GiB");
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

impl OptionReplyHeader {
    /// Nothing when the magic is wrong.
    pub(crate) fn decode(bytes: &[u8; 20]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u64()? != OPTION_REPLY_MAGIC {
            return None;
        }
        Some(Self {
            option: cursor.u32()?,
            kind: cursor.u32()?,
            length: cursor.u32()?,
        })
    }
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).expect("BUG: a name of 4 GiB");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

pub(crate) fn encode_info_request(request: &InfoRequest) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_string(&mut bytes, &request.export);
    let count = u16::try_from(request.wants.len()).expect("BUG: more facts than there are");
    bytes.extend_from_slice(&count.to_be_bytes());
    for want in &request.wants {
        bytes.extend_from_slice(&want.to_be_bytes());
    }
    bytes
}

impl InfoRequest {
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let export = cursor.string()?.to_owned();
        let count = usize::from(cursor.u16()?);
        let wants = cursor.bytes(count * 2)?;
        cursor.is_empty().then(|| Self {
            export,
            wants: wants
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect(),
        })
    }
}

pub(crate) fn encode_meta_query(query: &MetaQuery) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_string(&mut bytes, &query.export);
    let count = u32::try_from(query.queries.len()).expect("BUG: more queries than memory");
    bytes.extend_from_slice(&count.to_be_bytes());
    for text in &query.queries {
        push_string(&mut bytes, text);
    }
    bytes
}

impl MetaQuery {
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let export = cursor.string()?.to_owned();
        let count = cursor.u32()?;
        let mut queries = Vec::new();
        // Each query takes bytes that are really there, so the count is harmless.
        for _ in 0..count {
            queries.push(cursor.string()?.to_owned());
        }
        cursor.is_empty().then_some(Self { export, queries })
    }
}

impl Info {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Export { size, flags } => {
                bytes.extend_from_slice(&INFO_EXPORT.to_be_bytes());
                bytes.extend_from_slice(&size.to_be_bytes());
                bytes.extend_from_slice(&flags.to_be_bytes());
            }
            Self::BlockSize(sizes) => {
                bytes.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
                bytes.extend_from_slice(&sizes.minimum.to_be_bytes());
                bytes.extend_from_slice(&sizes.preferred.to_be_bytes());
                bytes.extend_from_slice(&sizes.maximum.to_be_bytes());
            }
            Self::Other => panic!("BUG: nobody says what it does not know"),
        }
        bytes
    }

    /// The canonical name of an export.
    pub(crate) fn encode_name(name: &str) -> Vec<u8> {
        let mut bytes = INFO_NAME.to_be_bytes().to_vec();
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }
}

/// Nothing when a known fact is malformed.
pub(crate) fn decode_info(data: &[u8]) -> Option<Info> {
    let mut cursor = Cursor::new(data);
    let info = match cursor.u16()? {
        INFO_EXPORT => Info::Export {
            size: cursor.u64()?,
            flags: cursor.u16()?,
        },
        INFO_BLOCK_SIZE => Info::BlockSize(BlockSizeInfo {
            minimum: cursor.u32()?,
            preferred: cursor.u32()?,
            maximum: cursor.u32()?,
        }),
        _ => return Some(Info::Other),
    };
    cursor.is_empty().then_some(info)
}

/// The name in an answer to `LIST`; what follows it is for people and dropped.
pub(crate) fn decode_server(data: &[u8]) -> Option<String> {
    Cursor::new(data).string().map(str::to_owned)
}

/// The number and name of a context.
pub(crate) fn decode_meta_context(data: &[u8]) -> Option<(u32, String)> {
    let mut cursor = Cursor::new(data);
    let id = cursor.u32()?;
    let name = str::from_utf8(cursor.rest()).ok()?;
    (name.len() <= crate::protocol::MAX_STRING).then(|| (id, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_asked_survives_the_wire(
            export in ".{0,60}",
            wants: Vec<u16>,
            queries in prop::collection::vec(".{0,30}", 0..8),
        ) {
            let info = InfoRequest { export: export.clone(), wants };
            prop_assert_eq!(InfoRequest::decode(&encode_info_request(&info)), Some(info));
            let meta = MetaQuery { export, queries };
            prop_assert_eq!(MetaQuery::decode(&encode_meta_query(&meta)), Some(meta));
        }

        #[test]
        fn headers_and_facts_survive_the_wire(option: u32, kind: u32, data: Vec<u8>, size: u64) {
            let length = u32::try_from(data.len()).unwrap();
            let bytes = encode_option(option, &data);
            prop_assert_eq!(
                OptionHeader::decode(bytes[..16].try_into().unwrap()),
                Some(OptionHeader { option, length })
            );
            let bytes = encode_option_reply(option, kind, &data);
            prop_assert_eq!(
                OptionReplyHeader::decode(bytes[..20].try_into().unwrap()),
                Some(OptionReplyHeader { option, kind, length })
            );
            let facts = [
                Info::Export { size, flags: 7 },
                Info::BlockSize(BlockSizeInfo { minimum: option, preferred: kind, maximum: 9 }),
            ];
            for fact in facts {
                prop_assert_eq!(decode_info(&fact.encode()), Some(fact));
            }
        }

        #[test]
        fn arbitrary_data_takes_no_more_memory_than_it_is_long(data: Vec<u8>) {
            if let Some(query) = MetaQuery::decode(&data) {
                prop_assert!(query.queries.len() * 4 <= data.len());
            }
            if let Some(info) = InfoRequest::decode(&data) {
                prop_assert!(info.wants.len() * 2 <= data.len());
            }
            let _ = decode_info(&data);
            let _ = decode_server(&data);
            let _ = decode_meta_context(&data);
        }
    }

    #[test]
    fn a_count_that_promises_more_than_there_is_is_refused() {
        let mut data = Vec::new();
        push_string(&mut data, "e");
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        push_string(&mut data, "base:allocation");
        assert_eq!(MetaQuery::decode(&data), None);
    }

    #[test]
    fn a_name_over_the_limit_is_refused() {
        let mut data = Vec::new();
        push_string(&mut data, &"x".repeat(4097));
        data.extend_from_slice(&[0, 0]);
        assert_eq!(InfoRequest::decode(&data), None);
        assert_eq!(decode_server(&data), None);
    }
}
