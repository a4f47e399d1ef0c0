//! Helpers for the OpenAPI schema: Kubernetes core types without their descriptions, bounds on everything, and the
//! clean-up that a structural schema needs.

use kube::core::{Message, Rule};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

/// Bounds of embedded core types. CEL's cost estimate multiplies over them, and etcd stores at most 1.5 MiB an object.
const CORE_MAX_ITEMS: u64 = 64;
const CORE_MAX_PROPERTIES: u64 = 64;
const CORE_MAX_LENGTH: u64 = 4096;

/// The schema of a Kubernetes core type, without descriptions (they would make the CRD larger than client-side apply
/// can store in its annotation) and with a maximum on every list, map and string.
pub(crate) fn bare<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    if let Some(object) = schema.as_object_mut() {
        strip(object);
        bound(object);
    }
    schema
}

/// The schema of `T` for an optional field, which then keeps the field's own description: that of an optional enum would
/// be lost to the enum's.
pub(crate) fn plain<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A list that server-side apply merges by `keys`, with at most `max_items` entries.
pub(crate) fn keyed(items: &Schema, keys: &[&str], max_items: u64) -> Schema {
    json_schema!({
        "type": "array",
        "items": items,
        "maxItems": max_items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": keys,
    })
}

/// A rule that holds a duration between two others, both in the notation of the field itself.
pub(crate) fn duration_between(least: &str, most: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(Message::Message(format!("must be a duration between {least} and {most}, for example 90s or 1h30m")))
}

/// Applies `change` to every schema object below and including `schema`.
pub(crate) fn walk(schema: &mut Map<String, Value>, change: &mut impl FnMut(&mut Map<String, Value>)) {
    change(schema);
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(properties)) = schema.get_mut(key) {
            for property in properties.values_mut().filter_map(Value::as_object_mut) {
                walk(property, change);
            }
        }
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(Value::Object(inner)) = schema.get_mut(key) {
            walk(inner, change);
        }
    }
    for key in ["anyOf", "allOf", "oneOf"] {
        if let Some(Value::Array(inner)) = schema.get_mut(key) {
            for schema in inner.iter_mut().filter_map(Value::as_object_mut) {
                walk(schema, change);
            }
        }
    }
}

fn strip(schema: &mut Map<String, Value>) {
    walk(schema, &mut |schema| {
        schema.remove("description");
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            properties.remove("managedFields");
        }
    });
}

fn bound(schema: &mut Map<String, Value>) {
    walk(schema, &mut |schema| {
        let (key, most) = match schema.get("type").and_then(Value::as_str) {
            Some("array") => ("maxItems", CORE_MAX_ITEMS),
            Some("object") if schema.contains_key("additionalProperties") => ("maxProperties", CORE_MAX_PROPERTIES),
            Some("string") if !schema.contains_key("enum") && !schema.contains_key("format") => {
                ("maxLength", CORE_MAX_LENGTH)
            }
            _ => return,
        };
        schema.entry(key).or_insert_with(|| most.into());
    });
}

/// Makes a derived schema what the API server takes without a warning: no `nullable` (an explicit null would count as
/// present in CEL's `has`), integer formats that Kubernetes knows, descriptions on one line, quantities that say
/// which types they allow.
pub(crate) fn finish(schema: &mut Map<String, Value>) {
    walk(schema, &mut |schema| {
        schema.remove("nullable");
        schema.remove("title");
        match schema.get("format").and_then(Value::as_str) {
            Some("uint8" | "uint16" | "uint32" | "int8" | "int16") => {
                schema.insert("format".into(), "int32".into());
            }
            Some("uint64" | "uint" | "int") => {
                schema.insert("format".into(), "int64".into());
            }
            _ => {}
        }
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
    });
}
