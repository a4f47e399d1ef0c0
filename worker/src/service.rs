//! The public service: from messages to the dispatcher and back. It decides nothing itself.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use imagegen_core::request::{self, Request as CheckedRequest, RequestError};
use imagegen_proto::v1::{
    Defaults, EstimateReply, GenerateEvent, GenerateRequest, GetModelRequest, Limits, Model, Setting,
    image_service_server::ImageService,
};
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use crate::{
    call::{Call, Subscription},
    calls::Calls,
    dispatcher::{Caller, Dispatcher, Loaded},
    driver::Driver,
    settings::Settings,
    status::Refusal,
    wire,
};

/// The service; clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) calls: Arc<Calls>,
    /// Drivers of the admitted requests.
    pub(crate) drivers: TaskTracker,
    pub(crate) settings: Arc<Settings>,
    pub(crate) queue_capacity: u32,
}

type EventStream = Pin<Box<dyn Stream<Item = Result<GenerateEvent, Status>> + Send>>;

#[tonic::async_trait]
impl ImageService for Service {
    type GenerateStream = EventStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let deadline = timeout(request.metadata()).and_then(|timeout| Instant::now().checked_add(timeout));
        let subscription = self.start(request.into_inner(), deadline).await.inspect_err(|refusal| {
            self.dispatcher.metrics.refused(refusal);
        })?;
        Ok(Response::new(Box::pin(subscription.into_stream())))
    }

    async fn estimate(&self, request: Request<GenerateRequest>) -> Result<Response<EstimateReply>, Status> {
        let left = timeout(request.metadata());
        let request = match self.parse(request.into_inner()).await {
            Err(refusal @ Refusal::Request(RequestError::TooLarge(_))) => {
                return Ok(Response::new(EstimateReply { refusal: refusal.to_string(), ..EstimateReply::default() }));
            }
            parsed => parsed?,
        };
        let (ask, decision) = self.dispatcher.estimate(&request, left)?;
        Ok(Response::new(EstimateReply {
            bucket: Some(wire::bucket(request.bucket)),
            bytes: self.dispatcher.bytes(ask.shape),
            seconds: ask.seconds,
            refusal: decision.err().map(|refusal| refusal.to_string()).unwrap_or_default(),
        }))
    }

    async fn get_model(&self, _request: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        let loaded = self.dispatcher.model()?;
        Ok(Response::new(self.describe(&loaded)))
    }
}

impl Service {
    async fn start(&self, request: GenerateRequest, deadline: Option<Instant>) -> Result<Subscription, Refusal> {
        let fingerprint = wire::fingerprint(&request);
        let request = Arc::new(self.parse(request).await?);
        if request.request_id.is_empty() {
            let call = self.admit(&request, Uuid::new_v4().to_string(), fingerprint, deadline)?;
            return call.follow(deadline).ok_or(Refusal::Cancelled);
        }
        let id = request.request_id.as_str();
        let start = || self.admit(&request, id.to_owned(), fingerprint, deadline);
        self.calls.attach_or_start(id, fingerprint, deadline, start)
    }

    async fn parse(&self, request: GenerateRequest) -> Result<CheckedRequest, Refusal> {
        let loaded = self.dispatcher.model()?;
        let raw = wire::raw_request(request);
        // Counting the tokens of a long prompt takes a while.
        let parsed = spawn_blocking(move || request::parse(raw, &loaded.rules, rand::random(), &*loaded.count_tokens));
        let parsed = parsed.await.map_err(|error| {
            let id = Uuid::new_v4().to_string();
            tracing::error!(error_id = id, %error, "Checking a request failed.");
            Refusal::Internal { id }
        })?;
        Ok(parsed?)
    }

    fn admit(
        &self,
        request: &Arc<CheckedRequest>,
        id: String,
        fingerprint: [u8; 32],
        deadline: Option<Instant>,
    ) -> Result<Arc<Call>, Refusal> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let caller = Caller { key: wire::request_key(&id), left };
        let call = Call::new(id, fingerprint);
        let admitted = self.dispatcher.admit(Arc::clone(request), &caller, call.abandoned.clone())?;
        let driver = Driver {
            call: Arc::clone(&call),
            request: Arc::clone(request),
            dispatcher: Arc::clone(&self.dispatcher),
            calls: Arc::clone(&self.calls),
        };
        driver.accept(&admitted);
        self.drivers.spawn(driver.run(admitted));
        Ok(call)
    }

    fn describe(&self, loaded: &Loaded) -> Model {
        let Loaded { model, rules, .. } = loaded;
        let setting =
            |(name, value, origin): (String, String, &'static str)| Setting { name, value, origin: origin.into() };
        Model {
            name: model.name.clone(),
            pipeline: model.pipeline.clone(),
            precision: model.precision.clone(),
            device: model.device.clone(),
            libtorch_version: model.libtorch_version.clone(),
            weight_bytes: model.weight_bytes,
            parameters: model.parameters,
            limits: Some(Limits {
                max_pixels: rules.limits.max_pixels,
                max_steps: rules.limits.max_steps,
                max_images_per_request: rules.limits.max_images_per_request,
                queue_capacity: self.queue_capacity,
                max_prompt_tokens: model.max_prompt_tokens,
            }),
            buckets: rules.buckets.as_slice().iter().copied().map(wire::bucket).collect(),
            defaults: Some(Defaults {
                width: rules.defaults.size.width,
                height: rules.defaults.size.height,
                steps: rules.defaults.steps,
                guidance_scale: rules.defaults.guidance_scale as f32,
            }),
            settings: self.settings.in_force(model, rules).into_iter().map(setting).collect(),
            size_multiple: model.size_multiple,
            version: env!("CARGO_PKG_VERSION").into(),
            ready: self.dispatcher.snapshot().ready().is_ok(),
        }
    }
}

/// The caller's time limit, from the `grpc-timeout` header: at most 8 digits and a unit. As gRPC servers do, a header
/// that is malformed is ignored.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let header = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1H", Some(3_600_000))]
    #[case("2M", Some(120_000))]
    #[case("3S", Some(3_000))]
    #[case("250m", Some(250))]
    #[case("5000u", Some(5))]
    #[case("7000000n", Some(7))]
    #[case("123456789S", None)]
    #[case("S", None)]
    #[case("5", None)]
    #[case("5é", None)]
    #[case("-5S", None)]
    fn timeouts(#[case] header: &str, #[case] milliseconds: Option<u64>) {
        let mut metadata = MetadataMap::new();
        if let Ok(value) = header.parse() {
            metadata.insert("grpc-timeout", value);
        }
        assert_eq!(timeout(&metadata), milliseconds.map(Duration::from_millis));
    }
}
