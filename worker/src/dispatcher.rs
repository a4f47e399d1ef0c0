//! The state that asynchronous code and the engine thread share: who waits, what runs, and whether more may come.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use imagegen_core::{
    engine::{CountTokens, ModelInfo},
    eta::{StepTimes, Work},
    queue::{Queue, Ticket},
    request::Request,
    rules::{RuleSettings, Rules},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    engine_thread::{EngineEvent, JobError},
    metrics::Metrics,
    snapshot::{Phase, Snapshot},
    status::Refusal,
};

mod engine_side;

/// How often an idle engine thread shows that it lives.
const IDLE_BEAT: Duration = Duration::from_secs(1);

/// A model that is ready, with the rules that follow from it.
pub(crate) struct Loaded {
    pub(crate) model: ModelInfo,
    pub(crate) rules: Rules,
    pub(crate) count_tokens: CountTokens,
}

/// One admitted request on its way through the engine.
pub(crate) struct Job {
    pub(crate) request: Arc<Request>,
    events: mpsc::Sender<EngineEvent>,
    cancelled: CancellationToken,
}

impl Job {
    /// Fails once nobody wants the pictures any more.
    pub(crate) fn check(&self) -> Result<(), JobError> {
        if self.cancelled.is_cancelled() { Err(JobError::Cancelled) } else { Ok(()) }
    }

    /// Never waits: the channel has room for everything a job can tell, and a receiver that is gone wants nothing.
    pub(crate) fn tell(&self, event: EngineEvent) {
        let _ = self.events.try_send(event);
    }
}

/// A place in the queue.
pub(crate) struct Admitted {
    pub(crate) ticket: Ticket,
    /// Requests that run before this one.
    pub(crate) position: usize,
    /// Seconds until its last image; 0 before the first measurement.
    pub(crate) eta_seconds: f64,
    pub(crate) events: mpsc::Receiver<EngineEvent>,
    /// Changes when what is admitted at that moment must end.
    pub(crate) aborts: watch::Receiver<u64>,
}

struct State {
    phase: Phase,
    loaded: Option<Arc<Loaded>>,
    queue: Queue<Job>,
    running: Option<Work>,
    times: StepTimes,
    drain_id: Option<String>,
    is_ending: bool,
    is_stopped: bool,
    open: usize,
}

/// Shared by everyone; see the module.
pub(crate) struct Dispatcher {
    state: Mutex<State>,
    work: Condvar,
    snapshot: watch::Sender<Snapshot>,
    /// Raised to end all that is admitted at that moment.
    aborts: watch::Sender<u64>,
    settings: RuleSettings,
    pub(crate) metrics: Metrics,
    epoch: Instant,
    last_beat_milliseconds: AtomicU64,
}

/// The id of a drain that ends with the process.
pub(crate) const SHUTDOWN: &str = "shutdown";

impl Dispatcher {
    pub(crate) fn new(settings: RuleSettings, capacity: usize, max_wait: Duration, metrics: Metrics) -> Self {
        let state = State {
            phase: Phase::Loading { ratio: 0.0 },
            loaded: None,
            queue: Queue::new(capacity, max_wait),
            running: None,
            times: StepTimes::default(),
            drain_id: None,
            is_ending: false,
            is_stopped: false,
            open: 0,
        };
        let snapshot = watch::Sender::new(state.snapshot());
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            snapshot,
            aborts: watch::Sender::new(0),
            settings,
            metrics,
            epoch: Instant::now(),
            last_beat_milliseconds: AtomicU64::new(0),
        }
    }

    /// Changes of the state.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// The state now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// The model that is loaded, even while draining; otherwise why there is none.
    pub(crate) fn model(&self) -> Result<Arc<Loaded>, Refusal> {
        let state = self.lock();
        match (&state.phase, &state.loaded) {
            (Phase::Failed { reason }, _) => Err(Refusal::Failed { reason: reason.clone() }),
            (_, Some(loaded)) => Ok(Arc::clone(loaded)),
            (Phase::Loading { ratio }, None) => Err(Refusal::Loading { ratio: *ratio }),
            (Phase::Serving, None) => Err(Refusal::Loading { ratio: 1.0 }),
        }
    }

    /// Gives the request a place in the queue.
    pub(crate) fn admit(&self, request: Arc<Request>, cancelled: CancellationToken) -> Result<Admitted, Refusal> {
        let room = request.count as usize * (request.steps as usize + 1) + 2;
        let (events, receiver) = mpsc::channel(room);
        let priority = request.priority;
        let own = Work::of(&request);
        let job = Job { request, events, cancelled };
        let admitted = self.update(|state| {
            if let Phase::Failed { reason } = &state.phase {
                return Err(Refusal::Failed { reason: reason.clone() });
            }
            if state.drain_id.is_some() || state.is_stopped {
                return Err(Refusal::Draining);
            }
            let now = self.epoch.elapsed();
            let ticket = state.queue.push(priority, now, job).map_err(|full| Refusal::QueueFull {
                capacity: full.capacity,
                retry: Duration::from_secs_f64(state.times.retry_seconds(state.running)),
            })?;
            let waiting = state.queue.position(ticket).unwrap_or_default();
            let before = state.queue.iter().take(waiting).map(|job| Work::of(&job.request));
            let eta_seconds = state.times.total_seconds(state.running.into_iter().chain(before).chain([own]));
            state.open += 1;
            let position = waiting + usize::from(state.running.is_some());
            Ok(Admitted { ticket, position, eta_seconds, events: receiver, aborts: self.aborts.subscribe() })
        })?;
        self.work.notify_one();
        Ok(admitted)
    }

    /// Takes a job out of the queue, unless it runs already.
    pub(crate) fn leave_queue(&self, ticket: Ticket) {
        self.update(|state| drop(state.queue.cancel(ticket)));
    }

    /// Takes a job out of the queue that waited for as long as it may; `false` when its turn came in time.
    pub(crate) fn leave_overdue(&self, ticket: Ticket) -> bool {
        let now = self.epoch.elapsed();
        self.update(|state| state.queue.take_overdue(ticket, now).is_some())
    }

    /// An admitted request's streams got their end.
    pub(crate) fn closed(&self) {
        self.update(|state| state.open = state.open.saturating_sub(1));
    }

    /// Longest wait in the queue.
    pub(crate) fn max_wait(&self) -> Duration {
        self.lock().queue.max_wait()
    }

    /// When a client that is refused now should come again.
    pub(crate) fn retry_after(&self) -> Duration {
        let state = self.lock();
        Duration::from_secs_f64(state.times.retry_seconds(state.running))
    }

    /// Stops admitting; replaces the id of a drain in force, unless the process is ending.
    pub(crate) fn drain(&self, id: &str) {
        self.update(|state| {
            if !state.is_ending {
                state.drain_id = Some(id.to_owned());
            }
        });
    }

    /// Stops admitting for good, under this id. `false` when the process was ending already.
    pub(crate) fn begin_shutdown(&self, id: &str) -> bool {
        self.update(|state| {
            let is_first = !state.is_ending;
            if is_first {
                state.drain_id = Some(id.to_owned());
                state.is_ending = true;
            }
            is_first
        })
    }

    /// Takes a drain back.
    pub(crate) fn resume(&self, id: &str) -> Result<(), ResumeError> {
        self.update(|state| match state.drain_id.as_deref() {
            _ if state.is_ending => Err(ResumeError::Ending),
            Some(current) if current != id => Err(ResumeError::OtherDrain { current: current.to_owned() }),
            _ => {
                state.drain_id = None;
                Ok(())
            }
        })
    }

    /// Ends all that is admitted with UNAVAILABLE.
    pub(crate) fn abort(&self) {
        self.aborts.send_modify(|count| *count += 1);
    }

    /// Lets the engine thread end after its job.
    pub(crate) fn stop(&self) {
        self.update(|state| state.is_stopped = true);
        self.work.notify_all();
    }

    /// `Ok` while the engine thread shows signs of life, otherwise what is wrong.
    pub(crate) fn live(&self, stall_timeout: Duration) -> Result<(), String> {
        if let Phase::Failed { reason } = &self.snapshot.borrow().phase {
            return Err(reason.clone());
        }
        let beat = Duration::from_millis(self.last_beat_milliseconds.load(Ordering::Relaxed));
        let silence = self.epoch.elapsed().saturating_sub(beat);
        if silence > stall_timeout {
            let (silence, allowed) = (silence.as_secs(), stall_timeout.as_secs());
            return Err(format!("the engine has not finished a step for {silence} s (--stall-timeout is {allowed} s)"));
        }
        Ok(())
    }

    fn beat(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_milliseconds.store(now, Ordering::Relaxed);
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.publish(&state);
        result
    }

    fn publish(&self, state: &State) {
        let new = state.snapshot();
        self.snapshot.send_if_modified(|old| {
            let is_changed = *old != new;
            if is_changed {
                self.metrics.state(&new);
                *old = new;
            }
            is_changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything in it could panic, so the state is whole even then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self.phase.clone(),
            drain_id: self.drain_id.clone(),
            running: usize::from(self.running.is_some()),
            queued: self.queue.len(),
            open: self.open,
        }
    }
}

/// Why a drain stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error("the process is ending; start a new one")]
    Ending,
    #[error("drain \"{current}\" is in force, which is another one; resume it by its own id")]
    OtherDrain { current: String },
}
