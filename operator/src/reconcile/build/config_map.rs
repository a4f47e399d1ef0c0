//! The worker's configuration, as environment variables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest, Sha256};

use super::names::{self, ADMIN_PORT, GRPC_PORT, HTTP_PORT};
use crate::reconcile::types::Validated;

/// Where the admin port's certificate is mounted.
pub(super) const ADMIN_TLS_DIR: &str = "/etc/imagegen/admin-tls";
/// Where the public port's certificate is mounted.
pub(super) const TLS_DIR: &str = "/etc/imagegen/tls";
/// Where the tokens are mounted.
pub(super) const TOKEN_DIR: &str = "/etc/imagegen/token";
/// The file in it.
pub(super) const TOKEN_FILE: &str = "token";

/// The ConfigMap of `spec`.
pub(super) fn build(spec: &Validated) -> ConfigMap {
    ConfigMap {
        metadata: names::child(spec, names::config_map(&spec.name)),
        data: Some(data(spec)),
        ..Default::default()
    }
}

pub(super) fn data(spec: &Validated) -> BTreeMap<String, String> {
    let mut data: BTreeMap<String, String> =
        spec.settings.iter().map(|setting| (setting.variable.to_owned(), setting.setting.value.clone())).collect();
    let mut set = |variable: &str, value: String| data.insert(variable.to_owned(), value);
    set("IMAGEGEN_MODEL", spec.model_path.clone());
    set("IMAGEGEN_LISTEN", format!("0.0.0.0:{}", GRPC_PORT.1));
    set("IMAGEGEN_ADMIN_LISTEN", format!("0.0.0.0:{}", ADMIN_PORT.1));
    set("IMAGEGEN_HTTP_LISTEN", format!("0.0.0.0:{}", HTTP_PORT.1));
    set("IMAGEGEN_ADMIN_TLS_DIR", ADMIN_TLS_DIR.to_owned());
    if spec.service.tls_secret.is_some() {
        set("IMAGEGEN_TLS_DIR", TLS_DIR.to_owned());
    }
    if spec.service.token_secret.is_some() {
        set("IMAGEGEN_TOKEN_FILE", format!("{TOKEN_DIR}/{TOKEN_FILE}"));
        if spec.service.allow_insecure_token {
            set("IMAGEGEN_ALLOW_INSECURE_TOKEN", "true".to_owned());
        }
    }
    data
}

/// Changes when the data changes, and only then.
pub(super) fn hash(config_map: &ConfigMap) -> String {
    let mut digest = Sha256::new();
    for (key, value) in config_map.data.iter().flatten() {
        for part in [key, value] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
