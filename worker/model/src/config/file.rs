//! A JSON object in a file, read field by field, so that every complaint names file, field, expected and found.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::LoadError;

/// A JSON object and the file it came from.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl ConfigFile {
    /// Reads `path`; `purpose` completes the sentence "cannot read PATH, ...".
    ///
    /// # Errors
    /// When the file cannot be read or holds something else than a JSON object.
    pub(crate) fn read(path: PathBuf, purpose: &str) -> Result<Self, LoadError> {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(LoadError::Unreadable { path, expected: purpose.to_owned(), source }),
        };
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(Value::Object(fields)) => Ok(Self { path, fields }),
            Ok(other) => Err(LoadError::NotJson { path, detail: format!("found {}", brief(&other)) }),
            Err(error) => Err(LoadError::NotJson { path, detail: error.to_string() }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a field; `null` counts as absent, as it does for the Python classes.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// The complaint about `key`, with what is there.
    pub(crate) fn invalid(&self, key: &str, expected: impl Into<String>) -> LoadError {
        let found = key.split('.').try_fold(None::<&Value>, |value, part| match value {
            None => self.fields.get(part).map(Some),
            Some(value) => value.get(part).map(Some),
        });
        let found = found.flatten().map_or_else(|| "nothing".to_owned(), brief);
        LoadError::Field { path: self.path.clone(), key: key.to_owned(), expected: expected.into(), found }
    }

    /// A required whole number of at least 1.
    pub(crate) fn size(&self, key: &str) -> Result<i64, LoadError> {
        let number = self.get(key).and_then(Value::as_i64).filter(|&number| number > 0);
        number.ok_or_else(|| self.invalid(key, "a whole number of at least 1"))
    }

    /// A required whole number of at least 0.
    pub(crate) fn count(&self, key: &str) -> Result<i64, LoadError> {
        let number = self.get(key).and_then(Value::as_i64).filter(|&number| number >= 0);
        number.ok_or_else(|| self.invalid(key, "a whole number of at least 0"))
    }

    /// A required finite number.
    pub(crate) fn number(&self, key: &str) -> Result<f64, LoadError> {
        let number = self.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
        number.ok_or_else(|| self.invalid(key, "a number"))
    }

    /// A required finite number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<f64, LoadError> {
        let number = self.number(key)?;
        if number > 0.0 { Ok(number) } else { Err(self.invalid(key, "a number above 0")) }
    }

    /// A required truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, LoadError> {
        self.get(key).and_then(Value::as_bool).ok_or_else(|| self.invalid(key, "true or false"))
    }

    /// A required list of whole numbers of at least 1.
    pub(crate) fn sizes(&self, key: &str) -> Result<Vec<i64>, LoadError> {
        let size = |value: &Value| value.as_i64().filter(|&number| number > 0);
        let sizes = self.get(key).and_then(Value::as_array).and_then(|list| list.iter().map(size).collect());
        sizes.ok_or_else(|| self.invalid(key, "a list of whole numbers of at least 1"))
    }

    /// A required text.
    pub(crate) fn text(&self, key: &str) -> Result<&str, LoadError> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.invalid(key, "a text"))
    }

    /// Refuses a field that is there with another value than the one this program implements; absent is fine.
    pub(crate) fn only(&self, key: &str, supported: &Value) -> Result<(), LoadError> {
        match self.get(key) {
            Some(value) if value != supported => {
                Err(self.invalid(key, format!("{supported}, the only one implemented")))
            }
            _ => Ok(()),
        }
    }

    /// Requires `_class_name`, where it is there, to be `class`.
    pub(crate) fn class(&self, class: &str) -> Result<(), LoadError> {
        self.only("_class_name", &Value::from(class))
    }
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: Value) -> ConfigFile {
        let Value::Object(fields) = json else { panic!("an object") };
        ConfigFile { path: PathBuf::from("vae/config.json"), fields }
    }

    #[test]
    fn a_complaint_names_file_field_expected_and_found() {
        let config = file(serde_json::json!({"dim": "wide", "rope": {"theta": 0}}));
        assert_eq!(
            config.size("dim").unwrap_err().to_string(),
            r#"vae/config.json: field "dim": expected a whole number of at least 1, found "wide""#
        );
        assert_eq!(
            config.invalid("rope.theta", "a number above 0").to_string(),
            r#"vae/config.json: field "rope.theta": expected a number above 0, found 0"#
        );
        assert_eq!(
            config.flag("qk_norm").unwrap_err().to_string(),
            r#"vae/config.json: field "qk_norm": expected true or false, found nothing"#
        );
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let config = file(serde_json::json!({"dim": "宽".repeat(200)}));
        assert!(config.size("dim").unwrap_err().to_string().ends_with("宽..."));
    }

    #[test]
    fn null_counts_as_absent() {
        let config = file(serde_json::json!({"siglip_feat_dim": null}));
        assert!(config.only("siglip_feat_dim", &Value::Null).is_ok());
        assert!(config.size("siglip_feat_dim").is_err());
    }
}
