//! What a client is told when it does not get what it asked for.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use lifeboat_model::contract::ReturnCode;
use lifeboat_service::api::Rejection;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::wire::InvalidRequest;

/// The media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not done, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The return code of the CIM schema.
    pub return_code: u16,
    pub return_code_text: String,
    /// What was refused or failed, and why.
    pub what: String,
    /// What to do about it; may be empty.
    pub remedy: String,
    /// The HTTP status, again.
    pub status: u16,
}

impl Problem {
    pub(crate) fn new(
        code: ReturnCode,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with_status(status_of(code), code, what, remedy)
    }

    /// A problem of HTTP itself, whose status says more than the return code.
    pub(crate) fn with_status(
        status: StatusCode,
        code: ReturnCode,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            return_code: code.number(),
            return_code_text: code.to_string(),
            what: what.into(),
            remedy: remedy.into(),
            status: status.as_u16(),
        }
    }

    /// The return code; `None` for a number that the schema does not have.
    #[must_use]
    pub fn code(&self) -> Option<ReturnCode> {
        ReturnCode::try_from(u32::from(self.return_code)).ok()
    }
}

/// The HTTP status that says what a return code says.
#[must_use]
pub const fn status_of(code: ReturnCode) -> StatusCode {
    match code {
        ReturnCode::Completed => StatusCode::OK,
        ReturnCode::JobStarted => StatusCode::ACCEPTED,
        ReturnCode::Failed | ReturnCode::UnknownStatus => StatusCode::INTERNAL_SERVER_ERROR,
        ReturnCode::AccessDenied => StatusCode::FORBIDDEN,
        ReturnCode::NotSupported => StatusCode::NOT_IMPLEMENTED,
        ReturnCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ReturnCode::InvalidParameter | ReturnCode::IncorrectDataType => StatusCode::BAD_REQUEST,
        ReturnCode::InUse => StatusCode::LOCKED,
        ReturnCode::InvalidState => StatusCode::CONFLICT,
        ReturnCode::NotAvailable => StatusCode::SERVICE_UNAVAILABLE,
        ReturnCode::OutOfMemory => StatusCode::INSUFFICIENT_STORAGE,
        ReturnCode::FileNotFound => StatusCode::NOT_FOUND,
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        match rejection.code {
            ReturnCode::Completed | ReturnCode::JobStarted => {
                // Whoever asked must not take a refusal for an answer.
                tracing::error!(code = %rejection.code, what = rejection.what, "a rejection has the code of a success");
                Self::new(ReturnCode::Failed, rejection.what, rejection.remedy)
            }
            ReturnCode::Failed
            | ReturnCode::AccessDenied
            | ReturnCode::NotSupported
            | ReturnCode::UnknownStatus
            | ReturnCode::Timeout
            | ReturnCode::InvalidParameter
            | ReturnCode::InUse
            | ReturnCode::InvalidState
            | ReturnCode::IncorrectDataType
            | ReturnCode::NotAvailable
            | ReturnCode::OutOfMemory
            | ReturnCode::FileNotFound => {
                Self::new(rejection.code, rejection.what, rejection.remedy)
            }
        }
    }
}

impl From<InvalidRequest> for Problem {
    fn from(invalid: InvalidRequest) -> Self {
        let what = format!("{} is {}", invalid.property, invalid.given);
        Self::new(ReturnCode::InvalidParameter, what, invalid.remedy)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let value = HeaderValue::from_static(PROBLEM_JSON);
        response.headers_mut().insert(header::CONTENT_TYPE, value);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_return_code_has_a_status_of_its_kind() {
        for &code in ReturnCode::ALL {
            let status = status_of(code);
            let success = matches!(code, ReturnCode::Completed | ReturnCode::JobStarted);
            assert_eq!(status.is_success(), success, "{code}");
            assert_eq!(
                !status.is_client_error() && !status.is_server_error(),
                success,
                "{code}"
            );
        }
    }

    #[test]
    fn a_rejection_is_never_answered_as_a_success() {
        for &code in ReturnCode::ALL {
            let problem = Problem::from(Rejection {
                code,
                what: "what".to_owned(),
                remedy: "remedy".to_owned(),
            });
            assert!(problem.status >= 400, "{code}");
            assert!(
                problem.code().is_some_and(|code| code.number() >= 32_768),
                "{code}"
            );
        }
    }
}
