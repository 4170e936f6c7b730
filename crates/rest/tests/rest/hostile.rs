//! Requests that no client of ours sends.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use lifeboat_rest::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::Scene;

fn post(path: &str, content_type: Option<&str>, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::post(path).header("host", "localhost");
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(Full::new(body.into())).unwrap()
}

const JSON: Option<&str> = Some("application/json");

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_problems() {
    let scene = Scene::new();
    for path in [
        "/",
        "/v1",
        "/v2/vms",
        "/v1/vms/",
        "/v1/vms/a/b/c/d",
        "/v1/vms/../host",
        "//v1/vms",
    ] {
        scene.get(path).await.problem(404);
    }
    for (method, path) in [
        ("PUT", "/v1/vms"),
        ("DELETE", "/v1/host"),
        ("POST", "/v1/vms/web1/health"),
        ("GET", "/v1/vms/web1/start"),
        ("TRACE", "/v1/vms"),
        ("HACK", "/v1/vms"),
    ] {
        scene.ask(method, path, None).await.problem(405);
    }
    assert_eq!(scene.fake.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn values_that_cannot_be_are_problems_that_name_the_property() {
    let scene = Scene::new();
    for (method, path, named) in [
        ("GET", "/v1/jobs/7", "job"),
        ("GET", "/v1/jobs?vm=web1", "vm"),
        ("GET", "/v1/jobs?running=perhaps", "running"),
        ("GET", "/v1/jobs?colour=red", "colour"),
        ("GET", "/v1/events?since=-1", "since"),
        ("GET", "/v1/events?limit=0", "limit"),
        ("GET", "/v1/events?limit=1001", "limit"),
        ("GET", "/v1/events?limit=18446744073709551616", "limit"),
        ("GET", "/v1/audit?limit=x", "limit"),
        ("GET", "/v1/events/stream?since=x", "since"),
        (
            "GET",
            "/v1/jobs/77777777777777777777777777777777/wait?seconds=61",
            "seconds",
        ),
        ("GET", "/v1/vms/%00", "vm"),
        ("GET", "/v1/vms/a%0Ab", "vm"),
        ("GET", "/v1/vms/%FF", ""),
        ("DELETE", "/v1/vms/web1/points/newest", "sequence"),
        ("DELETE", "/v1/vms/web1/points/-1", "sequence"),
        ("POST", "/v1/vms/web1/points/oldest/verify", "sequence"),
    ] {
        let problem = scene.ask(method, path, None).await.problem(400);
        let what = problem["what"].as_str().unwrap();
        assert!(what.contains(named), "{path}: {what}");
        assert!(what.len() < 500 && !what.contains('\n'), "{what}");
    }
    let long = format!("/v1/vms/{}", "x".repeat(5000));
    assert!(
        scene.get(&long).await.problem(400)["what"]
            .as_str()
            .unwrap()
            .len()
            < 300
    );
    assert_eq!(scene.fake.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn bodies_that_cannot_be_are_problems() {
    let scene = Scene::new();
    let deep = "[".repeat(100_000);
    for (path, body) in [
        ("/v1/vms/web1/failover/start", "{"),
        ("/v1/vms/web1/failover/start", "null"),
        ("/v1/vms/web1/failover/start", "7"),
        ("/v1/vms/web1/failover/start", "[]"),
        ("/v1/vms/web1/failover/start", " [12, true]"),
        ("/v1/vms/web1/failover/commit", "[]"),
        ("/v1/vms/web1/failover/start", "{}{}"),
        ("/v1/vms/web1/failover/start", "\u{0}"),
        ("/v1/vms/web1/failover/start", deep.as_str()),
        ("/v1/vms/web1/failover/start", r#"{"force": "yes"}"#),
        (
            "/v1/vms/web1/failover/start",
            r#"{"force": true, "force": true}"#,
        ),
        ("/v1/vms/web1/failover/start", r#"{"forced": true}"#),
        ("/v1/vms/web1/failover/start", r#"{"point": -1}"#),
        ("/v1/vms/web1/failover/start", r#"{"point": 1e30}"#),
        ("/v1/vms/web1/failover/commit", r#"{"yes": true}"#),
        ("/v1/vms/web1/stop", r#"{"how": "burn"}"#),
        ("/v1/vms/web1/replication", "{}"),
        (
            "/v1/vms/web1/replication",
            r#"{"recovery_connection_point": "a:1", "settings": {"recovery_histroy": 1}}"#,
        ),
        (
            "/v1/vms/web1/replication/start",
            r#"{"initial_replication_type": 4}"#,
        ),
        (
            "/v1/vms/web1/replication/start",
            r#"{"start_time": "tomorrow"}"#,
        ),
        ("/v1/vms", ""),
        (
            "/v1/vms",
            r#"{"element_name": "a", "memory_mib": 1, "processors": 1, "disks": [{"disk": "../a"}]}"#,
        ),
        (
            "/v1/vms",
            r#"{"element_name": "a", "memory_mib": 1, "processors": 1, "disks": [{"disk": "a", "size": 5}]}"#,
        ),
        (
            "/v1/authorization-entries",
            r#"{"allowed_primary_host_system": "a.*", "trust_group": "g", "replica_storage_location": "/r"}"#,
        ),
        (
            "/v1/authorization-entries",
            r#"{"allowed_primary_host_system": "a", "trust_group": "g", "replica_storage_location": "../r"}"#,
        ),
    ] {
        let answer = scene.answer(post(path, JSON, body.to_owned())).await;
        let problem = answer.problem(400);
        assert!(problem["what"].as_str().unwrap().len() < 500, "{problem}");
    }
    let not_utf8 = post(
        "/v1/vms/web1/stop",
        JSON,
        vec![b'{', b'"', 0xff, b'"', b'}'],
    );
    scene.answer(not_utf8).await.problem(400);
    assert_eq!(scene.fake.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn an_entry_is_modified_under_its_own_name_only() {
    let scene = Scene::new();
    let entry = json!({"allowed_primary_host_system": "*", "trust_group": "g", "replica_storage_location": "/r"});
    scene
        .ask(
            "PUT",
            "/v1/authorization-entries/b.example.com",
            Some(entry),
        )
        .await
        .problem(400);
    assert_eq!(scene.fake.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn a_body_that_is_not_said_to_be_json_is_refused() {
    let scene = Scene::new();
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonp"),
    ] {
        let request = post("/v1/vms/web1/failover/start", content_type, "{}");
        scene.answer(request).await.problem(415);
    }
    assert_eq!(scene.fake.calls(), [""; 0]);
    let charset = Some("Application/JSON; charset=utf-8");
    let request = post("/v1/vms/web1/failover/start", charset, "{}");
    assert_eq!(scene.answer(request).await.status, 204);
    scene.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let scene = Scene::new();
    let request = |method: &str, origin: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/v1/vms/web1/failover/commit");
        let request = request.header("host", "a:8443").header("origin", origin);
        request.body(Full::new(Bytes::new())).unwrap()
    };
    scene
        .answer(request("POST", "https://evil.example"))
        .await
        .problem(403);
    assert_eq!(scene.fake.calls(), [""; 0]);
    assert_eq!(
        scene.answer(request("POST", "https://a:8443")).await.status,
        204
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_however_it_is_sent() {
    let scene = Scene::new();
    let limit = Limits::default().body_bytes;
    let padded = |length: usize| {
        let mut body = String::from("{}");
        body.push_str(&" ".repeat(length - 2));
        body
    };
    let fits = post("/v1/vms/web1/failover/start", JSON, padded(limit));
    assert_eq!(scene.answer(fits).await.status, 204);
    let large = post("/v1/vms/web1/failover/start", JSON, padded(limit + 1));
    scene.answer(large).await.problem(413);
    assert_eq!(scene.fake.calls().len(), 1);

    // In pieces, without saying how much is to come, and without an end.
    let mut stream = scene.connect().await;
    let head = "POST /v1/vms/web1/stop HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let piece = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        // Ends when the interface does not listen any more.
        while writer.write_all(piece.as_bytes()).await.is_ok() {}
    });
    let mut answer = Vec::new();
    let _ = reader.read_to_end(&mut answer).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 413 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    sending.await.unwrap();
    scene.stop().await;
}

/// Limits with which a slow client is given up soon.
fn impatient() -> Limits {
    let short = Duration::from_millis(300);
    Limits {
        header_time: short,
        body_time: short,
        answer_time: short,
        stalled_time: short,
        ..Limits::default()
    }
}

#[tokio::test]
async fn slow_clients_are_given_up() {
    let scene = Scene::with(impatient());
    for (sent, answered) in [
        ("", ""),
        ("GET /v1/host HTTP/1.1\r\nho", ""),
        (
            "POST /v1/vms/web1/stop HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
            "HTTP/1.1 408 ",
        ),
    ] {
        let mut stream = scene.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The interface ends the connection; the test's own deadline is that of every test.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(answered), "{sent:?}: {answer:?}");
    }
    assert_eq!(scene.fake.calls(), [""; 0]);
    scene.stop().await;
}

#[tokio::test]
async fn what_is_not_http_ends_the_connection_and_nothing_else() {
    let scene = Scene::new();
    let many_headers: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long_header = "a".repeat(1 << 20);
    for sent in [
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /v1/host HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /v1/host HTTP/1.1\r\nhost: a\r\n{many_headers}\r\n"),
        format!("GET /v1/host HTTP/1.1\r\nhost: a\r\nx: {long_header}\r\n\r\n"),
        "POST /v1/vms/web1/stop HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".to_owned(),
        "POST /v1/vms/web1/stop HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
    ] {
        let (mut reader, mut writer) = scene.connect().await.into_split();
        // It may be refused before it is all sent.
        let _ = writer.write_all(sent.as_bytes()).await;
        writer.shutdown().await.unwrap_or_default();
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(scene.fake.calls(), [""; 0]);
    assert_eq!(scene.get("/v1/host").await.status, 200);
    scene.stop().await;
}

#[tokio::test]
async fn a_service_that_does_not_answer_in_time_is_a_problem_that_says_whether_it_goes_on() {
    let scene = Scene::with(impatient());
    scene.fake.hold();
    let problem = scene.get("/v1/host").await.problem(504);
    assert_eq!(problem["return_code"], 32_772);
    let problem = scene
        .ask("POST", "/v1/vms/web1/start", None)
        .await
        .problem(504);
    assert!(
        problem["what"].as_str().unwrap().contains("goes on"),
        "{problem}"
    );
    scene.fake.release();
    scene.stop().await;
}

#[tokio::test]
async fn questions_are_answered_while_changes_wait() {
    let limits = Limits {
        changes: 2,
        ..impatient()
    };
    let scene = Scene::with(limits);
    scene.fake.hold();
    // Both places are taken and stay so: the service works on, though nobody waits any more.
    for _ in 0..2 {
        scene
            .ask("POST", "/v1/vms/web1/start", None)
            .await
            .problem(504);
    }
    assert_eq!(scene.fake.calls().len(), 2);
    let problem = scene
        .ask("POST", "/v1/vms/web1/start", None)
        .await
        .problem(503);
    assert!(
        problem["what"].as_str().unwrap().contains("busy"),
        "{problem}"
    );
    assert_eq!(
        scene.fake.calls(),
        [""; 0],
        "what waited was given to the service"
    );
    scene.get("/v1/host").await.problem(504);
    assert_eq!(scene.fake.calls(), ["host"]);
    scene.fake.release();
    scene.stop().await;
}

#[tokio::test]
async fn a_panic_in_the_service_ends_one_request_only() {
    let scene = Scene::new();
    scene.fake.break_down();
    for _ in 0..40 {
        let problem = scene.get("/v1/host").await.problem(500);
        assert!(
            !problem["what"]
                .as_str()
                .unwrap()
                .contains("the test wants it so")
        );
    }
    scene.get("/v1/nothing").await.problem(404);
    scene.stop().await;
}
