//! The bearer token and the certificates to trust.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use imagegen_proto::AUTHORIZATION;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::endpoint::Endpoint;

/// Environment variable with the token itself.
pub const TOKEN_VARIABLE: &str = "IMAGEGEN_TOKEN";

/// Why there is no usable token or certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No token in the file, or not one that a header can carry.
    #[error("{0} holds no token: expected printable ASCII characters in its first line")]
    NoToken(String),
    /// The token would cross the network in the clear.
    #[error(
        "a token is not sent over an unencrypted connection to {0}: use https://, or pass --allow-insecure-token if \
         the network is trusted"
    )]
    Insecure(Endpoint),
}

/// Adds `authorization: Bearer TOKEN` to every call, if there is a token. Never shown by `Debug`.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(..)" } else { "Bearer(none)" })
    }
}

impl Bearer {
    /// The token in the first line of `text`; `origin` names the text in the error.
    ///
    /// # Errors
    /// [`Error::NoToken`] when the line is empty or not printable ASCII.
    pub fn from_text(text: &str, origin: &str) -> Result<Self, Error> {
        let token = text.lines().next().unwrap_or_default().trim();
        let no_token = || Error::NoToken(origin.to_owned());
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(no_token());
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| no_token())?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }

    /// The token of `file`, else of [`TOKEN_VARIABLE`], else none.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub fn read(file: Option<&Path>) -> Result<Self, Error> {
        if let Some(path) = file {
            return Self::from_text(&String::from_utf8_lossy(&read(path)?), &path.display().to_string());
        }
        match env::var(TOKEN_VARIABLE) {
            Ok(text) if !text.is_empty() => Self::from_text(&text, TOKEN_VARIABLE),
            _ => Ok(Self::default()),
        }
    }

    /// There is a token.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Refuses to send the token in the clear to another machine.
    ///
    /// # Errors
    /// [`Error::Insecure`].
    pub fn check(&self, endpoint: &Endpoint, allow_insecure: bool) -> Result<(), Error> {
        if self.is_some() && !endpoint.tls && !endpoint.is_loopback() && !allow_insecure {
            return Err(Error::Insecure(endpoint.clone()));
        }
        Ok(())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }
}

/// What a TLS connection to a worker needs beyond its address.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Certificates (PEM) to trust instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Name the worker's certificate must carry, where it is not the host.
    pub server_name: Option<String>,
}

/// The bytes of a file that the user named.
///
/// # Errors
/// [`Error::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one("secret", Some("Bearer secret"))]
    #[case::line("secret\n", Some("Bearer secret"))]
    #[case::first_of_several("new\nold\n", Some("Bearer new"))]
    #[case::empty("\nsecret", None)]
    #[case::not_a_header("gehe\u{ef}m", None)]
    #[case::two_words("a b", None)]
    fn the_first_line_is_the_token(#[case] text: &str, #[case] header: Option<&str>) {
        let bearer = Bearer::from_text(text, "file").ok();
        assert_eq!(bearer.and_then(|b| b.0).as_ref().map(|value| value.to_str().unwrap()), header);
    }

    #[rstest]
    #[case::tls("https://worker:8500", false, true)]
    #[case::this_machine("http://localhost:8500", false, true)]
    #[case::other_machine("http://worker:8500", false, false)]
    #[case::allowed("http://worker:8500", true, true)]
    fn a_token_is_not_sent_in_the_clear(#[case] endpoint: &str, #[case] allow: bool, #[case] sent: bool) {
        let bearer = Bearer::from_text("secret", "file").unwrap();
        assert_eq!(bearer.check(&endpoint.parse().unwrap(), allow).is_ok(), sent);
        assert!(Bearer::default().check(&endpoint.parse().unwrap(), allow).is_ok());
        assert_eq!(format!("{bearer:?}"), "Bearer(..)");
    }
}
