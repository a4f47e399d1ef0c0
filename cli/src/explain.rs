//! A gRPC status as a sentence that a person can act on.

use std::{error::Error, io, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    exit::{Class, status_name},
    kubectl,
    retry::Retry,
};

/// What a failed call means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Decides the exit code.
    pub class: Class,
    /// `INVALID_ARGUMENT` and the like; absent when no worker answered.
    pub status: Option<&'static str>,
    /// What happened.
    pub message: String,
    /// Fields of the request that are wrong, as flags of this program where there is one.
    pub violations: Vec<Violation>,
    /// What to do about it; empty when the message says it all.
    pub hint: String,
    /// Whether the same request may succeed later.
    pub retry: Retry,
}

/// One field that the worker refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Name of the field in the request.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// Why no answer came, read from the chain of causes of a status that the transport made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Refused,
    Untrusted,
    PlainTextServer,
    NoAnswer,
    TimedOut,
    Lost,
}

/// Says what `status`, from a call to the workers at `peer`, means and what to do.
#[must_use]
pub fn explain(status: &Status, peer: &str) -> Explanation {
    status.source().map_or_else(|| answered(status, peer), |cause| unanswered(status, cause, peer))
}

fn unanswered(status: &Status, cause: &(dyn Error + 'static), peer: &str) -> Explanation {
    if let Some(error) = chain(cause).find_map(|error| error.downcast_ref::<kubectl::Error>()) {
        let retry = if error.class() == Class::Unavailable { Retry::After(None) } else { Retry::Never };
        return Explanation {
            class: error.class(),
            status: None,
            message: error.to_string(),
            violations: Vec::new(),
            hint: error.hint(),
            retry,
        };
    }
    let deepest = chain(cause).last().map(ToString::to_string).unwrap_or_default();
    let later = Retry::After(None);
    let (class, message, hint, retry) = match transport(cause) {
        Transport::Refused => (
            Class::Unavailable,
            format!("nothing listens at {peer}: {deepest}"),
            "Check the address and the port, that the worker runs, and that a port-forward is still up.",
            later,
        ),
        Transport::Untrusted => (
            Class::Unauthorized,
            format!("the certificate of {peer} is not trusted: {deepest}"),
            "Pass the certificate's authority with --ca-file, or the name it was made for with --tls-server-name.",
            Retry::Never,
        ),
        Transport::PlainTextServer => (
            Class::Unauthorized,
            format!("{peer} does not speak TLS: {deepest}"),
            "Use http:// if the worker has no certificate.",
            Retry::Never,
        ),
        Transport::NoAnswer => (
            Class::Unavailable,
            format!("{peer} does not answer: {deepest}"),
            "Check the address, and whether a firewall or a NetworkPolicy is in between.",
            later,
        ),
        Transport::TimedOut => (
            Class::Deadline,
            format!("{peer} did not answer in time"),
            "Allow more time with --timeout, or ask for fewer or smaller pictures.",
            Retry::Never,
        ),
        Transport::Lost => (
            Class::Unavailable,
            format!("the connection to {peer} failed: {}: {deepest}", status.message()),
            "The worker may have restarted; if this stays so, check that it is an ImageGen worker and whether it \
             needs https://.",
            later,
        ),
    };
    Explanation { class, status: None, message, violations: Vec::new(), hint: hint.to_owned(), retry }
}

fn transport(cause: &(dyn Error + 'static)) -> Transport {
    for error in chain(cause) {
        if error.is::<tonic::TimeoutExpired>() {
            return Transport::TimedOut;
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return match tls {
                rustls::Error::InvalidMessage(_) => Transport::PlainTextServer,
                _ => Transport::Untrusted,
            };
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return Transport::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    return Transport::NoAnswer;
                }
                _ => {}
            }
        }
    }
    Transport::Lost
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| cause_of(error))
}

/// An `io::Error` hides what it wraps from `source`, so it is unwrapped here.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    }
}

fn answered(status: &Status, peer: &str) -> Explanation {
    let details = status.get_error_details();
    let text = if status.message().is_empty() { "no reason given" } else { status.message() };
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    let mut violations: Vec<Violation> = Vec::new();
    if let Some(bad) = details.bad_request() {
        violations.extend(
            bad.field_violations
                .iter()
                .map(|v| Violation { field: v.field.clone(), description: v.description.clone() }),
        );
    }
    if let Some(failed) = details.precondition_failure() {
        violations.extend(
            failed
                .violations
                .iter()
                .map(|v| Violation { field: v.subject.clone(), description: v.description.clone() }),
        );
    }
    let retry = match (status.code(), delay) {
        (Code::Unavailable, delay) => Retry::After(delay),
        (Code::ResourceExhausted, Some(delay)) => Retry::After(Some(delay)),
        _ => Retry::Never,
    };
    let (message, hint) = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => (format!("the worker refuses the request: {text}"), String::new()),
        Code::FailedPrecondition => (
            format!("this worker cannot serve the request: {text}"),
            "See its limits with the status command.".to_owned(),
        ),
        Code::ResourceExhausted => (format!("the worker has no room now: {text}"), try_again(delay)),
        Code::Unavailable => (format!("the worker does not serve now: {text}"), try_again(delay)),
        Code::DeadlineExceeded => (
            format!("the deadline passed: {text}"),
            "Allow more time with --timeout, or ask for fewer or smaller pictures.".to_owned(),
        ),
        Code::Unauthenticated => (
            format!("the worker asks for a valid token: {text}"),
            "Pass a token with --token-file FILE, or set IMAGEGEN_TOKEN.".to_owned(),
        ),
        Code::PermissionDenied => (format!("the worker does not allow this: {text}"), String::new()),
        Code::Unimplemented => (
            format!("{peer} does not know this call: {text}"),
            "Check that it is the address of an ImageGen worker, and that the worker is not older than this client."
                .to_owned(),
        ),
        Code::Internal => (format!("the worker failed: {text}"), {
            let id = details.request_info().map(|info| info.request_id.clone()).unwrap_or_default();
            if id.is_empty() { String::new() } else { format!("The worker's log has the details under {id}.") }
        }),
        Code::Cancelled => (format!("the request was cancelled on the worker's side: {text}"), String::new()),
        code => (format!("the worker answered {}: {text}", status_name(code)), String::new()),
    };
    Explanation {
        class: Class::of_status(status.code()),
        status: Some(status_name(status.code())),
        message,
        violations,
        hint,
        retry,
    }
}

fn try_again(delay: Option<Duration>) -> String {
    match delay {
        Some(delay) => format!("Try again in {} s, or allow more --retries.", delay.as_secs_f64().ceil()),
        None => "Try again later, or allow more --retries.".to_owned(),
    }
}

/// The flag that sets a field of the request, or the field itself.
#[must_use]
pub fn flag_of(field: &str) -> String {
    match field {
        "prompt" => "PROMPT".to_owned(),
        "width" | "height" => format!("--size ({field})"),
        "negative_prompt" | "steps" | "guidance_scale" | "cfg_normalization" | "cfg_truncation" | "seed" | "count"
        | "format" | "scheduler" | "priority" | "reproducible" | "request_id" => {
            format!("--{}", field.replace('_', "-"))
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    fn transport_status(cause: impl Error + Send + Sync + 'static) -> Status {
        Status::from_error(Box::new(tonic::ConnectError(Box::new(cause))))
    }

    #[test]
    fn bad_fields_keep_their_names_and_reasons() {
        let details = ErrorDetails::with_bad_request(vec![FieldViolation::new("steps", "at most 50, found 500")]);
        let explained = explain(&Status::with_error_details(Code::InvalidArgument, "1 bad field", details), "w");
        assert_eq!(explained.class, Class::Refused);
        assert_eq!(explained.retry, Retry::Never);
        let violation = Violation { field: "steps".to_owned(), description: "at most 50, found 500".to_owned() };
        assert_eq!(explained.violations, [violation]);
    }

    #[rstest]
    #[case::full_with_a_hint(Code::ResourceExhausted, Some(3), Retry::After(Some(Duration::from_secs(3))))]
    #[case::full_without(Code::ResourceExhausted, None, Retry::Never)]
    #[case::draining(Code::Unavailable, None, Retry::After(None))]
    #[case::never_fits(Code::FailedPrecondition, Some(3), Retry::Never)]
    #[case::engine_fault(Code::Internal, None, Retry::Never)]
    fn only_what_may_pass_is_retried(#[case] code: Code, #[case] delay_seconds: Option<u64>, #[case] retry: Retry) {
        let details = delay_seconds
            .map(|seconds| ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds))))
            .unwrap_or_default();
        assert_eq!(explain(&Status::with_error_details(code, "x", details), "w").retry, retry);
    }

    #[rstest]
    #[case::refused(
        io::Error::from(io::ErrorKind::ConnectionRefused),
        Class::Unavailable,
        Retry::After(None),
        "nothing listens at http://w:1"
    )]
    #[case::silent(io::Error::from(io::ErrorKind::TimedOut), Class::Unavailable, Retry::After(None), "does not answer")]
    #[case::untrusted(
        io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)
        ),
        Class::Unauthorized,
        Retry::Never,
        "is not trusted"
    )]
    #[case::broken(
        io::Error::from(io::ErrorKind::BrokenPipe),
        Class::Unavailable,
        Retry::After(None),
        "the connection to http://w:1 failed"
    )]
    fn a_missing_answer_says_what_to_check(
        #[case] cause: io::Error,
        #[case] class: Class,
        #[case] retry: Retry,
        #[case] message: &str,
    ) {
        let explained = explain(&transport_status(cause), "http://w:1");
        assert_eq!((explained.class, explained.retry, explained.status), (class, retry, None));
        assert!(explained.message.contains(message), "{explained:?}");
        assert!(!explained.hint.is_empty());
    }

    #[rstest]
    #[case("guidance_scale", "--guidance-scale")]
    #[case("width", "--size (width)")]
    #[case("preview_every", "preview_every")]
    fn fields_are_named_as_flags(#[case] field: &str, #[case] flag: &str) {
        assert_eq!(flag_of(field), flag);
    }
}
