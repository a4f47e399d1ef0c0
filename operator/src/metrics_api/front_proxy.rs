//! Whether it is the API server that speaks: its front-proxy certificate, against what ConfigMap
//! `kube-system/extension-apiserver-authentication` says. The ConfigMap is followed, so a rotated authority needs no
//! restart.

use std::{fmt, sync::Arc};

use futures::StreamExt as _;
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use rustls::{
    RootCertStore,
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::{parse_x509_certificate, prelude::X509Certificate};

use super::auth_headers::{HeaderNames, User, list};

/// Where the API server says how it vouches for callers.
pub const CONFIG_NAMESPACE: &str = "kube-system";
/// Its name there.
pub const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// How the API server vouches for callers.
pub struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Common names that count; empty: every one.
    allowed_names: Vec<String>,
    headers: HeaderNames,
}

impl fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontProxy").field("allowed_names", &self.allowed_names).finish_non_exhaustive()
    }
}

impl FrontProxy {
    /// As the ConfigMap says.
    ///
    /// # Errors
    /// A sentence about the entry that cannot be used.
    pub fn read(config: &ConfigMap) -> Result<Self, String> {
        const CA: &str = "requestheader-client-ca-file";
        let pem = config.data.as_ref().and_then(|data| data.get(CA)).ok_or_else(|| {
            format!("{CA} is missing: the API server runs without --requestheader-client-ca-file, so it cannot serve aggregated APIs")
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("{CA} is not in PEM form: {error}"))?;
            roots.add(certificate).map_err(|error| format!("{CA} holds no authority: {error}"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self {
            verifier: verifier.map_err(|error| format!("{CA} cannot be used: {error}"))?,
            allowed_names: list(config, "requestheader-allowed-names")?,
            headers: HeaderNames::read(config)?,
        })
    }

    /// Who asks, when the certificates of the connection are the API server's.
    ///
    /// # Errors
    /// A sentence for the one who asks.
    pub fn authenticate(
        &self,
        certificates: &[CertificateDer<'_>],
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<User, String> {
        let Some((end_entity, intermediates)) = certificates.split_first() else {
            return Err("no client certificate: only the API server may ask, so read metrics through it".to_owned());
        };
        if let Err(error) = self.verifier.verify_client_cert(end_entity, intermediates, now) {
            return Err(format!("the client certificate is not the API server's: {error}"));
        }
        let (_, parsed) = parse_x509_certificate(end_entity)
            .map_err(|error| format!("the client certificate cannot be read: {error}"))?;
        let name = common_name(&parsed);
        if !self.allowed_names.is_empty() && !self.allowed_names.iter().any(|allowed| allowed == name) {
            let allowed = self.allowed_names.join(", ");
            return Err(format!("the client certificate names {name:?}, and only {allowed} may speak for others"));
        }
        self.headers.user(headers).ok_or_else(|| "no header says who asks".to_owned())
    }
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> &'a str {
    certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default()
}

/// Follows the ConfigMap until `stop`. While it says nothing usable, the last good one stays.
///
/// # Errors
/// Never: what fails is logged and tried again.
pub async fn follow(
    api: Api<ConfigMap>,
    publish: watch::Sender<Option<Arc<FrontProxy>>>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut events = std::pin::pin!(watch_object(api, CONFIG_MAP).default_backoff());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        let read = match event {
            Ok(Some(config)) => FrontProxy::read(&config),
            Ok(None) => Err("it does not exist".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(front_proxy) => {
                info!(config_map = CONFIG_MAP, ?front_proxy, "Read how the API server vouches for callers.");
                publish.send_replace(Some(Arc::new(front_proxy)));
            }
            Err(error) => warn!(
                namespace = CONFIG_NAMESPACE,
                config_map = CONFIG_MAP,
                error,
                "How the API server vouches for callers could not be read; keeping what was read before."
            ),
        }
    }
    Ok(())
}
