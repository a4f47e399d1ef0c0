//! Whether someone may read a metric: the cluster's own authorizer is asked, and its answer kept for a moment.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{self, Instant};

use super::{
    GROUP, VERSION,
    auth_headers::User,
    failure::Failure,
    request::{Query, Target},
};

/// How long an answer counts. Kubernetes' own aggregated servers keep it as long.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Most answers that are kept.
const MOST_KEPT: usize = 4096;
/// The longest question.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the cluster's authorizer.
pub struct Access {
    api: Api<SubjectAccessReview>,
    known: Mutex<HashMap<Question, (Verdict, Instant)>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    user: User,
    subject: Asked,
}

/// What someone wants to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Path(&'static str),
    Object { namespace: String, resource: String, name: String, metric: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    allowed: bool,
    reason: String,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Access {
    /// Knows no answer yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), known: Mutex::default() }
    }

    /// Passes when the authorizer lets `user` read `target`.
    ///
    /// # Errors
    /// [`Failure::Forbidden`], and [`Failure::Unavailable`] when the authorizer cannot be asked.
    pub async fn check(&self, user: &User, target: &Target) -> Result<(), Failure> {
        let question = Question { user: user.clone(), subject: Asked::from(target) };
        let verdict = match self.known(&question, Instant::now()) {
            Some(verdict) => verdict,
            None => {
                let verdict = self.ask(&question).await?;
                self.keep(question.clone(), verdict.clone(), Instant::now());
                verdict
            }
        };
        if verdict.allowed { Ok(()) } else { Err(question.refused(verdict.reason)) }
    }

    async fn ask(&self, question: &Question) -> Result<Verdict, Failure> {
        let failed = |why: String| Failure::Unavailable(format!("the cluster's authorizer cannot be asked: {why}"));
        let (review, create) = (question.review(), PostParams::default());
        let answer = time::timeout(LIMIT, self.api.create(&create, &review)).await;
        let answer = answer.map_err(|_| failed(format!("no answer within {} s", LIMIT.as_secs())))?;
        let status = answer.map_err(|error| failed(error.to_string()))?.status.unwrap_or_default();
        let reason = [status.reason, status.evaluation_error].into_iter().flatten().find(|text| !text.is_empty());
        Ok(Verdict { allowed: status.allowed, reason: reason.unwrap_or_else(|| "no rule allows it".to_owned()) })
    }

    fn known(&self, question: &Question, now: Instant) -> Option<Verdict> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(question).filter(|(_, until)| now < *until).map(|(verdict, _)| verdict.clone())
    }

    fn keep(&self, question: Question, verdict: Verdict, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KEPT {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < MOST_KEPT {
            known.insert(question, (verdict, now + KEPT_FOR));
        }
    }
}

impl From<&Target> for Asked {
    fn from(target: &Target) -> Self {
        match target {
            Target::Groups => Self::Path("/apis"),
            Target::Group => Self::Path("/apis/custom.metrics.k8s.io"),
            Target::Resources => Self::Path("/apis/custom.metrics.k8s.io/v1beta2"),
            Target::Values(Query { namespace, resource, name, metric, .. }) => Self::Object {
                namespace: namespace.clone(),
                resource: resource.clone(),
                name: name.clone(),
                metric: metric.clone(),
            },
        }
    }
}

impl Question {
    fn review(&self) -> SubjectAccessReview {
        let User { name, uid, groups, extra } = self.user.clone();
        let mut spec = SubjectAccessReviewSpec {
            user: Some(name),
            uid: Some(uid).filter(|uid| !uid.is_empty()),
            groups: Some(groups),
            extra: Some(extra),
            ..SubjectAccessReviewSpec::default()
        };
        match &self.subject {
            Asked::Path(path) => {
                spec.non_resource_attributes =
                    Some(NonResourceAttributes { path: Some((*path).to_owned()), verb: Some("get".to_owned()) });
            }
            // As the API server itself reads such a path: the metric is a subresource.
            Asked::Object { namespace, resource, name, metric } => {
                spec.resource_attributes = Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    version: Some(VERSION.to_owned()),
                    namespace: Some(namespace.clone()),
                    resource: Some(resource.clone()),
                    subresource: Some(metric.clone()),
                    name: Some(name.clone()),
                    verb: Some("get".to_owned()),
                    ..ResourceAttributes::default()
                });
            }
        }
        SubjectAccessReview { spec, ..SubjectAccessReview::default() }
    }

    fn refused(self, reason: String) -> Failure {
        let what = match self.subject {
            Asked::Path(path) => format!("path {path:?}"),
            Asked::Object { namespace, resource, name, metric } => format!(
                "resource \"{resource}/{metric}\" of {name:?} in API group {GROUP:?} in the namespace {namespace:?}"
            ),
        };
        Failure::Forbidden { user: self.user.name, what, reason }
    }
}
