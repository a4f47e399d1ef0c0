//! The state that asynchronous code and the engine thread share: who waits, what runs, and whether more may come.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use imagegen_core::{
    admission::{self, Ask, Permit},
    engine::{CountTokens, ModelInfo},
    eta::{StepTimes, Work},
    pressure::Targets,
    queue::{Place, Queue, Ticket},
    request::Request,
    rules::{RuleSettings, Rules},
    table::Shape,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::signals::Numbers;
use self::signals::Signals;
use crate::{
    engine_thread::EngineEvent,
    metrics::Metrics,
    snapshot::{Phase, Snapshot},
    status::Refusal,
};

mod engine_side;
mod outlook;
mod signals;

pub(crate) use self::engine_side::{Measured, Turn};

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
    /// Whether nobody wants the pictures any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Never waits: the channel has room for everything a job can tell, and a receiver that is gone wants nothing.
    pub(crate) fn tell(&self, event: EngineEvent) {
        let _ = self.events.try_send(event);
    }
}

/// Something for the engine thread to do between two batches.
#[derive(Debug)]
pub(crate) enum Command {
    /// Give cached blocks back, and say what is held before and after.
    Trim(oneshot::Sender<Trimmed>),
}

/// Bytes that the allocator held before and after a trim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trimmed {
    pub(crate) before_bytes: u64,
    pub(crate) after_bytes: u64,
}

/// Who asks for pictures.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// A hash of the request_id.
    pub(crate) key: u64,
    /// Until the caller's deadline.
    pub(crate) left: Option<Duration>,
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
    /// Requests that the engine has begun, by their arrival, with what is left of them.
    started: BTreeMap<u64, Work>,
    times: StepTimes,
    signals: Signals,
    commands: VecDeque<Command>,
    drain_id: Option<String>,
    is_ending: bool,
    is_stopped: bool,
    open: usize,
}

/// Settings of the queue and of the signals that follow from it.
#[derive(Debug, Clone)]
pub(crate) struct QueueSettings {
    pub(crate) capacity: usize,
    pub(crate) max_wait: Duration,
    pub(crate) max_holdup: Duration,
    pub(crate) targets: Targets,
}

/// Shared by everyone; see the module.
pub(crate) struct Dispatcher {
    state: Mutex<State>,
    work: Condvar,
    snapshot: watch::Sender<Snapshot>,
    /// Raised to end all that is admitted at that moment.
    aborts: watch::Sender<u64>,
    settings: RuleSettings,
    targets: Targets,
    pub(crate) metrics: Metrics,
    epoch: Instant,
    last_beat_milliseconds: AtomicU64,
}

/// The id of a drain that ends with the process.
pub(crate) const SHUTDOWN: &str = "shutdown";

impl Dispatcher {
    pub(crate) fn new(settings: RuleSettings, queue: &QueueSettings, metrics: Metrics) -> Self {
        let state = State {
            phase: Phase::Loading { ratio: 0.0 },
            loaded: None,
            queue: Queue::new(queue.capacity, queue.max_wait, queue.max_holdup),
            started: BTreeMap::new(),
            times: StepTimes::default(),
            signals: Signals::default(),
            commands: VecDeque::new(),
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
            targets: queue.targets,
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

    /// The numbers of the state now.
    pub(crate) fn numbers(&self) -> Numbers {
        let state = self.lock();
        state.numbers(self.epoch.elapsed(), &self.targets)
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
    pub(crate) fn admit(
        &self,
        request: Arc<Request>,
        caller: &Caller,
        cancelled: CancellationToken,
    ) -> Result<Admitted, Refusal> {
        // Every step may be told twice: after a failed allocation an image may begin again, once.
        let room = request.count as usize * (2 * request.steps as usize + 1) + 2;
        let (events, receiver) = mpsc::channel(room);
        let admitted = self.update(|state| {
            let now = self.epoch.elapsed();
            let (ask, decision) = state.decide(&request, caller.left, now)?;
            let permit = decision.map_err(|refusal| {
                if refusal.is_for_lack_of_room() {
                    state.signals.refused(caller.key, ask.seconds, now);
                }
                Refusal::Admission(refusal)
            })?;
            let deadline = caller.left.map(|left| now + left);
            let place = Place { priority: request.priority, deadline, total_seconds: permit.seconds };
            let job = Job { request, events, cancelled };
            let ticket = state.queue.push(place, now, job).map_err(|full| {
                let retry = admission::retry(state.running_seconds());
                Refusal::Admission(admission::Refusal::QueueFull { capacity: full.capacity, retry })
            })?;
            state.signals.admitted(caller.key, now);
            state.open += 1;
            self.metrics.admissions.inc();
            let position =
                state.queue.in_order(now).iter().position(|(other, ..)| *other == ticket).unwrap_or_default();
            let eta_seconds = permit.wait_seconds + permit.seconds;
            let position = position + state.started.len();
            Ok(Admitted { ticket, position, eta_seconds, events: receiver, aborts: self.aborts.subscribe() })
        });
        self.work.notify_one();
        admitted
    }

    /// What [`admit`](Self::admit) would say, and what the request would cost.
    pub(crate) fn estimate(
        &self,
        request: &Request,
        left: Option<Duration>,
    ) -> Result<(Ask, Result<Permit, admission::Refusal>), Refusal> {
        self.lock().decide(request, left, self.epoch.elapsed())
    }

    /// Bytes that one batch of this shape is charged; 0 when that is not known.
    pub(crate) fn bytes(&self, shape: Shape) -> u64 {
        self.lock().signals.table.bytes(shape).unwrap_or_default()
    }

    /// Takes a job out of the queue, unless it runs already.
    pub(crate) fn leave_queue(&self, ticket: Ticket) {
        self.update(|state| drop(state.queue.take(ticket)));
    }

    /// Takes a job out of the queue that waited for as long as it may; `false` when its turn came in time.
    pub(crate) fn leave_overdue(&self, ticket: Ticket, key: u64) -> bool {
        let now = self.epoch.elapsed();
        self.update(|state| {
            let Some(job) = state.queue.take_overdue(ticket, now) else { return false };
            let seconds = state.times.seconds(Work::of(&job.request)).unwrap_or_default();
            state.signals.refused(key, seconds, now);
            true
        })
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
        admission::retry(self.lock().running_seconds())
    }

    /// Asks the engine thread to give cached blocks back between two batches.
    pub(crate) fn trim(&self) -> oneshot::Receiver<Trimmed> {
        let (reply, trimmed) = oneshot::channel();
        self.update(|state| state.commands.push_back(Command::Trim(reply)));
        self.work.notify_one();
        trimmed
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

    /// The engine thread lives.
    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_milliseconds.store(now, Ordering::Relaxed);
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.publish(&mut state);
        result
    }

    fn publish(&self, state: &mut State) {
        state.note_idleness(self.epoch.elapsed());
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
            running: self.started.len(),
            queued: self.queue.len(),
            open: self.open,
            no_capacity: self.signals.no_capacity(),
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
