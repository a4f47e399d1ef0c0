//! What goes wrong with a request, as the `Status` object that Kubernetes clients read.

use http::StatusCode;
use serde_json::{Value, json};

/// Why a request is not answered with values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody whom we trust says who asks.
    #[error("Unauthorized: {0}")]
    Unauthorized(String),
    /// The one who asks may not.
    #[error("forbidden: User {user:?} cannot get {what}: {reason}")]
    Forbidden {
        /// Who asks.
        user: String,
        /// What they want to read.
        what: String,
        /// What the authorizer says.
        reason: String,
    },
    /// There is no such object, metric or path.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// Only GET is there.
    #[error("{0} is not supported: metrics can only be read, with GET")]
    MethodNotAllowed(String),
    /// Neither JSON nor a table of it is wanted.
    #[error("only application/json is served, also as=Table, but the Accept header is {0:?}")]
    NotAcceptable(String),
    /// The value exists and is not known now. An autoscaler then leaves the size as it is.
    #[error("{0}")]
    Unavailable(String),
}

impl Failure {
    /// The HTTP status.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason, from the closed set of Kubernetes.
    fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorized(_) => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NotFound(_) => "NotFound",
            Self::BadRequest(_) => "BadRequest",
            Self::MethodNotAllowed(_) => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::Unavailable(_) => "ServiceUnavailable",
        }
    }

    /// The `Status` object.
    #[must_use]
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(), "code": self.code().as_u16(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Failure::Unauthorized("no certificate".into()), 401, "Unauthorized")]
    #[case(Failure::NotFound("no such metric".into()), 404, "NotFound")]
    #[case(Failure::BadRequest("no".into()), 400, "BadRequest")]
    #[case(Failure::MethodNotAllowed("DELETE".into()), 405, "MethodNotAllowed")]
    #[case(Failure::NotAcceptable("text/html".into()), 406, "NotAcceptable")]
    #[case(Failure::Unavailable("nobody reports".into()), 503, "ServiceUnavailable")]
    fn a_failure_is_a_status_object(#[case] failure: Failure, #[case] code: u16, #[case] reason: &str) {
        let status = failure.status();
        assert_eq!((status["kind"].as_str(), status["apiVersion"].as_str()), (Some("Status"), Some("v1")));
        assert_eq!((status["code"].as_u64(), status["reason"].as_str()), (Some(u64::from(code)), Some(reason)));
        assert_eq!(status["message"].as_str().unwrap(), failure.to_string());
    }
}
