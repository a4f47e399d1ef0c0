//! One reconcile: five steps, one file each.
//!
//! Only [`observe`], [`apply`] and the status patch at the end touch the API server.

pub mod api_service;
pub mod apply;
pub mod build;
pub mod context;
pub mod drift;
pub mod error;
pub mod observe;
pub mod rollout;
pub mod status;
pub mod types;
pub mod validate;
mod write_status;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _, runtime::controller::Action};
use tokio::time;
use tracing::{debug, error, warn};

pub use self::context::Context;
use self::{
    context::Tracked,
    error::{Category, Error},
    types::{Applied, ApplyFailureCause, Fleet, Refusal, Validated},
};
use crate::{caches::Guarded, crd::ImageGen};

/// The longest reconcile. Less than the grace of a stop, so that a stopping operator writes nothing after its end.
const LIMIT: Duration = Duration::from_secs(20);
/// How often an ImageGen is looked at though nothing changed: certificates age, Secrets and claims are not watched.
const RESYNC: Duration = Duration::from_secs(600);
/// How soon pods that do not start are looked at again, for the events that say why.
const PODS_PENDING: Duration = Duration::from_secs(10);
/// How soon something that is not watched is looked at again: a missing claim, a foreign object in our place.
const UNWATCHED: Duration = Duration::from_secs(15);
/// How soon a reconcile is tried again that came while the lease was about to be renewed, or right after it was won.
const LAPSED: Duration = Duration::from_secs(2);

/// Reconciles one ImageGen, on the pod that leads.
///
/// # Errors
/// What [`error_policy`] is made for.
pub async fn reconcile(object: Arc<Guarded>, ctx: Arc<Context>) -> Result<Action, Error> {
    if !ctx.leadership.holds() {
        return Ok(if ctx.leadership.lapsed() { Action::requeue(LAPSED) } else { Action::await_change() });
    }
    if !ctx.caches.are_synced() {
        // Half a view of the children would be taken for all of it. The sync reconciles everything.
        return Ok(Action::await_change());
    }
    if object.meta().deletion_timestamp.is_some() {
        // The garbage collector takes the children; writing them again would only be in its way.
        return Ok(Action::await_change());
    }
    let (started, _running) = (Instant::now(), ctx.metrics.reconciling());
    let mut tracked = ctx.take(object.meta());
    let result = match &object.0 {
        Ok(ig) => one(&write_status::with_newest_status(ig, &tracked), &ctx, &mut tracked).await,
        Err(invalid) => write_status::unreadable(&ctx, &invalid.metadata, &invalid.error, &mut tracked).await,
    };
    if result.is_ok() {
        tracked.backoff = Default::default();
    }
    ctx.put(object.meta(), tracked);
    let category = result.as_ref().err().map(|error| error.category().into());
    ctx.metrics.reconciled(started.elapsed(), category);
    result
}

async fn one(ig: &ImageGen, ctx: &Context, tracked: &mut Tracked) -> Result<Action, Error> {
    // Boxed: it holds every child, and this future lies inside those of its callers.
    let timed = time::timeout(LIMIT, Box::pin(steps(ig, ctx, tracked))).await;
    let result = timed.unwrap_or(Err(Error::TimedOut { limit: LIMIT }));
    if let Err(error) = &result
        && !matches!(error.category(), Category::Conflict | Category::Invalid)
    {
        // The status says what is wrong even when a step before it failed. If this write fails too, the log has both.
        let next = status::failed(ig, &error.chain(), Timestamp::now());
        if let Err(error) = write_status::write(ctx, ig, next, tracked).await {
            debug!(error = error.chain(), "The status could not be written either.");
        }
    }
    result
}

async fn steps(ig: &ImageGen, ctx: &Context, tracked: &mut Tracked) -> Result<Action, Error> {
    let namespace = ig.namespace().unwrap_or_default();
    let (facts, mut fleet) = futures::try_join!(
        observe::facts(&ctx.client, ig, &namespace),
        observe::fleet(&ctx.client, &ctx.caches, ig, &namespace),
    )?;
    fleet.metrics_api = ctx.metrics_api.borrow().clone();
    match validate::validate(ig, &facts, &ctx.settings) {
        Err(refusals) => refused(ig, ctx, &refusals, &fleet, tracked).await,
        Ok(validated) => Box::pin(accepted(ig, ctx, &namespace, &validated, &fleet, tracked)).await,
    }
}

/// Children of a refused spec stay as they are: a bad edit never takes down workers that run.
async fn refused(
    ig: &ImageGen,
    ctx: &Context,
    refusals: &[Refusal],
    fleet: &Fleet,
    tracked: &mut Tracked,
) -> Result<Action, Error> {
    let next = status::refused(ig, refusals, fleet, Timestamp::now());
    let due = write_status::write(ctx, ig, next, tracked).await?;
    let depends_on_a_claim = ig.spec.model.source.persistent_volume_claim.is_some();
    let unwatched = depends_on_a_claim.then_some(UNWATCHED);
    Ok(soonest([unwatched, due]).map_or_else(Action::await_change, Action::requeue))
}

async fn accepted(
    ig: &ImageGen,
    ctx: &Context,
    namespace: &str,
    validated: &Validated,
    fleet: &Fleet,
    tracked: &mut Tracked,
) -> Result<Action, Error> {
    let Some(authority) = ctx.authority()? else { return Ok(Action::requeue(LAPSED)) };
    let mut desired = build::build(validated);
    let (deployment, on_failure) = (fleet.deployment.as_ref(), validated.rollout.on_failure);
    let trouble = status::trouble(fleet);
    let rollout = rollout::shape(&mut desired, deployment, on_failure, validated.autoscaling_mode, trouble);
    let target = apply::Target { client: &ctx.client, caches: &ctx.caches, imagegen: ig, namespace };
    let applied = Box::pin(apply::apply(target, &desired, &authority, &mut tracked.memory)).await?;
    let applied = Applied { rollout, ..applied };
    let next = status::status(ig, validated, &applied, fleet, Timestamp::now());
    let due = write_status::write(ctx, ig, next, tracked).await?;
    if let Some(refused) = refusal(&applied) {
        return Err(refused);
    }
    let pending = observe::waits_for_pods(fleet).then_some(PODS_PENDING);
    let contested = tracked.memory.contested.then_some(apply::DRIFT_PAUSE);
    // Spread, so that the ImageGens of an operator that starts are not looked at together for ever.
    let resync = Some(RESYNC.mul_f64(rand::random_range(0.8..1.2)));
    Ok(soonest([pending, contested, due, resync]).map_or_else(Action::await_change, Action::requeue))
}

fn refusal(applied: &Applied) -> Option<Error> {
    let sentences: Vec<String> = applied.failures.iter().map(ToString::to_string).collect();
    let foreign = applied.failures.iter().any(|failure| failure.cause == ApplyFailureCause::NotOurs);
    (!sentences.is_empty()).then(|| Error::Refused { message: sentences.join("; "), foreign })
}

fn soonest<const N: usize>(waits: [Option<Duration>; N]) -> Option<Duration> {
    waits.into_iter().flatten().min()
}

/// When a failed reconcile is tried again.
pub fn error_policy(object: &Guarded, failure: &Error, ctx: &Context) -> Action {
    let meta = object.meta();
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let wait = match failure {
        // Nothing tells us when a foreign object goes away.
        Error::Refused { foreign: true, .. } => UNWATCHED,
        _ => failure.fixed_delay().unwrap_or_else(|| ctx.failed(meta)),
    };
    let (error, wait_seconds) = (failure.chain(), wait.as_secs_f64());
    match failure.category() {
        Category::Conflict => debug!(name, namespace, error, wait_seconds, "Reconcile met another writer."),
        Category::Bug => error!(name, namespace, error, wait_seconds, "Reconcile failed in a way that is a bug."),
        Category::Invalid | Category::Transient => warn!(name, namespace, error, wait_seconds, "Reconcile failed."),
    }
    Action::requeue(wait)
}
