//! The server: from a request to its answer. It decides nothing itself.

use std::{fmt, sync::Arc};

use http::{Request, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use jiff::Timestamp;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tokio::sync::watch;
use tonic::body::Body;

use super::{
    access::Access,
    discovery,
    failure::Failure,
    front_proxy::FrontProxy,
    request::{self, Form, Query, Target},
    value::{self, Item},
};
use crate::{fleets::Fleets, metrics::Metrics, serving::Peer};

/// The values that a query asks for.
pub type Values = Arc<dyn Fn(&Query) -> Result<Vec<Item>, Failure> + Send + Sync>;

/// The custom metrics API. Cheap to clone.
#[derive(Clone)]
pub struct MetricsApi {
    /// How the API server vouches for callers; `None` until that was read.
    pub front_proxy: watch::Receiver<Option<Arc<FrontProxy>>>,
    /// Who may read what.
    pub access: Arc<Access>,
    /// Where values come from.
    pub values: Values,
    /// Counts the answers.
    pub metrics: Metrics,
}

impl fmt::Debug for MetricsApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsApi").field("access", &self.access).finish_non_exhaustive()
    }
}

/// The values of the fleets that this operator serves.
pub fn values_of(fleets: Fleets) -> Values {
    Arc::new(move |query| {
        if !fleets.are_synced() {
            return Err(Failure::Unavailable("the operator has just started and does not know all workers yet".into()));
        }
        let found = match (query.name.as_str(), query.resource.as_str()) {
            (value::ALL, _) => fleets.in_namespace(&query.namespace),
            (pod, "pods") => fleets.of_pod(&query.namespace, pod).into_iter().collect(),
            (name, _) => fleets.get(&query.namespace, name).into_iter().collect(),
        };
        value::select(&found, query)
    })
}

impl MetricsApi {
    /// The answer to one request of a connection whose client showed the certificates of `peer`.
    pub async fn answer(self, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let (parts, _) = request.into_parts();
        let (code, body) = match self.document(&peer, &parts).await {
            Ok(body) => (StatusCode::OK, body),
            Err(failure) => (failure.code(), failure.status()),
        };
        self.metrics.metrics_api_answered(code.as_u16());
        let mut response = Response::new(Body::new(http_body_util::Full::from(body.to_string())));
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    async fn document(&self, peer: &[CertificateDer<'_>], parts: &Parts) -> Result<Value, Failure> {
        let front_proxy = self.front_proxy.borrow().clone().ok_or_else(|| {
            Failure::Unauthorized("the operator does not know yet how the API server vouches for callers".to_owned())
        })?;
        let user = front_proxy.authenticate(peer, &parts.headers, UnixTime::now());
        let user = user.map_err(Failure::Unauthorized)?;
        let target = request::target(&parts.method, &parts.uri)?;
        self.access.check(&user, &target).await?;
        let form = request::form(&parts.headers)?;
        match target {
            Target::Groups => Ok(discovery::groups()),
            Target::Group => Ok(discovery::group()),
            Target::Resources => Ok(discovery::resources()),
            Target::Values(query) => {
                let items = (self.values)(&query)?;
                Ok(match form {
                    Form::List => value::list(&items, Timestamp::now()),
                    Form::Table => value::table(&items, Timestamp::now()),
                })
            }
        }
    }
}

/// Lets every client in, with a certificate or without, so that the wrong one is told with a status instead of a
/// broken handshake. Whoever shows a certificate must have its key; whether it counts is decided for each request.
#[derive(Debug)]
pub struct AnyClient(CryptoProvider);

impl AnyClient {
    /// The verifier for the server's TLS.
    #[must_use]
    pub fn verifier() -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self(ring::default_provider()))
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
