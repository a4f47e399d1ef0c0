//! `status`: what a worker says of itself.

use std::io::Write as _;

use imagegen_proto::v1::{GetModelRequest, Model};
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{error::Error, session::Session, table};

/// What one worker answered.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// `SERVING`, `NOT_SERVING` or `UNKNOWN`.
    pub health: &'static str,
    /// The model, or why the worker does not tell.
    pub model: Result<Box<Model>, String>,
}

impl WorkerStatus {
    /// It answers requests now.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.health == "SERVING"
    }
}

/// Asks a worker for its health and its model.
///
/// # Errors
/// When no worker answers.
pub async fn ask(session: &Session) -> Result<WorkerStatus, Error> {
    let failed = |status: &tonic::Status| Error::Call(Box::new(session.explain(status)));
    let health = match session.health().check(HealthCheckRequest::default()).await {
        Ok(reply) => match reply.into_inner().status() {
            ServingStatus::Serving => "SERVING",
            ServingStatus::NotServing => "NOT_SERVING",
            ServingStatus::Unknown | ServingStatus::ServiceUnknown => "UNKNOWN",
        },
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => "UNKNOWN",
        Err(status) => return Err(failed(&status)),
    };
    let model = match session.images().get_model(GetModelRequest {}).await {
        Ok(model) => Ok(Box::new(model.into_inner())),
        Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
            return Err(failed(&status));
        }
        Err(status) => Err(session.explain(&status).message),
    };
    Ok(WorkerStatus { health, model })
}

/// Prints to standard output. A reader that has gone away is no failure.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// The table a person reads.
#[must_use]
pub fn to_text(peer: &str, status: &WorkerStatus) -> String {
    let mut rows = vec![("Worker", peer.to_owned()), ("Health", status.health.to_owned())];
    match &status.model {
        Err(reason) => rows.push(("Model", format!("unknown: {reason}"))),
        Ok(model) => rows.extend(model_rows(model)),
    }
    let mut text = table::pairs(&rows);
    if let Ok(model) = &status.model
        && !model.settings.is_empty()
    {
        let rows: Vec<_> = model
            .settings
            .iter()
            .map(|s| vec![s.name.clone(), or_none(&s.value).to_owned(), s.origin.clone()])
            .collect();
        text.push('\n');
        text.push_str(&table::columns(&["SETTING", "VALUE", "ORIGIN"], &rows));
    }
    text
}

const fn or_none(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}

fn model_rows(model: &Model) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "Model",
            format!(
                "{} ({}), {:.1} million parameters, {:.1} MiB",
                model.name,
                model.pipeline,
                model.parameters as f64 / 1e6,
                model.weight_bytes as f64 / f64::from(1 << 20)
            ),
        ),
        ("Runs in", format!("{} on {}", model.precision, model.device)),
        ("Versions", format!("worker {}, libtorch {}", model.version, or_none(&model.libtorch_version))),
    ];
    if let Some(d) = &model.defaults {
        let guidance = d.guidance_scale;
        rows.push(("Defaults", format!("{}x{}, {} steps, guidance scale {guidance}", d.width, d.height, d.steps)));
    }
    if let Some(l) = &model.limits {
        rows.push((
            "Limits",
            format!(
                "{} pixels, {} steps, {} pictures a request, a queue of {}, {} tokens a prompt",
                l.max_pixels, l.max_steps, l.max_images_per_request, l.queue_capacity, l.max_prompt_tokens
            ),
        ));
    }
    let buckets: Vec<_> = model.buckets.iter().map(|b| format!("{}x{}@{}", b.width, b.height, b.max_batch)).collect();
    rows.push(("Sizes", format!("multiples of {} pixels; buckets {}", model.size_multiple, buckets.join(", "))));
    rows
}

/// The object a program reads.
#[must_use]
pub fn to_json(peer: &str, status: &WorkerStatus) -> Value {
    let mut value = json!({ "worker": peer, "health": status.health });
    match &status.model {
        Err(reason) => value["model_error"] = json!(reason),
        Ok(m) => {
            value["model"] = json!({
                "name": m.name,
                "pipeline": m.pipeline,
                "precision": m.precision,
                "device": m.device,
                "libtorch_version": m.libtorch_version,
                "weight_bytes": m.weight_bytes,
                "parameters": m.parameters,
                "size_multiple": m.size_multiple,
                "version": m.version,
                "ready": m.ready,
                "limits": m.limits.as_ref().map(|l| json!({
                    "max_pixels": l.max_pixels,
                    "max_steps": l.max_steps,
                    "max_images_per_request": l.max_images_per_request,
                    "queue_capacity": l.queue_capacity,
                    "max_prompt_tokens": l.max_prompt_tokens,
                })),
                "defaults": m.defaults.as_ref().map(|d| json!({
                    "width": d.width, "height": d.height, "steps": d.steps, "guidance_scale": d.guidance_scale,
                })),
                "buckets": m.buckets.iter().map(|b| json!({
                    "width": b.width, "height": b.height, "max_batch": b.max_batch,
                })).collect::<Vec<_>>(),
                "settings": m.settings.iter().map(|s| json!({
                    "name": s.name, "value": s.value, "origin": s.origin,
                })).collect::<Vec<_>>(),
            });
        }
    }
    value
}
