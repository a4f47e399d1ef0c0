//! Which of several operator pods writes: the holder of a Lease.
//!
//! The clocks of pods are never compared. A candidate measures, on its own monotonic clock, how long the Lease has not
//! changed, and takes it after the duration that the holder wrote into it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The three durations of a leader election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease stands unrenewed before another candidate takes it.
    pub duration: Duration,
    /// How long the leader tries to renew before it gives up. Shorter than `duration`.
    pub renew_deadline: Duration,
    /// How often the leader renews and the others look.
    pub retry: Duration,
}

/// Who wants the Lease, and which.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Leases of the operator's namespace.
    pub api: Api<Lease>,
    /// The Lease's name.
    pub name: String,
    /// Unique to this pod.
    pub identity: String,
    /// When to renew and when to take over.
    pub timing: Timing,
}

/// Why the process must end.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another pod took over.
    #[error("leadership lost: Lease {lease} is held by {holder}")]
    Taken {
        /// The Lease's name.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// The API server did not answer in time.
    #[error("leadership lost: Lease {lease} could not be renewed for {seconds:.0} s, last error: {last}")]
    NotRenewed {
        /// The Lease's name.
        lease: String,
        /// The renew deadline.
        seconds: f64,
        /// What the last try said.
        last: String,
    },
}

/// Whether this process may write. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

/// The writing half of [`Leadership`], for [`run`].
#[derive(Debug)]
pub struct Announcer(watch::Sender<Option<Instant>>);

/// A leadership that nobody holds yet.
#[must_use]
pub fn leadership() -> (Announcer, Leadership) {
    let (sender, receiver) = watch::channel(None);
    (Announcer(sender), Leadership(receiver))
}

impl Leadership {
    /// True while the last renewal is younger than the renew deadline. A stalled election ends the right to write even
    /// before the election itself notices.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// True when this process led and its last renewal is too old: the next one, or the end of the process, is near.
    #[must_use]
    pub fn lapsed(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() >= until)
    }

    /// The moment until which this process leads, as it changes.
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<Option<Instant>> {
        self.0.clone()
    }

    /// Completes once this process leads.
    pub async fn gained(&mut self) {
        if self.0.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await.is_err() {
            // The election ended without a win: this process never leads.
            std::future::pending::<()>().await;
        }
    }
}

/// What a candidate knows of the Lease.
#[derive(Debug, Clone)]
struct Seen {
    lease: Option<Lease>,
    /// When this process first saw it in this state.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// No such Lease yet.
    Create,
    /// It is free: released, or not renewed for its duration.
    Take,
    /// It is ours.
    Renew,
    /// Another pod holds it.
    Wait,
}

fn decide(me: &str, seen: &Seen, fallback: Duration, now: Instant) -> Step {
    let Some(lease) = &seen.lease else { return Step::Create };
    match holder(lease) {
        None => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) => {
            let duration = lease
                .spec
                .as_ref()
                .and_then(|spec| spec.lease_duration_seconds)
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(fallback, Duration::from_secs);
            if now.duration_since(seen.since) >= duration { Step::Take } else { Step::Wait }
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// The Lease to write for a step that writes.
fn claim(candidate: &Candidate, seen: Option<&Lease>, now: Timestamp) -> Lease {
    let before = seen.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let ours = before.holder_identity.as_deref() == Some(candidate.identity.as_str());
    let transitions = before.lease_transitions.unwrap_or(0);
    Lease {
        metadata: seen.map_or_else(
            || ObjectMeta { name: Some(candidate.name.clone()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        ),
        spec: Some(LeaseSpec {
            holder_identity: Some(candidate.identity.clone()),
            lease_duration_seconds: i32::try_from(candidate.timing.duration.as_secs()).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if ours || seen.is_none() { transitions } else { transitions.saturating_add(1) }),
            preferred_holder: None,
            strategy: None,
        }),
    }
}

/// Takes part in the election until `drained` is cancelled, then gives the Lease back.
///
/// `stop` says that the process wants to end; `drained` that nothing writes any more. A leader renews between the two.
///
/// # Errors
/// When leadership was held and lost: nothing may be written any more, so the process has to end.
pub async fn run(
    candidate: Candidate,
    announcer: Announcer,
    stop: CancellationToken,
    drained: CancellationToken,
) -> Result<(), LeaseError> {
    let mut election = Election { seen: None, leads_until: None, last_error: String::new(), candidate, announcer };
    loop {
        election.round().await?;
        let pause = election.candidate.timing.retry.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            () = time::sleep(pause) => {}
            () = drained.cancelled() => break,
            () = stop.cancelled(), if election.leads_until.is_none() => break,
        }
    }
    election.release().await;
    Ok(())
}

struct Election {
    candidate: Candidate,
    announcer: Announcer,
    seen: Option<Seen>,
    leads_until: Option<Instant>,
    last_error: String,
}

impl Election {
    async fn round(&mut self) -> Result<(), LeaseError> {
        let started = Instant::now();
        // Two tries must fit before the deadline, so a call may take half of it.
        let limit = self.candidate.timing.renew_deadline / 2;
        match time::timeout(limit, self.attempt()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.last_error = error.to_string(),
            Err(_) => self.last_error = format!("no answer within {:.0} s", limit.as_secs_f64()),
        }
        let held = self.seen.as_ref().and_then(|seen| seen.lease.as_ref()).and_then(holder).map(str::to_owned);
        match (&held, self.leads_until) {
            (Some(holder), Some(_)) if *holder != self.candidate.identity => {
                return Err(LeaseError::Taken { lease: self.candidate.name.clone(), holder: holder.clone() });
            }
            _ => {}
        }
        if self.last_error.is_empty() {
            if held.as_deref() == Some(self.candidate.identity.as_str()) {
                self.announce(started + self.candidate.timing.renew_deadline);
            }
            return Ok(());
        }
        warn!(lease = self.candidate.name, error = self.last_error, "The leader election could not reach its Lease.");
        match self.leads_until {
            Some(until) if Instant::now() >= until => Err(LeaseError::NotRenewed {
                lease: self.candidate.name.clone(),
                seconds: self.candidate.timing.renew_deadline.as_secs_f64(),
                last: std::mem::take(&mut self.last_error),
            }),
            _ => Ok(()),
        }
    }

    fn announce(&mut self, until: Instant) {
        if self.leads_until.is_none() {
            info!(lease = self.candidate.name, identity = self.candidate.identity, "This pod leads.");
        }
        self.leads_until = Some(until);
        self.announcer.0.send_replace(Some(until));
    }

    /// Reads where needed, and writes where the decision says so.
    async fn attempt(&mut self) -> Result<(), kube::Error> {
        // A leader writes over what it wrote last; a conflict makes it read again.
        let reread = self.leads_until.is_none() || !self.last_error.is_empty() || self.seen.is_none();
        self.last_error.clear();
        if reread {
            let lease = self.candidate.api.get_opt(&self.candidate.name).await?;
            self.remember(lease);
        }
        let Some(seen) = &self.seen else { return Ok(()) };
        let step = decide(&self.candidate.identity, seen, self.candidate.timing.duration, Instant::now());
        let wanted = claim(&self.candidate, seen.lease.as_ref(), Timestamp::now());
        let written = match step {
            Step::Wait => return Ok(()),
            Step::Create => self.candidate.api.create(&PostParams::default(), &wanted).await,
            Step::Take | Step::Renew => {
                self.candidate.api.replace(&self.candidate.name, &PostParams::default(), &wanted).await
            }
        };
        match written {
            Ok(lease) => self.remember(Some(lease)),
            // Someone was faster: the next round reads again. For a leader it is an error, so that it reads, too.
            Err(kube::Error::Api(status)) if status.code == 409 && self.leads_until.is_none() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn remember(&mut self, lease: Option<Lease>) {
        let same = self.seen.as_ref().is_some_and(|seen| seen.lease == lease);
        if !same {
            self.seen = Some(Seen { lease, since: Instant::now() });
        }
    }

    /// Lets the next candidate take over at once. Best effort: the Lease also runs out by itself.
    async fn release(mut self) {
        if self.leads_until.is_none() {
            return;
        }
        self.announcer.0.send_replace(None);
        let Some(mut lease) = self.seen.take().and_then(|seen| seen.lease) else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let replace = PostParams::default();
        let released = self.candidate.api.replace(&self.candidate.name, &replace, &lease);
        match time::timeout(self.candidate.timing.retry, released).await {
            Ok(Ok(_)) => info!(lease = self.candidate.name, "Leadership given back."),
            Ok(Err(error)) => warn!(lease = self.candidate.name, %error, "Leadership could not be given back."),
            Err(_) => warn!(lease = self.candidate.name, "Leadership could not be given back in time."),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
        Lease {
            metadata: ObjectMeta::default(),
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: seconds,
                lease_transitions: Some(4),
                ..LeaseSpec::default()
            }),
        }
    }

    #[rstest]
    #[case::none_yet(None, 0, Step::Create)]
    #[case::released(Some(lease(None, Some(15))), 0, Step::Take)]
    #[case::released_with_an_empty_name(Some(lease(Some(""), Some(15))), 0, Step::Take)]
    #[case::ours(Some(lease(Some("a"), Some(15))), 0, Step::Renew)]
    #[case::ours_though_old(Some(lease(Some("a"), Some(15))), 100, Step::Renew)]
    #[case::theirs_and_young(Some(lease(Some("b"), Some(15))), 14, Step::Wait)]
    #[case::theirs_and_expired(Some(lease(Some("b"), Some(15))), 15, Step::Take)]
    #[case::theirs_with_their_own_duration(Some(lease(Some("b"), Some(60))), 59, Step::Wait)]
    #[case::theirs_without_a_duration(Some(lease(Some("b"), None)), 29, Step::Wait)]
    #[case::theirs_without_a_duration_expired(Some(lease(Some("b"), None)), 30, Step::Take)]
    fn a_lease_is_taken_only_when_free(#[case] lease: Option<Lease>, #[case] age_seconds: u64, #[case] step: Step) {
        let since = Instant::now();
        let now = since + Duration::from_secs(age_seconds);
        assert_eq!(decide("a", &Seen { lease, since }, Duration::from_secs(30), now), step);
    }
}
