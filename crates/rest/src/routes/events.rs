//! Events, their stream, and the audit.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::HeaderMap;
use lifeboat_model::contract::ReturnCode;
use lifeboat_service::api::{Caller, EventView};
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use super::Refused;
use crate::front::{Asked, Call, Front};
use crate::problem::Problem;
use crate::wire::{AuditRecord, Event, EventGap, InvalidRequest};

/// The most events or audit records in one answer.
const MAX_LIMIT: usize = 1000;

/// How many events a stream asks the service for at a time.
const BATCH: usize = 100;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Those after the one with this id; the newest unless given.
    #[serde(default)]
    since: Option<u64>,
    /// How many at most: 1 to 1000.
    #[serde(default = "default_limit")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: usize,
}

/// How many audit records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// How many at most: 1 to 1000.
    #[serde(default = "default_limit")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: usize,
}

/// Where a stream begins.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// After the event with this id; with what happens from now on unless given. The header
    /// `Last-Event-ID` of a client that comes back goes before it.
    #[serde(default)]
    since: Option<u64>,
}

const fn default_limit() -> usize {
    100
}

fn checked_limit(limit: usize) -> Result<usize, InvalidRequest> {
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    let remedy = format!("use 1 to {MAX_LIMIT}");
    Err(InvalidRequest::new("limit", &limit.to_string(), remedy))
}

/// Events after one, or the newest; oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "event_list",
    params(EventsQuery), responses((status = 200, body = [Event]), Refused))]
pub(super) async fn list(
    call: Call,
    Asked(query): Asked<EventsQuery>,
) -> Result<Json<Vec<Event>>, Problem> {
    let limit = checked_limit(query.limit)?;
    let events = call
        .ask(move |operations, caller| {
            let newest = || operations.wait_for_events(0, Duration::ZERO);
            let since = query
                .since
                .unwrap_or_else(|| newest().saturating_sub(limit as u64));
            operations.events(caller, since, limit)
        })
        .await?;
    Ok(Json(events.into_iter().map(Event::from).collect()))
}

/// Who did what, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "events", operation_id = "audit_list",
    params(AuditQuery), responses((status = 200, body = [AuditRecord]), Refused))]
pub(super) async fn audit(
    call: Call,
    Asked(query): Asked<AuditQuery>,
) -> Result<Json<Vec<AuditRecord>>, Problem> {
    let limit = checked_limit(query.limit)?;
    let records = call
        .ask(move |operations, caller| operations.audit(caller, limit))
        .await?;
    Ok(Json(records.into_iter().map(AuditRecord::from).collect()))
}

/// Events as they happen, as server-sent events.
///
/// An event has its id, its `kind` as the type, and the event in JSON as the data. A client that
/// comes back with `Last-Event-ID` misses nothing; what cannot be given any more is told as an
/// event of type `gap`. Comments are signs of life.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", operation_id = "event_stream",
    params(StreamQuery, ("last-event-id" = Option<u64>, Header, description = "The last event that the client has.")),
    responses((status = 200, body = Event, content_type = "text/event-stream"), Refused))]
pub(super) async fn stream(
    Call { front, caller }: Call,
    Asked(query): Asked<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let resumed = last_event_id(&headers)?.or(query.since);
    let slot = Arc::clone(&front.streams)
        .try_acquire_owned()
        .map_err(|_| {
            Problem::new(
                ReturnCode::NotAvailable,
                format!(
                    "{} streams of events are open, which is the most",
                    front.limits.streams
                ),
                "close one, or read /v1/events",
            )
        })?;
    let heartbeat = front.limits.heartbeat;
    let follower = Follower::start(front, caller, resumed, slot).await?;
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let keep_alive = KeepAlive::new().interval(heartbeat);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, InvalidRequest> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let parsed = text.parse();
    let remedy = "use the id of an event of this stream, or none";
    parsed
        .map(Some)
        .map_err(|_| InvalidRequest::new("last-event-id", &text, remedy))
}

/// One client's place in the events.
struct Follower {
    front: Front,
    caller: Caller,
    /// The last event that the client has.
    last: u64,
    waiting: VecDeque<sse::Event>,
    feed: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
    /// Held while the stream is open.
    _slot: OwnedSemaphorePermit,
}

impl Follower {
    async fn start(
        front: Front,
        caller: Caller,
        resumed: Option<u64>,
        slot: OwnedSemaphorePermit,
    ) -> Result<Self, Problem> {
        // Before the newest is asked for, so that nothing happens unseen in between.
        let feed = front.feed.subscribe();
        let newest = front
            .ask(|operations| Ok(operations.wait_for_events(0, Duration::ZERO)))
            .await?;
        let mut waiting = VecDeque::new();
        let last = match resumed {
            None => newest,
            // Not a number of this host's: nothing would ever come after it.
            Some(last) if last > newest => {
                waiting.push_back(gap(last, newest + 1));
                newest
            }
            Some(last) => last,
        };
        Ok(Self {
            closing: front.closing.clone(),
            front,
            caller,
            last,
            waiting,
            feed,
            _slot: slot,
        })
    }

    /// The next event; `None` when the interface ends or the service refuses to go on.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if *self.closing.borrow_and_update() {
                return None;
            }
            // What comes after this counts as new, so nothing is missed between the two.
            self.feed.borrow_and_update();
            let events = self.read().await.ok()?;
            if !events.is_empty() {
                self.take(events);
                continue;
            }
            tokio::select! {
                changed = self.feed.changed() => changed.ok()?,
                closing = self.closing.changed() => closing.ok()?,
            }
        }
    }

    async fn read(&self) -> Result<Vec<EventView>, Problem> {
        let (caller, last) = (self.caller.clone(), self.last);
        self.front
            .ask(move |operations| operations.events(&caller, last, BATCH))
            .await
    }

    fn take(&mut self, events: Vec<EventView>) {
        for event in events {
            if event.id <= self.last {
                continue;
            }
            if event.id > self.last + 1 {
                self.waiting.push_back(gap(self.last, event.id));
            }
            self.last = event.id;
            self.waiting.push_back(told(event));
        }
    }
}

fn told(view: EventView) -> sse::Event {
    let event = Event::from(view);
    let told = sse::Event::default().id(event.id.to_string());
    // A line break would end the line that says the type.
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    let told = told.event(kind).json_data(&event);
    told.expect("BUG: an event can be written as JSON")
}

fn gap(after: u64, next: u64) -> sse::Event {
    let told = sse::Event::default()
        .event("gap")
        .json_data(EventGap { after, next });
    told.expect("BUG: a gap can be written as JSON")
}
