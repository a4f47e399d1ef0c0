//! What one request has told so far, kept so that any number of streams can follow it at their own speed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, stream};
use imagegen_proto::v1::{GenerateEvent, generate_event::Event};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::status::Refusal;

/// One request, from its admission on.
pub(crate) struct Call {
    pub(crate) id: String,
    /// Tells a repeat from another request of the same id.
    pub(crate) fingerprint: [u8; 32],
    log: Mutex<Log>,
    changes: watch::Sender<u64>,
    /// Cancelled when the last stream that followed has closed before the end.
    pub(crate) abandoned: CancellationToken,
}

#[derive(Default)]
struct Log {
    events: Vec<GenerateEvent>,
    end: Option<Result<(), Refusal>>,
    streams: usize,
}

impl Call {
    pub(crate) fn new(id: String, fingerprint: [u8; 32]) -> Arc<Self> {
        let abandoned = CancellationToken::new();
        Arc::new(Self { id, fingerprint, log: Mutex::default(), changes: watch::Sender::new(0), abandoned })
    }

    /// Appends an event.
    pub(crate) fn tell(&self, event: Event) {
        self.lock().events.push(GenerateEvent { event: Some(event) });
        self.changes.send_modify(|version| *version += 1);
    }

    /// Ends the call, once; `false` when it has an end already.
    pub(crate) fn end(&self, end: Result<(), Refusal>) -> bool {
        let mut log = self.lock();
        if log.end.is_some() {
            return false;
        }
        log.end = Some(end);
        drop(log);
        self.changes.send_modify(|version| *version += 1);
        true
    }

    /// Follows the call; `None` when it is being cancelled because nobody did any more.
    pub(crate) fn follow(self: &Arc<Self>, deadline: Option<Instant>) -> Option<Subscription> {
        let mut log = self.lock();
        if self.abandoned.is_cancelled() {
            return None;
        }
        log.streams += 1;
        // Progress from before this stream is of no use to it.
        let first_progress = log.events.len();
        let changes = self.changes.subscribe();
        Some(Subscription { call: Arc::clone(self), cursor: 0, first_progress, changes, deadline, is_done: false })
    }

    /// Bytes of the pictures and previews.
    pub(crate) fn image_bytes(&self) -> usize {
        let bytes = |event: &GenerateEvent| match &event.event {
            Some(Event::Image(image)) => image.data.len(),
            Some(Event::Progress(progress)) => progress.preview.len(),
            _ => 0,
        };
        self.lock().events.iter().map(bytes).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A push is complete or has not happened, whatever panics.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream's place in a call. Dropping the last one before the end cancels the work.
pub(crate) struct Subscription {
    call: Arc<Call>,
    cursor: usize,
    first_progress: usize,
    changes: watch::Receiver<u64>,
    deadline: Option<Instant>,
    is_done: bool,
}

impl Subscription {
    /// The events, then the end. Passing the deadline ends the stream and counts as closing it.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<GenerateEvent, Status>> + Send + 'static {
        stream::unfold(Some(self), |subscription| async {
            let mut subscription = subscription?;
            let item = subscription.next().await?;
            // After an error the subscription goes at once, and with it, maybe, the work.
            let rest = item.is_ok().then_some(subscription);
            Some((item.map_err(Status::from), rest))
        })
    }

    async fn next(&mut self) -> Option<Result<GenerateEvent, Refusal>> {
        loop {
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Some(Err(Refusal::Deadline));
            }
            if let Some(item) = self.take() {
                return item;
            }
            let changed = self.changes.changed();
            match self.deadline {
                None => changed.await.ok()?,
                Some(deadline) => tokio::select! {
                    changed = changed => changed.ok()?,
                    () = tokio::time::sleep_until(deadline) => {}
                },
            }
        }
    }

    /// What there is to say now; `None` when the stream has to wait.
    fn take(&mut self) -> Option<Option<Result<GenerateEvent, Refusal>>> {
        let log = self.call.lock();
        while let Some(event) = log.events.get(self.cursor) {
            self.cursor += 1;
            if self.cursor > self.first_progress || !matches!(event.event, Some(Event::Progress(_))) {
                return Some(Some(Ok(event.clone())));
            }
        }
        let end = log.end.clone()?;
        self.is_done = true;
        Some(end.err().map(Err))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut log = self.call.lock();
        log.streams -= 1;
        if log.streams == 0 && log.end.is_none() {
            self.call.abandoned.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use imagegen_proto::v1::{Accepted, Finished, Image, Progress};
    use tonic::Code;

    use super::*;

    fn progress(step: u32) -> Event {
        Event::Progress(Progress { step, ..Progress::default() })
    }

    fn kinds(events: &[Result<GenerateEvent, Status>]) -> Vec<String> {
        let kind = |event: &Result<GenerateEvent, Status>| match event {
            Err(status) => format!("{:?}", status.code()),
            Ok(GenerateEvent { event: Some(Event::Progress(progress)) }) => format!("step {}", progress.step),
            Ok(GenerateEvent { event: Some(Event::Accepted(_)) }) => "accepted".into(),
            Ok(GenerateEvent { event: Some(Event::Image(_)) }) => "image".into(),
            Ok(_) => "other".into(),
        };
        events.iter().map(kind).collect()
    }

    #[tokio::test]
    async fn a_late_stream_gets_what_matters_and_the_rest() {
        let call = Call::new("a".into(), [0; 32]);
        let first = call.follow(None).unwrap();
        call.tell(Event::Accepted(Accepted::default()));
        call.tell(progress(1));
        let late = call.follow(None).unwrap();
        call.tell(progress(2));
        call.tell(Event::Image(Image { data: vec![0; 7], ..Image::default() }));
        call.tell(Event::Finished(Finished::default()));
        assert!(call.end(Ok(())));
        let events: Vec<_> = first.into_stream().collect().await;
        assert_eq!(kinds(&events), ["accepted", "step 1", "step 2", "image", "other"]);
        let events: Vec<_> = late.into_stream().collect().await;
        assert_eq!(kinds(&events), ["accepted", "step 2", "image", "other"]);
        assert!(!call.abandoned.is_cancelled());
        assert_eq!(call.image_bytes(), 7);
    }

    #[tokio::test]
    async fn the_first_end_counts() {
        let call = Call::new("a".into(), [0; 32]);
        let stream = call.follow(None).unwrap().into_stream();
        assert!(call.end(Err(Refusal::DrainTimeout)));
        assert!(!call.end(Ok(())));
        assert_eq!(kinds(&stream.collect::<Vec<_>>().await), ["Unavailable"]);
    }

    #[tokio::test]
    async fn the_last_stream_that_closes_cancels() {
        let call = Call::new("a".into(), [0; 32]);
        let (one, two) = (call.follow(None).unwrap(), call.follow(None).unwrap());
        drop(one);
        assert!(!call.abandoned.is_cancelled());
        drop(two);
        assert!(call.abandoned.is_cancelled());
        assert!(call.follow(None).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_stream_and_cancels() {
        let call = Call::new("a".into(), [0; 32]);
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        let mut stream = Box::pin(call.follow(Some(deadline)).unwrap().into_stream());
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(call.abandoned.is_cancelled());
        assert!(stream.next().await.is_none());
    }
}
