//! Volumes of a worker pod and where the worker container sees them.

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource,
    SecretVolumeSource, Volume, VolumeMount,
};

use crate::reconcile::{
    build::{
        config_map::{ADMIN_TLS_DIR, TLS_DIR, TOKEN_DIR, TOKEN_FILE},
        names,
    },
    types::{ModelVolume, Validated},
    validate::MODEL_DIR,
};

const MODEL: &str = "model";
const ADMIN_TLS: &str = "admin-tls";
const TLS: &str = "tls";
const TOKEN: &str = "token";
const TMP: &str = "tmp";
const CACHE: &str = "cache";

/// The operator's own volumes.
pub(super) fn volumes(spec: &Validated) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.to_owned(), ..Default::default() };
    let secret = |name: &str, secret: &str| Volume {
        secret: Some(SecretVolumeSource { secret_name: Some(secret.to_owned()), ..Default::default() }),
        ..volume(name)
    };
    let empty = |name: &str| Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume(name) };
    let mut volumes = vec![model(&spec.model), secret(ADMIN_TLS, &names::admin_tls_secret(&spec.name))];
    volumes.extend(spec.service.tls_secret.as_ref().map(|name| secret(TLS, name)));
    volumes.extend(spec.service.token_secret.as_ref().map(|key| Volume {
        secret: Some(SecretVolumeSource {
            secret_name: Some(key.name.clone()),
            items: Some(vec![KeyToPath { key: key.key.clone(), path: TOKEN_FILE.into(), ..Default::default() }]),
            ..Default::default()
        }),
        ..volume(TOKEN)
    }));
    volumes.extend([empty(TMP), empty(CACHE)]);
    volumes
}

/// The operator's own mounts.
pub(super) fn mounts(spec: &Validated) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only,
        ..Default::default()
    };
    let mut mounts = vec![mount(MODEL, MODEL_DIR, Some(true)), mount(ADMIN_TLS, ADMIN_TLS_DIR, Some(true))];
    mounts.extend(spec.service.tls_secret.as_ref().map(|_| mount(TLS, TLS_DIR, Some(true))));
    mounts.extend(spec.service.token_secret.as_ref().map(|_| mount(TOKEN, TOKEN_DIR, Some(true))));
    mounts.extend([mount(TMP, "/tmp", None), mount(CACHE, "/var/cache/imagegen", None)]);
    mounts
}

fn model(source: &ModelVolume) -> Volume {
    let volume = Volume { name: MODEL.into(), ..Default::default() };
    match source {
        ModelVolume::Claim { name, read_only } => Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.clone(),
                read_only: Some(*read_only),
            }),
            ..volume
        },
        ModelVolume::Image { reference, pull_policy } => Volume {
            image: Some(ImageVolumeSource {
                reference: Some(reference.clone()),
                pull_policy: pull_policy.map(|policy| policy.to_string()),
            }),
            ..volume
        },
        ModelVolume::HostPath { path } => Volume {
            host_path: Some(HostPathVolumeSource { path: path.clone(), type_: Some("Directory".into()) }),
            ..volume
        },
    }
}
