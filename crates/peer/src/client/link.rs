//! [`Link`] over a connection.

use std::future::Future;
use std::io::Read;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use lifeboat_model::{Receipt, RelationshipId};
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::Link;
use super::answer::{self, Content, Shape, protocol};
use super::body::{Outgoing, Pieces};
use super::connection::Connection;
use super::error::{Failure, LinkError};
use super::pool::{Pool, Target};
use crate::address::{PeerAddress, PeerHost};
use crate::cancel::Cancel;
use crate::message::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, NewReplica, PlannedFailover, Removal, ReplicaReport,
    SessionRequest, TakeOver, Verified,
};
use crate::pki::checked_host_name;
use crate::throttle::Cancelled;
use crate::wire::{Call, GuestQuery, MAX_MESSAGE, PLACE};

/// Pieces between the caller's thread and the connection.
const IN_FLIGHT: usize = 2;

#[derive(Debug, Clone)]
pub(super) struct TlsLink {
    pool: Arc<Pool>,
    target: Target,
    cancel: Cancel,
}

impl TlsLink {
    pub(super) fn new(
        pool: Arc<Pool>,
        address: &PeerAddress,
        host: Option<&str>,
        cancel: Cancel,
    ) -> Result<Self, LinkError> {
        let invalid = |name: &str| LinkError::HostName {
            name: name.chars().take(80).collect(),
        };
        let dns = |name: &str| {
            let name = checked_host_name(name).map_err(|_| invalid(name))?;
            ServerName::try_from(name.clone()).map_err(|_| invalid(&name))
        };
        let name = match (host, address.peer_host()) {
            (Some(name), _) => dns(name)?,
            (None, PeerHost::Name(name)) => dns(name)?,
            (None, PeerHost::Address(ip)) => ServerName::from(*ip),
        };
        Ok(Self {
            pool,
            target: Target {
                address: address.clone(),
                name,
            },
            cancel,
        })
    }

    fn message<M: Serialize>(
        &self,
        call: Call,
        message: &M,
        shape: Shape,
    ) -> Result<Content, LinkError> {
        let text = serde_json::to_vec(message).map_err(|error| {
            self.seen(protocol(format!("the message cannot be written: {error}")))
        })?;
        if text.len() > MAX_MESSAGE {
            return Err(LinkError::Unsendable {
                why: format!(
                    "it has {} bytes, and {MAX_MESSAGE} are the limit",
                    text.len()
                ),
            });
        }
        self.whole(call, &Bytes::from(text), shape)
    }

    fn told<M: Serialize>(&self, call: Call, message: &M) -> Result<(), LinkError> {
        self.message(call, message, Shape::Nothing).map(|_| ())
    }

    fn asked<M: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        message: &M,
    ) -> Result<A, LinkError> {
        let content = self.message(call, message, Shape::Json)?;
        answer::parse(&content).map_err(|failure| self.seen(failure))
    }

    /// Sends a call that is no stream, and reads the answer.
    fn whole(&self, call: Call, text: &Bytes, shape: Shape) -> Result<Content, LinkError> {
        self.wait(async {
            if let Some(connection) = self.pool.warm(&self.target) {
                match self.exchange(connection, call, text, shape).await {
                    Err(failure) if self.is_stale(&failure) => {}
                    done => return done,
                }
            }
            let connection = self.pool.fresh(&self.target).await?;
            self.exchange(connection, call, text, shape).await
        })
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        call: Call,
        text: &Bytes,
        shape: Shape,
    ) -> Result<Content, Failure> {
        let request = self.request(
            call,
            Outgoing::Message((!text.is_empty()).then(|| text.clone())),
        )?;
        let patience = self.pool.patience;
        let sending = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let sent = timeout(patience.answer, sending)
            .await
            .map_err(|_| Failure::TimedOut("answer"))
            .and_then(|answered| answered.map_err(Failure::Exchange));
        let response = match sent {
            Ok(response) => response,
            Err(failure) => return Err(connection.explain(failure).await),
        };
        let content = answer::read(response, shape, patience.stall).await;
        self.keep_after(&content, connection);
        content
    }

    /// Sends a stream, as far as the peer wants it, and reads the answer.
    fn stream<P: Serialize>(
        &self,
        call: Call,
        place: &P,
        body: &mut (dyn Read + Send),
        shape: Shape,
    ) -> Result<Content, LinkError> {
        let place = serde_json::to_string(place)
            .ok()
            .and_then(|text| HeaderValue::from_str(&text).ok())
            .ok_or_else(|| self.seen(protocol("the place cannot be written".to_owned())))?;
        let mut pieces = Pieces::new(body);
        self.wait(async {
            if let Some(connection) = self.pool.warm(&self.target) {
                match self
                    .send(connection, call, &place, &mut pieces, shape)
                    .await
                {
                    Err(Sent::Nothing(failure)) if self.is_stale(&failure) => {}
                    done => return done.map_err(Sent::failure),
                }
            }
            let connection = self.pool.fresh(&self.target).await?;
            self.send(connection, call, &place, &mut pieces, shape)
                .await
                .map_err(Sent::failure)
        })
    }

    async fn send(
        &self,
        mut connection: Connection,
        call: Call,
        place: &HeaderValue,
        pieces: &mut Pieces<'_>,
        shape: Shape,
    ) -> Result<Content, Sent> {
        let response = match self.transfer(&mut connection, call, place, pieces).await {
            Ok(response) => response,
            Err(Sent::Nothing(failure)) => {
                return Err(Sent::Nothing(connection.explain(failure).await));
            }
            Err(Sent::Some(failure)) => {
                return Err(Sent::Some(connection.explain(failure).await));
            }
        };
        let content = answer::read(response, shape, self.pool.patience.stall)
            .await
            .map_err(Sent::Some);
        if content.is_ok() {
            self.pool.keep(&self.target, connection);
        }
        content
    }

    /// The peer's answer to a stream, when it comes. The body is begun when the peer asks
    /// for it.
    async fn transfer(
        &self,
        connection: &mut Connection,
        call: Call,
        place: &HeaderValue,
        pieces: &mut Pieces<'_>,
    ) -> Result<Response<Incoming>, Sent> {
        let patience = self.pool.patience;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let mut request = self
            .request(call, Outgoing::Pieces(receiver))
            .map_err(Sent::Nothing)?;
        request.headers_mut().insert(PLACE, place.clone());
        let wait = HeaderValue::from_static("100-continue");
        request.headers_mut().insert(EXPECT, wait);
        let go_on = Arc::new(Notify::new());
        let heard = Arc::clone(&go_on);
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                heard.notify_one();
            }
        });
        let mut answering = pin!(async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        });
        tokio::select! {
            response = &mut answering => {
                return response.map_err(|error| Sent::Nothing(Failure::Exchange(error)));
            }
            waited = timeout(patience.answer, go_on.notified()) => {
                waited.map_err(|_| Sent::Nothing(Failure::TimedOut("answer")))?;
            }
        }
        match self
            .pour(pieces, &sender, &mut answering)
            .await
            .map_err(Sent::Some)?
        {
            Poured::Answered(response) => Ok(*response),
            Poured::All => timeout(patience.durable, &mut answering)
                .await
                .map_err(|_| Sent::Some(Failure::TimedOut("confirm what was sent")))?
                .map_err(|error| Sent::Some(Failure::Exchange(error))),
        }
    }

    /// Hands the pieces to the connection until they end or the peer has answered. Reads the
    /// caller's body on the caller's thread, which does nothing else.
    async fn pour(
        &self,
        pieces: &mut Pieces<'_>,
        sender: &mpsc::Sender<Option<Bytes>>,
        mut answering: impl Future<Output = hyper::Result<Response<Incoming>>> + Unpin,
    ) -> Result<Poured, Failure> {
        loop {
            let permit = tokio::select! {
                biased;
                response = &mut answering => {
                    return response
                        .map(|response| Poured::Answered(Box::new(response)))
                        .map_err(Failure::Exchange);
                }
                permit = timeout(self.pool.patience.stall, sender.reserve()) => {
                    permit.map_err(|_| Failure::TimedOut("take what was sent"))?
                }
            };
            let Ok(permit) = permit else {
                // The connection is gone; why, the answer says.
                return answering
                    .await
                    .map(|response| Poured::Answered(Box::new(response)))
                    .map_err(Failure::Exchange);
            };
            if self.cancel.is_raised() {
                return Err(Failure::Cancelled);
            }
            match pieces.next() {
                Ok(Some(piece)) => permit.send(Some(piece)),
                Ok(None) => {
                    permit.send(None);
                    return Ok(Poured::All);
                }
                Err(error) if error.get_ref().is_some_and(|cause| cause.is::<Cancelled>()) => {
                    return Err(Failure::Cancelled);
                }
                Err(error) => return Err(Failure::Source(error)),
            }
            // Lets an answer that has come in be seen even if there is always room.
            tokio::task::yield_now().await;
        }
    }

    fn request(&self, call: Call, body: Outgoing) -> Result<Request<Outgoing>, Failure> {
        let built = Request::builder()
            .method(call.method())
            .uri(call.path())
            .header(HOST, self.target.address.to_string())
            .header(
                CONTENT_TYPE,
                match body {
                    Outgoing::Message(_) => "application/json",
                    Outgoing::Pieces(_) | Outgoing::Ended => "application/octet-stream",
                },
            )
            .body(body);
        built.map_err(|error| protocol(format!("the request cannot be written: {error}")))
    }

    /// A connection goes on being used after an answer that was complete, also a refusal.
    fn keep_after(&self, content: &Result<Content, Failure>, connection: Connection) {
        if matches!(content, Ok(_) | Err(Failure::Refused(_))) {
            self.pool.keep(&self.target, connection);
        }
    }

    fn wait(
        &self,
        work: impl Future<Output = Result<Content, Failure>>,
    ) -> Result<Content, LinkError> {
        self.pool
            .runtime
            .block_on(async {
                tokio::select! {
                    biased;
                    () = self.cancel.raised() => Err(Failure::Cancelled),
                    done = work => done,
                }
            })
            .map_err(|failure| self.seen(failure))
    }

    fn is_stale(&self, failure: &Failure) -> bool {
        failure.is_stale_connection(&self.pool.tls.host())
    }

    fn seen(&self, failure: Failure) -> LinkError {
        failure.to(&self.target.address, &self.pool.tls.host())
    }
}

/// How a stream ended that the connection took.
enum Poured {
    All,
    /// The peer has answered before the end.
    Answered(Box<Response<Incoming>>),
}

/// How much of the caller's body was taken before a failure.
enum Sent {
    Nothing(Failure),
    Some(Failure),
}

impl Sent {
    fn failure(self) -> Failure {
        match self {
            Self::Nothing(failure) | Self::Some(failure) => failure,
        }
    }
}

impl Link for TlsLink {
    fn introduce(&self) -> Result<Introduction, LinkError> {
        let content = self.whole(Call::Introduce, &Bytes::new(), Shape::Json)?;
        answer::parse(&content).map_err(|failure| self.seen(failure))
    }

    fn make_replica(&self, message: NewReplica) -> Result<(), LinkError> {
        self.told(Call::MakeReplica, &message)
    }

    fn begin_session(&self, message: SessionRequest) -> Result<ReplicaReport, LinkError> {
        self.asked(Call::BeginSession, &message)
    }

    fn begin_copy(&self, message: BeginCopy) -> Result<CopyProgress, LinkError> {
        self.asked(Call::BeginCopy, &message)
    }

    fn digests(&self, message: DigestQuery) -> Result<Vec<u8>, LinkError> {
        let length = message
            .answer_length()
            .map_err(|why| LinkError::Unsendable {
                why: why.to_string(),
            })?;
        self.message(Call::Digests, &message, Shape::Bytes(length))
    }

    fn verified(&self, message: Verified) -> Result<(), LinkError> {
        self.told(Call::Verified, &message)
    }

    fn put_chunk(&self, place: ChunkPlace, body: &mut (dyn Read + Send)) -> Result<(), LinkError> {
        self.stream(Call::PutChunk, &place, body, Shape::Nothing)
            .map(|_| ())
    }

    fn put_delta(
        &self,
        place: DeltaPlace,
        body: &mut (dyn Read + Send),
    ) -> Result<Receipt, LinkError> {
        let content = self.stream(Call::PutDelta, &place, body, Shape::Json)?;
        answer::parse(&content).map_err(|failure| self.seen(failure))
    }

    fn planned_failover(&self, message: PlannedFailover) -> Result<(), LinkError> {
        self.told(Call::PlannedFailover, &message)
    }

    fn guest_status(&self, relationship: RelationshipId) -> Result<GuestStatus, LinkError> {
        self.asked(Call::GuestStatus, &GuestQuery { relationship })
    }

    fn take_over(&self, message: TakeOver) -> Result<(), LinkError> {
        self.told(Call::TakeOver, &message)
    }

    fn adopt(&self, message: Adoption) -> Result<Adopted, LinkError> {
        self.asked(Call::Adopt, &message)
    }

    fn change_settings(&self, message: ChangeSettings) -> Result<(), LinkError> {
        self.told(Call::ChangeSettings, &message)
    }

    fn remove(&self, message: Removal) -> Result<(), LinkError> {
        self.told(Call::Remove, &message)
    }

    fn cancelled_by(&self, cancel: Cancel) -> Arc<dyn Link> {
        Arc::new(Self {
            cancel,
            ..self.clone()
        })
    }
}
