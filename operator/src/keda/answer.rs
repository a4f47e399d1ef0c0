//! What KEDA is told. Pure.

use std::collections::HashMap;

use imagegen_proto::externalscaler::{MetricSpec, MetricValue, ScaledObjectRef};
use tonic::Status;

use crate::{
    autoscale::{
        fleet::Standing,
        load::{Class, Load},
    },
    fleets::Fleet,
};

/// The one metric. KEDA divides it by its target to get the number of workers.
pub const METRIC: &str = "pressure_total";

/// The key of the trigger's metadata that names the ImageGen.
const IMAGEGEN: &str = "imagegen";
/// Keys that KEDA reads itself.
const OF_KEDA: [&str; 3] = ["scalerAddress", "enableTLS", "unsafeSsl"];

/// Namespace and name of the ImageGen that a ScaledObject scales: always one of its own namespace.
///
/// # Errors
/// INVALID_ARGUMENT when the trigger's metadata does not name an ImageGen, or says more than is understood.
pub fn wanted(scaled_object: Option<&ScaledObjectRef>) -> Result<(&str, &str), Status> {
    let scaled_object = scaled_object.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
    let ScaledObjectRef { name, namespace, scaler_metadata } = scaled_object;
    if let Some(key) = unknown_key(scaler_metadata) {
        return Err(Status::invalid_argument(format!(
            "metadata.{key} of ScaledObject {namespace}/{name} is not known: expected scalerAddress, enableTLS and \
             imagegen, the name of an ImageGen in the ScaledObject's own namespace"
        )));
    }
    match scaler_metadata.get(IMAGEGEN).map(String::as_str) {
        Some(imagegen) if !imagegen.is_empty() && !namespace.is_empty() => Ok((namespace, imagegen)),
        _ => Err(Status::invalid_argument(format!(
            "metadata.imagegen of ScaledObject {namespace}/{name} is missing: name the ImageGen that it scales"
        ))),
    }
}

/// The first key, by name, that nobody reads.
fn unknown_key(metadata: &HashMap<String, String>) -> Option<&str> {
    metadata.keys().map(String::as_str).filter(|key| *key != IMAGEGEN && !OF_KEDA.contains(key)).min()
}

/// Metric and target, from the ImageGen's spec.
#[must_use]
pub fn metric_spec(fleet: &Fleet) -> MetricSpec {
    let target = fleet.targets.memory_pressure;
    // The whole number is for a KEDA older than 2.14, which cannot have a smaller target than 1.
    MetricSpec { metric_name: METRIC.to_owned(), target_size: target.ceil() as i64, target_size_float: target }
}

/// The total over all workers. A fleet at zero has none that could be unknown, and reads 0.
///
/// # Errors
/// UNAVAILABLE when there should be workers and nothing is known of them: KEDA then leaves the size as it is.
pub fn total(fleet: &Fleet, load: &Load) -> Result<MetricValue, Status> {
    let total = match load.pressure_total(fleet.max_step) {
        Some(total) => total,
        None if is_at_zero(fleet) => 0.0,
        None => {
            let Fleet { namespace, name, .. } = fleet;
            let message = format!("no worker of ImageGen {namespace}/{name} serves and reports");
            return Err(Status::unavailable(message));
        }
    };
    Ok(MetricValue { metric_name: METRIC.to_owned(), metric_value: total.ceil() as i64, metric_value_float: total })
}

/// Whether the fleet is wanted: it has work, or one of its workers cannot say that it has none.
#[must_use]
pub fn is_active(fleet: &Fleet, load: &Load) -> bool {
    let unknown = load.count(|class| class == Class::Unknown) > 0;
    let busy = load.running_requests() + load.queued_requests() > 0;
    unknown || busy || load.pressure_total(fleet.max_step).is_some_and(|total| total > 0.0)
}

fn is_at_zero(fleet: &Fleet) -> bool {
    fleet.replicas == 0 && fleet.workers.iter().all(|worker| worker.standing == Standing::Terminating)
}

#[cfg(test)]
mod tests;
