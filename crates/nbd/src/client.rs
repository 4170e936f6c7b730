//! An NBD client for one export, to be used from several threads at once.

mod assembly;
mod dial;
mod error;
mod extents;
mod negotiate;
mod ranges;
mod receive;
mod shared;

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ClientConfig;

pub use self::dial::{ExportInfo, export_info, list_exports};
pub use self::error::{
    ConnectError, ConnectionLost, OptionRefusal, ProtocolError, RequestError, RequestKind,
};
pub use self::extents::Extents;
pub use self::ranges::Piece;

use self::assembly::Assembly;
use self::dial::dial;
use self::negotiate::Negotiation;
use self::receive::Receiver;
use self::shared::{Outgoing, Shared, Window};
use crate::codec::Request;
use crate::codec::encode_request;
use crate::context::ContextName;
use crate::deadline::Deadline;
use crate::extent::Extent;
use crate::protocol::{
    CAN_MULTI_CONN, CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN, CMD_FLUSH,
    CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Framing, MAX_PAYLOAD, READ_ONLY, SEND_FLUSH, SEND_FUA,
    SEND_TRIM, SEND_WRITE_ZEROES,
};
use crate::uri::NbdUri;
use crate::wire::Wire;

/// How long an orderly good-bye may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// The most one compact request can zero or trim, on every possible block size.
const COMPACT_EFFECT: u64 = (1 << 32) - (1 << 16);

/// TLS as a client: `config` says whom to trust and which certificate to show.
#[derive(Debug, Clone)]
pub struct TlsClient {
    pub config: Arc<ClientConfig>,
    /// Whom the server's certificate must name. Absent: the host of the URI, or
    /// `localhost` for a unix socket.
    pub server_name: Option<String>,
}

/// How to connect, and the limits of the connection.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The maps to ask for; a server may grant fewer.
    pub contexts: Vec<ContextName>,
    /// When present, nothing but the first greeting is ever sent in plain text.
    pub tls: Option<TlsClient>,
    /// For connecting and negotiating as a whole, and for each request. A request
    /// that is not answered in time ends the connection.
    pub deadline: Duration,
    /// The most requests under way at once, of all threads together; at least 1.
    pub max_in_flight: usize,
    /// The most bytes read or written by requests under way; one larger request may
    /// go alone.
    pub max_in_flight_bytes: u64,
    /// The most bytes one read of [`Client::read_ranges`] asks for, from 4 KiB to
    /// 32 MiB; the server's own limit holds too.
    pub request_size: u32,
}

impl Default for ClientOptions {
    /// No contexts, no TLS, one minute, 32 requests, 64 MiB, reads of 512 KiB.
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            tls: None,
            deadline: Duration::from_secs(60),
            max_in_flight: 32,
            max_in_flight_bytes: 64 << 20,
            request_size: 512 << 10,
        }
    }
}

/// Limits of requests to an export, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two, at most 64 KiB.
    pub minimum: u32,
    /// Requests of this power of two are not slower than need be.
    pub preferred: u32,
    /// The largest read or write, at most 32 MiB.
    pub maximum: u32,
}

impl BlockSizes {
    /// What holds when a server does not say.
    const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: MAX_PAYLOAD,
    };
}

/// A connection to one export. Every method may be called from several threads at
/// once. Dropping it says good-bye to the server.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Duration,
    request_size: u64,
    receiver: Option<JoinHandle<()>>,
    /// Set when the receiving thread is about to end.
    ended: Arc<(Mutex<bool>, Condvar)>,
}

impl Client {
    /// Connects and opens the export that `uri` names.
    ///
    /// # Errors
    /// When no connection comes about before the deadline, the server refuses, breaks
    /// the protocol, or cannot do what the URI or the options demand. The look-up of a
    /// host name is the resolver's: the deadline does not interrupt it.
    pub fn connect(uri: &NbdUri, options: &ClientOptions) -> Result<Self, ConnectError> {
        let deadline = Deadline::after(options.deadline);
        let (wire, host) = dial(uri, options, deadline)?;
        Self::negotiate(wire, &host, uri.export(), options, deadline)
    }

    /// Opens `export` over a stream that is already connected. `host` is whom the
    /// server's certificate must name unless the options say otherwise.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn over(
        wire: Arc<dyn Wire>,
        host: &str,
        export: &str,
        options: &ClientOptions,
    ) -> Result<Self, ConnectError> {
        let deadline = Deadline::after(options.deadline);
        Self::negotiate(wire, host, export, options, deadline)
    }

    fn negotiate(
        wire: Arc<dyn Wire>,
        host: &str,
        export: &str,
        options: &ClientOptions,
        deadline: Deadline,
    ) -> Result<Self, ConnectError> {
        let mut negotiation = Negotiation::begin(wire, host, options, deadline)?;
        let framing = negotiation.agree_on_framing()?;
        let contexts = if options.contexts.is_empty() {
            Vec::new()
        } else if framing == Framing::Simple {
            return Err(ConnectError::SimpleRepliesOnly);
        } else {
            negotiation.select_contexts(export, &options.contexts)?
        };
        let mut agreement = negotiation.open(export, framing)?;
        agreement.contexts = contexts;
        Self::start(negotiation, agreement, options)
    }

    fn start(
        negotiation: Negotiation,
        agreement: negotiate::Agreement,
        options: &ClientOptions,
    ) -> Result<Self, ConnectError> {
        let input = negotiation.into_input();
        let sizes = agreement.block_sizes;
        let wanted = options.request_size.clamp(4096, MAX_PAYLOAD);
        let request_size = wanted.min(sizes.maximum).max(sizes.minimum);
        let window = Window {
            requests: options.max_in_flight.max(1),
            bytes: options.max_in_flight_bytes,
        };
        let shared = Arc::new(Shared::new(Arc::clone(input.wire()), agreement, window));
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let receiver = Receiver::new(Arc::clone(&shared), input);
        let announce = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name("nbd-receive".to_owned())
            .spawn(move || {
                receiver.run();
                *announce.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                announce.1.notify_all();
            })
            .map_err(|source| ConnectError::Thread { source })?;
        Ok(Self {
            shared,
            deadline: options.deadline,
            request_size: u64::from(request_size - request_size % sizes.minimum),
            receiver: Some(thread),
            ended,
        })
    }

    /// The size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.agreement.size
    }

    #[must_use]
    pub fn read_only(&self) -> bool {
        self.offers(READ_ONLY)
    }

    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        self.shared.agreement.block_sizes
    }

    /// The contexts that were granted, which may be fewer than were asked for.
    pub fn contexts(&self) -> impl Iterator<Item = &ContextName> {
        self.shared.agreement.contexts.iter().map(|c| &c.name)
    }

    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.offers(SEND_TRIM)
    }

    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.offers(SEND_WRITE_ZEROES)
    }

    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.offers(SEND_FLUSH)
    }

    /// Whether a single write can be made durable by itself.
    #[must_use]
    pub fn can_fua(&self) -> bool {
        self.offers(SEND_FUA)
    }

    /// Whether several connections to this export see each other's writes.
    #[must_use]
    pub fn can_multi_conn(&self) -> bool {
        self.offers(CAN_MULTI_CONN)
    }

    /// Fills `into` from `offset` on, in requests of [`ClientOptions::request_size`].
    /// Holes are filled with zeroes.
    ///
    /// # Errors
    /// When the range does not fit the export or a request fails; `into` then has any
    /// content.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), RequestError> {
        let range = (offset, into.len() as u64);
        self.read_ranges([range], 4, |at, piece| {
            let start = usize::try_from(at - offset).expect("BUG: a piece outside its buffer");
            match piece {
                Piece::Data(data) => into[start..start + data.len()].copy_from_slice(data),
                Piece::Hole { length } => {
                    let length = usize::try_from(length).expect("BUG: a hole outside its buffer");
                    into[start..start + length].fill(0);
                }
            }
            Ok(())
        })
    }

    /// Writes `data` at `offset`. It is durable after the next [`Client::flush`].
    ///
    /// # Errors
    /// When the export is read-only, the range does not fit it or a request fails; any
    /// part may then have been written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), RequestError> {
        self.write_with(0, offset, data)
    }

    /// Writes `data` at `offset` and returns when it is durable. A server without this
    /// ability is asked to flush.
    ///
    /// # Errors
    /// As [`Client::write`] and [`Client::flush`].
    pub fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), RequestError> {
        if self.can_fua() {
            self.write_with(CMD_FLAG_FUA, offset, data)
        } else {
            self.write_with(0, offset, data)?;
            self.flush()
        }
    }

    fn write_with(&self, flags: u16, offset: u64, data: &[u8]) -> Result<(), RequestError> {
        let kind = RequestKind::Write;
        self.check_writable(kind)?;
        self.check_range(kind, offset, data.len() as u64)?;
        let flags = match self.shared.agreement.framing {
            Framing::Simple | Framing::Structured => flags,
            Framing::Extended => flags | CMD_FLAG_PAYLOAD_LEN,
        };
        let mut at = offset;
        for part in data.chunks(self.block_sizes().maximum as usize) {
            let length = part.len() as u64;
            self.perform(Outgoing {
                command: CMD_WRITE,
                flags,
                length,
                payload: part,
                assembly: Assembly::plain(kind, at, length),
            })?;
            at += length;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; the server may free its space. It is durable after
    /// the next [`Client::flush`].
    ///
    /// # Errors
    /// When the export is read-only or cannot do this, the range does not fit it, or a
    /// request fails; any part may then have been zeroed.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        let kind = RequestKind::WriteZeroes;
        self.check_offer(kind, SEND_WRITE_ZEROES)?;
        self.effect(CMD_WRITE_ZEROES, 0, kind, offset, length)
    }

    /// As [`Client::write_zeroes`], but the space stays allocated.
    ///
    /// # Errors
    /// As [`Client::write_zeroes`].
    pub fn write_zeroes_allocated(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        let kind = RequestKind::WriteZeroes;
        self.check_offer(kind, SEND_WRITE_ZEROES)?;
        self.effect(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, kind, offset, length)
    }

    /// Tells the server that a range is not needed; it reads as anything afterwards.
    ///
    /// # Errors
    /// As [`Client::write_zeroes`].
    pub fn trim(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        let kind = RequestKind::Trim;
        self.check_offer(kind, SEND_TRIM)?;
        self.effect(CMD_TRIM, 0, kind, offset, length)
    }

    fn effect(
        &self,
        command: u16,
        flags: u16,
        kind: RequestKind,
        offset: u64,
        length: u64,
    ) -> Result<(), RequestError> {
        self.check_writable(kind)?;
        self.check_range(kind, offset, length)?;
        let step = match self.shared.agreement.framing {
            Framing::Simple | Framing::Structured => COMPACT_EFFECT,
            Framing::Extended => u64::MAX,
        };
        let mut rest = (offset, length);
        while rest.1 > 0 {
            let length = rest.1.min(step);
            self.perform(Outgoing {
                command,
                flags,
                length,
                payload: &[],
                assembly: Assembly::plain(kind, rest.0, length),
            })?;
            rest = (rest.0 + length, rest.1 - length);
        }
        Ok(())
    }

    /// Returns when every write that was answered before is durable. An export that
    /// offers no flush has nothing to flush only if it is read-only.
    ///
    /// # Errors
    /// When the server offers no flush for a writable export, or the request fails.
    pub fn flush(&self) -> Result<(), RequestError> {
        if !self.offers(SEND_FLUSH) && self.read_only() {
            return Ok(());
        }
        let kind = RequestKind::Flush;
        self.check_offer(kind, SEND_FLUSH)?;
        self.perform(Outgoing {
            command: CMD_FLUSH,
            flags: 0,
            length: 0,
            payload: &[],
            assembly: Assembly::plain(kind, 0, 0),
        })
    }

    /// All extents of a range in one list, at most `limit` of them.
    ///
    /// # Errors
    /// As [`Client::extents`]. `Ok(None)` when there are more than `limit`.
    pub fn collect_extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Option<Vec<Extent>>, RequestError> {
        let mut list = Vec::new();
        for extent in self.extents(context, offset, length)? {
            if list.len() == limit {
                return Ok(None);
            }
            list.push(extent?);
        }
        Ok(Some(list))
    }

    fn perform(&self, request: Outgoing<'_>) -> Result<(), RequestError> {
        self.shared.submit(request, self.deadline())?.wait()?;
        Ok(())
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.deadline)
    }

    fn request_size(&self) -> u64 {
        self.request_size
    }

    fn offers(&self, flag: u16) -> bool {
        self.shared.agreement.flags & flag != 0
    }

    fn check_offer(&self, request: RequestKind, flag: u16) -> Result<(), RequestError> {
        if self.offers(flag) {
            Ok(())
        } else {
            Err(RequestError::Unsupported { request })
        }
    }

    fn check_writable(&self, request: RequestKind) -> Result<(), RequestError> {
        if self.read_only() {
            Err(RequestError::ReadOnly { request })
        } else {
            Ok(())
        }
    }

    fn check_range(
        &self,
        request: RequestKind,
        offset: u64,
        length: u64,
    ) -> Result<(), RequestError> {
        let size = self.size();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(RequestError::OutOfRange {
                request,
                offset,
                length,
                size,
            });
        }
        let minimum = self.block_sizes().minimum;
        if (offset | length).is_multiple_of(u64::from(minimum)) {
            Ok(())
        } else {
            Err(RequestError::Misaligned {
                request,
                offset,
                length,
                minimum,
            })
        }
    }

    /// Says good-bye and waits a little for the server to hang up.
    fn farewell(&self) -> io::Result<()> {
        let deadline = Deadline::after(FAREWELL);
        let framing = self.shared.agreement.framing;
        let header = encode_request(
            framing,
            &Request {
                flags: 0,
                command: CMD_DISC,
                cookie: 0,
                offset: 0,
                length: 0,
            },
        );
        let header = &header[..framing.request_header()];
        crate::wire::send_all(
            self.shared.wire.as_ref(),
            &mut [io::IoSlice::new(header)],
            deadline,
        )?;
        self.shared.wire.finish(deadline)?;
        let (ended, changed) = &*self.ended;
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(ended, FAREWELL, |ended| !*ended));
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.shared.is_lost() {
            // Every request has been answered or given up, so nothing is lost with
            // a good-bye that fails.
            let _ = self.farewell();
        }
        self.shared.lose(ConnectionLost::ClosedByUs);
        if let Some(thread) = self.receiver.take() {
            let _ = thread.join();
        }
    }
}
