//! What the client needs to know of an ImageGen, read from its YAML without the operator's types: an older client must
//! work with a newer operator.

use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::table;

/// Columns of the list of ImageGens.
pub const HEADER: [&str; 6] = ["NAMESPACE", "NAME", "READY", "REPLICAS", "REASON", "MESSAGE"];

/// One condition of the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Ready` and the like.
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Where a secret value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretKey {
    /// Name of the Secret.
    pub name: String,
    /// Key in it.
    pub key: String,
}

/// An ImageGen as its clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGen {
    /// Also the name of its Service.
    pub name: String,
    /// Where it is.
    pub namespace: String,
    /// `status.conditions`.
    pub conditions: Vec<Condition>,
    /// `status.readyReplicas` of `status.desiredReplicas`, as far as they are there.
    pub replicas: (u64, Option<u64>),
    /// `spec.service.tls.secretName`.
    pub tls_secret: Option<String>,
    /// `spec.service.auth.tokenSecretRef`.
    pub token: Option<SecretKey>,
}

impl From<&DynamicObject> for ImageGen {
    fn from(object: &DynamicObject) -> Self {
        let text = |value: &Value, pointer: &str| {
            value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let some_text = |pointer: &str| Some(text(&object.data, pointer)).filter(|text| !text.is_empty());
        let number = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_u64);
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            conditions: conditions
                .into_iter()
                .flatten()
                .map(|condition| Condition {
                    kind: text(condition, "/type"),
                    status: text(condition, "/status"),
                    reason: text(condition, "/reason"),
                    message: text(condition, "/message"),
                })
                .collect(),
            replicas: (
                number("/status/readyReplicas").unwrap_or(0),
                number("/status/desiredReplicas").or_else(|| number("/spec/replicas")),
            ),
            tls_secret: some_text("/spec/service/tls/secretName"),
            token: some_text("/spec/service/auth/tokenSecretRef/name").map(|name| SecretKey {
                name,
                key: some_text("/spec/service/auth/tokenSecretRef/key").unwrap_or_else(|| "token".to_owned()),
            }),
        }
    }
}

impl ImageGen {
    fn ready(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == "Ready")
    }

    /// Reason and message of the Ready condition, or what its absence means.
    #[must_use]
    pub fn why_not_ready(&self) -> String {
        match self.ready() {
            None => "it has no Ready condition yet; is the operator running?".to_owned(),
            Some(ready) if ready.status == "True" => {
                "its status is Ready, but its Service has no ready endpoint yet".to_owned()
            }
            Some(ready) => format!("{}: {}", ready.reason, ready.message),
        }
    }

    fn replicas_text(&self) -> String {
        let (ready, desired) = self.replicas;
        format!("{ready}/{}", desired.map_or("?".to_owned(), |desired| desired.to_string()))
    }

    /// A row under [`HEADER`].
    #[must_use]
    pub fn row(&self) -> Vec<String> {
        let ready = self.ready();
        let cell = |field: fn(&Condition) -> &String| ready.map(|ready| field(ready).clone()).unwrap_or_default();
        vec![
            self.namespace.clone(),
            self.name.clone(),
            ready.map_or("Unknown".to_owned(), |ready| ready.status.clone()),
            self.replicas_text(),
            cell(|condition| &condition.reason),
            cell(|condition| &condition.message),
        ]
    }

    /// Name, replicas and all conditions.
    #[must_use]
    pub fn to_text(&self) -> String {
        let head = table::pairs(&[
            ("ImageGen", format!("{}/{}", self.namespace, self.name)),
            ("Workers", format!("{} ready", self.replicas_text())),
        ]);
        if self.conditions.is_empty() {
            return format!("{head}\nNo conditions yet; is the operator running?\n");
        }
        let rows: Vec<_> = self
            .conditions
            .iter()
            .map(|c| vec![c.kind.clone(), c.status.clone(), c.reason.clone(), c.message.clone()])
            .collect();
        format!("{head}\n{}", table::columns(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &rows))
    }

    /// The same for a program.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let conditions: Vec<_> = self
            .conditions
            .iter()
            .map(|c| json!({ "type": c.kind, "status": c.status, "reason": c.reason, "message": c.message }))
            .collect();
        json!({
            "name": self.name,
            "namespace": self.namespace,
            "ready_replicas": self.replicas.0,
            "desired_replicas": self.replicas.1,
            "conditions": conditions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> ImageGen {
        let mut value = value;
        value["apiVersion"] = json!("imagegen.dev/v1alpha1");
        value["kind"] = json!("ImageGen");
        value["metadata"] = json!({ "name": "turbo", "namespace": "art" });
        ImageGen::from(&serde_json::from_value::<DynamicObject>(value).unwrap())
    }

    #[test]
    fn tls_token_and_conditions_are_found() {
        let found = object(json!({
            "spec": { "replicas": 3, "service": {
                "tls": { "secretName": "turbo-tls" },
                "auth": { "tokenSecretRef": { "name": "turbo-token", "key": "clients" } },
            }},
            "status": { "readyReplicas": 1, "desiredReplicas": 2, "conditions": [
                { "type": "Ready", "status": "False", "reason": "ModelLoading", "message": "loading, 40 % done" },
            ]},
        }));
        assert_eq!(found.tls_secret.as_deref(), Some("turbo-tls"));
        assert_eq!(found.token, Some(SecretKey { name: "turbo-token".to_owned(), key: "clients".to_owned() }));
        assert_eq!(found.why_not_ready(), "ModelLoading: loading, 40 % done");
        assert_eq!(found.row(), ["art", "turbo", "False", "1/2", "ModelLoading", "loading, 40 % done"]);
    }

    #[test]
    fn a_new_object_has_nothing_yet() {
        let found = object(json!({ "spec": {} }));
        assert_eq!((found.tls_secret.clone(), found.token.clone()), (None, None));
        assert!(found.why_not_ready().contains("is the operator running?"));
        assert_eq!(found.row()[2..4], ["Unknown", "0/?"]);
    }
}
