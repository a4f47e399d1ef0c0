//! Who asks, in the headers that the API server sets beside its front-proxy certificate. Pure.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/>, "Authentication flow".

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use k8s_openapi::api::core::v1::ConfigMap;

/// Someone whom the API server has authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// User name.
    pub name: String,
    /// Unique id, where the API server gives one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else authorizers may want.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// In which headers the API server says who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    username: Vec<HeaderName>,
    uid: Vec<HeaderName>,
    groups: Vec<HeaderName>,
    extra_prefixes: Vec<String>,
}

impl HeaderNames {
    /// As ConfigMap `extension-apiserver-authentication` names them.
    ///
    /// # Errors
    /// A sentence about the entry that cannot be used.
    pub fn read(config: &ConfigMap) -> Result<Self, String> {
        let names = |key: &str| {
            let list = list(config, key)?;
            let name = |name: &String| name.parse().map_err(|_| format!("{key} names {name:?}, which is no header"));
            list.iter().map(name).collect::<Result<Vec<HeaderName>, String>>()
        };
        let username = names("requestheader-username-headers")?;
        if username.is_empty() {
            return Err("requestheader-username-headers is empty, so nobody can be known".to_owned());
        }
        let prefixes = list(config, "requestheader-extra-headers-prefix")?;
        Ok(Self {
            username,
            uid: names("requestheader-uid-headers")?,
            groups: names("requestheader-group-headers")?,
            extra_prefixes: prefixes.into_iter().map(|prefix| prefix.to_ascii_lowercase()).collect(),
        })
    }

    /// Who asks; `None` when no header says so.
    #[must_use]
    pub fn user(&self, headers: &HeaderMap) -> Option<User> {
        let first = |names: &[HeaderName]| values(headers, names).next().map(str::to_owned);
        let name = first(&self.username)?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (header, value) in headers {
            // An empty prefix would make every header part of the user.
            let mut prefixes = self.extra_prefixes.iter().filter(|prefix| !prefix.is_empty());
            let key = prefixes.find_map(|prefix| header.as_str().strip_prefix(prefix.as_str()));
            if let (Some(key), Ok(value)) = (key.filter(|key| !key.is_empty()), value.to_str()) {
                let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
                extra.entry(key).or_default().push(value.to_owned());
            }
        }
        let groups = values(headers, &self.groups).map(str::to_owned).collect();
        Some(User { name, uid: first(&self.uid).unwrap_or_default(), groups, extra })
    }
}

/// A JSON list of strings in a ConfigMap; absent: empty.
///
/// # Errors
/// A sentence when the entry is something else.
pub(super) fn list(config: &ConfigMap, key: &str) -> Result<Vec<String>, String> {
    let text = config.data.as_ref().and_then(|data| data.get(key)).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|error| format!("{key} is not a list of strings in JSON: {error}"))
}

fn values<'a>(headers: &'a HeaderMap, names: &'a [HeaderName]) -> impl Iterator<Item = &'a str> {
    let all = names.iter().flat_map(|name| headers.get_all(name));
    all.filter_map(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn config(entries: &[(&str, &str)]) -> ConfigMap {
        let usual = [
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ];
        let data = usual.iter().chain(entries).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ConfigMap { data: Some(data.collect()), ..ConfigMap::default() }
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_headers_say_who_asks() {
        let sent = [
            ("x-remote-user", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
            ("x-remote-uid", "42"),
            ("x-remote-group", "system:serviceaccounts"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-example.com%2fscope", "a"),
            ("x-remote-extra-", "no key"),
            ("accept", "*/*"),
        ];
        let user = HeaderNames::read(&config(&[])).unwrap().user(&headers(&sent)).unwrap();
        let expected = User {
            name: "system:serviceaccount:kube-system:horizontal-pod-autoscaler".into(),
            uid: "42".into(),
            groups: vec!["system:serviceaccounts".into(), "system:authenticated".into()],
            extra: [("example.com/scope".to_owned(), vec!["a".to_owned()])].into(),
        };
        assert_eq!(user, expected);
    }

    #[rstest]
    #[case::no_header(&[], None)]
    #[case::an_empty_one(&[("x-remote-user", "")], None)]
    #[case::only_a_group(&[("x-remote-group", "system:masters")], None)]
    #[case::the_first_of_two(&[("x-remote-user", "a"), ("x-remote-user", "b")], Some("a"))]
    fn without_a_name_there_is_no_user(#[case] sent: &[(&'static str, &'static str)], #[case] expected: Option<&str>) {
        let user = HeaderNames::read(&config(&[])).unwrap().user(&headers(sent));
        assert_eq!(user.map(|user| user.name).as_deref(), expected);
    }

    #[test]
    fn an_empty_prefix_takes_no_header() {
        let names = HeaderNames::read(&config(&[("requestheader-extra-headers-prefix", r#"[""]"#)])).unwrap();
        let user = names.user(&headers(&[("x-remote-user", "a"), ("accept", "*/*")])).unwrap();
        assert_eq!(user.extra, BTreeMap::new());
    }

    #[rstest]
    #[case::not_json("requestheader-group-headers", "X-Remote-Group")]
    #[case::no_header_name("requestheader-username-headers", r#"["X Remote"]"#)]
    #[case::no_user_header("requestheader-username-headers", "[]")]
    fn what_cannot_be_used_is_named(#[case] key: &str, #[case] value: &str) {
        assert!(HeaderNames::read(&config(&[(key, value)])).unwrap_err().contains(key));
    }
}
