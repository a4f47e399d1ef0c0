//! Exit codes: one small table that scripts can rely on.

use tonic::Code;

/// Why the program ended without doing what was asked. The discriminant is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// The worker failed, or answered what this client does not understand.
    Internal = 1,
    /// The command line cannot be understood; nothing was sent.
    Usage = 2,
    /// The request is invalid, or this model or device can never serve it.
    Refused = 3,
    /// Nobody can serve the request now: no connection, loading, draining, queue full.
    Unavailable = 4,
    /// `--timeout` passed.
    Deadline = 5,
    /// Token missing or wrong, certificate not trusted, or no right in the cluster.
    Unauthorized = 6,
    /// A picture cannot be written, or a local file cannot be read.
    File = 7,
    /// There is no ImageGen of that name.
    NotFound = 8,
    /// Interrupted from the keyboard; the worker was told.
    Interrupted = 130,
    /// SIGTERM; the worker was told.
    Terminated = 143,
}

impl Class {
    /// The number the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The class's name in `--json` output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Deadline => "deadline",
            Self::Unauthorized => "unauthorized",
            Self::File => "file",
            Self::NotFound => "not-found",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }

    /// The class of a status that a worker answered with.
    #[must_use]
    pub const fn of_status(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => Self::Refused,
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => Self::Unavailable,
            Code::DeadlineExceeded => Self::Deadline,
            Code::Unauthenticated | Code::PermissionDenied => Self::Unauthorized,
            Code::NotFound => Self::NotFound,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::AlreadyExists
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Internal,
        }
    }
}

/// Name of a status code as gRPC's documentation writes it, for example `INVALID_ARGUMENT`.
#[must_use]
pub const fn status_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::bad_field(Code::InvalidArgument, 3)]
    #[case::never_fits(Code::FailedPrecondition, 3)]
    #[case::loading_or_draining(Code::Unavailable, 4)]
    #[case::queue_full(Code::ResourceExhausted, 4)]
    #[case::too_late(Code::DeadlineExceeded, 5)]
    #[case::no_token(Code::Unauthenticated, 6)]
    #[case::wrong_token(Code::PermissionDenied, 6)]
    #[case::engine_fault(Code::Internal, 1)]
    #[case::old_worker(Code::Unimplemented, 1)]
    fn a_status_has_the_documented_exit_code(#[case] status: Code, #[case] exit: u8) {
        assert_eq!(Class::of_status(status).code(), exit);
    }
}
