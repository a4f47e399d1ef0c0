//! What a request asks for. Pure.

use http::{HeaderMap, Method, Uri, header};
use kube::core::Selector;

use super::{API_VERSION, GROUP, failure::Failure, selector};

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// `/apis`: the groups of this server.
    Groups,
    /// `/apis/custom.metrics.k8s.io`: the versions of the group.
    Group,
    /// `/apis/custom.metrics.k8s.io/v1beta2`: its resources.
    Resources,
    /// Metrics of one object, or of several.
    Values(Query),
}

/// Which values are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The namespace.
    pub namespace: String,
    /// The resource with its group, such as `imagegens.imagegen.dev`.
    pub resource: String,
    /// The object; `*` for all that `labels` selects.
    pub name: String,
    /// The metric.
    pub metric: String,
    /// Selects objects.
    pub labels: Selector,
    /// Selects metrics by labels of their own. These have none.
    pub metric_labels: Selector,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a list of values.
    List,
    /// As the table that `kubectl` prints.
    Table,
}

/// What a request asks for.
///
/// # Errors
/// [`Failure::MethodNotAllowed`], [`Failure::BadRequest`] for a selector that cannot be read, [`Failure::NotFound`] for a
/// path that is none of ours.
pub fn target(method: &Method, uri: &Uri) -> Result<Target, Failure> {
    if method != Method::GET {
        return Err(Failure::MethodNotAllowed(method.to_string()));
    }
    let path = uri.path().trim_end_matches('/');
    let Some(rest) = path.strip_prefix("/apis") else { return Err(unknown(path)) };
    match rest.trim_start_matches('/') {
        "" => return Ok(Target::Groups),
        GROUP => return Ok(Target::Group),
        API_VERSION => return Ok(Target::Resources),
        _ => {}
    }
    let parts = rest.strip_prefix(&format!("/{API_VERSION}/")).ok_or_else(|| unknown(path))?;
    let parts: Vec<String> = parts.split('/').map(decoded).collect();
    let [namespaces, namespace, resource, name, metric] = parts.as_slice() else { return Err(unknown(path)) };
    if namespaces != "namespaces" || parts.iter().any(String::is_empty) {
        return Err(unknown(path));
    }
    let parameter = |wanted: &str| {
        let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let value = pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
        selector::parse(&value.unwrap_or_default()).map_err(Failure::BadRequest)
    };
    Ok(Target::Values(Query {
        namespace: namespace.clone(),
        resource: resource.clone(),
        name: name.clone(),
        metric: metric.clone(),
        labels: parameter("labelSelector")?,
        metric_labels: parameter("metricLabelSelector")?,
    }))
}

fn unknown(path: &str) -> Failure {
    Failure::NotFound(format!("there is nothing at {path:?}"))
}

fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// How the caller wants the answer: the first form of its `Accept` header that is served. Without one, a list.
///
/// # Errors
/// [`Failure::NotAcceptable`] when it wants nothing that is served.
pub fn form(headers: &HeaderMap) -> Result<Form, Failure> {
    let texts: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if texts.is_empty() {
        return Ok(Form::List);
    }
    let ranges = texts.iter().flat_map(|text| text.split(','));
    ranges.filter_map(served).next().ok_or_else(|| Failure::NotAcceptable(texts.join(",")))
}

fn served(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    if !["application/json", "application/*", "*/*"].contains(&media) {
        return None;
    }
    let mut kind = None;
    for parameter in parts {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("as", "Table") => kind = Some("Table"),
            // Something of this API machinery that is not served.
            ("as", _) => return None,
            ("g", group) if group != "meta.k8s.io" => return None,
            ("v", version) if version != "v1" => return None,
            _ => {}
        }
    }
    Some(if kind.is_some() { Form::Table } else { Form::List })
}

#[cfg(test)]
mod tests {
    use kube::core::Expression;
    use rstest::rstest;

    use super::*;

    fn get(uri: &str) -> Result<Target, Failure> {
        target(&Method::GET, &uri.parse().unwrap())
    }

    #[rstest]
    #[case("/apis", Target::Groups)]
    #[case("/apis/", Target::Groups)]
    #[case("/apis/custom.metrics.k8s.io", Target::Group)]
    #[case("/apis/custom.metrics.k8s.io/v1beta2", Target::Resources)]
    #[case("/apis/custom.metrics.k8s.io/v1beta2/", Target::Resources)]
    fn documents_have_paths(#[case] uri: &str, #[case] expected: Target) {
        assert_eq!(get(uri), Ok(expected));
    }

    #[rstest]
    #[case::one("a/imagegens.imagegen.dev/turbo/pressure", "turbo", Selector::default())]
    #[case::all("a/imagegens.imagegen.dev/*/pressure", "*", Selector::default())]
    #[case::all_encoded("a/imagegens.imagegen.dev/%2A/pressure", "*", Selector::default())]
    #[case::selected(
        "a/imagegens.imagegen.dev/*/pressure?labelSelector=app%3Dx&limit=500",
        "*",
        Expression::Equal("app".into(), "x".into()).into()
    )]
    fn values_have_paths(#[case] rest: &str, #[case] name: &str, #[case] labels: Selector) {
        let query = Query {
            namespace: "a".into(),
            resource: "imagegens.imagegen.dev".into(),
            name: name.into(),
            metric: "pressure".into(),
            labels,
            metric_labels: Selector::default(),
        };
        let uri = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{rest}");
        assert_eq!(get(&uri), Ok(Target::Values(query)));
    }

    #[rstest]
    #[case::the_root("/")]
    #[case::another_group("/apis/metrics.k8s.io")]
    #[case::another_version("/apis/custom.metrics.k8s.io/v1beta1")]
    #[case::no_metric("/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/pods/p")]
    #[case::too_long("/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/pods/p/pressure/more")]
    #[case::without_a_namespace("/apis/custom.metrics.k8s.io/v1beta2/nodes/n/pressure/x/y")]
    #[case::an_empty_name("/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/pods//pressure")]
    fn other_paths_are_not_found(#[case] uri: &str) {
        assert!(matches!(get(uri), Err(Failure::NotFound(_))), "{:?}", get(uri));
    }

    #[test]
    fn a_broken_selector_is_a_bad_request() {
        let uri = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/pods/*/pressure?labelSelector=a%3E1";
        assert!(matches!(get(uri), Err(Failure::BadRequest(_))));
        assert!(matches!(target(&Method::POST, &uri.parse().unwrap()), Err(Failure::MethodNotAllowed(_))));
    }

    #[rstest]
    #[case::none("", Ok(Form::List))]
    #[case::json("application/json", Ok(Form::List))]
    #[case::anything("application/vnd.kubernetes.protobuf, */*", Ok(Form::List))]
    #[case::a_table("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Ok(Form::Table))]
    #[case::an_older_table_first("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Ok(Form::List))]
    #[case::aggregated_discovery_first(
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;q=0.7",
        Ok(Form::List)
    )]
    #[case::nothing_served("application/vnd.kubernetes.protobuf", Err(()))]
    fn the_accept_header_chooses_the_form(#[case] accept: &str, #[case] expected: Result<Form, ()>) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        assert_eq!(form(&headers).map_err(|_| ()), expected);
    }
}
