//! The numbers of the protocol.

/// `NBDMAGIC`, the first thing a server says.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second thing, and the start of every option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What follows `NBDMAGIC` in the oldstyle negotiation that nobody should need.
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const FLAG_NO_ZEROES: u16 = 2;
pub(crate) const CLIENT_FIXED_NEWSTYLE: u32 = 1;
pub(crate) const CLIENT_NO_ZEROES: u32 = 2;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// Every option reply with this bit is an error.
pub(crate) const REP_ERROR_BIT: u32 = 1 << 31;
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
pub(crate) const REP_ERR_POLICY: u32 = REP_ERROR_BIT | 2;
pub(crate) const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
pub(crate) const REP_ERR_PLATFORM: u32 = REP_ERROR_BIT | 4;
pub(crate) const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
pub(crate) const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;
pub(crate) const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;
pub(crate) const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR_BIT | 8;
pub(crate) const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT | 9;
pub(crate) const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR_BIT | 10;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

pub(crate) const HAS_FLAGS: u16 = 1;
pub(crate) const READ_ONLY: u16 = 1 << 1;
pub(crate) const SEND_FLUSH: u16 = 1 << 2;
pub(crate) const SEND_FUA: u16 = 1 << 3;
pub(crate) const SEND_TRIM: u16 = 1 << 5;
pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const SEND_DF: u16 = 1 << 7;
pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_FLUSH: u16 = 3;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

pub(crate) const CMD_FLAG_FUA: u16 = 1;
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 2;
pub(crate) const CMD_FLAG_DF: u16 = 4;
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 8;
pub(crate) const CMD_FLAG_PAYLOAD_LEN: u16 = 32;

pub(crate) const CHUNK_DONE: u16 = 1;
pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_OFFSET_DATA: u16 = 1;
pub(crate) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(crate) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(crate) const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Every chunk type with this bit is an error.
pub(crate) const CHUNK_ERROR_BIT: u16 = 1 << 15;
pub(crate) const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT | 1;
pub(crate) const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT | 2;

/// The longest string the protocol knows, in bytes.
pub(crate) const MAX_STRING: usize = 4096;
/// The largest payload any peer must take: 32 MiB. Nothing larger is sent or taken here.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;
/// The most extents one chunk may have, as the protocol recommends.
pub(crate) const MAX_EXTENTS: usize = 1 << 20;

/// How messages are framed after the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// 28-byte requests, 16-byte replies: no holes, no contexts.
    Simple,
    /// 28-byte requests, replies in chunks of 20-byte headers.
    Structured,
    /// 32-byte headers both ways, 64-bit lengths.
    Extended,
}
