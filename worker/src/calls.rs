//! The calls that a repeat of their `request_id` attaches to: those that run, and for a while those that finished.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    call::{Call, Subscription},
    status::Refusal,
};

/// How long a finished call is remembered: longer than any client retries.
const WINDOW: Duration = Duration::from_secs(300);

/// Bytes of pictures that finished calls may hold in all; the oldest go first.
const MAX_BYTES: usize = 64 << 20;

/// Finished calls that are remembered, whatever their bytes.
const MAX_CALLS: usize = 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Calls(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    by_id: HashMap<String, Arc<Call>>,
    finished: VecDeque<(Instant, usize, Arc<Call>)>,
    finished_bytes: usize,
}

impl Calls {
    /// A stream of the call with this id, which `start` begins when there is none.
    ///
    /// # Errors
    /// [`Refusal::IdReused`], and what `start` refuses.
    pub(crate) fn attach_or_start(
        &self,
        id: &str,
        fingerprint: [u8; 32],
        deadline: Option<Instant>,
        start: impl FnOnce() -> Result<Arc<Call>, Refusal>,
    ) -> Result<Subscription, Refusal> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.forget_old(Instant::now());
        if let Some(call) = remembered.by_id.get(id) {
            if call.fingerprint != fingerprint {
                return Err(Refusal::IdReused { id: id.to_owned() });
            }
            if let Some(subscription) = call.follow(deadline) {
                return Ok(subscription);
            }
        }
        let call = start()?;
        let subscription = call.follow(deadline).ok_or(Refusal::Cancelled)?;
        remembered.by_id.insert(id.to_owned(), call);
        Ok(subscription)
    }

    /// The call has its end. Only pictures are kept: after a failure, a repeat tries again.
    pub(crate) fn ended(&self, call: &Arc<Call>, is_success: bool) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = remembered.by_id.get(&call.id).is_some_and(|current| Arc::ptr_eq(current, call));
        if !is_current {
            return;
        }
        if is_success {
            let bytes = call.image_bytes();
            remembered.finished.push_back((Instant::now(), bytes, Arc::clone(call)));
            remembered.finished_bytes += bytes;
        } else {
            remembered.by_id.remove(&call.id);
        }
        remembered.forget_old(Instant::now());
    }
}

impl Remembered {
    fn forget_old(&mut self, now: Instant) {
        while let Some((since, bytes, _)) = self.finished.front() {
            let is_old = now.duration_since(*since) >= WINDOW;
            if !is_old && self.finished_bytes <= MAX_BYTES && self.finished.len() <= MAX_CALLS {
                return;
            }
            self.finished_bytes -= bytes;
            if let Some((_, _, call)) = self.finished.pop_front()
                && self.by_id.get(&call.id).is_some_and(|current| Arc::ptr_eq(current, &call))
            {
                self.by_id.remove(&call.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use imagegen_proto::v1::{Image, generate_event::Event};

    use super::*;

    /// Whether a call of this id had to be started.
    fn starts(calls: &Calls, id: &str) -> (bool, Subscription) {
        let mut is_started = false;
        let subscription = calls.attach_or_start(id, [0; 32], None, || {
            is_started = true;
            Ok(Call::new(id.into(), [0; 32]))
        });
        (is_started, subscription.ok().unwrap())
    }

    fn finish(calls: &Calls, id: &str, bytes: usize) {
        let call = Call::new(id.into(), [0; 32]);
        let _stream = calls.attach_or_start(id, [0; 32], None, || Ok(Arc::clone(&call))).ok().unwrap();
        call.tell(Event::Image(Image { data: vec![0; bytes], ..Image::default() }));
        call.end(Ok(()));
        calls.ended(&call, true);
    }

    #[tokio::test(start_paused = true)]
    async fn finished_calls_are_replayed_until_the_window_closes() {
        let calls = Calls::default();
        finish(&calls, "a", 10);
        assert!(!starts(&calls, "a").0);
        tokio::time::advance(WINDOW).await;
        assert!(starts(&calls, "a").0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_when_memory_is_short() {
        let calls = Calls::default();
        finish(&calls, "a", MAX_BYTES / 2);
        finish(&calls, "b", MAX_BYTES / 2);
        finish(&calls, "c", MAX_BYTES / 2);
        assert!(!starts(&calls, "c").0);
        assert!(!starts(&calls, "b").0);
        assert!(starts(&calls, "a").0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeat_attaches_and_another_request_of_that_id_is_refused() {
        let calls = Calls::default();
        let (is_started, _stream) = starts(&calls, "a");
        assert!(is_started);
        assert!(!starts(&calls, "a").0);
        let other = calls.attach_or_start("a", [1; 32], None, || Ok(Call::new("a".into(), [1; 32])));
        assert_eq!(other.err(), Some(Refusal::IdReused { id: "a".into() }));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_or_failed_call_is_started_again() {
        let calls = Calls::default();
        drop(starts(&calls, "a"));
        let call = Call::new("a".into(), [0; 32]);
        let stream = calls.attach_or_start("a", [0; 32], None, || Ok(Arc::clone(&call))).ok().unwrap();
        call.end(Err(Refusal::DrainTimeout));
        calls.ended(&call, false);
        drop(stream);
        assert!(starts(&calls, "a").0);
    }
}
