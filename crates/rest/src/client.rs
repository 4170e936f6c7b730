//! The interface as a program uses it: calls that block, answers as types.
//!
//! Every call is a connection of its own. Answers are bounded in size and time; what a host
//! sends is checked before it is believed.

mod address;
mod calls;
mod connect;
mod follow;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use lifeboat_model::contract::ReturnCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Problem;
use crate::wire::Job;

pub use address::{HostAddress, InvalidHostAddress};
pub use calls::VmRequest;
pub use connect::{ConnectError, Identity};
pub use follow::Followed;

/// The largest answer that is read, in bytes: thousands of VMs with all their disks.
const MAX_ANSWER: usize = 64 << 20;

/// How long an answer may take. The host answers sooner, if only that it is not done yet.
const ANSWER_TIME: Duration = Duration::from_secs(90);

/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// A host, ready to be asked.
#[derive(Debug)]
pub struct Client {
    address: HostAddress,
    identity: Option<Identity>,
    runtime: tokio::runtime::Runtime,
}

/// Why a host did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("start what waits for answers")]
    Runtime { source: std::io::Error },

    #[error("reach the host at {address}")]
    Connect {
        address: HostAddress,
        source: ConnectError,
    },

    #[error("send a request to {address}")]
    Send {
        address: HostAddress,
        source: hyper::Error,
    },

    #[error("the host at {address} did not answer in time")]
    TimedOut { address: HostAddress },

    #[error("read the answer of {address}")]
    Receive {
        address: HostAddress,
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// What answered is no host of ours, or one of another version.
    #[error("the host at {address} answered with what is no answer to this: {why}")]
    Unexpected { address: HostAddress, why: String },

    /// The host's own word.
    #[error("{}", .problem.what)]
    Refused { problem: Problem },
}

impl ClientError {
    /// The host's return code, if it was the host that refused.
    #[must_use]
    pub fn return_code(&self) -> Option<ReturnCode> {
        match self {
            Self::Refused { problem } => problem.code(),
            Self::Runtime { .. }
            | Self::Connect { .. }
            | Self::Send { .. }
            | Self::TimedOut { .. }
            | Self::Receive { .. }
            | Self::Unexpected { .. } => None,
        }
    }
}

/// An answer: as the type that it should be, and as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    pub value: T,
    /// The body as the host sent it.
    pub json: Value,
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done,
    Started(Box<Answer<Job>>),
}

impl Client {
    /// A client of the host at an address. Nothing is sent yet.
    ///
    /// # Errors
    /// When the system refuses what waiting for answers needs.
    pub fn new(address: HostAddress, identity: Option<Identity>) -> Result<Self, ClientError> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build();
        Ok(Self {
            address,
            identity,
            runtime: runtime.map_err(|source| ClientError::Runtime { source })?,
        })
    }

    #[must_use]
    pub fn address(&self) -> &HostAddress {
        &self.address
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        let (status, _, bytes) = self.exchange(Method::GET, path, None)?;
        match status {
            StatusCode::OK => self.read(&bytes),
            other => Err(self.unexpected_status(other)),
        }
    }

    /// A question with a body.
    fn query<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        let (status, _, bytes) = self.exchange(Method::POST, path, Some(json(body)))?;
        match status {
            StatusCode::OK | StatusCode::CREATED => self.read(&bytes),
            other => Err(self.unexpected_status(other)),
        }
    }

    /// A change that is done at once.
    fn change(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<(), ClientError> {
        let (status, _, _) = self.exchange(method, path, body)?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            other => Err(self.unexpected_status(other)),
        }
    }

    /// An operation, which may go on as a job.
    fn operate(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Outcome, ClientError> {
        let (status, location, bytes) = self.exchange(method, path, body)?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(Outcome::Done),
            StatusCode::ACCEPTED if !bytes.is_empty() => {
                Ok(Outcome::Started(Box::new(self.read(&bytes)?)))
            }
            StatusCode::ACCEPTED => {
                let job = location
                    .as_deref()
                    .and_then(|at| at.strip_prefix("/v1/jobs/"));
                let job =
                    job.ok_or_else(|| self.unexpected("it does not say which job it began"))?;
                Ok(Outcome::Started(Box::new(self.job(job)?)))
            }
            other => Err(self.unexpected_status(other)),
        }
    }

    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<Answer<T>, ClientError> {
        let json: Value =
            serde_json::from_slice(bytes).map_err(|error| self.unexpected(&error.to_string()))?;
        let value = T::deserialize(&json).map_err(|error| self.unexpected(&error.to_string()))?;
        Ok(Answer { value, json })
    }

    fn unexpected(&self, why: &str) -> ClientError {
        ClientError::Unexpected {
            address: self.address.clone(),
            why: why.chars().take(200).collect(),
        }
    }

    fn unexpected_status(&self, status: StatusCode) -> ClientError {
        self.unexpected(&format!("status {status}"))
    }

    /// One request and its whole answer; an answer that is a problem is an error.
    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Option<String>, Bytes), ClientError> {
        self.runtime.block_on(async {
            let exchange = self.exchange_whole(method, path, body);
            match tokio::time::timeout(ANSWER_TIME, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(ClientError::TimedOut {
                    address: self.address.clone(),
                }),
            }
        })
    }

    async fn exchange_whole(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Option<String>, Bytes), ClientError> {
        let response = self.send(method, path, body, &[]).await?;
        let (head, incoming) = response.into_parts();
        let body = self.collect(incoming).await?;
        if head.status.is_client_error() || head.status.is_server_error() {
            return Err(self.problem(head.status, &body));
        }
        let location = head.headers.get(header::LOCATION);
        let location = location
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        Ok((head.status, location, body))
    }

    async fn collect(&self, incoming: Incoming) -> Result<Bytes, ClientError> {
        let collected = Limited::new(incoming, MAX_ANSWER).collect().await;
        let collected = collected.map_err(|source| ClientError::Receive {
            address: self.address.clone(),
            source,
        })?;
        Ok(collected.to_bytes())
    }

    fn problem(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(problem) => ClientError::Refused { problem },
            Err(_) => self.unexpected_status(status),
        }
    }

    /// Sends a request and reads the head of the answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        headers: &[(&'static str, String)],
    ) -> Result<Response<Incoming>, ClientError> {
        let connect = connect::connect(&self.address, self.identity.as_ref());
        let mut sender = match tokio::time::timeout(CONNECT_TIME, connect).await {
            Ok(Ok(sender)) => sender,
            Ok(Err(source)) => {
                return Err(ClientError::Connect {
                    address: self.address.clone(),
                    source,
                });
            }
            Err(_) => {
                return Err(ClientError::TimedOut {
                    address: self.address.clone(),
                });
            }
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.host_header())
            .header(
                header::ACCEPT,
                "application/json, application/problem+json, text/event-stream",
            );
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default()));
        let request = request.map_err(|error| self.unexpected(&error.to_string()))?;
        sender
            .send_request(request)
            .await
            .map_err(|source| ClientError::Send {
                address: self.address.clone(),
                source,
            })
    }
}

/// A body.
fn json(body: &impl Serialize) -> Bytes {
    let json = serde_json::to_vec(body);
    json.expect("BUG: a request can be written as JSON").into()
}

/// A segment of a path, whatever it holds.
fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                segment.push(char::from(byte));
            }
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(segment("web-1.example"), "web-1.example");
        assert_eq!(segment("a/b?c#d%e f"), "a%2Fb%3Fc%23d%25e%20f");
        assert_eq!(segment("*.example"), "%2A.example");
        assert_eq!(segment("é"), "%C3%A9");
    }
}
