//! Waiting for jobs, and the stream of events.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use lifeboat_model::contract::{JobState, ReturnCode};
use lifeboat_rest::Limits;
use serde_json::{Value, json};

use crate::support::Scene;

const WAIT: &str = "/v1/jobs/77777777777777777777777777777777/wait";

#[tokio::test]
async fn whoever_waits_for_a_job_is_told_when_it_has_ended() {
    let scene = Scene::new();
    let fake = Arc::clone(&scene.fake);
    // The job ends only when somebody has looked at it and found it running.
    let ending = tokio::task::spawn_blocking(move || {
        while !fake.calls().iter().any(|call| call == "job") {
            std::thread::yield_now();
        }
        fake.end_job(JobState::Exception, ReturnCode::InvalidState, "the VM runs");
    });
    let job = scene.get(&format!("{WAIT}?seconds=60")).await.json();
    ending.await.unwrap();
    assert_eq!(job["job_state"], 10);
    assert_eq!(job["job_state_text"], "Exception");
    assert_eq!(job["ended"], true);
    assert_eq!(job["error_code"], 32_775);
    scene.stop().await;
}

#[tokio::test]
async fn a_wait_that_is_over_shows_the_job_as_it_is() {
    let scene = Scene::new();
    let job = scene.get(&format!("{WAIT}?seconds=0")).await.json();
    assert_eq!(
        (&job["ended"], &job["percent_complete"]),
        (&json!(false), &json!(40))
    );
    let other = format!("/v1/jobs/{}/wait", "00".repeat(16));
    scene.get(&other).await.problem(404);
    scene.stop().await;
}

#[tokio::test]
async fn whoever_waits_is_answered_when_the_interface_ends() {
    let scene = Scene::new();
    let request = Request::get(format!("{WAIT}?seconds=60")).header("host", "a");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let fake = Arc::clone(&scene.fake);
    let socket = scene.socket.clone();
    let waiting = tokio::spawn(async move {
        let io = tokio::net::UnixStream::connect(socket).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(io);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap().status()
    });
    let looked = tokio::task::spawn_blocking(move || {
        while !fake.calls().iter().any(|call| call == "job") {
            std::thread::yield_now();
        }
    });
    looked.await.unwrap();
    scene.stop().await;
    assert_eq!(waiting.await.unwrap(), 200);
}

/// A client of the stream.
struct Reader {
    body: Incoming,
    buffered: String,
}

#[derive(Debug, PartialEq)]
struct Message {
    id: Option<String>,
    kind: String,
    data: Value,
}

impl Reader {
    async fn open(scene: &Scene, query: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(format!("/v1/events/stream{query}")).header("host", "a");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = scene.send(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            buffered: String::new(),
        }
    }

    /// The next block of lines; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffered.split_once("\n\n") {
                let block = block.to_owned();
                self.buffered = rest.to_owned();
                return Some(block);
            }
            let frame = self.body.frame().await?.unwrap();
            let data = frame.into_data().unwrap();
            self.buffered.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next message that is no comment.
    async fn message(&mut self) -> Option<Message> {
        loop {
            let block = self.block().await?;
            if block.starts_with(':') {
                continue;
            }
            let field = |name: &str| {
                let lines: Vec<&str> = block
                    .lines()
                    .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .collect();
                (!lines.is_empty()).then(|| lines.join("\n"))
            };
            return Some(Message {
                id: field("id"),
                kind: field("event").unwrap(),
                data: serde_json::from_str(&field("data").unwrap()).unwrap(),
            });
        }
    }

    async fn id(&mut self) -> String {
        self.message().await.unwrap().id.unwrap()
    }
}

#[tokio::test]
async fn events_are_told_as_they_happen_from_now_on() {
    let scene = Scene::new();
    scene.fake.happens("old");
    let mut reader = Reader::open(&scene, "", None).await;
    scene.fake.happens("state_changed");
    let message = reader.message().await.unwrap();
    assert_eq!(message.id.as_deref(), Some("2"));
    assert_eq!(message.kind, "state_changed");
    assert_eq!(message.data["message"], "event 2\nhappened");
    assert_eq!(
        message.data,
        scene.get("/v1/events?since=1").await.json()[0]
    );
    scene.fake.happens("job_ended");
    assert_eq!(reader.id().await, "3");
    scene.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_resumed_misses_nothing_and_repeats_nothing() {
    let scene = Scene::new();
    for _ in 0..250 {
        scene.fake.happens("state_changed");
    }
    let mut reader = Reader::open(&scene, "?since=0", None).await;
    for id in 1..=3 {
        assert_eq!(reader.id().await, id.to_string());
    }
    drop(reader);
    scene.fake.happens("state_changed");
    // The header of a client that comes back goes before the address it began with.
    let mut reader = Reader::open(&scene, "?since=0", Some("3")).await;
    for id in 4..=251 {
        assert_eq!(reader.id().await, id.to_string());
    }
    scene.stop().await;
}

#[tokio::test]
async fn events_that_cannot_be_given_any_more_are_told_as_a_gap() {
    let scene = Scene::new();
    for _ in 0..10 {
        scene.fake.happens("state_changed");
    }
    scene.fake.forget_events(6);
    let mut reader = Reader::open(&scene, "", Some("2")).await;
    let gap = reader.message().await.unwrap();
    assert_eq!((gap.id, gap.kind.as_str()), (None, "gap"));
    assert_eq!(gap.data, json!({"after": 2, "next": 7}));
    assert_eq!(reader.id().await, "7");
    scene.stop().await;
}

#[tokio::test]
async fn a_client_that_knows_numbers_of_another_host_is_told_and_hears_what_follows() {
    let scene = Scene::new();
    scene.fake.happens("state_changed");
    let mut reader = Reader::open(&scene, "", Some("900")).await;
    let gap = reader.message().await.unwrap();
    assert_eq!(gap.data, json!({"after": 900, "next": 2}));
    scene.fake.happens("state_changed");
    assert_eq!(reader.id().await, "2");
    scene.stop().await;
}

#[tokio::test]
async fn a_last_event_that_is_no_number_is_refused() {
    let scene = Scene::new();
    let request = Request::get("/v1/events/stream").header("host", "a");
    let request = request.header("last-event-id", "seven\u{ff}");
    let answer = scene
        .answer(request.body(Full::new(Bytes::new())).unwrap())
        .await;
    answer.problem(400);
    scene.stop().await;
}

#[tokio::test]
async fn a_stream_shows_signs_of_life_and_ends_with_the_interface() {
    let limits = Limits {
        heartbeat: Duration::from_millis(20),
        ..Limits::default()
    };
    let scene = Scene::with(limits);
    let mut reader = Reader::open(&scene, "", None).await;
    for _ in 0..3 {
        assert!(reader.block().await.unwrap().starts_with(':'));
    }
    scene.stop().await;
    assert_eq!(reader.message().await, None);
}

#[tokio::test]
async fn one_stream_too_many_is_refused_until_another_is_closed() {
    let limits = Limits {
        streams: 2,
        heartbeat: Duration::from_millis(20),
        ..Limits::default()
    };
    let scene = Scene::with(limits);
    let first = Reader::open(&scene, "", None).await;
    let _second = Reader::open(&scene, "", None).await;
    scene.get("/v1/events/stream").await.problem(503);
    drop(first);
    // It is closed when the next sign of life finds nobody.
    loop {
        let request = Request::get("/v1/events/stream").header("host", "a");
        let response = scene
            .send(request.body(Full::new(Bytes::new())).unwrap())
            .await;
        if response.status() == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let limits = Limits {
        stalled_time: Duration::from_millis(200),
        heartbeat: Duration::from_millis(20),
        streams: 1,
        ..Limits::default()
    };
    let scene = Scene::with(limits);
    // More than the kernel keeps for somebody who does not read.
    for _ in 0..20_000 {
        scene.fake.happens("state_changed");
    }
    let reader = Reader::open(&scene, "?since=0", None).await;
    loop {
        let request = Request::get("/v1/events/stream").header("host", "a");
        let response = scene
            .send(request.body(Full::new(Bytes::new())).unwrap())
            .await;
        if response.status() == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(reader);
    scene.stop().await;
}
