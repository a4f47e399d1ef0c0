//! The schema: what is generated is what is committed, and it keeps the promises that clients of the API rely on.

#![allow(clippy::panic, reason = "helpers of tests")]

use std::path::PathBuf;

use imagegen_operator::crd::{crd, crd_yaml};
use serde_json::Value;

const GENERATED: &str = "../deploy/crd.yaml";

fn schema() -> Value {
    let crd = serde_json::to_value(crd()).expect("serialises");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Every schema node below `node`, with its path.
fn nodes<'a>(node: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
    found.push((path.to_owned(), node));
    if let Some(properties) = node["properties"].as_object() {
        for (name, property) in properties {
            nodes(property, &format!("{path}.{name}"), found);
        }
    }
    if node["items"].is_object() {
        nodes(&node["items"], &format!("{path}[]"), found);
    }
    if node["additionalProperties"].is_object() {
        nodes(&node["additionalProperties"], &format!("{path}.*"), found);
    }
}

fn all(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for part in ["spec", "status"] {
        nodes(&schema["properties"][part], part, &mut found);
    }
    found
}

#[test]
fn the_committed_crd_is_the_generated_one() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(GENERATED);
    if std::env::var_os("UPDATE_CRD").is_some() {
        std::fs::write(&path, crd_yaml()).expect("deploy/ is writable");
    }
    let committed = std::fs::read_to_string(&path).expect("deploy/crd.yaml is committed");
    assert!(committed == crd_yaml(), "deploy/crd.yaml is out of date: run `make generate`");
}

#[test]
fn client_side_apply_fits_its_annotation() {
    let yaml = crd_yaml().len();
    let json = serde_json::to_string(&crd()).expect("serialises").len();
    assert!(yaml < 200 * 1024, "{yaml} bytes of YAML");
    assert!(json < 256 * 1024, "{json} bytes of JSON in the last-applied annotation");
}

#[test]
fn every_list_map_and_string_has_a_maximum() {
    let schema = schema();
    let unbounded: Vec<_> = all(&schema)
        .into_iter()
        .filter(|(_, node)| match node["type"].as_str() {
            Some("array") => node["maxItems"].is_null(),
            Some("object") => node["properties"].is_null() && node["maxProperties"].is_null(),
            Some("string") => {
                node["maxLength"].is_null() && node["enum"].is_null() && node["format"].as_str() != Some("date-time")
            }
            _ => false,
        })
        .map(|(path, node)| format!("{path}: {node}"))
        .collect();
    assert!(unbounded.is_empty(), "{unbounded:#?}");
}

#[test]
fn every_field_of_ours_has_a_description_and_core_types_have_none() {
    let schema = schema();
    let core = [
        "affinity",
        "tolerations",
        "topologySpreadConstraints",
        "initContainers",
        "env",
        "volumes",
        "volumeMounts",
        "securityContext",
        "imagePullSecrets",
    ];
    for (path, node) in all(&schema) {
        let inside = core.iter().any(|name| {
            let at = format!("spec.worker.podTemplate.{name}");
            path.starts_with(&at) && path != at
        }) || path.starts_with("status.conditions[]");
        let element = path.ends_with(['*', ']']);
        match node["description"].as_str() {
            Some(text) => assert!(!inside && text.ends_with('.'), "{path}: {text}"),
            None => assert!(inside || element, "{path} has no description"),
        }
    }
}

#[test]
fn every_list_of_objects_is_keyed_or_atomic_by_choice() {
    let schema = schema();
    let unkeyed: Vec<_> = all(&schema)
        .into_iter()
        .filter(|(path, node)| {
            let pod_template = "spec.worker.podTemplate.";
            let ours = path.strip_prefix(pod_template).is_none_or(|rest| !rest.contains(['.', '[']));
            ours && node["type"] == "array"
                && node["items"]["type"] == "object"
                && node["x-kubernetes-list-type"] != "map"
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(unkeyed, ["spec.worker.podTemplate.tolerations", "status.scalingHistory"]);
}

#[test]
fn what_a_profile_may_decide_has_no_default() {
    let schema = schema();
    let with_default: Vec<_> =
        all(&schema).into_iter().filter(|(_, node)| !node["default"].is_null()).map(|(path, _)| path).collect();
    insta::assert_yaml_snapshot!(with_default);
}

#[test]
fn rules_have_messages_that_are_sentences_for_users() {
    let schema = schema();
    let mut rules = 0;
    let mut found = all(&schema);
    found.push((String::new(), &schema));
    for (path, node) in found {
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.len() > 20 && !message.contains("self."), "{path}: {rule}");
        }
        assert!(node["nullable"].is_null(), "{path} is nullable");
    }
    assert!(rules > 25, "{rules} rules");
}

#[test]
fn the_manual_has_a_row_for_every_field_with_its_default() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/crd.md");
    let manual = std::fs::read_to_string(path).expect("docs/crd.md is committed");
    let schema = schema();
    for (path, node) in all(&schema) {
        let name = path.strip_prefix("spec.").unwrap_or(&path);
        let inside_core = name.strip_prefix("worker.podTemplate.").is_some_and(|rest| rest.contains(['.', '[']));
        if ["spec", "status"].contains(&name)
            || name.ends_with(['*', ']'])
            || inside_core
            || name.contains("conditions[]")
        {
            continue;
        }
        let row = manual.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/crd.md has no row for {name}"));
        let default = &node["default"];
        let text = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        let shown = default.is_null()
            || default.is_object()
            || path.starts_with("status")
            || row.contains(&format!("| {text} |"));
        assert!(shown, "docs/crd.md has another default than {text} for {name}");
    }
}
