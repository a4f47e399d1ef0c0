//! Pictures, refusals, retries and cancellation.

use std::{process::Command, time::Duration};

use rstest::rstest;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    program::{code, files, generate, json, program, signal_while_generating, stderr, stdout},
    worker::{Reply, Seen, Worker},
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_picture_is_saved_under_its_name_and_warnings_are_told() {
    let (worker, folder) = (Worker::start([Reply::Pictures(&["250 is made larger to 256"])]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--size", "256x250", "--seed", "7"]);
    assert_eq!((code(&output), stdout(&output)), (0, "apple.png\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains("warning: 250 is made larger to 256"), "{}", stderr(&output));
    assert!(stderr(&output).contains("Saved 1 picture of 256x250"), "{}", stderr(&output));
    assert_eq!(std::fs::read(folder.path().join("apple.png")).unwrap(), b"picture 0");
    assert_eq!(files(&folder), ["apple.png"]);
    let Seen::Generate { request, authorization, has_deadline } = worker.next() else { panic!("a request") };
    assert_eq!((request.width, request.height, request.seed), (Some(256), Some(250), Some(7)));
    assert_eq!((authorization, has_deadline), (None, true));
}

#[test]
fn the_newest_preview_is_kept_in_its_file() {
    let (worker, folder) = (Worker::start([Reply::Pictures(&[])]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--count", "2", "--preview", "now.png"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(files(&folder), ["apple-1.png", "apple-2.png", "now.png"]);
    assert_eq!(std::fs::read(folder.path().join("now.png")).unwrap(), b"preview 1");
    assert_eq!(worker.next_request().preview_every, 1);
}

#[test]
fn several_pictures_are_numbered_and_json_names_them() {
    let (worker, folder) = (Worker::start([Reply::Pictures(&[])]), folder());
    let words = ["-o", "apple.webp", "--count", "3", "--seed", "4294967295", "--request-id", "mine", "--json"];
    let output = generate(&folder, &worker.endpoint(), &words);
    assert_eq!((code(&output), stderr(&output)), (0, ""));
    assert_eq!(files(&folder), ["apple-1.webp", "apple-2.webp", "apple-3.webp"]);
    let report = json(&output);
    let images = report["images"].as_array().unwrap();
    let seeds: Vec<_> = images.iter().map(|image| image["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [4_294_967_295, 0, 1]);
    assert_eq!(images[1]["path"], json!("apple-2.webp"));
    assert_eq!((&report["request_id"], &report["attempts"]), (&json!("mine"), &json!(1)));
    assert_eq!(report["timings"]["total_seconds"], json!(0.5));
    assert_eq!(worker.next_request().format, 3);
}

#[test]
fn a_refusal_names_the_flags_and_exits_3() {
    let details = ErrorDetails::with_bad_request(vec![FieldViolation::new("steps", "at most 50, found 500")]);
    let refusal = || Status::with_error_details(Code::InvalidArgument, "steps at most 50, found 500", details.clone());
    let (worker, folder) = (Worker::start([Reply::Refuses(refusal()), Reply::Refuses(refusal())]), folder());
    let words = ["-o", "apple.png", "--steps", "500"];
    let output = generate(&folder, &worker.endpoint(), &words);
    assert_eq!(code(&output), 3);
    let wanted = "error: the worker refuses the request\n  --steps: at most 50, found 500\n";
    assert!(stderr(&output).ends_with(wanted), "{}", stderr(&output));
    let output = generate(&folder, &worker.endpoint(), &[&words[..], &["--json"]].concat());
    let error = &json(&output)["error"];
    assert_eq!((&error["class"], &error["exit_code"]), (&json!("refused"), &json!(3)));
    assert_eq!(error["status"], json!("INVALID_ARGUMENT"));
    assert_eq!(error["violations"], json!([{ "field": "steps", "description": "at most 50, found 500" }]));
    assert!(files(&folder).is_empty());
}

#[test]
fn a_retry_asks_for_the_same_picture_under_the_same_name() {
    let hint = ErrorDetails::with_retry_info(Some(Duration::from_millis(20)));
    let full = Status::with_error_details(Code::ResourceExhausted, "the queue is full", hint.clone());
    let draining = Status::with_error_details(Code::Unavailable, "draining", hint);
    let script = [Reply::Refuses(draining), Reply::Refuses(full), Reply::Pictures(&[])];
    let (worker, folder) = (Worker::start(script), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json(&output)["attempts"], json!(3));
    let requests: Vec<_> = (0..3).map(|_| worker.next_request()).collect();
    assert!(requests[0].seed.is_some() && !requests[0].request_id.is_empty());
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
}

#[test]
fn a_stream_that_breaks_is_taken_up_again() {
    let script = [Reply::BreaksAfterOne(Status::unavailable("going away")), Reply::Pictures(&[])];
    let (worker, folder) = (Worker::start(script), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--count", "2"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(files(&folder), ["apple-1.png", "apple-2.png"]);
    assert!(stderr(&output).contains("going away; trying again in"), "{}", stderr(&output));
}

#[rstest]
#[case::full_without_a_hint(Status::resource_exhausted("out of memory in the VAE"), 4)]
#[case::never_fits(Status::failed_precondition("the largest bucket is 256x256"), 3)]
#[case::too_late(Status::deadline_exceeded("the queue is too long"), 5)]
#[case::wrong_token(Status::unauthenticated("unknown token"), 6)]
#[case::engine_fault(Status::internal("engine fault 42"), 1)]
fn other_refusals_are_not_retried(#[case] status: Status, #[case] exit: i32) {
    let message = status.message().to_owned();
    let (worker, folder) = (Worker::start([Reply::Refuses(status)]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png"]);
    assert_eq!(code(&output), exit, "{}", stderr(&output));
    assert!(stderr(&output).contains(&message), "{}", stderr(&output));
}

#[test]
fn missing_pictures_are_an_error() {
    let (worker, folder) = (Worker::start([Reply::FinishesAfterOne]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--count", "2"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("finished after 1 of 2 pictures"), "{}", stderr(&output));
}

#[test]
fn nobody_listening_says_what_to_check() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = folder();
    let output = generate(&folder, &format!("http://127.0.0.1:{port}"), &["-o", "apple.png", "--retries", "1"]);
    assert_eq!(code(&output), 4);
    let text = stderr(&output);
    assert!(text.contains("trying again in") && text.contains("(1 of 1)"), "{text}");
    assert!(text.contains("nothing listens at") && text.contains("port-forward is still up"), "{text}");
}

#[test]
fn a_name_that_does_not_exist_says_so() {
    let folder = folder();
    let output = generate(&folder, "http://no-such-host.invalid:8500", &["-o", "apple.png"]);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("cannot resolve the host name no-such-host.invalid"), "{}", stderr(&output));
}

#[test]
fn a_name_with_addresses_of_two_families_reaches_the_one_that_listens() {
    let (worker, folder) = (Worker::start([Reply::Pictures(&[])]), folder());
    let endpoint = format!("http://localhost:{}", worker.address.port());
    let output = generate(&folder, &endpoint, &["-o", "apple.png", "--retries", "0"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[rstest]
#[case::missing_folder("missing/apple.png", 7)]
#[case::unknown_extension("apple.gif", 2)]
fn an_output_that_cannot_be_is_found_before_anything_is_sent(#[case] path: &str, #[case] exit: i32) {
    let (worker, folder) = (Worker::start([]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", path]);
    assert_eq!(code(&output), exit, "{}", stderr(&output));
}

#[test]
fn usage_errors_exit_2_and_help_exits_0() {
    let folder = folder();
    assert_eq!(code(&program(folder.path()).args(["generate"]).output().unwrap()), 2);
    let help = program(folder.path()).args(["generate", "--help"]).output().unwrap();
    assert_eq!(code(&help), 0);
    assert!(stdout(&help).contains("--guidance-scale"));
}

#[test]
fn the_deadline_cancels_on_the_worker_and_exits_5() {
    let (worker, folder) = (Worker::start([Reply::Hangs]), folder());
    let output = generate(&folder, &worker.endpoint(), &["-o", "apple.png", "--timeout", "300ms"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(matches!(worker.next(), Seen::Generate { .. }));
    assert!(matches!(worker.next(), Seen::Cancelled));
    assert!(files(&folder).is_empty());
}

#[rstest]
#[case::ctrl_c("INT", 130)]
#[case::sigterm("TERM", 143)]
fn a_signal_cancels_on_the_worker(#[case] signal: &str, #[case] exit: i32) {
    let (worker, folder) = (Worker::start([Reply::Hangs]), folder());
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagegen"));
    command.args(["generate", "a red apple", "-o", "apple.png", "--endpoint", &worker.endpoint()]);
    command.current_dir(folder.path());
    let (code, text) = signal_while_generating(command, signal, &worker);
    assert_eq!(code, Some(exit), "{text}");
    assert!(text.contains("the request was cancelled"), "{text}");
    assert!(files(&folder).is_empty());
}
