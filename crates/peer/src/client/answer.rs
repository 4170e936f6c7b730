//! What comes back from a peer, which may be anything.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::Failure;
use crate::message::{Refusal, VERSION};
use crate::wire::{MAX_ANSWER, MAX_REFUSAL};

/// How an answer must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Nothing,
    Json,
    /// So many bytes, neither more nor fewer.
    Bytes(u64),
}

/// What an answer had in it, after its status and length were right.
pub(super) type Content = Vec<u8>;

/// Reads the whole answer, within bounds of size and time.
pub(super) async fn read(
    response: Response<Incoming>,
    shape: Shape,
    stall: Duration,
) -> Result<Content, Failure> {
    let status = response.status();
    let expected = match shape {
        Shape::Nothing => StatusCode::NO_CONTENT,
        Shape::Json | Shape::Bytes(_) => StatusCode::OK,
    };
    if status != expected {
        if status.is_success() {
            return Err(protocol(format!(
                "it answers {status} instead of {expected}"
            )));
        }
        let text = gather(response.into_body(), MAX_REFUSAL as u64, stall).await?;
        return Err(refusal(status, &text));
    }
    let most = match shape {
        Shape::Nothing => 0,
        Shape::Json => MAX_ANSWER as u64,
        Shape::Bytes(length) => length,
    };
    let content = gather(response.into_body(), most, stall).await?;
    match shape {
        Shape::Bytes(length) if content.len() as u64 != length => Err(protocol(format!(
            "its answer has {} bytes instead of {length}",
            content.len()
        ))),
        Shape::Bytes(_) | Shape::Nothing | Shape::Json => Ok(content),
    }
}

pub(super) fn parse<T: DeserializeOwned>(content: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(content).map_err(|error| {
        protocol(format!(
            "its answer is not one of version {VERSION}: {}",
            crate::pki::clean(&error.to_string())
        ))
    })
}

/// A refusal in its own words, cleaned for a terminal.
fn refusal(status: StatusCode, text: &[u8]) -> Failure {
    match serde_json::from_slice::<Refusal>(text) {
        Ok(refusal) => Failure::Refused(Refusal {
            code: refusal.code,
            message: refusal
                .message
                .chars()
                .take(2000)
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
        }),
        Err(_) => protocol(format!("it answers {status} without saying why")),
    }
}

async fn gather(mut body: Incoming, most: u64, stall: Duration) -> Result<Content, Failure> {
    let too_long = || protocol(format!("its answer is longer than {most} bytes"));
    if body.size_hint().lower() > most {
        return Err(too_long());
    }
    let mut content = Vec::new();
    loop {
        let frame = timeout(stall, body.frame())
            .await
            .map_err(|_| Failure::TimedOut("send its answer"))?;
        let Some(frame) = frame else {
            return Ok(content);
        };
        let data: Bytes = match frame.map_err(Failure::Exchange)?.into_data() {
            Ok(data) => data,
            // Trailers say nothing here.
            Err(_) => continue,
        };
        if (content.len() + data.len()) as u64 > most {
            return Err(too_long());
        }
        content.extend_from_slice(&data);
    }
}

pub(super) fn protocol(why: String) -> Failure {
    Failure::Protocol(why)
}
