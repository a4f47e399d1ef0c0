//! The gRPC service. It decides nothing itself.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use http::Request as HttpRequest;
use hyper::body::Incoming;
use imagegen_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, body::Body, service::Routes};
use tower::ServiceExt as _;

use super::answer;
use crate::{fleets::Fleet, metrics::Metrics, serving::Peer};

/// How often a stream looks whether a fleet is wanted. A report comes every second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The fleet of an ImageGen by namespace and name.
///
/// # Errors
/// UNAVAILABLE while not everything is known, NOT_FOUND when there is no such ImageGen.
pub type FindFleet = Arc<dyn Fn(&str, &str) -> Result<Fleet, Status> + Send + Sync>;

/// KEDA's external scaler. Cheap to clone.
#[derive(Clone)]
pub struct Scaler {
    /// Where fleets come from.
    pub find: FindFleet,
    /// Counts the answers.
    pub metrics: Metrics,
    /// Ends every stream, without an error: KEDA then connects again within two seconds.
    pub stop: CancellationToken,
}

impl fmt::Debug for Scaler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scaler").finish_non_exhaustive()
    }
}

impl Scaler {
    /// Answers the requests of one port.
    pub fn handler(self) -> impl Fn(Peer, HttpRequest<Incoming>) -> Answer + Clone {
        let routes = Routes::new(ExternalScalerServer::new(self));
        move |_, request| {
            let answered = routes.clone().oneshot(request.map(Body::new));
            Box::pin(async move { answered.await.unwrap_or_else(|never| match never {}) })
        }
    }

    fn fleet(&self, scaled_object: Option<&ScaledObjectRef>) -> Result<Fleet, Status> {
        let (namespace, name) = answer::wanted(scaled_object)?;
        (self.find)(namespace, name)
    }

    fn counted<T>(&self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.metrics.keda_answered(result.as_ref().err().map_or(Code::Ok, Status::code));
        result.map(Response::new)
    }
}

/// A response on its way.
pub type Answer = Pin<Box<dyn Future<Output = http::Response<Body>> + Send>>;

type Activity = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Activity;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let fleet = self.fleet(Some(request.get_ref()));
        self.counted(fleet.map(|fleet| IsActiveResponse { result: answer::is_active(&fleet, &fleet.load()) }))
    }

    async fn stream_is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<Activity>, Status> {
        let scaled_object = request.into_inner();
        let first = self.fleet(Some(&scaled_object));
        self.counted(first.map(|_| activity(self.clone(), scaled_object)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let fleet = self.fleet(Some(request.get_ref()));
        self.counted(fleet.map(|fleet| GetMetricSpecResponse { metric_specs: vec![answer::metric_spec(&fleet)] }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.get_ref();
        let known = if metric_name == answer::METRIC {
            Ok(())
        } else {
            Err(Status::invalid_argument(format!("there is no metric {metric_name:?}: only {}", answer::METRIC)))
        };
        let value = known
            .and_then(|()| self.fleet(scaled_object_ref.as_ref()))
            .and_then(|fleet| answer::total(&fleet, &fleet.load()));
        self.counted(value.map(|value| GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// Whether the fleet is wanted: at once, and at every change. Ends without an error at the stop.
fn activity(scaler: Scaler, scaled_object: ScaledObjectRef) -> Activity {
    let mut ticks = time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = (scaler, scaled_object, ticks, None);
    Box::pin(futures::stream::unfold(start, async |(scaler, scaled_object, mut ticks, said)| {
        loop {
            scaler.stop.run_until_cancelled(ticks.tick()).await?;
            let active = match scaler.fleet(Some(&scaled_object)) {
                Ok(fleet) => Some(answer::is_active(&fleet, &fleet.load())),
                // The ImageGen is gone: KEDA asks again, and is told so.
                Err(error) if error.code() == Code::NotFound => return None,
                Err(_) => said,
            };
            if let Some(active) = active.filter(|active| said != Some(*active)) {
                let next = (scaler, scaled_object, ticks, Some(active));
                return Some((Ok(IsActiveResponse { result: active }), next));
            }
        }
    }))
}

#[cfg(test)]
mod tests;
