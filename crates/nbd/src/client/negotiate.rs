//! The client's side of the negotiation.

use std::io::{self, IoSlice};
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::error::{ConnectError, OptionRefusal, ProtocolError};
use super::{BlockSizes, ClientOptions};
use crate::codec::{
    Info, InfoRequest, MetaQuery, OptionReplyHeader, decode_info, decode_meta_context,
    decode_server, encode_info_request, encode_meta_query, encode_option,
};
use crate::context::ContextName;
use crate::deadline::Deadline;
use crate::protocol::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Framing,
    INFO_BLOCK_SIZE, INIT_MAGIC, MAX_PAYLOAD, OLDSTYLE_MAGIC, OPT_ABORT, OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT,
    OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_MAGIC, REP_ACK, REP_ERR_TLS_REQD, REP_ERR_UNSUP,
    REP_ERROR_BIT, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};
use crate::tls::TlsWire;
use crate::wire::{Input, Wire, send_all};

/// The longest answer to an option: an export's name and a generous description.
const MAX_REPLY: u32 = 64 << 10;

/// The most answers to one option: more exports than any server has.
const MAX_REPLIES: usize = 16_384;

/// What both sides have agreed on.
#[derive(Debug)]
pub(super) struct Agreement {
    pub(super) framing: Framing,
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) block_sizes: BlockSizes,
    pub(super) contexts: Vec<GrantedContext>,
}

/// A context and the number that stands for it on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GrantedContext {
    pub(super) name: ContextName,
    pub(super) id: u32,
}

/// Why an exchange did not come to its end.
enum Broken {
    Io(io::Error),
    Illegal(ProtocolError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Self::Illegal(error)
    }
}

impl From<Broken> for ConnectError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Io(source) => Self::Negotiate { source },
            Broken::Illegal(source) => Self::Illegal { source },
        }
    }
}

/// A connection whose server has greeted and, if configured, speaks TLS.
#[derive(Debug)]
pub(super) struct Negotiation {
    input: Input,
    deadline: Deadline,
    padding: Padding,
}

/// Whether 124 zeroes follow the answer to `EXPORT_NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeroes,
    Nothing,
}

impl Negotiation {
    /// Greets the server and starts TLS when the options have it; `host` is whom
    /// the certificate must name unless the options say otherwise.
    pub(super) fn begin(
        wire: Arc<dyn Wire>,
        host: &str,
        options: &ClientOptions,
        deadline: Deadline,
    ) -> Result<Self, ConnectError> {
        let mut negotiation = Self {
            input: Input::new(wire),
            deadline,
            padding: Padding::Zeroes,
        };
        negotiation.greet()?;
        if let Some(tls) = &options.tls {
            let name = tls.server_name.as_deref().unwrap_or(host);
            let verified =
                ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::TlsName {
                    name: name.to_owned(),
                })?;
            negotiation.start_tls(Arc::clone(&tls.config), verified)?;
        }
        Ok(negotiation)
    }

    fn greet(&mut self) -> Result<(), Broken> {
        let first = u64::from_be_bytes(self.input.array(self.deadline)?);
        if first != INIT_MAGIC {
            return Err(ProtocolError::NoGreeting.into());
        }
        match u64::from_be_bytes(self.input.array(self.deadline)?) {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(ProtocolError::Oldstyle.into()),
            _ => return Err(ProtocolError::NoGreeting.into()),
        }
        let offered = u16::from_be_bytes(self.input.array(self.deadline)?);
        if offered & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ProtocolError::NotFixedNewstyle.into());
        }
        let mut wanted = CLIENT_FIXED_NEWSTYLE;
        if offered & FLAG_NO_ZEROES != 0 {
            wanted |= CLIENT_NO_ZEROES;
            self.padding = Padding::Nothing;
        }
        self.send(&wanted.to_be_bytes())?;
        Ok(())
    }

    fn start_tls(
        &mut self,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), ConnectError> {
        self.ask(OPT_STARTTLS, &[], no_details(OPT_STARTTLS))?
            .map_err(|refusal| ConnectError::TlsRefused { refusal })?;
        if self.input.buffered() > 0 {
            // Somebody between us may have put them there.
            return Err(ConnectError::Illegal {
                source: ProtocolError::PlaintextAfterStartTls,
            });
        }
        let below = Arc::clone(self.input.wire());
        let wire = TlsWire::client(below, config, name, self.deadline)
            .map_err(|source| ConnectError::Tls { source })?;
        self.input = Input::new(Arc::new(wire));
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send_all(
            self.input.wire().as_ref(),
            &mut [IoSlice::new(bytes)],
            self.deadline,
        )
    }

    /// Sends an option and hands every detailed answer to `detail` until the server
    /// has agreed or refused.
    fn ask(
        &mut self,
        option: u32,
        data: &[u8],
        mut detail: impl FnMut(u32, &[u8]) -> Result<(), ProtocolError>,
    ) -> Result<Result<(), OptionRefusal>, Broken> {
        self.send(&encode_option(option, data))?;
        for _ in 0..MAX_REPLIES {
            let header = OptionReplyHeader::decode(&self.input.array(self.deadline)?)
                .ok_or(ProtocolError::OptionReplyMagic)?;
            if header.option != option {
                return Err(ProtocolError::WrongOption {
                    asked: option,
                    answered: header.option,
                }
                .into());
            }
            if header.length > MAX_REPLY {
                return Err(ProtocolError::OversizeOptionReply {
                    option,
                    length: header.length,
                }
                .into());
            }
            let mut payload = vec![0; header.length as usize];
            self.input.fill(&mut payload, self.deadline)?;
            if header.kind == REP_ACK {
                return Ok(Ok(()));
            }
            if header.kind & REP_ERROR_BIT != 0 {
                return Ok(Err(OptionRefusal {
                    code: header.kind,
                    message: readable(&payload),
                }));
            }
            detail(header.kind, &payload)?;
        }
        Err(ProtocolError::TooManyOptionReplies { option }.into())
    }

    /// The best framing the server knows.
    pub(super) fn agree_on_framing(&mut self) -> Result<Framing, ConnectError> {
        for (option, framing) in [
            (OPT_EXTENDED_HEADERS, Framing::Extended),
            (OPT_STRUCTURED_REPLY, Framing::Structured),
        ] {
            match self.ask(option, &[], no_details(option))? {
                Ok(()) => return Ok(framing),
                Err(refusal) if refusal.code == REP_ERR_TLS_REQD => {
                    return Err(ConnectError::TlsRequired { refusal });
                }
                Err(_) => {}
            }
        }
        Ok(Framing::Simple)
    }

    /// Selects the contexts; those the server does not have are left out.
    pub(super) fn select_contexts(
        &mut self,
        export: &str,
        wanted: &[ContextName],
    ) -> Result<Vec<GrantedContext>, ConnectError> {
        let query = encode_meta_query(&MetaQuery {
            export: export.to_owned(),
            queries: wanted.iter().map(ToString::to_string).collect(),
        });
        let mut granted: Vec<GrantedContext> = Vec::new();
        let option = OPT_SET_META_CONTEXT;
        let answer = self.ask(option, &query, |kind, data| {
            let (id, name) = expect_context(option, kind, data)?;
            let Some(name) = wanted.iter().find(|wanted| wanted.as_str() == name) else {
                return Err(ProtocolError::UnaskedContext { name });
            };
            if granted.iter().any(|other| other.name == *name) {
                return Err(ProtocolError::UnaskedContext {
                    name: name.to_string(),
                });
            }
            if granted.iter().any(|other| other.id == id) {
                return Err(ProtocolError::DuplicateContextId { id });
            }
            granted.push(GrantedContext {
                name: name.clone(),
                id,
            });
            Ok(())
        })?;
        match answer {
            Ok(()) => Ok(granted),
            Err(refusal) => Err(ConnectError::Contexts {
                export: export.to_owned(),
                refusal,
            }),
        }
    }

    /// Every context that the server offers for an export.
    pub(super) fn list_contexts(&mut self, export: &str) -> Result<Vec<String>, ConnectError> {
        let query = encode_meta_query(&MetaQuery {
            export: export.to_owned(),
            queries: Vec::new(),
        });
        let mut names = Vec::new();
        let option = OPT_LIST_META_CONTEXT;
        let answer = self.ask(option, &query, |kind, data| {
            names.push(expect_context(option, kind, data)?.1);
            Ok(())
        })?;
        match answer {
            Ok(()) => Ok(names),
            Err(refusal) => Err(ConnectError::Contexts {
                export: export.to_owned(),
                refusal,
            }),
        }
    }

    /// The names of all exports.
    pub(super) fn list_exports(&mut self) -> Result<Vec<String>, ConnectError> {
        let mut names = Vec::new();
        let answer = self.ask(OPT_LIST, &[], |kind, data| {
            if kind != REP_SERVER {
                return Err(ProtocolError::UnexpectedOptionReply {
                    option: OPT_LIST,
                    kind,
                });
            }
            let name = decode_server(data).ok_or(ProtocolError::MalformedOptionReply {
                option: OPT_LIST,
                kind,
            })?;
            names.push(name);
            Ok(())
        })?;
        match answer {
            Ok(()) => Ok(names),
            Err(refusal) if refusal.code == REP_ERR_TLS_REQD => {
                Err(ConnectError::TlsRequired { refusal })
            }
            Err(refusal) => Err(ConnectError::List { refusal }),
        }
    }

    /// Looks at an export without opening it.
    pub(super) fn info(
        &mut self,
        export: &str,
        framing: Framing,
    ) -> Result<Agreement, ConnectError> {
        match self.ask_info(OPT_INFO, export, framing)? {
            Ok(agreement) => Ok(agreement),
            Err(refusal) => Err(export_refused(export, refusal)),
        }
    }

    /// Opens an export. `GO` is tried first; a server too old for it is asked the old
    /// way, which it answers by hanging up if it has no such export.
    pub(super) fn open(
        &mut self,
        export: &str,
        framing: Framing,
    ) -> Result<Agreement, ConnectError> {
        match self.ask_info(OPT_GO, export, framing)? {
            Ok(agreement) => Ok(agreement),
            Err(refusal) if refusal.code == REP_ERR_UNSUP && framing != Framing::Extended => {
                Ok(self.open_by_name(export, framing)?)
            }
            Err(refusal) => Err(export_refused(export, refusal)),
        }
    }

    fn ask_info(
        &mut self,
        option: u32,
        export: &str,
        framing: Framing,
    ) -> Result<Result<Agreement, OptionRefusal>, Broken> {
        let request = encode_info_request(&InfoRequest {
            export: export.to_owned(),
            wants: vec![INFO_BLOCK_SIZE],
        });
        let mut told = None;
        let mut block_sizes = BlockSizes::DEFAULT;
        let answer = self.ask(option, &request, |kind, data| {
            if kind != REP_INFO {
                return Err(ProtocolError::UnexpectedOptionReply { option, kind });
            }
            match decode_info(data) {
                None => return Err(ProtocolError::MalformedOptionReply { option, kind }),
                Some(Info::Export { size, flags }) => told = Some((size, flags)),
                Some(Info::BlockSize(sizes)) => {
                    block_sizes = BlockSizes::check(sizes)?;
                }
                Some(Info::Other) => {}
            }
            Ok(())
        })?;
        if let Err(refusal) = answer {
            return Ok(Err(refusal));
        }
        let (size, flags) = told.ok_or(ProtocolError::NoExportInfo)?;
        Ok(Ok(Agreement::new(framing, size, flags, block_sizes)?))
    }

    fn open_by_name(&mut self, export: &str, framing: Framing) -> Result<Agreement, Broken> {
        self.send(&encode_option(OPT_EXPORT_NAME, export.as_bytes()))?;
        let size = u64::from_be_bytes(self.input.array(self.deadline)?);
        let flags = u16::from_be_bytes(self.input.array(self.deadline)?);
        if self.padding == Padding::Zeroes {
            self.input.skip(124, self.deadline)?;
        }
        Ok(Agreement::new(framing, size, flags, BlockSizes::DEFAULT)?)
    }

    /// Says good-bye. The server may hang up without an answer.
    pub(super) fn abort(self) {
        if self.send(&encode_option(OPT_ABORT, &[])).is_ok() {
            let _ = self.input.wire().finish(self.deadline);
        }
        self.input.wire().close();
    }

    pub(super) fn into_input(self) -> Input {
        self.input
    }
}

impl Agreement {
    fn new(
        framing: Framing,
        size: u64,
        flags: u16,
        block_sizes: BlockSizes,
    ) -> Result<Self, ProtocolError> {
        if i64::try_from(size).is_err() {
            return Err(ProtocolError::ImpossibleSize { size });
        }
        Ok(Self {
            framing,
            size,
            flags,
            block_sizes,
            contexts: Vec::new(),
        })
    }
}

impl BlockSizes {
    fn check(sizes: crate::codec::BlockSizeInfo) -> Result<Self, ProtocolError> {
        let crate::codec::BlockSizeInfo {
            minimum,
            preferred,
            maximum,
        } = sizes;
        let possible = minimum.is_power_of_two()
            && minimum <= 65_536
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= minimum;
        if !possible {
            return Err(ProtocolError::ImpossibleBlockSizes {
                minimum,
                preferred,
                maximum,
            });
        }
        let maximum = maximum.min(MAX_PAYLOAD);
        Ok(Self {
            minimum,
            preferred,
            maximum: maximum - maximum % minimum,
        })
    }
}

/// Takes no detail at all.
fn no_details(option: u32) -> impl FnMut(u32, &[u8]) -> Result<(), ProtocolError> {
    move |kind, _| Err(ProtocolError::UnexpectedOptionReply { option, kind })
}

fn expect_context(option: u32, kind: u32, data: &[u8]) -> Result<(u32, String), ProtocolError> {
    if kind != REP_META_CONTEXT {
        return Err(ProtocolError::UnexpectedOptionReply { option, kind });
    }
    decode_meta_context(data).ok_or(ProtocolError::MalformedOptionReply { option, kind })
}

fn export_refused(export: &str, refusal: OptionRefusal) -> ConnectError {
    if refusal.code == REP_ERR_TLS_REQD {
        return ConnectError::TlsRequired { refusal };
    }
    ConnectError::Export {
        export: export.to_owned(),
        refusal,
    }
}

/// The beginning of a peer's words, fit for a log.
fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .take(400)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
