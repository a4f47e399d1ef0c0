//! The operator's client certificate, as every operator pod reads it from its Secret.

use std::{convert::Infallible, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig};
use tracing::{info, warn};

use crate::pki::{
    KeyedCert,
    store::{CLIENT_SECRET, CurrentAuthority, leaf_in},
};

/// How often the Secret is read; a new authority that this pod itself made is noticed at once.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// How soon it is read again while it is not there.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// The longest read.
const LIMIT: Duration = Duration::from_secs(10);

/// What the operator shows to workers, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    leaf: KeyedCert,
    bundle: String,
}

impl Identity {
    /// A client certificate and the authorities that may sign for workers, PEM.
    #[must_use]
    pub fn new(leaf: KeyedCert, bundle: String) -> Self {
        Self { leaf, bundle }
    }

    /// Mutual TLS with a worker that has to show a certificate for `server_name`, whatever its address.
    pub(super) fn tls(&self, server_name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.bundle))
            .identity(tonic::transport::Identity::from_pem(&self.leaf.cert, &self.leaf.key))
            .domain_name(server_name)
    }
}

/// Publishes the certificate in force, until `stop`.
///
/// # Errors
/// Never: what fails is logged and tried again.
pub async fn run(
    secrets: Api<Secret>,
    mut authority: CurrentAuthority,
    publish: watch::Sender<Option<Arc<Identity>>>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        let pause = match time::timeout(LIMIT, secrets.get_opt(CLIENT_SECRET)).await {
            Ok(Ok(secret)) => {
                let found = secret.as_ref().and_then(leaf_in).map(|(leaf, bundle)| Identity::new(leaf, bundle));
                let pause = if found.is_some() { CHECK_EVERY } else { RETRY_EVERY };
                publish.send_if_modified(|held| {
                    let news = found.is_some() && held.as_deref() != found.as_ref();
                    if news {
                        info!(secret = CLIENT_SECRET, "Read the client certificate for the workers' admin port.");
                        *held = found.map(Arc::new);
                    }
                    news
                });
                pause
            }
            Ok(Err(error)) => {
                warn!(secret = CLIENT_SECRET, %error, "The client certificate cannot be read; trying again soon.");
                RETRY_EVERY
            }
            Err(_) => {
                warn!(secret = CLIENT_SECRET, "The client certificate could not be read in time.");
                RETRY_EVERY
            }
        };
        tokio::select! {
            () = time::sleep(pause.mul_f64(rand::random_range(0.9..1.1))) => {}
            // Only the leader's authority ever changes; on the others this end never comes.
            Ok(()) = authority.changed() => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
