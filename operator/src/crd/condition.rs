//! Condition types and reasons. They are API: scripts wait on them, so a name, once out, stays.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// The conditions of an ImageGen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
pub enum ConditionType {
    /// The spec is accepted, rolled out, and every wanted worker is ready.
    Ready,
    /// At least one worker answers.
    Available,
    /// The fleet is moving towards the spec.
    Progressing,
    /// Something needs a person.
    Degraded,
    /// The number of workers follows the load, by the operator or by its HPA.
    ScalingActive,
    /// A worker has loaded the model.
    ModelReady,
}

/// Why a condition has its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
pub enum Reason {
    // The spec is refused.
    /// A field, or a value of it, that this version does not serve yet.
    NotYetSupported,
    /// hostPath, root, privileges or capabilities that the operator's flags do not allow.
    NotAllowed,
    /// A value that the schema cannot check and that cannot work.
    InvalidSpec,
    /// A claim that one node at a time can use, with more than one replica.
    ClaimNotShareable,
    /// The claim of the model does not exist.
    ClaimNotFound,
    /// A child's name is taken by an object that is not ours.
    NameConflict,
    /// The API server refused a child.
    ApplyFailed,
    /// A step of the operator failed; it tries again by itself.
    ReconcileFailed,

    // The pods do not come up.
    /// The node's container runtime cannot mount image volumes.
    ImageVolumeUnsupported,
    /// An image cannot be pulled.
    ImagePullFailed,
    /// A container ends again and again.
    CrashLoopBackOff,
    /// A container was killed for using more memory than its limit.
    OutOfMemoryKilled,
    /// No node can take a worker.
    Unschedulable,
    /// A Secret or ConfigMap that the pod mounts does not exist, or a volume cannot be mounted.
    MountFailed,
    /// The pod's containers cannot be created as the spec asks.
    ContainerConfigError,
    /// The namespace refuses the pods: a quota, a Pod Security level or a webhook.
    PodsRefused,
    /// A rollout made no progress for spec.rollout.progressDeadline.
    ProgressDeadlineExceeded,
    /// The same, and it was stopped where it was.
    RolloutPaused,
    /// The same, and the last revision that was ready serves again.
    RolledBack,

    // The fleet moves, or stands.
    /// Workers start or load the model.
    Starting,
    /// Workers are being replaced.
    RollingOut,
    /// Workers are being added or removed.
    Scaling,
    /// Everything wanted is there.
    UpToDate,
    /// Every wanted worker is ready.
    AllWorkersReady,
    /// Some worker is ready.
    WorkersReady,
    /// No worker is wanted.
    ScaledToZero,
    /// Nothing is wrong.
    AsExpected,
    /// The model is loaded.
    Loaded,

    // Scaling.
    /// spec.replicas is the size.
    AutoscalingDisabled,
    /// The HPA steers the number of workers.
    HorizontalPodAutoscaler,
    /// The HPA is new, or has not read its metric yet.
    HorizontalPodAutoscalerStarting,
    /// The HPA cannot steer; the message is its own.
    HorizontalPodAutoscalerFailed,
    /// Another server has the API group of custom metrics, so the HPA asks that one.
    MetricsAPIOwnedByOther,
    /// The operator's metrics API could not be put into the cluster.
    MetricsAPIFailed,
    /// The owner of the scale subresource decides about the number of workers.
    ScaledExternally,
}
