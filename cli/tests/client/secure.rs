//! TLS and tokens.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tonic::transport::Identity;

use crate::{
    program::{code, generate, program, stderr},
    worker::{Reply, Seen, Worker},
};

/// A certificate for `name`, and the authority that made it, as PEM.
pub fn certificate(name: &str) -> (Identity, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    (Identity::from_pem(leaf.pem(), key.serialize_pem()), authority.pem())
}

fn secure_worker(script: impl IntoIterator<Item = Reply>) -> (Worker, TempDir, String) {
    let (identity, authority) = certificate("turbo.art.svc");
    let worker = Worker::start_with(script, Some(identity));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), authority).unwrap();
    fs::write(folder.path().join("token"), "secret\n").unwrap();
    let endpoint = format!("https://{}", worker.address);
    (worker, folder, endpoint)
}

#[test]
fn a_trusted_worker_gets_the_token() {
    let (worker, folder, endpoint) = secure_worker([Reply::Pictures(&[])]);
    let words = ["-o", "a.png", "--ca-file", "ca.pem", "--tls-server-name", "turbo.art.svc", "--token-file", "token"];
    let output = generate(&folder, &endpoint, &words);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let Seen::Generate { authorization, .. } = worker.next() else { panic!("a request") };
    assert_eq!(authorization.as_deref(), Some("Bearer secret"));
}

#[test]
fn an_unknown_authority_is_not_trusted_and_not_retried() {
    let (_worker, folder, endpoint) = secure_worker([]);
    let (_, other) = certificate("other");
    fs::write(folder.path().join("other.pem"), other).unwrap();
    let words = ["-o", "a.png", "--ca-file", "other.pem", "--tls-server-name", "turbo.art.svc"];
    let output = generate(&folder, &endpoint, &words);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("is not trusted") && stderr(&output).contains("--ca-file"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("trying again"), "{}", stderr(&output));
}

#[test]
fn a_certificate_for_another_name_is_not_trusted() {
    let (_worker, folder, endpoint) = secure_worker([]);
    let output = generate(&folder, &endpoint, &["-o", "a.png", "--ca-file", "ca.pem"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("--tls-server-name"), "{}", stderr(&output));
}

#[test]
fn a_worker_without_tls_is_told_apart() {
    let (worker, folder) = (Worker::start([]), tempfile::tempdir().unwrap());
    let output = generate(&folder, &format!("https://{}", worker.address), &["-o", "a.png"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("does not speak TLS"), "{}", stderr(&output));
}

#[test]
fn the_environment_carries_token_and_endpoint() {
    let (worker, folder) = (Worker::start([Reply::Pictures(&[])]), tempfile::tempdir().unwrap());
    let output = program(folder.path())
        .args(["generate", "a red apple"])
        .env("IMAGEGEN_ENDPOINT", worker.endpoint())
        .env("IMAGEGEN_TOKEN", "from-env")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let Seen::Generate { authorization, .. } = worker.next() else { panic!("a request") };
    assert_eq!(authorization.as_deref(), Some("Bearer from-env"));
    assert!(folder.path().join("a-red-apple.png").exists());
}

#[test]
fn a_token_is_not_sent_in_the_clear_to_another_machine() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "secret").unwrap();
    let output = generate(&folder, "http://192.0.2.1:8500", &["-o", "a.png", "--token-file", "token"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("--allow-insecure-token"), "{}", stderr(&output));
}
