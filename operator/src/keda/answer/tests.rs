use std::{collections::BTreeMap, time::Duration};

use rstest::rstest;
use tonic::Code;

use super::*;
use crate::{
    autoscale::{
        fleet::{Standing, Worker},
        samples::{TARGETS, busy, idle, ready, silent, standing},
    },
    crd::AutoscalingMode,
};

fn fleet(replicas: u32, workers: Vec<Worker>) -> Fleet {
    Fleet {
        namespace: "studio".into(),
        name: "turbo".into(),
        labels: BTreeMap::new(),
        mode: AutoscalingMode::External,
        targets: TARGETS,
        max_step: 4,
        replicas,
        workers,
        pod_labels: BTreeMap::new(),
    }
}

fn scaled_object(namespace: &str, metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ScaledObjectRef { name: "so".into(), namespace: namespace.into(), scaler_metadata: metadata.collect() }
}

#[rstest]
#[case::named("studio", &[("imagegen", "turbo"), ("scalerAddress", "a:9090"), ("enableTLS", "true")], Ok(("studio", "turbo")))]
#[case::not_named("studio", &[("scalerAddress", "a:9090")], Err("metadata.imagegen"))]
#[case::named_empty("studio", &[("imagegen", "")], Err("metadata.imagegen"))]
#[case::of_another_namespace("studio", &[("imagegen", "turbo"), ("namespace", "secret")], Err("metadata.namespace"))]
#[case::misspelt("studio", &[("imagegen", "turbo"), ("imageGen", "x")], Err("metadata.imageGen"))]
#[case::of_no_namespace("", &[("imagegen", "turbo")], Err("metadata.imagegen"))]
fn a_scaled_object_scales_an_imagegen_of_its_own_namespace(
    #[case] namespace: &str,
    #[case] metadata: &[(&str, &str)],
    #[case] expected: Result<(&str, &str), &str>,
) {
    let scaled_object = scaled_object(namespace, metadata);
    match (wanted(Some(&scaled_object)), expected) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected),
        (Err(status), Err(word)) => {
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(word), "{status}");
        }
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
    assert_eq!(wanted(None).unwrap_err().code(), Code::InvalidArgument);
}

#[rstest]
#[case::at_zero(0, vec![], Some(0.0), false)]
#[case::idle(1, vec![ready("p", idle())], Some(0.0), false)]
#[case::working(2, vec![ready("p", busy(0.5, 0.0)), ready("q", busy(0.2, 40.0))], Some(2.0), true)]
#[case::working_without_memory(1, vec![ready("p", busy(0.0, 0.0))], Some(0.0), true)]
#[case::unknown_beside_idle(2, vec![ready("p", idle()), silent(ready("q", idle()))], Some(0.75), true)]
#[case::unknown(1, vec![silent(ready("p", idle()))], None, true)]
#[case::about_to_be_made(1, vec![], None, false)]
#[case::loading(1, vec![standing("p", Standing::Starting, Duration::ZERO, None)], None, false)]
#[case::leaving_for_zero(0, vec![standing("p", Standing::Terminating, Duration::ZERO, Some(idle()))], Some(0.0), false)]
fn keda_hears_the_total_and_whether_there_is_work(
    #[case] replicas: u32,
    #[case] workers: Vec<Worker>,
    #[case] value: Option<f64>,
    #[case] active: bool,
) {
    let fleet = fleet(replicas, workers);
    let load = fleet.load();
    match value {
        Some(value) => {
            let found = total(&fleet, &load).unwrap();
            assert_eq!((found.metric_name.as_str(), found.metric_value_float), (METRIC, value));
            assert_eq!(found.metric_value, value.ceil() as i64);
        }
        None => assert_eq!(total(&fleet, &load).unwrap_err().code(), Code::Unavailable),
    }
    assert_eq!(is_active(&fleet, &load), active);
}

#[test]
fn the_target_is_that_of_the_spec() {
    let expected = MetricSpec { metric_name: METRIC.into(), target_size: 1, target_size_float: 0.75 };
    assert_eq!(metric_spec(&fleet(1, vec![])), expected);
}
