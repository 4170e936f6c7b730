//! Who may do what.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use lifeboat_rest::{ACCESS, Limits, rest};
use lifeboat_service::api::{AccessRole, Caller};

use crate::fake::Fake;

/// The path of a rule with something in its segments.
fn filled(path: &str) -> String {
    path.replace("{vm}", "web1")
        .replace("{sequence}", "12")
        .replace("{job}", &"77".repeat(16))
        .replace("{host}", "*")
}

/// Asks the interface itself, without a connection, as somebody.
async fn ask(fake: &Arc<Fake>, method: &str, path: &str, role: Option<AccessRole>) -> StatusCode {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .unwrap();
    if let Some(role) = role {
        let name = "somebody".to_owned();
        request.extensions_mut().insert(Caller { name, role });
    }
    let rest = rest(Arc::clone(fake) as Arc<_>, Limits::default());
    let response = rest.answer(request).await;
    let status = response.status();
    if path != "/v1/events/stream" || !status.is_success() {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let denied = String::from_utf8_lossy(&body).contains("Access denied");
        assert_eq!(status == StatusCode::FORBIDDEN, denied, "{path}");
    }
    status
}

#[tokio::test]
async fn a_route_takes_its_role_and_no_less() {
    let roles = [
        AccessRole::Viewer,
        AccessRole::Operator,
        AccessRole::Administrator,
    ];
    for rule in ACCESS {
        for role in roles {
            let fake = Arc::new(Fake::new());
            // The job has ended, so that nobody waits for it.
            let done = lifeboat_model::contract::ReturnCode::Completed;
            fake.end_job(lifeboat_model::contract::JobState::Completed, done, "");
            let status = ask(&fake, rule.method, &filled(rule.path), Some(role)).await;
            let denied = status == StatusCode::FORBIDDEN;
            assert_eq!(denied, role < rule.role, "{rule:?} as {role:?}: {status}");
            if denied {
                assert_eq!(fake.calls(), [""; 0], "the service was asked: {rule:?}");
            } else {
                // The body that some need is missing, which is said after the role was looked at.
                let calls = fake.callers();
                assert!(
                    calls
                        .iter()
                        .all(|caller| caller.role == role && caller.name == "somebody")
                );
                assert!(
                    status.is_success() || status == StatusCode::BAD_REQUEST,
                    "{rule:?}: {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn whoever_is_not_known_is_refused_everywhere() {
    for rule in ACCESS {
        let fake = Arc::new(Fake::new());
        let status = ask(&fake, rule.method, &filled(rule.path), None).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{rule:?}");
        assert_eq!(fake.calls(), [""; 0]);
    }
    // Nor do they learn what there is.
    let fake = Arc::new(Fake::new());
    assert_eq!(
        ask(&fake, "GET", "/v1/nothing", None).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        ask(&fake, "PUT", "/v1/vms", None).await,
        StatusCode::FORBIDDEN
    );
}

#[test]
fn whatever_destroys_or_changes_trust_takes_an_administrator() {
    for rule in ACCESS {
        let destroys = rule.method == "DELETE";
        let trust = rule.path.starts_with("/v1/authorization-entries") && rule.method != "GET";
        let settings = rule.method == "PATCH";
        if destroys || trust || settings || rule.path == "/v1/audit" {
            assert_eq!(rule.role, AccessRole::Administrator, "{rule:?}");
        }
        // And nobody who may only look changes anything.
        assert!(
            rule.method == "GET" || rule.role > AccessRole::Viewer,
            "{rule:?}"
        );
    }
}
