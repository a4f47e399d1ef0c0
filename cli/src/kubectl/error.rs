//! Why the cluster does not lead to a worker.

use std::path::PathBuf;

use crate::{exit::Class, kubectl::imagegen::SecretKey};

/// Why the cluster does not lead to a worker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable kubeconfig.
    #[error("cannot use the kubeconfig{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Kubeconfig {
        /// The file of `--kubeconfig`.
        path: Option<PathBuf>,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer from the API server.
    #[error("cannot {action}: the API server does not answer: {}", deepest(.source))]
    Unreachable {
        /// What was tried.
        action: String,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// The API server answered with an error.
    #[error("cannot {action}: {message}")]
    Api {
        /// What was tried.
        action: String,
        /// What the API server said.
        message: String,
        /// HTTP status.
        code: u16,
    },
    /// The cluster does not know the resource.
    #[error("the cluster has no resource imagegens.imagegen.dev")]
    NotInstalled,
    /// No ImageGen of that name.
    #[error("there is no ImageGen \"{name}\" in namespace {namespace}")]
    NoSuchImageGen {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        namespace: String,
        /// Those that exist there.
        existing: Vec<String>,
    },
    /// No ready worker behind the Service.
    #[error("ImageGen {name} has no ready worker: {condition}")]
    NotReady {
        /// Name of the ImageGen.
        name: String,
        /// Reason and message of its Ready condition.
        condition: String,
    },
    /// The Service has no port that leads to the workers.
    #[error("Service {0} has no port named grpc")]
    NoPort(String),
    /// A Secret is needed and cannot be read.
    #[error("{source}")]
    Secret {
        /// The failed read.
        source: Box<Self>,
        /// How to do without.
        hint: String,
    },
}

impl Error {
    /// Decides the exit code.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Kubeconfig { .. } => Class::File,
            Self::Api { code: 401 | 403, .. } => Class::Unauthorized,
            Self::NotInstalled | Self::NoSuchImageGen { .. } | Self::Api { code: 404, .. } => Class::NotFound,
            Self::Unreachable { .. } | Self::Api { .. } | Self::NotReady { .. } => Class::Unavailable,
            Self::NoPort(_) => Class::Internal,
            Self::Secret { source, .. } if matches!(**source, Self::Unreachable { .. }) => Class::Unavailable,
            Self::Secret { .. } => Class::Unauthorized,
        }
    }

    /// What to do about it; empty when the message says it all.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Kubeconfig { .. } => "Pass --kubeconfig FILE or --context NAME, or set KUBECONFIG.".to_owned(),
            Self::Unreachable { .. } => "Check that kubectl get imagegen works with the same context.".to_owned(),
            Self::Api { code: 401, .. } => "Log in to the cluster again.".to_owned(),
            Self::Api { code: 403, .. } => {
                "Ask for a role with: get and list on imagegens.imagegen.dev, list on endpointslices.discovery.k8s.io, \
                 get and create on pods/portforward (docs/client.md has it)."
                    .to_owned()
            }
            Self::NotInstalled => "Install ImageGen's Helm chart first, or choose the right --context.".to_owned(),
            Self::NoSuchImageGen { existing, .. } if existing.is_empty() => {
                "There is none in this namespace; another one is chosen with -n NAMESPACE.".to_owned()
            }
            Self::NoSuchImageGen { existing, .. } => format!("There are: {}.", existing.join(", ")),
            Self::NotReady { name, .. } => {
                format!("See kubectl imagegen status {name}, and kubectl describe imagegen {name} for its events.")
            }
            Self::NoPort(name) => format!("See kubectl get service {name} -o yaml."),
            Self::Secret { hint, .. } => hint.clone(),
            Self::Api { .. } => String::new(),
        }
    }

    /// The read of a Secret with a token failed.
    #[must_use]
    pub fn needed_for_token(self, token: &SecretKey) -> Self {
        let hint = format!(
            "The ImageGen asks for a token from key {} of that Secret: get one from its owner and pass it with \
             --token-file FILE or in IMAGEGEN_TOKEN.",
            token.key
        );
        Self::Secret { source: Box::new(self), hint }
    }

    /// The read of a Secret with a certificate failed.
    #[must_use]
    pub fn needed_for_tls(self, secret: &str) -> Self {
        let hint = format!(
            "The workers' certificate comes from Secret {secret}: get the certificate of its authority and pass it \
             with --ca-file FILE."
        );
        Self::Secret { source: Box::new(self), hint }
    }
}

/// Causes of a failed connection are nested deep, and only the last one tells anything.
fn deepest(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
