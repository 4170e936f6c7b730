//! Requests of the transmission phase.

use super::Cursor;
use crate::protocol::{EXTENDED_REQUEST_MAGIC, Framing, REQUEST_MAGIC};

/// The longest header of a request.
pub(crate) const REQUEST_HEADER_MAX: usize = 32;

/// One request without its payload. With extended headers and the payload flag,
/// `length` counts the payload; otherwise it is how much the request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Framing {
    /// How long a request's header is, in bytes.
    pub(crate) fn request_header(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }
}

/// The header, in the first [`Framing::request_header`] bytes of the answer.
/// Compact framing cannot carry lengths of 4 GiB and more: whoever builds a request
/// keeps below.
pub(crate) fn encode_request(framing: Framing, request: &Request) -> [u8; REQUEST_HEADER_MAX] {
    let mut bytes = [0; REQUEST_HEADER_MAX];
    let magic = match framing {
        Framing::Simple | Framing::Structured => REQUEST_MAGIC,
        Framing::Extended => EXTENDED_REQUEST_MAGIC,
    };
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[4..6].copy_from_slice(&request.flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&request.command.to_be_bytes());
    bytes[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&request.offset.to_be_bytes());
    if framing == Framing::Extended {
        bytes[24..].copy_from_slice(&request.length.to_be_bytes());
    } else {
        let length = u32::try_from(request.length)
            .unwrap_or_else(|_| panic!("BUG: compact request of {} bytes", request.length));
        bytes[24..28].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

/// The request in `bytes`, or nothing when they do not begin with the right magic
/// or have the wrong length.
pub(crate) fn decode_request(framing: Framing, bytes: &[u8]) -> Option<Request> {
    let mut cursor = Cursor::new(bytes);
    let magic = match framing {
        Framing::Simple | Framing::Structured => REQUEST_MAGIC,
        Framing::Extended => EXTENDED_REQUEST_MAGIC,
    };
    if cursor.u32()? != magic {
        return None;
    }
    let request = Request {
        flags: cursor.u16()?,
        command: cursor.u16()?,
        cookie: cursor.u64()?,
        offset: cursor.u64()?,
        length: match framing {
            Framing::Simple | Framing::Structured => u64::from(cursor.u32()?),
            Framing::Extended => cursor.u64()?,
        },
    };
    cursor.is_empty().then_some(request)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes_of_both_headers() {
        let request = Request {
            flags: 0x0102,
            command: 0x0304,
            cookie: 0x0506_0708_090a_0b0c,
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
        };
        let compact = encode_request(Framing::Structured, &request);
        assert_eq!(
            compact[..28],
            [
                0x25, 0x60, 0x95, 0x13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x11, 0x12, 0x13,
                0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24
            ]
        );
        let extended = encode_request(Framing::Extended, &request);
        assert_eq!(extended[..4], [0x21, 0xe4, 0x1c, 0x71]);
        assert_eq!(extended[4..24], compact[4..24]);
        assert_eq!(extended[24..], [0, 0, 0, 0, 0x21, 0x22, 0x23, 0x24]);
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u64,
        ) {
            for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
                let length = if framing == Framing::Extended { length } else { length >> 32 };
                let request = Request { flags, command, cookie, offset, length };
                let bytes = encode_request(framing, &request);
                let header = &bytes[..framing.request_header()];
                prop_assert_eq!(decode_request(framing, header), Some(request));
                prop_assert_eq!(decode_request(framing, &header[1..]), None);
            }
        }

        #[test]
        fn bytes_that_are_no_request_are_refused(bytes: Vec<u8>) {
            for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
                if let Some(request) = decode_request(framing, &bytes) {
                    let again = encode_request(framing, &request);
                    prop_assert_eq!(&again[..bytes.len()], &bytes[..]);
                }
            }
        }
    }
}
