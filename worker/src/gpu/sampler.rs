//! Reads the device every second and tells everyone.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{CallFailure, GpuProbe, GpuSample};

/// How often the device is read.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// A driver that has not answered for so long is broken; the reading goes on in the background.
const PATIENCE: Duration = Duration::from_secs(10);

/// What fails when the driver does not answer at all.
const NO_ANSWER: &str = "reading the device";

/// Failed calls, by NVML's name for them.
pub(crate) type Failures = Family<[(&'static str, &'static str); 1], Counter>;

/// A device that is read again and again.
pub(crate) struct Sampler {
    probe: Box<dyn GpuProbe>,
    publish: watch::Sender<Arc<GpuSample>>,
    failures: Failures,
}

impl Sampler {
    /// Reads once, so that everyone has something from the start.
    ///
    /// # Errors
    /// When the reading panicked.
    pub(crate) async fn new(mut probe: Box<dyn GpuProbe>) -> Result<Self, JoinError> {
        let (sample, probe) = spawn_blocking(move || (probe.sample(), probe)).await?;
        let failures = Failures::default();
        // A counter that is there from the start lets Prometheus see its first increase.
        drop(failures.get_or_create(&[("call", NO_ANSWER)]));
        count(&failures, &sample);
        Ok(Self { probe, publish: watch::Sender::new(Arc::new(sample)), failures })
    }

    /// The latest reading.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<GpuSample>> {
        self.publish.subscribe()
    }

    /// Calls that failed so far.
    pub(crate) fn failures(&self) -> Failures {
        self.failures.clone()
    }

    /// Reads until told to stop.
    ///
    /// # Errors
    /// When a reading panicked.
    pub(crate) async fn run(self, every: Duration, stop: CancellationToken) -> Result<(), JoinError> {
        let Self { mut probe, publish, failures } = self;
        let mut ticks = time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let mut reading = spawn_blocking(move || (probe.sample(), probe));
            let read = loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    read = &mut reading => break read,
                    () = time::sleep(PATIENCE) => {
                        tell(&publish, &failures, GpuSample::failed(NO_ANSWER, "the driver does not answer"));
                    }
                }
            };
            let (sample, back) = read?;
            probe = back;
            tell(&publish, &failures, sample);
        }
    }
}

fn tell(publish: &watch::Sender<Arc<GpuSample>>, failures: &Failures, sample: GpuSample) {
    count(failures, &sample);
    let before = publish.send_replace(Arc::new(sample));
    let now = publish.borrow();
    // Once, not every second.
    match (before.failures.first(), now.failures.first()) {
        (None, Some(CallFailure { call, reason })) => {
            warn!(call, reason, "The device cannot be read in full.");
        }
        (Some(_), None) => info!("The device can be read in full again."),
        _ => {}
    }
}

fn count(failures: &Failures, sample: &GpuSample) {
    for failure in &sample.failures {
        failures.get_or_create(&[("call", failure.call)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::gpu::DeviceMemory;

    /// Answers what the test sends, and waits for it.
    struct Scripted(mpsc::Receiver<GpuSample>);

    impl GpuProbe for Scripted {
        fn sample(&mut self) -> GpuSample {
            self.0.recv().unwrap()
        }
    }

    fn used(bytes: u64) -> GpuSample {
        let memory = DeviceMemory { total_bytes: 100, driver_reserved_bytes: 0, used_bytes: bytes };
        GpuSample { memory: Some(memory), ..GpuSample::default() }
    }

    #[tokio::test]
    async fn readings_follow_each_other_and_failures_are_counted() {
        let (answers, probe) = mpsc::channel();
        answers.send(used(1)).unwrap();
        let sampler = Sampler::new(Box::new(Scripted(probe))).await.unwrap();
        let (mut readings, failures) = (sampler.subscribe(), sampler.failures());
        assert_eq!(**readings.borrow_and_update(), used(1));
        let stop = CancellationToken::new();
        let task = tokio::spawn(sampler.run(Duration::from_millis(1), stop.clone()));
        for sample in [used(2), GpuSample::failed("nvmlInit_v2", "gone"), used(3)] {
            answers.send(sample.clone()).unwrap();
            readings.changed().await.unwrap();
            assert_eq!(**readings.borrow_and_update(), sample);
        }
        assert_eq!(failures.get_or_create(&[("call", "nvmlInit_v2")]).get(), 1);
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
