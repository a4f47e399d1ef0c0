//! Long-lived tasks that may not die unseen: the first one that ends outside a shutdown ends the process.

use std::{collections::HashMap, future::Future, time::Duration};

use tokio::{
    task::{self, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Why the process must end.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned an error.
    #[error("{task} failed: {source}")]
    Failed {
        /// Name given at spawn.
        task: &'static str,
        /// What it returned.
        source: BoxError,
    },
    /// A task returned although nobody asked it to stop.
    #[error("{task} ended although nobody asked it to")]
    Ended {
        /// Name given at spawn.
        task: &'static str,
    },
    /// A task panicked.
    #[error("{task} panicked: {detail}")]
    Panicked {
        /// Name given at spawn.
        task: &'static str,
        /// The panic's message.
        detail: String,
    },
    /// Some tasks did not stop in time.
    #[error("still running {seconds:.0} s after the stop: {tasks}")]
    Stuck {
        /// Names of those still running.
        tasks: String,
        /// How long they had.
        seconds: f64,
    },
}

/// Any error a task may return.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A set of tasks with one stop signal.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), BoxError>>,
    names: HashMap<task::Id, &'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the tasks should stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that runs until the stop token is cancelled.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Waits until the stop token is cancelled, then at most `grace` for the tasks to end.
    ///
    /// # Errors
    /// The first task that ended before the stop, failed, panicked, or did not stop in time.
    pub async fn run(mut self, grace: Duration) -> Result<(), TaskError> {
        let mut outcome = Ok(());
        tokio::select! {
            // First the stop: a task that ended because of it did not end unasked.
            biased;
            () = self.stop.cancelled() => {}
            ended = self.tasks.join_next_with_id() => {
                outcome = ended.map_or(Ok(()), |ended| self.judge(ended, false));
                if let Err(error) = &outcome {
                    error!(%error, "A task that must not end has ended; stopping the process.");
                }
                self.stop.cancel();
            }
        }
        let stopped = time::timeout(grace, async {
            let mut late = Ok(());
            while let Some(ended) = self.tasks.join_next_with_id().await {
                late = late.and(self.judge(ended, true));
            }
            late
        });
        match stopped.await {
            Ok(late) => outcome.and(late),
            Err(_) => {
                let mut tasks: Vec<_> = self.names.values().copied().collect();
                tasks.sort_unstable();
                outcome.and(Err(TaskError::Stuck { tasks: tasks.join(", "), seconds: grace.as_secs_f64() }))
            }
        }
    }

    fn judge(
        &mut self,
        ended: Result<(task::Id, Result<(), BoxError>), task::JoinError>,
        stopping: bool,
    ) -> Result<(), TaskError> {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let task = self.names.remove(&id).unwrap_or("a task");
        match ended {
            Ok((_, Ok(()))) if stopping => {
                info!(task, "Stopped.");
                Ok(())
            }
            Ok((_, Ok(()))) => Err(TaskError::Ended { task }),
            Ok((_, Err(source))) => Err(TaskError::Failed { task, source }),
            Err(error) => Err(TaskError::Panicked { task, detail: error.to_string() }),
        }
    }
}

/// Completes on SIGTERM or SIGINT.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM received."),
        _ = interrupt.recv() => info!("SIGINT received."),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_unasked_ends_the_process() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn("watch", async { Ok::<_, BoxError>(()) });
        let error = supervisor.run(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "watch ended although nobody asked it to");
    }

    #[tokio::test]
    async fn a_panic_names_the_task() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn("watch", async {
            assert!(future::ready(false).await, "poisoned");
            Ok::<_, BoxError>(())
        });
        let error = supervisor.run(Duration::from_secs(1)).await.unwrap_err();
        assert!(
            matches!(&error, TaskError::Panicked { task: "watch", detail } if detail.contains("poisoned")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn stopping_waits_for_the_tasks() {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop_token();
        let seen = stop.clone();
        supervisor.spawn("server", async move {
            seen.cancelled().await;
            Ok::<_, BoxError>(())
        });
        stop.cancel();
        supervisor.run(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_stop_is_named() {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop_token();
        supervisor.spawn("server", future::pending::<Result<(), BoxError>>());
        stop.cancel();
        let error = supervisor.run(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "still running 5 s after the stop: server");
    }
}
