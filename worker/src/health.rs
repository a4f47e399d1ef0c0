//! grpc.health.v1, fed from the dispatcher's state.

use std::sync::Arc;

use imagegen_proto::v1::image_service_server::SERVICE_NAME;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::dispatcher::Dispatcher;

/// Says so for the whole server and for the image service.
pub(crate) async fn report(reporter: &HealthReporter, is_ready: bool) {
    let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// Keeps the reporter at the state until `stop`.
pub(crate) async fn follow(
    dispatcher: Arc<Dispatcher>,
    reporter: HealthReporter,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut changes = dispatcher.subscribe();
    loop {
        let is_ready = changes.borrow_and_update().ready().is_ok();
        report(&reporter, is_ready).await;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = changes.wait_for(|snapshot| snapshot.ready().is_ok() != is_ready) => {}
        }
    }
}
