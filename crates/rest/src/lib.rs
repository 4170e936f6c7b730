//! The REST interface: JSON over HTTP/1.1, described by an OpenAPI document.
//!
//! It turns requests into calls of the service's [`Operations`] and its answers into JSON, says
//! who asks, and lets nobody do what their role does not allow. It decides nothing about
//! replication. What comes in is bounded in size and time before it is looked at; calls that
//! block run on threads of their own, so many at once and no more.
//!
//! [`client`] is the other side, for the command line.

mod access;
pub mod client;
mod feed;
mod front;
mod listen;
mod metrics;
mod patience;
mod problem;
mod routes;
mod unix_access;
pub mod wire;

use std::sync::Arc;

use axum::middleware::{from_fn, map_response};
use axum::response::Response;
use axum::{Extension, Router};
use http::{HeaderValue, StatusCode, header};
use lifeboat_model::contract::ReturnCode;
use lifeboat_service::api::Operations;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::front::Front;

pub use access::{ACCESS, AccessRule, required_role};
pub use front::Limits;
pub use listen::{BindUnixError, CertificateCaller, Listener, TlsConfigSource, bind_unix, serve};
pub use metrics::AlertCounters;
pub use problem::{PROBLEM_JSON, Problem, status_of};
pub use routes::{openapi, openapi_json};
pub use unix_access::UnixAccess;

/// Where the daemon listens for the programs of this host, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lifeboat/lifeboat.sock";

/// The interface to one service, to be given to [`serve`].
#[derive(Clone)]
pub struct Rest {
    router: Router,
    limits: Limits,
    closing: Arc<watch::Sender<bool>>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The interface to a service. Requests must carry a
/// [`Caller`](lifeboat_service::api::Caller) as an extension, as [`serve`] sees to; one without
/// is refused.
#[must_use]
pub fn rest(operations: Arc<dyn Operations>, limits: Limits) -> Rest {
    let (closing, closed) = watch::channel(false);
    let front = Front::new(operations, limits, closed);
    let (routes, _document) = routes::all().split_for_parts();
    let router = routes
        .route_layer(from_fn(access::check_role))
        .method_not_allowed_fallback(no_such_method)
        .fallback(no_such_path)
        .layer(from_fn(access::refuse_other_sites))
        .layer(from_fn(access::known_callers_only))
        .layer(map_response(hardened))
        .with_state(front);
    Rest {
        router,
        limits,
        closing: Arc::new(closing),
    }
}

impl Rest {
    /// The metrics also tell what became of the alerts that `counters` counts.
    #[must_use]
    pub fn with_alerts(mut self, counters: Arc<AlertCounters>) -> Self {
        self.router = self.router.layer(Extension(counters));
        self
    }

    /// Answers one request, which carries its caller as an extension: what [`serve`] does with
    /// each, for whoever has connections of their own.
    pub async fn answer(&self, request: axum::extract::Request) -> Response {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

async fn no_such_path() -> Problem {
    Problem::new(
        ReturnCode::FileNotFound,
        "there is nothing at this path",
        "see the OpenAPI document at /v1/openapi.json",
    )
}

async fn no_such_method() -> Problem {
    Problem::with_status(
        StatusCode::METHOD_NOT_ALLOWED,
        ReturnCode::NotSupported,
        "this path does not know the method",
        "see the OpenAPI document at /v1/openapi.json",
    )
}

/// Answers are of the moment, and nothing that a browser should guess about.
async fn hardened(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
