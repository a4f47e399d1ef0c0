//! `kubectl imagegen`: from a name to a picture, and what is said where there is no way.

use std::process::Output;

use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    cluster::Cluster,
    program::{code, files, json, plugin, signal_while_generating, stderr, stdout},
    secure::certificate,
    worker::{Reply, Seen, Worker},
};

/// Runs the plugin with the cluster's kubeconfig in an empty folder.
fn run(cluster: &Cluster, words: &[&str]) -> (Output, TempDir) {
    run_with(cluster, words, &[])
}

fn run_with(cluster: &Cluster, words: &[&str], environment: &[(&str, &str)]) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    cluster.write_kubeconfig(folder.path());
    let output = plugin(folder.path())
        .env("KUBECONFIG", folder.path().join("kubeconfig"))
        .envs(environment.iter().copied())
        .args(words)
        .output()
        .unwrap();
    (output, folder)
}

const GENERATE: [&str; 5] = ["generate", "turbo", "a red apple", "-o", "apple.png"];

#[test]
fn a_name_is_enough_for_a_picture() {
    let (cluster, worker) = (Cluster::start(), Worker::start([Reply::Pictures(&[])]));
    cluster.has_turbo(&json!({}), true, &["turbo-0"]);
    cluster.has_pod("turbo-0", worker.address);
    let (output, folder) = run(&cluster, &GENERATE);
    assert_eq!((code(&output), stdout(&output)), (0, "apple.png\n"), "{}", stderr(&output));
    assert_eq!(files(&folder), ["apple.png"]);
    assert_eq!(worker.next_request().prompt, "a red apple");
}

#[test]
fn a_new_connection_goes_to_another_pod() {
    let (cluster, gone, worker) = (Cluster::start(), Worker::start([]), Worker::start([Reply::Pictures(&[])]));
    let address = gone.address;
    drop(gone);
    cluster.has_turbo(&json!({}), true, &["gone", "serving"]);
    cluster.has_pod("gone", address);
    cluster.has_pod("serving", worker.address);
    let (output, _) = run(&cluster, &[&GENERATE[..], &["--retries", "1"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let last = cluster.forwarded().pop();
    assert_eq!(last.as_deref(), Some("/api/v1/namespaces/art/pods/serving/portforward"));
}

#[test]
fn tls_and_token_come_from_the_secrets_that_the_imagegen_names() {
    let (identity, authority) = certificate("turbo.art.svc");
    let cluster = Cluster::start();
    let worker = Worker::start_with([Reply::Pictures(&[])], Some(identity));
    let service = json!({
        "tls": { "secretName": "turbo-tls" }, "auth": { "tokenSecretRef": { "name": "turbo-token", "key": "clients" } },
    });
    cluster.has_turbo(&service, true, &["turbo-0"]);
    cluster.has_pod("turbo-0", worker.address);
    let secret = |name: &str, key: &str, text: &str| {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD.encode(text);
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "art" },
            "data": { key: data },
        });
        cluster.has(&format!("/api/v1/namespaces/art/secrets/{name}"), object);
    };
    secret("turbo-tls", "ca.crt", &authority);
    secret("turbo-token", "clients", "new\nold\n");
    let (output, _) = run(&cluster, &GENERATE);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let Seen::Generate { authorization, .. } = worker.next() else { panic!("a request") };
    assert_eq!(authorization.as_deref(), Some("Bearer new"));
}

#[test]
fn a_secret_that_may_not_be_read_says_how_to_do_without() {
    let (cluster, worker) = (Cluster::start(), Worker::start([Reply::Pictures(&[])]));
    cluster.has_turbo(
        &json!({ "auth": { "tokenSecretRef": { "name": "turbo-token", "key": "token" } } }),
        true,
        &["turbo-0"],
    );
    cluster.has_pod("turbo-0", worker.address);
    cluster.forbids("/api/v1/namespaces/art/secrets/turbo-token");
    let (output, _) = run(&cluster, &GENERATE);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("--token-file FILE or in IMAGEGEN_TOKEN"), "{}", stderr(&output));
    let (output, _) = run_with(&cluster, &GENERATE, &[("IMAGEGEN_TOKEN", "passed")]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[test]
fn an_unknown_name_lists_those_that_exist() {
    let cluster = Cluster::start();
    cluster.has_turbo(&json!({}), true, &[]);
    let (output, _) = run(&cluster, &["generate", "trubo", "a red apple"]);
    assert_eq!(code(&output), 8, "{}", stderr(&output));
    assert!(stderr(&output).contains("no ImageGen \"trubo\" in namespace art"), "{}", stderr(&output));
    assert!(stderr(&output).contains("There are: turbo."), "{}", stderr(&output));
}

#[test]
fn a_cluster_without_imagegen_says_so() {
    let (output, _) = run(&Cluster::start(), &GENERATE);
    assert_eq!(code(&output), 8, "{}", stderr(&output));
    assert!(stderr(&output).contains("no resource imagegens.imagegen.dev"), "{}", stderr(&output));
}

#[test]
fn an_imagegen_that_is_not_ready_tells_why() {
    let cluster = Cluster::start();
    cluster.has_turbo(&json!({}), false, &[]);
    let (output, folder) = run(&cluster, &GENERATE);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("ModelLoading: 40 % of the model is loaded"), "{}", stderr(&output));
    assert!(files(&folder).is_empty());
}

#[rstest]
#[case::imagegen("/apis/imagegen.dev/v1alpha1/namespaces/art/imagegens/turbo", "read ImageGen art/turbo")]
#[case::endpoints("/apis/discovery.k8s.io/v1/namespaces/art/endpointslices", "list the endpoints of Service turbo")]
#[case::pod("/api/v1/namespaces/art/pods/turbo-0/portforward", "forward port 8500 of pod art/turbo-0")]
fn a_missing_right_is_named(#[case] path: &str, #[case] action: &str) {
    let cluster = Cluster::start();
    cluster.has_turbo(&json!({}), true, &["turbo-0"]);
    cluster.forbids(path);
    let (output, _) = run(&cluster, &GENERATE);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains(action) && stderr(&output).contains("Ask for a role"), "{}", stderr(&output));
}

#[test]
fn a_pod_that_refuses_the_port_is_named() {
    let (cluster, worker) = (Cluster::start(), Worker::start([]));
    let address = worker.address;
    drop(worker);
    cluster.has_turbo(&json!({}), true, &["turbo-0"]);
    cluster.has_pod("turbo-0", address);
    let (output, _) = run(&cluster, &[&GENERATE[..], &["--retries", "0"]].concat());
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("pod turbo-0: failed to connect"), "{}", stderr(&output));
}

#[test]
fn an_api_server_that_is_gone_is_told() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    cluster.write_kubeconfig(folder.path());
    drop(cluster);
    let kubeconfig = folder.path().join("kubeconfig");
    let output = plugin(folder.path()).args(GENERATE).arg("--kubeconfig").arg(kubeconfig).output().unwrap();
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("the API server does not answer"), "{}", stderr(&output));
}

#[test]
fn ctrl_c_reaches_the_worker_through_the_api_server() {
    let (cluster, worker) = (Cluster::start(), Worker::start([Reply::Hangs]));
    cluster.has_turbo(&json!({}), true, &["turbo-0"]);
    cluster.has_pod("turbo-0", worker.address);
    let folder = tempfile::tempdir().unwrap();
    cluster.write_kubeconfig(folder.path());
    let link = folder.path().join("kubectl-imagegen");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imagegen"), &link).unwrap();
    let mut command = std::process::Command::new(link);
    command.args(GENERATE).current_dir(folder.path()).env("KUBECONFIG", folder.path().join("kubeconfig"));
    let (code, text) = signal_while_generating(command, "INT", &worker);
    assert_eq!(code, Some(130), "{text}");
    assert!(files(&folder).is_empty());
}

#[test]
fn status_shows_conditions_and_the_worker() {
    let (cluster, worker) = (Cluster::start(), Worker::start([]));
    cluster.has_turbo(&json!({}), true, &["turbo-0"]);
    cluster.has_pod("turbo-0", worker.address);
    let (table, _) = run(&cluster, &["status", "turbo"]);
    assert_eq!(code(&table), 0, "{}", stderr(&table));
    for part in ["art/turbo", "1/1 ready", "WorkersReady", "SERVING", "emoji-zimage"] {
        assert!(stdout(&table).contains(part), "{part} in {}", stdout(&table));
    }
    let (report, _) = run(&cluster, &["status", "turbo", "--json"]);
    assert_eq!(json(&report)["imagegen"]["conditions"][0]["reason"], json!("WorkersReady"));
    assert_eq!(json(&report)["worker"]["health"], json!("SERVING"));
    let (list, _) = run(&cluster, &["status"]);
    assert!(stdout(&list).starts_with("NAMESPACE  NAME   READY"), "{}", stdout(&list));
}

#[test]
fn status_of_what_is_not_ready_shows_its_conditions_and_exits_4() {
    let cluster = Cluster::start();
    cluster.has_turbo(&json!({}), false, &[]);
    let (output, _) = run(&cluster, &["status", "turbo"]);
    assert_eq!(code(&output), 4);
    assert!(stdout(&output).contains("ModelLoading"), "{}", stdout(&output));
}

#[test]
fn help_speaks_of_kubectl() {
    let (output, _) = run(&Cluster::start(), &["generate", "--help"]);
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("Usage: kubectl imagegen generate"), "{}", stdout(&output));
}
