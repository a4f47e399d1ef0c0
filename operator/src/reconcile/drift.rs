//! Whether a child has to be written: it differs from what was applied last, or someone changed what we applied. Pure.
//!
//! The API server fills in defaults and rewrites values (`1000m` becomes `1`), so a child is never equal to what was
//! sent. Two hashes stand in for equality. The first, of what was sent, is an annotation of the child: it tells whether
//! this version of the operator wants something else. The second, of the part of the child that we speak of, is taken
//! from the answer to our own write and kept in memory: it tells whether someone else changed that part since. Foreign
//! additions outside of it are nobody's business here.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// The annotation with the hash of what was applied last.
pub const APPLIED_ANNOTATION: &str = "imagegen.dev/applied-hash";

/// What is remembered of the last write of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastApplied {
    /// Hash of what was sent.
    pub sent: String,
    /// Hash of the part of the answer that we speak of.
    pub stored: String,
}

/// Why a child is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Why {
    /// There is none.
    Missing,
    /// Another state is wanted than what was applied last.
    Changed,
    /// What was applied last was changed by someone else, or perhaps was while nobody looked.
    Drifted,
}

/// A child as it is sent: with the annotation that holds the hash of everything else.
#[must_use]
pub fn stamped(mut wanted: Value) -> (Value, String) {
    let sent = hash(&wanted);
    if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(APPLIED_ANNOTATION.to_owned(), Value::String(sent.clone()));
        }
    }
    (wanted, sent)
}

/// Decides whether to write `wanted` (stamped with the hash `sent`) over `found`.
#[must_use]
pub fn why_write(wanted: &Value, sent: &str, found: Option<&Value>, last: Option<&LastApplied>) -> Option<Why> {
    let Some(found) = found else { return Some(Why::Missing) };
    let annotation = found.pointer("/metadata/annotations").and_then(|all| all.get(APPLIED_ANNOTATION));
    if annotation.and_then(Value::as_str) != Some(sent) {
        return Some(Why::Changed);
    }
    let ours = our_part(wanted, found);
    let kept = match last.filter(|last| last.sent == sent) {
        Some(last) => hash(&ours) == last.stored,
        // After a restart nothing is remembered. A child that holds exactly what is wanted needs no write to know that.
        None => ours == *wanted,
    };
    (!kept).then_some(Why::Drifted)
}

/// What to remember of the answer to a write.
#[must_use]
pub fn remember(wanted: &Value, sent: &str, answer: &Value) -> LastApplied {
    LastApplied { sent: sent.to_owned(), stored: hash(&our_part(wanted, answer)) }
}

/// The part of `found` that `wanted` speaks of.
fn our_part(wanted: &Value, found: &Value) -> Value {
    part(wanted, found, "")
}

fn part(wanted: &Value, found: &Value, field: &str) -> Value {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let fields = wanted.iter().filter_map(|(name, wanted)| match found.get(name) {
                Some(found) => Some((name.clone(), part(wanted, found, name))),
                // The API server leaves out what is empty.
                None => is_empty(wanted).then(|| (name.clone(), wanted.clone())),
            });
            Value::Object(fields.collect())
        }
        (Value::Array(wanted), Value::Array(found)) => match merge_key(field, wanted) {
            Some(key) => {
                let same = |a: &Value, b: &Value| a.get(key) == b.get(key);
                let items = wanted.iter().filter_map(|wanted| {
                    found.iter().find(|found| same(wanted, found)).map(|found| part(wanted, found, ""))
                });
                Value::Array(items.collect())
            }
            None if wanted.len() == found.len() => {
                Value::Array(wanted.iter().zip(found).map(|(wanted, found)| part(wanted, found, "")).collect())
            }
            None => Value::Array(found.clone()),
        },
        (_, found) => found.clone(),
    }
}

/// The field that tells the items of a list apart, for lists to which others may add items of their own. In all other
/// lists an item more is a change of ours: an added NetworkPolicy peer must not stay.
fn merge_key(field: &str, wanted: &[Value]) -> Option<&'static str> {
    let candidates: &[&'static str] = match field {
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        // Of containers, then of Services. The ports of a NetworkPolicy have neither.
        "ports" => &["containerPort", "name"],
        "ownerReferences" => &["uid"],
        _ => &[],
    };
    candidates.iter().copied().find(|key| wanted.iter().all(|item| item.get(key).is_some()))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// 128 bits, hex. Object keys are sorted by serde_json's map, so equal values have equal hashes.
fn hash(value: &Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn wanted() -> Value {
        json!({
            "metadata": {"name": "turbo", "labels": {"a": "1"}},
            "spec": {
                "replicas": 2,
                "template": {"spec": {"containers": [{"name": "worker", "env": [{"name": "X", "value": "1"}], "cpu": "1000m"}]}},
                "ingress": [{"from": [{"ip": "1"}], "ports": [{"port": 1}]}],
            },
        })
    }

    /// What an API server makes of [`wanted`].
    fn stored() -> Value {
        let (mut stored, _) = stamped(wanted());
        stored["metadata"]["uid"] = json!("u");
        stored["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        stored["spec"]["template"]["spec"]["containers"][0]["cpu"] = json!("1");
        stored["status"] = json!({"replicas": 2});
        stored
    }

    fn judge(found: &Value, remembered: bool) -> Option<Why> {
        let (wanted, sent) = stamped(wanted());
        let last = remembered.then(|| remember(&wanted, &sent, &stored()));
        why_write(&wanted, &sent, Some(found), last.as_ref())
    }

    #[test]
    fn what_the_server_rewrote_is_not_written_again() {
        assert_eq!(judge(&stored(), true), None);
    }

    #[test]
    fn after_a_restart_only_an_exact_child_is_trusted() {
        assert_eq!(judge(&stored(), false), Some(Why::Drifted), "1 could also be an edit of 1000m");
        let mut exact = stored();
        exact["spec"]["template"]["spec"]["containers"][0]["cpu"] = json!("1000m");
        assert_eq!(judge(&exact, false), None);
    }

    #[test]
    fn a_missing_child_is_written() {
        let (wanted, sent) = stamped(wanted());
        assert_eq!(why_write(&wanted, &sent, None, None), Some(Why::Missing));
    }

    #[test]
    fn a_new_wish_is_written_even_when_it_only_removes() {
        let mut less = wanted();
        less["metadata"]["labels"] = json!({});
        let (less, sent) = stamped(less);
        assert_eq!(why_write(&less, &sent, Some(&stored()), None), Some(Why::Changed));
    }

    #[rstest]
    #[case::scaled_behind_our_back("/spec/replicas", json!(5))]
    #[case::value_edited("/spec/template/spec/containers/0/env/0/value", json!("2"))]
    #[case::peer_added("/spec/ingress/0/from", json!([{"ip": "1"}, {"ip": "2"}]))]
    #[case::label_removed("/metadata/labels", json!({}))]
    #[case::container_replaced("/spec/template/spec/containers", json!([{"name": "other"}]))]
    fn a_foreign_change_of_ours_is_undone(#[case] pointer: &str, #[case] value: Value) {
        let mut found = stored();
        *found.pointer_mut(pointer).unwrap() = value;
        assert_eq!(judge(&found, true), Some(Why::Drifted));
    }

    #[rstest]
    #[case::label("/metadata/labels", json!({"a": "1", "theirs": "x"}))]
    #[case::variable("/spec/template/spec/containers/0/env", json!([{"name": "theirs"}, {"name": "X", "value": "1"}]))]
    #[case::status("/status", json!({"replicas": 7}))]
    #[case::defaulted("/spec/template/spec/restartPolicy", json!("Never"))]
    fn a_foreign_addition_stays(#[case] pointer: &str, #[case] value: Value) {
        let mut found = stored();
        *found.pointer_mut(pointer).unwrap() = value;
        assert_eq!(judge(&found, true), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-d]|env|ports|name", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever a server answers, the same object seen again causes no write: no loop.
        #[test]
        fn the_answer_to_a_write_is_never_a_reason_to_write(wish in any_json(), noise in any_json()) {
            let (wanted, sent) = stamped(json!({"metadata": {}, "spec": wish}));
            let answer = json!({"metadata": wanted["metadata"], "spec": noise});
            let last = remember(&wanted, &sent, &answer);
            prop_assert_eq!(why_write(&wanted, &sent, Some(&answer), Some(&last)), None);
        }
    }
}
