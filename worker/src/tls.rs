//! TLS settings from PEM files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::reload::ReloadError;

/// What clients must speak.
const HTTP2: &[u8] = b"h2";

/// Files of the public service, for [`public`].
pub(crate) fn public_paths(folder: &Path) -> Vec<PathBuf> {
    vec![folder.join("tls.crt"), folder.join("tls.key")]
}

/// Files of the operator's service, for [`mutual`].
pub(crate) fn mutual_paths(folder: &Path) -> Vec<PathBuf> {
    vec![folder.join("tls.crt"), folder.join("tls.key"), folder.join("ca.crt")]
}

/// The server shows its certificate; clients show none.
pub(crate) fn public(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<ServerConfig, ReloadError> {
    let versions = versions(paths, provider())?;
    finish(paths, contents, versions.with_no_client_auth())
}

/// Both sides show a certificate; that of the client must come from the authority in the third file.
pub(crate) fn mutual(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<ServerConfig, ReloadError> {
    let failed = |reason: String| ReloadError::Content { path: paths[2].clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&paths[2], &contents[2])? {
        roots.add(certificate).map_err(|error| failed(format!("is not a certificate authority: {error}")))?;
    }
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| failed(format!("cannot verify clients: {error}")))?;
    finish(paths, contents, versions(paths, provider)?.with_client_cert_verifier(verifier))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn versions(
    paths: &[PathBuf],
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, ReloadError> {
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.map_err(|error| ReloadError::Content { path: paths[0].clone(), reason: error.to_string() })
}

fn finish(
    paths: &[PathBuf],
    contents: &[Vec<u8>],
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
) -> Result<ServerConfig, ReloadError> {
    let chain = certificates(&paths[0], &contents[0])?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|error| ReloadError::Content {
        path: paths[1].clone(),
        reason: format!("holds no private key in PEM form: {error}"),
    })?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| ReloadError::Content {
        path: paths[0].clone(),
        reason: format!("does not go with {}: {error}", paths[1].display()),
    })?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, ReloadError> {
    let failed = |reason| ReloadError::Content { path: path.to_owned(), reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(format!("is not in PEM form: {error}")))?;
    if chain.is_empty() { Err(failed("holds no certificate in PEM form".into())) } else { Ok(chain) }
}
