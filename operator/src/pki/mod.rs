//! The operator's own certificate authority: for the mutual TLS of the workers' admin port, and for the operator's own
//! servers.
//!
//! Nothing here is shown to users of the service: their TLS is `spec.service.tls`. The authority signs three kinds of
//! certificates: one for the workers of each ImageGen, for a fixed name that is verified instead of a pod's IP address,
//! one for the operator as a client, and one for its metrics API and KEDA scaler. Its name constraint keeps it from
//! signing anything else.

pub mod cert;
pub mod plan;
pub mod serving;
pub mod store;

use std::fmt;

/// Every name that the authority signs ends in this.
pub const DOMAIN: &str = "imagegen.internal";

/// The name in the operator's client certificate, which workers ask for.
pub const OPERATOR_NAME: &str = "operator.imagegen.internal";

/// The name in the server certificate of an ImageGen's workers.
#[must_use]
pub fn worker_name(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.{DOMAIN}")
}

/// A certificate and its private key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedCert {
    /// The certificate.
    pub cert: String,
    /// PKCS #8.
    pub key: String,
}

impl fmt::Debug for KeyedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCert").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not a certificate.
    #[error("not an X.509 certificate in PEM: {detail}")]
    Parse {
        /// What the parser says.
        detail: String,
    },
    /// The key is not the certificate's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// Signing or key generation failed.
    #[error("cannot sign")]
    Sign(#[from] rcgen::Error),
    /// A Secret could not be read or written.
    #[error("Secret {name} cannot be read or written")]
    Api {
        /// The Secret's name.
        name: String,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
}
