//! Metrics for Prometheus.

use std::sync::Arc;

use axum::Extension;
use axum::response::{IntoResponse, Response};
use http::header;

use super::Refused;
use crate::front::Call;
use crate::metrics::{self, AlertCounters};
use crate::problem::Problem;

/// The metrics of this host in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "host", operation_id = "metrics",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"), Refused))]
pub(super) async fn metrics(
    alerts: Option<Extension<Arc<AlertCounters>>>,
    call: Call,
) -> Result<Response, Problem> {
    let seen = call.ask(metrics::Seen::gather).await?;
    let text = seen.render(alerts.as_deref().map(Arc::as_ref));
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
