//! Where the authority and the operator's own certificates are kept: Secrets in the operator's namespace.
//!
//! Only the leader writes them. Every operator pod can read them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    KeyedCert, OPERATOR_NAME, PkiError,
    cert::{self, Authority, LeafStep, Usage},
    plan::{CaStep, plan_ca},
    serving::SERVING_SECRET,
};
use crate::{FIELD_MANAGER, lease::Leadership};

/// The Secret of the authority.
pub const CA_SECRET: &str = "imagegen-operator-ca";
/// The Secret of the operator's client certificate.
pub const CLIENT_SECRET: &str = "imagegen-operator-client";

/// How often the Secrets are looked at: what someone deleted is back within a minute.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// How soon a failed look is repeated.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// The longest look.
const LIMIT: Duration = Duration::from_secs(20);

/// The authority in force; `None` until it was read or made.
pub type CurrentAuthority = watch::Receiver<Option<Arc<Authority>>>;

/// A leaf as a Secret of type `kubernetes.io/tls` holds it.
#[must_use]
pub fn leaf_data(leaf: &KeyedCert, bundle: &str) -> BTreeMap<String, ByteString> {
    let entry = |name: &str, text: &str| (name.to_owned(), ByteString(text.as_bytes().to_vec()));
    BTreeMap::from([entry("tls.crt", &leaf.cert), entry("tls.key", &leaf.key), entry("ca.crt", bundle)])
}

/// The leaf and the bundle in a Secret, when all three parts are there.
#[must_use]
pub fn leaf_in(secret: &Secret) -> Option<(KeyedCert, String)> {
    let (cert, key) = (text(secret, "tls.crt")?, text(secret, "tls.key")?);
    Some((KeyedCert { cert, key }, text(secret, "ca.crt")?))
}

/// The data of a leaf Secret as it should be, and why it changes if it does.
///
/// # Errors
/// When a new leaf cannot be signed.
pub fn renewed_leaf(
    authority: &Authority,
    found: Option<&Secret>,
    dns_name: &str,
    usage: Usage,
    now: Timestamp,
) -> Result<(BTreeMap<String, ByteString>, Option<&'static str>), PkiError> {
    let reason = match found.map(leaf_in) {
        None => "there is none",
        Some(None) => "its Secret lacks tls.crt, tls.key or ca.crt",
        Some(Some((leaf, bundle))) => match authority.judge(&leaf, &bundle, dns_name, now) {
            LeafStep::Keep => return Ok((leaf_data(&leaf, &bundle), None)),
            LeafStep::Rebundle => {
                return Ok((leaf_data(&leaf, authority.bundle()), Some("the trusted authorities changed")));
            }
            LeafStep::Issue(reason) => reason,
        },
    };
    Ok((leaf_data(&authority.issue(dns_name, usage, now)?, authority.bundle()), Some(reason)))
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// What the authority's Secret holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CaState {
    current: Option<KeyedCert>,
    next: Option<KeyedCert>,
    previous: Option<String>,
}

impl CaState {
    fn read(secret: &Secret) -> Self {
        let pair = |name: &str| {
            let cert = text(secret, &format!("{name}.crt"))?;
            let pair = KeyedCert { cert, key: text(secret, &format!("{name}.key"))? };
            Authority::new(pair.clone(), &[]).is_ok().then_some(pair)
        };
        let previous = text(secret, "previous.crt").filter(|cert| cert::validity_of(cert).is_ok());
        Self { current: pair("tls"), next: pair("next"), previous }
    }

    fn data(&self, authority: &Authority) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |name: &str, text: &str| data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
        for (name, pair) in [("tls", &self.current), ("next", &self.next)] {
            if let Some(pair) = pair {
                put(&format!("{name}.crt"), &pair.cert);
                put(&format!("{name}.key"), &pair.key);
            }
        }
        if let Some(previous) = &self.previous {
            put("previous.crt", previous);
        }
        put("ca.crt", authority.bundle());
        data
    }

    /// The state after the step that is due, with what to log about it.
    ///
    /// An authority that may not sign for `serving` gets a successor that may.
    fn advanced(mut self, serving: Option<&str>, now: Timestamp) -> Result<(Self, CaStep), PkiError> {
        let validity = |pair: &Option<KeyedCert>| pair.as_ref().and_then(|pair| cert::validity_of(&pair.cert).ok());
        let step = match plan_ca(validity(&self.current), validity(&self.next), now) {
            CaStep::Keep if !self.may_sign_for(serving) => CaStep::AddNext,
            step => step,
        };
        match step {
            CaStep::Keep => {}
            CaStep::Create => {
                let replaced = self.current.replace(cert::new_ca(serving, now)?);
                self.previous = replaced.map(|pair| pair.cert).or(self.previous);
                self.next = None;
            }
            CaStep::AddNext => self.next = Some(cert::new_ca(serving, now)?),
            CaStep::Promote => {
                self.previous = self.current.take().map(|pair| pair.cert);
                self.current = self.next.take();
            }
        }
        let holds = |cert: &String| cert::validity_of(cert).is_ok_and(|validity| validity.not_after > now);
        self.previous = self.previous.filter(holds);
        Ok((self, step))
    }

    fn authority(&self) -> Result<Option<Authority>, PkiError> {
        let Some(current) = self.current.clone() else { return Ok(None) };
        let next = self.next.as_ref().map(|pair| pair.cert.as_str());
        let others: Vec<&str> = next.into_iter().chain(self.previous.as_deref()).collect();
        Authority::new(current, &others).map(Some)
    }

    /// Signs for the operator's own servers: the successor, while only that one may. Whoever calls them trusts both.
    fn serving_authority(&self, serving: &str) -> Result<Option<Authority>, PkiError> {
        let may = |pair: &&KeyedCert| cert::permits(&pair.cert, serving);
        let Some(signer) = self.current.iter().chain(&self.next).find(may) else { return Ok(None) };
        let pairs = self.current.iter().chain(&self.next).map(|pair| pair.cert.as_str());
        let others: Vec<&str> = pairs.chain(self.previous.as_deref()).filter(|cert| *cert != signer.cert).collect();
        Authority::new(signer.clone(), &others).map(Some)
    }

    fn may_sign_for(&self, serving: Option<&str>) -> bool {
        serving.is_none_or(|name| self.current.iter().chain(&self.next).any(|pair| cert::permits(&pair.cert, name)))
    }
}

/// Keeps the Secrets right while this process leads, until `stop`.
///
/// # Errors
/// Never: what fails is logged and tried again, because workers that run do not depend on it.
pub async fn run(
    api: Api<Secret>,
    serving: Option<String>,
    publish: watch::Sender<Option<Arc<Authority>>>,
    mut leadership: Leadership,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    tokio::select! {
        () = leadership.gained() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let mut held: Option<CaState> = None;
    loop {
        let pause = match time::timeout(LIMIT, tend(&api, serving.as_deref(), &publish, &mut held)).await {
            Ok(Ok(())) => CHECK_EVERY,
            Err(_) => {
                warn!(seconds = LIMIT.as_secs(), "The operator's certificates could not be checked in time.");
                RETRY_EVERY
            }
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, cause, "The operator's certificates could not be checked; trying again soon.");
                RETRY_EVERY
            }
        };
        tokio::select! {
            () = time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

async fn tend(
    api: &Api<Secret>,
    serving: Option<&str>,
    publish: &watch::Sender<Option<Arc<Authority>>>,
    held: &mut Option<CaState>,
) -> Result<(), PkiError> {
    let now = Timestamp::now();
    let found = get(api, CA_SECRET).await?;
    let read = found.as_ref().map(CaState::read).unwrap_or_default();
    let usable = if read.current.is_some() {
        read.clone()
    } else if let Some(held) = held.clone() {
        warn!(secret = CA_SECRET, "The Secret of the operator's authority was lost or damaged; restoring it.");
        held
    } else if found.is_some() {
        error!(
            secret = CA_SECRET,
            "The Secret of the operator's authority is damaged; making a new one. Workers trust it once the kubelet \
             has brought them their new Secret, within about two minutes."
        );
        read.clone()
    } else {
        CaState::default()
    };
    let (state, step) = usable.advanced(serving, now)?;
    // `advanced` always leaves a current pair behind.
    let Some(authority) = state.authority()? else { return Ok(()) };
    if state != read {
        put(api, CA_SECRET, state.data(&authority)).await?;
        info!(secret = CA_SECRET, ?step, "The Secret of the operator's authority was written.");
    }
    tend_leaf(api, CLIENT_SECRET, &authority, (OPERATOR_NAME, Usage::Client), now).await?;
    if let Some(serving) = serving
        && let Some(authority) = state.serving_authority(serving)?
    {
        tend_leaf(api, SERVING_SECRET, &authority, (serving, Usage::Serving), now).await?;
    }
    let changed = held.as_ref() != Some(&state);
    *held = Some(state);
    if changed {
        publish.send_replace(Some(Arc::new(authority)));
    }
    Ok(())
}

async fn tend_leaf(
    api: &Api<Secret>,
    secret: &str,
    authority: &Authority,
    (dns_name, usage): (&str, Usage),
    now: Timestamp,
) -> Result<(), PkiError> {
    let found = get(api, secret).await?;
    let (data, reason) = renewed_leaf(authority, found.as_ref(), dns_name, usage, now)?;
    if let Some(reason) = reason {
        put(api, secret, data).await?;
        info!(secret, ?usage, reason, "A certificate of the operator was written.");
    }
    Ok(())
}

async fn get(api: &Api<Secret>, name: &str) -> Result<Option<Secret>, PkiError> {
    api.get_opt(name).await.map_err(|source| PkiError::Api { name: name.to_owned(), source: Box::new(source) })
}

async fn put(api: &Api<Secret>, name: &str, data: BTreeMap<String, ByteString>) -> Result<(), PkiError> {
    let label = |key: &str, value: &str| (format!("app.kubernetes.io/{key}"), value.to_owned());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([
                label("name", "imagegen-operator"),
                label("managed-by", "imagegen-operator"),
                label("part-of", "imagegen"),
            ])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let written = api.patch(name, &params, &Patch::Apply(&secret)).await;
    written.map(|_| ()).map_err(|source| PkiError::Api { name: name.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::plan::{CA_LIFE, CA_OVERLAP, days};

    fn at(day: i32) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + days(day)
    }

    fn secret(state: &CaState) -> Secret {
        let authority = state.authority().unwrap().unwrap();
        Secret { data: Some(state.data(&authority)), ..Secret::default() }
    }

    #[test]
    fn an_authority_survives_its_secret() {
        let (state, step) = CaState::default().advanced(None, at(0)).unwrap();
        assert_eq!(step, CaStep::Create);
        assert_eq!(CaState::read(&secret(&state)), state);
        assert_eq!(state.clone().advanced(None, at(1)).unwrap(), (state, CaStep::Keep));
    }

    #[test]
    fn both_authorities_are_trusted_during_a_rotation() {
        let (first, _) = CaState::default().advanced(None, at(0)).unwrap();
        let due = at(0) + CA_LIFE - CA_OVERLAP;
        let (with_next, step) = first.clone().advanced(None, due).unwrap();
        assert_eq!(step, CaStep::AddNext);
        assert_eq!(with_next.current, first.current);
        let (promoted, step) = CaState::read(&secret(&with_next)).advanced(None, due + days(1)).unwrap();
        assert_eq!(step, CaStep::Promote);
        let bundle = promoted.authority().unwrap().unwrap().bundle().to_owned();
        for old in [&first.current, &with_next.next] {
            assert!(bundle.contains(&old.as_ref().unwrap().cert));
        }
        let (settled, _) = promoted.advanced(None, at(0) + CA_LIFE).unwrap();
        assert_eq!(settled.previous, None, "what ended is no longer trusted");
    }

    #[test]
    fn an_authority_that_may_not_sign_for_the_service_gets_a_successor_that_serves_at_once() {
        const NAME: &str = "operator.system.svc";
        let (old, _) = CaState::default().advanced(None, at(0)).unwrap();
        assert!(old.serving_authority(NAME).unwrap().is_none());
        let (with_next, step) = old.clone().advanced(Some(NAME), at(1)).unwrap();
        assert_eq!((step, &with_next.current), (CaStep::AddNext, &old.current));
        let trusted = with_next.authority().unwrap().unwrap().bundle().to_owned();
        let serving = with_next.serving_authority(NAME).unwrap().unwrap();
        let signer = &with_next.next.as_ref().unwrap().cert;
        assert!(serving.bundle().starts_with(signer) && trusted.contains(signer));
        let again = with_next.clone().advanced(Some(NAME), at(1)).unwrap();
        assert_eq!(again, (with_next.clone(), CaStep::Keep));
        let (promoted, step) = with_next.advanced(Some(NAME), at(2)).unwrap();
        assert_eq!(step, CaStep::Promote);
        assert_eq!(
            promoted.serving_authority(NAME).unwrap().unwrap().bundle(),
            promoted.authority().unwrap().unwrap().bundle()
        );
        let (fresh, _) = CaState::default().advanced(Some(NAME), at(0)).unwrap();
        assert_eq!(fresh.clone().advanced(Some(NAME), at(1)).unwrap(), (fresh, CaStep::Keep));
    }

    #[test]
    fn a_damaged_pair_is_not_used() {
        let (state, _) = CaState::default().advanced(None, at(0)).unwrap();
        let mut damaged = secret(&state);
        damaged.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"nonsense".to_vec()));
        assert_eq!(CaState::read(&damaged).current, None);
    }

    #[test]
    fn a_leaf_is_renewed_only_with_a_reason() {
        let (state, _) = CaState::default().advanced(None, at(0)).unwrap();
        let authority = state.authority().unwrap().unwrap();
        let renew = |found: Option<&Secret>, day| {
            renewed_leaf(&authority, found, OPERATOR_NAME, Usage::Client, at(day)).unwrap()
        };
        let (data, reason) = renew(None, 0);
        assert_eq!(reason, Some("there is none"));
        let stored = Secret { data: Some(data.clone()), ..Secret::default() };
        assert_eq!(renew(Some(&stored), 1), (data.clone(), None));
        let (renewed, reason) = renew(Some(&stored), 61);
        assert_eq!(reason, Some("it ends soon"));
        assert_ne!(renewed["tls.crt"], data["tls.crt"]);
        let (_, reason) = renew(Some(&Secret::default()), 1);
        assert_eq!(reason, Some("its Secret lacks tls.crt, tls.key or ca.crt"));
    }
}
