//! The one table from what went wrong to what a gRPC client sees.

use std::time::Duration;

use imagegen_core::{admission, engine::Stage, request::RequestError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Why a call gets no pictures.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("request_id \"{id}\" was used for a request with other fields; use a new one")]
    IdReused { id: String },
    #[error("the worker is still loading the model, {:.0} % are done", ratio * 100.0)]
    Loading { ratio: f64 },
    #[error("the worker is draining and takes no new requests; another worker will")]
    Draining,
    #[error("the worker is ending: {reason}")]
    Failed { reason: String },
    #[error("{0}")]
    Admission(admission::Refusal),
    #[error(
        "the worker holds memory that only a new process gives back, and takes no new requests; another worker will"
    )]
    CircuitOpen,
    #[error("the request waited {} s without getting its turn", waited.as_secs())]
    QueueTimeout { waited: Duration, retry: Duration },
    #[error("the worker's drain timeout passed before the request was done")]
    DrainTimeout,
    #[error("the deadline passed; the work was cancelled")]
    Deadline,
    #[error("the request was cancelled")]
    Cancelled,
    #[error("{sentence}")]
    OutOfMemory { stage: Stage, sentence: String, retry: Duration },
    #[error("internal error {id}; the worker's log says more under this id")]
    Internal { id: String },
    #[error("a valid bearer token is needed in the authorization header")]
    Unauthenticated,
}

/// When to come again while the worker itself is in transition.
const TRANSITION_RETRY: Duration = Duration::from_secs(1);

/// What the sentence about a message that does not decode begins with; tonic turns it into INTERNAL.
const DECODE_FAILURE: &str = "failed to decode Protobuf message";

/// And what the sentence about a message over the limit begins with.
const TOO_LONG: &str = "Error, ";

impl Refusal {
    /// Bounded label for metrics.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Request(RequestError::Invalid(_)) => "invalid",
            Self::Request(RequestError::TooLarge(_)) => "too_large",
            Self::IdReused { .. } => "request_id_reused",
            Self::Loading { .. } => "loading",
            Self::Draining => "draining",
            Self::Failed { .. } => "failed",
            Self::Admission(refusal) => match refusal {
                admission::Refusal::NeverFits { .. } => "never_fits",
                admission::Refusal::NoMemory { .. } => "no_memory",
                admission::Refusal::QueueFull { .. } => "queue_full",
                admission::Refusal::WaitTooLong { .. } => "wait_too_long",
                admission::Refusal::Deadline { .. } => "deadline_too_short",
            },
            Self::CircuitOpen => "circuit_open",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Internal { .. } => "internal",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// The code that tells a client what to do next.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Request(RequestError::Invalid(_)) | Self::IdReused { .. } => Code::InvalidArgument,
            Self::Request(RequestError::TooLarge(_)) | Self::Admission(admission::Refusal::NeverFits { .. }) => {
                Code::FailedPrecondition
            }
            Self::Loading { .. } | Self::Draining | Self::CircuitOpen | Self::Failed { .. } | Self::DrainTimeout => {
                Code::Unavailable
            }
            Self::Admission(
                admission::Refusal::NoMemory { .. }
                | admission::Refusal::QueueFull { .. }
                | admission::Refusal::WaitTooLong { .. },
            )
            | Self::QueueTimeout { .. }
            | Self::OutOfMemory { .. } => Code::ResourceExhausted,
            Self::Deadline | Self::Admission(admission::Refusal::Deadline { .. }) => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Internal { .. } => Code::Internal,
            Self::Unauthenticated => Code::Unauthenticated,
        }
    }

    /// Machine-readable details, as in google.rpc.
    fn details(&self) -> ErrorDetails {
        let sentence = self.to_string();
        match self {
            Self::Request(RequestError::Invalid(violations)) => {
                let violations = violations.iter().map(|one| FieldViolation::new(one.field, &one.description));
                ErrorDetails::with_bad_request(violations.collect::<Vec<_>>())
            }
            Self::IdReused { .. } => ErrorDetails::with_bad_request_violation("request_id", sentence),
            Self::Request(RequestError::TooLarge(too_large)) => {
                let subject = too_large.asked.to_string();
                ErrorDetails::with_precondition_failure_violation("BUCKET", subject, sentence)
            }
            Self::Admission(admission::Refusal::NeverFits { size, .. }) => {
                ErrorDetails::with_precondition_failure_violation("DEVICE_MEMORY", size.to_string(), sentence)
            }
            Self::Admission(admission::Refusal::NoMemory { retry, .. }) => {
                let mut details = ErrorDetails::with_retry_info(Some(*retry));
                details.add_quota_failure_violation("device memory", sentence);
                details
            }
            Self::Admission(
                admission::Refusal::QueueFull { retry, .. } | admission::Refusal::WaitTooLong { retry, .. },
            )
            | Self::QueueTimeout { retry, .. } => {
                let mut details = ErrorDetails::with_retry_info(Some(*retry));
                details.add_quota_failure_violation("queue", sentence);
                details
            }
            Self::OutOfMemory { stage, retry, .. } => {
                let mut details = ErrorDetails::with_retry_info(Some(*retry));
                details.add_quota_failure_violation(format!("device memory in {stage}"), sentence);
                details
            }
            Self::Loading { .. } | Self::Draining | Self::CircuitOpen | Self::Failed { .. } | Self::DrainTimeout => {
                ErrorDetails::with_retry_info(Some(TRANSITION_RETRY))
            }
            Self::Internal { id } => {
                let mut details = ErrorDetails::new();
                details.set_request_info(id, "");
                details
            }
            Self::Deadline
            | Self::Admission(admission::Refusal::Deadline { .. })
            | Self::Cancelled
            | Self::Unauthenticated => ErrorDetails::new(),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::with_error_details(refusal.code(), refusal.to_string(), refusal.details())
    }
}

/// What a client gets instead of the INTERNAL and OUT_OF_RANGE that tonic makes of a message that does not decode, for
/// example because a text in it is not UTF-8, or because it is too long. `None` for every other status.
pub(crate) fn of_decode_failure(status: &Status) -> Option<Status> {
    let detail = match status.code() {
        Code::Internal => status.message().strip_prefix(DECODE_FAILURE)?.trim_start_matches([':', ' ']),
        Code::OutOfRange => status.message().strip_prefix(TOO_LONG)?,
        _ => return None,
    };
    let fields = ["prompt", "negative_prompt", "request_id"];
    let field = fields.into_iter().find(|field| detail.starts_with(&format!("GenerateRequest.{field}:")));
    let message = format!("the request cannot be read: {detail}");
    let details = field.map_or_else(ErrorDetails::new, |field| {
        ErrorDetails::with_bad_request_violation(field, format!("cannot be read: {detail}"))
    });
    Some(Status::with_error_details(Code::InvalidArgument, message, details))
}

#[cfg(test)]
mod tests {
    use imagegen_core::{geometry::TooLarge, request::Violation};

    use super::*;

    #[test]
    fn every_refusal_has_its_code() {
        let retry = Duration::from_secs(3);
        let too_large = TooLarge { asked: "9x9".parse().unwrap(), largest: "8x8@1".parse().unwrap() };
        let invalid = RequestError::Invalid(vec![Violation { field: "steps", description: "is 0".into() }]);
        let size = too_large.asked;
        let never_fits = admission::Refusal::NeverFits { size, needed_bytes: Some(2), most_bytes: 1, fits: None };
        let no_memory =
            admission::Refusal::NoMemory { size, needed_bytes: 2, free_bytes: 1, foreign_bytes: 1, fits: None, retry };
        let wait = admission::Refusal::WaitTooLong { wait_seconds: 9.0, max_wait: retry, retry };
        let deadline = admission::Refusal::Deadline { wait_seconds: 9.0, seconds: 1.0, left: retry };
        for (refusal, code) in [
            (Refusal::Request(invalid), Code::InvalidArgument),
            (Refusal::IdReused { id: "a".into() }, Code::InvalidArgument),
            (Refusal::Request(too_large.into()), Code::FailedPrecondition),
            (Refusal::Admission(admission::Refusal::QueueFull { capacity: 1, retry }), Code::ResourceExhausted),
            (Refusal::Admission(never_fits), Code::FailedPrecondition),
            (Refusal::Admission(no_memory), Code::ResourceExhausted),
            (Refusal::Admission(wait), Code::ResourceExhausted),
            (Refusal::Admission(deadline), Code::DeadlineExceeded),
            (Refusal::CircuitOpen, Code::Unavailable),
            (Refusal::QueueTimeout { waited: retry, retry }, Code::ResourceExhausted),
            (Refusal::OutOfMemory { stage: Stage::Vae, sentence: "no".into(), retry }, Code::ResourceExhausted),
            (Refusal::Loading { ratio: 0.5 }, Code::Unavailable),
            (Refusal::Draining, Code::Unavailable),
            (Refusal::DrainTimeout, Code::Unavailable),
            (Refusal::Failed { reason: "gone".into() }, Code::Unavailable),
            (Refusal::Deadline, Code::DeadlineExceeded),
            (Refusal::Cancelled, Code::Cancelled),
            (Refusal::Internal { id: "1".into() }, Code::Internal),
            (Refusal::Unauthenticated, Code::Unauthenticated),
        ] {
            let status = Status::from(refusal.clone());
            assert_eq!(status.code(), code, "{refusal:?}");
            let details = status.get_error_details();
            assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument, "{refusal:?}");
            assert_eq!(details.quota_failure().is_some(), code == Code::ResourceExhausted, "{refusal:?}");
            assert_eq!(details.precondition_failure().is_some(), code == Code::FailedPrecondition, "{refusal:?}");
            let retries = matches!(code, Code::ResourceExhausted | Code::Unavailable);
            assert_eq!(details.retry_info().is_some(), retries, "{refusal:?}");
        }
    }

    #[test]
    fn a_text_that_is_not_utf_8_is_the_callers_fault() {
        let sentence =
            "failed to decode Protobuf message: GenerateRequest.prompt: invalid string value: data is not UTF-8";
        let status = of_decode_failure(&Status::internal(sentence)).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "prompt");
        assert!(of_decode_failure(&Status::internal("the engine failed")).is_none());
        assert!(of_decode_failure(&Status::unknown(sentence)).is_none());
    }
}
