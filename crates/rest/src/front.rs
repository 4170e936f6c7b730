//! What every handler works with: the service, and how it is asked without holding up others.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use lifeboat_model::contract::ReturnCode;
use lifeboat_service::api::{Accepted, Caller, JobId, Operations, Rejection, VmOperation, VmRef};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};

use crate::feed::EventFeed;
use crate::problem::Problem;
use crate::wire::{self, Job, job_id};

/// How much and how long anybody may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest body of a request, in bytes.
    pub body_bytes: usize,
    /// How long the headers of a request may take, and how long a connection may be idle.
    pub header_time: Duration,
    /// How long the body of a request may take.
    pub body_time: Duration,
    /// How long the service may take to answer.
    pub answer_time: Duration,
    /// How long a client may leave an answer unread.
    pub stalled_time: Duration,
    /// Between two signs of life in a stream of events.
    pub heartbeat: Duration,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Streams of events at once; more are refused.
    pub streams: usize,
    /// Questions that the service answers at once; more wait.
    pub questions: usize,
    /// Changes that the service works on at once; more wait.
    pub changes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 256 << 10,
            header_time: Duration::from_secs(15),
            body_time: Duration::from_secs(15),
            answer_time: Duration::from_secs(60),
            stalled_time: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            connections: 256,
            streams: 64,
            questions: 16,
            changes: 16,
        }
    }
}

/// The service behind the interface. Cloned into every request.
#[derive(Clone)]
pub(crate) struct Front {
    operations: Arc<dyn Operations>,
    pub(crate) limits: Limits,
    questions: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) feed: EventFeed,
    /// True when the interface is about to end: whoever waits for events stops.
    pub(crate) closing: watch::Receiver<bool>,
}

/// Whether a call leaves everything as it is. Questions are answered while changes wait.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Question,
    Change,
}

impl Front {
    pub(crate) fn new(
        operations: Arc<dyn Operations>,
        limits: Limits,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            feed: EventFeed::new(Arc::clone(&operations)),
            operations,
            limits,
            questions: Arc::new(Semaphore::new(limits.questions)),
            changes: Arc::new(Semaphore::new(limits.changes)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            closing,
        }
    }

    /// Asks the service something.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Operations) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        self.call(Kind::Question, question).await
    }

    /// Lets the service change something.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&dyn Operations) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        self.call(Kind::Change, change).await
    }

    async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        call: impl FnOnce(&dyn Operations) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        let slots = match kind {
            Kind::Question => &self.questions,
            Kind::Change => &self.changes,
        };
        let deadline = tokio::time::Instant::now() + self.limits.answer_time;
        let slot = Arc::clone(slots).acquire_owned();
        let slot = match tokio::time::timeout_at(deadline, slot).await {
            Ok(slot) => slot.expect("BUG: the slots are never closed"),
            Err(_) => return Err(busy()),
        };
        let operations = Arc::clone(&self.operations);
        let work = tokio::task::spawn_blocking(move || {
            let answer = call(&*operations);
            // Held until the service is done, also when nobody waits for the answer any more.
            drop(slot);
            answer
        });
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(answer)) => answer.map_err(Problem::from),
            Ok(Err(error)) => {
                tracing::error!(%error, "a call of the service ended in a panic");
                Err(Problem::new(
                    ReturnCode::Failed,
                    "the service failed while it worked on this",
                    "the log of the service has the cause",
                ))
            }
            Err(_) => Err(too_late(kind)),
        }
    }
}

fn busy() -> Problem {
    Problem::new(
        ReturnCode::NotAvailable,
        "the service is busy with other requests; nothing was done",
        "ask again later",
    )
}

fn too_late(kind: Kind) -> Problem {
    let what = "the service did not answer in time";
    match kind {
        Kind::Question => Problem::new(ReturnCode::Timeout, what, "ask again later"),
        Kind::Change => Problem::new(
            ReturnCode::Timeout,
            format!("{what}; it goes on working on this"),
            "look at the VM and its jobs before asking again",
        ),
    }
}

/// A request with its caller.
pub(crate) struct Call {
    pub(crate) front: Front,
    pub(crate) caller: Caller,
}

impl FromRequestParts<Front> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| {
            Problem::new(
                ReturnCode::AccessDenied,
                "this host does not know who asks",
                "",
            )
        })?;
        Ok(Self {
            front: front.clone(),
            caller,
        })
    }
}

impl Call {
    /// Asks the service something in the caller's name.
    pub(crate) async fn ask<T: Send + 'static>(
        self,
        question: impl FnOnce(&dyn Operations, &Caller) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        let caller = self.caller;
        self.front
            .ask(move |operations| question(operations, &caller))
            .await
    }

    /// Lets the service change something in the caller's name.
    pub(crate) async fn change<T: Send + 'static>(
        self,
        change: impl FnOnce(&dyn Operations, &Caller) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        let caller = self.caller;
        self.front
            .change(move |operations| change(operations, &caller))
            .await
    }
}

/// A request about a VM.
pub(crate) struct OnVm {
    call: Call,
    vm: VmRef,
}

#[derive(Deserialize)]
struct VmSegment {
    vm: String,
}

impl FromRequestParts<Front> for OnVm {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Problem> {
        let InPath(segment) = InPath::<VmSegment>::from_request_parts(parts, front).await?;
        Ok(Self {
            call: Call::from_request_parts(parts, front).await?,
            vm: wire::parse_vm(&segment.vm)?,
        })
    }
}

impl OnVm {
    /// Asks the service something about the VM.
    pub(crate) async fn ask<T: Send + 'static>(
        self,
        question: impl FnOnce(&dyn Operations, &Caller, &VmRef) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        let vm = self.vm;
        self.call
            .ask(move |operations, caller| question(operations, caller, &vm))
            .await
    }

    /// Lets the service change something about the VM.
    pub(crate) async fn change<T: Send + 'static>(
        self,
        change: impl FnOnce(&dyn Operations, &Caller, &VmRef) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Problem> {
        let vm = self.vm;
        self.call
            .change(move |operations, caller| change(operations, caller, &vm))
            .await
    }

    /// Starts an operation of the contract. Answers that it is done, or with its job.
    pub(crate) async fn request(self, operation: VmOperation) -> Result<Response, Problem> {
        let outcome = self
            .change(move |operations, caller, vm| {
                let accepted = operations.request(caller, vm, operation)?;
                Ok(match accepted {
                    Accepted::Completed => Outcome::Done,
                    // The job may have ended and been forgotten already.
                    Accepted::JobStarted(id) => {
                        let job = operations.job(caller, id).ok();
                        Outcome::Started(id, job.map(|job| Box::new(job.into())))
                    }
                })
            })
            .await?;
        Ok(outcome.into_response())
    }
}

/// What became of an operation that was accepted.
enum Outcome {
    Done,
    Started(JobId, Option<Box<Job>>),
}

impl IntoResponse for Outcome {
    fn into_response(self) -> Response {
        match self {
            Self::Done => StatusCode::NO_CONTENT.into_response(),
            Self::Started(id, job) => {
                let location = format!("/v1/jobs/{}", job_id(id));
                let mut response = match job {
                    Some(job) => (StatusCode::ACCEPTED, Json(job)).into_response(),
                    None => StatusCode::ACCEPTED.into_response(),
                };
                let location = HeaderValue::try_from(location);
                let location = location.expect("BUG: digits fit into a header");
                response.headers_mut().insert(header::LOCATION, location);
                response
            }
        }
    }
}

/// What the segments of the path say.
pub(crate) struct InPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Front> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, front).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(
                ReturnCode::InvalidParameter,
                shortened("the path cannot be read", &rejection.body_text()),
                "see the OpenAPI document at /v1/openapi.json",
            )),
        }
    }
}

/// What follows the question mark.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Front> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, front).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(
                ReturnCode::InvalidParameter,
                shortened("the query cannot be read", &rejection.body_text()),
                "see the OpenAPI document at /v1/openapi.json",
            )),
        }
    }
}

/// A body in JSON. An absent one is an object without properties.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Front> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, front: &Front) -> Result<Self, Problem> {
        let is_json = is_json(request.headers().get(header::CONTENT_TYPE));
        let limits = &front.limits;
        let read = read_body(request, limits.body_bytes);
        let bytes = tokio::time::timeout(limits.body_time, read)
            .await
            .map_err(|_| {
                Problem::with_status(
                    StatusCode::REQUEST_TIMEOUT,
                    ReturnCode::Timeout,
                    "the body of the request did not arrive in time",
                    "send it in one piece",
                )
            })??;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return parse(b"{}").map(Self);
        }
        if !is_json {
            return Err(Problem::with_status(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ReturnCode::IncorrectDataType,
                "the body is not said to be JSON",
                "send the header Content-Type: application/json",
            ));
        }
        parse(&bytes).map(Self)
    }
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let essence = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = essence.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Reads a body of at most so many bytes. A larger one is heard out for a while, so that its
/// sender gets to read the answer.
async fn read_body(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::new(
                ReturnCode::InvalidParameter,
                "the body of the request ended early",
                "send it whole",
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        received += data.len();
        if received <= limit {
            bytes.extend_from_slice(&data);
        } else if received > 4 * limit {
            break;
        }
    }
    if received > limit {
        return Err(Problem::with_status(
            StatusCode::PAYLOAD_TOO_LARGE,
            ReturnCode::InvalidParameter,
            format!("the body of the request is larger than {limit} bytes"),
            "no request needs that much",
        ));
    }
    Ok(bytes.freeze())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // A list would be taken for the values of an object in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::new(
            ReturnCode::IncorrectDataType,
            "the body of the request is a list",
            "send an object: what stands between { and }",
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let code = match error.classify() {
            serde_json::error::Category::Data => ReturnCode::IncorrectDataType,
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => ReturnCode::InvalidParameter,
        };
        Problem::new(
            code,
            shortened("the body of the request cannot be read", &error.to_string()),
            "see the OpenAPI document at /v1/openapi.json",
        )
    })
}

/// What is wrong, with the beginning of a text that may quote whatever was sent.
fn shortened(what: &str, why: &str) -> String {
    const QUOTED: usize = 300;
    let why: String = why
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .take(QUOTED)
        .collect();
    format!("{what}: {why}")
}
