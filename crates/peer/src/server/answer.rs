//! One request: who asks, what, and what the host says.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::ServerEvent;
use super::body;
use super::connection::Caller;
use super::quota::Ticket;
use crate::message::{Refusal, RefusalCode};
use crate::port::{Host, PeerName};
use crate::wire::{Call, GuestQuery, MAX_ANSWER, MAX_PLACE, NoCall, PLACE, refusal, status};

pub(super) struct Asked {
    caller: Caller,
    request: Request<Incoming>,
}

impl Asked {
    pub(super) fn new(caller: Caller, request: Request<Incoming>) -> Self {
        Self { caller, request }
    }
}

/// Never fails: whatever is wrong is an answer.
pub(super) async fn answer(asked: Asked) -> Response<Full<Bytes>> {
    let Asked { caller, request } = asked;
    if let Err(why) = caller.shared.tls.present().verify(&caller.chain) {
        let said = refusal(
            RefusalCode::NotAuthorized,
            format!("{}: {why}", caller.peer),
        );
        let peer = caller.peer.clone();
        caller.shared.observe(&ServerEvent::CutOff { peer, why });
        return closing(refused(&said));
    }
    if caller.turned_away {
        return closing(refused(&refusal(
            RefusalCode::Busy,
            format!(
                "{} has too many connections to this host; close some or try again later",
                caller.peer
            ),
        )));
    }
    let call = match Call::find(request.method(), request.uri().path()) {
        Ok(call) if request.uri().query().is_none() => call,
        Ok(_) => {
            return refused(&refusal(
                RefusalCode::Invalid,
                "calls have no query in the path",
            ));
        }
        Err(no_call) => return no_such_call(no_call),
    };
    let Some(ticket) = caller.shared.requests.take(&caller.peer) else {
        return refused(&refusal(
            RefusalCode::Busy,
            format!(
                "this host works on too many requests, or too many of {}; try again in a while",
                caller.peer
            ),
        ));
    };
    let work = Work {
        caller,
        call,
        ticket,
    };
    match work.dispatch(request).await {
        Ok(response) => response,
        Err(said) => refused(&said),
    }
}

/// A call that is counted and about to be worked on.
struct Work {
    caller: Caller,
    call: Call,
    ticket: Ticket<PeerName>,
}

impl Work {
    async fn dispatch(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        match self.call {
            Call::Introduce => json(&self.run(|host, peer| host.introduce(peer)).await?),
            Call::MakeReplica => self.told(request, Host::make_replica).await,
            Call::BeginSession => self.asked(request, Host::begin_session).await,
            Call::BeginCopy => self.asked(request, Host::begin_copy).await,
            Call::Digests => self.digests(request).await,
            Call::Verified => self.told(request, Host::verified).await,
            Call::PutChunk => {
                let place = place(&request)?;
                self.stream(request, |host, peer, body| {
                    host.put_chunk(peer, place, body)
                })
                .await
                .map(|()| done())
            }
            Call::PutDelta => {
                let place = place(&request)?;
                let receipt = self
                    .stream(request, |host, peer, body| {
                        host.put_delta(peer, place, body)
                    })
                    .await?;
                json(&receipt)
            }
            Call::PlannedFailover => self.told(request, Host::planned_failover).await,
            Call::GuestStatus => {
                self.asked(request, |host, peer, query: GuestQuery| {
                    host.guest_status(peer, query.relationship)
                })
                .await
            }
            Call::TakeOver => self.told(request, Host::take_over).await,
            Call::Adopt => self.asked(request, Host::adopt).await,
            Call::ChangeSettings => self.told(request, Host::change_settings).await,
            Call::Remove => self.told(request, Host::remove).await,
        }
    }

    /// A call with a message and without an answer.
    async fn told<M: DeserializeOwned + Send + 'static>(
        self,
        request: Request<Incoming>,
        say: fn(&(dyn Host + 'static), &PeerName, M) -> Result<(), Refusal>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let message = self.message(request).await?;
        self.run(move |host, peer| say(host, peer, message)).await?;
        Ok(done())
    }

    /// A call with a message and an answer.
    async fn asked<M: DeserializeOwned + Send + 'static, A: Serialize + Send + 'static>(
        self,
        request: Request<Incoming>,
        ask: fn(&(dyn Host + 'static), &PeerName, M) -> Result<A, Refusal>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let message = self.message(request).await?;
        json(&self.run(move |host, peer| ask(host, peer, message)).await?)
    }

    async fn digests(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let query: crate::message::DigestQuery = self.message(request).await?;
        let expected = query
            .answer_length()
            .map_err(|why| refusal(RefusalCode::Invalid, why.to_string()))?;
        let digests = self.run(|host, peer| host.digests(peer, query)).await?;
        if digests.len() as u64 != expected {
            tracing::error!(
                expected,
                found = digests.len(),
                "the host has answered a digest query with the wrong number of bytes"
            );
            return Err(refusal(
                RefusalCode::Failed,
                "this host computed the wrong number of digests; its log says more",
            ));
        }
        let mut response = Response::new(Full::new(Bytes::from(digests)));
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn message<M: DeserializeOwned>(&self, request: Request<Incoming>) -> Result<M, Refusal> {
        let longest = self.caller.shared.limits.header;
        let bytes = body::gather(request.into_body(), longest).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            refusal(
                RefusalCode::Invalid,
                format!(
                    "the message is not one of version {}: {}",
                    crate::message::VERSION,
                    crate::pki::clean(&error.to_string())
                ),
            )
        })
    }

    /// Lets the host work on a blocking thread. The request counts until the host is done,
    /// also when the peer has gone.
    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&(dyn Host + 'static), &PeerName) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (host, peer) = (
            Arc::clone(&self.caller.shared.host),
            self.caller.peer.clone(),
        );
        let ticket = self.ticket;
        let job = tokio::task::spawn_blocking(move || {
            let _ticket = ticket;
            work(host.as_ref(), &peer)
        });
        finished(&self.caller, self.call, job).await
    }

    /// The same, with a body that the host reads while it comes.
    async fn stream<T: Send + 'static>(
        self,
        request: Request<Incoming>,
        work: impl FnOnce(&(dyn Host + 'static), &PeerName, &mut dyn Read) -> Result<T, Refusal>
        + Send
        + 'static,
    ) -> Result<T, Refusal> {
        let stall = self.caller.shared.limits.stall;
        let (mut reader, mut feeder) = body::bridge(request.into_body(), stall);
        let (host, peer) = (
            Arc::clone(&self.caller.shared.host),
            self.caller.peer.clone(),
        );
        let ticket = self.ticket;
        let mut job = tokio::task::spawn_blocking(move || {
            let _ticket = ticket;
            work(host.as_ref(), &peer, &mut reader)
        });
        let early = tokio::select! {
            biased;
            ended = &mut job => Some(ended),
            () = feeder.feed() => None,
        };
        let answer = match early {
            Some(ended) => flatten(&self.caller, self.call, ended),
            None => finished(&self.caller, self.call, job).await,
        };
        if answer.is_ok() {
            feeder.finish().await;
        }
        answer
    }
}

type Ended<T> = Result<Result<T, Refusal>, tokio::task::JoinError>;

async fn finished<T>(
    caller: &Caller,
    call: Call,
    job: JoinHandle<Result<T, Refusal>>,
) -> Result<T, Refusal> {
    flatten(caller, call, job.await)
}

fn flatten<T>(caller: &Caller, call: Call, ended: Ended<T>) -> Result<T, Refusal> {
    ended.unwrap_or_else(|error| {
        tracing::error!(peer = %caller.peer, call = call.path(), %error, "a peer's request failed here");
        let peer = caller.peer.clone();
        let call = call.path();
        caller.shared.observe(&ServerEvent::Panicked { peer, call });
        Err(refusal(
            RefusalCode::Failed,
            "this host failed at the request; its log says more",
        ))
    })
}

/// Where a streamed body belongs.
fn place<P: DeserializeOwned>(request: &Request<Incoming>) -> Result<P, Refusal> {
    let invalid = |why: String| refusal(RefusalCode::Invalid, why);
    let mut values = request.headers().get_all(PLACE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(invalid(format!("a body needs one header {PLACE}")));
    };
    if value.len() > MAX_PLACE {
        return Err(invalid(format!("{PLACE} is longer than {MAX_PLACE} bytes")));
    }
    serde_json::from_slice(value.as_bytes()).map_err(|error| {
        invalid(format!(
            "{PLACE} is no place: {}",
            crate::pki::clean(&error.to_string())
        ))
    })
}

fn json<T: Serialize>(answer: &T) -> Result<Response<Full<Bytes>>, Refusal> {
    let failed = |why: String| {
        tracing::error!(why, "an answer to a peer cannot be sent");
        refusal(
            RefusalCode::Failed,
            format!("this host's answer cannot be sent: {why}"),
        )
    };
    let text = serde_json::to_vec(answer).map_err(|error| failed(error.to_string()))?;
    if text.len() > MAX_ANSWER {
        return Err(failed(format!(
            "it has {} bytes, and {MAX_ANSWER} are the limit",
            text.len()
        )));
    }
    Ok(with_json(StatusCode::OK, text))
}

fn done() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn refused(said: &Refusal) -> Response<Full<Bytes>> {
    let mut said = said.clone();
    if said.message.len() > MAX_SAID {
        said.message = said.message.chars().take(MAX_SAID / 4).collect();
    }
    let text = serde_json::to_vec(&said).unwrap_or_default();
    with_json(status(said.code), text)
}

/// A refusal is for people; no longer text helps them.
const MAX_SAID: usize = 8 << 10;

fn no_such_call(no_call: NoCall) -> Response<Full<Bytes>> {
    let mut response = refused(&no_call.refusal());
    *response.status_mut() = no_call.status();
    if let NoCall::Method(call) = no_call
        && let Ok(method) = HeaderValue::from_str(call.method().as_str())
    {
        response.headers_mut().insert(ALLOW, method);
    }
    response
}

fn with_json(status: StatusCode, text: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn closing(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
