//! Bearer tokens of the public service.

use std::path::PathBuf;

use http::{HeaderMap, header::AUTHORIZATION};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::reload::ReloadError;

/// Path prefix of calls that need no token: health checks of clients and load balancers.
const OPEN: &str = "/grpc.health.v1.Health/";

/// The tokens that are accepted, as digests: comparing them takes the same time whatever their length.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    /// One token a line; blank lines are nothing.
    pub(crate) fn parse(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<Self, ReloadError> {
        let content = |reason: &str| ReloadError::Content { path: paths[0].clone(), reason: reason.into() };
        let text = std::str::from_utf8(&contents[0]).map_err(|_| content("is not UTF-8 text"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens: Vec<_> = lines.map(|line| Sha256::digest(line.as_bytes()).into()).collect();
        if tokens.is_empty() { Err(content("holds no token; expected one a line")) } else { Ok(Self(tokens)) }
    }

    /// Whether a call to `path` with these headers may go on.
    pub(crate) fn allow(&self, path: &str, headers: &HeaderMap) -> bool {
        if path.starts_with(OPEN) {
            return true;
        }
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        let Some(shown) = shown else { return false };
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        let matches = |found, token: &[u8; 32]| found | token.ct_eq(&shown);
        self.0.iter().fold(subtle::Choice::from(0), matches).into()
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn tokens(text: &str) -> Result<Tokens, ReloadError> {
        Tokens::parse(&["token".into()], &[text.into()])
    }

    #[rstest]
    #[case::first("Bearer one", true)]
    #[case::second("bearer two", true)]
    #[case::prefix("Bearer on", false)]
    #[case::longer("Bearer one1", false)]
    #[case::empty("Bearer ", false)]
    #[case::bare("one", false)]
    #[case::basic("Basic one", false)]
    fn headers(#[case] header: &str, #[case] is_allowed: bool) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
        let tokens = tokens("one\n\n  two\n").unwrap();
        assert_eq!(tokens.allow("/imagegen.v1.ImageService/Generate", &headers), is_allowed);
    }

    #[test]
    fn only_health_needs_no_token() {
        let tokens = tokens("one").unwrap();
        assert!(tokens.allow("/grpc.health.v1.Health/Check", &HeaderMap::new()));
        assert!(!tokens.allow("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &HeaderMap::new()));
        assert!(!tokens.allow("/imagegen.v1.ImageService/GetModel", &HeaderMap::new()));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        assert_eq!(tokens(" \n").unwrap_err().to_string(), "token holds no token; expected one a line");
    }
}
