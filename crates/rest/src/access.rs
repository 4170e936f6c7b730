//! Who may call what: one table, and the check of every request against it.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, header};
use lifeboat_model::contract::ReturnCode;
use lifeboat_service::api::{AccessRole, Caller};

use crate::problem::Problem;

/// What a request must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessRule {
    pub method: &'static str,
    /// As in the OpenAPI document.
    pub path: &'static str,
    pub role: AccessRole,
}

const fn rule(method: &'static str, path: &'static str, role: AccessRole) -> AccessRule {
    AccessRule { method, path, role }
}

use AccessRole::{Administrator, Operator, Viewer};

/// Every route with the role it takes. A route that is not here is refused to everybody.
///
/// Operators do what a drill or a disaster takes; settings, trust and what destroys are for
/// administrators.
pub const ACCESS: &[AccessRule] = &[
    rule("GET", "/metrics", Viewer),
    rule("GET", "/v1/host", Viewer),
    rule("GET", "/v1/host/settings", Viewer),
    rule("PATCH", "/v1/host/settings", Administrator),
    rule("GET", "/v1/openapi.json", Viewer),
    rule("GET", "/v1/vms", Viewer),
    rule("POST", "/v1/vms", Administrator),
    rule("GET", "/v1/vms/{vm}", Viewer),
    rule("DELETE", "/v1/vms/{vm}", Administrator),
    rule("POST", "/v1/vms/{vm}/start", Operator),
    rule("POST", "/v1/vms/{vm}/stop", Operator),
    rule("GET", "/v1/vms/{vm}/replication", Viewer),
    rule("POST", "/v1/vms/{vm}/replication", Administrator),
    rule("PATCH", "/v1/vms/{vm}/replication", Administrator),
    rule("DELETE", "/v1/vms/{vm}/replication", Administrator),
    rule("POST", "/v1/vms/{vm}/replication/start", Operator),
    rule("POST", "/v1/vms/{vm}/replication/cancel-initial", Operator),
    rule("POST", "/v1/vms/{vm}/replication/suspend", Operator),
    rule("POST", "/v1/vms/{vm}/replication/resume", Operator),
    rule("POST", "/v1/vms/{vm}/replication/resync", Operator),
    rule("POST", "/v1/vms/{vm}/replication/cancel-resync", Operator),
    rule("POST", "/v1/vms/{vm}/replication/reverse", Operator),
    rule("POST", "/v1/vms/{vm}/replication/now", Operator),
    rule("POST", "/v1/vms/{vm}/failover/test", Operator),
    rule("POST", "/v1/vms/{vm}/failover/test-end", Operator),
    rule("POST", "/v1/vms/{vm}/failover/prepare", Operator),
    rule("POST", "/v1/vms/{vm}/failover/cancel-prepare", Operator),
    rule("POST", "/v1/vms/{vm}/failover/start", Operator),
    rule("POST", "/v1/vms/{vm}/failover/revert", Operator),
    rule("POST", "/v1/vms/{vm}/failover/commit", Operator),
    rule("POST", "/v1/vms/{vm}/failover/survivor", Operator),
    rule("GET", "/v1/vms/{vm}/points", Viewer),
    rule("POST", "/v1/vms/{vm}/points", Operator),
    rule("DELETE", "/v1/vms/{vm}/points/{sequence}", Administrator),
    rule("POST", "/v1/vms/{vm}/points/{sequence}/verify", Operator),
    rule("GET", "/v1/vms/{vm}/health", Viewer),
    rule("GET", "/v1/vms/{vm}/check", Viewer),
    rule("GET", "/v1/vms/{vm}/statistics", Viewer),
    rule("POST", "/v1/vms/{vm}/statistics/reset", Operator),
    rule("GET", "/v1/jobs", Viewer),
    rule("GET", "/v1/jobs/{job}", Viewer),
    rule("POST", "/v1/jobs/{job}/cancel", Operator),
    rule("GET", "/v1/jobs/{job}/wait", Viewer),
    rule("GET", "/v1/events", Viewer),
    rule("GET", "/v1/events/stream", Viewer),
    rule("GET", "/v1/audit", Administrator),
    rule("GET", "/v1/authorization-entries", Viewer),
    rule("POST", "/v1/authorization-entries", Administrator),
    rule("PUT", "/v1/authorization-entries/{host}", Administrator),
    rule("DELETE", "/v1/authorization-entries/{host}", Administrator),
    rule("POST", "/v1/test-connection", Operator),
];

/// The role that a route takes; `None` for one that is not in the table.
#[must_use]
pub fn required_role(method: &Method, path: &str) -> Option<AccessRole> {
    // Whoever may read may ask whether there is something to read.
    let method = if method == Method::HEAD {
        "GET"
    } else {
        method.as_str()
    };
    let rule = ACCESS
        .iter()
        .find(|rule| rule.method == method && rule.path == path);
    rule.map(|rule| rule.role)
}

/// Refuses whoever this host does not know, whatever they ask.
pub(crate) async fn known_callers_only(request: Request, next: Next) -> Response {
    if request.extensions().get::<Caller>().is_some() {
        return next.run(request).await;
    }
    Problem::new(
        ReturnCode::AccessDenied,
        "this host does not know who asks",
        "use the unix socket as root or as a member of the operators' group, or show a certificate with a role",
    )
    .into_response()
}

/// Refuses changes that a page of another site makes a browser ask for: the browser would show its
/// user's certificate without the user knowing.
pub(crate) async fn refuse_other_sites(request: Request, next: Next) -> Response {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    if reads || is_own_site(request.headers()) {
        return next.run(request).await;
    }
    Problem::new(
        ReturnCode::AccessDenied,
        "a page of another site asks for a change",
        "ask from a page of this host, or from a program that is no browser",
    )
    .into_response()
}

/// Whether no browser says that the request comes from a page of another site.
fn is_own_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let origin = text("origin").map(|origin| origin.strip_prefix("https://"));
    let same_origin = match origin {
        None => true,
        Some(origin) => origin.is_some() && origin == text(header::HOST.as_str()),
    };
    let same_site = match text("sec-fetch-site") {
        None | Some("same-origin" | "none") => true,
        Some(_) => false,
    };
    same_origin && same_site
}

/// Refuses a request whose caller lacks the role that its route takes.
pub(crate) async fn check_role(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let required = path.and_then(|path| required_role(request.method(), path.as_str()));
    let caller = request.extensions().get::<Caller>();
    match (required, caller) {
        (Some(required), Some(caller)) if caller.role >= required => next.run(request).await,
        (Some(required), Some(caller)) => Problem::new(
            ReturnCode::AccessDenied,
            format!(
                "{} is {}, and this takes {}",
                caller.name,
                with_article(caller.role),
                with_article(required)
            ),
            "ask somebody who has that role",
        )
        .into_response(),
        (None, _) | (_, None) => Problem::new(
            ReturnCode::AccessDenied,
            "nobody may do this here",
            "see the OpenAPI document at /v1/openapi.json for what there is",
        )
        .into_response(),
    }
}

const fn with_article(role: AccessRole) -> &'static str {
    match role {
        Viewer => "a viewer",
        Operator => "an operator",
        Administrator => "an administrator",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn own_site(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        is_own_site(&map)
    }

    #[test]
    fn programs_and_pages_of_this_host_are_let_through() {
        assert!(own_site(&[("host", "a:8443")]));
        assert!(own_site(&[
            ("host", "a:8443"),
            ("origin", "https://a:8443")
        ]));
        assert!(own_site(&[("host", "a"), ("sec-fetch-site", "none")]));
    }

    #[test]
    fn pages_of_other_sites_are_not() {
        for headers in [
            &[("host", "a:8443"), ("origin", "https://b:8443")][..],
            &[("host", "a:8443"), ("origin", "http://a:8443")],
            &[("host", "a:8443"), ("origin", "https://a:8444")],
            &[("host", "a:8443"), ("origin", "null")],
            &[("origin", "https://a")],
            &[("host", "a"), ("sec-fetch-site", "cross-site")],
            &[("host", "a"), ("sec-fetch-site", "same-site")],
        ] {
            assert!(!own_site(headers), "{headers:?}");
        }
    }
}
