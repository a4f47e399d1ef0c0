//! What a worker says of itself.

use serde_json::json;

use crate::{
    program::{code, json, program, stderr, stdout},
    worker::Worker,
};

#[test]
fn a_worker_is_shown_as_a_table_and_as_json() {
    let (worker, folder) = (Worker::start([]), tempfile::tempdir().unwrap());
    let run = |words: &[&str]| {
        program(folder.path()).args(["status", "--endpoint", &worker.endpoint()]).args(words).output().unwrap()
    };
    let table = run(&[]);
    assert_eq!(code(&table), 0, "{}", stderr(&table));
    for part in ["SERVING", "emoji-zimage (ZImagePipeline)", "float32 on cpu", "256x256@4", "50 steps"] {
        assert!(stdout(&table).contains(part), "{part} in {}", stdout(&table));
    }
    let report = json(&run(&["--json"]));
    assert_eq!((&report["health"], &report["model"]["ready"]), (&json!("SERVING"), &json!(true)));
    assert_eq!(report["model"]["buckets"], json!([{ "width": 256, "height": 256, "max_batch": 4 }]));
}

#[test]
fn nobody_there_exits_4() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("http://127.0.0.1:{port}");
    let output = program(folder.path()).args(["status", "--json", "--endpoint", &endpoint]).output().unwrap();
    assert_eq!((code(&output), &json(&output)["error"]["class"]), (4, &json!("unavailable")));
}
