//! The server's side of the negotiation.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::ServerOptions;
use super::answer::NumberedContext;
use super::end::EndReason;
use super::export::{Access, Entry, ExportSet, Session};
use crate::codec::{
    BlockSizeInfo, Info, InfoRequest, MetaQuery, OptionHeader, encode_option_reply,
};
use crate::context::ContextName;
use crate::deadline::Deadline;
use crate::protocol::{
    BLOCK_STATUS_PAYLOAD, CAN_MULTI_CONN, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES,
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Framing, HAS_FLAGS, INFO_BLOCK_SIZE, INFO_NAME,
    INIT_MAGIC, MAX_PAYLOAD, MAX_STRING, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO,
    OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, OPTION_MAGIC, READ_ONLY, REP_ACK, REP_ERR_BLOCK_SIZE_REQD,
    REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, REP_SERVER, SEND_DF, SEND_FLUSH, SEND_FUA,
    SEND_TRIM, SEND_WRITE_ZEROES,
};
use crate::tls::TlsWire;
use crate::wire::{Input, Wire, send_all};

/// The longest option: a name and some dozens of contexts.
const MAX_OPTION: u32 = 64 << 10;

/// A client that has opened an export.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) input: Input,
    pub(super) framing: Framing,
    /// The selected contexts and their numbers.
    pub(super) contexts: Vec<NumberedContext>,
}

/// A client that has not opened an export yet.
#[derive(Debug)]
pub(super) struct Negotiation<'a> {
    connection: u64,
    exports: &'a ExportSet,
    options: &'a ServerOptions,
    deadline: Deadline,
    input: Input,
    protection: Protection,
    padding: Padding,
    framing: Framing,
    /// For which export, and which of its contexts.
    selected: Option<(String, Vec<NumberedContext>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    Plain,
    Tls,
}

/// Whether 124 zeroes follow the answer to `EXPORT_NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeroes,
    Nothing,
}

/// What an option led to.
enum Step {
    Go(Session),
    Next,
}

impl<'a> Negotiation<'a> {
    /// Negotiates until the client has opened an export.
    pub(super) fn run(
        connection: u64,
        wire: Arc<dyn Wire>,
        exports: &'a ExportSet,
        options: &'a ServerOptions,
    ) -> Result<Opened, EndReason> {
        let mut negotiation = Self {
            connection,
            exports,
            options,
            deadline: Deadline::after(options.handshake_deadline),
            input: Input::new(wire),
            protection: Protection::Plain,
            padding: Padding::Zeroes,
            framing: Framing::Simple,
            selected: None,
        };
        negotiation.greet()?;
        loop {
            if let Step::Go(session) = negotiation.option()? {
                return Ok(negotiation.opened(session));
            }
        }
    }

    fn opened(self, session: Session) -> Opened {
        let contexts = match self.selected {
            Some((name, contexts)) if name == session.entry.name => contexts,
            Some(_) | None => Vec::new(),
        };
        Opened {
            session,
            input: self.input,
            framing: self.framing,
            contexts,
        }
    }

    fn greet(&mut self) -> Result<(), EndReason> {
        let mut greeting = Vec::with_capacity(18);
        greeting.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        self.send(&greeting)?;
        let flags = u32::from_be_bytes(self.input.array(self.deadline).map_err(receiving)?);
        let known = CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES;
        if flags & !known != 0 || flags & CLIENT_FIXED_NEWSTYLE == 0 {
            return Err(EndReason::ClientFlags { flags });
        }
        if flags & CLIENT_NO_ZEROES != 0 {
            self.padding = Padding::Nothing;
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), EndReason> {
        let mut parts = [IoSlice::new(bytes)];
        send_all(self.input.wire().as_ref(), &mut parts, self.deadline).map_err(|source| {
            if source.kind() == io::ErrorKind::TimedOut {
                EndReason::HandshakeDeadline
            } else {
                EndReason::Send { source }
            }
        })
    }

    fn reply(&self, option: u32, kind: u32, data: &[u8]) -> Result<Step, EndReason> {
        self.send(&encode_option_reply(option, kind, data))?;
        Ok(Step::Next)
    }

    fn refuse(&self, option: u32, kind: u32, why: &str) -> Result<Step, EndReason> {
        self.reply(option, kind, why.as_bytes())
    }

    fn option(&mut self) -> Result<Step, EndReason> {
        if !self.input.wait(self.deadline).map_err(receiving)? {
            return Err(EndReason::HungUp);
        }
        let header = self.input.array(self.deadline).map_err(receiving)?;
        let OptionHeader { option, length } =
            OptionHeader::decode(&header).ok_or(EndReason::OptionMagic)?;
        if length > MAX_OPTION {
            return Err(EndReason::OversizeOption { option, length });
        }
        let mut data = vec![0; length as usize];
        self.input
            .fill(&mut data, self.deadline)
            .map_err(receiving)?;

        let unprotected = self.options.tls.is_some() && self.protection == Protection::Plain;
        match option {
            OPT_ABORT => {
                // The client may be gone before it reads this.
                let _ = self.reply(option, REP_ACK, &[]);
                Err(EndReason::Disconnected)
            }
            OPT_STARTTLS => self.start_tls(&data),
            OPT_EXPORT_NAME if unprotected => Err(EndReason::ExportName {
                why: "TLS is required",
            }),
            _ if unprotected => self.refuse(option, REP_ERR_TLS_REQD, "TLS is required first"),
            OPT_EXPORT_NAME => self.open_by_name(&data),
            OPT_LIST => self.list(&data),
            OPT_INFO | OPT_GO => self.info(option, &data),
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => self.change_framing(option, &data),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, &data),
            _ => self.refuse(option, REP_ERR_UNSUP, "unknown option"),
        }
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<Step, EndReason> {
        let option = OPT_STARTTLS;
        let Some(config) = &self.options.tls else {
            return self.refuse(option, REP_ERR_POLICY, "TLS is not configured");
        };
        if self.protection == Protection::Tls {
            return self.refuse(option, REP_ERR_INVALID, "TLS has been started before");
        }
        if !data.is_empty() {
            return self.refuse(option, REP_ERR_INVALID, "the option has no data");
        }
        self.reply(option, REP_ACK, &[])?;
        if self.input.buffered() > 0 {
            return Err(EndReason::PlaintextAfterStartTls);
        }
        let below = Arc::clone(self.input.wire());
        let wire = TlsWire::server(below, Arc::clone(config), self.deadline)
            .map_err(|source| EndReason::Tls { source })?;
        self.input = Input::new(Arc::new(wire));
        self.protection = Protection::Tls;
        self.framing = Framing::Simple;
        self.selected = None;
        Ok(Step::Next)
    }

    fn open_by_name(&mut self, data: &[u8]) -> Result<Step, EndReason> {
        if self.framing == Framing::Extended {
            return Err(EndReason::ExportName {
                why: "not with extended headers",
            });
        }
        let entry = Some(data)
            .filter(|data| data.len() <= MAX_STRING)
            .and_then(|data| str::from_utf8(data).ok())
            .and_then(|name| self.exports.get(name))
            .ok_or(EndReason::ExportName {
                why: "no such export",
            })?;
        if entry.granularity.minimum > 1 {
            return Err(EndReason::ExportName {
                why: "it must learn the block sizes first",
            });
        }
        let wire = Arc::clone(self.input.wire());
        let session = entry
            .enter(self.connection, wire)
            .ok_or(EndReason::Shutdown)?;
        let mut answer = entry.size.to_be_bytes().to_vec();
        answer.extend_from_slice(&self.flags(&entry, OPT_EXPORT_NAME).to_be_bytes());
        if self.padding == Padding::Zeroes {
            answer.extend_from_slice(&[0; 124]);
        }
        self.send(&answer)?;
        Ok(Step::Go(session))
    }

    fn list(&self, data: &[u8]) -> Result<Step, EndReason> {
        if !data.is_empty() {
            return self.refuse(OPT_LIST, REP_ERR_INVALID, "the option has no data");
        }
        for name in self.exports.names() {
            let length = u32::try_from(name.len()).expect("BUG: an unchecked name");
            let mut entry = length.to_be_bytes().to_vec();
            entry.extend_from_slice(name.as_bytes());
            self.reply(OPT_LIST, REP_SERVER, &entry)?;
        }
        self.reply(OPT_LIST, REP_ACK, &[])
    }

    fn info(&self, option: u32, data: &[u8]) -> Result<Step, EndReason> {
        let Some(request) = InfoRequest::decode(data) else {
            return self.refuse(option, REP_ERR_INVALID, "malformed option");
        };
        let Some(entry) = self.exports.get(&request.export) else {
            return self.refuse(option, REP_ERR_UNKNOWN, "no such export");
        };
        let sizes = Info::BlockSize(BlockSizeInfo {
            minimum: entry.granularity.minimum,
            preferred: entry.granularity.preferred,
            maximum: MAX_PAYLOAD,
        });
        self.reply(option, REP_INFO, &sizes.encode())?;
        if entry.granularity.minimum > 1 && !request.wants.contains(&INFO_BLOCK_SIZE) {
            return self.refuse(
                option,
                REP_ERR_BLOCK_SIZE_REQD,
                "ask for the block sizes and keep to them",
            );
        }
        if request.wants.contains(&INFO_NAME) {
            self.reply(option, REP_INFO, &Info::encode_name(&entry.name))?;
        }
        let fact = Info::Export {
            size: entry.size,
            flags: self.flags(&entry, option),
        };
        self.reply(option, REP_INFO, &fact.encode())?;
        if option == OPT_INFO {
            return self.reply(option, REP_ACK, &[]);
        }
        let wire = Arc::clone(self.input.wire());
        let Some(session) = entry.enter(self.connection, wire) else {
            return self.refuse(option, REP_ERR_UNKNOWN, "no such export");
        };
        self.reply(option, REP_ACK, &[])?;
        Ok(Step::Go(session))
    }

    fn flags(&self, entry: &Entry, option: u32) -> u16 {
        // Every connection sees the same export, without a cache in between.
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        flags |= match entry.access {
            Access::ReadOnly => READ_ONLY,
            Access::ReadWrite => SEND_TRIM | SEND_WRITE_ZEROES,
        };
        if self.framing != Framing::Simple {
            flags |= SEND_DF;
        }
        let selected = self
            .selected
            .as_ref()
            .is_some_and(|(name, contexts)| *name == entry.name && !contexts.is_empty());
        if self.framing == Framing::Extended && (selected || option == OPT_INFO) {
            flags |= BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    fn change_framing(&mut self, option: u32, data: &[u8]) -> Result<Step, EndReason> {
        if !data.is_empty() {
            return self.refuse(option, REP_ERR_INVALID, "the option has no data");
        }
        if option == OPT_EXTENDED_HEADERS {
            self.framing = Framing::Extended;
        } else if self.framing == Framing::Extended {
            let why = "extended headers are in use";
            return self.refuse(option, REP_ERR_EXT_HEADER_REQD, why);
        } else {
            self.framing = Framing::Structured;
        }
        self.reply(option, REP_ACK, &[])
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<Step, EndReason> {
        if option == OPT_SET_META_CONTEXT {
            self.selected = None;
        }
        if self.framing == Framing::Simple {
            let why = "contexts need structured replies";
            return self.refuse(option, REP_ERR_INVALID, why);
        }
        let Some(query) = MetaQuery::decode(data) else {
            return self.refuse(option, REP_ERR_INVALID, "malformed option");
        };
        if query.queries.iter().any(|query| !query.contains(':')) {
            return self.refuse(option, REP_ERR_INVALID, "a context is namespace:leaf");
        }
        let Some(entry) = self.exports.get(&query.export) else {
            return self.refuse(option, REP_ERR_UNKNOWN, "no such export");
        };
        let asked = |context: &ContextName| match option {
            OPT_LIST_META_CONTEXT => {
                query.queries.is_empty()
                    || query.queries.iter().any(|query| is_listed(context, query))
            }
            _ => query.queries.iter().any(|query| query == context.as_str()),
        };
        let matching: Vec<NumberedContext> = (0..)
            .zip(&entry.contexts)
            .filter(|(_, context)| asked(context))
            .map(|(id, context)| (id, context.clone()))
            .collect();
        for (id, context) in &matching {
            let mut answer = id.to_be_bytes().to_vec();
            answer.extend_from_slice(context.as_str().as_bytes());
            self.reply(option, REP_META_CONTEXT, &answer)?;
        }
        if option == OPT_SET_META_CONTEXT {
            self.selected = Some((query.export, matching));
        }
        self.reply(option, REP_ACK, &[])
    }
}

/// Whether a listing by `query` names `context`: itself, or a prefix that ends with
/// a colon.
fn is_listed(context: &ContextName, query: &str) -> bool {
    context.as_str() == query || (query.ends_with(':') && context.as_str().starts_with(query))
}

fn receiving(source: io::Error) -> EndReason {
    match source.kind() {
        io::ErrorKind::TimedOut => EndReason::HandshakeDeadline,
        io::ErrorKind::UnexpectedEof => EndReason::HungUp,
        _ => EndReason::Receive { source },
    }
}
