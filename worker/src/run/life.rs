//! The end of the server: what it waits for, and for how long.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ServeError;
use crate::{
    admin::Exit,
    connections::FLUSH,
    dispatcher::{Dispatcher, SHUTDOWN},
    engine_thread::EngineEnd,
};

/// Waits for the end of the engine thread.
pub(super) async fn follow_engine(
    mut end: oneshot::Receiver<Result<(), EngineEnd>>,
    stop: CancellationToken,
) -> Result<(), EngineEnd> {
    tokio::select! {
        end = &mut end => end.unwrap_or(Err(EngineEnd::Panicked)),
        // A step may take minutes; the process does not wait for one that nobody wants.
        () = stop.cancelled() => Ok(()),
    }
}

/// Waits for the order to stop, by a signal or by the operator, then for what is admitted.
pub(super) async fn end_of_life(
    dispatcher: Arc<Dispatcher>,
    mut terminations: mpsc::Receiver<()>,
    mut exits: mpsc::Receiver<Exit>,
    drain_timeout: Duration,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (timeout, mut signals) = tokio::select! {
        // A task died; the supervisor knows more.
        () = stop.cancelled() => return Ok(()),
        Some(()) = terminations.recv() => (drain_timeout, 1),
        Some(Exit { timeout }) = exits.recv() => (timeout, 0),
    };
    let mut changes = dispatcher.subscribe();
    dispatcher.begin_shutdown(SHUTDOWN);
    let open = dispatcher.snapshot().open;
    info!(open_requests = open, timeout_seconds = timeout.as_secs_f64(), "Draining before the process ends.");
    let deadline = Instant::now() + timeout;
    let why = loop {
        tokio::select! {
            _ = changes.wait_for(|snapshot| snapshot.is_drained()) => break None,
            () = tokio::time::sleep_until(deadline) => break Some("the drain timeout passed"),
            // The kubelet's signal in the middle of the operator's drain asks for nothing new.
            Some(()) = terminations.recv() => signals += 1,
            () = stop.cancelled() => return Ok(()),
        }
        if signals > 1 {
            break Some("a second signal came");
        }
    };
    let cut = dispatcher.snapshot().open;
    let result = match why {
        Some(why) if cut > 0 => {
            warn!(cut, why, "Ending requests with UNAVAILABLE.");
            dispatcher.abort();
            // The ends must be on their streams before the ports close.
            let ended = changes.wait_for(|snapshot| snapshot.open == 0);
            if tokio::time::timeout(FLUSH, ended).await.is_err() {
                warn!("Some requests did not take their end in time.");
            }
            Err(ServeError::Cut { cut, why })
        }
        _ => Ok(()),
    };
    // First the tasks' order, so that an engine thread that ends is not taken for one that died.
    stop.cancel();
    dispatcher.stop();
    result
}
