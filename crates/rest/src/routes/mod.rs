//! The handlers, one module for each subject, and the document that describes them.

mod authorization;
mod events;
mod failover;
mod host;
mod jobs;
mod metrics;
mod points;
mod replication;
mod vms;

use serde::Deserialize;
use utoipa::openapi::{InfoBuilder, OpenApi};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::front::Front;
use crate::problem::Problem;
use crate::wire::Job;

/// Every route with its part of the document.
pub(crate) fn all() -> OpenApiRouter<Front> {
    OpenApiRouter::with_openapi(about())
        .routes(routes!(host::host))
        .routes(routes!(host::settings, host::modify_settings))
        .routes(routes!(host::document))
        .routes(routes!(host::test_connection))
        .routes(routes!(metrics::metrics))
        .routes(routes!(vms::list, vms::define))
        .routes(routes!(vms::show, vms::undefine))
        .routes(routes!(vms::start))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::health))
        .routes(routes!(vms::check))
        .routes(routes!(vms::statistics))
        .routes(routes!(vms::reset_statistics))
        .routes(routes!(
            replication::list,
            replication::enable,
            replication::modify,
            replication::remove
        ))
        .routes(routes!(replication::start))
        .routes(routes!(replication::cancel_initial))
        .routes(routes!(replication::suspend))
        .routes(routes!(replication::resume))
        .routes(routes!(replication::resynchronize))
        .routes(routes!(replication::cancel_resynchronize))
        .routes(routes!(replication::reverse))
        .routes(routes!(replication::now))
        .routes(routes!(failover::test))
        .routes(routes!(failover::test_end))
        .routes(routes!(failover::prepare))
        .routes(routes!(failover::cancel_prepare))
        .routes(routes!(failover::survivor))
        .routes(routes!(failover::start))
        .routes(routes!(failover::revert))
        .routes(routes!(failover::commit))
        .routes(routes!(points::list, points::make))
        .routes(routes!(points::remove))
        .routes(routes!(points::verify))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::wait))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(events::audit))
        .routes(routes!(authorization::list, authorization::add))
        .routes(routes!(authorization::modify, authorization::remove))
}

/// The OpenAPI document of the interface.
#[must_use]
pub fn openapi() -> OpenApi {
    all().into_openapi()
}

/// The document as it is checked in and served: indented, with a final line break.
#[must_use]
pub fn openapi_json() -> String {
    let json = openapi().to_pretty_json();
    json.expect("BUG: the document can be written as JSON") + "\n"
}

/// What answers refer to that are described beside their handlers.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(Problem, Job)))]
struct Shared;

fn about() -> OpenApi {
    let mut document = <Shared as utoipa::OpenApi>::openapi();
    document.info = InfoBuilder::new()
        .title("Lifeboat")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Replication and disaster recovery for virtual machines. Properties have the names of \
             the CIM schema in snake case; what the schema numbers is a number, with words beside it \
             in a property of the same name and `_text`.",
        ))
        .build();
    document
}

/// The VM in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "it describes the path; the extractor of every handler reads it"
)]
struct VmInPath {
    /// The VM's id, or its name.
    vm: String,
}

/// How an operation that can take long is answered.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers that handlers make")]
enum Started {
    /// Under way: the job, and where it is.
    #[response(status = 202)]
    Job(Job),
    /// Done.
    #[response(status = 204)]
    Done,
    /// Refused or failed.
    #[response(status = "default", content_type = "application/problem+json")]
    Problem(Problem),
}

/// How a change that is done at once is answered.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers that handlers make")]
enum Changed {
    /// Done.
    #[response(status = 204)]
    Done,
    /// Refused or failed.
    #[response(status = "default", content_type = "application/problem+json")]
    Problem(Problem),
}

/// How anything is answered that was refused or failed.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers that handlers make")]
enum Refused {
    /// Refused or failed.
    #[response(status = "default", content_type = "application/problem+json")]
    Problem(Problem),
}
