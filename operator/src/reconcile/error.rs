//! Why a reconcile failed, and what follows from it.

use std::time::Duration;

use crate::pki::PkiError;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not answer a read, or refused it.
    #[error("cannot read {what}")]
    Read {
        /// Kind and name.
        what: String,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not take a write, for a reason that may pass.
    #[error("cannot write {what}")]
    Write {
        /// Kind and name.
        what: String,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
    /// Children were refused; each is named in the status.
    #[error("{message}")]
    Refused {
        /// One sentence for each.
        message: String,
        /// Whether one is an object of someone else.
        foreign: bool,
    },
    /// A child of an earlier ImageGen of the same name is still being removed.
    #[error("{what} belongs to an earlier ImageGen of this name and is still being removed")]
    Leftover {
        /// Kind and name.
        what: String,
    },
    /// The operator's certificate authority was not read yet.
    #[error("the operator's certificate authority is not ready; Secret imagegen-operator-ca in its namespace")]
    NoAuthority,
    /// The worker certificate could not be made.
    #[error("cannot make the certificate of the admin port")]
    Certificate(#[from] PkiError),
    /// The API server took too long.
    #[error("not finished within {} s", limit.as_secs())]
    TimedOut {
        /// How long it had.
        limit: Duration,
    },
    /// An object could not be turned into JSON.
    #[error("cannot serialise {what}")]
    Serialise {
        /// Kind and name.
        what: String,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
}

/// What follows from an error. The metric label and the log field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Category {
    /// Only a person can help; the status says how.
    Invalid,
    /// Trying again may help.
    Transient,
    /// Someone wrote at the same time: read again soon.
    Conflict,
    /// The operator is wrong.
    Bug,
}

/// A conflict passes with the next read, so it does not grow with the failures before it.
const CONFLICT_DELAY: Duration = Duration::from_secs(1);

impl Error {
    /// What follows from it.
    #[must_use]
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => match &**source {
                kube::Error::Api(status) if status.code == 409 => Category::Conflict,
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Category::Bug,
                _ => Category::Transient,
            },
            Self::Refused { .. } => Category::Invalid,
            Self::Leftover { .. } => Category::Conflict,
            Self::NoAuthority | Self::TimedOut { .. } => Category::Transient,
            Self::Certificate(_) | Self::Serialise { .. } => Category::Bug,
        }
    }

    /// The wait that does not come from the object's backoff.
    #[must_use]
    pub fn fixed_delay(&self) -> Option<Duration> {
        (self.category() == Category::Conflict).then_some(CONFLICT_DELAY)
    }

    /// The message with its causes.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// Whether the API server understood a write and says no: trying the same again will not help by itself.
#[must_use]
pub fn is_refusal(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 405 | 422) => Some(&status.message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use rstest::rstest;

    use super::*;

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, message: "no".into(), ..Status::default() }))
    }

    #[rstest]
    #[case(409, Category::Conflict, false)]
    #[case(500, Category::Transient, false)]
    #[case(429, Category::Transient, false)]
    #[case(403, Category::Transient, true)]
    #[case(422, Category::Transient, true)]
    fn answers_of_the_api_server(#[case] code: u16, #[case] category: Category, #[case] refusal: bool) {
        assert_eq!(is_refusal(&api(code)).is_some(), refusal);
        let error = Error::Write { what: "Deployment turbo".into(), source: Box::new(api(code)) };
        assert_eq!(error.category(), category);
        assert!(error.chain().starts_with("cannot write Deployment turbo: "), "{}", error.chain());
    }
}
