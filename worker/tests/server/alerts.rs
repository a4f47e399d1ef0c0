//! The contract between the metrics page, its manual, the alerts and the dashboard; and a real Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use fake_nvml::{Process, State};

use crate::{
    gpu::Gpu,
    harness::{Worker, apple, eventually, generate, get},
};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names as queries use them, with their types, of a worker on a GPU that tells everything.
async fn on_the_page() -> BTreeMap<String, String> {
    let mut state = State::h100();
    state.devices[0].processes = vec![Process { pid: 0, used: Some(1 << 30) }];
    let gpu = Gpu::new(&state);
    let worker = Worker::ready("", &gpu.with(&[])).await;
    generate(&mut worker.client().await, apple()).await.unwrap();
    let (_, page) = worker.get("/metrics").await;
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let name = |(name, kind): (&str, &str)| match kind {
        "counter" => (format!("{name}_total"), kind.to_owned()),
        "info" => (format!("{name}_info"), kind.to_owned()),
        _ => (name.to_owned(), kind.to_owned()),
    };
    types.map(name).collect()
}

/// Names in a query or text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words
        .filter(|word| word.starts_with("imagegen_worker_") || word.starts_with("cuda_"))
        .map(ToOwned::to_owned)
        .collect()
}

/// `expr` of rules and panels, wherever they stand.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    serde_json::Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                    value => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// Name and type of each row of the manual's tables.
fn in_the_manual() -> BTreeMap<String, String> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`').split('{').next()?.to_owned();
        Some((name, cells.next()?.to_owned()))
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_in_the_manual_and_the_other_way_round() {
    assert_eq!(on_the_page().await, in_the_manual());
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let page = on_the_page().await;
    let mut queries = Vec::new();
    expressions(&serde_yaml::from_str(&read("deploy/alerts.yaml")).unwrap(), &mut queries);
    let alerts = queries.len();
    expressions(&serde_json::from_str(&read("deploy/grafana-dashboard.json")).unwrap(), &mut queries);
    assert!(alerts >= 10 && queries.len() > alerts + 20, "{alerts} alerts, {} queries", queries.len());
    for query in queries {
        for name in names(&query) {
            let series = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| {
                let histogram = name.strip_suffix(suffix)?;
                (page.get(histogram).map(String::as_str) == Some("histogram")).then_some(histogram)
            });
            let exists = series.is_some() || page.contains_key(&name);
            assert!(exists, "{name} is not on the page; in: {query}");
        }
    }
}

/// Ended with the test.
struct Prometheus {
    process: Child,
    address: std::net::SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(folder: &Path, target: std::net::SocketAddr) -> Self {
        let rules = repository("deploy/alerts.yaml").canonicalize().unwrap();
        let configuration = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "workers", "static_configs": [{"targets": [target.to_string()]}]}],
        });
        // YAML reads JSON.
        fs::write(folder.join("prometheus.yml"), configuration.to_string()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("prometheus.log")).unwrap())
            .spawn()
            .expect("prometheus is not installed; run deploy/scripts/setup.sh alerts");
        Self { process, address }
    }

    /// An answer of its API; absent while it does not answer.
    async fn ask(&self, path: &str) -> Option<serde_json::Value> {
        tokio::net::TcpStream::connect(self.address).await.ok()?;
        let (_, body) = get(self.address, path).await;
        // Long answers come in chunks, whose lengths stand between the lines.
        let json = body.lines().find(|line| line.starts_with('{'))?;
        serde_json::from_str(json).ok()
    }

    async fn firing(&self) -> Vec<String> {
        let answer = self.ask("/api/v1/query?query=ALERTS%7Balertstate=%22firing%22%7D").await.unwrap_or_default();
        let alerts = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        alerts.iter().filter_map(|alert| Some(alert["metric"]["alertname"].as_str()?.to_owned())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_a_worker_and_an_alert_fires() {
    let mut state = State::h100();
    let gpu = Gpu::new(&state);
    let worker = Worker::ready("", &gpu.with(&[])).await;
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(folder.path(), worker.addresses.http);
    let up = || async {
        let answer = prometheus.ask("/api/v1/query?query=imagegen_worker_device_probe_up").await.unwrap_or_default();
        answer["data"]["result"][0]["value"][1] == "1"
    };
    eventually("Prometheus has scraped the worker", up).await;
    assert_eq!(prometheus.firing().await, Vec::<String>::new());

    state.devices[0].ecc_uncorrected = Some(1);
    gpu.fake.answer(&state).unwrap();
    eventually("the alert fires", || async { prometheus.firing().await == ["ImageGenGpuMemoryErrors"] }).await;
}
