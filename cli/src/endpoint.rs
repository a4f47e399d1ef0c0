//! Where workers are: the text of `--endpoint`.

use std::{fmt, net::IpAddr, str::FromStr};

use http::Uri;

/// Port of a worker when the endpoint names none.
const DEFAULT_PORT: u16 = 8500;

/// Scheme, host and port of the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`.
    pub tls: bool,
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// What is sent there stays on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is not an [`Endpoint`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an endpoint is written http://HOST:PORT or https://HOST:PORT and has no path, found \"{0}\"")]
pub struct ParseEndpointError(String);

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseEndpointError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().ok_or_else(invalid)?;
        let port_is_broken = authority.port_u16().is_none() && !authority.as_str().ends_with(authority.host());
        if authority.host().is_empty()
            || port_is_broken
            || authority.as_str().contains('@')
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
        {
            return Err(invalid());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port: authority.port_u16().unwrap_or(DEFAULT_PORT) })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("http://worker:8500", "http://worker:8500", false)]
    #[case::default_port("https://turbo.art.svc", "https://turbo.art.svc:8500", false)]
    #[case::slash("http://localhost:1/", "http://localhost:1", true)]
    #[case::ipv4("http://127.0.0.1:8500", "http://127.0.0.1:8500", true)]
    #[case::ipv6("https://[::1]:8500", "https://[::1]:8500", true)]
    fn endpoints_are_read(#[case] text: &str, #[case] shown: &str, #[case] loopback: bool) {
        let endpoint: Endpoint = text.parse().unwrap();
        assert_eq!((endpoint.to_string().as_str(), endpoint.is_loopback()), (shown, loopback));
    }

    #[rstest]
    #[case::no_scheme("localhost:8500")]
    #[case::other_scheme("grpc://worker:8500")]
    #[case::path("http://worker:8500/api")]
    #[case::query("http://worker:8500?x=1")]
    #[case::user("http://me@worker:8500")]
    #[case::port_out_of_range("http://worker:70000")]
    #[case::nothing("")]
    fn other_texts_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<Endpoint>(), Err(ParseEndpointError(text.to_owned())));
    }
}
