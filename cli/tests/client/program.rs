//! The program under test, in a folder and an environment of its own.

use std::{
    io::Read as _,
    path::Path,
    process::{self, Output, Stdio},
};

use assert_cmd::Command;
use tempfile::TempDir;

use crate::worker::{PATIENCE, Seen, Worker};

/// The program, with nothing of the caller's environment that it reads.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagegen"));
    clean(&mut command, folder);
    command
}

/// The program under the name that kubectl calls.
pub fn plugin(folder: &Path) -> Command {
    let link = folder.join("kubectl-imagegen");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imagegen"), &link).unwrap();
    let mut command = Command::new(link);
    clean(&mut command, folder);
    command
}

fn clean(command: &mut Command, folder: &Path) {
    command.current_dir(folder).env_clear().env("HOME", folder).timeout(PATIENCE);
}

/// Runs `imagegen generate "a red apple" WORDS --endpoint ENDPOINT`.
pub fn generate(folder: &TempDir, endpoint: &str, words: &[&str]) -> Output {
    program(folder.path()).args(["generate", "a red apple", "--endpoint", endpoint]).args(words).output().unwrap()
}

/// Starts `command`, sends it `signal` once the worker has its request, and waits until the worker has heard of the
/// cancellation. Returns the exit code and standard error.
pub fn signal_while_generating(mut command: process::Command, signal: &str, worker: &Worker) -> (Option<i32>, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(worker.next(), Seen::Generate { .. }));
    let kill = format!("kill -{signal} {}", child.id());
    assert!(process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert!(matches!(worker.next(), Seen::Cancelled));
    let code = child.wait().unwrap().code();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (code, text)
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("the program ends by itself")
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("one JSON object, found {output:?}"))
}

/// Names of the files in the folder, sorted, hidden ones too.
pub fn files(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "kubectl-imagegen" && name != "kubeconfig")
        .collect();
    names.sort();
    names
}
