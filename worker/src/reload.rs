//! Values that come from files and follow them: certificates and tokens, which Kubernetes replaces in running pods.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::{sync::watch, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Largest file that is read: certificates and tokens have a few KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Why files do not give a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has {bytes} bytes, more than {MAX_BYTES}: not a certificate, key or token file", path = path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{path} {reason}", path = path.display())]
    Content { path: PathBuf, reason: String },
}

/// Paths and contents, in the same order, to what they mean.
pub(crate) type Parse<T> = fn(&[PathBuf], &[Vec<u8>]) -> Result<T, ReloadError>;

/// Files and what they mean.
pub(crate) struct Reloading<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    contents: Vec<Vec<u8>>,
    current: watch::Sender<Arc<T>>,
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// The value of the files as they are.
    ///
    /// # Errors
    /// When a file cannot be read or means nothing.
    pub(crate) fn load(paths: Vec<PathBuf>, parse: Parse<T>) -> Result<Self, ReloadError> {
        let contents = read(&paths)?;
        let value = parse(&paths, &contents)?;
        Ok(Self { paths, parse, contents, current: watch::Sender::new(Arc::new(value)) })
    }

    /// The value at any time.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Looks at the files every so often, until `stop`. While they mean nothing, the last good value stays.
    pub(crate) async fn follow(
        mut self,
        every: Duration,
        results: Family<[(&'static str, &'static str); 1], Counter>,
        stop: CancellationToken,
    ) -> Result<(), tokio::task::JoinError> {
        let mut reported = None;
        while stop.run_until_cancelled(time::sleep(every)).await.is_some() {
            let paths = self.paths.clone();
            let read = spawn_blocking(move || read(&paths)).await?;
            let result = match read {
                Ok(contents) if contents == self.contents => {
                    reported = None;
                    continue;
                }
                Ok(contents) => (self.parse)(&self.paths, &contents).map(|value| (contents, value)),
                Err(error) => Err(error),
            };
            match result {
                Ok((contents, value)) => {
                    self.contents = contents;
                    self.current.send_replace(Arc::new(value));
                    results.get_or_create(&[("result", "ok")]).inc();
                    info!(path = %self.paths[0].display(), "Read again after a change.");
                    reported = None;
                }
                Err(error) => {
                    let sentence = error.to_string();
                    // Kubernetes replaces the files of a Secret at once, other tools one after the other.
                    if reported.as_deref() != Some(sentence.as_str()) {
                        results.get_or_create(&[("result", "error")]).inc();
                        warn!(error = sentence, "Changed, but not usable; keeping what was read before.");
                        reported = Some(sentence);
                    }
                }
            }
        }
        Ok(())
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, ReloadError> {
    let read = |path: &PathBuf| {
        let failed = |source| ReloadError::Read { path: path.clone(), source };
        let bytes = fs::metadata(path).map_err(failed)?.len();
        if bytes > MAX_BYTES {
            return Err(ReloadError::TooLarge { path: path.clone(), bytes });
        }
        fs::read(path).map_err(failed)
    };
    paths.iter().map(read).collect()
}
