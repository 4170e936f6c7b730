//! What Prometheus is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use lifeboat_model::contract::{ReplicationMode, ReturnCode};
use lifeboat_rest::{AlertCounters, Limits, rest};
use lifeboat_service::api::{AccessRole, Caller};

use crate::fake::Fake;
use crate::support::Scene;

async fn told(fake: Fake, counters: Arc<AlertCounters>) -> String {
    let mut request = Request::builder()
        .uri("/metrics")
        .body(Body::empty())
        .unwrap();
    request.extensions_mut().insert(Caller {
        name: "prometheus".to_owned(),
        role: AccessRole::Viewer,
    });
    let rest = rest(Arc::new(fake), Limits::default()).with_alerts(counters);
    let response = rest.answer(request).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn metrics_are_what_the_service_says() {
    let scene = Scene::new();
    let answer = scene.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let content_type = answer.content_type.as_deref().unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4"));
    let vm = format!("{{vm=\"web1\",id=\"{}\"}}", crate::fake::VM);
    for line in [
        format!("lifeboat_vm_running{vm} 1"),
        format!("lifeboat_vm_replication_mode{vm} 1"),
        format!("lifeboat_vm_replication_state{vm} 3"),
        format!("lifeboat_vm_replication_health{vm} 1"),
        format!("lifeboat_vm_last_replication_timestamp_seconds{vm} 1795607958"),
        format!("lifeboat_vm_free_bytes{vm} 5368709120"),
        format!("lifeboat_vm_replications_total{vm} 11"),
        format!("lifeboat_vm_replications_missed_total{vm} 1"),
        format!("lifeboat_vm_replicated_bytes_total{vm} 4194304"),
    ] {
        assert!(
            answer.text.lines().any(|told| told == line),
            "{line}\n{}",
            answer.text
        );
    }
    // A primary has no store, so there are no points to count.
    assert!(!answer.text.contains("lifeboat_vm_recovery_points{"));
    scene.stop().await;
}

#[tokio::test]
async fn alerts_are_counted_by_what_became_of_them() {
    let counters = Arc::new(AlertCounters::default());
    counters.delivered();
    counters.delivered();
    counters.failed();
    let text = told(Fake::new(), counters).await;
    for line in [
        "lifeboat_alerts_total{outcome=\"delivered\"} 2",
        "lifeboat_alerts_total{outcome=\"failed\"} 1",
        "lifeboat_alerts_total{outcome=\"held_back\"} 0",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_service_that_refuses_is_a_failed_scrape_and_no_zeroes() {
    let scene = Scene::new();
    scene
        .fake
        .reject(ReturnCode::Failed, "the catalog fails", "");
    let answer = scene.get("/metrics").await;
    assert!(answer.status.is_server_error(), "{answer:?}");
    assert!(!answer.text.contains("lifeboat_"));
    scene.stop().await;
}

#[tokio::test]
async fn every_metric_is_described_and_every_description_is_of_a_metric() {
    let fake = Fake::new();
    // Only a replica has recovery points.
    fake.becomes(ReplicationMode::Replica);
    let text = told(fake, Arc::default()).await;
    let points = format!(
        "lifeboat_vm_recovery_points{{vm=\"web1\",id=\"{}\"}} ",
        crate::fake::VM
    );
    assert!(text.contains(&points), "{text}");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: BTreeSet<&str> = types.map(|rest| rest.split(' ').next().unwrap()).collect();
    assert!(names.len() > 20, "{names:?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let document = std::fs::read_to_string(path).unwrap();
    let rows = document.lines().filter_map(|line| {
        let row = line.strip_prefix("| `lifeboat_")?;
        row.split('`').next()
    });
    let described: BTreeSet<String> = rows.map(|name| format!("lifeboat_{name}")).collect();
    let described: BTreeSet<&str> = described.iter().map(String::as_str).collect();
    assert_eq!(names, described);
}
