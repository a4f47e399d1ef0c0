//! The certificate that the operator's own servers show: the metrics API and the KEDA scaler. The leader keeps it in a
//! Secret; every operator pod reads it there and follows it, without closing a connection.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{KeyedCert, store::leaf_in};

/// The Secret of the serving certificate.
pub const SERVING_SECRET: &str = "imagegen-operator-serving";

/// How often the Secret is looked at. A certificate is replaced a month before its end.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// The same while there is none, or it could not be read.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// The longest look.
const LIMIT: Duration = Duration::from_secs(20);

/// The name in the serving certificate: the one by which the API server and KEDA reach the operator's Service.
#[must_use]
pub fn serving_name(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}

/// The certificate in force; `None` until it was read. Each handshake takes the newest.
#[derive(Debug, Clone)]
pub struct ServingCertificate(watch::Receiver<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

impl ServingCertificate {
    /// A certificate that `publish` decides about.
    #[must_use]
    pub fn new(publish: &watch::Sender<Option<Arc<CertifiedKey>>>) -> Self {
        Self(publish.subscribe())
    }

    /// TLS with this certificate. With `clients`, a client may show a certificate too, which that one verifies.
    ///
    /// # Errors
    /// When the TLS library knows no protocol version, which would be a bug.
    pub fn tls(
        &self,
        clients: Option<Arc<dyn ClientCertVerifier>>,
        protocols: &[&[u8]],
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the Secret every so often until `stop`.
///
/// # Errors
/// Never: what fails is logged and tried again; the last good certificate stays.
pub async fn follow(
    api: Api<Secret>,
    publish: watch::Sender<Option<Arc<CertifiedKey>>>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut current: Option<KeyedCert> = None;
    loop {
        let found = match time::timeout(LIMIT, api.get_opt(SERVING_SECRET)).await {
            Ok(Ok(secret)) => Ok(secret.as_ref().and_then(leaf_in).map(|(leaf, _)| leaf)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
        };
        let found = found.and_then(|leaf| match leaf {
            Some(leaf) if current.as_ref() != Some(&leaf) => certified(&leaf).map(|key| Some((leaf, key))),
            _ => Ok(None),
        });
        match found {
            Ok(Some((leaf, key))) => {
                info!(secret = SERVING_SECRET, "Serving with a new certificate.");
                current = Some(leaf);
                publish.send_replace(Some(Arc::new(key)));
            }
            Ok(None) => {}
            Err(error) => warn!(secret = SERVING_SECRET, error, "The serving certificate could not be read."),
        }
        let pause = if current.is_some() { CHECK_EVERY } else { RETRY_EVERY };
        if stop.run_until_cancelled(time::sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
}

/// Certificate and key, ready for handshakes.
///
/// # Errors
/// A sentence when they cannot be used.
pub fn certified(leaf: &KeyedCert) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("tls.crt is not in PEM form: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes());
    let key = key.map_err(|error| format!("tls.key holds no private key: {error}"))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| format!("tls.crt and tls.key do not fit: {error}"))
}
