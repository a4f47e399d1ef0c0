//! Making and reading certificates: ECDSA P-256.

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use x509_parser::{
    extensions::GeneralName,
    pem::{Pem, parse_x509_pem},
    prelude::X509Certificate,
};

use super::{
    DOMAIN, KeyedCert, PkiError,
    plan::{self, CA_LIFE, LEAF_LIFE, Validity},
};

/// What a leaf is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A worker's admin port.
    Server,
    /// The operator, where it calls.
    Client,
    /// The operator, where it is called.
    Serving,
}

/// An authority that signs, and everything that is trusted beside it.
#[derive(Debug)]
pub struct Authority {
    signer: KeyedCert,
    issuer: Issuer<'static, KeyPair>,
    bundle: String,
}

/// Whether a leaf that was found can stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafStep {
    /// It can.
    Keep,
    /// Only the bundle of trusted authorities beside it changed.
    Rebundle,
    /// A new one is needed, for this reason.
    Issue(&'static str),
}

/// A self-signed authority that may sign for names under [`DOMAIN`], and for `serving` where there is one, only.
///
/// # Errors
/// [`PkiError::Sign`] when the system has no randomness.
pub fn new_ca(serving: Option<&str>, now: Timestamp) -> Result<KeyedCert, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("imagegen-operator {}", now.strftime("%Y-%m-%d")));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: [DOMAIN]
            .into_iter()
            .chain(serving)
            .map(|name| GeneralSubtree::DnsName(name.to_owned()))
            .collect(),
        excluded_subtrees: Vec::new(),
    });
    set_validity(&mut params, Validity::starting(now, CA_LIFE));
    let key = KeyPair::generate()?;
    Ok(KeyedCert { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

impl Authority {
    /// Reads the signing authority; `others` (PEM) are trusted beside it.
    ///
    /// # Errors
    /// [`PkiError::Parse`] and [`PkiError::KeyMismatch`] when the pair cannot be used.
    pub fn new(signer: KeyedCert, others: &[&str]) -> Result<Self, PkiError> {
        check_pair(&signer)?;
        let issuer = Issuer::from_ca_cert_pem(&signer.cert, KeyPair::from_pem(&signer.key)?)?;
        let bundle = [signer.cert.as_str()].into_iter().chain(others.iter().copied()).collect();
        Ok(Self { signer, issuer, bundle })
    }

    /// Every certificate that is trusted, PEM, the signing one first.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// A new leaf for one DNS name.
    ///
    /// # Errors
    /// [`PkiError::Sign`] when the name is not a DNS name or the system has no randomness.
    pub fn issue(&self, dns_name: &str, usage: Usage, now: Timestamp) -> Result<KeyedCert, PkiError> {
        let mut params = CertificateParams::new(vec![dns_name.to_owned()])?;
        // A common name is limited to 64 characters, which a DNS name may exceed; verifiers read the DNS name.
        let (common_name, purpose) = match usage {
            Usage::Server => ("imagegen-worker", ExtendedKeyUsagePurpose::ServerAuth),
            Usage::Client => ("imagegen-operator", ExtendedKeyUsagePurpose::ClientAuth),
            Usage::Serving => ("imagegen-operator", ExtendedKeyUsagePurpose::ServerAuth),
        };
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, Validity::starting(now, LEAF_LIFE));
        let key = KeyPair::generate()?;
        Ok(KeyedCert { cert: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }

    /// Judges a leaf and the bundle that lies beside it.
    #[must_use]
    pub fn judge(&self, leaf: &KeyedCert, bundle: &str, dns_name: &str, now: Timestamp) -> LeafStep {
        if let Err(reason) = self.accept(leaf, dns_name, now) {
            return LeafStep::Issue(reason);
        }
        if bundle == self.bundle { LeafStep::Keep } else { LeafStep::Rebundle }
    }

    fn accept(&self, leaf: &KeyedCert, dns_name: &str, now: Timestamp) -> Result<(), &'static str> {
        check_pair(leaf).map_err(|_| "its certificate and key are damaged")?;
        let (pem, signer) = (parse(&leaf.cert), parse(&self.signer.cert));
        let (Ok(pem), Ok(signer)) = (pem, signer) else { return Err("its certificate is damaged") };
        let (Ok(cert), Ok(signer)) = (pem.parse_x509(), signer.parse_x509()) else {
            return Err("its certificate is damaged");
        };
        if cert.verify_signature(Some(signer.public_key())).is_err() {
            return Err("another authority signed it");
        }
        if dns_names(&cert) != [dns_name] {
            return Err("it has another name");
        }
        if plan::leaf_is_due(validity(&cert), now) {
            return Err("it ends soon");
        }
        Ok(())
    }
}

/// When a PEM certificate holds.
///
/// # Errors
/// [`PkiError::Parse`] when it is none.
pub fn validity_of(pem: &str) -> Result<Validity, PkiError> {
    let pem = parse(pem)?;
    let cert = pem.parse_x509().map_err(|error| PkiError::Parse { detail: error.to_string() })?;
    Ok(validity(&cert))
}

/// Whether the authority in a PEM certificate may sign for a DNS name. What cannot be read may not.
#[must_use]
pub fn permits(pem: &str, dns_name: &str) -> bool {
    let Ok(pem) = parse(pem) else { return false };
    let Ok(cert) = pem.parse_x509() else { return false };
    let Ok(Some(constraints)) = cert.name_constraints() else { return false };
    let covers = |subtree: &x509_parser::extensions::GeneralSubtree<'_>| match subtree.base {
        GeneralName::DNSName(base) => dns_name == base || dns_name.ends_with(&format!(".{base}")),
        _ => false,
    };
    constraints.value.permitted_subtrees.iter().flatten().any(covers)
}

fn parse(pem: &str) -> Result<Pem, PkiError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| PkiError::Parse { detail: error.to_string() })?;
    Ok(pem)
}

fn check_pair(pair: &KeyedCert) -> Result<(), PkiError> {
    let pem = parse(&pair.cert)?;
    let cert = pem.parse_x509().map_err(|error| PkiError::Parse { detail: error.to_string() })?;
    let key = KeyPair::from_pem(&pair.key)?;
    if cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw() {
        Ok(())
    } else {
        Err(PkiError::KeyMismatch)
    }
}

fn validity(cert: &X509Certificate<'_>) -> Validity {
    let time =
        |time: x509_parser::time::ASN1Time, otherwise| Timestamp::from_second(time.timestamp()).unwrap_or(otherwise);
    Validity {
        not_before: time(cert.validity().not_before, Timestamp::MAX),
        not_after: time(cert.validity().not_after, Timestamp::MIN),
    }
}

fn dns_names<'a>(cert: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &'a GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = date_time_ymd(1970, 1, 1);
    let since = |time: Timestamp| std::time::Duration::from_secs(time.as_second().try_into().unwrap_or(0));
    params.not_before = epoch + since(validity.not_before);
    params.not_after = epoch + since(validity.not_after);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pki::OPERATOR_NAME;

    const NAME: &str = "turbo.team-a.imagegen.internal";

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn authority() -> Authority {
        Authority::new(new_ca(None, now()).unwrap(), &[]).unwrap()
    }

    #[test]
    fn a_fresh_leaf_is_kept() {
        let authority = authority();
        let leaf = authority.issue(NAME, Usage::Server, now()).unwrap();
        assert_eq!(authority.judge(&leaf, authority.bundle(), NAME, now()), LeafStep::Keep);
        assert_eq!(validity_of(&leaf.cert).unwrap(), Validity::starting(now(), LEAF_LIFE));
    }

    #[test]
    fn what_no_longer_fits_is_issued_again() {
        let authority = authority();
        let leaf = authority.issue(NAME, Usage::Server, now()).unwrap();
        let judge = |leaf: &KeyedCert, name, now| authority.judge(leaf, authority.bundle(), name, now);
        let stranger = self::authority().issue(NAME, Usage::Server, now()).unwrap();
        let broken = KeyedCert { cert: "nonsense".into(), ..leaf.clone() };
        let mixed = KeyedCert { key: stranger.key.clone(), ..leaf.clone() };
        assert_eq!(judge(&leaf, "other.team-a.imagegen.internal", now()), LeafStep::Issue("it has another name"));
        assert_eq!(judge(&leaf, NAME, now() + plan::days(60)), LeafStep::Issue("it ends soon"));
        assert_eq!(judge(&stranger, NAME, now()), LeafStep::Issue("another authority signed it"));
        assert_eq!(judge(&broken, NAME, now()), LeafStep::Issue("its certificate and key are damaged"));
        assert_eq!(judge(&mixed, NAME, now()), LeafStep::Issue("its certificate and key are damaged"));
    }

    #[test]
    fn a_successor_reaches_the_bundle_before_it_signs() {
        let (old, new) = (new_ca(None, now()).unwrap(), new_ca(None, now()).unwrap());
        let before = Authority::new(old.clone(), &[]).unwrap();
        let leaf = before.issue(NAME, Usage::Server, now()).unwrap();
        let during = Authority::new(old.clone(), &[&new.cert]).unwrap();
        assert_eq!(during.judge(&leaf, before.bundle(), NAME, now()), LeafStep::Rebundle);
        let after = Authority::new(new, &[&old.cert]).unwrap();
        assert_eq!(after.judge(&leaf, during.bundle(), NAME, now()), LeafStep::Issue("another authority signed it"));
        assert_eq!(after.bundle().matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn an_authority_with_a_foreign_key_is_refused() {
        let (a, b) = (new_ca(None, now()).unwrap(), new_ca(None, now()).unwrap());
        let error = Authority::new(KeyedCert { cert: a.cert, key: b.key }, &[]).unwrap_err();
        assert!(matches!(error, PkiError::KeyMismatch), "{error}");
    }

    /// Whether a worker with the leaf `server` and an operator with the leaf `client`, who trust what they are given,
    /// agree on a connection to `name`.
    fn handshake(server: &KeyedCert, client: &KeyedCert, trusted: &str, name: &str) -> Result<(), rustls::Error> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = |leaf: &KeyedCert| vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
        let key = |leaf: &KeyedCert| PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let roots = Arc::new(roots);
        let at = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let clock = Arc::new(FixedTime(at));
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let server_config = rustls::ServerConfig::builder_with_details(provider.clone(), clock.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain(server), key(server))?;
        let client_config = rustls::ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain(client), key(client))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client_config), name)?;
        let mut server = rustls::ServerConnection::new(Arc::new(server_config))?;
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            let _ = server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            let _ = client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[derive(Debug)]
    struct FixedTime(rustls::pki_types::UnixTime);

    impl rustls::time_provider::TimeProvider for FixedTime {
        fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
            Some(self.0)
        }
    }

    #[test]
    fn operator_and_worker_trust_each_other_and_nobody_else() {
        let (ours, theirs) = (authority(), authority());
        let server = ours.issue(NAME, Usage::Server, now()).unwrap();
        let operator = ours.issue(OPERATOR_NAME, Usage::Client, now()).unwrap();
        handshake(&server, &operator, ours.bundle(), NAME).unwrap();
        let stranger = theirs.issue(OPERATOR_NAME, Usage::Client, now()).unwrap();
        let impostor = theirs.issue(NAME, Usage::Server, now()).unwrap();
        for (case, server, client, name) in [
            ("another ImageGen's name", &server, &operator, "other.team-a.imagegen.internal"),
            ("a client of another authority", &server, &stranger, NAME),
            ("a server of another authority", &impostor, &operator, NAME),
            ("a worker as a client", &server, &server, NAME),
        ] {
            assert!(handshake(server, client, ours.bundle(), name).is_err(), "{case}");
        }
    }

    #[test]
    fn the_authority_vouches_for_the_operators_service_when_it_is_told_so() {
        const SERVICE: &str = "imagegen-operator.imagegen-system.svc";
        let ca = new_ca(Some(SERVICE), now()).unwrap();
        assert!(permits(&ca.cert, SERVICE) && permits(&ca.cert, NAME));
        assert!(!permits(&ca.cert, "kubernetes.default.svc") && !permits(&new_ca(None, now()).unwrap().cert, SERVICE));
        let authority = Authority::new(ca, &[]).unwrap();
        let server = authority.issue(SERVICE, Usage::Serving, now()).unwrap();
        let client = authority.issue(OPERATOR_NAME, Usage::Client, now()).unwrap();
        handshake(&server, &client, authority.bundle(), SERVICE).unwrap();
    }

    #[test]
    fn the_authority_vouches_only_for_internal_names() {
        let authority = authority();
        let outside = authority.issue("www.example.com", Usage::Server, now()).unwrap();
        let operator = authority.issue(OPERATOR_NAME, Usage::Client, now()).unwrap();
        handshake(&outside, &operator, authority.bundle(), "www.example.com").unwrap_err();
    }
}
