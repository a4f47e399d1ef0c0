//! The program itself: signals, exit codes, the environment, `generate`.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use imagegen_proto::v1::{GenerateRequest, GetModelRequest, image_service_client::ImageServiceClient};
use rstest::rstest;
use tempfile::TempDir;

use crate::harness::{apple, listen, running};

pub(crate) fn program() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("imagegen-worker"));
    // What the caller of the tests has set must not leak in.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"IMAGEGEN_")) {
        command.env_remove(name);
    }
    command
}

fn engine(folder: &Path, script: &str) -> String {
    let file = folder.join("script.yaml");
    fs::write(&file, script).unwrap();
    format!("--engine=scripted:{}", file.display())
}

pub(crate) struct Served {
    child: Child,
    url: String,
}

fn serve(folder: &TempDir, script: &str, environment: &[(&str, &str)]) -> Served {
    let mut command = program();
    command.args(["serve", &engine(folder.path(), script), "--development"]).envs(environment.iter().copied());
    listening(command)
}

/// The server with these flags.
#[cfg(feature = "torch")]
pub(crate) fn serve_with(flags: &[&str]) -> Served {
    let mut command = program();
    command.arg("serve").args(flags);
    listening(command)
}

fn listening(mut command: Command) -> Served {
    let ports = ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--log-format=json"];
    let mut child = command.args(ports).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = lines
        .by_ref()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap())
        .find(|line| line["message"] == "Listening.")
        .expect("the worker ended before it listened");
    // A pipe that nobody reads would block the worker.
    std::thread::spawn(move || lines.for_each(drop));
    Served { child, url: format!("http://{}", listening["public"].as_str().unwrap()) }
}

impl Served {
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) async fn client(&self) -> ImageServiceClient<tonic::transport::Channel> {
        let endpoint = tonic::transport::Endpoint::from_shared(self.url.clone()).unwrap();
        let mut client = ImageServiceClient::new(endpoint.connect().await.unwrap());
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(10));
        while client.get_model(GetModelRequest {}).await.is_err() {
            ticks.tick().await;
        }
        client
    }

    pub(crate) fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let served = serve(&folder, "step_seconds: 0.1", &[]);
    let stream = running(&mut served.client().await, apple()).await;
    served.signal("-TERM");
    assert_eq!(listen(stream).await.unwrap().images.len(), 1);
    assert_eq!(served.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let served = serve(&folder, "step_seconds: 0.1", &[]);
    let endless = GenerateRequest { steps: Some(100), ..apple() };
    let stream = running(&mut served.client().await, endless).await;
    served.signal("-TERM");
    served.signal("-INT");
    assert!(listen(stream).await.is_err());
    assert_eq!(served.exit_code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_engine_exits_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let served = serve(&folder, "faults: [{batch: 1, stage: vae, kind: fatal}]", &[]);
    let mut client = served.client().await;
    let stream = client.generate(apple()).await.unwrap().into_inner();
    assert_eq!(listen(stream).await.unwrap_err().code(), tonic::Code::Unavailable);
    assert_eq!(served.exit_code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let served = serve(&folder, "", &[("IMAGEGEN_QUEUE_CAPACITY", "9"), ("IMAGEGEN_DEFAULT_SIZE", "320x240")]);
    let model = served.client().await.get_model(GetModelRequest {}).await.unwrap().into_inner();
    let setting = |name: &str| model.settings.iter().find(|setting| setting.name == name).unwrap().clone();
    assert_eq!((setting("queue-capacity").value, setting("queue-capacity").origin), ("9".into(), "Environment".into()));
    assert_eq!(model.defaults.unwrap().width, 320);
    assert_eq!(setting("development").origin, "Flag");
    served.signal("-TERM");
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn the_scripted_engine_is_refused_in_production() {
    let folder = tempfile::tempdir().unwrap();
    let output = program().args(["serve", &engine(folder.path(), "")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("add --development"), "{}", text(&output));
}

fn generate(folder: &Path, script: &str, prompt: impl AsRef<OsStr>, arguments: &[&str]) -> Output {
    let engine = engine(folder, script);
    let mut command = program();
    command.current_dir(folder).args(["generate", &engine, "--development", "--prompt"]).arg(prompt);
    command.args(["--width=64", "--height=32", "--seed=7"]).args(arguments).output().unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "script.yaml").collect();
    names.sort();
    names
}

#[test]
fn generate_writes_the_pictures_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let output = generate(folder.path(), "", "红苹果", &["--output=apple.webp", "--count=2", "--steps=3"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(files(folder.path()), ["apple-1.webp", "apple-2.webp"]);
    assert!(text(&output).contains("apple-2.webp: 64x32, seed 8"), "{}", text(&output));
    let bytes = fs::read(folder.path().join("apple-1.webp")).unwrap();
    assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8().get_pixel(0, 0).0, [7, 0, 0]);
}

#[rstest]
#[case::empty_prompt("".as_bytes(), &["--output=a.png"], "--prompt is empty")]
#[case::lone_surrogate(b"\xED\xA0\x80", &["--output=a.png"], "--prompt is not valid UTF-8")]
#[case::control_character("a\u{7}".as_bytes(), &["--output=a.png"], "U+0007")]
#[case::extension(b"apple", &["--output=a.bmp"], "expected .png, .jpg, .jpeg or .webp")]
#[case::folder(b"apple", &["--output=no/a.png"], "the folder no is not there")]
#[case::steps_0(b"apple", &["--output=a.png", "--steps=0"], "steps must be 1 to 100, found 0")]
#[case::nan_guidance(b"apple", &["--output=a.png", "--guidance-scale=NaN"], "guidance_scale must be a finite number")]
#[case::count_0(b"apple", &["--output=a.png", "--count=0"], "count must be 1 to 8, found 0")]
#[case::scheduler(b"apple", &["--output=a.png", "--scheduler=dreams"], "scheduler")]
#[case::negative_prompt(b"apple", &["--output=a.png", "--negative-prompt=blur"], "negative_prompt needs guidance_scale")]
#[case::device(b"apple", &["--output=a.png", "--device=tpu"], "a device is cpu, cuda, or cuda:N")]
fn generate_says_what_is_wrong_and_writes_nothing(
    #[case] prompt: &[u8],
    #[case] arguments: &[&str],
    #[case] sentence: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let output = generate(folder.path(), "", OsStr::from_bytes(prompt), arguments);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(sentence), "{}", text(&output));
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

#[rstest]
#[case::model("load_fault: the shard is cut", 3, "the model could not be loaded: the shard is cut")]
#[case::engine("faults: [{batch: 1, stage: vae, kind: failed}]", 4, "the engine failed in vae")]
fn a_failure_leaves_what_was_there(#[case] script: &str, #[case] code: i32, #[case] sentence: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.png"), "the picture from before").unwrap();
    let output = generate(folder.path(), script, "apple", &["--output=a.png"]);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    assert!(text(&output).contains(sentence), "{}", text(&output));
    assert_eq!(files(folder.path()), ["a.png"]);
    assert_eq!(fs::read(folder.path().join("a.png")).unwrap(), b"the picture from before");
}
